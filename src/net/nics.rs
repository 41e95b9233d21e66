//! The packet sockets of one EtherType on all NICs of a machine, used as one: what is received on any
//! of them is received, and a frame leaves by a NIC that reaches its destination. Knows no protocol.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::socket::Counters;
use super::{Inbox, Interface, LinkState, NetError, Outbox, PacketSocket};
use crate::wire::{Hop, Mac, Outgoing, Tail, Time};

/// How long a destination may be sent to by one NIC without being heard before the others have their turn.
const PATH_PATIENCE: Duration = Duration::from_millis(500);
/// The most stations whose NIC is remembered; beyond, all are learnt anew.
const MAX_PATHS: usize = 16_384;

/// The packet sockets of one EtherType on one or more NICs.
#[derive(Debug)]
pub struct Nics {
    each: Vec<Nic>,
    /// Readable when any NIC is, or has room again.
    epoll: Epoll,
    /// By which NIC a station is reached.
    paths: BTreeMap<Mac, Path>,
    /// The NIC that is received from first, and the one that an unknown station is tried by.
    turns: (usize, usize),
    /// The NIC of the batch that was received last.
    heard_by: u8,
    frame: Vec<u8>,
    /// Whether the file descriptor tells of frames once and then only after [`Nics::arm`]: telling costs
    /// whoever sends the frame.
    is_armed_by_hand: bool,
    ethertype: u16,
    ring_bytes: usize,
    /// The most octets behind an Ethernet header that are made use of.
    most: u16,
}

#[derive(Debug)]
struct Nic {
    socket: PacketSocket,
    outbox: Outbox,
    /// The kernel had no room.
    blocked: bool,
    /// Whether the set of file descriptors has it.
    is_watched: bool,
    /// The MTU for which the socket has memory.
    room: u16,
    /// What sockets before this one have counted.
    before: Counters,
}

impl Nic {
    fn push(&mut self, outgoing: Outgoing, head: &[u8], end: Option<Tail>) {
        self.outbox.push_parts(|bytes, tail| {
            bytes.extend_from_slice(head);
            *tail = end;
            Some(outgoing)
        });
    }

    /// Has `epoll` tell of its frames, and of room where it had none.
    fn wait(&mut self, epoll: &Epoll, index: usize, once: bool) -> Result<(), NetError> {
        let mut event = EpollEvent::new(wanted(once, self.blocked), index as u64);
        let done = if std::mem::replace(&mut self.is_watched, true) {
            epoll.modify(&self.socket, &mut event)
        } else {
            epoll.add(&self.socket, event)
        };
        done.map_err(|errno| self.cannot_wait(errno))
    }

    /// Has `epoll` forget it.
    fn leave(&mut self, epoll: &Epoll) -> Result<(), NetError> {
        if std::mem::take(&mut self.is_watched) {
            let done = epoll.delete(&self.socket);
            done.map_err(|errno| self.cannot_wait(errno))?;
        }
        Ok(())
    }

    fn cannot_wait(&self, errno: nix::Error) -> NetError {
        NetError::Kernel {
            action: "wait for frames",
            name: self.socket.interface().name.clone(),
            source: io::Error::from(errno),
        }
    }

    /// Whether frames can leave by it.
    fn works(&self) -> bool {
        self.socket.state() == LinkState::Up && self.socket.interface().carrier
    }
}

/// By which NIC a station was heard last.
#[derive(Debug, Clone, Copy)]
struct Path {
    nic: usize,
    /// Since when it has been sent to without being heard.
    asked: Option<Time>,
}

/// A NIC whose state or address has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkChange {
    /// Its interface.
    pub name: String,
    /// What it is now.
    pub state: LinkState,
    /// Whether there is a cable with something at its other end.
    pub carrier: bool,
}

impl std::fmt::Display for LinkChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match (self.state, self.carrier) {
            (LinkState::Up, true) => "up",
            (LinkState::Up, false) => "without a cable; waiting for it",
            (LinkState::Down, _) => "down; waiting for it",
            (LinkState::Gone, _) => "gone; waiting for it",
        };
        write!(f, "interface {} is {state}", self.name)
    }
}

impl Nics {
    /// Opens a socket on each of `interfaces`, of which there is at least one.
    ///
    /// # Errors
    /// What [`PacketSocket::open`] says.
    pub fn open(interfaces: &[Interface], ethertype: u16) -> Result<Self, NetError> {
        Self::open_with(interfaces, ethertype, 0)
    }

