//! Who is in the cluster: what fabric services say, and the sessions to peers and units that follow.

use std::collections::BTreeMap;
use std::time::Duration;

use super::action::AgentAction;
use super::agent::{Agent, FabricState};
use super::peers::Peer;
use super::report::label;
use super::request::WatchEvent;
use super::timers::Timer;
use super::units::Unit;
use crate::fabric::{LinkEvent, MembershipList};
use crate::planted::{self, Bug};
use crate::session::{Client, ClientConfig, Server, ServerConfig};
use crate::wire::kind::Role;
use crate::wire::message::{Member, UnitOwnership};
use crate::wire::{
    ClusterName, EntityType, Guid, Incarnation, IocNumber, Mac, Ownership, Row, Status, Time,
};

/// The most hosts and units of a cluster that are worked with; further members are refused.
pub const MAX_STATIONS: usize = 4096;
/// Requests that a peer may have outstanding here, and we at a peer or unit.
const CREDITS: u16 = 8;
/// How long one address of a station is tried.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(2);

/// Whether a station answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Liveness {
    /// Not tried for long enough.
    Unknown,
    /// A connection is open.
    Reachable,
    /// None is.
    Unreachable,
}

/// A host or unit that we keep a session to.
#[derive(Debug)]
pub(super) struct Station {
    /// Its NICs.
    pub(super) macs: Vec<Mac>,
    /// Which of them is tried or in use.
    mac_index: usize,
    pub(super) liveness: Liveness,
    /// Since when that is so.
    pub(super) since: Time,
    /// Its incarnation when it answered last.
    pub(super) incarnation: Incarnation,
    /// A session has been begun.
    begun: bool,
}

impl Station {
    pub(super) fn new(now: Time, macs: Vec<Mac>) -> Self {
        Self {
            macs,
            mac_index: 0,
            liveness: Liveness::Unknown,
            since: now,
            incarnation: Incarnation(0),
            begun: false,
        }
    }

    /// One that answers, by whatever way.
    pub(super) fn answering(now: Time) -> Self {
        let mut station = Self::new(now, Vec::new());
        station.set(now, Liveness::Reachable);
        station
    }

    pub(super) fn is_up(&self) -> bool {
        self.liveness == Liveness::Reachable
    }

    /// The address tried or in use.
    pub(super) fn mac(&self) -> Option<Mac> {
        self.macs.get(self.mac_index).copied()
    }

    fn set(&mut self, now: Time, liveness: Liveness) {
        self.liveness = liveness;
        self.since = now;
    }
}

impl Agent {
    pub(super) fn on_link_event(&mut self, now: Time, event: LinkEvent) {
        match event {
            LinkEvent::TablesOpen => self.centre_open(now),
            LinkEvent::TablesClosed => self.centre_closed(now),
            LinkEvent::Table {
                command,
                status,
                body,
            } => self.peer_reply(now, self.centre.guid, command, status, &body),
            LinkEvent::Up { .. } => self.set_fabric(now, FabricState::Up),
            LinkEvent::Down => self.set_fabric(now, FabricState::Down),
            LinkEvent::Pending => self.set_fabric(now, FabricState::Pending),
            LinkEvent::Refused(status) => {
                self.set_fabric(now, FabricState::Refused);
                self.warn(format!(
                    "fabric services refuse this host ({status}); look for another machine with \
                     GUID {}, or at the cluster in the configuration",
                    self.config.guid
                ));
            }
            LinkEvent::Assigned(cluster) => {
                self.set_fabric(now, FabricState::Up);
                self.assigned(now, cluster);
            }
            LinkEvent::HostFound(token, found) => self.host_found(now, token, found),
            LinkEvent::Members(list) => {
                self.set_fabric(now, FabricState::Up);
                self.on_members(now, list);
            }
        }
    }

    fn set_fabric(&mut self, now: Time, state: FabricState) {
        if self.fabric.0 != state {
            self.fabric = (state, now);
            self.tell(WatchEvent::Fabric {
                state: state.word().to_owned(),
            });
        }
    }

