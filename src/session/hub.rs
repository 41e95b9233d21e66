//! Many clients under keys, and a server, on one EtherType: who gets which frame.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::limits::{MAX_CONTROL_FRAMES, MAX_EVENTS};
use super::{Client, ClientEvent, Counters, Server, ServerEvent};
use crate::wire::{
    ConnectionId, DropReason, Guid, Header, Hop, Incarnation, Kind, Mac, Outgoing, Tail, Time,
};

/// Of how many clients it may not be noted yet when they have to be ticked: all of them are asked for a deadline.
const MOST_UNNOTED: usize = 8;

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
    service: bool,
    local_macs: Vec<Mac>,
    slots: Vec<Option<Slot<K>>>,
    free: Vec<usize>,
    by_key: BTreeMap<K, usize>,
    by_connection: BTreeMap<ConnectionId, usize>,
    by_nonce: BTreeMap<u64, usize>,
    /// Clients of the management EtherType by whom they connect to.
    by_remote: BTreeMap<Guid, usize>,
    /// Clients that were handed out since their entries here were brought up to date.
    touched: Vec<usize>,
    wakes: BTreeSet<(Time, usize)>,
    /// Clients of which it is to be noted when they have to be ticked.
    unnoted: Vec<usize>,
    /// Clients that may have something to send, in turn.
    ready: VecDeque<usize>,
    /// Last frames of clients that were removed.
    farewells: VecDeque<(Outgoing, Vec<u8>)>,
    server: Option<Server>,
    /// Whether the server is asked first for a frame to send.
    server_turn: bool,
    /// Clients that have events, in turn.
    eventful: VecDeque<usize>,
    events: VecDeque<HubEvent<K>>,
    connectionless: usize,
    drops: Counters,
}

/// A client and what the hub's tables hold of it.
#[derive(Debug)]
struct Slot<K> {
    key: K,
    client: Client,
    connection: ConnectionId,
    nonce: Option<u64>,
    wake: Option<Time>,
    unnoted: bool,
    ready: bool,
    eventful: bool,
    touched: bool,
}

impl<K: Ord + Clone> Hub<K> {
    /// An empty hub of the service or management EtherType. Frames from one of `local_macs` are
    /// dropped.
    pub fn new(service: bool, local_macs: Vec<Mac>) -> Self {
        Self {
            service,
            local_macs,
            slots: Vec::new(),
            free: Vec::new(),
            by_key: BTreeMap::new(),
            by_connection: BTreeMap::new(),
            by_nonce: BTreeMap::new(),
            by_remote: BTreeMap::new(),
            touched: Vec::new(),
            wakes: BTreeSet::new(),
            unnoted: Vec::new(),
            ready: VecDeque::new(),
            farewells: VecDeque::new(),
            server: None,
            server_turn: false,
            eventful: VecDeque::new(),
            events: VecDeque::new(),
            connectionless: 0,
            drops: Counters::default(),
        }
    }

    /// The client under `key`.
    pub fn client(&self, key: &K) -> Option<&Client> {
        let slot = self.slots[*self.by_key.get(key)?].as_ref();
        slot.map(|s| &s.client)
    }

    /// The client under `key`, to submit, cancel, connect or close.
    pub fn client_mut(&mut self, key: &K) -> Option<&mut Client> {
        let index = *self.by_key.get(key)?;
        self.touch(index);
        self.slots[index].as_mut().map(|s| &mut s.client)
    }

    /// Puts a client under `key`; returns the one that was there.
    pub fn insert(&mut self, key: K, client: Client) -> Option<Client> {
        let old = self.remove(&key);
        let index = self.free.pop().unwrap_or(self.slots.len());
        if index == self.slots.len() {
            self.slots.push(None);
        }
        if !self.service {
            self.by_remote.insert(client.config().remote, index);
        }
        self.slots[index] = Some(Slot {
            key: key.clone(),
            client,
            connection: ConnectionId(0),
            nonce: None,
            wake: None,
            unnoted: false,
            ready: false,
            eventful: false,
            touched: false,
        });
        self.by_key.insert(key, index);
        self.touch(index);
        old
    }

    /// Takes the client under `key` out. A disconnect of a client that was closed is still sent;
    /// events that were not polled are not reported.
    pub fn remove(&mut self, key: &K) -> Option<Client> {
        let index = self.by_key.remove(key)?;
        let mut slot = self.slots[index].take()?;
        if slot.connection.0 != 0 {
            self.by_connection.remove(&slot.connection);
        }
        let remote = slot.client.config().remote;
        if self.by_remote.get(&remote) == Some(&index) {
            self.by_remote.remove(&remote);
        }
        if let Some(nonce) = slot.nonce {
            self.by_nonce.remove(&nonce);
        }
        if let Some(at) = slot.wake {
            self.wakes.remove(&(at, index));
        }
        self.free.push(index);
        while slot.client.is_closed() && self.farewells.len() < MAX_CONTROL_FRAMES {
            let (mut frame, mut tail) = (Vec::new(), None);
            let client = &mut slot.client;
            match client.poll_transmit_parts(Time::ZERO, &mut frame, &mut tail) {
                Some(outgoing) => self.farewells.push_back((outgoing, frame)),
                None => break,
            }
        }
        Some(slot.client)
    }

