//! The cluster's voters as this host asks them, and this host's own voter as others ask it.

use std::collections::BTreeSet;

use super::action::AgentAction;
use super::agent::Agent;
use super::members::{Liveness, Station};
use super::report::label;
use super::request::WatchEvent;
use crate::lease::{Answer, is_far_stamp};
use crate::wire::message::{Holder, LeaseReply, LeaseRequest, LeaseVerb};
use crate::wire::{CommandId, ConnectionId, Guid, Kind, Settings, Status, Time, Wire};

/// What a voter was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// A round of this host's session.
    Round(u64),
    /// An administrator's look at the lease.
    Query(u64),
    /// To keep settings that an administrator waits for.
    Settle(u64),
    /// To keep the settings that we have, and to tell newer ones.
    Exchange,
}

/// Who asked this host's own voter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VoteTag {
    /// Another host.
    Peer(ConnectionId, CommandId),
    /// A round of this host's session.
    Round(u64),
    /// An administrator's look at the lease.
    Query(u64),
    /// A change of settings by this host.
    Settle(u64),
    /// Nobody waits for the answer.
    Nobody,
}

impl Agent {
    /// All voters of the cluster: member hosts, this one included, and units; guests are voters of
    /// the cluster that they belong to.
    pub(super) fn voters(&self) -> BTreeSet<Guid> {
        let hosts = self.peers.keys().filter(|guid| !self.is_centre(**guid));
        let units = self.units.keys().filter(|unit| !self.is_guest(**unit));
        let others = hosts.chain(units).copied();
        others.chain([self.config.guid]).collect()
    }

    /// How many voters answer, or may yet.
    pub(super) fn voters_in_reach(&self) -> usize {
        let all = self.voters();
        let away = |guid: &&Guid| {
            let station = self.station(**guid);
            station.is_some_and(|s| s.liveness == Liveness::Unreachable)
        };
        all.len() - all.iter().filter(away).count()
    }

    /// Asks every voter that answers, but for this host's own; gives who was asked.
    pub(super) fn ask_voters(
        &mut self,
        now: Time,
        kind: Kind,
        body: &[u8],
        asked: Asked,
    ) -> BTreeSet<Guid> {
        let up: Vec<Guid> = self
            .voters()
            .into_iter()
            .filter(|guid| self.station(*guid).is_some_and(Station::is_up))
            .collect();
        let mut open = BTreeSet::new();
        for guid in up {
            if let Some(command) = self.submit_to_unit(now, guid, kind, body.to_vec(), 512) {
                self.lease.commands.insert((guid, command), asked);
                open.insert(guid);
            }
        }
        open
    }

    /// Gives up interest in answers.
    pub(super) fn drop_commands(&mut self, which: impl Fn(&Asked) -> bool) {
        let dropped: Vec<(Guid, CommandId)> = self
            .lease
            .commands
            .iter()
            .filter(|(_, asked)| which(asked))
            .map(|(key, _)| *key)
            .collect();
        for (guid, command) in dropped {
            self.lease.commands.remove(&(guid, command));
            if let Some(client) = self.hub.client_mut(&guid) {
                client.cancel(command);
            }
        }
    }

    /// Tells all voters that a session is over, or was never wanted.
    pub(super) fn tell_release(&mut self, now: Time, holder: &Holder) {
        let request = LeaseRequest {
            verb: LeaseVerb::Release,
            force: false,
            holder: holder.clone(),
        };
        let body = request.to_body();
        for guid in self.voters() {
            if self.station(guid).is_some_and(Station::is_up) {
                // Nothing follows from the answer.
                let _ = self.submit_to_unit(now, guid, Kind::Lease, body.clone(), 512);
            }
        }
        self.ask_own_voter(now, VoteTag::Nobody, &request);
    }

    pub(super) fn ask_own_voter(&mut self, now: Time, tag: VoteTag, request: &LeaseRequest) {
        let floor = self.table.highest_stamp().term;
        let settings = *self.table.settings();
        self.voter.learn(now, &settings);
        self.voter.ask(now, tag, request, floor);
    }

    /// Another host asks this host's voter.
    pub(super) fn serve_vote(
        &mut self,
        now: Time,
        tag: VoteTag,
        from: Guid,
        kind: Kind,
        body: &[u8],
    ) -> Result<(), Status> {
        if kind == Kind::Settle {
            let settings = Settings::from_body(body).map_err(|_| Status::BadRequest)?;
            let floor = self.table.highest_stamp().term;
            self.voter.settle(now, tag, &settings, floor);
            self.learn_settings(now, from, &settings);
            return Ok(());
        }
        let request = LeaseRequest::from_body(body).map_err(|_| Status::BadRequest)?;
        if request.holder.host != from {
            return Err(Status::BadRequest);
        }
        if request.verb == LeaseVerb::Ask && !request.force {
            self.lease_wanted(now);
        }
        self.ask_own_voter(now, tag, &request);
        self.check_overruled(now);
        Ok(())
    }

