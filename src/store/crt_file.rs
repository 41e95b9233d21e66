//! The files of `docs/crt-format.md` on disk: a host's table, a unit's registers.

use std::path::Path;

use crate::crt::image::ImageInfo;
use crate::crt::{Table, Violation};
use crate::wire::message::OwnershipRegister;
use crate::wire::{ClusterName, Guid};

/// Why a file cannot be used. Its text is one line: which file, what is wrong, what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {}

/// A host's cluster resource table on disk, open for its one writer.
#[derive(Debug)]
pub struct CrtFile {}

impl CrtFile {
    /// Opens the table of host `owner`, or creates an empty one where there is no file. `cluster`
    /// NONE takes whatever cluster the file is of; a file of no cluster takes `cluster`.
    pub fn open(
        _path: &Path,
        _owner: Guid,
        _cluster: ClusterName,
    ) -> Result<(Self, Table), StoreError> {
        todo!()
    }

    /// The cluster that the file is of; none where that is not known yet.
    pub fn cluster(&self) -> ClusterName {
        todo!()
    }

    /// Makes the file one of `cluster`, with the next commit. Where it was one of another cluster,
    /// that commit should be a [`CrtFile::replace`].
    pub fn set_cluster(&mut self, _cluster: ClusterName) {
        todo!()
    }

    /// Makes the rows of `changed` as they are in `table` (those it lacks: gone), its settings and
    /// its stamps durable, all or nothing. After an error the file holds what it held before, and
    /// the same changes can be committed again.
    pub fn commit(&mut self, _table: &Table, _changed: &[Guid]) -> Result<(), StoreError> {
        todo!()
    }

    /// As [`CrtFile::commit`], of every row.
    pub fn replace(&mut self, _table: &Table) -> Result<(), StoreError> {
        todo!()
    }
}

/// A consistent reading of a table file, with or without a daemon that writes it.
#[derive(Debug)]
pub struct Snapshot {
    /// The table.
    pub table: Table,
    /// What the file says about itself.
    pub info: ImageInfo,
}

impl Snapshot {
    /// Reads the table file at `path` without a lock; while it changes, again.
    pub fn read(_path: &Path) -> Result<Self, StoreError> {
        todo!()
    }
}

/// A unit's ownership registers on disk, open for its one writer.
#[derive(Debug)]
pub struct RegistersFile {}

impl RegistersFile {
    /// Opens the registers of `unit`. On the first start ever (`first_start`) a missing file is
    /// created with no registers; later it is a loss: the registers are `None`, at this start and
    /// the following ones, until [`RegistersFile::store`] has restored some.
    pub fn open(
        _path: &Path,
        _unit: Guid,
        _first_start: bool,
    ) -> Result<(Self, Option<Vec<OwnershipRegister>>), StoreError> {
        todo!()
    }

    /// The highest term that was stored.
    pub fn term(&self) -> u64 {
        todo!()
    }

    /// Makes these registers (others stay as they are) and the term durable, all or nothing.
    pub fn store(
        &mut self,
        _registers: &[OwnershipRegister],
        _term: u64,
    ) -> Result<(), StoreError> {
        todo!()
    }
}

/// What [`verify`] found.
#[derive(Debug)]
pub struct Report {
    /// Rows that break the ownership hierarchy (I5).
    pub violations: Vec<Violation>,
    /// Rows whose parent is not in the table.
    pub orphans: Vec<Guid>,
}

/// Reads a table file whole and checks everything in it.
pub fn verify(_path: &Path) -> Result<Report, StoreError> {
    todo!()
}
