//! Stories of an I/O unit: hosts with sessions to it on a segment that misbehaves, in virtual time.

mod session_pair;
mod unit_world;

use std::time::Duration;

use proptest::prelude::*;
use rma::backend::Backend;
use rma::session::Request;
use rma::unit::{
    DiskError, DiskOp, MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES, MAX_QUEUED_CHANGES, MAX_UNIT_REGISTERS,
    SpecError, StoredRegisters, Unit,
};
use rma::wire::kind::Event;
use rma::wire::message::{
    Conflict, ControllersReply, DevicesReply, IdentifyReply, OwnershipRegister, RegistersReply,
    RegistersRequest,
};
use rma::wire::{
    ClusterName, DropReason, Epoch, Flags, Guid, HEADER_LEN, Header, IocNumber, IodNumber, Kind,
    Mac, Ownership, OwnershipStamp, Status, Time, Wire,
};
use session_pair::{Faults, InFlight};
use unit_world::*;

const SECOND: Duration = Duration::from_secs(1);

fn world() -> World {
    World::new(Faults::NONE, 1)
}

/// A world in which host A owns DISK with epoch 1.
fn owned() -> World {
    let mut world = world();
    world.own_disk(dedicated(HOST_A));
    world
}

fn conflict(body: &[u8]) -> OwnershipRegister {
    Conflict::from_body(body).unwrap().register
}

#[test]
fn a_host_finds_what_the_unit_has() {
    let mut world = World::new(Faults::ALL, 7);
    let (status, body) = world.ask(HOST_A, 0, request(Kind::Controllers, vec![]));
    assert_eq!(status, Status::Ok);
    let list = ControllersReply::from_body(&body).unwrap();
    let found: Vec<_> = list.controllers.iter().map(|c| (c.guid, c.ioc)).collect();
    assert_eq!(found, [(IOC1, IocNumber(1)), (IOC2, IocNumber(2))]);
    assert_eq!((list.unit, &*list.macs), (UNIT, &[UNIT_MAC][..]));

    let (status, body) = world.ask(HOST_A, 1, request(Kind::Devices, vec![]));
    assert_eq!(status, Status::Ok);
    let list = DevicesReply::from_body(&body).unwrap();
    assert_eq!(list.controller, IOC1);
    let found: Vec<_> = list.devices.iter().map(|d| (d.guid, d.iod)).collect();
    assert_eq!(found, [(DISK, IodNumber(1)), (DISK2, IodNumber(2))]);
    assert_eq!(list.devices[0].size_bytes, DISK_BYTES);

    let (status, body) = world.ask(HOST_B, 1, io_request(Kind::Identify, 2, 0, vec![]));
    assert_eq!(status, Status::Ok);
    let reply = IdentifyReply::from_body(&body).unwrap();
    assert_eq!(reply.device, list.devices[1]);
    assert_eq!(reply.register.ownership, Ownership::Unallocated);
}

#[test]
fn an_owner_reads_what_it_wrote_on_a_bad_wire() {
    for seed in 0..10 {
        let mut world = World::new(Faults::ALL, seed);
        world.disk_is_prompt = seed % 2 == 1;
        world.own_disk(dedicated(HOST_A));
        let data: Vec<u8> = (0..300 * 512_u32).map(|i| (i / 7) as u8).collect();
        let len = data.len() as u64;
        for (kind, flags) in [(Kind::Write, Flags::NONE), (Kind::Write, Flags::FUA)] {
            let write = Request {
                flags,
                ..io_request(kind, 1, 1, range(512, len, &data))
            };
            assert_eq!(world.ask(HOST_A, 1, write), (Status::Ok, vec![]));
        }
        let flush = world.io(HOST_A, 1, Kind::Flush, range(0, 0, &[]));
        assert_eq!(flush, (Status::Ok, vec![]));
        let read = world.io(HOST_A, 1, Kind::Read, range(512, len, &[]));
        assert_eq!(read, (Status::Ok, data));
        // Each write was applied exactly once.
        assert_eq!(world.applied.len(), 2);
        for kind in [Kind::Discard, Kind::WriteZeroes] {
            let done = world.io(HOST_A, 1, kind, range(1024, 512, &[]));
            assert_eq!(done, (Status::Ok, vec![]));
        }
        let read = world.io(HOST_A, 1, Kind::Read, range(1024, 512, &[]));
        assert_eq!(read, (Status::Ok, vec![0; 512]));
    }
}

#[test]
fn what_a_disk_does_at_once_waits_for_no_disk() {
    let mut world = owned();
    world.disk_is_prompt = true;
    world.disk_time = Duration::from_secs(3600);
    let data = [7; 512];
    let write = world.io(HOST_A, 1, Kind::Write, range(512, 512, &data));
    assert_eq!(write, (Status::Ok, vec![]));
    let read = world.io(HOST_A, 1, Kind::Read, range(512, 512, &[]));
    assert_eq!(read, (Status::Ok, data.to_vec()));
    assert_eq!((world.applied.len(), world.disk_busy()), (1, 0));
}

/// Loses what a unit sends for the first time of what was read.
fn is_fresh_read(_: u64, frame: &InFlight) -> bool {
    let header = Header::parse(&frame.bytes, true).map(|(header, _)| header);
    header.is_ok_and(|h| h.is_reply() && h.kind == Kind::Read && !h.flags.contains(Flags::RETRY))
}

#[test]
fn a_reply_that_is_sent_again_has_what_was_read_and_the_medium_is_not_copied() {
    let mut world = owned();
    world.disk_is_prompt = true;
    let write = |byte| io_request(Kind::Write, 1, 1, range(0, 4096, &[byte; 4096]));
    let ask = |world: &mut World, byte| world.ask(HOST_A, 1, write(byte));
    assert_eq!(ask(&mut world, 7), (Status::Ok, vec![]));
    let place = |world: &World| {
        let lent = world.media[&DISK].lend(0, 4096).unwrap().unwrap();
        lent.bytes().as_ptr()
    };
    let before = place(&world);
    world.segments[1].lose = Some(is_fresh_read);
    let reads = [0, 1024, 0].map(|offset| {
        let request = io_request(Kind::Read, 1, 1, range(offset, 3072, &[]));
        world.submit(HOST_A, 1, request)
    });
    world.until(Duration::from_secs(1), |world| {
        world.media[&DISK].is_lent(0, 512)
    });
    assert_eq!(ask(&mut world, 8), (Status::Ok, vec![]));
    assert_eq!(place(&world), before, "the medium was not copied");
    assert!(!world.media[&DISK].is_lent(0, 512));
    for read in reads {
        assert_eq!(world.reply(HOST_A, 1, read), (Status::Ok, vec![7; 3072]));
    }
    let read = world.io(HOST_A, 1, Kind::Read, range(0, 4096, &[]));
    assert_eq!(read, (Status::Ok, vec![8; 4096]));
}

