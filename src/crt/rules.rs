//! The ownership hierarchy (I5) and the granularity of allocation: pure functions.

use std::collections::{BTreeMap, BTreeSet};

use super::Table;
use super::carving::{self, CarveError};
use super::table::name_of;
use crate::wire::message::{Change, ExtentFacts, MAX_CHANGES};
use crate::wire::row::MAX_OWNERS;
use crate::wire::{EntityType, Epoch, Extent, Granularity, Guid, Ownership, Row};

/// Whether a child may be owned so under a parent that is owned so: the child's owners are a
/// subset of the parent's, and a dedicated parent's children are dedicated to that host or
/// unallocated.
pub fn permits(parent: &Ownership, child: &Ownership) -> bool {
    match (parent, child) {
        (_, Ownership::Unallocated) => true,
        (Ownership::Unallocated, _) => false,
        (Ownership::Dedicated(host), child) => *child == Ownership::Dedicated(*host),
        (Ownership::Shared(_), child) => child.owners().iter().all(|host| parent.includes(*host)),
    }
}

/// What the register of an extent says of it, where the row is an extent.
pub fn extent_facts(row: &Row) -> Option<ExtentFacts> {
    let range = row.extent.filter(|_| row.entity == EntityType::Extent)?;
    Some(ExtentFacts {
        device: row.parent,
        range,
        name: row.name.clone(),
        present: row.is_valid(),
    })
}

/// The change that gives a row another ownership and leaves all else as it is.
pub fn change_of(row: &Row, ownership: Ownership) -> Change {
    Change {
        row: row.guid,
        expected: row.owned.epoch,
        ownership,
        extent: extent_facts(row),
    }
}

/// Why a range cannot be an extent of a device, whatever its other extents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misfit {
    /// It ends behind the device.
    Outside,
    /// It does not begin and end at the device's blocks.
    Misaligned,
}

/// What keeps `range` from being an extent of a device of this size and logical block size.
pub fn misfit(range: Extent, size_bytes: u64, block_size: u32) -> Option<Misfit> {
    let block = u64::from(block_size.max(1));
    match range.offset.checked_add(range.len) {
        Some(end) if end <= size_bytes => {}
        _ => return Some(Misfit::Outside),
    }
    let aligned = range.offset.is_multiple_of(block) && range.len.is_multiple_of(block);
    (!aligned).then_some(Misfit::Misaligned)
}

/// Why a change of ownership is refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// No change at all, or too many at once.
    #[error("{count} changes at once; make 1 to {MAX_CHANGES}")]
    Count {
        /// How many were asked for.
        count: usize,
    },
    /// The row is not in the table.
    #[error("no row {row} in the table; `rma tree` lists them")]
    NoRow {
        /// The row.
        row: Guid,
    },
    /// The row is changed twice at once.
    #[error("{row} is changed twice at once; name it once")]
    Twice {
        /// The row.
        row: Named,
    },
    /// A host is not owned by anyone.
    #[error("{row} cannot be allocated; allocate I/O units, controllers, devices or extents")]
    NotAllocatable {
        /// The row.
        row: Named,
    },
    /// The row, or one above it, is invalid.
    #[error("{row} is no longer there; `rma tree` shows what is")]
    Gone {
        /// The row.
        row: Named,
    },
    /// A new owner is not a valid host of this table.
    #[error(
        "{owner} is not a host of this cluster, so {row} cannot be its own; `rma hosts` lists the hosts"
    )]
    NoHost {
        /// The row.
        row: Named,
        /// The owner.
        owner: Guid,
    },
    /// A shared ownership that is empty, not sorted, or has too many owners.
    #[error("{row} cannot be shared by {count} hosts; name 1 to {MAX_OWNERS}, each once")]
    Owners {
        /// The row.
        row: Named,
        /// Number of owners asked for.
        count: usize,
    },
    /// The row has changed since.
    #[error(
        "{row} was reallocated meanwhile (epoch {actual}, not {expected}); look again and repeat"
    )]
    StaleEpoch {
        /// The row.
        row: Named,
        /// The epoch that the change expects.
        expected: Epoch,
        /// The epoch of the row.
        actual: Epoch,
    },
    /// The conflicting row is the parent of the row to change.
    #[error(
        "{} cannot be {}: its {} is {}; reallocate that first, or both together",
        .0.child, .0.held, .0.parent, .0.above
    )]
    Parent(Box<Violation>),
    /// The conflicting row is a child of the row to change.
    #[error(
        "{} cannot be {}: its {} is {}; release that first, or both together",
        .0.parent, .0.above, .0.child, .0.held
    )]
    Child(Box<Violation>),
    /// The cluster allocates coarser than the row to change: it must be owned as its parent is.
    #[error(
        "{} cannot be {}: this cluster allocates by {granularity}, and its {} is {}; allocate \
         that, or `rma granularity set`",
        .clash.child, .clash.held, .clash.parent, .clash.above
    )]
    Granularity {
        /// The cluster's granularity.
        granularity: Granularity,
        /// The row and its parent, as they would be.
        clash: Box<Violation>,
    },
    /// A device cannot have such extents.
    #[error(transparent)]
    Carve(Box<CarveError>),
}

