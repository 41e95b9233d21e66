//! Fabric services over their real database: what was answered is in the file, at every moment.

mod fabric_world;

use std::path::{Path, PathBuf};
use std::time::Duration;

use fabric_world::{BAD_WIRE, World, cluster};
use rma::fabric::{Catalog, LinkEvent, Policy};
use rma::store::catalog::SqliteCatalog;
use rma::wire::message::UnitOwnership;
use rma::wire::{Epoch, Guid, Ownership};

/// Copies the database as a crash at this moment would leave it, and opens the copy.
fn survivor(path: &Path, number: usize) -> SqliteCatalog {
    let copy = path.with_file_name(format!("image{number}.db"));
    for suffix in ["", "-journal"] {
        let from = PathBuf::from(format!("{}{suffix}", path.display()));
        if from.exists() {
            std::fs::copy(from, format!("{}{suffix}", copy.display())).unwrap();
        }
    }
    SqliteCatalog::open(&copy).unwrap()
}

#[test]
fn a_crash_at_any_moment_loses_nothing_that_was_answered() {
    for seed in 0..6 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fabric.db");
        let mut world = World::<SqliteCatalog>::new(seed);
        world.faults = BAD_WIRE;
        let catalog = SqliteCatalog::open(&path).unwrap();
        world.add_fabric_on(9, Policy::AutoJoin, 1500, catalog);
        let hosts: Vec<_> = (1..=6)
            .map(|n| world.add_host(n, (n % 3 > 0).then_some("A")))
            .collect();
        let unit = world.add_unit(112, Some("A"));
        let told = UnitOwnership {
            unit: Guid(112),
            ownership: Ownership::Dedicated(Guid(1)),
            epoch: Epoch(3),
        };
        world.links[hosts[0]]
            .link
            .tell_unit_ownership(world.now, told.clone());
        let mut answered = 0;
        let guids: Vec<_> = (1..=6).chain([112]).map(Guid).collect();
        for round in 0..40 {
            let pause = Duration::from_micros(world.rng.u64(50..40_000));
            world.run_for(pause);
            if round == 20 {
                let now = world.now;
                let fabric = world.fabric(0);
                fabric.set_label("2024-05-06 07:08:09Z");
                let waits = fabric.snapshot().entities.contains_key(&Guid(3));
                assert_eq!(fabric.assign(now, Guid(3), cluster("A")).is_ok(), waits);
            }
            let state = survivor(&path, round).load().unwrap();
            assert_eq!(
                state,
                *world.fabric(0).snapshot(),
                "seed {seed} round {round}"
            );
            for (guid, node) in guids.iter().zip(&world.links) {
                for (_, event) in &node.events {
                    if let LinkEvent::Assigned(cluster) = event {
                        assert_eq!(state.entities[guid].assigned, *cluster);
                        answered += 1;
                    }
                }
            }
        }
        assert!(answered > 50);
        world.wait(Duration::from_secs(20), "everything is told", |w| {
            w.links[hosts[0]].link.untold_count() == 0
                && w.links.iter().all(|n| n.names().len() > 1)
        });

        // kill -9, and a start from what the crash left.
        let before = world.fabric(0).snapshot().clone();
        assert_eq!(before.entities[&Guid(112)].ownership, told.ownership);
        let disk = survivor(&path, 1000);
        world.fabrics[0].fabric = None;
        world.fabrics[0].disk = Some(disk);
        world.run_for(Duration::from_secs(10));
        world.start_fabric(0);
        assert_eq!(*world.fabric(0).snapshot(), before);
        let up = world.run_until(world.now + Duration::from_secs(30), |w| {
            w.links.iter().all(|n| n.link.is_up())
        });
        assert!(up);
        world.run_for(Duration::from_secs(5));
        assert_eq!(*world.fabric(0).snapshot(), before, "nobody is new");
        assert_eq!(world.links[unit].cluster(), cluster("A"));
    }
}
