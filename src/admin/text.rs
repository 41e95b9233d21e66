//! Text for people: every list from the same typed replies that `-o json` shows.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use super::change_text;
use crate::rma::request::{
    AdminReply, DeviceInfo, ForgottenInfo, HostInfo, OwnershipInfo, RestoredInfo, RowInfo,
    StatusInfo, SummaryInfo, TableInfo, TreeInfo, UnitInfo, WatchEvent,
};

/// How a list looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Style {
    /// Ruled, for presentations; otherwise columns divided by spaces, for `grep` and `awk`.
    pub ruled: bool,
    /// Everything there is, whole GUIDs among it.
    pub verbose: bool,
}

impl Style {
    /// A GUID: whole when verbose, otherwise its first 8 digits, which `rma` takes as a name.
    pub fn guid(self, guid: &str) -> String {
        guid.get(..8)
            .filter(|_| !self.verbose)
            .unwrap_or(guid)
            .to_owned()
    }
}

/// A list with a heading line; columns whose heading ends in `#` are right-aligned.
pub fn list(style: Style, headings: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(if style.ruled {
        presets::UTF8_FULL_CONDENSED
    } else {
        presets::NOTHING
    });
    table.set_header(headings.iter().map(|h| h.trim_end_matches('#')));
    for row in rows {
        table.add_row(row.into_iter().map(|cell| printable(&cell)));
    }
    for (index, heading) in headings.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            if heading.ends_with('#') {
                column.set_cell_alignment(CellAlignment::Right);
            }
            if !style.ruled {
                column.set_padding((0, 2));
            }
        }
    }
    let mut out = String::new();
    for line in table.to_string().lines() {
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Text from a device or a person, safe for a terminal: control characters are escaped.
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect::<Vec<_>>()
            } else {
                vec![c]
            }
        })
        .collect()
}

/// Bytes in the largest binary unit that divides well: `16 MiB`, `1.5 GiB`, `-` for 0.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes == 0 {
        return "-".into();
    }
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let text = format!("{value:.1}");
    format!(
        "{} {}",
        text.strip_suffix(".0").unwrap_or(&text),
        UNITS[unit]
    )
}

/// A span of time as people say it: `850 ms`, `12 s`, `3 min`, `2 h`, `5 d`.
pub fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{} s", ms / 1_000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

/// `dedicated h108`, `shared h108, h110`, `unallocated`.
pub fn ownership(info: &OwnershipInfo) -> String {
    let owners: Vec<_> = info
        .owners
        .iter()
        .map(|o| {
            if o.name.is_empty() {
                o.guid.clone()
            } else {
                o.name.clone()
            }
        })
        .collect();
    if owners.is_empty() {
        info.ownership.clone()
    } else {
        format!("{} {}", info.ownership, owners.join(", "))
    }
}

fn number(row: &RowInfo) -> String {
    if let Some(range) = &row.extent {
        return format!("@{}+{}", range.offset, range.length);
    }
    match (row.ioc, row.iod) {
        (0, _) => "-".into(),
        (ioc, 0) => format!("IOC {ioc}"),
        (_, iod) => format!("IOD {iod}"),
    }
}

pub(super) fn name_of(row: &RowInfo) -> String {
    if row.name.is_empty() {
        row.guid.clone()
    } else {
        row.name.clone()
    }
}

fn parent_of(row: &RowInfo) -> String {
    row.parent.as_ref().map_or_else(
        || "-".into(),
        |p| {
            if p.name.is_empty() {
                p.guid.clone()
            } else {
                p.name.clone()
            }
        },
    )
}

/// The cluster resource table as Fig. 4 shows it.
pub fn table(info: &TableInfo, style: Style) -> String {
    let rows = info
        .rows
        .iter()
        .enumerate()
        .map(|(index, row)| {
            vec![
                (index + 1).to_string(),
                name_of(row),
                row.entity.clone(),
                row.macs.join(" "),
                number(row),
                parent_of(row),
                if row.entity == "host" {
                    "-".into()
                } else {
                    ownership(&row.ownership)
                },
                size(row.size_bytes),
                row.state.clone(),
                style.guid(&row.guid),
            ]
        })
        .collect();
    let headings = [
        "ROW#",
        "NAME",
        "TYPE",
        "NIC MAC",
        "NUMBER",
        "PARENT",
        "OWNERSHIP",
        "SIZE#",
        "STATE",
        "GUID",
    ];
    let cluster = if info.cluster.is_empty() {
        "-"
    } else {
        &info.cluster
    };
    format!(
        "cluster {cluster}  granularity {}  {}\n{}",
        info.granularity,
        summary(&info.summary),
        list(style, &headings, rows)
    )
}

