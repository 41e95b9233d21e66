//! Who of the registered entities was heard where and when, and which connections they have.
//!
//! Its one judgement: whether somebody who says a registered GUID at another address is the same
//! entity (the same session, a known address, or the old address has gone silent) or a twin.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::session::limits::KEEPALIVE_INTERVAL;
use crate::wire::{ClusterName, ConnectionId, Guid, Incarnation, Mac, Time};

/// How long after its last frame an entity counts as alive at an address.
pub(super) const ALIVE_FOR: Duration = Duration::from_secs(5);
const _: () = assert!(ALIVE_FOR.as_nanos() > 2 * KEEPALIVE_INTERVAL.as_nanos());
/// How many unfinished handshakes are remembered, twice.
const MAX_KNOCKS: usize = 2048;
/// How many addresses of an entity are remembered.
const MAX_HEARD: usize = 2 * crate::wire::row::MAX_MACS;

/// A session as its connects name it: a machine's copy does not draw the same numbers.
pub(super) type SessionName = (Incarnation, u64);

/// One connection.
#[derive(Debug, Clone)]
pub(super) struct Seat {
    /// Whose it is.
    pub(super) guid: Guid,
    /// Which session opened it, where that was seen.
    pub(super) session: Option<SessionName>,
    /// Whether the entity has registered on it.
    pub(super) registered: bool,
    /// The cluster that its registration was answered with.
    pub(super) told: ClusterName,
}

/// A registered entity.
#[derive(Debug, Default)]
struct Known {
    session: Option<SessionName>,
    heard: Vec<(Mac, Time)>,
    warned: Option<Time>,
}

/// Connections, and where registered entities were heard.
#[derive(Debug, Default)]
pub(super) struct Presence {
    seats: BTreeMap<ConnectionId, Seat>,
    known: BTreeMap<Guid, Known>,
    /// Sessions that have asked for a connection and not used it yet: two generations.
    knocks: [BTreeMap<Guid, SessionName>; 2],
}

impl Presence {
    /// A connect was let in.
    pub(super) fn knock(&mut self, guid: Guid, session: SessionName) {
        if self.knocks[0].len() >= MAX_KNOCKS {
            self.knocks[1] = std::mem::take(&mut self.knocks[0]);
        }
        self.knocks[0].insert(guid, session);
    }

    /// A connection was opened.
    pub(super) fn open(&mut self, connection: ConnectionId, guid: Guid) {
        let [new, old] = &mut self.knocks;
        let session = new.remove(&guid).or_else(|| old.remove(&guid));
        self.seats.insert(
            connection,
            Seat {
                guid,
                session,
                registered: false,
                told: ClusterName::NONE,
            },
        );
    }

    /// A connection was closed.
    pub(super) fn close(&mut self, connection: ConnectionId) {
        self.seats.remove(&connection);
    }

    /// A connection.
    pub(super) fn seat(&self, connection: ConnectionId) -> Option<&Seat> {
        self.seats.get(&connection)
    }

    /// The connections.
    pub(super) fn seats(&self) -> impl Iterator<Item = (ConnectionId, &Seat)> + '_ {
        self.seats.iter().map(|(c, seat)| (*c, seat))
    }

    /// An entity has registered on a connection and was told its cluster (none: pending).
    pub(super) fn registered(
        &mut self,
        now: Time,
        connection: ConnectionId,
        src: Mac,
        told: ClusterName,
    ) {
        let Some(seat) = self.seats.get_mut(&connection) else {
            return;
        };
        seat.registered = true;
        seat.told = told;
        let known = self.known.entry(seat.guid).or_default();
        known.session = seat.session;
        known.note(now, src);
    }

    /// An entity is no longer in the database.
    pub(super) fn forget(&mut self, guid: Guid) {
        self.known.remove(&guid);
        for seat in self.seats.values_mut().filter(|s| s.guid == guid) {
            seat.registered = false;
            seat.told = ClusterName::NONE;
        }
    }

    /// A good frame came over a connection from `src`; `macs` are its entity's addresses.
    pub(super) fn heard(&mut self, now: Time, connection: ConnectionId, src: Mac, macs: &[Mac]) {
        let Some(seat) = self.seats.get(&connection) else {
            return;
        };
        if let Some(known) = self.known.get_mut(&seat.guid)
            && (macs.contains(&src) || (seat.session.is_some() && seat.session == known.session))
        {
            known.note(now, src);
        }
    }

    /// Whether `session` at `src` is another machine than the one registered with `macs`: then the
    /// address at which that one is alive.
    pub(super) fn twin(
        &self,
        now: Time,
        guid: Guid,
        src: Mac,
        session: Option<SessionName>,
        macs: &[Mac],
    ) -> Option<Mac> {
        let known = self.known.get(&guid)?;
        if macs.contains(&src) || (session.is_some() && session == known.session) {
            return None;
        }
        known
            .heard
            .iter()
            .find(|(mac, at)| macs.contains(mac) && now.since(*at) < ALIVE_FOR)
            .map(|(mac, _)| *mac)
    }

    /// Whether a twin of `guid` is worth a line in the log: once in a while.
    pub(super) fn warn(&mut self, now: Time, guid: Guid, interval: Duration) -> bool {
        let Some(known) = self.known.get_mut(&guid) else {
            return true;
        };
        let due = known.warned.is_none_or(|at| now.since(at) >= interval);
        if due {
            known.warned = Some(now);
        }
        due
    }

    /// When and where `guid` was heard last.
    pub(super) fn last_heard(&self, guid: Guid) -> Option<(Mac, Time)> {
        let heard = &self.known.get(&guid)?.heard;
        heard.iter().max_by_key(|(_, at)| *at).copied()
    }

    /// Who is connected, registered, and not silent.
    pub(super) fn connected(&self, now: Time) -> BTreeSet<Guid> {
        let alive = |guid| {
            let heard = self.last_heard(guid);
            heard.is_some_and(|(_, at)| now.since(at) < ALIVE_FOR)
        };
        let seats = self.seats.values().filter(|seat| seat.registered);
        let guids = seats.map(|seat| seat.guid);
        guids.filter(|guid| alive(*guid)).collect()
    }
}

