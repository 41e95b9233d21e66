//! Made-up stories: each seed draws its own mix of faults, administrators and changes of hardware;
//! then the faults stop, and everything must be well again within bounded virtual time.

mod acts;
mod admin;
mod mix;

use std::time::Duration;

use rma::fabric::Policy;
use rma::rma::request::AdminRequest;
use rma::unit::{ControllerSpec, DeviceSpec};
use rma::wire::{TableStamp, Time};

use crate::central::Use;
use crate::converged::{unconverged, uneven_stamps};
use crate::network::Faults;
use crate::node::DiskFaults;
use crate::world::{NodeId, Realism, Seen, World};
use mix::Mix;

/// How long everything may take to be well after the faults have stopped.
pub const HEALING: Duration = Duration::from_secs(60);

/// How long an administrator waits for all tables to be in step before lost registers are restored from
/// the next best one.
const INSIST_AFTER: Duration = Duration::from_secs(20);

/// For how long everything must stay as it is when it is well.
const QUIET: Duration = Duration::from_secs(6);

/// The longest pause between two things that happen in a large cluster.
const LONGEST_PAUSE_MS: u64 = 500;

/// How large a world is.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Hosts, at least 1.
    pub hosts: usize,
    /// I/O units.
    pub units: usize,
    /// Devices in all, on two controllers of each unit.
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
    /// Sessions of the allocation lease.
    pub sessions: u64,
    /// Settings acknowledged.
    pub settled: u64,
    /// Writes acknowledged to hosts.
    pub writes: u64,
    /// Reads and flushes acknowledged to hosts.
    pub other_io: u64,
    /// Frames sent.
    pub frames: u64,
    /// How often lost registers had to be restored by force before everything was well.
    pub insisted: usize,
    /// How long the healing took.
    pub healing: Duration,
    /// Virtual time in all.
    pub lasted: Duration,
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
    /// Hosts at which administrators work.
    administrators: Vec<NodeId>,
    /// Hosts that are away until the faults stop.
    away: Vec<NodeId>,
    /// Names of extents that somebody may have made.
    extents: Vec<String>,
    log: Vec<String>,
    /// How often lost registers had to be restored by force, in the end.
    insisted: usize,
    mix: Mix,
}

