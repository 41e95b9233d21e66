//! Pages of the tree: leaves hold records, inner pages hold where pages below lie and their
//! checksums.

use zerocopy::byteorder::network_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{MAX_RECORD_BYTES, PAGE_BYTES};
use crate::wire::Guid;

/// The bytes of one page.
pub(super) type Page = [u8; PAGE_BYTES];

/// The first page behind the roots.
pub(super) const FIRST_PAGE: u32 = 2;
/// The most pages of an image: 1 GiB.
pub const MAX_PAGES: u32 = 1 << 18;
/// The most levels of a tree; the pages of [`MAX_PAGES`] need fewer.
pub(super) const MAX_HEIGHT: u32 = 6;

const LEAF: u8 = b'L';
const INNER: u8 = b'I';

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHead {
    kind: u8,
    level: u8,
    count: U16,
    page: U32,
    sequence: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawEntry {
    first: U128,
    page: U32,
    crc: U32,
}

const HEAD_BYTES: usize = size_of::<RawHead>();
const ENTRY_BYTES: usize = size_of::<RawEntry>();
/// Bytes of a record beside its value: key and length.
pub(super) const RECORD_HEAD_BYTES: usize = 18;
/// Bytes of a leaf that records can fill.
pub(super) const LEAF_BYTES: usize = PAGE_BYTES - HEAD_BYTES;
/// How far a leaf is filled when its records need more than one: rows may grow in place.
const LEAF_FILL_BYTES: usize = LEAF_BYTES * 3 / 4;
/// The most entries of an inner page.
pub(super) const FANOUT: usize = (PAGE_BYTES - HEAD_BYTES) / ENTRY_BYTES;
/// How far an inner page is filled when its entries need more than one.
const FANOUT_FILL: usize = FANOUT * 3 / 4;

const _: () = {
    assert!(HEAD_BYTES == 16 && ENTRY_BYTES == 24 && FANOUT == 170);
    assert!(MAX_RECORD_BYTES + RECORD_HEAD_BYTES <= LEAF_FILL_BYTES);
};

/// Where a page lies and what its checksum is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Pointer {
    pub(super) page: u32,
    pub(super) crc: u32,
}

/// What an inner page knows of a page below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// The first key below.
    pub(super) first: Guid,
    pub(super) at: Pointer,
}

/// What can be wrong with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageFault {
    /// Not inside the file.
    #[error("it lies outside the file")]
    Outside,
    /// The checksum is wrong.
    #[error("wrong checksum")]
    Checksum,
    /// The checksum is right, but this is another page, or of another level.
    #[error("another page lies there")]
    Misplaced,
    /// Its content does not parse.
    #[error("wrong layout")]
    Layout,
    /// Keys do not ascend.
    #[error("keys out of order")]
    Order,
    /// Two pages point to it.
    #[error("it belongs to two places")]
    Shared,
    /// The tree below the root holds another number of records than the root says.
    #[error("records are missing or surplus below it")]
    Count,
}

/// The head of a page, valid values only.
fn head(page: &Page, at: u32, level: u32) -> Result<usize, PageFault> {
    let (raw, _) = RawHead::ref_from_prefix(page).map_err(|_| PageFault::Layout)?;
    let kind = if level == 0 { LEAF } else { INNER };
    if raw.page.get() != at || u32::from(raw.level) != level || raw.kind != kind {
        return Err(PageFault::Misplaced);
    }
    match raw.count.get() {
        0 => Err(PageFault::Layout),
        count => Ok(count.into()),
    }
}

