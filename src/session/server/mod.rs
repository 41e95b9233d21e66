//! The responder's end of sessions: each command executed at most once, answers kept and repeated.

mod answer;
mod connect;
mod event;
mod paths;
mod session;
mod share;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::limits::{
    CONNECTION_TTL, HALF_OPEN_TTL, MAX_CONTROL_FRAMES, MAX_CREDITS, MAX_EXECUTING,
    MAX_SERVER_BYTES, MAX_SESSION_BYTES, PATH_MTU_START, SESSION_TTL,
};
use crate::wire::header::MIN_MTU;
use crate::wire::kind::Event;
use crate::wire::message::{Missing, Notification, PathProbe};
use crate::wire::{
    ClusterName, CommandId, ConnectionId, DropReason, Flags, Guid, Header, Hop, IocNumber, Kept,
    Kind, MAX_MESSAGE_BYTES, Mac, ObservationStamp, Outgoing, Status, Tail, Time, Wire,
};
pub use event::{Asked, Peer, ServerConfig, ServerEvent};
use session::{Budget, Session, Taken};
use share::Share;

use super::numbers::NumberMap;
use super::spares::Spares;

/// A command handed out and not answered.
#[derive(Debug)]
struct Executing {
    slot: usize,
    uid: u64,
    key: (Guid, IocNumber),
}

/// The responder's end of all sessions on one EtherType.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    /// Other clusters that are served, each by connections of its own.
    guests: BTreeSet<ClusterName>,
    rng: fastrand::Rng,
    sessions: Vec<Option<Box<Session>>>,
    free: Vec<usize>,
    next_uid: u64,
    by_connection: BTreeMap<ConnectionId, usize>,
    /// The session of an initiator with a controller: one.
    by_key: BTreeMap<(Guid, IocNumber), usize>,
    /// Nothing depends on its order, and it is looked up twice for every command.
    executing: NumberMap<(ConnectionId, CommandId), Executing>,
    /// How many commands of sessions that are gone are still being executed.
    draining: BTreeMap<(Guid, IocNumber), usize>,
    /// Bytes that all sessions hold.
    held: usize,
    wakes: BTreeSet<(Time, usize)>,
    /// Sessions with something to send, in turn.
    ready: VecDeque<usize>,
    control: VecDeque<(Hop, Header, Vec<u8>)>,
    /// What the own NICs take, by number.
    nics: Vec<u16>,
    events: VecDeque<ServerEvent>,
    relieved_at: Time,
    share: Share,
    spares: Spares,
    /// Sessions with replies that are sent from where somebody lends them.
    lent: Vec<usize>,
}

impl Server {
    /// A server without sessions. `seed` makes its connection numbers.
    pub fn new(config: ServerConfig, seed: u64) -> Self {
        // The incarnation makes the numbers of each start different, whatever the seed.
        let mut mix = config.local.0.to_be_bytes().to_vec();
        mix.extend_from_slice(&config.incarnation.0.to_be_bytes());
        mix.extend_from_slice(&seed.to_be_bytes());
        let most = if config.service {
            u16::MAX
        } else {
            PATH_MTU_START
        };
        let mtu = config.mtu.clamp(MIN_MTU, most);
        Self {
            guests: BTreeSet::new(),
            rng: fastrand::Rng::with_seed(xxhash_rust::xxh3::xxh3_64(&mix)),
            sessions: Vec::new(),
            free: Vec::new(),
            next_uid: 0,
            by_connection: BTreeMap::new(),
            by_key: BTreeMap::new(),
            executing: NumberMap::default(),
            draining: BTreeMap::new(),
            held: 0,
            wakes: BTreeSet::new(),
            ready: VecDeque::new(),
            control: VecDeque::new(),
            nics: vec![mtu],
            events: VecDeque::new(),
            relieved_at: Time::ZERO,
            share: Share::default(),
            spares: Spares::default(),
            lent: Vec::new(),
            config: ServerConfig {
                mtu,
                credits: config.credits.clamp(1, MAX_CREDITS),
                ..config
            },
        }
    }

