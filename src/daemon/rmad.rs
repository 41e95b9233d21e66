//! `rmad`: the management thread. Packets, administrators, the table's file and the service thread
//! meet here; every decision is the agent's.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::mpsc::channel;

use super::committer::Committer;
use super::config::ConfigError;
use super::device_facts::Facts;
use super::devices::{DeviceCommand, DevicesConfig, DevicesHandle};
use super::event_loop::{Event, Interest, Loop, notify, notify_alive, notify_reloading, now};
use super::rmad_config::RmadConfig;
pub use super::rmad_error::RmadError;
use super::rmad_error::{chain, system};
use super::rmad_policies::Policies;
use super::service::{ServiceCommand, ServiceConfig, ServiceEvent, ServiceHandle};
use super::start::{MAX_DEFAULT_MTU, random_seed, settle_mtu};
use crate::admin::control::{ControlEvent, ControlId, ControlServer};
use crate::admin::protocol::{Answer, Question};
use crate::crt::TableChange;
use crate::initiator::InitiatorConfig;
use crate::net::{Inbox, Interface, LinkWatch, Nics};
use crate::rma::request::{AdminError, AdminReply, AdminRequest, ErrorKind};
use crate::rma::{Agent, AgentAction, AgentConfig, Intervals};
use crate::store::crt_file::CrtFile;
use crate::store::identity::Identity;
use crate::store::vote_file::{VOTE_FILE, VoteFile};
use crate::wire::{ClusterName, Hop, Outgoing};

const TOKEN_PACKETS: u64 = 0;
const TOKEN_LINKS: u64 = 1;
const TOKEN_CONTROL: u64 = 2;
const TOKEN_SERVICE: u64 = 3;
const TOKEN_COMMITS: u64 = 4;
const TOKEN_DEVICES: u64 = 5;

/// Commands that one connection to a controller may have outstanding: what is sent until a lost one is
/// noticed and answered has to fit behind it.
pub const SERVICE_CREDITS: u16 = 1024;
/// Memory that service frames are received into, bytes for each NIC: some 230 jumbo frames. They are used in
/// turn: with twice as many none is in a cache when it is written to, and reads are a twentieth slower.
pub const SERVICE_RING_BYTES: usize = 2 << 20;
/// The most batches that are received before timers, administrators and sending have their turn.
const MAX_RECEIVE_ROUNDS: usize = 16;

/// How a run of the daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It was told to stop.
    Stopped,
    /// Fabric services have moved this host to another cluster.
    Moved { from: ClusterName, to: ClusterName },
}

/// Runs the daemon until it is told to stop.
///
/// When fabric services move the host to another cluster, the old cluster's table is put away
/// beside the new one's file, and the daemon starts again with an empty table. `reload` reads the
/// configuration again, flags over file.
pub fn run(
    config: &RmadConfig,
    reload: &dyn Fn() -> Result<RmadConfig, ConfigError>,
) -> Result<(), RmadError> {
    let mut cluster = config.cluster;
    loop {
        match run_once(config, cluster, reload)? {
            Outcome::Stopped => return Ok(()),
            Outcome::Moved { from, to } => {
                let crt = config.state_dir.join("crt");
                let away = config.state_dir.join(format!("crt.{from}"));
                log::warn!(
                    "this host now belongs to cluster {to}; the table of cluster {from} is put away as {}",
                    away.display()
                );
                std::fs::rename(&crt, &away).map_err(system("put the old table away"))?;
                // Promised to the old cluster; in the new one this host waits before it votes.
                let vote = config.state_dir.join(VOTE_FILE);
                let away = config.state_dir.join(format!("{VOTE_FILE}.{from}"));
                std::fs::rename(&vote, &away).map_err(system("put the old promises away"))?;
                cluster = to;
            }
        }
    }
}

