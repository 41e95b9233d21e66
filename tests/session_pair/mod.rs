//! A segment in virtual time with seeded faults, and a disk that is served over a session on it.
//!
//! Nothing sleeps: [`World::step`] goes to the next moment at which something happens.

#![allow(dead_code, unreachable_pub)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rma::session::{
    Client, ClientConfig, ClientEvent, Hub, HubEvent, NicState, Request, Server, ServerConfig,
    ServerEvent,
};
use rma::wire::kind::Role;
use rma::wire::message::{IO_RANGE_BYTES, IoRange};
use rma::wire::{
    ClusterName, CommandId, ConnectionId, Epoch, Flags, Guid, Hop, Incarnation, IocNumber,
    IodNumber, Kind, Mac, Shared, Status, Tail, Time, Wire,
};

/// What the segment does to frames.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// Probability that a frame is lost.
    pub loss: f64,
    /// Probability that a frame is delivered twice, the second time up to `late` later.
    pub duplicate: f64,
    /// Probability that a frame is held back by up to 3 ms.
    pub reorder: f64,
    /// Probability that a bit of a frame is flipped.
    pub corrupt: f64,
    /// One-way delay of every frame.
    pub delay: Duration,
    /// How late a duplicate may come.
    pub late: Duration,
}

impl Faults {
    /// A good segment: 20 us one way.
    pub const NONE: Self = Self {
        loss: 0.0,
        duplicate: 0.0,
        reorder: 0.0,
        corrupt: 0.0,
        delay: Duration::from_micros(20),
        late: Duration::from_millis(50),
    };
    /// Everything at once.
    pub const ALL: Self = Self {
        loss: 0.05,
        duplicate: 0.05,
        reorder: 0.1,
        corrupt: 0.01,
        ..Self::NONE
    };
}

/// A frame on its way.
#[derive(Debug, Clone)]
pub struct InFlight {
    pub src: Mac,
    pub dst: Mac,
    pub bytes: Vec<u8>,
}

/// The segment: frames by the time of their arrival.
#[derive(Debug)]
pub struct Segment {
    pub faults: Faults,
    pub rng: fastrand::Rng,
    queue: BTreeMap<(Time, u64), InFlight>,
    sent: u64,
    /// Every frame that was sent, where they are kept.
    pub record: Option<Vec<InFlight>>,
    /// Called for each frame with its number; `true` loses it.
    pub lose: Option<fn(u64, &InFlight) -> bool>,
    pub frames: u64,
    pub bytes: u64,
    /// How long a station takes to send a frame: what it sends meanwhile waits.
    pub frame_time: Duration,
    /// NICs whose cable is out: nobody is told.
    pub dead: BTreeSet<Mac>,
    /// Pairs of NICs that do not reach each other, either way.
    pub apart: BTreeSet<(Mac, Mac)>,
    /// Frames that are longer are lost.
    pub carries: usize,
    busy_until: BTreeMap<Mac, Time>,
}

impl Segment {
    pub fn new(faults: Faults, seed: u64) -> Self {
        Self {
            faults,
            rng: fastrand::Rng::with_seed(seed),
            queue: BTreeMap::new(),
            sent: 0,
            record: None,
            lose: None,
            frames: 0,
            bytes: 0,
            frame_time: Duration::ZERO,
            dead: BTreeSet::new(),
            apart: BTreeSet::new(),
            carries: usize::MAX,
            busy_until: BTreeMap::new(),
        }
    }

    fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && self.rng.f64() < p
    }

    fn put(&mut self, at: Time, frame: InFlight) {
        self.sent += 1;
        self.queue.insert((at, self.sent), frame);
    }

    /// Sends a frame.
    pub fn send(&mut self, now: Time, mut frame: InFlight) {
        self.frames += 1;
        self.bytes += frame.bytes.len() as u64;
        if let Some(record) = &mut self.record {
            record.push(frame.clone());
        }
        if self.lose.is_some_and(|lose| lose(self.frames, &frame)) {
            return;
        }
        let apart = [(frame.src, frame.dst), (frame.dst, frame.src)];
        if self.dead.contains(&frame.src)
            || self.dead.contains(&frame.dst)
            || apart.iter().any(|pair| self.apart.contains(pair))
            || frame.bytes.len() > self.carries
        {
            return;
        }
        let faults = self.faults;
        let busy = self.busy_until.entry(frame.src).or_insert(now);
        *busy = (*busy).max(now) + self.frame_time;
        let now = *busy;
        if self.chance(faults.loss) {
            return;
        }
        if self.chance(faults.duplicate) {
            let late = self.rng.u64(0..=faults.late.as_nanos() as u64);
            self.put(
                now + faults.delay + Duration::from_nanos(late),
                frame.clone(),
            );
        }
        if self.chance(faults.corrupt) {
            let bit = self.rng.usize(0..frame.bytes.len() * 8);
            frame.bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let mut at = now + faults.delay;
        if self.chance(faults.reorder) {
            at = at + Duration::from_micros(self.rng.u64(0..3000));
        }
        self.put(at, frame);
    }

    /// When the next frame arrives.
    pub fn next(&self) -> Option<Time> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes a frame that has arrived by `now`.
    pub fn arrived(&mut self, now: Time) -> Option<InFlight> {
        if self.next()? > now {
            return None;
        }
        self.queue.pop_first().map(|(_, frame)| frame)
    }

    /// Loses everything that is under way.
    pub fn clear(&mut self) {
        self.queue.clear();
    }
}

pub const CLIENT_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
pub const SERVER_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
pub const CLIENT: Guid = Guid(0xc);
pub const SERVER: Guid = Guid(0x5);
pub const IOC: IocNumber = IocNumber(1);

/// An answer that the disk is busy with.
#[derive(Debug)]
struct Busy {
    connection: ConnectionId,
    command: CommandId,
    status: Status,
    body: Vec<u8>,
}

/// A disk in memory behind a server.
#[derive(Debug)]
pub struct Disk {
    pub bytes: Vec<u8>,
    /// How often each command of each connection's peer was executed.
    pub executed: BTreeMap<CommandId, u32>,
    /// The epoch that commands must carry, where one is asked for.
    pub epoch: Option<Epoch>,
    /// So many of the next commands are refused with this status.
    pub refuse: Option<(u32, Status)>,
    /// The longest that an execution takes.
    pub slowness: Duration,
    /// The most commands executed at a time so far.
    pub most_busy: usize,
    busy: BTreeMap<(Time, u64), Busy>,
    number: u64,
}

impl Disk {
    pub fn new(size: usize) -> Self {
        Self {
            bytes: vec![0; size],
            executed: BTreeMap::new(),
            epoch: None,
            refuse: None,
            slowness: Duration::ZERO,
            most_busy: 0,
            busy: BTreeMap::new(),
            number: 0,
        }
    }

    fn execute(&mut self, kind: Kind, epoch: Epoch, body: &[u8]) -> (Status, Vec<u8>) {
        if let Some((left @ 1.., status)) = self.refuse {
            self.refuse = Some((left - 1, status));
            return (status, Vec::new());
        }
        if self.epoch.is_some_and(|e| e != epoch) {
            return (Status::StaleEpoch, Vec::new());
        }
        let Some((range, data)) = body.split_at_checked(IO_RANGE_BYTES) else {
            return (Status::Ok, Vec::new());
        };
        let Ok(range) = IoRange::from_body(range) else {
            return (Status::BadRequest, Vec::new());
        };
        let (from, to) = (range.offset as usize, (range.offset + range.len) as usize);
        if to > self.bytes.len() {
            return (Status::OutOfRange, Vec::new());
        }
        match kind {
            Kind::Read => (Status::Ok, self.bytes[from..to].to_vec()),
            Kind::Write => {
                self.bytes[from..to].copy_from_slice(data);
                (Status::Ok, Vec::new())
            }
            Kind::Discard | Kind::WriteZeroes => {
                self.bytes[from..to].fill(0);
                (Status::Ok, Vec::new())
            }
            Kind::Flush => (Status::Ok, Vec::new()),
            _ => (Status::Unsupported, Vec::new()),
        }
    }

