//! The simulated Ethernet: who hears a frame, when, how often, and what is left of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rma::wire::{Mac, Time};

/// What the wire does to frames.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Faults {
    /// Chance that a frame is lost.
    pub loss: f64,
    /// Chance that a frame arrives twice.
    pub duplicate: f64,
    /// Chance that a frame is held back, so that later ones pass it.
    pub reorder: f64,
    /// Chance that a frame arrives damaged: bits flipped, or its end missing.
    pub corrupt: f64,
    /// Chance that a frame arrives once more when nobody thinks of it any more.
    pub late: f64,
    /// How long a frame takes.
    pub delay: Duration,
    /// For how long a frame is held back at most.
    pub held: Duration,
    /// When a late copy arrives at the latest.
    pub late_by: Duration,
}

impl Faults {
    /// A wire that does everything right.
    pub const NONE: Self = Self {
        loss: 0.0,
        duplicate: 0.0,
        reorder: 0.0,
        corrupt: 0.0,
        late: 0.0,
        delay: Duration::from_micros(20),
        held: Duration::ZERO,
        late_by: Duration::ZERO,
    };
}

/// A frame that arrives: when, and as what where it is not as it was sent.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) after: Duration,
    pub(crate) damaged: Option<Vec<u8>>,
}

/// The address of a machine's first NIC.
const fn station(nic: Mac) -> Mac {
    let mut first = nic;
    first.0[2] = 0;
    first
}

/// The wire.
#[derive(Debug)]
pub struct Network {
    /// What it does to frames.
    pub faults: Faults,
    /// Pairs (sender, receiver) that cannot reach each other, in this direction.
    cut: BTreeSet<(Mac, Mac)>,
    /// Stations with a bad cable: the chance that a frame from or to them is lost.
    bad: BTreeMap<Mac, f64>,
    /// Longer frames of the service EtherType, in bytes without Ethernet headers, are lost without a word.
    pub carries: usize,
    /// Until then the switch restarts and passes nothing on.
    down_until: Time,
    rng: fastrand::Rng,
    /// Frames sent.
    pub sent: u64,
    /// Bytes sent, without Ethernet headers.
    pub bytes: u64,
    /// Frames lost, cut off or for nobody.
    pub lost: u64,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            faults: Faults::NONE,
            cut: BTreeSet::new(),
            bad: BTreeMap::new(),
            carries: usize::MAX,
            down_until: Time::ZERO,
            rng: fastrand::Rng::with_seed(seed),
            sent: 0,
            bytes: 0,
            lost: 0,
        }
    }

    /// Cuts the way from one station to another; the way back stays.
    pub fn cut(&mut self, from: Mac, to: Mac) {
        self.cut.insert((from, to));
    }

    /// A station's cable loses frames with this chance.
    pub fn wear(&mut self, station: Mac, loss: f64) {
        self.bad.insert(station, loss);
    }

    /// The switch restarts: until then nothing passes.
    pub fn restart(&mut self, until: Time) {
        self.down_until = until;
    }

    /// Whether the switch passes frames on.
    pub(crate) fn is_up(&self, now: Time) -> bool {
        now >= self.down_until
    }

    /// Mends every way.
    pub fn mend(&mut self) {
        self.cut.clear();
        self.bad.clear();
        self.carries = usize::MAX;
        self.down_until = Time::ZERO;
    }

    /// When and how a frame arrives at one receiver.
    pub(crate) fn carry(
        &mut self,
        now: Time,
        from: Mac,
        to: Mac,
        frame: &[u8],
    ) -> impl Iterator<Item = Arrival> + use<> {
        // Machines are cut off with all of their NICs.
        let (from, to) = (station(from), station(to));
        let worn = [from, to]
            .iter()
            .filter_map(|station| self.bad.get(station))
            .fold(0.0_f64, |worst, loss| worst.max(*loss));
        let lost = !self.is_up(now)
            || (!self.cut.is_empty() && self.cut.contains(&(from, to)))
            || self.chance(self.faults.loss)
            || self.chance(worn);
        if lost {
            self.lost += 1;
            return [None, None, None].into_iter().flatten();
        }
        let first = Some(self.arrival(frame));
        let twice = self
            .chance(self.faults.duplicate)
            .then(|| self.arrival(frame));
        let late = self.chance(self.faults.late).then(|| {
            let mut arrival = self.arrival(frame);
            arrival.after += self.up_to(self.faults.late_by);
            arrival
        });
        [first, twice, late].into_iter().flatten()
    }

    fn arrival(&mut self, frame: &[u8]) -> Arrival {
        let mut after = self.faults.delay + self.up_to(self.faults.delay);
        if self.chance(self.faults.reorder) {
            after += self.up_to(self.faults.held);
        }
        let damaged = self.chance(self.faults.corrupt).then(|| self.damage(frame));
        Arrival { after, damaged }
    }

    fn damage(&mut self, frame: &[u8]) -> Vec<u8> {
        let mut bytes = frame.to_vec();
        if bytes.is_empty() || self.rng.u8(0..8) == 0 {
            bytes.truncate(self.rng.usize(0..=bytes.len()));
            return bytes;
        }
        // Few enough, and close enough together, for the checksum to notice every time.
        let at = self.rng.usize(0..bytes.len());
        bytes[at] ^= self.rng.u8(1..=255);
        if at + 1 < bytes.len() && self.rng.bool() {
            bytes[at + 1] ^= self.rng.u8(..);
        }
        bytes
    }

    fn up_to(&mut self, most: Duration) -> Duration {
        Duration::from_nanos(self.rng.u64(0..=most.as_nanos() as u64))
    }

    fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && self.rng.f64() < p
    }
}
