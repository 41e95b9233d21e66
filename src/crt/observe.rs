//! What is seen on the wire becomes rows: members, controllers, devices, ownership registers.
//!
//! Every method returns the GUIDs of the rows that changed, ascending, and leaves the table's stamp
//! alone ([`Table::publish`] it once all is in). Nothing here touches ownership, except
//! [`Table::observe_registers`], which touches nothing else but extents. Silence removes nothing (I6): a row
//! becomes invalid only by its own parent's list, or by [`Table::retire`].

use std::collections::BTreeSet;

use super::Table;
use super::join::{newer_facts, observation_order, ownership_order};
use crate::planted::{self, Bug};
use crate::wire::message::{
    ControllerRecord, ControllersReply, DeviceRecord, DevicesReply, ExtentFacts, Member,
    OwnershipRegister,
};
use crate::wire::row::is_block_size;
use crate::wire::{
    EntityType, Guid, Incarnation, IocNumber, IodNumber, ObservationStamp, Ownership,
    OwnershipStamp, Row, RowState,
};

impl Table {
    /// Takes in hosts and units of this cluster as fabric services list them. Members that are
    /// missing from the list stay as they are.
    ///
    /// A host's facts are its registration's. A unit speaks for itself: fabric services' word
    /// holds only until the unit's own list of the same incarnation is in. A member that had been
    /// retired is valid again; a guest only when it lists something. Ownership in the list is ignored: the unit's registers have it.
    pub fn observe_members(&mut self, members: &[Member]) -> Vec<Guid> {
        let mut changed = BTreeSet::new();
        for member in members {
            if !matches!(member.entity, EntityType::Host | EntityType::Unit) {
                continue;
            }
            let known = self.get(member.guid);
            if known.is_some_and(|row| row.entity != member.entity) {
                continue;
            }
            let mut row = known.map_or_else(|| Row::new(member.guid, member.entity), Row::clone);
            row.name.clone_from(&member.name);
            row.macs.clone_from(&member.macs);
            if row.is_valid() {
                row.observed = member.observed;
                if member.entity == EntityType::Unit {
                    row.observed.change = 0;
                }
            } else if !member.guest {
                row.state = RowState::Valid;
                row.observed = next(row.observed).max(member.observed);
            } else if known.is_some_and(|known| known.macs != row.macs) {
                row.observed = next(row.observed);
            }
            self.observe(row, &mut changed);
        }
        changed.into_iter().collect()
    }

    /// Makes a row invalid on an administrator's word (or because a unit says itself that it now
    /// belongs to another cluster). It stays until something newer is heard of it.
    pub fn retire(&mut self, guid: Guid) -> Vec<Guid> {
        let mut changed = BTreeSet::new();
        if let Some(row) = self.get(guid).filter(|row| row.is_valid()) {
            let mut row = row.clone();
            row.state = RowState::Invalid;
            row.observed = next(row.observed);
            self.store(row, &mut changed);
        }
        changed.into_iter().collect()
    }

    /// Takes in a unit's own facts and its controllers (Fig. 5, block 520). The caller has made
    /// sure that the list comes from that unit. New controllers are unallocated; controllers of
    /// the unit that the list lacks become invalid; controllers of another present unit are not
    /// its to list.
    pub fn observe_controllers(&mut self, reply: &ControllersReply) -> Vec<Guid> {
        let mut changed = BTreeSet::new();
        let known = self.get(reply.unit);
        if known.is_some_and(|row| row.entity != EntityType::Unit) {
            return Vec::new();
        }
        let mut row = known.map_or_else(|| Row::new(reply.unit, EntityType::Unit), Row::clone);
        row.state = RowState::Valid;
        row.name.clone_from(&reply.name);
        row.vendor.clone_from(&reply.vendor);
        row.model.clone_from(&reply.model);
        row.serial.clone_from(&reply.serial);
        row.macs.clone_from(&reply.macs);
        row.observed = reply.observed;
        self.observe(row, &mut changed);

        let listed: BTreeSet<_> = reply.controllers.iter().map(|c| c.guid).collect();
        for record in &reply.controllers {
            if self.may_list(reply.unit, record.guid, EntityType::Controller) {
                self.observe_controller(reply.unit, record, &mut changed);
            }
        }
        self.unlist(reply.unit, reply.listed, &listed, &mut changed);
        changed.into_iter().collect()
    }

    fn observe_controller(
        &mut self,
        unit: Guid,
        record: &ControllerRecord,
        changed: &mut BTreeSet<Guid>,
    ) {
        let mut row = self
            .get(record.guid)
            .map_or_else(|| Row::new(record.guid, EntityType::Controller), Row::clone);
        row.state = RowState::Valid;
        row.parent = unit;
        row.ioc = record.ioc;
        row.iod = IodNumber(0);
        row.name.clone_from(&record.name);
        row.model.clone_from(&record.model);
        row.observed = record.observed;
        self.observe(row, changed);
    }

    /// Takes in the devices of a controller of `unit` (Fig. 5, block 520). The caller has made
    /// sure that the list comes from that unit. New devices are unallocated; devices of the
    /// controller that the list lacks become invalid. A controller that the unit has not listed is
    /// not heard.
    pub fn observe_devices(&mut self, unit: Guid, reply: &DevicesReply) -> Vec<Guid> {
        let mut changed = BTreeSet::new();
        let Some(controller) = self.get(reply.controller) else {
            return Vec::new();
        };
        if controller.entity != EntityType::Controller || controller.parent != unit {
            return Vec::new();
        }
        let ioc = controller.ioc;
        let listed: BTreeSet<_> = reply.devices.iter().map(|d| d.guid).collect();
        for record in &reply.devices {
            if self.may_list(unit, record.guid, EntityType::Device) {
                self.observe_device(reply.controller, ioc, record, &mut changed);
            }
        }
        self.unlist(reply.controller, reply.listed, &listed, &mut changed);
        changed.into_iter().collect()
    }

