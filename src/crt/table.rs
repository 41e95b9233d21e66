//! The table itself: rows by GUID, the tree they form, and the digest of it all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128;

use super::digests::Sums;
use super::shelf::Shelf;
use crate::wire::message::{Parts, TableSummary};
use crate::wire::row::{MAX_LABEL_BYTES, MAX_MACS, MAX_NAME_BYTES, is_block_size};
use crate::wire::{
    EntityType, Granularity, Guid, IocNumber, IodNumber, Mac, Row, Settings, TableStamp, Wire,
    Writer,
};

/// The most rows of a table, tombstones included; further ones are ignored.
pub const MAX_ROWS: usize = 131_072;

/// Levels from an extent up to its unit.
pub(super) const MAX_DEPTH: usize = 4;

/// A cluster resource table (Fig. 4, 216).
#[derive(Debug, Clone)]
pub struct Table {
    /// Shared, so that a copy of the table (what a commit under way writes) costs no copy of its rows.
    rows: Shelf,
    settings: Settings,
    /// Wrapping sums of the digests of rows.
    pub(super) sums: Sums,
    pub(super) stamp: TableStamp,
    pub(super) highest: TableStamp,
    pub(super) floor: TableStamp,
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

impl Table {
    /// An empty table with default settings and the lowest stamp.
    pub fn new() -> Self {
        Self {
            rows: Shelf::default(),
            settings: Settings::default(),
            sums: Sums::new(),
            stamp: TableStamp::default(),
            highest: TableStamp::default(),
            floor: TableStamp::default(),
        }
    }

    /// A table as it was stored: `highest` is what [`Table::highest_stamp`] said then. Rows with
    /// the NIL GUID and rows beyond [`MAX_ROWS`] are ignored; of two with one GUID the later stays.
    pub fn restore(
        settings: Settings,
        stamp: TableStamp,
        highest: TableStamp,
        rows: impl IntoIterator<Item = Arc<Row>>,
    ) -> Self {
        let rows = rows
            .into_iter()
            .take(MAX_ROWS)
            .filter(|row| !row.guid.is_nil())
            .map(|mut row| {
                if !fits(&row) {
                    fit(Arc::make_mut(&mut row));
                }
                row
            });
        let rows = Shelf::new(rows);
        let mut sums = Sums::new();
        for row in rows.iter() {
            sums.add(row.guid, row_digest(row));
        }
        Self::assemble(settings, stamp, highest.max(stamp), rows, sums)
    }

    /// The same table with this floor: what was purged up to that version is not in it.
    #[must_use]
    pub fn with_floor(mut self, floor: TableStamp) -> Self {
        if floor.is_possible() {
            self.floor = floor;
        }
        self
    }

    /// A table of `rows`, which fit, and whose digests' sums are `sums`.
    pub(super) fn assemble(
        settings: Settings,
        stamp: TableStamp,
        highest: TableStamp,
        rows: Shelf,
        sums: Sums,
    ) -> Self {
        // One that could not be outranked is none: the content decides who has what.
        let possible = |stamp: TableStamp| Some(stamp).filter(TableStamp::is_possible);
        let stamp = possible(stamp).unwrap_or_default();
        let highest = possible(highest).unwrap_or_default().max(stamp);
        let mut table = Self {
            rows,
            settings,
            sums,
            stamp,
            highest,
            floor: TableStamp::default(),
        };
        // Rows with one parent have the same addresses: those are looked up once.
        let mut below: BTreeMap<Guid, &[Mac]> = BTreeMap::new();
        let mut stale = Vec::new();
        for row in table.rows.iter().filter(|row| !has_own_macs(row.entity)) {
            let macs = *below
                .entry(row.parent)
                .or_insert_with(|| table.macs_below(row.parent));
            if row.macs != macs || row.entity == EntityType::Extent {
                stale.push(row.guid);
            }
        }
        for guid in stale {
            table.refresh(guid);
        }
        table.sums.fit(table.rows.len());
        table
    }

    /// Number of rows, tombstones included.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 0
    }

    /// The table's stamp (Fig. 4, 420).
    pub const fn stamp(&self) -> TableStamp {
        self.stamp
    }

    /// The largest stamp that this table has ever had or met; a new version gets a larger one.
    pub const fn highest_stamp(&self) -> TableStamp {
        self.highest
    }

