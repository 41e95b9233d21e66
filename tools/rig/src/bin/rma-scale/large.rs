//! A table of many rows: what it costs a host that has it stored, and a newcomer that gets it.

use std::time::{Duration, Instant};

use rma::crt::Table;
use rma::store::CrtFile;
use rma::wire::{EntityType, Guid, IocNumber, IodNumber, Row};
use rma_rig::{Daemon, NodeOptions, Program, Rig, wait_until};
use serde_json::json;

use super::{Args, Figures, Result, cost};

const PATIENCE: Duration = Duration::from_secs(180);
/// Units, their controllers, and devices of each: 128 × (1 + 8 × (1 + 63)) is 65,664.
const CONTROLLERS: usize = 8;
const DEVICES: usize = 63;
/// GUIDs of the rows begin with this.
const PREFIX: u128 = 0x5ca1_e000 << 96;
const FIRST: Guid = Guid(PREFIX | 0x0a11);

pub(crate) fn table(args: &Args, figures: &mut Figures) -> Result<()> {
    figures.say(&format!("a table of {} rows", args.rows));
    let rig = if args.disk {
        Rig::new()
    } else {
        Rig::in_memory()
    }?;
    let fabric = rig.add_node("fabric", NodeOptions::default())?;
    let _fabric = Daemon::start(&rig, fabric, Program::Fabric, "policy = \"auto-join\"\n")?;
    let state = rig.directory().join("keeper").join("state");
    std::fs::create_dir_all(&state)?;
    let (mut file, mut table) = CrtFile::open(&state.join("crt"), FIRST, "A".parse()?)?;
    fill(&mut table, args.rows);
    table.publish(1, FIRST);
    file.replace(&table)?;
    drop(file);
    drop(table);
    let host = |name: &str, more: &str| -> Result<Daemon> {
        let node = rig.add_node(name, NodeOptions::default())?;
        let config = format!("name = \"{name}\"\ncluster = \"A\"\n{more}");
        Ok(Daemon::start(&rig, node, Program::Host, &config)?)
    };
    let keeper = host("keeper", &format!("guid = \"{FIRST}\"\n"))?;
    let steady = |daemon: &Daemon, hosts: usize| {
        daemon.status().is_some_and(|s| {
            s["block"] == 0 && s["table"]["row_count"] == (args.rows + hosts) as u64
        })
    };
    wait_until(PATIENCE, "the stored table to be in use", || {
        steady(&keeper, 1)
    })?;
    let (stored, _) = cost::memory_mib(&keeper);
    figures.note("rss_stored_mib", json!(stored));
    let started = Instant::now();
    let newcomer = host("newcomer", "")?;
    wait_until(PATIENCE, "the newcomer to have the table", || {
        steady(&newcomer, 2)
            && steady(&keeper, 2)
            && newcomer
                .digest()
                .is_some_and(|d| Some(d) == keeper.digest())
    })?;
    figures.note("newcomer_s", json!(started.elapsed().as_secs_f64()));
    figures.note("newcomer_cpu_s", json!(cost::cpu(&newcomer).as_secs_f64()));
    let (kept, kept_peak) = cost::memory_mib(&keeper);
    let (got, got_peak) = cost::memory_mib(&newcomer);
    figures.note("rss_keeper_mib", json!(kept));
    figures.note("rss_newcomer_mib", json!(got));
    figures.note("rss_peak_mib", json!(kept_peak.max(got_peak)));
    figures.note("rss_rows", json!(args.rows));
    figures.note("rss_mib", json!(stored.max(kept).max(got)));
    Ok(())
}

/// Rows of units that are not there: they stay (silence removes nothing).
fn fill(table: &mut Table, rows: usize) {
    let mut next = 1_u128 << 32;
    let mut guid = || {
        next += 1;
        Guid(PREFIX | next)
    };
    let mut left = rows;
    let mut add = |row: Row| {
        let there = left > 0;
        if there {
            left -= 1;
            table.insert(row);
        }
        there
    };
    for unit_number in 1.. {
        let mut unit = Row::new(guid(), EntityType::Unit);
        unit.name = format!("unit{unit_number}");
        let unit_guid = unit.guid;
        if !add(unit) {
            return;
        }
        for ioc in 1..=CONTROLLERS {
            let mut controller = Row::new(guid(), EntityType::Controller);
            controller.name = format!("unit{unit_number}c{ioc}");
            controller.parent = unit_guid;
            controller.ioc = IocNumber(ioc as u16);
            let controller_guid = controller.guid;
            add(controller);
            for iod in 1..=DEVICES {
                let mut device = Row::new(guid(), EntityType::Device);
                device.name = format!("unit{unit_number}c{ioc}d{iod}");
                device.parent = controller_guid;
                (device.ioc, device.iod) = (IocNumber(ioc as u16), IodNumber(iod as u16));
                (device.size_bytes, device.block_size) = (1 << 40, 4096);
                device.vendor = "ACME".into();
                device.model = "Rotating Rust 9000".into();
                device.serial = format!("S{unit_number:04}{ioc:02}{iod:03}");
                add(device);
            }
        }
    }
}
