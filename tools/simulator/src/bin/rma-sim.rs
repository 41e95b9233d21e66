//! `rma-sim`: plays seeds, counts what went wrong, replays one.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Parser;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, Endianness, TsResolution};
use rma::wire::{ETHERTYPE_MANAGEMENT, ETHERTYPE_SERVICE, Time};
use rma_simulator::Seen;
use rma_simulator::scenario::{Outcome, Shape, run};

/// Plays whole clusters in virtual time with faults, one story for each seed, and checks that no
/// acknowledged allocation is lost, that no invariant is broken at any step, and that every host's
/// table is equal and right once the faults stop.
#[derive(Debug, Parser)]
#[command(name = "sim", version)]
struct Args {
    /// How many seeds to play.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Replays one seed and prints what happens in it.
    #[arg(long, conflicts_with_all = ["seeds", "first"])]
    seed: Option<u64>,
    /// Hosts of each story.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1024))]
    hosts: u16,
    /// I/O units of each story.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=1024))]
    units: u16,
    /// Devices of each unit.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=4096))]
    devices: u16,
    /// Virtual seconds during which there are faults.
    #[arg(long, default_value_t = 15)]
    chaos: u64,
    /// Stories played at the same time.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Writes the figures to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// With --seed: writes every frame to this file for Wireshark.
    #[arg(long, value_name = "FILE", requires = "seed")]
    pcap: Option<PathBuf>,
}

/// The figures of a run.
#[derive(Debug, Default, serde::Serialize)]
struct Figures {
    schema: u32,
    seeds: u64,
    hosts: u16,
    units: u16,
    devices: u16,
    lost_acknowledged: u64,
    violations: u64,
    unconverged: u64,
    acknowledged: u64,
    writes: u64,
    frames: u64,
    healing_max_ms: u64,
    failing_seeds: Vec<u64>,
    wall_ms: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match play(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("sim: {e}");
            ExitCode::from(2)
        }
    }
}

fn play(args: &Args) -> io::Result<bool> {
    let shape = Shape {
        hosts: args.hosts.into(),
        units: args.units.into(),
        devices: args.devices.into(),
        chaos: Duration::from_secs(args.chaos),
    };
    let (first, seeds) = match args.seed {
        Some(seed) => (seed, 1),
        None => (args.first, args.seeds),
    };
    let mut figures = Figures {
        schema: 1,
        seeds,
        hosts: args.hosts,
        units: args.units,
        devices: args.devices,
        ..Figures::default()
    };
    let begin = Instant::now();
    let next = AtomicU64::new(first);
    let (sender, receiver) = mpsc::channel();
    let mut out = io::stdout().lock();
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed - first >= seeds {
                        return;
                    }
                    let outcome = std::panic::catch_unwind(|| {
                        let outcome = run(seed, shape, args.pcap.is_some());
                        if let Some(path) = &args.pcap {
                            write_pcap(path, &outcome.capture)
                                .map_err(|e| format!("{}: {e}", path.display()))?;
                        }
                        Ok::<_, String>(Played::from(outcome))
                    });
                    let played = match outcome {
                        Ok(Ok(played)) => played,
                        Ok(Err(e)) => Played::broken(seed, e),
                        Err(_) => Played::broken(seed, "panicked".to_owned()),
                    };
                    if sender.send(played).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for played in receiver {
            report(&mut out, args, &played, &mut figures)?;
        }
        Ok::<(), io::Error>(())
    })?;
    figures.failing_seeds.sort_unstable();
    figures.wall_ms = begin.elapsed().as_millis() as u64;
    if let Some(path) = &args.json {
        serde_json::to_writer_pretty(File::create(path)?, &figures)?;
    }
    writeln!(
        out,
        "{} seeds of {} hosts, {} units, {} devices each in {:.1} s: {} allocations and {} \
         writes acknowledged, {} allocations lost, {} violations, {} unconverged; healing took at most {:.1} s",
        figures.seeds,
        figures.hosts,
        figures.units,
        figures.devices,
        figures.wall_ms as f64 / 1000.0,
        figures.acknowledged,
        figures.writes,
        figures.lost_acknowledged,
        figures.violations,
        figures.unconverged,
        figures.healing_max_ms as f64 / 1000.0,
    )?;
    Ok(figures.failing_seeds.is_empty())
}

