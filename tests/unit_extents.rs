//! Stories of extents at a unit: carved, owned, written to and removed, on a segment that misbehaves, in
//! virtual time.

mod session_pair;
mod unit_world;

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use rma::session::Request;
use rma::unit::{DiskOp, SpecError};
use rma::wire::message::{
    Change, CompareAndSet, Conflict, ExtentFacts, IoRange, MAX_DEVICE_EXTENTS, OwnershipRegister,
    RegistersReply,
};
use rma::wire::{
    Epoch, Extent, Flags, Guid, IocNumber, IodNumber, Kind, Ownership, Status, Time, Wire,
};
use session_pair::Faults;
use unit_world::*;

const SECOND: Duration = Duration::from_secs(1);
const LEFT: Guid = Guid(0x3_0001);
const RIGHT: Guid = Guid(0x3_0002);
const OTHER: Guid = Guid(0x3_0003);
const QUARTER: u64 = DISK_BYTES / 4;

fn facts(device: Guid, offset: u64, len: u64) -> ExtentFacts {
    ExtentFacts {
        device,
        range: Extent { offset, len },
        name: format!("at {offset}"),
        present: true,
    }
}

/// A change of an extent.
fn extent(row: Guid, expected: u64, ownership: Ownership, extent: ExtentFacts) -> Change {
    Change {
        row,
        expected: Epoch(expected),
        ownership,
        extent: Some(extent),
    }
}

/// A change of anything else.
fn plain(row: Guid, expected: u64, ownership: Ownership) -> Change {
    Change {
        row,
        expected: Epoch(expected),
        ownership,
        extent: None,
    }
}

fn removed(row: Guid, expected: u64, facts: ExtentFacts) -> Change {
    let gone = ExtentFacts {
        present: false,
        ..facts
    };
    extent(row, expected, Ownership::Unallocated, gone)
}

fn request_of(writer: Guid, term: u64, changes: Vec<Change>) -> Request {
    let body = CompareAndSet {
        term,
        writer,
        changes,
    };
    request(Kind::CompareAndSet, body.to_body())
}

fn change(world: &mut World, changes: Vec<Change>) -> (Status, Vec<u8>) {
    world.ask(HOST_A, 0, request_of(HOST_A, 1, changes))
}

/// The status of a refusal and the row in the way.
fn refusal(world: &mut World, changes: Vec<Change>) -> (Status, Guid) {
    let before = world.stored.clone();
    let (status, body) = change(world, changes);
    assert_ne!(status, Status::Ok);
    assert_eq!(world.stored, before, "nothing was changed");
    (status, Conflict::from_body(&body).unwrap().register.row)
}

fn left() -> ExtentFacts {
    facts(DISK, 0, QUARTER)
}

fn right() -> ExtentFacts {
    facts(DISK, 2 * QUARTER, QUARTER)
}

/// DISK shared by both hosts (epoch 1) and carved: LEFT is A's, RIGHT is B's, all in one transaction.
fn carve(world: &mut World) {
    let both = shared(&[HOST_A, HOST_B]);
    let changes = vec![
        plain(UNIT, 0, both.clone()),
        plain(IOC1, 0, both.clone()),
        plain(DISK, 0, both),
        extent(LEFT, 0, dedicated(HOST_A), left()),
        extent(RIGHT, 0, dedicated(HOST_B), right()),
    ];
    let (status, body) = change(world, changes);
    assert_eq!(status, Status::Ok);
    let registers = RegistersReply::from_body(&body).unwrap().registers;
    assert_eq!(registers.len(), 5);
    assert_eq!(registers, {
        let mut rows = world.stored.registers.clone();
        rows.sort_by_key(|r| r.row);
        rows
    });
}

fn carved() -> World {
    let mut world = World::new(Faults::NONE, 1);
    carve(&mut world);
    world
}

/// An I/O of an extent (or, NIL, of the device) of DISK, and its status.
fn io(world: &mut World, host: Guid, kind: Kind, row: Guid, at: (u64, u64), data: &[u8]) -> Status {
    let mut body = IoRange {
        extent: row,
        offset: at.0,
        len: at.1,
    }
    .to_body();
    body.extend_from_slice(data);
    let epoch = world.unit.register(row).map_or(1, |r| r.owned.epoch.0);
    let epoch = if row.is_nil() { 1 } else { epoch };
    world.ask(host, 1, io_request(kind, 1, epoch, body)).0
}

