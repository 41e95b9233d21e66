//! Bodies between RMAs: table summaries, digests, pages and offers (Fig. 5, blocks 510 to 530).

use super::super::codec::{DecodeError, Reader, Wire, Writer, ascending, distinct};
use super::super::id::Guid;
use super::super::row::{Row, Settings, TableStamp, wire_struct};
use super::{MAX_PAGE_ROWS, MAX_PART_LEVEL, MAX_PARTS, page_advances};

/// How current a table is, and what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableSummary {
    /// Its stamp.
    pub stamp: TableStamp,
    /// Digest of its settings and rows.
    pub digest: u128,
    /// Number of rows, tombstones included.
    pub row_count: u32,
    /// What was purged up to this version is not in it; a table with a smaller floor adopts it.
    pub floor: TableStamp,
}
wire_struct!(TableSummary {
    stamp,
    digest,
    row_count,
    floor
});

/// Parts of a table: a row lies in the part whose number is the first `4 * level` bits of the
/// XXH3-64 of its GUID. Level 0 has one part, the whole table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// 0 to [`MAX_PART_LEVEL`].
    pub level: u8,
    /// 1 to [`MAX_PARTS`] part numbers of that level, ascending.
    pub numbers: Vec<u16>,
}

impl Parts {
    /// The whole table.
    pub fn whole() -> Self {
        Self {
            level: 0,
            numbers: vec![0],
        }
    }
}

impl Wire for Parts {
    fn put(&self, w: &mut Writer) {
        w.put(&self.level);
        w.list(&self.numbers);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let parts = Self {
            level: r.get()?,
            numbers: r.list("parts", MAX_PARTS)?,
        };
        if parts.level > MAX_PART_LEVEL {
            return Err(DecodeError::BadValue("level"));
        }
        ascending(&parts.numbers, |n| *n, "parts")?;
        let count = 1_u32 << (4 * parts.level);
        match parts.numbers.last() {
            Some(last) if u32::from(*last) < count => Ok(parts),
            _ => Err(DecodeError::BadValue("parts")),
        }
    }
}

/// Asks for the digests of the parts that parts of a table consist of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDigestsRequest {
    /// The parts.
    pub parts: Parts,
    /// How many levels deeper, 1 or 2: each part has 16 or 256 there. The deeper level is at most
    /// [`MAX_PART_LEVEL`], and the answer has at most [`MAX_PARTS`] digests.
    pub depth: u8,
}

impl TableDigestsRequest {
    /// Number of digests in the answer.
    pub fn digest_count(&self) -> usize {
        self.parts.numbers.len() << (4 * self.depth)
    }
}

impl Wire for TableDigestsRequest {
    fn put(&self, w: &mut Writer) {
        w.put(&self.parts);
        w.put(&self.depth);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let request = Self {
            parts: r.get()?,
            depth: r.get()?,
        };
        if !(1..=2).contains(&request.depth) || request.parts.level + request.depth > MAX_PART_LEVEL
        {
            return Err(DecodeError::BadValue("depth"));
        }
        if request.digest_count() > MAX_PARTS {
            return Err(DecodeError::TooLarge("digests"));
        }
        Ok(request)
    }
}

/// Digests of parts of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDigestsReply {
    /// The table's summary when the digests were read.
    pub summary: TableSummary,
    /// Cluster-wide settings.
    pub settings: Settings,
    /// For each part asked for, in order, the digests of the parts that it consists of, in order:
    /// wrapping sums of the low 64 bits of the digests of their rows.
    pub digests: Vec<u64>,
}

impl Wire for TableDigestsReply {
    fn put(&self, w: &mut Writer) {
        w.put(&self.summary);
        w.put(&self.settings);
        w.list(&self.digests);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            summary: r.get()?,
            settings: r.get()?,
            digests: r.list("digests", MAX_PARTS)?,
        })
    }
}

/// Asks for a page of a table, or of parts of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRowsRequest {
    /// Only rows after this GUID.
    pub after: Guid,
    /// Only rows in these parts.
    pub parts: Parts,
}
wire_struct!(TableRowsRequest { after, parts });

/// A page of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRowsReply {
    /// The table's summary when the page was made; another one than the page before: start again.
    pub summary: TableSummary,
    /// Cluster-wide settings.
    pub settings: Settings,
    /// Whether more follow after the last.
    pub more: bool,
    /// Rows by ascending GUID, within [`MAX_PAGE_BYTES`](super::MAX_PAGE_BYTES).
    pub rows: Vec<Row>,
}

impl Wire for TableRowsReply {
    fn put(&self, w: &mut Writer) {
        w.put(&self.summary);
        w.put(&self.settings);
        w.put(&self.more);
        w.list(&self.rows);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let reply = Self {
            summary: r.get()?,
            settings: r.get()?,
            more: r.get()?,
            rows: r.list("rows", MAX_PAGE_ROWS)?,
        };
        page_advances(reply.more, &reply.rows)?;
        ascending(&reply.rows, |row| row.guid, "rows")?;
        Ok(reply)
    }
}

/// A piece of a table for fabric services to keep: all rows of some of its parts. The pieces of a
/// deposit follow each other over one connection; with the last one they are taken in together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deposit {
    /// The sender's table, the same in every piece.
    pub summary: TableSummary,
    /// Cluster-wide settings.
    pub settings: Settings,
    /// Digest of the receiver's table with which the sender's is equal outside of the parts that are
    /// deposited; it does not count where these are the whole table.
    pub base: u128,
    /// Counts the pieces, from 0.
    pub piece: u32,
    /// Whether more pieces follow.
    pub more: bool,
    /// The parts; none is in two pieces.
    pub parts: Parts,
    /// All rows of the sender's table in these parts, by ascending GUID, within
    /// [`MAX_PAGE_BYTES`](super::MAX_PAGE_BYTES).
    pub rows: Vec<Row>,
}

impl Wire for Deposit {
    fn put(&self, w: &mut Writer) {
        w.put(&self.summary);
        w.put(&self.settings);
        w.put(&self.base);
        w.put(&self.piece);
        w.put(&self.more);
        w.put(&self.parts);
        w.list(&self.rows);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let deposit = Self {
            summary: r.get()?,
            settings: r.get()?,
            base: r.get()?,
            piece: r.get()?,
            more: r.get()?,
            parts: r.get()?,
            rows: r.list("rows", MAX_PAGE_ROWS)?,
        };
        ascending(&deposit.rows, |row| row.guid, "rows")?;
        Ok(deposit)
    }
}

/// Offers a table. The receiver joins the rows; when its digest then differs from the offered one
/// and the offer was not older, it fetches the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The offered table's summary.
    pub summary: TableSummary,
    /// Cluster-wide settings.
    pub settings: Settings,
    /// The rows that changed since the last offer to this peer, none twice, in any order; may be
    /// empty. Together within [`MAX_PAGE_BYTES`](super::MAX_PAGE_BYTES).
    pub rows: Vec<Row>,
}

impl Wire for Offer {
    fn put(&self, w: &mut Writer) {
        w.put(&self.summary);
        w.put(&self.settings);
        w.list(&self.rows);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let offer = Self {
            summary: r.get()?,
            settings: r.get()?,
            rows: r.list("rows", MAX_PAGE_ROWS)?,
        };
        distinct(&offer.rows, |row| row.guid, "rows")?;
        Ok(offer)
    }
}
