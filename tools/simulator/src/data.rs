//! What hosts have written, read and flushed and what became of it, kept outside of the system under
//! test. Every write fills one block with a token of its own, so that what lies on a medium tells who
//! put it there.

use std::collections::BTreeMap;

use rma::unit::DiskOp;
use rma::wire::message::OwnershipRegister;
use rma::wire::{Epoch, Guid, Ownership};

use crate::node::unit_of;

/// Bytes of a block.
pub const BLOCK_BYTES: u64 = 512;
/// Blocks of each device that are written to.
pub const BLOCKS: u64 = 4;

/// A block of a device.
type Place = (Guid, u64);

/// What a host asks of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Writes a block, durably where so said.
    Write {
        /// Durable before it is acknowledged.
        fua: bool,
    },
    /// Reads a block.
    Read,
    /// Makes what was acknowledged durable.
    Flush,
}

/// An I/O of a host.
#[derive(Debug, Clone)]
struct Op {
    host: Guid,
    /// Which life of the host.
    life: u64,
    place: Place,
    /// The device or extent that the host knows.
    row: Guid,
    ask: Ask,
    ended: bool,
    acknowledged: bool,
    /// The newest application of a write, and in which life of its unit.
    applied: (u64, u64),
    /// Applications in that life.
    times: u32,
    /// Power losses of the device when it was asked for.
    losses: u64,
    /// How often its unit had forgotten its sessions then.
    forgotten: u64,
    /// Newest acknowledged application of each block then.
    floor: BTreeMap<u64, u64>,
}

/// What a medium is doing an operation under.
pub(crate) struct Standing<'a> {
    /// The unit, and its life.
    pub(crate) unit: (Guid, u64),
    /// The device's register as it is in force.
    pub(crate) register: Option<OwnershipRegister>,
    /// What was last acknowledged to an administrator of it.
    pub(crate) promised: Option<&'a (Epoch, Ownership)>,
}

/// All I/O, and the media.
#[derive(Debug, Default)]
pub struct Data {
    ops: BTreeMap<u64, Op>,
    /// What programs see in each block: the token, and which application that was.
    media: BTreeMap<Place, (u64, u64)>,
    /// What is on the platter.
    platter: BTreeMap<Place, (u64, u64)>,
    /// Newest application of an acknowledged write of each block.
    acknowledged: BTreeMap<Place, u64>,
    /// Newest application that must survive a power loss.
    flushed: BTreeMap<Place, u64>,
    /// Power losses of each device.
    losses: BTreeMap<Guid, u64>,
    /// How often each unit has forgotten its sessions.
    forgotten: BTreeMap<Guid, u64>,
    applications: u64,
    /// Writes acknowledged.
    pub acknowledged_count: u64,
    /// Writes applied.
    pub applied_count: u64,
    /// Reads and flushes acknowledged.
    pub other_count: u64,
}

fn block_of(offset: u64) -> u64 {
    offset / BLOCK_BYTES
}

impl Data {
    /// A host is about to ask for something; the token of it.
    pub(crate) fn begin(
        &mut self,
        (host, life): (Guid, u64),
        row: Guid,
        place: Place,
        ask: Ask,
    ) -> u64 {
        let token = self.ops.len() as u64 + 1;
        let floor = self
            .acknowledged
            .range((place.0, 0)..=(place.0, u64::MAX))
            .map(|((_, block), applied)| (*block, *applied))
            .collect();
        let op = Op {
            host,
            life,
            place,
            row,
            ask,
            ended: false,
            acknowledged: false,
            applied: (0, 0),
            times: 0,
            losses: self.losses_of(place.0),
            forgotten: self.forgotten.get(&unit_of(place.0)).copied().unwrap_or(0),
            floor,
        };
        self.ops.insert(token, op);
        token
    }

    /// The device or extent that a write to a medium was meant for, as far as it was somebody's.
    pub(crate) fn row_of(&self, op: &DiskOp) -> Option<Guid> {
        let DiskOp::Write { data, .. } = op else {
            return None;
        };
        let token = u64::from_be_bytes(*data.first_chunk()?);
        self.ops.get(&token).map(|op| op.row)
    }

    fn losses_of(&self, device: Guid) -> u64 {
        self.losses.get(&device).copied().unwrap_or(0)
    }