fn write(world: &mut World, host: Guid, row: Guid, at: u64, byte: u8) -> Status {
    io(world, host, Kind::Write, row, (at, 512), &[byte; 512])
}

#[test]
fn each_host_writes_to_its_own_range_and_nowhere_else() {
    for faults in [Faults::NONE, Faults::ALL] {
        let mut world = World::new(faults, 3);
        carve(&mut world);
        assert_eq!(write(&mut world, HOST_A, LEFT, 512, 1), Status::Ok);
        assert_eq!(write(&mut world, HOST_B, RIGHT, 1024, 2), Status::Ok);
        let at: Vec<_> = world.applied.iter().filter_map(|a| a.op.range()).collect();
        assert_eq!(at, [(512, 512), (2 * QUARTER + 1024, 512)]);
        // Not the other's, not the device, not an extent that is not there or not on this device.
        for (host, row) in [
            (HOST_A, RIGHT),
            (HOST_B, LEFT),
            (HOST_A, Guid::NIL),
            (HOST_B, Guid::NIL),
            (HOST_A, OTHER),
            (HOST_A, DISK),
        ] {
            for kind in [
                Kind::Read,
                Kind::Write,
                Kind::Discard,
                Kind::WriteZeroes,
                Kind::Flush,
            ] {
                let (at, data): (_, &[u8]) = match kind {
                    Kind::Flush => ((0, 0), &[]),
                    Kind::Write => ((3 * QUARTER, 512), &[9; 512]),
                    _ => ((3 * QUARTER, 512), &[]),
                };
                let status = io(&mut world, host, kind, row, at, data);
                assert_eq!(status, Status::NotOwner, "{host} {row} {kind}");
            }
        }
        // Not beyond the end of the own one.
        for at in [QUARTER, QUARTER - 512 + 1024, u64::MAX - 511] {
            assert_eq!(
                write(&mut world, HOST_A, LEFT, at, 9),
                Status::OutOfRange,
                "{at}"
            );
        }
        let body = |len| (QUARTER - 512, len);
        for kind in [Kind::Read, Kind::Discard, Kind::WriteZeroes] {
            let status = io(&mut world, HOST_A, kind, LEFT, body(1024), &[]);
            assert_eq!(status, Status::OutOfRange);
            assert_eq!(
                io(&mut world, HOST_A, kind, LEFT, body(512), &[]),
                Status::Ok
            );
        }
        assert_eq!(
            io(&mut world, HOST_A, Kind::Flush, LEFT, (0, 0), &[]),
            Status::Ok
        );
        assert_eq!(
            io(&mut world, HOST_A, Kind::Flush, LEFT, (512, 0), &[]),
            Status::BadRequest
        );
        let body = range(0, 512, &[]);
        let (status, _) = world.ask(HOST_A, 2, io_request(Kind::Read, 1, 1, body));
        assert_eq!(status, Status::NotOwner, "of another device");
    }
}

#[test]
fn io_is_held_to_the_epoch_of_its_extent() {
    let mut world = carved();
    let body = |row| {
        let range = IoRange {
            extent: row,
            offset: 0,
            len: 512,
        };
        range.to_body()
    };
    let renamed = ExtentFacts {
        name: "another name".into(),
        ..left()
    };
    let (status, _) = change(
        &mut world,
        vec![extent(LEFT, 1, dedicated(HOST_A), renamed)],
    );
    assert_eq!(status, Status::Ok);
    for (epoch, expected) in [
        (1, Status::StaleEpoch),
        (2, Status::Ok),
        (3, Status::StaleEpoch),
    ] {
        let reply = world.ask(HOST_A, 1, io_request(Kind::Read, 1, epoch, body(LEFT)));
        assert_eq!(reply.0, expected, "{epoch}");
    }
    let reply = world.ask(HOST_B, 1, io_request(Kind::Read, 1, 1, body(RIGHT)));
    assert_eq!(reply.0, Status::Ok, "its epoch is its own");
}