    /// Takes a command of a server; other events are given back.
    pub fn accept(
        &mut self,
        now: Time,
        rng: &mut fastrand::Rng,
        event: ServerEvent,
    ) -> Option<ServerEvent> {
        let ServerEvent::Request {
            connection,
            command,
            kind,
            epoch,
            ref body,
            ..
        } = event
        else {
            return Some(event);
        };
        *self.executed.entry(command).or_insert(0) += 1;
        let (status, body) = self.execute(kind, epoch, body);
        let takes = Duration::from_nanos(rng.u64(0..=self.slowness.as_nanos() as u64));
        self.number += 1;
        let busy = Busy {
            connection,
            command,
            status,
            body,
        };
        self.busy.insert((now + takes, self.number), busy);
        self.most_busy = self.most_busy.max(self.busy.len());
        None
    }

    /// Answers what is ready by now.
    pub fn finish(&mut self, now: Time, server: &mut Server) {
        while let Some(entry) = self.busy.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let busy = entry.remove();
            server.reply(now, busy.connection, busy.command, busy.status, busy.body);
        }
    }

    /// When the next answer is ready.
    pub fn next(&self) -> Option<Time> {
        self.busy.first_key_value().map(|(k, _)| k.0)
    }

    /// The power fails: what was being executed is not answered.
    pub fn forget(&mut self) {
        self.busy.clear();
    }
}

/// The addresses of further NICs.
pub fn nic(first: Mac, number: u8) -> Mac {
    let mut mac = first;
    mac.0[4] = number;
    mac
}

/// The frames that a hub has to send.
pub fn frames(hub: &mut Hub<u32>, now: Time, shares: bool) -> Vec<(Hop, Vec<u8>)> {
    let mut all: Vec<(Hop, Shared, Vec<u8>)> = Vec::new();
    loop {
        let mut bytes = Vec::new();
        let sent = Tail::join(&mut bytes, |out, tail| {
            hub.poll_transmit_parts(now, out, tail)
        });
        let Some(outgoing) = sent else {
            return all
                .into_iter()
                .map(|(hop, _, bytes)| (hop, bytes))
                .collect();
        };
        let packet = Shared::new(bytes.len(), outgoing);
        match all.last_mut() {
            Some((hop, shared, frame))
                if shares && *hop == outgoing.hop && shared.with(packet).is_some() =>
            {
                *shared = shared.with(packet).unwrap();
                frame.extend_from_slice(&bytes);
            }
            _ => all.push((outgoing.hop, packet, bytes)),
        }
    }
}

/// A client's hub, a server's hub with its disk, and the segment between them.
pub struct World {
    pub now: Time,
    pub segment: Segment,
    pub client: Hub<u32>,
    pub server: Hub<u32>,
    pub disk: Disk,
    pub seed: u64,
    pub mtu: u16,
    /// Whether packets share frames.
    pub shares: bool,
    pub credits: u16,
    pub incarnation: u64,
    /// Events of the client's hub that were not looked at.
    pub events: Vec<ClientEvent>,
    pub server_events: Vec<ServerEvent>,
    /// Whether the server's station is there.
    pub server_up: bool,
    /// The NICs of both ends, and what they take.
    pub client_macs: Vec<Mac>,
    pub server_macs: Vec<Mac>,
    pub client_nics: Vec<NicState>,
    pub server_mtus: Vec<u16>,
    steps: u64,
}

pub fn client_config(session: u64, mtu: u16, credits: u16) -> ClientConfig {
    ClientConfig {
        local: CLIENT,
        incarnation: Incarnation(1),
        role: Role::Host,
        cluster: "A".parse().unwrap(),
        session,
        remote: SERVER,
        ioc: IOC,
        service: true,
        mtu,
        credits,
    }
}

