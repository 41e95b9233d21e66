//! Administration: control sockets, verbs, text and JSON output.

pub mod capture;
pub mod control;
pub mod fabric_protocol;
pub mod unit_protocol;
