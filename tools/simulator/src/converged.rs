//! Whether a cluster has come to rest: what its tables must become once the faults have stopped.

use std::collections::BTreeSet;

use rma::crt::Table;

use crate::central::tables_in_use;
use crate::world::World;

/// Why the running hosts' tables are not what they must become, or `None` where they are: equal
/// on every host, stored, with every present row valid and every row owned as its register says.
pub fn unconverged(world: &World) -> Option<String> {
    let mut first: Option<(&str, u128)> = None;
    let kept = tables_in_use(world).next();
    let present = world.present();
    for (_, host) in world.hosts() {
        let Some(agent) = &host.agent else { continue };
        let name = host.name.as_str();
        if !agent.is_steady() {
            return Some(format!("host {name} is still in Fig. 5"));
        }
        let table = agent.table();
        if host.stored.stamp != table.stamp() || host.stored.table().digest() != table.digest() {
            return Some(format!("host {name} has not stored its table"));
        }
        if let Some(kept) = kept.filter(|kept| kept.digest() != table.digest()) {
            return Some(format!(
                "fabric services keep another table than host {name}: {}",
                difference(kept, table)
            ));
        }
        let (settings, promised) = (table.settings(), &world.model.sessions.settings);
        if settings.stamp < promised.stamp
            || (settings.stamp == promised.stamp && settings != promised)
        {
            return Some(format!(
                "host {name} has {settings:?}, but {promised:?} was acknowledged"
            ));
        }
        match first {
            None => first = Some((name, table.digest())),
            Some((other, digest)) if digest != table.digest() => {
                return Some(format!(
                    "hosts {other} and {name} differ: {}",
                    hosts_difference(world, other, name)
                ));
            }
            Some(_) => {}
        }
        for guid in &present {
            if table.get(*guid).is_none_or(|row| !row.is_valid()) {
                return Some(format!("host {name} lacks {guid}"));
            }
        }
        for row in table.rows() {
            let below_unit = table.unit_of(row.guid).is_some();
            if below_unit && table.is_present(row.guid) && !present.contains(&row.guid) {
                return Some(format!("host {name} still has {} ({})", row.name, row.guid));
            }
        }
        for (_, storage) in world.units() {
            let Some(stored) = &storage.stored else {
                return Some(format!("unit {} has no registers", storage.facts.name));
            };
            for register in &stored.registers {
                if !present.contains(&register.row) {
                    continue;
                }
                let row = table.get(register.row);
                if row
                    .is_none_or(|r| r.owned != register.owned || r.ownership != register.ownership)
                {
                    return Some(format!(
                        "host {name} says {:?} of {}, its register says {:?} at {:?}",
                        row.map(|r| (&r.ownership, r.owned)),
                        register.row,
                        register.ownership,
                        register.owned
                    ));
                }
            }
        }
    }
    None
}

/// Why equal tables do not have one stamp, where they do not: the larger one spreads.
pub fn uneven_stamps(world: &World) -> Option<String> {
    let stamps: BTreeSet<_> = world
        .hosts()
        .filter_map(|(_, host)| Some(host.agent.as_ref()?.table().stamp()))
        .chain(tables_in_use(world).map(Table::stamp))
        .collect();
    (stamps.len() > 1).then(|| format!("equal tables have the stamps {stamps:?}"))
}

fn hosts_difference(world: &World, a: &str, b: &str) -> String {
    let table = |name: &str| {
        world
            .hosts()
            .find(|(_, host)| host.name == name)
            .and_then(|(_, host)| host.agent.as_ref())
            .map(rma::rma::Agent::table)
    };
    let (Some(a), Some(b)) = (table(a), table(b)) else {
        return String::new();
    };
    difference(a, b)
}

/// The first thing in which two tables differ.
fn difference(a: &Table, b: &Table) -> String {
    for row in a.rows() {
        if b.get(row.guid) != Some(row) {
            return format!("{row:?} and {:?}", b.get(row.guid));
        }
    }
    for row in b.rows() {
        if a.get(row.guid).is_none() {
            return format!("only the second has {row:?}");
        }
    }
    format!("{:?} and {:?}", a.settings(), b.settings())
}
