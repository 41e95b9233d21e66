//! A unit's ownership registers: who owns each of its rows, since which change; and the judgement
//! of a transaction on them. Pure: what is judged good is installed by the caller once it is durable.

use std::collections::BTreeMap;

use super::extents::Extents;
use super::inventory::Inventory;
use crate::crt::rules;
use crate::lease::is_far_term;
use crate::planted::{self, Bug};
use crate::wire::message::{
    Change, CompareAndSet, ExtentFacts, MAX_PAGE_BYTES, MAX_REGISTERS, OwnershipRegister,
    RegistersReply, page_len,
};
use crate::wire::{Epoch, Guid, Ownership, OwnershipStamp, Status};

/// The most registers of a unit, those of devices that are gone included: they keep the epochs
/// from which a device that returns goes on.
pub const MAX_UNIT_REGISTERS: usize = 65_536;

/// What a unit remembers of its registers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredRegisters {
    /// Every register ever written.
    pub registers: Vec<OwnershipRegister>,
    /// The highest term seen.
    pub term: u64,
}

/// The registers of a unit.
#[derive(Debug)]
pub(super) struct Registers {
    rows: BTreeMap<Guid, OwnershipRegister>,
    extents: Extents,
    term: u64,
}

/// What a transaction comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was made already: these are its registers.
    Already(Vec<OwnershipRegister>),
    /// It may be made: these registers are to be written.
    Change(Vec<OwnershipRegister>),
    /// It may not, because of this register.
    Refused(Status, OwnershipRegister),
}

impl Registers {
    pub(super) fn new(stored: StoredRegisters) -> Self {
        let mut registers = Self {
            rows: BTreeMap::new(),
            extents: Extents::default(),
            term: 0,
        };
        registers.install(stored.registers, stored.term);
        registers
    }

    /// The highest term seen.
    pub(super) const fn term(&self) -> u64 {
        self.term
    }

    /// A row's register; one never written is unallocated with epoch 0.
    pub(super) fn get(&self, row: Guid) -> OwnershipRegister {
        self.rows.get(&row).cloned().unwrap_or(OwnershipRegister {
            row,
            ownership: Ownership::Unallocated,
            owned: OwnershipStamp::default(),
            extent: None,
        })
    }

    /// Whether the row is an extent, or was one.
    pub(super) fn is_extent(&self, row: Guid) -> bool {
        self.rows.get(&row).is_some_and(|r| r.extent.is_some())
    }

    /// The facts of an extent that is there.
    pub(super) fn extent(&self, row: Guid) -> Option<&ExtentFacts> {
        let facts = self.rows.get(&row)?.extent.as_ref();
        facts.filter(|facts| facts.present)
    }

    /// Whether the device has extents: then it takes I/O by them only.
    pub(super) fn is_carved(&self, device: Guid) -> bool {
        self.extents.is_carved(device)
    }

    /// The row one level up, of what is in the unit.
    fn parent(&self, row: Guid, inventory: &Inventory) -> Option<Guid> {
        inventory.parent(row).or_else(|| {
            let device = self.extent(row)?.device;
            inventory.has_row(device).then_some(device)
        })
    }

    /// The rows one level down.
    pub(super) fn children(&self, row: Guid, inventory: &Inventory) -> Vec<Guid> {
        let mut children = inventory.children(row);
        children.extend(self.extents.of(row).map(|(_, extent)| extent));
        children
    }

    /// A row's owners and epoch, without copying them.
    pub(super) fn owners(&self, row: Guid) -> (&Ownership, Epoch) {
        const NOBODY: &Ownership = &Ownership::Unallocated;
        self.rows
            .get(&row)
            .map_or((NOBODY, Epoch(0)), |r| (&r.ownership, r.owned.epoch))
    }

    /// Installs registers that are durable now.
    pub(super) fn install(&mut self, registers: Vec<OwnershipRegister>, term: u64) {
        self.term = self.term.max(term);
        for register in registers {
            self.extents
                .replace(self.rows.get(&register.row), &register);
            self.rows.insert(register.row, register);
        }
    }

    /// A page of the registers of rows after `after`.
    pub(super) fn page(&self, after: Guid) -> RegistersReply {
        use std::ops::Bound::{Excluded, Unbounded};
        let rest = || {
            self.rows
                .range((Excluded(after), Unbounded))
                .map(|(_, register)| register)
        };
        let count = page_len(rest().take(MAX_REGISTERS), MAX_PAGE_BYTES);
        RegistersReply {
            more: rest().nth(count).is_some(),
            registers: rest().take(count).cloned().collect(),
        }
    }

