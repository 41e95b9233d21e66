//! The central source: fabric services keep each cluster's whole table (Figs. 3 and 4), tell it to
//! the cluster's hosts, and join what they offer, as a host's RMA would.
//!
//! Only member hosts ask and offer, each of its own cluster. What is told is durable; what hosts
//! have offered together is one transaction for each cluster.

use std::collections::{BTreeMap, BTreeSet};

use super::catalog::Catalog;
use super::deposits::{Deposits, Piece};
use super::keeping::{self, Extent, Received};
use super::report::FabricEvent;
use super::requests::Asked;
use super::service::Fabric;
use crate::crt::{MAX_ROWS, Table, TableChange};
use crate::wire::message::{
    Deposit, Offer, TableDigestsReply, TableDigestsRequest, TableRowsReply, TableRowsRequest,
    TableSummary,
};
use crate::wire::{ClusterName, CommandId, ConnectionId, EntityType, Kind, Status, Time, Wire};

/// The most rows that are kept, all clusters together; offers that would go beyond are answered busy.
pub const MAX_KEPT_ROWS: usize = 262_144;
/// The most bytes of rows in one page.
pub const TABLE_PAGE_BYTES: usize = 256 << 10;

const _: () = assert!(MAX_KEPT_ROWS >= 2 * MAX_ROWS);

/// The tables, and deposits on their way.
#[derive(Debug, Default)]
pub(super) struct Central {
    pub(super) tables: BTreeMap<ClusterName, Table>,
    pub(super) deposits: Deposits,
}

impl Central {
    fn row_count(&self) -> usize {
        self.tables.values().map(Table::len).sum()
    }
}

/// Whether a request is about a cluster's table.
pub(super) const fn is_about_table(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::TableStamp | Kind::TableDigests | Kind::TableRows | Kind::Offer | Kind::Deposit
    )
}

/// A host's table for us to join, and who is to be answered.
type Given = (ConnectionId, CommandId, Received);

impl<C: Catalog> Fabric<C> {
    /// Executes requests about tables: first what is given, then what is asked.
    pub(super) fn serve_tables(&mut self, now: Time, requests: Vec<Asked>) {
        let mut given: BTreeMap<ClusterName, Vec<Given>> = BTreeMap::new();
        let mut asked = Vec::new();
        for request in requests {
            let (connection, command) = (request.connection, request.command);
            let cluster = match self.table_of(&request) {
                Ok(cluster) => cluster,
                Err(status) => {
                    self.refuse(now, connection, command, status);
                    continue;
                }
            };
            match self.receive(now, cluster, &request) {
                Ok(Some(received)) => {
                    let all = given.entry(cluster).or_default();
                    all.push((connection, command, received));
                }
                Ok(None) => asked.push((cluster, request)),
                Err(status) => self.refuse_table(now, connection, command, status),
            }
        }
        for (cluster, all) in given {
            self.take_tables(now, cluster, all);
        }
        for (cluster, request) in asked {
            let (connection, command) = (request.connection, request.command);
            match self.tell_table(cluster, &request) {
                Ok(body) => self
                    .server
                    .reply(now, connection, command, Status::Ok, body),
                Err(status) => self.refuse_table(now, connection, command, status),
            }
        }
    }

    fn refuse_table(
        &mut self,
        now: Time,
        connection: ConnectionId,
        command: CommandId,
        status: Status,
    ) {
        self.counters.tables_refused += 1;
        self.refuse(now, connection, command, status);
    }

    /// The cluster whose table the asker has to do with: the one that it was told it belongs to.
    fn table_of(&self, asked: &Asked) -> Result<ClusterName, Status> {
        let seat = self.presence.seat(asked.connection);
        let seat = seat.ok_or(Status::NotReady)?;
        let entity = self.directory.get(asked.peer).ok_or(Status::Pending)?;
        if entity.is_pending() || !seat.registered {
            return Err(Status::Pending);
        }
        if seat.told != entity.assigned {
            return Err(Status::WrongCluster);
        }
        if entity.entity != EntityType::Host {
            return Err(Status::Unsupported);
        }
        Ok(entity.assigned)
    }

    /// What a request gives; `None` where it asks for something, or is a piece with more to come.
    fn receive(
        &mut self,
        now: Time,
        cluster: ClusterName,
        asked: &Asked,
    ) -> Result<Option<Received>, Status> {
        match asked.kind {
            Kind::Offer => {
                let offer = Offer::from_body(&asked.body).map_err(|_| Status::BadRequest)?;
                Ok(Some(Received {
                    summary: offer.summary,
                    settings: offer.settings,
                    rows: offer.rows,
                    extent: Extent::Offered,
                }))
            }
            Kind::Deposit => {
                let deposit = Deposit::from_body(&asked.body).map_err(|_| Status::BadRequest)?;
                let deposits = &mut self.central.deposits;
                match deposits.take(now, cluster, asked.connection, deposit)? {
                    Piece::Kept => Ok(None),
                    Piece::Last(received, base) => {
                        let digest = self.kept(cluster).digest();
                        if received.extent != Extent::Whole && digest != base {
                            return Err(Status::BeginAgain);
                        }
                        Ok(Some(*received))
                    }
                }
            }
            _ => Ok(None),
        }
    }