#[test]
fn a_block_that_the_medium_has_spoilt_is_an_error_and_nothing_that_is_asked_for_for_ever() {
    for is_written in [false, true] {
        let registers = Some(StoredRegisters::default());
        let mut world = World::empty(Faults::NONE, 1, cluster("A"), registers);
        world.disk_is_prompt = true;
        world.host_mtu = 9000;
        world.add_host(HOST_A, "A");
        world.own_disk(dedicated(HOST_A));
        let medium = world.media.get_mut(&DISK).unwrap();
        let other = Some(rma::wire::sum::sum(&[8; 4096]));
        assert_eq!(medium.write_at_once(4096, &[7; 4096], other), Some(Ok(())));
        let read = |offset, len| io_request(Kind::Read, 1, 1, range(offset, len, &[]));
        let spoilt = world.submit(HOST_A, 1, read(4096, 4096));
        if is_written {
            // The reply gets a copy.
            world.until(SECOND, |world| world.media[&DISK].is_lent(4096, 512));
            let write = range(4096, 512, &[9; 512]);
            let written = world.io(HOST_A, 1, Kind::Write, write);
            assert_eq!(written, (Status::Ok, vec![]));
        }
        let reply = world.reply(HOST_A, 1, spoilt);
        assert_eq!(reply, (Status::MediaError, vec![]));
        let whole = world.ask(HOST_A, 1, read(0, 4096));
        assert_eq!(whole, (Status::Ok, vec![0; 4096]));
        let write = range(4096, 4096, &[6; 4096]);
        let written = world.io(HOST_A, 1, Kind::Write, write);
        assert_eq!(written, (Status::Ok, vec![]));
        let again = world.ask(HOST_A, 1, read(4096, 4096));
        assert_eq!(again, (Status::Ok, vec![6; 4096]));
    }
}

#[test]
fn nothing_of_a_medium_stays_lent_when_its_device_is_gone() {
    let mut world = owned();
    world.disk_is_prompt = true;
    let write = range(0, 512, &[7; 512]);
    assert_eq!(
        world.io(HOST_A, 1, Kind::Write, write),
        (Status::Ok, vec![])
    );
    let read = world.io(HOST_A, 1, Kind::Read, range(0, 512, &[]));
    assert_eq!(read, (Status::Ok, vec![7; 512]));
    assert!(world.media[&DISK].is_lent(0, 512), "not acknowledged yet");
    let now = world.now;
    let removed = world.unit.remove_device(now, IocNumber(1), IodNumber(1));
    assert!(removed.is_ok());
    assert!(!world.media[&DISK].is_lent(0, 512));
}

#[test]
fn requests_that_make_no_sense_get_a_status_and_touch_nothing() {
    for is_prompt in [false, true] {
        requests_that(is_prompt);
    }
}

fn requests_that(is_prompt: bool) {
    let mut world = owned();
    world.disk_is_prompt = is_prompt;
    let mebibyte = 1 << 20;
    let zeroes = vec![0; mebibyte];
    for (kind, body, expected) in [
        (Kind::Read, range(DISK_BYTES, 512, &[]), Status::OutOfRange),
        (
            Kind::Read,
            range(DISK_BYTES - 512, 1024, &[]),
            Status::OutOfRange,
        ),
        (
            Kind::Discard,
            range(u64::MAX - 511, 512, &[]),
            Status::OutOfRange,
        ),
        (
            Kind::WriteZeroes,
            range(512, u64::MAX, &[]),
            Status::OutOfRange,
        ),
        (
            Kind::Write,
            range(DISK_BYTES - 512, mebibyte as u64, &zeroes),
            Status::OutOfRange,
        ),
        (Kind::Read, range(100, 512, &[]), Status::Misaligned),
        (Kind::Read, range(0, 100, &[]), Status::Misaligned),
        (
            Kind::Write,
            range(1, 512, &zeroes[..512]),
            Status::Misaligned,
        ),
        (Kind::Read, range(0, 0, &[]), Status::BadRequest),
        (
            Kind::Read,
            range(0, mebibyte as u64 + 512, &[]),
            Status::BadRequest,
        ),
        (Kind::Read, range(0, 512, &[1]), Status::BadRequest),
        (Kind::Read, vec![0; 15], Status::BadRequest),
        (
            Kind::Write,
            range(0, 1024, &zeroes[..512]),
            Status::BadRequest,
        ),
        (Kind::Write, vec![], Status::BadRequest),
        (Kind::Flush, vec![0], Status::BadRequest),
        (Kind::Devices, vec![0], Status::BadRequest),
        (Kind::Identify, vec![0], Status::BadRequest),
    ] {
        let reply = world.io(HOST_A, 1, kind, body);
        assert_eq!(reply, (expected, vec![]), "{kind}");
    }
    for (kind, body, expected) in [
        (Kind::Controllers, vec![1], Status::BadRequest),
        (Kind::Registers, vec![], Status::BadRequest),
        (Kind::CompareAndSet, vec![1, 2, 3], Status::BadRequest),
        (Kind::Membership, vec![], Status::Unsupported),
        (Kind::TableStamp, vec![], Status::Unsupported),
    ] {
        let reply = world.ask(HOST_A, 0, request(kind, body));
        assert_eq!(reply, (expected, vec![]), "{kind}");
    }
    assert_eq!(world.applied.len(), 0);
}

#[test]
fn what_is_not_there_is_not_found() {
    let mut world = owned();
    let reply = world.ask(HOST_A, 1, io_request(Kind::Read, 9, 1, range(0, 512, &[])));
    assert_eq!(reply.0, Status::NoDevice);
    let reply = world.ask(HOST_A, 1, io_request(Kind::Identify, 9, 0, vec![]));
    assert_eq!(reply.0, Status::NoDevice);
    let now = world.now;
    world.unit.remove_controller(now, IocNumber(2)).unwrap();
    for kind in [Kind::Devices, Kind::Identify, Kind::Read] {
        let reply = world.ask(HOST_A, 2, io_request(kind, 1, 0, vec![]));
        assert_eq!(reply, (Status::NoController, vec![]));
    }
}

#[test]
fn only_owners_with_the_current_epoch_are_served() {
    for is_prompt in [false, true] {
        only_owners(is_prompt);
    }
}

