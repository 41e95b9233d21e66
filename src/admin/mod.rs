//! Administration: control sockets, verbs, text and JSON output.

pub mod abandon;
pub mod apply;
pub mod bench;
pub mod capture;
pub mod change_text;
pub mod cli;
mod cli_devices;
mod cli_error;
mod cli_verbs;
pub mod control;
pub mod crt_verify;
pub mod daemon_text;
mod device_text;
pub mod fabric_protocol;
mod lock_text;
mod manpages;
pub mod protocol;
mod stats_text;
pub mod text;
pub mod unit_protocol;