fn run_once(
    config: &RmadConfig,
    cluster: ClusterName,
    reload: &dyn Fn() -> Result<RmadConfig, ConfigError>,
) -> Result<Outcome, RmadError> {
    let mut event_loop = Loop::new().map_err(system("wait for events"))?;
    let interfaces = Interface::by_names(&config.interface)?;
    if !interfaces.iter().any(|interface| interface.up) {
        return Err(RmadError::Down(config.interface.join(", ")));
    }
    let mtu = settle_mtu(config.mtu, &interfaces)?;
    let management = Nics::open(&interfaces, config.ethertype_management)?;
    let mut service_socket =
        Nics::open_with(&interfaces, config.ethertype_service, SERVICE_RING_BYTES)?;
    service_socket.limit_mtu(config.mtu.unwrap_or(MAX_DEFAULT_MTU));
    let macs = management.macs();
    let links = LinkWatch::new().map_err(system("watch the interfaces"))?;
    for dir in [&config.state_dir, &config.run_dir] {
        std::fs::create_dir_all(dir).map_err(|source| RmadError::Directory {
            path: dir.clone(),
            source,
        })?;
    }
    let control = ControlServer::bind(&config.run_dir.join("rmad.sock"))?;
    let mut identity = Identity::open(&config.state_dir, config.guid)?;
    let crt = config.state_dir.join("crt");
    let (file, table) = CrtFile::open(&crt, identity.guid(), cluster)?;
    let vote = config.state_dir.join(VOTE_FILE);
    let (vote, promised) = VoteFile::open(&vote, identity.guid(), identity.is_first_start())?;
    identity.settle()?;
    let known_cluster = file.cluster();
    log::info!(
        "host {} ({}) start {} on {} {} mtu {mtu}, cluster {known_cluster}, {} rows stored",
        config.name.escape_default(),
        identity.guid(),
        identity.incarnation(),
        config.interface.join(", "),
        macs.iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", "),
        table.len(),
    );
    let seed = random_seed().map_err(system("read /dev/urandom"))?;
    let (device_commands, device_queue) = channel();
    let service = ServiceHandle::start(
        ServiceConfig {
            initiator: InitiatorConfig {
                local: identity.guid(),
                incarnation: identity.incarnation(),
                cluster: ClusterName::NONE,
                local_macs: macs.clone(),
                mtu,
                credits: SERVICE_CREDITS,
            },
            socket_dir: config.run_dir.join("nbd"),
            seed: seed.rotate_left(32),
            devices: device_commands.clone(),
        },
        service_socket,
    )
    .map_err(system("start the service thread"))?;
    let devices = DevicesHandle::start(
        DevicesConfig {
            host: identity.guid(),
            choice: config.export,
            rules_dir: config.udev_rules_dir.clone(),
            access: config.device_access.clone(),
            socket_dir: config.run_dir.join("nbd"),
        },
        service.sender(),
        (device_commands, device_queue),
    )
    .map_err(system("start the device thread"))?;
    let commits =
        Committer::start(file).map_err(system("start the thread for the table's file"))?;
    let agent = Agent::new(
        AgentConfig {
            guid: identity.guid(),
            incarnation: identity.incarnation(),
            name: config.name.clone(),
            macs,
            cluster,
            known_cluster,
            fabric_mac: config.fabric_mac,
            crt_source: config.crt_source,
            mtu,
            intervals: intervals(config),
            auto_restore: config.auto_restore,
            vote: promised,
        },
        table,
        seed,
    );
    for (fd, token) in [
        (management.as_fd(), TOKEN_PACKETS),
        (links.as_fd(), TOKEN_LINKS),
        (control.as_fd(), TOKEN_CONTROL),
        (service.as_fd(), TOKEN_SERVICE),
        (commits.as_fd(), TOKEN_COMMITS),
        (devices.as_fd(), TOKEN_DEVICES),
    ] {
        event_loop
            .add(fd, token, Interest::Read)
            .map_err(system("wait for events"))?;
    }
    let daemon = Rmad {
        agent,
        socket: management,
        links,
        control,
        commits,
        vote,
        devices: Some(devices),
        cluster: ClusterName::NONE,
        watchers: BTreeSet::new(),
        policies: Policies::open(&config.state_dir, config.policy),
        facts: Facts::default(),
        moved: None,
        config: config.clone(),
    };
    daemon.policies.tell(&service);
    notify(&[sd_notify::NotifyState::Ready]);
    let result = daemon.run(&mut event_loop, Inbox::new(mtu), &service, reload);
    notify(&[sd_notify::NotifyState::Stopping]);
    service.stop();
    result
}

