//! Message bodies, one type for each request and reply that has one.
//!
//! | kind | request body | reply body |
//! |---|---|---|
//! | connect | [`ConnectRequest`] | [`ConnectReply`] |
//! | probe | [`Missing`] | - |
//! | progress | - | [`ProgressReport`] |
//! | notify, notify-ack | [`Notification`] | - |
//! | discover / here | [`Discover`] / [`Here`] | - |
//! | register | [`Register`] | [`Registered`] |
//! | membership | [`MembershipRequest`] | [`MembershipReply`] |
//! | unit-ownership | [`UnitOwnership`] | empty |
//! | table-stamp | empty | [`TableSummary`] |
//! | table-rows | [`TableRowsRequest`] | [`TableRowsReply`] |
//! | offer | [`Offer`] | [`TableSummary`] |
//! | controllers | empty | [`ControllersReply`] |
//! | registers | empty | [`RegistersReply`] |
//! | compare-and-set | [`CompareAndSet`] | [`RegistersReply`] or [`Conflict`] |
//! | devices | empty | [`DevicesReply`] |
//! | identify | empty | [`IdentifyReply`] |
//! | read | [`IoRange`] | the data |
//! | write | [`IoRange`], then the data | empty |
//! | discard, write-zeroes | [`IoRange`] | empty |
//! | flush, keep-alive | empty | empty |
//!
//! A reply whose status is not ok has an empty body, except compare-and-set's [`Conflict`].

use super::codec::{DecodeError, Reader, Wire, Writer};
use super::id::{ClusterName, Epoch, Guid, Incarnation, IocNumber, IodNumber, Mac};
use super::kind::{EntityType, Event, Progress, Role};
use super::row::{
    MAX_LABEL_BYTES, MAX_MACS, MAX_NAME_BYTES, ObservationStamp, Ownership, OwnershipStamp, Row,
    Settings, TableStamp, wire_struct,
};

/// The most missing ranges that one probe or progress names; more are named by the next.
pub const MAX_RANGES: usize = 128;
/// The most members of a cluster: hosts and units.
pub const MAX_MEMBERS: usize = 4096;
/// The most controllers of a unit.
pub const MAX_CONTROLLERS: usize = 1024;
/// The most devices of a controller.
pub const MAX_DEVICES: usize = 4096;
/// The most registers of a unit.
pub const MAX_REGISTERS: usize = 16_384;
/// The most rows of one table page or offer; an offer of more is made by digest.
pub const MAX_PAGE_ROWS: usize = 4096;
/// The most changes of one compare-and-set.
pub const MAX_CHANGES: usize = 4096;

/// Opens a connection. `header.command` repeats `nonce`'s low bits so that the reply can be matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectRequest {
    /// The initiator.
    pub initiator: Guid,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Names the session within the incarnation: a reconnect with the same (initiator,
    /// incarnation, session, IOC) continues it, its commands and its duplicate window.
    pub session: u64,
    /// Counts the session's connection attempts: a late connect of an earlier attempt is refused.
    pub attempt: u32,
    /// Who opens.
    pub role: Role,
    /// Who is expected to answer; NIL for whoever it is.
    pub responder: Guid,
    /// Feature bits offered; none are assigned yet.
    pub features: u64,
    /// The most bytes of a frame behind its Ethernet header that the initiator can receive.
    pub mtu: u16,
    /// Commands that the initiator would like to have outstanding.
    pub credits: u16,
}
wire_struct!(ConnectRequest {
    initiator,
    incarnation,
    session,
    attempt,
    role,
    responder,
    features,
    mtu,
    credits
});

/// Answers a connect; the connection's number is in the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectReply {
    /// The responder.
    pub responder: Guid,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Feature bits agreed.
    pub features: u64,
    /// The most bytes of a frame behind its Ethernet header that both can receive.
    pub mtu: u16,
    /// Commands that the initiator may have outstanding.
    pub credits: u16,
    /// Whether the session's earlier commands are still known (its duplicate window held).
    pub resumed: bool,
}
wire_struct!(ConnectReply {
    responder,
    incarnation,
    features,
    mtu,
    credits,
    resumed
});

/// A byte range of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub offset: u32,
    /// Number of bytes.
    pub len: u32,
}
wire_struct!(ByteRange { offset, len });

/// What a probe says is missing of a reply; empty: nothing of it has arrived.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Missing {
    /// Ranges in ascending order, at most [`MAX_RANGES`].
    pub ranges: Vec<ByteRange>,
}

