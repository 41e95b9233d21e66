//! Interfaces and AF_PACKET sockets: whole frames in and out, in batches, counted. Knows no
//! protocol, and depends on [`crate::wire`] for the MAC address alone.
//!
//! A daemon opens one [`PacketSocket`] for each interface and EtherType, waits on all of them (they
//! are non-blocking and give their descriptor through `AsFd`), drains what has arrived into an
//! [`Inbox`] and sends what it has collected in an [`Outbox`]. A [`LinkWatch`] tells it when any
//! interface changed; it then calls [`PacketSocket::refresh`] on each socket, which follows its
//! interface by name through down, up, removal and return.
//!
//! The link gives no promise: a frame that the interface cannot take is dropped and counted, as it
//! would be by a switch further on. The layers above retransmit.

mod batch;
mod interface;
mod nics;
pub mod raw;
mod ring;
mod socket;
mod watch;

pub use batch::{Frame, Inbox, OUTBOX_FRAMES, Outbox};
pub use interface::{Interface, interfaces};
pub use nics::{LinkChange, Nics};
pub use socket::{Counters, LinkState, PacketSocket};
pub use watch::LinkWatch;

use std::io;

/// Octets of an Ethernet header: destination, source, EtherType.
pub const ETHERNET_HEADER_LEN: usize = 14;
/// The most frames that one system call receives or sends.
pub const BATCH_FRAMES: usize = 64;

/// Why an interface or a socket on it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// No interface has this name.
    #[error("no interface named {name:?}; `ip link` lists those there are")]
    NoInterface {
        /// The name that was asked for.
        name: String,
    },
    /// The interface has no Ethernet address, so no frame can be sent on it.
    #[error("interface {name} is not an Ethernet interface")]
    NotEthernet {
        /// Its name.
        name: String,
    },
    /// The process may not open packet sockets.
    #[error("may not open a packet socket on {name}: run as root or with CAP_NET_RAW")]
    Permission {
        /// The interface's name.
        name: String,
    },
    /// The kernel refused an operation.
    #[error("cannot {action} on {name}")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// The interface's name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}
