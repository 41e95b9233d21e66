//! What a session of a responder puts on the wire: notifications first, then replies.

use super::{Session, State};
use crate::session::limits::{NOTIFY_INTERVAL, NOTIFY_TRIES};
use crate::wire::message::Notification;
use crate::wire::{
    ClusterName, CommandId, Flags, HEADER_LEN, Header, Kind, Outgoing, Tail, Time, Wire,
};

impl Session {
    /// Appends one packet to `out`, all but its `tail`, where there is one to send, and says where to.
    pub(in crate::session::server) fn transmit(
        &mut self,
        now: Time,
        cluster: ClusterName,
        out: &mut Vec<u8>,
        tail: &mut Option<Tail>,
    ) -> Option<Outgoing> {
        if self.transmit_note(now, cluster, out) {
            return Some(Outgoing::alone(self.hop()));
        }
        self.transmit_reply(now, cluster, out, tail)
    }

    fn transmit_note(&mut self, now: Time, cluster: ClusterName, out: &mut Vec<u8>) -> bool {
        if self.notes.is_empty() || !self.confirmed {
            return false;
        }
        let header = self.header(Kind::Notify, cluster);
        let Some((&(event, ioc), note)) = self.notes.iter_mut().find(|(_, n)| n.due) else {
            return false;
        };
        note.due = false;
        note.at = now + NOTIFY_INTERVAL * (1 << note.tries.min(NOTIFY_TRIES));
        note.tries += 1;
        let body = Notification {
            number: note.number,
            event,
            ioc,
            stamp: note.stamp,
        };
        header.emit_whole(&body.to_body(), out);
        true
    }

    fn transmit_reply(
        &mut self,
        now: Time,
        cluster: ClusterName,
        out: &mut Vec<u8>,
        tail: &mut Option<Tail>,
    ) -> Option<Outgoing> {
        let base = self.header(Kind::KeepAlive, cluster);
        while let Some(&id) = self.sending.front() {
            let index = id.checked_sub(self.floor).map(|index| index as usize);
            let entry = index.and_then(|index| self.window.get_mut(index)?.as_mut());
            let Some((fixed, path, answer)) = entry.and_then(|e| match &mut e.state {
                State::Answered(answer) => Some((e.fixed, e.path, answer)),
                _ => None,
            }) else {
                self.sending.pop_front();
                continue;
            };
            let path = self.paths.get(usize::from(path))?;
            let max = u32::from(path.mtu) - HEADER_LEN as u32;
            let (start, end) = if std::mem::take(&mut answer.unsent_empty) {
                (0, 0)
            } else if let Some(segment) = answer.unsent.take_front(max) {
                segment
            } else {
                answer.queued = false;
                self.sending.pop_front();
                continue;
            };
            let is_first = answer.sent_at.is_none();
            let header = Header {
                kind: fixed.kind,
                flags: if is_first {
                    Flags::REPLY
                } else {
                    Flags::REPLY.with(Flags::RETRY)
                },
                iod: fixed.iod,
                epoch: fixed.epoch,
                status: answer.status,
                command: CommandId(id),
                segment_offset: start,
                message_len: answer.body.len() as u32,
                ..base
            };
            header.emit_segment(&answer.body, (start, end), out, tail);
            if answer.unsent.is_empty() {
                answer.sent_at = Some(now);
                answer.queued = false;
                self.sending.pop_front();
            }
            return Some(Outgoing {
                hop: path.hop,
                shared_bytes: if is_first { path.mtu } else { 0 },
            });
        }
        None
    }
}
