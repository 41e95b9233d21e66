//! Moves to another cluster: what of the registers changes with one, or why it is refused. Pure; one
//! transaction each, made by the UMS like a compare-and-set.

use std::collections::{BTreeMap, BTreeSet};

use super::inventory::{Inventory, Place};
use super::partition::{Partitions, left_behind};
use super::registers::{MAX_UNIT_REGISTERS, Registers};
use crate::crt::RegistersChange;
use crate::lease::is_far_term;
use crate::wire::message::{MAX_GUESTS, Move, OwnershipRegister};
use crate::wire::{ClusterName, Epoch, Guid, Ownership, OwnershipStamp, Status};

/// What a move comes to.
#[derive(Debug)]
pub(super) enum MoveVerdict {
    /// It was made already: this is the row's register as it was left behind.
    Already(OwnershipRegister),
    /// It may be made.
    Go(Box<Going>),
    /// It may not, because of this register.
    Refused(Status, OwnershipRegister),
}

/// Why a move may not be made, and the register in the way.
pub(super) type Blocked = (Status, Box<OwnershipRegister>);

fn blocked(status: Status, register: OwnershipRegister) -> Blocked {
    (status, Box::new(register))
}

/// A move that may be made.
#[derive(Debug)]
pub(super) struct Going {
    pub(super) change: RegistersChange,
    /// The row's register as it will be left behind.
    pub(super) left: OwnershipRegister,
    /// What of the cluster's goes.
    pub(super) leaving: Leaving,
}

/// What leaves a cluster: nobody writes there from the moment on that this is judged good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    Nothing,
    /// A device of a cluster.
    Device(ClusterName, Guid),
    /// All of a cluster.
    Everything(ClusterName),
}

/// To whom a unit that gets another home is given there.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewOwner {
    pub(super) host: Guid,
    /// Also what is below the unit.
    pub(super) recursive: bool,
}

/// Who makes a change, and in which session.
#[derive(Debug, Clone, Copy)]
pub(super) struct By {
    pub(super) term: u64,
    pub(super) writer: Guid,
}

/// Judges a move out of the cluster `from`. `promised` is the highest term that the unit has
/// promised as a voter there, `assignment` which one made the home what it is.
pub(super) fn judge(
    partitions: &Partitions,
    inventory: &Inventory,
    from: ClusterName,
    request: &Move,
    (promised, assignment): (u64, u64),
) -> MoveVerdict {
    let refused = |status, register| MoveVerdict::Refused(status, register);
    let row = request.row;
    let Some(registers) = partitions.of(from) else {
        return refused(Status::NoRow, Registers::default().get(row));
    };
    let register = registers.get(row);
    let is_unit = row == inventory.facts().guid;
    if request.to == from {
        return refused(Status::BadRequest, register);
    }
    if is_done(partitions, request, is_unit, &register) {
        return MoveVerdict::Already(register);
    }
    let listing = partitions.listing(inventory, from);
    match inventory.place(row) {
        Some(Place::Unit) if partitions.home() == from => {}
        Some(Place::Device(..)) if listing.has_row(row) => {}
        Some(Place::Controller(_)) => return refused(Status::BadRequest, register),
        Some(Place::Unit) => return refused(Status::Elsewhere, register),
        // Only whoever had it hears that it is still somewhere.
        _ if registers.is_known(row) && partitions.cluster_of(row) != from => {
            return refused(Status::Elsewhere, register);
        }
        _ => return refused(Status::NoRow, register),
    }
    let term = registers.term().max(promised);
    if is_far_term(request.term, term) {
        return refused(Status::FarTerm, register);
    }
    if request.term < term {
        return refused(Status::OlderTerm, register);
    }
    if register.owned.epoch != request.expected {
        return refused(Status::Conflict, register);
    }
    let by = By {
        term: request.term,
        writer: request.writer,
    };
    let planned = if is_unit {
        let owner = NewOwner {
            host: request.owner,
            recursive: request.recursive,
        };
        let next = assignment.saturating_add(1);
        plan_home(partitions, inventory, (request.to, next), Some(owner), by)
    } else {
        plan_device(partitions, inventory, from, request, assignment)
    };
    match planned {
        Ok(change) => {
            let left = left_behind(&register, by.term, by.writer);
            let leaving = if is_unit {
                Leaving::Everything(from)
            } else {
                Leaving::Device(from, row)
            };
            MoveVerdict::Go(Box::new(Going {
                change,
                left,
                leaving,
            }))
        }
        Err((status, blocking)) => refused(status, *blocking),
    }
}

