//! A unit that has lost its registers gets them back from this host's table: on an administrator's
//! word, or by itself where the configuration says so.
//!
//! An acknowledged allocation is in the unit's registers and in the table of the host that
//! acknowledged it. With the registers gone, only all tables together are certain to have it: so
//! every member host's table must be equal to ours, unless an administrator insists. Fabric services keep
//! a table as well, and what only they have counts where they answer, but nobody waits for those that do
//! not. Where something was not heard the epochs leap, so that what is restored outranks what a host or
//! fabric services may still have.
//!
//! What a host told earlier does not count: it may have learnt of an allocation since, and we may not have
//! heard. It is asked once the unit has said that its registers are lost, for from then on there are no
//! new allocations at that unit.

use std::collections::BTreeMap;
use std::time::Duration;

use super::agent::Agent;
use super::members::Station;
use super::plan::error;
use super::report::{self, label};
use super::request::{AdminError, AdminReply, ErrorKind, RestoredInfo};
use super::timers::Timer;
use crate::planted::{self, Bug};
use crate::wire::message::{
    ExtentFacts, MAX_PAGE_BYTES, MAX_REGISTERS, OwnershipRegister, Restore, TableSummary, page_len,
};
use crate::wire::{CommandId, EntityType, Epoch, Guid, Kind, Ownership, Row, Status, Time, Wire};

/// How far epochs leap when registers are restored without every host's table.
const EPOCH_LEAP: u64 = 1 << 32;

/// How soon answers of the hosts that are asked for their tables are looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How soon a host is asked again whose table was another one.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How long hosts that answer are asked for tables like ours.
const ASK_PATIENCE: Duration = Duration::from_secs(2);
/// How soon a unit is looked at again that could not be restored without an administrator.
const RETRY: Duration = Duration::from_secs(2);

/// A restoration on its way.
#[derive(Debug)]
struct Restoration {
    /// The administrator's request; none where it is automatic.
    token: Option<u64>,
    /// Until when the hosts are asked for their tables; `None` once they have told.
    asking: Option<Time>,
    /// Whether an administrator insists.
    force: bool,
    /// What is to be sent, by ascending row.
    registers: Vec<OwnershipRegister>,
    /// How many of them are sent.
    sent: usize,
    command: Option<CommandId>,
    /// Hosts were not heard.
    forced: bool,
}

/// The restorations on their way, by unit.
#[derive(Debug, Default)]
pub(super) struct Restorations(BTreeMap<Guid, Restoration>);

/// The register that a row tells of.
fn register_of(row: &Row) -> OwnershipRegister {
    let facts = |range| ExtentFacts {
        device: row.parent,
        range,
        name: row.name.clone(),
        // A tombstone is nobody's.
        present: row.is_valid() || row.ownership != Ownership::Unallocated,
    };
    OwnershipRegister {
        row: row.guid,
        ownership: row.ownership.clone(),
        owned: row.owned,
        extent: row.extent.map(facts),
    }
}

impl Agent {
    /// Begins to restore a unit's registers for an administrator.
    pub(super) fn restore_unit(
        &mut self,
        now: Time,
        token: u64,
        text: &str,
        force: bool,
    ) -> Result<(), AdminError> {
        if !self.boot.is_steady() {
            return Err(self.not_ready());
        }
        let unit = self.table.resolve_among(text, &[EntityType::Unit])?;
        let name = label(&self.table, unit);
        let refuse = |kind, why: String| Err(error(kind, why));
        match self.units.get(&unit) {
            Some(known) if known.station.is_up() && known.registers_lost => {}
            Some(known) if known.station.is_up() => {
                return refuse(
                    ErrorKind::Refused,
                    format!("{name} has its ownership registers; there is nothing to restore"),
                );
            }
            _ => {
                return refuse(
                    ErrorKind::Unreachable,
                    format!("{name} does not answer; nothing was changed (`rma units`)"),
                );
            }
        }
        // An administrator takes over what this host has only begun to ask by itself.
        let gives_way = |r: &Restoration| r.token.is_none() && r.asking.is_some();
        if self
            .restorations
            .0
            .get(&unit)
            .is_some_and(|r| !gives_way(r))
        {
            return refuse(ErrorKind::Busy, format!("{name} is being restored already"));
        }
        self.ask_all_hosts(now, unit, Some(token), force);
        Ok(())
    }

    /// A unit has said that its registers are lost.
    pub(super) fn restore_by_itself(&mut self, now: Time, unit: Guid) {
        if !self.config.auto_restore {
            return;
        }
        self.timers.set_sooner(Timer::Unit(unit), now + RETRY);
        let ready = self.boot.is_steady()
            && self.members.is_some()
            && self.journal.is_clean()
            && !self.restorations.0.contains_key(&unit);
        if ready {
            self.ask_all_hosts(now, unit, None, false);
        }
    }

    /// A unit answers again, perhaps after a restart: what it was sent before must not reach it now, and
    /// what hosts have told before it lost its registers (again) does not count.
    pub(super) fn unit_is_back(&mut self, now: Time, unit: Guid) {
        self.restore_failed(unit, "was away; try again".to_owned());
        if let Some(known) = self.units.get_mut(&unit) {
            known.lost_since = now;
        }
    }

