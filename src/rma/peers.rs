//! Our side of the exchange with the RMAs of other hosts: stamps (block 510), their tables
//! (block 515), offers of ours (block 530), and the same for ever afterwards.
//!
//! To each peer there is one request at a time. Equal tables cost one small request and reply.
//! What changed since both were equal is pushed; only where that is not known the whole table is
//! fetched, and then exactly the rows that the peer lacks are pushed.

use std::collections::BTreeSet;
use std::time::Duration;

use super::agent::Agent;
use super::config::{MAX_OFFER_ROWS, MAX_PAGE_BYTES, MAX_PULL_RESTARTS};
use super::members::Station;
use super::plan::{joined_outlook, offenders};
use super::report;
use super::request::WatchEvent;
use super::timers::Timer;
use crate::crt::{MAX_ROWS, Settled};
use crate::session::Request;
use crate::wire::message::{Offer, TableRowsReply, TableRowsRequest, TableSummary, page_len};
use crate::wire::{
    CommandId, Epoch, Flags, Guid, IodNumber, Kind, Row, Settings, Status, Time, Wire,
};

/// How long two tables may differ before they are compared row by row: usually what makes the
/// difference is on its way.
const DIFFERENCE_PATIENCE: Duration = Duration::from_millis(150);

/// Whether the peer's table has been taken in in block 515.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pulled {
    No,
    Yes,
    Failed,
}

/// What a peer has been asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Stamp,
    Rows,
    Offer { position: u64, digest: u128 },
}

/// What a peer is known to have at least: tables only grow newer. What ours has beyond it are the
/// rows named, and those that changed here afterwards.
#[derive(Debug, Clone)]
struct Known {
    /// Digest of its table when it had just that.
    digest: u128,
    /// Position in our log at that time.
    position: u64,
    /// What of ours it lacked, at most [`MAX_OFFER_ROWS`].
    lacks: BTreeSet<Guid>,
}

impl Known {
    /// The peer had all that we had.
    const fn all(position: u64, digest: u128) -> Self {
        Self {
            digest,
            position,
            lacks: BTreeSet::new(),
        }
    }
}

/// A peer's table on its way.
#[derive(Debug)]
pub(super) struct Pull {
    rows: Vec<Row>,
    summary: Option<TableSummary>,
    restarts: u32,
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
    known: Option<Known>,
    ask: Option<(CommandId, Ask)>,
    /// It is to be offered what we have.
    pub(super) offer: bool,
    /// Since when its table has been known to differ.
    differs_since: Option<Time>,
    pub(super) pull: Option<Pull>,
    pub(super) boot_pull: Pulled,
}

impl Peer {
    pub(super) fn new(station: Station) -> Self {
        Self {
            station,
            summary: None,
            fresh: false,
            known: None,
            ask: None,
            offer: false,
            differs_since: None,
            pull: None,
            boot_pull: Pulled::No,
        }
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
    }

    /// The periodic exchange of stamps with a peer is due.
    pub(super) fn peer_due(&mut self, now: Time, guid: Guid) {
        let interval = self.spread(self.config.intervals.peer_poll);
        self.timers.set(Timer::Peer(guid), now + interval);
        self.ask_stamp(now, guid);
    }

    /// Asks a peer for its stamp, unless it is being asked for something.
    pub(super) fn ask_stamp(&mut self, now: Time, guid: Guid) {
        let idle = |p: &Peer| p.ask.is_none() && p.station.is_up();
        if self.peers.get(&guid).is_some_and(idle) {
            self.ask(now, guid, Ask::Stamp, Kind::TableStamp, Vec::new(), 128);
        }
    }

    fn ask(
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
        let (Some(client), Some(peer)) = (self.hub.client_mut(&guid), self.peers.get_mut(&guid))
        else {
            return false;
        };
        match client.submit(now, request) {
            Ok(command) => {
                peer.ask = Some((command, ask));
                true
            }
            Err(_) => false,
        }
    }

