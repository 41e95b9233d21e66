//! The agent: what goes in, what comes out, and who inside gets it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::action::{AgentAction, CommitToken, OwnedDevice};
use super::allocation::Allocations;
use super::boot::Boot;
use super::config::{AgentConfig, Intervals, MAX_EVENTS};
use super::journal::{Journal, Waiter};
use super::peers::Peer;
use super::plan::error;
use super::report;
use super::request::{AdminReply, ErrorKind, WatchEvent};
use super::serve::Deferred;
use super::timers::{Timer, Timers};
use super::units::Unit;
use crate::crt::Table;
use crate::fabric::{FabricLink, Facts, LinkConfig};
use crate::session::{ClientEvent, Counters, Hub, HubEvent};
use crate::wire::kind::Role;
use crate::wire::message::Member;
use crate::wire::{ClusterName, DropReason, EntityType, Guid, Header, Kind, Mac, Row, Time};

/// The most rows whose changes are told one by one; more are summed up.
const MAX_ROW_EVENTS: usize = 1024;
/// The most different warnings that are remembered, to say each once.
const MAX_WARNINGS: usize = 256;
/// How long a failed commit rests.
const COMMIT_RETRY: Duration = Duration::from_secs(1);

/// What fabric services are to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FabricState {
    Down,
    Up,
    Pending,
    Refused,
}

impl FabricState {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Up => "up",
            Self::Pending => "pending",
            Self::Refused => "refused",
        }
    }
}

/// The resource management agent (214) of one host.
///
/// After any call that takes `now`, poll [`Agent::poll_transmit`] and [`Agent::poll_action`] until
/// they are empty, and call [`Agent::tick`] when [`Agent::deadline`] has come.
#[derive(Debug)]
pub struct Agent {
    pub(super) config: AgentConfig,
    pub(super) table: Table,
    pub(super) rng: fastrand::Rng,
    pub(super) hub: Hub<Guid>,
    pub(super) link: FabricLink,
    pub(super) cluster: ClusterName,
    pub(super) fabric: (FabricState, Time),
    pub(super) boot: Boot,
    /// The last list of fabric services; `None` before the first.
    pub(super) members: Option<BTreeMap<Guid, Member>>,
    pub(super) peers: BTreeMap<Guid, Peer>,
    pub(super) units: BTreeMap<Guid, Unit>,
    pub(super) timers: Timers,
    pub(super) journal: Journal,
    pub(super) deferred: VecDeque<Deferred>,
    pub(super) allocations: Allocations,
    pub(super) owned: BTreeMap<Guid, OwnedDevice>,
    pub(super) exported: bool,
    /// Sessions that say goodbye and go.
    pub(super) closing: Vec<Guid>,
    pub(super) next_session: u64,
    actions: VecDeque<AgentAction>,
    warned: BTreeSet<String>,
    drops: Counters,
}

impl Agent {
    /// An agent that starts Fig. 5 at its first [`Agent::tick`], from the stored table (an empty
    /// one at the first start). `seed` makes its nonces and spreads its polls.
    pub fn new(config: AgentConfig, table: Table, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let link = FabricLink::new(
            LinkConfig {
                local: config.guid,
                incarnation: config.incarnation,
                role: Role::Host,
                entity: EntityType::Host,
                facts: Facts {
                    macs: config.macs.clone(),
                    name: config.name.clone(),
                    cluster: config.cluster,
                    change: 1,
                },
                fabric_mac: config.fabric_mac,
                poll: config.intervals.fabric_poll,
                mtu: config.mtu,
            },
            rng.u64(..),
        );
        Self {
            hub: Hub::new(false, config.macs.clone(), rng.u64(..)),
            link,
            cluster: config.known_cluster,
            fabric: (FabricState::Down, Time::ZERO),
            boot: Boot::new(),
            members: None,
            peers: BTreeMap::new(),
            units: BTreeMap::new(),
            timers: Timers::default(),
            journal: Journal::new(table.summary()),
            deferred: VecDeque::new(),
            allocations: Allocations::default(),
            owned: BTreeMap::new(),
            exported: false,
            closing: Vec::new(),
            next_session: 1,
            actions: VecDeque::new(),
            warned: BTreeSet::new(),
            drops: Counters::default(),
            rng,
            table,
            config,
        }
    }

