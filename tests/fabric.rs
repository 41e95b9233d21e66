//! Stories of fabric services and the links of hosts and units to them.

mod fabric_world;

use std::time::Duration;

use fabric_world::{BAD_WIRE, POLL, World, cluster, mac};
use rma::fabric::{Catalog, Change, LinkEvent, MemoryCatalog, Policy};
use rma::wire::message::UnitOwnership;
use rma::wire::{EntityType, Epoch, Guid, Kind, Ownership, Status};

const SOON: Duration = Duration::from_millis(400);
const LATER: Duration = Duration::from_secs(30);

type Sim = World<MemoryCatalog>;

fn lists_are(world: &Sim, expected: &[u128], links: &[usize]) -> bool {
    links.iter().all(|i| {
        let list = world.links[*i].link.members();
        list.is_some_and(|l| {
            l.members
                .iter()
                .map(|m| m.guid.0)
                .eq(expected.iter().copied())
        })
    })
}

#[test]
fn hosts_and_units_find_fabric_services_register_and_learn_of_each_other() {
    let mut world = Sim::new(1);
    world.add_fabric(9, Policy::AutoJoin);
    let (a, b) = (
        world.add_host(108, Some("A")),
        world.add_host(110, Some("A")),
    );
    let unit = world.add_unit(112, Some("A"));
    world.wait(SOON, "both hosts know all three", |w| {
        lists_are(w, &[108, 110, 112], &[a, b])
    });
    assert_eq!(world.links[a].names()[..2], ["up", "assigned"]);
    assert_eq!(world.links[unit].names(), ["up", "assigned"]);
    assert_eq!(world.links[unit].cluster(), cluster("A"));
    let member = &world.links[a].list().members[2];
    assert_eq!(member.entity, EntityType::Unit);
    assert_eq!(member.macs, [mac(112)]);
    assert_eq!(member.name, "I/O unit 112");
}

#[test]
fn a_newcomer_is_pending_until_an_administrator_assigns_it() {
    let mut world = Sim::new(2);
    world.add_fabric(9, Policy::Pending);
    let host = world.add_host(108, Some("A"));
    let unit = world.add_unit(112, None);
    world.run_for(LATER);
    for i in [host, unit] {
        assert_eq!(world.links[i].names(), ["up", "pending"]);
        assert!(world.links[i].cluster().is_none());
    }
    let now = world.now;
    world
        .fabric(0)
        .assign(now, Guid(108), cluster("B"))
        .unwrap();
    world
        .fabric(0)
        .assign(now, Guid(112), cluster("B"))
        .unwrap();
    let took = world.wait(SOON, "the host sees the unit", |w| {
        lists_are(w, &[108, 112], &[host])
    });
    assert!(took < Duration::from_millis(100), "{took:?}");
    assert_eq!(world.links[host].cluster(), cluster("B"));
    assert_eq!(world.links[unit].names(), ["up", "pending", "assigned"]);
}

#[test]
fn under_auto_join_who_names_no_cluster_is_pending() {
    let mut world = Sim::new(3);
    world.add_fabric(9, Policy::AutoJoin);
    let host = world.add_host(108, None);
    world.run_for(SOON);
    assert_eq!(world.links[host].names(), ["up", "pending"]);
    // Its configuration names one later.
    let mut facts = Sim::link_config(EntityType::Host, 108, Some("A")).facts;
    facts.change = 1;
    let now = world.now;
    world.links[host].link.update(now, facts);
    world.wait(SOON, "it is a member", |w| lists_are(w, &[108], &[host]));
}

#[test]
fn a_known_entity_that_asks_for_another_cluster_keeps_the_assigned_one() {
    let mut world = Sim::new(4);
    world.add_fabric(9, Policy::AutoJoin);
    let host = world.add_host(108, Some("A"));
    world.run_for(SOON);
    let now = world.now;
    let facts = Sim::link_config(EntityType::Host, 108, Some("B")).facts;
    world.links[host].link.update(now, facts);
    world.run_for(LATER);
    assert_eq!(world.links[host].cluster(), cluster("A"));
    assert_eq!(
        world.logged(0, "asks for cluster B but is assigned to A"),
        1
    );
}

