//! A host's or unit's link to fabric services: finds them, registers, follows the membership list.
//!
//! Pure: time comes in, frames and events come out. After any call that takes `now`, drain
//! [`FabricLink::poll_transmit`] and [`FabricLink::poll_event`] and ask [`FabricLink::deadline`].
//! The link never gives up and never ends by itself.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

mod tables;

pub use super::facts::{Facts, LinkConfig, LinkEvent, MembershipList};
use super::facts::{Purpose, Standing};
use super::follow::{Follower, Next};
use super::search::{Search, Wish};
use super::service::PAGE_BYTES;
use super::telling::Tells;
use crate::session::{Client, ClientConfig, ClientEvent, Request};
use crate::wire::kind::{Event, Role};
use crate::wire::message::{
    Discover, Here, MembershipRequest, Register, Registered, UnitOwnership,
};
use crate::wire::{
    ClusterName, CommandId, DropReason, Epoch, FABRIC_MULTICAST, Flags, Guid, Header, Incarnation,
    IocNumber, IodNumber, Kind, Mac, ObservationStamp, Status, Time, Wire,
};

/// How long chosen fabric services may take to answer a connect before others are looked for.
pub const CONNECT_PATIENCE: Duration = Duration::from_secs(1);
/// How often a pending or refused entity registers again.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often a member registers again, in case a notification was lost.
pub const RENEW_INTERVAL: Duration = Duration::from_secs(30);
/// The least time between two registrations.
pub const REGISTER_SPACING: Duration = Duration::from_millis(20);
/// How long to wait while a list changes faster than it can be read.
pub const UNSTABLE_PAUSE: Duration = Duration::from_millis(100);
/// Commands to have outstanding.
pub const CREDITS: u16 = 16;

/// The link to fabric services.
#[derive(Debug)]
pub struct FabricLink {
    config: LinkConfig,
    rng: fastrand::Rng,
    started: bool,
    closed: bool,
    search: Search,
    ask: bool,
    rounds: u64,
    /// The fabric services that the client is for.
    chosen: Guid,
    pub(super) client: Option<Client>,
    sessions: u64,
    give_up_at: Option<Time>,
    /// Whom we are connected to.
    up: Option<(Guid, Incarnation)>,
    standing: Standing,
    cluster: ClusterName,
    /// Whether this connection's registration was answered with a cluster.
    pub(super) registered: bool,
    /// Whether the cluster's table may be asked for.
    tables_open: bool,
    register_due: Option<Time>,
    registered_at: Option<Time>,
    follower: Follower,
    tells: Tells,
    pub(super) waiting: BTreeMap<CommandId, Purpose>,
    pub(super) events: VecDeque<LinkEvent>,
}

impl FabricLink {
    /// A link that starts to search at its first [`FabricLink::tick`].
    pub fn new(config: LinkConfig, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        Self {
            config,
            started: false,
            closed: false,
            search: Search::idle(),
            ask: false,
            rounds: 0,
            chosen: Guid::NIL,
            client: None,
            // Another machine with our GUID draws another number: that is how it is told from us.
            sessions: u64::from(rng.u32(1..)) << 16,
            rng,
            give_up_at: None,
            up: None,
            standing: Standing::Unknown,
            cluster: ClusterName::NONE,
            registered: false,
            tables_open: false,
            register_due: None,
            registered_at: None,
            follower: Follower::default(),
            tells: Tells::default(),
            waiting: BTreeMap::new(),
            events: VecDeque::new(),
        }
    }

    /// Whether a frame with this header is the link's ([`FabricLink::handle`]).
    pub fn owns(&self, header: &Header) -> bool {
        self.client.as_ref().is_some_and(|c| c.owns(header))
    }

    /// Takes a frame that the link owns.
    pub fn handle(
        &mut self,
        now: Time,
        src: Mac,
        header: &Header,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let client = self.client.as_mut().ok_or(DropReason::Unexpected)?;
        let done = client.handle(now, src, header, payload);
        self.proceed(now);
        done
    }

    /// Takes the body of a here frame.
    pub fn handle_here(&mut self, now: Time, src: Mac, payload: &[u8]) -> Result<(), DropReason> {
        if src.is_multicast() || src == Mac::default() {
            return Err(DropReason::Source);
        }
        let here = Here::from_body(payload).map_err(|_| DropReason::Body)?;
        self.search.answer(now, here.fabric, src);
        Ok(())
    }

