//! Devices that their owners' operating systems use: they are not taken by mistake.
//!
//! What this host uses its shell says; what other owners use, they are asked, once it is known what an
//! allocation takes from them, and before the unit is asked to make the change.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::action::AgentAction;
use super::agent::Agent;
use super::allocation::Stage;
use super::plan::error;
use super::report::label;
use super::request::{AdminError, ErrorKind};
use super::timers::Timer;
use super::wish::Wish;
use crate::crt::Table;
use crate::session::Request;
use crate::wire::message::{Change, InUseReply, InUseRequest, Users};
use crate::wire::{
    CommandId, ConnectionId, EntityType, Epoch, Flags, Guid, IodNumber, Kind, Status, Time, Wire,
};

/// How long owners may take to say whether they use what they are about to lose.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most questions that wait for a look at what is used here; further ones are answered busy.
const MAX_ASKED: usize = 1024;

/// Another host's question that waits for a look at what is used here.
#[derive(Debug)]
pub(super) struct UseAsked {
    connection: ConnectionId,
    command: CommandId,
    rows: Vec<Guid>,
}

/// What other owners have said of what an allocation takes from them.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// The rows that each has said not to use.
    free: BTreeMap<Guid, BTreeSet<Guid>>,
    /// Who has not answered yet, and which rows it was asked for.
    pub(super) open: BTreeMap<Guid, (CommandId, Vec<Guid>)>,
}

impl Agent {
    /// Says which devices and extents of this host are in use, and by whom, in words. Allocations that are
    /// asked for from now on are refused where they would take something that is in use from its owner, this host
    /// or another one. With `None`, as before the first call, they are not: nobody is asked.
    pub fn set_used(&mut self, used: Option<BTreeMap<Guid, String>>) {
        self.used = used;
    }

    /// Answers the hosts that have asked what is in use here ([`AgentAction::LookWhoUses`]).
    pub fn tell_uses(&mut self, now: Time, used: &BTreeMap<Guid, String>) {
        for asked in std::mem::take(&mut self.uses_asked) {
            let user = |row: &Guid| Some((*row, used.get(row)?.clone()));
            let found = asked.rows.iter().find_map(user);
            let (row, users) = found.unwrap_or_default();
            let reply = InUseReply {
                row,
                users: Users(users),
            };
            if let Some(server) = self.hub.server_mut() {
                let body = reply.to_body();
                server.reply(now, asked.connection, asked.command, Status::Ok, body);
            }
        }
    }

    /// Another host asks whether rows are in use here.
    pub(super) fn on_use_asked(
        &mut self,
        connection: ConnectionId,
        command: CommandId,
        rows: Vec<Guid>,
    ) -> Result<(), Status> {
        if self.uses_asked.len() >= MAX_ASKED {
            return Err(Status::Busy);
        }
        if self.uses_asked.is_empty() {
            self.act(AgentAction::LookWhoUses);
        }
        self.uses_asked.push(UseAsked {
            connection,
            command,
            rows,
        });
        Ok(())
    }

    /// Asks the other owners that would lose something whether they use it, unless they have said that they
    /// do not; whether there is an answer to wait for.
    pub(super) fn ask_owners(
        &mut self,
        now: Time,
        id: u64,
        changes: &[Change],
    ) -> Result<bool, AdminError> {
        let Some(allocation) = self.allocations.active.get(&id) else {
            return Ok(false);
        };
        if allocation.used.is_none() {
            return Ok(false);
        }
        // Who cannot insist may still take from a host that is dead.
        let insists = matches!(allocation.wish, Wish::Own { .. });
        let mut lost = lost_by_owners(&self.table, changes);
        lost.remove(&self.config.guid);
        for (host, rows) in &allocation.asking.free {
            if let Some(asked) = lost.get_mut(host) {
                asked.retain(|row| !rows.contains(row));
            }
        }
        lost.retain(|host, rows| !rows.is_empty() && self.is_member(*host));
        let mut open = BTreeMap::new();
        for (host, rows) in lost {
            let rows: Vec<Guid> = rows.into_iter().collect();
            let is_up = self.peers.get(&host).is_some_and(|p| p.station.is_up());
            if !is_up && !insists {
                continue;
            }
            let request = Request {
                kind: Kind::InUse,
                flags: Flags::NONE,
                iod: IodNumber(0),
                epoch: Epoch(0),
                body: InUseRequest { rows: rows.clone() }.to_body(),
                expect: 512,
            };
            let client = self.hub.client_mut(&host).filter(|_| is_up);
            match client.and_then(|client| client.submit(now, request).ok()) {
                Some(command) => open.insert(host, (command, rows)),
                None => return Err(self.not_told(host, &rows, "does not answer")),
            };
        }
        let waits = !open.is_empty();
        if waits && let Some(allocation) = self.allocations.active.get_mut(&id) {
            allocation.stage = Stage::Asking;
            allocation.asking.open = open;
            self.timers.set(Timer::InUse(id), now + PATIENCE);
        }
        Ok(waits)
    }

