//! Why `rmad` cannot start or go on, in words.

use std::path::PathBuf;

use super::rmad_config::RmadConfig;
use crate::admin::control::ControlError;
use crate::net::{Interface, NetError};
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
    /// The MTU asked for is over the interface's.
    #[error(
        "mtu {asked} is over the {has} of interface {interface}; lower it or raise the interface's"
    )]
    Mtu {
        /// Asked for.
        asked: u16,
        /// The interface.
        interface: String,
        /// What it has.
        has: u16,
    },
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

/// The largest MTU that is taken from an interface by itself.
pub(super) const MAX_DEFAULT_MTU: u16 = 9000;

/// The most bytes of a frame that all interfaces take, or what the configuration says.
pub(super) fn settle_mtu(config: &RmadConfig, interfaces: &[Interface]) -> Result<u16, RmadError> {
    let smallest = interfaces.iter().min_by_key(|interface| interface.mtu);
    let interface = smallest.ok_or_else(|| RmadError::Down(String::new()))?;
    match config.mtu {
        Some(asked) if asked > interface.mtu => Err(RmadError::Mtu {
            asked,
            interface: interface.name.clone(),
            has: interface.mtu,
        }),
        Some(asked) => Ok(asked),
        None => Ok(interface.mtu.min(MAX_DEFAULT_MTU)),
    }
}
