//! What a session's commands put on the wire: probes first, then what was begun, then new commands.

use super::command::{Phase, Probe};
use super::commands::Commands;
use crate::session::limits::MAX_SESSION_BYTES;
use crate::wire::message::{MAX_RANGES, Missing};
use crate::wire::{
    CommandId, Flags, HEADER_LEN, Header, Kind, MAX_MESSAGE_BYTES, Tail, Time, Wire,
};

/// Bytes that the responder may have to keep for this session: a little less than it would.
const MAX_HELD_BYTES: usize = MAX_SESSION_BYTES - 2 * MAX_MESSAGE_BYTES;

impl Commands {
    /// Appends one frame to `out`, all but its `tail`, where there is one to send: `base` has what is the
    /// same in all frames of the connection.
    pub(super) fn transmit(
        &mut self,
        now: Time,
        base: &Header,
        out: &mut Vec<u8>,
        tail: &mut Option<Tail>,
    ) -> bool {
        while let Some(id) = self.probing.pop_front() {
            if self.transmit_probe(now, id, base, out) {
                return true;
            }
        }
        loop {
            while let Some(&id) = self.sending.front() {
                if self.transmit_segment(now, id, base, out, tail) {
                    return true;
                }
                self.sending.pop_front();
            }
            if !self.admit() {
                return false;
            }
        }
    }

    /// Starts to send the next command, where the window has room for it.
    fn admit(&mut self) -> bool {
        loop {
            let id = self.next_send;
            if id >= self.floor + u64::from(self.credits) {
                return false;
            }
            let (held, admits) = (self.held, self.window);
            let Some(command) = self.get(id) else {
                return false;
            };
            if command.phase != Phase::Queued {
                self.next_send += 1;
                continue;
            }
            let (cost, charge) = (command.cost, command.charge);
            if !admits.admits(cost) || (held > 0 && held + charge > MAX_HELD_BYTES) {
                return false;
            }
            command.phase = Phase::Flight;
            command.send_whole();
            self.next_send += 1;
            self.held += charge;
            self.window.sent(cost);
            self.queue_sending(id);
            return true;
        }
    }

    fn transmit_segment(
        &mut self,
        now: Time,
        id: u64,
        base: &Header,
        out: &mut Vec<u8>,
        tail: &mut Option<Tail>,
    ) -> bool {
        let floor = self.floor;
        let max = u32::from(self.mtu) - HEADER_LEN as u32;
        let Some(command) = self.get(id) else {
            return false;
        };
        let (start, end) = if std::mem::take(&mut command.unsent_empty) {
            (0, 0)
        } else if let Some(segment) = command.unsent.take_front(max) {
            segment
        } else {
            command.sending = false;
            return false;
        };
        let header = Header {
            kind: command.kind,
            flags: if command.retried {
                command.flags.with(Flags::RETRY)
            } else {
                command.flags
            },
            iod: command.iod,
            epoch: command.epoch,
            command: CommandId(id),
            outstanding: (id - floor) as u16,
            segment_offset: start,
            message_len: command.body.len() as u32,
            ..*base
        };
        header.emit_segment(&command.body, (start, end), out, tail);
        if !command.has_unsent() {
            command.sent_at = now;
            command.first_sent_at.get_or_insert(now);
            command.sending = false;
            self.sending.pop_front();
            self.arm(id);
        }
        true
    }

    fn transmit_probe(&mut self, now: Time, id: u64, base: &Header, out: &mut Vec<u8>) -> bool {
        let floor = self.floor;
        let max = ranges_per_frame(self.mtu);
        let Some(command) = self.flying(id) else {
            return false;
        };
        let ranges = match (&command.reply, command.probe) {
            (_, Probe::None) => return false,
            (None, _) => Vec::new(),
            (Some(reply), Probe::Gaps) => reply.assembly.gaps(max),
            (Some(reply), Probe::All) => reply.assembly.missing(max),
        };
        let gone = command.probe == Probe::Gaps && ranges.is_empty();
        command.probe = Probe::None;
        if !gone {
            command.sent_at = now;
            let header = Header {
                kind: Kind::Probe,
                command: CommandId(id),
                outstanding: (id - floor) as u16,
                ..*base
            };
            header.emit_whole(&Missing { ranges }.to_body(), out);
        }
        self.arm(id);
        !gone
    }
}

/// How many ranges a probe or progress frame can name.
pub(in crate::session) fn ranges_per_frame(mtu: u16) -> usize {
    ((usize::from(mtu) - HEADER_LEN - 5) / 8).min(MAX_RANGES)
}
