//! What a bad wire does to frames, drawn from a seed. Pure.

use fastrand::Rng;
use std::time::Duration;

/// Faults of the whole switch or of one node's ports. Rates are parts per million of the frames, and
/// each frame to each port is drawn for on its own. The default is a good wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// Frames that vanish.
    pub loss_ppm: u32,
    /// Frames of which a copy follows, up to [`Self::reorder_within`] later.
    pub duplicate_ppm: u32,
    /// Frames that are held back for up to [`Self::reorder_within`], so that later ones overtake them.
    pub reorder_ppm: u32,
    /// Frames of which one to four bits behind the Ethernet header are turned over.
    pub corrupt_ppm: u32,
    /// How long reordered frames and copies are held back at most.
    pub reorder_within: Duration,
    /// How long every frame takes.
    pub delay: Duration,
    /// How much longer a frame may take, drawn evenly; frames may overtake each other by it.
    pub jitter: Duration,
    /// Frames with more octets than this behind the Ethernet header vanish, as where a path has a
    /// smaller MTU than its ends.
    pub black_hole_above: Option<u16>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            loss_ppm: 0,
            duplicate_ppm: 0,
            reorder_ppm: 0,
            corrupt_ppm: 0,
            reorder_within: Duration::from_millis(1),
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            black_hole_above: None,
        }
    }
}

impl Faults {
    /// Whether frames pass unchanged and at once.
    pub fn is_none(&self) -> bool {
        let Self {
            loss_ppm,
            duplicate_ppm,
            reorder_ppm,
            corrupt_ppm,
            ..
        } = self;
        loss_ppm | duplicate_ppm | reorder_ppm | corrupt_ppm == 0
            && self.delay.is_zero()
            && self.jitter.is_zero()
            && self.black_hole_above.is_none()
    }

    /// Draws what happens to a frame with `payload_len` octets behind the Ethernet header, on top of
    /// what is drawn already.
    pub(super) fn draw(&self, rng: &mut Rng, payload_len: usize, verdict: &mut Verdict) {
        let mut happens = |ppm: u32| ppm > 0 && rng.u32(0..1_000_000) < ppm;
        verdict.lost |= happens(self.loss_ppm);
        verdict.corrupted |= happens(self.corrupt_ppm);
        let duplicated = happens(self.duplicate_ppm);
        let reordered = happens(self.reorder_ppm);
        verdict.black_holed |= self
            .black_hole_above
            .is_some_and(|limit| payload_len > usize::from(limit));
        verdict.delay += self.delay + up_to(rng, self.jitter);
        if reordered {
            verdict.reordered = true;
            verdict.delay += up_to(rng, self.reorder_within);
        }
        if duplicated {
            verdict.copy_after = Some(up_to(rng, self.reorder_within));
        }
    }
}

/// What happens to one frame on its way to one port.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) lost: bool,
    pub(super) black_holed: bool,
    pub(super) corrupted: bool,
    pub(super) reordered: bool,
    /// How much later it arrives.
    pub(super) delay: Duration,
    /// How much later than the frame a copy of it arrives.
    pub(super) copy_after: Option<Duration>,
}

/// Turns one to four bits behind the Ethernet header over.
pub(super) fn corrupt(rng: &mut Rng, frame: &mut [u8], header_len: usize) {
    let Some(payload) = frame
        .get_mut(header_len..)
        .filter(|payload| !payload.is_empty())
    else {
        return;
    };
    for _ in 0..rng.u32(1..=4) {
        let index = rng.usize(0..payload.len());
        payload[index] ^= 1 << rng.u32(0..8);
    }
}

fn up_to(rng: &mut Rng, most: Duration) -> Duration {
    match u64::try_from(most.as_nanos()).unwrap_or(u64::MAX) {
        0 => Duration::ZERO,
        most => Duration::from_nanos(rng.u64(0..=most)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw_many(faults: Faults, seed: u64) -> Vec<Verdict> {
        let mut rng = Rng::with_seed(seed);
        let draw = |_| {
            let mut verdict = Verdict::default();
            faults.draw(&mut rng, 1500, &mut verdict);
            verdict
        };
        (0..100_000).map(draw).collect()
    }

    #[test]
    fn a_good_wire_does_nothing() {
        assert!(Faults::default().is_none());
        assert!(
            draw_many(Faults::default(), 1)
                .iter()
                .all(|v| *v == Verdict::default())
        );
    }

    #[test]
    fn every_fault_happens_at_its_own_rate_and_again_with_the_same_seed() {
        let faults = Faults {
            loss_ppm: 10_000,
            duplicate_ppm: 20_000,
            reorder_ppm: 30_000,
            corrupt_ppm: 40_000,
            ..Faults::default()
        };
        assert!(!faults.is_none());
        let verdicts = draw_many(faults, 7);
        let count = |of: fn(&Verdict) -> bool| verdicts.iter().filter(|v| of(v)).count();
        for (counted, expected) in [
            (count(|v| v.lost), 1000),
            (count(|v| v.copy_after.is_some()), 2000),
            (count(|v| v.reordered), 3000),
            (count(|v| v.corrupted), 4000),
        ] {
            assert!(
                counted.abs_diff(expected) < expected / 5,
                "{counted} of {expected}"
            );
        }
        assert_eq!(verdicts, draw_many(faults, 7));
        assert_ne!(verdicts, draw_many(faults, 8));
    }

    #[test]
    fn delays_stay_within_their_bounds() {
        let (delay, jitter) = (Duration::from_millis(2), Duration::from_millis(3));
        let faults = Faults {
            delay,
            jitter,
            ..Faults::default()
        };
        let delays = draw_many(faults, 1).into_iter().map(|v| v.delay);
        assert!(delays.clone().all(|d| d >= delay && d <= delay + jitter));
        assert!(delays.max() > Some(delay + jitter * 9 / 10));
    }

    #[test]
    fn only_long_frames_fall_into_a_black_hole() {
        let faults = Faults {
            black_hole_above: Some(1499),
            ..Faults::default()
        };
        assert!(draw_many(faults, 1).iter().all(|v| v.black_holed));
        let faults = Faults {
            black_hole_above: Some(1500),
            ..Faults::default()
        };
        assert!(!draw_many(faults, 1).iter().any(|v| v.black_holed));
    }

    #[test]
    fn corruption_changes_the_payload_and_spares_the_header() {
        let mut rng = Rng::with_seed(3);
        for len in 15..40 {
            let mut frame = vec![0; len];
            // Two turned bits may be the same one; it must not happen every time.
            let changed = (0..8).any(|_| {
                corrupt(&mut rng, &mut frame, 14);
                frame.iter().any(|octet| *octet != 0)
            });
            assert!(changed);
            assert_eq!(frame[..14], [0; 14]);
        }
        let mut header_only = vec![0; 14];
        corrupt(&mut rng, &mut header_only, 14);
        assert_eq!(header_only, [0; 14]);
    }
}
