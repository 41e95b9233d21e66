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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{EntityType, Epoch, Mac, ObservationStamp, Ownership};

    fn member(guid: u128) -> Member {
        Member {
            guid: Guid(guid),
            entity: EntityType::Host,
            macs: vec![Mac([2, 0, 0, 0, 0, 1])],
            name: String::new(),
            observed: ObservationStamp::default(),
            ownership: Ownership::Unallocated,
            epoch: Epoch(0),
            version: 0,
            guest: false,
        }
    }

    fn page(version: u64, more: bool, guids: &[u128]) -> Vec<u8> {
        MembershipReply {
            version,
            unchanged: false,
            more,
            members: guids.iter().map(|g| member(*g)).collect(),
        }
        .to_body()
    }

    fn unchanged(version: u64) -> Vec<u8> {
        MembershipReply {
            version,
            unchanged: true,
            more: false,
            members: Vec::new(),
        }
        .to_body()
    }

    fn ask(known_version: u64, after: u128) -> MembershipRequest {
        MembershipRequest {
            known_version,
            after: Guid(after),
        }
    }

    fn guids(follower: &Follower) -> Vec<u128> {
        let list = follower.list().unwrap();
        list.members.iter().map(|m| m.guid.0).collect()
    }

    #[test]
    fn pages_make_a_list_and_its_version_asks_whether_it_has_changed() {
        let mut follower = Follower::default();
        assert_eq!(follower.start(), ask(0, 0));
        let next = follower.page(&page(5, true, &[1, 2]));
        assert_eq!(next, Ok(Next::Ask(ask(0, 2))));
        assert_eq!(follower.list(), None, "half a list is no list");
        assert_eq!(follower.page(&page(5, false, &[7])), Ok(Next::Whole(true)));
        assert_eq!(guids(&follower), [1, 2, 7]);
        assert_eq!(follower.start(), ask(5, 0));
        assert_eq!(follower.page(&unchanged(5)), Ok(Next::Unchanged));
        follower.forget_version();
        assert_eq!(follower.start(), ask(0, 0));
        let same = follower.page(&page(5, false, &[1, 2, 7]));
        assert_eq!(same, Ok(Next::Whole(false)));
    }

    #[test]
    fn a_list_that_changes_under_its_reader_is_read_again_but_not_for_ever() {
        let mut follower = Follower::default();
        follower.start();
        let mut version = 0;
        for _ in 0..=MAX_RESTARTS {
            version += 1;
            follower.page(&page(version, true, &[1])).unwrap();
            version += 1;
            let next = follower.page(&page(version, false, &[2])).unwrap();
            if version == 2 * u64::from(MAX_RESTARTS) + 2 {
                assert_eq!(next, Next::Unstable);
            } else {
                assert_eq!(next, Next::Ask(ask(0, 0)));
            }
        }
        assert!(!follower.is_reading());
        assert_eq!(follower.list(), None);
    }

    #[test]
    fn pages_that_contradict_are_refused_and_the_last_list_holds() {
        let mut follower = Follower::default();
        follower.start();
        follower.page(&page(1, false, &[3])).unwrap();
        // "Unchanged" of another version, or in the middle.
        follower.start();
        assert!(follower.page(&unchanged(2)).is_err());
        follower.start();
        follower.page(&page(2, true, &[3])).unwrap();
        assert!(follower.page(&unchanged(2)).is_err());
        // A page that goes back.
        follower.start();
        follower.page(&page(2, true, &[3, 4])).unwrap();
        assert!(follower.page(&page(2, false, &[4])).is_err());
        // Noise, and a page that nobody asked for.
        follower.start();
        assert!(follower.page(&[1, 2, 3]).is_err());
        assert!(follower.page(&page(9, false, &[1])).is_err());
        assert_eq!(guids(&follower), [3]);
    }

    #[test]
    fn an_endless_list_is_refused() {
        let mut follower = Follower::default();
        follower.start();
        let (mut guid, mut asked) = (0, 0);
        let error = loop {
            let more: Vec<u128> = (guid + 1..=guid + 500).collect();
            guid += 500;
            match follower.page(&page(1, true, &more)) {
                Ok(_) => asked += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error, DecodeError::TooLarge("members"));
        assert_eq!(asked, MAX_CLUSTER_MEMBERS / 500);
    }
}
