//! A unit with memory media, and hosts with sessions to it, on a faulty segment in virtual time.

#![allow(dead_code, unreachable_pub)]

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rma::backend::{Backend, Memory};
use rma::lease::StoredVote;
use rma::session::{Client, ClientConfig, ClientEvent, Request};
use rma::unit::{
    AtOnce, ControllerSpec, DeviceSpec, DiskError, DiskOp, StoredRegisters, Unit, UnitAction,
    UnitConfig, UnitFacts,
};
use rma::wire::kind::Role;
use rma::wire::message::{Change, CompareAndSet, Notification, RegistersReply};
use rma::wire::{
    ClusterName, CommandId, DropReason, Epoch, Flags, Guid, Header, Incarnation, IocNumber,
    IodNumber, Kind, Mac, Ownership, Status, Tail, Time, Wire,
};

use super::session_pair::{Faults, InFlight, Segment};

pub const UNIT: Guid = Guid(0x112);
pub const UNIT_MAC: Mac = Mac([2, 0, 0, 0, 1, 0x12]);
pub const IOC1: Guid = Guid(0x1_0001);
pub const IOC2: Guid = Guid(0x1_0002);
pub const DISK: Guid = Guid(0x2_0001);
pub const DISK2: Guid = Guid(0x2_0002);
pub const DISK3: Guid = Guid(0x2_0003);
pub const HOST_A: Guid = Guid(0xa);
pub const HOST_B: Guid = Guid(0xb);
pub const DISK_BYTES: u64 = 1 << 20;

pub fn cluster(name: &str) -> ClusterName {
    name.parse().unwrap()
}

pub fn dedicated(host: Guid) -> Ownership {
    Ownership::Dedicated(host)
}

pub fn shared(hosts: &[Guid]) -> Ownership {
    Ownership::shared(hosts.to_vec()).unwrap()
}

/// What a client of a host is connected to: 0 for the UMS, otherwise the controller.
pub type Port = u16;

pub struct Host {
    pub guid: Guid,
    pub mac: Mac,
    pub clients: BTreeMap<Port, Client>,
    pub notifications: Vec<(Port, Notification)>,
    pub refused: Vec<Status>,
    replies: BTreeMap<(Port, CommandId), (Status, Vec<u8>)>,
}

/// What becomes of registers that are to be persisted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persist {
    Works,
    Fails,
    /// Waits for [`World::release_persists`].
    Hangs,
}

/// A change of content that a medium has applied.
#[derive(Debug, Clone)]
pub struct Applied {
    pub at: Time,
    pub device: Guid,
    pub op: DiskOp,
}

pub struct World {
    pub now: Time,
    /// Management and service traffic.
    pub segments: [Segment; 2],
    pub unit: Unit,
    pub hosts: BTreeMap<Guid, Host>,
    pub media: BTreeMap<Guid, Memory>,
    pub persist: Persist,
    /// What is durable.
    pub stored: StoredRegisters,
    pub store_count: usize,
    /// What of the lease is durable.
    pub vote: StoredVote,
    hanging: VecDeque<UnitAction>,
    /// An operation takes up to this long.
    pub disk_time: Duration,
    /// Operations stay where they are while it is set.
    pub disk_hangs: bool,
    pub disk_error: Option<DiskError>,
    /// Disks do at once what they can.
    pub disk_is_prompt: bool,
    /// Of hosts that are added.
    pub host_mtu: u16,
    busy: BTreeMap<(Time, u64), (Guid, DiskOp)>,
    pub applied: Vec<Applied>,
    pub joined: Vec<ClusterName>,
    pub seed: u64,
    incarnation: u64,
    steps: u64,
}

/// Media that are asked on the way of a frame.
struct Prompt<'a> {
    media: &'a mut BTreeMap<Guid, Memory>,
    error: Option<DiskError>,
    applied: &'a mut Vec<Applied>,
    now: Time,
}

