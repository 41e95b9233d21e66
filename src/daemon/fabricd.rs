//! `rma-fabricd`: packets, administrators and the database meet here; every decision is
//! [`Fabric`]'s.

use std::os::fd::AsFd;
use std::path::PathBuf;

use super::config::ConfigError;
use super::event_loop::{Event, Interest, Loop, notify, notify_alive, notify_reloading, now};
use super::fabricd_admin::{DaemonFacts, answer, chain};
use super::fabricd_config::FabricdConfig;
use super::start::{MtuError, random_seed, settle_mtu};
use crate::admin::control::{ControlError, ControlEvent, ControlServer};
use crate::admin::fabric_protocol::{Counter, FabricReply, FabricRequest};
use crate::fabric::report::FabricEvent;
use crate::fabric::{CatalogError, Fabric, FabricConfig};
use crate::net::{Inbox, Interface, LinkState, LinkWatch, NetError, Outbox, PacketSocket};
use crate::store::catalog::{FILE_NAME, OpenError, SqliteCatalog};
use crate::store::identity::{Identity, IdentityError};
use crate::wire::{FABRIC_MULTICAST, Time};

const TOKEN_PACKETS: u64 = 0;
const TOKEN_LINKS: u64 = 1;
const TOKEN_CONTROL: u64 = 2;

/// The control socket's name within the run directory.
pub const SOCKET_NAME: &str = "fabricd.sock";
/// The subdirectory of the state directory that is ours.
pub const STATE_SUBDIR: &str = "fabricd";
/// The most batches that are received before administrators and sending have their turn.
const MAX_RECEIVE_ROUNDS: usize = 16;

