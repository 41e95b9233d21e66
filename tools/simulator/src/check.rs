//! What was promised and what must always hold, kept outside of the system under test.

use std::collections::{BTreeMap, BTreeSet};

use rma::crt::{Table, rules};
use rma::lease::majority;
use rma::rma::HeldSession;
use rma::rma::request::{
    AllocationInfo, ApplyInfo, ApplyState, CarveInfo, GranularityInfo, MoveInfo, OwnershipInfo,
};
use rma::wire::message::OwnershipRegister;
use rma::wire::{
    EntityType, Epoch, Granularity, Guid, ObservationStamp, Ownership, OwnershipStamp, Row,
    Settings, TableStamp,
};

use crate::node::{Host, Machine, Storage};
use crate::sessions::Sessions;
use crate::stored::TableChange;

/// By how much epochs leap at least when registers are restored by force.
const EPOCH_LEAP: u64 = 1 << 32;

/// The most broken promises that are written down.
const MAX_VIOLATIONS: usize = 64;

/// What administrators were told, and what went wrong.
#[derive(Debug, Default)]
pub struct Model {
    /// The newest acknowledged change of each row.
    pub promised: BTreeMap<Guid, (Epoch, Ownership)>,
    /// Rows that were taken out of their units at least once.
    pub removed: BTreeSet<Guid>,
    /// How often a host was made no member any more.
    pub(crate) retired: usize,
    /// Rows that administrators have said are not coming back.
    pub(crate) forgotten: BTreeSet<Guid>,
    /// Units whose registers an administrator wanted back whatever other hosts may know.
    pub(crate) insisted: BTreeSet<Guid>,
    /// Rows that were forgotten, or purged somewhere with a tombstone, since the last promise of them: it may be
    /// that no table tells any more who owned them.
    gone: BTreeSet<Guid>,
    /// How new what a host knew of a row was when it purged the row as a tombstone.
    purged: BTreeMap<(Guid, Guid), ObservationStamp>,
    /// Who has changed registers in which term.
    writers: BTreeMap<u64, Guid>,
    /// The lease as it must be.
    pub sessions: Sessions,
    /// Acknowledged allocations that were lost (I1).
    pub lost_acknowledged: u64,
    /// Broken invariants, in words.
    pub violations: Vec<String>,
    /// How many allocations were acknowledged as changes.
    pub acknowledged: u64,
}

