//! The paths of a connection: which pairs of NICs reach each other, what they carry, which one a command
//! takes. A command's identity is the connection's; paths only carry its frames.

mod long;

use std::collections::VecDeque;
use std::time::Duration;

use smallvec::SmallVec;

use super::mtu::{Again, Checks, LEAST, MtuSearch};
use super::nics::{NicState, PathReport, Standing};
use crate::session::flow::{RoundTrip, Window};
use crate::session::limits::{MAX_PATHS, PATH_INTERVAL, PATH_MTU_START, RTO_INITIAL, RTO_MAX};
use crate::wire::message::PathProbe;
use crate::wire::{Hop, Mac, Time};

/// Probes of a path that may be unanswered; older ones are forgotten.
const MAX_ASKED: usize = 16;
/// Answers in a row after which a path that had been silent for longer is used again.
const RETURN_ANSWERS: u8 = 3;

/// A probe that was sent.
#[derive(Debug, Clone, Copy)]
struct Asked {
    number: u32,
    /// Bytes of its frame; 0 of the least.
    size: u16,
    /// What it told the responder.
    told: u16,
    at: Time,
}

/// A pair of NICs.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) hop: Hop,
    pub(super) standing: Standing,
    /// The most bytes of a frame that it is known, or at first taken, to carry.
    pub(super) mtu: u16,
    pub(super) window: Window,
    pub(super) rtt: RoundTrip,
    pub(super) heard_at: Time,
    /// Commands that have taken it.
    pub(super) commands: u64,
    /// Whether both NICs are said to be there.
    offered: bool,
    /// Commands sent once by this path and not heard of, with the time of sending, in its order.
    pub(super) fresh: VecDeque<(u64, Time)>,
    /// Timeouts of commands with long frames since one was answered.
    strikes: u32,
    /// What the own NIC takes, and what the other one says to take.
    limits: (u16, u16),
    /// What the responder knows it may send.
    told: u16,
    search: MtuSearch,
    /// The length in use, where the search is for that, and when there may be another such.
    checking: Option<u16>,
    checks: Checks,
    /// How often in a row the search was put off, because nothing that was sent later had passed.
    put_off: u32,
    /// The last probe of a length that was sent, and the last of the least that was answered.
    long_sent: u32,
    least_passed: u32,
    /// When what lies above its result is tried again.
    again: Again,
    asked: SmallVec<[Asked; 4]>,
    /// When the least probe is sent (again).
    ask_at: Option<Time>,
    /// How often it was sent in vain.
    asks: u32,
}

impl Path {
    fn new(hop: Hop, service: bool, limits: (u16, u16)) -> Self {
        // Longer ones are tried first.
        let mtu = limits.0.min(limits.1).min(PATH_MTU_START);
        Self {
            hop,
            standing: Standing::Silent { answers: 0 },
            mtu,
            window: Window::new(),
            rtt: RoundTrip::new(service),
            heard_at: Time::ZERO,
            commands: 0,
            offered: true,
            fresh: VecDeque::new(),
            strikes: 0,
            limits,
            told: mtu,
            search: MtuSearch::default(),
            checking: None,
            checks: Checks::default(),
            put_off: 0,
            long_sent: 0,
            least_passed: 0,
            again: Again::default(),
            asked: SmallVec::new(),
            ask_at: None,
            asks: 0,
        }
    }

    pub(super) fn is_good(&self) -> bool {
        self.standing == Standing::Good
    }

    pub(super) fn report(&self) -> PathReport {
        PathReport {
            hop: self.hop,
            is_used: self.is_good(),
            mtu: self.mtu,
            round_trip: self.rtt.smoothed(),
            commands: self.commands,
        }
    }

    fn limit(&self) -> u16 {
        self.limits.0.min(self.limits.1).max(LEAST)
    }

    /// A command with long frames was answered at its first sending.
    pub(super) const fn long_frames_pass(&mut self) {
        self.strikes = 0;
    }

    fn ask_soon(&mut self, now: Time) {
        self.asks = 0;
        self.ask_at = Some(now);
    }

