//! The central source: the cluster's table as fabric services keep it (`crt_source = "central"`).
//!
//! Fabric services are one more peer to us: what comes from them is joined by the same rules, and
//! what we publish goes to them. In blocks 510 and 515 they alone are asked, and the other RMAs only
//! where they do not answer, have no table, or an older one than somebody must have.

use std::time::Duration;

use super::agent::Agent;
use super::boot::Block;
use super::config::CrtSource;
use super::deposit::Deposits;
use super::members::Station;
use super::peers::{Peer, Pulled};
use super::report;
use super::request::{CentreInfo, NameInfo};
use super::timers::Timer;
use crate::wire::message::TableSummary;
use crate::wire::{EntityType, Guid, Status, TableStamp, Time};

/// What fabric services are as a source of tables.
#[derive(Debug, Default)]
pub(super) struct Centre {
    /// The fabric services that may be asked, NIL where none may.
    pub(super) guid: Guid,
    /// They alone are asked in blocks 510 and 515.
    relied: bool,
    /// The table's stamp as it was stored when we started.
    pub(super) stored: TableStamp,
    /// The stamp that we told them last of a table that is equal to theirs.
    told: TableStamp,
    pub(super) deposits: Deposits,
}

impl Agent {
    /// Whether that is the fabric services whose table we use.
    pub(super) fn is_centre(&self, guid: Guid) -> bool {
        !guid.is_nil() && guid == self.centre.guid
    }

    /// The peers that are hosts.
    pub(super) fn hosts_as_peers(&self) -> impl Iterator<Item = &Peer> {
        let hosts = self
            .peers
            .iter()
            .filter(|(guid, _)| !self.is_centre(**guid));
        hosts.map(|(_, peer)| peer)
    }

    /// Fabric services may be asked for the table.
    pub(super) fn centre_open(&mut self, now: Time) {
        self.centre_closed(now);
        let Some(guid) = self.link.fabric() else {
            return;
        };
        if self.boot.is_stopped() || guid == self.config.guid || self.table.get(guid).is_some() {
            if !self.boot.is_stopped() {
                self.warn(format!(
                    "fabric services have the GUID of {}; the table that they keep is not used",
                    report::label(&self.table, guid)
                ));
            }
            return;
        }
        self.centre.guid = guid;
        self.peers.insert(guid, Peer::new(Station::answering(now)));
        self.peer_due(now, guid);
    }

    /// Fabric services do not answer any more, or not us.
    pub(super) fn centre_closed(&mut self, now: Time) {
        let guid = std::mem::take(&mut self.centre.guid);
        self.centre.deposits = Deposits::default();
        self.centre.told = TableStamp::default();
        if !guid.is_nil() {
            self.peers.remove(&guid);
            self.timers.cancel(Timer::Peer(guid));
        }
        self.fall_back(now, "fabric services do not answer any more");
    }

    /// Block 510 begins: whether fabric services will be asked alone.
    pub(super) fn rely_on_centre(&mut self) {
        let central = self.config.crt_source == CrtSource::Central;
        self.centre.relied = central && !self.centre.guid.is_nil();
        if central && !self.centre.relied {
            self.block(
                510,
                "fabric services cannot be asked for the table; asking the other RMAs",
            );
        }
    }

    /// Whether fabric services alone are asked for tables now.
    pub(super) fn leaves_peers_alone(&self) -> bool {
        self.centre.relied && self.boot.seeks_tables()
    }

    /// Whether this peer is not asked for its table now.
    pub(super) fn leaves_alone(&self, guid: Guid) -> bool {
        self.leaves_peers_alone() && !self.is_centre(guid)
    }

    /// From now on all peers are asked.
    fn fall_back(&mut self, now: Time, why: &str) {
        if !std::mem::take(&mut self.centre.relied) || !self.boot.seeks_tables() {
            return;
        }
        self.block(
            510,
            format!("{why}; asking the other RMAs for their stamps"),
        );
        self.enter(now, Block::Stamps);
        let all: Vec<Guid> = self.peers.keys().copied().collect();
        for guid in all {
            self.ask_stamp(now, guid);
        }
    }

    /// Block 510 with fabric services; `false` where the peers are asked.
    pub(super) fn step_centre(&mut self, now: Time) -> bool {
        if !self.centre.relied {
            return false;
        }
        let Some(theirs) = self.peers.get(&self.centre.guid).and_then(|p| p.summary) else {
            if self.boot.is_impatient() {
                self.fall_back(now, "fabric services do not tell of a table");
            }
            return self.centre.relied;
        };
        if let Some(why) = self.what_is_wrong_with(&theirs) {
            self.fall_back(now, &why);
            return false;
        }
        let summary = report::summary_text(&self.table, &theirs);
        self.block(510, format!("fabric services keep the table: {summary}"));
        self.enter(now, Block::Adopt);
        true
    }

