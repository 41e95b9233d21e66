//! This host's allocation session: asked of the voters, renewed, given up, released. One session
//! serves every change that an administrator of this host makes, one after the other.
//!
//! The term that more than half of the voters have granted goes into every change. Where the lease
//! is lost meanwhile, what is on its way is not taken back: the units' registers decide.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::agent::Agent;
use super::lock::{self, Acquire};
use super::request::{AdminError, Caller, WatchEvent};
use super::round::{HeldSession, Refusal, Round, Session};
use super::timers::Timer;
use super::voters::{Asked, VoteTag};
use crate::lease::{GIVE_UP, RENEW, is_far_term, majority};
use crate::wire::message::{Holder, LeaseReply, LeaseRequest, LeaseVerb, Purpose};
use crate::wire::{CommandId, Guid, Kind, Status, Time, Wire};

/// How long a round of questions to the voters may take.
const ROUND_PATIENCE: Duration = Duration::from_secs(1);
/// How long the lease is sought before an administrator is told who holds it.
pub(super) const SEEK_PATIENCE: Duration = Duration::from_secs(4);
/// How long a session without work is kept, so that a series of changes is quick.
const IDLE: Duration = Duration::from_secs(2);
/// How long an asker rests before it asks again, at first; it doubles, and chance shortens it.
const REST: Duration = Duration::from_millis(20);
/// How often an administrator's session must be found in the way before it is told.
const MIN_TRIES: u32 = 2;
/// How often the rest doubles.
const REST_DOUBLINGS: u32 = 4;

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Free,
    Asking(Round),
    /// Between two rounds.
    Resting,
    Held(Session),
}

/// All about this host's session.
#[derive(Debug, Default)]
pub(super) struct Lease {
    phase: Phase,
    /// The highest plausible term that a voter has told of.
    highest: u64,
    /// The highest term that this host has asked for. Each round asks for another one: the release that
    /// follows a round that failed may come late, and must not end what a later round was granted.
    asked: u64,
    next_round: u64,
    /// Since when the lease has been sought, and in how many rounds.
    seeking: Option<(Time, u32)>,
    /// Who is named in a session for work: who asked first.
    caller: Caller,
    /// The administrator who keeps the lease until it is released.
    pub(super) kept: Option<Caller>,
    /// Administrators who wait for it.
    pub(super) acquiring: VecDeque<Acquire>,
    /// Questions to voters on their way.
    pub(super) commands: BTreeMap<(Guid, CommandId), Asked>,
}

impl Lease {
    /// The term of the session that this host holds, else 0.
    pub(super) const fn term(&self) -> u64 {
        match &self.phase {
            Phase::Held(session) => session.holder.term,
            _ => 0,
        }
    }

    /// The session that this host holds, which ends now; a round for a new one goes on.
    fn take_session(&mut self) -> Option<Session> {
        match std::mem::take(&mut self.phase) {
            Phase::Held(session) => Some(session),
            other => {
                self.phase = other;
                None
            }
        }
    }

    /// The session that this host holds: who, for how long, and until when unless it is renewed.
    pub(super) fn session(&self, now: Time) -> Option<(&Holder, Duration, Duration)> {
        match &self.phase {
            Phase::Held(s) => Some((&s.holder, now.since(s.since), s.until.since(now))),
            _ => None,
        }
    }
}

impl Agent {
    /// The highest term that this host knows of, however it heard of it.
    pub(super) fn known_term(&self) -> u64 {
        self.lease
            .highest
            .max(self.voter.promised())
            .max(self.table.highest_stamp().term)
    }

    /// The term under which changes may be made now; `None` where this host does not hold the lease.
    pub(super) fn lease_term(&self, now: Time) -> Option<u64> {
        match &self.lease.phase {
            Phase::Held(session) if !session.is_over(now) => Some(session.holder.term),
            _ => None,
        }
    }

    /// The session that this host holds.
    pub fn lease_session(&self, now: Time) -> Option<HeldSession> {
        match &self.lease.phase {
            Phase::Held(session) if !session.is_over(now) => Some(HeldSession {
                term: session.holder.term,
                voters: session.voters,
                forced: session.forced,
            }),
            _ => None,
        }
    }

    /// Whether this host holds the allocation lease.
    pub fn holds_lease(&self, now: Time) -> bool {
        self.lease_term(now).is_some()
    }

    /// The same for something that is to begin now: not while another host waits for the lease.
    pub(super) fn open_term(&self, now: Time) -> Option<u64> {
        match &self.lease.phase {
            Phase::Held(session) if session.is_wanted => None,
            _ => self.lease_term(now),
        }
    }

    /// Whether something is being done under the lease, rather than waiting for it.
    fn is_lease_used(&self) -> bool {
        self.has_allocations_under_way() || self.is_settling()
    }