    /// What it was made from.
    pub const fn config(&self) -> &ServerConfig {
        &self.config
    }

    /// The most bytes of a frame that the own NICs take, by number. At first there is one NIC.
    pub fn set_nics(&mut self, mtus: &[u16]) {
        self.nics = mtus.iter().map(|mtu| (*mtu).max(MIN_MTU)).collect();
        for session in self.sessions.iter_mut().flatten() {
            session.limit_paths(&self.nics);
        }
    }

    /// Serves another cluster from now on; sessions of others are closed.
    pub fn set_cluster(&mut self, cluster: Option<ClusterName>) {
        self.set_clusters(cluster, BTreeSet::new());
    }

    /// Serves a cluster, and `guests` besides, from now on; sessions of others are closed. Each
    /// connection is of one cluster and is answered in its name.
    pub fn set_clusters(&mut self, cluster: Option<ClusterName>, guests: BTreeSet<ClusterName>) {
        self.config.cluster = cluster;
        self.guests = guests;
        if cluster.is_none() {
            return;
        }
        let others: Vec<usize> = self
            .by_key
            .values()
            .copied()
            .filter(|slot| {
                let session = self.sessions[*slot].as_ref();
                session.is_some_and(|s| !self.serves(s.peer.cluster))
            })
            .collect();
        for slot in others {
            self.remove(slot);
        }
    }

    /// Whether connections of a cluster are taken.
    pub(super) fn serves(&self, cluster: ClusterName) -> bool {
        self.config.cluster.is_none_or(|own| own == cluster) || self.guests.contains(&cluster)
    }

    /// Takes a frame; a command that it completes is reported by [`ServerEvent::Request`].
    pub fn handle(
        &mut self,
        now: Time,
        src: impl Into<Hop>,
        header: &Header,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        if let Some(asked) = self.take(now, src, header, payload)? {
            let (connection, command) = (asked.connection, asked.command);
            let (kind, flags, epoch, peer) = (asked.kind, asked.flags, asked.epoch, asked.peer);
            let (ioc, iod) = (asked.ioc, asked.iod);
            let body = self.hold(asked);
            self.events.push_back(ServerEvent::Request {
                connection,
                command,
                kind,
                flags,
                ioc,
                iod,
                epoch,
                peer,
                body,
            });
        }
        Ok(())
    }

