//! The allocation lease as it must be, kept outside of the system under test: what every voter has
//! made durable, who has begun a session in which term, which settings were acknowledged (I7, and
//! the settings of I1).
//!
//! What the lease promises depends on who counts as a voter: two majorities have a voter in common
//! where both are of the same voters. So sessions are compared only where the two majorities together
//! are more than all voters that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rma::lease::{StoredVote, TTL, majority};
use rma::rma::HeldSession;
use rma::wire::{Guid, Settings, TableStamp, Time};

/// For how long after force, sleep or a loss of memory the lease may be held twice: until the one
/// who does not know of it has given up.
const UNCERTAIN: Duration = TTL.saturating_mul(2);

/// What a voter has made durable, ever.
#[derive(Debug, Default)]
struct Kept {
    promised: u64,
    /// Which term to which host.
    granted: BTreeSet<(u64, Guid)>,
    settings: TableStamp,
}

/// A session that a host has begun.
#[derive(Debug, Clone, Copy)]
struct Begun {
    host: Guid,
    voters: usize,
}

/// The model of the lease.
#[derive(Debug, Default)]
pub struct Sessions {
    kept: BTreeMap<Guid, Kept>,
    /// The newest settings that each voter has ever made durable, lost since or not.
    settings_stored: BTreeMap<Guid, TableStamp>,
    /// Which voters have ever made a grant of this term to this host durable.
    grants: BTreeMap<(u64, Guid), BTreeSet<Guid>>,
    begun: BTreeMap<u64, Begun>,
    /// The term of the session that a host holds.
    holding: BTreeMap<Guid, u64>,
    /// Until then more than one host may rightly believe to hold the lease.
    uncertain_until: Time,
    /// Terms up to this one may be given once more: a voter has lost its memory.
    forgotten: u64,
    /// The newest settings that were acknowledged.
    pub(crate) settings: Settings,
    /// Of how many voters more than half had them then.
    settings_voters: usize,
    /// How many sessions there were.
    pub begun_count: u64,
    /// How many settings were acknowledged as changes.
    pub settled_count: u64,
}

/// A host begins a session.
pub(crate) struct Beginning<'a> {
    pub(crate) now: Time,
    pub(crate) host: (Guid, &'a str),
    pub(crate) session: HeldSession,
    /// All voters that there are.
    pub(crate) voters: usize,
    /// Other hosts that hold the lease, as they believe.
    pub(crate) others: Vec<(String, HeldSession)>,
    /// The settings that it begins with.
    pub(crate) settings: TableStamp,
}

impl Sessions {
    /// Something has happened after which the lease is not promised to be exclusive for a while.
    pub(crate) fn uncertain(&mut self, now: Time) {
        self.uncertain_until = self.uncertain_until.max(now + UNCERTAIN);
    }

    /// A voter has lost its memory.
    pub(crate) fn lost(&mut self, now: Time, voter: Guid) {
        self.kept.remove(&voter);
        let granted = self.grants.keys().map(|(term, _)| *term).max();
        self.forgotten = self.forgotten.max(granted.unwrap_or(0));
        self.uncertain(now);
    }

    /// Terms up to this one may be given once more.
    pub(crate) const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// A voter has made this durable (or this is what it finds at a start).
    pub(crate) fn stored(&mut self, voter: Guid, name: &str, vote: &StoredVote) -> Vec<String> {
        let mut broken = Vec::new();
        let kept = self.kept.entry(voter).or_default();
        if vote.promised < kept.promised {
            broken.push(format!(
                "I7: voter {name} promises term {} after it had promised term {}",
                vote.promised, kept.promised
            ));
        }
        if vote.settings.stamp < kept.settings {
            broken.push(format!("I1: voter {name} keeps older settings than before"));
        }
        if let Some(holder) = &vote.holder {
            let (term, host) = (holder.term, holder.host);
            // After a release it may renew the session of another host in the same term, as only one of
            // them can have had a majority.
            if term < kept.promised && !kept.granted.contains(&(term, host)) {
                broken.push(format!(
                    "I7: voter {name} grants term {term} after it had promised term {}",
                    kept.promised
                ));
            }
            kept.granted.insert((term, host));
            self.grants.entry((term, host)).or_default().insert(voter);
        }
        kept.promised = kept.promised.max(vote.promised);
        kept.settings = kept.settings.max(vote.settings.stamp);
        let stored = self.settings_stored.entry(voter).or_default();
        *stored = (*stored).max(vote.settings.stamp);
        broken
    }

    /// The term of the session that a host is known to hold.
    pub(crate) fn of(&self, host: Guid) -> Option<u64> {
        self.holding.get(&host).copied()
    }

    /// A host holds the lease no longer.
    pub(crate) fn ends(&mut self, host: Guid) {
        self.holding.remove(&host);
    }

    /// A host believes to hold the lease from now on.
    pub(crate) fn begins(&mut self, it: &Beginning<'_>) -> Vec<String> {
        self.begun_count += 1;
        let (term, (host, name)) = (it.session.term, it.host);
        self.holding.insert(host, term);
        let mut broken = Vec::new();
        let stored = self.grants.get(&(term, host)).map_or(0, BTreeSet::len);
        if stored < majority(it.session.voters) {
            broken.push(format!(
                "I7: host {name} holds the lease in term {term}, which {stored} of {} voters have stored",
                it.session.voters
            ));
        }
        let both = |other: usize| majority(other) + majority(it.session.voters) > it.voters;
        if let Some(before) = self.begun.get(&term)
            && before.host != host
            && term > self.forgotten
            && both(before.voters)
        {
            broken.push(format!(
                "I7: term {term} is host {name}'s after it was {}'s",
                before.host
            ));
        }
        if it.session.forced {
            self.uncertain(it.now);
        }
        let certain = it.now >= self.uncertain_until;
        for (other, session) in &it.others {
            if certain && both(session.voters) {
                broken.push(format!(
                    "I7: host {name} holds the lease in term {term} while host {other} holds it in term {}",
                    session.term
                ));
            }
        }
        if term > self.forgotten && both(self.settings_voters) && it.settings < self.settings.stamp
        {
            broken.push(format!(
                "I1: host {name} begins the session of term {term}, of {} voters, with older settings \
                 than were acknowledged with {}",
                it.session.voters, self.settings_voters
            ));
        }
        let voters = it.session.voters;
        self.begun.entry(term).or_insert(Begun { host, voters });
        broken
    }

    /// How many voters have made these settings or newer ones durable. One that has lost its memory between its
    /// answer and the acknowledgement did so, too.
    pub(crate) fn settings_kept(&self, stamp: TableStamp) -> usize {
        let stored = self.settings_stored.values();
        stored.filter(|stored| **stored >= stamp).count()
    }

    /// Settings were acknowledged by a host that knew of so many voters.
    pub(crate) fn settled(&mut self, settings: Settings, voters: usize) {
        self.settled_count += 1;
        if settings.stamp > self.settings.stamp {
            self.settings = settings;
            self.settings_voters = voters;
        }
    }
}
