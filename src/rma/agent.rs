//! The agent: what goes in, what comes out, and who inside gets it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::action::{AgentAction, OwnedDevice};
use super::allocation::Allocations;
use super::apply::Applies;
use super::boot::Boot;
use super::central::Centre;
use super::config::{AgentConfig, CrtSource, Intervals, MAX_EVENTS};
use super::in_use::UseAsked;
use super::journal::Journal;
use super::lease::Lease;
use super::lock::Query;
use super::misfits::Misfits;
use super::moving::Moves;
use super::news::News;
use super::peers::Peer;
use super::purge::Purges;
use super::request::{AdminReply, WatchEvent};
use super::restore::Restorations;
use super::serve::Deferred;
use super::settle::Settling;
use super::timers::{Timer, Timers};
use super::units::Unit;
use super::voters::VoteTag;
use crate::crt::Table;
use crate::fabric::{FabricLink, Facts, LinkConfig};
use crate::lease::Voter;
use crate::session::limits::KEEPALIVE_INTERVAL;
use crate::session::{ClientEvent, Counters, Hub, HubEvent, Steps};
use crate::wire::kind::Role;
use crate::wire::message::Member;
use crate::wire::{ClusterName, DropReason, EntityType, Guid, Header, Kind, Mac, Row, Time};

