//! What a server is told at first, and what it reports.

use std::borrow::Cow;

#[cfg(doc)]
use super::Server;
use crate::wire::kind::Role;
use crate::wire::{
    ClusterName, CommandId, ConnectionId, Epoch, Flags, Guid, Incarnation, IocNumber, IodNumber,
    Kind, Mac,
};

/// What a server is and what it grants.
#[derive(Debug, Clone, Copy)]
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

/// A command to execute, once: it is answered at once with [`Server::answer`], or kept with [`Server::hold`] and
/// answered later.
#[derive(Debug)]
#[must_use]
pub struct Asked<'a> {
    /// The connection it came by.
    pub connection: ConnectionId,
    /// Its identity.
    pub command: CommandId,
    /// What is asked.
    pub kind: Kind,
    /// Its flags.
    pub flags: Flags,
    /// The controller addressed.
    pub ioc: IocNumber,
    /// The device addressed.
    pub iod: IodNumber,
    /// The ownership epoch under which the sender acts.
    pub epoch: Epoch,
    /// The sender.
    pub peer: Guid,
    /// The cluster of its connection.
    pub cluster: ClusterName,
    /// The message body: still in the frame where it came in one.
    pub body: Cow<'a, [u8]>,
    /// Where its session is.
    pub(super) slot: usize,
}
