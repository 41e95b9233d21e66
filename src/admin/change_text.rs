//! Text for people about changes: what an allocation, a carve did.

use std::fmt::Write as _;

use super::text::{name_of, ownership, printable, size};
use crate::rma::request::{
    AllocationInfo, ApplyChangeInfo, ApplyInfo, ApplyState, ApplyUnitInfo, CarveInfo, MoveInfo,
};

/// The most units that a line names.
const MAX_NAMED: usize = 8;

/// What an allocation or release did.
pub fn allocated(info: &AllocationInfo) -> String {
    if !info.changed {
        return format!(
            "{} was {} already; nothing changed\n",
            printable(&name_of(&info.target)),
            printable(&ownership(&info.target.ownership))
        );
    }
    let mut out = String::new();
    for change in &info.changes {
        let name = if change.row.name.is_empty() {
            &change.row.guid
        } else {
            &change.row.name
        };
        let _ = writeln!(
            out,
            "{} {}: {} -> {} (epoch {})",
            change.entity,
            printable(name),
            printable(&ownership(&change.before)),
            printable(&ownership(&change.after)),
            change.epoch
        );
    }
    out
}

/// What a carve or uncarve did.
pub fn carved(info: &CarveInfo) -> String {
    let row = &info.extent;
    let (name, is_there) = (printable(&name_of(row)), row.state == "valid");
    match (info.changed, is_there) {
        (true, true) => format!(
            "extent {name}: carved at {}, {} (GUID {})\n",
            row.address,
            size(row.size_bytes),
            row.guid
        ),
        (true, false) => format!("extent {name}: removed from {}\n", row.address),
        (false, true) => format!("extent {name} was there already; nothing changed\n"),
        (false, false) => format!("extent {name} was gone already; nothing changed\n"),
    }
}

/// What a move did.
pub fn moved(info: &MoveInfo) -> String {
    let (entity, name) = (&info.target.entity, printable(&name_of(&info.target)));
    let (cluster, host) = (&info.cluster, &info.host);
    if info.changed {
        format!("{entity} {name}: moved to cluster {cluster}, dedicated to host {host} there\n")
    } else {
        format!("{entity} {name} was in cluster {cluster} already; nothing changed\n")
    }
}

/// What an apply did, or would do.
pub fn applied(info: &ApplyInfo) -> String {
    if !info.changed {
        return "all is so already; nothing changed\n".to_owned();
    }
    let mut out = String::new();
    if let Some(level) = &info.granularity {
        let _ = writeln!(out, "granularity: {} -> {}", level.before, level.after);
    }
    for unit in &info.units {
        let name = name_or(&unit.unit.name, &unit.unit.guid);
        let state = match unit.state {
            ApplyState::Done => "done",
            ApplyState::Left if info.dry_run => "would change",
            ApplyState::Left => "left",
        };
        let _ = writeln!(out, "I/O unit {name}: {state}");
        for change in &unit.changes {
            let _ = writeln!(out, "  {}", applied_change(change));
        }
    }
    out
}

fn applied_change(change: &ApplyChangeInfo) -> String {
    let name = name_or(&change.name, &change.guid);
    let (before, after) = (ownership(&change.before), ownership(&change.after));
    let (before, after) = (printable(&before), printable(&after));
    let (entity, address) = (&change.entity, &change.address);
    match change.act.as_str() {
        "carve" => format!("+ {entity} {name} at {address}: {after}"),
        "uncarve" => format!("- {entity} {name} at {address}"),
        "rename" => format!("{entity} at {address}: named {name}, {before} -> {after}"),
        _ => format!("{entity} {name}: {before} -> {after}"),
    }
}

fn name_or(name: &str, guid: &str) -> String {
    printable(if name.is_empty() { guid } else { name })
}

/// What an apply has left undone, in one line; `None` where nothing.
pub fn left(info: &ApplyInfo) -> Option<String> {
    let failed = |u: &&ApplyUnitInfo| u.error.is_some();
    let all: Vec<&ApplyUnitInfo> = info.units.iter().filter(failed).collect();
    let first = all.first()?.error.as_deref()?;
    let names: Vec<String> = all
        .iter()
        .take(MAX_NAMED)
        .map(|u| name_or(&u.unit.name, &u.unit.guid))
        .collect();
    let more = if all.len() > MAX_NAMED { ", …" } else { "" };
    Some(format!(
        "{} of {} I/O units have not made their changes ({}{more}): {first}; apply the file \
         again to finish",
        all.len(),
        info.units.len(),
        names.join(", ")
    ))
}