    /// The keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> + '_ {
        self.by_key.keys()
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

    /// Takes a frame without its Ethernet header; what is wrong with a packet of it is counted, and the first
    /// such returned.
    pub fn handle(
        &mut self,
        now: Time,
        src: impl Into<Hop>,
        frame: &[u8],
    ) -> Result<(), DropReason> {
        let src = src.into();
        let mut outcome = Ok(());
        let mut next = Some(frame);
        while let Some(frame) = next.take() {
            let taken = match Header::parse_first(frame, self.service) {
                Ok(packet) => {
                    next = packet.behind;
                    self.handle_parsed(now, src, &packet.header, packet.payload)
                }
                Err(reason) => {
                    self.drops.add(reason);
                    Err(reason)
                }
            };
            outcome = outcome.and(taken);
        }
        outcome
    }

    /// As [`Self::handle`], of a packet that has been parsed already.
    pub fn handle_parsed(
        &mut self,
        now: Time,
        src: impl Into<Hop>,
        header: &Header,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let src = src.into();
        let result = if self.is_bad_source(src.mac) {
            Err(DropReason::Source)
        } else {
            self.route(now, src, header, payload)
        };
        if let Err(reason) = result {
            self.drops.add(reason);
        }
        result
    }

    fn is_bad_source(&self, src: Mac) -> bool {
        src.is_multicast() || self.local_macs.contains(&src)
    }

    fn route(
        &mut self,
        now: Time,
        src: Hop,
        header: &Header,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        if matches!(header.kind, Kind::Discover | Kind::Here) {
            if self.connectionless >= MAX_EVENTS {
                return Err(DropReason::Full);
            }
            self.connectionless += 1;
            self.events.push_back(HubEvent::Connectionless {
                src: src.mac,
                header: *header,
                body: payload.to_vec(),
            });
            return Ok(());
        }
        let to_initiator = header.is_reply()
            || matches!(header.kind, Kind::Progress | Kind::Notify | Kind::Refused);
        if !to_initiator {
            let server = self.server.as_mut().ok_or(DropReason::Unexpected)?;
            server.handle(now, src, header, payload)?;
            if let Some(peer) = server.peer(header.connection) {
                let (guid, incarnation) = (peer.guid, peer.incarnation);
                self.heard_elsewhere(now, guid, incarnation);
            }
            return Ok(());
        }
        self.bring_up_to_date();
        let answers_connect = header.kind == Kind::Connect || header.connection.0 == 0;
        let index = if answers_connect {
            self.by_nonce.get(&header.command.0)
        } else {
            self.by_connection.get(&header.connection)
        };
        let found = index.and_then(|i| Some((*i, self.slots[*i].as_mut()?)));
        let Some((index, slot)) = found else {
            return Err(if answers_connect {
                DropReason::Unexpected
            } else {
                DropReason::Connection
            });
        };
        let result = slot.client.handle(now, src, header, payload);
        self.refresh(index);
        result
    }