    /// The same with rings of about `ring_bytes` octets (see [`PacketSocket::open_with`]): for who looks for
    /// frames again and again. The file descriptor tells of them only after [`Self::arm`].
    ///
    /// # Errors
    /// What [`PacketSocket::open`] says.
    pub fn open_with(
        interfaces: &[Interface],
        ethertype: u16,
        ring_bytes: usize,
    ) -> Result<Self, NetError> {
        let name = interfaces.first().map_or("", |i| i.name.as_str());
        let kernel = |errno: nix::Error| NetError::Kernel {
            action: "wait for frames",
            name: name.to_owned(),
            source: errno.into(),
        };
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(kernel)?;
        let mut nics = Vec::with_capacity(interfaces.len());
        for interface in interfaces {
            let socket = PacketSocket::open_with(interface, ethertype, ring_bytes)?;
            let event = EpollEvent::new(wanted(ring_bytes > 0, false), nics.len() as u64);
            epoll.add(&socket, event).map_err(kernel)?;
            nics.push(Nic {
                socket,
                outbox: Outbox::new(),
                blocked: false,
                is_watched: true,
                room: interface.mtu,
                before: Counters::default(),
            });
        }
        Ok(Self {
            each: nics,
            epoll,
            paths: BTreeMap::new(),
            turns: (0, 0),
            heard_by: 0,
            frame: Vec::new(),
            is_armed_by_hand: ring_bytes > 0,
            ethertype,
            ring_bytes,
            most: u16::MAX,
        })
    }

    /// The addresses, in the order of the interfaces.
    pub fn macs(&self) -> Vec<Mac> {
        self.interfaces().map(|interface| interface.mac).collect()
    }

