//! One command of a session, from its submission to its answer.

use crate::session::flow::{RoundTrip, SHORT_REPLY_BYTES, range_bytes, reply_charge};
use crate::session::limits::{EXECUTING_PROBE_MAX, REORDER_DELAY, RTO_MAX};
use crate::session::ranges::{Assembly, Ranges};
use crate::wire::{Epoch, Flags, HEADER_LEN, IodNumber, Kind, MAX_MESSAGE_BYTES, Status, Time};

use super::body::Body;
use super::mtu::LEAST;
use super::{IoRequest, Request};

/// How far a command has come at the initiator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not sent in this session of the responder.
    Queued,
    /// Sent, or being sent.
    Flight,
    /// Answered, or not wanted any more.
    Done,
}

/// Where a command's wake-up is noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    None,
    /// In the list of commands that were sent once, by time of sending.
    Fresh,
    /// In the set of wake-ups.
    At(Time),
}

/// What a probe that waits to be sent asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    None,
    /// What is missing in front of what has arrived.
    Gaps,
    /// All that is missing.
    All,
}

/// A reply of which not everything has arrived.
#[derive(Debug)]
pub(super) struct PartialReply {
    pub(super) status: Status,
    pub(super) assembly: Assembly,
}

/// One command.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) kind: Kind,
    pub(super) flags: Flags,
    pub(super) iod: IodNumber,
    pub(super) epoch: Epoch,
    pub(super) body: Body,
    /// Request and expected reply bytes, for the window.
    pub(super) cost: usize,
    /// Bytes that the responder charges for it.
    pub(super) charge: usize,
    pub(super) phase: Phase,
    /// The path that it takes.
    pub(super) path: usize,
    pub(super) cancelled: bool,
    /// What of the body waits to be sent.
    pub(super) unsent: Ranges,
    /// Whether an empty body waits to be sent.
    pub(super) unsent_empty: bool,
    /// Whether the command is in the list of those that are being sent.
    pub(super) sending: bool,
    pub(super) probe: Probe,
    /// Whether the responder is known to have the whole request.
    pub(super) arrived: bool,
    /// Timeouts in a row.
    pub(super) tries: u32,
    /// Whether anything was sent twice: then round trips say nothing.
    pub(super) retried: bool,
    /// Whether it was asked after: then it may have been answered for an earlier sending than the last.
    pub(super) asked_again: bool,
    /// When it was sent the first time.
    pub(super) first_sent_at: Option<Time>,
    /// When it was last sent or asked after.
    pub(super) sent_at: Time,
    /// When a part of the reply last arrived.
    pub(super) heard_at: Time,
    /// Since when there has been a gap in the reply that was not asked for.
    pub(super) gap_since: Option<Time>,
    /// When a gap was last asked for.
    pub(super) gap_probed: Option<Time>,
    /// Request bytes that the responder last said were missing.
    pub(super) missing_bytes: u64,
    pub(super) reply: Option<Box<PartialReply>>,
    pub(super) timer: Timer,
}

impl Command {
    /// One that nothing is asked with yet.
    pub(super) fn blank() -> Self {
        Self {
            kind: Kind::KeepAlive,
            flags: Flags::NONE,
            iod: IodNumber(0),
            epoch: Epoch(0),
            body: Body::default(),
            cost: 0,
            charge: 0,
            phase: Phase::Queued,
            path: 0,
            cancelled: false,
            unsent: Ranges::default(),
            unsent_empty: false,
            sending: false,
            probe: Probe::None,
            arrived: false,
            tries: 0,
            retried: false,
            asked_again: false,
            first_sent_at: None,
            sent_at: Time::ZERO,
            heard_at: Time::ZERO,
            gap_since: None,
            gap_probed: None,
            missing_bytes: u64::MAX,
            reply: None,
            timer: Timer::None,
        }
    }

