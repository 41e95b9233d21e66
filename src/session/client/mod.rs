//! The initiator's end of a session: commands in flight, their recovery, and staying connected.

mod body;
mod command;
mod commands;
mod connect;
mod mtu;
mod nics;
mod paths;
mod recovery;
mod transmit;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::limits::{
    KEEPALIVE_INTERVAL, KEEPALIVE_MISSED, KEEPALIVE_MISSED_MAX, KEEPALIVE_QUIET, KEEPALIVE_STEP,
    MAX_CONTROL_FRAMES, MAX_CREDITS, MAX_EVENTS, PATH_MTU_START,
};
use super::steps::Steps;
use crate::wire::header::MIN_MTU;
use crate::wire::kind::{Event, Role};
use crate::wire::message::{IO_RANGE_BYTES, IoRange, Notification, PathProbe, ProgressReport};
use crate::wire::{
    ClusterName, CommandId, ConnectionId, DropReason, Epoch, Flags, Guid, Header, Hop, Incarnation,
    IocNumber, IodNumber, Kind, Mac, Status, Tail, Time, Wire,
};
use commands::Commands;
pub use nics::{NicState, PathReport};
pub(super) use transmit::ranges_per_frame;

/// What a client is and whom it connects to.
#[derive(Debug, Clone, Copy)]
pub struct ClientConfig {
    /// The initiator.
    pub local: Guid,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// What it is.
    pub role: Role,
    /// Its cluster, in every frame.
    pub cluster: ClusterName,
    /// Names the session within the incarnation. A larger number replaces a smaller one at the same
    /// responder and controller; a number that turns out to be taken is raised by the client itself.
    pub session: u64,
    /// Who must answer; NIL for whoever it is.
    pub remote: Guid,
    /// The controller, 0 on the management EtherType.
    pub ioc: IocNumber,
    /// Whether this is the service EtherType.
    pub service: bool,
    /// The most bytes of a frame behind its Ethernet header.
    pub mtu: u16,
    /// Commands to have outstanding at most; the responder may grant fewer.
    pub credits: u16,
}

/// A request to be delivered exactly once.
#[derive(Debug, Clone)]
pub struct Request {
    /// What is asked.
    pub kind: Kind,
    /// [`Flags::FUA`] or none.
    pub flags: Flags,
    /// The device, 0 where none.
    pub iod: IodNumber,
    /// The ownership epoch, 0 where none.
    pub epoch: Epoch,
    /// The message body, at most [`crate::wire::MAX_MESSAGE_BYTES`].
    pub body: Vec<u8>,
    /// Reply bytes to expect, for the window; a guess is good enough.
    pub expect: usize,
}

/// An I/O on a device, to be done exactly once.
#[derive(Debug, Clone)]
pub struct IoRequest {
    /// What is asked.
    pub kind: Kind,
    /// [`Flags::FUA`] or none.
    pub flags: Flags,
    /// The device.
    pub iod: IodNumber,
    /// The ownership epoch.
    pub epoch: Epoch,
    /// Where on the device; the reply to a read is expected to be that long.
    pub range: IoRange,
    /// What to write, which is sent from where it is.
    pub data: Option<Tail>,
}

impl IoRequest {
    /// Bytes of the message.
    fn body_bytes(&self) -> usize {
        IO_RANGE_BYTES + self.data.as_ref().map_or(0, |data| data.bytes().len())
    }
}

/// Why a request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Too many commands or bytes wait already; try again after a reply.
    #[error("the session's queue is full")]
    Full,
    /// The body is over [`crate::wire::MAX_MESSAGE_BYTES`].
    #[error("the message is too long")]
    TooLong,
    /// The kind is not a request.
    #[error("the kind is not a request")]
    NotARequest,
    /// The client was closed.
    #[error("the session is closed")]
    Closed,
}

/// What a client reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// A connection is open.
    Connected {
        /// Who answered.
        responder: Guid,
        /// Its incarnation.
        incarnation: Incarnation,
        /// Whether it still knew the session's commands.
        resumed: bool,
    },
    /// The connection is gone; the client keeps trying to open another.
    Lost,
    /// A connect was refused; the client keeps trying.
    Refused(Status),
    /// A command was answered.
    Reply {
        /// Which one.
        command: CommandId,
        /// How it ended.
        status: Status,
        /// The reply's body.
        body: Vec<u8>,
    },
    /// Something changed at the responder.
    Notified(Notification),
}

