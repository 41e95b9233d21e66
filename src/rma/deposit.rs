//! What fabric services are given of our table (block 530): an offer of what they lack where that is
//! known and little; else a deposit of all rows of the parts that differ, in pieces.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::agent::Agent;
use super::config::MAX_PAGE_BYTES;
use super::joining::Extent;
use super::peers::Ask;
use crate::crt::part_level;
use crate::wire::message::{self, Deposit, MAX_PAGE_ROWS, Parts, TableSummary};
use crate::wire::{Guid, Kind, Row, Settings, Time, Wire};

/// What is known of how the table there differs from ours.
#[derive(Debug, Clone)]
struct Differing {
    /// Digest of the table there.
    digest: u128,
    /// Outside of these parts, and of what has changed here since, both are equal.
    parts: Parts,
    /// Position in our log at that time.
    position: u64,
}

/// Rows of some parts.
type Piece = (Parts, Vec<Arc<Row>>);

/// A deposit on its way: the table as it was at its beginning.
#[derive(Debug)]
struct Pending {
    summary: TableSummary,
    settings: Settings,
    base: u128,
    position: u64,
    sent: u32,
    left: VecDeque<Piece>,
}

/// What is known for the next deposit, and the one on its way.
#[derive(Debug, Default)]
pub(super) struct Deposits {
    differing: Option<Differing>,
    pending: Option<Pending>,
    /// No other one is begun before.
    rest_until: Time,
}

impl Deposits {
    /// The one on its way, if any, was refused.
    pub(super) fn failed(&mut self, rest_until: Time) {
        self.differing = None;
        if self.pending.take().is_some() {
            self.rest_until = rest_until;
        }
    }
}

impl Agent {
    /// Which parts of a peer's table differ has been found out.
    pub(super) fn note_extent(&mut self, guid: Guid, extent: &Extent, position: u64) {
        if !self.is_centre(guid) {
            return;
        }
        let theirs = self.peers.get(&guid).and_then(|p| p.summary);
        let parts = match extent {
            Extent::Parts(parts) => parts.clone(),
            Extent::Whole | Extent::Offered => Parts::whole(),
        };
        self.centre.deposits.differing = theirs.map(|theirs| Differing {
            digest: theirs.digest,
            parts,
            position,
        });
    }

    /// The table there is equal to ours.
    pub(super) fn note_equal(&mut self, theirs: &TableSummary) {
        self.centre.deposits.differing = Some(Differing {
            digest: theirs.digest,
            parts: Parts {
                level: part_level(self.table.len()),
                numbers: Vec::new(),
            },
            position: self.journal.position(),
        });
    }

    /// Block 530 for fabric services: they take in what they are given, and fetch nothing.
    pub(super) fn offer_to_centre(&mut self, now: Time, guid: Guid) {
        let (durable, position) = (self.journal.durable, self.journal.position());
        let Some(peer) = self.peers.get_mut(&guid) else {
            return;
        };
        peer.offer = false;
        let Some(theirs) = peer.summary else {
            return self.ask_stamp(now, guid);
        };
        let digest = durable.digest;
        let ask = Ask::Offer { position, digest };
        if theirs.digest == digest {
            if theirs.stamp < durable.stamp || theirs.floor < durable.floor {
                self.send_offer(now, guid, Vec::new(), ask);
            }
            return;
        }
        // What was purged here they can only learn from all rows of the parts where it was.
        let rows = self.rows_beyond(guid);
        let says = |rows: &Vec<Row>| !rows.is_empty() && theirs.floor >= durable.floor;
        if let Some(rows) = rows.filter(says) {
            return self.send_offer(now, guid, rows, ask);
        }
        let differing = self.centre.deposits.differing.as_ref();
        if differing.is_some_and(|d| d.digest == theirs.digest) {
            self.begin_deposit(now, guid, theirs.digest);
        } else if self.pulls_left() > 0 && self.peers.get(&guid).is_some_and(|p| p.pull.is_none()) {
            self.start_pull(now, guid);
        }
    }

    fn begin_deposit(&mut self, now: Time, guid: Guid, base: u128) {
        if now < self.centre.deposits.rest_until {
            return;
        }
        let Some(left) = self.pieces(base) else {
            let pause = self.deposit_pause();
            self.centre.deposits.rest_until = now + pause;
            return self.warn(
                "the table has parts that are too large for fabric services to keep".to_owned(),
            );
        };
        self.centre.deposits.pending = Some(Pending {
            summary: self.journal.durable,
            settings: *self.table.settings(),
            base,
            position: self.journal.position(),
            sent: 0,
            left,
        });
        self.send_piece(now, guid);
    }

