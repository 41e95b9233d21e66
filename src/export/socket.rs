//! NBD servers on UNIX sockets, one for each exported device, driven by the caller's loop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::block::{BlockError, BlockRequest, ExportInfo};
use crate::wire::Guid;

/// Why a device cannot be exported on a socket. The text is one line.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The device is exported already.
    #[error("{0} is exported already")]
    Exported(Guid),
    /// A socket cannot be made at the path.
    #[error("cannot serve NBD at {path}: {reason}", path = path.display())]
    Path {
        /// Where.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
}

/// The exported devices with their listeners and connections. No threads: add [`Self::as_fd`] to
/// the loop's epoll for reading, and call [`Self::poll`] when it is ready **and** after a round
/// of [`Self::complete`] before going to sleep.
#[derive(Debug)]
pub struct NbdSockets {}

impl NbdSockets {
    /// No exports.
    pub fn new() -> io::Result<Self> {
        todo!()
    }

    /// Exports `device` on a socket at `path`, mode 0600; a stale socket file is replaced.
    pub fn open(&mut self, device: Guid, path: &Path, info: ExportInfo) -> Result<(), SocketError> {
        let _ = (device, path, info);
        todo!()
    }

    /// Changes an export's facts: what is served at once, what clients are told when they next
    /// connect. Says whether the device is exported.
    pub fn update(&mut self, device: Guid, info: ExportInfo) -> bool {
        let _ = (device, info);
        todo!()
    }

    /// Ends an export: listener and connections are closed at once and the file is removed;
    /// completions that still come are ignored. Says whether the device was exported.
    pub fn close(&mut self, device: Guid) -> bool {
        let _ = device;
        todo!()
    }

    /// Accepts, reads and writes whatever can be without blocking; requests go to `sink`, each to be
    /// completed exactly once.
    pub fn poll(&mut self, sink: impl FnMut(BlockRequest)) -> io::Result<()> {
        let _ = sink;
        todo!()
    }

    /// Completes a request: the data of a read, an empty vector otherwise. It is sent by the next
    /// [`Self::poll`].
    pub fn complete(&mut self, token: u64, result: Result<Vec<u8>, BlockError>) {
        let _ = (token, result);
        todo!()
    }
}

impl AsFd for NbdSockets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        todo!()
    }
}
