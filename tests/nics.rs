//! Two NICs per host and unit: rows and registrations name both, and management goes on by one of them
//! while the other one's cable is out.

use std::time::Duration;

use rma_rig::{Daemon, Node, NodeOptions, Program, Rig, TestResult, station, wait_equal_tables};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);
/// Both interfaces, in place of the one that the rig names.
const BOTH: &str = "eth0,eth1";

struct Pair {
    unit: Daemon,
    hosts: Vec<Daemon>,
    _fabric: Daemon,
    _rig: Rig,
}

/// Fabric services, a unit and two hosts, all but fabric services with two NICs.
fn cluster() -> Result<Pair, Box<dyn std::error::Error>> {
    let rig = Rig::new()?;
    let node = |name: &str, first: u32| {
        let nics = NodeOptions::new(station(first)).nic(station(first + 1));
        rig.add_node(name, nics)
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
        _rig: rig,
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

rma_rig::test_main!(
    rows_and_registrations_name_both_nics,
    management_goes_on_by_the_other_nic_when_a_cable_is_cut,
    a_host_starts_with_one_of_its_cables_out,
);
