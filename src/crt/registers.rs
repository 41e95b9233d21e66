//! What a unit remembers of its ownership registers: those of its home cluster, those of every
//! other cluster that devices of it were moved to, and which assignment made its home its home.

use std::collections::{BTreeMap, BTreeSet};

use crate::wire::message::OwnershipRegister;
use crate::wire::{ClusterName, Guid};

/// All registers of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredRegisters {
    /// Every register ever written in the home cluster.
    pub registers: Vec<OwnershipRegister>,
    /// The highest term seen in the home cluster.
    pub term: u64,
    /// The registers in other clusters, each with its cluster.
    pub guests: Vec<(ClusterName, OwnershipRegister)>,
    /// The home cluster; none where that was never stored.
    pub home: ClusterName,
    /// Counts the assignments of a home cluster: by fabric services, or by a move.
    pub assignment: u64,
}

/// A change of a unit's registers: all of it is durable, or nothing of it has happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistersChange {
    /// Registers of the (new) home cluster; others stay as they are.
    pub registers: Vec<OwnershipRegister>,
    /// The highest term seen in it.
    pub term: u64,
    /// Registers of other clusters; others stay as they are.
    pub guests: Vec<(ClusterName, OwnershipRegister)>,
    /// Rows that have no register in the home cluster any more.
    pub home_gone: BTreeSet<Guid>,
    /// Clusters that are no guests any more: the home is what they were.
    pub guests_gone: BTreeSet<ClusterName>,
    /// The home cluster after the change.
    pub home: ClusterName,
    /// The assignment that made it that.
    pub assignment: u64,
}

impl StoredRegisters {
    /// What is stored after a change.
    pub fn apply(&mut self, change: &RegistersChange) {
        let mut home: BTreeMap<Guid, OwnershipRegister> = self
            .registers
            .drain(..)
            .filter(|register| !change.home_gone.contains(&register.row))
            .map(|register| (register.row, register))
            .collect();
        home.extend(change.registers.iter().map(|r| (r.row, r.clone())));
        self.registers = home.into_values().collect();
        let mut guests: BTreeMap<(ClusterName, Guid), OwnershipRegister> = self
            .guests
            .drain(..)
            .filter(|(cluster, _)| !change.guests_gone.contains(cluster))
            .map(|(cluster, register)| ((cluster, register.row), register))
            .collect();
        let changed = change.guests.iter();
        guests.extend(changed.map(|(cluster, r)| ((*cluster, r.row), r.clone())));
        self.guests = guests
            .into_iter()
            .map(|((cluster, _), register)| (cluster, register))
            .collect();
        self.term = self.term.max(change.term);
        self.home = change.home;
        self.assignment = change.assignment;
    }

    /// The registers of a row, in whichever clusters.
    pub fn of_row(&self, row: Guid) -> impl Iterator<Item = &OwnershipRegister> {
        let guests = self.guests.iter().map(|(_, register)| register);
        let all = self.registers.iter().chain(guests);
        all.filter(move |register| register.row == row)
    }

    /// The same in the order in which it is kept: by cluster and row.
    pub fn sort(&mut self) {
        self.registers.sort_by_key(|register| register.row);
        self.guests
            .sort_by_key(|(cluster, register)| (*cluster, register.row));
    }
}
