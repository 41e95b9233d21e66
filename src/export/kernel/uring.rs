//! Commands to drivers through io_uring, and what a driver shows in shared memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::ptr::NonNull;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Gives a driver one command of up to 80 bytes, and waits for its result, for ever if need be.
///
/// `build` gets the address of `buffer`, to which the driver may write, for the command.
pub(super) fn command(
    file: &File,
    operation: u32,
    mut buffer: Vec<u8>,
    build: impl FnOnce(u64) -> [u8; 80],
) -> io::Result<(i32, Vec<u8>)> {
    let mut ring: IoUring<squeue::Entry128, cqueue::Entry> = IoUring::builder().build(1)?;
    let bytes = build(buffer.as_mut_ptr() as u64);
    let entry = opcode::UringCmd80::new(types::Fd(file.as_raw_fd()), operation)
        .cmd(bytes)
        .build();
    // SAFETY: the file is open and the buffer is neither moved nor freed until the command has
    // completed: nothing below returns before that, except where nothing was submitted.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    loop {
        match ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // Nothing can be said of the command any more; the buffer must outlive it.
            Err(e) => {
                std::mem::forget(buffer);
                return Err(e);
            }
        }
        let completed = ring.completion().next();
        if let Some(completed) = completed {
            return Ok((completed.result(), buffer));
        }
    }
}

/// A ring of 16-byte commands to one file, which it owns. It belongs to the thread that makes it.
pub struct CommandRing {
    ring: IoUring,
    file: File,
}

impl CommandRing {
    /// A ring with room for `entries` commands.
    pub fn new(file: File, entries: u32) -> io::Result<Self> {
        Ok(Self {
            ring: IoUring::new(entries)?,
            file,
        })
    }

    /// The file.
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Prepares a command; `user_data` comes back with its result. It holds no address. There may
    /// be no more commands than entries.
    pub fn push(&mut self, operation: u32, bytes: [u8; 16], user_data: u64) -> io::Result<()> {
        let entry = opcode::UringCmd16::new(types::Fd(self.file.as_raw_fd()), operation)
            .cmd(bytes)
            .build()
            .user_data(user_data);
        // SAFETY: the file lives as long as the ring, and the command refers to no memory.
        unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)
    }

    /// Hands over what has been prepared.
    pub fn submit(&self) -> io::Result<()> {
        match self.ring.submit() {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => Err(e),
            _ => Ok(()),
        }
    }

    /// The user data and the result of a command that has completed.
    pub fn completed(&mut self) -> Option<(u64, i32)> {
        let completed = self.ring.completion().next()?;
        Some((completed.user_data(), completed.result()))
    }
}

impl AsFd for CommandRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let fd: RawFd = self.ring.as_raw_fd();
        // SAFETY: the descriptor is open as long as the ring, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }
}

/// Memory of a driver that is only read here.
pub struct SharedView {
    start: NonNull<u8>,
    len: NonZeroUsize,
}

// SAFETY: a mapping is of the process, not of a thread.
unsafe impl Send for SharedView {}

impl SharedView {
    /// Maps `len` bytes of `file` from its beginning.
    pub fn new(file: &File, len: NonZeroUsize) -> io::Result<Self> {
        // SAFETY: the kernel chooses the place, so that nothing of ours is mapped over.
        let start = unsafe {
            mmap(
                None,
                len,
                ProtFlags::PROT_READ,
                MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE,
                file,
                0,
            )
        }?;
        Ok(Self {
            start: start.cast(),
            len,
        })
    }

    /// A copy of `N` bytes at `offset`, which must lie within.
    pub fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        assert!(
            offset
                .checked_add(N)
                .is_some_and(|end| end <= self.len.get())
        );
        let mut copy = [0; N];
        for (index, byte) in copy.iter_mut().enumerate() {
            // SAFETY: within the mapping, as asserted. The driver does not change what a command
            // that has come tells of; where it did, a byte is still a byte.
            *byte = unsafe { self.start.add(offset + index).read_volatile() };
        }
        copy
    }
}

impl Drop for SharedView {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and no reference into it is ever given away.
        let _ = unsafe { munmap(self.start.cast(), self.len.get()) };
    }
}
