//! Stories and properties of the table: what is seen, joined, stamped, allowed and found.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::outlook::leave_out_orphans;
use super::rules::{check_change, extent_facts, orphans, permits, plan, violations};
use super::*;
use crate::wire::message::{
    Change, ControllerRecord, ControllersReply, DeviceRecord, DevicesReply, Member,
    OwnershipRegister, Parts, TableDigestsRequest,
};
use crate::wire::row::MAX_ROW_BYTES;
use crate::wire::{
    EntityType, Epoch, Extent, Granularity, Guid, Incarnation, IocNumber, IodNumber, Mac,
    ObservationStamp, Ownership, OwnershipStamp, Row, RowState, Settings, TableStamp, Wire,
};

const H108: Guid = Guid(0x108);
const H110: Guid = Guid(0x110);
const U112: Guid = Guid(0x112);
const U118: Guid = Guid(0x118);
const C114A: Guid = Guid(0x114a);
const C114B: Guid = Guid(0x114b);
const D116A1: Guid = Guid(0x0116_a100_0000_0000_0000_0000_0000_0000);
const D116A2: Guid = Guid(0x0116_a200_0000_0000_0000_0000_0000_0000);

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

fn at(incarnation: u64, change: u64) -> ObservationStamp {
    ObservationStamp {
        incarnation: Incarnation(incarnation),
        change,
    }
}

fn owned(epoch: u64) -> OwnershipStamp {
    OwnershipStamp {
        epoch: Epoch(epoch),
        term: 1,
        writer: H108,
    }
}

fn member(guid: Guid, entity: EntityType, name: &str, nic: u8) -> Member {
    Member {
        guid,
        entity,
        macs: vec![mac(nic)],
        name: name.into(),
        observed: at(1, 1),
        ownership: Ownership::Unallocated,
        epoch: Epoch(0),
        version: 1,
        guest: false,
    }
}

fn controllers(unit: Guid, nic: u8, change: u64, list: &[(Guid, u16, &str)]) -> ControllersReply {
    ControllersReply {
        unit,
        name: "unit 112".into(),
        vendor: "ACME".into(),
        model: "box".into(),
        serial: "1".into(),
        macs: vec![mac(nic)],
        observed: at(1, 1),
        listed: at(1, change),
        controllers: list
            .iter()
            .map(|(guid, ioc, name)| ControllerRecord {
                guid: *guid,
                ioc: IocNumber(*ioc),
                name: (*name).into(),
                model: String::new(),
                observed: at(1, change),
            })
            .collect(),
    }
}

fn devices(controller: Guid, change: u64, list: &[(Guid, u16, &str, u64)]) -> DevicesReply {
    DevicesReply {
        controller,
        listed: at(1, change),
        devices: list
            .iter()
            .map(|(guid, iod, name, altered)| DeviceRecord {
                guid: *guid,
                iod: IodNumber(*iod),
                name: (*name).into(),
                vendor: "ACME".into(),
                model: "disk".into(),
                serial: "7".into(),
                size_bytes: 1 << 30,
                block_size: 512,
                features: 0,
                observed: at(1, *altered),
            })
            .collect(),
    }
}

/// Cluster A as block 520 finds it, without 118's insides.
fn discovered() -> Table {
    let mut table = Table::new();
    table.observe_members(&[
        member(H108, EntityType::Host, "108", 1),
        member(H110, EntityType::Host, "110", 2),
        member(U112, EntityType::Unit, "112", 3),
        member(U118, EntityType::Unit, "118", 4),
    ]);
    table.observe_controllers(&controllers(
        U112,
        3,
        2,
        &[(C114A, 1, "114A"), (C114B, 2, "114B")],
    ));
    table.observe_devices(
        U112,
        &devices(
            C114A,
            3,
            &[(D116A1, 1, "116A1", 3), (D116A2, 2, "116A2", 3)],
        ),
    );
    table
}

fn register(row: Guid, epoch: u64, ownership: Ownership) -> OwnershipRegister {
    OwnershipRegister {
        row,
        ownership,
        owned: owned(epoch),
        extent: None,
    }
}

/// Cluster A after Fig. 4's allocation.
fn allocated() -> Table {
    let mut table = discovered();
    let both = Ownership::shared(vec![H108, H110]).unwrap();
    table.observe_registers(
        U112,
        &[
            register(U112, 1, both.clone()),
            register(C114A, 1, both.clone()),
            register(C114B, 1, both),
            register(D116A1, 1, Ownership::Dedicated(H108)),
            register(D116A2, 1, Ownership::Dedicated(H110)),
        ],
    );
    table
}

fn change(table: &Table, row: Guid, ownership: Ownership) -> Change {
    Change {
        row,
        expected: table.get(row).map_or(Epoch(0), |row| row.owned.epoch),
        ownership,
        extent: None,
    }
}

#[test]
fn what_is_discovered_becomes_unallocated_rows_with_their_units_addresses() {
    let table = discovered();
    assert_eq!(table.len(), 8);
    let device = table.get(D116A1).unwrap();
    assert_eq!(device.ownership, Ownership::Unallocated);
    assert_eq!(
        device.address().unwrap().to_string(),
        "02:00:00:00:00:03/1/1"
    );
    assert_eq!(table.unit_of(D116A1), Some(U112));
    assert_eq!(table.path(D116A1), ["unit 112", "114A", "116A1"]);
    assert_eq!(table.path(H108), ["108"]);
    assert_eq!(table.unit_of(H108), None);
    let below: Vec<_> = table.children(U112).map(|row| row.guid).collect();
    assert_eq!(below, [C114A, C114B]);
    assert_eq!(orphans(&table).count(), 0);
}

