//! Bodies of units: controllers, devices, ownership registers, I/O ranges.

use super::super::codec::{DecodeError, Reader, Wire, Writer, ascending, distinct};
use super::super::header::MAX_MESSAGE_BYTES;
use super::super::id::{Epoch, Extent, Guid, IocNumber, IodNumber, Mac};
use super::super::row::{
    MAX_LABEL_BYTES, MAX_MACS, MAX_NAME_BYTES, ObservationStamp, Ownership, OwnershipStamp,
    wire_struct,
};
use super::page_advances;
use super::{
    MAX_CHANGES, MAX_CONTROLLERS, MAX_DEVICES, MAX_PAGE_BYTES, MAX_REGISTERS, identity,
    station_macs,
};

/// The bytes of a register without owners and without an extent's facts.
const REGISTER_BYTES: usize = 16 + 2 + 32 + 1;
/// The bytes of an extent's facts without its name.
const EXTENT_BYTES: usize = 16 + 16 + 1 + 1;

// The lists that have no pages fit a message however long their texts are.
const _: () = {
    const NAME: usize = 1 + MAX_NAME_BYTES;
    const LABEL: usize = 1 + MAX_LABEL_BYTES;
    const CONTROLLER: usize = 16 + 2 + NAME + LABEL + 16;
    const UNIT: usize = 16 + NAME + 3 * LABEL + 4 + 6 * MAX_MACS + 32 + 4;
    const DEVICE: usize = 16 + 2 + NAME + 3 * LABEL + 8 + 4 + 8 + 16;
    assert!(UNIT + MAX_CONTROLLERS * CONTROLLER <= MAX_MESSAGE_BYTES);
    assert!(16 + 16 + 4 + MAX_DEVICES * DEVICE <= MAX_MESSAGE_BYTES);
};

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
        w.text_within(&self.name, MAX_NAME_BYTES);
        w.text_within(&self.model, MAX_LABEL_BYTES);
        w.put(&self.observed);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let record = Self {
            guid: r.identity()?,
            ioc: r.get()?,
            name: r.text("name", MAX_NAME_BYTES)?,
            model: r.text("model", MAX_LABEL_BYTES)?,
            observed: r.get()?,
        };
        if record.ioc.0 == 0 {
            return Err(DecodeError::BadValue("controller number"));
        }
        Ok(record)
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
        w.text_within(&self.name, MAX_NAME_BYTES);
        w.text_within(&self.vendor, MAX_LABEL_BYTES);
        w.text_within(&self.model, MAX_LABEL_BYTES);
        w.text_within(&self.serial, MAX_LABEL_BYTES);
        w.list(&self.macs);
        w.put(&self.observed);
        w.put(&self.listed);
        w.list(&self.controllers);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let reply = Self {
            unit: r.identity()?,
            name: r.text("name", MAX_NAME_BYTES)?,
            vendor: r.text("vendor", MAX_LABEL_BYTES)?,
            model: r.text("model", MAX_LABEL_BYTES)?,
            serial: r.text("serial", MAX_LABEL_BYTES)?,
            macs: station_macs(r)?,
            observed: r.get()?,
            listed: r.get()?,
            controllers: r.list("controllers", MAX_CONTROLLERS)?,
        };
        ascending(&reply.controllers, |c| c.ioc, "controller numbers")?;
        distinct(&reply.controllers, |c| c.guid, "controllers")?;
        Ok(reply)
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
    /// Its logical block size in bytes. Any number is read: one that no disk has
    /// ([`is_block_size`](super::row::is_block_size)) must not cost the list's other devices.
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
        w.text_within(&self.name, MAX_NAME_BYTES);
        w.text_within(&self.vendor, MAX_LABEL_BYTES);
        w.text_within(&self.model, MAX_LABEL_BYTES);
        w.text_within(&self.serial, MAX_LABEL_BYTES);
        w.put(&self.size_bytes);
        w.put(&self.block_size);
        w.put(&self.features);
        w.put(&self.observed);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let record = Self {
            guid: r.identity()?,
            iod: r.get()?,
            name: r.text("name", MAX_NAME_BYTES)?,
            vendor: r.text("vendor", MAX_LABEL_BYTES)?,
            model: r.text("model", MAX_LABEL_BYTES)?,
            serial: r.text("serial", MAX_LABEL_BYTES)?,
            size_bytes: r.get()?,
            block_size: r.get()?,
            features: r.get()?,
            observed: r.get()?,
        };
        if record.iod.0 == 0 {
            return Err(DecodeError::BadValue("device number"));
        }
        Ok(record)
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
        let reply = Self {
            controller: r.identity()?,
            listed: r.get()?,
            devices: r.list("devices", MAX_DEVICES)?,
        };
        ascending(&reply.devices, |d| d.iod, "device numbers")?;
        distinct(&reply.devices, |d| d.guid, "devices")?;
        Ok(reply)
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

