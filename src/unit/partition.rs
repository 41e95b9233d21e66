//! The clusters that a unit serves, each with ownership registers of its own: its home, and the
//! guests, to which devices of it were moved. Pure.
//!
//! What always holds:
//! - a device is in the one cluster in which its register has the largest epoch, with everything
//!   below it; one that was never moved is in the home cluster;
//! - where it was before, its register is unallocated, one epoch above its last owner's; where it
//!   came to it goes on above that. So an epoch of a device is its owner's in one cluster only;
//! - the unit and its controllers have registers in every cluster: the hierarchy holds in each.

use std::collections::{BTreeMap, BTreeSet};

use super::disk::DiskInfo;
use super::inventory::{Inventory, Place};
use super::registers::Registers;
use crate::crt::{RegistersChange, StoredRegisters};
use crate::wire::message::{ControllersReply, DevicesReply, OwnershipRegister};
use crate::wire::{ClusterName, Epoch, Guid, IocNumber, ObservationStamp};

/// The registers of every cluster.
#[derive(Debug)]
pub(super) struct Partitions {
    home: ClusterName,
    own: Registers,
    guests: BTreeMap<ClusterName, Registers>,
}

impl Partitions {
    /// What was stored; `home` is the cluster served where that says none.
    pub(super) fn new(stored: StoredRegisters, home: ClusterName) -> Self {
        let mut guests: BTreeMap<ClusterName, Vec<OwnershipRegister>> = BTreeMap::new();
        for (cluster, register) in stored.guests {
            guests.entry(cluster).or_default().push(register);
        }
        Self {
            home,
            own: Registers::new(stored.registers, stored.term),
            guests: guests
                .into_iter()
                .map(|(cluster, registers)| (cluster, Registers::new(registers, 0)))
                .collect(),
        }
    }

    /// The cluster that the unit belongs to.
    pub(super) const fn home(&self) -> ClusterName {
        self.home
    }

    /// The unit belongs to another cluster, and its registers stay as they are.
    pub(super) const fn set_home(&mut self, home: ClusterName) {
        self.home = home;
    }

    /// The home cluster's registers.
    pub(super) const fn own(&self) -> &Registers {
        &self.own
    }

    /// The other clusters that there are registers of.
    pub(super) fn guests(&self) -> impl Iterator<Item = (ClusterName, &Registers)> {
        self.guests.iter().map(|(cluster, of)| (*cluster, of))
    }

    /// Whether the row is an extent in some cluster, or was one.
    pub(super) fn is_extent(&self, row: Guid) -> bool {
        let guests = self.guests.values();
        guests.chain([&self.own]).any(|of| of.is_extent(row))
    }

    /// Whether there are registers of any cluster but the home.
    pub(super) fn has_guests(&self) -> bool {
        !self.guests.is_empty()
    }

    /// The registers of a cluster.
    pub(super) fn of(&self, cluster: ClusterName) -> Option<&Registers> {
        if cluster == self.home {
            Some(&self.own)
        } else {
            self.guests.get(&cluster)
        }
    }

    /// The cluster that a row, not the unit nor a controller, is in.
    pub(super) fn cluster_of(&self, row: Guid) -> ClusterName {
        let epoch = |registers: &Registers| registers.owners(row).1;
        let mut found = (self.home, epoch(&self.own));
        for (cluster, registers) in &self.guests {
            if epoch(registers) > found.1 {
                found = (*cluster, epoch(registers));
            }
        }
        found.0
    }

    /// The guests that something of the unit is in, whether it is there at the moment or not.
    pub(super) fn populated(&self, inventory: &Inventory) -> BTreeSet<ClusterName> {
        let holds = |cluster: ClusterName, registers: &Registers| {
            registers
                .rows()
                .any(|row| inventory.is_movable(row) && self.cluster_of(row) == cluster)
        };
        self.guests()
            .filter(|(cluster, registers)| holds(*cluster, registers))
            .map(|(cluster, _)| cluster)
            .collect()
    }

    /// Installs what is durable now.
    pub(super) fn apply(&mut self, change: &RegistersChange) {
        self.own.remove(&change.home_gone);
        self.guests
            .retain(|cluster, _| !change.guests_gone.contains(cluster));
        self.own.install(change.registers.clone(), change.term);
        for (cluster, register) in &change.guests {
            let guest = self
                .guests
                .entry(*cluster)
                .or_insert_with(|| Registers::new(Vec::new(), 0));
            guest.install(vec![register.clone()], register.owned.term);
        }
        self.home = change.home;
    }

