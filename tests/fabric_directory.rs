//! The rules of the fabric services database against a naive model, and its limits.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rma::fabric::catalog::{MAX_CLUSTER_MEMBERS, MAX_ENTITIES, MAX_PENDING};
use rma::fabric::directory::{AssignError, Directory, RegisterNote, ResolveError};
use rma::fabric::{Catalog, MemoryCatalog, Policy};
use rma::wire::message::{Member, Placement, Register, UnitOwnership};
use rma::wire::{
    ClusterName, EntityType, Epoch, Guid, Incarnation, Mac, ObservationStamp, Ownership, Status,
};

fn cluster(number: u8) -> ClusterName {
    match number {
        0 => ClusterName::NONE,
        n => format!("c{n}").parse().unwrap(),
    }
}

fn register(guid: u128, wanted: u8) -> Register {
    Register {
        guid: Guid(guid),
        entity: if guid.is_multiple_of(2) {
            EntityType::Unit
        } else {
            EntityType::Host
        },
        macs: vec![Mac([2, 0, 0, 0, (guid >> 8) as u8, guid as u8])],
        name: format!("n{guid}"),
        observed: ObservationStamp {
            incarnation: Incarnation(1),
            change: 0,
        },
        cluster: cluster(wanted),
        placement: Placement::default(),
    }
}

fn nobody(_: &BTreeSet<Guid>) -> Option<Guid> {
    None
}

#[derive(Debug, Clone)]
enum Step {
    Register {
        guid: u128,
        wanted: u8,
        mac: u8,
        auto: bool,
    },
    Own {
        teller: u128,
        unit: u128,
        owner: u128,
        epoch: u64,
    },
    Assign {
        guid: u128,
        to: u8,
    },
    Remove {
        guid: u128,
    },
    Commit {
        failing: bool,
    },
    RollBack,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let guid = || 1..9_u128;
    let step = prop_oneof![
        4 => (guid(), 0..4_u8, 0..3_u8, any::<bool>())
            .prop_map(|(guid, wanted, mac, auto)| Step::Register { guid, wanted, mac, auto }),
        2 => (guid(), guid(), guid(), 0..4_u64)
            .prop_map(|(teller, unit, owner, epoch)| Step::Own { teller, unit, owner, epoch }),
        2 => (guid(), 1..4_u8).prop_map(|(guid, to)| Step::Assign { guid, to }),
        1 => guid().prop_map(|guid| Step::Remove { guid }),
        4 => (0..5_u8).prop_map(|n| Step::Commit { failing: n == 0 }),
        1 => Just(Step::RollBack),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..80)
}

type Directories = Directory<MemoryCatalog>;

