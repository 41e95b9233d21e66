//! `rma bench`: asks `rmad` to make load on a device, follows it and prints what came of it.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use super::control::{AskError, ControlClient};
use super::protocol::{Answer, Question, SCHEMA};
use super::text;
use crate::initiator::load::{Latencies, LoadReport, LoadSpec, MAX_DEPTH, Order};

/// `rmad` says something each second; longer silence is an error.
const PATIENCE: Duration = Duration::from_secs(30);

/// What `rma bench` is asked to do.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Device or extent that this host owns: GUID, its first 8 digits or more, address or name
    device: String,
    /// What to do
    #[arg(long, value_enum, default_value_t = Mode::Randread)]
    rw: Mode,
    /// Bytes of each I/O (512, 4k, 128k, 1M)
    #[arg(long, value_parser = bytes, default_value = "4k", value_name = "BYTES")]
    bs: u64,
    /// I/Os under way at a time
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DEPTH)))]
    depth: u32,
    /// How long to measure
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    seconds: u32,
    /// How long to make load before measuring
    #[arg(long, default_value_t = 1, value_name = "SECONDS")]
    ramp: u32,
    /// Percentage of reads with rw and randrw
    #[arg(long, default_value_t = 70, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    read_percent: u8,
    /// First byte of the range used
    #[arg(long, value_parser = bytes, default_value = "0", value_name = "BYTES")]
    offset: u64,
    /// Bytes of the range used [default: to the end of the device]
    #[arg(long, value_parser = bytes, value_name = "BYTES")]
    size: Option<u64>,
    /// Writes are durable before they are done
    #[arg(long)]
    fua: bool,
    /// Agree that writing overwrites what is on the device
    #[arg(long)]
    destroy_data: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    Read,
    Write,
    Rw,
    Randread,
    Randwrite,
    Randrw,
}

/// Why there is no result: one line for people.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Writing was not agreed to.
    #[error(
        "writing overwrites what is on {0}; nothing was done: say --destroy-data if that is meant"
    )]
    Data(String),
    /// The daemon.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The daemon refuses.
    #[error("{0}")]
    Refused(String),
    /// Another version.
    #[error("the daemon's answer cannot be read ({0}); are rma and rmad of the same version?")]
    Answer(#[from] serde_json::Error),
    /// I/O failed.
    #[error("I/O failed {errors} times; the first: {first}")]
    Io {
        /// How often.
        errors: u64,
        /// Why first.
        first: String,
    },
    /// Standard output.
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
}

/// Bytes with an optional suffix k, M, G or T (powers of 1024).
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "k" | "K" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        _ => return Err("not a number of bytes, such as 4096, 4k, 1M".into()),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "not a number of bytes, such as 4096, 4k, 1M")?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "too many bytes".into())
}

impl Args {
    fn spec(&self) -> Result<LoadSpec, BenchError> {
        let (order, read_percent) = match self.rw {
            Mode::Read => (Order::Sequential, 100),
            Mode::Write => (Order::Sequential, 0),
            Mode::Rw => (Order::Sequential, self.read_percent),
            Mode::Randread => (Order::Random, 100),
            Mode::Randwrite => (Order::Random, 0),
            Mode::Randrw => (Order::Random, self.read_percent),
        };
        if read_percent < 100 && !self.destroy_data {
            return Err(BenchError::Data(self.device.clone()));
        }
        Ok(LoadSpec {
            order,
            read_percent,
            block_bytes: u32::try_from(self.bs).unwrap_or(u32::MAX),
            depth: self.depth,
            seconds: self.seconds,
            ramp_seconds: self.ramp,
            offset: self.offset,
            size: self.size.unwrap_or(0),
            fua: self.fua,
        })
    }
}

