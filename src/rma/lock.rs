//! What administrators do with the allocation lease: look at it, keep it, release it; and how it is
//! said who holds it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::agent::Agent;
use super::config::MAX_PENDING_REQUESTS;
use super::plan::error;
use super::report;
use super::request::{
    AdminError, AdminReply, Caller, ErrorKind, HolderInfo, LockInfo, NameInfo, VoterInfo,
};
use super::round::{Refusal, Round};
use super::timers::Timer;
use super::voters::{Asked, VoteTag};
use crate::lease::majority;
use crate::wire::message::{Holder, LeaseReply, LeaseRequest, LeaseVerb, Purpose};
use crate::wire::{EntityType, Guid, Kind, Status, Time, Wire};

/// How long voters are waited for when an administrator looks.
const QUERY_PATIENCE: Duration = Duration::from_secs(1);
/// The most voters that a line names.
const MAX_NAMED: usize = 8;

/// An administrator who waits for the lease.
#[derive(Debug, Clone)]
pub(super) struct Acquire {
    token: u64,
    pub(super) caller: Caller,
    pub(super) force: bool,
    /// Only to end whatever session there is.
    release: bool,
}

/// A look at the lease: every voter is asked what it knows.
#[derive(Debug)]
pub(super) struct Query {
    token: u64,
    /// To release what is found, by force or not.
    release: Option<(Caller, bool)>,
    open: BTreeSet<Guid>,
    answers: BTreeMap<Guid, Result<LeaseReply, Status>>,
}

/// Refuses one more administrator who waits than there may be.
fn check_waiting(count: usize) -> Result<(), AdminError> {
    if count < MAX_PENDING_REQUESTS {
        return Ok(());
    }
    Err(error(
        ErrorKind::Busy,
        format!("{MAX_PENDING_REQUESTS} administrators wait for the allocation lease; try again"),
    ))
}

/// A session in words: host, process, user, how long.
pub(super) fn described(holder: &Holder, held: Duration) -> String {
    let mut text = format!("host {}", shown(&holder.name, &holder.host.to_string()));
    if holder.process != 0 {
        text.push_str(&format!(", process {}", holder.process));
    }
    if !holder.user.is_empty() {
        text.push_str(&format!(", user {}", holder.user.escape_debug()));
    }
    text.push_str(&format!(
        ", for {}.{} s (term {})",
        held.as_secs(),
        held.subsec_millis() / 100,
        holder.term
    ));
    text
}

fn shown(name: &str, otherwise: &str) -> String {
    if name.is_empty() {
        otherwise.to_owned()
    } else {
        name.escape_debug().to_string()
    }
}

impl Agent {
    pub(super) fn lock_status(&mut self, now: Time, token: u64) -> Result<(), AdminError> {
        self.query(now, token, None)
    }

    /// Takes the lease for an administrator, until it is released.
    pub(super) fn lock_acquire(
        &mut self,
        now: Time,
        token: u64,
        caller: Caller,
        force: bool,
    ) -> Result<(), AdminError> {
        if !self.is_steady() {
            return Err(self.not_ready());
        }
        check_waiting(self.lease.acquiring.len())?;
        let seeker = caller.clone();
        self.lease.acquiring.push_back(Acquire {
            token,
            caller,
            force,
            release: false,
        });
        self.seek_lease(now, &seeker);
        Ok(())
    }

    /// Releases what an administrator of this host keeps; by force, what any host holds.
    pub(super) fn lock_release(
        &mut self,
        now: Time,
        token: u64,
        caller: Caller,
        force: bool,
    ) -> Result<(), AdminError> {
        if self.lease.kept.take().is_some() {
            self.lease_idle(now);
            self.lease_wanted(now);
            let info = self.lock_info(now, &BTreeMap::new(), true);
            self.reply(token, AdminReply::Lock(Box::new(info)));
            return Ok(());
        }
        if !self.is_steady() {
            return Err(self.not_ready());
        }
        self.query(now, token, Some((caller, force)))
    }

    /// Puts a question to every voter that answers.
    fn query(
        &mut self,
        now: Time,
        token: u64,
        release: Option<(Caller, bool)>,
    ) -> Result<(), AdminError> {
        check_waiting(self.queries.len())?;
        let request = LeaseRequest {
            verb: LeaseVerb::Query,
            force: false,
            holder: Holder {
                term: 0,
                host: self.config.guid,
                purpose: Purpose::Administrator,
                process: 0,
                name: self.config.name.clone(),
                user: String::new(),
            },
        };
        let id = self.next_query;
        self.next_query += 1;
        let mut open = self.ask_voters(now, Kind::Lease, &request.to_body(), Asked::Query(id));
        self.ask_own_voter(now, VoteTag::Query(id), &request);
        open.insert(self.config.guid);
        let query = Query {
            token,
            release,
            open,
            answers: BTreeMap::new(),
        };
        self.queries.insert(id, query);
        self.timers.set(Timer::LeaseQuery(id), now + QUERY_PATIENCE);
        Ok(())
    }

