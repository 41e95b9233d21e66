//! Fabric services (202): who is on the wire, in which cluster, and who owns each unit; and the link
//! by which hosts and units find and follow them. No I/O: the database is behind [`Catalog`].

pub mod catalog;
pub mod central;
pub mod deposits;
pub mod directory;
mod facts;
mod finding;
mod follow;
mod guests;
mod keeping;
pub mod link;
pub mod memory;
mod presence;
pub mod report;
mod requests;
mod search;
pub mod service;
mod telling;

pub use catalog::{Catalog, CatalogError, Change, Entity, Snapshot};
pub use guests::GuestRow;
pub use link::{FabricLink, Facts, LinkConfig, LinkEvent, MembershipList};
pub use memory::MemoryCatalog;
pub use report::{EntityView, FabricCounters, FabricEvent};
pub use service::{Fabric, FabricConfig, Policy};
