//! Opening and changing the table's file at 65,536 rows, and what the table does in memory.
#![allow(missing_docs)] // criterion_group! makes a public function without any

use std::hint::black_box;
use std::path::PathBuf;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use rma::crt::Table;
use rma::store::{CrtFile, Snapshot};
use rma::wire::row::features;
use rma::wire::{
    ClusterName, EntityType, Epoch, Guid, Incarnation, IocNumber, IodNumber, Mac, ObservationStamp,
    Ownership, OwnershipStamp, Row,
};

const ROWS: usize = 65_536;
const HOSTS: u128 = 64;
const UNITS: u128 = 128;
const CONTROLLERS_PER_UNIT: u128 = 8;

/// Spreads numbers over the GUIDs as random ones would be.
fn guid(kind: u128, number: u128) -> Guid {
    Guid((kind << 64 | number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

fn row(kind: u128, number: u128, entity: EntityType, name: &str) -> Row {
    let mut row = Row::new(guid(kind, number), entity);
    row.name = format!("{name}-{number}");
    row.observed = ObservationStamp {
        incarnation: Incarnation(3),
        change: 7,
    };
    row
}

/// A cluster of [`ROWS`] rows: hosts, units with controllers, and devices with every field said.
fn cluster() -> Table {
    let mut rows = Vec::with_capacity(ROWS);
    for number in 0..HOSTS {
        let mut host = row(1, number, EntityType::Host, "host");
        host.macs = vec![Mac([2, 1, 0, 0, 0, number as u8])];
        rows.push(std::sync::Arc::new(host));
    }
    for number in 0..UNITS {
        let mut unit = row(2, number, EntityType::Unit, "unit");
        unit.macs = vec![
            Mac([2, 2, 0, 0, 0, number as u8]),
            Mac([2, 2, 0, 0, 1, number as u8]),
        ];
        rows.push(std::sync::Arc::new(unit));
    }
    let controllers = UNITS * CONTROLLERS_PER_UNIT;
    for number in 0..controllers {
        let mut controller = row(3, number, EntityType::Controller, "controller");
        controller.parent = guid(2, number % UNITS);
        controller.ioc = IocNumber((number / UNITS + 1) as u16);
        rows.push(std::sync::Arc::new(controller));
    }
    for number in 0..(ROWS - rows.len()) as u128 {
        let mut device = row(4, number, EntityType::Device, "device");
        device.parent = guid(3, number % controllers);
        device.ioc = IocNumber((number % controllers / UNITS + 1) as u16);
        device.iod = IodNumber((number / controllers + 1) as u16);
        device.vendor = "ACME Storage".into();
        device.model = "Rotating Rust 4000".into();
        device.serial = format!("SN{number:012}");
        device.size_bytes = 4 << 40;
        device.block_size = 4096;
        device.features = features::FUA | features::DURABLE | features::ROTATIONAL;
        device.ownership = Ownership::Dedicated(guid(1, number % HOSTS));
        device.owned = OwnershipStamp {
            epoch: Epoch(1),
            term: 1,
            writer: guid(1, 0),
        };
        rows.push(std::sync::Arc::new(device));
    }
    assert_eq!(rows.len(), ROWS);
    let mut table = Table::restore(
        rma::wire::Settings::default(),
        rma::wire::TableStamp::default(),
        rma::wire::TableStamp::default(),
        rows,
    );
    table.publish(1, guid(1, 0));
    table
}

/// Where the file is: on a disk, if `RMA_BENCH_DIR` names one.
fn directory() -> tempfile::TempDir {
    let place = std::env::var_os("RMA_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(place).expect("a directory for the bench")
}

fn file(c: &mut Criterion) {
    let directory = directory();
    let path = directory.path().join("crt");
    let (owner, name): (_, ClusterName) = (guid(1, 0), "bench".parse().expect("a name"));
    let mut table = cluster();
    let (mut file, _) = CrtFile::open(&path, owner, name).expect("a new file");
    file.replace(&table).expect("a whole table");

    let mut group = c.benchmark_group("crt_65536_rows");
    group.sample_size(20);
    let device = guid(4, 4321);
    let mut epoch = 1;
    group.bench_function("commit_one_row", |b| {
        b.iter(|| {
            epoch += 1;
            let mut row = table.get(device).expect("a device").clone();
            row.owned.epoch = Epoch(epoch);
            let changed = table.insert(row);
            table.publish(1, owner);
            file.commit(&table, &changed).expect("a commit");
        });
    });
    group.bench_function("commit_100_rows", |b| {
        b.iter(|| {
            epoch += 1;
            let mut changed = Vec::new();
            for number in (0..60_000).step_by(600) {
                let mut row = table.get(guid(4, number)).expect("a device").clone();
                row.owned.epoch = Epoch(epoch);
                changed.extend(table.insert(row));
            }
            table.publish(1, owner);
            file.commit(&table, &changed).expect("a commit");
        });
    });
    group.bench_function("replace_all", |b| {
        b.iter(|| file.replace(&table).expect("a whole table"));
    });
    group.bench_function("read_beside_the_writer", |b| {
        b.iter(|| black_box(Snapshot::read(&path).expect("a snapshot").table.digest()));
    });
    drop(file);
    group.bench_function("open", |b| {
        // The table is dropped outside the measurement, the file (and its lock) inside.
        b.iter_with_large_drop(|| CrtFile::open(&path, owner, name).expect("the file").1);
    });
    group.finish();
}

fn memory(c: &mut Criterion) {
    let table = cluster();
    let mut group = c.benchmark_group("table_65536_rows");
    group.sample_size(20);
    group.bench_function("join_equal", |b| {
        b.iter_batched(
            || table.rows().cloned().collect::<Vec<_>>(),
            |rows| {
                let mut ours = table.clone();
                black_box(ours.join(table.settings(), rows))
            },
            BatchSize::LargeInput,
        );
    });
    group.bench_function("owned_by", |b| {
        b.iter(|| black_box(table.owned_by(guid(1, 3)).count()));
    });
    group.bench_function("resolve_name", |b| {
        b.iter(|| black_box(table.resolve("device-4321")));
    });
    group.finish();
}

criterion_group!(benches, file, memory);
criterion_main!(benches);
