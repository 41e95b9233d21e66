//! One AF_PACKET socket for one interface and one EtherType, which follows its interface by name.

use super::batch::MAX_PIECES;
use super::ring::Ring;
use super::{BATCH_FRAMES, ETHERNET_HEADER_LEN, Inbox, Interface, NetError, Outbox, raw};
use crate::wire::Mac;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockFilter, Socket};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};

/// Receive buffer that is asked for: some 3,000 jumbo frames, as the kernel accounts for them.
const RECEIVE_BUFFER_BYTES: usize = 32 << 20;
/// Send buffer that is asked for.
const SEND_BUFFER_BYTES: usize = 4 << 20;

/// Up to so many frames are sent from a short list: making a long one takes as long as sending one frame.
const FEW_FRAMES: usize = 4;

/// What a socket has done since it was opened. All figures only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames received.
    pub received_frames: u64,
    /// Their octets, Ethernet headers included.
    pub received_bytes: u64,
    /// System calls that received any.
    pub received_batches: u64,
    /// Frames that were longer than the inbox takes, or shorter than an Ethernet header.
    pub received_malformed: u64,
    /// Frames that the kernel dropped because this socket was not drained in time.
    pub receive_drops: u64,
    /// Frames handed to the interface.
    pub sent_frames: u64,
    /// Their octets, Ethernet headers included.
    pub sent_bytes: u64,
    /// System calls that sent any.
    pub sent_batches: u64,
    /// Frames that the interface did not take: its queue was full, or it was down or gone.
    pub send_drops: u64,
    /// Frames that were longer than the interface's MTU.
    pub send_oversized: u64,
    /// Times that the interface was found down or gone.
    pub link_losses: u64,
}

/// What has become of the socket's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// It is up.
    Up,
    /// It is there, and down; nothing is received and what is sent is dropped.
    Down,
    /// There is no interface of this name now.
    Gone,
}

/// A socket that receives the frames of one EtherType that are addressed to one interface, or to a
/// group it has joined, and sends such frames.
///
/// Closed on drop. Never blocks.
#[derive(Debug)]
pub struct PacketSocket {
    socket: Socket,
    interface: Interface,
    ethertype: u16,
    groups: Vec<Mac>,
    state: LinkState,
    counters: Counters,
    /// Where the kernel puts what is received, instead of a buffer of its own.
    ring: Option<Ring>,
}

impl PacketSocket {
    /// Opens a socket on an interface, which may be down.
    ///
    /// # Errors
    /// [`NetError::Permission`] without CAP_NET_RAW; [`NetError::Kernel`].
    pub fn open(interface: &Interface, ethertype: u16) -> Result<Self, NetError> {
        Self::open_with(interface, ethertype, 0)
    }

