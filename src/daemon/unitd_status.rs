//! What `rma-unitd` says of itself to administrators.

use super::unitd_media::Media;
use crate::admin::unit_protocol::{
    ConnectionInfo, ControllerInfo, DeviceInfo, DropCount, RegisterInfo, TrafficInfo, UnitStatus,
};
use crate::net;
use crate::session::Counters;
use crate::unit::Unit;
use crate::wire::message::DeviceRecord;
use crate::wire::row::features;
use crate::wire::{Guid, IocNumber};

/// Where the facts come from.
pub struct Seen<'a> {
    /// The unit.
    pub unit: &'a Unit,
    /// Its media.
    pub media: &'a Media,
    /// Its interfaces.
    pub interfaces: Vec<&'a net::Interface>,
    /// `up`, `down` or `gone`.
    pub link: &'a str,
    /// The most bytes of a frame behind its Ethernet header.
    pub mtu: u16,
    /// Counts its starts.
    pub incarnation: u64,
    /// Its sockets' counters: management, service.
    pub traffic: [net::Counters; 2],
}

/// The unit, its controllers, devices, registers, connections and counters.
pub fn status(seen: &Seen<'_>) -> UnitStatus {
    let unit = seen.unit;
    let all = unit.controllers();
    let cluster = unit.cluster();
    let controllers = all
        .controllers
        .iter()
        .map(|c| ControllerInfo {
            guid: c.guid.to_string(),
            ioc: c.ioc.0,
            name: c.name.clone(),
            model: c.model.clone(),
            register: register(unit, c.guid),
            devices: devices(seen, c.ioc),
        })
        .collect();
    let [management, service] = &seen.traffic;
    let names: Vec<&str> = seen.interfaces.iter().map(|i| i.name.as_str()).collect();
    let macs: Vec<String> = seen.interfaces.iter().map(|i| i.mac.to_string()).collect();
    UnitStatus {
        guid: all.unit.to_string(),
        name: all.name,
        incarnation: seen.incarnation,
        change: unit.stamp().change,
        cluster: (!cluster.is_none()).then(|| cluster.to_string()),
        assignment: unit.assignment(),
        guests: unit
            .guest_clusters()
            .iter()
            .map(ToString::to_string)
            .collect(),
        fabric_up: unit.is_fabric_up(),
        interface: names.join(", "),
        mac: macs.first().cloned().unwrap_or_default(),
        macs,
        link: seen.link.to_owned(),
        mtu: seen.mtu,
        registers_lost: !unit.has_registers(),
        term: unit.term(),
        register: register(unit, all.unit),
        in_flight: unit.in_flight(),
        controllers,
        connections: connections(unit),
        management: traffic(management, unit.drops(false)),
        service: traffic(service, unit.drops(true)),
    }
}

fn register(unit: &Unit, row: Guid) -> Option<RegisterInfo> {
    let register = unit.register(row)?;
    let writer = register.owned.writer;
    Some(RegisterInfo {
        ownership: register.ownership.word().to_owned(),
        owners: register
            .ownership
            .owners()
            .iter()
            .map(Guid::to_string)
            .collect(),
        epoch: register.owned.epoch.0,
        term: register.owned.term,
        writer: (!writer.is_nil()).then(|| writer.to_string()),
    })
}

fn devices(seen: &Seen<'_>, ioc: IocNumber) -> Vec<DeviceInfo> {
    let records = seen.unit.devices(ioc).map(|list| list.devices);
    records
        .into_iter()
        .flatten()
        .filter_map(|record| device(seen, ioc, record))
        .collect()
}

fn device(seen: &Seen<'_>, ioc: IocNumber, record: DeviceRecord) -> Option<DeviceInfo> {
    let served = seen.media.at(ioc, record.iod)?;
    let names = features::NAMES
        .iter()
        .filter(|(bit, _)| record.features & bit != 0)
        .map(|(_, name)| (*name).to_owned());
    Some(DeviceInfo {
        guid: record.guid.to_string(),
        iod: record.iod.0,
        name: record.name,
        vendor: record.vendor,
        model: record.model,
        serial: record.serial,
        size_bytes: record.size_bytes,
        block_size: record.block_size,
        features: names.collect(),
        backend: served.config.backend.name().to_owned(),
        path: served
            .config
            .path
            .as_ref()
            .map(|path| path.display().to_string()),
        register: register(seen.unit, record.guid),
        cluster: {
            let cluster = seen.unit.cluster_of(record.guid);
            (cluster != seen.unit.cluster()).then(|| cluster.to_string())
        },
        operations: served.backend.operations(),
        errors: served.backend.errors(),
    })
}

fn connections(unit: &Unit) -> Vec<ConnectionInfo> {
    [false, true]
        .into_iter()
        .flat_map(|service| unit.connections(service))
        .map(|(connection, ioc, peer)| ConnectionInfo {
            connection: format!("{:016x}", connection.0),
            ioc: ioc.0,
            peer: peer.guid.to_string(),
            role: peer.role.to_string(),
            mac: peer.mac.to_string(),
        })
        .collect()
}

fn traffic(counters: &net::Counters, drops: &Counters) -> TrafficInfo {
    let drops = drops
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| DropCount {
            reason: reason.to_string(),
            count,
        });
    TrafficInfo {
        received_frames: counters.received_frames,
        received_bytes: counters.received_bytes,
        sent_frames: counters.sent_frames,
        sent_bytes: counters.sent_bytes,
        receive_overruns: counters.receive_drops,
        send_drops: counters.send_drops + counters.send_oversized,
        drops: drops.collect(),
    }
}
