//! Stories of a unit whose devices, or which itself, is moved to another cluster.

mod session_pair;
mod unit_world;

use std::collections::BTreeMap;
use std::time::Duration;

use rma::crt::rules;
use rma::fabric::{Fabric, FabricConfig, MemoryCatalog, Policy};
use rma::unit::{StoredRegisters, Unit, UnitAction};
use rma::wire::kind::Event;
use rma::wire::message::{
    Conflict, ControllersReply, DevicesReply, ExtentFacts, MAX_GUESTS, Move, OwnershipRegister,
    RegistersReply, RegistersRequest,
};
use rma::wire::{
    ClusterName, DropReason, Epoch, Extent, Guid, Incarnation, IocNumber, Kind, Mac, Ownership,
    Status, Time, Wire,
};
use session_pair::Faults;
use unit_world::*;

/// Hosts of cluster B.
const HOST_C: Guid = Guid(0xc);
const HOST_D: Guid = Guid(0xd);
const SECOND: Duration = Duration::from_secs(1);
const NOBODY: Ownership = Ownership::Unallocated;

fn world_with(faults: Faults, seed: u64) -> World {
    let mut world = World::new(faults, seed);
    world.own_disk(dedicated(HOST_A));
    world.add_host(HOST_C, "B");
    world.add_host(HOST_D, "B");
    world
}

/// Host A of cluster A owns DISK at epoch 1; C and D of cluster B are on the wire.
fn world() -> World {
    world_with(Faults::NONE, 1)
}

fn moving(writer: Guid, row: Guid, expected: u64, to: &str, owner: Guid) -> Move {
    Move {
        term: 1,
        writer,
        row,
        expected: Epoch(expected),
        to: cluster(to),
        owner,
        recursive: false,
    }
}

fn submit(world: &mut World, request: &Move) -> (Status, Vec<u8>) {
    let writer = request.writer;
    world.ask(
        writer,
        0,
        unit_world::request(Kind::Move, request.to_body()),
    )
}

/// Moves, and gives the register that the row leaves behind.
fn moved(world: &mut World, request: &Move) -> OwnershipRegister {
    let (status, body) = submit(world, request);
    assert_eq!(status, Status::Ok, "{request:?}");
    let registers = RegistersReply::from_body(&body).unwrap().registers;
    let [left] = &registers[..] else {
        panic!("{registers:?}");
    };
    assert_eq!((left.row, &left.ownership), (request.row, &NOBODY));
    left.clone()
}

fn refused(world: &mut World, request: &Move) -> (Status, OwnershipRegister) {
    let (status, body) = submit(world, request);
    assert_ne!(status, Status::Ok, "{request:?}");
    (status, Conflict::from_body(&body).unwrap().register)
}

fn controllers(world: &mut World, host: Guid) -> ControllersReply {
    let (status, body) = world.ask(host, 0, request(Kind::Controllers, vec![]));
    assert_eq!(status, Status::Ok);
    ControllersReply::from_body(&body).unwrap()
}

fn devices(world: &mut World, host: Guid, port: u16) -> Result<DevicesReply, Status> {
    match world.ask(host, port, request(Kind::Devices, vec![])) {
        (Status::Ok, body) => Ok(DevicesReply::from_body(&body).unwrap()),
        (status, _) => Err(status),
    }
}

/// The devices behind a controller, by GUID.
fn listed(world: &mut World, host: Guid, port: u16) -> Vec<Guid> {
    let list = devices(world, host, port).unwrap();
    list.devices.iter().map(|d| d.guid).collect()
}

/// All that a host's cluster knows of owners.
fn registers(world: &mut World, host: Guid) -> BTreeMap<Guid, (u64, Ownership)> {
    let body = RegistersRequest { after: Guid::NIL }.to_body();
    let (status, body) = world.ask(host, 0, request(Kind::Registers, body));
    assert_eq!(status, Status::Ok);
    let page = RegistersReply::from_body(&body).unwrap();
    assert!(!page.more);
    let registers = page.registers.into_iter();
    registers
        .map(|r| (r.row, (r.owned.epoch.0, r.ownership)))
        .collect()
}

fn write(world: &mut World, host: Guid, epoch: u64) -> Status {
    world
        .io(
            host,
            epoch,
            Kind::Write,
            range(0, 512, &[host.0 as u8; 512]),
        )
        .0
}

