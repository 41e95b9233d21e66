//! Stories of the central source in virtual time: fabric services keep the cluster's table, hosts
//! start from it, and no harm is done where it is old, gone or false.

use std::time::Duration;

use rma::crt::{Table, TableChange};
use rma::fabric::{Catalog, MemoryCatalog, Policy};
use rma::rma::request::{AdminReply, AdminRequest, StatusInfo};
use rma::rma::{Agent, CrtSource};
use rma::wire::row::MAX_STAMP;
use rma::wire::{ClusterName, EntityType, Guid, Ownership, Row, Settings, TableStamp};
use rma_simulator::converged::{unconverged, uneven_stamps};
use rma_simulator::{NodeId, World};

const fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn a() -> ClusterName {
    "A".parse().unwrap()
}

/// Three hosts that use the central source, two units, fabric services.
struct Cluster {
    world: World,
    fabric: NodeId,
    hosts: Vec<NodeId>,
    u112: NodeId,
    u118: NodeId,
}

fn cluster(seed: u64) -> Cluster {
    let mut world = World::new(seed);
    let fabric = world.add_fabric(Policy::AutoJoin);
    let hosts: Vec<_> = ["108", "109", "110"]
        .into_iter()
        .map(|name| central(&mut world, name))
        .collect();
    let u112 = world.add_unit("112", "A", &[("114", &["116A", "116B"])]);
    let u118 = world.add_unit("118", "A", &[("120", &["122A"])]);
    world.start_all();
    let mut cluster = Cluster {
        world,
        fabric,
        hosts,
        u112,
        u118,
    };
    cluster.converge(s(10));
    let is_kept = |world: &World| {
        let fabric = world.fabric(fabric).fabric.as_ref();
        fabric.is_some_and(|fabric| fabric.tables().count() > 0)
    };
    assert!(cluster.world.run_until(s(10), is_kept));
    cluster.converge(s(10));
    cluster
}

fn central(world: &mut World, name: &str) -> NodeId {
    let host = world.add_host(name, "A");
    world.host_mut(host).crt_source = CrtSource::Central;
    host
}

impl Cluster {
    #[track_caller]
    fn converge(&mut self, patience: Duration) {
        converge(&mut self.world, patience);
    }

    #[track_caller]
    fn allocate(&mut self, from: usize, device: &str, to: &str) {
        for target in ["112", "114", device] {
            let reply = self.world.allocate(self.hosts[from], target, &[to]);
            assert!(matches!(reply, AdminReply::Allocated(_)), "{reply:?}");
        }
    }

    fn kept(&mut self) -> Option<Table> {
        kept(&mut self.world, self.fabric)
    }

    fn down(&mut self, nodes: &[NodeId]) {
        for node in nodes {
            self.world.crash(*node);
        }
    }
}

fn kept(world: &mut World, fabric: NodeId) -> Option<Table> {
    let fabric = world.fabric_mut(fabric).fabric.as_ref()?;
    let kept = fabric.tables().find(|(name, _)| *name == a());
    kept.map(|(_, table)| table.clone())
}

#[track_caller]
fn converge(world: &mut World, patience: Duration) {
    let well = world.run_until(patience, |world| unconverged(world).is_none());
    assert!(well, "{:?}", unconverged(world));
    assert_eq!(world.model.violations, Vec::<String>::new());
}

fn agent(world: &World, host: NodeId) -> &Agent {
    world.host(host).agent.as_ref().expect("it runs")
}

fn row<'a>(world: &'a World, host: NodeId, name: &str) -> Option<&'a Row> {
    let table = agent(world, host).table();
    table.rows().find(|row| row.name == name)
}

fn steady(world: &mut World, host: NodeId, patience: Duration) {
    let is = world.run_until(patience, |world| agent(world, host).is_steady());
    assert!(is, "{:#?}", world.host(host).blocks);
}

/// What the log says of blocks 510 and 515.
fn told(world: &World, host: NodeId, words: &str) -> bool {
    let blocks = &world.host(host).blocks;
    blocks.iter().any(|(_, text)| text.contains(words))
}

