//! Changes of the table on their way to the disk: what is stored when, and who hears of it then.
//! Nothing that depends on a commit leaves before the commit is done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::action::{AgentAction, CommitToken, OwnedDevice};
use super::agent::Agent;
use super::journal::Waiter;
use super::report;
use super::request::WatchEvent;
use super::timers::Timer;
use crate::crt::Table;
use crate::planted::{self, Bug};
use crate::wire::{EntityType, Guid, ObservationStamp, OwnershipStamp, Row, Status, Time};

/// The most rows whose changes by one commit are told one by one.
const MAX_ROW_EVENTS: usize = 1024;
/// With more rows changed, all rows that the host owns are looked at anew.
const FEW_ROWS: usize = 64;
/// How long a failed commit rests.
const COMMIT_RETRY: Duration = Duration::from_secs(1);

impl Agent {
    /// Changes the table and notes what changed. `candidates` are the rows that may change; how
    /// they look before is remembered for the events.
    pub(super) fn mutate(
        &mut self,
        candidates: impl IntoIterator<Item = Guid>,
        change: impl FnOnce(&mut Table) -> Vec<Guid>,
    ) -> Vec<Guid> {
        let room = MAX_ROW_EVENTS.saturating_sub(self.journal.before.len());
        let before: Vec<(Guid, Option<Arc<Row>>)> = candidates
            .into_iter()
            .filter(|_| room > 0)
            .filter(|guid| !self.journal.before.contains_key(guid))
            .map(|guid| (guid, self.table.get_shared(guid)))
            .collect();
        let changed = change(&mut self.table);
        for (guid, row) in before {
            let room = self.journal.before.len() < MAX_ROW_EVENTS;
            if room && changed.binary_search(&guid).is_ok() {
                self.journal.before.entry(guid).or_insert(row);
            }
        }
        if !changed.is_empty() {
            self.journal.note(&changed);
            self.journal.unpublished = true;
        }
        changed
    }

    /// Asks the shell to store what has changed, unless it is at it already. In Fig. 5 that has
    /// its time at block 525, except where somebody waits for it.
    pub(super) fn seal(&mut self, now: Time) {
        let journal = &self.journal;
        let wanted = !journal.waiters.is_empty() || !self.deferred.is_empty();
        let held = self.boot.holds_commits() && !wanted;
        if journal.commit.is_some() || held || self.timers.is_set(Timer::Commit) {
            return;
        }
        if !journal.dirty {
            // What was waited for is durable already.
            let waiters = std::mem::take(&mut self.journal.waiters);
            self.release(now, waiters);
            return;
        }
        if self.journal.unpublished {
            self.table.publish(self.lease.term(), self.config.guid);
            self.journal.unpublished = false;
            self.journal.published = true;
        }
        let commit = self.journal.begin(self.table.summary());
        let action = AgentAction::Commit {
            token: commit.token,
            changed: commit.rows.iter().copied().collect(),
        };
        self.act(action);
    }

    /// A commit is done (`ok`: it is durable) or has failed (it is asked for again later).
    pub fn committed(&mut self, now: Time, token: CommitToken, ok: bool) {
        let Some(commit) = self.journal.commit.take_if(|c| c.token == token) else {
            return;
        };
        if !ok && !planted::is(Bug::FailedCommitTaken) {
            let waiters = self.journal.undo(commit);
            self.timers.set(Timer::Commit, now + COMMIT_RETRY);
            self.disappoint(now, waiters);
            self.pump(now);
            return;
        }
        self.journal.durable = commit.summary;
        self.announce();
        self.refresh_exports(&commit.rows);
        let news = commit.published;
        self.release(now, commit.waiters);
        if news && self.boot.is_steady() {
            if commit.urgent {
                self.push(now);
            } else {
                self.push_soon(now);
            }
        }
        self.serve_deferred(now);
        self.offer_pending(now);
        self.pump(now);
    }

    /// Answers those who waited for a commit.
    fn release(&mut self, now: Time, waiters: Vec<Waiter>) {
        for waiter in waiters {
            match waiter {
                Waiter::Offer(connection, command) => {
                    self.answer_summary(now, connection, command);
                }
                Waiter::Allocation(id) => self.allocation_stored(now, id),
                Waiter::Granularity(token) => self.settle_stored(now, token),
                Waiter::Forget(token) => self.forgotten(token, true),
                Waiter::Boot => self.boot_stored(now),
            }
        }
    }

