//! An I/O unit: its management service (UMS, 230) and its I/O controllers, as one state machine.
//! Depends on wire, session, [`crate::crt::rules`], [`crate::lease`] and [`crate::fabric::link`].
//!
//! Sans-I/O: frames, finished disk operations and time come in; frames ([`Unit::poll_transmit`])
//! and things to do ([`Unit::poll_action`]) come out. After each call that takes `now`, poll both
//! until they are empty, and call [`Unit::tick`] when [`Unit::deadline`] has come.
//!
//! What it promises:
//! - I2: a change of ownership is answered when every write of a host that loses the device is
//!   finished and the change is durable; from the moment it is judged good no write of such a
//!   host is begun.
//! - I5: registers obey the ownership hierarchy after every change, or the change is refused.
//! - I7: no change with a term below the highest seen or promised is made.
//! - A unit that has lost its registers refuses I/O and changes: unallocated is not a guess.
//! - Registers are kept for each cluster that the unit serves; what is moved to another one is
//!   nobody's in the old one from the moment on that the move is judged good.
//! - I8: what is on the wire changes nothing but what the sender may change; every table is bounded.

pub mod disk;
mod extents;
mod inventory;
mod ioc;
mod partition;
mod registers;
mod restore;
mod serving;
mod transfer;
mod ums;
mod vote;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub use disk::{AtOnce, DiskError, DiskInfo, DiskOp, MAX_IO_BYTES, NothingAtOnce, Payload};
pub use inventory::{ControllerSpec, DeviceSpec, MAX_UNIT_DEVICES, SpecError, UnitFacts};
pub use registers::MAX_UNIT_REGISTERS;
pub use serving::GUEST_LINGER;

pub use crate::crt::{RegistersChange, StoredRegisters};
use crate::fabric::link::{FabricLink, Facts, LinkConfig, LinkEvent};
use crate::lease::{StoredVote, Voter};
use crate::session::{Counters, NumberMap, Peer, Server, ServerConfig, ServerEvent};
use crate::wire::kind::{Event, Role};
use crate::wire::message::{ControllersReply, DevicesReply, OwnershipRegister, Placement};
use crate::wire::{
    ClusterName, CommandId, ConnectionId, DropReason, EntityType, Guid, Header, Hop, Incarnation,
    IocNumber, IodNumber, Kind, Mac, ObservationStamp, Outgoing, Packet, Status, Tail, Time,
};
use inventory::Inventory;
use ioc::InFlight;
use partition::Partitions;
use restore::Restoration;
use serving::Serving;
use ums::{QueuedChange, Resets, Transaction};

/// The most disk operations under way; a request beyond is answered busy.
pub const MAX_IN_FLIGHT: usize = 4096;
/// The most bytes of data in disk operations under way; a request beyond is answered busy.
pub const MAX_IN_FLIGHT_BYTES: u64 = 256 << 20;
/// The most transactions that wait for the one under way; one beyond is answered busy.
pub const MAX_QUEUED_CHANGES: usize = 64;

/// How often the link asks for what only hosts ask for: never.
const NO_POLL: Duration = Duration::from_secs(86_400);

