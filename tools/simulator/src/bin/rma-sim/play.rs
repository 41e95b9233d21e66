//! Plays seeds on several threads, and tells what became of them.

use std::cell::RefCell;
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rma_simulator::scenario::{Outcome, Shape, run as play};
use rma_simulator::{Seen, pcap};

use crate::{Args, write_json};

/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(5);

/// How many seeds are played where nobody says how many.
const DEFAULT_SEEDS: u64 = 200;

/// Where frames of failing seeds are left.
const FRAMES_DIR: &str = "target/sim";

/// The figures of a run.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct Figures {
    schema: u32,
    /// Seeds played without a planted bug; so are all figures but those that begin with `planted_`.
    seeds: u64,
    hosts: String,
    units: String,
    devices: String,
    lost_acknowledged: u64,
    violations: u64,
    unconverged: u64,
    pub(crate) planted_total: u64,
    pub(crate) planted_caught: u64,
    /// Seeds played with a planted bug.
    pub(crate) planted_seeds: u64,
    /// How each planted bug was caught.
    pub(crate) planted_bugs: Vec<Caught>,
    acknowledged: u64,
    writes: u64,
    other_io: u64,
    frames: u64,
    /// Stories that ended well only because registers were restored by force.
    insisted_seeds: u64,
    healing_max_ms: u64,
    virtual_s: u64,
    sessions: u64,
    settled: u64,
    failing_seeds: Vec<u64>,
    seconds: f64,
    seeds_per_second: f64,
}

impl Figures {
    pub(crate) fn new(args: &Args) -> Self {
        Self {
            schema: 2,
            hosts: args.hosts.to_string(),
            units: args.units.to_string(),
            devices: args.devices.to_string(),
            ..Self::default()
        }
    }
}

/// How a planted bug was caught, or not.
#[derive(Debug, serde::Serialize)]
#[allow(clippy::struct_field_names)]
pub(crate) struct Caught {
    pub(crate) name: &'static str,
    pub(crate) caught: bool,
    /// Seeds played until then.
    pub(crate) seeds: u64,
    pub(crate) seed: Option<u64>,
    pub(crate) by: Option<String>,
}

/// An outcome without its frames, which cannot leave their thread.
pub(crate) struct Played {
    pub(crate) seed: u64,
    pub(crate) shape: Shape,
    lost_acknowledged: u64,
    pub(crate) violations: Vec<String>,
    pub(crate) unconverged: Option<String>,
    acknowledged: u64,
    sessions: u64,
    settled: u64,
    writes: u64,
    other_io: u64,
    frames: u64,
    insisted: usize,
    healing: Duration,
    lasted: Duration,
    log: Vec<String>,
}

impl Played {
    fn of(shape: Shape, o: Outcome) -> Self {
        Self {
            seed: o.seed,
            shape,
            lost_acknowledged: o.lost_acknowledged,
            violations: o.violations,
            unconverged: o.unconverged,
            acknowledged: o.acknowledged,
            sessions: o.sessions,
            settled: o.settled,
            writes: o.writes,
            other_io: o.other_io,
            frames: o.frames,
            insisted: o.insisted,
            healing: o.healing,
            lasted: o.lasted,
            log: o.log,
        }
    }

    fn panicked(seed: u64, shape: Shape, what: &str) -> Self {
        Self {
            seed,
            shape,
            lost_acknowledged: 0,
            violations: vec![format!("I8: a panic: {what}")],
            unconverged: None,
            acknowledged: 0,
            sessions: 0,
            settled: 0,
            writes: 0,
            other_io: 0,
            frames: 0,
            insisted: 0,
            healing: Duration::ZERO,
            lasted: Duration::ZERO,
            log: Vec::new(),
        }
    }

    pub(crate) fn is_good(&self) -> bool {
        self.violations.is_empty() && self.unconverged.is_none()
    }
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps what a panic says, instead of printing it among the rest.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            PANIC.with(|kept| *kept.borrow_mut() = info.to_string());
        }));
    });
}

/// The world that a seed is played in.
fn shape(args: &Args, seed: u64) -> Shape {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x0005_4a9e);
    Shape {
        hosts: args.hosts.draw(&mut rng),
        units: args.units.draw(&mut rng),
        devices: args.devices.draw(&mut rng),
        chaos: Duration::from_secs(args.chaos),
    }
}

fn play_one(args: &Args, seed: u64, capture: bool) -> (Played, Vec<Seen>) {
    let shape = shape(args, seed);
    match std::panic::catch_unwind(|| play(seed, shape, capture)) {
        Ok(mut outcome) => {
            let frames = std::mem::take(&mut outcome.capture);
            (Played::of(shape, outcome), frames)
        }
        Err(_) => {
            let what = PANIC.with(|kept| kept.borrow().clone());
            (Played::panicked(seed, shape, &what), Vec::new())
        }
    }
}

