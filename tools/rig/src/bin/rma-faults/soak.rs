//! fio verifies what it has written, through NBD sockets, while frames are lost, repeated, reordered, damaged
//! and too long, cables are pulled, NICs die without a word and units are killed.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use rma_rig::{Daemon, Faults, NodeOptions, Process, Program, Rig, station, wait_equal_tables};
use serde_json::{Value, json};

use super::{Args, Outcome, PATIENCE, Result};

const SIZE_MIB: u32 = 32;
const UNITS: u32 = 2;
const HOSTS: u32 = 2;
/// The longest pause between two things that happen.
const PAUSE: Duration = Duration::from_millis(1500);

struct World {
    units: Vec<Daemon>,
    hosts: Vec<Daemon>,
    _fabric: Daemon,
    rig: Rig,
}

impl World {
    /// Each host owns a device of each unit; all have two NICs.
    fn start() -> Result<Self> {
        let rig = Rig::new()?;
        let node = |name: &str, number: u32| {
            let nics = NodeOptions::new(station(number)).nic(station(number + 1));
            rig.add_node(name, nics.mtu(9000))
        };
        let fabric = rig.add_node("fabric", NodeOptions::new(station(1)))?;
        let fabric = Daemon::start(&rig, fabric, Program::Fabric, "policy = \"auto-join\"\n")?;
        let mut units = Vec::new();
        for unit in 1..=UNITS {
            let mut config = format!(
                "name = \"u{unit}\"\ncluster = \"A\"\n[[controller]]\nnumber = 1\nname = \"u{unit}c1\"\n"
            );
            for number in 1..=HOSTS {
                let path = rig.directory().join(format!("u{unit}d{number}.img"));
                config += &format!(
                    "[[controller.device]]\nnumber = {number}\nname = \"u{unit}d{number}\"\nbackend = \"file\"\n\
                     path = \"{}\"\nsize = \"{SIZE_MIB}MiB\"\n",
                    path.display()
                );
            }
            let node = node(&format!("u{unit}"), 10 * unit)?;
            units.push(Daemon::start_on(
                &rig,
                node,
                Program::Unit,
                "eth0,eth1",
                &config,
            )?);
        }
        let mut hosts = Vec::new();
        for host in 1..=HOSTS {
            let config = format!("name = \"h{host}\"\ncluster = \"A\"\n");
            let node = node(&format!("h{host}"), 1000 + 10 * host)?;
            hosts.push(Daemon::start_on(
                &rig,
                node,
                Program::Host,
                "eth0,eth1",
                &config,
            )?);
        }
        let rows = u64::from(HOSTS + UNITS * (2 + HOSTS));
        wait_equal_tables(PATIENCE, &hosts.iter().collect::<Vec<_>>(), rows)?;
        for unit in 1..=UNITS {
            for (target, to) in [
                (format!("u{unit}"), "h1,h2"),
                (format!("u{unit}c1"), "h1,h2"),
            ] {
                allocate(&hosts[0], &target, to)?;
            }
            for number in 1..=HOSTS {
                allocate(
                    &hosts[0],
                    &format!("u{unit}d{number}"),
                    &format!("h{number}"),
                )?;
            }
        }
        Ok(Self {
            units,
            hosts,
            _fabric: fabric,
            rig,
        })
    }

    /// A verifying fio on each device.
    fn jobs(&self, seconds: u64) -> Result<Vec<(String, Process)>> {
        let mut jobs = Vec::new();
        for (at, host) in self.hosts.iter().enumerate() {
            for unit in 1..=UNITS {
                let device = format!("u{unit}d{}", at + 1);
                let socket = host.wait_export(PATIENCE, &device)?;
                let mut fio = Command::new("fio");
                fio.args([
                    "--name=soak",
                    "--ioengine=nbd",
                    "--output-format=json",
                    "--time_based",
                    "--rw=randrw",
                    "--bsrange=4k-64k",
                    "--iodepth=8",
                    "--verify=crc32c",
                    "--verify_backlog=512",
                    "--verify_fatal=1",
                    "--verify_state_save=0",
                    "--fsync=500",
                    "--randrepeat=0",
                ])
                .arg(format!("--uri=nbd+unix:///?socket={}", socket.display()))
                .arg(format!("--runtime={seconds}"))
                .arg(format!("--size={SIZE_MIB}m"));
                jobs.push((device, host.node().spawn(&mut fio)?));
            }
        }
        Ok(jobs)
    }

