//! Which message a body is, by its frame's kind, direction and status.

use std::fmt;

use super::codec::{DecodeError, Wire, Writer};
use super::header::Header;
use super::kind::{Kind, Status};
use super::message::{
    CompareAndSet, Conflict, ConnectReply, ConnectRequest, ControllersReply, Deposit, DevicesReply,
    Discover, ExtentFacts, FindHost, FoundHost, Here, IO_RANGE_BYTES, IdentifyReply, InUseReply,
    InUseRequest, IoRange, LeaseReply, LeaseRequest, MembershipReply, MembershipRequest, Missing,
    Move, Notification, Offer, Parts, PathProbe, ProgressReport, Register, Registered,
    RegistersReply, RegistersRequest, Restore, TableDigestsReply, TableDigestsRequest,
    TableRowsReply, TableRowsRequest, TableSummary, UnitOwnership,
};
use super::row::Settings;

macro_rules! bodies {
    ($( $(#[$meta:meta])* $name:ident, )+) => {
        /// A whole message's body, for those who look at every kind alike (captures, tests, fuzzing).
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Body<'a> {
            /// Nothing.
            Empty,
            /// The range and the data of a write.
            Write(IoRange, &'a [u8]),
            /// What a read gives.
            Data(&'a [u8]),
            $( $(#[$meta])* $name($name), )+
        }

        impl Body<'_> {
            /// The bytes of the body.
            pub fn encode(&self) -> Vec<u8> {
                let mut w = Writer::new();
                match self {
                    Self::Empty => {}
                    Self::Write(range, data) => {
                        w.put(range);
                        w.raw(data);
                    }
                    Self::Data(data) => w.raw(data),
                    $( Self::$name(message) => w.put(message), )+
                }
                w.into_bytes()
            }
        }
    };
}

bodies! {
    /// Connect.
    ConnectRequest,
    /// Reply to connect.
    ConnectReply,
    /// Probe.
    Missing,
    /// Progress.
    ProgressReport,
    /// Notify and notify-ack.
    Notification,
    /// Discover.
    Discover,
    /// Here.
    Here,
    /// Register.
    Register,
    /// Reply to register.
    Registered,
    /// Membership.
    MembershipRequest,
    /// Reply to membership.
    MembershipReply,
    /// Unit-ownership.
    UnitOwnership,
    /// Find-host.
    FindHost,
    /// Reply to find-host.
    FoundHost,
    /// Deposit.
    Deposit,
    /// Table-stamp that tells the own one; reply to table-stamp, offer and deposit.
    TableSummary,
    /// Table-rows.
    TableRowsRequest,
    /// Reply to table-rows.
    TableRowsReply,
    /// Offer.
    Offer,
    /// Lease.
    LeaseRequest,
    /// Reply to lease.
    LeaseReply,
    /// Settle, and its reply.
    Settings,
    /// Table-digests.
    TableDigestsRequest,
    /// Reply to table-digests.
    TableDigestsReply,
    /// In-use.
    InUseRequest,
    /// Reply to in-use.
    InUseReply,
    /// Reply to controllers.
    ControllersReply,
    /// Registers.
    RegistersRequest,
    /// Reply to registers, compare-and-set and move.
    RegistersReply,
    /// Compare-and-set.
    CompareAndSet,
    /// Reply to a compare-and-set or move that was refused.
    Conflict,
    /// Restore.
    Restore,
    /// Move.
    Move,
    /// Reply to devices.
    DevicesReply,
    /// Reply to identify.
    IdentifyReply,
    /// Read, flush, discard, write-zeroes.
    IoRange,
    /// Path, and its reply.
    PathProbe,
}

impl<'a> Body<'a> {
    /// Reads the whole body of a message with this header (its own or that of any segment).
    pub fn parse(header: &Header, bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let empty = || match bytes {
            [] => Ok(Self::Empty),
            _ => Err(DecodeError::Trailing),
        };
        macro_rules! body {
            ($name:ident) => {
                Wire::from_body(bytes).map(Self::$name)
            };
        }
        match (header.kind, header.is_reply(), header.status) {
            // A status may come without its details.
            (_, true, status) if status != Status::Ok && bytes.is_empty() => Ok(Self::Empty),
            (Kind::CompareAndSet | Kind::Move, true, status) if status != Status::Ok => {
                body!(Conflict)
            }
            (Kind::Connect, false, _) => body!(ConnectRequest),
            (Kind::Connect, true, Status::Ok) => body!(ConnectReply),
            (Kind::Probe, ..) => body!(Missing),
            (Kind::Path, false, _) | (Kind::Path, true, Status::Ok) => body!(PathProbe),
            (Kind::Progress, ..) => body!(ProgressReport),
            (Kind::Notify | Kind::NotifyAck, ..) => body!(Notification),
            (Kind::Discover, ..) => body!(Discover),
            (Kind::Here, ..) => body!(Here),
            (Kind::Register, false, _) => body!(Register),
            (Kind::Register, true, Status::Ok) => body!(Registered),
            (Kind::Membership, false, _) => body!(MembershipRequest),
            (Kind::Membership, true, Status::Ok) => body!(MembershipReply),
            (Kind::UnitOwnership, false, _) => body!(UnitOwnership),
            (Kind::FindHost, false, _) => body!(FindHost),
            (Kind::FindHost, true, Status::Ok) => body!(FoundHost),
            (Kind::Deposit, false, _) => body!(Deposit),
            (Kind::TableStamp, false, _) if !bytes.is_empty() => body!(TableSummary),
            (Kind::TableStamp | Kind::Offer | Kind::Deposit, true, Status::Ok) => {
                body!(TableSummary)
            }
            (Kind::InUse, false, _) => body!(InUseRequest),
            (Kind::InUse, true, Status::Ok) => body!(InUseReply),
            (Kind::TableRows, false, _) => body!(TableRowsRequest),
            (Kind::TableRows, true, Status::Ok) => body!(TableRowsReply),
            (Kind::Offer, false, _) => body!(Offer),
            (Kind::Lease, false, _) => body!(LeaseRequest),
            (Kind::Lease, true, Status::Ok) => body!(LeaseReply),
            (Kind::Settle, false, _) | (Kind::Settle, true, Status::Ok) => body!(Settings),
            (Kind::TableDigests, false, _) => body!(TableDigestsRequest),
            (Kind::TableDigests, true, Status::Ok) => body!(TableDigestsReply),
            (Kind::Controllers, true, Status::Ok) => body!(ControllersReply),
            (Kind::Registers, false, _) => body!(RegistersRequest),
            (Kind::CompareAndSet, false, _) => body!(CompareAndSet),
            (Kind::Registers | Kind::CompareAndSet | Kind::Move, true, Status::Ok) => {
                body!(RegistersReply)
            }
            (Kind::Restore, false, _) => body!(Restore),
            (Kind::Move, false, _) => body!(Move),
            (Kind::Devices, true, Status::Ok) => body!(DevicesReply),
            (Kind::Identify, true, Status::Ok) => body!(IdentifyReply),
            (Kind::Flush, false, _) => {
                let range = IoRange::from_body(bytes)?;
                if (range.offset, range.len) != (0, 0) {
                    return Err(DecodeError::BadValue("range"));
                }
                Ok(Self::IoRange(range))
            }
            (Kind::Read | Kind::Discard | Kind::WriteZeroes, false, _) => body!(IoRange),
            (Kind::Read, true, Status::Ok) => Ok(Self::Data(bytes)),
            (Kind::Write, false, _) => {
                let (range, data) = bytes
                    .split_at_checked(IO_RANGE_BYTES)
                    .ok_or(DecodeError::Truncated)?;
                let range = IoRange::from_body(range)?;
                if range.len != data.len() as u64 {
                    return Err(DecodeError::BadValue("length"));
                }
                Ok(Self::Write(range, data))
            }
            _ => empty(),
        }
    }
}

/// `3 rows`, `1 row`.
fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

fn parts(parts: &Parts) -> String {
    match parts.level {
        0 => "all".to_owned(),
        level => format!("{} at level {level}", count(parts.numbers.len(), "part")),
    }
}

fn more(more: bool) -> &'static str {
    if more { ", more follow" } else { "" }
}

impl fmt::Display for TableSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stamp, rows) = (self.stamp, count(self.row_count as usize, "row"));
        let (term, counter, writer) = (stamp.term, stamp.counter, stamp.writer);
        write!(
            f,
            "stamp {term}.{counter} by {writer}, digest {:032x}, {rows}",
            self.digest
        )
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ranges[..] {
            [] => f.write_str("no range"),
            [first, rest @ ..] => {
                write!(f, "missing {}+{}", first.offset, first.len)?;
                match rest.len() {
                    0 => Ok(()),
                    n => write!(f, " and {}", count(n, "range")),
                }
            }
        }
    }
}