#[test]
fn seeing_the_same_again_changes_nothing() {
    let mut table = discovered();
    let digest = table.digest();
    let list = controllers(U112, 3, 2, &[(C114A, 1, "114A"), (C114B, 2, "114B")]);
    assert!(table.observe_controllers(&list).is_empty());
    assert!(
        table
            .observe_members(&[member(U112, EntityType::Unit, "another name", 9)])
            .is_empty(),
        "a unit speaks for itself"
    );
    assert_eq!(table.digest(), digest);
}

#[test]
fn a_units_new_address_reaches_everything_below_it() {
    let mut table = discovered();
    let mut list = controllers(U112, 77, 4, &[(C114A, 1, "114A"), (C114B, 2, "114B")]);
    list.observed = at(1, 4);
    let changed = table.observe_controllers(&list);
    assert_eq!(changed, [U112, C114A, C114B, D116A1, D116A2]);
    assert_eq!(table.get(D116A2).unwrap().macs, [mac(77)]);
}

#[test]
fn only_its_parents_list_takes_a_row_away_and_it_returns_with_its_owner() {
    let mut table = allocated();
    let both = [(D116A1, 1, "116A1", 3), (D116A2, 2, "116A2", 3)];
    // A list from before the device came says nothing about it.
    assert!(
        table
            .observe_devices(U112, &devices(C114A, 2, &[]))
            .is_empty()
    );
    // Another unit, or a controller nobody listed, has no say.
    assert!(
        table
            .observe_devices(U118, &devices(C114A, 9, &[]))
            .is_empty()
    );
    assert!(
        table
            .observe_devices(U112, &devices(U118, 9, &both))
            .is_empty()
    );

    assert_eq!(
        table.observe_devices(U112, &devices(C114A, 5, &both[..1])),
        [D116A2]
    );
    let gone = table.get(D116A2).unwrap();
    assert_eq!((gone.state, gone.observed), (RowState::Invalid, at(1, 5)));
    assert_eq!(table.owned_by(H110).count(), 0);
    // The older list, arriving late, does not bring it back; a newer one does.
    assert!(
        table
            .observe_devices(U112, &devices(C114A, 3, &both))
            .is_empty()
    );
    let back = [(D116A1, 1, "116A1", 3), (D116A2, 2, "116A2", 6)];
    assert_eq!(
        table.observe_devices(U112, &devices(C114A, 6, &back)),
        [D116A2]
    );
    let owned: Vec<_> = table.owned_by(H110).map(|row| row.guid).collect();
    assert_eq!(owned, [D116A2]);
}

#[test]
fn what_is_below_an_absent_row_is_not_present() {
    let mut table = allocated();
    assert!(table.is_present(D116A1));
    table.observe_controllers(&controllers(U112, 3, 8, &[(C114B, 2, "114B")]));
    assert!(table.get(D116A1).unwrap().is_valid());
    assert!(!table.is_present(D116A1) && !table.is_present(C114A));
    assert_eq!(table.owned_by(H108).count(), 0);
    assert!(!table.is_present(Guid(0x999)));
}

#[test]
fn a_retired_unit_is_gone_until_something_newer_is_heard() {
    let mut table = allocated();
    assert_eq!(table.retire(U112), [U112]);
    assert!(table.retire(U112).is_empty());
    assert!(!table.is_present(D116A1));
    // Its old list does not revive it; its being a member again does.
    let old = controllers(U112, 3, 2, &[(C114A, 1, "114A"), (C114B, 2, "114B")]);
    assert!(table.observe_controllers(&old).is_empty());
    assert_eq!(
        table.observe_members(&[member(U112, EntityType::Unit, "112", 3)]),
        [U112]
    );
    assert!(table.is_present(D116A1));
    assert_eq!(table.owned_by(H108).count(), 1);
}

#[test]
fn a_unit_has_no_say_over_what_belongs_to_another() {
    let mut table = allocated();
    let mut theft = controllers(U118, 4, 9, &[(C114A, 1, "mine"), (H108, 2, "mine too")]);
    theft.controllers[0].observed = at(9, 9);
    assert_eq!(table.observe_controllers(&theft), [U118]);
    assert_eq!(table.get(C114A).unwrap().parent, U112);
    let register = register(D116A1, 9, Ownership::Dedicated(H110));
    assert!(table.observe_registers(U118, &[register]).is_empty());
}

#[test]
fn a_register_with_an_older_epoch_changes_nothing() {
    let mut table = allocated();
    let newer = register(D116A1, 2, Ownership::Dedicated(H110));
    assert_eq!(table.observe_registers(U112, &[newer]), [D116A1]);
    let older = register(D116A1, 1, Ownership::Dedicated(H108));
    assert!(table.observe_registers(U112, &[older]).is_empty());
    assert_eq!(table.owned_by(H110).count(), 2);
}

