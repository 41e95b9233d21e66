//! The unit management service: lists of controllers, ownership registers, and transactions on them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::registers;
use super::transfer::{self, Leaving, MoveVerdict};
use super::{MAX_QUEUED_CHANGES, RegistersChange, Unit, UnitAction};
use crate::planted::{self, Bug};
use crate::session::ServerEvent;
use crate::wire::kind::{Event, Role};
use crate::wire::message::{
    CompareAndSet, Conflict, Move, OwnershipRegister, RegistersReply, RegistersRequest,
};
use crate::wire::{
    ClusterName, CommandId, ConnectionId, Guid, IocNumber, Kind, Status, Time, Wire,
};

/// A transaction that waits for its turn.
#[derive(Debug)]
pub(super) struct QueuedChange {
    connection: ConnectionId,
    command: CommandId,
    /// The cluster whose registers it is about.
    cluster: ClusterName,
    wanted: Wanted,
}

/// What a transaction is to do.
#[derive(Debug)]
enum Wanted {
    Set(CompareAndSet),
    Move(Move),
}

/// The transaction under way: judged good, not yet in force.
#[derive(Debug)]
pub(super) struct Transaction {
    token: u64,
    /// Whom to answer with what, once it is in force.
    answer: Option<(ConnectionId, CommandId, Vec<OwnershipRegister>)>,
    /// What is to be durable, and will be in force.
    change: RegistersChange,
    /// Of a compare-and-set, the cluster and its registers, by ascending row.
    cluster: ClusterName,
    registers: Vec<OwnershipRegister>,
    leaving: Leaving,
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
    storing: BTreeMap<u64, (ClusterName, OwnershipRegister)>,
    /// Could not be stored, or not yet.
    failed: Vec<(ClusterName, OwnershipRegister)>,
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
    /// The term of its change.
    pub(super) const fn term(&self) -> u64 {
        self.change.term
    }

    /// One that moves something to another cluster.
    pub(super) const fn of_move(
        answer: Option<(ConnectionId, CommandId, Vec<OwnershipRegister>)>,
        change: RegistersChange,
        leaving: Leaving,
    ) -> Self {
        Self {
            token: 0,
            answer,
            change,
            cluster: ClusterName::NONE,
            registers: Vec::new(),
            leaving,
            draining: BTreeSet::new(),
            is_durable: false,
        }
    }