#[test]
fn a_device_is_the_other_clusters_alone() {
    let mut world = world();
    let before = devices(&mut world, HOST_A, 1).unwrap();
    let left = moved(&mut world, &moving(HOST_A, DISK, 1, "B", HOST_C));
    assert_eq!((left.owned.epoch, left.owned.writer), (Epoch(2), HOST_A));

    // In A nobody lists it, owns it or reaches it, by whatever epoch.
    let after = devices(&mut world, HOST_A, 1).unwrap();
    assert!(after.listed > before.listed);
    assert_eq!(listed(&mut world, HOST_A, 1), [DISK2]);
    assert_eq!(controllers(&mut world, HOST_A).controllers.len(), 2);
    assert_eq!(registers(&mut world, HOST_A)[&DISK], (2, NOBODY));
    for epoch in 0..5 {
        assert_eq!(write(&mut world, HOST_A, epoch), Status::NoDevice);
    }
    // In B there is that and nothing else.
    let list = controllers(&mut world, HOST_C);
    let found: Vec<_> = list.controllers.iter().map(|c| c.guid).collect();
    assert_eq!((list.unit, &found[..]), (UNIT, &[IOC1][..]));
    assert_eq!(listed(&mut world, HOST_C, 1), [DISK]);
    assert_eq!(devices(&mut world, HOST_C, 2), Err(Status::NoController));
    let theirs = registers(&mut world, HOST_C);
    let expected = BTreeMap::from([
        (UNIT, (1, dedicated(HOST_C))),
        (IOC1, (1, dedicated(HOST_C))),
        (DISK, (3, dedicated(HOST_C))),
    ]);
    assert_eq!(theirs, expected);
    assert_eq!(write(&mut world, HOST_C, 3), Status::Ok);
    assert_eq!(write(&mut world, HOST_C, 1), Status::StaleEpoch);
    assert_eq!(write(&mut world, HOST_D, 3), Status::NotOwner);
    let other = world.ask(HOST_C, 1, io_request(Kind::Read, 2, 0, range(0, 512, &[])));
    assert_eq!(other.0, Status::NoDevice);
    // B changes its own registers, and A's stay as they are; terms are each cluster's own.
    let mine = registers(&mut world, HOST_A);
    let both = shared(&[HOST_C, HOST_D]);
    let changes = [
        (UNIT, 1, both.clone()),
        (IOC1, 1, both.clone()),
        (DISK, 3, dedicated(HOST_D)),
    ];
    assert_eq!(world.set(HOST_C, 5, &changes).0, Status::Ok);
    assert_eq!(registers(&mut world, HOST_A), mine);
    assert_eq!(world.set(HOST_A, 1, &[(DISK2, 0, NOBODY)]).0, Status::Ok);
    assert_eq!(write(&mut world, HOST_D, 4), Status::Ok);
    assert_eq!(
        world.set(HOST_C, 4, &[(DISK, 4, NOBODY)]).0,
        Status::OlderTerm
    );
    // What is only A's is no row of B's.
    for row in [DISK2, IOC2, DISK3] {
        assert_eq!(world.set(HOST_C, 5, &[(row, 0, NOBODY)]).0, Status::NoRow);
    }
    assert_eq!(world.set(HOST_A, 1, &[(DISK, 2, NOBODY)]).0, Status::NoRow);
    // A guest is no voter, and has no registers to restore.
    for kind in [Kind::Lease, Kind::Settle, Kind::Restore] {
        assert_eq!(
            world.ask(HOST_C, 0, request(kind, vec![])).0,
            Status::Unsupported
        );
    }
}

#[test]
fn clusters_without_anything_are_not_served() {
    let mut world = world();
    world.pass(SECOND);
    assert!(world.hosts[&HOST_C].refused.contains(&Status::WrongCluster));
    assert!(world.drops(false, DropReason::Cluster) > 0);
    assert_eq!(world.unit.connections(false).count(), 2);
}

#[test]
fn both_clusters_are_told() {
    let mut world = world();
    moved(&mut world, &moving(HOST_A, DISK, 1, "B", HOST_C));
    controllers(&mut world, HOST_C);
    for host in world.hosts.values_mut() {
        host.notifications.clear();
    }
    moved(&mut world, &moving(HOST_A, DISK2, 0, "B", HOST_C));
    world.pass(SECOND);
    for host in [HOST_B, HOST_C] {
        let heard = &world.hosts[&host].notifications;
        for (port, event) in [
            (0, Event::ControllersChanged),
            (0, Event::RegistersChanged),
            (1, Event::DevicesChanged),
        ] {
            let told = |(p, n): &(u16, _)| {
                let n: &rma::wire::message::Notification = n;
                *p == port && n.event == event
            };
            assert!(heard.iter().any(told), "{host}: {heard:?}");
        }
    }
}

#[test]
fn writes_under_way_are_finished_first_and_none_begins_meanwhile() {
    let mut world = world();
    world.disk_hangs = true;
    let begun = world.submit(
        HOST_A,
        1,
        io_request(Kind::Write, 1, 1, range(0, 512, &[1; 512])),
    );
    let read = world.submit(HOST_A, 1, io_request(Kind::Read, 1, 1, range(0, 512, &[])));
    world.until(SECOND, |world| world.disk_busy() == 2);
    let request = moving(HOST_A, DISK, 1, "B", HOST_C);
    let command = world.submit(
        HOST_A,
        0,
        unit_world::request(Kind::Move, request.to_body()),
    );
    world.pass(SECOND);
    // Judged and durable, but not in force: nobody begins anything.
    assert_eq!(world.take_reply(HOST_A, 0, command), None);
    let late = world.submit(
        HOST_A,
        1,
        io_request(Kind::Write, 1, 1, range(0, 512, &[2; 512])),
    );
    assert_eq!(world.reply(HOST_A, 1, late).0, Status::Busy);
    world.disk_hangs = false;
    assert_eq!(world.reply(HOST_A, 0, command).0, Status::Ok);
    assert_eq!(world.reply(HOST_A, 1, begun).0, Status::Ok);
    assert_eq!(world.reply(HOST_A, 1, read).0, Status::Ok);
    assert_eq!(world.applied.len(), 1, "the late write was not applied");
    assert_eq!(write(&mut world, HOST_C, 3), Status::Ok);
}

