//! What an administrator is told of an apply: plain data. Knows no protocol.

use serde::{Deserialize, Serialize};

use super::request::{NameInfo, OwnershipInfo};

/// What an apply did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyInfo {
    /// Whether it was only asked what would change.
    pub dry_run: bool,
    /// Whether there was anything to do; false: all was so already.
    pub changed: bool,
    /// How the finest level of allocation changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granularity: Option<LevelChangeInfo>,
    /// The units whose rows change.
    pub units: Vec<ApplyUnitInfo>,
}

/// A change of the finest level of allocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelChangeInfo {
    /// Before.
    pub before: String,
    /// After.
    pub after: String,
}

/// How far a unit's part of an apply has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApplyState {
    /// The unit has made all of its changes.
    Done,
    /// None of them is known to be made.
    Left,
}

/// A unit's part of an apply: made as a whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyUnitInfo {
    /// The unit.
    pub unit: NameInfo,
    /// How far it has come.
    pub state: ApplyState,
    /// Why it has not been made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its changes, parents first.
    pub changes: Vec<ApplyChangeInfo>,
}

/// One row's change in an apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyChangeInfo {
    /// `own`, `carve`, `uncarve` or `rename` (of an extent).
    pub act: String,
    /// The row.
    pub guid: String,
    /// Its name after the change.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub entity: String,
    /// Its address.
    pub address: String,
    /// The epoch after the change.
    pub epoch: u64,
    /// Who owned it.
    pub before: OwnershipInfo,
    /// Who owns it.
    pub after: OwnershipInfo,
}