    fn assigned(&mut self, now: Time, cluster: ClusterName) {
        if cluster == self.cluster || cluster.is_none() || self.boot.is_stopped() {
            return;
        }
        if self.cluster.is_none() {
            self.cluster = cluster;
            self.act(AgentAction::Joined(cluster));
            self.serve_cluster();
            return;
        }
        // The table of one cluster tells nothing about another and must not reach it.
        self.act(AgentAction::Moved {
            from: self.cluster,
            to: cluster,
        });
        self.close_sessions(now);
        self.boot.stop();
    }

    /// Begins to answer the peers of our cluster.
    pub(super) fn serve_cluster(&mut self) {
        if self.cluster.is_none() {
            return;
        }
        let config = ServerConfig {
            local: self.config.guid,
            incarnation: self.config.incarnation,
            cluster: Some(self.cluster),
            service: false,
            mtu: self.config.mtu,
            credits: CREDITS,
            max_connections: MAX_STATIONS,
        };
        let seed = self.rng.u64(..);
        self.hub.set_server(Server::new(config, seed));
    }

    fn on_members(&mut self, now: Time, list: MembershipList) {
        if self.boot.is_stopped() {
            return;
        }
        let mut members: BTreeMap<Guid, Member> = BTreeMap::new();
        let takers = self.mac_takers(&list.members);
        for member in list.members {
            if members.len() >= MAX_STATIONS {
                self.warn(format!(
                    "the cluster has more than {MAX_STATIONS} members; the rest is ignored"
                ));
                break;
            }
            if self.accepts(&member, takers.get(&member.guid)) {
                members.insert(member.guid, member);
            }
        }
        let accepted: Vec<Member> = members.values().cloned().collect();
        self.mutate(members.keys().copied(), |table| {
            table.observe_members(&accepted)
        });
        self.tell_ownerships(now, &accepted);
        self.members = Some(members);
        self.sync_stations(now);
        self.retire_empty_guests();
    }

    /// Refuses a member that claims to be us or to be where somebody else is.
    fn accepts(&mut self, member: &Member, taken: Option<&(Mac, Guid)>) -> bool {
        let ours = member.macs.iter().find(|m| self.own_macs.contains(m));
        if (member.guid == self.config.guid) != ours.is_some() {
            let macs: Vec<String> = member.macs.iter().map(ToString::to_string).collect();
            self.warn(if member.guid == self.config.guid {
                format!(
                    "another machine ({}) has registered with this host's GUID {}; is its disk a \
                     copy of this one's? Give one of both a new GUID",
                    macs.join(", "),
                    member.guid
                )
            } else {
                format!(
                    "{} {} ({}) claims a MAC address of this host ({}); it is refused",
                    member.entity,
                    member.name.escape_debug(),
                    member.guid,
                    macs.join(", ")
                )
            });
            return false;
        }
        if let Some((mac, holder)) = taken {
            self.warn(format!(
                "{} {} ({}) claims MAC address {mac}, which is that of {holder}; it is refused: give \
                 it another, or take the other out (`rma fabric remove`)",
                member.entity,
                member.name.escape_debug(),
                member.guid
            ));
            return false;
        }
        let known = self.table.get(member.guid);
        if known.is_some_and(|row| row.entity != member.entity) {
            self.warn(format!(
                "{} {} registered with the GUID of {}; it is refused",
                member.entity,
                member.guid,
                label(&self.table, member.guid)
            ));
            return false;
        }
        true
    }

    /// Tells fabric services what they have missed of our own changes to units (Fig. 3, 312).
    fn tell_ownerships(&mut self, now: Time, members: &[Member]) {
        for member in members.iter().filter(|m| m.entity == EntityType::Unit) {
            let Some(row) = self.table.get(member.guid) else {
                continue;
            };
            let ours = row.owned.writer == self.config.guid;
            if ours && row.owned.epoch > member.epoch {
                let ownership = UnitOwnership {
                    unit: row.guid,
                    ownership: row.ownership.clone(),
                    epoch: row.owned.epoch,
                };
                self.link.tell_unit_ownership(now, ownership);
            }
        }
    }

