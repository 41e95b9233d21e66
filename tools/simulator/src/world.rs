//! The world: machines on a wire, one clock, one seed. Nothing in it happens by chance twice.

mod alter;
mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use rma::fabric::{Fabric, MemoryCatalog, Policy};
use rma::rma::Intervals;
use rma::rma::request::{AdminReply, AdminRequest};
use rma::unit::{ControllerSpec, DeviceSpec, DiskOp, StoredRegisters, Unit, UnitFacts};
use rma::wire::{ClusterName, Guid, Header, IocNumber, IodNumber, Mac, Time};

use crate::check::Model;
use crate::data::{BLOCKS, Data};
use crate::network::Network;
use crate::node::{
    DiskFaults, Host, Machine, Pending, Services, Storage, StoredTable, UnitContents, device_spec,
};

/// The most frames that one machine sends at one moment before the world calls it a storm.
const MAX_BURST: usize = 1_000_000;

/// The most things that happen at one moment before the world calls it a standstill.
const MAX_STANDSTILL: u64 = 1_000_000;

/// Names a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(pub(crate) usize);

#[derive(Debug)]
struct Node {
    mac: Mac,
    machine: Machine,
    /// Counts crashes: what was meant for an earlier life does not arrive.
    life: u64,
    /// Whether its cable is plugged in.
    linked: bool,
    wake: Option<Time>,
    /// When its disk has done what it was told.
    disk_until: Time,
}

#[derive(Debug)]
enum Event {
    Frame {
        to: usize,
        service: bool,
        src: Mac,
        bytes: Rc<Vec<u8>>,
    },
    Wake {
        node: usize,
    },
    Disk {
        node: usize,
        life: u64,
        pending: Pending,
    },
}

/// A frame as the wire saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// When it was sent.
    pub at: Time,
    /// On which EtherType.
    pub service: bool,
    /// The sender.
    pub src: Mac,
    /// The receiver.
    pub dst: Mac,
    /// Header and payload, without the Ethernet header.
    pub bytes: Rc<Vec<u8>>,
}

/// The world.
#[derive(Debug)]
pub struct World {
    now: Time,
    nodes: Vec<Node>,
    events: BTreeMap<(Time, u64), Event>,
    sequence: u64,
    rng: fastrand::Rng,
    /// The wire.
    pub network: Network,
    /// The disks of hosts and units.
    pub disks: DiskFaults,
    /// What was promised to administrators, and what was broken.
    pub model: Model,
    /// What hosts have written and what became of it.
    pub data: Data,
    next_token: u64,
    /// Things that have happened at this moment.
    standstill: u64,
    asked: BTreeSet<(usize, u64)>,
    /// Every frame sent, where it is wanted.
    pub capture: Option<Vec<Seen>>,
    /// Frames sent by kind (management) since the start.
    pub kinds: BTreeMap<&'static str, u64>,
}

fn mac(n: usize) -> Mac {
    let n = n as u32 + 1;
    let [_, a, b, c] = n.to_be_bytes();
    Mac([2, 0, 0, a, b, c])
}

