//! The commands of a session in their window: what to send next, what has been lost, what is answered.

use std::collections::{BTreeSet, VecDeque};

use super::body::Body;
use super::command::{Command, PartialReply, Phase, Probe, Timer};
use super::paths::{Path, Paths};
use super::{IoRequest, Request, SubmitError};
use crate::session::limits::{
    MAX_COMMANDS, MAX_QUEUED_BYTES, MAX_REPLY_BYTES, REORDER_DELAY, RTO_MAX,
};
use crate::session::ranges::Assembly;
use crate::session::spares::Spares;
use crate::wire::kind::Progress;
use crate::wire::message::ProgressReport;
use crate::wire::{
    CommandId, DropReason, HEADER_LEN, Header, Kind, MAX_MESSAGE_BYTES, Status, Time,
};

/// Blank commands that are kept at most.
const MOST_BLANK: usize = 64;

/// An answered command.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) command: CommandId,
    pub(super) status: Status,
    pub(super) body: Vec<u8>,
}

/// The commands of a session, numbered from 1.
#[derive(Debug)]
pub(super) struct Commands {
    /// Commands from `floor` on; none below it lacks its answer.
    pub(super) list: VecDeque<Box<Command>>,
    /// Commands that were answered, to be used again.
    #[expect(clippy::vec_box, reason = "they go into the list as they are")]
    pub(super) blank: Vec<Box<Command>>,
    pub(super) floor: u64,
    /// The first command that was not sent yet in the responder's session.
    pub(super) next_send: u64,
    pub(super) credits: u16,
    pub(super) mtu: u16,
    /// Whether they are for a controller.
    pub(super) service: bool,
    pub(super) paths: Paths,
    /// Charges of the sent commands from `floor` on: what the responder may have to keep.
    pub(super) held: usize,
    /// Request bytes of commands that are not done.
    pub(super) queued_bytes: usize,
    /// Reserved bytes of incomplete replies.
    pub(super) reply_bytes: usize,
    /// Commands with something unsent, in order.
    pub(super) sending: VecDeque<u64>,
    /// Commands with a probe to send, in order.
    pub(super) probing: VecDeque<u64>,
    /// Other wake-ups.
    pub(super) wakes: BTreeSet<(Time, u64)>,
    pub(super) spares: Spares,
}

impl Commands {
    pub(super) fn new(credits: u16, mtu: u16, service: bool) -> Self {
        Self {
            list: VecDeque::new(),
            blank: Vec::new(),
            floor: 1,
            next_send: 1,
            credits,
            mtu,
            service,
            paths: Paths::new(service, mtu),
            held: 0,
            queued_bytes: 0,
            reply_bytes: 0,
            sending: VecDeque::new(),
            probing: VecDeque::new(),
            spares: Spares::default(),
            wakes: BTreeSet::new(),
        }
    }

    pub(super) fn get(&mut self, id: u64) -> Option<&mut Command> {
        let index = id.checked_sub(self.floor)?;
        let command = self.list.get_mut(usize::try_from(index).ok()?);
        command.map(AsMut::as_mut)
    }

    /// The command, where it is in flight.
    pub(super) fn flying(&mut self, id: u64) -> Option<&mut Command> {
        self.get(id).filter(|c| c.phase == Phase::Flight)
    }

    /// The same, and the path that it takes.
    fn flying_on(&mut self, id: u64) -> Option<(&mut Command, &mut Path)> {
        let index = usize::try_from(id.checked_sub(self.floor)?).ok()?;
        let command = self.list.get_mut(index)?;
        let path = self.paths.list.get_mut(command.path)?;
        (command.phase == Phase::Flight).then_some((command.as_mut(), path))
    }

    /// Commands that are not done, from the lowest such on.
    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    /// Gives memory back where there are no commands.
    pub(super) fn rest(&mut self) {
        self.blank = Vec::new();
        if self.list.is_empty() && self.sending.is_empty() && self.probing.is_empty() {
            self.list = VecDeque::new();
            self.sending = VecDeque::new();
            self.probing = VecDeque::new();
            for path in &mut self.paths.list {
                if path.fresh.is_empty() {
                    path.fresh = VecDeque::new();
                }
            }
        }
    }

    /// How many commands the responder takes.
    pub(super) const fn set_credits(&mut self, credits: u16) {
        self.credits = credits;
    }

    /// The identity with which a frame without a command tells the floor.
    pub(super) const fn mark(&self) -> (CommandId, u16) {
        (
            CommandId(self.next_send),
            (self.next_send - self.floor) as u16,
        )
    }

    /// Takes a request.
    pub(super) fn submit(&mut self, request: Request) -> Result<CommandId, SubmitError> {
        self.take(request.kind, request.body.len(), |command| {
            command.ask(request);
        })
    }