    /// A host was told that its I/O is over.
    pub(crate) fn end(&mut self, token: u64, outcome: Option<&[u8]>) -> Result<(), String> {
        let Some(op) = self.ops.get_mut(&token) else {
            return Err(format!("I3: I/O {token} ended and was never asked for"));
        };
        if std::mem::replace(&mut op.ended, true) {
            return Err(format!("I3: I/O {token} ended twice"));
        }
        let Some(bytes) = outcome else { return Ok(()) };
        op.acknowledged = true;
        let op = op.clone();
        match op.ask {
            Ask::Write { fua } => self.written(token, &op, fua),
            Ask::Read => self.was_read(token, &op, bytes),
            Ask::Flush => {
                self.other_count += 1;
                if self.losses_of(op.place.0) == op.losses {
                    for (block, applied) in op.floor {
                        let newest = self.flushed.entry((op.place.0, block)).or_default();
                        *newest = applied.max(*newest);
                    }
                }
                Ok(())
            }
        }
    }

    fn written(&mut self, token: u64, op: &Op, fua: bool) -> Result<(), String> {
        self.acknowledged_count += 1;
        let (applied, _) = op.applied;
        if applied == 0 {
            return Err(format!(
                "I3: write {token} of host {} was acknowledged and never applied",
                op.host
            ));
        }
        let forgotten = self
            .forgotten
            .get(&unit_of(op.place.0))
            .copied()
            .unwrap_or(0);
        if op.times > 1 && forgotten == op.forgotten {
            return Err(format!(
                "I3: write {token} of host {} was applied {} times by one life of its unit",
                op.host, op.times
            ));
        }
        // What the power took before it was acknowledged was applied to a medium that has forgotten
        // it: a plain acknowledgement promises no more.
        if self.losses_of(op.place.0) == op.losses || fua {
            let newest = self.acknowledged.entry(op.place).or_default();
            *newest = applied.max(*newest);
        }
        if fua {
            let newest = self.flushed.entry(op.place).or_default();
            *newest = applied.max(*newest);
        }
        Ok(())
    }

    fn was_read(&mut self, token: u64, op: &Op, bytes: &[u8]) -> Result<(), String> {
        self.other_count += 1;
        let found = bytes
            .first_chunk()
            .map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let whole = bytes.len() as u64 == BLOCK_BYTES
            && bytes.chunks(8).all(|chunk| *chunk == found.to_be_bytes());
        if !whole {
            return Err(format!("I3: read {token} gave half of something"));
        }
        let written = self.ops.get(&found);
        let misplaced = written.is_some_and(|w| w.place != op.place);
        if misplaced || (found != 0 && written.is_none()) {
            return Err(format!(
                "I3: read {token} gave what nobody has written there"
            ));
        }
        let floor = op.floor.get(&op.place.1).copied().unwrap_or(0);
        let applied = written.map_or(0, |w| w.applied.0);
        if applied < floor && self.losses_of(op.place.0) == op.losses {
            return Err(format!(
                "I3: read {token} gave write {found}, older than what had been acknowledged"
            ));
        }
        Ok(())
    }

    /// A medium carries out an operation.
    pub(crate) fn apply(
        &mut self,
        device: Guid,
        op: &DiskOp,
        standing: &Standing<'_>,
    ) -> Result<Vec<u8>, String> {
        match op {
            DiskOp::Read { offset, len } => {
                let place = (device, block_of(*offset));
                let (token, _) = self.media.get(&place).copied().unwrap_or_default();
                let mut bytes = token.to_be_bytes().repeat(*len as usize / 8 + 1);
                bytes.truncate(*len as usize);
                Ok(bytes)
            }
            DiskOp::Write { offset, data, fua } => {
                self.apply_write(device, *offset, data, *fua, standing)?;
                Ok(Vec::new())
            }
            DiskOp::Flush => {
                let of_device = (device, 0)..=(device, u64::MAX);
                let now: Vec<_> = self
                    .media
                    .range(of_device)
                    .map(|(p, what)| (*p, *what))
                    .collect();
                self.platter.extend(now);
                Ok(Vec::new())
            }
            _ => Ok(Vec::new()),
        }
    }