#[test]
fn the_hierarchy_names_the_row_in_the_way() {
    let table = allocated();
    assert_eq!(violations(&table).count(), 0);
    let refused = |changes: &[Change]| {
        let error = check_change(&table, changes).unwrap_err();
        (error.conflicting(), error.to_string())
    };
    let (row, text) = refused(&[change(&table, C114A, Ownership::Dedicated(H110))]);
    assert_eq!(row, Some(D116A1));
    assert_eq!(
        text,
        "I/O controller 114A cannot be dedicated to 110: its I/O device 116A1 is dedicated to \
         108; release that first, or both together"
    );
    let mut table2 = table.clone();
    table2.observe_registers(U112, &[register(C114B, 2, Ownership::Unallocated)]);
    let device = Guid(0xd);
    table2.observe_devices(U112, &devices(C114B, 9, &[(device, 1, "116B1", 9)]));
    let error = check_change(
        &table2,
        &[change(&table2, device, Ownership::Dedicated(H108))],
    )
    .unwrap_err();
    assert_eq!(error.conflicting(), Some(C114B));
    assert_eq!(
        error.to_string(),
        "I/O device 116B1 cannot be dedicated to 108: its I/O controller 114B is unallocated; \
         reallocate that first, or both together"
    );
    // Both together is fine.
    let together = [
        change(&table2, C114B, Ownership::Dedicated(H108)),
        change(&table2, device, Ownership::Dedicated(H108)),
    ];
    assert_eq!(check_change(&table2, &together), Ok(()));

    let (_, text) = refused(&[change(&table, H108, Ownership::Unallocated)]);
    assert!(text.starts_with("host 108 cannot be allocated"), "{text}");
    let (_, text) = refused(&[change(&table, D116A1, Ownership::Dedicated(U112))]);
    assert!(text.contains("is not a host of this cluster"), "{text}");
    let (_, text) = refused(&[change(&table, Guid(0x77), Ownership::Unallocated)]);
    assert!(text.starts_with("no row 00000000"), "{text}");
    let mut stale = change(&table, D116A1, Ownership::Unallocated);
    stale.expected = Epoch(0);
    let (_, text) = refused(&[stale]);
    assert!(
        text.contains("reallocated meanwhile (epoch 1, not 0)"),
        "{text}"
    );
    let twice = change(&table, D116A1, Ownership::Unallocated);
    let (_, text) = refused(&[twice.clone(), twice]);
    assert!(text.contains("changed twice at once"), "{text}");
    assert!(check_change(&table, &[]).is_err());
}

#[test]
fn a_tombstone_is_in_nobodys_way() {
    let mut table = allocated();
    table.observe_devices(U112, &devices(C114A, 5, &[(D116A2, 2, "116A2", 3)]));
    let changes = [change(&table, C114A, Ownership::Dedicated(H110))];
    assert_eq!(check_change(&table, &changes), Ok(()));
    let gone = [change(&table, D116A1, Ownership::Unallocated)];
    assert!(matches!(
        check_change(&table, &gone),
        Err(RuleError::Gone { .. })
    ));
}

#[test]
fn what_is_finer_than_the_granularity_follows_its_parent() {
    let mut table = discovered();
    assert!(table.set_granularity(Granularity::Unit, 1, H108));
    assert!(!table.set_granularity(Granularity::Unit, 1, H108));
    let alone = [change(&table, D116A1, Ownership::Dedicated(H108))];
    let text = check_change(&table, &alone).unwrap_err().to_string();
    assert!(
        text.contains("allocates by unit, and its I/O controller 114A is unallocated"),
        "{text}"
    );
    let changes = plan(&table, &[U112], &Ownership::Dedicated(H108)).unwrap();
    let rows: Vec<_> = changes.iter().map(|change| change.row).collect();
    assert_eq!(rows, [U112, C114A, C114B, D116A1, D116A2]);
    // Planned again once it is so, there is nothing to do.
    let registers: Vec<_> = rows
        .iter()
        .map(|row| register(*row, 1, Ownership::Dedicated(H108)))
        .collect();
    table.observe_registers(U112, &registers);
    assert_eq!(
        plan(&table, &[U112], &Ownership::Dedicated(H108)),
        Ok(Vec::new())
    );
    assert_eq!(table.owned_by(H108).count(), 2);
}

#[test]
fn rows_are_found_by_what_people_type() {
    let mut table = allocated();
    for text in [
        "0116a100-0000-0000-0000-000000000000",
        "0116A1000000",
        "0116a100-0000",
        "116A1",
        " 116A1 ",
        "unit 112/114A/116A1",
        "02:00:00:00:00:03/1/1",
    ] {
        assert_eq!(table.resolve(text), Ok(D116A1), "{text}");
    }
    assert_eq!(table.resolve("02:00:00:00:00:03"), Ok(U112));
    assert_eq!(table.resolve("108"), Ok(H108));
    for text in [
        "",
        "-",
        "0116a1",
        "nobody",
        "02:00:00:00:00:03/1/9",
        "116A1\n\u{1b}[2J",
    ] {
        let error = table.resolve(text).unwrap_err().to_string();
        assert!(error.contains("nothing here is called"), "{error}");
        assert!(!error.contains('\n') && !error.contains('\u{1b}'));
    }
    // Two of one name: both are listed. Once one is gone, the other is meant.
    let twin = Guid(0xd);
    table.observe_devices(U112, &devices(C114B, 9, &[(twin, 1, "116A1", 9)]));
    let error = table.resolve("116A1").unwrap_err().to_string();
    assert!(error.contains("unit 112/114A/116A1") && error.contains("unit 112/114B/116A1"));
    assert_eq!(table.resolve("unit 112/114B/116A1"), Ok(twin));
    assert_eq!(table.resolve_among("108", &[EntityType::Host]), Ok(H108));
    assert!(table.resolve_among("108", &[EntityType::Device]).is_err());
    table.observe_devices(U112, &devices(C114B, 10, &[]));
    assert_eq!(table.resolve("116A1"), Ok(D116A1));
    assert_eq!(table.resolve(&twin.to_string()), Ok(twin));
}