fn intervals(config: &RmadConfig) -> Intervals {
    Intervals {
        fabric_poll: config.poll_fabric,
        unit_poll: config.poll_units,
        controller_poll: config.poll_controllers,
        peer_poll: config.poll_peers,
        purge_after: config.keep_removed,
        ..Intervals::default()
    }
}

pub(super) struct Rmad {
    pub(super) agent: Agent,
    socket: Nics,
    links: LinkWatch,
    control: ControlServer,
    commits: Committer,
    vote: VoteFile,
    /// There until the end.
    pub(super) devices: Option<DevicesHandle>,
    cluster: ClusterName,
    watchers: BTreeSet<ControlId>,
    pub(super) policies: Policies,
    facts: Facts,
    moved: Option<Outcome>,
    /// What is in force.
    config: RmadConfig,
}

impl Rmad {
    fn run(
        mut self,
        event_loop: &mut Loop,
        mut inbox: Inbox,
        service: &ServiceHandle,
        reload: &dyn Fn() -> Result<RmadConfig, ConfigError>,
    ) -> Result<Outcome, RmadError> {
        let mut seen = Vec::new();
        self.act(service);
        self.transmit();
        loop {
            seen.clear();
            event_loop
                .wait(self.agent.deadline(), &mut seen)
                .map_err(system("wait for events"))?;
            for event in &seen {
                match event {
                    Event::Stop => {
                        log::info!("stopping");
                        self.agent.release_lease(now());
                        self.transmit();
                        self.agent.close(now());
                        self.transmit();
                        self.end_devices(false);
                        return Ok(Outcome::Stopped);
                    }
                    Event::Reload => self.reload(reload),
                    // The service thread has to turn, too.
                    Event::Beat => service.send(ServiceCommand::Beat),
                    Event::Ready {
                        token: TOKEN_PACKETS,
                        ..
                    } => self.receive(&mut inbox, service),
                    Event::Ready {
                        token: TOKEN_LINKS, ..
                    } => self.refresh(service),
                    Event::Ready {
                        token: TOKEN_CONTROL,
                        ..
                    } => self.answer(service),
                    Event::Ready {
                        token: TOKEN_SERVICE,
                        ..
                    } => self.listen(service),
                    Event::Ready {
                        token: TOKEN_COMMITS,
                        ..
                    } => self.stored(service),
                    Event::Ready {
                        token: TOKEN_DEVICES,
                        ..
                    } => self.told_of_devices(),
                    Event::Ready { .. } => {}
                }
            }
            self.agent.tick(now());
            self.act(service);
            if let Some(moved) = self.moved {
                self.end_devices(true);
                return Ok(moved);
            }
            self.transmit();
            let ended = [
                (service.has_ended(), "go on without the service thread"),
                (self.commits.has_ended(), "go on without the table's thread"),
            ];
            if let Some((_, action)) = ended.into_iter().find(|(ended, _)| *ended) {
                return Err(RmadError::System {
                    action,
                    source: std::io::Error::other("it has ended; its reason is in the log above"),
                });
            }
        }
    }

    /// Reads the configuration again: the intervals count at once, other keys at the next start.
    fn reload(&mut self, reload: &dyn Fn() -> Result<RmadConfig, ConfigError>) {
        notify_reloading();
        match reload() {
            Ok(config) => {
                for key in self.config.fixed_keys_that_differ(&config) {
                    log::warn!("{key} has changed; that takes effect at the next start");
                }
                let (before, after) = (intervals(&self.config), intervals(&config));
                if before == after {
                    log::info!("configuration read again: the intervals are as they were");
                } else {
                    log::info!(
                        "configuration read again: asking fabric services every {:?}, units every \
                         {:?}, controllers every {:?}, peers every {:?}",
                        after.fabric_poll,
                        after.unit_poll,
                        after.controller_poll,
                        after.peer_poll
                    );
                    self.agent.set_intervals(now(), after);
                }
                self.config.take_intervals(&config);
            }
            Err(e) => log::error!("configuration refused, nothing changed: {e}"),
        }
        notify(&[sd_notify::NotifyState::Ready]);
    }

