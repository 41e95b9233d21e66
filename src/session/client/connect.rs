//! How a client opens its connections and what a new one means for its commands.

use std::time::Duration;

use super::nics::{NicState, PathReport};
use super::paths::Path;
use super::{Client, ClientEvent, Connecting, Connection, State};
use crate::session::limits::{CONNECT_INTERVAL, RECONNECT_INTERVAL, RTO_INITIAL, RTO_MAX};
use crate::wire::message::{ConnectReply, ConnectRequest};
use crate::wire::{
    CommandId, ConnectionId, DropReason, Header, Hop, Kind, Mac, Status, Time, Wire,
};

/// By how many pairs of NICs a connect goes at a time.
const HOPS_AT_ONCE: usize = 4;

impl Client {
    /// Connects to `remote` and from then on keeps itself connected; with another address later,
    /// moves there.
    pub fn connect(&mut self, now: Time, remote: Mac) {
        self.reach(now, &[remote]);
    }

    /// The same with all addresses of the responder, by each of which the connection may go at the same
    /// time; with others later, moves where it has to.
    pub fn reach(&mut self, now: Time, remotes: &[Mac]) {
        if matches!(self.state, State::Closed)
            || remotes.is_empty()
            || (!self.is_idle() && self.remotes == remotes)
        {
            return;
        }
        self.remotes = remotes.to_vec();
        let used = &self.commands.paths;
        if self.is_connected() && used.good_macs().any(|mac| remotes.contains(&mac)) {
            self.offer_paths(now);
        } else {
            self.reconnect(now, now);
        }
    }

    /// The own NICs, by number; at first there is one.
    pub fn set_nics(&mut self, now: Time, nics: &[NicState]) {
        if nics.is_empty() || self.nics == nics {
            return;
        }
        self.nics = nics.to_vec();
        self.offer_paths(now);
    }

