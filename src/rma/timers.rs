//! The agent's one table of timers.

use std::collections::{BTreeMap, BTreeSet};

use crate::wire::{Guid, IocNumber, Time};

/// What a timer is for; of each there is at most one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The patience of the present block of Fig. 5.
    Block,
    /// A failed commit is tried again.
    Commit,
    /// What was published is pushed to the peers.
    Push,
    /// Peers whose tables differ are looked at.
    Differences,
    /// A peer is due for an exchange of stamps.
    Peer(Guid),
    /// A station does not answer at the address tried: try its next.
    Address(Guid),
    /// A unit is due for a poll of its controllers and registers.
    Unit(Guid),
    /// A controller is due for a poll of its devices.
    Controller(Guid, IocNumber),
    /// The patience of an allocation.
    Allocation(u64),
    /// An allocation that a busy unit refused is sent again.
    Resend(u64),
    /// Owners have to say whether they use what an allocation takes from them.
    InUse(u64),
    /// The patience of a restoration of a unit's registers.
    Restore(Guid),
    /// Tombstones are looked through.
    Purge,
    /// The patience of a round of questions about the lease.
    LeaseRound,
    /// The lease is asked for again.
    LeaseRetry,
    /// The lease is due for a renewal.
    LeaseRenew,
    /// The lease is given up.
    LeaseEnd,
    /// Nothing has needed the lease for a while.
    LeaseIdle,
    /// The patience of an administrator's look at the lease.
    LeaseQuery(u64),
    /// The patience of a change of settings.
    Settle,
}

/// Timers by moment.
#[derive(Debug, Default)]
pub(super) struct Timers {
    at: BTreeMap<Timer, Time>,
    order: BTreeSet<(Time, Timer)>,
}

impl Timers {
    /// Sets a timer, in place of an earlier setting.
    pub(super) fn set(&mut self, timer: Timer, at: Time) {
        self.cancel(timer);
        self.at.insert(timer, at);
        self.order.insert((at, timer));
    }

    /// Sets a timer unless it is due sooner already.
    pub(super) fn set_sooner(&mut self, timer: Timer, at: Time) {
        if self.at.get(&timer).is_none_or(|set| at < *set) {
            self.set(timer, at);
        }
    }

    /// Makes those that are set due no later than `latest` says of them.
    pub(super) fn hasten(&mut self, latest: impl Fn(Timer) -> Option<Time>) {
        let late: Vec<_> = self
            .at
            .iter()
            .filter_map(|(timer, at)| Some((*timer, latest(*timer).filter(|l| l < at)?)))
            .collect();
        for (timer, at) in late {
            self.set(timer, at);
        }
    }

    /// Whether the timer is set.
    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.at.contains_key(&timer)
    }

    /// Forgets a timer.
    pub(super) fn cancel(&mut self, timer: Timer) {
        if let Some(at) = self.at.remove(&timer) {
            self.order.remove(&(at, timer));
        }
    }

    /// When the next is due.
    pub(super) fn next(&self) -> Option<Time> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes one that is due.
    pub(super) fn take_due(&mut self, now: Time) -> Option<Timer> {
        let (at, timer) = *self.order.first()?;
        if at > now {
            return None;
        }
        self.cancel(timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_come_in_order_and_each_once() {
        let at = Time::from_nanos;
        let mut timers = Timers::default();
        timers.set(Timer::Push, at(5));
        timers.set(Timer::Block, at(3));
        timers.set(Timer::Push, at(2));
        timers.set_sooner(Timer::Block, at(4));
        timers.set_sooner(Timer::Block, at(1));
        timers.set(Timer::Commit, at(9));
        timers.cancel(Timer::Commit);
        assert_eq!(timers.next(), Some(at(1)));
        assert_eq!(timers.take_due(at(0)), None);
        assert_eq!(timers.take_due(at(2)), Some(Timer::Block));
        assert_eq!(timers.take_due(at(2)), Some(Timer::Push));
        assert_eq!(timers.take_due(at(99)), None);
        assert_eq!(timers.next(), None);
        assert!(!timers.is_set(Timer::Commit));
    }
    #[test]
    fn only_those_that_would_be_late_are_hastened() {
        let at = Time::from_nanos;
        let mut timers = Timers::default();
        timers.set(Timer::Unit(Guid(1)), at(90));
        timers.set(Timer::Unit(Guid(2)), at(3));
        timers.set(Timer::Push, at(50));
        timers.hasten(|timer| matches!(timer, Timer::Unit(_)).then_some(at(10)));
        let mut due = Vec::new();
        while let Some(next) = timers.next() {
            due.push((next, timers.take_due(next)));
        }
        let expected = [
            (at(3), Some(Timer::Unit(Guid(2)))),
            (at(10), Some(Timer::Unit(Guid(1)))),
            (at(50), Some(Timer::Push)),
        ];
        assert_eq!(due, expected);
    }
}
