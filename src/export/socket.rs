//! NBD servers on UNIX sockets, one for each exported device, driven by the caller's loop.
//!
//! It owns listeners and connections and moves bytes between them and [`Connection`]; it knows no
//! NBD. Nothing blocks and nothing is waited for: readiness comes from one epoll descriptor that the
//! caller nests into its own.
//!
//! A client that goes away leaves writes behind that are still being executed. Until they are
//! completed nothing more is taken from any client of the device: otherwise one of them could be
//! applied after, and undo, a newer write that was acknowledged (I3).

mod listen;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, sendmsg};

use self::listen::{Listening, spare};
use super::block::{BlockError, BlockRequest, ExportInfo};
use super::nbd::Connection;
use crate::wire::Guid;
use crate::wire::row::is_block_size;

/// The most connections of one export; beyond it the oldest that has not finished its negotiation
/// makes room, or the newcomer is turned away.
pub const MAX_CONNECTIONS: usize = 64;

/// Readiness events handled by one poll; more come with the next.
const MAX_EVENTS: usize = 64;
/// Reads from one connection in one poll, so that none starves the others.
const MAX_READS: usize = 16;
/// Slices handed to one send.
const MAX_SLICES: usize = 64;
/// Bit of an epoll word that tells a listener's number from a connection's.
const LISTENER: u64 = 1 << 63;

/// Why a device cannot be exported on a socket. The text is one line.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The device is exported already.
    #[error("{0} is exported already")]
    Exported(Guid),
    /// The device's block size is none that NBD can carry.
    #[error("a device with blocks of {0} bytes cannot be exported")]
    BlockSize(u32),
    /// Another process listens at the path.
    #[error("cannot serve NBD at {path}: another process listens there", path = .0.display())]
    InUse(PathBuf),
    /// What is at the path is not a socket.
    #[error("cannot serve NBD at {path}: the file there is not a socket", path = .0.display())]
    NotASocket(PathBuf),
    /// A socket cannot be made at the path.
    #[error("cannot serve NBD at {path}: {reason}", path = path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        reason: io::Error,
    },
}

/// An exported device, for people to look at.
#[derive(Debug, Clone, Copy)]
pub struct ExportStatus<'a> {
    /// The device.
    pub device: Guid,
    /// Where clients connect.
    pub path: &'a Path,
    /// What is served.
    pub info: &'a ExportInfo,
    /// Clients connected.
    pub connection_count: usize,
}

#[derive(Debug)]
struct Export {
    number: u32,
    /// `None` where the kernel's driver is the only client.
    listening: Option<Listening>,
    info: ExportInfo,
    /// Numbers of its connections, oldest first.
    connections: BTreeSet<u32>,
    /// Requests under way whose clients are gone and that others must not overtake.
    orphan_count: usize,
}

impl Export {
    fn new(number: u32, listening: Option<Listening>, info: ExportInfo) -> Self {
        Self {
            number,
            listening,
            info,
            connections: BTreeSet::new(),
            orphan_count: 0,
        }
    }
}

#[derive(Debug)]
struct Client {
    device: Guid,
    stream: UnixStream,
    protocol: Connection,
    /// What epoll watches for.
    interest: EpollFlags,
    /// The socket takes no more for now.
    blocked: bool,
    /// The socket has more for us.
    readable: bool,
    /// Completed requests wait for the next poll.
    dirty: bool,
    /// Nothing is taken from it for now.
    held: bool,
    /// It is the kernel's driver, which sends what is not answered again.
    kernel: bool,
}

/// The exported devices with their listeners and connections. No threads: add [`Self::as_fd`] to
/// the loop's epoll for reading, and call [`Self::poll`] when it is ready **and** after a round
/// of [`Self::complete`] before going to sleep.
#[derive(Debug)]
pub struct NbdSockets {
    epoll: Epoll,
    exports: BTreeMap<Guid, Export>,
    /// Which export a listener's number means.
    listeners: BTreeMap<u32, Guid>,
    clients: BTreeMap<u32, Client>,
    /// Tokens of requests under way whose clients are gone, with their device.
    orphans: BTreeMap<u64, Guid>,
    /// Devices that have lost a connection of the kernel's driver, once for each.
    lost: Vec<Guid>,
    dirty: Vec<u32>,
    last_number: u32,
    /// Given up for a moment to turn a client away when descriptors run out.
    spare: Option<File>,
}

