//! The fabric services' state machine: answers searches, registers hosts and units, hands out each
//! cluster's own list, takes unit ownership.

use super::catalog::{Catalog, CatalogError, Snapshot};
use crate::wire::{DropReason, Guid, Incarnation, Mac, Time};

/// What becomes of a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// It is pending until an administrator assigns a cluster.
    #[default]
    Pending,
    /// It joins the cluster that its configuration names; pending where that names none.
    AutoJoin,
}

/// What fabric services need to know.
#[derive(Debug, Clone)]
pub struct FabricConfig {
    /// Who we are.
    pub guid: Guid,
    /// Our incarnation.
    pub incarnation: Incarnation,
    /// What becomes of newcomers.
    pub policy: Policy,
    /// The most bytes of a frame behind its Ethernet header.
    pub mtu: u16,
}

/// Fabric services over a catalog.
#[derive(Debug)]
pub struct Fabric<C> {
    config: FabricConfig,
    catalog: C,
    state: Snapshot,
}

impl<C: Catalog> Fabric<C> {
    /// Fabric services that know what the catalog holds.
    pub fn new(config: FabricConfig, mut catalog: C, seed: u64) -> Result<Self, CatalogError> {
        let _ = seed;
        let state = catalog.load()?;
        Ok(Self {
            config,
            catalog,
            state,
        })
    }

    /// Takes a frame of the management EtherType.
    pub fn handle(&mut self, now: Time, src: Mac, frame: &[u8]) -> Result<(), DropReason> {
        let _ = (now, src, frame, &self.config, &self.catalog);
        Err(DropReason::Unexpected)
    }

    /// Does what time demands.
    pub fn tick(&mut self, now: Time) {
        let _ = now;
    }

    /// When [`Fabric::tick`] is due.
    pub fn deadline(&self) -> Option<Time> {
        None
    }

    /// Appends one frame to `out` and says where to; `None` where there is none.
    pub fn poll_transmit(&mut self, now: Time, out: &mut Vec<u8>) -> Option<Mac> {
        let _ = (now, out);
        None
    }

    /// The database as it is.
    pub fn snapshot(&self) -> &Snapshot {
        &self.state
    }

    /// The date and time for people that goes into the next changes.
    pub fn set_label(&mut self, label: &str) {
        let _ = label;
    }
}
