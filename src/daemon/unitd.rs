//! `rma-unitd`: one thread that waits for frames, disks, signals and administrators, and moves
//! them into and out of [`Unit`]. Decides nothing of the protocol.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use nix::errno::Errno;
use sd_notify::NotifyState;

use super::args::UnitdArgs;
use super::config::ConfigError;
use super::event_loop::{self, Event, Interest, Loop, notify, notify_reloading};
use super::spin::Spin;
use super::start::{MAX_DEFAULT_MTU, MtuError, random_seed, settle_mtu};
use super::unitd_config::UnitdConfig;
use super::unitd_media::{Media, MediaError};
use super::unitd_port::{DropLog, Port, PortError};
use super::unitd_prompt::Prompt;
use super::unitd_start::{log_start, make_dir};
use super::unitd_state::{StateError, UnitState};
use super::unitd_status;
use crate::admin::control::{ControlError, ControlEvent, ControlServer};
use crate::admin::unit_protocol::{UnitReply, UnitRequest};
use crate::backend::{Backend, Completion, Pool, PoolError};
use crate::net::{Inbox, Interface, LinkState, LinkWatch, NetError};
use crate::store::vote_file::{VOTE_FILE, VoteFile};
use crate::store::{Identity, IdentityError, RegistersFile, StoreError};
use crate::unit::{DiskError, DiskOp, Unit, UnitAction, UnitConfig, UnitFacts};
use crate::wire::{Guid, Time};

/// Commands that one connection may have outstanding.
const CREDITS: u16 = 1024;
/// Connections served at most, for each EtherType.
const MAX_CONNECTIONS: usize = 4096;
/// Name of the state directory's subdirectory that is ours: hosts and fabric services may have
/// the same state directory.
pub(super) const STATE_SUBDIR: &str = "unitd";
/// Name of the control socket in the run directory.
pub const CONTROL_SOCKET: &str = "unitd.sock";

/// Bytes read and written after which replies are sent before more is done: they are then still in the
/// processor's caches, and the host has something to do.
const SENT_AFTER_BYTES: usize = 128 << 10;

const TOKEN_MANAGEMENT: u64 = 0;
const TOKEN_SERVICE: u64 = 1;
const TOKEN_POOL: u64 = 2;
const TOKEN_CONTROL: u64 = 3;
const TOKEN_LINKS: u64 = 4;

/// Why the daemon cannot start, or has to end.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnitdError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Media(#[from] MediaError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Port(#[from] PortError),
    #[error("interface {0} is down; bring it up first (ip link set {0} up)")]
    Down(String),
    #[error(transparent)]
    Mtu(#[from] MtuError),
    #[error("{path}: cannot make the directory: {source}")]
    Directory {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot {what}: {source}")]
    System {
        what: &'static str,
        source: std::io::Error,
    },
}

fn system(what: &'static str) -> impl Fn(std::io::Error) -> UnitdError {
    move |source| UnitdError::System { what, source }
}

/// An error and its causes in one line.
pub(super) fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.contains(&more) {
            text += ": ";
            text += &more;
        }
        cause = e.source();
    }
    text.replace('\n', " ")
}

/// Runs the daemon with the process's arguments; exit status 2 where it cannot start.
pub fn main() -> ExitCode {
    let args = UnitdArgs::parse();
    event_loop::init_logging(&args.log);
    let outcome = Daemon::start(args).and_then(|mut daemon| daemon.run());
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("rma-unitd: {}", one_line(&e));
            ExitCode::from(2)
        }
    }
}

/// What has come of doing what the unit wants.
struct Acted {
    /// Something was made durable: time has passed.
    took_long: bool,
    /// It wants no more.
    is_all: bool,
}

struct Daemon {
    args: UnitdArgs,
    config: UnitdConfig,
    incarnation: u64,
    mtu: u16,
    event_loop: Loop,
    unit: Unit,
    media: Media,
    state: UnitState,
    registers: RegistersFile,
    vote: VoteFile,
    ports: [Port; 2],
    inbox: Inbox,
    links: LinkWatch,
    pool: Pool,
    control: ControlServer,
    drop_log: DropLog,
    /// Keeps the state directory ours.
    _identity: Identity,
}

