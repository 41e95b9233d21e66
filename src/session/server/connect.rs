//! How a server opens, resumes, replaces and forgets sessions.

use super::{Peer, Server, ServerEvent};
use crate::planted::{self, Bug};
use crate::session::limits::{KEEPALIVE_QUIET, LOST_AFTER, RELIEF_INTERVAL, STALLED_AFTER};
use crate::session::server::session::Session;
use crate::wire::message::{ConnectReply, ConnectRequest};
use crate::wire::{
    CommandId, ConnectionId, DropReason, Flags, Guid, Header, Hop, IocNumber, Kind, Status, Time,
    Wire,
};

impl Server {
    pub(super) fn on_connect(
        &mut self,
        now: Time,
        src: Hop,
        header: &Header,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let request = ConnectRequest::from_body(payload).map_err(|_| DropReason::Body)?;
        // A refusal answers the connect by its nonce, not by a connection.
        let header = &Header {
            connection: ConnectionId(0),
            ..*header
        };
        if !self.serves(header.cluster) {
            self.refuse(src, header, Status::WrongCluster);
            return Err(DropReason::Cluster);
        }
        if !request.responder.is_nil() && request.responder != self.config.local {
            self.refuse(src, header, Status::WrongIdentity);
            return Ok(());
        }
        let key = (request.initiator, header.ioc);
        let peer = Peer {
            guid: request.initiator,
            role: request.role,
            incarnation: request.incarnation,
            cluster: header.cluster,
            mac: src.mac,
        };
        match self.place_of(now, key, &peer, &request, header.command.0) {
            Place::Resume(slot) => self.open(now, slot, (peer, src), &request, header),
            Place::Repeat(slot) => self.send_connect_reply(slot, src),
            Place::Refuse(status) => self.refuse(src, header, status),
            Place::New => {
                let credits = request.credits.min(self.config.credits);
                self.next_uid += 1;
                let session =
                    Session::new(self.next_uid, key.1, peer, request.session, credits, now);
                let slot = self.free.pop().unwrap_or(self.sessions.len());
                if slot == self.sessions.len() {
                    self.sessions.push(None);
                }
                self.sessions[slot] = Some(Box::new(session));
                self.by_key.insert(key, slot);
                self.open(now, slot, (peer, src), &request, header);
            }
        }
        Ok(())
    }

    /// What a connect is: a new session's, a known one's next, one that was answered already, or
    /// one from the past. Sessions that it replaces are removed.
    fn place_of(
        &mut self,
        now: Time,
        key: (Guid, IocNumber),
        peer: &Peer,
        request: &ConnectRequest,
        nonce: u64,
    ) -> Place {
        // Another incarnation of the initiator: the newer counts, on all of its controllers.
        let others = (key.0, IocNumber(0))..=(key.0, IocNumber(u16::MAX));
        let mut older = Vec::new();
        for slot in self.by_key.range(others).map(|(_, slot)| *slot) {
            let Some(session) = &self.sessions[slot] else {
                continue;
            };
            if session.peer.incarnation > peer.incarnation {
                return Place::Refuse(Status::UnknownConnection);
            }
            if session.peer.incarnation < peer.incarnation {
                older.push(slot);
            }
        }
        for slot in older {
            self.remove(slot);
        }
        let known = self.by_key.get(&key).copied();
        if let Some((slot, session)) =
            known.and_then(|slot| Some((slot, self.sessions[slot].as_ref()?)))
        {
            let was = (session.number, session.attempt);
            if was == (request.session, request.attempt) && session.nonce == nonce {
                return Place::Repeat(slot);
            }
            if was >= (request.session, request.attempt) {
                return Place::Refuse(Status::UnknownConnection);
            }
            if session.number == request.session && session.peer.cluster == peer.cluster {
                return Place::Resume(slot);
            }
            self.remove(slot);
        }
        // What an earlier session left running must end before a new one may run anything: it
        // would overtake (I3).
        if self.config.service && self.draining.contains_key(&key) {
            return Place::Refuse(Status::NotReady);
        }
        if self.by_key.len() >= self.config.max_connections && !self.evict(now) {
            return Place::Refuse(Status::Busy);
        }
        Place::New
    }

