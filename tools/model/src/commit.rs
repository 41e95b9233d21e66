//! What commits under the lease: two hosts, one unit with one ownership register. Sessions come and go
//! as they like here (two hosts may believe that they hold the lease at once), so that what holds
//! does not rest on it. Every disk write may be lost with its machine, every frame may come late or
//! never, and hosts tell each other their tables at any moment.

use std::collections::{BTreeMap, BTreeSet};

use stateright::{Model, Property};

/// Hosts.
const HOSTS: u8 = 2;

/// A mistake that the check must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The unit does not compare the expected epoch.
    EpochNotChecked,
    /// The unit takes changes of older sessions.
    TermNotChecked,
    /// The unit answers before the register is on the disk.
    AnsweredBeforeDurable,
    /// The unit acts by a register that is not on the disk yet.
    InForceBeforeDurable,
    /// The unit answers a change of somebody else as if it were this one, repeated.
    AlreadyIgnoresWriter,
    /// The host acknowledges before its table is on the disk.
    AcknowledgedBeforeStored,
    /// A table that is told replaces the own one, newer or not.
    LatestToldWins,
    /// A restarted unit does not know the highest term any more.
    TermForgotten,
}

/// Every bug that can be planted.
pub const BUGS: &[Bug] = &[
    Bug::EpochNotChecked,
    Bug::TermNotChecked,
    Bug::AnsweredBeforeDurable,
    Bug::InForceBeforeDurable,
    Bug::AlreadyIgnoresWriter,
    Bug::AcknowledgedBeforeStored,
    Bug::LatestToldWins,
    Bug::TermForgotten,
];

/// How much may happen.
#[derive(Debug, Clone, Copy)]
pub struct CommitModel {
    /// Sessions in all.
    pub sessions: u8,
    /// Changes that each host asks for.
    pub changes: u8,
    /// Crashes of any machine.
    pub crashes: u8,
    /// Tables told from host to host.
    pub tellings: u8,
    /// The mistake, if any.
    pub bug: Option<Bug>,
}

/// A row of a table, or the register: who owns it, by which change. Ordered as stamps are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Row {
    epoch: u8,
    term: u8,
    writer: u8,
    owner: u8,
}

/// A compare-and-set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Change {
    from: u8,
    term: u8,
    expected: u8,
    owner: u8,
}

/// A frame on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frame {
    /// To the unit.
    Change(Change),
    /// From the unit: the change is made; this is the register.
    Made(Change, Row),
    /// From host to host: a row of a table, as it was stored.
    Told(u8, Row),
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Host {
    /// The session's term, 0 where it believes in none.
    term: u8,
    table: Row,
    disk: Row,
    /// What an administrator waits for: the register with the change, once the unit has made it.
    pending: Option<(Change, Option<Row>)>,
    changes: u8,
}

/// The unit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Unit {
    register: Row,
    /// The highest term seen or promised.
    term: u8,
    disk: Row,
    disk_term: u8,
    /// On its way to the disk: the register, and which change it answers.
    writing: Option<(Row, Change)>,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    hosts: Vec<Host>,
    unit: Unit,
    frames: BTreeSet<Frame>,
    sessions: u8,
    crashes: u8,
    tellings: u8,
    /// What administrators were told, by epoch, and by which host.
    acknowledged: BTreeMap<u8, (Row, u8)>,
    /// The unit has made a change of a session older than one that it had seen before.
    took_older: bool,
    /// The highest term that the unit has ever durably seen.
    seen: u8,
}

/// What happens next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A host wins a session; whether the unit was among those that granted it.
    Win(u8, bool),
    /// A host reads the register into its table.
    Read(u8),
    /// A host asks for the row to be given to a host.
    Allocate(u8, u8),
    /// A frame arrives.
    Deliver(Frame),
    /// The unit's disk has done what it was told.
    UnitStored,
    /// A host's disk has.
    HostStored(u8),
    /// A host tells the other its table.
    Tell(u8),
    /// The unit loses power and comes back; the write under way was done or not.
    CrashUnit(bool),
    /// A host does; what was not stored is gone.
    CrashHost(u8),
}