/// The records of a leaf that lies at `at`.
pub(super) fn leaf_records(page: &Page, at: u32) -> Result<Vec<(Guid, &[u8])>, PageFault> {
    let count = head(page, at, 0)?;
    let mut rest = &page[HEAD_BYTES..];
    let mut records: Vec<(Guid, &[u8])> = Vec::with_capacity(count.min(LEAF_BYTES / 18));
    for _ in 0..count {
        let (key, tail) = U128::read_from_prefix(rest).map_err(|_| PageFault::Layout)?;
        let (len, tail) = U16::read_from_prefix(tail).map_err(|_| PageFault::Layout)?;
        let len = usize::from(len.get());
        if len > MAX_RECORD_BYTES {
            return Err(PageFault::Layout);
        }
        let (value, tail) = tail.split_at_checked(len).ok_or(PageFault::Layout)?;
        let key = Guid(key.get());
        if records.last().is_some_and(|(last, _)| *last >= key) {
            return Err(PageFault::Order);
        }
        records.push((key, value));
        rest = tail;
    }
    Ok(records)
}

/// The entries of an inner page that lies at `at`.
pub(super) fn inner_entries(page: &Page, at: u32, level: u32) -> Result<Vec<Entry>, PageFault> {
    let count = head(page, at, level)?;
    let (raw, _) = <[RawEntry]>::ref_from_prefix_with_elems(&page[HEAD_BYTES..], count)
        .map_err(|_| PageFault::Layout)?;
    let entries: Vec<_> = raw
        .iter()
        .map(|raw| Entry {
            first: Guid(raw.first.get()),
            at: Pointer {
                page: raw.page.get(),
                crc: raw.crc.get(),
            },
        })
        .collect();
    if entries.windows(2).all(|w| w[0].first < w[1].first) {
        Ok(entries)
    } else {
        Err(PageFault::Order)
    }
}

fn start(kind: u8, level: u32, count: usize, at: u32, sequence: u64) -> Page {
    let raw = RawHead {
        kind,
        level: level as u8,
        count: (count as u16).into(),
        page: at.into(),
        sequence: sequence.into(),
    };
    let mut page = [0; PAGE_BYTES];
    page[..HEAD_BYTES].copy_from_slice(raw.as_bytes());
    page
}

/// A leaf for `at`; the records fit.
pub(super) fn leaf(records: &[(Guid, &[u8])], at: u32, sequence: u64) -> Page {
    let mut page = start(LEAF, 0, records.len(), at, sequence);
    let mut offset = HEAD_BYTES;
    let mut put = |bytes: &[u8]| {
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
        offset += bytes.len();
    };
    for (key, value) in records {
        put(&key.0.to_be_bytes());
        put(&(value.len() as u16).to_be_bytes());
        put(value);
    }
    page
}

/// An inner page for `at`; the entries fit.
pub(super) fn inner(entries: &[Entry], level: u32, at: u32, sequence: u64) -> Page {
    let mut page = start(INNER, level, entries.len(), at, sequence);
    for (index, entry) in entries.iter().enumerate() {
        let raw = RawEntry {
            first: entry.first.0.into(),
            page: entry.at.page.into(),
            crc: entry.at.crc.into(),
        };
        let offset = HEAD_BYTES + index * ENTRY_BYTES;
        page[offset..offset + ENTRY_BYTES].copy_from_slice(raw.as_bytes());
    }
    page
}

/// Bytes that a record takes in a leaf.
pub(super) const fn record_bytes(value: &[u8]) -> usize {
    RECORD_HEAD_BYTES + value.len()
}

/// How many of the first records go into one leaf.
pub(super) fn leaf_share(records: &[(Guid, &[u8])]) -> usize {
    let mut bytes = 0;
    let mut share = 0;
    for (index, (_, value)) in records.iter().enumerate() {
        bytes += record_bytes(value);
        if bytes <= LEAF_FILL_BYTES {
            share = index + 1;
        }
        if bytes > LEAF_BYTES {
            return share;
        }
    }
    records.len()
}

/// How many of the first entries go into one inner page.
pub(super) fn inner_share(entries: &[Entry]) -> usize {
    if entries.len() <= FANOUT {
        entries.len()
    } else {
        FANOUT_FILL
    }
}
