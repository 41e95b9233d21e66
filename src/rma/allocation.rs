//! Allocations on their way, under the lease: read the unit's registers, plan, one compare-and-set at the unit, the
//! table stored, the administrator answered. Of one unit, one at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::agent::Agent;
use super::config::MAX_PENDING_REQUESTS;
use super::in_use::{Asking, in_use};
use super::journal::Waiter;
use super::plan::{error, ownership, target};
use super::report::{self, label};
use super::request::{
    AdminError, AdminReply, AllocationInfo, Caller, CarveInfo, ChangeInfo, ErrorKind, MoveInfo,
};
use super::timers::Timer;
use super::wish::Wish;
use crate::planted::{self, Bug};
use crate::session::Request;
use crate::wire::message::{Change, CompareAndSet, Conflict, RegistersReply};
use crate::wire::{EntityType, Epoch, Flags, Guid, IodNumber, Kind, Ownership, Status, Time, Wire};

/// How often an allocation is planned anew because somebody else changed the registers meanwhile.
pub(super) const MAX_RETRIES: u32 = 2;
/// How long a busy unit is left alone.
const BUSY_DELAY: Duration = Duration::from_millis(50);

/// How far an allocation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Another allocation of the unit goes first.
    Queued,
    /// The unit's registers are being read.
    Reading,
    /// Other owners have been asked whether they use what they are about to lose.
    Asking,
    /// The unit has been asked to make the change.
    Setting,
    /// The unit has made it; its registers are read because its answer alone does not fit.
    Confirming,
    /// The table is being stored.
    Storing,
}

/// An allocation, release, carve or uncarve on its way.
#[derive(Debug)]
pub(super) struct Allocation {
    token: u64,
    pub(super) wish: Wish,
    pub(super) unit: Guid,
    pub(super) stage: Stage,
    pub(super) retries: u32,
    changes: Vec<Change>,
    before: BTreeMap<Guid, Ownership>,
    /// What this host uses; `None` where that is no matter, whoever uses it.
    pub(super) used: Option<BTreeMap<Guid, String>>,
    pub(super) asking: Asking,
}

/// The allocations on their way.
#[derive(Debug, Default)]
pub(super) struct Allocations {
    pub(super) active: BTreeMap<u64, Allocation>,
    next: u64,
}

impl Agent {
    /// Begins an allocation, or a release where no hosts are named.
    pub(super) fn allocate(
        &mut self,
        now: Time,
        token: u64,
        caller: &Caller,
        text: &str,
        hosts: Option<(&[String], bool)>,
        recursive: bool,
    ) -> Result<(), AdminError> {
        if !self.boot.is_steady() {
            return Err(self.not_ready());
        }
        let target = target(&self.table, text)?;
        let ownership = match hosts {
            Some((hosts, shared)) => {
                ownership(&self.table, hosts, shared, |guid| self.is_member(guid))?
            }
            None => Ownership::Unallocated,
        };
        let wish = Wish::Own {
            target,
            ownership,
            recursive,
        };
        let unit = self.table.unit_of(target).unwrap_or(target);
        self.wish(now, token, caller, unit, wish)
    }

    /// Begins what an administrator wants of a unit, after what others want of it.
    pub(super) fn wish(
        &mut self,
        now: Time,
        token: u64,
        caller: &Caller,
        unit: Guid,
        wish: Wish,
    ) -> Result<(), AdminError> {
        if self.allocations.active.len() >= MAX_PENDING_REQUESTS {
            return Err(error(
                ErrorKind::Busy,
                format!("{MAX_PENDING_REQUESTS} allocations are on their way; try again"),
            ));
        }
        self.check_reachable(now, unit)?;
        let id = self.allocations.next;
        self.allocations.next += 1;
        let allocation = Allocation {
            token,
            wish,
            unit,
            stage: Stage::Queued,
            retries: 0,
            changes: Vec::new(),
            before: BTreeMap::new(),
            used: self.used.clone(),
            asking: Asking::default(),
        };
        self.allocations.active.insert(id, allocation);
        let patience = self.config.intervals.allocation_patience;
        self.timers.set(Timer::Allocation(id), now + patience);
        self.seek_lease(now, caller);
        Ok(())
    }

