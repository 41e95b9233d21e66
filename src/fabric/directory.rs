//! The rules of the fabric services database: who may be in it, in which cluster, with which owner.
//!
//! Changes are staged: they show at once in what is read, and [`Directory::commit`] makes them
//! durable as one transaction or takes all of them back. Nobody may be told of a staged change.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::catalog::{
    Catalog, CatalogError, Change, Entity, MAX_CLUSTER_MEMBERS, MAX_ENTITIES, MAX_PENDING, Snapshot,
};
use super::service::Policy;
use crate::wire::message::{Member, MembershipReply, Register, UnitOwnership};
use crate::wire::{ClusterName, EntityType, Epoch, Guid, Mac, Ownership, Status};

/// The fewest hexadecimal digits of a GUID that name an entity.
pub const MIN_PREFIX_DIGITS: usize = 8;

/// What a registration changed, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterNote {
    /// A row was made.
    New,
    /// A pending entity joined the cluster it asks for.
    Joined(ClusterName),
    /// The entity is at other addresses than before.
    Moved {
        /// Where it was.
        from: Vec<Mac>,
        /// Where it is.
        to: Vec<Mac>,
    },
    /// The unit was moved to another cluster.
    Transferred {
        /// Where it belonged.
        from: ClusterName,
        /// Where it belongs.
        to: ClusterName,
    },
    /// It asks for another cluster than the one assigned, which stays.
    KeepsCluster {
        /// Asked for.
        requested: ClusterName,
        /// Kept.
        assigned: ClusterName,
    },
    /// Its incarnation is lower than before: it has lost its state directory.
    WentBack,
    /// Another pending entity was forgotten to make room.
    Forgot(Guid),
}

/// What a commit changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changed {
    /// Clusters whose list is another one now.
    pub clusters: BTreeSet<ClusterName>,
    /// Entities that are assigned to another cluster now, or removed.
    pub reassigned: BTreeSet<Guid>,
}

/// A name, address or GUID names no entity, or several.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// None.
    #[error(
        "no host or unit is called '{0}'; say a GUID (or its first 8 digits and more), name or MAC address of the list"
    )]
    Unknown(String),
    /// Several.
    #[error("'{text}' is ambiguous: {}; say the GUID", candidates(.guids))]
    Ambiguous {
        /// What was said.
        text: String,
        /// What it may mean.
        guids: Vec<Guid>,
    },
}

