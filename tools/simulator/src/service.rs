//! A host's service connections: the daemons' initiator, and the devices that the host has open.

use std::collections::BTreeMap;

use rma::initiator::{DeviceId, Initiator, InitiatorConfig, Io, IoError, IoEvent, IoOp, Target};
use rma::rma::OwnedDevice;
use rma::wire::message::{DevicesReply, Notification};
use rma::wire::{
    ClusterName, DropReason, Guid, Hop, Incarnation, IocNumber, Mac, Outgoing, Status, Time,
};

use crate::data::{Ask, BLOCK_BYTES};

/// What comes from controllers.
pub(crate) enum Heard {
    Devices(Guid, IocNumber, Result<DevicesReply, Status>),
    Notified(Guid, IocNumber, Notification),
    Ended(u64, Result<Vec<u8>, IoError>),
}

/// Service connections of a host.
#[derive(Debug)]
pub(crate) struct Service {
    config: InitiatorConfig,
    initiator: Initiator,
    open: BTreeMap<Guid, DeviceId>,
    rng: fastrand::Rng,
}

fn target(device: &OwnedDevice) -> Target {
    Target {
        unit: device.unit,
        ioc: device.row.ioc,
        iod: device.row.iod,
        device: device.device(),
        extent: device.extent(),
        epoch: device.epoch,
        size_bytes: device.row.size_bytes,
        block_size: device.row.block_size,
        features: device.row.features,
    }
}

impl Service {
    pub(crate) fn new(
        local: Guid,
        incarnation: Incarnation,
        cluster: ClusterName,
        macs: Vec<Mac>,
        mtu: u16,
        seed: u64,
    ) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let config = InitiatorConfig {
            local,
            incarnation,
            cluster,
            local_macs: macs,
            mtu,
            credits: 32,
        };
        Self {
            initiator: Initiator::new(config.clone(), rng.u64(..)),
            config,
            open: BTreeMap::new(),
            rng,
        }
    }

    /// The host belongs to a cluster now.
    pub(crate) fn join(&mut self, cluster: ClusterName) {
        self.config.cluster = cluster;
        self.initiator = Initiator::new(self.config.clone(), self.rng.u64(..));
        self.open.clear();
    }

    pub(crate) fn add_controller(&mut self, now: Time, unit: Guid, ioc: IocNumber, macs: &[Mac]) {
        self.initiator.reach_controller(now, unit, ioc, macs);
    }

    pub(crate) fn remove_controller(&mut self, now: Time, unit: Guid, ioc: IocNumber) {
        self.initiator.remove_controller(now, unit, ioc);
    }

    pub(crate) fn list_devices(&mut self, unit: Guid, ioc: IocNumber) {
        self.initiator.list_devices(unit, ioc);
    }

    /// Opens what the host owns now, and closes what it no longer does.
    pub(crate) fn export(&mut self, now: Time, devices: &[OwnedDevice]) {
        let gone: Vec<Guid> = self
            .open
            .keys()
            .filter(|guid| !devices.iter().any(|d| d.row.guid == **guid))
            .copied()
            .collect();
        for guid in gone {
            if let Some(id) = self.open.remove(&guid) {
                self.initiator.close(now, id);
            }
        }
        for device in devices {
            let target = target(device);
            if let Some(id) = self.open.get(&device.row.guid) {
                self.initiator.retarget(now, *id, target);
            } else {
                let id = self.initiator.open(now, target);
                self.open.insert(device.row.guid, id);
            }
        }
    }

    /// Whether the device is open.
    pub(crate) fn has(&self, device: Guid) -> bool {
        self.open.contains_key(&device)
    }

    /// Writes to a device that belongs to somebody else, and leaves it at that.
    pub(crate) fn trespass(&mut self, now: Time, device: &OwnedDevice, token: u64) {
        let target = target(device);
        let id = self.initiator.open(now, target);
        self.open.insert(device.row.guid, id);
        self.submit(now, (device.row.guid, 0), Ask::Write { fua: true }, token);
    }

    /// Asks for something of one block; whether the device is open.
    pub(crate) fn submit(
        &mut self,
        now: Time,
        (device, block): (Guid, u64),
        ask: Ask,
        token: u64,
    ) -> bool {
        let Some(id) = self.open.get(&device) else {
            return false;
        };
        let (op, len, data, fua) = match ask {
            Ask::Write { fua } => {
                let data = token.to_be_bytes().repeat(BLOCK_BYTES as usize / 8);
                (IoOp::Write, BLOCK_BYTES, data, fua)
            }
            Ask::Read => (IoOp::Read, BLOCK_BYTES, Vec::new(), false),
            Ask::Flush => (IoOp::Flush, 0, Vec::new(), false),
        };
        let io = Io {
            op,
            offset: if op == IoOp::Flush {
                0
            } else {
                block * BLOCK_BYTES
            },
            len,
            data: data.into(),
            fua,
        };
        self.initiator.submit(now, *id, io, token);
        true
    }

    pub(crate) fn handle(&mut self, now: Time, src: Hop, frame: &[u8]) -> Result<(), DropReason> {
        self.initiator.handle(now, src, frame)
    }

    pub(crate) fn tick(&mut self, now: Time) {
        self.initiator.tick(now);
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.initiator.deadline()
    }

    pub(crate) fn poll_transmit(&mut self, now: Time, out: &mut Vec<u8>) -> Option<Outgoing> {
        let mut tail = None;
        let outgoing = self.initiator.poll_transmit_parts(now, out, &mut tail)?;
        if let Some(tail) = tail {
            out.extend_from_slice(tail.bytes());
        }
        Some(outgoing)
    }

    pub(crate) fn poll(&mut self) -> Option<Heard> {
        while let Some(event) = self.initiator.poll_event() {
            match event {
                IoEvent::Devices { unit, ioc, result } => {
                    return Some(Heard::Devices(unit, ioc, result));
                }
                IoEvent::Notified {
                    unit,
                    ioc,
                    notification,
                } => return Some(Heard::Notified(unit, ioc, notification)),
                IoEvent::Done { token, result } => {
                    return Some(Heard::Ended(token, result));
                }
                IoEvent::Up { .. }
                | IoEvent::Down { .. }
                | IoEvent::Refused { .. }
                | IoEvent::Malformed { .. } => {}
            }
        }
        None
    }
}
