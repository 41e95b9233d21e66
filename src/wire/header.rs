//! The fixed header of every frame, big-endian, 88 bytes, directly behind the Ethernet header.

use std::mem::offset_of;

use zerocopy::byteorder::network_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::id::{ClusterName, CommandId, ConnectionId, Epoch, IocNumber, IodNumber};
use super::kind::{Kind, Status};
use super::sum::{BLOCK_BYTES, sum, sum_on, sum_with_block};
use super::tail::{Kept, Part, Tail};

/// The protocol version this code speaks.
pub const VERSION: u8 = 1;
/// Bytes of the header.
pub const HEADER_LEN: usize = size_of::<RawHeader>();
/// The most bytes that one message may have: 1 MiB of data and its request fields.
pub const MAX_MESSAGE_BYTES: usize = (1 << 20) + 4096;
/// The smallest MTU (bytes of a frame behind its Ethernet header) that a peer may announce.
pub const MIN_MTU: u16 = 512;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    version: u8,
    kind: u8,
    flags: U16,
    payload_len: U16,
    ioc: U16,
    iod: U16,
    status: U16,
    outstanding: U16,
    credits: U16,
    checksum: U32,
    segment_offset: U32,
    message_len: U32,
    reserved: U32,
    connection: U64,
    command: U64,
    epoch: U64,
    cluster: [u8; 16],
    tag: [u8; 16],
}

const _: () = {
    assert!(size_of::<RawHeader>() == 88);
    assert!(offset_of!(RawHeader, flags) == 2);
    assert!(offset_of!(RawHeader, payload_len) == 4);
    assert!(offset_of!(RawHeader, ioc) == 6);
    assert!(offset_of!(RawHeader, iod) == 8);
    assert!(offset_of!(RawHeader, status) == 10);
    assert!(offset_of!(RawHeader, outstanding) == 12);
    assert!(offset_of!(RawHeader, credits) == 14);
    assert!(offset_of!(RawHeader, checksum) == 16);
    assert!(offset_of!(RawHeader, segment_offset) == 20);
    assert!(offset_of!(RawHeader, message_len) == 24);
    assert!(offset_of!(RawHeader, reserved) == 28);
    assert!(offset_of!(RawHeader, connection) == 32);
    assert!(offset_of!(RawHeader, command) == 40);
    assert!(offset_of!(RawHeader, epoch) == 48);
    assert!(offset_of!(RawHeader, cluster) == 56);
    assert!(offset_of!(RawHeader, tag) == 72);
};

const CHECKSUM_AT: usize = 16;

/// Flags of a frame; the other bits are reserved and zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u16);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// The frame is (a segment of) a reply.
    pub const REPLY: Self = Self(1);
    /// The data is durable before the write is answered (I4).
    pub const FUA: Self = Self(2);
    /// The frame was sent before.
    pub const RETRY: Self = Self(4);
    /// Every assigned bit with its name, for [`std::fmt::Display`] and the dissector.
    pub const NAMES: &'static [(Self, &'static str)] = &[
        (Self::REPLY, "reply"),
        (Self::FUA, "fua"),
        (Self::RETRY, "retry"),
    ];

    /// The bits on the wire.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These bits and those of `other`.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn from_bits(bits: u16) -> Option<Self> {
        if bits & !7 == 0 {
            Some(Self(bits))
        } else {
            None
        }
    }
}

impl std::fmt::Display for Flags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = Self::NAMES
            .iter()
            .filter(|(flag, _)| self.contains(*flag))
            .map(|(_, name)| *name)
            .collect();
        f.pad(&names.join("+"))
    }
}