pub(super) fn summary(info: &SummaryInfo) -> String {
    format!(
        "stamp {}.{} by {}  digest {}  rows {}",
        info.stamp.term,
        info.stamp.counter,
        info.stamp.writer.get(..8).unwrap_or(&info.stamp.writer),
        info.digest.get(..8).unwrap_or(&info.digest),
        info.row_count
    )
}

fn status(info: &StatusInfo) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: String| {
        let _ = writeln!(out, "{key:<12} {}", printable(&value));
    };
    line(
        "host",
        format!(
            "{}  {}  {}",
            info.host.name,
            info.host.guid,
            info.macs.join(" ")
        ),
    );
    line(
        "cluster",
        if info.cluster.is_empty() {
            "-".into()
        } else {
            info.cluster.clone()
        },
    );
    line("start", format!("number {}", info.incarnation));
    line(
        "state",
        if info.block == 0 {
            "steady".into()
        } else {
            format!("block {}", info.block)
        },
    );
    line(
        "fabric",
        format!("{} for {}", info.fabric, span(info.fabric_ms)),
    );
    line("table", summary(&info.table));
    line("granularity", info.granularity.clone());
    if let Some(text) = super::daemon_text::centre(info) {
        line("centre", text);
    }
    line(
        "peers",
        format!(
            "{} of {} reachable, {} in step",
            info.peers_reachable, info.peer_count, info.peers_in_step
        ),
    );
    line(
        "units",
        format!("{} of {} reachable", info.units_reachable, info.unit_count),
    );
    line(
        "devices",
        format!(
            "{} known, {} owned by this host",
            info.device_count, info.devices_owned
        ),
    );
    for refused in &info.refused {
        line("refused", refused.clone());
    }
    if !info.drops.is_empty() {
        let drops: Vec<_> = info
            .drops
            .iter()
            .map(|d| format!("{} {}", d.reason, d.count))
            .collect();
        line("dropped", drops.join(", "));
    }
    out
}

fn hosts(hosts: &[HostInfo], style: Style) -> String {
    let rows = hosts
        .iter()
        .map(|h| {
            vec![
                name_of(&h.row),
                h.row.macs.join(" "),
                format!(
                    "{} for {}",
                    h.liveness.liveness,
                    span(h.liveness.liveness_ms)
                ),
                if h.member { "yes" } else { "no" }.into(),
                h.table.as_ref().map_or_else(
                    || "-".into(),
                    |t| format!("{}.{}", t.stamp.term, t.stamp.counter),
                ),
                if h.in_step { "yes" } else { "no" }.into(),
                style.guid(&h.row.guid),
            ]
        })
        .collect();
    list(
        style,
        &[
            "NAME", "NIC MAC", "STATE", "MEMBER", "STAMP", "IN STEP", "GUID",
        ],
        rows,
    )
}

fn units(units: &[UnitInfo], style: Style) -> String {
    let rows = units
        .iter()
        .map(|u| {
            let lost = if u.registers_lost {
                ", registers lost"
            } else {
                ""
            };
            let guest = if u.guest { ", a guest" } else { "" };
            vec![
                name_of(&u.row),
                u.row.macs.join(" "),
                format!(
                    "{} for {}{lost}{guest}",
                    u.liveness.liveness,
                    span(u.liveness.liveness_ms)
                ),
                u.controller_count.to_string(),
                u.device_count.to_string(),
                ownership(&u.row.ownership),
                [u.row.vendor.as_str(), u.row.model.as_str()]
                    .join(" ")
                    .trim()
                    .to_owned(),
                style.guid(&u.row.guid),
            ]
        })
        .collect();
    let headings = [
        "NAME",
        "NIC MAC",
        "STATE",
        "IOCS#",
        "IODS#",
        "OWNERSHIP",
        "MODEL",
        "GUID",
    ];
    list(style, &headings, rows)
}

