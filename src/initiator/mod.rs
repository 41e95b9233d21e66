//! The block I/O client: splitting, retries and queueing over service sessions to I/O controllers.
//!
//! Depends on [`crate::session`] and [`crate::wire`]. An [`Initiator`] holds one session for each I/O
//! controller; devices are opened on them and take reads and writes of any length.

mod answers;
mod controller;
mod io;
pub mod load;
mod policy;
pub mod stats;
mod tables;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::session::{Client, ClientEvent, Counters, Hub, NicState, PathReport};
use crate::wire::codec::DecodeError;
use crate::wire::message::{DevicesReply, Notification};
use crate::wire::row::features;
use crate::wire::{
    ClusterName, DropReason, Epoch, Guid, Hop, Incarnation, IocNumber, IodNumber, Mac, Outgoing,
    Status, Tail, Time,
};
use controller::{Controller, Errand, Place};
use io::Running;
pub use policy::Policy;
use stats::{DeviceReport, DeviceStats};
use tables::Slots;

/// The most bytes of one read or write command; longer I/O is split.
pub const MAX_PART_BYTES: u64 = 1 << 20;
/// Bytes of one discard or write-zeroes command; longer ranges are split …
pub const RANGE_PART_BYTES: u64 = 1 << 30;
/// … but not into more commands than this.
pub const MAX_RANGE_PARTS: u64 = 1024;
/// The longest read or write.
pub const MAX_IO_BYTES: u64 = 64 << 20;
/// I/Os that an initiator holds; more fail with [`IoError::Full`].
pub const MAX_IOS: usize = 65_536;
/// Bytes of data that an initiator holds for all of them.
pub const MAX_HELD_BYTES: u64 = 1 << 30;
/// First delay before a command is sent again to a unit that is busy; it doubles.
pub const RETRY_FIRST: Duration = Duration::from_millis(5);
/// The most that doubling makes of it.
pub const RETRY_MAX: Duration = Duration::from_millis(500);

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
    /// The extent of it that is meant, NIL for the device as a whole.
    pub extent: Guid,
    /// The ownership epoch under which I/O is done.
    pub epoch: Epoch,
    /// Size of the device or extent in bytes.
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
    /// The data of a write, which is sent from where it is; otherwise empty.
    pub data: Arc<Vec<u8>>,
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
    /// The unit has been away for longer than the device's policy lets I/O wait.
    #[error("the unit cannot be reached")]
    Unreachable,
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
    /// A device list that has come cannot be read; [`Self::Devices`] without one follows.
    Malformed {
        /// The unit.
        unit: Guid,
        /// The controller.
        ioc: IocNumber,
        /// Why.
        reason: DecodeError,
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
    config: InitiatorConfig,
    /// The own NICs.
    nics: Vec<NicState>,
    rng: fastrand::Rng,
    hub: Hub<ControllerKey>,
    controllers: BTreeMap<ControllerKey, Controller>,
    devices: BTreeMap<DeviceId, Device>,
    next_device: u64,
    ios: Slots<Running>,
    /// Bytes of all I/Os' data.
    held: u64,
    /// How many commands were given to sessions and have not ended.
    under_way: usize,
    /// How many commands of closed devices have not ended: a device that is opened at the same
    /// place waits for them, as they would overtake its own (I3).
    ghosts: BTreeMap<Place, usize>,
    /// When the first device has been cut off for as long as its policy lets I/O wait.
    outage_due: Option<Time>,
    /// Parts that wait before they are sent again.
    retries: BTreeSet<(Time, u64, u32)>,
    /// The last session's number.
    sessions: u64,
    /// Controllers whose sessions are given more to send before the next frame is.
    unfed: VecDeque<ControllerKey>,
    /// A session's events that are being dealt with.
    taken: VecDeque<ClientEvent>,
    events: VecDeque<IoEvent>,
}

type ControllerKey = (Guid, IocNumber);

/// An open device.
#[derive(Debug)]
struct Device {
    target: Target,
    /// Parts to be sent: I/O and the part's number.
    waiting: VecDeque<(u64, u32)>,
    /// Whether the device is in its controller's list of those with waiting parts.
    ready: bool,
    outage: policy::Outage,
    stats: DeviceStats,
}

/// A command that was given to a session.
#[derive(Debug, Clone, Copy)]
enum Sent {
    /// A controller's device list.
    List,
    /// A part of an I/O.
    Part { io: u64, part: u32, to: Errand },
}

