//! Bodies about the clusters that a unit serves: where it belongs, and what is moved from one
//! cluster to another.

use super::super::codec::{DecodeError, Reader, Wire, Writer, ascending};
use super::super::id::{ClusterName, Epoch, Guid};
use super::super::row::{MAX_NAME_BYTES, wire_struct};
use super::identity;

/// The most clusters, besides its home, in which a unit keeps registers.
pub const MAX_GUESTS: usize = 16;

/// Which clusters a unit serves. All of it is empty for a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// The cluster that the unit belongs to, none before one was assigned.
    pub home: ClusterName,
    /// Counts the assignments of a home: the larger one holds.
    pub assignment: u64,
    /// The clusters that devices of it were moved to: ascending, at most [`MAX_GUESTS`], none of
    /// them the home.
    pub guests: Vec<ClusterName>,
}

impl Wire for Placement {
    fn put(&self, w: &mut Writer) {
        w.put(&self.home);
        w.put(&self.assignment);
        w.list(&self.guests);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let placement = Self {
            home: r.get()?,
            assignment: r.get()?,
            guests: r.list("guest clusters", MAX_GUESTS)?,
        };
        ascending(&placement.guests, |cluster| *cluster, "guest clusters")?;
        let wrong = |cluster: &ClusterName| cluster.is_none() || *cluster == placement.home;
        if placement.guests.iter().any(wrong) {
            return Err(DecodeError::BadValue("guest clusters"));
        }
        Ok(placement)
    }
}

/// Moves a device, or a whole unit, from the cluster of the connection to another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The allocation session's term.
    pub term: u64,
    /// The host that moves it.
    pub writer: Guid,
    /// The device, or the unit itself.
    pub row: Guid,
    /// The epoch that its register must have, at least two below `u64::MAX`.
    pub expected: Epoch,
    /// Where to.
    pub to: ClusterName,
    /// The host there that it shall be dedicated to.
    pub owner: Guid,
    /// Of a unit: also what is below it.
    pub recursive: bool,
}
wire_struct!(Move {
    term,
    writer,
    row,
    expected,
    to,
    owner,
    recursive
} checked);

impl Move {
    fn check(&self) -> Result<(), DecodeError> {
        for guid in [self.writer, self.row, self.owner] {
            identity(guid)?;
        }
        if self.to.is_none() {
            return Err(DecodeError::BadValue("cluster name"));
        }
        if self.expected.0 > u64::MAX - 2 {
            return Err(DecodeError::BadValue("epoch"));
        }
        Ok(())
    }
}

/// Asks fabric services for a host of any cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FindHost {
    /// The cluster.
    pub cluster: ClusterName,
    /// The host's name, or its GUID; at most [`MAX_NAME_BYTES`], not empty.
    pub host: String,
}

impl Wire for FindHost {
    fn put(&self, w: &mut Writer) {
        w.put(&self.cluster);
        w.text_within(&self.host, MAX_NAME_BYTES);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let request = Self {
            cluster: r.get()?,
            host: r.text("name", MAX_NAME_BYTES)?,
        };
        if request.cluster.is_none() {
            return Err(DecodeError::BadValue("cluster name"));
        }
        if request.host.is_empty() {
            return Err(DecodeError::BadValue("name"));
        }
        Ok(request)
    }
}

/// Which host that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundHost {
    /// Its GUID.
    pub host: Guid,
}
wire_struct!(FoundHost { host } checked);

impl FoundHost {
    fn check(&self) -> Result<(), DecodeError> {
        identity(self.host)
    }
}
