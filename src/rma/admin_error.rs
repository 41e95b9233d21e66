//! Why an administrator's request failed.

use serde::{Deserialize, Serialize};

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The request contradicts itself.
    BadRequest,
    /// Nothing has that name, GUID or address.
    Unknown,
    /// Several things have that name.
    Ambiguous,
    /// The thing is of a type for which the request makes no sense.
    WrongType,
    /// The row is a tombstone: its parent no longer lists it.
    Invalid,
    /// The change would break the ownership hierarchy.
    Hierarchy,
    /// The cluster does not allocate at this level.
    Granularity,
    /// A device cannot have such an extent, or the extent cannot be removed now.
    Extent,
    /// The unit does not answer.
    Unreachable,
    /// The unit refused the change.
    Refused,
    /// Somebody else changed the row at the same time.
    Conflict,
    /// The agent is still in Fig. 5, or has no cluster.
    NotReady,
    /// A limit of the agent is reached.
    Busy,
    /// The table could not be stored.
    NotPersisted,
    /// Another allocation session holds the lease.
    Locked,
    /// Too few hosts and units answer for the lease, or for a setting to hold.
    NoMajority,
}

/// A failed request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct AdminError {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// One line: what is wrong, where, and what to do.
    pub message: String,
}