#[test]
fn what_cannot_be_stored_has_not_happened() {
    let mut world = world();
    world.persist = Persist::Fails;
    let request = moving(HOST_A, DISK, 1, "B", HOST_C);
    assert_eq!(submit(&mut world, &request), (Status::NotPersisted, vec![]));
    assert_eq!(write(&mut world, HOST_A, 1), Status::Ok);
    assert!(world.unit.guest_clusters().is_empty());
    world.persist = Persist::Works;
    moved(&mut world, &request);
}

#[test]
fn a_crash_in_the_middle_leaves_the_device_in_one_cluster_and_repeating_finishes() {
    let request = moving(HOST_A, DISK, 1, "B", HOST_C);
    let body = || unit_world::request(Kind::Move, request.to_body());
    // Before it is durable.
    let mut world = world();
    world.persist = Persist::Hangs;
    let command = world.submit(HOST_A, 0, body());
    world.until(SECOND, |world| world.hanging() == 1);
    assert_eq!(world.take_reply(HOST_A, 0, command), None);
    world.persist = Persist::Works;
    world.restart();
    // The session sends it again by itself.
    assert_eq!(world.reply(HOST_A, 0, command).0, Status::Ok);
    // After it is durable, with the answer lost.
    world.restart();
    assert_eq!(registers(&mut world, HOST_C)[&DISK], (3, dedicated(HOST_C)));
    assert_eq!(listed(&mut world, HOST_A, 1), [DISK2]);
    let count = world.store_count;
    let again = moved(&mut world, &request);
    assert_eq!(again.owned.epoch, Epoch(2));
    // Whoever sees it gone, and asks for what is so already, hears so as well.
    for writer in [HOST_A, HOST_B] {
        let later = Move {
            term: 2,
            ..moving(writer, DISK, 2, "B", HOST_C)
        };
        assert_eq!(moved(&mut world, &later).owned.epoch, Epoch(2));
    }
    assert_eq!(world.store_count, count, "nothing was stored again");
    assert_eq!(write(&mut world, HOST_C, 3), Status::Ok);
    // But not who wants it otherwise.
    let other = moving(HOST_B, DISK, 2, "B", HOST_D);
    assert_eq!(refused(&mut world, &other).0, Status::Elsewhere);
    let elsewhere = moving(HOST_A, DISK, 2, "C", HOST_C);
    assert_eq!(refused(&mut world, &elsewhere).0, Status::Elsewhere);
}

#[test]
fn of_two_administrators_one_moves_it() {
    for seed in 0..10 {
        let mut world = world_with(Faults::ALL, seed);
        let requests = [
            moving(HOST_A, DISK, 1, "B", HOST_C),
            moving(HOST_B, DISK, 1, "C", HOST_D),
        ];
        let commands: Vec<_> = requests
            .iter()
            .map(|r| {
                let body = unit_world::request(Kind::Move, r.to_body());
                (r.writer, world.submit(r.writer, 0, body))
            })
            .collect();
        let replies: Vec<Status> = commands
            .into_iter()
            .map(|(host, command)| world.reply(host, 0, command).0)
            .collect();
        let made = replies.iter().filter(|s| **s == Status::Ok).count();
        assert_eq!(made, 1, "{replies:?}, seed {seed}");
        assert!(replies.contains(&Status::Elsewhere), "{replies:?}");
    }
}

