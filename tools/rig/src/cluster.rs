//! Whole clusters of a regular shape: fabric services, units with controllers and devices, hosts.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::{Daemon, Node, NodeOptions, Program, Rig, RigError, station, wait_equal_tables};

/// The shape of a cluster. Names: hosts `h1` …, units `u1` …, controllers `u1c1` …, devices `u1c1d1` ….
#[derive(Debug, Clone)]
pub struct Plan {
    /// Hosts.
    pub hosts: usize,
    /// Units.
    pub units: usize,
    /// Controllers of each unit.
    pub controllers: usize,
    /// Devices of each controller.
    pub devices: usize,
    /// Size of each device, bytes.
    pub device_bytes: u64,
    /// `memory` or `file`.
    pub backend: &'static str,
    /// MTU of every interface.
    pub mtu: u16,
    /// Keep what the daemons store in memory: for clusters so large that one disk would be what
    /// is measured.
    pub in_memory: bool,
    /// More keys for every host's configuration (TOML).
    pub host_config: String,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            hosts: 2,
            units: 1,
            controllers: 1,
            devices: 2,
            device_bytes: 32 << 20,
            backend: "file",
            mtu: 9000,
            in_memory: false,
            host_config: String::new(),
        }
    }
}

impl Plan {
    /// Rows of the cluster's table.
    pub fn rows(&self) -> u64 {
        (self.hosts + self.units * (1 + self.controllers * (1 + self.devices))) as u64
    }

    /// A unit's configuration.
    pub fn unit_config(&self, rig: &Rig, unit: usize) -> String {
        let mut text = format!("name = \"u{unit}\"\ncluster = \"A\"\n");
        for controller in 1..=self.controllers {
            let name = format!("u{unit}c{controller}");
            let _ = write!(
                text,
                "\n[[controller]]\nnumber = {controller}\nname = \"{name}\"\n"
            );
            for device in 1..=self.devices {
                text += &self.device_config(rig, &name, device);
            }
        }
        text
    }

    /// A device's part of a unit's configuration.
    pub fn device_config(&self, rig: &Rig, controller: &str, device: usize) -> String {
        let name = format!("{controller}d{device}");
        let mut text = format!(
            "\n[[controller.device]]\nnumber = {device}\nname = \"{name}\"\nbackend = \"{}\"\nsize = {}\n",
            self.backend, self.device_bytes
        );
        if self.backend == "file" {
            let path = rig.directory().join(format!("{name}.img"));
            let _ = writeln!(text, "path = \"{}\"", path.display());
        }
        text
    }
}

/// The nodes of a cluster, without daemons.
#[derive(Debug)]
pub struct Prepared {
    plan: Plan,
    nodes: Vec<Node>,
    rig: Rig,
}

impl Prepared {
    /// The rig that they are in.
    pub fn rig(&self) -> &Rig {
        &self.rig
    }

    /// Starts everything at once; hosts join the cluster by themselves.
    ///
    /// # Errors
    /// The rig's.
    pub fn start(self) -> Result<Cluster, RigError> {
        let Self { plan, nodes, rig } = self;
        let mut nodes = nodes.into_iter();
        let mut node = || -> Node { nodes.next().expect("as many nodes as asked for") };
        let started = Instant::now();
        let fabric = Daemon::start(&rig, node(), Program::Fabric, "policy = \"auto-join\"\n")?;
        let mut units = Vec::new();
        for number in 1..=plan.units {
            let config = plan.unit_config(&rig, number);
            units.push(Daemon::start(&rig, node(), Program::Unit, &config)?);
        }
        let mut hosts = Vec::new();
        for number in 1..=plan.hosts {
            let config = format!(
                "name = \"h{number}\"\ncluster = \"A\"\n{}",
                plan.host_config
            );
            hosts.push(Daemon::start(&rig, node(), Program::Host, &config)?);
        }
        Ok(Cluster {
            plan,
            started,
            fabric,
            units,
            hosts,
            rig,
        })
    }
}

/// A running cluster `A`.
#[derive(Debug)]
pub struct Cluster {
    /// What it was made from.
    pub plan: Plan,
    /// When the first daemon was started.
    pub started: Instant,
    /// Fabric services.
    pub fabric: Daemon,
    /// `u1` …
    pub units: Vec<Daemon>,
    /// `h1` …
    pub hosts: Vec<Daemon>,
    /// The rig it is in; last, because dropping it ends the processes.
    pub rig: Rig,
}

impl Cluster {
    /// Starts everything at once; hosts join the cluster by themselves.
    ///
    /// # Errors
    /// The rig's.
    pub fn start(plan: Plan) -> Result<Self, RigError> {
        Self::prepare(plan)?.start()
    }

    /// Makes the nodes; nothing is started yet.
    ///
    /// # Errors
    /// The rig's.
    pub fn prepare(plan: Plan) -> Result<Prepared, RigError> {
        let rig = if plan.in_memory {
            Rig::in_memory()
        } else {
            Rig::new()
        }?;
        let names = std::iter::once("fabric".to_owned())
            .chain((1..=plan.units).map(|n| format!("u{n}")))
            .chain((1..=plan.hosts).map(|n| format!("h{n}")));
        let wanted = names
            .enumerate()
            .map(|(i, name)| (name, NodeOptions::new(station(1 + i as u32)).mtu(plan.mtu)))
            .collect();
        let nodes = rig.add_nodes(wanted)?;
        Ok(Prepared { plan, nodes, rig })
    }

    /// Starts everything and waits until all hosts have equal, complete tables.
    ///
    /// # Errors
    /// The rig's.
    pub fn up(plan: Plan, patience: Duration) -> Result<Self, RigError> {
        let cluster = Self::start(plan)?;
        cluster.settle(patience)?;
        Ok(cluster)
    }

    /// Waits until all hosts have equal tables with every row of the plan, and `h1`, which `rma` is
    /// asked on, reaches every unit: it may have had their rows from another host.
    ///
    /// # Errors
    /// [`RigError::Timeout`].
    pub fn settle(&self, patience: Duration) -> Result<(), RigError> {
        let hosts: Vec<_> = self.hosts.iter().collect();
        wait_equal_tables(patience, &hosts, self.plan.rows())?;
        self.hosts[0].wait_for(patience, &["status"], "every unit to answer", |status| {
            status["units_reachable"].as_u64() == Some(self.plan.units as u64)
        })
    }

    /// Runs `rma` on host `h1`.
    ///
    /// # Errors
    /// [`RigError::Refused`] with what it printed where it fails.
    pub fn rma(&self, args: &[&str]) -> Result<String, RigError> {
        let output = self.hosts[0].rma(args)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(RigError::Refused {
            command: format!("rma {}", args.join(" ")),
            message: output.stderr,
        })
    }

    /// Allocates the unit, controller and device of `device` (`u1c1d1`) to `hosts` (`h1,h2`).
    ///
    /// # Errors
    /// As [`Self::rma`].
    pub fn allocate(&self, device: &str, hosts: &str) -> Result<(), RigError> {
        let controller = device.split_once('d').map_or(device, |(c, _)| c);
        let unit = device.split_once('c').map_or(device, |(u, _)| u);
        for target in [unit, controller, device] {
            self.rma(&["allocate", target, "--to", hosts])?;
        }
        Ok(())
    }
}