#[test]
fn pages_hold_every_row_once() {
    let table = allocated();
    for max_bytes in [0, 300, 700, 1 << 20] {
        let (mut after, mut seen) = (Guid::NIL, Vec::new());
        loop {
            let (page, more) = table.rows_after(after, &Parts::whole(), max_bytes);
            let bytes: usize = page.iter().map(|row| row.to_body().len()).sum();
            assert!(page.len() == 1 || bytes <= max_bytes);
            after = page.last().unwrap().guid;
            seen.extend(page);
            if !more {
                break;
            }
        }
        assert!(seen.iter().eq(table.rows()));
    }
    let (page, more) = Table::new().rows_after(Guid::NIL, &Parts::whole(), 9);
    assert_eq!((page.len(), more), (0, false));
}

#[test]
fn the_parts_of_a_level_hold_every_row_once() {
    let table = allocated();
    for level in 0..=2 {
        let mut seen = Vec::new();
        for number in 0..1_u16 << (4 * level) {
            let parts = Parts {
                level,
                numbers: vec![number],
            };
            seen.extend(table.rows_after(Guid::NIL, &parts, 1 << 20).0);
        }
        seen.sort_by_key(|row| row.guid);
        assert!(seen.iter().eq(table.rows()));
    }
    assert_eq!(
        [0, 4, 5, 64, 65, 65_536].map(part_level),
        [0, 0, 1, 1, 2, 4]
    );
}

/// The digests of parts, as docs/protocol.md defines them.
fn naive_digests(table: &Table, request: &TableDigestsRequest) -> Vec<u64> {
    let part = |row: &Row, level: u8| {
        let hash = xxhash_rust::xxh3::xxh3_64(&row.guid.0.to_be_bytes());
        (u128::from(hash) * (1 << (4 * level))) >> 64
    };
    let level = request.parts.level + request.depth;
    let mut digests = Vec::new();
    for parent in &request.parts.numbers {
        for child in 0..1_u128 << (4 * request.depth) {
            let number = (u128::from(*parent) << (4 * request.depth)) + child;
            let sum = table
                .rows()
                .filter(|row| part(row, level) == number)
                .map(|row| xxhash_rust::xxh3::xxh3_128(&row.to_body()) as u64)
                .fold(0, u64::wrapping_add);
            digests.push(sum);
        }
    }
    digests
}

#[test]
fn digests_of_a_grown_table_are_those_of_a_read_one_and_of_the_definition() {
    let mut table = allocated();
    for n in 0..300_u128 {
        let mut row = Row::new(Guid(0xabc0_0000 + n), EntityType::Host);
        row.name = format!("host {n}");
        table.insert(row);
        if n % 7 == 0 {
            table.remove(Guid(0xabc0_0000 + n / 2));
        }
    }
    let again = Table::restore(
        *table.settings(),
        table.stamp(),
        table.highest_stamp(),
        table.rows().cloned().map(std::sync::Arc::new),
    );
    assert_eq!(table.digest(), again.digest());
    for (level, numbers, depth) in [
        (0, vec![0], 1),
        (0, vec![0], 2),
        (1, vec![0, 7, 15], 1),
        (1, vec![3, 4], 2),
        (2, vec![9, 200], 2),
        (3, vec![0, 4095], 1),
    ] {
        let parts = Parts { level, numbers };
        let request = TableDigestsRequest { parts, depth };
        let digests = table.part_digests(&request);
        assert_eq!(digests.len(), request.digest_count());
        assert_eq!(digests, again.part_digests(&request));
        assert_eq!(digests, naive_digests(&table, &request));
    }
}

#[test]
fn a_published_stamp_is_above_everything_ever_met() {
    let mut ours = allocated();
    ours.publish(4, H108);
    let before = ours.summary();
    // Theirs has more content under a lower stamp: it is adopted, stamp and all.
    let mut theirs = ours.clone();
    theirs.insert(Row::new(Guid(5), EntityType::Host));
    theirs.stamp = TableStamp {
        term: 1,
        counter: 1,
        writer: H110,
    };
    ours.join(theirs.settings(), theirs.rows().cloned());
    assert_eq!(
        ours.settle(&before, &theirs.summary(), H108),
        Settled::Adopted
    );
    assert_eq!(ours.stamp(), theirs.stamp());
    // What is published next is still above the version that was given up.
    assert!(ours.publish(0, H108) > before.stamp);
}

