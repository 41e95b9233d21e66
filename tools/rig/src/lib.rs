//! The test rig: network namespaces that stand for hosts, units and fabric services, joined by a
//! software switch of our own that loses, delays, reorders, duplicates, corrupts, partitions and
//! captures.
//!
//! Everything happens in namespaces that the process makes for itself, as root or, with user
//! namespaces, as anybody. Threads cannot leave a user namespace together, so [`enter`] must be the
//! first thing in `main`; a test file therefore brings its own `main`, made by [`test_main!`], and
//! is declared in `Cargo.toml` with `harness = false`. It takes the usual arguments of a test binary.
//!
//! ```no_run
//! use rma_rig::{Faults, NodeOptions, Rig, TestResult, wait_until};
//! use std::{process::Command, time::Duration};
//!
//! fn a_daemon_starts_on_a_bad_wire() -> TestResult {
//!     let rig = Rig::new()?;
//!     rig.switch().set_faults(Faults { loss_ppm: 10_000, ..Faults::default() })?;
//!     let host = rig.add_node("h108", NodeOptions::default())?;
//!     let daemon = host.spawn(Command::new("rmad").arg("--interface=eth0"))?;
//!     wait_until(Duration::from_secs(5), "the daemon to say it is ready", || {
//!         daemon.log().contains("ready")
//!     })?;
//!     daemon.terminate()?;
//!     assert!(daemon.wait(Duration::from_secs(5))?.success());
//!     Ok(())
//! }
//!
//! rma_rig::test_main!(a_daemon_starts_on_a_bad_wire);
//! ```
//!
//! Dropping the [`Rig`] kills what it started and removes what it made. When a test fails, the ends
//! of its processes' logs are shown; with `RMA_RIG_KEEP=1` the directory with all of them stays.

mod cluster;
mod daemons;
mod directory;
mod harness;
pub mod intruder;
mod isolate;
mod namespace;
mod process;
mod rig;
mod switch;
mod wait;
mod watch;

pub use cluster::{Cluster, Plan, Prepared};
pub use daemons::{Daemon, Program, bin_dir, wait_equal_tables};
pub use harness::{Test, TestResult, run_tests};
pub use isolate::enter;
pub use namespace::Namespace;
pub use process::{Output, Process};
pub use rig::{Node, NodeOptions, Rig, station};
pub use switch::{Capture, Faults, PortCounters, Switch};
pub use wait::{pause, wait_until};
pub use watch::{Said, Watchers};

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why the rig cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RigError {
    /// The process has more than one thread already.
    #[error("rma_rig::enter() must come first in main, before any thread is started")]
    Threads,
    /// Neither root's namespaces nor a user namespace can be had.
    #[error(
        "cannot make network namespaces: run as root, or allow user namespaces \
         (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)"
    )]
    Isolation(#[source] io::Error),
    /// `ip` refused something.
    #[error("ip: {message}\nfrom this:\n{batch}")]
    Ip {
        /// What it printed.
        message: String,
        /// What it was told to do.
        batch: String,
    },
    /// The operating system refused something.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: String,
        /// What the system said.
        source: io::Error,
    },
    /// Something awaited did not happen.
    #[error("waited {after:?} in vain for {what}")]
    Timeout {
        /// What was awaited.
        what: String,
        /// For how long.
        after: Duration,
    },
    /// A command of `rma` failed.
    #[error("{command} failed: {message}")]
    Refused {
        /// The command.
        command: String,
        /// What it printed.
        message: String,
    },
    /// A capture file could not be written.
    #[error("cannot write the capture {path}")]
    Capture {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pcap_file::PcapError,
    },
    /// The switch's thread has ended.
    #[error("the switch has stopped")]
    SwitchStopped,
}

/// A shorthand for [`RigError::System`].
fn system<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> RigError {
    let action = action.into();
    move |source| RigError::System {
        action,
        source: source.into(),
    }
}
