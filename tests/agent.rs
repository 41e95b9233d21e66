//! Stories of whole clusters in virtual time: the agents, units and fabric services that the daemons
//! run, on a simulated wire.

use std::time::Duration;

use rma::fabric::Policy;
use rma::rma::request::{AdminReply, AdminRequest, ErrorKind, TableInfo};
use rma::wire::{IocNumber, IodNumber};
use rma_simulator::converged::unconverged;
use rma_simulator::{NodeId, World};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Cluster A of Fig. 1.
struct ClusterA {
    world: World,
    fabric: NodeId,
    h108: NodeId,
    h110: NodeId,
    u112: NodeId,
    u118: NodeId,
}

fn cluster_a(seed: u64) -> ClusterA {
    let mut world = World::new(seed);
    let fabric = world.add_fabric(Policy::AutoJoin);
    let h108 = world.add_host("108", "A");
    let h110 = world.add_host("110", "A");
    let u112 = world.add_unit(
        "112",
        "A",
        &[("114A", &["116A1", "116A2"]), ("114B", &["116B1"])],
    );
    let u118 = world.add_unit("118", "A", &[("120", &["122A"])]);
    ClusterA {
        world,
        fabric,
        h108,
        h110,
        u112,
        u118,
    }
}

fn converged(world: &World) -> bool {
    unconverged(world).is_none()
}

#[track_caller]
fn converge(world: &mut World, patience: Duration) {
    let well = world.run_until(patience, converged);
    assert!(well, "{:?}", unconverged(world));
    assert_eq!(world.model.violations, Vec::<String>::new());
}

