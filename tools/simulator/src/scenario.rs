//! Made-up stories: each seed draws its own mix of faults, administrators and changes of hardware;
//! then the faults stop, and everything must be well again within bounded virtual time.

use std::time::Duration;

use rma::fabric::Policy;
use rma::rma::request::AdminRequest;
use rma::unit::{ControllerSpec, DeviceSpec};
use rma::wire::{IocNumber, IodNumber, Time};

use crate::check::unconverged;
use crate::network::Faults;
use crate::node::DiskFaults;
use crate::world::{NodeId, Seen, World};

/// How long everything may take to be well after the faults have stopped.
pub const HEALING: Duration = Duration::from_secs(60);

/// How large a world is.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Hosts, at least 1.
    pub hosts: usize,
    /// I/O units.
    pub units: usize,
    /// Devices of each unit, on two controllers.
    pub devices: usize,
    /// How long the faults last.
    pub chaos: Duration,
}

/// How a story ended.
#[derive(Debug)]
pub struct Outcome {
    /// The story's seed.
    pub seed: u64,
    /// Acknowledged allocations that were lost (I1).
    pub lost_acknowledged: u64,
    /// Broken invariants, in words.
    pub violations: Vec<String>,
    /// Why not everything became well, where it did not.
    pub unconverged: Option<String>,
    /// Allocations acknowledged as changes.
    pub acknowledged: u64,
    /// Writes acknowledged to hosts.
    pub writes: u64,
    /// Frames sent.
    pub frames: u64,
    /// How long the healing took.
    pub healing: Duration,
    /// What was done to the world, for people.
    pub log: Vec<String>,
    /// The frames, where they were wanted.
    pub capture: Vec<Seen>,
}

impl Outcome {
    /// Whether nothing went wrong.
    pub fn is_good(&self) -> bool {
        self.lost_acknowledged == 0 && self.violations.is_empty() && self.unconverged.is_none()
    }
}

struct Story {
    world: World,
    rng: fastrand::Rng,
    fabric: NodeId,
    hosts: Vec<NodeId>,
    units: Vec<NodeId>,
    shelf: Vec<(NodeId, u16, DeviceSpec)>,
    pulled: Vec<(NodeId, ControllerSpec, Vec<DeviceSpec>)>,
    log: Vec<String>,
    weights: [u32; 10],
}

/// Plays the story of a seed.
pub fn run(seed: u64, shape: Shape, capture: bool) -> Outcome {
    let mut story = Story::new(seed, shape, capture);
    let begin = story.world.now();
    while story.world.now().since(begin) < shape.chaos {
        let pause = story.rng.u64(1..=300);
        story.world.run_for(Duration::from_millis(pause));
        story.act();
    }
    Outcome {
        seed,
        ..story.end()
    }
}

