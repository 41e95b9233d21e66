//! What the device thread of `rmad` and the others say to each other.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::devices::Devices;
use super::devices_rules::Explained;
use super::service::ServiceSender;
use crate::export::choice::Choice;
use crate::export::kernel::usage;
use crate::export::udev::{Access, KernelName};
use crate::rma::OwnedDevice;
use crate::wire::Guid;

/// What the thread needs to start.
#[derive(Debug)]
pub struct DevicesConfig {
    /// This host.
    pub host: Guid,
    /// The ways that may be taken.
    pub choice: Choice,
    /// Where the rules go; `None`: nowhere.
    pub rules_dir: Option<PathBuf>,
    /// Who may open the devices.
    pub access: Access,
    /// Where the NBD sockets are.
    pub socket_dir: PathBuf,
}

/// What others say to the thread.
#[derive(Debug)]
pub enum DeviceCommand {
    /// Everything that this host owns.
    Own(Vec<OwnedDevice>),
    /// These devices' controllers answer.
    Reachable(Vec<Guid>),
    /// The kernel has lost a connection for the device.
    Lost(Guid),
    /// The agent is past Fig. 5: what this host owns is known.
    Settled,
    /// Tell the rules; the token comes back.
    Rules(u64),
    /// Tell how udev comes to a device's names; the token comes back.
    Explain(u64, Guid),
    /// Remove the kernel's device, until the device is released or `rmad` starts again, and say so;
    /// the token comes back.
    Abandon(u64, Guid),
    /// End the thread; where the flag is set, with all devices.
    Stop(bool),
}

/// What the thread answers.
#[derive(Debug)]
pub enum DeviceEvent {
    /// The rules' text.
    Rules(u64, String),
    /// How udev comes to a device's names, or why it has none.
    Explained(u64, Result<Explained, String>),
    /// The path of what was removed, or why nothing was.
    Abandoned(u64, Result<String, String>),
}

/// Where the thread puts its answers.
pub(super) struct Said {
    events: Sender<DeviceEvent>,
    ready: Arc<EventFd>,
}

impl Said {
    pub(super) fn say(&self, event: DeviceEvent) {
        if self.events.send(event).is_ok() {
            let _ = self.ready.write(1);
        }
    }
}

/// The kernel names of exported devices, for whoever wants to know who uses them.
pub type KernelNames = Arc<Mutex<BTreeMap<Guid, KernelName>>>;

/// The management thread's end.
pub struct DevicesHandle {
    commands: Sender<DeviceCommand>,
    events: Receiver<DeviceEvent>,
    ready: Arc<EventFd>,
    names: KernelNames,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl DevicesHandle {
    /// Starts the thread. `commands` is where the service thread's notes come too.
    pub fn start(
        config: DevicesConfig,
        service: ServiceSender,
        (commands, queue): (Sender<DeviceCommand>, Receiver<DeviceCommand>),
    ) -> std::io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let ready = Arc::new(EventFd::from_flags(flags)?);
        let (event_queue, events) = channel();
        let names = KernelNames::default();
        let said = Said {
            events: event_queue,
            ready: Arc::clone(&ready),
        };
        let devices = Devices::new(config, service, said, Arc::clone(&names));
        let thread = std::thread::Builder::new()
            .name("devices".into())
            .spawn(move || devices.run(&queue))?;
        Ok(Self {
            commands,
            events,
            ready,
            names,
            thread: Some(thread),
        })
    }

    /// Says something to the thread.
    pub fn send(&self, command: DeviceCommand) {
        let _ = self.commands.send(command);
    }

    /// What the thread has said since.
    pub fn drain(&self) -> Vec<DeviceEvent> {
        let _ = self.ready.read();
        self.events.try_iter().collect()
    }

    /// Which exported devices are in use on this machine, and by whom.
    pub fn users(&self) -> BTreeMap<Guid, String> {
        let names = lock(&self.names).clone();
        let kernel: Vec<&str> = names.values().map(KernelName::as_str).collect();
        let users = usage::users_of_all(&kernel);
        let used = names
            .keys()
            .zip(users)
            .filter(|(_, users)| !users.is_empty());
        used.map(|(guid, users)| (*guid, users.join(", ")))
            .collect()
    }

    /// Ends the thread, with all devices where `remove` is set; otherwise they stay and their I/O
    /// waits for the next start.
    pub fn stop(mut self, remove: bool) {
        self.send(DeviceCommand::Stop(remove));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl AsFd for DevicesHandle {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