/// The initiator's end of one session.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    rng: fastrand::Rng,
    state: State,
    /// When keep-alives are sent: the same for all sessions of an initiator.
    steps: Steps,
    /// Nothing depends on the connection.
    quiet: bool,
    /// How long answers to keep-alives have taken of late.
    slowness: Duration,
    /// The session's number, raised where the configured one turns out to be taken.
    session: u64,
    attempt: u32,
    /// The responder's addresses, and the own NICs: each pair may be a path.
    remotes: Vec<Mac>,
    nics: Vec<NicState>,
    /// What the connect has settled.
    settled_mtu: u16,
    commands: Commands,
    /// Who answered last, and its incarnation: another one has forgotten the session.
    responder: Option<(Guid, Incarnation)>,
    /// When the last connection was lost.
    lost_at: Option<Time>,
    /// The refusal that was reported last, since the last connection.
    refused: Option<Status>,
    /// Notifications seen, by what they are about: the newest number.
    notified: BTreeMap<(Event, IocNumber), u64>,
    control: VecDeque<(Header, Vec<u8>)>,
    events: VecDeque<ClientEvent>,
    /// Events that are notifications.
    notifications: usize,
}

#[derive(Debug)]
enum State {
    /// No address is known.
    Idle,
    Connecting(Connecting),
    Connected(Connection),
    Closed,
}

/// An attempt to open a connection.
#[derive(Debug)]
struct Connecting {
    nonce: u64,
    tries: u32,
    /// When it was sent first.
    began: Option<Time>,
    /// When the connect is sent (again).
    at: Time,
    due: bool,
    /// Where it is still to be sent to this time, the last first, and where the next time begins.
    hops: Vec<Hop>,
    next_hop: usize,
}

/// An open connection.
#[derive(Debug)]
struct Connection {
    id: ConnectionId,
    heard_at: Time,
    /// When the last keep-alive was sent.
    asked_at: Time,
    /// Keep-alives unanswered in a row, and when the first of them was sent.
    missed: u32,
    missed_since: Time,
    /// The responder does not know yet that the connection is in use.
    unconfirmed: bool,
}

impl Connection {
    /// When a keep-alive is due.
    fn silent_at(&self, steps: Steps, quiet: bool) -> Time {
        if self.missed > 0 {
            return self.asked_at + KEEPALIVE_STEP;
        }
        let interval = if quiet {
            KEEPALIVE_QUIET
        } else {
            KEEPALIVE_INTERVAL
        };
        steps.next(self.heard_at.max(self.asked_at) + interval)
    }
}

impl Client {
    /// A client that is not connected. `seed` makes its nonces.
    pub fn new(config: ClientConfig, seed: u64) -> Self {
        // Clients that share a seed still have nonces of their own.
        let mut mix = [config.local, config.remote].to_vec();
        mix.push(Guid(config.incarnation.0.into()));
        mix.push(Guid((u128::from(config.session) << 64) | u128::from(seed)));
        mix.push(Guid(
            (u128::from(config.ioc.0) << 1) | u128::from(config.service),
        ));
        let mix: Vec<u8> = mix.iter().flat_map(|g| g.0.to_be_bytes()).collect();
        let credits = config.credits.clamp(1, MAX_CREDITS);
        let mtu = config.mtu.max(MIN_MTU);
        // Nobody finds out whether longer ones pass.
        let mtu = if config.service {
            mtu
        } else {
            mtu.min(PATH_MTU_START)
        };
        Self {
            rng: fastrand::Rng::with_seed(xxhash_rust::xxh3::xxh3_64(&mix)),
            state: State::Idle,
            steps: Steps::of(config.local),
            quiet: false,
            slowness: Duration::ZERO,
            session: config.session,
            attempt: 0,
            remotes: Vec::new(),
            nics: vec![NicState { up: true, mtu }],
            settled_mtu: mtu,
            commands: Commands::new(credits, mtu, config.service),
            responder: None,
            lost_at: None,
            refused: None,
            notified: BTreeMap::new(),
            control: VecDeque::new(),
            events: VecDeque::new(),
            notifications: 0,
            config: ClientConfig {
                mtu,
                credits,
                ..config
            },
        }
    }

    /// What it was made from.
    pub const fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// Queues a request; it is sent as soon as there is a connection and room in the window.
    pub fn submit(&mut self, now: Time, request: Request) -> Result<CommandId, SubmitError> {
        let _ = now;
        if matches!(self.state, State::Closed) {
            return Err(SubmitError::Closed);
        }
        self.commands.submit(request)
    }

    /// The same with an I/O, whose data is taken out of the request where it is accepted.
    pub fn submit_io(
        &mut self,
        now: Time,
        request: &mut IoRequest,
    ) -> Result<CommandId, SubmitError> {
        let _ = now;
        if matches!(self.state, State::Closed) {
            return Err(SubmitError::Closed);
        }
        self.commands.submit_io(request)
    }

