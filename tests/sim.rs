//! Some made-up stories: whole clusters with faults. `tools/sim` plays more and larger ones.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rma_simulator::scenario::{Outcome, Shape, run};

/// Plays seeds; a bad one says how to see it again.
#[track_caller]
fn play(seeds: std::ops::Range<u64>, hosts: usize, units: usize, devices: usize, chaos_s: u64) {
    let acknowledged = end_well(seeds, hosts, units, devices, chaos_s);
    assert!(acknowledged > 0, "nothing was ever allocated");
}

/// The same; gives how many allocations were acknowledged.
#[track_caller]
fn end_well(
    seeds: std::ops::Range<u64>,
    hosts: usize,
    units: usize,
    devices: usize,
    chaos_s: u64,
) -> u64 {
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
    acknowledged
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

const SMALL: Shape = Shape {
    hosts: 3,
    units: 2,
    devices: 8,
    chaos: Duration::from_secs(5),
};

/// Each of these has shown a mistake that is mended.
#[test]
fn stories_of_old_end_well_now() {
    for (seed, hosts, units, devices) in [
        (24, 7, 4, 7),
        (152, 4, 2, 23),
        (448, 5, 1, 12),
        (3704, 16, 1, 19),
        (4201, 5, 5, 18),
        (20514, 15, 7, 13),
        (2705, 3, 2, 8),
        (6343, 3, 2, 8),
        (4504, 5, 3, 7),
        (4084, 3, 2, 8),
        (1843, 3, 2, 8),
        (3173, 3, 2, 8),
        (6202, 3, 2, 8),
        (6312, 3, 2, 8),
        (6752, 3, 2, 8),
        (12001, 3, 2, 8),
        (13359, 3, 2, 8),
        (17187, 3, 2, 8),
        (19942, 3, 2, 8),
        (50306, 3, 2, 8),
        (70840, 3, 2, 8),
        (72834, 3, 2, 8),
        (77226, 3, 2, 8),
        (201_977, 4, 2, 8),
    ] {
        end_well(seed..seed + 1, hosts, units, devices, 15);
    }
}

#[test]
fn a_seed_replays_exactly() {
    let frames = |outcome: &Outcome| {
        let frames = outcome.capture.iter();
        frames
            .map(|f| (f.at, f.src, f.dst, f.bytes.to_vec()))
            .collect::<Vec<_>>()
    };
    for seed in 7..12 {
        let (first, second) = (run(seed, SMALL, true), run(seed, SMALL, true));
        assert!(frames(&first) == frames(&second), "seed {seed}");
        assert_eq!(first.log, second.log);
        // Without its frames being kept it is the same story.
        let unseen = run(seed, SMALL, false);
        assert_eq!((unseen.log, unseen.frames), (first.log, first.frames));
    }
}

#[test]
fn frames_of_a_story_are_a_capture_that_tshark_opens() {
    let found = Command::new("tshark").arg("--version").output().is_ok();
    if !found {
        let required = std::env::var("RMA_REQUIRE_TOOLS").is_ok_and(|v| v == "1");
        assert!(!required, "tshark is not installed; run tools/setup");
        eprintln!("skipped: tshark is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("story.pcap");
    let capture = run(7, SMALL, true).capture;
    rma_simulator::pcap::write(&path, &capture).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/wireshark/rma.lua");
    let output = Command::new("tshark")
        .env("HOME", dir.path())
        .arg("-X")
        .arg(format!("lua_script:{}", script.display()))
        .arg("-r")
        .arg(&path)
        .args(["-T", "fields", "-e", "rma.kind", "-e", "_ws.malformed"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    assert_eq!(lines.len(), capture.len());
    // Frames are captured as they are sent: each has a kind, and nothing is wrong with it.
    let odd = lines
        .iter()
        .filter(|line| line.is_empty() || line.contains('\t'));
    assert_eq!(odd.count(), 0, "{text:.2000}");
}