    /// Whether something here needs the lease or waits for it.
    fn has_lease_work(&self) -> bool {
        self.has_allocations() || !self.settling.is_empty() || !self.lease.acquiring.is_empty()
    }

    /// Something needs the lease: [`Agent::lease_ready`] follows, at once or later, or
    /// [`Agent::lease_failed`].
    pub(super) fn seek_lease(&mut self, now: Time, caller: &Caller) {
        match &self.lease.phase {
            Phase::Held(session) if !session.is_over(now) && !session.is_wanted => {
                self.lease_ready(now);
            }
            Phase::Free => {
                self.lease.caller = caller.clone();
                self.lease.seeking = Some((now, 0));
                self.ask_lease(now);
            }
            _ => {}
        }
    }

    /// The same for something that had it, and was overtaken by its loss.
    pub(super) fn seek_lease_again(&mut self, now: Time) {
        let caller = self.lease.caller.clone();
        self.seek_lease(now, &caller);
    }

    /// Begins a round for a new term.
    fn ask_lease(&mut self, now: Time) {
        let acquire = self.lease.acquiring.front();
        let force = acquire.is_some_and(|a| a.force);
        let caller = acquire.map_or(&self.lease.caller, |a| &a.caller);
        let purpose = if acquire.is_some() {
            Purpose::Administrator
        } else {
            Purpose::Work
        };
        let term = self.known_term().max(self.lease.asked).saturating_add(1);
        self.lease.asked = term;
        let request = LeaseRequest {
            verb: LeaseVerb::Ask,
            force,
            holder: Holder {
                term,
                host: self.config.guid,
                purpose,
                process: caller.process,
                name: self.config.name.clone(),
                user: caller.user.clone(),
            },
        };
        let round = self.begin_round(now, request);
        self.lease.phase = Phase::Asking(round);
        self.judge_round(now);
    }

    /// Puts a question to every voter that answers.
    fn begin_round(&mut self, now: Time, request: LeaseRequest) -> Round {
        self.drop_rounds();
        let id = self.lease.next_round;
        self.lease.next_round += 1;
        let voters = self.voters();
        let mut open: BTreeSet<Guid> =
            self.ask_voters(now, Kind::Lease, &request.to_body(), Asked::Round(id));
        self.ask_own_voter(now, VoteTag::Round(id), &request);
        open.insert(self.config.guid);
        self.timers.set(Timer::LeaseRound, now + ROUND_PATIENCE);
        Round {
            id,
            request,
            sent: now,
            voters: voters.len(),
            open,
            granted: BTreeSet::new(),
            refused: BTreeMap::new(),
        }
    }

    /// Gives up interest in the answers of earlier rounds.
    fn drop_rounds(&mut self) {
        self.drop_commands(|asked| matches!(asked, Asked::Round(_)));
    }

    fn round_mut(&mut self, id: u64) -> Option<&mut Round> {
        let round = match &mut self.lease.phase {
            Phase::Asking(round) => Some(round),
            Phase::Held(session) => session.renewal.as_mut(),
            _ => None,
        };
        round.filter(|round| round.id == id)
    }

    /// A voter has answered.
    pub(super) fn on_vote(
        &mut self,
        now: Time,
        voter: Guid,
        id: u64,
        answer: Result<LeaseReply, Status>,
    ) {
        let known = self.known_term();
        let answer = match answer {
            Ok(reply) if is_far_term(reply.promised, known) => {
                self.warn_far_term(voter, reply.promised);
                Err(Status::FarTerm)
            }
            other => other,
        };
        if let Ok(reply) = &answer {
            self.lease.highest = self.lease.highest.max(reply.promised);
            let settings = reply.settings;
            self.learn_settings(now, voter, &settings);
        }
        let own = self.config.guid;
        let Some(round) = self.round_mut(id) else {
            return;
        };
        if !round.open.remove(&voter) {
            return;
        }
        let refusal = match answer {
            Ok(reply) if reply.granted => {
                round.granted.insert(voter);
                return self.judge_round(now);
            }
            Ok(reply) => {
                let (held, left) = (
                    Duration::from_millis(reply.held_ms),
                    Duration::from_millis(reply.left_ms),
                );
                match reply.holder {
                    Some(holder) if holder.host != own => {
                        Refusal::Held(Box::new(holder), held, left)
                    }
                    None if reply.left_ms > 0 => Refusal::Lost(left),
                    _ => Refusal::Promised,
                }
            }
            Err(status) => Refusal::Failed(status),
        };
        round.refused.insert(voter, refusal);
        self.judge_round(now);
    }