impl Daemon {
    fn start(args: UnitdArgs) -> Result<Self, UnitdError> {
        let config = UnitdConfig::load(&args.keys, args.config.as_deref())?;
        let interfaces = Interface::by_names(&config.interface)?;
        if !interfaces.iter().any(|interface| interface.up) {
            return Err(UnitdError::Down(config.interface.join(", ")));
        }
        let mtu = settle_mtu(config.mtu, &interfaces)?;
        // Before any thread: they inherit the blocked signals.
        let event_loop = Loop::new().map_err(system("set up the event loop"))?;
        let port = |ethertype, is_service, token| {
            Port::open(&interfaces, ethertype, is_service, token, &event_loop)
        };
        let mut ports = [
            port(config.ethertype_management, false, TOKEN_MANAGEMENT)?,
            port(config.ethertype_service, true, TOKEN_SERVICE)?,
        ];
        let state_dir = config.state_dir.join(STATE_SUBDIR);
        for dir in [&state_dir, &config.run_dir] {
            make_dir(dir)?;
        }
        let control = ControlServer::bind(&config.run_dir.join(CONTROL_SOCKET))?;
        let mut identity = Identity::open(&state_dir, config.guid)?;
        let mut state = UnitState::open(&state_dir)?;
        let (registers, stored) = RegistersFile::open(
            &state_dir.join("registers"),
            identity.guid(),
            identity.is_first_start(),
        )?;
        let (vote, promised) = VoteFile::open(
            &state_dir.join(VOTE_FILE),
            identity.guid(),
            identity.is_first_start(),
        )?;
        let unit_config = UnitConfig {
            facts: UnitFacts {
                guid: identity.guid(),
                name: config.name.clone(),
                vendor: config.vendor.clone(),
                model: config.model.clone(),
                serial: config
                    .serial
                    .clone()
                    .unwrap_or_else(|| format!("{:032x}", identity.guid().0)),
                macs: ports[0].nics.macs(),
            },
            incarnation: identity.incarnation(),
            cluster_wanted: config.cluster,
            cluster: state.cluster(),
            assignment: state.assignment(),
            fabric_mac: config.fabric_mac,
            mtu,
            credits: CREDITS,
            max_connections: MAX_CONNECTIONS,
            vote: promised,
        };
        let seed = random_seed().map_err(system("read /dev/urandom"))?;
        let mut unit = Unit::new(unit_config, stored, seed);
        let mut media = Media::default();
        media.change(event_loop::now(), &config, &mut state, &mut unit)?;
        ports[1]
            .nics
            .limit_mtu(config.mtu.unwrap_or(MAX_DEFAULT_MTU));
        ports[1].tell_nics(&mut unit);
        identity.settle()?;
        let pool = Pool::new(config.disk_threads)?;
        let links = LinkWatch::new().map_err(system("watch interfaces"))?;
        event_loop
            .add(&pool, TOKEN_POOL, Interest::Read)
            .and_then(|()| event_loop.add(&control, TOKEN_CONTROL, Interest::Read))
            .and_then(|()| event_loop.add(&links, TOKEN_LINKS, Interest::Read))
            .map_err(system("set up the event loop"))?;
        log_start(&config, &identity, &unit, &ports[0].nics.macs(), mtu);
        Ok(Self {
            args,
            config,
            incarnation: identity.incarnation().0,
            mtu,
            event_loop,
            unit,
            media,
            state,
            registers,
            vote,
            ports,
            inbox: Inbox::new(mtu),
            links,
            pool,
            control,
            drop_log: DropLog::default(),
            _identity: identity,
        })
    }

    fn run(&mut self) -> Result<(), UnitdError> {
        // What the medium's registers had to be reset to is durable before anyone is answered.
        self.act_all();
        notify(&[NotifyState::Ready]);
        let mut seen = Vec::new();
        let mut spin = Spin::default();
        let mut served = false;
        loop {
            seen.clear();
            let mut now = event_loop::now();
            if served {
                spin.worked(now);
            }
            let polls = spin.polls(now);
            // While it polls for frames, everything else is looked at now and then.
            let looks = !polls || spin.looks(now);
            if looks {
                for port in &mut self.ports {
                    if polls {
                        port.nics.disarm()?;
                    } else {
                        port.nics.arm()?;
                    }
                }
                let deadline = if polls {
                    Some(Time::ZERO)
                } else {
                    let own = self.unit.deadline().into_iter();
                    let own = own.chain(self.media.deadline());
                    own.chain(self.drop_log.deadline()).min()
                };
                self.event_loop
                    .wait(deadline, &mut seen)
                    .map_err(system("wait for events"))?;
                now = event_loop::now();
            }
            for event in &seen {
                match *event {
                    Event::Stop => {
                        self.stop();
                        return Ok(());
                    }
                    Event::Reload => self.reload_by_signal(),
                    Event::Beat => event_loop::notify_alive(),
                    Event::Ready {
                        token, readable, ..
                    } => self.ready(token, readable)?,
                }
            }
            served = false;
            let mut prompt = Prompt::new(&mut self.media, SENT_AFTER_BYTES);
            for port in &mut self.ports {
                if port.is_service || port.is_readable {
                    let (inbox, unit) = (&mut self.inbox, &mut self.unit);
                    let received = port.receive(now, inbox, unit, &mut prompt)?;
                    served |= received && port.is_service;
                }
            }
            let used_up = prompt.is_used_up();
            if !served && polls && spin.yields(now) {
                std::thread::yield_now();
            }
            if !served && !looks {
                std::hint::spin_loop();
                continue;
            }
            if looks {
                self.media.follow_sizes(now, &mut self.unit);
                self.unit.tick(now);
            }
            loop {
                let acted = self.act(now, SENT_AFTER_BYTES, used_up);
                if acted.took_long {
                    now = event_loop::now();
                }
                for port in &mut self.ports {
                    port.send(now, &mut self.unit);
                }
                if acted.is_all {
                    break;
                }
            }
            self.drop_log.follow(now, &self.unit);
        }
    }

