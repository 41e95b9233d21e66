//! The unit as a voter of the allocation lease: a witness, so that two hosts have a majority.

use super::{Unit, UnitAction};
use crate::wire::kind::Role;
use crate::wire::message::{Holder, LeaseRequest};
use crate::wire::{CommandId, ConnectionId, Guid, Kind, Settings, Status, Time, Wire};

impl Unit {
    /// Takes a request to the voter; an error is answered at once.
    pub(super) fn serve_vote(
        &mut self,
        now: Time,
        from: (ConnectionId, CommandId),
        peer: Guid,
        kind: Kind,
        body: &[u8],
    ) -> Result<(), Status> {
        let role = self.management.peer(from.0).map(|p| p.role);
        if role.is_some_and(|role| role != Role::Host) {
            return Err(Status::Unsupported);
        }
        // Guests have voters of their own.
        if !self.is_home(from.0) {
            return Err(Status::Unsupported);
        }
        // Without its registers a unit does not know which terms it has seen.
        let registers = self.registers.as_ref().ok_or(Status::NoRegisters)?;
        let floor = registers.own().term();
        if kind == Kind::Settle {
            let settings = Settings::from_body(body).map_err(|_| Status::BadRequest)?;
            self.voter.settle(now, from, &settings, floor);
            return Ok(());
        }
        let request = LeaseRequest::from_body(body).map_err(|_| Status::BadRequest)?;
        if request.holder.host != peer {
            return Err(Status::BadRequest);
        }
        self.voter.ask(now, from, &request, floor);
        Ok(())
    }

    /// Has stored what the voter wants stored, and passes its answers on.
    pub(super) fn follow_voter(&mut self, now: Time) {
        if let Some((token, vote)) = self.voter.poll_store(now) {
            let vote = Box::new(vote);
            self.actions
                .push_back(UnitAction::PersistVote { token, vote });
        }
        while let Some(((connection, command), answer)) = self.voter.poll_answer() {
            let (status, body) = match answer {
                Ok(answer) => (Status::Ok, answer.to_body()),
                Err(status) => (status, Vec::new()),
            };
            self.management
                .reply(now, connection, command, status, body);
        }
    }

    /// Takes the outcome of a [`UnitAction::PersistVote`].
    pub fn vote_persisted(&mut self, now: Time, token: u64, ok: bool) {
        self.voter.stored(now, token, ok);
        self.drain(now);
    }

    /// The session that this voter has granted, while it is in force.
    pub fn lease_holder(&self, now: Time) -> Option<&Holder> {
        self.voter.holder(now)
    }
}