/// The most different warnings that are remembered, to say each once.
const MAX_WARNINGS: usize = 256;
/// Room for so many actions is kept when there are none.
const USUAL_ACTIONS: usize = 16;
/// The change number of what a host registers at its start.
const FIRST_CHANGE: u64 = 1;

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
    /// Fabric services as one more source of tables; among the peers while they answer.
    pub(super) centre: Centre,
    pub(super) units: BTreeMap<Guid, Unit>,
    pub(super) timers: Timers,
    pub(super) journal: Journal,
    pub(super) deferred: VecDeque<Deferred>,
    pub(super) allocations: Allocations,
    pub(super) applies: Applies,
    pub(super) news: News,
    pub(super) moves: Moves,
    pub(super) purges: Purges,
    pub(super) restorations: Restorations,
    pub(super) misfits: Misfits,
    pub(super) lease: Lease,
    pub(super) voter: Voter<VoteTag>,
    pub(super) settling: VecDeque<Settling>,
    pub(super) queries: BTreeMap<u64, Query>,
    pub(super) next_query: u64,
    pub(super) owned: BTreeMap<Guid, OwnedDevice>,
    /// What of it is in use, and by whom.
    pub(super) used: Option<BTreeMap<Guid, String>>,
    pub(super) uses_asked: Vec<UseAsked>,
    pub(super) exported: bool,
    /// Every address that was this host's since its start.
    pub(super) own_macs: BTreeSet<Mac>,
    /// Counts the changes of what this host registers.
    change: u64,
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
                    change: FIRST_CHANGE,
                    ..Facts::default()
                },
                fabric_mac: config.fabric_mac,
                tables: config.crt_source == CrtSource::Central,
                poll: config.intervals.fabric_poll,
                mtu: config.mtu,
            },
            rng.u64(..),
        );
        Self {
            hub: Hub::new(false, config.macs.clone()),
            link,
            cluster: config.known_cluster,
            fabric: (FabricState::Down, Time::ZERO),
            boot: Boot::new(),
            members: None,
            peers: BTreeMap::new(),
            centre: Centre::default(),
            units: BTreeMap::new(),
            timers: Timers::default(),
            journal: Journal::new(table.summary()),
            deferred: VecDeque::new(),
            allocations: Allocations::default(),
            applies: Applies::default(),
            news: News::default(),
            moves: Moves::default(),
            purges: Purges::default(),
            restorations: Restorations::default(),
            misfits: Misfits::default(),
            lease: Lease::default(),
            voter: Voter::new(config.vote.clone()),
            settling: VecDeque::new(),
            queries: BTreeMap::new(),
            next_query: 1,
            owned: BTreeMap::new(),
            used: None,
            uses_asked: Vec::new(),
            exported: false,
            own_macs: config.macs.iter().copied().collect(),
            change: FIRST_CHANGE,
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

    /// Puts equal rows of `known` in the place of the rows that have changed since the last call, and
    /// adds those that are not there: of many agents in one process equal rows are in memory once.
    pub fn share_rows(&mut self, known: &mut BTreeMap<Guid, Arc<Row>>) {
        let Some(from) = self.journal.take_unshared() else {
            return;
        };
        let changed = self.journal.since(from);
        let all = || self.table.rows().map(|row| row.guid).collect();
        for guid in changed.unwrap_or_else(all) {
            let Some(row) = self.table.get_shared(guid) else {
                continue;
            };
            let other = known.entry(guid).or_insert_with(|| Arc::clone(&row));
            if *other == row {
                self.table.share(guid, other);
            } else if other.observed < row.observed || other.owned < row.owned {
                *other = row;
            }
        }
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
            Ok((header, body)) => self.hub.handle_parsed(now, src, &header, body),
            Err(_) => self.hub.handle(now, src, frame),
        };
        self.pump(now);
        result
    }

    fn is_own(&self, src: Mac) -> bool {
        src.is_multicast() || self.own_macs.contains(&src)
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
        self.voter.tick(now);
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
            self.voter.deadline(),
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
        let action = self.actions.pop_front();
        if self.actions.is_empty() {
            self.actions.shrink_to(USUAL_ACTIONS);
        }
        action
    }

    /// Polls and waits by other intervals from now on; a poll that is further away than the new
    /// interval is made sooner.
    pub fn set_intervals(&mut self, now: Time, intervals: Intervals) {
        self.config.intervals = intervals;
        self.link.set_poll(now, intervals.fabric_poll);
        self.timers.hasten(|timer| match timer {
            Timer::Peer(_) => Some(now + intervals.peer_poll),
            Timer::Unit(_) => Some(now + intervals.unit_poll),
            Timer::Controller(..) => Some(now + intervals.controller_poll),
            _ => None,
        });
    }

    /// This host has other NICs from now on: they are registered, and others learn of them.
    pub fn set_macs(&mut self, now: Time, macs: Vec<Mac>) {
        if macs.is_empty() || macs == self.config.macs {
            return;
        }
        self.own_macs.extend(&macs);
        self.config.macs = macs;
        self.change += 1;
        let facts = Facts {
            macs: self.config.macs.clone(),
            name: self.config.name.clone(),
            cluster: self.config.cluster,
            change: self.change,
            ..Facts::default()
        };
        self.link.update(now, facts);
    }

    /// Says goodbye to fabric services, peers and units (and to the lease with
    /// [`Agent::release_lease`] before). Poll what is to be sent once more, then
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
            Timer::Push => self.push_due(now),
            Timer::Differences => self.look_at_differences(now),
            Timer::Peer(guid) => self.peer_due(now, guid),
            Timer::Address(guid) => self.try_next_address(now, guid),
            Timer::Unit(guid) => self.poll_unit(now, guid),
            Timer::Controller(guid, ioc) => self.poll_controller(now, guid, ioc),
            Timer::Allocation(id) => self.allocation_late(now, id),
            Timer::Resend(id) => self.resend_allocation(now, id),
            Timer::InUse(id) => self.uses_not_told(now, id),
            Timer::Restore(unit) => self.restore_due(now, unit),
            Timer::Purge => self.purge_due(now),
            Timer::LeaseQuery(id) => self.query_over(now, id),
            Timer::Settle => self.settle_late(now),
            Timer::LeaseRound | Timer::LeaseRetry | Timer::LeaseRenew | Timer::LeaseEnd => {
                self.on_lease_timer(now, timer);
            }
            Timer::LeaseIdle => self.session_idle(now),
        }
    }

    /// Takes in what the sessions have to say, then does what follows from it.
    pub(super) fn pump(&mut self, now: Time) {
        loop {
            if let Some(event) = self.link.poll_event() {
                self.on_link_event(now, event);
            } else if let Some(event) = self.hub.poll_event() {
                self.on_hub_event(now, event);
            } else if self.follow_voter(now) {
                // It may have more.
            } else if let Some((token, reply)) = self.applies.next_heard() {
                self.apply_heard(now, token, reply);
            } else {
                if self.boot.is_stopped() {
                    return;
                }
                self.step_boot(now);
                self.seal(now);
                if !self.applies.has_heard() {
                    return;
                }
            }
        }
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
                if self.voter_reply(now, guid, command, status, &body)
                    || self.use_reply(now, guid, command, status, &body)
                {
                } else if self.peers.contains_key(&guid) {
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

    /// What was told so.
    pub(super) fn warned(&self) -> impl Iterator<Item = &String> {
        self.warned.iter()
    }

    pub(super) fn reply(&mut self, token: u64, reply: AdminReply) {
        let Some(reply) = self.applies.hear(token, reply) else {
            return;
        };
        self.act(AgentAction::AdminReply {
            token,
            reply: Box::new(reply),
        });
    }

    /// When to poll next at an `interval`. Long intervals end when keep-alives are due: what is not
    /// urgent is asked together, with one awakening.
    pub(super) fn next_poll(&mut self, now: Time, interval: Duration) -> Time {
        let at = now + self.spread(interval);
        if interval < KEEPALIVE_INTERVAL {
            return at;
        }
        Steps::of(self.config.guid).next(at)
    }

    /// An interval with a spread of a tenth, so that hosts do not poll in step.
    pub(super) fn spread(&mut self, interval: Duration) -> Duration {
        let nanos = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX / 2);
        let tenth = nanos / 10;
        Duration::from_nanos(nanos - tenth + self.rng.u64(0..=tenth.saturating_mul(2)))
    }
}