fn candidates(guids: &[Guid]) -> String {
    let texts: Vec<_> = guids.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

/// The administrator's change cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AssignError {
    /// No such entity.
    #[error("no host or unit has the GUID {0}")]
    Unknown(Guid),
    /// The cluster is full.
    #[error("cluster {cluster} has {MAX_CLUSTER_MEMBERS} members, which is the limit")]
    Full {
        /// The cluster.
        cluster: ClusterName,
    },
    /// The change is not durable and has not happened.
    #[error("nothing was changed")]
    Catalog(#[from] CatalogError),
}

/// The database in memory, with what is staged, over the catalog that makes it durable.
#[derive(Debug)]
pub struct Directory<C> {
    catalog: C,
    state: Snapshot,
    /// Every cluster's members, guests included; those without a cluster are under none.
    index: BTreeMap<ClusterName, BTreeSet<Guid>>,
    /// The rows that are staged, as they were before.
    before: BTreeMap<Guid, Option<Entity>>,
    label: String,
}

impl<C: Catalog> Directory<C> {
    /// What the catalog holds.
    pub fn load(catalog: C) -> Result<Self, CatalogError> {
        let mut directory = Self {
            catalog,
            state: Snapshot::default(),
            index: BTreeMap::new(),
            before: BTreeMap::new(),
            label: String::new(),
        };
        directory.reload()?;
        Ok(directory)
    }

    fn reload(&mut self) -> Result<(), CatalogError> {
        self.state = self.catalog.load()?;
        self.before.clear();
        self.index.clear();
        for (guid, entity) in &self.state.entities {
            for cluster in entity.clusters() {
                self.index.entry(cluster).or_default().insert(*guid);
            }
        }
        Ok(())
    }

    /// The date and time, for people, of the changes from now on.
    pub fn set_label(&mut self, label: &str) {
        if self.label != label {
            label.clone_into(&mut self.label);
        }
    }

    /// The date and time of changes, for people.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The database with what is staged.
    pub const fn state(&self) -> &Snapshot {
        &self.state
    }

    /// The catalog behind it.
    pub const fn catalog_mut(&mut self) -> &mut C {
        &mut self.catalog
    }

    /// One row.
    pub fn get(&self, guid: Guid) -> Option<&Entity> {
        self.state.entities.get(&guid)
    }

    /// The cluster that `guid` is assigned to, none where it is pending or unknown.
    pub fn cluster_of(&self, guid: Guid) -> ClusterName {
        self.get(guid).map_or(ClusterName::NONE, |e| e.assigned)
    }

    /// How many are assigned to `cluster`; of [`ClusterName::NONE`], how many are pending.
    pub fn member_count(&self, cluster: ClusterName) -> usize {
        self.index.get(&cluster).map_or(0, BTreeSet::len)
    }

    /// Stages a registration (of an entity that is who it says). `forget` chooses whom of the
    /// pending ones to forget where there are too many.
    pub fn register(
        &mut self,
        register: &Register,
        policy: Policy,
        forget: impl FnOnce(&BTreeSet<Guid>) -> Option<Guid>,
        notes: &mut Vec<RegisterNote>,
    ) -> Result<ClusterName, Status> {
        let old = self.get(register.guid);
        if old.is_some_and(|e| e.entity != register.entity) {
            return Err(Status::WrongIdentity);
        }
        let mut entity = old.cloned().unwrap_or_else(|| Entity {
            guid: register.guid,
            entity: register.entity,
            macs: Vec::new(),
            name: String::new(),
            observed: register.observed,
            requested: ClusterName::NONE,
            assigned: ClusterName::NONE,
            assignment: 0,
            guests: BTreeMap::new(),
            ownership: Ownership::Unallocated,
            epoch: Epoch(0),
            version: 0,
            label: String::new(),
        });
        let wants = register.cluster;
        self.place(&mut entity, &register.placement, notes);
        // A unit that was somewhere already stays there, whatever was lost here.
        let home = register.placement.home;
        let joins = if home.is_none() { wants } else { home };
        if entity.is_pending()
            && policy == Policy::AutoJoin
            && !joins.is_none()
            && self.has_room(joins)
        {
            entity.assigned = joins;
            if home.is_none() || entity.assignment == 0 {
                entity.assignment += 1;
            }
            notes.push(RegisterNote::Joined(joins));
            self.place(&mut entity, &register.placement, notes);
        }
        if let Some(old) = self.get(register.guid) {
            if old.macs != register.macs {
                notes.push(RegisterNote::Moved {
                    from: old.macs.clone(),
                    to: register.macs.clone(),
                });
            }
            if old.observed.incarnation > register.observed.incarnation {
                notes.push(RegisterNote::WentBack);
            }
        } else {
            if let Some(forgotten) = self.make_room(entity.is_pending(), forget)? {
                notes.push(RegisterNote::Forgot(forgotten));
            }
            notes.push(RegisterNote::New);
        }
        if !entity.is_pending()
            && !wants.is_none()
            && wants != entity.assigned
            && wants != entity.requested
        {
            notes.push(RegisterNote::KeepsCluster {
                requested: wants,
                assigned: entity.assigned,
            });
        }
        entity.macs.clone_from(&register.macs);
        entity.name.clone_from(&register.name);
        entity.observed = register.observed;
        entity.requested = wants;
        let assigned = entity.assigned;
        self.stage(register.guid, Some(entity));
        Ok(assigned)
    }

    pub(super) fn has_room(&self, cluster: ClusterName) -> bool {
        self.member_count(cluster) < MAX_CLUSTER_MEMBERS
    }

    /// Makes room for one more row; says whom it forgot for it.
    fn make_room(
        &mut self,
        pending: bool,
        forget: impl FnOnce(&BTreeSet<Guid>) -> Option<Guid>,
    ) -> Result<Option<Guid>, Status> {
        let pending_full = pending && self.member_count(ClusterName::NONE) >= MAX_PENDING;
        if !pending_full && self.state.entities.len() < MAX_ENTITIES {
            return Ok(None);
        }
        let victim = self.index.get(&ClusterName::NONE).and_then(forget);
        let victim = victim.ok_or(Status::Busy)?;
        self.stage(victim, None);
        Ok(Some(victim))
    }

    /// Stages what a member of the unit's cluster says about its owners: a larger epoch wins.
    pub fn own_unit(&mut self, teller: Guid, told: &UnitOwnership) -> Result<(), Status> {
        let cluster = self.cluster_of(teller);
        let is_host = |e: &Entity| e.entity == EntityType::Host && !e.is_pending();
        if !self.get(teller).is_some_and(is_host) {
            return Err(Status::Pending);
        }
        // A unit of another cluster is answered like one that does not exist.
        let unit = self
            .get(told.unit)
            .filter(|e| e.entity == EntityType::Unit && e.clusters().any(|c| c == cluster))
            .ok_or(Status::NoRow)?;
        let mut unit = unit.clone();
        let (ownership, epoch) = match unit.guests.get_mut(&cluster) {
            Some(guest) => (&mut guest.ownership, &mut guest.epoch),
            None => (&mut unit.ownership, &mut unit.epoch),
        };
        if told.epoch < *epoch || (told.epoch == *epoch && told.ownership == *ownership) {
            return Ok(());
        }
        if told.epoch == *epoch {
            return Err(Status::Conflict);
        }
        *epoch = told.epoch;
        ownership.clone_from(&told.ownership);
        self.stage(told.unit, Some(unit));
        Ok(())
    }

    /// Stages an assignment; an entity that changes clusters takes no owners along.
    pub fn assign(&mut self, guid: Guid, cluster: ClusterName) -> Result<(), AssignError> {
        let mut entity = self.get(guid).ok_or(AssignError::Unknown(guid))?.clone();
        if entity.assigned == cluster {
            return Ok(());
        }
        if !self.has_room(cluster) {
            return Err(AssignError::Full { cluster });
        }
        entity.give_home(cluster);
        // The unit follows the larger one: it may have been moved meanwhile.
        entity.assignment = entity.assignment.saturating_add(1);
        self.stage(guid, Some(entity));
        Ok(())
    }

    /// Stages a removal.
    pub fn remove(&mut self, guid: Guid) -> Result<(), AssignError> {
        self.get(guid).ok_or(AssignError::Unknown(guid))?;
        self.stage(guid, None);
        Ok(())
    }

    fn stage(&mut self, guid: Guid, entity: Option<Entity>) {
        let old = self.replace(guid, entity);
        self.before.entry(guid).or_insert(old);
    }

    /// Puts a row in place and gives what was there.
    fn replace(&mut self, guid: Guid, entity: Option<Entity>) -> Option<Entity> {
        let clusters: Vec<ClusterName> = entity.iter().flat_map(Entity::clusters).collect();
        let old = match entity {
            Some(entity) => self.state.entities.insert(guid, entity),
            None => self.state.entities.remove(&guid),
        };
        for cluster in old.iter().flat_map(Entity::clusters) {
            if let Some(members) = self.index.get_mut(&cluster) {
                members.remove(&guid);
                if members.is_empty() {
                    self.index.remove(&cluster);
                }
            }
        }
        for cluster in clusters {
            self.index.entry(cluster).or_default().insert(guid);
        }
        old
    }

    /// Whether something is staged that differs from what is durable.
    pub fn is_staged(&self) -> bool {
        self.before
            .iter()
            .any(|(guid, before)| self.state.entities.get(guid) != before.as_ref())
    }

    /// Takes back what is staged.
    pub fn roll_back(&mut self) {
        for (guid, before) in std::mem::take(&mut self.before) {
            self.replace(guid, before);
        }
    }

    /// Makes what is staged durable, or takes it back.
    pub fn commit(&mut self) -> Result<Changed, CatalogError> {
        let (change, changed) = self.prepare();
        if change.put.is_empty() && change.removed.is_empty() {
            self.before.clear();
            return Ok(changed);
        }
        match self.catalog.commit(&change) {
            Ok(()) => {
                self.before.clear();
                // The expected version is the state's own.
                let applied = self.state.apply(&change);
                debug_assert!(applied.is_ok());
                Ok(changed)
            }
            Err(error) => {
                self.roll_back();
                if matches!(error, CatalogError::Conflict { .. }) {
                    self.reload()?;
                }
                Err(error)
            }
        }
    }

    fn prepare(&self) -> (Change, Changed) {
        let version = self.state.version + 1;
        let mut change = Change {
            expected: self.state.version,
            version,
            label: self.label.clone(),
            ..Change::default()
        };
        let mut changed = Changed::default();
        for (guid, before) in &self.before {
            let after = self.state.entities.get(guid);
            if after == before.as_ref() {
                continue;
            }
            let (was, is) = (before.as_ref(), after);
            if was.map(|e| e.assigned) != is.map(|e| e.assigned) && was.is_some() {
                changed.reassigned.insert(*guid);
            }
            // A list shows the versions of its rows too: any change of a row is one of its list.
            let both = was.into_iter().chain(is).flat_map(Entity::clusters);
            changed.clusters.extend(both.filter(|c| !c.is_none()));
            match is {
                None => change.removed.push(*guid),
                Some(entity) => change.put.push(Entity {
                    version,
                    label: self.label.clone(),
                    ..entity.clone()
                }),
            }
        }
        let (emptied, touched) = changed
            .clusters
            .iter()
            .partition(|c| self.member_count(**c) == 0);
        (change.emptied, change.touched) = (emptied, touched);
        (change, changed)
    }

    /// The members of a cluster, guests included.
    pub(super) fn members(&self, cluster: ClusterName) -> impl Iterator<Item = &Entity> {
        let guids = self.index.get(&cluster).into_iter().flatten();
        guids.filter_map(|guid| self.get(*guid))
    }

    /// A page of `cluster`'s list, of at most `max_bytes` of members (but at least one member).
    pub fn page(
        &self,
        cluster: ClusterName,
        known_version: u64,
        after: Guid,
        max_bytes: usize,
    ) -> MembershipReply {
        let version = self.state.clusters.get(&cluster).copied().unwrap_or(0);
        let mut reply = MembershipReply {
            version,
            unchanged: false,
            more: false,
            members: Vec::new(),
        };
        if after.is_nil() && version != 0 && known_version == version {
            reply.unchanged = true;
            return reply;
        }
        let none = BTreeSet::new();
        let guids = self.index.get(&cluster).unwrap_or(&none);
        let mut rest = guids.range((Bound::Excluded(after), Bound::Unbounded));
        let mut used = 0;
        for guid in rest.by_ref() {
            let Some(member) = self.get(*guid).map(|e| e.to_member(cluster)) else {
                continue;
            };
            used += encoded_len(&member);
            if used > max_bytes && !reply.members.is_empty() {
                reply.more = true;
                break;
            }
            reply.members.push(member);
        }
        reply
    }

    /// The entity that `text` names: a GUID or at least 8 of its first digits, a MAC address, or a
    /// name.
    pub fn resolve(&self, text: &str) -> Result<Guid, ResolveError> {
        let found: Vec<Guid> = self
            .state
            .entities
            .values()
            .filter(|e| names(text, e))
            .map(|e| e.guid)
            .collect();
        match found[..] {
            [] => Err(ResolveError::Unknown(text.escape_default().to_string())),
            [one] => Ok(one),
            _ => Err(ResolveError::Ambiguous {
                text: text.escape_default().to_string(),
                guids: found,
            }),
        }
    }
}

fn encoded_len(member: &Member) -> usize {
    use crate::wire::Wire;
    member.to_body().len()
}

fn names(text: &str, entity: &Entity) -> bool {
    if text == entity.name || text.parse().is_ok_and(|mac| entity.macs.contains(&mac)) {
        return true;
    }
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    digits.len() >= MIN_PREFIX_DIGITS
        && format!("{:032x}", entity.guid.0).starts_with(&digits.to_ascii_lowercase())
}