#[test]
fn extents_that_cannot_be_are_refused_and_change_nothing() {
    let mut world = carved();
    let nobody = Ownership::Unallocated;
    let new = |offset, len| extent(OTHER, 0, Ownership::Unallocated, facts(DISK, offset, len));
    for (change, expected) in [
        (new(DISK_BYTES - 512, 1024), (Status::OutOfRange, DISK)),
        (new(DISK_BYTES, 512), (Status::OutOfRange, DISK)),
        (new(u64::MAX - 512, 512), (Status::OutOfRange, DISK)),
        (new(QUARTER + 1, 512), (Status::Misaligned, DISK)),
        (new(QUARTER, 513), (Status::Misaligned, DISK)),
        (new(0, 512), (Status::Overlap, LEFT)),
        (new(QUARTER - 512, 512), (Status::Overlap, LEFT)),
        (new(QUARTER, QUARTER + 512), (Status::Overlap, RIGHT)),
        (new(0, DISK_BYTES), (Status::Overlap, LEFT)),
        (new(3 * QUARTER - 512, 1024), (Status::Overlap, RIGHT)),
        // A device that is not there, or no device.
        (
            extent(OTHER, 0, nobody.clone(), facts(Guid(77), 0, 512)),
            (Status::NoRow, Guid(77)),
        ),
        (
            extent(OTHER, 0, nobody.clone(), facts(IOC1, 0, 512)),
            (Status::NoRow, IOC1),
        ),
        // The GUID of something else, or nothing to remove.
        (
            extent(IOC2, 0, nobody.clone(), facts(DISK, QUARTER, 512)),
            (Status::BadRequest, IOC2),
        ),
        (
            removed(OTHER, 0, facts(DISK, QUARTER, 512)),
            (Status::BadRequest, OTHER),
        ),
        // Another range or device of one that is there, and an extent's change without its facts.
        (
            extent(LEFT, 1, dedicated(HOST_A), facts(DISK, QUARTER, QUARTER)),
            (Status::BadRequest, LEFT),
        ),
        (
            extent(LEFT, 1, nobody.clone(), facts(DISK2, 0, QUARTER)),
            (Status::BadRequest, LEFT),
        ),
        (plain(LEFT, 1, nobody.clone()), (Status::BadRequest, LEFT)),
        // Somebody owns it.
        (removed(LEFT, 1, left()), (Status::Hierarchy, LEFT)),
        // Not among the owners of the device.
        (
            extent(LEFT, 1, dedicated(Guid(0xc)), left()),
            (Status::Hierarchy, DISK),
        ),
        // The device as a whole goes to one of them.
        (
            plain(DISK, 1, dedicated(HOST_A)),
            (Status::Hierarchy, RIGHT),
        ),
        (
            plain(DISK, 1, Ownership::Unallocated),
            (Status::Hierarchy, LEFT),
        ),
        // Stale, and unknown.
        (
            extent(LEFT, 0, dedicated(HOST_B), left()),
            (Status::Conflict, LEFT),
        ),
        (
            extent(OTHER, 7, nobody.clone(), facts(DISK, QUARTER, 512)),
            (Status::Conflict, OTHER),
        ),
        (plain(OTHER, 0, nobody.clone()), (Status::NoRow, OTHER)),
    ] {
        let found = refusal(&mut world, vec![change.clone()]);
        assert_eq!(found, expected, "{change:?}");
    }
    // Two new ones in each other's way, and one of them good.
    let pair = vec![
        extent(OTHER, 0, nobody.clone(), facts(DISK, QUARTER, 1024)),
        extent(Guid(9), 0, nobody, facts(DISK, QUARTER + 512, 1024)),
    ];
    assert_eq!(refusal(&mut world, pair).0, Status::Overlap);
    // In the gap there is room.
    let (status, _) = change(&mut world, vec![new(QUARTER, QUARTER)]);
    assert_eq!(status, Status::Ok);
    assert_eq!(write(&mut world, HOST_A, LEFT, 0, 1), Status::Ok);
}

