//! Searching for fabric services: rounds of multicast questions with backoff, and whom to choose.

use std::time::Duration;

use crate::wire::{Guid, Mac, Time};

/// First time between two questions; it doubles.
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Most time between two questions.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// How long after a round's first answer others are waited for.
pub(super) const SETTLE: Duration = Duration::from_millis(30);

/// A search that goes on until [`Search::stop`].
#[derive(Debug)]
pub(super) struct Search {
    ask_at: Option<Time>,
    backoff: Duration,
    settle_at: Option<Time>,
    best: Option<(Guid, Mac)>,
    /// Who did not answer as it should when it was chosen: only if there is no other.
    avoid: Guid,
}

/// What a search wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Ask everyone.
    Ask,
    /// Connect to these fabric services.
    Choose(Guid, Mac),
}

impl Search {
    /// Not searching.
    pub(super) const fn idle() -> Self {
        Self {
            ask_at: None,
            backoff: BACKOFF_MIN,
            settle_at: None,
            best: None,
            avoid: Guid::NIL,
        }
    }

    /// Starts with a question at once; goes on where it was if it searches already.
    pub(super) fn start(&mut self, now: Time, avoid: Guid) {
        self.avoid = avoid;
        if self.ask_at.is_none() {
            self.ask_at = Some(now);
        }
    }

    /// Found: the next search begins with quick questions.
    pub(super) fn stop(&mut self) {
        *self = Self::idle();
    }

    /// Whether answers are of interest.
    pub(super) const fn is_active(&self) -> bool {
        self.ask_at.is_some()
    }

    /// Fabric services have answered.
    pub(super) fn answer(&mut self, now: Time, fabric: Guid, mac: Mac) {
        if !self.is_active() {
            return;
        }
        let rank = |guid: Guid| (guid == self.avoid, guid);
        if self.best.is_none_or(|(best, _)| rank(fabric) <= rank(best)) {
            self.best = Some((fabric, mac));
        }
        if self.settle_at.is_none() {
            self.settle_at = Some(now + SETTLE);
        }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.ask_at.into_iter().chain(self.settle_at).min()
    }

    /// What is due; ask until there is nothing. `jitter` (0 to 1) spreads askers that started
    /// together.
    pub(super) fn poll(&mut self, now: Time, jitter: f64) -> Option<Wish> {
        if self.settle_at.is_some_and(|at| at <= now) {
            self.settle_at = None;
            return self.best.take().map(|(guid, mac)| Wish::Choose(guid, mac));
        }
        if self.ask_at.is_some_and(|at| at <= now) {
            self.ask_at = Some(now + self.backoff.mul_f64(1.0 + jitter / 4.0));
            self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
            return Some(Wish::Ask);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    #[test]
    fn questions_come_ever_more_slowly_and_never_stop() {
        let mut search = Search::idle();
        let mut now = Time::ZERO;
        search.start(now, Guid::NIL);
        let mut gaps = Vec::new();
        for _ in 0..40 {
            assert_eq!(search.poll(now, 0.5), Some(Wish::Ask));
            assert_eq!(search.poll(now, 0.5), None);
            let next = search.deadline().unwrap();
            gaps.push(next.since(now));
            now = next;
        }
        assert!(gaps[0] >= BACKOFF_MIN && gaps[0] < BACKOFF_MIN * 2);
        assert!(gaps.is_sorted() && gaps[39] <= BACKOFF_MAX.mul_f64(1.25));
    }

    #[test]
    fn the_lowest_of_a_round_is_chosen_unless_it_failed_and_is_not_alone() {
        for (avoid, answers, chosen) in [
            (0, &[7, 3, 5][..], 3),
            (3, &[7, 3, 5][..], 5),
            (3, &[3][..], 3),
        ] {
            let mut search = Search::idle();
            search.start(Time::ZERO, Guid(avoid));
            assert_eq!(search.poll(Time::ZERO, 0.0), Some(Wish::Ask));
            for guid in answers {
                search.answer(Time::ZERO, Guid(*guid), MAC);
            }
            assert_eq!(search.poll(Time::ZERO, 0.0), None);
            let settled = Time::ZERO + SETTLE;
            assert_eq!(
                search.poll(settled, 0.0),
                Some(Wish::Choose(Guid(chosen), MAC))
            );
            search.stop();
            search.answer(settled, Guid(1), MAC);
            assert_eq!(search.deadline(), None);
        }
    }
}