    fn observe_device(
        &mut self,
        controller: Guid,
        ioc: IocNumber,
        record: &DeviceRecord,
        changed: &mut BTreeSet<Guid>,
    ) {
        let mut row = self
            .get(record.guid)
            .map_or_else(|| Row::new(record.guid, EntityType::Device), Row::clone);
        row.state = RowState::Valid;
        row.parent = controller;
        row.ioc = ioc;
        row.iod = record.iod;
        row.name.clone_from(&record.name);
        row.vendor.clone_from(&record.vendor);
        row.model.clone_from(&record.model);
        row.serial.clone_from(&record.serial);
        row.size_bytes = record.size_bytes;
        row.block_size = Some(record.block_size)
            .filter(|bytes| is_block_size(*bytes))
            .unwrap_or(0);
        row.features = record.features;
        row.observed = record.observed;
        if planted::is(Bug::DiscoveryOutranksAllocation) {
            row.ownership = Ownership::Unallocated;
            row.owned = OwnershipStamp::default();
        }
        self.observe(row, changed);
    }

    /// Takes in ownership registers of a unit: for every row of that unit the larger ownership
    /// stamp holds. Registers of rows that the table does not have (yet) are ignored: apply the
    /// unit's lists first. Extents of devices that are in the table come and go with their
    /// registers.
    pub fn observe_registers(&mut self, unit: Guid, registers: &[OwnershipRegister]) -> Vec<Guid> {
        let mut changed = BTreeSet::new();
        for register in registers {
            if let Some(facts) = &register.extent {
                self.observe_extent(unit, register, facts, &mut changed);
                continue;
            }
            if self.unit_of(register.row) != Some(unit) {
                continue;
            }
            let Some(row) = self.get(register.row) else {
                continue;
            };
            let newer = (register.owned, &register.ownership) > (row.owned, &row.ownership);
            if newer || (planted::is(Bug::OlderRegisterTaken) && register.owned != row.owned) {
                let row = Row {
                    ownership: register.ownership.clone(),
                    owned: register.owned,
                    ..row.clone()
                };
                self.store(row, &mut changed);
            }
        }
        changed.into_iter().collect()
    }

    /// Takes in the register of an extent. Its epoch is the stamp of what it says of the extent.
    /// A tombstone of which nothing is known here is left out.
    fn observe_extent(
        &mut self,
        unit: Guid,
        register: &OwnershipRegister,
        facts: &ExtentFacts,
        changed: &mut BTreeSet<Guid>,
    ) {
        let is_device = self
            .get(facts.device)
            .is_some_and(|row| row.entity == EntityType::Device);
        let known = self.get(register.row);
        if !is_device
            || self.unit_of(facts.device) != Some(unit)
            || (known.is_none() && !facts.present)
            || !self.may_list(unit, register.row, EntityType::Extent)
        {
            return;
        }
        let seen = Row {
            state: if facts.present {
                RowState::Valid
            } else {
                RowState::Invalid
            },
            parent: facts.device,
            extent: Some(facts.range),
            name: facts.name.clone(),
            observed: ObservationStamp {
                incarnation: Incarnation(register.owned.epoch.0),
                change: 0,
            },
            ownership: register.ownership.clone(),
            owned: register.owned,
            ..Row::new(register.row, EntityType::Extent)
        };
        let newer = match known {
            None => Some(seen),
            Some(known) => {
                let observed = observation_order(known, &seen);
                let owned = ownership_order(known, &seen);
                newer_facts(known, seen, observed, owned)
            }
        };
        if let Some(row) = newer {
            self.store(row, changed);
        }
    }

    /// Whether `unit` may say something about `guid`: not where that is something else, or
    /// belongs to another unit that is present.
    fn may_list(&self, unit: Guid, guid: Guid, entity: EntityType) -> bool {
        let Some(row) = self.get(guid) else {
            return true;
        };
        row.entity == entity
            && (!self.is_present(guid) || self.unit_of(guid).is_none_or(|of| of == unit))
    }

    /// The children of `parent` that its list, altered last at `stamp`, lacks were gone by then.
    fn unlist(
        &mut self,
        parent: Guid,
        stamp: ObservationStamp,
        listed: &BTreeSet<Guid>,
        changed: &mut BTreeSet<Guid>,
    ) {
        let gone: Vec<_> = self
            .children(parent)
            .filter(|row| row.is_valid() && row.observed < stamp && !listed.contains(&row.guid))
            .filter(|row| row.entity != EntityType::Extent)
            .map(|row| Row {
                state: RowState::Invalid,
                observed: stamp,
                ..row.clone()
            })
            .collect();
        for row in gone {
            self.store(row, changed);
        }
    }

    /// Stores an observation where it is newer than what is known.
    fn observe(&mut self, row: Row, changed: &mut BTreeSet<Guid>) {
        let newer = self
            .get(row.guid)
            .is_none_or(|known| observation_order(known, &row).is_lt());
        if newer {
            self.store(row, changed);
        }
    }
}

/// The stamp right above: something was said about an entity by another than itself.
fn next(stamp: ObservationStamp) -> ObservationStamp {
    ObservationStamp {
        incarnation: stamp.incarnation,
        change: stamp.change.saturating_add(1),
    }
}
