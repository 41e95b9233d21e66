//! How the world goes on: what happens next, and what comes of it.

use super::{
    AdminReply, DiskError, DiskOp, Due, Duration, Event, Fabric, Guid, Header, Hop, MAX_BURST,
    MAX_STANDSTILL, Mac, Machine, Node, NodeId, Outgoing, Pending, Rc, STALL, Seen, Shared,
    Standing, Time, Unit, World, nic_of, place_of,
};

use super::io::{PromptMedia, named_row};
use crate::sessions::Beginning;

impl World {
    /// Does the next thing, if it is due by `end`.
    pub(super) fn step(&mut self, end: Time) -> bool {
        if self.events.peek().is_none_or(|due| due.at > end) {
            return false;
        }
        let Some(Due { at, event, .. }) = self.events.pop() else {
            return false;
        };
        if at > self.now {
            self.standstill = 0;
        }
        self.standstill += 1;
        assert!(
            self.standstill < MAX_STANDSTILL,
            "the clock stands still at {:?}: {event:?}",
            self.now
        );
        self.now = self.now.max(at);
        match event {
            Event::Frame {
                to,
                nic,
                service,
                src,
                bytes,
            } => self.deliver((to, nic), service, src, &bytes),
            Event::Wake { node } => {
                if self.nodes[node].wake == Some(at) {
                    self.nodes[node].wake = None;
                    self.tick(node);
                }
            }
            Event::Disk { node, number } => {
                // A machine that has died meanwhile has left nothing there.
                if let Some(pending) = self.on_disk.remove(&(node, number)) {
                    self.disk_done(node, pending);
                }
            }
        }
        true
    }

    pub(super) fn schedule(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        let number = self.sequence;
        self.events.push(Due { at, number, event });
    }

    pub(super) fn deliver(
        &mut self,
        (to, nic): (usize, u8),
        service: bool,
        src: Mac,
        bytes: &[u8],
    ) {
        let now = self.local(to);
        let is_up = self.network.is_up(self.now);
        let node = &mut self.nodes[to];
        if !node.linked[usize::from(nic)] || !is_up {
            self.network.lost += 1;
            return;
        }
        let mut packet = None;
        if service && matches!(node.machine, Machine::Unit(_)) {
            // One by one: under which epoch a unit acts is known only of the packet that it is handed.
            packet = Header::parse_first(bytes, true).ok();
            self.io_epoch = packet.map(|packet| packet.header.epoch);
        }
        let behind = packet.and_then(|packet| packet.behind);
        let bytes = &bytes[..bytes.len() - behind.map_or(0, <[u8]>::len)];
        // What is wrong with a frame is counted by the receiver.
        let _dropped = match &mut node.machine {
            Machine::Host(host) => match (&mut host.agent, &mut host.service) {
                (Some(agent), _) if !service => agent.handle(now, src, bytes),
                (_, Some(connections)) if service => {
                    connections.handle(now, Hop { mac: src, nic }, bytes)
                }
                _ => Ok(()),
            },
            Machine::Unit(storage) => match &mut storage.unit {
                Some(unit) => {
                    let hop = Hop { mac: src, nic };
                    let named = packet.and_then(|packet| named_row(&storage.contents, &packet));
                    match named {
                        Some(row) => {
                            let mut media = PromptMedia {
                                data: &mut self.data,
                                model: &mut self.model,
                                row,
                                register: unit.register(row),
                                unit: (storage.facts.guid, node.life),
                            };
                            unit.handle_with(now, service, hop, bytes, &mut media)
                        }
                        None => unit.handle(now, service, hop, bytes),
                    }
                }
                None => Ok(()),
            },
            Machine::Fabric(services) => match &mut services.fabric {
                Some(fabric) if !service => fabric.handle(now, src, bytes),
                _ => Ok(()),
            },
        };
        self.settle(to);
        self.io_epoch = None;
        if let Some(behind) = behind {
            self.deliver((to, nic), service, src, behind);
        }
    }

    pub(super) fn tick(&mut self, id: usize) {
        let now = self.local(id);
        match &mut self.nodes[id].machine {
            Machine::Host(host) => {
                if let (Some(agent), Some(service)) = (&mut host.agent, &mut host.service) {
                    agent.tick(now);
                    service.tick(now);
                }
            }
            Machine::Unit(storage) => {
                if let Some(unit) = &mut storage.unit {
                    unit.tick(now);
                }
            }
            Machine::Fabric(services) => {
                if let Some(fabric) = &mut services.fabric {
                    fabric.tick(now);
                }
            }
        }
        self.settle(id);
    }