impl fmt::Display for IoRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.len)?;
        if self.extent.is_nil() {
            return Ok(());
        }
        write!(f, " of extent {}", self.extent)
    }
}

impl fmt::Display for ExtentFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (offset, len) = (self.range.offset, self.range.len);
        let removed = if self.present { "" } else { "removed " };
        write!(
            f,
            "{removed}extent {:?} {offset}+{len} of {}",
            self.name, self.device
        )
    }
}

impl fmt::Display for super::message::Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "term {} of {} {:?} process {} user {:?} for {}",
            self.term, self.host, self.name, self.process, self.user, self.purpose
        )
    }
}

/// Nothing where it says nothing.
impl fmt::Display for super::message::Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.assignment > 0 {
            write!(f, ", home {} by assignment {}", self.home, self.assignment)?;
        }
        for (i, guest) in self.guests.iter().enumerate() {
            write!(f, "{}{guest}", if i == 0 { ", guest of " } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Display for super::row::Ownership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        for (i, owner) in self.owners().iter().enumerate() {
            write!(f, "{}{owner}", if i == 0 { " " } else { "," })?;
        }
        Ok(())
    }
}

/// One line that tells what matters; names are quoted and escaped.
impl fmt::Display for Body<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => Ok(()),
            Self::Write(range, _) => range.fmt(f),
            Self::Data(data) => f.write_str(&count(data.len(), "byte")),
            Self::ConnectRequest(m) => write!(
                f,
                "{} {} incarnation {} session {} attempt {} to {}, mtu {} credits {} features {:#x}",
                m.role,
                m.initiator,
                m.incarnation,
                m.session,
                m.attempt,
                m.responder,
                m.mtu,
                m.credits,
                m.features
            ),
            Self::ConnectReply(m) => write!(
                f,
                "{} incarnation {} {}, mtu {} credits {} features {:#x}",
                m.responder,
                m.incarnation,
                if m.resumed { "resumed" } else { "new" },
                m.mtu,
                m.credits,
                m.features
            ),
            Self::Missing(m) => m.fmt(f),
            Self::PathProbe(m) => {
                let padding = count(m.padding.into(), "byte");
                write!(f, "probe {}, mtu {}, {padding} of padding", m.number, m.mtu)
            }
            Self::ProgressReport(m) => write!(f, "{}, {}", m.progress, m.missing),
            Self::Notification(m) => write!(
                f,
                "number {} {} ioc {} at {}.{}",
                m.number, m.event, m.ioc, m.stamp.incarnation, m.stamp.change
            ),
            Self::Discover(m) => write!(f, "{} {}", m.role, m.asker),
            Self::Here(m) => write!(f, "{} incarnation {}", m.fabric, m.incarnation),
            Self::Register(m) => write!(
                f,
                "{} {} {:?} at {:?}, cluster {}{}",
                m.entity, m.guid, m.name, m.macs, m.cluster, m.placement
            ),
            Self::Registered(m) => write!(
                f,
                "cluster {} version {} assignment {}",
                m.cluster, m.version, m.assignment
            ),
            Self::MembershipRequest(m) => {
                write!(f, "known version {} after {}", m.known_version, m.after)
            }
            Self::MembershipReply(m) if m.unchanged => write!(f, "version {} unchanged", m.version),
            Self::MembershipReply(m) => write!(
                f,
                "version {} {}{}",
                m.version,
                count(m.members.len(), "member"),
                more(m.more)
            ),
            Self::UnitOwnership(m) => {
                write!(f, "{} {} epoch {}", m.unit, m.ownership, m.epoch)
            }
            Self::FindHost(m) => write!(f, "{:?} of cluster {}", m.host, m.cluster),
            Self::FoundHost(m) => write!(f, "{}", m.host),
            Self::InUseRequest(m) => f.write_str(&count(m.rows.len(), "row")),
            Self::InUseReply(m) if m.row.is_nil() => f.write_str("none"),
            Self::InUseReply(m) => write!(f, "{} {:?}", m.row, m.users.0),
            Self::TableSummary(m) => m.fmt(f),
            Self::TableRowsRequest(m) => write!(f, "{} after {}", parts(&m.parts), m.after),
            Self::TableDigestsRequest(m) => {
                write!(
                    f,
                    "{}, {} deeper",
                    parts(&m.parts),
                    count(m.depth.into(), "level")
                )
            }
            Self::TableDigestsReply(m) => {
                write!(f, "{} of {}", count(m.digests.len(), "digest"), m.summary)
            }
            Self::TableRowsReply(m) => write!(
                f,
                "{}{} of {}",
                count(m.rows.len(), "row"),
                more(m.more),
                m.summary
            ),
            Self::Offer(m) => write!(f, "{} of {}", count(m.rows.len(), "row"), m.summary),
            Self::Deposit(m) => write!(
                f,
                "piece {}, {} in {}{} of {}",
                m.piece,
                count(m.rows.len(), "row"),
                parts(&m.parts),
                more(m.more),
                m.summary
            ),
            Self::LeaseRequest(m) => write!(
                f,
                "{}{} {}",
                m.verb,
                if m.force { " by force" } else { "" },
                m.holder
            ),
            Self::LeaseReply(m) => {
                let word = if m.granted { "granted" } else { "not granted" };
                write!(f, "{word}, promised {}", m.promised)?;
                match &m.holder {
                    Some(holder) => {
                        write!(f, ", {holder} for {} ms, {} ms left", m.held_ms, m.left_ms)
                    }
                    None => Ok(()),
                }
            }
            Self::Settings(m) => write!(
                f,
                "granularity {} of {}.{} by {}",
                m.granularity, m.stamp.term, m.stamp.counter, m.stamp.writer
            ),
            Self::ControllersReply(m) => write!(
                f,
                "unit {} {:?} {}",
                m.unit,
                m.name,
                count(m.controllers.len(), "controller")
            ),
            Self::RegistersRequest(m) => write!(f, "after {}", m.after),
            Self::RegistersReply(m) => {
                let registers = count(m.registers.len(), "register");
                write!(f, "{registers}{}", more(m.more))
            }
            Self::CompareAndSet(m) => {
                write!(f, "term {} by {}", m.term, m.writer)?;
                for c in m.changes.iter().take(4) {
                    write!(f, ", {} from {} to {}", c.row, c.expected, c.ownership)?;
                    if let Some(extent) = &c.extent {
                        write!(f, ", {extent}")?;
                    }
                }
                match m.changes.len() {
                    0..=4 => Ok(()),
                    n => write!(f, " and {}", count(n - 4, "change")),
                }
            }
            Self::Restore(m) => {
                let registers = count(m.registers.len(), "register");
                write!(
                    f,
                    "term {}, {registers} after {}{}",
                    m.term,
                    m.after,
                    more(m.more)
                )
            }
            Self::Move(m) => write!(
                f,
                "term {} by {}, {}{} from {} to cluster {} host {}",
                m.term,
                m.writer,
                m.row,
                if m.recursive { " and all below" } else { "" },
                m.expected,
                m.to,
                m.owner
            ),
            Self::Conflict(Conflict { register: m }) => write!(
                f,
                "{} is {} at epoch {} term {} by {}",
                m.row, m.ownership, m.owned.epoch, m.owned.term, m.owned.writer
            ),
            Self::DevicesReply(m) => write!(
                f,
                "controller {} {}",
                m.controller,
                count(m.devices.len(), "device")
            ),
            Self::IdentifyReply(m) => write!(
                f,
                "{} {:?} {} bytes in blocks of {}, {} at epoch {}",
                m.device.guid,
                m.device.name,
                m.device.size_bytes,
                m.device.block_size,
                m.register.ownership,
                m.register.owned.epoch
            ),
            Self::IoRange(m) => m.fmt(f),
        }
    }
}
