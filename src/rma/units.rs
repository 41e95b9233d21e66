//! What units and their controllers say of themselves (block 520): controllers, registers, devices.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::agent::Agent;
use super::allocation::{registers_lost, seconds};
use super::controllers::Controller;
use super::members::Station;
use super::plan::error;
use super::plan::{Outlook, offenders};
use super::report::label;
use super::request::{AdminError, ErrorKind};
use super::timers::Timer;
use crate::session::Request;
use crate::wire::kind::Event;
use crate::wire::message::{ControllersReply, Notification, OwnershipRegister};
use crate::wire::{
    CommandId, EntityType, Epoch, Flags, Guid, IocNumber, IodNumber, Kind, ObservationStamp,
    Ownership, Row, RowState, Status, Time, Wire,
};

/// How soon a unit is asked again whose answers do not fit together.
const MISFIT_DELAY: Duration = Duration::from_millis(50);

/// An I/O unit.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) station: Station,
    /// It has lost its registers and serves no I/O.
    pub(super) registers_lost: bool,
    /// Since when it has said so on this connection.
    pub(super) lost_since: Time,
    /// The command that asks for its controllers.
    controllers_ask: Option<CommandId>,
    controllers_again: bool,
    controllers_known: bool,
    seen: Option<u64>,
    controllers_doubted: bool,
    pub(super) registers_ask: Option<CommandId>,
    pub(super) registers_doubted: bool,
    pub(super) registers_again: bool,
    pub(super) registers_known: bool,
    /// Pages of registers on their way.
    pub(super) pages: Vec<OwnershipRegister>,
    /// The registers as they were read last, for rows that appear later.
    pub(super) registers: Vec<OwnershipRegister>,
    pub(super) controllers: BTreeMap<IocNumber, Controller>,
    /// The transaction on its way, for which allocation.
    pub(super) set: Option<(CommandId, u64)>,
    /// How often in a row its answers did not fit together, and when that was the last time.
    misfits: (u32, Time),
}

impl Unit {
    pub(super) fn new(station: Station) -> Self {
        Self {
            station,
            registers_lost: false,
            lost_since: Time::ZERO,
            controllers_ask: None,
            controllers_again: false,
            controllers_known: false,
            seen: None,
            controllers_doubted: false,
            registers_ask: None,
            registers_doubted: false,
            registers_again: false,
            registers_known: false,
            pages: Vec::new(),
            registers: Vec::new(),
            controllers: BTreeMap::new(),
            set: None,
            misfits: (0, Time::ZERO),
        }
    }

    /// Whether an answer of the unit or of one of its controllers is awaited.
    pub(super) fn is_asked(&self) -> bool {
        self.controllers_ask.is_some()
            || self.registers_ask.is_some()
            || self.controllers.values().any(Controller::is_asked)
    }

    /// Whether block 520 knows all that the unit has to tell.
    pub(super) fn is_explored(&self) -> bool {
        self.controllers_known
            && self.registers_known
            && self.controllers.values().all(|c| c.answered)
    }
}

impl Unit {
    /// Rows have gone from the table. What the unit was asked before may tell of a time when they were
    /// there: it is forgotten, or asked again when it comes.
    pub(super) fn doubt(&mut self, gone: &BTreeSet<Guid>) {
        self.registers
            .retain(|register| !gone.contains(&register.row));
        self.registers_doubted = self.registers_ask.is_some();
        self.controllers_doubted = self.controllers_ask.is_some();
        for controller in self.controllers.values_mut() {
            controller.doubted = controller.is_asked();
        }
    }

    /// Whether it has answered that it has no controller.
    pub(super) fn lists_nothing(&self) -> bool {
        self.controllers_known && self.controllers.is_empty()
    }
}

