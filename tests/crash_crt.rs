//! I9: whatever a crash or a failing disk leaves of a table's file, it is the old table or the new.
//!
//! A simulated disk records every write and sync. At every boundary between two of them, and for
//! many choices of which unsynced sectors had reached the platter, the file is rebuilt, opened and
//! compared with a model. Nothing here sleeps; every case is drawn from a printed seed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use rma::crt::image::{Commit, Expected, Health, MemoryStorage};
use rma::crt::{Image, ImageError, ImageKind, Storage, Table, TableImage};
use rma::wire::{ClusterName, EntityType, Guid, Ownership, Row};

const SECTOR: usize = 512;
const PAGE: usize = 4096;
const OWNER: Guid = Guid(0x108);
const EXPECTED: Expected = Expected {
    kind: ImageKind::Crt,
    owner: Some(OWNER),
    cluster: ClusterName::NONE,
};

/// What was done to the disk.
#[derive(Debug, Clone)]
enum Op {
    Write {
        offset: usize,
        bytes: Vec<u8>,
    },
    Sync {
        offset: usize,
        len: usize,
    },
    /// A sync that failed: the sectors that made it, and whether the others are forgotten.
    FailedSync {
        offset: usize,
        len: usize,
        made_it: u64,
        forgets: bool,
    },
    Grow {
        len: usize,
    },
}

/// The disk as the program sees it, and everything that was done to it.
#[derive(Debug, Default)]
struct Disk {
    seen: Vec<u8>,
    log: Vec<Op>,
    /// Operations until one fails.
    fails_in: Option<u32>,
    failures: fastrand::Rng,
}

#[derive(Debug, Clone, Default)]
struct SimStorage(Rc<RefCell<Disk>>);

impl Disk {
    fn fails(&mut self) -> bool {
        match &mut self.fails_in {
            Some(0) => {
                self.fails_in = None;
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }
}

fn failure() -> io::Error {
    io::Error::other("the disk says no")
}

impl Storage for SimStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.borrow().seen.len() as u64)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let offset = offset as usize;
        buffer.copy_from_slice(&self.0.borrow().seen[offset..offset + buffer.len()]);
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        let offset = offset as usize;
        let fails = disk.fails();
        let done = if fails {
            disk.failures.usize(..=bytes.len() / SECTOR) * SECTOR
        } else {
            bytes.len()
        };
        let bytes = bytes[..done].to_vec();
        disk.seen[offset..offset + done].copy_from_slice(&bytes);
        disk.log.push(Op::Write { offset, bytes });
        if fails { Err(failure()) } else { Ok(()) }
    }

    fn sync(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        let (offset, len) = (offset as usize, len as usize);
        if disk.fails() {
            let made_it = disk.failures.u64(..);
            let forgets = disk.failures.bool();
            disk.log.push(Op::FailedSync {
                offset,
                len,
                made_it,
                forgets,
            });
            return Err(failure());
        }
        disk.log.push(Op::Sync { offset, len });
        Ok(())
    }

    fn grow(&mut self, len: u64) -> io::Result<()> {
        let mut disk = self.0.borrow_mut();
        if disk.fails() {
            return Err(failure());
        }
        disk.seen.resize(len as usize, 0);
        disk.log.push(Op::Grow { len: len as usize });
        Ok(())
    }
}

/// A sector that was written and not synced.
#[derive(Debug, Clone)]
struct Pending {
    /// Which write it came with.
    write: usize,
    offset: usize,
    bytes: Vec<u8>,
}

/// What is certainly on the disk, and what may be.
#[derive(Debug, Clone, Default)]
struct Platter {
    durable: Vec<u8>,
    pending: Vec<Pending>,
    len: usize,
    writes: usize,
}