    /// Takes an owner's answer, where it is one.
    pub(super) fn use_reply(
        &mut self,
        now: Time,
        host: Guid,
        command: CommandId,
        status: Status,
        body: &[u8],
    ) -> bool {
        let asked = |asking: &Asking| asking.open.get(&host).is_some_and(|(c, _)| *c == command);
        let mut all = self.allocations.active.iter_mut();
        let Some((id, allocation)) = all.find(|(_, a)| asked(&a.asking)) else {
            return false;
        };
        let id = *id;
        let Some((_, rows)) = allocation.asking.open.remove(&host) else {
            return false;
        };
        let reply = match status {
            Status::Ok => InUseReply::from_body(body).map_err(|_| Status::BadRequest),
            status => Err(status),
        };
        match reply {
            Ok(reply) if reply.row.is_nil() => {
                let asking = &mut allocation.asking;
                asking.free.entry(host).or_default().extend(rows);
                if asking.open.is_empty() {
                    self.timers.cancel(Timer::InUse(id));
                    self.set_stage(id, Stage::Reading);
                    self.set_registers(now, id);
                }
            }
            Ok(reply) => {
                let place = format!("on {}", label(&self.table, host));
                let users = reply.users.0.escape_debug().to_string();
                let e = used_at(&self.table, reply.row, &place, &users);
                self.fail_allocation(now, id, e);
            }
            Err(status) => {
                let e = self.not_told(host, &rows, &format!("does not say: {status}"));
                self.fail_allocation(now, id, e);
            }
        }
        true
    }

    /// The owners' time to answer is over.
    pub(super) fn uses_not_told(&mut self, now: Time, id: u64) {
        let allocation = self.allocations.active.get(&id);
        let open = allocation.and_then(|a| a.asking.open.first_key_value());
        if let Some((host, (_, rows))) = open {
            let e = self.not_told(*host, rows, "has not answered");
            self.fail_allocation(now, id, e);
        }
    }

    fn not_told(&self, host: Guid, rows: &[Guid], why: &str) -> AdminError {
        let row = rows
            .first()
            .map_or_else(String::new, |row| label(&self.table, *row));
        let host = label(&self.table, host);
        error(
            ErrorKind::Unreachable,
            format!(
                "whether {row} is in use on its owner {host} is not known: that {why}; try again, or add \
                 --force, with which its I/O fails; nothing was changed"
            ),
        )
    }
}

/// The devices and extents that changes take from each of their owners.
fn lost_by_owners(table: &Table, changes: &[Change]) -> BTreeMap<Guid, BTreeSet<Guid>> {
    let mut lost: BTreeMap<Guid, BTreeSet<Guid>> = BTreeMap::new();
    for change in changes {
        let Some(row) = table.get(change.row) else {
            continue;
        };
        if !matches!(row.entity, EntityType::Device | EntityType::Extent) {
            continue;
        }
        let kept = change.ownership.owners();
        for owner in row.ownership.owners().iter().filter(|o| !kept.contains(o)) {
            lost.entry(*owner).or_default().insert(change.row);
        }
    }
    lost
}

/// The changes, unless they take from `host` something that is in use there.
pub(super) fn in_use(
    table: &Table,
    host: Guid,
    used: Option<&BTreeMap<Guid, String>>,
    changes: Vec<Change>,
) -> Result<Vec<Change>, AdminError> {
    let mut lost = changes
        .iter()
        .filter(|change| !change.ownership.owners().contains(&host));
    match used.and_then(|used| lost.find_map(|c| Some((c.row, used.get(&c.row)?)))) {
        Some((row, users)) => Err(used_at(table, row, "on this host", users)),
        None => Ok(changes),
    }
}

fn used_at(table: &Table, row: Guid, place: &str, users: &str) -> AdminError {
    error(
        ErrorKind::Refused,
        format!(
            "{} is in use {place} ({users}); end that first, or add --force, with which its \
             I/O fails; nothing was changed",
            label(table, row)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{EntityType, Epoch, Ownership, Row};

    #[test]
    fn only_what_is_used_and_would_be_lost_is_in_the_way() {
        let (host, other, device) = (Guid(1), Guid(2), Guid(3));
        let mut table = Table::new();
        let mut row = Row::new(device, EntityType::Device);
        row.name = "disk".into();
        table.insert(row);
        let change = |ownership| {
            vec![Change {
                row: device,
                expected: Epoch(1),
                ownership,
                extent: None,
            }]
        };
        let used = BTreeMap::from([(device, "mounted at /srv".to_owned())]);
        let refused = |ownership| in_use(&table, host, Some(&used), change(ownership)).err();
        let e = refused(Ownership::Dedicated(other)).expect("it is lost");
        assert_eq!(e.kind, ErrorKind::Refused);
        assert!(e.message.contains("disk") && e.message.contains("mounted at /srv"));
        assert!(refused(Ownership::Unallocated).is_some());
        assert!(refused(Ownership::Dedicated(host)).is_none());
        assert!(refused(Ownership::shared(vec![host, other]).unwrap()).is_none());
        let nothing = BTreeMap::new();
        let taken = change(Ownership::Unallocated);
        assert!(in_use(&table, host, Some(&nothing), taken.clone()).is_ok());
        let elsewhere = BTreeMap::from([(Guid(9), String::new())]);
        assert!(in_use(&table, other, Some(&elsewhere), taken).is_ok());
    }
}
