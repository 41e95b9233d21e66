//! Connections over either EtherType: identity, exactly-once commands, retransmission, timers.
//!
//! Depends on [`crate::wire`] only. A [`Client`] opens one session to one responder and drives all
//! recovery; a [`Server`] executes each command at most once and repeats answers; a [`Hub`] puts many
//! clients and a server on one EtherType. Time, seeds and frames (without their Ethernet header)
//! are passed in; after each call that changes something, poll `poll_transmit` and `poll_event`
//! until they are empty, and call `tick` when `deadline` has come.

mod client;
mod flow;
mod hub;
pub mod limits;
mod numbers;
mod ranges;
mod server;
mod spares;
mod steps;

pub use client::{
    Client, ClientConfig, ClientEvent, IoRequest, NicState, PathReport, Request, SubmitError,
};
pub use hub::{Hub, HubEvent};
pub(crate) use numbers::NumberMap;
pub use server::{Asked, Peer, Server, ServerConfig, ServerEvent};
pub use steps::Steps;

use crate::wire::DropReason;

/// Counts of dropped frames by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    counts: [u64; DropReason::ALL.len()],
}

impl Counters {
    /// Counts one frame.
    pub fn add(&mut self, reason: DropReason) {
        let count = &mut self.counts[reason as usize - 1];
        *count = count.saturating_add(1);
    }

    /// Frames dropped for `reason`.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.counts[reason as usize - 1]
    }

    /// Frames dropped for any reason.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Every reason with its count.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|r| (*r, self.get(*r)))
    }
}

const _: () = {
    let mut index = 0;
    while index < DropReason::ALL.len() {
        assert!(DropReason::ALL[index] as usize == index + 1);
        index += 1;
    }
};