/// Plays the story of a seed.
pub fn run(seed: u64, shape: Shape, capture: bool) -> Outcome {
    let mut story = Story::new(seed, shape, capture);
    story.begin();
    let begin = story.world.now();
    while story.world.now().since(begin) < shape.chaos && story.world.model.violations.is_empty() {
        let pause = story.rng.u64(1..=story.pause_ms());
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
        let realism = Realism {
            files: true,
            clocks: true,
            shared: false,
        };
        let mut world = World::with(seed, realism);
        world.counts_kinds = false;
        world.capture = capture.then(Vec::new);
        let fabric = world.add_fabric(Policy::AutoJoin);
        let hosts: Vec<NodeId> = (0..shape.hosts)
            .map(|n| world.add_host(&format!("h{n}"), "A"))
            .collect();
        let units: Vec<NodeId> = (0..shape.units)
            .map(|n| {
                let more = usize::from(n < shape.devices % shape.units);
                add_unit(&mut world, n, shape.devices / shape.units + more)
            })
            .collect();
        let mix = Mix::draw(&mut rng);
        if mix.two_nics {
            for id in hosts.iter().chain(&units) {
                world.add_nic(*id);
            }
        }
        let mut central = Use::draw(seed);
        world.fabric_mut(fabric).fate = central.fate;
        for host in &hosts {
            let host = world.host_mut(*host);
            host.crt_source = central.next();
            host.auto_restore = mix.auto_restore;
            if let Some(purge_after) = mix.purge_after {
                host.intervals.purge_after = purge_after;
            }
        }
        let mut administrators = hosts.clone();
        rng.shuffle(&mut administrators);
        administrators.truncate(mix.administrators);
        Self {
            world,
            rng,
            fabric,
            hosts,
            units,
            shelf: Vec::new(),
            pulled: Vec::new(),
            administrators,
            away: Vec::new(),
            extents: Vec::new(),
            log: Vec::new(),
            insisted: 0,
            mix,
        }
    }

    /// Starts what there is; mostly in peace, so that there is something to break.
    fn begin(&mut self) {
        let peace = self.rng.u8(0..4) > 0;
        if !peace {
            self.world.network.faults = self.mix.network;
            self.world.disks = self.mix.disks.clone();
        }
        for node in self.everyone() {
            if !self.world.is_running(node) && (peace || self.rng.u8(0..4) > 0) {
                self.world.start(node);
            }
        }
        if peace {
            let well = |world: &World| unconverged(world).is_none();
            self.wait_until(Duration::from_secs(20), well);
            self.open_up();
            self.note("the faults begin");
        }
        if self.mix.away && self.hosts.len() > 2 {
            for _ in 0..self.rng.usize(1..=self.hosts.len() / 3) {
                let Some(host) = self.any(&self.hosts.clone()) else {
                    continue;
                };
                if self.world.is_running(host) {
                    self.note(format!("{} goes away", self.name(host)));
                    self.world.crash(host);
                    self.away.push(host);
                }
            }
        }
        self.world.network.faults = self.mix.network;
        self.world.disks = self.mix.disks.clone();
    }

    /// Looks now and then: looking costs more than living.
    fn wait_until(&mut self, patience: Duration, is_so: impl Fn(&World) -> bool) -> Duration {
        let begin = self.world.now();
        while self.world.now().since(begin) < patience && !is_so(&self.world) {
            self.world.run_for(Duration::from_millis(200));
        }
        self.world.now().since(begin)
    }

    /// Units and controllers belong to some hosts, so that devices can; some do.
    fn open_up(&mut self) {
        let hosts: Vec<String> = (0..self.hosts.len().min(8))
            .map(|n| format!("h{n}"))
            .collect();
        for n in 0..self.units.len() {
            let Some(host) = self.administrator() else {
                return;
            };
            let controllers = [format!("u{n}c0"), format!("u{n}c1")];
            let unit = [format!("u{n}")];
            for target in unit.iter().chain(&controllers) {
                self.world.ask(
                    host,
                    AdminRequest::Allocate {
                        target: target.clone(),
                        hosts: hosts.clone(),
                        shared: true,
                        recursive: false,
                    },
                );
                self.world.run_for(Duration::from_millis(100));
            }
            if self.mix.extents {
                let granularity = "extent".to_owned();
                self.world
                    .ask(host, AdminRequest::GranularitySet { granularity });
            }
            for _ in 0..4 {
                self.allocate();
            }
        }
        self.world.run_for(Duration::from_millis(500));
    }

    /// The longest pause between two things that happen. A large cluster takes longer for each: at
    /// the pace of a small one nothing in it would come to an end.
    fn pause_ms(&self) -> u64 {
        let slower = (self.hosts.len() / 8).max(1) as u64;
        let pause = self.mix.pause_ms;
        (pause * slower).min(LONGEST_PAUSE_MS.max(pause))
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

    fn running_host(&mut self) -> Option<NodeId> {
        let running = self.running(&self.hosts);
        self.any(&running)
    }

    /// A host at which an administrator works; others take over where all of those are down.
    fn administrator(&mut self) -> Option<NodeId> {
        let running = self.running(&self.administrators);
        self.any(&running).or_else(|| self.running_host())
    }

    fn running(&self, hosts: &[NodeId]) -> Vec<NodeId> {
        let running = |id: &NodeId| self.world.is_running(*id);
        hosts.iter().copied().filter(running).collect()
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

    /// The faults stop; everything must become well, and stay so.
    fn end(mut self) -> Outcome {
        self.note("the faults stop");
        self.world.network.faults = Faults::NONE;
        self.world.network.mend();
        self.world.disks = DiskFaults::NONE;
        for node in self.everyone() {
            self.world.link(node, true);
        }
        self.world.start_all();
        let mut healing = Duration::ZERO;
        let mut why = None;
        if self.world.model.violations.is_empty() {
            (healing, why) = self.come_to_rest();
            self.world.check_media();
        }
        let model = std::mem::take(&mut self.world.model);
        Outcome {
            seed: 0,
            lost_acknowledged: model.lost_acknowledged,
            violations: model.violations,
            unconverged: why,
            acknowledged: model.acknowledged,
            sessions: model.sessions.begun_count,
            settled: model.sessions.settled_count,
            writes: self.world.data.acknowledged_count,
            other_io: self.world.data.other_count,
            frames: self.world.network.sent,
            insisted: self.insisted,
            healing,
            lasted: self.world.now().since(Time::ZERO),
            log: self.log,
            capture: self.world.capture.take().unwrap_or_default(),
        }
    }

    /// Waits until everything is well and stays as it is; how long it took to be well, and what never
    /// became so.
    fn come_to_rest(&mut self) -> (Duration, Option<String>) {
        let begin = self.world.now();
        loop {
            let left = HEALING.saturating_sub(self.world.now().since(begin));
            self.heal(left);
            let healing = self.world.now().since(begin);
            let before = stamps(&self.world);
            self.world.run_for(QUIET);
            let mut why = unwell(&self.world);
            if why.is_none() && before != stamps(&self.world) {
                why = Some("tables get new stamps though nothing happens".to_owned());
            }
            if why.is_none() || self.world.now().since(begin) >= HEALING {
                return (healing, why);
            }
        }
    }

    /// Waits for everything to be well; an administrator restores what was lost meanwhile.
    fn heal(&mut self, patience: Duration) {
        let begin = self.world.now();
        loop {
            let left = patience.saturating_sub(self.world.now().since(begin));
            let second = left.min(Duration::from_secs(1));
            self.wait_until(second, |world| unwell(world).is_none());
            if left <= second || unwell(&self.world).is_none() {
                return;
            }
            // Where rows of two tables do not fit together and the unit cannot tell which are right, somebody
            // has to decide.
            let insists = self.world.now().since(begin) >= INSIST_AFTER;
            for unit in self.lost_units() {
                let asks = insists || !self.mix.auto_restore;
                if let Some(host) = self.administrator().filter(|_| asks) {
                    self.insisted += usize::from(insists);
                    self.ask_restore(host, unit, insists);
                }
            }
        }
    }
}

/// Why not everything is well, where it is not: tables, stamps, who waits for an answer.
fn unwell(world: &World) -> Option<String> {
    unconverged(world)
        .or_else(|| uneven_stamps(world))
        .or_else(|| world.unanswered())
}

fn stamps(world: &World) -> Vec<TableStamp> {
    world.hosts().map(|(_, host)| host.stored.stamp).collect()
}

/// A unit with two controllers and its devices on both in turn.
pub(crate) fn add_unit(world: &mut World, n: usize, devices: usize) -> NodeId {
    let names: Vec<Vec<String>> = (0..2)
        .map(|c| {
            let mine = (0..devices).filter(|d| d % 2 == c);
            mine.map(|d| format!("u{n}d{d}")).collect()
        })
        .collect();
    let names: Vec<Vec<&str>> = names
        .iter()
        .map(|list| list.iter().map(String::as_str).collect())
        .collect();
    let (a, b) = (format!("u{n}c0"), format!("u{n}c1"));
    let controllers = [(&a[..], &names[0][..]), (&b[..], &names[1][..])];
    world.add_unit(&format!("u{n}"), "A", &controllers)
}
