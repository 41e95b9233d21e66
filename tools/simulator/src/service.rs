//! A host's service connections, as far as the agent needs them: device lists and notifications.

use std::collections::BTreeSet;

use rma::session::{Client, ClientConfig, ClientEvent, Hub, HubEvent, Request};
use rma::wire::kind::Role;
use rma::wire::message::{DevicesReply, Notification};
use rma::wire::{
    ClusterName, CommandId, DropReason, Epoch, Flags, Guid, Incarnation, IocNumber, IodNumber,
    Kind, Mac, Status, Time, Wire,
};

/// What comes from controllers.
pub(crate) enum Heard {
    Devices(Guid, IocNumber, Result<DevicesReply, Status>),
    Notified(Guid, IocNumber, Notification),
}

/// Service connections of a host.
#[derive(Debug)]
pub(crate) struct Service {
    local: Guid,
    incarnation: Incarnation,
    pub(crate) cluster: ClusterName,
    mtu: u16,
    hub: Hub<(Guid, IocNumber)>,
    asked: BTreeSet<((Guid, IocNumber), CommandId)>,
    rng: fastrand::Rng,
    session: u64,
}

impl Service {
    pub(crate) fn new(
        local: Guid,
        incarnation: Incarnation,
        cluster: ClusterName,
        mac: Mac,
        mtu: u16,
        seed: u64,
    ) -> Self {
        Self {
            local,
            incarnation,
            cluster,
            mtu,
            hub: Hub::new(true, vec![mac], seed),
            asked: BTreeSet::new(),
            rng: fastrand::Rng::with_seed(seed ^ 1),
            session: 1,
        }
    }

    pub(crate) fn add_controller(&mut self, now: Time, unit: Guid, ioc: IocNumber, mac: Mac) {
        let config = ClientConfig {
            local: self.local,
            incarnation: self.incarnation,
            role: Role::Host,
            cluster: self.cluster,
            session: self.session,
            remote: unit,
            ioc,
            service: true,
            mtu: self.mtu,
            credits: 32,
        };
        self.session += 1;
        let mut client = Client::new(config, self.rng.u64(..));
        client.connect(now, mac);
        self.hub.insert((unit, ioc), client);
    }

    pub(crate) fn remove_controller(&mut self, unit: Guid, ioc: IocNumber) {
        self.hub.remove(&(unit, ioc));
        self.asked.retain(|(key, _)| *key != (unit, ioc));
    }

    pub(crate) fn list_devices(&mut self, now: Time, unit: Guid, ioc: IocNumber) {
        let request = Request {
            kind: Kind::Devices,
            flags: Flags::NONE,
            iod: IodNumber(0),
            epoch: Epoch(0),
            body: Vec::new(),
            expect: 4096,
        };
        if let Some(client) = self.hub.client_mut(&(unit, ioc))
            && let Ok(command) = client.submit(now, request)
        {
            self.asked.insert(((unit, ioc), command));
        }
    }

    pub(crate) fn handle(&mut self, now: Time, src: Mac, frame: &[u8]) -> Result<(), DropReason> {
        self.hub.handle(now, src, frame)
    }

    pub(crate) fn tick(&mut self, now: Time) {
        self.hub.tick(now);
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.hub.deadline()
    }

    pub(crate) fn poll_transmit(&mut self, now: Time, out: &mut Vec<u8>) -> Option<Mac> {
        self.hub.poll_transmit(now, out)
    }

    pub(crate) fn poll(&mut self) -> Option<Heard> {
        while let Some(event) = self.hub.poll_event() {
            let HubEvent::Client((unit, ioc), event) = event else {
                continue;
            };
            match event {
                ClientEvent::Reply {
                    command,
                    status,
                    body,
                } => {
                    if !self.asked.remove(&((unit, ioc), command)) {
                        continue;
                    }
                    let result = if status == Status::Ok {
                        DevicesReply::from_body(&body).map_err(|_| Status::BadRequest)
                    } else {
                        Err(status)
                    };
                    return Some(Heard::Devices(unit, ioc, result));
                }
                ClientEvent::Notified(notification) => {
                    return Some(Heard::Notified(unit, ioc, notification));
                }
                _ => {}
            }
        }
        None
    }
}