    fn ready(&mut self, token: u64, readable: bool) -> Result<(), UnitdError> {
        match token {
            TOKEN_MANAGEMENT | TOKEN_SERVICE => {
                self.ports[token as usize].is_readable |= readable;
            }
            TOKEN_POOL => self.complete(),
            TOKEN_CONTROL => self.administer(),
            TOKEN_LINKS => self.follow_links()?,
            _ => {}
        }
        Ok(())
    }

    /// Hands finished operations to the unit.
    fn complete(&mut self) {
        let mut done: Vec<Completion> = Vec::new();
        self.pool.completions(&mut done);
        let now = event_loop::now();
        for (token, outcome) in done {
            self.unit.disk_done(now, token, outcome);
        }
    }

    /// Does all that the unit wants done.
    fn act_all(&mut self) {
        let acted = self.act(event_loop::now(), usize::MAX, true);
        debug_assert!(acted.is_all);
    }

    /// Does what the unit wants done, until it wants no more or so many bytes were read or written. `at_once`:
    /// whether it may be that a disk was not asked to do it at once.
    fn act(&mut self, now: Time, most_bytes: usize, at_once: bool) -> Acted {
        let mut took_long = false;
        let mut bytes = 0;
        while bytes < most_bytes {
            let Some(action) = self.unit.poll_action() else {
                self.pool.start();
                return Acted {
                    took_long,
                    is_all: true,
                };
            };
            match action {
                UnitAction::Disk { token, device, op } => {
                    bytes += op.range().map_or(0, |(_, len)| len as usize);
                    if let Some(outcome) = self.perform(token, device, op, at_once) {
                        self.unit.disk_done(now, token, outcome);
                    }
                }
                UnitAction::PersistRegisters { token, change } => {
                    took_long = true;
                    let outcome = self.registers.store(&change);
                    if let Err(e) = &outcome {
                        log::error!("ownership registers not stored: {}", one_line(e));
                    }
                    let now = event_loop::now();
                    self.unit.registers_persisted(now, token, outcome.is_ok());
                }
                UnitAction::PersistVote { token, vote } => {
                    took_long = true;
                    let outcome = self.vote.store(&vote);
                    if let Err(e) = &outcome {
                        log::error!(
                            "promises of the allocation lease not stored: {}",
                            one_line(e)
                        );
                    }
                    let now = event_loop::now();
                    self.unit.vote_persisted(now, token, outcome.is_ok());
                }
                UnitAction::Joined(cluster, assignment) => {
                    log::info!("this unit belongs to cluster {cluster} (assignment {assignment})");
                    if let Err(e) = self.state.set_cluster(cluster, assignment) {
                        log::error!("the cluster will not be remembered: {}", one_line(&e));
                    }
                }
                UnitAction::FabricUp(true) => log::info!("connected to fabric services"),
                UnitAction::FabricUp(false) => log::warn!(
                    "fabric services do not answer; serving cluster {} from memory",
                    self.unit.cluster()
                ),
                UnitAction::AssignmentPending => log::warn!(
                    "fabric services have not assigned this unit to a cluster; an administrator does \
                     with `rma fabric assign`"
                ),
                UnitAction::FabricRefused(status) => {
                    log::warn!("fabric services refuse this unit: {status}");
                }
            }
        }
        self.pool.start();
        Acted {
            took_long,
            is_all: false,
        }
    }

