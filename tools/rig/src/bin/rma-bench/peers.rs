//! The candidates that are programs of their own: `rma bench` inside `rmad`, and servers with fio on them.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rma_rig::{Daemon, Node, Process, wait_until};
use serde_json::Value;

use super::figures::Figure;
use super::{Backend, PATIENCE, Peers, Result, SIZE_MIB, Workload, aoe, iscsi};

/// The unit's address where frames are IP's.
const ADDRESS: &str = "192.0.2.1";

/// Starts the servers of one backend in the unit's node, `ours` being the host's NBD socket. What is not
/// installed is left out, with a note.
pub(super) fn start(
    (unit, host, dir): (&Node, &Node, &Path),
    wire: &str,
    backend: Backend,
    ours: &Path,
) -> Result<Peers> {
    let (path, port) = match backend {
        Backend::Memory => (dir.join("nbdkit-memory.sock"), 10809_u16),
        Backend::File => (dir.join("nbdkit-file.sock"), 10810),
    };
    let image = |name: &str| -> Result<PathBuf> {
        let file = dir.join(format!("{name}-{backend}.img"));
        let bytes = vec![0xa5; 1 << 20];
        let mut writer = std::fs::File::create(&file)?;
        for _ in 0..SIZE_MIB {
            writer.write_all(&bytes)?;
        }
        Ok(file)
    };
    let nbdkit = |place: &[String], name: &str| -> Result<Process> {
        let mut nbdkit = Command::new("nbdkit");
        nbdkit.args(["--foreground", "--exit-with-parent"]);
        nbdkit.args(place);
        match backend {
            Backend::Memory => nbdkit.args(["memory", &format!("{SIZE_MIB}M")]),
            Backend::File => nbdkit.arg("file").arg(image(name)?),
        };
        Ok(unit.spawn(&mut nbdkit)?)
    };
    let tcp = nbdkit(
        &[format!("--ipaddr={ADDRESS}"), format!("--port={port}")],
        "tcp",
    )?;
    let unix = nbdkit(&[format!("--unix={}", path.display())], "unix")?;
    let uri = format!("nbd://{ADDRESS}:{port}/");
    wait_until(PATIENCE, "nbdkit to answer", || {
        let mut info = Command::new("nbdinfo");
        host.run(info.args(["--size", &uri]), PATIENCE)
            .is_ok_and(|o| o.status.success())
    })?;
    // One target and one AoE shelf are enough: for them it is about the wire.
    let is_first = backend == Backend::Memory;
    let iscsi = if is_first && has(&["tgtd", "tgtadm", "qemu-img"], "iSCSI") {
        // tgt has no memory of its own to serve; a file that is in the page cache is the nearest.
        match iscsi::Target::start(unit, ADDRESS, dir, &image("tgt")?) {
            Ok(target) => Some(target),
            Err(e) => {
                println!("iSCSI is not measured: {e}");
                None
            }
        }
    } else {
        None
    };
    let vblade = if is_first && has(&["vblade"], "AoE") {
        Some(aoe::vblade(unit, wire, &image("vblade")?)?)
    } else {
        None
    };
    Ok(Peers {
        ours: format!("nbd+unix:///?socket={}", ours.display()),
        nbdkit: (uri, tcp),
        nbdkit_unix: (format!("nbd+unix:///?socket={}", path.display()), unix),
        iscsi,
        vblade,
    })
}

/// Whether the programs are there; says so where not.
fn has(programs: &[&str], what: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &str| {
        let mut dirs = std::env::split_paths(&paths);
        dirs.any(|dir| dir.join(program).exists())
    };
    let missing: Vec<&str> = programs.iter().copied().filter(|p| !is_there(p)).collect();
    if !missing.is_empty() {
        println!("{what} is not measured: {} is not here", missing.join(", "));
    }
    missing.is_empty()
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
    device: &str,
    pids: &[u32],
    workload: &Workload,
    seconds: u32,
) -> Result<Figure> {
    let [seconds, depth, bytes] = [seconds, workload.depth, workload.bytes].map(|n| n.to_string());
    let args = [
        "bench",
        device,
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
    let before = processor_seconds(pids);
    let value = fio(host, uri, workload, Some(seconds))?;
    let spent = processor_seconds(pids) - before;
    let job = &value["jobs"][0];
    let side = &job[if workload.is_read() { "read" } else { "write" }];
    let number = |of: &Value, key: &str| of[key].as_f64().unwrap_or(0.0);
    let (iops, ios) = (number(side, "iops"), number(side, "total_ios"));
    if job["error"] != 0 || iops == 0.0 {
        return Err(format!("fio failed: {value}").into());
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

/// Runs fio on an NBD server for some seconds, or over the whole device once; what it says.
pub(super) fn fio(
    host: &Node,
    uri: &str,
    workload: &Workload,
    seconds: Option<u32>,
) -> Result<Value> {
    let mut fio = Command::new("fio");
    fio.args([
        "--name=bench",
        "--ioengine=nbd",
        "--output-format=json",
        "--norandommap",
        "--randrepeat=0",
    ])
    .arg(format!("--uri={uri}"))
    .arg(format!("--size={SIZE_MIB}m"))
    .arg(format!("--rw={}", workload.rw))
    .arg(format!("--bs={}", workload.bytes))
    .arg(format!("--iodepth={}", workload.depth));
    if let Some(seconds) = seconds {
        fio.args(["--time_based", &format!("--runtime={seconds}")]);
    }
    let patience = PATIENCE + Duration::from_secs(seconds.unwrap_or(0).into());
    let output = host.run(&mut fio, patience)?;
    // fio's nbd engine prints a line of its own before the JSON.
    let start = output
        .stdout
        .find('{')
        .ok_or_else(|| format!("fio failed: {}", output.stderr))?;
    Ok(serde_json::from_str(&output.stdout[start..])?)
}