    /// A command that was sent at `sent_at` is not answered; `long` where its frames are.
    fn timed_out(&mut self, now: Time, sent_at: Time, long: bool, alone: bool) {
        if long && self.mtu > LEAST {
            self.strikes += 1;
        }
        if self.is_doubtful() {
            self.check(now);
        }
        if !alone && self.is_good() && self.heard_at <= sent_at {
            self.standing = Standing::Silent { answers: 0 };
            self.ask_soon(now);
        }
    }

    /// Takes the answer to a probe, where it is one; whether the path carries less than was thought.
    fn answered(&mut self, now: Time, probe: &PathProbe) -> Option<bool> {
        let at = self.asked.iter().position(|a| a.number == probe.number)?;
        let asked = self.asked.remove(at);
        // Until now the responder has sent longer frames: what it sent may not have passed.
        let mut less = asked.told < std::mem::replace(&mut self.told, asked.told);
        if asked.size == 0 {
            self.least_passed = asked.number;
            if self.put_off > 0 {
                self.search.put_off(now);
            }
            self.rtt.sample(now.since(asked.at));
        } else if self.search.is_going() {
            self.search.passed(now, asked.size);
            less |= self.follow_search(now);
        }
        if probe.mtu != self.limits.1 {
            self.limits.1 = probe.mtu;
            self.relimit(now);
        }
        Some(less)
    }

    /// It has answered.
    fn alive(&mut self, now: Time, was_heard: bool, interval: Option<Duration>) {
        let asks = std::mem::take(&mut self.asks);
        if let Standing::Silent { answers } = &mut self.standing {
            *answers += 1;
            if was_heard && asks > 1 && *answers < RETURN_ANSWERS {
                // It has been away: once is not enough.
                self.asks = 2;
                self.ask_at = Some(now + RTO_INITIAL);
                return;
            }
            self.standing = Standing::Good;
            if asks > 1 || !was_heard {
                // Whatever it was before, it may be another way now.
                self.window.restart();
                self.mtu = self.mtu.min(PATH_MTU_START).min(self.limit());
                self.search(now);
            }
        }
        self.ask_at = if self.told == self.mtu {
            interval.map(|interval| now + interval)
        } else {
            Some(now)
        };
    }

    /// The least probe is sent; whether the path is lost.
    fn ask(&mut self, now: Time, alone: bool) -> bool {
        self.asks = self.asks.saturating_add(1);
        let in_vain = self.asked.iter().any(|asked| asked.size == 0);
        if in_vain {
            match &mut self.standing {
                Standing::Silent { answers } => *answers = 0,
                standing if !alone => *standing = Standing::Silent { answers: 0 },
                _ => {}
            }
        }
        let longest = if self.heard_at == Time::ZERO {
            PATH_INTERVAL
        } else {
            RTO_MAX
        };
        let wait = RTO_INITIAL * (1 << (self.asks - 1).min(9));
        self.ask_at = Some(now + wait.min(longest));
        self.asks == 2 && !alone
    }

    fn due(&self) -> Option<Time> {
        if self.standing == Standing::Down {
            return None;
        }
        let check = self.is_doubtful().then(|| self.checks.next());
        let again = self.again.at().filter(|_| !self.search.is_going());
        let times = [self.ask_at, self.search.due(), again, check];
        times.into_iter().flatten().min()
    }
}

/// The paths of a connection; at least one.
#[derive(Debug)]
pub(super) struct Paths {
    pub(super) list: Vec<Path>,
    /// Whether there are path probes.
    service: bool,
    /// The one that was heard of last: for what belongs to no command.
    best: usize,
    next_number: u32,
    /// Probes to be sent: the path, and the bytes of the frame.
    pub(super) queue: VecDeque<(usize, u16)>,
    /// When one of them has to be looked at.
    due: Option<Time>,
    /// Counts choices, for the turns of equal paths.
    turn: usize,
}

impl Paths {
    pub(super) fn new(service: bool, mtu: u16) -> Self {
        let mut path = Path::new(Hop::from(Mac::default()), service, (mtu, mtu));
        path.standing = Standing::Good;
        Self {
            list: vec![path],
            service,
            best: 0,
            next_number: 1,
            queue: VecDeque::new(),
            due: None,
            turn: 0,
        }
    }

