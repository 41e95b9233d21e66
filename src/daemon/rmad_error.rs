//! Why `rmad` cannot start or go on, in words.

use std::path::PathBuf;

use super::start::MtuError;
use crate::admin::control::ControlError;
use crate::net::NetError;
use crate::store::crt_file::StoreError;
use crate::store::identity::IdentityError;

/// Why `rmad` cannot start or go on: one line for people.
#[derive(Debug, thiserror::Error)]
pub enum RmadError {
    /// The interface or a socket on it.
    #[error("{}", chain(.0))]
    Net(#[from] NetError),
    /// The interface is down.
    #[error("interface {0} is down; bring it up first (ip link set {0} up)")]
    Down(String),
    /// The MTU asked for is over an interface's.
    #[error(transparent)]
    Mtu(#[from] MtuError),
    /// A directory cannot be made.
    #[error("{path}: cannot make the directory: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The table's file.
    #[error(transparent)]
    Crt(#[from] StoreError),
    /// The identity file.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Something that the kernel normally never refuses.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// Makes an error of the system from what was tried.
pub(super) fn system(action: &'static str) -> impl FnOnce(std::io::Error) -> RmadError {
    move |source| RmadError::System { action, source }
}
