//! The voter against a naive model: random requests, disks that fail, crashes, time that passes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{Answer, MAX_WAITING, StoredVote, TTL, Voter};
use crate::wire::message::{Holder, LeaseReply, LeaseRequest, LeaseVerb, Purpose};
use crate::wire::{Granularity, Guid, Settings, Status, TableStamp, Time};

fn holder(host: u8, term: u64) -> Holder {
    Holder {
        term,
        host: Guid(u128::from(host) + 1),
        purpose: Purpose::Work,
        process: 0,
        name: String::new(),
        user: String::new(),
    }
}

fn request(verb: LeaseVerb, host: u8, term: u64, force: bool) -> LeaseRequest {
    LeaseRequest {
        verb,
        force,
        holder: holder(host, term),
    }
}

fn settings(counter: u64) -> Settings {
    Settings {
        granularity: Granularity::Unit,
        stamp: TableStamp {
            term: 1,
            counter,
            writer: Guid(1),
        },
    }
}

fn at(ms: u64) -> Time {
    Time::ZERO + Duration::from_millis(ms)
}

/// The one answer that is there.
fn answer<T>(voter: &mut Voter<T>) -> Result<Answer, Status> {
    voter.poll_answer().expect("an answer").1
}

fn lease<T>(voter: &mut Voter<T>) -> LeaseReply {
    match answer(voter) {
        Ok(Answer::Lease(reply)) => reply,
        other => panic!("{other:?}"),
    }
}

/// Asks, stores, answers.
fn granted(voter: &mut Voter<()>, now: Time, request: &LeaseRequest) -> bool {
    voter.ask(now, (), request, 0);
    if let Some((version, _)) = voter.poll_store(now) {
        voter.stored(now, version, true);
    }
    lease(voter).granted
}

#[test]
fn a_grant_is_durable_before_it_is_answered() {
    let mut voter = Voter::new(Some(StoredVote::default()));
    voter.ask(at(0), (), &request(LeaseVerb::Ask, 1, 5, false), 0);
    assert!(voter.poll_answer().is_none());
    let (version, vote) = voter.poll_store(at(0)).unwrap();
    assert_eq!((vote.promised, vote.holder), (5, Some(holder(1, 5))));
    assert!(voter.poll_answer().is_none() && voter.poll_store(at(0)).is_none());
    // The power goes: who starts with what was written refuses others, and the same term again.
    let mut after = Voter::new(Some(StoredVote {
        promised: 5,
        holder: Some(holder(1, 5)),
        settings: Settings::default(),
    }));
    assert!(!granted(
        &mut after,
        at(100),
        &request(LeaseVerb::Ask, 2, 6, false)
    ));
    assert!(!granted(
        &mut after,
        at(100),
        &request(LeaseVerb::Ask, 2, 5, true)
    ));
    // Where it was not written, nobody was told.
    let mut before = Voter::new(Some(StoredVote::default()));
    assert!(granted(
        &mut before,
        at(100),
        &request(LeaseVerb::Ask, 2, 5, false)
    ));

    voter.stored(at(3), version, true);
    let reply = lease(&mut voter);
    assert!(reply.granted && reply.promised == 5 && reply.left_ms == 5_997);
}

#[test]
fn what_could_not_be_stored_is_not_granted_and_whoever_asked_gives_it_back() {
    let mut voter = Voter::new(Some(StoredVote::default()));
    voter.ask(at(0), (), &request(LeaseVerb::Ask, 1, 5, false), 0);
    let (version, _) = voter.poll_store(at(0)).unwrap();
    voter.stored(at(1), version, false);
    assert_eq!(answer(&mut voter), Err(Status::NotPersisted));
    assert_eq!(voter.deadline(), Some(at(1001)));
    assert!(!granted(
        &mut voter,
        at(2),
        &request(LeaseVerb::Ask, 2, 6, false)
    ));
    granted(&mut voter, at(2), &request(LeaseVerb::Release, 1, 5, false));
    assert!(granted(
        &mut voter,
        at(2),
        &request(LeaseVerb::Ask, 2, 6, false)
    ));
}