impl Initiator {
    /// An initiator without controllers. `seed` makes its nonces.
    pub fn new(config: InitiatorConfig, seed: u64) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(seed),
            hub: Hub::new(true, config.local_macs.clone()),
            nics: vec![
                NicState {
                    up: true,
                    mtu: config.mtu,
                };
                config.local_macs.len().max(1)
            ],
            config,
            controllers: BTreeMap::new(),
            devices: BTreeMap::new(),
            next_device: 1,
            ios: Slots::new(),
            held: 0,
            under_way: 0,
            ghosts: BTreeMap::new(),
            outage_due: None,
            retries: BTreeSet::new(),
            sessions: 0,
            unfed: VecDeque::new(),
            taken: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// The state of the own NICs, by number: those of the configuration's addresses.
    pub fn set_nics(&mut self, now: Time, nics: &[NicState]) {
        self.nics = nics.to_vec();
        let keys: Vec<ControllerKey> = self.controllers.keys().copied().collect();
        for key in keys {
            if let Some(client) = self.hub.client_mut(&key) {
                client.set_nics(now, nics);
            }
        }
    }

    /// The paths to each controller.
    pub fn paths(&self) -> impl Iterator<Item = (Guid, IocNumber, PathReport)> + '_ {
        self.controllers.keys().flat_map(|key| {
            let client = self.hub.client(key).into_iter();
            let paths = client.flat_map(Client::paths);
            paths.map(|path| (key.0, key.1, path))
        })
    }

    /// Opens a device for I/O.
    pub fn open(&mut self, now: Time, target: Target) -> DeviceId {
        let id = DeviceId(self.next_device);
        self.next_device += 1;
        let device = Device {
            target,
            waiting: VecDeque::new(),
            ready: false,
            outage: policy::Outage::default(),
            stats: DeviceStats::new(),
        };
        self.devices.insert(id, device);
        self.note_reach(now, id);
        self.note_use(key_of(&target));
        id
    }

    /// Where a device is, and under which epoch.
    pub fn target(&self, device: DeviceId) -> Option<&Target> {
        self.devices.get(&device).map(|d| &d.target)
    }

    /// What has been done on a device since it was opened.
    pub fn stats(&self, device: DeviceId) -> Option<DeviceReport> {
        self.devices.get(&device).map(|d| d.stats.report())
    }

    /// Tells where the device is now, and under which epoch; what waits is sent there. What was
    /// sent to the old place is waited for, and sent again where the old place refuses it.
    pub fn retarget(&mut self, now: Time, device: DeviceId, target: Target) {
        let Some(open) = self.devices.get_mut(&device) else {
            return;
        };
        let old = std::mem::replace(&mut open.target, target);
        if Place::of(&old) != Place::of(&target) {
            open.ready = false;
            if let Some(controller) = self.controllers.get_mut(&key_of(&old)) {
                controller.ready.retain(|d| *d != device);
            }
        }
        for key in [key_of(&old), key_of(&target)] {
            self.note_use(key);
        }
        self.note_reach(now, device);
        self.make_ready(device);
    }

    /// Closes a device; its outstanding I/O fails with [`IoError::Closed`].
    pub fn close(&mut self, now: Time, device: DeviceId) {
        let Some(open) = self.devices.remove(&device) else {
            return;
        };
        let key = key_of(&open.target);
        if let Some(controller) = self.controllers.get_mut(&key) {
            controller.ready.retain(|d| *d != device);
        }
        for io in self.take_ios(device) {
            self.done(io.token, Err(IoError::Closed));
        }
        self.count_ghosts();
        self.note_use(key);
        self.close_unused(now, key);
    }

    /// Starts an I/O; its end is reported by [`IoEvent::Done`] with `token`.
    pub fn submit(&mut self, now: Time, device: DeviceId, io: Io, token: u64) {
        let Some(open) = self.devices.get_mut(&device) else {
            return self.done(token, Err(IoError::Closed));
        };
        let len = if io.op == IoOp::Write {
            io.data.len() as u64
        } else {
            io.len
        };
        if let Err(error) = check(&open.target, io.op, io.offset, len) {
            return self.done(token, Err(error));
        }
        if len == 0 && io.op != IoOp::Flush {
            return self.done(token, Ok(Vec::new()));
        }
        if open.outage.fails {
            return self.done(token, Err(IoError::Unreachable));
        }
        let running = Running::new(now, device, io, len, token);
        if self.ios.len() >= MAX_IOS || self.held + running.held() > MAX_HELD_BYTES {
            return self.done(token, Err(IoError::Full));
        }
        self.held += running.held();
        let parts = running.part_count();
        let id = self.ios.insert(running);
        open.waiting.extend((0..parts).map(|part| (id, part)));
        self.make_ready(device);
    }

    /// Takes back what was read from a device, to be used again.
    pub fn give_buffer(&mut self, device: DeviceId, buffer: Vec<u8>) {
        if buffer.capacity() == 0 {
            return;
        }
        if let Some(client) = self.client_of(device) {
            client.give_buffer(buffer);
        }
    }

    fn client_of(&mut self, device: DeviceId) -> Option<&mut Client> {
        let key = key_of(&self.devices.get(&device)?.target);
        self.hub.client_mut(&key)
    }

    fn done(&mut self, token: u64, result: Result<Vec<u8>, IoError>) {
        self.events.push_back(IoEvent::Done { token, result });
    }

    /// Takes a frame of the service EtherType, without its Ethernet header.
    pub fn handle(
        &mut self,
        now: Time,
        src: impl Into<Hop>,
        frame: &[u8],
    ) -> Result<(), DropReason> {
        let result = self.hub.handle(now, src, frame);
        self.take_events(now);
        result
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Time) {
        self.hub.tick(now);
        while let Some(&(at, io, part)) = self.retries.first() {
            if at > now {
                break;
            }
            self.retries.pop_first();
            self.wait_again(io, part);
        }
        self.tick_outages(now);
        self.take_events(now);
    }

    /// When `tick` must be called next.
    pub fn deadline(&self) -> Option<Time> {
        let retry = self.retries.first().map(|(at, _, _)| *at);
        let own = retry.into_iter().chain(self.outage_due());
        own.chain(self.hub.deadline()).min()
    }

    /// Appends one frame to `out` and returns its destination, or `None` when there is nothing to
    /// send now.
    pub fn poll_transmit(&mut self, now: Time, out: &mut Vec<u8>) -> Option<Mac> {
        self.feed_all(now);
        self.hub.poll_transmit(now, out)
    }

    /// The same, but the end of the packet, where it is long, is not copied: `tail` becomes it; and with
    /// the own NIC that it should leave by, and whether it may share its frame.
    pub fn poll_transmit_parts(
        &mut self,
        now: Time,
        out: &mut Vec<u8>,
        tail: &mut Option<Tail>,
    ) -> Option<Outgoing> {
        self.feed_all(now);
        self.hub.poll_transmit_parts(now, out, tail)
    }

    /// Whether an answer is awaited, or will be once what waits is sent.
    pub fn is_waiting(&self) -> bool {
        self.under_way > 0 || !self.unfed.is_empty()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<IoEvent> {
        self.events.pop_front()
    }

    /// Dropped frames by reason.
    pub const fn drops(&self) -> &Counters {
        self.hub.drops()
    }

    fn take_events(&mut self, now: Time) {
        while let Some(key) = self.hub.take_client_events(&mut self.taken) {
            while let Some(event) = self.taken.pop_front() {
                self.on_event(now, key, event);
            }
        }
        // No client has any now, so these are of no use: nobody serves here, or asks who is there.
        while self.hub.poll_event().is_some() {}
    }

    fn on_event(&mut self, now: Time, key: ControllerKey, event: ClientEvent) {
        let (unit, ioc) = key;
        match event {
            ClientEvent::Connected { incarnation, .. } => {
                self.on_connected(now, key, incarnation);
            }
            ClientEvent::Lost => self.on_lost(now, key),
            ClientEvent::Refused(status) => {
                self.events
                    .push_back(IoEvent::Refused { unit, ioc, status });
            }
            ClientEvent::Reply {
                command,
                status,
                body,
            } => self.on_reply(now, key, command, status, body),
            ClientEvent::Notified(notification) => self.events.push_back(IoEvent::Notified {
                unit,
                ioc,
                notification,
            }),
        }
    }
}

const fn key_of(target: &Target) -> ControllerKey {
    (target.unit, target.ioc)
}

/// Whether these are multiples of a size, which is hardly ever not a power of two: dividing takes longer.
fn are_multiples(all: [u64; 2], size: u32) -> bool {
    let size = u64::from(size);
    if size.is_power_of_two() {
        (all[0] | all[1]) & (size - 1) == 0
    } else {
        all.iter().all(|n| n.is_multiple_of(size))
    }
}

/// Whether the device takes such an I/O at all.
fn check(target: &Target, op: IoOp, offset: u64, len: u64) -> Result<(), IoError> {
    if op == IoOp::Flush {
        return Ok(());
    }
    let end = offset.checked_add(len).ok_or(IoError::OutOfRange)?;
    if end > target.size_bytes {
        return Err(IoError::OutOfRange);
    }
    if matches!(op, IoOp::Read | IoOp::Write) && len > MAX_IO_BYTES {
        return Err(IoError::Full);
    }
    if !are_multiples([offset, len], target.block_size.max(1)) {
        return Err(IoError::Misaligned);
    }
    if op != IoOp::Read && target.features & features::READ_ONLY != 0 {
        return Err(IoError::Status(Status::ReadOnly));
    }
    Ok(())
}
