//! Owned devices beside NBD, iSCSI and AoE and beside raw frames, in one run, on one veth pair: load made
//! inside `rmad`, fio on NBD servers, and a program that only moves frames.

mod aoe;
mod ceiling;
mod figures;
mod iscsi;
mod page;
mod peers;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Parser;
use rma_rig::{Daemon, Node, NodeOptions, Process, Program, Rig};
use serde_json::json;

use ceiling::Shape;
use figures::{Candidate, Figure, Row};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Owned devices, nbdkit, iSCSI, AoE and raw frames, in turn, on the same wire
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
    /// What is behind the devices
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Backend::ALL)]
    backends: Vec<Backend>,
    /// Do not write memory before it is read; files are always
    #[arg(long)]
    empty: bool,
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

/// What is behind a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Backend {
    /// Memory of the server
    Memory,
    /// A file in the directory for temporary files
    File,
}

impl Backend {
    const ALL: [Self; 2] = [Self::Memory, Self::File];

    const fn device(self) -> &'static str {
        match self {
            Self::Memory => "d1",
            Self::File => "d2",
        }
    }

    /// A wire is told apart by memory; with a file it is the disk that counts, at one MTU.
    fn has(self, mtu: u16, args: &Args) -> bool {
        self == Self::Memory || args.mtu.first() == Some(&mtu)
    }

    fn can(self, candidate: Candidate) -> bool {
        // Frames have nothing behind them.
        self == Self::Memory || candidate != Candidate::Ceiling
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::File => "file",
        })
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
    // What would be in vain is found out before, not after all measurements.
    for path in args.json.iter().chain(&args.page) {
        let place = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        if let Some(dir) = place.filter(|dir| !dir.is_dir()) {
            return Err(format!("{}: there is no such directory", dir.display()).into());
        }
    }
    let mut rows = Vec::new();
    println!("{}", Row::HEADING);
    for mtu in &args.mtu {
        let bench = Bench::start(*mtu)?;
        bench.fill(!args.empty)?;
        for backend in args.backends.iter().filter(|b| b.has(*mtu, args)) {
            let wanted = WORKLOADS.iter().filter(|w| w.name.contains(&args.only));
            for workload in wanted {
                let row = bench.row(*backend, workload, args)?;
                println!("{row}");
                rows.push(row);
            }
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

/// A backend's servers that ours is compared with.
struct Peers {
    /// Our NBD socket.
    ours: String,
    nbdkit: (String, Process),
    nbdkit_unix: (String, Process),
    iscsi: Option<iscsi::Target>,
    /// vblade runs.
    vblade: Option<Process>,
}

struct Bench {
    host: Node,
    /// The host's place among the daemons.
    rmad: usize,
    memory: Peers,
    file: Peers,
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
             [[controller.device]]\nnumber = 1\nname = \"d1\"\nbackend = \"memory\"\nsize = \"{SIZE_MIB}MiB\"\n\
             [[controller.device]]\nnumber = 2\nname = \"d2\"\nbackend = \"file\"\npath = \"{}\"\nsize = \"{SIZE_MIB}MiB\"\n",
            rig.directory().join("ours.img").display()
        );
        let policy = "policy = \"auto-join\"\n";
        let fabric = Daemon::start_on(&rig, fabric, Program::Fabric, &wires[0], policy)?;
        let unit_daemon = Daemon::start_on(&rig, unit.clone(), Program::Unit, &wires[1], &config)?;
        let config = "name = \"h1\"\ncluster = \"A\"\n";
        let daemon = Daemon::start_on(&rig, host.clone(), Program::Host, &wires[2], config)?;
        daemon.wait_for(PATIENCE, &["status"], "its table", |s| {
            s["block"] == 0 && s["device_count"] == 2
        })?;
        for target in ["u1", "c1", "d1", "d2"] {
            let output = daemon.rma(&["allocate", target, "--to", "h1"])?;
            if !output.status.success() {
                return Err(output.stderr.into());
            }
        }
        let sockets = ["d1", "d2"].map(|device| daemon.wait_export(PATIENCE, device));
        let [memory, file] = sockets;
        let sockets = (memory?, file?);
        let wires = (wires[2].clone(), wires[1].clone());
        replug(&bridge, (&host, &wires.0), (&unit, &wires.1), mtu)?;
        let place = (&unit, &host, rig.directory());
        let memory = peers::start(place, &wires.1, Backend::Memory, &sockets.0)?;
        let file = peers::start(place, &wires.1, Backend::File, &sockets.1)?;
        let up = |s: &serde_json::Value| {
            let exports = s["exports"].as_array();
            exports.is_some_and(|all| all.len() == 2 && all.iter().all(|e| e["state"] == "up"))
        };
        daemon.wait_for(PATIENCE, &["exports"], "its devices again", up)?;
        Ok(Self {
            host,
            unit,
            wires,
            mtu,
            rmad: 2,
            memory,
            file,
            daemons: vec![fabric, unit_daemon, daemon],
            _bridge: bridge,
            _rig: rig,
        })
    }

    /// Writes every device once, or only those with files: memory that was never written is not read either.
    fn fill(&self, memory: bool) -> Result<()> {
        let fill = Workload {
            name: "fill",
            rw: "write",
            bytes: 1 << 20,
            depth: 4,
            is_bytes: true,
        };
        let wanted = Backend::ALL.into_iter();
        for backend in wanted.filter(|b| memory || *b == Backend::File) {
            let peers = self.peers(backend);
            for uri in [&peers.ours, &peers.nbdkit.0, &peers.nbdkit_unix.0] {
                peers::fio(&self.host, uri, &fill, None)?;
            }
        }
        Ok(())
    }

    const fn peers(&self, backend: Backend) -> &Peers {
        match backend {
            Backend::Memory => &self.memory,
            Backend::File => &self.file,
        }
    }

    fn row(&self, backend: Backend, workload: &Workload, args: &Args) -> Result<Row> {
        let mut row = Row::new(workload, self.mtu, backend);
        for _ in 0..args.rounds.max(1) {
            for candidate in args.candidates.iter().filter(|c| backend.can(**c)) {
                if let Some(figure) = self.measure(*candidate, backend, workload, args.seconds)? {
                    row.add(*candidate, figure);
                }
            }
        }
        Ok(row)
    }

    /// Measures one; nothing where it is not there.
    fn measure(
        &self,
        candidate: Candidate,
        backend: Backend,
        workload: &Workload,
        seconds: u32,
    ) -> Result<Option<Figure>> {
        let own = [&self.daemons[self.rmad], &self.daemons[1]];
        let own: Vec<u32> = own.iter().filter_map(|d| d.pid()).collect();
        let peers = self.peers(backend);
        let time = Duration::from_secs(seconds.into());
        let (host, wires) = (&self.host, (&*self.wires.0, &*self.wires.1));
        let nbd = |uri: &str, pids: &[u32]| peers::measure_nbd(host, uri, pids, workload, seconds);
        Ok(Some(match candidate {
            Candidate::Ours => {
                let daemon = &self.daemons[self.rmad];
                peers::measure_own(daemon, backend.device(), &own, workload, seconds)?
            }
            Candidate::OursNbd => nbd(&peers.ours, &own)?,
            Candidate::NbdkitTcp => nbd(&peers.nbdkit.0, &[peers.nbdkit.1.pid()])?,
            Candidate::NbdkitUnix => nbd(&peers.nbdkit_unix.0, &[peers.nbdkit_unix.1.pid()])?,
            Candidate::Iscsi => match &peers.iscsi {
                None => return Ok(None),
                Some(target) => Figure::of(workload, target.measure(host, workload, time)?),
            },
            Candidate::Aoe => {
                if peers.vblade.is_none() {
                    return Ok(None);
                }
                let end = (host, wires.0);
                let to = mac((&self.unit, wires.1))?.parse()?;
                let rate = aoe::measure(end, to, workload, self.mtu, time)?;
                Figure::of(workload, rate)
            }
            Candidate::Ceiling => {
                let shape = Shape::of(workload.is_read(), workload.bytes as usize, self.mtu);
                let depth = workload.depth as usize;
                let moved = ceiling::measure((host, &self.unit), wires, &shape, depth, time)?;
                Figure::of(workload, moved.ios_per_second)
            }
        }))
    }
}

/// The address of an interface of a node.
fn mac((node, wire): (&Node, &str)) -> Result<String> {
    let mut show = Command::new("ip");
    let output = node.run(show.args(["-o", "link", "show", wire]), PATIENCE)?;
    let words: Vec<&str> = output.stdout.split_whitespace().collect();
    let at = words.iter().position(|w| *w == "link/ether");
    let word = at.and_then(|at| words.get(at + 1));
    Ok((*word.ok_or("an interface without an address")?).to_owned())
}

/// Takes a host and a unit off the bridge and puts a veth pair between them, under the same names and
/// addresses: the daemons' sockets follow their interfaces.
fn replug(bridge: &Node, host: (&Node, &str), unit: (&Node, &str), mtu: u16) -> Result<()> {
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
