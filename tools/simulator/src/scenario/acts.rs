//! What happens in a story: what administrators, hosts, the weather and people with screwdrivers do.

use std::time::Duration;

use rma::wire::{IocNumber, IodNumber};

use super::Story;
use super::mix::Act;
use crate::data::Ask;
use crate::world::NodeId;

/// The longest that a machine sleeps: years.
const LONGEST_SLEEP_S: u64 = 5 * 365 * 86_400;

impl Story {
    pub(super) fn act(&mut self) {
        match self.mix.act(&mut self.rng) {
            Act::Allocate => self.allocate(),
            Act::Contend => self.contend(),
            Act::Release => self.release(),
            Act::Granularity => self.granularity(),
            Act::Io => self.io(),
            Act::PowerOff => self.stop(true),
            Act::Kill => self.stop(false),
            Act::Start => self.start(),
            Act::Cable => self.cable(),
            Act::Narrow => self.narrow(),
            Act::Wear => self.wear(),
            Act::Part => self.part(),
            Act::Mend => {
                self.world.network.mend();
                self.note("all ways are mended");
            }
            Act::Switch => self.switch(),
            Act::Device => self.device(),
            Act::Alter => self.alter(),
            Act::Sleep => self.sleep(),
            Act::Garbage => self.garbage(),
            Act::Trespass => self.trespass(),
            Act::Carve => self.carve(),
            Act::Uncarve => self.uncarve(),
            Act::Apply => self.apply(),
            Act::Acquire => self.acquire(),
            Act::HandBack => self.hand_back(),
            Act::CutHolder => self.cut_holder(),
            Act::Forget => self.forget(),
            Act::LoseVote => self.lose_vote(),
            Act::LoseRegisters => self.lose_registers(),
            Act::Restore => self.restore(),
            Act::RestoreOld => self.restore_old(),
            Act::Retire => self.retire(),
        }
    }

    /// A burst of I/O at several hosts.
    fn io(&mut self) {
        for _ in 0..self.rng.usize(1..20) {
            let ask = match self.rng.u8(0..10) {
                0..=4 => Ask::Write { fua: false },
                5..=6 => Ask::Write { fua: true },
                7 => Ask::Flush,
                _ => Ask::Read,
            };
            if let Some(host) = self.running_host() {
                self.world.submit(host, ask);
            }
        }
    }

    fn stop(&mut self, power: bool) {
        let running: Vec<NodeId> = self
            .everyone()
            .into_iter()
            .filter(|id| self.world.is_running(*id))
            .collect();
        let Some(node) = self.any(&running) else {
            return;
        };
        let how = if power {
            "loses its power"
        } else {
            "is killed"
        };
        self.note(format!("{} {how}", self.name(node)));
        if power {
            self.world.crash(node);
        } else {
            self.world.kill(node);
        }
    }

    fn start(&mut self) {
        let down: Vec<NodeId> = self
            .everyone()
            .into_iter()
            .filter(|id| !self.world.is_running(*id) && !self.away.contains(id))
            .collect();
        if let Some(node) = self.any(&down) {
            self.note(format!("{} starts", self.name(node)));
            self.world.start(node);
        }
    }

    fn cable(&mut self) {
        let everyone = self.everyone();
        if let Some(node) = self.any(&everyone) {
            let linked = self.rng.bool();
            let what = if linked { "plugged in" } else { "pulled" };
            let nic = self.rng.usize(0..self.world.nics(node));
            let name = self.name(node);
            self.note(format!("the cable of {name}, NIC {nic}, is {what}"));
            self.world.link_nic(node, nic, linked);
        }
    }

    /// Whoever holds the lease can no longer be heard.
    fn cut_holder(&mut self) {
        let sessions = &self.world.model.sessions;
        let holds = |id: &&NodeId| sessions.of(self.world.host(**id).guid()).is_some();
        let holders: Vec<NodeId> = self.hosts.iter().filter(holds).copied().collect();
        if let Some(host) = self.any(&holders) {
            self.note(format!(
                "the cable of {}, the holder, is pulled",
                self.name(host)
            ));
            self.world.link(host, false);
        }
    }