code_table! {
    /// Why a frame was dropped; each has a counter.
    pub enum DropReason: u8 {
        /// Shorter than a header, or than its own payload length.
        Truncated = 1 => "truncated",
        /// Another protocol version.
        Version = 2 => "version",
        /// A kind that is not assigned, or not for this EtherType.
        UnknownKind = 3 => "unknown kind",
        /// A reserved bit or field is not zero, or a code is not assigned.
        Reserved = 4 => "reserved bits",
        /// The checksum is wrong.
        Checksum = 5 => "checksum",
        /// Segment offset and lengths contradict each other or exceed the limits.
        Lengths = 6 => "lengths",
        /// Another cluster.
        Cluster = 7 => "another cluster",
        /// No such connection, or one that has been replaced.
        Connection = 8 => "unknown connection",
        /// A command below the duplicate window: a late frame of a finished command.
        OldCommand = 9 => "old command",
        /// A command beyond the credits granted.
        BeyondCredits = 10 => "beyond credits",
        /// A segment that contradicts earlier ones of its message.
        Inconsistent = 11 => "inconsistent segment",
        /// The body does not parse.
        Body = 12 => "bad body",
        /// Not awaited: a reply to nothing, a frame for another role.
        Unexpected = 13 => "unexpected",
        /// A table of the receiver is full.
        Full = 14 => "table full",
        /// The sender's address is a group address or our own.
        Source = 15 => "bad source",
    }
}

/// A frame's header with valid values only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// Its flags.
    pub flags: Flags,
    /// The controller addressed (or, in a reply, that answers); 0 for the UMS, RMAs and fabric
    /// services.
    pub ioc: IocNumber,
    /// The device addressed; 0 where none.
    pub iod: IodNumber,
    /// How the request ended; [`Status::Ok`] in requests.
    pub status: Status,
    /// From the initiator: how many commands below this one may still lack their answer, i.e.
    /// every command below `command - outstanding` is finished and may be forgotten.
    pub outstanding: u16,
    /// From the responder: how many commands the initiator may have outstanding; 0 in requests.
    pub credits: u16,
    /// Where this frame's payload lies in its message, bytes.
    pub segment_offset: u32,
    /// Length of the whole message, bytes.
    pub message_len: u32,
    /// The connection, 0 before there is one.
    pub connection: ConnectionId,
    /// The command's identity.
    pub command: CommandId,
    /// Ownership epoch under which the sender acts (I/O commands), otherwise 0.
    pub epoch: Epoch,
    /// The sender's cluster.
    pub cluster: ClusterName,
}

/// A packet of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: &'a [u8],
    /// Of a write the checksum of the last [`BLOCK_BYTES`] of the payload, where there are as many.
    pub last_block: Option<u32>,
    /// What is behind it where that is another packet, not padding: nothing on the management EtherType.
    pub behind: Option<&'a [u8]>,
}

impl Header {
    /// A header of `kind` with everything else zero, none or ok.
    pub const fn new(kind: Kind) -> Self {
        Self {
            kind,
            flags: Flags::NONE,
            ioc: IocNumber(0),
            iod: IodNumber(0),
            status: Status::Ok,
            outstanding: 0,
            credits: 0,
            segment_offset: 0,
            message_len: 0,
            connection: ConnectionId(0),
            command: CommandId(0),
            epoch: Epoch(0),
            cluster: ClusterName::NONE,
        }
    }

    /// Whether the frame is (a segment of) a reply.
    pub const fn is_reply(&self) -> bool {
        self.flags.contains(Flags::REPLY)
    }

    /// Appends header and payload to `out`. `message_len` and `segment_offset` must be set.
    ///
    /// # Panics
    /// When the payload is over 65,535 bytes or leaves the message: a programmer's mistake.
    pub fn emit(&self, payload: &[u8], out: &mut Vec<u8>) {
        self.emit_head(payload, &[], None, out);
    }

    /// Appends the segment from `start` to `end` of `message` to `out`; or only its header, where the payload
    /// is better sent from where it is: then `tail` becomes that.
    ///
    /// # Panics
    /// As [`Self::emit`].
    pub fn emit_segment(
        &self,
        message: &Kept,
        (start, end): (u32, u32),
        out: &mut Vec<u8>,
        tail: &mut Option<Tail>,
    ) {
        self.emit_part(message.part(start as usize, end as usize), out, tail);
    }

    /// The same with what `part` is of the message.
    ///
    /// # Panics
    /// As [`Self::emit`].
    pub fn emit_part(&self, part: Part<'_>, out: &mut Vec<u8>, tail: &mut Option<Tail>) {
        self.emit_head(part.copied, part.rest, part.tail.as_ref(), out);
        if part.tail.is_none() {
            out.extend_from_slice(part.rest);
        }
        *tail = part.tail;
    }

