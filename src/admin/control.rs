//! The control socket of a daemon: JSON lines over a UNIX socket, root and the daemon's own user only.
//!
//! No threads: [`ControlServer`] is an epoll set that nests into the daemon's own loop.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::rma::request::Caller;

/// The most connections at a time; more are closed at once.
pub const MAX_CONNECTIONS: usize = 64;
/// The longest request line, bytes.
pub const MAX_REQUEST_BYTES: usize = 1 << 20;
/// The most bytes waiting for a client that does not read; beyond them it is disconnected.
pub const MAX_BACKLOG_BYTES: usize = 64 << 20;

const LISTENER: u64 = 0;

/// Names a connection of a [`ControlServer`]; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ControlId(u64);

impl ControlId {
    /// The connection as a number for tokens of other parts.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The connection of a token that [`ControlId::as_u64`] gave.
    pub const fn from_u64(token: u64) -> Self {
        Self(token)
    }
}

/// What a connection did.
#[derive(Debug, PartialEq, Eq)]
pub enum ControlEvent {
    /// A whole line, without its end.
    Line(ControlId, String),
    /// The client has gone.
    Closed(ControlId),
}

/// The process at the other end of a connection, as the kernel vouches for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerProcess {
    /// Its number.
    pub process: u32,
    /// Number of the user that it runs as.
    pub user: u32,
}

impl PeerProcess {
    /// Who asks: the kernel names the process, the system's user database the user.
    pub fn caller(&self) -> Caller {
        let known = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(self.user));
        let user = match known {
            Ok(Some(user)) => user.name,
            _ => self.user.to_string(),
        };
        Caller {
            process: self.process,
            user,
        }
    }
}

struct Connection {
    stream: UnixStream,
    peer: PeerProcess,
    input: Vec<u8>,
    output: Vec<u8>,
    close_after: bool,
}

/// Listens on a UNIX socket for administrators' requests.
pub struct ControlServer {
    path: PathBuf,
    listener: UnixListener,
    epoll: Epoll,
    connections: BTreeMap<ControlId, Connection>,
    next: u64,
}

