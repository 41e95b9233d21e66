//! What administrators do.

use std::time::Duration;

use rma::rma::desired::{Desired, DesiredDevice, DesiredRow, Word};
use rma::rma::request::AdminRequest;
use rma::wire::Guid;

use super::Story;
use crate::world::NodeId;

impl Story {
    fn target(&mut self) -> Option<String> {
        let unit = self.any(&self.units.clone())?;
        let contents = &self.world.unit(unit).contents;
        let mut names: Vec<String> = contents.devices.values().map(|d| d.name.clone()).collect();
        names.extend(contents.controllers.values().map(|c| c.name.clone()));
        names.extend(self.extents.iter().cloned());
        // The unit itself as often as any of its controllers.
        names.push(format!("u{}", self.units.iter().position(|u| *u == unit)?));
        self.rng.choice(names)
    }

    /// Some hosts, mostly those to which units were opened up.
    fn some_hosts(&mut self) -> Vec<String> {
        let among = if self.rng.u8(0..4) == 0 {
            self.hosts.len()
        } else {
            self.hosts.len().min(8)
        };
        let mut hosts: Vec<String> = (0..among).map(|n| format!("h{n}")).collect();
        self.rng.shuffle(&mut hosts);
        hosts
    }

    pub(super) fn allocate(&mut self) {
        let (Some(host), Some(mut target)) = (self.administrator(), self.target()) else {
            return;
        };
        let mut hosts = self.some_hosts();
        let mut count = self.rng.usize(1..=hosts.len().min(3));
        if self.rng.u8(0..3) == 0 {
            // Opens a unit or controller to many, so that what is below can be allocated.
            target = self.opener().unwrap_or(target);
            count = hosts.len().min(16);
        }
        hosts.truncate(count);
        let shared = self.rng.bool();
        let recursive = self.rng.bool();
        self.note(format!(
            "{} allocates {target} to {hosts:?}",
            self.name(host)
        ));
        self.world.ask(
            host,
            AdminRequest::Allocate {
                target,
                hosts,
                shared,
                recursive,
            },
        );
    }

    /// Something of `unit` is allocated from one of `hosts`.
    fn allocate_at(&mut self, unit: NodeId, among: &[NodeId]) {
        let contents = &self.world.unit(unit).contents;
        let names: Vec<String> = contents.devices.values().map(|d| d.name.clone()).collect();
        let (Some(host), Some(target)) = (self.any(among), self.rng.choice(names)) else {
            return;
        };
        let hosts: Vec<String> = self.some_hosts().into_iter().take(1).collect();
        let name = self.name(host);
        self.note(format!("{name} allocates {target} to {hosts:?}"));
        self.world.ask(
            host,
            AdminRequest::Allocate {
                target,
                hosts,
                shared: false,
                recursive: false,
            },
        );
    }

    /// Several administrators want the same at the same time.
    pub(super) fn contend(&mut self) {
        let Some(target) = self.target() else { return };
        for _ in 0..self.rng.usize(2..5) {
            let Some(host) = self.administrator() else {
                return;
            };
            let hosts = self.some_hosts().into_iter().take(1).collect();
            self.note(format!("{} wants {target} for {hosts:?}", self.name(host)));
            let target = target.clone();
            let request = if self.rng.u8(0..4) == 0 {
                AdminRequest::Release {
                    target,
                    recursive: true,
                }
            } else {
                AdminRequest::Allocate {
                    target,
                    hosts,
                    shared: false,
                    recursive: true,
                }
            };
            self.world.ask(host, request);
        }
    }

    fn opener(&mut self) -> Option<String> {
        let n = self.rng.usize(0..self.units.len().max(1));
        let contents = &self.world.unit(*self.units.get(n)?).contents;
        let mut names = vec![format!("u{n}"), format!("u{n}")];
        names.extend(contents.controllers.values().map(|c| c.name.clone()));
        self.rng.choice(names)
    }