pub fn server_config(incarnation: u64, mtu: u16, credits: u16) -> ServerConfig {
    ServerConfig {
        local: SERVER,
        incarnation: Incarnation(incarnation),
        cluster: Some("A".parse::<ClusterName>().unwrap()),
        service: true,
        mtu,
        credits,
        max_connections: 16,
    }
}

impl World {
    pub fn new(faults: Faults, seed: u64, mtu: u16) -> Self {
        Self::with_credits(faults, seed, mtu, 32)
    }

    pub fn with_credits(faults: Faults, seed: u64, mtu: u16, credits: u16) -> Self {
        Self::with_nics(faults, seed, mtu, credits, (1, 1))
    }

    /// Both ends with so many NICs.
    pub fn with_nics(
        faults: Faults,
        seed: u64,
        mtu: u16,
        credits: u16,
        (clients, servers): (u8, u8),
    ) -> Self {
        let client_macs: Vec<Mac> = (0..clients).map(|n| nic(CLIENT_MAC, n)).collect();
        let server_macs: Vec<Mac> = (0..servers).map(|n| nic(SERVER_MAC, n)).collect();
        let mut client = Hub::new(true, client_macs.clone());
        client.insert(1, Client::new(client_config(1, mtu, credits), seed));
        let mut server = Hub::new(true, server_macs.clone());
        server.set_server(Server::new(server_config(1, mtu, credits), seed));
        let mut world = Self {
            now: Time::from_nanos(1_000_000_000),
            segment: Segment::new(faults, seed),
            client,
            server,
            disk: Disk::new(16 << 20),
            seed,
            mtu,
            shares: true,
            credits,
            incarnation: 1,
            events: Vec::new(),
            server_events: Vec::new(),
            server_up: true,
            client_nics: vec![NicState { up: true, mtu }; client_macs.len()],
            server_mtus: vec![mtu; server_macs.len()],
            client_macs,
            server_macs,
            steps: 0,
        };
        world.tell_nics();
        let (now, macs) = (world.now, world.server_macs.clone());
        let client = world.client.client_mut(&1).unwrap();
        client.reach(now, &macs);
        world.pump();
        world
    }

    /// Tells both ends what their NICs are.
    pub fn tell_nics(&mut self) {
        let client = self.client.client_mut(&1).unwrap();
        client.set_nics(self.now, &self.client_nics);
        let server = self.server.server_mut().unwrap();
        server.set_nics(&self.server_mtus);
    }

    /// The responder starts again: sessions are gone, the disk is not.
    pub fn restart_server(&mut self) {
        self.incarnation += 1;
        self.disk.forget();
        self.server = Hub::new(true, self.server_macs.clone());
        let config = server_config(self.incarnation, self.mtu, self.credits);
        self.server.set_server(Server::new(config, self.seed));
        self.tell_nics();
        self.server_up = true;
    }

    pub fn submit(&mut self, kind: Kind, op: u64, range: IoRange, data: &[u8]) -> CommandId {
        let mut body = range.to_body();
        body.extend_from_slice(data);
        let request = Request {
            kind,
            flags: Flags::NONE,
            iod: IodNumber(1),
            epoch: Epoch(op),
            body,
            expect: if kind == Kind::Read {
                range.len as usize
            } else {
                0
            },
        };
        let now = self.now;
        let client = self.client.client_mut(&1).unwrap();
        let id = client.submit(now, request).unwrap();
        self.pump();
        id
    }

    pub fn read(&mut self, op: u64, offset: u64, len: u64) -> CommandId {
        self.submit(Kind::Read, op, IoRange::of_device(offset, len), &[])
    }

    pub fn write(&mut self, op: u64, offset: u64, data: &[u8]) -> CommandId {
        let len = data.len() as u64;
        self.submit(Kind::Write, op, IoRange::of_device(offset, len), data)
    }