/// Whether the row went where the request says: by this very request, or it is the wanted host's
/// there.
fn is_done(
    partitions: &Partitions,
    request: &Move,
    is_unit: bool,
    left: &OwnershipRegister,
) -> bool {
    let is_there = if is_unit {
        partitions.home() == request.to
    } else {
        partitions.cluster_of(request.row) == request.to
    };
    if !is_there || left.owned.epoch == Epoch(0) || left.ownership != Ownership::Unallocated {
        return false;
    }
    let is_this = left.owned.epoch.0.checked_sub(1) == Some(request.expected.0)
        && left.owned.writer == request.writer;
    let there = partitions.of(request.to);
    let is_owned = there.is_some_and(|there| there.owners(request.row).0.includes(request.owner));
    is_this || is_owned
}

/// Owners with one more; `None` where there are too many.
fn with_owner(ownership: &Ownership, host: Guid) -> Option<Ownership> {
    match ownership {
        Ownership::Unallocated => Some(Ownership::Dedicated(host)),
        _ if ownership.includes(host) => Some(ownership.clone()),
        _ => {
            let owners = ownership.owners().iter().copied();
            Ownership::shared(owners.chain([host]).collect())
        }
    }
}

fn plan_device(
    partitions: &Partitions,
    inventory: &Inventory,
    from: ClusterName,
    request: &Move,
    assignment: u64,
) -> Result<RegistersChange, Blocked> {
    let none = Registers::default();
    let old = partitions.of(from).unwrap_or(&none);
    let register = old.get(request.row);
    if old.is_carved(request.row) {
        return Err(blocked(Status::Carved, register));
    }
    let there = match partitions.of(request.to) {
        Some(there) => there,
        None if partitions.guests().count() < MAX_GUESTS => &none,
        None => return Err(blocked(Status::TooManyClusters, register)),
    };
    // What is in the register there was left behind, or the row has never been there.
    let before = there.owners(request.row).1.max(register.owned.epoch);
    let unit = inventory.facts().guid;
    let stamp = |epoch: u64| OwnershipStamp {
        epoch: Epoch(epoch),
        term: there.term(),
        writer: unit,
    };
    let mut arriving = vec![OwnershipRegister {
        row: request.row,
        ownership: Ownership::Dedicated(request.owner),
        owned: stamp(before.0.saturating_add(2)),
        extent: None,
    }];
    let mut above = inventory.parent(request.row);
    while let Some(container) = above {
        let known = there.get(container);
        let ownership = with_owner(&known.ownership, request.owner)
            .ok_or_else(|| blocked(Status::Hierarchy, known.clone()))?;
        if ownership != known.ownership {
            arriving.push(OwnershipRegister {
                row: container,
                ownership,
                owned: stamp(known.owned.epoch.0.saturating_add(1)),
                extent: None,
            });
        }
        above = inventory.parent(container);
    }
    let left = left_behind(&register, request.term, request.writer);
    if there.len() + arriving.len() > MAX_UNIT_REGISTERS || old.len() >= MAX_UNIT_REGISTERS {
        return Err(blocked(Status::NoSpace, register));
    }
    let mut change = RegistersChange {
        term: partitions.own().term(),
        home: partitions.home(),
        assignment,
        ..RegistersChange::default()
    };
    let tagged = arriving.into_iter().map(|register| (request.to, register));
    for (cluster, register) in tagged.chain([(from, left)]) {
        if cluster == partitions.home() {
            change.term = change.term.max(register.owned.term);
            change.registers.push(register);
        } else {
            change.guests.push((cluster, register));
        }
    }
    Ok(change)
}

