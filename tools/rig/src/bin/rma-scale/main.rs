//! Whole clusters of real daemons on one machine, measured: boot, changes, deaths, partitions, idling.

mod cost;
mod large;
mod revoke;
mod steps;

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use serde_json::{Map, Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Fabric services, units and hosts as real daemons in network namespaces on a software switch, measured
///
/// Times are what a watching administrator sees. Everything runs on this machine's processors, the
/// switch included, so the CPU time spent by the daemons is printed beside each figure.
#[derive(Debug, Parser)]
struct Args {
    /// Hosts
    #[arg(long, default_value_t = 64)]
    hosts: usize,
    /// I/O units
    #[arg(long, default_value_t = 32)]
    units: usize,
    /// Devices of all units together
    #[arg(long, default_value_t = 2048)]
    devices: usize,
    /// Allocations whose arrival on all hosts is timed
    #[arg(long, default_value_t = 100)]
    changes: usize,
    /// Frames lost while they are, in percent
    #[arg(long, default_value_t = 1.0)]
    loss_percent: f64,
    /// Host deaths, partitions and takeovers that are timed
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds over which idle hosts are measured
    #[arg(long, default_value_t = 10)]
    idle_seconds: u64,
    /// Rows of the table whose memory is measured
    #[arg(long, default_value_t = 65_536)]
    rows: usize,
    /// Writes by hosts that are losing the device they write to
    #[arg(long, default_value_t = 1_000_000)]
    writes: u64,
    /// Only these: boot, idle, change, death, heal, takeover, rss, revoke (boot comes along where it
    /// must)
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Keep the daemons' state on disk (the temporary directory) rather than in memory
    #[arg(long)]
    disk: bool,
    /// Record all frames of the boot (it costs time)
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

const STEPS: [&str; 8] = [
    "boot", "idle", "change", "death", "heal", "takeover", "rss", "revoke",
];

impl Args {
    fn wants(&self, step: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == step)
    }

    fn check(&self) -> Result<()> {
        if let Some(unknown) = self.only.iter().find(|o| !STEPS.contains(&o.as_str())) {
            return Err(format!("--only {unknown}: there are {}", STEPS.join(", ")).into());
        }
        if self.hosts < 2 || self.units == 0 || self.devices < self.units {
            return Err("at least 2 hosts, 1 unit and 1 device a unit are needed".into());
        }
        if self.writes == 0 {
            return Err("--writes is at least 1".into());
        }
        if self.rounds == 0 || self.changes == 0 || self.idle_seconds == 0 {
            return Err("--rounds, --changes and --idle-seconds are at least 1".into());
        }
        if !(0.0..=50.0).contains(&self.loss_percent) {
            return Err("--loss-percent is from 0 to 50".into());
        }
        Ok(())
    }
}

/// The figures so far; each step's are printed when it is over.
struct Figures {
    values: Map<String, Value>,
    started: Instant,
}

impl Figures {
    fn note(&mut self, name: &str, value: Value) {
        println!("{name:<28} {value}");
        self.values.insert(name.into(), value);
    }

    fn say(&self, text: &str) {
        eprintln!("[{:6.1} s] {text}", self.started.elapsed().as_secs_f64());
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match args
        .check()
        .and_then(|()| Ok(rma_rig::enter()?))
        .and_then(|()| run(&args))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rma-scale: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let mut figures = Figures {
        values: Map::new(),
        started: Instant::now(),
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    figures.note("hosts", json!(args.hosts));
    figures.note("units", json!(args.units));
    figures.note("processors", json!(processors));
    figures.note("load_before", json!(cost::load()));
    let with_cluster = STEPS[..6].iter().any(|step| args.wants(step));
    if with_cluster {
        steps::cluster(args, &mut figures)?;
    }
    if args.wants("rss") {
        large::table(args, &mut figures)?;
    }
    if args.wants("revoke") {
        revoke::revocations(args, &mut figures)?;
    }
    figures.note("load_after", json!(cost::load()));
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(&figures.values)? + "\n")?;
    }
    Ok(())
}
