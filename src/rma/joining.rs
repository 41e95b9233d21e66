//! Taking in what another host's table has: the join, its stamp, and what must not be mixed.

use std::collections::BTreeSet;

use super::agent::Agent;
use super::config::MAX_OFFER_ROWS;
use super::peers::Known;
use super::report;
use super::request::WatchEvent;
use crate::crt::outlook::leave_out_orphans;
use crate::crt::{Settled, has_newer};
use crate::lease::{is_far_count, is_far_stamp, is_far_term};
use crate::wire::message::{Parts, TableSummary};
use crate::wire::{Guid, Row, Settings, TableStamp};

/// How much of another host's table has come.
#[derive(Debug)]
pub(super) enum Extent {
    /// What it offered of it.
    Offered,
    /// All rows of these parts; in the others it was equal to ours.
    Parts(Parts),
    /// All of it.
    Whole,
}

impl Extent {
    /// Whether all that the table has of a row, or that it has none, has come.
    fn holds(&self, guid: Guid) -> bool {
        match self {
            Self::Offered => false,
            Self::Parts(parts) => parts.contain(guid),
            Self::Whole => true,
        }
    }
}

impl Agent {
    /// Whether a table has the content of ours.
    pub(super) fn same_content(&self, theirs: &TableSummary) -> bool {
        theirs.digest == self.table.digest() && theirs.row_count as usize == self.table.len()
    }

    /// Equal content: the larger stamp, and no new version.
    pub(super) fn adopt_stamp(&mut self, theirs: &TableSummary) {
        if self.table.raise_floor(theirs.floor) {
            self.journal.note(&[]);
        }
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

    /// Joins what a peer has. `position` is that of our log when it was equal outside of `extent`.
    pub(super) fn take_in(
        &mut self,
        from: Guid,
        theirs: &TableSummary,
        settings: &Settings,
        mut rows: Vec<Row>,
        extent: &Extent,
        position: u64,
    ) {
        let count = rows.len();
        let settings = &self.leave_out_impossible(from, settings, &mut rows);
        if theirs.floor < self.table.floor() {
            // Theirs adopts ours: what ours lacks may have been purged, and is heard of again from
            // those who have it.
            rows.retain(|row| self.table.get(row.guid).is_some());
        }
        let purged = match extent {
            Extent::Offered => None,
            _ if theirs.floor <= self.table.floor() => None,
            extent => Some(self.purged_elsewhere(&rows, |guid| extent.holds(guid))),
        };
        let settings = &self.leave_out_far(from, *settings, &mut rows);
        if matches!(extent, Extent::Offered) {
            // Theirs counts on ours to have what is above; by now that may be gone.
            leave_out_orphans(&self.table, &mut rows);
        }
        let left_out = self.leave_out_offenders(from, &mut rows);
        let whole = !matches!(extent, Extent::Offered)
            && count == rows.len() + left_out.values().map(Vec::len).sum::<usize>();
        self.note_misfits(theirs.digest, whole, left_out);
        let differing: Vec<Guid> = rows
            .iter()
            .filter(|row| self.table.get(row.guid) != Some(*row))
            .map(|row| row.guid)
            .collect();
        let lacks = self.lacks(&rows, extent, position);
        let before = self.table.summary();
        let granularity = self.table.settings().granularity;
        let old_settings = *self.table.settings();
        let unpublished = self.journal.unpublished;
        let changed = self.mutate(differing, |table| table.join(settings, rows).changed);
        if old_settings != *self.table.settings() {
            self.journal.note(&[Guid::NIL]);
        }
        if let Some(purged) = purged {
            self.adopt_purges(&purged, theirs.floor);
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
        if !changed.is_empty() {
            let event = WatchEvent::TableAdopted {
                from: self.source_info(from),
                changed_rows: changed.len() as u64,
                table: report::summary_info(&self.table.summary()),
            };
            self.tell(event);
        }
    }

    /// Drops what was purged elsewhere, and what is dropped without need is heard of again.
    fn adopt_purges(&mut self, purged: &[Guid], floor: TableStamp) {
        let below = |row: &Guid| self.table.below(*row);
        let all: Vec<Guid> = purged.iter().flat_map(below).collect();
        let gone = self.mutate(all, |table| {
            let mut changed = BTreeSet::new();
            for guid in purged {
                changed.extend(table.remove(*guid));
            }
            changed.into_iter().collect()
        });
        self.table.raise_floor(floor);
        self.journal.note(&[]);
        if !purged.is_empty() {
            self.doubt_units(&gone);
            self.hear_again();
        }
    }

    /// Whether a table's stamp can be an honest one; otherwise nothing of the table is taken.
    pub(super) fn is_plausible(&mut self, from: Guid, theirs: &TableSummary) -> bool {
        let known = self.known_term();
        let far = is_far_stamp(&theirs.stamp, known) || is_far_stamp(&theirs.floor, known);
        if far {
            let (term, counter) = (theirs.stamp.term, theirs.stamp.counter);
            let from = self.name_list(&[from]);
            self.warn(format!(
                "the table of {from} says version {term}.{counter}, far ahead of every term known \
                 here ({known}): no honest one has come so far; nothing of it is taken"
            ));
        }
        !far
    }

    /// Leaves out rows and settings whose stamps no honest host or unit can have given; gives the
    /// settings to join.
    fn leave_out_far(&mut self, from: Guid, settings: Settings, rows: &mut Vec<Row>) -> Settings {
        let known = self.known_term();
        let count = rows.len();
        rows.retain(|row| !is_far_term(row.owned.term, known) && !is_far_count(row.owned.epoch.0));
        if rows.len() < count {
            let left_out = count - rows.len();
            let from = self.name_list(&[from]);
            self.warn(format!(
                "{left_out} rows in the table of {from} have terms or epochs far ahead of every one \
                 known here (term {known}); they are left out"
            ));
        }
        if is_far_stamp(&settings.stamp, known) {
            self.warn_far_term(from, settings.stamp.term);
            return *self.table.settings();
        }
        settings
    }

    /// Which of our rows another table, as far as it has come, lacks or has older; `None` where
    /// that cannot be said.
    fn lacks(&self, theirs: &[Row], extent: &Extent, position: u64) -> Option<BTreeSet<Guid>> {
        let within = |guid| extent.holds(guid);
        let mut lacks = match extent {
            Extent::Offered => return None,
            // What has changed here since the other parts were equal.
            Extent::Parts(_) => self.journal.since(position)?,
            Extent::Whole => BTreeSet::new(),
        };
        lacks.retain(|guid| !within(*guid));
        let mut others = theirs.iter().peekable();
        for ours in self.table.rows().filter(|row| within(row.guid)) {
            while others.next_if(|row| row.guid < ours.guid).is_some() {}
            let same = others.next_if(|row| row.guid == ours.guid);
            if same.is_none_or(|row| has_newer(ours, row)) {
                lacks.insert(ours.guid);
            }
        }
        Some(lacks)
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
}
