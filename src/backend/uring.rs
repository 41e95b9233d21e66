//! Reads that the kernel performs by itself (io_uring): as many at a time as there are, without a thread for
//! each of them.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};

use super::Backend;

/// A read that has ended.
pub(super) struct Ended {
    /// The token it was begun under.
    pub(super) token: u64,
    /// What was read from, and where.
    pub(super) backend: Arc<dyn Backend>,
    pub(super) offset: u64,
    /// What was to be filled.
    pub(super) buffer: Vec<u8>,
    /// Whether all of it was.
    pub(super) is_whole: bool,
}

struct Read {
    token: u64,
    /// Keeps the file open.
    backend: Arc<dyn Backend>,
    offset: u64,
    buffer: Vec<u8>,
}

/// Reads that were begun.
pub(super) struct Reads {
    ring: IoUring,
    /// By the number that the kernel has for each.
    begun: Vec<Option<Read>>,
    free: Vec<usize>,
    /// The kernel has not been told of some yet.
    is_untold: bool,
}

impl Reads {
    /// Room for `entries` reads; `event` becomes readable when any has ended.
    ///
    /// # Errors
    /// The kernel's: it has no io_uring, or does not let this process use it.
    pub(super) fn new(entries: u32, event: BorrowedFd<'_>) -> io::Result<Self> {
        let ring = IoUring::new(entries)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self {
            ring,
            begun: (0..entries).map(|_| None).collect(),
            free: (0..entries as usize).rev().collect(),
            is_untold: false,
        })
    }

    /// Begins to read `len` bytes of `backend`; `false` where there is no room, or it is none to be read
    /// like this.
    pub(super) fn begin(
        &mut self,
        token: u64,
        backend: &Arc<dyn Backend>,
        offset: u64,
        len: u32,
    ) -> bool {
        let Some(&number) = self.free.last() else {
            return false;
        };
        let Some(file) = backend.readable(offset, len) else {
            return false;
        };
        let mut buffer = vec![0; len as usize];
        let entry = opcode::Read::new(types::Fd(file.as_raw_fd()), buffer.as_mut_ptr(), len)
            .offset(offset)
            .build()
            .user_data(number as u64);
        // SAFETY: the file stays open and the buffer where it is, and nobody looks at it, until the kernel
        // says that it has ended: both are in `begun` until then, or for ever.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            return false;
        }
        self.free.pop();
        self.begun[number] = Some(Read {
            token,
            backend: Arc::clone(backend),
            offset,
            buffer,
        });
        self.is_untold = true;
        true
    }

    /// Tells the kernel of what was begun.
    pub(super) fn start(&mut self) {
        if self.is_untold {
            match self.ring.submit() {
                Ok(_) => self.is_untold = !self.ring.submission().is_empty(),
                // The next round tries again.
                Err(e) => log::debug!("io_uring takes no reads for now: {e}"),
            }
        }
    }

    /// Hands out what has ended.
    pub(super) fn ended(&mut self, mut take: impl FnMut(Ended)) {
        for entry in self.ring.completion() {
            let number = entry.user_data() as usize;
            let Some(read) = self.begun.get_mut(number).and_then(Option::take) else {
                continue;
            };
            self.free.push(number);
            take(Ended {
                token: read.token,
                backend: read.backend,
                offset: read.offset,
                is_whole: usize::try_from(entry.result()) == Ok(read.buffer.len()),
                buffer: read.buffer,
            });
        }
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.begun.len()
    }
}

/// The kernel may still write into what it was given.
impl Drop for Reads {
    fn drop(&mut self) {
        while !self.is_idle() {
            if let Err(e) = self.ring.submit_and_wait(1) {
                if e.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                log::error!("cannot wait for reads that the kernel has begun: {e}");
                std::mem::forget(std::mem::take(&mut self.begun));
                return;
            }
            self.ended(drop);
        }
    }
}
