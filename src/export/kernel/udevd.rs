//! Telling udev, where it runs, that rules or devices have changed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::bounded;

/// The socket on which udev is told what to do; it is there while udev runs.
pub const CONTROL: &str = "/run/udev/control";
/// It is there while udev has events to work on.
const QUEUE: &str = "/run/udev/queue";

/// Whether udev has devices to look at.
pub fn is_busy() -> bool {
    Path::new(QUEUE).exists()
}

/// Has udev read its rules again, and waits until it has. Says whether there is one to tell; the error
/// is one line.
pub fn reload() -> Result<bool, String> {
    if !Path::new(CONTROL).exists() {
        return Ok(false);
    }
    let output = bounded("udevadm", || {
        Command::new("udevadm")
            .args(["control", "--reload", "--ping", "--timeout=5"])
            .stdin(Stdio::null())
            .output()
    });
    match output {
        Ok(output) if output.status.success() => Ok(true),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or("it failed").trim().to_owned();
            Err(format!("udev does not read its rules again: {said}"))
        }
        Err(e) => Err(format!("udev does not read its rules again: {e}")),
    }
}

/// Has udev look at a device and its partitions again.
pub fn look_again(kernel_name: &str) {
    let disk = Path::new("/sys/class/block").join(kernel_name);
    let mut places = vec![disk.clone()];
    places.extend(super::usage::partitions(&disk));
    for place in places {
        // One that has gone has nothing to look at.
        let _ = fs::write(place.join("uevent"), "change");
    }
}
