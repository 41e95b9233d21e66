//! The I/O controllers: lists of devices, identification, and I/O for hosts that own the device.

use std::borrow::Cow;
use std::sync::Arc;

use super::disk::{AtOnce, DiskError, DiskOp, MAX_IO_BYTES, Payload};
use super::inventory::Device;
use super::registers::Registers;
use super::{MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES, Unit, UnitAction};
use crate::planted::{self, Bug};
use crate::session::Asked;
use crate::wire::message::{IO_RANGE_BYTES, IdentifyReply, IoRange};
use crate::wire::row::features;
use crate::wire::sum::BLOCK_BYTES;
use crate::wire::{
    ClusterName, CommandId, ConnectionId, Extent, Flags, Guid, IocNumber, IodNumber, Kept, Kind,
    Reader, Status, Tail, Time, Wire,
};

/// A disk operation under way.
#[derive(Debug)]
pub(super) struct InFlight {
    connection: ConnectionId,
    command: CommandId,
    /// The device, or the extent, under whose register it was begun.
    pub(super) row: Guid,
    /// The cluster in which that is its register.
    pub(super) cluster: ClusterName,
    pub(super) peer: Guid,
    pub(super) is_change: bool,
    bytes: u64,
}

/// An operation that may be begun.
struct Admitted {
    /// The device, or the extent, that the host owns.
    row: Guid,
    device: Guid,
    op: Wanted,
}

/// What a command wants of the device: an operation, of which a write's data are still in the command.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    kind: Kind,
    offset: u64,
    len: u64,
    fua: bool,
}

impl Wanted {
    /// Bytes of data that it keeps in memory.
    const fn data_bytes(self) -> u64 {
        match self.kind {
            Kind::Read | Kind::Write => self.len,
            _ => 0,
        }
    }

    const fn is_change(self) -> bool {
        !matches!(self.kind, Kind::Read | Kind::Flush)
    }

    /// As an operation, with the command's body.
    fn into_op(self, body: Vec<u8>) -> DiskOp {
        let (offset, len, fua) = (self.offset, self.len, self.fua);
        match self.kind {
            Kind::Read => DiskOp::Read {
                offset,
                len: len as u32,
            },
            Kind::Write => DiskOp::Write {
                offset,
                data: Payload::tail(body, IO_RANGE_BYTES),
                fua,
            },
            Kind::Discard => DiskOp::Discard { offset, len },
            Kind::WriteZeroes => DiskOp::WriteZeroes { offset, len, fua },
            _ => DiskOp::Flush,
        }
    }
}

impl Unit {
    /// Serves a command. `last_block` is of the packet that completed it.
    pub(super) fn serve_io(
        &mut self,
        asked: Asked<'_>,
        last_block: Option<u32>,
        media: &mut impl AtOnce,
    ) {
        let is_block = asked.body.len() == IO_RANGE_BYTES + BLOCK_BYTES;
        // Where it came in pieces, the packet's last block is not its.
        let is_whole = matches!(asked.body, Cow::Borrowed(_));
        let sum = last_block.filter(|_| is_block && is_whole);

        let answer = match asked.kind {
            Kind::KeepAlive => Ok(Kept::default()),
            Kind::Devices | Kind::Identify if !asked.body.is_empty() => Err(Status::BadRequest),
            Kind::Devices => self.list_devices(asked.cluster, asked.ioc),
            Kind::Identify => self.identify(asked.cluster, asked.ioc, asked.iod),
            Kind::Flush if planted::is(Bug::FlushForgotten) => Ok(Kept::default()),
            _ => match self.admit_io(&asked) {
                Ok(admitted) => {
                    self.take_back_lent(&admitted, media);
                    match self.do_at_once(&asked, &admitted, sum, media) {
                        Some(outcome) => outcome.map_err(DiskError::status),
                        None => return self.start_io(asked, admitted),
                    }
                }
                Err(status) => Err(status),
            },
        };
        let (status, body) = match answer {
            Ok(body) => (Status::Ok, body),
            Err(status) => (status, Kept::default()),
        };
        self.service.answer(asked, status, body);
    }

    /// A buffer of `len` bytes for what a read gives: whatever it holds has to be written over.
    pub fn take_buffer(&mut self, len: usize) -> Vec<u8> {
        self.service.take_buffer(len)
    }