impl AtOnce for Prompt<'_> {
    fn lend(&mut self, device: Guid, offset: u64, len: u64) -> Option<Result<Tail, DiskError>> {
        match self.error {
            Some(error) => Some(Err(error)),
            None => self.media[&device].lend(offset, len),
        }
    }

    fn is_lent(&self, device: Guid, offset: u64, len: u64) -> bool {
        self.media[&device].is_lent(offset, len)
    }

    fn is_lent_as(&self, lent: &Tail, device: Guid, offset: u64, len: u64) -> bool {
        self.media[&device].is_lent_as(lent, offset, len)
    }

    fn read_at_once(
        &mut self,
        device: Guid,
        offset: u64,
        into: &mut [u8],
    ) -> Option<Result<(), DiskError>> {
        match self.error {
            Some(error) => Some(Err(error)),
            None => self.media[&device].read_at_once(offset, into),
        }
    }

    fn write_at_once(
        &mut self,
        device: Guid,
        offset: u64,
        data: &[u8],
        sum: Option<u32>,
    ) -> Option<Result<(), DiskError>> {
        if let Some(error) = self.error {
            return Some(Err(error));
        }
        let medium = self.media.get_mut(&device)?;
        let outcome = medium.write_at_once(offset, data, sum)?;
        if outcome.is_ok() {
            let data = data.to_vec().into();
            let fua = false;
            self.applied.push(Applied {
                at: self.now,
                device,
                op: DiskOp::Write { offset, data, fua },
            });
        }
        Some(outcome)
    }
}

pub fn unit_config(incarnation: u64, cluster: ClusterName) -> UnitConfig {
    UnitConfig {
        facts: UnitFacts {
            guid: UNIT,
            name: "unit-112".into(),
            vendor: "rma".into(),
            model: "test".into(),
            serial: "112".into(),
            macs: vec![UNIT_MAC],
        },
        incarnation: Incarnation(incarnation),
        cluster_wanted: ClusterName::NONE,
        cluster,
        assignment: 0,
        // Nobody answers there: these tests are about hosts.
        fabric_mac: Some(Mac([2, 0, 0, 0, 9, 9])),
        mtu: 9000,
        credits: 2048,
        max_connections: 64,
        vote: Some(StoredVote::default()),
    }
}

pub fn controller(guid: Guid, ioc: u16) -> ControllerSpec {
    ControllerSpec {
        guid,
        ioc: IocNumber(ioc),
        name: format!("ioc-{ioc}"),
        model: "m".into(),
    }
}

pub fn device(guid: Guid, iod: u16, media: &Memory) -> DeviceSpec {
    DeviceSpec {
        guid,
        iod: IodNumber(iod),
        name: format!("iod-{iod}"),
        vendor: "v".into(),
        model: "m".into(),
        serial: "s".into(),
        info: media.info(),
    }
}

pub fn memory(read_only: bool) -> Memory {
    Memory::new(DISK_BYTES, Some(512), read_only).unwrap()
}

impl World {
    /// A unit of cluster A with IOC 1 (DISK as 1, DISK2 as 2) and IOC 2 (DISK3 as 1), and hosts A
    /// and B of that cluster, connected to everything as soon as the wire permits.
    pub fn new(faults: Faults, seed: u64) -> Self {
        let mut world = Self::empty(faults, seed, cluster("A"), Some(StoredRegisters::default()));
        world.add_host(HOST_A, "A");
        world.add_host(HOST_B, "A");
        world
    }

    pub fn empty(
        faults: Faults,
        seed: u64,
        cluster: ClusterName,
        registers: Option<StoredRegisters>,
    ) -> Self {
        let segments = [
            Segment::new(faults, seed.wrapping_mul(3)),
            Segment::new(faults, seed.wrapping_mul(5)),
        ];
        let media = [DISK, DISK2, DISK3]
            .into_iter()
            .map(|guid| (guid, memory(false)))
            .collect();
        let mut world = Self {
            now: Time::from_nanos(1_000_000_000),
            segments,
            unit: Unit::new(unit_config(1, cluster), registers.clone(), seed),
            hosts: BTreeMap::new(),
            media,
            persist: Persist::Works,
            stored: registers.unwrap_or_default(),
            store_count: 0,
            vote: StoredVote::default(),
            hanging: VecDeque::new(),
            disk_time: Duration::ZERO,
            disk_hangs: false,
            disk_error: None,
            disk_is_prompt: false,
            host_mtu: 1500,
            busy: BTreeMap::new(),
            applied: Vec::new(),
            joined: Vec::new(),
            seed,
            incarnation: 1,
            steps: 0,
        };
        world.populate();
        world
    }

