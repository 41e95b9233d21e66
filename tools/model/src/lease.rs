//! The allocation lease: two hosts that want it, three voters (the hosts' and a unit's) which are the
//! daemons' own [`Voter`], disks that finish when they like, crashes, and frames that arrive late, in
//! any order, or never. Time goes in steps of the renewal interval.

use std::collections::{BTreeMap, BTreeSet};

use rma::lease::{Answer, GIVE_UP, RENEW, StoredVote, TTL, Voter, majority};
use rma::wire::message::{Holder, LeaseRequest, LeaseVerb, Purpose};
use rma::wire::{Granularity, Guid, Settings, TableStamp, Time};
use stateright::{Model, Property};

/// Hosts; each has a voter, and the unit has one.
const HOSTS: u8 = 2;
/// Voters.
const VOTERS: u8 = HOSTS + 1;

/// A mistake that the check must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A voter answers before its promise is on the disk.
    AnsweredBeforeDurable,
    /// A voter forgets at a restart whom it has granted the lease.
    RestartForgetsHolder,
    /// A voter forgets at a restart what it has promised.
    RestartForgetsPromise,
    /// The holder counts its time from the answers, not from when it asked.
    CountsFromAnswer,
    /// The holder goes on for as long as the voters wait.
    GivesUpLate,
    /// One vote is enough.
    NoMajority,
    /// A new session does not ask the voters for the settings.
    SettingsNotLearned,
}

/// Every bug that can be planted.
pub const BUGS: &[Bug] = &[
    Bug::AnsweredBeforeDurable,
    Bug::RestartForgetsHolder,
    Bug::RestartForgetsPromise,
    Bug::CountsFromAnswer,
    Bug::GivesUpLate,
    Bug::NoMajority,
    Bug::SettingsNotLearned,
];

/// How much may happen.
#[derive(Debug, Clone, Copy)]
pub struct LeaseModel {
    /// Steps of time.
    pub steps: u8,
    /// How often each host may ask for a new term.
    pub asks: u8,
    /// How often a holder may renew.
    pub renewals: u8,
    /// Crashes of voters.
    pub crashes: u8,
    /// Whether a holder may release the lease.
    pub releases: bool,
    /// Changes of settings by each host.
    pub settles: u8,
    /// The mistake, if any.
    pub bug: Option<Bug>,
}

/// Who asked a voter, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    host: u8,
    question: Question,
    sent: u8,
}

/// What a voter is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Question {
    Ask(u64),
    Renew(u64),
    Release(u64),
    Settle(u64, u64),
}

/// A frame on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frame {
    /// To a voter.
    Question(u8, Tag),
    /// From a voter: whether it grants or has kept, what it has promised, its settings' stamp.
    Answer(u8, Tag, bool, u64, (u64, u64)),
}

/// A voter with its disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    voter: Voter<Tag>,
    disk: StoredVote,
    writing: Option<(u64, StoredVote)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Session {
    None,
    Asking {
        term: u64,
        sent: u8,
        granted: u8,
    },
    Held {
        term: u64,
        until: u8,
        renewal: Option<(u8, u8)>,
        /// Settings told, and who has kept them.
        told: Option<((u64, u64), u8)>,
    },
}

/// A host's side.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Host {
    known: u64,
    settings: (u64, u64),
    session: Session,
    asks: u8,
    renewals: u8,
    settles: u8,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    now: u8,
    nodes: Vec<Node>,
    hosts: Vec<Host>,
    frames: BTreeSet<Frame>,
    crashes: u8,
    winners: BTreeMap<u64, u8>,
    /// Newest settings acknowledged to an administrator.
    acknowledged: (u64, u64),
    /// Two hosts have won one term.
    shared_term: bool,
    /// A session began without settings that were acknowledged before.
    forgotten: bool,
}

/// What happens next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A host asks for a new term.
    Ask(u8),
    /// The holder renews.
    Renew(u8),
    /// The holder releases.
    Release(u8),
    /// The holder tells the voters new settings.
    Settle(u8),
    /// A frame arrives.
    Deliver(Frame),
    /// A voter's disk has done what it was told.
    Stored(u8),
    /// A voter (and the host around it) loses power and comes back; the write under way was done or not.
    Crash(u8, bool),
    /// Time passes.
    Step,
}

