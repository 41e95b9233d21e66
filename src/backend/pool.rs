//! Who performs operations that block: threads, and for short reads the kernel itself; and the descriptor that
//! says when some are done.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Backend;
use super::uring::Reads;
use crate::unit::disk::{DiskError, DiskOp};

/// Reads of up to so many bytes are the kernel's to perform: it has as many under way as there are, where threads
/// have one each. Longer ones are mostly copying, which threads share.
const SHORT_BYTES: u32 = 64 << 10;
/// The most reads that the kernel has at a time; the others are the threads'.
const SHORT_READS: u32 = 256;

/// A finished operation: the token it was submitted under, and how it ended.
pub type Completion = (u64, Result<Vec<u8>, DiskError>);

/// The threads cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the backend threads: {0}")]
pub struct PoolError(#[from] std::io::Error);

struct Job {
    token: u64,
    backend: Arc<dyn Backend>,
    op: DiskOp,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    stopping: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    done: Mutex<Vec<Completion>>,
    event: EventFd,
}

/// A few threads, a queue in, a queue out. The queues are as long as their user lets them grow:
/// each operation submitted is one slot in one of them until it is taken.
pub struct Pool {
    shared: Arc<Shared>,
    /// Where the kernel can.
    reads: Option<Reads>,
    threads: Vec<JoinHandle<()>>,
}

/// No invariant spans a panic: the queues hold whole entries at every moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn next(&self) -> Option<Job> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.stopping {
                return None;
            }
            queue = self
                .wake
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn finish(&self, token: u64, outcome: Result<Vec<u8>, DiskError>) {
        let mut done = lock(&self.done);
        done.push((token, outcome));
        let first = done.len() == 1;
        drop(done);
        if first {
            // The counter cannot overflow: it is read whenever the list is taken.
            let _ = self.event.write(1);
        }
    }

    fn work(&self) {
        while let Some(Job { token, backend, op }) = self.next() {
            let outcome = backend.execute(op);
            self.finish(token, outcome);
        }
    }
}

impl Pool {
    /// Starts `threads` threads (at least one).
    pub fn new(threads: usize) -> Result<Self, PoolError> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(std::io::Error::from)?;
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: Condvar::new(),
            done: Mutex::default(),
            event,
        });
        let reads = Reads::new(SHORT_READS, shared.event.as_fd());
        let mut pool = Self {
            reads: reads
                .inspect_err(|e| {
                    log::info!("short reads are performed by threads, without io_uring: {e}");
                })
                .ok(),
            shared,
            threads: Vec::new(),
        };
        for number in 0..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new()
                .name(format!("disk-{number}"))
                .spawn(move || shared.work())?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Queues an operation; its completion carries `token`. Call [`Self::start`] after the last of several.
    pub fn submit(&mut self, token: u64, backend: Arc<dyn Backend>, op: DiskOp) {
        if let (Some(reads), DiskOp::Read { offset, len }) = (&mut self.reads, &op)
            && (1..=SHORT_BYTES).contains(len)
            && reads.begin(token, &backend, *offset, *len)
        {
            return;
        }
        self.queue(token, backend, op);
    }

    /// Has the kernel begin what is queued for it.
    pub fn start(&mut self) {
        if let Some(reads) = &mut self.reads {
            reads.start();
        }
    }

    fn queue(&self, token: u64, backend: Arc<dyn Backend>, op: DiskOp) {
        lock(&self.shared.queue)
            .jobs
            .push_back(Job { token, backend, op });
        self.shared.wake.notify_one();
    }

    /// Appends what is done since the last call, and quiets the descriptor.
    pub fn completions(&mut self, out: &mut Vec<Completion>) {
        let _ = self.shared.event.read();
        out.append(&mut lock(&self.shared.done));
        let mut again = Vec::new();
        if let Some(reads) = &mut self.reads {
            reads.ended(|ended| {
                if ended.is_whole {
                    out.push((ended.token, Ok(ended.buffer)));
                } else {
                    again.push(ended);
                }
            });
        }
        // A thread reads the rest, or finds out what is wrong.
        for ended in again {
            let op = DiskOp::Read {
                offset: ended.offset,
                len: ended.buffer.len() as u32,
            };
            self.queue(ended.token, ended.backend, op);
        }
    }
}

