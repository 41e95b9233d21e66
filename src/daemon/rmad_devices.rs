//! What the management thread of `rmad` has to do with the device thread.

use super::devices::{DeviceCommand, DeviceEvent, DevicesHandle};
use super::rmad::Rmad;
use crate::admin::control::ControlId;
use crate::admin::protocol::Answer;
use crate::rma::request::{AdminError, AdminRequest, ErrorKind};

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
