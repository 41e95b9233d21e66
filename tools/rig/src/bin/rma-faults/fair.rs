//! 64 devices and 8 hosts on one unit, beside one device and one host: all on a kernel bridge.

use std::process::Command;
use std::time::Duration;

use rma_rig::{Daemon, Node, NodeOptions, Process, Program, Rig, wait_equal_tables};
use serde_json::{Value, json};

use super::stations::{self, Facts, Station};
use super::{Args, Load, Outcome, PATIENCE, Result, bench_args, load};

const HOSTS: usize = 8;
const DEVICES_EACH: usize = 8;
const MTU: u16 = 9000;
/// Of the one device, and of each of the many: as much is under way together.
const DEPTHS: (u32, u32) = (64, 1);
/// Of the many; the one has as many as all of them together, as what is read from a cache is quicker than a disk.
const DEVICE_MIB: usize = 8;
/// Long enough to write every block of a device once.
const FILL_SECONDS: u32 = 3;
const WORKLOADS: [&str; 2] = ["randread", "randwrite"];

struct Bench {
    hosts: Vec<Daemon>,
    _unit: Daemon,
    _fabric: Daemon,
    _bridge: Node,
    _rig: Rig,
}

/// The one device, of the first host.
fn one_device() -> String {
    format!("d{}", HOSTS * DEVICES_EACH + 1)
}

/// A host's devices.
fn devices(host: usize) -> Vec<String> {
    let first = host * DEVICES_EACH + 1;
    (first..first + DEVICES_EACH)
        .map(|n| format!("d{n}"))
        .collect()
}

impl Bench {
    fn start() -> Result<Self> {
        let rig = Rig::new()?;
        let mut names = vec!["bridge".to_owned(), "fabric".into(), "u1".into()];
        names.extend((1..=HOSTS).map(|n| format!("h{n}")));
        let wanted = names.into_iter().map(|n| (n, NodeOptions::default()));
        let nodes = rig.add_nodes(wanted.collect())?;
        let bridge = nodes[0].clone();
        bridge.namespace().ip(&format!(
            "link add br0 mtu {MTU} type bridge\nlink set br0 up\n"
        ))?;
        let mut wires = Vec::new();
        for end in &nodes[1..] {
            let wire = rig.join(&bridge, end, MTU)?;
            bridge
                .namespace()
                .ip(&format!("link set {wire} master br0\n"))?;
            wires.push(wire);
        }
        let mut config =
            "name = \"u1\"\ncluster = \"A\"\n[[controller]]\nnumber = 1\nname = \"c1\"\n"
                .to_owned();
        let many = HOSTS * DEVICES_EACH;
        for number in 1..=many + 1 {
            let mib = if number > many {
                many * DEVICE_MIB
            } else {
                DEVICE_MIB
            };
            config += &format!(
                "[[controller.device]]\nnumber = {number}\nname = \"d{number}\"\nbackend = \"memory\"\nsize = \"{mib}MiB\"\n"
            );
        }
        let start = |at: usize, program, config: &str| {
            Daemon::start_on(&rig, nodes[at].clone(), program, &wires[at - 1], config)
        };
        let fabric = start(1, Program::Fabric, "policy = \"auto-join\"\n")?;
        let unit = start(2, Program::Unit, &config)?;
        let mut hosts = Vec::new();
        for number in 1..=HOSTS {
            let config = format!("name = \"h{number}\"\ncluster = \"A\"\n");
            hosts.push(start(2 + number, Program::Host, &config)?);
        }
        let rows = (HOSTS + 2 + many + 1) as u64;
        wait_equal_tables(PATIENCE, &hosts.iter().collect::<Vec<_>>(), rows)?;
        let all: Vec<String> = (1..=HOSTS).map(|n| format!("h{n}")).collect();
        let all = all.join(",");
        let allocate = |target: &str, to: &str| -> Result<()> {
            let output = hosts[0].rma(&["allocate", target, "--to", to])?;
            if output.status.success() {
                Ok(())
            } else {
                Err(output.stderr.into())
            }
        };
        allocate("u1", &all)?;
        allocate("c1", &all)?;
        allocate(&one_device(), "h1")?;
        for host in 0..HOSTS {
            for device in devices(host) {
                allocate(&device, &format!("h{}", host + 1))?;
            }
        }
        for (at, host) in hosts.iter().enumerate() {
            host.wait_export(PATIENCE, &devices(at)[DEVICES_EACH - 1])?;
        }
        hosts[0].wait_export(PATIENCE, &one_device())?;
        Ok(Self {
            hosts,
            _unit: unit,
            _fabric: fabric,
            _bridge: bridge,
            _rig: rig,
        })
    }

    /// Writes every block once: what was never written is read from nowhere.
    fn fill(&self) -> Result<()> {
        self.load_one("write", "128k", FILL_SECONDS)?;
        self.load_many("write", "128k", FILL_SECONDS)?;
        Ok(())
    }

    /// What the one device got.
    fn load_one(&self, rw: &str, bytes: &str, seconds: u32) -> Result<f64> {
        let (depth, seconds) = (DEPTHS.0.to_string(), seconds.to_string());
        let device = one_device();
        let args = bench_args(&device, rw, bytes, &depth, &seconds);
        Ok(load(&self.hosts[0], &args)?.iops)
    }

