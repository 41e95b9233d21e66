//! The keys of `rma-unitd`'s configuration, as the file and the flags have them: syntax only.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};

use super::rmad_config::parse_ethertype;

/// The keys of the file, and the flags.
#[derive(Debug, Default, Clone, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// Network interface that leads to the segment; several, separated by commas, are used together
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    #[serde(default, deserialize_with = "super::config::one_or_more")]
    pub interface: Option<Vec<String>>,
    /// Name of this unit [default: the machine's host name]
    #[arg(long)]
    pub name: Option<String>,
    /// Vendor that this unit reports [default: rma]
    #[arg(long)]
    pub vendor: Option<String>,
    /// Model that this unit reports [default: rma-unitd]
    #[arg(long)]
    pub model: Option<String>,
    /// Serial number that this unit reports [default: its GUID]
    #[arg(long)]
    pub serial: Option<String>,
    /// Cluster this unit wants to join [default: whatever fabric services assign]
    #[arg(long)]
    pub cluster: Option<String>,
    /// GUID of this unit [default: generated at the first start and remembered]
    #[arg(long)]
    pub guid: Option<String>,
    /// MAC address of fabric services [default: found by multicast]
    #[arg(long, value_name = "MAC")]
    pub fabric_mac: Option<String>,
    /// Directory of what must survive a reboot, in its subdirectory unitd [default: /var/lib/rma]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory of sockets [default: /run/rma]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
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
    /// Threads that work on files and block devices [default: 4]
    #[arg(long, value_name = "COUNT")]
    pub disk_threads: Option<usize>,
    /// A controller besides those of the file, such as 'number = 1, name = "fast"'
    #[arg(long, value_name = "KEYS", value_parser = inline::<ControllerKeys>)]
    #[serde(default)]
    pub controller: Vec<ControllerKeys>,
    /// A device besides those of the file, such as
    /// 'controller = 1, number = 2, backend = "file", path = "/srv/disk", size = "1GiB"'
    #[arg(long, value_name = "KEYS", value_parser = inline::<DeviceFlag>)]
    #[serde(skip)]
    pub device: Vec<DeviceFlag>,
}

/// The keys of a `[[controller]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerKeys {
    /// Its number within the unit, from 1.
    pub number: u16,
    /// Its name.
    pub name: Option<String>,
    /// Its model.
    pub model: Option<String>,
    /// Its GUID.
    pub guid: Option<String>,
    /// Its devices.
    #[serde(default)]
    pub device: Vec<DeviceKeys>,
}

/// The keys of a `[[controller.device]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceKeys {
    /// Its number within the controller, from 1.
    pub number: u16,
    /// Its name.
    pub name: Option<String>,
    /// What is behind it.
    pub backend: BackendKind,
    /// The file or block device behind it.
    pub path: Option<PathBuf>,
    /// Its size.
    pub size: Option<Size>,
    /// Its logical block size, bytes.
    pub block_size: Option<u32>,
    /// Its vendor.
    pub vendor: Option<String>,
    /// Its model.
    pub model: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Its GUID.
    pub guid: Option<String>,
    /// Whether it refuses changes.
    #[serde(default)]
    pub read_only: bool,
}

/// The value of `--device`.
#[derive(Debug, Clone)]
pub struct DeviceFlag {
    /// The controller's number.
    pub controller: u16,
    /// The device.
    pub keys: DeviceKeys,
}

impl<'de> Deserialize<'de> for DeviceFlag {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let mut table = toml::Table::deserialize(d)?;
        let controller = table
            .remove("controller")
            .and_then(|v| u16::try_from(v.as_integer()?).ok())
            .ok_or_else(|| D::Error::custom("'controller' must name a controller's number"))?;
        let keys = DeviceKeys::deserialize(table).map_err(D::Error::custom)?;
        Ok(Self { controller, keys })
    }
}

/// What is behind a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// An ordinary file.
    File,
    /// A block device.
    Block,
    /// Memory; its content ends with the daemon.
    Memory,
}

impl BackendKind {
    /// The word in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Block => "block",
            Self::Memory => "memory",
        }
    }
}

/// A number of bytes: an integer, or text with one of the suffixes B, KiB, MiB, GiB, TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

const SIZE_HELP: &str = "a size is a number of bytes, or a number with KiB, MiB, GiB or TiB";

impl std::str::FromStr for Size {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.find(|c: char| !c.is_ascii_digit());
        let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
        let shift = match unit.trim_start() {
            "" | "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            _ => return Err(SIZE_HELP),
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(1 << shift))
            .map(Self)
            .ok_or(SIZE_HELP)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct AnySize;
        impl Visitor<'_> for AnySize {
            type Value = Size;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(SIZE_HELP)
            }
            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Size, E> {
                u64::try_from(value)
                    .map(Size)
                    .map_err(|_| E::custom(SIZE_HELP))
            }
            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Size, E> {
                Ok(Size(value))
            }
            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Size, E> {
                value.parse().map_err(E::custom)
            }
        }
        d.deserialize_any(AnySize)
    }
}

const ETHERTYPE_HELP: &str = "an EtherType is a number from 0x0600 to 0xffff";

fn ethertype_flag(text: &str) -> Result<u16, String> {
    parse_ethertype(text).ok_or_else(|| ETHERTYPE_HELP.to_owned())
}

fn ethertype_key<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u16>, D::Error> {
    let number = u16::deserialize(d)?;
    if number < 0x0600 {
        return Err(D::Error::custom(ETHERTYPE_HELP));
    }
    Ok(Some(number))
}

/// Parses the value of a flag that stands for a table of the file.
fn inline<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Wrapped<T> {
        value: T,
    }
    toml::from_str(&format!("value = {{ {text} }}"))
        .map(|w: Wrapped<T>| w.value)
        .map_err(|e| e.message().lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes() {
        for (text, bytes) in [
            ("512", 512),
            ("512B", 512),
            ("3KiB", 3 << 10),
            ("3 MiB", 3 << 20),
            ("1GiB", 1 << 30),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in [
            "",
            "GiB",
            "1GB",
            "1.5GiB",
            "-1",
            "99999999999999999999",
            "16777216TiB",
        ] {
            assert_eq!(text.parse::<Size>(), Err(SIZE_HELP), "{text}");
        }
    }
}
