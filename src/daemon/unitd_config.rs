//! Configuration of `rma-unitd`: `/etc/rma/unitd.toml`, every key also a flag; flags win.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::config::{self, ConfigError};
use super::unitd_keys::{BackendKind, ControllerKeys, DeviceFlag, DeviceKeys, Keys};
use crate::wire::header::MIN_MTU;
use crate::wire::message::{MAX_CONTROLLERS, MAX_DEVICES};
use crate::wire::row::{MAX_LABEL_BYTES, MAX_NAME_BYTES};
use crate::wire::{
    ClusterName, ETHERTYPE_MANAGEMENT, ETHERTYPE_SERVICE, Guid, IocNumber, IodNumber, Mac,
};

/// Where the configuration is looked for when no `--config` is given.
pub const DEFAULT_PATH: &str = "/etc/rma/unitd.toml";
/// The largest MTU that makes sense.
pub const MAX_MTU: u16 = 9216;
/// The most backend threads.
pub const MAX_DISK_THREADS: usize = 64;

/// A configuration that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitdConfig {
    /// Network interfaces, one or more.
    pub interface: Vec<String>,
    /// Name of this unit.
    pub name: String,
    /// Vendor of this unit.
    pub vendor: String,
    /// Model of this unit.
    pub model: String,
    /// Serial number of this unit.
    pub serial: Option<String>,
    /// Cluster wanted, or none.
    pub cluster: ClusterName,
    /// GUID configured.
    pub guid: Option<Guid>,
    /// Fabric services' MAC address configured.
    pub fabric_mac: Option<Mac>,
    /// State directory.
    pub state_dir: PathBuf,
    /// Run directory.
    pub run_dir: PathBuf,
    /// EtherType of management traffic.
    pub ethertype_management: u16,
    /// EtherType of service traffic.
    pub ethertype_service: u16,
    /// Largest frame; `None`: the interface's.
    pub mtu: Option<u16>,
    /// Backend threads.
    pub disk_threads: usize,
    /// Controllers by number.
    pub controllers: Vec<ControllerConfig>,
}

/// A controller to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerConfig {
    /// Its number.
    pub number: IocNumber,
    /// Its name.
    pub name: String,
    /// Its model.
    pub model: String,
    /// Its GUID, where configured.
    pub guid: Option<Guid>,
    /// Its devices by number.
    pub devices: Vec<DeviceConfig>,
}

/// A device to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Its number.
    pub number: IodNumber,
    /// Its name.
    pub name: String,
    /// What is behind it.
    pub backend: BackendKind,
    /// The file or block device behind it, absolute; memory has none.
    pub path: Option<PathBuf>,
    /// Its size in bytes; `None`: what the medium has.
    pub size_bytes: Option<u64>,
    /// Its logical block size; `None`: the medium's.
    pub block_size: Option<u32>,
    /// Its vendor.
    pub vendor: String,
    /// Its model.
    pub model: String,
    /// Its serial number; `None`: its GUID.
    pub serial: Option<String>,
    /// Its GUID, where configured.
    pub guid: Option<Guid>,
    /// Whether it refuses changes.
    pub read_only: bool,
}

macro_rules! merge {
    ($flags:ident, $file:ident: $($key:ident),+ $(,)?) => {
        Keys {
            $( $key: $flags.$key.clone().or($file.$key), )+
            controller: $file.controller.into_iter().chain($flags.controller.clone()).collect(),
            device: $flags.device.clone(),
        }
    };
}

/// What is wrong with a key, in one line.
struct Judge<'a> {
    path: &'a Path,
}

impl Judge<'_> {
    fn bad(&self, key: &str, why: impl std::fmt::Display) -> ConfigError {
        ConfigError::Missing(format!("{}: {key}: {why}", self.path.display()))
    }

    fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
        &self,
        key: &str,
        text: Option<&String>,
    ) -> Result<Option<T>, ConfigError> {
        text.map(|text| text.parse().map_err(|e| self.bad(key, e)))
            .transpose()
    }

    /// A GUID that is configured; NIL names nothing.
    fn guid(&self, key: &str, text: Option<&String>) -> Result<Option<Guid>, ConfigError> {
        match self.parsed::<Guid>(key, text)? {
            Some(guid) if guid.is_nil() => Err(self.bad(key, "the NIL GUID names nothing")),
            other => Ok(other),
        }
    }

    fn text(&self, key: &str, text: String, max: usize) -> Result<String, ConfigError> {
        if text.len() > max {
            return Err(self.bad(key, format!("'{text}' is longer than {max} bytes")));
        }
        if text.chars().any(char::is_control) {
            return Err(self.bad(key, "control characters are not allowed"));
        }
        Ok(text)
    }

    fn name(&self, key: &str, text: String) -> Result<String, ConfigError> {
        if text.is_empty() {
            return Err(self.bad(key, "a name has 1 to 63 bytes"));
        }
        self.text(key, text, MAX_NAME_BYTES)
    }
}