impl CommitModel {
    fn judge(&self, state: &mut State, change: Change) {
        if state.unit.writing.is_some() && self.bug != Some(Bug::InForceBeforeDurable) {
            // It waits for its turn; here it comes again.
            state.frames.insert(Frame::Change(change));
            return;
        }
        let register = state.unit.register;
        let same_writer =
            register.writer == change.from || self.bug == Some(Bug::AlreadyIgnoresWriter);
        if register.epoch == change.expected + 1 && same_writer && register.owner == change.owner {
            state.frames.insert(Frame::Made(change, register));
            return;
        }
        if change.term < state.unit.term && self.bug != Some(Bug::TermNotChecked) {
            return;
        }
        if register.epoch != change.expected && self.bug != Some(Bug::EpochNotChecked) {
            return;
        }
        let made = Row {
            epoch: change.expected + 1,
            term: change.term,
            writer: change.from,
            owner: change.owner,
        };
        state.took_older |= change.term < state.seen;
        state.unit.writing = Some((made, change));
        if self.bug == Some(Bug::InForceBeforeDurable) {
            state.unit.register = made;
            state.unit.term = state.unit.term.max(change.term);
        }
        if self.bug == Some(Bug::AnsweredBeforeDurable) {
            state.frames.insert(Frame::Made(change, made));
        }
    }

    /// A row comes into a host's table: from the unit, or from the other host.
    fn take_in(&self, host: &mut Host, row: Row, told: bool) {
        if told && self.bug == Some(Bug::LatestToldWins) {
            host.table = row;
        } else {
            host.table = host.table.max(row);
        }
    }

    fn acknowledge(&self, state: &mut State, index: u8) {
        let host = &mut state.hosts[usize::from(index)];
        let Some((_, Some(row))) = host.pending else {
            return;
        };
        let stored = host.disk.epoch >= row.epoch;
        if stored || self.bug == Some(Bug::AcknowledgedBeforeStored) {
            host.pending = None;
            state.acknowledged.insert(row.epoch, (row, index));
        }
    }
}

