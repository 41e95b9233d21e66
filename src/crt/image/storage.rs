//! Where an image lies: a trait, and memory.

use std::io;

/// Where an image lies. Nothing is durable before it is synced; what is not synced may become
/// durable in any order, in part, or not at all.
pub trait Storage {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Fills `buffer` from `offset`.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes `bytes` at `offset`, within the length.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes the length, and what was written to the range, durable before it returns.
    fn sync(&mut self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes it `len` bytes long, the new bytes zero; never shorter.
    fn grow(&mut self, len: u64) -> io::Result<()>;
    /// Little will be read for a while: memory that mirrors the storage may go.
    fn rest(&mut self) {}
    /// Whether there is not one byte.
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }
}

/// A storage in memory: for simulation, and for reading a copy of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryStorage(pub Vec<u8>);

impl MemoryStorage {
    fn range(&self, offset: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
        usize::try_from(offset)
            .ok()
            .and_then(|start| Some(start..start.checked_add(len)?))
            .filter(|range| range.end <= self.0.len())
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Storage for MemoryStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.copy_from_slice(&self.0[self.range(offset, buffer.len())?]);
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let range = self.range(offset, bytes.len())?;
        self.0[range].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn grow(&mut self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.0.resize(self.0.len().max(len), 0);
        Ok(())
    }
}