    /// Everything that can happen now.
    pub fn pump(&mut self) {
        let now = self.now;
        loop {
            let mut idle = true;
            while let Some(event) = self.client.poll_event() {
                if let HubEvent::Client(_, event) = event {
                    self.events.push(event);
                }
                idle = false;
            }
            while let Some(event) = self.server.poll_event() {
                if let HubEvent::Server(event) = event {
                    self.on_server_event(event);
                }
                idle = false;
            }
            for (hop, bytes) in frames(&mut self.client, now, self.shares) {
                let nic = usize::from(hop.nic);
                assert!(
                    bytes.len() <= self.client_nics[nic].mtu.into(),
                    "over the MTU"
                );
                let (src, dst) = (self.client_macs[nic], hop.mac);
                self.segment.send(now, InFlight { src, dst, bytes });
                idle = false;
            }
            for (hop, bytes) in frames(&mut self.server, now, self.shares) {
                let nic = usize::from(hop.nic);
                // An echo of what has come is as long as that.
                let is_echo = bytes[1] == Kind::Path.code();
                let fits = bytes.len() <= self.server_mtus[nic].into();
                assert!(fits || is_echo, "over the MTU");
                let (src, dst) = (self.server_macs[nic], hop.mac);
                if self.server_up && fits {
                    self.segment.send(now, InFlight { src, dst, bytes });
                }
                idle = false;
            }
            if idle {
                break;
            }
        }
    }

    fn on_server_event(&mut self, event: ServerEvent) {
        let event = self.disk.accept(self.now, &mut self.segment.rng, event);
        self.server_events.extend(event);
        self.finish_disk();
    }

    fn finish_disk(&mut self) {
        if let Some(server) = self.server.server_mut() {
            self.disk.finish(self.now, server);
        }
    }

    /// The next moment at which something happens.
    pub fn next(&self) -> Option<Time> {
        let server = self.server.deadline().filter(|_| self.server_up);
        [
            self.segment.next(),
            self.client.deadline(),
            server,
            self.disk.next(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Goes to the next moment and does what happens there.
    pub fn step(&mut self) {
        self.steps += 1;
        assert!(self.steps < 20_000_000, "no end, seed {}", self.seed);
        if let Some(next) = self.next() {
            self.now = self.now.max(next);
        }
        let now = self.now;
        while let Some(frame) = self.segment.arrived(now) {
            // What is wrong with a frame is counted; a faulty segment makes such frames.
            self.deliver(&frame);
            self.pump();
        }
        self.finish_disk();
        self.client.tick(now);
        if self.server_up {
            self.server.tick(now);
        }
        self.pump();
        assert!(
            self.client.deadline().is_none_or(|t| t > now),
            "a deadline that does not pass"
        );
    }

    /// A frame arrives.
    pub fn deliver(&mut self, frame: &InFlight) {
        let (now, mac) = (self.now, frame.src);
        let at = |macs: &[Mac]| macs.iter().position(|mac| *mac == frame.dst);
        if let Some(at) = at(&self.client_macs) {
            let nic = at as u8;
            if frame.bytes.len() <= self.client_nics[at].mtu.into() {
                let _ = self.client.handle(now, Hop { mac, nic }, &frame.bytes);
            }
        } else {
            // Tests that move the responder to another address name one that nobody has.
            let at = at(&self.server_macs).unwrap_or(0);
            let nic = at as u8;
            if self.server_up && frame.bytes.len() <= self.server_mtus[at].into() {
                let _ = self.server.handle(now, Hop { mac, nic }, &frame.bytes);
            }
        }
    }

    /// Steps until `done` says so, at most for `limit` of virtual time.
    pub fn until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> Duration {
        let start = self.now;
        while !done(self) {
            assert!(
                self.now.since(start) <= limit,
                "not done within {limit:?}, seed {}",
                self.seed
            );
            self.step();
        }
        self.now.since(start)
    }

    /// Lets `time` pass.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.next().is_some_and(|t| t <= end) {
            self.step();
        }
        self.now = end;
    }

    pub fn connected(&self) -> bool {
        self.client.client(&1).unwrap().is_connected()
    }

    /// The answer to a command, if it has come.
    pub fn take_reply(&mut self, id: CommandId) -> Option<(Status, Vec<u8>)> {
        let index = self
            .events
            .iter()
            .position(|e| matches!(e, ClientEvent::Reply { command, .. } if *command == id))?;
        match self.events.swap_remove(index) {
            ClientEvent::Reply { status, body, .. } => Some((status, body)),
            _ => None,
        }
    }

    /// Waits for the answer to a command.
    pub fn reply(&mut self, id: CommandId) -> (Status, Vec<u8>) {
        let mut reply = None;
        self.until(Duration::from_secs(60), |w| {
            reply = w.take_reply(id);
            reply.is_some()
        });
        reply.unwrap()
    }
}

/// Reads and writes without overlap in time, checked against a model of the disk.
pub struct Workload {
    pub left: u32,
    pub depth: usize,
    pub max_len: u64,
    next_op: u64,
    model: Vec<u8>,
    running: BTreeMap<CommandId, (u64, u64, Option<Vec<u8>>)>,
    rng: fastrand::Rng,
    pub done: u32,
}

impl Workload {
    pub fn new(count: u32, depth: usize, max_len: u64, seed: u64) -> Self {
        Self {
            left: count,
            depth,
            max_len,
            next_op: 1,
            model: vec![0; 16 << 20],
            running: BTreeMap::new(),
            rng: fastrand::Rng::with_seed(seed ^ 0x77),
            done: 0,
        }
    }

