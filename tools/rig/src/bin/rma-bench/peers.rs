//! The candidates that are programs of their own: `rma bench` inside `rmad`, and fio on NBD servers.

use std::process::Command;
use std::time::Duration;

use rma_rig::{Daemon, Node, Process};
use serde_json::Value;

use super::figures::Figure;
use super::{PATIENCE, Result, SIZE_MIB, Workload};

/// nbdkit with memory behind it, in a node.
pub(super) fn nbdkit(node: &Node, place: &str) -> Result<Process> {
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["--foreground", "--exit-with-parent", place, "memory"]);
    Ok(node.spawn(nbdkit.arg(format!("{SIZE_MIB}M")))?)
}

/// Processor time of processes so far, seconds.
fn processor_seconds(pids: &[u32]) -> f64 {
    let ticks = |pid: &u32| -> Option<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Behind the name, which may contain anything: state is the first word.
        let mut words = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let user: f64 = words.next()?.parse().ok()?;
        let system: f64 = words.next()?.parse().ok()?;
        Some(user + system)
    };
    // USER_HZ is 100 on every architecture that we run on.
    pids.iter().filter_map(ticks).sum::<f64>() / 100.0
}

/// Load made inside `rmad`.
pub(super) fn measure_own(
    daemon: &Daemon,
    pids: &[u32],
    workload: &Workload,
    seconds: u32,
) -> Result<Figure> {
    let [seconds, depth, bytes] = [seconds, workload.depth, workload.bytes].map(|n| n.to_string());
    let args = [
        "bench",
        "d1",
        "--destroy-data",
        "--ramp=0",
        "--rw",
        workload.rw,
        "--bs",
        &bytes,
        "--depth",
        &depth,
        "--seconds",
        &seconds,
    ];
    let before = processor_seconds(pids);
    let value = daemon.json(&args).ok_or("rma bench failed")?;
    let spent = processor_seconds(pids) - before;
    let report = &value["report"];
    let ios = report["ios"].as_f64().ok_or("rma bench tells no figure")?;
    let side = if workload.is_read() {
        "reads"
    } else {
        "writes"
    };
    let percentiles = report[side]["percentiles_ns"].as_array();
    let p999 = percentiles.and_then(|all| {
        let found = all.iter().find(|pair| pair[0] == 99.9)?;
        found[1].as_f64()
    });
    let iops = value["iops"].as_f64().ok_or("rma bench tells no figure")?;
    Ok(Figure {
        cpu_us_per_io: Some(spent * 1e6 / ios.max(1.0)),
        p999_us: p999.map(|ns| ns / 1e3),
        ..Figure::of(workload, iops)
    })
}

/// fio on an NBD server, whose processes are `pids`.
pub(super) fn measure_nbd(
    host: &Node,
    uri: &str,
    pids: &[u32],
    workload: &Workload,
    seconds: u32,
) -> Result<Figure> {
    let mut fio = Command::new("fio");
    fio.args([
        "--name=bench",
        "--ioengine=nbd",
        "--output-format=json",
        "--time_based",
        "--norandommap",
        "--randrepeat=0",
    ])
    .arg(format!("--uri={uri}"))
    .arg(format!("--runtime={seconds}"))
    .arg(format!("--size={SIZE_MIB}m"))
    .arg(format!("--rw={}", workload.rw))
    .arg(format!("--bs={}", workload.bytes))
    .arg(format!("--iodepth={}", workload.depth));
    let before = processor_seconds(pids);
    let output = host.run(&mut fio, PATIENCE + Duration::from_secs(seconds.into()))?;
    let spent = processor_seconds(pids) - before;
    // fio's nbd engine prints a line of its own before the JSON.
    let start = output
        .stdout
        .find('{')
        .ok_or_else(|| format!("fio failed: {}", output.stderr))?;
    let value: Value = serde_json::from_str(&output.stdout[start..])?;
    let job = &value["jobs"][0];
    let side = &job[if workload.is_read() { "read" } else { "write" }];
    let number = |of: &Value, key: &str| of[key].as_f64().unwrap_or(0.0);
    let (iops, ios) = (number(side, "iops"), number(side, "total_ios"));
    if job["error"] != 0 || iops == 0.0 {
        return Err(format!("fio failed: {}{}", output.stdout, output.stderr).into());
    }
    let percent = number(job, "usr_cpu") + number(job, "sys_cpu");
    let client = percent / 100.0 * number(side, "runtime") / 1e3;
    Ok(Figure {
        cpu_us_per_io: Some((spent + client) * 1e6 / ios.max(1.0)),
        p999_us: side["clat_ns"]["percentile"]["99.900000"]
            .as_f64()
            .map(|ns| ns / 1e3),
        ..Figure::of(workload, iops)
    })
}