/// Says in one number what a list says; an unchanged list need not be read again.
pub(super) fn fingerprint(parts: impl IntoIterator<Item = (Guid, u16, ObservationStamp)>) -> u64 {
    let mut bytes = Vec::new();
    for (guid, number, stamp) in parts {
        bytes.extend_from_slice(&guid.0.to_be_bytes());
        bytes.extend_from_slice(&number.to_be_bytes());
        bytes.extend_from_slice(&stamp.to_body());
    }
    xxhash_rust::xxh3::xxh3_64(&bytes)
}

impl Agent {
    /// A unit answers (again): block 520 for it alone.
    pub(super) fn unit_up(&mut self, now: Time, guid: Guid) {
        self.unit_is_back(now, guid);
        self.poll_unit(now, guid);
        if !self.is_guest(guid) {
            self.exchange_settings(now, guid);
        }
        let controllers: Vec<IocNumber> = match self.units.get(&guid) {
            Some(unit) => unit.controllers.keys().copied().collect(),
            None => Vec::new(),
        };
        for ioc in controllers {
            self.list_devices(now, guid, ioc);
        }
    }

    /// Asks a unit for its controllers and registers.
    pub(super) fn poll_unit(&mut self, now: Time, guid: Guid) {
        let next = self.next_poll(now, self.config.intervals.unit_poll);
        if self.units.contains_key(&guid) {
            self.timers.set(Timer::Unit(guid), next);
            self.ask_controllers(now, guid);
            self.ask_registers(now, guid);
        }
    }

    pub(super) fn submit_to_unit(
        &mut self,
        now: Time,
        guid: Guid,
        kind: Kind,
        body: Vec<u8>,
        expect: usize,
    ) -> Option<CommandId> {
        let request = Request {
            kind,
            flags: Flags::NONE,
            iod: IodNumber(0),
            epoch: Epoch(0),
            body,
            expect,
        };
        self.hub.client_mut(&guid)?.submit(now, request).ok()
    }

    pub(super) fn ask_controllers(&mut self, now: Time, guid: Guid) {
        let Some(unit) = self.units.get_mut(&guid) else {
            return;
        };
        if unit.controllers_ask.is_some() {
            unit.controllers_again = true;
        } else if unit.station.is_up() {
            unit.controllers_again = false;
            let ask = self.submit_to_unit(now, guid, Kind::Controllers, Vec::new(), 4096);
            if let Some(unit) = self.units.get_mut(&guid) {
                unit.controllers_ask = ask;
            }
        }
    }

    pub(super) fn unit_reply(
        &mut self,
        now: Time,
        guid: Guid,
        command: CommandId,
        status: Status,
        body: &[u8],
    ) {
        let Some(unit) = self.units.get_mut(&guid) else {
            return;
        };
        if unit.controllers_ask.take_if(|id| *id == command).is_some() {
            let doubted = std::mem::take(&mut unit.controllers_doubted);
            let again = unit.controllers_again || doubted;
            if status == Status::Ok
                && !doubted
                && let Ok(reply) = ControllersReply::from_body(body)
            {
                self.on_controllers(now, guid, reply);
            }
            if again {
                self.ask_controllers(now, guid);
            }
        } else if unit.registers_ask.take_if(|id| *id == command).is_some() {
            self.on_registers_page(now, guid, status, body);
        } else if let Some((_, id)) = unit.set.take_if(|(id, _)| *id == command) {
            self.on_set_reply(now, guid, id, status, body);
        } else {
            self.on_restore_reply(now, guid, command, status);
        }
    }