    /// Offers our table to all peers that are not known to have it.
    pub(super) fn push(&mut self, now: Time) {
        self.timers.cancel(Timer::Push);
        for peer in self.peers.values_mut() {
            peer.offer = true;
        }
        self.offer_pending(now);
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
    fn drive_peer(&mut self, now: Time, guid: Guid) {
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
        let differs = peer
            .summary
            .is_some_and(|t| t.digest != self.table.digest());
        if differs && !peer.offer {
            self.timers
                .set_sooner(Timer::Peer(guid), now + DIFFERENCE_PATIENCE);
        }
    }

    /// Block 530 for one peer: what it lacks, or only the summary where that is too much or unknown.
    fn offer(&mut self, now: Time, guid: Guid) {
        let position = self.journal.position();
        let digest = self.journal.durable.digest;
        let Some(peer) = self.peers.get_mut(&guid) else {
            return;
        };
        peer.offer = false;
        if peer.summary.is_some_and(|theirs| theirs.digest == digest) {
            return;
        }
        let beyond = peer.known.as_ref().and_then(|known| {
            let mut rows = self.journal.since(known.position)?;
            rows.extend(&known.lacks);
            Some(rows)
        });
        let mut rows: Vec<Row> = match beyond {
            Some(beyond) if beyond.len() <= MAX_OFFER_ROWS => beyond
                .iter()
                .filter_map(|guid| self.table.get(*guid))
                .cloned()
                .collect(),
            _ => Vec::new(),
        };
        if page_len(&rows, MAX_PAGE_BYTES) < rows.len() {
            rows.clear();
        }
        let offer = Offer {
            summary: self.journal.durable,
            settings: *self.table.settings(),
            rows,
        };
        let ask = Ask::Offer { position, digest };
        if !self.ask(now, guid, ask, Kind::Offer, offer.to_body(), 128)
            && let Some(peer) = self.peers.get_mut(&guid)
        {
            peer.offer = true;
        }
    }

    /// Block 515 for one peer: fetches its table, page by page.
    pub(super) fn start_pull(&mut self, now: Time, guid: Guid) {
        if let Some(peer) = self.peers.get_mut(&guid) {
            peer.pull = Some(Pull {
                rows: Vec::new(),
                summary: None,
                restarts: 0,
            });
        }
        self.pull_page(now, guid, Guid::NIL);
    }

    fn pull_page(&mut self, now: Time, guid: Guid, after: Guid) {
        let body = TableRowsRequest { after }.to_body();
        if !self.ask(now, guid, Ask::Rows, Kind::TableRows, body, MAX_PAGE_BYTES) {
            self.abandon_pull(guid);
        }
    }

    /// A pull has come to nothing; the next exchange of stamps begins another.
    pub(super) fn abandon_pull(&mut self, guid: Guid) {
        if let Some(peer) = self.peers.get_mut(&guid)
            && peer.pull.take().is_some()
        {
            peer.boot_pull = Pulled::Failed;
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
            return;
        }
        match ask {
            Ask::Stamp => {
                if let Ok(theirs) = TableSummary::from_body(body) {
                    self.on_summary(now, guid, theirs);
                }
            }
            Ask::Offer { position, digest } => {
                if let Ok(theirs) = TableSummary::from_body(body) {
                    if theirs.digest == digest
                        && let Some(peer) = self.peers.get_mut(&guid)
                    {
                        peer.known = Some(Known::all(position, digest));
                    }
                    self.on_summary(now, guid, theirs);
                }
            }
            Ask::Rows => match TableRowsReply::from_body(body) {
                Ok(page) => self.on_page(now, guid, page),
                Err(_) => self.abandon_pull(guid),
            },
        }
    }

    /// A peer has told how current its table is.
    pub(super) fn on_summary(&mut self, now: Time, guid: Guid, theirs: TableSummary) {
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
            peer.offer = false;
            self.adopt_stamp(&theirs);
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
            if self.boot.is_steady() && now.since(since) >= DIFFERENCE_PATIENCE && !peer.offer {
                peer.differs_since = None;
                let idle = peer.ask.is_none() && peer.pull.is_none() && peer.station.is_up();
                if idle {
                    self.start_pull(now, guid);
                    return;
                }
            }
        }
        if first {
            self.extend_patience_for_peers(now);
        }
        self.drive_peer(now, guid);
    }

