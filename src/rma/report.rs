//! Rows and tables as the plain data that administrators get. Pure functions on a table, so that
//! a reader of the table file shows the same as the agent.

use super::request::{
    NameInfo, OwnershipInfo, RangeInfo, RowInfo, StampInfo, SummaryInfo, TableInfo,
};
use crate::crt::Table;
use crate::wire::message::TableSummary;
use crate::wire::row::features;
use crate::wire::{ClusterName, EntityType, Guid, Ownership, Row, TableStamp};

/// A GUID with the name that the table has for it.
pub fn name_info(table: &Table, guid: Guid) -> NameInfo {
    NameInfo {
        guid: guid.to_string(),
        name: table.get(guid).map_or(String::new(), |r| r.name.clone()),
    }
}

/// An ownership with the names of the owners.
pub fn ownership_info(table: &Table, ownership: &Ownership) -> OwnershipInfo {
    OwnershipInfo {
        ownership: ownership.word().to_owned(),
        owners: ownership
            .owners()
            .iter()
            .map(|owner| name_info(table, *owner))
            .collect(),
    }
}

/// A row with the names of what it refers to.
pub fn row_info(table: &Table, row: &Row) -> RowInfo {
    RowInfo {
        guid: row.guid.to_string(),
        entity: row.entity.name().to_owned(),
        state: row.state.name().to_owned(),
        name: row.name.clone(),
        macs: row.macs.iter().map(ToString::to_string).collect(),
        address: row.address().map_or(String::new(), |a| a.to_string()),
        ioc: row.ioc.0,
        iod: row.iod.0,
        extent: row.extent.map(|range| RangeInfo {
            offset: range.offset,
            length: range.len,
        }),
        parent: (!row.parent.is_nil()).then(|| name_info(table, row.parent)),
        ownership: ownership_info(table, &row.ownership),
        epoch: row.owned.epoch.0,
        term: row.owned.term,
        writer: if row.owned.writer.is_nil() {
            String::new()
        } else {
            row.owned.writer.to_string()
        },
        size_bytes: row.size_bytes,
        block_size_bytes: row.block_size,
        vendor: row.vendor.clone(),
        model: row.model.clone(),
        serial: row.serial.clone(),
        features: features::NAMES
            .iter()
            .filter(|(bit, _)| row.features & bit != 0)
            .map(|(_, name)| (*name).to_owned())
            .collect(),
        mode: row.mode,
        observed_incarnation: row.observed.incarnation.0,
        observed_change: row.observed.change,
    }
}

/// A stamp.
pub fn stamp_info(stamp: TableStamp) -> StampInfo {
    StampInfo {
        term: stamp.term,
        counter: stamp.counter,
        writer: stamp.writer.to_string(),
    }
}

/// A summary.
pub fn summary_info(summary: &TableSummary) -> SummaryInfo {
    SummaryInfo {
        stamp: stamp_info(summary.stamp),
        digest: format!("{:032x}", summary.digest),
        row_count: summary.row_count.into(),
    }
}

/// A whole table (Fig. 4): hosts by name, then each unit with each controller with its devices.
pub fn table_info(table: &Table, cluster: ClusterName) -> TableInfo {
    TableInfo {
        cluster: cluster.as_str().to_owned(),
        summary: summary_info(&table.summary()),
        granularity: table.settings().granularity.name().to_owned(),
        rows: in_figure_order(table)
            .into_iter()
            .map(|row| row_info(table, row))
            .collect(),
    }
}

/// Rows in the order of Fig. 4: hosts by name, then each unit by name, with each controller by
/// number, with its devices by number, each with its extents; then rows whose parent has none.
pub fn in_figure_order(table: &Table) -> Vec<&Row> {
    let mut tops: Vec<&Row> = table
        .rows()
        .filter(|row| table.get(row.parent).is_none())
        .collect();
    tops.sort_by(|a, b| {
        let key = |r: &Row| (r.entity, !r.parent.is_nil());
        (key(a), &a.name, a.guid).cmp(&(key(b), &b.name, b.guid))
    });
    let mut out = Vec::with_capacity(tops.len());
    for top in tops {
        push_subtree(table, top, 0, &mut out);
    }
    out
}

/// The deepest level below a top row: unit, controller, device, extent.
const MAX_DEPTH: u32 = 4;

fn push_subtree<'a>(table: &'a Table, row: &'a Row, depth: u32, out: &mut Vec<&'a Row>) {
    out.push(row);
    if depth == MAX_DEPTH {
        return;
    }
    for child in children_by_number(table, row.guid) {
        push_subtree(table, child, depth + 1, out);
    }
}

/// The children of a row by their numbers, tombstones included.
pub fn children_by_number(table: &Table, guid: Guid) -> Vec<&Row> {
    let mut children: Vec<&Row> = table.children(guid).collect();
    children.sort_by_key(|r| (r.ioc, r.iod, r.extent, !r.is_valid(), r.guid));
    children
}

/// A row as one line names it: type, name and address.
pub fn label(table: &Table, guid: Guid) -> String {
    match table.get(guid) {
        None => format!("{guid}"),
        Some(row) => {
            let name = if row.name.is_empty() {
                row.guid.to_string()
            } else {
                row.name.escape_debug().to_string()
            };
            match row.address() {
                Some(address) if row.entity != EntityType::Host => {
                    format!("{} {name} ({address})", row.entity)
                }
                _ => format!("{} {name}", row.entity),
            }
        }
    }
}

/// Hosts by name, as one line lists them.
pub fn names(table: &Table, hosts: &[Guid]) -> String {
    let names: Vec<String> = hosts
        .iter()
        .map(|guid| match table.get(*guid) {
            Some(row) if !row.name.is_empty() => row.name.escape_debug().to_string(),
            _ => guid.to_string(),
        })
        .collect();
    names.join(", ")
}

/// An ownership as one line says it.
pub fn owned_by(table: &Table, ownership: &Ownership) -> String {
    match ownership {
        Ownership::Unallocated => "unallocated".to_owned(),
        Ownership::Dedicated(_) | Ownership::Shared(_) => format!(
            "{} {}",
            match ownership {
                Ownership::Dedicated(_) => "dedicated to",
                _ => "shared by",
            },
            names(table, ownership.owners())
        ),
    }
}

/// A summary as one line says it.
pub fn summary_text(table: &Table, summary: &TableSummary) -> String {
    let stamp = summary.stamp;
    let writer = if stamp.writer.is_nil() {
        "nobody".to_owned()
    } else {
        names(table, &[stamp.writer])
    };
    format!(
        "version {}.{} by {writer}, {} rows, digest {:016x}",
        stamp.term,
        stamp.counter,
        summary.row_count,
        summary.digest >> 64
    )
}
