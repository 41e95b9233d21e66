//! The unit management service: lists of controllers, ownership registers, and transactions on them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::registers::Verdict;
use super::{MAX_QUEUED_CHANGES, Unit, UnitAction};
use crate::planted::{self, Bug};
use crate::session::ServerEvent;
use crate::wire::kind::{Event, Role};
use crate::wire::message::{
    CompareAndSet, Conflict, OwnershipRegister, RegistersReply, RegistersRequest,
};
use crate::wire::{CommandId, ConnectionId, Guid, IocNumber, Kind, Status, Time, Wire};

/// A transaction that waits for its turn.
#[derive(Debug)]
pub(super) struct QueuedChange {
    connection: ConnectionId,
    command: CommandId,
    request: CompareAndSet,
}

/// The transaction under way: judged good, not yet in force.
#[derive(Debug)]
pub(super) struct Transaction {
    token: u64,
    connection: ConnectionId,
    command: CommandId,
    /// What will be in force, by ascending row.
    registers: Vec<OwnershipRegister>,
    term: u64,
    /// Writes under way of hosts that lose the device.
    draining: BTreeSet<u64>,
    is_durable: bool,
}

/// How long a reset register that could not be stored rests.
const RESET_RETRY: Duration = Duration::from_secs(1);

/// Registers that were reset because their row came back under other owners: in force at once, so
/// that nobody writes who must not, and told to nobody before they are durable.
#[derive(Debug, Default)]
pub(super) struct Resets {
    /// On their way to the disk, by token.
    storing: BTreeMap<u64, OwnershipRegister>,
    /// Could not be stored.
    failed: Vec<OwnershipRegister>,
    retry_at: Option<Time>,
}

impl Resets {
    /// Whether all of them are durable.
    fn are_durable(&self) -> bool {
        self.storing.is_empty() && self.failed.is_empty()
    }

    /// When the next try is due.
    pub(super) const fn deadline(&self) -> Option<Time> {
        self.retry_at
    }
}

impl Transaction {
    /// Whether `host` will still own `row`, as far as this transaction is concerned.
    pub(super) fn keeps(&self, row: Guid, host: Guid) -> bool {
        match self.registers.binary_search_by_key(&row, |r| r.row) {
            Ok(at) => self.registers[at].ownership.includes(host),
            Err(_) => true,
        }
    }
}

impl Unit {
    pub(super) fn serve_management(&mut self, now: Time, event: ServerEvent) {
        let ServerEvent::Request {
            connection,
            command,
            kind,
            peer,
            body,
            ..
        } = event
        else {
            return;
        };
        let answer = match kind {
            Kind::KeepAlive => Ok(Vec::new()),
            Kind::Controllers if body.is_empty() => Ok(self.controllers().to_body()),
            Kind::Controllers => Err(Status::BadRequest),
            Kind::Registers => self.registers_page(&body),
            Kind::Lease | Kind::Settle => {
                match self.serve_vote(now, (connection, command), peer, kind, &body) {
                    Ok(()) => return,
                    Err(status) => Err(status),
                }
            }
            Kind::CompareAndSet => match self.admit_change(connection, peer, &body) {
                Ok(request) => {
                    self.queue.push_back(QueuedChange {
                        connection,
                        command,
                        request,
                    });
                    return self.next_change(now);
                }
                Err(status) => Err(status),
            },
            Kind::Restore => match self.restore_part(now, (connection, command), peer, &body) {
                Some(answer) => answer,
                None => return,
            },
            _ => Err(Status::Unsupported),
        };
        let (status, body) = match answer {
            Ok(body) => (Status::Ok, body),
            Err(status) => (status, Vec::new()),
        };
        self.management
            .reply(now, connection, command, status, body);
    }

    fn registers_page(&self, body: &[u8]) -> Result<Vec<u8>, Status> {
        let request = RegistersRequest::from_body(body).map_err(|_| Status::BadRequest)?;
        let registers = self.registers.as_ref().ok_or(Status::NoRegisters)?;
        if !self.resets.are_durable() {
            return Err(Status::Busy);
        }
        Ok(registers.page(request.after).to_body())
    }

    /// What can be said of a transaction before it has its turn.
    fn admit_change(
        &self,
        connection: ConnectionId,
        peer: Guid,
        body: &[u8],
    ) -> Result<CompareAndSet, Status> {
        let role = self.management.peer(connection).map(|p| p.role);
        if role.is_some_and(|role| role != Role::Host) {
            return Err(Status::Unsupported);
        }
        let request = CompareAndSet::from_body(body).map_err(|_| Status::BadRequest)?;
        if request.writer != peer {
            return Err(Status::BadRequest);
        }
        if self.queue.len() >= MAX_QUEUED_CHANGES {
            return Err(Status::Busy);
        }
        Ok(request)
    }

