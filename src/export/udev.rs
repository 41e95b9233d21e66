//! udev rule text from owned devices: a pure function.
//!
//! A kernel device is matched by its kernel name, which is chosen before the device is created, so
//! that its rules are there first. Each gets the links below (its partitions too, with `-partN`
//! behind them), `ID_*` properties, the configured owner, group and mode, and systemd's tag. An
//! export that is no kernel device gets a comment that says where it is.
//!
//! | link under `/dev` | what it follows |
//! |---|---|
//! | `disk/by-id/rma-GUID`, `rma/by-guid/GUID` | the device, wherever it moves |
//! | `rma/by-path/MAC/IOC/IOD` | the place, one link for each NIC of the unit |
//! | `rma/by-name/NAME` | the name, while no other device here has it |
//!
//! Texts that the wire brought may hold anything. In rules they appear encoded the way udev
//! itself encodes labels, `\x20` for a space: no byte of them can end a string, begin a
//! substitution or a pattern, continue a line, or climb out of a directory.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use crate::wire::{Address, Guid};

/// The file's name in a rules directory.
pub const RULES_FILE_NAME: &str = "60-rma-devices.rules";

/// What the operating system sees of an owned device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A kernel block device of this name, `ublkb3` for instance.
    Kernel(KernelName),
    /// An NBD server on this UNIX socket; udev has nothing to do.
    Socket(PathBuf),
}

/// A kernel block device's name: 1 to 31 of `A-Z a-z 0-9 _ -`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelName(String);