/// Runs it; progress goes to standard error where that is a terminal.
pub fn run(args: &Args, socket: &Path, json: bool) -> Result<bool, BenchError> {
    let spec = args.spec()?;
    let mut client = ControlClient::connect(socket, Some(PATIENCE))?;
    let question = Question::Load {
        device: args.device.clone(),
        spec,
    };
    client.send(&serde_json::to_string(&question)?)?;
    let progress = std::io::stderr().is_terminal();
    let report = loop {
        match serde_json::from_str(&client.receive()?)? {
            Answer::Load { report, over: true } => break report,
            Answer::Load { report, .. } if progress => eprint!("\r{:<78}", line(&report)),
            Answer::Load { .. } => {}
            Answer::Error(error) => return Err(BenchError::Refused(error.message)),
            _ => return Err(BenchError::Refused("rmad answered something else".into())),
        }
    };
    if progress {
        eprint!("\r{:<78}\r", "");
    }
    if report.errors > 0 {
        return Err(BenchError::Io {
            errors: report.errors,
            first: report.first_error,
        });
    }
    let mut out = std::io::stdout().lock();
    if json {
        let all = serde_json::json!({
            "schema": SCHEMA,
            "device": args.device,
            "iops": report.iops(),
            "bytes_per_second": report.bytes_per_second(),
            "report": report,
        });
        serde_json::to_writer_pretty(&mut out, &all)?;
        out.write_all(b"\n")?;
    } else {
        out.write_all(table(&report).as_bytes())?;
    }
    Ok(true)
}

/// How it goes, in short.
fn line(report: &LoadReport) -> String {
    format!(
        "{:5.0} s  {:>10} I/O/s  {:>10}/s",
        report.seconds,
        count(report.iops()),
        text::size(report.bytes_per_second() as u64)
    )
}

fn table(report: &LoadReport) -> String {
    let mut out = format!(
        "{} I/Os in {:.1} s: {} I/O/s, {}/s\n",
        report.ios,
        report.seconds,
        count(report.iops()),
        text::size(report.bytes_per_second() as u64)
    );
    for (name, latencies) in [("read", &report.reads), ("write", &report.writes)] {
        if let Some(latencies) = latencies {
            out.push_str(&latency_lines(name, latencies));
        }
    }
    out
}

fn latency_lines(name: &str, of: &Latencies) -> String {
    let mut out = format!(
        "{name}: {} I/Os, latency min {} mean {} max {}\n ",
        of.count,
        time(of.min_ns as f64),
        time(of.mean_ns),
        time(of.max_ns as f64)
    );
    for (percentile, ns) in &of.percentiles_ns {
        let _ = write!(out, " p{percentile} {}", time(*ns as f64));
    }
    out.push('\n');
    out
}

/// A number as people read it: three digits and a suffix.
fn count(number: f64) -> String {
    if number >= 1e6 {
        format!("{:.2} M", number / 1e6)
    } else if number >= 1e3 {
        format!("{:.1} k", number / 1e3)
    } else {
        format!("{number:.0}")
    }
}

/// Nanoseconds as people read them.
pub(super) fn time(ns: f64) -> String {
    if ns >= 1e9 {
        format!("{:.2} s", ns / 1e9)
    } else if ns >= 1e6 {
        format!("{:.2} ms", ns / 1e6)
    } else {
        format!("{:.1} us", ns / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_suffixes() {
        assert_eq!(bytes("512"), Ok(512));
        assert_eq!(bytes("4k"), Ok(4096));
        assert_eq!(bytes("1MiB"), Ok(1 << 20));
        assert!(bytes("").is_err() && bytes("k").is_err() && bytes("4x").is_err());
        assert!(bytes("99999999999T").is_err());
    }

    #[test]
    fn the_result_reads_well() {
        let report = LoadReport {
            seconds: 2.0,
            ios: 90_000,
            bytes: 90_000 * 4096,
            errors: 0,
            first_error: String::new(),
            reads: Some(Latencies {
                count: 90_000,
                min_ns: 9_000,
                mean_ns: 21_500.0,
                max_ns: 3_000_000,
                percentiles_ns: vec![(50.0, 20_000), (99.9, 1_200_000_000)],
            }),
            writes: None,
        };
        assert_eq!(
            table(&report),
            "90000 I/Os in 2.0 s: 45.0 k I/O/s, 175.8 MiB/s\n\
             read: 90000 I/Os, latency min 9.0 us mean 21.5 us max 3.00 ms\n  \
             p50 20.0 us p99.9 1.20 s\n"
        );
    }
}