#[test]
fn a_device_turns_from_whole_to_carved_and_back_only_while_nobody_owns_it() {
    let mut world = World::new(Faults::NONE, 1);
    world.own_disk(dedicated(HOST_A));
    let first = extent(LEFT, 0, Ownership::Unallocated, left());
    assert_eq!(
        refusal(&mut world, vec![first.clone()]),
        (Status::Hierarchy, DISK)
    );
    // Neither together with its release: its owner may be writing.
    let both = vec![plain(DISK, 1, Ownership::Unallocated), first.clone()];
    assert_eq!(refusal(&mut world, both), (Status::Hierarchy, DISK));
    let released = plain(DISK, 1, Ownership::Unallocated);
    assert_eq!(change(&mut world, vec![released]).0, Status::Ok);
    // Carving and giving away can be one.
    let together = vec![
        first,
        plain(DISK, 2, dedicated(HOST_B)),
        extent(OTHER, 0, dedicated(HOST_B), right()),
    ];
    assert_eq!(change(&mut world, together).0, Status::Ok);
    // A second extent does not take anything from anyone.
    let second = extent(
        RIGHT,
        0,
        Ownership::Unallocated,
        facts(DISK, 3 * QUARTER, 512),
    );
    assert_eq!(change(&mut world, vec![second]).0, Status::Ok);
    let gone = vec![
        removed(LEFT, 1, left()),
        removed(RIGHT, 1, facts(DISK, 3 * QUARTER, 512)),
    ];
    assert_eq!(change(&mut world, gone).0, Status::Ok);
    let last = removed(OTHER, 2, right());
    let free = extent(OTHER, 1, Ownership::Unallocated, right());
    assert_eq!(change(&mut world, vec![free]).0, Status::Ok);
    assert_eq!(
        refusal(&mut world, vec![last.clone()]),
        (Status::Hierarchy, DISK)
    );
    let released = plain(DISK, 3, Ownership::Unallocated);
    assert_eq!(change(&mut world, vec![released]).0, Status::Ok);
    assert_eq!(change(&mut world, vec![last]).0, Status::Ok);
    // Whole again; and its epoch went on.
    assert_eq!(
        change(&mut world, vec![plain(DISK, 4, dedicated(HOST_A))]).0,
        Status::Ok
    );
    let reply = world.io(HOST_A, 5, Kind::Read, range(0, 512, &[]));
    assert_eq!(reply.0, Status::Ok);
    let tombstone = world.unit.register(OTHER).unwrap();
    assert!(!tombstone.extent.unwrap().present);
    assert_eq!(tombstone.owned.epoch, Epoch(3));
}

#[test]
fn a_tombstone_can_be_carved_anew_where_there_is_room_on_its_device() {
    let mut world = carved();
    let free = extent(LEFT, 1, Ownership::Unallocated, left());
    assert_eq!(change(&mut world, vec![free]).0, Status::Ok);
    assert_eq!(
        change(&mut world, vec![removed(LEFT, 2, left())]).0,
        Status::Ok
    );
    assert_eq!(write(&mut world, HOST_A, LEFT, 0, 1), Status::NotOwner);
    // Removed once is removed.
    assert_eq!(
        refusal(&mut world, vec![removed(LEFT, 3, left())]),
        (Status::BadRequest, LEFT)
    );
    let elsewhere = |device| extent(LEFT, 3, Ownership::Unallocated, facts(device, 512, 512));
    assert_eq!(
        refusal(&mut world, vec![elsewhere(DISK2)]),
        (Status::BadRequest, LEFT)
    );
    assert_eq!(change(&mut world, vec![elsewhere(DISK)]).0, Status::Ok);
    assert_eq!(
        world.unit.register(LEFT).unwrap().extent,
        Some(facts(DISK, 512, 512))
    );
}

#[test]
fn a_repeated_carve_is_answered_again_and_made_once() {
    let mut world = World::new(Faults::NONE, 1);
    let carve = vec![extent(LEFT, 0, Ownership::Unallocated, left())];
    let first = change(&mut world, carve.clone());
    assert_eq!(first.0, Status::Ok);
    let count = world.store_count;
    assert_eq!(change(&mut world, carve), first);
    assert_eq!(world.store_count, count);
    // Another with the same GUID is another matter.
    let other = vec![extent(LEFT, 0, Ownership::Unallocated, right())];
    assert_eq!(refusal(&mut world, other), (Status::Conflict, LEFT));
}

