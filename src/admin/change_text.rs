//! Text for people about changes: what an allocation, a carve did.

use std::fmt::Write as _;

use super::text::{name_of, ownership, printable, size};
use crate::rma::request::{AllocationInfo, CarveInfo};

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
