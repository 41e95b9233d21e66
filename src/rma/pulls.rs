//! Looking for what differs between a peer's table and ours, and fetching it (block 515).
//!
//! From the digests of large parts to those of small ones, then the rows of the parts that differ.
//! A table that has little in common with ours, or that is small, is fetched as a whole.

use super::agent::Agent;
use super::config::{MAX_PAGE_BYTES, MAX_PULL_RESTARTS};
use super::joining::Extent;
use super::peers::{Ask, Known, Pulled};
use crate::crt::{MAX_ROWS, part_level};
use crate::wire::message::{
    Parts, TableDigestsReply, TableDigestsRequest, TableRowsReply, TableRowsRequest, TableSummary,
};
use crate::wire::{Guid, Kind, Row, Time, Wire};

/// A table of no more rows is fetched as a whole: that is one exchange.
const SMALL_ROWS: usize = 16;
/// Parts whose rows are asked for at once.
const PARTS_AT_ONCE: usize = 1024;
/// Up to so many parts are looked into two levels deep at once: that saves an exchange.
const DEEP_PARTS: usize = 4;
/// The most tables that are looked into at a time, once Fig. 5 has been gone through: what one
/// peer has, others mostly have as well.
pub(super) const MAX_PULLS: usize = 2;

/// A peer's table, or what is different in it, on its way.
#[derive(Debug)]
pub(super) struct Pull {
    stage: Stage,
    rows: Vec<Row>,
    summary: Option<TableSummary>,
    restarts: u32,
    /// Position in our log when the look began.
    position: u64,
}

#[derive(Debug)]
enum Stage {
    /// The digests of these parts are asked for.
    Digests(TableDigestsRequest),
    /// The rows of `parts` are fetched, from `next` on.
    Rows { parts: Parts, next: usize },
}

impl Agent {
    /// Block 515 for one peer: fetches what differs in its table.
    pub(super) fn start_pull(&mut self, now: Time, guid: Guid) {
        let position = self.journal.position();
        let ours = self.table.len();
        let Some(peer) = self.peers.get_mut(&guid) else {
            return;
        };
        peer.differs_since = None;
        let theirs = peer.summary.map_or(0, |s| s.row_count as usize);
        let stage = if theirs <= SMALL_ROWS || ours * 2 < theirs {
            whole()
        } else {
            Stage::Digests(next_digests(Parts::whole(), ours.max(theirs)))
        };
        peer.pull = Some(Box::new(Pull {
            stage,
            rows: Vec::new(),
            summary: None,
            restarts: 0,
            position,
        }));
        self.continue_pull(now, guid, Guid::NIL);
    }

