//! Bodies between fabric services and the hosts and units that they know (Fig. 3).

use super::super::codec::{DecodeError, Reader, Wire, Writer, ascending};
use super::super::id::{ClusterName, Epoch, Guid, Incarnation, Mac};
use super::super::kind::{EntityType, Role};
use super::super::row::{MAX_NAME_BYTES, ObservationStamp, Ownership, wire_struct};
use super::{MAX_MEMBERS, Placement, identity, page_advances, station_macs, station_type};

/// Who are the fabric services here?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Discover {
    /// The asker.
    pub asker: Guid,
    /// What it is.
    pub role: Role,
}
wire_struct!(Discover { asker, role } checked);

impl Discover {
    fn check(&self) -> Result<(), DecodeError> {
        identity(self.asker)
    }
}

/// Fabric services are here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Here {
    /// The fabric services' GUID.
    pub fabric: Guid,
    /// Their incarnation.
    pub incarnation: Incarnation,
}
wire_struct!(Here {
    fabric,
    incarnation
} checked);

impl Here {
    fn check(&self) -> Result<(), DecodeError> {
        identity(self.fabric)
    }
}

/// A host or unit as fabric services know it (Fig. 3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// What it is (304).
    pub guid: Guid,
    /// Host or unit (306).
    pub entity: EntityType,
    /// Its NICs (308): at least one, none twice, at most [`MAX_MACS`](super::super::row::MAX_MACS).
    pub macs: Vec<Mac>,
    /// Its name.
    pub name: String,
    /// Its incarnation and change number when it registered.
    pub observed: ObservationStamp,
    /// Who owns it (312), units only.
    pub ownership: Ownership,
    /// Row epoch of that ownership.
    pub epoch: Epoch,
    /// Version of the catalog that changed it last (314).
    pub version: u64,
    /// A unit of another cluster, of which devices were moved to this one.
    pub guest: bool,
}

impl Wire for Member {
    fn put(&self, w: &mut Writer) {
        w.put(&self.guid);
        w.put(&self.entity);
        w.list(&self.macs);
        w.text_within(&self.name, MAX_NAME_BYTES);
        w.put(&self.observed);
        w.put(&self.ownership);
        w.put(&self.epoch);
        w.put(&self.version);
        w.put(&self.guest);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let member = Self {
            guid: r.identity()?,
            entity: station_type(r)?,
            macs: station_macs(r)?,
            name: r.text("name", MAX_NAME_BYTES)?,
            observed: r.get()?,
            ownership: r.get()?,
            epoch: r.get()?,
            version: r.get()?,
            guest: r.get()?,
        };
        if member.guest && member.entity != EntityType::Unit {
            return Err(DecodeError::BadValue("guest"));
        }
        Ok(member)
    }
}

/// A host or unit registers itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Register {
    /// What it is.
    pub guid: Guid,
    /// Host or unit.
    pub entity: EntityType,
    /// Its NICs: at least one, none twice, at most [`MAX_MACS`](super::super::row::MAX_MACS).
    pub macs: Vec<Mac>,
    /// Its name.
    pub name: String,
    /// Its incarnation and change number.
    pub observed: ObservationStamp,
    /// The cluster that its configuration names, or none.
    pub cluster: ClusterName,
    /// Of a unit, which clusters it serves.
    pub placement: Placement,
}

impl Wire for Register {
    fn put(&self, w: &mut Writer) {
        w.put(&self.guid);
        w.put(&self.entity);
        w.list(&self.macs);
        w.text_within(&self.name, MAX_NAME_BYTES);
        w.put(&self.observed);
        w.put(&self.cluster);
        w.put(&self.placement);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let register = Self {
            guid: r.identity()?,
            entity: station_type(r)?,
            macs: station_macs(r)?,
            name: r.text("name", MAX_NAME_BYTES)?,
            observed: r.get()?,
            cluster: r.get()?,
            placement: r.get()?,
        };
        if register.entity == EntityType::Host && register.placement != Placement::default() {
            return Err(DecodeError::BadValue("placement"));
        }
        Ok(register)
    }
}

/// Answers a register. With status pending there is no body: no cluster is assigned yet, ask
/// again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registered {
    /// The assigned cluster.
    pub cluster: ClusterName,
    /// The catalog's version.
    pub version: u64,
    /// Which assignment that is: a unit follows the larger one.
    pub assignment: u64,
}
wire_struct!(Registered {
    cluster,
    version,
    assignment
});

/// Asks for the sender's cluster's members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MembershipRequest {
    /// The version already known; 0 for none. The same version again is answered without members.
    pub known_version: u64,
    /// Only members after this GUID: pages of a long list.
    pub after: Guid,
}
wire_struct!(MembershipRequest {
    known_version,
    after
});

/// The members of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipReply {
    /// The version of the cluster's list.
    pub version: u64,
    /// Whether the list is the one already known; then `members` is empty.
    pub unchanged: bool,
    /// Whether more follow after the last.
    pub more: bool,
    /// The members, by ascending GUID, within [`MAX_PAGE_BYTES`](super::MAX_PAGE_BYTES).
    pub members: Vec<Member>,
}

impl Wire for MembershipReply {
    fn put(&self, w: &mut Writer) {
        w.put(&self.version);
        w.put(&self.unchanged);
        w.put(&self.more);
        w.list(&self.members);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let reply = Self {
            version: r.get()?,
            unchanged: r.get()?,
            more: r.get()?,
            members: r.list("members", MAX_MEMBERS)?,
        };
        page_advances(reply.more, &reply.members)?;
        if reply.unchanged && !reply.members.is_empty() {
            return Err(DecodeError::BadValue("unchanged"));
        }
        ascending(&reply.members, |m| m.guid, "members")?;
        Ok(reply)
    }
}

/// Tells fabric services who owns a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitOwnership {
    /// The unit.
    pub unit: Guid,
    /// Its owners.
    pub ownership: Ownership,
    /// Row epoch; an older one is ignored.
    pub epoch: Epoch,
}
wire_struct!(UnitOwnership {
    unit,
    ownership,
    epoch
} checked);

impl UnitOwnership {
    fn check(&self) -> Result<(), DecodeError> {
        identity(self.unit)
    }
}
