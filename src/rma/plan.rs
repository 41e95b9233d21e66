//! What an allocation changes, and whether facts that come in together would break the ownership
//! hierarchy (I5). Pure functions on a table.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::crt::rules::{self, Held, Named, RuleError};
use crate::crt::{ResolveError, Table};
use crate::wire::message::{Change, CompareAndSet};
use crate::wire::{EntityType, Guid, Ownership, Row};

use super::request::{AdminError, ErrorKind};

pub(super) use crate::crt::outlook::{Outlook, offenders};

/// The most rows in the way that an error names.
const MAX_NAMED: usize = 8;

/// An error of this kind with this line.
pub(super) fn error(kind: ErrorKind, message: impl Into<String>) -> AdminError {
    AdminError {
        kind,
        message: message.into(),
    }
}

impl From<ResolveError> for AdminError {
    fn from(e: ResolveError) -> Self {
        let kind = match e {
            ResolveError::Unknown { .. } => ErrorKind::Unknown,
            ResolveError::Ambiguous { .. } => ErrorKind::Ambiguous,
        };
        error(kind, e.to_string())
    }
}

impl From<RuleError> for AdminError {
    fn from(e: RuleError) -> Self {
        let kind = match e {
            RuleError::Count { .. } | RuleError::Twice { .. } | RuleError::Owners { .. } => {
                ErrorKind::BadRequest
            }
            RuleError::NoRow { .. } | RuleError::NoHost { .. } => ErrorKind::Unknown,
            RuleError::NotAllocatable { .. } => ErrorKind::WrongType,
            RuleError::Gone { .. } => ErrorKind::Invalid,
            RuleError::StaleEpoch { .. } => ErrorKind::Conflict,
            RuleError::Parent { .. } | RuleError::Child { .. } => ErrorKind::Hierarchy,
            RuleError::Granularity { .. } => ErrorKind::Granularity,
            RuleError::Carve(_) => ErrorKind::Extent,
        };
        error(kind, e.to_string())
    }
}

/// The row to allocate: a unit, controller, device or extent that is there.
pub(super) fn target(table: &Table, text: &str) -> Result<Guid, AdminError> {
    const TARGETS: &[EntityType] = &[
        EntityType::Unit,
        EntityType::Controller,
        EntityType::Device,
        EntityType::Extent,
    ];
    present(
        table,
        text,
        TARGETS,
        "cannot be allocated; name an I/O unit, controller, device or extent (`rma tree`)",
    )
}

/// The row of one of these types that is named, and is there; `otherwise` says what is wrong with
/// a row of another type.
pub(super) fn present(
    table: &Table,
    text: &str,
    entities: &[EntityType],
    otherwise: &str,
) -> Result<Guid, AdminError> {
    let guid = target_among(table, text, entities, otherwise)?;
    match table.get(guid) {
        Some(row) if !table.is_present(guid) => Err(RuleError::Gone {
            row: Named::of(row),
        }
        .into()),
        _ => Ok(guid),
    }
}

/// The same, also of one that is gone.
pub(super) fn target_among(
    table: &Table,
    text: &str,
    entities: &[EntityType],
    otherwise: &str,
) -> Result<Guid, AdminError> {
    table.resolve_among(text, entities).map_err(|e| {
        let other = table.resolve(text).ok().and_then(|guid| table.get(guid));
        match other {
            Some(row) => error(
                ErrorKind::WrongType,
                format!("{} {otherwise}", Named::of(row)),
            ),
            None => e.into(),
        }
    })
}

/// The ownership that the hosts named shall have.
pub(super) fn ownership(
    table: &Table,
    hosts: &[String],
    shared: bool,
    is_member: impl Fn(Guid) -> bool,
) -> Result<Ownership, AdminError> {
    let mut owners = BTreeSet::new();
    for text in hosts {
        let guid = match table.resolve_among(text, &[EntityType::Host]) {
            Ok(guid) => guid,
            Err(e) => {
                let other = table.resolve(text).ok().and_then(|guid| table.get(guid));
                return Err(match other {
                    Some(row) => error(
                        ErrorKind::WrongType,
                        format!(
                            "{} is not a host; `rma hosts` lists the hosts",
                            Named::of(row)
                        ),
                    ),
                    None => e.into(),
                });
            }
        };
        let valid = table.get(guid).is_some_and(Row::is_valid);
        if !valid || !is_member(guid) {
            let name = table
                .get(guid)
                .map_or_else(|| guid.to_string(), |row| Named::of(row).to_string());
            return Err(error(
                ErrorKind::Unknown,
                format!(
                    "{name} is no longer a member of this cluster; `rma hosts` lists the members"
                ),
            ));
        }
        owners.insert(guid);
    }
    let owners: Vec<Guid> = owners.into_iter().collect();
    match owners[..] {
        [] => Err(error(
            ErrorKind::BadRequest,
            "no host is named; name one or more, or release the row instead",
        )),
        [one] if !shared => Ok(Ownership::Dedicated(one)),
        _ => {
            let count = owners.len();
            Ownership::shared(owners).ok_or_else(|| {
                error(
                    ErrorKind::BadRequest,
                    format!(
                        "{count} hosts cannot share a row; name at most {}",
                        crate::wire::row::MAX_OWNERS
                    ),
                )
            })
        }
    }
}