fn only_owners(is_prompt: bool) {
    let mut world = world();
    world.disk_is_prompt = is_prompt;
    let data = vec![9; 512];
    let write = || range(0, 512, &data);
    // Nobody owns the device at first.
    for host in [HOST_A, HOST_B] {
        assert_eq!(world.io(host, 0, Kind::Write, write()).0, Status::NotOwner);
    }
    world.own_disk(dedicated(HOST_A));
    assert_eq!(world.io(HOST_A, 1, Kind::Write, write()).0, Status::Ok);
    for kind in [
        Kind::Read,
        Kind::Write,
        Kind::Flush,
        Kind::Discard,
        Kind::WriteZeroes,
    ] {
        let body = if kind == Kind::Flush {
            range(0, 0, &[])
        } else {
            write()
        };
        let reply = world.io(HOST_B, 1, kind, body.clone());
        assert_eq!(reply, (Status::NotOwner, vec![]), "{kind}");
        for stale in [0, 2, u64::MAX] {
            let reply = world.io(HOST_A, stale, kind, body.clone());
            assert_eq!(reply, (Status::StaleEpoch, vec![]), "{kind}");
        }
    }
    // An owner of the controller is not an owner of the device.
    assert_eq!(world.applied.len(), 1);
    let both = shared(&[HOST_A, HOST_B]);
    assert_eq!(world.set(HOST_B, 1, &[(DISK, 1, both)]).0, Status::Ok);
    for host in [HOST_A, HOST_B] {
        assert_eq!(
            world.io(host, 1, Kind::Write, write()).0,
            Status::StaleEpoch
        );
        assert_eq!(world.io(host, 2, Kind::Write, write()).0, Status::Ok);
    }
}

#[test]
fn errors_of_the_medium_arrive_as_what_they_are() {
    for is_prompt in [false, true] {
        errors_of(is_prompt);
    }
}

fn errors_of(is_prompt: bool) {
    let mut world = owned();
    world.disk_is_prompt = is_prompt;
    for (error, expected) in [
        (DiskError::Media(5), Status::MediaError),
        (DiskError::NoSpace, Status::NoSpace),
        (DiskError::ReadOnly, Status::ReadOnly),
        (DiskError::OutOfRange, Status::OutOfRange),
    ] {
        world.disk_error = Some(error);
        let reply = world.io(HOST_A, 1, Kind::Write, range(0, 512, &[1; 512]));
        assert_eq!(reply, (expected, vec![]));
    }
    assert_eq!(world.unit.in_flight(), 0);
}

#[test]
fn a_read_only_device_takes_no_change() {
    let mut world = owned();
    let disk = memory(true);
    let mut spec = device(DISK, 1, &disk);
    spec.name = "sealed".into();
    let now = world.now;
    world.unit.alter_device(now, IocNumber(1), spec).unwrap();
    for kind in [Kind::Write, Kind::Discard, Kind::WriteZeroes] {
        let data: &[u8] = if kind == Kind::Write { &[1; 512] } else { &[] };
        let reply = world.io(HOST_A, 1, kind, range(0, 512, data));
        assert_eq!(reply.0, Status::ReadOnly, "{kind}");
    }
    assert_eq!(
        world.io(HOST_A, 1, Kind::Read, range(0, 512, &[])).0,
        Status::Ok
    );
    assert_eq!(
        world.io(HOST_A, 1, Kind::Flush, range(0, 0, &[])).0,
        Status::Ok
    );
    assert_eq!(world.applied.len(), 0);
}

#[test]
fn a_transaction_is_made_as_a_whole_or_not_at_all() {
    let mut world = owned();
    let stored = world.stored.clone();
    let both = shared(&[HOST_A, HOST_B]);
    for (changes, expected, in_the_way) in [
        // Another epoch.
        (
            vec![(DISK2, 0, both.clone()), (DISK, 0, both.clone())],
            Status::Conflict,
            DISK,
        ),
        (vec![(DISK, 2, both.clone())], Status::Conflict, DISK),
        // Not a row of this unit.
        (
            vec![(DISK2, 0, both.clone()), (Guid(77), 0, both.clone())],
            Status::NoRow,
            Guid(77),
        ),
        // A child whose parent is not allocated.
        (
            vec![(DISK2, 0, both.clone()), (DISK3, 0, both.clone())],
            Status::Hierarchy,
            IOC2,
        ),
        // A parent that is taken from the owner of a child.
        (vec![(IOC1, 1, dedicated(HOST_B))], Status::Hierarchy, DISK),
        (
            vec![(UNIT, 1, Ownership::Unallocated)],
            Status::Hierarchy,
            IOC1,
        ),
        // A host that does not own the parent.
        (
            vec![(DISK2, 0, dedicated(Guid(0xc)))],
            Status::Hierarchy,
            IOC1,
        ),
    ] {
        let (status, body) = world.set(HOST_B, 1, &changes);
        assert_eq!((status, conflict(&body).row), (expected, in_the_way));
        assert_eq!(world.stored, stored);
        let now = world.unit.register(DISK2).unwrap();
        assert_eq!(now.owned.epoch, Epoch(0));
    }
    // Parent and child together are fine.
    let (status, body) = world.set(
        HOST_B,
        1,
        &[
            (DISK, 1, Ownership::Unallocated),
            (IOC1, 1, dedicated(HOST_B)),
            (DISK2, 0, dedicated(HOST_B)),
        ],
    );
    assert_eq!(status, Status::Ok);
    let reply = RegistersReply::from_body(&body).unwrap();
    let epochs: Vec<_> = reply
        .registers
        .iter()
        .map(|r| (r.row, r.owned.epoch.0, r.owned.writer))
        .collect();
    assert_eq!(
        epochs,
        [(IOC1, 2, HOST_B), (DISK, 2, HOST_B), (DISK2, 1, HOST_B)]
    );
}

#[test]
fn a_transaction_with_an_older_term_is_refused() {
    let mut world = owned();
    let both = shared(&[HOST_A, HOST_B]);
    let set =
        |world: &mut World, term, epoch| world.set(HOST_A, term, &[(DISK, epoch, both.clone())]);
    assert_eq!(set(&mut world, 5, 1).0, Status::Ok);
    let (status, body) = set(&mut world, 4, 2);
    assert_eq!(status, Status::OlderTerm);
    assert_eq!(conflict(&body).owned.term, 5);
    assert_eq!(set(&mut world, 5, 2).0, Status::Ok);
    world.restart();
    assert_eq!(world.unit.term(), 5);
    assert_eq!(set(&mut world, 4, 3).0, Status::OlderTerm);
}

#[test]
fn a_repeated_transaction_is_answered_again_and_made_once() {
    let mut world = owned();
    let stores = world.store_count;
    let change = [(DISK, 1, dedicated(HOST_B))];
    let first = world.set(HOST_A, 1, &change);
    assert_eq!(first.0, Status::Ok);
    assert_eq!(world.set(HOST_A, 1, &change), first);
    // Also after a restart of the unit.
    world.restart();
    assert_eq!(world.set(HOST_A, 1, &change), first);
    assert_eq!(world.store_count, stores + 1);
    // Another writer, or another outcome, is another change.
    assert_eq!(world.set(HOST_B, 1, &change).0, Status::Conflict);
    let other = [(DISK, 1, dedicated(HOST_A))];
    assert_eq!(world.set(HOST_A, 1, &other).0, Status::Conflict);
}