#[test]
fn extents_survive_a_restart_and_their_guids_are_taken() {
    let mut world = carved();
    assert_eq!(write(&mut world, HOST_A, LEFT, 0, 1), Status::Ok);
    world.restart();
    let now = world.now;
    assert_eq!(write(&mut world, HOST_A, LEFT, 512, 2), Status::Ok);
    assert_eq!(write(&mut world, HOST_A, RIGHT, 0, 2), Status::NotOwner);
    assert_eq!(write(&mut world, HOST_A, Guid::NIL, 0, 2), Status::NotOwner);
    let spec = device(LEFT, 7, &world.media[&DISK]);
    let taken = world.unit.add_device(now, IocNumber(1), spec);
    assert_eq!(taken, Err(SpecError::GuidTaken(LEFT)));
    let taken = world.unit.add_controller(now, controller(RIGHT, 7));
    assert_eq!(taken, Err(SpecError::GuidTaken(RIGHT)));
}

#[test]
fn extents_come_and_go_with_their_device() {
    let mut world = carved();
    let now = world.now;
    let number = (IocNumber(1), IodNumber(1));
    world.unit.remove_device(now, number.0, number.1).unwrap();
    assert_eq!(write(&mut world, HOST_A, LEFT, 0, 1), Status::NoDevice);
    let new = extent(OTHER, 0, Ownership::Unallocated, facts(DISK, QUARTER, 512));
    assert_eq!(refusal(&mut world, vec![new]), (Status::NoRow, DISK));
    let now = world.now;
    let spec = device(DISK, 1, &world.media[&DISK]);
    world.unit.add_device(now, number.0, spec.clone()).unwrap();
    assert_eq!(write(&mut world, HOST_A, LEFT, 0, 1), Status::Ok);
    // It returns below other owners: it and its extents are nobody's, and that is durable.
    let now = world.now;
    world.unit.remove_device(now, number.0, number.1).unwrap();
    let to_b = plain(IOC1, 1, dedicated(HOST_B));
    assert_eq!(change(&mut world, vec![to_b]).0, Status::Ok);
    let now = world.now;
    world.unit.add_device(now, number.0, spec).unwrap();
    world.pump();
    for row in [DISK, LEFT, RIGHT] {
        let register = world.unit.register(row).unwrap();
        assert_eq!(register.ownership, Ownership::Unallocated);
        assert!(world.stored.registers.contains(&register));
        assert_eq!(register.extent.is_some(), row != DISK);
    }
    assert_eq!(write(&mut world, HOST_A, LEFT, 0, 1), Status::NotOwner);
}

#[test]
fn a_device_that_shrinks_serves_what_is_left_of_its_extents() {
    let mut world = carved();
    let mut spec = device(DISK, 1, &world.media[&DISK]);
    spec.info.size_bytes = 2 * QUARTER + 1024;
    let now = world.now;
    world.unit.alter_device(now, IocNumber(1), spec).unwrap();
    assert_eq!(write(&mut world, HOST_B, RIGHT, 512, 1), Status::Ok);
    assert_eq!(
        write(&mut world, HOST_B, RIGHT, 1024, 1),
        Status::OutOfRange
    );
}

#[test]
fn the_extents_of_a_device_are_bounded() {
    let mut world = World::new(Faults::NONE, 1);
    let some = |from: usize, to: usize| -> Vec<Change> {
        (from..to)
            .map(|n| {
                let range = facts(DISK, 512 * n as u64, 512);
                extent(
                    Guid(0x10_0000 + n as u128),
                    0,
                    Ownership::Unallocated,
                    range,
                )
            })
            .collect()
    };
    assert_eq!(
        refusal(&mut world, some(0, MAX_DEVICE_EXTENTS + 1)),
        (Status::NoSpace, DISK)
    );
    assert_eq!(
        change(&mut world, some(0, MAX_DEVICE_EXTENTS)).0,
        Status::Ok
    );
    let more = some(MAX_DEVICE_EXTENTS, MAX_DEVICE_EXTENTS + 1);
    assert_eq!(refusal(&mut world, more), (Status::NoSpace, DISK));
}

