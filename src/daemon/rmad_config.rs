//! Configuration of `rmad`: `/etc/rma/rmad.toml`, every key also a flag; flags win.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::config::{self, ConfigError};
use crate::export::choice::Choice;
use crate::export::udev::{Access, AccountName};
use crate::initiator::Policy;
use crate::rma::CrtSource;
use crate::wire::{ClusterName, ETHERTYPE_MANAGEMENT, ETHERTYPE_SERVICE, Guid, Mac};

/// Where the configuration is looked for when no `--config` is given.
pub const DEFAULT_PATH: &str = "/etc/rma/rmad.toml";

/// The keys of the file, and the flags.
#[derive(Debug, Default, Clone, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// Network interface that leads to the segment; several, separated by commas, are used together
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    #[serde(default, deserialize_with = "super::config::one_or_more")]
    pub interface: Option<Vec<String>>,
    /// Name of this host [default: the machine's host name]
    #[arg(long)]
    pub name: Option<String>,
    /// Cluster this host wants to join [default: whatever fabric services assign]
    #[arg(long)]
    pub cluster: Option<String>,
    /// GUID of this host [default: generated at the first start and remembered]
    #[arg(long)]
    pub guid: Option<String>,
    /// MAC address of fabric services [default: found by multicast]
    #[arg(long, value_name = "MAC")]
    pub fabric_mac: Option<String>,
    /// Where the cluster's table comes from when this host starts: "peers", every other host, or
    /// "central", fabric services, with the other hosts where that does not do [default: peers]
    #[arg(long, value_name = "SOURCE")]
    pub crt_source: Option<String>,
    /// Directory of what must survive a reboot [default: /var/lib/rma]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory of sockets [default: /run/rma]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Directory for the generated udev rules, none with "-" [default: /run/udev/rules.d]
    #[arg(long, value_name = "DIR")]
    pub udev_rules_dir: Option<PathBuf>,
    /// EtherType of management traffic [default: 0x88b5]
    #[arg(long, value_parser = ethertype_flag, value_name = "NUMBER")]
    #[serde(default, deserialize_with = "ethertype_key")]
    pub ethertype_management: Option<u16>,
    /// EtherType of service traffic [default: 0x88b6]
    #[arg(long, value_parser = ethertype_flag, value_name = "NUMBER")]
    #[serde(default, deserialize_with = "ethertype_key")]
    pub ethertype_service: Option<u16>,
    /// Largest frame behind the Ethernet header, bytes [default: the interface's MTU, at most 9000]
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u16>,
    /// Interval at which fabric services are asked for members, milliseconds [default: 5000]
    #[arg(long, value_name = "MS")]
    pub poll_fabric_ms: Option<u64>,
    /// Interval at which I/O units are asked for controllers, milliseconds [default: 30000]
    #[arg(long, value_name = "MS")]
    pub poll_units_ms: Option<u64>,
    /// Interval at which controllers are asked for devices, milliseconds [default: 30000]
    #[arg(long, value_name = "MS")]
    pub poll_controllers_ms: Option<u64>,
    /// Interval at which peers are asked for their table's stamp, milliseconds [default: 5000]
    #[arg(long, value_name = "MS")]
    pub poll_peers_ms: Option<u64>,
    /// How long rows of devices that were taken out are kept at least, hours [default: 168]
    #[arg(long, value_name = "HOURS")]
    pub keep_removed_hours: Option<u64>,
    /// Give I/O units that have lost their ownership registers those of the table, without an
    /// administrator, when all hosts have the same table [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub auto_restore: Option<bool>,
    /// Fail the I/O of devices whose unit has been away for so many seconds, where `rma policy` says nothing
    /// of the device [default: it waits, however long]
    #[arg(long, value_name = "SECONDS")]
    pub fail_after_s: Option<u32>,
    /// How owned devices are exported; "auto" takes the first that works [default: auto]
    #[arg(long, value_enum)]
    pub export: Option<Choice>,
    /// User who owns the device nodes [default: as udev's other rules say]
    #[arg(long, value_name = "USER")]
    pub device_owner: Option<String>,
    /// Group of the device nodes [default: as udev's other rules say]
    #[arg(long, value_name = "GROUP")]
    pub device_group: Option<String>,
    /// Permissions of the device nodes, octal ("0660") [default: as udev's other rules say]
    #[arg(long, value_name = "MODE")]
    pub device_mode: Option<String>,
}

