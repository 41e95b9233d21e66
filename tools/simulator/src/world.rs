//! The world: machines on a wire, one clock, one seed. Nothing in it happens by chance twice.

mod alter;
mod io;
mod life;
mod run;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rma::fabric::{Fabric, MemoryCatalog, Policy};
use rma::lease::StoredVote;
use rma::rma::Intervals;
use rma::rma::request::{AdminReply, AdminRequest};
use rma::unit::{ControllerSpec, DeviceSpec, DiskError, DiskOp, StoredRegisters, Unit, UnitFacts};
use rma::wire::{
    ClusterName, Epoch, Guid, Header, Hop, IocNumber, IodNumber, Mac, Outgoing, Row, Shared, Time,
};

use crate::check::Model;
use crate::clock::Clock;
use crate::data::{Ask, BLOCKS, Data, Standing};
use crate::network::Network;
use crate::node::{
    DiskFaults, Host, Machine, Pending, STALL, Services, Storage, UnitContents, device_spec,
};
use crate::stored::{RegistersDisk, StoredTable, TableDisk, VoteDisk};

/// The most frames that one machine sends at one moment before the world calls it a storm.
const MAX_BURST: usize = 1_000_000;

/// The most things that happen at one moment before the world calls it a standstill.
const MAX_STANDSTILL: u64 = 1_000_000;

/// Who slept for so long has forgotten its sessions; what was under way in them may be executed
/// again, as after a restart.
const SESSION_MEMORY: Duration = Duration::from_secs(20 * 3600);

/// Names a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(pub(crate) usize);

/// An administrator's request without an answer.
#[derive(Debug)]
struct Asked {
    /// In which life of the host.
    life: u64,
    /// What for.
    request: Box<AdminRequest>,
}

impl Asked {
    /// Whether it changes settings.
    fn settles(&self) -> bool {
        matches!(*self.request, AdminRequest::GranularitySet { .. })
    }
}

#[derive(Debug)]
struct Node {
    mac: Mac,
    machine: Machine,
    clock: Clock,
    /// Whether its clock starts anew with it.
    rebooted: bool,
    /// Counts crashes: what was meant for an earlier life does not arrive. (A start begins the life
    /// that the crash before has counted.)
    life: u64,
    /// Of each of its NICs, whether its cable is plugged in.
    linked: Vec<bool>,
    wake: Option<Time>,
    /// What its clock says then.
    wake_local: Time,
    /// When its disk has done what it was told.
    disk_until: Time,
}

#[derive(Debug)]
enum Event {
    Frame {
        to: usize,
        /// By which of its NICs.
        nic: u8,
        service: bool,
        src: Mac,
        bytes: Rc<[u8]>,
    },
    Wake {
        node: usize,
    },
    /// A disk has finished what is in [`World::on_disk`] under this number.
    Disk {
        node: usize,
        number: u64,
    },
}

/// Something that is going to happen: the earliest first, and of the same moment the oldest.
#[derive(Debug)]
struct Due {
    at: Time,
    number: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        // A heap gives its largest.
        (other.at, other.number).cmp(&(self.at, self.number))
    }
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
    pub bytes: Rc<[u8]>,
}

/// How true to life a world is; what costs time and only matters to made-up stories is left out
/// elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Realism {
    /// Tables and registers lie in the daemons' own files.
    pub files: bool,
    /// Each machine has a clock of its own.
    pub clocks: bool,
    /// Equal rows of all hosts are in memory once, and nothing is kept on disks: for worlds in which
    /// nothing ever crashes.
    pub shared: bool,
}

/// The world.
#[derive(Debug)]
pub struct World {
    realism: Realism,
    now: Time,
    nodes: Vec<Node>,
    events: BinaryHeap<Due>,
    /// What disks have not finished, by machine, in the order in which they were told.
    on_disk: BTreeMap<(usize, u64), Pending>,
    /// Where a frame is made.
    scratch: Vec<u8>,
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
    /// Requests of administrators without an answer: of which host, in which of its lives.
    asked: BTreeMap<(usize, u64), Asked>,
    /// One of each row, where equal rows are to be in memory once.
    known_rows: BTreeMap<Guid, Arc<Row>>,
    /// Every frame sent, where it is wanted.
    pub capture: Option<Vec<Seen>>,
    /// Frames sent by kind since the start, where they are counted.
    pub kinds: BTreeMap<&'static str, u64>,
    /// Whether frames are counted by kind.
    pub counts_kinds: bool,
    /// The epoch that the frame carries which a unit is taking in.
    io_epoch: Option<Epoch>,
}

fn mac(n: usize) -> Mac {
    let n = n as u32 + 1;
    let [_, a, b, c] = n.to_be_bytes();
    Mac([2, 0, 0, a, b, c])
}

/// The address of a machine's NIC.
fn nic_of(first: Mac, nic: u8) -> Mac {
    let mut mac = first;
    mac.0[2] = nic;
    mac
}

/// Whose MAC address it is, and of which NIC, if anyone's.
fn place_of(mac: Mac) -> Option<(usize, u8)> {
    let [2, 0, nic, a, b, c] = mac.0 else {
        return None;
    };
    let place = (u32::from_be_bytes([0, a, b, c]) as usize).checked_sub(1)?;
    Some((place, nic))
}

