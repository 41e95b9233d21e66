//! Stories of extents in whole clusters in virtual time: carved and given away at one host, known at
//! all, exported where they are owned, and refused where they cannot be.

use std::time::Duration;

use rma::fabric::Policy;
use rma::rma::request::{AdminReply, AdminRequest, CarveInfo, ErrorKind, RowInfo};
use rma::wire::{EntityType, Guid};
use rma_simulator::converged::unconverged;
use rma_simulator::{NodeId, World};

const MIB: u64 = 1 << 20;

const fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

struct Cluster {
    world: World,
    h108: NodeId,
    h110: NodeId,
    u112: NodeId,
}

/// Two hosts, a unit with two devices, all shared by both hosts down to the controller, granularity
/// extent.
fn cluster(seed: u64) -> Cluster {
    let mut world = World::new(seed);
    world.add_fabric(Policy::AutoJoin);
    let h108 = world.add_host("108", "A");
    let h110 = world.add_host("110", "A");
    let u112 = world.add_unit("112", "A", &[("114A", &["116A1", "116A2"])]);
    let mut c = Cluster {
        world,
        h108,
        h110,
        u112,
    };
    c.world.start_all();
    c.converge(s(10));
    for target in ["112", "114A"] {
        c.own(target, &["108", "110"]);
    }
    c.granularity("extent");
    c.converge(s(2));
    c
}

impl Cluster {
    #[track_caller]
    fn converge(&mut self, patience: Duration) {
        let well = self
            .world
            .run_until(patience, |world| unconverged(world).is_none());
        assert!(well, "{:?}", unconverged(&self.world));
        assert_eq!(self.world.model.violations, Vec::<String>::new());
    }

    fn granularity(&mut self, level: &str) {
        let granularity = level.to_owned();
        let reply = self
            .world
            .admin(self.h108, AdminRequest::GranularitySet { granularity });
        assert!(matches!(reply, AdminReply::Granularity(_)), "{reply:?}");
    }

    #[track_caller]
    fn own(&mut self, target: &str, hosts: &[&str]) {
        let reply = self.world.allocate(self.h108, target, hosts);
        assert!(matches!(reply, AdminReply::Allocated(_)), "{reply:?}");
    }

    fn try_carve(
        &mut self,
        host: NodeId,
        device: &str,
        at: u64,
        len: u64,
        name: &str,
    ) -> AdminReply {
        let request = AdminRequest::Carve {
            device: device.to_owned(),
            offset: at,
            size: len,
            name: name.to_owned(),
        };
        self.world.admin(host, request)
    }

    #[track_caller]
    fn carve(&mut self, device: &str, at: u64, len: u64, name: &str) -> CarveInfo {
        match self.try_carve(self.h108, device, at, len, name) {
            AdminReply::Carved(info) => *info,
            other => panic!("{other:?}"),
        }
    }

    fn uncarve(&mut self, host: NodeId, extent: &str) -> AdminReply {
        let extent = extent.to_owned();
        self.world.admin(host, AdminRequest::Uncarve { extent })
    }

    /// 116A1 is carved into `left` of 108 and `right` of 110.
    fn carved(&mut self) {
        self.carve("116A1", 0, MIB / 4, "left");
        self.carve("116A1", MIB / 2, MIB / 4, "right");
        self.own("116A1", &["108", "110"]);
        self.own("left", &["108"]);
        self.own("right", &["110"]);
    }

    /// The names of what a host exports, and under which epoch.
    fn exports(&self, host: NodeId) -> Vec<(String, u64)> {
        let all = self.world.host(host).exports.iter().flatten();
        all.map(|d| (d.row.name.clone(), d.epoch.0)).collect()
    }

    fn rows(&mut self, host: NodeId) -> Vec<RowInfo> {
        match self.world.admin(host, AdminRequest::Table) {
            AdminReply::Table(table) => table.rows,
            other => panic!("{other:?}"),
        }
    }
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
    assert!(!e.message.contains('\n'), "{e}");
}

