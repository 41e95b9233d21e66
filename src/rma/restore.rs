//! A unit that has lost its registers gets them back from this host's table: on an administrator's
//! word, or by itself where the configuration says so.
//!
//! An acknowledged allocation is in the unit's registers and in the table of the host that
//! acknowledged it. With the registers gone, only all tables together are certain to have it: so
//! every member host's table must be equal to ours, unless an administrator insists. Then the
//! epochs leap, so that what is restored outranks what a host may still have that was left out.

use std::collections::BTreeMap;

use super::agent::Agent;
use super::members::Station;
use super::plan::error;
use super::report::{self, label};
use super::request::{AdminError, AdminReply, ErrorKind, RestoredInfo};
use super::timers::Timer;
use crate::planted::{self, Bug};
use crate::wire::message::{
    ExtentFacts, MAX_PAGE_BYTES, MAX_REGISTERS, OwnershipRegister, Restore, page_len,
};
use crate::wire::{CommandId, EntityType, Epoch, Guid, Kind, Ownership, Row, Status, Time, Wire};

/// How far epochs leap when registers are restored without every host's table.
const EPOCH_LEAP: u64 = 1 << 32;

/// A restoration on its way.
#[derive(Debug)]
struct Restoration {
    /// The administrator's request; none where it is automatic.
    token: Option<u64>,
    /// What is to be sent, by ascending row.
    registers: Vec<OwnershipRegister>,
    /// How many of them are sent.
    sent: usize,
    command: Option<CommandId>,
    leapt: bool,
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
        if self.restorations.0.contains_key(&unit) {
            return refuse(ErrorKind::Busy, format!("{name} is being restored already"));
        }
        let missing = self.hosts_to_be_asked();
        if !force && (!missing.is_empty() || self.members.is_none()) {
            let who = if self.members.is_none() {
                "fabric services have not said who is in the cluster".to_owned()
            } else {
                format!(
                    "{} cannot be asked, or has another table just now",
                    self.name_list(&missing)
                )
            };
            return refuse(
                ErrorKind::Refused,
                format!(
                    "{who}: an allocation that only that host knows would be lost; try again when \
                     `rma hosts` shows all in step, or `--force`"
                ),
            );
        }
        let leap = !missing.is_empty() || self.members.is_none();
        self.begin_restore(now, unit, Some(token), leap);
        Ok(())
    }

    /// A unit has said that its registers are lost.
    pub(super) fn restore_by_itself(&mut self, now: Time, unit: Guid) {
        let ready = self.config.auto_restore
            && self.boot.is_steady()
            && self.members.is_some()
            && self.journal.is_clean()
            && !self.restorations.0.contains_key(&unit);
        if ready && self.hosts_to_be_asked().is_empty() {
            self.begin_restore(now, unit, None, false);
        }
    }

    /// The member hosts that may know of an allocation that we do not know of.
    fn hosts_to_be_asked(&self) -> Vec<Guid> {
        if planted::is(Bug::RestoredFromAnyTable) {
            return Vec::new();
        }
        self.hosts_not_in_step()
    }

    /// The member hosts that are not known to have stored just what we have stored.
    pub(super) fn hosts_not_in_step(&self) -> Vec<Guid> {
        let durable = &self.journal.durable;
        let in_step = |guid: &Guid| {
            let told = self.peers.get(guid).and_then(|peer| peer.summary);
            told.is_some_and(|theirs| {
                (theirs.digest, theirs.row_count, theirs.floor)
                    == (durable.digest, durable.row_count, durable.floor)
            })
        };
        self.members
            .iter()
            .flatten()
            .filter(|(guid, m)| m.entity == EntityType::Host && **guid != self.config.guid)
            .map(|(guid, _)| *guid)
            .filter(|guid| !in_step(guid))
            .collect()
    }

    fn begin_restore(&mut self, now: Time, unit: Guid, token: Option<u64>, leapt: bool) {
        let mut registers: Vec<OwnershipRegister> = self
            .table
            .below(unit)
            .into_iter()
            .filter_map(|guid| self.table.get(guid))
            .filter(|row| row.owned.epoch > Epoch(0))
            .map(register_of)
            .collect();
        registers.sort_by_key(|register| register.row);
        if leapt {
            for register in &mut registers {
                let epoch = register.owned.epoch.0.saturating_add(EPOCH_LEAP);
                register.owned.epoch = Epoch(epoch);
                register.owned.writer = self.config.guid;
            }
        }
        let restoration = Restoration {
            token,
            registers,
            sent: 0,
            command: None,
            leapt,
        };
        self.restorations.0.insert(unit, restoration);
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
        let count = restoration.registers.len();
        let name = label(&self.table, unit);
        self.block(520, format!("{name} has {count} ownership registers again"));
        if let Some(token) = restoration.token {
            let reply = RestoredInfo {
                unit: report::name_info(&self.table, unit),
                registers: count as u64,
                forced: restoration.leapt,
            };
            self.reply(token, AdminReply::Restored(reply));
        }
        self.ask_registers(now, unit);
        for ioc in self.controller_numbers(unit) {
            self.list_devices(now, unit, ioc);
        }
    }

    pub(super) fn restore_late(&mut self, unit: Guid) {
        self.restore_failed(
            unit,
            "does not answer any more; look with `rma units` whether its registers are back"
                .to_owned(),
        );
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
