//! Stories of two clusters on one segment, in virtual time: devices and units go from one to the other.

use std::time::Duration;

use rma::fabric::Policy;
use rma::rma::request::{AdminReply, AdminRequest, ErrorKind, LockInfo, MoveInfo, RowInfo};
use rma::unit::GUEST_LINGER;
use rma::wire::{ClusterName, Guid};
use rma_simulator::{NodeId, World};

const fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Cluster A with two hosts and two units, cluster B with two hosts and a unit.
struct Two {
    world: World,
    fabric: NodeId,
    h108: NodeId,
    h110: NodeId,
    u112: NodeId,
    h130: NodeId,
    h132: NodeId,
}

fn two(seed: u64) -> Two {
    let mut world = World::new(seed);
    let fabric = world.add_fabric(Policy::AutoJoin);
    let h108 = world.add_host("108", "A");
    let h110 = world.add_host("110", "A");
    let u112 = world.add_unit(
        "112",
        "A",
        &[("114A", &["116A1", "116A2"]), ("114B", &["116B1"])],
    );
    world.add_unit("118", "A", &[("120", &["122A"])]);
    let h130 = world.add_host("130", "B");
    let h132 = world.add_host("132", "B");
    world.add_unit("134", "B", &[("136", &["138A"])]);
    world.start_all();
    let mut two = Two {
        world,
        fabric,
        h108,
        h110,
        u112,
        h130,
        h132,
    };
    two.until(s(10), |two| {
        two.hosts().iter().all(|host| {
            let agent = two.world.host(*host).agent.as_ref();
            agent.is_some_and(|agent| agent.is_steady() && agent.table().len() > 4)
        })
    });
    for (target, hosts) in [
        ("112", &["108", "110"][..]),
        ("114A", &["108", "110"]),
        ("116A1", &["108"]),
        ("116A2", &["110"]),
    ] {
        let reply = two.world.allocate(two.h108, target, hosts);
        assert!(matches!(reply, AdminReply::Allocated(_)), "{reply:?}");
    }
    two.world.run_for(s(1));
    two
}

impl Two {
    fn hosts(&self) -> [NodeId; 4] {
        [self.h108, self.h110, self.h130, self.h132]
    }

    /// Whatever a host says is invalid was not taken out of anything: the model shall not wonder.
    fn expect_to_leave(&mut self, names: &[&str]) {
        let rows: Vec<Guid> = names.iter().map(|name| self.guid(name)).collect();
        self.world.model.removed.extend(rows);
    }

    fn guid(&self, name: &str) -> Guid {
        let (_, unit) = self.world.units().find(|(id, _)| *id == self.u112).unwrap();
        let contents = &unit.contents;
        let devices = contents.devices.values().map(|d| (&d.name, d.guid));
        let controllers = contents.controllers.values().map(|c| (&c.name, c.guid));
        let found = devices.chain(controllers).find(|(n, _)| *n == name);
        found.map_or(Guid(0x0300 << 112 | 3 << 64), |(_, guid)| guid)
    }

    #[track_caller]
    fn until(&mut self, patience: Duration, mut is_so: impl FnMut(&mut Self) -> bool) {
        let end = self.world.now() + patience;
        while !is_so(self) {
            assert!(self.world.now() < end, "not within {patience:?}");
            self.world.run_for(Duration::from_millis(50));
        }
        assert_eq!(self.world.model.violations, Vec::<String>::new());
    }

    fn request(target: &str, to: &str, host: &str) -> AdminRequest {
        AdminRequest::Move {
            target: target.into(),
            cluster: to.into(),
            host: host.into(),
            recursive: false,
        }
    }

