//! Moves to another cluster: fabric services name the host there, the unit moves the row in one
//! transaction, and here it is gone.

use std::collections::BTreeMap;

use super::agent::Agent;
use super::config::MAX_PENDING_REQUESTS;
use super::plan::{error, target_among};
use super::report::label;
use super::request::{AdminError, AdminReply, Caller, ErrorKind};
use super::wish::Wish;
use crate::crt::Table;
use crate::crt::rules;
use crate::wire::message::{Change, FindHost, Move};
use crate::wire::row::MAX_NAME_BYTES;
use crate::wire::{ClusterName, EntityType, Granularity, Guid, Ownership, Row, Status, Time};

/// What shall go where.
#[derive(Debug, Clone)]
pub(super) struct Moving {
    /// The device or unit.
    pub(super) target: Guid,
    pub(super) to: ClusterName,
    /// The host there.
    pub(super) owner: Guid,
    pub(super) recursive: bool,
}

/// A move whose host fabric services are asked for.
#[derive(Debug)]
struct Sought {
    caller: Caller,
    unit: Guid,
    moving: Moving,
    /// What the administrator calls the host.
    host: String,
}

/// The moves that wait for fabric services, by the administrator's token.
#[derive(Debug, Default)]
pub(super) struct Moves(BTreeMap<u64, Sought>);

impl Moving {
    /// What becomes of the row here. Of one that is gone already the unit says where it went.
    pub(super) fn changes(&self, table: &Table) -> Result<Vec<Change>, AdminError> {
        check(table, self.target)?;
        let row = table.get(self.target);
        let release = row.map(|row| rules::change_of(row, Ownership::Unallocated));
        Ok(release.into_iter().collect())
    }

    /// What the unit is asked for.
    pub(super) fn request(&self, term: u64, writer: Guid, change: &Change) -> Move {
        Move {
            term,
            writer,
            row: self.target,
            expected: change.expected,
            to: self.to,
            owner: self.owner,
            recursive: self.recursive,
        }
    }
}

/// Whether a row may leave the cluster by itself.
fn check(table: &Table, target: Guid) -> Result<(), AdminError> {
    let is_device = table
        .get(target)
        .is_some_and(|row| row.entity == EntityType::Device);
    let granularity = table.settings().granularity;
    if is_device && matches!(granularity, Granularity::Unit | Granularity::Controller) {
        return Err(error(
            ErrorKind::Granularity,
            format!(
                "this cluster allocates by {granularity}, and a device cannot leave alone; move its \
                 I/O unit, or `rma granularity set device` first"
            ),
        ));
    }
    if is_device && table.children(target).any(Row::is_valid) {
        return Err(carved(&label(table, target)));
    }
    Ok(())
}

fn carved(name: &str) -> AdminError {
    error(
        ErrorKind::Extent,
        format!("{name} has extents; `rma uncarve` them first, nothing was changed"),
    )
}

impl Agent {
    /// Begins to move a device or unit to a host of another cluster.
    pub(super) fn move_row(
        &mut self,
        now: Time,
        token: u64,
        caller: &Caller,
        (target, cluster, host): (&str, &str, &str),
        recursive: bool,
    ) -> Result<(), AdminError> {
        if !self.boot.is_steady() {
            return Err(self.not_ready());
        }
        let to: ClusterName = cluster
            .parse()
            .map_err(|e| error(ErrorKind::BadRequest, format!("{e}")))?;
        if to == self.cluster {
            return Err(error(
                ErrorKind::BadRequest,
                format!(
                    "this is cluster {to} already; `rma allocate` gives it to another host here"
                ),
            ));
        }
        if host.is_empty() || host.len() > MAX_NAME_BYTES {
            return Err(error(
                ErrorKind::BadRequest,
                format!("a host's name or GUID has 1 to {MAX_NAME_BYTES} bytes"),
            ));
        }
        let target = target_among(
            &self.table,
            target,
            &[EntityType::Unit, EntityType::Device],
            "cannot be moved; name an I/O device or unit (`rma tree`)",
        )?;
        check(&self.table, target)?;
        let unit = self.table.unit_of(target).unwrap_or(target);
        self.check_reachable(now, unit)?;
        if self.moves.0.len() >= MAX_PENDING_REQUESTS {
            return Err(error(
                ErrorKind::Busy,
                format!("{MAX_PENDING_REQUESTS} moves are on their way; try again"),
            ));
        }
        let request = FindHost {
            cluster: to,
            host: host.to_owned(),
        };
        if !self.link.find_host(now, token, &request) {
            return Err(fabric_silent());
        }
        let moving = Moving {
            target,
            to,
            owner: Guid::NIL,
            recursive,
        };
        let sought = Sought {
            caller: caller.clone(),
            unit,
            moving,
            host: host.to_owned(),
        };
        self.moves.0.insert(token, sought);
        Ok(())
    }