impl KernelName {
    /// The name; `None` where it is none.
    pub fn new(name: &str) -> Option<Self> {
        let ok = (1..=31).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        ok.then(|| Self(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An owned device. The texts may hold any characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedDevice {
    /// What it is.
    pub guid: Guid,
    /// Where it is, one address for each NIC of its unit.
    pub addresses: Vec<Address>,
    /// Its name.
    pub name: String,
    /// Its vendor.
    pub vendor: String,
    /// Its model.
    pub model: String,
    /// Its serial number.
    pub serial: String,
    /// Its unit's name.
    pub unit: String,
    /// Its controller's name.
    pub controller: String,
    /// Whether other hosts own it too.
    pub shared: bool,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// What the operating system sees of it.
    pub node: Node,
}

/// A user's or group's name as rules may hold it: 1 to 32 of `A-Z a-z 0-9 _ . -`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountName(String);

impl AccountName {
    /// The name; `None` where it is none.
    pub fn new(name: &str) -> Option<Self> {
        let ok = (1..=32).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        ok.then(|| Self(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Who may open the device nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Owning user; `None` leaves it to the other rules.
    pub owner: Option<AccountName>,
    /// Owning group; `None` leaves it to the other rules.
    pub group: Option<AccountName>,
    /// Permission bits, 0 to 0o777; `None` leaves them to the other rules.
    pub mode: Option<u16>,
}

/// The text of the rules file for `devices`, in whatever order they come.
pub fn rules(devices: &[OwnedDevice], access: &Access) -> String {
    let mut sorted: Vec<&OwnedDevice> = devices.iter().collect();
    sorted.sort_by_key(|device| device.guid);
    let mut text = String::from(
        "# Devices that this host owns. Written by rmad, which replaces the file when they change.\n",
    );
    let mut named: BTreeMap<String, usize> = BTreeMap::new();
    let mut matched = false;
    for device in &sorted {
        if let Node::Kernel(_) = device.node {
            *named.entry(name_component(&device.name)).or_default() += 1;
            matched = true;
        }
    }
    if matched {
        line(&mut text, "");
        line(&mut text, r#"SUBSYSTEM!="block", GOTO="rma_end""#);
        line(&mut text, r#"ACTION=="remove", GOTO="rma_end""#);
        // Between its making and its connection, and after that, a device has a node and no size.
        line(
            &mut text,
            r#"ENV{DEVTYPE}=="disk", ATTR{size}=="0", ENV{SYSTEMD_READY}="0", GOTO="rma_end""#,
        );
    }
    for device in &sorted {
        line(&mut text, "");
        line(&mut text, &headline(device));
        match &device.node {
            Node::Kernel(kernel) => {
                let name = name_component(&device.name);
                let link = match named.get(&name) {
                    _ if name.is_empty() => Err("it has no name"),
                    _ if name.len() > MAX_COMPONENT_BYTES => Err("its name is too long"),
                    Some(1) => Ok(name),
                    _ => Err("other devices here have the same name"),
                };
                kernel_rules(&mut text, device, kernel, link, access);
            }
            Node::Socket(path) => {
                let path = shown(&path.to_string_lossy());
                line(&mut text, &format!("# No kernel device: NBD on {path}"));
            }
        }
    }
    if matched {
        line(&mut text, "");
        line(&mut text, r#"LABEL="rma_end""#);
    }
    text
}

/// A link's last component may have this many bytes, so that `-partN` still fits a file name.
const MAX_COMPONENT_BYTES: usize = 240;

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// The comment that tells people which device the rules below are about.
fn headline(device: &OwnedDevice) -> String {
    let mut words = vec![device.guid.to_string(), shown(&device.name)];
    words.extend(device.addresses.first().map(ToString::to_string));
    for (what, name) in [("unit", &device.unit), ("controller", &device.controller)] {
        if !name.is_empty() {
            words.push(format!("{what} {}", shown(name)));
        }
    }
    words.push(ownership(device).to_owned());
    if device.read_only {
        words.push("read-only".to_owned());
    }
    words.retain(|word| !word.is_empty());
    format!("# {}", words.join(", "))
}

fn ownership(device: &OwnedDevice) -> &'static str {
    if device.shared { "shared" } else { "dedicated" }
}

/// What is read from a disk itself, and the links that come of it.
const STORAGE_RULES: [&str; 5] = [
    r#"OPTIONS+="watch""#,
    r#"IMPORT{builtin}="blkid""#,
    r#"ENV{ID_FS_USAGE}=="filesystem|other|crypto", ENV{ID_FS_UUID_ENC}=="?*", SYMLINK+="disk/by-uuid/$env{ID_FS_UUID_ENC}""#,
    r#"ENV{ID_FS_USAGE}=="filesystem|other", ENV{ID_FS_LABEL_ENC}=="?*", SYMLINK+="disk/by-label/$env{ID_FS_LABEL_ENC}""#,
    r#"ENV{ID_PART_ENTRY_UUID}=="?*", SYMLINK+="disk/by-partuuid/$env{ID_PART_ENTRY_UUID}""#,
];

fn kernel_rules(
    text: &mut String,
    device: &OwnedDevice,
    kernel: &KernelName,
    name_link: Result<String, &str>,
    access: &Access,
) {
    let (kernel, guid) = (kernel.as_str(), device.guid);
    // The kernel puts a `p` between a name that ends in a digit and the partition's number.
    let p = if kernel.ends_with(|c: char| c.is_ascii_digit()) {
        "p"
    } else {
        ""
    };
    let label = format!("rma_{kernel}_end");
    line(
        text,
        &format!(r#"KERNEL!="{kernel}|{kernel}{p}[0-9]*", GOTO="{label}""#),
    );
    for (key, value) in properties(device) {
        if !value.is_empty() {
            line(text, &format!(r#"ENV{{{key}}}="{value}""#));
        }
    }
    line(
        text,
        r#"ENV{DEVTYPE}=="partition", ENV{.RMA_PART}="-part%n""#,
    );
    let mut links = vec![
        format!("disk/by-id/rma-{guid}"),
        format!("rma/by-guid/{guid}"),
    ];
    links.extend(device.addresses.iter().map(|a| format!("rma/by-path/{a}")));
    match name_link {
        Ok(name) => links.push(format!("rma/by-name/{name}")),
        Err(why) => line(text, &format!("# No link by name: {why}")),
    }
    // One for each line: udev drops a value of more than 1 KiB.
    for link in links {
        line(text, &format!(r#"SYMLINK+="{link}$env{{.RMA_PART}}""#));
    }
    if kernel.starts_with("ublk") {
        // What udev itself does for disks that it knows by their kernel names.
        for rule in STORAGE_RULES {
            line(text, rule);
        }
    }
    for rule in access_rules(access) {
        line(text, &rule);
    }
    line(text, r#"TAG+="systemd""#);
    line(text, &format!(r#"LABEL="{label}""#));
}

/// The properties of a device in the order in which they are written; empty ones are left out.
fn properties(device: &OwnedDevice) -> [(&'static str, String); 14] {
    let guid = device.guid.to_string();
    let serial = match plain(&device.serial) {
        serial if serial.is_empty() => guid.clone(),
        serial => serial,
    };
    let address = device.addresses.first().map(ToString::to_string);
    [
        ("ID_BUS", "rma".to_owned()),
        ("ID_VENDOR", plain(&device.vendor)),
        ("ID_VENDOR_ENC", encoded(&device.vendor)),
        ("ID_MODEL", plain(&device.model)),
        ("ID_MODEL_ENC", encoded(&device.model)),
        // Two devices with one ID_SERIAL pass for two paths of one disk: it is what cannot be equal.
        ("ID_SERIAL", format!("rma-{guid}")),
        ("ID_SERIAL_SHORT", serial),
        ("ID_RMA_GUID", guid),
        ("ID_RMA_ADDRESS", address.unwrap_or_default()),
        ("ID_RMA_NAME_ENC", encoded(&device.name)),
        ("ID_RMA_UNIT_ENC", encoded(&device.unit)),
        ("ID_RMA_CONTROLLER_ENC", encoded(&device.controller)),
        ("ID_RMA_OWNERSHIP", ownership(device).to_owned()),
        ("ID_RMA_READ_ONLY", u8::from(device.read_only).to_string()),
    ]
}

fn access_rules(access: &Access) -> Vec<String> {
    let mut rules = Vec::new();
    if let Some(owner) = &access.owner {
        rules.push(format!(r#"OWNER="{}""#, owner.as_str()));
    }
    if let Some(group) = &access.group {
        rules.push(format!(r#"GROUP="{}""#, group.as_str()));
    }
    if let Some(mode) = access.mode {
        rules.push(format!(r#"MODE="{:04o}""#, mode & 0o777));
    }
    rules
}

/// What udev leaves as it is in names, and every letter and digit of any script. Other characters
/// of Unicode are not: among them are those that cannot be seen or that turn the text round.
fn is_plain(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '#' | '+' | '-' | '.' | ':' | '=' | '@' | '_')
}

fn push_encoded(out: &mut String, c: char) {
    for byte in c.encode_utf8(&mut [0; 4]).bytes() {
        let _ = write!(out, r"\x{byte:02x}");
    }
}

/// Text as udev writes `ID_*_ENC`: what is not plain becomes `\x` and two digits for each byte.
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if is_plain(c) {
            out.push(c);
        } else {
            push_encoded(&mut out, c);
        }
    }
    out
}

/// Text as udev writes `ID_*`: trimmed, and `_` for what is not plain.
fn plain(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let underscore = |c: char| if is_plain(c) { c } else { '_' };
    words.join("_").chars().map(underscore).collect()
}

/// Text for a comment: as [`encoded`], with spaces and slashes as they are.
fn shown(text: &str) -> String {
    let mut out = String::new();
    for c in text.trim().chars() {
        if is_plain(c) || matches!(c, ' ' | '/') {
            out.push(c);
        } else {
            push_encoded(&mut out, c);
        }
    }
    out
}

/// A name as the last component of a link: [`encoded`], neither hidden nor `.` or `..`, and not
/// to be taken for a partition of another device's link.
fn name_component(name: &str) -> String {
    let mut out = encoded(name);
    if out.starts_with('.') {
        out.replace_range(..1, r"\x2e");
    }
    let stem = out.trim_end_matches(|c: char| c.is_ascii_digit());
    if stem.len() < out.len() && stem.ends_with("-part") {
        let at = stem.len() - "-part".len();
        out.replace_range(at..=at, r"\x2d");
    }
    out
}
