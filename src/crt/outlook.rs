//! How rows would look together, before they are joined: whether facts that come in break the
//! ownership hierarchy (I5). Pure functions on a table.

use std::collections::{BTreeMap, BTreeSet};

use super::Table;
use super::join::joined;
use super::rules::permits;
use super::table::MAX_DEPTH;
use crate::wire::{Guid, Ownership, Row};

/// A row as it would be, as far as the hierarchy is concerned.
#[derive(Debug, Clone)]
pub struct Outlook {
    /// Its parent.
    pub parent: Guid,
    /// Whether it is valid.
    pub valid: bool,
    /// Who owns it.
    pub ownership: Ownership,
}

impl Outlook {
    /// The row as it is.
    pub fn of(row: &Row) -> Self {
        Self {
            parent: row.parent,
            valid: row.is_valid(),
            ownership: row.ownership.clone(),
        }
    }
}

/// The rows that would break the hierarchy under their parent if these rows were as they look.
/// A table that obeys the hierarchy still does when none is named.
pub fn offenders(table: &Table, outlook: &BTreeMap<Guid, Outlook>) -> BTreeSet<Guid> {
    let mut offenders = BTreeSet::new();
    let look = |guid: Guid| match outlook.get(&guid) {
        Some(look) => Some(look.clone()),
        None => table.get(guid).map(Outlook::of),
    };
    let mut check = |child: Guid| {
        let Some(below) = look(child).filter(|l| l.valid) else {
            return;
        };
        let Some(above) = look(below.parent).filter(|l| l.valid) else {
            return;
        };
        if !permits(&above.ownership, &below.ownership) {
            offenders.insert(child);
        }
    };
    for guid in outlook.keys() {
        check(*guid);
        for child in table.children(*guid) {
            check(child.guid);
        }
    }
    offenders
}

/// How the rows of another table, joined with ours, would look; only those that would change.
pub fn joined_outlook<'a>(
    table: &Table,
    rows: impl IntoIterator<Item = &'a Row>,
) -> BTreeMap<Guid, Outlook> {
    let mut outlook = BTreeMap::new();
    for theirs in rows {
        let Some(ours) = table.get(theirs.guid) else {
            outlook.insert(theirs.guid, Outlook::of(theirs));
            continue;
        };
        let seen = if (theirs.observed, theirs.is_valid()) > (ours.observed, ours.is_valid()) {
            theirs
        } else {
            ours
        };
        let owned = if (theirs.owned, &theirs.ownership) > (ours.owned, &ours.ownership) {
            theirs
        } else {
            ours
        };
        let look = Outlook {
            ownership: owned.ownership.clone(),
            ..Outlook::of(seen)
        };
        let same = look.parent == ours.parent
            && look.valid == ours.is_valid()
            && look.ownership == ours.ownership;
        if !same {
            outlook.insert(theirs.guid, look);
        }
    }
    outlook
}

/// Rows of units that were left out of a join, by unit.
pub type LeftOut = BTreeMap<Guid, Vec<Row>>;

/// Leaves out the rows of units whose rows, as they come, would break the hierarchy when joined:
/// such a mixture is never stored. Gives what was left out.
pub fn leave_out_offenders(table: &Table, rows: &mut Vec<Row>) -> LeftOut {
    let offenders = offenders(table, &joined_outlook(table, rows.iter()));
    if offenders.is_empty() {
        return LeftOut::new();
    }
    let parents: BTreeMap<Guid, Guid> = rows.iter().map(|row| (row.guid, row.parent)).collect();
    let unit_of = |guid: Guid| {
        let mut at = guid;
        for _ in 0..MAX_DEPTH {
            match parents.get(&at) {
                Some(parent) if !parent.is_nil() => at = *parent,
                Some(_) => return at,
                None => return table.unit_of(at).unwrap_or(at),
            }
        }
        at
    };
    let mut left_out: LeftOut = offenders
        .into_iter()
        .map(|guid| (unit_of(guid), Vec::new()))
        .collect();
    for row in std::mem::take(rows) {
        match left_out.get_mut(&unit_of(row.guid)) {
            Some(list) => list.push(row),
            None => rows.push(row),
        }
    }
    left_out
}

/// Leaves out rows whose parent is neither in the table nor among them: nothing tells whether what is above
/// permits their owners, and the parent may be heard of next from where nobody knows who owns it.
pub fn leave_out_orphans(table: &Table, rows: &mut Vec<Row>) {
    let parents: BTreeMap<Guid, Guid> = rows.iter().map(|row| (row.guid, row.parent)).collect();
    rows.retain(|row| {
        let mut above = Some(row.parent);
        for _ in 0..MAX_DEPTH {
            match above {
                Some(guid) if guid.is_nil() || table.get(guid).is_some() => return true,
                Some(guid) => above = parents.get(&guid).copied(),
                None => return false,
            }
        }
        false
    });
}

/// What is to be joined with `table` so that it has the newer facts of `rows` and obeys the hierarchy: rows that
/// what is above them does not permit are nobody's, and named.
pub fn release_offenders(table: &Table, rows: Vec<Row>) -> (Vec<Row>, BTreeSet<Guid>) {
    let mut rows: BTreeMap<Guid, Row> = rows.into_iter().map(|row| (row.guid, row)).collect();
    let mut released = BTreeSet::new();
    // Each level may take its owners from the one below.
    for _ in 0..MAX_DEPTH {
        let offenders = offenders(table, &joined_outlook(table, rows.values()));
        if offenders.is_empty() {
            break;
        }
        for guid in offenders {
            let joined = match (table.get(guid), rows.get(&guid)) {
                (Some(ours), Some(theirs)) => joined(ours, theirs),
                (Some(row), None) | (None, Some(row)) => row.clone(),
                (None, None) => continue,
            };
            let row = Row {
                ownership: Ownership::Unallocated,
                owned: joined.owned.not_permitted(),
                ..joined
            };
            rows.insert(guid, row);
            released.insert(guid);
        }
    }
    (rows.into_values().collect(), released)
}
