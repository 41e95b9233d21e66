//! The two roots: what an image is, and where its tree begins.

use zerocopy::byteorder::network_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::page::{FIRST_PAGE, MAX_HEIGHT, MAX_PAGES, Page, Pointer};
use super::{FORMAT_VERSION, ImageKind, MAX_META_BYTES, PAGE_BYTES};
use crate::wire::{ClusterName, Guid};

/// The first bytes of every rma file. The high bit, the line ends and the end-of-file character
/// show a transfer that took it for text.
const MAGIC: [u8; 8] = *b"\x89rma\r\n\x1a\n";

/// Where the checksum of a root lies: it ends the page, in every version.
const CRC_AT: usize = PAGE_BYTES - 4;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRoot {
    magic: [u8; 8],
    version: U32,
    kind: U32,
    page_bytes: U32,
    page_count: U32,
    sequence: U64,
    record_count: U64,
    record_bytes: U64,
    label_s: U64,
    owner: [u8; 16],
    cluster: [u8; 16],
    tree_page: U32,
    tree_crc: U32,
    tree_height: U32,
    meta_len: U32,
    reserved: [u8; 24],
}

const RAW_BYTES: usize = size_of::<RawRoot>();

const _: () = {
    assert!(RAW_BYTES == 128);
    assert!(std::mem::offset_of!(RawRoot, version) == 8);
    assert!(std::mem::offset_of!(RawRoot, sequence) == 24);
    assert!(std::mem::offset_of!(RawRoot, owner) == 56);
    assert!(std::mem::offset_of!(RawRoot, cluster) == 72);
    assert!(std::mem::offset_of!(RawRoot, tree_page) == 88);
    assert!(std::mem::offset_of!(RawRoot, reserved) == 104);
    assert!(RAW_BYTES + MAX_META_BYTES == CRC_AT);
};

/// A root with valid values only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) kind: ImageKind,
    pub(super) owner: Guid,
    pub(super) cluster: ClusterName,
    pub(super) sequence: u64,
    /// Pages of the storage, both roots included.
    pub(super) page_count: u32,
    pub(super) record_count: u64,
    /// Bytes of all records with their keys and lengths.
    pub(super) record_bytes: u64,
    pub(super) label_s: u64,
    /// Where the tree begins; `None` where there are no records.
    pub(super) tree: Option<Pointer>,
    /// Levels of the tree, 0 where there are no records.
    pub(super) height: u32,
    pub(super) meta: Vec<u8>,
}

/// What lies where a root belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Slot {
    /// Only zeroes: never written.
    Empty,
    /// A whole root.
    Valid(Box<Root>),
    /// A whole root of another format version.
    Version(u32),
    /// A root that was torn or has decayed.
    Torn,
    /// Nothing of ours.
    Foreign,
}

impl Root {
    /// Which of the two slots the root is written to.
    pub(super) const fn slot(&self) -> u32 {
        (self.sequence & 1) as u32
    }

    pub(super) fn encode(&self) -> Page {
        let tree = self.tree.unwrap_or_default();
        let raw = RawRoot {
            magic: MAGIC,
            version: FORMAT_VERSION.into(),
            kind: self.kind.code().into(),
            page_bytes: (PAGE_BYTES as u32).into(),
            page_count: self.page_count.into(),
            sequence: self.sequence.into(),
            record_count: self.record_count.into(),
            record_bytes: self.record_bytes.into(),
            label_s: self.label_s.into(),
            owner: self.owner.0.to_be_bytes(),
            cluster: self.cluster.to_bytes(),
            tree_page: tree.page.into(),
            tree_crc: tree.crc.into(),
            tree_height: self.height.into(),
            meta_len: (self.meta.len() as u32).into(),
            reserved: [0; 24],
        };
        let mut page = [0; PAGE_BYTES];
        page[..RAW_BYTES].copy_from_slice(raw.as_bytes());
        page[RAW_BYTES..RAW_BYTES + self.meta.len()].copy_from_slice(&self.meta);
        let crc = crc32fast::hash(&page[..CRC_AT]);
        page[CRC_AT..].copy_from_slice(&crc.to_be_bytes());
        page
    }

    /// What `page` is, as the root in `slot`.
    pub(super) fn decode(page: &Page, slot: u32) -> Slot {
        if page.iter().all(|byte| *byte == 0) {
            return Slot::Empty;
        }
        if page[..8] != MAGIC {
            return Slot::Foreign;
        }
        let (body, crc) = page.split_at(CRC_AT);
        if crc32fast::hash(body).to_be_bytes() != crc {
            return Slot::Torn;
        }
        let Ok((raw, meta)) = RawRoot::read_from_prefix(body) else {
            return Slot::Torn;
        };
        if raw.version.get() != FORMAT_VERSION {
            return Slot::Version(raw.version.get());
        }
        match Self::from_raw(&raw, meta) {
            Some(root) if root.slot() == slot => Slot::Valid(Box::new(root)),
            _ => Slot::Torn,
        }
    }

    fn from_raw(raw: &RawRoot, rest: &[u8]) -> Option<Self> {
        let meta = rest.get(..raw.meta_len.get() as usize)?;
        let page_count = raw.page_count.get();
        let height = raw.tree_height.get();
        let pointer = Pointer {
            page: raw.tree_page.get(),
            crc: raw.tree_crc.get(),
        };
        let valid = raw.page_bytes.get() as usize == PAGE_BYTES
            && (FIRST_PAGE..=MAX_PAGES).contains(&page_count)
            && height <= MAX_HEIGHT
            && raw.sequence.get() < u64::MAX
            && (height == 0) == (pointer == Pointer::default())
            && (height == 0) == (raw.record_count.get() == 0)
            && raw.reserved == [0; 24];
        if !valid {
            return None;
        }
        Some(Self {
            kind: ImageKind::from_code(raw.kind.get())?,
            owner: Guid(u128::from_be_bytes(raw.owner)),
            cluster: ClusterName::from_bytes(raw.cluster)?,
            sequence: raw.sequence.get(),
            page_count,
            record_count: raw.record_count.get(),
            record_bytes: raw.record_bytes.get(),
            label_s: raw.label_s.get(),
            tree: (height != 0).then_some(pointer),
            height,
            meta: meta.to_vec(),
        })
    }
}
