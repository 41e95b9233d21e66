//! The thread that makes the host's table durable, so that a slow disk delays neither frames nor
//! timers: takes changes in order and says when each is done. Decides nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::crt::TableChange;
use crate::rma::CommitToken;
use crate::store::crt_file::CrtFile;
use crate::store::mmap::give_back_freed_memory;
use crate::wire::ClusterName;

/// A commit of so many rows leaves much freed memory behind.
const MANY_ROWS: usize = 4096;

enum Job {
    Commit(CommitToken, TableChange),
    Join(ClusterName, TableChange),
}

/// A commit that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CommitDone {
    pub(super) token: CommitToken,
    /// Whether it is durable.
    pub(super) ok: bool,
}

/// The management thread's end. The agent asks for one commit at a time, which bounds the queue.
pub(super) struct Committer {
    /// `None` when it is to end.
    jobs: Option<Sender<Job>>,
    done: Receiver<CommitDone>,
    ready: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Committer {
    /// Starts the thread. The process's signals must already be blocked.
    pub(super) fn start(mut file: CrtFile) -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let ready = Arc::new(EventFd::from_flags(flags)?);
        let (jobs, queue) = channel();
        let (say, done) = channel();
        let wake = Arc::clone(&ready);
        let thread = std::thread::Builder::new()
            .name("table".into())
            .spawn(move || {
                for job in queue {
                    let Some(over) = carry_out(&mut file, job) else {
                        continue;
                    };
                    if say.send(over).is_err() {
                        return;
                    }
                    let _ = wake.write(1);
                }
            })?;
        Ok(Self {
            jobs: Some(jobs),
            done,
            ready,
            thread: Some(thread),
        })
    }

    /// Makes a change durable; [`Committer::drain`] tells when it is.
    pub(super) fn commit(&self, token: CommitToken, change: TableChange) {
        self.send(Job::Commit(token, change));
    }

    /// Makes the file one of `cluster`.
    pub(super) fn join(&self, cluster: ClusterName, change: TableChange) {
        self.send(Job::Join(cluster, change));
    }

    fn send(&self, job: Job) {
        // A thread that has ended is noticed by `has_ended`.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(job));
    }

    /// The commits that are over since.
    pub(super) fn drain(&self) -> Vec<CommitDone> {
        let _ = self.ready.read();
        self.done.try_iter().collect()
    }

    /// Whether the thread has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl AsFd for Committer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

impl Drop for Committer {
    /// What was asked for is still done; then the file is closed.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn carry_out(file: &mut CrtFile, job: Job) -> Option<CommitDone> {
    match job {
        Job::Commit(token, change) => {
            let many = change.row_count() >= MANY_ROWS;
            let result = file.apply(change);
            if let Err(e) = &result {
                log::error!("the table is not stored: {e}");
            }
            if many {
                // The rows came in messages, and lay about in several forms meanwhile.
                give_back_freed_memory();
            }
            let ok = result.is_ok();
            Some(CommitDone { token, ok })
        }
        Job::Join(cluster, change) => {
            file.set_cluster(cluster);
            if let Err(e) = file.apply(change) {
                log::error!("the cluster is not stored: {e}");
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Snapshot;
    use crate::wire::{EntityType, Guid, Row};

    #[test]
    fn commits_hold_what_the_table_was_when_they_were_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("crt");
        let (file, mut table) = CrtFile::open(&path, Guid(1), ClusterName::NONE).unwrap();
        let commits = Committer::start(file).unwrap();
        commits.join("A".parse().unwrap(), TableChange::of(&table, &[]));
        let mut expected = Vec::new();
        for n in 2..6 {
            let mut row = Row::new(Guid(n), EntityType::Host);
            row.name = format!("h{n}");
            let changed = table.insert(row);
            table.publish(1, Guid(1));
            commits.commit(CommitToken(n as u64), TableChange::of(&table, &changed));
            expected.push(CommitDone {
                token: CommitToken(n as u64),
                ok: true,
            });
        }
        let stored = table.summary();
        // Not asked for, so not stored.
        table.insert(Row::new(Guid(9), EntityType::Host));
        let mut done = Vec::new();
        while done.len() < expected.len() {
            let mut wait = [nix::poll::PollFd::new(
                commits.as_fd(),
                nix::poll::PollFlags::POLLIN,
            )];
            nix::poll::poll(&mut wait, 10_000u16).unwrap();
            let more = commits.drain();
            assert!(!more.is_empty(), "nothing within ten seconds");
            done.extend(more);
        }
        assert_eq!(done, expected);
        assert!(!commits.has_ended());
        drop(commits);
        let snapshot = Snapshot::read(&path).unwrap();
        assert_eq!(snapshot.table.summary(), stored);
        assert_eq!(snapshot.info.cluster.to_string(), "A");
    }
}