    /// Performs a disk operation where that needs no waiting; otherwise the pool does, and its completion
    /// is reported.
    fn perform(
        &mut self,
        token: u64,
        device: Guid,
        op: DiskOp,
        at_once: bool,
    ) -> Option<Result<Vec<u8>, DiskError>> {
        let op = match op {
            DiskOp::Write {
                offset,
                data,
                fua: false,
            } if at_once => {
                let medium = self.media.medium_mut(device);
                if let Some(outcome) = medium.and_then(|m| m.write_at_once(offset, &data, None)) {
                    self.unit.give_buffer(data.into_buffer());
                    return Some(outcome.map(|()| Vec::new()));
                }
                DiskOp::Write {
                    offset,
                    data,
                    fua: false,
                }
            }
            op => op,
        };
        let Some(served) = self.media.get(device) else {
            return Some(Err(DiskError::Media(Errno::ENODEV as i32)));
        };
        let backend = &served.backend;
        if let DiskOp::Read { offset, len } = op
            && at_once
        {
            let mut buffer = self.unit.take_buffer(len as usize);
            match backend.read_at_once(offset, &mut buffer) {
                Some(outcome) => return Some(outcome.map(|()| buffer)),
                None => self.unit.give_buffer(buffer),
            }
        }
        if backend.is_instant() {
            return Some(backend.execute(op));
        }
        self.pool.submit(token, backend.clone(), op);
        None
    }

    /// Follows the interface through down, up, removal and return.
    fn follow_links(&mut self) -> Result<(), UnitdError> {
        if !self.links.drain().map_err(system("watch interfaces"))? {
            return Ok(());
        }
        for port in &mut self.ports {
            let (changes, errors) = port.nics.refresh();
            for change in changes.into_iter().filter(|_| !port.is_service) {
                log::warn!("{change}");
            }
            for e in errors {
                log::error!("{}", one_line(&e));
            }
            port.tell_nics(&mut self.unit);
        }
        let macs = self.ports[0].nics.macs();
        self.unit.set_macs(event_loop::now(), macs);
        Ok(())
    }

    fn administer(&mut self) {
        for event in self.control.poll() {
            let ControlEvent::Line(id, line) = event else {
                continue;
            };
            let reply = match serde_json::from_str(&line) {
                Ok(UnitRequest::Status) => UnitReply::Status(Box::new(self.status())),
                Ok(UnitRequest::Reload) => self.reload(),
                Err(e) => UnitReply::Error {
                    message: format!("not a request of rma-unitd: {e}"),
                },
            };
            match serde_json::to_string(&reply) {
                Ok(text) => self.control.send(id, &text),
                Err(e) => log::error!("a reply cannot be written as JSON: {e}"),
            }
        }
    }

    fn status(&mut self) -> crate::admin::unit_protocol::UnitStatus {
        let [management, service] = &mut self.ports;
        let traffic = [management.nics.counters(), service.nics.counters()];
        let link = match management.nics.state() {
            LinkState::Up => "up",
            LinkState::Down => "down",
            LinkState::Gone => "gone",
        };
        unitd_status::status(&unitd_status::Seen {
            unit: &self.unit,
            media: &self.media,
            interfaces: management.nics.interfaces().collect(),
            link,
            mtu: self.mtu,
            incarnation: self.incarnation,
            traffic,
        })
    }

    fn reload_by_signal(&mut self) {
        notify_reloading();
        // What comes of it is in the log.
        let _ = self.reload();
        notify(&[NotifyState::Ready]);
    }

    /// Takes another configuration, or refuses it with one line and keeps the old one.
    fn reload(&mut self) -> UnitReply {
        // Operations that the unit has asked for find their device as it was.
        self.act_all();
        let outcome = self.try_reload();
        self.act_all();
        match outcome {
            Ok((changes, at_next_start)) => {
                for change in &changes {
                    log::info!("{change}");
                }
                for key in &at_next_start {
                    log::warn!("{key} has changed; that takes effect at the next start");
                }
                if changes.is_empty() && at_next_start.is_empty() {
                    log::info!("the configuration has not changed");
                }
                UnitReply::Reloaded {
                    changes,
                    at_next_start,
                }
            }
            Err(e) => {
                let message = format!("configuration refused, nothing changed: {}", one_line(&e));
                log::error!("{message}");
                UnitReply::Error { message }
            }
        }
    }

    fn try_reload(&mut self) -> Result<(Vec<String>, Vec<String>), UnitdError> {
        let config = UnitdConfig::load(&self.args.keys, self.args.config.as_deref())?;
        let now = event_loop::now();
        let changes = self
            .media
            .change(now, &config, &mut self.state, &mut self.unit)?;
        let at_next_start = self.config.fixed_keys_that_differ(&config);
        // The keys in force stay known, so that the next reload names them again.
        self.config.controllers = config.controllers;
        Ok((changes, at_next_start))
    }

    fn stop(&mut self) {
        notify(&[NotifyState::Stopping]);
        log::info!("stopping");
        let now = event_loop::now();
        self.unit.close(now);
        for port in &mut self.ports {
            port.send(now, &mut self.unit);
        }
    }
}
