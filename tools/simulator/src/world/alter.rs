//! What people do to the world: cables, devices, allocations.

use rma::rma::request::Caller;

use super::{
    AdminReply, AdminRequest, Asked, ControllerSpec, DeviceSpec, Duration, IocNumber, IodNumber,
    Machine, NodeId, Time, Unit, UnitContents, World,
};

impl World {
    /// How many NICs a machine has.
    pub fn nics(&self, id: NodeId) -> usize {
        self.nodes[id.0].linked.len()
    }

    /// Plugs all cables of a machine in or out.
    pub fn link(&mut self, id: NodeId, linked: bool) {
        self.nodes[id.0].linked.fill(linked);
    }

    /// Plugs the cable of one of its NICs in or out. Nobody is told.
    pub fn link_nic(&mut self, id: NodeId, nic: usize, linked: bool) {
        self.nodes[id.0].linked[nic] = linked;
    }

    /// Cuts two machines off from each other.
    pub fn part(&mut self, a: NodeId, b: NodeId) {
        let (a, b) = (self.mac(a), self.mac(b));
        self.network.cut(a, b);
        self.network.cut(b, a);
    }

    /// Changes a unit while it runs (or not): both its state machine and what it consists of.
    pub fn alter_unit(
        &mut self,
        id: NodeId,
        contents: impl FnOnce(&mut UnitContents),
        live: impl FnOnce(&mut Unit, Time),
    ) {
        let now = self.local(id.0);
        let storage = self.unit_mut(id);
        contents(&mut storage.contents);
        if let Some(unit) = &mut storage.unit {
            live(unit, now);
        }
        self.settle(id.0);
    }

    /// Puts a device into a controller.
    pub fn add_device(&mut self, id: NodeId, ioc: u16, spec: DeviceSpec) {
        let ioc = IocNumber(ioc);
        let also = spec.clone();
        self.alter_unit(
            id,
            |contents| {
                contents.devices.insert((ioc, spec.iod), spec);
            },
            |unit, now| {
                unit.add_device(now, ioc, also)
                    .expect("the device is possible");
            },
        );
    }

    /// Takes a device out of a controller, and gives it back.
    pub fn remove_device(&mut self, id: NodeId, ioc: u16, iod: u16) -> Option<DeviceSpec> {
        let (ioc, iod) = (IocNumber(ioc), IodNumber(iod));
        let spec = self.unit(id).contents.devices.get(&(ioc, iod)).cloned()?;
        self.model.removed.insert(spec.guid);
        self.alter_unit(
            id,
            |contents| {
                contents.devices.remove(&(ioc, iod));
            },
            |unit, now| {
                unit.remove_device(now, ioc, iod)
                    .expect("the device is there");
            },
        );
        Some(spec)
    }

    /// Takes a controller with its devices out of its unit, and gives them back.
    pub fn remove_controller(
        &mut self,
        id: NodeId,
        ioc: u16,
    ) -> Option<(ControllerSpec, Vec<DeviceSpec>)> {
        let ioc = IocNumber(ioc);
        let contents = &self.unit(id).contents;
        let spec = contents.controllers.get(&ioc).cloned()?;
        let devices: Vec<DeviceSpec> = contents
            .devices
            .iter()
            .filter(|((of, _), _)| *of == ioc)
            .map(|(_, device)| device.clone())
            .collect();
        self.model.removed.insert(spec.guid);
        self.model.removed.extend(devices.iter().map(|d| d.guid));
        self.alter_unit(
            id,
            |contents| {
                contents.controllers.remove(&ioc);
                contents.devices.retain(|(of, _), _| *of != ioc);
            },
            |unit, now| {
                unit.remove_controller(now, ioc)
                    .expect("the controller is there");
            },
        );
        Some((spec, devices))
    }

    /// Puts a controller with devices into a unit.
    pub fn add_controller(&mut self, id: NodeId, spec: ControllerSpec, devices: Vec<DeviceSpec>) {
        let ioc = spec.ioc;
        let (also, all) = (spec.clone(), devices.clone());
        self.alter_unit(
            id,
            |contents| {
                contents.controllers.insert(ioc, spec);
                for device in devices {
                    contents.devices.insert((ioc, device.iod), device);
                }
            },
            |unit, now| {
                unit.add_controller(now, also)
                    .expect("the controller is possible");
                for device in all {
                    unit.add_device(now, ioc, device)
                        .expect("the device is possible");
                }
            },
        );
    }

    /// Takes what a machine that does not run has promised as a voter off its disk.
    pub fn forget_vote(&mut self, id: NodeId) {
        let seed = self.rng.u64(..);
        let (voter, vote, disk) = match &mut self.nodes[id.0].machine {
            Machine::Host(host) => (host.guid, &mut host.vote, &mut host.vote_disk),
            Machine::Unit(unit) => (unit.facts.guid, &mut unit.vote, &mut unit.vote_disk),
            Machine::Fabric(_) => return,
        };
        *vote = None;
        if let Some(disk) = disk {
            disk.lose(seed);
        }
        self.model.sessions.lost(self.now, voter);
    }

    /// Takes the ownership registers of a unit that does not run off its disk.
    pub fn forget_registers(&mut self, id: NodeId) {
        let seed = self.rng.u64(..);
        let unit = self.unit_mut(id);
        unit.stored = None;
        if let Some(disk) = &mut unit.disk {
            disk.lose(seed);
        }
    }

    /// Asks a host's agent; the answer comes into [`Host::replies`] under the token.
    pub fn ask(&mut self, id: NodeId, request: AdminRequest) -> u64 {
        let (now, token) = (self.local(id.0), self.next_token);
        self.next_token += 1;
        let life = self.nodes[id.0].life;
        if let Machine::Host(host) = &mut self.nodes[id.0].machine
            && let Some(agent) = &mut host.agent
        {
            if let AdminRequest::Forget { target } = &request
                && let Ok(row) = target.parse()
            {
                self.model.forgets(&agent.table().below(row));
            }
            let asked = Asked {
                life,
                request: Box::new(request.clone()),
            };
            self.asked.insert((id.0, token), asked);
            if matches!(
                request,
                AdminRequest::LockAcquire { force: true }
                    | AdminRequest::LockRelease { force: true }
            ) {
                self.model.sessions.uncertain(self.now);
            }
            let caller = Caller {
                process: 100 + id.0 as u32,
                user: "root".to_owned(),
            };
            agent.admin(now, token, caller, request);
        }
        self.settle(id.0);
        token
    }

    /// Asks a host's agent and waits for the answer.
    ///
    /// # Panics
    /// When there is none within a minute.
    pub fn admin(&mut self, id: NodeId, request: AdminRequest) -> AdminReply {
        let token = self.ask(id, request);
        let came = self.run_until(Duration::from_secs(60), |world| {
            world.host(id).replies.contains_key(&token)
        });
        assert!(came, "the administrator waits for ever");
        self.host(id).replies[&token].clone()
    }

    /// Allocates and waits for the answer.
    pub fn allocate(&mut self, id: NodeId, target: &str, hosts: &[&str]) -> AdminReply {
        self.admin(
            id,
            AdminRequest::Allocate {
                target: target.to_owned(),
                hosts: hosts.iter().map(|h| (*h).to_owned()).collect(),
                shared: false,
                recursive: false,
            },
        )
    }

    /// Releases and waits for the answer.
    pub fn release(&mut self, id: NodeId, target: &str, recursive: bool) -> AdminReply {
        let target = target.to_owned();
        self.admin(id, AdminRequest::Release { target, recursive })
    }
}
