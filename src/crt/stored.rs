//! What an [`Image`] holds for a host and for a unit: a table, or ownership registers.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::digests::Sums;
use super::image::{Commit, Expected, Health};
use super::shelf::Shelf;
use super::table::{MAX_ROWS, encoded_digest};
use super::{
    Image, ImageError, ImageInfo, ImageKind, RegistersChange, Storage, StoredRegisters, Table,
};
use crate::wire::message::{OwnershipRegister, TableSummary};
use crate::wire::{
    ClusterName, DecodeError, Guid, Reader, Row, Settings, TableStamp, Wire, Writer,
};

/// What a table's image keeps beside its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TableMeta {
    stamp: TableStamp,
    highest: TableStamp,
    settings: Settings,
    floor: TableStamp,
}

impl TableMeta {
    fn of(table: &Table) -> Self {
        Self {
            stamp: table.stamp(),
            highest: table.highest_stamp(),
            settings: *table.settings(),
            floor: table.floor(),
        }
    }
}

impl Wire for TableMeta {
    fn put(&self, w: &mut Writer) {
        w.put(&self.stamp);
        w.put(&self.highest);
        w.put(&self.settings);
        w.put(&self.floor);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            stamp: r.get()?,
            highest: r.get()?,
            settings: r.get()?,
            floor: r.get()?,
        })
    }
}

/// Rows, settings and stamps as a table had them at one moment, to be made durable later: by then
/// the table may have gone on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableChange {
    records: Vec<(Guid, Option<Vec<u8>>)>,
    meta: Vec<u8>,
    summary: Box<TableSummary>,
}

impl TableChange {
    /// The rows that changed, encoded; `None`: gone.
    pub fn records(&self) -> impl Iterator<Item = (Guid, Option<&[u8]>)> {
        let records = self.records.iter();
        records.map(|(guid, row)| (*guid, row.as_deref()))
    }

    /// Settings and stamps, encoded; see [`stored_table`].
    pub fn meta(&self) -> &[u8] {
        &self.meta
    }

    /// The table's summary after the change.
    pub fn summary(&self) -> &TableSummary {
        &self.summary
    }

    /// How many rows it holds.
    pub fn row_count(&self) -> usize {
        self.records.len()
    }

    /// The rows of `changed` as they are in `table` (those it lacks: gone), its settings and its
    /// stamps.
    pub fn of(table: &Table, changed: &[Guid]) -> Self {
        Self {
            records: changed
                .iter()
                .map(|guid| (*guid, table.get(*guid).map(Wire::to_body)))
                .collect(),
            meta: TableMeta::of(table).to_body(),
            summary: Box::new(table.summary()),
        }
    }
}

/// A table from what was kept of it: the `meta` of its last [`TableChange`], and its rows.
pub fn stored_table(
    meta: &[u8],
    rows: impl IntoIterator<Item = Arc<Row>>,
) -> Result<Table, DecodeError> {
    let meta = TableMeta::from_body(meta)?;
    let table = Table::restore(meta.settings, meta.stamp, meta.highest, rows);
    Ok(table.with_floor(meta.floor))
}

/// A host's table in a [`Storage`].
#[derive(Debug)]
pub struct TableImage<S> {
    image: Image<S>,
    cluster: ClusterName,
}

impl<S: Storage> TableImage<S> {
    /// Writes an empty table over `storage`, which is empty. `label_s` is the date and time for
    /// people, seconds since 1970, here and below.
    pub fn create(
        storage: S,
        owner: Guid,
        cluster: ClusterName,
        label_s: u64,
    ) -> Result<Self, ImageError> {
        let commit = Commit {
            records: Vec::new(),
            replace: false,
            cluster,
            meta: TableMeta::of(&Table::new()).to_body(),
            label_s,
        };
        let image = Image::create(storage, ImageKind::Crt, owner, commit)?;
        Ok(Self { image, cluster })
    }

