//! The cluster resource table: rows, stamps, join, ownership rules, and the file format over a
//! [`Storage`] trait. Knows no files, no clock and no network.
//!
//! What is joined and how (see `docs/crt-format.md` for the bytes):
//!
//! * A row holds two kinds of fact, each with a stamp of its own. *Observations* (it exists, its
//!   size, its model) carry the observer's [`ObservationStamp`](crate::wire::ObservationStamp);
//!   *ownership* carries the register's [`OwnershipStamp`](crate::wire::OwnershipStamp). Of two
//!   versions of a fact the one with the larger stamp holds; no observation changes ownership.
//! * The MAC addresses of controllers, devices and extents are not facts of their own: they are
//!   always those of their unit's row, and none while that row is unknown. Likewise the numbers,
//!   block size and features of an extent are always those of its device's row.
//! * Extents come and go with their registers: the epoch is the stamp of everything about them.
//! * A row *is present* when it and everything above it is valid.

pub mod carving;
mod digests;
pub mod image;
mod join;
mod observe;
pub mod outlook;
mod registers;
pub mod resolve;
pub mod rules;
mod shelf;
pub mod stamp;
mod stored;
mod table;
#[cfg(test)]
mod tests;

pub use digests::part_level;
pub use image::{Image, ImageError, ImageInfo, ImageKind, Storage};
pub(crate) use join::joined;
pub use join::{JoinOutcome, has_newer};
pub use registers::{RegistersChange, StoredRegisters};
pub use resolve::{Candidate, ResolveError};
pub use rules::{RuleError, Violation};
pub use stamp::Settled;
pub use stored::{RegistersImage, TableChange, TableImage, stored_table};
pub use table::{MAX_ROWS, Table};
