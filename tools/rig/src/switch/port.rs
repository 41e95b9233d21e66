//! One port of the switch: a socket on its end of a cable.

use super::Faults;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{setsockopt, sockopt};
use rma::net::raw;
use socket2::Socket;
use std::fmt;
use std::io;
use std::ops::AddAssign;

/// Buffer that each socket asks for in each direction.
const BUFFER_BYTES: usize = 8 << 20;

/// The number of a port; the switch's end of its cable is named after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PortId(pub(crate) u32);

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.0)
    }
}

/// What a port has done. *Received* is what came from the node; everything else is about frames on
/// their way to the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Frames that came from the node.
    pub received_frames: u64,
    /// Their octets, Ethernet headers included.
    pub received_bytes: u64,
    /// Frames from the node that the kernel dropped because the switch was too slow.
    pub overrun: u64,
    /// Frames that went to the node.
    pub sent_frames: u64,
    /// Their octets, Ethernet headers included.
    pub sent_bytes: u64,
    /// Frames that a loss fault took.
    pub lost: u64,
    /// Frames that fell into a black hole for their length.
    pub black_holed: u64,
    /// Frames that a partition stopped.
    pub blocked: u64,
    /// Frames of which a copy was sent.
    pub duplicated: u64,
    /// Frames that were held back to be overtaken.
    pub reordered: u64,
    /// Frames of which bits were turned over.
    pub corrupted: u64,
    /// Frames dropped because a queue of the switch was full.
    pub congested: u64,
    /// Frames that are held back at this moment.
    pub held: u64,
    /// Frames that the node's cable did not take (longer than its MTU, or pulled), and frames from
    /// the node that were longer than any cable takes.
    pub refused: u64,
}

impl AddAssign for PortCounters {
    fn add_assign(&mut self, other: Self) {
        self.received_frames += other.received_frames;
        self.received_bytes += other.received_bytes;
        self.overrun += other.overrun;
        self.sent_frames += other.sent_frames;
        self.sent_bytes += other.sent_bytes;
        self.lost += other.lost;
        self.black_holed += other.black_holed;
        self.blocked += other.blocked;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.corrupted += other.corrupted;
        self.congested += other.congested;
        self.held += other.held;
        self.refused += other.refused;
    }
}

/// A port that is open.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) socket: Socket,
    pub(super) faults: Faults,
    pub(super) counters: PortCounters,
}

impl Port {
    /// Opens the port's socket in the calling thread's namespace.
    pub(super) fn open(id: PortId) -> io::Result<Socket> {
        let index = if_nametoindex(id.to_string().as_str())?;
        let socket = raw::open()?;
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
            socket.set_recv_buffer_size(BUFFER_BYTES)?;
        }
        if setsockopt(&socket, sockopt::SndBufForce, &BUFFER_BYTES).is_err() {
            socket.set_send_buffer_size(BUFFER_BYTES)?;
        }
        raw::ignore_outgoing(&socket)?;
        raw::bypass_queue(&socket)?;
        raw::bind(&socket, index, raw::ETHERTYPE_ALL)?;
        Ok(socket)
    }
}
