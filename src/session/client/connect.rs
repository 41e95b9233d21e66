//! How a client opens its connections and what a new one means for its commands.

use std::time::Duration;

use super::{Client, ClientEvent, Connecting, Connection, State};
use crate::session::limits::{CONNECT_INTERVAL, RECONNECT_INTERVAL, RTO_INITIAL, RTO_MAX};
use crate::wire::message::{ConnectReply, ConnectRequest};
use crate::wire::{CommandId, ConnectionId, DropReason, Header, Kind, Status, Time, Wire};

impl Client {
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
        });
    }

    /// Reconnects at once, but not again and again.
    pub(super) fn reconnect_limited(&mut self, now: Time) {
        let earliest = self.lost_at.map_or(now, |t| t + RECONNECT_INTERVAL);
        self.reconnect(now, now.max(earliest));
    }

    /// Emits the connect where it is time for it.
    pub(super) fn transmit_connect(&mut self, now: Time, out: &mut Vec<u8>) -> bool {
        let jitter = self.rng.u64(0..CONNECT_INTERVAL.as_nanos() as u64 / 4);
        let State::Connecting(connecting) = &mut self.state else {
            return false;
        };
        if !std::mem::take(&mut connecting.due) {
            return false;
        }
        connecting.began.get_or_insert(now);
        let wait = (CONNECT_INTERVAL * (1 << connecting.tries.min(6))).min(RTO_MAX);
        connecting.tries += 1;
        connecting.at = now + wait + Duration::from_nanos(jitter);
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
        true
    }

    /// Takes the answer to the connect: its reply, or a refusal.
    pub(super) fn on_connect_answer(
        &mut self,
        now: Time,
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
            self.commands.rtt.suspect(now.since(began));
        }
        let resumed = reply.resumed;
        self.commands
            .set_credits(reply.credits.min(self.config.credits));
        self.commands.set_mtu(reply.mtu.min(self.config.mtu));
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