/// A moment of the clock that all machines count on by themselves.
fn at(step: u8) -> Time {
    Time::ZERO + RENEW * u32::from(step)
}

fn steps(duration: std::time::Duration) -> u8 {
    (duration.as_nanos() / RENEW.as_nanos()) as u8
}

fn guid(host: u8) -> Guid {
    Guid(u128::from(host) + 1)
}

fn settings((term, counter): (u64, u64)) -> Settings {
    Settings {
        granularity: Granularity::Unit,
        stamp: TableStamp {
            term,
            counter,
            writer: Guid(1),
        },
    }
}

fn stamp(settings: &Settings) -> (u64, u64) {
    (settings.stamp.term, settings.stamp.counter)
}

fn has_majority(votes: u8, bug: Option<Bug>) -> bool {
    let needed = if bug == Some(Bug::NoMajority) {
        1
    } else {
        majority(VOTERS.into())
    };
    votes.count_ones() as usize >= needed
}

impl Host {
    fn holds(&self, now: u8) -> bool {
        matches!(self.session, Session::Held { until, .. } if now < until)
    }
}

impl LeaseModel {
    /// Takes out what a voter wants stored and has to say.
    fn follow(&self, state: &mut State, index: u8) {
        let now = at(state.now);
        let node = &mut state.nodes[usize::from(index)];
        let early = self.bug == Some(Bug::AnsweredBeforeDurable);
        let mut own = Vec::new();
        while let Some((version, vote)) = node.voter.poll_store(now) {
            if early {
                node.voter.stored(now, version, true);
            }
            node.writing = Some((version, vote));
        }
        while let Some((tag, answer)) = node.voter.poll_answer() {
            let Ok(answer) = answer else { continue };
            let (granted, promised, settings) = match &answer {
                Answer::Lease(reply) => (reply.granted, reply.promised, stamp(&reply.settings)),
                Answer::Settings(settings) => (true, 0, stamp(settings)),
            };
            if tag.host == index {
                own.push((tag, granted, promised, settings));
            } else if !matches!(tag.question, Question::Release(_)) {
                let frame = Frame::Answer(index, tag, granted, promised, settings);
                state.frames.insert(frame);
            }
        }
        for (tag, granted, promised, settings) in own {
            self.answer(state, index, tag, granted, promised, settings);
        }
    }

    fn ask_all(&self, state: &mut State, host: u8, question: Question) {
        let tag = Tag {
            host,
            question,
            sent: state.now,
        };
        for voter in (0..VOTERS).filter(|voter| *voter != host) {
            state.frames.insert(Frame::Question(voter, tag));
        }
        // A host and its own voter are one machine.
        self.question(state, host, tag);
    }

    /// Leaves out answers that nobody waits for: taking them in would change nothing.
    fn prune(state: &mut State) {
        let State { hosts, frames, .. } = state;
        frames.retain(|frame| {
            let Frame::Answer(_, tag, granted, promised, settings) = frame else {
                return true;
            };
            let host = &hosts[usize::from(tag.host)];
            let awaited = match (&host.session, tag.question) {
                (Session::Asking { term, sent, .. }, Question::Ask(asked)) => {
                    *granted && *term == asked && *sent == tag.sent
                }
                (Session::Held { term, renewal, .. }, Question::Renew(asked)) => {
                    *granted && *term == asked && renewal.is_some_and(|(sent, _)| sent == tag.sent)
                }
                (Session::Held { told, .. }, Question::Settle(term, counter)) => {
                    told.is_some_and(|(wanted, _)| wanted == (term, counter))
                }
                _ => false,
            };
            let teaches = host.asks > 0 && (*promised > host.known || *settings > host.settings);
            awaited || teaches
        });
    }