/// Who the unit is and how it behaves.
#[derive(Debug, Clone)]
pub struct UnitConfig {
    /// The unit's own facts.
    pub facts: UnitFacts,
    /// Counts its starts; durable.
    pub incarnation: Incarnation,
    /// The cluster that its configuration names, or none: what it registers.
    pub cluster_wanted: ClusterName,
    /// The cluster that fabric services last assigned, or none: what it serves until they say
    /// otherwise. The registers know better where their assignment is a later one.
    pub cluster: ClusterName,
    /// Which assignment that was, 0 where not known.
    pub assignment: u64,
    /// Where fabric services are; `None`: found by multicast.
    pub fabric_mac: Option<Mac>,
    /// The most bytes of a frame behind its Ethernet header.
    pub mtu: u16,
    /// Commands that one connection may have outstanding.
    pub credits: u16,
    /// Connections served at most, for each EtherType.
    pub max_connections: usize,
    /// What it has promised as a voter of the allocation lease; `None`: that was lost.
    pub vote: Option<StoredVote>,
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnitAction {
    /// Perform an operation on the medium of a device, then call [`Unit::disk_done`].
    Disk {
        /// Names the operation.
        token: u64,
        /// The device.
        device: Guid,
        /// What to do.
        op: DiskOp,
    },
    /// Make this change of the registers durable, all or nothing, in the order of these actions;
    /// then call [`Unit::registers_persisted`].
    PersistRegisters {
        /// Names the change.
        token: u64,
        /// The change.
        change: Box<RegistersChange>,
    },
    /// Make what the unit has promised as a voter of the allocation lease durable, then call
    /// [`Unit::vote_persisted`]. There is at most one at a time.
    PersistVote {
        /// Names it.
        token: u64,
        /// All of it.
        vote: Box<StoredVote>,
    },
    /// The unit belongs to another cluster, by this assignment: remember it for the next start.
    Joined(ClusterName, u64),
    /// Fabric services answer, or do not any more; for the log.
    FabricUp(bool),
    /// Fabric services know the unit, and have assigned no cluster; for the log.
    AssignmentPending,
    /// Fabric services refuse the unit, and are asked again; for the log.
    FabricRefused(Status),
}

/// An I/O unit.
#[derive(Debug)]
pub struct Unit {
    inventory: Inventory,
    registers: Option<Partitions>,
    cluster: ClusterName,
    /// Which assignment made it the unit's.
    assignment: u64,
    serving: Serving,
    cluster_wanted: ClusterName,
    management: Server,
    service: Server,
    link: FabricLink,
    in_flight: NumberMap<u64, InFlight>,
    in_flight_bytes: u64,
    /// The lists of devices as they were told last.
    told_lists: BTreeMap<(ClusterName, IocNumber), Arc<Vec<u8>>>,
    next_token: u64,
    transaction: Option<Transaction>,
    /// Registers on their way back.
    restoration: Option<Restoration>,
    resets: Resets,
    voter: Voter<(ConnectionId, CommandId)>,
    queue: VecDeque<QueuedChange>,
    actions: VecDeque<UnitAction>,
    management_drops: Counters,
    service_drops: Counters,
}

impl Unit {
    /// A unit without controllers. `registers`: `None` if they were lost; no registers only at
    /// the first start ever. `seed` makes connection numbers and nonces.
    pub fn new(config: UnitConfig, registers: Option<StoredRegisters>, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut cluster, mut assignment) = (config.cluster, config.assignment);
        if let Some(stored) = &registers
            && !stored.home.is_none()
            && stored.assignment >= assignment
        {
            (cluster, assignment) = (stored.home, stored.assignment);
        }
        let registers = registers.map(|stored| Partitions::new(stored, cluster));
        let facts = &config.facts;
        let server = |service: bool, seed: u64| {
            let config = ServerConfig {
                local: facts.guid,
                incarnation: config.incarnation,
                cluster: Some(cluster),
                service,
                mtu: config.mtu,
                credits: config.credits,
                max_connections: config.max_connections,
            };
            Server::new(config, seed)
        };
        let link = LinkConfig {
            local: facts.guid,
            incarnation: config.incarnation,
            role: Role::Unit,
            entity: EntityType::Unit,
            facts: Facts {
                macs: facts.macs.clone(),
                name: facts.name.clone(),
                cluster: config.cluster_wanted,
                change: 1,
                placement: Placement::default(),
            },
            fabric_mac: config.fabric_mac,
            tables: false,
            poll: NO_POLL,
            mtu: config.mtu,
        };
        let mut unit = Self {
            management: server(false, rng.u64(..)),
            service: server(true, rng.u64(..)),
            link: FabricLink::new(link, rng.u64(..)),
            inventory: Inventory::new(config.facts, config.incarnation),
            serving: Serving::new(registers.as_ref()),
            registers,
            cluster,
            assignment,
            cluster_wanted: config.cluster_wanted,
            in_flight: NumberMap::default(),
            in_flight_bytes: 0,
            told_lists: BTreeMap::new(),
            next_token: 1,
            transaction: None,
            restoration: None,
            resets: Resets::default(),
            voter: Voter::new(config.vote),
            queue: VecDeque::new(),
            actions: VecDeque::new(),
            management_drops: Counters::default(),
            service_drops: Counters::default(),
        };
        unit.serve_clusters();
        unit.register_placement(Time::ZERO);
        unit
    }

