//! A host that asks for what is not its own: one I/O command on a service connection by hand.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rma::initiator::{Initiator, InitiatorConfig, Io, IoError, IoEvent, IoOp, Target};
use rma::net::{Inbox, Interface, Outbox, PacketSocket};
use rma::wire::{
    ClusterName, ETHERTYPE_SERVICE, Epoch, Guid, Incarnation, IocNumber, IodNumber, Mac, Time,
};

use crate::RigError;

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

/// Reads the device's first 4 KiB; what the unit answers, `ok` if it gave them.
///
/// # Errors
/// [`RigError::System`] when nothing can be sent, [`RigError::Timeout`] when nothing is answered.
pub fn read_block(attempt: &Attempt) -> Result<String, RigError> {
    let io = Io {
        op: IoOp::Read,
        offset: 0,
        len: 4096,
        data: Vec::new(),
        fua: false,
    };
    io_once(attempt, io)
}

/// Does one I/O command; what the unit answers, `ok` if it did it.
///
/// # Errors
/// [`RigError::System`] when nothing can be sent, [`RigError::Timeout`] when nothing is answered.
pub fn io_once(attempt: &Attempt, io: Io) -> Result<String, RigError> {
    let system = |action: &'static str| {
        move |source: std::io::Error| RigError::System {
            action: action.into(),
            source,
        }
    };
    let net = |e: rma::net::NetError| RigError::System {
        action: "use the interface".into(),
        source: std::io::Error::other(e.to_string()),
    };
    let interface = Interface::by_name(&attempt.interface).map_err(net)?;
    let mut socket = PacketSocket::open(&interface, ETHERTYPE_SERVICE).map_err(net)?;
    let config = InitiatorConfig {
        local: attempt.host,
        incarnation: Incarnation(attempt.incarnation),
        cluster: attempt.cluster,
        local_macs: vec![interface.mac],
        mtu: interface.mtu,
        credits: 4,
    };
    let start = Instant::now();
    let now = || Time::from_nanos(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
    let mut initiator = Initiator::new(config, u64::from(std::process::id()) << 20);
    let ioc = IocNumber(attempt.ioc);
    initiator.add_controller(now(), attempt.unit, ioc, attempt.unit_mac);
    let device = initiator.open(
        now(),
        Target {
            unit: attempt.unit,
            ioc,
            iod: IodNumber(attempt.iod),
            device: attempt.device,
            extent: attempt.extent,
            epoch: Epoch(attempt.epoch),
            size_bytes: 1 << 40,
            block_size: 512,
            features: 0,
        },
    );
    initiator.submit(now(), device, io, 1);
    let (mut inbox, mut outbox) = (Inbox::new(interface.mtu), Outbox::new());
    while start.elapsed() < Duration::from_secs(10) {
        while outbox.push_with(|out| initiator.poll_transmit(now(), out)) {}
        socket.send(&mut outbox).map_err(net)?;
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(10_u8))
            .map_err(|e| system("wait for frames")(e.into()))?;
        socket.recv(&mut inbox).map_err(net)?;
        for frame in inbox.frames() {
            // Frames for the host's own daemon come here too and are dropped.
            let _ = initiator.handle(now(), frame.source, frame.payload);
        }
        initiator.tick(now());
        while let Some(event) = initiator.poll_event() {
            if let IoEvent::Done { result, .. } = event {
                initiator.remove_controller(now(), attempt.unit, ioc);
                while outbox.push_with(|out| initiator.poll_transmit(now(), out)) {}
                socket.send(&mut outbox).map_err(net)?;
                return Ok(match result {
                    Ok(_) => "ok".into(),
                    Err(IoError::Status(status)) => status.to_string(),
                    Err(other) => other.to_string(),
                });
            }
        }
    }
    Err(RigError::Timeout {
        what: "an answer of the unit".into(),
        after: Duration::from_secs(10),
    })
}
