//! Owned devices beside NBD over TCP, in one run, on one kernel bridge: load made inside `rmad`, and fio
//! on both servers.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Parser;
use rma_rig::{Daemon, Node, NodeOptions, Program, Rig, wait_until};
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// fio against an owned device's NBD socket and against nbdkit over TCP, in turn, on the same wire
#[derive(Debug, Parser)]
struct Args {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Rounds; medians are printed
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// MTUs to measure at
    #[arg(long, value_delimiter = ',', default_values_t = [9000, 1500])]
    mtu: Vec<u16>,
    /// Write the rows as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

const PATIENCE: Duration = Duration::from_secs(30);
const SIZE_MIB: u32 = 256;

/// What is measured, in the words that fio and `rma bench` share.
struct Workload {
    name: &'static str,
    rw: &'static str,
    bs: &'static str,
    depth: &'static str,
    /// Whether bytes per second count rather than operations.
    is_bytes: bool,
}

const WORKLOADS: [Workload; 5] = [
    Workload {
        name: "4 KiB random read, depth 1",
        rw: "randread",
        bs: "4k",
        depth: "1",
        is_bytes: false,
    },
    Workload {
        name: "4 KiB random read, depth 32",
        rw: "randread",
        bs: "4k",
        depth: "32",
        is_bytes: false,
    },
    Workload {
        name: "4 KiB random write, depth 32",
        rw: "randwrite",
        bs: "4k",
        depth: "32",
        is_bytes: false,
    },
    Workload {
        name: "128 KiB sequential read, depth 8",
        rw: "read",
        bs: "128k",
        depth: "8",
        is_bytes: true,
    },
    Workload {
        name: "128 KiB sequential write, depth 8",
        rw: "write",
        bs: "128k",
        depth: "8",
        is_bytes: true,
    },
];

fn main() -> ExitCode {
    let args = Args::parse();
    match rma_rig::enter()
        .map_err(Into::into)
        .and_then(|()| run(&args))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rma-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let mut rows = Vec::new();
    println!(
        "{:<34} {:>5} {:>11} {:>11} {:>11} {:>7} {:>7}",
        "WORKLOAD", "MTU", "RMA", "RMA NBD", "NBDKIT TCP", "RATIO", "NBD"
    );
    for mtu in &args.mtu {
        let bench = Bench::start(*mtu)?;
        for workload in &WORKLOADS {
            let [mut own, mut ours, mut theirs] = [const { Vec::new() }; 3];
            for _ in 0..args.rounds.max(1) {
                own.push(bench.measure_own(workload, args.seconds)?);
                ours.push(bench.measure(&bench.ours, workload, args.seconds)?);
                theirs.push(bench.measure(&bench.theirs, workload, args.seconds)?);
            }
            let (own, ours) = (median(&mut own), median(&mut ours));
            let theirs = median(&mut theirs);
            let unit = |v: f64| {
                if workload.is_bytes {
                    format!("{:.0} MB/s", v / 1e6)
                } else {
                    format!("{:.1} k/s", v / 1e3)
                }
            };
            println!(
                "{:<34} {mtu:>5} {:>11} {:>11} {:>11} {:>7.2} {:>7.2}",
                workload.name,
                unit(own),
                unit(ours),
                unit(theirs),
                own / theirs,
                ours / theirs
            );
            rows.push(json!({
                "workload": workload.name, "mtu": mtu, "backend": "memory",
                "ours": own, "ours_nbd": ours, "nbdkit_tcp": theirs,
                "ratio_nbdkit_tcp": own / theirs, "ratio_nbd_nbdkit_tcp": ours / theirs,
            }));
        }
    }
    if let Some(path) = &args.json {
        fs::write(
            path,
            serde_json::to_string_pretty(&json!({ "rows": rows }))?,
        )?;
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

struct Bench {
    host: Node,
    /// The host's place among the daemons.
    rmad: usize,
    ours: String,
    theirs: String,
    daemons: Vec<Daemon>,
    /// A namespace without processes lasts as long as its node.
    _bridge: Node,
    _rig: Rig,
}

impl Bench {
    /// Fabric services, a unit and a host on one kernel bridge; the unit's node also runs nbdkit.
    fn start(mtu: u16) -> Result<Self> {
        let rig = Rig::new()?;
        let names = ["bridge", "fabric", "u1", "h1"];
        let wanted = names
            .iter()
            .map(|n| ((*n).to_owned(), NodeOptions::default()))
            .collect();
        let mut nodes: BTreeMap<_, _> = rig
            .add_nodes(wanted)?
            .into_iter()
            .map(|n| (n.name().to_owned(), n))
            .collect();
        let mut node = |name: &str| nodes.remove(name).ok_or("a node is missing");
        let (bridge, fabric, unit, host) =
            (node("bridge")?, node("fabric")?, node("u1")?, node("h1")?);
        ip(&bridge, &format!("link add br0 mtu {mtu} type bridge"))?;
        ip(&bridge, "link set br0 up")?;
        let mut wires = Vec::new();
        for end in [&fabric, &unit, &host] {
            let wire = rig.join(&bridge, end, mtu)?;
            ip(&bridge, &format!("link set {wire} master br0"))?;
            wires.push(wire);
        }
        ip(&unit, &format!("address add 192.0.2.1/24 dev {}", wires[1]))?;
        ip(&host, &format!("address add 192.0.2.2/24 dev {}", wires[2]))?;
        let mut nbdkit = Command::new("nbdkit");
        nbdkit.args([
            "--foreground",
            "--exit-with-parent",
            "--ipaddr=192.0.2.1",
            "memory",
        ]);
        unit.spawn(nbdkit.arg(format!("{SIZE_MIB}M")))?;
        let config = format!(
            "name = \"u1\"\ncluster = \"A\"\n[[controller]]\nnumber = 1\nname = \"c1\"\n\
             [[controller.device]]\nnumber = 1\nname = \"d1\"\nbackend = \"memory\"\nsize = \"{SIZE_MIB}MiB\"\n"
        );
        let policy = "policy = \"auto-join\"\n";
        let fabric = Daemon::start_on(&rig, fabric, Program::Fabric, &wires[0], policy)?;
        let unit = Daemon::start_on(&rig, unit, Program::Unit, &wires[1], &config)?;
        let config = "name = \"h1\"\ncluster = \"A\"\n";
        let daemon = Daemon::start_on(&rig, host.clone(), Program::Host, &wires[2], config)?;
        daemon.wait_for(PATIENCE, &["status"], "its table", |s| {
            s["block"] == 0 && s["device_count"] == 1
        })?;
        for target in ["u1", "c1", "d1"] {
            let output = daemon.rma(&["allocate", target, "--to", "h1"])?;
            if !output.status.success() {
                return Err(output.stderr.into());
            }
        }
        let socket = daemon.wait_export(PATIENCE, "d1")?;
        let theirs = "nbd://192.0.2.1/".to_owned();
        wait_until(PATIENCE, "nbdkit to answer", || {
            let mut info = Command::new("nbdinfo");
            host.run(info.args(["--size", &theirs]), PATIENCE)
                .is_ok_and(|o| o.status.success())
        })?;
        Ok(Self {
            host,
            rmad: 2,
            ours: format!("nbd+unix:///?socket={}", socket.display()),
            theirs,
            daemons: vec![fabric, unit, daemon],
            _bridge: bridge,
            _rig: rig,
        })
    }

    /// Load made inside `rmad`.
    fn measure_own(&self, workload: &Workload, seconds: u32) -> Result<f64> {
        let seconds = seconds.to_string();
        let args = [
            "bench",
            "d1",
            "--destroy-data",
            "--ramp=0",
            "--rw",
            workload.rw,
            "--bs",
            workload.bs,
            "--depth",
            workload.depth,
            "--seconds",
            &seconds,
        ];
        let value = self.daemons[self.rmad]
            .json(&args)
            .ok_or("rma bench failed")?;
        let key = if workload.is_bytes {
            "bytes_per_second"
        } else {
            "iops"
        };
        Ok(value[key].as_f64().ok_or("rma bench tells no figure")?)
    }

    /// fio on an NBD server.
    fn measure(&self, uri: &str, workload: &Workload, seconds: u32) -> Result<f64> {
        let mut fio = Command::new("fio");
        fio.args([
            "--name=bench",
            "--ioengine=nbd",
            "--output-format=json",
            "--time_based",
        ])
        .arg(format!("--uri={uri}"))
        .arg(format!("--runtime={seconds}"))
        .arg(format!("--size={SIZE_MIB}m"))
        .arg(format!("--rw={}", workload.rw))
        .arg(format!("--bs={}", workload.bs))
        .arg(format!("--iodepth={}", workload.depth));
        let output = self
            .host
            .run(&mut fio, PATIENCE + Duration::from_secs(seconds.into()))?;
        // fio's nbd engine prints a line of its own before the JSON.
        let start = output
            .stdout
            .find('{')
            .ok_or_else(|| format!("fio failed: {}", output.stderr))?;
        let value: Value = serde_json::from_str(&output.stdout[start..])?;
        let job = &value["jobs"][0];
        let sum = |key: &str| {
            ["read", "write"]
                .iter()
                .filter_map(|side| job[*side][key].as_f64())
                .sum::<f64>()
        };
        if job["error"] != 0 || sum("iops") == 0.0 {
            return Err(format!("fio failed: {}{}", output.stdout, output.stderr).into());
        }
        Ok(if workload.is_bytes {
            sum("bw_bytes")
        } else {
            sum("iops")
        })
    }
}

fn ip(node: &Node, command: &str) -> Result<()> {
    let output = node.run(Command::new("ip").args(command.split(' ')), PATIENCE)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("ip {command}: {}", output.stderr).into())
    }
}
