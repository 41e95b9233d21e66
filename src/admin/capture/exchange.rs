//! What the frames of a capture have to do with each other: segments of one message, replies and
//! their requests. Bounded: a long capture forgets its oldest exchanges.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::wire::{Header, Kind, Mac, Status};

/// The most exchanges that are remembered; the oldest is forgotten for a new one.
pub(super) const MAX_EXCHANGES: usize = 1 << 18;
/// The most connections and sessions that are remembered.
const MAX_SESSIONS: usize = 1 << 16;
/// The most bytes of incomplete messages; segments beyond them are not put together.
pub(super) const MAX_HELD_BYTES: usize = 64 << 20;

/// A map that forgets its oldest entry.
#[derive(Debug)]
struct Recent<K, V> {
    limit: usize,
    map: BTreeMap<K, V>,
    order: VecDeque<K>,
}

impl<K: Ord + Clone, V> Recent<K, V> {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            map: BTreeMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Adds an entry; gives back the one that was forgotten or replaced for it.
    fn insert(&mut self, key: K, value: V) -> Option<V> {
        let replaced = self.map.insert(key.clone(), value);
        if replaced.is_some() {
            return replaced;
        }
        self.order.push_back(key);
        if self.map.len() > self.limit {
            return self.map.remove(&self.order.pop_front()?);
        }
        None
    }
}

/// What holds an exchange together: a session where its connect was captured, or else a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Connection(u64),
    Session(Identity),
    /// Before there is a connection: the initiator and the controller.
    Initiator(Mac, u16),
}

/// What a session is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Identity {
    /// Initiator, incarnation and session number, as they lead a connect.
    initiator: [u8; 32],
    /// Its GUID leads the reply.
    responder: [u8; 16],
    ioc: u16,
}

/// (where, what, which).
type Key = (Scope, Kind, u64);

/// One direction of an exchange.
#[derive(Debug, Default)]
struct Side {
    covered: Vec<(u32, u32)>,
    bytes: Vec<u8>,
    done: bool,
}

#[derive(Debug)]
struct Exchange {
    /// Number and time of the first request frame.
    asked: Option<(u64, Duration)>,
    answered: bool,
    request: Side,
    reply: Side,
}

/// What a frame is in its exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Is answered.
    Request,
    /// Answers a request.
    Reply,
    /// Need not be answered by a frame of its own.
    Message,
    /// Answers a message.
    Report,
}

impl Role {
    /// Whether a request belongs to each reply and a reply to each request.
    const fn matches(self) -> bool {
        matches!(self, Self::Request | Self::Reply)
    }
}

/// What is known of a frame's place.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// The frame of the request that it answers, and how long ago that was.
    pub answers: Option<(u64, Duration)>,
    /// A reply whose request was not captured.
    pub is_unmatched: bool,
    /// Everything of it was captured before.
    pub is_repeated: bool,
    /// The whole message, where this segment completes it.
    pub message: Option<Vec<u8>>,
}

/// Relates the frames of one capture.
#[derive(Debug)]
pub(super) struct Exchanges {
    recent: Recent<Key, Exchange>,
    sessions: Recent<u64, Scope>,
    connects: Recent<(Mac, u16, u64), [u8; 32]>,
    held_bytes: usize,
    forgotten_unanswered: u64,
}

impl Exchanges {
    pub(super) fn new() -> Self {
        Self {
            recent: Recent::new(MAX_EXCHANGES),
            sessions: Recent::new(MAX_SESSIONS),
            connects: Recent::new(MAX_SESSIONS),
            held_bytes: 0,
            forgotten_unanswered: 0,
        }
    }

    /// Requests that were never answered.
    pub(super) fn unanswered(&self) -> u64 {
        let waiting = |x: &&Exchange| x.asked.is_some() && !x.answered;
        self.forgotten_unanswered + self.recent.map.values().filter(waiting).count() as u64
    }