    /// Does what time demands.
    pub fn tick(&mut self, now: Time) {
        if self.closed {
            if let Some(client) = &mut self.client {
                client.tick(now);
            }
            return;
        }
        if !self.started {
            self.started = true;
            match self.config.fabric_mac {
                Some(mac) => self.choose(now, Guid::NIL, mac),
                None => self.search.start(now, Guid::NIL),
            }
        }
        if let Some(client) = &mut self.client {
            client.tick(now);
        }
        self.proceed(now);
    }

    /// When [`FabricLink::tick`] is due.
    pub fn deadline(&self) -> Option<Time> {
        let client = self.client.as_ref().and_then(Client::deadline);
        if self.closed {
            return client;
        }
        if !self.started {
            return Some(Time::ZERO);
        }
        let mut all = vec![client, self.search.deadline(), self.give_up_at];
        if self.up.is_some() {
            all.push(self.register_due);
            if self.registered {
                all.push(self.follower.due);
                all.push(self.tells.deadline());
            }
        }
        all.into_iter().flatten().min()
    }

    /// Appends one frame to `out` and says where to; `None` where there is none.
    pub fn poll_transmit(&mut self, now: Time, out: &mut Vec<u8>) -> Option<Mac> {
        if std::mem::take(&mut self.ask) {
            self.rounds += 1;
            let discover = Discover {
                asker: self.config.local,
                role: self.config.role,
            };
            let header = Header {
                command: CommandId(self.rounds),
                ..Header::new(Kind::Discover)
            };
            header.emit_whole(&discover.to_body(), out);
            return Some(FABRIC_MULTICAST);
        }
        self.client.as_mut()?.poll_transmit(now, out)
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    /// Registers again with other facts.
    pub fn update(&mut self, now: Time, facts: Facts) {
        self.config.facts = facts;
        self.register_soon(now);
        self.proceed(now);
    }

    /// Asks for the membership list now.
    pub fn poll_now(&mut self, now: Time) {
        self.read_soon(now);
        self.proceed(now);
    }

    /// Changes how often hosts ask for their membership list.
    pub fn set_poll(&mut self, now: Time, poll: Duration) {
        self.config.poll = poll;
        self.follower.due = self.follower.due.map(|due| due.min(now + poll));
    }

    /// Tells fabric services who owns a unit, until they know (Fig. 3, 312). A smaller epoch than
    /// one that waits already is ignored.
    pub fn tell_unit_ownership(&mut self, now: Time, ownership: UnitOwnership) {
        self.tells.add(now, ownership);
        self.proceed(now);
    }

    /// Unit ownerships that fabric services have not taken yet.
    pub fn untold_count(&self) -> usize {
        self.tells.len()
    }

    /// Whether the link is connected.
    pub fn is_up(&self) -> bool {
        self.up.is_some()
    }

    /// The fabric services connected to.
    pub fn fabric(&self) -> Option<Guid> {
        self.up.map(|(fabric, _)| fabric)
    }

    /// Our cluster as last heard, none before and while pending.
    pub fn cluster(&self) -> ClusterName {
        self.cluster
    }

    /// Which assignment made that our cluster, 0 where none did.
    pub const fn assignment(&self) -> u64 {
        match self.standing {
            Standing::Assigned(_, assignment) => assignment,
            _ => 0,
        }
    }

    /// The last whole membership list.
    pub fn members(&self) -> Option<&MembershipList> {
        self.follower.list()
    }

    /// Says goodbye to fabric services; the link stays silent afterwards.
    pub fn close(&mut self, now: Time) {
        self.closed = true;
        self.ask = false;
        self.search.stop();
        if let Some(client) = &mut self.client {
            client.close(now);
        }
    }

    /// Does everything that can be done now.
    fn proceed(&mut self, now: Time) {
        if self.closed {
            return;
        }
        while let Some(event) = self.client.as_mut().and_then(Client::poll_event) {
            self.client_event(now, event);
        }
        if self.give_up_at.is_some_and(|at| at <= now) {
            self.give_up_at = None;
            self.search.start(now, self.chosen);
        }
        while let Some(wish) = self.search.poll(now, self.rng.f64()) {
            match wish {
                Wish::Ask => self.ask = true,
                Wish::Choose(fabric, mac) => self.choose(now, fabric, mac),
            }
        }
        if self.up.is_none() {
            return;
        }
        let due = |at: Option<Time>| at.is_some_and(|at| at <= now);
        if due(self.register_due) {
            self.register(now);
        }
        if self.registered && due(self.follower.due) && !self.follower.is_reading() {
            let request = self.follower.start();
            self.read(now, request);
        }
        if self.registered {
            self.tell(now);
        }
    }

    /// Connects to fabric services; a session with the same ones goes on.
    fn choose(&mut self, now: Time, fabric: Guid, mac: Mac) {
        self.search.stop();
        if self.config.fabric_mac.is_none() {
            self.give_up_at = Some(now + CONNECT_PATIENCE);
        }
        if self.client.is_none() || self.chosen != fabric {
            self.drop_commands();
            self.sessions += 1;
            let config = ClientConfig {
                local: self.config.local,
                incarnation: self.config.incarnation,
                role: self.config.role,
                cluster: ClusterName::NONE,
                session: self.sessions,
                remote: fabric,
                ioc: IocNumber(0),
                service: false,
                mtu: self.config.mtu,
                credits: CREDITS,
            };
            self.client = Some(Client::new(config, self.rng.u64(..)));
            self.chosen = fabric;
        }
        if let Some(client) = &mut self.client {
            client.connect(now, mac);
        }
    }

    fn client_event(&mut self, now: Time, event: ClientEvent) {
        match event {
            ClientEvent::Connected {
                responder,
                incarnation,
                resumed,
            } => self.connected(now, (responder, incarnation), resumed),
            ClientEvent::Lost => {
                self.unregister();
                self.fail_finds();
                if self.up.take().is_some() {
                    self.events.push_back(LinkEvent::Down);
                }
                if self.config.fabric_mac.is_none() {
                    self.search.start(now, Guid::NIL);
                }
            }
            ClientEvent::Refused(status) => {
                if self.up.is_none() {
                    self.stand(Standing::Refused(status));
                }
            }
            ClientEvent::Reply {
                command,
                status,
                body,
            } => match self.waiting.remove(&command) {
                Some(Purpose::Register) => self.register_answered(now, status, &body),
                Some(Purpose::Membership) => self.page(now, status, &body),
                Some(Purpose::Tell(unit, epoch)) => {
                    self.tells.answered(now, unit, epoch, status);
                }
                Some(Purpose::Table) => self.events.push_back(LinkEvent::Table {
                    command,
                    status,
                    body,
                }),
                Some(Purpose::Find(number)) => self.host_found(number, status, &body),
                None => {}
            },
            ClientEvent::Notified(notification) => {
                if notification.event != Event::MembershipChanged {
                    return;
                }
                if self.registered && self.config.role == Role::Host {
                    self.read_soon(now);
                } else {
                    self.register_soon(now);
                }
            }
        }
    }

    fn connected(&mut self, now: Time, responder: (Guid, Incarnation), resumed: bool) {
        self.search.stop();
        self.give_up_at = None;
        let same = self.up == Some(responder);
        if !resumed || !same {
            self.follower.forget_version();
        }
        if !same {
            self.up = Some(responder);
            self.events.push_back(LinkEvent::Up {
                fabric: responder.0,
                incarnation: responder.1,
            });
        }
        // What was asked over the connection before is asked again, after the registration.
        self.drop_commands();
        self.registered_at = None;
        self.register_soon(now);
    }

    /// Gives up every outstanding command; registration, reading and telling start afresh.
    fn drop_commands(&mut self) {
        self.fail_finds();
        for (command, _) in std::mem::take(&mut self.waiting) {
            if let Some(client) = &mut self.client {
                client.cancel(command);
            }
        }
        self.unregister();
        self.follower.stop();
        self.tells.restart();
    }

    pub(super) fn submit(
        &mut self,
        now: Time,
        kind: Kind,
        body: Vec<u8>,
        expect: usize,
    ) -> Option<CommandId> {
        let request = Request {
            kind,
            flags: Flags::NONE,
            iod: IodNumber(0),
            epoch: Epoch(0),
            body,
            expect,
        };
        self.client.as_mut()?.submit(now, request).ok()
    }

    fn register_soon(&mut self, now: Time) {
        let soonest = self.registered_at.map_or(now, |at| at + REGISTER_SPACING);
        self.register_due = Some(soonest.max(now));
    }

    fn register(&mut self, now: Time) {
        if self.waiting.values().any(|p| *p == Purpose::Register) {
            // Its answer comes first; what has changed since is registered then.
            self.register_due = Some(now + RETRY_INTERVAL);
            return;
        }
        let facts = &self.config.facts;
        let register = Register {
            guid: self.config.local,
            entity: self.config.entity,
            macs: facts.macs.clone(),
            name: facts.name.clone(),
            observed: ObservationStamp {
                incarnation: self.config.incarnation,
                change: facts.change,
            },
            cluster: facts.cluster,
            placement: facts.placement.clone(),
        };
        self.registered_at = Some(now);
        self.register_due = None;
        match self.submit(now, Kind::Register, register.to_body(), 64) {
            Some(command) => {
                self.waiting.insert(command, Purpose::Register);
            }
            None => self.register_due = Some(now + RETRY_INTERVAL),
        }
    }

    fn register_answered(&mut self, now: Time, status: Status, body: &[u8]) {
        // A registration that fell due meanwhile (other facts) comes at once.
        let again = self.register_due.take().is_some();
        let answer = match status {
            Status::Ok => Registered::from_body(body).map_err(|_| Status::BadRequest),
            other => Err(other),
        };
        let next = match answer {
            Ok(told) if !told.cluster.is_none() => {
                let cluster = told.cluster;
                if self.cluster != cluster {
                    self.cluster = cluster;
                    self.follower.forget_list();
                }
                self.registered = true;
                self.stand(Standing::Assigned(cluster, told.assignment));
                self.open_tables();
                self.read_soon(now);
                RENEW_INTERVAL
            }
            Ok(_) | Err(Status::Pending) => {
                self.unregister();
                self.cluster = ClusterName::NONE;
                self.stand(Standing::Pending);
                RETRY_INTERVAL
            }
            Err(status) => {
                self.unregister();
                self.stand(Standing::Refused(status));
                RETRY_INTERVAL
            }
        };
        self.register_due = Some(now + if again { REGISTER_SPACING } else { next });
    }

    fn stand(&mut self, standing: Standing) {
        if self.standing == standing {
            return;
        }
        self.standing = standing;
        self.events.extend(match standing {
            Standing::Unknown => None,
            Standing::Assigned(cluster, _) => Some(LinkEvent::Assigned(cluster)),
            Standing::Pending => Some(LinkEvent::Pending),
            Standing::Refused(status) => Some(LinkEvent::Refused(status)),
        });
    }

    /// Reads the list as soon as that is possible.
    fn read_soon(&mut self, now: Time) {
        if self.config.role != Role::Host {
            return;
        }
        if self.follower.is_reading() {
            self.follower.again = true;
        } else {
            self.follower.due = Some(now);
        }
    }

    fn read(&mut self, now: Time, request: MembershipRequest) {
        let expect = if request.known_version == 0 {
            PAGE_BYTES
        } else {
            64
        };
        match self.submit(now, Kind::Membership, request.to_body(), expect) {
            Some(command) => {
                self.waiting.insert(command, Purpose::Membership);
            }
            None => self.read_later(now, self.config.poll),
        }
    }

    fn read_later(&mut self, now: Time, pause: Duration) {
        self.follower.stop();
        self.follower.due = Some(now + pause);
    }

    fn page(&mut self, now: Time, status: Status, body: &[u8]) {
        if status != Status::Ok {
            self.read_later(now, self.config.poll);
            if matches!(
                status,
                Status::Pending | Status::WrongCluster | Status::NotReady
            ) {
                // We are no longer what we were registered as.
                self.unregister();
                self.register_soon(now);
            }
            return;
        }
        let pause = match self.follower.page(body) {
            Ok(Next::Ask(request)) => return self.read(now, request),
            Ok(Next::Whole(differs)) => {
                if let Some(list) = self.follower.list().filter(|_| differs) {
                    let list = LinkEvent::Members(list.clone());
                    self.events
                        .retain(|event| !matches!(event, LinkEvent::Members(_)));
                    self.events.push_back(list);
                }
                self.config.poll
            }
            Ok(Next::Unstable) => UNSTABLE_PAUSE,
            Ok(Next::Unchanged) => self.config.poll,
            Err(_) => {
                self.follower.forget_version();
                self.config.poll
            }
        };
        if self.follower.again {
            self.follower.again = false;
            self.follower.due = Some(now);
        } else {
            self.follower.due = Some(now + pause);
        }
    }

    fn tell(&mut self, now: Time) {
        for told in self.tells.due(now) {
            let command = self.submit(now, Kind::UnitOwnership, told.to_body(), 64);
            self.tells.sent(now, told.unit, command.is_some());
            if let Some(command) = command {
                let purpose = Purpose::Tell(told.unit, told.epoch);
                self.waiting.insert(command, purpose);
            }
        }
    }
}
