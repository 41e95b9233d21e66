//! The allocation lease as the plain data that administrators get.

use serde::{Deserialize, Serialize};

use super::request::NameInfo;

/// An allocation session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderInfo {
    /// The host.
    pub host: NameInfo,
    /// Whether that is this host.
    pub here: bool,
    /// `work` (for changes on their way) or `administrator` (kept until it is released).
    pub purpose: String,
    /// The process that asked for it, 0 where not known.
    pub process: u32,
    /// The user whose process it is.
    pub user: String,
    /// Its term.
    pub term: u64,
    /// For how long it has been held.
    pub held_ms: u64,
    /// For how long it is certain unless it is renewed.
    pub left_ms: u64,
}

/// What one voter says about the lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoterInfo {
    /// The host or unit.
    #[serde(flatten)]
    pub voter: NameInfo,
    /// `host` or `I/O unit`.
    #[serde(rename = "type")]
    pub entity: String,
    /// `ok`, `no answer`, or why it cannot answer.
    pub answer: String,
    /// The highest term that it has promised.
    pub promised: u64,
    /// For how long it refuses other sessions.
    pub left_ms: u64,
    /// The session that it has granted, while that is in force.
    pub holder: Option<HolderInfo>,
}

/// The allocation lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockInfo {
    /// Who holds it; none: nobody.
    pub holder: Option<HolderInfo>,
    /// Whether this request changed that.
    pub changed: bool,
    /// The highest term known.
    pub highest_term: u64,
    /// Member hosts and units of the cluster: the voters.
    pub voter_count: u64,
    /// How many of them make a majority.
    pub majority: u64,
    /// The voters by GUID, where they were asked.
    pub voters: Vec<VoterInfo>,
}