    /// Tells those who waited for a commit that it failed.
    fn disappoint(&mut self, now: Time, waiters: Vec<Waiter>) {
        for waiter in waiters {
            match waiter {
                Waiter::Offer(connection, command) => {
                    self.refuse(now, connection, command, Status::NotPersisted);
                }
                Waiter::Allocation(id) => self.allocation_not_stored(now, id),
                Waiter::Granularity(token) => self.settle_not_stored(now, token),
                Waiter::Forget(token) => self.forgotten(token, false),
                // The boot waits until it is stored.
                Waiter::Boot => self.journal.waiters.push(Waiter::Boot),
            }
        }
    }

    /// Tells those who watch how rows that are durable now differ from before.
    fn announce(&mut self) {
        // What has changed again meanwhile is told when that is durable.
        let rows = &self.journal.rows;
        let before = std::mem::take(&mut self.journal.before);
        let (again, told): (BTreeMap<_, _>, BTreeMap<_, _>) = before
            .into_iter()
            .partition(|(guid, _)| rows.contains(guid));
        self.journal.before = again;
        for (guid, row) in told {
            if let Some(event) = self.row_event(guid, row.as_deref()) {
                self.tell(event);
            }
        }
    }

    fn row_event(&self, guid: Guid, before: Option<&Row>) -> Option<WatchEvent> {
        let table = &self.table;
        let info = |row: &Row| Box::new(report::row_info(table, row));
        let Some(after) = table.get(guid) else {
            return before.map(|row| WatchEvent::Forgotten { row: info(row) });
        };
        let Some(before) = before else {
            return Some(WatchEvent::Added { row: info(after) });
        };
        if before.ownership != after.ownership {
            return Some(WatchEvent::OwnershipChanged {
                row: info(after),
                before: report::ownership_info(table, &before.ownership),
                after: report::ownership_info(table, &after.ownership),
            });
        }
        match (before.is_valid(), after.is_valid()) {
            (true, false) => return Some(WatchEvent::Removed { row: info(after) }),
            (false, true) => return Some(WatchEvent::Added { row: info(after) }),
            _ => {}
        }
        let plain = |row: &Row| Row {
            observed: ObservationStamp::default(),
            owned: OwnershipStamp::default(),
            ..row.clone()
        };
        (plain(before) != plain(after)).then(|| WatchEvent::Changed {
            before: info(before),
            after: info(after),
        })
    }

    /// Brings the owned devices up to date after these rows have changed, and tells the shell.
    pub(super) fn refresh_exports(&mut self, rows: &BTreeSet<Guid>) {
        if !self.boot.has_stored() {
            return;
        }
        let mut changed = !self.exported;
        let mut devices = BTreeSet::new();
        let few = self.exported && rows.len() <= FEW_ROWS;
        if !few {
            // Quicker than to look at what is above and below of each of very many.
            let own = self.config.guid;
            let owned = self.table.rows().filter(|row| row.ownership.includes(own));
            devices.extend(owned.map(|row| row.guid).chain(self.owned.keys().copied()));
        }
        for guid in rows.iter().copied().filter(|_| few) {
            // Of what is below, and of an extent's device: it may have become whole, or be no more.
            let extent = |row: &&Row| row.entity == EntityType::Extent;
            devices.extend(self.table.get(guid).filter(extent).map(|row| row.parent));
            let mut next = vec![guid];
            while let Some(at) = next.pop() {
                if devices.insert(at) || at == guid {
                    next.extend(self.table.children(at).map(|row| row.guid));
                }
            }
        }
        for guid in devices {
            let now = self.owned_device(guid);
            if self.owned.get(&guid) != now.as_ref() {
                changed = true;
                match now {
                    Some(device) => self.owned.insert(guid, device),
                    None => self.owned.remove(&guid),
                };
            }
        }
        self.exported = true;
        if changed {
            let all = self.owned.values().cloned().collect();
            self.act(AgentAction::Export(all));
        }
    }

    fn owned_device(&self, guid: Guid) -> Option<OwnedDevice> {
        let known = self.table.get(guid)?;
        let device = match known.entity {
            EntityType::Device if !self.table.is_carved(guid) => known,
            EntityType::Extent => self.table.parent(guid)?,
            _ => return None,
        };
        if !known.ownership.includes(self.config.guid) || !self.table.is_present(guid) {
            return None;
        }
        let unit = self.table.get(self.table.unit_of(guid)?)?;
        let controller = self.table.get(device.parent)?;
        let mut row = known.clone();
        if row.entity == EntityType::Extent {
            row.vendor.clone_from(&device.vendor);
            row.model.clone_from(&device.model);
        }
        Some(OwnedDevice {
            unit: unit.guid,
            unit_name: unit.name.clone(),
            controller_name: controller.name.clone(),
            unit_macs: unit.macs.clone(),
            epoch: row.owned.epoch,
            row,
        })
    }
}
