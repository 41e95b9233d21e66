//! What the daemons keep: the mmap'd files, the identity file, the fabric services database.

pub mod catalog;
pub mod crt_file;
pub mod identity;
mod kept;
pub mod mmap;
pub mod vote_file;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

pub use crt_file::{CrtFile, RegistersFile, Report, Snapshot, StoreError, verify};
pub use identity::{Identity, IdentityError};
pub use vote_file::VoteFile;

/// Makes the directory entry of `path` durable.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// `path` with `.new` behind its name: where its next content is prepared.
fn beside(path: &Path) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Replaces the content of a small file as a whole and durably: after a crash it is the old
/// content or the new one.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = beside(path);
    let mut file = File::create(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&new, path)?;
    sync_directory_of(path)
}
