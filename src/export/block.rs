//! What an export is, what is asked of it, and how that can fail; shared by every way of export.

use crate::initiator::IoError;
pub use crate::initiator::IoOp as BlockOp;
use crate::wire::{Guid, Status};

/// The most bytes of one read or write that an export announces; a larger one is served too, as
/// far as the protocol obliges, and split by the initiator.
pub const PREFERRED_MAX_BYTES: u32 = 1 << 20;

/// The facts of an exported device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// The name under which clients may ask for it; the empty name always works.
    pub name: String,
    /// One line about it, for people; may be empty.
    pub description: String,
    /// Size in bytes; a last partial block is not served.
    pub size_bytes: u64,
    /// Logical block size in bytes: one of [`crate::wire::row::is_block_size`]. Every request
    /// is aligned to it.
    pub block_size: u32,
    /// Writes, discards and zeroes are refused.
    pub read_only: bool,
    /// The device takes [`BlockRequest::fua`]; without it a write is followed by a flush where
    /// the client asks for durability.
    pub fua: bool,
    /// The device takes [`BlockOp::Discard`].
    pub discard: bool,
    /// The device takes [`BlockOp::WriteZeroes`].
    pub write_zeroes: bool,
    /// The device spins.
    pub rotational: bool,
}

impl ExportInfo {
    /// The bytes that are served: whole blocks.
    pub fn served_bytes(&self) -> u64 {
        self.size_bytes - self.size_bytes % u64::from(self.block_size.max(1))
    }
}

/// One request: in range, aligned and allowed by the [`ExportInfo`] of the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockRequest {
    /// The exported device.
    pub device: Guid,
    /// Names the request until it is completed; never used again.
    pub token: u64,
    /// What to do.
    pub op: BlockOp,
    /// First byte; 0 for a flush.
    pub offset: u64,
    /// Number of bytes, more than 0 except for a flush.
    pub len: u32,
    /// The data of a write, `len` bytes; empty otherwise.
    pub data: Vec<u8>,
    /// The write is durable before it is completed.
    pub fua: bool,
}

/// Why a request failed, as far as a block device can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum BlockError {
    /// The device may not be written, or is no longer ours.
    #[error("not permitted")]
    NotPermitted,
    /// The device or the way to it failed.
    #[error("I/O error")]
    Io,
    /// Some memory limit is reached.
    #[error("out of memory")]
    NoMemory,
    /// The request is outside the device, not aligned, or contradicts itself.
    #[error("invalid request")]
    Invalid,
    /// A write ends behind the device, or its backend is full.
    #[error("no space")]
    NoSpace,
    /// The device cannot do it.
    #[error("not supported")]
    NotSupported,
    /// The export is ending.
    #[error("shutting down")]
    ShuttingDown,
}

impl From<IoError> for BlockError {
    fn from(error: IoError) -> Self {
        match error {
            IoError::Status(Status::ReadOnly | Status::NotOwner | Status::StaleEpoch) => {
                Self::NotPermitted
            }
            IoError::Status(Status::OutOfRange | Status::Misaligned | Status::BadRequest)
            | IoError::OutOfRange
            | IoError::Misaligned => Self::Invalid,
            IoError::Status(Status::NoSpace) => Self::NoSpace,
            IoError::Status(Status::Unsupported) => Self::NotSupported,
            IoError::Full => Self::NoMemory,
            IoError::Closed => Self::ShuttingDown,
            IoError::Status(_) | IoError::Malformed | IoError::Unreachable => Self::Io,
        }
    }
}
