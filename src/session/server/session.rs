//! One session at its responder: the window of its commands, its replies and its notifications.

mod transmit;

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

use smallvec::SmallVec;

use super::Peer;
use super::answer::Answer;
use super::paths::Path;
use crate::session::client::ranges_per_frame;
use crate::session::flow::reply_charge;
use crate::session::limits::{MAX_COMMANDS, MAX_NOTIFICATIONS, NOTIFY_TRIES};
use crate::session::ranges::{Assembly, Ranges};
use crate::session::spares::Spares;
use crate::wire::kind::{Event, Progress};
use crate::wire::message::{Missing, Notification, ProgressReport};
use crate::wire::{
    ClusterName, ConnectionId, DropReason, Epoch, Flags, Guid, HEADER_LEN, Header, IocNumber,
    IodNumber, Kept, Kind, ObservationStamp, Status, Tail, Time,
};

/// What all frames of a request have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fixed {
    pub(super) kind: Kind,
    pub(super) fua: bool,
    pub(super) iod: IodNumber,
    pub(super) epoch: Epoch,
    pub(super) len: u32,
}

impl Fixed {
    pub(super) const fn of(header: &Header) -> Self {
        Self {
            kind: header.kind,
            fua: header.flags.contains(Flags::FUA),
            iod: header.iod,
            epoch: header.epoch,
            len: header.message_len,
        }
    }
}

/// A command within the window.
#[derive(Debug)]
struct Entry {
    fixed: Fixed,
    /// The path by which a frame about it came last: it is answered there.
    path: u8,
    /// Bytes charged for it.
    held: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    Incomplete { assembly: Assembly, touched: Time },
    Executing,
    Answered(Answer),
}

#[derive(Debug)]
struct Note {
    number: u64,
    stamp: ObservationStamp,
    tries: u32,
    at: Time,
    due: bool,
}

/// What a request frame led to.
#[derive(Debug)]
pub(super) enum Taken<'a> {
    /// Nothing to do for now.
    Nothing,
    /// The request is complete: execute it.
    Complete(Cow<'a, [u8]>),
    /// The initiator asked for it: tell how far the command has come.
    Tell(ProgressReport),
}

/// Which bytes all sessions of a responder hold, against the limit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    pub(super) used: usize,
    pub(super) max: usize,
    pub(super) session_max: usize,
}

/// A session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) uid: u64,
    pub(super) ioc: IocNumber,
    pub(super) peer: Peer,
    pub(super) number: u64,
    pub(super) attempt: u32,
    pub(super) nonce: u64,
    pub(super) connection: ConnectionId,
    /// What the connection's reply said.
    pub(super) resumed: bool,
    /// Whether the connection has been used.
    pub(super) confirmed: bool,
    /// Whether any connection of the session has been used.
    pub(super) known: bool,
    /// Whether the initiator has said once what is finished: a responder that has restarted
    /// meets an initiator that is far along.
    counted: bool,
    /// Whether its connection was given up for silence; the session can still be resumed.
    pub(super) dormant: bool,
    pub(super) mtu: u16,
    /// By which it was heard, and the one of the last frame.
    pub(super) paths: SmallVec<[Path; 2]>,
    pub(super) last: usize,
    pub(super) credits: u16,
    /// Bytes of requests that were new here though their frames had been sent before.
    pub(super) lost: usize,
    /// How many of the credits it may use now.
    pub(super) share: u16,
    /// The interval of the server's [`Share`](super::share::Share) that it was counted in.
    pub(super) counted_in: u64,
    pub(super) opened_at: Time,
    pub(super) heard_at: Time,
    /// Commands handed out and not answered.
    pub(super) executing: usize,
    /// Bytes of requests and replies kept.
    pub(super) held: usize,
    /// When the session is noted to be looked at.
    pub(super) wake: Option<Time>,
    /// Whether the session is in the list of those with something to send.
    pub(super) ready: bool,
    /// Whether it is in the list of those with replies that are lent.
    pub(super) has_lent: bool,
    floor: u64,
    window: VecDeque<Option<Entry>>,
    sending: VecDeque<u64>,
    notes: BTreeMap<(Event, IocNumber), Note>,
    next_note: u64,
}

