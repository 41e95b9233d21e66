//! What a story is like: which faults there are in it, how often, and how bad.

use std::time::Duration;

use crate::network::Faults;
use crate::node::DiskFaults;

/// Something that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Allocate,
    Contend,
    Release,
    Granularity,
    Io,
    PowerOff,
    Kill,
    Start,
    Cable,
    Wear,
    Part,
    Mend,
    Switch,
    Device,
    Alter,
    Sleep,
    Garbage,
    Trespass,
    Carve,
    Uncarve,
}

/// A story's mix.
#[derive(Debug)]
pub(super) struct Mix {
    pub(super) network: Faults,
    pub(super) disks: DiskFaults,
    /// Longest pause between two things that happen.
    pub(super) pause_ms: u64,
    /// Some hosts are away all the time.
    pub(super) away: bool,
    /// At so many hosts there are administrators.
    pub(super) administrators: usize,
    /// Extents are carved from the beginning.
    pub(super) extents: bool,
    weights: Vec<(Act, u32)>,
}

impl Mix {
    pub(super) fn draw(rng: &mut fastrand::Rng) -> Self {
        let network = Faults {
            loss: up_to(rng, 0.15),
            duplicate: up_to(rng, 0.10),
            reorder: up_to(rng, 0.20),
            corrupt: up_to(rng, 0.02),
            late: up_to(rng, 0.02),
            delay: Duration::from_micros(rng.u64(5..500)),
            held: Duration::from_millis(rng.u64(0..40)),
            late_by: Duration::from_secs(rng.u64(1..30)),
        };
        let disks = DiskFaults {
            sync: Duration::from_millis(rng.u64(0..25)),
            failure: up_to(rng, 0.05),
            stall: up_to(rng, 0.005),
            medium: up_to(rng, 0.02),
            spared: Vec::new(),
        };
        let mut some = |most: u32| {
            if rng.u8(0..3) == 0 {
                0
            } else {
                rng.u32(1..=most)
            }
        };
        let weights = vec![
            (Act::Allocate, 30),
            (Act::Contend, some(10)),
            (Act::Release, 15),
            (Act::Granularity, some(2)),
            (Act::Io, 40),
            (Act::PowerOff, some(8)),
            (Act::Kill, some(8)),
            (Act::Start, 20),
            (Act::Cable, some(6)),
            (Act::Wear, some(3)),
            (Act::Part, some(10)),
            (Act::Mend, 6),
            (Act::Switch, some(2)),
            (Act::Device, some(12)),
            (Act::Alter, some(3)),
            (Act::Sleep, some(3)),
            (Act::Garbage, some(5)),
            (Act::Trespass, some(2)),
            (Act::Carve, some(10)),
            (Act::Uncarve, some(4)),
        ];
        Self {
            network,
            disks,
            pause_ms: [30, 100, 300][rng.usize(0..3)],
            away: rng.u8(0..3) == 0,
            administrators: [1, 2, 2, 3, 3, 5, 8, usize::MAX][rng.usize(0..8)],
            extents: rng.bool(),
            weights,
        }
    }

    pub(super) fn act(&self, rng: &mut fastrand::Rng) -> Act {
        let sum: u32 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut at = rng.u32(0..sum);
        for (act, weight) in &self.weights {
            if at < *weight {
                return *act;
            }
            at -= weight;
        }
        Act::Io
    }
}

fn up_to(rng: &mut fastrand::Rng, most: f64) -> f64 {
    if rng.u8(0..3) == 0 {
        0.0
    } else {
        rng.f64() * most
    }
}