    fn populate(&mut self) {
        let (now, unit) = (self.now, &mut self.unit);
        unit.add_controller(now, controller(IOC1, 1)).unwrap();
        unit.add_controller(now, controller(IOC2, 2)).unwrap();
        for (ioc, iod, guid) in [(1, 1, DISK), (1, 2, DISK2), (2, 1, DISK3)] {
            let spec = device(guid, iod, &self.media[&guid]);
            unit.add_device(now, IocNumber(ioc), spec).unwrap();
        }
    }

    /// Ends the unit at once and starts it again with what was durable; media keep their content.
    pub fn restart(&mut self) {
        self.restart_with(Some(self.stored.clone()));
    }

    pub fn restart_with(&mut self, registers: Option<StoredRegisters>) {
        self.incarnation += 1;
        self.busy.clear();
        self.hanging.clear();
        let mut config = unit_config(self.incarnation, self.unit.cluster());
        config.vote = Some(self.vote.clone());
        self.unit = Unit::new(config, registers, self.seed + self.incarnation);
        self.populate();
        self.pump();
    }

    pub fn add_host(&mut self, guid: Guid, of: &str) {
        self.add_host_with(guid, of, 32);
    }

    pub fn add_host_with(&mut self, guid: Guid, of: &str, credits: u16) {
        let mac = Mac([2, 0, 0, 0, 7, guid.0 as u8]);
        let mut clients = BTreeMap::new();
        for port in [0, 1, 2] {
            let config = ClientConfig {
                local: guid,
                incarnation: Incarnation(1),
                role: Role::Host,
                cluster: cluster(of),
                session: 1,
                remote: UNIT,
                ioc: IocNumber(port),
                service: port != 0,
                mtu: self.host_mtu,
                credits,
            };
            let seed = self.seed ^ (guid.0 as u64) << 8 ^ u64::from(port);
            let mut client = Client::new(config, seed);
            client.connect(self.now, UNIT_MAC);
            clients.insert(port, client);
        }
        let host = Host {
            guid,
            mac,
            clients,
            notifications: Vec::new(),
            refused: Vec::new(),
            replies: BTreeMap::new(),
        };
        self.hosts.insert(guid, host);
        self.pump();
    }

    fn perform(&mut self, action: UnitAction) {
        match action {
            UnitAction::Disk { token, device, op } => {
                let most = self.disk_time.as_nanos() as u64;
                let takes = Duration::from_nanos(self.segments[1].rng.u64(0..=most));
                self.busy.insert((self.now + takes, token), (device, op));
            }
            UnitAction::PersistRegisters { .. } | UnitAction::PersistVote { .. }
                if self.persist == Persist::Hangs =>
            {
                self.hanging.push_back(action);
            }
            UnitAction::PersistRegisters { token, change } => {
                let ok = self.persist == Persist::Works;
                if ok {
                    self.store_count += 1;
                    self.stored.apply(&change);
                }
                self.unit.registers_persisted(self.now, token, ok);
            }
            UnitAction::PersistVote { token, vote } => {
                let ok = self.persist == Persist::Works;
                if ok {
                    self.vote = *vote;
                }
                self.unit.vote_persisted(self.now, token, ok);
            }
            UnitAction::Joined(cluster, _) => self.joined.push(cluster),
            UnitAction::FabricUp(_)
            | UnitAction::AssignmentPending
            | UnitAction::FabricRefused(_) => {}
        }
    }

    pub fn release_persists(&mut self) {
        self.persist = Persist::Works;
        while let Some(action) = self.hanging.pop_front() {
            self.perform(action);
        }
        self.pump();
    }

    pub fn hanging(&self) -> usize {
        self.hanging.len()
    }

    fn finish_disk(&mut self) {
        while !self.disk_hangs
            && let Some(entry) = self.busy.first_entry()
            && entry.key().0 <= self.now
        {
            let ((_, token), (device, op)) = entry.remove_entry();
            let outcome = match self.disk_error {
                Some(error) => Err(error),
                None => self.media[&device].execute(op.clone()),
            };
            if op.is_change() && outcome.is_ok() {
                self.applied.push(Applied {
                    at: self.now,
                    device,
                    op,
                });
            }
            self.unit.disk_done(self.now, token, outcome);
        }
    }

