//! The device thread of `rmad`: makes and removes the kernel's block devices for what this host owns,
//! and the udev rules that name them.
//!
//! It alone does what may block: it asks drivers, waits for udev, starts `modprobe`. Data never passes
//! through it: the service thread gets the other ends of what it makes. The order is always the same:
//! the rules, then the device; at the end the rules' end, then the device's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::device_facts::usable;
use super::devices_kernel::{Kernel, Unclaimed};
use super::devices_links::LinkChecks;
use super::devices_rules::{explain, rules_text, section};
pub use super::devices_words::{DeviceCommand, DeviceEvent, DevicesConfig, DevicesHandle};
use super::devices_words::{KernelNames, Said, lock};
use super::service::{ServiceCommand, ServiceSender};
use super::service_words::{Exposure, How, info};
use crate::export::choice::Way;
use crate::export::kernel::{flusher, nbd, ublk, udevd, usage};
use crate::export::rules_file::RulesFile;
use crate::export::udev::{self, KernelName};
use crate::rma::OwnedDevice;
use crate::wire::Guid;

/// How long after a loss connections are replaced: the kernel may not have seen all of it before.
pub(super) const REPLACE_AFTER: Duration = Duration::from_millis(200);
/// How often what did not work is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// How long after the end of Fig. 5 devices of an earlier start that nobody claims are removed.
const CLAIM_WITHIN: Duration = Duration::from_secs(10);
/// How often it looks around while nobody says anything.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Numbers below are left to whoever uses the driver by hand.
const FIRST_INDEX: u32 = 16;

#[derive(Debug)]
enum State {
    /// Its controller has not answered yet.
    Waiting,
    Socket,
    Kernel(Kernel),
    /// It did not work, and when that was.
    Failed(Instant),
    /// Its block device was given up, though this host owns it.
    Abandoned,
}

#[derive(Debug)]
pub(super) struct Held {
    pub(super) owned: OwnedDevice,
    state: State,
    /// Why this way.
    pub(super) reason: String,
    /// Connections that the kernel lacks, and since when.
    pub(super) missing: Option<(usize, Instant)>,
}

impl Held {
    pub(super) fn kernel(&self) -> Option<Kernel> {
        match self.state {
            State::Kernel(kernel) => Some(kernel),
            _ => None,
        }
    }

    /// What udev sees of it.
    fn node(&self, socket_dir: &std::path::Path) -> Option<udev::Node> {
        match self.state {
            State::Kernel(kernel) => Some(udev::Node::Kernel(kernel.name())),
            State::Socket => Some(udev::Node::Socket(
                socket_dir.join(self.owned.row.guid.to_string()),
            )),
            State::Waiting | State::Failed(_) | State::Abandoned => None,
        }
    }
}

pub(super) struct Devices {
    pub(super) config: DevicesConfig,
    pub(super) service: ServiceSender,
    said: Said,
    pub(super) names: KernelNames,
    pub(super) rules: Option<RulesFile>,
    pub(super) links: LinkChecks,
    pub(super) held: BTreeMap<Guid, Held>,
    /// Devices whose controllers have answered.
    reachable: BTreeSet<Guid>,
    /// Devices to be removed that the kernel did not remove, and their names for people.
    leaving: Vec<(Kernel, String)>,
    /// Whether there may be a device to begin with.
    has_news: bool,
    unclaimed: Vec<Unclaimed>,
    /// When the rest of them is removed.
    claimed_by: Option<Instant>,
    /// The ways that were tried, and why one does not work at all.
    usable: BTreeMap<Way, Result<(), String>>,
    next_index: u32,
    next_id: u32,
    pub(super) text: String,
}

