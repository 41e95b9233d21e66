//! `tools/scale` at a small scale: it runs to its end and writes the figures it promises.

use std::fs;
use std::process::Command;

use serde_json::Value;

const FIGURES: [&str; 8] = [
    "boot_s",
    "change_p99_ms",
    "death_seen_s",
    "heal_s",
    "takeover_s",
    "rss_mib",
    "idle_cpu_percent",
    "revoked_writes_sent",
];

#[test]
fn a_small_cluster_is_measured_from_boot_to_idling() {
    let dir = tempfile::tempdir().expect("a directory");
    let json = dir.path().join("scale.json");
    let output = Command::new(rma_rig::bin_dir().join("rma-scale"))
        .args(["--hosts", "6", "--units", "3", "--devices", "24"])
        .args(["--changes", "10", "--rounds", "1", "--idle-seconds", "1"])
        .args(["--rows", "3000", "--writes", "5000"])
        .arg("--json")
        .arg(&json)
        .output()
        .expect("rma-scale is built (cargo build --workspace --bins)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("dies"), "progress: {said}");
    let text = fs::read_to_string(&json).expect("the figures");
    let figures: Value = serde_json::from_str(&text).expect("JSON");
    for name in FIGURES {
        let value = &figures[name];
        // Without a lease there is nothing to take over.
        let absent = name == "takeover_s" && value.is_null();
        let measured = value.as_f64().is_some_and(|v| v >= 0.0);
        assert!(measured || absent, "{name}: {value}");
    }
    assert_eq!(figures["hosts"], 6);
    assert_eq!(figures["devices"], 24);
    assert_eq!(figures["revoked_writes_applied_after"], 0, "{text}");
    assert_eq!(figures["revoked_writes_sent"], 5000, "{text}");
    assert!(
        figures["revoked_writes_before"].as_u64() > Some(0),
        "{text}"
    );
    // What holds on any machine: a death is not seen before it can be known.
    assert!(figures["death_seen_s"].as_f64() > Some(0.9), "{text}");
}

#[test]
fn mistakes_are_named() {
    for (args, word) in [
        (["--only", "everything"], "boot"),
        (["--hosts", "1"], "at least 2 hosts"),
        (["--loss-percent", "99"], "50"),
    ] {
        let output = Command::new(rma_rig::bin_dir().join("rma-scale"))
            .args(args)
            .output()
            .expect("rma-scale is built");
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(word) && said.lines().count() == 1, "{said}");
    }
}