    /// The table of a cluster, an empty one where none is kept.
    fn kept(&self, cluster: ClusterName) -> Table {
        let kept = self.central.tables.get(&cluster);
        kept.cloned().unwrap_or_default()
    }

    /// Joins what hosts have given of their tables, makes it durable, and answers.
    fn take_tables(&mut self, now: Time, cluster: ClusterName, all: Vec<Given>) {
        let before = self.central.tables.get(&cluster).map(Table::summary);
        let mut table = self.kept(cluster);
        let others = self.central.row_count() - table.len();
        let mut changed = BTreeSet::new();
        let mut waiting = Vec::new();
        for (connection, command, received) in all {
            let fresh = received
                .rows
                .iter()
                .filter(|row| table.get(row.guid).is_none());
            let room = others + table.len() + fresh.count() <= MAX_KEPT_ROWS;
            let checked = keeping::check(&table, &received.summary);
            match checked.and(room.then_some(()).ok_or(Status::Busy)) {
                Ok(()) if received.is_known(&table) => {}
                Ok(()) => {
                    changed.extend(keeping::take_in(&mut table, self.config.guid, received));
                }
                Err(status) => {
                    self.refuse_table(now, connection, command, status);
                    continue;
                }
            }
            waiting.push((connection, command));
        }
        let summary = table.summary();
        if before != Some(summary) && (before.is_some() || !table.is_empty()) {
            let changed: Vec<_> = changed.into_iter().collect();
            let change = TableChange::of(&table, &changed);
            let label = self.directory.label().to_owned();
            let catalog = self.directory.catalog_mut();
            if let Err(error) = catalog.commit_table(cluster, &change, &label) {
                self.counters.failed_commits += 1;
                self.event(FabricEvent::NotPersisted(error));
                for (connection, command) in waiting {
                    self.refuse_table(now, connection, command, Status::NotPersisted);
                }
                return;
            }
            self.counters.commits += 1;
            if before.is_none() {
                self.event(FabricEvent::TableKept { cluster, summary });
            }
            self.central.tables.insert(cluster, table);
        }
        for (connection, command) in waiting {
            self.counters.tables_taken += 1;
            self.server
                .reply(now, connection, command, Status::Ok, summary.to_body());
        }
    }

    /// Answers what is asked of a cluster's table.
    fn tell_table(&mut self, cluster: ClusterName, asked: &Asked) -> Result<Vec<u8>, Status> {
        let empty = Table::new();
        let table = self.central.tables.get(&cluster).unwrap_or(&empty);
        let (summary, settings) = (table.summary(), *table.settings());
        let body = match asked.kind {
            Kind::TableStamp if !asked.body.is_empty() => {
                // A peer would compare; here an offer says what is to be kept.
                TableSummary::from_body(&asked.body).map_err(|_| Status::BadRequest)?;
                summary.to_body()
            }
            Kind::TableDigests => {
                let request =
                    TableDigestsRequest::from_body(&asked.body).map_err(|_| Status::BadRequest)?;
                TableDigestsReply {
                    summary,
                    settings,
                    digests: table.part_digests(&request),
                }
                .to_body()
            }
            Kind::TableRows => {
                let TableRowsRequest { after, parts } =
                    TableRowsRequest::from_body(&asked.body).map_err(|_| Status::BadRequest)?;
                let (rows, more) = table.rows_after(after, &parts, TABLE_PAGE_BYTES);
                TableRowsReply {
                    summary,
                    settings,
                    more,
                    rows,
                }
                .to_body()
            }
            // A piece of a deposit is answered so as well.
            _ => summary.to_body(),
        };
        self.counters.tables_told += 1;
        Ok(body)
    }

    /// The tables of clusters without a member are no longer kept; the catalog has let go of them.
    pub(super) fn drop_tables(&mut self, clusters: &BTreeSet<ClusterName>) {
        for cluster in clusters {
            if self.directory.member_count(*cluster) == 0
                && self.central.tables.remove(cluster).is_some()
            {
                self.event(FabricEvent::TableDropped { cluster: *cluster });
            }
        }
    }

    /// The tables that are kept, by cluster.
    pub fn tables(&self) -> impl Iterator<Item = (ClusterName, &Table)> + '_ {
        self.central
            .tables
            .iter()
            .map(|(name, table)| (*name, table))
    }
}
