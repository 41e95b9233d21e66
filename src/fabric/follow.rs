//! Following a membership list: pages, restarts when it changes under the reader, what is known.

use crate::wire::message::{Member, MembershipReply, MembershipRequest};
use crate::wire::{DecodeError, Guid, Time, Wire};

use super::catalog::MAX_CLUSTER_MEMBERS;
use super::link::MembershipList;

/// How often a list may change under its reader before the reader pauses.
pub(super) const MAX_RESTARTS: u32 = 8;

/// What has been read, and what is being read.
#[derive(Debug, Default)]
pub(super) struct Follower {
    /// Version of the last whole list, 0 where the next must be whole again.
    known: u64,
    list: Option<MembershipList>,
    reading: Option<Reading>,
    /// When to read again.
    pub(super) due: Option<Time>,
    /// Whether the list changed while it was read.
    pub(super) again: bool,
}

#[derive(Debug)]
struct Reading {
    version: u64,
    members: Vec<Member>,
    restarts: u32,
}

/// What is to be done after a page.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Ask for this.
    Ask(MembershipRequest),
    /// The list is the one already known.
    Unchanged,
    /// The list is whole; whether it differs from the last one.
    Whole(bool),
    /// The list changes faster than it can be read; pause.
    Unstable,
}

impl Follower {
    /// Whether a reading is on.
    pub(super) const fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// The last whole list.
    pub(super) const fn list(&self) -> Option<&MembershipList> {
        self.list.as_ref()
    }

    /// Starts to read; ask for this.
    pub(super) fn start(&mut self) -> MembershipRequest {
        self.due = None;
        self.again = false;
        self.reading = Some(Reading {
            version: 0,
            members: Vec::new(),
            restarts: 0,
        });
        MembershipRequest {
            known_version: self.known,
            after: Guid::NIL,
        }
    }

    /// Ends a reading without a result.
    pub(super) fn stop(&mut self) {
        self.reading = None;
    }

    /// The versions known come from other fabric services, or from an earlier life of them.
    pub(super) fn forget_version(&mut self) {
        self.known = 0;
    }

    /// The list is another cluster's.
    pub(super) fn forget_list(&mut self) {
        *self = Self::default();
    }

    /// Takes a page. An error ends the reading.
    pub(super) fn page(&mut self, body: &[u8]) -> Result<Next, DecodeError> {
        let mut reading = self
            .reading
            .take()
            .ok_or(DecodeError::BadValue("membership"))?;
        let page = MembershipReply::from_body(body)?;
        let last = reading.members.last().map(|m| m.guid);
        if page.unchanged {
            return if last.is_none() && page.version == self.known && self.list.is_some() {
                Ok(Next::Unchanged)
            } else {
                Err(DecodeError::BadValue("unchanged"))
            };
        }
        if let Some(after) = last {
            if page.version != reading.version {
                reading.restarts += 1;
                if reading.restarts > MAX_RESTARTS {
                    return Ok(Next::Unstable);
                }
                reading.members.clear();
                self.reading = Some(reading);
                return Ok(Next::Ask(MembershipRequest {
                    known_version: 0,
                    after: Guid::NIL,
                }));
            }
            if page.members.first().is_some_and(|m| m.guid <= after) {
                return Err(DecodeError::BadValue("members"));
            }
        }
        reading.version = page.version;
        reading.members.extend(page.members);
        if reading.members.len() > MAX_CLUSTER_MEMBERS {
            return Err(DecodeError::TooLarge("members"));
        }
        if page.more {
            let after = reading.members.last().map_or(Guid::NIL, |m| m.guid);
            self.reading = Some(reading);
            return Ok(Next::Ask(MembershipRequest {
                known_version: 0,
                after,
            }));
        }
        self.known = reading.version;
        let list = MembershipList {
            version: reading.version,
            members: reading.members,
        };
        let differs = self.list.as_ref() != Some(&list);
        self.list = Some(list);
        Ok(Next::Whole(differs))
    }
}