/// Plays seeds from `first` on several threads; `each` hears of every one and says whether to go on.
pub(crate) fn play_all(
    args: &Args,
    first: u64,
    seeds: u64,
    mut each: impl FnMut(Played) -> io::Result<bool>,
) -> io::Result<()> {
    keep_panics();
    let next = AtomicU64::new(first);
    let over = AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            let (sender, next, over) = (sender.clone(), &next, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed - first >= seeds || sender.send(play_one(args, seed, false).0).is_err()
                    {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut outcome = Ok(());
        for played in receiver {
            if over.load(Ordering::Relaxed) {
                continue;
            }
            match each(played) {
                Ok(true) => {}
                Ok(false) => over.store(true, Ordering::Relaxed),
                Err(e) => {
                    over.store(true, Ordering::Relaxed);
                    outcome = Err(e);
                }
            }
        }
        outcome
    })
}

/// Plays the seeds; whether all was well.
pub(crate) fn run(args: &Args) -> io::Result<bool> {
    let mut figures = Figures::new(args);
    let is_well = play_clean(args, &mut figures)?;
    write_json(args, &figures)?;
    Ok(is_well)
}

/// Plays the seeds without a planted bug, and says what became of them; whether all was well.
pub(crate) fn play_clean(args: &Args, figures: &mut Figures) -> io::Result<bool> {
    let begin = Instant::now();
    let mut told = begin;
    let (first, seeds) = match args.seed {
        Some(seed) => (seed, 1),
        None => (args.first, args.seeds.unwrap_or(DEFAULT_SEEDS)),
    };
    let mut out = io::stdout().lock();
    let shows_progress = io::stderr().is_terminal() || seeds > 1000;
    play_all(args, first, seeds, |played| {
        report(&mut out, args, &played, figures)?;
        if shows_progress && told.elapsed() >= PROGRESS {
            told = Instant::now();
            eprintln!(
                "{} of {seeds} seeds in {:.0} s, {} failed",
                figures.seeds,
                begin.elapsed().as_secs_f64(),
                figures.failing_seeds.len()
            );
        }
        Ok(true)
    })?;
    figures.failing_seeds.sort_unstable();
    figures.seconds = begin.elapsed().as_secs_f64();
    figures.seeds_per_second = figures.seeds as f64 / figures.seconds.max(0.001);
    let failing = figures.failing_seeds.first().copied();
    if let Some(seed) = failing.or(args.seed.filter(|_| args.pcap.is_some())) {
        leave_frames(args, seed, &mut out)?;
    }
    say_figures(&mut out, figures)?;
    Ok(figures.failing_seeds.is_empty())
}

/// Plays a seed once more and writes its frames to a file.
pub(crate) fn leave_frames(args: &Args, seed: u64, out: &mut impl io::Write) -> io::Result<()> {
    let path = match &args.pcap {
        Some(path) => path.clone(),
        None => {
            std::fs::create_dir_all(FRAMES_DIR)?;
            Path::new(FRAMES_DIR).join(format!("seed-{seed}.pcap"))
        }
    };
    pcap::write(&path, &play_one(args, seed, true).1)?;
    writeln!(out, "the frames of seed {seed} are in {}", path.display())
}

fn say_figures(out: &mut impl io::Write, figures: &Figures) -> io::Result<()> {
    writeln!(
        out,
        "{} seeds of {} hosts, {} units, {} devices, {:.1} virtual hours in {:.1} s: {} allocations, {} settings, {} \
         writes and {} other I/O acknowledged in {} sessions, {} frames; {} allocations lost, {} \
         violations, {} unconverged; registers were restored by force in {} to end well; healing \
         took at most {:.1} s",
        figures.seeds,
        figures.hosts,
        figures.units,
        figures.devices,
        figures.virtual_s as f64 / 3600.0,
        figures.seconds,
        figures.acknowledged,
        figures.settled,
        figures.writes,
        figures.other_io,
        figures.sessions,
        figures.frames,
        figures.lost_acknowledged,
        figures.violations,
        figures.unconverged,
        figures.insisted_seeds,
        figures.healing_max_ms as f64 / 1000.0,
    )
}

fn report(
    out: &mut impl io::Write,
    args: &Args,
    played: &Played,
    figures: &mut Figures,
) -> io::Result<()> {
    figures.seeds += 1;
    figures.lost_acknowledged += played.lost_acknowledged;
    figures.violations += played.violations.len() as u64;
    figures.unconverged += u64::from(played.unconverged.is_some());
    figures.acknowledged += played.acknowledged;
    figures.sessions += played.sessions;
    figures.settled += played.settled;
    figures.writes += played.writes;
    figures.other_io += played.other_io;
    figures.frames += played.frames;
    figures.insisted_seeds += u64::from(played.insisted > 0);
    figures.virtual_s += played.lasted.as_secs();
    let healing = played.healing.as_millis() as u64;
    figures.healing_max_ms = figures.healing_max_ms.max(healing);
    if args.seed.is_some() {
        for line in &played.log {
            writeln!(out, "{line}")?;
        }
    }
    if played.is_good() {
        return Ok(());
    }
    figures.failing_seeds.push(played.seed);
    let shape = &played.shape;
    writeln!(
        out,
        "seed {}: replay with tools/sim --seed {} --hosts {} --units {} --devices {} --chaos {}",
        played.seed, played.seed, shape.hosts, shape.units, shape.devices, args.chaos
    )?;
    for violation in &played.violations {
        writeln!(out, "  {violation}")?;
    }
    if let Some(why) = &played.unconverged {
        writeln!(out, "  unconverged: {why}")?;
    }
    Ok(())
}