impl NbdSockets {
    /// No exports.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            exports: BTreeMap::new(),
            listeners: BTreeMap::new(),
            clients: BTreeMap::new(),
            orphans: BTreeMap::new(),
            lost: Vec::new(),
            dirty: Vec::new(),
            last_number: 0,
            spare: Some(spare()?),
        })
    }

    /// Exports `device` on a socket at `path`, mode 0600; a stale socket file is replaced.
    pub fn open(&mut self, device: Guid, path: &Path, info: ExportInfo) -> Result<(), SocketError> {
        if self.exports.contains_key(&device) {
            return Err(SocketError::Exported(device));
        }
        if !is_block_size(info.block_size) {
            return Err(SocketError::BlockSize(info.block_size));
        }
        let listening = Listening::open(path)?;
        let number = self.next_number();
        let event = EpollEvent::new(EpollFlags::EPOLLIN, LISTENER | u64::from(number));
        self.epoll
            .add(&listening.listener, event)
            .map_err(|errno| SocketError::Io {
                path: path.to_owned(),
                reason: errno.into(),
            })?;
        self.listeners.insert(number, device);
        self.exports
            .insert(device, Export::new(number, Some(listening), info));
        Ok(())
    }

    /// Serves `device` to the kernel's driver on `streams`, in addition to those it has already;
    /// nobody else can connect.
    pub fn serve_kernel(
        &mut self,
        device: Guid,
        info: ExportInfo,
        streams: Vec<UnixStream>,
    ) -> Result<(), SocketError> {
        if !is_block_size(info.block_size) {
            return Err(SocketError::BlockSize(info.block_size));
        }
        if !self.exports.contains_key(&device) {
            let number = self.next_number();
            self.exports
                .insert(device, Export::new(number, None, info.clone()));
        }
        for stream in streams {
            let number = self.next_number();
            let protocol = Connection::of_kernel(device, number, info.clone());
            self.add_client(device, number, stream, protocol, true);
        }
        Ok(())
    }

    /// The devices that have lost a connection of the kernel's driver since, once for each.
    pub fn take_lost(&mut self) -> Vec<Guid> {
        std::mem::take(&mut self.lost)
    }

    /// Changes an export's facts: what is served at once, what clients are told when they next
    /// connect. Says whether the device is exported; facts that cannot be exported end the export.
    pub fn update(&mut self, device: Guid, info: ExportInfo) -> bool {
        let Some(export) = self.exports.get_mut(&device) else {
            return false;
        };
        if !is_block_size(info.block_size) {
            self.close(device);
            return false;
        }
        if export.info != info {
            for number in &export.connections {
                if let Some(client) = self.clients.get_mut(number) {
                    client.protocol.update(info.clone());
                }
            }
            export.info = info;
        }
        true
    }

    /// Ends an export: listener and connections are closed at once and the file is removed;
    /// completions that still come are ignored. Says whether the device was exported.
    pub fn close(&mut self, device: Guid) -> bool {
        let Some(export) = self.exports.remove(&device) else {
            return false;
        };
        self.listeners.remove(&export.number);
        // Closing a descriptor takes it out of the epoll.
        for number in &export.connections {
            self.clients.remove(number);
        }
        self.orphans.retain(|_, of| *of != device);
        true
    }

    /// The devices exported on socket files, by GUID.
    pub fn exports(&self) -> impl Iterator<Item = ExportStatus<'_>> {
        self.exports.iter().filter_map(|(device, export)| {
            Some(ExportStatus {
                device: *device,
                path: &export.listening.as_ref()?.path,
                info: &export.info,
                connection_count: export.connections.len(),
            })
        })
    }

    /// Accepts, reads and writes whatever can be without blocking; requests go to `sink`, each to be
    /// completed exactly once.
    pub fn poll(&mut self, mut sink: impl FnMut(BlockRequest)) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); MAX_EVENTS];
        let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Err(Errno::EINTR) => 0,
            count => count?,
        };
        for event in &events[..count] {
            let number = event.data() as u32;
            if event.data() & LISTENER == 0 {
                self.drive(number, event.events(), &mut sink);
            } else if let Some(device) = self.listeners.get(&number).copied() {
                self.accept(device);
            }
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        for number in dirty.drain(..) {
            if let Some(client) = self.clients.get_mut(&number) {
                client.dirty = false;
                self.drive(number, EpollFlags::empty(), &mut sink);
            }
        }
        self.dirty = dirty;
        Ok(())
    }

    /// Whether completed requests wait for the next [`Self::poll`].
    pub fn has_answers(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Completes a request: the data of a read, an empty vector otherwise. It is sent by the next
    /// [`Self::poll`].
    pub fn complete(&mut self, token: u64, result: Result<Vec<u8>, BlockError>) {
        let number = (token >> 32) as u32;
        if let Some(client) = self.clients.get_mut(&number) {
            client.protocol.complete(token, result);
            self.mark(number);
        } else if let Some(device) = self.orphans.remove(&token)
            && let Some(export) = self.exports.get_mut(&device)
        {
            export.orphan_count -= 1;
            if export.orphan_count == 0 {
                for number in export.connections.clone() {
                    self.mark(number);
                }
            }
        }
    }

    /// Has the next poll look after a connection.
    fn mark(&mut self, number: u32) {
        if let Some(client) = self.clients.get_mut(&number)
            && !client.dirty
        {
            client.dirty = true;
            self.dirty.push(number);
        }
    }

    /// A number that no listener and no connection has.
    fn next_number(&mut self) -> u32 {
        loop {
            self.last_number = self.last_number.wrapping_add(1);
            let n = self.last_number;
            if !self.clients.contains_key(&n) && !self.listeners.contains_key(&n) {
                return n;
            }
        }
    }

    /// Accepts the clients that wait for `device`.
    fn accept(&mut self, device: Guid) {
        for _ in 0..MAX_CONNECTIONS {
            let export = self.exports.get(&device);
            let Some(listening) = export.and_then(|export| export.listening.as_ref()) else {
                return;
            };
            match listening.listener.accept() {
                Ok((stream, _)) => self.admit(device, stream),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e)
                    if matches!(
                        e.raw_os_error().map(Errno::from_raw),
                        Some(Errno::EMFILE | Errno::ENFILE)
                    ) =>
                {
                    // Left waiting, the client would keep the loop awake for nothing.
                    log::warn!("NBD client of {device} turned away: {e}");
                    self.spare = None;
                    let _ = listening.listener.accept();
                    self.spare = spare().ok();
                    return;
                }
                Err(e) => {
                    log::debug!("NBD client of {device} not accepted: {e}");
                    return;
                }
            }
        }
    }

    fn admit(&mut self, device: Guid, stream: UnixStream) {
        let Some(export) = self.exports.get(&device) else {
            return;
        };
        if export.connections.len() >= MAX_CONNECTIONS {
            let half_open = export.connections.iter().copied().find(|number| {
                let client = self.clients.get(number);
                client.is_some_and(|c| !c.protocol.is_negotiated())
            });
            let Some(number) = half_open else {
                log::warn!("NBD client of {device} turned away: {MAX_CONNECTIONS} are connected");
                return;
            };
            self.drop_client(number, "makes room for a newcomer");
        }
        let number = self.next_number();
        let Some(export) = self.exports.get(&device) else {
            return;
        };
        let protocol = Connection::new(device, number, export.info.clone());
        self.add_client(device, number, stream, protocol, false);
    }

    fn add_client(
        &mut self,
        device: Guid,
        number: u32,
        stream: UnixStream,
        protocol: Connection,
        kernel: bool,
    ) {
        let interest = EpollFlags::EPOLLIN;
        let added = stream.set_nonblocking(true).and_then(|()| {
            let event = EpollEvent::new(interest, u64::from(number));
            Ok(self.epoll.add(&stream, event)?)
        });
        if let Err(e) = added {
            log::warn!("NBD client of {device} turned away: {e}");
            return;
        }
        let Some(export) = self.exports.get_mut(&device) else {
            return;
        };
        let client = Client {
            device,
            stream,
            protocol,
            interest,
            blocked: false,
            readable: false,
            // The greeting waits.
            dirty: true,
            held: false,
            kernel,
        };
        export.connections.insert(number);
        self.clients.insert(number, client);
        self.dirty.push(number);
    }

    /// Moves what can be moved for one connection, and closes it when it is over.
    fn drive(&mut self, number: u32, ready: EpollFlags, sink: &mut impl FnMut(BlockRequest)) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        let export = self.exports.get(&client.device);
        client.held = export.is_some_and(|export| export.orphan_count > 0);
        let outcome = client.drive(ready, sink);
        let outcome = outcome.and_then(|()| {
            if client.protocol.is_finished() {
                return Ok(false);
            }
            let wanted = client.wanted();
            if wanted != client.interest {
                let mut event = EpollEvent::new(wanted, u64::from(number));
                self.epoll.modify(&client.stream, &mut event)?;
                client.interest = wanted;
            }
            Ok(true)
        });
        match outcome {
            Ok(true) => {}
            Ok(false) => match client.protocol.violation() {
                Some(violation) => self.drop_client(number, violation),
                None => self.drop_client(number, "done"),
            },
            Err(e) => self.drop_client(number, e),
        }
    }

    fn drop_client(&mut self, number: u32, why: impl std::fmt::Display) {
        if let Some(client) = self.clients.remove(&number) {
            let device = client.device;
            log::debug!("NBD client {number} of {device}: {why}");
            if let Some(export) = self.exports.get_mut(&device) {
                export.connections.remove(&number);
                let orphans: Vec<u64> = if client.kernel {
                    // What it has not had an answer to, reads as well, comes again; taken while
                    // the first is under way, it would come once more every time.
                    self.lost.push(device);
                    client.protocol.unfinished().collect()
                } else {
                    client.protocol.unfinished_changes().collect()
                };
                for token in orphans {
                    self.orphans.insert(token, device);
                    export.orphan_count += 1;
                }
            }
        }
    }
}