/// I2 for extents: one goes back and forth between two hosts that write without pause, while the other
/// stays with its owner and is never held up for good.
#[test]
fn no_write_of_an_old_owner_is_applied_to_an_extent_after_its_revocation() {
    let mut counts = [0, 0];
    for seed in 0..6 {
        let mut world = World::new(Faults::ALL, seed);
        world.disk_time = Duration::from_millis(4);
        carve(&mut world);
        let mut owner = HOST_A;
        let mut number = 0_u64;
        let mut revoked: Vec<(Guid, Time, Time)> = Vec::new();
        for epoch in 1..6 {
            let next = if owner == HOST_A { HOST_B } else { HOST_A };
            let end = world.now + Duration::from_millis(20);
            while world.now < end {
                for (host, row) in [(HOST_A, LEFT), (HOST_B, LEFT), (HOST_B, RIGHT)] {
                    if world.client(host, 1).outstanding() < 8 {
                        number += 1;
                        world.disk_is_prompt = seed % 2 == 1 && number.is_multiple_of(3);
                        let range = IoRange {
                            extent: row,
                            offset: number % 64 * 512,
                            len: 512,
                        };
                        let mut body = range.to_body();
                        body.extend([host.0 as u8; 512]);
                        let epoch = if row == LEFT { epoch } else { 1 };
                        world.submit(host, 1, io_request(Kind::Write, 1, epoch, body));
                    }
                }
                world.step();
            }
            let changes = vec![extent(LEFT, epoch, dedicated(next), left())];
            let reply = world.ask(owner, 0, request_of(owner, 1, changes));
            assert_eq!(reply.0, Status::Ok, "seed {seed}");
            let now = world.now;
            if let Some(last) = revoked.last_mut() {
                last.2 = now;
            }
            revoked.push((owner, now, Time::from_nanos(u64::MAX)));
            owner = next;
        }
        world.pass(2 * SECOND);
        let before = counts;
        for applied in &world.applied {
            let DiskOp::Write { data, offset, .. } = &applied.op else {
                panic!("{applied:?}");
            };
            let host = Guid(u128::from(data[0]));
            if *offset >= 2 * QUARTER {
                counts[1] += 1;
                assert_eq!(host, HOST_B);
                assert!(*offset < 3 * QUARTER);
                continue;
            }
            counts[0] += 1;
            assert!(*offset < QUARTER);
            for (of, from, to) in &revoked {
                let late = *of == host && applied.at > *from && applied.at <= *to;
                assert!(!late, "a late write of {host}, seed {seed}");
            }
        }
        assert!(
            counts[0] > before[0] && counts[1] > before[1],
            "seed {seed}"
        );
    }
    // How many it is in one story is chance.
    assert!(counts[0] > 6 * 20 && counts[1] > 6 * 20, "{counts:?}");
}

/// What a random administrator does.
#[derive(Debug, Clone)]
enum Act {
    Carve(u8, u8, u8),
    Remove(u8),
    Give(u8, u8),
    GiveDevice(u8),
    Restart,
    Write(bool, u8, u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0_u8..6, 0_u8..12, 1_u8..6).prop_map(|(n, at, len)| Act::Carve(n, at, len)),
        2 => (0_u8..6).prop_map(Act::Remove),
        4 => (0_u8..6, 0_u8..4).prop_map(|(n, to)| Act::Give(n, to)),
        3 => (0_u8..4).prop_map(Act::GiveDevice),
        1 => Just(Act::Restart),
        4 => (any::<bool>(), 0_u8..7, 0_u8..14).prop_map(|(a, n, at)| Act::Write(a, n, at)),
    ]
}

fn owner(number: u8) -> Ownership {
    match number {
        0 => Ownership::Unallocated,
        1 => dedicated(HOST_A),
        2 => dedicated(HOST_B),
        _ => shared(&[HOST_A, HOST_B]),
    }
}

/// A naive model: the device as blocks with an owner set each.
#[derive(Default)]
struct Model {
    device: u8,
    extents: BTreeMap<u8, (u64, u64, u8)>,
}

impl Model {
    fn hosts(number: u8) -> Vec<Guid> {
        owner(number).owners().to_vec()
    }

    fn permits(above: u8, below: u8) -> bool {
        match (above, below) {
            (_, 0) => true,
            (0, _) => false,
            (1 | 2, _) => above == below,
            _ => true,
        }
    }