impl Devices {
    pub(super) fn new(
        config: DevicesConfig,
        service: ServiceSender,
        said: Said,
        names: KernelNames,
    ) -> Self {
        let dir = config.rules_dir.as_deref();
        Self {
            rules: dir.map(|dir| RulesFile::new(dir, udev::RULES_FILE_NAME)),
            config,
            service,
            said,
            names,
            links: LinkChecks::default(),
            held: BTreeMap::new(),
            reachable: BTreeSet::new(),
            leaving: Vec::new(),
            has_news: false,
            unclaimed: Vec::new(),
            claimed_by: None,
            usable: BTreeMap::new(),
            next_index: FIRST_INDEX,
            next_id: 0,
            text: String::new(),
        }
    }

    pub(super) fn run(mut self, queue: &Receiver<DeviceCommand>) {
        // It makes what write-back waits for.
        let _ = flusher::mark_thread();
        self.unclaimed = Unclaimed::all(self.config.host);
        let mut retry_at = Instant::now() + RETRY_AFTER;
        loop {
            let due = self.held.values().filter_map(|held| held.missing);
            let wait = due
                .map(|(_, since)| since + REPLACE_AFTER)
                .chain(self.links.deadline())
                .min()
                .map(|at| at.saturating_duration_since(Instant::now()).min(LOOK_EVERY));
            match queue.recv_timeout(wait.unwrap_or(LOOK_EVERY)) {
                Ok(command) => {
                    // All that has come meanwhile first: udev reads its rules once for all of it.
                    for command in std::iter::once(command).chain(queue.try_iter()) {
                        if let DeviceCommand::Stop(remove) = command {
                            return self.stop(remove);
                        }
                        self.obey(command);
                    }
                    if std::mem::take(&mut self.has_news) {
                        self.advance();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.replace();
            self.look_at_links();
            if self.claimed_by.is_some_and(|at| Instant::now() >= at) {
                self.claimed_by = None;
                self.remove_unclaimed();
            }
            if Instant::now() >= retry_at {
                retry_at = Instant::now() + RETRY_AFTER;
                self.usable.retain(|_, usable| usable.is_ok());
                self.remove_leaving();
                self.advance();
            }
        }
    }

    fn obey(&mut self, command: DeviceCommand) {
        match command {
            DeviceCommand::Own(owned) => self.own(owned),
            DeviceCommand::Reachable(guids) => {
                // They may be known here before the devices are: whoever says so has heard of it first.
                self.reachable.extend(guids);
                self.has_news = true;
            }
            DeviceCommand::Lost(guid) => {
                if let Some(held) = self.held.get_mut(&guid) {
                    let (count, since) = held.missing.unwrap_or((0, Instant::now()));
                    held.missing = Some((count + 1, since));
                }
            }
            DeviceCommand::Settled => {
                if !self.unclaimed.is_empty() {
                    self.claimed_by = Some(Instant::now() + CLAIM_WITHIN);
                }
            }
            DeviceCommand::Rules(token) => {
                self.said.say(DeviceEvent::Rules(token, self.text.clone()));
            }
            DeviceCommand::Explain(token, guid) => {
                let explained = match self.held.get(&guid).map(|held| (held, held.kernel())) {
                    Some((held, Some(kernel))) => {
                        let path = self.rules.as_ref().map(RulesFile::path);
                        Ok(explain(&self.text, path, &held.owned, &kernel.name()))
                    }
                    Some((held, None)) => Err(format!(
                        "{} is no block device of the kernel here, so that udev has nothing to name; \
                         see `rma exports`",
                        held.owned.row.name.escape_default()
                    )),
                    None => {
                        Err("this host does not own the device (any more); `rma exports`".into())
                    }
                };
                self.said.say(DeviceEvent::Explained(token, explained));
            }
            DeviceCommand::Abandon(token, guid) => {
                let outcome = self.abandon(guid);
                self.said.say(DeviceEvent::Abandoned(token, outcome));
            }
            DeviceCommand::Stop(_) => {}
        }
    }

    /// Makes what is held be exactly `owned`.
    fn own(&mut self, owned: Vec<OwnedDevice>) {
        let mut owned: BTreeMap<Guid, OwnedDevice> = owned
            .into_iter()
            .map(|owned| (owned.row.guid, owned))
            .collect();
        self.reachable.retain(|guid| owned.contains_key(guid));
        let all = std::mem::take(&mut self.held);
        let (kept, gone): (BTreeMap<_, _>, BTreeMap<_, _>) = all
            .into_iter()
            .partition(|(guid, _)| owned.contains_key(guid));
        self.held = kept;
        for (guid, held) in &mut self.held {
            let Some(new) = owned.remove(guid) else {
                continue;
            };
            let resized = info(&new).served_bytes() != info(&held.owned).served_bytes();
            let old = std::mem::replace(&mut held.owned, new);
            if resized && held.kernel().is_some() && usable(&held.owned).is_ok() {
                // One that could not be served has no connections yet.
                let served = usable(&old).is_ok();
                let count = if served { 0 } else { nbd::CONNECTIONS };
                held.missing = held.missing.or(Some((count, Instant::now())));
            }
        }
        for (guid, owned) in owned {
            let host = self.config.host;
            let found = self.unclaimed.iter().position(|u| u.is_of(host, guid));
            let state = match found.map(|at| self.unclaimed.swap_remove(at)) {
                Some(unclaimed) => State::Kernel(unclaimed.kernel()),
                None => State::Waiting,
            };
            let claimed = matches!(state, State::Kernel(_));
            let reason = "it was there before rmad was started".to_owned();
            let problem = usable(&owned).err().filter(|_| claimed);
            let is_served = claimed && problem.is_none();
            let held = Held {
                owned,
                state,
                reason,
                missing: is_served.then(|| (nbd::CONNECTIONS, Instant::now())),
            };
            self.held.insert(guid, held);
            if let Some(problem) = problem {
                self.hold_back(guid, &problem);
            }
        }
        self.write_rules();
        for held in gone.into_values() {
            if let Some(kernel) = held.kernel() {
                self.remove(kernel, &held.owned.row.name);
            }
        }
        self.has_news = true;
    }

    /// Begins with every device that can be begun with.
    fn advance(&mut self) {
        let begin: Vec<Guid> = self
            .held
            .iter()
            .filter(|(_, held)| match held.state {
                State::Waiting => true,
                State::Failed(at) => at.elapsed() >= RETRY_AFTER,
                State::Socket | State::Kernel(_) | State::Abandoned => false,
            })
            .map(|(guid, _)| *guid)
            .collect();
        let mut ready = Vec::new();
        for guid in begin {
            if let Some(chosen) = self.choose(guid, &[]) {
                ready.push((guid, chosen));
            }
        }
        if ready.is_empty() {
            return;
        }
        self.write_rules();
        for (guid, chosen) in ready {
            self.begin(guid, chosen);
        }
    }

    /// Chooses a way for a device, and its kernel name; the ways in `refused` have not worked for
    /// it. `None`: nothing is to be done now.
    fn choose(&mut self, guid: Guid, refused: &[(Way, String)]) -> Option<State> {
        let held = self.held.get(&guid)?;
        let (reachable, facts) = (self.reachable.contains(&guid), info(&held.owned));
        let fit = usable(&held.owned);
        let mut why: Vec<String> = Vec::new();
        let mut chosen = None;
        if let Err(problem) = fit {
            return self.fail(guid, problem);
        }
        for way in self.config.choice.ways() {
            if let Some((_, reason)) = refused.iter().find(|(refused, _)| refused == way) {
                why.push(reason.clone());
                continue;
            }
            let works = match way {
                Way::Ublk => self
                    .works(Way::Ublk, ublk::probe)
                    .and_then(|()| ublk::fits(&facts)),
                Way::Nbd => self
                    .works(Way::Nbd, nbd::probe)
                    .and_then(|()| nbd::fits(&facts)),
                Way::NbdSocket => Ok(()),
            };
            match works {
                // A kernel device is read from as soon as it is there.
                Ok(()) if *way != Way::NbdSocket && !reachable => return None,
                Ok(()) => {
                    chosen = Some(*way);
                    break;
                }
                Err(reason) => why.push(reason),
            }
        }
        let Some(way) = chosen else {
            return self.fail(guid, why.join("; "));
        };
        let state = match way {
            Way::NbdSocket => State::Socket,
            Way::Ublk => {
                self.next_id = ublk::free_id(self.next_id);
                self.next_id += 1;
                State::Kernel(Kernel::Ublk(self.next_id - 1))
            }
            Way::Nbd => {
                self.next_index = nbd::free_index(self.next_index);
                self.next_index += 1;
                State::Kernel(Kernel::Nbd(self.next_index - 1))
            }
        };
        let reason = self.config.choice.reason(way, &why);
        let held = self.held.get_mut(&guid)?;
        held.reason = reason;
        held.state = match &state {
            State::Kernel(kernel) => State::Kernel(*kernel),
            _ => State::Socket,
        };
        Some(state)
    }

    /// Whether a way works at all here; looked at once, and again later where it does not.
    fn works(&mut self, way: Way, probe: fn() -> Result<(), String>) -> Result<(), String> {
        self.usable.entry(way).or_insert_with(probe).clone()
    }

    fn fail(&mut self, guid: Guid, problem: String) -> Option<State> {
        let held = self.held.get_mut(&guid)?;
        let again = matches!(held.state, State::Failed(_));
        held.state = State::Failed(Instant::now());
        let name = held.owned.row.name.escape_default().to_string();
        if !again {
            log::error!("device {name} ({guid}) is not exported: {problem}");
        }
        let exposure = Exposure {
            backend: "none",
            reason: self.config.choice.reason(Way::NbdSocket, &[]),
            path: PathBuf::new(),
            how: How::Failed(problem),
        };
        self.service.send(ServiceCommand::Expose(guid, exposure));
        None
    }

    /// Makes what has been chosen; what does not work is tried in another way.
    fn begin(&mut self, guid: Guid, chosen: State) {
        let mut refused: Vec<(Way, String)> = Vec::new();
        let mut chosen = Some(chosen);
        while let Some(state) = chosen {
            let Some(held) = self.held.get(&guid) else {
                return;
            };
            let reason = held.reason.clone();
            let State::Kernel(kernel) = state else {
                let exposure = Exposure {
                    backend: Way::NbdSocket.name(),
                    reason,
                    path: self.config.socket_dir.join(guid.to_string()),
                    how: How::Socket,
                };
                self.service.send(ServiceCommand::Expose(guid, exposure));
                return;
            };
            let name = kernel.name();
            match self.make(guid, kernel, reason) {
                Err(e) if e.kind() != std::io::ErrorKind::TimedOut => {
                    let way = kernel.way();
                    let problem = format!("{}: {} was not made: {e}", way.name(), name.as_str());
                    log::warn!("{problem}");
                    // A part of it may be there.
                    self.leaving.push((kernel, name.as_str().to_owned()));
                    refused.push((way, problem));
                    chosen = self.choose(guid, &refused);
                    self.write_rules();
                }
                // It is on its way: the kernel has not said that it will not come.
                Err(e) => {
                    log::warn!("/dev/{} is late: {e}", name.as_str());
                    lock(&self.names).insert(guid, name);
                    self.links.expect(guid, Instant::now());
                    return;
                }
                Ok(()) => {
                    lock(&self.names).insert(guid, name);
                    self.links.expect(guid, Instant::now());
                    return;
                }
            }
        }
    }

    /// Gives a device's block device up, so that whatever waits for it fails.
    fn abandon(&mut self, guid: Guid) -> Result<String, String> {
        let Some(held) = self.held.get_mut(&guid) else {
            return Err("this host does not own the device (any more); `rma exports`".into());
        };
        let name = held.owned.row.name.clone();
        let Some(kernel) = held.kernel() else {
            return Err(format!(
                "{} is no block device of the kernel here",
                name.escape_default()
            ));
        };
        (held.state, held.missing) = (State::Abandoned, None);
        let exposure = Exposure {
            backend: "none",
            reason: held.reason.clone(),
            path: PathBuf::new(),
            how: How::Failed("abandoned: it comes back when rmad is started again".into()),
        };
        self.service.send(ServiceCommand::Expose(guid, exposure));
        self.write_rules();
        self.remove(kernel, &name);
        Ok(format!("/dev/{}", kernel.name().as_str()))
    }

    /// Removes a device whose rules are gone already.
    fn remove(&mut self, kernel: Kernel, name: &str) {
        let node = kernel.name();
        lock(&self.names).retain(|_, known| *known != node);
        let users = usage::users(node.as_str());
        if !users.is_empty() {
            log::warn!(
                "/dev/{} ({}) goes away while it is in use ({}): its I/O fails",
                node.as_str(),
                name.escape_default(),
                users.join(", ")
            );
        }
        match kernel.remove() {
            Ok(()) => log::info!("export of {} ended", name.escape_default()),
            Err(e) => {
                log::error!("/dev/{} is not removed yet: {e}", node.as_str());
                self.leaving.push((kernel, name.to_owned()));
            }
        }
    }

    /// Tries again what the kernel did not do.
    fn remove_leaving(&mut self) {
        if self.leaving.is_empty() {
            return;
        }
        let there: Vec<Kernel> = Unclaimed::all(self.config.host)
            .iter()
            .map(Unclaimed::kernel)
            .collect();
        for (kernel, name) in std::mem::take(&mut self.leaving) {
            let is_held = self.held.values().any(|held| held.kernel() == Some(kernel));
            if there.contains(&kernel) && !is_held && kernel.remove().is_err() {
                self.leaving.push((kernel, name));
            }
        }
    }

    fn remove_unclaimed(&mut self) {
        for unclaimed in std::mem::take(&mut self.unclaimed) {
            let kernel = unclaimed.kernel();
            log::warn!(
                "/dev/{} is of an earlier start, and this host does not own its device any more",
                kernel.name().as_str()
            );
            self.remove(kernel, "an earlier start");
        }
    }

    /// Writes the rules, has udev read them, and look again at devices whose rules have changed.
    fn write_rules(&mut self) {
        let dir = &self.config.socket_dir;
        let held = self.held.values();
        let named: Vec<_> = held
            .filter_map(|held| Some((&held.owned, held.node(dir)?)))
            .collect();
        let text = rules_text(&named, &self.config.access);
        let kernel: Vec<(Guid, KernelName)> = self
            .held
            .iter()
            .filter_map(|(guid, held)| Some((*guid, held.kernel()?.name())))
            .collect();
        let had_kernel = self.text.contains("LABEL=");
        let old = std::mem::replace(&mut self.text, text);
        let Some(file) = &self.rules else { return };
        match file.write(&self.text) {
            Ok(false) => return,
            Ok(true) => {}
            Err(e) => return log::error!("{e}"),
        }
        if kernel.is_empty() && !had_kernel {
            return;
        }
        match udevd::reload() {
            Ok(true) => {}
            Ok(false) => return,
            Err(e) => log::warn!("{e}"),
        }
        for (guid, name) in kernel {
            let before = section(&old, &name);
            if before.is_some() && before != section(&self.text, &name) {
                udevd::look_again(name.as_str());
                self.links.expect(guid, Instant::now());
            }
        }
    }

    fn stop(mut self, remove: bool) {
        let all = std::mem::take(&mut self.held);
        let mut kernels = Vec::new();
        for held in all.into_values() {
            if let Some(kernel) = held.kernel() {
                kernels.push((kernel, held.owned.row.name));
            }
        }
        if remove {
            self.write_rules();
            for (kernel, name) in kernels {
                self.remove(kernel, &name);
            }
        } else if !kernels.is_empty() {
            log::info!(
                "{} block devices stay; their I/O waits until rmad runs again",
                kernels.len()
            );
        }
    }
}

pub(super) fn held_name(held: &BTreeMap<Guid, Held>, guid: Guid) -> String {
    let name = held.get(&guid).map(|held| held.owned.row.name.as_str());
    name.unwrap_or_default().escape_default().to_string()
}
