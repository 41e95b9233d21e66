//! Mistakes of people and frames of enemies: one line each, exit status 2, nothing changed, service goes on.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rma::net::{Interface, Outbox, PacketSocket};
use rma::wire::{ETHERTYPE_MANAGEMENT, ETHERTYPE_SERVICE, FABRIC_MULTICAST, Header, Kind};
use rma_rig::{Cluster, NodeOptions, Output, Plan, Rig, TestResult, bin_dir};

const PATIENCE: Duration = Duration::from_secs(30);

/// One line on standard error that holds every word, and exit status 2.
fn assert_refused(output: &Output, words: &[&str]) {
    let text = output.stderr.trim_end();
    assert_eq!(output.status.code(), Some(2), "{}{text}", output.stdout);
    let line = text.lines().last().unwrap_or_default();
    for word in words {
        assert!(line.contains(word), "{word:?} is not in: {text}");
    }
    // A daemon may have logged before; its own last word is one line.
    assert!(
        text.lines().filter(|l| !l.starts_with('[')).count() == 1,
        "more than a line: {text}"
    );
}

fn mistakes_of_an_administrator_change_nothing() -> TestResult {
    let cluster = Cluster::up(Plan::default(), PATIENCE)?;
    cluster.allocate("u1c1d1", "h1")?;
    cluster.settle(PATIENCE)?;
    let host = &cluster.hosts[1];
    let before = host.digest();
    let crt = host.crt();
    let crt = crt.to_str().ok_or("path")?;
    for (args, words) in [
        (&["allocate", "nosuch", "--to", "h1"][..], &["nosuch"][..]),
        (&["allocate", "u1c1d2", "--to", "h9"], &["h9"]),
        (&["allocate", "u1c1d2", "--to", "h2"], &["u1c1", "h1"]),
        (&["allocate", "u1", "--to", "h2"], &["u1"]),
        (&["allocate", "h1", "--to", "h2"], &["h1"]),
        (
            &[
                "allocate",
                "00000000-0000-0000-0000-000000000001",
                "--to",
                "h1",
            ],
            &["00000000"],
        ),
        (
            &["allocate", "02:00:00:00:00:99/1/1", "--to", "h1"],
            &["02:00:00:00:00:99"],
        ),
        (&["release", "u1"], &["u1c1"]),
        (
            &["crt", "show", "--file", "/nonexistent/crt"],
            &["/nonexistent/crt"],
        ),
        (&["capture", "/nonexistent.pcap"], &["/nonexistent.pcap"]),
        (&["capture", crt], &["crt"]),
    ] {
        println!("rma {}", args.join(" "));
        assert_refused(&host.rma(args)?, words);
    }
    assert_eq!(host.digest(), before);
    // Two names alike: the error lists the candidates.
    let config = cluster
        .plan
        .unit_config(&cluster.rig, 1)
        .replace("u1c1d2\"", "u1c1d1\"");
    cluster.units[0].configure(&config)?;
    assert!(cluster.units[0].rma(&["unit", "reload"])?.status.success());
    host.wait_for(PATIENCE, &["devices"], "two devices of one name", |v| {
        v["devices"]
            .as_array()
            .is_some_and(|d| d.iter().all(|d| d["name"] == "u1c1d1"))
    })?;
    assert_refused(
        &host.rma(&["release", "u1c1d1"])?,
        &["u1c1d1", "use the GUID"],
    );
    // A wrong option is a usage error.
    let output = host.rma(&["allocate", "u1c1d1"])?;
    assert_eq!(output.status.code(), Some(2));
    Ok(())
}

