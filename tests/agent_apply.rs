//! Stories of `rma apply` in whole clusters in virtual time: a desired cluster is checked as a whole, made
//! unit by unit, and finished by applying it again.

use std::time::Duration;

use rma::fabric::Policy;
use rma::rma::desired::Desired;
use rma::rma::request::{AdminReply, AdminRequest, ApplyInfo, ApplyState, ErrorKind, TableInfo};
use rma_simulator::converged::unconverged;
use rma_simulator::{NodeId, World};

const fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

struct Cluster {
    world: World,
    h108: NodeId,
    h110: NodeId,
    u118: NodeId,
}

fn cluster(seed: u64) -> Cluster {
    let mut world = World::new(seed);
    world.add_fabric(Policy::AutoJoin);
    let h108 = world.add_host("108", "A");
    let h110 = world.add_host("110", "A");
    world.add_unit("112", "A", &[("114A", &["116A1", "116A2"])]);
    let u118 = world.add_unit("118", "A", &[("120", &["122A"])]);
    let mut c = Cluster {
        world,
        h108,
        h110,

        u118,
    };
    c.world.start_all();
    c.converge(s(10));
    c
}

const GOOD: &str = r#"
granularity = "extent"

[[unit]]
row = "112"
ownership = "shared"
owners = ["108", "110"]

[[unit]]
row = "118"
ownership = "dedicated"
owners = ["110"]

[[controller]]
row = "112/114A"
ownership = "shared"
owners = ["110", "108"]

[[controller]]
row = "120"
ownership = "dedicated"
owners = ["110"]

[[device]]
row = "112/114A/116A1"
ownership = "shared"
owners = ["108", "110"]
extents = [
  { offset = "0", size = "256K", name = "left", ownership = "dedicated", owners = ["108"] },
  { offset = "512K", size = 262144, name = "right", ownership = "dedicated", owners = ["110"] },
  { offset = "1023K", size = "1K" },
]

[[device]]
row = "122A"
ownership = "dedicated"
owners = ["110"]
"#;

fn desired(text: &str) -> Desired {
    toml::from_str(text).expect("a good file")
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

    fn try_apply(&mut self, text: &str, dry_run: bool) -> AdminReply {
        let desired = desired(text);
        let request = AdminRequest::Apply { desired, dry_run };
        self.world.admin(self.h108, request)
    }

    #[track_caller]
    fn apply(&mut self, text: &str, dry_run: bool) -> ApplyInfo {
        match self.try_apply(text, dry_run) {
            AdminReply::Applied(info) => *info,
            other => panic!("{other:?}"),
        }
    }

    fn table(&mut self, host: NodeId) -> TableInfo {
        match self.world.admin(host, AdminRequest::Table) {
            AdminReply::Table(table) => *table,
            other => panic!("{other:?}"),
        }
    }

    /// Applies and is refused; the table is as it was.
    #[track_caller]
    fn refused(&mut self, text: &str, kind: ErrorKind, words: &[&str]) {
        let before = self.table(self.h108).summary;
        let AdminReply::Error(e) = self.try_apply(text, false) else {
            panic!("{text}");
        };
        assert_eq!(e.kind, kind, "{e}");
        for word in words {
            assert!(e.message.contains(word), "'{word}' is not in: {e}");
        }
        assert!(!e.message.contains('\n'), "{e}");
        assert_eq!(self.table(self.h108).summary, before);
    }

    fn exports(&self, host: NodeId) -> Vec<String> {
        let all = self.world.host(host).exports.iter().flatten();
        all.map(|d| d.row.name.clone()).collect()
    }
}

#[test]
fn a_file_makes_a_cluster_and_applying_it_again_changes_nothing() {
    let mut c = cluster(1);
    let before = c.table(c.h108).summary;
    let dry = c.apply(GOOD, true);
    assert!(dry.dry_run && dry.changed);
    let level = dry.granularity.as_ref().unwrap();
    assert_eq!((&*level.before, &*level.after), ("device", "extent"));
    assert!(dry.units.iter().all(|u| u.state == ApplyState::Left));
    assert_eq!(c.table(c.h108).summary, before, "a dry run changes nothing");

    let made = c.apply(GOOD, false);
    assert!(
        made.units
            .iter()
            .all(|u| u.state == ApplyState::Done && u.error.is_none())
    );
    let acts = |info: &ApplyInfo| -> Vec<String> {
        let all = info.units.iter().flat_map(|u| &u.changes);
        all.map(|c| format!("{} {} {}", c.act, c.name, c.after.ownership))
            .collect()
    };
    assert_eq!(acts(&made), acts(&dry), "what the dry run said");
    let mut names: Vec<&str> = made.units.iter().map(|u| &*u.unit.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["112", "118"]);
    let all = acts(&made);
    for expected in [
        "own 112 shared",
        "own 116A1 shared",
        "carve left dedicated",
        "carve right dedicated",
        "carve  unallocated",
        "own 122A dedicated",
    ] {
        assert!(all.iter().any(|act| act == expected), "{expected}: {all:?}");
    }
    c.converge(s(1));
    assert_eq!(c.exports(c.h108), ["left"]);
    let mut exports = c.exports(c.h110);
    exports.sort_unstable();
    assert_eq!(exports, ["122A", "right"]);

    let again = c.apply(GOOD, false);
    assert!(!again.changed && again.units.is_empty());
    // What is exported is what there is, from either host.
    for host in [c.h108, c.h110] {
        let text = toml::to_string(&Desired::of(&c.table(host))).unwrap();
        assert!(!c.apply(&text, false).changed, "{text}");
        let json = serde_json::to_string(&Desired::of(&c.table(host))).unwrap();
        let read: Desired = serde_json::from_str(&json).unwrap();
        assert_eq!(read, desired(&text));
    }
}

