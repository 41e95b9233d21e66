//! What is on the disks of hosts and units: what it must be, and (where a world wants that) the
//! daemons' own files in which it lies, on simulated disks.

use std::collections::BTreeMap;
use std::sync::Arc;

use rma::crt::{RegistersChange, RegistersImage, Table, TableImage};
use rma::lease::{StoredVote, VoteImage};
use rma::unit::StoredRegisters;
use rma::wire::{ClusterName, Guid, Row, Settings, TableStamp};

use crate::disk::File;

/// A table file as it must be.
#[derive(Debug, Clone)]
pub struct StoredTable {
    /// The rows.
    pub rows: BTreeMap<Guid, Arc<Row>>,
    /// The settings.
    pub settings: Settings,
    /// The stamp.
    pub stamp: TableStamp,
    highest: TableStamp,
    pub(crate) floor: TableStamp,
    cluster: ClusterName,
}

impl Default for StoredTable {
    fn default() -> Self {
        Self {
            rows: BTreeMap::new(),
            settings: Settings::default(),
            stamp: TableStamp::default(),
            highest: TableStamp::default(),
            floor: TableStamp::default(),
            cluster: ClusterName::NONE,
        }
    }
}

impl StoredTable {
    pub(crate) const fn cluster(&self) -> ClusterName {
        self.cluster
    }

    pub(crate) const fn keep_cluster(&mut self, cluster: ClusterName) {
        self.cluster = cluster;
    }

    /// The table as an agent starts with it.
    pub fn table(&self) -> Table {
        let rows = self.rows.values().cloned();
        Table::restore(self.settings, self.stamp, self.highest, rows).with_floor(self.floor)
    }

    /// A file that holds `table`, of `cluster`.
    pub fn of(table: &Table, cluster: ClusterName) -> Self {
        let all: Vec<Guid> = table.rows().map(|row| row.guid).collect();
        let mut stored = Self {
            cluster,
            ..Self::default()
        };
        stored.apply(&TableChange::of(table, &all));
        stored
    }

    /// Whether the row and all above it are valid.
    pub(crate) fn is_present(&self, row: Guid) -> bool {
        let mut next = Some(row);
        while let Some(row) = next.filter(|guid| !guid.is_nil()) {
            match self.rows.get(&row) {
                Some(row) if row.is_valid() => next = Some(row.parent),
                _ => return false,
            }
        }
        true
    }

    pub(crate) fn apply(&mut self, change: &TableChange) {
        for (guid, row) in &change.rows {
            match row {
                Some(row) => self.rows.insert(*guid, Arc::clone(row)),
                None => self.rows.remove(guid),
            };
        }
        self.apply_head(change);
    }

    /// All but the rows.
    pub(crate) fn apply_head(&mut self, change: &TableChange) {
        self.settings = change.settings;
        self.stamp = change.stamp;
        self.highest = change.highest;
        self.floor = change.floor;
    }
}

/// What a commit writes.
#[derive(Debug)]
pub(crate) struct TableChange {
    pub(crate) rows: Vec<(Guid, Option<Arc<Row>>)>,
    pub(crate) settings: Settings,
    stamp: TableStamp,
    highest: TableStamp,
    pub(crate) floor: TableStamp,
}

impl TableChange {
    pub(crate) fn of(table: &Table, changed: &[Guid]) -> Self {
        Self {
            rows: changed
                .iter()
                .map(|guid| (*guid, table.get_shared(*guid)))
                .collect(),
            settings: *table.settings(),
            stamp: table.stamp(),
            highest: table.highest_stamp(),
            floor: table.floor(),
        }
    }
}

/// A host's table file.
#[derive(Debug)]
pub(crate) struct TableDisk {
    owner: Guid,
    pub(crate) file: File,
    image: Option<TableImage<File>>,
    /// What may be on the disk beside what was last said to be: what failed or was under way.
    perhaps: Vec<StoredTable>,
}

impl TableDisk {
    pub(crate) fn new(owner: Guid, seed: u64) -> Self {
        let file = File::new(seed);
        let image = TableImage::create(file.clone(), owner, ClusterName::NONE, 0);
        Self {
            owner,
            file,
            image: Some(image.expect("the disk does not fail")),
            perhaps: Vec::new(),
        }
    }

    /// Writes what is known to be right, under a new cluster.
    pub(crate) fn join(&mut self, cluster: ClusterName, stored: &StoredTable, date_s: u64) {
        if let Some(image) = &mut self.image {
            image.set_cluster(cluster);
            image
                .commit(&stored.table(), &[], date_s)
                .expect("the disk does not fail");
        }
    }

    /// Commits; `stored` is what was on the disk before, and afterwards what is there for certain.
    pub(crate) fn commit(
        &mut self,
        stored: &mut StoredTable,
        change: &TableChange,
        date_s: u64,
    ) -> bool {
        let rows = change.rows.iter().filter_map(|(_, row)| row.clone());
        let table = Table::restore(change.settings, change.stamp, change.highest, rows)
            .with_floor(change.floor);
        let changed: Vec<Guid> = change.rows.iter().map(|(guid, _)| *guid).collect();
        let image = self.image.as_mut();
        let done = image.is_some_and(|image| image.commit(&table, &changed, date_s).is_ok());
        if done {
            stored.apply(change);
            self.perhaps.clear();
        } else {
            let mut new = stored.clone();
            new.apply(change);
            self.perhaps.push(new);
        }
        done
    }

