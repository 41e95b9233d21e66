//! What an administrator asks of an agent and what comes back: plain data, no rendered text, so
//! that the command line's table and its JSON show the same facts. GUIDs, MAC addresses and
//! addresses are strings; sizes are bytes; durations end in `_ms`.

use serde::{Deserialize, Serialize};

pub use super::admin_error::{AdminError, ErrorKind};
pub use super::applied::{ApplyChangeInfo, ApplyInfo, ApplyState, ApplyUnitInfo, LevelChangeInfo};
use super::desired::Desired;
pub use super::event::WatchEvent;
pub use super::lock_info::{HolderInfo, LockInfo, VoterInfo};

/// A request of the allocation application (210) or another administrator's verb.
///
/// Targets and hosts are named by GUID, a GUID's first digits (8 or more), address or name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum AdminRequest {
    /// The agent, its table and its connections in short.
    Status,
    /// The hosts of the cluster.
    Hosts,
    /// The units of the cluster.
    Units,
    /// The devices of the cluster.
    Devices,
    /// Hosts, and units with their controllers and devices.
    Tree,
    /// Every row of the table, tombstones included.
    Table,
    /// Gives a unit, controller, device or extent to hosts.
    Allocate {
        /// The unit, controller, device or extent.
        target: String,
        /// The hosts: one for dedicated, one or more for shared.
        hosts: Vec<String>,
        /// Shared even where one host is named; several hosts are always shared.
        #[serde(default)]
        shared: bool,
        /// Also adjusts what lies below where it would break the hierarchy.
        #[serde(default)]
        recursive: bool,
    },
    /// Takes a unit, controller, device or extent from its owners.
    Release {
        /// The unit, controller, device or extent.
        target: String,
        /// Also releases what lies below.
        #[serde(default)]
        recursive: bool,
    },
    /// Moves a device or unit to a host of another cluster.
    Move {
        /// The device or unit.
        target: String,
        /// The other cluster.
        cluster: String,
        /// The host there: its GUID or its name.
        host: String,
        /// Of a unit, also gives what is below it to the host.
        #[serde(default)]
        recursive: bool,
    },
    /// Takes a row out of the table for good, with all below it: one whose parent no longer lists
    /// it, or a host or unit that is no member any more.
    Forget {
        /// The row.
        target: String,
    },
    /// Makes a range of a device an extent, which is allocated on its own.
    Carve {
        /// The device.
        device: String,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        size: u64,
        /// The extent's name; may be empty.
        #[serde(default)]
        name: String,
    },
    /// Makes the cluster as desired, unit by unit.
    Apply {
        /// What is desired.
        desired: Desired,
        /// Only say what that would change.
        #[serde(default)]
        dry_run: bool,
    },
    /// Removes an extent that nobody owns.
    Uncarve {
        /// The extent.
        extent: String,
    },
    /// Gives a unit that has lost its registers those that the table tells of.
    RestoreUnit {
        /// The unit.
        unit: String,
        /// Even while not every member host is known to have the same table.
        #[serde(default)]
        force: bool,
    },
    /// The finest level at which the cluster allocates.
    GranularityGet,
    /// Sets the finest level at which the cluster allocates.
    GranularitySet {
        /// `unit`, `controller`, `device` or `extent`.
        granularity: String,
    },
    /// The devices that this host owns and exports.
    Exports,
    /// Who holds the allocation lease, as every voter sees it.
    LockStatus,
    /// Takes the allocation lease and keeps it until it is released.
    LockAcquire {
        /// Also from another host.
        #[serde(default)]
        force: bool,
    },
    /// Releases the allocation lease that an administrator of this host keeps.
    LockRelease {
        /// Also one that another host holds.
        #[serde(default)]
        force: bool,
    },
    /// Events from now on; answered with [`AdminReply::Watching`], then the shell passes on every
    /// [`WatchEvent`].
    Watch,
}

/// The process that asks, as the system vouches for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// Its number, 0 where not known.
    pub process: u32,
    /// The user that it runs as.
    pub user: String,
}