    /// Carries out what a machine wants after something has happened to it.
    pub(super) fn settle(&mut self, id: usize) {
        let now = self.local(id);
        let before = self.promises(id);
        if self.realism.shared {
            self.share_rows(id);
        }
        let shared = self.realism.shared;
        let pending = match &mut self.nodes[id].machine {
            Machine::Host(host) => {
                let pending = host.act(now);
                if shared {
                    // Nobody watches so many hosts.
                    host.events = Vec::new();
                }
                pending
            }
            Machine::Unit(unit) => unit.act(),
            Machine::Fabric(_) => Vec::new(),
        };
        for item in pending {
            match (&item, &self.nodes[id].machine) {
                (Pending::Commit(_, change), Machine::Host(host)) => {
                    if let Some(agent) = &host.agent {
                        self.model.check_table(agent.table(), change);
                    }
                }
                (Pending::Registers(..), Machine::Unit(unit)) => self.model.check_registers(unit),
                (Pending::Medium(_, device, op), Machine::Unit(unit)) if op.is_change() => {
                    let row = self.data.row_of(op).unwrap_or(*device);
                    let register = unit.unit.as_ref().and_then(|unit| unit.register(row));
                    self.model.check_epoch(row, self.io_epoch, register);
                }
                _ => {}
            }
            self.give_to_disk(id, item);
        }
        if let Machine::Fabric(services) = &mut self.nodes[id].machine {
            for what in services.check_tables(&self.model.removed) {
                self.model.violated(what);
            }
        }
        self.note_session(id);
        self.note_promises(id, before);
        self.note_io(id);
        self.transmit(id);
        self.rewake(id);
    }

    /// Puts rows that others have as well in the place of those that a host has just learnt.
    fn share_rows(&mut self, id: usize) {
        if let Machine::Host(host) = &mut self.nodes[id].machine
            && let Some(agent) = &mut host.agent
        {
            agent.share_rows(&mut self.known_rows);
        }
    }

    fn give_to_disk(&mut self, id: usize, pending: Pending) {
        let sync = self.disks.sync.as_nanos() as u64;
        let mut at = self.now;
        if sync > 0 {
            at = at + Duration::from_nanos(self.rng.u64(0..=sync));
        }
        if self.disks.stall > 0.0 && self.rng.f64() < self.disks.stall {
            at = at + STALL;
        }
        if !matches!(pending, Pending::Medium(..)) {
            // A file is written in order; a medium may finish later things first.
            at = at.max(self.nodes[id].disk_until);
            self.nodes[id].disk_until = at;
        }
        let number = self.sequence;
        self.on_disk.insert((id, number), pending);
        self.schedule(at, Event::Disk { node: id, number });
    }

    /// Tells the model when a host begins a session of the lease, or holds none any more.
    fn note_session(&mut self, id: usize) {
        let now = self.local(id);
        let Machine::Host(host) = &self.nodes[id].machine else {
            return;
        };
        let session = host.agent.as_ref().and_then(|a| a.lease_session(now));
        let known = self.model.sessions.of(host.guid);
        if session.map(|s| s.term) == known {
            return;
        }
        self.model.sessions.ends(host.guid);
        let (Some(session), Some(agent)) = (session, &host.agent) else {
            return;
        };
        let others = self.hosts().filter(|(other, _)| other.0 != id);
        let others = others.filter_map(|(other, host)| {
            let held = host.agent.as_ref()?.lease_session(self.local(other.0))?;
            Some((host.name.clone(), held))
        });
        let is_voter = |node: &&Node| !matches!(node.machine, Machine::Fabric(_));
        let beginning = Beginning {
            now: self.now,
            host: (host.guid, &host.name),
            session,
            voters: self.nodes.iter().filter(is_voter).count(),
            others: others.collect(),
            settings: agent.table().settings().stamp,
        };
        for what in self.model.sessions.begins(&beginning) {
            self.model.violated(what);
        }
    }

    pub(super) fn promises(&self, id: usize) -> usize {
        match &self.nodes[id].machine {
            Machine::Host(host) => host.replies.len(),
            _ => 0,
        }
    }