impl Wire for Missing {
    fn put(&self, w: &mut Writer) {
        w.list(&self.ranges);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            ranges: r.list("ranges", MAX_RANGES)?,
        })
    }
}

/// How far a command has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgressReport {
    /// Its state.
    pub progress: Progress,
    /// What is missing of the request, where it is incomplete.
    pub missing: Missing,
}
wire_struct!(ProgressReport { progress, missing });

/// Something changed at the responder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification {
    /// Counts the connection's notifications; a later one of the same event replaces an earlier.
    pub number: u64,
    /// What changed.
    pub event: Event,
    /// The controller it is about, 0 where none.
    pub ioc: IocNumber,
    /// The observer's stamp after the change.
    pub stamp: ObservationStamp,
}
wire_struct!(Notification {
    number,
    event,
    ioc,
    stamp
});

/// Who are the fabric services here?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Discover {
    /// The asker.
    pub asker: Guid,
    /// What it is.
    pub role: Role,
}
wire_struct!(Discover { asker, role });

/// Fabric services are here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Here {
    /// The fabric services' GUID.
    pub fabric: Guid,
    /// Their incarnation.
    pub incarnation: Incarnation,
}
wire_struct!(Here {
    fabric,
    incarnation
});

/// A host or unit as fabric services know it (Fig. 3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// What it is (304).
    pub guid: Guid,
    /// Host or unit (306).
    pub entity: EntityType,
    /// Its NICs (308).
    pub macs: Vec<Mac>,
    /// Its name.
    pub name: String,
    /// Its incarnation and change number when it registered.
    pub observed: ObservationStamp,
    /// Who owns it (312), units only.
    pub ownership: Ownership,
    /// Row epoch of that ownership.
    pub epoch: Epoch,
    /// Version of the catalog that changed it last (314).
    pub version: u64,
}

impl Wire for Member {
    fn put(&self, w: &mut Writer) {
        w.put(&self.guid);
        w.put(&self.entity);
        w.list(&self.macs);
        w.text(&self.name);
        w.put(&self.observed);
        w.put(&self.ownership);
        w.put(&self.epoch);
        w.put(&self.version);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            guid: r.get()?,
            entity: r.get()?,
            macs: r.list("MAC addresses", MAX_MACS)?,
            name: r.text("name", MAX_NAME_BYTES)?,
            observed: r.get()?,
            ownership: r.get()?,
            epoch: r.get()?,
            version: r.get()?,
        })
    }
}

/// A host or unit registers itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Register {
    /// What it is.
    pub guid: Guid,
    /// Host or unit.
    pub entity: EntityType,
    /// Its NICs.
    pub macs: Vec<Mac>,
    /// Its name.
    pub name: String,
    /// Its incarnation and change number.
    pub observed: ObservationStamp,
    /// The cluster that its configuration names, or none.
    pub cluster: ClusterName,
}

impl Wire for Register {
    fn put(&self, w: &mut Writer) {
        w.put(&self.guid);
        w.put(&self.entity);
        w.list(&self.macs);
        w.text(&self.name);
        w.put(&self.observed);
        w.put(&self.cluster);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            guid: r.get()?,
            entity: r.get()?,
            macs: r.list("MAC addresses", MAX_MACS)?,
            name: r.text("name", MAX_NAME_BYTES)?,
            observed: r.get()?,
            cluster: r.get()?,
        })
    }
}

/// Answers a register. Status pending: no cluster is assigned yet, ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registered {
    /// The assigned cluster, none while pending.
    pub cluster: ClusterName,
    /// The catalog's version.
    pub version: u64,
}
wire_struct!(Registered { cluster, version });

/// Asks for the sender's cluster's members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MembershipRequest {
    /// The version already known; 0 for none. The same version again is answered without members.
    pub known_version: u64,
    /// Only members after this GUID: pages of a long list.
    pub after: Guid,
}
wire_struct!(MembershipRequest {
    known_version,
    after
});

/// The members of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipReply {
    /// The version of the cluster's list.
    pub version: u64,
    /// Whether the list is the one already known; then `members` is empty.
    pub unchanged: bool,
    /// Whether more follow after the last.
    pub more: bool,
    /// The members, by ascending GUID.
    pub members: Vec<Member>,
}

impl Wire for MembershipReply {
    fn put(&self, w: &mut Writer) {
        w.put(&self.version);
        w.put(&self.unchanged);
        w.put(&self.more);
        w.list(&self.members);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            version: r.get()?,
            unchanged: r.get()?,
            more: r.get()?,
            members: r.list("members", MAX_MEMBERS)?,
        })
    }
}