    /// Digest of settings and rows: equal where, and practically only where, they are equal.
    pub fn digest(&self) -> u128 {
        let settings = settings_digest(&self.settings);
        self.sums.total().wrapping_add(settings)
    }

    /// The version up to which purged rows are gone: they are not in this table, and one with a
    /// smaller floor that still has them must not bring them back.
    pub const fn floor(&self) -> TableStamp {
        self.floor
    }

    /// Stamp, digest, number of rows and floor.
    pub fn summary(&self) -> TableSummary {
        TableSummary {
            stamp: self.stamp,
            digest: self.digest(),
            row_count: self.rows.len() as u32,
            floor: self.floor,
        }
    }

    /// Cluster-wide settings.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Sets the granularity under a larger settings stamp; `false` where it is that already.
    pub fn set_granularity(&mut self, granularity: Granularity, term: u64, writer: Guid) -> bool {
        if self.settings.granularity == granularity {
            return false;
        }
        let old = self.settings.stamp;
        self.replace_settings(Settings {
            granularity,
            stamp: TableStamp {
                term: term.max(old.term),
                counter: old.counter.saturating_add(1),
                writer,
            },
        });
        true
    }

    pub(super) const fn replace_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// The row of an entity.
    pub fn get(&self, guid: Guid) -> Option<&Row> {
        self.rows.get(guid).map(Arc::as_ref)
    }

    /// As [`Table::get`], to keep: whatever becomes of the table, the row stays as it is now.
    pub fn get_shared(&self, guid: Guid) -> Option<Arc<Row>> {
        self.rows.get(guid).map(Arc::clone)
    }

    /// Puts equal rows of `known` in the place of this table's, so that both are in memory once.
    /// Nothing else changes.
    pub fn share(&mut self, guid: Guid, known: &Arc<Row>) {
        let is_same = |row: &Arc<Row>| !Arc::ptr_eq(row, known) && row == known;
        if self.rows.get(guid).is_some_and(is_same) {
            self.rows.put(Arc::clone(known));
        }
    }