    /// Finds the place of a frame from `src` to `dst`.
    pub(super) fn place(
        &mut self,
        number: u64,
        time: Duration,
        (src, dst): (Mac, Mac),
        header: &Header,
        payload: &[u8],
    ) -> Place {
        let initiator = if header.is_reply() { dst } else { src };
        self.learn_session(initiator, header, payload);
        if header.kind == Kind::Refused {
            return self.refused(dst, header, time);
        }
        let Some((key, role)) = self.key((src, dst), header, payload) else {
            return Place::default();
        };
        let (is_reply, must_match) = (role == Role::Reply || role == Role::Report, role.matches());
        let begins = match self.recent.map.get(&key) {
            None => true,
            // These have no identity of their own.
            Some(before) => match header.kind {
                Kind::Probe | Kind::Discover => true,
                Kind::KeepAlive => !is_reply && before.answered,
                _ => false,
            },
        };
        if begins {
            self.begin(key);
        }
        let Some(exchange) = self.recent.map.get_mut(&key) else {
            return Place::default();
        };
        let mut place = Place::default();
        let side = if is_reply {
            match exchange.asked {
                Some((frame, asked)) => {
                    place.answers = Some((frame, time.saturating_sub(asked)));
                }
                None => place.is_unmatched = must_match,
            }
            exchange.answered = true;
            &mut exchange.reply
        } else {
            // What need not be answered is not waited for.
            exchange.answered |= !must_match;
            exchange.asked.get_or_insert((number, time));
            &mut exchange.request
        };
        place.is_repeated = !take(side, header, payload, &mut self.held_bytes);
        if side.done && !place.is_repeated && !side.bytes.is_empty() {
            self.held_bytes -= side.bytes.len();
            place.message = Some(std::mem::take(&mut side.bytes));
        }
        place
    }

    fn begin(&mut self, key: Key) {
        let new = Exchange {
            asked: None,
            answered: false,
            request: Side::default(),
            reply: Side::default(),
        };
        if let Some(old) = self.recent.insert(key, new) {
            self.held_bytes -= old.request.bytes.len() + old.reply.bytes.len();
            self.forgotten_unanswered += u64::from(old.asked.is_some() && !old.answered);
        }
    }

    /// A refusal to `dst` answers whatever frame carried its connection and command.
    fn refused(&mut self, dst: Mac, header: &Header, time: Duration) -> Place {
        let scope = match header.connection.0 {
            0 => Scope::Initiator(dst, header.ioc.0),
            _ => self.scope(header),
        };
        let asked = Kind::ALL.iter().find_map(|kind| {
            let key = (scope, *kind, header.command.0);
            let exchange = self.recent.map.get_mut(&key)?;
            exchange.answered = true;
            exchange.asked
        });
        Place {
            answers: asked.map(|(frame, asked)| (frame, time.saturating_sub(asked))),
            ..Place::default()
        }
    }

    fn scope(&self, header: &Header) -> Scope {
        let connection = header.connection.0;
        self.sessions
            .map
            .get(&connection)
            .copied()
            .unwrap_or(Scope::Connection(connection))
    }

    /// Which exchange a frame from `src` to `dst` belongs to, and as what.
    fn key(&self, (src, dst): (Mac, Mac), header: &Header, payload: &[u8]) -> Option<(Key, Role)> {
        let command = header.command.0;
        let connection = Scope::Connection(header.connection.0);
        let (role, initiator) = if header.is_reply() {
            (Role::Reply, dst)
        } else {
            (Role::Request, src)
        };
        Some(match header.kind {
            Kind::Connect => {
                let scope = Scope::Initiator(initiator, header.ioc.0);
                ((scope, Kind::Connect, command), role)
            }
            Kind::Disconnect => ((connection, Kind::Disconnect, command), Role::Message),
            Kind::Probe => ((connection, Kind::Probe, command), Role::Message),
            Kind::Progress => ((connection, Kind::Probe, command), Role::Report),
            Kind::Notify | Kind::NotifyAck => {
                let number = u64::from_be_bytes(*payload.first_chunk()?);
                let role = match header.kind {
                    Kind::Notify => Role::Message,
                    _ => Role::Report,
                };
                ((connection, Kind::Notify, number), role)
            }
            Kind::Path => {
                let number = u32::from_be_bytes(*payload.first_chunk()?);
                // One that is too long for the path has no answer.
                let role = if header.is_reply() {
                    Role::Report
                } else {
                    Role::Message
                };
                ((connection, Kind::Path, number.into()), role)
            }
            Kind::Discover => {
                let asker = Scope::Initiator(src, 0);
                ((asker, Kind::Discover, 0), Role::Message)
            }
            Kind::Here => {
                let asker = Scope::Initiator(dst, 0);
                ((asker, Kind::Discover, 0), Role::Report)
            }
            kind => ((self.scope(header), kind, command), role),
        })
    }

