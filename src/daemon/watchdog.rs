//! When the service manager is to hear that a daemon's loop still turns. Knows no loop.
//!
//! Under systemd with `WatchdogSec=` a daemon that says nothing for that long is ended and started
//! again. The loop waits no longer than [`Watchdog::deadline`] and says when [`Watchdog::is_due`]: so it
//! is its turning that is told, not that the process exists.

use std::time::Duration;

use crate::wire::Time;

/// How often in the manager's time it is told: one late time or two do not count.
const TIMES: u32 = 3;

/// The time by which the service manager wants to hear the next word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Watchdog {
    every: Duration,
    next: Time,
}

impl Watchdog {
    /// As the environment of this process says (`WATCHDOG_USEC`, `WATCHDOG_PID`); `None` where nobody
    /// waits for a word.
    pub(super) fn from_environment(now: Time) -> Option<Self> {
        let mut usec = 0;
        let wanted = sd_notify::watchdog_enabled(false, &mut usec) && usec > 0;
        wanted.then(|| Self::new(now, Duration::from_micros(usec)))
    }

    fn new(now: Time, limit: Duration) -> Self {
        Self {
            every: limit / TIMES,
            next: now,
        }
    }

    /// Until when the loop may wait.
    pub(super) const fn deadline(&self) -> Time {
        self.next
    }

    /// Whether the word is due; then the next is a third of the limit later.
    pub(super) fn is_due(&mut self, now: Time) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + self.every;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_three_times_in_the_limit() {
        let start = Time::from_nanos(1_000_000_000);
        let mut watchdog = Watchdog::new(start, Duration::from_secs(3));
        assert_eq!(watchdog.deadline(), start);
        assert!(watchdog.is_due(start));
        assert!(!watchdog.is_due(start + Duration::from_millis(999)));
        assert!(watchdog.is_due(start + Duration::from_secs(1)));
        // Late once: it does not catch up.
        assert!(watchdog.is_due(start + Duration::from_secs(9)));
        assert_eq!(watchdog.deadline(), start + Duration::from_secs(10));
    }
}