/// What the register of an extent says of the extent itself: nobody but the registers lists it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ExtentFacts {
    /// The device that it is a range of; the same for ever.
    pub device: Guid,
    /// Its range of the device, bytes.
    pub range: Extent,
    /// Its name; may be empty.
    pub name: String,
    /// Whether it is there. Otherwise it is a tombstone: unallocated, and its epoch goes on.
    pub present: bool,
}

impl ExtentFacts {
    /// What no honest sender says of the extent `row` that is owned so.
    fn check(&self, row: Guid, ownership: &Ownership) -> Result<(), DecodeError> {
        let held = *ownership != Ownership::Unallocated;
        if self.device == row || (held && !self.present) {
            return Err(DecodeError::BadValue("extent"));
        }
        Ok(())
    }
}

/// Facts or none, as a list of at most one.
impl Wire for Option<ExtentFacts> {
    fn put(&self, w: &mut Writer) {
        w.put(&u8::from(self.is_some()));
        if let Some(facts) = self {
            w.put(&facts.device);
            w.put(&Some(facts.range));
            w.put(&facts.present);
            w.text_within(&facts.name, MAX_NAME_BYTES);
        }
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.get::<u8>()? {
            0 => return Ok(None),
            1 => {}
            _ => return Err(DecodeError::TooLarge("extents")),
        }
        Ok(Some(ExtentFacts {
            device: r.identity()?,
            range: r
                .get::<Option<Extent>>()?
                .ok_or(DecodeError::BadValue("extent"))?,
            present: r.get()?,
            name: r.text("name", MAX_NAME_BYTES)?,
        }))
    }
}

/// An ownership register as it is in the unit (the value of Fig. 4's field 414 that counts).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnershipRegister {
    /// The row: the unit itself, a controller, a device or an extent.
    pub row: Guid,
    /// Who owns it.
    pub ownership: Ownership,
    /// Which change that is.
    pub owned: OwnershipStamp,
    /// Of an extent, what and where it is; `None` for every other row.
    pub extent: Option<ExtentFacts>,
}
wire_struct!(OwnershipRegister {
    row,
    ownership,
    owned,
    extent
} checked);

impl OwnershipRegister {
    fn check(&self) -> Result<(), DecodeError> {
        identity(self.row)?;
        match &self.extent {
            Some(facts) => facts.check(self.row, &self.ownership),
            None => Ok(()),
        }
    }
}

/// Asks for a page of a unit's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegistersRequest {
    /// Only registers of rows after this GUID; NIL for the first page.
    pub after: Guid,
}
wire_struct!(RegistersRequest { after });

/// Registers of a unit: a page of them, or those that a compare-and-set changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistersReply {
    /// Whether more follow after the last (answers to a registers request only).
    pub more: bool,
    /// The registers, none twice, a page by ascending row GUID, within
    /// [`MAX_PAGE_BYTES`](super::MAX_PAGE_BYTES); rows without one are unallocated with epoch 0.
    pub registers: Vec<OwnershipRegister>,
}

impl Wire for RegistersReply {
    fn put(&self, w: &mut Writer) {
        w.put(&self.more);
        w.list(&self.registers);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let reply = Self {
            more: r.get()?,
            registers: r.list("registers", MAX_REGISTERS)?,
        };
        page_advances(reply.more, &reply.registers)?;
        if reply.more {
            ascending(&reply.registers, |g| g.row, "registers")?;
        }
        distinct(&reply.registers, |g| g.row, "registers")?;
        Ok(reply)
    }
}

/// One register's change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The row.
    pub row: Guid,
    /// The epoch it must have now, less than `u64::MAX`.
    pub expected: Epoch,
    /// Who shall own it.
    pub ownership: Ownership,
    /// Of an extent, and of nothing else, its facts after the change. Those of one that is there
    /// already keep device and range; with `present` false the extent is removed; a row that the
    /// unit does not know, or a tombstone, becomes an extent.
    pub extent: Option<ExtentFacts>,
}
wire_struct!(Change {
    row,
    expected,
    ownership,
    extent
} checked);

impl Change {
    fn check(&self) -> Result<(), DecodeError> {
        identity(self.row)?;
        // The next epoch is one more.
        if self.expected.0 == u64::MAX {
            return Err(DecodeError::BadValue("epoch"));
        }
        match &self.extent {
            Some(facts) => facts.check(self.row, &self.ownership),
            None => Ok(()),
        }
    }

