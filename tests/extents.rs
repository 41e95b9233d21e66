//! Extents with real daemons in namespaces: one disk for two hosts, each with a range that the other cannot
//! touch; whole clusters by `rma apply`; and what the command line says to mistakes.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rma::initiator::{Io, IoOp};
use rma_rig::intruder::{Attempt, io_once};
use rma_rig::{Cluster, Plan, TestResult, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);
const CLIENT_PATIENCE: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;

fn uri(socket: &Path) -> String {
    format!("nbd+unix:///?socket={}", socket.display())
}

fn run(cluster: &Cluster, host: usize, mut command: Command) -> Result<String, Box<dyn Error>> {
    let output = cluster.hosts[host]
        .node()
        .run(&mut command, CLIENT_PATIENCE)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!("{command:?} failed:\n{}{}", output.stdout, output.stderr).into())
}

fn qemu_io(uri: &str, commands: &[&str]) -> Command {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw"]);
    for text in commands {
        command.args(["-c", text]);
    }
    command.arg(uri);
    command
}

/// A cluster whose one disk of 32 MiB is carved: `left` (4 MiB at 1 MiB) is h1's, `right` (8 MiB at 16 MiB)
/// is h2's.
fn carved() -> Result<Cluster, Box<dyn Error>> {
    let plan = Plan {
        devices: 1,
        ..Plan::default()
    };
    let cluster = Cluster::up(plan, PATIENCE)?;
    // A table may come from the other host before the unit itself answers.
    for host in &cluster.hosts {
        host.wait_for(PATIENCE, &["units"], "u1 to be reachable", |v| {
            v["units"][0]["liveness"] == "reachable"
        })?;
    }
    for args in [
        &["granularity", "set", "extent"][..],
        &[
            "carve", "u1c1d1", "--offset", "1M", "--size", "4M", "--name", "left",
        ],
        &[
            "carve", "u1c1d1", "--offset", "16M", "--size", "8M", "--name", "right",
        ],
        &["allocate", "u1", "--to", "h1,h2"],
        &["allocate", "u1c1", "--to", "h1,h2"],
        &["allocate", "u1c1d1", "--to", "h1,h2"],
        &["allocate", "left", "--to", "h1"],
        &["allocate", "right", "--to", "h2"],
    ] {
        cluster.rma(args)?;
    }
    Ok(cluster)
}

/// What the unit answers to an I/O of a host that knows the protocol and minds no rules.
fn attempt(cluster: &Cluster, host: usize, extent: &str, io: Io) -> Result<String, Box<dyn Error>> {
    let row = |name: &str| cluster.hosts[0].row(name);
    let status = cluster.hosts[host].json(&["status"]).ok_or("no status")?;
    let host_guid = status["host"]["guid"].as_str().unwrap_or_default();
    let (unit, device) = (row("u1")?, row("u1c1d1")?);
    let named = if extent.is_empty() {
        &device
    } else {
        &row(extent)?
    };
    let attempt = Attempt {
        interface: "eth0".into(),
        host: host_guid.parse()?,
        incarnation: status["incarnation"].as_u64().unwrap_or_default(),
        cluster: "A".parse()?,
        unit: unit.guid.parse()?,
        unit_mac: unit.macs.first().ok_or("no NIC")?.parse()?,
        ioc: 1,
        iod: 1,
        device: device.guid.parse()?,
        extent: if extent.is_empty() {
            rma::wire::Guid::NIL
        } else {
            named.guid.parse()?
        },
        epoch: named.epoch,
    };
    Ok(cluster.hosts[host]
        .node()
        .enter(|| io_once(&attempt, io))??)
}

fn write_of(offset: u64, byte: u8) -> Io {
    Io {
        op: IoOp::Write,
        offset,
        len: 4096,
        data: vec![byte; 4096].into(),
        fua: true,
    }
}