    fn receive(&mut self, inbox: &mut Inbox, service: &ServiceHandle) {
        for _ in 0..MAX_RECEIVE_ROUNDS {
            match self.socket.recv(inbox) {
                Ok(count) => {
                    let time = now();
                    for frame in inbox.frames() {
                        if !self.socket.is_for_us(frame.destination) {
                            continue;
                        }
                        // What is wrong with a frame is counted by the agent.
                        let _ = self.agent.handle(time, frame.source, frame.payload);
                        self.act(service);
                    }
                    if count == 0 || !inbox.is_full() {
                        return;
                    }
                }
                Err(e) => {
                    log::warn!("{}", chain(&e));
                    return;
                }
            }
        }
    }

    fn refresh(&mut self, service: &ServiceHandle) {
        match self.links.drain() {
            Ok(true) => {}
            Ok(false) => return,
            Err(e) => log::warn!("interfaces cannot be watched: {e}"),
        }
        let (changes, errors) = self.socket.refresh();
        for change in changes {
            log::info!("{change}");
        }
        for e in errors {
            log::warn!("{}", chain(&e));
        }
        self.agent.set_macs(now(), self.socket.macs());
        service.send(ServiceCommand::LinkChanged);
    }

    fn answer(&mut self, service: &ServiceHandle) {
        for event in self.control.poll() {
            match event {
                ControlEvent::Closed(id) => {
                    self.watchers.remove(&id);
                    service.send(ServiceCommand::EndLoad(id.as_u64()));
                }
                ControlEvent::Line(id, line) => match serde_json::from_str(&line) {
                    Ok(question) => self.question(id, question, service),
                    Err(e) => self.finish(id, &Answer::Error(AdminError {
                        kind: ErrorKind::BadRequest,
                        message: format!("the request cannot be read ({e}); are rma and rmad of the same version?"),
                    })),
                },
            }
        }
    }

    fn question(&mut self, id: ControlId, question: Question, service: &ServiceHandle) {
        match question {
            Question::Agent(request) => {
                if request == AdminRequest::Watch {
                    self.watchers.insert(id);
                }
                self.look_who_uses(&request);
                self.request(id, request, service);
            }
            Question::Forced(request) => {
                self.agent.set_used(None);
                self.request(id, request, service);
            }
            Question::Exports => service.send(ServiceCommand::Report(id.as_u64())),
            Question::Statistics => service.send(ServiceCommand::Statistics(id.as_u64())),
            Question::Load { device, spec } => match self.named(&device) {
                Ok(guid) => service.send(ServiceCommand::Load(id.as_u64(), guid, spec)),
                Err(e) => self.finish(id, &Answer::Error(e)),
            },
            Question::Policy { device, change } => self.policy(id, &device, change, service),
            Question::UdevRules => self.device(DeviceCommand::Rules(id.as_u64())),
            Question::UdevTest { device } => self.about(id, &device, DeviceCommand::Explain),
            Question::Abandon { device } => self.about(id, &device, DeviceCommand::Abandon),
        }
    }

    fn request(&mut self, id: ControlId, request: AdminRequest, service: &ServiceHandle) {
        let caller = self.control.peer(id).map(|peer| peer.caller());
        let caller = caller.unwrap_or_default();
        self.agent.admin(now(), id.as_u64(), caller, request);
        self.act(service);
    }

    pub(super) fn finish(&mut self, id: ControlId, answer: &Answer) {
        match serde_json::to_string(answer) {
            Ok(line) => self.control.finish(id, &line),
            Err(e) => log::error!("an answer cannot be written: {e}"),
        }
    }

    fn listen(&mut self, service: &ServiceHandle) {
        for event in service.drain() {
            match event {
                ServiceEvent::Devices(unit, ioc, result) => {
                    self.agent.devices_listed(now(), unit, ioc, result);
                    self.act(service);
                }
                ServiceEvent::Notified(unit, ioc, notification) => {
                    self.agent.service_notified(now(), unit, ioc, notification);
                    self.act(service);
                }
                ServiceEvent::Load {
                    token,
                    report,
                    over,
                } => {
                    let id = ControlId::from_u64(token);
                    match report {
                        Ok(report) if over => self.finish(id, &Answer::Load { report, over }),
                        Ok(report) => self.say(id, &Answer::Load { report, over }),
                        Err(message) => {
                            let kind = ErrorKind::Refused;
                            self.finish(id, &Answer::Error(AdminError { kind, message }));
                        }
                    }
                }
                ServiceEvent::Beat => notify_alive(),
                ServiceEvent::Report(token, exports) => {
                    self.finish(ControlId::from_u64(token), &Answer::Exports { exports });
                }
                ServiceEvent::Statistics(token, devices, frames, paths) => {
                    let answer = Answer::Statistics {
                        devices,
                        frames,
                        paths,
                    };
                    self.finish(ControlId::from_u64(token), &answer);
                }
            }
        }
    }

