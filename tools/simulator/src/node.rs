//! Machines: a host with its agent, a unit, fabric services; each with what survives its crashes.

use std::collections::BTreeMap;
use std::time::Duration;

use rma::fabric::{Fabric, FabricConfig, MemoryCatalog, Policy};
use rma::lease::StoredVote;
use rma::rma::request::{AdminReply, WatchEvent};
use rma::rma::{Agent, AgentAction, AgentConfig, CommitToken, CrtSource, Intervals, OwnedDevice};
use rma::unit::{
    ControllerSpec, DeviceSpec, DiskInfo, DiskOp, RegistersChange, StoredRegisters, Unit,
    UnitAction, UnitConfig, UnitFacts,
};
use rma::wire::{ClusterName, Guid, Incarnation, IocNumber, IodNumber, Mac, Time};

use crate::central::{Fate, Seen};
use crate::disk::File;
use crate::service::{Heard, Service};
use crate::stored::{RegistersDisk, StoredTable, TableChange, TableDisk, VoteDisk};

/// Bytes behind the Ethernet header that every simulated NIC takes.
pub const MTU: u16 = 1500;
/// The same on the service EtherType, where every length is found out.
pub const SERVICE_MTU: u16 = 9000;

/// How long a stalled commit takes.
pub const STALL: Duration = Duration::from_secs(4);

/// How the simulated disks behave.
#[derive(Debug, Clone, PartialEq)]
pub struct DiskFaults {
    /// How long a sync takes at most.
    pub sync: Duration,
    /// Chance that a commit fails.
    pub failure: f64,
    /// Chance that a commit takes as long as [`STALL`].
    pub stall: f64,
    /// Chance that an operation on a medium fails.
    pub medium: f64,
    /// Machines whose disks never fail.
    pub spared: Vec<crate::NodeId>,
}

impl DiskFaults {
    /// A disk that does everything right, and at once.
    pub const NONE: Self = Self {
        sync: Duration::ZERO,
        failure: 0.0,
        stall: 0.0,
        medium: 0.0,
        spared: Vec::new(),
    };
}

/// A write that the disk has not finished.
#[derive(Debug)]
pub(crate) enum Pending {
    Commit(CommitToken, Box<TableChange>),
    Registers(u64, Box<RegistersChange>),
    Vote(u64, Box<StoredVote>),
    Medium(u64, Guid, DiskOp),
}

/// A host.
#[derive(Debug)]
pub struct Host {
    pub(crate) guid: Guid,
    pub(crate) name: String,
    pub(crate) cluster: ClusterName,
    pub(crate) macs: Vec<Mac>,
    pub(crate) incarnation: u64,
    /// How often its agent polls and waits.
    pub intervals: Intervals,
    /// Where it gets the cluster's table from when it starts.
    pub crt_source: CrtSource,
    /// Whether it restores units that have lost their registers.
    pub auto_restore: bool,
    /// What is on its disk.
    pub stored: StoredTable,
    /// What it has promised as a voter of the lease; `None`: lost.
    pub vote: Option<StoredVote>,
    /// The file that its vote lies in, where the world wants that.
    pub(crate) vote_disk: Option<VoteDisk>,
    /// Its agent, while it runs.
    pub agent: Option<Agent>,
    pub(crate) service: Option<Service>,
    /// What administrators were answered, by token.
    pub replies: BTreeMap<u64, AdminReply>,
    /// What its operating system uses, and by whom.
    pub used: BTreeMap<Guid, String>,
    /// What those who watch were told since the last start.
    pub events: Vec<WatchEvent>,
    /// The blocks of Fig. 5 since the last start.
    pub blocks: Vec<(u16, String)>,
    /// The devices that it exports.
    pub exports: Option<Vec<OwnedDevice>>,
    /// I/O that has ended since the last look, and what came of it where it was well.
    pub(crate) ended: Vec<(u64, Option<Vec<u8>>)>,
    /// The file that the table lies in, where the world wants that.
    pub(crate) disk: Option<TableDisk>,
    /// The date, for people.
    pub(crate) date_s: u64,
    /// Where the agent said that it belongs now.
    pub moved: Option<ClusterName>,
}

impl Host {
    /// Which host it is.
    pub const fn guid(&self) -> Guid {
        self.guid
    }

    pub(crate) fn boot(&mut self, seed: u64) {
        self.incarnation += 1;
        self.events.clear();
        self.blocks.clear();
        self.exports = None;
        let config = AgentConfig {
            guid: self.guid,
            incarnation: Incarnation(self.incarnation),
            name: self.name.clone(),
            macs: self.macs.clone(),
            cluster: self.cluster,
            known_cluster: self.stored.cluster(),
            fabric_mac: None,
            crt_source: self.crt_source,
            mtu: MTU,
            intervals: self.intervals,
            auto_restore: self.auto_restore,
            vote: self.vote.clone(),
        };
        let cluster = config.known_cluster;
        self.service = Some(Service::new(
            self.guid,
            config.incarnation,
            cluster,
            self.macs.clone(),
            SERVICE_MTU,
            seed ^ 2,
        ));
        self.agent = Some(Agent::new(config, self.stored.table(), seed));
    }

