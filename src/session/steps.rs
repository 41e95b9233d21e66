//! What can wait a little is done together.

use super::limits::KEEPALIVE_STEP;
use crate::wire::{Guid, Time};

/// The moments at which an initiator asks its many connections what is not urgent: multiples of
/// [`KEEPALIVE_STEP`], shifted by who it is, so that initiators are not in step with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steps {
    phase: u64,
}

impl Steps {
    /// Those of `initiator`.
    pub fn of(initiator: Guid) -> Self {
        let hash = xxhash_rust::xxh3::xxh3_64(&initiator.0.to_be_bytes());
        Self {
            phase: hash % KEEPALIVE_STEP.as_nanos() as u64,
        }
    }

    /// The first one that is not before `at`.
    pub fn next(self, at: Time) -> Time {
        let step = KEEPALIVE_STEP.as_nanos() as u64;
        let shifted = at.as_nanos().saturating_add(self.phase);
        let at = shifted.checked_next_multiple_of(step);
        Time::from_nanos(at.map_or(u64::MAX, |at| at - self.phase))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_moved_to_the_next_step_of_its_initiator() {
        let step = KEEPALIVE_STEP;
        let (ours, theirs) = (Steps::of(Guid(1)), Steps::of(Guid(2)));
        assert_ne!(ours, theirs);
        let at = Time::from_nanos(1_000_000_000_007);
        let next = ours.next(at);
        assert!(next >= at && next.since(at) < step);
        assert_eq!(ours.next(next), next);
        assert_eq!(
            ours.next(next + std::time::Duration::from_nanos(1)),
            next + step
        );
        assert_ne!(theirs.next(at), next);
    }

    #[test]
    fn the_end_of_time_is_no_step() {
        let last = Time::from_nanos(u64::MAX);
        assert_eq!(Steps::of(Guid(7)).next(last), last);
    }
}
