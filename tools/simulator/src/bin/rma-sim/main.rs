//! `rma-sim`: plays seeds, counts what went wrong, replays one, plants known bugs, and lets all hosts
//! of a large cluster boot at the same time.

mod breaks;
mod play;
mod storm;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::Parser;

/// Stories are made of many small things that live for a moment.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Plays whole clusters in virtual time with faults, one story for each seed, and checks at every
/// step that no acknowledged allocation is lost and no invariant is broken, and at the end that every
/// host's table is equal and right once the faults have stopped.
#[derive(Debug, Parser)]
#[command(name = "sim", version)]
pub(crate) struct Args {
    /// How many seeds to play without a planted bug. [default: 200, with --break 0]
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Replays one seed and prints what happens in it.
    #[arg(long, conflicts_with_all = ["seeds", "first"])]
    seed: Option<u64>,
    /// Hosts of each story: a number, or MIN-MAX of which each seed draws one.
    #[arg(long, default_value = "3", value_name = "N|MIN-MAX")]
    hosts: Span,
    /// I/O units of each story, likewise.
    #[arg(long, default_value = "2", value_name = "N|MIN-MAX")]
    units: Span,
    /// Devices of all units together, likewise.
    #[arg(long, default_value = "8", value_name = "N|MIN-MAX")]
    devices: Span,
    /// Virtual seconds during which there are faults.
    #[arg(long, default_value_t = 15)]
    chaos: u64,
    /// Stories played at the same time.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Writes the figures to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes every frame of the seed (without --seed: of the first that fails) to this file, for
    /// Wireshark and tools/wireshark. [default: target/sim/seed-N.pcap, of one that fails]
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Plants a known bug and plays seeds until one shows it; `all` plants one after the other. The
    /// seeds of --seeds are played before that, without a bug, and counted apart.
    #[arg(long = "break", value_name = "NAME|all", conflicts_with = "storm")]
    plant: Option<String>,
    /// The most seeds that a planted bug may hide in.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    break_seeds: u64,
    /// Lists the known bugs.
    #[arg(long)]
    list_breaks: bool,
    /// No faults: all hosts boot at the same time, without tables, and must come to the same one.
    #[arg(long)]
    storm: bool,
}

/// A number, or a range of which each seed draws one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    min: usize,
    max: usize,
}

impl Span {
    /// What a seed draws: small ones as likely as large ones, by their order of magnitude.
    fn draw(self, rng: &mut fastrand::Rng) -> usize {
        if self.min == self.max {
            return self.min;
        }
        let (low, high) = ((self.min.max(1) as f64).ln(), ((self.max + 1) as f64).ln());
        let drawn = (low + rng.f64() * (high - low)).exp() as usize;
        drawn.clamp(self.min, self.max)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| -> Result<usize, String> {
            let number = text.trim().parse().map_err(|e| format!("'{text}': {e}"))?;
            if number > 131_072 {
                return Err(format!("{number} is more than 131072"));
            }
            Ok(number)
        };
        let (min, max) = match text.split_once('-') {
            Some((min, max)) => (number(min)?, number(max)?),
            None => (number(text)?, number(text)?),
        };
        if min > max {
            return Err(format!("{min} is more than {max}"));
        }
        Ok(Self { min, max })
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{}-{}", self.min, self.max)
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.hosts.min == 0 {
        eprintln!("sim: there must be a host");
        return ExitCode::from(2);
    }
    let outcome = if args.list_breaks {
        breaks::list()
    } else if let Some(name) = &args.plant {
        breaks::run(&args, name)
    } else if args.storm {
        storm::run(&args)
    } else {
        play::run(&args)
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("sim: {e}");
            ExitCode::from(2)
        }
    }
}

/// Writes figures as JSON, where that is wanted.
fn write_json(args: &Args, figures: &impl serde::Serialize) -> io::Result<()> {
    let Some(path) = &args.json else {
        return Ok(());
    };
    let text = serde_json::to_string_pretty(figures)?;
    std::fs::write(path, text + "\n")
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}
