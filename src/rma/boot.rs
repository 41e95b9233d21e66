//! Fig. 5: the blocks that an agent goes through at its start, in their order, and when each is over.

use super::agent::Agent;
use super::journal::Waiter;
use super::peers::{Peer, Pulled};
use super::report::summary_text;
use super::timers::Timer;
use crate::wire::message::TableSummary;
use crate::wire::{EntityType, Guid, Row, Time};

/// The most tables that are looked into in block 515, the most current first: what differs besides
/// is joined after block 530.
const MAX_BOOT_PULLS: usize = 2;

/// Where the agent is in Fig. 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Block {
    /// Not started.
    Idle,
    /// 505: who is in the cluster?
    Members,
    /// 510: how current are the others' tables?
    Stamps,
    /// 515: the most current one is adopted, others that differ are joined.
    Adopt,
    /// 520: what is there really?
    Devices,
    /// 525: it is stored.
    Store,
    /// 530: it is offered.
    Offer,
    /// After Fig. 5.
    Steady,
    /// Nothing is done any more.
    Stopped,
}

impl Block {
    const fn number(self) -> u16 {
        match self {
            Self::Members => 505,
            Self::Stamps => 510,
            Self::Adopt => 515,
            Self::Devices => 520,
            Self::Store => 525,
            Self::Offer => 530,
            Self::Idle | Self::Steady | Self::Stopped => 0,
        }
    }
}

/// The state of Fig. 5.
#[derive(Debug)]
pub(super) struct Boot {
    block: Block,
    /// The block's patience is over: what has not answered is left behind.
    impatient: bool,
    /// Rows in the table when block 520 began, for its report.
    rows_before: usize,
    /// Whether the log says already that there is no cluster to work with.
    told_waiting: bool,
}

impl Boot {
    pub(super) const fn new() -> Self {
        Self {
            block: Block::Idle,
            impatient: false,
            rows_before: 0,
            told_waiting: false,
        }
    }

    pub(super) const fn number(&self) -> u16 {
        self.block.number()
    }

    /// Whether the present block's patience is over.
    pub(super) const fn is_impatient(&self) -> bool {
        self.impatient
    }

    pub(super) fn is_idle(&self) -> bool {
        self.block == Block::Idle
    }

    pub(super) fn is_steady(&self) -> bool {
        self.block == Block::Steady
    }

    /// Whether it is in block 510 or 515.
    pub(super) fn seeks_tables(&self) -> bool {
        matches!(self.block, Block::Stamps | Block::Adopt)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.block == Block::Stopped
    }

    pub(super) const fn stop(&mut self) {
        self.block = Block::Stopped;
    }

    /// Whether changes are gathered for block 525 rather than stored at once. (The members of
    /// block 505 are stored before others hear our stamp.)
    pub(super) fn holds_commits(&self) -> bool {
        self.block < Block::Store && self.block != Block::Stamps
    }

    /// Whether the table is what the operating system may rely on.
    pub(super) fn has_stored(&self) -> bool {
        (Block::Store..=Block::Steady).contains(&self.block)
    }

    /// Whether peers are connected to.
    pub(super) fn has_peers(&self) -> bool {
        (Block::Stamps..=Block::Steady).contains(&self.block)
    }

    /// Whether units are connected to.
    pub(super) fn has_units(&self) -> bool {
        (Block::Devices..=Block::Steady).contains(&self.block)
    }
}

impl Agent {
    /// From the stored table to block 505.
    pub(super) fn start_boot(&mut self, now: Time) {
        let stored = if self.table.is_empty() {
            "no stored table, an empty one is created".to_owned()
        } else {
            format!(
                "stored table: {}",
                summary_text(&self.table, &self.table.summary())
            )
        };
        self.centre.stored = self.table.stamp();
        self.serve_cluster();
        // What this host has promised to keep counts, whatever became of its table.
        let kept = *self.voter.settings();
        self.learn_settings(now, self.config.guid, &kept);
        self.enter(now, Block::Members);
        self.block(
            505,
            format!("{stored}; asking fabric services for the members of the cluster"),
        );
    }

    pub(super) fn enter(&mut self, now: Time, block: Block) {
        self.boot.block = block;
        self.boot.impatient = false;
        self.extend_patience(now);
    }