#[test]
fn a_change_reaches_every_host_of_the_cluster_at_once_and_no_other() {
    let mut world = Sim::new(5);
    world.add_fabric(9, Policy::AutoJoin);
    let a: Vec<_> = (0..10)
        .map(|n| world.add_host(100 + n, Some("A")))
        .collect();
    let b = world.add_host(200, Some("B"));
    let mut all: Vec<u128> = (100..110).collect();
    world.wait(SOON, "all know all", |w| lists_are(w, &all, &a));
    world.run_for(Duration::from_secs(1));
    let events = world.links[b].events.len();
    let unchanged = world.fabric(0).counters().unchanged;
    let version = world.links[b].list().version;

    world.add_unit(112, Some("A"));
    all.push(112);
    let took = world.wait(SOON, "all know the unit", |w| lists_are(w, &all, &a));
    assert!(took < Duration::from_millis(150), "{took:?}");
    world.run_for(POLL * 4);
    assert_eq!(world.links[b].events.len(), events, "B heard nothing of A");
    assert_eq!(world.links[b].list().version, version);
    assert!(
        world.fabric(0).counters().unchanged >= unchanged + 30,
        "polls of an unchanged list are answered without members"
    );
}

#[test]
fn two_clusters_on_one_wire_see_nothing_of_each_other() {
    for seed in 0..10 {
        let mut world = Sim::new(seed);
        world.faults = BAD_WIRE;
        world.add_fabric(9, Policy::AutoJoin);
        let a = [
            world.add_host(108, Some("A")),
            world.add_host(110, Some("A")),
        ];
        let b = [world.add_host(130, Some("B"))];
        for unit in [112, 118] {
            world.add_unit(unit, Some("A"));
        }
        for unit in [132, 138] {
            world.add_unit(unit, Some("B"));
        }
        world.wait(LATER, "everyone knows their own", |w| {
            lists_are(w, &[108, 110, 112, 118], &a) && lists_are(w, &[130, 132, 138], &b)
        });
        world.run_for(POLL * 2);
        for (link, theirs) in [(a[0], 130..=138), (a[1], 130..=138), (b[0], 108..=118)] {
            for (_, event) in &world.links[link].events {
                if let LinkEvent::Members(list) = event {
                    assert!(list.members.iter().all(|m| !theirs.contains(&m.guid.0)));
                }
            }
        }
    }
}

#[test]
fn a_thousand_members_are_read_in_pages_of_small_frames() {
    let mut world = Sim::new(6);
    world.faults = BAD_WIRE;
    world.add_fabric(9, Policy::AutoJoin);
    let expected: Vec<u128> = (1..=1000).collect();
    // The others register through links that are then switched off.
    for guid in 2..=1000 {
        let link = world.add_unit(guid, Some("A"));
        if guid % 50 == 0 || guid == 1000 {
            world.wait(LATER, "they have registered", |w| {
                w.links[1.max(link.saturating_sub(50))..]
                    .iter()
                    .all(|n| !n.cluster().is_none())
            });
            world.links.iter_mut().for_each(|n| n.alive = false);
        }
    }
    let host = world.add_host(1, Some("A"));
    let took = world.wait(LATER, "the host has the whole list", |w| {
        lists_are(w, &expected, &[host])
    });
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(world.largest <= 1500);
    assert!(world.fabric(0).counters().pages >= 3);
    // And then it costs one small frame each way to learn that nothing has changed.
    world.faults = fabric_world::Faults::default();
    world.run_for(POLL * 2);
    world.frames.clear();
    world.run_for(POLL * 4);
    assert!(
        (6..=10).contains(&world.frames[&Kind::Membership]),
        "{:?}",
        world.frames
    );
}

