//! A medium in memory, for tests and demonstrations: what was never written costs nothing, and
//! nothing survives the end of the process.

use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use memmap2::{Advice, MmapMut};

use super::{Backend, BackendInfo, OpenError, check_range, settle_block_size};
use nix::errno::Errno;

use crate::unit::disk::{DiskError, DiskOp};
use crate::wire::row::features;

/// The most bytes of a memory backend.
pub const MAX_MEMORY_BYTES: u64 = 64 << 30;

/// Content is kept in pieces of this many bytes: as large as the processor's large pages, as looking up small
/// ones takes longer than reading a block from them.
const CHUNK_BYTES: u64 = 2 << 20;

type Chunk = RwLock<Option<MmapMut>>;

/// A piece of zeroes, in a large page where the system has one.
fn zeroes() -> Result<MmapMut, DiskError> {
    let chunk = MmapMut::map_anon(CHUNK_BYTES as usize)
        .map_err(|e| DiskError::Media(e.raw_os_error().unwrap_or(Errno::ENOMEM as i32)))?;
    // Without large pages it is only slower.
    let _ = chunk.advise(Advice::HugePage);
    Ok(chunk)
}

struct State {
    size_bytes: u64,
    chunks: Vec<Chunk>,
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
        let state = State {
            size_bytes: 0,
            chunks: Vec::new(),
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

impl Memory {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        let state = read(&self.state);
        let len = into.len() as u64;
        check_range(state.size_bytes, offset, len)?;
        state.for_each(offset, len, |chunk, part, from| {
            let into = &mut into[from..from + part.len()];
            match &*read(chunk) {
                Some(bytes) => into.copy_from_slice(&bytes[part]),
                None => into.fill(0),
            }
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let state = read(&self.state);
        let len = data.len() as u64;
        check_range(state.size_bytes, offset, len)?;
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        state.for_each(offset, len, |chunk, part, from| {
            let mut content = write(chunk);
            let bytes = match &mut *content {
                Some(bytes) => bytes,
                none => none.insert(zeroes()?),
            };
            bytes[part.clone()].copy_from_slice(&data[from..from + part.len()]);
            Ok(())
        })
    }
}

impl State {
    /// Calls `each` with every chunk of a range inside the size: the chunk, the part of it that
    /// is in the range, and that part's place in the range.
    fn for_each(
        &self,
        offset: u64,
        len: u64,
        mut each: impl FnMut(&Chunk, std::ops::Range<usize>, usize) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let mut at = offset;
        while at < offset + len {
            let start = at % CHUNK_BYTES;
            let count = (CHUNK_BYTES - start).min(offset + len - at);
            let chunk = &self.chunks[(at / CHUNK_BYTES) as usize];
            each(
                chunk,
                start as usize..(start + count) as usize,
                (at - offset) as usize,
            )?;
            at += count;
        }
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.for_each(offset, len, |chunk, part, _| {
            let mut content = write(chunk);
            if part.len() as u64 == CHUNK_BYTES {
                *content = None;
            } else if let Some(bytes) = content.as_mut() {
                bytes[part].fill(0);
            }
            Ok(())
        })
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
                self.read(offset, &mut out)?;
                return Ok(out);
            }
            DiskOp::Write { offset, data, .. } => self.write(offset, &data)?,
            DiskOp::Flush => {}
            DiskOp::Discard { offset, len } | DiskOp::WriteZeroes { offset, len, .. } => {
                let state = read(&self.state);
                check_range(state.size_bytes, offset, len)?;
                state.zero(offset, len)?;
            }
        }
        Ok(Vec::new())
    }

    fn read_at_once(&self, offset: u64, into: &mut [u8]) -> Option<Result<(), DiskError>> {
        Some(self.read(offset, into))
    }

    fn write_at_once(&self, offset: u64, data: &[u8]) -> Option<Result<(), DiskError>> {
        Some(self.write(offset, data))
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
            state.chunks.resize_with(kept, Chunk::default);
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
        Zero(usize, usize),
        Discard(usize, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = || (0..SIZE, 0..SIZE).prop_map(|(at, len)| (at, len.min(SIZE - at)));
        prop_oneof![
            (range(), 1_u8..).prop_map(|((at, len), byte)| Step::Write(at, byte, len)),
            range().prop_map(|(at, len)| Step::Zero(at, len)),
            range().prop_map(|(at, len)| Step::Discard(at, len)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn it_behaves_like_an_array(steps in prop::collection::vec(step(), 1..12)) {
            let memory = Memory::new(SIZE as u64, None, false).unwrap();
            let mut model = vec![0; SIZE];
            for step in steps {
                let op = match step {
                    Step::Write(at, byte, len) => {
                        model[at..at + len].fill(byte);
                        DiskOp::Write { offset: at as u64, data: vec![byte; len].into(), fua: false }
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
            }
            let all = memory.execute(DiskOp::Read { offset: 0, len: SIZE as u32 }).unwrap();
            prop_assert!(all == model);
        }
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
