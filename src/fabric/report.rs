//! What fabric services report: events for the log, counters, entities as they are at the moment.

use super::catalog::{CatalogError, Entity};
use super::directory::RegisterNote;
use crate::wire::message::TableSummary;
use crate::wire::{ClusterName, EntityType, Epoch, Guid, Mac, Ownership, Time};

/// What happened, for the log.
#[derive(Debug)]
pub enum FabricEvent {
    /// A registration changed something.
    Registered {
        /// Who.
        guid: Guid,
        /// Its name.
        name: String,
        /// What it is.
        entity: EntityType,
        /// What changed.
        note: RegisterNote,
    },
    /// Somebody says the GUID of an entity that is alive at another address, and was refused.
    Twin {
        /// The GUID.
        guid: Guid,
        /// Where the registered one is alive.
        alive: Mac,
        /// Who was refused.
        refused: Mac,
    },
    /// An administrator assigned a cluster.
    Assigned {
        /// To whom.
        guid: Guid,
        /// The cluster before, none if it was pending.
        from: ClusterName,
        /// The cluster now.
        to: ClusterName,
    },
    /// An administrator removed an entity.
    Removed(Guid),
    /// The owners of a unit changed.
    UnitOwned {
        /// Who told.
        teller: Guid,
        /// The unit.
        unit: Guid,
        /// Its owners.
        ownership: Ownership,
        /// Row epoch.
        epoch: Epoch,
    },
    /// The table of a cluster is kept from now on.
    TableKept {
        /// The cluster.
        cluster: ClusterName,
        /// The table.
        summary: TableSummary,
    },
    /// A cluster has no members any more; its table is no longer kept.
    TableDropped {
        /// The cluster.
        cluster: ClusterName,
    },
    /// The catalog did not take a change; nothing was changed.
    NotPersisted(CatalogError),
}

impl std::fmt::Display for FabricEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Registered {
                guid,
                name,
                entity,
                note,
            } => {
                write!(f, "{entity} '{}' ({guid}) ", name.escape_debug())?;
                match note {
                    RegisterNote::New => write!(f, "is new"),
                    RegisterNote::Joined(cluster) => write!(f, "joins cluster {cluster}"),
                    RegisterNote::Moved { from, to } => {
                        write!(f, "moved from {from:?} to {to:?}")
                    }
                    RegisterNote::Transferred { from, to } => {
                        write!(f, "was moved from cluster {from} to {to}")
                    }
                    RegisterNote::KeepsCluster {
                        requested,
                        assigned,
                    } => write!(
                        f,
                        "asks for cluster {requested} but is assigned to {assigned}, which it keeps"
                    ),
                    RegisterNote::WentBack => write!(
                        f,
                        "has a lower incarnation than before: its state directory was lost or restored"
                    ),
                    RegisterNote::Forgot(other) => {
                        write!(
                            f,
                            "takes the place of the pending {other}: too many are pending"
                        )
                    }
                }
            }
            Self::Twin {
                guid,
                alive,
                refused,
            } => write!(
                f,
                "two entities say they are {guid}: {alive} is registered and alive, {refused} was refused; give one of them another GUID"
            ),
            Self::Assigned { guid, from, to } if from.is_none() => {
                write!(f, "{guid} was assigned to cluster {to}")
            }
            Self::Assigned { guid, from, to } => {
                write!(f, "{guid} was moved from cluster {from} to {to}")
            }
            Self::Removed(guid) => write!(f, "{guid} was removed"),
            Self::UnitOwned {
                teller,
                unit,
                ownership,
                epoch,
            } => write!(
                f,
                "unit {unit} is {} {:?} (epoch {epoch}), says {teller}",
                ownership.word(),
                ownership.owners()
            ),
            Self::TableKept { cluster, summary } => write!(
                f,
                "the table of cluster {cluster} is kept from now on: {} rows",
                summary.row_count
            ),
            Self::TableDropped { cluster } => write!(
                f,
                "cluster {cluster} has no members any more; its table is no longer kept"
            ),
            Self::NotPersisted(error) => {
                write!(f, "a change was refused: {error}")?;
                let mut source = std::error::Error::source(error);
                while let Some(cause) = source {
                    write!(f, ": {cause}")?;
                    source = cause.source();
                }
                Ok(())
            }
        }
    }
}

/// What fabric services have done since they started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FabricCounters {
    /// Searches answered.
    pub searches: u64,
    /// Registrations answered with a cluster or with pending.
    pub registrations: u64,
    /// Registrations and connects refused because of a twin.
    pub twins: u64,
    /// Pages of membership lists sent.
    pub pages: u64,
    /// Membership requests answered with "unchanged".
    pub unchanged: u64,
    /// Unit ownerships taken.
    pub ownerships: u64,
    /// Stamps, digests and pages of clusters' tables told to hosts, pieces of deposits taken.
    pub tables_told: u64,
    /// Offers and deposits of tables taken, those with nothing new included.
    pub tables_taken: u64,
    /// Requests about tables refused.
    pub tables_refused: u64,
    /// Requests answered with a status that is not ok, pending ones left out.
    pub refused: u64,
    /// Notifications sent, repetitions left out.
    pub notifications: u64,
    /// Transactions.
    pub commits: u64,
    /// Transactions that failed.
    pub failed_commits: u64,
    /// Events lost because nobody polled them.
    pub lost_events: u64,
}

/// An entity with what is known about it at the moment.
#[derive(Debug, Clone, Copy)]
pub struct EntityView<'a> {
    /// Its row.
    pub entity: &'a Entity,
    /// Whether it is connected, registered and was heard in the last seconds.
    pub connected: bool,
    /// Where and when it was heard last since we started.
    pub heard: Option<(Mac, Time)>,
}
