//! What a desired cluster comes to: the changes of each unit's registers, checked as a whole. Pure
//! functions on a table.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::carve::{check_granularity, name_of, range_of, removed};
use super::desired::{Desired, DesiredDevice, MAX_DESIRED_ROWS, Word};
use super::plan::{self, error, present};
use super::request::{AdminError, ErrorKind};
use crate::crt::Table;
use crate::crt::rules::{self, Named};
use crate::wire::message::{Change, CompareAndSet, ExtentFacts};
use crate::wire::{EntityType, Epoch, Extent, Granularity, Guid, Ownership, Row};

/// What has to be done so that the cluster is as desired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApplyPlan {
    /// The granularity, where it has to change.
    pub(super) granularity: Option<Granularity>,
    /// The changes of each unit that has some, parents first.
    pub(super) units: Vec<(Guid, Vec<Change>)>,
}

/// The granularity of this name.
pub(super) fn granularity(text: &str) -> Result<Granularity, AdminError> {
    let mut all = Granularity::ALL.iter().copied();
    all.find(|g| g.name() == text).ok_or_else(|| {
        let names: Vec<&str> = Granularity::ALL.iter().map(|g| g.name()).collect();
        error(
            ErrorKind::BadRequest,
            format!(
                "'{}' is no granularity; say {}",
                text.escape_debug(),
                names.join(", ")
            ),
        )
    })
}

/// What is to be done, or the first thing that is wrong with what is desired. `is_member` says
/// who is a host of the cluster now; `draw` gives GUIDs for new extents.
pub(super) fn plan(
    table: &Table,
    desired: &Desired,
    is_member: &dyn Fn(Guid) -> bool,
    draw: &mut dyn FnMut() -> Guid,
) -> Result<ApplyPlan, AdminError> {
    if desired.len() > MAX_DESIRED_ROWS {
        return Err(error(
            ErrorKind::BadRequest,
            format!(
                "{} rows are named; name at most {MAX_DESIRED_ROWS} at once",
                desired.len()
            ),
        ));
    }
    let now = table.settings().granularity;
    let level = match &desired.granularity {
        Some(text) => granularity(text)?,
        None => now,
    };
    let mut wanted = Wanted {
        table,
        level,
        is_member,
        ownership: BTreeMap::new(),
        names: BTreeMap::new(),
        fresh: BTreeMap::new(),
        removed: BTreeSet::new(),
    };
    for row in &desired.unit {
        wanted.own(EntityType::Unit, &row.row, row.ownership, &row.owners)?;
    }
    for row in &desired.controller {
        wanted.own(EntityType::Controller, &row.row, row.ownership, &row.owners)?;
    }
    for device in &desired.device {
        wanted.device(device, draw)?;
    }
    let rows = wanted.ownership.keys().chain(wanted.fresh.keys());
    let units: BTreeSet<Guid> = rows
        .chain(&wanted.removed)
        .filter_map(|guid| table.unit_of(*guid))
        .collect();
    let mut all = Vec::new();
    for unit in units {
        let changes = wanted.changes(unit);
        if !changes.is_empty() {
            check(table, level, unit, &changes)?;
            all.push((unit, changes));
        }
    }
    Ok(ApplyPlan {
        granularity: (level != now).then_some(level),
        units: all,
    })
}

/// Checks what one unit has to do.
fn check(
    table: &Table,
    level: Granularity,
    unit: Guid,
    changes: &[Change],
) -> Result<(), AdminError> {
    let request = CompareAndSet {
        term: 0,
        writer: unit,
        changes: changes.to_vec(),
    };
    if !request.is_within_limits() {
        let name = table
            .get(unit)
            .map_or_else(String::new, |row| Named::of(row).to_string());
        return Err(error(
            ErrorKind::BadRequest,
            format!(
                "{} rows of {name} cannot change in one transaction; apply the file in parts",
                changes.len()
            ),
        ));
    }
    Ok(rules::check_change_at(table, level, changes)?)
}

/// What a file says, row by row.
struct Wanted<'a> {
    table: &'a Table,
    level: Granularity,
    is_member: &'a dyn Fn(Guid) -> bool,
    ownership: BTreeMap<Guid, Ownership>,
    /// Extents that get another name.
    names: BTreeMap<Guid, String>,
    /// New extents by device.
    fresh: BTreeMap<Guid, Vec<Change>>,
    /// Extents that are to go.
    removed: BTreeSet<Guid>,
}

