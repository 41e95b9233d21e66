//! The copy-on-write tree: walking it, finding in it, and writing a new version of it.

use std::collections::{BTreeMap, BTreeSet};

use super::page::{
    Entry, FANOUT, FIRST_PAGE, LEAF_BYTES, MAX_HEIGHT, Page, PageFault, Pointer, inner,
    inner_entries, inner_share, leaf, leaf_records, leaf_share, record_bytes,
};
use super::root::Root;
use super::{Image, ImageError, PAGE_BYTES, Storage, io};
use crate::wire::{DecodeError, Guid};

/// A record's new value by its key; `None` for a record that goes.
type Change = (Guid, Option<Vec<u8>>);

/// What is done with every record.
pub(super) type Visit<'a> = dyn FnMut(Guid, &[u8]) -> Result<(), DecodeError> + 'a;

/// A set of page numbers.
#[derive(Debug, Clone)]
pub(super) struct PageSet {
    words: Vec<u64>,
    count: u32,
}

impl PageSet {
    pub(super) fn new(count: u32) -> Self {
        Self {
            words: vec![0; (count as usize).div_ceil(64)],
            count,
        }
    }

    pub(super) fn contains(&self, page: u32) -> bool {
        self.words
            .get(page as usize / 64)
            .is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Adds a page that lies in the image and is not in the set.
    fn add(&mut self, page: u32) -> Result<(), PageFault> {
        if !(FIRST_PAGE..self.count).contains(&page) {
            return Err(PageFault::Outside);
        }
        if self.contains(page) {
            return Err(PageFault::Shared);
        }
        self.words[page as usize / 64] |= 1 << (page % 64);
        Ok(())
    }
}

fn fault(page: u32) -> impl Fn(PageFault) -> ImageError {
    move |fault| ImageError::Page { page, fault }
}

/// Copies a page out of the storage and checks it against its pointer.
fn read_page<S: Storage>(storage: &S, at: Pointer) -> Result<Box<Page>, ImageError> {
    let mut page = Box::new([0; PAGE_BYTES]);
    storage
        .read(u64::from(at.page) * PAGE_BYTES as u64, &mut page[..])
        .map_err(io("read a page"))?;
    if crc32fast::hash(&page[..]) == at.crc {
        Ok(page)
    } else {
        Err(fault(at.page)(PageFault::Checksum))
    }
}

/// Visits every record below `root` by ascending key, notes its pages in `seen`, and checks
/// everything on the way. What lies below a page of `skip` is not visited.
pub(super) fn walk<S: Storage>(
    storage: &S,
    root: &Root,
    seen: &mut PageSet,
    skip: Option<&PageSet>,
    visit: &mut Visit<'_>,
) -> Result<(), ImageError> {
    let Some(at) = root.tree else {
        return Ok(());
    };
    let mut walk = Walk {
        storage,
        seen,
        skip,
        visit,
        last: None,
        count: 0,
        bytes: 0,
    };
    walk.page(at, root.height - 1, None)?;
    let found = (walk.count, walk.bytes);
    if skip.is_none() && found != (root.record_count, root.record_bytes) {
        return Err(fault(at.page)(PageFault::Count));
    }
    Ok(())
}

struct Walk<'a, S> {
    storage: &'a S,
    seen: &'a mut PageSet,
    skip: Option<&'a PageSet>,
    visit: &'a mut Visit<'a>,
    last: Option<Guid>,
    count: u64,
    bytes: u64,
}

impl<S: Storage> Walk<'_, S> {
    fn page(&mut self, at: Pointer, level: u32, first: Option<Guid>) -> Result<(), ImageError> {
        let fault = fault(at.page);
        if self.skip.is_some_and(|skip| skip.contains(at.page)) {
            return Ok(());
        }
        self.seen.add(at.page).map_err(&fault)?;
        let page = read_page(self.storage, at)?;
        if level > 0 {
            let entries = inner_entries(&page, at.page, level).map_err(&fault)?;
            if first.is_some_and(|first| entries[0].first != first) {
                return Err(fault(PageFault::Order));
            }
            return entries
                .iter()
                .try_for_each(|entry| self.page(entry.at, level - 1, Some(entry.first)));
        }
        let records = leaf_records(&page, at.page).map_err(&fault)?;
        let key = records[0].0;
        if first.is_some_and(|first| key != first) || self.last.is_some_and(|last| key <= last) {
            return Err(fault(PageFault::Order));
        }
        self.last = records.last().map(|(key, _)| *key);
        self.count += records.len() as u64;
        records.into_iter().try_for_each(|(key, value)| {
            self.bytes += record_bytes(value) as u64;
            (self.visit)(key, value).map_err(|source| ImageError::Record { key, source })
        })
    }
}

