//! Registers that were lost come back from a host's table: all or nothing, durable before they are
//! in force, and only where there are none.

use std::time::Duration;

use super::partition::Partitions;
use super::registers::MAX_UNIT_REGISTERS;
use super::{RegistersChange, StoredRegisters, Unit, UnitAction};
use crate::wire::kind::{Event, Role};
use crate::wire::message::{OwnershipRegister, Restore};
use crate::wire::{CommandId, ConnectionId, Guid, IocNumber, Status, Time, Wire};

/// How long the next part of a restoration may take before another host may begin one.
const PATIENCE: Duration = Duration::from_secs(5);

/// A restoration on its way.
#[derive(Debug)]
pub(super) struct Restoration {
    peer: Guid,
    registers: Vec<OwnershipRegister>,
    term: u64,
    heard: Time,
    /// All of it is here and on its way to the disk: by which token, and who is to be told.
    storing: Option<(u64, ConnectionId, CommandId)>,
}

impl Restoration {
    /// Whether all of it is here and on its way to the disk.
    pub(super) const fn is_storing(&self) -> bool {
        self.storing.is_some()
    }
}

impl Unit {
    /// Takes a part of a restoration; `None` where the answer comes when it is durable.
    pub(super) fn restore_part(
        &mut self,
        now: Time,
        (connection, command): (ConnectionId, CommandId),
        peer: Guid,
        body: &[u8],
    ) -> Option<Result<Vec<u8>, Status>> {
        match self.take_part(now, connection, peer, body) {
            Ok(true) => {
                self.store_restored(connection, command);
                None
            }
            Ok(false) => Some(Ok(Vec::new())),
            Err(status) => Some(Err(status)),
        }
    }

    /// Adds a part to what has come; whether that is all.
    fn take_part(
        &mut self,
        now: Time,
        connection: ConnectionId,
        peer: Guid,
        body: &[u8],
    ) -> Result<bool, Status> {
        let role = self.management.peer(connection).map(|p| p.role);
        if role.is_some_and(|role| role != Role::Host) {
            return Err(Status::Unsupported);
        }
        let part = Restore::from_body(body).map_err(|_| Status::BadRequest)?;
        if self.registers.is_some() {
            return Err(Status::Conflict);
        }
        if let Some(known) = &self.restoration {
            let live = known.storing.is_some() || now.since(known.heard) < PATIENCE;
            if live && (known.storing.is_some() || known.peer != peer) {
                return Err(Status::Busy);
            }
        }
        if part.after.is_nil() {
            self.restoration = Some(Restoration {
                peer,
                registers: Vec::new(),
                term: 0,
                heard: now,
                storing: None,
            });
        }
        let Some(restoration) = self.restoration.as_mut().filter(|r| r.peer == peer) else {
            return Err(Status::BadRequest);
        };
        let last = restoration.registers.last().map_or(Guid::NIL, |r| r.row);
        if last != part.after {
            self.restoration = None;
            return Err(Status::BadRequest);
        }
        if restoration.registers.len() + part.registers.len() > MAX_UNIT_REGISTERS {
            self.restoration = None;
            return Err(Status::NoSpace);
        }
        restoration.heard = now;
        restoration.registers.extend(part.registers);
        restoration.term = restoration.term.max(part.term);
        Ok(!part.more)
    }

    fn store_restored(&mut self, connection: ConnectionId, command: CommandId) {
        let token = self.token();
        let Some(restoration) = &mut self.restoration else {
            return;
        };
        restoration.storing = Some((token, connection, command));
        let terms = restoration.registers.iter().map(|r| r.owned.term);
        restoration.term = terms.fold(restoration.term, u64::max);
        let change = Box::new(RegistersChange {
            registers: restoration.registers.clone(),
            term: restoration.term,
            home: self.cluster,
            assignment: self.assignment,
            ..RegistersChange::default()
        });
        self.actions
            .push_back(UnitAction::PersistRegisters { token, change });
    }

    /// The disk has finished with something; whether that was a restoration.
    pub(super) fn finish_restore(&mut self, now: Time, token: u64, ok: bool) -> bool {
        let ours = |r: &mut Restoration| r.storing.is_some_and(|(stored, ..)| stored == token);
        let Some(done) = self.restoration.take_if(ours) else {
            return false;
        };
        if ok {
            let stored = StoredRegisters {
                registers: done.registers,
                term: done.term,
                ..StoredRegisters::default()
            };
            self.registers = Some(Partitions::new(stored, self.cluster));
            // What came or changed its place meanwhile may not be permitted by what is above it.
            let unit = self.inventory.facts().guid;
            for controller in self.inventory.children(unit) {
                self.reset_register(controller);
                for device in self.inventory.children(controller) {
                    self.reset_register(device);
                }
            }
        }
        if let Some((_, connection, command)) = done.storing {
            let status = if ok { Status::Ok } else { Status::NotPersisted };
            self.management
                .reply(now, connection, command, status, Vec::new());
        }
        if ok {
            self.notify(now, Event::RegistersChanged, IocNumber(0));
        }
        self.next_change(now);
        true
    }
}