/// Readable while completions wait.
impl AsFd for Pool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

/// Ends the threads after everything queued is performed.
impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.queue).stopping = true;
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a backend thread has panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::backend::{Disk, Memory, Options};

    #[test]
    fn everything_submitted_completes_once_with_its_token() {
        let mut pool = Pool::new(3).unwrap();
        let memory: Arc<dyn Backend> = Arc::new(Memory::new(1 << 20, None, false).unwrap());
        for token in 0..200_u64 {
            let op = DiskOp::Write {
                offset: token * 512,
                data: vec![token as u8; 512].into(),
                fua: false,
            };
            pool.submit(token, Arc::clone(&memory), op);
        }
        let outside = DiskOp::Read {
            offset: 1 << 20,
            len: 512,
        };
        pool.submit(200, Arc::clone(&memory), outside);
        let mut done = Vec::new();
        while done.len() < 201 {
            let mut fds = [PollFd::new(pool.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut fds, PollTimeout::from(10_000_u16)).unwrap();
            assert_eq!(ready, 1, "only {} completed", done.len());
            pool.completions(&mut done);
        }
        done.sort_by_key(|(token, _)| *token);
        for (at, (token, outcome)) in done.iter().enumerate() {
            assert_eq!(*token, at as u64);
            assert_eq!(outcome.is_ok(), at < 200);
        }
        for token in 0..200_u64 {
            let op = DiskOp::Read {
                offset: token * 512,
                len: 512,
            };
            assert_eq!(memory.execute(op).unwrap(), vec![token as u8; 512]);
        }
    }

    #[test]
    fn short_reads_of_a_file_give_what_is_in_it_or_why_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let content: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 512) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let disk: Arc<dyn Backend> = Arc::new(Disk::open_file(&path, Options::default()).unwrap());
        let mut pool = Pool::new(2).unwrap();
        let count = u64::from(SHORT_READS) + 100;
        let read = |pool: &mut Pool, token: u64| {
            let op = DiskOp::Read {
                offset: token * 512,
                len: 1024,
            };
            pool.submit(token, Arc::clone(&disk), op);
        };
        let finish = |pool: &mut Pool, count: usize| {
            pool.start();
            let mut done = Vec::new();
            while done.len() < count {
                let mut fds = [PollFd::new(pool.as_fd(), PollFlags::POLLIN)];
                let ready = poll(&mut fds, PollTimeout::from(10_000_u16)).unwrap();
                assert_eq!(ready, 1, "only {} completed", done.len());
                pool.completions(&mut done);
                pool.start();
            }
            done.sort_by_key(|(token, _)| *token);
            done
        };
        for token in 0..count {
            read(&mut pool, token);
        }
        let done = finish(&mut pool, count as usize);
        for (at, (token, outcome)) in done.into_iter().enumerate() {
            assert_eq!(token, at as u64);
            assert_eq!(outcome.unwrap(), content[at * 512..at * 512 + 1024]);
        }
        // The file has become shorter than it was; a thread says so.
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(512)
            .unwrap();
        read(&mut pool, 0);
        read(&mut pool, 2048);
        let done = finish(&mut pool, 2);
        assert!(matches!(done[0].1, Err(DiskError::Media(_))));
        assert_eq!(done[1].1, Err(DiskError::OutOfRange));
        // What the kernel has begun ends before the pool does.
        read(&mut pool, 0);
        pool.start();
        drop(pool);
    }

    #[test]
    fn what_is_queued_is_performed_before_the_end() {
        let memory: Arc<dyn Backend> = Arc::new(Memory::new(1 << 20, None, false).unwrap());
        let mut pool = Pool::new(1).unwrap();
        for token in 0..50_u64 {
            let op = DiskOp::Write {
                offset: token * 512,
                data: vec![1; 512].into(),
                fua: false,
            };
            pool.submit(token, Arc::clone(&memory), op);
        }
        drop(pool);
        let read = DiskOp::Read {
            offset: 0,
            len: 50 * 512,
        };
        assert_eq!(memory.execute(read).unwrap(), vec![1; 50 * 512]);
    }
}