impl Wanted<'_> {
    fn own(
        &mut self,
        entity: EntityType,
        text: &str,
        word: Word,
        owners: &[String],
    ) -> Result<Guid, AdminError> {
        let otherwise = format!("is no {entity}; it is named among them (`rma export` shows how)");
        let guid = present(self.table, text, &[entity], &otherwise)?;
        let ownership = self.ownership_of(text, word, owners)?;
        if self.ownership.insert(guid, ownership).is_some()
            && let Some(row) = self.table.get(guid)
        {
            let row = Named::of(row);
            return Err(error(
                ErrorKind::BadRequest,
                format!("{row} is named twice; name it once"),
            ));
        }
        Ok(guid)
    }

    /// The ownership of these words, of what the file calls `text`.
    fn ownership_of(
        &self,
        text: &str,
        word: Word,
        owners: &[String],
    ) -> Result<Ownership, AdminError> {
        let wrong = |what: &str| {
            error(
                ErrorKind::BadRequest,
                format!("'{}' {what}", text.escape_debug()),
            )
        };
        match (word, owners.len()) {
            (Word::Unallocated, 0) => return Ok(Ownership::Unallocated),
            (Word::Unallocated, _) => {
                return Err(wrong(
                    "is to be unallocated and has owners; say one of both",
                ));
            }
            (Word::Dedicated, 1) | (Word::Shared, 1..) => {}
            (Word::Dedicated, _) => {
                return Err(wrong("is to be dedicated; name one host as its owner"));
            }
            (Word::Shared, _) => {
                return Err(wrong("is to be shared; name the hosts as its owners"));
            }
        }
        let shared = word == Word::Shared;
        plan::ownership(self.table, owners, shared, self.is_member)
    }

    fn device(
        &mut self,
        device: &DesiredDevice,
        draw: &mut dyn FnMut() -> Guid,
    ) -> Result<(), AdminError> {
        let guid = self.own(
            EntityType::Device,
            &device.row,
            device.ownership,
            &device.owners,
        )?;
        let Some(extents) = &device.extents else {
            return Ok(());
        };
        let table = self.table;
        let mut known: BTreeMap<Extent, &Row> = table
            .extents(guid)
            .into_iter()
            .filter_map(|row| Some((row.extent?, row)))
            .collect();
        for extent in extents {
            let range = range_of(extent.offset.0, extent.size.0)?;
            let called = format!("{}@{range}", device.row);
            let ownership = self.ownership_of(&called, extent.ownership, &extent.owners)?;
            let name = name_of(&extent.name)?;
            if let Some(row) = known.remove(&range) {
                self.ownership.insert(row.guid, ownership);
                if row.name != extent.name {
                    self.names.insert(row.guid, name);
                }
            } else {
                check_granularity(self.level)?;
                let change = carve(guid, draw(), range, name, ownership);
                self.fresh.entry(guid).or_default().push(change);
            }
        }
        self.removed.extend(known.values().map(|row| row.guid));
        Ok(())
    }

    /// The changes of a unit, parents first.
    fn changes(&self, unit: Guid) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut after: BTreeMap<Guid, Ownership> = BTreeMap::new();
        let mut next = VecDeque::from([unit]);
        while let Some(guid) = next.pop_front() {
            let Some(row) = self.table.get(guid) else {
                continue;
            };
            if self.removed.contains(&guid) {
                changes.push(removed(row));
                continue;
            }
            let above = after.get(&row.parent);
            let wanted = match (self.ownership.get(&guid), above) {
                (Some(wanted), _) => wanted,
                (None, Some(above)) if rules::follows(self.level, row.entity) => above,
                (None, _) => &row.ownership,
            }
            .clone();
            let name = self.names.get(&guid);
            if wanted != row.ownership || name.is_some() {
                let mut change = rules::change_of(row, wanted.clone());
                if let (Some(facts), Some(name)) = (&mut change.extent, name) {
                    facts.name.clone_from(name);
                }
                changes.push(change);
            }
            after.insert(guid, wanted);
            changes.extend(self.fresh.get(&guid).into_iter().flatten().cloned());
            let below = self.table.children(guid).filter(|row| row.is_valid());
            next.extend(below.map(|row| row.guid));
        }
        changes
    }
}

fn carve(device: Guid, guid: Guid, range: Extent, name: String, ownership: Ownership) -> Change {
    Change {
        row: guid,
        expected: Epoch(0),
        ownership,
        extent: Some(ExtentFacts {
            device,
            range,
            name,
            present: true,
        }),
    }
}
