//! The sessions to I/O controllers, and the feeding of waiting I/O into them.

use std::collections::VecDeque;

use super::tables::Window;
use super::{ControllerKey, DeviceId, Initiator, IoEvent, Sent, Target, key_of};
use crate::session::{Client, ClientConfig, Request};
use crate::wire::kind::Role;
use crate::wire::message::DevicesReply;
use crate::wire::{
    Epoch, Flags, Guid, Incarnation, IocNumber, IodNumber, Kind, Mac, Status, Time, Wire,
};

/// Where commands to a device, or to an extent of it, go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(Guid, IocNumber, IodNumber, Guid);

impl Place {
    pub(super) const fn of(target: &Target) -> Self {
        Self(target.unit, target.ioc, target.iod, target.extent)
    }

    const fn controller(self) -> ControllerKey {
        (self.0, self.1)
    }
}

/// Where a command was sent, and under which epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Errand {
    pub(super) place: Place,
    epoch: Epoch,
}

impl Errand {
    pub(super) const fn of(target: &Target) -> Self {
        Self {
            place: Place::of(target),
            epoch: target.epoch,
        }
    }
}

/// A session to a controller.
#[derive(Debug)]
pub(super) struct Controller {
    /// Whether it was removed, and its session is only kept until what was sent has ended.
    leaving: bool,
    /// The unit's incarnation, while the session has a connection.
    up: Option<Incarnation>,
    /// Whether its device list is asked for and not answered.
    listing: bool,
    /// Whether its device list has to be asked for (again).
    list_wanted: bool,
    /// Open devices on it with parts to send, in turn.
    pub(super) ready: VecDeque<DeviceId>,
    /// Whether the session is going to be given more to send.
    unfed: bool,
    /// Commands that were given to the session and have not ended.
    pub(super) sent: Window<Sent>,
}

impl Controller {
    /// Whether its session is only kept until what was sent has ended.
    pub(super) const fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Whether anything waits for the session to take it.
    pub(super) fn has_waiting(&self) -> bool {
        self.list_wanted || !self.ready.is_empty()
    }

    /// Notes that its session is to be given more to send.
    pub(super) fn feed_soon(&mut self, key: ControllerKey, unfed: &mut VecDeque<ControllerKey>) {
        if !std::mem::replace(&mut self.unfed, true) {
            unfed.push_back(key);
        }
    }

    /// Whether it answers, and is wanted.
    pub(super) const fn is_reached(&self) -> bool {
        self.up.is_some() && !self.leaving
    }
}

impl Initiator {
    /// Opens and keeps open a session to a controller; with another address later, moves there.
    pub fn add_controller(&mut self, now: Time, unit: Guid, ioc: IocNumber, mac: Mac) {
        self.reach_controller(now, unit, ioc, &[mac]);
    }

    /// The same with all addresses of its unit.
    pub fn reach_controller(&mut self, now: Time, unit: Guid, ioc: IocNumber, macs: &[Mac]) {
        let key = (unit, ioc);
        if let Some(controller) = self.controllers.get_mut(&key) {
            if std::mem::take(&mut controller.leaving)
                && let Some(incarnation) = controller.up
            {
                self.events.push_back(up(key, incarnation));
                self.note_reach_of(now, key);
            }
        } else {
            self.sessions += 1;
            let client = ClientConfig {
                local: self.config.local,
                incarnation: self.config.incarnation,
                role: Role::Host,
                cluster: self.config.cluster,
                session: self.sessions,
                remote: unit,
                ioc,
                service: true,
                mtu: self.config.mtu,
                credits: self.config.credits,
            };
            let client = Client::new(client, self.rng.u64(..));
            self.hub.insert(key, client);
            self.note_use(key);
            let controller = Controller {
                leaving: false,
                up: None,
                listing: false,
                list_wanted: false,
                ready: VecDeque::new(),
                unfed: false,
                sent: Window::new(),
            };
            self.controllers.insert(key, controller);
            let waiting: Vec<DeviceId> = self.devices_at(key);
            for device in waiting {
                self.make_ready(device);
            }
        }
        if let Some(client) = self.hub.client_mut(&key) {
            client.set_nics(now, &self.nics);
            client.reach(now, macs);
        }
        if let Some(controller) = self.controllers.get_mut(&key) {
            controller.feed_soon(key, &mut self.unfed);
        }
        self.take_events(now);
    }