    pub(super) fn release(&mut self) {
        let (Some(host), Some(target)) = (self.administrator(), self.target()) else {
            return;
        };
        let recursive = self.rng.bool();
        self.note(format!("{} releases {target}", self.name(host)));
        self.world
            .ask(host, AdminRequest::Release { target, recursive });
    }

    pub(super) fn granularity(&mut self) {
        if let Some(host) = self.administrator() {
            let names = ["unit", "controller", "device", "extent", "extent"];
            let granularity = names[self.rng.usize(0..names.len())].to_owned();
            self.note(format!("granularity {granularity}"));
            self.world
                .ask(host, AdminRequest::GranularitySet { granularity });
        }
    }

    /// Somebody carves an extent out of a device, perhaps where there is one already.
    pub(super) fn carve(&mut self) {
        let (Some(host), Some(unit)) = (self.administrator(), self.any(&self.units.clone())) else {
            return;
        };
        let contents = &self.world.unit(unit).contents;
        let names: Vec<String> = contents.devices.values().map(|d| d.name.clone()).collect();
        let Some(device) = self.rng.choice(names) else {
            return;
        };
        let name = format!("{device}x{}", self.rng.u8(0..3));
        self.note(format!("{} carves {name}", self.name(host)));
        let (offset, size) = (512 * self.rng.u64(0..16), 512 * self.rng.u64(4..16));
        if !self.extents.contains(&name) {
            self.extents.push(name.clone());
        }
        self.world.ask(
            host,
            AdminRequest::Carve {
                device,
                offset,
                size,
                name,
            },
        );
    }

    pub(super) fn uncarve(&mut self) {
        let (Some(host), Some(extent)) = (
            self.administrator(),
            self.rng.choice(&self.extents).cloned(),
        ) else {
            return;
        };
        self.note(format!("{} removes {extent}", self.name(host)));
        self.world.ask(host, AdminRequest::Uncarve { extent });
    }

    /// Somebody keeps the lease for a series of changes.
    pub(super) fn acquire(&mut self) {
        let force = self.rng.u8(0..4) == 0;
        if let Some(host) = self.administrator() {
            self.note(format!(
                "{} keeps the lease, force: {force}",
                self.name(host)
            ));
            self.world.ask(host, AdminRequest::LockAcquire { force });
        }
    }

    /// Somebody hands the lease back, or takes it from whoever has it.
    pub(super) fn hand_back(&mut self) {
        let force = self.rng.u8(0..6) == 0;
        if let Some(host) = self.administrator() {
            let name = self.name(host);
            self.note(format!("{name} hands the lease back, force: {force}"));
            self.world.ask(host, AdminRequest::LockRelease { force });
            self.world.ask(host, AdminRequest::LockStatus);
        }
    }

    /// Somebody says that what was taken out is not coming back.
    pub(super) fn forget(&mut self) {
        let mut gone: Vec<Guid> = self.shelf.iter().map(|(_, _, spec)| spec.guid).collect();
        for (_, controller, devices) in &self.pulled {
            gone.push(controller.guid);
            gone.extend(devices.iter().map(|d| d.guid));
        }
        let target = self.rng.choice(gone);
        if let (Some(host), Some(target)) = (self.administrator(), target) {
            self.note(format!("{} forgets {target}", self.name(host)));
            let target = target.to_string();
            self.world.ask(host, AdminRequest::Forget { target });
        }
    }

    /// Somebody gives a unit its lost registers back.
    pub(super) fn restore(&mut self) {
        let lost = self.lost_units();
        let force = self.rng.u8(0..8) == 0;
        if let (Some(host), Some(unit)) = (self.administrator(), self.any(&lost)) {
            self.ask_restore(host, unit, force);
        }
    }