    fn question(&self, state: &mut State, voter: u8, tag: Tag) {
        let now = at(state.now);
        let node = &mut state.nodes[usize::from(voter)];
        let (verb, term) = match tag.question {
            Question::Ask(term) => (LeaseVerb::Ask, term),
            Question::Renew(term) => (LeaseVerb::Renew, term),
            Question::Release(term) => (LeaseVerb::Release, term),
            Question::Settle(term, counter) => {
                node.voter.settle(now, tag, &settings((term, counter)), 0);
                return self.follow(state, voter);
            }
        };
        let request = LeaseRequest {
            verb,
            force: false,
            holder: Holder {
                term,
                host: guid(tag.host),
                purpose: Purpose::Work,
                process: 0,
                name: String::new(),
                user: String::new(),
            },
        };
        node.voter.ask(now, tag, &request, 0);
        self.follow(state, voter);
    }

    fn answer(
        &self,
        state: &mut State,
        voter: u8,
        tag: Tag,
        granted: bool,
        promised: u64,
        told_settings: (u64, u64),
    ) {
        let (now, bit) = (state.now, 1_u8 << voter);
        let host = &mut state.hosts[usize::from(tag.host)];
        host.known = host.known.max(promised);
        if self.bug != Some(Bug::SettingsNotLearned) {
            host.settings = host.settings.max(told_settings);
        }
        let until = match self.bug {
            Some(Bug::CountsFromAnswer) => now + steps(GIVE_UP),
            Some(Bug::GivesUpLate) => tag.sent + steps(TTL) + 1,
            _ => tag.sent + steps(GIVE_UP),
        };
        match (&mut host.session, tag.question) {
            (
                Session::Asking {
                    term,
                    sent,
                    granted: votes,
                },
                Question::Ask(asked),
            ) if asked == *term && tag.sent == *sent && granted => {
                *votes |= bit;
                if has_majority(*votes, self.bug) && now < until {
                    host.session = Session::Held {
                        term: asked,
                        until,
                        renewal: None,
                        told: None,
                    };
                    let knows = host.settings >= state.acknowledged;
                    state.forgotten |= !knows;
                    let before = state.winners.insert(asked, tag.host);
                    state.shared_term |= before.is_some_and(|other| other != tag.host);
                }
            }
            (
                Session::Held {
                    term,
                    until: end,
                    renewal,
                    ..
                },
                Question::Renew(asked),
            ) if asked == *term && granted && now < *end => {
                if let Some((sent, votes)) = renewal
                    && *sent == tag.sent
                {
                    *votes |= bit;
                    if has_majority(*votes, self.bug) {
                        *renewal = None;
                        *end = (*end).max(until);
                    }
                }
            }
            (Session::Held { told, .. }, Question::Settle(term, counter)) => {
                if let Some((wanted, votes)) = told
                    && *wanted == (term, counter)
                    && told_settings >= *wanted
                {
                    *votes |= bit;
                    if has_majority(*votes, self.bug) {
                        state.acknowledged = state.acknowledged.max(*wanted);
                        *told = None;
                    }
                }
            }
            _ => {}
        }
    }

    fn crash(&self, state: &mut State, voter: u8, done: bool) {
        state.crashes -= 1;
        let node = &mut state.nodes[usize::from(voter)];
        if let Some((_, vote)) = node.writing.take()
            && done
        {
            node.disk = vote;
        }
        let mut found = node.disk.clone();
        match self.bug {
            Some(Bug::RestartForgetsHolder) => found.holder = None,
            Some(Bug::RestartForgetsPromise) => found.promised = 0,
            _ => {}
        }
        node.voter = Voter::new(Some(found));
        node.voter.tick(at(state.now));
        let (promised, kept) = (node.voter.promised(), stamp(node.voter.settings()));
        if let Some(host) = state.hosts.get_mut(usize::from(voter)) {
            host.session = Session::None;
            host.known = promised;
            host.settings = kept;
        }
    }
}