impl Model for CommitModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let host = Host {
            term: 0,
            table: Row::default(),
            disk: Row::default(),
            pending: None,
            changes: self.changes,
        };
        vec![State {
            hosts: vec![host; HOSTS.into()],
            unit: Unit::default(),
            frames: BTreeSet::new(),
            sessions: 0,
            crashes: self.crashes,
            tellings: self.tellings,
            acknowledged: BTreeMap::new(),
            took_older: false,
            seen: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, host) in (0..).zip(&state.hosts) {
            if state.sessions < self.sessions {
                actions.push(Action::Win(index, true));
                actions.push(Action::Win(index, false));
            }
            if host.table < state.unit.register {
                actions.push(Action::Read(index));
            }
            if host.term > 0 && host.changes > 0 && host.pending.is_none() {
                for owner in 1..=HOSTS {
                    actions.push(Action::Allocate(index, owner));
                }
            }
            if host.table != host.disk {
                actions.push(Action::HostStored(index));
            }
            if state.tellings > 0 && host.disk.epoch > 0 {
                actions.push(Action::Tell(index));
            }
            if state.crashes > 0 {
                actions.push(Action::CrashHost(index));
            }
        }
        for frame in &state.frames {
            let waits = matches!(frame, Frame::Change(_))
                && state.unit.writing.is_some()
                && self.bug != Some(Bug::InForceBeforeDurable);
            if !waits {
                actions.push(Action::Deliver(*frame));
            }
        }
        if state.unit.writing.is_some() {
            actions.push(Action::UnitStored);
        }
        if state.crashes > 0 {
            actions.push(Action::CrashUnit(false));
            if state.unit.writing.is_some() {
                actions.push(Action::CrashUnit(true));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Win(index, witnessed) => {
                state.sessions += 1;
                let term = state.sessions;
                state.hosts[usize::from(index)].term = term;
                if witnessed {
                    // A promise is durable before it is given.
                    state.unit.term = state.unit.term.max(term);
                    state.unit.disk_term = state.unit.term;
                    state.seen = state.unit.term;
                }
            }
            Action::Read(index) => {
                let register = state.unit.register;
                self.take_in(&mut state.hosts[usize::from(index)], register, false);
            }
            Action::Allocate(index, owner) => {
                let host = &mut state.hosts[usize::from(index)];
                host.changes -= 1;
                let change = Change {
                    from: index + 1,
                    term: host.term,
                    expected: host.table.epoch,
                    owner,
                };
                host.pending = Some((change, None));
                state.frames.insert(Frame::Change(change));
            }
            Action::Deliver(frame) => {
                state.frames.remove(&frame);
                match frame {
                    Frame::Change(change) => self.judge(&mut state, change),
                    Frame::Made(change, row) => {
                        let index = change.from - 1;
                        let host = &mut state.hosts[usize::from(index)];
                        self.take_in(host, row, false);
                        if host.pending == Some((change, None)) {
                            host.pending = Some((change, Some(row)));
                        }
                        self.acknowledge(&mut state, index);
                    }
                    Frame::Told(to, row) => {
                        self.take_in(&mut state.hosts[usize::from(to)], row, true);
                    }
                }
            }
            Action::UnitStored => {
                let (row, change) = state.unit.writing.take()?;
                state.unit.register = row;
                state.unit.term = state.unit.term.max(row.term);
                state.unit.disk = row;
                state.unit.disk_term = state.unit.term;
                state.seen = state.seen.max(state.unit.term);
                if self.bug != Some(Bug::AnsweredBeforeDurable) {
                    state.frames.insert(Frame::Made(change, row));
                }
            }
            Action::HostStored(index) => {
                let host = &mut state.hosts[usize::from(index)];
                host.disk = host.table;
                self.acknowledge(&mut state, index);
            }
            Action::Tell(index) => {
                state.tellings -= 1;
                let row = state.hosts[usize::from(index)].disk;
                state.frames.insert(Frame::Told(1 - index, row));
            }
            Action::CrashUnit(done) => {
                state.crashes -= 1;
                let unit = &mut state.unit;
                if let Some((row, _)) = unit.writing.take()
                    && done
                {
                    unit.disk = row;
                    unit.disk_term = unit.disk_term.max(row.term);
                }
                unit.register = unit.disk;
                unit.term = match self.bug {
                    Some(Bug::TermForgotten) => 0,
                    _ => unit.disk_term,
                };
            }
            Action::CrashHost(index) => {
                state.crashes -= 1;
                let host = &mut state.hosts[usize::from(index)];
                host.table = host.disk;
                host.term = 0;
                host.pending = None;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no acknowledged change is lost", |_, state: &State| {
                state.acknowledged.values().all(|(row, by)| {
                    let kept = |r: &Row| r.epoch > row.epoch || r == row;
                    // At the unit, and on the disk of the host that acknowledged it.
                    kept(&state.unit.disk)
                        && kept(&state.unit.register)
                        && kept(&state.hosts[usize::from(*by)].disk)
                })
            }),
            Property::always("an epoch has one content", |_, state: &State| {
                let mut contents: BTreeMap<u8, Row> = BTreeMap::new();
                let hosts = state.hosts.iter().flat_map(|h| [h.table, h.disk]);
                let acknowledged = state.acknowledged.values().map(|(row, _)| *row);
                hosts
                    .chain([state.unit.register, state.unit.disk])
                    .chain(acknowledged)
                    .all(|row| *contents.entry(row.epoch).or_insert(row) == row)
            }),
            Property::always(
                "no table is ahead of the unit's disk",
                |_, state: &State| {
                    let ahead = |row: Row| row.epoch > state.unit.disk.epoch;
                    !state.hosts.iter().any(|h| ahead(h.table) || ahead(h.disk))
                },
            ),
            Property::always("no stored table goes back", |_, state: &State| {
                state.hosts.iter().all(|h| h.table.epoch >= h.disk.epoch)
            }),
            Property::always(
                "the unit makes no change of an older session",
                |_, state: &State| !state.took_older,
            ),
            Property::always(
                "who is told that a change is made made it",
                |_, state: &State| {
                    state
                        .acknowledged
                        .values()
                        .all(|(row, by)| row.writer == by + 1)
                },
            ),
            Property::sometimes("both hosts get a change through", |_, state: &State| {
                let writers: BTreeSet<u8> =
                    state.acknowledged.values().map(|(_, by)| *by).collect();
                writers.len() > 1
            }),
        ]
    }
}