/// Tells fabric services who owns a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitOwnership {
    /// The unit.
    pub unit: Guid,
    /// Its owners.
    pub ownership: Ownership,
    /// Row epoch; an older one is ignored.
    pub epoch: Epoch,
}
wire_struct!(UnitOwnership {
    unit,
    ownership,
    epoch
});

/// How current a table is, and what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableSummary {
    /// Its stamp.
    pub stamp: TableStamp,
    /// Digest of its settings and rows.
    pub digest: u128,
    /// Number of rows, tombstones included.
    pub row_count: u32,
}
wire_struct!(TableSummary {
    stamp,
    digest,
    row_count
});

/// Asks for a page of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableRowsRequest {
    /// Only rows after this GUID.
    pub after: Guid,
}
wire_struct!(TableRowsRequest { after });

/// A page of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRowsReply {
    /// The table's summary when the page was made; another one than the page before: start again.
    pub summary: TableSummary,
    /// Cluster-wide settings.
    pub settings: Settings,
    /// Whether more follow after the last.
    pub more: bool,
    /// Rows by ascending GUID.
    pub rows: Vec<Row>,
}

impl Wire for TableRowsReply {
    fn put(&self, w: &mut Writer) {
        w.put(&self.summary);
        w.put(&self.settings);
        w.put(&self.more);
        w.list(&self.rows);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            summary: r.get()?,
            settings: r.get()?,
            more: r.get()?,
            rows: r.list("rows", MAX_PAGE_ROWS)?,
        })
    }
}

/// Offers a table. The receiver joins the rows; when its digest then differs from the offered one
/// and the offer was not older, it fetches the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The offered table's summary.
    pub summary: TableSummary,
    /// Cluster-wide settings.
    pub settings: Settings,
    /// The rows that changed since the last offer to this peer; may be empty.
    pub rows: Vec<Row>,
}

impl Wire for Offer {
    fn put(&self, w: &mut Writer) {
        w.put(&self.summary);
        w.put(&self.settings);
        w.list(&self.rows);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            summary: r.get()?,
            settings: r.get()?,
            rows: r.list("rows", MAX_PAGE_ROWS)?,
        })
    }
}

/// A controller as its UMS lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerRecord {
    /// What it is.
    pub guid: Guid,
    /// Its number within the unit, more than 0.
    pub ioc: IocNumber,
    /// Its name.
    pub name: String,
    /// Its model.
    pub model: String,
    /// When it was last altered.
    pub observed: ObservationStamp,
}

impl Wire for ControllerRecord {
    fn put(&self, w: &mut Writer) {
        w.put(&self.guid);
        w.put(&self.ioc);
        w.text(&self.name);
        w.text(&self.model);
        w.put(&self.observed);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            guid: r.get()?,
            ioc: r.get()?,
            name: r.text("name", MAX_NAME_BYTES)?,
            model: r.text("model", MAX_LABEL_BYTES)?,
            observed: r.get()?,
        })
    }
}

/// A unit's own facts and its controllers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllersReply {
    /// The unit.
    pub unit: Guid,
    /// Its name.
    pub name: String,
    /// Its vendor.
    pub vendor: String,
    /// Its model.
    pub model: String,
    /// Its serial number.
    pub serial: String,
    /// Its NICs.
    pub macs: Vec<Mac>,
    /// When the unit's own facts were last altered.
    pub observed: ObservationStamp,
    /// When the list of controllers was last altered: what is not in it was gone by then.
    pub listed: ObservationStamp,
    /// Its controllers by number.
    pub controllers: Vec<ControllerRecord>,
}

impl Wire for ControllersReply {
    fn put(&self, w: &mut Writer) {
        w.put(&self.unit);
        w.text(&self.name);
        w.text(&self.vendor);
        w.text(&self.model);
        w.text(&self.serial);
        w.list(&self.macs);
        w.put(&self.observed);
        w.put(&self.listed);
        w.list(&self.controllers);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            unit: r.get()?,
            name: r.text("name", MAX_NAME_BYTES)?,
            vendor: r.text("vendor", MAX_LABEL_BYTES)?,
            model: r.text("model", MAX_LABEL_BYTES)?,
            serial: r.text("serial", MAX_LABEL_BYTES)?,
            macs: r.list("MAC addresses", MAX_MACS)?,
            observed: r.get()?,
            listed: r.get()?,
            controllers: r.list("controllers", MAX_CONTROLLERS)?,
        })
    }
}

