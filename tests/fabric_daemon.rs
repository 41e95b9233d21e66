//! `rma-fabricd` as a process: what it says to bad input, and a life with real hosts.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rma::store::catalog::SqliteCatalog;
use rma_rig::{Daemon, Node, NodeOptions, Program, Rig, TestResult, bin_dir, station, wait_until};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

fn node(rig: &Rig, name: &str, number: u32) -> Result<Node, rma_rig::RigError> {
    rig.add_node(name, NodeOptions::new(station(number)))
}

fn fabricd(dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(bin_dir().join("rma-fabricd"));
    command
        .arg("--state-dir")
        .arg(dir.join("state"))
        .arg("--run-dir")
        .arg(dir.join("run"))
        .args(more);
    command
}

/// Runs it in `node`; it must end with status 2 and one line that has all of `words`.
fn refused(node: &Node, command: &mut Command, words: &[&str]) -> TestResult {
    let output = node.run(command, PATIENCE)?;
    let complaint: Vec<_> = output
        .stderr
        .lines()
        .filter(|line| line.starts_with("rma-fabricd:"))
        .collect();
    assert_eq!(
        output.status.code(),
        Some(2),
        "{command:?}: {}",
        output.stderr
    );
    assert_eq!(complaint.len(), 1, "{command:?}: {}", output.stderr);
    for word in words {
        assert!(complaint[0].contains(word), "{word}: {}", complaint[0]);
    }
    Ok(())
}

fn bad_input_is_one_line_and_status_2() -> TestResult {
    let rig = Rig::new()?;
    let node = node(&rig, "n", 1)?;
    let dir = rig.directory().join("n");
    std::fs::create_dir_all(&dir)?;
    let config = dir.join("fabricd.toml");
    let eth0 = ["--interface", "eth0"];

    refused(&node, &mut fabricd(&dir, &[]), &["interface", "missing"])?;
    refused(
        &node,
        &mut fabricd(&dir, &["--interface", "eth7"]),
        &["eth7"],
    )?;
    std::fs::write(&config, "interface = \"eth0\"\npolicies = \"x\"\n")?;
    let with_file = ["--config", config.to_str().ok_or("path")?];
    refused(
        &node,
        &mut fabricd(&dir, &with_file),
        &["fabricd.toml:2", "policies"],
    )?;
    let policy = ["--interface", "eth0", "--policy", "maybe"];
    refused(&node, &mut fabricd(&dir, &policy), &["policy", "maybe"])?;
    let mtu = ["--interface", "eth0", "--mtu", "9000"];
    refused(&node, &mut fabricd(&dir, &mtu), &["9000", "1500", "eth0"])?;

    let mut unprivileged = Command::new("setpriv");
    let program = fabricd(&dir, &eth0);
    unprivileged
        .args(["--bounding-set=-net_raw", "--inh-caps=-net_raw"])
        .arg(program.get_program())
        .args(program.get_args());
    refused(&node, &mut unprivileged, &["CAP_NET_RAW"])?;

    // The state directory is a file.
    let file = dir.join("file");
    std::fs::write(&file, "")?;
    let state = [
        "--interface",
        "eth0",
        "--state-dir",
        file.to_str().ok_or("path")?,
    ];
    let mut command = Command::new(bin_dir().join("rma-fabricd"));
    command.args(state).arg("--run-dir").arg(dir.join("run"));
    refused(&node, &mut command, &["file", "directory"])?;

    // Databases that are not ours to use; they stay as they are.
    let database = dir.join("state/fabricd/fabric.db");
    std::fs::create_dir_all(dir.join("state/fabricd"))?;
    drop(SqliteCatalog::open(&database)?);
    let good = std::fs::read(&database)?;
    let sqlite = rusqlite::Connection::open(&database)?;
    sqlite.pragma_update(None, "user_version", 9)?;
    drop(sqlite);
    let newer = std::fs::read(&database)?;
    refused(
        &node,
        &mut fabricd(&dir, &eth0),
        &["fabric.db", "version 9"],
    )?;
    assert!(std::fs::read(&database)? == newer);
    let mut torn = good.clone();
    torn[4096..4160].fill(0xa5);
    for (bytes, word) in [(torn, "corrupted"), (b"#!/bin/sh\n".repeat(99), "not a")] {
        std::fs::write(&database, &bytes)?;
        refused(&node, &mut fabricd(&dir, &eth0), &["fabric.db", word])?;
        assert!(std::fs::read(&database)? == bytes);
    }
    std::fs::remove_file(&database)?;

    node.interface_down(0)?;
    refused(&node, &mut fabricd(&dir, &eth0), &["eth0", "down"])?;
    node.interface_up(0)?;

    // A second one beside a living one.
    let first = node.spawn(&mut fabricd(&dir, &eth0))?;
    let socket = dir.join("run/fabricd.sock");
    wait_until(PATIENCE, "the first to listen", || {
        socket.exists() && first.log().contains("fabric services")
    })?;
    refused(&node, &mut fabricd(&dir, &eth0), &["fabricd.sock"])?;
    let mut command = Command::new(bin_dir().join("rma-fabricd"));
    command.args(["--interface", "eth0", "--state-dir"]);
    command
        .arg(dir.join("state"))
        .arg("--run-dir")
        .arg(dir.join("run2"));
    refused(&node, &mut command, &["state"])?;
    Ok(())
}

