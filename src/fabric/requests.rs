//! How fabric services execute requests: those that came together are one transaction, and nobody
//! is answered before it is durable.

use std::collections::BTreeSet;

use super::catalog::{Catalog, Entity};
use super::central::is_about_table;
use super::report::FabricEvent;
use super::service::{Fabric, PAGE_BYTES};
use crate::wire::message::{FindHost, MembershipRequest, Register, Registered, UnitOwnership};
use crate::wire::{
    ClusterName, CommandId, ConnectionId, EntityType, Guid, Kind, Mac, Status, Time, Wire,
};

/// A request that waits for the next transaction.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) connection: ConnectionId,
    pub(super) command: CommandId,
    pub(super) kind: Kind,
    pub(super) peer: Guid,
    pub(super) src: Mac,
    pub(super) body: Vec<u8>,
}

impl<C: Catalog> Fabric<C> {
    /// Executes the requests that have come together.
    pub(super) fn work(&mut self, now: Time) {
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return;
        }
        let (tables, batch): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|a| is_about_table(a.kind));
        let (writes, reads): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .partition(|a| matches!(a.kind, Kind::Register | Kind::UnitOwnership));
        let mut events = Vec::new();
        let mut done: Vec<_> = writes
            .iter()
            .map(|asked| self.write(now, asked, &mut events))
            .collect();
        if !self.commit(now) {
            // What needs no change is still answered; the rest learns that nothing was changed.
            events.clear();
            for (asked, outcome) in writes.iter().zip(&mut done) {
                if outcome.is_ok() {
                    *outcome = self.write(now, asked, &mut Vec::new());
                }
                if self.directory.is_staged() {
                    *outcome = Err(Status::NotPersisted);
                }
                self.directory.roll_back();
            }
        }
        for event in events {
            self.event(event);
        }
        for (asked, outcome) in writes.iter().zip(done) {
            self.answer_write(now, asked, outcome);
        }
        for asked in &reads {
            self.answer_read(now, asked);
        }
        self.serve_tables(now, tables);
    }

    /// Stages what a request asks for; a registration says the cluster.
    fn write(
        &mut self,
        now: Time,
        asked: &Asked,
        events: &mut Vec<FabricEvent>,
    ) -> Result<ClusterName, Status> {
        let seat = self.presence.seat(asked.connection);
        let seat = seat.ok_or(Status::NotReady)?;
        if asked.kind == Kind::UnitOwnership {
            if !seat.registered || seat.told != self.directory.cluster_of(asked.peer) {
                return Err(Status::WrongCluster);
            }
            let told = UnitOwnership::from_body(&asked.body).map_err(|_| Status::BadRequest)?;
            let before = self.directory.get(told.unit).map(|u| u.epoch);
            self.directory.own_unit(asked.peer, &told)?;
            let after = self.directory.get(told.unit).map(|u| u.epoch);
            if before != after {
                events.push(FabricEvent::UnitOwned {
                    teller: asked.peer,
                    unit: told.unit,
                    ownership: told.ownership,
                    epoch: told.epoch,
                });
            }
            return Ok(seat.told);
        }
        let register = Register::from_body(&asked.body).map_err(|_| Status::BadRequest)?;
        if register.guid != asked.peer {
            return Err(Status::WrongIdentity);
        }
        if !register.macs.contains(&asked.src) {
            return Err(Status::BadRequest);
        }
        if let Some(old) = self.directory.get(register.guid) {
            let session = seat.session;
            let twin = self
                .presence
                .twin(now, register.guid, asked.src, session, &old.macs);
            if let Some(alive) = twin {
                self.refuse_twin(now, register.guid, alive, asked.src);
                return Err(Status::WrongIdentity);
            }
        }
        let presence = &self.presence;
        let silent_longest = |pending: &BTreeSet<Guid>| {
            let heard = |g: &Guid| presence.last_heard(*g).map(|(_, at)| at);
            pending.iter().min_by_key(|g| heard(g)).copied()
        };
        let mut notes = Vec::new();
        let cluster =
            self.directory
                .register(&register, self.config.policy, silent_longest, &mut notes)?;
        events.extend(notes.into_iter().map(|note| FabricEvent::Registered {
            guid: register.guid,
            name: register.name.clone(),
            entity: register.entity,
            note,
        }));
        Ok(cluster)
    }

    fn answer_write(&mut self, now: Time, asked: &Asked, outcome: Result<ClusterName, Status>) {
        let Asked {
            connection,
            command,
            ..
        } = *asked;
        let cluster = match outcome {
            Ok(cluster) => cluster,
            Err(status) => return self.refuse(now, connection, command, status),
        };
        if asked.kind == Kind::UnitOwnership {
            self.counters.ownerships += 1;
            self.server
                .reply(now, connection, command, Status::Ok, Vec::new());
            return;
        }
        self.counters.registrations += 1;
        self.presence
            .registered(now, connection, asked.src, cluster);
        if cluster.is_none() {
            return self.refuse(now, connection, command, Status::Pending);
        }
        let body = Registered {
            cluster,
            version: self.directory.state().version,
            assignment: self.directory.get(asked.peer).map_or(0, |e| e.assignment),
        };
        self.server
            .reply(now, connection, command, Status::Ok, body.to_body());
    }

    fn answer_read(&mut self, now: Time, asked: &Asked) {
        let (connection, command) = (asked.connection, asked.command);
        let page = match asked.kind {
            Kind::Membership => self.page(asked),
            Kind::FindHost => self.find_host(asked),
            _ => Err(Status::Unsupported),
        };
        match page {
            Ok(body) => self
                .server
                .reply(now, connection, command, Status::Ok, body),
            Err(status) => self.refuse(now, connection, command, status),
        }
    }

    /// Which host of any cluster has a name: for members who move something there.
    fn find_host(&self, asked: &Asked) -> Result<Vec<u8>, Status> {
        let seat = self.presence.seat(asked.connection);
        let seat = seat.ok_or(Status::NotReady)?;
        if !seat.registered || self.directory.cluster_of(asked.peer).is_none() {
            return Err(Status::Pending);
        }
        let request = FindHost::from_body(&asked.body).map_err(|_| Status::BadRequest)?;
        Ok(self.directory.find_host(&request)?.to_body())
    }

    /// A page of the list of the cluster that the asker is registered in, whatever it says.
    fn page(&mut self, asked: &Asked) -> Result<Vec<u8>, Status> {
        let seat = self.presence.seat(asked.connection);
        let seat = seat.ok_or(Status::NotReady)?;
        let cluster = self.directory.cluster_of(asked.peer);
        if cluster.is_none() || !seat.registered {
            return Err(Status::Pending);
        }
        if seat.told != cluster {
            return Err(Status::WrongCluster);
        }
        // A unit says itself where it belongs: it is told of nobody there.
        let is_unit = |e: &Entity| e.entity == EntityType::Unit;
        if self.directory.get(asked.peer).is_some_and(is_unit) {
            return Err(Status::Unsupported);
        }
        let request = MembershipRequest::from_body(&asked.body).map_err(|_| Status::BadRequest)?;
        let reply = self
            .directory
            .page(cluster, request.known_version, request.after, PAGE_BYTES);
        if reply.unchanged {
            self.counters.unchanged += 1;
        } else {
            self.counters.pages += 1;
        }
        Ok(reply.to_body())
    }
}
