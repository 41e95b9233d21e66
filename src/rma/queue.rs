//! Allocations that wait for the lease, and what becomes of them when it comes, cannot be had, or is
//! overtaken.

use std::collections::BTreeSet;

use super::agent::Agent;
use super::allocation::{MAX_RETRIES, Stage};
use super::plan::error;
use super::report::label;
use super::request::{AdminError, ErrorKind};
use super::timers::Timer;
use crate::wire::Time;

impl Agent {
    /// Whether there are allocations, those that are being stored included.
    pub(super) fn has_allocations(&self) -> bool {
        !self.allocations.active.is_empty()
    }

    /// Whether any has gone further than to wait for its turn.
    pub(super) fn has_allocations_under_way(&self) -> bool {
        let mut all = self.allocations.active.values();
        all.any(|a| a.stage != Stage::Queued)
    }

    /// The lease is held: those that have waited for it begin, as far as it is their turn.
    pub(super) fn next_allocations(&mut self, now: Time) {
        let patience = self.config.intervals.allocation_patience;
        let mut units = BTreeSet::new();
        for (id, allocation) in &self.allocations.active {
            if allocation.stage == Stage::Queued {
                units.insert(allocation.unit);
                // The unit has all of its time.
                self.timers.set(Timer::Allocation(*id), now + patience);
            }
        }
        for unit in units {
            self.next_allocation(now, unit);
        }
    }

    /// The lease cannot be had: those that wait for it fail.
    pub(super) fn fail_queued_allocations(&mut self, now: Time, e: &AdminError) {
        let all = self.allocations.active.iter();
        let queued: Vec<u64> = all
            .filter(|(_, a)| a.stage == Stage::Queued)
            .map(|(id, _)| *id)
            .collect();
        for id in queued {
            self.fail_allocation(now, id, e.clone());
        }
    }

    /// The unit knows of a newer session: the change is made under a newer one of ours.
    pub(super) fn superseded(&mut self, now: Time, id: u64) {
        let Some(allocation) = self.allocations.active.get_mut(&id) else {
            return;
        };
        allocation.retries += 1;
        if allocation.retries <= MAX_RETRIES {
            allocation.stage = Stage::Queued;
            return self.overruled(now);
        }
        let message = format!(
            "{} knows of a newer allocation session than this host's; nothing was changed, look \
             at `rma lock status` and repeat",
            label(&self.table, allocation.unit)
        );
        self.fail_allocation(now, id, error(ErrorKind::Locked, message));
    }
}