    /// Begins the next queued allocation of a unit, unless one is at it.
    pub(super) fn next_allocation(&mut self, now: Time, unit: Guid) {
        if self.open_term(now).is_none() {
            return;
        }
        let of_unit = || {
            let all = self.allocations.active.iter();
            all.filter(|(_, a)| a.unit == unit)
        };
        let busy = of_unit().any(|(_, a)| !matches!(a.stage, Stage::Queued | Stage::Storing));
        let next = of_unit().find(|(_, a)| a.stage == Stage::Queued);
        if let (false, Some((id, _))) = (busy, next) {
            let id = *id;
            self.set_stage(id, Stage::Reading);
            self.ask_registers(now, unit);
        }
    }

    pub(super) fn set_stage(&mut self, id: u64, stage: Stage) {
        if let Some(allocation) = self.allocations.active.get_mut(&id) {
            allocation.stage = stage;
        }
    }

    /// A unit's registers have been read, or (not `ok`) could not be.
    pub(super) fn registers_read(&mut self, now: Time, unit: Guid, ok: bool) {
        let waiting: Vec<(u64, Stage)> = self
            .allocations
            .active
            .iter()
            .filter(|(_, a)| a.unit == unit)
            .filter(|(_, a)| matches!(a.stage, Stage::Reading | Stage::Confirming))
            .map(|(id, a)| (*id, a.stage))
            .collect();
        for (id, stage) in waiting {
            match (stage, ok) {
                (Stage::Reading, true) => self.set_registers(now, id),
                (Stage::Confirming, true) if self.has_changes(id) => {
                    self.store_allocation(now, id);
                }
                (Stage::Reading, _) if self.units.get(&unit).is_some_and(|u| u.registers_lost) => {
                    let e = registers_lost(&label(&self.table, unit));
                    self.fail_allocation(now, id, e);
                }
                // Busy, starting, or not fitting together yet: until the patience is over.
                _ => self.timers.set(Timer::Resend(id), now + BUSY_DELAY),
            }
        }
    }

    /// Plans an allocation and asks its unit to make it.
    pub(super) fn set_registers(&mut self, now: Time, id: u64) {
        let Some(term) = self.lease_term(now) else {
            // It was lost meanwhile, and is sought again.
            self.set_stage(id, Stage::Queued);
            return self.seek_lease_again(now);
        };
        let Some(allocation) = self.allocations.active.get_mut(&id) else {
            return;
        };
        let (own, used) = (self.config.guid, allocation.used.as_ref());
        let planned = allocation.wish.changes(&self.table);
        let changes = match planned.and_then(|planned| in_use(&self.table, own, used, planned)) {
            Ok(changes) => changes,
            Err(e) => return self.fail_allocation(now, id, e),
        };
        match self.ask_owners(now, id, &changes) {
            Ok(false) => {}
            Ok(true) => return,
            Err(e) => return self.fail_allocation(now, id, e),
        }
        let Some(allocation) = self.allocations.active.get_mut(&id) else {
            return;
        };
        allocation.before = changes
            .iter()
            .filter_map(|c| Some((c.row, self.table.get(c.row)?.ownership.clone())))
            .collect();
        allocation.changes.clone_from(&changes);
        if changes.is_empty() {
            self.store_allocation(now, id);
            return;
        }
        allocation.stage = Stage::Setting;
        let unit = allocation.unit;
        let writer = self.config.guid;
        let (kind, body) = match &allocation.wish {
            Wish::Move(moving) => {
                let request = moving.request(term, writer, &changes[0]);
                (Kind::Move, request.to_body())
            }
            _ => {
                let request = CompareAndSet {
                    term,
                    writer,
                    changes,
                };
                (Kind::CompareAndSet, request.to_body())
            }
        };
        let request = Request {
            kind,
            flags: Flags::NONE,
            iod: IodNumber(0),
            epoch: Epoch(0),
            body,
            expect: 16_384,
        };
        let sent = self
            .hub
            .client_mut(&unit)
            .and_then(|client| client.submit(now, request).ok());
        match (sent, self.units.get_mut(&unit)) {
            (Some(command), Some(known)) => known.set = Some((command, id)),
            _ => self.timers.set(Timer::Resend(id), now + BUSY_DELAY),
        }
    }