    fn may_write(&self, host: Guid, extent: Option<u8>, block: u64) -> Option<u64> {
        match extent {
            None if !self.extents.is_empty() => None,
            None => Self::hosts(self.device).contains(&host).then_some(block),
            Some(n) => {
                let (at, len, owner) = *self.extents.get(&n)?;
                let inside = block < len && Self::hosts(owner).contains(&host);
                inside.then_some(at + block)
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_unit_agrees_with_a_naive_model_of_extents(acts in proptest::collection::vec(act(), 1..40)) {
        let mut world = World::new(Faults::NONE, 5);
        let both = shared(&[HOST_A, HOST_B]);
        let above = vec![plain(UNIT, 0, both.clone()), plain(IOC1, 0, both)];
        prop_assert_eq!(change(&mut world, above).0, Status::Ok);
        let mut model = Model::default();
        let guid = |n: u8| Guid(0x5_0000 + u128::from(n));
        for act in acts {
            let register = |world: &World, row| -> OwnershipRegister {
                world.unit.register(row).unwrap()
            };
            match act {
                Act::Carve(n, at, len) => {
                    let (at, len) = (u64::from(at), u64::from(len));
                    let old = register(&world, guid(n));
                    let new = facts(DISK, at * 512, len * 512);
                    let made = change(&mut world, vec![extent(
                        guid(n), old.owned.epoch.0, Ownership::Unallocated, new,
                    )]);
                    let free = model.extents.values().all(|e| at + len <= e.0 || e.0 + e.1 <= at);
                    let may = free
                        && !model.extents.contains_key(&n)
                        && (model.device == 0 || !model.extents.is_empty());
                    // The very same extent again is a release.
                    let same = model.extents.get(&n).is_some_and(|e| (e.0, e.1) == (at, len));
                    prop_assert_eq!(made.0 == Status::Ok, may || same, "{:?} {:?}", act, made.0);
                    if may || same {
                        model.extents.insert(n, (at, len, 0));
                    }
                }
                Act::Remove(n) => {
                    let old = register(&world, guid(n));
                    let Some(range) = old.extent.clone() else { continue };
                    let made = change(&mut world, vec![removed(guid(n), old.owned.epoch.0, range)]);
                    let may = model.extents.get(&n).is_some_and(|e| e.2 == 0)
                        && (model.extents.len() > 1 || model.device == 0);
                    prop_assert_eq!(made.0 == Status::Ok, may, "{:?}", made.0);
                    if may {
                        model.extents.remove(&n);
                    }
                }
                Act::Give(n, to) => {
                    let old = register(&world, guid(n));
                    let Some(range) = old.extent.clone().filter(|e| e.present) else { continue };
                    let epoch = old.owned.epoch.0;
                    let made = change(&mut world, vec![extent(guid(n), epoch, owner(to), range)]);
                    let may = Model::permits(model.device, to);
                    prop_assert_eq!(made.0 == Status::Ok, may);
                    if let (true, Some(e)) = (may, model.extents.get_mut(&n)) {
                        e.2 = to;
                    }
                }
                Act::GiveDevice(to) => {
                    let epoch = register(&world, DISK).owned.epoch.0;
                    let made = change(&mut world, vec![plain(DISK, epoch, owner(to))]);
                    let may = model.extents.values().all(|e| Model::permits(to, e.2));
                    prop_assert_eq!(made.0 == Status::Ok, may);
                    if may {
                        model.device = to;
                    }
                }
                Act::Restart => world.restart(),
                Act::Write(first, n, block) => {
                    let host = if first { HOST_A } else { HOST_B };
                    let named = (n < 6).then_some(n);
                    let row = named.map_or(Guid::NIL, guid);
                    let epoch = register(&world, if n < 6 { row } else { DISK }).owned.epoch.0;
                    let at = u64::from(block);
                    let before = world.applied.len();
                    let range = IoRange { extent: row, offset: at * 512, len: 512 };
                    let mut body = range.to_body();
                    body.extend([1; 512]);
                    let request = Request {
                        flags: Flags::NONE,
                        ..io_request(Kind::Write, 1, epoch, body)
                    };
                    let done = world.ask(host, 1, request).0;
                    let expected = model.may_write(host, named, at);
                    prop_assert_eq!(done == Status::Ok, expected.is_some(), "{:?}", done);
                    let applied: Vec<_> = world.applied[before..]
                        .iter()
                        .filter_map(|a| a.op.range())
                        .collect();
                    let expected: Vec<_> =
                        expected.into_iter().map(|block| (block * 512, 512)).collect();
                    prop_assert_eq!(applied, expected);
                }
            }
        }
    }
}