impl Model for LeaseModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let node = Node {
            voter: Voter::new(Some(StoredVote::default())),
            disk: StoredVote::default(),
            writing: None,
        };
        let host = Host {
            known: 0,
            settings: (0, 0),
            session: Session::None,
            asks: self.asks,
            renewals: self.renewals,
            settles: self.settles,
        };
        vec![State {
            now: 0,
            nodes: vec![node; VOTERS.into()],
            hosts: vec![host; HOSTS.into()],
            frames: BTreeSet::new(),
            crashes: self.crashes,
            winners: BTreeMap::new(),
            acknowledged: (0, 0),
            shared_term: false,
            forgotten: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, host) in (0..).zip(&state.hosts) {
            match &host.session {
                Session::Held { renewal, told, .. } if host.holds(state.now) => {
                    if host.renewals > 0 && renewal.is_none() {
                        actions.push(Action::Renew(index));
                    }
                    if host.settles > 0 && told.is_none() {
                        actions.push(Action::Settle(index));
                    }
                    if self.releases {
                        actions.push(Action::Release(index));
                    }
                }
                _ if host.asks > 0 => actions.push(Action::Ask(index)),
                _ => {}
            }
        }
        actions.extend(state.frames.iter().copied().map(Action::Deliver));
        for (index, node) in (0..).zip(&state.nodes) {
            if node.writing.is_some() {
                actions.push(Action::Stored(index));
            }
            if state.crashes > 0 {
                actions.push(Action::Crash(index, false));
                if node.writing.is_some() {
                    actions.push(Action::Crash(index, true));
                }
            }
        }
        if state.now < self.steps {
            actions.push(Action::Step);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let now = at(state.now);
        match action {
            Action::Ask(index) => {
                let host = &mut state.hosts[usize::from(index)];
                host.asks -= 1;
                let own = state.nodes[usize::from(index)].voter.promised();
                let term = host.known.max(own) + 1;
                host.session = Session::Asking {
                    term,
                    sent: state.now,
                    granted: 0,
                };
                self.ask_all(&mut state, index, Question::Ask(term));
            }
            Action::Renew(index) => {
                let host = &mut state.hosts[usize::from(index)];
                host.renewals -= 1;
                let Session::Held { term, renewal, .. } = &mut host.session else {
                    return None;
                };
                *renewal = Some((state.now, 0));
                let question = Question::Renew(*term);
                self.ask_all(&mut state, index, question);
            }
            Action::Release(index) => {
                let host = &mut state.hosts[usize::from(index)];
                let Session::Held { term, .. } = host.session else {
                    return None;
                };
                host.session = Session::None;
                self.ask_all(&mut state, index, Question::Release(term));
            }
            Action::Settle(index) => {
                let host = &mut state.hosts[usize::from(index)];
                host.settles -= 1;
                let Session::Held { term, told, .. } = &mut host.session else {
                    return None;
                };
                host.settings = (*term.max(&mut host.settings.0.clone()), host.settings.1 + 1);
                *told = Some((host.settings, 0));
                let question = Question::Settle(host.settings.0, host.settings.1);
                self.ask_all(&mut state, index, question);
            }
            Action::Deliver(frame) => {
                state.frames.remove(&frame);
                match frame {
                    Frame::Question(voter, tag) => self.question(&mut state, voter, tag),
                    Frame::Answer(voter, tag, granted, promised, settings) => {
                        self.answer(&mut state, voter, tag, granted, promised, settings);
                    }
                }
            }
            Action::Stored(index) => {
                let node = &mut state.nodes[usize::from(index)];
                let (version, vote) = node.writing.take()?;
                node.disk = vote;
                node.voter.stored(now, version, true);
                self.follow(&mut state, index);
            }
            Action::Crash(index, done) => self.crash(&mut state, index, done),
            Action::Step => {
                state.now += 1;
                for index in 0..VOTERS {
                    state.nodes[usize::from(index)].voter.tick(at(state.now));
                    self.follow(&mut state, index);
                }
            }
        }
        Self::prune(&mut state);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("at most one host holds the lease", |_, state: &State| {
                let holders = state.hosts.iter().filter(|h| h.holds(state.now));
                holders.count() <= 1
            }),
            Property::always("no two hosts win one term", |_, state: &State| {
                !state.shared_term
            }),
            Property::always(
                "each session begins with the settings that were acknowledged",
                |_, state: &State| !state.forgotten,
            ),
            Property::sometimes("the lease passes on", |_, state: &State| {
                let winners: BTreeSet<u8> = state.winners.values().copied().collect();
                winners.len() > 1
            }),
        ]
    }
}