#[test]
fn a_host_changes_registers_in_its_own_name_only() {
    let mut world = owned();
    let forged = compare_and_set(HOST_A, 1, &[(DISK, 1, dedicated(HOST_B))]);
    assert_eq!(world.ask(HOST_B, 0, forged), (Status::BadRequest, vec![]));
    assert_eq!(world.unit.register(DISK).unwrap().owned.epoch, Epoch(1));
}

#[test]
fn registers_are_durable_before_they_are_answered_or_in_force() {
    let mut world = owned();
    world.persist = Persist::Hangs;
    let change = compare_and_set(HOST_B, 1, &[(DISK, 1, dedicated(HOST_B))]);
    let command = world.submit(HOST_B, 0, change);
    world.pass(2 * SECOND);
    assert_eq!(world.take_reply(HOST_B, 0, command), None);
    assert_eq!(world.hanging(), 1);
    assert_eq!(world.unit.register(DISK).unwrap().owned.epoch, Epoch(1));
    // Neither may write meanwhile: the one not any more, the other not yet.
    let write = || range(0, 512, &[1; 512]);
    assert_eq!(world.io(HOST_A, 1, Kind::Write, write()).0, Status::Busy);
    assert_eq!(
        world.io(HOST_B, 2, Kind::Write, write()).0,
        Status::NotOwner
    );
    world.release_persists();
    assert_eq!(world.reply(HOST_B, 0, command).0, Status::Ok);
    assert_eq!(
        world.io(HOST_A, 1, Kind::Write, write()).0,
        Status::NotOwner
    );
    assert_eq!(world.io(HOST_B, 2, Kind::Write, write()).0, Status::Ok);
}

#[test]
fn what_cannot_be_persisted_did_not_happen() {
    let mut world = owned();
    world.persist = Persist::Fails;
    let change = [(DISK, 1, dedicated(HOST_B))];
    let reply = world.set(HOST_B, 1, &change);
    assert_eq!(reply, (Status::NotPersisted, vec![]));
    let write = || range(0, 512, &[1; 512]);
    assert_eq!(world.io(HOST_A, 1, Kind::Write, write()).0, Status::Ok);
    world.persist = Persist::Works;
    assert_eq!(world.set(HOST_B, 1, &change).0, Status::Ok);
}

#[test]
fn transactions_wait_for_their_turn_and_too_many_are_refused() {
    // More commands than one session may have outstanding: three hosts share the queue.
    let third = Guid(0xc);
    let mut world = owned();
    world.add_host(third, "A");
    world.ask(third, 0, request(Kind::Controllers, vec![]));
    world.persist = Persist::Hangs;
    let mut commands = Vec::new();
    for number in 0..80_u64 {
        let host = [HOST_A, HOST_B, third][number as usize % 3];
        let change = compare_and_set(host, 1, &[(DISK2, number, dedicated(HOST_A))]);
        commands.push((host, world.submit(host, 0, change)));
        world.pass(Duration::from_millis(1));
    }
    world.release_persists();
    for (number, (host, command)) in commands.into_iter().enumerate() {
        // One is under way, as many as the queue holds wait.
        let expected = if number <= MAX_QUEUED_CHANGES {
            Status::Ok
        } else {
            Status::Busy
        };
        assert_eq!(world.reply(host, 0, command).0, expected, "{number}");
    }
}

/// Gives DISK to `hosts` beside A, with everything above it, and lets its operations hang.
fn hanging_disk(hosts: &[Guid], credits: u16) -> World {
    let mut world = world();
    for host in hosts {
        world.add_host_with(*host, "A", credits);
    }
    let all = shared(hosts);
    let rows = [UNIT, IOC1, DISK].map(|row| (row, 0, all.clone()));
    assert_eq!(world.set(HOST_A, 1, &rows).0, Status::Ok);
    world.disk_hangs = true;
    world
}

#[test]
fn operations_under_way_are_bounded_in_number() {
    let hosts: Vec<Guid> = (0x20..0x24).map(Guid).collect();
    let mut world = hanging_disk(&hosts, 1100);
    let flush = Request {
        expect: 0,
        ..io_request(Kind::Flush, 1, 1, range(0, 0, &[]))
    };
    let mut commands = Vec::new();
    for host in &hosts {
        for _ in 0..1100 {
            let now = world.now;
            let command = world.client(*host, 1).submit(now, flush.clone());
            commands.push((*host, command.unwrap()));
        }
    }
    world.pass(SECOND / 10);
    assert_eq!(world.unit.in_flight(), MAX_IN_FLIGHT);
    let mut taken = |world: &mut World| {
        let mut statuses = Vec::new();
        commands.retain(
            |(host, command)| match world.take_reply(*host, 1, *command) {
                Some((status, _)) => {
                    statuses.push(status);
                    false
                }
                None => true,
            },
        );
        statuses
    };
    assert_eq!(taken(&mut world), [Status::Busy; 4400 - MAX_IN_FLIGHT]);
    world.disk_hangs = false;
    world.pump();
    world.pass(SECOND / 10);
    assert_eq!(taken(&mut world), vec![Status::Ok; MAX_IN_FLIGHT]);
    assert_eq!(world.unit.in_flight(), 0);
}

#[test]
fn operations_under_way_are_bounded_in_bytes() {
    // More than one session's window lets through.
    let hosts: Vec<Guid> = (0x20..0x40).map(Guid).collect();
    let mut world = hanging_disk(&hosts, 32);
    let read = Request {
        expect: 0,
        ..io_request(Kind::Read, 1, 1, range(0, 1 << 20, &[]))
    };
    let mut commands = Vec::new();
    for host in &hosts {
        for _ in 0..32 {
            commands.push((*host, world.submit(*host, 1, read.clone())));
        }
    }
    world.pass(SECOND / 10);
    let most = (MAX_IN_FLIGHT_BYTES >> 20) as usize;
    assert_eq!(world.unit.in_flight(), most);
    let busy = commands
        .iter()
        .filter_map(|(host, command)| world.take_reply(*host, 1, *command))
        .filter(|(status, _)| *status == Status::Busy)
        .count();
    assert!(busy > 0 && busy + most <= commands.len(), "{busy} busy");
}

#[test]
fn registers_are_bounded() {
    let registers = (1..=MAX_UNIT_REGISTERS as u128 - 3).map(|row| OwnershipRegister {
        row: Guid(row << 64),
        ownership: Ownership::Unallocated,
        owned: OwnershipStamp::default(),
        extent: None,
    });
    let mut world = world();
    let stored = StoredRegisters {
        registers: registers.collect(),
        term: 0,
        ..StoredRegisters::default()
    };
    world.restart_with(Some(stored));
    world.own_disk(dedicated(HOST_A));
    // Another row has no register yet; those that have one can still change.
    let (status, body) = world.set(HOST_A, 1, &[(DISK2, 0, dedicated(HOST_A))]);
    assert_eq!((status, conflict(&body).row), (Status::NoSpace, DISK2));
    let reply = world.set(HOST_A, 1, &[(DISK, 1, dedicated(HOST_B))]);
    assert_eq!(reply.0, Status::Ok);
}

