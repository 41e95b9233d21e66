//! What an administrator wants of a unit, and the changes that it comes to.

use super::carve::{self, Carving};
use super::moving::Moving;
use super::plan::changes;
use super::request::AdminError;
use crate::crt::Table;
use crate::wire::message::Change;
use crate::wire::{Guid, Ownership};

/// What an administrator wants of a unit.
#[derive(Debug)]
pub(super) enum Wish {
    /// That a row is owned so; where `recursive`, rows below are cut down to what that permits.
    Own {
        target: Guid,
        ownership: Ownership,
        recursive: bool,
    },
    /// That there is an extent.
    Carve(Carving),
    /// That there is no longer this extent.
    Uncarve(Guid),
    /// Just these changes, planned with those of other units; who changes one of the rows
    /// meanwhile is not overruled.
    Batch { unit: Guid, changes: Vec<Change> },
    /// That a row is another cluster's.
    Move(Moving),
}

impl Wish {
    /// The row that it is about.
    pub(super) const fn target(&self) -> Guid {
        match self {
            Self::Move(moving) => moving.target,
            Self::Own { target, .. } => *target,
            Self::Carve(carving) => carving.guid,
            Self::Uncarve(extent) => *extent,
            Self::Batch { unit, .. } => *unit,
        }
    }

    /// The changes that fulfil it, none where it is so already.
    pub(super) fn changes(&self, table: &Table) -> Result<Vec<Change>, AdminError> {
        match self {
            Self::Own {
                target,
                ownership,
                recursive,
            } => changes(table, *target, ownership, *recursive),
            Self::Carve(carving) => carving.changes(table),
            Self::Uncarve(extent) => carve::removal(table, *extent),
            Self::Batch { changes, .. } => Ok(changes.clone()),
            Self::Move(moving) => moving.changes(table),
        }
    }
}