    /// Takes what has ended and starts more; returns whether all is done.
    pub fn drive(&mut self, world: &mut World) -> bool {
        let events = std::mem::take(&mut world.events);
        for event in events {
            if let ClientEvent::Reply {
                command,
                status,
                body,
            } = event
            {
                assert_eq!(status, Status::Ok);
                let (offset, len, data) = self.running.remove(&command).expect("answered once");
                let at = offset as usize..(offset + len) as usize;
                match data {
                    Some(data) => {
                        assert!(body.is_empty());
                        self.model[at].copy_from_slice(&data);
                    }
                    None => assert!(self.model[at] == body[..], "seed {}", world.seed),
                }
                self.done += 1;
            } else {
                world.events.push(event);
            }
        }
        while self.left > 0 && self.running.len() < self.depth {
            let len = self.rng.u64(1..=self.max_len.div_ceil(512)) * 512;
            let offset = self.rng.u64(0..=((16 << 20) - len) / 512) * 512;
            let clash = |(o, l, _): &(u64, u64, _)| offset < o + l && *o < offset + len;
            if self.running.values().any(clash) {
                break;
            }
            let op = self.next_op;
            self.next_op += 1;
            self.left -= 1;
            let (command, data) = if self.rng.bool() {
                let salt = self.rng.u64(..);
                let mut data = Vec::with_capacity(len as usize);
                while data.len() < len as usize {
                    let word = (salt ^ data.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    data.extend_from_slice(&word.to_le_bytes());
                }
                (world.write(op, offset, &data), Some(data))
            } else {
                (world.read(op, offset, len), None)
            };
            self.running.insert(command, (offset, len, data));
        }
        world.pump();
        self.left == 0 && self.running.is_empty()
    }

    /// Runs to the end and checks that every command was executed, and how often.
    pub fn run(&mut self, world: &mut World, limit: Duration) {
        world.until(limit, |w| self.drive(w));
        self.check(world);
    }

    pub fn check(&self, world: &World) {
        assert!(world.disk.bytes == self.model, "seed {}", world.seed);
        if world.incarnation == 1 {
            assert_eq!(world.disk.executed.len() as u64, self.next_op - 1);
            let twice = world.disk.executed.iter().find(|(_, n)| **n != 1);
            assert_eq!(twice, None, "seed {}", world.seed);
        }
    }
}