#[test]
fn a_revocation_waits_for_writes_under_way_and_lets_no_other_begin() {
    let mut world = owned();
    world.disk_hangs = true;
    let write = |byte: u8| io_request(Kind::Write, 1, 1, range(0, 512, &[byte; 512]));
    let early = world.submit(HOST_A, 1, write(1));
    let read = io_request(Kind::Read, 1, 1, range(0, 512, &[]));
    let reading = world.submit(HOST_A, 1, read);
    world.until(SECOND, |w| w.disk_busy() == 2);
    let change = compare_and_set(HOST_B, 1, &[(DISK, 1, dedicated(HOST_B))]);
    let revocation = world.submit(HOST_B, 0, change);
    world.pass(3 * SECOND);
    // It is durable, but not answered: a write of the old owner is still under way.
    assert_eq!(world.take_reply(HOST_B, 0, revocation), None);
    let stored = world.stored.registers.iter().find(|r| r.row == DISK);
    assert_eq!(stored.unwrap().owned.epoch, Epoch(2));
    let late = world.submit(HOST_A, 1, write(2));
    assert_eq!(world.reply(HOST_A, 1, late).0, Status::Busy);
    let other = io_request(Kind::Write, 1, 2, range(0, 512, &[3; 512]));
    let premature = world.submit(HOST_B, 1, other.clone());
    assert_eq!(world.reply(HOST_B, 1, premature).0, Status::NotOwner);

    world.disk_hangs = false;
    assert_eq!(world.reply(HOST_B, 0, revocation).0, Status::Ok);
    assert_eq!(world.applied.len(), 1);
    assert_eq!(world.reply(HOST_A, 1, early).0, Status::Ok);
    assert_eq!(world.reply(HOST_A, 1, reading).0, Status::Ok);
    assert_eq!(world.ask(HOST_A, 1, write(4)).0, Status::NotOwner);
    assert_eq!(world.ask(HOST_B, 1, other).0, Status::Ok);
}

#[test]
fn a_host_that_stays_an_owner_is_not_waited_for() {
    let mut world = world();
    world.own_disk(shared(&[HOST_A, HOST_B]));
    world.disk_hangs = true;
    let write = io_request(Kind::Write, 1, 1, range(0, 512, &[1; 512]));
    let writing = world.submit(HOST_A, 1, write);
    world.until(SECOND, |w| w.disk_busy() == 1);
    let reply = world.set(HOST_B, 1, &[(DISK, 1, dedicated(HOST_A))]);
    assert_eq!(reply.0, Status::Ok);
    world.disk_hangs = false;
    assert_eq!(world.reply(HOST_A, 1, writing).0, Status::Ok);
}

/// I2 and I3: two hosts write without pause while the device is given from one to the other, on a
/// bad wire and slow disks. No write of a host is applied after its revocation was acknowledged,
/// and none twice.
#[test]
fn no_write_of_an_old_owner_is_applied_after_its_revocation() {
    for seed in 0..12 {
        let mut world = World::new(Faults::ALL, seed);
        world.disk_time = Duration::from_millis(4);
        world.own_disk(dedicated(HOST_A));
        let mut owner = HOST_A;
        let mut number = 0_u32;
        // (host, since when it is revoked, first write number of its next turn)
        let mut revoked: Vec<(Guid, Time, Time)> = Vec::new();
        for epoch in 1..7 {
            let next = if owner == HOST_A { HOST_B } else { HOST_A };
            let end = world.now + Duration::from_millis(20);
            while world.now < end {
                for host in [HOST_A, HOST_B] {
                    if world.client(host, 1).outstanding() < 8 {
                        number += 1;
                        world.disk_is_prompt = seed % 2 == 1 && number.is_multiple_of(3);
                        let mut data = [host.0 as u8; 512];
                        data[1..5].copy_from_slice(&number.to_be_bytes());
                        let at = u64::from(number % 64) * 512;
                        let body = range(at, 512, &data);
                        world.submit(host, 1, io_request(Kind::Write, 1, epoch, body));
                    }
                }
                world.step();
            }
            // The admin is whoever: here the one that loses it.
            let reply = world.set(owner, 1, &[(DISK, epoch, dedicated(next))]);
            assert_eq!(reply.0, Status::Ok, "seed {seed}");
            let now = world.now;
            if let Some(last) = revoked.last_mut() {
                last.2 = now;
            }
            revoked.push((owner, now, Time::from_nanos(u64::MAX)));
            owner = next;
        }
        world.pass(2 * SECOND);
        let mut seen = std::collections::BTreeSet::new();
        for applied in &world.applied {
            let DiskOp::Write { data, .. } = &applied.op else {
                panic!("{applied:?}");
            };
            let host = Guid(u128::from(data[0]));
            assert!(
                seen.insert(data[..5].to_vec()),
                "applied twice, seed {seed}"
            );
            for (of, from, to) in &revoked {
                assert!(
                    *of != host || applied.at <= *from || applied.at > *to,
                    "a write of {host} at {:?}, revoked at {from:?}, seed {seed}",
                    applied.at
                );
            }
        }
        assert!(seen.len() > 20, "{} writes, seed {seed}", seen.len());
    }
}

#[test]
fn concurrent_transactions_lose_no_acknowledged_change() {
    for seed in 0..8 {
        let mut world = World::new(Faults::ALL, seed);
        world.own_disk(Ownership::Unallocated);
        let mut acknowledged = 0;
        let mut last = None;
        for _ in 0..20 {
            let epoch = world.unit.register(DISK).unwrap().owned.epoch.0;
            let both: Vec<_> = [HOST_A, HOST_B]
                .into_iter()
                .map(|host| {
                    let change = compare_and_set(host, 1, &[(DISK, epoch, dedicated(host))]);
                    (host, world.submit(host, 0, change))
                })
                .collect();
            let replies: Vec<_> = both
                .into_iter()
                .map(|(host, command)| (host, world.reply(host, 0, command)))
                .collect();
            let made: Vec<_> = replies.iter().filter(|r| r.1.0 == Status::Ok).collect();
            let [(host, _)] = made[..] else {
                panic!("{replies:?}, seed {seed}");
            };
            acknowledged += 1;
            last = Some(*host);
            let other = replies.iter().find(|r| r.0 != *host).unwrap();
            assert_eq!(other.1.0, Status::Conflict);
            assert_eq!(conflict(&other.1.1).owned.epoch, Epoch(epoch + 1));
            if world.now.as_nanos().is_multiple_of(3) {
                world.restart();
            }
        }
        let register = world.unit.register(DISK).unwrap();
        assert_eq!(register.owned.epoch, Epoch(1 + acknowledged));
        assert_eq!(register.ownership, dedicated(last.unwrap()));
    }
}

