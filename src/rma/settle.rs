//! Cluster-wide settings on their way: facts without a unit, which hold when more than half of the
//! voters have them durably. One change at a time, under the lease.

use std::collections::{BTreeSet, VecDeque};

use super::agent::Agent;
use super::config::MAX_PENDING_REQUESTS;
use super::journal::Waiter;
use super::plan::error;
use super::report;
use super::request::{AdminError, AdminReply, Caller, ErrorKind, GranularityInfo, WatchEvent};
use super::timers::Timer;
use super::voters::{Asked, VoteTag};
use crate::lease::majority;
use crate::wire::{Granularity, Guid, Kind, Settings, Status, Time, Wire};

/// A change of the granularity on its way.
#[derive(Debug)]
pub(super) struct Settling {
    token: u64,
    wanted: Granularity,
    told: Option<Told>,
}

/// What the voters were told, and who has kept it.
#[derive(Debug)]
struct Told {
    id: u64,
    settings: Settings,
    changed: bool,
    voters: usize,
    kept: BTreeSet<Guid>,
    /// This host's table is durable.
    stored: bool,
}

impl Agent {
    /// Whether a change is being made, rather than waiting for the lease.
    pub(super) fn is_settling(&self) -> bool {
        self.settling.front().is_some_and(|s| s.told.is_some())
    }

    pub(super) fn set_granularity(
        &mut self,
        now: Time,
        token: u64,
        caller: &Caller,
        text: &str,
    ) -> Result<(), AdminError> {
        if !self.is_steady() {
            return Err(self.not_ready());
        }
        let wanted = Granularity::ALL
            .iter()
            .copied()
            .find(|g| g.name() == text)
            .ok_or_else(|| {
                let names: Vec<&str> = Granularity::ALL.iter().map(|g| g.name()).collect();
                error(
                    ErrorKind::BadRequest,
                    format!(
                        "'{}' is no granularity; say {}",
                        text.escape_debug(),
                        names.join(", ")
                    ),
                )
            })?;
        if self.settling.len() >= MAX_PENDING_REQUESTS {
            return Err(error(
                ErrorKind::Busy,
                format!("{MAX_PENDING_REQUESTS} changes of settings are on their way; try again"),
            ));
        }
        self.settling.push_back(Settling {
            token,
            wanted,
            told: None,
        });
        self.seek_lease(now, caller);
        Ok(())
    }

    /// Begins the next change, where the lease is held and none is being made.
    pub(super) fn next_settle(&mut self, now: Time) {
        if self.is_settling() || self.settling.is_empty() {
            return;
        }
        let Some(term) = self.open_term(now) else {
            return;
        };
        let writer = self.config.guid;
        let id = self.next_query;
        self.next_query += 1;
        let before = self.table.settings().granularity;
        let Some(settling) = self.settling.front_mut() else {
            return;
        };
        let (token, wanted) = (settling.token, settling.wanted);
        let changed = self.table.set_granularity(wanted, term, writer);
        let settings = *self.table.settings();
        settling.told = Some(Told {
            id,
            settings,
            changed,
            voters: 0,
            kept: BTreeSet::new(),
            stored: false,
        });
        if changed {
            self.journal.note(&[Guid::NIL]);
            self.journal.unpublished = true;
            self.journal.urgent = true;
            self.tell(WatchEvent::GranularityChanged {
                before: before.name().to_owned(),
                after: wanted.name().to_owned(),
            });
        }
        self.journal.waiters.push(Waiter::Granularity(token));
        let voters = self.voters().len();
        if let Some(told) = self.settling.front_mut().and_then(|s| s.told.as_mut()) {
            told.voters = voters;
        }
        self.ask_voters(now, Kind::Settle, &settings.to_body(), Asked::Settle(id));
        let floor = self.table.highest_stamp().term.max(term);
        self.voter
            .settle(now, VoteTag::Settle(id), &settings, floor);
        let patience = self.config.intervals.allocation_patience;
        self.timers.set(Timer::Settle, now + patience);
    }

    /// A voter has kept what it was told, or something newer.
    pub(super) fn on_settled(
        &mut self,
        now: Time,
        voter: Guid,
        id: u64,
        answer: Result<Settings, Status>,
    ) {
        let told = self.settling.front_mut().and_then(|s| s.told.as_mut());
        let Some(told) = told.filter(|told| told.id == id) else {
            return;
        };
        let Ok(settings) = answer else {
            return;
        };
        if settings.stamp >= told.settings.stamp {
            told.kept.insert(voter);
        }
        self.learn_settings(now, voter, &settings);
        self.check_settled(now);
    }

    /// This host's table is durable with the change.
    pub(super) fn settle_stored(&mut self, now: Time, token: u64) {
        let front = self.settling.front_mut().filter(|s| s.token == token);
        if let Some(told) = front.and_then(|s| s.told.as_mut()) {
            told.stored = true;
            self.check_settled(now);
        }
    }

    /// This host's table could not be stored.
    pub(super) fn settle_not_stored(&mut self, now: Time, token: u64) {
        if self.settling.front().is_some_and(|s| s.token == token) {
            let e = error(
                ErrorKind::NotPersisted,
                "the table could not be stored on this host (see the log of rmad); it is \
                 tried again every second, look with `rma granularity get`",
            );
            self.end_settle(now, AdminReply::Error(e));
        }
    }

    fn check_settled(&mut self, now: Time) {
        let Some(told) = self.settling.front().and_then(|s| s.told.as_ref()) else {
            return;
        };
        if told.stored && told.kept.len() >= majority(told.voters) {
            // What the table has by now may be another's, and not be stored yet.
            let reply = granularity_reply(&told.settings, told.changed);
            self.end_settle(now, reply);
        }
    }

    /// Too few voters have answered in time.
    pub(super) fn settle_late(&mut self, now: Time) {
        let Some(told) = self.settling.front().and_then(|s| s.told.as_ref()) else {
            return;
        };
        let (kept, voters) = (told.kept.len(), told.voters);
        let silent: Vec<String> = self
            .voters()
            .into_iter()
            .filter(|guid| !told.kept.contains(guid))
            .take(8)
            .map(|guid| report::label(&self.table, guid))
            .collect();
        let e = error(
            ErrorKind::NoMajority,
            format!(
                "{kept} of {voters} hosts and I/O units have kept the new granularity, and more \
                 than half are needed; it may reach the others yet, and repeating is safe; not \
                 from {}",
                silent.join(", ")
            ),
        );
        self.end_settle(now, AdminReply::Error(e));
    }

    fn end_settle(&mut self, now: Time, reply: AdminReply) {
        self.timers.cancel(Timer::Settle);
        self.drop_commands(|asked| matches!(asked, Asked::Settle(_)));
        if let Some(done) = self.settling.pop_front() {
            self.reply(done.token, reply);
        }
        self.next_settle(now);
        self.lease_idle(now);
    }

    /// The lease cannot be had: changes that wait for it fail.
    pub(super) fn fail_queued_settles(&mut self, e: &AdminError) {
        let (under_way, queued): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.settling)
            .into_iter()
            .partition(|s: &Settling| s.told.is_some());
        self.settling = under_way;
        for settling in queued {
            self.reply(settling.token, AdminReply::Error(e.clone()));
        }
    }
}

pub(super) fn granularity_reply(settings: &Settings, changed: bool) -> AdminReply {
    AdminReply::Granularity(GranularityInfo {
        granularity: settings.granularity.name().to_owned(),
        stamp: report::stamp_info(settings.stamp),
        changed,
    })
}
