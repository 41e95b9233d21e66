//! Two NICs per host and unit: rows and registrations name both, management goes on by one of them
//! while the other one's cable is out, and so does I/O, which uses both; how long frames may be is found out.

use std::time::Duration;

use rma_rig::{
    Daemon, Faults, Node, NodeOptions, Program, Rig, TestResult, station, wait_equal_tables,
    wait_until,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);
/// Both interfaces, in place of the one that the rig names.
const BOTH: &str = "eth0,eth1";

struct Pair {
    unit: Daemon,
    hosts: Vec<Daemon>,
    _fabric: Daemon,
    rig: Rig,
}

/// Fabric services, a unit and two hosts, all but fabric services with two NICs.
fn cluster() -> Result<Pair, Box<dyn std::error::Error>> {
    cluster_with(1500)
}

fn cluster_with(mtu: u16) -> Result<Pair, Box<dyn std::error::Error>> {
    let rig = Rig::new()?;
    let node = |name: &str, first: u32| {
        let nics = NodeOptions::new(station(first)).nic(station(first + 1));
        rig.add_node(name, nics.mtu(mtu))
    };
    let fabric = rig.add_node("fabric", NodeOptions::new(station(1)))?;
    let fabric = Daemon::start(&rig, fabric, Program::Fabric, "policy = \"auto-join\"\n")?;
    let config = "name = \"u1\"\ncluster = \"A\"\n[[controller]]\nnumber = 1\nname = \"c1\"\n\
         [[controller.device]]\nnumber = 1\nname = \"d1\"\nbackend = \"memory\"\nsize = 1048576\n";
    let unit = Daemon::start_on(&rig, node("u1", 11)?, Program::Unit, BOTH, config)?;
    let mut hosts = Vec::new();
    for number in 1..=2 {
        let config = format!("name = \"h{number}\"\ncluster = \"A\"\n");
        let node = node(&format!("h{number}"), 11 + 10 * number)?;
        hosts.push(Daemon::start_on(&rig, node, Program::Host, BOTH, &config)?);
    }
    wait_equal_tables(PATIENCE, &hosts.iter().collect::<Vec<_>>(), 5)?;
    Ok(Pair {
        unit,
        hosts,
        _fabric: fabric,
        rig,
    })
}

fn macs(row: &Value) -> Vec<&str> {
    let macs = row["macs"].as_array().map(Vec::as_slice);
    macs.unwrap_or_default()
        .iter()
        .filter_map(Value::as_str)
        .collect()
}

fn addresses(node: &Node) -> Vec<String> {
    node.macs().iter().map(ToString::to_string).collect()
}

fn all_see_all(pair: &Pair) -> TestResult {
    for host in &pair.hosts {
        host.wait_for(PATIENCE, &["status"], "everything to be reachable", |s| {
            s["peers_reachable"] == 1 && s["units_reachable"] == 1 && s["fabric"] == "up"
        })?;
    }
    Ok(())
}

fn rows_and_registrations_name_both_nics() -> TestResult {
    let pair = cluster()?;
    for host in &pair.hosts {
        let tree = host.json(&["tree"]).ok_or("no tree")?;
        let hosts = tree["hosts"].as_array().ok_or("no hosts")?;
        for (row, daemon) in hosts.iter().map(|row| {
            let daemon = pair.hosts.iter().find(|d| row["name"] == d.node().name());
            (row, daemon)
        }) {
            let daemon = daemon.ok_or("a host that is not there")?;
            assert_eq!(macs(row), addresses(daemon.node()));
        }
        assert_eq!(macs(&tree["units"][0]), addresses(pair.unit.node()));
    }
    Ok(())
}

/// Changes the device's owner, which takes a host, its peer and the unit.
fn change(pair: &Pair, owner: &str) -> TestResult {
    for (target, hosts) in [("u1", "h1,h2"), ("c1", "h1,h2"), ("d1", owner)] {
        let output = pair.hosts[0].rma(&["allocate", target, "--to", hosts])?;
        assert!(output.status.success(), "{}", output.stderr);
    }
    for host in &pair.hosts {
        host.wait_for(PATIENCE, &["devices"], "the new owner", |v| {
            v["devices"][0]["owners"][0]["name"] == owner
        })?;
    }
    Ok(())
}

fn management_goes_on_by_the_other_nic_when_a_cable_is_cut() -> TestResult {
    let pair = cluster()?;
    all_see_all(&pair)?;
    for (round, cut) in [0, 1].into_iter().enumerate() {
        for node in [pair.hosts[0].node(), pair.unit.node()] {
            node.nic_link_down(cut)?;
        }
        // What went to the dead NICs finds the live ones.
        all_see_all(&pair)?;
        change(&pair, ["h1", "h2"][round])?;
        wait_equal_tables(PATIENCE, &pair.hosts.iter().collect::<Vec<_>>(), 5)?;
        for node in [pair.hosts[0].node(), pair.unit.node()] {
            node.nic_link_up(cut)?;
        }
        all_see_all(&pair)?;
    }
    Ok(())
}

fn a_host_starts_with_one_of_its_cables_out() -> TestResult {
    let pair = cluster()?;
    let host = &pair.hosts[0];
    host.stop()?;
    host.node().nic_link_down(0)?;
    host.restart()?;
    all_see_all(&pair)?;
    change(&pair, "h1")
}

/// The paths to the unit of `h1` that are used, each with its longest frame and what has taken it.
fn used_paths(pair: &Pair) -> Vec<(u64, u64)> {
    let stats = pair.hosts[0].json(&["devices", "--stats"]);
    let paths = stats.as_ref().and_then(|s| s["paths"].as_array());
    let used = paths.into_iter().flatten().filter(|p| p["state"] == "used");
    used.filter_map(|p| Some((p["mtu_bytes"].as_u64()?, p["commands"].as_u64()?)))
        .collect()
}

