//! Deposits on their way: pieces of tables that hosts give fabric services to keep, until the last
//! one has come. Bounded, whoever sends what.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::keeping::{Extent, Received};
use crate::wire::message::{Deposit, TableSummary};
use crate::wire::{ClusterName, ConnectionId, Row, Settings, Status, Time};

/// The most rows of unfinished deposits, all clusters together; a piece beyond it is answered busy.
pub const MAX_STAGED_ROWS: usize = 131_072;
/// How long a deposit that has stalled keeps others of its cluster waiting.
pub const DEPOSIT_PATIENCE: Duration = Duration::from_secs(5);

/// A deposit whose last piece has not come.
#[derive(Debug)]
struct Staged {
    connection: ConnectionId,
    summary: TableSummary,
    settings: Settings,
    base: u128,
    level: u8,
    numbers: BTreeSet<u16>,
    rows: Vec<Row>,
    next: u32,
    at: Time,
}

/// Unfinished deposits; of each cluster at most one.
#[derive(Debug, Default)]
pub(super) struct Deposits(BTreeMap<ClusterName, Staged>);

/// What has become of a piece.
#[derive(Debug)]
pub(super) enum Piece {
    /// More follow.
    Kept,
    /// It was the last: the whole deposit, and the digest that it builds on.
    Last(Box<Received>, u128),
}

impl Deposits {
    /// Takes a piece.
    pub(super) fn take(
        &mut self,
        now: Time,
        cluster: ClusterName,
        connection: ConnectionId,
        deposit: Deposit,
    ) -> Result<Piece, Status> {
        let others: usize = self.0.values().map(|staged| staged.rows.len()).sum();
        if others + deposit.rows.len() > MAX_STAGED_ROWS {
            self.forget(cluster, connection);
            return Err(Status::Busy);
        }
        let ours = |staged: &Staged| staged.connection == connection;
        let mut staged = match self.0.remove(&cluster) {
            Some(staged) if ours(&staged) && deposit.piece > 0 => staged,
            Some(staged) if !ours(&staged) && now.since(staged.at) < DEPOSIT_PATIENCE => {
                self.0.insert(cluster, staged);
                return Err(Status::Busy);
            }
            _ if deposit.piece > 0 => return Err(Status::BeginAgain),
            _ => Staged::new(now, connection, &deposit),
        };
        let more = deposit.more;
        staged.add(now, deposit)?;
        if more {
            self.0.insert(cluster, staged);
            return Ok(Piece::Kept);
        }
        let base = staged.base;
        Ok(Piece::Last(Box::new(staged.finish()), base))
    }

    /// A connection was closed: what it had begun will not be finished.
    pub(super) fn close(&mut self, connection: ConnectionId) {
        self.0.retain(|_, staged| staged.connection != connection);
    }

    fn forget(&mut self, cluster: ClusterName, connection: ConnectionId) {
        if self
            .0
            .get(&cluster)
            .is_some_and(|s| s.connection == connection)
        {
            self.0.remove(&cluster);
        }
    }
}

impl Staged {
    fn new(now: Time, connection: ConnectionId, first: &Deposit) -> Self {
        Self {
            connection,
            summary: first.summary,
            settings: first.settings,
            base: first.base,
            level: first.parts.level,
            numbers: BTreeSet::new(),
            rows: Vec::new(),
            next: 0,
            at: now,
        }
    }

    fn add(&mut self, now: Time, deposit: Deposit) -> Result<(), Status> {
        let goes_on = (self.summary, self.settings, self.base)
            == (deposit.summary, deposit.settings, deposit.base)
            && (self.level, self.next) == (deposit.parts.level, deposit.piece);
        if !goes_on {
            return Err(Status::BeginAgain);
        }
        let parts = &deposit.parts;
        let within = deposit.rows.iter().all(|row| parts.contain(row.guid));
        let fresh = parts.numbers.iter().all(|n| self.numbers.insert(*n));
        if !within || !fresh {
            return Err(Status::BadRequest);
        }
        self.rows.extend(deposit.rows);
        self.next = self.next.saturating_add(1);
        self.at = now;
        Ok(())
    }

