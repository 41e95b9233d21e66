//! All hosts of a cluster boot at the same time.

use std::io::{self, Write as _};
use std::time::Instant;

use rma_simulator::storm::storm;

use crate::{Args, write_json};

/// The figures of a boot storm.
#[derive(Debug, serde::Serialize)]
struct Figures {
    schema: u32,
    hosts: usize,
    units: usize,
    devices: usize,
    rows: usize,
    converged: bool,
    boot_s: f64,
    frames: u64,
    frames_per_host: f64,
    bytes_per_host: f64,
    peak_memory_bytes: u64,
    memory_per_host_bytes: u64,
    kinds: std::collections::BTreeMap<String, u64>,
    seconds: f64,
}

/// Boots them; whether they came to one table.
pub(crate) fn run(args: &Args) -> io::Result<bool> {
    let begin = Instant::now();
    let before = peak_memory().unwrap_or(0);
    let seed = args.seed.unwrap_or(args.first);
    let (hosts, units, devices) = (args.hosts.max, args.units.max, args.devices.max);
    let calm = storm(seed, hosts, units, devices, |virtual_s, steady, frames| {
        eprintln!(
            "{virtual_s:6.1} s: {steady} of {hosts} hosts are through Fig. 5, {frames} frames, {:.0} s of work",
            begin.elapsed().as_secs_f64()
        );
    });
    let peak = peak_memory().unwrap_or(0);
    let figures = Figures {
        schema: 1,
        hosts,
        units,
        devices,
        rows: calm.rows,
        converged: calm.unconverged.is_none(),
        boot_s: calm.boot.as_secs_f64(),
        frames: calm.frames,
        frames_per_host: calm.frames as f64 / hosts as f64,
        bytes_per_host: calm.bytes as f64 / hosts as f64,
        peak_memory_bytes: peak,
        memory_per_host_bytes: peak.saturating_sub(before) / hosts as u64,
        kinds: calm.kinds,
        seconds: begin.elapsed().as_secs_f64(),
    };
    write_json(args, &figures)?;
    let mut out = io::stdout().lock();
    if let Some(why) = &calm.unconverged {
        writeln!(out, "unconverged: {why}")?;
    }
    writeln!(
        out,
        "{hosts} hosts, {units} units, {devices} devices: {} rows on every host after {:.1} virtual \
         seconds; {:.0} frames and {:.0} KiB sent for each host, peak memory {:.0} MiB ({:.2} MiB for \
         each host), {:.0} s of work",
        figures.rows,
        figures.boot_s,
        figures.frames_per_host,
        figures.bytes_per_host / 1024.0,
        peak as f64 / f64::from(1 << 20),
        figures.memory_per_host_bytes as f64 / f64::from(1 << 20),
        figures.seconds
    )?;
    for (kind, count) in &figures.kinds {
        writeln!(
            out,
            "  {kind}: {:.1} frames for each host",
            *count as f64 / hosts as f64
        )?;
    }
    Ok(figures.converged)
}

/// The most memory that this process has had, in bytes.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
