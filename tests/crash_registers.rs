//! I9 for a unit's registers: a transaction that carves, gives away and removes extents is on the disk as
//! a whole or not at all, whatever moment the power goes.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use rma::crt::image::{Commit, Image, ImageKind, MemoryStorage};
use rma::crt::{RegistersChange, RegistersImage, Storage, StoredRegisters};
use rma::wire::message::{ExtentFacts, OwnershipRegister};
use rma::wire::{ClusterName, Epoch, Extent, Guid, Ownership, OwnershipStamp, Wire};

const SECTOR: usize = 512;
const UNIT: Guid = Guid(0x112);
const DISK: Guid = Guid(0x2_0001);

#[derive(Debug, Clone)]
enum Op {
    Write(usize, Vec<u8>),
    Sync(usize, usize),
    Grow(usize),
}

/// A disk that remembers what was done to it.
#[derive(Debug, Clone, Default)]
struct Recorder(Rc<RefCell<(Vec<u8>, Vec<Op>)>>);

impl Storage for Recorder {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.borrow().0.len() as u64)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        buffer.copy_from_slice(&self.0.borrow().0[at..at + buffer.len()]);
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        let at = offset as usize;
        disk.0[at..at + bytes.len()].copy_from_slice(bytes);
        disk.1.push(Op::Write(at, bytes.to_vec()));
        Ok(())
    }

    fn sync(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let op = Op::Sync(offset as usize, len as usize);
        self.0.borrow_mut().1.push(op);
        Ok(())
    }

    fn grow(&mut self, len: u64) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        disk.0.resize(len as usize, 0);
        disk.1.push(Op::Grow(len as usize));
        Ok(())
    }
}

/// What may be on the platter after the first `count` operations: what was synced, and of the rest the
/// sectors that `survives` says.
fn crashed(log: &[Op], count: usize, mut survives: impl FnMut() -> bool) -> Vec<u8> {
    let mut synced: Vec<u8> = Vec::new();
    let mut pending: Vec<(usize, Vec<u8>)> = Vec::new();
    for op in &log[..count] {
        match op {
            Op::Grow(len) => synced.resize(*len, 0),
            Op::Write(at, bytes) => pending.extend(
                bytes
                    .chunks(SECTOR)
                    .enumerate()
                    .map(|(n, chunk)| (at + n * SECTOR, chunk.to_vec())),
            ),
            Op::Sync(at, len) => pending.retain(|(start, bytes)| {
                let inside = *at <= *start && *start < at + len;
                if inside {
                    synced[*start..*start + bytes.len()].copy_from_slice(bytes);
                }
                !inside
            }),
        }
    }
    for (start, bytes) in pending {
        if survives() {
            synced[start..start + bytes.len()].copy_from_slice(&bytes);
        }
    }
    synced
}

fn register(row: Guid, epoch: u64, ownership: Ownership) -> OwnershipRegister {
    OwnershipRegister {
        row,
        ownership,
        owned: OwnershipStamp {
            epoch: Epoch(epoch),
            term: epoch,
            writer: Guid(1),
        },
        extent: None,
    }
}

fn extent(number: u64, epoch: u64, present: bool) -> OwnershipRegister {
    let ownership = if present {
        Ownership::Dedicated(Guid(u128::from(number % 2) + 1))
    } else {
        Ownership::Unallocated
    };
    OwnershipRegister {
        extent: Some(ExtentFacts {
            device: DISK,
            range: Extent {
                offset: number * 4096,
                len: 4096,
            },
            name: format!("extent {number}"),
            present,
        }),
        ..register(Guid(0x5_0000 + u128::from(number)), epoch, ownership)
    }
}