    /// Takes the buffer of a write's data back, to be used again.
    pub fn give_buffer(&mut self, buffer: Vec<u8>) {
        self.service.give_buffer(buffer);
    }

    /// The list of a controller as a cluster sees it, in memory once for all hosts that have been told it.
    fn list_devices(&mut self, cluster: ClusterName, ioc: IocNumber) -> Result<Kept, Status> {
        let list = match self.listing(cluster) {
            Some(listing) => listing.devices(ioc),
            None => self.inventory.devices(ioc),
        };
        let Some(list) = list else {
            self.told_lists.remove(&(cluster, ioc));
            return Err(Status::NoController);
        };
        let list = list.to_body();
        let told = self.told_lists.entry((cluster, ioc)).or_default();
        if **told != *list {
            *told = Arc::new(list);
        }
        Ok(Kept::Shared(Arc::clone(told)))
    }

    fn identify(
        &self,
        cluster: ClusterName,
        ioc: IocNumber,
        iod: IodNumber,
    ) -> Result<Kept, Status> {
        let device = self.find(cluster, ioc, iod)?;
        let registers = self.registers_of(cluster)?;
        let reply = IdentifyReply {
            device: device.record(),
            register: registers.get(device.spec.guid),
        };
        Ok(reply.to_body().into())
    }

    /// A device of a cluster; those of others are not there.
    fn find(
        &self,
        cluster: ClusterName,
        ioc: IocNumber,
        iod: IodNumber,
    ) -> Result<&Device, Status> {
        if !self.inventory.has_controller(ioc) {
            return Err(Status::NoController);
        }
        let device = self.inventory.device(ioc, iod);
        device
            .filter(|device| self.cluster_of(device.spec.guid) == cluster)
            .ok_or(Status::NoDevice)
    }

    /// Whether a command may be begun, and the operation that it is. What the sender may do comes
    /// before what it asks for.
    fn admit_io(&self, asked: &Asked<'_>) -> Result<Admitted, Status> {
        let device = self.find(asked.cluster, asked.ioc, asked.iod)?;
        let registers = self.registers_of(asked.cluster)?;
        let named = IoRange::get(&mut Reader::new(&asked.body)).map_err(|_| Status::BadRequest)?;
        let (row, extent) = place(registers, device.spec.guid, named.extent)?;
        let (ownership, epoch) = registers.owners(row);
        if !ownership.includes(asked.peer) && !planted::is(Bug::OwnerNotChecked) {
            return Err(Status::NotOwner);
        }
        if asked.epoch != epoch && !planted::is(Bug::EpochNotChecked) {
            return Err(Status::StaleEpoch);
        }
        if let Some(transaction) = &self.transaction
            && !transaction.keeps(asked.cluster, row, asked.peer)
        {
            // It loses the device unless the disk fails: it shall ask again when that is decided.
            return Err(Status::Busy);
        }
        let op = parse_op(asked, extent)?;
        check_op(device, op)?;
        let bytes = op.data_bytes();
        if self.in_flight.len() >= MAX_IN_FLIGHT
            || self.in_flight_bytes + bytes > MAX_IN_FLIGHT_BYTES
        {
            return Err(Status::Busy);
        }
        Ok(Admitted {
            row,
            device: device.spec.guid,
            op,
        })
    }

    /// Before a change: what replies have of it becomes theirs.
    fn take_back_lent(&mut self, admitted: &Admitted, media: &impl AtOnce) {
        let (device, op) = (admitted.device, admitted.op);
        if op.is_change() && media.is_lent(device, op.offset, op.len) {
            let is_concerned = |tail: &Tail| media.is_lent_as(tail, device, op.offset, op.len);
            self.service.take_back_lent(is_concerned);
        }
    }

    /// Has `media` do an operation that they can do at once: what comes of it is the answer.
    fn do_at_once(
        &mut self,
        asked: &Asked<'_>,
        admitted: &Admitted,
        sum: Option<u32>,
        media: &mut impl AtOnce,
    ) -> Option<Result<Kept, DiskError>> {
        let (device, op) = (admitted.device, admitted.op);
        match op.kind {
            Kind::Read => {
                if let Some(lent) = media.lend(device, op.offset, op.len) {
                    return Some(lent.map(Kept::from));
                }
                let mut buffer = self.service.take_buffer(op.len as usize);
                let outcome = media.read_at_once(device, op.offset, &mut buffer);
                if outcome != Some(Ok(())) {
                    self.service.give_buffer(std::mem::take(&mut buffer));
                }
                Some(outcome?.map(|()| buffer.into()))
            }
            Kind::Write if !op.fua => {
                let data = &asked.body[IO_RANGE_BYTES..];
                let outcome = media.write_at_once(device, op.offset, data, sum);
                Some(outcome?.map(|()| Kept::default()))
            }
            _ => None,
        }
    }