#[test]
fn what_may_not_be_moved_is_refused_by_name() {
    let mut world = world();
    let request = moving(HOST_A, DISK, 1, "B", HOST_C);
    for (wrong, status, row) in [
        (
            Move {
                to: cluster("A"),
                ..request.clone()
            },
            Status::BadRequest,
            DISK,
        ),
        (
            Move {
                expected: Epoch(0),
                ..request.clone()
            },
            Status::Conflict,
            DISK,
        ),
        (
            Move {
                expected: Epoch(2),
                ..request.clone()
            },
            Status::Conflict,
            DISK,
        ),
        (
            Move {
                term: 0,
                ..request.clone()
            },
            Status::OlderTerm,
            DISK,
        ),
        (
            Move {
                term: u64::MAX,
                ..request.clone()
            },
            Status::FarTerm,
            DISK,
        ),
        (
            Move {
                row: IOC1,
                ..request.clone()
            },
            Status::BadRequest,
            IOC1,
        ),
        (
            Move {
                row: Guid(77),
                ..request.clone()
            },
            Status::NoRow,
            Guid(77),
        ),
    ] {
        let (found, register) = refused(&mut world, &wrong);
        assert_eq!((found, register.row), (status, row), "{wrong:?}");
    }
    // Not in another's name.
    let forged = Move {
        writer: HOST_B,
        ..request.clone()
    };
    let body = unit_world::request(Kind::Move, forged.to_body());
    assert_eq!(world.ask(HOST_A, 0, body).0, Status::BadRequest);
    let body = unit_world::request(Kind::Move, vec![1, 2, 3]);
    assert_eq!(world.ask(HOST_A, 0, body).0, Status::BadRequest);
    // Not while it has extents.
    let carve = |present, expected| {
        let change = rma::wire::message::Change {
            row: Guid(0x5_0001),
            expected: Epoch(expected),
            ownership: NOBODY,
            extent: Some(ExtentFacts {
                device: DISK3,
                range: Extent {
                    offset: 0,
                    len: 4096,
                },
                name: String::new(),
                present,
            }),
        };
        let body = rma::wire::message::CompareAndSet {
            term: 1,
            writer: HOST_A,
            changes: vec![change],
        };
        unit_world::request(Kind::CompareAndSet, body.to_body())
    };
    assert_eq!(world.ask(HOST_A, 0, carve(true, 0)).0, Status::Ok);
    let carved = moving(HOST_A, DISK3, 0, "B", HOST_C);
    assert_eq!(refused(&mut world, &carved).0, Status::Carved);
    assert_eq!(world.ask(HOST_A, 0, carve(false, 1)).0, Status::Ok);
    moved(&mut world, &carved);
    // Only its own cluster moves the unit.
    let unit = moving(HOST_C, UNIT, 1, "C", HOST_C);
    assert_eq!(refused(&mut world, &unit).0, Status::Elsewhere);
    // Nor without registers.
    world.restart_with(None);
    let body = unit_world::request(Kind::Move, request.to_body());
    assert_eq!(world.ask(HOST_A, 0, body), (Status::NoRegisters, vec![]));
}

/// A guest could otherwise make another cluster's device his by epochs of his own.
#[test]
fn a_guest_carves_nothing_that_is_called_like_anothers_row() {
    let mut world = world();
    moved(&mut world, &moving(HOST_A, DISK, 1, "B", HOST_C));
    for row in [DISK2, DISK3, IOC2] {
        let change = rma::wire::message::Change {
            row,
            expected: Epoch(0),
            ownership: NOBODY,
            extent: Some(ExtentFacts {
                device: DISK,
                range: Extent {
                    offset: 0,
                    len: 4096,
                },
                name: String::new(),
                present: true,
            }),
        };
        let body = rma::wire::message::CompareAndSet {
            term: 1,
            writer: HOST_C,
            changes: vec![change],
        };
        let body = unit_world::request(Kind::CompareAndSet, body.to_body());
        assert_eq!(world.ask(HOST_C, 0, body).0, Status::BadRequest, "{row}");
    }
}

#[test]
fn a_device_that_comes_back_is_the_same_with_a_larger_epoch() {
    let mut world = world();
    let mine = registers(&mut world, HOST_A);
    let first = devices(&mut world, HOST_A, 1).unwrap();
    moved(&mut world, &moving(HOST_A, DISK, 1, "B", HOST_C));
    let gone = devices(&mut world, HOST_A, 1).unwrap();
    // B's host hands it to host B, whom nothing of A's belonged to yet.
    let back = Move {
        term: 1,
        ..moving(HOST_C, DISK, 3, "A", HOST_B)
    };
    assert_eq!(moved(&mut world, &back).owned.epoch, Epoch(4));
    let again = devices(&mut world, HOST_A, 1).unwrap();
    assert!(again.listed > gone.listed);
    assert!(again.devices[0].observed > first.devices[0].observed);
    assert!(again.devices[0].observed >= gone.listed);
    let now = registers(&mut world, HOST_A);
    assert_eq!(now[&DISK], (5, dedicated(HOST_B)));
    // The owners above are those that there were: both are in it already.
    assert_eq!((&now[&UNIT], &now[&IOC1]), (&mine[&UNIT], &mine[&IOC1]));
    assert_eq!(write(&mut world, HOST_B, 5), Status::Ok);
    assert_eq!(write(&mut world, HOST_C, 3), Status::NoDevice);
    assert_eq!(registers(&mut world, HOST_C)[&DISK], (4, NOBODY));
    // B's hosts see that there is nothing left of theirs.
    assert!(controllers(&mut world, HOST_C).controllers.is_empty());
    // And once more: above all that there was on either side.
    moved(&mut world, &moving(HOST_A, DISK, 5, "B", HOST_D));
    assert_eq!(registers(&mut world, HOST_A)[&DISK], (6, NOBODY));
    let theirs = registers(&mut world, HOST_C);
    assert_eq!(theirs[&DISK], (7, dedicated(HOST_D)));
    // Containers there are shared by whoever has, or had, something in them.
    assert_eq!(theirs[&UNIT], (2, shared(&[HOST_C, HOST_D])));
    assert_eq!(theirs[&IOC1], (2, shared(&[HOST_C, HOST_D])));
}