    /// A reconnect continues its session's exchanges on another connection.
    fn learn_session(&mut self, initiator: Mac, header: &Header, payload: &[u8]) {
        if header.kind != Kind::Connect {
            return;
        }
        let ioc = header.ioc.0;
        let nonce = (initiator, ioc, header.command.0);
        if !header.is_reply() {
            if let Some(identity) = payload.first_chunk::<32>() {
                self.connects.insert(nonce, *identity);
            }
        } else if let (Status::Ok, Some(initiator), Some(responder)) = (
            header.status,
            self.connects.map.get(&nonce),
            payload.first_chunk::<16>(),
        ) {
            let session = Scope::Session(Identity {
                initiator: *initiator,
                responder: *responder,
                ioc,
            });
            self.sessions.insert(header.connection.0, session);
        }
    }
}

/// A side takes a segment; says whether something of it was new. Messages of several segments are
/// put together, but for data and beyond the limit of held bytes.
fn take(side: &mut Side, header: &Header, payload: &[u8], held_bytes: &mut usize) -> bool {
    let (from, total) = (header.segment_offset, header.message_len);
    let to = from + payload.len() as u32;
    if total == 0 {
        return !std::mem::replace(&mut side.done, true);
    }
    let is_new = cover(&mut side.covered, from, to);
    if side.done {
        return is_new;
    }
    let is_data = header.kind == Kind::Write || header.kind == Kind::Read;
    let is_segment = payload.len() < total as usize;
    let has_room = *held_bytes + total as usize <= MAX_HELD_BYTES;
    if is_segment && !is_data && side.bytes.is_empty() && has_room {
        side.bytes = vec![0; total as usize];
        *held_bytes += side.bytes.len();
    }
    // Also a whole message completes one of which there were parts.
    if let Some(place) = side.bytes.get_mut(from as usize..to as usize) {
        place.copy_from_slice(payload);
    }
    side.done = side.covered == [(0, total)];
    is_new
}

/// Adds `from..to` to sorted ranges that neither touch nor overlap; says whether it was new.
fn cover(ranges: &mut Vec<(u32, u32)>, mut from: u32, mut to: u32) -> bool {
    let start = ranges.partition_point(|r| r.1 < from);
    let end = ranges.partition_point(|r| r.0 <= to);
    if let [one] = ranges[start..end]
        && one.0 <= from
        && one.1 >= to
    {
        return false;
    }
    if let [first, .., last] | [first @ last] = ranges[start..end] {
        from = from.min(first.0);
        to = to.max(last.1);
    }
    ranges.splice(start..end, [(from, to)]);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{CommandId, ConnectionId, Flags};

    const HOST: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const UNIT: Mac = Mac([2, 0, 0, 0, 0, 2]);

    #[test]
    fn ranges_join_whatever_their_order() {
        let mut ranges = Vec::new();
        assert!(cover(&mut ranges, 10, 20));
        assert!(cover(&mut ranges, 40, 50));
        assert!(!cover(&mut ranges, 12, 18));
        assert!(cover(&mut ranges, 25, 30));
        assert_eq!(ranges, [(10, 20), (25, 30), (40, 50)]);
        assert!(cover(&mut ranges, 20, 26));
        assert_eq!(ranges, [(10, 30), (40, 50)]);
        assert!(cover(&mut ranges, 0, 60));
        assert_eq!(ranges, [(0, 60)]);
    }

    fn request(kind: Kind, command: u64) -> Header {
        Header {
            connection: ConnectionId(7),
            command: CommandId(command),
            ..Header::new(kind)
        }
    }

    #[test]
    fn the_oldest_exchanges_are_forgotten() {
        let mut exchanges = Exchanges::new();
        let n = MAX_EXCHANGES as u64 + 10;
        for i in 0..n {
            let header = request(Kind::Flush, i);
            exchanges.place(i, Duration::ZERO, (HOST, UNIT), &header, &[]);
        }
        assert_eq!(exchanges.recent.map.len(), MAX_EXCHANGES);
        assert_eq!(exchanges.unanswered(), n);
        let answer = |exchanges: &mut Exchanges, command| {
            let reply = Header {
                flags: Flags::REPLY,
                ..request(Kind::Flush, command)
            };
            exchanges.place(n, Duration::ZERO, (UNIT, HOST), &reply, &[])
        };
        assert!(answer(&mut exchanges, 5).is_unmatched);
        assert_eq!(
            answer(&mut exchanges, n - 1).answers,
            Some((n - 1, Duration::ZERO))
        );
    }

    #[test]
    fn incomplete_messages_are_held_within_the_limit() {
        let mut exchanges = Exchanges::new();
        for i in 0..200 {
            let header = Header {
                message_len: 1 << 20,
                ..request(Kind::Offer, i)
            };
            exchanges.place(i, Duration::ZERO, (HOST, UNIT), &header, &[1]);
        }
        assert_eq!(exchanges.held_bytes, MAX_HELD_BYTES);
    }
}