    /// Asks for what the stage of a pull needs; rows are those after `after`.
    fn continue_pull(&mut self, now: Time, guid: Guid, after: Guid) {
        let Some(pull) = self.peers.get(&guid).and_then(|p| p.pull.as_ref()) else {
            return;
        };
        let (ask, kind, body, expect) = match &pull.stage {
            Stage::Digests(request) => {
                let expect = 256 + 8 * request.digest_count();
                let body = request.to_body();
                (Ask::Digests, Kind::TableDigests, body, expect)
            }
            Stage::Rows { parts, next } => {
                let end = parts.numbers.len().min(next + PARTS_AT_ONCE);
                let parts = Parts {
                    level: parts.level,
                    numbers: parts.numbers[*next..end].to_vec(),
                };
                let body = TableRowsRequest { after, parts }.to_body();
                (Ask::Rows, Kind::TableRows, body, MAX_PAGE_BYTES)
            }
        };
        if !self.ask(now, guid, ask, kind, body, expect) {
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

    /// A peer has told the digests of parts of its table.
    pub(super) fn on_digests(&mut self, now: Time, guid: Guid, reply: &TableDigestsReply) {
        self.extend_patience_for_peers(now);
        if !self.is_plausible(guid, &reply.summary) {
            return self.abandon_pull(guid);
        }
        let ours = self.table.len();
        let Some(pull) = self.peers.get_mut(&guid).and_then(|p| p.pull.as_mut()) else {
            return;
        };
        let Stage::Digests(request) = &pull.stage else {
            return;
        };
        let Some(parts) = self.table.differing_parts(request, &reply.digests) else {
            return self.abandon_pull(guid);
        };
        if parts.numbers.is_empty() {
            // The rows are equal by now, as far as was looked; the settings may not be.
            let page = TableRowsReply {
                summary: reply.summary,
                settings: reply.settings,
                more: false,
                rows: Vec::new(),
            };
            return self.finish_pull(now, guid, page, Extent::Parts(parts));
        }
        let rows = ours.max(reply.summary.row_count as usize);
        pull.stage = if parts.level < part_level(rows) {
            Stage::Digests(next_digests(parts, rows))
        } else if parts.numbers.len() > 1 << (4 * parts.level - 1) {
            whole()
        } else {
            Stage::Rows { parts, next: 0 }
        };
        self.continue_pull(now, guid, Guid::NIL);
    }

    /// A peer has sent a page of rows.
    pub(super) fn on_page(&mut self, now: Time, guid: Guid, mut page: TableRowsReply) {
        self.extend_patience_for_peers(now);
        if !self.is_plausible(guid, &page.summary) {
            return self.abandon_pull(guid);
        }
        let Some(pull) = self.peers.get_mut(&guid).and_then(|p| p.pull.as_mut()) else {
            return;
        };
        let Stage::Rows { parts, next } = &mut pull.stage else {
            return;
        };
        let whole = parts.level == 0;
        let moved = pull.summary.is_some_and(|s| s != page.summary);
        if moved && whole && pull.restarts < MAX_PULL_RESTARTS {
            pull.restarts += 1;
            pull.rows.clear();
            pull.summary = None;
            return self.continue_pull(now, guid, Guid::NIL);
        }
        pull.summary = Some(page.summary);
        let last = page.rows.last().map(|row| row.guid);
        pull.rows.append(&mut page.rows);
        let room = pull.rows.len() <= MAX_ROWS;
        if let (true, Some(after)) = (page.more && room, last) {
            return self.continue_pull(now, guid, after);
        }
        *next = parts.numbers.len().min(*next + PARTS_AT_ONCE);
        if *next < parts.numbers.len() && room {
            return self.continue_pull(now, guid, Guid::NIL);
        }
        let parts = std::mem::replace(parts, Parts::whole());
        page.rows = std::mem::take(&mut pull.rows);
        // Batches of parts come one after the other, each by ascending GUID.
        page.rows.sort_by_key(|row| row.guid);
        let extent = if whole {
            Extent::Whole
        } else {
            Extent::Parts(parts)
        };
        self.finish_pull(now, guid, page, extent);
    }

    /// All that was to be fetched is here.
    fn finish_pull(&mut self, now: Time, guid: Guid, page: TableRowsReply, extent: Extent) {
        if self.is_impossible(guid, &page.summary) {
            return self.abandon_pull(guid);
        }
        let Some(peer) = self.peers.get_mut(&guid) else {
            return;
        };
        let Some(pull) = peer.pull.take() else { return };
        peer.boot_pull = Pulled::Yes;
        peer.summary = Some(page.summary);
        for peer in self.peers.values_mut() {
            peer.fresh = false;
        }
        self.note_extent(guid, &extent, pull.position);
        self.take_in(
            guid,
            &page.summary,
            &page.settings,
            page.rows,
            &extent,
            pull.position,
        );
        let equal = self.same_content(&page.summary);
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
}

fn whole() -> Stage {
    Stage::Rows {
        parts: Parts::whole(),
        next: 0,
    }
}

/// The digests to look at next, on the way to the parts that pay for so many rows.
fn next_digests(parts: Parts, row_count: usize) -> TableDigestsRequest {
    let left = part_level(row_count).saturating_sub(parts.level);
    let deep = left >= 2 && parts.numbers.len() <= DEEP_PARTS;
    TableDigestsRequest {
        parts,
        depth: if deep { 2 } else { 1 },
    }
}