/// The answer to an [`AdminRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum AdminReply {
    /// To [`AdminRequest::Status`].
    Status(Box<StatusInfo>),
    /// To [`AdminRequest::Hosts`].
    Hosts {
        /// By GUID.
        hosts: Vec<HostInfo>,
    },
    /// To [`AdminRequest::Units`].
    Units {
        /// By GUID.
        units: Vec<UnitInfo>,
    },
    /// To [`AdminRequest::Devices`].
    Devices {
        /// Devices and extents, by unit, controller number, device number, offset.
        devices: Vec<DeviceInfo>,
    },
    /// To [`AdminRequest::Tree`].
    Tree(Box<TreeInfo>),
    /// To [`AdminRequest::Table`].
    Table(Box<TableInfo>),
    /// To [`AdminRequest::Allocate`] and [`AdminRequest::Release`].
    Allocated(Box<AllocationInfo>),
    /// To [`AdminRequest::Move`].
    Moved(Box<MoveInfo>),
    /// To [`AdminRequest::Forget`].
    Forgotten(Box<ForgottenInfo>),
    /// To [`AdminRequest::Carve`] and [`AdminRequest::Uncarve`].
    Carved(Box<CarveInfo>),
    /// To [`AdminRequest::RestoreUnit`]: they are durable at the unit.
    Restored(RestoredInfo),
    /// To [`AdminRequest::Apply`], also where some units have not made their part.
    Applied(Box<ApplyInfo>),
    /// To [`AdminRequest::GranularityGet`] and [`AdminRequest::GranularitySet`].
    Granularity(GranularityInfo),
    /// To [`AdminRequest::Exports`].
    Exports {
        /// Devices and extents, by unit, controller number, device number, offset.
        devices: Vec<DeviceInfo>,
    },
    /// To [`AdminRequest::LockStatus`], [`AdminRequest::LockAcquire`] and
    /// [`AdminRequest::LockRelease`].
    Lock(Box<LockInfo>),
    /// To [`AdminRequest::Watch`].
    Watching,
    /// The request failed; nothing was changed unless the message says so.
    Error(AdminError),
}

/// A table's stamp.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StampInfo {
    /// The allocation session's term.
    pub term: u64,
    /// Counts the table's versions.
    pub counter: u64,
    /// GUID of the host that published the version.
    pub writer: String,
}

/// How current a table is, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SummaryInfo {
    /// The stamp.
    pub stamp: StampInfo,
    /// Digest of settings and rows, 32 hexadecimal digits.
    pub digest: String,
    /// Rows, tombstones included.
    pub row_count: u64,
}

/// An entity by GUID and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameInfo {
    /// Its GUID.
    pub guid: String,
    /// Its name; empty where no row tells it.
    pub name: String,
}

/// Who owns a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnershipInfo {
    /// `unallocated`, `dedicated` or `shared`.
    pub ownership: String,
    /// The owners by GUID.
    pub owners: Vec<NameInfo>,
}

/// An extent's range of its device, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeInfo {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// A row of the table (Fig. 4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowInfo {
    /// GUID (404).
    pub guid: String,
    /// Type (406): `host`, `I/O unit`, `I/O controller`, `I/O device`, `extent`.
    #[serde(rename = "type")]
    pub entity: String,
    /// `valid` or `invalid`.
    pub state: String,
    /// Name.
    pub name: String,
    /// NIC MAC addresses (408); for controllers and devices, their unit's.
    pub macs: Vec<String>,
    /// `MAC`, `MAC/IOC`, `MAC/IOC/IOD` or `MAC/IOC/IOD@offset+length`; empty where no NIC is known.
    pub address: String,
    /// Controller number (410), 0 where none.
    pub ioc: u16,
    /// Device number (410), 0 where none.
    pub iod: u16,
    /// The range of its device, where the row is an extent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extent: Option<RangeInfo>,
    /// The entity one level up (412); none for hosts and units.
    pub parent: Option<NameInfo>,
    /// Who owns it (414); always `unallocated` for hosts.
    #[serde(flatten)]
    pub ownership: OwnershipInfo,
    /// Counts the row's ownership changes.
    pub epoch: u64,
    /// Term of the ownership's last change.
    pub term: u64,
    /// GUID of the host that made the ownership's last change, empty before the first.
    pub writer: String,
    /// Size, 0 where it has none.
    pub size_bytes: u64,
    /// Logical block size, 0 where it has none.
    pub block_size_bytes: u32,
    /// Vendor.
    pub vendor: String,
    /// Model.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Names of the feature bits that are set.
    pub features: Vec<String>,
    /// Mode of operation in bits, 0 where not said.
    pub mode: u8,
    /// Incarnation of the observer when it reported the row.
    pub observed_incarnation: u64,
    /// Change number of the observer when it reported the row.
    pub observed_change: u64,
}