    /// Whether a table has the content of ours.
    pub(super) fn same_content(&self, theirs: &TableSummary) -> bool {
        theirs.digest == self.table.digest() && theirs.row_count as usize == self.table.len()
    }

    /// Equal content: the larger stamp, and no new version.
    pub(super) fn adopt_stamp(&mut self, theirs: &TableSummary) {
        let before = self.table.summary();
        if self.journal.unpublished && theirs.stamp < before.stamp {
            return;
        }
        if self.table.settle(&before, theirs, self.config.guid) == Settled::Adopted {
            self.journal.note(&[]);
            // The content has a stamp now, and whoever published it tells the others.
            self.journal.unpublished = false;
            self.journal.published = false;
        }
    }

    fn on_page(&mut self, now: Time, guid: Guid, page: TableRowsReply) {
        self.extend_patience_for_peers(now);
        let Some(peer) = self.peers.get_mut(&guid) else {
            return;
        };
        let Some(pull) = &mut peer.pull else {
            return;
        };
        let moved = pull.summary.is_some_and(|s| s != page.summary);
        if moved && pull.restarts < MAX_PULL_RESTARTS {
            pull.restarts += 1;
            pull.rows.clear();
            pull.summary = None;
            self.pull_page(now, guid, Guid::NIL);
            return;
        }
        pull.summary = Some(page.summary);
        let next = page.rows.last().map(|row| row.guid);
        pull.rows.extend(page.rows);
        if let (true, Some(after)) = (page.more && pull.rows.len() <= MAX_ROWS, next) {
            self.pull_page(now, guid, after);
            return;
        }
        let Some(pull) = peer.pull.take() else { return };
        peer.boot_pull = Pulled::Yes;
        peer.summary = Some(page.summary);
        for peer in self.peers.values_mut() {
            peer.fresh = false;
        }
        self.take_in(guid, &page.summary, &page.settings, pull.rows, true);
        self.after_pull(now, guid, &page.summary);
    }

    fn after_pull(&mut self, now: Time, guid: Guid, theirs: &TableSummary) {
        let equal = self.same_content(theirs);
        let position = self.journal.position();
        let digest = self.table.digest();
        if let Some(peer) = self.peers.get_mut(&guid) {
            if equal {
                peer.known = Some(Known::all(position, digest));
            } else {
                peer.offer = true;
            }
        }
        self.drive_peer(now, guid);
    }

    /// Joins what a peer has: all of its table, or what it offers of it. Returns whether anything
    /// changed here.
    pub(super) fn take_in(
        &mut self,
        from: Guid,
        theirs: &TableSummary,
        settings: &Settings,
        mut rows: Vec<Row>,
        whole: bool,
    ) -> bool {
        self.leave_out_offenders(from, &mut rows);
        let differing: Vec<Guid> = rows
            .iter()
            .filter(|row| self.table.get(row.guid) != Some(*row))
            .map(|row| row.guid)
            .collect();
        let lacks = whole.then(|| self.lacks(&rows));
        let before = self.table.summary();
        let granularity = self.table.settings().granularity;
        let old_settings = *self.table.settings();
        let unpublished = self.journal.unpublished;
        let changed = self.mutate(differing, |table| table.join(settings, rows).changed);
        if old_settings != *self.table.settings() {
            self.journal.note(&[Guid::NIL]);
        }
        if let Some(lacks) = lacks {
            self.note_lacks(theirs.digest, &lacks);
        }
        self.settle_stamp(&before, theirs, unpublished);
        if granularity != self.table.settings().granularity {
            self.tell(WatchEvent::GranularityChanged {
                before: granularity.name().to_owned(),
                after: self.table.settings().granularity.name().to_owned(),
            });
        }
        let news = !changed.is_empty() || old_settings != *self.table.settings();
        if !changed.is_empty() {
            let event = WatchEvent::TableAdopted {
                from: report::name_info(&self.table, from),
                changed_rows: changed.len() as u64,
                table: report::summary_info(&self.table.summary()),
            };
            self.tell(event);
        }
        news
    }

