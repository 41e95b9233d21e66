//! What a unit serves: files, block devices and memory, and the threads that work on them.
//! Knows no protocol.
//!
//! Promises that the rest of the unit relies on (I4):
//! - a write that is done is seen by every later read, and survives the end of this process;
//! - a flush, or a write with FUA, that is done survives power loss (`features::DURABLE`);
//! - when the kernel once failed to make data durable, no later flush or FUA claims that it is:
//!   the kernel may have forgotten which data was lost.

mod disk;
mod memory;
mod pool;
mod syscalls;
mod uring;

use std::os::fd::BorrowedFd;

use crate::unit::disk::{DiskError, DiskInfo, DiskOp};
use crate::wire::Tail;

pub use disk::{Disk, Options};
pub use memory::{MAX_MEMORY_BYTES, Memory};
pub use pool::{Completion, Pool, PoolError};
pub use syscalls::{Kernel, Syscalls};

/// Facts of a backend.
pub type BackendInfo = DiskInfo;

/// Smallest and default logical block size, bytes.
pub const MIN_BLOCK_SIZE: u32 = 512;
/// Largest logical block size, bytes: what every kernel can export.
pub const MAX_BLOCK_SIZE: u32 = 4096;

/// A medium behind a device. Operations of several threads may run at the same time; those that
/// overlap in time and range have no order.
pub trait Backend: Send + Sync {
    /// Its facts now.
    fn info(&self) -> BackendInfo;

    /// Performs one operation, blocking. Only reads give bytes.
    fn execute(&self, op: DiskOp) -> Result<Vec<u8>, DiskError>;

    /// Reads `into.len()` bytes where that needs no waiting. Nothing: [`Self::execute`] has to do it.
    fn read_at_once(&self, offset: u64, into: &mut [u8]) -> Option<Result<(), DiskError>> {
        let _ = (offset, into);
        None
    }

    /// Gives `len` bytes where they are, as they are now: as long as they are held, what is written there is
    /// written somewhere else. Nothing: they are not in memory, or not one after the other.
    fn lend(&self, offset: u64, len: u64) -> Option<Result<Tail, DiskError>> {
        let _ = (offset, len);
        None
    }

    /// Whether something is lent that has to be copied before these bytes are changed.
    fn is_lent(&self, offset: u64, len: u64) -> bool {
        let _ = (offset, len);
        false
    }

    /// Whether that is because of this.
    fn is_lent_as(&self, lent: &Tail, offset: u64, len: u64) -> bool {
        let _ = (lent, offset, len);
        false
    }

    /// The open file that these bytes are to be read from, at the same place, where there is one and they are
    /// in it.
    fn readable(&self, offset: u64, len: u32) -> Option<BorrowedFd<'_>> {
        let _ = (offset, len);
        None
    }

    /// Writes `data`, not yet durable, where that needs no waiting. Nothing: [`Self::execute`] has to do it.
    /// Nobody else uses the medium meanwhile, so that no lock is needed. `sum` is the checksum of `data` where that is
    /// a block (of [`sum::BLOCK_BYTES`](crate::wire::sum::BLOCK_BYTES)) and it is known.
    fn write_at_once(
        &mut self,
        offset: u64,
        data: &[u8],
        sum: Option<u32>,
    ) -> Option<Result<(), DiskError>> {
        let _ = (offset, data, sum);
        None
    }

    /// Serves `wanted` bytes from now on (`None`: as many as the medium has). A medium that can
    /// grow does; none ever loses content.
    fn resize(&self, wanted: Option<u64>) -> Result<BackendInfo, OpenError>;

    /// How many bytes the medium has now, where that can change by itself.
    fn medium_bytes(&self) -> Option<u64> {
        None
    }

    /// Whether every operation is over within microseconds, so that a thread's hand-over would
    /// cost more than the operation.
    fn is_instant(&self) -> bool {
        false
    }
}

/// Why a backend cannot be opened or resized.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The operating system refuses.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The path leads to something else.
    #[error("is not a {expected}; use another backend for it")]
    WrongType {
        /// What it should be.
        expected: &'static str,
    },
    /// There is nothing, and no size to create it with.
    #[error("does not exist; create it, or set 'size' to have it created")]
    Missing,
    /// It cannot be created.
    #[error("cannot be created: its directory does not exist; make that first")]
    NoDirectory,
    /// Another process serves it or has it mounted.
    #[error("is in use (mounted, or served by another unit); free it first")]
    InUse,
    /// Not a whole block fits.
    #[error("is smaller than one block of {0} bytes; enlarge it")]
    TooSmall(u32),
    /// The block size does not fit.
    #[error("block size {wanted} does not fit: a power of two from {min} to {max} is needed")]
    BlockSize {
        /// What is configured.
        wanted: u32,
        /// The least that works here.
        min: u32,
        /// The most that works here.
        max: u32,
    },
    /// More is wanted than the medium has.
    #[error("has {actual} bytes, fewer than the configured size of {wanted}")]
    Shorter {
        /// What is configured, bytes.
        wanted: u64,
        /// What is there, bytes.
        actual: u64,
    },
    /// More is wanted than memory backends may have.
    #[error("a memory backend has at most {MAX_MEMORY_BYTES} bytes")]
    TooLarge,
}

/// Checks a configured block size against the least the medium can do; `None` takes the least.
fn settle_block_size(wanted: Option<u32>, min: u32) -> Result<u32, OpenError> {
    let min = min.max(MIN_BLOCK_SIZE);
    let size = wanted.unwrap_or(min);
    if size.is_power_of_two() && (min..=MAX_BLOCK_SIZE).contains(&size) {
        Ok(size)
    } else {
        Err(OpenError::BlockSize {
            wanted: size,
            min,
            max: MAX_BLOCK_SIZE,
        })
    }
}

/// Whether `len` bytes from `offset` are inside `size` bytes.
fn check_range(size: u64, offset: u64, len: u64) -> Result<(), DiskError> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(DiskError::OutOfRange),
    }
}