#[test]
fn registers_are_listed_in_pages() {
    let mut world = owned();
    let ask = |world: &mut World, after| {
        let body = RegistersRequest { after }.to_body();
        let (status, body) = world.ask(HOST_B, 0, request(Kind::Registers, body));
        assert_eq!(status, Status::Ok);
        RegistersReply::from_body(&body).unwrap()
    };
    let all = ask(&mut world, Guid::NIL);
    let rows: Vec<_> = all.registers.iter().map(|r| r.row).collect();
    assert_eq!(rows, [UNIT, IOC1, DISK]);
    assert!(!all.more);
    let rest = ask(&mut world, UNIT);
    assert_eq!(rest.registers, all.registers[1..]);
    assert_eq!(ask(&mut world, DISK).registers, []);

    // Many registers with many owners need several pages.
    let owners: Vec<Guid> = (1..=128).map(Guid).collect();
    let registers = (1..2000_u128).map(|row| OwnershipRegister {
        row: Guid(row << 64),
        ownership: shared(&owners),
        owned: OwnershipStamp::default(),
        extent: None,
    });
    let stored = StoredRegisters {
        registers: registers.collect(),
        term: 0,
        ..StoredRegisters::default()
    };
    world.restart_with(Some(stored.clone()));
    let mut found = Vec::new();
    let mut pages = 0;
    loop {
        let after = found
            .last()
            .map_or(Guid::NIL, |r: &OwnershipRegister| r.row);
        let page = ask(&mut world, after);
        pages += 1;
        found.extend(page.registers);
        if !page.more {
            break;
        }
    }
    assert!(pages > 3);
    assert_eq!(found, stored.registers);
}

#[test]
fn a_unit_without_registers_says_so_and_serves_nothing() {
    let mut world = owned();
    world.restart_with(None);
    let none = (Status::NoRegisters, vec![]);
    for kind in [Kind::Read, Kind::Write, Kind::Discard, Kind::WriteZeroes] {
        assert_eq!(world.io(HOST_A, 1, kind, range(0, 512, &[])), none);
    }
    assert_eq!(world.io(HOST_A, 1, Kind::Flush, range(0, 0, &[])), none);
    assert_eq!(world.io(HOST_A, 0, Kind::Identify, vec![]), none);
    assert_eq!(world.set(HOST_A, 1, &[(DISK, 0, dedicated(HOST_A))]), none);
    let all = RegistersRequest { after: Guid::NIL };
    let reply = world.ask(HOST_A, 0, request(Kind::Registers, all.to_body()));
    assert_eq!(reply, none);
    // What is there can still be seen.
    assert_eq!(world.io(HOST_A, 0, Kind::Devices, vec![]).0, Status::Ok);
    let reply = world.ask(HOST_A, 0, request(Kind::Controllers, vec![]));
    assert_eq!(reply.0, Status::Ok);
    assert!(!world.unit.has_registers());
    assert_eq!(world.applied.len(), 0);
}

#[test]
fn ownership_survives_a_restart() {
    let mut world = owned();
    let data = vec![5; 512];
    let write = io_request(Kind::Write, 1, 1, range(0, 512, &data));
    assert_eq!(world.ask(HOST_A, 1, write).0, Status::Ok);
    world.restart();
    let read = world.io(HOST_A, 1, Kind::Read, range(0, 512, &[]));
    assert_eq!(read, (Status::Ok, data));
    let refused = world.io(HOST_B, 1, Kind::Read, range(0, 512, &[]));
    assert_eq!(refused.0, Status::NotOwner);
}

fn notified(world: &World, host: Guid) -> Vec<(Port, Event, u16)> {
    world.hosts[&host]
        .notifications
        .iter()
        .map(|(port, n)| (*port, n.event, n.ioc.0))
        .collect()
}

#[test]
fn connected_hosts_hear_of_changes_at_once() {
    let mut world = owned();
    world.ask(HOST_B, 0, request(Kind::Controllers, vec![]));
    for port in [1, 2] {
        world.ask(HOST_B, port, request(Kind::Devices, vec![]));
    }
    let forget = |world: &mut World| {
        world.pass(SECOND);
        for host in world.hosts.values_mut() {
            host.notifications.clear();
        }
    };
    let hears = |world: &mut World, expected: (Port, Event, u16)| {
        world.pump();
        world.until(Duration::from_millis(5), |world| {
            notified(world, HOST_B) == [expected]
        });
    };
    forget(&mut world);
    assert_eq!(
        world.set(HOST_A, 1, &[(DISK, 1, dedicated(HOST_B))]).0,
        Status::Ok
    );
    hears(&mut world, (0, Event::RegistersChanged, 0));

    forget(&mut world);
    let now = world.now;
    let added = device(Guid(0x9999), 3, &world.media[&DISK]);
    world
        .unit
        .add_device(now, IocNumber(1), added.clone())
        .unwrap();
    hears(&mut world, (1, Event::DevicesChanged, 1));
    let (_, body) = world.ask(HOST_B, 1, request(Kind::Devices, vec![]));
    let list = DevicesReply::from_body(&body).unwrap();
    assert_eq!(list.devices[2].guid, added.guid);
    let told = world.hosts[&HOST_B].notifications[0].1.stamp;
    assert_eq!(list.listed, told);

    forget(&mut world);
    let now = world.now;
    let mut larger = added;
    larger.info.size_bytes *= 2;
    world
        .unit
        .alter_device(now, IocNumber(1), larger.clone())
        .unwrap();
    hears(&mut world, (1, Event::DevicesChanged, 1));
    // The same facts again are no news.
    forget(&mut world);
    let now = world.now;
    world.unit.alter_device(now, IocNumber(1), larger).unwrap();
    world.pump();
    world.pass(SECOND);
    assert_eq!(notified(&world, HOST_B), []);

    let now = world.now;
    world
        .unit
        .remove_device(now, IocNumber(1), IodNumber(3))
        .unwrap();
    hears(&mut world, (1, Event::DevicesChanged, 1));

    forget(&mut world);
    let now = world.now;
    world
        .unit
        .add_controller(now, controller(Guid(0x1_0003), 3))
        .unwrap();
    hears(&mut world, (0, Event::ControllersChanged, 0));
    forget(&mut world);
    let now = world.now;
    world.unit.remove_controller(now, IocNumber(3)).unwrap();
    hears(&mut world, (0, Event::ControllersChanged, 0));
    assert_eq!(
        world.unit.remove_controller(now, IocNumber(3)),
        Err(SpecError::NoController(IocNumber(3)))
    );
}