impl AsFd for NbdSockets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

impl Client {
    fn drive(&mut self, ready: EpollFlags, sink: &mut impl FnMut(BlockRequest)) -> io::Result<()> {
        if ready.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            return Err(ErrorKind::ConnectionReset.into());
        }
        if ready.contains(EpollFlags::EPOLLOUT) {
            self.blocked = false;
        }
        self.readable = ready.contains(EpollFlags::EPOLLIN);
        let mut reads = 0;
        loop {
            // Sending makes room for requests, and taking requests makes replies (refusals).
            while !self.held
                && let Some(request) = self.protocol.poll_request()
            {
                sink(request);
            }
            let sent = self.send()?;
            let received = reads < MAX_READS && self.receive()?;
            reads += usize::from(received);
            if !sent && !received {
                return Ok(());
            }
        }
    }

    /// Sends what the socket takes; says whether anything.
    fn send(&mut self) -> io::Result<bool> {
        if self.blocked || !self.protocol.has_output() {
            return Ok(false);
        }
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut count = 0;
        for (slice, bytes) in slices.iter_mut().zip(self.protocol.output()) {
            *slice = IoSlice::new(bytes);
            count += 1;
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<()>(self.stream.as_raw_fd(), &slices[..count], &[], flags, None) {
            Ok(len) => {
                self.protocol.sent(len);
                Ok(len > 0)
            }
            Err(Errno::EAGAIN) => {
                self.blocked = true;
                Ok(false)
            }
            Err(Errno::EINTR) => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads what the protocol wants; says whether anything.
    fn receive(&mut self) -> io::Result<bool> {
        let spaces = self.protocol.input();
        let room: usize = spaces.iter().map(|space| space.len()).sum();
        if room == 0 || !self.readable || self.held {
            return Ok(false);
        }
        match (&self.stream).read_vectored(&mut spaces.map(IoSliceMut::new)) {
            Ok(0) => {
                self.protocol.end_of_input();
                Ok(false)
            }
            Ok(len) => {
                self.protocol.received(len);
                // A short read has most likely emptied the socket; if not, epoll will tell.
                self.readable = len == room;
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(false)
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(true),
            Err(e) => Err(e),
        }
    }

    fn wanted(&mut self) -> EpollFlags {
        let mut wanted = EpollFlags::empty();
        let has_room = self.protocol.input().iter().any(|space| !space.is_empty());
        if has_room && !self.held {
            wanted |= EpollFlags::EPOLLIN;
        }
        if self.protocol.has_output() {
            wanted |= EpollFlags::EPOLLOUT;
        }
        wanted
    }
}

#[cfg(test)]
mod tests;