#[test]
fn the_whole_unit_is_moved_without_its_owners() {
    for recursive in [false, true] {
        let mut world = world();
        // DISK3 went to C before; it stays there.
        world.add_host(Guid(0xe), "C");
        moved(&mut world, &moving(HOST_A, DISK3, 0, "C", Guid(0xe)));
        // And DISK2 is D's in B already.
        moved(&mut world, &moving(HOST_A, DISK2, 0, "B", HOST_D));
        let request = Move {
            recursive,
            ..moving(HOST_A, UNIT, 1, "B", HOST_C)
        };
        assert_eq!(moved(&mut world, &request).owned.epoch, Epoch(2));
        assert_eq!(world.unit.cluster(), cluster("B"));
        assert_eq!(world.joined, [cluster("B")]);

        let theirs = registers(&mut world, HOST_C);
        assert_eq!(theirs[&UNIT], (3, shared(&[HOST_C, HOST_D])));
        let disk = if recursive { dedicated(HOST_C) } else { NOBODY };
        assert_eq!(theirs[&DISK], (3, disk));
        assert_eq!(
            theirs[&DISK2],
            (2, dedicated(HOST_D)),
            "a guest's stays his"
        );
        let above = if recursive {
            shared(&[HOST_C, HOST_D])
        } else {
            dedicated(HOST_D)
        };
        assert_eq!(theirs[&IOC1].1, above);
        assert!(!theirs.contains_key(&DISK3));
        assert_eq!(listed(&mut world, HOST_C, 1), [DISK, DISK2]);
        assert!(listed(&mut world, HOST_C, 2).is_empty());
        let status = write(&mut world, HOST_C, 3);
        let expected = if recursive {
            Status::Ok
        } else {
            Status::NotOwner
        };
        assert_eq!(status, expected);
        // Nothing is left in A, but what says so.
        assert!(controllers(&mut world, HOST_A).controllers.is_empty());
        let left = registers(&mut world, HOST_A);
        assert!(
            left.values().all(|(_, owners)| *owners == NOBODY),
            "{left:?}"
        );
        for epoch in 0..5 {
            assert_eq!(write(&mut world, HOST_A, epoch), Status::NoDevice);
        }
        // The third cluster's is untouched.
        let third = world.ask(
            Guid(0xe),
            2,
            io_request(Kind::Read, 1, 2, range(0, 512, &[])),
        );
        assert_eq!(third.0, Status::Ok);
        // Asked again, it is so already; also after a restart.
        assert_eq!(moved(&mut world, &request).owned.epoch, Epoch(2));
        world.restart();
        assert_eq!(world.unit.cluster(), cluster("B"));
        assert_eq!(world.unit.assignment(), 1);
        assert_eq!(moved(&mut world, &request).owned.epoch, Epoch(2));
        assert_eq!(registers(&mut world, HOST_C), theirs);
        assert_eq!(registers(&mut world, HOST_A), left);
        // And home again.
        let back = moving(HOST_C, UNIT, 3, "A", HOST_B);
        moved(&mut world, &back);
        let mine = registers(&mut world, HOST_A);
        assert_eq!(mine[&UNIT], (5, dedicated(HOST_B)));
        assert_eq!(mine[&DISK], (5, NOBODY));
        assert_eq!(listed(&mut world, HOST_A, 1), [DISK, DISK2]);
    }
}

#[test]
fn a_unit_keeps_so_many_clusters_and_no_more() {
    let mut world = world();
    let mut epoch = 1;
    for n in 0..MAX_GUESTS {
        let there = format!("guest{n}");
        let host = Guid(0x40 + n as u128);
        world.add_host(host, &there);
        moved(&mut world, &moving(HOST_A, DISK, epoch, &there, host));
        moved(&mut world, &moving(host, DISK, epoch + 2, "A", HOST_A));
        epoch += 4;
    }
    let one_more = moving(HOST_A, DISK, epoch, "more", HOST_C);
    let (status, register) = refused(&mut world, &one_more);
    assert_eq!((status, register.row), (Status::TooManyClusters, DISK));
    let unit = moving(HOST_A, UNIT, 1, "more", HOST_C);
    assert_eq!(refused(&mut world, &unit).0, Status::TooManyClusters);
    moved(
        &mut world,
        &moving(HOST_A, DISK, epoch, "guest3", Guid(0x43)),
    );
}