#[test]
fn a_file_changes_what_it_names_and_nothing_else() {
    let mut c = cluster(2);
    c.apply(GOOD, false);
    // Another owner and another name; the third extent is left out, and so is removed.
    let text = r#"
[[device]]
row = "116A1"
ownership = "shared"
owners = ["108", "110"]
extents = [
  { offset = 0, size = "256K", name = "first", ownership = "dedicated", owners = ["110"] },
  { offset = "512K", size = "256K", name = "right", ownership = "dedicated", owners = ["110"] },
]
"#;
    let info = c.apply(text, false);
    let changes = &info.units[0].changes;
    let mut acts: Vec<_> = changes.iter().map(|c| (&*c.act, &*c.name)).collect();
    acts.sort_unstable();
    assert_eq!(acts, [("rename", "first"), ("uncarve", "")]);
    c.converge(s(1));
    assert_eq!(c.exports(c.h108), Vec::<String>::new());
    // Without the key the extents stay.
    let text = "[[device]]\nrow = \"122A\"\nownership = \"unallocated\"\n";
    let info = c.apply(text, false);
    assert_eq!(info.units.len(), 1);
    assert_eq!(info.units[0].unit.name, "118");
    c.converge(s(1));
    let extents = c.table(c.h110).rows;
    let valid = |r: &&rma::rma::request::RowInfo| r.entity == "extent" && r.state == "valid";
    assert_eq!(extents.iter().filter(valid).count(), 2);
}

#[test]
fn rows_below_follow_by_the_granularity_that_the_file_sets() {
    let mut c = cluster(3);
    let text = r#"
granularity = "unit"
[[unit]]
row = "118"
ownership = "dedicated"
owners = ["108"]
"#;
    let info = c.apply(text, false);
    let names: Vec<_> = info.units[0].changes.iter().map(|c| &*c.name).collect();
    assert_eq!(names, ["118", "120", "122A"]);
    c.converge(s(1));
    assert_eq!(c.exports(c.h108), ["122A"]);
}

#[test]
fn a_file_with_a_mistake_changes_nothing_and_names_it_in_one_line() {
    let mut c = cluster(4);
    let device = |row: &str, rest: &str| {
        format!("granularity = \"extent\"\n[[device]]\nrow = \"{row}\"\n{rest}\n")
    };
    let free = "ownership = \"unallocated\"";
    let with = |extents: &str| device("116A1", &format!("{free}\nextents = [{extents}]"));
    for (text, kind, words) in [
        (device("116A9", free), ErrorKind::Unknown, &["'116A9'"][..]),
        (
            device("112", free),
            ErrorKind::WrongType,
            &["I/O unit 112", "I/O device"],
        ),
        (
            device("116A1", "ownership = \"dedicated\"\nowners = [\"109\"]"),
            ErrorKind::Unknown,
            &["'109'"],
        ),
        (
            device(
                "116A1",
                "ownership = \"dedicated\"\nowners = [\"108\", \"110\"]",
            ),
            ErrorKind::BadRequest,
            &["'116A1'", "one host"],
        ),
        (
            device("116A1", "ownership = \"shared\""),
            ErrorKind::BadRequest,
            &["'116A1'", "name the hosts"],
        ),
        (
            device("116A1", "ownership = \"unallocated\"\nowners = [\"108\"]"),
            ErrorKind::BadRequest,
            &["'116A1'"],
        ),
        (
            device("116A1", "ownership = \"dedicated\"\nowners = [\"108\"]"),
            ErrorKind::Hierarchy,
            &["116A1", "114A"],
        ),
        (
            "granularity = \"block\"".to_owned(),
            ErrorKind::BadRequest,
            &["'block'", "extent"],
        ),
        (
            format!(
                "{}{}",
                device("116A1", free),
                device("112/114A/116A1", free).replace("granularity = \"extent\"\n", "")
            ),
            ErrorKind::BadRequest,
            &["116A1", "twice"],
        ),
        (
            with("{ offset = 0, size = \"2M\" }"),
            ErrorKind::Extent,
            &["116A1", "not inside"],
        ),
        (
            with("{ offset = 0, size = 0 }"),
            ErrorKind::BadRequest,
            &["no range"],
        ),
        (
            with("{ offset = 1, size = 512 }"),
            ErrorKind::Extent,
            &["blocks of 512"],
        ),
        (
            with(
                "{ offset = 0, size = 1024, name = \"a\" }, { offset = 512, size = 1024, name = \"b\" }",
            ),
            ErrorKind::Extent,
            &["overlaps extent a"],
        ),
        (
            with(
                "{ offset = 0, size = 512, name = \"a\" }, { offset = 0, size = 512, name = \"b\" }",
            ),
            ErrorKind::Extent,
            &["overlaps extent"],
        ),
        (
            with("{ offset = 0, size = 512, name = \"a\" }")
                .replace("granularity = \"extent\"\n", ""),
            ErrorKind::Granularity,
            &["by device", "granularity"],
        ),
        (
            // One good unit and one bad one: neither changes.
            "[[unit]]\nrow = \"118\"\nownership = \"dedicated\"\nowners = [\"108\"]\n\
             [[controller]]\nrow = \"114A\"\nownership = \"dedicated\"\nowners = [\"108\"]\n"
                .to_owned(),
            ErrorKind::Hierarchy,
            &["114A"],
        ),
    ] {
        c.refused(&text, kind, words);
    }
    c.apply(GOOD, false);
    // An extent that somebody owns is not removed, nor a device taken from below its extents' owners.
    c.refused(
        &with("").replace(free, "ownership = \"shared\"\nowners = [\"108\", \"110\"]"),
        ErrorKind::Extent,
        &["is dedicated to 1", "release it first"],
    );
    c.refused(
        &device("116A1", "ownership = \"dedicated\"\nowners = [\"110\"]"),
        ErrorKind::Hierarchy,
        &["left"],
    );
    c.world.crash(c.u118);
    c.world.run_for(s(8));
    let text = "[[device]]\nrow = \"122A\"\nownership = \"unallocated\"\n\
                [[device]]\nrow = \"116A2\"\nownership = \"dedicated\"\nowners = [\"108\"]\n";
    c.refused(
        text,
        ErrorKind::Unreachable,
        &["118", "nothing was changed"],
    );
}

