//! A checksummed record store over a [`Storage`]: the file format of `docs/crt-format.md`.
//!
//! Records (a GUID and some bytes) lie in a copy-on-write tree of 4 KiB pages, every page's checksum
//! in the page above it, the topmost one's in a root. Two roots take turns. A commit writes the
//! changed pages to free places, makes them durable, then writes the older root anew; so at any
//! moment the storage holds one whole version, and except while a root is being written, two.
//!
//! Invariants:
//!
//! * A page that either root reaches is never written. Pages that a commit replaced are free only
//!   after the next commit.
//! * After a failed commit the image in memory and the newest whole version that is certain in the
//!   storage are the old ones; a root that may or may not have been written is wiped before any of
//!   its pages is written again.

mod page;
mod root;
mod storage;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeSet;
use std::io;

use page::{FIRST_PAGE, Page};
pub use page::{MAX_PAGES, PageFault};
use root::{Root, Slot};
pub use storage::{MemoryStorage, Storage};

use crate::planted::{self, Bug};
use crate::wire::row::MAX_ROW_BYTES;
use crate::wire::{ClusterName, DecodeError, Guid};

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// The format that this code writes and reads.
pub const FORMAT_VERSION: u32 = 1;
/// The most bytes of a record's value.
pub const MAX_RECORD_BYTES: usize = MAX_ROW_BYTES;
/// The most bytes that the holder can keep beside the records.
pub const MAX_META_BYTES: usize = PAGE_BYTES - 128 - 4;

/// Pages of a new image.
const INITIAL_PAGES: u32 = 64;
/// Pages by which an image grows at least.
const GROWTH_PAGES: u32 = 64;

/// What an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ImageKind {
    /// A cluster resource table.
    Crt = 1,
    /// A unit's ownership registers.
    Registers = 2,
    /// What a voter of the allocation lease has promised.
    Vote = 3,
}

impl ImageKind {
    /// The number in the file.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The kind of a number, or `None` where the number is not assigned.
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Crt),
            2 => Some(Self::Registers),
            3 => Some(Self::Vote),
            _ => None,
        }
    }
}

impl std::fmt::Display for ImageKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Crt => "a cluster resource table",
            Self::Registers => "ownership registers",
            Self::Vote => "a vote",
        })
    }
}

/// What an image says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// What it holds.
    pub kind: ImageKind,
    /// The host or unit that it belongs to.
    pub owner: Guid,
    /// The cluster that it belongs to; none where that is not known yet.
    pub cluster: ClusterName,
    /// Counts the commits.
    pub sequence: u64,
    /// Number of records.
    pub record_count: u64,
    /// When it was committed, seconds since 1970, for people; never compared.
    pub label_s: u64,
    /// What the holder keeps beside the records.
    pub meta: Vec<u8>,
}

/// What the opener of an image expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// What it should hold.
    pub kind: ImageKind,
    /// Whose it should be; `None` for anyone's.
    pub owner: Option<Guid>,
    /// Which cluster's it should be; none for any. An image of no cluster is always welcome.
    pub cluster: ClusterName,
}

/// How the two roots and the pages of an image were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Each root.
    pub roots: [RootState; 2],
    /// Pages of the storage, both roots included.
    pub page_count: u32,
    /// Pages of the newest version.
    pub live_count: u32,
    /// Pages of the version before that the newest one has replaced.
    pub previous_count: u32,
    /// Pages that are free.
    pub free_count: u32,
}

/// How a root was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootState {
    /// Never written, or wiped.
    Empty,
    /// Whole, of this commit.
    Whole {
        /// The commit's number.
        sequence: u64,
    },
    /// Torn by a crash while it was written, or decayed.
    Torn,
}

