//! A voter: judges what it is asked, has it stored, answers.

use std::collections::VecDeque;
use std::time::Duration;

use super::{StoredVote, TTL, is_far_stamp, is_far_term};
use crate::planted::{self, Bug};
use crate::wire::message::{Holder, LeaseReply, LeaseRequest, LeaseVerb};
use crate::wire::{Guid, Settings, Status, Time, Wire};

/// The most answers that wait for the disk; a request beyond is answered busy.
pub const MAX_WAITING: usize = 4096;
/// How long what nobody waits for may stay unstored.
const STORE_DELAY: Duration = Duration::from_millis(200);
/// How long a failed store rests.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// What a voter answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Answer {
    /// To a request about the lease.
    Lease(LeaseReply),
    /// To settings that it was told.
    Settings(Settings),
}

impl Answer {
    /// The bytes of the answer's body.
    pub fn to_body(&self) -> Vec<u8> {
        match self {
            Self::Lease(reply) => reply.to_body(),
            Self::Settings(settings) => settings.to_body(),
        }
    }
}

/// A session that was granted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Grant {
    holder: Holder,
    since: Time,
    /// Until when every other host is refused.
    until: Time,
    /// The version with which it is durable.
    version: u64,
}

/// When the voter has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Start {
    /// Nothing has been asked yet.
    Before,
    /// Since this moment.
    At(Time),
}

/// What waits until its version is durable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Waiting<T> {
    version: u64,
    tag: T,
    /// The session that is granted with it; `None`: settings are kept with it.
    granted: Option<Holder>,
}

/// One voter of the cluster. `T` names who asked, for the answer.
///
/// After each call that takes `now`, poll [`Voter::poll_store`] and [`Voter::poll_answer`] until both
/// give nothing, and call [`Voter::tick`] when [`Voter::deadline`] has come. It is a plain value, so
/// that tools/model can look at all the ways it can go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Voter<T> {
    promised: u64,
    settings: Settings,
    grant: Option<Grant>,
    /// What it found stored; in force from the first moment that it is told of.
    found: Option<Holder>,
    /// It does not know what it has promised.
    is_lost: bool,
    start: Start,
    /// Counts the changes of what is to be stored.
    version: u64,
    /// The newest version that is durable.
    durable: u64,
    /// The version on its way to the disk.
    storing: Option<u64>,
    /// The version with which the settings changed last.
    settled: u64,
    /// When what nobody waits for is stored.
    store_at: Option<Time>,
    waiting: VecDeque<Waiting<T>>,
    answers: VecDeque<(T, Result<Answer, Status>)>,
}

impl<T> Voter<T> {
    /// A voter with what it has stored: `None` where that was lost.
    pub fn new(stored: Option<StoredVote>) -> Self {
        let is_lost = stored.is_none();
        let stored = stored.filter(|_| !planted::is(Bug::VoteForgotten));
        let stored = stored.unwrap_or_default();
        Self {
            promised: stored.promised,
            settings: stored.settings,
            grant: None,
            found: stored.holder,
            is_lost,
            start: Start::Before,
            version: 0,
            durable: 0,
            storing: None,
            settled: 0,
            store_at: None,
            waiting: VecDeque::new(),
            answers: VecDeque::new(),
        }
    }

    /// The highest term that it has promised, durable or not.
    pub const fn promised(&self) -> u64 {
        self.promised
    }

    /// The settings that it keeps, durable or not.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The session in force.
    pub fn holder(&self, now: Time) -> Option<&Holder> {
        let grant = self.grant.as_ref().filter(|g| now < g.until);
        grant.map(|g| &g.holder)
    }

    fn begin(&mut self, now: Time) {
        if self.start == Start::Before {
            self.start = Start::At(now);
            self.grant = self.found.take().map(|holder| Grant {
                holder,
                since: now,
                until: now + TTL,
                version: 0,
            });
        }
    }

    /// Until when it grants nobody a new term, because it does not know what it has promised.
    fn grace(&self, now: Time) -> Option<Time> {
        let Start::At(start) = self.start else {
            return None;
        };
        let until = start + TTL;
        (self.is_lost && now < until).then_some(until)
    }

