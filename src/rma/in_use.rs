//! Devices that this host's operating system uses: they are not taken from it by mistake.

use std::collections::BTreeMap;

use super::agent::Agent;
use super::plan::error;
use super::report::label;
use super::request::{AdminError, ErrorKind};
use crate::crt::Table;
use crate::wire::Guid;
use crate::wire::message::Change;

impl Agent {
    /// Says which devices and extents of this host are in use, and by whom, in words. Allocations
    /// that are asked for from now on are refused where they would take one of these from it.
    pub fn set_used(&mut self, used: BTreeMap<Guid, String>) {
        self.used = used;
    }
}

/// The changes, unless they take from `host` something that is in use there.
pub(super) fn in_use(
    table: &Table,
    host: Guid,
    used: &BTreeMap<Guid, String>,
    changes: Vec<Change>,
) -> Result<Vec<Change>, AdminError> {
    let mut lost = changes
        .iter()
        .filter(|change| !change.ownership.owners().contains(&host));
    let Some((row, users)) = lost.find_map(|c| Some((c.row, used.get(&c.row)?))) else {
        return Ok(changes);
    };
    Err(error(
        ErrorKind::Refused,
        format!(
            "{} is in use on this host ({users}); end that first, or add --force, with which its \
             I/O fails; nothing was changed",
            label(table, row)
        ),
    ))
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
        let refused = |ownership| in_use(&table, host, &used, change(ownership)).err();
        let e = refused(Ownership::Dedicated(other)).expect("it is lost");
        assert_eq!(e.kind, ErrorKind::Refused);
        assert!(e.message.contains("disk") && e.message.contains("mounted at /srv"));
        assert!(refused(Ownership::Unallocated).is_some());
        assert!(refused(Ownership::Dedicated(host)).is_none());
        assert!(refused(Ownership::shared(vec![host, other]).unwrap()).is_none());
        let nothing = BTreeMap::new();
        let taken = change(Ownership::Unallocated);
        assert!(in_use(&table, host, &nothing, taken.clone()).is_ok());
        let elsewhere = BTreeMap::from([(Guid(9), String::new())]);
        assert!(in_use(&table, other, &elsewhere, taken).is_ok());
    }
}