    /// Carries out what the agent wants; gives back what the disk has to do.
    pub(crate) fn act(&mut self, now: Time) -> Vec<Pending> {
        let mut pending = Vec::new();
        let (Some(agent), Some(service)) = (&mut self.agent, &mut self.service) else {
            return pending;
        };
        loop {
            if let Some(heard) = service.poll() {
                match heard {
                    Heard::Devices(unit, ioc, result) => {
                        agent.devices_listed(now, unit, ioc, result);
                    }
                    Heard::Notified(unit, ioc, notification) => {
                        agent.service_notified(now, unit, ioc, notification);
                    }
                    Heard::Ended(token, result) => self.ended.push((token, result.ok())),
                }
                continue;
            }
            let Some(action) = agent.poll_action() else {
                return pending;
            };
            match action {
                AgentAction::Commit { token, changed } => {
                    let change = TableChange::of(agent.table(), &changed);
                    pending.push(Pending::Commit(token, Box::new(change)));
                }
                AgentAction::PersistVote { token, vote } => {
                    pending.push(Pending::Vote(token, vote));
                }
                AgentAction::AddController { unit, ioc, macs } => {
                    service.add_controller(now, unit, ioc, &macs);
                }
                AgentAction::RemoveController { unit, ioc } => {
                    service.remove_controller(now, unit, ioc);
                }
                AgentAction::ListDevices { unit, ioc } => service.list_devices(unit, ioc),
                AgentAction::Export(devices) => {
                    service.export(now, &devices);
                    self.exports = Some(devices);
                }
                AgentAction::AdminReply { token, reply } => {
                    self.replies.insert(token, *reply);
                }
                AgentAction::LookWhoUses => agent.tell_uses(now, &self.used),
                AgentAction::Event(event) => self.events.push(event),
                AgentAction::Joined(cluster) => {
                    // A label in the file: written with the next commit at the latest.
                    self.stored.keep_cluster(cluster);
                    if let Some(disk) = &mut self.disk {
                        disk.join(cluster, &self.stored, self.date_s);
                    }
                    service.join(cluster);
                }
                AgentAction::Moved { to, .. } => self.moved = Some(to),
                AgentAction::Block(number, text) => self.blocks.push((number, text)),
            }
        }
    }
}

/// What a unit consists of, whatever becomes of the program that serves it.
#[derive(Debug, Clone)]
pub struct UnitContents {
    /// The controllers by number.
    pub controllers: BTreeMap<IocNumber, ControllerSpec>,
    /// The devices by controller and number.
    pub devices: BTreeMap<(IocNumber, IodNumber), DeviceSpec>,
}

/// A unit.
#[derive(Debug)]
pub struct Storage {
    pub(crate) facts: UnitFacts,
    pub(crate) cluster_wanted: ClusterName,
    pub(crate) cluster: ClusterName,
    pub(crate) assignment: u64,
    pub(crate) incarnation: u64,
    /// What it consists of.
    pub contents: UnitContents,
    /// What is on its disk; `None`: lost.
    pub stored: Option<StoredRegisters>,
    /// What it has promised as a voter of the lease; `None`: lost.
    pub vote: Option<StoredVote>,
    /// The file that its vote lies in, where the world wants that.
    pub(crate) vote_disk: Option<VoteDisk>,
    /// Its state machine, while it runs.
    pub unit: Option<Unit>,
    /// The file that the registers lie in, where the world wants that.
    pub(crate) disk: Option<RegistersDisk>,
    /// The date, for people.
    pub(crate) date_s: u64,
}

/// The unit of a controller or device, also while that is taken out: their GUIDs begin alike.
pub(crate) const fn unit_of(row: Guid) -> Guid {
    Guid(row.0 >> 64 << 64)
}

impl Storage {
    /// The extents, as they are on its disk, of devices that it has.
    pub(crate) fn extents(&self) -> Vec<Guid> {
        let has = |device| self.contents.devices.values().any(|d| d.guid == device);
        let registers = self.stored.iter().flat_map(|stored| &stored.registers);
        registers
            .filter(|r| {
                r.extent
                    .as_ref()
                    .is_some_and(|e| e.present && has(e.device))
            })
            .map(|r| r.row)
            .collect()
    }

    /// Whether a controller or device is this unit's, also while it is taken out.
    pub(crate) const fn owns(&self, row: Guid) -> bool {
        unit_of(row).0 == self.facts.guid.0
    }

