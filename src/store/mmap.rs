//! A file under a shared mapping, locked by its one writer and preallocated, as a [`Storage`].
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use memmap2::{MmapMut, UncheckedAdvice};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, posix_fallocate};

use crate::crt::Storage;

/// A file that only this process writes, mapped whole.
///
/// No reference into the mapping leaves this module: bytes are copied in and out. Space is
/// allocated before it is mapped, so that a full disk is an error and not a signal.
#[derive(Debug)]
pub struct MmapStorage {
    file: Flock<File>,
    map: MmapMut,
}

impl MmapStorage {
    /// Opens and locks the file at `path`. [`io::ErrorKind::WouldBlock`] where another process
    /// has it locked.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_file(OpenOptions::new().read(true).write(true).open(path)?)
    }

    /// Creates (or empties) and locks the file at `path`, readable by everyone, writable by its
    /// user only.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(path)?;
        let mut storage = Self::from_file(file)?;
        // Emptied only now that it is certain that nobody else has it.
        storage.file.set_len(0)?;
        storage.map = map(&storage.file)?;
        Ok(storage)
    }

    fn from_file(file: File) -> io::Result<Self> {
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| io::Error::from(errno))?;
        let map = map(&file)?;
        Ok(Self { file, map })
    }

    /// The part of the mapping that `offset` and `len` name. Touching a page that the file no
    /// longer has would be fatal, so its length is looked at first.
    fn range(&self, offset: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
        let there = self.len()?.min(self.map.len() as u64);
        let end = offset.checked_add(len as u64).filter(|end| *end <= there);
        match end {
            Some(end) => Ok(offset as usize..end as usize),
            None => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file has become shorter",
            )),
        }
    }
}

impl Storage for MmapStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.copy_from_slice(&self.map[self.range(offset, buffer.len())?]);
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let range = self.range(offset, bytes.len())?;
        self.map[range].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let range = self.range(offset, len as usize)?;
        self.map.flush_range(range.start, range.len())
    }

    fn grow(&mut self, len: u64) -> io::Result<()> {
        let old = self.len()?;
        if len > old {
            let (from, more) = (old.cast_signed(), (len - old).cast_signed());
            match posix_fallocate(&*self.file, from, more) {
                Ok(()) => {}
                Err(Errno::EOPNOTSUPP) => self.file.set_len(len)?,
                Err(errno) => return Err(errno.into()),
            }
            self.file.sync_all()?;
            self.map = map(&self.file)?;
        }
        Ok(())
    }

    fn rest(&mut self) {
        // SAFETY: the mapping is shared and of a file, so the pages that go (also changed ones)
        // stay in the page cache and come back when they are touched; nothing borrows from it.
        let outcome = unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) };
        if let Err(error) = outcome {
            log::debug!("cannot give back mapped pages: {error}");
        }
    }
}

/// Gives memory that was freed back to the system, after something large has come and gone.
pub fn give_back_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes no pointer and may be made at any time, by any thread.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

fn map(file: &File) -> io::Result<MmapMut> {
    // SAFETY: the file is locked by this process, which is how every writer of ours begins; bytes
    // are copied out before they are checked and parsed, so a foreign writer that ignores the lock
    // can make checksums fail and nothing more. A foreign truncation is looked for before access.
    unsafe { MmapMut::map_mut(file) }
}
