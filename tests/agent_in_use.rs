//! What an owner uses is not taken from it by mistake, whichever host is asked for that, in virtual time.

use std::time::Duration;

use rma::fabric::Policy;
use rma::rma::request::{AdminReply, AdminRequest, ErrorKind};
use rma::wire::Guid;
use rma_simulator::converged::unconverged;
use rma_simulator::{NodeId, World};

const fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

struct Cluster {
    world: World,
    a: NodeId,
    b: NodeId,
    unit: NodeId,
}

fn converge(world: &mut World) {
    let well = world.run_until(s(20), |world| unconverged(world).is_none());
    assert!(well, "{:?}", unconverged(world));
    assert_eq!(world.model.violations, Vec::<String>::new());
}

/// `b` owns `d1`, and uses it; administrators are at `a`.
fn cluster(seed: u64) -> Cluster {
    let mut world = World::new(seed);
    world.add_fabric(Policy::AutoJoin);
    let (a, b) = (world.add_host("a", "A"), world.add_host("b", "A"));
    let unit = world.add_unit("u", "A", &[("c", &["d1", "d2"])]);
    world.start_all();
    converge(&mut world);
    for (target, hosts) in [
        ("u", &["a", "b"][..]),
        ("c", &["a", "b"]),
        ("d1", &["b"]),
        ("d2", &["b"]),
    ] {
        let reply = world.allocate(a, target, hosts);
        assert!(matches!(reply, AdminReply::Allocated(_)), "{reply:?}");
    }
    converge(&mut world);
    let d1 = guid(&world, a, "d1");
    let used = [(d1, "mounted at /srv/\u{7}x".to_owned())];
    world.host_mut(b).used = used.into();
    // What a daemon does before it passes a request on without --force.
    look(&mut world, a, true);
    Cluster { world, a, b, unit }
}

fn guid(world: &World, host: NodeId, name: &str) -> Guid {
    let table = world.host(host).agent.as_ref().unwrap().table();
    table.rows().find(|row| row.name == name).unwrap().guid
}

fn look(world: &mut World, host: NodeId, looks: bool) {
    let host = world.host_mut(host);
    let used = host.used.clone();
    host.agent.as_mut().unwrap().set_used(looks.then_some(used));
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
    assert!(!e.message.contains(char::is_control), "{e}");
}

fn owner(world: &World, host: NodeId, name: &str) -> (String, u64) {
    let table = world.host(host).agent.as_ref().unwrap().table();
    let row = table.rows().find(|row| row.name == name).unwrap();
    (row.ownership.word().to_owned(), row.owned.epoch.0)
}

#[test]
fn what_another_host_uses_is_not_taken_without_force() {
    let Cluster {
        mut world, a, b, ..
    } = cluster(1);
    let words = ["d1", "in use on host b", "mounted at /srv/", "--force"];
    for reply in [
        world.release(a, "d1", false),
        world.allocate(a, "d1", &["a"]),
        world.release(a, "c", true),
    ] {
        refused(reply, ErrorKind::Refused, &words);
    }
    assert_eq!(owner(&world, b, "d1"), ("dedicated".to_owned(), 1));
    // What it does not lose, and what it does not use, is nobody's matter.
    let reply = world.allocate(a, "d1", &["a", "b"]);
    assert!(matches!(reply, AdminReply::Allocated(_)), "{reply:?}");
    let reply = world.allocate(a, "d2", &["a"]);
    assert!(matches!(reply, AdminReply::Allocated(_)), "{reply:?}");
    converge(&mut world);
    // With force nobody is asked.
    look(&mut world, a, false);
    let reply = world.release(a, "d1", false);
    assert!(matches!(reply, AdminReply::Allocated(_)), "{reply:?}");
    converge(&mut world);
    assert_eq!(owner(&world, b, "d1"), ("unallocated".to_owned(), 3));
}

#[test]
fn an_owner_that_does_not_answer_is_named() {
    let Cluster {
        mut world,
        a,
        b,
        unit,
    } = cluster(2);
    // It hears nothing from a any more, and a does not know that yet.
    world.part(a, b);
    let before = world.now();
    let reply = world.release(a, "d2", false);
    refused(
        reply,
        ErrorKind::Unreachable,
        &["d2", "host b", "has not answered", "--force"],
    );
    assert!(world.now().since(before) < s(3));
    world.run_for(s(5));
    let reply = world.release(a, "d2", false);
    refused(
        reply,
        ErrorKind::Unreachable,
        &["d2", "host b", "does not answer", "--force"],
    );
    // The unit was not asked: the lease and everything else goes on.
    assert_eq!(owner(&world, a, "d2"), ("dedicated".to_owned(), 1));
    assert!(world.unit(unit).stored.is_some());
    world.network.mend();
    world.run_for(s(5));
    let reply = world.release(a, "d2", false);
    assert!(matches!(reply, AdminReply::Allocated(_)), "{reply:?}");
    // Nor is a dead owner in the way of one who insists.
    world.crash(b);
    world.run_for(s(5));
    look(&mut world, a, false);
    let reply = world.allocate(a, "d1", &["a"]);
    assert!(matches!(reply, AdminReply::Allocated(_)), "{reply:?}");
    assert_eq!(world.model.lost_acknowledged, 0);
}

#[test]
fn an_apply_asks_too_but_does_not_wait_for_the_dead() {
    let Cluster {
        mut world, a, b, ..
    } = cluster(3);
    let desired = |device: &str| {
        let text = format!(
            "[[device]]\nrow = \"{device}\"\nownership = \"dedicated\"\nowners = [\"a\"]\n"
        );
        toml::from_str(&text).expect("an apply file")
    };
    let apply = |desired| AdminRequest::Apply {
        desired,
        dry_run: false,
    };
    let reply = world.admin(a, apply(desired("d1")));
    let said = format!("{reply:?}");
    assert!(said.contains("in use on host b"), "{said}");
    assert_eq!(owner(&world, a, "d1"), ("dedicated".to_owned(), 1));
    world.crash(b);
    world.run_for(s(5));
    let reply = world.admin(a, apply(desired("d2")));
    assert!(matches!(reply, AdminReply::Applied(_)), "{reply:?}");
    assert_eq!(owner(&world, a, "d2"), ("dedicated".to_owned(), 2));
}
