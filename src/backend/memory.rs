//! A medium in memory, for tests and demonstrations: what was never written costs nothing, and
//! nothing survives the end of the process.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use memmap2::{Advice, MmapMut};

use super::{Backend, BackendInfo, OpenError, check_range, settle_block_size};
use nix::errno::Errno;

use crate::caches;
use crate::unit::disk::{DiskError, DiskOp};
use crate::wire::row::features;
use crate::wire::sum::{self, BLOCK_BYTES};
use crate::wire::{Lender, Tail};

/// The most bytes of a memory backend.
pub const MAX_MEMORY_BYTES: u64 = 64 << 30;

/// Content is kept in pieces of this many bytes: as large as the processor's large pages, as looking up small
/// ones takes longer than reading a block from them.
const CHUNK_BYTES: u64 = 2 << 20;
const CHUNK_BLOCKS: usize = CHUNK_BYTES as usize / BLOCK_BYTES;

/// How much of what is lent the processor is told to fetch: the rest it finds out by itself.
const FETCHED_BYTES: usize = 256;

/// A piece of content, which replies may be sent from.
#[derive(Debug)]
struct Chunk {
    octets: MmapMut,
    /// The checksum of each block; 0 where it is to be found out.
    sums: Box<[AtomicU32]>,
}

impl Lender for Chunk {
    fn octets(&self) -> &[u8] {
        &self.octets
    }

    // Nothing is changed where it is lent: of several who find a sum out all find the same.
    fn block_sum(&self, at: usize) -> Option<u32> {
        let kept = self.sums.get(at / BLOCK_BYTES)?;
        Some(match kept.load(Ordering::Relaxed) {
            0 => {
                let sum = sum::sum(self.octets.get(at..at + BLOCK_BYTES)?);
                kept.store(sum, Ordering::Relaxed);
                sum
            }
            sum => sum,
        })
    }
}

impl Chunk {
    /// Zeroes, in a large page where the system has one.
    fn zeroes() -> std::io::Result<Self> {
        let chunk = MmapMut::map_anon(CHUNK_BYTES as usize)?;
        // Without large pages it is only slower.
        let _ = chunk.advise(Advice::HugePage);
        let sums = std::iter::repeat_with(AtomicU32::default);
        Ok(Self {
            octets: chunk,
            sums: sums.take(CHUNK_BLOCKS).collect(),
        })
    }

    /// One more.
    fn another() -> Result<Self, DiskError> {
        Self::zeroes()
            .map_err(|e| DiskError::Media(e.raw_os_error().unwrap_or(Errno::ENOMEM as i32)))
    }

    /// Part of the content is going to be sent.
    fn announce(&self, part: Range<usize>) {
        let sum: *const AtomicU32 = &raw const self.sums[part.start / BLOCK_BYTES];
        caches::fetch(sum.cast(), 1);
        let octets = &self.octets[part];
        caches::fetch(octets.as_ptr(), octets.len().min(FETCHED_BYTES));
    }

    /// Part of the content, to be written over; of a copy where it is lent.
    fn own(chunk: &mut Arc<Self>, part: Range<usize>) -> Result<&mut [u8], DiskError> {
        if Arc::get_mut(chunk).is_none() {
            let mut copy = Self::another()?;
            copy.octets.copy_from_slice(&chunk.octets);
            copy.sums = chunk
                .sums
                .iter()
                .map(|sum| sum.load(Ordering::Relaxed).into())
                .collect();
            *chunk = Arc::new(copy);
        }
        let Some(own) = Arc::get_mut(chunk) else {
            unreachable!("nobody else has the copy");
        };
        for sum in &mut own.sums[part.start / BLOCK_BYTES..part.end.div_ceil(BLOCK_BYTES)] {
            *sum.get_mut() = 0;
        }
        Ok(&mut own.octets[part])
    }
}

struct State {
    size_bytes: u64,
    /// Nothing: zeroes.
    chunks: Vec<Option<Arc<Chunk>>>,
    /// What is lent where there is nothing.
    zeroes: Arc<Chunk>,
}

/// Memory that looks like a disk.
pub struct Memory {
    block_size: u32,
    read_only: bool,
    state: RwLock<State>,
}