/// The transactions: a disk carved in 40, given away; half of them removed; one carved anew; the disk
/// as a guest of another cluster; that as the home; and back, with everything.
fn transactions() -> Vec<RegistersChange> {
    let both = Ownership::shared(vec![Guid(1), Guid(2)]).unwrap();
    let disk = |epoch| register(DISK, epoch, both.clone());
    let carved = (0..40).map(|n| extent(n, 1, true)).chain([disk(1)]);
    let removed = (0..20).map(|n| extent(n * 2, 2, false)).chain([disk(2)]);
    let anew = [extent(0, 3, true), disk(3)];
    let own = |registers: Vec<OwnershipRegister>| RegistersChange {
        registers,
        home: cluster("A"),
        assignment: 1,
        ..RegistersChange::default()
    };
    let unowned = |epoch| register(DISK, epoch, Ownership::Unallocated);
    let theirs = |row, epoch| register(row, epoch, Ownership::Dedicated(Guid(9)));
    let as_guest = |epoch: u64| {
        let guests = (0..30).map(move |n| theirs(Guid(0x5_0000 + n), epoch));
        guests.chain([theirs(DISK, epoch)])
    };
    let in_b = |r: OwnershipRegister| (cluster("B"), r);
    let moved = RegistersChange {
        guests: as_guest(5).map(in_b).collect(),
        ..own(vec![unowned(4)])
    };
    let home = RegistersChange {
        registers: as_guest(5).collect(),
        guests: (0..40)
            .map(|n| (cluster("A"), extent(n, 7, false)))
            .collect(),
        home_gone: (30..40).map(|n| Guid(0x5_0000 + n)).collect(),
        guests_gone: [cluster("B")].into(),
        home: cluster("B"),
        assignment: 2,
        ..RegistersChange::default()
    };
    let back = RegistersChange {
        registers: (0..40).map(|n| extent(n, 9, true)).collect(),
        guests_gone: [cluster("A")].into(),
        guests: vec![in_b(theirs(DISK, 8))],
        assignment: 3,
        ..own(Vec::new())
    };
    let lists = [carved.collect(), removed.collect(), anew.to_vec()];
    lists
        .map(own)
        .into_iter()
        .chain([moved, home, back])
        .collect()
}

fn cluster(name: &str) -> ClusterName {
    name.parse().unwrap()
}

fn read(bytes: Vec<u8>) -> StoredRegisters {
    let storage = MemoryStorage(bytes);
    let (_, registers) = RegistersImage::open(storage, UNIT).expect("a whole file");
    registers.expect("they are not lost")
}

/// The file as the first version that had one wrote it, after [`transactions`]' first: its meta bytes
/// tell of no assignment, its root of no cluster.
#[test]
fn the_first_files_are_read() {
    let carved = transactions().remove(0);
    let disk = Recorder::default();
    let commit = |registers: &[OwnershipRegister]| Commit {
        records: registers
            .iter()
            .map(|r| (r.row, Some(r.to_body())))
            .collect(),
        replace: false,
        cluster: ClusterName::NONE,
        meta: [&[0_u8][..], &7_u64.to_be_bytes()].concat(),
        label_s: 1,
    };
    let kind = ImageKind::Registers;
    let mut image = Image::create(disk.clone(), kind, UNIT, commit(&[])).unwrap();
    image.commit(commit(&carved.registers)).unwrap();
    let (mut image, found) = RegistersImage::open(disk.clone(), UNIT).unwrap();
    let mut expected = StoredRegisters::default();
    expected.apply(&carved);
    (expected.term, expected.home, expected.assignment) = (7, ClusterName::NONE, 0);
    assert_eq!(found, Some(expected.clone()));
    // And go on as any other.
    for change in &transactions()[1..] {
        image.store(change, 2).unwrap();
        expected.apply(change);
    }
    let (_, found) = RegistersImage::open(disk, UNIT).unwrap();
    assert_eq!(found, Some(expected));
}

#[test]
fn a_guests_register_lies_under_its_own_key_only() {
    let disk = Recorder::default();
    let mut value = register(DISK, 1, Ownership::Unallocated).to_body();
    value.extend(cluster("B").to_body());
    let commit = |key| Commit {
        records: vec![(key, Some(value.clone()))],
        replace: false,
        cluster: ClusterName::NONE,
        meta: vec![0; 17],
        label_s: 1,
    };
    Image::create(disk.clone(), ImageKind::Registers, UNIT, commit(DISK)).unwrap();
    assert!(RegistersImage::open(disk, UNIT).is_err());
}

#[test]
fn a_transaction_on_extents_is_whole_after_a_crash_at_any_moment() {
    let mut rng = fastrand::Rng::with_seed(9);
    let disk = Recorder::default();
    let mut image = RegistersImage::create(disk.clone(), UNIT, false, 1).unwrap();
    let mut before = StoredRegisters::default();
    let mut cases = 0;
    for (number, changes) in transactions().into_iter().enumerate() {
        let start = disk.0.borrow().1.len();
        image.store(&changes, 2).unwrap();
        let mut after = before.clone();
        after.apply(&changes);
        let log = disk.0.borrow().1.clone();
        for count in start..=log.len() {
            for case in 0..12 {
                let bytes = crashed(&log, count, || match case {
                    0 => false,
                    1 => true,
                    _ => rng.bool(),
                });
                let found = read(bytes);
                let is_done = count == log.len();
                assert!(
                    found == after || (found == before && !is_done),
                    "transaction {number}, operation {count} of {}, case {case}",
                    log.len()
                );
                cases += 1;
            }
        }
        before = after;
    }
    assert!(cases > 100, "{cases}");
}
