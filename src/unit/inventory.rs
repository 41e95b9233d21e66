//! What a unit consists of: its controllers, their devices, and when each fact was last altered.
//! Knows no protocol beyond the records it lists.

use std::collections::BTreeMap;

use super::disk::DiskInfo;
use crate::wire::message::{
    ControllerRecord, ControllersReply, DeviceRecord, DevicesReply, MAX_CONTROLLERS, MAX_DEVICES,
};
use crate::wire::row::{MAX_LABEL_BYTES, MAX_MACS, MAX_NAME_BYTES, is_block_size};
use crate::wire::{Guid, Incarnation, IocNumber, IodNumber, Mac, ObservationStamp};

/// The most devices of a unit, all controllers together.
pub const MAX_UNIT_DEVICES: usize = 16_384;

/// A controller to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerSpec {
    /// What it is.
    pub guid: Guid,
    /// Its number within the unit, more than 0.
    pub ioc: IocNumber,
    /// Its name, at most [`MAX_NAME_BYTES`].
    pub name: String,
    /// Its model, at most [`MAX_LABEL_BYTES`].
    pub model: String,
}

/// A device to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSpec {
    /// What it is.
    pub guid: Guid,
    /// Its number within the controller, more than 0.
    pub iod: IodNumber,
    /// Its name, at most [`MAX_NAME_BYTES`].
    pub name: String,
    /// Its vendor, at most [`MAX_LABEL_BYTES`].
    pub vendor: String,
    /// Its model, at most [`MAX_LABEL_BYTES`].
    pub model: String,
    /// Its serial number, at most [`MAX_LABEL_BYTES`].
    pub serial: String,
    /// Facts of the medium behind it.
    pub info: DiskInfo,
}

/// Why a unit cannot consist of that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The GUID is NIL.
    #[error("the NIL GUID names nothing")]
    NilGuid,
    /// The GUID is the unit's, or a controller's, device's or extent's already.
    #[error("GUID {0} is used twice in this unit")]
    GuidTaken(Guid),
    /// The number is 0 or taken.
    #[error("number {0} is 0 or taken already")]
    NumberTaken(u16),
    /// There is no such controller.
    #[error("the unit has no controller {0}")]
    NoController(IocNumber),
    /// There is no such device.
    #[error("controller {0} has no device {1}")]
    NoDevice(IocNumber, IodNumber),
    /// A limit is reached.
    #[error("a unit has at most {0}")]
    TooMany(&'static str),
    /// A text is too long.
    #[error("a {0} is too long")]
    TooLong(&'static str),
    /// The medium's facts contradict each other.
    #[error(
        "a device has whole blocks of a power of two of bytes, not {} bytes in blocks of {}",
        .0.size_bytes, .0.block_size
    )]
    Blocks(DiskInfo),
}

/// A controller and its devices.
#[derive(Debug, Clone)]
struct Controller {
    guid: Guid,
    name: String,
    model: String,
    observed: ObservationStamp,
    listed: ObservationStamp,
    devices: BTreeMap<IodNumber, Device>,
}

/// A device.
#[derive(Debug, Clone)]
pub(super) struct Device {
    pub(super) spec: DeviceSpec,
    observed: ObservationStamp,
}

impl Device {
    pub(super) fn record(&self) -> DeviceRecord {
        let spec = &self.spec;
        DeviceRecord {
            guid: spec.guid,
            iod: spec.iod,
            name: spec.name.clone(),
            vendor: spec.vendor.clone(),
            model: spec.model.clone(),
            serial: spec.serial.clone(),
            size_bytes: spec.info.size_bytes,
            block_size: spec.info.block_size,
            features: spec.info.features,
            observed: self.observed,
        }
    }
}

/// Where a row of the unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Unit,
    Controller(IocNumber),
    Device(IocNumber, IodNumber),
}

/// The facts of the unit itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitFacts {
    /// What it is.
    pub guid: Guid,
    /// Its name, at most [`MAX_NAME_BYTES`].
    pub name: String,
    /// Its vendor, at most [`MAX_LABEL_BYTES`].
    pub vendor: String,
    /// Its model, at most [`MAX_LABEL_BYTES`].
    pub model: String,
    /// Its serial number, at most [`MAX_LABEL_BYTES`].
    pub serial: String,
    /// Its NICs, 1 to [`MAX_MACS`].
    pub macs: Vec<Mac>,
}

/// Controllers, devices and the change number.
#[derive(Debug)]
pub(super) struct Inventory {
    facts: UnitFacts,
    stamp: ObservationStamp,
    observed: ObservationStamp,
    listed: ObservationStamp,
    controllers: BTreeMap<IocNumber, Controller>,
    places: BTreeMap<Guid, Place>,
    device_count: usize,
}