    /// Closes a controller's session. I/O of devices still open on it waits for the controller to
    /// come back; where some of it is under way, the session is kept until that has ended.
    pub fn remove_controller(&mut self, now: Time, unit: Guid, ioc: IocNumber) {
        let key = (unit, ioc);
        let Some(controller) = self.controllers.get_mut(&key) else {
            return;
        };
        if std::mem::replace(&mut controller.leaving, true) {
            return;
        }
        if controller.up.is_some() {
            self.events.push_back(down(key));
        }
        if std::mem::take(&mut controller.list_wanted) || controller.listing {
            self.listed(key, Err(Status::NoController));
        }
        self.note_reach_of(now, key);
        self.close_unused(now, key);
    }

    /// Whether a session to the controller is open.
    pub fn is_up(&self, unit: Guid, ioc: IocNumber) -> bool {
        self.hub
            .client(&(unit, ioc))
            .is_some_and(Client::is_connected)
    }

    /// Asks a controller for its devices; answered by [`IoEvent::Devices`] once there is an answer.
    pub fn list_devices(&mut self, unit: Guid, ioc: IocNumber) {
        let key = (unit, ioc);
        match self.controllers.get_mut(&key).filter(|c| !c.leaving) {
            Some(controller) => {
                controller.list_wanted = true;
                controller.feed_soon(key, &mut self.unfed);
            }
            None => self.listed(key, Err(Status::NoController)),
        }
    }

    fn listed(&mut self, (unit, ioc): ControllerKey, result: Result<DevicesReply, Status>) {
        self.events
            .push_back(IoEvent::Devices { unit, ioc, result });
    }

    pub(super) fn on_list(&mut self, now: Time, key: ControllerKey, status: Status, body: &[u8]) {
        let Some(controller) = self.controllers.get_mut(&key) else {
            return;
        };
        controller.listing = false;
        if controller.leaving {
            return self.close_unused(now, key);
        }
        let result = match status {
            Status::Ok => DevicesReply::from_body(body).map_err(|reason| {
                let (unit, ioc) = key;
                let malformed = IoEvent::Malformed { unit, ioc, reason };
                self.events.push_back(malformed);
                Status::BadRequest
            }),
            status => Err(status),
        };
        self.listed(key, result);
    }

    pub(super) fn on_connected(&mut self, now: Time, key: ControllerKey, incarnation: Incarnation) {
        let Some(controller) = self.controllers.get_mut(&key) else {
            return;
        };
        controller.up = Some(incarnation);
        if !controller.leaving {
            controller.feed_soon(key, &mut self.unfed);
            self.events.push_back(up(key, incarnation));
            self.note_reach_of(now, key);
        }
    }

    pub(super) fn on_lost(&mut self, now: Time, key: ControllerKey) {
        let Some(controller) = self.controllers.get_mut(&key) else {
            return;
        };
        if controller.up.take().is_some() && !controller.leaving {
            self.events.push_back(down(key));
        }
        self.note_reach_of(now, key);
    }

    /// Where no device is open on a controller, nothing depends on its connection.
    pub(super) fn note_use(&mut self, key: ControllerKey) {
        let quiet = !self.devices.values().any(|d| key_of(&d.target) == key);
        if let Some(client) = self.hub.client_mut(&key) {
            client.set_quiet(quiet);
        }
    }

