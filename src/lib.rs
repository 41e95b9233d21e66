//! `rma`: disks on an Ethernet segment that belong to hosts.
//!
//! What depends on what (each line may use the lines below it, never above):
//!
//! ```text
//! bin        a few lines each
//! daemon     wait, drain, handle, act
//! admin      control socket, verbs, text and JSON output
//! export     NBD server, udev rules        backend  what a unit serves
//! store      mmap'd files, SQLite          net      interfaces, AF_PACKET
//! caches     what the processor is told of them
//! ---------- above: the shell; below: the sans-I/O core ----------------------
//! rma        the agent's state machine: Fig. 5, allocation
//! unit       UMS and I/O controllers
//! fabric     fabric services, and the link to them
//! initiator  block I/O client           lease    voters of the allocation lease
//! crt        table, stamps, join, rules, file format
//! session    connections: identity, retransmission, timers
//! wire       frame and message layouts
//! planted    known bugs for the simulator to find; nothing without a feature
//! ```
//!
//! The core reads no clock, draws no randomness of its own and performs no I/O: time, seeds and
//! bytes are passed in. `tests/tidy.rs` fails the build when a core module names anything that does.

pub mod admin;
pub mod backend;
pub mod caches;
pub mod crt;
pub mod daemon;
pub mod export;
pub mod fabric;
pub mod initiator;
pub mod lease;
pub mod net;
#[doc(hidden)]
pub mod planted;
pub mod rma;
pub mod session;
pub mod store;
pub mod unit;
pub mod wire;