    /// Every row by ascending GUID, tombstones included.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().map(Arc::as_ref)
    }

    /// A page of the rows in `parts` with GUIDs larger than `after`, and whether more follow. The
    /// encoded rows fill at most `max_bytes`, but there is at least one row where there are any
    /// left, and never more than [`MAX_PAGE_ROWS`](crate::wire::message::MAX_PAGE_ROWS).
    pub fn rows_after(&self, after: Guid, parts: &Parts, max_bytes: usize) -> (Vec<Row>, bool) {
        let mut page = Vec::new();
        let mut encoded = Writer::new();
        let rest = self.rows.after(after);
        for row in rest.filter(|row| parts.contain(row.guid)) {
            encoded.put(row.as_ref());
            let full =
                encoded.len() > max_bytes || page.len() == crate::wire::message::MAX_PAGE_ROWS;
            if full && !page.is_empty() {
                return (page, true);
            }
            page.push(row.as_ref().clone());
        }
        (page, false)
    }

    /// The rows one level below, by ascending GUID, tombstones included.
    pub fn children(&self, guid: Guid) -> impl Iterator<Item = &Row> {
        self.rows.children(guid).map(Arc::as_ref)
    }

    /// The row one level up.
    pub fn parent(&self, guid: Guid) -> Option<&Row> {
        self.get(self.get(guid)?.parent)
    }

    /// The row and everything above it, from the row upwards; ends at a unit, a host, an unknown
    /// parent, or after the four levels that there are.
    pub fn ancestry(&self, guid: Guid) -> impl Iterator<Item = &Row> {
        let mut next = self.get(guid);
        (0..MAX_DEPTH).map_while(move |_| {
            let row = next?;
            next = if has_own_macs(row.entity) {
                None
            } else {
                self.get(row.parent)
            };
            Some(row)
        })
    }

    /// The unit that a unit, controller, device or extent belongs to.
    pub fn unit_of(&self, guid: Guid) -> Option<Guid> {
        self.ancestry(guid)
            .find(|row| row.entity == EntityType::Unit)
            .map(|row| row.guid)
    }

    /// Names from the unit (or host) down to the row; the GUID where a row has no name. Empty
    /// where there is no such row.
    pub fn path(&self, guid: Guid) -> Vec<String> {
        let mut names: Vec<_> = self.ancestry(guid).map(name_of).collect();
        names.reverse();
        names
    }

    /// Whether the row and everything above it up to its unit (or host) is valid.
    pub fn is_present(&self, guid: Guid) -> bool {
        let mut top = false;
        self.ancestry(guid).all(|row| {
            top = has_own_macs(row.entity);
            row.is_valid()
        }) && top
    }

    /// The present devices without extents, and extents, that `host` owns, alone or with others,
    /// by ascending GUID.
    pub fn owned_by(&self, host: Guid) -> impl Iterator<Item = &Row> {
        self.rows().filter(move |row| {
            let usable = match row.entity {
                EntityType::Device => !self.is_carved(row.guid),
                EntityType::Extent => true,
                _ => false,
            };
            usable && row.ownership.includes(host) && self.is_present(row.guid)
        })
    }

    /// Puts a row in as it is, replacing one with its GUID, and returns the rows that changed
    /// (with a unit's, those below it follow). For rows of known standing: what comes from others
    /// goes through [`Table::join`] or the `observe_…` methods.
    pub fn insert(&mut self, row: Row) -> Vec<Guid> {
        let mut changed = BTreeSet::new();
        self.store(row, &mut changed);
        changed.into_iter().collect()
    }

    /// Takes a row out altogether, with all below it, and returns the rows that changed: those. A row that
    /// stayed behind could have owners that its parent, when it is heard of again, does not have. Those of
    /// known standing only: see [`Table::purge`].
    pub fn remove(&mut self, guid: Guid) -> Vec<Guid> {
        let mut gone = Vec::new();
        let mut next = vec![guid];
        while let Some(at) = next.pop() {
            if let Some(row) = self.rows.take(at) {
                self.sums.subtract(at, row_digest(&row));
                next.extend(self.children(at).map(|row| row.guid));
                gone.push(at);
            }
        }
        gone.sort_unstable();
        gone
    }

    /// The row and all rows below it, parents first.
    pub fn below(&self, guid: Guid) -> Vec<Guid> {
        let mut all = vec![guid];
        let mut next = 0;
        while next < all.len() && all.len() <= self.rows.len() {
            let children: Vec<Guid> = self.children(all[next]).map(|row| row.guid).collect();
            all.extend(children);
            next += 1;
        }
        all
    }

    /// Takes rows out for good, with all below them, and returns the rows that changed. The table
    /// gets a new stamp, and that is its floor.
    pub fn purge(&mut self, rows: &[Guid], term: u64, writer: Guid) -> Vec<Guid> {
        let mut changed = BTreeSet::new();
        for row in rows {
            changed.extend(self.remove(*row));
        }
        self.floor = self.publish(term, writer);
        changed.into_iter().collect()
    }

    /// What was purged up to this version is not in this table any more; whether that is new.
    pub fn raise_floor(&mut self, floor: TableStamp) -> bool {
        let higher = floor > self.floor;
        self.floor = self.floor.max(floor);
        self.highest = self.highest.max(floor);
        higher
    }

    /// Stores a row, keeps tree, digest and derived addresses, notes what changed.
    pub(super) fn store(&mut self, mut row: Row, changed: &mut BTreeSet<Guid>) {
        let guid = row.guid;
        let known = self.rows.get(guid);
        if guid.is_nil() || (known.is_none() && self.rows.len() >= MAX_ROWS) {
            return;
        }
        fit(&mut row);
        self.derive(&mut row);
        let mut spreads = true;
        if let Some(old) = known {
            if **old == row {
                return;
            }
            spreads = old.macs != row.macs
                || old.parent != row.parent
                || old.entity != row.entity
                || device_facts(old) != device_facts(&row);
            self.sums.subtract(guid, row_digest(old));
        }
        self.sums.add(guid, row_digest(&row));
        self.rows.put(Arc::new(row));
        if self.sums.is_coarse(self.rows.len()) {
            self.refine_sums();
        }
        changed.insert(guid);
        if spreads {
            // A row that is its own ancestor has no unit; its own addresses may change as well.
            self.refresh_below(guid, MAX_DEPTH, changed);
        }
    }

    /// Gives the rows below `guid` what they have from above.
    fn refresh_below(&mut self, guid: Guid, depth: usize, changed: &mut BTreeSet<Guid>) {
        if depth == 0 {
            return;
        }
        let below: Vec<_> = self
            .children(guid)
            .filter(|row| !has_own_macs(row.entity))
            .map(|row| row.guid)
            .collect();
        for child in below {
            if self.refresh(child) {
                changed.insert(child);
            }
            self.refresh_below(child, depth - 1, changed);
        }
    }

    /// Gives a row what it has from above; whether that is a change.
    fn refresh(&mut self, guid: Guid) -> bool {
        let Some(old) = self.get_shared(guid) else {
            return false;
        };
        let mut row = Row::clone(&old);
        self.derive(&mut row);
        if row == *old {
            return false;
        }
        self.sums.subtract(guid, row_digest(&old));
        self.sums.add(guid, row_digest(&row));
        self.rows.put(Arc::new(row));
        true
    }

    /// What a row has from above: its unit's addresses, and an extent its device's numbers, blocks
    /// and features.
    fn derive(&self, row: &mut Row) {
        if has_own_macs(row.entity) {
            return;
        }
        let macs = self.macs_below(row.parent);
        if row.macs != macs {
            row.macs = macs.to_vec();
        }
        if row.entity == EntityType::Extent {
            let device = self.get(row.parent);
            (row.ioc, row.iod, row.block_size, row.features) =
                device.map_or_else(Default::default, device_facts);
            row.size_bytes = row.extent.map_or(0, |range| range.len);
        }
    }

    /// The addresses of a row whose parent is `parent`.
    fn macs_below(&self, parent: Guid) -> &[Mac] {
        self.ancestry(parent)
            .take(MAX_DEPTH - 1)
            .find(|row| row.entity == EntityType::Unit)
            .map_or(&[], |unit| &unit.macs)
    }
}