    /// A unit has answered a compare-and-set.
    pub(super) fn on_set_reply(
        &mut self,
        now: Time,
        unit: Guid,
        id: u64,
        status: Status,
        body: &[u8],
    ) {
        let Some(allocation) = self.allocations.active.get(&id) else {
            return;
        };
        let moved = match &allocation.wish {
            Wish::Move(moving) => {
                if let Some(e) = self.move_refused(unit, moving, status) {
                    return self.fail_allocation(now, id, e);
                }
                Some(moving.target)
            }
            _ => None,
        };
        let name = label(&self.table, unit);
        match status {
            Status::Ok => {
                if let Some(row) = moved {
                    self.has_moved(row);
                }
                let fits = RegistersReply::from_body(body)
                    .is_ok_and(|reply| self.take_registers(unit, &reply.registers));
                if fits {
                    self.store_allocation(now, id);
                } else {
                    self.set_stage(id, Stage::Confirming);
                    self.ask_registers(now, unit);
                }
            }
            // The table was not what the registers are; where it is now, planning says what is wrong.
            Status::Conflict
            | Status::Hierarchy
            | Status::Overlap
            | Status::OutOfRange
            | Status::Misaligned => self.conflicted(now, id, body),
            Status::OlderTerm => self.superseded(now, id),
            Status::Busy | Status::NotReady => {
                self.timers.set(Timer::Resend(id), now + BUSY_DELAY);
            }
            Status::NoRegisters => self.fail_allocation(now, id, registers_lost(&name)),
            Status::NoRow => {
                self.timers.set(Timer::Unit(unit), now);
                self.fail_allocation(
                    now,
                    id,
                    error(
                        ErrorKind::Invalid,
                        format!("{name} no longer has that row; nothing was changed (`rma tree`)"),
                    ),
                );
            }
            Status::NotPersisted | Status::NoSpace => self.fail_allocation(
                now,
                id,
                error(
                    ErrorKind::NotPersisted,
                    format!("{name} could not store the change ({status}); nothing was changed, look at its log"),
                ),
            ),
            _ => self.fail_allocation(
                now,
                id,
                error(
                    ErrorKind::Refused,
                    format!("{name} refuses the change: {status}; nothing was changed"),
                ),
            ),
        }
    }

    /// Somebody else changed the unit's registers: look again, and say who in the end.
    fn conflicted(&mut self, now: Time, id: u64, body: &[u8]) {
        let Some(allocation) = self.allocations.active.get_mut(&id) else {
            return;
        };
        allocation.retries += 1;
        let is_fixed = matches!(allocation.wish, Wish::Batch { .. });
        if allocation.retries <= MAX_RETRIES && !is_fixed {
            allocation.stage = Stage::Reading;
            let unit = allocation.unit;
            self.ask_registers(now, unit);
            return;
        }
        let unit = allocation.unit;
        let message = match Conflict::from_body(body) {
            Ok(Conflict { register }) => {
                let row = label(&self.table, register.row);
                let ours = self.table.get(register.row).map(|r| r.owned.epoch);
                if ours.is_some_and(|epoch| epoch > register.owned.epoch) {
                    format!(
                        "{} has an older register of {row} than this table (epoch {}): it has \
                         lost newer ones, restore them",
                        label(&self.table, unit),
                        register.owned.epoch
                    )
                } else {
                    let writer = report::names(&self.table, &[register.owned.writer]);
                    let owned = report::owned_by(&self.table, &register.ownership);
                    format!(
                        "{row} is being changed by {writer} at the same time: it is {owned} now \
                         (epoch {}); look again and repeat",
                        register.owned.epoch
                    )
                }
            }
            Err(_) => format!(
                "{} is being changed by somebody else at the same time; look again and repeat",
                label(&self.table, unit)
            ),
        };
        self.fail_allocation(now, id, error(ErrorKind::Conflict, message));
    }

