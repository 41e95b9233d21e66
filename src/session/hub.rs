//! Many clients under keys, and a server, on one EtherType: who gets which frame.

use std::collections::BTreeMap;

use super::{Client, ClientEvent, Counters, Server, ServerEvent};
use crate::wire::{DropReason, Header, Mac, Time};

/// What a hub reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HubEvent<K> {
    /// A client's event.
    Client(K, ClientEvent),
    /// The server's event.
    Server(ServerEvent),
    /// A frame outside of connections (discover, here).
    Connectionless {
        /// Who sent it.
        src: Mac,
        /// Its header.
        header: Header,
        /// Its body, not parsed yet.
        body: Vec<u8>,
    },
}

/// Many clients and a server on one EtherType.
#[derive(Debug)]
pub struct Hub<K> {
    clients: BTreeMap<K, Client>,
    server: Option<Server>,
    drops: Counters,
}

impl<K: Ord + Clone> Hub<K> {
    /// An empty hub of the service or management EtherType. Frames from one of `local_macs` are
    /// dropped.
    pub fn new(service: bool, local_macs: Vec<Mac>, seed: u64) -> Self {
        let _ = (service, local_macs, seed);
        Self {
            clients: BTreeMap::new(),
            server: None,
            drops: Counters::default(),
        }
    }

    /// The client under `key`.
    pub fn client(&self, key: &K) -> Option<&Client> {
        self.clients.get(key)
    }

    /// The client under `key`, to submit, cancel, connect or close.
    pub fn client_mut(&mut self, key: &K) -> Option<&mut Client> {
        self.clients.get_mut(key)
    }

    /// Puts a client under `key`; returns the one that was there.
    pub fn insert(&mut self, key: K, client: Client) -> Option<Client> {
        self.clients.insert(key, client)
    }

    /// Takes the client under `key` out; what it still had to send is not sent.
    pub fn remove(&mut self, key: &K) -> Option<Client> {
        self.clients.remove(key)
    }

    /// The keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> + '_ {
        self.clients.keys()
    }

    /// Sets the server that takes requests.
    pub fn set_server(&mut self, server: Server) {
        self.server = Some(server);
    }

    /// The server.
    pub fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    /// The server, to reply and notify.
    pub fn server_mut(&mut self) -> Option<&mut Server> {
        self.server.as_mut()
    }

    /// Takes a frame without its Ethernet header; what is wrong with it is counted and returned.
    pub fn handle(&mut self, now: Time, src: Mac, frame: &[u8]) -> Result<(), DropReason> {
        let _ = (now, src, frame);
        self.drops.add(DropReason::Unexpected);
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
    pub fn poll_event(&mut self) -> Option<HubEvent<K>> {
        None
    }

    /// Dropped frames by reason.
    pub fn drops(&self) -> &Counters {
        &self.drops
    }
}
