//! Frame and message layouts: bytes in, typed values out, and back. No I/O, no clock, no policy.
//!
//! `docs/protocol.md` is the byte-level specification. Every code table (frame kinds, statuses,
//! drop reasons …) is declared once in [`table`] form; numbers, names, `Display` and the
//! dissector's text all come from that declaration.

#[macro_use]
mod table;
pub mod body;
pub mod codec;
pub mod header;
pub mod id;
pub mod kind;
pub mod message;
pub mod outgoing;
pub mod row;
pub mod sum;
pub mod tail;

pub use body::Body;
pub use codec::{DecodeError, Reader, Wire, Writer};
pub use header::{
    DropReason, Flags, HEADER_LEN, Header, MAX_MESSAGE_BYTES, MIN_MTU, Packet, VERSION,
};
pub use id::{
    Address, ClusterName, CommandId, ConnectionId, Epoch, Extent, Guid, Hop, Incarnation,
    IocNumber, IodNumber, Mac, Time,
};
pub use kind::{EntityType, Kind, Status};
pub use outgoing::{MAX_SHARED_PACKETS, Outgoing, Shared};
pub use row::{
    Granularity, ObservationStamp, Ownership, OwnershipStamp, Row, RowState, Settings, TableStamp,
};
pub use tail::{Kept, Lender, Part, Tail};

/// Default EtherType of management traffic (fabric services, RMA to RMA, UMS): IEEE 802 local
/// experimental 1.
pub const ETHERTYPE_MANAGEMENT: u16 = 0x88b5;
/// Default EtherType of service traffic (I/O controllers): IEEE 802 local experimental 2.
pub const ETHERTYPE_SERVICE: u16 = 0x88b6;
/// Multicast address on which fabric services are searched for.
pub const FABRIC_MULTICAST: Mac = Mac([0x03, 0x72, 0x6d, 0x61, 0x00, 0x01]);