fn two_hosts_share_one_disk_and_neither_touches_the_others_range() -> TestResult {
    let cluster = carved()?;
    let image = cluster.rig.directory().join("u1c1d1.img");
    let sockets = [
        cluster.hosts[0].wait_export(PATIENCE, "left")?,
        cluster.hosts[1].wait_export(PATIENCE, "right")?,
    ];
    // Each host has its own range, and nobody the device.
    for (host, others) in [(0, ["right", "u1c1d1"]), (1, ["left", "u1c1d1"])] {
        for other in others {
            assert_eq!(cluster.hosts[host].export(other), None, "{other}");
        }
    }
    for (host, size) in [(0, 4 * MIB), (1, 8 * MIB)] {
        let mut info = Command::new("nbdinfo");
        info.args(["--json", &uri(&sockets[host])]);
        let info: serde_json::Value = serde_json::from_str(&run(&cluster, host, info)?)?;
        assert_eq!(info["exports"][0]["export-size"], size);
    }
    // fio and qemu-io fill them; beyond the end there is nothing.
    for (host, pattern, size) in [(0, "0x11", "4M"), (1, "0x22", "8M")] {
        let uri = uri(&sockets[host]);
        let mut fio = Command::new("fio");
        fio.args([
            "--ioengine=nbd",
            "--rw=randwrite",
            "--verify=crc32c",
            "--verify_fatal=1",
        ])
        .args([
            "--bs=16k",
            "--iodepth=8",
            "--verify_state_save=0",
            "--name=extent",
        ])
        .args([format!("--uri={uri}"), format!("--size={size}")]);
        run(&cluster, host, fio)?;
        let fill = format!("write -P {pattern} 0 {size}");
        let text = run(&cluster, host, qemu_io(&uri, &[&fill, "flush"]))?;
        assert!(!text.contains("failed"), "{text}");
        let beyond = qemu_io(&uri, &[&format!("write -P 0x99 {size} 4k")]);
        let text = run(&cluster, host, beyond).unwrap_or_else(|e| e.to_string());
        assert!(!text.contains("wrote 4096"), "{text}");
    }
    // The data lies where it should in the unit's file, and everything else is untouched.
    let check = |content: &[u8]| {
        let byte = |at: u64| content[usize::try_from(at).expect("small")];
        for at in (0..32 * MIB).step_by(512) {
            let expected = match at / MIB {
                1..5 => 0x11,
                16..24 => 0x22,
                _ => 0,
            };
            assert_eq!(byte(at), expected, "at {at}");
        }
    };
    check(&fs::read(&image)?);
    // A host that minds no rules gets no further: not into the other's range, not to the device, nor to
    // what no extent covers, nor by its own extent beyond its end.
    let refusals = [
        (0, "right", 0),
        (0, "", 0),
        (0, "", 8 * MIB),
        (0, "", 16 * MIB),
        (1, "left", 0),
        (1, "", MIB),
        (1, "", 31 * MIB),
    ];
    for (host, extent, offset) in refusals {
        let answer = attempt(&cluster, host, extent, write_of(offset, 0x66))?;
        assert_eq!(answer, "not an owner", "h{} {extent} {offset}", host + 1);
    }
    for (host, extent, offset) in [(0, "left", 4 * MIB), (1, "right", 8 * MIB)] {
        let answer = attempt(&cluster, host, extent, write_of(offset, 0x66))?;
        assert_eq!(answer, "out of range");
    }
    check(&fs::read(&image)?);
    Ok(())
}

fn extents_survive_the_death_of_everything_and_change_hands() -> TestResult {
    let cluster = carved()?;
    let all: Vec<_> = cluster
        .hosts
        .iter()
        .chain(&cluster.units)
        .chain([&cluster.fabric])
        .collect();
    let left = cluster.hosts[0].wait_export(PATIENCE, "left")?;
    let text = run(
        &cluster,
        0,
        qemu_io(&uri(&left), &["write -P 0x77 0 1M", "flush"]),
    )?;
    assert!(!text.contains("failed"), "{text}");
    for daemon in &all {
        daemon.kill9()?;
    }
    for daemon in &all {
        daemon.restart()?;
    }
    let left = cluster.hosts[0].wait_export(PATIENCE, "left")?;
    cluster.hosts[1].wait_export(PATIENCE, "right")?;
    let text = run(&cluster, 0, qemu_io(&uri(&left), &["read -P 0x77 0 1M"]))?;
    assert!(!text.contains("failed"), "{text}");
    cluster.rma(&["allocate", "left", "--to", "h2"])?;
    wait_until(PATIENCE, "the socket to go", || !left.exists())?;
    let left = cluster.hosts[1].wait_export(PATIENCE, "left")?;
    let text = run(&cluster, 1, qemu_io(&uri(&left), &["read -P 0x77 0 1M"]))?;
    assert!(!text.contains("failed"), "{text}");
    // And it is gone from everywhere when it is removed.
    cluster.rma(&["release", "left"])?;
    cluster.rma(&["uncarve", "left"])?;
    wait_until(PATIENCE, "the socket to go", || !left.exists())?;
    let tree = cluster.rma(&["tree"])?;
    assert!(
        tree.contains("extent right") && !tree.contains("extent left"),
        "{tree}"
    );
    Ok(())
}

/// Runs `rma` on h1; it must end with status 2 and one line that has these words, and change nothing.
fn refused(cluster: &Cluster, args: &[&str], words: &[&str]) -> TestResult {
    let digest = cluster.hosts[0].digest();
    let output = cluster.hosts[0].rma(args)?;
    assert_eq!(
        output.status.code(),
        Some(2),
        "rma {args:?}: {}",
        output.stdout
    );
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    for word in words {
        assert!(
            output.stderr.contains(word),
            "'{word}' is not in: {}",
            output.stderr
        );
    }
    assert_eq!(
        cluster.hosts[0].digest(),
        digest,
        "rma {args:?} changed something"
    );
    Ok(())
}