    /// Fabric services have said which host it is, or could not.
    pub(super) fn host_found(&mut self, now: Time, token: u64, found: Result<Guid, Status>) {
        let Some(sought) = self.moves.0.remove(&token) else {
            return;
        };
        let host = sought.host.escape_debug();
        let to = sought.moving.to;
        let begun = match found {
            Ok(owner) => {
                let moving = Moving {
                    owner,
                    ..sought.moving
                };
                let wish = Wish::Move(moving);
                self.wish(now, token, &sought.caller, sought.unit, wish)
            }
            Err(Status::NoCluster) => Err(error(
                ErrorKind::Unknown,
                format!("fabric services know no cluster {to} with hosts; nothing was changed"),
            )),
            Err(Status::NoHost) => Err(error(
                ErrorKind::Unknown,
                format!(
                    "cluster {to} has no host '{host}' (`rma fabric catalog`); nothing was changed"
                ),
            )),
            Err(Status::Ambiguous) => Err(error(
                ErrorKind::Ambiguous,
                format!("several hosts of cluster {to} are called '{host}'; say the GUID"),
            )),
            Err(Status::NotReady) => Err(fabric_silent()),
            Err(status) => Err(error(
                ErrorKind::Refused,
                format!(
                    "fabric services do not say which host '{host}' of cluster {to} is: {status}"
                ),
            )),
        };
        if let Err(e) = begun {
            self.reply(token, AdminReply::Error(e));
        }
    }

    /// What a unit's refusal of a move means; `None` where it means what it means of any change.
    pub(super) fn move_refused(
        &self,
        unit: Guid,
        moving: &Moving,
        status: Status,
    ) -> Option<AdminError> {
        let (name, to) = (label(&self.table, moving.target), moving.to);
        let unit = label(&self.table, unit);
        let refused = |message| Some(error(ErrorKind::Refused, message));
        match status {
            Status::Elsewhere => refused(format!(
                "{name} was moved to another cluster before, and is not that host's of cluster {to}; \
                 move it from where it is (`rma fabric catalog`)"
            )),
            Status::Carved => Some(carved(&name)),
            Status::TooManyClusters => refused(format!(
                "{unit} serves as many clusters as it can already; nothing was changed"
            )),
            Status::Hierarchy => refused(format!(
                "{unit} has as many owners in cluster {to} as there can be; nothing was changed"
            )),
            _ => None,
        }
    }

    /// A unit has moved a row: it is gone here, whatever lists are still on their way.
    pub(super) fn has_moved(&mut self, row: Guid) {
        self.mutate([row], |table| table.retire(row));
    }

    /// Whether a unit belongs to another cluster, and only has something of ours.
    pub(super) fn is_guest(&self, unit: Guid) -> bool {
        let members = self.members.as_ref();
        members.is_some_and(|members| members.get(&unit).is_some_and(|m| m.guest))
    }

    /// A guest that lists nothing any more has nothing of ours: it says so itself.
    pub(super) fn retire_empty_guests(&mut self) {
        let empty: Vec<Guid> = self
            .units
            .iter()
            .filter(|(guid, unit)| unit.lists_nothing() && self.is_guest(**guid))
            .map(|(guid, _)| *guid)
            .collect();
        for unit in empty {
            self.mutate([unit], |table| table.retire(unit));
        }
    }
}

fn fabric_silent() -> AdminError {
    error(
        ErrorKind::Unreachable,
        "fabric services do not answer, and only they know the hosts of another cluster; nothing \
         was changed, try again when `rma status` shows them up",
    )
}
