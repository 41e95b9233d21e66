//! The service thread of `rmad`: block I/O between NBD sockets and I/O controllers.
//!
//! It owns the service EtherType's packet socket, the [`Initiator`] and the [`NbdSockets`], and talks
//! to the management thread over two channels, each with an eventfd that wakes its reader.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::devices::DeviceCommand;
use super::event_loop::{Interest, Loop, now};
use super::loads::Loads;
use super::service_lists::Lists;
use super::service_shown::Shown;
pub use super::service_words::{ServiceCommand, ServiceEvent, ServiceSender};
use super::service_words::{info, target};

use crate::export::block::{BlockError, BlockRequest};

use crate::export::socket::NbdSockets;
use crate::export::ublk::UblkQueues;
use crate::initiator::load::{Load, LoadSpec};
use crate::initiator::{DeviceId, Initiator, InitiatorConfig, Io, IoEvent, Policy};
use crate::net::{Inbox, LinkState, Nics};
use crate::rma::OwnedDevice;
use crate::session::NicState;
use crate::wire::row::features;
use crate::wire::{ClusterName, Guid, Hop, IocNumber, Time};

const TOKEN_PACKETS: u64 = 0;
pub(super) const TOKEN_COMMANDS: u64 = 1;
const TOKEN_SOCKETS: u64 = 2;
const TOKEN_QUEUES: u64 = 3;

/// What the thread needs to start.
pub struct ServiceConfig {
    /// The initiator's identity and limits.
    pub initiator: InitiatorConfig,
    /// Where the NBD sockets go.
    pub socket_dir: PathBuf,
    /// Seed of connection numbers and jitter.
    pub seed: u64,
    /// Where the device thread hears what it must know.
    pub devices: Sender<DeviceCommand>,
}

/// The management thread's end of the channels.
pub struct ServiceHandle {
    sender: ServiceSender,
    events: Receiver<ServiceEvent>,
    ready: Arc<EventFd>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl ServiceHandle {
    /// Starts the thread. The process's signals must already be blocked.
    pub fn start(config: ServiceConfig, socket: Nics) -> std::io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let wake = Arc::new(EventFd::from_flags(flags)?);
        let ready = Arc::new(EventFd::from_flags(flags)?);
        let (commands, command_queue) = channel();
        let (event_queue, events) = channel();
        std::fs::create_dir_all(&config.socket_dir)?;
        let sockets = NbdSockets::new()?;
        let queues = UblkQueues::new()?;
        let event_loop = Loop::without_signals()?;
        event_loop.add(&socket, TOKEN_PACKETS, Interest::Read)?;
        event_loop.add(&*wake, TOKEN_COMMANDS, Interest::Read)?;
        event_loop.add(&sockets, TOKEN_SOCKETS, Interest::Read)?;
        event_loop.add(&queues, TOKEN_QUEUES, Interest::Read)?;
        let inbox = Inbox::new(config.initiator.mtu);
        let service = Service {
            initiator: Initiator::new(config.initiator.clone(), config.seed),
            config: config.initiator,
            seed: config.seed,
            controllers: BTreeMap::new(),
            socket,
            inbox,
            sockets,
            queues,
            devices: config.devices,
            exports: BTreeMap::new(),
            policies: (Policy::Queue, BTreeMap::new()),
            warnings: BTreeMap::new(),
            lists: Lists::default(),
            loads: Loads::default(),
            is_unfinished: false,
            commands: command_queue,
            wake: Arc::clone(&wake),
            events: event_queue,
            ready: Arc::clone(&ready),
        };
        let thread = std::thread::Builder::new()
            .name("service".into())
            .spawn(move || service.run(event_loop))?;
        Ok(Self {
            sender: ServiceSender::new(commands, wake),
            events,
            ready,
            thread: Some(thread),
        })
    }

    /// Gives the thread a command; one to a thread that has ended is dropped.
    pub fn send(&self, command: ServiceCommand) {
        self.sender.send(command);
    }

    /// For other threads that have commands.
    pub fn sender(&self) -> ServiceSender {
        self.sender.clone()
    }

    /// What the thread has said since.
    pub fn drain(&self) -> Vec<ServiceEvent> {
        let _ = self.ready.read();
        self.events.try_iter().collect()
    }