impl Known {
    fn note(&mut self, now: Time, src: Mac) {
        if let Some(entry) = self.heard.iter_mut().find(|(mac, _)| *mac == src) {
            entry.1 = now;
            return;
        }
        if self.heard.len() >= MAX_HEARD
            && let Some(oldest) = (0..self.heard.len()).min_by_key(|i| self.heard[*i].1)
        {
            self.heard.swap_remove(oldest);
        }
        self.heard.push((src, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUID: Guid = Guid(7);
    const HOME: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const AWAY: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const SESSION: SessionName = (Incarnation(1), 5);
    const OTHER: Option<SessionName> = Some((Incarnation(1), 6));

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    /// Registered at home, from connection 1.
    fn known() -> Presence {
        let mut presence = Presence::default();
        presence.knock(GUID, SESSION);
        presence.open(ConnectionId(1), GUID);
        presence.registered(at(0), ConnectionId(1), HOME, ClusterName::NONE);
        presence
    }

    #[test]
    fn somebody_elsewhere_is_a_twin_while_the_first_is_heard() {
        let mut presence = known();
        let twin = |p: &Presence, now| p.twin(now, GUID, AWAY, OTHER, &[HOME]);
        assert_eq!(twin(&presence, at(4_999)), Some(HOME));
        assert_eq!(twin(&presence, at(5_000)), None);
        presence.heard(at(3_000), ConnectionId(1), HOME, &[HOME]);
        assert_eq!(twin(&presence, at(5_000)), Some(HOME));
        assert_eq!(twin(&presence, at(8_000)), None);
    }

    #[test]
    fn its_own_session_and_its_known_addresses_are_no_twin() {
        let presence = known();
        let now = at(1);
        assert_eq!(presence.twin(now, GUID, AWAY, Some(SESSION), &[HOME]), None);
        assert_eq!(presence.twin(now, GUID, AWAY, OTHER, &[HOME, AWAY]), None);
        assert_eq!(presence.twin(now, Guid(8), AWAY, OTHER, &[HOME]), None);
        assert!(presence.twin(now, GUID, AWAY, None, &[HOME]).is_some());
    }

    #[test]
    fn a_twin_does_not_count_as_a_sign_of_life() {
        let mut presence = known();
        presence.knock(GUID, (Incarnation(2), 1));
        presence.open(ConnectionId(2), GUID);
        presence.heard(at(4_000), ConnectionId(2), AWAY, &[HOME]);
        assert_eq!(presence.last_heard(GUID), Some((HOME, at(0))));
        assert_eq!(presence.twin(at(6_000), GUID, AWAY, OTHER, &[HOME]), None);
    }

    #[test]
    fn only_so_many_handshakes_and_addresses_are_remembered() {
        let mut presence = known();
        presence.knock(Guid(1), SESSION);
        for guid in 100..100 + 3 * MAX_KNOCKS as u128 {
            presence.knock(Guid(guid), SESSION);
        }
        assert!(presence.knocks.iter().map(BTreeMap::len).sum::<usize>() <= 2 * MAX_KNOCKS);
        presence.open(ConnectionId(3), Guid(1));
        assert_eq!(presence.seat(ConnectionId(3)).unwrap().session, None);
        for n in 0..100 {
            let mac = Mac([2, 0, 0, 0, 1, n]);
            presence.heard(at(u64::from(n)), ConnectionId(1), mac, &[mac]);
        }
        assert_eq!(presence.known[&GUID].heard.len(), MAX_HEARD);
        assert_eq!(presence.last_heard(GUID).unwrap().1, at(99));
    }

    #[test]
    fn who_is_forgotten_or_silent_is_not_connected() {
        let mut presence = known();
        assert_eq!(presence.connected(at(1)), [GUID].into());
        assert_eq!(presence.connected(at(6_000)), [].into());
        presence.forget(GUID);
        assert_eq!(presence.connected(at(1)), [].into());
        assert_eq!(presence.last_heard(GUID), None);
        presence.close(ConnectionId(1));
        assert_eq!(presence.seats().count(), 0);
    }
}