    /// The same with a ring of about `ring_bytes` octets of memory (0: without one) that frames are received
    /// into, for sockets that are polled a lot. Without a ring where the kernel has no memory for it.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(
        interface: &Interface,
        ethertype: u16,
        ring_bytes: usize,
    ) -> Result<Self, NetError> {
        let name = &interface.name;
        let kernel = |action| {
            move |source| NetError::Kernel {
                action,
                name: name.clone(),
                source,
            }
        };
        let socket = raw::open().map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => NetError::Permission { name: name.clone() },
            _ => kernel("open a packet socket")(source),
        })?;
        socket
            .attach_filter(&not_for_others())
            .map_err(kernel("filter frames"))?;
        grow_buffers(&socket).map_err(kernel("set buffer sizes"))?;
        let ring = match ring_bytes {
            0 => None,
            bytes => Ring::new(&socket, interface.mtu, bytes)
                .inspect_err(|e| log::warn!("{name}: frames are received without a ring: {e}"))
                .ok(),
        };
        raw::bind(&socket, interface.index, ethertype).map_err(kernel("bind a packet socket"))?;
        let state = if interface.up {
            LinkState::Up
        } else {
            LinkState::Down
        };
        let interface = interface.clone();
        let counters = Counters::default();
        Ok(Self {
            socket,
            interface,
            ethertype,
            groups: Vec::new(),
            state,
            counters,
            ring,
        })
    }

    /// Receives frames to a multicast group too, also after the interface has gone and returned.
    ///
    /// # Errors
    /// [`NetError::Kernel`].
    pub fn join(&mut self, group: Mac) -> Result<(), NetError> {
        if self.groups.contains(&group) {
            return Ok(());
        }
        self.groups.push(group);
        match self.state {
            LinkState::Gone => Ok(()),
            LinkState::Up | LinkState::Down => {
                raw::join(&self.socket, self.interface.index, group.0)
                    .map_err(|source| self.kernel("join a multicast group", source))
            }
        }
    }

    /// The interface as it was at the last [`Self::refresh`].
    pub fn interface(&self) -> &Interface {
        &self.interface
    }

    /// The EtherType of the frames.
    pub fn ethertype(&self) -> u16 {
        self.ethertype
    }

    /// What has become of the interface, as far as noticed.
    pub fn state(&self) -> LinkState {
        self.state
    }

    /// Looks the interface up by its name again, follows it if it has come back under another
    /// number, and says what it is now if anything of it has changed (address and MTU included).
    ///
    /// The descriptor stays the same.
    ///
    /// # Errors
    /// [`NetError::Kernel`]; the socket then still waits for its interface, and may be asked again.
    pub fn refresh(&mut self) -> Result<Option<LinkState>, NetError> {
        // That the interface went down is told by an error, once, to whoever sends or receives by a system
        // call next. What it is now is looked at here.
        let _ = self.socket.take_error();
        let Ok(found) = Interface::by_name(&self.interface.name) else {
            return Ok(self.become_state(LinkState::Gone));
        };
        if self.state == LinkState::Gone || found.index != self.interface.index {
            // Until all of it has succeeded the interface counts as gone, so that a later call
            // tries again.
            self.become_state(LinkState::Gone);
            raw::bind(&self.socket, found.index, self.ethertype)
                .map_err(|source| self.kernel("bind a packet socket", source))?;
            for group in &self.groups {
                raw::join(&self.socket, found.index, group.0)
                    .map_err(|source| self.kernel("join a multicast group", source))?;
            }
        }
        let state = if found.up {
            LinkState::Up
        } else {
            LinkState::Down
        };
        let differs = found != self.interface;
        self.interface = found;
        let changed = self.become_state(state);
        Ok(changed.or(differs.then_some(state)))
    }

    /// Receives what waits, at most [`BATCH_FRAMES`] frames, into the emptied `inbox`; how many.
    ///
    /// Where the inbox [is not full](Inbox::is_full), nothing waits any more. A down interface gives none.
    ///
    /// # Errors
    /// [`NetError::Kernel`] for what is not explained by the state of the interface.
    pub fn recv(&mut self, inbox: &mut Inbox) -> Result<usize, NetError> {
        if let Some(ring) = &mut self.ring {
            let (held, lengths) = inbox.ring_parts();
            let count = ring.receive(held, lengths);
            if count > 0 {
                self.count_received(inbox);
            }
            return Ok(count);
        }
        let (buffer, slot, want, lengths) = inbox.parts();
        match raw::receive(self.socket.as_fd(), buffer, slot, want, lengths) {
            Ok(count) => {
                self.count_received(inbox);
                Ok(count)
            }
            Err(error) if is_transient(&error) => Ok(0),
            Err(error) if is_link_loss(&error) => {
                self.lose_link();
                Ok(0)
            }
            Err(error) => Err(self.kernel("receive", error)),
        }
    }

    /// Sends what waits in `outbox`, in order, until it is empty or the send buffer is full; whether
    /// it is empty now. If not, go on when the descriptor is writable.
    ///
    /// Frames that the interface cannot take are dropped and counted.
    ///
    /// # Errors
    /// [`NetError::Kernel`] for what is not explained by a frame or the state of the interface.
    pub fn send(&mut self, outbox: &mut Outbox) -> Result<bool, NetError> {
        outbox.address(self.interface.mac, self.ethertype);
        while !outbox.is_empty() {
            let sent = if outbox.len() <= FEW_FRAMES {
                self.send_front::<FEW_FRAMES, { 2 * FEW_FRAMES * MAX_PIECES }>(outbox)
            } else {
                self.send_front::<BATCH_FRAMES, { 4 * BATCH_FRAMES }>(outbox)
            };
            match sent {
                Ok(sent) => {
                    self.counters.sent_batches += 1;
                    self.counters.sent_frames += sent as u64;
                    self.counters.sent_bytes += outbox.advance(sent) as u64;
                }
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) if is_transient(&error) => return Ok(false),
                Err(error) => self.drop_front(outbox, error)?,
            }
        }
        Ok(true)
    }

    /// Sends at most `N` frames in at most `P` parts from the front: how many.
    fn send_front<const N: usize, const P: usize>(&self, outbox: &Outbox) -> io::Result<usize> {
        let (mut parts, mut ends) = ([IoSlice::new(&[]); P], [0; N]);
        let count = outbox.front(&mut parts, &mut ends);
        let mut frames: [&[IoSlice<'_>]; N] = [&[]; N];
        let mut start = 0;
        for (frame, end) in frames.iter_mut().zip(&ends[..count]) {
            *frame = &parts[start..*end];
            start = *end;
        }
        raw::send(self.socket.as_fd(), &frames[..count])
    }

    /// What the socket has done so far.
    pub fn counters(&mut self) -> Counters {
        self.counters.receive_drops += raw::take_drops(&self.socket).unwrap_or(0);
        self.counters
    }

    /// Drops the frame that the kernel refused, or all of them if it refuses every one.
    fn drop_front(&mut self, outbox: &mut Outbox, error: io::Error) -> Result<(), NetError> {
        if is_link_loss(&error) {
            self.lose_link();
            self.counters.send_drops += outbox.len() as u64;
            outbox.clear();
            return Ok(());
        }
        match error.raw_os_error() {
            Some(libc::ENOBUFS) => self.counters.send_drops += 1,
            Some(libc::EMSGSIZE | libc::EINVAL) => {
                log::debug!(
                    "{}: a frame of {} octets is not for an MTU of {}",
                    self.interface.name,
                    outbox.front_len().saturating_sub(ETHERNET_HEADER_LEN),
                    self.interface.mtu
                );
                self.counters.send_oversized += 1;
            }
            _ => return Err(self.kernel("send", error)),
        }
        outbox.advance(1);
        Ok(())
    }

    fn count_received(&mut self, inbox: &Inbox) {
        self.counters.received_batches += 1;
        for &len in inbox.lengths() {
            if inbox.is_oversized(len) || len < ETHERNET_HEADER_LEN {
                self.counters.received_malformed += 1;
            } else {
                self.counters.received_frames += 1;
                self.counters.received_bytes += len as u64;
            }
        }
    }

    /// The kernel says the link is lost; whether it is down or gone, [`Self::refresh`] finds out.
    fn lose_link(&mut self) {
        if self.state == LinkState::Up {
            self.become_state(LinkState::Down);
        }
    }

    /// Enters a state; `Some` if it is another one.
    fn become_state(&mut self, state: LinkState) -> Option<LinkState> {
        if state == self.state {
            return None;
        }
        if self.state == LinkState::Up {
            self.counters.link_losses += 1;
        }
        self.state = state;
        Some(state)
    }

    fn kernel(&self, action: &'static str, source: io::Error) -> NetError {
        NetError::Kernel {
            action,
            name: self.interface.name.clone(),
            source,
        }
    }
}

impl std::iter::Sum for Counters {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self {
            received_frames: a.received_frames + b.received_frames,
            received_bytes: a.received_bytes + b.received_bytes,
            received_batches: a.received_batches + b.received_batches,
            received_malformed: a.received_malformed + b.received_malformed,
            receive_drops: a.receive_drops + b.receive_drops,
            sent_frames: a.sent_frames + b.sent_frames,
            sent_bytes: a.sent_bytes + b.sent_bytes,
            sent_batches: a.sent_batches + b.sent_batches,
            send_drops: a.send_drops + b.send_drops,
            send_oversized: a.send_oversized + b.send_oversized,
            link_losses: a.link_losses + b.link_losses,
        })
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A filter that drops what is addressed to another station: a switch floods what it does not know
/// yet, and a virtual interface does not look at addresses.
fn not_for_others() -> [SockFilter; 4] {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let packet_type = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
    [
        SockFilter::new(LOAD, 0, 0, packet_type),
        SockFilter::new(JUMP_EQUAL, 0, 1, u32::from(libc::PACKET_OTHERHOST)),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

/// Asks for large buffers: past the system's limit where that is allowed, up to it where not.
fn grow_buffers(socket: &Socket) -> io::Result<()> {
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    }
    if setsockopt(socket, sockopt::SndBufForce, &SEND_BUFFER_BYTES).is_err() {
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    }
    Ok(())
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

fn is_link_loss(error: &io::Error) -> bool {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
    matches!(errno, Errno::ENETDOWN | Errno::ENODEV | Errno::ENXIO)
}