#[test]
fn one_that_has_lost_its_memory_grants_nothing_new_for_one_lifetime() {
    let mut voter = Voter::new(None);
    voter.tick(at(0));
    voter.ask(at(1), (), &request(LeaseVerb::Ask, 1, 5, false), 0);
    let reply = lease(&mut voter);
    assert!(!reply.granted && reply.holder.is_none() && reply.left_ms == 5_999);
    // Whoever holds the lease elsewhere goes on.
    assert!(granted(
        &mut voter,
        at(2),
        &request(LeaseVerb::Renew, 2, 9, false)
    ));
    assert!(!granted(
        &mut voter,
        at(3),
        &request(LeaseVerb::Ask, 1, 10, false)
    ));
    assert!(!granted(
        &mut voter,
        at(6_001),
        &request(LeaseVerb::Ask, 1, 10, false)
    ));
    assert!(granted(
        &mut voter,
        at(6_003),
        &request(LeaseVerb::Ask, 1, 10, false)
    ));
}

#[test]
fn a_release_lets_others_in_and_an_old_ask_comes_too_late() {
    let mut voter = Voter::new(Some(StoredVote::default()));
    assert!(granted(
        &mut voter,
        at(0),
        &request(LeaseVerb::Ask, 1, 5, false)
    ));
    assert!(!granted(
        &mut voter,
        at(1),
        &request(LeaseVerb::Release, 2, 9, false)
    ));
    assert!(!granted(
        &mut voter,
        at(2),
        &request(LeaseVerb::Release, 1, 4, false)
    ));
    assert!(granted(
        &mut voter,
        at(3),
        &request(LeaseVerb::Renew, 1, 5, false)
    ));
    granted(&mut voter, at(4), &request(LeaseVerb::Release, 1, 5, false));
    assert!(voter.holder(at(4)).is_none());
    granted(&mut voter, at(5), &request(LeaseVerb::Release, 2, 8, false));
    assert!(!granted(
        &mut voter,
        at(6),
        &request(LeaseVerb::Ask, 2, 8, false)
    ));
    assert!(granted(
        &mut voter,
        at(7),
        &request(LeaseVerb::Ask, 3, 9, false)
    ));
}

#[test]
fn a_session_granted_anew_is_not_answered_before_it_is_durable() {
    let mut voter: Voter<u8> = Voter::new(Some(StoredVote::default()));
    let ask = |verb, term| request(verb, 1, term, false);
    voter.ask(at(0), 1, &ask(LeaseVerb::Ask, 1), 0);
    let (first, _) = voter.poll_store(at(0)).unwrap();
    voter.ask(at(0), 2, &ask(LeaseVerb::Ask, 2), 0);
    voter.ask(at(0), 3, &ask(LeaseVerb::Release, 2), 0);
    voter.stored(at(0), first, false);
    let (second, vote) = voter.poll_store(at(0)).unwrap();
    assert_eq!(vote.holder, None);
    voter.ask(at(0), 4, &ask(LeaseVerb::Renew, 2), 0);
    voter.stored(at(0), second, true);
    while let Some((tag, answer)) = voter.poll_answer() {
        let granted = matches!(answer, Ok(Answer::Lease(reply)) if reply.granted);
        assert!(!granted, "{tag}");
    }
    let (third, vote) = voter.poll_store(at(0)).unwrap();
    assert_eq!(vote.holder.map(|h| h.term), Some(2));
    voter.stored(at(0), third, true);
    let (tag, answer) = voter.poll_answer().unwrap();
    assert_eq!(tag, 4);
    assert!(matches!(answer, Ok(Answer::Lease(reply)) if reply.granted));
}

#[test]
fn settings_only_grow_newer_and_are_durable_before_they_are_answered() {
    let mut voter = Voter::new(Some(StoredVote::default()));
    voter.settle(at(0), (), &settings(4), 1);
    assert!(voter.poll_answer().is_none());
    let (version, vote) = voter.poll_store(at(0)).unwrap();
    assert_eq!(vote.settings, settings(4));
    voter.settle(at(0), (), &settings(3), 1);
    assert!(
        voter.poll_answer().is_none(),
        "the newer ones are not durable yet"
    );
    voter.stored(at(1), version, true);
    for _ in 0..2 {
        assert_eq!(answer(&mut voter), Ok(Answer::Settings(settings(4))));
    }
    voter.settle(at(2), (), &settings(u64::MAX), 1);
    assert_eq!(answer(&mut voter), Err(Status::FarTerm));
    assert_eq!(voter.settings(), &settings(4));
}

#[test]
fn a_flood_of_requests_is_told_to_come_again() {
    let mut voter = Voter::new(Some(StoredVote::default()));
    for n in 0..=MAX_WAITING as u64 {
        voter.settle(at(0), n, &settings(n + 1), 1);
    }
    let (asker, answer) = voter.poll_answer().unwrap();
    assert_eq!((asker, answer), (MAX_WAITING as u64, Err(Status::Busy)));
}

