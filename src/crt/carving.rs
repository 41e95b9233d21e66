//! The rules of carving on a whole table: which extents a device can have, and when. The unit's
//! registers hold to the same ones; here an administrator learns beforehand what is wrong.

use std::collections::BTreeSet;

use super::Table;
use super::rules::{Held, Misfit, Named, RuleError, misfit};
use crate::wire::message::{Change, ExtentFacts, MAX_DEVICE_EXTENTS};
use crate::wire::{EntityType, Extent, Guid, Ownership, Row, RowState};

/// What is wrong with the extents of a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CarveError {
    /// The range is not inside the device.
    #[error("{device} has {size_bytes} bytes; {range} is not inside it")]
    Outside {
        /// The device.
        device: Named,
        /// Its size.
        size_bytes: u64,
        /// What was asked for.
        range: Extent,
    },
    /// The range does not begin and end at the device's blocks.
    #[error("{device} has blocks of {block_size} bytes; {range} does not begin and end at one")]
    Misaligned {
        /// The device.
        device: Named,
        /// Its logical block size.
        block_size: u32,
        /// What was asked for.
        range: Extent,
    },
    /// The range reaches into an extent.
    #[error("{range} of {device} overlaps {other} at {taken}")]
    Overlap {
        /// The device.
        device: Named,
        /// What was asked for.
        range: Extent,
        /// The extent in the way.
        other: Named,
        /// Its range.
        taken: Extent,
    },
    /// A device has its limit of extents.
    #[error("{device} would have {count} extents; a device has at most {MAX_DEVICE_EXTENTS}")]
    TooMany {
        /// The device.
        device: Named,
        /// How many it would have.
        count: usize,
    },
    /// Somebody owns the extent to be removed.
    #[error("{extent} is {held}; release it first")]
    Owned {
        /// The extent.
        extent: Named,
        /// How it is owned.
        held: Held,
    },
    /// Somebody owns the device as a whole.
    #[error("{device} is {held} as a whole; release it, carve it, and allocate it again")]
    Whole {
        /// The device.
        device: Named,
        /// How it is owned.
        held: Held,
    },
    /// Somebody would own the device as a whole.
    #[error(
        "{device} is {held}, who would own it as a whole without its last extent; release it first"
    )]
    Last {
        /// The device.
        device: Named,
        /// How it is owned.
        held: Held,
    },
    /// The change of an extent says something else of it than the table does.
    #[error("{row} is another extent than the change says; look again and repeat")]
    Other {
        /// The row.
        row: Named,
    },
}

impl CarveError {
    /// The row in the way.
    pub const fn conflicting(&self) -> Guid {
        match self {
            Self::Overlap { other: row, .. }
            | Self::Owned { extent: row, .. }
            | Self::Other { row }
            | Self::Outside { device: row, .. }
            | Self::Misaligned { device: row, .. }
            | Self::TooMany { device: row, .. }
            | Self::Whole { device: row, .. }
            | Self::Last { device: row, .. } => row.guid,
        }
    }
}

impl Table {
    /// The extents of a device that are there, by offset.
    pub fn extents(&self, device: Guid) -> Vec<&Row> {
        let mut extents: Vec<&Row> = self
            .children(device)
            .filter(|row| row.entity == EntityType::Extent && row.is_valid())
            .collect();
        extents.sort_by_key(|row| (row.extent, row.guid));
        extents
    }

    /// Whether a device has extents: then hosts use those, and not the device.
    pub fn is_carved(&self, device: Guid) -> bool {
        self.children(device)
            .any(|row| row.entity == EntityType::Extent && row.is_valid())
    }
}

/// The row that a change of an extent leads to.
fn row_after(change: &Change, facts: &ExtentFacts) -> Row {
    Row {
        state: if facts.present {
            RowState::Valid
        } else {
            RowState::Invalid
        },
        parent: facts.device,
        extent: Some(facts.range),
        name: facts.name.clone(),
        ownership: change.ownership.clone(),
        ..Row::new(change.row, EntityType::Extent)
    }
}

