//! Two clusters of real daemons on one segment: a device and a unit go from one to the other.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rma_rig::{Daemon, NodeOptions, Program, Rig, TestResult, station, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);
const SIZE: usize = 8 << 20;

/// Fabric services, unit u1 of cluster A, hosts a1 and a2 of A, b1 of B.
struct Two {
    fabric: Daemon,
    unit: Daemon,
    a1: Daemon,
    a2: Daemon,
    b1: Daemon,
    rig: Rig,
}

fn unit_config(rig: &Rig) -> String {
    let mut text =
        "name = \"u1\"\ncluster = \"A\"\n\n[[controller]]\nnumber = 1\nname = \"c1\"\n".to_owned();
    for number in 1..=2 {
        let path = rig.directory().join(format!("d{number}.img"));
        text += &format!(
            "\n[[controller.device]]\nnumber = {number}\nname = \"d{number}\"\nbackend = \"file\"\n\
             size = {SIZE}\npath = \"{}\"\n",
            path.display()
        );
    }
    text
}

impl Two {
    fn up() -> Result<Self, Box<dyn Error>> {
        let rig = Rig::new()?;
        let names = ["fabric", "u1", "a1", "a2", "b1"];
        let wanted = names
            .iter()
            .enumerate()
            .map(|(i, name)| ((*name).to_owned(), NodeOptions::new(station(1 + i as u32))))
            .collect();
        let mut nodes = rig.add_nodes(wanted)?.into_iter();
        let mut node = || nodes.next().expect("a node for each name");
        let fabric = Daemon::start(&rig, node(), Program::Fabric, "policy = \"auto-join\"\n")?;
        let unit = Daemon::start(&rig, node(), Program::Unit, &unit_config(&rig))?;
        let mut host = |name: &str, of: &str| {
            let config = format!("name = \"{name}\"\ncluster = \"{of}\"\n");
            Daemon::start(&rig, node(), Program::Host, &config)
        };
        let (a1, a2, b1) = (host("a1", "A")?, host("a2", "A")?, host("b1", "B")?);
        let two = Self {
            fabric,
            unit,
            a1,
            a2,
            b1,
            rig,
        };
        for host in [&two.a1, &two.a2] {
            host.wait_for(PATIENCE, &["devices"], "the unit's devices", |v| {
                v["devices"].as_array().is_some_and(|d| d.len() == 2)
            })?;
        }
        two.b1
            .wait_for(PATIENCE, &["status"], "steady state", |v| v["block"] == 0)?;
        for (target, to) in [("u1", "a1,a2"), ("c1", "a1,a2"), ("d1", "a1"), ("d2", "a2")] {
            succeeds(&two.a1, &["allocate", target, "--to", to])?;
        }
        Ok(two)
    }
}

fn succeeds(host: &Daemon, args: &[&str]) -> Result<String, Box<dyn Error>> {
    let output = host.rma(args)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!("rma {}: {}", args.join(" "), output.stderr).into())
}

fn refused(host: &Daemon, args: &[&str], word: &str) -> TestResult {
    let output = host.rma(args)?;
    assert_eq!(output.status.code(), Some(2), "{args:?}: {}", output.stdout);
    assert!(output.stderr.contains(word), "{}", output.stderr);
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    Ok(())
}

/// Writes all of a device through a host's socket, verifies it, and flushes.
fn write(host: &Daemon, socket: &Path, content: &Path) -> TestResult {
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let mut copy = Command::new("nbdcopy");
    copy.arg("--flush").arg(content).arg(&uri);
    let output = host.node().run(&mut copy, PATIENCE)?;
    assert!(output.status.success(), "{}", output.stderr);
    Ok(())
}

fn content(rig: &Rig, name: &str, byte: u8) -> Result<std::path::PathBuf, Box<dyn Error>> {
    let path = rig.directory().join(name);
    fs::write(&path, vec![byte; SIZE])?;
    Ok(path)
}

