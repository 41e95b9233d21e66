//! Rows of a unit that do not fit together in the tables of two hosts.
//!
//! A mixture that breaks the ownership hierarchy is never stored: the unit is asked, and its registers
//! decide. Where it has lost them, nothing decides: what was left out is kept until all hosts have been heard
//! ([`super::restore`]). No host then knows of a change that made both permitted: what the newer rows
//! above do not permit was released before, or was never acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use super::agent::Agent;
use super::report;
use super::timers::Timer;
use crate::crt::outlook::{LeftOut, leave_out_offenders, release_offenders};
use crate::crt::{has_newer, joined};
use crate::wire::{Guid, Row, Time};

/// What was left out of the tables that were taken in.
#[derive(Debug, Default)]
pub(super) struct Misfits {
    /// Of each unit that has lost its registers, the newest of what other tables have of its rows beyond ours.
    rows: BTreeMap<Guid, BTreeMap<Guid, Row>>,
    /// Tables of which all was taken in but the rows of these units, by digest.
    taken: BTreeMap<u128, BTreeSet<Guid>>,
}

/// The most tables that count as taken in, but for something; with another one, all are read again.
const MAX_TABLES: usize = 1024;
/// The most rows that a warning names.
const MAX_NAMED: usize = 8;

impl Misfits {
    /// Whether all of a table was taken in but what is kept here.
    pub(super) fn has_rest_of(&self, digest: u128) -> bool {
        self.taken.contains_key(&digest)
    }

    /// Whether rows of the unit are kept.
    pub(super) fn has(&self, unit: Guid) -> bool {
        self.rows.contains_key(&unit)
    }

    /// What was left out of a unit's rows does not matter any more: it has registers, or the rows are settled.
    pub(super) fn forget(&mut self, unit: Guid) -> Vec<Row> {
        self.taken.retain(|_, units| !units.contains(&unit));
        let rows = self.rows.remove(&unit).unwrap_or_default();
        rows.into_values().collect()
    }
}

impl Agent {
    /// Leaves out units whose rows, as they come, would break the hierarchy when joined: such a
    /// mixture is never stored; the unit itself is asked instead.
    pub(super) fn leave_out_offenders(&mut self, from: Guid, rows: &mut Vec<Row>) -> LeftOut {
        let left_out = leave_out_offenders(&self.table, rows);
        for unit in left_out.keys() {
            let name = report::label(&self.table, *unit);
            let from = self.name_list(&[from]);
            self.warn(format!(
                "rows of {name} in the table of {from} do not fit ours together; the unit is asked"
            ));
            self.timers.set(Timer::Unit(*unit), Time::ZERO);
        }
        left_out
    }

    /// Keeps what was left out of a table where the unit cannot tell what is right; `whole` where all else
    /// of it was taken in.
    pub(super) fn note_misfits(&mut self, digest: u128, whole: bool, left_out: LeftOut) {
        if left_out.is_empty() {
            return;
        }
        let lost = |unit: &Guid| self.units.get(unit).is_some_and(|u| u.registers_lost);
        let misfits = &mut self.misfits;
        if whole && left_out.keys().all(lost) {
            if misfits.taken.len() >= MAX_TABLES {
                misfits.taken.clear();
            }
            let units = left_out.keys().copied().collect();
            misfits.taken.insert(digest, units);
            for (unit, rows) in left_out {
                let kept = misfits.rows.entry(unit).or_default();
                for row in rows {
                    let ours = self.table.get(row.guid);
                    if ours.is_some_and(|ours| !has_newer(&row, ours)) {
                        continue;
                    }
                    let row = kept
                        .get(&row.guid)
                        .map_or(row.clone(), |known| joined(known, &row));
                    kept.insert(row.guid, row);
                }
            }
        }
    }

    /// Takes in what was left out of a unit's rows. What is above a row decides: owners that it does not permit
    /// lose the row.
    pub(super) fn settle_misfits(&mut self, unit: Guid) {
        let newer = self.misfits.forget(unit);
        let (rows, released) = release_offenders(&self.table, newer);
        let guids: Vec<Guid> = rows.iter().map(|row| row.guid).collect();
        let settings = *self.table.settings();
        self.mutate(guids, |table| table.join(&settings, rows).changed);
        if !released.is_empty() {
            let more = released.len().saturating_sub(MAX_NAMED);
            let mut rows: Vec<String> = released
                .iter()
                .take(MAX_NAMED)
                .map(|guid| report::label(&self.table, *guid))
                .collect();
            if more > 0 {
                rows.push(format!("{more} more"));
            }
            let rows = rows.join(", ");
            let name = report::label(&self.table, unit);
            self.warn(format!(
                "{name} has lost its registers, and its rows in the tables of the hosts do not fit together: \
                 nobody owns {rows} any more, because what is above does not permit it"
            ));
        }
    }
}