    /// Takes a frame, and gives the command that it completes.
    pub fn take<'a>(
        &mut self,
        now: Time,
        src: impl Into<Hop>,
        header: &Header,
        payload: &'a [u8],
    ) -> Result<Option<Asked<'a>>, DropReason> {
        let (src, kind) = (src.into(), header.kind);
        let ours = kind.is_request()
            || matches!(
                kind,
                Kind::Connect | Kind::Disconnect | Kind::Probe | Kind::NotifyAck | Kind::Path
            );
        if header.is_reply() || !ours {
            return Err(DropReason::Unexpected);
        }
        if kind == Kind::Connect {
            return self.on_connect(now, src, header, payload).map(|()| None);
        }
        let Some(&slot) = self.by_connection.get(&header.connection) else {
            if !matches!(kind, Kind::Disconnect | Kind::NotifyAck) {
                self.refuse(src, header, Status::UnknownConnection);
            }
            return Err(DropReason::Connection);
        };
        let Some(session) = self.sessions[slot].as_mut() else {
            return Err(DropReason::Connection);
        };
        if header.cluster != session.peer.cluster {
            return Err(DropReason::Cluster);
        }
        if header.ioc != session.ioc {
            return Err(DropReason::Inconsistent);
        }
        if kind == Kind::Disconnect {
            self.remove(slot);
            return Ok(None);
        }
        session.heard_at = session.heard_at.max(now);
        session.came_by(src, &self.nics);
        if !session.confirmed {
            session.confirmed = true;
            session.dormant = false;
            session.known = true;
            self.events.push_back(ServerEvent::Opened {
                connection: session.connection,
                ioc: session.ioc,
                peer: session.peer,
            });
        }
        let before = session.held;
        let result = if kind == Kind::NotifyAck {
            Notification::from_body(payload)
                .map(|note| {
                    session.on_notify_ack(&note);
                    None
                })
                .map_err(|_| DropReason::Body)
        } else {
            self.on_command(now, slot, header, payload)
        };
        self.charge(slot, before);
        self.look_after(slot);
        if matches!(result, Err(DropReason::Full)) {
            self.relieve(now);
        }
        result
    }

    /// Takes a frame about a command: a request, a probe or a keep-alive.
    fn on_command<'a>(
        &mut self,
        now: Time,
        slot: usize,
        header: &Header,
        payload: &'a [u8],
    ) -> Result<Option<Asked<'a>>, DropReason> {
        let cluster = self.cluster_word(slot);
        let Some(session) = self.sessions[slot].as_mut() else {
            return Err(DropReason::Connection);
        };
        let freed = session.raise_floor(header, &mut self.spares)?;
        let share = &mut self.share;
        if self.config.service && header.kind.is_request() {
            share.heard(now, &mut session.counted_in);
            session.share = share.credits(session.credits);
        }
        let budget = Budget {
            used: self.held - freed,
            max: MAX_SERVER_BYTES,
            session_max: MAX_SESSION_BYTES,
        };
        let (hop, mut answer) = (session.hop(), session.header(header.kind, cluster));
        answer.command = header.command;
        let taken = match header.kind {
            Kind::KeepAlive => {
                answer.flags = Flags::REPLY;
                self.push_control(hop, answer, Vec::new());
                return Ok(None);
            }
            Kind::Path => {
                let mut probe = PathProbe::from_body(payload).map_err(|_| DropReason::Body)?;
                probe.mtu = session.take_path_mtu(probe.mtu, &self.nics);
                answer.flags = Flags::REPLY;
                self.push_control(hop, answer, probe.to_body());
                return Ok(None);
            }
            Kind::Probe => {
                let missing = Missing::from_body(payload).map_err(|_| DropReason::Body)?;
                session.on_probe(now, header, &missing)?
            }
            _ if self.executing.len() >= MAX_EXECUTING => return Err(DropReason::Full),
            _ => session.on_request(now, header, payload, budget, &mut self.spares)?,
        };
        if let Taken::Complete(body) = &taken {
            share.complete(body.len(), std::mem::take(&mut session.lost));
        }
        match taken {
            Taken::Nothing => Ok(None),
            Taken::Tell(report) => {
                answer.kind = Kind::Progress;
                self.push_control(hop, answer, report.to_body());
                Ok(None)
            }
            Taken::Complete(body) => {
                let fua = header.flags.contains(Flags::FUA);
                Ok(Some(Asked {
                    connection: session.connection,
                    command: header.command,
                    kind: header.kind,
                    flags: if fua { Flags::FUA } else { Flags::NONE },
                    ioc: header.ioc,
                    iod: header.iod,
                    epoch: header.epoch,
                    peer: session.peer.guid,
                    cluster: session.peer.cluster,
                    body,
                    slot,
                }))
            }
        }
    }

    /// Keeps a command that is answered later, with [`Self::reply`]; gives its body.
    pub fn hold(&mut self, asked: Asked<'_>) -> Vec<u8> {
        if let Some(session) = self.sessions[asked.slot].as_ref() {
            let executing = Executing {
                slot: asked.slot,
                uid: session.uid,
                key: session.key(),
            };
            let command = (asked.connection, asked.command);
            self.executing.insert(command, executing);
        }
        match asked.body {
            Cow::Borrowed(body) => self.spares.copy(body),
            Cow::Owned(body) => body,
        }
    }

    /// Answers a command that was taken just now. A body over [`MAX_MESSAGE_BYTES`] becomes an empty one with
    /// [`Status::Unsupported`].
    pub fn answer(&mut self, asked: Asked<'_>, status: Status, body: impl Into<Kept>) {
        if let Cow::Owned(body) = asked.body {
            self.spares.give(body);
        }
        self.answer_in(asked.slot, asked.command, status, body.into());
    }

    fn answer_in(&mut self, slot: usize, command: CommandId, status: Status, body: Kept) {
        let (status, body) = if body.len() > MAX_MESSAGE_BYTES {
            (Status::Unsupported, Vec::new().into())
        } else {
            (status, body)
        };
        if let Some(session) = self.sessions[slot].as_mut() {
            let before = session.held;
            if body.lent().is_some() && !std::mem::replace(&mut session.has_lent, true) {
                self.lent.push(slot);
            }
            session.on_answer(command.0, status, body);
            self.charge(slot, before);
            self.look_after(slot);
        }
    }

    /// Answers a command. The answer belongs to the session: it is right also after a reconnect,
    /// and ignored when the session is gone. A body over [`MAX_MESSAGE_BYTES`] becomes an empty
    /// one with [`Status::Unsupported`].
    pub fn reply(
        &mut self,
        now: Time,
        connection: ConnectionId,
        command: CommandId,
        status: Status,
        body: impl Into<Kept>,
    ) {
        let _ = now;
        let Some(executing) = self.executing.remove(&(connection, command)) else {
            return;
        };
        let slot = executing.slot;
        let session = self.sessions[slot].as_ref();
        if session.is_some_and(|s| s.uid == executing.uid) {
            self.answer_in(slot, command, status, body.into());
        } else if let Some(count) = self.draining.get_mut(&executing.key) {
            *count -= 1;
            if *count == 0 {
                self.draining.remove(&executing.key);
            }
        }
    }

    /// Copies of replies what was lent for them, where `is_wanted` says so, and gives it back.
    pub fn take_back_lent(&mut self, is_wanted: impl Fn(&Tail) -> bool) {
        let spares = &mut self.spares;
        let sessions = &mut self.sessions;
        self.lent.retain(|slot| {
            let session = sessions[*slot].as_mut();
            session.is_some_and(|session| session.take_back_lent(&is_wanted, spares))
        });
    }

    /// A buffer of `len` bytes for a reply's body: whatever it holds has to be written over.
    pub fn take_buffer(&mut self, len: usize) -> Vec<u8> {
        self.spares.filled(len)
    }

    /// Takes a request's body back, to be used again.
    pub fn give_buffer(&mut self, buffer: Vec<u8>) {
        self.spares.give(buffer);
    }

    /// Tells an initiator that something changed; repeated until acknowledged, a few times. The
    /// latest of an event and controller replaces earlier ones.
    pub fn notify(
        &mut self,
        now: Time,
        connection: ConnectionId,
        event: Event,
        ioc: IocNumber,
        stamp: ObservationStamp,
    ) {
        let Some(&slot) = self.by_connection.get(&connection) else {
            return;
        };
        if let Some(session) = self.sessions[slot].as_mut() {
            session.notify(now, event, ioc, stamp);
            self.look_after(slot);
        }
    }

    fn session(&self, connection: ConnectionId) -> Option<&Session> {
        let slot = *self.by_connection.get(&connection)?;
        self.sessions[slot].as_deref()
    }

    /// Who opened a connection.
    pub fn peer(&self, connection: ConnectionId) -> Option<&Peer> {
        self.session(connection).map(|s| &s.peer)
    }

    /// The connections in use, each with its controller and peer.
    pub fn connections(&self) -> impl Iterator<Item = (ConnectionId, IocNumber, &Peer)> + '_ {
        self.by_key
            .values()
            .filter_map(|slot| self.sessions[*slot].as_deref())
            .filter(|s| s.known && !s.dormant)
            .map(|s| (s.connection, s.ioc, &s.peer))
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Time) {
        while let Some(&(at, slot)) = self.wakes.first() {
            if at > now {
                break;
            }
            self.wakes.pop_first();
            let Some(session) = self.sessions[slot].as_mut() else {
                continue;
            };
            session.wake = None;
            if expires_at(session) <= now {
                if !session.known || session.dormant {
                    self.remove(slot);
                    continue;
                }
                // What the session knows is kept: should its initiator come back, nothing that
                // was executed is executed again.
                session.dormant = true;
                if std::mem::take(&mut session.confirmed) {
                    self.events.push_back(ServerEvent::Closed {
                        connection: session.connection,
                    });
                }
            }
            session.tick_notes(now);
            self.look_after(slot);
        }
    }

    /// When `tick` must be called next.
    pub fn deadline(&self) -> Option<Time> {
        self.wakes.first().map(|(at, _)| *at)
    }

    /// Appends one packet to `out` and returns its destination, or `None` when there is nothing to
    /// send now.
    pub fn poll_transmit(&mut self, now: Time, out: &mut Vec<u8>) -> Option<Mac> {
        let sent = Tail::join(out, |out, tail| self.poll_transmit_parts(now, out, tail));
        sent.map(|outgoing| outgoing.hop.mac)
    }

    /// The same, but the end of the packet, where it is long, is not copied: `tail` becomes it; and with
    /// the own NIC that it should leave by, and whether it may share its frame.
    pub fn poll_transmit_parts(
        &mut self,
        now: Time,
        out: &mut Vec<u8>,
        tail: &mut Option<Tail>,
    ) -> Option<Outgoing> {
        if let Some((hop, header, body)) = self.control.pop_front() {
            header.emit_whole(&body, out);
            return Some(Outgoing::alone(hop));
        }
        while let Some(slot) = self.ready.pop_front() {
            let cluster = self.cluster_word(slot);
            let Some(session) = self.sessions[slot].as_mut() else {
                continue;
            };
            session.ready = false;
            let sent = session.transmit(now, cluster, out, tail);
            if sent.is_some() {
                self.look_after(slot);
                return sent;
            }
        }
        None
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ServerEvent> {
        self.events.pop_front()
    }

    /// In whose name a session's frames are sent.
    fn cluster_word(&self, slot: usize) -> ClusterName {
        let session = self.sessions[slot].as_ref();
        let of = session.map(|s| s.peer.cluster);
        match self.config.cluster {
            None => ClusterName::NONE,
            Some(own) => of.filter(|c| self.guests.contains(c)).unwrap_or(own),
        }
    }

    fn push_control(&mut self, hop: Hop, header: Header, body: Vec<u8>) {
        if self.control.len() < MAX_CONTROL_FRAMES {
            self.control.push_back((hop, header, body));
        }
    }

    /// Tells the sender of a frame that it cannot be taken, and why.
    fn refuse(&mut self, hop: Hop, header: &Header, status: Status) {
        let answer = Header {
            status,
            ioc: header.ioc,
            connection: header.connection,
            command: header.command,
            cluster: self.config.cluster.unwrap_or(ClusterName::NONE),
            ..Header::new(Kind::Refused)
        };
        self.push_control(hop, answer, Vec::new());
    }

    /// Takes over what a session's memory has become, from `before`.
    fn charge(&mut self, slot: usize, before: usize) {
        let after = self.sessions[slot].as_ref().map_or(0, |s| s.held);
        self.held = self.held - before + after;
    }

    /// Notes what a session has to send and when it has to be looked at.
    fn look_after(&mut self, slot: usize) {
        let Some(session) = self.sessions[slot].as_mut() else {
            return;
        };
        if !session.ready && session.has_unsent() {
            session.ready = true;
            self.ready.push_back(slot);
        }
        let expires = expires_at(session);
        let due = session.next_note_at().map_or(expires, |t| t.min(expires));
        // A wake-up that is early does no harm: it looks again.
        if session.wake.is_none_or(|at| due < at) {
            if let Some(at) = session.wake.replace(due) {
                self.wakes.remove(&(at, slot));
            }
            self.wakes.insert((due, slot));
        }
    }
}

/// When a session is put aside, or forgotten, if nothing more is heard.
fn expires_at(session: &Session) -> Time {
    if !session.known {
        session.opened_at + HALF_OPEN_TTL
    } else if !session.dormant {
        session.heard_at + CONNECTION_TTL
    } else {
        session.heard_at + SESSION_TTL
    }
}