    /// Judges a transaction: all of its changes or none. `promised` is the highest term that the
    /// unit has promised as a voter.
    pub(super) fn judge(
        &self,
        request: &CompareAndSet,
        inventory: &Inventory,
        promised: u64,
    ) -> Verdict {
        let unknown = |c: &&Change| c.extent.is_none() && !self.has_row(c.row, inventory);
        if let Some(change) = request.changes.iter().find(unknown) {
            return Verdict::Refused(Status::NoRow, self.get(change.row));
        }
        if let Some(done) = self.already(request) {
            return Verdict::Already(done);
        }
        let term = self.term.max(promised);
        if is_far_term(request.term, term) {
            return Verdict::Refused(Status::FarTerm, self.get(request.changes[0].row));
        }
        if request.term < term && !planted::is(Bug::OlderTermTaken) {
            let newest = self.rows.values().max_by_key(|r| r.owned.term);
            let register = newest
                .cloned()
                .unwrap_or_else(|| self.get(request.changes[0].row));
            return Verdict::Refused(Status::OlderTerm, register);
        }
        for change in &request.changes {
            let (_, epoch) = self.owners(change.row);
            if epoch != change.expected && !planted::is(Bug::ExpectedNotCompared) {
                return Verdict::Refused(Status::Conflict, self.get(change.row));
            }
        }
        if let Err((status, row)) = self.judge_extents(&request.changes, inventory) {
            return Verdict::Refused(status, self.get(row));
        }
        let changed: BTreeMap<Guid, OwnershipRegister> = request
            .changes
            .iter()
            .map(|c| {
                let mut epoch = Epoch(c.expected.0.saturating_add(1));
                if planted::is(Bug::StampByWallClock) {
                    epoch = Epoch(date_s(inventory));
                }
                let owned = OwnershipStamp {
                    epoch,
                    term: request.term,
                    writer: request.writer,
                };
                let register = OwnershipRegister {
                    row: c.row,
                    ownership: c.ownership.clone(),
                    owned,
                    extent: c.extent.clone(),
                };
                (c.row, register)
            })
            .collect();
        if let Some(row) = self.broken_hierarchy(&changed, inventory)
            && !planted::is(Bug::HierarchyNotChecked)
        {
            return Verdict::Refused(Status::Hierarchy, self.get(row));
        }
        let new_rows = changed.keys().filter(|r| !self.rows.contains_key(r));
        if self.rows.len() + new_rows.count() > MAX_UNIT_REGISTERS {
            return Verdict::Refused(Status::NoSpace, self.get(request.changes[0].row));
        }
        Verdict::Change(changed.into_values().collect())
    }

    /// Whether the row is in the unit, or is an extent of it.
    fn has_row(&self, row: Guid, inventory: &Inventory) -> bool {
        inventory.has_row(row) || self.is_extent(row)
    }

    /// What is wrong with the extents of a transaction, and the row in the way.
    fn judge_extents(
        &self,
        changes: &[Change],
        inventory: &Inventory,
    ) -> Result<(), (Status, Guid)> {
        for change in changes {
            let known = self.rows.get(&change.row);
            let sound = match (known.and_then(|r| r.extent.as_ref()), &change.extent) {
                (None, None) => true,
                // The change of an extent says what it is.
                (Some(_), None) => false,
                // Another row's GUID, or nothing to remove.
                (None, Some(facts)) => {
                    known.is_none() && !inventory.has_row(change.row) && facts.present
                }
                (Some(old), Some(new)) => {
                    let stays = old.present && new.present;
                    old.device == new.device
                        && (old.present || new.present)
                        && (!stays || old.range == new.range)
                }
            };
            if !sound {
                return Err((Status::BadRequest, change.row));
            }
        }
        self.extents.judge(
            changes,
            |device| inventory.device_info(device),
            |row| *self.owners(row).0 != Ownership::Unallocated,
        )
    }

    /// The registers of a transaction that is in place as a whole, by this very writer.
    fn already(&self, request: &CompareAndSet) -> Option<Vec<OwnershipRegister>> {
        request
            .changes
            .iter()
            .map(|change| {
                self.rows
                    .get(&change.row)
                    .filter(|r| {
                        r.owned.epoch.0.checked_sub(1) == Some(change.expected.0)
                            && r.owned.writer == request.writer
                            && r.ownership == change.ownership
                            && r.extent == change.extent
                    })
                    .cloned()
            })
            .collect()
    }

    /// A row that would be in the way of the hierarchy (I5) after `changed`: a parent that does
    /// not permit its child, named by the one of both that is not changed, or by the parent.
    fn broken_hierarchy(
        &self,
        changed: &BTreeMap<Guid, OwnershipRegister>,
        inventory: &Inventory,
    ) -> Option<Guid> {
        let ownership = |row: Guid| {
            changed
                .get(&row)
                .map_or_else(|| self.owners(row).0, |r| &r.ownership)
        };
        for (row, register) in changed {
            let parent = match &register.extent {
                // The parent of a new one is known from here only.
                Some(facts) => facts.present.then_some(facts.device),
                None => self.parent(*row, inventory),
            };
            if let Some(parent) = parent
                && !rules::permits(ownership(parent), &register.ownership)
            {
                return Some(parent);
            }
            let child = self
                .children(*row, inventory)
                .into_iter()
                .find(|child| !rules::permits(&register.ownership, ownership(*child)));
            if let Some(child) = child {
                return Some(child);
            }
        }
        None
    }

    /// What must be written for a row that has come (back) into the unit under a parent that does
    /// not permit its last owners: it becomes unallocated.
    pub(super) fn reset(&self, row: Guid, inventory: &Inventory) -> Option<OwnershipRegister> {
        let parent = self.parent(row, inventory)?;
        let mut register = self.rows.get(&row)?.clone();
        let stays = rules::permits(self.owners(parent).0, &register.ownership);
        if stays || planted::is(Bug::NoReset) {
            return None;
        }
        register.ownership = Ownership::Unallocated;
        register.owned = OwnershipStamp {
            epoch: Epoch(register.owned.epoch.0.saturating_add(1)),
            term: self.term,
            writer: inventory.facts().guid,
        };
        Some(register)
    }
}

/// What a planted bug takes for the date: another one after each start.
fn date_s(inventory: &Inventory) -> u64 {
    let incarnation = inventory.stamp().incarnation.0;
    1 + (incarnation.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40)
}
