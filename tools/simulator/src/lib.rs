//! A deterministic simulator: hosts, units and fabric services, the daemons' own state machines, on
//! a simulated wire with simulated disks and one clock, all from one seed.
//!
//! [`World`] is what tests build their stories in; [`scenario`] makes up stories by itself, checks
//! the invariants at every step and demands that everything converges once the faults are over.

pub mod check;
pub mod data;
pub mod network;
pub mod node;
pub mod scenario;
mod service;
mod world;

pub use network::Faults;
pub use node::{DiskFaults, StoredTable, device_spec};
pub use world::{NodeId, Seen, World};