    /// Whether the thread has ended.
    pub fn has_ended(&self) -> bool {
        self.thread
            .as_ref()
            .is_none_or(std::thread::JoinHandle::is_finished)
    }

    /// Ends the thread and waits for it.
    pub fn stop(mut self) {
        self.send(ServiceCommand::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl AsFd for ServiceHandle {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

pub(super) struct Export {
    pub(super) owned: OwnedDevice,
    pub(super) device: DeviceId,
    /// How it is exported; `None` until the device thread has said it.
    pub(super) shown: Option<Shown>,
}

pub(super) struct Service {
    pub(super) initiator: Initiator,
    config: InitiatorConfig,
    seed: u64,
    /// The controllers connected to, and whether they answer.
    pub(super) controllers: BTreeMap<(Guid, IocNumber), bool>,
    pub(super) socket: Nics,
    inbox: Inbox,
    pub(super) sockets: NbdSockets,
    pub(super) queues: UblkQueues,
    devices: Sender<DeviceCommand>,
    pub(super) exports: BTreeMap<Guid, Export>,
    /// The default, and what devices have of their own.
    pub(super) policies: (Policy, BTreeMap<Guid, Policy>),
    /// What people must know of devices that are exported nevertheless.
    pub(super) warnings: BTreeMap<Guid, String>,
    pub(super) lists: Lists,
    pub(super) loads: Loads,
    /// There is more to serve.
    pub(super) is_unfinished: bool,
    commands: Receiver<ServiceCommand>,
    pub(super) wake: Arc<EventFd>,
    events: Sender<ServiceEvent>,
    ready: Arc<EventFd>,
}

impl Service {
    pub(super) fn state(&self) -> LinkState {
        self.socket.state()
    }

    /// Carries out what the management thread wants; `false` to end.
    pub(super) fn obey(&mut self) -> bool {
        loop {
            let command = match self.commands.try_recv() {
                Ok(command) => command,
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            };
            match command {
                ServiceCommand::Cluster(cluster) => self.join(cluster),
                ServiceCommand::AddController(unit, ioc, macs) => {
                    self.controllers.entry((unit, ioc)).or_insert(false);
                    self.initiator.reach_controller(now(), unit, ioc, &macs);
                }
                ServiceCommand::RemoveController(unit, ioc) => {
                    self.controllers.remove(&(unit, ioc));
                    self.lists.forget(unit, ioc);
                    self.initiator.remove_controller(now(), unit, ioc);
                }
                ServiceCommand::ListDevices(unit, ioc) => {
                    self.initiator.list_devices(unit, ioc);
                }
                ServiceCommand::Export(owned, warnings) => {
                    self.warnings = warnings;
                    self.export(owned);
                }
                ServiceCommand::Policies(default, own) => {
                    self.policies = (default, own);
                    self.set_policies();
                }
                ServiceCommand::Expose(guid, exposure) => self.expose(guid, exposure),
                ServiceCommand::Report(token) => {
                    let report = self.report();
                    self.say(ServiceEvent::Report(token, report));
                }
                ServiceCommand::Statistics(token) => {
                    let (devices, frames) = self.statistics();
                    let paths = self.paths();
                    self.say(ServiceEvent::Statistics(token, devices, frames, paths));
                }
                ServiceCommand::Load(token, guid, spec) => self.load(token, guid, spec),
                ServiceCommand::EndLoad(token) => self.loads.end(token),
                ServiceCommand::LinkChanged => self.refresh(),
                ServiceCommand::Beat => self.say(ServiceEvent::Beat),
                ServiceCommand::Stop => {
                    self.stop();
                    return false;
                }
            }
        }
    }

    /// Starts anew in another cluster: connections and exports of the old one end.
    fn join(&mut self, cluster: ClusterName) {
        if cluster == self.config.cluster {
            return;
        }
        self.stop();
        self.config.cluster = cluster;
        self.seed = self.seed.wrapping_add(1);
        self.initiator = Initiator::new(self.config.clone(), self.seed);
        self.tell_nics();
    }

    pub(super) fn tell_nics(&mut self) {
        let each = self.socket.each();
        let nics: Vec<NicState> = each.map(|(up, mtu)| NicState { up, mtu }).collect();
        self.initiator.set_nics(now(), &nics);
    }

    fn say(&self, event: ServiceEvent) {
        if self.events.send(event).is_ok() {
            let _ = self.ready.write(1);
        }
    }

    fn refresh(&mut self) {
        // The management thread says what has changed.
        for e in self.socket.refresh().1 {
            log::warn!("{e}");
        }
        self.tell_nics();
    }

    /// Takes what has come; whether that was anything.
    pub(super) fn receive(&mut self, time: Time) -> bool {
        let mut any = false;
        // A bounded number of rounds, so that a flood cannot keep commands and sockets waiting.
        for _ in 0..MAX_RECEIVE_ROUNDS {
            match self.socket.recv(&mut self.inbox) {
                Ok(0) => break,
                Ok(_) => {
                    any = true;
                    let nic = self.socket.heard_by();
                    for frame in self.inbox.frames() {
                        if !self.socket.is_for_us(frame.destination) {
                            continue;
                        }
                        let mac = frame.source;
                        // What is wrong with a frame is counted by the initiator.
                        let _ = self.initiator.handle(time, Hop { mac, nic }, frame.payload);
                    }
                    if !self.inbox.is_full() {
                        break;
                    }
                }
                Err(e) => {
                    log::warn!("{e}");
                    break;
                }
            }
        }
        any
    }

    /// Moves requests from loads and the sockets (the latter, and what loads report, where `sockets` says so) to the initiator
    /// and answers back, until all are quiet.
    pub(super) fn serve(&mut self, time: Time, sockets: bool) {
        let (mut quiet, mut rounds) = (false, 0);
        // What fails at once may be tried again at once: others have their turn in between.
        while !quiet && rounds < MAX_SERVE_ROUNDS {
            rounds += 1;
            quiet = true;
            while let Some(event) = self.initiator.poll_event() {
                quiet = false;
                self.take(time, event);
            }
            quiet &= !self.loads.submit(time, &mut self.initiator);
            if sockets {
                for told in self.loads.reports(time) {
                    self.say(told);
                }
            }
            if !sockets && !self.sockets.has_answers() && !self.queues.has_answers() {
                continue;
            }
            let mut incoming = Vec::new();
            self.queues.poll(|request| incoming.push(request));
            if let Err(e) = self.sockets.poll(|request| incoming.push(request)) {
                log::warn!("NBD sockets: {e}");
            }
            for request in incoming {
                quiet = false;
                self.submit(time, request);
            }
            for lost in self.sockets.take_lost() {
                let _ = self.devices.send(DeviceCommand::Lost(lost));
            }
        }
        self.is_unfinished = !quiet;
    }

    fn take(&mut self, time: Time, event: IoEvent) {
        match event {
            IoEvent::Done { token, result } if Loads::owns(token) => {
                self.loads.done(time, token, result, &mut self.initiator);
            }
            IoEvent::Done { token, result } => {
                self.complete(token, result.map_err(BlockError::from));
            }
            IoEvent::Malformed { unit, ioc, reason } => self.lists.malformed(unit, ioc, reason),
            IoEvent::Devices { unit, ioc, result } => {
                if let Ok(reply) = &result {
                    self.lists.look(unit, ioc, reply);
                }
                self.say(ServiceEvent::Devices(unit, ioc, result));
            }
            IoEvent::Notified {
                unit,
                ioc,
                notification,
            } => {
                self.say(ServiceEvent::Notified(unit, ioc, notification));
            }
            IoEvent::Up { unit, ioc, .. } => {
                self.controllers.insert((unit, ioc), true);
                let exports = self.exports.iter();
                let reachable = exports
                    .filter(|(_, e)| (e.owned.unit, e.owned.row.ioc) == (unit, ioc))
                    .map(|(guid, _)| *guid)
                    .collect();
                // All in one: the device thread has udev read its rules once for all of them.
                let _ = self.devices.send(DeviceCommand::Reachable(reachable));
                log::info!("controller {ioc} of unit {unit} answers");
            }
            IoEvent::Refused { unit, ioc, status } => {
                log::warn!("controller {ioc} of unit {unit} refuses the connection: {status}");
            }
            IoEvent::Down { unit, ioc } => {
                self.controllers.insert((unit, ioc), false);
                log::warn!("controller {ioc} of unit {unit} does not answer; its I/O waits");
            }
        }
    }

    fn load(&mut self, token: u64, guid: Guid, spec: LoadSpec) {
        let refused = match self.exports.get(&guid) {
            None => "this host does not own the device (any more); `rma exports`".to_owned(),
            Some(export) => {
                let row = &export.owned.row;
                let read_only = row.features & features::READ_ONLY != 0;
                match spec.mistake(row.size_bytes, row.block_size) {
                    Some(mistake) => mistake,
                    None if read_only && spec.read_percent < 100 => {
                        "the device is read-only; ask for reads".to_owned()
                    }
                    None => {
                        let device = export.device;
                        let seed = self.seed ^ token;
                        let load = Load::new(now(), spec, row.size_bytes, seed);
                        match self.loads.begin(now(), token, device, load) {
                            Ok(()) => return,
                            Err(why) => why,
                        }
                    }
                }
            }
        };
        self.say(ServiceEvent::Load {
            token,
            report: Err(refused),
            over: true,
        });
    }

    fn complete(&mut self, token: u64, result: Result<Vec<u8>, BlockError>) {
        if UblkQueues::owns(token) {
            self.queues.complete(token, result);
        } else {
            self.sockets.complete(token, result);
        }
    }

    fn submit(&mut self, time: Time, request: BlockRequest) {
        let Some(export) = self.exports.get(&request.device) else {
            self.complete(request.token, Err(BlockError::ShuttingDown));
            return;
        };
        let io = Io {
            op: request.op,
            offset: request.offset,
            len: u64::from(request.len),
            data: Arc::new(request.data),
            fua: request.fua,
        };
        self.initiator
            .submit(time, export.device, io, request.token);
    }

    pub(super) fn transmit(&mut self, time: Time) {
        let initiator = &mut self.initiator;
        if let Err(e) = self.socket.send(time, |out, tail| {
            initiator.poll_transmit_parts(time, out, tail)
        }) {
            log::warn!("{e}");
        }
    }

    /// Makes the exports be exactly `owned`.
    fn export(&mut self, owned: Vec<OwnedDevice>) {
        let owned: BTreeMap<_, _> = owned.into_iter().map(|o| (o.row.guid, o)).collect();
        let gone: Vec<_> = self
            .exports
            .keys()
            .filter(|g| !owned.contains_key(g))
            .copied()
            .collect();
        for guid in gone {
            self.withdraw(guid);
        }
        let mut reachable = Vec::new();
        for (guid, owned) in owned {
            match self.exports.get_mut(&guid) {
                Some(export) if export.owned == owned => {}
                Some(export) => {
                    self.initiator
                        .retarget(now(), export.device, target(&owned));
                    self.sockets.update(guid, info(&owned));
                    self.queues.update(guid, &info(&owned));
                    export.owned = owned;
                }
                None => {
                    if self.controllers.get(&(owned.unit, owned.row.ioc)) == Some(&true) {
                        reachable.push(guid);
                    }
                    self.offer(guid, owned);
                }
            }
        }
        if !reachable.is_empty() {
            let _ = self.devices.send(DeviceCommand::Reachable(reachable));
        }
    }

    fn offer(&mut self, guid: Guid, owned: OwnedDevice) {
        let device = self.initiator.open(now(), target(&owned));
        self.initiator.set_policy(now(), device, self.policy(guid));
        let shown = None;
        self.exports.insert(
            guid,
            Export {
                owned,
                device,
                shown,
            },
        );
    }

    fn withdraw(&mut self, guid: Guid) {
        if let Some(export) = self.exports.remove(&guid) {
            self.sockets.close(guid);
            self.queues.close(guid);
            self.initiator.close(now(), export.device);
            log::info!(
                "export of {} ({guid}) ended",
                export.owned.row.name.escape_default()
            );
        }
    }

    fn stop(&mut self) {
        let all: Vec<_> = self.exports.keys().copied().collect();
        for guid in all {
            self.withdraw(guid);
        }
        for (unit, ioc) in std::mem::take(&mut self.controllers).into_keys() {
            self.initiator.remove_controller(now(), unit, ioc);
        }
        self.transmit(now());
    }
}

/// The most batches that are received before sending and serving have their turn.
const MAX_RECEIVE_ROUNDS: usize = 16;
/// The most rounds of serving before receiving has its turn.
const MAX_SERVE_ROUNDS: usize = 256;