/// Something that happens to a voter.
#[derive(Debug, Clone)]
enum Step {
    Ask {
        verb: LeaseVerb,
        host: u8,
        above: i8,
        force: bool,
    },
    Store(bool),
    Pass(u16),
    /// Power goes and comes; whether a write under way was done.
    Crash(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let verb = prop_oneof![
        6 => Just(LeaseVerb::Ask),
        3 => Just(LeaseVerb::Renew),
        2 => Just(LeaseVerb::Release),
        1 => Just(LeaseVerb::Query),
    ];
    prop_oneof![
        8 => (verb, 0..3_u8, -2..3_i8, prop::bool::weighted(0.1))
            .prop_map(|(verb, host, above, force)| Step::Ask { verb, host, above, force }),
        6 => prop::bool::weighted(0.9).prop_map(Step::Store),
        4 => (0..4000_u16).prop_map(Step::Pass),
        1 => any::<bool>().prop_map(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    /// What was answered `granted` binds: until its time is over, unless the holder released it or
    /// somebody took it by force, no other host is granted anything, and terms only go up. Crashes
    /// and failing disks change nothing of that.
    #[test]
    fn what_was_granted_binds(steps in vec(step(), 0..120)) {
        let mut disk = StoredVote::default();
        let mut voter: Voter<LeaseRequest> = Voter::new(Some(disk.clone()));
        let mut now = at(1);
        let mut writing: Option<(u64, StoredVote)> = None;
        // What was answered: until when it binds.
        let mut bound: Option<(Holder, Time)> = None;
        let mut highest = 0_u64;
        let mut asked_at: BTreeMap<(Guid, u64), Time> = BTreeMap::new();
        let mut forced: BTreeSet<(Guid, u64)> = BTreeSet::new();
        for step in steps {
            match step {
                Step::Ask { verb, host, above, force } => {
                    let term = highest.saturating_add_signed(i64::from(above)).max(1);
                    let term = if verb == LeaseVerb::Query { 0 } else { term };
                    let request = request(verb, host, term, force && verb == LeaseVerb::Ask);
                    // A host that has asked for a newer term has one session: it releases that, and
                    // with it the older one.
                    let asked = &request.holder;
                    let same = |h: &Holder| (h.host, h.term) == (asked.host, asked.term);
                    let newer = voter.holder(now).is_some_and(same);
                    let released =
                        |h: &Holder| same(h) || (newer && h.host == asked.host);
                    if verb == LeaseVerb::Release
                        && bound.as_ref().is_some_and(|(h, _)| released(h))
                    {
                        bound = None;
                    }
                    asked_at.insert((request.holder.host, term), now);
                    if request.force {
                        // Perhaps stored and never answered: it holds nevertheless.
                        forced.insert((request.holder.host, term));
                    }
                    voter.ask(now, request.clone(), &request, 0);
                }
                Step::Store(ok) => {
                    if let Some((version, vote)) = writing.take() {
                        if ok {
                            disk = vote;
                        }
                        voter.stored(now, version, ok);
                    }
                }
                Step::Pass(ms) => {
                    now = now + Duration::from_millis(ms.into());
                    voter.tick(now);
                }
                Step::Crash(done) => {
                    if let Some((_, vote)) = writing.take() && done {
                        disk = vote;
                    }
                    voter = Voter::new(Some(disk.clone()));
                    voter.tick(now);
                }
            }
            if writing.is_none() {
                writing = voter.poll_store(now);
            }
            while let Some((request, answer)) = voter.poll_answer() {
                let Ok(Answer::Lease(reply)) = answer else { continue };
                prop_assert!(reply.promised >= disk.promised);
                if !reply.granted {
                    continue;
                }
                let holder = &request.holder;
                prop_assert_eq!(disk.holder.as_ref().map(|h| (h.host, h.term)), Some((holder.host, holder.term)));
                prop_assert!(holder.term >= highest, "a term went down");
                if let Some((other, until)) = &bound {
                    let binds = now < *until && other.host != holder.host;
                    // By whom does not matter: whoever forced may have released it again.
                    let overrules = |(_, term): &(Guid, u64)| {
                        other.term < *term && *term <= holder.term
                    };
                    let by_force = forced.iter().any(overrules);
                    prop_assert!(!binds || by_force, "{other:?} until {until:?} and {holder:?}");
                    prop_assert!(other.host == holder.host || holder.term > other.term);
                }
                highest = highest.max(holder.term);
                let since = asked_at[&(holder.host, holder.term)];
                bound = Some((holder.clone(), since + TTL));
            }
        }
    }
}
