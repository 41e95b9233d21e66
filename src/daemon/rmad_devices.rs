//! What the management thread of `rmad` has to do with the device thread.

use std::collections::BTreeMap;

use super::devices::{DeviceCommand, DeviceEvent, DevicesHandle};
use super::rmad::Rmad;
use super::service::ServiceHandle;
use crate::admin::control::ControlId;
use crate::admin::protocol::{Answer, PolicyChange};
use crate::rma::request::{AdminError, AdminRequest, ErrorKind};
use crate::wire::{EntityType, Guid};

fn refused(message: String) -> Answer {
    let kind = ErrorKind::Refused;
    Answer::Error(AdminError { kind, message })
}

impl Rmad {
    /// Before a change that may take a device from this host, looks who uses its devices.
    pub(super) fn look_who_uses(&mut self, request: &AdminRequest) {
        let may_take = matches!(
            request,
            AdminRequest::Allocate { .. }
                | AdminRequest::Release { .. }
                | AdminRequest::Apply { .. }
                | AdminRequest::Uncarve { .. }
        );
        if may_take {
            let used = self.users();
            self.agent.set_used(Some(used));
        }
    }

    /// Which devices and extents of this host are in use, and by whom.
    pub(super) fn users(&self) -> BTreeMap<Guid, String> {
        let devices = self.devices.as_ref();
        devices.map(DevicesHandle::users).unwrap_or_default()
    }

    /// Tells, or changes, what becomes of a device's I/O while its unit cannot be reached.
    pub(super) fn policy(
        &mut self,
        id: ControlId,
        device: &str,
        change: Option<PolicyChange>,
        service: &ServiceHandle,
    ) {
        let answer = match self.named(device) {
            Err(e) => Answer::Error(e),
            Ok(guid) => {
                let name = self.agent.table().get(guid).map(|row| row.name.clone());
                let name = name.unwrap_or_default();
                match self.policies.apply(guid, &name, change) {
                    Ok(info) => Answer::Policy(info),
                    Err(message) => Answer::Error(AdminError {
                        kind: ErrorKind::Refused,
                        message,
                    }),
                }
            }
        };
        if change.is_some() {
            self.policies.tell(service);
        }
        self.finish(id, &answer);
    }

    /// The device or extent that somebody names.
    pub(super) fn named(&self, device: &str) -> Result<Guid, AdminError> {
        let among = [EntityType::Device, EntityType::Extent];
        let found = self.agent.table().resolve_among(device, &among);
        found.map_err(AdminError::from)
    }

    pub(super) fn device(&self, command: DeviceCommand) {
        if let Some(devices) = &self.devices {
            devices.send(command);
        }
    }

    /// Has the device thread do something about one device and answer.
    pub(super) fn about(
        &mut self,
        id: ControlId,
        device: &str,
        command: fn(u64, Guid) -> DeviceCommand,
    ) {
        match self.named(device) {
            Ok(guid) => self.device(command(id.as_u64(), guid)),
            Err(e) => self.finish(id, &Answer::Error(e)),
        }
    }

    pub(super) fn end_devices(&mut self, remove: bool) {
        if let Some(devices) = self.devices.take() {
            devices.stop(remove);
        }
    }

    pub(super) fn told_of_devices(&mut self) {
        let events = self.devices.as_ref().map(DevicesHandle::drain);
        for event in events.unwrap_or_default() {
            match event {
                DeviceEvent::Rules(token, rules) => {
                    self.finish(ControlId::from_u64(token), &Answer::UdevRules { rules });
                }
                DeviceEvent::Explained(token, explained) => {
                    let answer = explained.map_or_else(refused, Answer::UdevTest);
                    self.finish(ControlId::from_u64(token), &answer);
                }
                DeviceEvent::Abandoned(token, outcome) => {
                    let answer = outcome.map_or_else(refused, Answer::Abandoned);
                    self.finish(ControlId::from_u64(token), &answer);
                }
            }
        }
    }
}
