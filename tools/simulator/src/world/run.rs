//! How the world goes on: what happens next, and what comes of it.

use super::{
    AdminReply, DiskOp, Duration, Event, Fabric, Guid, Header, MAX_BURST, MAX_STANDSTILL, Mac,
    Machine, NodeId, Pending, Rc, Seen, Time, Unit, World,
};

impl World {
    /// Does the next thing, if it is due by `end`.
    pub(super) fn step(&mut self, end: Time) -> bool {
        let due = self.events.first_key_value().map(|(key, _)| *key);
        let Some(key) = due.filter(|(at, _)| *at <= end) else {
            return false;
        };
        let Some(event) = self.events.remove(&key) else {
            return false;
        };
        if key.0 > self.now {
            self.standstill = 0;
        }
        self.standstill += 1;
        assert!(
            self.standstill < MAX_STANDSTILL,
            "the clock stands still at {:?}: {event:?}",
            self.now
        );
        self.now = self.now.max(key.0);
        match event {
            Event::Frame {
                to,
                service,
                src,
                bytes,
            } => self.deliver(to, service, src, &bytes),
            Event::Wake { node } => {
                if self.nodes[node].wake == Some(key.0) {
                    self.nodes[node].wake = None;
                    self.tick(node);
                }
            }
            Event::Disk {
                node,
                life,
                pending,
            } => {
                if self.nodes[node].life == life {
                    self.disk_done(node, pending);
                }
            }
        }
        true
    }