    /// The bytes of the register that comes of it.
    fn register_bytes(&self) -> usize {
        let extent = self.extent.as_ref();
        REGISTER_BYTES
            + size_of_val(self.ownership.owners())
            + extent.map_or(0, |facts| EXTENT_BYTES + facts.name.len())
    }
}

/// A transaction on a unit's registers: all of its changes or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompareAndSet {
    /// The allocation session's term.
    pub term: u64,
    /// The host that makes the change.
    pub writer: Guid,
    /// The changes, 1 to [`MAX_CHANGES`], no row twice, [within limits](Self::is_within_limits).
    pub changes: Vec<Change>,
}

impl CompareAndSet {
    /// Whether there are few enough changes, and few enough owners in them, for the request and
    /// for the registers of its answer to fit a message. A sender splits what does not.
    pub fn is_within_limits(&self) -> bool {
        let registers: usize = self.changes.iter().map(Change::register_bytes).sum();
        self.changes.len() <= MAX_CHANGES && registers <= MAX_PAGE_BYTES
    }
}

impl Wire for CompareAndSet {
    fn put(&self, w: &mut Writer) {
        w.put(&self.term);
        w.put(&self.writer);
        w.list(&self.changes);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let request = Self {
            term: r.get()?,
            writer: r.identity()?,
            changes: r.list("changes", MAX_CHANGES)?,
        };
        if request.changes.is_empty() {
            return Err(DecodeError::BadValue("changes"));
        }
        if !request.is_within_limits() {
            return Err(DecodeError::TooLarge("changes"));
        }
        distinct(&request.changes, |c| c.row, "changes")?;
        Ok(request)
    }
}

/// Registers for a unit that has lost its own, in one part or several. They are in force when the
/// last part is answered with ok. A unit that has registers refuses with a conflict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restore {
    /// The allocation session's term.
    pub term: u64,
    /// The last row of the part before; NIL begins anew.
    pub after: Guid,
    /// Whether more parts follow.
    pub more: bool,
    /// The registers by ascending row GUID, all after `after`, within
    /// [`MAX_PAGE_BYTES`](super::MAX_PAGE_BYTES).
    pub registers: Vec<OwnershipRegister>,
}

impl Wire for Restore {
    fn put(&self, w: &mut Writer) {
        w.put(&self.term);
        w.put(&self.after);
        w.put(&self.more);
        w.list(&self.registers);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let part = Self {
            term: r.get()?,
            after: r.get()?,
            more: r.get()?,
            registers: r.list("registers", MAX_REGISTERS)?,
        };
        page_advances(part.more, &part.registers)?;
        ascending(&part.registers, |g| g.row, "registers")?;
        match part.registers.first() {
            Some(first) if first.row <= part.after => Err(DecodeError::BadValue("registers")),
            _ => Ok(part),
        }
    }
}

/// Why a compare-and-set was refused: the register in the way, as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The register in the way.
    pub register: OwnershipRegister,
}
wire_struct!(Conflict { register });

/// The extent and the range of an I/O command. Any numbers are read; the controller checks them
/// against the device or extent, overflow of their sum included, and answers with a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoRange {
    /// The extent of the device, NIL for the device as a whole. Ownership and epoch are those of
    /// its register.
    pub extent: Guid,
    /// First byte on the device, or within the extent; 0 for flush.
    pub offset: u64,
    /// Number of bytes: at most 1 MiB for read and write; 0 for flush.
    pub len: u64,
}
wire_struct!(IoRange {
    extent,
    offset,
    len
});

impl IoRange {
    /// As [`Wire::to_body`](crate::wire::Wire::to_body), where nothing is to be allocated.
    pub fn to_octets(&self) -> [u8; IO_RANGE_BYTES] {
        let mut octets = [0; IO_RANGE_BYTES];
        octets[..16].copy_from_slice(&self.extent.0.to_be_bytes());
        octets[16..24].copy_from_slice(&self.offset.to_be_bytes());
        octets[24..].copy_from_slice(&self.len.to_be_bytes());
        octets
    }

    /// A range of the device as a whole.
    pub const fn of_device(offset: u64, len: u64) -> Self {
        Self {
            extent: Guid::NIL,
            offset,
            len,
        }
    }
}

/// Bytes of an [`IoRange`]; a write's data begins behind it.
pub const IO_RANGE_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Wire;

    #[test]
    fn a_range_has_one_layout() {
        let range = IoRange {
            extent: Guid(0x0123_4567_89ab_cdef_0011_2233_4455_6677),
            offset: 0x1122_3344_5566_7788,
            len: 0x99aa_bbcc_ddee_ff00,
        };
        assert_eq!(range.to_octets()[..], range.to_body());
    }
}
