//! Clusters' tables at fabric services: who may ask and offer, what is durable when it is answered,
//! what is bounded.

mod fabric_world;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fabric_world::{World, cluster};
use rma::crt::{Table, TableChange, part_level};
use rma::fabric::central::MAX_KEPT_ROWS;
use rma::fabric::{Catalog, LinkEvent, MemoryCatalog, Policy};
use rma::session::Request;
use rma::store::catalog::SqliteCatalog;
use rma::wire::message::{Deposit, Offer, Parts, TableRowsReply, TableRowsRequest, TableSummary};
use rma::wire::{
    EntityType, Epoch, Flags, Guid, IodNumber, Kind, Ownership, Row, Settings, Status, TableStamp,
    Wire,
};

const SOON: Duration = Duration::from_secs(2);

type Sim = World<MemoryCatalog>;

fn host<C: Catalog>(world: &mut World<C>, guid: u128, name: &str) -> usize {
    let mut config = World::<C>::link_config(EntityType::Host, guid, Some(name));
    config.tables = true;
    world.add_link(config)
}

/// Asks, and waits for the answer.
fn ask<C: Catalog>(
    world: &mut World<C>,
    link: usize,
    kind: Kind,
    body: Vec<u8>,
) -> (Status, Vec<u8>) {
    let request = Request {
        kind,
        flags: Flags::NONE,
        iod: IodNumber(0),
        epoch: Epoch(0),
        body,
        expect: 1 << 20,
    };
    let mut asked = None;
    world.run_until(world.now + SOON, |w| {
        asked = w.links[link].link.ask_table(w.now, request.clone());
        asked.is_some()
    });
    let asked = asked.expect("it is registered");
    let now = world.now;
    let answer = |w: &World<C>| {
        let mut events = w.links[link].events.iter();
        events.find_map(|(_, event)| match event {
            LinkEvent::Table {
                command,
                status,
                body,
            } if *command == asked => Some((*status, body.clone())),
            _ => None,
        })
    };
    assert!(world.run_until(now + SOON, |w| answer(w).is_some()));
    answer(world).expect("it was answered")
}

fn table(guids: impl IntoIterator<Item = u128>, counter: u64) -> Table {
    let rows = guids.into_iter().map(|guid| {
        let mut row = Row::new(Guid(guid), EntityType::Unit);
        row.name = format!("unit {guid}");
        Arc::new(row)
    });
    let stamp = TableStamp {
        term: 1,
        counter,
        writer: Guid(9),
    };
    Table::restore(Settings::default(), stamp, stamp, rows)
}

fn offer(table: &Table) -> Vec<u8> {
    Offer {
        summary: table.summary(),
        settings: *table.settings(),
        rows: table.rows().cloned().collect(),
    }
    .to_body()
}

fn summary(answer: (Status, Vec<u8>)) -> TableSummary {
    assert_eq!(answer.0, Status::Ok);
    TableSummary::from_body(&answer.1).unwrap()
}

fn rows<C: Catalog>(world: &mut World<C>, link: usize) -> Vec<u128> {
    let request = TableRowsRequest {
        after: Guid::NIL,
        parts: Parts::whole(),
    };
    let (status, body) = ask(world, link, Kind::TableRows, request.to_body());
    assert_eq!(status, Status::Ok);
    let page = TableRowsReply::from_body(&body).unwrap();
    page.rows.iter().map(|row| row.guid.0).collect()
}

#[test]
fn no_cluster_sees_another_ones_table() {
    let mut world = Sim::new(1);
    world.add_fabric(9, Policy::AutoJoin);
    let (a, b) = (host(&mut world, 108, "A"), host(&mut world, 130, "B"));
    let ours = table([1, 2, 3], 5);
    let kept = summary(ask(&mut world, a, Kind::Offer, offer(&ours)));
    assert_eq!(kept, ours.summary());
    assert_eq!(rows(&mut world, b), [] as [u128; 0]);
    let empty = summary(ask(&mut world, b, Kind::TableStamp, Vec::new()));
    assert_eq!(empty.row_count, 0);
    let theirs = table([2, 7], 90);
    ask(&mut world, b, Kind::Offer, offer(&theirs));
    assert_eq!(rows(&mut world, b), [2, 7]);
    assert_eq!(rows(&mut world, a), [1, 2, 3]);
    let stamp = summary(ask(&mut world, a, Kind::TableStamp, Vec::new())).stamp;
    assert_eq!(stamp.counter, 5);
    // What is told with the question is not taken in.
    let told = theirs.summary().to_body();
    let answer = summary(ask(&mut world, a, Kind::TableStamp, told));
    assert_eq!(answer, ours.summary());
    let (status, _) = ask(&mut world, a, Kind::TableStamp, vec![1]);
    assert_eq!(status, Status::BadRequest);
    // Moved to the other cluster, it is told the other's, once it knows.
    let now = world.now;
    world
        .fabric(0)
        .assign(now, Guid(108), cluster("B"))
        .unwrap();
    let moved = |w: &mut Sim| w.links[a].cluster() == cluster("B");
    assert!(world.run_until(now + SOON, moved));
    assert_eq!(rows(&mut world, a), [2, 7]);
    // Nobody is in A any more: its table is gone, also from the database.
    let names: Vec<_> = world.fabric(0).tables().map(|(name, _)| name).collect();
    assert_eq!(names, [cluster("B")]);
    let stored = world.fabric(0).catalog_mut().load_tables().unwrap();
    assert!(stored.keys().copied().eq([cluster("B")]));
}

