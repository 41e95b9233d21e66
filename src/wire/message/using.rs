//! Whether an owner uses what it is about to lose.

use super::super::codec::{DecodeError, Reader, Wire, Writer, ascending};
use super::super::id::Guid;
use super::super::row::wire_struct;
use super::MAX_CHANGES;

/// The most bytes of the words that say who uses a row; longer ones are cut.
pub const MAX_USERS_BYTES: usize = 255;

/// Asks an owner whether its operating system uses any of these rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InUseRequest {
    /// Devices and extents, 1 to [`MAX_CHANGES`], ascending.
    pub rows: Vec<Guid>,
}

impl Wire for InUseRequest {
    fn put(&self, w: &mut Writer) {
        w.list(&self.rows);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let rows: Vec<Guid> = r.list("rows", MAX_CHANGES)?;
        if rows.first().is_none_or(|row| row.is_nil()) {
            return Err(DecodeError::BadValue("rows"));
        }
        ascending(&rows, |row| *row, "rows")?;
        Ok(Self { rows })
    }
}

/// One of the rows that are in use, or none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InUseReply {
    /// The row, or NIL where none of them is in use.
    pub row: Guid,
    /// By whom, for people; at most [`MAX_USERS_BYTES`].
    pub users: Users,
}
wire_struct!(InUseReply { row, users });

/// Words for people of at most [`MAX_USERS_BYTES`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Users(pub String);

impl Wire for Users {
    fn put(&self, w: &mut Writer) {
        w.text_within(&self.0, MAX_USERS_BYTES);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        r.text("users", MAX_USERS_BYTES).map(Self)
    }
}
