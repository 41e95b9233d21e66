//! Numbers of the NBD protocol (the public `doc/proto.md` of the NBD project names them).

use crate::export::block::BlockError;

/// `NBDMAGIC`, the server's first eight bytes.
pub(super) const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, second word of the greeting and first of every option.
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(super) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags, of the server and (with the same values) of the client.
pub(super) const FLAG_FIXED_NEWSTYLE: u16 = 1;
pub(super) const FLAG_NO_ZEROES: u16 = 2;

pub(super) const OPT_EXPORT_NAME: u32 = 1;
pub(super) const OPT_ABORT: u32 = 2;
pub(super) const OPT_LIST: u32 = 3;
pub(super) const OPT_INFO: u32 = 6;
pub(super) const OPT_GO: u32 = 7;
pub(super) const OPT_STRUCTURED_REPLY: u32 = 8;

pub(super) const REP_ACK: u32 = 1;
pub(super) const REP_SERVER: u32 = 2;
pub(super) const REP_INFO: u32 = 3;
pub(super) const REP_ERR_UNSUP: u32 = (1 << 31) | 1;
pub(super) const REP_ERR_INVALID: u32 = (1 << 31) | 3;
pub(super) const REP_ERR_UNKNOWN: u32 = (1 << 31) | 6;

pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_NAME: u16 = 1;
pub(super) const INFO_DESCRIPTION: u16 = 2;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

pub(super) const TRANSMISSION_HAS_FLAGS: u16 = 1;
pub(super) const TRANSMISSION_READ_ONLY: u16 = 1 << 1;
pub(super) const TRANSMISSION_FLUSH: u16 = 1 << 2;
pub(super) const TRANSMISSION_FUA: u16 = 1 << 3;
pub(super) const TRANSMISSION_ROTATIONAL: u16 = 1 << 4;
pub(super) const TRANSMISSION_TRIM: u16 = 1 << 5;
pub(super) const TRANSMISSION_WRITE_ZEROES: u16 = 1 << 6;
pub(super) const TRANSMISSION_DF: u16 = 1 << 7;
pub(super) const TRANSMISSION_MULTI_CONN: u16 = 1 << 8;

pub(super) const CMD_READ: u16 = 0;
pub(super) const CMD_WRITE: u16 = 1;
pub(super) const CMD_DISC: u16 = 2;
pub(super) const CMD_FLUSH: u16 = 3;
pub(super) const CMD_TRIM: u16 = 4;
pub(super) const CMD_WRITE_ZEROES: u16 = 6;

pub(super) const CMD_FLAG_FUA: u16 = 1;
pub(super) const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
pub(super) const CMD_FLAG_DF: u16 = 1 << 2;

pub(super) const REPLY_FLAG_DONE: u16 = 1;
pub(super) const REPLY_NONE: u16 = 0;
pub(super) const REPLY_OFFSET_DATA: u16 = 1;
pub(super) const REPLY_ERROR: u16 = (1 << 15) | 1;

/// The error number of a reply; Linux has the same.
pub const fn error_code(error: BlockError) -> u32 {
    match error {
        BlockError::NotPermitted => 1,
        BlockError::Io => 5,
        BlockError::NoMemory => 12,
        BlockError::Invalid => 22,
        BlockError::NoSpace => 28,
        BlockError::NotSupported => 95,
        BlockError::ShuttingDown => 108,
    }
}