fn devices(devices: &[DeviceInfo], style: Style) -> String {
    let rows = devices
        .iter()
        .map(|d| {
            vec![
                name_of(&d.row),
                d.row.address.clone(),
                size(d.row.size_bytes),
                ownership(&d.row.ownership),
                d.unit.name.clone(),
                if d.row.state == "valid" {
                    d.liveness.liveness.clone()
                } else {
                    d.row.state.clone()
                },
                if d.owned_here { "yes" } else { "no" }.into(),
                [d.row.vendor.as_str(), d.row.model.as_str()]
                    .join(" ")
                    .trim()
                    .to_owned(),
                style.guid(&d.row.guid),
            ]
        })
        .collect();
    let headings = [
        "NAME",
        "ADDRESS",
        "SIZE#",
        "OWNERSHIP",
        "UNIT",
        "STATE",
        "HERE",
        "MODEL",
        "GUID",
    ];
    list(style, &headings, rows)
}

/// A device or extent in a tree.
fn leaf(word: &str, row: &RowInfo) -> String {
    format!(
        "{word} {}  {}  {}  [{}]",
        printable(&name_of(row)),
        number(row),
        size(row.size_bytes),
        printable(&ownership(&row.ownership))
    )
}

fn tree(info: &TreeInfo) -> String {
    let mut out = format!(
        "cluster {}\n",
        if info.cluster.is_empty() {
            "-"
        } else {
            &info.cluster
        }
    );
    let count = info.hosts.len() + info.units.len();
    let branch = |last: bool| {
        if last {
            ("└─ ", "   ")
        } else {
            ("├─ ", "│  ")
        }
    };
    for (index, host) in info.hosts.iter().enumerate() {
        let (stem, _) = branch(index + 1 == count);
        let _ = writeln!(
            out,
            "{stem}host {}  {}  {}",
            printable(&name_of(&host.row)),
            host.row.address,
            host.liveness.liveness
        );
    }
    for (index, unit) in info.units.iter().enumerate() {
        let (stem, below) = branch(info.hosts.len() + index + 1 == count);
        let row = &unit.unit.row;
        let _ = writeln!(
            out,
            "{stem}unit {}  {}  {}  [{}]",
            printable(&name_of(row)),
            row.address,
            unit.unit.liveness.liveness,
            printable(&ownership(&row.ownership))
        );
        for (index, controller) in unit.controllers.iter().enumerate() {
            let (stem, deeper) = branch(index + 1 == unit.controllers.len());
            let row = &controller.row;
            let _ = writeln!(
                out,
                "{below}{stem}controller {}  {}  [{}]",
                printable(&name_of(row)),
                number(row),
                printable(&ownership(&row.ownership))
            );
            for (index, device) in controller.devices.iter().enumerate() {
                let (stem, deepest) = branch(index + 1 == controller.devices.len());
                let line = leaf("device", &device.row);
                let _ = writeln!(out, "{below}{deeper}{stem}{line}");
                for (index, extent) in device.extents.iter().enumerate() {
                    let (stem, _) = branch(index + 1 == device.extents.len());
                    let line = leaf("extent", extent);
                    let _ = writeln!(out, "{below}{deeper}{deepest}{stem}{line}");
                }
            }
        }
    }
    out
}

/// One line about an event.
pub fn event(event: &WatchEvent) -> String {
    let text = match event {
        WatchEvent::Added { row } => {
            format!("added {} {} at {}", row.entity, name_of(row), row.address)
        }
        WatchEvent::Removed { row } => format!("removed {} {}", row.entity, name_of(row)),
        WatchEvent::Forgotten { row } => format!("forgotten {} {}", row.entity, name_of(row)),
        WatchEvent::Changed { before, after } => {
            format!(
                "changed {} {}{}",
                after.entity,
                name_of(after),
                facts_changed(before, after)
            )
        }
        WatchEvent::OwnershipChanged { row, before, after } => format!(
            "ownership {} {}: {} -> {} (epoch {})",
            row.entity,
            name_of(row),
            ownership(before),
            ownership(after),
            row.epoch
        ),
        WatchEvent::Reachable { who, entity } => format!("reachable {entity} {}", who.name),
        WatchEvent::Unreachable { who, entity } => format!("unreachable {entity} {}", who.name),
        WatchEvent::Fabric { state } => format!("fabric services {state}"),
        WatchEvent::GranularityChanged { before, after } => {
            format!("granularity {before} -> {after}")
        }
        WatchEvent::LeaseLost { term, why } => {
            format!("the allocation lease (term {term}) is lost: {why}")
        }
        WatchEvent::TableAdopted {
            from,
            changed_rows,
            table,
        } => {
            format!(
                "table of {} taken: {changed_rows} rows changed; {}",
                from.name,
                summary(table)
            )
        }
        WatchEvent::Refused { message } => format!("refused: {message}"),
    };
    printable(&text)
}