fn devices_of(unit: &Storage) -> Vec<Guid> {
    unit.contents.devices.values().map(|d| d.guid).collect()
}

impl World {
    /// An empty world.
    pub fn new(seed: u64) -> Self {
        Self::with(seed, Realism::default())
    }

    /// An empty world, as true to life as is wanted.
    pub fn with(seed: u64, realism: Realism) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        Self {
            realism,
            now: Time::ZERO + Duration::from_secs(1),
            nodes: Vec::new(),
            events: BinaryHeap::new(),
            on_disk: BTreeMap::new(),
            scratch: Vec::new(),
            sequence: 0,
            network: Network::new(rng.u64(..)),
            disks: DiskFaults::NONE,
            model: Model::default(),
            data: Data::default(),
            next_token: 1,
            standstill: 0,
            asked: BTreeMap::new(),
            known_rows: BTreeMap::new(),
            capture: None,
            kinds: BTreeMap::new(),
            counts_kinds: true,
            io_epoch: None,
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
            clock: Clock::WORLD,
            rebooted: true,
            life: 0,
            linked: vec![true],
            wake: None,
            wake_local: Time::ZERO,
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
            fate: crate::central::Fate::Kept,
            backup: None,
            seen: crate::central::Seen::default(),
        })));
        self.start(id);
        id
    }

    /// Puts a host on the wire, not started. Its configuration asks for `cluster`.
    pub fn add_host(&mut self, name: &str, cluster: &str) -> NodeId {
        let id = self.nodes.len();
        let guid = Guid(0x0105_0000_0000_0000_0000_0000_0000_0000 + id as u128);
        let seed = self.rng.u64(..);
        let disk = self.realism.files.then(|| TableDisk::new(guid, seed));
        let vote_disk = self.realism.files.then(|| VoteDisk::new(guid, !seed));
        self.add(Machine::Host(Box::new(Host {
            guid,
            name: name.to_owned(),
            cluster: cluster.parse().expect("a cluster name"),
            macs: vec![mac(id)],
            incarnation: 0,
            intervals: Intervals::default(),
            crt_source: rma::rma::CrtSource::Peers,
            auto_restore: false,
            stored: StoredTable::default(),
            vote: Some(StoredVote::default()),
            vote_disk,
            agent: None,
            service: None,
            replies: BTreeMap::new(),
            used: BTreeMap::new(),
            events: Vec::new(),
            blocks: Vec::new(),
            exports: None,
            ended: Vec::new(),
            disk,
            date_s: 0,
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
        let seed = self.rng.u64(..);
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
        let disk = self
            .realism
            .files
            .then(|| RegistersDisk::new(Guid(base), seed));
        let vote_disk = self.realism.files.then(|| VoteDisk::new(Guid(base), !seed));
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
            assignment: 0,
            incarnation: 0,
            contents,
            stored: Some(StoredRegisters::default()),
            vote: Some(StoredVote::default()),
            vote_disk,
            unit: None,
            disk,
            date_s: 0,
        })))
    }

    /// Gives a machine that was not started yet a second NIC.
    pub fn add_nic(&mut self, id: NodeId) {
        let node = &mut self.nodes[id.0];
        let mac = nic_of(node.mac, node.linked.len() as u8);
        node.linked.push(true);
        match &mut node.machine {
            Machine::Host(host) => host.macs.push(mac),
            Machine::Unit(unit) => unit.facts.macs.push(mac),
            Machine::Fabric(_) => panic!("fabric services have one NIC"),
        }
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

    /// Every machine.
    pub(crate) fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.nodes.iter().map(|node| &node.machine)
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

    /// A unit, to change what is on its disk while it is down.
    ///
    /// # Panics
    /// Where the machine is something else.
    pub fn unit_mut(&mut self, id: NodeId) -> &mut Storage {
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

    /// Fabric services, to look at.
    pub fn fabric(&self, id: NodeId) -> &Services {
        match &self.nodes[id.0].machine {
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
        let now = self.local(id.0);
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

    /// What the clock of a machine says.
    fn local(&self, id: usize) -> Time {
        self.nodes[id].clock.local(self.now)
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
            nic: 0,
            service,
            src,
            bytes: Rc::from(frame),
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

    /// Carries out a commit, as far as the disk does; whether it went well.
    fn write(&mut self, id: usize, pending: &Pending) -> bool {
        match (&mut self.nodes[id].machine, pending) {
            (Machine::Host(host), Pending::Commit(_, change)) => {
                self.model.check_commit(host, change);
                let done = match &mut host.disk {
                    Some(disk) => disk.commit(&mut host.stored, change, host.date_s),
                    None if self.realism.shared => {
                        host.stored.apply_head(change);
                        true
                    }
                    None => {
                        host.stored.apply(change);
                        true
                    }
                };
                self.model.check_silence(host, change);
                done
            }
            (machine, Pending::Vote(_, vote)) => {
                let done = machine.store_vote(vote);
                if done {
                    self.model.check_vote(machine);
                }
                done
            }
            (Machine::Unit(storage), Pending::Registers(_, change)) => {
                self.model
                    .check_terms(storage, &change.registers, change.term);
                let was_lost = storage.stored.is_none();
                let done = storage.write(change);
                if was_lost {
                    self.model.restored(storage, &change.registers);
                }
                self.model.check_unit_disk(&self.nodes[id].machine);
                done
            }
            _ => true,
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
