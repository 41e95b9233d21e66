//! The side that other hosts' RMAs ask: our stamp, digests and pages of our table, their offers.

use super::agent::Agent;
use super::config::MAX_PAGE_BYTES;
use super::joining::Extent;
use super::journal::Waiter;
use super::voters::VoteTag;
use crate::session::ServerEvent;
use crate::wire::message::{
    InUseRequest, Offer, TableDigestsReply, TableDigestsRequest, TableRowsReply, TableRowsRequest,
    TableSummary,
};
use crate::wire::{CommandId, ConnectionId, EntityType, Guid, Kind, Status, Time, Wire};

/// The most pages that wait until the table is stored; further requests are told to come again.
const MAX_DEFERRED: usize = 4096;

/// Something asked for while the table has changes that are not durable.
#[derive(Debug)]
pub(super) struct Deferred {
    connection: ConnectionId,
    command: CommandId,
    wanted: Wanted,
}

#[derive(Debug)]
enum Wanted {
    Digests(TableDigestsRequest),
    Rows(TableRowsRequest),
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
            self.ask_for_newcomers(now);
            return Err(Status::NotReady);
        }
        match kind {
            Kind::TableStamp => {
                if !body.is_empty() {
                    let theirs = TableSummary::from_body(body).map_err(|_| Status::BadRequest)?;
                    self.on_told_stamp(now, from, theirs);
                }
                self.answer_summary(now, connection, command);
                Ok(())
            }
            Kind::TableDigests | Kind::TableRows => {
                let wanted = match kind {
                    Kind::TableRows => TableRowsRequest::from_body(body).map(Wanted::Rows),
                    _ => TableDigestsRequest::from_body(body).map(Wanted::Digests),
                };
                let wanted = wanted.map_err(|_| Status::BadRequest)?;
                if self.deferred.len() >= MAX_DEFERRED {
                    return Err(Status::Busy);
                }
                self.deferred.push_back(Deferred {
                    connection,
                    command,
                    wanted,
                });
                self.serve_deferred(now);
                Ok(())
            }
            Kind::Offer => {
                let offer = Offer::from_body(body).map_err(|_| Status::BadRequest)?;
                if self.is_impossible(from, &offer.summary) {
                    return Err(Status::BadRequest);
                }
                if !self.is_plausible(from, &offer.summary) {
                    return Err(Status::FarTerm);
                }
                self.on_offer(now, connection, command, from, offer);
                Ok(())
            }
            Kind::Lease | Kind::Settle => {
                let tag = VoteTag::Peer(connection, command);
                self.serve_vote(now, tag, from, kind, body)
            }
            Kind::InUse => {
                let request = InUseRequest::from_body(body).map_err(|_| Status::BadRequest)?;
                self.on_use_asked(connection, command, request.rows)
            }
            _ => Err(Status::Unsupported),
        }
    }

    /// Whether a host is of our cluster.
    fn is_fellow(&self, guid: Guid) -> bool {
        let row = self.table.get(guid);
        row.is_some_and(|row| row.entity == EntityType::Host) && self.is_member(guid)
    }

    /// A peer tells its stamp with the question for ours. Where both are the same there is nothing to
    /// ask it for an interval.
    fn on_told_stamp(&mut self, now: Time, from: Guid, theirs: TableSummary) {
        if theirs == self.journal.durable
            && self.journal.is_clean()
            && self.boot.is_steady()
            && let Some(peer) = self.peers.get(&from)
            && peer.summary == Some(theirs)
        {
            self.set_peer_poll(now, from);
        } else {
            self.on_summary(now, from, theirs);
        }
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
            self.keep_quiet();
        } else {
            let (summary, settings) = (&offer.summary, &offer.settings);
            self.take_in(from, summary, settings, offer.rows, &Extent::Offered, 0);
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

    /// Answers who asked for digests and rows, once all that they tell is durable.
    pub(super) fn serve_deferred(&mut self, now: Time) {
        while self.journal.is_clean()
            && let Some(deferred) = self.deferred.pop_front()
        {
            let (summary, settings) = (self.journal.durable, *self.table.settings());
            let body = match &deferred.wanted {
                Wanted::Digests(request) => TableDigestsReply {
                    summary,
                    settings,
                    digests: self.table.part_digests(request),
                }
                .to_body(),
                Wanted::Rows(TableRowsRequest { after, parts }) => {
                    let (rows, more) = self.table.rows_after(*after, parts, MAX_PAGE_BYTES);
                    TableRowsReply {
                        summary,
                        settings,
                        more,
                        rows,
                    }
                    .to_body()
                }
            };
            if let Some(server) = self.hub.server_mut() {
                let (connection, command) = (deferred.connection, deferred.command);
                server.reply(now, connection, command, Status::Ok, body);
            }
        }
    }
}