    /// Whether a host or unit is of our cluster: by the last list of fabric services, or before
    /// the first by the table.
    pub(super) fn is_member(&self, guid: Guid) -> bool {
        match &self.members {
            Some(members) => members.contains_key(&guid),
            None => self.table.get(guid).is_some_and(Row::is_valid),
        }
    }

    /// Keeps a session to every other host and to every unit, as far as Fig. 5 has come.
    pub(super) fn sync_stations(&mut self, now: Time) {
        if self.cluster.is_none() || !self.boot.has_peers() {
            return;
        }
        let wanted: BTreeMap<Guid, (EntityType, Vec<Mac>)> = self
            .table
            .rows()
            .filter(|row| matches!(row.entity, EntityType::Host | EntityType::Unit))
            .filter(|row| row.guid != self.config.guid && !row.macs.is_empty())
            .filter(|row| !self.is_centre(row.guid))
            .filter(|row| self.is_member(row.guid))
            .take(MAX_STATIONS)
            .map(|row| (row.guid, (row.entity, row.macs.clone())))
            .collect();
        let gone: Vec<Guid> = self
            .peers
            .keys()
            .chain(self.units.keys())
            .filter(|guid| !wanted.contains_key(guid) && !self.is_centre(**guid))
            .copied()
            .collect();
        for guid in gone {
            self.drop_station(now, guid);
        }
        for (guid, (entity, macs)) in wanted {
            if entity == EntityType::Host {
                let station = || Peer::new(Station::new(now, macs.clone()));
                self.peers.entry(guid).or_insert_with(station);
            } else if self.boot.has_units() {
                let station = || Unit::new(Station::new(now, macs.clone()));
                self.units.entry(guid).or_insert_with(station);
            } else {
                continue;
            }
            self.reach(now, guid, macs);
        }
    }

    pub(super) fn station(&self, guid: Guid) -> Option<&Station> {
        let peer = self.peers.get(&guid).map(|peer| &peer.station);
        peer.or_else(|| self.units.get(&guid).map(|unit| &unit.station))
    }

    fn station_mut(&mut self, guid: Guid) -> Option<&mut Station> {
        if let Some(peer) = self.peers.get_mut(&guid) {
            return Some(&mut peer.station);
        }
        self.units.get_mut(&guid).map(|unit| &mut unit.station)
    }

    /// Begins a session, or moves it where the station's addresses have changed.
    fn reach(&mut self, now: Time, guid: Guid, macs: Vec<Mac>) {
        let config = ClientConfig {
            local: self.config.guid,
            incarnation: self.config.incarnation,
            role: Role::Host,
            cluster: self.cluster,
            session: self.next_session,
            remote: guid,
            ioc: IocNumber(0),
            service: false,
            mtu: self.config.mtu,
            credits: CREDITS,
        };
        let seed = self.rng.u64(..);
        let Some(station) = self.station_mut(guid) else {
            return;
        };
        let used = station.mac();
        let stays = used.is_some_and(|mac| macs.contains(&mac));
        station.macs = macs;
        if stays {
            station.mac_index = station
                .macs
                .iter()
                .position(|mac| Some(*mac) == used)
                .unwrap_or(0);
        } else {
            station.mac_index = 0;
        }
        let begun = std::mem::replace(&mut station.begun, true);
        let Some(mac) = station.mac() else { return };
        if !begun {
            self.next_session += 1;
            self.hub.insert(guid, Client::new(config, seed));
            self.timers
                .set(Timer::Address(guid), now + ADDRESS_PATIENCE);
        }
        if let Some(client) = self.hub.client_mut(&guid)
            && (!begun || !stays)
        {
            client.connect(now, mac);
        }
    }

    /// The address tried has not answered in time: the station's next one.
    pub(super) fn try_next_address(&mut self, now: Time, guid: Guid) {
        let Some(station) = self.station_mut(guid).filter(|s| !s.is_up()) else {
            return;
        };
        let several = station.macs.len() > 1;
        if several {
            station.mac_index = (station.mac_index + 1) % station.macs.len();
        }
        let mac = station.mac();
        self.give_up_waiting(now, guid);
        self.timers
            .set(Timer::Address(guid), now + ADDRESS_PATIENCE);
        if let (true, Some(mac), Some(client)) = (several, mac, self.hub.client_mut(&guid)) {
            client.connect(now, mac);
        }
    }

