//! Owned devices beside NBD over TCP and beside raw frames, in one run, on one veth pair: load made inside
//! `rmad`, fio on both servers, and a program that only moves frames.

mod ceiling;
mod figures;
mod page;
mod peers;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Parser;
use rma_rig::{Daemon, Node, NodeOptions, Process, Program, Rig, wait_until};
use serde_json::json;

use ceiling::Shape;
use figures::{Candidate, Figure, Row};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Owned devices, nbdkit over TCP and over a UNIX socket, and raw frames, in turn, on the same wire
#[derive(Debug, Parser)]
struct Args {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Rounds; medians are printed
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// MTUs to measure at
    #[arg(long, value_delimiter = ',', default_values_t = [9000, 1500])]
    mtu: Vec<u16>,
    /// Only workloads whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Candidate::ALL)]
    candidates: Vec<Candidate>,
    /// Write the rows as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with a table, and plots beside it
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
}

const PATIENCE: Duration = Duration::from_secs(30);
const SIZE_MIB: u32 = 256;

/// What is measured, in the words that fio and `rma bench` share.
struct Workload {
    name: &'static str,
    rw: &'static str,
    bytes: u32,
    depth: u32,
    /// Whether bytes per second count rather than operations.
    is_bytes: bool,
}

impl Workload {
    fn is_read(&self) -> bool {
        self.rw.ends_with("read")
    }
}

const WORKLOADS: [Workload; 5] = [
    Workload {
        name: "4 KiB random read, depth 1",
        rw: "randread",
        bytes: 4 << 10,
        depth: 1,
        is_bytes: false,
    },
    Workload {
        name: "4 KiB random read, depth 32",
        rw: "randread",
        bytes: 4 << 10,
        depth: 32,
        is_bytes: false,
    },
    Workload {
        name: "4 KiB random write, depth 32",
        rw: "randwrite",
        bytes: 4 << 10,
        depth: 32,
        is_bytes: false,
    },
    Workload {
        name: "128 KiB sequential read, depth 8",
        rw: "read",
        bytes: 128 << 10,
        depth: 8,
        is_bytes: true,
    },
    Workload {
        name: "128 KiB sequential write, depth 8",
        rw: "write",
        bytes: 128 << 10,
        depth: 8,
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
    println!("{}", Row::HEADING);
    for mtu in &args.mtu {
        let bench = Bench::start(*mtu)?;
        let wanted = WORKLOADS.iter().filter(|w| w.name.contains(&args.only));
        for workload in wanted {
            let mut row = Row::new(workload.name, *mtu, workload.is_bytes);
            for _ in 0..args.rounds.max(1) {
                for candidate in &args.candidates {
                    let figure = bench.measure(*candidate, workload, args.seconds)?;
                    row.add(*candidate, figure);
                }
            }
            println!("{row}");
            rows.push(row);
        }
    }
    if let Some(path) = &args.json {
        fs::write(
            path,
            serde_json::to_string_pretty(&json!({
                "rows": rows.iter().map(Row::to_json).collect::<Vec<_>>()
            }))?,
        )?;
    }
    if let Some(page) = &args.page {
        page::write(page, &rows, args)?;
    }
    Ok(())
}

struct Bench {
    host: Node,
    /// The host's place among the daemons.
    rmad: usize,
    ours: String,
    theirs: String,
    theirs_unix: String,
    nbdkit: Process,
    nbdkit_unix: Process,
    daemons: Vec<Daemon>,
    unit: Node,
    /// The ends of the wire: the host's, the unit's.
    wires: (String, String),
    mtu: u16,
    /// A namespace without processes lasts as long as its node.
    _bridge: Node,
    _rig: Rig,
}

impl Bench {
    /// Fabric services, a unit and a host on one kernel bridge until the host owns the unit's device; then
    /// host and unit on a veth pair. The unit's node also runs nbdkit.
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
        let config = format!(
            "name = \"u1\"\ncluster = \"A\"\n[[controller]]\nnumber = 1\nname = \"c1\"\n\
             [[controller.device]]\nnumber = 1\nname = \"d1\"\nbackend = \"memory\"\nsize = \"{SIZE_MIB}MiB\"\n"
        );
        let policy = "policy = \"auto-join\"\n";
        let fabric = Daemon::start_on(&rig, fabric, Program::Fabric, &wires[0], policy)?;
        let unit_daemon = Daemon::start_on(&rig, unit.clone(), Program::Unit, &wires[1], &config)?;
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
        let wires = (wires[2].clone(), wires[1].clone());
        replug(&bridge, (&host, &wires.0), (&unit, &wires.1), mtu)?;
        let theirs = "nbd://192.0.2.1/".to_owned();
        let nbdkit = peers::nbdkit(&unit, "--ipaddr=192.0.2.1")?;
        let path = rig.directory().join("nbdkit.sock");
        let nbdkit_unix = peers::nbdkit(&unit, &format!("--unix={}", path.display()))?;
        wait_until(PATIENCE, "nbdkit to answer", || {
            let mut info = Command::new("nbdinfo");
            host.run(info.args(["--size", &theirs]), PATIENCE)
                .is_ok_and(|o| o.status.success())
        })?;
        let up = |s: &serde_json::Value| s["exports"][0]["state"] == "up";
        daemon.wait_for(PATIENCE, &["exports"], "its device again", up)?;
        Ok(Self {
            host,
            unit,
            wires,
            mtu,
            rmad: 2,
            ours: format!("nbd+unix:///?socket={}", socket.display()),
            theirs,
            theirs_unix: format!("nbd+unix:///?socket={}", path.display()),
            nbdkit,
            nbdkit_unix,
            daemons: vec![fabric, unit_daemon, daemon],
            _bridge: bridge,
            _rig: rig,
        })
    }

    fn measure(&self, candidate: Candidate, workload: &Workload, seconds: u32) -> Result<Figure> {
        let own = [&self.daemons[self.rmad], &self.daemons[1]];
        let own: Vec<u32> = own.iter().filter_map(|d| d.pid()).collect();
        match candidate {
            Candidate::Ours => {
                let daemon = &self.daemons[self.rmad];
                peers::measure_own(daemon, &own, workload, seconds)
            }
            Candidate::OursNbd => {
                peers::measure_nbd(&self.host, &self.ours, &own, workload, seconds)
            }
            Candidate::NbdkitTcp => {
                let pid = [self.nbdkit.pid()];
                peers::measure_nbd(&self.host, &self.theirs, &pid, workload, seconds)
            }
            Candidate::NbdkitUnix => {
                let pid = [self.nbdkit_unix.pid()];
                peers::measure_nbd(&self.host, &self.theirs_unix, &pid, workload, seconds)
            }
            Candidate::Ceiling => {
                let shape = Shape::of(workload.is_read(), workload.bytes as usize, self.mtu);
                let moved = ceiling::measure(
                    (&self.host, &self.unit),
                    (&self.wires.0, &self.wires.1),
                    &shape,
                    workload.depth as usize,
                    Duration::from_secs(seconds.into()),
                )?;
                Ok(Figure::of(workload, moved.ios_per_second))
            }
        }
    }
}

