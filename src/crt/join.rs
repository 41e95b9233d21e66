//! The join of two tables, row by row and fact by fact: commutative, associative, idempotent.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::Table;
use super::table::has_own_macs;
use crate::planted::{self, Bug};
use crate::wire::{EntityType, Guid, Row, Settings};

/// What a join did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JoinOutcome {
    /// The rows that changed here, by ascending GUID; now and then also one that changed back.
    /// (The settings may have changed as well.)
    pub changed: Vec<Guid>,
    /// Something of what was received was newer than here.
    pub theirs_newer: bool,
    /// Something here is newer than what was received of it. Rows that were not received do not
    /// count: compare digests to learn about those.
    pub ours_newer: bool,
}

impl Table {
    /// Joins settings and rows of another table into this one. The stamp stays: give the table
    /// its new one with [`Table::settle`].
    pub fn join(
        &mut self,
        settings: &Settings,
        rows: impl IntoIterator<Item = Row>,
    ) -> JoinOutcome {
        let mut outcome = JoinOutcome::default();
        let mut changed = BTreeSet::new();
        match settings_order(self.settings(), settings) {
            Ordering::Less => {
                self.replace_settings(*settings);
                outcome.theirs_newer = true;
            }
            Ordering::Greater => outcome.ours_newer = true,
            Ordering::Equal => {}
        }
        for theirs in rows {
            let Some(ours) = self.get(theirs.guid) else {
                let guid = theirs.guid;
                self.store(theirs, &mut changed);
                outcome.theirs_newer |= self.get(guid).is_some();
                continue;
            };
            let observed = observation_order(ours, &theirs);
            let owned = ownership_order(ours, &theirs);
            outcome.theirs_newer |= observed.is_lt() || owned.is_lt();
            outcome.ours_newer |= observed.is_gt() || owned.is_gt();
            if let Some(row) = newer_facts(ours, theirs, observed, owned) {
                self.store(row, &mut changed);
            }
        }
        outcome.changed = changed.into_iter().collect();
        outcome
    }
}

/// The row with the newer facts of both; `None` where that is `ours`.
pub(super) fn newer_facts(
    ours: &Row,
    theirs: Row,
    observed: Ordering,
    owned: Ordering,
) -> Option<Row> {
    if planted::is(Bug::JoinTakesTheirs) && (observed.is_ne() || owned.is_ne()) {
        return Some(theirs);
    }
    match (observed.is_lt(), owned.is_lt()) {
        (false, false) => None,
        (true, true) => Some(theirs),
        (true, false) => Some(Row {
            ownership: ours.ownership.clone(),
            owned: ours.owned,
            ..theirs
        }),
        (false, true) => Some(Row {
            ownership: theirs.ownership,
            owned: theirs.owned,
            ..ours.clone()
        }),
    }
}

/// Both rows of one entity in one: the newer facts of each.
pub(crate) fn joined(ours: &Row, theirs: &Row) -> Row {
    let observed = observation_order(ours, theirs);
    let owned = ownership_order(ours, theirs);
    newer_facts(ours, theirs.clone(), observed, owned).unwrap_or_else(|| ours.clone())
}

/// Whether a fact of `ours` would be taken by a table that has `theirs`.
pub fn has_newer(ours: &Row, theirs: &Row) -> bool {
    observation_order(ours, theirs).is_gt() || ownership_order(ours, theirs).is_gt()
}

/// Orders two observations of one entity: by stamp. One observer never gives one stamp to two
/// states of a row, so what follows the stamp only makes the order total; that valid is above
/// invalid and that the more is said the higher keeps it sensible where a list of the same change
/// and a record meet. What a row has from above does
/// not count.
pub(super) fn observation_order(a: &Row, b: &Row) -> Ordering {
    fn key(row: &Row) -> impl Ord + '_ {
        let macs = if has_own_macs(row.entity) {
            &row.macs[..]
        } else {
            &[]
        };
        let (numbers, facts) = if row.entity == EntityType::Extent {
            Default::default()
        } else {
            (
                (row.ioc, row.iod),
                (row.size_bytes, row.block_size, row.features),
            )
        };
        (
            (row.observed, row.is_valid()),
            (&row.vendor, &row.model, &row.serial, &row.name, macs),
            (row.entity, row.parent, numbers, row.extent),
            (facts, row.mode),
        )
    }
    key(a).cmp(&key(b))
}

/// Orders two ownerships of one entity: by stamp, and totally.
pub(super) fn ownership_order(a: &Row, b: &Row) -> Ordering {
    (a.owned, &a.ownership).cmp(&(b.owned, &b.ownership))
}

fn settings_order(a: &Settings, b: &Settings) -> Ordering {
    (a.stamp, a.granularity).cmp(&(b.stamp, b.granularity))
}