    /// A station that has been tried for long enough is unreachable until it answers.
    pub(super) fn give_up_waiting(&mut self, now: Time, guid: Guid) {
        let unknown = |s: &&mut Station| s.liveness == Liveness::Unknown;
        if let Some(station) = self.station_mut(guid).filter(unknown) {
            station.set(now, Liveness::Unreachable);
            self.tell_liveness(guid, false);
        }
    }

    fn tell_liveness(&mut self, guid: Guid, reachable: bool) {
        let who = super::report::name_info(&self.table, guid);
        let entity = if self.peers.contains_key(&guid) {
            EntityType::Host
        } else {
            EntityType::Unit
        };
        let entity = entity.name().to_owned();
        self.tell(if reachable {
            WatchEvent::Reachable { who, entity }
        } else {
            WatchEvent::Unreachable { who, entity }
        });
    }

    pub(super) fn station_up(&mut self, now: Time, guid: Guid, incarnation: Incarnation) {
        self.timers.cancel(Timer::Address(guid));
        let Some(station) = self.station_mut(guid) else {
            return;
        };
        let restarted = station.incarnation != incarnation;
        let was_down = station.liveness == Liveness::Unreachable;
        station.incarnation = incarnation;
        if !station.is_up() {
            station.set(now, Liveness::Reachable);
            self.tell_liveness(guid, true);
        }
        if was_down && self.boot.is_steady() {
            let block = if self.peers.contains_key(&guid) {
                510
            } else {
                520
            };
            let name = label(&self.table, guid);
            self.block(block, format!("{name} answers again"));
        }
        if self.peers.contains_key(&guid) {
            self.peer_up(now, guid, restarted);
        } else {
            self.unit_up(now, guid);
        }
    }

    pub(super) fn station_down(&mut self, now: Time, guid: Guid) {
        let Some(station) = self.station_mut(guid) else {
            return;
        };
        if station.liveness != Liveness::Unreachable {
            station.set(now, Liveness::Unreachable);
            self.tell_liveness(guid, false);
        }
        if planted::is(Bug::SilenceRemoves) && self.units.contains_key(&guid) {
            self.mutate([guid], |table| table.retire(guid));
        }
        if self.peers.contains_key(&guid) {
            self.abandon_pull(guid);
        }
        // Perhaps only the NIC that was in use.
        self.try_next_address(now, guid);
    }

    pub(super) fn station_refused(&mut self, guid: Guid, status: Status) {
        let name = label(&self.table, guid);
        match status {
            Status::WrongIdentity => self.warn(format!(
                "another entity answers at the address of {name}; is the list of fabric services \
                 old, or a MAC address taken twice?"
            )),
            Status::WrongCluster => self.warn(format!(
                "{name} says that it is of another cluster than {}",
                self.cluster
            )),
            // Starting, or full: it is tried again.
            _ => {}
        }
    }

    fn drop_station(&mut self, now: Time, guid: Guid) {
        if let Some(client) = self.hub.client_mut(&guid) {
            client.close(now);
            self.closing.push(guid);
        }
        self.timers.cancel(Timer::Address(guid));
        if self.peers.remove(&guid).is_some() {
            self.timers.cancel(Timer::Peer(guid));
        }
        if let Some(unit) = self.units.remove(&guid) {
            self.timers.cancel(Timer::Unit(guid));
            for ioc in unit.controllers.into_keys() {
                self.timers.cancel(Timer::Controller(guid, ioc));
                self.act(AgentAction::RemoveController { unit: guid, ioc });
            }
            self.unit_gone(now, guid);
        }
    }

    /// Tells fabric services who owns a unit now.
    pub(super) fn tell_unit_ownership(&mut self, now: Time, unit: Guid) {
        let Some(row) = self.table.get(unit) else {
            return;
        };
        let ownership: Ownership = row.ownership.clone();
        let epoch = row.owned.epoch;
        self.link.tell_unit_ownership(
            now,
            UnitOwnership {
                unit,
                ownership,
                epoch,
            },
        );
    }
}
