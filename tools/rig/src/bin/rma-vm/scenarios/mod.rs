//! What is tried in the guests.

mod cases;
mod diskless;
mod disks;
mod faults;
mod input;
mod systems;

use crate::Result;
use crate::cluster::Lab;

/// A scenario: it has guests of its own.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Whether the host `a` has a whole system instead of the small guest's.
    pub(crate) system: bool,
    pub(crate) run: fn(&Lab) -> Result<()>,
}

/// All of them, in the order in which they run.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "disk-ublk",
        about: "ublk: names within a second, a filesystem on disk and partition and extent, gone within a second",
        system: false,
        run: |lab| disks::disk(lab, "ublk"),
    },
    Scenario {
        name: "kill-ublk",
        about: "ublk: rmad is killed again and again under verified I/O; no error, the device stays",
        system: false,
        run: |lab| faults::kill(lab, "ublk"),
    },
    Scenario {
        name: "disk-nbd",
        about: "nbd: names within a second, a filesystem on disk and partition and extent, gone within a second",
        system: false,
        run: |lab| disks::disk(lab, "nbd"),
    },
    Scenario {
        name: "kill-nbd",
        about: "nbd: rmad is killed again and again under verified I/O; no error, the device stays",
        system: false,
        run: |lab| faults::kill(lab, "nbd"),
    },
    Scenario {
        name: "cases-ublk",
        about: "ublk: what suites for block devices try on any of them, case by case",
        system: false,
        run: |lab| cases::cases(lab, "ublk"),
    },
    Scenario {
        name: "cases-nbd",
        about: "nbd: what suites for block devices try on any of them, case by case",
        system: false,
        run: |lab| cases::cases(lab, "nbd"),
    },
    Scenario {
        name: "reallocate",
        about: "a mounted device is not taken without --force; with it, not one of its writes is applied any more",
        system: false,
        run: |lab| faults::reallocate(lab, "auto"),
    },
    Scenario {
        name: "cut-ublk",
        about: "ublk: the unit is cut off for a while under verified I/O, which waits and does not fail",
        system: false,
        run: |lab| faults::cut(lab, "ublk"),
    },
    Scenario {
        name: "cut-nbd",
        about: "nbd: the unit is cut off for a while under verified I/O, which waits and does not fail",
        system: false,
        run: |lab| faults::cut(lab, "nbd"),
    },
    Scenario {
        name: "unit-reset",
        about: "the unit's guest is reset under verified I/O; no error",
        system: false,
        run: |lab| faults::unit_reset(lab, "auto"),
    },
    Scenario {
        name: "host-reset",
        about: "a host is reset and comes back with the same names and mounts",
        system: false,
        run: |lab| faults::host_reset(lab, "auto"),
    },
    Scenario {
        name: "bad-input",
        about: "names made to harm, the largest device, two devices with one name, no driver, no rules directory",
        system: false,
        run: input::bad_input,
    },
    Scenario {
        name: "packages",
        about: "the packages are installed, upgraded under a mounted disk, not removed while it is mounted, removed",
        system: true,
        run: systems::packages,
    },
    Scenario {
        name: "fstab-reset",
        about: "a host with systemd and 32 devices is reset and comes back with the same names and its fstab mounts",
        system: true,
        run: systems::reset,
    },
    Scenario {
        name: "shutdown",
        about: "a host whose unit is dead, with a disk of it mounted and written to, is off within 30 s",
        system: true,
        run: systems::shutdown,
    },
    Scenario {
        name: "diskless",
        about: "a host without a disk boots from a unit's device, writes, reboots, reads; without its unit it says so and waits",
        system: true,
        run: diskless::diskless,
    },
];

/// A device of `mib` MiB in memory, as a part of the unit's configuration.
fn memory(number: u32, name: &str, mib: u32) -> String {
    format!(
        "\n[[controller.device]]\nnumber = {number}\nname = \"{name}\"\nbackend = \"memory\"\nsize = \"{mib}MiB\"\n"
    )
}

/// A device of `mib` MiB in a file on the unit's disk, as a part of its configuration.
fn file(number: u32, name: &str, mib: u32) -> String {
    format!(
        "\n[[controller.device]]\nnumber = {number}\nname = \"{name}\"\nbackend = \"file\"\n\
         path = \"/disk/{name}.img\"\nsize = \"{mib}MiB\"\n"
    )
}

/// A host's configuration that exports in this way.
fn exporting(backend: &str) -> String {
    format!("export = \"{backend}\"\n")
}