    /// Becomes blank again, where it is: moving what was written just now has the processor wait for it.
    pub(super) fn clear(&mut self) {
        let Self {
            kind: _,
            flags: _,
            iod: _,
            epoch: _,
            body,
            cost: _,
            charge: _,
            phase,
            path,
            cancelled,
            unsent,
            unsent_empty,
            sending,
            probe,
            arrived,
            tries,
            retried,
            asked_again,
            first_sent_at,
            sent_at,
            heard_at,
            gap_since,
            gap_probed,
            missing_bytes,
            reply,
            timer,
        } = self;
        *body = Body::default();
        *phase = Phase::Queued;
        *path = 0;
        (*cancelled, *sending, *arrived) = (false, false, false);
        (*retried, *asked_again, *unsent_empty) = (false, false, false);
        unsent.clear();
        (*probe, *timer) = (Probe::None, Timer::None);
        *tries = 0;
        *first_sent_at = None;
        (*sent_at, *heard_at) = (Time::ZERO, Time::ZERO);
        (*gap_since, *gap_probed) = (None, None);
        *missing_bytes = u64::MAX;
        *reply = None;
    }

    /// A blank one asks what is requested.
    pub(super) fn ask(&mut self, request: Request) {
        let charge = reply_charge(request.kind, &request.body);
        self.kind = request.kind;
        self.flags = known(request.flags);
        (self.iod, self.epoch) = (request.iod, request.epoch);
        self.cost = request.body.len() + request.expect.min(MAX_MESSAGE_BYTES);
        self.charge = request.body.len() + charge;
        self.body = request.into();
    }

    /// A blank one asks for an I/O.
    pub(super) fn ask_io(&mut self, request: &mut IoRequest) {
        let len = request.body_bytes();
        self.kind = request.kind;
        self.flags = known(request.flags);
        (self.iod, self.epoch) = (request.iod, request.epoch);
        let data = range_bytes(request.kind, &request.range);
        self.cost = len + data.unwrap_or(0);
        self.charge = len + data.unwrap_or(SHORT_REPLY_BYTES);
        self.body = request.into();
    }

    /// Whether its frames are longer than what every path carries.
    pub(super) const fn is_long(&self) -> bool {
        self.cost > LEAST as usize - HEADER_LEN
    }

    /// Marks the whole request as to be sent.
    pub(super) fn send_whole(&mut self) {
        self.unsent.set_whole(self.body.len() as u32);
        self.unsent_empty = self.body.is_empty();
    }

    /// Whether anything of the request waits to be sent.
    pub(super) fn has_unsent(&self) -> bool {
        self.unsent_empty || !self.unsent.is_empty()
    }

    /// Back to the state of a command that was never sent.
    pub(super) fn rewind(&mut self) {
        self.phase = Phase::Queued;
        self.unsent.clear();
        self.unsent_empty = false;
        self.arrived = false;
        self.retried = true;
        self.first_sent_at = None;
        self.reply = None;
        self.missing_bytes = u64::MAX;
        self.rest();
    }

    /// Nothing is due and nothing has been tried.
    pub(super) const fn rest(&mut self) {
        self.sending = false;
        self.probe = Probe::None;
        self.tries = 0;
        self.gap_since = None;
        self.gap_probed = None;
        self.timer = Timer::None;
    }

    /// When the gap in the reply has to be asked for.
    pub(super) fn gap_due(&self, rtt: &RoundTrip) -> Option<Time> {
        let reordered = self.gap_since? + REORDER_DELAY;
        let asked = self
            .gap_probed
            .map_or(Time::ZERO, |t| t + rtt.timeout(0, RTO_MAX));
        Some(reordered.max(asked))
    }

    /// Whether something is to be done for the command if it is not heard of.
    pub(super) fn is_awaited(&self) -> bool {
        self.phase == Phase::Flight && !self.has_unsent() && self.probe == Probe::None
    }

    /// When something has to be done for the command if nothing happens until then.
    pub(super) fn due(&self, rtt: &RoundTrip) -> Option<Time> {
        if !self.is_awaited() {
            return None;
        }
        let max = if self.arrived {
            EXECUTING_PROBE_MAX
        } else {
            RTO_MAX
        };
        let silent = self.sent_at.max(self.heard_at) + rtt.timeout(self.tries, max);
        Some(self.gap_due(rtt).map_or(silent, |gap| gap.min(silent)))
    }
}

/// What of a request's flags is the requester's to say.
const fn known(flags: Flags) -> Flags {
    if flags.contains(Flags::FUA) {
        Flags::FUA
    } else {
        Flags::NONE
    }
}
