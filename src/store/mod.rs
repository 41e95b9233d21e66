//! What the daemons keep: the mmap'd files, the identity file, the fabric services database.

pub mod catalog;
pub mod crt_file;
pub mod identity;
pub mod mmap;

pub use crt_file::{CrtFile, RegistersFile, Report, Snapshot, StoreError, verify};
pub use identity::{Identity, IdentityError};