#[test]
fn two_hosts_get_a_range_of_one_device_each() {
    let mut c = cluster(1);
    c.carved();
    c.converge(s(1));
    assert_eq!(c.exports(c.h108), [("left".to_owned(), 2)]);
    assert_eq!(c.exports(c.h110), [("right".to_owned(), 2)]);
    let owned = &c.world.host(c.h110).exports.as_ref().unwrap()[0];
    assert_eq!(owned.row.entity, EntityType::Extent);
    assert_eq!(owned.row.size_bytes, MIB / 4);
    assert_eq!(owned.row.block_size, 512);
    assert_eq!(
        (owned.extent(), owned.device()),
        (owned.row.guid, owned.row.parent)
    );
    assert_eq!(
        (&*owned.unit_name, &*owned.controller_name),
        ("112", "114A")
    );
    // Both hosts show the same, in the order of the device.
    for host in [c.h108, c.h110] {
        let rows = c.rows(host);
        let extents: Vec<_> = rows
            .iter()
            .filter(|r| r.entity == "extent")
            .map(|r| (&*r.name, r.address.rsplit_once("/1/1").unwrap().1))
            .collect();
        let expected = [("left", "@0+262144"), ("right", "@524288+262144")];
        assert_eq!(extents, expected);
        let at = |name: &str| rows.iter().position(|r| r.name == name).unwrap();
        assert_eq!(at("left"), at("116A1") + 1);
        assert_eq!(at("116A2"), at("right") + 1);
    }
    // And by address it is found.
    let mac = c.world.mac(c.u112);
    let reply = c
        .world
        .allocate(c.h108, &format!("{mac}/1/1@524288+262144"), &["108"]);
    assert!(matches!(reply, AdminReply::Allocated(info) if info.changed));
    c.converge(s(1));
    assert_eq!(c.exports(c.h110), []);
    assert_eq!(c.exports(c.h108).len(), 2);
}

#[test]
fn what_cannot_be_carved_is_refused_with_one_line_and_changes_nothing() {
    let mut c = cluster(2);
    c.carved();
    c.converge(s(1));
    let digest = |c: &mut Cluster| match c.world.admin(c.h108, AdminRequest::Table) {
        AdminReply::Table(table) => table.summary.digest,
        other => panic!("{other:?}"),
    };
    let before = digest(&mut c);
    let h = c.h108;
    for (device, at, len, name, kind, words) in [
        (
            "116A1",
            MIB,
            512,
            "",
            ErrorKind::Extent,
            &["116A1", "1048576 bytes", "1048576+512"][..],
        ),
        (
            "116A1",
            MIB - 512,
            1024,
            "",
            ErrorKind::Extent,
            &["not inside"],
        ),
        (
            "116A1",
            256 * 1024 + 1,
            512,
            "",
            ErrorKind::Extent,
            &["blocks of 512"],
        ),
        (
            "116A1",
            0,
            512,
            "",
            ErrorKind::Extent,
            &["overlaps extent left at 0+262144"],
        ),
        (
            "116A1",
            0,
            MIB,
            "",
            ErrorKind::Extent,
            &["overlaps extent left"],
        ),
        (
            "116A1",
            512 * 1024,
            512,
            "",
            ErrorKind::Extent,
            &["overlaps extent right"],
        ),
        ("116A1", 0, 0, "", ErrorKind::BadRequest, &["0+0"]),
        (
            "116A1",
            u64::MAX,
            2,
            "",
            ErrorKind::BadRequest,
            &["no range"],
        ),
        (
            "116A1",
            300 * 1024,
            512,
            &"x".repeat(64),
            ErrorKind::BadRequest,
            &["64 bytes"],
        ),
        ("117", 0, 512, "", ErrorKind::Unknown, &["'117'"]),
        (
            "114A",
            0,
            512,
            "",
            ErrorKind::WrongType,
            &["114A", "cannot be carved"],
        ),
        ("left", 0, 512, "", ErrorKind::WrongType, &["extent left"]),
    ] {
        refused(c.try_carve(h, device, at, len, name), kind, words);
    }
    refused(
        c.uncarve(h, "left"),
        ErrorKind::Extent,
        &["left is dedicated to 108", "release"],
    );
    refused(c.uncarve(h, "116A1"), ErrorKind::WrongType, &["no extent"]);
    refused(c.uncarve(h, "middle"), ErrorKind::Unknown, &["'middle'"]);
    // The device as a whole is one host's only without the other's extents.
    refused(
        c.world.allocate(h, "116A1", &["108"]),
        ErrorKind::Hierarchy,
        &["extent right is dedicated to 110", "--recursive"],
    );
    refused(
        c.world.allocate(h, "left", &["109"]),
        ErrorKind::Unknown,
        &["'109'"],
    );
    c.converge(s(1));
    assert_eq!(digest(&mut c), before);
    // Where somebody owns the device as a whole it is not carved, nor the last extent removed.
    c.own("116A2", &["110"]);
    refused(
        c.try_carve(h, "116A2", 0, 512, ""),
        ErrorKind::Extent,
        &["116A2 is dedicated to 110 as a whole"],
    );
    assert!(matches!(
        c.world.release(h, "116A2", false),
        AdminReply::Allocated(_)
    ));
    c.carve("116A2", 0, 512, "only");
    c.own("116A2", &["110"]);
    refused(
        c.uncarve(h, "only"),
        ErrorKind::Extent,
        &["116A2 is dedicated to 110", "last extent"],
    );
    assert!(matches!(
        c.world.release(h, "116A2", false),
        AdminReply::Allocated(_)
    ));
    assert!(matches!(c.uncarve(h, "only"), AdminReply::Carved(info) if info.changed));
    refused(c.uncarve(h, "only"), ErrorKind::Invalid, &["only"]);
    c.converge(s(1));
}