/// The value of one record.
pub(super) fn get<S: Storage>(
    storage: &S,
    root: &Root,
    key: Guid,
) -> Result<Option<Vec<u8>>, ImageError> {
    let Some(mut at) = root.tree else {
        return Ok(None);
    };
    for level in (1..root.height).rev() {
        let page = read_page(storage, at)?;
        let entries = inner_entries(&page, at.page, level).map_err(fault(at.page))?;
        let below = entries.partition_point(|entry| entry.first <= key);
        match below.checked_sub(1) {
            Some(index) => at = entries[index].at,
            None => return Ok(None),
        }
    }
    let page = read_page(storage, at)?;
    let records = leaf_records(&page, at.page).map_err(fault(at.page))?;
    Ok(records
        .binary_search_by_key(&key, |(key, _)| *key)
        .ok()
        .map(|index| records[index].1.to_vec()))
}

/// What a new version does to the old one.
struct Update<'a> {
    sequence: u64,
    /// Pages written for the new version.
    fresh: &'a mut Vec<u32>,
    /// Pages of the old version that the new one has not.
    replaced: Vec<u32>,
    record_count: u64,
    record_bytes: u64,
}

impl<S: Storage> Image<S> {
    /// Writes the tree that `changes` make of the present one and points `root` to it. The pages
    /// written are added to `fresh`, also where an error ends it; returned are the pages replaced.
    pub(super) fn write_tree(
        &mut self,
        root: &mut Root,
        changes: Vec<Change>,
        replace: bool,
        fresh: &mut Vec<u32>,
    ) -> Result<Vec<u32>, ImageError> {
        let (changes, replace) = if !replace && self.is_sparse() {
            (self.compacted(changes)?, true)
        } else {
            (changes, replace)
        };
        let mut update = Update {
            sequence: root.sequence,
            fresh,
            replaced: Vec::new(),
            record_count: root.record_count,
            record_bytes: root.record_bytes,
        };
        let mut level = 0;
        let mut entries = match root.tree {
            Some(at) if !replace => {
                level = root.height - 1;
                let first = Guid::NIL;
                self.update(&mut update, Entry { first, at }, level, &changes)?
            }
            _ => {
                update.record_count = 0;
                update.record_bytes = 0;
                if replace {
                    update.replaced = self.live_pages();
                }
                self.update_leaf(&mut update, &[], &changes)?
            }
        };
        while entries.len() > 1 {
            level += 1;
            entries = self.write_inner(&mut update, &entries, level)?;
        }
        let mut top = entries.first().map(|entry| entry.at);
        // A top with one entry only is no use: the page below becomes the top.
        while let Some(at) = top.filter(|_| level > 0) {
            let page = read_page(&self.storage, at)?;
            let below = inner_entries(&page, at.page, level).map_err(fault(at.page))?;
            let [only] = &below[..] else { break };
            if let Some(index) = update.fresh.iter().position(|page| *page == at.page) {
                update.fresh.swap_remove(index);
                self.free.insert(at.page);
            } else {
                update.replaced.push(at.page);
            }
            top = Some(only.at);
            level -= 1;
        }
        root.tree = top;
        root.height = top.map_or(0, |_| level + 1);
        debug_assert!(root.height <= MAX_HEIGHT);
        root.record_count = update.record_count;
        root.record_bytes = update.record_bytes;
        Ok(update.replaced)
    }