#[test]
fn what_comes_back_into_the_unit_is_where_it_was_moved_to() {
    let mut world = world();
    moved(&mut world, &moving(HOST_A, DISK, 1, "B", HOST_C));
    let now = world.now;
    let (ioc, iod) = (IocNumber(1), rma::wire::IodNumber(1));
    world.unit.remove_device(now, ioc, iod).unwrap();
    assert!(controllers(&mut world, HOST_C).controllers.is_empty());
    let spec = device(DISK, 1, &world.media[&DISK]);
    world.unit.add_device(now, ioc, spec).unwrap();
    assert_eq!(listed(&mut world, HOST_C, 1), [DISK]);
    assert_eq!(listed(&mut world, HOST_A, 1), [DISK2]);
    assert_eq!(write(&mut world, HOST_C, 3), Status::Ok);
    // In B the controller is taken from its owner while the disk is out: it comes back as nobody's.
    world.unit.remove_device(now, ioc, iod).unwrap();
    let changes = [(UNIT, 1, NOBODY)];
    assert_eq!(world.set(HOST_C, 1, &changes).0, Status::Ok);
    let spec = device(DISK, 1, &world.media[&DISK]);
    world.unit.add_device(now, ioc, spec).unwrap();
    world.pump();
    assert_eq!(registers(&mut world, HOST_C)[&DISK], (4, NOBODY));
    world.restart();
    assert_eq!(registers(&mut world, HOST_C)[&DISK], (4, NOBODY));
}

// ---------------------------------------------------------------------------------------------
// Everything at once

/// What the registers of one cluster say must fit together (I5).
fn check_hierarchy(unit: &Unit, cluster: ClusterName, seed: u64) {
    let ownership = |row| unit.register_in(cluster, row).map(|r| r.ownership);
    for (parent, child) in [
        (UNIT, IOC1),
        (UNIT, IOC2),
        (IOC1, DISK),
        (IOC1, DISK2),
        (IOC2, DISK3),
    ] {
        let (Some(above), Some(below)) = (ownership(parent), ownership(child)) else {
            continue;
        };
        assert!(
            rules::permits(&above, &below),
            "{cluster}: {parent} is {above:?}, {child} is {below:?}, seed {seed}"
        );
    }
}

/// Who may write a device, by the registers: hosts of one cluster at most.
fn check_one_cluster(unit: &Unit, seed: u64) {
    let mut all = unit.guest_clusters();
    all.insert(unit.cluster());
    for cluster in &all {
        check_hierarchy(unit, *cluster, seed);
    }
    for disk in [DISK, DISK2, DISK3] {
        let owned: Vec<_> = all
            .iter()
            .filter_map(|cluster| unit.register_in(*cluster, disk))
            .filter(|r| r.ownership != NOBODY)
            .collect();
        assert!(owned.len() <= 1, "{disk}: {owned:?}, seed {seed}");
        let in_force = unit.register(disk).unwrap();
        assert!(
            owned.iter().all(|r| *r == in_force),
            "{disk} is {owned:?} beside {in_force:?}, seed {seed}"
        );
        let newer = all
            .iter()
            .filter_map(|cluster| unit.register_in(*cluster, disk))
            .find(|r| r.owned.epoch > in_force.owned.epoch);
        assert_eq!(newer, None, "seed {seed}");
    }
}

#[test]
fn whatever_is_moved_changed_and_crashed_each_device_is_in_one_cluster() {
    let names = ["A", "B", "C"];
    let hosts = [
        (HOST_A, "A"),
        (HOST_B, "A"),
        (HOST_C, "B"),
        (HOST_D, "B"),
        (Guid(0xe), "C"),
    ];
    let mut made = 0;
    for seed in 0..30 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut world = world_with(Faults::NONE, seed);
        world.add_host(Guid(0xe), "C");
        let mut epochs: BTreeMap<Guid, u64> = BTreeMap::new();
        for _ in 0..60 {
            let (host, of) = hosts[rng.usize(..hosts.len())];
            let row = [UNIT, IOC1, DISK, DISK, DISK2, DISK3][rng.usize(..6)];
            let (owner, to) = hosts[rng.usize(..hosts.len())];
            let expected = world
                .unit
                .register_in(cluster(of), row)
                .map_or(0, |r| r.owned.epoch.0);
            let (kind, body) = if rng.bool() {
                let request = Move {
                    recursive: rng.bool(),
                    ..moving(host, row, expected, to, owner)
                };
                (Kind::Move, request.to_body())
            } else {
                let to = if rng.bool() { dedicated(host) } else { NOBODY };
                let changes = [(row, expected, to)];
                let request = compare_and_set(host, 1, &changes);
                (Kind::CompareAndSet, request.body)
            };
            let is_served = of == world.unit.cluster().as_str()
                || world.unit.guest_clusters().contains(&cluster(of));
            if !is_served {
                continue;
            }
            match rng.u8(..10) {
                0 => {
                    world.persist = Persist::Hangs;
                    let command = world.submit(host, 0, unit_world::request(kind, body));
                    world.pass(SECOND / 10);
                    if rng.bool() {
                        world.release_persists();
                    }
                    world.persist = Persist::Works;
                    world.restart();
                    world.client(host, 0).cancel(command);
                }
                1 => {
                    world.persist = Persist::Fails;
                    world.ask(host, 0, unit_world::request(kind, body));
                    world.persist = Persist::Works;
                }
                _ => {
                    let (status, _) = world.ask(host, 0, unit_world::request(kind, body));
                    made += usize::from(status == Status::Ok);
                }
            }
            check_one_cluster(&world.unit, seed);
            for disk in [DISK, DISK2, DISK3] {
                let now = world.unit.register(disk).unwrap().owned.epoch.0;
                let before = epochs.insert(disk, now).unwrap_or(0);
                assert!(now >= before, "{disk}: {before} then {now}, seed {seed}");
            }
        }
        // What is durable is what is in force.
        let seen: Vec<_> = names
            .iter()
            .flat_map(|name| [UNIT, IOC1, DISK, DISK2, DISK3].map(|row| (*name, row)))
            .map(|(name, row)| world.unit.register_in(cluster(name), row))
            .collect();
        world.restart();
        let stored: Vec<_> = names
            .iter()
            .flat_map(|name| [UNIT, IOC1, DISK, DISK2, DISK3].map(|row| (*name, row)))
            .map(|(name, row)| world.unit.register_in(cluster(name), row))
            .collect();
        assert_eq!(seen, stored, "seed {seed}");
    }
    assert!(made > 300, "{made} changes");
}