/// The lock's content; a thread that panicked holding it left whole bytes behind, no invariant.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The same where nobody else can have it.
fn alone<T>(lock: &mut RwLock<T>) -> &mut T {
    lock.get_mut()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Memory {
    /// `size_bytes` of zeroes.
    pub fn new(
        size_bytes: u64,
        block_size: Option<u32>,
        read_only: bool,
    ) -> Result<Self, OpenError> {
        let block_size = settle_block_size(block_size, super::MIN_BLOCK_SIZE)?;
        let zeroes = Chunk::zeroes().map_err(|source| OpenError::Io {
            what: "get memory",
            source,
        })?;
        let state = State {
            size_bytes: 0,
            chunks: Vec::new(),
            zeroes: Arc::new(zeroes),
        };
        let memory = Self {
            block_size,
            read_only,
            state: RwLock::new(state),
        };
        memory.resize(Some(size_bytes))?;
        Ok(memory)
    }
}

impl State {
    /// The pieces of a range inside the size: for each the chunk's number, the part of it that is in the range,
    /// and that part's place in the range.
    fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
        let mut at = offset;
        std::iter::from_fn(move || {
            let left = offset + len - at;
            let start = at % CHUNK_BYTES;
            let count = (CHUNK_BYTES - start).min(left);
            let (chunk, place) = ((at / CHUNK_BYTES) as usize, (at - offset) as usize);
            at += count;
            let part = start as usize..(start + count) as usize;
            (left > 0).then_some((chunk, part, place..place + count as usize))
        })
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        let len = into.len() as u64;
        check_range(self.size_bytes, offset, len)?;
        for (chunk, part, place) in Self::pieces(offset, len) {
            match &self.chunks[chunk] {
                Some(chunk) => into[place].copy_from_slice(&chunk.octets[part]),
                None => into[place].fill(0),
            }
        }
        Ok(())
    }

    /// Writes; `sum` is the checksum of `data` where that is a block and it is known.
    fn write(&mut self, offset: u64, data: &[u8], sum: Option<u32>) -> Result<(), DiskError> {
        let len = data.len() as u64;
        check_range(self.size_bytes, offset, len)?;
        for (chunk, part, place) in Self::pieces(offset, len) {
            let chunk = match &mut self.chunks[chunk] {
                Some(chunk) => chunk,
                none => none.insert(Arc::new(Chunk::another()?)),
            };
            let block = part.start / BLOCK_BYTES;
            let is_block = part.start.is_multiple_of(BLOCK_BYTES) && part.len() == BLOCK_BYTES;
            caches::copy_past(Chunk::own(chunk, part)?, &data[place]);
            if is_block
                && data.len() == BLOCK_BYTES
                && let (Some(chunk), Some(sum)) = (Arc::get_mut(chunk), sum)
            {
                *chunk.sums[block].get_mut() = sum;
            }
        }
        Ok(())
    }

    fn zero(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        check_range(self.size_bytes, offset, len)?;
        for (chunk, part, _) in Self::pieces(offset, len) {
            let chunk = &mut self.chunks[chunk];
            if part.len() as u64 == CHUNK_BYTES {
                *chunk = None;
            } else if let Some(chunk) = chunk {
                Chunk::own(chunk, part)?.fill(0);
            }
        }
        Ok(())
    }

    /// Nothing where a range is in several pieces.
    fn lend(&self, offset: u64, len: u64) -> Option<Result<Tail, DiskError>> {
        if let Err(error) = check_range(self.size_bytes, offset, len) {
            return Some(Err(error));
        }
        let (chunk, part, _) = Self::pieces(offset, len).next()?;
        if part.len() as u64 != len {
            return None;
        }
        Some(Ok(match &self.chunks[chunk] {
            Some(chunk) => {
                chunk.announce(part.clone());
                Tail::lent(chunk.clone(), part.start, part.end)
            }
            // The same ones for all, which the processor has near.
            None => Tail::lent(self.zeroes.clone(), 0, part.len()),
        }))
    }

    /// The pieces that there are in a range; none where it leaves the size.
    fn there(&self, offset: u64, len: u64) -> impl Iterator<Item = &Arc<Chunk>> {
        let len = check_range(self.size_bytes, offset, len).map_or(0, |()| len);
        Self::pieces(offset, len).filter_map(|(chunk, ..)| self.chunks[chunk].as_ref())
    }
}

impl Backend for Memory {
    fn info(&self) -> BackendInfo {
        let features = if self.read_only {
            features::READ_ONLY
        } else {
            features::DISCARD | features::WRITE_ZEROES | features::FUA
        };
        BackendInfo {
            size_bytes: read(&self.state).size_bytes,
            block_size: self.block_size,
            features,
        }
    }

    fn execute(&self, op: DiskOp) -> Result<Vec<u8>, DiskError> {
        if self.read_only && op.is_change() {
            return Err(DiskError::ReadOnly);
        }
        match op {
            DiskOp::Read { offset, len } => {
                let mut out = vec![0; len as usize];
                read(&self.state).read(offset, &mut out)?;
                return Ok(out);
            }
            DiskOp::Write { offset, data, .. } => write(&self.state).write(offset, &data, None)?,
            DiskOp::Flush => {}
            DiskOp::Discard { offset, len } | DiskOp::WriteZeroes { offset, len, .. } => {
                write(&self.state).zero(offset, len)?;
            }
        }
        Ok(Vec::new())
    }

