//! Units that serve several clusters: which cluster they belong to, which others list them as guests,
//! and which host of another cluster something is moved to.

use super::catalog::{Catalog, Entity};
use super::directory::{Directory, RegisterNote};
use crate::wire::message::{FindHost, FoundHost, Placement};
use crate::wire::{ClusterName, EntityType, Epoch, Guid, Ownership, Status};

/// What fabric services know of a unit in a cluster that it is a guest of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestRow {
    /// Who owns it there (Fig. 3, 312).
    pub ownership: Ownership,
    /// Row epoch of that ownership.
    pub epoch: Epoch,
}

impl Entity {
    /// The clusters whose lists show it: its own and those that it is a guest of.
    pub fn clusters(&self) -> impl Iterator<Item = ClusterName> + '_ {
        std::iter::once(self.assigned).chain(self.guests.keys().copied())
    }
}

impl<C: Catalog> Directory<C> {
    /// Takes in what a unit that registers says of the clusters that it serves. Its home counts
    /// where it is by a later assignment than the one known here, and the unit is a member already:
    /// then it was moved. Its guests count as it says them.
    pub(super) fn place(
        &self,
        entity: &mut Entity,
        placement: &Placement,
        notes: &mut Vec<RegisterNote>,
    ) {
        if entity.entity != EntityType::Unit {
            return;
        }
        let theirs = (placement.assignment, placement.home);
        if entity.is_pending() {
            // An administrator's assignment shall be above it.
            entity.assignment = entity.assignment.max(placement.assignment);
            return;
        }
        if theirs > (entity.assignment, entity.assigned)
            && (placement.home == entity.assigned || self.has_room(placement.home))
            && !placement.home.is_none()
        {
            if placement.home != entity.assigned {
                notes.push(RegisterNote::Transferred {
                    from: entity.assigned,
                    to: placement.home,
                });
                entity.give_home(placement.home);
            }
            entity.assignment = placement.assignment;
        }
        let is_guest = |cluster: &&ClusterName| **cluster != entity.assigned;
        let guests = placement.guests.iter().filter(is_guest);
        let guests: Vec<ClusterName> = guests
            .filter(|cluster| entity.guests.contains_key(cluster) || self.has_room(**cluster))
            .copied()
            .collect();
        entity.guests.retain(|cluster, _| guests.contains(cluster));
        for cluster in guests {
            entity.guests.entry(cluster).or_default();
        }
    }

    /// The host of a cluster that has this name, or this GUID.
    pub(super) fn find_host(&self, request: &FindHost) -> Result<FoundHost, Status> {
        let guid: Option<Guid> = request.host.parse().ok();
        let mut hosts = self
            .members(request.cluster)
            .filter(|e| e.entity == EntityType::Host && e.assigned == request.cluster)
            .peekable();
        if hosts.peek().is_none() {
            return Err(Status::NoCluster);
        }
        let mut found = hosts.filter(|host| Some(host.guid) == guid || host.name == request.host);
        match (found.next(), found.next()) {
            (None, _) => Err(Status::NoHost),
            (Some(host), None) => Ok(FoundHost { host: host.guid }),
            (Some(_), Some(_)) => Err(Status::Ambiguous),
        }
    }
}

impl Entity {
    /// Belongs to another cluster from now on, where nobody owns it yet (unless it was a guest
    /// there); it goes on counting.
    pub(super) fn give_home(&mut self, home: ClusterName) {
        let was_guest = self.guests.remove(&home).unwrap_or_default();
        self.assigned = home;
        self.ownership = was_guest.ownership;
        self.epoch = self.epoch.max(was_guest.epoch);
    }
}
