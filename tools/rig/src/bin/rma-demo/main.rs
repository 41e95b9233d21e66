//! The demonstration: two clusters on one segment, in network namespaces, with real daemons.

mod acts;
mod figures;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use rma_rig::{Daemon, Node, NodeOptions, Program, Rig, station, wait_equal_tables};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Two clusters on one Ethernet segment: discovery, allocation, I/O, reallocation, reboot
#[derive(Debug, Parser)]
struct Args {
    /// Write everything that crosses the segment into this pcap file
    #[arg(long, value_name = "FILE")]
    capture: Option<PathBuf>,
    /// Write cluster A's and cluster B's tables as JSON into this directory
    #[arg(long, value_name = "DIR")]
    tables: Option<PathBuf>,
}

const PATIENCE: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

/// Fig. 1: node, cluster, and the configuration of a unit's controllers.
const HOSTS: [(&str, &str); 3] = [("108", "A"), ("110", "A"), ("130", "B")];
const UNITS: [(&str, &str); 4] = [("112", "A"), ("118", "A"), ("132", "B"), ("138", "B")];

/// (unit, controller, its number, devices).
const CONTROLLERS: [(&str, &str, u16, &[&str]); 5] = [
    ("112", "114A", 1, &["116A1", "116A2"]),
    ("112", "114B", 2, &["116B1"]),
    ("118", "120", 1, &["122A"]),
    ("132", "134", 1, &["136"]),
    ("138", "140", 1, &["142"]),
];

/// Fig. 4, and cluster B's devices for host 130: (host that runs `rma`, target, owners).
const ALLOCATIONS: [(&str, &str, &str); 14] = [
    ("108", "112", "108,110"),
    ("108", "114A", "108,110"),
    ("108", "114B", "108,110"),
    ("110", "118", "110"),
    ("110", "120", "110"),
    ("108", "116A1", "108"),
    ("108", "116A2", "110"),
    ("110", "116B1", "108,110"),
    ("110", "122A", "110"),
    ("130", "132", "130"),
    ("130", "134", "130"),
    ("130", "136", "130"),
    ("130", "138", "130"),
    ("130", "140", "130"),
];