    /// Takes an I/O.
    pub(super) fn submit_io(&mut self, request: &mut IoRequest) -> Result<CommandId, SubmitError> {
        self.take(request.kind, request.body_bytes(), |command| {
            command.ask_io(request);
        })
    }

    /// Takes what a blank command is made to ask: so many bytes.
    fn take(
        &mut self,
        kind: Kind,
        len: usize,
        ask: impl FnOnce(&mut Command),
    ) -> Result<CommandId, SubmitError> {
        if !kind.is_request() {
            return Err(SubmitError::NotARequest);
        }
        if len > MAX_MESSAGE_BYTES {
            return Err(SubmitError::TooLong);
        }
        if self.list.len() >= MAX_COMMANDS || self.queued_bytes + len > MAX_QUEUED_BYTES {
            return Err(SubmitError::Full);
        }
        let id = self.floor + self.list.len() as u64;
        self.queued_bytes += len;
        let blank = self.blank.pop();
        let mut command = blank.unwrap_or_else(|| Box::new(Command::blank()));
        ask(&mut command);
        self.list.push_back(command);
        Ok(CommandId(id))
    }

    pub(super) fn cancel(&mut self, id: CommandId) -> bool {
        let Some(command) = self.get(id.0).filter(|c| !c.cancelled) else {
            return false;
        };
        match command.phase {
            Phase::Done => return false,
            Phase::Flight => command.cancelled = true,
            Phase::Queued => self.finish(id.0),
        }
        true
    }

    /// Ends a command and moves the floor over the commands that are done.
    pub(super) fn finish(&mut self, id: u64) {
        let Some(command) = id
            .checked_sub(self.floor)
            .and_then(|index| self.list.get_mut(usize::try_from(index).ok()?))
        else {
            return;
        };
        let path = command.path;
        self.queued_bytes -= command.body.len();
        if let Body::Whole(_) = command.body {
            let body = std::mem::take(&mut command.body);
            self.spares.give(body.into_buffer());
        }
        if let Some(reply) = &command.reply {
            self.reply_bytes -= reply.assembly.len() as usize;
        }
        match command.phase {
            // Never sent, so the responder keeps nothing for it.
            Phase::Queued => command.charge = 0,
            Phase::Flight => self.paths.list[path].window.done(command.cost),
            Phase::Done => {}
        }
        if let Timer::At(at) = command.timer {
            self.wakes.remove(&(at, id));
        }
        command.clear();
        command.phase = Phase::Done;
        while self.list.front().is_some_and(|c| c.phase == Phase::Done) {
            let Some(mut done) = self.list.pop_front() else {
                break;
            };
            self.held -= done.charge;
            self.floor += 1;
            if self.blank.len() < MOST_BLANK {
                done.phase = Phase::Queued;
                self.blank.push(done);
            }
        }
        self.next_send = self.next_send.max(self.floor);
        self.drop_stale(path);
    }

    fn drop_stale(&mut self, path: usize) {
        while let Some(front) = self.paths.list[path].fresh.front().copied()
            && !self.is_fresh(front)
        {
            self.paths.list[path].fresh.pop_front();
        }
    }

    fn is_fresh(&self, (id, sent_at): (u64, Time)) -> bool {
        id.checked_sub(self.floor)
            .and_then(|i| self.list.get(i as usize))
            .is_some_and(|c| c.timer == Timer::Fresh && c.sent_at == sent_at)
    }

    /// Notes when the command has to be looked at.
    pub(super) fn arm(&mut self, id: u64) {
        let Some((command, path)) = self.flying_on(id) else {
            return;
        };
        let first = command.timer == Timer::None
            && !command.retried
            && command.gap_since.is_none()
            && command.heard_at <= command.sent_at;
        let sent_at = command.sent_at;
        let timer = if !command.is_awaited() {
            Timer::None
        } else if first {
            Timer::Fresh
        } else {
            command.due(&path.rtt).map_or(Timer::None, Timer::At)
        };
        let old = std::mem::replace(&mut command.timer, timer);
        if timer == Timer::Fresh && old != timer {
            path.fresh.push_back((id, sent_at));
        }
        if old == timer {
            return;
        }
        if let Timer::At(at) = old {
            self.wakes.remove(&(at, id));
        }
        if let Timer::At(at) = timer {
            self.wakes.insert((at, id));
        }
    }

    /// When [`Self::tick`] must be called next.
    pub(super) fn deadline(&self) -> Option<Time> {
        let fresh = self.paths.list.iter().filter_map(|path| {
            let (_, sent) = path.fresh.front()?;
            Some(*sent + path.rtt.timeout(0, RTO_MAX))
        });
        let wake = self.wakes.first().map(|(at, _)| *at);
        fresh.chain(wake).min()
    }

