//! What hosts see of a unit that is away, or whose media change: I/O waits or fails as the device's policy
//! says; a device is as long as its file; frames of the past change nothing.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType};
use rma::wire::{Header, Kind};
use rma_rig::{Daemon, NodeOptions, Program, Rig, TestResult, station, wait_equal_tables};

const PATIENCE: Duration = Duration::from_secs(30);
const SIZE: u64 = 1 << 20;

/// A host that owns the device of a unit, over a file.
struct Own {
    unit: Daemon,
    host: Daemon,
    _fabric: Daemon,
    rig: Rig,
}

fn owner() -> Result<Own, Box<dyn std::error::Error>> {
    let rig = Rig::new()?;
    let node = |name: &str, number| rig.add_node(name, NodeOptions::new(station(number)));
    let fabric = Daemon::start(
        &rig,
        node("fabric", 1)?,
        Program::Fabric,
        "policy = \"auto-join\"\n",
    )?;
    let file = rig.directory().join("d1.img");
    fs::write(&file, vec![0; SIZE as usize])?;
    let config = format!(
        "name = \"u1\"\ncluster = \"A\"\n[[controller]]\nnumber = 1\nname = \"c1\"\n\
         [[controller.device]]\nnumber = 1\nname = \"d1\"\nbackend = \"file\"\npath = \"{}\"\n",
        file.display()
    );
    let unit = Daemon::start(&rig, node("u1", 2)?, Program::Unit, &config)?;
    let config = "name = \"h1\"\ncluster = \"A\"\n";
    let host = Daemon::start(&rig, node("h1", 3)?, Program::Host, config)?;
    wait_equal_tables(PATIENCE, &[&host], 4)?;
    for target in ["u1", "c1", "d1"] {
        let output = host.rma(&["allocate", target, "--to", "h1"])?;
        assert!(output.status.success(), "{}", output.stderr);
    }
    host.wait_export(PATIENCE, "d1")?;
    Ok(Own {
        unit,
        host,
        _fabric: fabric,
        rig,
    })
}

fn io_waits_or_fails_by_the_devices_policy() -> TestResult {
    let own = owner()?;
    let host = &own.host;
    let say = |args: &[&str]| -> Result<String, Box<dyn std::error::Error>> {
        let output = host.rma(args)?;
        assert!(output.status.success(), "{}", output.stderr);
        Ok(output.stdout)
    };
    assert_eq!(say(&["policy", "d1"])?, "d1: queue (rmad's default)\n");
    let state = |wanted: &'static str| {
        host.wait_for(PATIENCE, &["exports"], wanted, |v| {
            v["exports"][0]["state"] == wanted
        })
    };
    let bench = [
        "bench",
        "d1",
        "--depth",
        "4",
        "--ramp",
        "0",
        "--seconds",
        "1",
    ];
    own.unit.kill9()?;
    state("queueing")?;
    let waiting = host.node().spawn(&mut host.rma_command(&bench))?;
    assert_eq!(
        say(&["policy", "d1", "--fail-after", "1"])?,
        "d1: fail after 1 s\n"
    );
    state("failing")?;
    let status = waiting.wait(PATIENCE)?;
    assert!(!status.success(), "{}", waiting.log());
    assert!(
        waiting.log().contains("cannot be reached"),
        "{}",
        waiting.log()
    );
    // At once from now on; and it survives a restart.
    let begun = Instant::now();
    let output = host.rma(&bench)?;
    assert!(!output.status.success() && begun.elapsed() < Duration::from_secs(20));
    host.stop()?;
    host.restart()?;
    state("failing")?;
    assert_eq!(say(&["policy", "d1"])?, "d1: fail after 1 s\n");
    // It waits again: the policy is changed while the unit is away.
    say(&["policy", "d1", "--queue"])?;
    state("queueing")?;
    let waiting = host.node().spawn(&mut host.rma_command(&bench))?;
    own.unit.restart()?;
    let status = waiting.wait(PATIENCE)?;
    assert!(status.success(), "{}", waiting.log());
    assert_eq!(
        say(&["policy", "d1", "--default"])?,
        "d1: queue (rmad's default)\n"
    );
    let output = host.rma(&["policy", "d9", "--queue"])?;
    assert!(!output.status.success() && output.stderr.lines().count() == 1);
    Ok(())
}

