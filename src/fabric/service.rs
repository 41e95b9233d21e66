//! The fabric services' state machine: answers searches, registers hosts and units, hands out each
//! cluster's own list, takes unit ownership.
//!
//! Requests that arrive together are one transaction of the catalog. After any call that takes
//! `now`, drain [`Fabric::poll_transmit`] and [`Fabric::poll_event`] and ask [`Fabric::deadline`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::catalog::{Catalog, CatalogError, Snapshot};
use super::central::Central;
use super::directory::{AssignError, Changed, Directory, ResolveError};
use super::presence::Presence;
use super::report::{EntityView, FabricCounters, FabricEvent};
use super::requests::Asked;
use crate::session::{Counters, Server, ServerConfig, ServerEvent};
use crate::wire::kind::Event;
use crate::wire::message::{ConnectRequest, Discover, Here};
use crate::wire::{
    ClusterName, CommandId, ConnectionId, DropReason, EntityType, Guid, HEADER_LEN, Header,
    Incarnation, IocNumber, Kind, Mac, ObservationStamp, Status, Time, Wire,
};

/// The most connections at a time.
pub const MAX_CONNECTIONS: usize = 8192;
/// The most requests that wait for one transaction; more are answered busy.
pub const MAX_BATCH: usize = 1024;
/// The most searchers that wait for their answer; more search again.
pub const MAX_SEARCHERS: usize = 256;
/// The most events that wait to be polled; more are counted and lost.
pub const MAX_EVENTS: usize = 1024;
/// The most bytes of members in one reply; longer lists are read in pages.
pub const PAGE_BYTES: usize = 32 << 10;
/// Commands that an initiator may have outstanding.
pub const CREDITS: u16 = 16;
/// The least time between two notifications of one cluster; see also [`NOTIFY_SPACING_PER_HOST`].
pub const NOTIFY_SPACING: Duration = Duration::from_millis(20);
/// What each host of a cluster adds to the least time between two notifications: every one of
/// them fetches the list.
pub const NOTIFY_SPACING_PER_HOST: Duration = Duration::from_millis(1);
/// How often a twin is worth a line in the log.
pub const TWIN_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What becomes of a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// It is pending until an administrator assigns a cluster.
    #[default]
    Pending,
    /// It joins the cluster that its configuration names; pending where that names none.
    AutoJoin,
}

impl Policy {
    /// The word in configuration and output.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::AutoJoin => "auto-join",
        }
    }
}

/// What fabric services need to know.
#[derive(Debug, Clone)]
pub struct FabricConfig {
    /// Who we are.
    pub guid: Guid,
    /// Our incarnation.
    pub incarnation: Incarnation,
    /// What becomes of newcomers.
    pub policy: Policy,
    /// The most bytes of a frame behind its Ethernet header.
    pub mtu: u16,
}

/// Fabric services over a catalog.
#[derive(Debug)]
pub struct Fabric<C> {
    pub(super) config: FabricConfig,
    pub(super) directory: Directory<C>,
    pub(super) server: Server,
    pub(super) presence: Presence,
    pub(super) central: Central,
    pub(super) batch: Vec<Asked>,
    searchers: VecDeque<Mac>,
    refusals: VecDeque<(Mac, CommandId)>,
    /// Clusters whose hosts do not know yet that their list changed.
    stale: BTreeSet<ClusterName>,
    /// When a cluster's hosts may be notified again.
    quiet_until: BTreeMap<ClusterName, Time>,
    events: VecDeque<FabricEvent>,
    pub(super) counters: FabricCounters,
    drops: Counters,
}