#[test]
fn granularity_is_enforced_for_extents() {
    let mut c = cluster(3);
    c.granularity("device");
    refused(
        c.try_carve(c.h108, "116A1", 0, 512, ""),
        ErrorKind::Granularity,
        &["by device", "rma granularity set extent"],
    );
    c.granularity("extent");
    c.carve("116A1", 0, 512, "left");
    c.own("116A1", &["108", "110"]);
    // Coarser again: extents follow their device.
    c.granularity("device");
    refused(
        c.world.allocate(c.h108, "left", &["108"]),
        ErrorKind::Granularity,
        &["left", "by device"],
    );
    c.own("116A1", &["110"]);
    c.converge(s(1));
    assert_eq!(c.exports(c.h110), [("left".to_owned(), 2)]);
    assert_eq!(c.exports(c.h108), []);
}

#[test]
fn recursion_takes_extents_along() {
    let mut c = cluster(4);
    c.carved();
    let mut request = |recursive| {
        let request = AdminRequest::Allocate {
            target: "114A".to_owned(),
            hosts: vec!["110".to_owned()],
            shared: false,
            recursive,
        };
        c.world.admin(c.h110, request)
    };
    refused(request(false), ErrorKind::Hierarchy, &["116A1"]);
    let AdminReply::Allocated(info) = request(true) else {
        panic!()
    };
    let changed: Vec<_> = info.changes.iter().map(|c| &*c.row.name).collect();
    assert_eq!(changed, ["114A", "116A1", "left"]);
    c.converge(s(1));
    assert_eq!(c.exports(c.h108), []);
    assert_eq!(c.exports(c.h110), [("right".to_owned(), 2)]);
}

#[test]
fn a_carved_device_is_exported_as_a_whole_again_only_when_it_is_given_again() {
    let mut c = cluster(5);
    c.own("116A1", &["108"]);
    c.converge(s(1));
    assert_eq!(c.exports(c.h108), [("116A1".to_owned(), 1)]);
    assert!(matches!(
        c.world.release(c.h108, "116A1", false),
        AdminReply::Allocated(_)
    ));
    c.carve("116A1", 0, 4096, "left");
    c.own("116A1", &["108"]);
    c.own("left", &["108"]);
    c.converge(s(1));
    assert_eq!(c.exports(c.h108), [("left".to_owned(), 2)]);
    assert!(matches!(
        c.world.release(c.h108, "116A1", true),
        AdminReply::Allocated(_)
    ));
    assert!(matches!(c.uncarve(c.h110, "left"), AdminReply::Carved(_)));
    c.converge(s(1));
    assert_eq!(c.exports(c.h108), []);
    c.own("116A1", &["108"]);
    c.converge(s(1));
    assert_eq!(c.exports(c.h108), [("116A1".to_owned(), 5)]);
}