fn check_texts(texts: &[(&'static str, &str, usize)]) -> Result<(), SpecError> {
    match texts.iter().find(|(_, text, max)| text.len() > *max) {
        Some((what, ..)) => Err(SpecError::TooLong(what)),
        None => Ok(()),
    }
}

fn check_device(spec: &DeviceSpec) -> Result<(), SpecError> {
    check_texts(&[
        ("name", &spec.name, MAX_NAME_BYTES),
        ("vendor", &spec.vendor, MAX_LABEL_BYTES),
        ("model", &spec.model, MAX_LABEL_BYTES),
        ("serial", &spec.serial, MAX_LABEL_BYTES),
    ])?;
    let info = spec.info;
    if is_block_size(info.block_size) && info.size_bytes.is_multiple_of(info.block_size.into()) {
        Ok(())
    } else {
        Err(SpecError::Blocks(info))
    }
}

impl Inventory {
    pub(super) fn new(facts: UnitFacts, incarnation: Incarnation) -> Self {
        let stamp = ObservationStamp {
            incarnation,
            change: 1,
        };
        Self {
            places: BTreeMap::from([(facts.guid, Place::Unit)]),
            facts,
            stamp,
            observed: stamp,
            listed: stamp,
            controllers: BTreeMap::new(),
            device_count: 0,
        }
    }

    /// The newest change.
    pub(super) const fn stamp(&self) -> ObservationStamp {
        self.stamp
    }

    pub(super) const fn facts(&self) -> &UnitFacts {
        &self.facts
    }

    fn bump(&mut self) -> ObservationStamp {
        self.stamp.change += 1;
        self.stamp
    }

    fn check_guid(&self, guid: Guid) -> Result<(), SpecError> {
        if guid.is_nil() {
            Err(SpecError::NilGuid)
        } else if self.places.contains_key(&guid) {
            Err(SpecError::GuidTaken(guid))
        } else {
            Ok(())
        }
    }

    /// Changes the unit's NICs; whether that is a change. An empty list is none.
    pub(super) fn set_macs(&mut self, mut macs: Vec<Mac>) -> bool {
        macs.truncate(MAX_MACS);
        if macs.is_empty() || macs == self.facts.macs {
            return false;
        }
        self.facts.macs = macs;
        self.observed = self.bump();
        true
    }

    pub(super) fn add_controller(&mut self, spec: ControllerSpec) -> Result<(), SpecError> {
        self.check_guid(spec.guid)?;
        check_texts(&[
            ("name", &spec.name, MAX_NAME_BYTES),
            ("model", &spec.model, MAX_LABEL_BYTES),
        ])?;
        if spec.ioc.0 == 0 || self.controllers.contains_key(&spec.ioc) {
            return Err(SpecError::NumberTaken(spec.ioc.0));
        }
        if self.controllers.len() >= MAX_CONTROLLERS {
            return Err(SpecError::TooMany("1024 controllers"));
        }
        let stamp = self.bump();
        self.listed = stamp;
        self.places.insert(spec.guid, Place::Controller(spec.ioc));
        let controller = Controller {
            guid: spec.guid,
            name: spec.name,
            model: spec.model,
            observed: stamp,
            listed: stamp,
            devices: BTreeMap::new(),
        };
        self.controllers.insert(spec.ioc, controller);
        Ok(())
    }

    /// Removes a controller with its devices.
    pub(super) fn remove_controller(&mut self, ioc: IocNumber) -> Result<(), SpecError> {
        let gone = self
            .controllers
            .remove(&ioc)
            .ok_or(SpecError::NoController(ioc))?;
        self.places.remove(&gone.guid);
        for device in gone.devices.values() {
            self.places.remove(&device.spec.guid);
        }
        self.device_count -= gone.devices.len();
        self.listed = self.bump();
        Ok(())
    }

    pub(super) fn add_device(&mut self, ioc: IocNumber, spec: DeviceSpec) -> Result<(), SpecError> {
        self.check_guid(spec.guid)?;
        check_device(&spec)?;
        let stamp = ObservationStamp {
            change: self.stamp.change + 1,
            ..self.stamp
        };
        let controller = self
            .controllers
            .get_mut(&ioc)
            .ok_or(SpecError::NoController(ioc))?;
        if spec.iod.0 == 0 || controller.devices.contains_key(&spec.iod) {
            return Err(SpecError::NumberTaken(spec.iod.0));
        }
        if controller.devices.len() >= MAX_DEVICES {
            return Err(SpecError::TooMany("3072 devices for each controller"));
        }
        if self.device_count >= MAX_UNIT_DEVICES {
            return Err(SpecError::TooMany("16384 devices"));
        }
        self.stamp = stamp;
        controller.listed = stamp;
        self.places.insert(spec.guid, Place::Device(ioc, spec.iod));
        self.device_count += 1;
        let device = Device {
            spec,
            observed: stamp,
        };
        controller.devices.insert(device.spec.iod, device);
        Ok(())
    }

    pub(super) fn remove_device(
        &mut self,
        ioc: IocNumber,
        iod: IodNumber,
    ) -> Result<(), SpecError> {
        let stamp = ObservationStamp {
            change: self.stamp.change + 1,
            ..self.stamp
        };
        let controller = self
            .controllers
            .get_mut(&ioc)
            .ok_or(SpecError::NoController(ioc))?;
        let gone = controller
            .devices
            .remove(&iod)
            .ok_or(SpecError::NoDevice(ioc, iod))?;
        self.stamp = stamp;
        controller.listed = stamp;
        self.places.remove(&gone.spec.guid);
        self.device_count -= 1;
        Ok(())
    }

    /// Gives the device of the same number and GUID other facts; whether that is a change.
    pub(super) fn alter_device(
        &mut self,
        ioc: IocNumber,
        spec: DeviceSpec,
    ) -> Result<bool, SpecError> {
        check_device(&spec)?;
        let stamp = ObservationStamp {
            change: self.stamp.change + 1,
            ..self.stamp
        };
        let device = self
            .controllers
            .get_mut(&ioc)
            .ok_or(SpecError::NoController(ioc))?
            .devices
            .get_mut(&spec.iod)
            .filter(|d| d.spec.guid == spec.guid)
            .ok_or(SpecError::NoDevice(ioc, spec.iod))?;
        if device.spec == spec {
            return Ok(false);
        }
        device.spec = spec;
        device.observed = stamp;
        self.stamp = stamp;
        Ok(true)
    }

    /// Gives the controller of the same number and GUID another name or model; whether that is a
    /// change.
    pub(super) fn alter_controller(&mut self, spec: ControllerSpec) -> Result<bool, SpecError> {
        check_texts(&[
            ("name", &spec.name, MAX_NAME_BYTES),
            ("model", &spec.model, MAX_LABEL_BYTES),
        ])?;
        let stamp = ObservationStamp {
            change: self.stamp.change + 1,
            ..self.stamp
        };
        let controller = self
            .controllers
            .get_mut(&spec.ioc)
            .filter(|c| c.guid == spec.guid)
            .ok_or(SpecError::NoController(spec.ioc))?;
        if (&controller.name, &controller.model) == (&spec.name, &spec.model) {
            return Ok(false);
        }
        controller.name = spec.name;
        controller.model = spec.model;
        controller.observed = stamp;
        self.stamp = stamp;
        Ok(true)
    }

    /// The numbers of all controllers.
    pub(super) fn controller_numbers(&self) -> Vec<IocNumber> {
        self.controllers.keys().copied().collect()
    }

    /// The number of the controller that a device is behind.
    pub(super) fn controller_of(&self, device: Guid) -> Option<IocNumber> {
        match self.place(device)? {
            Place::Device(ioc, _) => Some(ioc),
            Place::Unit | Place::Controller(_) => None,
        }
    }

    pub(super) fn has_controller(&self, ioc: IocNumber) -> bool {
        self.controllers.contains_key(&ioc)
    }

    pub(super) fn device(&self, ioc: IocNumber, iod: IodNumber) -> Option<&Device> {
        self.controllers.get(&ioc)?.devices.get(&iod)
    }

    /// Facts of the medium behind a device.
    pub(super) fn device_info(&self, device: Guid) -> Option<DiskInfo> {
        match self.places.get(&device)? {
            Place::Device(ioc, iod) => Some(self.device(*ioc, *iod)?.spec.info),
            Place::Unit | Place::Controller(_) => None,
        }
    }

    /// Where the row is, if the unit has it: itself, a controller, a device.
    pub(super) fn place(&self, row: Guid) -> Option<Place> {
        self.places.get(&row).copied()
    }

    /// Whether the row is in one cluster only: neither the unit nor a controller.
    pub(super) fn is_movable(&self, row: Guid) -> bool {
        matches!(self.place(row), Some(Place::Device(..)) | None)
    }

    /// A device went from one cluster to another: those who read a list of either must see that
    /// it is another one.
    pub(super) fn device_moved(&mut self, device: Guid) {
        let Some(Place::Device(ioc, iod)) = self.place(device) else {
            return;
        };
        let stamp = self.bump();
        (self.observed, self.listed) = (stamp, stamp);
        if let Some(controller) = self.controllers.get_mut(&ioc) {
            (controller.observed, controller.listed) = (stamp, stamp);
            if let Some(device) = controller.devices.get_mut(&iod) {
                device.observed = stamp;
            }
        }
    }

    /// All of it went from one cluster to another.
    pub(super) fn unit_moved(&mut self) {
        let stamp = self.bump();
        (self.observed, self.listed) = (stamp, stamp);
        for controller in self.controllers.values_mut() {
            (controller.observed, controller.listed) = (stamp, stamp);
            for device in controller.devices.values_mut() {
                device.observed = stamp;
            }
        }
    }

    /// The row one level up, where there is one.
    pub(super) fn parent(&self, row: Guid) -> Option<Guid> {
        match self.places.get(&row)? {
            Place::Unit => None,
            Place::Controller(_) => Some(self.facts.guid),
            Place::Device(ioc, _) => Some(self.controllers.get(ioc)?.guid),
        }
    }

    /// The rows one level down.
    pub(super) fn children(&self, row: Guid) -> Vec<Guid> {
        match self.places.get(&row) {
            Some(Place::Unit) => self.controllers.values().map(|c| c.guid).collect(),
            Some(Place::Controller(ioc)) => self
                .controllers
                .get(ioc)
                .into_iter()
                .flat_map(|c| c.devices.values().map(|d| d.spec.guid))
                .collect(),
            Some(Place::Device(..)) | None => Vec::new(),
        }
    }

    /// Block 520's first answer.
    pub(super) fn controllers(&self) -> ControllersReply {
        let facts = &self.facts;
        let controllers = self
            .controllers
            .iter()
            .map(|(ioc, c)| ControllerRecord {
                guid: c.guid,
                ioc: *ioc,
                name: c.name.clone(),
                model: c.model.clone(),
                observed: c.observed,
            })
            .collect();
        ControllersReply {
            unit: facts.guid,
            name: facts.name.clone(),
            vendor: facts.vendor.clone(),
            model: facts.model.clone(),
            serial: facts.serial.clone(),
            macs: facts.macs.clone(),
            observed: self.observed,
            listed: self.listed,
            controllers,
        }
    }

    /// Block 520's second answer.
    pub(super) fn devices(&self, ioc: IocNumber) -> Option<DevicesReply> {
        let controller = self.controllers.get(&ioc)?;
        Some(DevicesReply {
            controller: controller.guid,
            listed: controller.listed,
            devices: controller.devices.values().map(Device::record).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Wire;

    fn inventory() -> Inventory {
        let facts = UnitFacts {
            guid: Guid(1),
            name: "u".into(),
            vendor: String::new(),
            model: String::new(),
            serial: String::new(),
            macs: vec![Mac([2, 0, 0, 0, 0, 1])],
        };
        Inventory::new(facts, Incarnation(3))
    }

    fn controller(ioc: u16) -> ControllerSpec {
        ControllerSpec {
            guid: Guid(100 + u128::from(ioc)),
            ioc: IocNumber(ioc),
            name: format!("c{ioc}"),
            model: "m".into(),
        }
    }

    fn device(guid: u128, iod: u16) -> DeviceSpec {
        DeviceSpec {
            guid: Guid(guid),
            iod: IodNumber(iod),
            name: format!("d{iod}"),
            vendor: "v".into(),
            model: "m".into(),
            serial: "s".into(),
            info: DiskInfo {
                size_bytes: 4096,
                block_size: 512,
                features: 0,
            },
        }
    }

    #[test]
    fn every_change_has_its_own_stamp_and_lists_say_when_they_changed() {
        let mut inventory = inventory();
        inventory.add_controller(controller(1)).unwrap();
        inventory.add_controller(controller(2)).unwrap();
        inventory.add_device(IocNumber(1), device(1000, 1)).unwrap();
        let before = inventory.devices(IocNumber(1)).unwrap();
        inventory.add_device(IocNumber(2), device(2000, 1)).unwrap();
        assert_eq!(inventory.devices(IocNumber(1)).unwrap(), before);
        let second = inventory.devices(IocNumber(2)).unwrap();
        assert!(second.listed > before.listed);
        assert_eq!(second.listed, inventory.stamp());
        let mut larger = device(1000, 1);
        larger.info.size_bytes = 8192;
        assert!(
            inventory
                .alter_device(IocNumber(1), larger.clone())
                .unwrap()
        );
        assert!(!inventory.alter_device(IocNumber(1), larger).unwrap());
        let after = inventory.devices(IocNumber(1)).unwrap();
        assert_eq!(after.listed, before.listed);
        assert!(after.devices[0].observed > before.devices[0].observed);
        inventory.remove_device(IocNumber(1), IodNumber(1)).unwrap();
        let emptied = inventory.devices(IocNumber(1)).unwrap();
        assert!(emptied.listed > after.listed && emptied.devices.is_empty());
        inventory.remove_controller(IocNumber(2)).unwrap();
        let all = inventory.controllers();
        assert_eq!(all.listed, inventory.stamp());
        assert_eq!(all.controllers.len(), 1);
        assert_eq!(inventory.place(Guid(2000)), None);
        assert_eq!(inventory.place(Guid(102)), None);
        assert_eq!(ControllersReply::from_body(&all.to_body()), Ok(all));
    }

    #[test]
    fn the_family_is_known_in_both_directions() {
        let mut inventory = inventory();
        inventory.add_controller(controller(1)).unwrap();
        inventory.add_device(IocNumber(1), device(1000, 1)).unwrap();
        assert_eq!(inventory.parent(Guid(1000)), Some(Guid(101)));
        assert_eq!(inventory.parent(Guid(101)), Some(Guid(1)));
        assert_eq!(inventory.parent(Guid(1)), None);
        assert_eq!(inventory.children(Guid(1)), [Guid(101)]);
        assert_eq!(inventory.children(Guid(101)), [Guid(1000)]);
        assert!(inventory.children(Guid(1000)).is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused_and_changes_nothing() {
        let mut inventory = inventory();
        inventory.add_controller(controller(1)).unwrap();
        inventory.add_device(IocNumber(1), device(1000, 1)).unwrap();
        let stamp = inventory.stamp();
        let one = IocNumber(1);
        let mut odd = device(3, 3);
        odd.info.size_bytes = 1000;
        let mut long = device(3, 3);
        long.serial = "x".repeat(64);
        for (outcome, expected) in [
            (
                inventory.add_controller(controller(1)),
                SpecError::GuidTaken(Guid(101)),
            ),
            (
                inventory.add_controller(controller(0)),
                SpecError::NumberTaken(0),
            ),
            (
                inventory.add_device(one, device(1, 2)),
                SpecError::GuidTaken(Guid(1)),
            ),
            (inventory.add_device(one, device(0, 2)), SpecError::NilGuid),
            (
                inventory.add_device(one, device(3, 1)),
                SpecError::NumberTaken(1),
            ),
            (
                inventory.add_device(one, device(3, 0)),
                SpecError::NumberTaken(0),
            ),
            (
                inventory.add_device(IocNumber(9), device(3, 1)),
                SpecError::NoController(IocNumber(9)),
            ),
            (
                inventory.remove_device(one, IodNumber(9)),
                SpecError::NoDevice(one, IodNumber(9)),
            ),
            (
                inventory.alter_device(one, device(7, 1)).map(drop),
                SpecError::NoDevice(one, IodNumber(1)),
            ),
            (
                inventory.add_device(one, long),
                SpecError::TooLong("serial"),
            ),
            (
                inventory.add_device(one, odd.clone()),
                SpecError::Blocks(odd.info),
            ),
        ] {
            assert_eq!(outcome, Err(expected));
        }
        assert_eq!(inventory.stamp(), stamp);
    }

    #[test]
    fn lists_are_bounded() {
        let mut inventory = inventory();
        for ioc in 1..=6 {
            inventory.add_controller(controller(ioc)).unwrap();
        }
        let mut added = 0_u32;
        let mut refused = Vec::new();
        for ioc in 1..=6 {
            for iod in 1..=MAX_DEVICES as u16 + 1 {
                let spec = device(u128::from(ioc) << 32 | u128::from(iod) << 16, iod);
                match inventory.add_device(IocNumber(ioc), spec) {
                    Ok(()) => added += 1,
                    Err(e) => refused.push(e),
                }
            }
        }
        assert_eq!(added as usize, MAX_UNIT_DEVICES);
        assert_eq!(
            refused[0],
            SpecError::TooMany("3072 devices for each controller")
        );
        assert_eq!(refused.last(), Some(&SpecError::TooMany("16384 devices")));
        let full = inventory.devices(IocNumber(1)).unwrap();
        assert!(full.to_body().len() <= crate::wire::MAX_MESSAGE_BYTES);
    }
}