    /// Every host is asked for its table before a unit's registers are restored from ours.
    fn ask_all_hosts(&mut self, now: Time, unit: Guid, token: Option<u64>, force: bool) {
        let restoration = Restoration {
            token,
            asking: Some(now + ASK_PATIENCE),
            force,
            registers: Vec::new(),
            sent: 0,
            command: None,
            forced: false,
        };
        self.restorations.0.insert(unit, restoration);
        self.restore_due(now, unit);
    }

    /// Looks what the hosts have told, or gives a unit up that does not answer.
    pub(super) fn restore_due(&mut self, now: Time, unit: Guid) {
        let Some(restoration) = self.restorations.0.get(&unit) else {
            return;
        };
        let force = restoration.force;
        let Some(until) = restoration.asking else {
            return self.restore_failed(
                unit,
                "does not answer any more; look with `rma units` whether its registers are back"
                    .to_owned(),
            );
        };
        let missing = self.hosts_to_be_asked(unit);
        let is_up = |guid: &&Guid| self.peers.get(*guid).is_some_and(|p| p.station.is_up());
        let in_vain = !force && !missing.iter().all(|guid| is_up(&guid));
        let centre = self.centre_to_be_asked(unit);
        let left: Vec<Guid> = missing
            .iter()
            .chain(&centre)
            .filter(is_up)
            .copied()
            .collect();
        if left.is_empty() && missing.is_empty() && self.misfits.has(unit) {
            // All have told, and now they are told what comes of it.
            self.settle_misfits(unit);
        } else if left.is_empty() || in_vain || now >= until {
            return self.hosts_have_told(now, unit, &missing);
        }
        for guid in left {
            let peer = self.peers.get(&guid);
            if peer.is_some_and(|p| p.asked_at + ASK_AGAIN <= now) {
                self.ask_stamp(now, guid);
            }
        }
        self.timers.set(Timer::Restore(unit), now + LOOK_AGAIN);
    }

    /// All hosts have told of their tables, or the `missing` ones will not.
    fn hosts_have_told(&mut self, now: Time, unit: Guid, missing: &[Guid]) {
        let force = self.restorations.0.get(&unit).is_some_and(|r| r.force);
        let unknown = self.members.is_none();
        if force || (missing.is_empty() && !unknown) {
            let forced = unknown || !missing.is_empty();
            return self.begin_restore(now, unit, forced);
        }
        let who = if unknown {
            "fabric services have not said who is in the cluster".to_owned()
        } else {
            format!(
                "{} cannot be asked, or has another table just now",
                self.name_list(missing)
            )
        };
        self.timers.cancel(Timer::Restore(unit));
        if let Some(token) = self.restorations.0.remove(&unit).and_then(|r| r.token) {
            let message = format!(
                "{who}: an allocation that only that host knows would be lost; try again when \
                 `rma hosts` shows all in step, or `--force`"
            );
            self.reply(token, AdminReply::Error(error(ErrorKind::Refused, message)));
        }
    }

    /// The member hosts that may know of an allocation at a unit that we do not know of: those that have
    /// not told since it lost its registers that they have just what we have.
    fn hosts_to_be_asked(&self, unit: Guid) -> Vec<Guid> {
        if planted::is(Bug::RestoredFromAnyTable) {
            return Vec::new();
        }
        if planted::is(Bug::OldStampsTrusted) {
            return self.hosts_not_in_step();
        }
        self.hosts_where(|guid| !self.has_told(unit, guid))
    }

    /// The fabric services, where they may be asked and may know of an allocation at a unit that we do not know of.
    fn centre_to_be_asked(&self, unit: Guid) -> Option<Guid> {
        let centre = self.centre.guid;
        (!centre.is_nil() && !self.has_told(unit, centre)).then_some(centre)
    }

    /// Whether a peer has told, since the unit lost its registers, that it has just what we have stored, but for
    /// what is known not to fit.
    fn has_told(&self, unit: Guid, guid: Guid) -> bool {
        let since = self.units.get(&unit).map(|u| u.lost_since);
        let told = self.peers.get(&guid).and_then(|peer| peer.confirmed);
        told.is_some_and(|(asked, theirs)| {
            since.is_some_and(|since| asked >= since)
                && (self.is_stored(&theirs) || self.misfits.has_rest_of(theirs.digest))
        })
    }

    /// Whether that is just what we have stored.
    fn is_stored(&self, theirs: &TableSummary) -> bool {
        let durable = &self.journal.durable;
        (theirs.digest, theirs.row_count, theirs.floor)
            == (durable.digest, durable.row_count, durable.floor)
    }

    /// The member hosts that are not known to have stored just what we have stored.
    pub(super) fn hosts_not_in_step(&self) -> Vec<Guid> {
        self.hosts_where(|guid| {
            let told = self.peers.get(&guid).and_then(|peer| peer.summary);
            !told.is_some_and(|theirs| self.is_stored(&theirs))
        })
    }