/// What a device's extents have from it; of other rows nothing.
fn device_facts(row: &Row) -> (IocNumber, IodNumber, u32, u64) {
    match row.entity {
        EntityType::Device => (row.ioc, row.iod, row.block_size, row.features),
        _ => Default::default(),
    }
}

/// Whether the entity has NICs of its own, rather than its unit's.
pub(super) const fn has_own_macs(entity: EntityType) -> bool {
    matches!(entity, EntityType::Host | EntityType::Unit)
}

/// What people call the row: its name, or its GUID where it has none.
pub(super) fn name_of(row: &Row) -> String {
    if row.name.is_empty() {
        row.guid.to_string()
    } else {
        row.name.clone()
    }
}

/// Whether there is nothing for [`fit`] to cut.
fn fits(row: &Row) -> bool {
    let usable = |(at, mac): (usize, &Mac)| {
        !mac.is_multicast() && *mac != Mac::default() && !row.macs[..at].contains(mac)
    };
    row.macs.len() <= MAX_MACS
        && row.macs.iter().enumerate().all(usable)
        && (row.block_size == 0 || is_block_size(row.block_size))
        && row.name.len() <= MAX_NAME_BYTES
        && [&row.vendor, &row.model, &row.serial]
            .iter()
            .all(|text| text.len() <= MAX_LABEL_BYTES)
}

/// Cuts what would not survive the encoding and its reading.
fn fit(row: &mut Row) {
    if fits(row) {
        return;
    }
    let mut macs: Vec<Mac> = Vec::new();
    for mac in row.macs.drain(..) {
        let usable = !mac.is_multicast() && mac != Mac::default() && !macs.contains(&mac);
        if usable && macs.len() < MAX_MACS {
            macs.push(mac);
        }
    }
    row.macs = macs;
    if !is_block_size(row.block_size) {
        row.block_size = 0;
    }
    cut(&mut row.name, MAX_NAME_BYTES);
    cut(&mut row.vendor, MAX_LABEL_BYTES);
    cut(&mut row.model, MAX_LABEL_BYTES);
    cut(&mut row.serial, MAX_LABEL_BYTES);
}

fn cut(text: &mut String, max: usize) {
    let mut len = max;
    if text.len() > max {
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        text.truncate(len);
    }
}

pub(super) fn row_digest(row: &Row) -> u128 {
    encoded_digest(&row.to_body())
}

/// The digest of a row from its encoding; there is one encoding of a row.
pub(super) fn encoded_digest(row: &[u8]) -> u128 {
    xxh3_128(row)
}

fn settings_digest(settings: &Settings) -> u128 {
    xxh3_128(&settings.to_body())
}