    /// Tells the model what was acknowledged just now.
    pub(super) fn note_promises(&mut self, id: usize, before: usize) {
        let Machine::Host(host) = &self.nodes[id].machine else {
            return;
        };
        if host.replies.len() == before {
            return;
        }
        let answered: Vec<u64> = host
            .replies
            .keys()
            .copied()
            .filter(|token| self.asked.contains_key(&(id, *token)))
            .collect();
        for token in answered {
            let asked = self.asked.remove(&(id, token));
            if let Machine::Host(host) = &self.nodes[id].machine {
                match &host.replies[&token] {
                    AdminReply::Allocated(info) => self.model.acknowledged(info, host),
                    AdminReply::Carved(info) => self.model.carved(info, host),
                    AdminReply::Moved(info) => self.model.moved(info, host),
                    AdminReply::Applied(info) => self.model.applied(info, host),
                    AdminReply::Granularity(info) if asked.is_some_and(|a| a.settles()) => {
                        let now = self.nodes[id].clock.local(self.now);
                        let agent = host.agent.as_ref();
                        let session = agent.and_then(|agent| agent.lease_session(now));
                        self.model.settled(info, host, session);
                    }
                    _ => {}
                }
            }
        }
        let units: Vec<usize> = self.units().map(|(id, _)| id.0).collect();
        for unit in units {
            self.model.check_unit_disk(&self.nodes[unit].machine);
        }
    }

    pub(super) fn transmit(&mut self, id: usize) {
        let now = self.local(id);
        // As the daemons do: what may share a frame with the packet before it does.
        let mut waiting: Option<(Hop, Shared, Vec<u8>)> = None;
        for _ in 0..MAX_BURST {
            let bytes = &mut self.scratch;
            bytes.clear();
            let node = &mut self.nodes[id];
            let sent = match &mut node.machine {
                Machine::Host(host) => match (&mut host.agent, &mut host.service) {
                    (Some(agent), Some(service)) => agent
                        .poll_transmit(now, bytes)
                        .map(|mac| (false, Outgoing::alone(Hop::any(mac))))
                        .or_else(|| Some((true, service.poll_transmit(now, bytes)?))),
                    _ => None,
                },
                Machine::Unit(storage) => storage.unit.as_mut().and_then(|unit| {
                    let sent = unit.poll_transmit_on(false, now, bytes);
                    let sent = sent.map(|mac| (false, Outgoing::alone(Hop::any(mac))));
                    sent.or_else(|| {
                        let mut tail = None;
                        let outgoing = unit.poll_service_parts(now, bytes, &mut tail)?;
                        if let Some(tail) = tail {
                            bytes.extend_from_slice(tail.bytes());
                        }
                        Some((true, outgoing))
                    })
                }),
                Machine::Fabric(services) => services
                    .fabric
                    .as_mut()
                    .and_then(|f| f.poll_transmit(now, bytes))
                    .map(|mac| (false, Outgoing::alone(Hop::any(mac)))),
            };
            let packet = sent.map(|(service, outgoing)| {
                let shared = Shared::new(self.scratch.len(), outgoing);
                (service, outgoing.hop, shared, self.scratch.clone())
            });
            if let (Some((hop, shared, frame)), Some((true, to, more, bytes))) =
                (&mut waiting, &packet)
                && hop == to
                && let Some(both) = shared.with(*more)
            {
                *shared = both;
                frame.extend_from_slice(bytes);
                continue;
            }
            if let Some((hop, _, frame)) = waiting.take() {
                self.send(id, true, hop, Rc::from(frame));
            }
            match packet {
                None => return,
                Some((true, hop, shared, bytes)) => waiting = Some((hop, shared, bytes)),
                Some((false, hop, _, bytes)) => self.send(id, false, hop, Rc::from(bytes)),
            }
        }
        panic!("machine {id} sends for ever at {now:?}");
    }

    pub(super) fn send(&mut self, from: usize, service: bool, hop: Hop, bytes: Rc<[u8]>) {
        let (dst, node) = (hop.mac, &self.nodes[from]);
        // What may leave by any NIC leaves by one that has a cable.
        let nic = match hop.nic {
            Hop::ANY => node.linked.iter().position(|linked| *linked).unwrap_or(0),
            nic => usize::from(nic),
        };
        let src = nic_of(node.mac, nic as u8);
        self.network.sent += 1;
        self.network.bytes += bytes.len() as u64;
        if self.counts_kinds
            && let Ok((header, _)) = Header::parse(&bytes, service)
        {
            *self.kinds.entry(header.kind.name()).or_default() += 1;
        }
        if let Some(capture) = &mut self.capture {
            capture.push(Seen {
                at: self.now,
                service,
                src,
                dst,
                bytes: Rc::clone(&bytes),
            });
        }
        if !self.nodes[from].linked[nic] {
            self.network.lost += 1;
            return;
        }
        if dst.is_multicast() {
            for to in (0..self.nodes.len()).filter(|to| *to != from) {
                let linked = self.nodes[to].linked.iter().position(|linked| *linked);
                self.carry(src, (to, linked.unwrap_or(0) as u8), service, &bytes);
            }
        } else if let Some(to) = place_of(dst)
            && let Some(node) = self.nodes.get(to.0)
            && usize::from(to.1) < node.linked.len()
        {
            self.carry(src, to, service, &bytes);
        }
    }