    pub(super) fn devices_at(&self, key: ControllerKey) -> Vec<DeviceId> {
        self.devices
            .iter()
            .filter(|(_, d)| key_of(&d.target) == key)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Puts a device among those of its controller that have something to send, where it has.
    pub(super) fn make_ready(&mut self, device: DeviceId) {
        let Some(open) = self.devices.get_mut(&device) else {
            return;
        };
        if open.ready || open.waiting.is_empty() {
            return;
        }
        if self.ghosts.contains_key(&Place::of(&open.target)) {
            return;
        }
        let key = key_of(&open.target);
        if let Some(controller) = self.controllers.get_mut(&key) {
            controller.ready.push_back(device);
            open.ready = true;
            controller.feed_soon(key, &mut self.unfed);
        }
    }

    /// The last command of closed devices at a place has ended.
    pub(super) fn make_place_ready(&mut self, place: Place) {
        for device in self.devices_at(place.controller()) {
            self.make_ready(device);
        }
    }

    /// Gives sessions what waits: all of it at a time, before the next frame is sent.
    pub(super) fn feed_all(&mut self, now: Time) {
        while let Some(key) = self.unfed.pop_front() {
            self.feed(now, key);
        }
    }

    /// Gives waiting parts to the session, as long as it needs more to keep its window full.
    fn feed(&mut self, now: Time, key: ControllerKey) {
        let Some(controller) = self.controllers.get_mut(&key) else {
            return;
        };
        controller.unfed = false;
        if controller.leaving {
            return;
        }
        let Some(client) = self.hub.client_mut(&key).filter(|c| c.is_connected()) else {
            return;
        };
        if controller.list_wanted && !controller.listing {
            let request = Request {
                kind: Kind::Devices,
                flags: Flags::NONE,
                iod: IodNumber(0),
                epoch: Epoch(0),
                body: Vec::new(),
                expect: 4096,
            };
            if let Ok(command) = client.submit(now, request) {
                controller.listing = true;
                controller.list_wanted = false;
                controller.sent.push(command.0, Sent::List);
                self.under_way += 1;
            }
        }
        let depth = usize::from(self.config.credits) * 2;
        while client.outstanding() < depth {
            let Some(id) = controller.ready.pop_front() else {
                return;
            };
            let Some(device) = self.devices.get_mut(&id) else {
                continue;
            };
            device.ready = false;
            let Some((io, part)) = device.waiting.pop_front() else {
                continue;
            };
            if let Some(running) = self.ios.get_mut(io) {
                let mut request = running.send(part, &device.target);
                let Ok(command) = client.submit_io(now, &mut request) else {
                    // The session is full: it will be asked again after a reply.
                    running.put_back();
                    device.waiting.push_front((io, part));
                    device.ready = true;
                    controller.ready.push_front(id);
                    return;
                };
                let to = Errand::of(&device.target);
                controller.sent.push(command.0, Sent::Part { io, part, to });
                self.under_way += 1;
            }
            if !device.waiting.is_empty() {
                device.ready = true;
                controller.ready.push_back(id);
            }
        }
    }

    /// Ends the session of a controller that was removed, once nothing of an open device is under
    /// way on it. What closed devices left there is dead with it: the next session replaces it.
    pub(super) fn close_unused(&mut self, now: Time, key: ControllerKey) {
        let Some(controller) = self.controllers.get(&key).filter(|c| c.leaving) else {
            return;
        };
        let ghosts: Vec<Sent> = controller.sent.values().copied().collect();
        let in_use = ghosts
            .iter()
            .any(|s| matches!(s, Sent::Part { io, .. } if self.ios.contains(*io)));
        if in_use {
            return;
        }
        self.controllers.remove(&key);
        self.under_way -= ghosts.len();
        for device in self.devices_at(key) {
            if let Some(open) = self.devices.get_mut(&device) {
                open.ready = false;
            }
        }
        if let Some(client) = self.hub.client_mut(&key) {
            client.close(now);
        }
        self.hub.remove(&key);
        for sent in ghosts {
            if let Sent::Part { to, .. } = sent {
                self.on_ghost(to.place);
            }
        }
    }
}

const fn up((unit, ioc): ControllerKey, incarnation: Incarnation) -> IoEvent {
    IoEvent::Up {
        unit,
        ioc,
        incarnation,
    }
}

const fn down((unit, ioc): ControllerKey) -> IoEvent {
    IoEvent::Down { unit, ioc }
}
