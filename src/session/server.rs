//! The responder's end of sessions: each command executed at most once, answers kept and repeated.

use crate::wire::kind::{Event, Role};
use crate::wire::{
    ClusterName, CommandId, ConnectionId, DropReason, Epoch, Flags, Guid, Header, Incarnation,
    IocNumber, IodNumber, Kind, Mac, ObservationStamp, Status, Time,
};

/// What a server is and what it grants.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The responder.
    pub local: Guid,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// The only cluster served; `None` serves any (fabric services).
    pub cluster: Option<ClusterName>,
    /// Whether this is the service EtherType.
    pub service: bool,
    /// The most bytes of a frame behind its Ethernet header.
    pub mtu: u16,
    /// Commands that an initiator may have outstanding.
    pub credits: u16,
    /// Sessions kept at most.
    pub max_connections: usize,
}

/// Who opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The initiator.
    pub guid: Guid,
    /// What it is.
    pub role: Role,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// The cluster it says it is of.
    pub cluster: ClusterName,
    /// Its address.
    pub mac: Mac,
}

/// What a server reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerEvent {
    /// A connection is open and its initiator has used it.
    Opened {
        /// Its number.
        connection: ConnectionId,
        /// The controller it is to, 0 for none.
        ioc: IocNumber,
        /// Who opened it.
        peer: Peer,
    },
    /// A connection is gone (perhaps replaced: then its session's next one is reported as opened).
    Closed {
        /// Its number.
        connection: ConnectionId,
    },
    /// A command to execute, once. Must be answered with [`Server::reply`], even when its
    /// connection has been closed meanwhile.
    Request {
        /// The connection it came by.
        connection: ConnectionId,
        /// Its identity.
        command: CommandId,
        /// What is asked.
        kind: Kind,
        /// Its flags.
        flags: Flags,
        /// The controller addressed.
        ioc: IocNumber,
        /// The device addressed.
        iod: IodNumber,
        /// The ownership epoch under which the sender acts.
        epoch: Epoch,
        /// The sender.
        peer: Guid,
        /// The message body.
        body: Vec<u8>,
    },
}

/// The responder's end of all sessions on one EtherType.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
}

impl Server {
    /// A server without sessions. `seed` makes its connection numbers.
    pub fn new(config: ServerConfig, seed: u64) -> Self {
        let _ = seed;
        Self { config }
    }

    /// What it was made from.
    pub fn config(&self) -> &ServerConfig {
        &self.config
    }

    /// Serves another cluster from now on; sessions of others are closed.
    pub fn set_cluster(&mut self, cluster: Option<ClusterName>) {
        self.config.cluster = cluster;
    }

    /// Takes a frame.
    pub fn handle(
        &mut self,
        now: Time,
        src: Mac,
        header: &Header,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let _ = (now, src, header, payload);
        Err(DropReason::Unexpected)
    }

    /// Answers a command. The answer belongs to the session: it is right also after a reconnect,
    /// and ignored when the session is gone.
    pub fn reply(
        &mut self,
        now: Time,
        connection: ConnectionId,
        command: CommandId,
        status: Status,
        body: Vec<u8>,
    ) {
        let _ = (now, connection, command, status, body);
    }

    /// Tells an initiator that something changed; repeated until acknowledged.
    pub fn notify(
        &mut self,
        now: Time,
        connection: ConnectionId,
        event: Event,
        ioc: IocNumber,
        stamp: ObservationStamp,
    ) {
        let _ = (now, connection, event, ioc, stamp);
    }

    /// Who opened a connection.
    pub fn peer(&self, connection: ConnectionId) -> Option<&Peer> {
        let _ = connection;
        None
    }

    /// The open connections, each with its controller and peer.
    pub fn connections(&self) -> impl Iterator<Item = (ConnectionId, IocNumber, &Peer)> + '_ {
        std::iter::empty()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Time) {
        let _ = now;
    }

    /// When `tick` must be called next.
    pub fn deadline(&self) -> Option<Time> {
        None
    }

    /// Appends one frame to `out` and returns its destination, or `None` when there is nothing to
    /// send now.
    pub fn poll_transmit(&mut self, now: Time, out: &mut Vec<u8>) -> Option<Mac> {
        let _ = (now, out);
        None
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ServerEvent> {
        None
    }
}