    /// The table as it is now, perhaps newer than the one stored.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The cluster, none before one is assigned.
    pub fn cluster(&self) -> ClusterName {
        self.cluster
    }

    /// Whether Fig. 5 has been gone through.
    pub fn is_steady(&self) -> bool {
        self.boot.is_steady()
    }

    /// Dropped management frames by reason.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        let drops = self.hub.drops().iter();
        drops.map(|(reason, count)| (reason, count + self.drops.get(reason)))
    }

    /// Takes a frame of the management EtherType, without its Ethernet header. An error says why
    /// the frame was dropped; it has been counted.
    pub fn handle(&mut self, now: Time, src: Mac, frame: &[u8]) -> Result<(), DropReason> {
        let result = match Header::parse(frame, false) {
            Ok((header, body)) if self.link.owns(&header) && !self.is_own(src) => {
                self.counted(|agent| agent.link.handle(now, src, &header, body))
            }
            Ok((header, body)) if header.kind == Kind::Here && !self.is_own(src) => {
                self.counted(|agent| agent.link.handle_here(now, src, body))
            }
            _ if self.boot.is_stopped() => self.counted(|_| Err(DropReason::Unexpected)),
            // Counts by itself, malformed frames included.
            _ => self.hub.handle(now, src, frame),
        };
        self.pump(now);
        result
    }

    fn is_own(&self, src: Mac) -> bool {
        src.is_multicast() || self.config.macs.contains(&src)
    }

    fn counted(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<(), DropReason>,
    ) -> Result<(), DropReason> {
        let result = act(self);
        if let Err(reason) = result {
            self.drops.add(reason);
        }
        result
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Time) {
        if self.boot.is_idle() {
            self.fabric.1 = now;
            self.start_boot(now);
        }
        self.link.tick(now);
        self.hub.tick(now);
        while let Some(timer) = self.timers.take_due(now) {
            self.on_timer(now, timer);
        }
        self.pump(now);
    }

    /// When [`Agent::tick`] must be called next.
    pub fn deadline(&self) -> Option<Time> {
        if self.boot.is_idle() {
            return Some(Time::ZERO);
        }
        [
            self.link.deadline(),
            self.hub.deadline(),
            self.timers.next(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Appends one frame to `out` and returns its destination, or `None` when there is nothing to
    /// send now.
    pub fn poll_transmit(&mut self, now: Time, out: &mut Vec<u8>) -> Option<Mac> {
        if let Some(mac) = self.link.poll_transmit(now, out) {
            return Some(mac);
        }
        if let Some(mac) = self.hub.poll_transmit(now, out) {
            return Some(mac);
        }
        for guid in std::mem::take(&mut self.closing) {
            if !self.peers.contains_key(&guid) && !self.units.contains_key(&guid) {
                self.hub.remove(&guid);
            }
        }
        None
    }

    /// The next thing for the shell to do.
    pub fn poll_action(&mut self) -> Option<AgentAction> {
        self.actions.pop_front()
    }

    /// Polls and waits by other intervals from now on.
    pub fn set_intervals(&mut self, now: Time, intervals: Intervals) {
        self.config.intervals = intervals;
        self.link.set_poll(now, intervals.fabric_poll);
    }

    /// Says goodbye to fabric services, peers and units. Poll what is to be sent once more, then
    /// drop the agent.
    pub fn close(&mut self, now: Time) {
        self.link.close(now);
        self.close_sessions(now);
        self.boot.stop();
    }

    pub(super) fn close_sessions(&mut self, now: Time) {
        let keys: Vec<Guid> = self.hub.keys().copied().collect();
        for guid in keys {
            if let Some(client) = self.hub.client_mut(&guid) {
                client.close(now);
            }
        }
    }

    fn on_timer(&mut self, now: Time, timer: Timer) {
        if self.boot.is_stopped() {
            return;
        }
        match timer {
            Timer::Block => self.patience_over(now),
            // Sealing looks at the clock no more: the rest is over.
            Timer::Commit => {}
            Timer::Push => self.push(now),
            Timer::Peer(guid) => self.peer_due(now, guid),
            Timer::Address(guid) => self.try_next_address(now, guid),
            Timer::Unit(guid) => self.poll_unit(now, guid),
            Timer::Controller(guid, ioc) => self.poll_controller(now, guid, ioc),
            Timer::Allocation(id) => self.allocation_late(now, id),
            Timer::Resend(id) => self.resend_allocation(now, id),
        }
    }

    /// Takes in what the sessions have to say, then does what follows from it.
    pub(super) fn pump(&mut self, now: Time) {
        loop {
            if let Some(event) = self.link.poll_event() {
                self.on_link_event(now, event);
            } else if let Some(event) = self.hub.poll_event() {
                self.on_hub_event(now, event);
            } else {
                break;
            }
        }
        if self.boot.is_stopped() {
            return;
        }
        self.step_boot(now);
        self.seal(now);
    }

    fn on_hub_event(&mut self, now: Time, event: HubEvent<Guid>) {
        match event {
            HubEvent::Client(guid, event) => self.on_client_event(now, guid, event),
            HubEvent::Server(event) => self.on_server_event(now, event),
            // A discover that somebody multicast: we are not fabric services.
            HubEvent::Connectionless { .. } => {}
        }
    }

    fn on_client_event(&mut self, now: Time, guid: Guid, event: ClientEvent) {
        match event {
            ClientEvent::Connected { incarnation, .. } => {
                self.station_up(now, guid, incarnation);
            }
            ClientEvent::Lost => self.station_down(now, guid),
            ClientEvent::Refused(status) => self.station_refused(guid, status),
            ClientEvent::Reply {
                command,
                status,
                body,
            } => {
                if self.peers.contains_key(&guid) {
                    self.peer_reply(now, guid, command, status, &body);
                } else {
                    self.unit_reply(now, guid, command, status, &body);
                }
            }
            ClientEvent::Notified(notification) => self.unit_notified(now, guid, notification),
        }
    }

    pub(super) fn act(&mut self, action: AgentAction) {
        self.actions.push_back(action);
    }

    /// Tells those who watch; a flood is cut.
    pub(super) fn tell(&mut self, event: WatchEvent) {
        if self.actions.len() < MAX_EVENTS {
            self.actions.push_back(AgentAction::Event(event));
        }
    }

    /// Names a block of Fig. 5 in the log.
    pub(super) fn block(&mut self, number: u16, text: impl Into<String>) {
        self.act(AgentAction::Block(number, text.into()));
    }

    /// Tells of a refused member or peer, once.
    pub(super) fn warn(&mut self, message: String) {
        if self.warned.len() < MAX_WARNINGS && self.warned.insert(message.clone()) {
            self.tell(WatchEvent::Refused { message });
        }
    }

    pub(super) fn reply(&mut self, token: u64, reply: AdminReply) {
        self.act(AgentAction::AdminReply {
            token,
            reply: Box::new(reply),
        });
    }

    /// An interval with a spread of a tenth, so that hosts do not poll in step.
    pub(super) fn spread(&mut self, interval: Duration) -> Duration {
        let nanos = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX / 2);
        let tenth = nanos / 10;
        Duration::from_nanos(nanos - tenth + self.rng.u64(0..=tenth.saturating_mul(2)))
    }

    /// Changes the table and notes what changed. `candidates` are the rows that may change; how
    /// they look before is remembered for the events.
    pub(super) fn mutate(
        &mut self,
        candidates: impl IntoIterator<Item = Guid>,
        change: impl FnOnce(&mut Table) -> Vec<Guid>,
    ) -> Vec<Guid> {
        let before: Vec<(Guid, Option<Box<Row>>)> = candidates
            .into_iter()
            .filter(|guid| !self.journal.before.contains_key(guid))
            .map(|guid| (guid, self.table.get(guid).cloned().map(Box::new)))
            .collect();
        let changed = change(&mut self.table);
        for (guid, row) in before {
            if changed.binary_search(&guid).is_ok() {
                self.journal.before.entry(guid).or_insert(row);
            }
        }
        if !changed.is_empty() {
            self.journal.note(&changed);
            self.journal.unpublished = true;
        }
        changed
    }

    /// Asks the shell to store what has changed, unless it is at it already. In Fig. 5 that has
    /// its time at block 525, except where somebody waits for it.
    fn seal(&mut self, now: Time) {
        let journal = &self.journal;
        let wanted = !journal.waiters.is_empty() || !self.deferred.is_empty();
        let held = self.boot.holds_commits() && !wanted;
        if journal.commit.is_some() || held || self.timers.is_set(Timer::Commit) {
            return;
        }
        if !journal.dirty {
            // What was waited for is durable already.
            let waiters = std::mem::take(&mut self.journal.waiters);
            self.release(now, waiters);
            return;
        }
        if self.journal.unpublished {
            self.table.publish(self.allocations.term, self.config.guid);
            self.journal.unpublished = false;
            self.journal.published = true;
        }
        let commit = self.journal.begin(self.table.summary());
        let action = AgentAction::Commit {
            token: commit.token,
            changed: commit.rows.iter().copied().collect(),
        };
        self.act(action);
    }

    /// A commit is done (`ok`: it is durable) or has failed (it is asked for again later).
    pub fn committed(&mut self, now: Time, token: CommitToken, ok: bool) {
        let Some(commit) = self.journal.commit.take_if(|c| c.token == token) else {
            return;
        };
        if !ok {
            let waiters = self.journal.undo(commit);
            self.timers.set(Timer::Commit, now + COMMIT_RETRY);
            self.disappoint(now, waiters);
            self.pump(now);
            return;
        }
        self.journal.durable = commit.summary;
        self.announce();
        self.refresh_exports(&commit.rows);
        let news = commit.published;
        self.release(now, commit.waiters);
        if news && self.boot.is_steady() {
            if commit.urgent {
                self.push(now);
            } else {
                // Others have most likely seen the same at the same time: whoever is first tells
                // all, and who is told what he knows keeps quiet (`on_offer`).
                let spread = self.push_spread();
                let at = now + Duration::from_nanos(self.rng.u64(0..=spread.as_nanos() as u64));
                self.timers.set_sooner(Timer::Push, at);
            }
        }
        self.serve_deferred(now);
        self.offer_pending(now);
        self.pump(now);
    }

    /// Within which time the hosts of the cluster tell what they all have seen.
    fn push_spread(&self) -> Duration {
        let hosts = self.peers.len().min(180) as u64;
        Duration::from_millis(20 + 2 * hosts)
    }

    /// Answers those who waited for a commit.
    fn release(&mut self, now: Time, waiters: Vec<Waiter>) {
        for waiter in waiters {
            match waiter {
                Waiter::Offer(connection, command) => {
                    self.answer_summary(now, connection, command);
                }
                Waiter::Allocation(id) => self.allocation_stored(now, id),
                Waiter::Granularity(token) => {
                    let reply = self.granularity_reply(true);
                    self.reply(token, reply);
                }
                Waiter::Boot => self.boot_stored(now),
            }
        }
    }

    /// Tells those who waited for a commit that it failed.
    fn disappoint(&mut self, now: Time, waiters: Vec<Waiter>) {
        for waiter in waiters {
            match waiter {
                Waiter::Offer(connection, command) => {
                    self.refuse(now, connection, command, crate::wire::Status::NotPersisted);
                }
                Waiter::Allocation(id) => self.allocation_not_stored(id),
                Waiter::Granularity(token) => self.reply(
                    token,
                    AdminReply::Error(error(
                        ErrorKind::NotPersisted,
                        "the table could not be stored on this host (see the log of rmad); it is \
                         tried again every second, look with `rma granularity get`",
                    )),
                ),
                // The boot waits until it is stored.
                Waiter::Boot => self.journal.waiters.push(Waiter::Boot),
            }
        }
    }

    /// Tells those who watch how rows that are durable now differ from before.
    fn announce(&mut self) {
        // What has changed again meanwhile is told when that is durable.
        let rows = &self.journal.rows;
        let before = std::mem::take(&mut self.journal.before);
        let (again, told): (BTreeMap<_, _>, BTreeMap<_, _>) = before
            .into_iter()
            .partition(|(guid, _)| rows.contains(guid));
        self.journal.before = again;
        for (guid, row) in told.into_iter().take(MAX_ROW_EVENTS) {
            if let Some(event) = self.row_event(guid, row.as_deref()) {
                self.tell(event);
            }
        }
    }

    fn row_event(&self, guid: Guid, before: Option<&Row>) -> Option<WatchEvent> {
        let table = &self.table;
        let after = table.get(guid)?;
        let info = |row: &Row| Box::new(report::row_info(table, row));
        let Some(before) = before else {
            return Some(WatchEvent::Added { row: info(after) });
        };
        if before.ownership != after.ownership {
            return Some(WatchEvent::OwnershipChanged {
                row: info(after),
                before: report::ownership_info(table, &before.ownership),
                after: report::ownership_info(table, &after.ownership),
            });
        }
        match (before.is_valid(), after.is_valid()) {
            (true, false) => return Some(WatchEvent::Removed { row: info(after) }),
            (false, true) => return Some(WatchEvent::Added { row: info(after) }),
            _ => {}
        }
        let plain = |row: &Row| Row {
            observed: crate::wire::ObservationStamp::default(),
            owned: crate::wire::OwnershipStamp::default(),
            ..row.clone()
        };
        (plain(before) != plain(after)).then(|| WatchEvent::Changed {
            before: info(before),
            after: info(after),
        })
    }

    /// Brings the owned devices up to date after these rows have changed, and tells the shell.
    pub(super) fn refresh_exports(&mut self, rows: &BTreeSet<Guid>) {
        if !self.boot.has_stored() {
            return;
        }
        let mut changed = !self.exported;
        let mut devices = BTreeSet::new();
        let rows: Vec<Guid> = if self.exported {
            rows.iter().copied().collect()
        } else {
            self.table.rows().map(|row| row.guid).collect()
        };
        for guid in rows {
            devices.insert(guid);
            for child in self.table.children(guid) {
                devices.insert(child.guid);
                devices.extend(self.table.children(child.guid).map(|row| row.guid));
            }
        }
        for guid in devices {
            let now = self.owned_device(guid);
            if self.owned.get(&guid) != now.as_ref() {
                changed = true;
                match now {
                    Some(device) => self.owned.insert(guid, device),
                    None => self.owned.remove(&guid),
                };
            }
        }
        self.exported = true;
        if changed {
            let all = self.owned.values().cloned().collect();
            self.act(AgentAction::Export(all));
        }
    }

    fn owned_device(&self, guid: Guid) -> Option<OwnedDevice> {
        let row = self.table.get(guid)?;
        let mine = row.entity == EntityType::Device && row.ownership.includes(self.config.guid);
        if !mine || !self.table.is_present(guid) {
            return None;
        }
        let unit = self.table.get(self.table.unit_of(guid)?)?;
        Some(OwnedDevice {
            row: row.clone(),
            unit: unit.guid,
            unit_name: unit.name.clone(),
            controller_name: self
                .table
                .parent(guid)
                .map_or_else(String::new, |c| c.name.clone()),
            unit_macs: unit.macs.clone(),
            epoch: row.owned.epoch,
        })
    }
}