    fn finish(mut self) -> Received {
        // Parts do not overlap, so no row is there twice.
        self.rows.sort_by_key(|row| row.guid);
        let all = 1_usize << (4 * self.level);
        let extent = if self.numbers.len() == all {
            Extent::Whole
        } else {
            Extent::Parts(self.level, self.numbers)
        };
        Received {
            summary: self.summary,
            settings: self.settings,
            rows: self.rows,
            extent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crt::Table;
    use crate::wire::message::Parts;
    use crate::wire::{EntityType, Guid};

    const CONNECTION: ConnectionId = ConnectionId(1);
    const OTHER: ConnectionId = ConnectionId(2);

    fn cluster() -> ClusterName {
        "A".parse().unwrap()
    }

    fn piece(number: u32, more: bool, numbers: &[u16], rows: &[u128]) -> Deposit {
        Deposit {
            summary: Table::new().summary(),
            settings: Settings::default(),
            base: 7,
            piece: number,
            more,
            parts: Parts {
                level: 1,
                numbers: numbers.to_vec(),
            },
            rows: rows
                .iter()
                .map(|guid| Row::new(Guid(*guid), EntityType::Host))
                .collect(),
        }
    }

    fn in_part(number: u16, count: usize) -> Vec<u128> {
        (1..)
            .filter(|guid| Parts::number_of(1, Guid(*guid)) == number)
            .take(count)
            .collect()
    }

    #[test]
    fn pieces_make_a_deposit() {
        let mut deposits = Deposits::default();
        let mut take = |connection, deposit| {
            let now = Time::ZERO;
            deposits.take(now, cluster(), connection, deposit)
        };
        let first = piece(0, true, &[1, 2], &in_part(1, 3));
        assert!(matches!(take(CONNECTION, first.clone()), Ok(Piece::Kept)));
        assert_eq!(take(OTHER, first).err(), Some(Status::Busy));
        let second = piece(1, false, &[5], &in_part(5, 2));
        let Ok(Piece::Last(received, base)) = take(CONNECTION, second.clone()) else {
            panic!("it was the last");
        };
        assert_eq!((received.rows.len(), base), (5, 7));
        assert!(received.rows.is_sorted_by_key(|row| row.guid));
        assert_eq!(received.extent, Extent::Parts(1, [1, 2, 5].into()));
        // There is nothing that it could go on with.
        assert_eq!(take(CONNECTION, second).err(), Some(Status::BeginAgain));
        let all: Vec<u16> = (0..16).collect();
        let Ok(Piece::Last(received, _)) = take(OTHER, piece(0, false, &all, &[])) else {
            panic!("it is whole");
        };
        assert_eq!(received.extent, Extent::Whole);
    }

    #[test]
    fn what_does_not_go_on_is_refused_and_forgotten() {
        let begun = || {
            let mut deposits = Deposits::default();
            let first = piece(0, true, &[1], &in_part(1, 2));
            let taken = deposits.take(Time::ZERO, cluster(), CONNECTION, first);
            assert!(taken.is_ok());
            deposits
        };
        let other_base = Deposit {
            base: 8,
            ..piece(1, false, &[2], &[])
        };
        for (wrong, status) in [
            (piece(2, false, &[2], &[]), Status::BeginAgain),
            (other_base, Status::BeginAgain),
            (piece(1, false, &[1], &[]), Status::BadRequest),
            (piece(1, false, &[2], &in_part(3, 1)), Status::BadRequest),
        ] {
            let mut deposits = begun();
            let taken = deposits.take(Time::ZERO, cluster(), CONNECTION, wrong);
            assert_eq!(taken.err(), Some(status));
            assert!(deposits.0.is_empty());
        }
        let mut deposits = begun();
        deposits.close(OTHER);
        assert_eq!(deposits.0.len(), 1);
        deposits.close(CONNECTION);
        assert!(deposits.0.is_empty());
        // One that has stalled gives way.
        let mut deposits = begun();
        let later = Time::ZERO + DEPOSIT_PATIENCE;
        let first = piece(0, true, &[1], &[]);
        assert!(deposits.take(later, cluster(), OTHER, first).is_ok());
    }

    #[test]
    fn only_so_many_rows_wait() {
        let mut deposits = Deposits::default();
        let rows = in_part(1, 1024);
        let mut number = 0;
        let status = loop {
            let mut next = piece(number, true, &[], &rows);
            next.parts = Parts {
                level: 1,
                numbers: vec![1],
            };
            // Every piece names the part anew, in a cluster of its own.
            let name = format!("c{number}").parse().unwrap();
            next.piece = 0;
            number += 1;
            if let Err(status) = deposits.take(Time::ZERO, name, CONNECTION, next) {
                break status;
            }
        };
        assert_eq!(status, Status::Busy);
        let staged: usize = deposits.0.values().map(|s| s.rows.len()).sum();
        assert_eq!(staged, MAX_STAGED_ROWS);
    }
}
