//! What the data path keeps of its speed when many share a unit or frames are lost, and that it keeps every
//! byte while everything fails: real daemons in network namespaces.

mod fair;
mod loss;
mod soak;
mod stations;

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use rma_rig::Daemon;
use serde_json::{Map, Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const PATIENCE: Duration = Duration::from_secs(60);

/// What can be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    /// Many devices and hosts on one unit, beside one of each
    Fair,
    /// Frames lost by chance
    Loss,
    /// Verified I/O while everything fails
    Soak,
}

/// Throughput shared by many and under loss, and verified I/O while frames, links and units fail
#[derive(Debug, Parser)]
struct Args {
    /// Only these
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Step::Fair, Step::Loss, Step::Soak])]
    only: Vec<Step>,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Rounds of each measurement; the best counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Minutes of verified I/O
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// What the faults are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match rma_rig::enter()
        .map_err(Into::into)
        .and_then(|()| run(&args))
    {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("rma-faults: {e}");
            ExitCode::from(2)
        }
    }
}

/// Whether every bar was reached.
fn run(args: &Args) -> Result<bool> {
    if !(args.minutes > 0.0 && args.minutes <= 100_000.0) {
        return Err("--minutes is more than 0".into());
    }
    let mut figures = Map::new();
    let mut good = true;
    for step in &args.only {
        let (name, value, bars) = match step {
            Step::Fair => fair::measure(args)?,
            Step::Loss => loss::measure(args)?,
            Step::Soak => soak::run(args)?,
        };
        for (bar, is_reached) in bars {
            println!("{} {name}: {bar}", if is_reached { "ok  " } else { "MISS" });
            good &= is_reached;
        }
        figures.insert(name.to_owned(), value);
    }
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(&Value::Object(figures))?)?;
    }
    Ok(good)
}

/// A step's name, its figures, and each bar in words with whether it was reached.
type Outcome = (&'static str, Value, Vec<(String, bool)>);

/// What `rma bench` tells of a load.
#[derive(Debug, Clone, Copy)]
struct Load {
    iops: f64,
    p999_ms: f64,
}

impl Load {
    fn of(text: &str) -> Result<Self> {
        let start = text
            .find('{')
            .ok_or_else(|| format!("rma bench failed: {text}"))?;
        let value: Value = serde_json::from_str(&text[start..])?;
        let p999 = ["reads", "writes"].iter().filter_map(|side| {
            let all = value["report"][side]["percentiles_ns"].as_array()?;
            all.iter().find(|pair| pair[0] == 99.9)?[1].as_f64()
        });
        Ok(Self {
            iops: value["iops"].as_f64().ok_or("no figure")?,
            p999_ms: p999.fold(0.0, f64::max) / 1e6,
        })
    }

    fn to_json(self) -> Value {
        json!({ "iops": self.iops, "p999_ms": self.p999_ms })
    }
}

/// The arguments of a load.
fn bench_args<'a>(
    device: &'a str,
    rw: &'a str,
    bytes: &'a str,
    depth: &'a str,
    seconds: &'a str,
) -> Vec<&'a str> {
    vec![
        "-o",
        "json",
        "bench",
        device,
        "--destroy-data",
        "--rw",
        rw,
        "--bs",
        bytes,
        "--depth",
        depth,
        "--seconds",
        seconds,
    ]
}

fn load(host: &Daemon, args: &[&str]) -> Result<Load> {
    let output = host.rma(args)?;
    if !output.status.success() {
        return Err(format!("rma {}: {}", args.join(" "), output.stderr).into());
    }
    Load::of(&output.stdout)
}