    /// A host is away while others change what a unit has. The unit loses its registers, and that host is
    /// the first, and for a while the only one, that it meets again.
    pub(super) fn restore_old(&mut self) {
        let running = self.running(&self.hosts);
        let units = self.running(&self.units);
        let (Some(host), Some(unit)) = (self.any(&running), self.any(&units)) else {
            return;
        };
        self.note(format!("{} misses what others do", self.name(host)));
        let everyone = self.everyone();
        for other in everyone.iter().filter(|other| **other != self.fabric) {
            self.world.part(host, *other);
        }
        let others: Vec<NodeId> = running.into_iter().filter(|id| *id != host).collect();
        for _ in 0..self.rng.usize(1..6) {
            self.allocate_at(unit, &others);
            let time = self.rng.u64(1..300);
            self.world.run_for(Duration::from_millis(time));
        }
        self.note(format!(
            "{} loses its registers and meets {} alone",
            self.name(unit),
            self.name(host)
        ));
        self.world.crash(unit);
        self.world.forget_registers(unit);
        self.world.start(unit);
        self.world.network.mend();
        for other in everyone.iter().filter(|other| **other != self.fabric) {
            if ![host, unit].contains(other) {
                self.world.part(host, *other);
                self.world.part(unit, *other);
            }
        }
        for _ in 0..self.rng.usize(1..8) {
            let time = self.rng.u64(1..400);
            self.world.run_for(Duration::from_millis(time));
            if !self.world.is_running(host) || !self.lost_units().contains(&unit) {
                break;
            }
            self.ask_restore(host, unit, false);
        }
    }

    /// The running units that have lost their registers.
    pub(super) fn lost_units(&self) -> Vec<NodeId> {
        let units = self.units.iter().copied();
        let lost =
            |id: &NodeId| self.world.is_running(*id) && self.world.unit(*id).stored.is_none();
        units.filter(lost).collect()
    }

    pub(super) fn ask_restore(&mut self, host: NodeId, unit: NodeId, force: bool) {
        if force {
            let guid = self.world.unit(unit).facts.guid;
            self.world.model.insisted.insert(guid);
        }
        let unit = self.name(unit);
        let name = self.name(host);
        self.note(format!("{name} restores {unit}, force: {force}"));
        self.world
            .ask(host, AdminRequest::RestoreUnit { unit, force });
    }

    /// Somebody makes many changes with one file.
    pub(super) fn apply(&mut self) {
        let Some(host) = self.administrator() else {
            return;
        };
        let mut desired = Desired::default();
        for n in 0..self.units.len() {
            if self.rng.bool() {
                self.desire(n, &mut desired);
            }
        }
        self.note(format!(
            "{} applies a file of {} controllers and {} devices",
            self.name(host),
            desired.controller.len(),
            desired.device.len()
        ));
        let dry_run = self.rng.u8(0..8) == 0;
        self.world
            .ask(host, AdminRequest::Apply { desired, dry_run });
    }

    /// How a unit shall be, from top to bottom so that it fits together.
    fn desire(&mut self, n: usize, desired: &mut Desired) {
        let mut hosts = self.some_hosts();
        hosts.truncate(self.rng.usize(1..=hosts.len().min(8)));
        let row = |row: String, owners: &[String]| DesiredRow {
            row,
            ownership: Word::Shared,
            owners: owners.to_vec(),
        };
        desired.unit.push(row(format!("u{n}"), &hosts));
        let contents = self.world.unit(self.units[n]).contents.clone();
        for controller in contents.controllers.values() {
            desired
                .controller
                .push(row(controller.name.clone(), &hosts));
        }
        for device in contents.devices.values() {
            let owner = self.rng.choice(&hosts).cloned();
            let (ownership, owners) = match owner {
                Some(owner) if self.rng.u8(0..3) > 0 => (Word::Dedicated, vec![owner]),
                _ => (Word::Unallocated, Vec::new()),
            };
            desired.device.push(DesiredDevice {
                row: device.name.clone(),
                ownership,
                owners,
                extents: None,
            });
        }
    }
}
