//! Simulated files: what is written is seen at once and durable once it is synced; a crash keeps of
//! the rest what it likes, sector by sector. The daemons' own file formats lie in them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;

use rma::crt::Storage;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

#[derive(Debug)]
struct Sectors {
    /// What programs see.
    seen: Vec<u8>,
    /// What is on the platter.
    durable: Vec<u8>,
    /// Sectors that may or may not be on the platter as they are seen.
    unsynced: BTreeSet<usize>,
    /// Operations until the machine dies: nothing is done any more.
    dies_in: Option<u32>,
    is_dead: bool,
    /// Operations until one fails.
    fails_in: Option<u32>,
    /// A failed sync may forget what was to be written, as Linux does.
    rng: fastrand::Rng,
}

enum Fate {
    Done,
    Failed,
    Nothing,
}

impl Sectors {
    fn fate(&mut self) -> Fate {
        let reaches_zero = |left: &mut Option<u32>| match left {
            Some(0) => {
                *left = None;
                true
            }
            Some(n) => {
                *n -= 1;
                false
            }
            None => false,
        };
        if self.is_dead {
            return Fate::Nothing;
        }
        if reaches_zero(&mut self.dies_in) {
            self.is_dead = true;
            return Fate::Failed;
        }
        if reaches_zero(&mut self.fails_in) {
            return Fate::Failed;
        }
        Fate::Done
    }

    fn settle(&mut self, sector: usize) {
        let (from, to) = (sector * SECTOR, (sector + 1) * SECTOR);
        let to = to.min(self.seen.len());
        if self.durable.len() < to {
            self.durable.resize(to, 0);
        }
        self.durable[from..to].copy_from_slice(&self.seen[from..to]);
    }
}

/// A file on a simulated disk; clones are the same file.
#[derive(Debug, Clone)]
pub(crate) struct File(Rc<RefCell<Sectors>>);

impl File {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Rc::new(RefCell::new(Sectors {
            seen: Vec::new(),
            durable: Vec::new(),
            unsynced: BTreeSet::new(),
            dies_in: None,
            is_dead: false,
            fails_in: None,
            rng: fastrand::Rng::with_seed(seed),
        })))
    }

    /// After so many more operations nothing is done any more.
    pub(crate) fn die_in(&self, operations: u32) {
        self.0.borrow_mut().dies_in = Some(operations);
    }

    /// One operation fails, after so many more.
    pub(crate) fn fail_in(&self, operations: u32) {
        self.0.borrow_mut().fails_in = Some(operations);
    }

    /// No operation fails any more.
    pub(crate) fn recover(&self) {
        self.0.borrow_mut().fails_in = None;
    }

    /// The program is gone; with the power everything that was not synced is there or not.
    pub(crate) fn crash(&self, power: bool) {
        let sectors = &mut *self.0.borrow_mut();
        sectors.dies_in = None;
        sectors.fails_in = None;
        sectors.is_dead = false;
        if !power {
            return;
        }
        for sector in std::mem::take(&mut sectors.unsynced) {
            if sectors.rng.bool() {
                sectors.settle(sector);
            }
        }
        if sectors.rng.bool() {
            // The length as well.
            let len = sectors.seen.len().max(sectors.durable.len());
            sectors.durable.resize(len, 0);
        }
        sectors.seen.clone_from(&sectors.durable);
    }
}

fn failure() -> io::Error {
    io::Error::other("the disk says no")
}

fn span(offset: u64, len: usize) -> std::ops::Range<usize> {
    let first = offset as usize / SECTOR;
    first..(offset as usize + len).div_ceil(SECTOR)
}

impl Storage for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.borrow().seen.len() as u64)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let sectors = self.0.borrow();
        let from = offset as usize;
        let found = sectors.seen.get(from..from + buffer.len());
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let sectors = &mut *self.0.borrow_mut();
        let fate = sectors.fate();
        let done = match fate {
            Fate::Done => bytes.len(),
            Fate::Failed => sectors.rng.usize(0..=bytes.len() / SECTOR) * SECTOR,
            Fate::Nothing => 0,
        };
        let from = offset as usize;
        sectors.seen[from..from + done].copy_from_slice(&bytes[..done]);
        sectors.unsynced.extend(span(offset, done));
        // A failed one may have written all there was, and fails nevertheless.
        match fate {
            Fate::Done => Ok(()),
            Fate::Failed | Fate::Nothing => Err(failure()),
        }
    }

    fn sync(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let sectors = &mut *self.0.borrow_mut();
        let fate = sectors.fate();
        if matches!(fate, Fate::Nothing) {
            return Err(failure());
        }
        let failed = matches!(fate, Fate::Failed);
        let forgets = sectors.rng.bool();
        for sector in span(offset, len as usize) {
            if !sectors.unsynced.contains(&sector) {
                continue;
            }
            let made_it = !failed || sectors.rng.bool();
            if made_it {
                sectors.settle(sector);
            }
            if made_it || forgets {
                sectors.unsynced.remove(&sector);
            }
        }
        if failed {
            return Err(failure());
        }
        let len = sectors.seen.len().max(sectors.durable.len());
        sectors.durable.resize(len, 0);
        Ok(())
    }

    fn grow(&mut self, len: u64) -> io::Result<()> {
        let sectors = &mut *self.0.borrow_mut();
        match sectors.fate() {
            Fate::Done => {
                let len = sectors.seen.len().max(len as usize);
                sectors.seen.resize(len, 0);
                Ok(())
            }
            Fate::Failed | Fate::Nothing => Err(failure()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_synced_survives_the_power_and_what_is_seen_survives_the_program() {
        let mut kept = 0;
        for seed in 0..64 {
            let mut file = File::new(seed);
            file.grow(4096).unwrap();
            file.write(0, &[1; 1024]).unwrap();
            file.sync(0, 512).unwrap();
            file.write(2048, &[2; 512]).unwrap();
            file.crash(false);
            let mut bytes = [0; 4096];
            file.read(0, &mut bytes).unwrap();
            assert_eq!((bytes[1023], bytes[2048]), (1, 2));
            file.crash(true);
            file.read(0, &mut bytes).unwrap();
            assert_eq!(bytes[..512], [1; 512]);
            kept += u32::from(bytes[512] == 1);
        }
        assert!((1..64).contains(&kept), "{kept}");
    }

    #[test]
    fn a_dying_machine_does_nothing_any_more() {
        let mut file = File::new(1);
        file.grow(1024).unwrap();
        file.die_in(1);
        file.write(0, &[1; 512]).unwrap();
        assert!(file.write(512, &[1; 512]).is_err() && file.sync(0, 1024).is_err());
        file.crash(false);
        file.write(512, &[1; 512]).unwrap();
        file.fail_in(0);
        assert!(file.sync(0, 1024).is_err());
        file.sync(0, 1024).unwrap();
    }
}