impl<C: Catalog> Fabric<C> {
    /// Fabric services that know what the catalog holds.
    pub fn new(config: FabricConfig, mut catalog: C, seed: u64) -> Result<Self, CatalogError> {
        let server = Server::new(
            ServerConfig {
                local: config.guid,
                incarnation: config.incarnation,
                cluster: None,
                service: false,
                mtu: config.mtu,
                credits: CREDITS,
                max_connections: MAX_CONNECTIONS,
            },
            seed,
        );
        let central = Central {
            tables: catalog.load_tables()?,
            ..Central::default()
        };
        Ok(Self {
            config,
            directory: Directory::load(catalog)?,
            server,
            presence: Presence::default(),
            central,
            batch: Vec::new(),
            searchers: VecDeque::new(),
            refusals: VecDeque::new(),
            stale: BTreeSet::new(),
            quiet_until: BTreeMap::new(),
            events: VecDeque::new(),
            counters: FabricCounters::default(),
            drops: Counters::default(),
        })
    }

    /// Takes a frame of the management EtherType; what is wrong with it is counted and returned.
    pub fn handle(&mut self, now: Time, src: Mac, frame: &[u8]) -> Result<(), DropReason> {
        let done = self.take(now, src, frame);
        if let Err(reason) = done {
            self.drops.add(reason);
        }
        done
    }

    fn take(&mut self, now: Time, src: Mac, frame: &[u8]) -> Result<(), DropReason> {
        let (header, payload) = Header::parse(frame, false)?;
        if src.is_multicast() || src == Mac::default() {
            return Err(DropReason::Source);
        }
        match header.kind {
            Kind::Discover => return self.search(src, payload),
            Kind::Here => return Err(DropReason::Unexpected),
            Kind::Connect if !header.is_reply() => self.door(now, src, &header, payload)?,
            _ => {}
        }
        self.server.handle(now, src, &header, payload)?;
        if let Some(seat) = self.presence.seat(header.connection) {
            let macs = self.directory.get(seat.guid).map_or(&[][..], |e| &e.macs);
            self.presence.heard(now, header.connection, src, macs);
        }
        self.drain_server(now, src);
        Ok(())
    }

    fn search(&mut self, src: Mac, payload: &[u8]) -> Result<(), DropReason> {
        Discover::from_body(payload).map_err(|_| DropReason::Body)?;
        if self.searchers.len() >= MAX_SEARCHERS {
            return Err(DropReason::Full);
        }
        self.searchers.push_back(src);
        Ok(())
    }

    /// Looks at who connects before the session does: a twin must not disturb the first's session.
    fn door(
        &mut self,
        now: Time,
        src: Mac,
        header: &Header,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let connect = ConnectRequest::from_body(payload).map_err(|_| DropReason::Body)?;
        let guid = connect.initiator;
        let session = (connect.incarnation, connect.session);
        if let Some(entity) = self.directory.get(guid)
            && let Some(alive) = self
                .presence
                .twin(now, guid, src, Some(session), &entity.macs)
        {
            self.refuse_twin(now, guid, alive, src);
            if self.refusals.len() < MAX_SEARCHERS {
                self.refusals.push_back((src, header.command));
            }
            return Err(DropReason::Source);
        }
        self.presence.knock(guid, session);
        Ok(())
    }

    pub(super) fn refuse_twin(&mut self, now: Time, guid: Guid, alive: Mac, refused: Mac) {
        self.counters.twins += 1;
        if self.presence.warn(now, guid, TWIN_LOG_INTERVAL) {
            self.event(FabricEvent::Twin {
                guid,
                alive,
                refused,
            });
        }
    }

    fn drain_server(&mut self, now: Time, src: Mac) {
        while let Some(event) = self.server.poll_event() {
            match event {
                ServerEvent::Opened {
                    connection, peer, ..
                } => self.presence.open(connection, peer.guid),
                ServerEvent::Closed { connection } => {
                    self.presence.close(connection);
                    self.central.deposits.close(connection);
                }
                ServerEvent::Request {
                    connection,
                    command,
                    kind,
                    peer,
                    body,
                    ..
                } => {
                    if self.batch.len() < MAX_BATCH {
                        self.batch.push(Asked {
                            connection,
                            command,
                            kind,
                            peer,
                            src,
                            body,
                        });
                    } else {
                        self.refuse(now, connection, command, Status::Busy);
                    }
                }
            }
        }
    }