impl Story {
    fn new(seed: u64, shape: Shape, capture: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x5707_7e11);
        let mut world = World::new(seed);
        world.capture = capture.then(Vec::new);
        let fabric = world.add_fabric(Policy::AutoJoin);
        let hosts = (0..shape.hosts)
            .map(|n| world.add_host(&format!("h{n}"), "A"))
            .collect();
        let units = (0..shape.units)
            .map(|n| {
                let names: Vec<Vec<String>> = (0..2)
                    .map(|c| {
                        let mine = (0..shape.devices).filter(|d| d % 2 == c);
                        mine.map(|d| format!("u{n}d{d}")).collect()
                    })
                    .collect();
                let names: Vec<Vec<&str>> = names
                    .iter()
                    .map(|list| list.iter().map(String::as_str).collect())
                    .collect();
                let (a, b) = (format!("u{n}c0"), format!("u{n}c1"));
                world.add_unit(
                    &format!("u{n}"),
                    "A",
                    &[(&a, &names[0][..]), (&b, &names[1][..])],
                )
            })
            .collect();
        world.network.faults = Faults {
            loss: up_to(&mut rng, 0.15),
            duplicate: up_to(&mut rng, 0.10),
            reorder: up_to(&mut rng, 0.20),
            corrupt: up_to(&mut rng, 0.02),
            delay: Duration::from_micros(rng.u64(5..500)),
            held: Duration::from_millis(rng.u64(0..40)),
        };
        world.disks = DiskFaults {
            sync: Duration::from_millis(rng.u64(0..25)),
            failure: up_to(&mut rng, 0.05),
            spared: Vec::new(),
        };
        // Allocate, release, crash, start, cable, part, mend, device, granularity, writes.
        let weights = [
            30,
            15,
            rng.u32(0..12),
            15,
            rng.u32(0..6),
            rng.u32(0..10),
            6,
            rng.u32(0..12),
            rng.u32(0..2),
            40,
        ];
        let mut story = Self {
            world,
            rng,
            fabric,
            hosts,
            units,
            shelf: Vec::new(),
            pulled: Vec::new(),
            log: Vec::new(),
            weights,
        };
        for node in story.everyone() {
            if !story.world.is_running(node) && story.rng.u8(0..4) > 0 {
                story.world.start(node);
            }
        }
        story
    }

    fn everyone(&self) -> Vec<NodeId> {
        let mut all = vec![self.fabric];
        all.extend(&self.hosts);
        all.extend(&self.units);
        all
    }

    fn note(&mut self, what: impl std::fmt::Display) {
        let at = self.world.now().since(Time::ZERO);
        self.log.push(format!("{:9.3} s  {what}", at.as_secs_f64()));
    }

    fn any(&mut self, nodes: &[NodeId]) -> Option<NodeId> {
        self.rng.choice(nodes).copied()
    }

    fn act(&mut self) {
        let sum: u32 = self.weights.iter().sum();
        let mut at = self.rng.u32(0..sum);
        let mut what = 0;
        while at >= self.weights[what] {
            at -= self.weights[what];
            what += 1;
        }
        match what {
            0 => self.allocate(),
            1 => self.release(),
            2 => self.crash(),
            3 => self.start(),
            4 => self.cable(),
            5 => self.part(),
            6 => {
                self.world.network.mend();
                self.note("all ways are mended");
            }
            7 => self.device(),
            8 => self.granularity(),
            _ => self.writes(),
        }
    }

    fn running_host(&mut self) -> Option<NodeId> {
        let running: Vec<NodeId> = self
            .hosts
            .iter()
            .copied()
            .filter(|id| self.world.is_running(*id))
            .collect();
        self.any(&running)
    }

    fn target(&mut self) -> Option<String> {
        let unit = self.any(&self.units.clone())?;
        let contents = &self.world.unit(unit).contents;
        let mut names: Vec<String> = contents.devices.values().map(|d| d.name.clone()).collect();
        names.extend(contents.controllers.values().map(|c| c.name.clone()));
        // The unit itself as often as any of its controllers.
        names.push(format!("u{}", self.units.iter().position(|u| *u == unit)?));
        self.rng.choice(names)
    }

    fn allocate(&mut self) {
        let (Some(host), Some(mut target)) = (self.running_host(), self.target()) else {
            return;
        };
        let mut count = self.rng.usize(1..=self.hosts.len().min(3));
        if self.rng.u8(0..3) == 0 {
            // Opens a unit or controller to everybody, so that what is below can be allocated.
            target = self.opener().unwrap_or(target);
            count = self.hosts.len().min(16);
        }
        let mut hosts: Vec<String> = (0..self.hosts.len()).map(|n| format!("h{n}")).collect();
        self.rng.shuffle(&mut hosts);
        hosts.truncate(count);
        let shared = self.rng.bool();
        let recursive = self.rng.bool();
        self.note(format!(
            "{} allocates {target} to {hosts:?}",
            self.name(host)
        ));
        self.world.ask(
            host,
            AdminRequest::Allocate {
                target,
                hosts,
                shared,
                recursive,
            },
        );
    }

    fn opener(&mut self) -> Option<String> {
        let n = self.rng.usize(0..self.units.len().max(1));
        let contents = &self.world.unit(*self.units.get(n)?).contents;
        let mut names = vec![format!("u{n}"), format!("u{n}")];
        names.extend(contents.controllers.values().map(|c| c.name.clone()));
        self.rng.choice(names)
    }

    fn release(&mut self) {
        let (Some(host), Some(target)) = (self.running_host(), self.target()) else {
            return;
        };
        let recursive = self.rng.bool();
        self.note(format!("{} releases {target}", self.name(host)));
        self.world
            .ask(host, AdminRequest::Release { target, recursive });
    }

    fn name(&self, id: NodeId) -> String {
        if id == self.fabric {
            return "fabric services".to_owned();
        }
        let place = |nodes: &[NodeId]| nodes.iter().position(|n| *n == id);
        match (place(&self.hosts), place(&self.units)) {
            (Some(n), _) => format!("h{n}"),
            (_, Some(n)) => format!("u{n}"),
            _ => format!("{id:?}"),
        }
    }

    fn crash(&mut self) {
        let running: Vec<NodeId> = self
            .everyone()
            .into_iter()
            .filter(|id| self.world.is_running(*id))
            .collect();
        if let Some(node) = self.any(&running) {
            self.note(format!("{} crashes", self.name(node)));
            self.world.crash(node);
        }
    }

    fn start(&mut self) {
        let down: Vec<NodeId> = self
            .everyone()
            .into_iter()
            .filter(|id| !self.world.is_running(*id))
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
            self.note(format!("the cable of {} is {what}", self.name(node)));
            self.world.link(node, linked);
        }
    }

    fn part(&mut self) {
        let everyone = self.everyone();
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

    /// A burst of writes at several hosts.
    fn writes(&mut self) {
        for _ in 0..self.rng.usize(1..20) {
            if let Some(host) = self.running_host() {
                self.world.write_block(host);
            }
        }
    }

    fn granularity(&mut self) {
        if let Some(host) = self.running_host() {
            let names = ["unit", "controller", "device", "device"];
            let granularity = names[self.rng.usize(0..names.len())].to_owned();
            self.note(format!("granularity {granularity}"));
            self.world
                .ask(host, AdminRequest::GranularitySet { granularity });
        }
    }

    /// The faults stop; everything must become well.
    fn end(mut self) -> Outcome {
        self.note("the faults stop");
        self.world.network.faults = Faults::NONE;
        self.world.network.mend();
        self.world.disks = DiskFaults::NONE;
        for node in self.everyone() {
            self.world.link(node, true);
        }
        self.world.start_all();
        let begin = self.world.now();
        let well = |world: &World| unconverged(world).is_none();
        // Looking costs more than living.
        while self.world.now().since(begin) < HEALING && !well(&self.world) {
            self.world.run_for(Duration::from_millis(200));
        }
        let healing = self.world.now().since(begin);
        self.world.run_for(Duration::from_secs(3));
        self.world.check_media();
        let unconverged = unconverged(&self.world);
        let model = std::mem::take(&mut self.world.model);
        Outcome {
            seed: 0,
            lost_acknowledged: model.lost_acknowledged,
            violations: model.violations,
            unconverged,
            acknowledged: model.acknowledged,
            writes: self.world.data.acknowledged_count,
            frames: self.world.network.sent,
            healing,
            log: self.log,
            capture: self.world.capture.take().unwrap_or_default(),
        }
    }
}

fn up_to(rng: &mut fastrand::Rng, most: f64) -> f64 {
    if rng.u8(0..3) == 0 {
        0.0
    } else {
        rng.f64() * most
    }
}
