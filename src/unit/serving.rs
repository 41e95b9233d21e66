//! Which clusters the unit serves, and what it tells fabric services of that; how its home becomes
//! another one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::partition::{Listing, Partitions};
use super::registers::Registers;
use super::restore::Restoration;
use super::transfer::{By, Leaving, plan_home};
use super::ums::Transaction;
use super::{RegistersChange, Unit, UnitAction};
use crate::fabric::link::Facts;
use crate::wire::kind::Event;
use crate::wire::message::Placement;
use crate::wire::{ClusterName, ConnectionId, Guid, IocNumber, Status, Time};

/// How long a unit goes on as a guest of a cluster that nothing of it is in any more: its hosts
/// shall see that for themselves.
pub const GUEST_LINGER: Duration = Duration::from_secs(60);

/// How long an assignment rests that could not be stored.
const ASSIGNMENT_RETRY: Duration = Duration::from_secs(1);

/// What is told to fabric services, and until when.
#[derive(Debug, Default)]
pub(super) struct Serving {
    told: Placement,
    /// Guests without anything, until then.
    lingering: BTreeMap<ClusterName, Time>,
    /// At its start a unit does not know for how long they were; they begin with the first tick.
    to_linger: BTreeSet<ClusterName>,
    /// Something has come into the unit: what it says of guests may be another.
    is_stale: bool,
    /// An assignment that waits for the transaction under way.
    wanted: Option<(ClusterName, u64)>,
    /// One that could not be stored, and when it is tried again.
    retry: Option<(Time, (ClusterName, u64))>,
}

impl Serving {
    pub(super) fn new(registers: Option<&Partitions>) -> Self {
        let guests = registers.into_iter().flat_map(Partitions::guests);
        Self {
            to_linger: guests.map(|(cluster, _)| cluster).collect(),
            ..Self::default()
        }
    }

    /// What is told of guests is looked at again at the next tick.
    pub(super) const fn look_again(&mut self) {
        self.is_stale = true;
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        if self.is_stale || !self.to_linger.is_empty() {
            return Some(Time::ZERO);
        }
        let retry = self.retry.map(|(at, _)| at);
        self.lingering.values().copied().chain(retry).min()
    }
}

impl Unit {
    /// Tells the hosts that are connected: those of the UMS, or for devices those of the controller.
    pub(super) fn notify(&mut self, now: Time, event: Event, ioc: IocNumber) {
        let server = match event {
            Event::DevicesChanged => &mut self.service,
            _ => &mut self.management,
        };
        let stamp = self.inventory.stamp();
        let told: Vec<ConnectionId> = server
            .connections()
            .filter(|(_, to, _)| *to == ioc)
            .map(|(connection, ..)| connection)
            .collect();
        for connection in told {
            server.notify(now, connection, event, ioc, stamp);
        }
    }

    /// Tells the hosts of the clusters concerned that registers changed.
    pub(super) fn notify_registers(&mut self, now: Time, leaving: Leaving, cluster: ClusterName) {
        let stamp = self.inventory.stamp();
        let all = leaving != Leaving::Nothing;
        let told: Vec<ConnectionId> = self
            .management
            .connections()
            .filter(|(_, _, peer)| all || peer.cluster == cluster)
            .map(|(connection, ..)| connection)
            .collect();
        for connection in told {
            let (event, ioc) = (Event::RegistersChanged, IocNumber(0));
            self.management.notify(now, connection, event, ioc, stamp);
        }
    }

    /// The cluster that a row is in; of what is in several, and while the registers are lost, the
    /// home.
    pub fn cluster_of(&self, row: Guid) -> ClusterName {
        match &self.registers {
            Some(all) if self.inventory.is_movable(row) => all.cluster_of(row),
            _ => self.cluster,
        }
    }

