//! What a session puts on the wire. Of its commands: probes first, then what was begun, then new commands.

use super::command::{Phase, Probe};
use super::commands::Commands;
use super::{Client, State};
use crate::session::limits::MAX_SESSION_BYTES;
use crate::wire::message::{MAX_RANGES, Missing};
use crate::wire::{
    CommandId, Flags, HEADER_LEN, Header, Hop, Kind, MAX_MESSAGE_BYTES, Mac, Outgoing, Tail, Time,
    Wire,
};

/// Bytes that the responder may have to keep for this session: a little less than it would.
const MAX_HELD_BYTES: usize = MAX_SESSION_BYTES - 2 * MAX_MESSAGE_BYTES;

impl Client {
    /// Appends one packet to `out` and returns its destination, or `None` when there is nothing to
    /// send now.
    pub fn poll_transmit(&mut self, now: Time, out: &mut Vec<u8>) -> Option<Mac> {
        let sent = Tail::join(out, |out, tail| self.poll_transmit_parts(now, out, tail));
        sent.map(|outgoing| outgoing.hop.mac)
    }

    /// The same, but the end of the packet, where it is long, is not copied: `tail` becomes it; and with
    /// the own NIC that it should leave by, and whether it may share its frame.
    pub fn poll_transmit_parts(
        &mut self,
        now: Time,
        out: &mut Vec<u8>,
        tail: &mut Option<Tail>,
    ) -> Option<Outgoing> {
        if let Some((mut header, body)) = self.control.pop_front() {
            (header.command, header.outstanding) = self.commands.mark();
            header.emit_whole(&body, out);
            return Some(Outgoing::alone(self.control_hop()));
        }
        let base = self.base(self.connection());
        let State::Connected(connection) = &mut self.state else {
            return self.transmit_connect(now, out).map(Outgoing::alone);
        };
        let unconfirmed = std::mem::take(&mut connection.unconfirmed);
        if let Some(path) = self.transmit_path_probe(now, &base, out) {
            return Some(Outgoing::alone(self.commands.paths.list[path].hop));
        }
        let sent = self.commands.transmit(now, &base, out, tail);
        if sent.is_some() {
            return sent;
        }
        unconfirmed.then(|| {
            // Nothing to ask: the first frame on the connection says that it is in use.
            let mut confirm = base;
            (confirm.command, confirm.outstanding) = self.commands.mark();
            confirm.emit_whole(&[], out);
            Outgoing::alone(self.control_hop())
        })
    }

    /// Whether there may be more to send, after something was sent, before anything else has happened.
    pub(in crate::session) fn may_have_more(&self) -> bool {
        match &self.state {
            State::Connected(_) => !self.control.is_empty() || self.commands.may_have_more(),
            _ => true,
        }
    }

    fn transmit_path_probe(
        &mut self,
        now: Time,
        base: &Header,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let (path, probe) = self.commands.paths.next_probe(now)?;
        let mut header = Header {
            kind: Kind::Path,
            ..*base
        };
        (header.command, header.outstanding) = self.commands.mark();
        header.emit_whole(&probe.to_body(), out);
        Some(path)
    }

    /// Where what belongs to no command goes; a keep-alive that is repeated, by another path.
    fn control_hop(&self) -> Hop {
        let (paths, missed) = match &self.state {
            State::Connected(connection) => (&self.commands.paths, connection.missed),
            _ => (&self.commands.paths, 0),
        };
        paths.list[paths.for_control(missed.saturating_sub(1))].hop
    }
}

impl Commands {
    /// Appends one packet to `out`, all but its `tail`, where there is one to send, and says where it goes:
    /// `base` has what is the same in all packets of the connection.
    fn transmit(
        &mut self,
        now: Time,
        base: &Header,
        out: &mut Vec<u8>,
        tail: &mut Option<Tail>,
    ) -> Option<Outgoing> {
        while let Some(id) = self.probing.pop_front() {
            if let Some(path) = self.transmit_probe(now, id, base, out) {
                return Some(Outgoing::alone(self.paths.list[path].hop));
            }
        }
        loop {
            while let Some(&id) = self.sending.front() {
                let sent = self.transmit_segment(now, id, base, out, tail);
                if sent.is_some() {
                    return sent;
                }
                self.sending.pop_front();
            }
            if !self.admit() {
                return None;
            }
        }
    }

