//! A unit's ownership registers in one cluster: who owns each of its rows, since which change; and the judgement
//! of a transaction on them. Pure: what is judged good is installed by the caller once it is durable.

use std::collections::{BTreeMap, BTreeSet};

use super::extents::Extents;
use super::partition::Listing;
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

/// The registers of a unit in one cluster.
#[derive(Debug, Default)]
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
    /// No change was ever made with a term above those of the registers and `term`.
    pub(super) fn new(stored: Vec<OwnershipRegister>, term: u64) -> Self {
        let terms = stored.iter().map(|register| register.owned.term);
        let term = terms.fold(term, u64::max);
        let mut registers = Self::default();
        registers.install(stored, term);
        registers
    }

    /// How many were ever written.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The rows that have one.
    pub(super) fn rows(&self) -> impl Iterator<Item = Guid> + '_ {
        self.rows.keys().copied()
    }

    /// All of them, by row.
    pub(super) fn registers(&self) -> impl Iterator<Item = &OwnershipRegister> {
        self.rows.values()
    }

    /// Whether the row has one.
    pub(super) fn is_known(&self, row: Guid) -> bool {
        self.rows.contains_key(&row)
    }

    /// Forgets those of these rows.
    pub(super) fn remove(&mut self, rows: &BTreeSet<Guid>) {
        for row in rows {
            if let Some(register) = self.rows.remove(row) {
                self.extents.forget(&register);
            }
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
    fn parent(&self, row: Guid, listing: &Listing<'_>) -> Option<Guid> {
        listing.parent(row).or_else(|| {
            let device = self.extent(row)?.device;
            listing.has_row(device).then_some(device)
        })
    }

    /// The rows one level down.
    pub(super) fn children(&self, row: Guid, listing: &Listing<'_>) -> Vec<Guid> {
        let mut children = listing.children(row);
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
        listing: &Listing<'_>,
        promised: u64,
    ) -> Verdict {
        let unknown = |c: &&Change| c.extent.is_none() && !self.has_row(c.row, listing);
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
        if let Err((status, row)) = self.judge_extents(&request.changes, listing) {
            return Verdict::Refused(status, self.get(row));
        }
        let changed: BTreeMap<Guid, OwnershipRegister> = request
            .changes
            .iter()
            .map(|c| {
                let mut epoch = Epoch(c.expected.0.saturating_add(1));
                if planted::is(Bug::StampByWallClock) {
                    epoch = Epoch(date_s(listing));
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
        if let Some(row) = self.broken_hierarchy(&changed, listing)
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
    fn has_row(&self, row: Guid, listing: &Listing<'_>) -> bool {
        listing.has_row(row) || self.is_extent(row)
    }

    /// What is wrong with the extents of a transaction, and the row in the way.
    fn judge_extents(
        &self,
        changes: &[Change],
        listing: &Listing<'_>,
    ) -> Result<(), (Status, Guid)> {
        for change in changes {
            let known = self.rows.get(&change.row);
            let sound = match (known.and_then(|r| r.extent.as_ref()), &change.extent) {
                (None, None) => true,
                // The change of an extent says what it is.
                (Some(_), None) => false,
                // Another row's GUID, or nothing to remove.
                (None, Some(facts)) => {
                    known.is_none() && !listing.is_taken(change.row) && facts.present
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
            |device| listing.device_info(device),
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
        listing: &Listing<'_>,
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
                None => self.parent(*row, listing),
            };
            if let Some(parent) = parent
                && !rules::permits(ownership(parent), &register.ownership)
            {
                return Some(parent);
            }
            let child = self
                .children(*row, listing)
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
    pub(super) fn reset(&self, row: Guid, listing: &Listing<'_>) -> Option<OwnershipRegister> {
        let parent = self.parent(row, listing)?;
        let mut register = self.rows.get(&row)?.clone();
        let stays = rules::permits(self.owners(parent).0, &register.ownership);
        if stays || planted::is(Bug::NoReset) {
            return None;
        }
        register.ownership = Ownership::Unallocated;
        register.owned = OwnershipStamp {
            epoch: Epoch(register.owned.epoch.0.saturating_add(1)),
            term: self.term,
            writer: listing.unit(),
        };
        Some(register)
    }
}

/// What a planted bug takes for the date: another one after each start.
fn date_s(listing: &Listing<'_>) -> u64 {
    let incarnation = listing.stamp().incarnation.0;
    1 + (incarnation.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40)
}
