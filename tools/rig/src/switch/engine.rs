//! The switch's thread: receive from one port, learn, draw faults, send to others.

use super::capture::Recorder;
use super::faults::{self, Faults, Verdict};
use super::port::{Port, PortCounters, PortId};
use crate::RigError;
use fastrand::Rng;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use rma::net::{BATCH_FRAMES, ETHERNET_HEADER_LEN, raw};
use rma::wire::Mac;
use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant, SystemTime};

/// Something that the owner of the switch wants done on its thread.
pub(super) type Task = Box<dyn FnOnce(&mut Engine) + Send>;

/// The longest frame that is forwarded.
const MAX_FRAME_BYTES: usize = 9000 + ETHERNET_HEADER_LEN;
/// The most frames that are held back at one time.
const MAX_HELD: usize = 65_536;
/// The most stations that are remembered; beyond it, frames to a new one are flooded.
const MAX_STATIONS: usize = 16_384;
/// Readiness reports taken at once.
const EVENTS: usize = 64;
/// Report that the owner wants something; ports report their own number.
const WAKE: u64 = u64::MAX;
/// Report that a frame held back is due.
const TIMER: u64 = u64::MAX - 1;
/// EtherType of IPv6, whose group-addressed frames are not flooded: every idle namespace sends them.
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// The state of the switch, all of it owned by one thread.
pub(super) struct Engine {
    epoll: Epoll,
    timer: TimerFd,
    wake: Arc<EventFd>,
    tasks: Receiver<Task>,
    stopping: bool,
    ports: BTreeMap<PortId, Port>,
    stations: HashMap<Mac, PortId>,
    faults: Faults,
    /// Whether any fault is set anywhere.
    faulty: bool,
    /// Pairs, in both orders, between which nothing passes.
    blocked: BTreeSet<(PortId, PortId)>,
    rng: Rng,
    held: BinaryHeap<Reverse<Held>>,
    held_before: u64,
    recorder: Option<Recorder>,
    inbox: Inbox,
    /// What goes to each port out of the batch that is being forwarded.
    leaving: BTreeMap<PortId, Vec<Leaving>>,
}

/// The frames that were received last.
#[derive(Default)]
struct Inbox {
    buffer: Vec<u8>,
    lengths: Vec<usize>,
}

/// A frame that leaves with the current batch.
enum Leaving {
    /// As it is in this slot of the inbox.
    Received(usize),
    /// Changed on its way.
    Changed(Vec<u8>),
}

/// A frame that leaves later. Ordered by when; those due together leave in the order of arrival.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    due: Instant,
    order: u64,
    to: PortId,
    bytes: Vec<u8>,
}

impl Engine {
    pub(super) fn new(seed: u64, wake: Arc<EventFd>, tasks: Receiver<Task>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        let buffer = vec![0; MAX_FRAME_BYTES * BATCH_FRAMES];
        Ok(Self {
            epoll,
            timer,
            wake,
            tasks,
            stopping: false,
            ports: BTreeMap::new(),
            stations: HashMap::new(),
            faults: Faults::default(),
            faulty: false,
            blocked: BTreeSet::new(),
            rng: Rng::with_seed(seed),
            held: BinaryHeap::new(),
            held_before: 0,
            recorder: None,
            inbox: Inbox {
                buffer,
                lengths: Vec::new(),
            },
            leaving: BTreeMap::new(),
        })
    }