    /// The connection's paths.
    pub fn paths(&self) -> impl Iterator<Item = PathReport> + '_ {
        let is_connected = self.is_connected();
        let paths = self.commands.paths.list.iter();
        paths.filter(move |_| is_connected).map(Path::report)
    }

    /// Drops the connection there may be and opens another one at `at`.
    pub(super) fn reconnect(&mut self, now: Time, at: Time) {
        if self.is_connected() {
            self.events.push_back(ClientEvent::Lost);
            self.lost_at = Some(now);
        }
        self.control.clear();
        self.commands.pause();
        self.attempt = self.attempt.wrapping_add(1);
        self.state = State::Connecting(Connecting {
            nonce: self.rng.u64(1..),
            tries: 0,
            began: None,
            at,
            due: at <= now,
            hops: Vec::new(),
            next_hop: 0,
        });
    }

    /// All pairs of NICs, those of the same place in both lists first, without NICs that do not work
    /// (unless none does).
    pub(super) fn hops(&self) -> Vec<Hop> {
        let any = self.nics.iter().any(|nic| nic.up);
        let nics: Vec<u8> = (0..)
            .zip(&self.nics)
            .filter(|(_, nic)| nic.up || !any)
            .map(|(number, _)| number)
            .collect();
        let remotes = &self.remotes;
        (0..remotes.len())
            .flat_map(|turn| {
                nics.iter().map(move |nic| Hop {
                    mac: remotes[(usize::from(*nic) + turn) % remotes.len()],
                    nic: *nic,
                })
            })
            .collect()
    }

    /// What the own NIC of a hop takes.
    fn nic_mtu(&self, hop: Hop) -> u16 {
        let nic = self.nics.get(usize::from(hop.nic));
        nic.map_or(self.config.mtu, |nic| nic.mtu)
    }

    /// Tells the connection's paths which pairs of NICs there are.
    pub(super) fn offer_paths(&mut self, now: Time) {
        if self.is_connected() && self.config.service {
            let hops = self.hops();
            let (nics, mtu) = (&self.nics, self.settled_mtu);
            self.commands.paths.offer(now, &hops, nics, mtu);
        }
    }

    /// Reconnects at once, but not again and again.
    pub(super) fn reconnect_limited(&mut self, now: Time) {
        let earliest = self.lost_at.map_or(now, |t| t + RECONNECT_INTERVAL);
        self.reconnect(now, now.max(earliest));
    }

    /// Emits the connect where it is time for it, and says where to: one after the other to some of the
    /// pairs of NICs, and to others the next time.
    pub(super) fn transmit_connect(&mut self, now: Time, out: &mut Vec<u8>) -> Option<Hop> {
        let all = match &self.state {
            State::Connecting(connecting) if connecting.due => self.hops(),
            _ => Vec::new(),
        };
        let State::Connecting(connecting) = &mut self.state else {
            return None;
        };
        if std::mem::take(&mut connecting.due) {
            let jitter = self.rng.u64(0..CONNECT_INTERVAL.as_nanos() as u64 / 4);
            connecting.began.get_or_insert(now);
            let wait = (CONNECT_INTERVAL * (1 << connecting.tries.min(6))).min(RTO_MAX);
            connecting.tries += 1;
            connecting.at = now + wait + Duration::from_nanos(jitter);
            let count = all.len().min(HOPS_AT_ONCE);
            let start = connecting.next_hop;
            connecting.hops = (0..count).map(|n| all[(start + n) % all.len()]).collect();
            connecting.hops.reverse();
            connecting.next_hop = start + count;
        }
        let hop = connecting.hops.pop()?;
        let nonce = connecting.nonce;
        let request = ConnectRequest {
            initiator: self.config.local,
            incarnation: self.config.incarnation,
            session: self.session,
            attempt: self.attempt,
            role: self.config.role,
            responder: self.config.remote,
            features: 0,
            mtu: self.config.mtu,
            credits: self.config.credits,
        };
        let header = Header {
            kind: Kind::Connect,
            command: CommandId(nonce),
            ..self.base(ConnectionId(0))
        };
        header.emit_whole(&request.to_body(), out);
        Some(hop)
    }

    /// Takes the answer to the connect: its reply, or a refusal.
    pub(super) fn on_connect_answer(
        &mut self,
        now: Time,
        hop: Hop,
        header: &Header,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        if header.kind == Kind::Refused || header.status != Status::Ok {
            self.on_refused(now, header.status);
            return Ok(());
        }
        let reply = ConnectReply::from_body(payload).map_err(|_| DropReason::Body)?;
        if header.connection.0 == 0 {
            return Err(DropReason::Connection);
        }
        if !self.config.remote.is_nil() && reply.responder != self.config.remote {
            self.on_refused(now, Status::WrongIdentity);
            return Ok(());
        }
        let responder = (reply.responder, reply.incarnation);
        if reply.resumed && self.responder != Some(responder) {
            // What the responder remembers under our number is not ours: its commands would be
            // taken for ours.
            self.raise_session();
            self.reconnect(now, now);
            return Ok(());
        }
        if let State::Connecting(connecting) = &self.state
            && let Some(began) = connecting.began
            && now.since(began) > RTO_INITIAL
        {
            self.commands.paths.list[0].rtt.suspect(now.since(began));
        }
        let resumed = reply.resumed;
        self.commands
            .set_credits(reply.credits.min(self.config.credits));
        self.settled_mtu = reply.mtu.min(self.config.mtu);
        let limits = (self.nic_mtu(hop), self.settled_mtu);
        self.commands.paths.open(now, hop, limits);
        if resumed {
            self.commands.resume();
        } else {
            self.commands.restart();
            self.notified.clear();
        }
        self.responder = Some(responder);
        self.refused = None;
        self.state = State::Connected(Connection {
            id: header.connection,
            heard_at: now,
            asked_at: now,
            missed: 0,
            missed_since: now,
            unconfirmed: true,
        });
        self.offer_paths(now);
        self.events.push_back(ClientEvent::Connected {
            responder: reply.responder,
            incarnation: reply.incarnation,
            resumed,
        });
        Ok(())
    }

    fn on_refused(&mut self, now: Time, status: Status) {
        let State::Connecting(connecting) = &self.state else {
            return;
        };
        let (at, tries) = (connecting.at, connecting.tries);
        // The session's number is taken by an earlier client of this incarnation. Nothing was
        // sent under ours, so another one is as good.
        if status == Status::UnknownConnection && self.responder.is_none() {
            self.raise_session();
        } else if self.refused != Some(status) {
            self.refused = Some(status);
            self.events.push_back(ClientEvent::Refused(status));
        }
        self.reconnect(now, at);
        if let State::Connecting(connecting) = &mut self.state {
            connecting.tries = tries;
        }
    }

    /// Takes a larger number for the session: in 64 steps at most it is larger than any.
    const fn raise_session(&mut self) {
        self.session = self.session.saturating_mul(2).saturating_add(1);
        self.attempt = 0;
    }
}