/// `name` with a suffix that always fits.
fn default_name(unit: &str, suffix: &str) -> String {
    let mut len = unit.len().min(MAX_NAME_BYTES.saturating_sub(suffix.len()));
    while !unit.is_char_boundary(len) {
        len -= 1;
    }
    format!("{}{suffix}", &unit[..len])
}

impl UnitdConfig {
    /// Flags over the file over the defaults.
    pub fn load(flags: &Keys, path: Option<&Path>) -> Result<Self, ConfigError> {
        let default = Path::new(DEFAULT_PATH);
        let file: Keys = config::read(path, default)?;
        Self::merge(flags, file, path.unwrap_or(default))
    }

    fn merge(flags: &Keys, file: Keys, path: &Path) -> Result<Self, ConfigError> {
        let keys = merge!(flags, file: interface, name, vendor, model, serial, cluster, guid,
            fabric_mac, state_dir, run_dir, ethertype_management, ethertype_service, mtu,
            disk_threads);
        Self::from_keys(keys, &Judge { path })
    }

    fn from_keys(keys: Keys, judge: &Judge<'_>) -> Result<Self, ConfigError> {
        let interface =
            config::interfaces(keys.interface).map_err(|why| judge.bad("interface", why))?;
        let name = match keys.name {
            Some(name) => name,
            None => nix::unistd::gethostname()
                .ok()
                .and_then(|n| n.into_string().ok())
                .ok_or_else(|| judge.bad("name", "missing, and the machine has no host name"))?,
        };
        let name = judge.name("name", name)?;
        if let Some(mtu) = keys.mtu
            && !(MIN_MTU..=MAX_MTU).contains(&mtu)
        {
            return Err(judge.bad("mtu", format!("{mtu} is not from {MIN_MTU} to {MAX_MTU}")));
        }
        let (ethertype_management, ethertype_service) = (
            keys.ethertype_management.unwrap_or(ETHERTYPE_MANAGEMENT),
            keys.ethertype_service.unwrap_or(ETHERTYPE_SERVICE),
        );
        if ethertype_management == ethertype_service {
            return Err(judge.bad(
                "ethertype_service",
                "equals ethertype_management; they must differ",
            ));
        }
        let disk_threads = keys.disk_threads.unwrap_or(4);
        if !(1..=MAX_DISK_THREADS).contains(&disk_threads) {
            let why = format!("{disk_threads} is not from 1 to {MAX_DISK_THREADS}");
            return Err(judge.bad("disk_threads", why));
        }
        let label = |key: &str, text: Option<String>, default: &str| {
            let text = text.unwrap_or_else(|| default.to_owned());
            judge.text(key, text, MAX_LABEL_BYTES)
        };
        let config = Self {
            interface,
            cluster: judge
                .parsed("cluster", keys.cluster.as_ref())?
                .unwrap_or(ClusterName::NONE),
            guid: judge.guid("guid", keys.guid.as_ref())?,
            fabric_mac: judge.parsed("fabric_mac", keys.fabric_mac.as_ref())?,
            vendor: label("vendor", keys.vendor, "rma")?,
            model: label("model", keys.model, "rma-unitd")?,
            serial: keys
                .serial
                .map(|s| judge.text("serial", s, MAX_LABEL_BYTES))
                .transpose()?,
            state_dir: keys
                .state_dir
                .unwrap_or_else(|| PathBuf::from("/var/lib/rma")),
            run_dir: keys.run_dir.unwrap_or_else(|| PathBuf::from("/run/rma")),
            ethertype_management,
            ethertype_service,
            mtu: keys.mtu,
            disk_threads,
            controllers: controllers(&name, keys.controller, keys.device, judge)?,
            name,
        };
        config.check_guids(judge)?;
        config.check_paths(judge)?;
        Ok(config)
    }