/// Whether an entity answers; known to this host only, not part of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LivenessInfo {
    /// `self`, `reachable`, `unreachable` or `unknown` (not tried yet).
    pub liveness: String,
    /// For how long it has been so, in milliseconds.
    pub liveness_ms: u64,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// Its row.
    #[serde(flatten)]
    pub row: RowInfo,
    /// Whether its RMA answers.
    #[serde(flatten)]
    pub liveness: LivenessInfo,
    /// Whether fabric services list it as a member (the last list known).
    pub member: bool,
    /// Its table as it last told; none before.
    pub table: Option<SummaryInfo>,
    /// Whether that table's digest equals ours.
    pub in_step: bool,
}

/// A unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitInfo {
    /// Its row.
    #[serde(flatten)]
    pub row: RowInfo,
    /// Whether its UMS answers.
    #[serde(flatten)]
    pub liveness: LivenessInfo,
    /// Whether fabric services list it as a member (the last list known).
    pub member: bool,
    /// Whether it belongs to another cluster, and only has something of this one.
    #[serde(default)]
    pub guest: bool,
    /// Whether it has lost its ownership registers and serves no I/O until they are restored.
    pub registers_lost: bool,
    /// Valid controllers.
    pub controller_count: u64,
    /// Valid devices.
    pub device_count: u64,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Its row.
    #[serde(flatten)]
    pub row: RowInfo,
    /// Its unit.
    pub unit: NameInfo,
    /// Whether the unit answers.
    #[serde(flatten)]
    pub liveness: LivenessInfo,
    /// Whether this host is an owner (of an extent, of that extent; of a device that has extents,
    /// never: it is used by them).
    pub owned_here: bool,
}

/// A controller with its devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerTreeInfo {
    /// The controller.
    #[serde(flatten)]
    pub row: RowInfo,
    /// Its devices by number, valid ones only.
    pub devices: Vec<DeviceTreeInfo>,
}

/// A device with its extents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceTreeInfo {
    /// The device.
    #[serde(flatten)]
    pub row: RowInfo,
    /// Its extents by offset, valid ones only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extents: Vec<RowInfo>,
}

/// A unit with its controllers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitTreeInfo {
    /// The unit.
    #[serde(flatten)]
    pub unit: UnitInfo,
    /// Its controllers by number, valid ones only.
    pub controllers: Vec<ControllerTreeInfo>,
}

/// The cluster as a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeInfo {
    /// The cluster, empty before one is assigned.
    pub cluster: String,
    /// Its hosts.
    pub hosts: Vec<HostInfo>,
    /// Its units.
    pub units: Vec<UnitTreeInfo>,
}

/// The whole table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableInfo {
    /// The cluster, empty before one is assigned.
    pub cluster: String,
    /// Stamp, digest and number of rows.
    #[serde(flatten)]
    pub summary: SummaryInfo,
    /// The finest level of allocation.
    pub granularity: String,
    /// The rows: hosts, then each unit with each controller with its devices.
    pub rows: Vec<RowInfo>,
}

