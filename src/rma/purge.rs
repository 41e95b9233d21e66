//! Rows that go for good: tombstones that every host has passed, and what an administrator forgets.
//!
//! What is purged is named by nothing afterwards but the table's floor: a table with a smaller
//! floor adopts one with a larger, and does not bring back what it still has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::agent::Agent;
use super::journal::Waiter;
use super::plan::error;
use super::report::{self, label};
use super::request::{AdminError, AdminReply, ErrorKind, ForgottenInfo, RowInfo};
use super::timers::Timer;
use crate::planted::{self, Bug};
use crate::wire::{EntityType, Guid, Row, Time};

/// The most owned rows that a refusal names.
const MAX_NAMED: usize = 4;

/// Tombstones and who waits for rows to be forgotten.
#[derive(Debug, Default)]
pub(super) struct Purges {
    /// Since when each tombstone has been seen here.
    tombstones: BTreeMap<Guid, Time>,
    /// What was forgotten for whom, until that is durable.
    forgotten: BTreeMap<u64, Vec<RowInfo>>,
}

impl Agent {
    /// Looks for tombstones that are old enough.
    pub(super) fn purge_due(&mut self, now: Time) {
        let age = self.config.intervals.purge_after;
        let pause = (age / 16).clamp(Duration::from_secs(1), Duration::from_secs(3600));
        let pause = self.spread(pause);
        self.timers.set(Timer::Purge, now + pause);
        let gone: BTreeSet<Guid> = self
            .table
            .rows()
            .filter(|row| !row.is_valid())
            .filter(|row| !matches!(row.entity, EntityType::Host | EntityType::Unit))
            .map(|row| row.guid)
            .collect();
        let tombstones = &mut self.purges.tombstones;
        tombstones.retain(|guid, _| gone.contains(guid));
        for guid in &gone {
            tombstones.entry(*guid).or_insert(now);
        }
        let old: Vec<Guid> = tombstones
            .iter()
            .filter(|(_, since)| now.since(**since) >= age)
            .map(|(guid, _)| *guid)
            .collect();
        if !old.is_empty() && self.is_purger() && self.have_all_passed() {
            self.purge(&old);
        }
    }

    /// One host purges for all: the first of the members.
    fn is_purger(&self) -> bool {
        let first = self.members.as_ref().and_then(|members| {
            let mut hosts = members.values().filter(|m| m.entity == EntityType::Host);
            hosts.next().map(|m| m.guid)
        });
        first == Some(self.config.guid)
    }

    /// Whether every member host has told that it has stored just what we have stored: tables only
    /// grow newer, so it has passed every tombstone of ours.
    fn have_all_passed(&self) -> bool {
        if planted::is(Bug::PurgedTooEarly) {
            return true;
        }
        self.members.is_some() && self.journal.is_clean() && self.hosts_not_in_step().is_empty()
    }

    /// Takes rows out of the table with all below them, under a new floor.
    fn purge(&mut self, rows: &[Guid]) {
        let term = self.lease.term();
        let writer = self.config.guid;
        let all: Vec<Guid> = rows.iter().flat_map(|row| self.table.below(*row)).collect();
        let gone = self.mutate(all, |table| table.purge(rows, term, writer));
        self.doubt_units(&gone);
        // It has its stamp already: the floor is that.
        self.journal.unpublished = false;
        self.journal.published = true;
    }

    /// Rows have gone from the table: what units told of them before does not bring them back.
    pub(super) fn doubt_units(&mut self, gone: &[Guid]) {
        let gone: BTreeSet<Guid> = gone.iter().copied().collect();
        for unit in self.units.values_mut() {
            unit.doubt(&gone);
        }
    }

    /// An administrator says that a row is not coming back.
    pub(super) fn forget(&mut self, token: u64, text: &str) -> Result<(), AdminError> {
        if !self.boot.is_steady() {
            return Err(self.not_ready());
        }
        let guid = self.table.resolve(text)?;
        let Some(row) = self.table.get(guid) else {
            return Err(self.not_ready());
        };
        match row.entity {
            EntityType::Host | EntityType::Unit => self.check_station_gone(row)?,
            _ if self.table.is_present(guid) => {
                return Err(error(
                    ErrorKind::Refused,
                    format!(
                        "{} is there: only what its unit no longer lists can be forgotten",
                        label(&self.table, guid)
                    ),
                ));
            }
            _ => {}
        }
        let rows: Vec<RowInfo> = self
            .table
            .below(guid)
            .into_iter()
            .filter_map(|guid| self.table.get(guid))
            .map(|row| report::row_info(&self.table, row))
            .collect();
        self.purge(&[guid]);
        self.journal.urgent = true;
        self.purges.forgotten.insert(token, rows);
        self.journal.waiters.push(Waiter::Forget(token));
        Ok(())
    }

