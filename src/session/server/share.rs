//! What initiators may have under way together where the way to us does not take what they send: the same for
//! each of them.
//!
//! Initiators only see what becomes of their own commands, and where many fill one switch port it is chance
//! who loses: some would have much under way, others next to nothing. We see all of it. Many requests that had to be
//! sent again say that the way is too narrow; then all together get credits for half as much as before, and slowly
//! more when that has passed.

use std::time::Duration;

use crate::session::limits::{SHARED_BYTES_LEAST, SHARED_BYTES_MAX};
use crate::wire::Time;

/// How long is counted before a conclusion is drawn.
const INTERVAL: Duration = Duration::from_millis(10);
/// After so much silence what was before does not count any more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(1);
/// The way is too narrow where more than this part of all bytes is lost: a wire that loses a frame now and then is not.
const LOST_PART: u64 = 16;
/// Of longer requests only a part is lost, and what is missing is asked for at once: windows look after them. Writes of
/// 64 KiB are none.
const LONG_BYTES: u64 = 80 << 10;
/// The least commands that an initiator may have under way.
const LEAST_CREDITS: u16 = 2;

/// What was counted since `since`.
#[derive(Debug, Default)]
struct Counted {
    since: Time,
    sessions: u16,
    commands: u32,
    bytes: u64,
    lost: u64,
}

/// What all initiators together may have under way.
#[derive(Debug, Default)]
pub(super) struct Share {
    counted: Counted,
    /// The number of the interval that is being counted.
    interval: u64,
    /// Bytes of requests, where that is less than what each is permitted anyway.
    bytes: Option<usize>,
    credits: Option<u16>,
}

impl Share {
    /// A frame of a request came at `now`, of a session that was last heard in the interval `heard`.
    pub(super) fn heard(&mut self, now: Time, heard: &mut u64) {
        let counted = now.since(self.counted.since);
        if counted >= INTERVAL {
            self.conclude(counted < FORGOTTEN_AFTER);
            self.counted.since = now;
        }
        if std::mem::replace(heard, self.interval) != self.interval {
            self.counted.sessions = self.counted.sessions.saturating_add(1);
        }
    }

    /// A request of so many bytes is complete; those that were `lost` had to be sent again.
    pub(super) const fn complete(&mut self, bytes: usize, lost: usize) {
        self.counted.commands += 1;
        self.counted.bytes += bytes as u64;
        self.counted.lost += lost as u64;
    }

    /// How many commands an initiator may have under way that is permitted `most`.
    pub(super) fn credits(&self, most: u16) -> u16 {
        self.credits.map_or(most, |credits| credits.min(most))
    }

    fn conclude(&mut self, is_recent: bool) {
        self.interval += 1;
        let counted = std::mem::take(&mut self.counted);
        if !is_recent {
            self.bytes = None;
        } else if counted.sessions > 1 && counted.lost * LOST_PART > counted.bytes {
            let bytes = self.bytes.unwrap_or(SHARED_BYTES_MAX) / 2;
            self.bytes = Some(bytes.max(SHARED_BYTES_LEAST));
        } else {
            let more = self.bytes.map(|bytes| bytes + bytes / 128);
            self.bytes = more.filter(|bytes| *bytes < SHARED_BYTES_MAX);
        }
        let command = (counted.bytes / u64::from(counted.commands.max(1))).max(1);
        let bytes = self.bytes.filter(|_| command <= LONG_BYTES);
        self.credits = bytes.map(|bytes| {
            let each = bytes as u64 / u64::from(counted.sessions.max(1));
            u16::try_from(each / command)
                .unwrap_or(u16::MAX)
                .max(LEAST_CREDITS)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u16 = 1024;

    struct World {
        share: Share,
        now: Time,
        heard: Vec<u64>,
    }

    impl World {
        fn new(sessions: usize) -> Self {
            Self {
                share: Share::default(),
                now: Time::from_nanos(1_000_000_000),
                heard: vec![u64::MAX; sessions],
            }
        }

        /// Intervals in which each session sends 40 requests of 4 KiB, of which so many are lost of all; the credits
        /// afterwards.
        fn play(&mut self, intervals: u32, lost: usize) -> u16 {
            for _ in 0..intervals {
                for number in 0..40 {
                    let sessions = self.heard.len();
                    for (session, heard) in self.heard.iter_mut().enumerate() {
                        self.share.heard(self.now, heard);
                        let is_lost = number * sessions + session < lost;
                        self.share.complete(4096, if is_lost { 4096 } else { 0 });
                    }
                }
                self.now = self.now + INTERVAL;
                self.share.heard(self.now, &mut self.heard[0]);
            }
            self.share.credits(MOST)
        }
    }

    #[test]
    fn credits_are_shared_out_while_much_is_lost_and_come_back_afterwards() {
        let mut world = World::new(16);
        assert_eq!(world.play(5, 30), MOST, "a wire that loses a little");
        let first = world.play(1, 100);
        assert_eq!(usize::from(first), SHARED_BYTES_MAX / 2 / 16 / 4096);
        let least = world.play(20, 100);
        assert_eq!(usize::from(least), SHARED_BYTES_LEAST / 16 / 4096);
        let later = world.play(100, 0);
        assert!(least < later && later < first, "{later}");
        assert_eq!(world.play(400, 0), MOST);
    }

    #[test]
    fn who_is_alone_or_comes_back_after_long_has_all() {
        assert_eq!(World::new(1).play(20, 40), MOST);
        let mut world = World::new(400);
        assert_eq!(world.play(20, 16_000), LEAST_CREDITS);
        world.now = world.now + FORGOTTEN_AFTER + INTERVAL;
        world.share.heard(world.now, &mut 0);
        assert_eq!(world.share.credits(MOST), MOST);
    }

    #[test]
    fn long_requests_are_left_to_windows() {
        let mut world = World::new(8);
        assert!(world.play(5, 320) < MOST);
        world.share.complete(64 << 20, 8 << 20);
        world.now = world.now + INTERVAL;
        world.share.heard(world.now, &mut world.heard[0]);
        assert_eq!(world.share.credits(MOST), MOST);
    }
}