/// An outcome without its frames, which cannot leave their thread.
struct Played {
    seed: u64,
    lost_acknowledged: u64,
    violations: Vec<String>,
    unconverged: Option<String>,
    acknowledged: u64,
    writes: u64,
    frames: u64,
    healing: Duration,
    log: Vec<String>,
}

impl From<Outcome> for Played {
    fn from(o: Outcome) -> Self {
        Self {
            seed: o.seed,
            lost_acknowledged: o.lost_acknowledged,
            violations: o.violations,
            unconverged: o.unconverged,
            acknowledged: o.acknowledged,
            writes: o.writes,
            frames: o.frames,
            healing: o.healing,
            log: o.log,
        }
    }
}

impl Played {
    fn broken(seed: u64, what: String) -> Self {
        Self {
            seed,
            lost_acknowledged: 0,
            violations: vec![what],
            unconverged: None,
            acknowledged: 0,
            writes: 0,
            frames: 0,
            healing: Duration::ZERO,
            log: Vec::new(),
        }
    }
}

fn report(
    out: &mut impl io::Write,
    args: &Args,
    played: &Played,
    figures: &mut Figures,
) -> io::Result<()> {
    figures.lost_acknowledged += played.lost_acknowledged;
    figures.violations += played.violations.len() as u64;
    figures.unconverged += u64::from(played.unconverged.is_some());
    figures.acknowledged += played.acknowledged;
    figures.writes += played.writes;
    figures.frames += played.frames;
    let healing = played.healing.as_millis() as u64;
    figures.healing_max_ms = figures.healing_max_ms.max(healing);
    if args.seed.is_some() {
        for line in &played.log {
            writeln!(out, "{line}")?;
        }
    }
    let bad = !played.violations.is_empty() || played.unconverged.is_some();
    if !bad {
        return Ok(());
    }
    figures.failing_seeds.push(played.seed);
    writeln!(
        out,
        "seed {}: replay with tools/sim --seed {} --hosts {} --units {} --devices {} --chaos {}",
        played.seed, played.seed, args.hosts, args.units, args.devices, args.chaos
    )?;
    for violation in &played.violations {
        writeln!(out, "  {violation}")?;
    }
    if let Some(why) = &played.unconverged {
        writeln!(out, "  unconverged: {why}")?;
    }
    Ok(())
}

fn write_pcap(path: &Path, frames: &[Seen]) -> io::Result<()> {
    let header = PcapHeader {
        version_major: 2,
        version_minor: 4,
        ts_correction: 0,
        ts_accuracy: 0,
        snaplen: 65_535,
        datalink: DataLink::ETHERNET,
        ts_resolution: TsResolution::NanoSecond,
        endianness: Endianness::Little,
    };
    let file = io::BufWriter::new(File::create(path)?);
    let mut writer = PcapWriter::with_header(file, header).map_err(io::Error::other)?;
    for frame in frames {
        let ethertype = if frame.service {
            ETHERTYPE_SERVICE
        } else {
            ETHERTYPE_MANAGEMENT
        };
        let mut bytes = frame.dst.0.to_vec();
        bytes.extend_from_slice(&frame.src.0);
        bytes.extend_from_slice(&ethertype.to_be_bytes());
        bytes.extend_from_slice(&frame.bytes);
        let packet = PcapPacket::new(frame.at.since(Time::ZERO), bytes.len() as u32, &bytes);
        writer.write_packet(&packet).map_err(io::Error::other)?;
    }
    Ok(())
}