/// A configuration that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RmadConfig {
    /// Network interfaces, one or more.
    pub interface: Vec<String>,
    /// Name of this host.
    pub name: String,
    /// Cluster wanted, or none.
    pub cluster: ClusterName,
    /// GUID configured.
    pub guid: Option<Guid>,
    /// Fabric services' MAC address configured.
    pub fabric_mac: Option<Mac>,
    /// Where the cluster's table comes from.
    pub crt_source: CrtSource,
    /// State directory.
    pub state_dir: PathBuf,
    /// Run directory.
    pub run_dir: PathBuf,
    /// Directory of generated udev rules; `None`: write none.
    pub udev_rules_dir: Option<PathBuf>,
    /// EtherType of management traffic.
    pub ethertype_management: u16,
    /// EtherType of service traffic.
    pub ethertype_service: u16,
    /// Largest frame; `None`: the interface's.
    pub mtu: Option<u16>,
    /// Interval of membership polls.
    pub poll_fabric: Duration,
    /// Interval of unit polls.
    pub poll_units: Duration,
    /// Interval of controller polls.
    pub poll_controllers: Duration,
    /// Interval of stamp exchanges with peers.
    pub poll_peers: Duration,
    /// How long rows of what was taken out are kept.
    pub keep_removed: Duration,
    /// Whether units get lost registers back by themselves.
    pub auto_restore: bool,
    /// What becomes of I/O while a unit cannot be reached, where nothing else is said of the device.
    pub policy: Policy,
    /// How owned devices are exported.
    pub export: Choice,
    /// Who may open the device nodes.
    pub device_access: Access,
}

/// Parses an EtherType: `0x88b5` or a decimal number, 0x0600 and more.
pub fn parse_ethertype(text: &str) -> Option<u16> {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u16::from_str_radix(hex, 16).ok()?,
        None => text.parse().ok()?,
    };
    (number >= 0x0600).then_some(number)
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

fn crt_source(text: &str) -> Result<CrtSource, String> {
    let source = CrtSource::ALL.into_iter().find(|s| s.word() == text);
    source.ok_or_else(|| {
        format!(
            "'{}' is no source of the table; say \"peers\" or \"central\"",
            text.escape_debug()
        )
    })
}

macro_rules! merge {
    ($flags:ident, $file:ident: $($key:ident),+ $(,)?) => {
        Keys { $( $key: $flags.$key.or($file.$key), )+ }
    };
}

impl RmadConfig {
    /// Flags over the file over the defaults.
    pub fn load(flags: Keys, path: Option<&Path>) -> Result<Self, ConfigError> {
        let default = Path::new(DEFAULT_PATH);
        let file: Keys = config::read(path, default)?;
        let keys = merge!(flags, file: interface, name, cluster, guid, fabric_mac, crt_source, state_dir, run_dir,
            udev_rules_dir, ethertype_management, ethertype_service, mtu, poll_fabric_ms,
            poll_units_ms, poll_controllers_ms, poll_peers_ms, keep_removed_hours,
            auto_restore, fail_after_s, export, device_owner, device_group, device_mode);
        Self::from_keys(keys, path.unwrap_or(default))
    }

