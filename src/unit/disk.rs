//! What a unit asks of the media behind its devices: operations, facts and errors, without any medium.

use crate::wire::{Guid, Status, Tail};

/// The most bytes that one read or write moves.
pub const MAX_IO_BYTES: u64 = 1 << 20;

/// The data of a write: the tail of a message body, not copied out of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    bytes: Vec<u8>,
    start: usize,
}

impl Payload {
    /// The bytes of `body` from `start` on; none where `start` is behind its end.
    pub fn tail(body: Vec<u8>, start: usize) -> Self {
        let start = start.min(body.len());
        Self { bytes: body, start }
    }

    /// The whole message body, to be used again.
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, start: 0 }
    }
}

impl std::ops::Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

/// One operation on a medium; offsets and lengths in bytes, inside the medium.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskOp {
    /// Reads; the result has exactly `len` bytes.
    Read {
        /// First byte.
        offset: u64,
        /// Number of bytes, at most [`MAX_IO_BYTES`].
        len: u32,
    },
    /// Writes.
    Write {
        /// First byte.
        offset: u64,
        /// What is written, at most [`MAX_IO_BYTES`].
        data: Payload,
        /// Durable before it is done.
        fua: bool,
    },
    /// Every write done before is durable before this is done.
    Flush,
    /// The range's content is no longer needed; afterwards it reads as zeroes or as before.
    Discard {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Writes zeroes.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Durable before it is done.
        fua: bool,
    },
}

impl DiskOp {
    /// Whether the operation changes content.
    pub const fn is_change(&self) -> bool {
        matches!(
            self,
            Self::Write { .. } | Self::Discard { .. } | Self::WriteZeroes { .. }
        )
    }

    /// First byte and number of bytes; nothing for a flush.
    pub fn range(&self) -> Option<(u64, u64)> {
        match self {
            Self::Read { offset, len } => Some((*offset, u64::from(*len))),
            Self::Write { offset, data, .. } => Some((*offset, data.len() as u64)),
            Self::Flush => None,
            Self::Discard { offset, len } | Self::WriteZeroes { offset, len, .. } => {
                Some((*offset, *len))
            }
        }
    }
}

/// Media that do some operations while they are asked, without waiting.
pub trait AtOnce {
    /// Gives `len` bytes of a device where they are, as they are now: as long as they are held, what is written
    /// there is written somewhere else. Nothing: they are to be read.
    fn lend(&mut self, device: Guid, offset: u64, len: u64) -> Option<Result<Tail, DiskError>> {
        let _ = (device, offset, len);
        None
    }

    /// Whether these bytes of a device cannot be changed where they are, as something is lent. It had better be
    /// copied and given back.
    fn is_lent(&self, device: Guid, offset: u64, len: u64) -> bool {
        let _ = (device, offset, len);
        false
    }

    /// Whether that is because of this.
    fn is_lent_as(&self, lent: &Tail, device: Guid, offset: u64, len: u64) -> bool {
        let _ = (lent, device, offset, len);
        false
    }

    /// Reads `into.len()` bytes of a device. Nothing: it has to be done by a
    /// [`UnitAction::Disk`](super::UnitAction::Disk).
    fn read_at_once(
        &mut self,
        device: Guid,
        offset: u64,
        into: &mut [u8],
    ) -> Option<Result<(), DiskError>>;

    /// Writes `data` to a device, not yet durable. Nothing: as for [`Self::read_at_once`]. `sum` is the checksum of
    /// `data` where that is a block (of [`sum::BLOCK_BYTES`](crate::wire::sum::BLOCK_BYTES)) and it is known.
    fn write_at_once(
        &mut self,
        device: Guid,
        offset: u64,
        data: &[u8],
        sum: Option<u32>,
    ) -> Option<Result<(), DiskError>>;
}

/// Media that take their time for everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct NothingAtOnce;

impl AtOnce for NothingAtOnce {
    fn read_at_once(&mut self, _: Guid, _: u64, _: &mut [u8]) -> Option<Result<(), DiskError>> {
        None
    }

    fn write_at_once(
        &mut self,
        _: Guid,
        _: u64,
        _: &[u8],
        _: Option<u32>,
    ) -> Option<Result<(), DiskError>> {
        None
    }
}

/// Facts of a medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskInfo {
    /// Its size in bytes, a multiple of `block_size`.
    pub size_bytes: u64,
    /// Its logical block size in bytes, a power of two.
    pub block_size: u32,
    /// Its [`crate::wire::row::features`].
    pub features: u64,
}

/// Why an operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The range is outside the medium.
    #[error("the range is outside the medium")]
    OutOfRange,
    /// The medium cannot be written.
    #[error("the medium is read-only")]
    ReadOnly,
    /// The medium has no space left.
    #[error("no space is left on the medium")]
    NoSpace,
    /// The medium failed with this error number of the operating system.
    #[error("the medium failed (error number {0})")]
    Media(i32),
}

impl DiskError {
    /// How the command ends.
    pub const fn status(self) -> Status {
        match self {
            Self::OutOfRange => Status::OutOfRange,
            Self::ReadOnly => Status::ReadOnly,
            Self::NoSpace => Status::NoSpace,
            Self::Media(_) => Status::MediaError,
        }
    }
}