    /// A peer was heard on its own connection: ours to it need not ask whether it is alive.
    fn heard_elsewhere(&mut self, now: Time, peer: Guid, incarnation: Incarnation) {
        let Some(&index) = self.by_remote.get(&peer) else {
            return;
        };
        if let Some(slot) = self.slots[index].as_mut() {
            slot.client.heard_elsewhere(now, incarnation);
            self.rewake(index);
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Time) {
        self.bring_up_to_date();
        self.note_wakes();
        while let Some(&(at, index)) = self.wakes.first() {
            if at > now {
                break;
            }
            self.wakes.pop_first();
            if let Some(slot) = self.slots[index].as_mut() {
                slot.wake = None;
                slot.client.tick(now);
                self.refresh(index);
            }
        }
        if let Some(server) = &mut self.server {
            server.tick(now);
        }
    }

    /// When `tick` must be called next.
    pub fn deadline(&self) -> Option<Time> {
        let unnoted = self.touched.iter().chain(&self.unnoted);
        let unnoted = unnoted.filter_map(|i| self.slots[*i].as_ref()?.client.deadline());
        self.wakes
            .first()
            .map(|(at, _)| *at)
            .into_iter()
            .chain(self.server.as_ref().and_then(Server::deadline))
            .chain(unnoted)
            .min()
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
        if let Some((outgoing, frame)) = self.farewells.pop_front() {
            out.extend_from_slice(&frame);
            return Some(outgoing);
        }
        self.server_turn = !self.server_turn;
        if self.server_turn
            && let Some(outgoing) = self.transmit_server(now, out, tail)
        {
            return Some(outgoing);
        }
        self.transmit_clients(now, out, tail)
            .or_else(|| self.transmit_server(now, out, tail))
    }

    fn transmit_server(
        &mut self,
        now: Time,
        out: &mut Vec<u8>,
        tail: &mut Option<Tail>,
    ) -> Option<Outgoing> {
        self.server.as_mut()?.poll_transmit_parts(now, out, tail)
    }

    fn transmit_clients(
        &mut self,
        now: Time,
        out: &mut Vec<u8>,
        tail: &mut Option<Tail>,
    ) -> Option<Outgoing> {
        self.bring_up_to_date();
        while let Some(index) = self.ready.pop_front() {
            let Some(slot) = self.slots[index].as_mut() else {
                continue;
            };
            slot.ready = false;
            let sent = slot.client.poll_transmit_parts(now, out, tail);
            if sent.is_some() && slot.client.may_have_more() {
                slot.ready = true;
                self.ready.push_back(index);
            }
            self.rewake(index);
            if sent.is_some() {
                return sent;
            }
        }
        None
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<HubEvent<K>> {
        self.bring_up_to_date();
        while let Some(&index) = self.eventful.front() {
            if let Some(slot) = self.slots[index].as_mut() {
                if let Some(event) = slot.client.poll_event() {
                    return Some(HubEvent::Client(slot.key.clone(), event));
                }
                slot.eventful = false;
            }
            self.eventful.pop_front();
        }
        if let Some(event) = self.events.pop_front() {
            if matches!(event, HubEvent::Connectionless { .. }) {
                self.connectionless -= 1;
            }
            return Some(event);
        }
        self.server.as_mut()?.poll_event().map(HubEvent::Server)
    }

    /// All events of the next client that has any, and whose they are: `into` is empty, and becomes the list of
    /// them.
    pub fn take_client_events(&mut self, into: &mut VecDeque<ClientEvent>) -> Option<K> {
        self.bring_up_to_date();
        while let Some(index) = self.eventful.pop_front() {
            let Some(slot) = self.slots[index].as_mut() else {
                continue;
            };
            slot.eventful = false;
            slot.client.take_events(into);
            if !into.is_empty() {
                return Some(slot.key.clone());
            }
        }
        None
    }

    /// Dropped frames by reason.
    pub const fn drops(&self) -> &Counters {
        &self.drops
    }

    fn touch(&mut self, index: usize) {
        if let Some(slot) = self.slots[index].as_mut()
            && !std::mem::replace(&mut slot.touched, true)
        {
            self.touched.push(index);
        }
    }

    fn bring_up_to_date(&mut self) {
        while let Some(index) = self.touched.pop() {
            if let Some(slot) = self.slots[index].as_mut() {
                slot.touched = false;
                self.refresh(index);
            }
        }
    }

    /// Brings what the tables hold of a client up to date.
    fn refresh(&mut self, index: usize) {
        let Some(slot) = self.slots[index].as_mut() else {
            return;
        };
        let connection = slot.client.connection();
        if connection != slot.connection {
            self.by_connection.remove(&slot.connection);
            if connection.0 != 0 {
                self.by_connection.insert(connection, index);
            }
            slot.connection = connection;
        }
        let nonce = slot.client.nonce();
        if nonce != slot.nonce {
            if let Some(old) = slot.nonce {
                self.by_nonce.remove(&old);
            }
            if let Some(nonce) = nonce {
                self.by_nonce.insert(nonce, index);
            }
            slot.nonce = nonce;
        }
        if slot.client.has_events() && !std::mem::replace(&mut slot.eventful, true) {
            self.eventful.push_back(index);
        }
        if !std::mem::replace(&mut slot.ready, true) {
            self.ready.push_back(index);
        }
        self.rewake(index);
    }

    /// Has it noted, by the next tick, when a client has to be ticked: an I/O changes that several times.
    fn rewake(&mut self, index: usize) {
        if let Some(slot) = self.slots[index].as_mut()
            && !std::mem::replace(&mut slot.unnoted, true)
        {
            self.unnoted.push(index);
            if self.unnoted.len() >= MOST_UNNOTED {
                self.note_wakes();
            }
        }
    }

    /// Notes when clients have to be ticked. One that is noted too early is looked at again then: that is once,
    /// and noting it later would be at every I/O.
    fn note_wakes(&mut self) {
        while let Some(index) = self.unnoted.pop() {
            let Some(slot) = self.slots[index].as_mut() else {
                continue;
            };
            slot.unnoted = false;
            if let Some(due) = slot.client.deadline()
                && slot.wake.is_none_or(|at| due < at)
            {
                if let Some(at) = slot.wake.replace(due) {
                    self.wakes.remove(&(at, index));
                }
                self.wakes.insert((due, index));
            }
        }
    }
}