    /// The keys besides controllers that differ in `other`: they take effect at the next start.
    pub fn fixed_keys_that_differ(&self, other: &Self) -> Vec<String> {
        macro_rules! differing {
            ($($key:ident),+ $(,)?) => {
                [$( (stringify!($key), self.$key != other.$key) ),+]
            };
        }
        differing!(
            interface,
            name,
            vendor,
            model,
            serial,
            cluster,
            guid,
            fabric_mac,
            state_dir,
            run_dir,
            ethertype_management,
            ethertype_service,
            mtu,
            disk_threads,
        )
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(key, _)| key.to_owned())
        .collect()
    }

    /// No file or block device is behind two devices.
    fn check_paths(&self, judge: &Judge<'_>) -> Result<(), ConfigError> {
        let mut seen = BTreeSet::new();
        for c in &self.controllers {
            for d in &c.devices {
                if let Some(path) = &d.path
                    && !seen.insert(path)
                {
                    let key = format!("device {}/{}: path", c.number, d.number);
                    let why = format!("{} is behind another device already", path.display());
                    return Err(judge.bad(&key, why));
                }
            }
        }
        Ok(())
    }

    /// No configured GUID names two things.
    fn check_guids(&self, judge: &Judge<'_>) -> Result<(), ConfigError> {
        let mut seen = BTreeSet::new();
        let devices = self.controllers.iter().flat_map(|c| {
            let ioc = c.number;
            c.devices
                .iter()
                .map(move |d| (format!("device {ioc}/{}: guid", d.number), d.guid))
        });
        let controllers = self
            .controllers
            .iter()
            .map(|c| (format!("controller {}: guid", c.number), c.guid));
        let unit = std::iter::once(("guid".to_owned(), self.guid));
        for (key, guid) in unit.chain(controllers).chain(devices) {
            if let Some(guid) = guid
                && !seen.insert(guid)
            {
                let why = format!("{guid} is used twice; every GUID names one thing");
                return Err(judge.bad(&key, why));
            }
        }
        Ok(())
    }
}

fn controllers(
    unit: &str,
    mut keys: Vec<ControllerKeys>,
    devices: Vec<DeviceFlag>,
    judge: &Judge<'_>,
) -> Result<Vec<ControllerConfig>, ConfigError> {
    for DeviceFlag {
        controller,
        keys: device,
    } in devices
    {
        match keys.iter_mut().find(|c| c.number == controller) {
            Some(c) => c.device.push(device),
            None => keys.push(ControllerKeys {
                number: controller,
                name: None,
                model: None,
                guid: None,
                device: vec![device],
            }),
        }
    }
    keys.sort_by_key(|c| c.number);
    if keys.len() > MAX_CONTROLLERS {
        let why = format!("a unit has at most {MAX_CONTROLLERS}");
        return Err(judge.bad("controller", why));
    }
    for (at, c) in keys.iter().enumerate() {
        if c.number == 0 {
            return Err(judge.bad("controller", "numbers are from 1 to 65535"));
        }
        if at > 0 && keys[at - 1].number == c.number {
            return Err(judge.bad("controller", format!("number {} is used twice", c.number)));
        }
    }
    keys.into_iter()
        .map(|c| controller(unit, c, judge))
        .collect()
}

fn controller(
    unit: &str,
    keys: ControllerKeys,
    judge: &Judge<'_>,
) -> Result<ControllerConfig, ConfigError> {
    let number = IocNumber(keys.number);
    let key = |name: &str| format!("controller {number}: {name}");
    let mut devices = keys.device;
    devices.sort_by_key(|d| d.number);
    if devices.len() > MAX_DEVICES {
        let why = format!("a controller has at most {MAX_DEVICES}");
        return Err(judge.bad(&key("device"), why));
    }
    for (at, d) in devices.iter().enumerate() {
        if d.number == 0 {
            return Err(judge.bad(&key("device"), "numbers are from 1 to 65535"));
        }
        if at > 0 && devices[at - 1].number == d.number {
            let why = format!("number {} is used twice", d.number);
            return Err(judge.bad(&key("device"), why));
        }
    }
    let name = keys
        .name
        .unwrap_or_else(|| default_name(unit, &format!("-{number}")));
    Ok(ControllerConfig {
        number,
        name: judge.name(&key("name"), name)?,
        model: judge.text(
            &key("model"),
            keys.model.unwrap_or_else(|| "rma-ioc".to_owned()),
            MAX_LABEL_BYTES,
        )?,
        guid: judge.guid(&key("guid"), keys.guid.as_ref())?,
        devices: devices
            .into_iter()
            .map(|d| device(unit, number, d, judge))
            .collect::<Result<_, _>>()?,
    })
}