    fn on_controllers(&mut self, now: Time, guid: Guid, mut reply: ControllersReply) {
        if reply.unit != guid {
            let name = label(&self.table, guid);
            self.warn(format!("{name} lists controllers as {}", reply.unit));
            return;
        }
        if self
            .table
            .get(guid)
            .is_some_and(|r| r.entity != EntityType::Unit)
        {
            return;
        }
        if !self.leave_out_taken(guid, &mut reply) {
            return;
        }
        self.leave_out_foreign(guid, &mut reply);
        let returned =
            self.returned_misfits(guid, reply.controllers.iter().map(|c| (c.guid, guid)));
        // Their devices are asked for all the same: a device that did not come back with its
        // controller must not keep it out.
        let listed: Vec<(IocNumber, Guid)> =
            reply.controllers.iter().map(|c| (c.ioc, c.guid)).collect();
        reply.controllers.retain(|c| !returned.contains(&c.guid));
        let print = fingerprint(
            [(guid, 0, reply.observed), (guid, 1, reply.listed)]
                .into_iter()
                .chain(
                    reply
                        .controllers
                        .iter()
                        .map(|c| (c.guid, c.ioc.0, c.observed)),
                ),
        );
        let outdated = self.has_others(guid, reply.controllers.iter().map(|c| c.guid));
        let Some(unit) = self.units.get_mut(&guid) else {
            return;
        };
        let first = !std::mem::replace(&mut unit.controllers_known, true);
        if unit.seen.replace(print) != Some(print) || outdated {
            let candidates: Vec<Guid> = std::iter::once(guid)
                .chain(self.table.children(guid).map(|row| row.guid))
                .chain(reply.controllers.iter().map(|c| c.guid))
                .collect();
            let macs = |agent: &Self| agent.table.get(guid).map(|row| row.macs.clone());
            let before = macs(self);
            self.mutate(candidates, |table| table.observe_controllers(&reply));
            self.apply_registers(guid);
            if macs(self) != before {
                self.sync_stations(now);
            }
        }
        if first {
            self.extend_patience(now);
        }
        self.sync_controllers(now, guid, &listed);
        self.retire_empty_guests();
        if !returned.is_empty() {
            self.ask_again_soon(now, guid);
        }
    }

    /// Whether the table has a child of `parent` as present that is not `listed`. A peer may have told of it
    /// again, after a floor had taken it, since the same list was read last.
    pub(super) fn has_others(&self, parent: Guid, listed: impl Iterator<Item = Guid>) -> bool {
        let listed: BTreeSet<Guid> = listed.collect();
        self.table
            .children(parent)
            .any(|row| row.extent.is_none() && row.is_valid() && !listed.contains(&row.guid))
    }

    /// Leaves out controllers that are something else, or another present unit's.
    fn leave_out_foreign(&mut self, unit: Guid, reply: &mut ControllersReply) {
        let mut refused = Vec::new();
        reply.controllers.retain(|record| {
            let Some(row) = self.table.get(record.guid) else {
                return true;
            };
            let foreign = row.entity != EntityType::Controller
                || (row.parent != unit && self.table.is_present(row.guid));
            if foreign {
                refused.push(record.guid);
            }
            !foreign
        });
        self.warn_foreign(unit, &refused);
    }

    pub(super) fn warn_foreign(&mut self, unit: Guid, refused: &[Guid]) {
        for guid in refused {
            let (unit, row) = (label(&self.table, unit), label(&self.table, *guid));
            let path = self.table.path(*guid).join("/");
            self.warn(format!(
                "{unit} lists GUID {guid}, which is {row} ({}) already; is its disk a copy? It is \
                 refused",
                path.escape_debug()
            ));
        }
    }