    /// A busy or starting unit is asked again.
    pub(super) fn resend_allocation(&mut self, now: Time, id: u64) {
        let Some(allocation) = self.allocations.active.get_mut(&id) else {
            return;
        };
        match allocation.stage {
            Stage::Reading | Stage::Confirming => {}
            // A unit that was busy has not made the change: plan it anew.
            Stage::Setting => allocation.stage = Stage::Reading,
            Stage::Queued | Stage::Asking | Stage::Storing => return,
        }
        let unit = allocation.unit;
        self.ask_registers(now, unit);
    }

    /// Whether the table has what the unit has made, or something newer.
    fn has_changes(&self, id: u64) -> bool {
        self.allocations.active.get(&id).is_some_and(|allocation| {
            allocation.changes.iter().all(|change| {
                let row = self.table.get(change.row);
                row.is_some_and(|row| row.owned.epoch > change.expected)
            })
        })
    }

    /// The unit has made the change, and the table has it: it is stored.
    fn store_allocation(&mut self, now: Time, id: u64) {
        self.timers.cancel(Timer::Allocation(id));
        self.timers.cancel(Timer::Resend(id));
        self.set_stage(id, Stage::Storing);
        let Some(allocation) = self.allocations.active.get(&id) else {
            return;
        };
        let unit = allocation.unit;
        if !allocation.changes.is_empty() {
            self.journal.urgent = true;
        }
        if allocation.changes.iter().any(|c| c.row == unit) {
            self.tell_unit_ownership(now, unit);
        }
        if planted::is(Bug::AcknowledgedBeforeStored) {
            self.allocation_stored(now, id);
        } else {
            self.journal.waiters.push(Waiter::Allocation(id));
        }
        self.next_allocation(now, unit);
    }

    /// The table with the allocation is durable: it holds, and the administrator hears so.
    pub(super) fn allocation_stored(&mut self, now: Time, id: u64) {
        let Some(allocation) = self.allocations.active.remove(&id) else {
            return;
        };
        self.lease_idle(now);
        let table = &self.table;
        let Some(row) = table.get(allocation.wish.target()) else {
            let name = label(table, allocation.unit);
            let e = error(
                ErrorKind::Invalid,
                format!(
                    "{name} has made the change, but the row has been taken out of the table \
                     meanwhile; look again (`rma tree`) and repeat"
                ),
            );
            return self.reply(allocation.token, AdminReply::Error(e));
        };
        if let Wish::Move(moving) = &allocation.wish {
            let before = allocation.changes.first().map(|change| change.expected);
            let reply = MoveInfo {
                target: report::row_info(table, row),
                unit: report::name_info(table, allocation.unit),
                cluster: moving.to.to_string(),
                host: moving.owner.to_string(),
                changed: before.is_some_and(|before| row.owned.epoch > before),
            };
            return self.reply(allocation.token, AdminReply::Moved(Box::new(reply)));
        }
        if matches!(allocation.wish, Wish::Carve(_) | Wish::Uncarve(_)) {
            let reply = CarveInfo {
                extent: report::row_info(table, row),
                unit: report::name_info(table, allocation.unit),
                changed: !allocation.changes.is_empty(),
            };
            return self.reply(allocation.token, AdminReply::Carved(Box::new(reply)));
        }
        let reply = AllocationInfo {
            target: report::row_info(table, row),
            unit: report::name_info(table, allocation.unit),
            changed: !allocation.changes.is_empty(),
            changes: allocation
                .changes
                .iter()
                .map(|c| ChangeInfo {
                    row: report::name_info(table, c.row),
                    entity: table
                        .get(c.row)
                        .map_or(EntityType::Device, |r| r.entity)
                        .name()
                        .to_owned(),
                    before: report::ownership_info(
                        table,
                        allocation
                            .before
                            .get(&c.row)
                            .unwrap_or(&Ownership::Unallocated),
                    ),
                    after: report::ownership_info(table, &c.ownership),
                    epoch: c.expected.0 + 1,
                })
                .collect(),
        };
        self.reply(allocation.token, AdminReply::Allocated(Box::new(reply)));
    }