impl World {
    /// An empty world.
    pub fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        Self {
            now: Time::ZERO + Duration::from_secs(1),
            nodes: Vec::new(),
            events: BTreeMap::new(),
            sequence: 0,
            network: Network::new(rng.u64(..)),
            disks: DiskFaults::NONE,
            model: Model::default(),
            data: Data::default(),
            next_token: 1,
            standstill: 0,
            asked: BTreeSet::new(),
            capture: None,
            kinds: BTreeMap::new(),
            rng,
        }
    }

    /// The clock.
    pub const fn now(&self) -> Time {
        self.now
    }

    fn add(&mut self, machine: Machine) -> NodeId {
        let id = self.nodes.len();
        self.nodes.push(Node {
            mac: mac(id),
            machine,
            life: 0,
            linked: true,
            wake: None,
            disk_until: Time::ZERO,
        });
        NodeId(id)
    }

    /// Puts fabric services on the wire, running.
    pub fn add_fabric(&mut self, policy: Policy) -> NodeId {
        let id = self.nodes.len();
        let id = self.add(Machine::Fabric(Box::new(Services {
            guid: Guid(0xfab0_0000 + id as u128),
            incarnation: 0,
            policy,
            catalog: MemoryCatalog::new(),
            fabric: None,
        })));
        self.start(id);
        id
    }

    /// Puts a host on the wire, not started. Its configuration asks for `cluster`.
    pub fn add_host(&mut self, name: &str, cluster: &str) -> NodeId {
        let id = self.nodes.len();
        self.add(Machine::Host(Box::new(Host {
            guid: Guid(0x0105_0000_0000_0000_0000_0000_0000_0000 + id as u128),
            name: name.to_owned(),
            cluster: cluster.parse().expect("a cluster name"),
            mac: mac(id),
            incarnation: 0,
            intervals: Intervals::default(),
            stored: StoredTable::default(),
            agent: None,
            service: None,
            replies: BTreeMap::new(),
            events: Vec::new(),
            blocks: Vec::new(),
            exports: None,
            written: Vec::new(),
            moved: None,
        })))
    }

    /// Puts a unit on the wire, not started, with controllers 1, 2, … and their devices 1, 2, …
    pub fn add_unit(
        &mut self,
        name: &str,
        cluster: &str,
        controllers: &[(&str, &[&str])],
    ) -> NodeId {
        let id = self.nodes.len();
        let cluster = cluster.parse().expect("a cluster name");
        let base = 0x0300_0000_0000_0000_0000_0000_0000_0000 + ((id as u128) << 64);
        let mut contents = UnitContents {
            controllers: BTreeMap::new(),
            devices: BTreeMap::new(),
        };
        for (c, (name, devices)) in controllers.iter().enumerate() {
            let ioc = IocNumber(c as u16 + 1);
            let guid = Guid(base + ((c as u128 + 1) << 32));
            let spec = ControllerSpec {
                guid,
                ioc,
                name: (*name).to_owned(),
                model: String::new(),
            };
            contents.controllers.insert(ioc, spec);
            for (d, name) in devices.iter().enumerate() {
                let iod = d as u16 + 1;
                let spec = device_spec(Guid(guid.0 + u128::from(iod)), iod, name);
                contents.devices.insert((ioc, IodNumber(iod)), spec);
            }
        }
        self.add(Machine::Unit(Box::new(Storage {
            facts: UnitFacts {
                guid: Guid(base),
                name: name.to_owned(),
                vendor: "rma".to_owned(),
                model: String::new(),
                serial: String::new(),
                macs: vec![mac(id)],
            },
            cluster_wanted: cluster,
            cluster: ClusterName::NONE,
            incarnation: 0,
            contents,
            stored: Some(StoredRegisters::default()),
            unit: None,
        })))
    }

    /// Where a machine is.
    pub fn mac(&self, id: NodeId) -> Mac {
        self.nodes[id.0].mac
    }

    /// Every host.
    pub fn hosts(&self) -> impl Iterator<Item = (NodeId, &Host)> {
        self.nodes.iter().enumerate().filter_map(|(id, node)| {
            let Machine::Host(host) = &node.machine else {
                return None;
            };
            Some((NodeId(id), &**host))
        })
    }

    /// Every unit.
    pub fn units(&self) -> impl Iterator<Item = (NodeId, &Storage)> {
        self.nodes.iter().enumerate().filter_map(|(id, node)| {
            let Machine::Unit(unit) = &node.machine else {
                return None;
            };
            Some((NodeId(id), &**unit))
        })
    }

    /// A host.
    ///
    /// # Panics
    /// When the machine is something else; so do the others of this kind.
    pub fn host(&self, id: NodeId) -> &Host {
        match &self.nodes[id.0].machine {
            Machine::Host(host) => host,
            _ => panic!("no host"),
        }
    }

    /// A host, to change its settings before it starts.
    pub fn host_mut(&mut self, id: NodeId) -> &mut Host {
        match &mut self.nodes[id.0].machine {
            Machine::Host(host) => host,
            _ => panic!("no host"),
        }
    }

    /// A unit.
    pub fn unit(&self, id: NodeId) -> &Storage {
        match &self.nodes[id.0].machine {
            Machine::Unit(unit) => unit,
            _ => panic!("no unit"),
        }
    }

    fn unit_mut(&mut self, id: NodeId) -> &mut Storage {
        match &mut self.nodes[id.0].machine {
            Machine::Unit(unit) => unit,
            _ => panic!("no unit"),
        }
    }

    /// Fabric services.
    pub fn fabric_mut(&mut self, id: NodeId) -> &mut Services {
        match &mut self.nodes[id.0].machine {
            Machine::Fabric(services) => services,
            _ => panic!("no fabric services"),
        }
    }

    /// Lets an administrator of fabric services do something.
    pub fn with_fabric<R>(
        &mut self,
        id: NodeId,
        act: impl FnOnce(&mut Fabric<MemoryCatalog>, Time) -> R,
    ) -> Option<R> {
        let now = self.now;
        let done = self.fabric_mut(id).fabric.as_mut().map(|f| act(f, now));
        self.settle(id.0);
        done
    }

    /// Whether a machine runs.
    pub fn is_running(&self, id: NodeId) -> bool {
        match &self.nodes[id.0].machine {
            Machine::Host(host) => host.agent.is_some(),
            Machine::Unit(unit) => unit.unit.is_some(),
            Machine::Fabric(services) => services.fabric.is_some(),
        }
    }

    /// Starts a machine from what is on its disk.
    pub fn start(&mut self, id: NodeId) {
        let (seed, now) = (self.rng.u64(..), self.now);
        match &mut self.nodes[id.0].machine {
            Machine::Host(host) => host.boot(seed),
            Machine::Unit(unit) => unit.boot(now, seed),
            Machine::Fabric(services) => services.boot(seed),
        }
        self.tick(id.0);
    }

    /// Starts every machine that does not run.
    pub fn start_all(&mut self) {
        for id in 0..self.nodes.len() {
            if !self.is_running(NodeId(id)) {
                self.start(NodeId(id));
            }
        }
    }

    /// Takes a machine's power away. Each write that its disk has not finished is there or not.
    pub fn crash(&mut self, id: NodeId) {
        let life = self.nodes[id.0].life;
        let unfinished: Vec<(Time, u64)> = self
            .events
            .iter()
            .filter(|(_, event)| {
                matches!(event, Event::Disk { node, life: of, .. } if *node == id.0 && *of == life)
            })
            .map(|(key, _)| *key)
            .collect();
        let mut torn = false;
        for key in unfinished {
            let Some(Event::Disk { pending, .. }) = self.events.remove(&key) else {
                continue;
            };
            if let Pending::Medium(_, device, op) = &pending {
                // What a medium had not finished is there or not, in no order.
                if self.rng.bool() {
                    self.apply(id.0, *device, op);
                }
                continue;
            }
            // In order: what comes after a write that is lost is lost as well.
            torn |= self.rng.bool();
            if !torn {
                self.write(id.0, &pending);
            }
        }
        let node = &mut self.nodes[id.0];
        node.life += 1;
        node.wake = None;
        match &mut node.machine {
            Machine::Host(host) => {
                host.agent = None;
                host.service = None;
            }
            Machine::Unit(unit) => unit.unit = None,
            Machine::Fabric(services) => services.crash(),
        }
        self.model.check_unit_disk(&self.nodes[id.0].machine);
    }

    /// Looks for acknowledged writes that are not on their media.
    pub fn check_media(&mut self) {
        for what in self.data.lost_writes() {
            self.model.violated(what);
        }
    }

    /// Sends a frame of nobody's making to a machine.
    pub fn inject(&mut self, to: NodeId, service: bool, src: Mac, frame: Vec<u8>) {
        let event = Event::Frame {
            to: to.0,
            service,
            src,
            bytes: Rc::new(frame),
        };
        self.schedule(self.now, event);
    }

    /// Lets time pass.
    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step(end) {}
        self.now = end;
    }

    /// Lets time pass until something is so, at most for `patience`; whether it became so.
    pub fn run_until(&mut self, patience: Duration, mut is_so: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + patience;
        loop {
            if is_so(self) {
                return true;
            }
            if !self.step(end) {
                self.now = end;
                return is_so(self);
            }
        }
    }

    /// Lets a host write one block of a device that it exports; whether there is one.
    pub fn write_block(&mut self, id: NodeId) -> bool {
        let (now, pick, block) = (self.now, self.rng.usize(..), self.rng.u64(0..BLOCKS));
        let Machine::Host(host) = &mut self.nodes[id.0].machine else {
            return false;
        };
        let devices = host.exports.as_deref().unwrap_or_default();
        let (Some(service), false) = (&mut host.service, devices.is_empty()) else {
            return false;
        };
        let device = devices[pick % devices.len()].row.guid;
        let token = self.data.begin(host.guid, device, block);
        let open = service.write(now, device, block, token);
        self.settle(id.0);
        open
    }

    /// Tells the model which writes have ended.
    fn note_writes(&mut self, id: usize) {
        let Machine::Host(host) = &mut self.nodes[id].machine else {
            return;
        };
        for (token, ok) in std::mem::take(&mut host.written) {
            if ok && let Err(what) = self.data.acknowledge(token) {
                self.model.violated(what);
            }
        }
    }

    fn write(&mut self, id: usize, pending: &Pending) {
        match (&mut self.nodes[id].machine, pending) {
            (Machine::Host(host), Pending::Commit(_, stored)) => {
                let cluster = host.stored.cluster();
                host.stored = (**stored).clone();
                host.stored.keep_cluster(cluster);
                self.model.check_silence(host);
            }
            (Machine::Unit(storage), Pending::Registers(_, registers, term)) => {
                storage.write(registers, *term);
                self.model.check_unit_disk(&self.nodes[id].machine);
            }
            _ => {}
        }
    }

    /// The units' GUIDs with their present controllers and devices.
    pub fn present(&self) -> BTreeSet<Guid> {
        let mut present = BTreeSet::new();
        for (_, storage) in self.units() {
            present.insert(storage.facts.guid);
            present.extend(storage.contents.controllers.values().map(|c| c.guid));
            present.extend(storage.contents.devices.values().map(|d| d.guid));
            present.extend(storage.extents());
        }
        present
    }
}