    /// The patience of the present block begins anew: something has answered.
    pub(super) fn extend_patience(&mut self, now: Time) {
        let intervals = &self.config.intervals;
        let patience = match self.boot.block {
            Block::Members => intervals.fabric_patience,
            Block::Stamps | Block::Adopt => intervals.peer_patience,
            Block::Devices => intervals.unit_patience,
            _ => return self.timers.cancel(Timer::Block),
        };
        self.timers.set(Timer::Block, now + patience);
    }

    pub(super) fn patience_over(&mut self, now: Time) {
        self.boot.impatient = true;
        if self.boot.block == Block::Members && self.cluster.is_none() {
            // Without a cluster there is nothing to go on with.
            if !std::mem::replace(&mut self.boot.told_waiting, true) {
                let why = self.fabric.0.word();
                self.block(
                    505,
                    format!(
                        "fabric services are {why} and no stored table names a cluster: waiting"
                    ),
                );
            }
            self.extend_patience(now);
        }
    }

    /// Goes on to the next blocks as far as they are done with.
    pub(super) fn step_boot(&mut self, now: Time) {
        loop {
            let before = self.boot.block;
            match before {
                Block::Members => self.step_members(now),
                Block::Stamps => self.step_stamps(now),
                Block::Adopt => self.step_adopt(now),
                Block::Devices => self.step_devices(now),
                // The commit leads on.
                Block::Store | Block::Idle | Block::Steady | Block::Stopped => {}
                Block::Offer => self.step_offer(now),
            }
            if self.boot.block == before {
                return;
            }
        }
    }

    fn step_members(&mut self, now: Time) {
        if self.cluster.is_none() || (self.members.is_none() && !self.boot.impatient) {
            return;
        }
        let count = |entity| {
            let is = |row: &&Row| row.entity == entity && self.is_member(row.guid);
            self.table.rows().filter(is).count()
        };
        let (hosts, units) = (count(EntityType::Host), count(EntityType::Unit));
        let source = if self.members.is_some() {
            "fabric services name"
        } else {
            "fabric services do not answer; the stored table names"
        };
        let cluster = self.cluster;
        self.block(
            505,
            format!("{source} {hosts} hosts and {units} I/O units of cluster {cluster}"),
        );
        self.enter(now, Block::Stamps);
        self.rely_on_centre();
        self.sync_stations(now);
        let peers = self.hosts_as_peers().count();
        let text = if self.leaves_peers_alone() {
            format!("asking fabric services for the stamp of the table; connecting to {peers} RMAs")
        } else {
            format!("connecting to {peers} other RMAs for the stamps of their tables")
        };
        self.block(510, text);
    }

    fn step_stamps(&mut self, now: Time) {
        if self.step_centre(now) {
            return;
        }
        let waiting = self.peers.values().any(|peer| peer.summary.is_none());
        if waiting && !self.boot.impatient {
            return;
        }
        let told = self.hosts_as_peers().filter(|p| p.summary.is_some());
        let answered = told.count();
        let silent: Vec<Guid> = self
            .peers
            .iter()
            .filter(|(_, p)| p.summary.is_none())
            .map(|(guid, _)| *guid)
            .collect();
        let peers = self.hosts_as_peers().count();
        let mut text = format!("{answered} of {peers} RMAs told their stamps");
        if !silent.is_empty() {
            text.push_str("; no answer from ");
            text.push_str(&self.name_list(&silent));
        }
        self.block(510, text);
        for guid in silent {
            self.give_up_waiting(now, guid);
        }
        for peer in self.peers.values_mut() {
            // What was told while others were coming up as well may be old by now.
            peer.fresh = false;
        }
        self.enter(now, Block::Adopt);
    }