// ---------------------------------------------------------------------------------------------
// With fabric services

const FABRIC_MAC: Mac = Mac([2, 0, 0, 0, 9, 9]);

fn fabric(policy: Policy) -> Fabric<MemoryCatalog> {
    let config = FabricConfig {
        guid: Guid(0xfab),
        incarnation: Incarnation(1),
        policy,
        mtu: 1500,
    };
    Fabric::new(config, MemoryCatalog::new(), 5).unwrap()
}

/// A unit and fabric services, and what the unit has stored.
struct Pair {
    now: Time,
    fabric: Fabric<MemoryCatalog>,
    unit: Unit,
    stored: StoredRegisters,
    joined: Vec<(ClusterName, u64)>,
    /// Registers cannot be stored.
    failing: bool,
    starts: u64,
}

impl Pair {
    fn new(stored: StoredRegisters) -> Self {
        let mut pair = Self {
            now: Time::from_nanos(1_000_000_000),
            fabric: fabric(Policy::AutoJoin),
            unit: Self::unit(1, &stored),
            stored,
            joined: Vec::new(),
            failing: false,
            starts: 1,
        };
        pair.run(SECOND);
        pair
    }

    fn unit(incarnation: u64, stored: &StoredRegisters) -> Unit {
        let mut config = unit_config(incarnation, ClusterName::NONE);
        config.cluster_wanted = cluster("A");
        let mut unit = Unit::new(config, Some(stored.clone()), incarnation);
        unit.add_controller(Time::ZERO, controller(IOC1, 1))
            .unwrap();
        let media = memory(false);
        let spec = device(DISK, 1, &media);
        unit.add_device(Time::ZERO, IocNumber(1), spec).unwrap();
        unit
    }

    fn restart(&mut self) {
        self.starts += 1;
        self.unit = Self::unit(self.starts, &self.stored);
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let mut bytes = Vec::new();
        while self.now < end {
            self.now = self.now + Duration::from_millis(1);
            self.unit.tick(self.now);
            self.fabric.tick(self.now);
            while let Some((_, to)) = self.unit.poll_transmit(self.now, &mut bytes) {
                assert_eq!(to, FABRIC_MAC);
                let frame = std::mem::take(&mut bytes);
                let _ = self.fabric.handle(self.now, UNIT_MAC, &frame);
            }
            while self.fabric.poll_transmit(self.now, &mut bytes).is_some() {
                let frame = std::mem::take(&mut bytes);
                let _ = self.unit.handle(self.now, false, FABRIC_MAC, &frame);
            }
            while let Some(action) = self.unit.poll_action() {
                match action {
                    UnitAction::PersistRegisters { token, change } => {
                        if !self.failing {
                            self.stored.apply(&change);
                        }
                        let ok = !self.failing;
                        self.unit.registers_persisted(self.now, token, ok);
                    }
                    UnitAction::Joined(cluster, assignment) => {
                        self.joined.push((cluster, assignment));
                    }
                    _ => {}
                }
            }
        }
    }

    fn assign(&mut self, to: &str) {
        self.fabric.assign(self.now, UNIT, cluster(to)).unwrap();
        self.run(SECOND);
    }

    /// What fabric services know: home, assignment, guests.
    fn known(&self) -> (String, u64, Vec<String>) {
        let entity = &self.fabric.snapshot().entities[&UNIT];
        let guests = entity.guests.keys().map(ToString::to_string);
        (
            entity.assigned.to_string(),
            entity.assignment,
            guests.collect(),
        )
    }

    fn owned(&mut self, cluster: &str) -> (u64, Ownership) {
        let register = self.unit.register_in(cluster.parse().unwrap(), DISK);
        let register = register.unwrap();
        (register.owned.epoch.0, register.ownership)
    }
}

