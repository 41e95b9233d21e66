//! What units say of who owns their rows: their ownership registers, read by pages.

use std::collections::BTreeMap;

use super::agent::Agent;
use super::plan::{Outlook, offenders};
use super::report::label;
use crate::lease::{is_far_count, is_far_term};
use crate::planted::{self, Bug};
use crate::wire::message::{OwnershipRegister, RegistersReply, RegistersRequest};
use crate::wire::{Guid, Kind, Status, Time, Wire};

/// The most registers of a unit that are worked with.
const MAX_UNIT_REGISTERS: usize = 131_072;

impl Agent {
    /// Reads a unit's registers from the first page.
    pub(super) fn ask_registers(&mut self, now: Time, guid: Guid) {
        let Some(unit) = self.units.get_mut(&guid) else {
            return;
        };
        if unit.registers_ask.is_some() {
            unit.registers_again = true;
        } else if unit.station.is_up() {
            unit.registers_again = false;
            unit.pages.clear();
            self.ask_registers_page(now, guid, Guid::NIL);
        }
    }

    fn ask_registers_page(&mut self, now: Time, guid: Guid, after: Guid) {
        let body = RegistersRequest { after }.to_body();
        let ask = self.submit_to_unit(now, guid, Kind::Registers, body, 16_384);
        if let Some(unit) = self.units.get_mut(&guid) {
            unit.registers_ask = ask;
        }
    }

    pub(super) fn on_registers_page(&mut self, now: Time, guid: Guid, status: Status, body: &[u8]) {
        let Some(unit) = self.units.get_mut(&guid) else {
            return;
        };
        if std::mem::take(&mut unit.registers_doubted) {
            return self.ask_registers(now, guid);
        }
        let lost = status == Status::NoRegisters;
        if lost && !unit.registers_lost {
            unit.lost_since = now;
        }
        unit.registers_lost = lost;
        let page = match status {
            Status::Ok => RegistersReply::from_body(body).ok(),
            _ => None,
        };
        let Some(page) = page else {
            // Without its registers the unit tells no ownership; the rows keep theirs.
            unit.registers_known |= unit.registers_lost;
            if unit.registers_lost {
                self.restore_by_itself(now, guid);
            }
            if matches!(status, Status::Busy | Status::NotReady) {
                self.ask_again_soon(now, guid);
            }
            self.registers_read(now, guid, false);
            return;
        };
        let last = page.registers.last().map(|register| register.row);
        unit.pages.extend(page.registers);
        if let (true, Some(after)) = (page.more && unit.pages.len() <= MAX_UNIT_REGISTERS, last) {
            self.ask_registers_page(now, guid, after);
            return;
        }
        unit.registers = std::mem::take(&mut unit.pages);
        self.misfits.forget(guid);
        let first = !std::mem::replace(&mut unit.registers_known, true);
        let again = std::mem::take(&mut unit.registers_again);
        if first {
            self.extend_patience(now);
        }
        if !self.apply_registers(guid) {
            // Pages of two moments: read them again.
            self.ask_again_soon(now, guid);
        }
        self.registers_read(now, guid, true);
        if again {
            self.ask_registers(now, guid);
        }
    }

    /// Takes a unit's registers into the table; `false` where they do not fit together.
    pub(super) fn apply_registers(&mut self, guid: Guid) -> bool {
        let Some(unit) = self.units.get(&guid) else {
            return true;
        };
        let newer: Vec<OwnershipRegister> = unit
            .registers
            .iter()
            .filter(|register| match self.table.get(register.row) {
                Some(row) => {
                    planted::is(Bug::OlderRegisterTaken)
                        || (register.owned, &register.ownership) > (row.owned, &row.ownership)
                }
                None => register.extent.is_some(),
            })
            .cloned()
            .collect();
        let newer = self.leave_out_far_registers(guid, newer);
        self.take_registers(guid, &newer)
    }

    /// Leaves out registers whose terms or epochs no honest session can have given.
    fn leave_out_far_registers(
        &mut self,
        unit: Guid,
        mut registers: Vec<OwnershipRegister>,
    ) -> Vec<OwnershipRegister> {
        let known = self.known_term();
        let count = registers.len();
        registers.retain(|register| {
            !is_far_term(register.owned.term, known) && !is_far_count(register.owned.epoch.0)
        });
        if registers.len() < count {
            let (left_out, name) = (count - registers.len(), label(&self.table, unit));
            self.warn(format!(
                "{left_out} registers of {name} have terms or epochs far ahead of every one known \
                 here (term {known}); they are left out"
            ));
        }
        registers
    }

    /// Takes registers of a unit into the table, all or (where they would break the hierarchy)
    /// none.
    pub(super) fn take_registers(&mut self, unit: Guid, registers: &[OwnershipRegister]) -> bool {
        let mut outlook = BTreeMap::new();
        for register in registers {
            let look = match (&register.extent, self.table.get(register.row)) {
                // An extent that was removed before anything was heard of it is none.
                (Some(facts), known) if known.is_some() || facts.present => Outlook {
                    parent: facts.device,
                    valid: facts.present,
                    ownership: register.ownership.clone(),
                },
                (None, Some(row)) => Outlook {
                    ownership: register.ownership.clone(),
                    ..Outlook::of(row)
                },
                _ => continue,
            };
            outlook.insert(register.row, look);
        }
        if !offenders(&self.table, &outlook).is_empty() {
            return false;
        }
        let candidates: Vec<Guid> = outlook.into_keys().collect();
        self.mutate(candidates, |table| table.observe_registers(unit, registers));
        true
    }
}