    /// Appends the header and what of the payload is `copied`, not the `rest`. Where there is a `tail`, that is it.
    fn emit_head(&self, copied: &[u8], rest: &[u8], tail: Option<&Tail>, out: &mut Vec<u8>) {
        let len = copied.len() + rest.len();
        let payload_len = u16::try_from(len).expect("payload fits a frame");
        assert!(self.segment_offset as usize + len <= self.message_len as usize);
        let raw = RawHeader {
            version: VERSION,
            kind: self.kind.code(),
            flags: self.flags.bits().into(),
            payload_len: payload_len.into(),
            ioc: self.ioc.0.into(),
            iod: self.iod.0.into(),
            status: self.status.code().into(),
            outstanding: self.outstanding.into(),
            credits: self.credits.into(),
            checksum: 0.into(),
            segment_offset: self.segment_offset.into(),
            message_len: self.message_len.into(),
            reserved: 0.into(),
            connection: self.connection.0.into(),
            command: self.command.0.into(),
            epoch: self.epoch.0.into(),
            cluster: self.cluster.to_bytes(),
            tag: [0; 16],
        };
        let start = out.len();
        out.extend_from_slice(raw.as_bytes());
        out.extend_from_slice(copied);
        let front = sum(&out[start..]);
        let sum = match tail {
            Some(tail) => tail.sum_on(front),
            None => sum_on(front, rest),
        };
        out[start + CHECKSUM_AT..start + CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
    }

    /// A one-frame message: sets the lengths and emits.
    pub fn emit_whole(mut self, payload: &[u8], out: &mut Vec<u8>) {
        self.segment_offset = 0;
        self.message_len = payload.len() as u32;
        self.emit(payload, out);
    }

    /// Reads the first packet of a frame (without its Ethernet header) and gives its header and payload; what
    /// is behind that is ignored. `service` says on which EtherType it came.
    pub fn parse(frame: &[u8], service: bool) -> Result<(Self, &[u8]), DropReason> {
        let packet = Self::parse_first(frame, service)?;
        Ok((packet.header, packet.payload))
    }

    /// The packets of a frame (without its Ethernet header), one after the other. Behind one that cannot be read
    /// nothing is: its length may be wrong.
    pub fn packets(
        frame: &[u8],
        service: bool,
    ) -> impl Iterator<Item = Result<Packet<'_>, DropReason>> {
        let mut next = Some(frame);
        std::iter::from_fn(move || {
            let packet = Self::parse_first(next.take()?, service);
            next = packet.ok().and_then(|packet| packet.behind);
            Some(packet)
        })
    }

    /// Reads the first packet of a frame (without its Ethernet header).
    pub fn parse_first(frame: &[u8], service: bool) -> Result<Packet<'_>, DropReason> {
        let (raw, rest) = RawHeader::ref_from_prefix(frame).map_err(|_| DropReason::Truncated)?;
        if raw.version != VERSION {
            return Err(DropReason::Version);
        }
        let (payload, behind) = rest
            .split_at_checked(raw.payload_len.get() as usize)
            .ok_or(DropReason::Truncated)?;
        let (front, block) = match payload.len().checked_sub(BLOCK_BYTES) {
            Some(front) if raw.kind == Kind::Write.code() => payload.split_at(front),
            _ => (payload, &[][..]),
        };
        let front = checksum(frame, front);
        let last_block = (!block.is_empty()).then(|| sum(block));
        if last_block.map_or(front, |block| sum_with_block(front, block)) != raw.checksum.get() {
            return Err(DropReason::Checksum);
        }
        let kind = Kind::from_code(raw.kind)
            .filter(|k| k.is_service().is_none_or(|s| s == service))
            .ok_or(DropReason::UnknownKind)?;
        let flags = Flags::from_bits(raw.flags.get()).ok_or(DropReason::Reserved)?;
        let status = Status::from_code(raw.status.get()).ok_or(DropReason::Reserved)?;
        let cluster = ClusterName::from_bytes(raw.cluster).ok_or(DropReason::Reserved)?;
        if raw.reserved.get() != 0 || raw.tag != [0; 16] {
            return Err(DropReason::Reserved);
        }
        let end = u64::from(raw.segment_offset.get()) + payload.len() as u64;
        let total = raw.message_len.get();
        if end > u64::from(total)
            || total as usize > MAX_MESSAGE_BYTES
            || (payload.is_empty() && total != 0)
        {
            return Err(DropReason::Lengths);
        }
        let header = Self {
            kind,
            flags,
            ioc: IocNumber(raw.ioc.get()),
            iod: IodNumber(raw.iod.get()),
            status,
            outstanding: raw.outstanding.get(),
            credits: raw.credits.get(),
            segment_offset: raw.segment_offset.get(),
            message_len: total,
            connection: ConnectionId(raw.connection.get()),
            command: CommandId(raw.command.get()),
            epoch: Epoch(raw.epoch.get()),
            cluster,
        };
        // Padding is zeroes, and no version is 0.
        let is_packet = service && behind.len() >= HEADER_LEN && behind[0] != 0;
        Ok(Packet {
            header,
            payload,
            last_block,
            behind: is_packet.then_some(behind),
        })
    }
}