    /// The responder's addresses that answer.
    pub(super) fn good_macs(&self) -> impl Iterator<Item = Mac> + '_ {
        let good = self.list.iter().filter(|path| path.is_good());
        good.map(|path| path.hop.mac)
    }

    fn is_single(&self) -> bool {
        self.list.len() == 1
    }

    /// How long an idle path is not asked; `None` where keep-alives do that.
    fn interval(&self) -> Option<Duration> {
        (!self.is_single()).then_some(PATH_INTERVAL)
    }

    /// A connection was opened by `hop`, over NICs that take so much.
    pub(super) fn open(&mut self, now: Time, hop: Hop, limits: (u16, u16)) {
        let mut path = match self.list.iter().position(|path| path.hop == hop) {
            Some(at) => self.list.swap_remove(at),
            None => Path::new(hop, self.service, limits),
        };
        let fresh = Path::new(hop, self.service, limits);
        path = Path {
            standing: Standing::Good,
            window: path.window,
            rtt: path.rtt,
            heard_at: now,
            commands: path.commands,
            ..fresh
        };
        path.window.clear();
        if self.service {
            path.search(now);
        }
        self.list = vec![path];
        self.best = 0;
        self.queue.clear();
        self.renew_due();
    }

    /// These pairs of NICs are there, and no others but the one in use.
    pub(super) fn offer(&mut self, now: Time, hops: &[Hop], nics: &[NicState], remote_mtu: u16) {
        let current = self.list[self.best].hop;
        for path in &mut self.list {
            path.offered = path.hop == current || hops.contains(&path.hop);
            if !path.offered {
                path.standing = Standing::Down;
            }
        }
        for hop in hops {
            if self.list.iter().any(|path| path.hop == *hop) {
                continue;
            }
            let mtu = nics.get(usize::from(hop.nic)).map_or(LEAST, |nic| nic.mtu);
            let mut path = Path::new(*hop, self.service, (mtu, remote_mtu));
            path.ask_at = Some(now);
            // Commands know their paths by number.
            let unused = |path: &Path| !path.offered && path.window.load() == 0;
            if let Some(at) = self.list.iter().position(unused) {
                self.list[at] = path;
            } else if self.list.len() < MAX_PATHS {
                self.list.push(path);
            }
        }
        self.set_nics(now, nics);
    }

    /// The own NICs have changed.
    pub(super) fn set_nics(&mut self, now: Time, nics: &[NicState]) {
        let single = self.is_single();
        for path in self.list.iter_mut().filter(|path| path.offered) {
            let Some(nic) = nics.get(usize::from(path.hop.nic)) else {
                continue;
            };
            if !nic.up && !single {
                path.standing = Standing::Down;
            } else if nic.up && path.standing == Standing::Down {
                path.standing = Standing::Silent { answers: 0 };
                path.ask_soon(now);
                path.asks = 1;
            }
            if path.limits.0 != nic.mtu && self.service {
                path.limits.0 = nic.mtu;
                path.relimit(now);
                // The other end may take more, too.
                path.ask_soon(now);
            }
        }
        self.renew_due();
    }

    /// A frame came by `hop`; whether that path was heard before.
    pub(super) fn heard(&mut self, now: Time, hop: Hop) -> bool {
        if self.list[self.best].hop != hop {
            let Some(at) = self.list.iter().position(|path| path.hop == hop) else {
                return true;
            };
            self.best = at;
        }
        std::mem::replace(&mut self.list[self.best].heard_at, now) != Time::ZERO
    }

    /// The path of what belongs to no command; another one for each of `tries` in vain.
    pub(super) fn for_control(&self, tries: u32) -> usize {
        let count = self.list.len();
        let best = if self.list[self.best].standing == Standing::Down {
            self.usable().unwrap_or(self.best)
        } else {
            self.best
        };
        (best + tries as usize) % count
    }

    fn usable(&self) -> Option<usize> {
        self.list.iter().position(Path::is_good)
    }

    /// A path that takes a command of `cost` bytes now: of several the one with most of its window free.
    pub(super) fn choose(&mut self, cost: usize) -> Option<usize> {
        if self.is_single() {
            return self.list[0].window.admits(cost).then_some(0);
        }
        let any_good = self.usable().is_some();
        let count = self.list.len();
        self.turn = (self.turn + 1) % count;
        let turn = self.turn;
        (0..count)
            .map(|n| (turn + n) % count)
            .filter(|n| {
                let path = &self.list[*n];
                let fit = path.is_good() || (!any_good && path.standing != Standing::Down);
                fit && path.window.admits(cost)
            })
            .min_by_key(|n| self.list[*n].window.load())
    }

    /// The path by which a command is sent again that was sent by `from`.
    pub(super) fn again(&self, from: usize) -> usize {
        if self.is_single() || self.list.get(from).is_some_and(Path::is_good) {
            return from.min(self.list.len() - 1);
        }
        let good = (0..self.list.len()).filter(|n| self.list[*n].is_good());
        good.min_by_key(|n| self.list[*n].window.load())
            .unwrap_or_else(|| self.for_control(1))
    }

    /// A command that was sent at `sent_at` by a path is not answered.
    pub(super) fn timed_out(&mut self, now: Time, path: usize, sent_at: Time, long: bool) {
        let single = self.is_single();
        if !self.service {
            return;
        }
        if let Some(path) = self.list.get_mut(path) {
            path.timed_out(now, sent_at, long, single);
        }
        self.renew_due();
    }

    /// A keep-alive by a path was not answered.
    pub(super) fn doubt(&mut self, now: Time, path: usize) {
        self.timed_out(now, path, now, false);
    }

    /// Takes the answer to a probe; the paths that carry less than was thought.
    pub(super) fn on_probe(
        &mut self,
        now: Time,
        (hop, was_heard): (Hop, bool),
        probe: &PathProbe,
    ) -> Lost {
        let interval = self.interval();
        let mut lost = Lost::default();
        if let Some(at) = self.list.iter().position(|path| path.hop == hop) {
            let path = &mut self.list[at];
            if let Some(less) = path.answered(now, probe) {
                path.alive(now, was_heard, interval);
                if less {
                    lost.push(at);
                }
            }
        }
        self.renew_due();
        lost
    }

    /// Queues the probes that are due; the paths that are lost, or carry less than was thought.
    pub(super) fn tick(&mut self, now: Time) -> Lost {
        let mut lost = Lost::default();
        if self.due.is_none_or(|due| due > now) {
            return lost;
        }
        let single = self.is_single();
        for (at, path) in self.list.iter_mut().enumerate() {
            if path.standing == Standing::Down {
                continue;
            }
            if path.again.at().is_some_and(|again| again <= now) && !path.search.is_going() {
                path.search(now);
                path.ask_soon(now);
            }
            if path.is_doubtful() {
                path.check(now);
            }
            if path.search.due().is_some_and(|due| due <= now) {
                let sizes = path.next_sizes(now);
                self.queue.extend(sizes.into_iter().map(|size| (at, size)));
                if path.follow_search(now) {
                    lost.push(at);
                }
            }
            if path.ask_at.is_some_and(|ask| ask <= now) {
                self.queue.push_back((at, 0));
                if path.ask(now, single) {
                    lost.push(at);
                }
            }
        }
        self.renew_due();
        lost
    }

    /// When [`Self::tick`] has something to do.
    pub(super) const fn due(&self) -> Option<Time> {
        self.due
    }

    fn renew_due(&mut self) {
        self.due = self.list.iter().filter_map(Path::due).min();
    }

    /// The next probe to be sent, and by which path.
    pub(super) fn next_probe(&mut self, now: Time) -> Option<(usize, PathProbe)> {
        while let Some((at, size)) = self.queue.pop_front() {
            let Some(path) = self.list.get_mut(at) else {
                continue;
            };
            let number = self.next_number;
            self.next_number = number.wrapping_add(1);
            if path.asked.len() >= MAX_ASKED {
                path.asked.remove(0);
            }
            if size == 0 {
                path.asked.retain(|asked| asked.size != 0);
            } else {
                path.long_sent = number;
            }
            path.asked.push(Asked {
                number,
                size,
                told: path.mtu,
                at: now,
            });
            return Some((at, PathProbe::of_frame(number, path.mtu, size)));
        }
        None
    }
}

/// Paths by which what was sent has to be sent again, or in shorter frames.
pub(super) type Lost = SmallVec<[usize; 2]>;
