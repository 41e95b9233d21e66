//! A host that asks for what is, or is not, its own: I/O commands on a service connection by hand, past
//! every `rmad`.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rma::initiator::{DeviceId, Initiator, InitiatorConfig, Io, IoError, IoEvent, IoOp, Target};
use rma::net::{Inbox, Interface, Outbox, PacketSocket};
use rma::wire::{
    ClusterName, ETHERTYPE_SERVICE, Epoch, Guid, Incarnation, IocNumber, IodNumber, Mac, Time,
};

use crate::{RigError, system};

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is asked, of whom, by whom.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The interface to ask on, in the calling thread's namespace.
    pub interface: String,
    /// Who asks.
    pub host: Guid,
    /// Its incarnation.
    pub incarnation: u64,
    /// Its cluster.
    pub cluster: ClusterName,
    /// The unit.
    pub unit: Guid,
    /// The unit's NIC.
    pub unit_mac: Mac,
    /// The controller.
    pub ioc: u16,
    /// The device's number.
    pub iod: u16,
    /// The device.
    pub device: Guid,
    /// The extent of it that the I/O names; NIL for the device as a whole.
    pub extent: Guid,
    /// The epoch claimed.
    pub epoch: u64,
}

/// Clients opened by this process.
static OPENED: AtomicU32 = AtomicU32::new(0);

/// A command that has ended: its token, and what was read or why it failed.
pub type Ended = (u64, Result<Vec<u8>, IoError>);

/// A client of one device that goes on with the epoch it began with, whatever becomes of the device.
pub struct Intruder {
    attempt: Attempt,
    socket: PacketSocket,
    inbox: Inbox,
    outbox: Outbox,
    initiator: Initiator,
    device: DeviceId,
    start: Instant,
}

impl Intruder {
    /// Connects to the controller; commands wait until it answers.
    ///
    /// # Errors
    /// [`RigError::System`] where the interface cannot be used.
    pub fn open(attempt: &Attempt) -> Result<Self, RigError> {
        let interface = Interface::by_name(&attempt.interface).map_err(net)?;
        let socket = PacketSocket::open(&interface, ETHERTYPE_SERVICE).map_err(net)?;
        let config = InitiatorConfig {
            local: attempt.host,
            incarnation: Incarnation(attempt.incarnation),
            cluster: attempt.cluster,
            local_macs: vec![interface.mac],
            mtu: interface.mtu,
            credits: 64,
        };
        // Connections of one process differ, those of two as well.
        let seed =
            u64::from(std::process::id()) << 20 | u64::from(OPENED.fetch_add(1, Ordering::Relaxed));
        let mut initiator = Initiator::new(config, seed);
        let ioc = IocNumber(attempt.ioc);
        initiator.add_controller(Time::ZERO, attempt.unit, ioc, attempt.unit_mac);
        let target = Target {
            unit: attempt.unit,
            ioc,
            iod: IodNumber(attempt.iod),
            device: attempt.device,
            extent: attempt.extent,
            epoch: Epoch(attempt.epoch),
            size_bytes: 1 << 40,
            block_size: 512,
            features: 0,
        };
        let device = initiator.open(Time::ZERO, target);
        Ok(Self {
            attempt: attempt.clone(),
            socket,
            inbox: Inbox::new(interface.mtu),
            outbox: Outbox::new(),
            initiator,
            device,
            start: Instant::now(),
        })
    }

    fn now(&self) -> Time {
        let nanos = self.start.elapsed().as_nanos();
        Time::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Begins an I/O command; [`Self::pump`] says how it ended.
    pub fn submit(&mut self, io: Io, token: u64) {
        let now = self.now();
        self.initiator.submit(now, self.device, io, token);
    }

    /// Sends what is to be sent, waits for frames for at most `patience`, and gives the commands that
    /// have ended.
    ///
    /// # Errors
    /// [`RigError::System`].
    pub fn pump(&mut self, patience: Duration) -> Result<Vec<Ended>, RigError> {
        self.send()?;
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let wait = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        poll(&mut fds, wait).map_err(system("wait for frames"))?;
        self.socket.recv(&mut self.inbox).map_err(net)?;
        let now = self.now();
        for frame in self.inbox.frames() {
            // Frames for the host's own daemon come here too and are dropped.
            let _ = self.initiator.handle(now, frame.source, frame.payload);
        }
        self.initiator.tick(now);
        let mut ended = Vec::new();
        while let Some(event) = self.initiator.poll_event() {
            if let IoEvent::Done { token, result } = event {
                ended.push((token, result));
            }
        }
        Ok(ended)
    }

    fn send(&mut self) -> Result<(), RigError> {
        let now = self.now();
        let Self {
            initiator, outbox, ..
        } = self;
        while outbox.push_with(|out| initiator.poll_transmit(now, out)) {}
        self.socket.send(outbox).map_err(net)?;
        Ok(())
    }

    /// Does one I/O command to its end.
    ///
    /// # Errors
    /// [`RigError::System`], [`RigError::Timeout`].
    pub fn finish(&mut self, io: Io) -> Result<Result<Vec<u8>, IoError>, RigError> {
        self.submit(io, u64::MAX);
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let ended = self.pump(Duration::from_millis(10))?;
            if let Some((_, result)) = ended.into_iter().find(|(token, _)| *token == u64::MAX) {
                return Ok(result);
            }
        }
        Err(RigError::Timeout {
            what: "an answer of the unit".into(),
            after: PATIENCE,
        })
    }

    /// Says goodbye.
    ///
    /// # Errors
    /// [`RigError::System`].
    pub fn close(mut self) -> Result<(), RigError> {
        let now = self.now();
        let (unit, ioc) = (self.attempt.unit, IocNumber(self.attempt.ioc));
        self.initiator.remove_controller(now, unit, ioc);
        self.send()
    }
}

fn net(error: rma::net::NetError) -> RigError {
    RigError::System {
        action: "use the interface".into(),
        source: std::io::Error::other(error.to_string()),
    }
}

/// Reads the device's first 4 KiB; what the unit answers, `ok` if it gave them.
///
/// # Errors
/// [`RigError::System`] when nothing can be sent, [`RigError::Timeout`] when nothing is answered.
pub fn read_block(attempt: &Attempt) -> Result<String, RigError> {
    let io = Io {
        op: IoOp::Read,
        offset: 0,
        len: 4096,
        data: Arc::default(),
        fua: false,
    };
    io_once(attempt, io)
}

/// Does one I/O command; what the unit answers, `ok` if it did it.
///
/// # Errors
/// [`RigError::System`] when nothing can be sent, [`RigError::Timeout`] when nothing is answered.
pub fn io_once(attempt: &Attempt, io: Io) -> Result<String, RigError> {
    let mut intruder = Intruder::open(attempt)?;
    let result = intruder.finish(io)?;
    intruder.close()?;
    Ok(match result {
        Ok(_) => "ok".into(),
        Err(IoError::Status(status)) => status.to_string(),
        Err(other) => other.to_string(),
    })
}