/// The table with the extents that these changes make and remove; `None` where they do neither.
/// The ownership of other rows is as it was.
pub(super) fn carved(table: &Table, changes: &[Change]) -> Result<Option<Table>, RuleError> {
    let mut after: Option<Table> = None;
    let mut devices = BTreeSet::new();
    for change in changes {
        let Some(facts) = &change.extent else {
            continue;
        };
        let known = table.get(change.row);
        check_known(table, change, facts, known)?;
        let was_there = known.is_some_and(Row::is_valid);
        if was_there != facts.present {
            let row = row_after(change, facts);
            after.get_or_insert_with(|| table.clone()).insert(row);
            devices.insert(facts.device);
        }
    }
    if let Some(after) = &after {
        for device in devices {
            check_device(table, after, device)?;
        }
    }
    Ok(after)
}

/// What is wrong with the change of one extent, whatever the others.
fn check_known(
    table: &Table,
    change: &Change,
    facts: &ExtentFacts,
    known: Option<&Row>,
) -> Result<(), RuleError> {
    let device = table
        .get(facts.device)
        .filter(|row| row.entity == EntityType::Device)
        .ok_or(RuleError::NoRow { row: facts.device })?;
    if !table.is_present(facts.device) {
        let row = Named::of(device);
        return Err(RuleError::Gone { row });
    }
    let Some(row) = known else {
        if !facts.present {
            return Err(RuleError::NoRow { row: change.row });
        }
        return check_range(device, facts.range);
    };
    let named = || Named::of(row);
    let same = row.entity == EntityType::Extent
        && row.parent == facts.device
        && (!row.is_valid() || row.extent == Some(facts.range));
    if !same {
        return Err(CarveError::Other { row: named() }.into());
    }
    match (row.is_valid(), facts.present) {
        (false, true) => check_range(device, facts.range),
        (false, false) => Err(RuleError::Gone { row: named() }),
        (true, true) => Ok(()),
        (true, false) if row.ownership == Ownership::Unallocated => Ok(()),
        (true, false) => Err(CarveError::Owned {
            extent: named(),
            held: Held::of(table, &row.ownership),
        }
        .into()),
    }
}

fn check_range(device: &Row, range: Extent) -> Result<(), RuleError> {
    match misfit(range, device.size_bytes, device.block_size) {
        None => Ok(()),
        Some(Misfit::Outside) => Err(CarveError::Outside {
            device: Named::of(device),
            size_bytes: device.size_bytes,
            range,
        }
        .into()),
        Some(Misfit::Misaligned) => Err(CarveError::Misaligned {
            device: Named::of(device),
            block_size: device.block_size,
            range,
        }
        .into()),
    }
}

/// What is wrong with the extents of a device together.
fn check_device(before: &Table, after: &Table, guid: Guid) -> Result<(), RuleError> {
    let device = before.get(guid).ok_or(RuleError::NoRow { row: guid })?;
    let extents = after.extents(guid);
    let range_of = |row: &Row| row.extent.unwrap_or(Extent { offset: 0, len: 0 });
    for pair in extents.windows(2) {
        let (a, b) = (range_of(pair[0]), range_of(pair[1]));
        if a.overlaps(b) {
            // Named is the one that is there already, where one of them is.
            let is_known = before.get(pair[1].guid).is_some_and(Row::is_valid);
            let (other, taken, range) = if is_known {
                (pair[1], b, a)
            } else {
                (pair[0], a, b)
            };
            return Err(CarveError::Overlap {
                device: Named::of(device),
                range,
                other: Named::of(other),
                taken,
            }
            .into());
        }
    }
    if extents.len() > MAX_DEVICE_EXTENTS {
        return Err(CarveError::TooMany {
            device: Named::of(device),
            count: extents.len(),
        }
        .into());
    }
    let held = || Held::of(before, &device.ownership);
    let turns = before.is_carved(guid) == extents.is_empty();
    match device.ownership {
        Ownership::Unallocated => Ok(()),
        _ if !turns => Ok(()),
        _ if extents.is_empty() => Err(CarveError::Last {
            device: Named::of(device),
            held: held(),
        }
        .into()),
        _ => Err(CarveError::Whole {
            device: Named::of(device),
            held: held(),
        }
        .into()),
    }
}
