//! A catalog in memory, for simulations and tests: as durable as whoever keeps it.

use super::catalog::{Catalog, CatalogError, Change, Snapshot};

/// A catalog in memory that can be told to fail.
#[derive(Debug, Clone, Default)]
pub struct MemoryCatalog {
    state: Snapshot,
    failing: bool,
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
}

impl Catalog for MemoryCatalog {
    fn load(&mut self) -> Result<Snapshot, CatalogError> {
        Ok(self.state.clone())
    }

    fn commit(&mut self, change: &Change) -> Result<(), CatalogError> {
        if self.failing {
            return Err(CatalogError::Storage(Box::new(ToldToFail)));
        }
        self.state.apply(change)
    }
}