    /// Does what is due for commands that were not heard of.
    pub(super) fn tick(&mut self, now: Time) {
        for path in 0..self.paths.list.len() {
            while let Some(&(id, sent_at)) = self.paths.list[path].fresh.front() {
                if self.is_fresh((id, sent_at)) {
                    let timeout = self.paths.list[path].rtt.timeout(0, RTO_MAX);
                    if sent_at + timeout > now {
                        break;
                    }
                    self.wake(now, id);
                }
                self.paths.list[path].fresh.pop_front();
            }
        }
        while let Some(&(at, id)) = self.wakes.first() {
            if at > now {
                break;
            }
            self.wakes.pop_first();
            self.wake(now, id);
        }
    }

    pub(super) fn wake(&mut self, now: Time, id: u64) {
        let next = self.next_send;
        let Some((command, on)) = self.flying_on(id) else {
            return;
        };
        command.timer = Timer::None;
        match command.due(&on.rtt) {
            None => return,
            Some(due) if due > now => {
                command.timer = Timer::At(due);
                self.wakes.insert((due, id));
                return;
            }
            Some(_) => {}
        }
        command.retried = true;
        if command.gap_due(&on.rtt).is_some_and(|due| due <= now) {
            command.gap_since = None;
            command.gap_probed = Some(now);
            let reply = command.reply.as_ref();
            let bytes = reply.map_or(0, |r| r.assembly.gap_bytes());
            on.window.lost(id, next, bytes);
            self.queue_probe(id, Probe::Gaps);
        } else {
            command.tries = command.tries.saturating_add(1);
            let (path, sent_at, long) = (command.path, command.sent_at, command.is_long());
            self.paths.timed_out(now, path, sent_at, long);
            self.ask_again(id);
        }
    }

    /// Asks for the answer of a command: by the request itself where that is one small frame, by
    /// a probe otherwise.
    pub(super) fn ask_again(&mut self, id: u64) {
        self.take_usable_path(id);
        let Some(path) = self.flying(id).map(|command| command.path) else {
            return;
        };
        let max = usize::from(self.paths.list[path].mtu) - HEADER_LEN;
        let Some(command) = self.flying(id) else {
            return;
        };
        command.asked_again = true;
        if command.arrived || command.reply.is_some() || command.body.len() > max {
            self.queue_probe(id, Probe::All);
        } else {
            command.send_whole();
            self.queue_sending(id);
        }
    }

    fn queue_probe(&mut self, id: u64, probe: Probe) {
        if let Some(command) = self.flying(id) {
            let old = std::mem::replace(&mut command.probe, probe);
            if old == Probe::None {
                self.probing.push_back(id);
            }
        }
    }

    /// Queues a command with something unsent in front of those that were not sent yet.
    pub(super) fn queue_sending(&mut self, id: u64) {
        if let Some(command) = self.flying(id)
            && !std::mem::replace(&mut command.sending, true)
        {
            self.sending.push_back(id);
        }
    }

    /// Whether an answer to a command of this kind is awaited under this identity.
    pub(super) fn awaits(&mut self, id: CommandId, kind: Kind) -> bool {
        self.flying(id.0).is_some_and(|c| c.kind == kind)
    }