    /// The interfaces as they were found last.
    pub fn interfaces(&self) -> impl Iterator<Item = &Interface> + '_ {
        self.each.iter().map(|nic| nic.socket.interface())
    }

    /// Whether a frame with this destination is for us: a packet socket also sees what the switch floods to
    /// others.
    pub fn is_for_us(&self, destination: Mac) -> bool {
        destination.is_multicast() || self.interfaces().any(|i| i.mac == destination)
    }

    /// The best state of any NIC.
    pub fn state(&self) -> LinkState {
        let any = |state| self.each.iter().any(|nic| nic.socket.state() == state);
        if any(LinkState::Up) {
            LinkState::Up
        } else if any(LinkState::Down) {
            LinkState::Down
        } else {
            LinkState::Gone
        }
    }

    /// What the sockets have counted, added up.
    pub fn counters(&mut self) -> Counters {
        let each = self.each.iter_mut();
        each.flat_map(|nic| [nic.socket.counters(), nic.before])
            .sum()
    }

    /// Has the file descriptor tell of frames that are there or come, where it does so only once.
    ///
    /// # Errors
    /// [`NetError::Kernel`].
    pub fn arm(&mut self) -> Result<(), NetError> {
        if self.is_armed_by_hand {
            for (index, nic) in self.each.iter_mut().enumerate() {
                nic.wait(&self.epoll, index, true)?;
            }
        }
        Ok(())
    }

    /// Has nothing told of frames until [`Self::arm`], where that is by hand: whoever sends one to a socket
    /// that someone could be waiting for pays for finding out that nobody is.
    ///
    /// # Errors
    /// [`NetError::Kernel`].
    pub fn disarm(&mut self) -> Result<(), NetError> {
        if self.is_armed_by_hand {
            for nic in &mut self.each {
                nic.leave(&self.epoll)?;
            }
        }
        Ok(())
    }

    /// Looks at the interfaces again, after a notice of the kernel: what has changed, and what could not be
    /// looked at.
    pub fn refresh(&mut self) -> (Vec<LinkChange>, Vec<NetError>) {
        let (mut changes, mut errors) = (Vec::new(), Vec::new());
        for nic in &mut self.each {
            match nic.socket.refresh() {
                Ok(None) => {}
                Ok(Some(state)) => changes.push(LinkChange {
                    name: nic.socket.interface().name.clone(),
                    state,
                    carrier: nic.socket.interface().carrier,
                }),
                Err(error) => errors.push(error),
            }
        }
        for index in 0..self.each.len() {
            errors.extend(self.make_room(index).err());
        }
        (changes, errors)
    }

    /// Opens a NIC's socket anew where its frames may be longer than it has memory for. What has come and was
    /// not received is dropped, as if a switch had lost it.
    fn make_room(&mut self, index: usize) -> Result<(), NetError> {
        let nic = &mut self.each[index];
        let interface = nic.socket.interface();
        if !self.is_armed_by_hand
            || interface.mtu <= nic.room
            || nic.socket.state() == LinkState::Gone
        {
            return Ok(());
        }
        let room = interface.mtu;
        let socket = PacketSocket::open_with(interface, self.ethertype, self.ring_bytes)?;
        nic.leave(&self.epoll)?;
        nic.room = room;
        nic.before = [nic.before, nic.socket.counters()].into_iter().sum();
        nic.socket = socket;
        nic.wait(&self.epoll, index, true)
    }

    /// Receives one batch from one of the NICs that have any; 0 where none has.
    ///
    /// # Errors
    /// What [`PacketSocket::recv`] says.
    pub fn recv(&mut self, inbox: &mut Inbox) -> Result<usize, NetError> {
        let count = self.each.len();
        for _ in 0..count {
            let index = self.turns.0 % count;
            self.turns.0 = index + 1;
            let frames = self.each[index].socket.recv(inbox)?;
            if frames > 0 {
                self.heard_by = index as u8;
                if count > 1 {
                    self.learn(index, inbox);
                }
                return Ok(frames);
            }
        }
        Ok(0)
    }

    /// The number of the NIC that the last batch came by.
    pub const fn heard_by(&self) -> u8 {
        self.heard_by
    }

    /// Makes use of no more octets behind an Ethernet header than so many, whatever the interfaces take.
    pub const fn limit_mtu(&mut self, most: u16) {
        self.most = most;
    }

    /// Whether frames can leave by each NIC, and the most octets behind an Ethernet header that it takes.
    pub fn each(&self) -> impl Iterator<Item = (bool, u16)> + '_ {
        let nics = self.each.iter();
        nics.map(|nic| (nic.works(), nic.socket.interface().mtu.min(self.most)))
    }

    /// Notes whom a NIC has heard.
    fn learn(&mut self, nic: usize, inbox: &Inbox) {
        for frame in inbox.frames() {
            if self.paths.len() >= MAX_PATHS && !self.paths.contains_key(&frame.source) {
                self.paths.clear();
            }
            self.paths.insert(frame.source, Path { nic, asked: None });
        }
    }

    /// Sends what `emit` gives (see [`Outbox::push_parts`]), by the NIC that it says, as far as the kernel takes
    /// it; call it again when the file descriptor is ready.
    ///
    /// # Errors
    /// What [`PacketSocket::send`] says; what was to be sent by that NIC is dropped, as if a switch had lost
    /// it.
    pub fn send(
        &mut self,
        now: Time,
        mut emit: impl FnMut(&mut Vec<u8>, &mut Option<Tail>) -> Option<Outgoing>,
    ) -> Result<(), NetError> {
        loop {
            if let [nic] = &mut self.each[..] {
                while nic.outbox.push_parts(&mut emit) {}
            } else {
                self.distribute(now, &mut emit);
            }
            if self.each.iter().all(|nic| nic.outbox.is_empty()) {
                return Ok(());
            }
            if !self.flush()? {
                return Ok(());
            }
        }
    }

    /// Puts frames into the outboxes of the NICs they should leave by, until one of them is full.
    fn distribute(
        &mut self,
        now: Time,
        emit: &mut impl FnMut(&mut Vec<u8>, &mut Option<Tail>) -> Option<Outgoing>,
    ) {
        while !self.each.iter().any(|nic| nic.outbox.is_full()) {
            let mut frame = std::mem::take(&mut self.frame);
            frame.clear();
            let mut tail = None;
            let outgoing = emit(&mut frame, &mut tail);
            if let Some(outgoing) = outgoing {
                let Hop { mac, nic } = outgoing.hop;
                if mac.is_multicast() {
                    for nic in self.each.iter_mut().filter(|nic| nic.works()) {
                        nic.push(outgoing, &frame, tail.clone());
                    }
                } else {
                    let index = match usize::from(nic) {
                        index if index < self.each.len() => index,
                        _ => self.choose(now, mac),
                    };
                    self.each[index].push(outgoing, &frame, tail);
                }
            }
            self.frame = frame;
            if outgoing.is_none() {
                return;
            }
        }
    }

    /// The NIC by which a station was heard last, or one after the other where it was not heard for too long.
    fn choose(&mut self, now: Time, destination: Mac) -> usize {
        if let Some(path) = self.paths.get_mut(&destination) {
            let asked = *path.asked.get_or_insert(now);
            if self.each[path.nic].works() && now.since(asked) < PATH_PATIENCE {
                return path.nic;
            }
        }
        let count = self.each.len();
        for _ in 0..count {
            let index = self.turns.1 % count;
            self.turns.1 = index + 1;
            if self.each[index].works() {
                return index;
            }
        }
        0
    }

    /// Sends what waits; `false` where a NIC takes no more for now.
    fn flush(&mut self) -> Result<bool, NetError> {
        let mut failed = None;
        for (index, nic) in self.each.iter_mut().enumerate() {
            let blocked = match nic.socket.send(&mut nic.outbox) {
                Ok(all) => !all,
                Err(error) => {
                    nic.outbox.clear();
                    failed = Some(error);
                    false
                }
            };
            // Who polls comes back by himself.
            if blocked != std::mem::replace(&mut nic.blocked, blocked) && nic.is_watched {
                nic.wait(&self.epoll, index, self.is_armed_by_hand)?;
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(self.each.iter().all(|nic| !nic.blocked)),
        }
    }
}

/// What a NIC's socket is waited for.
fn wanted(once: bool, blocked: bool) -> EpollFlags {
    let mut flags = EpollFlags::EPOLLIN;
    flags.set(EpollFlags::EPOLLONESHOT, once);
    flags.set(EpollFlags::EPOLLOUT, blocked);
    flags
}

impl AsFd for Nics {
    /// Ready when a NIC has frames, or room again after it had none.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}