fn a_device_is_as_long_as_its_file() -> TestResult {
    let own = owner()?;
    let file = fs::OpenOptions::new()
        .write(true)
        .open(own.rig.directory().join("d1.img"))?;
    file.set_len(4 * SIZE)?;
    own.host
        .wait_for(PATIENCE, &["exports"], "the longer device", |v| {
            v["exports"][0]["size_bytes"] == 4 * SIZE
        })?;
    // Its new end can be used.
    let at = (4 * SIZE - 4096).to_string();
    let bench = [
        "bench",
        "d1",
        "--rw",
        "randwrite",
        "--offset",
        &at,
        "--size",
        "4096",
        "--depth",
        "1",
        "--ramp",
        "0",
        "--seconds",
        "1",
        "--destroy-data",
    ];
    let output = own.host.rma(&bench)?;
    assert!(output.status.success(), "{}", output.stderr);
    // What has become shorter is told to people, and not to hosts until an administrator says so.
    file.set_len(2 * SIZE)?;
    rma_rig::wait_until(PATIENCE, "the unit to say so", || {
        own.unit
            .log()
            .contains("has shrunk from 4194304 to 2097152 bytes")
    })?;
    let exports = own.host.json(&["exports"]).ok_or("no exports")?;
    assert_eq!(exports["exports"][0]["size_bytes"], 4 * SIZE);
    let mut reload = own.unit.rma_command(&["unit", "reload"]);
    let output = own.unit.node().run(&mut reload, PATIENCE)?;
    assert!(output.status.success(), "{}", output.stderr);
    own.host
        .wait_for(PATIENCE, &["exports"], "the shorter device", |v| {
            v["exports"][0]["size_bytes"] == 2 * SIZE
        })?;
    Ok(())
}

/// Writes the whole device, each block with `byte`, through its NBD socket.
fn fill(own: &Own, byte: u8) -> TestResult {
    let socket = own.host.wait_export(PATIENCE, "d1")?;
    let mut qemu = Command::new("qemu-io");
    qemu.args(["-f", "raw", "-c"])
        .arg(format!("write -P {byte} 0 {SIZE}"))
        .arg(format!("nbd+unix:///?socket={}", socket.display()));
    let output = own.host.node().run(&mut qemu, PATIENCE)?;
    assert!(output.status.success(), "{}", output.stderr);
    Ok(())
}

/// The frames of the service EtherType in a capture that a host has sent.
fn sent_by_host(
    path: &std::path::Path,
    own: &Own,
) -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error>> {
    let mut reader = pcap_file::pcap::PcapReader::new(fs::File::open(path)?)?;
    let mut frames = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let data = packet?.data.into_owned();
        if data[6..12] == own.host.node().mac().0 && data[12..14] == [0x88, 0xb6] {
            frames.push(data);
        }
    }
    Ok(frames)
}

/// Puts whole frames on a node's wire, as they are.
fn send_raw(own: &Own, frames: &[Vec<u8>]) -> TestResult {
    let interface = own
        .host
        .node()
        .enter(|| nix::net::if_::if_nametoindex("eth0"))??;
    own.host.node().enter(|| -> nix::Result<()> {
        let socket = nix::sys::socket::socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        let socket = socket2::Socket::from(socket);
        rma::net::raw::bind(&socket, interface, 0x88b6).map_err(|_| nix::Error::EIO)?;
        for frame in frames {
            nix::unistd::write(&socket, frame)?;
        }
        Ok(())
    })??;
    Ok(())
}

fn old_writes_from_a_capture_are_never_applied() -> TestResult {
    let own = owner()?;
    let path = own.rig.directory().join("old.pcap");
    let capture = own.rig.switch().capture(&path)?;
    fill(&own, 1)?;
    capture.stop()?;
    let old = sent_by_host(&path, &own)?;
    let writes = |frame: &&Vec<u8>| {
        Header::parse(&frame[14..], true).is_ok_and(|(header, _)| header.kind == Kind::Write)
    };
    assert!(old.iter().filter(writes).count() as u64 >= SIZE / 1500);
    fill(&own, 2)?;
    let content = || fs::read(own.rig.directory().join("d1.img"));
    let unchanged = |when: &str| -> TestResult {
        // The unit has taken the frames: it has answered what came behind them.
        own.host
            .wait_for(PATIENCE, &["exports"], "its device", |v| {
                v["exports"][0]["state"] == "up"
            })?;
        let mut flush = Command::new("qemu-io");
        let socket = own.host.wait_export(PATIENCE, "d1")?;
        flush
            .args(["-f", "raw", "-c", "read 0 512", "-c", "flush"])
            .arg(format!("nbd+unix:///?socket={}", socket.display()));
        let output = own.host.node().run(&mut flush, PATIENCE)?;
        assert!(output.status.success(), "{}", output.stderr);
        assert!(content()?.iter().all(|byte| *byte == 2), "{when}");
        Ok(())
    };
    send_raw(&own, &old)?;
    unchanged("on the same connection")?;
    own.unit.kill9()?;
    own.unit.restart()?;
    send_raw(&own, &old)?;
    unchanged("after a restart of the unit")?;
    own.host.kill9()?;
    own.host.restart()?;
    own.host.wait_export(PATIENCE, "d1")?;
    send_raw(&own, &old)?;
    unchanged("after a restart of the host")
}

rma_rig::test_main!(
    io_waits_or_fails_by_the_devices_policy,
    a_device_is_as_long_as_its_file,
    old_writes_from_a_capture_are_never_applied,
);
