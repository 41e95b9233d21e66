//! A deterministic simulator: hosts, units and fabric services, the daemons' own state machines, on
//! a simulated wire with simulated disks and one clock, all from one seed.
//!
//! [`World`] is what tests build their stories in; [`scenario`] makes up stories by itself, checks
//! the invariants at every step and demands that everything converges once the faults are over.

pub mod central;
pub mod check;
mod clock;
pub mod converged;
pub mod data;
mod disk;
pub mod network;
pub mod node;
pub mod pcap;
pub mod scenario;
mod service;
mod sessions;
mod stored;
pub mod storm;
mod world;

pub use network::Faults;
pub use node::{DiskFaults, device_spec};
pub use stored::StoredTable;
pub use world::{NodeId, Realism, Seen, World};