    /// The rows of the parts that differ, or all, dealt into pieces; `None` where one is too large.
    fn pieces(&self, base: u128) -> Option<VecDeque<Piece>> {
        let differing = self.centre.deposits.differing.clone();
        let parts = differing
            .filter(|d| d.digest == base)
            .and_then(|d| Some((d.parts, self.journal.since(d.position)?)))
            .filter(|(parts, _)| parts.level > 0)
            .map(|(parts, since)| {
                let since = since.iter().map(|g| Parts::number_of(parts.level, *g));
                let numbers: BTreeSet<u16> = parts.numbers.iter().copied().chain(since).collect();
                (parts.level, numbers)
            })
            .filter(|(_, numbers)| !numbers.is_empty());
        let (level, numbers) = parts.unwrap_or_else(|| {
            let level = part_level(self.table.len());
            let last = ((1_u32 << (4 * level)) - 1) as u16;
            (level, (0..=last).collect())
        });
        let mut rows: BTreeMap<u16, Vec<Arc<Row>>> = BTreeMap::new();
        for guid in self.table.rows().map(|row| row.guid) {
            let number = Parts::number_of(level, guid);
            if numbers.contains(&number) {
                let row = self.table.get_shared(guid);
                rows.entry(number).or_default().extend(row);
            }
        }
        deal(level, numbers, rows)
    }

    /// Sends the next piece of the deposit.
    fn send_piece(&mut self, now: Time, guid: Guid) {
        let Some(pending) = &mut self.centre.deposits.pending else {
            return;
        };
        let Some((parts, mut rows)) = pending.left.pop_front() else {
            return;
        };
        rows.sort_by_key(|row| row.guid);
        let deposit = Deposit {
            summary: pending.summary,
            settings: pending.settings,
            base: pending.base,
            piece: pending.sent,
            more: !pending.left.is_empty(),
            parts,
            rows: rows.iter().map(|row| Row::clone(row)).collect(),
        };
        pending.sent += 1;
        let ask = Ask::Deposit {
            position: pending.position,
            digest: pending.summary.digest,
        };
        if !self.ask(now, guid, ask, Kind::Deposit, deposit.to_body(), 128) {
            self.centre.deposits.pending = None;
        }
    }

    /// A piece was taken: whether another one follows it.
    pub(super) fn deposit_goes_on(&mut self, now: Time, guid: Guid) -> bool {
        let deposits = &mut self.centre.deposits;
        if deposits
            .pending
            .as_ref()
            .is_some_and(|p| !p.left.is_empty())
        {
            self.send_piece(now, guid);
            return true;
        }
        deposits.pending = None;
        // Should the tables differ now, somebody else has changed the one there, or something of
        // ours is not taken: that is no reason to hurry.
        let pause = self.deposit_pause();
        self.centre.deposits.rest_until = now + pause;
        false
    }
}

/// Deals parts with their rows into pieces that fit a message each.
fn deal(
    level: u8,
    numbers: BTreeSet<u16>,
    mut rows: BTreeMap<u16, Vec<Arc<Row>>>,
) -> Option<VecDeque<Piece>> {
    let mut pieces: VecDeque<Piece> = VecDeque::new();
    let mut bytes = 0;
    for number in numbers {
        let part = rows.remove(&number).unwrap_or_default();
        let part_bytes: usize = part.iter().map(|row| row.to_body().len()).sum();
        // A part's number is two bytes, of parts without rows there are many.
        let part_bytes = part_bytes + 2;
        if part.len() > MAX_PAGE_ROWS || part_bytes > message::MAX_PAGE_BYTES / 2 {
            return None;
        }
        let fits = |(_, known): &Piece| {
            known.len() + part.len() <= MAX_PAGE_ROWS && bytes + part_bytes <= MAX_PAGE_BYTES
        };
        if !pieces.back().is_some_and(fits) {
            let parts = Parts {
                level,
                numbers: Vec::new(),
            };
            pieces.push_back((parts, Vec::new()));
            bytes = 0;
        }
        if let Some((parts, known)) = pieces.back_mut() {
            parts.numbers.push(number);
            known.extend(part);
            bytes += part_bytes;
        }
    }
    Some(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::EntityType;

    fn part(rows: usize) -> Vec<Arc<Row>> {
        let row = |n| {
            let mut row = Row::new(Guid(n as u128 + 1), EntityType::Device);
            row.name = "x".repeat(63);
            Arc::new(row)
        };
        (0..rows).map(row).collect()
    }

    #[test]
    fn every_part_is_in_one_piece_and_pieces_fit_a_message() {
        let numbers: BTreeSet<u16> = (0..4096).collect();
        let rows: BTreeMap<u16, _> = (0..4096).step_by(2).map(|n| (n, part(5))).collect();
        let pieces = deal(3, numbers.clone(), rows).unwrap();
        let dealt: Vec<u16> = pieces.iter().flat_map(|(p, _)| p.numbers.clone()).collect();
        assert!(dealt.iter().copied().eq(numbers));
        let count: usize = pieces.iter().map(|(_, rows)| rows.len()).sum();
        assert_eq!(count, 2048 * 5);
        assert!(pieces.len() > 4);
        for (_, rows) in &pieces {
            let bytes: usize = rows.iter().map(|row| row.to_body().len()).sum();
            assert!(bytes <= MAX_PAGE_BYTES && rows.len() <= MAX_PAGE_ROWS);
        }
        assert_eq!(deal(0, [0].into(), BTreeMap::new()).unwrap().len(), 1);
    }

    #[test]
    fn a_part_that_fits_no_message_is_given_up() {
        let large = BTreeMap::from([(3, part(MAX_PAGE_ROWS + 1))]);
        assert!(deal(1, [3].into(), large).is_none());
    }
}
