//! Table stamps: which version of a table is the most current, and what a new one is called.

use super::Table;
use crate::planted::{self, Bug};
use crate::wire::message::TableSummary;
use crate::wire::{Guid, TableStamp};

/// What became of the table's stamp after a join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The table is what it was before, under the stamp it had.
    Kept,
    /// The table is the other one, under the other one's stamp.
    Adopted,
    /// The table is neither: it is published under a new maximum.
    Published,
}

/// A stamp above `highest`, for a version that `writer` publishes in `term`.
pub fn above(highest: TableStamp, term: u64, writer: Guid) -> TableStamp {
    TableStamp {
        term: highest.term.max(term),
        counter: highest.counter.saturating_add(1),
        writer,
    }
}

impl Table {
    /// Publishes the table's present content: a new maximum by `writer`, in a term that is at
    /// least `term`. Call it once after local changes, before they are persisted.
    pub fn publish(&mut self, term: u64, writer: Guid) -> TableStamp {
        self.stamp = above(self.highest, term, writer);
        self.highest = self.stamp;
        self.stamp
    }

    /// Gives the table its stamp after a join. `before` is this table's summary before the join,
    /// `theirs` the other table's, `local` the host that publishes where neither fits.
    ///
    /// The content that results decides: equal to both, the larger stamp; equal to theirs, theirs
    /// (the whole table is replaced: the specification's normal path); equal to ours, ours;
    /// otherwise a stamp above everything this table has ever met.
    pub fn settle(&mut self, before: &TableSummary, theirs: &TableSummary, local: Guid) -> Settled {
        self.highest = self.highest.max(before.stamp).max(theirs.stamp);
        let now = self.summary();
        let same =
            |other: &TableSummary| other.digest == now.digest && other.row_count == now.row_count;
        match (same(before), same(theirs)) {
            (true, true) if planted::is(Bug::EqualContentRestamped) => {
                self.publish(0, local);
                Settled::Published
            }
            (true, true) if theirs.stamp > before.stamp => {
                self.stamp = theirs.stamp;
                Settled::Adopted
            }
            (true, _) => {
                self.stamp = before.stamp;
                Settled::Kept
            }
            // Two contents under one stamp: nobody makes that, and it ends here.
            (false, true) if theirs.stamp != before.stamp => {
                self.stamp = theirs.stamp;
                Settled::Adopted
            }
            (false, _) => {
                self.publish(0, local);
                Settled::Published
            }
        }
    }
}
