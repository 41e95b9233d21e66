//! Our side of the exchange with the RMAs of other hosts: stamps (block 510), their tables
//! (block 515), offers of ours (block 530), and the same for ever afterwards.
//!
//! To each peer there is one request at a time. Equal tables cost one small request and reply.
//! What changed since both were equal is pushed; only where that is not known what differs is looked
//! for and fetched ([`super::pulls`]), and then exactly the rows that the peer lacks are pushed.

use std::collections::BTreeSet;
use std::time::Duration;

use super::agent::Agent;
use super::config::{MAX_OFFER_ROWS, MAX_PAGE_BYTES};
use super::members::Station;
use super::pulls::Pull;
use super::timers::Timer;
use crate::session::Request;
use crate::wire::message::{Offer, TableDigestsReply, TableRowsReply, TableSummary, page_len};
use crate::wire::{CommandId, Epoch, Flags, Guid, IodNumber, Kind, Row, Status, Time, Wire};

/// How soon a peer that refuses a request is asked again at first; it doubles.
const REFUSAL_DELAY: Duration = Duration::from_millis(50);

/// Whether the peer's table has been taken in in block 515.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pulled {
    No,
    Yes,
    Failed,
}

/// What a peer has been asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    Stamp,
    Digests,
    Rows,
    Offer { position: u64, digest: u128 },
    Deposit { position: u64, digest: u128 },
}

/// What a peer is known to have at least: tables only grow newer. What ours has beyond it are the
/// rows named, and those that changed here afterwards.
#[derive(Debug, Clone)]
pub(super) struct Known {
    /// Digest of its table when it had just that.
    pub(super) digest: u128,
    /// Position in our log at that time.
    pub(super) position: u64,
    /// What of ours it lacked, at most [`MAX_OFFER_ROWS`].
    pub(super) lacks: BTreeSet<Guid>,
}

impl Known {
    /// The peer had all that we had.
    pub(super) const fn all(position: u64, digest: u128) -> Self {
        Self {
            digest,
            position,
            lacks: BTreeSet::new(),
        }
    }
}

/// The RMA of another host.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) station: Station,
    /// Its table as it last told.
    pub(super) summary: Option<TableSummary>,
    /// Whether it told so after the last table was taken in in block 515.
    pub(super) fresh: bool,
    /// What it is known to have.
    pub(super) known: Option<Known>,
    pub(super) ask: Option<(CommandId, Ask)>,
    /// When it was asked last.
    pub(super) asked_at: Time,
    /// What it has told of its table when asked, and when it had been asked so.
    pub(super) confirmed: Option<(Time, TableSummary)>,
    /// It is to be offered what we have.
    pub(super) offer: bool,
    /// Since when its table has been known to differ.
    pub(super) differs_since: Option<Time>,
    /// How often it was asked since because of that.
    pub(super) looks: u32,
    pub(super) pull: Option<Box<Pull>>,
    pub(super) boot_pull: Pulled,
    /// Requests that it has refused in a row.
    refusals: u32,
}

impl Peer {
    pub(super) fn new(station: Station) -> Self {
        Self {
            station,
            summary: None,
            fresh: false,
            known: None,
            ask: None,
            asked_at: Time::ZERO,
            confirmed: None,
            offer: false,
            differs_since: None,
            looks: 0,
            pull: None,
            boot_pull: Pulled::No,
            refusals: 0,
        }
    }

    /// Whether it answers and is not being asked anything.
    pub(super) fn is_free(&self) -> bool {
        self.ask.is_none() && self.pull.is_none() && self.station.is_up()
    }
}

impl Agent {
    /// A peer answers (again): block 510 for it alone.
    pub(super) fn peer_up(&mut self, now: Time, guid: Guid, restarted: bool) {
        if let Some(peer) = self.peers.get_mut(&guid)
            && restarted
        {
            // It may have lost what it had not stored.
            peer.known = None;
        }
        self.timers.set(Timer::Peer(guid), now);
        self.peer_due(now, guid);
    }

    /// After block 530: exchanges with all peers begin.
    pub(super) fn begin_exchanges(&mut self, now: Time) {
        let peers: Vec<Guid> = self.peers.keys().copied().collect();
        for guid in peers {
            self.drive_peer(now, guid);
        }
        self.purge_due(now);
    }

    /// The periodic exchange of stamps with a peer is due.
    pub(super) fn peer_due(&mut self, now: Time, guid: Guid) {
        self.set_peer_poll(now, guid);
        if self.leaves_alone(guid) {
            return;
        }
        self.ask_stamp(now, guid);
    }

