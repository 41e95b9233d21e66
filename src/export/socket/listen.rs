//! Socket files: made for us alone, never in the way of another process, removed when they are ours.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};

use super::SocketError;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// A listener and its file, which goes with it.
#[derive(Debug)]
pub(super) struct Listening {
    pub(super) path: PathBuf,
    /// Device and inode of the socket file that we made.
    file: (u64, u64),
    pub(super) listener: UnixListener,
}

impl Listening {
    /// Listens at `path`; a stale socket file is replaced.
    pub(super) fn open(path: &Path) -> Result<Self, SocketError> {
        remove_stale(path)?;
        let failed = |reason| SocketError::Io {
            path: path.to_owned(),
            reason,
        };
        let listener = listen(path).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            file: file_identity(path).map_err(failed)?,
            listener,
        })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Only ours: another process may have put its own socket there meanwhile.
        if file_identity(&self.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

pub(super) fn spare() -> io::Result<File> {
    File::open("/dev/null")
}

fn file_identity(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// Removes a socket file that nobody listens at.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |reason| SocketError::Io {
        path: path.to_owned(),
        reason,
    };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match is_listening(path) {
        Ok(true) => Err(SocketError::InUse(path.to_owned())),
        Ok(false) => fs::remove_file(path).map_err(failed),
        Err(reason) => Err(failed(reason)),
    }
}

fn is_listening(path: &Path) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        // Its backlog is full.
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(e) if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    // Before the bind: the file then never has wider permissions than these.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