#[test]
fn only_member_hosts_ask_and_offer() {
    let mut world = Sim::new(2);
    world.add_fabric(9, Policy::AutoJoin);
    let a = host(&mut world, 108, "A");
    let mut config = Sim::link_config(EntityType::Unit, 112, Some("A"));
    config.tables = true;
    let unit = world.add_link(config);
    let ours = table([1], 5);
    for kind in [
        Kind::TableStamp,
        Kind::TableRows,
        Kind::Offer,
        Kind::Deposit,
    ] {
        let (status, body) = ask(&mut world, unit, kind, offer(&ours));
        assert_eq!((status, body.len()), (Status::Unsupported, 0));
    }
    assert_eq!(world.fabric(0).tables().count(), 0);
    // Removed, a host is nobody until it has registered again.
    ask(&mut world, a, Kind::Offer, offer(&ours));
    let now = world.now;
    world.fabric(0).remove(now, Guid(108)).unwrap();
    let request = Request {
        kind: Kind::TableStamp,
        flags: Flags::NONE,
        iod: IodNumber(0),
        epoch: Epoch(0),
        body: Vec::new(),
        expect: 128,
    };
    let asked = world.links[a].link.ask_table(now, request);
    assert!(asked.is_some());
    world.run_for(SOON);
    let refused = world.links[a].events.iter().any(
        |(_, event)| matches!(event, LinkEvent::Table { status, .. } if *status == Status::Pending),
    );
    assert!(refused);
}

#[test]
fn what_cannot_be_true_is_not_taken() {
    let mut world = Sim::new(3);
    world.add_fabric(9, Policy::AutoJoin);
    let a = host(&mut world, 108, "A");
    ask(&mut world, a, Kind::Offer, offer(&table([1], 5)));
    let mut far = Offer {
        summary: table([1, 2], 6).summary(),
        settings: Settings::default(),
        rows: table([1, 2], 6).rows().cloned().collect(),
    };
    far.summary.stamp.term = 1 << 40;
    let answer = ask(&mut world, a, Kind::Offer, far.to_body());
    assert_eq!(answer.0, Status::FarTerm);
    far.summary.stamp.term = 1 << 62;
    let answer = ask(&mut world, a, Kind::Offer, far.to_body());
    assert_eq!(answer.0, Status::BadRequest);
    assert_eq!(rows(&mut world, a), [1]);
    // Rows with such stamps are left out, the others are taken.
    far.summary.stamp.term = 1;
    far.rows[1].owned.epoch = Epoch(u64::MAX);
    far.rows[0].name = "renamed".into();
    far.rows[0].observed.change = 3;
    ask(&mut world, a, Kind::Offer, far.to_body());
    assert_eq!(rows(&mut world, a), [1]);
    // So are units whose rows do not fit together.
    let mut unit = Row::new(Guid(10), EntityType::Unit);
    unit.ownership = Ownership::Dedicated(Guid(108));
    unit.owned.epoch = Epoch(1);
    let mut controller = Row::new(Guid(11), EntityType::Controller);
    controller.parent = Guid(10);
    controller.ownership = Ownership::Dedicated(Guid(110));
    controller.owned.epoch = Epoch(1);
    far.rows = vec![unit, controller];
    ask(&mut world, a, Kind::Offer, far.to_body());
    assert_eq!(rows(&mut world, a), [1]);
}

#[test]
fn a_database_that_fails_takes_nothing() {
    let mut world = Sim::new(4);
    world.add_fabric(9, Policy::AutoJoin);
    let a = host(&mut world, 108, "A");
    ask(&mut world, a, Kind::Offer, offer(&table([1], 5)));
    world.fabric(0).catalog_mut().set_failing(true);
    let answer = ask(&mut world, a, Kind::Offer, offer(&table([1, 2], 6)));
    assert_eq!(answer.0, Status::NotPersisted);
    assert_eq!(rows(&mut world, a), [1]);
    world.fabric(0).catalog_mut().set_failing(false);
    ask(&mut world, a, Kind::Offer, offer(&table([1, 2], 6)));
    assert_eq!(rows(&mut world, a), [1, 2]);
}

