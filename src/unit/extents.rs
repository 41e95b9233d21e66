//! The extents of a unit's devices: where each is, and which changes of them may be made. Pure.
//!
//! What always holds of the extents that are there:
//! - none reaches into another of the same device, and each was inside its device, on its blocks,
//!   when it was carved;
//! - a device turns from whole to carved and back only while nobody owns it: whoever owns a
//!   device as a whole never finds himself without a part of it, nor the other way round;
//! - an extent that somebody owns is not removed.

use std::collections::{BTreeMap, BTreeSet};

use super::disk::DiskInfo;
use crate::crt::rules::{self, Misfit};
use crate::wire::message::{Change, ExtentFacts, MAX_DEVICE_EXTENTS, OwnershipRegister};
use crate::wire::{Extent, Guid, Status};

/// The extents that are there, by device and offset.
#[derive(Debug, Default)]
pub(super) struct Extents {
    devices: BTreeMap<Guid, BTreeMap<u64, (Extent, Guid)>>,
}

impl Extents {
    /// Takes in that a register has become another one.
    pub(super) fn replace(&mut self, old: Option<&OwnershipRegister>, new: &OwnershipRegister) {
        if let Some(old) = old {
            self.forget(old);
        }
        if let Some(facts) = present(new) {
            let extents = self.devices.entry(facts.device).or_default();
            extents.insert(facts.range.offset, (facts.range, new.row));
        }
    }

    /// Takes in that a register is gone.
    pub(super) fn forget(&mut self, old: &OwnershipRegister) {
        if let Some(facts) = present(old)
            && let Some(extents) = self.devices.get_mut(&facts.device)
        {
            extents.remove(&facts.range.offset);
            if extents.is_empty() {
                self.devices.remove(&facts.device);
            }
        }
    }

    /// Whether the device has extents.
    pub(super) fn is_carved(&self, device: Guid) -> bool {
        self.devices.contains_key(&device)
    }

    /// The extents of a device, by offset.
    pub(super) fn of(&self, device: Guid) -> impl Iterator<Item = (Extent, Guid)> + '_ {
        let extents = self.devices.get(&device).into_iter();
        extents.flat_map(|extents| extents.values().copied())
    }

    /// The extents of a device after these changes, in the order of their offsets.
    fn after(&self, device: Guid, changes: &[Change]) -> Vec<(Extent, Guid)> {
        let changed: BTreeSet<Guid> = changes.iter().map(|c| c.row).collect();
        let mut after: Vec<(Extent, Guid)> = self
            .of(device)
            .filter(|(_, row)| !changed.contains(row))
            .collect();
        for change in changes {
            if let Some(facts) = &change.extent
                && facts.device == device
                && facts.present
            {
                after.push((facts.range, change.row));
            }
        }
        after.sort_unstable();
        after
    }

    /// Whether the extents of every device would be in order after these changes. `info` has the
    /// facts of devices that are there, `is_owned` whether a row is owned before the changes. An
    /// error names the row in the way.
    pub(super) fn judge(
        &self,
        changes: &[Change],
        info: impl Fn(Guid) -> Option<DiskInfo>,
        is_owned: impl Fn(Guid) -> bool,
    ) -> Result<(), (Status, Guid)> {
        let mut devices = BTreeSet::new();
        for change in changes {
            let Some(facts) = &change.extent else {
                continue;
            };
            let info = info(facts.device).ok_or((Status::NoRow, facts.device))?;
            let was_there = self
                .devices
                .get(&facts.device)
                .and_then(|extents| extents.get(&facts.range.offset))
                .is_some_and(|(_, row)| *row == change.row);
            if facts.present && !was_there {
                let misfit = rules::misfit(facts.range, info.size_bytes, info.block_size);
                match misfit {
                    None => {}
                    Some(Misfit::Outside) => return Err((Status::OutOfRange, facts.device)),
                    Some(Misfit::Misaligned) => return Err((Status::Misaligned, facts.device)),
                }
            }
            if !facts.present && is_owned(change.row) {
                return Err((Status::Hierarchy, change.row));
            }
            if facts.present != was_there {
                devices.insert(facts.device);
            }
        }
        for device in devices {
            let after = self.after(device, changes);
            if let Some(pair) = after.windows(2).find(|w| w[0].0.overlaps(w[1].0)) {
                // The one that is there already, where one of them is.
                let known = |row: Guid| self.of(device).any(|(_, r)| r == row);
                let (a, b) = (pair[0].1, pair[1].1);
                return Err((Status::Overlap, if known(b) { b } else { a }));
            }
            if after.len() > MAX_DEVICE_EXTENTS {
                return Err((Status::NoSpace, device));
            }
            if self.is_carved(device) == after.is_empty() && is_owned(device) {
                return Err((Status::Hierarchy, device));
            }
        }
        Ok(())
    }
}

/// The facts of an extent that is there.
fn present(register: &OwnershipRegister) -> Option<&ExtentFacts> {
    register.extent.as_ref().filter(|facts| facts.present)
}