    /// Adds a controller without devices.
    pub fn add_controller(&mut self, now: Time, spec: ControllerSpec) -> Result<(), SpecError> {
        let guid = spec.guid;
        self.check_no_extent(guid)?;
        self.inventory.add_controller(spec)?;
        self.reset_register(guid);
        self.serving.look_again();
        self.notify(now, Event::ControllersChanged, IocNumber(0));
        Ok(())
    }

    /// Refuses a GUID that an extent of this unit has, or had.
    fn check_no_extent(&self, guid: Guid) -> Result<(), SpecError> {
        match &self.registers {
            Some(registers) if registers.is_extent(guid) => Err(SpecError::GuidTaken(guid)),
            _ => Ok(()),
        }
    }

    /// Removes a controller with its devices. Operations under way are finished.
    pub fn remove_controller(&mut self, now: Time, ioc: IocNumber) -> Result<(), SpecError> {
        self.inventory.remove_controller(ioc)?;
        self.service.take_back_lent(|_| true);
        self.notify(now, Event::ControllersChanged, IocNumber(0));
        Ok(())
    }

    /// Gives a controller another name or model.
    pub fn alter_controller(&mut self, now: Time, spec: ControllerSpec) -> Result<(), SpecError> {
        if self.inventory.alter_controller(spec)? {
            self.notify(now, Event::ControllersChanged, IocNumber(0));
        }
        Ok(())
    }

    /// Adds a device to a controller. Its owners are those of its register, unless the controller
    /// does not permit them any more: then it is unallocated.
    pub fn add_device(
        &mut self,
        now: Time,
        ioc: IocNumber,
        spec: DeviceSpec,
    ) -> Result<(), SpecError> {
        let guid = spec.guid;
        self.check_no_extent(guid)?;
        self.inventory.add_device(ioc, spec)?;
        self.reset_register(guid);
        self.notify(now, Event::DevicesChanged, ioc);
        Ok(())
    }

    /// Removes a device. Operations under way are finished.
    pub fn remove_device(
        &mut self,
        now: Time,
        ioc: IocNumber,
        iod: IodNumber,
    ) -> Result<(), SpecError> {
        self.inventory.remove_device(ioc, iod)?;
        // Nothing of its medium stays for the sake of answers that nobody acknowledges.
        self.service.take_back_lent(|_| true);
        self.notify(now, Event::DevicesChanged, ioc);
        Ok(())
    }

    /// Gives the device of the same controller, number and GUID other facts: another size, name.
    pub fn alter_device(
        &mut self,
        now: Time,
        ioc: IocNumber,
        spec: DeviceSpec,
    ) -> Result<(), SpecError> {
        if self.inventory.alter_device(ioc, spec)? {
            self.notify(now, Event::DevicesChanged, ioc);
        }
        Ok(())
    }

    /// Changes the unit's NICs, and registers them.
    pub fn set_macs(&mut self, now: Time, macs: Vec<Mac>) {
        if !self.inventory.set_macs(macs) {
            return;
        }
        self.register_facts(now);
        self.notify(now, Event::ControllersChanged, IocNumber(0));
        self.drain(now);
    }

    /// The most bytes of a frame that each NIC takes, by number.
    pub fn set_nics(&mut self, mtus: &[u16]) {
        self.service.set_nics(mtus);
    }