    /// Takes a reply's body back, to be used again.
    pub fn give_buffer(&mut self, buffer: Vec<u8>) {
        self.commands.give_buffer(buffer);
    }

    /// Gives up interest in a command: its reply will not be reported. What was sent may still be
    /// executed. Returns whether the command was outstanding.
    pub fn cancel(&mut self, command: CommandId) -> bool {
        self.commands.cancel(command)
    }

    /// Commands whose answer has not come, cancelled ones included, up to the newest.
    pub fn outstanding(&self) -> usize {
        self.commands.count()
    }

    /// Ends the session: a disconnect is sent once, commands are forgotten without a reply.
    pub fn close(&mut self, now: Time) {
        let _ = now;
        self.control.clear();
        self.commands.clear();
        if let State::Connected(connection) = &self.state {
            let header = Header {
                kind: Kind::Disconnect,
                ..self.base(connection.id)
            };
            self.control.push_back((header, Vec::new()));
        }
        self.state = State::Closed;
    }

    /// Whether anything depends on the connection: whether it is alive is asked less often where
    /// nothing does.
    pub const fn set_quiet(&mut self, quiet: bool) {
        self.quiet = quiet;
    }

    /// The responder was heard on a connection of its own, in this incarnation.
    pub(super) fn heard_elsewhere(&mut self, now: Time, incarnation: Incarnation) {
        if let State::Connected(connection) = &mut self.state
            && connection.missed == 0
            && self.responder == Some((self.config.remote, incarnation))
        {
            connection.heard_at = connection.heard_at.max(now);
        }
    }

    /// Whether a connection is open.
    pub const fn is_connected(&self) -> bool {
        matches!(self.state, State::Connected(_))
    }

    /// Whether [`Self::close`] was called.
    pub const fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    const fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// The open connection, 0 for none.
    pub const fn connection(&self) -> ConnectionId {
        match &self.state {
            State::Connected(connection) => connection.id,
            _ => ConnectionId(0),
        }
    }

    /// The nonce of the connect that awaits its reply.
    pub const fn nonce(&self) -> Option<u64> {
        match &self.state {
            State::Connecting(connecting) => Some(connecting.nonce),
            _ => None,
        }
    }

    /// Whether a frame to an initiator is for this client: by connection, or by connect nonce.
    pub fn owns(&self, header: &Header) -> bool {
        match &self.state {
            State::Connected(connection) => {
                header.connection == connection.id && header.kind != Kind::Connect
            }
            State::Connecting(connecting) => {
                header.command.0 == connecting.nonce && answers_connect(header)
            }
            State::Idle | State::Closed => false,
        }
    }

    /// Takes a frame.
    pub fn handle(
        &mut self,
        now: Time,
        src: impl Into<Hop>,
        header: &Header,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let hop = src.into();
        if !self.owns(header) {
            return Err(if header.connection.0 == 0 || answers_connect(header) {
                DropReason::Unexpected
            } else {
                DropReason::Connection
            });
        }
        let was_heard = match &mut self.state {
            State::Connecting(_) => return self.on_connect_answer(now, hop, header, payload),
            State::Connected(connection) => {
                connection.heard_at = connection.heard_at.max(now);
                if std::mem::take(&mut connection.missed) > 0 {
                    let took = now.since(connection.missed_since);
                    self.slowness = took.max(self.slowness * 3 / 4);
                }
                self.commands.paths.heard(now, hop)
            }
            State::Idle | State::Closed => return Err(DropReason::Unexpected),
        };
        if header.credits != 0 {
            self.commands
                .set_credits(header.credits.min(self.config.credits));
        }
        match header.kind {
            Kind::Refused => {
                self.reconnect_limited(now);
                Ok(())
            }
            Kind::Progress => {
                let report = ProgressReport::from_body(payload).map_err(|_| DropReason::Body)?;
                self.commands.on_progress(header.command, &report)
            }
            Kind::Notify => self.on_notify(header, payload),
            Kind::Path => {
                let probe = PathProbe::from_body(payload).map_err(|_| DropReason::Body)?;
                let lost = self.commands.paths.on_probe(now, (hop, was_heard), &probe);
                for path in lost {
                    self.commands.ask_again_all(path);
                }
                Ok(())
            }
            // A keep-alive of our own: that it was answered is all it says.
            Kind::KeepAlive
                if header.is_reply() && !self.commands.awaits(header.command, header.kind) =>
            {
                Ok(())
            }
            kind if kind.is_request() && header.is_reply() => {
                if let Some(answered) = self.commands.on_reply(now, header, payload)? {
                    self.events.push_back(ClientEvent::Reply {
                        command: answered.command,
                        status: answered.status,
                        body: answered.body,
                    });
                }
                Ok(())
            }
            _ => Err(DropReason::Unexpected),
        }
    }