    /// Something happens; what.
    fn strike(&self, rng: &mut fastrand::Rng) -> Result<&'static str> {
        let switch = self.rig.switch();
        let daemons = || self.units.iter().chain(&self.hosts);
        let any = rng.usize(0..self.units.len() + self.hosts.len());
        let node = daemons().nth(any).ok_or("a daemon")?.node();
        let nic = rng.usize(0..2);
        let pause =
            |rng: &mut fastrand::Rng| rma_rig::pause(Duration::from_millis(rng.u64(50..1500)));
        Ok(match rng.u8(0..8) {
            0..=2 => {
                let up_to = |rng: &mut fastrand::Rng, most: u32| rng.u32(0..=most);
                switch.set_faults(Faults {
                    loss_ppm: up_to(rng, 50_000),
                    duplicate_ppm: up_to(rng, 50_000),
                    reorder_ppm: up_to(rng, 100_000),
                    corrupt_ppm: up_to(rng, 10_000),
                    reorder_within: Duration::from_micros(rng.u64(100..5000)),
                    black_hole_above: (rng.u8(0..4) == 0).then_some(1500),
                    ..Faults::default()
                })?;
                "faulty wire"
            }
            3 => {
                switch.set_faults(Faults::default())?;
                "good wire"
            }
            4 | 5 => {
                node.nic_link_down(nic)?;
                pause(rng);
                node.nic_link_up(nic)?;
                "link flap"
            }
            6 => {
                let dead = Faults {
                    loss_ppm: 1_000_000,
                    ..Faults::default()
                };
                switch.set_nic_faults(node, nic, dead)?;
                pause(rng);
                switch.set_nic_faults(node, nic, Faults::default())?;
                "silent NIC"
            }
            _ => {
                let unit = &self.units[rng.usize(0..self.units.len())];
                unit.kill9()?;
                pause(rng);
                unit.restart()?;
                "unit killed"
            }
        })
    }
}

fn allocate(host: &Daemon, target: &str, to: &str) -> Result<()> {
    let output = host.rma(&["allocate", target, "--to", to])?;
    if output.status.success() {
        Ok(())
    } else {
        Err(output.stderr.into())
    }
}

/// I/Os done, and what went wrong.
fn result_of(device: &str, process: &Process) -> Result<(u64, Option<String>)> {
    let status = process.wait(PATIENCE)?;
    let log = process.log();
    let value = log.find('{').and_then(|start| {
        let mut values = serde_json::Deserializer::from_str(&log[start..]).into_iter::<Value>();
        values.next()?.ok()
    });
    let Some(value) = value else {
        return Ok((0, Some(format!("{device}: {log}"))));
    };
    let job = &value["jobs"][0];
    let ios = ["read", "write"].map(|side| job[side]["total_ios"].as_u64().unwrap_or(0));
    let failed = !status.success() || job["error"] != 0;
    Ok((ios.iter().sum(), failed.then(|| format!("{device}: {log}"))))
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let world = World::start()?;
    let seconds = (args.minutes * 60.0).ceil() as u64;
    let jobs = world.jobs(seconds)?;
    let mut rng = fastrand::Rng::with_seed(args.seed);
    let mut struck: BTreeMap<&str, u64> = BTreeMap::new();
    let begun = Instant::now();
    let mut said = Instant::now();
    while begun.elapsed() + Duration::from_secs(3) < Duration::from_secs(seconds) {
        *struck.entry(world.strike(&mut rng)?).or_default() += 1;
        rma_rig::pause(PAUSE.mul_f64(rng.f64()));
        if said.elapsed() >= Duration::from_secs(60) {
            said = Instant::now();
            eprintln!(
                "soak: {:.0} minutes, {struck:?}",
                begun.elapsed().as_secs_f64() / 60.0
            );
        }
        for (device, process) in &jobs {
            if begun.elapsed() < Duration::from_secs(seconds) && process.exited()?.is_some() {
                return Err(format!("{device}: fio has ended early: {}", process.log()).into());
            }
        }
    }
    world.rig.switch().set_faults(Faults::default())?;
    let (mut ios, mut failures) = (0, Vec::new());
    for (device, process) in &jobs {
        let (done, failed) = result_of(device, process)?;
        ios += done;
        failures.extend(failed);
    }
    for failure in &failures {
        eprintln!("soak: {failure}");
    }
    let bars = vec![
        (
            format!(
                "{ios} I/Os of {} jobs in {seconds} s verified, {} failed (0)",
                jobs.len(),
                failures.len()
            ),
            failures.is_empty(),
        ),
        (format!("{struck:?}"), !struck.is_empty()),
    ];
    let value = json!({
        "seconds": seconds, "seed": args.seed, "ios": ios, "failed_jobs": failures.len(), "struck": struck,
    });
    Ok(("soak", value, bars))
}