    fn step_adopt(&mut self, now: Time) {
        if let Some((guid, _)) = self.peers.iter().find(|(_, p)| p.pull.is_some()) {
            if !self.boot.impatient {
                return;
            }
            let guid = *guid;
            let name = self.name_list(&[guid]);
            self.block(
                515,
                format!("the table of {name} does not arrive; going on"),
            );
            self.abandon_pull(guid);
            self.enter(now, Block::Adopt);
        }
        if self.is_centre_out_of_date(now) {
            return;
        }
        let digest = self.table.digest();
        let looked = |p: &&Peer| p.boot_pull != Pulled::No;
        let enough = self.peers.values().filter(looked).count() >= MAX_BOOT_PULLS;
        let differing: Vec<(Guid, TableSummary, bool)> = self
            .peers
            .iter()
            .filter(|_| !enough)
            .filter(|(guid, _)| !self.leaves_alone(**guid))
            .filter(|(_, p)| p.boot_pull == Pulled::No && p.station.is_up())
            .filter_map(|(guid, p)| Some((*guid, p.summary?, p.fresh)))
            .filter(|(_, theirs, _)| theirs.digest != digest && theirs.row_count > 0)
            .collect();
        let best = differing
            .into_iter()
            .max_by_key(|(guid, theirs, _)| (theirs.stamp, *guid));
        if let Some((guid, theirs, fresh)) = best {
            if !fresh && !self.boot.impatient {
                // Perhaps it has become what ours is now.
                self.ask_stamp(now, guid);
                return;
            }
            let name = self.name_list(&[guid]);
            let theirs = summary_text(&self.table, &theirs);
            self.block(515, format!("getting the table of {name}: {theirs}"));
            self.enter(now, Block::Adopt);
            self.start_pull(now, guid);
            return;
        }
        let adopted = self
            .peers
            .values()
            .filter(|p| p.boot_pull == Pulled::Yes)
            .count();
        let text = if adopted == 0 {
            "the local table is the most current".to_owned()
        } else {
            format!("{adopted} tables taken in")
        };
        let summary = summary_text(&self.table, &self.table.summary());
        self.block(515, format!("{text}: {summary}"));
        self.boot.rows_before = self.table.len();
        self.enter(now, Block::Devices);
        self.sync_stations(now);
        let units = self.units.len();
        self.block(
            520,
            format!("asking {units} I/O units for their controllers, devices and registers"),
        );
    }

    fn step_devices(&mut self, now: Time) {
        let waiting = self.units.values().any(|unit| !unit.is_explored());
        if waiting && !self.boot.impatient {
            return;
        }
        let silent: Vec<Guid> = self
            .units
            .iter()
            .filter(|(_, unit)| !unit.is_explored())
            .map(|(guid, _)| *guid)
            .collect();
        let mut text = format!(
            "{} I/O units told; {} new rows, {} rows in all",
            self.units.len() - silent.len(),
            self.table.len() - self.boot.rows_before.min(self.table.len()),
            self.table.len(),
        );
        if !silent.is_empty() {
            text.push_str("; no full answer from ");
            text.push_str(&self.name_list(&silent));
            text.push_str(", whose rows stay as they are");
        }
        self.block(520, text);
        for guid in silent {
            self.give_up_waiting(now, guid);
        }
        self.enter(now, Block::Store);
        let rows = self.journal.rows.len();
        self.block(
            525,
            if self.journal.dirty {
                format!("storing the table, {rows} rows changed")
            } else {
                "the table is unchanged".to_owned()
            },
        );
        self.journal.waiters.push(Waiter::Boot);
    }

    /// Block 525 is done.
    pub(super) fn boot_stored(&mut self, now: Time) {
        if self.boot.block == Block::Store {
            self.enter(now, Block::Offer);
            self.step_boot(now);
        }
    }

    fn step_offer(&mut self, now: Time) {
        self.expect_peers_to_have_the_central_table();
        let digest = self.journal.durable.digest;
        let (mut offered, mut equal) = (0, 0);
        for peer in self.peers.values().filter(|p| p.station.is_up()) {
            if peer.summary.is_some_and(|theirs| theirs.digest == digest) {
                equal += 1;
            } else {
                offered += 1;
            }
        }
        let summary = summary_text(&self.table, &self.journal.durable);
        self.block(
            530,
            format!("{summary}: offered to {offered} RMAs, {equal} have an equal table"),
        );
        self.enter(now, Block::Steady);
        self.refresh_exports(&std::collections::BTreeSet::new());
        if offered > 0 {
            // When a whole cluster starts, more of it shows up right now, to all of them.
            self.push_soon(now);
        }
        self.begin_exchanges(now);
        let devices = self.owned.len();
        self.block(0, format!("{devices} devices are available to this host"));
    }

    /// Names of entities, for a line of text.
    pub(super) fn name_list(&self, guids: &[Guid]) -> String {
        match guids {
            [one] if self.is_centre(*one) => "fabric services".to_owned(),
            _ => super::report::names(&self.table, guids),
        }
    }
}
