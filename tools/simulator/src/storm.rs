//! A boot storm: every host of a large cluster starts at the same time without a table, and all must
//! come to the same one. No faults; what counts is how many frames and how much memory it takes.

use std::collections::BTreeMap;
use std::time::Duration;

use rma::fabric::Policy;
use rma::wire::Time;

use crate::scenario::add_unit;
use crate::world::{Realism, World};

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Within which time the hosts are switched on.
const SWITCHED_ON_WITHIN: Duration = Duration::from_millis(500);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(250);

/// How it ended.
#[derive(Debug)]
pub struct Calm {
    /// Why the tables are not equal, where they are not.
    pub unconverged: Option<String>,
    /// Rows of every table.
    pub rows: usize,
    /// How long it took, in virtual time, from the first start.
    pub boot: Duration,
    /// Frames sent by all machines until then.
    pub frames: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// Frames by kind.
    pub kinds: BTreeMap<String, u64>,
}

/// Boots `hosts` hosts; `progress` hears of the virtual seconds, of the hosts that are through
/// Fig. 5, and of the frames so far.
pub fn storm(
    seed: u64,
    hosts: usize,
    units: usize,
    devices: usize,
    mut progress: impl FnMut(f64, usize, u64),
) -> Calm {
    let realism = Realism {
        shared: true,
        ..Realism::default()
    };
    let mut world = World::with(seed, realism);
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x0005_7014);
    let fabric = world.add_fabric(Policy::AutoJoin);
    let _ = fabric;
    for n in 0..units {
        let share = devices / units + usize::from(n < devices % units);
        let unit = add_unit(&mut world, n, share);
        world.start(unit);
    }
    let mut waiting: Vec<_> = (0..hosts)
        .map(|n| world.add_host(&format!("h{n}"), "A"))
        .collect();
    // Units and fabric services were there before.
    world.run_for(Duration::from_secs(5));
    rng.shuffle(&mut waiting);
    let begin = world.now();
    let (sent, bytes) = (world.network.sent, world.network.bytes);
    world.kinds.clear();
    let step = SWITCHED_ON_WITHIN / hosts.max(1) as u32;
    for host in waiting {
        world.start(host);
        world.run_for(step);
    }
    let rows = 1 + units * 3 + devices + hosts - 1;
    let mut why = Some(String::new());
    let mut looks = 0_u32;
    while why.is_some() && world.now().since(begin) < PATIENCE {
        world.run_for(LOOK);
        why = differs(&world, rows);
        looks += 1;
        if looks.is_multiple_of(4) {
            let steady = world.hosts().filter(|(_, host)| {
                let agent = host.agent.as_ref();
                agent.is_some_and(rma::rma::Agent::is_steady)
            });
            let virtual_s = world.now().since(begin).as_secs_f64();
            progress(virtual_s, steady.count(), world.network.sent - sent);
        }
    }
    Calm {
        unconverged: why,
        rows,
        boot: world.now().since(begin.max(Time::ZERO)),
        frames: world.network.sent - sent,
        bytes: world.network.bytes - bytes,
        kinds: world
            .kinds
            .iter()
            .map(|(kind, count)| ((*kind).to_owned(), *count))
            .collect(),
    }
}

/// Why the hosts do not have one table of so many rows, durable everywhere.
fn differs(world: &World, rows: usize) -> Option<String> {
    let mut first = None;
    for (_, host) in world.hosts() {
        let name = &host.name;
        let Some(agent) = host.agent.as_ref().filter(|agent| agent.is_steady()) else {
            return Some(format!("host {name} is still in Fig. 5"));
        };
        let table = agent.table();
        if table.len() != rows {
            return Some(format!("host {name} has {} of {rows} rows", table.len()));
        }
        if host.stored.stamp != table.stamp() {
            return Some(format!("host {name} has not stored its table"));
        }
        let digest = *first.get_or_insert(table.digest());
        if digest != table.digest() {
            return Some(format!("host {name} has another table than the first"));
        }
    }
    None
}