    fn carry(&mut self, src: Mac, (to, nic): (usize, u8), service: bool, bytes: &Rc<[u8]>) {
        let receiver = self.nodes[to].mac;
        if service && bytes.len() > self.network.carries {
            self.network.lost += 1;
            return;
        }
        for arrival in self.network.carry(self.now, src, receiver, bytes) {
            let bytes = arrival.damaged.map_or_else(|| Rc::clone(bytes), Rc::from);
            let event = Event::Frame {
                to,
                nic,
                service,
                src,
                bytes,
            };
            self.schedule(self.now + arrival.after, event);
        }
    }

    pub(super) fn rewake(&mut self, id: usize) {
        let deadline = match &self.nodes[id].machine {
            Machine::Host(host) => match (&host.agent, &host.service) {
                (Some(agent), Some(service)) => [agent.deadline(), service.deadline()]
                    .into_iter()
                    .flatten()
                    .min(),
                _ => None,
            },
            Machine::Unit(storage) => storage.unit.as_ref().and_then(Unit::deadline),
            Machine::Fabric(services) => services.fabric.as_ref().and_then(Fabric::deadline),
        };
        let Some(at) = deadline else { return };
        let node = &mut self.nodes[id];
        if node.wake.is_some() && node.wake_local == at {
            return;
        }
        node.wake_local = at;
        let at = node.clock.world(at).max(self.now);
        if node.wake.is_none_or(|set| at < set || set < self.now) {
            node.wake = Some(at);
            self.schedule(at, Event::Wake { node: id });
        }
    }

    pub(super) fn disk_done(&mut self, id: usize, pending: Pending) {
        let now = self.local(id);
        let spared = self.disks.spared.contains(&NodeId(id));
        if let Pending::Medium(token, device, op) = &pending {
            let failed = self.disks.medium > 0.0 && self.rng.f64() < self.disks.medium && !spared;
            // Of an operation that fails it cannot be said whether it was carried out.
            let done = !failed || self.rng.bool();
            let bytes = if done {
                self.apply(id, *device, op)
            } else {
                Vec::new()
            };
            let outcome = if failed {
                Err(DiskError::Media(5))
            } else {
                Ok(bytes)
            };
            if let Machine::Unit(storage) = &mut self.nodes[id].machine
                && let Some(unit) = &mut storage.unit
            {
                unit.disk_done(now, *token, outcome);
            }
            self.settle(id);
            return;
        }
        let failing = self.disks.failure > 0.0 && self.rng.f64() < self.disks.failure && !spared;
        let after = self.rng.u32(0..8);
        let is_vote = matches!(pending, Pending::Vote(..));
        let files = self.nodes[id].machine.files();
        let file = files.into_iter().nth(usize::from(is_vote));
        let failed = match file {
            Some(file) => {
                if failing {
                    file.fail_in(after);
                }
                let done = self.write(id, &pending);
                file.recover();
                !done
            }
            None => failing || !self.write(id, &pending),
        };
        match (&mut self.nodes[id].machine, pending) {
            (Machine::Host(host), Pending::Commit(token, _)) => {
                if let Some(agent) = &mut host.agent {
                    agent.committed(now, token, !failed);
                }
            }
            (Machine::Host(host), Pending::Vote(token, _)) => {
                if let Some(agent) = &mut host.agent {
                    agent.vote_persisted(now, token, !failed);
                }
            }
            (Machine::Unit(storage), Pending::Vote(token, _)) => {
                if let Some(unit) = &mut storage.unit {
                    unit.vote_persisted(now, token, !failed);
                }
            }
            (Machine::Unit(storage), Pending::Registers(token, ..)) => {
                if let Some(unit) = &mut storage.unit {
                    unit.registers_persisted(now, token, !failed);
                }
            }
            _ => {}
        }
        self.settle(id);
        if let Machine::Unit(unit) = &self.nodes[id].machine {
            self.model.check_registers(unit);
        }
    }

    /// Carries out an operation on a device's medium.
    pub(super) fn apply(&mut self, id: usize, device: Guid, op: &DiskOp) -> Vec<u8> {
        let Machine::Unit(storage) = &self.nodes[id].machine else {
            return Vec::new();
        };
        let row = self.data.row_of(op).unwrap_or(device);
        let standing = Standing {
            unit: (storage.facts.guid, self.nodes[id].life),
            register: storage.unit.as_ref().and_then(|unit| unit.register(row)),
            promised: self.model.promised.get(&row),
        };
        match self.data.apply(device, op, &standing) {
            Ok(bytes) => bytes,
            Err(what) => {
                self.model.violated(what);
                Vec::new()
            }
        }
    }
}