fn daemons_name_what_is_wrong_with_their_configuration() -> TestResult {
    let rig = Rig::new()?;
    let node = rig.add_node("n1", NodeOptions::default())?;
    let dir = rig.directory().to_owned();
    let run = |binary: &str, config: &str, more: &[&str]| {
        let path = dir.join("config.toml");
        fs::write(&path, config)?;
        let mut command = Command::new(bin_dir().join(binary));
        command
            .arg("--config")
            .arg(&path)
            .arg("--state-dir")
            .arg(dir.join("state"));
        command.arg("--run-dir").arg(dir.join("run")).args(more);
        Ok::<_, Box<dyn std::error::Error>>(node.run(&mut command, PATIENCE)?)
    };
    for binary in ["rmad", "rma-unitd", "rma-fabricd"] {
        println!("{binary}");
        assert_refused(
            &run(binary, "interfase = \"eth0\"\n", &[])?,
            &["config.toml", "interfase"],
        );
        assert_refused(&run(binary, "", &[])?, &["interface"]);
        assert_refused(&run(binary, "interface = \"eth7\"\n", &[])?, &["eth7"]);
        node.interface_down(0)?;
        assert_refused(
            &run(binary, "interface = \"eth0\"\n", &[])?,
            &["eth0", "down"],
        );
        node.interface_up(0)?;
        let missing = Path::new("/nonexistent.toml");
        let mut command = Command::new(bin_dir().join(binary));
        command.arg("--config").arg(missing);
        assert_refused(&node.run(&mut command, PATIENCE)?, &["/nonexistent.toml"]);
        // Without CAP_NET_RAW.
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-net_raw", "--inh-caps=-net_raw"]);
        command
            .arg(bin_dir().join(binary))
            .args(["--interface", "eth0"]);
        command
            .arg("--state-dir")
            .arg(dir.join("state"))
            .arg("--run-dir")
            .arg(dir.join("run"));
        assert_refused(&node.run(&mut command, PATIENCE)?, &["CAP_NET_RAW"]);
    }
    assert_refused(
        &run("rmad", "interface = \"eth0\"\ncluster = \"a b\"\n", &[])?,
        &["cluster", "a b"],
    );
    Ok(())
}

fn a_table_that_is_not_ours_stops_the_daemon_and_is_left_alone() -> TestResult {
    let cluster = Cluster::up(Plan::default(), PATIENCE)?;
    let host = &cluster.hosts[0];
    host.stop()?;
    let crt = host.crt();
    let good = fs::read(&crt)?;
    let start = |more: &[&str]| {
        let mut command = Command::new(bin_dir().join("rmad"));
        command.arg("--config").arg(host.config_path()).args(more);
        host.node().run(&mut command, PATIENCE)
    };
    assert_refused(&start(&["--cluster", "B"])?, &["crt", "cluster A", "B"]);
    assert!(fs::read(&crt)? == good);
    let mut corrupt = good.clone();
    for byte in corrupt.iter_mut().skip(64) {
        *byte ^= 0x55;
    }
    // Both roots of another format version, with checksums that hold (docs/crt-format.md).
    let mut version = good.clone();
    for root in version[..2 * 4096].chunks_exact_mut(4096) {
        root[8..12].copy_from_slice(&2_u32.to_be_bytes());
        let sum = crc32fast::hash(&root[..4092]);
        root[4092..].copy_from_slice(&sum.to_be_bytes());
    }
    for (what, bytes) in [
        ("truncated", good[..good.len() / 2].to_vec()),
        ("corrupt", corrupt),
        ("another version", version),
        ("empty", Vec::new()),
        ("something else", b"#!/bin/sh\n".repeat(1000)),
    ] {
        println!("{what}");
        fs::write(&crt, &bytes)?;
        assert_refused(&start(&[])?, &["crt"]);
        assert!(fs::read(&crt)? == bytes, "{what}: the file was changed");
        let output = host.rma(&["crt", "verify", "--file", crt.to_str().ok_or("path")?])?;
        assert_refused(&output, &["crt"]);
    }
    fs::write(&crt, &good)?;
    host.restart()?;
    cluster.settle(PATIENCE)?;
    Ok(())
}