    pub(super) fn on_query_answer(
        &mut self,
        now: Time,
        voter: Guid,
        id: u64,
        answer: Result<LeaseReply, Status>,
    ) {
        let Some(query) = self.queries.get_mut(&id) else {
            return;
        };
        if query.open.remove(&voter) {
            query.answers.insert(voter, answer);
        }
        if query.open.is_empty() {
            self.query_over(now, id);
        }
    }

    /// All voters have answered, or have had their time.
    pub(super) fn query_over(&mut self, now: Time, id: u64) {
        self.timers.cancel(Timer::LeaseQuery(id));
        self.drop_commands(|asked| *asked == Asked::Query(id));
        let Some(query) = self.queries.remove(&id) else {
            return;
        };
        let info = self.lock_info(now, &query.answers, false);
        let token = query.token;
        let Some((caller, force)) = query.release else {
            return self.reply(token, AdminReply::Lock(Box::new(info)));
        };
        if self.lease.session(now).is_some() {
            // Nobody keeps it: it is for changes of this host, and ends with them.
            self.lease_wanted(now);
            let info = LockInfo {
                changed: true,
                ..info
            };
            return self.reply(token, AdminReply::Lock(Box::new(info)));
        }
        let found = query
            .answers
            .values()
            .filter_map(|answer| answer.as_ref().ok())
            .filter_map(|reply| Some((reply.holder.as_ref()?, reply)))
            .max_by_key(|(holder, reply)| (holder.term, reply.held_ms));
        match found {
            None => self.reply(token, AdminReply::Lock(Box::new(info))),
            Some(_) if force => {
                let seeker = caller.clone();
                self.lease.acquiring.push_back(Acquire {
                    token,
                    caller,
                    force,
                    release: true,
                });
                self.seek_lease(now, &seeker);
            }
            Some((holder, reply)) => {
                let who = described(holder, Duration::from_millis(reply.held_ms));
                let e = error(
                    ErrorKind::Locked,
                    format!(
                        "the allocation lease is held by {who}; release it there, or here with --force"
                    ),
                );
                self.reply(token, AdminReply::Error(e));
            }
        }
    }

    /// The lease is held: administrators who wait for it have it.
    pub(super) fn acquired(&mut self, now: Time) {
        let (mut keeps, mut ends) = (false, false);
        while let Some(acquire) = self.lease.acquiring.pop_front() {
            if acquire.release {
                let info = self.lock_info(now, &BTreeMap::new(), true);
                let info = LockInfo {
                    holder: None,
                    ..info
                };
                self.reply(acquire.token, AdminReply::Lock(Box::new(info)));
                ends = true;
                continue;
            }
            let changed = self.lease.kept.is_none();
            if changed {
                self.lease.kept = Some(acquire.caller);
                keeps = true;
            }
            let info = self.lock_info(now, &BTreeMap::new(), changed);
            self.reply(acquire.token, AdminReply::Lock(Box::new(info)));
        }
        let for_work = |(holder, ..): (&Holder, _, _)| holder.purpose == Purpose::Work;
        if keeps && self.lease.session(now).is_some_and(for_work) {
            // The voters learn what the session is for from now on.
            self.renew_lease(now);
        } else if ends {
            self.lease_wanted(now);
        }
    }

    pub(super) fn not_acquired(&mut self, e: &AdminError) {
        while let Some(acquire) = self.lease.acquiring.pop_front() {
            self.reply(acquire.token, AdminReply::Error(e.clone()));
        }
    }