#[test]
fn fabric_services_that_restart_are_found_again_with_everything_they_knew() {
    for seed in 0..10 {
        let mut world = Sim::new(100 + seed);
        world.faults = BAD_WIRE;
        world.add_fabric(9, Policy::Pending);
        let host = world.add_host(108, None);
        let unit = world.add_unit(112, None);
        world.wait(LATER, "both are pending", |w| {
            w.links.iter().all(|n| n.names().contains(&"pending"))
        });
        let now = world.now;
        for guid in [108, 112] {
            world
                .fabric(0)
                .assign(now, Guid(guid), cluster("A"))
                .unwrap();
        }
        world.wait(LATER, "the host knows both", |w| {
            lists_are(w, &[108, 112], &[host])
        });
        let before = world.fabric(0).snapshot().clone();
        world.run_for(Duration::from_secs(2));

        world.kill_fabric(0);
        world.run_for(LATER);
        assert!(!world.links[host].link.is_up());
        assert_eq!(*world.links[host].names().last().unwrap(), "down");
        assert_eq!(world.links[host].guids(), [108, 112], "the last list holds");

        world.start_fabric(0);
        let is_up = |w: &mut Sim| w.links.iter().all(|n| n.link.is_up());
        world.wait(LATER, "both are up again", is_up);
        world.run_for(LATER);
        assert_eq!(*world.fabric(0).snapshot(), before);
        assert_eq!(world.links[unit].cluster(), cluster("A"));
        // An unchanged list and assignment are not news.
        let news = world.links[host].names();
        assert_eq!(
            news.iter().filter(|n| **n == "assigned").count(),
            1,
            "{news:?}"
        );
    }
}

#[test]
fn a_quick_restart_is_noticed_by_the_incarnation() {
    let mut world = Sim::new(7);
    world.add_fabric(9, Policy::AutoJoin);
    let host = world.add_host(108, Some("A"));
    world.wait(SOON, "it is a member", |w| lists_are(w, &[108], &[host]));
    world.kill_fabric(0);
    world.start_fabric(0);
    let incarnations = |w: &mut Sim| -> Vec<u64> {
        let ups = w.links[host].events.iter().filter_map(|(_, e)| match e {
            LinkEvent::Up { incarnation, .. } => Some(incarnation.0),
            _ => None,
        });
        ups.collect()
    };
    world.wait(POLL, "it has seen the second life", |w| {
        incarnations(w) == [1, 2]
    });
}

#[test]
fn of_several_fabric_services_the_lowest_is_chosen_and_stayed_with_while_it_lives() {
    let mut world = Sim::new(8);
    for guid in [5, 3, 7] {
        world.add_fabric(guid, Policy::AutoJoin);
    }
    let host = world.add_host(108, Some("A"));
    world.wait(SOON, "it is up", |w| w.links[host].link.is_up());
    assert_eq!(world.links[host].link.fabric(), Some(Guid(3)));
    // A lower one that comes later changes nothing.
    world.add_fabric(1, Policy::AutoJoin);
    world.run_for(LATER);
    assert_eq!(world.links[host].link.fabric(), Some(Guid(3)));
    world.kill_fabric(1);
    world.wait(LATER, "another is found", |w| {
        w.links[host].link.fabric() == Some(Guid(1))
    });
    world.wait(SOON, "and has registered it", |w| {
        w.fabric(3).snapshot().entities.contains_key(&Guid(108))
    });
}

#[test]
fn fabric_services_that_answer_searches_but_not_connects_are_passed_over() {
    let mut world = Sim::new(9);
    let deaf = world.add_fabric(3, Policy::AutoJoin);
    world.add_fabric(5, Policy::AutoJoin);
    let host = world.add_host(108, Some("A"));
    let mac = world.fabrics[deaf].mac;
    world.deaf.push(mac);
    world.run_for(Duration::from_millis(500));
    assert!(!world.links[host].link.is_up());
    assert!(world.frames.contains_key(&Kind::Connect));
    world.wait(LATER, "the other is chosen", |w| {
        w.links[host].link.fabric() == Some(Guid(5))
    });
}

#[test]
fn a_configured_address_needs_no_search() {
    let mut world = Sim::new(10);
    world.add_fabric(3, Policy::AutoJoin);
    world.add_fabric(5, Policy::AutoJoin);
    let mut config = Sim::link_config(EntityType::Host, 108, Some("A"));
    config.fabric_mac = Some(world.fabrics[1].mac);
    let host = world.add_link(config);
    world.wait(SOON, "it is a member", |w| lists_are(w, &[108], &[host]));
    assert_eq!(world.links[host].link.fabric(), Some(Guid(5)));
    world.kill_fabric(1);
    world.run_for(LATER * 2);
    world.start_fabric(1);
    world.wait(LATER, "it is back", |w| w.links[host].link.is_up());
    assert!(!world.frames.contains_key(&Kind::Discover));
}