    /// Forwards until told to stop.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        while !self.stopping {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(Errno::EINTR) => 0,
                other => other?,
            };
            for event in &events[..ready] {
                match event.data() {
                    WAKE => self.do_tasks(),
                    TIMER => {
                        let _ = self.timer.wait();
                    }
                    port => self.forward_from(PortId(port as u32)),
                }
            }
            self.release()?;
        }
        Ok(())
    }

    pub(super) fn stop(&mut self) {
        self.stopping = true;
    }

    /// Opens a port, or opens it anew on another interface of its name.
    pub(super) fn open(&mut self, id: PortId) -> io::Result<()> {
        let socket = Port::open(id)?;
        self.epoll.add(
            &socket,
            EpollEvent::new(EpollFlags::EPOLLIN, u64::from(id.0)),
        )?;
        if let Some(port) = self.ports.get_mut(&id) {
            // Closing the old socket takes it out of the epoll set.
            port.socket = socket;
        } else {
            let (faults, counters) = (Faults::default(), PortCounters::default());
            self.ports.insert(
                id,
                Port {
                    socket,
                    faults,
                    counters,
                },
            );
        }
        Ok(())
    }

    pub(super) fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
        self.note_faults();
    }

    pub(super) fn set_port_faults(&mut self, ids: &[PortId], faults: Faults) {
        for id in ids {
            if let Some(port) = self.ports.get_mut(id) {
                port.faults = faults;
            }
        }
        self.note_faults();
    }

    pub(super) fn partition(&mut self, one: &[PortId], other: &[PortId]) {
        for &a in one {
            for &b in other {
                self.blocked.extend([(a, b), (b, a)]);
            }
        }
    }

    pub(super) fn heal(&mut self) {
        self.blocked.clear();
    }

    /// Completes the capture that is being written and goes on with another or none; how many frames
    /// the completed one has.
    pub(super) fn record(&mut self, recorder: Option<Recorder>) -> Result<u64, RigError> {
        let before = std::mem::replace(&mut self.recorder, recorder);
        before.map_or(Ok(0), Recorder::finish)
    }

    /// The sum of what the chosen ports have done.
    pub(super) fn counters(&mut self, chosen: impl Fn(PortId) -> bool) -> PortCounters {
        let mut sum = PortCounters::default();
        for (_, port) in self.ports.iter_mut().filter(|(id, _)| chosen(**id)) {
            port.counters.overrun += raw::take_drops(&port.socket).unwrap_or(0);
            sum += port.counters;
        }
        sum
    }

    fn note_faults(&mut self) {
        let on_ports = self.ports.values().any(|port| !port.faults.is_none());
        self.faulty = on_ports || !self.faults.is_none();
    }

    fn do_tasks(&mut self) {
        let _ = self.wake.read();
        while let Ok(task) = self.tasks.try_recv() {
            task(self);
        }
    }

    /// Forwards one batch; what is left makes the port ready again, after the others had a turn.
    fn forward_from(&mut self, from: PortId) {
        let Some(port) = self.ports.get_mut(&from) else {
            return;
        };
        let mut inbox = std::mem::take(&mut self.inbox);
        inbox.lengths.clear();
        let Inbox { buffer, lengths } = &mut inbox;
        // A pulled cable is told once as an error, which reading takes away.
        if raw::receive(
            port.socket.as_fd(),
            buffer,
            MAX_FRAME_BYTES,
            BATCH_FRAMES,
            lengths,
        )
        .is_ok()
        {
            for &len in &*lengths {
                port.counters.received_frames += 1;
                port.counters.received_bytes += len as u64;
            }
            self.record_batch(&inbox);
            for slot in 0..inbox.lengths.len() {
                // What is longer than any cable takes was cut when it was received; it ends here.
                if inbox.lengths[slot] <= MAX_FRAME_BYTES {
                    self.forward(from, slot, inbox.frame(slot));
                } else {
                    self.count(from, |counters| counters.refused += 1);
                }
            }
            self.send_batch(&inbox);
        }
        self.inbox = inbox;
    }

    fn record_batch(&mut self, inbox: &Inbox) {
        let Some(recorder) = &mut self.recorder else {
            return;
        };
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        for slot in 0..inbox.lengths.len() {
            recorder.record(now, inbox.frame(slot));
        }
    }

    /// Decides where one frame goes.
    fn forward(&mut self, from: PortId, slot: usize, frame: &[u8]) {
        let Some((destination, rest)) = frame.split_first_chunk().map(|(d, rest)| (Mac(*d), rest))
        else {
            return;
        };
        let Some((source, rest)) = rest.split_first_chunk().map(|(s, rest)| (Mac(*s), rest)) else {
            return;
        };
        let ethertype = rest
            .first_chunk()
            .map_or(0, |ethertype| u16::from_be_bytes(*ethertype));
        self.learn(source, from);
        if destination.is_multicast() {
            if ethertype != ETHERTYPE_IPV6 {
                self.flood(from, slot, frame);
            }
        } else if let Some(&to) = self.stations.get(&destination) {
            if to != from {
                self.pass(from, to, slot, frame);
            }
        } else {
            self.flood(from, slot, frame);
        }
    }

    fn learn(&mut self, station: Mac, port: PortId) {
        if station.is_multicast() {
            return;
        }
        if let Some(known) = self.stations.get_mut(&station) {
            *known = port;
        } else if self.stations.len() < MAX_STATIONS {
            self.stations.insert(station, port);
        }
    }

    fn flood(&mut self, from: PortId, slot: usize, frame: &[u8]) {
        let mut next = self.ports.keys().next().copied();
        while let Some(to) = next {
            if to != from {
                self.pass(from, to, slot, frame);
            }
            next = self
                .ports
                .range(PortId(to.0 + 1)..)
                .next()
                .map(|(id, _)| *id);
        }
    }

    /// Lets one frame go towards one port, as partitions and faults have it.
    fn pass(&mut self, from: PortId, to: PortId, slot: usize, frame: &[u8]) {
        if !self.blocked.is_empty() && self.blocked.contains(&(from, to)) {
            self.count(to, |counters| counters.blocked += 1);
        } else if self.faulty {
            let verdict = self.judge(from, to, frame);
            self.carry_out(verdict, to, slot, frame);
        } else {
            self.leaving
                .entry(to)
                .or_default()
                .push(Leaving::Received(slot));
        }
    }

    fn judge(&mut self, from: PortId, to: PortId, frame: &[u8]) -> Verdict {
        let mut verdict = Verdict::default();
        let payload_len = frame.len().saturating_sub(ETHERNET_HEADER_LEN);
        let of_port = |id| self.ports.get(&id).map(|port| port.faults);
        for faults in [Some(self.faults), of_port(from), of_port(to)]
            .into_iter()
            .flatten()
        {
            faults.draw(&mut self.rng, payload_len, &mut verdict);
        }
        verdict
    }

    fn carry_out(&mut self, verdict: Verdict, to: PortId, slot: usize, frame: &[u8]) {
        if verdict.black_holed {
            return self.count(to, |counters| counters.black_holed += 1);
        }
        if verdict.lost {
            return self.count(to, |counters| counters.lost += 1);
        }
        if let Some(later) = verdict.copy_after {
            self.count(to, |counters| counters.duplicated += 1);
            self.hold(verdict.delay + later, to, frame.to_vec());
        }
        if verdict.reordered {
            self.count(to, |counters| counters.reordered += 1);
        }
        let changed = verdict.corrupted.then(|| {
            let mut bytes = frame.to_vec();
            faults::corrupt(&mut self.rng, &mut bytes, ETHERNET_HEADER_LEN);
            bytes
        });
        if changed.is_some() {
            self.count(to, |counters| counters.corrupted += 1);
        }
        if !verdict.delay.is_zero() {
            let bytes = changed.unwrap_or_else(|| frame.to_vec());
            return self.hold(verdict.delay, to, bytes);
        }
        let leaving = changed.map_or(Leaving::Received(slot), Leaving::Changed);
        self.leaving.entry(to).or_default().push(leaving);
    }

    fn hold(&mut self, delay: Duration, to: PortId, bytes: Vec<u8>) {
        if self.held.len() >= MAX_HELD {
            return self.count(to, |counters| counters.congested += 1);
        }
        self.count(to, |counters| counters.held += 1);
        self.held_before += 1;
        let due = Instant::now() + delay;
        self.held.push(Reverse(Held {
            due,
            order: self.held_before,
            to,
            bytes,
        }));
    }

    /// Sends what is due of what was held back, and sets the timer for the rest.
    fn release(&mut self) -> io::Result<()> {
        let Some(Reverse(first)) = self.held.peek() else {
            return Ok(());
        };
        let now = Instant::now();
        if first.due <= now {
            while let Some(held) = self.take_due(now) {
                self.count(held.to, |counters| counters.held -= 1);
                let leaving = self.leaving.entry(held.to).or_default();
                leaving.push(Leaving::Changed(held.bytes));
            }
            self.send_batch(&Inbox::default());
        }
        if let Some(Reverse(first)) = self.held.peek() {
            let wait = first
                .due
                .saturating_duration_since(now)
                .max(Duration::from_nanos(1));
            let once = Expiration::OneShot(TimeSpec::from_duration(wait));
            self.timer.set(once, TimerSetTimeFlags::empty())?;
        }
        Ok(())
    }

    fn take_due(&mut self, now: Instant) -> Option<Held> {
        let first = self.held.peek_mut().filter(|first| first.0.due <= now)?;
        Some(PeekMut::pop(first).0)
    }

    /// Sends what is leaving, each port's frames together.
    fn send_batch(&mut self, inbox: &Inbox) {
        for (to, frames) in &mut self.leaving {
            if let Some(port) = self.ports.get_mut(to) {
                for batch in frames.chunks(BATCH_FRAMES) {
                    send(port, inbox, batch);
                }
            }
            frames.clear();
        }
    }

    fn count(&mut self, port: PortId, add: impl FnOnce(&mut PortCounters)) {
        if let Some(port) = self.ports.get_mut(&port) {
            add(&mut port.counters);
        }
    }
}

