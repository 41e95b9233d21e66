//! What the answers of controllers mean for the I/Os that their commands are parts of.

use super::controller::{Errand, Place};
use super::io::{FLUSH, Progress};
use super::{ControllerKey, Initiator, Sent};
use crate::wire::{CommandId, Status, Time};

impl Initiator {
    pub(super) fn on_reply(
        &mut self,
        now: Time,
        key: ControllerKey,
        command: CommandId,
        status: Status,
        body: Vec<u8>,
    ) {
        let Some(controller) = self.controllers.get_mut(&key) else {
            return;
        };
        let sent = controller.sent.remove(command.0);
        if controller.has_waiting() {
            controller.feed_soon(key, &mut self.unfed);
        }
        let is_leaving = controller.is_leaving();
        self.under_way -= usize::from(sent.is_some());
        match sent {
            None => {}
            Some(Sent::List) => self.on_list(now, key, status, &body),
            Some(Sent::Part { io, part, to }) => {
                if self.ios.contains(io) {
                    self.on_part(now, io, part, to, status, body);
                } else {
                    self.on_ghost(to.place);
                }
                if is_leaving {
                    self.close_unused(now, key);
                }
            }
        }
    }

    /// A part of an I/O was answered.
    fn on_part(
        &mut self,
        now: Time,
        id: u64,
        part: u32,
        sent_to: Errand,
        status: Status,
        body: Vec<u8>,
    ) {
        let Some(io) = self.ios.get_mut(id) else {
            return;
        };
        let Some(device) = self.devices.get(&io.device) else {
            return;
        };
        let again = match status {
            Status::Busy | Status::NotReady => Some(now + io.back_off()),
            // The refusal is about a place or an epoch that is not the device's any more.
            Status::NotOwner | Status::StaleEpoch | Status::NoDevice | Status::NoController
                if sent_to != Errand::of(&device.target) =>
            {
                Some(now)
            }
            _ => None,
        };
        match again {
            Some(at) if io.error().is_none() => {
                io.put_back();
                if at > now {
                    self.retries.insert((at, id, part));
                } else {
                    self.wait_again(id, part);
                }
                return;
            }
            _ => {}
        }
        match io.answered(part, status, body) {
            Progress::Going | Progress::Ended => {}
            Progress::Flush => {
                let device = io.device;
                if let Some(open) = self.devices.get_mut(&device) {
                    open.waiting.push_front((id, FLUSH));
                }
                self.make_ready(device);
            }
            Progress::Failed => {
                // What was not sent is not sent any more; what was is waited for.
                let device = io.device;
                if let Some(open) = self.devices.get_mut(&device) {
                    open.waiting.retain(|(io, _)| *io != id);
                }
                self.retries.retain(|(_, io, _)| *io != id);
            }
        }
        self.end(now, id);
    }

    /// Reports an I/O of which nothing is waiting or under way any more.
    fn end(&mut self, now: Time, id: u64) {
        let Some(io) = self.ios.get_mut(id).filter(|io| io.has_ended()) else {
            return;
        };
        let (device, written) = (io.device, io.take_written());
        let (token, result) = (io.token, io.take_result());
        self.held -= io.held();
        if let Some(open) = self.devices.get_mut(&device) {
            io.count_in(&mut open.stats, now);
        }
        self.ios.drop(id);
        self.give_buffer(device, written);
        self.done(token, result);
    }

    /// A command of a closed device has ended.
    pub(super) fn on_ghost(&mut self, place: Place) {
        let Some(count) = self.ghosts.get_mut(&place) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            self.ghosts.remove(&place);
            self.make_place_ready(place);
        }
    }

    /// Puts a part back among those that wait to be sent.
    pub(super) fn wait_again(&mut self, id: u64, part: u32) {
        let Some(device) = self.ios.get(id).map(|io| io.device) else {
            return;
        };
        if let Some(open) = self.devices.get_mut(&device) {
            open.waiting.push_front((id, part));
            self.make_ready(device);
        }
    }
}
