//! What controllers list that cannot be, said once.

use std::collections::BTreeMap;

use super::device_facts::Flaw;
use crate::wire::codec::DecodeError;
use crate::wire::message::DevicesReply;
use crate::wire::{Guid, IocNumber};

/// What was wrong with a controller's last list.
#[derive(Debug, Default)]
struct Said {
    /// Why it could not be read.
    malformed: Option<DecodeError>,
    /// Its devices with blocks that no disk has.
    blocks: BTreeMap<Guid, u32>,
}

/// What was wrong with the last lists of all controllers.
#[derive(Debug, Default)]
pub(super) struct Lists {
    said: BTreeMap<(Guid, IocNumber), Said>,
    /// Lists that could not be read.
    pub(super) malformed: u64,
}

impl Lists {
    /// Looks at a list that could be read. The table keeps no block size that is none, so that nobody
    /// else can say what the unit has told.
    pub(super) fn look(&mut self, unit: Guid, ioc: IocNumber, reply: &DevicesReply) {
        let said = self.said.entry((unit, ioc)).or_default();
        said.malformed = None;
        let before = std::mem::take(&mut said.blocks);
        for record in &reply.devices {
            let flaw = Flaw::of(record.size_bytes, record.block_size);
            let Some(flaw @ Flaw::BlockSize(block_size)) = flaw else {
                continue;
            };
            if before.get(&record.guid) != Some(&block_size) {
                log::warn!(
                    "device {} ({}) of controller {ioc} of unit {unit} cannot be exported: {flaw}",
                    record.name.escape_default(),
                    record.guid
                );
            }
            said.blocks.insert(record.guid, block_size);
        }
    }

    /// A list could not be read: all devices stay as they were.
    pub(super) fn malformed(&mut self, unit: Guid, ioc: IocNumber, reason: DecodeError) {
        self.malformed += 1;
        let said = self.said.entry((unit, ioc)).or_default();
        if said.malformed.replace(reason) != Some(reason) {
            log::warn!(
                "controller {ioc} of unit {unit} lists its devices in a way that cannot be read ({reason}): what \
                 was known of them stays; look whether the unit's program is of another version"
            );
        }
    }

    /// The controller is not asked any more.
    pub(super) fn forget(&mut self, unit: Guid, ioc: IocNumber) {
        self.said.remove(&(unit, ioc));
    }
}
