//! Whole clusters of real daemons in namespaces: discovery, allocation, I/O on a bad wire, deaths.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rma_rig::{
    Cluster, Daemon, Faults, NodeOptions, Plan, Process, Program, TestResult, station,
    wait_equal_tables, wait_until,
};

const PATIENCE: Duration = Duration::from_secs(30);
const FIO_PATIENCE: Duration = Duration::from_secs(180);

/// 1 % lost, 1 % duplicated, 5 % reordered, 0.1 % corrupted.
fn bad_wire() -> Faults {
    Faults {
        loss_ppm: 10_000,
        duplicate_ppm: 10_000,
        reorder_ppm: 50_000,
        corrupt_ppm: 1_000,
        ..Faults::default()
    }
}

fn uri(socket: &Path) -> String {
    format!("nbd+unix:///?socket={}", socket.display())
}

/// fio with random writes and verification of every block.
fn fio(uri: &str, name: &str, more: &[&str]) -> Command {
    let mut command = Command::new("fio");
    command
        .args([
            "--ioengine=nbd",
            "--rw=randwrite",
            "--verify=crc32c",
            "--verify_fatal=1",
        ])
        .args([
            "--iodepth=16",
            "--group_reporting",
            "--random_generator=lfsr",
            "--verify_state_save=0",
        ])
        .arg(format!("--name={name}"))
        .arg(format!("--uri={uri}"))
        .args(more);
    command
}

fn run(cluster: &Cluster, host: usize, mut command: Command) -> Result<String, Box<dyn Error>> {
    let output = cluster.hosts[host].node().run(&mut command, FIO_PATIENCE)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!("{command:?} failed:\n{}{}", output.stdout, output.stderr).into())
}

fn one_disk(mtu: u16) -> Result<(Cluster, PathBuf), Box<dyn Error>> {
    let cluster = Cluster::up(
        Plan {
            mtu,
            ..Plan::default()
        },
        PATIENCE,
    )?;
    cluster.allocate("u1c1d1", "h1")?;
    let socket = cluster.hosts[0].wait_export(PATIENCE, "u1c1d1")?;
    Ok((cluster, socket))
}

fn clients_work_at(mtu: u16) -> TestResult {
    let (cluster, socket) = one_disk(mtu)?;
    let uri = uri(&socket);
    let dir = cluster.rig.directory().to_owned();
    let (source, back) = (dir.join("source"), dir.join("back"));
    let mut rng = fastrand::Rng::with_seed(7);
    let content: Vec<u8> = std::iter::repeat_with(|| rng.u8(..))
        .take(32 << 20)
        .collect();
    fs::write(&source, &content)?;
    for (wire, faults) in [("good", Faults::default()), ("bad", bad_wire())] {
        cluster.rig.switch().set_faults(faults)?;
        run(&cluster, 0, fio(&uri, wire, &["--bs=4k", "--size=8m"]))?;
        run(
            &cluster,
            0,
            fio(
                &uri,
                wire,
                &["--bs=64k", "--size=16m", "--offset=8m", "--iodepth=4"],
            ),
        )?;
        let mut info = Command::new("nbdinfo");
        info.args(["--json", &uri]);
        let info: serde_json::Value = serde_json::from_str(&run(&cluster, 0, info)?)?;
        assert_eq!(info["exports"][0]["export-size"], 32 << 20);
        let mut copy = Command::new("nbdcopy");
        copy.args(["--flush", "--connections=4"])
            .arg(&source)
            .arg(&uri);
        run(&cluster, 0, copy)?;
        let mut copy = Command::new("nbdcopy");
        copy.arg(&uri).arg(&back);
        run(&cluster, 0, copy)?;
        assert!(
            fs::read(&back)? == content,
            "what came back is not what was written ({wire} wire)"
        );
        assert!(
            fs::read(dir.join("u1c1d1.img"))? == content,
            "the unit's image differs ({wire} wire)"
        );
        let mut convert = Command::new("qemu-img");
        convert
            .args(["convert", "-f", "raw", "-O", "raw", &uri])
            .arg(&back);
        run(&cluster, 0, convert)?;
        assert!(
            fs::read(&back)? == content,
            "qemu-img read something else ({wire} wire)"
        );
        let mut io = Command::new("qemu-io");
        io.args([
            "-f",
            "raw",
            "-c",
            "write -P 0x77 1M 1M",
            "-c",
            "flush",
            "-c",
            "read -P 0x77 1M 1M",
            &uri,
        ]);
        let text = run(&cluster, 0, io)?;
        assert!(!text.contains("failed"), "{text}");
    }
    Ok(())
}