    /// Gives a session a new connection.
    fn open(
        &mut self,
        now: Time,
        slot: usize,
        (peer, src): (Peer, Hop),
        request: &ConnectRequest,
        header: &Header,
    ) {
        let mut id = ConnectionId(self.rng.u64(1..));
        while self.by_connection.contains_key(&id) {
            id = ConnectionId(self.rng.u64(1..));
        }
        let mtu = request.mtu.min(self.config.mtu);
        let Some(session) = self.sessions[slot].as_mut() else {
            return;
        };
        if planted::is(Bug::WindowForgotten) {
            session.forget_window();
        }
        let old = std::mem::replace(&mut session.connection, id);
        if session.confirmed {
            self.events
                .push_back(ServerEvent::Closed { connection: old });
        }
        session.peer = peer;
        session.attempt = request.attempt;
        session.nonce = header.command.0;
        session.resumed = session.known;
        session.confirmed = false;
        session.mtu = mtu;
        session.begin_paths(src, &self.nics);
        session.dormant = false;
        session.opened_at = now;
        session.heard_at = now;
        self.by_connection.remove(&old);
        self.by_connection.insert(id, slot);
        self.send_connect_reply(slot, src);
        self.look_after(slot);
    }

    fn send_connect_reply(&mut self, slot: usize, hop: Hop) {
        let cluster = self.cluster_word(slot);
        let Some(session) = &self.sessions[slot] else {
            return;
        };
        let reply = ConnectReply {
            responder: self.config.local,
            incarnation: self.config.incarnation,
            features: 0,
            mtu: session.mtu,
            credits: session.credits,
            resumed: session.resumed,
        };
        let header = Header {
            flags: Flags::REPLY,
            command: CommandId(session.nonce),
            ..session.header(Kind::Connect, cluster)
        };
        self.push_control(hop, header, reply.to_body());
    }

    /// Forgets a session. What of it is being executed is waited for before its initiator gets
    /// another one.
    pub(super) fn remove(&mut self, slot: usize) {
        let Some(session) = self.sessions[slot].take() else {
            return;
        };
        self.by_connection.remove(&session.connection);
        self.by_key.remove(&session.key());
        if let Some(at) = session.wake {
            self.wakes.remove(&(at, slot));
        }
        if session.executing > 0 {
            *self.draining.entry(session.key()).or_insert(0) += session.executing;
        }
        if session.has_lent {
            self.lent.retain(|with| *with != slot);
        }
        self.held -= session.held;
        self.free.push(slot);
        if session.confirmed {
            self.events.push_back(ServerEvent::Closed {
                connection: session.connection,
            });
        }
    }

    /// Makes room for a session: one that was never used, or else the longest silent one that
    /// nobody seems to be behind.
    fn evict(&mut self, now: Time) -> bool {
        let patience = KEEPALIVE_QUIET + LOST_AFTER;
        let victim = self
            .by_key
            .values()
            .filter_map(|slot| Some((*slot, self.sessions[*slot].as_ref()?)))
            .filter(|(_, s)| !s.known || (s.heard_at + patience < now && s.executing == 0))
            .min_by_key(|(slot, s)| (s.known, s.heard_at, *slot))
            .map(|(slot, _)| slot);
        if let Some(slot) = victim {
            self.remove(slot);
        }
        victim.is_some()
    }

    /// Takes memory back: from requests that stand still, then from sessions that are silent.
    pub(super) fn relieve(&mut self, now: Time) {
        if now < self.relieved_at + RELIEF_INTERVAL {
            return;
        }
        self.relieved_at = now;
        let patience = KEEPALIVE_QUIET + LOST_AFTER;
        let slots: Vec<usize> = self.by_key.values().copied().collect();
        for slot in slots {
            let Some(session) = self.sessions[slot].as_mut() else {
                continue;
            };
            if session.heard_at + patience < now && session.executing == 0 {
                self.remove(slot);
            } else if now.as_nanos() > STALLED_AFTER.as_nanos() as u64 {
                let before = Time::from_nanos(now.as_nanos() - STALLED_AFTER.as_nanos() as u64);
                self.held -= session.drop_stalled(before);
            }
        }
    }
}

enum Place {
    New,
    Resume(usize),
    Repeat(usize),
    Refuse(Status),
}