    /// Somebody has put a switch in between that knows no long frames, or has taken it out again.
    fn narrow(&mut self) {
        let carries = [usize::MAX, 1500, 700][self.rng.usize(0..3)];
        self.note(format!("service frames of up to {carries} bytes pass"));
        self.world.network.carries = carries;
    }

    fn wear(&mut self) {
        let everyone = self.everyone();
        if let Some(node) = self.any(&everyone) {
            let loss = self.rng.f64() * 0.6;
            let name = self.name(node);
            self.note(format!("the cable of {name} loses {:.0} %", loss * 100.0));
            let mac = self.world.mac(node);
            self.world.network.wear(mac, loss);
        }
    }

    fn part(&mut self) {
        let everyone = self.everyone();
        if self.rng.u8(0..4) == 0 {
            // In two halves, or so that only one hears the other.
            let mut sides = everyone.clone();
            self.rng.shuffle(&mut sides);
            let at = self.rng.usize(0..=sides.len());
            let both = self.rng.bool();
            self.note(format!("the wire falls apart, both ways: {both}"));
            for a in &sides[..at] {
                for b in &sides[at..] {
                    let (a, b) = (self.world.mac(*a), self.world.mac(*b));
                    self.world.network.cut(a, b);
                    if both {
                        self.world.network.cut(b, a);
                    }
                }
            }
            return;
        }
        if let (Some(a), Some(b)) = (self.any(&everyone), self.any(&everyone)) {
            if self.rng.bool() {
                self.note(format!("{} and {} are parted", self.name(a), self.name(b)));
                self.world.part(a, b);
            } else {
                self.note(format!("{} no longer hears {}", self.name(b), self.name(a)));
                let (a, b) = (self.world.mac(a), self.world.mac(b));
                self.world.network.cut(a, b);
            }
        }
    }

    fn switch(&mut self) {
        let time = Duration::from_millis(self.rng.u64(10..10_000));
        self.note(format!("the switch restarts, for {time:?}"));
        let until = self.world.now() + time;
        self.world.network.restart(until);
    }

    /// A machine is asleep for up to years; its clock says so when it wakes.
    fn sleep(&mut self) {
        let everyone = self.everyone();
        if let Some(node) = self.any(&everyone) {
            let longest = [10, 3600, LONGEST_SLEEP_S][self.rng.usize(0..3)];
            let time = Duration::from_secs(self.rng.u64(1..=longest));
            self.note(format!("{} was asleep for {time:?}", self.name(node)));
            self.world.sleep(node, time);
        }
    }

    /// Frames of nobody's making.
    fn garbage(&mut self) {
        let everyone = self.everyone();
        let (Some(to), Some(from)) = (self.any(&everyone), self.any(&everyone)) else {
            return;
        };
        for _ in 0..self.rng.usize(1..30) {
            let len = self.rng.usize(0..200);
            let mut frame: Vec<u8> = (0..len).map(|_| self.rng.u8(..)).collect();
            if let (Some(first), true) = (frame.first_mut(), self.rng.bool()) {
                *first = 1;
            }
            let src = self.world.mac(from);
            let service = self.rng.bool();
            self.world.inject(to, service, src, frame);
        }
    }

    fn down(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        let down = |id: &NodeId| !self.world.is_running(*id);
        nodes.iter().copied().filter(down).collect()
    }

    /// A machine loses what it has promised as a voter.
    fn lose_vote(&mut self) {
        let voters = [&self.hosts[..], &self.units[..]].concat();
        if let Some(node) = self.any(&self.down(&voters)) {
            self.note(format!("{} loses its vote", self.name(node)));
            self.world.forget_vote(node);
        }
    }

