//! Stories of the allocation lease in virtual time: who holds it, who is told so, and that a holder
//! who is stalled, cut off or dead is in nobody's way for long and can change nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rma::fabric::Policy;
use rma::rma::request::{AdminReply, AdminRequest, ErrorKind, LockInfo};
use rma::wire::message::{Holder, LeaseRequest, LeaseVerb, Purpose};
use rma::wire::{CommandId, Flags, Guid, Header, Kind, Mac, Wire};
use rma_simulator::converged::unconverged;
use rma_simulator::{NodeId, World};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

struct Cluster {
    world: World,
    hosts: Vec<NodeId>,
    unit: NodeId,
}

/// Hosts h0, h1, … and one unit u with devices d0 and d1.
fn cluster(seed: u64, hosts: usize) -> Cluster {
    let mut world = World::new(seed);
    world.add_fabric(Policy::AutoJoin);
    let hosts = (0..hosts)
        .map(|n| world.add_host(&format!("h{n}"), "A"))
        .collect();
    let unit = world.add_unit("u", "A", &[("c", &["d0", "d1"])]);
    world.start_all();
    let mut cluster = Cluster { world, hosts, unit };
    cluster.converge();
    cluster
}

impl Cluster {
    #[track_caller]
    fn converge(&mut self) {
        let well = self.world.run_until(s(10), |w| unconverged(w).is_none());
        assert!(well, "{:?}", unconverged(&self.world));
        assert_eq!(self.world.model.violations, Vec::<String>::new());
    }