fn main() -> ExitCode {
    let args = Args::parse();
    let started = Instant::now();
    let result = rma_rig::enter()
        .map_err(Into::into)
        .and_then(|()| Demo::run(&args));
    match result {
        Ok(()) => {
            println!(
                "\nEverything above was checked. {:.1} s, and nothing is left behind.",
                started.elapsed().as_secs_f64()
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(inner) = source {
                text = format!("{text}: {inner}");
                source = inner.source();
            }
            eprintln!("\nrma-demo: {text}");
            ExitCode::FAILURE
        }
    }
}

fn step(text: &str) {
    let rule = "─".repeat(text.chars().count() + 2);
    println!("\n╭{rule}╮\n│ {text} │\n╰{rule}╯");
    let _ = std::io::stdout().flush();
}

fn say(text: &str) {
    println!("  {text}");
    let _ = std::io::stdout().flush();
}

struct Demo {
    rig: Rig,
    daemons: BTreeMap<String, Daemon>,
}

impl Demo {
    fn run(args: &Args) -> Result<()> {
        let rig = Rig::new()?;
        let capture = match &args.capture {
            Some(path) => Some(rig.switch().capture(path)?),
            None => None,
        };
        let mut demo = Self {
            rig,
            daemons: BTreeMap::new(),
        };
        let shown = demo.show(args);
        if shown.is_err() {
            for (name, daemon) in &demo.daemons {
                let log = daemon.log();
                let tail: Vec<_> = log.lines().rev().take(12).collect();
                eprintln!("--- log of {name}");
                for line in tail.iter().rev() {
                    eprintln!("{line}");
                }
            }
        }
        for daemon in demo.daemons.values() {
            daemon.stop()?;
        }
        if let Some(capture) = capture {
            let frames = capture.stop()?;
            println!("\n{frames} frames captured.");
        }
        shown
    }

    fn show(&mut self, args: &Args) -> Result<()> {
        self.come_up()?;
        self.discovery()?;
        self.allocation(args)?;
        self.rules()?;
        self.private_disk()?;
        self.shared_disk()?;
        self.refusal()?;
        self.reallocation()?;
        self.reboot()
    }

    fn host(&self, name: &str) -> &Daemon {
        &self.daemons[name]
    }

    /// Runs `rma` on a host, shows command and output; a failure ends the demonstration.
    fn rma(&self, host: &str, args: &[&str]) -> Result<String> {
        println!("\n{host}# rma {}", args.join(" "));
        let output = self.host(host).rma(args)?;
        print!("{}{}", output.stdout, output.stderr);
        let _ = std::io::stdout().flush();
        if output.status.success() {
            Ok(output.stdout)
        } else {
            Err(format!("rma {} failed on host {host}", args.join(" ")).into())
        }
    }

    fn come_up(&mut self) -> Result<()> {
        step("Fig. 1: two clusters on one Ethernet segment");
        println!(
            "  cluster A: hosts 108, 110    units 112 (controllers 114A, 114B), 118 (controller 120)"
        );
        println!("  cluster B: host  130         units 132 (controller 134), 138 (controller 140)");
        let names: Vec<_> = ["fabric"]
            .into_iter()
            .chain(HOSTS.iter().map(|h| h.0))
            .chain(UNITS.iter().map(|u| u.0))
            .collect();
        let wanted = names
            .iter()
            .enumerate()
            .map(|(index, name)| {
                let number = name.parse().unwrap_or(1 + index as u32);
                (
                    (*name).to_owned(),
                    NodeOptions::new(station(number)).mtu(9000),
                )
            })
            .collect();
        let mut nodes: BTreeMap<String, Node> = self
            .rig
            .add_nodes(wanted)?
            .into_iter()
            .map(|n| (n.name().to_owned(), n))
            .collect();
        let mut node = |name: &str| nodes.remove(name).ok_or("a node is missing");
        let fabric = Daemon::start(
            &self.rig,
            node("fabric")?,
            Program::Fabric,
            "policy = \"auto-join\"\n",
        )?;
        self.daemons.insert("fabric".into(), fabric);
        for (unit, cluster) in UNITS {
            let config = self.unit_config(unit, cluster)?;
            let daemon = Daemon::start(&self.rig, node(unit)?, Program::Unit, &config)?;
            self.daemons.insert(unit.into(), daemon);
        }
        for (host, cluster) in HOSTS {
            let config = format!("name = \"{host}\"\ncluster = \"{cluster}\"\n");
            let daemon = Daemon::start(&self.rig, node(host)?, Program::Host, &config)?;
            self.daemons.insert(host.into(), daemon);
        }
        let started = Instant::now();
        wait_equal_tables(PATIENCE, &[self.host("108"), self.host("110")], 11)?;
        wait_equal_tables(PATIENCE, &[self.host("130")], 7)?;
        say(&format!(
            "all tables complete and equal {:.2} s after the last start",
            started.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    /// The controllers and devices of a unit: 116A1 is an ext4 image, the others are empty.
    fn unit_config(&self, unit: &str, cluster: &str) -> Result<String> {
        let mut text = format!(
            "name = \"{unit}\"\ncluster = \"{cluster}\"\nvendor = \"ACME\"\nmodel = \"Shelf 4\"\n"
        );
        for (_, controller, number, devices) in CONTROLLERS.iter().filter(|c| c.0 == unit) {
            text += &format!("\n[[controller]]\nnumber = {number}\nname = \"{controller}\"\n");
            for (index, device) in devices.iter().enumerate() {
                let image = self.rig.directory().join(format!("{device}.img"));
                if *device == "116A1" {
                    make_ext4(&image)?;
                } else {
                    fs::File::create(&image)?.set_len(16 * MIB)?;
                }
                text += &format!(
                    "\n[[controller.device]]\nnumber = {}\nname = \"{device}\"\nbackend = \"file\"\npath = \"{}\"\nvendor = \"ACME\"\nmodel = \"Disk 16M\"\nserial = \"SN-{device}\"\n",
                    index + 1,
                    image.display()
                );
            }
        }
        Ok(text)
    }

    fn discovery(&self) -> Result<()> {
        step("Fig. 5: what host 108 did when it booted");
        let log = self.host("108").log();
        for line in log.lines().filter(|l| l.contains("block 5")) {
            println!(
                "  {}",
                line.split_once("block ").map_or(line, |(_, text)| text)
            );
        }
        for block in ["505", "510", "515", "520", "525", "530"] {
            if !log.contains(&format!("block {block}")) {
                return Err(format!("host 108's log names no block {block}").into());
            }
        }
        self.rma("108", &["tree"])?;
        Ok(())
    }

    fn allocation(&self, args: &Args) -> Result<()> {
        step("Fig. 4: an administrator allocates, from any host");
        for (host, target, owners) in ALLOCATIONS {
            self.rma(host, &["allocate", target, "--to", owners])?;
        }
        self.rma("130", &["allocate", "142", "--to", "130"])?;
        println!("\n  A host outside the parent's owners is refused (the hierarchy rule):");
        let output = self.host("110").rma(&["allocate", "122A", "--to", "108"])?;
        println!(
            "\n110# rma allocate 122A --to 108\n{}",
            output.stderr.trim_end()
        );
        if output.status.code() != Some(2) {
            return Err("the hierarchy rule was not enforced".into());
        }
        wait_equal_tables(PATIENCE, &[self.host("108"), self.host("110")], 11)?;

        step("Fig. 3: the fabric services database");
        // Fabric services are told of the units' owners after the allocation has been acknowledged.
        self.host("fabric").wait_for(
            PATIENCE,
            &["fabric", "catalog"],
            "owners of all units",
            |c| {
                let entities = c["entities"].as_array();
                entities.is_some_and(|e| {
                    e.len() == 7
                        && e.iter()
                            .all(|e| e["type"] == "host" || e["ownership"] != "unallocated")
                })
            },
        )?;
        self.rma("fabric", &["--ruled", "fabric", "catalog"])?;

        step("Fig. 4: the cluster resource table, read from host 108's file");
        let crt = self.host("108").crt();
        let crt = crt.to_str().ok_or("path")?;
        self.rma("108", &["--ruled", "crt", "show", "--file", crt])?;
        self.check_fig4("108")?;
        self.check_fig4("110")?;
        println!("\n  Cluster B's table holds nothing of A:");
        let crt = self.host("130").crt();
        self.rma(
            "130",
            &[
                "--ruled",
                "crt",
                "show",
                "--file",
                crt.to_str().ok_or("path")?,
            ],
        )?;
        let table = self.table("130")?;
        let names: Vec<_> = table.iter().map(|r| r[0].as_str()).collect();
        if names != ["130", "132", "134", "136", "138", "140", "142"] {
            return Err(format!("cluster B's table is {names:?}").into());
        }
        if let Some(dir) = &args.tables {
            fs::create_dir_all(dir)?;
            for host in ["108", "130"] {
                let crt = self.host(host).crt();
                let output = self.host(host).rma(&[
                    "-o",
                    "json",
                    "crt",
                    "show",
                    "--file",
                    crt.to_str().ok_or("path")?,
                ])?;
                fs::write(dir.join(format!("{host}.json")), output.stdout)?;
            }
        }
        Ok(())
    }

    /// Runs a program on a host, shows it and its output.
    fn command(&self, host: &str, program: &str, args: &[&str]) -> Result<String> {
        let shown = args.iter().map(|a| {
            if a.contains(' ') {
                format!("'{a}'")
            } else {
                (*a).to_owned()
            }
        });
        println!(
            "\n{host}# {program} {}",
            shown.collect::<Vec<_>>().join(" ")
        );
        let mut command = Command::new(program);
        // e2fsprogs is in /usr/sbin, which an ordinary user may not have in the path.
        let paths = std::env::var("PATH").unwrap_or_default();
        command
            .args(args)
            .env("PATH", format!("{paths}:/usr/sbin:/sbin"));
        let output = self
            .host(host)
            .node()
            .run(&mut command, Duration::from_secs(60))?;
        let text = format!("{}{}", output.stdout, output.stderr);
        for line in text.lines().filter(|l| !l.trim().is_empty()) {
            println!("{line}");
        }
        let _ = std::io::stdout().flush();
        if output.status.success() {
            Ok(text)
        } else {
            Err(format!("{program} failed").into())
        }
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| "a path is not UTF-8".into())
}

fn nbd_uri(socket: &Path) -> String {
    format!("nbd+unix:///?socket={}", socket.display())
}

/// An ext4 image with a file in it.
fn make_ext4(image: &Path) -> Result<()> {
    let content = image.with_extension("d");
    fs::create_dir_all(&content)?;
    fs::write(
        content.join("hello.txt"),
        "Hello from a disk on the segment.\n",
    )?;
    let paths = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("mke2fs")
        .env("PATH", format!("{paths}:/usr/sbin:/sbin"))
        .args(["-q", "-t", "ext4", "-E", "root_owner=0:0", "-d"])
        .arg(&content)
        .arg(image)
        .arg("16M")
        .output()?;
    if !output.status.success() {
        return Err(format!("mke2fs: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(())
}
