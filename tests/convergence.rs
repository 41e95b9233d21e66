//! How tables become equal, in virtual time: what crosses the wire for how large a difference, what
//! is purged and forgotten, what comes back.

use std::collections::BTreeMap;
use std::time::Duration;

use rma::crt::Table;
use rma::fabric::Policy;
use rma::rma::request::{AdminReply, AdminRequest, ErrorKind, WatchEvent};
use rma::wire::{
    EntityType, Epoch, Guid, Incarnation, IocNumber, IodNumber, Mac, ObservationStamp, Ownership,
    OwnershipStamp, Row,
};
use rma_simulator::converged::unconverged;
use rma_simulator::{NodeId, StoredTable, World};

const fn s(n: u64) -> Duration {
    Duration::from_secs(n)
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

/// Every host has gone through Fig. 5, and stored the same table. (What units hold is not asked for
/// here: most rows are of a unit that is away.)
fn equal(world: &World) -> bool {
    let mut digests = world.hosts().filter_map(|(_, host)| {
        let agent = host.agent.as_ref()?;
        let done = agent.is_steady() && host.stored.stamp == agent.table().stamp();
        Some(done.then(|| agent.table().digest()))
    });
    let first = digests.next().flatten();
    first.is_some() && digests.all(|digest| digest == first)
}

/// Spreads numbers over the GUIDs as random ones would be.
fn guid(kind: u128, number: u128) -> Guid {
    Guid((kind << 64 | number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

const fn at(change: u64) -> ObservationStamp {
    ObservationStamp {
        incarnation: Incarnation(1),
        change,
    }
}

const CONTROLLERS: u128 = 64;

fn device(number: u128) -> Row {
    let mut row = Row::new(guid(4, number), EntityType::Device);
    row.parent = guid(3, number % CONTROLLERS);
    row.ioc = IocNumber((number % CONTROLLERS) as u16 + 1);
    row.iod = IodNumber((number / CONTROLLERS) as u16 + 1);
    row.name = format!("device {number}");
    row.vendor = "ACME Storage".into();
    row.model = "Rotating Rust 4000".into();
    row.serial = format!("SN{number:012}");
    row.size_bytes = 4 << 40;
    row.block_size = 4096;
    row.observed = at(1);
    row
}

/// A table of so many rows: a unit that is away for good, its controllers, its devices.
fn large(row_count: usize) -> Table {
    let mut unit = Row::new(guid(2, 0), EntityType::Unit);
    unit.name = "away".into();
    unit.macs = vec![Mac([2, 9, 9, 9, 9, 9])];
    unit.observed = at(1);
    let controllers = (0..CONTROLLERS).map(|number| {
        let mut row = Row::new(guid(3, number), EntityType::Controller);
        row.parent = guid(2, 0);
        row.ioc = IocNumber(number as u16 + 1);
        row.name = format!("controller {number}");
        row.observed = at(1);
        row
    });
    let rows: Vec<Row> = std::iter::once(unit).chain(controllers).collect();
    let devices = row_count - rows.len();
    let devices = (0..devices as u128).map(device);
    let mut table = Table::restore(
        rma::wire::Settings::default(),
        rma::wire::TableStamp::default(),
        rma::wire::TableStamp::default(),
        rows.into_iter().chain(devices).map(std::sync::Arc::new),
    );
    table.publish(0, guid(1, 0));
    table
}

/// Two hosts that have stored these tables, besides their own rows.
struct Pair {
    world: World,
    a: NodeId,
    b: NodeId,
}

fn pair(seed: u64, ours: &Table, theirs: Option<&Table>) -> Pair {
    let mut world = World::new(seed);
    world.add_fabric(Policy::AutoJoin);
    let (a, b) = (world.add_host("a", "A"), world.add_host("b", "A"));
    world.start_all();
    converge(&mut world, s(10));
    for (host, table) in [(a, Some(ours)), (b, theirs)] {
        world.crash(host);
        let mut stored = StoredTable::default();
        if let Some(table) = table {
            let mut table = table.clone();
            for row in world.host(host).stored.rows.values() {
                table.insert(Row::clone(row));
            }
            stored = StoredTable::of(&table, "A".parse().unwrap());
        }
        world.host_mut(host).stored = stored;
    }
    Pair { world, a, b }
}

/// Frames of the kinds that tables cross in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frames {
    stamp: u64,
    digests: u64,
    rows: u64,
    offer: u64,
}

impl Frames {
    fn of(world: &World) -> Self {
        let of = |kind: &str| world.kinds.get(kind).copied().unwrap_or(0);
        Self {
            stamp: of("table-stamp"),
            digests: of("table-digests"),
            rows: of("table-rows"),
            offer: of("offer"),
        }
    }

    fn since(world: &World, before: Self) -> Self {
        let now = Self::of(world);
        Self {
            stamp: now.stamp - before.stamp,
            digests: now.digests - before.digests,
            rows: now.rows - before.rows,
            offer: now.offer - before.offer,
        }
    }

    const fn of_content(self) -> u64 {
        self.digests + self.rows + self.offer
    }
}

/// Starts both hosts, and counts what crosses until their tables are equal and two polls are over.
#[track_caller]
fn meet(p: &mut Pair, what: &str) -> Frames {
    let before = Frames::of(&p.world);
    p.world.start(p.a);
    p.world.start(p.b);
    assert!(p.world.run_until(s(20), equal), "{what}");
    p.world.run_for(s(5));
    assert!(equal(&p.world), "{what}");
    let frames = Frames::since(&p.world, before);
    println!("{what}: {frames:?}");
    frames
}

#[test]
fn tables_that_are_equal_cost_a_stamp() {
    let table = large(2048);
    let mut p = pair(1, &table, Some(&table));
    let frames = meet(&mut p, "equal tables of 2,048 rows");
    assert_eq!(frames.rows + frames.digests, 0, "{frames:?}");
    let before = Frames::of(&p.world);
    p.world.run_for(s(60));
    let idle = Frames::since(&p.world, before);
    println!("a minute of two idle hosts: {idle:?}");
    assert_eq!(idle.of_content(), 0, "{idle:?}");
    // One asks the other every five seconds or so and tells its own; an exchange is two frames.
    assert!((20..=30).contains(&idle.stamp), "{idle:?}");
}

/// The same table with these rows seen to have changed.
fn altered(table: &Table, numbers: impl Iterator<Item = u128>) -> Table {
    let mut table = table.clone();
    for number in numbers {
        let mut row = device(number);
        row.name = format!("renamed {number}");
        row.observed = at(2);
        table.insert(row);
    }
    table.publish(0, guid(1, 1));
    table
}

#[test]
fn one_row_costs_a_few_frames_whatever_the_size_of_the_table() {
    for rows in [2048, 16_384] {
        let table = large(rows);
        // Without a shared history: both hosts come up with what they have stored.
        let mut p = pair(2, &table, Some(&altered(&table, 7..8)));
        let frames = meet(
            &mut p,
            &format!("1 row of {rows} differs, no shared history"),
        );
        assert!(frames.of_content() <= 24, "{frames:?}");
    }
}

#[test]
fn a_change_that_a_peer_has_not_seen_is_pushed() {
    let mut world = World::new(3);
    world.add_fabric(Policy::AutoJoin);
    let a = world.add_host("a", "A");
    world.add_host("b", "A");
    let unit = world.add_unit("u", "A", &[("c", &["d0", "d1"])]);
    world.start_all();
    converge(&mut world, s(10));
    world.run_for(s(5));
    let before = Frames::of(&world);
    let spec = rma_simulator::device_spec(Guid(0xd0d0), 3, "d2");
    world.add_device(unit, 1, spec);
    assert!(world.run_until(s(1), converged));
    world.run_for(s(1));
    let frames = Frames::since(&world, before);
    println!("1 row changed, shared history: {frames:?}");
    assert!(
        frames.offer <= 4 && frames.digests + frames.rows == 0,
        "{frames:?}"
    );
    let before = Frames::of(&world);
    assert!(matches!(
        world.allocate(a, "u", &["a"]),
        AdminReply::Allocated(_)
    ));
    converge(&mut world, s(1));
    let frames = Frames::since(&world, before);
    println!("1 allocation, shared history: {frames:?}");
    assert!(
        frames.offer <= 4 && frames.digests + frames.rows == 0,
        "{frames:?}"
    );
}

#[test]
fn a_thousand_rows_of_65_536_cost_little_more_than_themselves() {
    let table = large(65_536);
    let ours = altered(&table, (0..500).map(|n| n * 130));
    let theirs = altered(&table, (0..500).map(|n| n * 130 + 65));
    let mut p = pair(4, &ours, Some(&theirs));
    let frames = meet(
        &mut p,
        "1,000 rows of 65,536 differ, 500 newer on each side",
    );
    let bytes: usize = table
        .rows()
        .map(|row| rma::wire::Wire::to_body(row).len())
        .sum();
    let all = bytes as u64 / 1400;
    println!("the whole table would be {all} frames");
    assert!(frames.of_content() < all / 6, "{frames:?}");
}

#[test]
fn only_a_newcomer_gets_the_whole_table() {
    let table = large(16_384);
    let mut p = pair(5, &table, None);
    let frames = meet(&mut p, "a newcomer to 16,384 rows");
    let bytes: usize = table
        .rows()
        .map(|row| rma::wire::Wire::to_body(row).len())
        .sum();
    let all = bytes as u64 / 1400;
    println!("the whole table is {all} frames");
    assert!(
        frames.rows >= all && frames.rows < all * 5 / 4,
        "{frames:?}"
    );
    assert!(frames.digests + frames.offer <= 24, "{frames:?}");
}

#[test]
fn many_hosts_that_start_at_once_make_no_storm() {
    let mut per_host = BTreeMap::new();
    for hosts in [8_u64, 32] {
        let table = large(1024);
        let mut world = World::new(6);
        world.add_fabric(Policy::AutoJoin);
        for n in 0..hosts {
            let host = world.add_host(&format!("h{n}"), "A");
            // Every third has missed something, and it is not the same.
            let seen = if n % 3 == 0 { n } else { 0 };
            let mut own = table.clone();
            for number in 0..u128::from(seen) {
                let mut row = device(number);
                row.observed = at(2 + seen);
                own.insert(row);
            }
            own.publish(0, guid(1, u128::from(n)));
            world.host_mut(host).stored = StoredTable::of(&own, "A".parse().unwrap());
        }
        world.start_all();
        assert!(world.run_until(s(20), equal));
        let frames = Frames::of(&world);
        println!("{hosts} hosts start at once: {frames:?}");
        per_host.insert(hosts, frames.of_content() / hosts);
        // Nobody gets it all.
        assert!(frames.rows / hosts < 200, "{frames:?}");
    }
    println!("frames of content for each host: {per_host:?}");
}

/// Hosts 108, 110 and a unit with two devices; what is removed is kept for a minute.
struct Cluster {
    world: World,
    fabric: NodeId,
    h108: NodeId,
    h110: NodeId,
    unit: NodeId,
}

fn cluster(seed: u64) -> Cluster {
    let mut world = World::new(seed);
    let fabric = world.add_fabric(Policy::AutoJoin);
    let (h108, h110) = (world.add_host("108", "A"), world.add_host("110", "A"));
    for host in [h108, h110] {
        world.host_mut(host).intervals.purge_after = s(60);
    }
    let unit = world.add_unit("112", "A", &[("114", &["116A", "116B"])]);
    world.start_all();
    converge(&mut world, s(10));
    Cluster {
        world,
        fabric,
        h108,
        h110,
        unit,
    }
}

fn row(world: &World, host: NodeId, name: &str) -> Option<Row> {
    let table = world.host(host).agent.as_ref().unwrap().table();
    table.rows().find(|row| row.name == name).cloned()
}

#[track_caller]
fn allocate(world: &mut World, host: NodeId, target: &str, to: &str) {
    let reply = world.allocate(host, target, &[to]);
    assert!(matches!(reply, AdminReply::Allocated(_)), "{reply:?}");
}

fn forget(
    world: &mut World,
    host: NodeId,
    target: &str,
) -> Result<Vec<String>, (ErrorKind, String)> {
    let target = target.to_owned();
    match world.admin(host, AdminRequest::Forget { target }) {
        AdminReply::Forgotten(info) => Ok(info.rows.into_iter().map(|row| row.name).collect()),
        AdminReply::Error(e) => Err((e.kind, e.message)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tombstone_goes_when_every_host_has_passed_it() {
    let mut c = cluster(20);
    for target in ["112", "114", "116A"] {
        allocate(&mut c.world, c.h108, target, "108");
    }
    let spec = c.world.remove_device(c.unit, 1, 1).unwrap();
    converge(&mut c.world, s(2));
    assert!(!row(&c.world, c.h110, "116A").unwrap().is_valid());
    // Not while one may still have it as it was.
    c.world.crash(c.h110);
    let other = c.world.remove_device(c.unit, 1, 2).unwrap();
    c.world.run_for(s(300));
    assert!(row(&c.world, c.h108, "116B").is_some_and(|row| !row.is_valid()));
    c.world.start(c.h110);
    let gone = |w: &World| {
        [c.h108, c.h110]
            .iter()
            .all(|host| row(w, *host, "116A").is_none() && row(w, *host, "116B").is_none())
    };
    assert!(c.world.run_until(s(200), gone));
    converge(&mut c.world, s(10));
    let floors: Vec<_> = [c.h108, c.h110]
        .iter()
        .map(|host| c.world.host(*host).agent.as_ref().unwrap().table().floor())
        .collect();
    assert!(
        floors[0] == floors[1] && floors[0].counter > 0,
        "{floors:?}"
    );
    let told = |host| format!("{:?}", c.world.host(host).events);
    assert!(told(c.h108).contains("Forgotten"));
    // What comes back is there again, and its unit knows whose it is.
    c.world.add_device(c.unit, 1, spec);
    c.world.add_device(c.unit, 1, other);
    converge(&mut c.world, s(5));
    let back = row(&c.world, c.h110, "116A").unwrap();
    assert_eq!(
        (back.ownership.word(), back.owned.epoch.0),
        ("dedicated", 1)
    );
}

#[test]
fn a_host_from_before_the_floor_adopts_and_brings_nothing_back() {
    let mut c = cluster(21);
    let old = c.world.host(c.h110).stored.clone();
    c.world.remove_device(c.unit, 1, 2).unwrap();
    let gone = |w: &World| row(w, c.h108, "116B").is_none() && row(w, c.h110, "116B").is_none();
    assert!(c.world.run_until(s(300), gone));
    converge(&mut c.world, s(5));
    // Its disk is replaced by an old copy, in which the device is there; it is alone for a while,
    // and counts its stamp up.
    c.world.crash(c.h110);
    c.world.host_mut(c.h110).stored = old;
    c.world.part(c.h110, c.h108);
    c.world.part(c.h110, c.unit);
    c.world.start(c.h110);
    c.world.run_for(s(30));
    assert!(row(&c.world, c.h110, "116B").is_some_and(|row| row.is_valid()));
    c.world.network.mend();
    // It never comes back to the host that has purged it.
    let back = c
        .world
        .run_until(s(30), |w| row(w, c.h108, "116B").is_some());
    assert!(!back);
    converge(&mut c.world, s(10));
    assert!(row(&c.world, c.h110, "116B").is_none());
}

#[test]
fn a_floor_takes_no_unit_that_answers_here_before_fabric_services_do() {
    let mut c = cluster(23);
    for target in ["112", "114", "116A"] {
        allocate(&mut c.world, c.h108, target, "110");
    }
    converge(&mut c.world, s(2));
    for node in [c.h108, c.h110, c.fabric] {
        c.world.crash(node);
    }
    // 108 comes with a larger floor and without the unit.
    let mut table = c.world.host(c.h108).stored.table();
    let (unit, host) = (table.resolve("112").unwrap(), table.resolve("108").unwrap());
    table.purge(&[unit], 0, host);
    c.world.host_mut(c.h108).stored = StoredTable::of(&table, "A".parse().unwrap());
    c.world.start(c.h110);
    let exports = |w: &World| w.host(c.h110).exports.iter().flatten().count() == 1;
    assert!(c.world.run_until(s(30), exports));
    c.world.start(c.h108);
    let met = |w: &World| row(w, c.h108, "116A").is_some() && equal(w);
    assert!(c.world.run_until(s(30), met));
    for name in ["112", "114", "116A"] {
        let owned = row(&c.world, c.h108, name).unwrap().ownership;
        assert_eq!(owned.word(), "dedicated", "{name}");
    }
    let told = format!("{:?}", c.world.host(c.h110).events);
    assert!(!told.contains("Forgotten"), "{told}");
    assert_eq!(c.world.model.violations, Vec::<String>::new());
}

#[test]
fn an_administrator_forgets_what_is_gone_and_nothing_else() {
    let mut c = cluster(22);
    for target in ["112", "114", "116A"] {
        allocate(&mut c.world, c.h108, target, "110");
    }
    let w = &mut c.world;
    for (target, words) in [
        ("116A", "is there"),
        ("114", "is there"),
        ("112", "rma fabric remove"),
        ("110", "rma fabric remove"),
        ("108", "is this host"),
    ] {
        let (kind, message) = forget(w, c.h108, target).unwrap_err();
        assert_eq!(kind, ErrorKind::Refused);
        assert!(
            message.contains(words) && !message.contains('\n'),
            "{message}"
        );
    }
    assert_eq!(forget(w, c.h108, "117").unwrap_err().0, ErrorKind::Unknown);
    // A device that was taken out: at once, and on every host.
    w.remove_device(c.unit, 1, 2).unwrap();
    converge(w, s(2));
    assert_eq!(forget(w, c.h108, "116B"), Ok(vec!["116B".to_owned()]));
    assert!(w.run_until(s(1), |w| row(w, c.h110, "116B").is_none()));
    converge(w, s(2));

    // A unit that is scrapped, with all of its rows.
    let guid = |w: &World, name: &str| row(w, c.h108, name).unwrap().guid;
    let (unit, host) = (guid(w, "112"), guid(w, "110"));
    w.crash(c.unit);
    w.with_fabric(c.fabric, |f, now| f.remove(now, unit).unwrap());
    w.run_for(s(10));
    assert!(
        row(w, c.h110, "116A").is_some_and(|row| row.is_valid()),
        "silence removes nothing"
    );
    let names = forget(w, c.h108, "112").unwrap();
    assert_eq!(names, ["112", "114", "116A"]);
    let empty = |w: &World| row(w, c.h110, "112").is_none() && row(w, c.h110, "116A").is_none();
    assert!(w.run_until(s(5), empty));
    assert!(w.run_until(s(5), equal));
    assert_eq!(w.host(c.h110).exports.as_deref(), Some(&[][..]));

    // A host that is scrapped, once it owns nothing.
    w.start(c.unit);
    converge(w, s(20));
    assert_eq!(
        row(w, c.h108, "116A").unwrap().ownership.word(),
        "dedicated"
    );
    w.crash(c.h110);
    w.with_fabric(c.fabric, |f, now| f.remove(now, host).unwrap());
    w.run_for(s(10));
    let (_, message) = forget(w, c.h108, "110").unwrap_err();
    assert!(
        message.contains("112") && message.contains("rma release"),
        "{message}"
    );
    let release = AdminRequest::Release {
        target: "112".into(),
        recursive: true,
    };
    assert!(matches!(w.admin(c.h108, release), AdminReply::Allocated(_)));
    assert_eq!(forget(w, c.h108, "110"), Ok(vec!["110".to_owned()]));
    // It comes back from the scrapyard.
    w.start(c.h110);
    converge(w, s(20));
    assert!(row(w, c.h108, "110").is_some_and(|row| row.is_valid()));
}

/// The unit's disk is replaced: it has lost its registers, and every host has heard so.
fn lose_registers(c: &mut Cluster) {
    c.world.crash(c.unit);
    c.world.unit_mut(c.unit).stored = None;
    c.world.start(c.unit);
    c.world.run_for(s(6));
}

fn restore_request(force: bool) -> AdminRequest {
    AdminRequest::RestoreUnit {
        unit: "112".into(),
        force,
    }
}

#[track_caller]
fn refused(reply: AdminReply, words: &[&str]) {
    let AdminReply::Error(e) = reply else {
        panic!("{reply:?}");
    };
    for word in words {
        assert!(e.message.contains(word), "'{word}' is not in: {e}");
    }
    assert!(!e.message.contains('\n'), "{e}");
}

fn register_epochs(c: &Cluster) -> Option<Vec<u64>> {
    let stored = c.world.unit(c.unit).stored.as_ref()?;
    Some(stored.registers.iter().map(|r| r.owned.epoch.0).collect())
}

#[test]
fn lost_registers_come_back_from_the_table() {
    let mut c = cluster(30);
    for target in ["112", "114", "116A"] {
        allocate(&mut c.world, c.h108, target, "108");
    }
    converge(&mut c.world, s(2));
    refused(
        c.world.admin(c.h110, restore_request(false)),
        &["I/O unit 112", "has its ownership registers"],
    );
    lose_registers(&mut c);
    // It never begins from unallocated.
    let reply = c.world.allocate(c.h110, "116B", &["110"]);
    refused(reply, &["I/O unit 112", "lost its ownership registers"]);
    assert_eq!(register_epochs(&c), None);
    let AdminReply::Restored(info) = c.world.admin(c.h110, restore_request(false)) else {
        panic!("not restored")
    };
    assert_eq!(
        (&*info.unit.name, info.registers, info.forced),
        ("112", 3, false)
    );
    assert_eq!(register_epochs(&c), Some(vec![1, 1, 1]));
    converge(&mut c.world, s(5));
    allocate(&mut c.world, c.h110, "116B", "108");
    converge(&mut c.world, s(2));
    assert_eq!(c.world.host(c.h108).exports.iter().flatten().count(), 2);
    // What was restored survives.
    c.world.crash(c.unit);
    c.world.start(c.unit);
    converge(&mut c.world, s(10));
    assert_eq!(c.world.model.lost_acknowledged, 0);
}

#[test]
fn a_restoration_waits_for_what_only_another_host_knows() {
    let mut c = cluster(31);
    for target in ["112", "114"] {
        allocate(&mut c.world, c.h108, target, "110");
    }
    converge(&mut c.world, s(2));
    // 110 allocates while 108 hears nothing, and goes.
    c.world.part(c.h108, c.h110);
    c.world.part(c.h108, c.unit);
    // The lease that 108 had for its changes is over by then.
    c.world.run_for(s(7));
    allocate(&mut c.world, c.h110, "116A", "110");
    c.world.crash(c.h110);
    c.world.crash(c.unit);
    c.world.unit_mut(c.unit).stored = None;
    c.world.network.mend();
    c.world.start(c.unit);
    c.world.run_for(s(8));
    refused(
        c.world.admin(c.h108, restore_request(false)),
        &["110", "--force"],
    );
    assert_eq!(register_epochs(&c), None);
    c.world.start(c.h110);
    assert!(c.world.run_until(s(20), equal));
    c.world.run_for(s(5));
    let reply = c.world.admin(c.h108, restore_request(false));
    assert!(matches!(reply, AdminReply::Restored(_)), "{reply:?}");
    converge(&mut c.world, s(5));
    assert_eq!(
        row(&c.world, c.h108, "116A").unwrap().ownership.word(),
        "dedicated"
    );
    assert_eq!(c.world.model.lost_acknowledged, 0);
}

#[test]
fn what_a_host_told_before_the_loss_is_not_trusted() {
    let mut c = cluster(34);
    for target in ["112", "114"] {
        allocate(&mut c.world, c.h110, target, "110");
    }
    converge(&mut c.world, s(2));
    // 110 allocates when 108 has just heard that both tables are equal.
    c.world.part(c.h108, c.h110);
    c.world.part(c.h108, c.unit);
    allocate(&mut c.world, c.h110, "116A", "110");
    c.world.crash(c.unit);
    c.world.forget_registers(c.unit);
    c.world.network.mend();
    c.world.part(c.h108, c.h110);
    c.world.part(c.unit, c.h110);
    c.world.start(c.unit);
    let (h108, unit) = (c.h108, c.unit);
    let mut tokens = Vec::new();
    for _ in 0..40 {
        tokens.push(c.world.ask(h108, restore_request(false)));
        c.world.run_for(Duration::from_millis(100));
        assert_eq!(register_epochs(&c), None, "only 110 knows who owns 116A");
    }
    c.world.run_for(s(3));
    let replies = tokens
        .iter()
        .filter_map(|token| c.world.host(h108).replies.get(token));
    let told = |reply: &AdminReply| matches!(reply, AdminReply::Error(e) if e.message.contains("110 cannot be asked"));
    assert!(replies.filter(|r| told(r)).count() > 0, "it says why");
    c.world.network.mend();
    c.world.run_for(s(8));
    let reply = c.world.admin(h108, restore_request(false));
    assert!(matches!(reply, AdminReply::Restored(_)), "{reply:?}");
    converge(&mut c.world, s(10));
    assert!(c.world.unit(unit).stored.is_some());
    let owner = row(&c.world, h108, "116A").unwrap();
    assert_eq!(
        (owner.ownership.word(), owner.owned.epoch.0),
        ("dedicated", 1)
    );
    assert_eq!(c.world.model.lost_acknowledged, 0);
}

fn guid_of(world: &World, host: NodeId, name: &str) -> Guid {
    let mut rows = world.host(host).stored.rows.values();
    rows.find(|row| row.name == name).unwrap().guid
}

/// Gives a row of a host's stored table other owners.
fn own(world: &mut World, host: NodeId, name: &str, owners: &[&str], epoch: u64) {
    let owners: Vec<Guid> = owners
        .iter()
        .map(|name| guid_of(world, host, name))
        .collect();
    let writer = guid_of(world, host, "108");
    let guid = guid_of(world, host, name);
    let rows = &mut world.host_mut(host).stored.rows;
    let mut row = Row::clone(&rows[&guid]);
    row.ownership = match owners[..] {
        [one] => Ownership::Dedicated(one),
        _ => Ownership::Shared(owners),
    };
    row.owned = OwnershipStamp {
        epoch: Epoch(epoch),
        term: 1,
        writer,
    };
    rows.insert(guid, std::sync::Arc::new(row));
}

#[test]
fn rows_that_do_not_fit_together_are_settled_once_all_hosts_have_told() {
    let mut c = cluster(35);
    let (h108, h110, unit) = (c.h108, c.h110, c.unit);
    for node in [h108, h110, unit] {
        c.world.crash(node);
    }
    c.world.forget_registers(unit);
    let w = &mut c.world;
    // 108 knows of the device's last change, 110 of the controller's; what came between, neither.
    for host in [h108, h110] {
        own(w, host, "112", &["108", "110"], 1);
    }
    own(w, h108, "114", &["108", "110"], 1);
    own(w, h108, "116A", &["108"], 2);
    own(w, h110, "114", &["110"], 3);
    own(w, h110, "116A", &["110"], 1);
    for node in [h108, h110, unit] {
        w.start(node);
    }
    w.run_for(s(10));
    let owned = |w: &World, host, name: &str| row(w, host, name).unwrap().ownership.word();
    assert_eq!(
        owned(w, h108, "116A"),
        "dedicated",
        "nothing is settled without need"
    );
    assert_eq!(owned(w, h110, "116A"), "dedicated");
    let reply = w.admin(h108, restore_request(false));
    let AdminReply::Restored(info) = reply else {
        panic!("{reply:?}");
    };
    assert!(!info.forced);
    converge(w, s(10));
    for host in [h108, h110] {
        let controller = row(w, host, "114").unwrap();
        assert_eq!(
            (controller.ownership.word(), controller.owned.epoch.0),
            ("dedicated", 3)
        );
        let device = row(w, host, "116A").unwrap();
        assert_eq!(
            (device.ownership.word(), device.owned.epoch.0),
            ("unallocated", 2)
        );
    }
    let told = |event: &WatchEvent| matches!(event, WatchEvent::Refused { message } if message.contains("116A") && message.contains("fit together"));
    assert!(
        w.host(h108).events.iter().any(told),
        "{:?}",
        w.host(h108).events
    );
    w.run_for(s(1));
    allocate(w, h110, "116A", "110");
    converge(w, s(2));
}

#[test]
fn a_forced_restoration_outranks_what_was_left_out() {
    let mut c = cluster(32);
    for target in ["112", "114", "116A"] {
        allocate(&mut c.world, c.h108, target, "108");
    }
    converge(&mut c.world, s(2));
    c.world.crash(c.h110);
    lose_registers(&mut c);
    c.world.run_for(s(10));
    let AdminReply::Restored(info) = c.world.admin(c.h108, restore_request(true)) else {
        panic!("not restored")
    };
    assert!(info.forced);
    // What was never changed as far as 108 knows may have been, too.
    let leapt = (1 << 32) + 1;
    let mut epochs = register_epochs(&c).unwrap();
    epochs.sort_unstable();
    let (never, changed) = epochs.split_at(epochs.len() - 3);
    assert_eq!(changed, [leapt; 3]);
    assert!(
        !never.is_empty() && never.iter().all(|epoch| *epoch == 1 << 32),
        "{never:?}"
    );
    c.world.start(c.h110);
    converge(&mut c.world, s(20));
    assert_eq!(row(&c.world, c.h110, "116A").unwrap().owned.epoch.0, leapt);
    allocate(&mut c.world, c.h110, "116B", "108");
    converge(&mut c.world, s(2));
}

#[test]
fn units_restore_themselves_where_that_is_configured_and_hosts_may_race() {
    let mut c = cluster(33);
    for target in ["112", "114", "116A"] {
        allocate(&mut c.world, c.h108, target, "108");
    }
    converge(&mut c.world, s(2));
    lose_registers(&mut c);
    // Two administrators at once: one restores, the other is told.
    let tokens = [
        (c.h108, c.world.ask(c.h108, restore_request(false))),
        (c.h110, c.world.ask(c.h110, restore_request(false))),
    ];
    c.world.run_for(s(6));
    let replies: Vec<_> = tokens
        .iter()
        .map(|(host, token)| c.world.host(*host).replies[token].clone())
        .collect();
    let restored = |r: &&AdminReply| matches!(r, AdminReply::Restored(_));
    assert_eq!(replies.iter().filter(restored).count(), 1, "{replies:?}");
    assert_eq!(register_epochs(&c), Some(vec![1, 1, 1]));
    converge(&mut c.world, s(5));

    for host in [c.h108, c.h110] {
        c.world.crash(host);
        c.world.host_mut(host).auto_restore = true;
        c.world.start(host);
    }
    converge(&mut c.world, s(10));
    lose_registers(&mut c);
    assert!(
        c.world
            .run_until(s(10), |w| w.unit(c.unit).stored.is_some())
    );
    converge(&mut c.world, s(5));
    assert_eq!(register_epochs(&c), Some(vec![1, 1, 1]));
    assert_eq!(c.world.model.lost_acknowledged, 0);
}

fn status_refusals(world: &mut World, host: NodeId) -> String {
    match world.admin(host, AdminRequest::Status) {
        AdminReply::Status(status) => status.refused.join("\n"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_table_with_a_stamp_at_the_maximum_is_refused_and_named() {
    let mut c = cluster(40);
    for target in ["112", "114", "116A"] {
        allocate(&mut c.world, c.h108, target, "108");
    }
    converge(&mut c.world, s(2));
    // 110's file is from a broken machine: its own agent gives such a stamp up.
    c.world.crash(c.h110);
    c.world.host_mut(c.h110).stored.stamp.counter = u64::MAX;
    c.world.start(c.h110);
    converge(&mut c.world, s(10));
    let stamp = c.world.host(c.h110).agent.as_ref().unwrap().table().stamp();
    assert!(stamp.is_possible(), "{stamp:?}");
    // A row that nothing could outrank stays where it is, and is named.
    c.world.crash(c.h110);
    let guid = row(&c.world, c.h108, "116A").unwrap().guid;
    let rows = &mut c.world.host_mut(c.h110).stored.rows;
    let mut broken = Row::clone(&rows[&guid]);
    broken.owned.epoch.0 = u64::MAX;
    broken.ownership = rma::wire::Ownership::Unallocated;
    rows.insert(guid, std::sync::Arc::new(broken));
    c.world.start(c.h110);
    c.world.run_for(s(15));
    let ours = row(&c.world, c.h108, "116A").unwrap();
    assert_eq!(
        (ours.ownership.word(), ours.owned.epoch.0),
        ("dedicated", 1)
    );
    assert_eq!(c.world.host(c.h108).exports.iter().flatten().count(), 1);
    let refused = status_refusals(&mut c.world, c.h108);
    assert!(
        refused.contains("116A") && refused.contains("110"),
        "{refused}"
    );
}

#[test]
fn two_units_with_one_device_are_told_apart_and_the_first_keeps_it() {
    let mut c = cluster(41);
    for target in ["112", "114", "116A"] {
        allocate(&mut c.world, c.h108, target, "108");
    }
    converge(&mut c.world, s(2));
    let guid = row(&c.world, c.h108, "116A").unwrap().guid;
    // A box that was made from a copy of the other's disk, as far as its devices are concerned.
    let copy = c.world.add_unit("118", "A", &[("120", &["122A"])]);
    c.world.start(copy);
    converge(&mut c.world, s(10));
    c.world
        .add_device(copy, 1, rma_simulator::device_spec(guid, 2, "copy"));
    c.world.run_for(s(12));
    for host in [c.h108, c.h110] {
        let table = c.world.host(host).agent.as_ref().unwrap().table();
        assert_eq!(table.get(guid).unwrap().name, "116A");
        assert_eq!(table.get(guid).unwrap().ownership.word(), "dedicated");
        let refused = status_refusals(&mut c.world, host);
        assert!(
            refused.contains("118") && refused.contains("116A"),
            "{refused}"
        );
    }
    assert_eq!(c.world.host(c.h108).exports.iter().flatten().count(), 1);
    for target in ["118", "120", "122A"] {
        allocate(&mut c.world, c.h110, target, "110");
    }
}

#[test]
fn a_unit_that_claims_the_address_of_another_is_refused_and_the_other_keeps_it() {
    let mut c = cluster(42);
    for target in ["112", "114", "116A"] {
        allocate(&mut c.world, c.h108, target, "108");
    }
    let thief = c.world.add_unit("118", "A", &[("120", &["122A"])]);
    c.world.start(thief);
    converge(&mut c.world, s(10));
    let (own, taken) = (c.world.mac(thief), c.world.mac(c.unit));
    c.world.alter_unit(
        thief,
        |_| {},
        |unit, now| unit.set_macs(now, vec![own, taken]),
    );
    c.world.run_for(s(15));
    for host in [c.h108, c.h110] {
        assert_eq!(row(&c.world, host, "112").unwrap().macs, [taken]);
        let refused = status_refusals(&mut c.world, host);
        assert!(
            refused.contains("118") && refused.contains(&taken.to_string()),
            "{refused}"
        );
    }
    assert_eq!(c.world.host(c.h108).exports.iter().flatten().count(), 1);
    allocate(&mut c.world, c.h110, "116B", "108");
}
