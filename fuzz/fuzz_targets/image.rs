//! Table and register files: after any commits, failing I/O, power cuts that lose any part of what was
//! not synced, and damage, an image is the last version or the one being written, or says what is
//! wrong with it.
#![no_main]

use std::collections::BTreeMap;
use std::io;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rma::crt::image::{Commit, Expected, Image, ImageKind, Storage};
use rma::wire::{ClusterName, Guid};

const SECTOR: usize = 512;
/// Larger inputs are only slower.
const MAX_BYTES: u64 = 4 << 20;

#[derive(Debug, Arbitrary)]
struct Put {
    key: u8,
    /// Hundreds of bytes; `None` removes.
    size: Option<u8>,
    fill: u8,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Commit {
        puts: Vec<Put>,
        meta: u8,
        replace: bool,
    },
    /// A commit in which the n-th storage call fails.
    FailingCommit {
        puts: Vec<Put>,
        after: u8,
    },
    Reopen,
    /// The power goes during a commit; of what was not synced, the sectors of `kept` survive.
    PowerCut {
        puts: Vec<Put>,
        after: u8,
        kept: Vec<bool>,
    },
    Damage {
        at: u32,
        xor: u8,
    },
}

/// What is durable, and the writes since.
#[derive(Debug, Default, Clone)]
struct Disk {
    durable: Vec<u8>,
    seen: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
    /// Calls until they all fail.
    countdown: Option<u32>,
}

impl Disk {
    fn call(&mut self) -> io::Result<()> {
        match &mut self.countdown {
            None => Ok(()),
            Some(0) => Err(io::ErrorKind::Other.into()),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
        }
    }

    /// The power goes: what was not synced survives by the sector.
    fn cut(&mut self, kept: &[bool]) {
        let mut kept = kept.iter().copied().chain(std::iter::repeat(false));
        for (at, bytes) in std::mem::take(&mut self.pending) {
            for (n, sector) in bytes.chunks(SECTOR).enumerate() {
                if kept.next() == Some(true) {
                    let at = at + n * SECTOR;
                    if self.durable.len() < at + sector.len() {
                        self.durable.resize(at + sector.len(), 0);
                    }
                    self.durable[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        self.seen = self.durable.clone();
        self.countdown = None;
    }
}

impl Storage for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.seen.len() as u64)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        let bytes = at
            .checked_add(buffer.len())
            .and_then(|end| self.seen.get(at..end))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.call()?;
        let at = offset as usize;
        self.seen[at..at + bytes.len()].copy_from_slice(bytes);
        self.pending.push((at, bytes.to_vec()));
        Ok(())
    }

    fn sync(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.call()?;
        let range = offset as usize..(offset + len) as usize;
        self.durable.resize(self.seen.len(), 0);
        let (inside, outside) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|(at, bytes)| range.start < at + bytes.len() && *at < range.end);
        self.pending = outside;
        let inside: Vec<(usize, Vec<u8>)> = inside;
        for (at, bytes) in inside {
            self.durable[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }

    fn grow(&mut self, len: u64) -> io::Result<()> {
        self.call()?;
        if len > MAX_BYTES {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.seen.resize(self.seen.len().max(len as usize), 0);
        Ok(())
    }
}

type Model = (u8, BTreeMap<Guid, Vec<u8>>);

fn commit(puts: &[Put], meta: u8, replace: bool) -> Commit {
    let value = |put: &Put| {
        let size = usize::from(put.size?) * 10;
        Some(vec![put.fill; size])
    };
    Commit {
        records: puts
            .iter()
            .map(|put| (Guid(put.key.into()), value(put)))
            .collect(),
        replace,
        cluster: ClusterName::NONE,
        meta: vec![meta; usize::from(meta)],
        label_s: 0,
    }
}

fn apply(model: &Model, commit: &Commit) -> Model {
    let mut records = if commit.replace {
        BTreeMap::new()
    } else {
        model.1.clone()
    };
    for (key, value) in &commit.records {
        match value {
            Some(value) => records.insert(*key, value.clone()),
            None => records.remove(key),
        };
    }
    (commit.meta.len() as u8, records)
}

fn open(disk: Disk) -> Option<(Image<Disk>, Model)> {
    let expected = Expected {
        kind: ImageKind::Crt,
        owner: Some(Guid(1)),
        cluster: ClusterName::NONE,
    };
    let mut records = BTreeMap::new();
    let image = Image::open(disk, &expected, |key, bytes| {
        assert!(records.insert(key, bytes.to_vec()).is_none());
        Ok(())
    });
    let image = image.map_err(|e| e.to_string()).ok()?;
    let meta = image.info().meta;
    let model = (meta.len() as u8, records);
    Some((image, model))
}

fuzz_target!(|steps: Vec<Step>| {
    let first = commit(&[], 1, false);
    let mut model: Model = apply(&Model::default(), &first);
    let mut image =
        Image::create(Disk::default(), ImageKind::Crt, Guid(1), first).expect("an empty image");
    // What commits that were reported as failed may nevertheless have left for the next open.
    let mut uncertain: Vec<Model> = Vec::new();
    for step in steps.iter().take(24) {
        let (next, after) = match step {
            Step::Commit {
                puts,
                meta,
                replace,
            } => (commit(puts, *meta, *replace), None),
            Step::FailingCommit { puts, after } => (commit(puts, 3, false), Some(*after)),
            Step::PowerCut { puts, after, .. } => (commit(puts, 4, false), Some(*after)),
            Step::Reopen => {
                let (mut reopened, found) = open(image.into_storage()).expect("a whole version");
                reopened.confirm().expect("the disk works");
                assert!(found == model || uncertain.contains(&found));
                (image, model) = (reopened, found);
                uncertain.clear();
                continue;
            }
            Step::Damage { at, xor } => {
                let mut disk = image.into_storage();
                let at = *at as usize % disk.seen.len();
                disk.seen[at] ^= xor;
                // One of the versions there were, or an error: never a panic.
                let _ = open(disk);
                return;
            }
        };
        let then = apply(&model, &next);
        image.storage_mut().countdown = after.map(u32::from);
        if image.commit(next).is_ok() {
            model = then;
            uncertain.clear();
        } else {
            uncertain.push(then);
        }
        image.storage_mut().countdown = None;
        if let Step::PowerCut { kept, .. } = step {
            let mut disk = image.into_storage();
            disk.cut(kept);
            let (reopened, found) = open(disk).expect("a power cut leaves a whole version");
            assert!(
                found == model || uncertain.contains(&found),
                "neither old nor new"
            );
            (image, model) = (reopened, found);
            uncertain.clear();
        }
        for (key, value) in &model.1 {
            assert_eq!(image.get(*key).expect("whole").as_ref(), Some(value));
        }
    }
});