impl Platter {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Write { offset, bytes } => {
                self.writes += 1;
                for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                    self.pending.push(Pending {
                        write: self.writes,
                        offset: offset + index * SECTOR,
                        bytes: sector.to_vec(),
                    });
                }
            }
            Op::Sync { offset, len } => self.settle(*offset, *len, |_| true, false),
            Op::FailedSync {
                offset,
                len,
                made_it,
                forgets,
            } => self.settle(
                *offset,
                *len,
                |nth| made_it >> (nth % 64) & 1 == 1,
                *forgets,
            ),
            Op::Grow { len } => self.len = *len,
        }
    }

    /// Pending sectors of a range reach the platter where `made_it` says so; the others are
    /// forgotten or stay pending.
    fn settle(
        &mut self,
        offset: usize,
        len: usize,
        made_it: impl Fn(usize) -> bool,
        forgets: bool,
    ) {
        self.durable.resize(self.len, 0);
        let (inside, mut rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|sector| (offset..offset + len).contains(&sector.offset));
        for (nth, sector) in inside.into_iter().enumerate() {
            if made_it(nth) {
                self.durable[sector.offset..sector.offset + sector.bytes.len()]
                    .copy_from_slice(&sector.bytes);
            } else if !forgets {
                rest.push(sector);
            }
        }
        self.pending = rest;
    }

    /// The file if exactly the pending sectors that `kept` chooses had reached the platter.
    fn image(&self, kept: &dyn Fn(&Pending) -> bool) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for sector in self.pending.iter().filter(|sector| kept(sector)) {
            let end = sector.offset + sector.bytes.len();
            if bytes.len() < end {
                bytes.resize(self.len, 0);
            }
            bytes[sector.offset..end].copy_from_slice(&sector.bytes);
        }
        bytes
    }

    /// Calls `check` with the file as it may be after a crash now: nothing unsynced, all of it,
    /// each write alone, all but each, random writes, random sectors, a torn last write.
    fn crashes(&self, rng: &mut fastrand::Rng, random: usize, check: &mut dyn FnMut(Vec<u8>)) {
        check(self.image(&|_| false));
        let mut writes: Vec<_> = self.pending.iter().map(|sector| sector.write).collect();
        writes.dedup();
        let Some(last) = writes.last().copied() else {
            return;
        };
        check(self.image(&|_| true));
        if writes.len() > 1 && writes.len() < 12 {
            for one in &writes {
                check(self.image(&|sector| sector.write == *one));
                check(self.image(&|sector| sector.write != *one));
            }
        }
        for _ in 0..random {
            let by_write = rng.u64(..);
            check(self.image(&|sector| by_write >> (sector.write % 64) & 1 == 1));
            let by_sector = RefCell::new(rng.fork());
            check(self.image(&|_| by_sector.borrow_mut().bool()));
            let torn = rng.usize(1..8) * SECTOR;
            check(self.image(&|sector| sector.write != last || sector.offset % PAGE < torn));
            check(self.image(&|sector| sector.write == last && sector.offset % PAGE >= torn));
        }
    }
}

/// A whole content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Version {
    records: BTreeMap<Guid, Vec<u8>>,
    meta: Vec<u8>,
}

fn read<S: Storage>(storage: S) -> Result<(Image<S>, Version), ImageError> {
    let mut records = BTreeMap::new();
    let image = Image::open(storage, &EXPECTED, |key, value| {
        records.insert(key, value.to_vec());
        Ok(())
    })?;
    let meta = image.info().meta;
    Ok((image, Version { records, meta }))
}

/// Draws a commit and what it makes of `old`.
fn draw(rng: &mut fastrand::Rng, old: &Version, bulk: usize) -> (Commit, Version) {
    let mut new = old.clone();
    new.meta = vec![rng.u8(..); rng.usize(1..100)];
    let mut commit = Commit {
        records: Vec::new(),
        replace: rng.u8(..20) == 0,
        cluster: "A".parse().unwrap(),
        meta: new.meta.clone(),
        label_s: rng.u64(..),
    };
    if commit.replace {
        new.records.clear();
    }
    let (count, keys) = match rng.u8(..20) {
        0 if bulk > 0 => (bulk, 4 * bulk as u128),
        1..=3 => (30, 80),
        4 => (0, 1),
        _ => (rng.usize(1..4), 80),
    };
    let removals = if rng.u8(..8) == 0 { 9 } else { 2 };
    for _ in 0..count {
        let key = Guid(rng.u128(..keys));
        let value = (rng.u8(..10) >= removals).then(|| {
            let most = if rng.u8(..8) == 0 { 2600 } else { 300 };
            vec![rng.u8(..); rng.usize(..=most)]
        });
        match &value {
            Some(value) => new.records.insert(key, value.clone()),
            None => new.records.remove(&key),
        };
        commit.records.push((key, value));
    }
    (commit, new)
}

struct Run {
    seed: u64,
    rng: fastrand::Rng,
    disk: SimStorage,
    platter: Platter,
    /// How much of the disk's log the platter has had.
    applied: usize,
    images: usize,
}

