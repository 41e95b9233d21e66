//! Packets on their way out, of which several may share a frame.

use super::Hop;

/// The most packets that are put into one frame: all of them are lost with it.
pub const MAX_SHARED_PACKETS: usize = 8;
/// Where a packet goes, and how long a frame may become that it shares with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    /// The station, and the own NIC that it should leave by.
    pub hop: Hop,
    /// The most bytes of such a frame, its Ethernet header not counted; 0 where the packet goes alone.
    pub shared_bytes: u16,
}

impl Outgoing {
    /// A packet in a frame of its own.
    pub const fn alone(hop: Hop) -> Self {
        Self {
            hop,
            shared_bytes: 0,
        }
    }
}

/// The packets of a frame, and how many more it takes.
#[derive(Debug, Clone, Copy)]
pub struct Shared {
    /// Octets of them.
    octets: usize,
    /// The most octets that all of them allow.
    most: usize,
    packets: usize,
}

impl Shared {
    /// A packet of so many octets.
    pub fn new(octets: usize, outgoing: Outgoing) -> Self {
        Self {
            octets,
            most: usize::from(outgoing.shared_bytes),
            packets: 1,
        }
    }

    /// Octets of all packets.
    pub const fn octets(&self) -> usize {
        self.octets
    }

    /// Both, where they may share a frame.
    #[must_use]
    pub fn with(self, more: Self) -> Option<Self> {
        let all = Self {
            octets: self.octets + more.octets,
            most: self.most.min(more.most),
            packets: self.packets + more.packets,
        };
        (all.octets <= all.most && all.packets <= MAX_SHARED_PACKETS).then_some(all)
    }
}