    pub fn disk_busy(&self) -> usize {
        self.busy.len()
    }

    /// Everything that can happen now.
    pub fn pump(&mut self) {
        loop {
            let mut idle = true;
            while let Some(action) = self.unit.poll_action() {
                self.perform(action);
                idle = false;
            }
            if !self.disk_hangs
                && self
                    .busy
                    .first_key_value()
                    .is_some_and(|((at, _), _)| *at <= self.now)
            {
                self.finish_disk();
                idle = false;
            }
            idle &= !self.transmit();
            idle &= !self.collect();
            if idle {
                return;
            }
        }
    }

    fn transmit(&mut self) -> bool {
        let now = self.now;
        let mut out = Vec::new();
        let mut any = false;
        while let Some((service, dst)) = self.unit.poll_transmit(now, &mut out) {
            let bytes = std::mem::take(&mut out);
            assert!(bytes.len() <= self.host_mtu.into(), "a frame over the MTU");
            let src = UNIT_MAC;
            self.segments[usize::from(service)].send(now, InFlight { src, dst, bytes });
            any = true;
        }
        for host in self.hosts.values_mut() {
            for (port, client) in &mut host.clients {
                while let Some(dst) = client.poll_transmit(now, &mut out) {
                    let bytes = std::mem::take(&mut out);
                    let src = host.mac;
                    self.segments[usize::from(*port != 0)].send(now, InFlight { src, dst, bytes });
                    any = true;
                }
            }
        }
        any
    }

    fn collect(&mut self) -> bool {
        let mut any = false;
        for host in self.hosts.values_mut() {
            for (port, client) in &mut host.clients {
                while let Some(event) = client.poll_event() {
                    any = true;
                    match event {
                        ClientEvent::Reply {
                            command,
                            status,
                            body,
                        } => {
                            host.replies.insert((*port, command), (status, body));
                        }
                        ClientEvent::Notified(n) => host.notifications.push((*port, n)),
                        ClientEvent::Refused(status) => host.refused.push(status),
                        ClientEvent::Connected { .. } | ClientEvent::Lost => {}
                    }
                }
            }
        }
        any
    }

    fn next(&self) -> Option<Time> {
        let clients = self.hosts.values().flat_map(|h| h.clients.values());
        let disk = self.busy.first_key_value().map(|((at, _), _)| *at);
        [
            self.segments[0].next(),
            self.segments[1].next(),
            self.unit.deadline(),
            disk.filter(|_| !self.disk_hangs),
        ]
        .into_iter()
        .chain(clients.map(Client::deadline))
        .flatten()
        .min()
    }

    /// Goes to the next moment and does what happens there.
    pub fn step(&mut self) {
        self.steps += 1;
        assert!(self.steps < 5_000_000, "no end, seed {}", self.seed);
        if let Some(next) = self.next() {
            self.now = self.now.max(next);
        }
        for service in [false, true] {
            while let Some(frame) = self.segments[usize::from(service)].arrived(self.now) {
                self.deliver(service, &frame);
                self.pump();
            }
        }
        self.finish_disk();
        let now = self.now;
        self.unit.tick(now);
        for host in self.hosts.values_mut() {
            for client in host.clients.values_mut() {
                client.tick(now);
            }
        }
        self.pump();
        assert!(
            self.unit.deadline().is_none_or(|t| t > now),
            "a deadline that does not pass"
        );
    }

    fn deliver(&mut self, service: bool, frame: &InFlight) {
        if frame.dst == UNIT_MAC {
            // What is wrong with a frame is counted; a faulty segment makes such frames.
            let mut media = Prompt {
                media: &mut self.media,
                error: self.disk_error,
                applied: &mut self.applied,
                now: self.now,
            };
            let (unit, bytes) = (&mut self.unit, &frame.bytes);
            let _ = if self.disk_is_prompt && !self.disk_hangs {
                unit.handle_with(self.now, service, frame.src, bytes, &mut media)
            } else {
                unit.handle(self.now, service, frame.src, bytes)
            };
            return;
        }
        let Ok((header, payload)) = Header::parse(&frame.bytes, service) else {
            return;
        };
        for host in self.hosts.values_mut().filter(|h| h.mac == frame.dst) {
            for client in host.clients.values_mut() {
                if client.config().service == service && client.owns(&header) {
                    let _ = client.handle(self.now, frame.src, &header, payload);
                }
            }
        }
    }