    fn apply_write(
        &mut self,
        device: Guid,
        offset: u64,
        data: &[u8],
        fua: bool,
        standing: &Standing<'_>,
    ) -> Result<(), String> {
        let token = data
            .first_chunk()
            .map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let whole = data.chunks(8).all(|chunk| *chunk == token.to_be_bytes());
        self.applications += 1;
        self.applied_count += 1;
        let now = self.applications;
        let place = (device, block_of(offset));
        self.media.insert(place, (token, now));
        if fua {
            self.platter.insert(place, (token, now));
        }
        let Some(write) = self.ops.get_mut(&token) else {
            return Err(format!(
                "I3: a write that nobody made was applied to {device}"
            ));
        };
        let asked = write.ask == Ask::Write { fua };
        if !asked || !whole || data.len() as u64 != BLOCK_BYTES || write.place != place {
            return Err(format!(
                "I3: write {token} was applied in another place or form: {device} at {offset}"
            ));
        }
        if write.acknowledged {
            return Err(format!(
                "I3: write {token} of host {} was applied again after its acknowledgement",
                write.host
            ));
        }
        let life = standing.unit.1;
        write.times = if write.applied.0 > 0 && write.applied.1 == life {
            write.times + 1
        } else {
            1
        };
        write.applied = (now, life);
        let host = write.host;
        // A newer change that nobody was told of yet may give the device back.
        let epoch = standing
            .register
            .as_ref()
            .map_or(Epoch(0), |r| r.owned.epoch);
        let revoked = standing
            .promised
            .is_some_and(|(promised, owners)| epoch == *promised && !owners.includes(host));
        // A row that came back into its unit is reset at once, whatever is under way.
        let stranger = standing
            .register
            .as_ref()
            .is_some_and(|r| r.owned.writer != standing.unit.0 && !r.ownership.includes(host));
        if revoked || stranger {
            return Err(format!(
                "I2: write {token} of host {host} was applied to {device} after its revocation"
            ));
        }
        Ok(())
    }

    /// The power of these devices' unit fails: of what was not flushed each block is as it was, or
    /// as it was to be. What was promised to survive is looked for.
    pub(crate) fn power_loss(&mut self, devices: &[Guid], rng: &mut fastrand::Rng) -> Vec<String> {
        let mut lost = Vec::new();
        for device in devices {
            *self.losses.entry(*device).or_default() += 1;
            let blocks: Vec<Place> = self
                .media
                .range((*device, 0)..=(*device, u64::MAX))
                .map(|(place, _)| *place)
                .collect();
            for place in blocks {
                let kept = self.platter.get(&place).copied();
                if rng.bool() {
                    match kept {
                        Some(old) => self.media.insert(place, old),
                        None => self.media.remove(&place),
                    };
                }
                let now = self.media.get(&place).copied();
                if let Some(what) = now {
                    self.platter.insert(place, what);
                }
                let applied = now.map_or(0, |(_, applied)| applied);
                if self.flushed.get(&place).is_some_and(|f| applied < *f) {
                    lost.push(format!(
                        "I4: a write to {} block {} that was flushed did not survive the power loss",
                        place.0, place.1
                    ));
                }
                if let Some(newest) = self.acknowledged.get_mut(&place) {
                    *newest = applied.min(*newest);
                }
            }
        }
        lost
    }

    /// A unit has slept for so long that it knows its sessions no more: what was under way may be
    /// executed again, as after a restart.
    pub(crate) fn sessions_forgotten(&mut self, unit: Guid) {
        *self.forgotten.entry(unit).or_default() += 1;
    }

    /// What lies on the media is the newest acknowledged write of each block, or a later one.
    pub(crate) fn lost_writes(&self) -> Vec<String> {
        self.acknowledged
            .iter()
            .filter(|(place, applied)| {
                self.media.get(place).map_or(0, |(_, last)| *last) < **applied
            })
            .map(|((device, block), _)| {
                format!("I3: an acknowledged write to {device}, block {block}, is lost")
            })
            .collect()
    }

    /// I/O of this life of a host that has not ended.
    pub(crate) fn unended(&self, host: Guid, life: u64) -> Option<String> {
        let of_it = |op: &Op| op.host == host && op.life == life && !op.ended;
        let (token, op) = self.ops.iter().find(|(_, op)| of_it(op))?;
        Some(format!("I/O {token} ({:?}) to {}", op.ask, op.place.0))
    }
}
