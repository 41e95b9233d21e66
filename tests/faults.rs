//! `tools/faults` for seconds: it runs to its end, what it says of I/O holds, and it writes the figures it promises.

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

fn faults(args: &[&str]) -> Output {
    Command::new(rma_rig::bin_dir().join("rma-faults"))
        .args(args)
        .output()
        .expect("rma-faults is built (cargo build --workspace --bins)")
}

/// Runs one step, and gives its figures.
fn figures(args: &[&str]) -> (Output, Value) {
    let dir = tempfile::tempdir().expect("a directory");
    let json = dir.path().join("faults.json");
    let path = json.to_str().expect("a path that is text");
    let output = faults(&[args, &["--json", path]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    let text = fs::read_to_string(&json).unwrap_or_else(|e| panic!("no figures, {e}: {said}"));
    let value = serde_json::from_str(&text).expect("JSON");
    (output, value)
}

#[test]
fn nothing_is_lost_while_everything_fails_for_some_seconds() {
    let (output, figures) = figures(&["--only", "soak", "--minutes", "0.2", "--seed", "7"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let soak = &figures["soak"];
    assert_eq!(soak["failed_jobs"], 0, "{said}");
    assert_eq!(soak["seconds"], 12);
    assert!(soak["ios"].as_u64() > Some(1000), "{soak}");
    let struck = soak["struck"].as_object().expect("what failed");
    assert!(struck.len() > 1, "{soak}");
}

#[test]
fn what_many_hosts_get_is_measured_in_both_ways() {
    let (output, figures) = figures(&["--only", "fair", "--seconds", "3", "--rounds", "1"]);
    let said = String::from_utf8_lossy(&output.stderr);
    // How much is kept differs from machine to machine, and is a bar of the tool's, not of this test.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{said}");
    let rows = figures["fair"].as_array().expect("rows");
    assert_eq!(rows.len(), 4, "{figures}");
    for row in rows {
        let at_least =
            |name: &str, least| assert!(row[name].as_f64() > Some(least), "{name} of {row}");
        at_least("one_iops", 1000.0);
        at_least("kept", 0.1);
        at_least("jain_hosts", 0.5);
        at_least("jain_devices", 0.5);
    }
    let hosts: Vec<&Value> = rows.iter().map(|row| &row["hosts"]).collect();
    assert_eq!(
        hosts,
        ["processes", "processes", "one thread", "one thread"]
    );
}

#[test]
fn mistakes_are_named() {
    for (args, word) in [
        (["--only", "everything"], "soak"),
        (["--minutes", "0"], "more than 0"),
        (["--seed", "x"], "--seed"),
    ] {
        let output = faults(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(word), "{args:?}: {said}");
    }
}