/// The unit gets another home: everything that is at home goes there, without its owners and above
/// all epochs that they had. What was there as a guest's stays as it is, and stays its owners'.
/// Where there is room, what is left behind is kept.
pub(super) fn plan_home(
    partitions: &Partitions,
    inventory: &Inventory,
    (to, assignment): (ClusterName, u64),
    owner: Option<NewOwner>,
    by: By,
) -> Result<RegistersChange, Blocked> {
    let (from, own) = (partitions.home(), partitions.own());
    let none = Registers::default();
    let there = partitions.of(to).unwrap_or(&none);
    let kept = partitions.guests().filter(|(guest, _)| *guest != to);
    let has_room = kept.count() < MAX_GUESTS;
    let unit = inventory.facts().guid;
    if owner.is_some() && !has_room {
        return Err(blocked(Status::TooManyClusters, own.get(unit)));
    }
    let term = own.term().max(there.term()).max(by.term);
    let mut plan = HomePlan {
        partitions,
        there,
        stamp: By { term, writer: unit },
        arriving: BTreeMap::new(),
    };
    let mut rows: BTreeSet<Guid> = own.rows().collect();
    rows.insert(unit);
    if owner.is_some_and(|owner| owner.recursive) {
        for controller in inventory.children(unit) {
            rows.insert(controller);
            rows.extend(inventory.children(controller));
        }
    }
    let mut change = RegistersChange {
        term,
        home: to,
        assignment,
        ..RegistersChange::default()
    };
    for row in rows {
        let register = own.get(row);
        let is_container = !inventory.is_movable(row);
        let stays = is_container || partitions.cluster_of(row) == from;
        let left = if stays {
            plan.arrive(inventory, &register, is_container, owner)?;
            left_behind(&register, by.term.max(own.term()), by.writer)
        } else {
            // It went elsewhere before.
            change.home_gone.insert(row);
            register
        };
        if has_room && left.owned.epoch > Epoch(0) {
            change.guests.push((from, left));
        }
    }
    for register in there.registers() {
        plan.arriving
            .entry(register.row)
            .or_insert_with(|| register.clone());
    }
    change
        .home_gone
        .retain(|row| !plan.arriving.contains_key(row));
    if plan.arriving.len() > MAX_UNIT_REGISTERS {
        return Err(blocked(Status::NoSpace, own.get(unit)));
    }
    change.registers = plan.arriving.into_values().collect();
    if partitions.of(to).is_some() {
        change.guests_gone.insert(to);
    }
    Ok(change)
}

/// The registers of a new home.
struct HomePlan<'a> {
    partitions: &'a Partitions,
    there: &'a Registers,
    stamp: By,
    arriving: BTreeMap<Guid, OwnershipRegister>,
}

impl HomePlan<'_> {
    fn arrive(
        &mut self,
        inventory: &Inventory,
        register: &OwnershipRegister,
        is_container: bool,
        owner: Option<NewOwner>,
    ) -> Result<(), Blocked> {
        let row = register.row;
        let (guests, epoch) = self.there.owners(row);
        // Of guests that are there already, what holds their devices is theirs as well.
        let mut ownership = if is_container {
            guests.clone()
        } else {
            Ownership::Unallocated
        };
        let is_unit = row == inventory.facts().guid;
        let is_there = register.extent.as_ref().is_none_or(|facts| facts.present);
        let has_place = inventory.place(row).is_some() || self.device_is_there(inventory, register);
        let given = owner.filter(|owner| is_unit || (owner.recursive && is_there && has_place));
        if let Some(owner) = given {
            ownership = with_owner(&ownership, owner.host)
                .ok_or_else(|| blocked(Status::Hierarchy, register.clone()))?;
        }
        let epoch = epoch.max(register.owned.epoch);
        let arriving = OwnershipRegister {
            ownership,
            owned: OwnershipStamp {
                epoch: Epoch(epoch.0.saturating_add(2)),
                term: self.stamp.term,
                writer: self.stamp.writer,
            },
            ..register.clone()
        };
        self.arriving.insert(row, arriving);
        Ok(())
    }

    /// Whether the register is an extent's of a device that is at home and in the unit.
    fn device_is_there(&self, inventory: &Inventory, register: &OwnershipRegister) -> bool {
        register.extent.as_ref().is_some_and(|facts| {
            inventory.place(facts.device).is_some()
                && self.partitions.cluster_of(facts.device) == self.partitions.home()
        })
    }
}