/// What is wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The storage failed.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the storage said.
        source: io::Error,
    },
    /// Nothing of ours.
    #[error("this is not an rma file")]
    NotImage,
    /// Another format version.
    #[error(
        "this file has format version {found}, and this program reads version {FORMAT_VERSION}"
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// It holds something else.
    #[error("this file holds {found}, not {expected}")]
    Kind {
        /// What it holds.
        found: ImageKind,
        /// What was expected.
        expected: ImageKind,
    },
    /// It is another entity's.
    #[error("this file belongs to {found}, not to {expected}")]
    Owner {
        /// Whose it is.
        found: Guid,
        /// Whose it should be.
        expected: Guid,
    },
    /// It is another cluster's.
    #[error("this table belongs to cluster {found}, not {expected}")]
    Cluster {
        /// Its cluster.
        found: ClusterName,
        /// The cluster that was expected.
        expected: ClusterName,
    },
    /// It is shorter than it says.
    #[error("this file is truncated: {len} of {expected} bytes")]
    Truncated {
        /// Its length in bytes.
        len: u64,
        /// The least bytes that it should have.
        expected: u64,
    },
    /// There is no whole root.
    #[error("this file is corrupted: neither root is whole")]
    Roots,
    /// A page is bad.
    #[error("this file is corrupted: page {page}: {fault}")]
    Page {
        /// Its number.
        page: u32,
        /// What is wrong with it.
        fault: PageFault,
    },
    /// A record with a right checksum does not parse.
    #[error("this file is corrupted: record {key}: {source}")]
    Record {
        /// Its key.
        key: Guid,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// What the holder keeps beside the records does not parse.
    #[error("this file is corrupted: its root's fields: {0}")]
    Meta(DecodeError),
    /// A record or the bytes beside the records are too long to be kept.
    #[error("{len} bytes in one record, the most is {MAX_RECORD_BYTES}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// No page is left.
    #[error("the file is full: {MAX_PAGES} pages of {PAGE_BYTES} bytes")]
    Full,
}

impl ImageError {
    /// Whether another reading may succeed where a writer was at work meanwhile.
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Truncated { .. } | Self::Roots | Self::Page { .. } | Self::Io { .. }
        )
    }
}

/// Names what was being done when the storage failed.
fn io(doing: &'static str) -> impl FnOnce(io::Error) -> ImageError {
    move |source| ImageError::Io { doing, source }
}

/// What a commit changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Records by key: the new value, or `None` for a record that goes. Of two with one key the
    /// later counts.
    pub records: Vec<(Guid, Option<Vec<u8>>)>,
    /// Whether records that are not named go as well.
    pub replace: bool,
    /// The cluster that the image belongs to.
    pub cluster: ClusterName,
    /// What the holder keeps beside the records, at most [`MAX_META_BYTES`].
    pub meta: Vec<u8>,
    /// When this is, seconds since 1970, for people.
    pub label_s: u64,
}

/// A set of records, each a GUID and some bytes, that changes by whole commits.
#[derive(Debug)]
pub struct Image<S> {
    storage: S,
    /// The newest version that is certain to be durable.
    root: Root,
    /// Pages that no version needs.
    free: BTreeSet<u32>,
    /// Pages that only the version before needs, whose root is in the other slot.
    previous: Vec<u32>,
    /// Pages of the storage.
    page_count: u32,
    /// Whether the other slot may hold a root that was reported as not committed.
    uncertain: bool,
    roots: [RootState; 2],
}

impl<S: Storage> Image<S> {
    /// Writes a new image without records over `storage`, which is empty.
    pub fn create(
        mut storage: S,
        kind: ImageKind,
        owner: Guid,
        commit: Commit,
    ) -> Result<Self, ImageError> {
        storage
            .grow(u64::from(INITIAL_PAGES) * PAGE_BYTES as u64)
            .map_err(io("allocate it"))?;
        let root = Root {
            kind,
            owner,
            cluster: commit.cluster,
            sequence: 0,
            page_count: INITIAL_PAGES,
            record_count: 0,
            record_bytes: 0,
            label_s: commit.label_s,
            tree: None,
            height: 0,
            meta: Vec::new(),
        };
        let mut image = Self {
            storage,
            root,
            free: (FIRST_PAGE..INITIAL_PAGES).collect(),
            previous: Vec::new(),
            page_count: INITIAL_PAGES,
            uncertain: false,
            roots: [RootState::Empty; 2],
        };
        image.commit(commit)?;
        Ok(image)
    }

    /// Opens the image in `storage`: chooses the newest whole root, checks every page below it and
    /// hands every record to `visit`, by ascending key. Nothing is written: see [`Image::confirm`].
    pub fn open(
        mut storage: S,
        expected: &Expected,
        mut visit: impl FnMut(Guid, &[u8]) -> Result<(), DecodeError>,
    ) -> Result<Self, ImageError> {
        let (root, other, roots) = choose(&storage)?;
        expect(&root, expected)?;
        let len = storage.len().map_err(io("learn its length"))?;
        let needed = u64::from(root.page_count) * PAGE_BYTES as u64;
        if len < needed {
            return Err(ImageError::Truncated {
                len,
                expected: needed,
            });
        }
        let page_count = u32::try_from(len / PAGE_BYTES as u64)
            .unwrap_or(MAX_PAGES)
            .min(MAX_PAGES);
        let mut live = tree::PageSet::new(page_count);
        tree::walk(&storage, &root, &mut live, None, &mut visit)?;
        let mut before = tree::PageSet::new(page_count);
        if let Some(other) = other {
            let whole = tree::walk(&storage, &other, &mut before, Some(&live), &mut |_, _| {
                Ok(())
            });
            if whole.is_err() {
                // A root of which pages are gone cannot be gone back to: nothing to keep.
                before = tree::PageSet::new(page_count);
            }
        }
        storage.rest();
        let pages = FIRST_PAGE..page_count;
        Ok(Self {
            storage,
            root,
            free: pages
                .clone()
                .filter(|page| !live.contains(*page) && !before.contains(*page))
                .collect(),
            previous: pages
                .filter(|page| before.contains(*page) && !live.contains(*page))
                .collect(),
            page_count,
            uncertain: false,
            roots,
        })
    }