    /// Whether something keeps a session of `host` from being granted.
    fn is_blocked(&self, now: Time, host: Guid) -> bool {
        self.holder(now).is_some_and(|holder| holder.host != host)
    }

    /// Takes a request about the lease. `floor` is the highest term that this voter's registers or
    /// table have seen.
    pub fn ask(&mut self, now: Time, tag: T, request: &LeaseRequest, floor: u64) {
        self.begin(now);
        let asked = &request.holder;
        self.promised = self.promised.max(floor);
        if is_far_term(asked.term, self.promised) {
            self.answers.push_back((tag, Err(Status::FarTerm)));
            return;
        }
        let same = self
            .grant
            .as_ref()
            .is_some_and(|g| (g.holder.host, g.holder.term) == (asked.host, asked.term));
        let granted = match request.verb {
            LeaseVerb::Query => false,
            LeaseVerb::Ask if same && asked.term == self.promised => self.go_on(now, asked),
            LeaseVerb::Ask => {
                let open = request.force
                    || (!self.is_blocked(now, asked.host) && self.grace(now).is_none());
                open && asked.term > self.promised && self.grant(now, asked)
            }
            LeaseVerb::Renew if same && asked.term == self.promised => self.go_on(now, asked),
            LeaseVerb::Renew => {
                // One term is one host's, also when its time is over here.
                let taken = |g: &Grant| g.holder.host != asked.host && g.holder.term >= asked.term;
                let open =
                    !self.is_blocked(now, asked.host) && !self.grant.as_ref().is_some_and(taken);
                open && asked.term >= self.promised && self.grant(now, asked)
            }
            LeaseVerb::Release => {
                self.release(now, asked.term, same);
                false
            }
        };
        if !granted {
            let reply = self.reply(now, None);
            self.answers.push_back((tag, Ok(Answer::Lease(reply))));
        } else if self.waiting.len() >= MAX_WAITING {
            self.answers.push_back((tag, Err(Status::Busy)));
        } else {
            // What the grant rests on is durable, or will be.
            self.waiting.push_back(Waiting {
                version: self.version,
                tag,
                granted: Some(asked.clone()),
            });
            self.answer_waiting(now);
        }
    }

    fn go_on(&mut self, now: Time, holder: &Holder) -> bool {
        let changed = self.grant.as_mut().is_some_and(|grant| {
            grant.until = now + TTL;
            let before = std::mem::replace(&mut grant.holder, holder.clone());
            before != *holder
        });
        if changed {
            // What for, and for whom: nobody needs to wait for that.
            self.store_later(now);
        }
        true
    }

    fn grant(&mut self, now: Time, holder: &Holder) -> bool {
        self.promised = holder.term;
        self.version += 1;
        self.grant = Some(Grant {
            holder: holder.clone(),
            since: now,
            until: now + TTL,
            version: self.version,
        });
        true
    }

    fn release(&mut self, now: Time, term: u64, same: bool) {
        if same {
            self.grant = None;
            self.store_later(now);
        }
        // An ask of that term that comes later is an old one.
        if term > self.promised && self.holder(now).is_none() {
            self.promised = term;
            self.store_later(now);
        }
    }

    /// Takes cluster-wide settings to keep; `floor` as with [`Voter::ask`].
    pub fn settle(&mut self, now: Time, tag: T, settings: &Settings, floor: u64) {
        self.begin(now);
        self.promised = self.promised.max(floor);
        if is_far_stamp(&settings.stamp, self.promised) {
            self.answers.push_back((tag, Err(Status::FarTerm)));
            return;
        }
        if settings_key(settings) > settings_key(&self.settings) {
            self.settings = *settings;
            self.version += 1;
            self.settled = self.version;
        }
        if self.waiting.len() >= MAX_WAITING {
            self.answers.push_back((tag, Err(Status::Busy)));
            return;
        }
        self.waiting.push_back(Waiting {
            version: self.settled,
            tag,
            granted: None,
        });
        self.answer_waiting(now);
    }

    /// Keeps settings that were learned elsewhere; nobody waits for it.
    pub fn learn(&mut self, now: Time, settings: &Settings) {
        if settings_key(settings) > settings_key(&self.settings) {
            self.settings = *settings;
            self.store_later(now);
            self.settled = self.version;
        }
    }