fn clients_work_at_mtu_1500_on_a_good_and_a_bad_wire() -> TestResult {
    clients_work_at(1500)
}

fn clients_work_at_mtu_9000_on_a_good_and_a_bad_wire() -> TestResult {
    clients_work_at(9000)
}

fn only_owners_have_an_export_and_a_release_closes_it() -> TestResult {
    let (cluster, socket) = one_disk(1500)?;
    assert_eq!(cluster.hosts[1].export("u1c1d1"), None);
    cluster.rma(&["release", "u1c1d1"])?;
    wait_until(PATIENCE, "the socket to go", || !socket.exists())?;
    cluster.hosts[1].wait_for(PATIENCE, &["devices"], "the release", |v| {
        v["devices"][0]["ownership"] == "unallocated"
    })?;
    Ok(())
}

fn an_allocation_survives_the_death_of_everything() -> TestResult {
    let (cluster, _) = one_disk(1500)?;
    let all: Vec<_> = cluster
        .hosts
        .iter()
        .chain(&cluster.units)
        .chain([&cluster.fabric])
        .collect();
    for daemon in &all {
        daemon.kill9()?;
    }
    for host in &cluster.hosts {
        let crt = host.crt();
        let output = host.rma(&["crt", "verify", "--file", crt.to_str().ok_or("path")?])?;
        assert!(
            output.status.success(),
            "{}{}",
            output.stdout,
            output.stderr
        );
    }
    for daemon in &all {
        daemon.restart()?;
    }
    cluster.settle(PATIENCE)?;
    cluster.hosts[0].wait_export(PATIENCE, "u1c1d1")?;
    assert_eq!(cluster.hosts[1].export("u1c1d1"), None);
    Ok(())
}

/// Starts fio against the host's socket through nbdkit's retry filter, which connects again when
/// `rmad` comes back, as a kernel client would.
fn fio_in_background(
    cluster: &Cluster,
    socket: &Path,
) -> Result<(Process, Process), Box<dyn Error>> {
    let host = cluster.hosts[0].node();
    let front = cluster.rig.directory().join("front.sock");
    let mut nbdkit = Command::new("nbdkit");
    nbdkit
        .args([
            "--foreground",
            "--exit-with-parent",
            "--filter=retry",
            "--unix",
        ])
        .arg(&front)
        .args(["nbd", &format!("socket={}", socket.display()), "retry=60"])
        .args(["retries=600", "retry-delay=1", "retry-exponential=no"]);
    let nbdkit = host.spawn(&mut nbdkit)?;
    wait_until(PATIENCE, "nbdkit to listen", || front.exists())?;
    let more = [
        "--bs=4k",
        "--size=24m",
        "--rate_iops=1500",
        "--verify_backlog=512",
    ];
    let fio = host.spawn(&mut fio(&uri(&front), "through-deaths", &more))?;
    Ok((nbdkit, fio))
}

fn io_goes_on_through_the_death_of_each_daemon() -> TestResult {
    let (cluster, socket) = one_disk(9000)?;
    let (nbdkit, fio) = fio_in_background(&cluster, &socket)?;
    for daemon in [&cluster.fabric, &cluster.units[0], &cluster.hosts[0]] {
        // Some I/O happens between the deaths: the image on the unit changes.
        let image = cluster.rig.directory().join("u1c1d1.img");
        let before = fs::metadata(&image)?.modified()?;
        wait_until(PATIENCE, "I/O to go on", || {
            fs::metadata(&image)
                .and_then(|m| m.modified())
                .is_ok_and(|m| m > before)
        })?;
        assert_eq!(fio.exited()?, None, "fio ended early: {}", fio.log());
        daemon.kill9()?;
        daemon.restart()?;
        cluster.settle(PATIENCE)?;
    }
    let status = fio.wait(FIO_PATIENCE)?;
    assert!(status.success(), "{}", fio.log());
    nbdkit.terminate()?;
    nbdkit.wait(PATIENCE)?;
    Ok(())
}

