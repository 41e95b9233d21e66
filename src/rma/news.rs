//! When others hear of what is new here, and when peers whose tables differ are looked at.
//!
//! What an administrator changes is told at once. Anything else is mostly seen by all hosts at the
//! same time, and more of it follows: it is told when nothing more has come for a moment, and by
//! whoever is first. So the hosts of a cluster that starts as a whole find out what there is before
//! they compare what they have found.

use std::cmp::Reverse;
use std::time::Duration;

use super::agent::Agent;
use super::peers::Peer;
use super::pulls::MAX_PULLS;
use super::timers::Timer;
use super::units::Unit;
use crate::wire::{Guid, TableStamp, Time};

/// How long two tables may differ before what differs is looked for: usually what makes the
/// difference is on its way. Twice that where the other table is the less current one: the other
/// host looks as well.
const DIFFERENCE_PATIENCE: Duration = Duration::from_millis(150);
/// How long news may be kept back, and differences be left alone, because more news is coming.
const NEWS_PATIENCE: Duration = Duration::from_secs(2);

/// How often a peer was asked, how current it is, and which it is.
type Rank = (u32, Reverse<TableStamp>, Guid);

/// What others have not been told.
#[derive(Debug, Default)]
pub(super) struct News {
    /// When they are told at the latest.
    tell_by: Option<Time>,
    /// When fabric services were last asked for newcomers.
    newcomers_at: Option<Time>,
}

impl Agent {
    /// There is news: others are told unless more comes soon.
    pub(super) fn push_soon(&mut self, now: Time) {
        let tell_by = *self.news.tell_by.get_or_insert(now + NEWS_PATIENCE);
        let spread = self.push_spread();
        let pause = spread / 2 + Duration::from_nanos(self.rng.u64(0..=spread.as_nanos() as u64));
        self.timers.set(Timer::Push, tell_by.min(now + pause));
    }

    /// Within which time the hosts of the cluster tell what they all have seen.
    fn push_spread(&self) -> Duration {
        let hosts = self.peers.len().min(180) as u64;
        Duration::from_millis(20 + 2 * hosts)
    }

    /// Somebody unknown speaks: perhaps fabric services know. They tell by themselves when their list
    /// changes, and who is refused comes again: of many newcomers each is not worth a list.
    pub(super) fn ask_for_newcomers(&mut self, now: Time) {
        let spread = self.push_spread();
        let lately = |at: Time| now.since(at) < spread;
        if !self.news.newcomers_at.is_some_and(lately) {
            self.news.newcomers_at = Some(now);
            self.link.poll_now(now);
        }
    }

    /// It is time to tell the news, unless units are about to tell more.
    pub(super) fn push_due(&mut self, now: Time) {
        let may_wait = self.news.tell_by.is_some_and(|by| now < by);
        if may_wait && self.is_exploring() {
            self.push_soon(now);
        } else {
            self.push(now);
        }
    }

    /// Offers our table to all peers that are not known to have it.
    pub(super) fn push(&mut self, now: Time) {
        self.keep_quiet();
        for peer in self.peers.values_mut() {
            peer.offer = true;
        }
        self.offer_pending(now);
    }

    /// There is nothing to tell any more.
    pub(super) fn keep_quiet(&mut self) {
        self.timers.cancel(Timer::Push);
        self.news.tell_by = None;
    }

    /// Whether units that answer have not told all that they were asked for.
    fn is_exploring(&self) -> bool {
        let mut units = self.units.values().filter(|unit| unit.station.is_up());
        units.any(Unit::is_asked)
    }

    /// Whether it is too early to look for what differs in a table of this stamp that has differed
    /// `since` then.
    pub(super) fn is_patient(&self, now: Time, since: Time, theirs: TableStamp) -> bool {
        let differs_for = now.since(since);
        let patience = if theirs < self.table.stamp() {
            DIFFERENCE_PATIENCE * 2
        } else {
            DIFFERENCE_PATIENCE
        };
        let unsettled = self.timers.is_set(Timer::Push) || self.is_exploring();
        differs_for < patience || (unsettled && differs_for < NEWS_PATIENCE)
    }

    /// A peer's table differs: it is looked at in a while, if it still does.
    pub(super) fn note_difference(&mut self, now: Time) {
        self.timers
            .set_sooner(Timer::Differences, now + DIFFERENCE_PATIENCE);
    }

    /// Asks a few of the peers whose tables differ how current they are now, those first that were
    /// asked least, of these the most current: what one has, others mostly have as well.
    pub(super) fn look_at_differences(&mut self, now: Time) {
        let digest = self.table.digest();
        let differs = |p: &Peer| p.summary.is_some_and(|theirs| theirs.digest != digest);
        let mut any = false;
        let mut due: Vec<(Rank, Time)> = Vec::new();
        for (guid, peer) in &mut self.peers {
            if !differs(peer) {
                peer.differs_since = None;
                peer.looks = 0;
            }
            let told = peer.differs_since.zip(peer.summary);
            // Who does not answer is asked when it answers again.
            let Some((since, theirs)) = told.filter(|_| peer.station.is_up()) else {
                continue;
            };
            any = true;
            if peer.is_free() && !peer.offer {
                due.push(((peer.looks, Reverse(theirs.stamp), *guid), since));
            }
        }
        due.retain(|((_, stamp, _), since)| !self.is_patient(now, *since, stamp.0));
        due.sort_unstable();
        for ((_, _, guid), _) in due.into_iter().take(self.pulls_left()) {
            if let Some(peer) = self.peers.get_mut(&guid) {
                peer.looks = peer.looks.saturating_add(1);
            }
            self.ask_stamp(now, guid);
        }
        if any {
            self.note_difference(now);
        }
    }

    /// How many more tables may be looked into.
    pub(super) fn pulls_left(&self) -> usize {
        let under_way = self.peers.values().filter(|p| p.pull.is_some()).count();
        MAX_PULLS.saturating_sub(under_way)
    }
}