impl Run {
    fn new(seed: u64) -> (Self, Image<SimStorage>, Version) {
        let disk = SimStorage::default();
        disk.0.borrow_mut().failures = fastrand::Rng::with_seed(!seed);
        let commit = Commit {
            records: Vec::new(),
            replace: false,
            cluster: ClusterName::NONE,
            meta: vec![1],
            label_s: 0,
        };
        let image = Image::create(disk.clone(), ImageKind::Crt, OWNER, commit).unwrap();
        let version = Version {
            meta: vec![1],
            ..Version::default()
        };
        let mut run = Self {
            seed,
            rng: fastrand::Rng::with_seed(seed),
            disk,
            platter: Platter::default(),
            applied: 0,
            images: 0,
        };
        // The file gets its name only after this, so no crash shows less.
        run.advance(0, &[&version]);
        run.expect_durable(&image, &version);
        (run, image, version)
    }

    /// Lets what was done since the last call reach the platter, and crashes at every boundary:
    /// one of `allowed` must come back.
    fn advance(&mut self, random: usize, allowed: &[&Version]) {
        let ops = self.disk.0.borrow().log[self.applied..].to_vec();
        self.applied += ops.len();
        let many = ops.len() > 60;
        for (index, op) in ops.iter().enumerate() {
            self.platter.apply(op);
            let write = matches!(op, Op::Write { .. });
            if random == 0 || (many && write && index % 16 != 0) {
                continue;
            }
            let (seed, mut images) = (self.seed, 0);
            self.platter.crashes(&mut self.rng, random, &mut |bytes| {
                images += 1;
                match read(MemoryStorage(bytes)) {
                    Ok((_, version)) => assert!(
                        allowed.contains(&&version),
                        "seed {seed}: neither the old content nor the new after {op:?}"
                    ),
                    Err(error) => panic!("seed {seed}: {error} after {op:?}"),
                }
            });
            self.images += images;
        }
    }

    /// After an acknowledged commit no crash shows anything else, and no page is lost.
    fn expect_durable(&mut self, image: &Image<SimStorage>, version: &Version) {
        let seed = self.seed;
        let counts = |image: Health| (image.live_count, image.previous_count, image.free_count);
        let (again, _) = read(MemoryStorage(self.platter.durable.clone())).unwrap();
        assert_eq!(
            counts(image.health()),
            counts(again.health()),
            "seed {seed}"
        );
        self.platter.crashes(&mut self.rng, 1, &mut |bytes| {
            assert_eq!(
                read(MemoryStorage(bytes)).unwrap().1,
                *version,
                "seed {seed}"
            );
        });
    }

    /// Without its newest root, the file is the version before as a whole: now, and until the
    /// next commit has begun to write a root.
    fn expect_two_versions(&self, new: &Version, old: &Version) {
        let found = without_one_root(&self.platter.durable);
        let seed = self.seed;
        assert!(found.contains(new) && found.contains(old), "seed {seed}");
    }

    /// As [`Self::expect_two_versions`], while the pages of the next commit are written.
    fn expect_two_versions_meanwhile(&self, new: &Version, old: &Version) {
        let disk = self.disk.0.borrow();
        let mut bytes = self.platter.durable.clone();
        for op in &disk.log[self.applied..] {
            match op {
                Op::Grow { len } => bytes.resize(*len, 0),
                Op::Write { offset, .. } if *offset < 2 * PAGE => break,
                Op::Write { offset, bytes: new } => {
                    bytes[*offset..offset + new.len()].copy_from_slice(new);
                }
                _ => {}
            }
        }
        let found = without_one_root(&bytes);
        let seed = self.seed;
        assert!(found.contains(new) && found.contains(old), "seed {seed}");
    }

    /// Crashes for good: the disk becomes what a random crash leaves, and is opened again.
    fn reboot(&mut self) -> (Image<SimStorage>, Version) {
        let by_sector = RefCell::new(self.rng.fork());
        let bytes = self.platter.image(&|_| by_sector.borrow_mut().bool());
        self.platter = Platter {
            len: bytes.len(),
            durable: bytes.clone(),
            ..Platter::default()
        };
        let mut disk = self.disk.0.borrow_mut();
        disk.seen = bytes;
        disk.fails_in = None;
        drop(disk);
        read(self.disk.clone()).unwrap_or_else(|error| panic!("seed {}: {error}", self.seed))
    }
}