#[test]
fn searching_never_ends_and_does_not_flood() {
    let mut world = Sim::new(11);
    let host = world.add_host(108, Some("A"));
    world.run_for(Duration::from_secs(3600));
    let asked = world.frames[&Kind::Discover];
    assert!((1400..=1900).contains(&asked), "{asked} in an hour");
    world.add_fabric(9, Policy::AutoJoin);
    world.wait(Duration::from_secs(4), "found", |w| {
        lists_are(w, &[108], &[host])
    });
}

#[test]
fn an_entity_at_another_address_is_the_same_entity() {
    let mut world = Sim::new(12);
    world.add_fabric(9, Policy::Pending);
    let host = world.add_host(108, None);
    let peer = world.add_host(110, None);
    world.run_for(SOON);
    let now = world.now;
    for guid in [108, 110] {
        world
            .fabric(0)
            .assign(now, Guid(guid), cluster("A"))
            .unwrap();
    }
    world.run_for(SOON);
    // The network card is replaced: another address, the next start.
    world.links[host].alive = false;
    let mut config = Sim::link_config(EntityType::Host, 108, None);
    config.facts.macs = vec![mac(0x999)];
    config.incarnation.0 = 2;
    let moved = world.add_link(config);
    world.wait(Duration::from_secs(10), "it is a member at once", |w| {
        w.links[moved].cluster() == cluster("A")
    });
    world.wait(SOON, "its peer knows the new address", |w| {
        w.links[peer].list().members[0].macs == [mac(0x999)]
    });
    assert_eq!(world.fabric(0).snapshot().entities.len(), 2);
    assert_eq!(world.logged(0, "moved from"), 1);
}

#[test]
fn the_second_of_two_living_entities_with_one_guid_is_refused() {
    for (seed, incarnation) in [(13, 1), (14, 7)] {
        let mut world = Sim::new(seed);
        world.add_fabric(9, Policy::AutoJoin);
        let first = world.add_unit(112, Some("A"));
        let peer = world.add_host(110, Some("A"));
        world.wait(SOON, "the host knows the unit", |w| {
            lists_are(w, &[110, 112], &[peer])
        });
        let mut config = Sim::link_config(EntityType::Unit, 112, Some("A"));
        config.facts.macs = vec![mac(0x666)];
        config.incarnation.0 = incarnation;
        let twin = world.add_link(config);
        world.run_for(LATER);
        assert!(!world.links[twin].link.is_up());
        assert!(
            world.links[twin]
                .events
                .iter()
                .any(|(_, e)| *e == LinkEvent::Refused(Status::WrongIdentity))
        );
        assert_eq!(
            world.links[first].names(),
            ["up", "assigned"],
            "undisturbed"
        );
        assert_eq!(world.links[peer].list().members[1].macs, [mac(112)]);
        assert_eq!(world.logged(0, "two entities say they are"), 1);
        assert!(world.fabric(0).counters().twins > 5);
        // When the first is gone, whoever says the GUID is it.
        world.links[first].alive = false;
        world.wait(LATER, "the second takes its place", |w| {
            w.links[twin].cluster() == cluster("A")
        });
    }
}

#[test]
fn a_network_card_that_is_added_or_replaced_in_a_running_host_is_no_twin() {
    let mut world = Sim::new(15);
    world.add_fabric(9, Policy::AutoJoin);
    let host = world.add_host(108, Some("A"));
    world.wait(SOON, "it is a member", |w| lists_are(w, &[108], &[host]));
    let now = world.now;
    let mut facts = Sim::link_config(EntityType::Host, 108, Some("A")).facts;
    facts.macs = vec![mac(0x777)];
    facts.change = 1;
    world.links[host].mac = mac(0x777);
    world.links[host].link.update(now, facts);
    let took = world.wait(LATER, "the row has the new address", |w| {
        w.links[host].list().members[0].macs == [mac(0x777)]
    });
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert_eq!(world.fabric(0).counters().twins, 0);
}

