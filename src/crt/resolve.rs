//! What people type becomes a row: a GUID, the beginning of one, an address, a name, a path.

use std::fmt;

use super::Table;
use crate::wire::{Address, EntityType, Guid, Row};

/// The fewest digits of a GUID's beginning that stand for it.
pub const MIN_PREFIX_DIGITS: usize = 8;
/// The most candidates that an error lists.
pub const MAX_CANDIDATES: usize = 16;

/// A row that the text may have meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its GUID.
    pub guid: Guid,
    /// What it is.
    pub entity: EntityType,
    /// Its names from the unit down.
    pub path: String,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} ({})",
            self.entity,
            self.path.escape_debug(),
            self.guid
        )
    }
}

/// Why a text does not name a row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Nothing is called so.
    #[error(
        "nothing here is called '{}'; `rma tree` lists GUIDs, addresses and names",
        text.escape_debug()
    )]
    Unknown {
        /// What was asked for.
        text: String,
    },
    /// Several rows are called so.
    #[error(
        "'{}' may be {}; use the GUID",
        text.escape_debug(),
        list(candidates, *count)
    )]
    Ambiguous {
        /// What was asked for.
        text: String,
        /// The first [`MAX_CANDIDATES`] of the rows.
        candidates: Vec<Candidate>,
        /// How many rows there are.
        count: usize,
    },
}

fn list(candidates: &[Candidate], count: usize) -> String {
    let mut text: Vec<_> = candidates.iter().map(ToString::to_string).collect();
    if count > candidates.len() {
        text.push(format!("{} more", count - candidates.len()));
    }
    text.join(" or ")
}

impl Table {
    /// The row that `text` names: by GUID, by address, by name, by path (names from the unit
    /// down, joined with `/`), or by the first eight or more digits of a GUID. Rows that are
    /// present go before tombstones.
    pub fn resolve(&self, text: &str) -> Result<Guid, ResolveError> {
        self.resolve_among(text, &[])
    }

    /// As [`Table::resolve`], among rows of the given types only; none given means all.
    pub fn resolve_among(&self, text: &str, entities: &[EntityType]) -> Result<Guid, ResolveError> {
        let text = text.trim();
        let wanted = |row: &&Row| entities.is_empty() || entities.contains(&row.entity);
        let exact = text.parse::<Guid>().ok();
        if let Some(row) = exact.and_then(|guid| self.get(guid)).filter(wanted) {
            return Ok(row.guid);
        }
        let address = text.parse::<Address>().ok();
        let prefix = Prefix::parse(text);
        let found: Vec<&Row> = self
            .rows()
            .filter(wanted)
            .filter(|row| {
                address.is_some_and(|address| is_at(row, address))
                    || prefix.is_some_and(|prefix| prefix.begins(row.guid))
                    || (!text.is_empty() && row.name == text)
                    || (text.contains('/') && self.path(row.guid).join("/") == text)
            })
            .collect();
        let present: Vec<&Row> = found
            .iter()
            .copied()
            .filter(|row| self.is_present(row.guid))
            .collect();
        match if present.is_empty() { &found } else { &present }[..] {
            [] => Err(ResolveError::Unknown { text: text.into() }),
            [one] => Ok(one.guid),
            ref many => Err(ResolveError::Ambiguous {
                text: text.into(),
                candidates: many
                    .iter()
                    .take(MAX_CANDIDATES)
                    .map(|row| Candidate {
                        guid: row.guid,
                        entity: row.entity,
                        path: self.path(row.guid).join("/"),
                    })
                    .collect(),
                count: many.len(),
            }),
        }
    }
}

fn is_at(row: &Row, address: Address) -> bool {
    row.macs.contains(&address.mac)
        && (row.ioc, row.iod, row.extent) == (address.ioc, address.iod, address.extent)
}

/// The beginning of a GUID.
#[derive(Debug, Clone, Copy)]
struct Prefix {
    bits: u128,
    shift: u32,
}

impl Prefix {
    fn parse(text: &str) -> Option<Self> {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let count = digits.len();
        let hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
        if !hex || !(MIN_PREFIX_DIGITS..32).contains(&count) {
            return None;
        }
        Some(Self {
            bits: u128::from_str_radix(&digits, 16).ok()?,
            shift: 128 - 4 * count as u32,
        })
    }

    fn begins(self, guid: Guid) -> bool {
        guid.0 >> self.shift == self.bits
    }
}