#[test]
fn a_removed_device_finishes_what_it_does_and_takes_no_more() {
    let mut world = owned();
    world.disk_hangs = true;
    let write = io_request(Kind::Write, 1, 1, range(0, 512, &[1; 512]));
    let writing = world.submit(HOST_A, 1, write.clone());
    world.until(SECOND, |w| w.disk_busy() == 1);
    let now = world.now;
    world
        .unit
        .remove_device(now, IocNumber(1), IodNumber(1))
        .unwrap();
    assert_eq!(world.ask(HOST_A, 1, write.clone()).0, Status::NoDevice);
    world.disk_hangs = false;
    assert_eq!(world.reply(HOST_A, 1, writing).0, Status::Ok);
    // It returns with its owner and its epoch.
    let now = world.now;
    let spec = device(DISK, 1, &world.media[&DISK]);
    world.unit.add_device(now, IocNumber(1), spec).unwrap();
    assert_eq!(world.ask(HOST_A, 1, write).0, Status::Ok);
}

#[test]
fn a_device_that_returns_below_another_owner_is_unallocated() {
    let mut world = owned();
    let now = world.now;
    world
        .unit
        .remove_device(now, IocNumber(1), IodNumber(1))
        .unwrap();
    let reply = world.set(HOST_B, 3, &[(IOC1, 1, dedicated(HOST_B))]);
    assert_eq!(reply.0, Status::Ok);
    let now = world.now;
    let spec = device(DISK, 1, &world.media[&DISK]);
    world.unit.add_device(now, IocNumber(1), spec).unwrap();
    world.pump();
    let register = world.unit.register(DISK).unwrap();
    assert_eq!(register.ownership, Ownership::Unallocated);
    assert_eq!(register.owned.epoch, Epoch(2));
    assert_eq!(world.stored.registers.last(), Some(&register));
    for epoch in [1, 2] {
        let reply = world.io(HOST_A, epoch, Kind::Read, range(0, 512, &[]));
        assert_eq!(reply.0, Status::NotOwner);
    }
    // Where that could not be persisted, a restart comes to the same.
    world.restart();
    assert_eq!(world.unit.register(DISK), Some(register));
}

#[test]
fn what_returns_under_a_change_of_its_unit_is_reset_down_to_its_devices() {
    let mut world = owned();
    let now = world.now;
    world.unit.remove_controller(now, IocNumber(1)).unwrap();
    world.persist = Persist::Hangs;
    let change = compare_and_set(HOST_B, 3, &[(UNIT, 1, dedicated(HOST_B))]);
    let changing = world.submit(HOST_B, 0, change);
    world.until(SECOND, |w| w.hanging() == 1);
    // They fit what is in force, and not what is about to be.
    let now = world.now;
    world.unit.add_controller(now, controller(IOC1, 1)).unwrap();
    let spec = device(DISK, 1, &world.media[&DISK]);
    world.unit.add_device(now, IocNumber(1), spec).unwrap();
    let owners = |world: &World, row| world.unit.register(row).unwrap().ownership;
    assert_eq!(owners(&world, DISK), dedicated(HOST_A));
    world.release_persists();
    assert_eq!(world.reply(HOST_B, 0, changing).0, Status::Ok);
    for row in [IOC1, DISK] {
        assert_eq!(owners(&world, row), Ownership::Unallocated, "{row}");
    }
}

#[test]
fn nothing_is_served_outside_the_cluster() {
    let mut world = World::new(Faults::NONE, 3);
    world.own_disk(dedicated(HOST_A));
    world.add_host(Guid(0xc), "B");
    world.pass(3 * SECOND);
    let stranger = &world.hosts[&Guid(0xc)];
    assert!(stranger.clients.values().all(|c| !c.is_connected()));
    assert!(stranger.refused.contains(&Status::WrongCluster));

    // A unit that was never assigned answers nobody.
    let registers = Some(StoredRegisters::default());
    let mut world = World::empty(Faults::NONE, 3, ClusterName::NONE, registers);
    world.add_host(HOST_A, "A");
    world.pass(3 * SECOND);
    let host = &world.hosts[&HOST_A];
    assert!(host.clients.values().all(|c| !c.is_connected()));
    assert!(host.refused.is_empty());
    assert!(world.drops(false, DropReason::Cluster) > 0);
    assert!(world.drops(true, DropReason::Cluster) > 0);
}

#[test]
fn frames_of_impossible_senders_are_dropped() {
    let mut world = world();
    world.pass(SECOND);
    world.segments[1].record = Some(Vec::new());
    world.ask(HOST_A, 1, request(Kind::Devices, vec![]));
    let record = world.segments[1].record.take().unwrap();
    let frame = record.iter().find(|f| f.dst == UNIT_MAC).unwrap();
    for src in [UNIT_MAC, Mac::BROADCAST] {
        let outcome = world.unit.handle(world.now, true, src, &frame.bytes);
        assert_eq!(outcome, Err(DropReason::Source));
    }
    assert_eq!(world.drops(true, DropReason::Source), 2);
}

/// Every frame of a little session on both EtherTypes, by EtherType.
fn recording() -> [Vec<InFlight>; 2] {
    let mut world = World::new(Faults::NONE, 11);
    for segment in &mut world.segments {
        segment.record = Some(Vec::new());
    }
    world.own_disk(dedicated(HOST_A));
    world.ask(HOST_A, 0, request(Kind::Controllers, vec![]));
    let all = RegistersRequest { after: Guid::NIL };
    world.ask(HOST_A, 0, request(Kind::Registers, all.to_body()));
    world.ask(HOST_A, 1, request(Kind::Devices, vec![]));
    world.io(HOST_A, 1, Kind::Identify, vec![]);
    world.io(HOST_A, 1, Kind::Write, range(0, 4096, &[7; 4096]));
    world.io(HOST_A, 1, Kind::Read, range(0, 4096, &[]));
    world.io(HOST_A, 1, Kind::Flush, range(0, 0, &[]));
    world.pass(3 * SECOND);
    world
        .segments
        .map(|mut segment| segment.record.take().unwrap())
}

/// Gives a frame the checksum that its bytes ask for.
fn seal(frame: &mut [u8]) {
    if frame.len() < HEADER_LEN {
        return;
    }
    let len = usize::from(u16::from_be_bytes([frame[4], frame[5]]));
    let end = (HEADER_LEN + len).min(frame.len());
    frame[16..20].fill(0);
    let sum = crc32fast::hash(&frame[..end]);
    frame[16..20].copy_from_slice(&sum.to_be_bytes());
}

#[derive(Debug, Clone)]
enum Mutation {
    Flip(usize, u8),
    Cut(usize),
    Grow(Vec<u8>),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        6 => (0..200_usize, 1_u8..).prop_map(|(at, bits)| Mutation::Flip(at, bits)),
        1 => (0..400_usize).prop_map(Mutation::Cut),
        1 => prop::collection::vec(any::<u8>(), 1..64).prop_map(Mutation::Grow),
    ]
}

fn mutated(frame: &[u8], mutations: &[Mutation]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    for mutation in mutations {
        match mutation {
            Mutation::Flip(at, bits) if *at < bytes.len() => bytes[*at] ^= bits,
            Mutation::Flip(..) => {}
            Mutation::Cut(len) => bytes.truncate(*len),
            Mutation::Grow(more) => bytes.extend_from_slice(more),
        }
    }
    seal(&mut bytes);
    bytes
}

