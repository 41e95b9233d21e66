//! Asking fabric services for a host of another cluster.

use super::facts::Purpose;
use super::link::{FabricLink, LinkEvent};
use crate::wire::message::{FindHost, FoundHost};
use crate::wire::{CommandId, Kind, Status, Time, Wire};

impl FabricLink {
    /// Asks which host of a cluster has a name; answered with [`LinkEvent::HostFound`] and this
    /// number. `false`: fabric services do not answer.
    pub fn find_host(&mut self, now: Time, number: u64, request: &FindHost) -> bool {
        if !self.registered {
            return false;
        }
        let command = self.submit(now, Kind::FindHost, request.to_body(), 64);
        if let Some(command) = command {
            self.waiting.insert(command, Purpose::Find(number));
        }
        command.is_some()
    }

    /// Fabric services have answered.
    pub(super) fn host_found(&mut self, number: u64, status: Status, body: &[u8]) {
        let found = match status {
            Status::Ok => FoundHost::from_body(body).map_err(|_| Status::BadRequest),
            other => Err(other),
        };
        let found = found.map(|found| found.host);
        self.events.push_back(LinkEvent::HostFound(number, found));
    }

    /// Whoever waits for a host's name hears that fabric services are gone.
    pub(super) fn fail_finds(&mut self) {
        let finds: Vec<(CommandId, u64)> = self
            .waiting
            .iter()
            .filter_map(|(command, purpose)| match purpose {
                Purpose::Find(number) => Some((*command, *number)),
                _ => None,
            })
            .collect();
        for (command, number) in finds {
            self.waiting.remove(&command);
            if let Some(client) = &mut self.client {
                client.cancel(command);
            }
            let silent = Err(Status::NotReady);
            self.events.push_back(LinkEvent::HostFound(number, silent));
        }
    }
}