    /// Rows that come back under a parent that does not permit their last owners, or over children
    /// whose owners they do not permit. The unit has reset their registers, or tells in them who owns
    /// them; they are listed once those have been read.
    pub(super) fn returned_misfits(
        &self,
        unit: Guid,
        listed: impl Iterator<Item = (Guid, Guid)>,
    ) -> BTreeSet<Guid> {
        let mut outlook = BTreeMap::new();
        for (guid, parent) in listed {
            let ownership = match self.table.get(guid) {
                Some(row) if row.is_valid() && row.parent == parent => continue,
                Some(row) => row.ownership.clone(),
                None if self.table.children(guid).next().is_none() => continue,
                None => self.ownership_read(unit, guid),
            };
            let look = Outlook {
                parent,
                valid: true,
                ownership,
            };
            outlook.insert(guid, look);
        }
        if outlook.is_empty() {
            return outlook.into_keys().collect();
        }
        if let Some(row) = self.table.get(unit).filter(|row| !row.is_valid()) {
            let valid = Row {
                state: RowState::Valid,
                ..row.clone()
            };
            outlook.insert(unit, Outlook::of(&valid));
        }
        let offenders = offenders(&self.table, &outlook);
        // A child in the way keeps its parent out: the parent is what came back.
        outlook
            .into_keys()
            .filter(|guid| {
                offenders.contains(guid)
                    || self
                        .table
                        .children(*guid)
                        .any(|c| offenders.contains(&c.guid))
            })
            .collect()
    }

    /// Who owns a row by the unit's registers as they were read last.
    fn ownership_read(&self, unit: Guid, row: Guid) -> Ownership {
        let registers = self.units.get(&unit).map(|unit| &unit.registers[..]);
        let mut registers = registers.unwrap_or_default().iter();
        let register = registers.find(|register| register.row == row);
        register.map_or(Ownership::Unallocated, |register| {
            register.ownership.clone()
        })
    }

    /// Why a unit cannot be asked to change something just now, where it cannot.
    pub(super) fn check_reachable(&self, now: Time, unit: Guid) -> Result<(), AdminError> {
        let name = label(&self.table, unit);
        match self.units.get(&unit) {
            None => Err(error(
                ErrorKind::Unreachable,
                format!(
                    "{name} is not among the members that fabric services list; nothing was \
                     changed (`rma units`)"
                ),
            )),
            Some(known) if known.registers_lost => Err(registers_lost(&name)),
            Some(known) if !known.station.is_up() => Err(error(
                ErrorKind::Unreachable,
                format!(
                    "{name} has not answered for {}; nothing was changed, try again when \
                     `rma units` shows it reachable",
                    seconds(now.since(known.station.since))
                ),
            )),
            Some(_) => Ok(()),
        }
    }

    /// Asks a unit and its controllers again at once, whatever they told before.
    pub(super) fn ask_anew(&mut self, unit: Guid) {
        let Some(known) = self.units.get_mut(&unit) else {
            return;
        };
        known.seen = None;
        for (ioc, controller) in &mut known.controllers {
            controller.seen = None;
            let timer = Timer::Controller(unit, *ioc);
            self.timers.set_sooner(timer, Time::ZERO);
        }
        self.timers.set_sooner(Timer::Unit(unit), Time::ZERO);
    }

    /// Asks a unit and its controllers again, later each time as long as it does not help.
    pub(super) fn ask_again_soon(&mut self, now: Time, unit: Guid) {
        let longest = self.config.intervals.unit_poll;
        let Some(known) = self.units.get_mut(&unit) else {
            return;
        };
        known.seen = None;
        let (count, last) = known.misfits;
        let in_a_row = now.since(last) <= longest * 2;
        let count = if in_a_row { count } else { 0 };
        let delay = (MISFIT_DELAY * (1 << count.min(10))).min(longest);
        known.misfits = (count + 1, now);
        for (ioc, controller) in &mut known.controllers {
            controller.seen = None;
            self.timers
                .set_sooner(Timer::Controller(unit, *ioc), now + delay);
        }
        self.timers.set_sooner(Timer::Unit(unit), now + delay);
    }

    /// A unit says that something changed.
    pub(super) fn unit_notified(&mut self, now: Time, unit: Guid, notification: Notification) {
        match notification.event {
            Event::ControllersChanged => {
                self.ask_controllers(now, unit);
                self.ask_registers(now, unit);
            }
            Event::RegistersChanged => self.ask_registers(now, unit),
            Event::DevicesChanged => self.list_devices(now, unit, notification.ioc),
            Event::MembershipChanged => {}
        }
    }
}
