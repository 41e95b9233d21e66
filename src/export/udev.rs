//! udev rule text from owned devices: a pure function.

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
    let _ = (devices, access);
    todo!()
}
