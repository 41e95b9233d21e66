//! Loading a driver's module, where it is not there.

use std::io;
use std::process::{Command, Stdio};

use super::bounded;

/// Has `modprobe` load `module`. The error is one line.
pub fn load(module: &'static str) -> Result<(), String> {
    let output = bounded("modprobe", move || {
        // Daemons do not always have an sbin in their PATH.
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for program in ["modprobe", "/sbin/modprobe", "/usr/sbin/modprobe"] {
            match Command::new(program)
                .args(["-b", module])
                .stdin(Stdio::null())
                .output()
            {
                Err(e) if e.kind() == io::ErrorKind::NotFound => last = e,
                other => return other,
            }
        }
        Err(last)
    });
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or("it failed").trim().to_owned();
            Err(format!("modprobe {module}: {said}"))
        }
        Err(e) => Err(format!("modprobe {module}: {e}")),
    }
}
