//! One I/O in its parts: each is one command, and together they are done or have failed.

use std::sync::Arc;
use std::time::Duration;

use super::stats::DeviceStats;
use super::{
    DeviceId, Io, IoError, IoOp, MAX_PART_BYTES, MAX_RANGE_PARTS, RANGE_PART_BYTES, RETRY_FIRST,
    RETRY_MAX, Target,
};
use crate::session::IoRequest;
use crate::wire::message::IoRange;
use crate::wire::{Flags, Kind, Status, Tail, Time};

/// The number of the part that makes a discard durable.
pub(super) const FLUSH: u32 = u32::MAX;

/// What the answer to a part means for the I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Other parts are not answered yet.
    Going,
    /// A flush has to follow.
    Flush,
    /// This was the first to fail: what waits is not sent.
    Failed,
    /// This was the last.
    Ended,
}

/// An I/O that has not ended.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) device: DeviceId,
    pub(super) token: u64,
    begun: Time,
    op: IoOp,
    offset: u64,
    len: u64,
    /// What to write: commands have it from here.
    written: Option<Arc<Vec<u8>>>,
    /// What has been read.
    read: Vec<u8>,
    fua: bool,
    /// Whether a flush has to follow the parts.
    flush: bool,
    /// Parts sent and not answered.
    sent: u32,
    /// Parts not answered, sent or not.
    left: u32,
    tries: u32,
    error: Option<IoError>,
}

impl Running {
    // Made where it stays: moving what was written just now has the processor wait for it.
    #[inline]
    pub(super) fn new(now: Time, device: DeviceId, io: Io, len: u64, token: u64) -> Self {
        let mut running = Self {
            device,
            token,
            begun: now,
            op: io.op,
            offset: io.offset,
            len,
            written: (io.op == IoOp::Write).then_some(io.data),
            read: Vec::new(),
            fua: io.fua,
            flush: io.fua && io.op == IoOp::Discard,
            sent: 0,
            left: 0,
            tries: 0,
            error: None,
        };
        running.left = running.part_count();
        if running.op == IoOp::Read && running.left > 1 {
            running.read = vec![0; len as usize];
        }
        running
    }

    /// Bytes of a part; however long the range, there are at most [`MAX_RANGE_PARTS`] of them.
    fn part_bytes(&self) -> u64 {
        match self.op {
            IoOp::Read | IoOp::Write => MAX_PART_BYTES,
            IoOp::Flush | IoOp::Discard | IoOp::WriteZeroes => self
                .len
                .div_ceil(MAX_RANGE_PARTS)
                .next_multiple_of(RANGE_PART_BYTES)
                .max(RANGE_PART_BYTES),
        }
    }

    pub(super) fn part_count(&self) -> u32 {
        match self.op {
            IoOp::Flush => 1,
            IoOp::Read | IoOp::Write => self.len.div_ceil(MAX_PART_BYTES) as u32,
            IoOp::Discard | IoOp::WriteZeroes => self.len.div_ceil(self.part_bytes()) as u32,
        }
    }

    /// Bytes that the I/O keeps.
    pub(super) const fn held(&self) -> u64 {
        match self.op {
            IoOp::Read | IoOp::Write => self.len,
            IoOp::Flush | IoOp::Discard | IoOp::WriteZeroes => 0,
        }
    }

    pub(super) const fn error(&self) -> Option<IoError> {
        self.error
    }

    /// Where the part begins in the I/O, and its length.
    fn span(&self, part: u32) -> (u64, u64) {
        let start = u64::from(part) * self.part_bytes();
        (start, self.part_bytes().min(self.len - start))
    }

    /// A part as a command that is being sent.
    pub(super) fn send(&mut self, part: u32, target: &Target) -> IoRequest {
        self.sent += 1;
        let kind = match self.op {
            _ if part == FLUSH => Kind::Flush,
            IoOp::Read => Kind::Read,
            IoOp::Write => Kind::Write,
            IoOp::Flush => Kind::Flush,
            IoOp::Discard => Kind::Discard,
            IoOp::WriteZeroes => Kind::WriteZeroes,
        };
        let (start, offset, len) = if kind == Kind::Flush {
            (0, 0, 0)
        } else {
            let (start, len) = self.span(part);
            (start, self.offset + start, len)
        };
        let range = IoRange {
            extent: target.extent,
            offset,
            len,
        };
        let data = match &self.written {
            Some(written) if kind == Kind::Write => {
                Some(Tail::new(written, start as usize, (start + len) as usize))
            }
            _ => None,
        };
        IoRequest {
            kind,
            flags: if self.fua && matches!(kind, Kind::Write | Kind::WriteZeroes) {
                Flags::FUA
            } else {
                Flags::NONE
            },
            iod: target.iod,
            epoch: target.epoch,
            range,
            data,
        }
    }

    /// A part that was sent has to be sent again.
    pub(super) const fn put_back(&mut self) {
        self.sent -= 1;
    }

    /// How long to wait before trying again.
    pub(super) fn back_off(&mut self) -> Duration {
        let wait = RETRY_FIRST * (1 << self.tries.min(10));
        self.tries = self.tries.saturating_add(1);
        wait.min(RETRY_MAX)
    }

    /// A part has its answer.
    pub(super) fn answered(&mut self, part: u32, status: Status, body: Vec<u8>) -> Progress {
        self.sent -= 1;
        self.left -= 1;
        let result = if status == Status::Ok {
            self.take(part, body)
        } else {
            Err(IoError::Status(status))
        };
        match result {
            Err(error) if self.error.is_none() => {
                self.error = Some(error);
                self.left = self.sent;
                Progress::Failed
            }
            _ if self.left > 0 => Progress::Going,
            _ if self.error.is_none() && std::mem::take(&mut self.flush) => {
                self.left = 1;
                Progress::Flush
            }
            _ => Progress::Ended,
        }
    }

    fn take(&mut self, part: u32, body: Vec<u8>) -> Result<(), IoError> {
        if self.op != IoOp::Read {
            return Ok(());
        }
        let (start, len) = self.span(part);
        if body.len() as u64 != len {
            return Err(IoError::Malformed);
        }
        if len == self.len {
            self.read = body;
        } else {
            self.read[start as usize..(start + len) as usize].copy_from_slice(&body);
        }
        Ok(())
    }

    /// Whether nothing of it waits or is under way.
    pub(super) const fn has_ended(&self) -> bool {
        self.left == 0
    }

    /// Counts it, now that it has ended.
    pub(super) fn count_in(&self, stats: &mut DeviceStats, now: Time) {
        let took = now.since(self.begun);
        stats.count(self.op, self.len, took, self.error.is_none());
    }

    /// Counts it as one that has failed.
    pub(super) fn count_failed(&self, stats: &mut DeviceStats, now: Time) {
        stats.count(self.op, self.len, now.since(self.begun), false);
    }

    /// The data of a write, which is not needed any more.
    pub(super) fn take_written(&mut self) -> Vec<u8> {
        let written = self.written.take();
        written.and_then(Arc::into_inner).unwrap_or_default()
    }

    /// How it went, and what was read.
    pub(super) fn take_result(&mut self) -> Result<Vec<u8>, IoError> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut self.read)),
        }
    }
}
