//! What hosts have written and what became of it, kept outside of the system under test. Every write
//! fills one block with a token of its own, so that what lies on a medium tells who put it there.

use std::collections::BTreeMap;

use rma::unit::DiskOp;
use rma::wire::{Epoch, Guid, Ownership};

/// Bytes of a block.
pub const BLOCK_BYTES: u64 = 512;
/// Blocks of each device that are written to.
pub const BLOCKS: u64 = 4;

/// A write.
#[derive(Debug, Clone, Copy)]
struct Write {
    host: Guid,
    device: Guid,
    block: u64,
    acknowledged: bool,
    applied: u64,
}

/// All writes, and the media.
#[derive(Debug, Default)]
pub struct Data {
    writes: BTreeMap<u64, Write>,
    /// What is in each block: the token, and which application that was.
    media: BTreeMap<(Guid, u64), (u64, u64)>,
    /// Newest application of an acknowledged write of each block.
    acknowledged: BTreeMap<(Guid, u64), (u64, u64)>,
    applications: u64,
    /// Writes acknowledged.
    pub acknowledged_count: u64,
    /// Writes applied.
    pub applied_count: u64,
}

impl Data {
    /// A host is about to write a block; the token of the write.
    pub(crate) fn begin(&mut self, host: Guid, device: Guid, block: u64) -> u64 {
        let token = self.writes.len() as u64 + 1;
        let write = Write {
            host,
            device,
            block,
            acknowledged: false,
            applied: 0,
        };
        self.writes.insert(token, write);
        token
    }

    /// A host was told that its write is done.
    pub(crate) fn acknowledge(&mut self, token: u64) -> Result<(), String> {
        let Some(write) = self.writes.get_mut(&token) else {
            return Err(format!("I3: write {token} was acknowledged and never made"));
        };
        write.acknowledged = true;
        self.acknowledged_count += 1;
        if write.applied == 0 {
            return Err(format!(
                "I3: write {token} of host {} was acknowledged and never applied",
                write.host
            ));
        }
        let key = (write.device, write.block);
        let newest = self.acknowledged.entry(key).or_insert((0, 0));
        if write.applied > newest.1 {
            *newest = (token, write.applied);
        }
        Ok(())
    }

    /// A medium carries out an operation. `register` is the device's as it is in force, `promised`
    /// what was last acknowledged to an administrator.
    pub(crate) fn apply(
        &mut self,
        device: Guid,
        op: &DiskOp,
        register: Option<Epoch>,
        promised: Option<&(Epoch, Ownership)>,
    ) -> Result<Vec<u8>, String> {
        match op {
            DiskOp::Read { offset, len } => {
                let (token, _) = self
                    .media
                    .get(&(device, offset / BLOCK_BYTES))
                    .copied()
                    .unwrap_or_default();
                let mut bytes = token.to_be_bytes().repeat(*len as usize / 8 + 1);
                bytes.truncate(*len as usize);
                Ok(bytes)
            }
            DiskOp::Write { offset, data, .. } => {
                let token = data
                    .first_chunk()
                    .map_or(0, |bytes| u64::from_be_bytes(*bytes));
                let whole = data.chunks(8).all(|chunk| *chunk == token.to_be_bytes());
                self.applications += 1;
                self.applied_count += 1;
                let now = self.applications;
                let key = (device, offset / BLOCK_BYTES);
                self.media.insert(key, (token, now));
                let Some(write) = self.writes.get_mut(&token) else {
                    return Err(format!(
                        "I3: a write that nobody made was applied to {device}"
                    ));
                };
                let right =
                    whole && data.len() as u64 == BLOCK_BYTES && (write.device, write.block) == key;
                if !right {
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
                write.applied = now;
                let host = write.host;
                // A newer change that nobody was told of yet may give the device back.
                let revoked = promised.is_some_and(|(epoch, owners)| {
                    let current = register.unwrap_or_default();
                    current == *epoch && !owners.includes(host)
                });
                if revoked {
                    return Err(format!(
                        "I2: write {token} of host {host} was applied to {device} after its \
                         revocation was acknowledged"
                    ));
                }
                Ok(Vec::new())
            }
            _ => Ok(Vec::new()),
        }
    }

    /// What lies on the media is the newest acknowledged write of each block, or a later one.
    pub(crate) fn lost_writes(&self) -> Vec<String> {
        self.acknowledged
            .iter()
            .filter(|(key, (_, applied))| {
                self.media.get(key).is_none_or(|(_, last)| last < applied)
            })
            .map(|((device, block), (token, _))| {
                format!("I3: acknowledged write {token} to {device}, block {block}, is lost")
            })
            .collect()
    }
}
