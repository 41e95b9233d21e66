//! The resource management agent's state machine: Fig. 5, allocation. Depends on wire, session, crt,
//! lease, fabric::link.

mod action;
mod admin;
mod admin_error;
mod agent;
mod allocation;
mod applied;
mod apply;
mod apply_plan;
mod boot;
mod carve;
mod central;
mod commits;
mod config;
mod controllers;
mod deposit;
pub mod desired;
mod event;
mod in_use;
mod joining;
mod journal;
mod lease;
mod lock;
mod lock_info;
mod members;
mod misfits;
mod moving;
mod news;
mod peers;
mod plan;
mod pulls;
mod purge;
mod queue;
mod registers;
pub mod report;
pub mod request;
mod restore;
mod round;
mod serve;
mod settle;
mod suspects;
mod timers;
mod units;
mod voters;
mod wish;

pub use action::{AgentAction, CommitToken, OwnedDevice};
pub use agent::Agent;
pub use config::{
    AgentConfig, CrtSource, Intervals, MAX_EVENTS, MAX_OFFER_ROWS, MAX_PAGE_BYTES,
    MAX_PENDING_REQUESTS, MAX_PULL_RESTARTS,
};
pub use members::MAX_STATIONS;
pub use round::HeldSession;