    /// Goes on with the present round where its outcome is clear.
    fn judge_round(&mut self, now: Time) {
        match &mut self.lease.phase {
            Phase::Asking(round) if round.has_majority() => {
                let (request, sent) = (round.request.clone(), round.sent);
                let voters = round.voters;
                self.won(now, request, sent, voters);
            }
            Phase::Asking(round) if round.is_hopeless() => {
                // Too few are there: all that are shall be heard before that is said.
                let (voters, all_heard) = (round.voters, round.open.is_empty());
                if all_heard || self.voters_in_reach() >= majority(voters) {
                    self.round_failed(now);
                }
            }
            Phase::Held(session) => {
                let Some(round) = &session.renewal else {
                    return;
                };
                if round.has_majority() {
                    session.until = round.sent + GIVE_UP;
                    let next = round.sent + RENEW;
                    session.renewal = None;
                    let until = session.until;
                    self.timers.cancel(Timer::LeaseRound);
                    self.timers.set(Timer::LeaseRenew, next);
                    self.timers.set(Timer::LeaseEnd, until);
                } else if round.is_hopeless() {
                    self.renewal_failed(now);
                }
            }
            _ => {}
        }
    }

    fn won(&mut self, now: Time, request: LeaseRequest, sent: Time, voters: usize) {
        let until = sent + GIVE_UP;
        self.lease.phase = Phase::Held(Session {
            holder: request.holder,
            since: now,
            until,
            renewal: None,
            is_wanted: false,
            voters,
            forced: request.force,
        });
        self.lease.seeking = None;
        self.timers.cancel(Timer::LeaseRound);
        self.timers.set(Timer::LeaseRenew, sent + RENEW);
        self.timers.set(Timer::LeaseEnd, until);
        self.lease_ready(now);
    }

    /// The lease is held: what waits for it goes on.
    fn lease_ready(&mut self, now: Time) {
        self.acquired(now);
        self.next_settle(now);
        self.next_allocations(now);
        self.lease_idle(now);
    }

    /// A round for a new term has come to nothing: again later, or the reason is told.
    fn round_failed(&mut self, now: Time) {
        let Phase::Asking(round) = std::mem::take(&mut self.lease.phase) else {
            return;
        };
        self.timers.cancel(Timer::LeaseRound);
        self.drop_rounds();
        // Those that granted it, and those whose answer was lost.
        self.tell_release(now, &round.request.holder);
        let (since, tries) = self.lease.seeking.unwrap_or((now, 0));
        let kept = round
            .in_the_way()
            .is_some_and(|(holder, ..)| holder.purpose == Purpose::Administrator);
        // Seen once it may be about to end: its release is on its way.
        let kept = kept && tries >= MIN_TRIES;
        let out_of_reach = self.voters_in_reach() < majority(round.voters);
        if kept || out_of_reach || now.since(since) >= SEEK_PATIENCE {
            let e = self.lease_error(&round);
            self.lease.seeking = None;
            self.lease_failed(now, &e);
            return;
        }
        self.lease.seeking = Some((since, tries + 1));
        self.rest(now, tries);
    }

    /// Waits for a moment of chance, and asks again if it is still needed then.
    fn rest(&mut self, now: Time, tries: u32) {
        let longest = REST * (1 << tries.min(REST_DOUBLINGS));
        let nanos = longest.as_nanos() as u64;
        let rest = Duration::from_nanos(self.rng.u64(nanos / 4..=nanos));
        self.lease.phase = Phase::Resting;
        self.timers.set(Timer::LeaseRetry, now + rest);
    }

    fn lease_failed(&mut self, now: Time, e: &AdminError) {
        self.not_acquired(e);
        self.fail_queued_settles(e);
        self.fail_queued_allocations(now, e);
    }

    /// Nothing has needed the session for a while: it is handed back if that is still so.
    pub(super) fn session_idle(&mut self, now: Time) {
        if self.lease.kept.is_none() && !self.has_lease_work() {
            self.end_session(now);
        }
    }

    pub(super) fn on_lease_timer(&mut self, now: Time, timer: Timer) {
        match (timer, &mut self.lease.phase) {
            // Who has not answered by now does not count.
            (Timer::LeaseRound, Phase::Asking(round)) => {
                round.open.clear();
                self.judge_round(now);
            }
            (Timer::LeaseRound, Phase::Held(session)) => {
                if let Some(round) = &mut session.renewal {
                    round.open.clear();
                    self.judge_round(now);
                }
            }
            (Timer::LeaseRetry, Phase::Resting) => {
                self.lease.phase = Phase::Free;
                if self.has_lease_work() {
                    self.lease.seeking.get_or_insert((now, 0));
                    self.ask_lease(now);
                } else {
                    self.lease.seeking = None;
                }
            }
            (Timer::LeaseRenew, Phase::Held(_)) => self.renew_lease(now),
            (Timer::LeaseEnd, Phase::Held(session)) if session.is_over(now) => {
                self.lose_lease(now, "more than half of the voters have not answered");
            }
            _ => {}
        }
    }