    /// The keys, but for the intervals, in which another configuration differs.
    pub fn fixed_keys_that_differ(&self, other: &Self) -> Vec<&'static str> {
        macro_rules! differing {
            ($($key:ident),+ $(,)?) => {
                [$( (stringify!($key), self.$key != other.$key) ),+]
            };
        }
        differing!(
            interface,
            name,
            cluster,
            guid,
            fabric_mac,
            crt_source,
            state_dir,
            run_dir,
            udev_rules_dir,
            ethertype_management,
            ethertype_service,
            mtu,
            auto_restore,
            policy,
            export,
            device_access,
        )
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }

    /// Takes the intervals of another configuration.
    pub fn take_intervals(&mut self, other: &Self) {
        self.poll_fabric = other.poll_fabric;
        self.poll_units = other.poll_units;
        self.poll_controllers = other.poll_controllers;
        self.poll_peers = other.poll_peers;
        self.keep_removed = other.keep_removed;
    }

    fn from_keys(keys: Keys, path: &Path) -> Result<Self, ConfigError> {
        let bad = |key: &str, why: String| {
            ConfigError::Missing(format!("{}: {key}: {why}", path.display()))
        };
        let interval = |key: &str, value: Option<u64>, default: u64| match value.unwrap_or(default)
        {
            ms @ 50..=3_600_000 => Ok(Duration::from_millis(ms)),
            ms => Err(bad(
                key,
                format!("{ms} is not an interval from 50 ms to 3600000 ms"),
            )),
        };
        let interface = config::interfaces(keys.interface).map_err(|why| bad("interface", why))?;
        let name = match keys.name {
            Some(name) => name,
            None => nix::unistd::gethostname()
                .ok()
                .and_then(|n| n.into_string().ok())
                .ok_or_else(|| bad("name", "missing, and the machine has no host name".into()))?,
        };
        if name.is_empty() || name.len() > crate::wire::row::MAX_NAME_BYTES {
            return Err(bad("name", "a name has 1 to 63 bytes".into()));
        }
        let mtu = match keys.mtu {
            Some(mtu @ (..256 | 9217..)) => {
                return Err(bad("mtu", format!("{mtu} is not from 256 to 9216")));
            }
            other => other,
        };
        let (ethertype_management, ethertype_service) = (
            keys.ethertype_management.unwrap_or(ETHERTYPE_MANAGEMENT),
            keys.ethertype_service.unwrap_or(ETHERTYPE_SERVICE),
        );
        if ethertype_management == ethertype_service {
            return Err(bad(
                "ethertype_service",
                "equals ethertype_management; they must differ".into(),
            ));
        }
        let account = |key: &str, name: Option<String>| match name {
            None => Ok(None),
            Some(text) => match AccountName::new(&text) {
                Some(name) => Ok(Some(name)),
                None => Err(bad(
                    key,
                    format!("{text:?} is no name: 1 to 32 of A-Z a-z 0-9 _ . -"),
                )),
            },
        };
        let mode = match keys.device_mode {
            None => None,
            Some(text) => match u16::from_str_radix(&text, 8) {
                Ok(mode @ 0..=0o777) => Some(mode),
                _ => {
                    let why = format!("{text:?} is not from \"0\" to \"0777\"");
                    return Err(bad("device_mode", why));
                }
            },
        };
        let device_access = Access {
            owner: account("device_owner", keys.device_owner)?,
            group: account("device_group", keys.device_group)?,
            mode,
        };
        let udev_rules_dir = keys
            .udev_rules_dir
            .unwrap_or_else(|| PathBuf::from("/run/udev/rules.d"));
        Ok(Self {
            interface,
            name,
            cluster: match keys.cluster {
                None => ClusterName::NONE,
                Some(text) => text.parse().map_err(|e| bad("cluster", format!("{e}")))?,
            },
            guid: match keys.guid {
                None => None,
                Some(text) => Some(text.parse().map_err(|e| bad("guid", format!("{e}")))?),
            },
            fabric_mac: match keys.fabric_mac {
                None => None,
                Some(text) => Some(
                    text.parse()
                        .map_err(|e| bad("fabric_mac", format!("{e}")))?,
                ),
            },
            crt_source: match keys.crt_source {
                None => CrtSource::default(),
                Some(text) => crt_source(&text).map_err(|why| bad("crt_source", why))?,
            },
            state_dir: keys
                .state_dir
                .unwrap_or_else(|| PathBuf::from("/var/lib/rma")),
            run_dir: keys.run_dir.unwrap_or_else(|| PathBuf::from("/run/rma")),
            udev_rules_dir: (udev_rules_dir != Path::new("-")).then_some(udev_rules_dir),
            ethertype_management,
            ethertype_service,
            mtu,
            poll_fabric: interval("poll_fabric_ms", keys.poll_fabric_ms, 5_000)?,
            poll_units: interval("poll_units_ms", keys.poll_units_ms, 30_000)?,
            poll_controllers: interval("poll_controllers_ms", keys.poll_controllers_ms, 30_000)?,
            poll_peers: interval("poll_peers_ms", keys.poll_peers_ms, 5_000)?,
            auto_restore: keys.auto_restore.unwrap_or(false),
            policy: keys.fail_after_s.map_or(Policy::Queue, |seconds| {
                Policy::FailAfter(Duration::from_secs(seconds.into()))
            }),
            export: keys.export.unwrap_or_default(),
            device_access,
            keep_removed: match keys.keep_removed_hours.unwrap_or(168) {
                hours @ 1..=876_000 => Duration::from_secs(hours * 3600),
                hours => {
                    let why = format!("{hours} is not from 1 to 876000 hours");
                    return Err(bad("keep_removed_hours", why));
                }
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, flags: Keys) -> Result<RmadConfig, String> {
        let path = Path::new("rmad.toml");
        let file: Keys = config::parse(text, path).map_err(|e| e.to_string())?;
        let keys = merge!(flags, file: interface, name, cluster, guid, fabric_mac, crt_source, state_dir, run_dir,
            udev_rules_dir, ethertype_management, ethertype_service, mtu, poll_fabric_ms,
            poll_units_ms, poll_controllers_ms, poll_peers_ms, keep_removed_hours,
            auto_restore, fail_after_s, export, device_owner, device_group, device_mode);
        RmadConfig::from_keys(keys, path).map_err(|e| e.to_string())
    }

    #[test]
    fn flags_win_over_the_file() {
        let flags = Keys {
            cluster: Some("B".into()),
            ..Keys::default()
        };
        let config = load(
            "interface = \"eth1\"\ncluster = \"A\"\nname = \"h\"\n",
            flags,
        )
        .unwrap();
        assert_eq!(config.interface, ["eth1"]);
        assert_eq!(config.cluster.to_string(), "B");
        assert_eq!(config.ethertype_service, 0x88b6);
        assert_eq!(config.crt_source, CrtSource::Peers);
        let flags = Keys {
            crt_source: Some("central".into()),
            ..Keys::default()
        };
        let config = load("interface = \"eth1\"\nname = \"h\"\n", flags).unwrap();
        assert_eq!(config.crt_source, CrtSource::Central);
    }

    #[test]
    fn one_interface_or_several() {
        let several = load(
            "interface = [\"e1\", \"e2\"]\nname = \"h\"",
            Keys::default(),
        );
        assert_eq!(several.unwrap().interface, ["e1", "e2"]);
        for text in ["[]", "[\"e\", \"e\"]", "[\"\"]"] {
            let error = load(
                &format!("interface = {text}\nname = \"h\""),
                Keys::default(),
            );
            assert!(error.unwrap_err().contains("interface: "), "{text}");
        }
    }

    #[test]
    fn mistakes_are_one_line_that_names_the_key() {
        for (text, word) in [
            ("", "interface"),
            (
                "interface = \"e\"\nname = \"h\"\ncluster = \"a b\"",
                "cluster",
            ),
            ("interface = \"e\"\nname = \"h\"\nmtu = 12", "mtu"),
            (
                "interface = \"e\"\nname = \"h\"\npoll_units_ms = 1",
                "poll_units_ms",
            ),
            ("interface = \"e\"\nethertype_service = 3", "EtherType"),
            (
                "interface = \"e\"\nname = \"h\"\nethertype_service = 0x88b5",
                "differ",
            ),
            (
                "interface = \"e\"\nname = \"h\"\ncrt_source = \"centre\"",
                "crt_source: 'centre'",
            ),
            ("interface = \"e\"\nexport = \"iscsi\"", "ublk"),
            ("interface = \"e\"\ndevice_group = \"a b\"", "device_group"),
            ("interface = \"e\"\ndevice_mode = \"0778\"", "device_mode"),
            ("interfaces = \"e\"", "interfaces"),
            ("interface = 3", "string"),
        ] {
            let error = load(text, Keys::default()).unwrap_err();
            assert!(error.contains(word) && !error.contains('\n'), "{error}");
        }
    }
}