thread_local! {
    static RECORDING: [Vec<InFlight>; 2] = recording();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// I8: frames of a live connection, mutated under a right checksum, and noise: no panic, no
    /// register changed by what is not a whole valid transaction, and service goes on.
    #[test]
    fn hostile_frames_change_nothing_they_may_not_change(
        frames in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::collection::vec(mutation(), 1..4), any::<bool>(), 0_u8..3),
            1..60,
        ),
        noise in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
    ) {
        let mut world = World::new(Faults::NONE, 11);
        // The same seed as the recording's: its connection numbers are the ones in use here.
        world.own_disk(dedicated(HOST_A));
        let before = world.stored.clone();
        for (index, mutations, service, source) in frames {
            let bytes = RECORDING.with(|all| {
                let frames = &all[usize::from(service)];
                mutated(&index.get(frames).bytes, &mutations)
            });
            let src = match source {
                0 => world.hosts[&HOST_A].mac,
                1 => world.hosts[&HOST_B].mac,
                _ => Mac([2, 0, 0, 0, 8, 8]),
            };
            let _ = world.unit.handle(world.now, service, src, &bytes);
            world.pump();
        }
        for mut bytes in noise {
            let _ = world.unit.handle(world.now, true, Mac([2, 0, 0, 0, 8, 8]), &bytes);
            if bytes.len() >= 2 {
                bytes[0] = 1;
            }
            seal(&mut bytes);
            let _ = world.unit.handle(world.now, false, Mac([2, 0, 0, 0, 8, 8]), &bytes);
            world.pump();
        }
        prop_assert!(world.unit.in_flight() <= 64);
        // A mutated transaction can at most repeat the one that was made.
        prop_assert_eq!(&world.stored, &before);
        // Who knows a connection's number can end it, until frames are authenticated; others are
        // served as ever.
        let other = Guid(0xc);
        world.add_host(other, "A");
        let reply = world.ask(other, 0, request(Kind::Controllers, vec![]));
        prop_assert_eq!(reply.0, Status::Ok);
        let reply = world.ask(other, 2, request(Kind::Devices, vec![]));
        prop_assert_eq!(reply.0, Status::Ok);
    }
}

/// A unit that fabric services assign remembers its cluster, and serves it without them.
#[test]
fn the_assigned_cluster_is_served_and_remembered() {
    use rma::fabric::{Fabric, FabricConfig, MemoryCatalog, Policy};
    const FABRIC_MAC: Mac = Mac([2, 0, 0, 0, 9, 9]);
    let config = FabricConfig {
        guid: Guid(0xfab),
        incarnation: rma::wire::Incarnation(1),
        policy: Policy::AutoJoin,
        mtu: 1500,
    };
    let mut fabric = Fabric::new(config, MemoryCatalog::new(), 5).unwrap();
    let registers = Some(StoredRegisters::default());
    let mut wanting = unit_config(1, ClusterName::NONE);
    wanting.cluster_wanted = cluster("A");
    let mut unit = Unit::new(wanting, registers.clone(), 6);
    let mut now = Time::from_nanos(1_000_000_000);
    let mut joined = Vec::new();
    let mut bytes = Vec::new();
    for _ in 0..2000 {
        now = now + Duration::from_millis(1);
        unit.tick(now);
        fabric.tick(now);
        while let Some((service, to)) = unit.poll_transmit(now, &mut bytes) {
            assert!(!service && to == FABRIC_MAC);
            let _ = fabric.handle(now, UNIT_MAC, &std::mem::take(&mut bytes));
        }
        while let Some(to) = fabric.poll_transmit(now, &mut bytes) {
            assert_eq!(to, UNIT_MAC);
            let _ = unit.handle(now, false, FABRIC_MAC, &std::mem::take(&mut bytes));
        }
        while let Some(action) = unit.poll_action() {
            if let rma::unit::UnitAction::Joined(cluster, _) = action {
                joined.push(cluster);
            }
        }
    }
    assert_eq!(joined, [cluster("A")]);
    assert_eq!(unit.cluster(), cluster("A"));

    // The next start, without fabric services.
    let mut world = World::empty(Faults::NONE, 3, joined[0], registers);
    world.add_host(HOST_A, "A");
    let reply = world.ask(HOST_A, 0, request(Kind::Controllers, vec![]));
    assert_eq!(reply.0, Status::Ok);
}

#[test]
fn a_unit_votes_and_makes_no_change_of_a_session_older_than_it_promised() {
    use rma::wire::message::{Holder, LeaseReply, LeaseRequest, LeaseVerb, Purpose};
    let ask = |host: Guid, term: u64| {
        let asked = LeaseRequest {
            verb: LeaseVerb::Ask,
            force: false,
            holder: Holder {
                term,
                host,
                purpose: Purpose::Work,
                process: 1,
                name: "a host".into(),
                user: String::new(),
            },
        };
        request(Kind::Lease, asked.to_body())
    };
    let mut world = owned();
    world.persist = Persist::Fails;
    let reply = world.ask(HOST_B, 0, ask(HOST_B, 6));
    assert_eq!(reply, (Status::NotPersisted, vec![]));
    world.persist = Persist::Works;
    let (status, body) = world.ask(HOST_B, 0, ask(HOST_B, 7));
    assert_eq!(status, Status::Ok);
    assert!(LeaseReply::from_body(&body).unwrap().granted);
    assert_eq!((world.vote.promised, world.unit.term()), (7, 7));
    // Nobody asks in another's name.
    let reply = world.ask(HOST_A, 0, ask(HOST_B, 8));
    assert_eq!(reply.0, Status::BadRequest);
    for (term, expected) in [
        (6, Status::OlderTerm),
        (u64::MAX, Status::FarTerm),
        (8 + (1 << 32), Status::FarTerm),
        (7, Status::Ok),
    ] {
        let release = [(DISK, 1, Ownership::Unallocated)];
        assert_eq!(world.set(HOST_A, term, &release).0, expected, "{term}");
    }
    // It keeps its promise across a restart.
    world.restart();
    let (status, body) = world.ask(HOST_A, 0, ask(HOST_A, 9));
    let reply = LeaseReply::from_body(&body).unwrap();
    assert_eq!((status, reply.granted), (Status::Ok, false));
    assert_eq!(reply.holder.map(|h| (h.host, h.term)), Some((HOST_B, 7)));
    let (_, body) = world.ask(HOST_B, 0, ask(HOST_B, 9));
    assert!(LeaseReply::from_body(&body).unwrap().granted);
    // Without its registers it does not know what it has seen.
    world.restart_with(None);
    assert_eq!(
        world.ask(HOST_B, 0, ask(HOST_B, 10)),
        (Status::NoRegisters, vec![])
    );
}