#[test]
fn no_loop_of_parents_hangs_anything() {
    let mut table = Table::new();
    for (guid, parent) in [(1, 2), (2, 3), (3, 1), (4, 4)] {
        let mut row = Row::new(Guid(guid), EntityType::Controller);
        row.parent = Guid(parent);
        table.insert(row);
    }
    assert_eq!(table.unit_of(Guid(1)), None);
    assert!(!table.is_present(Guid(4)));
    assert!(table.path(Guid(1)).len() <= 4);
    let mut unit = Row::new(Guid(3), EntityType::Unit);
    unit.macs = vec![mac(9)];
    table.insert(unit);
    assert_eq!(table.get(Guid(1)).unwrap().macs, [mac(9)]);
    assert_eq!(table.get(Guid(2)).unwrap().macs, [mac(9)]);
    assert_eq!(table.remove(Guid(3)), [Guid(1), Guid(2), Guid(3)]);
    assert_eq!(table.remove(Guid(4)), [Guid(4)]);
    assert!(table.is_empty());
}

#[test]
fn a_row_goes_with_all_below_it_and_what_comes_back_is_under_what_came_back() {
    let mut table = allocated();
    let gone = table.remove(U112);
    assert_eq!(gone, [U112, C114A, C114B, D116A1, D116A2]);
    assert_eq!(orphans(&table).count(), 0);
    let again = Table::restore(
        *table.settings(),
        table.stamp(),
        table.highest_stamp(),
        table.rows().cloned().map(Arc::new),
    );
    assert_eq!(table.digest(), again.digest());
    // Whoever tells of the unit next need not know who owns it.
    table.observe_members(&[member(U112, EntityType::Unit, "112", 2)]);
    assert_eq!(violations(&table).next(), None);
}

#[test]
fn rows_that_come_without_what_is_above_them_are_left_out() {
    let all: Vec<Row> = allocated().rows().cloned().collect();
    let only = |guids: &[Guid]| -> Vec<Row> {
        let rows = all.iter().filter(|row| guids.contains(&row.guid));
        rows.cloned().collect()
    };
    let left = |table: &Table, guids: &[Guid]| -> Vec<Guid> {
        let mut rows = only(guids);
        leave_out_orphans(table, &mut rows);
        rows.iter().map(|row| row.guid).collect()
    };
    let mut table = Table::new();
    assert_eq!(left(&table, &[H108, C114A, D116A1]), [H108]);
    let whole = [U112, C114A, D116A1];
    assert_eq!(left(&table, &whole), whole);
    // What is above is here already.
    table.insert(only(&[U112]).remove(0));
    assert_eq!(left(&table, &[C114A, D116A1]), [C114A, D116A1]);
    assert_eq!(left(&table, &[D116A1]), []);
    // Rows that are above each other are under nothing.
    let mut rows = only(&[C114A, C114B]);
    (rows[0].parent, rows[1].parent) = (C114B, C114A);
    leave_out_orphans(&table, &mut rows);
    assert_eq!(rows, []);
}

#[test]
fn the_largest_row_fits_a_record() {
    let mut row = Row::new(Guid(u128::MAX), EntityType::Extent);
    row.macs = (0..20).map(mac).collect();
    row.name = "ü".repeat(100);
    row.vendor = "x".repeat(300);
    row.model.clone_from(&row.vendor);
    row.serial.clone_from(&row.vendor);
    row.block_size = 77;
    row.extent = Some(Extent {
        offset: 1,
        len: u64::MAX - 1,
    });
    row.ownership = Ownership::shared((1..=128).map(Guid).collect()).unwrap();
    let mut table = Table::new();
    table.insert(row);
    let row = table.get(Guid(u128::MAX)).unwrap();
    assert!(row.to_body().len() <= MAX_ROW_BYTES);
    assert_eq!(Row::from_body(&row.to_body()).as_ref(), Ok(row));
}

// Properties. Domains are small, so that equal stamps, shared parents and loops are common.

fn guids() -> impl Strategy<Value = Guid> {
    (1_u128..9).prop_map(Guid)
}

fn ownerships() -> impl Strategy<Value = Ownership> {
    prop_oneof![
        Just(Ownership::Unallocated),
        guids().prop_map(Ownership::Dedicated),
        prop::collection::vec(guids(), 1..3).prop_map(|hosts| Ownership::shared(hosts).unwrap()),
    ]
}

fn stamps() -> impl Strategy<Value = TableStamp> {
    (0_u64..3, 0_u64..3, guids()).prop_map(|(term, counter, writer)| TableStamp {
        term,
        counter,
        writer,
    })
}

fn settings() -> impl Strategy<Value = Settings> {
    (prop::sample::select(Granularity::ALL), stamps())
        .prop_map(|(granularity, stamp)| Settings { granularity, stamp })
}

fn any_rows() -> impl Strategy<Value = Row> {
    (
        guids(),
        prop::sample::select(EntityType::ALL),
        prop::sample::select(RowState::ALL),
        0_u128..9,
        prop::collection::vec((1_u8..4).prop_map(mac), 0..3),
        (0_u64..3, 0_u64..3, "[ab]?", 0_u16..3),
        ownerships(),
        (0_u64..3, 0_u64..2, guids()),
    )
        .prop_map(
            |(
                guid,
                entity,
                state,
                parent,
                macs,
                (incarnation, number, name, ioc),
                ownership,
                o,
            )| {
                let mut row = Row::new(guid, entity);
                row.state = state;
                row.parent = Guid(parent);
                row.macs = macs;
                row.observed = at(incarnation, number);
                row.name = name;
                row.ioc = IocNumber(ioc);
                row.ownership = ownership;
                row.owned = OwnershipStamp {
                    epoch: Epoch(o.0),
                    term: o.1,
                    writer: o.2,
                };
                row
            },
        )
}

