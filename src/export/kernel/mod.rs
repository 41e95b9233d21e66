//! Owned devices as block devices of the running kernel: what makes and removes them, and what udev
//! and the rest of the system know of them. Everything here may block, none of it for ever.
//!
//! | module | owns |
//! |---|---|
//! | [`nbd`] | the kernel's nbd driver: connect, reconnect, disconnect over generic netlink |
//! | [`ublk`] | the kernel's ublk driver: add, start, take over, remove through io_uring |
//! | [`uring`] | commands to drivers through io_uring |
//! | [`modules`] | loading a driver's module |
//! | [`udevd`] | telling udev that rules or devices have changed |
//! | [`usage`] | who uses a block device: mounts, swap, other devices, processes |
//! | [`flusher`] | telling the kernel which threads its write-back waits for |

pub mod flusher;
pub mod modules;
pub mod nbd;
mod netlink;
pub mod ublk;
pub mod udevd;
pub mod uring;
pub mod usage;

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long the kernel may take for one request before the caller goes on without its answer.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Runs `work`, which may block, in a thread of its own and waits for at most [`PATIENCE`]. After
/// that the thread is left alone; whether `work` ends and how is then not known.
pub fn bounded<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (done, result) = mpsc::channel();
    thread::Builder::new()
        .name("kernel".into())
        .spawn(move || {
            let _ = done.send(work());
        })?;
    result.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        let text = format!("{what}: the kernel has not answered in {PATIENCE:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    })
}