    /// What each device got, host by host.
    fn load_many(&self, rw: &str, bytes: &str, seconds: u32) -> Result<Vec<Vec<f64>>> {
        let patience = PATIENCE + Duration::from_secs(seconds.into());
        let (depth, seconds) = (DEPTHS.1.to_string(), seconds.to_string());
        let mut running: Vec<Vec<Process>> = Vec::new();
        for (at, host) in self.hosts.iter().enumerate() {
            let mut own = Vec::new();
            for device in devices(at) {
                let args = bench_args(&device, rw, bytes, &depth, &seconds);
                let mut command: Command = host.rma_command(&args);
                own.push(host.node().spawn(&mut command)?);
            }
            running.push(own);
        }
        let mut loads = Vec::new();
        for own in running {
            let mut of_host = Vec::new();
            for process in own {
                process.wait(patience)?;
                of_host.push(Load::of(&process.log())?.iops);
            }
            loads.push(of_host);
        }
        Ok(loads)
    }

    /// Ends the hosts, and has one thread take the places of all: each with its devices, and behind those of the
    /// first the one device.
    fn replace(&self) -> Result<Vec<Station>> {
        let hosts = self.hosts.iter().enumerate();
        let facts: Vec<Facts> = hosts
            .map(|(at, host)| {
                let one = (at == 0).then(one_device);
                let all: Vec<String> = devices(at).into_iter().chain(one).collect();
                Facts::of(host, &all)
            })
            .collect::<Result<_>>()?;
        for host in &self.hosts {
            host.stop()?;
        }
        let each = self.hosts.iter().zip(facts);
        each.map(|(host, facts)| Station::open(host, facts))
            .collect()
    }
}

/// Jain's index: 1 where all have the same.
fn jain(of: &[f64]) -> f64 {
    let (sum, squares) = of.iter().fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
    sum * sum / (of.len() as f64 * squares.max(1e-9))
}

/// The best of some rounds.
#[derive(Default)]
struct Best {
    kept: f64,
    jain_hosts: f64,
    jain_devices: f64,
    one: f64,
}

impl Best {
    /// Takes a round in: what one device got, and what many got, host by host.
    fn take(&mut self, what: &str, one: f64, many: &[Vec<f64>]) {
        let hosts: Vec<f64> = many.iter().map(|own| own.iter().sum()).collect();
        let sum = hosts.iter().sum::<f64>();
        let round = Self {
            kept: sum / one,
            jain_hosts: jain(&hosts),
            jain_devices: jain(&many.concat()),
            one,
        };
        eprintln!(
            "{what}: one host and device {one:.0}/s, {HOSTS} hosts and {} devices {sum:.0}/s, Jain {:.3} of hosts, \
             {:.3} of devices",
            HOSTS * DEVICES_EACH,
            round.jain_hosts,
            round.jain_devices
        );
        if round.kept > self.kept {
            *self = round;
        }
    }

    /// Its figures, and its bars.
    fn tell(&self, what: &str, hosts: &str, rows: &mut Vec<Value>, bars: &mut Vec<(String, bool)>) {
        let (kept, fair, fair_devices) = (self.kept, self.jain_hosts, self.jain_devices);
        bars.push((
            format!("{what}: {kept:.2} of one host's and device's throughput (0.85)"),
            kept >= 0.85,
        ));
        bars.push((
            format!("{what}: Jain {fair:.3} of hosts (0.95)"),
            fair >= 0.95,
        ));
        bars.push((
            format!("{what}: Jain {fair_devices:.3} of devices (0.95)"),
            fair_devices >= 0.95,
        ));
        rows.push(json!({
            "workload": what, "hosts": hosts, "one_iops": self.one, "kept": kept, "jain_hosts": fair,
            "jain_devices": fair_devices,
        }));
    }
}

/// Twice: with a `rmad` for each host, so that nine busy processes share the processors, and with the hosts in one
/// thread, which shows the unit.
pub(super) fn measure(args: &Args) -> Result<Outcome> {
    let bench = Bench::start()?;
    bench.fill()?;
    // The first second is not measured, and loads do not begin at the same moment: long enough not to matter.
    let seconds = args.seconds.max(3);
    let rounds = args.rounds.max(1);
    let (mut rows, mut bars) = (Vec::new(), Vec::new());
    for rw in WORKLOADS {
        let mut best = Best::default();
        for _ in 0..rounds {
            let one = bench.load_one(rw, "4k", seconds)?;
            best.take(rw, one, &bench.load_many(rw, "4k", seconds)?);
        }
        best.tell(rw, "processes", &mut rows, &mut bars);
    }
    let mut stations = bench.replace()?;
    for rw in WORKLOADS {
        let what = format!("{rw}, hosts in one thread");
        let mut best = Best::default();
        for _ in 0..rounds {
            let one = DEVICES_EACH..DEVICES_EACH + 1;
            let one = stations::run(&mut stations[..1], one, rw, DEPTHS.0, seconds)?;
            let many = 0..DEVICES_EACH;
            let many = stations::run(&mut stations, many, rw, DEPTHS.1, seconds)?;
            best.take(&what, one[0][0], &many);
        }
        best.tell(&what, "one thread", &mut rows, &mut bars);
    }
    Ok(("fair", json!(rows), bars))
}