    /// Which of our rows another whole table lacks or has older.
    fn lacks(&self, theirs: &[Row]) -> BTreeSet<Guid> {
        let mut lacks = BTreeSet::new();
        let mut others = theirs.iter().peekable();
        for ours in self.table.rows() {
            while others.next_if(|row| row.guid < ours.guid).is_some() {}
            let same = others.next_if(|row| row.guid == ours.guid);
            let newer =
                same.is_none_or(|row| ours.observed > row.observed || ours.owned > row.owned);
            if newer {
                lacks.insert(ours.guid);
            }
        }
        lacks
    }

    /// Notes what was learnt about every peer that has this table.
    fn note_lacks(&mut self, digest: u128, lacks: &BTreeSet<Guid>) {
        if lacks.len() > MAX_OFFER_ROWS {
            return;
        }
        let position = self.journal.position();
        for peer in self.peers.values_mut() {
            if peer.summary.is_some_and(|theirs| theirs.digest == digest) {
                peer.known = Some(Known {
                    digest,
                    position,
                    lacks: lacks.clone(),
                });
            }
        }
    }

    fn settle_stamp(&mut self, before: &TableSummary, theirs: &TableSummary, unpublished: bool) {
        match self.table.settle(before, theirs, self.config.guid) {
            Settled::Adopted => {
                self.journal.note(&[]);
                self.journal.unpublished = false;
                self.journal.published = false;
            }
            // Neither theirs nor ours: a version of our own, to be published with the commit. The
            // stamp just given is above both, and publishing goes above that.
            Settled::Published => {
                self.journal.note(&[]);
                self.journal.unpublished = false;
                self.journal.published = true;
            }
            Settled::Kept => self.journal.unpublished = unpublished,
        }
    }

    /// Leaves out units whose rows, as they come, would break the hierarchy when joined: such a
    /// mixture is never stored; the unit itself is asked instead.
    fn leave_out_offenders(&mut self, from: Guid, rows: &mut Vec<Row>) {
        let outlook = joined_outlook(&self.table, rows.iter());
        let offenders = offenders(&self.table, &outlook);
        if offenders.is_empty() {
            return;
        }
        let parents: std::collections::BTreeMap<Guid, Guid> =
            rows.iter().map(|row| (row.guid, row.parent)).collect();
        let unit_of = |table: &crate::crt::Table, guid: Guid| {
            let mut at = guid;
            for _ in 0..4 {
                match parents.get(&at) {
                    Some(parent) if !parent.is_nil() => at = *parent,
                    Some(_) => return at,
                    None => return table.unit_of(at).unwrap_or(at),
                }
            }
            at
        };
        let units: BTreeSet<Guid> = offenders
            .iter()
            .map(|guid| unit_of(&self.table, *guid))
            .collect();
        rows.retain(|row| !units.contains(&unit_of(&self.table, row.guid)));
        for unit in units {
            let name = report::label(&self.table, unit);
            let from = report::names(&self.table, &[from]);
            self.warn(format!(
                "rows of {name} in the table of {from} do not fit ours together; the unit is asked"
            ));
            self.timers.set(Timer::Unit(unit), Time::ZERO);
        }
    }

    fn extend_patience_for_peers(&mut self, now: Time) {
        if !self.boot.has_units() {
            self.extend_patience(now);
        }
    }
}
