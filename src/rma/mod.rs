//! The resource management agent's state machine: Fig. 5, allocation. Depends on wire, session, crt, fabric::link.

mod action;
mod agent;
mod config;
pub mod report;
pub mod request;

pub use action::{AgentAction, CommitToken, OwnedDevice};
pub use agent::Agent;
pub use config::{
    AgentConfig, Intervals, MAX_EVENTS, MAX_OFFER_ROWS, MAX_PAGE_BYTES, MAX_PENDING_REQUESTS,
    MAX_PULL_RESTARTS,
};