/// Every cluster's list with its version, read in pages of one member.
fn lists(directory: &Directories) -> BTreeMap<ClusterName, (u64, Vec<Member>)> {
    let names = (1..4).map(cluster);
    names
        .map(|name| {
            let (mut members, mut after) = (Vec::new(), Guid::NIL);
            loop {
                let page = directory.page(name, 0, after, 1);
                members.extend(page.members);
                if !page.more {
                    break (name, (page.version, members));
                }
                after = members.last().unwrap().guid;
            }
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lists_show_what_is_durable_and_versions_change_with_them(steps in steps()) {
        let mut directory = Directory::load(MemoryCatalog::new()).unwrap();
        let mut durable = lists(&directory);
        let mut assigned = BTreeMap::new();
        for step in steps {
            match step {
                Step::Register { guid, wanted, mac, auto } => {
                    let mut register = register(guid, wanted);
                    register.macs[0].0[3] = mac;
                    let policy = if auto { Policy::AutoJoin } else { Policy::Pending };
                    let before = directory.cluster_of(Guid(guid));
                    let now = directory.register(&register, policy, nobody, &mut Vec::new()).unwrap();
                    let joins = before.is_none() && auto;
                    prop_assert_eq!(now, if joins { cluster(wanted) } else { before });
                    assigned.insert(guid, now);
                }
                Step::Own { teller, unit, owner, epoch } => {
                    let told = UnitOwnership {
                        unit: Guid(unit),
                        ownership: Ownership::Dedicated(Guid(owner)),
                        epoch: Epoch(epoch),
                    };
                    let before = directory.get(Guid(unit)).cloned();
                    let done = directory.own_unit(Guid(teller), &told);
                    let after = directory.get(Guid(unit)).cloned();
                    let of = |g: u128| directory.cluster_of(Guid(g));
                    let may = teller % 2 == 1 && unit % 2 == 0 && !of(teller).is_none() && of(teller) == of(unit);
                    if !may {
                        prop_assert!(done.is_err());
                    }
                    if before != after {
                        prop_assert!(may && before.unwrap().epoch < told.epoch);
                        prop_assert_eq!(after.unwrap().ownership, told.ownership);
                    }
                }
                Step::Assign { guid, to } => {
                    let done = directory.assign(Guid(guid), cluster(to));
                    prop_assert_eq!(done.is_ok(), assigned.contains_key(&guid));
                    if done.is_ok() {
                        assigned.insert(guid, cluster(to));
                    }
                }
                Step::Remove { guid } => {
                    let done = directory.remove(Guid(guid));
                    prop_assert_eq!(done.is_ok(), assigned.remove(&guid).is_some());
                }
                Step::Commit { failing } => {
                    directory.catalog_mut().set_failing(failing);
                    let staged = directory.is_staged();
                    let done = directory.commit();
                    prop_assert_eq!(done.is_ok(), !(failing && staged));
                    let now = lists(&directory);
                    let durably = directory.catalog_mut().load().unwrap();
                    prop_assert_eq!(directory.state(), &durably);
                    let told = done.map(|c| c.clusters).unwrap_or_default();
                    for (name, (version, members)) in &now {
                        let (was, had) = &durable[name];
                        let same = members == had;
                        prop_assert_eq!(!same, told.contains(name));
                        if !members.is_empty() {
                            prop_assert_eq!(same, was == version, "{} {:?} {:?}", name, had, members);
                        }
                        prop_assert!(members.iter().all(|m| m.version <= durably.version));
                    }
                    durable = now;
                }
                Step::RollBack => directory.roll_back(),
                Step::Restart => {
                    directory = Directory::load(directory.catalog_mut().clone()).unwrap();
                }
            }
            if !directory.is_staged() {
                assigned = directory.state().entities.iter().map(|(g, e)| (g.0, e.assigned)).collect();
                prop_assert_eq!(&lists(&directory), &durable);
            }
            let members: usize = (0..4).map(|c| directory.member_count(cluster(c))).sum();
            prop_assert_eq!(members, directory.state().entities.len());
        }
    }
}

#[test]
fn an_entity_cannot_change_from_host_to_unit() {
    let mut directory = Directory::load(MemoryCatalog::new()).unwrap();
    let mut notes = Vec::new();
    let mut entity = register(1, 0);
    directory
        .register(&entity, Policy::Pending, nobody, &mut notes)
        .unwrap();
    entity.entity = EntityType::Unit;
    let again = directory.register(&entity, Policy::Pending, nobody, &mut notes);
    assert_eq!(again, Err(Status::WrongIdentity));
}

#[test]
fn a_lower_incarnation_is_taken_and_noted() {
    let mut directory = Directory::load(MemoryCatalog::new()).unwrap();
    let mut entity = register(1, 0);
    entity.observed.incarnation = Incarnation(5);
    directory
        .register(&entity, Policy::Pending, nobody, &mut Vec::new())
        .unwrap();
    entity.observed.incarnation = Incarnation(1);
    let mut notes = Vec::new();
    directory
        .register(&entity, Policy::Pending, nobody, &mut notes)
        .unwrap();
    assert_eq!(notes, [RegisterNote::WentBack]);
    assert_eq!(directory.get(Guid(1)).unwrap().observed, entity.observed);
}

#[test]
fn when_too_many_are_pending_one_of_them_is_forgotten_for_the_newcomer() {
    let mut directory = Directory::load(MemoryCatalog::new()).unwrap();
    for guid in 1..=MAX_PENDING as u128 {
        directory
            .register(&register(guid, 1), Policy::Pending, nobody, &mut Vec::new())
            .unwrap();
    }
    directory.commit().unwrap();
    let newcomer = register(5000, 1);
    let full = directory.register(&newcomer, Policy::Pending, nobody, &mut Vec::new());
    assert_eq!(full, Err(Status::Busy));
    let mut notes = Vec::new();
    let third = |pending: &BTreeSet<Guid>| pending.iter().nth(2).copied();
    directory
        .register(&newcomer, Policy::Pending, third, &mut notes)
        .unwrap();
    assert_eq!(notes, [RegisterNote::Forgot(Guid(3)), RegisterNote::New]);
    let changed = directory.commit().unwrap();
    assert_eq!(changed.reassigned, [Guid(3)].into());
    assert_eq!(directory.member_count(ClusterName::NONE), MAX_PENDING);
    // Who joins a cluster does not wait among them.
    directory
        .register(&register(5001, 1), Policy::AutoJoin, nobody, &mut notes)
        .unwrap();
}

#[test]
fn a_full_cluster_and_a_full_database_take_nobody_more() {
    let mut directory = Directory::load(MemoryCatalog::new()).unwrap();
    let mut guid = 0;
    for number in 1..=(MAX_ENTITIES / MAX_CLUSTER_MEMBERS) as u8 {
        for _ in 0..MAX_CLUSTER_MEMBERS {
            guid += 1;
            directory
                .register(
                    &register(guid, number),
                    Policy::AutoJoin,
                    nobody,
                    &mut Vec::new(),
                )
                .unwrap();
        }
    }
    directory.commit().unwrap();
    assert_eq!(directory.state().entities.len(), MAX_ENTITIES);
    let one_more = directory.register(
        &register(guid + 1, 9),
        Policy::AutoJoin,
        nobody,
        &mut Vec::new(),
    );
    assert_eq!(one_more, Err(Status::Busy));
    assert!(matches!(
        directory.assign(Guid(guid), cluster(1)),
        Err(AssignError::Full { .. })
    ));
    // Who asks to join a full cluster waits.
    directory.remove(Guid(guid)).unwrap();
    let joined = directory.register(
        &register(guid, 1),
        Policy::AutoJoin,
        nobody,
        &mut Vec::new(),
    );
    assert_eq!(joined, Ok(ClusterName::NONE));
    assert_eq!(
        directory
            .page(cluster(1), 0, Guid::NIL, usize::MAX)
            .members
            .len(),
        MAX_CLUSTER_MEMBERS
    );
}

#[test]
fn people_name_entities_by_guid_prefix_address_or_name() {
    let mut directory = Directory::load(MemoryCatalog::new()).unwrap();
    let base = 0x0123_4567_89ab_cdef_u128 << 64;
    for (number, name) in [(1, "a"), (2, "b"), (3, "b")] {
        let mut entity = register(base + number, 0);
        entity.name = name.into();
        directory
            .register(&entity, Policy::Pending, nobody, &mut Vec::new())
            .unwrap();
    }
    let first = Guid(base + 1);
    for text in [
        "01234567-89ab-cdef-0000-000000000001",
        "0123456789ABCDEF0000000000000001",
        "a",
        "02:00:00:00:00:01",
    ] {
        assert_eq!(directory.resolve(text), Ok(first), "{text}");
    }
    for text in ["b", "01234567", "01234567-89ab"] {
        let error = directory.resolve(text).unwrap_err();
        assert!(matches!(&error, ResolveError::Ambiguous { guids, .. } if guids.len() > 1));
        assert!(
            error
                .to_string()
                .contains("01234567-89ab-cdef-0000-000000000002")
        );
    }
    for text in ["", "0123456", "c", "02:00:00:00:00:07", "-"] {
        assert!(
            matches!(directory.resolve(text), Err(ResolveError::Unknown(_))),
            "{text}"
        );
    }
}

/// A unit that is a member of cluster 1 by assignment 1.
fn member_unit() -> Directory<MemoryCatalog> {
    let mut directory = Directory::load(MemoryCatalog::new()).unwrap();
    place(&mut directory, Placement::default());
    assert_eq!(directory.get(Guid(2)).unwrap().assignment, 1);
    directory
}

/// Unit 2 registers, saying this of itself.
fn place(directory: &mut Directory<MemoryCatalog>, placement: Placement) -> Vec<RegisterNote> {
    let entity = Register {
        placement,
        ..register(2, 1)
    };
    let mut notes = Vec::new();
    directory
        .register(&entity, Policy::AutoJoin, nobody, &mut notes)
        .unwrap();
    directory.commit().unwrap();
    notes
}

fn placement(home: u8, assignment: u64, guests: &[u8]) -> Placement {
    Placement {
        home: cluster(home),
        assignment,
        guests: guests.iter().map(|n| cluster(*n)).collect(),
    }
}

#[test]
fn a_units_later_assignment_holds_and_an_administrators_is_above_it() {
    let mut directory = member_unit();
    assert_eq!(place(&mut directory, placement(2, 0, &[])), []);
    assert_eq!(directory.cluster_of(Guid(2)), cluster(1));
    let notes = place(&mut directory, placement(2, 5, &[]));
    let moved = RegisterNote::Transferred {
        from: cluster(1),
        to: cluster(2),
    };
    assert!(notes.contains(&moved), "{notes:?}");
    assert_eq!(directory.cluster_of(Guid(2)), cluster(2));
    directory.assign(Guid(2), cluster(3)).unwrap();
    directory.commit().unwrap();
    assert_eq!(directory.get(Guid(2)).unwrap().assignment, 6);
    // What the unit still says is older; of two with one number the larger name holds.
    place(&mut directory, placement(2, 5, &[]));
    assert_eq!(directory.cluster_of(Guid(2)), cluster(3));
    place(&mut directory, placement(2, 6, &[]));
    assert_eq!(directory.cluster_of(Guid(2)), cluster(3));
    place(&mut directory, placement(4, 6, &[]));
    assert_eq!(directory.cluster_of(Guid(2)), cluster(4));
}

#[test]
fn guests_are_in_their_own_lists_with_owners_of_their_own() {
    let mut directory = member_unit();
    let auto = Policy::AutoJoin;
    for (guid, of) in [(1, 1), (3, 2)] {
        let host = register(guid, of);
        let joined = directory.register(&host, auto, nobody, &mut Vec::new());
        assert_eq!(joined, Ok(cluster(of)));
    }
    let told = |epoch: u64, owner: u128| UnitOwnership {
        unit: Guid(2),
        ownership: Ownership::Dedicated(Guid(owner)),
        epoch: Epoch(epoch),
    };
    assert_eq!(directory.own_unit(Guid(3), &told(1, 3)), Err(Status::NoRow));
    assert_eq!(directory.own_unit(Guid(1), &told(4, 1)), Ok(()));
    place(&mut directory, placement(1, 1, &[2, 3]));
    assert_eq!(directory.own_unit(Guid(3), &told(1, 3)), Ok(()));
    directory.commit().unwrap();
    let listed = |directory: &Directory<MemoryCatalog>, of: u8| -> Vec<(u128, bool, u64)> {
        let page = directory.page(cluster(of), 0, Guid::NIL, usize::MAX);
        let members = page.members.iter();
        members.map(|m| (m.guid.0, m.guest, m.epoch.0)).collect()
    };
    assert_eq!(listed(&directory, 1), [(1, false, 0), (2, false, 4)]);
    assert_eq!(listed(&directory, 2), [(2, true, 1), (3, false, 0)]);
    assert_eq!(listed(&directory, 3), [(2, true, 0)]);
    // A change in one list is none in another.
    let version =
        |d: &Directory<MemoryCatalog>, of: u8| d.state().clusters.get(&cluster(of)).copied();
    assert!(version(&directory, 3).is_some());
    place(&mut directory, placement(1, 1, &[2]));
    assert_eq!(listed(&directory, 3), []);
    assert_eq!(
        version(&directory, 3),
        None,
        "an empty cluster is forgotten"
    );
    // It is as it was after a restart.
    let again = Directory::load(directory.catalog_mut().clone()).unwrap();
    assert_eq!(listed(&again, 2), [(2, true, 1), (3, false, 0)]);
    // What it was a guest of becomes its home, with the owners there.
    place(&mut directory, placement(2, 2, &[1]));
    assert_eq!(listed(&directory, 2), [(2, false, 4), (3, false, 0)]);
    let unit = directory.get(Guid(2)).unwrap();
    assert_eq!(unit.ownership, Ownership::Dedicated(Guid(3)));
    assert_eq!(listed(&directory, 1), [(1, false, 0), (2, true, 0)]);
    directory.remove(Guid(2)).unwrap();
    directory.commit().unwrap();
    assert_eq!(listed(&directory, 1), [(1, false, 0)]);
}