    /// Why the lease could not be had.
    pub(super) fn lease_error(&self, round: &Round) -> AdminError {
        if let Some((holder, held, left)) = round.in_the_way() {
            let who = described(holder, held);
            let advice = match holder.purpose {
                Purpose::Administrator => format!(
                    "an administrator keeps it until `rma lock release` there, or {} s after rmad \
                     has stopped there; `rma lock acquire --force` takes it",
                    left.as_secs() + 1
                ),
                Purpose::Work => format!(
                    "it ends with the changes that are on their way there, or in {} s where that \
                     host is gone; try again",
                    left.as_secs() + 1
                ),
            };
            return error(
                ErrorKind::Locked,
                format!("the allocation lease is held by {who}; nothing was changed: {advice}"),
            );
        }
        let (answered, voters) = (round.answered(), round.voters);
        let failed = |r: &&Refusal| matches!(r, Refusal::Failed(_) | Refusal::Lost(_));
        let useless = round.refused.values().filter(failed).count();
        if answered - useless >= majority(voters) {
            return error(
                ErrorKind::Locked,
                "other hosts ask for the allocation lease at the same time; nothing was changed, \
                 try again",
            );
        }
        let mut silent: Vec<String> = self
            .voters()
            .into_iter()
            .filter(|guid| !round.granted.contains(guid) && !round.refused.contains_key(guid))
            .map(|guid| report::label(&self.table, guid))
            .collect();
        if silent.len() > MAX_NAMED {
            let more = silent.len() - MAX_NAMED;
            silent.truncate(MAX_NAMED);
            silent.push(format!("{more} more"));
        }
        let mut message = format!(
            "{answered} of {voters} hosts and I/O units of the cluster answered, and an allocation \
             needs more than half of them; nothing was changed"
        );
        if !silent.is_empty() {
            message.push_str("; no answer from ");
            message.push_str(&silent.join(", "));
        }
        for (guid, refusal) in &round.refused {
            let name = report::label(&self.table, *guid);
            match refusal {
                Refusal::Failed(status) => message.push_str(&format!("; {name} says: {status}")),
                Refusal::Lost(left) => message.push_str(&format!(
                    "; {name} has lost what it promised and grants nothing for {} s",
                    left.as_secs() + 1
                )),
                _ => {}
            }
        }
        message.push_str(" (`rma lock status`)");
        error(ErrorKind::NoMajority, message)
    }

    fn holder_info(&self, holder: &Holder, held: Duration, left: Duration) -> HolderInfo {
        let known = report::name_info(&self.table, holder.host);
        HolderInfo {
            host: if known.name.is_empty() {
                NameInfo {
                    name: holder.name.clone(),
                    ..known
                }
            } else {
                known
            },
            here: holder.host == self.config.guid,
            purpose: holder.purpose.name().to_owned(),
            process: holder.process,
            user: holder.user.clone(),
            term: holder.term,
            held_ms: held.as_millis() as u64,
            left_ms: left.as_millis() as u64,
        }
    }

    /// The lease as the voters' answers show it, or (without any) as this host's session is.
    fn lock_info(
        &self,
        now: Time,
        answers: &BTreeMap<Guid, Result<LeaseReply, Status>>,
        changed: bool,
    ) -> LockInfo {
        let all = self.voters();
        let mut sessions: BTreeMap<(u64, Guid), (usize, &LeaseReply)> = BTreeMap::new();
        let replies = || answers.values().filter_map(|answer| answer.as_ref().ok());
        for reply in replies() {
            if let Some(holder) = &reply.holder {
                let entry = sessions.entry((holder.term, holder.host));
                let (count, oldest) = entry.or_insert((0, reply));
                *count += 1;
                if reply.held_ms > oldest.held_ms {
                    *oldest = reply;
                }
            }
        }
        let of_majority = sessions
            .values()
            .find(|(count, _)| *count >= majority(all.len()))
            .and_then(|(_, reply)| Some((reply.holder.as_ref()?, *reply)))
            .map(|(holder, reply)| {
                let ms = Duration::from_millis;
                self.holder_info(holder, ms(reply.held_ms), ms(reply.left_ms))
            });
        let ours = self
            .lease
            .session(now)
            .map(|(holder, held, left)| self.holder_info(holder, held, left));
        let mut holder = ours.or(of_majority);
        if let (Some(info), Some(caller)) = (&mut holder, &self.lease.kept)
            && info.here
        {
            Purpose::Administrator.name().clone_into(&mut info.purpose);
            info.process = caller.process;
            info.user.clone_from(&caller.user);
        }
        let told = replies().map(|reply| reply.promised).max().unwrap_or(0);
        LockInfo {
            holder,
            changed,
            highest_term: told.max(self.known_term()),
            voter_count: all.len() as u64,
            majority: majority(all.len()) as u64,
            voters: if answers.is_empty() {
                Vec::new()
            } else {
                all.into_iter()
                    .map(|guid| self.voter_info(guid, answers.get(&guid)))
                    .collect()
            },
        }
    }

    fn voter_info(&self, guid: Guid, answer: Option<&Result<LeaseReply, Status>>) -> VoterInfo {
        let entity = if self.units.contains_key(&guid) {
            EntityType::Unit
        } else {
            EntityType::Host
        };
        let ms = Duration::from_millis;
        let reply = answer.and_then(|answer| answer.as_ref().ok());
        VoterInfo {
            voter: report::name_info(&self.table, guid),
            entity: entity.name().to_owned(),
            answer: match answer {
                None => "no answer".to_owned(),
                Some(Ok(_)) => Status::Ok.name().to_owned(),
                Some(Err(status)) => status.name().to_owned(),
            },
            promised: reply.map_or(0, |reply| reply.promised),
            left_ms: reply.map_or(0, |reply| reply.left_ms),
            holder: reply.and_then(|reply| {
                let holder = reply.holder.as_ref()?;
                Some(self.holder_info(holder, ms(reply.held_ms), ms(reply.left_ms)))
            }),
        }
    }
}