/// A device as its controller lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRecord {
    /// What it is.
    pub guid: Guid,
    /// Its number within the controller, more than 0.
    pub iod: IodNumber,
    /// Its name.
    pub name: String,
    /// Its vendor.
    pub vendor: String,
    /// Its model.
    pub model: String,
    /// Its serial number.
    pub serial: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its logical block size in bytes.
    pub block_size: u32,
    /// Its [`super::row::features`].
    pub features: u64,
    /// When it was last altered.
    pub observed: ObservationStamp,
}

impl Wire for DeviceRecord {
    fn put(&self, w: &mut Writer) {
        w.put(&self.guid);
        w.put(&self.iod);
        w.text(&self.name);
        w.text(&self.vendor);
        w.text(&self.model);
        w.text(&self.serial);
        w.put(&self.size_bytes);
        w.put(&self.block_size);
        w.put(&self.features);
        w.put(&self.observed);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            guid: r.get()?,
            iod: r.get()?,
            name: r.text("name", MAX_NAME_BYTES)?,
            vendor: r.text("vendor", MAX_LABEL_BYTES)?,
            model: r.text("model", MAX_LABEL_BYTES)?,
            serial: r.text("serial", MAX_LABEL_BYTES)?,
            size_bytes: r.get()?,
            block_size: r.get()?,
            features: r.get()?,
            observed: r.get()?,
        })
    }
}

/// The devices of a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicesReply {
    /// The controller.
    pub controller: Guid,
    /// When the list was last altered: what is not in it was gone by then.
    pub listed: ObservationStamp,
    /// Its devices by number.
    pub devices: Vec<DeviceRecord>,
}

impl Wire for DevicesReply {
    fn put(&self, w: &mut Writer) {
        w.put(&self.controller);
        w.put(&self.listed);
        w.list(&self.devices);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            controller: r.get()?,
            listed: r.get()?,
            devices: r.list("devices", MAX_DEVICES)?,
        })
    }
}

/// One device and who owns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentifyReply {
    /// The device.
    pub device: DeviceRecord,
    /// Its ownership register.
    pub register: OwnershipRegister,
}
wire_struct!(IdentifyReply { device, register });

/// An ownership register as it is in the unit (the value of Fig. 4's field 414 that counts).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnershipRegister {
    /// The row: the unit itself, a controller or a device.
    pub row: Guid,
    /// Who owns it.
    pub ownership: Ownership,
    /// Which change that is.
    pub owned: OwnershipStamp,
}
wire_struct!(OwnershipRegister {
    row,
    ownership,
    owned
});

/// Registers of a unit: all of them, or those that a compare-and-set changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistersReply {
    /// The registers; rows without one are unallocated with epoch 0.
    pub registers: Vec<OwnershipRegister>,
}

impl Wire for RegistersReply {
    fn put(&self, w: &mut Writer) {
        w.list(&self.registers);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            registers: r.list("registers", MAX_REGISTERS)?,
        })
    }
}

/// One register's change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The row.
    pub row: Guid,
    /// The epoch it must have now.
    pub expected: Epoch,
    /// Who shall own it.
    pub ownership: Ownership,
}
wire_struct!(Change {
    row,
    expected,
    ownership
});

/// A transaction on a unit's registers: all of its changes or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompareAndSet {
    /// The allocation session's term.
    pub term: u64,
    /// The host that makes the change.
    pub writer: Guid,
    /// The changes, 1 to [`MAX_CHANGES`].
    pub changes: Vec<Change>,
}

impl Wire for CompareAndSet {
    fn put(&self, w: &mut Writer) {
        w.put(&self.term);
        w.put(&self.writer);
        w.list(&self.changes);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            term: r.get()?,
            writer: r.get()?,
            changes: r.list("changes", MAX_CHANGES)?,
        })
    }
}

/// Why a compare-and-set was refused: the register in the way, as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The register in the way.
    pub register: OwnershipRegister,
}
wire_struct!(Conflict { register });

/// The range of an I/O command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoRange {
    /// First byte on the device.
    pub offset: u64,
    /// Number of bytes: at most 1 MiB for read and write.
    pub len: u64,
}
wire_struct!(IoRange { offset, len });

/// Bytes of an [`IoRange`]; a write's data begins behind it.
pub const IO_RANGE_BYTES: usize = 16;