impl Session {
    pub(super) fn new(
        uid: u64,
        ioc: IocNumber,
        peer: Peer,
        number: u64,
        credits: u16,
        now: Time,
    ) -> Self {
        Self {
            uid,
            ioc,
            peer,
            number,
            attempt: 0,
            nonce: 0,
            connection: ConnectionId(0),
            resumed: false,
            confirmed: false,
            known: false,
            counted: false,
            dormant: false,
            mtu: 0,
            paths: SmallVec::new(),
            last: 0,
            credits,
            lost: 0,
            share: credits,
            counted_in: u64::MAX,
            opened_at: now,
            heard_at: now,
            executing: 0,
            held: 0,
            wake: None,
            ready: false,
            has_lent: false,
            floor: 0,
            window: VecDeque::new(),
            sending: VecDeque::new(),
            notes: BTreeMap::new(),
            next_note: 1,
        }
    }

    /// What is to be answered is answered by the first path.
    pub(super) fn answer_by_first_path(&mut self) {
        for entry in self.window.iter_mut().flatten() {
            entry.path = 0;
        }
    }

    /// For the planted bug that forgets what was executed.
    pub(super) fn forget_window(&mut self) {
        self.window.clear();
        self.sending.clear();
    }

    fn entry(&mut self, id: u64) -> Option<&mut Entry> {
        let index = usize::try_from(id.checked_sub(self.floor)?).ok()?;
        self.window.get_mut(index)?.as_mut()
    }

    /// Takes the initiator's word on what is finished, and forgets it. Returns the bytes freed.
    pub(super) fn raise_floor(
        &mut self,
        header: &Header,
        spares: &mut Spares,
    ) -> Result<usize, DropReason> {
        let floor = header
            .command
            .0
            .checked_sub(header.outstanding.into())
            .ok_or(DropReason::Inconsistent)?;
        // After its first frame a session can only have finished commands that its initiator can
        // hold; without this, one frame could put every later command below the floor.
        if std::mem::replace(&mut self.counted, true)
            && floor > self.floor.saturating_add(MAX_COMMANDS as u64)
        {
            return Err(DropReason::BeyondCredits);
        }
        let mut freed = 0;
        while self.floor < floor {
            match self.window.front_mut() {
                Some(entry) => {
                    if let Some(entry) = entry {
                        freed += entry.held;
                        entry.recycle(spares);
                    }
                    self.window.pop_front();
                    self.floor += 1;
                }
                None => self.floor = floor,
            }
        }
        self.held -= freed;
        Ok(freed)
    }

