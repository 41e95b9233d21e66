//! The initiator's end of a session: commands in flight, their recovery, and staying connected.

use crate::wire::kind::Role;
use crate::wire::message::Notification;
use crate::wire::{
    ClusterName, CommandId, DropReason, Epoch, Flags, Guid, Header, Incarnation, IocNumber,
    IodNumber, Kind, Mac, Status, Time,
};

/// What a client is and whom it connects to.
#[derive(Debug, Clone)]
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
    next: u64,
}

impl Client {
    /// A client that is not connected. `seed` makes its nonces.
    pub fn new(config: ClientConfig, seed: u64) -> Self {
        let _ = seed;
        Self { config, next: 1 }
    }

    /// What it was made from.
    pub fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// Connects to `remote` and from then on keeps itself connected; with another address later,
    /// moves there.
    pub fn connect(&mut self, now: Time, remote: Mac) {
        let _ = (now, remote);
    }

    /// Queues a request; it is sent as soon as there is a connection and room in the window.
    pub fn submit(&mut self, now: Time, request: Request) -> Result<CommandId, SubmitError> {
        let _ = (now, request);
        let id = CommandId(self.next);
        self.next += 1;
        Ok(id)
    }

    /// Gives up interest in a command: its reply will not be reported. What was sent may still be
    /// executed. Returns whether the command was outstanding.
    pub fn cancel(&mut self, command: CommandId) -> bool {
        let _ = command;
        false
    }

    /// Ends the session: a disconnect is sent once, commands are forgotten without a reply.
    pub fn close(&mut self, now: Time) {
        let _ = now;
    }

    /// Whether a connection is open.
    pub fn is_connected(&self) -> bool {
        false
    }

    /// Whether a frame to an initiator is for this client: by connection, or by connect nonce.
    pub fn owns(&self, header: &Header) -> bool {
        let _ = header;
        false
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
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        None
    }
}
