//! The rig's directory: gone with the rig, also when the rig's process is killed.

use crate::{RigError, system};
use std::env;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use tempfile::TempDir;

/// Waits until its input ends, which it does with the process at the other end of the pipe, and removes
/// a directory, to which processes that are being killed as well may still be writing.
const SWEEP: &str = r#"read -r _
for _ in 1 2 3 4 5 6 7 8 9 10; do rm -rf -- "$0" 2>/dev/null && break; sleep 0.1; done"#;

/// A temporary directory.
#[derive(Debug)]
pub(crate) struct Directory {
    /// `None` once it is gone or kept.
    made: Option<TempDir>,
    /// `None` where the user wants to look at what is left.
    sweeper: Option<Child>,
}

impl Directory {
    /// A directory below `parent`, or where temporary files go.
    pub(crate) fn new(parent: Option<&Path>) -> Result<Self, RigError> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("rma-rig-");
        let made = match parent {
            Some(parent) => builder.tempdir_in(parent),
            None => builder.tempdir(),
        };
        let made = made.map_err(system("make a temporary directory"))?;
        let keep = env::var_os("RMA_RIG_KEEP").is_some_and(|keep| keep != "0");
        let sweeper = if keep {
            None
        } else {
            Some(sweeper(made.path())?)
        };
        Ok(Self {
            made: Some(made),
            sweeper,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.made.as_ref().expect("there until the drop").path()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let made = self.made.take();
        if let Some(mut sweeper) = self.sweeper.take() {
            drop(made);
            let _ = sweeper.kill();
            let _ = sweeper.wait();
        } else if let Some(made) = made {
            let path = made.keep();
            let thread = thread::current();
            eprintln!(
                "rig: kept {} ({})",
                path.display(),
                thread.name().unwrap_or("main")
            );
        }
    }
}

fn sweeper(directory: &Path) -> Result<Child, RigError> {
    let mut shell = Command::new("sh");
    shell.args(["-c", SWEEP]).arg(directory);
    shell
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // What interrupts this process at its terminal does not interrupt the sweeper.
    shell.process_group(0);
    shell.spawn().map_err(system("run sh"))
}
