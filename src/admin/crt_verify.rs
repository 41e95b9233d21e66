//! What `rma crt verify` says about a table's file.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use crate::rma::report::summary_info;
use crate::rma::request::SummaryInfo;
use crate::store::crt_file::{StoreError, verify};
use crate::wire::message::TableSummary;

/// What was found in a file whose roots, pages and rows can be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyInfo {
    /// The file.
    pub file: String,
    /// Whether nothing is wrong.
    pub sound: bool,
    /// Version of the file format.
    pub format_version: u32,
    /// The cluster, empty where none is known yet.
    pub cluster: String,
    /// GUID of the host whose table it is.
    pub owner: String,
    /// Counts the commits.
    pub sequence: u64,
    /// Stamp, digest and number of rows.
    #[serde(flatten)]
    pub summary: SummaryInfo,
    /// Tombstones among the rows.
    pub invalid_count: u64,
    /// Whether a crash during a commit has left one root torn; the other has the table.
    pub torn_root: bool,
    /// Rows that break the ownership hierarchy, a line each.
    pub violations: Vec<String>,
    /// GUIDs of rows whose parent is not in the table.
    pub orphans: Vec<String>,
}

impl VerifyInfo {
    /// Reads and checks the file.
    pub fn of(path: &Path) -> Result<Self, StoreError> {
        let report = verify(path)?;
        let summary = TableSummary {
            stamp: report.stamp,
            digest: report.digest,
            row_count: report.row_count as u32,
            floor: report.floor,
        };
        Ok(Self {
            file: path.display().to_string(),
            sound: report.is_good(),
            format_version: report.format_version,
            cluster: report.info.cluster.as_str().to_owned(),
            owner: report.info.owner.to_string(),
            sequence: report.info.sequence,
            summary: summary_info(&summary),
            invalid_count: report.invalid_count as u64,
            torn_root: report.has_torn_root(),
            violations: report.violations.iter().map(ToString::to_string).collect(),
            orphans: report.orphans.iter().map(ToString::to_string).collect(),
        })
    }
}

impl fmt::Display for VerifyInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: format {}, cluster {}, commit {}, {} rows ({} invalid), stamp {}.{}, digest {}",
            self.file,
            self.format_version,
            if self.cluster.is_empty() {
                "-"
            } else {
                &self.cluster
            },
            self.sequence,
            self.summary.row_count,
            self.invalid_count,
            self.summary.stamp.term,
            self.summary.stamp.counter,
            self.summary.digest,
        )?;
        if self.torn_root {
            writeln!(
                f,
                "a commit was interrupted; the table before it is whole and in use"
            )?;
        }
        for violation in &self.violations {
            writeln!(f, "ownership hierarchy: {violation}")?;
        }
        for orphan in &self.orphans {
            writeln!(f, "row without its parent: {orphan}")?;
        }
        writeln!(f, "{}", if self.sound { "sound" } else { "NOT SOUND" })
    }
}