fn wait_paths(pair: &Pair, what: &str, is_so: impl Fn(&[(u64, u64)]) -> bool) -> TestResult {
    wait_until(PATIENCE, what, || is_so(&used_paths(pair)))?;
    Ok(())
}

/// `h1` owns the device, by however many paths.
fn owner(mtu: u16) -> Result<Pair, Box<dyn std::error::Error>> {
    let pair = cluster_with(mtu)?;
    all_see_all(&pair)?;
    change(&pair, "h1")?;
    pair.hosts[0].wait_export(PATIENCE, "d1")?;
    Ok(pair)
}

/// Load from `h1` for `seconds` while something happens; the longest I/O took less than a second, and none
/// has failed.
fn load_while(
    pair: &Pair,
    seconds: &str,
    happens: impl FnOnce() -> TestResult,
) -> Result<u64, Box<dyn std::error::Error>> {
    let bench = [
        "-o",
        "json",
        "bench",
        "d1",
        "--rw",
        "randrw",
        "--depth",
        "8",
        "--ramp",
        "0",
        "--seconds",
        seconds,
        "--destroy-data",
    ];
    let host = &pair.hosts[0];
    let running = host.node().spawn(&mut host.rma_command(&bench))?;
    happens()?;
    let status = running.wait(PATIENCE)?;
    assert!(status.success(), "{}", running.log());
    let log = running.log();
    let last: Value = serde_json::from_str(&log[log.find('{').ok_or("no result")?..])?;
    let mut ios = 0;
    for kind in ["reads", "writes"] {
        let latency = &last["report"][kind];
        let max = latency["max_ns"].as_u64().ok_or("no latency")?;
        assert!(max < 1_000_000_000, "{kind}: {max} ns: {last}");
        ios += latency["count"].as_u64().unwrap_or(0);
    }
    Ok(ios)
}

fn io_uses_all_paths_and_a_cut_cable_costs_less_than_a_second() -> TestResult {
    let pair = owner(9000)?;
    wait_paths(&pair, "four paths with long frames", |paths| {
        paths.len() == 4 && paths.iter().all(|(mtu, _)| *mtu == 9000)
    })?;
    load_while(&pair, "1", || Ok(()))?;
    let paths = used_paths(&pair);
    assert!(paths.iter().all(|(_, commands)| *commands > 0), "{paths:?}");
    for (node, nic) in [
        (pair.hosts[0].node(), 0),
        (pair.unit.node(), 1),
        (pair.hosts[0].node(), 1),
    ] {
        // First without a word: frames just do not come any more.
        let dead = Faults {
            loss_ppm: 1_000_000,
            ..Faults::default()
        };
        load_while(&pair, "3", || {
            pair.rig.switch().set_nic_faults(node, nic, dead)?;
            wait_paths(&pair, "the NIC's paths to be given up", |p| p.len() == 2)?;
            pair.rig
                .switch()
                .set_nic_faults(node, nic, Faults::default())?;
            wait_paths(&pair, "the NIC's paths again", |p| p.len() == 4)
        })?;
        load_while(&pair, "3", || {
            node.nic_link_down(nic)?;
            wait_paths(&pair, "the cable's paths to be given up", |p| p.len() == 2)?;
            node.nic_link_up(nic)?;
            wait_paths(&pair, "the cable's paths again", |p| p.len() == 4)
        })?;
    }
    Ok(())
}

fn a_switch_in_between_that_knows_no_long_frames_is_found_out() -> TestResult {
    let pair = owner(9000)?;
    let all = |mtu: u64| {
        move |paths: &[(u64, u64)]| paths.len() == 4 && paths.iter().all(|(m, _)| *m == mtu)
    };
    wait_paths(&pair, "long frames", all(9000))?;
    load_while(&pair, "4", || {
        pair.rig.switch().set_faults(Faults {
            black_hole_above: Some(1500),
            ..Faults::default()
        })?;
        wait_paths(&pair, "shorter frames", all(1500))
    })?;
    assert!(
        !pair.hosts[0].log().contains("does not answer"),
        "no reconnect"
    );
    Ok(())
}

fn the_mtu_of_interfaces_changes_while_io_runs() -> TestResult {
    let pair = owner(1500)?;
    wait_paths(&pair, "four paths", |p| p.len() == 4)?;
    let set = |node: &Node, mtu: u16| -> TestResult {
        for nic in ["eth0", "eth1"] {
            node.namespace()
                .ip(&format!("link set {nic} mtu {mtu}\n"))?;
        }
        Ok(())
    };
    let long = |mtu: u64| {
        move |paths: &[(u64, u64)]| paths.len() == 4 && paths.iter().all(|(m, _)| *m == mtu)
    };
    load_while(&pair, "6", || {
        set(pair.unit.node(), 9000)?;
        set(pair.hosts[0].node(), 9000)?;
        wait_paths(&pair, "longer frames", long(9000))?;
        set(pair.hosts[0].node(), 1500)?;
        wait_paths(&pair, "shorter frames", long(1500))
    })?;
    Ok(())
}

rma_rig::test_main!(
    rows_and_registrations_name_both_nics,
    management_goes_on_by_the_other_nic_when_a_cable_is_cut,
    a_host_starts_with_one_of_its_cables_out,
    io_uses_all_paths_and_a_cut_cable_costs_less_than_a_second,
    a_switch_in_between_that_knows_no_long_frames_is_found_out,
    the_mtu_of_interfaces_changes_while_io_runs,
);
