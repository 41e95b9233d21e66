//! Who this host or unit is, and how often it has started: a small file in the state directory.

use std::path::Path;

use crate::wire::{Guid, Incarnation};

/// An entity's GUID and incarnation, durable before [`Identity::open`] returns them. While it
/// lives no other process can open the same state directory.
#[derive(Debug)]
pub struct Identity {
    guid: Guid,
    incarnation: Incarnation,
    first_start: bool,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {}

impl Identity {
    /// Reads `state_dir/identity`, counts the incarnation up, and makes that durable. The first
    /// start generates a GUID, unless `configured` says which; another configured GUID than the
    /// stored one is an error.
    pub fn open(_state_dir: &Path, _configured: Option<Guid>) -> Result<Self, IdentityError> {
        todo!()
    }

    /// The entity.
    pub const fn guid(&self) -> Guid {
        self.guid
    }

    /// Counts its starts; the first is 1, or far more where an identity was lost.
    pub const fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Whether the state directory has never been in use ([`Identity::settle`]).
    pub const fn is_first_start(&self) -> bool {
        self.first_start
    }

    /// Notes durably that the state directory is in use: from now on a missing registers file is
    /// a loss, not a beginning.
    pub fn settle(&mut self) -> Result<(), IdentityError> {
        todo!()
    }
}