    /// Asks all voters to go on granting the session.
    pub(super) fn renew_lease(&mut self, now: Time) {
        let Phase::Held(session) = &self.lease.phase else {
            return;
        };
        let mut holder = session.holder.clone();
        if let Some(caller) = &self.lease.kept {
            holder.purpose = Purpose::Administrator;
            holder.process = caller.process;
            holder.user.clone_from(&caller.user);
        } else {
            holder.purpose = Purpose::Work;
        }
        let request = LeaseRequest {
            verb: LeaseVerb::Renew,
            force: false,
            holder: holder.clone(),
        };
        let round = self.begin_round(now, request);
        if let Phase::Held(session) = &mut self.lease.phase {
            session.holder = holder;
            session.renewal = Some(round);
        }
        self.judge_round(now);
    }

    /// A renewal has come to nothing: again soon, unless newer sessions have overruled this one.
    fn renewal_failed(&mut self, now: Time) {
        let Phase::Held(session) = &mut self.lease.phase else {
            return;
        };
        let Some(round) = session.renewal.take() else {
            return;
        };
        self.timers.cancel(Timer::LeaseRound);
        let overruled = round
            .refused
            .values()
            .filter(|r| matches!(r, Refusal::Held(..) | Refusal::Promised))
            .count();
        if round.voters - overruled < majority(round.voters) {
            let why = match round.in_the_way() {
                Some((holder, held, _)) => {
                    format!("it has been taken by {}", lock::described(holder, held))
                }
                None => "newer sessions have been promised".to_owned(),
            };
            self.lose_lease(now, &why);
        } else {
            self.timers.set(Timer::LeaseRenew, now + REST * 5);
        }
    }

    /// This host does not hold the lease any more, whatever it was about to do.
    pub(super) fn lose_lease(&mut self, now: Time, why: &str) {
        let Some(session) = self.lease.take_session() else {
            return;
        };
        self.forget_session_timers();
        self.drop_rounds();
        // Where it still counts it shall be in nobody's way.
        self.tell_release(now, &session.holder);
        let kept = self.lease.kept.take().is_some();
        if kept || self.has_lease_work() {
            self.tell(WatchEvent::LeaseLost {
                term: session.holder.term,
                why: why.to_owned(),
            });
        }
        if self.has_lease_work() {
            self.lease.seeking = Some((now, 0));
            self.rest(now, 0);
        }
    }

    /// A unit knows of a newer session: this one is over.
    pub(super) fn overruled(&mut self, now: Time) {
        self.lose_lease(now, "a unit knows of a newer session");
    }

    /// Hands the lease back.
    pub(super) fn end_session(&mut self, now: Time) {
        let Some(session) = self.lease.take_session() else {
            return;
        };
        self.forget_session_timers();
        self.drop_rounds();
        self.tell_release(now, &session.holder);
        if self.has_lease_work() {
            self.lease.seeking = Some((now, 0));
            self.rest(now, 1);
        }
    }

    /// Hands the lease back, before the agent is closed. What is to be sent must be polled first.
    pub fn release_lease(&mut self, now: Time) {
        self.end_session(now);
    }

    fn forget_session_timers(&mut self) {
        for timer in [
            Timer::LeaseRound,
            Timer::LeaseRenew,
            Timer::LeaseEnd,
            Timer::LeaseIdle,
        ] {
            self.timers.cancel(timer);
        }
    }

    /// Something that needed the lease is over, or nothing did.
    pub(super) fn lease_idle(&mut self, now: Time) {
        let kept = self.lease.kept.is_some();
        let (busy, used) = (self.has_lease_work(), self.is_lease_used());
        match &self.lease.phase {
            Phase::Held(session) if !kept && !used && session.is_wanted => self.end_session(now),
            Phase::Held(_) if !kept && !busy => self.timers.set(Timer::LeaseIdle, now + IDLE),
            _ => {}
        }
    }

    /// Another host asks for the lease: it gets it as soon as nothing is on its way here. An
    /// administrator's is kept.
    pub(super) fn lease_wanted(&mut self, now: Time) {
        let used = self.is_lease_used();
        if self.lease.kept.is_some() {
            return;
        }
        if let Phase::Held(session) = &mut self.lease.phase {
            session.is_wanted = true;
            if !used {
                self.end_session(now);
            }
        }
    }

    /// This host's own voter has been asked: perhaps it has promised what ends our session.
    pub(super) fn check_overruled(&mut self, now: Time) {
        let Phase::Held(session) = &self.lease.phase else {
            return;
        };
        let term = session.holder.term;
        let other = self.voter.holder(now).filter(|h| h.term > term);
        if let Some(holder) = other {
            let why = format!(
                "it has been taken by {}",
                lock::described(holder, Duration::ZERO)
            );
            self.lose_lease(now, &why);
        }
    }
}