    /// Why a table of this summary cannot be the most current one.
    fn what_is_wrong_with(&self, theirs: &TableSummary) -> Option<String> {
        if theirs.row_count == 0 {
            return Some("fabric services keep no table of this cluster".to_owned());
        }
        let stored = self.centre.stored;
        if theirs.stamp >= stored || self.same_content(theirs) {
            return None;
        }
        let (term, counter) = (theirs.stamp.term, theirs.stamp.counter);
        Some(format!(
            "fabric services keep version {term}.{counter}, which is older than the stored \
             {}.{}",
            stored.term, stored.counter
        ))
    }

    /// Block 515 with fabric services: whether their table has turned out not to do, so that block
    /// 510 begins again with the peers.
    pub(super) fn is_centre_out_of_date(&mut self, now: Time) -> bool {
        if !self.centre.relied {
            return false;
        }
        let Some(peer) = self.peers.get(&self.centre.guid) else {
            return false;
        };
        if peer.pull.is_some() {
            return false;
        }
        if peer.boot_pull == Pulled::Failed {
            self.fall_back(now, "the table of fabric services does not arrive");
            return true;
        }
        let pulled = peer.boot_pull == Pulled::Yes;
        let equal = peer
            .summary
            .is_some_and(|theirs| self.same_content(&theirs));
        if let Some(unit) = self.unit_allocated_since().filter(|_| pulled || equal) {
            let unit = report::label(&self.table, unit);
            self.fall_back(
                now,
                &format!("fabric services keep an older table: {unit} was allocated since"),
            );
            return true;
        }
        false
    }

    /// A unit whose ownership is newer in the list of members (Fig. 3) than in the table.
    fn unit_allocated_since(&self) -> Option<Guid> {
        let members = self.members.as_ref()?;
        let mut units = members.values().filter(|m| m.entity == EntityType::Unit);
        let epoch = |guid| self.table.get(guid).map(|row| row.owned.epoch);
        units
            .find(|unit| epoch(unit.guid).is_some_and(|known| known < unit.epoch))
            .map(|unit| unit.guid)
    }

    /// Block 530 after a boot from fabric services: peers that were not asked have what these have,
    /// most likely, and are offered what is new beyond it.
    pub(super) fn expect_peers_to_have_the_central_table(&mut self) {
        if !std::mem::take(&mut self.centre.relied) {
            return;
        }
        let centre = self.peers.get(&self.centre.guid);
        let Some(known) = centre.and_then(|peer| peer.known.clone()) else {
            return;
        };
        for peer in self.peers.values_mut().filter(|p| p.summary.is_none()) {
            peer.known.get_or_insert_with(|| known.clone());
        }
    }

    /// Fabric services have refused what was asked of the table.
    pub(super) fn centre_refused(&mut self, now: Time, guid: Guid, status: Status) {
        if !self.is_centre(guid) {
            return;
        }
        let pause = self.config.intervals.peer_poll;
        self.centre.deposits.failed(now + pause);
        self.fall_back(now, &format!("fabric services tell no table ({status})"));
    }

    /// An equal table there has an older stamp: they hear of the newer one, once.
    pub(super) fn tell_centre_the_stamp(&mut self, guid: Guid, theirs: &TableSummary) {
        if !self.is_centre(guid) {
            return;
        }
        self.note_equal(theirs);
        let durable = self.journal.durable;
        let older = theirs.stamp < durable.stamp || theirs.floor < durable.floor;
        if older
            && self.centre.told != durable.stamp
            && durable.digest == theirs.digest
            && let Some(peer) = self.peers.get_mut(&guid)
        {
            self.centre.told = durable.stamp;
            peer.offer = true;
        }
    }

    /// Whoever a table came from.
    pub(super) fn source_info(&self, guid: Guid) -> NameInfo {
        let mut info = report::name_info(&self.table, guid);
        if self.is_centre(guid) {
            "fabric services".clone_into(&mut info.name);
        }
        info
    }

    /// What administrators see of it.
    pub(super) fn centre_info(&self) -> Option<CentreInfo> {
        let peer = self.peers.get(&self.centre.guid)?;
        Some(CentreInfo {
            guid: self.centre.guid.to_string(),
            table: peer.summary.as_ref().map(report::summary_info),
            in_step: peer
                .summary
                .is_some_and(|theirs| self.same_content(&theirs)),
        })
    }

    /// How long fabric services that do not take what they are given are left alone.
    pub(super) fn deposit_pause(&self) -> Duration {
        self.config.intervals.peer_poll
    }
}
