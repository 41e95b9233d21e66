//! Many daemons watched at once over their control sockets: what each says happens, and when.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use crate::{Daemon, RigError, system};

/// Something that a daemon has said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Which of the watched ones, counted from 0.
    pub index: usize,
    /// When it was read.
    pub at: Instant,
    /// As the control socket has it: `{"event": {"event": "unreachable", …}}`.
    pub line: Value,
}

/// Connections that watch daemons.
#[derive(Debug)]
pub struct Watchers {
    /// `None` where the daemon has gone.
    streams: Vec<Option<(UnixStream, Vec<u8>)>>,
}

impl Watchers {
    /// Watches hosts; returns when each of them has said that it is being watched.
    ///
    /// # Errors
    /// [`RigError::System`], [`RigError::Timeout`].
    pub fn new(hosts: &[&Daemon], patience: Duration) -> Result<Self, RigError> {
        let mut streams = Vec::with_capacity(hosts.len());
        for host in hosts {
            let action = format!("watch {}", host.node().name());
            let mut stream = UnixStream::connect(host.socket()).map_err(system(action.clone()))?;
            stream
                .write_all(b"{\"agent\":{\"verb\":\"watch\"}}\n")
                .map_err(system(action.clone()))?;
            stream.set_nonblocking(true).map_err(system(action))?;
            streams.push(Some((stream, Vec::new())));
        }
        let mut watchers = Self { streams };
        let mut watching = vec![false; hosts.len()];
        let end = Instant::now() + patience;
        while watching.contains(&false) {
            if Instant::now() >= end {
                return Err(RigError::Timeout {
                    what: "the hosts to let themselves be watched".into(),
                    after: patience,
                });
            }
            for said in watchers.wait(Duration::from_millis(100))? {
                watching[said.index] |= said.line["agent"]["reply"] == "watching";
            }
        }
        Ok(watchers)
    }

    /// Those of the watched daemons that have not gone, counted from 0.
    pub fn open(&self) -> BTreeSet<usize> {
        let open = |index: &usize| self.streams[*index].is_some();
        (0..self.streams.len()).filter(open).collect()
    }

    /// What is said within `patience`; returns as soon as anything is.
    ///
    /// # Errors
    /// [`RigError::System`].
    pub fn wait(&mut self, patience: Duration) -> Result<Vec<Said>, RigError> {
        let open = self.open();
        let mut fds: Vec<PollFd<'_>> = open
            .iter()
            .filter_map(|index| self.streams[*index].as_ref())
            .map(|(stream, _)| PollFd::new(stream.as_fd(), PollFlags::POLLIN))
            .collect();
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(system("wait for the watched hosts")(errno)),
        }
        let ready: Vec<usize> = open
            .into_iter()
            .zip(&fds)
            .filter(|(_, fd)| fd.any().unwrap_or(false))
            .map(|(index, _)| index)
            .collect();
        let mut said = Vec::new();
        for index in ready {
            self.read(index, &mut said);
        }
        Ok(said)
    }

    /// Forgets everything that has been said so far.
    ///
    /// # Errors
    /// [`RigError::System`].
    pub fn drain(&mut self) -> Result<(), RigError> {
        while !self.wait(Duration::ZERO)?.is_empty() {}
        Ok(())
    }

    fn read(&mut self, index: usize, said: &mut Vec<Said>) {
        let Some((stream, input)) = &mut self.streams[index] else {
            return;
        };
        let mut buffer = [0; 16_384];
        let ended = loop {
            match stream.read(&mut buffer) {
                Ok(0) => break true,
                Ok(count) => input.extend_from_slice(&buffer[..count]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => break true,
            }
        };
        let at = Instant::now();
        while let Some(end) = input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = input.drain(..=end).collect();
            if let Ok(line) = serde_json::from_slice(&line) {
                said.push(Said { index, at, line });
            }
        }
        if ended {
            self.streams[index] = None;
        }
    }
}