#[test]
fn unit_ownership_is_told_until_it_holds_and_the_larger_epoch_wins() {
    for seed in 0..10 {
        let mut world = Sim::new(200 + seed);
        world.faults = BAD_WIRE;
        world.add_fabric(9, Policy::AutoJoin);
        let (a, b) = (
            world.add_host(108, Some("A")),
            world.add_host(110, Some("A")),
        );
        let stranger = world.add_host(130, Some("B"));
        let owned = |owner: u128, epoch: u64| UnitOwnership {
            unit: Guid(112),
            ownership: Ownership::Dedicated(Guid(owner)),
            epoch: Epoch(epoch),
        };
        // Told before fabric services are found, and before they know the unit.
        world.links[a]
            .link
            .tell_unit_ownership(world.now, owned(108, 4));
        world.links[b]
            .link
            .tell_unit_ownership(world.now, owned(110, 5));
        world.links[stranger]
            .link
            .tell_unit_ownership(world.now, owned(130, 9));
        world.run_for(Duration::from_secs(3));
        world.add_unit(112, Some("A"));
        let known = |w: &mut Sim, link: usize| {
            let unit = w.links[link]
                .list()
                .members
                .iter()
                .find(|m| m.guid == Guid(112));
            unit.is_some_and(|u| {
                u.ownership == Ownership::Dedicated(Guid(110)) && u.epoch == Epoch(5)
            })
        };
        world.wait(LATER, "both hosts know the newest owner", |w| {
            known(w, a) && known(w, b)
        });
        world.run_for(LATER);
        assert!(known(&mut world, a));
        assert_eq!(world.links[a].link.untold_count(), 0);
        assert_eq!(
            world.links[stranger].link.untold_count(),
            1,
            "B has no such unit"
        );
    }
}

#[test]
fn who_moves_to_another_cluster_leaves_the_first_and_takes_no_owners_along() {
    let mut world = Sim::new(16);
    world.add_fabric(9, Policy::AutoJoin);
    let (a, b) = (
        world.add_host(108, Some("A")),
        world.add_host(130, Some("B")),
    );
    let unit = world.add_unit(112, Some("A"));
    world.wait(SOON, "A is complete", |w| lists_are(w, &[108, 112], &[a]));
    world.links[a].link.tell_unit_ownership(
        world.now,
        UnitOwnership {
            unit: Guid(112),
            ownership: Ownership::Dedicated(Guid(108)),
            epoch: Epoch(3),
        },
    );
    world.run_for(SOON);
    let now = world.now;
    assert_eq!(
        world
            .fabric(0)
            .assign(now, Guid(112), cluster("B"))
            .unwrap(),
        cluster("A")
    );
    world.wait(SOON, "both lists are right", |w| {
        lists_are(w, &[108], &[a]) && lists_are(w, &[112, 130], &[b])
    });
    assert_eq!(world.links[unit].cluster(), cluster("B"));
    assert_eq!(
        world.links[b].list().members[0].ownership,
        Ownership::Unallocated
    );
    assert_eq!(world.links[b].list().members[0].epoch, Epoch(3));

    // A host that moves gets its new cluster's list and no more of the old one.
    world
        .fabric(0)
        .assign(now, Guid(108), cluster("B"))
        .unwrap();
    world.wait(SOON, "it is in B", |w| {
        lists_are(w, &[108, 112, 130], &[a, b])
    });
    let last = world.links[a].names();
    assert_eq!(last[last.len() - 2..], ["assigned", "members"]);
}

#[test]
fn who_is_removed_and_lives_comes_back_as_a_newcomer() {
    let mut world = Sim::new(17);
    world.add_fabric(9, Policy::Pending);
    let (a, b) = (world.add_host(108, None), world.add_host(110, None));
    world.run_for(SOON);
    let now = world.now;
    for guid in [108, 110] {
        world
            .fabric(0)
            .assign(now, Guid(guid), cluster("A"))
            .unwrap();
    }
    world.wait(SOON, "both are members", |w| {
        lists_are(w, &[108, 110], &[a, b])
    });
    let now = world.now;
    world.fabric(0).remove(now, Guid(108)).unwrap();
    world.wait(SOON, "its peer knows", |w| lists_are(w, &[110], &[b]));
    world.wait(SOON, "it is pending", |w| w.links[a].cluster().is_none());
    assert_eq!(world.links[a].guids(), [108, 110], "its last list holds");
    assert!(world.fabric(0).snapshot().entities[&Guid(108)].is_pending());
}