    /// What of the unit is in a cluster.
    pub(super) const fn listing<'a>(
        &'a self,
        inventory: &'a Inventory,
        cluster: ClusterName,
    ) -> Listing<'a> {
        Listing {
            inventory,
            partitions: self,
            cluster,
            with_hidden: false,
        }
    }
}

/// What of a unit is in one cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listing<'a> {
    inventory: &'a Inventory,
    partitions: &'a Partitions,
    cluster: ClusterName,
    /// Also controllers that hold nothing of the cluster at the moment.
    with_hidden: bool,
}

impl Listing<'_> {
    /// The same, and controllers that hold nothing of the cluster at the moment: nobody there sees
    /// them, but their registers are to fit as well.
    pub(super) const fn with_hidden(self) -> Self {
        Self {
            with_hidden: true,
            ..self
        }
    }

    /// Whether all that the unit has is in it.
    fn is_everything(&self) -> bool {
        self.cluster == self.partitions.home && !self.partitions.has_guests()
    }

    /// The unit itself.
    pub(super) const fn unit(&self) -> Guid {
        self.inventory.facts().guid
    }

    /// The newest change of the unit.
    pub(super) const fn stamp(&self) -> ObservationStamp {
        self.inventory.stamp()
    }

    /// Whether the row is in it: the unit; at home every controller, elsewhere those that hold
    /// something; devices.
    pub(super) fn has_row(&self, row: Guid) -> bool {
        match self.inventory.place(row) {
            None => false,
            Some(_) if self.is_everything() => true,
            Some(Place::Unit) => true,
            Some(Place::Device(..)) => self.partitions.cluster_of(row) == self.cluster,
            Some(Place::Controller(_)) => {
                self.with_hidden
                    || self.cluster == self.partitions.home
                    || self
                        .inventory
                        .children(row)
                        .into_iter()
                        .any(|device| self.partitions.cluster_of(device) == self.cluster)
            }
        }
    }

    /// Whether the row is something in the unit, or is known in another cluster: a new extent may
    /// not be called so.
    pub(super) fn is_taken(&self, row: Guid) -> bool {
        let partitions = self.partitions;
        let all = std::iter::once((partitions.home, &partitions.own)).chain(partitions.guests());
        self.inventory.place(row).is_some()
            || all
                .filter(|(cluster, _)| *cluster != self.cluster)
                .any(|(_, registers)| registers.is_known(row))
    }

    /// The row one level up, where there is one.
    pub(super) fn parent(&self, row: Guid) -> Option<Guid> {
        let parent = self.inventory.parent(row)?;
        self.has_row(row).then_some(parent)
    }

    /// The rows one level down.
    pub(super) fn children(&self, row: Guid) -> Vec<Guid> {
        let mut children = self.inventory.children(row);
        if !self.is_everything() {
            children.retain(|child| self.has_row(*child));
        }
        children
    }

    /// Facts of the medium behind a device.
    pub(super) fn device_info(&self, device: Guid) -> Option<DiskInfo> {
        let info = self.inventory.device_info(device)?;
        self.has_row(device).then_some(info)
    }

    /// Block 520's first answer.
    pub(super) fn controllers(&self) -> ControllersReply {
        let mut reply = self.inventory.controllers();
        if self.cluster != self.partitions.home {
            reply.controllers.retain(|c| self.has_row(c.guid));
        }
        reply
    }

    /// Block 520's second answer.
    pub(super) fn devices(&self, ioc: IocNumber) -> Option<DevicesReply> {
        let mut reply = self.inventory.devices(ioc)?;
        if !self.is_everything() {
            if !self.has_row(reply.controller) {
                return None;
            }
            reply.devices.retain(|d| self.has_row(d.guid));
        }
        Some(reply)
    }
}

/// A row's register as it is left behind when the row goes to another cluster.
pub(super) fn left_behind(
    register: &OwnershipRegister,
    term: u64,
    writer: Guid,
) -> OwnershipRegister {
    let mut left = register.clone();
    left.ownership = crate::wire::Ownership::Unallocated;
    left.owned = crate::wire::OwnershipStamp {
        epoch: Epoch(register.owned.epoch.0.saturating_add(1)),
        term,
        writer,
    };
    if let Some(facts) = &mut left.extent {
        facts.present = false;
    }
    left
}
