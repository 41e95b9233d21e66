//! 64 devices and 8 hosts on one unit, beside one device and one host: all on a kernel bridge.

use std::process::Command;
use std::time::Duration;

use rma_rig::{Daemon, Node, NodeOptions, Process, Program, Rig, wait_equal_tables};
use serde_json::json;

use super::{Args, Load, Outcome, PATIENCE, Result, bench_args, load};

const HOSTS: usize = 8;
const DEVICES_EACH: usize = 8;
const MTU: u16 = 9000;
/// Of the one device, and of each of the many: as much is under way together.
const DEPTHS: (&str, &str) = ("64", "1");

struct Bench {
    hosts: Vec<Daemon>,
    _unit: Daemon,
    _fabric: Daemon,
    _bridge: Node,
    _rig: Rig,
}

fn device(host: usize, number: usize) -> String {
    format!("d{}", host * DEVICES_EACH + number + 1)
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
        for number in 1..=HOSTS * DEVICES_EACH {
            config += &format!(
                "[[controller.device]]\nnumber = {number}\nname = \"d{number}\"\nbackend = \"memory\"\nsize = \"8MiB\"\n"
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
        let rows = (HOSTS + 2 + HOSTS * DEVICES_EACH) as u64;
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
        for host in 0..HOSTS {
            for number in 0..DEVICES_EACH {
                allocate(&device(host, number), &format!("h{}", host + 1))?;
            }
        }
        for (at, host) in hosts.iter().enumerate() {
            host.wait_export(PATIENCE, &device(at, DEVICES_EACH - 1))?;
        }
        Ok(Self {
            hosts,
            _unit: unit,
            _fabric: fabric,
            _bridge: bridge,
            _rig: rig,
        })
    }

    fn one(&self, rw: &str, seconds: &str) -> Result<Load> {
        load(
            &self.hosts[0],
            &bench_args("d1", rw, "4k", DEPTHS.0, seconds),
        )
    }

    /// What each device got, host by host.
    fn many(&self, rw: &str, seconds: &str) -> Result<Vec<Vec<Load>>> {
        let mut running: Vec<Vec<Process>> = Vec::new();
        for (at, host) in self.hosts.iter().enumerate() {
            let mut own = Vec::new();
            for number in 0..DEVICES_EACH {
                let device = device(at, number);
                let args = bench_args(&device, rw, "4k", DEPTHS.1, seconds);
                let mut command: Command = host.rma_command(&args);
                own.push(host.node().spawn(&mut command)?);
            }
            running.push(own);
        }
        let mut loads = Vec::new();
        for own in running {
            let mut of_host = Vec::new();
            for process in own {
                process.wait(PATIENCE + Duration::from_secs(seconds.parse()?))?;
                of_host.push(Load::of(&process.log())?);
            }
            loads.push(of_host);
        }
        Ok(loads)
    }
}

/// Jain's index: 1 where all have the same.
fn jain(of: &[f64]) -> f64 {
    let (sum, squares) = of.iter().fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
    sum * sum / (of.len() as f64 * squares.max(1e-9))
}

pub(super) fn measure(args: &Args) -> Result<Outcome> {
    let bench = Bench::start()?;
    // The first second is not measured, and loads do not begin at the same moment: long enough not to matter.
    let seconds = args.seconds.max(3).to_string();
    let mut rows = Vec::new();
    let mut bars = Vec::new();
    for rw in ["randread", "randwrite"] {
        let mut best = (0.0, 0.0, 0.0, 0.0);
        for _ in 0..args.rounds.max(1) {
            let one = bench.one(rw, &seconds)?.iops;
            let many = bench.many(rw, &seconds)?;
            let hosts: Vec<f64> = many
                .iter()
                .map(|own| own.iter().map(|l| l.iops).sum())
                .collect();
            let devices: Vec<f64> = many.iter().flatten().map(|l| l.iops).collect();
            let (sum, fair, fair_devices) =
                (hosts.iter().sum::<f64>(), jain(&hosts), jain(&devices));
            eprintln!(
                "{rw}: one host and device {one:.0}/s, {HOSTS} hosts and {} devices {sum:.0}/s, Jain {fair:.3} \
                 of hosts, {fair_devices:.3} of devices",
                HOSTS * DEVICES_EACH
            );
            if sum / one > best.0 {
                best = (sum / one, fair, fair_devices, one);
            }
        }
        let (kept, fair, fair_devices, one) = best;
        bars.push((
            format!("{rw}: {kept:.2} of one host's and device's throughput (0.85)"),
            kept >= 0.85,
        ));
        bars.push((
            format!("{rw}: Jain {fair:.3} of hosts (0.95)"),
            fair >= 0.95,
        ));
        bars.push((
            format!("{rw}: Jain {fair_devices:.3} of devices (0.95)"),
            fair_devices >= 0.95,
        ));
        rows.push(json!({
            "workload": rw, "one_iops": one, "kept": kept, "jain_hosts": fair, "jain_devices": fair_devices,
        }));
    }
    Ok(("fair", json!(rows), bars))
}