    /// A unit gets a new disk for its registers.
    fn lose_registers(&mut self) {
        if let Some(unit) = self.any(&self.down(&self.units)) {
            self.note(format!("{} loses its registers", self.name(unit)));
            self.world.forget_registers(unit);
        }
    }

    /// A host that is away is no member any more, until it comes back with its old table.
    fn retire(&mut self) {
        let (away, fabric) = (self.down(&self.hosts), self.fabric);
        if let Some(host) = self.any(&away) {
            self.note(format!("{} is no member any more", self.name(host)));
            let guid = self.world.host(host).guid();
            // It may never have come so far as to be one.
            let removed = self.world.with_fabric(fabric, |f, now| f.remove(now, guid));
            self.world.model.retired += usize::from(removed.is_some_and(|r| r.is_ok()));
        }
    }

    /// A host writes to what is another's.
    fn trespass(&mut self) {
        if let (Some(host), Some(owner)) = (self.running_host(), self.running_host()) {
            self.note(format!("{} trespasses", self.name(host)));
            self.world.trespass(host, owner);
        }
    }

    /// A device gets another size or name.
    fn alter(&mut self) {
        let Some(unit) = self.any(&self.units.clone()) else {
            return;
        };
        let contents = &self.world.unit(unit).contents;
        let specs: Vec<_> = contents
            .devices
            .iter()
            .map(|((ioc, _), spec)| (*ioc, spec.clone()))
            .collect();
        let Some((ioc, mut spec)) = self.rng.choice(specs) else {
            return;
        };
        spec.info.size_bytes = 512 * self.rng.u64(8..4096);
        self.note(format!("{} is altered", spec.name));
        let also = spec.clone();
        self.world.alter_unit(
            unit,
            |contents| {
                contents.devices.insert((ioc, spec.iod), spec);
            },
            |unit, now| {
                unit.alter_device(now, ioc, also)
                    .expect("the device is there");
            },
        );
    }

    fn device(&mut self) {
        if self.rng.u8(0..3) == 0 {
            self.controller();
            return;
        }
        if !self.shelf.is_empty() && self.rng.bool() {
            let at = self.rng.usize(0..self.shelf.len());
            let (unit, ioc, spec) = self.shelf.swap_remove(at);
            let contents = &self.world.unit(unit).contents;
            if !contents.controllers.contains_key(&IocNumber(ioc)) {
                self.shelf.push((unit, ioc, spec));
                return;
            }
            self.note(format!("{} comes back", spec.name));
            self.world.add_device(unit, ioc, spec);
            return;
        }
        let Some(unit) = self.any(&self.units.clone()) else {
            return;
        };
        let places: Vec<(IocNumber, IodNumber)> = self
            .world
            .unit(unit)
            .contents
            .devices
            .keys()
            .copied()
            .collect();
        let Some((ioc, iod)) = self.rng.choice(places) else {
            return;
        };
        if let Some(spec) = self.world.remove_device(unit, ioc.0, iod.0) {
            self.note(format!("{} is taken out", spec.name));
            self.shelf.push((unit, ioc.0, spec));
        }
    }

    fn controller(&mut self) {
        if let Some((unit, spec, mut devices)) = self.pulled.pop() {
            self.note(format!("{} comes back", spec.name));
            if self.rng.bool()
                && let Some(lost) = devices.pop()
            {
                self.note(format!("without {}", lost.name));
                self.shelf.push((unit, spec.ioc.0, lost));
            }
            self.world.add_controller(unit, spec, devices);
            return;
        }
        let Some(unit) = self.any(&self.units.clone()) else {
            return;
        };
        let ioc = self.rng.u16(1..=2);
        if let Some((spec, devices)) = self.world.remove_controller(unit, ioc) {
            self.note(format!("{} is taken out", spec.name));
            self.pulled.push((unit, spec, devices));
        }
    }
}
