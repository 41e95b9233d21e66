//! How machines start, sleep and die.

use super::{Clock, Duration, Machine, NodeId, Pending, SESSION_MEMORY, Time, World, devices_of};

impl World {
    /// A machine was asleep for so long: its clock leaps, and nobody else notices.
    pub fn sleep(&mut self, id: NodeId, time: Duration) {
        self.nodes[id.0].clock.leap(time);
        self.nodes[id.0].wake_local = Time::ZERO;
        self.model.sessions.uncertain(self.now);
        if let Machine::Unit(unit) = &self.nodes[id.0].machine
            && time >= SESSION_MEMORY
        {
            self.data.sessions_forgotten(unit.facts.guid);
        }
        self.rewake(id.0);
    }

    /// Starts a machine from what is on its disk.
    pub fn start(&mut self, id: NodeId) {
        let seed = self.rng.u64(..);
        if self.realism.clocks && self.nodes[id.0].rebooted {
            let clock = Clock::random(self.now, &mut self.rng);
            self.nodes[id.0].clock = clock;
            self.nodes[id.0].rebooted = false;
        }
        // What is called the date is whatever the battery says.
        let date_s = self.rng.u64(0..1 << 36);
        let now = self.local(id.0);
        match &mut self.nodes[id.0].machine {
            Machine::Host(host) => {
                host.date_s = date_s;
                host.boot(seed);
            }
            Machine::Unit(unit) => {
                unit.date_s = date_s;
                unit.boot(now, seed);
            }
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

    /// Takes a machine's power away. Each write that its disk has not finished is there or not, and
    /// so is what its media had not flushed.
    pub fn crash(&mut self, id: NodeId) {
        self.stop(id, true);
    }

    /// Ends a machine's program, at any moment of what it does.
    pub fn kill(&mut self, id: NodeId) {
        self.stop(id, false);
    }

    fn stop(&mut self, id: NodeId, power: bool) {
        let of_it = (id.0, 0)..=(id.0, u64::MAX);
        let unfinished: Vec<(usize, u64)> =
            self.on_disk.range(of_it).map(|(key, _)| *key).collect();
        let files = self.nodes[id.0].machine.files();
        let real = !files.is_empty();
        for file in files {
            file.die_in(self.rng.u32(0..16));
        }
        let mut torn = false;
        for key in unfinished {
            let Some(pending) = self.on_disk.remove(&key) else {
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
            if real || !torn {
                self.write(id.0, &pending);
            }
        }
        let rng = &mut self.rng;
        let node = &mut self.nodes[id.0];
        node.life += 1;
        node.wake = None;
        node.disk_until = self.now;
        node.rebooted |= power;
        let mut broken = Vec::new();
        match &mut node.machine {
            Machine::Host(host) => {
                host.agent = None;
                host.service = None;
                host.ended.clear();
                if let Some(disk) = &mut host.disk {
                    broken.extend(disk.crash(power, &mut host.stored).err());
                }
                if let Some(disk) = &mut host.vote_disk {
                    broken.extend(disk.crash(power, &mut host.vote).err());
                }
            }
            Machine::Unit(unit) => {
                unit.unit = None;
                if power {
                    broken.extend(self.data.power_loss(&devices_of(unit), rng));
                }
                if let Some(disk) = &mut unit.disk {
                    broken.extend(disk.crash(power, &mut unit.stored).err());
                }
                if let Some(disk) = &mut unit.vote_disk {
                    broken.extend(disk.crash(power, &mut unit.vote).err());
                }
            }
            Machine::Fabric(services) => services.crash(),
        }
        for what in broken {
            self.model.violated(what);
        }
        self.model.sessions.ends(self.nodes[id.0].machine.guid());
        self.model.check_vote(&self.nodes[id.0].machine);
        self.model.check_unit_disk(&self.nodes[id.0].machine);
    }
}