fn io_waits_for_a_cable_and_an_interface_and_goes_on() -> TestResult {
    let (cluster, socket) = one_disk(9000)?;
    let more = ["--bs=4k", "--size=16m", "--rate_iops=2000"];
    let fio = cluster.hosts[0]
        .node()
        .spawn(&mut fio(&uri(&socket), "through-flaps", &more))?;
    let (host, unit) = (cluster.hosts[0].node(), cluster.units[0].node());
    host.link_down()?;
    cluster.hosts[1].wait_for(PATIENCE, &["hosts"], "h1 to be unreachable", |v| {
        v["hosts"][0]["liveness"] == "unreachable"
    })?;
    host.link_up()?;
    unit.interface_down(0)?;
    cluster.hosts[0].wait_for(PATIENCE, &["units"], "u1 to be unreachable", |v| {
        v["units"][0]["liveness"] == "unreachable"
    })?;
    unit.interface_up(0)?;
    cluster.hosts[0].wait_for(PATIENCE, &["units"], "u1 to be reachable", |v| {
        v["units"][0]["liveness"] == "reachable"
    })?;
    let status = fio.wait(FIO_PATIENCE)?;
    assert!(status.success(), "{}", fio.log());
    Ok(())
}

fn a_new_device_shows_everywhere_in_well_under_a_second() -> TestResult {
    // Polls are so far apart that only the notification can be in time.
    let host_config =
        "poll_units_ms = 600000\npoll_controllers_ms = 600000\npoll_peers_ms = 600000\n";
    let plan = Plan {
        host_config: host_config.into(),
        ..Plan::default()
    };
    let cluster = Cluster::up(plan.clone(), PATIENCE)?;
    let unit = &cluster.units[0];
    let config = plan.unit_config(&cluster.rig, 1) + &plan.device_config(&cluster.rig, "u1c1", 9);
    unit.configure(&config)?;
    let started = Instant::now();
    let output = unit.rma(&["unit", "reload"])?;
    assert!(output.status.success(), "{}", output.stderr);
    for host in &cluster.hosts {
        host.wait_for(PATIENCE, &["devices"], "the new device", |v| {
            v["devices"]
                .as_array()
                .is_some_and(|d| d.iter().any(|d| d["name"] == "u1c1d9"))
        })?;
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(1), "it took {took:?}");
    // And gone again: a tombstone, not silence.
    unit.configure(&plan.unit_config(&cluster.rig, 1))?;
    assert!(unit.rma(&["unit", "reload"])?.status.success());
    for host in &cluster.hosts {
        host.wait_for(PATIENCE, &["devices"], "the removal", |v| {
            v["devices"].as_array().is_some_and(|d| {
                d.iter()
                    .all(|d| d["name"] != "u1c1d9" || d["state"] == "invalid")
            })
        })?;
    }
    Ok(())
}

fn lost_registers_are_restored_and_a_scrapped_unit_is_forgotten() -> TestResult {
    let plan = Plan {
        units: 2,
        backend: "memory",
        ..Plan::default()
    };
    let cluster = Cluster::up(plan, PATIENCE)?;
    let host = &cluster.hosts[0];
    cluster.allocate("u1c1d1", "h1")?;
    host.wait_export(PATIENCE, "u1c1d1")?;
    let refused = |args: &[&str], word: &str| -> TestResult {
        let output = host.rma(args)?;
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", output.stdout);
        assert!(output.stderr.contains(word), "{}", output.stderr);
        assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
        Ok(())
    };
    refused(&["unit", "restore", "u1"], "nothing to restore")?;
    // The box gets a new disk, and keeps its identity.
    let unit = &cluster.units[0];
    unit.stop()?;
    fs::remove_file(unit.state_dir().join("unitd/registers"))?;
    unit.restart()?;
    host.wait_for(PATIENCE, &["units"], "u1 to say so", |v| {
        v["units"]
            .as_array()
            .is_some_and(|units| units.iter().any(|u| u["registers_lost"] == true))
    })?;
    refused(&["release", "u1c1d1"], "lost its ownership registers")?;
    let mut text = String::new();
    wait_until(PATIENCE, "the restoration", || {
        let Ok(output) = host.rma(&["unit", "restore", "u1"]) else {
            return false;
        };
        text = output.stdout;
        output.status.success()
    })?;
    assert!(
        text.contains("u1 has 3 ownership registers again"),
        "{text}"
    );
    let status = unit.rma(&["unit", "status"])?;
    assert!(!status.stdout.contains("lost"), "{}", status.stdout);
    assert!(cluster.rma(&["release", "u1c1d1"])?.contains("u1c1d1"));

    refused(&["forget", "u2"], "rma fabric remove")?;
    refused(&["forget", "u1c1d1"], "is there")?;
    cluster.units[1].stop()?;
    let removed = cluster.fabric.rma(&["fabric", "remove", "u2"])?;
    assert!(removed.status.success(), "{}", removed.stderr);
    wait_until(PATIENCE, "u2 to be forgotten", || {
        host.rma(&["forget", "u2"])
            .is_ok_and(|o| o.status.success())
    })?;
    for host in &cluster.hosts {
        host.wait_for(PATIENCE, &["units"], "u2 to be gone", |v| {
            v["units"].as_array().is_some_and(|units| units.len() == 1)
        })?;
        let devices = host.rma(&["devices"])?.stdout;
        assert!(!devices.contains("u2c1d1"), "{devices}");
    }
    Ok(())
}