fn a_device_is_exported_by_the_other_clusters_host_and_no_longer_by_the_old_one() -> TestResult {
    let two = Two::up()?;
    let (first, second) = (
        content(&two.rig, "first", 1)?,
        content(&two.rig, "second", 2)?,
    );
    let image = two.rig.directory().join("d1.img");
    let old = two.a1.wait_export(PATIENCE, "d1")?;
    write(&two.a1, &old, &first)?;
    assert!(fs::read(&image)? == fs::read(&first)?);

    for (args, word) in [
        (["move", "d1", "--cluster", "A", "--to", "b1"], "already"),
        (
            ["move", "d1", "--cluster", "Z", "--to", "b1"],
            "no cluster Z",
        ),
        (
            ["move", "d1", "--cluster", "B", "--to", "a2"],
            "no host 'a2'",
        ),
        (
            ["move", "c1", "--cluster", "B", "--to", "b1"],
            "cannot be moved",
        ),
        (
            ["move", "nothing", "--cluster", "B", "--to", "b1"],
            "nothing",
        ),
    ] {
        refused(&two.a2, &args, word)?;
    }
    let go = ["move", "d1", "--cluster", "B", "--to", "b1"];
    let text = succeeds(&two.a2, &go)?;
    assert!(text.contains("moved to cluster B"), "{text}");
    wait_until(PATIENCE, "the old socket to go", || !old.exists())?;
    assert_eq!(two.a1.export("d1"), None);
    let new = two.b1.wait_export(PATIENCE, "d1")?;
    write(&two.b1, &new, &second)?;
    assert!(fs::read(&image)? == fs::read(&second)?);
    // Both see what is theirs.
    for host in [&two.a1, &two.a2] {
        host.wait_for(PATIENCE, &["devices"], "d1 to be gone", |v| {
            let all = v["devices"].as_array();
            all.is_some_and(|all| {
                all.iter()
                    .all(|d| d["name"] != "d1" || d["state"] == "invalid")
            })
        })?;
    }
    two.b1.wait_for(PATIENCE, &["units"], "the guest", |v| {
        v["units"][0]["name"] == "u1" && v["units"][0]["guest"] == true
    })?;
    let catalog = succeeds(&two.fabric, &["fabric", "catalog"])?;
    assert!(catalog.contains("A, guest of B"), "{catalog}");
    // Said again, it is so already.
    let text = succeeds(&two.a1, &go)?;
    assert!(text.contains("nothing changed"), "{text}");

    // Everything dies and comes back: it is still so.
    let all = [&two.fabric, &two.unit, &two.a1, &two.a2, &two.b1];
    for daemon in all {
        daemon.kill9()?;
    }
    for daemon in all {
        daemon.restart()?;
    }
    two.b1.wait_export(PATIENCE, "d1")?;
    two.a2.wait_export(PATIENCE, "d2")?;
    assert_eq!(two.a1.export("d1"), None);
    assert!(fs::read(&image)? == fs::read(&second)?);

    // Without fabric services nothing is moved, and that is said.
    two.fabric.kill9()?;
    two.b1
        .wait_for(PATIENCE, &["status"], "fabric services to be missed", |v| {
            v["fabric"] == "down"
        })?;
    let back = ["move", "d1", "--cluster", "A", "--to", "a2"];
    refused(&two.b1, &back, "fabric services do not answer")?;
    two.fabric.restart()?;
    two.b1
        .wait_for(PATIENCE, &["status"], "fabric services to be found", |v| {
            v["fabric"] == "up"
        })?;
    succeeds(&two.b1, &back)?;
    let home = two.a2.wait_export(PATIENCE, "d1")?;
    write(&two.a2, &home, &first)?;
    assert!(fs::read(&image)? == fs::read(&first)?);
    wait_until(PATIENCE, "B's socket to go", || {
        two.b1.export("d1").is_none()
    })?;
    Ok(())
}

fn a_unit_is_moved_or_assigned_with_all_it_has() -> TestResult {
    let two = Two::up()?;
    two.a1.wait_export(PATIENCE, "d1")?;
    let all = ["move", "u1", "--cluster", "B", "--to", "b1", "--recursive"];
    succeeds(&two.a1, &all)?;
    for device in ["d1", "d2"] {
        let socket = two.b1.wait_export(PATIENCE, device)?;
        let name = format!("all-{device}");
        write(&two.b1, &socket, &content(&two.rig, &name, 7)?)?;
    }
    wait_until(PATIENCE, "A's sockets to go", || {
        two.a1.export("d1").is_none() && two.a2.export("d2").is_none()
    })?;
    let catalog = succeeds(&two.fabric, &["fabric", "catalog"])?;
    assert!(catalog.contains("B, guest of A"), "{catalog}");
    // It starts again where it is, without fabric services.
    two.fabric.stop()?;
    two.unit.kill9()?;
    two.unit.restart()?;
    two.b1
        .wait_for(PATIENCE, &["units"], "u1 to be reachable", |v| {
            v["units"][0]["liveness"] == "reachable"
        })?;
    assert!(two.b1.export("d1").is_some());
    two.fabric.restart()?;
    // An assignment takes it from its owners.
    wait_until(PATIENCE, "the unit to be connected", || {
        two.fabric
            .json(&["fabric", "catalog"])
            .and_then(|v| {
                let entities = v["entities"].as_array()?.clone();
                entities.into_iter().find(|e| e["name"] == "u1")
            })
            .is_some_and(|unit| unit["connected"] == true && unit["cluster"] == "B")
    })?;
    succeeds(&two.fabric, &["fabric", "assign", "u1", "--cluster", "A"])?;
    for host in [&two.a1, &two.a2] {
        host.wait_for(PATIENCE, &["units"], "the unit to be there", |v| {
            v["units"][0]["state"] == "valid" && v["units"][0]["liveness"] == "reachable"
        })?;
        host.wait_for(PATIENCE, &["devices"], "the devices to be nobody's", |v| {
            let all = v["devices"].as_array();
            all.is_some_and(|all| {
                all.len() == 2
                    && all
                        .iter()
                        .all(|d| d["ownership"] == "unallocated" && d["state"] == "valid")
            })
        })?;
    }
    wait_until(PATIENCE, "B's sockets to go", || {
        two.b1.export("d1").is_none() && two.b1.export("d2").is_none()
    })?;
    for target in ["u1", "c1", "d1"] {
        succeeds(&two.a2, &["allocate", target, "--to", "a2"])?;
    }
    two.a2.wait_export(PATIENCE, "d1")?;
    Ok(())
}

rma_rig::test_main!(
    a_device_is_exported_by_the_other_clusters_host_and_no_longer_by_the_old_one,
    a_unit_is_moved_or_assigned_with_all_it_has,
);