    /// The other member hosts of which that is true.
    fn hosts_where(&self, holds: impl Fn(Guid) -> bool) -> Vec<Guid> {
        let others = self.members.iter().flatten();
        others
            .filter(|(guid, m)| m.entity == EntityType::Host && **guid != self.config.guid)
            .map(|(guid, _)| *guid)
            .filter(|guid| holds(*guid))
            .collect()
    }

    fn begin_restore(&mut self, now: Time, unit: Guid, forced: bool) {
        let leaps = forced || self.centre_to_be_asked(unit).is_some();
        self.settle_misfits(unit);
        let mut registers: Vec<OwnershipRegister> = self
            .table
            .below(unit)
            .into_iter()
            .filter_map(|guid| self.table.get(guid))
            // Others may know of changes of what has never been changed as far as we know.
            .filter(|row| row.owned.epoch > Epoch(0) || leaps)
            .map(register_of)
            .collect();
        registers.sort_by_key(|register| register.row);
        if leaps {
            for register in &mut registers {
                let epoch = register.owned.epoch.0.saturating_add(EPOCH_LEAP);
                register.owned.epoch = Epoch(epoch);
                register.owned.writer = self.config.guid;
            }
        }
        if let Some(restoration) = self.restorations.0.get_mut(&unit) {
            restoration.asking = None;
            restoration.registers = registers;
            restoration.forced = forced;
        }
        let patience = self.config.intervals.allocation_patience;
        self.timers.set(Timer::Restore(unit), now + patience);
        self.restore_next(now, unit);
    }

    /// Sends the next part.
    fn restore_next(&mut self, now: Time, unit: Guid) {
        // What the unit has seen of terms is lost as well.
        let term = self.known_term();
        let Some(restoration) = self.restorations.0.get_mut(&unit) else {
            return;
        };
        let sent = restoration.sent;
        let rest = &restoration.registers[sent..];
        let count = page_len(rest.iter().take(MAX_REGISTERS), MAX_PAGE_BYTES);
        let part = Restore {
            term,
            after: match sent {
                0 => Guid::NIL,
                n => restoration.registers[n - 1].row,
            },
            more: count < rest.len(),
            registers: rest[..count].to_vec(),
        };
        restoration.sent += count;
        let command = self.submit_to_unit(now, unit, Kind::Restore, part.to_body(), 128);
        match (command, self.restorations.0.get_mut(&unit)) {
            (Some(command), Some(restoration)) => restoration.command = Some(command),
            _ => self.restore_failed(unit, "cannot be asked just now".to_owned()),
        }
    }

    /// A unit has answered to what may be a part of a restoration.
    pub(super) fn on_restore_reply(
        &mut self,
        now: Time,
        unit: Guid,
        command: CommandId,
        status: Status,
    ) {
        let ours = |r: &&mut Restoration| r.command == Some(command);
        let Some(restoration) = self.restorations.0.get_mut(&unit).filter(ours) else {
            return;
        };
        match status {
            Status::Ok if restoration.sent < restoration.registers.len() => {
                self.restore_next(now, unit);
            }
            Status::Ok => self.restored(now, unit),
            Status::Conflict => {
                self.restore_failed(
                    unit,
                    "has registers again: another host has restored them".to_owned(),
                );
                self.ask_registers(now, unit);
            }
            Status::Busy => {
                self.restore_failed(unit, "is being restored by another host".to_owned());
            }
            status => self.restore_failed(unit, format!("refuses: {status}")),
        }
    }

    fn restored(&mut self, now: Time, unit: Guid) {
        self.timers.cancel(Timer::Restore(unit));
        let Some(restoration) = self.restorations.0.remove(&unit) else {
            return;
        };
        if let Some(known) = self.units.get_mut(&unit) {
            known.registers_lost = false;
        }
        self.misfits.forget(unit);
        let count = restoration.registers.len();
        let name = label(&self.table, unit);
        self.block(520, format!("{name} has {count} ownership registers again"));
        if let Some(token) = restoration.token {
            let reply = RestoredInfo {
                unit: report::name_info(&self.table, unit),
                registers: count as u64,
                forced: restoration.forced,
            };
            self.reply(token, AdminReply::Restored(reply));
        }
        self.ask_registers(now, unit);
        for ioc in self.controller_numbers(unit) {
            self.list_devices(now, unit, ioc);
        }
    }

    fn restore_failed(&mut self, unit: Guid, why: String) {
        self.timers.cancel(Timer::Restore(unit));
        let Some(restoration) = self.restorations.0.remove(&unit) else {
            return;
        };
        if let (Some(command), Some(client)) = (restoration.command, self.hub.client_mut(&unit)) {
            client.cancel(command);
        }
        let message = format!("{} {why}", label(&self.table, unit));
        if let Some(token) = restoration.token {
            let kind = if self.station(unit).is_some_and(Station::is_up) {
                ErrorKind::Refused
            } else {
                ErrorKind::Unreachable
            };
            self.reply(token, AdminReply::Error(error(kind, message)));
        }
    }
}
