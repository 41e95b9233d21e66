//! Text for people of what fabric services' daemon and an I/O unit's daemon answer.

use std::fmt::Write as _;

use super::fabric_protocol::{CatalogInfo, EntityInfo, FabricReply, FabricStatus, KeptTableInfo};
use super::text::{Style, list, printable, size, span, summary, table};
use super::unit_protocol::{RegisterInfo, UnitReply, UnitStatus};
use crate::rma::request::StatusInfo;

/// What `rma fabric` prints.
pub fn fabric(reply: &FabricReply, style: Style) -> String {
    match reply {
        FabricReply::Catalog(info) => catalog(info, style),
        FabricReply::Status(info) => fabric_status(info),
        FabricReply::Tables { tables } => kept_tables(tables, style),
        FabricReply::Table(info) => table(info, style),
        FabricReply::Assigned {
            entity,
            from,
            changed,
        } => {
            let name = printable(&entity.name);
            let cluster = entity.cluster.as_deref().unwrap_or("-");
            match from {
                _ if !changed => format!(
                    "{} {name} was of cluster {cluster} already\n",
                    entity.entity
                ),
                None => format!("{} {name} joins cluster {cluster}\n", entity.entity),
                Some(from) => format!(
                    "{} {name} moves from cluster {from} to {cluster}\n",
                    entity.entity
                ),
            }
        }
        FabricReply::Removed { entity } => {
            format!("{} {} is removed\n", entity.entity, printable(&entity.name))
        }
        FabricReply::Error { message } => format!("{}\n", printable(message)),
    }
}

fn owners(entity: &EntityInfo) -> String {
    let Some(ownership) = &entity.ownership else {
        return "-".into();
    };
    let names: Vec<_> = entity
        .owners
        .iter()
        .map(|o| o.name.as_ref().unwrap_or(&o.guid).as_str())
        .collect();
    format!("{ownership} {}", names.join(", "))
        .trim_end()
        .to_owned()
}

/// The cluster, and those that it is a guest of.
fn cluster(entity: &EntityInfo) -> String {
    let mut text = match (&entity.cluster, &entity.requested) {
        (Some(cluster), _) => cluster.clone(),
        (None, Some(wanted)) => format!("pending ({wanted})"),
        (None, None) => "pending".into(),
    };
    let guests: Vec<&str> = entity.guests.iter().map(|g| g.cluster.as_str()).collect();
    if !guests.is_empty() {
        let _ = write!(text, ", guest of {}", guests.join(", "));
    }
    text
}

/// The fabric services database as Fig. 3 shows it.
fn catalog(info: &CatalogInfo, style: Style) -> String {
    let rows = info
        .entities
        .iter()
        .enumerate()
        .map(|(index, e)| {
            vec![
                (index + 1).to_string(),
                style.guid(&e.guid),
                e.name.clone(),
                e.entity.clone(),
                e.macs.join(" "),
                cluster(e),
                owners(e),
                format!("{} {}", e.version, e.label),
                if e.connected { "yes" } else { "no" }.into(),
            ]
        })
        .collect();
    let headings = [
        "ROW#",
        "GUID",
        "NAME",
        "TYPE",
        "NIC MAC",
        "CLUSTER",
        "OWNERSHIP",
        "STAMP",
        "CONNECTED",
    ];
    format!(
        "version {}  {}\n{}",
        info.version,
        info.label,
        list(style, &headings, rows)
    )
}

/// What `rma status` says of fabric services as the source of the table.
pub(super) fn centre(info: &StatusInfo) -> Option<String> {
    let Some(centre) = &info.centre else {
        let central = info.crt_source == "central";
        return central.then(|| "does not answer, the peers are asked".into());
    };
    let table = centre.table.as_ref().map_or("none told".into(), summary);
    let word = if centre.in_step {
        "in step"
    } else {
        "not in step"
    };
    Some(format!("{word}: {table}"))
}

/// The tables that fabric services keep.
fn kept_tables(tables: &[KeptTableInfo], style: Style) -> String {
    let rows = tables.iter().map(|kept| {
        let stamp = &kept.table.stamp;
        vec![
            kept.cluster.clone(),
            kept.table.row_count.to_string(),
            format!("{}.{}", stamp.term, stamp.counter),
            style.guid(&stamp.writer),
            kept.table.digest.clone(),
        ]
    });
    let headings = ["CLUSTER", "ROWS", "STAMP", "WRITER", "DIGEST"];
    list(style, &headings, rows.collect())
}

