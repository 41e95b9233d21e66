//! What an agent is told at its start, and the limits of what it keeps.

use std::time::Duration;

use crate::lease::StoredVote;
use crate::wire::{ClusterName, Guid, Incarnation, Mac};

/// The most administrators' requests that wait for a unit or a commit at a time.
pub const MAX_PENDING_REQUESTS: usize = 64;
/// The most rows that are pushed in one offer; more are fetched by the peer itself.
pub const MAX_OFFER_ROWS: usize = 512;
/// The most bytes of rows in one offer or page.
pub const MAX_PAGE_BYTES: usize = 256 * 1024;
/// How often a pull starts again because the peer's table changed under it.
pub const MAX_PULL_RESTARTS: u32 = 8;
/// The most actions that wait for the shell; beyond it, watch events are dropped.
pub const MAX_EVENTS: usize = 16_384;

/// Where a booting agent gets the cluster's table from (Fig. 5, blocks 510 and 515).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CrtSource {
    /// Every other host's RMA.
    #[default]
    Peers,
    /// Fabric services, which keep the whole table; the other RMAs where that does not do.
    Central,
}

impl CrtSource {
    /// Both, in the order of the messages that list them.
    pub const ALL: [Self; 2] = [Self::Peers, Self::Central];

    /// The word in configuration and output.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Peers => "peers",
            Self::Central => "central",
        }
    }
}

/// Who the agent is and how it behaves.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// This host.
    pub guid: Guid,
    /// Counts this host's starts; durable.
    pub incarnation: Incarnation,
    /// This host's name.
    pub name: String,
    /// This host's NICs.
    pub macs: Vec<Mac>,
    /// The cluster that the configuration asks for, or none.
    pub cluster: ClusterName,
    /// The cluster that the stored table belongs to, none at the first start: with it the agent
    /// gets to work even while no fabric services answer.
    pub known_cluster: ClusterName,
    /// Where fabric services are; `None`: found by multicast.
    pub fabric_mac: Option<Mac>,
    /// Where the cluster's table comes from.
    pub crt_source: CrtSource,
    /// The most bytes behind an Ethernet header, 1500 to 9000.
    pub mtu: u16,
    /// How often and how long.
    pub intervals: Intervals,
    /// Units that have lost their registers get them back without an administrator, when all hosts
    /// have the same table.
    pub auto_restore: bool,
    /// What this host has promised as a voter of the allocation lease; `None`: that was lost.
    pub vote: Option<StoredVote>,
}

/// How often the agent asks and how long it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intervals {
    /// Between polls of fabric services for members.
    pub fabric_poll: Duration,
    /// Between polls of a unit for its controllers and registers.
    pub unit_poll: Duration,
    /// Between polls of a controller for its devices.
    pub controller_poll: Duration,
    /// Between exchanges of stamps with a peer.
    pub peer_poll: Duration,
    /// Block 505 at boot: how long fabric services are waited for before the members that the
    /// stored table names are used.
    pub fabric_patience: Duration,
    /// Blocks 510 and 515 at boot: how long a peer is waited for before the boot goes on without.
    pub peer_patience: Duration,
    /// Block 520 at boot: how long a unit or controller is waited for before the boot goes on
    /// without.
    pub unit_patience: Duration,
    /// How long a unit may take to answer an allocation.
    pub allocation_patience: Duration,
    /// How long the row of a controller, device or extent that is gone is kept at least.
    pub purge_after: Duration,
}

impl Default for Intervals {
    fn default() -> Self {
        Self {
            fabric_poll: Duration::from_secs(5),
            unit_poll: Duration::from_secs(30),
            controller_poll: Duration::from_secs(30),
            peer_poll: Duration::from_secs(5),
            fabric_patience: Duration::from_secs(3),
            peer_patience: Duration::from_secs(2),
            unit_patience: Duration::from_secs(2),
            allocation_patience: Duration::from_secs(5),
            purge_after: Duration::from_secs(7 * 86_400),
        }
    }
}
