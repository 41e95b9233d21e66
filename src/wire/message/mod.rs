//! Message bodies, one type for each request and reply that has one.
//!
//! | kind | request body | reply body |
//! |---|---|---|
//! | connect | [`ConnectRequest`] | [`ConnectReply`] |
//! | probe | [`Missing`] | - |
//! | progress | - | [`ProgressReport`] |
//! | notify, notify-ack | [`Notification`] | - |
//! | discover / here | [`Discover`] / [`Here`] | - |
//! | register | [`Register`] | [`Registered`] |
//! | membership | [`MembershipRequest`] | [`MembershipReply`] |
//! | unit-ownership | [`UnitOwnership`] | empty |
//! | deposit | [`Deposit`] | [`TableSummary`] |
//! | find-host | [`FindHost`] | [`FoundHost`] |
//! | table-stamp | empty or [`TableSummary`] | [`TableSummary`] |
//! | table-rows | [`TableRowsRequest`] | [`TableRowsReply`] |
//! | offer | [`Offer`] | [`TableSummary`] |
//! | lease | [`LeaseRequest`] | [`LeaseReply`] |
//! | settle | [`Settings`](super::Settings) | [`Settings`](super::Settings) |
//! | table-digests | [`TableDigestsRequest`] | [`TableDigestsReply`] |
//! | in-use | [`InUseRequest`] | [`InUseReply`] |
//! | controllers | empty | [`ControllersReply`] |
//! | registers | [`RegistersRequest`] | [`RegistersReply`] |
//! | compare-and-set | [`CompareAndSet`] | [`RegistersReply`] or [`Conflict`] |
//! | restore | [`Restore`] | empty |
//! | move | [`Move`] | [`RegistersReply`] or [`Conflict`] |
//! | devices | empty | [`DevicesReply`] |
//! | identify | empty | [`IdentifyReply`] |
//! | read | [`IoRange`] | the data |
//! | write | [`IoRange`], then the data | empty |
//! | flush, discard, write-zeroes | [`IoRange`] | empty |
//! | keep-alive | empty | empty |
//! | path | [`PathProbe`] | [`PathProbe`] |
//!
//! A reply whose status is not ok has an empty body, except the [`Conflict`] of compare-and-set and
//! move.

//!
//! Decoding refuses what no honest sender says: identities that are NIL, group addresses as a
//! NIC, lists with repetitions, pages that do not advance, ranges that overlap.

mod fabric;
mod lease;
mod moving;
mod session;
mod table;
mod unit;
mod using;

pub use fabric::{
    Discover, Here, Member, MembershipReply, MembershipRequest, Register, Registered, UnitOwnership,
};
pub use lease::{Holder, LeaseReply, LeaseRequest, LeaseVerb, Purpose};
pub(crate) use lease::{get_holder, put_holder};
pub use moving::{FindHost, FoundHost, MAX_GUESTS, Move, Placement};
pub use session::{
    ByteRange, ConnectReply, ConnectRequest, Missing, Notification, PathProbe, ProgressReport,
};
pub use table::{
    Deposit, Offer, Parts, TableDigestsReply, TableDigestsRequest, TableRowsReply,
    TableRowsRequest, TableSummary,
};
pub use unit::{
    Change, CompareAndSet, Conflict, ControllerRecord, ControllersReply, DeviceRecord,
    DevicesReply, ExtentFacts, IO_RANGE_BYTES, IdentifyReply, IoRange, OwnershipRegister,
    RegistersReply, RegistersRequest, Restore,
};

pub use using::{InUseReply, InUseRequest, MAX_USERS_BYTES, Users};

use super::codec::{DecodeError, Reader, Wire, Writer, distinct};
use super::header::MAX_MESSAGE_BYTES;
use super::id::{Guid, Mac};
use super::kind::EntityType;
use super::row::MAX_MACS;

/// The most missing ranges that one probe or progress names; more are named by the next.
pub const MAX_RANGES: usize = 128;
/// The most members of one page.
pub const MAX_MEMBERS: usize = 4096;
/// The most controllers of a unit.
pub const MAX_CONTROLLERS: usize = 1024;
/// The most devices of a controller.
pub const MAX_DEVICES: usize = 3072;
/// The most registers of one page.
pub const MAX_REGISTERS: usize = 16_384;
/// The most rows of one table page or offer; an offer of more is made by digest.
pub const MAX_PAGE_ROWS: usize = 4096;
/// The deepest level of a table's parts: 65,536 of them.
pub const MAX_PART_LEVEL: u8 = 4;
/// The most parts that a request names, and the most digests that it asks for.
pub const MAX_PARTS: usize = 65_536;
/// The most changes of one compare-and-set.
pub const MAX_CHANGES: usize = 4096;
/// The most extents of a device.
pub const MAX_DEVICE_EXTENTS: usize = 1024;

/// The most bytes that the records of one page or offer may have together: what is left of
/// [`MAX_MESSAGE_BYTES`] is for the fields in front of them.
pub const MAX_PAGE_BYTES: usize = MAX_MESSAGE_BYTES - 1024;

/// How many of the first `records` fit a page of `max_bytes`.
pub fn page_len<'a, T: Wire + 'a>(
    records: impl IntoIterator<Item = &'a T>,
    max_bytes: usize,
) -> usize {
    let mut w = Writer::new();
    records
        .into_iter()
        .take_while(|record| {
            w.put(*record);
            w.len() <= max_bytes
        })
        .count()
}

/// Takes the NICs of a station that is there: at least one, none twice.
fn station_macs(r: &mut Reader<'_>) -> Result<Vec<Mac>, DecodeError> {
    let macs: Vec<Mac> = r.list("MAC addresses", MAX_MACS)?;
    if macs.is_empty() {
        return Err(DecodeError::BadValue("MAC addresses"));
    }
    distinct(&macs, |m| *m, "MAC addresses")?;
    Ok(macs)
}

/// Takes the type of a registered station: host or unit.
fn station_type(r: &mut Reader<'_>) -> Result<EntityType, DecodeError> {
    match r.get()? {
        entity @ (EntityType::Host | EntityType::Unit) => Ok(entity),
        _ => Err(DecodeError::BadValue("entity type")),
    }
}

/// Checks that a page with more behind it has a last record to go on from.
fn page_advances<T>(more: bool, records: &[T]) -> Result<(), DecodeError> {
    if more && records.is_empty() {
        Err(DecodeError::BadValue("empty page"))
    } else {
        Ok(())
    }
}

/// Refuses [`Guid::NIL`] where an entity is meant.
fn identity(guid: Guid) -> Result<(), DecodeError> {
    if guid.is_nil() {
        Err(DecodeError::BadValue("GUID"))
    } else {
        Ok(())
    }
}
