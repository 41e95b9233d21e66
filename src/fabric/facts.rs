//! What a link to fabric services is told, and what it says.

use std::time::Duration;

use crate::wire::kind::Role;
use crate::wire::message::{Member, Placement};
use crate::wire::{ClusterName, CommandId, EntityType, Epoch, Guid, Incarnation, Mac, Status};

/// What a link needs to know.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// Who we are.
    pub local: Guid,
    /// Our incarnation.
    pub incarnation: Incarnation,
    /// Host or unit, as the opener of the connection.
    pub role: Role,
    /// Host or unit, as the row to register.
    pub entity: EntityType,
    /// What to register at first.
    pub facts: Facts,
    /// Where fabric services are; `None` to search for them by multicast.
    pub fabric_mac: Option<Mac>,
    /// Whether the cluster's table is asked for here as well.
    pub tables: bool,
    /// How often hosts ask for their membership list.
    pub poll: Duration,
    /// The most bytes of a frame behind its Ethernet header.
    pub mtu: u16,
}

/// What an entity registers about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its NICs, the one that the link speaks through among them: 1 to
    /// [`crate::wire::row::MAX_MACS`], none twice.
    pub macs: Vec<Mac>,
    /// Its name, at most [`crate::wire::row::MAX_NAME_BYTES`] bytes.
    pub name: String,
    /// The cluster that its configuration names, or none.
    pub cluster: ClusterName,
    /// Its change number within the incarnation.
    pub change: u64,
    /// Of a unit, which clusters it serves.
    pub placement: Placement,
}

/// The hosts and units of our cluster (Fig. 5, block 505).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipList {
    /// The list's version at the fabric services that gave it.
    pub version: u64,
    /// The members by ascending GUID, ourselves among them.
    pub members: Vec<Member>,
}

/// What the link has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// Connected to fabric services; said again when they have restarted.
    Up {
        /// Which ones.
        fabric: Guid,
        /// Their incarnation.
        incarnation: Incarnation,
    },
    /// Fabric services do not answer any more; the link searches for ever, the last list holds.
    Down,
    /// Registered and a member of this cluster; said when it changes.
    Assigned(ClusterName),
    /// Registered, but no cluster is assigned (yet, or any more); said when it changes. A cluster that
    /// was assigned before is not withdrawn by it: other fabric services may know less.
    Pending,
    /// Fabric services refuse us; the link asks again. Said when it changes.
    Refused(Status),
    /// The answer to [`FabricLink::find_host`](super::FabricLink::find_host) with this number: the
    /// host, or why there is none ([`Status::NotReady`]: fabric services do not answer).
    HostFound(u64, Result<Guid, Status>),
    /// The whole membership list; hosts only, said when it has changed.
    Members(MembershipList),
    /// Registered on this connection: the cluster's table may be asked for; said only where
    /// [`LinkConfig::tables`] says so, as are the following.
    TablesOpen,
    /// What was asked about the table will not be answered.
    TablesClosed,
    /// The answer to what was asked about the table.
    Table {
        /// What was asked.
        command: CommandId,
        /// How it ended.
        status: Status,
        /// The answer's body.
        body: Vec<u8>,
    },
}

/// How we stand with fabric services, as said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Unknown,
    Assigned(ClusterName, u64),
    Pending,
    Refused(Status),
}

/// What an outstanding command is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Register,
    Membership,
    Tell(Guid, Epoch),
    Table,
    Find(u64),
}