    /// Opens the table in `storage`. `owner` `None` takes anyone's; `cluster` NONE takes whatever
    /// cluster it is of, and a table of no cluster takes `cluster`. What it gives is durable.
    pub fn open(
        storage: S,
        owner: Option<Guid>,
        cluster: ClusterName,
    ) -> Result<(Self, Table), ImageError> {
        let expected = Expected {
            kind: ImageKind::Crt,
            owner,
            cluster,
        };
        // Allocated here, and moved into the table as they are: a large table is in memory once.
        let mut rows: Vec<Arc<Row>> = Vec::new();
        let mut sums = Sums::finest();
        let mut image = Image::open(storage, &expected, |key, value| {
            let row = Row::from_body(value)?;
            if row.guid != key {
                return Err(DecodeError::BadValue("GUID"));
            }
            if rows.len() == MAX_ROWS {
                return Err(DecodeError::TooLarge("rows"));
            }
            sums.add(key, encoded_digest(value));
            rows.push(Arc::new(row));
            Ok(())
        })?;
        let info = image.info();
        let meta = TableMeta::from_body(&info.meta).map_err(ImageError::Meta)?;
        let highest = meta.highest.max(meta.stamp);
        let rows = Shelf::new(rows);
        let table =
            Table::assemble(meta.settings, meta.stamp, highest, rows, sums).with_floor(meta.floor);
        let cluster = if info.cluster.is_none() {
            cluster
        } else {
            info.cluster
        };
        image.confirm()?;
        Ok((Self { image, cluster }, table))
    }

    /// The cluster that the table is of; none where that is not known yet.
    pub const fn cluster(&self) -> ClusterName {
        self.cluster
    }

    /// Makes it a table of `cluster`, with the next commit. Where it was one of another cluster,
    /// that commit should be a [`TableImage::replace`].
    pub const fn set_cluster(&mut self, cluster: ClusterName) {
        self.cluster = cluster;
    }

    /// Makes the rows of `changed` as they are in `table` (those it lacks: gone), its settings and
    /// its stamps durable, all or nothing. After an error the storage holds what it held before,
    /// or (where the last write may have reached the disk) the new table as a whole; the same
    /// changes can be committed again.
    pub fn commit(
        &mut self,
        table: &Table,
        changed: &[Guid],
        label_s: u64,
    ) -> Result<(), ImageError> {
        self.apply(TableChange::of(table, changed), label_s)
    }

    /// As [`TableImage::commit`], of what a table was when `change` was made of it.
    pub fn apply(&mut self, change: TableChange, label_s: u64) -> Result<(), ImageError> {
        self.commit_records(change, false, label_s)
    }

    /// As [`TableImage::commit`], of every row.
    pub fn replace(&mut self, table: &Table, label_s: u64) -> Result<(), ImageError> {
        let all = TableChange {
            records: table
                .rows()
                .map(|row| (row.guid, Some(row.to_body())))
                .collect(),
            meta: TableMeta::of(table).to_body(),
            summary: Box::new(table.summary()),
        };
        self.commit_records(all, true, label_s)
    }

    fn commit_records(
        &mut self,
        change: TableChange,
        replace: bool,
        label_s: u64,
    ) -> Result<(), ImageError> {
        self.image.commit(Commit {
            records: change.records,
            replace,
            cluster: self.cluster,
            meta: change.meta,
            label_s,
        })
    }

    /// What the image says about itself.
    pub fn info(&self) -> ImageInfo {
        self.image.info()
    }

    /// How its roots and pages were found.
    pub fn health(&self) -> Health {
        self.image.health()
    }
}

/// What a unit's image keeps beside its registers. Its root has the home cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RegistersMeta {
    /// Whether the registers were lost and have not been restored.
    lost: bool,
    /// The highest term seen.
    term: u64,
    /// Which assignment made the home cluster what it is.
    assignment: u64,
}

impl RegistersMeta {
    /// The first files had no assignment.
    fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let meta = Self {
            lost: r.get()?,
            term: r.get()?,
            assignment: if r.rest().is_empty() { 0 } else { r.get()? },
        };
        if r.rest().is_empty() {
            Ok(meta)
        } else {
            Err(DecodeError::BadValue("meta"))
        }
    }

    fn to_bytes(self) -> Vec<u8> {
        let mut w = Writer::new();
        w.put(&self.lost);
        w.put(&self.term);
        w.put(&self.assignment);
        w.into_bytes()
    }
}

/// The key of a guest cluster's register: a row has one in several clusters.
fn guest_key(cluster: ClusterName, row: Guid) -> Guid {
    let mut bytes = cluster.to_body();
    bytes.extend(row.to_body());
    Guid(xxhash_rust::xxh3::xxh3_128(&bytes))
}

/// A register, and its cluster where that is not the unit's home.
struct Record {
    register: OwnershipRegister,
    guest: Option<ClusterName>,
}