fn a_cluster_of_64_hosts_comes_up_with_equal_tables() -> TestResult {
    let plan = Plan {
        hosts: 64,
        units: 32,
        controllers: 2,
        devices: 8,
        device_bytes: 1 << 20,
        backend: "memory",
        mtu: 1500,
        in_memory: true,
        host_config: String::new(),
    };
    let started = Instant::now();
    let cluster = Cluster::up(plan, Duration::from_secs(120))?;
    let took = started.elapsed();
    println!(
        "64 hosts, 32 units, 512 devices: equal tables {:.1} s after the first start",
        took.as_secs_f64()
    );
    drop(cluster);
    Ok(())
}

fn a_reload_takes_the_intervals_and_refuses_a_mistake() -> TestResult {
    let cluster = Cluster::up(
        Plan {
            hosts: 1,
            ..Plan::default()
        },
        PATIENCE,
    )?;
    let host = &cluster.hosts[0];
    let before = fs::read_to_string(host.config_path())?;
    let kept: String = before
        .lines()
        .filter(|line| !line.starts_with("poll_units_ms"))
        .fold(String::new(), |text, line| text + line + "\n");
    let reload = |more: &str, expected: &str| -> TestResult {
        fs::write(host.config_path(), format!("{kept}{more}\n"))?;
        host.reload()?;
        wait_until(PATIENCE, expected, || host.log().contains(expected))?;
        Ok(())
    };
    reload("poll_units_ms = 70", "units every 70ms")?;
    reload(
        "poll_units_ms = 7",
        "configuration refused, nothing changed",
    )?;
    reload(
        "poll_units_ms = 70\nmtu = 1400",
        "mtu has changed; that takes effect at the next start",
    )?;
    assert!(host.digest().is_some(), "it goes on");
    Ok(())
}

fn a_device_is_measured_inside_rmad_and_written_only_when_that_is_agreed_to() -> TestResult {
    let (cluster, _socket) = one_disk(9000)?;
    let host = &cluster.hosts[0];
    let bench = ["bench", "u1c1d1", "--seconds", "1", "--ramp", "0"];
    let read = host
        .json(&[&bench[..], &["--depth", "4"]].concat())
        .ok_or("no result")?;
    let report = &read["report"];
    assert!(read["iops"].as_f64().is_some_and(|n| n > 100.0), "{read}");
    assert_eq!(report["errors"], 0);
    assert_eq!(report["writes"], serde_json::Value::Null);
    let count = report["reads"]["count"].as_u64();
    assert_eq!(count, report["ios"].as_u64());

    let write = [&bench[..], &["--rw", "randrw", "--bs", "64k"]].concat();
    let output = host.rma(&write)?;
    assert_eq!(output.status.code(), Some(2));
    assert!(
        output.stderr.contains("--destroy-data"),
        "{}",
        output.stderr
    );
    let output = host.rma(&[&write[..], &["--destroy-data"]].concat())?;
    assert!(output.status.success(), "{}", output.stderr);
    assert!(
        output.stdout.contains("read:") && output.stdout.contains("write:"),
        "{}",
        output.stdout
    );
    for (args, word) in [
        (["bench", "u1c1d2"], "does not own"),
        (["bench", "nothing"], "nothing"),
    ] {
        let output = host.rma(&args)?;
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stderr.contains(word), "{}", output.stderr);
    }
    let output = host.rma(&["bench", "u1c1d1", "--bs", "1000"])?;
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stderr.contains("512"), "{}", output.stderr);
    Ok(())
}