    /// Takes a frame without its Ethernet header; what is wrong with it is counted and returned.
    pub fn handle(
        &mut self,
        now: Time,
        service: bool,
        src: impl Into<Hop>,
        frame: &[u8],
    ) -> Result<(), DropReason> {
        self.handle_with(now, service, src, frame, &mut NothingAtOnce)
    }

    /// The same, where `media` do what they can at once: that is answered before this returns.
    pub fn handle_with(
        &mut self,
        now: Time,
        service: bool,
        src: impl Into<Hop>,
        frame: &[u8],
        media: &mut impl AtOnce,
    ) -> Result<(), DropReason> {
        let src = src.into();
        let mut outcome = Ok(());
        for packet in Header::packets(frame, service) {
            let taken = packet.and_then(|packet| self.dispatch(now, service, src, &packet, media));
            if let Err(reason) = taken {
                let drops = if service {
                    &mut self.service_drops
                } else {
                    &mut self.management_drops
                };
                drops.add(reason);
            }
            outcome = outcome.and(taken);
        }
        self.drain(now);
        outcome
    }

    fn dispatch(
        &mut self,
        now: Time,
        service: bool,
        src: Hop,
        packet: &Packet<'_>,
        media: &mut impl AtOnce,
    ) -> Result<(), DropReason> {
        let (header, payload) = (&packet.header, packet.payload);
        if src.mac.is_multicast() || self.inventory.facts().macs.contains(&src.mac) {
            return Err(DropReason::Source);
        }
        if !service {
            if header.kind == Kind::Here {
                return self.link.handle_here(now, src.mac, payload);
            }
            if self.link.owns(header) {
                return self.link.handle(now, src.mac, header, payload);
            }
        }
        // Before it belongs to a cluster the unit serves nobody, not even those without one.
        if self.cluster.is_none() {
            return Err(DropReason::Cluster);
        }
        if !service {
            return self.management.handle(now, src, header, payload);
        }
        if let Some(asked) = self.service.take(now, src, header, payload)? {
            self.serve_io(asked, packet.last_block, media);
        }
        Ok(())
    }

    /// Takes the outcome of a [`UnitAction::Disk`].
    pub fn disk_done(&mut self, now: Time, token: u64, outcome: Result<Vec<u8>, DiskError>) {
        self.finish_io(now, token, outcome);
        self.drain(now);
    }

    /// Takes the outcome of a [`UnitAction::PersistRegisters`]; with `ok` they are durable,
    /// otherwise nothing was changed.
    pub fn registers_persisted(&mut self, now: Time, token: u64, ok: bool) {
        self.finish_persist(now, token, ok);
        self.drain(now);
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Time) {
        self.link.tick(now);
        self.management.tick(now);
        self.service.tick(now);
        self.retry_resets(now);
        self.tick_serving(now);
        self.voter.tick(now);
        self.drain(now);
    }

