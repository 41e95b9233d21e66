//! What the management thread of `rmad` has to do with the device thread.

use super::devices::{DeviceCommand, DeviceEvent, DevicesHandle};
use super::rmad::Rmad;
use super::service::ServiceHandle;
use crate::admin::control::ControlId;
use crate::admin::protocol::{Answer, PolicyChange};
use crate::rma::request::{AdminError, AdminRequest, ErrorKind};
use crate::wire::EntityType;

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
        if may_take && let Some(devices) = &self.devices {
            self.agent.set_used(devices.users());
        }
    }

    /// Tells, or changes, what becomes of a device's I/O while its unit cannot be reached.
    pub(super) fn policy(
        &mut self,
        id: ControlId,
        device: &str,
        change: Option<PolicyChange>,
        service: &ServiceHandle,
    ) {
        let among = [EntityType::Device, EntityType::Extent];
        let found = self.agent.table().resolve_among(device, &among);
        let answer = match found {
            Err(e) => Answer::Error(e.into()),
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

    pub(super) fn device(&self, command: DeviceCommand) {
        if let Some(devices) = &self.devices {
            devices.send(command);
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
                    let answer = match explained {
                        Ok(test) => Answer::UdevTest(test),
                        Err(message) => Answer::Error(AdminError {
                            kind: ErrorKind::Refused,
                            message,
                        }),
                    };
                    self.finish(ControlId::from_u64(token), &answer);
                }
            }
        }
    }
}
