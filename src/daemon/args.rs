//! The daemons' command lines: one declaration for the programs and their man pages.

use std::path::PathBuf;

use clap::CommandFactory as _;

use super::{fabricd_config, rmad_config, unitd_keys};

/// The resource management agent: keeps the cluster resource table and serves what this host owns
#[derive(Debug, clap::Parser)]
#[command(name = "rmad", version)]
pub struct RmadArgs {
    /// Configuration file [default: /etc/rma/rmad.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What is logged unless RUST_LOG says otherwise: error, warn, info, debug, trace
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    pub log: String,
    /// Only load the kernel's modules that the configured export needs, and end
    #[arg(long, conflicts_with = "remove_devices")]
    pub load_modules: bool,
    /// Only remove the block devices that rmad has left behind, and its udev rules, and end; refused
    /// while one of them is in use
    #[arg(long)]
    pub remove_devices: bool,
    /// With --remove-devices: even what is in use; its I/O fails
    #[arg(long, requires = "remove_devices")]
    pub force: bool,
    /// Keys of the configuration; they win over the file's.
    #[command(flatten)]
    pub keys: rmad_config::Keys,
}

/// An I/O unit: serves disks on an Ethernet segment to the hosts that own them
#[derive(Debug, clap::Parser)]
#[command(name = "rma-unitd", version)]
pub struct UnitdArgs {
    /// Configuration file [default: /etc/rma/unitd.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What is logged unless RUST_LOG says otherwise: error, warn, info, debug, trace
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    pub log: String,
    /// Keys of the configuration; they win over the file's.
    #[command(flatten)]
    pub keys: unitd_keys::Keys,
}

/// Fabric services: knows the hosts and I/O units of a segment and tells every cluster its own
#[derive(Debug, clap::Parser)]
#[command(name = "rma-fabricd", version)]
pub struct FabricdArgs {
    /// Configuration file [default: /etc/rma/fabricd.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What is logged unless RUST_LOG says otherwise: error, warn, info, debug, trace
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    pub log: String,
    /// Keys of the configuration; they win over the file's.
    #[command(flatten)]
    pub keys: fabricd_config::Keys,
}

/// The daemons' command lines, for their man pages.
pub fn commands() -> [clap::Command; 3] {
    [
        RmadArgs::command(),
        UnitdArgs::command(),
        FabricdArgs::command(),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_lines_are_consistent() {
        for command in super::commands() {
            command.debug_assert();
        }
    }
}