    #[track_caller]
    fn allocate(&mut self, host: usize, to: &[&str]) {
        match self.world.allocate(self.hosts[host], "u", to) {
            AdminReply::Allocated(_) => {}
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn lock(&mut self, host: usize, request: AdminRequest) -> LockInfo {
        match self.world.admin(self.hosts[host], request) {
            AdminReply::Lock(info) => *info,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn status(&mut self, host: usize) -> LockInfo {
        self.lock(host, AdminRequest::LockStatus)
    }

    #[track_caller]
    fn acquire(&mut self, host: usize, force: bool) -> LockInfo {
        self.lock(host, AdminRequest::LockAcquire { force })
    }

    #[track_caller]
    fn release(&mut self, host: usize, force: bool) -> LockInfo {
        self.lock(host, AdminRequest::LockRelease { force })
    }

    #[track_caller]
    fn refused(&mut self, host: usize, request: AdminRequest, kind: ErrorKind, words: &[&str]) {
        let AdminReply::Error(e) = self.world.admin(self.hosts[host], request) else {
            panic!("it was not refused");
        };
        assert_eq!(e.kind, kind, "{e}");
        for word in words {
            assert!(e.message.contains(word), "'{word}' is not in: {e}");
        }
        assert!(!e.message.contains('\n'), "{e}");
    }

    fn holder(&mut self, host: usize) -> Option<String> {
        self.status(host).holder.map(|holder| holder.host.name)
    }

    fn term_of_unit(&self) -> u64 {
        let unit = self.world.unit(self.unit);
        unit.unit.as_ref().map_or(0, rma::unit::Unit::term)
    }

    fn isolate(&mut self, host: usize) {
        self.world.link(self.hosts[host], false);
    }
}

fn release_request() -> AdminRequest {
    AdminRequest::Release {
        target: "u".to_owned(),
        recursive: false,
    }
}

#[test]
fn an_allocation_takes_the_lease_and_lets_go_of_it_when_nothing_is_left_to_do() {
    let mut c = cluster(1, 2);
    c.allocate(0, &["h0"]);
    let info = c.status(1);
    let holder = info.holder.clone().expect("it is kept for a moment");
    assert_eq!(
        (&*holder.host.name, &*holder.purpose, &*holder.user),
        ("h0", "work", "root")
    );
    assert!(holder.process > 0 && !holder.here);
    assert_eq!((info.voter_count, info.majority), (3, 2));
    assert!(info.voters.iter().all(|v| v.answer == "ok"), "{info:#?}");
    // The term went into the register and into the table's stamp.
    let AdminReply::Table(table) = c.world.admin(c.hosts[1], AdminRequest::Table) else {
        panic!()
    };
    let row = table.rows.iter().find(|r| r.name == "u").unwrap();
    assert_eq!(
        (row.term, table.summary.stamp.term),
        (holder.term, holder.term)
    );
    c.world.run_for(s(3));
    assert_eq!(c.holder(1), None);
    assert_eq!(c.term_of_unit(), holder.term);
}

#[test]
fn a_series_of_allocations_is_one_session() {
    let mut c = cluster(2, 2);
    c.allocate(0, &["h0"]);
    let term = c.status(0).holder.unwrap().term;
    for n in 0..20 {
        c.world.run_for(ms(400));
        c.allocate(0, if n % 2 == 0 { &["h1"] } else { &["h0"] });
    }
    assert_eq!(c.status(0).holder.unwrap().term, term);
}

#[test]
fn a_host_that_has_nothing_to_do_hands_the_lease_over_at_once() {
    let mut c = cluster(3, 4);
    let mut longest = Duration::ZERO;
    for n in 0..12 {
        let begin = c.world.now();
        let to = format!("h{}", n % 3);
        c.allocate(n % 4, &[&to]);
        longest = longest.max(c.world.now().since(begin));
    }
    assert!(longest < ms(250), "{longest:?}");
    c.converge();
}

#[test]
fn hosts_that_ask_at_the_same_time_all_get_their_turn() {
    let mut c = cluster(4, 5);
    let hosts = c.hosts.clone();
    let tokens: Vec<(NodeId, u64)> = hosts
        .iter()
        .enumerate()
        .map(|(n, host)| {
            let request = AdminRequest::Allocate {
                target: "u".to_owned(),
                hosts: vec![format!("h{n}")],
                shared: false,
                recursive: true,
            };
            (*host, c.world.ask(*host, request))
        })
        .collect();
    c.world.run_for(s(5));
    for (host, token) in tokens {
        let reply = &c.world.host(host).replies[&token];
        assert!(matches!(reply, AdminReply::Allocated(_)), "{reply:?}");
    }
    c.converge();
}

/// A late release of a round that failed must not end what a later round was granted.
#[test]
fn no_two_rounds_ask_for_the_same_term() {
    let mut c = cluster(5, 3);
    c.acquire(2, false);
    c.world.capture = Some(Vec::new());
    c.refused(0, release_request(), ErrorKind::Locked, &["h2"]);
    c.refused(1, release_request(), ErrorKind::Locked, &["h2"]);
    let mut asked: BTreeMap<(Mac, Mac, u64), BTreeSet<CommandId>> = BTreeMap::new();
    for frame in c.world.capture.take().unwrap_or_default() {
        let (header, payload) = Header::parse(&frame.bytes, frame.service).unwrap();
        if header.kind != Kind::Lease || header.flags.contains(Flags::REPLY) {
            continue;
        }
        let request = LeaseRequest::from_body(payload).unwrap();
        if request.verb == LeaseVerb::Ask {
            let round = (frame.src, frame.dst, request.holder.term);
            asked.entry(round).or_default().insert(header.command);
        }
    }
    assert!(asked.len() > 6, "there were not several rounds: {asked:?}");
    for (round, commands) in asked {
        assert_eq!(commands.len(), 1, "{round:?}");
    }
}

#[test]
fn two_hosts_and_a_unit_have_a_majority_without_one_of_the_hosts() {
    let mut c = cluster(5, 2);
    c.world.crash(c.hosts[1]);
    c.allocate(0, &["h0"]);
    let info = c.status(0);
    let silent = info.voters.iter().find(|v| v.voter.name == "h1").unwrap();
    assert_eq!((&*silent.answer, silent.promised), ("no answer", 0));
    // Without the unit as well there is none; a unit that does not answer is named as such.
    c.world.run_for(s(10));
    c.world.link(c.unit, false);
    c.world.run_for(s(15));
    let set = AdminRequest::GranularitySet {
        granularity: "unit".to_owned(),
    };
    c.refused(
        0,
        set,
        ErrorKind::NoMajority,
        &[
            "1 of 3",
            "more than half",
            "host h1",
            "I/O unit u",
            "rma lock status",
        ],
    );
    c.refused(
        0,
        release_request(),
        ErrorKind::Unreachable,
        &["I/O unit u", "has not answered"],
    );
}

#[test]
fn a_second_allocation_application_is_told_who_keeps_the_lease() {
    let mut c = cluster(6, 3);
    let info = c.acquire(0, false);
    let holder = info.holder.unwrap();
    assert!(info.changed && holder.here && holder.purpose == "administrator");
    c.world.run_for(s(60));
    c.refused(
        1,
        release_request(),
        ErrorKind::Locked,
        &[
            "host h0",
            "process 101",
            "user root",
            "for 60.",
            "rma lock release",
            "--force",
        ],
    );
    c.refused(
        2,
        AdminRequest::LockAcquire { force: false },
        ErrorKind::Locked,
        &["host h0"],
    );
    c.refused(
        2,
        AdminRequest::LockRelease { force: false },
        ErrorKind::Locked,
        &["host h0", "--force"],
    );
    // On the host itself its own changes go on, and a second acquire changes nothing.
    c.allocate(0, &["h1"]);
    assert!(!c.acquire(0, false).changed);
    assert_eq!(c.status(1).holder.unwrap().term, holder.term);
    let info = c.release(0, false);
    assert!(info.changed && info.holder.is_none());
    c.allocate(1, &["h2"]);
    assert!(!c.release(2, true).changed || c.holder(2).is_none());
    c.converge();
}

#[test]
fn force_takes_the_lease_and_the_old_holder_notices() {
    let mut c = cluster(7, 3);
    let old = c.acquire(0, false).holder.unwrap();
    let new = c.acquire(1, true).holder.unwrap();
    assert!(new.term > old.term && new.here);
    c.world.run_for(s(3));
    let lost = |event: &rma::rma::request::WatchEvent| {
        let line = serde_json::to_string(event).unwrap();
        line.contains("lease-lost") && line.contains("host h1")
    };
    assert!(c.world.host(c.hosts[0]).events.iter().any(lost));
    c.refused(0, release_request(), ErrorKind::Locked, &["host h1"]);
    // By force it is also released.
    let info = c.release(2, true);
    assert!(info.changed && info.holder.is_none());
    c.world.run_for(s(1));
    assert_eq!(c.holder(0), None);
    c.allocate(0, &["h0"]);
    c.converge();
}

#[test]
fn a_dead_holder_is_in_nobodys_way_for_longer_than_its_time() {
    let mut c = cluster(8, 3);
    c.acquire(0, false);
    c.world.run_for(s(5));
    c.world.crash(c.hosts[0]);
    let begin = c.world.now();
    c.refused(1, release_request(), ErrorKind::Locked, &["host h0"]);
    while !matches!(
        c.world.allocate(c.hosts[1], "u", &["h1"]),
        AdminReply::Allocated(_)
    ) {
        c.world.run_for(ms(100));
    }
    let taken = c.world.now().since(begin);
    assert!(taken <= s(7), "{taken:?}");
}

#[test]
fn a_holder_that_is_cut_off_gives_up_before_its_time_and_changes_nothing_afterwards() {
    let mut c = cluster(9, 3);
    let old = c.acquire(0, false).holder.unwrap();
    c.isolate(0);
    c.world.run_for(ms(4_100));
    let agent = c.world.host(c.hosts[0]).agent.as_ref().unwrap();
    assert!(!agent.holds_lease(c.world.now()));
    c.world.run_for(s(3));
    c.allocate(1, &["h1"]);
    c.world.link(c.hosts[0], true);
    c.converge();
    let new = c.status(2).holder.unwrap();
    assert!(new.host.name == "h1" && new.term > old.term);
    assert_eq!(c.term_of_unit(), new.term);
}

#[test]
fn a_change_of_a_holder_that_was_overtaken_is_refused_by_the_unit_and_made_anew() {
    let mut c = cluster(10, 3);
    c.allocate(0, &["h0"]);
    let old = c.status(0).holder.unwrap().term;
    // Only the way between the holder and the unit is cut while it goes on to hold the lease.
    c.acquire(0, false);
    c.world.part(c.hosts[0], c.unit);
    c.world.run_for(s(5));
    let release = c.world.ask(c.hosts[0], release_request());
    c.acquire(1, true);
    c.release(1, false);
    c.allocate(1, &["h1"]);
    c.world.network.mend();
    c.world.run_for(s(10));
    // It was told so, or the change was made after the other one, under a newer term.
    let reply = &c.world.host(c.hosts[0]).replies[&release];
    assert!(
        matches!(reply, AdminReply::Error(_) | AdminReply::Allocated(_)),
        "{reply:?}"
    );
    assert!(c.term_of_unit() > old);
    c.converge();
}

#[test]
fn a_voter_that_restarts_goes_on_to_keep_its_promise() {
    let mut c = cluster(11, 3);
    let holder = c.acquire(0, false).holder.unwrap();
    // Every other voter loses power and comes back: none of them may grant it to h1 now.
    for node in [c.hosts[1], c.hosts[2], c.unit] {
        c.world.crash(node);
        c.world.start(node);
    }
    c.world.run_for(s(2));
    let unit = c.world.unit(c.unit).vote.as_ref().unwrap();
    assert_eq!(unit.holder.as_ref().map(|h| h.term), Some(holder.term));
    c.refused(1, release_request(), ErrorKind::Locked, &["host h0"]);
    // The holder has not lost it: its renewals are taken.
    c.world.run_for(s(10));
    assert_eq!(c.status(2).holder.unwrap().term, holder.term);
    c.release(0, false);
    c.allocate(1, &["h1"]);
    c.converge();
}

#[test]
fn a_voter_that_crashes_between_promise_and_answer_promises_nothing_twice() {
    let mut c = cluster(12, 2);
    c.world.disks.sync = ms(400);
    c.world.crash(c.hosts[1]);
    // The unit's promise is on its way to the disk when the power goes: done or not.
    let acquire = c
        .world
        .ask(c.hosts[0], AdminRequest::LockAcquire { force: false });
    c.world.run_for(ms(100));
    c.world.crash(c.unit);
    c.world.start(c.unit);
    c.world.start(c.hosts[1]);
    let answered = |w: &World| w.host(c.hosts[0]).replies.contains_key(&acquire);
    let unit = c.unit;
    assert!(c.world.run_until(s(10), answered), "it is asked again");
    let term = c.status(0).holder.map(|h| h.term);
    let stored = c.world.unit(unit).vote.clone().unwrap();
    assert!(term.is_none_or(|term| stored.promised <= term));
    c.world.disks.sync = Duration::ZERO;
    c.release(0, false);
    c.converge();
    c.allocate(1, &["h1"]);
    c.converge();
}

#[test]
fn a_voter_that_has_lost_its_memory_waits_for_the_others_session_to_end() {
    let mut c = cluster(13, 2);
    let holder = c.acquire(0, false).holder.unwrap();
    for node in [c.hosts[1], c.unit] {
        c.world.crash(node);
    }
    c.world.host_mut(c.hosts[1]).vote = None;
    c.world.forget_vote(c.unit);
    c.world.start(c.hosts[1]);
    c.world.start(c.unit);
    c.world.run_for(s(3));
    // Renewals were taken in; nobody else was let in between.
    assert_eq!(c.status(0).holder.unwrap().term, holder.term);
    c.refused(1, release_request(), ErrorKind::Locked, &["host h0"]);
    c.world.run_for(s(8));
    c.refused(1, release_request(), ErrorKind::Locked, &["host h0"]);
}

#[test]
fn a_host_that_restarts_is_not_kept_out_by_its_own_earlier_session() {
    let mut c = cluster(14, 2);
    c.acquire(0, false);
    c.world.crash(c.hosts[0]);
    c.world.start(c.hosts[0]);
    let steady = |w: &World| {
        let agent = w.host(c.hosts[0]).agent.as_ref();
        agent.is_some_and(rma::rma::Agent::is_steady)
    };
    assert!(c.world.run_until(s(5), steady));
    c.allocate(0, &["h0"]);
}

#[test]
fn settings_are_acknowledged_when_most_voters_have_them_and_survive_the_one_who_set_them() {
    let mut c = cluster(15, 3);
    // h1 hears nothing of it; h0 and the unit and h2 do.
    c.isolate(1);
    let set = |granularity: &str| AdminRequest::GranularitySet {
        granularity: granularity.to_owned(),
    };
    let AdminReply::Granularity(info) = c.world.admin(c.hosts[0], set("controller")) else {
        panic!()
    };
    assert!(info.changed);
    // Both hosts that know are gone for ever; the unit is left.
    c.world.run_for(s(15));
    c.world.crash(c.hosts[0]);
    c.world.crash(c.hosts[2]);
    c.world.link(c.hosts[1], true);
    let knows = |w: &World| {
        let agent = w.host(c.hosts[1]).agent.as_ref().unwrap();
        agent.table().settings().granularity.name() == "controller"
    };
    assert!(c.world.run_until(s(10), knows));
    // Alone with the unit it has no majority of the four.
    c.world.run_for(s(10));
    c.refused(1, set("device"), ErrorKind::NoMajority, &["2 of 4"]);
    c.world.start(c.hosts[2]);
    c.world.run_for(s(5));
    let AdminReply::Granularity(info) = c.world.admin(c.hosts[1], set("controller")) else {
        panic!()
    };
    assert!(!info.changed && info.granularity == "controller");
    assert!(matches!(
        c.world.admin(c.hosts[1], set("device")),
        AdminReply::Granularity(_)
    ));
}

#[test]
fn a_voter_that_cannot_store_its_promise_does_not_count() {
    let mut c = cluster(16, 2);
    c.world.disks.failure = 1.0;
    c.world.disks.spared = vec![c.hosts[0]];
    c.refused(
        0,
        release_request(),
        ErrorKind::NoMajority,
        &["not persisted", "I/O unit u"],
    );
    c.world.disks.failure = 0.0;
    c.allocate(0, &["h0"]);
    c.converge();
}

#[test]
fn a_term_from_far_ahead_is_refused_and_named() {
    let mut c = cluster(17, 2);
    c.allocate(0, &["h0"]);
    let known = c.term_of_unit();
    let hostile = |term: u64| LeaseRequest {
        verb: LeaseVerb::Ask,
        force: true,
        holder: Holder {
            term,
            host: Guid(0x0105_0000_0000_0000_0000_0000_0000_0000 + 1),
            purpose: Purpose::Work,
            process: 1,
            name: "h0".to_owned(),
            user: "mallory".to_owned(),
        },
    };
    let mut voter = rma::lease::Voter::new(Some(rma::lease::StoredVote::default()));
    let now = c.world.now();
    for term in [u64::MAX, known + (1 << 32) + 1] {
        voter.ask(now, (), &hostile(term), known);
        assert_eq!(
            voter.poll_answer().unwrap().1,
            Err(rma::wire::Status::FarTerm)
        );
    }
    voter.ask(now, (), &hostile(known + (1 << 32)), known);
    assert!(voter.poll_store(now).is_some());
    assert_eq!(Kind::Lease.is_service(), Some(false));
}