fn fabric_status(info: &FabricStatus) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: String| {
        let _ = writeln!(out, "{key:<12} {}", printable(&value));
    };
    line(
        "fabric",
        format!(
            "{}  start number {}, up for {}",
            info.guid,
            info.incarnation,
            span(info.uptime_ms)
        ),
    );
    line(
        "interface",
        format!(
            "{} {} {} mtu {}",
            info.interface, info.mac, info.link, info.mtu
        ),
    );
    line("policy", info.policy.clone());
    line(
        "database",
        format!("{} version {} {}", info.database, info.version, info.label),
    );
    line(
        "members",
        format!(
            "{} hosts, {} units in {} clusters; {} pending, {} connected",
            info.hosts, info.units, info.clusters, info.pending, info.connected
        ),
    );
    for (key, counters) in [("counters", &info.counters), ("dropped", &info.drops)] {
        if !counters.is_empty() {
            let text: Vec<_> = counters
                .iter()
                .map(|c| format!("{} {}", c.name, c.count))
                .collect();
            line(key, text.join(", "));
        }
    }
    out
}

/// What `rma unit` prints.
pub fn unit(reply: &UnitReply, style: Style) -> String {
    match reply {
        UnitReply::Status(info) => unit_status(info, style),
        UnitReply::Reloaded {
            changes,
            at_next_start,
        } => {
            let mut out = String::new();
            for change in changes {
                let _ = writeln!(out, "{}", printable(change));
            }
            if changes.is_empty() {
                out.push_str("nothing changed\n");
            }
            if !at_next_start.is_empty() {
                let _ = writeln!(
                    out,
                    "takes effect at the next start: {}",
                    at_next_start.join(", ")
                );
            }
            out
        }
        UnitReply::Error { message } => format!("{}\n", printable(message)),
    }
}

fn unit_status(info: &UnitStatus, style: Style) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: String| {
        let _ = writeln!(out, "{key:<12} {}", printable(&value));
    };
    line(
        "unit",
        format!(
            "{}  {}  start number {}",
            info.name, info.guid, info.incarnation
        ),
    );
    let fabric = if info.fabric_up {
        "answer"
    } else {
        "do not answer"
    };
    line(
        "cluster",
        format!(
            "{}{}; fabric services {fabric}",
            info.cluster.as_deref().unwrap_or("-"),
            match &info.guests[..] {
                [] => String::new(),
                guests => format!(", guest of {}", guests.join(", ")),
            }
        ),
    );
    line(
        "interface",
        format!(
            "{} {} {} mtu {}",
            info.interface,
            info.macs.join(", "),
            info.link,
            info.mtu
        ),
    );
    line(
        "registers",
        if info.registers_lost {
            "LOST: no I/O is served".into()
        } else {
            format!("term {}", info.term)
        },
    );
    for (key, traffic) in [("management", &info.management), ("service", &info.service)] {
        let mut text = format!(
            "{} frames in, {} out",
            traffic.received_frames, traffic.sent_frames
        );
        if traffic.receive_overruns > 0 {
            let _ = write!(text, ", {} overrun", traffic.receive_overruns);
        }
        for drop in &traffic.drops {
            let _ = write!(text, ", {} dropped: {}", drop.count, drop.reason);
        }
        line(key, text);
    }
    let mut rows = Vec::new();
    for controller in &info.controllers {
        rows.push(vec![
            format!("{}", controller.ioc),
            controller.name.clone(),
            String::new(),
            String::new(),
            register(controller.register.as_ref(), style),
            String::new(),
            style.guid(&controller.guid),
        ]);
        for device in &controller.devices {
            rows.push(vec![
                format!("{}/{}", controller.ioc, device.iod),
                device.name.clone(),
                size(device.size_bytes),
                device
                    .path
                    .clone()
                    .unwrap_or_else(|| device.backend.clone()),
                match &device.cluster {
                    Some(cluster) => {
                        format!(
                            "{}, in {cluster}",
                            register(device.register.as_ref(), style)
                        )
                    }
                    None => register(device.register.as_ref(), style),
                },
                format!("{} ({} failed)", device.operations, device.errors),
                style.guid(&device.guid),
            ]);
        }
    }
    let headings = [
        "IOC/IOD",
        "NAME",
        "SIZE#",
        "BACKEND",
        "OWNERSHIP",
        "OPERATIONS",
        "GUID",
    ];
    out.push_str(&list(style, &headings, rows));
    out
}

fn register(register: Option<&RegisterInfo>, style: Style) -> String {
    register.map_or_else(
        || "lost".into(),
        |r| {
            let owners: Vec<_> = r.owners.iter().map(|o| style.guid(o)).collect();
            format!("{} {}", r.ownership, owners.join(", "))
                .trim_end()
                .to_owned()
        },
    )
}
