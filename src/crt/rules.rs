//! The ownership hierarchy (I5) and the granularity of allocation: pure functions.

use std::collections::{BTreeMap, BTreeSet};

use super::Table;
use super::table::name_of;
use crate::wire::message::{Change, MAX_CHANGES};
use crate::wire::row::MAX_OWNERS;
use crate::wire::{EntityType, Epoch, Granularity, Guid, Ownership, Row};

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
    #[error("{row} cannot be allocated; allocate I/O units, controllers or devices")]
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
/// epoch and may be allocated, that the owners are hosts of the cluster, that the result obeys the
/// hierarchy (I5) and that it obeys the cluster's granularity. Tombstones are in nobody's way.
pub fn check_change(table: &Table, changes: &[Change]) -> Result<(), RuleError> {
    if !(1..=MAX_CHANGES).contains(&changes.len()) {
        return Err(RuleError::Count {
            count: changes.len(),
        });
    }
    let mut after = BTreeMap::new();
    for change in changes {
        let row = check_row(table, change)?;
        if after.insert(change.row, &change.ownership).is_some() {
            return Err(RuleError::Twice {
                row: Named::of(row),
            });
        }
    }
    let result = Outcome { table, after };
    changes
        .iter()
        .try_for_each(|change| result.check(change.row))
}

/// What is wrong with one change, whatever the rows around it.
fn check_row<'t>(table: &'t Table, change: &Change) -> Result<&'t Row, RuleError> {
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
    if row.owned.epoch != change.expected {
        return Err(RuleError::StaleEpoch {
            row: named(),
            expected: change.expected,
            actual: row.owned.epoch,
        });
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
        None => Ok(row),
    }
}

/// The table as it would be.
struct Outcome<'a> {
    table: &'a Table,
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
        let granularity = self.table.settings().granularity;
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
        Granularity::Unit => matches!(entity, EntityType::Controller | EntityType::Device),
        Granularity::Controller => matches!(entity, EntityType::Device),
        Granularity::Device => false,
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
        let change = Change {
            row: guid,
            expected: row.owned.epoch,
            ownership: ownership.clone(),
        };
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
