//! What has changed in the table and who waits for it to be durable: the bookkeeping of commits.
//! Knows no protocol.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::action::CommitToken;
use crate::wire::message::TableSummary;
use crate::wire::{CommandId, ConnectionId, Guid, Row};

/// The most changes that the log keeps; a peer that is further behind fetches the table.
pub(super) const MAX_LOG: usize = 8192;

/// Who waits for a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiter {
    /// A peer's offer: its answer.
    Offer(ConnectionId, CommandId),
    /// An allocation.
    Allocation(u64),
    /// An administrator's change of the granularity, by the token of the request.
    Granularity(u64),
    /// An administrator's rows to forget, by the token of the request.
    Forget(u64),
    /// Block 525.
    Boot,
}

/// A commit that the shell is at.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) token: CommitToken,
    pub(super) rows: BTreeSet<Guid>,
    pub(super) summary: TableSummary,
    pub(super) waiters: Vec<Waiter>,
    /// The version is our own: others must hear of it.
    pub(super) published: bool,
    /// An administrator waits for others to hear of it.
    pub(super) urgent: bool,
}

/// Changes, commits, and the log of what changed when.
#[derive(Debug)]
pub(super) struct Journal {
    /// Rows that changed since the last commit began.
    pub(super) rows: BTreeSet<Guid>,
    /// Something changed since the last commit began: rows, settings or the stamp.
    pub(super) dirty: bool,
    /// The content changed here and has no stamp of its own yet.
    pub(super) unpublished: bool,
    /// The next version is our own.
    pub(super) published: bool,
    /// An administrator waits for the next version to reach others.
    pub(super) urgent: bool,
    /// Who waits for the next commit.
    pub(super) waiters: Vec<Waiter>,
    /// The commit that the shell is at.
    pub(super) commit: Option<Commit>,
    /// The table as it is durable.
    pub(super) durable: TableSummary,
    /// How rows that changed since the last commit ended looked before, as far as it is told;
    /// `None`: they were not there.
    pub(super) before: BTreeMap<Guid, Option<Arc<Row>>>,
    log: VecDeque<Guid>,
    /// How many changes there have been; the log holds the last ones.
    count: u64,
    /// Up to which position equal rows of other agents have been shared.
    shared: u64,
    next_token: u64,
}

impl Journal {
    pub(super) fn new(durable: TableSummary) -> Self {
        Self {
            rows: BTreeSet::new(),
            dirty: false,
            unpublished: false,
            published: false,
            urgent: false,
            waiters: Vec::new(),
            commit: None,
            durable,
            before: BTreeMap::new(),
            log: VecDeque::new(),
            count: 0,
            shared: 0,
            next_token: 1,
        }
    }

    /// Whether everything is durable.
    pub(super) const fn is_clean(&self) -> bool {
        !self.dirty && self.commit.is_none()
    }

    /// Notes changed rows (NIL stands for the settings).
    pub(super) fn note(&mut self, rows: &[Guid]) {
        self.dirty = true;
        for guid in rows {
            self.count += 1;
            self.log.push_back(*guid);
            if !guid.is_nil() {
                self.rows.insert(*guid);
            }
        }
        let excess = self.log.len().saturating_sub(MAX_LOG);
        self.log.drain(..excess);
    }

    /// The position after the last change.
    pub(super) const fn position(&self) -> u64 {
        self.count
    }

    /// The rows that changed after a position; `None` where the log does not go back so far.
    pub(super) fn since(&self, position: u64) -> Option<BTreeSet<Guid>> {
        let behind = usize::try_from(self.count.checked_sub(position)?).ok()?;
        let skip = self.log.len().checked_sub(behind)?;
        Some(
            self.log
                .iter()
                .skip(skip)
                .copied()
                .filter(|guid| !guid.is_nil())
                .collect(),
        )
    }

    /// The position at the last call, where rows have changed since.
    pub(super) fn take_unshared(&mut self) -> Option<u64> {
        let from = std::mem::replace(&mut self.shared, self.count);
        (from != self.count).then_some(from)
    }

    /// Begins a commit of what there is.
    pub(super) fn begin(&mut self, summary: TableSummary) -> &Commit {
        let token = CommitToken(self.next_token);
        self.next_token += 1;
        self.dirty = false;
        self.commit.insert(Commit {
            token,
            rows: std::mem::take(&mut self.rows),
            summary,
            waiters: std::mem::take(&mut self.waiters),
            published: std::mem::take(&mut self.published),
            urgent: std::mem::take(&mut self.urgent),
        })
    }

    /// Takes the commit back that the shell could not make; its waiters are given back.
    pub(super) fn undo(&mut self, commit: Commit) -> Vec<Waiter> {
        self.dirty = true;
        self.rows.extend(commit.rows);
        self.published |= commit.published;
        self.urgent |= commit.urgent;
        commit.waiters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crt::Table;

    #[test]
    fn the_log_tells_what_a_peer_has_missed_or_that_it_cannot() {
        let mut journal = Journal::new(Table::new().summary());
        journal.note(&[Guid(1), Guid(2)]);
        let there = journal.position();
        journal.note(&[Guid(2), Guid::NIL, Guid(3)]);
        let missed = journal.since(there).unwrap();
        assert_eq!(missed, BTreeSet::from([Guid(2), Guid(3)]));
        assert_eq!(journal.since(journal.position()).unwrap().len(), 0);
        for n in 0..MAX_LOG as u128 {
            journal.note(&[Guid(n + 1)]);
        }
        assert_eq!(journal.since(there), None);
        assert_eq!(journal.since(journal.position() + 1), None);
        assert_eq!(journal.log.len(), MAX_LOG);
    }

    #[test]
    fn a_commit_that_fails_is_made_again_with_what_came_after() {
        let mut journal = Journal::new(Table::new().summary());
        journal.note(&[Guid(1)]);
        journal.waiters.push(Waiter::Boot);
        journal.published = true;
        let first = journal.begin(Table::new().summary()).token;
        journal.note(&[Guid(2)]);
        assert!(!journal.is_clean());
        let commit = journal.commit.take().unwrap();
        assert_eq!(commit.token, first);
        assert_eq!(journal.undo(commit), [Waiter::Boot]);
        let second = journal.begin(Table::new().summary());
        assert_eq!(second.rows, BTreeSet::from([Guid(1), Guid(2)]));
        assert!(second.published && second.token > first);
        assert!(!journal.dirty);
    }
}
