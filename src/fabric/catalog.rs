//! The fabric services database (Fig. 3) as its state machine sees it: records and transactions.

use std::collections::BTreeMap;

use super::guests::GuestRow;
use crate::crt::{Table, TableChange};
use crate::wire::message::Member;
use crate::wire::{ClusterName, EntityType, Epoch, Guid, Mac, ObservationStamp, Ownership};

/// The most hosts and units that one database holds, all clusters together.
pub const MAX_ENTITIES: usize = 16_384;
/// The most hosts and units of one cluster.
pub const MAX_CLUSTER_MEMBERS: usize = 4096;
/// The most hosts and units that wait for a cluster; a newcomer beyond it replaces the one that
/// was silent for longest.
pub const MAX_PENDING: usize = 1024;

/// One row of the database (Fig. 3, 302): a host or an I/O unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entity {
    /// What it is (304).
    pub guid: Guid,
    /// Host or unit (306).
    pub entity: EntityType,
    /// Where it is: its NICs (308), 1 to [`crate::wire::row::MAX_MACS`].
    pub macs: Vec<Mac>,
    /// Its name.
    pub name: String,
    /// Its incarnation and change number when it registered last.
    pub observed: ObservationStamp,
    /// The cluster that its configuration names, or none.
    pub requested: ClusterName,
    /// The cluster that it belongs to (310), none while it is pending.
    pub assigned: ClusterName,
    /// Counts its assignments to a cluster, those that a unit tells of included.
    pub assignment: u64,
    /// Of a unit, the clusters that devices of it were moved to, with what is known of it there.
    pub guests: BTreeMap<ClusterName, GuestRow>,
    /// Who owns it (312); hosts stay unallocated.
    pub ownership: Ownership,
    /// Row epoch of that ownership.
    pub epoch: Epoch,
    /// Version of the catalog that changed the row last (314).
    pub version: u64,
    /// Date and time of that change, for people; never compared.
    pub label: String,
}

impl Entity {
    /// Whether no cluster is assigned yet.
    pub fn is_pending(&self) -> bool {
        self.assigned.is_none()
    }

    /// The row as members of a cluster see it: its own, or one that it is a guest of.
    pub fn to_member(&self, cluster: ClusterName) -> Member {
        let guest = self.guests.get(&cluster);
        let (ownership, epoch) = match guest {
            Some(guest) => (&guest.ownership, guest.epoch),
            None => (&self.ownership, self.epoch),
        };
        Member {
            guid: self.guid,
            entity: self.entity,
            macs: self.macs.clone(),
            name: self.name.clone(),
            observed: self.observed,
            ownership: ownership.clone(),
            epoch,
            version: self.version,
            guest: guest.is_some(),
        }
    }
}

/// Everything that a catalog holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Counts the catalog's transactions.
    pub version: u64,
    /// Date and time of the last transaction, for people; never compared.
    pub label: String,
    /// The rows.
    pub entities: BTreeMap<Guid, Entity>,
    /// Version of each cluster's list: that of the transaction that changed it last.
    pub clusters: BTreeMap<ClusterName, u64>,
}

/// One transaction: all of it is durable, or nothing of it has happened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// The version on which the change was made; another one in the catalog is
    /// [`CatalogError::Conflict`].
    pub expected: u64,
    /// The version after it, larger than `expected`.
    pub version: u64,
    /// Date and time, for people.
    pub label: String,
    /// Rows to insert or replace.
    pub put: Vec<Entity>,
    /// Rows to remove.
    pub removed: Vec<Guid>,
    /// Clusters whose list changed and is not empty: they get `version`.
    pub touched: Vec<ClusterName>,
    /// Clusters whose list became empty: they are forgotten.
    pub emptied: Vec<ClusterName>,
}

/// Why a catalog cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Somebody else changed the catalog meanwhile; load it again.
    #[error("the catalog is at version {found}, not {expected}")]
    Conflict {
        /// The version the change was made on.
        expected: u64,
        /// The version found.
        found: u64,
    },
    /// The storage failed; nothing has changed.
    #[error("the catalog cannot be stored")]
    Storage(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Where fabric services keep their database.
pub trait Catalog {
    /// Everything that the catalog holds.
    fn load(&mut self) -> Result<Snapshot, CatalogError>;

    /// Makes a change durable. An error means that nothing has changed. The tables of clusters that
    /// became empty go with it.
    fn commit(&mut self, change: &Change) -> Result<(), CatalogError>;

    /// The cluster resource tables (Fig. 4) that are kept.
    fn load_tables(&mut self) -> Result<BTreeMap<ClusterName, Table>, CatalogError>;

    /// Makes a change of a cluster's table durable, all of it; `label` is the date and time, for
    /// people. An error means that nothing has changed.
    fn commit_table(
        &mut self,
        cluster: ClusterName,
        change: &TableChange,
        label: &str,
    ) -> Result<(), CatalogError>;
}

impl<C: Catalog + ?Sized> Catalog for Box<C> {
    fn load(&mut self) -> Result<Snapshot, CatalogError> {
        (**self).load()
    }

    fn commit(&mut self, change: &Change) -> Result<(), CatalogError> {
        (**self).commit(change)
    }

    fn load_tables(&mut self) -> Result<BTreeMap<ClusterName, Table>, CatalogError> {
        (**self).load_tables()
    }

    fn commit_table(
        &mut self,
        cluster: ClusterName,
        change: &TableChange,
        label: &str,
    ) -> Result<(), CatalogError> {
        (**self).commit_table(cluster, change, label)
    }
}

impl Snapshot {
    /// What the catalog holds after `change`.
    pub fn apply(&mut self, change: &Change) -> Result<(), CatalogError> {
        if change.expected != self.version {
            return Err(CatalogError::Conflict {
                expected: change.expected,
                found: self.version,
            });
        }
        self.version = change.version;
        self.label.clone_from(&change.label);
        for entity in &change.put {
            self.entities.insert(entity.guid, entity.clone());
        }
        for guid in &change.removed {
            self.entities.remove(guid);
        }
        for cluster in &change.touched {
            self.clusters.insert(*cluster, change.version);
        }
        for cluster in &change.emptied {
            self.clusters.remove(cluster);
        }
        Ok(())
    }
}
