//! The queues of ublk devices, driven by the caller's loop: requests of the kernel in, answers out.
//!
//! It belongs to one thread: the kernel takes answers only from the thread that has asked for
//! requests. Data is copied between the kernel's pages and ours with reads and writes of the queue's
//! file. When a queue is dropped without an answer to a request, the kernel keeps the request for
//! the next who takes the device over.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::block::{BlockError, BlockOp, BlockRequest, ExportInfo};
use super::kernel::ublk::QUEUE_DEPTH;
use super::kernel::uring::{CommandRing, SharedView};
use super::nbd::error_code;
use crate::wire::Guid;

/// The bit of a token that says that the request is of a queue. A connection to an NBD socket would have
/// it only after 2^30 others.
const QUEUE: u64 = 1 << 62;

const FETCH: u32 = 0xc010_7520;
const COMMIT_AND_FETCH: u32 = 0xc010_7521;
const DESCRIPTOR_BYTES: usize = 24;
const SECTOR_BYTES: u64 = 512;
/// Where the data of tag 0 is in the queue's file, and how far it is to that of the next.
const DATA_OFFSET: u64 = 0x8000_0000;
const DATA_STEP_BITS: u32 = 25;

const OP_READ: u32 = 0;
const OP_WRITE: u32 = 1;
const OP_FLUSH: u32 = 2;
const OP_DISCARD: u32 = 3;
const OP_WRITE_ZEROES: u32 = 5;
const FLAG_FUA: u32 = 1 << 13;

/// A request under way.
#[derive(Debug, Clone, Copy)]
struct Running {
    generation: u16,
    op: BlockOp,
    len: u32,
}

struct Queue {
    device: Guid,
    ring: CommandRing,
    descriptors: SharedView,
    info: ExportInfo,
    running: Vec<Option<Running>>,
    generation: u16,
    /// Answers that wait for the next poll.
    dirty: bool,
}

/// The queues of all ublk devices. Add [`Self::as_fd`] to the loop's epoll for reading, and call
/// [`Self::poll`] when it is ready and after a round of [`Self::complete`].
pub struct UblkQueues {
    epoll: Epoll,
    queues: BTreeMap<u16, Queue>,
    last_number: u16,
    has_answers: bool,
}

impl UblkQueues {
    /// No queues.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            queues: BTreeMap::new(),
            last_number: 0,
            has_answers: false,
        })
    }

    /// Whether a request's token is of a queue.
    pub const fn owns(token: u64) -> bool {
        token & QUEUE != 0
    }

    /// Begins to serve a device; requests come with the next polls.
    pub fn open(&mut self, device: Guid, info: ExportInfo, file: File) -> io::Result<()> {
        let depth = usize::from(QUEUE_DEPTH);
        let len = NonZeroUsize::new((depth * DESCRIPTOR_BYTES).next_multiple_of(4096))
            .ok_or(io::ErrorKind::InvalidInput)?;
        let descriptors = SharedView::new(&file, len)?;
        let mut ring = CommandRing::new(file, u32::from(QUEUE_DEPTH))?;
        for tag in 0..QUEUE_DEPTH {
            ring.push(FETCH, io_command(tag, 0), u64::from(tag))?;
        }
        ring.submit()?;
        let number = self.next_number();
        let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::from(number));
        self.epoll.add(&ring, event)?;
        let queue = Queue {
            device,
            ring,
            descriptors,
            info,
            running: vec![None; depth],
            generation: 0,
            dirty: false,
        };
        self.queues.insert(number, queue);
        Ok(())
    }

    fn next_number(&mut self) -> u16 {
        loop {
            self.last_number = self.last_number.wrapping_add(1);
            if !self.queues.contains_key(&self.last_number) {
                return self.last_number;
            }
        }
    }

    /// Changes a device's facts.
    pub fn update(&mut self, device: Guid, info: &ExportInfo) {
        for queue in self.queues.values_mut().filter(|q| q.device == device) {
            queue.info.clone_from(info);
        }
    }

    /// Serves a device no longer; what it has asked for is left unanswered.
    pub fn close(&mut self, device: Guid) {
        self.queues.retain(|_, queue| queue.device != device);
    }

    /// Whether answers wait for the next [`Self::poll`].
    pub const fn has_answers(&self) -> bool {
        self.has_answers
    }

    /// Hands over answers and takes requests; each goes to `sink` and is to be completed once.
    pub fn poll(&mut self, mut sink: impl FnMut(BlockRequest)) {
        self.has_answers = false;
        let mut failed = Vec::new();
        for (number, queue) in &mut self.queues {
            if let Err(e) = queue.poll(*number, &mut sink) {
                log::error!("ublk queue of {}: {e}", queue.device);
                failed.push(*number);
            }
            self.has_answers |= queue.dirty;
        }
        for number in failed {
            self.queues.remove(&number);
        }
    }

    /// Completes a request: the data of a read, an empty vector otherwise.
    pub fn complete(&mut self, token: u64, result: Result<Vec<u8>, BlockError>) {
        let (number, generation, tag) = ((token >> 32) as u16, (token >> 16) as u16, token as u16);
        let Some(queue) = self.queues.get_mut(&number) else {
            return;
        };
        let running = queue.running.get(usize::from(tag)).copied().flatten();
        if let Some(running) = running.filter(|running| running.generation == generation) {
            queue.answer(tag, running, result);
            self.has_answers |= queue.dirty;
        }
    }
}

