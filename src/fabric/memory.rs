//! A catalog in memory, for simulations and tests: as durable as whoever keeps it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::catalog::{Catalog, CatalogError, Change, Snapshot};
use crate::crt::{Table, TableChange, stored_table};
use crate::wire::{ClusterName, DecodeError, Guid, Row, Wire};

/// A catalog in memory that can be told to fail.
#[derive(Debug, Clone, Default)]
pub struct MemoryCatalog {
    state: Snapshot,
    tables: BTreeMap<ClusterName, Kept>,
    failing: bool,
}

/// A cluster's table, as it would be on a disk.
#[derive(Debug, Clone, Default)]
struct Kept {
    meta: Vec<u8>,
    rows: BTreeMap<Guid, Vec<u8>>,
}

/// The error of a [`MemoryCatalog`] that was told to fail.
#[derive(Debug, thiserror::Error)]
#[error("told to fail")]
struct ToldToFail;

impl MemoryCatalog {
    /// An empty catalog.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether every commit from now on fails.
    pub fn set_failing(&mut self, failing: bool) {
        self.failing = failing;
    }

    /// The clusters' tables are lost.
    pub fn lose_tables(&mut self) {
        self.tables.clear();
    }

    /// The clusters' tables are those of another, older copy.
    pub fn take_tables_of(&mut self, other: &Self) {
        self.tables.clone_from(&other.tables);
    }

    fn check(&self) -> Result<(), CatalogError> {
        if self.failing {
            return Err(CatalogError::Storage(Box::new(ToldToFail)));
        }
        Ok(())
    }
}

impl Kept {
    fn table(&self) -> Result<Table, DecodeError> {
        let rows = self.rows.values();
        let rows: Vec<Arc<Row>> = rows
            .map(|row| Row::from_body(row).map(Arc::new))
            .collect::<Result<_, _>>()?;
        stored_table(&self.meta, rows)
    }
}

impl Catalog for MemoryCatalog {
    fn load(&mut self) -> Result<Snapshot, CatalogError> {
        Ok(self.state.clone())
    }

    fn commit(&mut self, change: &Change) -> Result<(), CatalogError> {
        self.check()?;
        self.state.apply(change)?;
        for cluster in &change.emptied {
            self.tables.remove(cluster);
        }
        Ok(())
    }

    fn load_tables(&mut self) -> Result<BTreeMap<ClusterName, Table>, CatalogError> {
        let tables = self.tables.iter();
        tables
            .map(|(cluster, kept)| Ok((*cluster, kept.table()?)))
            .collect::<Result<_, DecodeError>>()
            .map_err(|e| CatalogError::Storage(Box::new(e)))
    }

    fn commit_table(
        &mut self,
        cluster: ClusterName,
        change: &TableChange,
        _label: &str,
    ) -> Result<(), CatalogError> {
        self.check()?;
        let kept = self.tables.entry(cluster).or_default();
        kept.meta = change.meta().to_vec();
        for (guid, row) in change.records() {
            match row {
                Some(row) => kept.rows.insert(guid, row.to_vec()),
                None => kept.rows.remove(&guid),
            };
        }
        Ok(())
    }
}