impl From<CarveError> for RuleError {
    fn from(error: CarveError) -> Self {
        Self::Carve(Box::new(error))
    }
}

impl RuleError {
    /// The row in the way: where the hierarchy is the reason the parent or child, otherwise the
    /// row to change.
    pub fn conflicting(&self) -> Option<Guid> {
        match self {
            Self::Count { .. } => None,
            Self::NoRow { row } => Some(*row),
            Self::Twice { row }
            | Self::NotAllocatable { row }
            | Self::Gone { row }
            | Self::NoHost { row, .. }
            | Self::Owners { row, .. }
            | Self::StaleEpoch { row, .. } => Some(row.guid),
            Self::Parent(clash) | Self::Granularity { clash, .. } => Some(clash.parent.guid),
            Self::Child(clash) => Some(clash.child.guid),
            Self::Carve(error) => Some(error.conflicting()),
        }
    }
}

/// A row as messages name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// What it is.
    pub entity: EntityType,
    /// Its GUID.
    pub guid: Guid,
    /// Its name, or its GUID where it has none.
    pub name: String,
}

impl Named {
    /// What a change of a row that is not there yet calls it.
    fn new(change: &Change) -> Self {
        let name = change.extent.as_ref().map(|facts| facts.name.clone());
        Self {
            entity: EntityType::Extent,
            guid: change.row,
            name: name
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| change.row.to_string()),
        }
    }

    /// The row's name.
    pub fn of(row: &Row) -> Self {
        Self {
            entity: row.entity,
            guid: row.guid,
            name: name_of(row),
        }
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.entity, self.name.escape_debug())
    }
}

/// An ownership as messages tell it: with the hosts' names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The ownership.
    pub ownership: Ownership,
    /// The owners' names, in the ownership's order.
    pub names: Vec<String>,
}

impl Held {
    /// The ownership with the names that `table` has for the hosts.
    pub fn of(table: &Table, ownership: &Ownership) -> Self {
        let name = |host: &Guid| table.get(*host).map_or_else(|| host.to_string(), name_of);
        Self {
            ownership: ownership.clone(),
            names: ownership.owners().iter().map(name).collect(),
        }
    }
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self
            .names
            .iter()
            .map(|n| n.escape_debug().to_string())
            .collect();
        match &self.ownership {
            Ownership::Unallocated => f.write_str("unallocated"),
            Ownership::Dedicated(_) => write!(f, "dedicated to {}", names.join(", ")),
            Ownership::Shared(_) => write!(f, "shared by {}", names.join(", ")),
        }
    }
}

/// Checks a change of ownership against the whole table: that every row is there, has the expected
/// epoch and may be allocated, that the owners are hosts of the cluster, that extents fit their
/// device, that the result obeys the hierarchy (I5) and that it obeys the cluster's granularity.
/// Tombstones are in nobody's way.
pub fn check_change(table: &Table, changes: &[Change]) -> Result<(), RuleError> {
    check_change_at(table, table.settings().granularity, changes)
}

/// As [`check_change`], in a cluster that allocates by `granularity`.
pub fn check_change_at(
    table: &Table,
    granularity: Granularity,
    changes: &[Change],
) -> Result<(), RuleError> {
    if !(1..=MAX_CHANGES).contains(&changes.len()) {
        return Err(RuleError::Count {
            count: changes.len(),
        });
    }
    let mut after = BTreeMap::new();
    for change in changes {
        let known = table.get(change.row);
        if let Some(row) = known
            && row.owned.epoch != change.expected
        {
            return Err(RuleError::StaleEpoch {
                row: Named::of(row),
                expected: change.expected,
                actual: row.owned.epoch,
            });
        }
        if after.insert(change.row, &change.ownership).is_some() {
            return Err(RuleError::Twice {
                row: known.map_or_else(|| Named::new(change), Named::of),
            });
        }
    }
    let carved = carving::carved(table, changes)?;
    let table = carved.as_ref().unwrap_or(table);
    let result = Outcome {
        table,
        granularity,
        after,
    };
    let removes = |change: &Change| change.extent.as_ref().is_some_and(|e| !e.present);
    for change in changes.iter().filter(|change| !removes(change)) {
        check_row(table, change)?;
    }
    changes
        .iter()
        .filter(|change| !removes(change))
        .try_for_each(|change| result.check(change.row))
}

/// What is wrong with one change, whatever the rows around it and its epoch.
fn check_row(table: &Table, change: &Change) -> Result<(), RuleError> {
    let row = table
        .get(change.row)
        .ok_or(RuleError::NoRow { row: change.row })?;
    let named = || Named::of(row);
    if row.entity == EntityType::Host {
        return Err(RuleError::NotAllocatable { row: named() });
    }
    if !table.is_present(row.guid) {
        return Err(RuleError::Gone { row: named() });
    }
    if (row.entity == EntityType::Extent) != change.extent.is_some() {
        return Err(CarveError::Other { row: named() }.into());
    }
    let owners = change.ownership.owners();
    let well_formed = match &change.ownership {
        Ownership::Shared(hosts) => {
            (1..=MAX_OWNERS).contains(&hosts.len()) && hosts.windows(2).all(|w| w[0] < w[1])
        }
        _ => true,
    };
    if !well_formed {
        return Err(RuleError::Owners {
            row: named(),
            count: owners.len(),
        });
    }
    let is_host = |host: &Guid| {
        table
            .get(*host)
            .is_some_and(|row| row.entity == EntityType::Host && row.is_valid())
    };
    match owners.iter().find(|host| !is_host(host)) {
        Some(owner) => Err(RuleError::NoHost {
            row: named(),
            owner: *owner,
        }),
        None => Ok(()),
    }
}