fn mistakes_get_one_line_and_status_2() -> TestResult {
    let cluster = carved()?;
    let carve = |offset, size| ["carve", "u1c1d1", "--offset", offset, "--size", size];
    refused(&cluster, &carve("31M", "2M"), &["u1c1d1", "not inside"])?;
    refused(&cluster, &carve("4M", "1M"), &["overlaps extent left"])?;
    refused(&cluster, &carve("0", "32M"), &["overlaps extent left"])?;
    refused(&cluster, &carve("100", "512"), &["blocks of"])?;
    refused(
        &cluster,
        &["uncarve", "left"],
        &["left is dedicated to h1", "release"],
    )?;
    refused(&cluster, &["uncarve", "middle"], &["'middle'"])?;
    let output = cluster.hosts[0].rma(&carve("1.5M", "1M"))?;
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stderr.contains("16M"), "{}", output.stderr);

    let file = cluster.rig.directory().join("desired.toml");
    let path = file.to_str().ok_or("path")?;
    let device =
        "[[device]]\nrow = \"u1c1d1\"\nownership = \"shared\"\nowners = [\"h1\", \"h2\"]\n";
    for (text, words) in [
        (
            "[[device]]\nrow = \"u9\"\nownership = \"unallocated\"\n".to_owned(),
            &["'u9'"][..],
        ),
        (device.replace("h2", "h9"), &["'h9'"]),
        (
            format!("{device}extents = [{{ offset = 0, size = \"1T\" }}]\n"),
            &["not inside"],
        ),
        (format!("{device}extents = []\n"), &["is dedicated to h"]),
        (
            device.replace("ownership", "owner_ship"),
            &["desired.toml:3: ", "owner_ship"],
        ),
        (device.replace("[\"h1\", ", "["), &["u1c1d1", "left"]),
        ("granularity = \"bit\"\n".to_owned(), &["'bit'"]),
        (String::new(), &["desired.toml:1: "]),
    ] {
        fs::write(&file, text)?;
        refused(&cluster, &["apply", path], words)?;
        refused(&cluster, &["apply", path, "--dry-run"], words)?;
    }
    refused(
        &cluster,
        &["apply", "/nowhere/at/all"],
        &["/nowhere/at/all"],
    )?;
    Ok(())
}

fn what_is_exported_is_applied_again_elsewhere() -> TestResult {
    let cluster = carved()?;
    let file = cluster.rig.directory().join("desired.toml");
    let path = file.to_str().ok_or("path")?;
    fs::write(&file, cluster.rma(&["export"])?)?;
    let text = cluster.rma(&["apply", path])?;
    assert_eq!(text, "all is so already; nothing changed\n");
    // All of it is taken away, and comes back with one command.
    cluster.rma(&["release", "u1", "--recursive"])?;
    cluster.rma(&["uncarve", "left"])?;
    cluster.rma(&["uncarve", "right"])?;
    cluster.rma(&["granularity", "set", "device"])?;
    let dry = cluster.rma(&["apply", path, "--dry-run"])?;
    for line in [
        "granularity: device -> extent",
        "I/O unit u1: would change",
        "+ extent left at ",
        "I/O device u1c1d1: unallocated -> shared h",
    ] {
        assert!(dry.contains(line), "'{line}' is not in:\n{dry}");
    }
    assert_eq!(cluster.hosts[1].export("right"), None);
    let made = cluster.rma(&["apply", path])?;
    assert!(made.contains("I/O unit u1: done"), "{made}");
    cluster.hosts[0].wait_export(PATIENCE, "left")?;
    cluster.hosts[1].wait_export(PATIENCE, "right")?;
    // The same as JSON, and a unit that does not answer.
    let json = cluster.rma(&["-o", "json", "export"])?;
    fs::write(&file, json)?;
    assert_eq!(cluster.rma(&["apply", path])?, text);
    fs::write(
        &file,
        "[[device]]\nrow = \"u1c1d1\"\nownership = \"unallocated\"\nextents = []\n",
    )?;
    cluster.rma(&["release", "left"])?;
    cluster.rma(&["release", "right"])?;
    cluster.rma(&["release", "u1c1d1"])?;
    cluster.units[0].kill9()?;
    cluster.hosts[0].wait_for(PATIENCE, &["units"], "u1 to be unreachable", |v| {
        v["units"][0]["liveness"] == "unreachable"
    })?;
    refused(&cluster, &["apply", path], &["u1", "nothing was changed"])?;
    Ok(())
}

rma_rig::test_main!(
    two_hosts_share_one_disk_and_neither_touches_the_others_range,
    extents_survive_the_death_of_everything_and_change_hands,
    mistakes_get_one_line_and_status_2,
    what_is_exported_is_applied_again_elsewhere,
);
