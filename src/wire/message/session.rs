//! Bodies of the session's own kinds: connect, probe, progress, notify.

use super::super::codec::{DecodeError, Reader, Wire, Writer};
use super::super::header::{HEADER_LEN, MAX_MESSAGE_BYTES, MIN_MTU};
use super::super::id::{Guid, Incarnation, IocNumber};
use super::super::kind::{Event, Progress, Role};
use super::super::row::{ObservationStamp, wire_struct};
use super::{MAX_RANGES, identity};

/// Opens a connection. `header.command` is a nonce that the reply repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectRequest {
    /// The initiator.
    pub initiator: Guid,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Names the session within the incarnation: a reconnect with the same (initiator,
    /// incarnation, session, IOC) continues it, its commands and its duplicate window.
    pub session: u64,
    /// Counts the session's connection attempts: a late connect of an earlier attempt is refused.
    pub attempt: u32,
    /// Who opens.
    pub role: Role,
    /// Who is expected to answer; NIL for whoever it is.
    pub responder: Guid,
    /// Feature bits offered; none are assigned yet.
    pub features: u64,
    /// The most bytes of a frame behind its Ethernet header that the initiator can receive, at
    /// least [`MIN_MTU`].
    pub mtu: u16,
    /// Commands that the initiator would like to have outstanding, more than 0.
    pub credits: u16,
}
wire_struct!(ConnectRequest {
    initiator,
    incarnation,
    session,
    attempt,
    role,
    responder,
    features,
    mtu,
    credits
} checked);

impl ConnectRequest {
    fn check(&self) -> Result<(), DecodeError> {
        identity(self.initiator)?;
        link(self.mtu, self.credits)
    }
}

fn link(mtu: u16, credits: u16) -> Result<(), DecodeError> {
    if mtu < MIN_MTU {
        Err(DecodeError::BadValue("MTU"))
    } else if credits == 0 {
        Err(DecodeError::BadValue("credits"))
    } else {
        Ok(())
    }
}

/// Answers a connect; the connection's number is in the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectReply {
    /// The responder.
    pub responder: Guid,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Feature bits agreed.
    pub features: u64,
    /// The most bytes of a frame behind its Ethernet header that both can receive, at least
    /// [`MIN_MTU`].
    pub mtu: u16,
    /// Commands that the initiator may have outstanding, more than 0.
    pub credits: u16,
    /// Whether the session's earlier commands are still known (its duplicate window held).
    pub resumed: bool,
}
wire_struct!(ConnectReply {
    responder,
    incarnation,
    features,
    mtu,
    credits,
    resumed
} checked);

impl ConnectReply {
    fn check(&self) -> Result<(), DecodeError> {
        identity(self.responder)?;
        link(self.mtu, self.credits)
    }
}

/// A byte range of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub offset: u32,
    /// Number of bytes, more than 0; the range ends within [`MAX_MESSAGE_BYTES`].
    pub len: u32,
}
wire_struct!(ByteRange { offset, len } checked);

impl ByteRange {
    fn end(self) -> u64 {
        u64::from(self.offset) + u64::from(self.len)
    }

    #[allow(clippy::trivially_copy_pass_by_ref)] // as every check
    fn check(&self) -> Result<(), DecodeError> {
        if self.len == 0 || self.end() > MAX_MESSAGE_BYTES as u64 {
            return Err(DecodeError::BadValue("range"));
        }
        Ok(())
    }
}

/// What a probe says is missing of a reply; empty: nothing of it has arrived.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Missing {
    /// Ranges in ascending order that do not overlap, at most [`MAX_RANGES`].
    pub ranges: Vec<ByteRange>,
}

impl Wire for Missing {
    fn put(&self, w: &mut Writer) {
        w.list(&self.ranges);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let ranges: Vec<ByteRange> = r.list("ranges", MAX_RANGES)?;
        // Overlapping ranges would have the same bytes sent many times for one small probe.
        if ranges.windows(2).any(|w| w[0].end() > w[1].offset.into()) {
            return Err(DecodeError::BadValue("ranges"));
        }
        Ok(Self { ranges })
    }
}

/// How far a command has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgressReport {
    /// Its state.
    pub progress: Progress,
    /// What is missing of the request, where it is incomplete.
    pub missing: Missing,
}
wire_struct!(ProgressReport { progress, missing });

/// Tries a path of a connection: a pair of NICs that reach each other. The reply repeats the number and
/// is as long, so that one that arrives shows that the path carries such frames both ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathProbe {
    /// Counts the connection's probes.
    pub number: u32,
    /// From the initiator: the most bytes of a frame behind its Ethernet header that the responder may send
    /// by this path from now on. From the responder: the most that it can receive there. At least
    /// [`MIN_MTU`].
    pub mtu: u16,
    /// Zeroes that make the frame as long as what is tried.
    pub padding: u16,
}

/// Bytes of a path probe in front of its padding.
const PATH_PROBE_BYTES: u16 = 6;

impl PathProbe {
    /// A probe whose frame is `frame_bytes` long, or as long as one without padding.
    pub const fn of_frame(number: u32, mtu: u16, frame_bytes: u16) -> Self {
        Self {
            number,
            mtu,
            padding: frame_bytes.saturating_sub(HEADER_LEN as u16 + PATH_PROBE_BYTES),
        }
    }
}

impl Wire for PathProbe {
    fn put(&self, w: &mut Writer) {
        w.put(&self.number);
        w.put(&self.mtu);
        w.raw(&vec![0; usize::from(self.padding)]);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (number, mtu) = (r.get()?, r.get()?);
        let padding = r.take(r.rest().len())?;
        if mtu < MIN_MTU {
            return Err(DecodeError::BadValue("MTU"));
        }
        if padding.iter().any(|byte| *byte != 0) {
            return Err(DecodeError::BadValue("padding"));
        }
        Ok(Self {
            number,
            mtu,
            padding: u16::try_from(padding.len()).map_err(|_| DecodeError::TooLarge("padding"))?,
        })
    }
}

/// Something changed at the responder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification {
    /// Counts the connection's notifications; a later one of the same event replaces an earlier.
    pub number: u64,
    /// What changed.
    pub event: Event,
    /// The controller it is about, 0 where none.
    pub ioc: IocNumber,
    /// The observer's stamp after the change.
    pub stamp: ObservationStamp,
}
wire_struct!(Notification {
    number,
    event,
    ioc,
    stamp
});
