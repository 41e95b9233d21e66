//! The agent: what goes in, what comes out, and who inside gets it.

use std::collections::VecDeque;

use super::action::{AgentAction, CommitToken};
use super::config::AgentConfig;
use super::request::AdminRequest;
use crate::crt::Table;
use crate::wire::message::{DevicesReply, Notification};
use crate::wire::{ClusterName, DropReason, Guid, IocNumber, Mac, Status, Time};

/// The resource management agent (214) of one host.
#[derive(Debug)]
pub struct Agent {
    config: AgentConfig,
    table: Table,
    cluster: ClusterName,
    actions: VecDeque<AgentAction>,
}

impl Agent {
    /// An agent that starts Fig. 5 at its first [`Agent::tick`], from the stored table (an empty
    /// one at the first start). `seed` makes its nonces and spreads its polls.
    pub fn new(config: AgentConfig, table: Table, seed: u64) -> Self {
        let _ = seed;
        Self {
            cluster: config.known_cluster,
            config,
            table,
            actions: VecDeque::new(),
        }
    }

    /// The table as it is now, perhaps newer than the one stored.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The cluster, none before one is assigned.
    pub fn cluster(&self) -> ClusterName {
        self.cluster
    }

    /// Takes a frame of the management EtherType, without its Ethernet header. An error says why
    /// the frame was dropped; it has been counted.
    pub fn handle(&mut self, now: Time, src: Mac, frame: &[u8]) -> Result<(), DropReason> {
        let _ = (now, src, frame);
        Err(DropReason::Unexpected)
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Time) {
        let _ = now;
    }

    /// When [`Agent::tick`] must be called next.
    pub fn deadline(&self) -> Option<Time> {
        None
    }

    /// Appends one frame to `out` and returns its destination, or `None` when there is nothing to
    /// send now.
    pub fn poll_transmit(&mut self, now: Time, out: &mut Vec<u8>) -> Option<Mac> {
        let _ = (now, out);
        None
    }

    /// The next thing for the shell to do.
    pub fn poll_action(&mut self) -> Option<AgentAction> {
        self.actions.pop_front()
    }

    /// A commit is done (`ok`: it is durable) or has failed (it is asked for again later).
    pub fn committed(&mut self, now: Time, token: CommitToken, ok: bool) {
        let _ = (now, token, ok);
    }

    /// A controller has answered [`AgentAction::ListDevices`], or could not be asked.
    pub fn devices_listed(
        &mut self,
        now: Time,
        unit: Guid,
        ioc: IocNumber,
        result: Result<DevicesReply, Status>,
    ) {
        let _ = (now, unit, ioc, result);
    }

    /// A controller says that something changed.
    pub fn service_notified(
        &mut self,
        now: Time,
        unit: Guid,
        ioc: IocNumber,
        notification: Notification,
    ) {
        let _ = (now, unit, ioc, notification);
    }

    /// An administrator asks; the answer is an [`AgentAction::AdminReply`] with the same token,
    /// at once or later.
    pub fn admin(&mut self, now: Time, token: u64, request: AdminRequest) {
        let _ = (now, token, request, &self.config);
    }

    /// Says goodbye to fabric services, peers and units. Poll what is to be sent once more, then
    /// drop the agent.
    pub fn close(&mut self, now: Time) {
        let _ = now;
    }
}
