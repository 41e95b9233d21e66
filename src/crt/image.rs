//! The checksummed record store of `docs/crt-format.md` over a [`Storage`].

use std::io;

use crate::wire::{ClusterName, Guid};

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// The format that this code writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// What an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ImageKind {
    /// A cluster resource table.
    Crt = 1,
    /// A unit's ownership registers.
    Registers = 2,
}

/// Where an image lies. Nothing is durable before it is synced; what is synced together becomes
/// durable in any order and in any pieces.
pub trait Storage {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Fills `buffer` from `offset`.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes `bytes` at `offset`, within the length.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes what was written to the range durable before it returns.
    fn sync(&mut self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes it `len` bytes long, the new bytes zero; never shorter.
    fn grow(&mut self, len: u64) -> io::Result<()>;
    /// Nothing will be read for a while: memory that mirrors the storage can go.
    fn rest(&mut self) {}
    /// Whether there is not one byte.
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
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

/// What is wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The storage failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A set of records, each a GUID and some bytes, that changes by whole commits.
#[derive(Debug)]
pub struct Image<S> {
    storage: S,
}

impl<S: Storage> Image<S> {
    /// The storage.
    pub fn storage(&self) -> &S {
        &self.storage
    }
}