    fn start_io(&mut self, asked: Asked<'_>, admitted: Admitted) {
        let Admitted { row, device, op } = admitted;
        let token = self.token();
        let bytes = op.data_bytes();
        let io = InFlight {
            connection: asked.connection,
            command: asked.command,
            row,
            cluster: asked.cluster,
            peer: asked.peer,
            is_change: op.is_change(),
            bytes,
        };
        self.in_flight.insert(token, io);
        self.in_flight_bytes += bytes;
        let body = self.service.hold(asked);
        let op = op.into_op(body);
        self.actions
            .push_back(UnitAction::Disk { token, device, op });
    }

    pub(super) fn finish_io(&mut self, now: Time, token: u64, outcome: Result<Vec<u8>, DiskError>) {
        let Some(io) = self.in_flight.remove(&token) else {
            return;
        };
        self.in_flight_bytes -= io.bytes;
        let (status, body) = match outcome {
            Ok(body) => (Status::Ok, body),
            Err(error) => (error.status(), Vec::new()),
        };
        self.service
            .reply(now, io.connection, io.command, status, body);
        self.drained(now, token);
    }
}

/// The row whose register counts for an I/O that names `extent` of `device`, and where that lies
/// on the device. A device with extents is nobody's as a whole; an extent that is not there, or
/// not on this device, is nobody's either.
fn place(
    registers: &Registers,
    device: Guid,
    extent: Guid,
) -> Result<(Guid, Option<Extent>), Status> {
    if extent.is_nil() {
        return if registers.is_carved(device) {
            Err(Status::NotOwner)
        } else {
            Ok((device, None))
        };
    }
    match registers.extent(extent) {
        Some(facts) if facts.device == device => Ok((extent, Some(facts.range))),
        _ => Err(Status::NotOwner),
    }
}

/// The operation on the device that a command on it, or on its `extent`, asks for.
fn parse_op(asked: &Asked<'_>, extent: Option<Extent>) -> Result<Wanted, Status> {
    let fua = asked.flags.contains(Flags::FUA) && !planted::is(Bug::FuaForgotten);
    let mut reader = Reader::new(&asked.body);
    let range = IoRange::get(&mut reader).map_err(|_| Status::BadRequest)?;
    let data_len = reader.rest().len() as u64;
    let (offset, len) = (range.offset, range.len);
    let kind = asked.kind;
    let expected = match kind {
        Kind::Flush => {
            return if (offset, len, data_len) == (0, 0, 0) {
                Ok(Wanted {
                    kind,
                    offset,
                    len,
                    fua: false,
                })
            } else {
                Err(Status::BadRequest)
            };
        }
        Kind::Write => len,
        Kind::Read | Kind::Discard | Kind::WriteZeroes => 0,
        _ => return Err(Status::Unsupported),
    };
    let moves_data = matches!(kind, Kind::Read | Kind::Write);
    if len == 0 || data_len != expected || (moves_data && len > MAX_IO_BYTES) {
        return Err(Status::BadRequest);
    }
    let offset = match extent {
        None => offset,
        Some(extent) => match offset.checked_add(len) {
            Some(end) if end <= extent.len => extent.offset + offset,
            _ => return Err(Status::OutOfRange),
        },
    };
    Ok(Wanted {
        kind,
        offset,
        len,
        fua,
    })
}

fn check_op(device: &Device, op: Wanted) -> Result<(), Status> {
    let info = device.spec.info;
    if op.kind != Kind::Flush {
        match op.offset.checked_add(op.len) {
            Some(end) if end <= info.size_bytes => {}
            _ => return Err(Status::OutOfRange),
        }
        let block = u64::from(info.block_size);
        if !op.offset.is_multiple_of(block) || !op.len.is_multiple_of(block) {
            return Err(Status::Misaligned);
        }
    }
    if op.is_change() && info.features & features::READ_ONLY != 0 {
        return Err(Status::ReadOnly);
    }
    Ok(())
}
