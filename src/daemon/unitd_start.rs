//! What `rma-unitd` settles when it starts.

use std::path::Path;

use super::unitd::{STATE_SUBDIR, UnitdError};
use super::unitd_config::UnitdConfig;
use crate::store::Identity;
use crate::unit::Unit;
use crate::wire::Mac;

/// Makes a directory and those above it.
pub(super) fn make_dir(path: &Path) -> Result<(), UnitdError> {
    std::fs::create_dir_all(path).map_err(|source| UnitdError::Directory {
        path: path.to_owned(),
        source,
    })
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