#[track_caller]
fn assert_told(world: &World, host: NodeId, words: &str) {
    let blocks = &world.host(host).blocks;
    assert!(told(world, host, words), "'{words}' is not in {blocks:#?}");
}

fn status(world: &mut World, host: NodeId) -> StatusInfo {
    match world.admin(host, AdminRequest::Status) {
        AdminReply::Status(info) => *info,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_newcomer_starts_from_the_centre_alone() {
    let mut c = cluster(1);
    c.allocate(0, "116A", "109");
    let gone = c.world.remove_device(c.u112, 1, 2);
    assert!(gone.is_some());
    c.converge(s(10));
    // Everybody else is down: hosts, units.
    let all: Vec<_> = c.hosts.iter().copied().chain([c.u112, c.u118]).collect();
    c.down(&all);
    let newcomer = central(&mut c.world, "111");
    c.world.start(newcomer);
    steady(&mut c.world, newcomer, s(10));
    assert_told(&c.world, newcomer, "fabric services keep the table");
    let owned = row(&c.world, newcomer, "116A").expect("it is in the table");
    let h109 = row(&c.world, newcomer, "109").expect("it is in the table");
    assert_eq!(owned.ownership, Ownership::Dedicated(h109.guid));
    assert!(owned.owned.epoch.0 > 0);
    let tombstone = row(&c.world, newcomer, "116B").expect("a tombstone");
    assert!(!tombstone.is_valid());
    assert_eq!(agent(&c.world, newcomer).table().len(), 11);
    assert!(row(&c.world, newcomer, "122A").is_some_and(Row::is_valid));
    // The others come back, and all are equal.
    c.world.start_all();
    c.converge(s(15));
}

/// Frames of the kinds that tables cross in: digests, rows, offers, deposits; and stamps.
fn frames(world: &World) -> [u64; 5] {
    let kinds = [
        "table-digests",
        "table-rows",
        "offer",
        "deposit",
        "table-stamp",
    ];
    kinds.map(|kind| world.kinds.get(kind).copied().unwrap_or(0))
}

fn since(world: &World, before: [u64; 5]) -> [u64; 5] {
    let now = frames(world);
    std::array::from_fn(|n| now[n] - before[n])
}

#[test]
fn a_start_from_the_centre_asks_no_peer() {
    for (source, most) in [(CrtSource::Central, 1), (CrtSource::Peers, 4)] {
        let mut c = cluster(2);
        let more: Vec<_> = (0..9)
            .map(|n| central(&mut c.world, &format!("more{n}")))
            .collect();
        c.world.start_all();
        c.converge(s(10));
        c.world.run_for(s(10));
        c.world.crash(more[0]);
        let host = c.world.host_mut(more[0]);
        host.stored = rma_simulator::StoredTable::default();
        host.crt_source = source;
        let before = frames(&c.world);
        c.world.start(more[0]);
        c.converge(s(10));
        let [digests, rows, offers, deposits, stamps] = since(&c.world, before);
        println!(
            "{source:?}: {digests} digests, {rows} rows, {offers} offers, {deposits} deposits, {stamps} stamps"
        );
        // A request of one frame, and the table of 19 rows in three.
        assert!(rows <= most * 4, "{rows} frames of rows");
        if source == CrtSource::Central {
            assert_told(&c.world, more[0], "getting the table of fabric services");
            assert!(!told(&c.world, more[0], "RMAs told their stamps"));
            // The peers had nothing to look for.
            assert!(digests <= 4 && deposits == 0);
        } else {
            assert_told(&c.world, more[0], "11 of 11 RMAs told their stamps");
        }
    }
}

#[test]
fn what_is_published_goes_to_the_centre() {
    let mut c = cluster(3);
    c.world.run_for(s(10));
    let before = frames(&c.world);
    c.allocate(1, "116A", "110");
    c.converge(s(1));
    let [digests, rows, _, deposits, _] = since(&c.world, before);
    assert_eq!((digests, rows, deposits), (0, 0, 0), "offers do");
    let kept = c.kept().expect("a table");
    assert_eq!(kept.digest(), agent(&c.world, c.hosts[0]).table().digest());
    c.world.run_for(s(15));
    assert_eq!(uneven_stamps(&c.world), None);
    let centre = status(&mut c.world, c.hosts[2]).centre.expect("it is used");
    assert!(centre.in_step);
    // Nothing happens, and nothing but stamps crosses.
    let before = frames(&c.world);
    c.world.run_for(s(60));
    assert_eq!(since(&c.world, before)[..4], [0; 4]);
}

#[test]
fn an_old_centre_is_noticed_and_the_peers_are_asked() {
    let mut c = cluster(4);
    c.world.run_for(s(10));
    let backup = c
        .world
        .fabric_mut(c.fabric)
        .fabric
        .as_mut()
        .map(|f| f.catalog_mut().clone());
    c.allocate(0, "116A", "108");
    c.converge(s(5));
    let returning = c.hosts[2];
    c.down(&[returning, c.fabric]);
    let services = c.world.fabric_mut(c.fabric);
    services.forge(|catalog| catalog.take_tables_of(&backup.expect("it ran")));
    // Nobody brings the centre up to date before the host asks it.
    let others = [c.hosts[0], c.hosts[1]];
    for other in others {
        c.world.part(other, c.fabric);
    }
    c.world.start(c.fabric);
    c.world.start(returning);
    steady(&mut c.world, returning, s(20));
    assert_told(&c.world, returning, "which is older than the stored");
    assert_told(&c.world, returning, "RMAs told their stamps");
    assert_eq!(row(&c.world, returning, "116A").unwrap().owned.epoch.0, 1);
    c.world.network.mend();
    c.converge(s(20));
}

#[test]
fn a_newcomer_learns_of_an_old_centre_from_the_list_of_members() {
    let mut c = cluster(5);
    c.world.run_for(s(10));
    let backup = c
        .world
        .fabric_mut(c.fabric)
        .fabric
        .as_mut()
        .map(|f| f.catalog_mut().clone());
    c.allocate(0, "116A", "108");
    c.converge(s(5));
    let hosts = c.hosts.clone();
    c.down(&hosts);
    c.down(&[c.fabric]);
    let services = c.world.fabric_mut(c.fabric);
    services.forge(|catalog| catalog.take_tables_of(&backup.expect("it ran")));
    let newcomer = central(&mut c.world, "111");
    c.world.start(c.fabric);
    c.world.start(newcomer);
    steady(&mut c.world, newcomer, s(20));
    assert_told(&c.world, newcomer, "112 (");
    assert_told(&c.world, newcomer, "was allocated since");
    // The units tell who owns what, whatever the centre says.
    assert_eq!(row(&c.world, newcomer, "116A").unwrap().owned.epoch.0, 1);
    c.world.start_all();
    c.converge(s(20));
}

#[test]
fn facts_of_one_stamp_that_differ_reach_the_centre_without_a_flood() {
    let mut c = cluster(8);
    c.world.run_for(s(10));
    // As a host keeps a tombstone that had not heard of the last change before it.
    let mut table = c.kept().expect("a table");
    c.down(&[c.fabric]);
    let mut row = row(&c.world, c.hosts[0], "116A")
        .expect("it is there")
        .clone();
    row.size_bytes -= 4096;
    let changed = table.insert(row);
    let change = TableChange::of(&table, &changed);
    c.world.fabric_mut(c.fabric).forge(|catalog| {
        catalog
            .commit_table(a(), &change, "")
            .expect("it is in memory");
    });
    let before = frames(&c.world);
    c.world.start(c.fabric);
    c.converge(s(15));
    let all: u64 = since(&c.world, before)[..4].iter().sum();
    assert!(all < 100, "{all} frames");
}

#[test]
fn a_centre_that_lost_its_database_is_filled_again_in_one_step() {
    let mut c = cluster(6);
    c.allocate(0, "116A", "108");
    c.converge(s(5));
    c.down(&[c.fabric]);
    c.world
        .fabric_mut(c.fabric)
        .forge(MemoryCatalog::lose_tables);
    c.world.start(c.fabric);
    let fabric = c.fabric;
    let rows = agent(&c.world, c.hosts[0]).table().len();
    let mut seen = Vec::new();
    c.world.run_until(s(15), |world| {
        let fabric = world.fabric(fabric).fabric.as_ref();
        let mut tables = fabric.into_iter().flat_map(rma::fabric::Fabric::tables);
        if let Some((_, table)) = tables.next() {
            seen.push(table.len());
        }
        !seen.is_empty()
    });
    assert_eq!(seen, [rows], "nobody ever sees a part of it");
    c.converge(s(15));
}

#[test]
fn a_host_with_a_table_and_a_centre_without_one_needs_the_peers() {
    let mut c = cluster(7);
    let returning = c.hosts[1];
    c.down(&[returning, c.fabric]);
    c.allocate(0, "116A", "108");
    c.world
        .fabric_mut(c.fabric)
        .forge(MemoryCatalog::lose_tables);
    c.world.part(c.hosts[0], c.fabric);
    c.world.part(c.hosts[2], c.fabric);
    c.world.start(c.fabric);
    c.world.start(returning);
    steady(&mut c.world, returning, s(20));
    assert_told(&c.world, returning, "keep no table of this cluster");
    assert_told(&c.world, returning, "RMAs told their stamps");
    c.world.network.mend();
    c.converge(s(20));
}

#[test]
fn without_fabric_services_the_peers_are_asked_and_allocations_go_on() {
    let mut c = cluster(8);
    let returning = c.hosts[1];
    c.down(&[returning, c.fabric]);
    c.allocate(0, "116A", "108");
    c.world.start(returning);
    steady(&mut c.world, returning, s(20));
    assert_told(&c.world, returning, "cannot be asked for the table");
    c.allocate(1, "116B", "108");
    assert_eq!(status(&mut c.world, returning).centre, None);
    c.converge(s(5));
    c.world.start(c.fabric);
    c.converge(s(20));
    let kept = c.kept().expect("it is kept again");
    let owned = kept.rows().find(|row| row.name == "116B").expect("a row");
    assert_eq!(owned.owned.epoch.0, 1);
}

#[test]
fn fabric_services_that_die_while_they_are_asked_hold_nobody_up() {
    let mut c = cluster(9);
    let returning = c.hosts[1];
    c.down(&[returning]);
    c.allocate(0, "116A", "108");
    c.world.start(returning);
    // Until it is in block 510.
    let there = c.world.run_until(s(5), |world| {
        let blocks = &world.host(returning).blocks;
        blocks.iter().any(|(number, _)| *number == 510)
    });
    assert!(there);
    c.down(&[c.fabric]);
    steady(&mut c.world, returning, s(20));
    assert_told(
        &c.world,
        returning,
        "asking the other RMAs for their stamps",
    );
    c.converge(s(5));
}

/// Puts this table where fabric services, which are down, keep that of cluster A.
fn plant(world: &mut World, fabric: NodeId, table: &Table) {
    let all: Vec<Guid> = table.rows().map(|row| row.guid).collect();
    let change = TableChange::of(table, &all);
    world.fabric_mut(fabric).forge(|catalog| {
        catalog.lose_tables();
        catalog.commit_table(a(), &change, "").unwrap();
    });
}

#[test]
fn tables_with_stamps_of_no_honest_host_are_not_taken() {
    let far = |term| TableStamp {
        term,
        counter: 1,
        writer: Guid(0xbad),
    };
    for term in [1 << 40, MAX_STAMP] {
        let mut c = cluster(10);
        let returning = c.hosts[1];
        c.down(&[returning, c.fabric]);
        let rows = c.world.host(returning).stored.table();
        let rows = rows.rows().filter(|row| row.entity != EntityType::Device);
        let rows: Vec<_> = rows.cloned().map(std::sync::Arc::new).collect();
        let false_table = Table::restore(Settings::default(), far(term), far(term), rows);
        plant(&mut c.world, c.fabric, &false_table);
        c.world.start(c.fabric);
        c.world.start(returning);
        steady(&mut c.world, returning, s(20));
        assert!(row(&c.world, returning, "116A").is_some());
        if term < MAX_STAMP {
            let refused = status(&mut c.world, returning).refused;
            let named = refused.iter().any(|line| line.contains("fabric services"));
            assert!(named, "{refused:?}");
            assert_told(&c.world, returning, "RMAs told their stamps");
        }
        // A stamp that could not be outranked is none when the catalog is read: the table is joined.
        let table = agent(&c.world, returning).table();
        assert!(table.stamp().term < 1 << 40 && table.get(Guid(0xbad)).is_none());
        assert_eq!(c.world.model.violations, Vec::<String>::new());
    }
}

#[test]
fn older_facts_under_a_newer_stamp_do_no_harm() {
    let mut c = cluster(11);
    c.allocate(0, "116A", "108");
    c.converge(s(5));
    c.world.run_for(s(10));
    let table = agent(&c.world, c.hosts[0]).table().clone();
    let hosts = c.hosts.clone();
    c.down(&hosts);
    c.down(&[c.fabric]);
    // Nobody owns anything, says a table with the largest stamp; another row is somebody else's.
    let mut rows: Vec<Row> = table.rows().cloned().collect();
    for row in &mut rows {
        row.ownership = Ownership::Unallocated;
        row.owned = rma::wire::OwnershipStamp::default();
    }
    let stamp = TableStamp {
        counter: table.stamp().counter + 1000,
        ..table.stamp()
    };
    let rows = rows.into_iter().map(std::sync::Arc::new);
    let old = Table::restore(Settings::default(), stamp, stamp, rows);
    plant(&mut c.world, c.fabric, &old);
    c.world.start(c.fabric);
    for host in &hosts {
        c.world.start(*host);
    }
    c.converge(s(20));
    assert_eq!(row(&c.world, hosts[1], "116A").unwrap().owned.epoch.0, 1);
    let kept = c.kept().expect("a table");
    let owned = kept.rows().find(|row| row.name == "116A").expect("a row");
    assert_eq!(owned.owned.epoch.0, 1);
}

#[test]
fn hosts_of_both_sources_are_one_cluster() {
    let mut c = cluster(12);
    let plain = c.world.add_host("111", "A");
    c.world.start(plain);
    c.converge(s(10));
    assert_eq!(status(&mut c.world, plain).crt_source, "peers");
    // What the one allocates that does not use the centre reaches it by those that do.
    for target in ["112", "114", "116A"] {
        let reply = c.world.allocate(plain, target, &["111"]);
        assert!(matches!(reply, AdminReply::Allocated(_)), "{reply:?}");
    }
    c.converge(s(10));
    c.allocate_more();
    c.converge(s(10));
    assert_eq!(row(&c.world, plain, "116B").unwrap().owned.epoch.0, 1);
}

impl Cluster {
    fn allocate_more(&mut self) {
        let reply = self.world.allocate(self.hosts[0], "116B", &["111"]);
        assert!(matches!(reply, AdminReply::Allocated(_)), "{reply:?}");
    }
}

#[test]
fn a_purge_reaches_the_centre_and_is_not_undone_by_it() {
    let mut c = cluster(13);
    for host in c.hosts.clone() {
        c.world.host_mut(host).intervals.purge_after = s(60);
        c.world.kill(host);
        c.world.start(host);
    }
    c.converge(s(10));
    assert!(c.world.remove_device(c.u112, 1, 2).is_some());
    c.converge(s(10));
    let gone = row(&c.world, c.hosts[0], "116B").expect("a tombstone").guid;
    let backup = c
        .world
        .fabric_mut(c.fabric)
        .fabric
        .as_mut()
        .map(|f| f.catalog_mut().clone());
    let fabric = c.fabric;
    let purged = |world: &World| {
        let tables = world
            .fabric(fabric)
            .fabric
            .iter()
            .flat_map(rma::fabric::Fabric::tables);
        let kept: Vec<_> = tables.map(|(_, table)| table.get(gone).is_none()).collect();
        world
            .hosts()
            .all(|(_, h)| h.agent.as_ref().unwrap().table().get(gone).is_none())
            && kept == [true]
    };
    assert!(c.world.run_until(s(200), purged), "it is purged everywhere");
    c.converge(s(20));
    let floor = c.kept().expect("a table").floor();
    assert!(floor > TableStamp::default());
    assert_eq!(floor, agent(&c.world, c.hosts[0]).table().floor());
    // The database of the day before has the row, and it does not come back.
    c.down(&[c.fabric]);
    let services = c.world.fabric_mut(c.fabric);
    services.forge(|catalog| catalog.take_tables_of(&backup.expect("it ran")));
    c.world.start(c.fabric);
    c.world.run_for(s(20));
    assert!(purged(&c.world));
    c.converge(s(20));
}

#[test]
fn two_fabric_services_keep_a_table_each() {
    let mut c = cluster(14);
    c.allocate(0, "116A", "108");
    c.converge(s(5));
    c.down(&[c.fabric]);
    let second = c.world.add_fabric(Policy::AutoJoin);
    let filled = |world: &World| {
        world
            .fabric(second)
            .fabric
            .iter()
            .any(|f| f.tables().count() > 0)
    };
    assert!(c.world.run_until(s(20), filled));
    c.converge(s(20));
    c.world.run_for(s(10));
    let there = kept(&mut c.world, second).expect("the second keeps it");
    assert_eq!(there.digest(), agent(&c.world, c.hosts[0]).table().digest());
    // The first comes back with an older table while a change is made.
    c.allocate(1, "116B", "108");
    c.down(&[second]);
    c.world.start(c.fabric);
    c.converge(s(30));
}

#[test]
fn a_large_table_crosses_once_and_then_only_what_changes() {
    let mut world = World::new(15);
    let fabric = world.add_fabric(Policy::AutoJoin);
    let host = central(&mut world, "108");
    let mut table = Table::new();
    for n in 0..4096_u128 {
        let guid = Guid((n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
        let mut row = Row::new(guid, EntityType::Unit);
        row.name = format!("away {n}");
        row.observed.change = 1;
        table.insert(row);
    }
    table.publish(0, Guid(7));
    world.host_mut(host).stored = rma_simulator::StoredTable::of(&table, a());
    world.start_all();
    let full = |world: &mut World| kept(world, fabric).is_some_and(|t| t.len() == 4097);
    let mut there = false;
    for _ in 0..100 {
        world.run_for(Duration::from_millis(100));
        there |= full(&mut world);
    }
    assert!(there);
    let [digests, rows, offers, deposits, _] = frames(&world);
    let bytes: usize = table
        .rows()
        .map(|row| rma::wire::Wire::to_body(row).len())
        .sum();
    let all = bytes as u64 / 1400;
    println!(
        "{all} frames of rows: {digests} digests, {rows} rows, {offers} offers, {deposits} deposits"
    );
    assert!(
        deposits >= all && deposits < all * 6 / 5,
        "{deposits} frames"
    );
    // A newcomer fetches it, and is itself one row more.
    let newcomer = central(&mut world, "109");
    let before = frames(&world);
    world.start(newcomer);
    let well = |world: &World| {
        let hosts: Vec<_> = world
            .hosts()
            .filter_map(|(_, h)| h.agent.as_ref())
            .collect();
        let kept = world.fabric(fabric).fabric.as_ref().unwrap().tables();
        let kept: Vec<_> = kept.map(|(_, table)| table.digest()).collect();
        hosts
            .iter()
            .all(|a| a.is_steady() && kept == [a.table().digest()])
    };
    assert!(world.run_until(s(20), well));
    let [digests, rows, offers, deposits, _] = since(&world, before);
    println!("a newcomer: {digests} digests, {rows} rows, {offers} offers, {deposits} deposits");
    assert_eq!((digests, deposits), (0, 0));
    assert!(
        rows >= all && rows < all * 6 / 5 && offers <= 12,
        "{rows} rows, {offers} offers"
    );
    assert_eq!(world.model.violations, Vec::<String>::new());
}
