//! Some made-up stories: whole clusters with faults. `tools/sim` plays more and larger ones.

use std::time::Duration;

use rma_simulator::scenario::{Shape, run};

/// Plays seeds; a bad one says how to see it again.
#[track_caller]
fn play(seeds: std::ops::Range<u64>, hosts: usize, units: usize, devices: usize, chaos_s: u64) {
    let shape = Shape {
        hosts,
        units,
        devices,
        chaos: Duration::from_secs(chaos_s),
    };
    let mut acknowledged = 0;
    for seed in seeds {
        let outcome = run(seed, shape, false);
        acknowledged += outcome.acknowledged;
        assert!(
            outcome.is_good(),
            "tools/sim --seed {seed} --hosts {hosts} --units {units} --devices {devices} --chaos \
             {chaos_s}: {:#?} {:?}",
            outcome.violations,
            outcome.unconverged
        );
    }
    assert!(acknowledged > 0, "nothing was ever allocated");
}

#[test]
fn two_hosts_and_a_unit() {
    play(0..100, 2, 1, 2, 8);
}

#[test]
fn three_hosts_and_two_units() {
    play(1000..1100, 3, 2, 8, 8);
}

#[test]
fn six_hosts_and_three_units() {
    play(2000..2020, 6, 3, 12, 8);
}

#[test]
fn a_seed_replays_exactly() {
    let shape = Shape {
        hosts: 3,
        units: 2,
        devices: 8,
        chaos: Duration::from_secs(5),
    };
    let frames = |outcome: rma_simulator::scenario::Outcome| {
        let frames = outcome.capture.into_iter();
        frames
            .map(|f| (f.at, f.src, f.dst, f.bytes.to_vec()))
            .collect::<Vec<_>>()
    };
    assert!(frames(run(7, shape, true)) == frames(run(7, shape, true)));
}
