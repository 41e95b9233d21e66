//! The rows of a table in order: by GUID, and by what they are below. A row is in memory once, and its
//! keys are its own.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Arc;

use crate::wire::{Guid, Row};

/// A row by its GUID.
#[derive(Debug, Clone)]
struct ByGuid(Arc<Row>);

impl Borrow<Guid> for ByGuid {
    fn borrow(&self) -> &Guid {
        &self.0.guid
    }
}

impl Ord for ByGuid {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.guid.cmp(&other.0.guid)
    }
}

impl PartialOrd for ByGuid {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByGuid {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for ByGuid {}

/// What has a place in the tree: (parent, GUID).
trait Placed {
    fn place(&self) -> (Guid, Guid);
}

impl Placed for (Guid, Guid) {
    fn place(&self) -> (Guid, Guid) {
        *self
    }
}

/// A row by its parent and its GUID.
#[derive(Debug, Clone)]
struct ByParent(Arc<Row>);

impl Placed for ByParent {
    fn place(&self) -> (Guid, Guid) {
        (self.0.parent, self.0.guid)
    }
}

impl<'a> Borrow<dyn Placed + 'a> for ByParent {
    fn borrow(&self) -> &(dyn Placed + 'a) {
        self
    }
}

impl Ord for dyn Placed + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialOrd for dyn Placed + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Placed + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for dyn Placed + '_ {}

impl Ord for ByParent {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialOrd for ByParent {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByParent {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for ByParent {}

/// Rows by GUID and by parent.
#[derive(Debug, Clone, Default)]
pub(super) struct Shelf {
    rows: BTreeSet<ByGuid>,
    /// Those with a parent.
    tree: BTreeSet<ByParent>,
}

impl Shelf {
    /// Of two rows with one GUID the later stays.
    pub(super) fn new(rows: impl IntoIterator<Item = Arc<Row>>) -> Self {
        let rows: BTreeSet<ByGuid> = rows.into_iter().map(ByGuid).collect();
        let placed = rows.iter().filter(|row| !row.0.parent.is_nil());
        let tree = placed.map(|row| ByParent(Arc::clone(&row.0))).collect();
        Self { rows, tree }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn get(&self, guid: Guid) -> Option<&Arc<Row>> {
        self.rows.get(&guid).map(|row| &row.0)
    }

    /// Puts a row in the place of the one with its GUID.
    pub(super) fn put(&mut self, row: Arc<Row>) {
        let old = self.rows.replace(ByGuid(Arc::clone(&row)));
        if let Some(ByGuid(old)) = old
            && old.parent != row.parent
        {
            self.tree.remove(&ByParent(old));
        }
        if !row.parent.is_nil() {
            self.tree.replace(ByParent(row));
        }
    }

    pub(super) fn take(&mut self, guid: Guid) -> Option<Arc<Row>> {
        let ByGuid(row) = self.rows.take(&guid)?;
        let placed = ByParent(row);
        self.tree.remove(&placed);
        Some(placed.0)
    }

    /// Every row by ascending GUID.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Row>> {
        self.rows.iter().map(|row| &row.0)
    }

    /// The rows with larger GUIDs.
    pub(super) fn after(&self, guid: Guid) -> impl Iterator<Item = &Arc<Row>> {
        let rest = self.rows.range::<Guid, _>((Excluded(guid), Unbounded));
        rest.map(|row| &row.0)
    }

    /// The rows one level below, by ascending GUID.
    pub(super) fn children(&self, parent: Guid) -> impl Iterator<Item = &Arc<Row>> {
        let (first, last) = ((parent, Guid::NIL), (parent, Guid(u128::MAX)));
        let range: (_, std::ops::Bound<&dyn Placed>) =
            (Included(&first as &dyn Placed), Included(&last));
        self.tree.range::<dyn Placed, _>(range).map(|row| &row.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::EntityType;

    fn row(guid: u128, parent: u128) -> Arc<Row> {
        let mut row = Row::new(Guid(guid), EntityType::Device);
        row.parent = Guid(parent);
        Arc::new(row)
    }

    #[test]
    fn a_row_that_moves_is_below_its_new_parent_only() {
        let mut shelf = Shelf::new([row(5, 1), row(4, 1), row(6, 2), row(1, 0)]);
        let below = |shelf: &Shelf, parent| -> Vec<u128> {
            shelf.children(Guid(parent)).map(|r| r.guid.0).collect()
        };
        assert_eq!(below(&shelf, 1), [4, 5]);
        shelf.put(row(5, 2));
        assert_eq!((below(&shelf, 1), below(&shelf, 2)), (vec![4], vec![5, 6]));
        shelf.put(row(6, 0));
        assert_eq!(below(&shelf, 2), [5]);
        assert_eq!(below(&shelf, 0), []);
        assert_eq!(shelf.take(Guid(5)), Some(row(5, 2)));
        assert_eq!(shelf.take(Guid(5)), None);
        assert_eq!(below(&shelf, 2), []);
        let rest: Vec<u128> = shelf.after(Guid(1)).map(|r| r.guid.0).collect();
        assert_eq!((rest, shelf.len()), (vec![4, 6], 3));
    }

    #[test]
    fn both_orders_hold_one_row() {
        let mut shelf = Shelf::new([row(5, 1)]);
        let same = row(5, 1);
        shelf.put(Arc::clone(&same));
        assert!(Arc::ptr_eq(shelf.get(Guid(5)).unwrap(), &same));
        assert!(shelf.children(Guid(1)).all(|row| Arc::ptr_eq(row, &same)));
    }
}
