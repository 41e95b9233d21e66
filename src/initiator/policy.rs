//! What becomes of I/O while its device's unit cannot be reached: it waits, or it fails after a while.
//!
//! A write that has failed may still be applied when the unit comes back, as it may have got there: so
//! until the end of every such command is known, nothing else is sent to the device (I3).

use std::time::Duration;

use super::io::Running;
use super::{ControllerKey, DeviceId, Initiator, IoError, Sent, key_of};
use crate::wire::Time;

/// What becomes of a device's I/O while its unit cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// It waits, however long.
    #[default]
    Queue,
    /// It fails when the unit has been away for so long, and further I/O at once, until the unit is back.
    FailAfter(Duration),
}

/// Since when a device has been cut off, and what that means.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Outage {
    pub(super) policy: Policy,
    since: Option<Time>,
    /// Its I/O fails.
    pub(super) fails: bool,
}

impl Outage {
    /// When its I/O fails if nothing changes.
    fn due(&self) -> Option<Time> {
        match self.policy {
            Policy::FailAfter(after) if !self.fails => Some(self.since? + after),
            _ => None,
        }
    }
}

impl Initiator {
    /// Sets what becomes of the device's I/O while its unit cannot be reached; it counts at once, also for
    /// what waits already.
    pub fn set_policy(&mut self, now: Time, device: DeviceId, policy: Policy) {
        let Some(open) = self.devices.get_mut(&device) else {
            return;
        };
        open.outage.policy = policy;
        open.outage.fails = false;
        self.renew_outage_due();
        self.tick_outages(now);
    }

    /// Whether the device's I/O fails, as its unit has been away for too long.
    pub fn is_failing(&self, device: DeviceId) -> bool {
        self.devices.get(&device).is_some_and(|d| d.outage.fails)
    }

    /// A device is at a controller that can be reached, or cannot.
    pub(super) fn note_reach(&mut self, now: Time, device: DeviceId) {
        let Some(open) = self.devices.get_mut(&device) else {
            return;
        };
        let controller = self.controllers.get(&key_of(&open.target));
        if controller.is_some_and(super::controller::Controller::is_reached) {
            open.outage.since = None;
            open.outage.fails = false;
        } else {
            open.outage.since.get_or_insert(now);
        }
        self.renew_outage_due();
    }

    /// The same of all devices of a controller.
    pub(super) fn note_reach_of(&mut self, now: Time, key: ControllerKey) {
        for device in self.devices_at(key) {
            self.note_reach(now, device);
        }
    }

    pub(super) const fn outage_due(&self) -> Option<Time> {
        self.outage_due
    }

    fn renew_outage_due(&mut self) {
        let devices = self.devices.values();
        self.outage_due = devices.filter_map(|d| d.outage.due()).min();
    }

    /// Fails what has waited for long enough.
    pub(super) fn tick_outages(&mut self, now: Time) {
        if self.outage_due.is_none_or(|due| due > now) {
            return;
        }
        let over = |d: &super::Device| d.outage.due().is_some_and(|due| due <= now);
        let devices = self.devices.iter().filter(|(_, d)| over(d));
        let failing: Vec<DeviceId> = devices.map(|(id, _)| *id).collect();
        for device in failing {
            if let Some(open) = self.devices.get_mut(&device) {
                open.outage.fails = true;
            }
            self.fail_all(now, device);
        }
        self.renew_outage_due();
    }

    fn fail_all(&mut self, now: Time, device: DeviceId) {
        let Some(open) = self.devices.get_mut(&device) else {
            return;
        };
        open.waiting.clear();
        open.ready = false;
        if let Some(controller) = self.controllers.get_mut(&key_of(&open.target)) {
            controller.ready.retain(|d| *d != device);
        }
        for io in self.take_ios(device) {
            if let Some(open) = self.devices.get_mut(&device) {
                io.count_failed(&mut open.stats, now);
            }
            self.done(io.token, Err(IoError::Unreachable));
        }
        self.count_ghosts();
    }

    /// Takes all I/O of a device out, wherever it waits.
    pub(super) fn take_ios(&mut self, device: DeviceId) -> Vec<Running> {
        let ids = self.ios.keys_of(|io| io.device == device);
        let taken: Vec<Running> = ids
            .into_iter()
            .filter_map(|id| self.ios.remove(id))
            .collect();
        self.retries.retain(|(_, io, _)| self.ios.contains(*io));
        self.held -= taken.iter().map(Running::held).sum::<u64>();
        taken
    }

    /// What was sent may still be executed; only its end makes the place free again.
    pub(super) fn count_ghosts(&mut self) {
        self.ghosts.clear();
        for sent in self.controllers.values().flat_map(|c| c.sent.values()) {
            if let Sent::Part { io, to, .. } = sent
                && !self.ios.contains(*io)
            {
                *self.ghosts.entry(to.place).or_insert(0) += 1;
            }
        }
    }
}