    fn read_at_once(&self, offset: u64, into: &mut [u8]) -> Option<Result<(), DiskError>> {
        Some(read(&self.state).read(offset, into))
    }

    fn lend(&self, offset: u64, len: u64) -> Option<Result<Tail, DiskError>> {
        read(&self.state).lend(offset, len)
    }

    fn is_lent(&self, offset: u64, len: u64) -> bool {
        let state = read(&self.state);
        state
            .there(offset, len)
            .any(|chunk| Arc::strong_count(chunk) > 1)
    }

    fn is_lent_as(&self, lent: &Tail, offset: u64, len: u64) -> bool {
        let state = read(&self.state);
        state
            .there(offset, len)
            .any(|chunk| lent.is_lent_by(&**chunk))
    }

    fn write_at_once(
        &mut self,
        offset: u64,
        data: &[u8],
        sum: Option<u32>,
    ) -> Option<Result<(), DiskError>> {
        if self.read_only {
            return Some(Err(DiskError::ReadOnly));
        }
        Some(alone(&mut self.state).write(offset, data, sum))
    }

    fn resize(&self, wanted: Option<u64>) -> Result<BackendInfo, OpenError> {
        if let Some(wanted) = wanted {
            if wanted > MAX_MEMORY_BYTES {
                return Err(OpenError::TooLarge);
            }
            let size_bytes = wanted - wanted % u64::from(self.block_size);
            if size_bytes == 0 {
                return Err(OpenError::TooSmall(self.block_size));
            }
            let mut state = write(&self.state);
            let count = size_bytes.div_ceil(CHUNK_BYTES) as usize;
            let kept = count.max(state.chunks.len());
            state.chunks.resize_with(kept, || None);
            state.size_bytes = size_bytes;
        }
        Ok(self.info())
    }