impl Model {
    /// Writes a broken invariant down.
    pub fn violated(&mut self, what: String) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(what);
        }
    }

    fn lost(&mut self, what: String) {
        self.lost_acknowledged += 1;
        self.violated(what);
    }

    /// An administrator was told that an allocation holds.
    pub(crate) fn acknowledged(&mut self, info: &AllocationInfo, host: &Host) {
        if info.changed {
            self.acknowledged += 1;
        }
        for change in &info.changes {
            self.promise(&change.row.guid, change.epoch, &change.after, host);
        }
    }

    /// An administrator was told what units have made of an apply.
    pub(crate) fn applied(&mut self, info: &ApplyInfo, host: &Host) {
        let done = info.units.iter().filter(|u| u.state == ApplyState::Done);
        for change in done.flat_map(|unit| &unit.changes) {
            self.acknowledged += 1;
            self.promise(&change.guid, change.epoch, &change.after, host);
        }
    }

    /// An administrator was told that settings hold.
    pub(crate) fn settled(
        &mut self,
        info: &GranularityInfo,
        host: &Host,
        session: Option<HeldSession>,
    ) {
        let stamp = TableStamp {
            term: info.stamp.term,
            counter: info.stamp.counter,
            writer: info.stamp.writer.parse().unwrap_or(Guid::NIL),
        };
        if host.stored.settings.stamp < stamp {
            self.lost(format!(
                "I1: settings {stamp:?} were acknowledged before host {} had stored them",
                host.name
            ));
        }
        let kept = self.sessions.settings_kept(stamp);
        // Of the voters by which the session was granted some may be members no more.
        let voters = session.map_or(0, |s| s.voters.saturating_sub(self.retired));
        if voters > 0 && kept < majority(voters) {
            self.lost(format!(
                "I1: settings {stamp:?} were acknowledged when {kept} of {voters} voters had stored them"
            ));
        }
        let mut known = Granularity::ALL.iter().copied();
        let named = known.find(|g| g.name() == info.granularity);
        if let Some(granularity) = named {
            let settings = Settings { granularity, stamp };
            self.sessions.settled(settings, voters);
        }
    }

    /// What a voter has on its disk now is no less than what it has promised.
    pub(crate) fn check_vote(&mut self, machine: &Machine) {
        let (voter, name, vote) = match machine {
            Machine::Host(host) => (host.guid, &host.name, &host.vote),
            Machine::Unit(unit) => (unit.facts.guid, &unit.facts.name, &unit.vote),
            Machine::Fabric(_) => return,
        };
        if let Some(vote) = vote {
            for what in self.sessions.stored(voter, name, vote) {
                self.violated(what);
            }
        }
    }

    fn promise(&mut self, guid: &str, epoch: u64, after: &OwnershipInfo, host: &Host) {
        let guid: Guid = guid.parse().unwrap_or(Guid::NIL);
        let ownership = ownership_of(after);
        let epoch = Epoch(epoch);
        let newest = self.promised.get(&guid).map_or(Epoch(0), |(e, _)| *e);
        let was_gone = self.forgotten.contains(&guid) || self.gone.contains(&guid);
        if epoch >= newest {
            self.promised.insert(guid, (epoch, ownership));
            self.gone.remove(&guid);
        }
        // It is on the disk of the host that acknowledged it.
        let stored = host.stored.rows.get(&guid).map(|r| &r.owned);
        // What was forgotten or purged meanwhile is gone, or begins anew until its unit is heard.
        let is_told = stored.is_some_and(|owned| *owned != OwnershipStamp::default());
        let is_known = is_told || !was_gone;
        if is_known && stored.is_none_or(|owned| owned.epoch < epoch) {
            self.lost(format!(
                "I1: {guid} was acknowledged at epoch {epoch} before host {} had stored it",
                host.name
            ));
        }
    }

    /// An administrator was told that a row is another cluster's: here it is nobody's.
    pub(crate) fn moved(&mut self, info: &MoveInfo, host: &Host) {
        if info.changed {
            self.acknowledged += 1;
            let nobody = &info.target.ownership;
            self.promise(&info.target.guid, info.target.epoch, nobody, host);
        }
    }

    /// An administrator was told that an extent is there, or gone.
    pub(crate) fn carved(&mut self, info: &CarveInfo, host: &Host) {
        let guid: Guid = info.extent.guid.parse().unwrap_or(Guid::NIL);
        let epoch = Epoch(info.extent.epoch);
        let newest = self.promised.get(&guid).map_or(Epoch(0), |(e, _)| *e);
        if info.changed && epoch >= newest {
            self.acknowledged += 1;
            // Somebody may have allocated it already.
            let ownership = ownership_of(&info.extent.ownership);
            self.promised.insert(guid, (epoch, ownership));
        }
        if !host.stored.rows.contains_key(&guid) {
            self.lost(format!(
                "I1: extent {guid} was acknowledged at epoch {epoch} before host {} had stored it",
                host.name
            ));
        }
    }

    /// The registers on a unit's disk obey the hierarchy and hold what was promised.
    pub(crate) fn check_unit_disk(&mut self, machine: &Machine) {
        let Machine::Unit(storage) = machine else {
            return;
        };
        let Some(stored) = &storage.stored else {
            return;
        };
        let mut broken = Vec::new();
        for guid in rows_of(storage) {
            let Some((epoch, ownership)) = self.promised.get(&guid) else {
                continue;
            };
            let kept = |r: &OwnershipRegister| {
                r.owned.epoch > *epoch || (r.owned.epoch == *epoch && r.ownership == *ownership)
            };
            // The promise may be one of a cluster that the unit is a guest of.
            if !stored.of_row(guid).any(kept) {
                let found: Vec<_> = stored.of_row(guid).collect();
                broken.push(format!(
                    "I1: {guid} was promised as {ownership:?} at epoch {epoch}, its registers say {found:?}"
                ));
            }
        }
        for what in broken {
            self.lost(what);
        }
    }

    /// The registers in force at a running unit obey the hierarchy. (On its disk a row that came
    /// back while its parent changed may look otherwise for a moment; a start resets it.)
    pub(crate) fn check_registers(&mut self, storage: &Storage) {
        let Some(unit) = &storage.unit else { return };
        let mut broken = Vec::new();
        let mut clusters = unit.guest_clusters();
        clusters.insert(unit.cluster());
        let mut check = |parent: Guid, child: Guid| {
            for cluster in &clusters {
                let above = unit.register_in(*cluster, parent);
                let below = unit.register_in(*cluster, child);
                let (Some(above), Some(below)) = (above, below) else {
                    continue;
                };
                if !rules::permits(&above.ownership, &below.ownership) {
                    broken.push(format!(
                        "I5: {below:?} under {above:?} in cluster {cluster}"
                    ));
                }
            }
        };
        for controller in storage.contents.controllers.values() {
            check(storage.facts.guid, controller.guid);
        }
        for ((ioc, _), device) in &storage.contents.devices {
            if let Some(controller) = storage.contents.controllers.get(ioc) {
                check(controller.guid, device.guid);
            }
        }
        for register in storage.stored.iter().flat_map(|s| &s.registers) {
            // As it is in force, which may be older than what is stored.
            let extent = unit.register(register.row).and_then(|r| r.extent);
            if let Some(facts) = extent.filter(|facts| facts.present) {
                check(facts.device, register.row);
            }
        }
        let mut extents: BTreeMap<Guid, Vec<(u64, u64)>> = BTreeMap::new();
        for register in storage.stored.iter().flat_map(|s| &s.registers) {
            let in_force = unit.register(register.row).and_then(|r| r.extent);
            if let Some(facts) = in_force.filter(|facts| facts.present) {
                let range = (facts.range.offset, facts.range.offset + facts.range.len);
                extents.entry(facts.device).or_default().push(range);
            }
        }
        for (device, mut ranges) in extents {
            ranges.sort_unstable();
            if ranges.windows(2).any(|pair| pair[1].0 < pair[0].1) {
                broken.push(format!("I5: extents of {device} overlap: {ranges:?}"));
            }
        }
        for what in broken {
            self.violated(what);
        }
    }

    /// A table that is about to be stored obeys the hierarchy, as far as it changes: and no row is without the
    /// one above it, whose owners then are anybody's guess.
    pub(crate) fn check_table(&mut self, table: &Table, change: &TableChange) {
        let mut broken = BTreeSet::new();
        let mut check = |parent: Option<&Row>, child: &Row| {
            let Some(parent) = parent else {
                broken.insert(format!("I5: {} is under nothing", child.name));
                return;
            };
            let whole = parent.is_valid() && child.is_valid();
            if whole && !rules::permits(&parent.ownership, &child.ownership) {
                broken.insert(format!(
                    "I5: {} belongs to {:?} under {} of {:?}",
                    child.name, child.ownership, parent.name, parent.ownership
                ));
            }
        };
        for (guid, row) in &change.rows {
            if let Some(row) = row.as_ref().filter(|row| !row.parent.is_nil()) {
                check(table.get(row.parent), row);
            }
            for child in table.children(*guid) {
                check(row.as_deref(), child);
            }
        }
        for what in broken {
            self.violated(what);
        }
    }

    /// What a host stores is never older than what it had stored: a fact is only replaced by a
    /// newer one, wherever it comes from.
    pub(crate) fn check_commit(&mut self, host: &Host, change: &TableChange) {
        let floor_rises = change.floor > host.stored.floor;
        let mut broken = self.check_purged(host, change);
        for (guid, row) in &change.rows {
            let Some(old) = host.stored.rows.get(guid) else {
                continue;
            };
            let Some(new) = row else {
                if !floor_rises {
                    broken.push(format!(
                        "I1: {} goes from the table of host {} without a floor",
                        old.name, host.name
                    ));
                }
                continue;
            };
            // What a floor takes from a table, with need or without, is heard of again from whoever
            // tells first, and then from its unit; both may come with one commit.
            let older = (new.owned, &new.ownership) < (old.owned, &old.ownership)
                || new.observed < old.observed;
            if older && !floor_rises {
                broken.push(format!(
                    "I1: host {} stores something older of {}: owned {:?} after {:?}, observed {:?} \
                     after {:?}",
                    host.name, new.name, new.owned, old.owned, new.observed, old.observed
                ));
            }
        }
        if change.settings.stamp < host.stored.settings.stamp {
            broken.push(format!("I1: host {} stores older settings", host.name));
        }
        for what in broken {
            self.lost(what);
        }
    }

    /// What was purged as a tombstone does not come back as it was before it became one.
    fn check_purged(&mut self, host: &Host, change: &TableChange) -> Vec<String> {
        let mut broken = Vec::new();
        for (guid, row) in &change.rows {
            let key = (host.guid, *guid);
            match (host.stored.rows.get(guid), row) {
                (Some(old), None) => {
                    // What another one's floor takes may be newer than what that host had purged.
                    let own = change.floor.writer == host.guid;
                    if !old.is_valid() && own {
                        self.purged.insert(key, old.observed);
                    }
                    if !host.stored.is_present(*guid) {
                        self.gone.insert(*guid);
                    }
                }
                (None, Some(new)) => {
                    let Some(seen) = self.purged.remove(&key) else {
                        continue;
                    };
                    // Where an administrator has not waited for every host, one may still tell of it.
                    if new.is_valid() && new.observed <= seen && !self.forgotten.contains(guid) {
                        broken.push(format!(
                            "I1: an old table brings {} back at host {}, which had purged it",
                            new.name, host.name
                        ));
                    }
                }
                _ => {}
            }
        }
        broken
    }

    /// Lost registers were restored. Where an administrator did not wait for every host's table, what
    /// only those hosts knew was given up.
    pub(crate) fn restored(&mut self, storage: &Storage, registers: &[OwnershipRegister]) {
        let leapt = |r: &OwnershipRegister| r.owned.epoch.0 >= EPOCH_LEAP;
        // Where nothing is restored there is nothing to tell by whether it was insisted on.
        let insisted = registers.is_empty() && self.insisted.contains(&storage.facts.guid);
        if insisted || registers.iter().any(leapt) {
            for row in rows_of(storage) {
                self.promised.remove(&row);
            }
            // Also of what is out of the unit just now.
            self.promised.retain(|row, _| !storage.owns(*row));
        }
        // What was purged may be in no table any more, or only in an old one.
        let told: BTreeMap<Guid, &OwnershipRegister> =
            registers.iter().map(|r| (r.row, r)).collect();
        for row in self.gone.iter().filter(|row| storage.owns(**row)) {
            let is_kept = |(epoch, ownership): &(Epoch, Ownership)| {
                told.get(row).is_some_and(|r| {
                    r.owned.epoch > *epoch || (r.owned.epoch, &r.ownership) == (*epoch, ownership)
                })
            };
            if !self.promised.get(row).is_some_and(is_kept) {
                self.promised.remove(row);
            }
        }
        // What has come back under a parent that does not permit its owners is reset, as the unit would do it.
        for (row, register) in told {
            let reset = register.owned == register.owned.not_permitted();
            let removed = self.removed.contains(&row);
            let promise = self.promised.get_mut(&row);
            match promise.filter(|(epoch, _)| *epoch == register.owned.epoch) {
                Some((_, ownership)) if reset && removed => {
                    *ownership = register.ownership.clone();
                }
                _ => {}
            }
        }
    }

    /// An administrator says that these rows are not coming back.
    pub(crate) fn forgets(&mut self, rows: &[Guid]) {
        self.forgotten.extend(rows);
        self.gone.extend(rows);
    }

    /// No register takes a change of an older term, and one term is one session's (I7).
    pub(crate) fn check_terms(
        &mut self,
        storage: &Storage,
        registers: &[OwnershipRegister],
        term: u64,
    ) {
        let unit = storage.facts.guid;
        let known = storage.stored.as_ref().map_or(0, |stored| stored.term);
        let own = |r: &&OwnershipRegister| r.owned.writer != unit;
        let mut broken = Vec::new();
        for register in registers.iter().filter(own) {
            if register.owned.term < known {
                broken.push(format!(
                    "I7: a change of term {} is stored at {} after term {known}",
                    register.owned.term, storage.facts.name
                ));
            }
        }
        // What is restored was made in sessions of others.
        let made = registers.iter().filter(|_| storage.stored.is_some());
        for register in made.filter(own) {
            let (term, writer) = (register.owned.term, register.owned.writer);
            // One that voters may have forgotten may be given twice.
            let known = term > self.sessions.forgotten();
            if known && *self.writers.entry(term).or_insert(writer) != writer {
                broken.push(format!("I7: two hosts change registers in term {term}"));
            }
        }
        if term < known {
            broken.push(format!("I7: the term of {} goes back", storage.facts.name));
        }
        for what in broken {
            self.violated(what);
        }
    }

    /// A command that changes a medium carries the epoch that is in force (I2).
    pub(crate) fn check_epoch(
        &mut self,
        device: Guid,
        carried: Option<Epoch>,
        register: Option<OwnershipRegister>,
    ) {
        let in_force = register.map(|r| r.owned.epoch);
        if let (Some(carried), Some(epoch)) = (carried, in_force)
            && carried != epoch
        {
            self.violated(format!(
                "I2: a command of epoch {carried} is carried out on {device}, which is at {epoch}"
            ));
        }
    }

    /// Only what was taken out of its unit is marked invalid (I6).
    pub(crate) fn check_silence(&mut self, host: &Host, change: &TableChange) {
        let rows = change.rows.iter().filter_map(|(_, row)| row.as_ref());
        let silent: Vec<String> = rows
            .filter(|row| !row.is_valid() && !self.removed.contains(&row.guid))
            // Extents go with their registers; that they do is part of convergence.
            .filter(|row| row.entity != EntityType::Extent)
            .map(|row| {
                format!(
                    "I6: {} is invalid at host {}, but was never taken out",
                    row.name, host.name
                )
            })
            .collect();
        for what in silent {
            self.violated(what);
        }
    }
}

fn ownership_of(info: &OwnershipInfo) -> Ownership {
    let owners: Vec<Guid> = info
        .owners
        .iter()
        .filter_map(|o| o.guid.parse().ok())
        .collect();
    match (info.ownership.as_str(), &owners[..]) {
        ("dedicated", [one]) => Ownership::Dedicated(*one),
        ("shared", _) => Ownership::shared(owners).unwrap_or_default(),
        _ => Ownership::Unallocated,
    }
}

fn rows_of(storage: &Storage) -> Vec<Guid> {
    std::iter::once(storage.facts.guid)
        .chain(storage.contents.controllers.values().map(|c| c.guid))
        .chain(storage.contents.devices.values().map(|d| d.guid))
        .chain(storage.extents())
        .collect()
}
