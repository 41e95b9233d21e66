//! What an agent wants its shell to do.

use super::request::{AdminReply, WatchEvent};
use crate::lease::StoredVote;
use crate::wire::{ClusterName, EntityType, Epoch, Guid, IocNumber, Mac, Row};

/// Names a commit that the shell is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommitToken(pub u64);

/// Something for the shell to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentAction {
    /// Write these rows, as the agent's table has them now, with its settings and stamp, durably
    /// to the table file; then call `committed`. There is at most one at a time.
    Commit {
        /// Repeated in `committed`.
        token: CommitToken,
        /// The rows that changed since the last successful commit.
        changed: Vec<Guid>,
    },
    /// Make what this host has promised as a voter of the allocation lease durable; then call
    /// `vote_persisted`. There is at most one at a time.
    PersistVote {
        /// Repeated in `vote_persisted`.
        token: u64,
        /// All of it.
        vote: Box<StoredVote>,
    },
    /// Keep a service connection to a controller; with other addresses than before, move it where it has to.
    AddController {
        /// Its unit.
        unit: Guid,
        /// Its number.
        ioc: IocNumber,
        /// The unit's NICs.
        macs: Vec<Mac>,
    },
    /// Give up the service connection to a controller.
    RemoveController {
        /// Its unit.
        unit: Guid,
        /// Its number.
        ioc: IocNumber,
    },
    /// Ask a controller for its devices; then call `devices_listed`.
    ListDevices {
        /// Its unit.
        unit: Guid,
        /// Its number.
        ioc: IocNumber,
    },
    /// All devices that this host owns, whenever one of them, its epoch or its facts change.
    Export(Vec<OwnedDevice>),
    /// Answer an administrator.
    AdminReply {
        /// The token of the request.
        token: u64,
        /// The answer.
        reply: Box<AdminReply>,
    },
    /// Look which devices of this host are in use; then call `tell_uses`.
    LookWhoUses,
    /// Tell those who watch.
    Event(WatchEvent),
    /// Fabric services have assigned the first cluster: note it in the table file.
    Joined(ClusterName),
    /// Fabric services say that this host now belongs to another cluster than its table. The
    /// agent has stopped: put the table away and start an agent with an empty one.
    Moved {
        /// The table's cluster.
        from: ClusterName,
        /// The cluster that fabric services say.
        to: ClusterName,
    },
    /// A block of Fig. 5 has begun or ended; for the log.
    Block(u16, String),
}

/// A device or extent that this host owns, with what an export needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedDevice {
    /// The device or extent; an extent with vendor and model of its device.
    pub row: Row,
    /// Its unit.
    pub unit: Guid,
    /// Its unit's name.
    pub unit_name: String,
    /// Its controller's name.
    pub controller_name: String,
    /// Its unit's NICs.
    pub unit_macs: Vec<Mac>,
    /// The epoch under which the host owns it.
    pub epoch: Epoch,
}

impl OwnedDevice {
    /// The device that takes the I/O: itself, or the one that the extent is a range of.
    pub fn device(&self) -> Guid {
        match self.row.entity {
            EntityType::Extent => self.row.parent,
            _ => self.row.guid,
        }
    }

    /// The extent that the I/O names; NIL for a whole device.
    pub fn extent(&self) -> Guid {
        match self.row.entity {
            EntityType::Extent => self.row.guid,
            _ => Guid::NIL,
        }
    }
}
