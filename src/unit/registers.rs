//! A unit's ownership registers: who owns each of its rows, since which change; and the judgement
//! of a transaction on them. Pure: what is judged good is installed by the caller once it is durable.

use std::collections::BTreeMap;

use super::inventory::Inventory;
use crate::crt::rules;
use crate::wire::message::{
    CompareAndSet, MAX_PAGE_BYTES, MAX_REGISTERS, OwnershipRegister, RegistersReply, page_len,
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
        Self {
            rows: stored.registers.into_iter().map(|r| (r.row, r)).collect(),
            term: stored.term,
        }
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
        })
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

    /// Judges a transaction: all of its changes or none.
    pub(super) fn judge(&self, request: &CompareAndSet, inventory: &Inventory) -> Verdict {
        if let Some(change) = request.changes.iter().find(|c| !inventory.has_row(c.row)) {
            return Verdict::Refused(Status::NoRow, self.get(change.row));
        }
        if let Some(done) = self.already(request) {
            return Verdict::Already(done);
        }
        if request.term < self.term {
            let newest = self.rows.values().max_by_key(|r| r.owned.term);
            let register = newest
                .cloned()
                .unwrap_or_else(|| self.get(request.changes[0].row));
            return Verdict::Refused(Status::OlderTerm, register);
        }
        for change in &request.changes {
            let (_, epoch) = self.owners(change.row);
            if epoch != change.expected {
                return Verdict::Refused(Status::Conflict, self.get(change.row));
            }
        }
        let changed: BTreeMap<Guid, OwnershipRegister> = request
            .changes
            .iter()
            .map(|c| {
                let owned = OwnershipStamp {
                    epoch: Epoch(c.expected.0.saturating_add(1)),
                    term: request.term,
                    writer: request.writer,
                };
                let register = OwnershipRegister {
                    row: c.row,
                    ownership: c.ownership.clone(),
                    owned,
                };
                (c.row, register)
            })
            .collect();
        if let Some(row) = self.broken_hierarchy(&changed, inventory) {
            return Verdict::Refused(Status::Hierarchy, self.get(row));
        }
        let new_rows = changed.keys().filter(|r| !self.rows.contains_key(r));
        if self.rows.len() + new_rows.count() > MAX_UNIT_REGISTERS {
            return Verdict::Refused(Status::NoSpace, self.get(request.changes[0].row));
        }
        Verdict::Change(changed.into_values().collect())
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
            if let Some(parent) = inventory.parent(*row)
                && !rules::permits(ownership(parent), &register.ownership)
            {
                return Some(parent);
            }
            let child = inventory
                .children(*row)
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
        let parent = inventory.parent(row)?;
        let mut register = self.rows.get(&row)?.clone();
        if rules::permits(self.owners(parent).0, &register.ownership) {
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
