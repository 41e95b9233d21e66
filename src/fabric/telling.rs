//! Unit ownerships that fabric services are told until they know them: the newest for each unit.

use std::collections::BTreeMap;

use super::catalog::MAX_CLUSTER_MEMBERS;
use super::link::RETRY_INTERVAL;
use crate::wire::message::UnitOwnership;
use crate::wire::{Epoch, Guid, Status, Time};

/// Unit ownerships that are told at the same time.
pub(super) const MAX_TELLING: usize = 8;
/// Unit ownerships that wait to be told; more are dropped.
pub(super) const MAX_TELLS: usize = MAX_CLUSTER_MEMBERS;

#[derive(Debug)]
struct Tell {
    ownership: UnitOwnership,
    telling: bool,
    due: Time,
}

/// What waits to be told, by unit.
#[derive(Debug, Default)]
pub(super) struct Tells(BTreeMap<Guid, Tell>);

impl Tells {
    /// Tells this, unless the same epoch or a larger one waits already.
    pub(super) fn add(&mut self, now: Time, ownership: UnitOwnership) {
        let unit = ownership.unit;
        let waiting = self.0.get(&unit);
        if waiting.is_some_and(|t| t.ownership.epoch >= ownership.epoch)
            || (waiting.is_none() && self.0.len() >= MAX_TELLS)
        {
            return;
        }
        let tell = Tell {
            ownership,
            telling: false,
            due: now,
        };
        self.0.insert(unit, tell);
    }

    /// How many fabric services have not taken yet.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Everything that was on its way is told again.
    pub(super) fn restart(&mut self) {
        for tell in self.0.values_mut() {
            tell.telling = false;
        }
    }

    fn room(&self) -> usize {
        MAX_TELLING.saturating_sub(self.0.values().filter(|t| t.telling).count())
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        if self.room() == 0 {
            return None;
        }
        let waiting = self.0.values().filter(|t| !t.telling);
        waiting.map(|t| t.due).min()
    }

    /// What to tell now.
    pub(super) fn due(&self, now: Time) -> Vec<UnitOwnership> {
        self.0
            .values()
            .filter(|t| !t.telling && t.due <= now)
            .map(|t| t.ownership.clone())
            .take(self.room())
            .collect()
    }

    /// It is on its way, or could not be sent.
    pub(super) fn sent(&mut self, now: Time, unit: Guid, sent: bool) {
        if let Some(tell) = self.0.get_mut(&unit) {
            tell.telling = sent;
            tell.due = now + RETRY_INTERVAL;
        }
    }

    /// Fabric services have answered.
    pub(super) fn answered(&mut self, now: Time, unit: Guid, epoch: Epoch, status: Status) {
        let Some(tell) = self.0.get_mut(&unit) else {
            return;
        };
        if tell.ownership.epoch != epoch {
            return;
        }
        match status {
            // A conflict says that fabric services know this epoch already, from somebody else.
            Status::Ok | Status::Conflict | Status::BadRequest | Status::Unsupported => {
                self.0.remove(&unit);
            }
            _ => {
                tell.telling = false;
                tell.due = now + RETRY_INTERVAL;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Ownership;

    fn owned(unit: u128, epoch: u64) -> UnitOwnership {
        UnitOwnership {
            unit: Guid(unit),
            ownership: Ownership::Dedicated(Guid(9)),
            epoch: Epoch(epoch),
        }
    }

    #[test]
    fn the_newest_is_told_until_it_is_taken() {
        let (mut tells, now) = (Tells::default(), Time::ZERO);
        tells.add(now, owned(1, 3));
        tells.add(now, owned(1, 2));
        assert_eq!(tells.due(now), [owned(1, 3)]);
        tells.sent(now, Guid(1), true);
        assert_eq!((tells.due(now), tells.deadline()), (vec![], None));
        tells.add(now, owned(1, 4));
        assert_eq!(tells.due(now), [owned(1, 4)]);
        tells.sent(now, Guid(1), true);
        tells.answered(now, Guid(1), Epoch(3), Status::Ok);
        assert_eq!(tells.len(), 1, "the answer was to an older one");
        tells.answered(now, Guid(1), Epoch(4), Status::NoRow);
        assert_eq!(tells.due(now), []);
        let later = now + RETRY_INTERVAL;
        assert_eq!(tells.deadline(), Some(later));
        assert_eq!(tells.due(later), [owned(1, 4)]);
        tells.answered(later, Guid(1), Epoch(4), Status::Ok);
        assert_eq!((tells.len(), tells.deadline()), (0, None));
    }

    #[test]
    fn both_limits_hold() {
        let mut tells = Tells::default();
        for unit in 1..=MAX_TELLS as u128 + 1 {
            tells.add(Time::ZERO, owned(unit, 1));
        }
        assert_eq!(tells.len(), MAX_TELLS);
        assert_eq!(tells.due(Time::ZERO).len(), MAX_TELLING);
        for told in tells.due(Time::ZERO) {
            tells.sent(Time::ZERO, told.unit, true);
        }
        assert_eq!((tells.due(Time::ZERO), tells.deadline()), (vec![], None));
        tells.restart();
        assert_eq!(tells.due(Time::ZERO).len(), MAX_TELLING);
    }
}