/// Random, truncated and mutated frames of both EtherTypes as fast as they go, while an
/// administrator works and I/O flows.
fn a_flood_of_bad_frames_is_counted_and_ignored() -> TestResult {
    let cluster = Cluster::up(
        Plan {
            mtu: 1500,
            ..Plan::default()
        },
        PATIENCE,
    )?;
    cluster.allocate("u1c1d1", "h1")?;
    let socket = cluster.hosts[0].wait_export(PATIENCE, "u1c1d1")?;
    let enemy = cluster
        .rig
        .add_node("enemy", NodeOptions::default().mtu(1500))?;
    let targets = [
        cluster.fabric.node().mac(),
        cluster.units[0].node().mac(),
        cluster.hosts[0].node().mac(),
        cluster.hosts[1].node().mac(),
        FABRIC_MULTICAST,
    ];
    let mut fio = Command::new("fio");
    fio.args([
        "--name=flood",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bs=4k",
        "--size=4m",
    ])
    .args(["--verify=crc32c", "--iodepth=8", "--verify_state_save=0"])
    .arg(format!("--uri=nbd+unix:///?socket={}", socket.display()));
    let fio = cluster.hosts[0].node().spawn(&mut fio)?;
    let sent = enemy.enter(|| -> Result<u64, rma::net::NetError> {
        let interface = Interface::by_name("eth0")?;
        let mut sockets = [
            (PacketSocket::open(&interface, ETHERTYPE_MANAGEMENT)?, false),
            (PacketSocket::open(&interface, ETHERTYPE_SERVICE)?, true),
        ];
        let mut rng = fastrand::Rng::with_seed(99);
        let (mut outbox, mut sent) = (Outbox::new(), 0);
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(3) {
            for (socket, service) in &mut sockets {
                while !outbox.is_full() {
                    let frame = bad_frame(&mut rng, *service);
                    outbox.push(targets[rng.usize(..targets.len())], &frame);
                    sent += 1;
                }
                socket.send(&mut outbox)?;
                outbox.clear();
            }
        }
        Ok(sent)
    })??;
    println!("{sent} bad frames in 3 s");
    let status = fio.wait(Duration::from_secs(120))?;
    assert!(status.success(), "{}", fio.log());
    cluster.rma(&["release", "u1c1d1"])?;
    cluster.settle(PATIENCE)?;
    let status = cluster.hosts[0].json(&["status"]).ok_or("no status")?;
    let dropped: u64 = status["drops"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|d| d["count"].as_u64())
        .sum();
    assert!(dropped > 0, "nothing was counted");
    for daemon in cluster
        .hosts
        .iter()
        .chain(&cluster.units)
        .chain([&cluster.fabric])
    {
        assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    }
    Ok(())
}

/// Noise, a frame with a valid checksum and nonsense behind it, or a valid frame cut short.
fn bad_frame(rng: &mut fastrand::Rng, service: bool) -> Vec<u8> {
    let len = rng.usize(..1200);
    let noise: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(len).collect();
    if rng.u8(..3) == 0 {
        return noise;
    }
    let kinds: Vec<_> = Kind::ALL
        .iter()
        .filter(|k| k.is_service().is_none_or(|s| s == service))
        .collect();
    let mut header = Header::new(*kinds[rng.usize(..kinds.len())]);
    header.connection = rma::wire::ConnectionId(rng.u64(..));
    header.command = rma::wire::CommandId(rng.u64(..16));
    header.cluster = "A".parse().unwrap_or_default();
    header.ioc = rma::wire::IocNumber(rng.u16(..3));
    let mut frame = Vec::new();
    header.emit_whole(&noise, &mut frame);
    if rng.bool() {
        frame.truncate(rng.usize(..frame.len()));
    }
    frame
}

rma_rig::test_main!(
    mistakes_of_an_administrator_change_nothing,
    daemons_name_what_is_wrong_with_their_configuration,
    a_table_that_is_not_ours_stops_the_daemon_and_is_left_alone,
    a_flood_of_bad_frames_is_counted_and_ignored,
);
