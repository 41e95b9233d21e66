//! Small models of the protocol, every reachable state of which is looked at: the allocation lease
//! with the daemons' own voters, and what commits under it (compare-and-set, tables, join).
//!
//! `cargo test -p rma-model` checks both, and that each planted bug is caught; docs/invariants.md
//! says what the models leave out.

// The checker's trait takes the models by reference, and so do their own functions.
#![allow(clippy::trivially_copy_pass_by_ref)]

pub mod commit;
pub mod lease;