impl AsFd for UblkQueues {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

/// A command about a tag of queue 0: the result of its request, and that another may come.
fn io_command(tag: u16, result: i32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[2..4].copy_from_slice(&tag.to_ne_bytes());
    bytes[4..8].copy_from_slice(&result.to_ne_bytes());
    bytes
}

fn data_offset(tag: u16) -> u64 {
    DATA_OFFSET + (u64::from(tag) << DATA_STEP_BITS)
}

/// What a descriptor asks for: the operation, its first byte, its length, and whether it must be
/// durable.
fn parse(
    bytes: [u8; DESCRIPTOR_BYTES],
    info: &ExportInfo,
) -> Result<(BlockOp, u64, u32, bool), BlockError> {
    let word =
        |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (flags, sectors) = (word(0), word(4));
    let start = u64::from(word(8)) | (u64::from(word(12)) << 32);
    let op = match flags & 0xff {
        OP_READ => BlockOp::Read,
        OP_WRITE => BlockOp::Write,
        OP_FLUSH => return Ok((BlockOp::Flush, 0, 0, false)),
        OP_DISCARD => BlockOp::Discard,
        OP_WRITE_ZEROES => BlockOp::WriteZeroes,
        _ => return Err(BlockError::NotSupported),
    };
    let offset = start.checked_mul(SECTOR_BYTES).ok_or(BlockError::Invalid)?;
    let len = u64::from(sectors) * SECTOR_BYTES;
    let end = offset.checked_add(len).ok_or(BlockError::Invalid)?;
    let block = u64::from(info.block_size.max(1));
    if end > info.served_bytes() || !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
        return Err(BlockError::Invalid);
    }
    if info.read_only && op != BlockOp::Read {
        return Err(BlockError::NotPermitted);
    }
    let len = u32::try_from(len).map_err(|_| BlockError::Invalid)?;
    Ok((op, offset, len, flags & FLAG_FUA != 0))
}

impl Queue {
    fn poll(&mut self, number: u16, sink: &mut impl FnMut(BlockRequest)) -> io::Result<()> {
        if std::mem::take(&mut self.dirty) {
            self.ring.submit()?;
        }
        while let Some((tag, result)) = self.ring.completed() {
            // Anything else is the end of the device for this tag: it is stopped.
            if result == 0 {
                self.take(number, tag as u16, sink);
            }
        }
        Ok(())
    }

    fn take(&mut self, number: u16, tag: u16, sink: &mut impl FnMut(BlockRequest)) {
        let at = usize::from(tag) * DESCRIPTOR_BYTES;
        let parsed = parse(self.descriptors.read(at), &self.info);
        self.generation = self.generation.wrapping_add(1);
        let (op, offset, len, fua) = parsed.unwrap_or((BlockOp::Flush, 0, 0, false));
        let running = Running {
            generation: self.generation,
            op,
            len,
        };
        self.running[usize::from(tag)] = Some(running);
        if let Err(e) = parsed {
            return self.answer(tag, running, Err(e));
        }
        let mut data = Vec::new();
        if op == BlockOp::Write {
            data = vec![0; len as usize];
            let file = self.ring.file();
            if let Err(e) = file.read_exact_at(&mut data, data_offset(tag)) {
                log::error!("ublk queue of {}: data of a write: {e}", self.device);
                return self.answer(tag, running, Err(BlockError::Io));
            }
        }
        let token = QUEUE
            | (u64::from(number) << 32)
            | (u64::from(running.generation) << 16)
            | u64::from(tag);
        sink(BlockRequest {
            device: self.device,
            token,
            op,
            offset,
            len,
            data,
            fua,
        });
    }

