//! `tools/vm`: owned devices as block devices of a real kernel with a real udev, in guests under QEMU.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Our packages, of the programs that the tests use, each in two versions.
fn make_packages(directory: &Path) {
    for version in ["0.1.0-1", "0.1.0-2"] {
        let output = Command::new("tools/package")
            .args(["--version", version, "--from"])
            .arg(rma_rig::bin_dir())
            .arg("--out")
            .arg(directory)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("tools/package");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
}

/// A handful that together meet both drivers, udev, a filesystem, `kill -9`, a reallocation, and our
/// package under systemd.
const SCENARIOS: [&str; 4] = ["disk-ublk", "kill-nbd", "reallocate", "shutdown"];

fn rma_vm() -> Command {
    Command::new(rma_rig::bin_dir().join("rma-vm"))
}

/// What the guests need and this machine does not have.
fn missing() -> Option<String> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let kernel = target.join("vm/kernel/boot");
    let there = fs::read_dir(&kernel).is_ok_and(|mut entries| entries.next().is_some());
    if !there {
        return Some(format!("no kernel in {}", kernel.display()));
    }
    let system = target.join("vm/system/root.img");
    if !system.exists() {
        return Some(format!("no {}", system.display()));
    }
    let runs = |program: &str| Command::new(program).arg("--version").output().is_ok();
    let program = ["qemu-system-x86_64", "fio", "setpriv"]
        .into_iter()
        .find(|program| !runs(program))?;
    Some(format!("{program} is not installed"))
}

#[test]
fn owned_devices_are_disks_of_a_real_kernel() {
    if let Some(why) = missing() {
        // Not every distribution has such a kernel; CI's does.
        let required = std::env::var("RMA_REQUIRE_VM").as_deref() == Ok("1");
        assert!(!required, "skipped: {why}; run tools/setup");
        eprintln!("skipped: {why}");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let json = dir.path().join("vm.json");
    let packages = dir.path().join("packages");
    make_packages(&packages);
    let output = rma_vm()
        .args(["--kills", "3", "--only", &SCENARIOS.join(",")])
        .arg("--packages")
        .arg(&packages)
        .arg("--json")
        .arg(&json)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("rma-vm is built (cargo build --workspace --bins)");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    let text = fs::read_to_string(&json).expect("the results");
    let results: Value = serde_json::from_str(&text).expect("JSON");
    let results = results["scenarios"].as_array().expect("a list");
    assert_eq!(results.len(), SCENARIOS.len(), "{text}");
    for name in SCENARIOS {
        let result = results.iter().find(|result| result["name"] == name);
        let result = result.unwrap_or_else(|| panic!("{name} was not run: {text}"));
        assert_eq!(result["pass"], true, "{text}");
        assert!(result["seconds"].as_f64() > Some(0.0), "{text}");
    }
}

#[test]
fn scenarios_are_listed_and_a_mistake_is_named() {
    let output = rma_vm().arg("--list").output().expect("rma-vm is built");
    let said = String::from_utf8_lossy(&output.stdout);
    for name in SCENARIOS {
        assert!(said.lines().any(|line| line.starts_with(name)), "{said}");
    }
    let output = rma_vm()
        .args(["--only", "no-such"])
        .output()
        .expect("rma-vm is built");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("no-such") && said.lines().count() == 1,
        "{said}"
    );
}
