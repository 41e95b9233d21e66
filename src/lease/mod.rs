//! The allocation lease as its voters keep it: promises, grants, settings. Depends on wire, crt::image.
//!
//! One allocation application works at a time: a session with a term, granted by more than half of
//! the cluster's hosts and units. Every host's agent and every unit has a [`Voter`]. Safety does not
//! rest on it: ownership registers refuse older terms and unexpected epochs by themselves.
//!
//! What a voter promises:
//! - What it grants is durable before it is answered.
//! - It grants only terms above all that it has promised and above all that its own registers or
//!   table have seen, and to another host only when no session is in force, unless by force.
//! - A restart makes it no more generous: a session that it finds stored is in force for one
//!   [`TTL`] from then on. One that has lost what it had stored grants nobody a new term so long.

mod stored;
#[cfg(test)]
mod tests;
mod voter;

use std::time::Duration;

pub use stored::{StoredVote, VoteImage};
pub use voter::{Answer, MAX_WAITING, Voter};

use crate::wire::TableStamp;

/// How long a voter refuses other sessions after a grant or a renewal.
pub const TTL: Duration = Duration::from_secs(6);
/// How often the holder renews.
pub const RENEW: Duration = Duration::from_secs(2);
/// How long after the sending of its last renewal that was granted the holder gives up.
pub const GIVE_UP: Duration = Duration::from_secs(4);
/// How far a term may be above all known ones; one further is hostile.
pub const MAX_TERM_STEP: u64 = 1 << 32;

const _: () = assert!(RENEW.as_nanos() < GIVE_UP.as_nanos() && GIVE_UP.as_nanos() < TTL.as_nanos());

/// Whether a term is further above all `known` ones than any honest one can be.
pub const fn is_far_term(term: u64, known: u64) -> bool {
    term > known.saturating_add(MAX_TERM_STEP)
}

/// Whether a stamp's term is too far above all `known` ones, or its counter near its end.
pub const fn is_far_stamp(stamp: &TableStamp, known: u64) -> bool {
    is_far_term(stamp.term, known) || is_far_count(stamp.counter)
}

/// Whether something that counts up by one has come further than any honest count can.
pub const fn is_far_count(count: u64) -> bool {
    count > u64::MAX - MAX_TERM_STEP
}

/// How many of `voters` are more than half.
pub const fn majority(voters: usize) -> usize {
    voters / 2 + 1
}
