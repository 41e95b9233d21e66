//! What has been done on devices and on the wire, as `rma devices --stats` prints it.

use super::bench::time;
use super::protocol::{DeviceStatistics, FrameStatistics, PathStatistics};
use super::text::{self, Style};
use crate::initiator::stats::OpReport;

/// A line for each device and kind of I/O that there was, one for each path, and one about frames.
pub(super) fn text(
    style: Style,
    devices: &[DeviceStatistics],
    frames: &FrameStatistics,
    paths: &[PathStatistics],
) -> String {
    let mut rows = Vec::new();
    for device in devices {
        let done = &device.done;
        for (kind, of) in [
            ("read", &done.reads),
            ("write", &done.writes),
            ("other", &done.others),
        ] {
            if of.ios + of.errors > 0 || (kind == "read" && nothing(device)) {
                rows.push(row(style, device, kind, of));
            }
        }
    }
    let headings = [
        "NAME", "KIND", "I/OS#", "BYTES#", "ERRORS#", "MEAN#", "P50#", "P99#", "P99.9#", "MAX#",
        "GUID",
    ];
    let mut out = text::list(style, &headings, rows);
    out.push_str(&format!(
        "frames: {} received, {} sent; dropped: {} not taken in time, {} malformed, {} not sent\n",
        frames.received, frames.sent, frames.receive_drops, frames.malformed, frames.send_drops
    ));
    let headings = [
        "INTERFACE",
        "UNIT'S NIC",
        "CONTROLLER#",
        "STATE",
        "MTU#",
        "ROUND TRIP#",
        "COMMANDS#",
        "UNIT",
    ];
    let rows = paths.iter().map(|path| {
        let trip = path.round_trip_ns;
        vec![
            path.interface.clone(),
            path.mac.clone(),
            path.controller.to_string(),
            path.state.clone(),
            path.mtu_bytes.to_string(),
            trip.map_or_else(|| "-".to_owned(), |ns| time(ns as f64)),
            path.commands.to_string(),
            style.guid(&path.unit),
        ]
    });
    if !paths.is_empty() {
        out.push('\n');
        out.push_str(&text::list(style, &headings, rows.collect()));
    }
    out
}

fn nothing(device: &DeviceStatistics) -> bool {
    let done = &device.done;
    let all = [&done.reads, &done.writes, &done.others];
    all.iter().all(|of| of.ios + of.errors == 0)
}

fn row(style: Style, device: &DeviceStatistics, kind: &str, of: &OpReport) -> Vec<String> {
    let mut row = vec![
        device.name.clone(),
        kind.to_owned(),
        of.ios.to_string(),
        text::size(of.bytes),
        of.errors.to_string(),
    ];
    match &of.latency {
        Some(latency) => {
            let percentile = |wanted: f64| {
                let mut all = latency.percentiles_ns.iter();
                let found = all.find(|(p, _)| (p - wanted).abs() < 1e-9);
                found.map_or_else(|| "-".to_owned(), |(_, ns)| time(*ns as f64))
            };
            row.extend([
                time(latency.mean_ns),
                percentile(50.0),
                percentile(99.0),
                percentile(99.9),
                time(latency.max_ns as f64),
            ]);
        }
        None => row.extend(std::iter::repeat_n("-".to_owned(), 5)),
    }
    row.push(style.guid(&device.guid));
    row
}