/// Takes a host and a unit off the bridge and puts a veth pair between them, under the same names and
/// addresses: the daemons' sockets follow their interfaces.
fn replug(bridge: &Node, host: (&Node, &str), unit: (&Node, &str), mtu: u16) -> Result<()> {
    let mac = |(node, wire): (&Node, &str)| -> Result<String> {
        let mut show = Command::new("ip");
        let output = node.run(show.args(["-o", "link", "show", wire]), PATIENCE)?;
        let words: Vec<&str> = output.stdout.split_whitespace().collect();
        let at = words.iter().position(|w| *w == "link/ether");
        let word = at.and_then(|at| words.get(at + 1));
        Ok((*word.ok_or("an interface without an address")?).to_owned())
    };
    let macs = (mac(host)?, mac(unit)?);
    for (_, wire) in [host, unit] {
        ip(bridge, &format!("link delete {wire}"))?;
    }
    let plug = format!(
        "link add {} mtu {mtu} address {} up type veth peer name {} mtu {mtu} address {} netns {}",
        host.1,
        macs.0,
        unit.1,
        macs.1,
        unit.0.namespace().path()
    );
    ip(host.0, &plug)?;
    ip(unit.0, &format!("link set {} up", unit.1))?;
    ip(unit.0, &format!("address add 192.0.2.1/24 dev {}", unit.1))?;
    ip(host.0, &format!("address add 192.0.2.2/24 dev {}", host.1))
}

fn ip(node: &Node, command: &str) -> Result<()> {
    let output = node.run(Command::new("ip").args(command.split(' ')), PATIENCE)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("ip {command}: {}", output.stderr).into())
    }
}
