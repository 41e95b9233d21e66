//! What hosts do with their devices, and what must come to an end.

use std::sync::Arc;

use rma::rma::OwnedDevice;
use rma::unit::AtOnce;
use rma::wire::header::Packet;
use rma::wire::message::{IoRange, OwnershipRegister};
use rma::wire::{Kind, Reader, Tail, Wire};

use super::{
    Ask, BLOCKS, Data, DiskError, DiskOp, Guid, Machine, Model, NodeId, Standing, UnitContents,
    World,
};
use crate::data::BLOCK_BYTES;

/// Where on its device an extent begins; 0 of a device.
fn start_block(device: &OwnedDevice) -> u64 {
    device.row.extent.map_or(0, |e| e.offset / BLOCK_BYTES)
}

impl World {
    /// Lets a host write one block of a device that it exports; whether there is one.
    pub fn write_block(&mut self, id: NodeId) -> bool {
        self.submit(id, Ask::Write { fua: false })
    }

    /// Lets a host ask for something of a device that it exports; whether there is one.
    pub fn submit(&mut self, id: NodeId, ask: Ask) -> bool {
        let (pick, block) = (self.rng.usize(..), self.rng.u64(0..BLOCKS));
        let (now, life) = (self.local(id.0), self.nodes[id.0].life);
        let Machine::Host(host) = &mut self.nodes[id.0].machine else {
            return false;
        };
        let devices = host.exports.as_deref().unwrap_or_default();
        let (Some(service), false) = (&mut host.service, devices.is_empty()) else {
            return false;
        };
        let device = &devices[pick % devices.len()];
        let (row, start) = (device.row.guid, start_block(device));
        let place = (device.device(), start + block);
        if !service.has(row) {
            return false;
        }
        let token = self.data.begin((host.guid, life), row, place, ask);
        let open = service.submit(now, (row, block), ask, token);
        self.settle(id.0);
        open
    }

    /// Tells the model which I/O has ended.
    pub(super) fn note_io(&mut self, id: usize) {
        let Machine::Host(host) = &mut self.nodes[id].machine else {
            return;
        };
        for (token, result) in std::mem::take(&mut host.ended) {
            if let Err(what) = self.data.end(token, result.as_deref()) {
                self.model.violated(what);
            }
        }
    }

    /// A host that has lost its mind writes to what another one owns, under the right epoch.
    pub fn trespass(&mut self, id: NodeId, owner: NodeId) {
        let theirs = self.host(owner).exports.clone().unwrap_or_default();
        let pick = self.rng.usize(..);
        let now = self.local(id.0);
        let Machine::Host(host) = &mut self.nodes[id.0].machine else {
            return;
        };
        if theirs.is_empty() {
            return;
        }
        let device = &theirs[pick % theirs.len()];
        let guid = device.row.guid;
        if let Some(service) = &mut host.service
            && !service.has(guid)
        {
            // It may wait for ever.
            let who = (host.guid, u64::MAX);
            let place = (device.device(), start_block(device));
            let ask = Ask::Write { fua: true };
            let token = self.data.begin(who, guid, place, ask);
            service.trespass(now, device, token);
        }
        self.settle(id.0);
    }

    /// What still waits for an answer, administrators and I/O alike; nothing should for long.
    pub fn unanswered(&self) -> Option<String> {
        let alive =
            |id: usize, life: u64| self.nodes[id].life == life && self.is_running(NodeId(id));
        let asked = self
            .asked
            .iter()
            .find(|((id, _), asked)| alive(*id, asked.life));
        if let Some(((id, token), asked)) = asked {
            let name = &self.host(NodeId(*id)).name;
            let what = &asked.request;
            return Some(format!(
                "request {token} to host {name} is not answered: {what:?}"
            ));
        }
        self.hosts().find_map(|(id, host)| {
            let what = self.data.unended(host.guid, self.nodes[id.0].life)?;
            Some(format!("{what} of host {} does not end", host.name))
        })
    }
}

/// A unit's media that do what a packet asks for while the unit looks at it.
pub(super) struct PromptMedia<'a> {
    pub(super) data: &'a mut Data,
    pub(super) model: &'a mut Model,
    /// The row that the packet names.
    pub(super) row: Guid,
    /// Its register at the unit.
    pub(super) register: Option<OwnershipRegister>,
    /// The unit, and which of its lives this is.
    pub(super) unit: (Guid, u64),
}

impl PromptMedia<'_> {
    /// What comes of an operation; nothing where it is of another row than the one that is named, as a planted
    /// mistake may make it.
    fn apply(&mut self, device: Guid, op: &DiskOp) -> Option<Vec<u8>> {
        if self.data.row_of(op).is_some_and(|row| row != self.row) {
            return None;
        }
        let standing = Standing {
            unit: self.unit,
            register: self.register.clone(),
            promised: self.model.promised.get(&self.row),
        };
        Some(match self.data.apply(device, op, &standing) {
            Ok(bytes) => bytes,
            Err(what) => {
                self.model.violated(what);
                Vec::new()
            }
        })
    }
}

impl AtOnce for PromptMedia<'_> {
    // Every other block.
    fn lend(&mut self, device: Guid, offset: u64, len: u64) -> Option<Result<Tail, DiskError>> {
        if !(offset / BLOCK_BYTES).is_multiple_of(2) {
            return None;
        }
        let len = len as u32;
        let bytes = Arc::new(self.apply(device, &DiskOp::Read { offset, len })?);
        Some(Ok(Tail::new(&bytes, 0, bytes.len())))
    }

    fn read_at_once(
        &mut self,
        device: Guid,
        offset: u64,
        into: &mut [u8],
    ) -> Option<Result<(), DiskError>> {
        let len = into.len() as u32;
        let bytes = self.apply(device, &DiskOp::Read { offset, len })?;
        let (into, _) = into.split_at_mut(bytes.len());
        into.copy_from_slice(&bytes);
        Some(Ok(()))
    }

    fn write_at_once(
        &mut self,
        device: Guid,
        offset: u64,
        data: &[u8],
        sum: Option<u32>,
    ) -> Option<Result<(), DiskError>> {
        if sum.is_some_and(|sum| sum != rma::wire::sum::sum(data)) {
            self.model
                .violated("a wrong checksum comes with a write".into());
        }
        let write = DiskOp::Write {
            offset,
            data: data.to_vec().into(),
            fua: false,
        };
        self.apply(device, &write)?;
        Some(Ok(()))
    }
}

/// The row that an I/O command in one packet names, where the disk is to do that at once: it does every third.
pub(super) fn named_row(contents: &UnitContents, packet: &Packet<'_>) -> Option<Guid> {
    let header = &packet.header;
    let is_io = matches!(header.kind, Kind::Read | Kind::Write) && !header.is_reply();
    if !is_io || header.segment_offset > 0 || !header.command.0.is_multiple_of(3) {
        return None;
    }
    let range = IoRange::get(&mut Reader::new(packet.payload)).ok()?;
    if !range.extent.is_nil() {
        return Some(range.extent);
    }
    let device = contents.devices.get(&(header.ioc, header.iod))?;
    Some(device.guid)
}
