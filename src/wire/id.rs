//! Identifiers and units of measure, each a type of its own.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// 128-bit global unique identifier: what an entity is, wherever it is (Fig. 3 field 304).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Guid(pub u128);

impl Guid {
    /// No entity.
    pub const NIL: Self = Self(0);
    /// The largest one, which nobody has.
    pub const MAX: Self = Self(u128::MAX);

    /// Whether this is [`Guid::NIL`].
    pub const fn is_nil(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let h = format!("{:032x}", self.0);
        let text = format!(
            "{}-{}-{}-{}-{}",
            &h[..8],
            &h[8..12],
            &h[12..16],
            &h[16..20],
            &h[20..]
        );
        f.pad(&text)
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An identifier's text cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not {expected}")]
pub struct ParseIdError {
    text: String,
    expected: &'static str,
}

fn bad(text: &str, expected: &'static str) -> ParseIdError {
    ParseIdError {
        text: text.escape_default().to_string(),
        expected,
    }
}

impl FromStr for Guid {
    type Err = ParseIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let err = || bad(s, "a GUID (32 hexadecimal digits, with or without dashes)");
        let hex: String = s.chars().filter(|c| *c != '-').collect();
        if hex.len() != 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(err());
        }
        u128::from_str_radix(&hex, 16).map(Self).map_err(|_| err())
    }
}

/// A NIC's MAC address: where an entity is (Fig. 3 field 308).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Every station.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether the address names a group of stations rather than one.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }
}

/// A station, and by which of the own NICs it is reached: one end of a path, as its other end sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hop {
    /// The station's address.
    pub mac: Mac,
    /// The own NIC's number, in the order of the configuration, or [`Self::ANY`].
    pub nic: u8,
}

impl Hop {
    /// Whichever NIC reaches the station.
    pub const ANY: u8 = u8::MAX;

    /// A station by whichever NIC reaches it.
    pub const fn any(mac: Mac) -> Self {
        Self {
            mac,
            nic: Self::ANY,
        }
    }

    /// The same station by whichever NIC reaches it.
    pub const fn by_any(self) -> Self {
        Self::any(self.mac)
    }
}

/// A station by the first NIC.
impl From<Mac> for Hop {
    fn from(mac: Mac) -> Self {
        Self { mac, nic: 0 }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.map(|byte| format!("{byte:02x}")).join(":"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = ParseIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let err = || bad(s, "a MAC address (aa:bb:cc:dd:ee:ff)");
        let mut out = [0; 6];
        let mut parts = s.split(':');
        for byte in &mut out {
            let part = parts.next().ok_or_else(err)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(err());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| err())?;
        }
        if parts.next().is_some() {
            return Err(err());
        }
        Ok(Self(out))
    }
}

macro_rules! number_type {
    ($(#[$meta:meta])* $name:ident($repr:ty)) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub $repr);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number_type! {
    /// An I/O controller's number within its unit (Fig. 4 field 410); 0 is none, the UMS itself.
    IocNumber(u16)
}
number_type! {
    /// An I/O device's number within its controller (Fig. 4 field 410); 0 is none.
    IodNumber(u16)
}
number_type! {
    /// Counts the ownership changes of a row; 0 before the first.
    Epoch(u64)
}
number_type! {
    /// Counts the starts of an entity; durable, so a restart is seen by everyone.
    Incarnation(u64)
}
number_type! {
    /// A connection as its responder numbered it; 0 is none.
    ConnectionId(u64)
}
number_type! {
    /// A command's identity within its session; it survives retries, paths and reconnects.
    CommandId(u64)
}

/// An address range of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Number of bytes, more than 0; `offset + len` does not overflow.
    pub len: u64,
}

impl Extent {
    /// The first byte behind it.
    pub const fn end(self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// Whether the two have a byte in common.
    pub const fn overlaps(self, other: Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.len)
    }
}

/// Where an entity is: `MAC`, `MAC/IOC`, `MAC/IOC/IOD` or `MAC/IOC/IOD@offset+length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// The NIC.
    pub mac: Mac,
    /// The controller, 0 where none.
    pub ioc: IocNumber,
    /// The device, 0 where none.
    pub iod: IodNumber,
    /// The range of the device, where the entity is an extent.
    pub extent: Option<Extent>,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mac, ioc, iod) = (self.mac, self.ioc, self.iod);
        f.pad(&match (ioc.0, iod.0, self.extent) {
            (0, _, _) => mac.to_string(),
            (_, 0, _) => format!("{mac}/{ioc}"),
            (_, _, None) => format!("{mac}/{ioc}/{iod}"),
            (_, _, Some(extent)) => format!("{mac}/{ioc}/{iod}@{extent}"),
        })
    }
}

/// A number in decimal digits only; `parse` alone would also take a sign.
fn digits<T: FromStr>(text: &str) -> Option<T> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())?
}