/// The changes that give `target` this ownership, parents first, in one transaction; none where
/// all is so already. Rows below that must follow by the cluster's granularity do. Where
/// `recursive`, other rows below are cut down to what the hierarchy permits; otherwise they are
/// named in an error.
pub(super) fn changes(
    table: &Table,
    target: Guid,
    ownership: &Ownership,
    recursive: bool,
) -> Result<Vec<Change>, AdminError> {
    let granularity = table.settings().granularity;
    let mut after: BTreeMap<Guid, Ownership> = BTreeMap::new();
    let mut in_the_way = Vec::new();
    let mut changes = Vec::new();
    let mut next = VecDeque::from([target]);
    after.insert(target, ownership.clone());
    while let Some(guid) = next.pop_front() {
        let row = table.get(guid).ok_or(RuleError::NoRow { row: guid })?;
        let above = after.get(&guid).unwrap_or(&row.ownership).clone();
        if above != row.ownership {
            changes.push(rules::change_of(row, above.clone()));
        }
        for child in table.children(guid).filter(|row| row.is_valid()) {
            let wanted = if rules::follows(granularity, child.entity) {
                above.clone()
            } else if rules::permits(&above, &child.ownership) {
                continue;
            } else if recursive {
                cut(&above, &child.ownership)
            } else {
                in_the_way.push(child);
                continue;
            };
            after.insert(child.guid, wanted);
            next.push_back(child.guid);
        }
    }
    if let Some(row) = table.get(target)
        && !in_the_way.is_empty()
    {
        return Err(blocked(table, row, ownership, &in_the_way));
    }
    if !changes.is_empty() {
        rules::check_change(table, &changes)?;
    }
    let request = CompareAndSet {
        term: 0,
        writer: target,
        changes,
    };
    if !request.is_within_limits() {
        return Err(error(
            ErrorKind::BadRequest,
            format!(
                "{} rows cannot change in one transaction; change the controllers one by one first",
                request.changes.len()
            ),
        ));
    }
    Ok(request.changes)
}

/// What is left of a child's ownership under a parent that does not permit it.
fn cut(parent: &Ownership, child: &Ownership) -> Ownership {
    match parent {
        Ownership::Dedicated(host) if child.includes(*host) => parent.clone(),
        Ownership::Unallocated | Ownership::Dedicated(_) => Ownership::Unallocated,
        Ownership::Shared(_) => {
            let left: Vec<Guid> = child
                .owners()
                .iter()
                .copied()
                .filter(|host| parent.includes(*host))
                .collect();
            Ownership::shared(left).unwrap_or_default()
        }
    }
}