/// The table as it would be.
struct Outcome<'a> {
    table: &'a Table,
    granularity: Granularity,
    after: BTreeMap<Guid, &'a Ownership>,
}

impl<'a> Outcome<'a> {
    fn ownership(&self, row: &'a Row) -> &'a Ownership {
        self.after.get(&row.guid).copied().unwrap_or(&row.ownership)
    }

    /// Checks a changed row against its parent and its children.
    fn check(&self, guid: Guid) -> Result<(), RuleError> {
        let Some(row) = self.table.get(guid) else {
            return Err(RuleError::NoRow { row: guid });
        };
        if let Some(parent) = self.table.parent(guid) {
            self.check_pair(parent, row, true)?;
        }
        self.table
            .children(guid)
            .filter(|child| child.is_valid())
            .try_for_each(|child| self.check_pair(row, child, false))
    }

    fn check_pair(&self, parent: &'a Row, child: &'a Row, below: bool) -> Result<(), RuleError> {
        let (above, held) = (self.ownership(parent), self.ownership(child));
        let clash = || {
            Box::new(Violation {
                parent: Named::of(parent),
                above: Held::of(self.table, above),
                child: Named::of(child),
                held: Held::of(self.table, held),
            })
        };
        let granularity = self.granularity;
        if follows(granularity, child.entity) && above != held {
            return Err(RuleError::Granularity {
                granularity,
                clash: clash(),
            });
        }
        match (permits(above, held), below) {
            (true, _) => Ok(()),
            (false, true) => Err(RuleError::Parent(clash())),
            (false, false) => Err(RuleError::Child(clash())),
        }
    }
}

/// Whether rows of this type are owned as their parents are.
pub const fn follows(granularity: Granularity, entity: EntityType) -> bool {
    match granularity {
        Granularity::Unit => matches!(
            entity,
            EntityType::Controller | EntityType::Device | EntityType::Extent
        ),
        Granularity::Controller => matches!(entity, EntityType::Device | EntityType::Extent),
        Granularity::Device => matches!(entity, EntityType::Extent),
        Granularity::Extent => false,
    }
}

/// The changes that give `rows` this ownership: with the epochs that the table has now, with the
/// rows below that follow by granularity, without rows that are owned so already. The result is
/// checked; an empty one means that all is so already.
pub fn plan(table: &Table, rows: &[Guid], ownership: &Ownership) -> Result<Vec<Change>, RuleError> {
    let mut wanted = BTreeSet::new();
    let granularity = table.settings().granularity;
    let mut next: Vec<Guid> = rows.to_vec();
    while let Some(guid) = next.pop() {
        if wanted.insert(guid) {
            let below = table.children(guid).filter(|row| row.is_valid());
            next.extend(
                below
                    .filter(|row| follows(granularity, row.entity))
                    .map(|row| row.guid),
            );
        }
    }
    let mut changes = Vec::new();
    for guid in wanted {
        let row = table.get(guid).ok_or(RuleError::NoRow { row: guid })?;
        let change = change_of(row, ownership.clone());
        check_row(table, &change)?;
        if row.ownership != *ownership {
            changes.push(change);
        }
    }
    if !changes.is_empty() {
        check_change(table, &changes)?;
    }
    Ok(changes)
}

/// A place where a table breaks the ownership hierarchy (I5).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{child} is {held}, but its {parent} is {above}")]
pub struct Violation {
    /// The row above.
    pub parent: Named,
    /// How it is owned.
    pub above: Held,
    /// The row below.
    pub child: Named,
    /// How that is owned.
    pub held: Held,
}

/// Every place where valid rows of the table break the hierarchy; there should be none.
pub fn violations(table: &Table) -> impl Iterator<Item = Violation> {
    table.rows().filter_map(|child| {
        let parent = table.get(child.parent)?;
        let whole = child.is_valid() && parent.is_valid();
        (whole && !permits(&parent.ownership, &child.ownership)).then(|| Violation {
            parent: Named::of(parent),
            above: Held::of(table, &parent.ownership),
            child: Named::of(child),
            held: Held::of(table, &child.ownership),
        })
    })
}

/// The rows whose parent is not in the table (hosts and units have none to miss).
pub fn orphans(table: &Table) -> impl Iterator<Item = &Row> {
    table.rows().filter(|row| {
        let top = matches!(row.entity, EntityType::Host | EntityType::Unit);
        !top && table.get(row.parent).is_none()
    })
}
