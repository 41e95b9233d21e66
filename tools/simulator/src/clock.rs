//! A machine's clock as its programs see it: it starts anew when the machine does, goes at a pace of
//! its own, and leaps ahead when the machine was asleep. The date and time, which leaps both ways,
//! is only ever a label.

use std::time::Duration;

use rma::wire::Time;

/// The most that a clock goes wrong, in millionths.
pub(crate) const MAX_PACE_PPM: i64 = 500;

/// A clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// The world's time when it was set.
    since: Time,
    /// What it said then.
    base: Time,
    /// By how many millionths it is too fast.
    pace_ppm: i64,
}

impl Clock {
    /// The world's own time.
    pub(crate) const WORLD: Self = Self {
        since: Time::ZERO,
        base: Time::ZERO,
        pace_ppm: 0,
    };

    /// The clock of a machine that starts now.
    pub(crate) fn random(world: Time, rng: &mut fastrand::Rng) -> Self {
        Self {
            since: world,
            base: Time::ZERO + Duration::from_millis(rng.u64(1..100_000)),
            pace_ppm: rng.i64(-MAX_PACE_PPM..=MAX_PACE_PPM),
        }
    }

    /// What it says.
    pub(crate) fn local(&self, world: Time) -> Time {
        let elapsed = world.since(self.since).as_nanos().cast_signed();
        // Most times are short, and 128 bits are slow to divide.
        let wrong = match (elapsed as i64).checked_mul(self.pace_ppm) {
            Some(product) if i128::from(elapsed as i64) == elapsed => {
                i128::from(product / 1_000_000)
            }
            _ => elapsed * i128::from(self.pace_ppm) / 1_000_000,
        };
        self.base + Duration::from_nanos((elapsed + wrong) as u64)
    }

    /// When (at the earliest) it says so.
    pub(crate) fn world(&self, local: Time) -> Time {
        let own = local.since(self.base).as_nanos().cast_signed();
        let elapsed = own * 1_000_000 / (1_000_000 + i128::from(self.pace_ppm));
        let mut at = self.since + Duration::from_nanos(elapsed as u64);
        while self.local(at) < local {
            at = at + Duration::from_nanos(1);
        }
        at
    }

    /// The machine was asleep for so long; nobody else noticed.
    pub(crate) fn leap(&mut self, by: Duration) {
        self.base = self.base + by;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_found_by_what_it_says() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..1000 {
            let start = Time::from_nanos(rng.u64(0..1 << 40));
            let mut clock = Clock::random(start, &mut rng);
            clock.leap(Duration::from_secs(rng.u64(0..1 << 30)));
            let at = start + Duration::from_nanos(rng.u64(0..1 << 40));
            let says = clock.local(at);
            let found = clock.world(says);
            assert!(
                found <= at && clock.local(found) == says,
                "{clock:?} {at:?}"
            );
            assert!(clock.local(clock.world(says + Duration::from_nanos(1))) > says);
        }
    }
}