    /// Takes a frame of a request. `budget` is what all sessions hold; the change is in
    /// `self.held`.
    pub(super) fn on_request<'a>(
        &mut self,
        now: Time,
        header: &Header,
        payload: &'a [u8],
        budget: Budget,
        spares: &mut Spares,
    ) -> Result<Taken<'a>, DropReason> {
        let id = header.command.0;
        let index = id.checked_sub(self.floor).ok_or(DropReason::OldCommand)?;
        if index >= self.credits.into() {
            return Err(DropReason::BeyondCredits);
        }
        let fixed = Fixed::of(header);
        let retry = header.flags.contains(Flags::RETRY);
        let credits = usize::from(self.credits);
        let executing = self.executing;
        let segment = usize::from(self.path_mtu()) - HEADER_LEN;
        let path = self.last as u8;
        let Some(entry) = self.entry(id) else {
            let charge = header.message_len as usize + reply_charge(header.kind, payload);
            // One command of each session always has room, so that everyone gets on.
            if self.held > 0
                && (self.held + charge > budget.session_max || budget.used + charge > budget.max)
            {
                return Err(DropReason::Full);
            }
            let index = index as usize;
            self.lost += if retry { payload.len() } else { 0 };
            if payload.len() < header.message_len as usize {
                let mut assembly = Assembly::new(header.message_len, spares);
                assembly.insert(header.segment_offset, payload)?;
                let touched = now;
                self.place(
                    index,
                    fixed,
                    charge,
                    State::Incomplete { assembly, touched },
                );
                return Ok(Taken::Nothing);
            }
            if executing >= credits {
                return Err(DropReason::BeyondCredits);
            }
            self.place(index, fixed, charge, State::Executing);
            self.executing += 1;
            return Ok(Taken::Complete(Cow::Borrowed(payload)));
        };
        if entry.fixed != fixed {
            return Err(DropReason::Inconsistent);
        }
        entry.path = path;
        match &mut entry.state {
            State::Incomplete { assembly, touched } => {
                if executing >= credits {
                    return Err(DropReason::BeyondCredits);
                }
                if !assembly.insert(header.segment_offset, payload)? {
                    return Ok(Taken::Nothing);
                }
                *touched = now;
                let whole = assembly.is_complete().then(|| {
                    let empty = Assembly::new(0, spares);
                    std::mem::replace(assembly, empty).into_bytes()
                });
                if whole.is_some() {
                    entry.state = State::Executing;
                    self.executing += 1;
                }
                self.lost += if retry { payload.len() } else { 0 };
                Ok(whole.map_or(Taken::Nothing, |body| Taken::Complete(Cow::Owned(body))))
            }
            State::Executing if retry => Ok(Taken::Tell(report(Progress::Executing, Vec::new()))),
            State::Executing => Ok(Taken::Nothing),
            State::Answered(answer) => {
                // Without the flag the network has repeated the frame, not the initiator.
                if retry && answer.may_repeat(now) {
                    answer.repeat(segment);
                    self.queue(id);
                }
                Ok(Taken::Nothing)
            }
        }
    }

    fn place(&mut self, index: usize, fixed: Fixed, held: usize, state: State) {
        if self.window.len() <= index {
            self.window.resize_with(index + 1, || None);
        }
        self.held += held;
        let path = self.last as u8;
        self.window[index] = Some(Entry {
            fixed,
            path,
            held,
            state,
        });
    }

    /// Takes a probe: queues what is missing of the reply, or tells how far the command has come.
    pub(super) fn on_probe(
        &mut self,
        now: Time,
        header: &Header,
        missing: &Missing,
    ) -> Result<Taken<'static>, DropReason> {
        let (id, max) = (header.command.0, ranges_per_frame(self.path_mtu()));
        let segment = usize::from(self.path_mtu()) - HEADER_LEN;
        let path = self.last as u8;
        let Some(index) = id.checked_sub(self.floor) else {
            return Ok(Taken::Tell(report(Progress::Forgotten, Vec::new())));
        };
        if index >= self.credits.into() {
            return Err(DropReason::BeyondCredits);
        }
        let Some(entry) = self.entry(id) else {
            return Ok(Taken::Tell(report(Progress::Unknown, Vec::new())));
        };
        entry.path = path;
        match &mut entry.state {
            State::Incomplete { assembly, .. } => Ok(Taken::Tell(report(
                Progress::Incomplete,
                assembly.missing(max),
            ))),
            State::Executing => Ok(Taken::Tell(report(Progress::Executing, Vec::new()))),
            State::Answered(answer) => {
                if missing.ranges.is_empty() {
                    if answer.may_repeat(now) {
                        answer.repeat(segment);
                    }
                } else {
                    let len = answer.body.len() as u64;
                    for range in &missing.ranges {
                        let end = u64::from(range.offset) + u64::from(range.len);
                        if end > len {
                            return Err(DropReason::Inconsistent);
                        }
                        answer.unsent.insert(range.offset, end as u32);
                    }
                }
                self.queue(id);
                Ok(Taken::Nothing)
            }
        }
    }

    /// Takes the answer of a command that was handed out.
    pub(super) fn on_answer(&mut self, id: u64, status: Status, body: Kept) {
        self.executing = self.executing.saturating_sub(1);
        let Some(entry) = self.entry(id) else { return };
        if !matches!(entry.state, State::Executing) {
            return;
        }
        let before = std::mem::replace(&mut entry.held, body.len());
        let held = entry.held;
        entry.state = State::Answered(Answer {
            status,
            body,
            unsent: Ranges::default(),
            unsent_empty: false,
            queued: true,
            sent_at: None,
        });
        if let State::Answered(answer) = &mut entry.state {
            answer.send_whole();
        }
        self.held = self.held - before + held;
        self.sending.push_back(id);
    }

    /// Copies what is lent for its replies, where `is_wanted` says so; whether any is left.
    pub(super) fn take_back_lent(
        &mut self,
        is_wanted: impl Fn(&Tail) -> bool,
        spares: &mut Spares,
    ) -> bool {
        self.has_lent = false;
        for entry in self.window.iter_mut().flatten() {
            let State::Answered(answer) = &mut entry.state else {
                continue;
            };
            match answer.body.lent() {
                Some(lent) if is_wanted(lent) => {
                    answer.check();
                    if let Some(lent) = answer.body.lent() {
                        answer.body = spares.copy(lent.bytes()).into();
                    }
                }
                lent => self.has_lent |= lent.is_some(),
            }
        }
        self.has_lent
    }

    fn queue(&mut self, id: u64) {
        if let Some(entry) = self.entry(id)
            && let State::Answered(answer) = &mut entry.state
            && (answer.unsent_empty || !answer.unsent.is_empty())
            && !std::mem::replace(&mut answer.queued, true)
        {
            self.sending.push_back(id);
        }
    }

    /// Drops incomplete requests that have stood still since before `before`: they were not
    /// executed, so their initiator can send them again. Returns the bytes freed.
    pub(super) fn drop_stalled(&mut self, before: Time) -> usize {
        let mut freed = 0;
        for slot in &mut self.window {
            let stalled = slot.as_ref().is_some_and(
                |e| matches!(e.state, State::Incomplete { touched, .. } if touched <= before),
            );
            if stalled {
                freed += slot.take().map_or(0, |e| e.held);
            }
        }
        self.held -= freed;
        freed
    }

    /// Notes a notification; the latest of each kind is repeated until it is acknowledged.
    pub(super) fn notify(
        &mut self,
        now: Time,
        event: Event,
        ioc: IocNumber,
        stamp: ObservationStamp,
    ) {
        let about = (event, ioc);
        if self.notes.len() >= MAX_NOTIFICATIONS && !self.notes.contains_key(&about) {
            return;
        }
        let number = self.next_note;
        self.next_note += 1;
        let note = Note {
            number,
            stamp,
            tries: 0,
            at: now,
            due: true,
        };
        self.notes.insert(about, note);
    }

    pub(super) fn on_notify_ack(&mut self, note: &Notification) {
        let about = (note.event, note.ioc);
        if self
            .notes
            .get(&about)
            .is_some_and(|n| n.number == note.number)
        {
            self.notes.remove(&about);
        }
    }

    /// Makes notifications due, and gives up those that nobody takes.
    pub(super) fn tick_notes(&mut self, now: Time) {
        self.notes.retain(|_, note| {
            if note.at <= now && !note.due {
                note.due = true;
                return note.tries < NOTIFY_TRIES;
            }
            true
        });
    }

    /// When the next notification is due (again).
    pub(super) fn next_note_at(&self) -> Option<Time> {
        self.notes.values().filter(|n| !n.due).map(|n| n.at).min()
    }

    /// Whether there is something to send.
    pub(super) fn has_unsent(&self) -> bool {
        !self.sending.is_empty() || (self.confirmed && self.notes.values().any(|n| n.due))
    }

    /// A header of this connection.
    pub(super) const fn header(&self, kind: Kind, cluster: ClusterName) -> Header {
        let mut header = Header::new(kind);
        header.connection = self.connection;
        header.ioc = self.ioc;
        header.credits = self.share;
        header.cluster = cluster;
        header
    }

    pub(super) const fn key(&self) -> (Guid, IocNumber) {
        (self.peer.guid, self.ioc)
    }
}

impl Entry {
    /// Gives back what it kept.
    fn recycle(&mut self, spares: &mut Spares) {
        match &mut self.state {
            State::Executing => {}
            State::Answered(answer) if answer.body.lent().is_some() => {}
            State::Answered(answer) => spares.give(std::mem::take(&mut answer.body).into_buffer()),
            State::Incomplete { assembly, .. } => {
                let empty = Assembly::new(0, spares);
                spares.give(std::mem::replace(assembly, empty).into_bytes());
            }
        }
    }
}

const fn report(
    progress: Progress,
    ranges: Vec<crate::wire::message::ByteRange>,
) -> ProgressReport {
    ProgressReport {
        progress,
        missing: Missing { ranges },
    }
}