/// The control socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another daemon answers on it.
    #[error("{0}: another daemon already listens here; stop it or choose another run directory")]
    InUse(PathBuf),
    /// It cannot be made.
    #[error("{path}: cannot open the control socket: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ControlServer {
    /// Listens on `path` with mode 0600; a stale socket file is replaced, a live one is an error.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        let fail = |source| ControlError::Io {
            path: path.to_owned(),
            source,
        };
        if UnixStream::connect(path).is_ok() {
            return Err(ControlError::InUse(path.to_owned()));
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(fail(e)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(fail)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| fail(e.into()))?;
        epoll
            .add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))
            .map_err(|e| fail(e.into()))?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            epoll,
            connections: BTreeMap::new(),
            next: LISTENER + 1,
        })
    }

    /// Handles whatever is ready, without waiting.
    pub fn poll(&mut self) -> Vec<ControlEvent> {
        let mut out = Vec::new();
        let mut events = [EpollEvent::empty(); 32];
        let count = self
            .epoll
            .wait(&mut events, EpollTimeout::ZERO)
            .unwrap_or(0);
        for event in &events[..count] {
            if event.data() == LISTENER {
                self.accept();
                continue;
            }
            let id = ControlId(event.data());
            let alive = self.read(id, &mut out) && self.flush(id);
            if !alive {
                self.connections.remove(&id);
                out.push(ControlEvent::Closed(id));
            }
        }
        out
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let peer = permitted(&stream).filter(|_| self.connections.len() < MAX_CONNECTIONS);
            let Some(peer) = peer else {
                log::warn!("control socket: connection refused (not permitted, or too many)");
                continue;
            };
            let id = ControlId(self.next);
            self.next += 1;
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
            if stream.set_nonblocking(true).is_ok()
                && self
                    .epoll
                    .add(&stream, EpollEvent::new(flags, id.0))
                    .is_ok()
            {
                let connection = Connection {
                    stream,
                    peer,
                    input: Vec::new(),
                    output: Vec::new(),
                    close_after: false,
                };
                self.connections.insert(id, connection);
            }
        }
    }

    /// Who is at the other end of a connection that is still there.
    pub fn peer(&self, id: ControlId) -> Option<PeerProcess> {
        self.connections.get(&id).map(|connection| connection.peer)
    }

    /// Reads what has come; `false` when the connection is over.
    fn read(&mut self, id: ControlId, out: &mut Vec<ControlEvent>) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else {
            return false;
        };
        let mut buffer = [0; 16_384];
        loop {
            match connection.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(n) => connection.input.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
            while let Some(end) = connection.input.iter().position(|b| *b == b'\n') {
                let rest = connection.input.split_off(end + 1);
                let line = std::mem::replace(&mut connection.input, rest);
                match String::from_utf8(line) {
                    Ok(line) => out.push(ControlEvent::Line(id, line.trim_end().to_owned())),
                    Err(_) => return false,
                }
            }
            if connection.input.len() > MAX_REQUEST_BYTES {
                return false;
            }
        }
        true
    }

    /// Sends a line; a client that has gone or does not read is disconnected silently.
    pub fn send(&mut self, id: ControlId, line: &str) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.output.extend_from_slice(line.as_bytes());
        connection.output.push(b'\n');
        if !self.flush(id) {
            self.connections.remove(&id);
        }
    }

    /// Sends a line and closes the connection when it has left.
    pub fn finish(&mut self, id: ControlId, line: &str) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.close_after = true;
            self.send(id, line);
        }
    }

    fn flush(&mut self, id: ControlId) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else {
            return false;
        };
        while !connection.output.is_empty() {
            match connection.stream.write(&connection.output) {
                Ok(0) => return false,
                Ok(n) => {
                    connection.output.drain(..n);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        if connection.output.is_empty() && connection.close_after {
            return false;
        }
        let mut flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        if !connection.output.is_empty() {
            flags |= EpollFlags::EPOLLOUT;
        }
        let mut event = EpollEvent::new(flags, id.0);
        connection.output.len() <= MAX_BACKLOG_BYTES
            && self.epoll.modify(&connection.stream, &mut event).is_ok()
    }
}

impl AsFd for ControlServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Root and the daemon's own user may ask.
fn permitted(stream: &UnixStream) -> Option<PeerProcess> {
    let peer = getsockopt(stream, PeerCredentials).ok()?;
    let own = nix::unistd::geteuid().as_raw();
    (peer.uid() == 0 || peer.uid() == own).then(|| PeerProcess {
        process: u32::try_from(peer.pid()).unwrap_or(0),
        user: peer.uid(),
    })
}

/// A daemon cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error(
        "{path}: cannot reach the daemon ({source}); is it running, and is this its control socket (--socket)?"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The daemon went away before it answered.
    #[error("{0}: the daemon closed the connection before it answered; look at its log")]
    Closed(PathBuf),
    /// Reading or writing failed, or took too long.
    #[error("{path}: no answer from the daemon: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The asking end of a control socket: blocking, a line at a time.
pub struct ControlClient {
    path: PathBuf,
    stream: UnixStream,
    input: Vec<u8>,
}

impl ControlClient {
    /// Connects; each answer is awaited for at most `patience` (`None`: for ever).
    pub fn connect(path: &Path, patience: Option<Duration>) -> Result<Self, AskError> {
        let fail = |source| AskError::Connect {
            path: path.to_owned(),
            source,
        };
        let stream = UnixStream::connect(path).map_err(fail)?;
        stream.set_read_timeout(patience).map_err(fail)?;
        Ok(Self {
            path: path.to_owned(),
            stream,
            input: Vec::new(),
        })
    }

    /// Sends one line.
    pub fn send(&mut self, line: &str) -> Result<(), AskError> {
        let bytes = format!("{line}\n");
        self.stream
            .write_all(bytes.as_bytes())
            .map_err(|source| AskError::Io {
                path: self.path.clone(),
                source,
            })
    }

    /// Waits for one line.
    pub fn receive(&mut self) -> Result<String, AskError> {
        let mut buffer = [0; 16_384];
        let mut searched = 0;
        loop {
            if let Some(end) = self.input[searched..].iter().position(|b| *b == b'\n') {
                let rest = self.input.split_off(searched + end + 1);
                let line = std::mem::replace(&mut self.input, rest);
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            searched = self.input.len();
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(AskError::Closed(self.path.clone())),
                Ok(n) => self.input.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(AskError::Io {
                        path: self.path.clone(),
                        source,
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn await_line(server: &mut ControlServer) -> (ControlId, String) {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while std::time::Instant::now() < deadline {
            for event in server.poll() {
                if let ControlEvent::Line(id, line) = event {
                    return (id, line);
                }
            }
            std::thread::yield_now();
        }
        panic!("no line within the deadline");
    }

    #[test]
    fn a_line_is_answered_and_a_live_socket_is_not_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        std::fs::write(&path, "").unwrap();
        let mut server = ControlServer::bind(&path).unwrap();
        assert!(matches!(
            ControlServer::bind(&path),
            Err(ControlError::InUse(_))
        ));
        let mut client = ControlClient::connect(&path, Some(Duration::from_secs(10))).unwrap();
        client.send("hello").unwrap();
        let (id, line) = await_line(&mut server);
        assert_eq!(line, "hello");
        let peer = PeerProcess {
            process: std::process::id(),
            user: nix::unistd::geteuid().as_raw(),
        };
        assert_eq!(server.peer(id), Some(peer));
        let long = "x".repeat(1 << 20);
        let reader = std::thread::spawn(move || client.receive());
        server.finish(id, &long);
        while server.connections.contains_key(&id) {
            server.poll();
        }
        assert_eq!(reader.join().unwrap().unwrap(), long);
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn an_endless_line_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let mut server = ControlServer::bind(&path).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        let writer =
            std::thread::spawn(move || client.write_all(&vec![b'x'; 4 * MAX_REQUEST_BYTES]));
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let closed = |server: &mut ControlServer| {
            server
                .poll()
                .iter()
                .any(|e| matches!(e, ControlEvent::Closed(_)))
        };
        while !closed(&mut server) {
            assert!(std::time::Instant::now() < deadline, "still connected");
        }
        assert!(writer.join().unwrap().is_err());
    }
}