impl Record {
    fn parse(key: Guid, value: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(value);
        let register: OwnershipRegister = r.get()?;
        let guest = match r.rest() {
            [] => None,
            _ => Some(r.get::<ClusterName>()?),
        };
        let expected = guest.map_or(register.row, |cluster| guest_key(cluster, register.row));
        if !r.rest().is_empty() || guest.is_some_and(ClusterName::is_none) {
            return Err(DecodeError::BadValue("register"));
        }
        if expected != key {
            return Err(DecodeError::BadValue("GUID"));
        }
        Ok(Self { register, guest })
    }
}

/// A unit's ownership registers in a [`Storage`].
#[derive(Debug)]
pub struct RegistersImage<S> {
    image: Image<S>,
    meta: RegistersMeta,
    home: ClusterName,
    /// The rows of every guest cluster.
    guests: BTreeSet<(ClusterName, Guid)>,
}

impl<S: Storage> RegistersImage<S> {
    /// Writes an image without registers over `storage`, which is empty: a beginning, or (`lost`)
    /// what is left when the registers that there were are gone.
    pub fn create(storage: S, unit: Guid, lost: bool, label_s: u64) -> Result<Self, ImageError> {
        let meta = RegistersMeta {
            lost,
            term: 0,
            assignment: 0,
        };
        let commit = Commit {
            records: Vec::new(),
            replace: false,
            cluster: ClusterName::NONE,
            meta: meta.to_bytes(),
            label_s,
        };
        let image = Image::create(storage, ImageKind::Registers, unit, commit)?;
        Ok(Self {
            image,
            meta,
            home: ClusterName::NONE,
            guests: BTreeSet::new(),
        })
    }

    /// Opens the registers of `unit` in `storage`; they are `None` where they were lost and have
    /// not been restored. What it gives is durable.
    pub fn open(storage: S, unit: Guid) -> Result<(Self, Option<StoredRegisters>), ImageError> {
        let expected = Expected {
            kind: ImageKind::Registers,
            owner: Some(unit),
            cluster: ClusterName::NONE,
        };
        let mut stored = StoredRegisters::default();
        let mut image = Image::open(storage, &expected, |key, value| {
            let record = Record::parse(key, value)?;
            match record.guest {
                None => stored.registers.push(record.register),
                Some(cluster) => stored.guests.push((cluster, record.register)),
            }
            Ok(())
        })?;
        let info = image.info();
        let meta = RegistersMeta::from_bytes(&info.meta).map_err(ImageError::Meta)?;
        image.confirm()?;
        stored.term = meta.term;
        stored.home = info.cluster;
        stored.assignment = meta.assignment;
        stored.sort();
        let guests = stored.guests.iter().map(|(c, r)| (*c, r.row)).collect();
        let opened = Self {
            image,
            meta,
            home: info.cluster,
            guests,
        };
        Ok((opened, (!meta.lost).then_some(stored)))
    }

    /// The highest term that was stored.
    pub const fn term(&self) -> u64 {
        self.meta.term
    }

    /// The home cluster that was stored.
    pub const fn home(&self) -> ClusterName {
        self.home
    }

    /// Makes a change durable, all or nothing. With it lost registers count as restored.
    pub fn store(&mut self, change: &RegistersChange, label_s: u64) -> Result<(), ImageError> {
        let meta = RegistersMeta {
            lost: false,
            term: change.term.max(self.meta.term),
            assignment: change.assignment,
        };
        let mut guests = self.guests.clone();
        let mut records: Vec<(Guid, Option<Vec<u8>>)> = Vec::new();
        guests.retain(|(cluster, row)| {
            let gone = change.guests_gone.contains(cluster);
            if gone {
                records.push((guest_key(*cluster, *row), None));
            }
            !gone
        });
        records.extend(change.home_gone.iter().map(|row| (*row, None)));
        let home = change.registers.iter();
        records.extend(home.map(|register| (register.row, Some(register.to_body()))));
        for (cluster, register) in &change.guests {
            let mut value = register.to_body();
            value.extend(cluster.to_body());
            records.push((guest_key(*cluster, register.row), Some(value)));
            guests.insert((*cluster, register.row));
        }
        self.image.commit(Commit {
            records,
            replace: false,
            cluster: change.home,
            meta: meta.to_bytes(),
            label_s,
        })?;
        self.meta = meta;
        self.home = change.home;
        self.guests = guests;
        Ok(())
    }
}