#[test]
fn a_host_that_was_away_learns_what_became_of_extents() {
    let mut c = cluster(6);
    c.carved();
    c.converge(s(1));
    c.world.crash(c.h110);
    assert!(matches!(
        c.world.release(c.h108, "right", false),
        AdminReply::Allocated(_)
    ));
    assert!(matches!(c.uncarve(c.h108, "right"), AdminReply::Carved(_)));
    c.carve("116A1", MIB / 2 + 512, 512, "right");
    c.own("right", &["110"]);
    c.world.start(c.h110);
    c.converge(s(10));
    let owned = &c.world.host(c.h110).exports.as_ref().unwrap();
    assert_eq!(owned.len(), 1);
    assert_eq!(owned[0].row.size_bytes, 512);
    // It comes up alone with the unit as well, and a crash of the unit changes nothing.
    c.world.crash(c.h108);
    c.world.crash(c.h110);
    c.world.crash(c.u112);
    for node in [c.u112, c.h110] {
        c.world.start(node);
    }
    c.world.run_for(s(12));
    c.world.start(c.h108);
    c.converge(s(10));
    assert_eq!(c.exports(c.h110), [("right".to_owned(), 2)]);
    assert_eq!(c.exports(c.h108), [("left".to_owned(), 2)]);
}

#[test]
fn extents_leave_and_return_with_their_device() {
    let mut c = cluster(7);
    c.carved();
    c.converge(s(1));
    let (controller, spec) = {
        let contents = &c.world.unit(c.u112).contents;
        let ((ioc, _), spec) = contents.devices.iter().next().unwrap();
        (*ioc, spec.clone())
    };
    c.world.remove_device(c.u112, controller.0, spec.iod.0);
    c.world.run_for(s(2));
    assert_eq!(c.exports(c.h108), []);
    refused(
        c.world.allocate(c.h108, "left", &["110"]),
        ErrorKind::Invalid,
        &["left", "no longer there"],
    );
    c.world.add_device(c.u112, controller.0, spec);
    c.converge(s(5));
    assert_eq!(c.exports(c.h108), [("left".to_owned(), 2)]);
}

#[test]
fn a_purged_extent_does_not_come_back_with_what_its_unit_told_before() {
    let mut c = cluster(9);
    for host in [c.h108, c.h110] {
        c.world.host_mut(host).intervals.purge_after = s(60);
        c.world.kill(host);
        c.world.start(host);
    }
    c.converge(s(10));
    c.carved();
    c.converge(s(1));
    // One host hears of the end of the extent from the other only.
    c.world.part(c.h110, c.u112);
    let released = c.world.release(c.h108, "right", false);
    assert!(matches!(released, AdminReply::Allocated(_)));
    assert!(matches!(c.uncarve(c.h108, "right"), AdminReply::Carved(_)));
    let gone = |world: &World| {
        let mut tables = world.hosts().filter_map(|(_, host)| host.agent.as_ref());
        tables.all(|agent| agent.table().rows().all(|row| row.name != "right"))
    };
    assert!(c.world.run_until(s(300), gone), "it is purged everywhere");
    // The unit lists something new, so that the host looks at all that it knows of it.
    c.world.remove_device(c.u112, 1, 2);
    c.world.network.mend();
    c.world.run_for(s(10));
    c.converge(s(10));
    assert!(gone(&c.world));
}

#[test]
fn two_administrators_carve_one_range_and_one_of_them_gets_it() {
    for seed in 0..6 {
        let mut c = cluster(100 + seed);
        let request = |name: &str| AdminRequest::Carve {
            device: "116A1".to_owned(),
            offset: 0,
            size: 4096,
            name: name.to_owned(),
        };
        let tokens = [
            (c.h108, c.world.ask(c.h108, request("a"))),
            (c.h110, c.world.ask(c.h110, request("b"))),
        ];
        let came = c.world.run_until(s(60), |world| {
            tokens
                .iter()
                .all(|(host, token)| world.host(*host).replies.contains_key(token))
        });
        assert!(came);
        let mut made = 0;
        for (host, token) in tokens {
            match c.world.host(host).replies[&token].clone() {
                AdminReply::Carved(info) => {
                    assert!(info.changed);
                    made += 1;
                }
                AdminReply::Error(e) => {
                    assert!(e.message.contains("overlaps extent"), "{e}");
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(made, 1);
        c.converge(s(2));
    }
}

#[test]
fn guids_of_extents_are_drawn() {
    let mut c = cluster(8);
    let mut drawn: Vec<Guid> = (0..4_u64)
        .map(|n| {
            c.carve("116A1", n * 512, 512, "")
                .extent
                .guid
                .parse()
                .unwrap()
        })
        .collect();
    drawn.sort_unstable();
    drawn.dedup();
    assert_eq!(drawn.len(), 4);
    let rows = c.rows(c.h110);
    assert!(
        rows.iter()
            .filter(|r| r.entity == "extent")
            .all(|r| r.name.is_empty())
    );
    c.converge(s(1));
}
