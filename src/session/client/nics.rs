//! What a client is told of its own NICs, and what it tells of its paths.

use std::time::Duration;

use crate::wire::Hop;

/// One of the own NICs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NicState {
    /// Whether frames can leave by it.
    pub up: bool,
    /// The most bytes of a frame behind its Ethernet header.
    pub mtu: u16,
}

/// How a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathReport {
    /// The responder's NIC, and the own one's number.
    pub hop: Hop,
    /// Whether commands take it.
    pub is_used: bool,
    /// The most bytes of a frame behind its Ethernet header that it is known to carry.
    pub mtu: u16,
    /// How long an answer takes, where one was measured.
    pub round_trip: Option<Duration>,
    /// Commands that have taken it.
    pub commands: u64,
}

/// Whether a path is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is.
    Good,
    /// It has not answered; for its return it has answered so often since.
    Silent { answers: u8 },
    /// The own NIC does not work, or the other one is gone.
    Down,
}