    /// The machine is gone; what is found on its disk afterwards must be something whole.
    pub(crate) fn crash(&mut self, power: bool, stored: &mut StoredTable) -> Result<(), String> {
        self.image = None;
        self.file.crash(power);
        let opened = TableImage::open(self.file.clone(), Some(self.owner), ClusterName::NONE);
        let (image, table) = opened.map_err(|e| format!("I9: a table cannot be opened: {e}"))?;
        self.image = Some(image);
        let found = (table.summary(), *table.settings());
        let mut wanted = std::iter::once(&*stored).chain(&self.perhaps);
        let Some(is) = wanted.find(|stored| {
            let table = stored.table();
            (table.summary(), *table.settings()) == found
        }) else {
            return Err(format!(
                "I9: a table is neither the old nor the new one after a crash: {found:?}"
            ));
        };
        let cluster = stored.cluster;
        *stored = is.clone();
        stored.cluster = cluster;
        self.perhaps.clear();
        Ok(())
    }
}

/// A unit's file of registers.
#[derive(Debug)]
pub(crate) struct RegistersDisk {
    unit: Guid,
    pub(crate) file: File,
    image: Option<RegistersImage<File>>,
    perhaps: Vec<StoredRegisters>,
}

impl RegistersDisk {
    pub(crate) fn new(unit: Guid, seed: u64) -> Self {
        Self::create(unit, seed, false)
    }

    fn create(unit: Guid, seed: u64, lost: bool) -> Self {
        let file = File::new(seed);
        let image = RegistersImage::create(file.clone(), unit, lost, 0);
        Self {
            unit,
            file,
            image: Some(image.expect("the disk does not fail")),
            perhaps: Vec::new(),
        }
    }

    /// The disk is replaced by an empty one.
    pub(crate) fn lose(&mut self, seed: u64) {
        *self = Self::create(self.unit, seed, true);
    }

    /// Stores; `stored` is what was on the disk before, and afterwards what is there for certain.
    pub(crate) fn store(
        &mut self,
        stored: &mut StoredRegisters,
        change: &RegistersChange,
        date_s: u64,
    ) -> bool {
        let mut new = stored.clone();
        new.apply(change);
        let image = self.image.as_mut();
        let done = image.is_some_and(|image| image.store(change, date_s).is_ok());
        if done {
            *stored = new;
            self.perhaps.clear();
        } else {
            self.perhaps.push(new);
        }
        done
    }

    /// The machine is gone; what is found on its disk afterwards must be something whole.
    pub(crate) fn crash(
        &mut self,
        power: bool,
        stored: &mut Option<StoredRegisters>,
    ) -> Result<(), String> {
        self.image = None;
        self.file.crash(power);
        let opened = RegistersImage::open(self.file.clone(), self.unit);
        let (image, found) = opened.map_err(|e| format!("I9: registers cannot be opened: {e}"))?;
        self.image = Some(image);
        let perhaps = std::mem::take(&mut self.perhaps);
        if found != *stored && !perhaps.into_iter().any(|p| Some(p) == found) {
            return Err(format!(
                "I9: registers are neither the old nor the new ones after a crash: {found:?}, \
                 not {stored:?}"
            ));
        }
        *stored = found;
        Ok(())
    }
}

/// The file in which a voter of the lease remembers what it has promised.
#[derive(Debug)]
pub(crate) struct VoteDisk {
    owner: Guid,
    pub(crate) file: File,
    image: Option<VoteImage<File>>,
    perhaps: Vec<StoredVote>,
}

impl VoteDisk {
    pub(crate) fn new(owner: Guid, seed: u64) -> Self {
        Self::create(owner, seed, false)
    }

    fn create(owner: Guid, seed: u64, lost: bool) -> Self {
        let file = File::new(seed);
        let image = VoteImage::create(file.clone(), owner, lost, 0);
        Self {
            owner,
            file,
            image: Some(image.expect("the disk does not fail")),
            perhaps: Vec::new(),
        }
    }

    /// The file is gone, and the voter finds one that says so.
    pub(crate) fn lose(&mut self, seed: u64) {
        *self = Self::create(self.owner, seed, true);
    }

    /// Stores; `stored` is what was on the disk before, and afterwards what is there for certain.
    pub(crate) fn store(
        &mut self,
        stored: &mut Option<StoredVote>,
        vote: &StoredVote,
        date_s: u64,
    ) -> bool {
        let image = self.image.as_mut();
        let done = image.is_some_and(|image| image.store(vote, date_s).is_ok());
        if done {
            *stored = Some(vote.clone());
            self.perhaps.clear();
        } else {
            self.perhaps.push(vote.clone());
        }
        done
    }

    /// The machine is gone; what is found on its disk afterwards must be something whole.
    pub(crate) fn crash(
        &mut self,
        power: bool,
        stored: &mut Option<StoredVote>,
    ) -> Result<(), String> {
        self.image = None;
        self.file.crash(power);
        let opened = VoteImage::open(self.file.clone(), self.owner);
        let (image, found) = opened.map_err(|e| format!("I9: a vote cannot be opened: {e}"))?;
        self.image = Some(image);
        let perhaps = std::mem::take(&mut self.perhaps);
        if found != *stored && !perhaps.into_iter().any(|p| Some(p) == found) {
            return Err(format!(
                "I9: a vote is neither the old nor the new one after a crash: {found:?}, not {stored:?}"
            ));
        }
        *stored = found;
        Ok(())
    }
}