    /// Stamps have been exchanged with a peer: the next time is an interval from now.
    pub(super) fn set_peer_poll(&mut self, now: Time, guid: Guid) {
        let at = self.next_poll(now, self.config.intervals.peer_poll);
        self.timers.set(Timer::Peer(guid), at);
    }

    /// Asks a peer for its stamp, unless it is being asked for something. Where both tables were equal
    /// ours is told as well: then the peer need not ask in its turn.
    pub(super) fn ask_stamp(&mut self, now: Time, guid: Guid) {
        let durable = self.journal.durable;
        let Some(peer) = self.peers.get(&guid) else {
            return;
        };
        if peer.ask.is_none() && peer.station.is_up() {
            let equal = peer.summary == Some(durable) && !self.is_centre(guid);
            let told = equal && self.boot.is_steady() && self.journal.is_clean();
            let body = if told { durable.to_body() } else { Vec::new() };
            self.ask(now, guid, Ask::Stamp, Kind::TableStamp, body, 128);
        }
    }

    pub(super) fn ask(
        &mut self,
        now: Time,
        guid: Guid,
        ask: Ask,
        kind: Kind,
        body: Vec<u8>,
        expect: usize,
    ) -> bool {
        let request = Request {
            kind,
            flags: Flags::NONE,
            iod: IodNumber(0),
            epoch: Epoch(0),
            body,
            expect,
        };
        let central = self.is_centre(guid);
        let Some(peer) = self.peers.get_mut(&guid) else {
            return false;
        };
        let command = if central {
            self.link.ask_table(now, request)
        } else {
            let client = self.hub.client_mut(&guid);
            client.and_then(|client| client.submit(now, request).ok())
        };
        peer.ask = command.map(|command| (command, ask));
        peer.asked_at = now;
        command.is_some()
    }

    /// Sends the offers that are due.
    pub(super) fn offer_pending(&mut self, now: Time) {
        if !self.journal.is_clean() || !self.boot.is_steady() {
            return;
        }
        let due: Vec<Guid> = self
            .peers
            .iter()
            .filter(|(_, p)| p.offer && p.ask.is_none() && p.station.is_up())
            .map(|(guid, _)| *guid)
            .collect();
        for guid in due {
            self.offer(now, guid);
        }
    }

    /// Does what a peer without an open request is due for.
    pub(super) fn drive_peer(&mut self, now: Time, guid: Guid) {
        let Some(peer) = self.peers.get(&guid) else {
            return;
        };
        if peer.ask.is_some() || !peer.station.is_up() || !self.boot.is_steady() {
            return;
        }
        if peer.offer && self.journal.is_clean() {
            self.offer(now, guid);
            return;
        }
        if peer.differs_since.is_some() {
            self.note_difference(now);
        }
    }

    /// Block 530 for one peer: what it lacks, or only the summary where that is too much or unknown.
    fn offer(&mut self, now: Time, guid: Guid) {
        if self.is_centre(guid) {
            return self.offer_to_centre(now, guid);
        }
        let position = self.journal.position();
        let durable = self.journal.durable;
        let digest = durable.digest;
        let Some(peer) = self.peers.get_mut(&guid) else {
            return;
        };
        peer.offer = false;
        let has_it =
            |theirs: TableSummary| theirs.digest == digest && theirs.stamp >= durable.stamp;
        if peer.summary.is_some_and(has_it) {
            return;
        }
        let rows = self.rows_beyond(guid).unwrap_or_default();
        self.send_offer(now, guid, rows, Ask::Offer { position, digest });
    }

    /// What a peer lacks; `None` where that is unknown, or too much for an offer.
    pub(super) fn rows_beyond(&self, guid: Guid) -> Option<Vec<Row>> {
        let known = self.peers.get(&guid)?.known.as_ref()?;
        let mut beyond = self.journal.since(known.position)?;
        beyond.extend(&known.lacks);
        if beyond.len() > MAX_OFFER_ROWS {
            return None;
        }
        let rows = beyond.iter().filter_map(|guid| self.table.get(*guid));
        let rows: Vec<Row> = rows.cloned().collect();
        (page_len(&rows, MAX_PAGE_BYTES) == rows.len()).then_some(rows)
    }

    pub(super) fn send_offer(&mut self, now: Time, guid: Guid, rows: Vec<Row>, ask: Ask) {
        let offer = Offer {
            summary: self.journal.durable,
            settings: *self.table.settings(),
            rows,
        };
        if !self.ask(now, guid, ask, Kind::Offer, offer.to_body(), 128)
            && let Some(peer) = self.peers.get_mut(&guid)
        {
            peer.offer = true;
        }
    }

