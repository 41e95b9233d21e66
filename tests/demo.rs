//! The demonstration passes, quickly, and its capture decodes without a fault.

use std::error::Error;
use std::process::Command;
use std::time::{Duration, Instant};

use rma_rig::bin_dir;

#[test]
fn the_demonstration_passes_and_its_capture_is_clean() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let pcap = dir.path().join("demo.pcap");
    let started = Instant::now();
    let output = Command::new(bin_dir().join("rma-demo"))
        .arg("--capture")
        .arg(&pcap)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        started.elapsed() < Duration::from_secs(60),
        "it took {:?}",
        started.elapsed()
    );
    assert!(text.contains("Everything above was checked."), "{text}");

    let output = Command::new(bin_dir().join("rma"))
        .arg("capture")
        .arg(&pcap)
        .output()?;
    assert!(output.status.success(), "rma capture finds faults");
    let check = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/wireshark/check");
    let output = Command::new(check).arg(&pcap).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