    /// Begins transactions until one has to wait for the disk. One at a time: each is judged by
    /// registers that are in force and durable.
    fn next_change(&mut self, now: Time) {
        while self.transaction.is_none()
            && let Some(change) = self.queue.pop_front()
        {
            let verdict = self.registers.as_ref().map(|registers| {
                registers.judge(&change.request, &self.inventory, self.voter.promised())
            });
            let (status, body) = match verdict {
                None => (Status::NoRegisters, Vec::new()),
                Some(Verdict::Already(registers)) => (Status::Ok, registers_body(registers)),
                Some(Verdict::Refused(status, register)) => {
                    (status, Conflict { register }.to_body())
                }
                Some(Verdict::Change(registers)) => {
                    self.begin(&change, registers);
                    if planted::is(Bug::AnsweredBeforeDurable)
                        && let Some(transaction) = &mut self.transaction
                    {
                        transaction.is_durable = true;
                        self.commit_when_ready(now);
                    }
                    return;
                }
            };
            self.management
                .reply(now, change.connection, change.command, status, body);
        }
    }

    fn begin(&mut self, change: &QueuedChange, registers: Vec<OwnershipRegister>) {
        let token = self.token();
        let term = change.request.term;
        let mut transaction = Transaction {
            token,
            connection: change.connection,
            command: change.command,
            registers: registers.clone(),
            term,
            draining: BTreeSet::new(),
            is_durable: false,
        };
        transaction.draining = self
            .in_flight
            .iter()
            .filter(|(_, io)| io.is_change && !transaction.keeps(io.row, io.peer))
            .filter(|_| !planted::is(Bug::NoDrain))
            .map(|(token, _)| *token)
            .collect();
        self.transaction = Some(transaction);
        self.actions.push_back(UnitAction::PersistRegisters {
            token,
            registers,
            term,
        });
    }

    pub(super) fn finish_persist(&mut self, now: Time, token: u64, ok: bool) {
        if let Some(register) = self.resets.storing.remove(&token) {
            return self.finish_reset(now, register, ok);
        }
        if self.finish_restore(now, token, ok) {
            return;
        }
        let Some(transaction) = self.transaction.as_mut().filter(|t| t.token == token) else {
            return;
        };
        if ok {
            transaction.is_durable = true;
            self.commit_when_ready(now);
        } else if let Some(failed) = self.transaction.take() {
            let (connection, command) = (failed.connection, failed.command);
            self.management
                .reply(now, connection, command, Status::NotPersisted, Vec::new());
            self.next_change(now);
        }
    }

    /// A disk operation is over: the transaction under way may have waited for it.
    pub(super) fn drained(&mut self, now: Time, token: u64) {
        if let Some(transaction) = &mut self.transaction
            && transaction.draining.remove(&token)
        {
            self.commit_when_ready(now);
        }
    }

    fn commit_when_ready(&mut self, now: Time) {
        let ready = |t: &Transaction| t.is_durable && t.draining.is_empty();
        let Some(done) = self.transaction.take_if(|t| ready(t)) else {
            return;
        };
        if let Some(registers) = &mut self.registers {
            registers.install(done.registers.clone(), done.term);
        }
        // Rows that came (back) while this was under way were permitted by what was before.
        for register in &done.registers {
            self.reset_children(register.row);
        }
        self.management.reply(
            now,
            done.connection,
            done.command,
            Status::Ok,
            registers_body(done.registers),
        );
        self.notify(now, Event::RegistersChanged, IocNumber(0));
        self.next_change(now);
    }

    /// Resets what a row does not permit below it.
    fn reset_children(&mut self, row: Guid) {
        let Some(registers) = &self.registers else {
            return;
        };
        for child in registers.children(row, &self.inventory) {
            self.reset_register(child);
        }
    }

    /// A row came (back) into the unit: where its parent does not permit its last owners any more,
    /// it is unallocated from now on, and so is below it what that does not permit.
    pub(super) fn reset_register(&mut self, row: Guid) {
        if self.reset_one(row) || self.inventory.device_info(row).is_some() {
            self.reset_children(row);
        }
    }

    /// Whether there was something to reset.
    fn reset_one(&mut self, row: Guid) -> bool {
        let Some(registers) = &mut self.registers else {
            return false;
        };
        let Some(register) = registers.reset(row, &self.inventory) else {
            return false;
        };
        registers.install(vec![register.clone()], registers.term());
        self.store_reset(register);
        true
    }

    fn store_reset(&mut self, register: OwnershipRegister) {
        let (token, term) = (self.token(), self.term());
        self.resets.storing.insert(token, register.clone());
        self.actions.push_back(UnitAction::PersistRegisters {
            token,
            registers: vec![register],
            term,
        });
    }

    fn finish_reset(&mut self, now: Time, register: OwnershipRegister, ok: bool) {
        if !ok {
            self.resets.failed.push(register);
            self.resets.retry_at = Some(now + RESET_RETRY);
        } else if self.resets.are_durable() {
            self.notify(now, Event::RegistersChanged, IocNumber(0));
        }
    }

    /// Stores again what could not be stored, as far as no newer change has taken its place.
    pub(super) fn retry_resets(&mut self, now: Time) {
        if self.resets.retry_at.take_if(|at| *at <= now).is_none() {
            return;
        }
        for register in std::mem::take(&mut self.resets.failed) {
            if self.register(register.row).as_ref() == Some(&register) {
                self.store_reset(register);
            }
        }
    }
}

fn registers_body(registers: Vec<OwnershipRegister>) -> Vec<u8> {
    RegistersReply {
        more: false,
        registers,
    }
    .to_body()
}
