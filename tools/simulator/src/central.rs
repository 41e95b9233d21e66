//! The tables that fabric services keep: what becomes of them at a crash, and what must always hold
//! of them.

use std::collections::{BTreeMap, BTreeSet};

use rma::crt::{Table, rules};
use rma::fabric::MemoryCatalog;
use rma::rma::CrtSource;
use rma::wire::{ClusterName, EntityType, Guid, Row};

use crate::node::{Machine, Services};
use crate::world::World;

/// What becomes of the tables that fabric services keep when they end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fate {
    /// They are there again.
    #[default]
    Kept,
    /// The database is lost.
    Lost,
    /// They are those of an older copy of the database.
    Stale,
}

/// How a story uses the tables that fabric services keep.
#[derive(Debug)]
pub(crate) struct Use {
    pub(crate) fate: Fate,
    share: f64,
    rng: fastrand::Rng,
}

impl Use {
    /// No host does, some do, or all: as the story's seed wants, and apart from all else that is drawn.
    pub(crate) fn draw(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x00ce_47e1);
        Self {
            fate: [Fate::Kept, Fate::Kept, Fate::Lost, Fate::Stale][rng.usize(0..4)],
            share: [0.0, 0.5, 1.0][rng.usize(0..3)],
            rng,
        }
    }

    /// Where the next host gets its table from.
    pub(crate) fn next(&mut self) -> CrtSource {
        if self.rng.f64() < self.share {
            CrtSource::Central
        } else {
            CrtSource::Peers
        }
    }
}

/// The tables as they were seen last.
#[derive(Debug, Default)]
pub(crate) struct Seen(BTreeMap<ClusterName, Table>);

impl Services {
    pub(crate) fn crash(&mut self) {
        let Some(mut fabric) = self.fabric.take() else {
            return;
        };
        self.catalog = fabric.catalog_mut().clone();
        match self.fate {
            Fate::Kept => return,
            Fate::Lost => self.catalog.lose_tables(),
            Fate::Stale => {
                let backup = self.backup.get_or_insert_with(|| self.catalog.clone());
                self.catalog.take_tables_of(backup);
            }
        }
        self.seen = Seen::default();
    }

    /// Does something to the database while they are down.
    pub fn forge(&mut self, act: impl FnOnce(&mut MemoryCatalog)) {
        act(&mut self.catalog);
        self.seen = Seen::default();
    }

    /// What is wrong with the tables that have changed: each obeys the hierarchy (I5), nothing in it
    /// is older than it was (I1), and only what was taken out is invalid (I6).
    pub(crate) fn check_tables(&mut self, removed: &BTreeSet<Guid>) -> Vec<String> {
        let mut broken = Vec::new();
        let Some(fabric) = &self.fabric else {
            return broken;
        };
        for (cluster, table) in fabric.tables() {
            let seen = &mut self.seen.0;
            let before = seen.get(&cluster);
            if before.is_some_and(|before| before.summary() == table.summary()) {
                continue;
            }
            for row in table.rows() {
                let old = before.and_then(|before| before.get(row.guid));
                if old != Some(row) {
                    broken.extend(check_row(table, row, old, removed));
                }
            }
            seen.insert(cluster, table.clone());
        }
        broken
    }
}

fn check_row(
    table: &Table,
    row: &Row,
    old: Option<&Row>,
    removed: &BTreeSet<Guid>,
) -> Option<String> {
    if let Some(old) = old
        && ((row.owned, &row.ownership) < (old.owned, &old.ownership)
            || row.observed < old.observed)
    {
        return Some(format!(
            "I1: fabric services keep something older of {}: {:?} after {:?}",
            row.name, row.owned, old.owned
        ));
    }
    let fits = |parent: &Row, child: &Row| {
        let whole = parent.is_valid() && child.is_valid();
        !whole || rules::permits(&parent.ownership, &child.ownership)
    };
    let below_fits = table.children(row.guid).all(|child| fits(row, child));
    if !below_fits
        || table
            .get(row.parent)
            .is_some_and(|parent| !fits(parent, row))
    {
        return Some(format!(
            "I5: in the table of fabric services {} does not fit what is above or below it",
            row.name
        ));
    }
    let silent = !row.is_valid() && !removed.contains(&row.guid);
    (silent && row.entity != EntityType::Extent).then(|| {
        format!(
            "I6: {} is invalid at fabric services, but was never taken out",
            row.name
        )
    })
}

/// The tables that fabric services keep for hosts that use them, of which each must become equal to
/// the hosts'.
pub(crate) fn tables_in_use(world: &World) -> impl Iterator<Item = &Table> {
    let uses = |name: &ClusterName| {
        let mut hosts = world.hosts().filter(|(_, host)| host.agent.is_some());
        hosts.any(|(_, host)| host.cluster == *name && host.crt_source == CrtSource::Central)
    };
    let machines = world.machines().filter_map(|machine| match machine {
        Machine::Fabric(services) => services.fabric.as_ref(),
        _ => None,
    });
    machines
        .flat_map(rma::fabric::Fabric::tables)
        .filter(move |(name, _)| uses(name))
        .map(|(_, table)| table)
}