#[track_caller]
fn done(reply: AdminReply) -> bool {
    match reply {
        AdminReply::Allocated(info) => info.changed,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(reply: AdminReply, kind: ErrorKind, words: &[&str]) {
    let AdminReply::Error(e) = reply else {
        panic!("{reply:?}");
    };
    assert_eq!(e.kind, kind, "{e}");
    for word in words {
        assert!(e.message.contains(word), "'{word}' is not in: {e}");
    }
    assert!(!e.message.contains('\n'), "{e}");
}

fn table(world: &mut World, host: NodeId) -> TableInfo {
    match world.admin(host, AdminRequest::Table) {
        AdminReply::Table(table) => *table,
        other => panic!("{other:?}"),
    }
}

/// Fig. 4's columns: name, type, number, parent, ownership.
fn figure_4(table: &TableInfo) -> Vec<String> {
    table
        .rows
        .iter()
        .map(|row| {
            let owners: Vec<&str> = row.ownership.owners.iter().map(|o| &*o.name).collect();
            format!(
                "{}|{}|{}|{}|{} {}",
                row.name,
                row.entity,
                match (row.ioc, row.iod) {
                    (0, _) => "-".to_owned(),
                    (ioc, 0) => format!("IOC {ioc}"),
                    (_, iod) => format!("IOD {iod}"),
                },
                row.parent.as_ref().map_or("-", |p| &p.name),
                row.ownership.ownership,
                owners.join(",")
            )
            .trim_end()
            .to_owned()
        })
        .collect()
}

fn allocate_fig_4(a: &mut ClusterA) {
    for (target, hosts) in [
        ("112", &["108", "110"][..]),
        ("114A", &["108", "110"]),
        ("116A1", &["108"]),
        ("116A2", &["110"]),
        ("114B", &["110", "108"]),
        ("116B1", &["108", "110"]),
        ("118", &["110"]),
        ("120", &["110"]),
        ("122A", &["110"]),
    ] {
        assert!(done(a.world.allocate(a.h108, target, hosts)), "{target}");
    }
}

#[test]
fn cluster_a_comes_up_and_its_table_is_fig_4() {
    let mut a = cluster_a(1);
    a.world.start_all();
    converge(&mut a.world, s(10));
    allocate_fig_4(&mut a);
    converge(&mut a.world, s(1));
    for host in [a.h108, a.h110] {
        assert_eq!(
            figure_4(&table(&mut a.world, host)),
            [
                "108|host|-|-|unallocated",
                "110|host|-|-|unallocated",
                "112|I/O unit|-|-|shared 108,110",
                "114A|I/O controller|IOC 1|112|shared 108,110",
                "116A1|I/O device|IOD 1|114A|dedicated 108",
                "116A2|I/O device|IOD 2|114A|dedicated 110",
                "114B|I/O controller|IOC 2|112|shared 108,110",
                "116B1|I/O device|IOD 1|114B|shared 108,110",
                "118|I/O unit|-|-|dedicated 110",
                "120|I/O controller|IOC 1|118|dedicated 110",
                "122A|I/O device|IOD 1|120|dedicated 110",
            ]
        );
    }
}

#[test]
fn a_host_goes_through_the_blocks_of_fig_5_in_order() {
    let mut a = cluster_a(2);
    a.world.start_all();
    converge(&mut a.world, s(10));
    let mut numbers: Vec<u16> = a.world.host(a.h108).blocks.iter().map(|b| b.0).collect();
    numbers.dedup();
    assert_eq!(numbers, [505, 510, 515, 520, 525, 530, 0]);
    assert_eq!(a.world.host(a.h108).exports.as_deref(), Some(&[][..]));
}

#[test]
fn a_host_that_was_away_adopts_what_it_missed() {
    let mut a = cluster_a(3);
    a.world.start_all();
    converge(&mut a.world, s(10));
    a.world.crash(a.h110);
    allocate_fig_4(&mut a);
    a.world.start(a.h110);
    converge(&mut a.world, s(10));
    let host = a.world.host(a.h110);
    let adopted = host
        .blocks
        .iter()
        .any(|(n, text)| *n == 515 && text.contains("108"));
    assert!(adopted, "{:#?}", host.blocks);
    let mut owned: Vec<&str> = host
        .exports
        .iter()
        .flatten()
        .map(|d| &*d.row.name)
        .collect();
    owned.sort_unstable();
    assert_eq!(owned, ["116A2", "116B1", "122A"]);
    let device = &host.exports.as_ref().unwrap()[0];
    assert_eq!(
        (&*device.unit_name, &*device.controller_name),
        ("112", "114A")
    );
    assert_eq!(
        (device.unit_macs[0], device.epoch.0),
        (a.world.mac(a.u112), 1)
    );
}

#[test]
fn a_stale_host_overwrites_nothing() {
    let mut a = cluster_a(4);
    a.world.start_all();
    converge(&mut a.world, s(10));
    allocate_fig_4(&mut a);
    converge(&mut a.world, s(1));
    a.world.crash(a.h110);
    assert!(done(a.world.allocate(a.h108, "116A2", &["108"])));
    assert!(done(a.world.release(a.h108, "122A", false)));
    // It comes back alone with its old table, counts up its stamp, and only then meets the other.
    a.world.part(a.h108, a.h110);
    a.world.part(a.h110, a.u112);
    a.world.part(a.h110, a.u118);
    a.world.start(a.h110);
    a.world.run_for(s(12));
    assert!(a.world.host(a.h110).agent.as_ref().unwrap().is_steady());
    a.world.network.mend();
    converge(&mut a.world, s(10));
    let rows = figure_4(&table(&mut a.world, a.h110));
    assert!(rows.contains(&"116A2|I/O device|IOD 2|114A|dedicated 108".to_owned()));
    assert!(rows.contains(&"122A|I/O device|IOD 1|120|unallocated".to_owned()));
}

#[test]
fn an_allocation_from_any_host_reaches_all_within_a_quarter_second() {
    let mut world = World::new(5);
    world.add_fabric(Policy::AutoJoin);
    let hosts: Vec<NodeId> = (0..12)
        .map(|n| world.add_host(&format!("h{n}"), "A"))
        .collect();
    let unit = world.add_unit("u", "A", &[("c", &["d0", "d1"])]);
    world.start_all();
    converge(&mut world, s(10));
    for (n, host) in hosts.iter().enumerate() {
        let to = [format!("h{n}"), format!("h{}", (n + 1) % 12)];
        let to = [&*to[0], &*to[1]];
        assert!(done(world.allocate(*host, "u", &to)));
        assert!(
            world.run_until(ms(250), converged),
            "{:?}",
            unconverged(&world)
        );
    }
    let register = world
        .unit(unit)
        .unit
        .as_ref()
        .unwrap()
        .register(world.unit(unit).stored.as_ref().unwrap().registers[0].row);
    assert_eq!(register.unwrap().owned.epoch.0, 12);
}

#[test]
fn repeating_an_allocation_changes_nothing_and_says_so() {
    let mut a = cluster_a(6);
    a.world.start_all();
    converge(&mut a.world, s(10));
    assert!(done(a.world.allocate(a.h108, "112", &["108", "110"])));
    let before = table(&mut a.world, a.h108).summary;
    assert!(!done(a.world.allocate(a.h108, "112", &["110", "108"])));
    assert!(!done(a.world.allocate(a.h110, "112", &["110", "108"])));
    assert!(done(a.world.release(a.h110, "112", false)));
    assert!(!done(a.world.release(a.h110, "112", false)));
    converge(&mut a.world, s(1));
    assert_eq!(
        table(&mut a.world, a.h108).summary.stamp.counter,
        before.stamp.counter + 1
    );
}

#[test]
fn what_cannot_be_allocated_is_refused_with_one_line_that_names_it() {
    let mut a = cluster_a(7);
    a.world.start_all();
    let early = a.world.allocate(a.h108, "112", &["108"]);
    refused(early, ErrorKind::NotReady, &["no cluster"]);
    converge(&mut a.world, s(10));
    let w = &mut a.world;
    let h = a.h108;
    refused(
        w.allocate(h, "117", &["108"]),
        ErrorKind::Unknown,
        &["'117'", "rma tree"],
    );
    refused(
        w.allocate(h, "112", &["109"]),
        ErrorKind::Unknown,
        &["'109'"],
    );
    refused(
        w.allocate(h, "110", &["108"]),
        ErrorKind::WrongType,
        &["host 110"],
    );
    refused(
        w.allocate(h, "112", &["118"]),
        ErrorKind::WrongType,
        &["I/O unit 118"],
    );
    refused(
        w.allocate(h, "112", &[]),
        ErrorKind::BadRequest,
        &["no host"],
    );
    refused(
        w.allocate(h, "116A1", &["108"]),
        ErrorKind::Hierarchy,
        &["116A1", "114A", "unallocated"],
    );
    assert!(done(w.allocate(h, "112", &["108", "110"])));
    assert!(done(w.allocate(h, "114A", &["110"])));
    refused(
        w.allocate(h, "116A1", &["108"]),
        ErrorKind::Hierarchy,
        &["116A1", "I/O controller 114A", "dedicated to 110"],
    );
    assert!(done(w.allocate(h, "116A1", &["110"])));
    refused(
        w.allocate(h, "112", &["108"]),
        ErrorKind::Hierarchy,
        &["114A is dedicated to 110", "--recursive"],
    );
    refused(w.release(h, "112", false), ErrorKind::Hierarchy, &["114A"]);
    // A name that two have, a GUID, an address.
    let spec = rma_simulator::device_spec(rma::wire::Guid(0xd0d0), 7, "116A1");
    w.add_device(a.u118, 1, spec);
    converge(w, s(1));
    refused(
        w.release(h, "116A1", false),
        ErrorKind::Ambiguous,
        &["112/114A/116A1", "118/120/116A1"],
    );
    let mac = w.mac(a.u112);
    assert!(done(w.release(h, &format!("{mac}/1/1"), false)));
    assert!(!done(w.release(h, "112/114A/116A1", false)));
    assert!(!done(w.release(
        h,
        "00000000-0000-0000-0000-00000000d0d0",
        false
    )));
    // With everything below.
    assert!(done(w.allocate(h, &format!("{mac}/1/1"), &["110"])));
    match w.release(h, "112", true) {
        AdminReply::Allocated(info) => {
            let names: Vec<&str> = info.changes.iter().map(|c| &*c.row.name).collect();
            assert_eq!(names, ["112", "114A", "116A1"]);
            assert_eq!(info.changes[1].before.ownership, "dedicated");
        }
        other => panic!("{other:?}"),
    }
    converge(w, s(1));
}

#[test]
fn a_recursive_allocation_cuts_down_only_what_is_in_the_way() {
    let mut a = cluster_a(8);
    a.world.start_all();
    converge(&mut a.world, s(10));
    allocate_fig_4(&mut a);
    let reply = a.world.admin(
        a.h110,
        AdminRequest::Allocate {
            target: "112".to_owned(),
            hosts: vec!["110".to_owned()],
            shared: true,
            recursive: true,
        },
    );
    assert!(done(reply));
    converge(&mut a.world, s(1));
    let rows = figure_4(&table(&mut a.world, a.h108));
    for row in [
        "112|I/O unit|-|-|shared 110",
        "114A|I/O controller|IOC 1|112|shared 110",
        "116A1|I/O device|IOD 1|114A|unallocated",
        "116A2|I/O device|IOD 2|114A|dedicated 110",
        "116B1|I/O device|IOD 1|114B|shared 110",
    ] {
        assert!(rows.contains(&row.to_owned()), "{row} is not in {rows:#?}");
    }
    assert_eq!(a.world.host(a.h108).exports.as_deref(), Some(&[][..]));
}

#[test]
fn granularity_decides_what_is_allocated_and_what_follows() {
    let mut a = cluster_a(9);
    a.world.start_all();
    converge(&mut a.world, s(10));
    let set = |w: &mut World, host, g: &str| {
        let granularity = g.to_owned();
        w.admin(host, AdminRequest::GranularitySet { granularity })
    };
    refused(
        set(&mut a.world, a.h108, "disk"),
        ErrorKind::BadRequest,
        &["'disk'", "unit, controller, device"],
    );
    let AdminReply::Granularity(info) = set(&mut a.world, a.h108, "controller") else {
        panic!()
    };
    assert!(info.changed && info.granularity == "controller");
    assert!(a.world.run_until(ms(250), converged));
    let AdminReply::Granularity(info) = a.world.admin(a.h110, AdminRequest::GranularityGet) else {
        panic!()
    };
    assert_eq!(info.granularity, "controller");
    assert!(done(a.world.allocate(a.h110, "112", &["108", "110"])));
    assert!(done(a.world.allocate(a.h110, "114A", &["110"])));
    refused(
        a.world.release(a.h110, "116A1", false),
        ErrorKind::Granularity,
        &["116A1", "by controller", "114A"],
    );
    converge(&mut a.world, s(1));
    let owned: Vec<String> = a
        .world
        .host(a.h110)
        .exports
        .iter()
        .flatten()
        .map(|d| d.row.name.clone())
        .collect();
    assert_eq!(owned, ["116A1", "116A2"]);
    assert!(matches!(
        set(&mut a.world, a.h110, "unit"),
        AdminReply::Granularity(_)
    ));
    converge(&mut a.world, s(1));
    assert!(done(a.world.allocate(a.h108, "112", &["108"])));
    converge(&mut a.world, s(1));
    assert_eq!(a.world.host(a.h108).exports.iter().flatten().count(), 3);
}

#[test]
fn hosts_start_without_fabric_services_from_what_they_know() {
    let mut a = cluster_a(10);
    a.world.start_all();
    converge(&mut a.world, s(10));
    allocate_fig_4(&mut a);
    converge(&mut a.world, s(1));
    a.world.crash(a.fabric);
    a.world.crash(a.h108);
    a.world.start(a.h108);
    let exports = |w: &World| w.host(a.h108).exports.as_ref().map_or(0, Vec::len) == 2;
    assert!(
        a.world.run_until(s(5), exports),
        "{:#?}",
        a.world.host(a.h108).blocks
    );
    assert!(done(a.world.release(a.h108, "116A1", false)));
    let AdminReply::Status(status) = a.world.admin(a.h108, AdminRequest::Status) else {
        panic!()
    };
    assert_eq!(
        (
            &*status.fabric,
            status.peers_reachable,
            status.units_reachable
        ),
        ("down", 1, 2)
    );
    a.world.start(a.fabric);
    converge(&mut a.world, s(10));
    let up = |w: &World| {
        w.host(a.h108)
            .events
            .iter()
            .any(|e| format!("{e:?}").contains("Fabric { state: \"up\" }"))
    };
    assert!(a.world.run_until(s(10), up));
}

#[test]
fn fabric_services_learn_who_owns_a_unit_even_if_they_were_down() {
    let mut a = cluster_a(11);
    a.world.start_all();
    converge(&mut a.world, s(10));
    a.world.crash(a.fabric);
    assert!(done(a.world.allocate(a.h108, "118", &["110"])));
    a.world.crash(a.h108);
    a.world.start(a.fabric);
    a.world.start(a.h108);
    a.world.run_for(s(12));
    let ownership = a.world.with_fabric(a.fabric, |fabric, now| {
        fabric
            .entities(now)
            .find(|view| view.entity.name == "118")
            .map(|view| (view.entity.ownership.word(), view.entity.epoch.0))
    });
    assert_eq!(ownership, Some(Some(("dedicated", 1))));
}

#[test]
fn an_unreachable_unit_is_named_keeps_its_rows_and_comes_back_by_itself() {
    let mut a = cluster_a(12);
    a.world.start_all();
    converge(&mut a.world, s(10));
    allocate_fig_4(&mut a);
    converge(&mut a.world, s(1));
    a.world.link(a.u112, false);
    // Not noticed yet: the answer does not come.
    let reply = a.world.release(a.h108, "116A1", false);
    refused(reply, ErrorKind::Unreachable, &["I/O unit 112", "5.0 s"]);
    a.world.run_for(s(10));
    let reply = a.world.release(a.h108, "116A1", false);
    refused(
        reply,
        ErrorKind::Unreachable,
        &["I/O unit 112", "has not answered for"],
    );
    let AdminReply::Units { units } = a.world.admin(a.h108, AdminRequest::Units) else {
        panic!()
    };
    let states: Vec<(&str, &str)> = units
        .iter()
        .map(|u| (&*u.row.name, &*u.liveness.liveness))
        .collect();
    assert_eq!(states, [("112", "unreachable"), ("118", "reachable")]);
    assert!(units[0].liveness.liveness_ms > 3_000);
    assert!(units.iter().all(|u| u.row.state == "valid"));
    // A reboot meanwhile is not held up, and silence removes nothing.
    a.world.crash(a.h108);
    a.world.start(a.h108);
    let exports = |w: &World| w.host(a.h108).exports.as_ref().map_or(0, Vec::len) == 2;
    assert!(
        a.world.run_until(s(6), exports),
        "{:#?}",
        a.world.host(a.h108).blocks
    );
    // The other one works all the time.
    assert!(done(a.world.release(a.h108, "122A", false)));
    a.world.link(a.u112, true);
    let back = |w: &World| {
        w.host(a.h108)
            .blocks
            .iter()
            .any(|(n, t)| *n == 520 && t.contains("I/O unit 112") && t.contains("answers again"))
    };
    assert!(
        a.world.run_until(s(5), back),
        "{:#?}",
        a.world.host(a.h108).blocks
    );
    assert!(done(a.world.release(a.h108, "116A1", false)));
    converge(&mut a.world, s(2));
}

#[test]
fn an_unreachable_host_does_not_hold_up_the_others_and_catches_up() {
    let mut a = cluster_a(13);
    a.world.start_all();
    converge(&mut a.world, s(10));
    a.world.link(a.h110, false);
    a.world.crash(a.h108);
    a.world.start(a.h108);
    let steady = |w: &World| {
        w.host(a.h108)
            .agent
            .as_ref()
            .is_some_and(rma::rma::Agent::is_steady)
    };
    assert!(
        a.world.run_until(s(4), steady),
        "{:#?}",
        a.world.host(a.h108).blocks
    );
    assert!(done(a.world.allocate(a.h108, "112", &["110"])));
    let AdminReply::Hosts { hosts } = a.world.admin(a.h108, AdminRequest::Hosts) else {
        panic!()
    };
    let states: Vec<&str> = hosts.iter().map(|h| &*h.liveness.liveness).collect();
    assert_eq!(states, ["self", "unreachable"]);
    a.world.link(a.h110, true);
    converge(&mut a.world, s(4));
    // What it says of itself is asked for every two seconds.
    a.world.run_for(s(3));
    let AdminReply::Hosts { hosts } = a.world.admin(a.h108, AdminRequest::Hosts) else {
        panic!()
    };
    assert!(hosts.iter().all(|h| h.member && h.in_step));
}

#[test]
fn a_device_shows_goes_and_comes_back_with_its_owners() {
    let mut a = cluster_a(14);
    a.world.start_all();
    converge(&mut a.world, s(10));
    let spec = rma_simulator::device_spec(rma::wire::Guid(0xd0d0), 3, "116A3");
    a.world.add_device(a.u112, 1, spec);
    assert!(
        a.world.run_until(s(1), converged),
        "{:?}",
        unconverged(&a.world)
    );
    allocate_fig_4(&mut a);
    assert!(done(a.world.allocate(a.h108, "116A3", &["110"])));
    converge(&mut a.world, s(1));
    let spec = a.world.remove_device(a.u112, 1, 3).unwrap();
    assert!(
        a.world.run_until(s(1), converged),
        "{:?}",
        unconverged(&a.world)
    );
    let row = |w: &World, host| {
        w.host(host)
            .agent
            .as_ref()
            .unwrap()
            .table()
            .get(spec.guid)
            .unwrap()
            .clone()
    };
    assert!(!row(&a.world, a.h110).is_valid());
    assert_eq!(a.world.host(a.h110).exports.iter().flatten().count(), 3);
    refused(
        a.world.release(a.h108, "116A3", false),
        ErrorKind::Invalid,
        &["116A3"],
    );
    a.world.add_device(a.u112, 1, spec.clone());
    assert!(
        a.world.run_until(s(1), converged),
        "{:?}",
        unconverged(&a.world)
    );
    assert_eq!(row(&a.world, a.h108).ownership.word(), "dedicated");
    assert_eq!(a.world.host(a.h110).exports.iter().flatten().count(), 4);
    // Gone while its controller goes to another host: it comes back unallocated.
    a.world.remove_device(a.u112, 1, 3);
    converge(&mut a.world, s(1));
    let reply = a.world.admin(
        a.h108,
        AdminRequest::Allocate {
            target: "114A".into(),
            hosts: vec!["108".into()],
            shared: false,
            recursive: true,
        },
    );
    assert!(done(reply));
    a.world.add_device(a.u112, 1, spec.clone());
    assert!(
        a.world.run_until(s(1), converged),
        "{:?}",
        unconverged(&a.world)
    );
    assert_eq!(row(&a.world, a.h110).ownership.word(), "unallocated");
    assert_eq!(a.world.model.violations, Vec::<String>::new());
}

#[test]
fn a_controller_that_comes_back_without_a_device_is_not_kept_out() {
    let mut a = cluster_a(15);
    a.world.start_all();
    converge(&mut a.world, s(10));
    allocate_fig_4(&mut a);
    converge(&mut a.world, s(1));
    let (spec, mut devices) = a.world.remove_controller(a.u112, 1).unwrap();
    a.world.run_for(s(1));
    assert_eq!(a.world.host(a.h108).exports.iter().flatten().count(), 1);
    let reply = a.world.admin(
        a.h108,
        AdminRequest::Release {
            target: "112".into(),
            recursive: true,
        },
    );
    assert!(done(reply));
    assert_eq!(devices.remove(0).name, "116A1");
    a.world.add_controller(a.u112, spec, devices);
    converge(&mut a.world, s(2));
    let rows = figure_4(&table(&mut a.world, a.h110));
    assert!(
        rows.contains(&"116A2|I/O device|IOD 2|114A|unallocated".to_owned()),
        "{rows:#?}"
    );
}

#[test]
fn a_discovery_that_all_hosts_make_is_told_by_few() {
    let mut world = World::new(16);
    world.add_fabric(Policy::AutoJoin);
    for n in 0..24 {
        world.add_host(&format!("h{n}"), "A");
    }
    let unit = world.add_unit("u", "A", &[("c", &["d0"])]);
    world.start_all();
    converge(&mut world, s(10));
    world.run_for(s(5));
    let before = world.kinds.clone();
    let spec = rma_simulator::device_spec(rma::wire::Guid(0xd0d0), 2, "d1");
    world.add_device(unit, 1, spec);
    assert!(world.run_until(s(1), converged));
    world.run_for(s(1));
    let since = |kind: &str| world.kinds.get(kind).unwrap_or(&0) - before.get(kind).unwrap_or(&0);
    // Offers are counted with their answers; a storm would be 24 * 23 of each.
    assert!(since("offer") <= 2 * 24 * 4, "{} offers", since("offer"));
    assert_eq!(since("table-rows"), 0);
    assert_eq!(world.model.violations, Vec::<String>::new());
}

#[test]
fn two_clusters_share_a_wire_and_nothing_else() {
    let mut a = cluster_a(17);
    let h130 = a.world.add_host("130", "B");
    a.world.add_unit("132", "B", &[("134", &["136"])]);
    a.world.add_unit("138", "B", &[("140", &["142"])]);
    a.world.start_all();
    a.world.run_for(s(6));
    assert!(done(a.world.allocate(h130, "132", &["130"])));
    refused(
        a.world.allocate(h130, "112", &["130"]),
        ErrorKind::Unknown,
        &["'112'"],
    );
    refused(
        a.world.allocate(a.h108, "112", &["130"]),
        ErrorKind::Unknown,
        &["'130'"],
    );
    a.world.run_for(s(2));
    let b = figure_4(&table(&mut a.world, h130));
    let names: Vec<&str> = b.iter().filter_map(|r| r.split('|').next()).collect();
    assert_eq!(names, ["130", "132", "134", "136", "138", "140", "142"]);
    assert_eq!(figure_4(&table(&mut a.world, a.h110)).len(), 11);
}

#[test]
fn a_host_waits_for_its_cluster_and_stops_when_it_is_moved_to_another() {
    let mut world = World::new(18);
    let fabric = world.add_fabric(Policy::Pending);
    let host = world.add_host("h", "A");
    world.start_all();
    world.run_for(s(8));
    let AdminReply::Status(status) = world.admin(host, AdminRequest::Status) else {
        panic!()
    };
    assert_eq!(
        (&*status.fabric, status.block, &*status.cluster),
        ("pending", 505, "")
    );
    refused(
        world.allocate(host, "u", &["h"]),
        ErrorKind::NotReady,
        &["no cluster"],
    );
    let assign = |w: &mut World, cluster: &str| {
        let cluster = cluster.parse().unwrap();
        w.with_fabric(fabric, |f, now| {
            let guid = f.resolve("h").unwrap();
            f.assign(now, guid, cluster).unwrap();
        });
    };
    assign(&mut world, "A");
    let steady = |w: &World| {
        w.host(host)
            .agent
            .as_ref()
            .is_some_and(rma::rma::Agent::is_steady)
    };
    assert!(world.run_until(s(5), steady));
    assert_eq!(
        world.host(host).agent.as_ref().unwrap().cluster().as_str(),
        "A"
    );
    assign(&mut world, "B");
    assert!(world.run_until(s(10), |w| w.host(host).moved.is_some()));
    assert_eq!(world.host(host).moved.unwrap().as_str(), "B");
    refused(
        world.allocate(host, "u", &["h"]),
        ErrorKind::NotReady,
        &["stopped"],
    );
}

#[test]
fn what_cannot_be_stored_is_not_acknowledged_and_is_stored_later() {
    let mut a = cluster_a(19);
    a.world.start_all();
    converge(&mut a.world, s(10));
    // Only the host's disk: the others are spared, and vote.
    a.world.disks.failure = 1.0;
    a.world.disks.spared = vec![a.u112, a.u118, a.h110];
    let reply = a.world.allocate(a.h108, "112", &["108"]);
    refused(
        reply,
        ErrorKind::NotPersisted,
        &["I/O unit 112", "has made the change", "repeating is safe"],
    );
    assert_eq!(a.world.host(a.h108).exports.as_deref(), Some(&[][..]));
    a.world.disks.failure = 0.0;
    converge(&mut a.world, s(5));
    assert!(!done(a.world.allocate(a.h108, "112", &["108"])));
}

#[test]
fn those_who_watch_are_told_what_happens() {
    let mut a = cluster_a(20);
    a.world.start_all();
    converge(&mut a.world, s(10));
    let lines = |w: &World, host| -> Vec<String> {
        w.host(host)
            .events
            .iter()
            .map(|e| serde_json::to_string(e).unwrap())
            .collect()
    };
    let told = |w: &World, host, words: &[&str]| {
        let found = lines(w, host)
            .iter()
            .any(|l| words.iter().all(|word| l.contains(word)));
        assert!(found, "{words:?} is not in {:#?}", lines(w, host));
    };
    assert!(done(a.world.allocate(a.h108, "118", &["110"])));
    converge(&mut a.world, s(1));
    told(
        &a.world,
        a.h110,
        &[
            "\"event\":\"ownership-changed\"",
            "\"name\":\"118\"",
            "\"ownership\":\"unallocated\"",
            "\"ownership\":\"dedicated\"",
        ],
    );
    a.world.remove_device(a.u118, 1, 1);
    converge(&mut a.world, s(1));
    told(&a.world, a.h108, &["\"event\":\"removed\"", "122A"]);
    a.world.crash(a.u118);
    a.world.crash(a.h110);
    a.world.run_for(s(12));
    told(
        &a.world,
        a.h108,
        &["\"event\":\"unreachable\"", "\"name\":\"118\"", "I/O unit"],
    );
    told(
        &a.world,
        a.h108,
        &["\"event\":\"unreachable\"", "\"name\":\"110\"", "host"],
    );
}

#[test]
fn hostile_frames_are_counted_and_change_nothing() {
    let mut a = cluster_a(21);
    a.world.capture = Some(Vec::new());
    a.world.start_all();
    converge(&mut a.world, s(10));
    allocate_fig_4(&mut a);
    converge(&mut a.world, s(1));
    let heard: Vec<_> = a
        .world
        .capture
        .take()
        .unwrap()
        .into_iter()
        .filter(|f| !f.service)
        .collect();
    let digest = table(&mut a.world, a.h108).summary.digest;
    let mut rng = fastrand::Rng::with_seed(21);
    let stranger = rma::wire::Mac([2, 9, 9, 9, 9, 9]);
    for n in 0..20_000 {
        let frame = match n % 4 {
            0 => {
                let len = rng.usize(0..200);
                std::iter::repeat_with(|| rng.u8(..)).take(len).collect()
            }
            1 => {
                // A late or foreign copy of a real frame.
                rng.choice(&heard).unwrap().bytes.to_vec()
            }
            2 => {
                let mut bytes = rng.choice(&heard).unwrap().bytes.to_vec();
                bytes.truncate(rng.usize(0..=bytes.len()));
                bytes
            }
            _ => {
                // A body that does not parse, in a frame that does.
                let whole = rng.choice(&heard).unwrap();
                let (header, body) = rma::wire::Header::parse(&whole.bytes, false).unwrap();
                let mut body = body.to_vec();
                for _ in 0..rng.usize(1..4) {
                    if !body.is_empty() {
                        let at = rng.usize(0..body.len());
                        body[at] = rng.u8(..);
                    }
                }
                let mut bytes = Vec::new();
                header.emit(&body, &mut bytes);
                bytes
            }
        };
        let src = if rng.bool() {
            stranger
        } else {
            rng.choice(&heard).unwrap().src
        };
        a.world.inject(a.h108, false, src, frame);
        if n % 500 == 0 {
            a.world.run_for(ms(20));
        }
    }
    a.world.run_for(s(12));
    assert!(
        a.world.run_until(s(10), converged),
        "{:?}",
        unconverged(&a.world)
    );
    assert_eq!(table(&mut a.world, a.h108).summary.digest, digest);
    let AdminReply::Status(status) = a.world.admin(a.h108, AdminRequest::Status) else {
        panic!()
    };
    assert!(
        status.drops.iter().map(|d| d.count).sum::<u64>() > 10_000,
        "{:?}",
        status.drops
    );
}

#[test]
fn replies_cross_the_control_socket_as_json() {
    let mut a = cluster_a(22);
    a.world.start_all();
    converge(&mut a.world, s(10));
    allocate_fig_4(&mut a);
    for request in [
        AdminRequest::Status,
        AdminRequest::Hosts,
        AdminRequest::Units,
        AdminRequest::Devices,
        AdminRequest::Tree,
        AdminRequest::Table,
        AdminRequest::Exports,
        AdminRequest::GranularityGet,
        AdminRequest::Watch,
        AdminRequest::Release {
            target: "116A1".into(),
            recursive: false,
        },
        AdminRequest::Release {
            target: "nothing".into(),
            recursive: false,
        },
    ] {
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(
            serde_json::from_str::<AdminRequest>(&line).unwrap(),
            request
        );
        let reply = a.world.admin(a.h108, request);
        let line = serde_json::to_string(&reply).unwrap();
        assert_eq!(
            serde_json::from_str::<AdminReply>(&line).unwrap(),
            reply,
            "{line}"
        );
    }
}

#[test]
fn too_many_requests_at_a_time_are_told_to_come_again() {
    let mut a = cluster_a(23);
    a.world.start_all();
    converge(&mut a.world, s(10));
    // The unit does not answer, and it is not noticed yet.
    a.world.link(a.u112, false);
    let release = || AdminRequest::Release {
        target: "112".into(),
        recursive: false,
    };
    for _ in 0..rma::rma::MAX_PENDING_REQUESTS {
        a.world.ask(a.h108, release());
    }
    let reply = a.world.admin(a.h108, release());
    refused(reply, ErrorKind::Busy, &["64"]);
    a.world.link(a.u112, true);
    a.world.run_for(s(4));
    let answered = a.world.host(a.h108).replies.values();
    let done = answered.filter(|r| matches!(r, AdminReply::Allocated(_)));
    assert_eq!(done.count(), rma::rma::MAX_PENDING_REQUESTS);
}

#[test]
fn an_allocation_whose_row_is_forgotten_meanwhile_is_answered() {
    let mut taken_out = 0;
    for seed in 0..12 {
        let ClusterA {
            mut world,
            h108,
            u112,
            ..
        } = cluster_a(seed);
        world.start_all();
        converge(&mut world, s(10));
        for above in ["112", "114B"] {
            assert!(done(world.allocate(h108, above, &["110"])));
        }
        let place = (IocNumber(2), IodNumber(1));
        let device = world.unit(u112).contents.devices[&place].guid;
        world.disks.sync = s(1);
        let allocate = AdminRequest::Allocate {
            target: "116B1".to_owned(),
            hosts: vec!["110".to_owned()],
            shared: false,
            recursive: true,
        };
        let allocation = world.ask(h108, allocate);
        let made = |world: &World| {
            let stored = world.unit(u112).stored.as_ref();
            stored.is_some_and(|stored| stored.registers.iter().any(|r| r.row == device))
        };
        assert!(world.run_until(s(20), made), "the unit makes no change");
        world.remove_device(u112, 2, 1).expect("it is there");
        world.run_for(ms(300));
        let target = device.to_string();
        let forget = world.ask(h108, AdminRequest::Forget { target });
        world.run_for(s(30));
        let replies = &world.host(h108).replies;
        assert!(replies.contains_key(&forget), "seed {seed}");
        match replies.get(&allocation) {
            Some(AdminReply::Error(e)) if e.kind == ErrorKind::Invalid => taken_out += 1,
            Some(AdminReply::Allocated(_)) => {}
            other => panic!("seed {seed}: {other:?}"),
        }
    }
    assert!(taken_out > 0, "the row was never forgotten in time");
}