#[test]
fn a_unit_that_dies_half_way_is_named_and_applying_again_finishes() {
    let mut c = cluster(5);
    let token = {
        let request = AdminRequest::Apply {
            desired: desired(GOOD),
            dry_run: false,
        };
        c.world.part(c.h108, c.u118);
        c.world.part(c.u118, c.h108);
        c.world.ask(c.h108, request)
    };
    let h108 = c.h108;
    let came = c
        .world
        .run_until(s(60), |world| world.host(h108).replies.contains_key(&token));
    assert!(came);
    let AdminReply::Applied(info) = c.world.host(h108).replies[&token].clone() else {
        panic!("{:?}", c.world.host(h108).replies[&token]);
    };
    let state = |name: &str| {
        let unit = info.units.iter().find(|u| u.unit.name == name).unwrap();
        (unit.state, unit.error.clone())
    };
    assert_eq!(state("112"), (ApplyState::Done, None));
    let (left, why) = state("118");
    assert_eq!(left, ApplyState::Left);
    assert!(why.unwrap().contains("118"));
    c.world.network.mend();
    c.world.run_for(s(5));
    c.converge(s(20));
    let rest = c.apply(GOOD, false);
    assert!(rest.granularity.is_none());
    let names: Vec<_> = rest
        .units
        .iter()
        .map(|u| (&*u.unit.name, u.state))
        .collect();
    assert!(
        names.is_empty() || names == [("118", ApplyState::Done)],
        "{names:?}"
    );
    c.converge(s(2));
    assert!(!c.apply(GOOD, false).changed);
}

#[test]
fn of_two_applies_at_once_none_silently_overrules_the_other() {
    for seed in 0..6 {
        let mut c = cluster(50 + seed);
        c.apply(GOOD, false);
        c.converge(s(1));
        let give = |host: &str| {
            let text = format!(
                "[[device]]\nrow = \"116A2\"\nownership = \"dedicated\"\nowners = [\"{host}\"]\n"
            );
            AdminRequest::Apply {
                desired: desired(&text),
                dry_run: false,
            }
        };
        let asked = [
            (c.h108, c.world.ask(c.h108, give("108"))),
            (c.h110, c.world.ask(c.h110, give("110"))),
        ];
        let came = c.world.run_until(s(60), |world| {
            asked
                .iter()
                .all(|(host, token)| world.host(*host).replies.contains_key(token))
        });
        assert!(came);
        c.converge(s(2));
        let mut done = Vec::new();
        for (host, token) in asked {
            match c.world.host(host).replies[&token].clone() {
                AdminReply::Applied(info) => match info.units[0].error.clone() {
                    None => done.push(info.units[0].changes[0].epoch),
                    Some(e) => assert!(e.contains("116A2"), "{e}"),
                },
                AdminReply::Error(e) => assert!(e.message.lines().count() == 1, "{e}"),
                other => panic!("{other:?}"),
            }
        }
        // Made one after the other, or only one of them.
        assert!(!done.is_empty());
        done.dedup();
        assert!(done.len() == 1 || done[0] != done[1], "{done:?}");
    }
}