/// Why `rma-fabricd` cannot start or go on: one line for people.
#[derive(Debug, thiserror::Error)]
pub enum FabricdError {
    /// The interface or a socket on it.
    #[error("{}", chain(.0))]
    Net(#[from] NetError),
    /// The interface is down.
    #[error("interface {0} is down; bring it up first (ip link set {0} up)")]
    Down(String),
    /// The MTU asked for is over the interface's.
    #[error(transparent)]
    Mtu(#[from] MtuError),
    /// A directory cannot be made.
    #[error("{path}: cannot make the directory: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The identity file.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The database.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// The database, once open.
    #[error("{}", chain(.0))]
    Catalog(#[from] CatalogError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Something that the kernel normally never refuses.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

fn system(action: &'static str) -> impl FnOnce(std::io::Error) -> FabricdError {
    move |source| FabricdError::System { action, source }
}

/// Runs the daemon until it is told to stop. `reload` reads the configuration again: the policy
/// can change while it runs.
pub fn run(
    config: &FabricdConfig,
    reload: &dyn Fn() -> Result<FabricdConfig, ConfigError>,
) -> Result<(), FabricdError> {
    let mut event_loop = Loop::new().map_err(system("wait for events"))?;
    let interface = Interface::by_name(&config.interface)?;
    if !interface.up {
        return Err(FabricdError::Down(interface.name));
    }
    let mtu = settle_mtu(config.mtu, std::slice::from_ref(&interface))?;
    let mut socket = PacketSocket::open(&interface, config.ethertype)?;
    socket.join(FABRIC_MULTICAST)?;
    let links = LinkWatch::new().map_err(system("watch the interfaces"))?;
    let state_dir = config.state_dir.join(STATE_SUBDIR);
    for dir in [&state_dir, &config.run_dir] {
        std::fs::create_dir_all(dir).map_err(|source| FabricdError::Directory {
            path: dir.clone(),
            source,
        })?;
    }
    let control = ControlServer::bind(&config.run_dir.join(SOCKET_NAME))?;
    let mut identity = Identity::open(&state_dir, config.guid)?;
    let database = state_dir.join(FILE_NAME);
    let catalog = SqliteCatalog::open(&database)?;
    identity.settle()?;
    let fabric = Fabric::new(
        FabricConfig {
            guid: identity.guid(),
            incarnation: identity.incarnation(),
            policy: config.policy,
            mtu,
        },
        catalog,
        random_seed().map_err(system("read /dev/urandom"))?,
    )?;
    log::info!(
        "fabric services {} start {} on {} {} mtu {mtu}, newcomers: {}, {} hosts and units in {}",
        identity.guid(),
        identity.incarnation(),
        interface.name,
        interface.mac,
        config.policy.word(),
        fabric.snapshot().entities.len(),
        database.display(),
    );
    for (fd, token) in [
        (socket.as_fd(), TOKEN_PACKETS),
        (links.as_fd(), TOKEN_LINKS),
        (control.as_fd(), TOKEN_CONTROL),
    ] {
        event_loop
            .add(fd, token, Interest::Read)
            .map_err(system("wait for events"))?;
    }
    let daemon = Fabricd {
        fabric,
        socket,
        links,
        control,
        inbox: Inbox::new(mtu),
        outbox: Outbox::new(),
        database,
        started: now(),
        blocked: false,
    };
    notify(&[sd_notify::NotifyState::Ready]);
    let result = daemon.run(&mut event_loop, reload);
    notify(&[sd_notify::NotifyState::Stopping]);
    result
}

/// The date and time that people read beside a version of the database.
fn label() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%d %H:%M:%SZ")
        .to_string()
}

struct Fabricd {
    fabric: Fabric<SqliteCatalog>,
    socket: PacketSocket,
    links: LinkWatch,
    control: ControlServer,
    inbox: Inbox,
    outbox: Outbox,
    database: PathBuf,
    started: Time,
    /// The packet socket takes no more for now.
    blocked: bool,
}

impl Fabricd {
    fn run(
        mut self,
        event_loop: &mut Loop,
        reload: &dyn Fn() -> Result<FabricdConfig, ConfigError>,
    ) -> Result<(), FabricdError> {
        let mut seen = Vec::new();
        loop {
            seen.clear();
            event_loop
                .wait(self.fabric.deadline(), &mut seen)
                .map_err(system("wait for events"))?;
            self.fabric.set_label(&label());
            for event in &seen {
                match event {
                    Event::Stop => {
                        log::info!("stopping");
                        return Ok(());
                    }
                    Event::Reload => self.reload(reload),
                    Event::Beat => notify_alive(),
                    Event::Ready { token, .. } => match *token {
                        TOKEN_PACKETS => self.receive(),
                        TOKEN_LINKS => self.refresh(),
                        _ => self.answer(),
                    },
                }
            }
            self.fabric.tick(now());
            let was_blocked = self.blocked;
            self.transmit();
            self.report();
            if self.blocked != was_blocked {
                let interest = if self.blocked {
                    Interest::ReadWrite
                } else {
                    Interest::Read
                };
                event_loop
                    .change(&self.socket, TOKEN_PACKETS, interest)
                    .map_err(system("wait for packets"))?;
            }
        }
    }

    fn reload(&mut self, reload: &dyn Fn() -> Result<FabricdConfig, ConfigError>) {
        notify_reloading();
        match reload() {
            Ok(config) => {
                log::info!(
                    "configuration read again; newcomers: {} (other keys count at the next start)",
                    config.policy.word()
                );
                self.fabric.set_policy(config.policy);
            }
            Err(e) => log::error!("configuration refused, nothing changed: {e}"),
        }
        notify(&[sd_notify::NotifyState::Ready]);
    }

    fn receive(&mut self) {
        for _ in 0..MAX_RECEIVE_ROUNDS {
            let count = match self.socket.recv(&mut self.inbox) {
                Ok(count) => count,
                Err(e) => {
                    log::warn!("{}", chain(&e));
                    return;
                }
            };
            let (time, mac) = (now(), self.socket.interface().mac);
            for frame in self.inbox.frames() {
                // What other daemons of this machine send to others is seen here too.
                if frame.destination == mac || frame.destination == FABRIC_MULTICAST {
                    // What is wrong with a frame is counted there.
                    let _ = self.fabric.handle(time, frame.source, frame.payload);
                }
            }
            if count == 0 || !self.inbox.is_full() {
                return;
            }
            self.transmit();
        }
    }

    fn refresh(&mut self) {
        match self.links.drain() {
            Ok(true) => {}
            Ok(false) => return,
            Err(e) => log::warn!("interfaces cannot be watched: {e}"),
        }
        match self.socket.refresh() {
            Ok(Some(_)) => log::info!("interface {} is {}", self.interface(), self.link()),
            Ok(None) => {}
            Err(e) => log::warn!("{}", chain(&e)),
        }
    }

    fn interface(&self) -> &str {
        &self.socket.interface().name
    }

    fn link(&self) -> &'static str {
        match self.socket.state() {
            LinkState::Up => "up",
            LinkState::Down => "down",
            LinkState::Gone => "gone",
        }
    }

    fn answer(&mut self) {
        for event in self.control.poll() {
            let ControlEvent::Line(id, line) = event else {
                continue;
            };
            let reply = match serde_json::from_str::<FabricRequest>(&line) {
                Ok(request) => {
                    let facts = self.facts();
                    answer(&mut self.fabric, now(), &facts, &request)
                }
                Err(e) => FabricReply::Error {
                    message: format!(
                        "the request cannot be read ({e}); are rma and rma-fabricd of the same version?"
                    ),
                },
            };
            match serde_json::to_string(&reply) {
                Ok(line) => self.control.send(id, &line),
                Err(e) => log::error!("a reply cannot be written: {e}"),
            }
        }
    }

    fn facts(&mut self) -> DaemonFacts {
        let counters = self.socket.counters();
        let counters = [
            ("frames received", counters.received_frames),
            ("frames sent", counters.sent_frames),
            ("frames lost before reading", counters.receive_drops),
            ("frames not sent", counters.send_drops),
            ("link losses", counters.link_losses),
        ];
        DaemonFacts {
            started: self.started,
            interface: self.interface().to_owned(),
            mac: self.socket.interface().mac.to_string(),
            link: self.link(),
            database: self.database.display().to_string(),
            counters: counters
                .map(|(name, count)| Counter {
                    name: name.to_owned(),
                    count,
                })
                .into(),
        }
    }

    /// Sends what there is, until there is nothing more or the socket takes no more.
    fn transmit(&mut self) {
        loop {
            let time = now();
            while self
                .outbox
                .push_with(|out| self.fabric.poll_transmit(time, out))
            {}
            if self.outbox.is_empty() {
                self.blocked = false;
                return;
            }
            match self.socket.send(&mut self.outbox) {
                Ok(true) => {}
                Ok(false) => {
                    self.blocked = true;
                    return;
                }
                Err(e) => {
                    log::warn!("{}", chain(&e));
                    self.outbox.clear();
                }
            }
        }
    }

    fn report(&mut self) {
        while let Some(event) = self.fabric.poll_event() {
            let level = match event {
                FabricEvent::NotPersisted(_) => log::Level::Error,
                FabricEvent::Twin { .. } => log::Level::Warn,
                _ => log::Level::Info,
            };
            log::log!(level, "{event}");
        }
    }
}
