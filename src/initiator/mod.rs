//! The block I/O client: splitting, retries and queueing over service sessions to I/O controllers.
//!
//! Depends on [`crate::session`] and [`crate::wire`]. An [`Initiator`] holds one session for each I/O
//! controller; devices are opened on them and take reads and writes of any length.

use crate::session::Counters;
use crate::wire::message::{DevicesReply, Notification};
use crate::wire::{
    ClusterName, DropReason, Epoch, Guid, Incarnation, IocNumber, IodNumber, Mac, Status, Time,
};

/// Who the initiator is and how it opens its sessions.
#[derive(Debug, Clone)]
pub struct InitiatorConfig {
    /// The host.
    pub local: Guid,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Its cluster.
    pub cluster: ClusterName,
    /// Its NICs' addresses on this wire: frames from them are dropped.
    pub local_macs: Vec<Mac>,
    /// The most bytes of a frame behind its Ethernet header.
    pub mtu: u16,
    /// Commands to have outstanding at most on each controller.
    pub credits: u16,
}

/// Where a device is and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The unit.
    pub unit: Guid,
    /// The controller's number.
    pub ioc: IocNumber,
    /// The device's number.
    pub iod: IodNumber,
    /// The device.
    pub device: Guid,
    /// The ownership epoch under which I/O is done.
    pub epoch: Epoch,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Logical block size in bytes.
    pub block_size: u32,
    /// Its [`crate::wire::row::features`].
    pub features: u64,
}

/// A device opened at an initiator; never used again after its close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(u64);

/// What an I/O does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IoOp {
    /// Reads `len` bytes.
    Read,
    /// Writes the data.
    Write,
    /// Makes everything acknowledged before durable.
    Flush,
    /// Tells that the range's content is not needed.
    Discard,
    /// Writes zeroes to the range.
    WriteZeroes,
}

/// An I/O on a device.
#[derive(Debug, Clone)]
pub struct Io {
    /// What it does.
    pub op: IoOp,
    /// First byte on the device; 0 for flush.
    pub offset: u64,
    /// Number of bytes, of any length within the device; for writes the length of `data`.
    pub len: u64,
    /// The data of a write; otherwise empty.
    pub data: Vec<u8>,
    /// Whether a write (or discard, or write-zeroes) must be durable before it is done.
    pub fua: bool,
}

/// Why an I/O failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The unit answered with this status.
    #[error("the unit answered: {0}")]
    Status(Status),
    /// The unit's answer makes no sense.
    #[error("the unit's answer is malformed")]
    Malformed,
    /// The device is not open, or was closed.
    #[error("the device is closed")]
    Closed,
    /// The range is outside the device.
    #[error("the range is outside the device")]
    OutOfRange,
    /// The range is not aligned to the device's blocks.
    #[error("the range is not aligned to the device's blocks")]
    Misaligned,
    /// Too much waits already.
    #[error("too much I/O is waiting")]
    Full,
}

/// What an initiator reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IoEvent {
    /// An I/O ended.
    Done {
        /// The token of its submission.
        token: u64,
        /// The data read (empty for other operations), or why it failed.
        result: Result<Vec<u8>, IoError>,
    },
    /// A device list was asked for and has come.
    Devices {
        /// The unit.
        unit: Guid,
        /// The controller.
        ioc: IocNumber,
        /// The list, or why there is none.
        result: Result<DevicesReply, Status>,
    },
    /// A controller can be reached.
    Up {
        /// The unit.
        unit: Guid,
        /// The controller.
        ioc: IocNumber,
        /// The unit's incarnation.
        incarnation: Incarnation,
    },
    /// A controller cannot be reached; its devices' I/O waits.
    Down {
        /// The unit.
        unit: Guid,
        /// The controller.
        ioc: IocNumber,
    },
    /// A controller's connection was refused; it is tried again.
    Refused {
        /// The unit.
        unit: Guid,
        /// The controller.
        ioc: IocNumber,
        /// Why.
        status: Status,
    },
    /// Something changed at a controller.
    Notified {
        /// The unit.
        unit: Guid,
        /// The controller.
        ioc: IocNumber,
        /// What.
        notification: Notification,
    },
}

/// The block I/O client of a host.
#[derive(Debug)]
pub struct Initiator {
    drops: Counters,
}

impl Initiator {
    /// An initiator without controllers.
    pub fn new(config: InitiatorConfig, seed: u64) -> Self {
        let _ = (config, seed);
        Self {
            drops: Counters::default(),
        }
    }

    /// Opens and keeps open a session to a controller; with another address later, moves there.
    pub fn add_controller(&mut self, now: Time, unit: Guid, ioc: IocNumber, mac: Mac) {
        let _ = (now, unit, ioc, mac);
    }

    /// Closes a controller's session. I/O of devices still open on it waits for the controller to
    /// come back.
    pub fn remove_controller(&mut self, now: Time, unit: Guid, ioc: IocNumber) {
        let _ = (now, unit, ioc);
    }

    /// Asks a controller for its devices; answered by [`IoEvent::Devices`] once there is an answer.
    pub fn list_devices(&mut self, now: Time, unit: Guid, ioc: IocNumber) {
        let _ = (now, unit, ioc);
    }

    /// Opens a device for I/O.
    pub fn open(&mut self, now: Time, target: Target) -> DeviceId {
        let _ = (now, target);
        DeviceId(0)
    }

    /// Tells where the device is now, and under which epoch; what waits is sent there.
    pub fn retarget(&mut self, now: Time, device: DeviceId, target: Target) {
        let _ = (now, device, target);
    }

    /// Closes a device; its outstanding I/O fails with [`IoError::Closed`].
    pub fn close(&mut self, now: Time, device: DeviceId) {
        let _ = (now, device);
    }

    /// Starts an I/O; its end is reported by [`IoEvent::Done`] with `token`.
    pub fn submit(&mut self, now: Time, device: DeviceId, io: Io, token: u64) {
        let _ = (now, device, io, token);
    }

    /// Takes a frame of the service EtherType, without its Ethernet header.
    pub fn handle(&mut self, now: Time, src: Mac, frame: &[u8]) -> Result<(), DropReason> {
        let _ = (now, src, frame);
        Err(DropReason::Unexpected)
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Time) {
        let _ = now;
    }

    /// When `tick` must be called next.
    pub fn deadline(&self) -> Option<Time> {
        None
    }

    /// Appends one frame to `out` and returns its destination, or `None` when there is nothing to
    /// send now.
    pub fn poll_transmit(&mut self, now: Time, out: &mut Vec<u8>) -> Option<Mac> {
        let _ = (now, out);
        None
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<IoEvent> {
        None
    }

    /// Dropped frames by reason.
    pub fn drops(&self) -> &Counters {
        &self.drops
    }
}
