//! The rows as a page with a table, and as plots.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::figures::{Candidate, Row};
use super::{Args, Backend, Result};

/// What a plot's bars are coloured.
const COLOURS: [(Candidate, &str); 7] = [
    (Candidate::Ours, "#1b6ca8"),
    (Candidate::OursNbd, "#7fb2d6"),
    (Candidate::NbdkitTcp, "#c0562f"),
    (Candidate::NbdkitUnix, "#dfa58c"),
    (Candidate::Iscsi, "#7d5fa6"),
    (Candidate::Aoe, "#5f9e6e"),
    (Candidate::Ceiling, "#9a9a9a"),
];
const BAR: u32 = 14;
const LABELS: u32 = 250;
const WIDTH: u32 = 560;

/// Writes `page` and a plot for each MTU beside it.
pub(super) fn write(page: &Path, rows: &[Row], args: &Args) -> Result<()> {
    let mut text = format!(
        "# Benchmarks\n\n\
         Written by `tools/bench --page` ({} rounds of {} s each, medians; {}). Everything crosses one veth pair between two\n\
         network namespaces; `ours` is `rma bench`, load made inside `rmad` against `rma-unitd`; `ours NBD` is fio through the\n\
         owned device's NBD socket; nbdkit is driven by the same fio; iSCSI is tgt with a file in the page cache behind it,\n\
         driven by libiscsi (`qemu-img bench`, which goes over the medium in long steps where others do at random); AoE is\n\
         vblade, asked by raw frames; the ceiling is a program of ours that moves frames of the same number and sizes as ours\n\
         and does nothing else: it reads no medium, sums nothing up, copies nothing. {}\n\n",
        args.rounds,
        args.seconds,
        machine(),
        if args.empty {
            "Memory was not written before it\n\
             is read: both unit and nbdkit give zeroes then, without fetching them."
        } else {
            "Every device was written once before."
        }
    );
    let sections = args
        .mtu
        .iter()
        .flat_map(|mtu| args.backends.iter().map(move |b| (*mtu, *b)));
    for (mtu, backend) in sections {
        let rows: Vec<&Row> = rows
            .iter()
            .filter(|row| (row.mtu(), row.backend()) == (mtu, backend))
            .collect();
        if rows.is_empty() {
            continue;
        }
        let (name, title) = match backend {
            Backend::Memory => (format!("benchmarks-{mtu}.svg"), "memory behind the devices"),
            Backend::File => (
                format!("benchmarks-{mtu}-file.svg"),
                "files behind the devices",
            ),
        };
        fs::write(page.with_file_name(&name), plot(&rows))?;
        let _ = write!(
            text,
            "## MTU {mtu}, {title}\n\n![rates at MTU {mtu}]({name})\n\n"
        );
        text.push_str(Row::MARKDOWN_HEADING);
        for row in rows {
            text.push_str(&row.markdown());
        }
        text.push('\n');
    }
    text.push_str(
        "Ratios are medians of the ratios within each round. CPU is processor time of both ends for each I/O; p99.9 is of the\n\
         latency. Both against nbdkit over TCP.\n",
    );
    fs::write(page, text)?;
    Ok(())
}

/// What it ran on.
fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1))
        .unwrap_or("unknown processor");
    let count = cpu.lines().filter(|l| l.starts_with("processor")).count();
    let kernel = read("/proc/sys/kernel/osrelease");
    // The 39th word behind the name, see proc(5).
    let stat = read("/proc/self/stat");
    let words = stat.rsplit_once(')').map_or("", |(_, words)| words);
    let policy = words.split_whitespace().nth(38);
    let shield = match policy {
        Some("1" | "2") => ", all with a real-time priority",
        _ => "",
    };
    format!(
        "{count} processors, {model}, Linux {}{shield}",
        kernel.trim()
    )
}

/// Bars for each workload, of which the longest is the best candidate's.
fn plot(rows: &[&Row]) -> String {
    let group = BAR * COLOURS.len() as u32 + 16;
    let height = group * rows.len() as u32 + 40;
    let total = LABELS + WIDTH + 120;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{total}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{total}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (at, (candidate, colour)) in (0..).zip(COLOURS) {
        let x = 10 + at * 105;
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"10\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"19\">{candidate}</text>",
            x + 15
        );
    }
    for (at, row) in (0_u32..).zip(rows) {
        let top = 36 + at * group;
        let _ = writeln!(
            svg,
            "<text x=\"10\" y=\"{}\">{}</text>",
            top + BAR * 3,
            row.workload()
        );
        let rates = COLOURS.map(|(candidate, _)| row.rate(candidate).unwrap_or(0.0));
        let most = rates.iter().copied().fold(1.0, f64::max);
        for (bar, ((_, colour), rate)) in (0_u32..).zip(COLOURS.iter().zip(rates)) {
            let (y, width) = (top + bar * BAR, rate / most * f64::from(WIDTH));
            let _ = writeln!(
                svg,
                "<rect x=\"{LABELS}\" y=\"{y}\" width=\"{width:.0}\" height=\"{}\" fill=\"{colour}\"/>\
                 <text x=\"{:.0}\" y=\"{}\">{}</text>",
                BAR - 2,
                f64::from(LABELS) + width + 4.0,
                y + 10,
                row.shown(rate)
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}