impl FromStr for Address {
    type Err = ParseIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let err = || {
            bad(
                s,
                "an address (MAC, MAC/IOC, MAC/IOC/IOD or MAC/IOC/IOD@offset+length)",
            )
        };
        let (place, range) = match s.split_once('@') {
            Some((p, r)) => (p, Some(r)),
            None => (s, None),
        };
        let mut parts = place.split('/');
        let mac = parts.next().ok_or_else(err)?.parse()?;
        let mut number = || -> Result<u16, ParseIdError> {
            match parts.next() {
                None => Ok(0),
                Some(n) => match digits(n) {
                    Some(0) | None => Err(err()),
                    Some(n) => Ok(n),
                },
            }
        };
        let ioc = IocNumber(number()?);
        let iod = IodNumber(number()?);
        if parts.next().is_some() {
            return Err(err());
        }
        let extent = match range {
            None => None,
            Some(_) if iod.0 == 0 => return Err(err()),
            Some(r) => {
                let (offset, len) = r.split_once('+').ok_or_else(err)?;
                let offset: u64 = digits(offset).ok_or_else(err)?;
                let len: u64 = digits(len).ok_or_else(err)?;
                if len == 0 || offset.checked_add(len).is_none() {
                    return Err(err());
                }
                Some(Extent { offset, len })
            }
        };
        Ok(Self {
            mac,
            ioc,
            iod,
            extent,
        })
    }
}

/// A cluster's name: 1 to 16 bytes of `A-Z a-z 0-9 . _ -`, or none (Fig. 3 field 310).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ClusterName([u8; 16]);

impl ClusterName {
    /// No cluster: not assigned yet, or fabric services, which belong to none.
    pub const NONE: Self = Self([0; 16]);

    /// Whether this is [`ClusterName::NONE`].
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// The 16 bytes on the wire, padded with zeroes.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// The name from its 16 bytes on the wire; `None` where they are no name.
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        let pad = u128::from_be_bytes(bytes).trailing_zeros() / 8;
        let (name, _) = bytes.split_at(16 - pad as usize);
        let ok = name
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        ok.then_some(Self(bytes))
    }

    /// The name as text, empty for none.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|b| *b == 0).unwrap_or(16);
        std::str::from_utf8(&self.0[..len]).unwrap_or("")
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(if self.is_none() { "-" } else { self.as_str() })
    }
}

impl fmt::Debug for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ClusterName {
    type Err = ParseIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let err = || bad(s, "a cluster name (1 to 16 of A-Z a-z 0-9 . _ -)");
        if s.is_empty() || s.len() > 16 {
            return Err(err());
        }
        let mut bytes = [0; 16];
        bytes[..s.len()].copy_from_slice(s.as_bytes());
        Self::from_bytes(bytes)
            .filter(|c| c.as_str() == s)
            .ok_or_else(err)
    }
}

/// A moment on the monotonic clock that the shell passes in (CLOCK_BOOTTIME in the daemons, the
/// virtual clock in the simulator). The core never reads a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Time(u64);

impl Time {
    /// The clock's origin.
    pub const ZERO: Self = Self(0);

    /// From nanoseconds since the clock's origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero where it is in the future.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Time {
    type Output = Self;

    fn add(self, d: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_survive_their_text() {
        let guid = Guid(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
        assert_eq!(guid.to_string(), "01234567-89ab-cdef-0011-223344556677");
        assert_eq!(guid.to_string().parse(), Ok(guid));
        for text in [
            "02:00:00:00:00:01",
            "02:00:00:00:00:01/2",
            "02:00:00:00:00:01/2/3",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        let text = "02:00:00:00:00:01/2/3@4096+8192";
        assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
    }

    #[test]
    fn bad_text_is_refused() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01/0",
            "02:00:00:00:00:01/1/2/3",
            "02:00:00:00:00:01@0+1",
            "02:00:00:00:00:01/1/1@0+0",
            "02:00:00:00:00:01/1/1@18446744073709551615+1",
            "+2:00:00:00:00:01",
            "02:00:00:00:00:01/+1",
            "02:00:00:00:00:01/1/1@0++1",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        for text in ["", "seventeen-letters", "a b", "a\0"] {
            assert!(text.parse::<ClusterName>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_cluster_name_ends_with_its_first_zero() {
        let read = |text: &str| {
            let mut bytes = [0; 16];
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            ClusterName::from_bytes(bytes)
        };
        for text in ["", "A", "a.B_c-9", "fifteen-letters", "sixteen-letters-"] {
            assert_eq!(read(text).unwrap().as_str(), text);
        }
        for text in ["\0A", "A\0B", "a b", "sixteen-letters\u{7f}", "\u{e9}"] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }
}
