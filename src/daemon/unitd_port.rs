//! The sockets of `rma-unitd`, one for each EtherType, and the log of the frames it dropped.

use std::time::Duration;

use super::event_loop::{Interest, Loop};
use crate::net::{Inbox, Interface, NetError, Outbox, PacketSocket};
use crate::unit::Unit;
use crate::wire::{DropReason, Time};

/// How often dropped frames are logged at most, and frames that could not be sent.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// A socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The interface or the kernel refuses.
    #[error(transparent)]
    Net(#[from] NetError),
    /// It cannot be waited for.
    #[error("cannot {what}: {source}")]
    Wait {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

fn wait(what: &'static str) -> impl Fn(std::io::Error) -> PortError {
    move |source| PortError::Wait { what, source }
}

/// One EtherType's socket and what waits to be sent on it.
pub struct Port {
    /// The socket.
    pub socket: PacketSocket,
    outbox: Outbox,
    token: u64,
    /// Whether it is the service EtherType's.
    pub is_service: bool,
    /// Frames wait to be received.
    pub is_readable: bool,
    /// The kernel had no room; the loop says when it has.
    is_blocked: bool,
    complained_at: Option<Time>,
}

impl Port {
    /// Opens a socket and has `event_loop` report it under `token`.
    pub fn open(
        interface: &Interface,
        ethertype: u16,
        is_service: bool,
        token: u64,
        event_loop: &Loop,
    ) -> Result<Self, PortError> {
        let socket = PacketSocket::open(interface, ethertype)?;
        event_loop
            .add(&socket, token, Interest::Read)
            .map_err(wait("wait for frames"))?;
        Ok(Self {
            socket,
            outbox: Outbox::new(),
            token,
            is_service,
            is_readable: false,
            is_blocked: false,
            complained_at: None,
        })
    }

    /// Sends what the unit has for this EtherType, as far as the kernel takes it.
    pub fn send(&mut self, now: Time, unit: &mut Unit, event_loop: &Loop) -> Result<(), PortError> {
        if self.is_blocked {
            return Ok(());
        }
        loop {
            let is_service = self.is_service;
            while self
                .outbox
                .push_with(|bytes| unit.poll_transmit_on(is_service, now, bytes))
            {}
            if self.outbox.is_empty() {
                return Ok(());
            }
            match self.socket.send(&mut self.outbox) {
                Ok(true) => {}
                Ok(false) => {
                    self.is_blocked = true;
                    return event_loop
                        .change(&self.socket, self.token, Interest::ReadWrite)
                        .map_err(wait("wait for room to send"));
                }
                // As if a switch had lost them: the peers recover.
                Err(e) => {
                    self.complain(now, &e);
                    self.outbox.clear();
                    return Ok(());
                }
            }
        }
    }

    fn complain(&mut self, now: Time, error: &NetError) {
        if self
            .complained_at
            .is_none_or(|at| now.since(at) >= LOG_INTERVAL)
        {
            self.complained_at = Some(now);
            log::warn!("frames not sent: {}", super::unitd::one_line(error));
        }
    }

    /// Receives one batch for the unit, where there is one; what is left over is reported readable
    /// again. Whether anything came.
    pub fn receive(
        &mut self,
        now: Time,
        inbox: &mut Inbox,
        unit: &mut Unit,
    ) -> Result<bool, PortError> {
        self.is_readable = false;
        let count = self.socket.recv(inbox)?;
        let own = self.socket.interface().mac;
        for frame in inbox.frames() {
            // A packet socket also sees what the switch floods to others.
            if frame.destination != own && !frame.destination.is_multicast() {
                continue;
            }
            // What is wrong with a frame is counted by the unit.
            let _ = unit.handle(now, self.is_service, frame.source, frame.payload);
        }
        Ok(count > 0)
    }

    /// There is room to send again.
    pub fn unblock(&mut self, event_loop: &Loop) -> Result<(), PortError> {
        if !self.is_blocked {
            return Ok(());
        }
        self.is_blocked = false;
        event_loop
            .change(&self.socket, self.token, Interest::Read)
            .map_err(wait("wait for frames"))
    }
}

/// Logs dropped frames, at most one line a second.
#[derive(Debug, Default)]
pub struct DropLog {
    logged: Vec<(DropReason, u64)>,
    logged_total: u64,
    next: Option<Time>,
}

impl DropLog {
    fn counts(unit: &Unit) -> impl Iterator<Item = (DropReason, u64)> {
        let (management, service) = (unit.drops(false), unit.drops(true));
        management
            .iter()
            .map(|(reason, count)| (reason, count + service.get(reason)))
    }

    /// When [`Self::follow`] may have something to log.
    pub fn deadline(&self) -> Option<Time> {
        self.next
    }

    /// Logs what has come since the last line, unless that was a moment ago.
    pub fn follow(&mut self, now: Time, unit: &Unit) {
        self.next = self.next.filter(|next| now < *next);
        let total = unit.drops(false).total() + unit.drops(true).total();
        if total == self.logged_total || self.next.is_some() {
            return;
        }
        let counts: Vec<_> = Self::counts(unit).collect();
        let before = |reason| {
            self.logged
                .iter()
                .find(|(r, _)| *r == reason)
                .map_or(0, |(_, count)| *count)
        };
        let words: Vec<String> = counts
            .iter()
            .filter_map(|(reason, count)| {
                let more = count - before(*reason);
                (more > 0).then(|| format!("{more} {reason}"))
            })
            .collect();
        log::info!("frames dropped: {}", words.join(", "));
        self.logged = counts;
        self.logged_total = total;
        self.next = Some(now + LOG_INTERVAL);
    }
}
