//! When a thread polls for its next frame instead of sleeping until it comes: as long as that
//! mostly pays. Waking up takes longer than the rest of a short I/O together.

use std::time::Duration;

use crate::wire::Time;

/// How long after the last frame the next is polled for.
const POLL_FOR: Duration = Duration::from_micros(120);
/// How often it is looked whether anything else is to be done, while frames are polled for.
const LOOK_EVERY: Duration = Duration::from_micros(20);
/// How long after the last frame, and after giving the processor away, another thread may have it.
const YIELD_AFTER: Duration = Duration::from_micros(8);
/// The score at its best and, negated, at its worst.
const SCORE_LIMIT: i8 = 16;
/// What polling in vain takes from the score; a frame in time gives 1.
const MISS: i8 = 4;
/// With a bad score polling is tried once in so many times.
const TRY_EVERY: u32 = 64;

/// Decides between polling and sleeping.
#[derive(Debug, Default)]
pub(super) struct Spin {
    score: i8,
    until: Option<Time>,
    skipped: u32,
    look_at: Time,
    yield_at: Time,
}

impl Spin {
    /// Frames came and what was to be done for them is done, and more may follow soon.
    pub(super) fn worked(&mut self, now: Time) {
        self.yield_at = now + YIELD_AFTER;
        if self.until.take().is_some() {
            self.score = (self.score + 1).min(SCORE_LIMIT);
        }
        self.skipped += 1;
        if self.score >= 0 || self.skipped >= TRY_EVERY {
            self.skipped = 0;
            self.until = Some(now + POLL_FOR);
        }
    }

    /// Whether to look now at whatever is not a frame.
    pub(super) fn looks(&mut self, now: Time) -> bool {
        let due = self.look_at <= now;
        if due {
            self.look_at = now + LOOK_EVERY;
        }
        due
    }

    /// Whether another thread should have the processor now: whoever is awaited may be waiting for it. Where
    /// frames keep coming nobody is, and who yields on a busy machine is back after milliseconds.
    pub(super) fn yields(&mut self, now: Time) -> bool {
        let due = self.yield_at <= now;
        if due {
            self.yield_at = now + YIELD_AFTER;
        }
        due
    }

    /// Nothing is awaited any more: sleeping is no failure.
    pub(super) fn rest(&mut self) {
        self.until = None;
    }

    /// Whether to poll once more.
    pub(super) fn polls(&mut self, now: Time) -> bool {
        match self.until {
            Some(until) if now < until => true,
            Some(_) => {
                self.until = None;
                self.score = (self.score - MISS).max(-SCORE_LIMIT);
                false
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(n: u64) -> Time {
        Time::from_nanos(n * 1000)
    }

    #[test]
    fn it_polls_while_frames_come_in_time_and_rarely_when_they_do_not() {
        let mut spin = Spin::default();
        assert!(!spin.polls(us(0)), "nothing came yet");
        for at in 1..100 {
            spin.worked(us(at * 10));
            assert!(spin.polls(us(at * 10 + 9)));
        }
        let mut polled = 0;
        for at in 1..1000 {
            spin.worked(us(at * 1000));
            polled += u32::from(spin.polls(us(at * 1000 + 1)));
            assert!(!spin.polls(us(at * 1000 + 121)));
        }
        assert!((10..30).contains(&polled), "{polled}");
        for at in 0..1000 {
            spin.worked(us(2_000_000 + at * 10));
        }
        assert!(spin.polls(us(2_010_000)), "it pays again");
    }

    #[test]
    fn other_things_have_their_turn() {
        let mut spin = Spin::default();
        let looks = (0..1000).filter(|n| spin.looks(us(*n))).count();
        assert_eq!(looks, 50);
    }

    #[test]
    fn the_processor_is_given_away_only_while_no_frames_come() {
        let mut spin = Spin::default();
        for at in 0..100 {
            spin.worked(us(at));
            assert!(!spin.yields(us(at)));
        }
        let dry: Vec<u64> = (100..140).filter(|at| spin.yields(us(*at))).collect();
        assert_eq!(dry, [107, 115, 123, 131, 139]);
    }

    #[test]
    fn resting_is_no_failure() {
        let mut spin = Spin::default();
        for at in 0..100 {
            spin.worked(us(at * 1000));
            assert!(spin.polls(us(at * 1000 + 1)));
            spin.rest();
            assert!(!spin.polls(us(at * 1000 + 999)));
        }
    }
}