    pub(super) fn refuse(
        &mut self,
        now: Time,
        connection: ConnectionId,
        command: CommandId,
        status: Status,
    ) {
        self.counters.refused += u64::from(status != Status::Pending);
        self.server
            .reply(now, connection, command, status, Vec::new());
    }

    /// Makes what is staged durable; `false` when nothing was changed because that failed.
    pub(super) fn commit(&mut self, now: Time) -> bool {
        match self.try_commit(now) {
            Ok(()) => true,
            Err(error) => {
                self.event(FabricEvent::NotPersisted(error));
                false
            }
        }
    }

    fn try_commit(&mut self, now: Time) -> Result<(), CatalogError> {
        if !self.directory.is_staged() {
            self.directory.roll_back();
            return Ok(());
        }
        match self.directory.commit() {
            Ok(changed) => {
                self.counters.commits += 1;
                self.drop_tables(&changed.clusters);
                self.tell(now, changed);
                Ok(())
            }
            Err(error) => {
                self.counters.failed_commits += 1;
                Err(error)
            }
        }
    }

    /// Tells those whom a change concerns.
    fn tell(&mut self, now: Time, changed: Changed) {
        self.stale.extend(changed.clusters);
        for guid in changed.reassigned {
            let to: Vec<_> = self
                .presence
                .seats()
                .filter(|(_, seat)| seat.guid == guid)
                .map(|(connection, _)| connection)
                .collect();
            for connection in to {
                self.notify(now, connection);
            }
            if self.directory.get(guid).is_none() {
                self.presence.forget(guid);
            }
        }
        self.tell_hosts(now);
    }

    /// Notifies the hosts of every cluster whose list changed and whose quiet time is over.
    fn tell_hosts(&mut self, now: Time) {
        self.quiet_until.retain(|_, until| *until > now);
        let due: Vec<_> = self
            .stale
            .iter()
            .filter(|cluster| !self.quiet_until.contains_key(cluster))
            .copied()
            .collect();
        for cluster in due {
            self.stale.remove(&cluster);
            let is_host = |guid| {
                self.directory
                    .get(guid)
                    .is_some_and(|e| e.entity == EntityType::Host)
            };
            let to: Vec<_> = self
                .presence
                .seats()
                .filter(|(_, seat)| seat.told == cluster && is_host(seat.guid))
                .map(|(connection, _)| connection)
                .collect();
            let hosts = u32::try_from(to.len()).unwrap_or(u32::MAX);
            let quiet = NOTIFY_SPACING.max(NOTIFY_SPACING_PER_HOST * hosts);
            self.quiet_until.insert(cluster, now + quiet);
            for connection in to {
                self.notify(now, connection);
            }
        }
    }

    fn notify(&mut self, now: Time, connection: ConnectionId) {
        self.counters.notifications += 1;
        let stamp = ObservationStamp {
            incarnation: self.config.incarnation,
            change: self.directory.state().version,
        };
        self.server.notify(
            now,
            connection,
            Event::MembershipChanged,
            IocNumber(0),
            stamp,
        );
    }

    /// Does what time demands.
    pub fn tick(&mut self, now: Time) {
        self.server.tick(now);
        // Events of time have no sender; requests do not come from it.
        self.drain_server(now, Mac::default());
        self.work(now);
        self.tell_hosts(now);
    }

    /// When [`Fabric::tick`] is due.
    pub fn deadline(&self) -> Option<Time> {
        let told = self.stale.iter().map(|c| {
            let until = self.quiet_until.get(c);
            until.copied().unwrap_or(Time::ZERO)
        });
        let waiting = (!self.batch.is_empty()).then_some(Time::ZERO);
        told.chain(self.server.deadline()).chain(waiting).min()
    }

