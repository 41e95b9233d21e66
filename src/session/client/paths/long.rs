//! How long the frames of a path may be: what is looked for and when, and what follows from what is found.

use std::time::Duration;

use smallvec::SmallVec;

use super::Path;
use crate::session::client::mtu::{LEAST, MtuSearch};
use crate::session::limits::{PATH_INTERVAL, PATH_STRIKES, RTO_INITIAL, RTO_MAX};
use crate::wire::Time;

/// How often what was sent of a length is awaited twice as long.
const MAX_PUT_OFF: u32 = 6;

impl Path {
    /// Looks for the longest frames from what is used on.
    pub(super) fn search(&mut self, now: Time) {
        self.search.begin(now, self.mtu, self.limit());
        self.checking = None;
        self.put_off = 0;
        self.again.cancel();
    }

    /// Looks whether what is used passes at all. Not again and again: what is late rather than too long
    /// would be made later still.
    pub(super) fn check(&mut self, now: Time) {
        if self.checks.begin(now) {
            if self.search.is_going() {
                // The one for more, which makes way.
                self.again.wait(now, Duration::ZERO);
            }
            self.search.begin(now, LEAST, self.mtu);
            self.checking = Some(self.mtu);
            self.put_off = 0;
            self.ask_soon(now);
        }
    }

    /// Whether frames of the length in use are in doubt, and nobody looks yet.
    pub(super) fn is_doubtful(&self) -> bool {
        self.strikes >= PATH_STRIKES && self.checking.is_none()
    }

    /// The sizes to try now. A length counts as not passing only where something short that was sent
    /// later has passed: that nothing comes back, or late, is no question of length.
    pub(super) fn next_sizes(&mut self, now: Time) -> SmallVec<[u16; 8]> {
        let patience = self.rtt.timeout(1, RTO_MAX).max(RTO_INITIAL);
        let is_shown = self.least_passed.wrapping_sub(self.long_sent).cast_signed() > 0;
        if !self.search.is_overdue(now) || is_shown {
            self.put_off = 0;
            return self.search.send(now, patience);
        }
        if self.put_off < MAX_PUT_OFF {
            self.put_off += 1;
            let until = now + (patience * (1 << self.put_off)).min(RTO_MAX);
            self.search.put_off(until);
            self.ask_at = Some(now);
        } else {
            self.search = MtuSearch::default();
            self.checking = None;
            self.strikes = 0;
            if self.mtu < self.limits.0 {
                self.again.wait(now, PATH_INTERVAL);
            }
        }
        SmallVec::new()
    }

    /// Takes over what the search has found; whether the path carries less than was thought.
    pub(super) fn follow_search(&mut self, now: Time) -> bool {
        let before = self.mtu;
        if self.search.refutes(self.mtu) {
            self.mtu = self.search.low().max(LEAST);
        } else if self.search.low() > self.mtu {
            self.mtu = self.search.low().min(self.limit());
        }
        if !self.search.is_going() {
            self.strikes = 0;
            let was_right = self.checking.take() == Some(self.mtu);
            if self.mtu >= self.limits.0 {
                self.again.cancel();
            } else if was_right {
                self.again.not_before(now + RTO_INITIAL);
            } else {
                self.again.wait_longer(now);
            }
        }
        if self.mtu != before {
            self.again.begin_anew();
            self.ask_soon(now);
        }
        self.mtu < before
    }

    /// One of the NICs takes longer or shorter frames than before.
    pub(super) fn relimit(&mut self, now: Time) {
        if self.mtu > self.limit() {
            self.mtu = self.limit();
            self.ask_soon(now);
        }
        self.search(now);
    }
}