/// A is the home by assignment `assignment`; host A owns DISK at epoch 4 there.
fn stored(assignment: u64) -> StoredRegisters {
    let register = |row| OwnershipRegister {
        row,
        ownership: dedicated(HOST_A),
        owned: rma::wire::OwnershipStamp {
            epoch: Epoch(4),
            term: 9,
            writer: HOST_A,
        },
        extent: None,
    };
    StoredRegisters {
        registers: [UNIT, IOC1, DISK].map(register).into(),
        term: 9,
        home: cluster("A"),
        assignment,
        ..StoredRegisters::default()
    }
}

#[test]
fn an_assignment_to_another_cluster_leaves_no_owner_of_the_old_one() {
    let mut pair = Pair::new(stored(1));
    assert_eq!(pair.known(), ("A".into(), 1, vec![]));
    assert_eq!(pair.owned("A"), (4, dedicated(HOST_A)));
    pair.assign("B");
    assert_eq!(pair.joined, [(cluster("B"), 2)]);
    assert_eq!(pair.owned("B"), (6, NOBODY));
    assert_eq!(pair.owned("A"), (5, NOBODY));
    // A's hosts may look that there is nothing left, for a while.
    assert_eq!(pair.known(), ("B".into(), 2, vec!["A".into()]));
    pair.run(rma::unit::GUEST_LINGER + SECOND);
    assert_eq!(pair.known(), ("B".into(), 2, vec![]));
    // It survives.
    pair.restart();
    assert_eq!(pair.unit.cluster(), cluster("B"));
    assert_eq!(pair.owned("B"), (6, NOBODY));
    // And back, above all that there was.
    pair.run(SECOND);
    pair.assign("A");
    assert_eq!(pair.owned("A"), (8, NOBODY));
    assert_eq!(pair.unit.assignment(), 3);
}

#[test]
fn an_assignment_that_cannot_be_stored_is_tried_again() {
    let mut pair = Pair::new(stored(1));
    pair.failing = true;
    pair.assign("B");
    assert_eq!(pair.unit.cluster(), cluster("A"));
    assert_eq!(pair.owned("A"), (4, dedicated(HOST_A)));
    pair.failing = false;
    pair.run(2 * SECOND);
    assert_eq!(pair.unit.cluster(), cluster("B"));
    assert_eq!(pair.owned("B"), (6, NOBODY));
}

#[test]
fn of_assignment_and_move_the_larger_number_holds() {
    // The unit was moved to B while fabric services were away.
    let mut moved = stored(7);
    moved.home = cluster("B");
    let mut pair = Pair::new(stored(1));
    assert_eq!(pair.known(), ("A".into(), 1, vec![]));
    pair.stored = moved;
    pair.restart();
    pair.run(SECOND);
    assert_eq!(pair.known(), ("B".into(), 7, vec![]));
    assert_eq!(
        pair.owned("B"),
        (4, dedicated(HOST_A)),
        "nothing was fenced"
    );
    // An administrator's word is above it.
    pair.assign("C");
    assert_eq!(pair.known().1, 8);
    assert_eq!(pair.unit.cluster(), cluster("C"));
    assert_eq!(pair.owned("C"), (6, NOBODY));
    // A database that was lost puts it where it is, not where its configuration wants it.
    pair.fabric = fabric(Policy::AutoJoin);
    pair.run(10 * SECOND);
    assert_eq!(pair.known().0, "C");
    assert_eq!(pair.known().1, 8);
    assert_eq!(pair.owned("C"), (6, NOBODY));
    // And where newcomers wait, the administrator's first word is above it, too.
    pair.fabric = fabric(Policy::Pending);
    pair.run(10 * SECOND);
    assert_eq!(pair.known().0, "-");
    pair.assign("A");
    pair.run(SECOND);
    assert_eq!(pair.known().0, "A");
    assert_eq!(pair.unit.cluster(), cluster("A"));
}

#[test]
fn guests_are_told_at_each_start() {
    let mut with_guest = stored(1);
    let theirs = OwnershipRegister {
        ownership: dedicated(HOST_C),
        owned: rma::wire::OwnershipStamp {
            epoch: Epoch(6),
            ..with_guest.registers[2].owned
        },
        ..with_guest.registers[2].clone()
    };
    with_guest.guests = vec![(cluster("B"), theirs)];
    let mut pair = Pair::new(with_guest);
    assert_eq!(pair.known(), ("A".into(), 1, vec!["B".into()]));
    pair.fabric = fabric(Policy::AutoJoin);
    pair.run(10 * SECOND);
    assert_eq!(pair.known(), ("A".into(), 1, vec!["B".into()]));
    // What went back is a guest no more, after a while; also where it restarts meanwhile.
    let back = &mut pair.stored.registers[2];
    back.owned.epoch = Epoch(8);
    pair.restart();
    pair.run(SECOND);
    assert_eq!(pair.known(), ("A".into(), 1, vec!["B".into()]));
    pair.run(rma::unit::GUEST_LINGER + SECOND);
    assert_eq!(pair.known(), ("A".into(), 1, vec![]));
    // Members of B are told of it as a guest, and only while it is one.
    let entity = &pair.fabric.snapshot().entities[&UNIT];
    assert!(!entity.to_member(cluster("A")).guest);
}
