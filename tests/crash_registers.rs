//! I9 for a unit's registers: a transaction that carves, gives away and removes extents is on the disk as
//! a whole or not at all, whatever moment the power goes.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use rma::crt::image::MemoryStorage;
use rma::crt::{RegistersImage, Storage};
use rma::wire::message::{ExtentFacts, OwnershipRegister};
use rma::wire::{Epoch, Extent, Guid, Ownership, OwnershipStamp};

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

/// The transactions: a disk carved in 40, given away; half of them removed; one carved anew.
fn transactions() -> Vec<Vec<OwnershipRegister>> {
    let both = Ownership::shared(vec![Guid(1), Guid(2)]).unwrap();
    let disk = |epoch| register(DISK, epoch, both.clone());
    let carved = (0..40).map(|n| extent(n, 1, true)).chain([disk(1)]);
    let removed = (0..20).map(|n| extent(n * 2, 2, false)).chain([disk(2)]);
    let anew = [extent(0, 3, true), disk(3)];
    vec![carved.collect(), removed.collect(), anew.to_vec()]
}

fn read(bytes: Vec<u8>) -> Vec<OwnershipRegister> {
    let storage = MemoryStorage(bytes);
    let (_, registers) = RegistersImage::open(storage, UNIT).expect("a whole file");
    let mut registers = registers.expect("they are not lost");
    registers.sort_by_key(|r| r.row);
    registers
}

#[test]
fn a_transaction_on_extents_is_whole_after_a_crash_at_any_moment() {
    let mut rng = fastrand::Rng::with_seed(9);
    let disk = Recorder::default();
    let mut image = RegistersImage::create(disk.clone(), UNIT, false, 1).unwrap();
    let mut before: Vec<OwnershipRegister> = Vec::new();
    let mut cases = 0;
    for (number, changes) in transactions().into_iter().enumerate() {
        let start = disk.0.borrow().1.len();
        image.store(&changes, number as u64 + 1, 2).unwrap();
        let mut after = before.clone();
        for change in changes {
            after.retain(|r| r.row != change.row);
            after.push(change);
        }
        after.sort_by_key(|r| r.row);
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
