//! How fast a session sends: round trips, timeouts, and bytes in flight.

use std::time::Duration;

use crate::wire::message::IoRange;
use crate::wire::{Kind, MAX_MESSAGE_BYTES, Reader};

use super::limits::{
    LOSS_WEIGHT, RTO_DOUBT_MAX, RTO_FIRST_MAX, RTO_INITIAL, RTO_MAX, RTO_MIN, WINDOW_GROWTH,
    WINDOW_LEAST_CUT, WINDOW_MAX, WINDOW_MIN, WINDOW_START,
};

/// The most bytes that the reply to a request may have, as far as its kind and body say: what a
/// responder must be ready to keep for it.
pub(super) fn reply_charge(kind: Kind, body: &[u8]) -> usize {
    match kind {
        Kind::Read => Reader::new(body)
            .get()
            .map_or(0, |range| range_bytes(kind, &range).unwrap_or(0)),
        Kind::Membership
        | Kind::TableRows
        | Kind::TableDigests
        | Kind::Controllers
        | Kind::Registers
        | Kind::Devices => MAX_MESSAGE_BYTES,
        _ => SHORT_REPLY_BYTES,
    }
}

/// What the reply to any other request may have.
pub(super) const SHORT_REPLY_BYTES: usize = 4096;

/// The bytes of the reply to an I/O, where it is one that has any.
pub(super) fn range_bytes(kind: Kind, range: &IoRange) -> Option<usize> {
    (kind == Kind::Read).then(|| range.len.min(MAX_MESSAGE_BYTES as u64) as usize)
}

/// Measured round trips (commands that were not retried, after Karn) and the timeout they make.
#[derive(Debug, Clone, Copy)]
pub(super) struct RoundTrip {
    /// Nanoseconds, and how much they vary: of each answer a [`Duration`] would be taken apart and put together again.
    smoothed: Option<u64>,
    variation: u64,
    timeout: Duration,
    least: Duration,
    /// What the last answers that came only after a retry took, at most: until a round trip is measured
    /// again, the path may be that slow.
    doubt: Duration,
}

impl RoundTrip {
    /// Of a service connection, or of a management connection: there a process answers that may have
    /// much else to do.
    pub(super) const fn new(service: bool) -> Self {
        Self {
            smoothed: None,
            variation: 0,
            timeout: RTO_INITIAL,
            least: if service { RTO_MIN } else { RTO_INITIAL },
            doubt: Duration::ZERO,
        }
    }

    /// An answer may take as long as `elapsed`: its question was sent again meanwhile.
    pub(super) fn suspect(&mut self, elapsed: Duration) {
        self.doubt = self.doubt.max(elapsed).min(RTO_DOUBT_MAX);
    }

    /// How long an answer takes, where that was measured.
    pub(super) fn smoothed(&self) -> Option<Duration> {
        self.smoothed.map(Duration::from_nanos)
    }

    /// Takes a measurement.
    pub(super) fn sample(&mut self, measured: Duration) {
        // Sums of eight of them do not overflow.
        let measured = u64::try_from(measured.as_nanos()).map_or(MOST_NANOS, |n| n.min(MOST_NANOS));
        let smoothed = match self.smoothed {
            None => {
                self.variation = measured / 2;
                measured
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(measured)) / 4;
                (smoothed * 7 + measured) / 8
            }
        };
        self.smoothed = Some(smoothed);
        let timeout = Duration::from_nanos(smoothed + self.variation * 4);
        // A path that is slow all the time is not asked twice for every answer.
        let most = RTO_FIRST_MAX.max(Duration::from_nanos(smoothed * 2));
        self.timeout = timeout.clamp(self.least, most);
        self.doubt = Duration::ZERO;
    }

    /// How long to wait for an answer that was asked for `tries` times in vain before, at most
    /// `max`.
    pub(super) fn timeout(&self, tries: u32, max: Duration) -> Duration {
        let timeout = self.timeout.max(self.doubt);
        timeout
            .saturating_mul(1 << tries.min(12))
            .min(max.max(timeout))
            .min(RTO_MAX)
    }
}

/// The longest round trip that is told from others: a day.
const MOST_NANOS: u64 = 24 * 3600 * 1_000_000_000;

/// Bytes in flight and how many there may be: additive increase, multiplicative decrease.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    size: usize,
    /// Up to here the window doubles each round trip.
    threshold: usize,
    in_flight: usize,
    /// One decrease for all losses among the commands below this one.
    recovering_until: u64,
    /// The most that was in flight since the last decrease.
    peak: usize,
}

impl Window {
    pub(super) const fn new() -> Self {
        Self {
            size: WINDOW_START,
            threshold: WINDOW_MAX,
            in_flight: 0,
            recovering_until: 0,
            peak: 0,
        }
    }

    #[cfg(test)]
    pub(super) const fn size(&self) -> usize {
        self.size
    }

    /// Whether a command of `cost` bytes may be sent now; a lone one always may.
    pub(super) const fn admits(&self, cost: usize) -> bool {
        self.in_flight == 0 || self.in_flight.saturating_add(cost) <= self.size
    }

    pub(super) const fn sent(&mut self, cost: usize) {
        self.in_flight = self.in_flight.saturating_add(cost);
        if self.in_flight > self.peak {
            self.peak = self.in_flight;
        }
    }

