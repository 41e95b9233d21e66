//! One question to all voters about this host's session, and what came back. Pure data.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::lease::majority;
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