    fn may_have_more(&self) -> bool {
        let unsent = self.next_send < self.floor + self.list.len() as u64;
        unsent
            || !self.sending.is_empty()
            || !self.probing.is_empty()
            || !self.paths.queue.is_empty()
    }

    /// Starts to send the next command, where the window has room for it.
    fn admit(&mut self) -> bool {
        loop {
            let id = self.next_send;
            if id >= self.floor + u64::from(self.credits) {
                return false;
            }
            let held = self.held;
            let Some(command) = self.get(id) else {
                return false;
            };
            if command.phase != Phase::Queued {
                self.next_send += 1;
                continue;
            }
            let (cost, charge) = (command.cost, command.charge);
            if held > 0 && held + charge > MAX_HELD_BYTES {
                return false;
            }
            let Some(path) = self.paths.choose(cost) else {
                return false;
            };
            let Some(command) = self.get(id) else {
                return false;
            };
            command.phase = Phase::Flight;
            command.path = path;
            command.send_whole();
            self.next_send += 1;
            self.held += charge;
            let path = &mut self.paths.list[path];
            path.window.sent(cost);
            path.commands += 1;
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
    ) -> Option<Outgoing> {
        let floor = self.floor;
        let index = usize::try_from(id.checked_sub(floor)?).ok()?;
        let command = self.list.get_mut(index)?;
        let path = &self.paths.list[command.path];
        let max = u32::from(path.mtu) - HEADER_LEN as u32;
        // What is sent again is not lost again with others, nor because a path carries less than before.
        let outgoing = Outgoing {
            hop: path.hop,
            shared_bytes: if command.retried { 0 } else { path.mtu },
        };
        let (start, end) = if std::mem::take(&mut command.unsent_empty) {
            (0, 0)
        } else if let Some(segment) = command.unsent.take_front(max) {
            segment
        } else {
            command.sending = false;
            return None;
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
        header.emit_part(command.body.part((start, end)), out, tail);
        if !command.has_unsent() {
            command.sent_at = now;
            command.first_sent_at.get_or_insert(now);
            command.sending = false;
            let has_gap = command.gap_since.is_some();
            self.sending.pop_front();
            if has_gap {
                // That may have had to be asked for meanwhile.
                self.wake(now, id);
            } else {
                self.arm(id);
            }
        }
        Some(outgoing)
    }

    fn transmit_probe(
        &mut self,
        now: Time,
        id: u64,
        base: &Header,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let floor = self.floor;
        let path = self.flying(id)?.path;
        let max = ranges_per_frame(self.paths.list[path].mtu);
        let command = self.flying(id)?;
        let ranges = match (&command.reply, command.probe) {
            (_, Probe::None) => return None,
            (None, _) => Vec::new(),
            (Some(reply), Probe::Gaps) => reply.assembly.gaps(max),
            (Some(reply), Probe::All) => reply.assembly.missing(max),
        };
        let gone = command.probe == Probe::Gaps && ranges.is_empty();
        command.probe = Probe::None;
        if gone {
            // Its timeout may have passed while there was a gap to be asked for.
            self.wake(now, id);
            return None;
        }
        command.sent_at = now;
        // Whatever is asked for, a gap is in it.
        command.gap_probed = Some(now);
        let header = Header {
            kind: Kind::Probe,
            command: CommandId(id),
            outstanding: (id - floor) as u16,
            ..*base
        };
        header.emit_whole(&Missing { ranges }.to_body(), out);
        self.arm(id);
        Some(path)
    }
}

/// How many ranges a probe or progress frame can name.
pub(in crate::session) fn ranges_per_frame(mtu: u16) -> usize {
    ((usize::from(mtu) - HEADER_LEN - 5) / 8).min(MAX_RANGES)
}
