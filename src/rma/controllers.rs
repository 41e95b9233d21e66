//! What controllers say of themselves (block 520): their devices.

use std::time::Duration;

use super::action::AgentAction;
use super::agent::Agent;
use super::timers::Timer;
use super::units::{Unit, fingerprint};
use crate::wire::kind::Event;
use crate::wire::message::{DevicesReply, Notification};
use crate::wire::{EntityType, Guid, IocNumber, Mac, Status, Time};

/// How long a controller may take to list its devices before it is asked again.
const LIST_PATIENCE: Duration = Duration::from_secs(10);

/// A controller, as far as asking it is concerned.
#[derive(Debug)]
pub(super) struct Controller {
    guid: Guid,
    macs: Vec<Mac>,
    /// Since when an answer is awaited.
    asked: Option<Time>,
    /// It is to be asked again as soon as it has answered.
    again: bool,
    /// What it answers may be too old.
    pub(super) doubted: bool,
    /// It has answered, or said that it cannot.
    pub(super) answered: bool,
    /// What it answered last.
    pub(super) seen: Option<u64>,
}

impl Controller {
    /// Whether its answer is awaited.
    pub(super) const fn is_asked(&self) -> bool {
        self.asked.is_some()
    }
}

impl Agent {
    /// Keeps a service connection to each controller that the unit lists.
    pub(super) fn sync_controllers(&mut self, now: Time, guid: Guid, listed: &[(IocNumber, Guid)]) {
        let Some(unit) = self.units.get_mut(&guid) else {
            return;
        };
        if unit.station.macs.is_empty() {
            return;
        }
        let mut actions = Vec::new();
        let gone: Vec<IocNumber> = unit
            .controllers
            .iter()
            .filter(|(ioc, known)| !listed.contains(&(**ioc, known.guid)))
            .map(|(ioc, _)| *ioc)
            .collect();
        for ioc in gone {
            unit.controllers.remove(&ioc);
            self.timers.cancel(Timer::Controller(guid, ioc));
            actions.push(AgentAction::RemoveController { unit: guid, ioc });
        }
        let mut fresh = Vec::new();
        for (ioc, guid_listed) in listed.iter().copied() {
            let known = unit.controllers.entry(ioc).or_insert_with(|| {
                fresh.push(ioc);
                Controller {
                    guid: guid_listed,
                    macs: Vec::new(),
                    asked: None,
                    again: false,
                    doubted: false,
                    answered: false,
                    seen: None,
                }
            });
            if known.macs != unit.station.macs {
                // New, or the unit has other NICs.
                known.macs.clone_from(&unit.station.macs);
                actions.push(AgentAction::AddController {
                    unit: guid,
                    ioc,
                    macs: known.macs.clone(),
                });
            }
        }
        for action in actions {
            self.act(action);
        }
        for ioc in fresh {
            self.poll_controller(now, guid, ioc);
        }
    }

    /// Asks a controller for its devices, and again after its interval.
    pub(super) fn poll_controller(&mut self, now: Time, unit: Guid, ioc: IocNumber) {
        let next = self.next_poll(now, self.config.intervals.controller_poll);
        let known = |u: &Unit| u.controllers.contains_key(&ioc);
        if self.units.get(&unit).is_some_and(known) {
            self.timers.set(Timer::Controller(unit, ioc), next);
            self.list_devices(now, unit, ioc);
        }
    }

    /// The numbers of a unit's controllers.
    pub(super) fn controller_numbers(&self, unit: Guid) -> Vec<IocNumber> {
        let unit = self.units.get(&unit);
        unit.map_or_else(Vec::new, |unit| unit.controllers.keys().copied().collect())
    }

    pub(super) fn list_devices(&mut self, now: Time, unit: Guid, ioc: IocNumber) {
        let Some(controller) = self
            .units
            .get_mut(&unit)
            .and_then(|u| u.controllers.get_mut(&ioc))
        else {
            return;
        };
        if controller
            .asked
            .is_some_and(|at| now.since(at) < LIST_PATIENCE)
        {
            controller.again = true;
            return;
        }
        controller.asked = Some(now);
        controller.again = false;
        self.act(AgentAction::ListDevices { unit, ioc });
    }

    /// A controller has answered [`AgentAction::ListDevices`], or could not be asked.
    pub fn devices_listed(
        &mut self,
        now: Time,
        unit: Guid,
        ioc: IocNumber,
        result: Result<DevicesReply, Status>,
    ) {
        let Some(controller) = self
            .units
            .get_mut(&unit)
            .and_then(|u| u.controllers.get_mut(&ioc))
        else {
            return;
        };
        controller.asked = None;
        if std::mem::take(&mut controller.doubted) && result.is_ok() {
            return self.list_devices(now, unit, ioc);
        }
        let first = !std::mem::replace(&mut controller.answered, true);
        let again = std::mem::take(&mut controller.again);
        match result {
            Ok(reply) if reply.controller == controller.guid => {
                if first {
                    self.extend_patience(now);
                }
                self.on_devices(now, unit, ioc, reply);
            }
            // Another controller has taken the number: the unit knows.
            Ok(_) | Err(Status::NoController) => self.ask_controllers(now, unit),
            Err(_) => {}
        }
        if again {
            self.list_devices(now, unit, ioc);
        }
        self.pump(now);
    }

    fn on_devices(&mut self, now: Time, unit: Guid, ioc: IocNumber, mut reply: DevicesReply) {
        let mut refused = Vec::new();
        reply.devices.retain(|record| {
            let Some(row) = self.table.get(record.guid) else {
                return true;
            };
            let foreign = row.entity != EntityType::Device
                || (self.table.is_present(row.guid)
                    && self.table.unit_of(row.guid).is_some_and(|of| of != unit));
            if foreign {
                refused.push(record.guid);
            }
            !foreign
        });
        self.warn_foreign(unit, &refused);
        let controller = reply.controller;
        let returned =
            self.returned_misfits(unit, reply.devices.iter().map(|d| (d.guid, controller)));
        reply.devices.retain(|d| !returned.contains(&d.guid));
        let print = fingerprint(
            std::iter::once((controller, 0, reply.listed))
                .chain(reply.devices.iter().map(|d| (d.guid, d.iod.0, d.observed))),
        );
        let outdated = self.has_others(controller, reply.devices.iter().map(|d| d.guid));
        let known = self
            .units
            .get_mut(&unit)
            .and_then(|u| u.controllers.get_mut(&ioc));
        let Some(known) = known else { return };
        if known.seen.replace(print) != Some(print) || outdated {
            let candidates: Vec<Guid> = self
                .table
                .children(controller)
                .map(|row| row.guid)
                .chain(reply.devices.iter().map(|d| d.guid))
                .collect();
            self.mutate(candidates, |table| table.observe_devices(unit, &reply));
            self.apply_registers(unit);
        }
        if !returned.is_empty() {
            self.ask_again_soon(now, unit);
        }
    }

    /// A controller says that something changed.
    pub fn service_notified(
        &mut self,
        now: Time,
        unit: Guid,
        ioc: IocNumber,
        notification: Notification,
    ) {
        if notification.event == Event::DevicesChanged {
            self.list_devices(now, unit, ioc);
        } else {
            self.unit_notified(now, unit, notification);
        }
        self.pump(now);
    }
}