    /// Tells the agent which of its commits are done.
    fn stored(&mut self, service: &ServiceHandle) {
        for done in self.commits.drain() {
            self.agent.committed(now(), done.token, done.ok);
            self.act(service);
        }
    }

    /// Does what the agent wants, in order; after each call of the agent, so that a commit holds
    /// the table as it was when the agent asked for it.
    fn act(&mut self, service: &ServiceHandle) {
        while let Some(action) = self.agent.poll_action() {
            let cluster = self.agent.cluster();
            if cluster != self.cluster {
                self.cluster = cluster;
                service.send(ServiceCommand::Cluster(cluster));
            }
            match action {
                AgentAction::Commit { token, changed } => {
                    let change = TableChange::of(self.agent.table(), &changed);
                    self.commits.commit(token, change);
                }
                AgentAction::PersistVote { token, vote } => {
                    let result = self.vote.store(&vote);
                    if let Err(e) = &result {
                        log::error!("promises of the allocation lease are not stored: {e}");
                    }
                    self.agent.vote_persisted(now(), token, result.is_ok());
                }
                AgentAction::AddController { unit, ioc, macs } => {
                    service.send(ServiceCommand::AddController(unit, ioc, macs));
                }
                AgentAction::RemoveController { unit, ioc } => {
                    service.send(ServiceCommand::RemoveController(unit, ioc));
                }
                AgentAction::ListDevices { unit, ioc } => {
                    service.send(ServiceCommand::ListDevices(unit, ioc));
                }
                AgentAction::Export(mut owned) => {
                    let warnings = self.facts.settle(&mut owned);
                    // The service thread first: it stops at once what is no longer owned.
                    service.send(ServiceCommand::Export(owned.clone(), warnings));
                    self.device(DeviceCommand::Own(owned));
                }
                AgentAction::AdminReply { token, reply } => {
                    let id = ControlId::from_u64(token);
                    if *reply == AdminReply::Watching {
                        self.say(id, &Answer::Agent(*reply));
                    } else {
                        self.watchers.remove(&id);
                        self.finish(id, &Answer::Agent(*reply));
                    }
                }
                AgentAction::LookWhoUses => {
                    let used = self.users();
                    self.agent.tell_uses(now(), &used);
                }
                AgentAction::Event(event) => {
                    log::info!("{}", crate::admin::text::event(&event));
                    let answer = Answer::Event(event);
                    for id in self.watchers.clone() {
                        self.say(id, &answer);
                    }
                }
                AgentAction::Joined(cluster) => {
                    log::info!("this host belongs to cluster {cluster}");
                    self.commits
                        .join(cluster, TableChange::of(self.agent.table(), &[]));
                }
                AgentAction::Moved { from, to } => self.moved = Some(Outcome::Moved { from, to }),
                AgentAction::Block(number, text) => {
                    log::info!("block {number}: {text}");
                    if number == 0 {
                        self.device(DeviceCommand::Settled);
                    }
                }
            }
        }
    }

    fn say(&mut self, id: ControlId, answer: &Answer) {
        match serde_json::to_string(answer) {
            Ok(line) => self.control.send(id, &line),
            Err(e) => log::error!("an answer cannot be written: {e}"),
        }
    }

    fn transmit(&mut self) {
        let (agent, time) = (&mut self.agent, now());
        if let Err(e) = self.socket.send(time, |out, _| {
            let mac = agent.poll_transmit(time, out)?;
            Some(Outgoing::alone(Hop::any(mac)))
        }) {
            log::warn!("{}", chain(&e));
        }
    }
}
