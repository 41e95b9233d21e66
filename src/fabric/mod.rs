//! Fabric services (202): who is on the wire, in which cluster, and who owns each unit; and the link
//! by which hosts and units find and follow them. No I/O: the database is behind [`Catalog`].

pub mod catalog;
pub mod link;
pub mod memory;
pub mod service;

pub use catalog::{Catalog, CatalogError, Change, Entity, Snapshot};
pub use link::{FabricLink, Facts, LinkConfig, LinkEvent, MembershipList};
pub use memory::MemoryCatalog;
pub use service::{Fabric, FabricConfig, Policy};
