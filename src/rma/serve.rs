//! The side that other hosts' RMAs ask: our stamp, pages of our table, their offers.

use super::agent::Agent;
use super::config::MAX_PAGE_BYTES;
use super::journal::Waiter;
use super::timers::Timer;
use crate::session::ServerEvent;
use crate::wire::message::{Offer, TableRowsReply, TableRowsRequest};
use crate::wire::{CommandId, ConnectionId, EntityType, Guid, Kind, Status, Time, Wire};

/// The most pages that wait until the table is stored; further requests are told to come again.
const MAX_DEFERRED: usize = 4096;

/// A page asked for while the table has changes that are not durable.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deferred {
    connection: ConnectionId,
    command: CommandId,
    after: Guid,
}

impl Agent {
    pub(super) fn on_server_event(&mut self, now: Time, event: ServerEvent) {
        match event {
            ServerEvent::Opened { peer, .. } => {
                if peer.guid == self.config.guid {
                    self.warn(format!(
                        "another machine ({}) connects with this host's GUID {}; is its disk a \
                         copy of this one's? Give one of both a new GUID",
                        peer.mac, peer.guid
                    ));
                }
            }
            ServerEvent::Closed { .. } => {}
            ServerEvent::Request {
                connection,
                command,
                kind,
                peer,
                body,
                ..
            } => {
                if let Err(status) = self.serve(now, connection, command, kind, peer, &body) {
                    self.refuse(now, connection, command, status);
                }
            }
        }
    }

    fn serve(
        &mut self,
        now: Time,
        connection: ConnectionId,
        command: CommandId,
        kind: Kind,
        from: Guid,
        body: &[u8],
    ) -> Result<(), Status> {
        if from == self.config.guid {
            return Err(Status::WrongIdentity);
        }
        if self.boot.is_stopped() || self.boot.is_idle() {
            return Err(Status::NotReady);
        }
        if !self.is_fellow(from) {
            // Perhaps a newcomer that fabric services have not told us of.
            self.link.poll_now(now);
            return Err(Status::NotReady);
        }
        match kind {
            Kind::TableStamp if body.is_empty() => {
                self.answer_summary(now, connection, command);
                Ok(())
            }
            Kind::TableRows => {
                let request = TableRowsRequest::from_body(body).map_err(|_| Status::BadRequest)?;
                if self.deferred.len() >= MAX_DEFERRED {
                    return Err(Status::Busy);
                }
                self.deferred.push_back(Deferred {
                    connection,
                    command,
                    after: request.after,
                });
                self.serve_deferred(now);
                Ok(())
            }
            Kind::Offer => {
                let offer = Offer::from_body(body).map_err(|_| Status::BadRequest)?;
                self.on_offer(now, connection, command, from, offer);
                Ok(())
            }
            Kind::TableStamp => Err(Status::BadRequest),
            _ => Err(Status::Unsupported),
        }
    }

    /// Whether a host is of our cluster.
    fn is_fellow(&self, guid: Guid) -> bool {
        let row = self.table.get(guid);
        row.is_some_and(|row| row.entity == EntityType::Host) && self.is_member(guid)
    }

    fn on_offer(
        &mut self,
        now: Time,
        connection: ConnectionId,
        command: CommandId,
        from: Guid,
        offer: Offer,
    ) {
        if self.same_content(&offer.summary) {
            // Somebody tells all of them what we were about to tell.
            self.timers.cancel(Timer::Push);
        } else {
            self.take_in(from, &offer.summary, &offer.settings, offer.rows, false);
        }
        self.on_summary(now, from, offer.summary);
        // The answer tells what is durable then.
        self.journal
            .waiters
            .push(Waiter::Offer(connection, command));
    }

    /// Answers with the table's summary as it is durable.
    pub(super) fn answer_summary(
        &mut self,
        now: Time,
        connection: ConnectionId,
        command: CommandId,
    ) {
        let body = self.journal.durable.to_body();
        if let Some(server) = self.hub.server_mut() {
            server.reply(now, connection, command, Status::Ok, body);
        }
    }

    pub(super) fn refuse(
        &mut self,
        now: Time,
        connection: ConnectionId,
        command: CommandId,
        status: Status,
    ) {
        if let Some(server) = self.hub.server_mut() {
            server.reply(now, connection, command, status, Vec::new());
        }
    }

    /// Answers who asked for pages, once all that they would hold is durable.
    pub(super) fn serve_deferred(&mut self, now: Time) {
        while self.journal.is_clean()
            && let Some(wanted) = self.deferred.pop_front()
        {
            let (rows, more) = self.table.rows_after(wanted.after, MAX_PAGE_BYTES);
            let reply = TableRowsReply {
                summary: self.journal.durable,
                settings: *self.table.settings(),
                more,
                rows,
            };
            if let Some(server) = self.hub.server_mut() {
                let (connection, command) = (wanted.connection, wanted.command);
                server.reply(now, connection, command, Status::Ok, reply.to_body());
            }
        }
    }
}