fn facts_changed(before: &RowInfo, after: &RowInfo) -> String {
    let mut out = String::new();
    if before.name != after.name {
        let _ = write!(out, ", name {} -> {}", before.name, after.name);
    }
    if before.size_bytes != after.size_bytes {
        let _ = write!(
            out,
            ", size {} -> {}",
            size(before.size_bytes),
            size(after.size_bytes)
        );
    }
    if before.address != after.address {
        let _ = write!(out, ", address {} -> {}", before.address, after.address);
    }
    out
}

fn forgotten(info: &ForgottenInfo) -> String {
    info.rows.iter().fold(String::new(), |mut out, row| {
        let held = match row.ownership.ownership.as_str() {
            "unallocated" => String::new(),
            _ => format!(", which was {}", ownership(&row.ownership)),
        };
        let line = format!(
            "forgotten: {} {} ({}){held}",
            row.entity,
            name_of(row),
            row.guid
        );
        out.push_str(&printable(&line));
        out.push('\n');
        out
    })
}

fn restored(info: &RestoredInfo) -> String {
    let forced = if info.forced {
        "; not every host's table was asked: look through `rma devices`"
    } else {
        ""
    };
    let (name, count) = (printable(&info.unit.name), info.registers);
    format!("{name} has {count} ownership registers again and serves I/O{forced}\n")
}

/// The whole text of a reply.
pub fn reply(reply: &AdminReply, style: Style) -> String {
    match reply {
        AdminReply::Status(info) => status(info),
        AdminReply::Hosts { hosts: all } => hosts(all, style),
        AdminReply::Units { units: all } => units(all, style),
        AdminReply::Devices { devices: all } | AdminReply::Exports { devices: all } => {
            devices(all, style)
        }
        AdminReply::Tree(info) => tree(info),
        AdminReply::Table(info) => table(info, style),
        AdminReply::Forgotten(info) => forgotten(info),
        AdminReply::Allocated(info) => change_text::allocated(info),
        AdminReply::Carved(info) => change_text::carved(info),
        AdminReply::Moved(info) => change_text::moved(info),
        AdminReply::Restored(info) => restored(info),
        AdminReply::Applied(info) => change_text::applied(info),
        AdminReply::Granularity(info) if info.changed => {
            format!("granularity is now {}\n", info.granularity)
        }
        AdminReply::Granularity(info) => format!("{}\n", info.granularity),
        AdminReply::Lock(info) => super::lock_text::lock(info, style),
        AdminReply::Watching => String::new(),
        AdminReply::Error(error) => format!("{}\n", printable(&error.message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_read_well() {
        for (bytes, text) in [
            (0, "-"),
            (512, "512 B"),
            (16 << 20, "16 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        for (ms, text) in [
            (5, "5 ms"),
            (1_500, "1 s"),
            (180_000, "3 min"),
            (7_200_000, "2 h"),
            (864_000_000, "10 d"),
        ] {
            assert_eq!(span(ms), text);
        }
    }

    #[test]
    fn a_list_is_aligned_and_cannot_be_broken_by_a_name() {
        let text = list(
            Style::default(),
            &["NAME", "SIZE#"],
            vec![
                vec!["a\n\x1b[2J".into(), "1".into()],
                vec!["longer name".into(), "100".into()],
            ],
        );
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("a\\n\\u{1b}[2J") && lines[1].ends_with("  1"));
        assert_eq!(lines[1].len(), lines[2].len());
    }
}