    /// The unit has made the change, but this host could not store its table.
    pub(super) fn allocation_not_stored(&mut self, now: Time, id: u64) {
        if let Some(allocation) = self.allocations.active.remove(&id) {
            self.lease_idle(now);
            let name = label(&self.table, allocation.unit);
            let e = error(
                ErrorKind::NotPersisted,
                format!(
                    "{name} has made the change, but this host could not store its table (see \
                     the log of rmad); it is tried again every second, and repeating is safe"
                ),
            );
            self.reply(allocation.token, AdminReply::Error(e));
        }
    }

    /// The patience of an allocation is over.
    pub(super) fn allocation_late(&mut self, now: Time, id: u64) {
        let Some(allocation) = self.allocations.active.get(&id) else {
            return;
        };
        let name = label(&self.table, allocation.unit);
        let patience = seconds(self.config.intervals.allocation_patience);
        let message = match allocation.stage {
            Stage::Queued | Stage::Reading | Stage::Asking => {
                format!("{name} has not answered within {patience}; nothing was changed")
            }
            Stage::Setting => format!(
                "{name} has not answered within {patience}; whether it has made the change is not \
                 known until it answers again (`rma devices`); repeating is safe"
            ),
            Stage::Confirming => format!(
                "{name} has made the change but does not answer any more; every host will learn \
                 of it when it does (`rma devices`); repeating is safe"
            ),
            Stage::Storing => return,
        };
        self.fail_allocation(now, id, error(ErrorKind::Unreachable, message));
    }

    pub(super) fn fail_allocation(&mut self, now: Time, id: u64, e: AdminError) {
        let Some(allocation) = self.allocations.active.remove(&id) else {
            return;
        };
        self.timers.cancel(Timer::Allocation(id));
        self.timers.cancel(Timer::Resend(id));
        self.timers.cancel(Timer::InUse(id));
        for (host, (command, _)) in allocation.asking.open {
            if let Some(client) = self.hub.client_mut(&host) {
                client.cancel(command);
            }
        }
        if let Some(unit) = self.units.get_mut(&allocation.unit)
            && let Some((command, _)) = unit.set.take_if(|(_, of)| *of == id)
            && let Some(client) = self.hub.client_mut(&allocation.unit)
        {
            client.cancel(command);
        }
        self.reply(allocation.token, AdminReply::Error(e));
        self.next_allocation(now, allocation.unit);
        self.lease_idle(now);
    }

    /// A unit is no longer a member: what waits for it fails.
    pub(super) fn unit_gone(&mut self, now: Time, unit: Guid) {
        let waiting: BTreeSet<u64> = self
            .allocations
            .active
            .iter()
            .filter(|(_, a)| a.unit == unit && a.stage != Stage::Storing)
            .map(|(id, _)| *id)
            .collect();
        let name = label(&self.table, unit);
        for id in waiting {
            self.fail_allocation(
                now,
                id,
                error(
                    ErrorKind::Unreachable,
                    format!("{name} is no longer a member of this cluster (`rma units`)"),
                ),
            );
        }
    }
}

pub(super) fn registers_lost(name: &str) -> AdminError {
    error(
        ErrorKind::Refused,
        format!(
            "{name} has lost its ownership registers and serves nothing until they are restored; \
             nothing was changed"
        ),
    )
}

/// A duration as a person says it.
pub(super) fn seconds(d: Duration) -> String {
    format!("{}.{} s", d.as_secs(), d.subsec_millis() / 100)
}