    /// Has stored what the own voter wants stored, and passes its answers on; whether there was
    /// anything.
    pub(super) fn follow_voter(&mut self, now: Time) -> bool {
        if let Some((token, vote)) = self.voter.poll_store(now) {
            let vote = Box::new(vote);
            self.act(AgentAction::PersistVote { token, vote });
        }
        let Some((tag, answer)) = self.voter.poll_answer() else {
            return false;
        };
        let own = self.config.guid;
        match tag {
            VoteTag::Peer(connection, command) => match answer {
                Ok(answer) => {
                    if let Some(server) = self.hub.server_mut() {
                        let body = answer.to_body();
                        server.reply(now, connection, command, Status::Ok, body);
                    }
                }
                Err(status) => self.refuse(now, connection, command, status),
            },
            VoteTag::Round(id) => self.on_vote(now, own, id, lease_answer(answer)),
            VoteTag::Query(id) => self.on_query_answer(now, own, id, lease_answer(answer)),
            VoteTag::Settle(id) => {
                let answer = match answer {
                    Ok(Answer::Settings(settings)) => Ok(settings),
                    Ok(Answer::Lease(_)) => Err(Status::BadRequest),
                    Err(status) => Err(status),
                };
                self.on_settled(now, own, id, answer);
            }
            VoteTag::Nobody => {}
        }
        true
    }

    /// Takes the outcome of an [`AgentAction::PersistVote`].
    pub fn vote_persisted(&mut self, now: Time, token: u64, ok: bool) {
        self.voter.stored(now, token, ok);
        self.pump(now);
    }

    /// A station has answered something; whether that was a question to it as a voter.
    pub(super) fn voter_reply(
        &mut self,
        now: Time,
        guid: Guid,
        command: CommandId,
        status: Status,
        body: &[u8],
    ) -> bool {
        let Some(asked) = self.lease.commands.remove(&(guid, command)) else {
            return false;
        };
        let reply = || match status {
            Status::Ok => LeaseReply::from_body(body).map_err(|_| Status::BadRequest),
            other => Err(other),
        };
        let settings = || match status {
            Status::Ok => Settings::from_body(body).map_err(|_| Status::BadRequest),
            other => Err(other),
        };
        match asked {
            Asked::Round(id) => self.on_vote(now, guid, id, reply()),
            Asked::Query(id) => self.on_query_answer(now, guid, id, reply()),
            Asked::Settle(id) => self.on_settled(now, guid, id, settings()),
            Asked::Exchange => {
                if let Ok(settings) = settings() {
                    self.learn_settings(now, guid, &settings);
                }
            }
        }
        true
    }

    /// A unit answers (again): whose settings are newer?
    pub(super) fn exchange_settings(&mut self, now: Time, unit: Guid) {
        let body = self.table.settings().to_body();
        if let Some(command) = self.submit_to_unit(now, unit, Kind::Settle, body, 64) {
            self.lease.commands.insert((unit, command), Asked::Exchange);
        }
    }

    /// Takes in settings that a voter told of, where they are newer.
    pub(super) fn learn_settings(&mut self, now: Time, from: Guid, settings: &Settings) {
        if is_far_stamp(&settings.stamp, self.known_term()) {
            self.warn_far_term(from, settings.stamp.term);
            return;
        }
        let before = *self.table.settings();
        self.table.join(settings, []);
        let after = *self.table.settings();
        if before == after {
            return;
        }
        self.voter.learn(now, &after);
        self.journal.note(&[Guid::NIL]);
        self.journal.unpublished = true;
        if before.granularity != after.granularity {
            self.tell(WatchEvent::GranularityChanged {
                before: before.granularity.name().to_owned(),
                after: after.granularity.name().to_owned(),
            });
        }
    }

    pub(super) fn warn_far_term(&mut self, from: Guid, term: u64) {
        let name = label(&self.table, from);
        self.warn(format!(
            "{name} tells of term {term}, far ahead of every term known here ({}): no honest one \
             has come so far; it is refused",
            self.known_term()
        ));
    }
}

fn lease_answer(answer: Result<Answer, Status>) -> Result<LeaseReply, Status> {
    match answer? {
        Answer::Lease(reply) => Ok(reply),
        Answer::Settings(_) => Err(Status::BadRequest),
    }
}
