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
    Narrow,
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
    Apply,
    Acquire,
    HandBack,
    CutHolder,
    Forget,
    LoseVote,
    LoseRegisters,
    Restore,
    /// A host that has missed a change meets its unit alone, after that has lost its registers.
    RestoreOld,
    Retire,
}

/// A story's mix.
#[derive(Debug)]
pub(super) struct Mix {
    pub(super) network: Faults,
    pub(super) disks: DiskFaults,
    /// Longest pause between two things that happen.
    pub(super) pause_ms: u64,
    /// Hosts and units have two NICs.
    pub(super) two_nics: bool,
    /// Some hosts are away all the time.
    pub(super) away: bool,
    /// At so many hosts there are administrators.
    pub(super) administrators: usize,
    /// Hosts restore lost registers by themselves.
    pub(super) auto_restore: bool,
    /// How long tombstones are kept, where that is short enough to see them go.
    pub(super) purge_after: Option<Duration>,
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
        // A host that is no member is not asked for what it alone may know: either, not both.
        let (loses_registers, retires) = match rng.u8(0..8) {
            0 | 1 => (true, false),
            2 | 3 => (false, true),
            _ => (false, false),
        };
        // What the lease promises is weaker where voters lose what they have promised.
        let is_forgetful = rng.u8(0..6) == 0;
        let auto_restore = rng.bool();
        let purge_after = [None, None, Some(Duration::from_secs(rng.u64(1..6)))][rng.usize(0..3)];
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
            (Act::Narrow, some(3)),
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
            (Act::Apply, some(6)),
            (Act::Acquire, some(4)),
            (Act::HandBack, 5),
            (Act::CutHolder, some(3)),
            (Act::Forget, some(3)),
            (Act::LoseVote, if is_forgetful { some(3) } else { 0 }),
            (
                Act::LoseRegisters,
                if loses_registers { some(4) } else { 0 },
            ),
            (Act::Restore, if loses_registers { 6 } else { 0 }),
            (Act::RestoreOld, if loses_registers { 4 } else { 0 }),
            (Act::Retire, if retires { some(5) } else { 0 }),
        ];
        Self {
            network,
            disks,
            pause_ms: [30, 100, 300][rng.usize(0..3)],
            two_nics: rng.bool(),
            away: rng.u8(0..3) == 0,
            administrators: [1, 2, 2, 3, 3, 5, 8, usize::MAX][rng.usize(0..8)],
            extents: rng.bool(),
            auto_restore,
            purge_after,
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
