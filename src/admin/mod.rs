//! Administration: control sockets, verbs, text and JSON output.

pub mod control;