    /// Makes sure that the version which was opened is durable; before it acts on that version, a
    /// writer must. A process that ended may have left its root written and not synced, and an
    /// error of a sync may have made the system forget that it is not. So it is written again.
    pub fn confirm(&mut self) -> Result<(), ImageError> {
        self.write_slot(self.root.slot(), &self.root.encode())
    }

    /// What the image says about itself.
    pub fn info(&self) -> ImageInfo {
        let root = &self.root;
        ImageInfo {
            kind: root.kind,
            owner: root.owner,
            cluster: root.cluster,
            sequence: root.sequence,
            record_count: root.record_count,
            label_s: root.label_s,
            meta: root.meta.clone(),
        }
    }

    /// How roots and pages are; the roots as they were found when the image was opened.
    pub fn health(&self) -> Health {
        let (free, previous) = (self.free.len() as u32, self.previous.len() as u32);
        Health {
            roots: self.roots,
            page_count: self.page_count,
            live_count: self.page_count - FIRST_PAGE - free - previous,
            previous_count: previous,
            free_count: free,
        }
    }

    /// The value of one record.
    pub fn get(&self, key: Guid) -> Result<Option<Vec<u8>>, ImageError> {
        tree::get(&self.storage, &self.root, key)
    }

    /// The storage.
    pub const fn storage(&self) -> &S {
        &self.storage
    }

    /// The storage, to handle beside the image; its bytes are the image's.
    pub const fn storage_mut(&mut self) -> &mut S {
        &mut self.storage
    }

    /// Ends with the image and gives the storage back.
    pub fn into_storage(self) -> S {
        self.storage
    }

    /// Makes the changes durable, all or none, before it returns. After an error the image is
    /// what it was, and the same can be committed again.
    pub fn commit(&mut self, mut commit: Commit) -> Result<(), ImageError> {
        let too_long = commit
            .records
            .iter()
            .filter_map(|(_, value)| value.as_ref())
            .map(Vec::len)
            .find(|len| *len > MAX_RECORD_BYTES);
        let meta_len = Some(commit.meta.len()).filter(|len| *len > MAX_META_BYTES);
        if let Some(len) = too_long.or(meta_len) {
            return Err(ImageError::TooLong { len });
        }
        // The sort is stable: of equal keys the later one stays last, and is kept.
        commit.records.sort_by_key(|(key, _)| *key);
        commit.records.reverse();
        commit.records.dedup_by_key(|(key, _)| *key);
        commit.records.reverse();

        self.check_length()?;
        self.wipe_uncertain()?;
        let mut fresh = Vec::new();
        let outcome = self.commit_pages(commit, &mut fresh);
        match outcome {
            Ok(replaced) => {
                self.free.extend(self.previous.drain(..));
                self.previous = replaced;
                Ok(())
            }
            Err(error) => {
                self.free.extend(fresh);
                Err(error)
            }
        }
    }

    /// Writes pages and root; returns the pages of the old version that the new one has not.
    fn commit_pages(
        &mut self,
        commit: Commit,
        fresh: &mut Vec<u32>,
    ) -> Result<Vec<u32>, ImageError> {
        let mut root = Root {
            sequence: self.root.sequence + 1,
            cluster: commit.cluster,
            label_s: commit.label_s,
            meta: commit.meta,
            ..self.root.clone()
        };
        let replaced = self.write_tree(&mut root, commit.records, commit.replace, fresh)?;
        root.page_count = self.page_count;
        if let (Some(first), Some(last)) = (fresh.iter().min(), fresh.iter().max())
            && !planted::is(Bug::PagesNotSynced)
        {
            let (first, last) = (u64::from(*first), u64::from(*last));
            self.storage
                .sync(
                    first * PAGE_BYTES as u64,
                    (last - first + 1) * PAGE_BYTES as u64,
                )
                .map_err(io("make pages durable"))?;
        }
        self.uncertain = true;
        let mut slot = root.slot();
        if planted::is(Bug::RootInPlace) {
            slot = self.root.slot();
        }
        self.write_slot(slot, &root.encode())?;
        self.uncertain = false;
        self.root = root;
        Ok(replaced)
    }

