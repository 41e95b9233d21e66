//! Why a verb of `rma` failed. Knows no verb.

use std::path::PathBuf;

use super::control::AskError;

/// Why a verb failed: one line for people.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("{0}")]
    Refused(String),
    #[error(
        "{path}: the daemon's answer cannot be read ({source}); are rma and the daemon of the same version?"
    )]
    Answer {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(transparent)]
    Abandon(#[from] super::abandon::AbandonError),
    #[error(transparent)]
    Bench(#[from] super::bench::BenchError),
    #[error(transparent)]
    Crt(#[from] crate::store::crt_file::StoreError),
    #[error(transparent)]
    Capture(#[from] super::capture::CaptureError),
    #[error(transparent)]
    Apply(#[from] super::apply::ApplyFileError),
    #[error("{path}: {source}")]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
}

impl CliError {
    /// The daemon's answer is of another kind than its question.
    pub(super) fn unexpected() -> Self {
        Self::Refused("the daemon answered something else than it was asked".into())
    }
}
