//! What `rma-unitd` settles when it starts.

use std::path::Path;

use super::unitd::{STATE_SUBDIR, UnitdError};
use super::unitd_config::UnitdConfig;
use crate::net::Interface;
use crate::store::Identity;
use crate::unit::Unit;
use crate::wire::Mac;

/// The largest MTU that is taken from an interface by itself.
pub(super) const MAX_DEFAULT_MTU: u16 = 9000;

/// The MTU to use: the configured one, or the smallest of the interfaces'.
pub(super) fn settle_mtu(
    config: &UnitdConfig,
    interfaces: &[Interface],
) -> Result<u16, UnitdError> {
    let smallest = interfaces.iter().min_by_key(|interface| interface.mtu);
    let interface = smallest.ok_or_else(|| UnitdError::Down(String::new()))?;
    match config.mtu {
        None => Ok(interface.mtu.min(MAX_DEFAULT_MTU)),
        Some(wanted) if wanted > interface.mtu => Err(UnitdError::Mtu {
            wanted,
            actual: interface.mtu,
            interface: interface.name.clone(),
        }),
        Some(wanted) => Ok(wanted),
    }
}

/// Makes a directory and those above it.
pub(super) fn make_dir(path: &Path) -> Result<(), UnitdError> {
    std::fs::create_dir_all(path).map_err(|source| UnitdError::Directory {
        path: path.to_owned(),
        source,
    })
}

/// A seed that nobody can guess.
pub(super) fn random_seed() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Says what has been started.
pub(super) fn log_start(
    config: &UnitdConfig,
    identity: &Identity,
    unit: &Unit,
    macs: &[Mac],
    mtu: u16,
) {
    let devices: usize = config.controllers.iter().map(|c| c.devices.len()).sum();
    log::info!(
        "unit {} ({}), start {}, on {} ({}), MTU {mtu}: {} controllers, {devices} devices",
        config.name,
        identity.guid(),
        identity.incarnation(),
        config.interface.join(", "),
        macs.iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", "),
        config.controllers.len(),
    );
    if unit.cluster().is_none() {
        log::info!("no cluster assigned yet; waiting for fabric services");
    } else {
        log::info!("serving cluster {}", unit.cluster());
    }
    if !unit.has_registers() {
        log::error!(
            "the ownership registers in {} are lost; no I/O is served until they are restored",
            config.state_dir.join(STATE_SUBDIR).display()
        );
    }
}
