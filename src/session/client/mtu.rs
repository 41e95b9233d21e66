//! The longest frames that a path carries, found by probes: there is nobody who would say so.
//!
//! First the most that both NICs take is tried alone: mostly that is it. If not, usual sizes are tried at
//! once, and then the room between what passed and what did not is halved.

use std::time::Duration;

use smallvec::SmallVec;

use crate::session::limits::{PATH_AGAIN, PATH_AGAIN_FIRST, PATH_INTERVAL, PATH_TRIES};
use crate::wire::{MIN_MTU, Time};

/// Sizes at which links are usually limited.
const USUAL: [u16; 6] = [1280, 1400, 1500, 2304, 4352, 8192];
/// Closer than this it is not worth another probe.
const CLOSE: u16 = 32;
/// The least time between two looks at the length in use; each is four times as long as the one before.
const CHECK_PAUSE: Duration = Duration::from_millis(100);

/// A search for the longest frame that passes.
#[derive(Debug, Default)]
pub(super) struct MtuSearch {
    /// What is known to pass.
    low: u16,
    /// What did not, or is more than what may be tried.
    high: u16,
    /// Sizes that are being tried, ascending.
    trying: SmallVec<[u16; 8]>,
    /// How often they were sent.
    tries: u8,
    /// When they are sent (again), or given up.
    at: Option<Time>,
}

impl MtuSearch {
    /// Tries what is above `low`, which is known to pass, up to `limit`.
    pub(super) fn begin(&mut self, now: Time, low: u16, limit: u16) {
        *self = Self::default();
        if limit > low {
            self.low = low;
            self.high = limit.saturating_add(1);
            self.trying.push(limit);
            self.at = Some(now);
        }
    }

    /// Whether sizes are being tried.
    pub(super) const fn is_going(&self) -> bool {
        self.at.is_some()
    }

    /// When [`Self::send`] has something to do.
    pub(super) const fn due(&self) -> Option<Time> {
        self.at
    }

    /// What passes at least.
    pub(super) const fn low(&self) -> u16 {
        self.low
    }

    /// Whether frames of `size` were tried in vain.
    pub(super) fn refutes(&self, size: u16) -> bool {
        self.high > 0 && self.high <= size
    }

    /// Whether what was sent is due to be sent again, or given up.
    pub(super) fn is_overdue(&self, now: Time) -> bool {
        self.tries > 0 && self.at.is_some_and(|at| at <= now)
    }

    /// Nothing shows yet that the link itself works: what was sent is awaited longer.
    pub(super) fn put_off(&mut self, until: Time) {
        if self.is_going() {
            self.at = Some(until);
        }
    }

    /// The sizes to be sent now, each in a probe; they are awaited for `patience`. Call it again only
    /// when something shorter that was sent later has passed, or a long frame that is late will be
    /// taken for one that is too long.
    pub(super) fn send(&mut self, now: Time, patience: Duration) -> SmallVec<[u16; 8]> {
        if self.at.is_none_or(|at| at > now) {
            return SmallVec::new();
        }
        if self.tries >= PATH_TRIES {
            self.high = self.trying.first().copied().unwrap_or(self.high);
            self.go_on(now);
        } else if self.tries == 1 {
            self.add_usual();
        }
        if self.is_going() {
            self.tries += 1;
            self.at = Some(now + patience);
        }
        self.trying.clone()
    }

    /// A frame of this size has passed.
    pub(super) fn passed(&mut self, now: Time, size: u16) {
        if !self.is_going() {
            return;
        }
        self.low = self.low.max(size);
        let low = self.low;
        self.trying.retain(|size| *size > low);
        if self.trying.is_empty() {
            self.go_on(now);
        }
    }

    fn add_usual(&mut self) {
        let (low, high) = (self.low, self.high);
        for size in USUAL {
            if size > low && size < high && !self.trying.contains(&size) {
                self.trying.push(size);
            }
        }
        self.trying.sort_unstable();
    }

    /// All that was tried has passed or been given up.
    fn go_on(&mut self, now: Time) {
        self.trying.clear();
        self.tries = 0;
        self.at = None;
        if self.high.saturating_sub(self.low) > CLOSE {
            self.add_usual();
            if self.trying.is_empty() {
                self.trying.push(self.low + (self.high - self.low) / 2);
            }
            self.at = Some(now);
        }
    }
}

