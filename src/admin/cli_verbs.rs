//! The second words of `rma`: what the verbs that have several of them take.

use std::path::PathBuf;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(super) enum GranularityVerb {
    /// Show it
    Get,
    /// Set it
    Set {
        /// The finest level
        #[arg(value_parser = ["unit", "controller", "device", "extent"])]
        level: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum LockVerb {
    /// Show who holds it, and what each host and unit says of it
    Status,
    /// Take it, and keep it until it is released
    Acquire {
        /// Also from another host that holds it
        #[arg(long)]
        force: bool,
    },
    /// Release what this host keeps
    Release {
        /// Also what another host holds
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum CrtVerb {
    /// Show every row
    Show {
        /// The file
        #[arg(long, default_value = "/var/lib/rma/crt")]
        file: PathBuf,
    },
    /// Check every checksum and rule; exit status 1 when something is wrong
    Verify {
        /// The file
        #[arg(long, default_value = "/var/lib/rma/crt")]
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum UdevVerb {
    /// Print the rules for the devices that this host owns
    Rules,
    /// Say which rule gives which name to a device that this host owns, and where the name leads;
    /// exit status 1 when one does not lead to the device
    Test {
        /// Device or extent: GUID, its first 8 digits or more, address or name
        device: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum UnitVerb {
    /// Show its controllers, devices, registers and connections
    Status,
    /// Read its configuration again: controllers and devices come and go
    Reload,
    /// From a host: give a unit that has lost its ownership registers those that the table tells of
    Restore {
        /// The unit: GUID, its first 8 digits or more, address or name
        unit: String,
        /// Even while not every host is known to have the same table: what only a host knows that is
        /// left out may be lost
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum FabricVerb {
    /// Show the fabric services' database (Fig. 3)
    Catalog,
    /// Show the daemon in short
    Status,
    /// List the clusters whose table is kept here, or show a cluster's table (Fig. 4)
    Tables {
        /// The cluster whose table to show
        cluster: Option<String>,
    },
    /// Assign a host or unit to a cluster
    Assign {
        /// Host or unit: GUID, MAC address or name
        entity: String,
        /// The cluster
        #[arg(long)]
        cluster: String,
    },
    /// Remove a host or unit from the database
    Remove {
        /// Host or unit: GUID, MAC address or name
        entity: String,
    },
}