    fn is_instant(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 3 * CHUNK_BYTES as usize;

    #[derive(Debug, Clone)]
    enum Step {
        Write(usize, u8, usize),
        Block(usize, u8),
        Zero(usize, usize),
        Discard(usize, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = || (0..SIZE, 0..SIZE).prop_map(|(at, len)| (at, len.min(SIZE - at)));
        prop_oneof![
            (range(), 1_u8..).prop_map(|((at, len), byte)| Step::Write(at, byte, len)),
            (0..SIZE / BLOCK_BYTES, 1_u8..).prop_map(|(block, byte)| Step::Block(block, byte)),
            range().prop_map(|(at, len)| Step::Zero(at, len)),
            range().prop_map(|(at, len)| Step::Discard(at, len)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn it_behaves_like_an_array(steps in prop::collection::vec(step(), 1..12)) {
            let mut memory = Memory::new(SIZE as u64, None, false).unwrap();
            let mut model = vec![0; SIZE];
            for step in steps {
                let op = match step {
                    Step::Write(at, byte, len) => {
                        model[at..at + len].fill(byte);
                        if byte % 2 == 0 {
                            let done = memory.write_at_once(at as u64, &vec![byte; len], None);
                            prop_assert_eq!(done, Some(Ok(())));
                            continue;
                        }
                        DiskOp::Write { offset: at as u64, data: vec![byte; len].into(), fua: false }
                    }
                    Step::Block(block, byte) => {
                        let (at, data) = (block * BLOCK_BYTES, [byte; BLOCK_BYTES]);
                        model[at..at + BLOCK_BYTES].fill(byte);
                        let done = memory.write_at_once(at as u64, &data, Some(sum::sum(&data)));
                        prop_assert_eq!(done, Some(Ok(())));
                        continue;
                    }
                    Step::Zero(at, len) => {
                        model[at..at + len].fill(0);
                        DiskOp::WriteZeroes { offset: at as u64, len: len as u64, fua: true }
                    }
                    Step::Discard(at, len) => {
                        model[at..at + len].fill(0);
                        DiskOp::Discard { offset: at as u64, len: len as u64 }
                    }
                };
                memory.execute(op).unwrap();
                for at in (0..SIZE).step_by(BLOCK_BYTES * 61) {
                    let block = memory.lend(at as u64, BLOCK_BYTES as u64).unwrap().unwrap();
                    prop_assert!(block.is_sound() && block.bytes() == &model[at..at + BLOCK_BYTES]);
                }
            }
            let all = memory.execute(DiskOp::Read { offset: 0, len: SIZE as u32 }).unwrap();
            prop_assert!(all == model);
        }
    }

    #[test]
    fn a_block_that_is_spoilt_is_told_from_one_that_is_not() {
        let mut memory = Memory::new(SIZE as u64, None, false).unwrap();
        let block = [5; BLOCK_BYTES];
        let mut write = |sum| {
            memory.write_at_once(4096, &block, sum).unwrap().unwrap();
            let lent = |offset, len| memory.lend(offset, len).unwrap().unwrap();
            [
                lent(4096, 4096),
                lent(4096, 512),
                lent(0, 8192),
                lent(0, 4096),
            ]
            .map(|t| t.is_sound())
        };
        assert_eq!(write(Some(1)), [false, true, true, true]);
        assert_eq!(write(None), [true; 4]);
        assert_eq!(write(Some(sum::sum(&block))), [true; 4]);
    }

    #[test]
    fn what_is_lent_stays_as_it_was() {
        let mut memory = Memory::new(SIZE as u64, None, false).unwrap();
        let (chunk, block) = (CHUNK_BYTES, [3; 512]);
        memory.write_at_once(1024, &block, None).unwrap().unwrap();
        let lend = |memory: &Memory, offset, len| memory.lend(offset, len).unwrap().unwrap();
        let (old, nothing) = (lend(&memory, 1024, 512), lend(&memory, chunk, 4096));
        assert_eq!((old.bytes(), nothing.bytes()), (&block[..], &[0; 4096][..]));
        assert!(memory.is_lent(0, 512) && memory.is_lent_as(&old, 0, 512));
        assert!(
            !memory.is_lent_as(&nothing, 0, chunk * 2),
            "nothing is to be copied"
        );
        assert!(!memory.is_lent(chunk, 512) && !memory.is_lent(u64::MAX, 512));
        memory
            .write_at_once(1024, &[4; 512], None)
            .unwrap()
            .unwrap();
        memory
            .write_at_once(chunk, &[4; 512], None)
            .unwrap()
            .unwrap();
        assert_eq!((old.bytes(), nothing.bytes()), (&block[..], &[0; 4096][..]));
        assert!(
            !memory.is_lent(0, chunk * 2),
            "what is lent is not in use any more"
        );
        let new = lend(&memory, 1024, 512);
        assert_eq!(new.bytes(), [4; 512]);
        let zero = |offset, len| DiskOp::WriteZeroes {
            offset,
            len,
            fua: false,
        };
        memory.execute(zero(1024, 512)).unwrap();
        let newer = lend(&memory, 512, 1024);
        memory.execute(zero(0, chunk)).unwrap();
        assert_eq!(
            (new.bytes(), newer.bytes()),
            (&[4; 512][..], &[0; 1024][..])
        );
        assert!(memory.lend(chunk - 512, 1024).is_none(), "in two pieces");
        assert_eq!(
            memory.lend(SIZE as u64, 512).unwrap().err(),
            Some(DiskError::OutOfRange)
        );
    }

    #[test]
    fn what_is_not_lent_any_more_is_changed_where_it_is() {
        let mut memory = Memory::new(4096, None, false).unwrap();
        let write =
            |memory: &mut Memory| memory.write_at_once(0, &[1; 512], None).unwrap().unwrap();
        let place = |memory: &Memory| memory.lend(0, 512).unwrap().unwrap().bytes().as_ptr();
        write(&mut memory);
        let before = place(&memory);
        write(&mut memory);
        assert_eq!(place(&memory), before);
    }

    #[test]
    fn the_size_is_a_wall_and_resizing_keeps_content() {
        let memory = Memory::new(4096, Some(4096), false).unwrap();
        let write = |offset| {
            memory.execute(DiskOp::Write {
                offset,
                data: vec![5; 4096].into(),
                fua: true,
            })
        };
        write(0).unwrap();
        assert_eq!(write(4096), Err(DiskError::OutOfRange));
        assert_eq!(write(u64::MAX), Err(DiskError::OutOfRange));
        memory.resize(Some(8192)).unwrap();
        write(4096).unwrap();
        memory.resize(Some(4096)).unwrap();
        memory.resize(Some(12288)).unwrap();
        let read = DiskOp::Read {
            offset: 0,
            len: 12288,
        };
        let all = memory.execute(read).unwrap();
        assert_eq!(all[..8192], [5; 8192]);
        assert_eq!(all[8192..], [0; 4096]);
        assert!(memory.resize(Some(MAX_MEMORY_BYTES + 1)).is_err());
        assert!(Memory::new(100, None, false).is_err());
    }
}