    /// Forgets session and settings, which were another cluster's; promises stay.
    pub fn leave_cluster(&mut self, now: Time) {
        self.grant = None;
        self.found = None;
        self.settings = Settings::default();
        self.store_later(now);
        self.settled = self.version;
    }

    fn store_later(&mut self, now: Time) {
        self.version += 1;
        self.store_at.get_or_insert(now + STORE_DELAY);
    }

    fn reply(&self, now: Time, granted: Option<&Holder>) -> LeaseReply {
        let grant = self.grant.as_ref().filter(|g| now < g.until);
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let left = grant.map(|g| g.until).max(self.grace(now));
        LeaseReply {
            granted: granted.is_some_and(|asked| {
                let same = |g: &&Grant| (g.holder.host, g.holder.term) == (asked.host, asked.term);
                // One that was released and granted anew meanwhile has an answer of its own.
                grant.filter(same).is_some_and(|g| {
                    g.version <= self.durable || planted::is(Bug::GrantedBeforeDurable)
                })
            }),
            promised: self.promised,
            settings: self.settings,
            held_ms: grant.map_or(0, |g| ms(now.since(g.since))),
            left_ms: left.map_or(0, |until| ms(until.since(now))),
            holder: grant.map(|g| g.holder.clone()),
        }
    }

    /// Answers those whose version is durable.
    fn answer_waiting(&mut self, now: Time) {
        let mut rest = VecDeque::new();
        while let Some(waiting) = self.waiting.pop_front() {
            let early = planted::is(match waiting.granted {
                Some(_) => Bug::GrantedBeforeDurable,
                None => Bug::SettingsNotKept,
            });
            if waiting.version > self.durable && !early {
                rest.push_back(waiting);
                continue;
            }
            let answer = match &waiting.granted {
                Some(asked) => Answer::Lease(self.reply(now, Some(asked))),
                None => Answer::Settings(self.settings),
            };
            self.answers.push_back((waiting.tag, Ok(answer)));
        }
        self.waiting = rest;
    }

    /// What is to be made durable now, under a version to repeat in [`Voter::stored`]. There is at
    /// most one at a time.
    pub fn poll_store(&mut self, now: Time) -> Option<(u64, StoredVote)> {
        let wanted = self.waiting.iter().any(|w| w.version > self.durable)
            || self.store_at.is_some_and(|at| at <= now);
        if self.storing.is_some() || self.version <= self.durable || !wanted {
            return None;
        }
        self.storing = Some(self.version);
        self.store_at = None;
        let vote = StoredVote {
            promised: self.promised,
            holder: self.grant.as_ref().map(|g| g.holder.clone()),
            settings: if planted::is(Bug::SettingsNotKept) {
                Settings::default()
            } else {
                self.settings
            },
        };
        Some((self.version, vote))
    }

    /// A version is durable (`ok`), or could not be stored.
    pub fn stored(&mut self, now: Time, version: u64, ok: bool) {
        if self.storing.take_if(|v| *v == version).is_none() {
            return;
        }
        if ok {
            self.durable = self.durable.max(version);
        } else {
            let mut rest = VecDeque::new();
            for waiting in std::mem::take(&mut self.waiting) {
                if waiting.version > version {
                    rest.push_back(waiting);
                    continue;
                }
                // Nobody was told that it is granted, but it may be on the disk: it stays in force
                // until whoever asked releases it.
                self.answers
                    .push_back((waiting.tag, Err(Status::NotPersisted)));
            }
            self.waiting = rest;
            self.version += 1;
            self.store_at = Some(now + STORE_RETRY);
        }
        self.answer_waiting(now);
    }

    /// The next answer: for whom, and what.
    pub fn poll_answer(&mut self) -> Option<(T, Result<Answer, Status>)> {
        self.answers.pop_front()
    }

    /// Notes the time.
    pub fn tick(&mut self, now: Time) {
        self.begin(now);
    }

    /// When [`Voter::tick`] and [`Voter::poll_store`] must be called next.
    pub fn deadline(&self) -> Option<Time> {
        self.store_at.filter(|_| self.storing.is_none())
    }
}

fn settings_key(settings: &Settings) -> impl Ord {
    (settings.stamp, settings.granularity)
}