fn device(
    unit: &str,
    ioc: IocNumber,
    keys: DeviceKeys,
    judge: &Judge<'_>,
) -> Result<DeviceConfig, ConfigError> {
    let number = IodNumber(keys.number);
    let key = |name: &str| format!("device {ioc}/{number}: {name}");
    let kind = keys.backend.name();
    let path = match (keys.backend, keys.path) {
        (BackendKind::Memory, Some(_)) => {
            return Err(judge.bad(&key("path"), "a memory backend has none; remove the key"));
        }
        (BackendKind::Memory, None) => None,
        (_, None) => {
            let why = format!("missing; a {kind} backend needs the path of its {kind}");
            return Err(judge.bad(&key("path"), why));
        }
        (_, Some(path)) => {
            let path = std::path::absolute(&path).map_err(|e| judge.bad(&key("path"), e))?;
            Some(path)
        }
    };
    let size_bytes = keys.size.map(|s| s.0);
    if keys.backend == BackendKind::Memory && size_bytes.is_none() {
        return Err(judge.bad(&key("size"), "missing; a memory backend needs one"));
    }
    if let Some(bytes) = keys.block_size
        && !(bytes.is_power_of_two()
            && (crate::backend::MIN_BLOCK_SIZE..=crate::backend::MAX_BLOCK_SIZE).contains(&bytes))
    {
        let why = format!("{bytes} is not a power of two from 512 to 4096");
        return Err(judge.bad(&key("block_size"), why));
    }
    let block = u64::from(keys.block_size.unwrap_or(crate::backend::MIN_BLOCK_SIZE));
    if let Some(bytes) = size_bytes
        && (bytes == 0 || !bytes.is_multiple_of(block))
    {
        let why = format!("{bytes} bytes are not one or more whole blocks of {block}");
        return Err(judge.bad(&key("size"), why));
    }
    let label = |name: &str, text: Option<String>, default: &str| {
        let text = text.unwrap_or_else(|| default.to_owned());
        judge.text(&key(name), text, MAX_LABEL_BYTES)
    };
    let name = keys
        .name
        .unwrap_or_else(|| default_name(unit, &format!("-{ioc}-{number}")));
    Ok(DeviceConfig {
        number,
        name: judge.name(&key("name"), name)?,
        backend: keys.backend,
        path,
        size_bytes,
        block_size: keys.block_size,
        vendor: label("vendor", keys.vendor, "rma")?,
        model: label("model", keys.model, kind)?,
        serial: keys
            .serial
            .map(|s| judge.text(&key("serial"), s, MAX_LABEL_BYTES))
            .transpose()?,
        guid: judge.guid(&key("guid"), keys.guid.as_ref())?,
        read_only: keys.read_only,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
        interface = "eth0"
        name = "unit-112"
        cluster = "A"

        [[controller]]
        number = 2
        guid = "00000000-0000-0000-0000-000000000114"

        [[controller]]
        number = 1
        name = "114A"
        model = "fast"

        [[controller.device]]
        number = 2
        backend = "memory"
        size = "64MiB"
        block_size = 4096

        [[controller.device]]
        number = 1
        name = "116A1"
        backend = "file"
        path = "/srv/116A1"
        size = 1048576
        vendor = "v"
        serial = "s"
        read_only = true
    "#;

    fn load(text: &str, flags: &Keys) -> Result<UnitdConfig, String> {
        let path = Path::new("unitd.toml");
        let file: Keys = config::parse(text, path).map_err(|e| e.to_string())?;
        UnitdConfig::merge(flags, file, path).map_err(|e| e.to_string())
    }

    #[test]
    fn a_whole_file_is_understood_and_sorted() {
        let config = load(WHOLE, &Keys::default()).unwrap();
        assert_eq!(config.cluster.as_str(), "A");
        let [first, second] = &config.controllers[..] else {
            panic!("{:?}", config.controllers);
        };
        assert_eq!((first.number, &*first.name), (IocNumber(1), "114A"));
        assert_eq!(&*second.name, "unit-112-2");
        assert_eq!(second.guid, Some(Guid(0x114)));
        let [file, memory] = &first.devices[..] else {
            panic!("{:?}", first.devices);
        };
        assert_eq!(file.path.as_deref(), Some(Path::new("/srv/116A1")));
        assert_eq!(file.size_bytes, Some(1 << 20));
        assert!(file.read_only && !memory.read_only);
        assert_eq!(memory.size_bytes, Some(64 << 20));
        assert_eq!(&*memory.name, "unit-112-1-2");
        assert_eq!(&*memory.model, "memory");
    }

    #[test]
    fn flags_win_and_add() {
        #[derive(clap::Parser)]
        struct Args {
            #[command(flatten)]
            keys: Keys,
        }
        let args = <Args as clap::Parser>::try_parse_from([
            "rma-unitd",
            "--cluster",
            "B",
            "--ethertype-service",
            "0x88f0",
            "--controller",
            "number = 7, name = \"seven\"",
            "--device",
            "controller = 7, number = 1, backend = \"memory\", size = \"1GiB\"",
            "--device",
            "controller = 8, number = 1, backend = \"memory\", size = \"1KiB\"",
        ])
        .unwrap();
        let config = load(WHOLE, &args.keys).unwrap();
        assert_eq!(config.cluster.as_str(), "B");
        assert_eq!(config.ethertype_service, 0x88f0);
        let numbers: Vec<u16> = config.controllers.iter().map(|c| c.number.0).collect();
        assert_eq!(numbers, [1, 2, 7, 8]);
        assert_eq!(&*config.controllers[2].name, "seven");
        assert_eq!(config.controllers[2].devices[0].size_bytes, Some(1 << 30));
    }

    #[test]
    fn mistakes_are_one_line_that_names_the_key() {
        let with = |device: &str| {
            format!("interface = \"e\"\nname = \"u\"\n[[controller]]\nnumber = 1\n{device}")
        };
        let device = |keys: &str| with(&format!("[[controller.device]]\n{keys}"));
        let memory = "number = 1\nbackend = \"memory\"\n";
        for (text, words) in [
            (String::new(), "interface: missing"),
            ("interfaec = \"e\"".into(), "interfaec"),
            (with("colour = 1"), "colour"),
            (device(&format!("{memory}size = 512\nsise = 1")), "sise"),
            (device("number = 1\nbackend = \"tape\""), "tape"),
            (
                device("number = 1\nbackend = \"file\""),
                "device 1/1: path: missing",
            ),
            (device(memory), "device 1/1: size: missing"),
            (device(&format!("{memory}size = 100")), "device 1/1: size"),
            (device(&format!("{memory}size = \"1GB\"")), "KiB"),
            (
                device(&format!("{memory}size = 512\npath = \"/x\"")),
                "path",
            ),
            (
                device(&format!("{memory}size = 512\nblock_size = 1000")),
                "block_size",
            ),
            (
                device(&format!("{memory}size = 512\nguid = \"1\"")),
                "device 1/1: guid",
            ),
            (
                device(&format!("{memory}size = 512\nname = \"a\\nb\"")),
                "device 1/1: name",
            ),
            (with("[[controller]]\nnumber = 1"), "number 1 is used twice"),
            (with("[[controller]]\nnumber = 0"), "numbers are from 1"),
            (
                device(&format!(
                    "{memory}size = 512\n[[controller.device]]\n{memory}size = 512"
                )),
                "controller 1: device: number 1 is used twice",
            ),
            (
                with(
                    "guid = \"00000000-0000-0000-0000-000000000001\"\n[[controller]]\nnumber = 2\nguid = \"00000000000000000000000000000001\"",
                ),
                "controller 2: guid",
            ),
            (
                device(
                    "number = 1\nbackend = \"file\"\npath = \"/x\"\n[[controller.device]]\nnumber = 2\nbackend = \"file\"\npath = \"/x\"",
                ),
                "device 1/2: path",
            ),
            ("interface = \"e\"\nname = \"u\"\nmtu = 100".into(), "mtu"),
            (
                format!("interface = \"e\"\nname = \"{}\"", "x".repeat(64)),
                "name",
            ),
            (
                "interface = \"e\"\nname = \"u\"\ndisk_threads = 0".into(),
                "disk_threads",
            ),
            (
                "interface = \"e\"\nname = \"u\"\ncluster = \"a b\"".into(),
                "cluster",
            ),
        ] {
            let error = load(&text, &Keys::default()).unwrap_err();
            assert!(
                error.contains(words) && !error.contains('\n') && error.starts_with("unitd.toml"),
                "{words}: {error}"
            );
        }
    }
}
