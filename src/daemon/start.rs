//! What every daemon settles when it starts.

use std::io;

use crate::net::Interface;

/// The largest MTU that is taken from an interface by itself.
pub(super) const MAX_DEFAULT_MTU: u16 = 9000;

/// A configured MTU that an interface does not have.
#[derive(Debug, thiserror::Error)]
#[error("mtu {asked} is over the MTU {has} of {interface}; lower it or raise the interface's")]
pub struct MtuError {
    /// The configured one, bytes.
    pub asked: u16,
    /// The interface with the smallest.
    pub interface: String,
    /// What that has, bytes.
    pub has: u16,
}

/// The MTU to use: the configured one, or the smallest of the interfaces' (there is one at least).
pub(super) fn settle_mtu(asked: Option<u16>, interfaces: &[Interface]) -> Result<u16, MtuError> {
    let smallest = interfaces.iter().min_by_key(|interface| interface.mtu);
    let has = smallest.map_or(MAX_DEFAULT_MTU, |interface| interface.mtu);
    match asked {
        None => Ok(has.min(MAX_DEFAULT_MTU)),
        Some(asked) if asked > has => Err(MtuError {
            asked,
            interface: smallest.map_or_else(String::new, |interface| interface.name.clone()),
            has,
        }),
        Some(asked) => Ok(asked),
    }
}

/// A seed that nobody can guess.
pub(super) fn random_seed() -> io::Result<u64> {
    let mut bytes = [0; 8];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}