    pub(super) fn schedule(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    pub(super) fn deliver(&mut self, to: usize, service: bool, src: Mac, bytes: &[u8]) {
        let now = self.now;
        let node = &mut self.nodes[to];
        if !node.linked {
            self.network.lost += 1;
            return;
        }
        // What is wrong with a frame is counted by the receiver.
        let _dropped = match &mut node.machine {
            Machine::Host(host) => match (&mut host.agent, &mut host.service) {
                (Some(agent), _) if !service => agent.handle(now, src, bytes),
                (_, Some(connections)) if service => connections.handle(now, src, bytes),
                _ => Ok(()),
            },
            Machine::Unit(storage) => match &mut storage.unit {
                Some(unit) => unit.handle(now, service, src, bytes),
                None => Ok(()),
            },
            Machine::Fabric(services) => match &mut services.fabric {
                Some(fabric) if !service => fabric.handle(now, src, bytes),
                _ => Ok(()),
            },
        };
        self.settle(to);
    }

    pub(super) fn tick(&mut self, id: usize) {
        let now = self.now;
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
        let now = self.now;
        let before = self.promises(id);
        let pending = match &mut self.nodes[id].machine {
            Machine::Host(host) => host.act(now),
            Machine::Unit(unit) => unit.act(),
            Machine::Fabric(_) => Vec::new(),
        };
        for item in pending {
            match (&item, &self.nodes[id].machine) {
                (Pending::Commit(_, table), _) => self.model.check_table(&table.table()),
                (Pending::Registers(..), Machine::Unit(unit)) => self.model.check_registers(unit),
                _ => {}
            }
            let life = self.nodes[id].life;
            let sync = self.disks.sync.as_nanos() as u64;
            let mut at =
                now + Duration::from_nanos(if sync > 0 { self.rng.u64(0..=sync) } else { 0 });
            if !matches!(item, Pending::Medium(..)) {
                // A file is written in order; a medium may finish later things first.
                at = at.max(self.nodes[id].disk_until);
                self.nodes[id].disk_until = at;
            }
            let event = Event::Disk {
                node: id,
                life,
                pending: item,
            };
            self.schedule(at, event);
        }
        self.note_promises(id, before);
        self.note_writes(id);
        self.transmit(id);
        self.rewake(id);
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
            .filter(|token| self.asked.contains(&(id, *token)))
            .collect();
        for token in answered {
            self.asked.remove(&(id, token));
            if let Machine::Host(host) = &self.nodes[id].machine {
                match &host.replies[&token] {
                    AdminReply::Allocated(info) => self.model.acknowledged(info, host),
                    AdminReply::Carved(info) => self.model.carved(info, host),
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
        let now = self.now;
        for _ in 0..MAX_BURST {
            let mut bytes = Vec::new();
            let node = &mut self.nodes[id];
            let sent = match &mut node.machine {
                Machine::Host(host) => match (&mut host.agent, &mut host.service) {
                    (Some(agent), Some(service)) => agent
                        .poll_transmit(now, &mut bytes)
                        .map(|mac| (false, mac))
                        .or_else(|| Some((true, service.poll_transmit(now, &mut bytes)?))),
                    _ => None,
                },
                Machine::Unit(storage) => storage
                    .unit
                    .as_mut()
                    .and_then(|unit| unit.poll_transmit(now, &mut bytes)),
                Machine::Fabric(services) => services
                    .fabric
                    .as_mut()
                    .and_then(|f| Some((false, f.poll_transmit(now, &mut bytes)?))),
            };
            let Some((service, dst)) = sent else { return };
            self.send(id, service, dst, bytes);
        }
        panic!("machine {id} sends for ever at {now:?}");
    }

    pub(super) fn send(&mut self, from: usize, service: bool, dst: Mac, bytes: Vec<u8>) {
        let src = self.nodes[from].mac;
        self.network.sent += 1;
        if let Ok((header, _)) = Header::parse(&bytes, service) {
            *self.kinds.entry(header.kind.name()).or_default() += 1;
        }
        let bytes = Rc::new(bytes);
        if let Some(capture) = &mut self.capture {
            capture.push(Seen {
                at: self.now,
                service,
                src,
                dst,
                bytes: Rc::clone(&bytes),
            });
        }
        if !self.nodes[from].linked {
            self.network.lost += 1;
            return;
        }
        let receivers: Vec<usize> = if dst.is_multicast() {
            (0..self.nodes.len()).filter(|id| *id != from).collect()
        } else {
            let found = self.nodes.iter().position(|node| node.mac == dst);
            found.into_iter().collect()
        };
        for to in receivers {
            let receiver = self.nodes[to].mac;
            for (delay, copy) in self.network.carry(src, receiver, &bytes) {
                let bytes = if copy == *bytes {
                    Rc::clone(&bytes)
                } else {
                    Rc::new(copy)
                };
                let event = Event::Frame {
                    to,
                    service,
                    src,
                    bytes,
                };
                self.schedule(self.now + delay, event);
            }
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
        let at = at.max(self.now);
        let node = &mut self.nodes[id];
        if node.wake.is_none_or(|set| at < set || set < self.now) {
            node.wake = Some(at);
            self.schedule(at, Event::Wake { node: id });
        }
    }

    pub(super) fn disk_done(&mut self, id: usize, pending: Pending) {
        let failed = self.disks.failure > 0.0
            && self.rng.f64() < self.disks.failure
            && !self.disks.spared.contains(&NodeId(id));
        if !failed {
            self.write(id, &pending);
        }
        let now = self.now;
        if let Pending::Medium(token, device, op) = &pending {
            let bytes = self.apply(id, *device, op);
            if let Machine::Unit(storage) = &mut self.nodes[id].machine
                && let Some(unit) = &mut storage.unit
            {
                unit.disk_done(now, *token, Ok(bytes));
            }
            self.settle(id);
            return;
        }
        match (&mut self.nodes[id].machine, pending) {
            (Machine::Host(host), Pending::Commit(token, _)) => {
                if let Some(agent) = &mut host.agent {
                    agent.committed(now, token, !failed);
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
        let register = storage
            .unit
            .as_ref()
            .and_then(|unit| unit.register(device))
            .map(|r| r.owned.epoch);
        let promised = self.model.promised.get(&device);
        match self.data.apply(device, op, register, promised) {
            Ok(bytes) => bytes,
            Err(what) => {
                self.model.violated(what);
                Vec::new()
            }
        }
    }
}