fn entities(value: &Value) -> Vec<&Value> {
    value["entities"]
        .as_array()
        .map(|a| a.iter().collect())
        .unwrap_or_default()
}

fn wait_catalog(fabric: &Daemon, what: &str, condition: impl Fn(&[&Value]) -> bool) -> TestResult {
    Ok(
        fabric.wait_for(PATIENCE, &["fabric", "catalog"], what, |v| {
            condition(&entities(v))
        })?,
    )
}

fn an_administrator_assigns_and_the_database_outlives_kill_9() -> TestResult {
    let rig = Rig::new()?;
    let fabric = Daemon::start(&rig, node(&rig, "fabric", 1)?, Program::Fabric, "")?;
    let start = |name: &str, number| -> Result<Daemon, Box<dyn std::error::Error>> {
        let config = format!("name = \"{name}\"\npoll_fabric_ms = 200\n");
        let node = node(&rig, name, number)?;
        Ok(Daemon::start(&rig, node, Program::Host, &config)?)
    };
    let (one, two) = (start("h1", 2)?, start("h2", 3)?);
    wait_catalog(&fabric, "two pending hosts", |e| {
        e.len() == 2
            && e.iter()
                .all(|e| e["cluster"].is_null() && e["connected"] == true)
    })?;

    for (args, word) in [
        (&["fabric", "assign", "h9", "--cluster", "A"][..], "h9"),
        (&["fabric", "assign", "h1", "--cluster", "a b"], "a b"),
        (&["fabric", "remove", "h9"], "h9"),
    ] {
        let output = fabric.rma(args)?;
        assert_eq!(output.status.code(), Some(2), "{}", output.stderr);
        assert!(output.stderr.contains(word), "{}", output.stderr);
    }
    for wanted in ["h1".to_owned(), two.node().mac().to_string()] {
        let output = fabric.rma(&["fabric", "assign", &wanted, "--cluster", "A"])?;
        assert!(output.status.success(), "{}", output.stderr);
    }
    for host in [&one, &two] {
        host.wait_for(PATIENCE, &["hosts"], "both hosts", |v| {
            v["hosts"].as_array().is_some_and(|h| h.len() == 2)
        })?;
    }
    let before = fabric.json(&["fabric", "catalog"]).ok_or("no catalog")?;
    for entity in entities(&before) {
        assert_eq!(entity["cluster"], "A");
        assert_eq!(entity["type"], "host");
        let label = entity["label"].as_str().unwrap_or_default();
        assert!(label.ends_with('Z') && label.len() == 20, "{label}");
    }

    fabric.kill9()?;
    fabric.restart()?;
    wait_catalog(&fabric, "both hosts are back in their cluster", |e| {
        e.len() == 2
            && e.iter()
                .all(|e| e["cluster"] == "A" && e["connected"] == true)
    })?;
    let after = fabric.json(&["fabric", "catalog"]).ok_or("no catalog")?;
    assert_eq!(after["version"], before["version"], "nothing has changed");

    // The policy changes while it runs.
    fabric.configure("policy = \"auto-join\"\n")?;
    let pid = fabric.pid().ok_or("no process")?;
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGHUP)?;
    fabric.wait_for(PATIENCE, &["fabric", "status"], "the new policy", |v| {
        v["policy"] == "auto-join"
    })?;

    // A cable that is pulled and an interface that goes down end nothing.
    fabric.node().interface_down(0)?;
    fabric.wait_for(PATIENCE, &["fabric", "status"], "it is down", |v| {
        v["link"] == "down"
    })?;
    fabric.node().interface_up(0)?;
    fabric.wait_for(PATIENCE, &["fabric", "status"], "it is up", |v| {
        v["link"] == "up"
    })?;
    let config = "name = \"h3\"\ncluster = \"B\"\n";
    let three = Daemon::start(&rig, node(&rig, "h3", 4)?, Program::Host, config)?;
    wait_catalog(&fabric, "the newcomer joins by itself", |e| {
        e.iter().any(|e| e["name"] == "h3" && e["cluster"] == "B")
    })?;
    three.wait_for(PATIENCE, &["hosts"], "itself alone", |v| {
        v["hosts"].as_array().is_some_and(|h| h.len() == 1)
    })?;
    let output = fabric.rma(&["fabric", "remove", "h2"])?;
    assert!(output.status.success(), "{}", output.stderr);
    fabric.stop()?;
    assert!(!fabric.run_dir().join("fabricd.sock").exists());
    Ok(())
}

rma_rig::test_main!(
    bad_input_is_one_line_and_status_2,
    an_administrator_assigns_and_the_database_outlives_kill_9,
);