/// Of the header that `frame` begins with, its own checksum taken as 0, and the payload.
fn checksum(frame: &[u8], payload: &[u8]) -> u32 {
    // With a short beginning of the payload at once: a few octets cost as much as many.
    let mut first = [0; HEADER_LEN + SUMMED_AT_ONCE];
    let (short, long) = payload.split_at(payload.len().min(SUMMED_AT_ONCE));
    // Not copied and then changed: what is loaded in one piece waits for a store into the middle of it.
    let masked = frame[..HEADER_LEN].iter().zip(&ALL_BUT_CHECKSUM);
    for (to, (octet, mask)) in first.iter_mut().zip(masked) {
        *to = octet & mask;
    }
    first[HEADER_LEN..HEADER_LEN + short.len()].copy_from_slice(short);
    sum_on(sum(&first[..HEADER_LEN + short.len()]), long)
}

/// What of a header is summed up.
const ALL_BUT_CHECKSUM: [u8; HEADER_LEN] = {
    let mut mask = [0xff; HEADER_LEN];
    let mut at = CHECKSUM_AT;
    while at < CHECKSUM_AT + 4 {
        mask[at] = 0;
        at += 1;
    }
    mask
};

/// Octets of a payload that are summed up together with the header: as many as an I/O's range has.
const SUMMED_AT_ONCE: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Header, Vec<u8>) {
        let header = Header {
            flags: Flags::REPLY,
            ioc: IocNumber(2),
            iod: IodNumber(3),
            message_len: 9,
            segment_offset: 4,
            connection: ConnectionId(7),
            command: CommandId(8),
            cluster: "A".parse().unwrap(),
            ..Header::new(Kind::Read)
        };
        let mut bytes = Vec::new();
        header.emit(b"hello", &mut bytes);
        (header, bytes)
    }

    #[test]
    fn a_frame_survives_the_wire_with_padding_behind_it() {
        let (header, mut bytes) = sample();
        bytes.extend_from_slice(&[0xa5; 20]);
        assert_eq!(Header::parse(&bytes, true), Ok((header, &b"hello"[..])));
        assert_eq!(Header::parse(&bytes, false), Err(DropReason::UnknownKind));
    }

    #[test]
    fn what_follows_a_packet_is_another_one_or_padding() {
        let (header, bytes) = sample();
        let two = [&bytes[..], &bytes[..], &[0; 9]].concat();
        let behind = |frame| Header::parse_first(frame, true).unwrap().behind;
        let second = Header::parse_first(behind(&two).unwrap(), true).unwrap();
        assert_eq!((second.header, second.payload), (header, &b"hello"[..]));
        assert_eq!(second.behind, None);
        let management = Header::parse_first(&two, false);
        assert_eq!(management, Err(DropReason::UnknownKind));
        let padded = [&bytes[..], &[0; HEADER_LEN + 1]].concat();
        assert_eq!(behind(&padded), None);
        let mut strange = padded.clone();
        strange[bytes.len()] = VERSION + 1;
        let parsed = Header::parse_first(behind(&strange).unwrap(), true);
        assert_eq!(parsed, Err(DropReason::Version));
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let (_, bytes) = sample();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::parse(&bad, true).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(Header::parse(&bytes[..len], true).is_err(), "{len} bytes");
        }
    }
}
