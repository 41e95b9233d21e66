//! The udev rules for what this host owns: the agent's facts as the generator takes them, and how udev
//! comes to a device's names.

use std::fs;
use std::path::Path;

use crate::admin::protocol::{UdevLink, UdevTest};
use crate::export::kernel::usage;
use crate::export::udev::{self, Access, KernelName, Node};
use crate::rma::OwnedDevice;

/// How udev comes to a device's names.
pub(super) type Explained = UdevTest;

/// The text of the rules for devices that are exported so.
pub(super) fn rules_text(named: &[(&OwnedDevice, Node)], access: &Access) -> String {
    let devices: Vec<_> = named
        .iter()
        .map(|(owned, node)| udev::OwnedDevice {
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
            node: node.clone(),
        })
        .collect();
    udev::rules(&devices, access)
}

/// The part of the rules that is about one kernel device.
pub(super) fn section<'a>(text: &'a str, kernel: &KernelName) -> Option<&'a str> {
    let label = format!("LABEL=\"rma_{}_end\"", kernel.as_str());
    text.split("\n\n").find(|part| part.contains(&label))
}

/// Which rule gives which name, and where each name leads now.
pub(super) fn explain(
    text: &str,
    file: Option<&Path>,
    owned: &OwnedDevice,
    kernel: &KernelName,
) -> Explained {
    let mut links = Vec::new();
    let mut notes = Vec::new();
    let part = section(text, kernel).unwrap_or_default();
    let first = text.find(part).map_or(0, |at| text[..at].lines().count());
    let disk = Path::new("/sys/class/block").join(kernel.as_str());
    let mut nodes = vec![(kernel.as_str().to_owned(), String::new())];
    for partition in usage::partitions(&disk) {
        let name = partition.file_name().unwrap_or_default().to_string_lossy();
        let number = fs::read_to_string(partition.join("partition")).unwrap_or_default();
        nodes.push((name.into_owned(), format!("-part{}", number.trim())));
    }
    nodes.sort();
    for (number, line) in (first + 1..).zip(part.lines()) {
        if let Some(note) = line.strip_prefix("# No link") {
            notes.push(format!("no link{note}"));
        }
        let link = line
            .strip_prefix("SYMLINK+=\"")
            .and_then(|rest| rest.strip_suffix("$env{.RMA_PART}\""));
        let Some(link) = link else { continue };
        for (node, suffix) in &nodes {
            let path = format!("/dev/{link}{suffix}");
            let target = fs::canonicalize(&path).ok();
            let target = target.map(|target| target.display().to_string());
            links.push(UdevLink {
                follows: follows(link).to_owned(),
                line: number,
                rule: line.to_owned(),
                is_right: target.as_deref() == Some(&format!("/dev/{node}")),
                target: target.unwrap_or_default(),
                link: path,
            });
        }
    }
    UdevTest {
        guid: owned.row.guid.to_string(),
        name: owned.row.name.clone(),
        node: format!("/dev/{}", kernel.as_str()),
        rules_file: file
            .map(|file| file.display().to_string())
            .unwrap_or_default(),
        links,
        notes,
    }
}

/// What a link follows.
fn follows(link: &str) -> &'static str {
    if link.starts_with("rma/by-path/") {
        "the place"
    } else if link.starts_with("rma/by-name/") {
        "the name"
    } else {
        "the device"
    }
}
