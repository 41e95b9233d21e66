//! Carving: what an administrator says of extents, and the changes of registers that it comes to.

use super::agent::Agent;
use super::plan::{error, present};
use super::request::{AdminError, Caller, ErrorKind};
use super::wish::Wish;
use crate::crt::Table;
use crate::crt::rules::{self, RuleError};
use crate::wire::message::{Change, ExtentFacts};
use crate::wire::row::MAX_NAME_BYTES;
use crate::wire::{EntityType, Epoch, Extent, Granularity, Guid, Ownership, Row, Time};

/// An extent to be made.
#[derive(Debug, Clone)]
pub(super) struct Carving {
    /// Its GUID, drawn for it.
    pub(super) guid: Guid,
    /// Its device, range and name.
    pub(super) facts: ExtentFacts,
}

impl Carving {
    /// The change that makes it, none where it is there already.
    pub(super) fn changes(&self, table: &Table) -> Result<Vec<Change>, AdminError> {
        if table.get(self.guid).is_some_and(Row::is_valid) {
            return Ok(Vec::new());
        }
        check_granularity(table.settings().granularity)?;
        let changes = vec![self.change()];
        rules::check_change(table, &changes)?;
        Ok(changes)
    }

    /// The change that makes it.
    pub(super) fn change(&self) -> Change {
        Change {
            row: self.guid,
            expected: Epoch(0),
            ownership: Ownership::Unallocated,
            extent: Some(self.facts.clone()),
        }
    }
}

/// Whether devices may be carved in a cluster that allocates so.
pub(super) fn check_granularity(granularity: Granularity) -> Result<(), AdminError> {
    if granularity == Granularity::Extent {
        return Ok(());
    }
    Err(error(
        ErrorKind::Granularity,
        format!(
            "this cluster allocates by {granularity}, and extents are finer; `rma granularity set \
             extent` first"
        ),
    ))
}

/// An extent's range, where there can be such a one at all.
pub(super) fn range_of(offset: u64, len: u64) -> Result<Extent, AdminError> {
    if len == 0 || offset.checked_add(len).is_none() {
        return Err(error(
            ErrorKind::BadRequest,
            format!("{offset}+{len} is no range; say where it begins and its size, more than 0"),
        ));
    }
    Ok(Extent { offset, len })
}

/// An extent's name, where it can be one.
pub(super) fn name_of(name: &str) -> Result<String, AdminError> {
    if name.len() > MAX_NAME_BYTES {
        return Err(error(
            ErrorKind::BadRequest,
            format!(
                "a name of {} bytes is too long; it has at most {MAX_NAME_BYTES}",
                name.len()
            ),
        ));
    }
    Ok(name.to_owned())
}

/// The change that removes an extent, none where it is gone already.
pub(super) fn removal(table: &Table, extent: Guid) -> Result<Vec<Change>, AdminError> {
    let row = table.get(extent).ok_or(RuleError::NoRow { row: extent })?;
    if !row.is_valid() {
        return Ok(Vec::new());
    }
    let changes = vec![removed(row)];
    rules::check_change(table, &changes)?;
    Ok(changes)
}

/// The change that removes an extent.
pub(super) fn removed(row: &Row) -> Change {
    let mut change = rules::change_of(row, Ownership::Unallocated);
    if let Some(facts) = &mut change.extent {
        facts.present = false;
    }
    change
}

impl Agent {
    /// Begins to make a range of a device an extent.
    pub(super) fn carve(
        &mut self,
        now: Time,
        token: u64,
        caller: &Caller,
        device: &str,
        (offset, size): (u64, u64),
        name: &str,
    ) -> Result<(), AdminError> {
        if !self.boot.is_steady() {
            return Err(self.not_ready());
        }
        let device = present(
            &self.table,
            device,
            &[EntityType::Device],
            "cannot be carved; name an I/O device (`rma devices`)",
        )?;
        let facts = ExtentFacts {
            device,
            range: range_of(offset, size)?,
            name: name_of(name)?,
            present: true,
        };
        let carving = Carving {
            guid: draw_guid(&mut self.rng, &self.table),
            facts,
        };
        // What is wrong already need not wait for the unit.
        carving.changes(&self.table)?;
        let unit = self.table.unit_of(device).unwrap_or(device);
        self.wish(now, token, caller, unit, Wish::Carve(carving))
    }

    /// Begins to remove an extent.
    pub(super) fn uncarve(
        &mut self,
        now: Time,
        token: u64,
        caller: &Caller,
        text: &str,
    ) -> Result<(), AdminError> {
        if !self.boot.is_steady() {
            return Err(self.not_ready());
        }
        let extent = present(
            &self.table,
            text,
            &[EntityType::Extent],
            "is no extent; `rma devices` lists them",
        )?;
        let unit = self.table.unit_of(extent).unwrap_or(extent);
        self.wish(now, token, caller, unit, Wish::Uncarve(extent))
    }
}

/// A GUID for something new.
pub(super) fn draw_guid(rng: &mut fastrand::Rng, table: &Table) -> Guid {
    loop {
        let guid = Guid(rng.u128(..));
        if !guid.is_nil() && table.get(guid).is_none() {
            return guid;
        }
    }
}