    fn answer(&mut self, tag: u16, running: Running, result: Result<Vec<u8>, BlockError>) {
        let result = match result {
            Ok(data) if running.op == BlockOp::Read => {
                let file = self.ring.file();
                if data.len() == running.len as usize
                    && file.write_all_at(&data, data_offset(tag)).is_ok()
                {
                    running.len.cast_signed()
                } else {
                    -error_code(BlockError::Io).cast_signed()
                }
            }
            Ok(_) if running.op == BlockOp::Write => running.len.cast_signed(),
            Ok(_) => 0,
            Err(e) => -error_code(e).cast_signed(),
        };
        self.running[usize::from(tag)] = None;
        let bytes = io_command(tag, result);
        match self.ring.push(COMMIT_AND_FETCH, bytes, u64::from(tag)) {
            Ok(()) => self.dirty = true,
            Err(e) => log::error!("ublk queue of {}: {e}", self.device),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> ExportInfo {
        ExportInfo {
            name: String::new(),
            description: String::new(),
            size_bytes: 1 << 20,
            block_size: 4096,
            read_only: false,
            fua: true,
            discard: true,
            write_zeroes: true,
            rotational: false,
        }
    }

    fn descriptor(op_flags: u32, sectors: u32, start: u64) -> [u8; DESCRIPTOR_BYTES] {
        let mut bytes = [0xa5; DESCRIPTOR_BYTES];
        bytes[..4].copy_from_slice(&op_flags.to_ne_bytes());
        bytes[4..8].copy_from_slice(&sectors.to_ne_bytes());
        bytes[8..16].copy_from_slice(&start.to_ne_bytes());
        bytes
    }

    #[test]
    fn descriptors_become_requests_within_the_device() {
        let write = parse(descriptor(OP_WRITE | FLAG_FUA, 8, 16), &info());
        assert_eq!(write, Ok((BlockOp::Write, 8192, 4096, true)));
        let flush = parse(descriptor(OP_FLUSH, 0, 0), &info());
        assert_eq!(flush, Ok((BlockOp::Flush, 0, 0, false)));
        for (bad, error) in [
            (descriptor(OP_READ, 8, 2048 - 7), BlockError::Invalid),
            (descriptor(OP_READ, 8, u64::MAX), BlockError::Invalid),
            (descriptor(OP_READ, 7, 0), BlockError::Invalid),
            (descriptor(OP_READ, u32::MAX, 0), BlockError::Invalid),
            (descriptor(10, 8, 0), BlockError::NotSupported),
        ] {
            assert_eq!(parse(bad, &info()), Err(error));
        }
        // The largest device that the kernel has.
        let size_bytes = (1 << 63) - 512;
        let largest = ExportInfo {
            size_bytes,
            block_size: 512,
            ..info()
        };
        let last = parse(descriptor(OP_READ, 1, (size_bytes >> 9) - 1), &largest);
        assert_eq!(last, Ok((BlockOp::Read, size_bytes - 512, 512, false)));
        let beyond = parse(descriptor(OP_READ, 1, size_bytes >> 9), &largest);
        assert_eq!(beyond, Err(BlockError::Invalid));
        let read_only = ExportInfo {
            read_only: true,
            ..info()
        };
        let zeroes = parse(descriptor(OP_WRITE_ZEROES, 8, 0), &read_only);
        assert_eq!(zeroes, Err(BlockError::NotPermitted));
    }

    #[test]
    fn tokens_are_told_from_those_of_sockets() {
        assert!(UblkQueues::owns(QUEUE | 5));
        assert!(!UblkQueues::owns(u64::from(u32::MAX >> 2) << 32));
    }
}