fn tables() -> impl Strategy<Value = Table> {
    (
        settings(),
        stamps(),
        prop::collection::vec(any_rows(), 0..8),
    )
        .prop_map(|(settings, stamp, rows)| {
            let mut table = Table::new();
            table.join(&settings, []);
            for row in rows {
                table.insert(row);
            }
            table.stamp = stamp;
            table.highest = stamp;
            table
        })
}

fn joined(a: &Table, b: &Table) -> Table {
    let mut out = a.clone();
    out.join(b.settings(), b.rows().cloned());
    out
}

fn content(table: &Table) -> (Settings, Vec<Row>) {
    (*table.settings(), table.rows().cloned().collect())
}

/// Random observations: (which kind, unit, controller, listed, stamps).
type Seen = (u8, Guid, Guid, Vec<(Guid, u64, u64)>, (u64, u64));

fn seen() -> impl Strategy<Value = Seen> {
    (
        0_u8..4,
        guids(),
        guids(),
        prop::collection::vec((guids(), 0_u64..3, 0_u64..3), 0..5),
        (0_u64..3, 0_u64..3),
    )
}

fn observe(table: &mut Table, (kind, unit, controller, list, stamp): &Seen) -> Vec<Guid> {
    match kind {
        0 => {
            let members: Vec<_> = list
                .iter()
                .map(|(guid, incarnation, number)| {
                    let entity = [EntityType::Host, EntityType::Unit][guid.0 as usize % 2];
                    let mut member = member(*guid, entity, "m", 1);
                    member.observed = at(*incarnation, *number);
                    member
                })
                .collect();
            table.observe_members(&members)
        }
        1 => {
            let mut reply = controllers(*unit, 2, 0, &[]);
            reply.observed = at(stamp.0, 0);
            reply.listed = at(stamp.0, stamp.1);
            reply.controllers = list
                .iter()
                .map(|(guid, incarnation, number)| ControllerRecord {
                    guid: *guid,
                    ioc: IocNumber(1),
                    name: String::new(),
                    model: String::new(),
                    observed: at(*incarnation, *number),
                })
                .collect();
            table.observe_controllers(&reply)
        }
        2 => {
            let mut reply = devices(*controller, 0, &[]);
            reply.listed = at(stamp.0, stamp.1);
            for (guid, incarnation, number) in list {
                let mut one = devices(*controller, 0, &[(*guid, 1, "d", 0)]);
                one.devices[0].observed = at(*incarnation, *number);
                reply.devices.append(&mut one.devices);
            }
            table.observe_devices(*unit, &reply)
        }
        _ => table.retire(*unit),
    }
}