    #[track_caller]
    fn moves(&mut self, at: NodeId, target: &str, to: &str, host: &str) -> MoveInfo {
        match self.world.admin(at, Self::request(target, to, host)) {
            AdminReply::Moved(info) => *info,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn refuses(&mut self, at: NodeId, request: AdminRequest, kind: ErrorKind, word: &str) {
        let AdminReply::Error(e) = self.world.admin(at, request) else {
            panic!("it is not refused");
        };
        assert_eq!(e.kind, kind, "{e}");
        assert!(e.message.contains(word), "'{word}' is not in: {e}");
        assert!(!e.message.contains('\n'), "{e}");
    }

    fn row(&mut self, at: NodeId, name: &str) -> Option<RowInfo> {
        let AdminReply::Table(table) = self.world.admin(at, AdminRequest::Table) else {
            panic!("no table");
        };
        table.rows.into_iter().find(|row| row.name == name)
    }

    /// State, owners and epoch of a row at a host.
    fn seen(&mut self, at: NodeId, name: &str) -> (String, Vec<String>, u64) {
        let row = self.row(at, name);
        row.map_or((String::new(), vec![], 0), |row| {
            let owners = row.ownership.owners.iter().map(|o| o.name.clone());
            (row.state, owners.collect(), row.epoch)
        })
    }

    fn exports(&self, at: NodeId) -> Vec<String> {
        let exports = self.world.host(at).exports.iter().flatten();
        exports.map(|device| device.row.name.clone()).collect()
    }

    fn voters(&mut self, at: NodeId) -> LockInfo {
        match self.world.admin(at, AdminRequest::LockStatus) {
            AdminReply::Lock(info) => *info,
            other => panic!("{other:?}"),
        }
    }

    /// What fabric services say of unit 112: home, assignment, guests.
    fn catalog(&mut self) -> (String, u64, Vec<String>) {
        let unit = self.world.unit(self.u112).unit.as_ref();
        assert!(unit.is_some());
        let guid = Guid(0x0300 << 112 | 3 << 64);
        let fabric = self.fabric;
        let found = self.world.with_fabric(fabric, |fabric, _| {
            let entity = &fabric.snapshot().entities[&guid];
            let guests = entity.guests.keys().map(ToString::to_string);
            (
                entity.assigned.to_string(),
                entity.assignment,
                guests.collect::<Vec<_>>(),
            )
        });
        found.unwrap()
    }
}

fn gone(epoch: u64) -> (String, Vec<String>, u64) {
    ("invalid".into(), vec![], epoch)
}

fn owned(by: &[&str], epoch: u64) -> (String, Vec<String>, u64) {
    let by = by.iter().map(|s| (*s).to_owned()).collect();
    ("valid".into(), by, epoch)
}

#[test]
fn a_device_goes_to_the_other_cluster_and_comes_back() {
    let mut two = two(1);
    two.expect_to_leave(&["116A1", "114A", "112"]);
    assert_eq!(two.exports(two.h108), ["116A1"]);
    let info = two.moves(two.h108, "116A1", "B", "130");
    assert!(info.changed);
    assert_eq!((&*info.cluster, &*info.unit.name), ("B", "112"));
    // Here it is gone as soon as that is acknowledged, and at the other host soon.
    assert_eq!(two.seen(two.h108, "116A1"), gone(2));
    two.until(s(2), |two| {
        two.seen(two.h110, "116A1") == gone(2) && two.exports(two.h108).is_empty()
    });
    assert_eq!(two.seen(two.h110, "116A2"), owned(&["110"], 1));
    // There it appears, with what it needs and no more.
    two.until(s(2), |two| {
        [two.h130, two.h132]
            .iter()
            .all(|host| two.seen(*host, "116A1") == owned(&["130"], 3))
            && two.exports(two.h130) == ["116A1"]
    });
    assert_eq!(two.seen(two.h132, "114A"), owned(&["130"], 1));
    assert_eq!(two.seen(two.h132, "112"), owned(&["130"], 1));
    for name in ["116A2", "114B", "116B1", "118"] {
        assert_eq!(
            two.row(two.h130, name),
            None,
            "{name} is no business of B's"
        );
    }
    assert!(two.exports(two.h132).is_empty());
    assert_eq!(two.catalog(), ("A".into(), 1, vec!["B".into()]));
    // B's lease is its own hosts' and units' business.
    let voters = two.voters(two.h130).voters;
    let names: Vec<&str> = voters.iter().map(|v| &*v.voter.name).collect();
    assert!(
        names.contains(&"134") && !names.contains(&"112"),
        "{names:?}"
    );
    // It can be allocated there like any other.
    for target in ["112", "114A"] {
        let reply = two.world.allocate(two.h132, target, &["130", "132"]);
        assert!(matches!(reply, AdminReply::Allocated(_)), "{reply:?}");
    }
    let reply = two.world.allocate(two.h132, "116A1", &["132"]);
    assert!(matches!(reply, AdminReply::Allocated(_)), "{reply:?}");
    two.until(s(2), |two| two.exports(two.h132) == ["116A1"]);
    // Asked for what is so already, A's administrator hears so; not of what is otherwise.
    assert!(!two.moves(two.h110, "116A1", "B", "132").changed);
    let other = Two::request("116A1", "B", "130");
    two.refuses(
        two.h110,
        other,
        ErrorKind::Refused,
        "moved to another cluster",
    );

    // Back again, to another host.
    let info = two.moves(two.h130, "116A1", "A", "110");
    assert!(info.changed);
    two.until(s(2), |two| {
        [two.h108, two.h110]
            .iter()
            .all(|host| two.seen(*host, "116A1") == owned(&["110"], 6))
            && two.exports(two.h110) == ["116A1", "116A2"]
            && two.exports(two.h132).is_empty()
    });
    // B keeps what was, and sees that it is gone: the device, its controller, the unit.
    two.until(s(3), |two| {
        ["116A1", "114A", "112"]
            .iter()
            .all(|name| two.seen(two.h132, name).0 == "invalid")
    });
    two.world.run_for(GUEST_LINGER);
    two.until(s(10), |two| two.catalog() == ("A".into(), 1, vec![]));
    // Once more: the rows are the same.
    two.moves(two.h108, "116A1", "B", "132");
    two.until(s(3), |two| {
        two.seen(two.h130, "116A1") == owned(&["132"], 8) && two.seen(two.h130, "112").0 == "valid"
    });
}

#[test]
fn a_unit_goes_with_all_that_is_its_own() {
    let mut two = two(2);
    two.expect_to_leave(&["112", "114A", "114B", "116A1", "116A2", "116B1"]);
    // One of its devices is B's already, another's stays where it was moved to.
    two.moves(two.h108, "116B1", "B", "132");
    let info = two.moves(two.h110, "112", "B", "130");
    assert!(info.changed);
    assert_eq!(two.seen(two.h110, "112").0, "invalid");
    two.until(s(3), |two| {
        let b = [two.h130, two.h132].iter().all(|host| {
            two.seen(*host, "112") == owned(&["130", "132"], 3)
                && two.seen(*host, "116A1") == owned(&[], 3)
                && two.seen(*host, "116B1") == owned(&["132"], 2)
        });
        b && two.exports(two.h108).is_empty() && two.exports(two.h110).is_empty()
    });
    assert_eq!(two.catalog(), ("B".into(), 2, vec!["A".into()]));
    // A's hosts see that there is nothing left of theirs, and no owners linger.
    two.until(s(5), |two| {
        let above = ["112", "114A", "114B"];
        let all = above.into_iter().chain(["116A1", "116A2", "116B1"]);
        all.into_iter().all(|name| {
            let seen = two.seen(two.h108, name);
            let is_gone = seen.0 == "invalid" || !above.contains(&name);
            is_gone && seen.1.is_empty() && two.seen(two.h110, name) == seen
        })
    });
    // It votes in B now, and B allocates what came.
    two.until(s(3), |two| {
        let voters = two.voters(two.h130).voters;
        voters.iter().any(|v| v.voter.name == "112")
    });
    let voters = two.voters(two.h108).voters;
    assert!(voters.iter().all(|v| v.voter.name != "112"), "{voters:?}");
    for (target, host) in [("114A", "130"), ("116A1", "130")] {
        let reply = two.world.allocate(two.h132, target, &[host]);
        assert!(matches!(reply, AdminReply::Allocated(_)), "{reply:?}");
    }
    two.until(s(2), |two| two.exports(two.h130) == ["116A1"]);
    // Everybody restarts, fabric services included, and it is still so.
    two.world.run_for(GUEST_LINGER + s(5));
    for id in [two.fabric, two.u112, two.h108, two.h130] {
        two.world.crash(id);
        two.world.start(id);
    }
    two.until(s(20), |two| {
        two.exports(two.h130) == ["116A1"] && two.seen(two.h130, "116A1") == owned(&["130"], 4)
    });
    assert_eq!(two.catalog().0, "B");
    two.world.run_for(s(10));
    // And recursively back: one host has it all.
    let request = AdminRequest::Move {
        target: "112".into(),
        cluster: "A".into(),
        host: "108".into(),
        recursive: true,
    };
    let reply = two.world.admin(two.h132, request);
    assert!(matches!(reply, AdminReply::Moved(_)), "{reply:?}");
    two.until(s(5), |two| {
        two.exports(two.h108) == ["116A1", "116A2", "116B1"] && two.exports(two.h130).is_empty()
    });
}

#[test]
fn what_cannot_be_moved_is_said_in_one_line() {
    let mut two = two(3);
    let at = two.h108;
    for (target, to, host, kind, word) in [
        ("116A1", "A", "110", ErrorKind::BadRequest, "already"),
        (
            "116A1",
            "not a name",
            "130",
            ErrorKind::BadRequest,
            "cluster",
        ),
        ("116A1", "B", "", ErrorKind::BadRequest, "1 to 63"),
        ("116A1", "Z", "130", ErrorKind::Unknown, "no cluster Z"),
        ("116A1", "B", "108", ErrorKind::Unknown, "no host '108'"),
        ("116A1", "B", "134", ErrorKind::Unknown, "no host '134'"),
        ("nothing", "B", "130", ErrorKind::Unknown, "nothing"),
        ("138A", "B", "130", ErrorKind::Unknown, "138A"),
        ("114A", "B", "130", ErrorKind::WrongType, "cannot be moved"),
        ("110", "B", "130", ErrorKind::WrongType, "cannot be moved"),
    ] {
        two.refuses(at, Two::request(target, to, host), kind, word);
    }
    // By GUID a host is found as well, and only in its own cluster.
    let guid = two.row(two.h130, "130").unwrap().guid;
    let own = two.row(two.h130, "132").unwrap().guid;
    assert_ne!(guid, own);
    let foreign = two.row(two.h108, "108").unwrap().guid;
    let request = Two::request("116A2", "B", &foreign);
    two.refuses(at, request, ErrorKind::Unknown, "no host");
    // With extents.
    let carve = AdminRequest::Carve {
        device: "116B1".into(),
        offset: 0,
        size: 4096,
        name: "part".into(),
    };
    let level = |granularity: &str| AdminRequest::GranularitySet {
        granularity: granularity.into(),
    };
    assert!(matches!(
        two.world.admin(at, level("extent")),
        AdminReply::Granularity(_)
    ));
    assert!(matches!(two.world.admin(at, carve), AdminReply::Carved(_)));
    let request = Two::request("116B1", "B", "130");
    two.refuses(at, request.clone(), ErrorKind::Extent, "uncarve");
    let extent = "part".into();
    let uncarved = two.world.admin(at, AdminRequest::Uncarve { extent });
    assert!(matches!(uncarved, AdminReply::Carved(_)), "{uncarved:?}");
    // Alone, where controllers are the least that is allocated.
    assert!(matches!(
        two.world.admin(at, level("controller")),
        AdminReply::Granularity(_)
    ));
    two.refuses(
        at,
        request.clone(),
        ErrorKind::Granularity,
        "cannot leave alone",
    );
    assert!(matches!(
        two.world.admin(at, level("device")),
        AdminReply::Granularity(_)
    ));
    // Two of one name.
    let twin = two.world.add_host("130", "B");
    two.world.start(twin);
    two.world.run_for(s(2));
    two.refuses(at, request.clone(), ErrorKind::Ambiguous, "say the GUID");
    // Without fabric services.
    two.world.kill(two.fabric);
    two.world.run_for(s(4));
    two.refuses(
        at,
        request.clone(),
        ErrorKind::Unreachable,
        "fabric services",
    );
    two.world.start(two.fabric);
    two.world.run_for(s(10));
    // Without the unit.
    two.world.kill(two.u112);
    two.world.run_for(s(10));
    let by_guid = Two::request("116B1", "B", &guid);
    two.refuses(
        at,
        by_guid.clone(),
        ErrorKind::Unreachable,
        "has not answered",
    );
    two.world.start(two.u112);
    two.until(s(20), |two| two.seen(two.h108, "112").0 == "valid");
    two.world.run_for(s(5));
    two.expect_to_leave(&["116B1"]);
    assert!(matches!(two.world.admin(at, by_guid), AdminReply::Moved(_)));
}

#[test]
fn a_host_that_was_away_changes_nothing() {
    let mut two = two(4);
    two.expect_to_leave(&["116A1"]);
    two.world.kill(two.h110);
    two.moves(two.h108, "116A1", "B", "130");
    two.until(s(3), |two| two.exports(two.h130) == ["116A1"]);
    two.world.kill(two.h108);
    // The only host of A that runs has a table in which the device is its cluster's.
    two.world.start(two.h110);
    two.until(s(20), |two| two.seen(two.h110, "116A1") == gone(2));
    let reply = two.world.allocate(two.h110, "116A1", &["110"]);
    assert!(matches!(reply, AdminReply::Error(_)), "{reply:?}");
    assert_eq!(two.seen(two.h132, "116A1"), owned(&["130"], 3));
    assert_eq!(two.exports(two.h130), ["116A1"]);
}

/// Whoever moved it dies before, or after, the unit has made it so; another finishes, or hears that it
/// is so.
#[test]
fn an_administrator_that_dies_in_the_middle_loses_nothing() {
    for ms in 0..40 {
        let mut two = two(5);
        two.expect_to_leave(&["116A1"]);
        two.world.ask(two.h108, Two::request("116A1", "B", "130"));
        two.world.run_for(Duration::from_micros(ms * 250));
        two.world.crash(two.h108);
        if ms % 2 == 0 {
            two.world.crash(two.u112);
            two.world.run_for(s(1));
            two.world.start(two.u112);
        }
        two.world.run_for(s(12));
        let info = two.moves(two.h110, "116A1", "B", "130");
        assert_eq!(info.target.epoch, 2, "after {ms}");
        two.world.start(two.h108);
        two.until(s(20), |two| {
            two.seen(two.h108, "116A1") == gone(2)
                && two.seen(two.h130, "116A1") == owned(&["130"], 3)
                && two.exports(two.h130) == ["116A1"]
        });
    }
}

#[test]
fn an_assignment_takes_a_unit_from_its_owners() {
    let mut two = two(6);
    two.expect_to_leave(&["112", "114A", "114B", "116A1", "116A2", "116B1"]);
    let (fabric, unit) = (two.fabric, Guid(0x0300 << 112 | 3 << 64));
    let to: ClusterName = "B".parse().unwrap();
    two.world
        .with_fabric(fabric, |fabric, now| fabric.assign(now, unit, to).unwrap());
    two.until(s(5), |two| {
        let nobodys = ["112", "114A", "116A1", "116A2"]
            .iter()
            .all(|name| two.seen(two.h130, name) == owned(&[], 3));
        let left = ["112", "114A", "114B"].iter().all(|name| {
            let seen = two.seen(two.h108, name);
            seen.0 == "invalid" && seen.1.is_empty()
        }) && two.seen(two.h108, "116A1").1.is_empty();
        nobodys && left && two.exports(two.h108).is_empty()
    });
}