    pub(crate) fn boot(&mut self, now: Time, seed: u64) {
        self.incarnation += 1;
        let config = UnitConfig {
            facts: self.facts.clone(),
            incarnation: Incarnation(self.incarnation),
            cluster_wanted: self.cluster_wanted,
            cluster: self.cluster,
            assignment: self.assignment,
            fabric_mac: None,
            mtu: SERVICE_MTU,
            credits: 32,
            max_connections: 4096,
            vote: self.vote.clone(),
        };
        let mut unit = Unit::new(config, self.stored.clone(), seed);
        for spec in self.contents.controllers.values() {
            unit.add_controller(now, spec.clone())
                .expect("the unit's contents are possible");
        }
        for ((ioc, _), spec) in &self.contents.devices {
            unit.add_device(now, *ioc, spec.clone())
                .expect("the unit's contents are possible");
        }
        self.unit = Some(unit);
    }

    /// Carries out what the unit wants; gives back what the disk has to do.
    pub(crate) fn act(&mut self) -> Vec<Pending> {
        let mut pending = Vec::new();
        let Some(unit) = &mut self.unit else {
            return pending;
        };
        while let Some(action) = unit.poll_action() {
            match action {
                UnitAction::PersistRegisters { token, change } => {
                    pending.push(Pending::Registers(token, change));
                }
                UnitAction::PersistVote { token, vote } => {
                    pending.push(Pending::Vote(token, vote));
                }
                UnitAction::Disk { token, device, op } => {
                    pending.push(Pending::Medium(token, device, op));
                }
                UnitAction::Joined(cluster, assignment) => {
                    (self.cluster, self.assignment) = (cluster, assignment);
                }
                _ => {}
            }
        }
        pending
    }

    /// Writes registers to the disk; whether that went well.
    pub(crate) fn write(&mut self, change: &RegistersChange) -> bool {
        let was_lost = self.stored.is_none();
        let stored = self.stored.get_or_insert_default();
        let done = match &mut self.disk {
            Some(disk) => disk.store(stored, change, self.date_s),
            None => {
                stored.apply(change);
                true
            }
        };
        // What is lost stays so where it could not be restored.
        if was_lost && !done {
            self.stored = None;
        }
        done
    }
}

/// Fabric services.
#[derive(Debug)]
pub struct Services {
    pub(crate) guid: Guid,
    pub(crate) incarnation: u64,
    pub(crate) policy: Policy,
    /// What is on their disk.
    pub catalog: MemoryCatalog,
    /// Their state machine, while it runs.
    pub fabric: Option<Fabric<MemoryCatalog>>,
    /// What becomes of clusters' tables when they end.
    pub fate: Fate,
    /// An older copy of the database.
    pub(crate) backup: Option<MemoryCatalog>,
    pub(crate) seen: Seen,
}

impl Services {
    pub(crate) fn boot(&mut self, seed: u64) {
        self.incarnation += 1;
        let config = FabricConfig {
            guid: self.guid,
            incarnation: Incarnation(self.incarnation),
            policy: self.policy,
            mtu: MTU,
        };
        let fabric = Fabric::new(config, self.catalog.clone(), seed);
        self.fabric = Some(fabric.expect("a catalog in memory can be read"));
    }
}

/// What a machine is.
#[derive(Debug)]
pub enum Machine {
    /// A host with an RMA.
    Host(Box<Host>),
    /// A storage box with a unit.
    Unit(Box<Storage>),
    /// A box with fabric services.
    Fabric(Box<Services>),
}

impl Machine {
    /// Which machine it is.
    pub(crate) fn guid(&self) -> Guid {
        match self {
            Self::Host(host) => host.guid,
            Self::Unit(unit) => unit.facts.guid,
            Self::Fabric(services) => services.guid,
        }
    }

    /// Writes what its voter has promised to its disk; whether that went well.
    pub(crate) fn store_vote(&mut self, vote: &StoredVote) -> bool {
        let (stored, disk, date_s) = match self {
            Self::Host(host) => (&mut host.vote, &mut host.vote_disk, host.date_s),
            Self::Unit(unit) => (&mut unit.vote, &mut unit.vote_disk, unit.date_s),
            Self::Fabric(_) => return true,
        };
        match disk {
            Some(disk) => disk.store(stored, vote, date_s),
            None => {
                *stored = Some(vote.clone());
                true
            }
        }
    }

    /// The files on its disk.
    pub(crate) fn files(&self) -> Vec<File> {
        let (first, vote) = match self {
            Self::Host(host) => (host.disk.as_ref().map(|d| &d.file), &host.vote_disk),
            Self::Unit(unit) => (unit.disk.as_ref().map(|d| &d.file), &unit.vote_disk),
            Self::Fabric(_) => return Vec::new(),
        };
        let vote = vote.as_ref().map(|d| &d.file);
        first.into_iter().chain(vote).cloned().collect()
    }
}

/// A device's spec by number and name, one MiB in blocks of 512.
pub fn device_spec(guid: Guid, iod: u16, name: &str) -> DeviceSpec {
    DeviceSpec {
        guid,
        iod: IodNumber(iod),
        name: name.to_owned(),
        vendor: "rma".to_owned(),
        model: "simulated".to_owned(),
        serial: format!("{:x}", guid.0),
        info: DiskInfo {
            size_bytes: 1 << 20,
            block_size: 512,
            features: 0,
        },
    }
}
