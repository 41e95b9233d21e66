//! The I/O controllers: lists of devices, identification, and I/O for hosts that own the device.

use std::sync::Arc;

use super::disk::{DiskError, DiskOp, MAX_IO_BYTES, Payload};
use super::inventory::Device;
use super::registers::Registers;
use super::{MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES, Unit, UnitAction};
use crate::planted::{self, Bug};
use crate::session::ServerEvent;
use crate::wire::message::{IO_RANGE_BYTES, IdentifyReply, IoRange};
use crate::wire::row::features;
use crate::wire::{
    ClusterName, CommandId, ConnectionId, Epoch, Extent, Flags, Guid, IocNumber, IodNumber, Kept,
    Kind, Reader, Status, Time, Wire,
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
    cluster: ClusterName,
    device: Guid,
    op: DiskOp,
}

/// What the header of a request says of an I/O command.
struct Command {
    kind: Kind,
    flags: Flags,
    ioc: IocNumber,
    iod: IodNumber,
    epoch: Epoch,
    peer: Guid,
    /// The cluster of the connection.
    cluster: ClusterName,
}

impl Unit {
    pub(super) fn serve_io(&mut self, now: Time, event: ServerEvent) {
        let ServerEvent::Request {
            connection,
            command,
            kind,
            flags,
            ioc,
            iod,
            epoch,
            peer,
            body,
        } = event
        else {
            return;
        };
        let Some(cluster) = self.service.peer(connection).map(|p| p.cluster) else {
            // Its session is gone: nobody waits for an answer.
            let status = Status::UnknownConnection;
            return self
                .service
                .reply(now, connection, command, status, Vec::new());
        };
        let asked = Command {
            kind,
            flags,
            ioc,
            iod,
            epoch,
            peer,
            cluster,
        };
        let answer = match kind {
            Kind::KeepAlive => Ok(Vec::new()),
            Kind::Devices | Kind::Identify if !body.is_empty() => Err(Status::BadRequest),
            Kind::Devices => match self.list_devices(cluster, ioc) {
                Ok(list) => {
                    self.service
                        .reply(now, connection, command, Status::Ok, list);
                    return;
                }
                Err(status) => Err(status),
            },
            Kind::Identify => self.identify(cluster, ioc, iod),
            Kind::Flush if planted::is(Bug::FlushForgotten) => Ok(Vec::new()),
            _ => match self.admit_io(&asked, body) {
                Ok(admitted) => {
                    self.start_io(connection, command, peer, admitted);
                    return;
                }
                Err(status) => Err(status),
            },
        };
        let (status, body) = match answer {
            Ok(body) => (Status::Ok, body),
            Err(status) => (status, Vec::new()),
        };
        self.service.reply(now, connection, command, status, body);
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
    ) -> Result<Vec<u8>, Status> {
        let device = self.find(cluster, ioc, iod)?;
        let registers = self.registers_of(cluster)?;
        let reply = IdentifyReply {
            device: device.record(),
            register: registers.get(device.spec.guid),
        };
        Ok(reply.to_body())
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
    fn admit_io(&self, asked: &Command, body: Vec<u8>) -> Result<Admitted, Status> {
        let device = self.find(asked.cluster, asked.ioc, asked.iod)?;
        let registers = self.registers_of(asked.cluster)?;
        let named = IoRange::get(&mut Reader::new(&body)).map_err(|_| Status::BadRequest)?;
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
        let op = parse_op(asked, body, extent)?;
        check_op(device, &op)?;
        let bytes = data_bytes(&op);
        if self.in_flight.len() >= MAX_IN_FLIGHT
            || self.in_flight_bytes + bytes > MAX_IN_FLIGHT_BYTES
        {
            return Err(Status::Busy);
        }
        Ok(Admitted {
            row,
            cluster: asked.cluster,
            device: device.spec.guid,
            op,
        })
    }

    fn start_io(
        &mut self,
        connection: ConnectionId,
        command: CommandId,
        peer: Guid,
        admitted: Admitted,
    ) {
        let Admitted {
            row,
            cluster,
            device,
            op,
        } = admitted;
        let token = self.token();
        let bytes = data_bytes(&op);
        let io = InFlight {
            connection,
            command,
            row,
            cluster,
            peer,
            is_change: op.is_change(),
            bytes,
        };
        self.in_flight.insert(token, io);
        self.in_flight_bytes += bytes;
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

/// Bytes of data that an operation keeps in memory.
fn data_bytes(op: &DiskOp) -> u64 {
    match op {
        DiskOp::Read { len, .. } => u64::from(*len),
        DiskOp::Write { data, .. } => data.len() as u64,
        DiskOp::Flush | DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. } => 0,
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
fn parse_op(asked: &Command, body: Vec<u8>, extent: Option<Extent>) -> Result<DiskOp, Status> {
    let fua = asked.flags.contains(Flags::FUA) && !planted::is(Bug::FuaForgotten);
    let mut reader = Reader::new(&body);
    let range = IoRange::get(&mut reader).map_err(|_| Status::BadRequest)?;
    let data_len = reader.rest().len() as u64;
    let (offset, len) = (range.offset, range.len);
    let expected = match asked.kind {
        Kind::Flush => {
            return if (offset, len, data_len) == (0, 0, 0) {
                Ok(DiskOp::Flush)
            } else {
                Err(Status::BadRequest)
            };
        }
        Kind::Write => len,
        Kind::Read | Kind::Discard | Kind::WriteZeroes => 0,
        _ => return Err(Status::Unsupported),
    };
    let moves_data = matches!(asked.kind, Kind::Read | Kind::Write);
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
    Ok(match asked.kind {
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
        _ => DiskOp::WriteZeroes { offset, len, fua },
    })
}

fn check_op(device: &Device, op: &DiskOp) -> Result<(), Status> {
    let info = device.spec.info;
    if let Some((offset, len)) = op.range() {
        match offset.checked_add(len) {
            Some(end) if end <= info.size_bytes => {}
            _ => return Err(Status::OutOfRange),
        }
        let block = u64::from(info.block_size);
        if !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
            return Err(Status::Misaligned);
        }
    }
    if op.is_change() && info.features & features::READ_ONLY != 0 {
        return Err(Status::ReadOnly);
    }
    Ok(())
}