/// When it is looked whether the length in use still passes: soon where that has not been asked lately, and less
/// and less often where it is asked again and again.
#[derive(Debug, Default)]
pub(super) struct Checks {
    next: Time,
    pause: Duration,
}

impl Checks {
    /// When the next look may begin.
    pub(super) const fn next(&self) -> Time {
        self.next
    }

    /// Whether a look may begin now; then it has begun.
    pub(super) fn begin(&mut self, now: Time) -> bool {
        if now < self.next {
            return false;
        }
        let is_first = now >= self.next + PATH_INTERVAL;
        let longer = (self.pause * 4).clamp(CHECK_PAUSE, PATH_INTERVAL);
        self.pause = if is_first { CHECK_PAUSE } else { longer };
        self.next = now + self.pause;
        true
    }
}

/// When more is tried than what was found: soon, as what was tried in vain may have been lost rather than too long,
/// and less and less often while nothing else is found.
#[derive(Debug, Default)]
pub(super) struct Again {
    at: Option<Time>,
    pause: Duration,
}

impl Again {
    /// When, if at all.
    pub(super) const fn at(&self) -> Option<Time> {
        self.at
    }

    /// Not now: a search is going on, or there is no more to find.
    pub(super) const fn cancel(&mut self) {
        self.at = None;
    }

    /// After `pause`.
    pub(super) fn wait(&mut self, now: Time, pause: Duration) {
        self.at = Some(now + pause);
    }

    /// If at all.
    pub(super) fn not_before(&mut self, at: Time) {
        self.at = self.at.map(|again| again.max(at));
    }

    /// A search has ended.
    pub(super) fn wait_longer(&mut self, now: Time) {
        self.pause = (self.pause * 2).clamp(PATH_AGAIN_FIRST, PATH_AGAIN);
        self.wait(now, self.pause);
    }

    /// Something else was found than before.
    pub(super) const fn begin_anew(&mut self) {
        self.pause = Duration::ZERO;
    }
}

/// What a path carries in any case.
pub(super) const LEAST: u16 = MIN_MTU;

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(20);

    /// What is found on a path that carries `carries`, how many probes it took, and how long.
    fn find(low: u16, limit: u16, carries: u16) -> (u16, usize, Duration) {
        let mut search = MtuSearch::default();
        let start = Time::from_nanos(1_000_000_000);
        let (mut now, mut probes) = (start, 0);
        search.begin(now, low, limit);
        while let Some(at) = search.due() {
            now = now.max(at);
            for size in search.send(now, PATIENCE) {
                assert!(size > low && size <= limit, "{size}");
                probes += 1;
                if size <= carries {
                    search.passed(now, size);
                }
            }
            assert!(probes < 200);
        }
        assert!(search.refutes(carries.saturating_add(CLOSE)) || carries >= limit);
        (search.low(), probes, now.since(start))
    }

    #[test]
    fn what_the_nics_take_is_found_with_one_probe() {
        assert_eq!(find(1500, 9000, 9000), (9000, 1, Duration::ZERO));
        assert_eq!(
            find(1500, 1500, 1500),
            (0, 0, Duration::ZERO),
            "nothing to find"
        );
    }

    #[test]
    fn a_limit_in_between_is_found_closely() {
        for carries in [512, 600, 1279, 1280, 1499, 1500, 1600, 4000, 8191, 8999] {
            let (found, probes, took) = find(512, 9000, carries);
            assert!(
                found <= carries && carries - found <= CLOSE,
                "{carries}: {found}"
            );
            assert!(probes <= 60, "{carries}: {probes} probes");
            assert!(took < Duration::from_secs(1), "{carries}: {took:?}");
        }
    }

    #[test]
    fn a_usual_limit_is_known_after_one_timeout() {
        let mut search = MtuSearch::default();
        let now = Time::from_nanos(1_000_000_000);
        search.begin(now, 512, 9000);
        assert_eq!(search.send(now, PATIENCE)[..], [9000]);
        let later = now + PATIENCE;
        let sizes = search.send(later, PATIENCE);
        assert_eq!(sizes[..], [1280, 1400, 1500, 2304, 4352, 8192, 9000]);
        search.passed(later, 1500);
        assert_eq!(search.low(), 1500);
        assert!(!search.refutes(9000), "it may have been lost");
    }
}