impl Inbox {
    /// The frame in a slot; one that was too long is cut.
    fn frame(&self, slot: usize) -> &[u8] {
        let start = slot * MAX_FRAME_BYTES;
        &self.buffer[start..start + self.lengths[slot].min(MAX_FRAME_BYTES)]
    }
}

/// Sends one batch, at most [`BATCH_FRAMES`], to one port, without waiting for it.
fn send(port: &mut Port, inbox: &Inbox, batch: &[Leaving]) {
    let mut slices = [[IoSlice::new(&[]); 2]; BATCH_FRAMES];
    for ([slice, _], leaving) in slices.iter_mut().zip(batch) {
        *slice = IoSlice::new(match leaving {
            Leaving::Received(slot) => inbox.frame(*slot),
            Leaving::Changed(bytes) => bytes,
        });
    }
    let mut rest = &slices[..batch.len()];
    while !rest.is_empty() {
        match raw::send(port.socket.as_fd(), rest) {
            Ok(sent) => {
                port.counters.sent_frames += sent as u64;
                port.counters.sent_bytes +=
                    rest[..sent].iter().map(|s| s[0].len() as u64).sum::<u64>();
                rest = &rest[sent..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                port.counters.congested += rest.len() as u64;
                return;
            }
            Err(_) => {
                port.counters.refused += 1;
                rest = &rest[1..];
            }
        }
    }
}