    /// The entries that take the place of `entry`, a page at `level`, after `changes`.
    fn update(
        &mut self,
        update: &mut Update<'_>,
        entry: Entry,
        level: u32,
        changes: &[Change],
    ) -> Result<Vec<Entry>, ImageError> {
        let at = entry.at;
        let page = read_page(&self.storage, at)?;
        if level == 0 {
            let records = leaf_records(&page, at.page).map_err(fault(at.page))?;
            if changes.iter().all(|(key, value)| {
                let index = records.binary_search_by_key(key, |(key, _)| *key).ok();
                index.map(|index| records[index].1) == value.as_deref()
            }) {
                return Ok(vec![entry]);
            }
            update.replaced.push(at.page);
            return self.update_leaf(update, &records, changes);
        }
        let old = inner_entries(&page, at.page, level).map_err(fault(at.page))?;
        let mut new = Vec::with_capacity(old.len());
        let mut rest = changes;
        for (index, entry) in old.iter().enumerate() {
            let count = old.get(index + 1).map_or(rest.len(), |next| {
                rest.partition_point(|(key, _)| *key < next.first)
            });
            let (mine, others) = rest.split_at(count);
            rest = others;
            if mine.is_empty() {
                new.push(*entry);
            } else {
                new.append(&mut self.update(update, *entry, level - 1, mine)?);
            }
        }
        if new == old {
            return Ok(vec![entry]);
        }
        update.replaced.push(at.page);
        self.write_inner(update, &new, level)
    }

    /// Writes the leaves that `changes` make of `records`.
    fn update_leaf(
        &mut self,
        update: &mut Update<'_>,
        records: &[(Guid, &[u8])],
        changes: &[Change],
    ) -> Result<Vec<Entry>, ImageError> {
        let mut merged: Vec<(Guid, &[u8])> = Vec::with_capacity(records.len() + changes.len());
        let mut old = records.iter().peekable();
        for (key, value) in changes {
            while let Some(record) = old.next_if(|(old, _)| old < key) {
                merged.push(*record);
            }
            if let Some((_, value)) = old.next_if(|(old, _)| old == key) {
                update.record_count -= 1;
                update.record_bytes -= record_bytes(value) as u64;
            }
            if let Some(value) = value {
                update.record_count += 1;
                update.record_bytes += record_bytes(value) as u64;
                merged.push((*key, value));
            }
        }
        merged.extend(old);
        let mut entries = Vec::new();
        let mut rest = &merged[..];
        while !rest.is_empty() {
            let (share, others) = rest.split_at(leaf_share(rest));
            rest = others;
            let sequence = update.sequence;
            entries.push(self.write_page(update, share[0].0, |at| leaf(share, at, sequence))?);
        }
        Ok(entries)
    }

    /// Writes inner pages at `level` with these entries.
    fn write_inner(
        &mut self,
        update: &mut Update<'_>,
        entries: &[Entry],
        level: u32,
    ) -> Result<Vec<Entry>, ImageError> {
        let mut written = Vec::with_capacity(entries.len().div_ceil(FANOUT));
        let mut rest = entries;
        while !rest.is_empty() {
            let (share, others) = rest.split_at(inner_share(rest));
            rest = others;
            let sequence = update.sequence;
            written.push(self.write_page(update, share[0].first, |at| {
                inner(share, level, at, sequence)
            })?);
        }
        Ok(written)
    }

    fn write_page(
        &mut self,
        update: &mut Update<'_>,
        first: Guid,
        make: impl FnOnce(u32) -> Page,
    ) -> Result<Entry, ImageError> {
        let number = self.allocate()?;
        update.fresh.push(number);
        let page = make(number);
        self.storage
            .write(u64::from(number) * PAGE_BYTES as u64, &page)
            .map_err(io("write a page"))?;
        Ok(Entry {
            first,
            at: Pointer {
                page: number,
                crc: crc32fast::hash(&page),
            },
        })
    }

    fn live_pages(&self) -> Vec<u32> {
        let previous: BTreeSet<_> = self.previous.iter().collect();
        (FIRST_PAGE..self.page_count)
            .filter(|page| !self.free.contains(page) && !previous.contains(page))
            .collect()
    }

    /// Whether removals have left the tree with several times the pages that its records need.
    fn is_sparse(&self) -> bool {
        let needed = self.root.record_bytes / (LEAF_BYTES as u64);
        u64::from(self.health().live_count) > 4 * needed + 16
    }

    /// All records as they are after `changes`, to be written anew.
    fn compacted(&self, changes: Vec<Change>) -> Result<Vec<Change>, ImageError> {
        let mut all = BTreeMap::new();
        let mut seen = PageSet::new(self.page_count);
        walk(
            &self.storage,
            &self.root,
            &mut seen,
            None,
            &mut |key, value| {
                all.insert(key, Some(value.to_vec()));
                Ok(())
            },
        )?;
        all.extend(changes);
        Ok(all.into_iter().collect())
    }
}
