//! The daemons' loops: wait, drain, handle, act; no protocol decisions.

pub mod config;
pub mod event_loop;
pub mod rmad_config;