fn a_newcomer_starts_from_the_central_source_while_all_others_are_down() -> TestResult {
    let host_config = "crt_source = \"central\"\n";
    let plan = Plan {
        host_config: host_config.into(),
        ..Plan::default()
    };
    let cluster = Cluster::up(plan.clone(), PATIENCE)?;
    cluster.allocate("u1c1d1", "h2")?;
    // One of its two devices is taken out: a tombstone.
    let unit = &cluster.units[0];
    let one = Plan {
        devices: 1,
        ..plan.clone()
    };
    unit.configure(&one.unit_config(&cluster.rig, 1))?;
    assert!(unit.rma(&["unit", "reload"])?.status.success());
    let gone = |v: &serde_json::Value| {
        let rows = v["rows"].as_array();
        rows.is_some_and(|r| {
            r.iter()
                .any(|r| r["name"] == "u1c1d2" && r["state"] == "invalid")
        })
    };
    let host = &cluster.hosts[0];
    let crt = host.crt();
    let show = ["crt", "show", "--file", crt.to_str().ok_or("path")?];
    host.wait_for(PATIENCE, &show, "the tombstone", gone)?;
    cluster.settle(PATIENCE)?;
    let digest = host.digest().ok_or("no digest")?;
    let kept = |v: &serde_json::Value| {
        let table = &v["tables"][0];
        table["cluster"] == "A" && table["digest"] == *digest && table["row_count"] == plan.rows()
    };
    let tables = ["fabric", "tables"];
    cluster
        .fabric
        .wait_for(PATIENCE, &tables, "the table to be kept", kept)?;
    // Everybody else dies, and fabric services have to start from their database.
    for daemon in cluster.hosts.iter().chain([unit, &cluster.fabric]) {
        daemon.kill9()?;
    }
    cluster.fabric.restart()?;
    let options = NodeOptions::new(station(99)).mtu(plan.mtu);
    let node = cluster.rig.add_node("h9", options)?;
    let config = format!("name = \"h9\"\ncluster = \"A\"\n{host_config}");
    let newcomer = Daemon::start(&cluster.rig, node, Program::Host, &config)?;
    newcomer.wait_for(PATIENCE, &["status"], "the end of Fig. 5", |v| {
        v["block"] == 0
    })?;
    let log = newcomer.log();
    assert!(log.contains("fabric services keep the table"), "{log}");
    let crt = newcomer.crt();
    let show = ["crt", "show", "--file", crt.to_str().ok_or("path")?];
    let table = newcomer.json(&show).ok_or("no table")?;
    assert!(gone(&table), "{table}");
    let rows = table["rows"].as_array().ok_or("no rows")?;
    assert_eq!(rows.len() as u64, plan.rows() + 1);
    let owned = rows.iter().find(|row| row["name"] == "u1c1d1");
    let owned = owned.ok_or("no row")?;
    assert_eq!(owned["ownership"], "dedicated");
    assert_eq!(owned["owners"][0]["name"], "h2");
    // It is shown as fabric services have it, and the mistake is named.
    let shown = cluster.fabric.rma(&["fabric", "tables", "A"])?;
    assert!(shown.stdout.contains("u1c1d2"), "{}", shown.stdout);
    let wrong = cluster.fabric.rma(&["fabric", "tables", "B"])?;
    assert!(
        wrong.stderr.contains("no table of cluster B"),
        "{}",
        wrong.stderr
    );
    // And all are one cluster again.
    for daemon in cluster.hosts.iter().chain([unit]) {
        daemon.restart()?;
    }
    let all: Vec<_> = cluster.hosts.iter().chain([&newcomer]).collect();
    wait_equal_tables(PATIENCE, &all, plan.rows() + 1)?;
    Ok(())
}

rma_rig::test_main!(
    a_newcomer_starts_from_the_central_source_while_all_others_are_down,
    a_device_is_measured_inside_rmad_and_written_only_when_that_is_agreed_to,
    a_reload_takes_the_intervals_and_refuses_a_mistake,
    clients_work_at_mtu_1500_on_a_good_and_a_bad_wire,
    clients_work_at_mtu_9000_on_a_good_and_a_bad_wire,
    only_owners_have_an_export_and_a_release_closes_it,
    an_allocation_survives_the_death_of_everything,
    io_goes_on_through_the_death_of_each_daemon,
    io_waits_for_a_cable_and_an_interface_and_goes_on,
    a_new_device_shows_everywhere_in_well_under_a_second,
    lost_registers_are_restored_and_a_scrapped_unit_is_forgotten,
    a_cluster_of_64_hosts_comes_up_with_equal_tables,
);
