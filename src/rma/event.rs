//! What those who watch an agent are told. Knows no protocol.

use serde::{Deserialize, Serialize};

use super::request::{NameInfo, OwnershipInfo, RowInfo, SummaryInfo};

/// Something happened that a watching administrator wants to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum WatchEvent {
    /// A row appeared, or a removed one came back.
    Added {
        /// The row.
        row: Box<RowInfo>,
    },
    /// A row's parent no longer lists it.
    Removed {
        /// The row, now invalid.
        row: Box<RowInfo>,
    },
    /// A row is gone for good: every host had passed its tombstone, or an administrator said so.
    Forgotten {
        /// The row as it was.
        row: Box<RowInfo>,
    },
    /// A row's observed facts changed.
    Changed {
        /// The row as it was.
        before: Box<RowInfo>,
        /// The row as it is.
        after: Box<RowInfo>,
    },
    /// A row's ownership changed.
    OwnershipChanged {
        /// The row as it is.
        row: Box<RowInfo>,
        /// Who owned it.
        before: OwnershipInfo,
        /// Who owns it.
        after: OwnershipInfo,
    },
    /// A host's RMA or a unit's UMS answers.
    Reachable {
        /// Which.
        #[serde(flatten)]
        who: NameInfo,
        /// `host` or `I/O unit`.
        #[serde(rename = "type")]
        entity: String,
    },
    /// A host's RMA or a unit's UMS does not answer any more. Its rows stay.
    Unreachable {
        /// Which.
        #[serde(flatten)]
        who: NameInfo,
        /// `host` or `I/O unit`.
        #[serde(rename = "type")]
        entity: String,
    },
    /// Fabric services answer, do not answer any more, or hold us back.
    Fabric {
        /// `up`, `down` or `pending`.
        state: String,
    },
    /// The finest level of allocation changed.
    GranularityChanged {
        /// Before.
        before: String,
        /// After.
        after: String,
    },
    /// This host has lost the allocation lease that an administrator kept or a change needed.
    LeaseLost {
        /// The session's term.
        term: u64,
        /// Why, in words.
        why: String,
    },
    /// The table of another host was adopted or joined.
    TableAdopted {
        /// The host.
        from: NameInfo,
        /// Rows that changed by it.
        changed_rows: u64,
        /// Our table now.
        table: SummaryInfo,
    },
    /// A member or peer was refused: two with one GUID, or one that claims ours.
    Refused {
        /// What is wrong, in one line.
        message: String,
    },
}
