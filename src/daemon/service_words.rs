//! What the management thread and the service thread of `rmad` say to each other, and what an owned
//! device is to the initiator and to a client.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use nix::sys::eventfd::EventFd;

use crate::admin::protocol::{
    DeviceStatistics, ExportInfo as ExportStatus, FrameStatistics, PathStatistics,
};
use crate::export::block::ExportInfo;
use crate::initiator::load::{LoadReport, LoadSpec};
use crate::initiator::{Policy, Target};
use crate::rma::OwnedDevice;
use crate::wire::message::{DevicesReply, Notification};
use crate::wire::row::features;
use crate::wire::{ClusterName, Guid, IocNumber, Mac, Status};

/// What the management thread wants.
#[derive(Debug)]
pub enum ServiceCommand {
    /// The cluster became known or changed.
    Cluster(ClusterName),
    /// Keep a service connection to a controller, by any of its unit's NICs.
    AddController(Guid, IocNumber, Vec<Mac>),
    /// Give it up.
    RemoveController(Guid, IocNumber),
    /// Ask a controller for its devices.
    ListDevices(Guid, IocNumber),
    /// Everything that this host owns, and what people must know of some of it.
    Export(Vec<OwnedDevice>, BTreeMap<Guid, String>),
    /// What becomes of I/O to an unreachable unit: of most devices, and of those that have a word of their
    /// own.
    Policies(Policy, BTreeMap<Guid, Policy>),
    /// How one of these devices is exported.
    Expose(Guid, Exposure),
    /// Tell what is exported; the token comes back.
    Report(u64),
    /// Tell what has been done; the token comes back.
    Statistics(u64),
    /// Make load on a device that this host owns, and tell how it goes; the token comes back.
    Load(u64, Guid, LoadSpec),
    /// Whoever wanted that load has gone: end it.
    EndLoad(u64),
    /// The interface changed: look at it again.
    LinkChanged,
    /// Say that the thread is alive.
    Beat,
    /// End the thread: close sockets and connections.
    Stop,
}

/// Gives the thread commands, from any thread.
#[derive(Clone)]
pub struct ServiceSender {
    commands: Sender<ServiceCommand>,
    wake: Arc<EventFd>,
}

impl ServiceSender {
    pub(super) const fn new(commands: Sender<ServiceCommand>, wake: Arc<EventFd>) -> Self {
        Self { commands, wake }
    }

    /// Gives the thread a command; one to a thread that has ended is dropped.
    pub fn send(&self, command: ServiceCommand) {
        if self.commands.send(command).is_ok() {
            let _ = self.wake.write(1);
        }
    }
}

/// How a device is exported.
#[derive(Debug)]
pub struct Exposure {
    /// The way's name.
    pub backend: &'static str,
    /// Why this way.
    pub reason: String,
    /// Where the operating system finds it.
    pub path: PathBuf,
    /// What to serve it with.
    pub how: How,
}

/// What a device is served with.
#[derive(Debug)]
pub enum How {
    /// A socket file, made at the exposure's path.
    Socket,
    /// Connections of the kernel's nbd driver, in addition to those it has.
    Nbd(Vec<UnixStream>),
    /// The queue of the kernel's ublk driver.
    Ublk(File),
    /// Nothing, and why.
    Failed(String),
}

/// What the service thread says.
#[derive(Debug)]
pub enum ServiceEvent {
    /// A controller's devices, or why they are not known.
    Devices(Guid, IocNumber, Result<DevicesReply, Status>),
    /// A controller's notification.
    Notified(Guid, IocNumber, Notification),
    /// The thread is alive.
    Beat,
    /// What is exported.
    Report(u64, Vec<ExportStatus>),
    /// What has been done.
    Statistics(
        u64,
        Vec<DeviceStatistics>,
        FrameStatistics,
        Vec<PathStatistics>,
    ),
    /// How a load goes, or why there is none. The last one says that it is over.
    Load {
        /// Which.
        token: u64,
        /// How it goes.
        report: Result<LoadReport, String>,
        /// Whether more will come.
        over: bool,
    },
}

/// Where the initiator finds it.
pub(super) fn target(owned: &OwnedDevice) -> Target {
    Target {
        unit: owned.unit,
        ioc: owned.row.ioc,
        iod: owned.row.iod,
        device: owned.device(),
        extent: owned.extent(),
        epoch: owned.epoch,
        size_bytes: owned.row.size_bytes,
        block_size: owned.row.block_size,
        features: owned.row.features,
    }
}

/// What a client is told of it.
pub(super) fn info(owned: &OwnedDevice) -> ExportInfo {
    let row = &owned.row;
    let has = |bit| row.features & bit != 0;
    ExportInfo {
        name: row.name.clone(),
        description: format!("{} {}", row.vendor, row.model).trim().to_owned(),
        size_bytes: row.size_bytes,
        block_size: row.block_size,
        read_only: has(features::READ_ONLY),
        fua: has(features::FUA),
        discard: has(features::DISCARD),
        write_zeroes: has(features::WRITE_ZEROES),
        rotational: has(features::ROTATIONAL),
    }
}