    /// When [`Self::tick`] must be called next.
    pub fn deadline(&self) -> Option<Time> {
        [
            self.link.deadline(),
            self.management.deadline(),
            self.service.deadline(),
            self.resets.deadline(),
            self.serving.deadline(),
            self.voter.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Appends one frame to `out`; whether it is for the service EtherType, and whom it is for.
    pub fn poll_transmit(&mut self, now: Time, out: &mut Vec<u8>) -> Option<(bool, Mac)> {
        [false, true]
            .into_iter()
            .find_map(|service| Some((service, self.poll_transmit_on(service, now, out)?)))
    }

    /// Appends one frame of one EtherType to `out`, and says whom it is for.
    pub fn poll_transmit_on(&mut self, service: bool, now: Time, out: &mut Vec<u8>) -> Option<Mac> {
        if service {
            return self.service.poll_transmit(now, out);
        }
        self.poll_management(now, out)
    }

    /// Appends one packet of the service EtherType, all but its `tail`, to `out`, and says whom it is for, by
    /// which NIC it should leave, and whether it may share its frame.
    pub fn poll_service_parts(
        &mut self,
        now: Time,
        out: &mut Vec<u8>,
        tail: &mut Option<Tail>,
    ) -> Option<Outgoing> {
        self.service.poll_transmit_parts(now, out, tail)
    }

    fn poll_management(&mut self, now: Time, out: &mut Vec<u8>) -> Option<Mac> {
        self.link
            .poll_transmit(now, out)
            .or_else(|| self.management.poll_transmit(now, out))
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<UnitAction> {
        self.actions.pop_front()
    }

    /// Says goodbye to fabric services.
    pub fn close(&mut self, now: Time) {
        self.link.close(now);
    }

    fn drain(&mut self, now: Time) {
        while let Some(event) = self.link.poll_event() {
            self.follow_link(now, &event);
        }
        while let Some(event) = self.management.poll_event() {
            if let ServerEvent::Request { .. } = event {
                self.serve_management(now, event);
            }
        }
        // Who comes and goes changes nothing here.
        while self.service.poll_event().is_some() {}
        self.follow_voter(now);
    }

    fn follow_link(&mut self, now: Time, event: &LinkEvent) {
        let action = match *event {
            LinkEvent::Up { .. } => UnitAction::FabricUp(true),
            LinkEvent::Down => UnitAction::FabricUp(false),
            // An assignment once made holds until another is made.
            LinkEvent::Pending => UnitAction::AssignmentPending,
            LinkEvent::Refused(status) => UnitAction::FabricRefused(status),
            LinkEvent::Members(_)
            | LinkEvent::HostFound(..)
            | LinkEvent::TablesOpen
            | LinkEvent::TablesClosed
            | LinkEvent::Table { .. } => return,
            LinkEvent::Assigned(cluster) => {
                return self.assigned(now, cluster, self.link.assignment());
            }
        };
        self.actions.push_back(action);
    }

    fn token(&mut self) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        token
    }

    /// The cluster served, none before there is one.
    pub const fn cluster(&self) -> ClusterName {
        self.cluster
    }

    /// The newest change of the unit, its controllers or devices.
    pub const fn stamp(&self) -> ObservationStamp {
        self.inventory.stamp()
    }

    /// Whether fabric services answer.
    pub fn is_fabric_up(&self) -> bool {
        self.link.is_up()
    }

    /// Whether the registers are there.
    pub const fn has_registers(&self) -> bool {
        self.registers.is_some()
    }

    /// The highest term seen or promised.
    pub fn term(&self) -> u64 {
        let seen = self.registers.as_ref().map_or(0, |all| all.own().term());
        seen.max(self.voter.promised())
    }

    /// The same with the transaction that is on its way to the disk: what is stored after it is of no
    /// older term.
    fn term_to_store(&self) -> u64 {
        let coming = self.transaction.as_ref().map_or(0, Transaction::term);
        self.term().max(coming)
    }

    /// The unit and its controllers.
    pub fn controllers(&self) -> ControllersReply {
        self.inventory.controllers()
    }

    /// The devices of a controller.
    pub fn devices(&self, ioc: IocNumber) -> Option<DevicesReply> {
        self.inventory.devices(ioc)
    }

    /// A row's ownership register in the cluster that the row is in; `None` where the registers are
    /// lost.
    pub fn register(&self, row: Guid) -> Option<OwnershipRegister> {
        self.register_in(self.cluster_of(row), row)
    }

    /// A row's ownership register in a cluster; `None` where there are none of it.
    pub fn register_in(&self, cluster: ClusterName, row: Guid) -> Option<OwnershipRegister> {
        Some(self.registers.as_ref()?.of(cluster)?.get(row))
    }

    /// Disk operations under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The connections of the UMS (controller 0) or of the controllers.
    pub fn connections(
        &self,
        service: bool,
    ) -> impl Iterator<Item = (ConnectionId, IocNumber, &Peer)> + '_ {
        let server = if service {
            &self.service
        } else {
            &self.management
        };
        server.connections()
    }

    /// Dropped frames of one EtherType by reason.
    pub const fn drops(&self, service: bool) -> &Counters {
        if service {
            &self.service_drops
        } else {
            &self.management_drops
        }
    }
}