    /// Whether a host or unit may be forgotten: it is no member, does not answer, owns nothing.
    fn check_station_gone(&self, row: &Row) -> Result<(), AdminError> {
        let name = label(&self.table, row.guid);
        let refuse = |why: String| Err(error(ErrorKind::Refused, why));
        if row.guid == self.config.guid {
            return refuse(format!("{name} is this host"));
        }
        let Some(members) = &self.members else {
            return refuse(format!(
                "fabric services have not said yet whether {name} is a member of this cluster \
                 (`rma status`); nothing was changed"
            ));
        };
        if members.contains_key(&row.guid) {
            return refuse(format!(
                "{name} is a member of this cluster; stop it, and take it out of the fabric \
                 services' database first (`rma fabric remove`)"
            ));
        }
        if self
            .station(row.guid)
            .is_some_and(super::members::Station::is_up)
        {
            return refuse(format!("{name} still answers; stop it first"));
        }
        let owned: Vec<String> = self
            .table
            .rows()
            .filter(|r| r.ownership.includes(row.guid))
            .map(|r| label(&self.table, r.guid))
            .collect();
        if !owned.is_empty() {
            let more = owned.len().saturating_sub(MAX_NAMED);
            let mut named = owned[..owned.len() - more].join(", ");
            if more > 0 {
                named.push_str(&format!(" and {more} more"));
            }
            return refuse(format!(
                "{name} still owns {named}; release them first (`rma release`)"
            ));
        }
        Ok(())
    }

    /// What was forgotten is durable, or (not `ok`) could not be stored.
    pub(super) fn forgotten(&mut self, token: u64, ok: bool) {
        let Some(rows) = self.purges.forgotten.remove(&token) else {
            return;
        };
        let reply = if ok {
            AdminReply::Forgotten(Box::new(ForgottenInfo { rows }))
        } else {
            AdminReply::Error(error(
                ErrorKind::NotPersisted,
                "the table could not be stored on this host (see the log of rmad); it is tried \
                 again every second, look with `rma crt show`",
            ))
        };
        self.reply(token, reply);
    }

    /// Another table has a larger floor: what ours has and it lacks was purged, or is heard of again
    /// from those who have it. What this host has itself seen to be there stays. `rows` are all of
    /// theirs within `extent`, by ascending GUID.
    pub(super) fn purged_elsewhere(
        &self,
        rows: &[Row],
        within: impl Fn(Guid) -> bool,
    ) -> Vec<Guid> {
        // A unit that answers here before fabric services do is as much there as what it lists: without it,
        // its controllers would be nobody's, and it would come back as if nobody had ever owned it.
        let seen = |row: &Row| {
            let listed = self.members.as_ref();
            let unit = self.table.unit_of(row.guid);
            let unit = unit.and_then(|unit| self.units.get(&unit));
            self.table.is_present(row.guid)
                && (listed.is_some_and(|members| members.contains_key(&row.guid))
                    || unit.is_some_and(super::units::Unit::is_explored))
        };
        self.table
            .rows()
            .filter(|row| row.guid != self.config.guid && within(row.guid) && !seen(row))
            .filter(|row| rows.binary_search_by_key(&row.guid, |r| r.guid).is_err())
            .map(|row| row.guid)
            .collect()
    }

    /// Members and units tell again what they told before: some of it was dropped.
    pub(super) fn hear_again(&mut self) {
        if let Some(members) = &self.members {
            let members: Vec<_> = members.values().cloned().collect();
            let guids: Vec<Guid> = members.iter().map(|m| m.guid).collect();
            self.mutate(guids, |table| table.observe_members(&members));
        }
        let units: Vec<Guid> = self.units.keys().copied().collect();
        for unit in units {
            self.ask_anew(unit);
        }
    }
}
