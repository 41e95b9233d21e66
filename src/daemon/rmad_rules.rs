//! The udev rules for what this host owns: the agent's facts as the generator takes them.

use std::path::Path;

use crate::export::udev;
use crate::rma::OwnedDevice;

/// The text of the rules; `socket_dir` is where the devices' sockets are.
pub(super) fn rules_text(owned: &[OwnedDevice], socket_dir: &Path) -> String {
    let devices: Vec<_> = owned
        .iter()
        .map(|owned| udev::OwnedDevice {
            guid: owned.row.guid,
            addresses: owned
                .unit_macs
                .iter()
                .map(|mac| crate::wire::Address {
                    mac: *mac,
                    ioc: owned.row.ioc,
                    iod: owned.row.iod,
                    extent: owned.row.extent,
                })
                .collect(),
            name: owned.row.name.clone(),
            vendor: owned.row.vendor.clone(),
            model: owned.row.model.clone(),
            serial: owned.row.serial.clone(),
            unit: owned.unit_name.clone(),
            controller: owned.controller_name.clone(),
            shared: matches!(owned.row.ownership, crate::wire::Ownership::Shared(_)),
            read_only: owned.row.features & crate::wire::row::features::READ_ONLY != 0,
            node: udev::Node::Socket(socket_dir.join(owned.row.guid.to_string())),
        })
        .collect();
    udev::rules(
        &devices,
        &udev::Access {
            owner: None,
            group: None,
            mode: None,
        },
    )
}