    /// Whether `host` will still own `row` in `cluster`, as far as this transaction is concerned.
    pub(super) fn keeps(&self, cluster: ClusterName, row: Guid, host: Guid) -> bool {
        match self.leaving {
            Leaving::Device(_, device) if device == row => return false,
            Leaving::Everything(left) if left == cluster => return false,
            _ if cluster != self.cluster => return true,
            _ => {}
        }
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
            Kind::Controllers if body.is_empty() => Ok(self.list_controllers(connection)),
            Kind::Controllers => Err(Status::BadRequest),
            Kind::Registers => self.registers_page(connection, &body),
            Kind::Lease | Kind::Settle => {
                match self.serve_vote(now, (connection, command), peer, kind, &body) {
                    Ok(()) => return,
                    Err(status) => Err(status),
                }
            }
            Kind::CompareAndSet | Kind::Move => {
                match self.admit_change(connection, peer, kind, &body) {
                    Ok((cluster, wanted)) => {
                        self.queue.push_back(QueuedChange {
                            connection,
                            command,
                            cluster,
                            wanted,
                        });
                        return self.next_change(now);
                    }
                    Err(status) => Err(status),
                }
            }
            Kind::Restore if !self.is_home(connection) => Err(Status::Unsupported),
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

    /// The controllers that the connection's cluster sees.
    fn list_controllers(&self, connection: ConnectionId) -> Vec<u8> {
        let cluster = self.connection_cluster(connection);
        let listing = cluster.and_then(|cluster| self.listing(cluster));
        let list = listing.map_or_else(|| self.controllers(), |listing| listing.controllers());
        list.to_body()
    }

    fn registers_page(&self, connection: ConnectionId, body: &[u8]) -> Result<Vec<u8>, Status> {
        let request = RegistersRequest::from_body(body).map_err(|_| Status::BadRequest)?;
        let cluster = self.connection_cluster(connection);
        let registers = self.registers_of(cluster.ok_or(Status::UnknownConnection)?)?;
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
        kind: Kind,
        body: &[u8],
    ) -> Result<(ClusterName, Wanted), Status> {
        let known = self.management.peer(connection);
        let known = known.ok_or(Status::UnknownConnection)?;
        if known.role != Role::Host {
            return Err(Status::Unsupported);
        }
        let cluster = known.cluster;
        let (wanted, writer) = if kind == Kind::Move {
            let request = Move::from_body(body).map_err(|_| Status::BadRequest)?;
            let writer = request.writer;
            (Wanted::Move(request), writer)
        } else {
            let request = CompareAndSet::from_body(body).map_err(|_| Status::BadRequest)?;
            let writer = request.writer;
            (Wanted::Set(request), writer)
        };
        if writer != peer {
            return Err(Status::BadRequest);
        }
        if self.queue.len() >= MAX_QUEUED_CHANGES {
            return Err(Status::Busy);
        }
        Ok((cluster, wanted))
    }

    /// Begins transactions until one has to wait for the disk. One at a time: each is judged by
    /// registers that are in force and durable.
    pub(super) fn next_change(&mut self, now: Time) {
        if self.transaction.is_none() {
            self.follow_assignment(now);
        }
        while self.transaction.is_none()
            && let Some(change) = self.queue.pop_front()
        {
            let answer = match &change.wanted {
                Wanted::Set(request) => self.judge_set(&change, request),
                Wanted::Move(request) => self.judge_move(&change, request),
            };
            let (status, body) = match answer {
                Verdict::Already(registers) => (Status::Ok, registers_body(registers)),
                Verdict::Refused(status, None) => (status, Vec::new()),
                Verdict::Refused(status, Some(register)) => {
                    let register = *register;
                    (status, Conflict { register }.to_body())
                }
                Verdict::Go(transaction) => {
                    self.begin(*transaction);
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

    fn judge_set(&self, change: &QueuedChange, request: &CompareAndSet) -> Verdict {
        let cluster = change.cluster;
        let Some(all) = &self.registers else {
            return Verdict::Refused(Status::NoRegisters, None);
        };
        let Some(registers) = all.of(cluster) else {
            return Verdict::Refused(Status::Elsewhere, None);
        };
        let is_home = cluster == self.cluster;
        let promised = if is_home { self.voter.promised() } else { 0 };
        let listing = all.listing(&self.inventory, cluster);
        let changed = match registers.judge(request, &listing, promised) {
            registers::Verdict::Already(registers) => return Verdict::Already(registers),
            registers::Verdict::Refused(status, register) => {
                return Verdict::Refused(status, Some(Box::new(register)));
            }
            registers::Verdict::Change(changed) => changed,
        };
        let mut stored = RegistersChange {
            term: if is_home { request.term } else { self.term() },
            home: self.cluster,
            assignment: self.assignment,
            ..RegistersChange::default()
        };
        if is_home {
            stored.registers.clone_from(&changed);
        } else {
            let of_guest = changed.iter().map(|register| (cluster, register.clone()));
            stored.guests = of_guest.collect();
        }
        Verdict::Go(Box::new(Transaction {
            token: 0,
            answer: Some((change.connection, change.command, changed.clone())),
            change: stored,
            cluster,
            registers: changed,
            leaving: Leaving::Nothing,
            draining: BTreeSet::new(),
            is_durable: false,
        }))
    }

    fn judge_move(&self, change: &QueuedChange, request: &Move) -> Verdict {
        let cluster = change.cluster;
        let Some(all) = &self.registers else {
            return Verdict::Refused(Status::NoRegisters, None);
        };
        let is_home = cluster == self.cluster;
        let promised = if is_home { self.voter.promised() } else { 0 };
        let known = (promised, self.assignment);
        match transfer::judge(all, &self.inventory, cluster, request, known) {
            MoveVerdict::Already(register) => Verdict::Already(vec![register]),
            MoveVerdict::Refused(status, register) => {
                Verdict::Refused(status, Some(Box::new(register)))
            }
            MoveVerdict::Go(going) => {
                let answer = Some((change.connection, change.command, vec![going.left]));
                let transaction = Transaction::of_move(answer, going.change, going.leaving);
                Verdict::Go(Box::new(transaction))
            }
        }
    }

    /// A transaction was judged good: nobody who loses something by it begins to write any more.
    pub(super) fn begin(&mut self, mut transaction: Transaction) {
        transaction.token = self.token();
        transaction.draining = self
            .in_flight
            .iter()
            .filter(|(_, io)| io.is_change && !transaction.keeps(io.cluster, io.row, io.peer))
            .filter(|_| !planted::is(Bug::NoDrain))
            .map(|(token, _)| *token)
            .collect();
        let (token, change) = (transaction.token, Box::new(transaction.change.clone()));
        self.transaction = Some(transaction);
        self.actions
            .push_back(UnitAction::PersistRegisters { token, change });
    }

    pub(super) fn finish_persist(&mut self, now: Time, token: u64, ok: bool) {
        if let Some((cluster, register)) = self.resets.storing.remove(&token) {
            return self.finish_reset(now, (cluster, register), ok);
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
            if let Some((connection, command, _)) = failed.answer {
                self.management
                    .reply(now, connection, command, Status::NotPersisted, Vec::new());
            } else {
                // An assignment: it is tried again.
                self.assigned_later(now, (failed.change.home, failed.change.assignment));
            }
            self.retry_held_resets(now);
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
        if let Some(all) = &mut self.registers {
            all.apply(&done.change);
        }
        // Rows that came (back) while this was under way were permitted by what was before.
        for register in &done.registers {
            self.reset_children(done.cluster, register.row);
        }
        self.has_left(now, &done);
        if let Some((connection, command, registers)) = done.answer {
            let body = registers_body(registers);
            self.management
                .reply(now, connection, command, Status::Ok, body);
        }
        self.notify_registers(now, done.leaving, done.cluster);
        self.retry_held_resets(now);
        self.next_change(now);
    }

    /// Follows a move that is in force.
    fn has_left(&mut self, now: Time, done: &Transaction) {
        match done.leaving {
            Leaving::Nothing => {}
            Leaving::Device(from, device) => {
                self.inventory.device_moved(device);
                self.serve_clusters();
                self.left_cluster(now, from);
                self.register_placement(now);
                self.notify(now, Event::ControllersChanged, IocNumber(0));
                if let Some(ioc) = self.inventory.controller_of(device) {
                    self.notify(now, Event::DevicesChanged, ioc);
                }
            }
            Leaving::Everything(from) => {
                self.cluster = done.change.home;
                self.assignment = done.change.assignment;
                self.voter.leave_cluster(now);
                self.inventory.unit_moved();
                self.left_cluster(now, from);
                self.home_settled(now);
                self.notify(now, Event::ControllersChanged, IocNumber(0));
                for ioc in self.inventory.controller_numbers() {
                    self.notify(now, Event::DevicesChanged, ioc);
                }
            }
        }
    }

    /// Resets what a row does not permit below it in a cluster.
    fn reset_children(&mut self, cluster: ClusterName, row: Guid) {
        let (Some(listing), Ok(registers)) = (self.listing(cluster), self.registers_of(cluster))
        else {
            return;
        };
        for child in registers.children(row, &listing.with_hidden()) {
            self.reset_in(cluster, child);
        }
    }

    /// A row came (back) into the unit: where its parent does not permit its last owners any more,
    /// it is unallocated from now on, and so is below it what that does not permit; in every cluster.
    pub(super) fn reset_register(&mut self, row: Guid) {
        let guests = self.guest_clusters();
        for cluster in guests.into_iter().chain([self.cluster]) {
            self.reset_in(cluster, row);
        }
    }

    fn reset_in(&mut self, cluster: ClusterName, row: Guid) {
        if self.reset_one(cluster, row) || self.inventory.device_info(row).is_some() {
            self.reset_children(cluster, row);
        }
    }

    /// Whether there was something to reset.
    fn reset_one(&mut self, cluster: ClusterName, row: Guid) -> bool {
        let (Some(listing), Ok(registers)) = (self.listing(cluster), self.registers_of(cluster))
        else {
            return false;
        };
        let Some(register) = registers.reset(row, &listing.with_hidden()) else {
            return false;
        };
        let change = self.change_of(cluster, register.clone());
        if let Some(all) = &mut self.registers {
            all.apply(&change);
        }
        self.store_reset(cluster, register);
        true
    }

    /// The change of one register and nothing else.
    fn change_of(&self, cluster: ClusterName, register: OwnershipRegister) -> RegistersChange {
        let mut change = RegistersChange {
            term: self.term_to_store(),
            home: self.cluster,
            assignment: self.assignment,
            ..RegistersChange::default()
        };
        if cluster == self.cluster {
            change.registers.push(register);
        } else {
            change.guests.push((cluster, register));
        }
        change
    }

    fn store_reset(&mut self, cluster: ClusterName, register: OwnershipRegister) {
        // What a move stores is whose the rows are: nothing comes after it before it is decided.
        let moves = |t: &Transaction| t.leaving != Leaving::Nothing;
        if self.transaction.as_ref().is_some_and(moves) {
            self.resets.failed.push((cluster, register));
            return;
        }
        let token = self.token();
        let change = Box::new(self.change_of(cluster, register.clone()));
        self.resets.storing.insert(token, (cluster, register));
        self.actions
            .push_back(UnitAction::PersistRegisters { token, change });
    }

    fn finish_reset(&mut self, now: Time, reset: (ClusterName, OwnershipRegister), ok: bool) {
        if !ok {
            self.resets.failed.push(reset);
            self.resets.retry_at = Some(now + RESET_RETRY);
        } else if self.resets.are_durable() {
            self.notify(now, Event::RegistersChanged, IocNumber(0));
        }
    }

    /// A move is decided: what waited for it is stored.
    fn retry_held_resets(&mut self, now: Time) {
        if !self.resets.failed.is_empty() && self.resets.retry_at.is_none() {
            self.resets.retry_at = Some(now);
            self.retry_resets(now);
        }
    }

    /// Stores again what could not be stored, as far as no newer change has taken its place.
    pub(super) fn retry_resets(&mut self, now: Time) {
        if self.resets.retry_at.take_if(|at| *at <= now).is_none() {
            return;
        }
        for (cluster, register) in std::mem::take(&mut self.resets.failed) {
            if self.register_in(cluster, register.row).as_ref() == Some(&register) {
                self.store_reset(cluster, register);
            }
        }
    }
}

/// What becomes of a transaction that has its turn.
enum Verdict {
    /// It was made already: these are its registers.
    Already(Vec<OwnershipRegister>),
    /// It may be made.
    Go(Box<Transaction>),
    /// It may not, because of this register where there is one.
    Refused(Status, Option<Box<OwnershipRegister>>),
}

fn registers_body(registers: Vec<OwnershipRegister>) -> Vec<u8> {
    RegistersReply {
        more: false,
        registers,
    }
    .to_body()
}
