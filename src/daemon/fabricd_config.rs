//! Configuration of `rma-fabricd`: `/etc/rma/fabricd.toml`, every key also a flag; flags win.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::config::{self, ConfigError};
use super::rmad_config::parse_ethertype;
use crate::fabric::Policy;
use crate::wire::MIN_MTU;
use crate::wire::{ETHERTYPE_MANAGEMENT, Guid};

/// Where the configuration is looked for when no `--config` is given.
pub const DEFAULT_PATH: &str = "/etc/rma/fabricd.toml";
/// The largest MTU that can be configured, bytes.
pub const MAX_MTU: u16 = 9216;

/// The keys of the file, and the flags.
#[derive(Debug, Default, Clone, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// Network interface that leads to the segment
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,
    /// What becomes of newcomers: "pending" until an administrator assigns a cluster, or
    /// "auto-join" to the cluster that their configuration names [default: pending]
    #[arg(long)]
    pub policy: Option<String>,
    /// GUID of these fabric services [default: generated at the first start and remembered]
    #[arg(long)]
    pub guid: Option<String>,
    /// Directory of what must survive a reboot; the database is in its subdirectory fabricd
    /// [default: /var/lib/rma/fabricd]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory of sockets [default: /run/rma]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// EtherType of management traffic [default: 0x88b5]
    #[arg(
        long,
        value_parser = ethertype_flag,
        value_name = "NUMBER",
        visible_alias = "ethertype-management"
    )]
    #[serde(
        default,
        deserialize_with = "ethertype_key",
        alias = "ethertype_management"
    )]
    pub ethertype: Option<u16>,
    /// Largest frame behind the Ethernet header, bytes [default: the interface's MTU, at most 9000]
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u16>,
}

/// A configuration that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FabricdConfig {
    /// Network interface.
    pub interface: String,
    /// What becomes of newcomers.
    pub policy: Policy,
    /// GUID configured.
    pub guid: Option<Guid>,
    /// State directory.
    pub state_dir: PathBuf,
    /// Run directory.
    pub run_dir: PathBuf,
    /// EtherType of management traffic.
    pub ethertype: u16,
    /// Largest frame; `None`: the interface's.
    pub mtu: Option<u16>,
}

const ETHERTYPE_HELP: &str = "an EtherType is a number from 0x0600 to 0xffff";

fn ethertype_flag(text: &str) -> Result<u16, String> {
    parse_ethertype(text).ok_or_else(|| ETHERTYPE_HELP.to_owned())
}

fn ethertype_key<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<u16>, D::Error> {
    let number = u16::deserialize(d)?;
    if number < 0x0600 {
        return Err(serde::de::Error::custom(ETHERTYPE_HELP));
    }
    Ok(Some(number))
}

impl FabricdConfig {
    /// Flags over the file over the defaults.
    pub fn load(flags: Keys, path: Option<&Path>) -> Result<Self, ConfigError> {
        let default = Path::new(DEFAULT_PATH);
        let file: Keys = config::read(path, default)?;
        Self::from_keys(flags, file, path.unwrap_or(default))
    }

    fn from_keys(flags: Keys, file: Keys, path: &Path) -> Result<Self, ConfigError> {
        let bad = |key: &str, why: String| {
            ConfigError::Missing(format!("{}: {key}: {why}", path.display()))
        };
        let interface = flags.interface.or(file.interface).ok_or_else(|| {
            bad(
                "interface",
                "missing; name the network interface that leads to the segment".into(),
            )
        })?;
        let policy = match flags.policy.or(file.policy).as_deref() {
            None | Some("pending") => Policy::Pending,
            Some("auto-join") => Policy::AutoJoin,
            Some(other) => {
                let why = format!("'{}' is not pending or auto-join", other.escape_default());
                return Err(bad("policy", why));
            }
        };
        let guid = match flags.guid.or(file.guid) {
            None => None,
            Some(text) => {
                let guid: Guid = text.parse().map_err(|e| bad("guid", format!("{e}")))?;
                if guid.is_nil() {
                    return Err(bad("guid", "the GUID of zeroes means nobody".into()));
                }
                Some(guid)
            }
        };
        let mtu = flags.mtu.or(file.mtu);
        if let Some(mtu) = mtu.filter(|mtu| !(MIN_MTU..=MAX_MTU).contains(mtu)) {
            let why = format!("{mtu} is not from {MIN_MTU} to {MAX_MTU}");
            return Err(bad("mtu", why));
        }
        let directory = |flag: Option<PathBuf>, file: Option<PathBuf>, default: &str| {
            flag.or(file).unwrap_or_else(|| PathBuf::from(default))
        };
        Ok(Self {
            interface,
            policy,
            guid,
            state_dir: directory(flags.state_dir, file.state_dir, "/var/lib/rma/fabricd"),
            run_dir: directory(flags.run_dir, file.run_dir, "/run/rma"),
            ethertype: flags
                .ethertype
                .or(file.ethertype)
                .unwrap_or(ETHERTYPE_MANAGEMENT),
            mtu,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, flags: Keys) -> Result<FabricdConfig, String> {
        let path = Path::new("fabricd.toml");
        let file: Keys = config::parse(text, path).map_err(|e| e.to_string())?;
        FabricdConfig::from_keys(flags, file, path).map_err(|e| e.to_string())
    }

    #[test]
    fn flags_win_over_the_file_and_both_over_the_defaults() {
        let text = "interface = \"eth1\"\npolicy = \"auto-join\"\nstate_dir = \"/s\"\n";
        let flags = Keys {
            state_dir: Some("/t".into()),
            ..Keys::default()
        };
        let config = load(text, flags).unwrap();
        assert_eq!(config.interface, "eth1");
        assert_eq!(config.policy, Policy::AutoJoin);
        assert_eq!(config.state_dir, Path::new("/t"));
        assert_eq!(config.run_dir, Path::new("/run/rma"));
        assert_eq!(config.ethertype, 0x88b5);
        let other = load("interface = \"e\"\nethertype = 0x88b7", Keys::default());
        assert_eq!(other.unwrap().ethertype, 0x88b7);
    }

    #[test]
    fn mistakes_are_one_line_that_names_the_file_and_the_key() {
        for (text, word) in [
            ("", "interface"),
            ("interface = \"e\"\npolicy = \"join\"", "policy"),
            ("interface = \"e\"\nguid = \"12\"", "guid"),
            (
                "interface = \"e\"\nguid = \"00000000000000000000000000000000\"",
                "guid",
            ),
            ("interface = \"e\"\nmtu = 12", "mtu"),
            ("interface = \"e\"\nethertype = 3", "EtherType"),
            ("interface = \"e\"\ncluster = \"A\"", "cluster"),
            ("interface = 3", "string"),
        ] {
            let error = load(text, Keys::default()).unwrap_err();
            assert!(
                error.contains(word) && error.starts_with("fabricd.toml") && !error.contains('\n'),
                "{error}"
            );
        }
    }
}