    pub(super) fn peer_reply(
        &mut self,
        now: Time,
        guid: Guid,
        command: CommandId,
        status: Status,
        body: &[u8],
    ) {
        let Some(peer) = self.peers.get_mut(&guid) else {
            return;
        };
        let Some((_, ask)) = peer.ask.take_if(|(id, _)| *id == command) else {
            return;
        };
        if status != Status::Ok {
            self.abandon_pull(guid);
            self.ask_again_later(now, guid);
            self.centre_refused(now, guid, status);
            return;
        }
        let mut given_up = false;
        if let Some(peer) = self.peers.get_mut(&guid) {
            peer.refusals = 0;
            given_up = peer.pull.is_none() && matches!(ask, Ask::Digests | Ask::Rows);
        }
        if given_up {
            // The answer is from before the connection was lost. What is it like now?
            return self.ask_stamp(now, guid);
        }
        match ask {
            Ask::Stamp => {
                if let Ok(theirs) = TableSummary::from_body(body) {
                    self.confirm(guid, theirs);
                    self.on_summary(now, guid, theirs);
                }
            }
            Ask::Deposit { .. } if self.deposit_goes_on(now, guid) => {}
            Ask::Offer { position, digest } | Ask::Deposit { position, digest } => {
                if let Ok(theirs) = TableSummary::from_body(body) {
                    self.confirm(guid, theirs);
                    if let Some(peer) = self.peers.get_mut(&guid) {
                        let before = peer.summary.map(|summary| summary.digest);
                        if theirs.digest == digest {
                            peer.known = Some(Known::all(position, digest));
                        } else if before == Some(theirs.digest) {
                            // It has taken nothing: what differs is looked for anew, in a while.
                            peer.known = None;
                            peer.differs_since = Some(now);
                        }
                    }
                    self.on_summary(now, guid, theirs);
                }
            }
            Ask::Digests => match TableDigestsReply::from_body(body) {
                Ok(reply) => self.on_digests(now, guid, &reply),
                Err(_) => self.abandon_pull(guid),
            },
            Ask::Rows => match TableRowsReply::from_body(body) {
                Ok(page) => self.on_page(now, guid, page),
                Err(_) => self.abandon_pull(guid),
            },
        }
    }

    /// A peer has answered what its table is.
    fn confirm(&mut self, guid: Guid, theirs: TableSummary) {
        if let Some(peer) = self.peers.get_mut(&guid) {
            peer.confirmed = Some((peer.asked_at, theirs));
        }
    }

    /// A peer that is starting, busy, or has not heard of us yet, is asked again soon, and less
    /// often the longer that lasts.
    fn ask_again_later(&mut self, now: Time, guid: Guid) {
        let longest = self.config.intervals.peer_poll;
        if let Some(peer) = self.peers.get_mut(&guid) {
            let delay = (REFUSAL_DELAY * (1 << peer.refusals.min(10))).min(longest);
            peer.refusals += 1;
            self.timers.set_sooner(Timer::Peer(guid), now + delay);
        }
    }

    /// A peer has told how current its table is.
    pub(super) fn on_summary(&mut self, now: Time, guid: Guid, theirs: TableSummary) {
        if self.is_impossible(guid, &theirs) || !self.is_plausible(guid, &theirs) {
            return;
        }
        let equal = self.same_content(&theirs);
        let position = self.journal.position();
        let digest = self.table.digest();
        let Some(peer) = self.peers.get_mut(&guid) else {
            return;
        };
        let first = peer.summary.replace(theirs).is_none();
        peer.fresh = true;
        if equal {
            peer.known = Some(Known::all(position, digest));
            peer.differs_since = None;
            peer.looks = 0;
            peer.offer = false;
            self.adopt_stamp(&theirs);
            self.tell_centre_the_stamp(guid, &theirs);
        } else if peer
            .known
            .as_ref()
            .is_some_and(|k| k.digest == theirs.digest)
        {
            // It is where it was: it lacks what has changed here since.
            peer.offer = true;
            peer.differs_since.get_or_insert(now);
        } else {
            let since = *peer.differs_since.get_or_insert(now);
            let purged = theirs.floor > self.table.floor();
            let free = peer.is_free() && !peer.offer;
            let patient = !purged && self.is_patient(now, since, theirs.stamp);
            if self.boot.is_steady() && free && !patient && self.pulls_left() > 0 {
                self.start_pull(now, guid);
                return;
            }
        }
        if first {
            self.extend_patience_for_peers(now);
        }
        self.drive_peer(now, guid);
    }

    pub(super) fn extend_patience_for_peers(&mut self, now: Time) {
        if !self.boot.has_units() {
            self.extend_patience(now);
        }
    }
}