    fn write_slot(&mut self, slot: u32, page: &Page) -> Result<(), ImageError> {
        let offset = u64::from(slot) * PAGE_BYTES as u64;
        self.storage
            .write(offset, page)
            .map_err(io("write a root"))?;
        self.storage
            .sync(offset, PAGE_BYTES as u64)
            .map_err(io("make a root durable"))
    }

    /// Takes a root away that may have been written by a commit that was reported as failed, and
    /// with it the version before that it replaced.
    fn wipe_uncertain(&mut self) -> Result<(), ImageError> {
        if self.uncertain {
            self.write_slot(1 - self.root.slot(), &[0; PAGE_BYTES])?;
            self.uncertain = false;
            self.free.extend(self.previous.drain(..));
        }
        Ok(())
    }

    fn check_length(&self) -> Result<(), ImageError> {
        let len = self.storage.len().map_err(io("learn its length"))?;
        let expected = u64::from(self.page_count) * PAGE_BYTES as u64;
        if len < expected {
            return Err(ImageError::Truncated { len, expected });
        }
        Ok(())
    }

    /// A free page to write.
    fn allocate(&mut self) -> Result<u32, ImageError> {
        if self.free.is_empty() {
            let more = GROWTH_PAGES.max(self.page_count / 8);
            let count = (self.page_count + more).min(MAX_PAGES);
            if count == self.page_count {
                return Err(ImageError::Full);
            }
            self.storage
                .grow(u64::from(count) * PAGE_BYTES as u64)
                .map_err(io("enlarge it"))?;
            self.free.extend(self.page_count..count);
            self.page_count = count;
        }
        self.free.pop_first().ok_or(ImageError::Full)
    }
}

/// The newest whole root, the other one if that is whole too, and how both were found.
fn choose<S: Storage>(storage: &S) -> Result<(Root, Option<Root>, [RootState; 2]), ImageError> {
    let len = storage.len().map_err(io("learn its length"))?;
    let mut slots = [Slot::Empty, Slot::Empty];
    for (index, slot) in slots.iter_mut().enumerate() {
        let offset = (index * PAGE_BYTES) as u64;
        let mut page = [0; PAGE_BYTES];
        let there = len.saturating_sub(offset).min(PAGE_BYTES as u64) as usize;
        if there > 0 {
            storage
                .read(offset, &mut page[..there])
                .map_err(io("read a root"))?;
        }
        *slot = Root::decode(&page, index as u32);
    }
    let state = |slot: &Slot| match slot {
        Slot::Empty => RootState::Empty,
        Slot::Valid(root) => RootState::Whole {
            sequence: root.sequence,
        },
        _ => RootState::Torn,
    };
    let states = [state(&slots[0]), state(&slots[1])];
    let ours = slots
        .iter()
        .any(|slot| !matches!(slot, Slot::Empty | Slot::Foreign));
    let short = len < 2 * PAGE_BYTES as u64;
    match slots {
        _ if short && ours => Err(ImageError::Truncated {
            len,
            expected: 2 * PAGE_BYTES as u64,
        }),
        [Slot::Version(found), _] | [_, Slot::Version(found)] => Err(ImageError::Version { found }),
        [Slot::Valid(a), Slot::Valid(b)] if a.sequence > b.sequence => Ok((*a, Some(*b), states)),
        [Slot::Valid(a), Slot::Valid(b)] => Ok((*b, Some(*a), states)),
        [Slot::Valid(one), _] | [_, Slot::Valid(one)] => Ok((*one, None, states)),
        _ if ours => Err(ImageError::Roots),
        _ => Err(ImageError::NotImage),
    }
}

fn expect(root: &Root, expected: &Expected) -> Result<(), ImageError> {
    if root.kind != expected.kind {
        return Err(ImageError::Kind {
            found: root.kind,
            expected: expected.kind,
        });
    }
    if let Some(owner) = expected.owner.filter(|owner| *owner != root.owner) {
        return Err(ImageError::Owner {
            found: root.owner,
            expected: owner,
        });
    }
    let either_none = root.cluster.is_none() || expected.cluster.is_none();
    if !either_none && root.cluster != expected.cluster {
        return Err(ImageError::Cluster {
            found: root.cluster,
            expected: expected.cluster,
        });
    }
    Ok(())
}