fn blocked(table: &Table, row: &Row, wanted: &Ownership, children: &[&Row]) -> AdminError {
    let mut names: Vec<String> = children
        .iter()
        .take(MAX_NAMED)
        .map(|child| {
            format!(
                "{} is {}",
                Named::of(child),
                Held::of(table, &child.ownership)
            )
        })
        .collect();
    if children.len() > MAX_NAMED {
        names.push(format!("{} more", children.len() - MAX_NAMED));
    }
    error(
        ErrorKind::Hierarchy,
        format!(
            "{} cannot be {}: its {}; release what is in the way, or add --recursive",
            Named::of(row),
            Held::of(table, wanted),
            names.join(", its ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crt::outlook::joined_outlook;
    use crate::wire::{Epoch, Granularity, OwnershipStamp, RowState};

    const A: Guid = Guid(0xa);
    const B: Guid = Guid(0xb);
    const UNIT: Guid = Guid(0x10);
    const CONTROLLER: Guid = Guid(0x20);
    const DEVICE: Guid = Guid(0x30);
    const OTHER: Guid = Guid(0x31);

    fn row(guid: Guid, entity: EntityType, parent: Guid, ownership: Ownership) -> Row {
        Row {
            parent,
            name: format!("r{:x}", guid.0),
            owned: OwnershipStamp {
                epoch: Epoch(3),
                ..OwnershipStamp::default()
            },
            ownership,
            ..Row::new(guid, entity)
        }
    }

    fn both() -> Ownership {
        Ownership::shared(vec![A, B]).unwrap()
    }

    fn table() -> Table {
        let mut table = Table::new();
        for host in [A, B] {
            table.insert(Row::new(host, EntityType::Host));
        }
        table.insert(row(UNIT, EntityType::Unit, Guid::NIL, both()));
        table.insert(row(CONTROLLER, EntityType::Controller, UNIT, both()));
        table.insert(row(
            DEVICE,
            EntityType::Device,
            CONTROLLER,
            Ownership::Dedicated(A),
        ));
        table.insert(row(OTHER, EntityType::Device, CONTROLLER, both()));
        table
    }

    fn planned(
        table: &Table,
        target: Guid,
        ownership: &Ownership,
        recursive: bool,
    ) -> Result<Vec<(Guid, Ownership)>, ErrorKind> {
        match changes(table, target, ownership, recursive) {
            Ok(changes) => {
                assert!(changes.iter().all(|c| c.expected == Epoch(3)));
                Ok(changes.into_iter().map(|c| (c.row, c.ownership)).collect())
            }
            Err(e) => Err(e.kind),
        }
    }

    #[test]
    fn a_change_takes_along_only_what_it_must() {
        let mut table = table();
        let to_b = Ownership::Dedicated(B);
        assert_eq!(
            planned(&table, DEVICE, &to_b, false),
            Ok(vec![(DEVICE, to_b.clone())])
        );
        assert_eq!(planned(&table, UNIT, &both(), false), Ok(vec![]));
        assert_eq!(
            planned(&table, CONTROLLER, &to_b, false),
            Err(ErrorKind::Hierarchy)
        );
        assert_eq!(
            planned(&table, CONTROLLER, &to_b, true),
            Ok(vec![
                (CONTROLLER, to_b.clone()),
                (DEVICE, Ownership::Unallocated),
                (OTHER, to_b.clone()),
            ])
        );
        let shared_b = Ownership::shared(vec![B]).unwrap();
        assert_eq!(
            planned(&table, CONTROLLER, &shared_b, true),
            Ok(vec![
                (CONTROLLER, shared_b.clone()),
                (DEVICE, Ownership::Unallocated),
                (OTHER, shared_b),
            ])
        );
        table.set_granularity(Granularity::Unit, 0, A);
        let all = [UNIT, CONTROLLER, DEVICE, OTHER];
        let moved: Vec<_> = all.iter().map(|guid| (*guid, to_b.clone())).collect();
        assert_eq!(planned(&table, UNIT, &to_b, false), Ok(moved));
        assert_eq!(
            planned(&table, DEVICE, &to_b, false),
            Err(ErrorKind::Granularity)
        );
    }

    #[test]
    fn tombstones_are_in_nobodys_way() {
        let mut table = table();
        for guid in [DEVICE, OTHER] {
            let gone = Row {
                state: RowState::Invalid,
                ..table.get(guid).unwrap().clone()
            };
            table.insert(gone);
        }
        let to_b = Ownership::Dedicated(B);
        assert_eq!(
            planned(&table, CONTROLLER, &to_b, false),
            Ok(vec![(CONTROLLER, to_b)])
        );
        assert_eq!(target(&table, "r30").unwrap_err().kind, ErrorKind::Invalid);
    }

    #[test]
    fn more_changes_than_a_message_holds_are_refused() {
        let mut table = table();
        for n in 0..crate::wire::message::MAX_CHANGES as u128 {
            let device = row(
                Guid(0x1_0000 + n),
                EntityType::Device,
                CONTROLLER,
                Ownership::Dedicated(A),
            );
            table.insert(device);
        }
        assert_eq!(
            planned(&table, UNIT, &Ownership::Unallocated, true),
            Err(ErrorKind::BadRequest)
        );
    }

    #[test]
    fn a_mixture_that_breaks_the_hierarchy_is_seen_before_it_is_joined() {
        let table = table();
        let newer = |guid: Guid, ownership: Ownership| {
            let ours = table.get(guid).unwrap().clone();
            Row {
                ownership,
                owned: OwnershipStamp {
                    epoch: Epoch(9),
                    ..ours.owned
                },
                ..ours
            }
        };
        let seen = |rows: &[Row]| offenders(&table, &joined_outlook(&table, rows));
        // The controller alone leaves its devices behind.
        let controller = newer(CONTROLLER, Ownership::Dedicated(B));
        assert_eq!(
            seen(std::slice::from_ref(&controller)),
            BTreeSet::from([DEVICE, OTHER])
        );
        // With what went along it fits.
        let device = newer(DEVICE, Ownership::Unallocated);
        let other = newer(OTHER, Ownership::Dedicated(B));
        assert_eq!(
            seen(&[controller.clone(), device, other.clone()]),
            BTreeSet::new()
        );
        // An older device does not count.
        let stale = Row {
            owned: OwnershipStamp::default(),
            ..newer(DEVICE, Ownership::Unallocated)
        };
        assert_eq!(seen(&[controller, stale, other]), BTreeSet::from([DEVICE]));
        // A row that is new here counts by what it brings.
        let fresh = row(
            Guid(0x40),
            EntityType::Device,
            CONTROLLER,
            Ownership::Dedicated(Guid(0xc)),
        );
        assert_eq!(seen(&[fresh]), BTreeSet::from([Guid(0x40)]));
    }
}
