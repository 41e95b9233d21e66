//! A cluster's table as fabric services keep it: what hosts give is joined row by row, by the rules
//! of hosts among themselves. Pure functions on tables.
//!
//! Nothing is taken for true because it is kept here: hosts join what they get as they join a
//! peer's, and ownership is committed at the units.

use std::collections::BTreeSet;

use crate::crt::Table;
use crate::crt::outlook::leave_out_offenders;
use crate::lease::{is_far_count, is_far_stamp, is_far_term};
use crate::planted::{self, Bug};
use crate::wire::message::TableSummary;
use crate::wire::{Guid, Row, Settings, Status};

/// How much of a host's table has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Extent {
    /// What it offered of it.
    Offered,
    /// All rows of these parts of a level; in the others it was equal to ours.
    Parts(u8, BTreeSet<u16>),
    /// All of it.
    Whole,
}

impl Extent {
    fn holds(&self, guid: Guid) -> bool {
        use crate::wire::message::Parts;
        match self {
            Self::Offered => false,
            Self::Parts(level, numbers) => numbers.contains(&Parts::number_of(*level, guid)),
            Self::Whole => true,
        }
    }
}

/// A host's table, as far as it has come.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) summary: TableSummary,
    pub(super) settings: Settings,
    pub(super) rows: Vec<Row>,
    pub(super) extent: Extent,
}

impl Received {
    /// Whether it has the content of `table`.
    pub(super) fn equals(&self, table: &Table) -> bool {
        self.summary.digest == table.digest() && self.summary.row_count as usize == table.len()
    }

    /// Whether there is nothing in it for `table`.
    pub(super) fn is_known(&self, table: &Table) -> bool {
        let (stamp, floor) = (self.summary.stamp, self.summary.floor);
        self.equals(table) && stamp <= table.stamp() && floor <= table.floor()
    }
}

/// Whether stamps can be honest ones; nothing of a table with others is taken.
pub(super) fn check(table: &Table, theirs: &TableSummary) -> Result<(), Status> {
    if !theirs.stamp.is_possible() || !theirs.floor.is_possible() {
        return Err(Status::BadRequest);
    }
    let known = table.highest_stamp().term;
    if is_far_stamp(&theirs.stamp, known) || is_far_stamp(&theirs.floor, known) {
        return Err(Status::FarTerm);
    }
    Ok(())
}

/// Joins what a host has into a table whose stamps `check` found well; gives the rows that changed.
/// `local` publishes what is neither table.
pub(super) fn take_in(table: &mut Table, local: Guid, received: Received) -> BTreeSet<Guid> {
    let same = received.equals(table);
    let Received {
        summary: theirs,
        settings,
        mut rows,
        extent,
    } = received;
    let before = table.summary();
    if same {
        table.raise_floor(theirs.floor);
        table.settle(&before, &theirs, local);
        return BTreeSet::new();
    }
    let purged = purged_there(table, &theirs, &rows, &extent);
    let known = table.highest_stamp().term;
    rows.retain(|row| {
        let possible = row.observed.is_possible() && row.owned.is_possible();
        possible && !is_far_term(row.owned.term, known) && !is_far_count(row.owned.epoch.0)
    });
    if theirs.floor < table.floor() {
        // Theirs adopts ours: what ours lacks may have been purged.
        rows.retain(|row| table.get(row.guid).is_some());
    }
    leave_out_offenders(table, &mut rows);
    let settings = if settings.stamp.is_possible() && !is_far_stamp(&settings.stamp, known) {
        settings
    } else {
        *table.settings()
    };
    let mut changed = BTreeSet::new();
    if planted::is(Bug::CentreTakesTheirs) {
        for row in &rows {
            changed.extend(table.insert(row.clone()));
        }
    }
    changed.extend(table.join(&settings, rows).changed);
    for guid in &purged {
        changed.extend(table.remove(*guid));
    }
    if extent != Extent::Offered {
        table.raise_floor(theirs.floor);
    }
    table.settle(&before, &theirs, local);
    changed
}

/// Our rows that a table with a larger floor lacks: they were purged, or come again from those who
/// have them.
fn purged_there(
    table: &Table,
    theirs: &TableSummary,
    rows: &[Row],
    extent: &Extent,
) -> BTreeSet<Guid> {
    if *extent == Extent::Offered || theirs.floor <= table.floor() {
        return BTreeSet::new();
    }
    let there: BTreeSet<Guid> = rows.iter().map(|row| row.guid).collect();
    table
        .rows()
        .map(|row| row.guid)
        .filter(|guid| extent.holds(*guid) && !there.contains(guid))
        .collect()
}