    fn on_notify(&mut self, header: &Header, payload: &[u8]) -> Result<(), DropReason> {
        let note = Notification::from_body(payload).map_err(|_| DropReason::Body)?;
        let about = (note.event, note.ioc);
        let seen = self.notified.get(&about).is_some_and(|n| *n >= note.number);
        if self.control.len() >= MAX_CONTROL_FRAMES
            || (!seen && self.notifications >= MAX_EVENTS)
            || (self.notified.len() >= MAX_EVENTS && !self.notified.contains_key(&about))
        {
            return Err(DropReason::Full);
        }
        let ack = Header {
            kind: Kind::NotifyAck,
            ..self.base(header.connection)
        };
        self.control.push_back((ack, payload.to_vec()));
        if !seen {
            self.notified.insert(about, note.number);
            self.notifications += 1;
            self.events.push_back(ClientEvent::Notified(note));
        }
        Ok(())
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Time) {
        match &mut self.state {
            State::Connecting(connecting) => {
                if connecting.at <= now {
                    connecting.due = true;
                }
            }
            State::Connected(connection) => {
                if connection.silent_at(self.steps, self.quiet) <= now {
                    if connection.missed >= most_missed(self.slowness) {
                        self.reconnect(now, now);
                        return;
                    }
                    if connection.missed == 0 {
                        connection.missed_since = now;
                    } else {
                        let asked = self.commands.paths.for_control(connection.missed - 1);
                        self.commands.paths.doubt(now, asked);
                    }
                    connection.missed += 1;
                    connection.asked_at = now;
                    let header = Header {
                        kind: Kind::KeepAlive,
                        ..self.base(self.connection())
                    };
                    self.control.push_back((header, Vec::new()));
                }
                self.commands.tick(now);
                for path in self.commands.paths.tick(now) {
                    self.commands.ask_again_all(path);
                }
            }
            State::Idle | State::Closed => {}
        }
    }

    /// When `tick` must be called next.
    pub fn deadline(&self) -> Option<Time> {
        match &self.state {
            State::Connecting(connecting) => (!connecting.due).then_some(connecting.at),
            State::Connected(connection) => {
                let alive = connection.silent_at(self.steps, self.quiet);
                let others = [self.commands.deadline(), self.commands.paths.due()];
                others.into_iter().flatten().chain([alive]).min()
            }
            State::Idle | State::Closed => None,
        }
    }

    /// Whether there is an event.
    pub(super) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        let event = self.events.pop_front();
        if matches!(event, Some(ClientEvent::Notified(_))) {
            self.notifications -= 1;
        }
        if event.is_none() && (self.quiet || !self.config.service) {
            self.rest();
        }
        event
    }

    /// Takes all events: `into` is empty, and becomes the list of them.
    pub(super) fn take_events(&mut self, into: &mut VecDeque<ClientEvent>) {
        std::mem::swap(&mut self.events, into);
        self.notifications = 0;
        if self.quiet || !self.config.service {
            self.rest();
        }
    }

    /// Gives memory back: of very many sessions most have nothing to do most of the time.
    fn rest(&mut self) {
        self.events = VecDeque::new();
        self.commands.rest();
    }

    /// What is the same in all frames of a connection.
    const fn base(&self, connection: ConnectionId) -> Header {
        let mut header = Header::new(Kind::KeepAlive);
        header.connection = connection;
        header.ioc = self.config.ioc;
        header.cluster = self.config.cluster;
        header
    }
}

/// How many keep-alives in a row may be unanswered, where answers have taken so long.
fn most_missed(slowness: Duration) -> u32 {
    let steps = 2 * slowness.as_nanos() / KEEPALIVE_STEP.as_nanos();
    let more = u32::try_from(steps).unwrap_or(u32::MAX);
    KEEPALIVE_MISSED
        .saturating_add(more)
        .min(KEEPALIVE_MISSED_MAX)
}

/// Whether the frame's kind answers a connect.
const fn answers_connect(header: &Header) -> bool {
    match header.kind {
        Kind::Connect => header.is_reply(),
        Kind::Refused => header.connection.0 == 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_responder_is_given_more_time_within_limits() {
        let ms = Duration::from_millis;
        assert_eq!(most_missed(Duration::ZERO), KEEPALIVE_MISSED);
        assert_eq!(most_missed(ms(100)), KEEPALIVE_MISSED);
        assert_eq!(most_missed(ms(1000)), KEEPALIVE_MISSED + 8);
        assert_eq!(most_missed(Duration::MAX), KEEPALIVE_MISSED_MAX);
    }
}