/// What the file is without the one root, and without the other.
fn without_one_root(bytes: &[u8]) -> Vec<Version> {
    let damaged = [0, PAGE].into_iter().map(|slot| {
        let mut bytes = bytes.to_vec();
        bytes[slot + 64] ^= 0x10;
        read(MemoryStorage(bytes))
    });
    damaged.filter_map(|found| Some(found.ok()?.1)).collect()
}

/// A life of commits and crashes; returns how many crashed files were opened.
fn live(seed: u64, commits: usize, bulk: usize, failing: bool) -> usize {
    let (mut run, mut image, mut old) = Run::new(seed);
    // What failed commits may have left on the disk nevertheless.
    let mut maybe: Vec<Version> = Vec::new();
    // The version before the old one, while its root is there.
    let mut older: Option<Version> = None;
    for _ in 0..commits {
        let (commit, new) = draw(&mut run.rng, &old, bulk);
        if failing && run.rng.u8(..3) == 0 {
            run.disk.0.borrow_mut().fails_in = Some(run.rng.u32(..10));
        }
        let outcome = image.commit(commit);
        let failed = outcome.is_err();
        if let Some(older) = older.take() {
            run.expect_two_versions_meanwhile(&old, &older);
        }
        let mut allowed: Vec<&Version> = vec![&old, &new];
        allowed.extend(&maybe);
        run.advance(2, &allowed);
        if let Err(error) = outcome {
            let text = error.to_string();
            assert!(
                text.contains("cannot ") && text.contains("the disk says no"),
                "{text}"
            );
            // The old content is there as if nothing had happened.
            assert_eq!(image.info().meta, old.meta, "seed {seed}");
            for key in (0..80).map(Guid) {
                let value = image.get(key).unwrap();
                assert_eq!(value.as_ref(), old.records.get(&key), "seed {seed}");
            }
            maybe.push(new);
        } else {
            run.expect_durable(&image, &new);
            run.expect_two_versions(&new, &old);
            maybe.clear();
            older = Some(std::mem::replace(&mut old, new));
        }
        run.disk.0.borrow_mut().fails_in = None;
        if run.rng.u8(..6) == 0 || (failed && run.rng.bool()) {
            let (reopened, version) = run.reboot();
            assert!(version == old || maybe.contains(&version), "seed {seed}");
            (image, old) = (reopened, version);
            maybe.clear();
            older = None;
        }
    }
    run.images
}

#[test]
fn every_crash_leaves_the_old_content_or_the_new() {
    let images: usize = (0..40).map(|seed| live(seed, 14, 0, false)).sum();
    assert!(images > 5000, "only {images} crashed files were opened");
}

#[test]
fn every_crash_and_every_error_leaves_the_old_content_or_the_new() {
    let images: usize = (1000..1040).map(|seed| live(seed, 14, 0, true)).sum();
    assert!(images > 5000, "only {images} crashed files were opened");
}

#[test]
fn crashes_while_a_large_content_changes() {
    for seed in 2000..2003 {
        live(seed, 12, 1500, seed % 2 == 0);
    }
}

/// One operation after the other fails, and then it is tried again.
#[test]
fn an_error_at_any_operation_is_reported_and_the_next_attempt_succeeds() {
    for seed in 3000..3004 {
        let (mut run, mut image, mut old) = Run::new(seed);
        for _ in 0..6 {
            let (commit, new) = draw(&mut run.rng, &old, 0);
            let mut nth = 0;
            loop {
                run.disk.0.borrow_mut().fails_in = Some(nth);
                let outcome = image.commit(commit.clone());
                let reached = run.disk.0.borrow_mut().fails_in.take().is_none();
                assert_eq!(
                    outcome.is_err(),
                    reached,
                    "seed {seed}: an error was swallowed"
                );
                run.advance(1, &[&old, &new]);
                if !reached {
                    break;
                }
                nth += 1;
            }
            assert!(nth >= 2, "a root is always written and synced");
            run.expect_durable(&image, &new);
            old = new;
        }
    }
}

