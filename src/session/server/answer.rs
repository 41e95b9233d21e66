//! The answer of a command, which is kept until the initiator has it.

use crate::session::limits::REPEAT_INTERVAL;
use crate::session::ranges::Ranges;
use crate::wire::{Kept, Status, Time};

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: Status,
    pub(super) body: Kept,
    pub(super) unsent: Ranges,
    pub(super) unsent_empty: bool,
    /// Whether the command is in the list of those with something to send.
    pub(super) queued: bool,
    /// When its last segment was sent.
    pub(super) sent_at: Option<Time>,
}

impl Answer {
    /// Whether the whole reply may be sent (again) now.
    pub(super) fn may_repeat(&self, now: Time) -> bool {
        !self.queued && self.sent_at.is_none_or(|t| t + REPEAT_INTERVAL <= now)
    }

    /// Queues what an initiator needs that has heard nothing of the reply: all of it where it was
    /// never sent, otherwise its last segment. If the rest is only late, that is all that is sent
    /// twice; if the rest is lost, the last segment shows the gap and a probe names it.
    pub(super) fn repeat(&mut self, segment: usize) {
        self.check();
        if self.sent_at.is_none() || self.body.len() <= segment {
            return self.send_whole();
        }
        let len = self.body.len();
        let start = (len - 1) / segment * segment;
        self.unsent.insert(start as u32, len as u32);
    }

    /// What has been spoilt in the medium, as the checksum tells that is kept of it, becomes an error: an initiator
    /// drops every frame of it and would ask for ever.
    pub(super) fn check(&mut self) {
        if self.body.lent().is_some_and(|lent| !lent.is_sound()) {
            self.status = Status::MediaError;
            self.body = Kept::default();
            if !self.unsent.is_empty() {
                self.send_whole();
            }
        }
    }

    pub(super) fn send_whole(&mut self) {
        self.unsent.set_whole(self.body.len() as u32);
        self.unsent_empty = self.body.is_empty();
    }
}