    /// Appends one frame to `out` and says where to; `None` where there is none.
    pub fn poll_transmit(&mut self, now: Time, out: &mut Vec<u8>) -> Option<Mac> {
        self.work(now);
        if let Some(searcher) = self.searchers.pop_front() {
            self.counters.searches += 1;
            let here = Here {
                fabric: self.config.guid,
                incarnation: self.config.incarnation,
            };
            Header::new(Kind::Here).emit_whole(&here.to_body(), out);
            return Some(searcher);
        }
        if let Some((twin, command)) = self.refusals.pop_front() {
            let header = Header {
                status: Status::WrongIdentity,
                command,
                ..Header::new(Kind::Refused)
            };
            header.emit_whole(&[], out);
            return Some(twin);
        }
        self.server.poll_transmit(now, out)
    }

    /// The next thing for the log.
    pub fn poll_event(&mut self) -> Option<FabricEvent> {
        self.events.pop_front()
    }

    pub(super) fn event(&mut self, event: FabricEvent) {
        if self.events.len() < MAX_EVENTS {
            self.events.push_back(event);
        } else {
            self.counters.lost_events += 1;
        }
    }

    /// The date and time, for people, that goes into the next changes.
    pub fn set_label(&mut self, label: &str) {
        self.directory.set_label(label);
    }

    /// Changes what becomes of newcomers; pending ones are looked at when they register again.
    pub fn set_policy(&mut self, policy: Policy) {
        self.config.policy = policy;
    }

    /// What the fabric services were made from.
    pub const fn config(&self) -> &FabricConfig {
        &self.config
    }

    /// The database as it is.
    pub const fn snapshot(&self) -> &Snapshot {
        self.directory.state()
    }

    /// The catalog behind it.
    pub const fn catalog_mut(&mut self) -> &mut C {
        self.directory.catalog_mut()
    }

    /// Every entity with what is known about it at the moment, by ascending GUID.
    pub fn entities(&self, now: Time) -> impl Iterator<Item = EntityView<'_>> + '_ {
        let connected = self.presence.connected(now);
        let entities = self.directory.state().entities.values();
        entities.map(move |entity| EntityView {
            entity,
            connected: connected.contains(&entity.guid),
            heard: self.presence.last_heard(entity.guid),
        })
    }

    /// Counts of what was done.
    pub const fn counters(&self) -> &FabricCounters {
        &self.counters
    }

    /// Dropped frames by reason.
    pub const fn drops(&self) -> &Counters {
        &self.drops
    }

    /// The entity that `text` names: GUID or at least 8 of its first digits, MAC address, or name.
    pub fn resolve(&self, text: &str) -> Result<Guid, ResolveError> {
        self.directory.resolve(text)
    }

    /// An administrator assigns an entity to a cluster. Returns the cluster before.
    ///
    /// # Panics
    /// When `cluster` is none: removing is [`Fabric::remove`]'s.
    pub fn assign(
        &mut self,
        now: Time,
        guid: Guid,
        cluster: ClusterName,
    ) -> Result<ClusterName, AssignError> {
        assert!(!cluster.is_none(), "an assignment names a cluster");
        self.work(now);
        let from = self.directory.cluster_of(guid);
        self.directory.assign(guid, cluster)?;
        self.commit_admin(now)?;
        if from != cluster {
            self.event(FabricEvent::Assigned {
                guid,
                from,
                to: cluster,
            });
        }
        Ok(from)
    }

    /// An administrator removes an entity; if it lives, it registers again like a newcomer.
    pub fn remove(&mut self, now: Time, guid: Guid) -> Result<(), AssignError> {
        self.work(now);
        self.directory.remove(guid)?;
        self.commit_admin(now)?;
        self.event(FabricEvent::Removed(guid));
        Ok(())
    }

    fn commit_admin(&mut self, now: Time) -> Result<(), AssignError> {
        Ok(self.try_commit(now)?)
    }
}

const _: () = assert!(PAGE_BYTES + HEADER_LEN < crate::wire::MAX_MESSAGE_BYTES);
