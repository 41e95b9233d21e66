//! This host's session, and one question to all voters about it with what came back. Pure data.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::lease::majority;
use crate::planted::{self, Bug};
use crate::wire::message::{Holder, LeaseRequest};
use crate::wire::{Guid, Status, Time};

/// Why a voter has not granted a session.
#[derive(Debug, Clone)]
pub(super) enum Refusal {
    /// Another one is in force: for how long it has been, and will be if it is not renewed.
    Held(Box<Holder>, Duration, Duration),
    /// It has promised a term that is not below.
    Promised,
    /// It has lost what it had promised, and grants nothing for so long.
    Lost(Duration),
    /// It could not.
    Failed(Status),
}

/// One question to all voters.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) id: u64,
    pub(super) request: LeaseRequest,
    pub(super) sent: Time,
    /// All voters, answering or not.
    pub(super) voters: usize,
    /// Those whose answer is awaited.
    pub(super) open: BTreeSet<Guid>,
    pub(super) granted: BTreeSet<Guid>,
    pub(super) refused: BTreeMap<Guid, Refusal>,
}

impl Round {
    pub(super) fn has_majority(&self) -> bool {
        self.granted.len() >= majority(self.voters)
    }

    /// Whether the answers that are still to come cannot make a majority.
    pub(super) fn is_hopeless(&self) -> bool {
        let own = self.request.holder.host;
        let few = self.granted.len() + self.open.len() < majority(self.voters);
        few && !self.open.contains(&own)
    }

    /// How many voters have said anything.
    pub(super) fn answered(&self) -> usize {
        self.granted.len() + self.refused.len()
    }

    /// The session that is in the way at most voters.
    pub(super) fn in_the_way(&self) -> Option<(&Holder, Duration, Duration)> {
        self.refused
            .values()
            .filter_map(|refusal| match refusal {
                Refusal::Held(holder, held, left) => Some((&**holder, *held, *left)),
                _ => None,
            })
            .max_by_key(|(holder, held, _)| (holder.term, *held))
    }
}

/// A session that this host holds.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) holder: Holder,
    pub(super) since: Time,
    /// When it is given up unless a majority renews it.
    pub(super) until: Time,
    pub(super) renewal: Option<Round>,
    /// Another host has asked for the lease.
    pub(super) is_wanted: bool,
    /// How many voters there were, of which more than half have granted it.
    pub(super) voters: usize,
    /// Whether it was taken by force.
    pub(super) forced: bool,
}

impl Session {
    /// Whether it is to be given up.
    pub(super) fn is_over(&self, now: Time) -> bool {
        now >= self.until && !planted::is(Bug::HolderGoesOn)
    }
}

/// A session that a host holds, as it believes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldSession {
    /// Its term.
    pub term: u64,
    /// How many voters there were, of which more than half have granted it.
    pub voters: usize,
    /// Whether it was taken by force.
    pub forced: bool,
}