/// A process that ends leaves what it wrote where the next one sees it, durable or not. What that
/// one finds, and may act on, no power cut takes back.
#[test]
fn what_the_next_process_finds_survives_a_power_cut() {
    for seed in 5000..5040 {
        let (mut run, mut image, mut old) = Run::new(seed);
        for _ in 0..8 {
            let (commit, new) = draw(&mut run.rng, &old, 0);
            run.disk.0.borrow_mut().fails_in = Some(run.rng.u32(..8));
            let done = image.commit(commit).is_ok();
            run.disk.0.borrow_mut().fails_in = None;
            drop(image);
            let (mut reopened, found) = read(run.disk.clone()).unwrap();
            reopened.confirm().unwrap();
            assert!(found == new || (!done && found == old), "seed {seed}");
            run.advance(0, &[]);
            run.platter.crashes(&mut run.rng, 3, &mut |bytes| {
                let (_, version) = read(MemoryStorage(bytes)).unwrap();
                assert!(version == found, "seed {seed}: undone by a power cut");
            });
            (image, old) = (reopened, found);
        }
    }
}

/// The same with rows, stamps and digests: what comes back is the table that was committed.
#[test]
fn a_table_comes_back_with_its_stamp_and_digest() {
    for seed in 4000..4010 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let disk = SimStorage::default();
        let cluster: ClusterName = "A".parse().unwrap();
        let mut image = TableImage::create(disk.clone(), OWNER, cluster, 0).unwrap();
        let mut platter = Platter::default();
        let mut applied = 0;
        let mut table = Table::new();
        let mut old = table.summary();
        for _ in 0..8 {
            let mut changed = Vec::new();
            for _ in 0..rng.usize(1..6) {
                let mut row = Row::new(Guid(rng.u128(1..30)), EntityType::Device);
                row.parent = Guid(rng.u128(1..30));
                row.name = "n".repeat(rng.usize(..60));
                row.ownership = Ownership::Dedicated(Guid(rng.u128(1..4)));
                changed.extend(table.insert(row));
                changed.extend(table.remove(Guid(rng.u128(1..40))));
            }
            table.publish(1, OWNER);
            image.commit(&table, &changed, 7).unwrap();
            let new = table.summary();
            let ops = disk.0.borrow().log[applied..].to_vec();
            applied += ops.len();
            for (index, op) in ops.iter().enumerate() {
                platter.apply(op);
                if applied == ops.len() {
                    continue; // still being created
                }
                let last = index + 1 == ops.len();
                platter.crashes(&mut rng, 1, &mut |bytes| {
                    let storage = MemoryStorage(bytes);
                    let found = TableImage::open(storage, Some(OWNER), cluster).unwrap().1;
                    let found = found.summary();
                    assert!(found == new || (found == old && !last), "seed {seed}");
                });
            }
            old = new;
        }
    }
}

/// A storage under whose reader a writer commits.
struct Raced {
    disk: SimStorage,
    writer: RefCell<(Image<SimStorage>, fastrand::Rng, Vec<Version>)>,
    every: u32,
    reads: RefCell<u32>,
}

impl Storage for &Raced {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        *self.reads.borrow_mut() += 1;
        if (*self.reads.borrow()).is_multiple_of(self.every) {
            let (image, rng, versions) = &mut *self.writer.borrow_mut();
            let (commit, new) = draw(rng, versions.last().unwrap(), 0);
            image.commit(commit).unwrap();
            versions.push(new);
        }
        self.disk.read(offset, buffer)
    }
    fn write(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        unreachable!("a reader")
    }
    fn sync(&mut self, _: u64, _: u64) -> io::Result<()> {
        unreachable!("a reader")
    }
    fn grow(&mut self, _: u64) -> io::Result<()> {
        unreachable!("a reader")
    }
}

/// A reader that is overtaken sees one whole version or an error that asks it to try again.
#[test]
fn a_reader_beside_the_writer_sees_one_version() {
    let (mut whole, mut again) = (0, 0);
    for seed in 5000..5060 {
        let (run, mut image, mut version) = Run::new(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..10 {
            let (commit, new) = draw(&mut rng, &version, 0);
            image.commit(commit).unwrap();
            version = new;
        }
        let raced = Raced {
            disk: run.disk,
            every: rng.u32(1..20),
            writer: RefCell::new((image, rng, vec![version])),
            reads: RefCell::new(0),
        };
        for _ in 0..20 {
            match read(&raced) {
                Ok((_, found)) => {
                    whole += 1;
                    assert!(raced.writer.borrow().2.contains(&found), "seed {seed}");
                }
                Err(error) => {
                    again += 1;
                    assert!(error.is_transient(), "seed {seed}: {error}");
                }
            }
        }
    }
    assert!(
        whole > 100 && again > 30,
        "{whole} whole, {again} to try again"
    );
}
