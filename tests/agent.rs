//! Stories of whole clusters in virtual time: the agents, units and fabric services that the daemons
//! run, on a simulated wire.

use std::time::Duration;

use rma::fabric::Policy;
use rma::rma::request::{AdminReply, AdminRequest, ErrorKind, TableInfo};
use rma_simulator::check::unconverged;
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
    if !world.run_until(patience, converged) {
        panic!("{:?}", unconverged(world));
    }
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