#[test]
fn a_change_that_cannot_be_stored_is_refused_and_members_are_still_served() {
    let mut world = Sim::new(18);
    world.add_fabric(9, Policy::AutoJoin);
    let host = world.add_host(108, Some("A"));
    world.wait(SOON, "it is a member", |w| lists_are(w, &[108], &[host]));
    let before = world.fabric(0).snapshot().clone();
    world.fabric(0).catalog_mut().set_failing(true);
    let unit = world.add_unit(112, Some("A"));
    world.run_for(LATER);
    let now = world.now;
    let error = world
        .fabric(0)
        .assign(now, Guid(108), cluster("B"))
        .unwrap_err();
    assert_eq!(error.to_string(), "nothing was changed");
    assert_eq!(*world.fabric(0).snapshot(), before);
    assert_eq!(world.links[unit].names(), ["up", "refused"]);
    assert!(
        world.links[unit]
            .events
            .iter()
            .any(|(_, e)| *e == LinkEvent::Refused(Status::NotPersisted))
    );
    assert_eq!(world.links[host].names(), ["up", "assigned", "members"]);
    assert!(world.logged(0, "told to fail") > 0);
    world.fabric(0).catalog_mut().set_failing(false);
    world.wait(LATER, "it heals", |w| lists_are(w, &[108, 112], &[host]));
}

#[test]
fn a_hundred_that_start_together_are_few_transactions_and_few_lists() {
    let mut world = Sim::new(19);
    world.add_fabric(9, Policy::AutoJoin);
    let hosts: Vec<_> = (1..=100).map(|n| world.add_host(n, Some("A"))).collect();
    let all: Vec<u128> = (1..=100).collect();
    let took = world.wait(Duration::from_secs(3), "all know all", |w| {
        lists_are(w, &all, &hosts)
    });
    assert!(took < Duration::from_secs(1), "{took:?}");
    let counters = *world.fabric(0).counters();
    assert!(counters.commits <= 100, "{counters:?}");
    assert!(counters.pages < 100 * 10, "{counters:?}");
}

#[test]
fn goodbye_is_said_once_and_then_nothing() {
    let mut world = Sim::new(20);
    world.add_fabric(9, Policy::AutoJoin);
    let host = world.add_host(108, Some("A"));
    world.wait(SOON, "it is a member", |w| lists_are(w, &[108], &[host]));
    world.run_for(SOON);
    let now = world.now;
    world.frames.clear();
    world.links[host].link.close(now);
    world.run_for(LATER);
    assert_eq!(
        world.frames.iter().collect::<Vec<_>>(),
        [(&Kind::Disconnect, &1)]
    );
    assert_eq!(world.links[host].link.deadline(), None);
    let now = world.now;
    assert!(world.fabric(0).entities(now).all(|e| !e.connected));
}

#[test]
fn a_version_number_of_a_lost_database_is_not_taken_for_the_same_list() {
    let mut world = Sim::new(21);
    world.add_fabric(9, Policy::AutoJoin);
    let host = world.add_host(108, Some("A"));
    world.wait(SOON, "it is a member", |w| lists_are(w, &[108], &[host]));
    let version = world.links[host].list().version;
    // The machine is set up anew, and its database happens to count as far.
    let mut row = world.fabric(0).snapshot().entities[&Guid(108)].clone();
    let mut anew = MemoryCatalog::new();
    let first = row.clone();
    row.guid = Guid(200);
    anew.commit(&Change {
        expected: 0,
        version,
        put: vec![first, row],
        touched: vec![cluster("A")],
        ..Change::default()
    })
    .unwrap();
    world.kill_fabric(0);
    world.fabrics[0].disk = Some(anew);
    world.start_fabric(0);
    world.wait(POLL * 2, "it reads the whole list", |w| {
        lists_are(w, &[108, 200], &[host])
    });
    assert_eq!(world.links[host].list().version, version);
}