    /// What of the unit is in a cluster; `None` while the registers are lost.
    pub(super) fn listing(&self, cluster: ClusterName) -> Option<Listing<'_>> {
        let all = self.registers.as_ref()?;
        Some(all.listing(&self.inventory, cluster))
    }

    /// The registers of a cluster.
    pub(super) fn registers_of(&self, cluster: ClusterName) -> Result<&Registers, Status> {
        let all = self.registers.as_ref().ok_or(Status::NoRegisters)?;
        all.of(cluster).ok_or(Status::Elsewhere)
    }

    /// The cluster of a connection of the UMS.
    pub(super) fn connection_cluster(&self, connection: ConnectionId) -> Option<ClusterName> {
        self.management.peer(connection).map(|peer| peer.cluster)
    }

    /// Whether a connection of the UMS is of the home cluster.
    pub(super) fn is_home(&self, connection: ConnectionId) -> bool {
        self.connection_cluster(connection) == Some(self.cluster)
    }

    /// The other clusters that the unit serves, those included of which it only keeps registers.
    pub fn guest_clusters(&self) -> BTreeSet<ClusterName> {
        let guests = self.registers.iter().flat_map(Partitions::guests);
        guests.map(|(cluster, _)| cluster).collect()
    }

    /// Which assignment made the cluster the unit's.
    pub const fn assignment(&self) -> u64 {
        self.assignment
    }

    /// Takes connections of all clusters that there are registers of.
    pub(super) fn serve_clusters(&mut self) {
        let guests = self.guest_clusters();
        self.management
            .set_clusters(Some(self.cluster), guests.clone());
        self.service.set_clusters(Some(self.cluster), guests);
    }

    /// What is registered with fabric services.
    pub(super) fn register_facts(&mut self, now: Time) {
        let facts = self.inventory.facts();
        let facts = Facts {
            macs: facts.macs.clone(),
            name: facts.name.clone(),
            cluster: self.cluster_wanted,
            change: self.inventory.stamp().change,
            placement: self.serving.told.clone(),
        };
        self.link.update(now, facts);
    }

    /// Registers which clusters are served, where that has changed.
    pub(super) fn register_placement(&mut self, now: Time) {
        let mut guests = match &self.registers {
            Some(all) if all.has_guests() => all.populated(&self.inventory),
            _ => BTreeSet::new(),
        };
        guests.extend(self.serving.lingering.keys());
        guests.remove(&self.cluster);
        let placement = Placement {
            home: self.cluster,
            assignment: self.assignment,
            guests: guests.into_iter().collect(),
        };
        if self.serving.told != placement {
            self.serving.told = placement;
            self.register_facts(now);
        }
    }

    /// Something has left a cluster: where that was all, it is told so for a while.
    pub(super) fn left_cluster(&mut self, now: Time, cluster: ClusterName) {
        let populated = self
            .registers
            .as_ref()
            .map(|all| all.populated(&self.inventory));
        if cluster != self.cluster && populated.is_some_and(|p| !p.contains(&cluster)) {
            self.serving.lingering.insert(cluster, now + GUEST_LINGER);
        }
    }

    pub(super) fn tick_serving(&mut self, now: Time) {
        for cluster in std::mem::take(&mut self.serving.to_linger) {
            self.left_cluster(now, cluster);
            self.register_placement(now);
        }
        let before = self.serving.lingering.len();
        self.serving.lingering.retain(|_, until| *until > now);
        if std::mem::take(&mut self.serving.is_stale) || self.serving.lingering.len() != before {
            self.register_placement(now);
        }
        if let Some((_, (cluster, assignment))) = self.serving.retry.take_if(|(at, _)| *at <= now) {
            self.assigned(now, cluster, assignment);
        }
    }

    /// Fabric services say which cluster the unit belongs to; of two assignments the larger holds,
    /// of two with one number the larger name.
    pub(super) fn assigned(&mut self, now: Time, cluster: ClusterName, assignment: u64) {
        if !cluster.is_none() {
            self.serving.wanted = Some((cluster, assignment));
            self.next_change(now);
        }
    }

    /// An assignment could not be stored, and is looked at again after a while.
    pub(super) fn assigned_later(&mut self, now: Time, assigned: (ClusterName, u64)) {
        self.serving.retry = Some((now + ASSIGNMENT_RETRY, assigned));
    }

    /// Follows an assignment that waits; only where no transaction is under way.
    pub(super) fn follow_assignment(&mut self, now: Time) {
        let Some((cluster, assignment)) = self.serving.wanted.take() else {
            return;
        };
        if (assignment, cluster) <= (self.assignment, self.cluster) {
            return;
        }
        if self.cluster == cluster || self.cluster.is_none() {
            // Nobody loses anything by it.
            return self.settle_home(now, cluster, assignment);
        }
        let Some(all) = &self.registers else {
            if self
                .restoration
                .as_ref()
                .is_some_and(Restoration::is_storing)
            {
                self.serving.wanted = Some((cluster, assignment));
                return;
            }
            self.restoration = None;
            self.voter.leave_cluster(now);
            return self.settle_home(now, cluster, assignment);
        };
        let by = By {
            term: all.own().term(),
            writer: self.inventory.facts().guid,
        };
        let target = (cluster, assignment);
        // There is no owner to be refused; a plan that is too large is tried again by the next.
        if let Ok(change) = plan_home(all, &self.inventory, target, None, by) {
            let leaving = Leaving::Everything(self.cluster);
            self.begin(Transaction::of_move(None, change, leaving));
        }
    }

    /// Belongs to a cluster from now on; registers stay as they are.
    fn settle_home(&mut self, now: Time, cluster: ClusterName, assignment: u64) {
        self.cluster = cluster;
        self.assignment = assignment;
        let term = self.term_to_store();
        if let Some(all) = &mut self.registers {
            all.set_home(cluster);
            let change = Box::new(RegistersChange {
                term,
                home: cluster,
                assignment,
                ..RegistersChange::default()
            });
            // Nobody waits for it: fabric services say it again.
            let token = self.token();
            self.actions
                .push_back(UnitAction::PersistRegisters { token, change });
        }
        self.home_settled(now);
    }

    /// The home is another one, or by another assignment.
    pub(super) fn home_settled(&mut self, now: Time) {
        self.serve_clusters();
        self.actions
            .push_back(UnitAction::Joined(self.cluster, self.assignment));
        self.register_placement(now);
    }
}