    /// Takes (a segment of) a reply.
    pub(super) fn on_reply(
        &mut self,
        now: Time,
        header: &Header,
        payload: &[u8],
    ) -> Result<Option<Answered>, DropReason> {
        let id = header.command.0;
        if id < self.floor {
            return Err(DropReason::OldCommand);
        }
        let reserved = self.reply_bytes;
        let index = usize::try_from(id - self.floor).unwrap_or(usize::MAX);
        let Some(command) = self.list.get_mut(index) else {
            return Err(DropReason::Unexpected);
        };
        match command.phase {
            Phase::Flight => {}
            Phase::Done => return Err(DropReason::OldCommand),
            Phase::Queued => return Err(DropReason::Unexpected),
        }
        if (header.kind, header.iod) != (command.kind, command.iod) {
            return Err(DropReason::Inconsistent);
        }
        let whole = payload.len() == header.message_len as usize;
        let body = match &mut command.reply {
            None if whole => Some(self.spares.copy(payload)),
            None => {
                let len = header.message_len as usize;
                if reserved > 0 && reserved + len > MAX_REPLY_BYTES {
                    return Err(DropReason::Full);
                }
                let mut assembly = Assembly::new(header.message_len, &mut self.spares);
                assembly.insert(header.segment_offset, payload)?;
                command.reply = Some(Box::new(PartialReply {
                    status: header.status,
                    assembly,
                }));
                self.reply_bytes += len;
                None
            }
            Some(partial) => {
                if partial.status != header.status || partial.assembly.len() != header.message_len {
                    return Err(DropReason::Inconsistent);
                }
                if !partial.assembly.insert(header.segment_offset, payload)? {
                    return Ok(None);
                }
                if partial.assembly.is_complete() {
                    command.reply.take().map(|r| {
                        self.reply_bytes -= r.assembly.len() as usize;
                        r.assembly.into_bytes()
                    })
                } else {
                    None
                }
            }
        };
        let sent_at = command.sent_at;
        let first_word = !std::mem::replace(&mut command.arrived, true);
        let first_sent_at = command.first_sent_at.filter(|_| first_word);
        let (path, long) = (command.path, command.is_long());
        if !std::mem::replace(&mut command.retried, true) {
            let path = &mut self.paths.list[path];
            path.rtt.sample(now.since(sent_at));
            if long {
                path.long_frames_pass();
            }
        } else if let Some(first) = first_sent_at {
            // Where frames are rather lost than late, the time since the first says how many were lost; the answer
            // took the time since the last at least.
            let elapsed = if self.service {
                now.since(sent_at) * 3
            } else {
                now.since(first)
            };
            self.paths.list[path].rtt.suspect(elapsed);
        }
        let (cancelled, asked_again) = (command.cancelled, command.asked_again);
        let Some(body) = body else {
            self.on_part(now, id);
            return Ok(None);
        };
        self.finish(id);
        if self.service && !asked_again {
            self.ask_after_overtaken(now, path, sent_at);
        }
        Ok((!cancelled).then_some(Answered {
            command: header.command,
            status: header.status,
            body,
        }))
    }

    /// A command that was sent at `sent_at` is answered: one that was sent longer before than frames are
    /// reordered, and not heard of, is probably lost.
    fn ask_after_overtaken(&mut self, now: Time, path: usize, sent_at: Time) {
        while let Some(&(id, at)) = self.paths.list[path].fresh.front() {
            if self.is_fresh((id, at)) {
                let Some(command) = self.flying(id) else {
                    break;
                };
                if at + REORDER_DELAY > sent_at || command.heard_at + REORDER_DELAY > now {
                    break;
                }
                command.timer = Timer::None;
                command.retried = true;
                self.ask_again(id);
            }
            self.paths.list[path].fresh.pop_front();
        }
    }

    /// A part of a reply has arrived, and more is missing.
    fn on_part(&mut self, now: Time, id: u64) {
        let Some(command) = self.flying(id) else {
            return;
        };
        command.heard_at = now;
        command.tries = 0;
        let gap = command.reply.as_ref().is_some_and(|r| r.assembly.has_gap());
        let noticed = gap && command.gap_since.is_none();
        command.gap_since = gap.then(|| command.gap_since.unwrap_or(now));
        if noticed || command.timer == Timer::None {
            self.arm(id);
        }
    }

    /// Takes the responder's word on how far a command has come.
    pub(super) fn on_progress(
        &mut self,
        id: CommandId,
        report: &ProgressReport,
    ) -> Result<(), DropReason> {
        let (id, next) = (id.0, self.next_send);
        if id < self.floor {
            return Err(DropReason::OldCommand);
        }
        let Some(command) = self.flying(id) else {
            return Err(DropReason::Unexpected);
        };
        let path = command.path;
        match report.progress {
            Progress::Executing => {
                command.arrived = true;
                command.unsent.clear();
                command.unsent_empty = false;
                self.arm(id);
            }
            // What was said before the request (or the reply) got through says nothing.
            _ if command.arrived => return Err(DropReason::Unexpected),
            Progress::Unknown => {
                command.send_whole();
                let bytes = command.body.len() as u64;
                self.paths.list[path].window.lost(id, next, bytes);
                self.queue_sending(id);
            }
            Progress::Incomplete => {
                let len = command.body.len() as u64;
                let missing = &report.missing.ranges;
                let fits = |r: &crate::wire::message::ByteRange| {
                    u64::from(r.offset) + u64::from(r.len) <= len
                };
                if missing.is_empty() || !missing.iter().all(fits) {
                    return Err(DropReason::Inconsistent);
                }
                let bytes = missing.iter().map(|r| u64::from(r.len)).sum();
                if bytes < command.missing_bytes {
                    command.tries = 0;
                    command.missing_bytes = bytes;
                }
                for range in missing {
                    command
                        .unsent
                        .insert(range.offset, range.offset + range.len);
                }
                self.paths.list[path].window.lost(id, next, bytes);
                self.queue_sending(id);
            }
            Progress::Forgotten => return Err(DropReason::Unexpected),
        }
        Ok(())
    }

    /// Takes a reply's body back, to be used again.
    pub(super) fn give_buffer(&mut self, buffer: Vec<u8>) {
        self.spares.give(buffer);
    }
}
