//! An I/O unit: UMS and I/O controller state machines. Depends on wire, session, fabric::link, crt::rules.

pub mod disk;

pub use disk::{DiskError, DiskInfo, DiskOp, MAX_IO_BYTES, Payload};
