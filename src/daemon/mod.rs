//! The daemons' loops: wait, drain, handle, act; no protocol decisions.

pub mod args;
mod committer;
pub mod config;
pub mod devices;
mod devices_kernel;
mod devices_rules;
pub mod devices_words;
pub mod event_loop;
pub mod fabricd;
pub mod fabricd_admin;
pub mod fabricd_config;
mod loads;
pub mod rmad;
pub mod rmad_config;
mod rmad_devices;
pub mod rmad_error;
pub mod service;
mod service_shown;
mod service_words;
mod spin;
pub mod unitd;
pub mod unitd_config;
pub mod unitd_keys;
pub mod unitd_media;
pub mod unitd_port;
pub mod unitd_state;
pub mod unitd_status;
