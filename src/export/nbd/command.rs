//! One request of an NBD client: what it asks for, and whether this export does it.

use zerocopy::byteorder::network_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::MAX_REQUEST_BYTES;
use super::codes::{
    CMD_FLAG_DF, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE,
    CMD_WRITE_ZEROES,
};
use super::output::ReplyForm;
use crate::export::block::{BlockError, BlockOp, ExportInfo};

#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(super) struct RequestHeader {
    pub(super) magic: U32,
    pub(super) flags: U16,
    pub(super) kind: U16,
    pub(super) cookie: U64,
    pub(super) offset: U64,
    pub(super) len: U32,
}

const _: () = assert!(size_of::<RequestHeader>() == 28);

/// A request whose parameters have been found good.
#[derive(Debug, Clone, Copy)]
pub(super) struct Command {
    pub(super) cookie: u64,
    pub(super) op: BlockOp,
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) fua: bool,
    /// A flush must follow before the reply.
    pub(super) then_flush: bool,
}

impl Command {
    /// What a request asks for, if this export does it.
    pub(super) fn new(
        header: &RequestHeader,
        info: &ExportInfo,
        form: ReplyForm,
    ) -> Result<Self, BlockError> {
        let (flags, offset, len) = (header.flags.get(), header.offset.get(), header.len.get());
        let (op, allowed) = match header.kind.get() {
            CMD_READ if form == ReplyForm::Structured => (BlockOp::Read, CMD_FLAG_DF),
            CMD_READ => (BlockOp::Read, 0),
            CMD_WRITE => (BlockOp::Write, 0),
            CMD_FLUSH => (BlockOp::Flush, 0),
            CMD_TRIM if info.discard => (BlockOp::Discard, 0),
            // Zeroes are written in place: no hole is ever made.
            CMD_WRITE_ZEROES if info.write_zeroes => (BlockOp::WriteZeroes, CMD_FLAG_NO_HOLE),
            _ => return Err(BlockError::Invalid),
        };
        if flags & !(allowed | CMD_FLAG_FUA) != 0 {
            return Err(BlockError::Invalid);
        }
        let mut command = Self {
            cookie: header.cookie.get(),
            op,
            offset,
            len,
            fua: false,
            then_flush: false,
        };
        if command.is_change() {
            if info.read_only {
                return Err(BlockError::NotPermitted);
            }
            let wanted = flags & CMD_FLAG_FUA != 0;
            command.fua = wanted && op == BlockOp::Write && info.fua;
            command.then_flush = wanted && !command.fua;
        }
        if op == BlockOp::Flush {
            return Ok(command);
        }
        let end = offset.checked_add(len.into()).ok_or(BlockError::Invalid)?;
        let block = u64::from(info.block_size.max(1));
        if !offset.is_multiple_of(block) || !u64::from(len).is_multiple_of(block) {
            return Err(BlockError::Invalid);
        }
        if end > info.served_bytes() {
            return Err(match op {
                BlockOp::Write | BlockOp::WriteZeroes => BlockError::NoSpace,
                _ => BlockError::Invalid,
            });
        }
        if command.data_bytes() > MAX_REQUEST_BYTES as usize {
            return Err(BlockError::Invalid);
        }
        Ok(command)
    }

    /// Whether it changes content.
    pub(super) const fn is_change(&self) -> bool {
        matches!(
            self.op,
            BlockOp::Write | BlockOp::Discard | BlockOp::WriteZeroes
        )
    }

    /// Bytes of memory that the request holds until it is answered.
    pub(super) const fn data_bytes(&self) -> usize {
        match self.op {
            BlockOp::Read | BlockOp::Write => self.len as usize,
            BlockOp::Flush | BlockOp::Discard | BlockOp::WriteZeroes => 0,
        }
    }
}
