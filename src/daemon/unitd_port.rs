//! The sockets of `rma-unitd`, those of each EtherType together, and the log of the frames it dropped.

use std::time::Duration;

use super::event_loop::{Interest, Loop};
use crate::net::{Inbox, Interface, NetError, Nics};
use crate::unit::{AtOnce, Unit};
use crate::wire::{DropReason, Hop, Outgoing, Time};

/// How often dropped frames are logged at most, and frames that could not be sent.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Memory that service frames are received into, bytes for each NIC: some 900 jumbo frames.
const RING_BYTES: usize = 8 << 20;

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

/// One EtherType's sockets.
pub struct Port {
    /// The sockets.
    pub nics: Nics,
    /// Whether it is the service EtherType's.
    pub is_service: bool,
    /// Frames wait to be received.
    pub is_readable: bool,
    complained_at: Option<Time>,
}

impl Port {
    /// Opens a socket on each interface and has `event_loop` report them under `token`.
    pub fn open(
        interfaces: &[Interface],
        ethertype: u16,
        is_service: bool,
        token: u64,
        event_loop: &Loop,
    ) -> Result<Self, PortError> {
        let ring_bytes = if is_service { RING_BYTES } else { 0 };
        let nics = Nics::open_with(interfaces, ethertype, ring_bytes)?;
        event_loop
            .add(&nics, token, Interest::Read)
            .map_err(wait("wait for frames"))?;
        Ok(Self {
            nics,
            is_service,
            is_readable: false,
            complained_at: None,
        })
    }

    /// Tells the unit what its NICs take.
    pub fn tell_nics(&self, unit: &mut Unit) {
        if self.is_service {
            let mtus: Vec<u16> = self.nics.each().map(|(_, mtu)| mtu).collect();
            unit.set_nics(&mtus);
        }
    }

    /// Sends what the unit has for this EtherType, as far as the kernel takes it.
    pub fn send(&mut self, now: Time, unit: &mut Unit) {
        let is_service = self.is_service;
        let sent = self.nics.send(now, |bytes, tail| {
            if is_service {
                unit.poll_service_parts(now, bytes, tail)
            } else {
                let mac = unit.poll_transmit_on(false, now, bytes)?;
                Some(Outgoing::alone(Hop::any(mac)))
            }
        });
        // As if a switch had lost them: the peers recover.
        if let Err(e) = sent {
            self.complain(now, &e);
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
        media: &mut impl AtOnce,
    ) -> Result<bool, PortError> {
        self.is_readable = false;
        if self.nics.recv(inbox)? == 0 {
            return Ok(false);
        }
        let nic = self.nics.heard_by();
        for frame in inbox.frames() {
            if self.nics.is_for_us(frame.destination) {
                let mac = frame.source;
                // What is wrong with a frame is counted by the unit.
                let hop = Hop { mac, nic };
                let _ = unit.handle_with(now, self.is_service, hop, frame.payload, media);
            }
        }
        Ok(true)
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