proptest! {
    #[test]
    fn join_is_commutative_associative_idempotent(a in tables(), b in tables(), c in tables()) {
        prop_assert_eq!(content(&joined(&a, &a)), content(&a));
        prop_assert_eq!(content(&joined(&a, &b)), content(&joined(&b, &a)));
        let left = joined(&joined(&a, &b), &c);
        let right = joined(&a, &joined(&b, &c));
        prop_assert_eq!(content(&left), content(&right));
    }

    #[test]
    fn a_join_says_what_it_did(a in tables(), b in tables()) {
        let mut table = a.clone();
        let outcome = table.join(b.settings(), b.rows().cloned());
        // An address may change on the way and change back; such a row is named without need.
        for row in table.rows() {
            let named = outcome.changed.binary_search(&row.guid).is_ok();
            let derived = !matches!(row.entity, EntityType::Host | EntityType::Unit);
            prop_assert!(named || a.get(row.guid) == Some(row));
            prop_assert!(!named || derived || a.get(row.guid) != Some(row));
        }
        prop_assert_eq!(outcome.theirs_newer, content(&table) != content(&a));
        // Rows that they lack are not their loss in a page of a table; in a whole one they are.
        let lack = a.rows().any(|row| b.get(row.guid).is_none());
        prop_assert_eq!(outcome.ours_newer || lack, content(&table) != content(&b));
    }

    #[test]
    fn nothing_in_a_join_gets_older(a in tables(), b in tables()) {
        let table = joined(&a, &b);
        for old in a.rows().chain(b.rows()) {
            let new = table.get(old.guid).unwrap();
            prop_assert!(new.observed >= old.observed && new.owned >= old.owned);
        }
        prop_assert!(table.settings().stamp >= a.settings().stamp.max(b.settings().stamp));
    }

    #[test]
    fn digests_are_equal_where_the_content_is(a in tables(), b in tables()) {
        prop_assert_eq!(a.digest() == b.digest(), content(&a) == content(&b));
        let rows: Vec<_> = a.rows().cloned().map(Arc::new).collect();
        let again = Table::restore(*a.settings(), a.stamp(), a.highest_stamp(), rows);
        prop_assert_eq!(again.summary(), a.summary());
        prop_assert_eq!(content(&again), content(&a));
        let mut less = a.clone();
        for row in a.rows() {
            less.remove(row.guid);
        }
        prop_assert_eq!(less.digest(), joined(&Table::new(), &less).digest());
        prop_assert!(less.is_empty());
    }

    #[test]
    fn no_observation_touches_ownership(a in tables(), events in prop::collection::vec(seen(), 1..9)) {
        let mut table = a.clone();
        for event in &events {
            let before = table.clone();
            let changed: BTreeSet<_> = observe(&mut table, event).into_iter().collect();
            for row in table.rows() {
                let old = before.get(row.guid);
                prop_assert_eq!(old != Some(row), changed.contains(&row.guid));
                let (ownership, stamp) = old.map_or_else(Default::default, |old| {
                    (old.ownership.clone(), old.owned)
                });
                prop_assert_eq!((&row.ownership, row.owned), (&ownership, stamp));
                prop_assert!(old.is_none_or(|old| row.observed >= old.observed));
            }
            prop_assert_eq!(content(&joined(&before, &table)), content(&table));
        }
    }

    #[test]
    fn hosts_that_exchange_tables_end_with_one(
        start in prop::collection::vec(tables(), 2..5),
        order in prop::collection::vec((0_usize..5, 0_usize..5), 0..20),
    ) {
        let mut hosts = start.clone();
        let count = hosts.len();
        let all = (0..3 * count * count).map(|i| (i / count, i % count));
        for (from, to) in order.into_iter().chain(all) {
            let theirs = hosts[from % count].clone();
            let ours = &mut hosts[to % count];
            let before = ours.summary();
            ours.join(theirs.settings(), theirs.rows().cloned());
            ours.settle(&before, &theirs.summary(), Guid(100 + (to % count) as u128));
            if ours.digest() != before.digest {
                prop_assert!(ours.stamp() != before.stamp, "new content under an old stamp");
            }
        }
        let end = hosts[0].summary();
        prop_assert!(hosts.iter().all(|host| host.summary() == end));
        for table in &start {
            prop_assert_eq!(content(&joined(&hosts[0], table)), content(&hosts[0]));
        }
    }

    #[test]
    fn a_row_decodes_to_what_encodes_to_it(
        row in any_rows(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut table = Table::new();
        table.insert(row);
        let mut bytes = table.rows().next().unwrap().to_body();
        for (index, value) in flips {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        bytes.truncate(cut.index(bytes.len() * 4).min(bytes.len()));
        if let Ok(row) = Row::from_body(&bytes) {
            prop_assert_eq!(row.to_body(), bytes);
        }
    }

    #[test]
    fn random_bytes_are_no_row(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(row) = Row::from_body(&bytes) {
            prop_assert_eq!(row.to_body(), bytes);
        }
    }
}

/// A tree of two hosts (1, 2; 3 is a tombstone), a unit, two controllers, four devices, two
/// extents of the first, whose ownership obeys the hierarchy.
fn lawful() -> impl Strategy<Value = Table> {
    let owner = || {
        prop_oneof![
            Just(Ownership::Unallocated),
            (1_u128..4).prop_map(|host| Ownership::Dedicated(Guid(host))),
            prop::collection::vec((1_u128..4).prop_map(Guid), 1..4)
                .prop_map(|hosts| Ownership::shared(hosts).unwrap()),
        ]
    };
    let rows = prop::collection::vec((owner(), 0_u8..8), 9);
    (rows, prop::sample::select(Granularity::ALL)).prop_map(|(rows, granularity)| {
        let mut table = Table::new();
        for host in 1..4 {
            let mut row = Row::new(Guid(host), EntityType::Host);
            if host == 3 {
                row.state = RowState::Invalid;
            }
            table.insert(row);
        }
        for (index, (ownership, state)) in rows.into_iter().enumerate() {
            let (entity, parent) = match index {
                0 => (EntityType::Unit, 0),
                1 | 2 => (EntityType::Controller, 10),
                3..7 => (EntityType::Device, 11 + (index as u128 - 3) / 2),
                _ => (EntityType::Extent, 13),
            };
            let mut row = Row::new(Guid(10 + index as u128), entity);
            if entity == EntityType::Extent {
                row.extent = Some(Extent {
                    offset: index as u64 * 4096,
                    len: 4096,
                });
            }
            row.parent = Guid(parent);
            row.owned.epoch = Epoch(1);
            if state == 0 {
                row.state = RowState::Invalid;
            }
            let above = table.get(row.parent).map(|row| row.ownership.clone());
            if above.is_none_or(|above| naive_permits(&above, &ownership)) {
                row.ownership = ownership;
            }
            table.insert(row);
        }
        table.set_granularity(granularity, 1, Guid(1));
        table
    })
}

fn naive_permits(parent: &Ownership, child: &Ownership) -> bool {
    let owners = |o: &Ownership| o.owners().iter().copied().collect::<BTreeSet<_>>();
    let dedicated = matches!(parent, Ownership::Dedicated(_));
    owners(child).is_subset(&owners(parent))
        && (!dedicated || child == parent || *child == Ownership::Unallocated)
}

/// Whether the changes are allowed, by making them on a copy and looking at all of it.
fn naive_check(table: &Table, changes: &[Change]) -> bool {
    let named: BTreeMap<_, _> = changes.iter().map(|change| (change.row, change)).collect();
    if changes.is_empty() || named.len() != changes.len() {
        return false;
    }
    let mut after = table.clone();
    for change in changes {
        let Some(row) = table.get(change.row) else {
            return false;
        };
        let chain_valid = {
            let mut at = Some(row);
            let mut valid = true;
            while let Some(row) = at {
                valid &= row.is_valid();
                at = table.get(row.parent);
            }
            valid
        };
        let hosts = change.ownership.owners().iter().all(|host| {
            matches!(table.get(*host), Some(row) if row.entity == EntityType::Host && row.is_valid())
        });
        if row.entity == EntityType::Host
            || !chain_valid
            || row.owned.epoch != change.expected
            || !hosts
        {
            return false;
        }
        let mut row = row.clone();
        row.ownership = change.ownership.clone();
        after.insert(row);
    }
    after.rows().filter(|row| row.is_valid()).all(|row| {
        let Some(parent) = after.get(row.parent).filter(|parent| parent.is_valid()) else {
            return true;
        };
        let touched = named.contains_key(&row.guid) || named.contains_key(&parent.guid);
        let must_follow = match table.settings().granularity {
            Granularity::Unit => true,
            Granularity::Controller => row.entity >= EntityType::Device,
            Granularity::Device => row.entity == EntityType::Extent,
            Granularity::Extent => false,
        };
        naive_permits(&parent.ownership, &row.ownership)
            && (!must_follow || !touched || parent.ownership == row.ownership)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_rules_agree_with_a_naive_model(
        table in lawful(),
        wanted in prop::collection::vec(
            (prop_oneof![1 => 1_u128..21, 9 => 10_u128..19], ownerships(), 0_u8..20),
            0..6,
        ),
    ) {
        let changes: Vec<_> = wanted
            .into_iter()
            .map(|(row, ownership, stale)| Change {
                row: Guid(row),
                expected: Epoch(u64::from(stale != 0)),
                ownership,
                extent: table.get(Guid(row)).and_then(extent_facts),
            })
            .collect();
        let verdict = check_change(&table, &changes);
        prop_assert_eq!(verdict.is_ok(), naive_check(&table, &changes), "{:?}", verdict);
        if let Err(error) = verdict {
            prop_assert_eq!(error.to_string().lines().count(), 1);
        }
    }

    #[test]
    fn a_plan_is_allowed_and_leads_there(
        table in lawful(),
        rows in prop::collection::vec((10_u128..17).prop_map(Guid), 1..4),
        ownership in ownerships(),
    ) {
        let Ok(changes) = plan(&table, &rows, &ownership) else {
            return Ok(());
        };
        let mut after = table.clone();
        for change in &changes {
            let mut row = table.get(change.row).unwrap().clone();
            row.ownership = change.ownership.clone();
            after.insert(row);
        }
        prop_assert!(rows.iter().all(|row| after.get(*row).unwrap().ownership == ownership));
        prop_assert!(changes.is_empty() || naive_check(&table, &changes));
        prop_assert_eq!(violations(&after).count(), 0);
    }

    #[test]
    fn permits_is_the_subset_rule(a in ownerships(), b in ownerships()) {
        prop_assert_eq!(permits(&a, &b), naive_permits(&a, &b));
    }
}

#[test]
fn equal_rows_of_two_tables_are_in_memory_once() {
    let mut a = Table::new();
    let mut row = Row::new(Guid(7), EntityType::Host);
    row.name = "h".into();
    a.insert(row.clone());
    let copy = a.clone();
    let shared = |t: &Table| t.get_shared(Guid(7)).unwrap();
    assert!(Arc::ptr_eq(&shared(&a), &shared(&copy)));
    let mut b = Table::new();
    b.insert(row.clone());
    assert!(!Arc::ptr_eq(&shared(&a), &shared(&b)));
    b.share(Guid(7), &shared(&a));
    assert!(Arc::ptr_eq(&shared(&a), &shared(&b)));
    // Another row does not take its place, and a change of one table is none of the other.
    row.name = "other".into();
    b.share(Guid(7), &Arc::new(row.clone()));
    assert_eq!(b.digest(), a.digest());
    b.insert(row);
    assert_eq!(
        (a.get(Guid(7)).unwrap().name.as_str(), a.digest()),
        ("h", copy.digest())
    );
    assert_ne!(b.digest(), a.digest());
}

#[test]
fn a_block_size_that_no_disk_has_is_kept_as_none_and_the_other_devices_as_they_are() {
    let mut table = discovered();
    let odd = Guid(0x0dd);
    let mut list = devices(C114A, 50, &[(D116A2, 2, "116A2", 50), (odd, 3, "odd", 50)]);
    list.devices[1].block_size = 513;
    let changed = table.observe_devices(U112, &list);
    assert!(changed.contains(&odd) && changed.contains(&D116A2));
    assert_eq!(table.get(odd).map(|row| row.block_size), Some(0));
    assert_eq!(table.get(D116A2).map(|row| row.block_size), Some(512));
    // The same list again is no news.
    assert_eq!(table.observe_devices(U112, &list), []);
    list.devices[1].block_size = 4096;
    list.devices[1].observed = at(1, 51);
    assert_eq!(table.observe_devices(U112, &list), [odd]);
    assert_eq!(table.get(odd).map(|row| row.block_size), Some(4096));
}