/// A deposit of these rows in one piece, of these parts of level 1.
fn deposit(table: &Table, base: u128, numbers: Vec<u16>) -> Vec<u8> {
    let parts = Parts { level: 1, numbers };
    Deposit {
        summary: table.summary(),
        settings: *table.settings(),
        base,
        piece: 0,
        more: false,
        rows: table
            .rows()
            .filter(|row| parts.contain(row.guid))
            .cloned()
            .collect(),
        parts,
    }
    .to_body()
}

#[test]
fn a_deposit_takes_away_what_was_purged_and_nothing_else() {
    let mut world = Sim::new(5);
    world.add_fabric(9, Policy::AutoJoin);
    let a = host(&mut world, 108, "A");
    let before = table(1..=40, 5);
    let base = summary(ask(&mut world, a, Kind::Offer, offer(&before))).digest;
    let mut after = before.clone();
    after.purge(&[Guid(7)], 1, Guid(108));
    let part = Parts::number_of(1, Guid(7));
    // Of another table, or of other parts, it is not taken so.
    let wrong = deposit(&after, base + 1, vec![part]);
    assert_eq!(
        ask(&mut world, a, Kind::Deposit, wrong).0,
        Status::BeginAgain
    );
    // An offer cannot say it.
    ask(&mut world, a, Kind::Offer, offer(&after));
    assert!(rows(&mut world, a).contains(&7));
    let base = summary(ask(&mut world, a, Kind::TableStamp, Vec::new())).digest;
    let kept = summary(ask(
        &mut world,
        a,
        Kind::Deposit,
        deposit(&after, base, vec![part]),
    ));
    assert_eq!((kept.digest, kept.floor), (after.digest(), after.floor()));
    assert!(!rows(&mut world, a).contains(&7));
    // One that has not heard of it does not bring it back.
    let mut late = before.clone();
    late.insert(Row::new(Guid(41), EntityType::Unit));
    late.publish(1, Guid(110));
    ask(&mut world, a, Kind::Offer, offer(&late));
    assert!(!rows(&mut world, a).contains(&7));
}

#[test]
fn only_so_many_rows_are_kept() {
    let mut catalog = MemoryCatalog::new();
    let full = table(1..=MAX_KEPT_ROWS as u128 / 2, 5);
    let all: Vec<Guid> = full.rows().map(|row| row.guid).collect();
    let change = TableChange::of(&full, &all);
    for name in ["A", "B"] {
        catalog.commit_table(cluster(name), &change, "").unwrap();
    }
    let mut world = Sim::new(6);
    world.add_fabric_on(9, Policy::AutoJoin, 1500, catalog);
    let (a, c) = (host(&mut world, 108, "A"), host(&mut world, 140, "C"));
    let (status, _) = ask(&mut world, c, Kind::Offer, offer(&table([1], 5)));
    assert_eq!(status, Status::Busy);
    // What is there already can be changed.
    let mut changed = Row::new(Guid(1), EntityType::Unit);
    changed.observed.change = 9;
    let body = Offer {
        summary: table([1], 6).summary(),
        settings: Settings::default(),
        rows: vec![changed],
    };
    let (status, _) = ask(&mut world, a, Kind::Offer, body.to_body());
    assert_eq!(status, Status::Ok);
    assert!(part_level(MAX_KEPT_ROWS) > 0);
}

/// The database as a crash at this moment would leave it.
fn survivor(path: &Path, number: usize) -> SqliteCatalog {
    let copy = path.with_file_name(format!("image{number}.db"));
    for suffix in ["", "-journal"] {
        let from = PathBuf::from(format!("{}{suffix}", path.display()));
        if from.exists() {
            std::fs::copy(from, format!("{}{suffix}", copy.display())).unwrap();
        }
    }
    SqliteCatalog::open(&copy).unwrap()
}

#[test]
fn what_was_answered_is_in_the_database() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fabric.db");
    let mut world = World::<SqliteCatalog>::new(7);
    let catalog = SqliteCatalog::open(&path).unwrap();
    world.add_fabric_on(9, Policy::AutoJoin, 1500, catalog);
    let a = host(&mut world, 108, "A");
    for round in 1..12 {
        let ours = table(1..=3 * round as u128, round as u64);
        let told = summary(ask(&mut world, a, Kind::Offer, offer(&ours)));
        let tables = survivor(&path, round).load_tables().unwrap();
        assert_eq!(tables[&cluster("A")].summary(), told);
        let kept = world.fabric(0).tables().next().unwrap().1.summary();
        assert_eq!(kept, told);
    }
    // kill -9, and a start from what is there.
    let before = rows(&mut world, a);
    let disk = survivor(&path, 100);
    world.fabrics[0].fabric = None;
    world.fabrics[0].disk = Some(disk);
    world.run_for(Duration::from_secs(10));
    world.start_fabric(0);
    world.run_for(Duration::from_secs(10));
    assert_eq!(rows(&mut world, a), before);
}
