//! Bodies between RMAs: table summaries, pages and offers (Fig. 5, blocks 510 to 530).

use super::super::codec::{DecodeError, Reader, Wire, Writer, ascending, distinct};
use super::super::id::Guid;
use super::super::row::{Row, Settings, TableStamp, wire_struct};
use super::{MAX_PAGE_ROWS, page_advances};

/// How current a table is, and what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableSummary {
    /// Its stamp.
    pub stamp: TableStamp,
    /// Digest of its settings and rows.
    pub digest: u128,
    /// Number of rows, tombstones included.
    pub row_count: u32,
}
wire_struct!(TableSummary {
    stamp,
    digest,
    row_count
});

/// Asks for a page of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableRowsRequest {
    /// Only rows after this GUID.
    pub after: Guid,
}
wire_struct!(TableRowsRequest { after });

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