/// The agent in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusInfo {
    /// This host.
    pub host: NameInfo,
    /// Its NICs.
    pub macs: Vec<String>,
    /// The cluster, empty before one is assigned.
    pub cluster: String,
    /// Counts this host's starts.
    pub incarnation: u64,
    /// The block of Fig. 5 that the agent is in (505 to 530), or 0 in steady state.
    pub block: u16,
    /// `up`, `down` or `pending` (registered, but no cluster assigned yet).
    pub fabric: String,
    /// For how long, in milliseconds.
    pub fabric_ms: u64,
    /// The table.
    pub table: SummaryInfo,
    /// Where tables come from at the start: `peers` or `central`.
    pub crt_source: String,
    /// The table that fabric services keep; `None` where this host does not use it, or they do not
    /// answer.
    pub centre: Option<CentreInfo>,
    /// The finest level of allocation.
    pub granularity: String,
    /// Other hosts of the cluster.
    pub peer_count: u64,
    /// Those that answer.
    pub peers_reachable: u64,
    /// Those whose table's digest equals ours.
    pub peers_in_step: u64,
    /// Units of the cluster.
    pub unit_count: u64,
    /// Those that answer.
    pub units_reachable: u64,
    /// Valid devices of the cluster.
    pub device_count: u64,
    /// Devices that this host owns.
    pub devices_owned: u64,
    /// Frames dropped, by reason; reasons without drops are left out.
    pub drops: Vec<DropInfo>,
    /// What was refused since the start because it cannot be true, each in one line: two with one
    /// GUID or MAC address, stamps that nothing could outrank.
    pub refused: Vec<String>,
}

/// Fabric services as the keepers of the cluster's table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CentreInfo {
    /// The fabric services' GUID.
    pub guid: String,
    /// Their table as last told; `None` where they have told none.
    pub table: Option<SummaryInfo>,
    /// Whether its digest equals ours.
    pub in_step: bool,
}

/// How many frames were dropped for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropInfo {
    /// The reason.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// One row's ownership change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeInfo {
    /// The row.
    #[serde(flatten)]
    pub row: NameInfo,
    /// Its type.
    #[serde(rename = "type")]
    pub entity: String,
    /// Who owned it.
    pub before: OwnershipInfo,
    /// Who owns it.
    pub after: OwnershipInfo,
    /// The epoch after the change.
    pub epoch: u64,
}

/// What an allocation or release did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocationInfo {
    /// The row that was asked for, as it is now.
    pub target: RowInfo,
    /// The unit that committed it.
    pub unit: NameInfo,
    /// Whether anything changed; false: it was so already.
    pub changed: bool,
    /// The changes, parents first.
    pub changes: Vec<ChangeInfo>,
}

/// What a move did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveInfo {
    /// The row as it is left behind in this cluster.
    pub target: RowInfo,
    /// The unit that committed it.
    pub unit: NameInfo,
    /// The cluster that it is in.
    pub cluster: String,
    /// GUID of the host there that it is dedicated to.
    pub host: String,
    /// Whether anything changed; false: it was there already.
    pub changed: bool,
}

/// A unit has its registers again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredInfo {
    /// The unit.
    pub unit: NameInfo,
    /// How many; rows without one were never allocated.
    pub registers: u64,
    /// Whether a host's table was left out, and the epochs leapt for that reason.
    pub forced: bool,
}

/// What was forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgottenInfo {
    /// The rows as they were, the one that was asked for first.
    pub rows: Vec<RowInfo>,
}

/// What a carve or uncarve did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarveInfo {
    /// The extent as it is now; invalid where it was removed.
    pub extent: RowInfo,
    /// The unit that committed it.
    pub unit: NameInfo,
    /// Whether anything changed; false: it was so already.
    pub changed: bool,
}

/// The finest level of allocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GranularityInfo {
    /// `unit`, `controller`, `device` or `extent`.
    pub granularity: String,
    /// Stamp of its last change.
    pub stamp: StampInfo,
    /// Whether this request changed it.
    pub changed: bool,
}
