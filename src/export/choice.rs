//! The ways in which an owned device can be exported, and which of them an administrator wants.

use serde::Deserialize;

/// What the configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// The first that works: ublk, nbd, nbd-socket.
    #[default]
    Auto,
    /// A block device, served by way of the kernel's ublk driver.
    Ublk,
    /// A block device of the kernel's nbd driver.
    Nbd,
    /// An NBD server on a UNIX socket.
    NbdSocket,
}

/// A way of export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// The kernel's ublk driver.
    Ublk,
    /// The kernel's nbd driver.
    Nbd,
    /// A UNIX socket.
    NbdSocket,
}

impl Way {
    /// As the configuration and `rma exports` write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ublk => "ublk",
            Self::Nbd => "nbd",
            Self::NbdSocket => "nbd-socket",
        }
    }
}

impl Choice {
    /// What is tried, in this order.
    pub const fn ways(self) -> &'static [Way] {
        match self {
            Self::Auto => &[Way::Ublk, Way::Nbd, Way::NbdSocket],
            Self::Ublk => &[Way::Ublk],
            Self::Nbd => &[Way::Nbd],
            Self::NbdSocket => &[Way::NbdSocket],
        }
    }

    /// Why it was this way, where the ones before it did not do for the reasons given.
    pub fn reason(self, way: Way, refused: &[String]) -> String {
        match self {
            Self::Auto if refused.is_empty() => "the best there is".to_owned(),
            Self::Auto => refused.join("; "),
            _ => format!("export = \"{}\"", way.name()),
        }
    }
}