    /// Steps until `done` says so, at most for `limit` of virtual time.
    pub fn until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) {
        let start = self.now;
        while !done(self) {
            assert!(
                self.now.since(start) <= limit,
                "not done within {limit:?}, seed {}",
                self.seed
            );
            self.step();
        }
    }

    /// Lets time pass.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.next().is_some_and(|next| next <= end) {
            self.step();
        }
        self.now = end;
    }

    pub fn submit(&mut self, host: Guid, port: Port, request: Request) -> CommandId {
        let now = self.now;
        let client = self.client(host, port);
        let command = client.submit(now, request).unwrap();
        self.pump();
        command
    }

    pub fn client(&mut self, host: Guid, port: Port) -> &mut Client {
        let host = self.hosts.get_mut(&host).unwrap();
        host.clients.get_mut(&port).unwrap()
    }

    pub fn take_reply(
        &mut self,
        host: Guid,
        port: Port,
        command: CommandId,
    ) -> Option<(Status, Vec<u8>)> {
        let host = self.hosts.get_mut(&host).unwrap();
        host.replies.remove(&(port, command))
    }

    /// Waits for the reply to a command.
    pub fn reply(&mut self, host: Guid, port: Port, command: CommandId) -> (Status, Vec<u8>) {
        let mut found = None;
        self.until(Duration::from_secs(60), |world| {
            found = world.take_reply(host, port, command);
            found.is_some()
        });
        found.unwrap()
    }

    /// Asks and waits for the reply.
    pub fn ask(&mut self, host: Guid, port: Port, request: Request) -> (Status, Vec<u8>) {
        let command = self.submit(host, port, request);
        self.reply(host, port, command)
    }

    /// Changes registers as `host` and waits for the reply.
    pub fn set(
        &mut self,
        host: Guid,
        term: u64,
        changes: &[(Guid, u64, Ownership)],
    ) -> (Status, Vec<u8>) {
        self.ask(host, 0, compare_and_set(host, term, changes))
    }

    /// Gives DISK, with what is above it, to its owners; the unit and IOC 1 are shared by A and B.
    pub fn own_disk(&mut self, ownership: Ownership) {
        let both = shared(&[HOST_A, HOST_B]);
        let (status, body) = self.set(
            HOST_A,
            1,
            &[
                (UNIT, 0, both.clone()),
                (IOC1, 0, both),
                (DISK, 0, ownership),
            ],
        );
        assert_eq!(status, Status::Ok);
        let registers = RegistersReply::from_body(&body).unwrap().registers;
        assert_eq!(registers.len(), 3);
    }

    /// An I/O command of `host` to DISK, and its reply.
    pub fn io(&mut self, host: Guid, epoch: u64, kind: Kind, body: Vec<u8>) -> (Status, Vec<u8>) {
        self.ask(host, 1, io_request(kind, 1, epoch, body))
    }

    pub fn drops(&self, service: bool, reason: DropReason) -> u64 {
        self.unit.drops(service).get(reason)
    }
}

pub fn request(kind: Kind, body: Vec<u8>) -> Request {
    Request {
        kind,
        flags: Flags::NONE,
        iod: IodNumber(0),
        epoch: Epoch(0),
        body,
        expect: 4096,
    }
}

pub fn io_request(kind: Kind, iod: u16, epoch: u64, body: Vec<u8>) -> Request {
    Request {
        iod: IodNumber(iod),
        epoch: Epoch(epoch),
        ..request(kind, body)
    }
}

pub fn compare_and_set(writer: Guid, term: u64, changes: &[(Guid, u64, Ownership)]) -> Request {
    let changes = changes
        .iter()
        .map(|(row, expected, ownership)| Change {
            row: *row,
            expected: Epoch(*expected),
            ownership: ownership.clone(),
            extent: None,
        })
        .collect();
    let body = CompareAndSet {
        term,
        writer,
        changes,
    };
    request(Kind::CompareAndSet, body.to_body())
}

/// The body of a range command, with data behind it.
pub fn range(offset: u64, len: u64, data: &[u8]) -> Vec<u8> {
    let mut body = rma::wire::message::IoRange::of_device(offset, len).to_body();
    body.extend_from_slice(data);
    body
}
