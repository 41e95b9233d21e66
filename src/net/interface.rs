//! Which Ethernet interfaces the machine has, as `pnet` lists them.

use super::{NetError, raw};
use crate::wire::Mac;
use pnet::datalink::{self, NetworkInterface};

/// MTU that is assumed of an interface that vanished while it was looked at.
const FALLBACK_MTU: u16 = 1500;

/// An Ethernet interface at the moment it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name, such as `eth0`; what configuration names and what survives removal and return.
    pub name: String,
    /// The kernel's number; a returning interface has another.
    pub index: u32,
    /// Its station address.
    pub mac: Mac,
    /// Octets behind the Ethernet header that a frame may have.
    pub mtu: u16,
    /// Whether an administrator has brought it up.
    pub up: bool,
    /// Whether it has a carrier: a cable that is plugged in, a peer that is up.
    pub carrier: bool,
}

impl Interface {
    /// The Ethernet interface of this name.
    ///
    /// # Errors
    /// [`NetError::NoInterface`] and [`NetError::NotEthernet`].
    pub fn by_name(name: &str) -> Result<Self, NetError> {
        let found = datalink::interfaces().into_iter().find(|i| i.name == name);
        let found = found.ok_or_else(|| NetError::NoInterface { name: name.into() })?;
        Self::from_pnet(&found).ok_or_else(|| NetError::NotEthernet { name: name.into() })
    }

    /// The interfaces with these names, in their order.
    ///
    /// # Errors
    /// As [`Interface::by_name`], of the first that is not to be had.
    pub fn by_names<'a>(
        names: impl IntoIterator<Item = &'a String>,
    ) -> Result<Vec<Self>, NetError> {
        names.into_iter().map(|name| Self::by_name(name)).collect()
    }

    /// `None` where the interface is a loopback, a tunnel, or has no station address.
    fn from_pnet(interface: &NetworkInterface) -> Option<Self> {
        let mac = Mac(interface.mac?.octets());
        if mac == Mac::default() || interface.is_loopback() || interface.is_point_to_point() {
            return None;
        }
        Some(Self {
            mtu: raw::mtu(&interface.name).unwrap_or(FALLBACK_MTU),
            index: interface.index,
            up: interface.is_up(),
            carrier: interface.is_running(),
            name: interface.name.clone(),
            mac,
        })
    }
}

/// Every Ethernet interface of the calling thread's network namespace, by index.
pub fn interfaces() -> Vec<Interface> {
    let mut all: Vec<_> = datalink::interfaces()
        .iter()
        .filter_map(Interface::from_pnet)
        .collect();
    all.sort_by_key(|i| i.index);
    all
}