    /// A command of `cost` bytes is answered.
    pub(super) fn done(&mut self, cost: usize) {
        // A window that is not used does not grow.
        if self.in_flight.saturating_mul(2) >= self.size {
            let grow = if self.size < self.threshold {
                cost
            } else {
                (cost * WINDOW_GROWTH / self.size).min(cost / 4).max(1)
            };
            self.size = (self.size + grow).min(WINDOW_MAX);
        }
        self.release(cost);
    }

    /// A command of `cost` bytes is not in flight any more, without an answer.
    pub(super) const fn release(&mut self, cost: usize) {
        self.in_flight = self.in_flight.saturating_sub(cost);
    }

    /// `bytes` of `command` were lost, when commands below `next` had been sent.
    ///
    /// A queue that overflows loses much of a window at once: then it is halved. A wire that loses a frame
    /// now and then does so however little is sent: then it shrinks a little.
    pub(super) fn lost(&mut self, command: u64, next: u64, bytes: u64) {
        if command >= self.recovering_until {
            // What was not used says nothing of what the path takes.
            self.size = self.size.min(self.peak.max(WINDOW_MIN));
            self.peak = self.in_flight;
            let share = usize::try_from(bytes).unwrap_or(usize::MAX);
            let less = share
                .saturating_mul(LOSS_WEIGHT)
                .clamp(self.size / WINDOW_LEAST_CUT, self.size / 2);
            self.size = (self.size - less).max(WINDOW_MIN);
            self.threshold = self.size;
            self.recovering_until = next;
        }
    }

    /// How much of it is taken, in thousandths.
    pub(super) const fn load(&self) -> usize {
        self.in_flight.saturating_mul(1000) / self.size
    }

    /// What it was at the start, but for what is in flight.
    pub(super) const fn restart(&mut self) {
        *self = Self {
            in_flight: self.in_flight,
            ..Self::new()
        };
    }

    /// Nothing is in flight any more.
    pub(super) const fn clear(&mut self) {
        self.in_flight = 0;
        self.recovering_until = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_follows_the_round_trips_within_its_limits() {
        let mut rtt = RoundTrip::new(true);
        assert_eq!(rtt.timeout(0, RTO_MAX), RTO_INITIAL);
        for _ in 0..100 {
            rtt.sample(Duration::from_micros(50));
        }
        assert_eq!(rtt.timeout(0, RTO_MAX), RTO_MIN);
        assert_eq!(rtt.timeout(3, RTO_MAX), RTO_MIN * 8);
        assert_eq!(rtt.timeout(30, RTO_MAX), RTO_MAX);
        for _ in 0..100 {
            rtt.sample(Duration::from_millis(15));
        }
        assert!((14..40).contains(&rtt.timeout(0, RTO_MAX).as_millis()));
        rtt.sample(Duration::from_millis(120));
        assert!(
            (40..60).contains(&rtt.timeout(0, RTO_MAX).as_millis()),
            "one outlier"
        );
        assert_eq!(
            rtt.timeout(30, Duration::from_millis(100)),
            Duration::from_millis(100)
        );
        for _ in 0..100 {
            rtt.sample(Duration::from_millis(300));
        }
        assert!(
            (300..=600).contains(&rtt.timeout(0, RTO_MAX).as_millis()),
            "a slow path"
        );
    }

    #[test]
    fn a_path_that_answers_late_is_not_asked_again_and_again() {
        let mut rtt = RoundTrip::new(false);
        rtt.sample(Duration::from_micros(50));
        assert_eq!(rtt.timeout(0, RTO_MAX), RTO_INITIAL, "management");
        rtt.suspect(Duration::from_millis(90));
        rtt.suspect(Duration::from_millis(70));
        assert_eq!(rtt.timeout(0, RTO_MAX), Duration::from_millis(90));
        assert_eq!(rtt.timeout(1, RTO_MAX), Duration::from_millis(180));
        rtt.suspect(Duration::from_secs(9));
        assert_eq!(rtt.timeout(0, RTO_MAX), RTO_DOUBT_MAX);
        rtt.sample(Duration::from_micros(50));
        assert_eq!(rtt.timeout(0, RTO_MAX), RTO_INITIAL, "it was the load");
    }

    #[test]
    fn the_window_grows_with_use_and_halves_once_for_a_burst_of_losses() {
        let mut window = Window::new();
        assert!(window.admits(WINDOW_MAX), "a lone command always goes");
        window.sent(4096);
        window.done(4096);
        assert_eq!(window.size(), WINDOW_START, "not used, not grown");
        for _ in 0..1000 {
            while window.admits(65_536) {
                window.sent(65_536);
            }
            window.done(65_536);
        }
        assert_eq!(window.size(), WINDOW_MAX);
        let much = WINDOW_MAX as u64;
        window.lost(5, 9, much);
        window.lost(7, 12, much);
        assert_eq!(window.size(), WINDOW_MAX / 2);
        for id in 0..20 {
            window.lost(100 + id * 10, 101 + id * 10, much);
        }
        assert_eq!(window.size(), WINDOW_MIN);
    }

    #[test]
    fn a_single_lost_frame_costs_little_of_a_large_window() {
        let mut window = Window::new();
        window.sent(WINDOW_START);
        window.lost(1, 2, 1000);
        let after = WINDOW_START - WINDOW_START / WINDOW_LEAST_CUT;
        assert_eq!(window.size(), after);
        window.lost(2, 3, after as u64 / 16);
        assert_eq!(window.size(), after - after / 4);
    }
}
