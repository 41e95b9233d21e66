//! What `rma fabric` and `rma-fabricd` say to each other over the control socket `fabricd.sock`, a
//! JSON line each. GUIDs, MAC addresses and clusters are strings; durations end in `_ms`.

use serde::{Deserialize, Serialize};

use crate::rma::request::{SummaryInfo, TableInfo};

/// What `rma fabric` asks. An entity is named by GUID, a GUID's first digits (8 or more), MAC
/// address or name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum FabricRequest {
    /// The whole database (Fig. 3).
    List,
    /// The daemon in short.
    Status,
    /// The clusters whose table is kept.
    Tables,
    /// The table of a cluster (Fig. 4).
    Table {
        /// The cluster.
        cluster: String,
    },
    /// Assigns a host or unit to a cluster, also one that has a cluster already.
    Assign {
        /// The host or unit.
        entity: String,
        /// The cluster.
        cluster: String,
    },
    /// Removes a host or unit; one that is alive registers again like a newcomer.
    Remove {
        /// The host or unit.
        entity: String,
    },
}

/// What `rma-fabricd` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum FabricReply {
    /// To [`FabricRequest::List`].
    Catalog(CatalogInfo),
    /// To [`FabricRequest::Status`].
    Status(Box<FabricStatus>),
    /// To [`FabricRequest::Tables`], by cluster.
    Tables {
        /// The tables in short.
        tables: Vec<KeptTableInfo>,
    },
    /// To [`FabricRequest::Table`].
    Table(Box<TableInfo>),
    /// To [`FabricRequest::Assign`]: it is durable.
    Assigned {
        /// The row as it is now.
        entity: EntityInfo,
        /// The cluster before; `None` if it was pending.
        from: Option<String>,
        /// Whether anything has changed.
        changed: bool,
    },
    /// To [`FabricRequest::Remove`]: it is durable.
    Removed {
        /// The row as it was.
        entity: EntityInfo,
    },
    /// Nothing was changed.
    Error {
        /// One line for people: what is wrong and what to do.
        message: String,
    },
}

/// The fabric services database (Fig. 3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogInfo {
    /// Counts its transactions.
    pub version: u64,
    /// Date and time of the last one, for people; empty before the first.
    pub label: String,
    /// Versions of the clusters' lists.
    pub clusters: Vec<ClusterInfo>,
    /// Its rows: by cluster (pending ones last), hosts before units, by GUID.
    pub entities: Vec<EntityInfo>,
}

/// A cluster in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterInfo {
    /// Its name.
    pub name: String,
    /// Version of the catalog that changed its list last.
    pub version: u64,
    /// Its hosts.
    pub hosts: usize,
    /// Its units.
    pub units: usize,
}

/// A cluster's table that is kept, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptTableInfo {
    /// The cluster.
    pub cluster: String,
    /// Its stamp, digest and number of rows.
    #[serde(flatten)]
    pub table: SummaryInfo,
}

/// A row of the database (302).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntityInfo {
    /// 304.
    pub guid: String,
    /// 306: `host` or `unit`.
    #[serde(rename = "type")]
    pub entity: String,
    /// 308: its NICs.
    pub macs: Vec<String>,
    /// Its name.
    pub name: String,
    /// 310; `None` while it is pending.
    pub cluster: Option<String>,
    /// Counts its assignments to a cluster.
    #[serde(default)]
    pub assignment: u64,
    /// Of a unit, the clusters that devices of it were moved to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guests: Vec<GuestInfo>,
    /// The cluster that its configuration names.
    pub requested: Option<String>,
    /// 312: `unallocated`, `dedicated` or `shared`; `None` for hosts.
    pub ownership: Option<String>,
    /// 312: the owning hosts.
    pub owners: Vec<OwnerInfo>,
    /// Counts the ownership's changes; as in the unit's register.
    pub epoch: u64,
    /// Counts its starts.
    pub incarnation: u64,
    /// 314: version of the catalog that changed the row last.
    pub version: u64,
    /// 314: date and time of that change, for people.
    pub label: String,
    /// Whether it is connected now.
    pub connected: bool,
    /// How long ago it was heard last; `None` if never since the daemon started.
    pub last_seen_ms: Option<u64>,
    /// Where it was heard last.
    pub last_seen_at: Option<String>,
}

/// What a unit is to a cluster that devices of it were moved to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestInfo {
    /// The cluster.
    pub cluster: String,
    /// 312, there: `unallocated`, `dedicated` or `shared`.
    pub ownership: String,
    /// 312, there: the owning hosts.
    pub owners: Vec<OwnerInfo>,
    /// Counts the ownership's changes there.
    pub epoch: u64,
}

/// An owner of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerInfo {
    /// The host.
    pub guid: String,
    /// Its name; `None` where the database does not have it.
    pub name: Option<String>,
}

/// The daemon in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricStatus {
    /// The fabric services' GUID.
    pub guid: String,
    /// Counts its starts.
    pub incarnation: u64,
    /// For how long it has run.
    pub uptime_ms: u64,
    /// The network interface.
    pub interface: String,
    /// Its address.
    pub mac: String,
    /// `up`, `down` or `gone`.
    pub link: String,
    /// The most bytes of a frame behind its Ethernet header.
    pub mtu: u16,
    /// What becomes of newcomers: `pending` or `auto-join`.
    pub policy: String,
    /// The database file.
    pub database: String,
    /// Counts its transactions.
    pub version: u64,
    /// Date and time of the last one, for people.
    pub label: String,
    /// Hosts in the database.
    pub hosts: usize,
    /// Units in the database.
    pub units: usize,
    /// Hosts and units that wait for a cluster.
    pub pending: usize,
    /// Hosts and units that are connected now.
    pub connected: usize,
    /// Clusters with a member.
    pub clusters: usize,
    /// What was done since the start, by name.
    pub counters: Vec<Counter>,
    /// Frames dropped since the start, by reason; reasons that did not occur are left out.
    pub drops: Vec<Counter>,
}

/// A count with its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// What is counted.
    pub name: String,
    /// How often.
    pub count: u64,
}
