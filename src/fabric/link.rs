//! A host's or unit's link to fabric services: finds them, registers, follows the membership list.
//!
//! Pure: time comes in, frames and events come out. After any call that takes `now`, drain
//! [`FabricLink::poll_transmit`] and [`FabricLink::poll_event`] and ask [`FabricLink::deadline`].

use std::time::Duration;

use crate::wire::kind::Role;
use crate::wire::message::{Member, UnitOwnership};
use crate::wire::{
    ClusterName, DropReason, EntityType, Guid, Header, Incarnation, Mac, Status, Time,
};

/// What a link needs to know.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// Who we are.
    pub local: Guid,
    /// Our incarnation.
    pub incarnation: Incarnation,
    /// Host or unit, as the opener of the connection.
    pub role: Role,
    /// Host or unit, as the row to register.
    pub entity: EntityType,
    /// What to register at first.
    pub facts: Facts,
    /// Where fabric services are; `None` to search for them by multicast.
    pub fabric_mac: Option<Mac>,
    /// How often hosts ask for their membership list.
    pub poll: Duration,
    /// The most bytes of a frame behind its Ethernet header.
    pub mtu: u16,
}

/// What an entity registers about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its NICs, the one that the link speaks through among them.
    pub macs: Vec<Mac>,
    /// Its name, at most [`crate::wire::row::MAX_NAME_BYTES`] bytes.
    pub name: String,
    /// The cluster that its configuration names, or none.
    pub cluster: ClusterName,
    /// Its change number within the incarnation.
    pub change: u64,
}

/// The hosts and units of our cluster (Fig. 5, block 505).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipList {
    /// The list's version at the fabric services that gave it.
    pub version: u64,
    /// The members by ascending GUID, ourselves among them.
    pub members: Vec<Member>,
}

/// What the link has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// Connected to fabric services.
    Up {
        /// Which ones.
        fabric: Guid,
        /// Their incarnation.
        incarnation: Incarnation,
    },
    /// Fabric services do not answer any more; the link searches for ever, the last list holds.
    Down,
    /// Registered and a member of this cluster; said when it changes.
    Assigned(ClusterName),
    /// Registered, but no cluster is assigned yet; said when it changes.
    Pending,
    /// Fabric services refuse us; the link asks again. Said when it changes.
    Refused(Status),
    /// The whole membership list; hosts only, said when it may have changed.
    Members(MembershipList),
}

/// The link to fabric services.
#[derive(Debug)]
pub struct FabricLink {
    config: LinkConfig,
}

impl FabricLink {
    /// A link that starts to search at its first [`FabricLink::tick`].
    pub fn new(config: LinkConfig, seed: u64) -> Self {
        let _ = seed;
        Self { config }
    }

    /// Whether a frame with this header is the link's ([`FabricLink::handle`]).
    pub fn owns(&self, header: &Header) -> bool {
        let _ = header;
        false
    }

    /// Takes a frame that the link owns.
    pub fn handle(
        &mut self,
        now: Time,
        src: Mac,
        header: &Header,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let _ = (now, src, header, payload);
        Err(DropReason::Unexpected)
    }

    /// Takes the body of a here frame.
    pub fn handle_here(&mut self, now: Time, src: Mac, payload: &[u8]) -> Result<(), DropReason> {
        let _ = (now, src, payload);
        Err(DropReason::Unexpected)
    }

    /// Does what time demands.
    pub fn tick(&mut self, now: Time) {
        let _ = now;
    }

    /// When [`FabricLink::tick`] is due.
    pub fn deadline(&self) -> Option<Time> {
        None
    }

    /// Appends one frame to `out` and says where to; `None` where there is none.
    pub fn poll_transmit(&mut self, now: Time, out: &mut Vec<u8>) -> Option<Mac> {
        let _ = (now, out);
        None
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<LinkEvent> {
        None
    }

    /// Registers again with other facts.
    pub fn update(&mut self, now: Time, facts: Facts) {
        let _ = now;
        self.config.facts = facts;
    }

    /// Asks for the membership list now.
    pub fn poll_now(&mut self, now: Time) {
        let _ = now;
    }

    /// Changes how often hosts ask for their membership list.
    pub fn set_poll(&mut self, now: Time, poll: Duration) {
        let _ = now;
        self.config.poll = poll;
    }

    /// Tells fabric services who owns a unit, until they know (Fig. 3, 312).
    pub fn tell_unit_ownership(&mut self, now: Time, ownership: UnitOwnership) {
        let _ = (now, ownership);
    }

    /// Whether the link is connected.
    pub fn is_up(&self) -> bool {
        false
    }

    /// Our cluster as last heard, none before.
    pub fn cluster(&self) -> ClusterName {
        ClusterName::NONE
    }

    /// Says goodbye to fabric services; the link stays silent afterwards.
    pub fn close(&mut self, now: Time) {
        let _ = now;
    }
}
