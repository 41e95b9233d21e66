//! The simulated Ethernet: who hears a frame, when, how often, and what is left of it.

use std::collections::BTreeSet;
use std::time::Duration;

use rma::wire::Mac;

/// What the wire does to frames.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Faults {
    /// Chance that a frame is lost.
    pub loss: f64,
    /// Chance that a frame arrives twice.
    pub duplicate: f64,
    /// Chance that a frame is held back, so that later ones pass it.
    pub reorder: f64,
    /// Chance that a bit of a frame flips.
    pub corrupt: f64,
    /// How long a frame takes.
    pub delay: Duration,
    /// For how long a frame is held back at most.
    pub held: Duration,
}

impl Faults {
    /// A wire that does everything right.
    pub const NONE: Self = Self {
        loss: 0.0,
        duplicate: 0.0,
        reorder: 0.0,
        corrupt: 0.0,
        delay: Duration::from_micros(20),
        held: Duration::ZERO,
    };
}

/// The wire.
#[derive(Debug)]
pub struct Network {
    /// What it does to frames.
    pub faults: Faults,
    /// Pairs (sender, receiver) that cannot reach each other, in this direction.
    cut: BTreeSet<(Mac, Mac)>,
    rng: fastrand::Rng,
    /// Frames sent.
    pub sent: u64,
    /// Frames lost, cut off or for nobody.
    pub lost: u64,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            faults: Faults::NONE,
            cut: BTreeSet::new(),
            rng: fastrand::Rng::with_seed(seed),
            sent: 0,
            lost: 0,
        }
    }

    /// Cuts the way from one station to another; the way back stays.
    pub fn cut(&mut self, from: Mac, to: Mac) {
        self.cut.insert((from, to));
    }

    /// Mends every way.
    pub fn mend(&mut self) {
        self.cut.clear();
    }

    /// After which times a frame arrives at one receiver, and as what.
    pub(crate) fn carry(&mut self, from: Mac, to: Mac, frame: &[u8]) -> Vec<(Duration, Vec<u8>)> {
        let mut arrivals = Vec::new();
        if self.cut.contains(&(from, to)) || self.chance(self.faults.loss) {
            self.lost += 1;
            return arrivals;
        }
        let copies = if self.chance(self.faults.duplicate) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let mut delay = self.faults.delay;
            delay += Duration::from_nanos(self.rng.u64(0..=delay.as_nanos() as u64));
            if self.chance(self.faults.reorder) {
                delay += Duration::from_nanos(self.rng.u64(0..=self.faults.held.as_nanos() as u64));
            }
            let mut bytes = frame.to_vec();
            if self.chance(self.faults.corrupt) && !bytes.is_empty() {
                let at = self.rng.usize(0..bytes.len());
                bytes[at] ^= 1 << self.rng.u8(0..8);
            }
            arrivals.push((delay, bytes));
        }
        arrivals
    }

    fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && self.rng.f64() < p
    }
}
