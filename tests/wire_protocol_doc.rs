//! docs/protocol.md says what the code does: its code tables, limits and layouts are compared with
//! the Rust tables and with every sample.

mod wire_model;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rma::wire::kind::{Event, Kind, Progress, Role};
use rma::wire::message::*;
use rma::wire::row::{self, BLOCK_SIZES};
use rma::wire::*;
use wire_model::{Field, Sample, samples};

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/protocol.md");
    std::fs::read_to_string(path).expect("docs/protocol.md")
}

/// Rows of the tables of a document by the heading above them; cells are trimmed.
fn tables() -> BTreeMap<String, Vec<Vec<String>>> {
    let text = document();
    // Behind the layouts come the rules, with tables and headings of their own.
    let (text, _) = text.split_once("\n## Sessions").expect("sessions");
    let mut tables: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
    let mut heading = String::new();
    let mut is_body = false;
    for line in text.lines() {
        if let Some(title) = line.strip_prefix('#') {
            heading = title.trim_start_matches('#').trim().to_lowercase();
        }
        if !line.starts_with('|') {
            is_body = false;
        } else if line.starts_with("|---") {
            is_body = true;
        } else if is_body {
            let cells = line.trim_matches('|').split('|');
            let row = cells.map(|cell| cell.trim().to_owned()).collect();
            tables.entry(heading.clone()).or_default().push(row);
        }
    }
    tables
}

fn number(text: &str) -> u64 {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.replace(',', "").parse(),
    }
    .unwrap_or_else(|_| panic!("'{text}' is a number"))
}

#[test]
fn code_tables_are_those_of_the_code() {
    let tables = tables();
    let documented = |heading: &str| -> Vec<(u64, String)> {
        let rows = tables.get(heading).unwrap_or_else(|| panic!("{heading}"));
        rows.iter().map(|r| (number(&r[0]), r[1].clone())).collect()
    };
    macro_rules! check {
        ($heading:literal, $type:ty) => {
            let all = <$type>::ALL.iter();
            let expected: Vec<_> = all
                .map(|c| (u64::from(c.code()), c.name().to_owned()))
                .collect();
            assert_eq!(documented($heading), expected, $heading);
        };
    }
    check!("kinds", Kind);
    check!("statuses", Status);
    check!("drop reasons", DropReason);
    check!("entity types", EntityType);
    check!("row states", RowState);
    check!("granularities", Granularity);
    check!("roles", Role);
    check!("progress states", Progress);
    check!("lease verbs", LeaseVerb);
    check!("purposes", Purpose);
    check!("events", Event);
    let flags = Flags::NAMES.iter();
    let flags: Vec<_> = flags
        .map(|(f, n)| (f.bits().into(), (*n).to_owned()))
        .collect();
    assert_eq!(documented("flags"), flags);
    let features = row::features::NAMES.iter();
    let features: Vec<_> = features.map(|(f, n)| (*f, (*n).to_owned())).collect();
    assert_eq!(documented("features"), features);
    let words = [
        Ownership::Unallocated,
        Ownership::Dedicated(Guid(1)),
        Ownership::Shared(vec![Guid(1)]),
    ];
    let words: Vec<_> = words
        .iter()
        .map(|w| (u64::from(w.to_body()[0]), w.word().to_owned()))
        .collect();
    assert_eq!(documented("ownership words"), words);
    for (row, kind) in tables["kinds"].iter().zip(Kind::ALL) {
        let place = match kind.is_service() {
            None => "both",
            Some(false) => "management",
            Some(true) => "service",
        };
        assert_eq!(row[2], place, "{kind}");
    }
    let frames = &tables["frames"];
    assert_eq!(
        number(&frames[0][0].to_lowercase()),
        u64::from(ETHERTYPE_MANAGEMENT)
    );
    assert_eq!(
        number(&frames[1][0].to_lowercase()),
        u64::from(ETHERTYPE_SERVICE)
    );
}

#[test]
fn limits_are_those_of_the_code() {
    let found: Vec<u64> = tables()["limits"].iter().map(|r| number(&r[1])).collect();
    let expected = [
        MAX_MESSAGE_BYTES,
        MAX_PAGE_BYTES,
        MIN_MTU.into(),
        MAX_RANGES,
        MAX_MEMBERS,
        MAX_CONTROLLERS,
        MAX_DEVICES,
        MAX_REGISTERS,
        MAX_PAGE_ROWS,
        MAX_PARTS,
        MAX_CHANGES,
        MAX_DEVICE_EXTENTS,
        MAX_GUESTS,
        row::MAX_MACS,
        row::MAX_OWNERS,
        row::MAX_NAME_BYTES,
        row::MAX_LABEL_BYTES,
        row::MAX_ROW_BYTES,
    ]
    .map(|limit| limit as u64);
    assert_eq!(found, expected);
    assert_eq!(BLOCK_SIZES, 512..=65_536, "as the device record says");
    assert_eq!(FABRIC_MULTICAST.to_string(), "03:72:6d:61:00:01");
}

/// Walks through a sample's fields by the document's tables.
struct Walk<'a> {
    tables: &'a BTreeMap<String, Vec<Vec<String>>>,
    fields: std::iter::Peekable<std::vec::IntoIter<Field>>,
    /// Bytes behind the start of the message.
    at: usize,
    count: u64,
    what: &'a str,
}

impl Walk<'_> {
    fn field(&mut self, name: &str) -> Field {
        let field = self.fields.next();
        let field = field.unwrap_or_else(|| panic!("{}: no {name}", self.what));
        assert_eq!(field.name, format!("rma.{name}"), "{}", self.what);
        self.at += field.bytes.len();
        if name.split('.').next_back() == Some("count") {
            self.count = field.show.parse().expect("a count");
        }
        field
    }

    /// A message or structure: every row of its table.
    fn structure(&mut self, heading: &str) {
        let start = self.at;
        let rows = self.tables.get(heading);
        let rows = rows.unwrap_or_else(|| panic!("no table under '{heading}'"));
        for row in rows {
            let [offset, bytes, field, ..] = &row[..] else {
                panic!("{heading}: {row:?}")
            };
            let what = format!("{}: {heading}: {field}", self.what);
            if offset != "…" {
                assert_eq!(number(offset) as usize, self.at - start, "{what}");
            }
            let before = self.at;
            if let Some(inner) = bytes.strip_prefix("n × *") {
                for _ in 0..self.count {
                    self.structure(inner.trim_end_matches('*'));
                }
            } else if let Some(inner) = field.strip_prefix('*') {
                self.structure(inner.trim_end_matches('*'));
                if bytes != "…" {
                    assert_eq!(number(bytes) as usize, self.at - before, "{what}");
                }
            } else {
                let name = field.trim_matches('`');
                if let Some(each) = bytes.strip_prefix("n × ") {
                    for _ in 0..self.count {
                        let field = self.field(name);
                        assert_eq!(field.bytes.len() as u64, number(each), "{what}");
                    }
                } else {
                    let field = self.field(name);
                    match bytes.as_str() {
                        "n" => {}
                        "1 + n" => {
                            let len = usize::from(field.bytes[0]);
                            assert_eq!(len + 1, field.bytes.len(), "{what}");
                        }
                        size => assert_eq!(number(size), field.bytes.len() as u64, "{what}"),
                    }
                }
            }
        }
    }
}

/// What the kinds' table says about a sample's body: the heading of its table.
fn heading(tables: &BTreeMap<String, Vec<Vec<String>>>, sample: &Sample) -> Option<String> {
    let kinds = tables["kinds"].iter();
    let row = kinds
        .into_iter()
        .find(|row| row[1] == sample.header.kind.name())
        .expect("the kind is documented");
    let (request, reply) = row[3].split_once('→').unwrap_or((&row[3], ""));
    let mut text = if sample.header.is_reply() {
        reply
    } else {
        request
    };
    if matches!(sample.body, Body::Conflict(_)) {
        text = text.split_once("or ").expect("an alternative").1;
    }
    if matches!(sample.body, Body::Empty) && text.trim_start().starts_with("empty") {
        return None;
    }
    let (title, _) = text.split_once('[')?.1.split_once(']')?;
    Some(title.to_owned())
}

#[test]
fn layouts_are_those_of_the_samples() {
    let tables = tables();
    for sample in samples() {
        let mut walk = Walk {
            tables: &tables,
            fields: sample.fields().into_iter().peekable(),
            at: 0,
            count: 0,
            what: sample.name,
        };
        walk.structure("header");
        walk.at = 0;
        match heading(&tables, &sample) {
            Some(title) => walk.structure(&title),
            // The data of a read has no table.
            None if sample.name == "read-reply" => drop(walk.field("data")),
            None => {}
        }
        assert!(walk.fields.next().is_none(), "{}", sample.name);
    }
}

/// `256 KiB`, `1 s`, `24 h`, `4,096`: a number of bytes, of milliseconds, or alone.
fn quantity(text: &str) -> u64 {
    let (amount, unit) = text.split_once(' ').unwrap_or((text, ""));
    let factor = match unit {
        "" | "ms" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "s" => 1000,
        "h" => 3_600_000,
        other => panic!("'{other}' is a unit"),
    };
    number(amount) * factor
}

#[test]
fn session_constants_are_those_of_the_code() {
    let text = document();
    let (_, text) = text.split_once("\n## Sessions").expect("sessions");
    let (text, _) = text.split_once("\n## Fabric").expect("fabric services");
    // Cells of constants, each with the cell behind it.
    let mut found = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        for pair in cells.windows(2) {
            let names = pair[0].split(", ").map(|name| name.trim_matches('`'));
            for (name, value) in names.zip(pair[1].split("; ")) {
                let value = value.split(" (").next().expect("a value");
                if name.chars().all(|c| c == '_' || c.is_ascii_uppercase()) && !name.is_empty() {
                    found.insert(name.to_owned(), quantity(value));
                }
            }
        }
    }
    macro_rules! check {
        ($($name:ident),+ $(,)?) => { $(
            let value = u64::try_from(rma::session::limits::$name.milliseconds()).expect("fits");
            let documented = found.remove(stringify!($name));
            assert_eq!(documented, Some(value), stringify!($name));
        )+ };
    }
    check!(
        MAX_CREDITS,
        MAX_COMMANDS,
        MAX_QUEUED_BYTES,
        MAX_REPLY_BYTES,
        MAX_SESSION_BYTES,
        MAX_SERVER_BYTES,
        MAX_EXECUTING,
        MAX_SPANS,
        MAX_CONTROL_FRAMES,
        MAX_NOTIFICATIONS,
        MAX_EVENTS,
        RTO_INITIAL,
        RTO_MIN,
        RTO_FIRST_MAX,
        RTO_DOUBT_MAX,
        RTO_MAX,
        EXECUTING_PROBE_MAX,
        REORDER_DELAY,
        REPEAT_INTERVAL,
        CONNECT_INTERVAL,
        RECONNECT_INTERVAL,
        KEEPALIVE_INTERVAL,
        KEEPALIVE_QUIET,
        KEEPALIVE_STEP,
        KEEPALIVE_MISSED,
        KEEPALIVE_MISSED_MAX,
        LOST_AFTER,
        HALF_OPEN_TTL,
        CONNECTION_TTL,
        SESSION_TTL,
        STALLED_AFTER,
        NOTIFY_INTERVAL,
        NOTIFY_TRIES,
        RELIEF_INTERVAL,
        MAX_PATHS,
        PATH_MTU_START,
        PATH_TRIES,
        PATH_INTERVAL,
        PATH_AGAIN,
        PATH_AGAIN_FIRST,
        PATH_STRIKES,
        WINDOW_START,
        WINDOW_MIN,
        WINDOW_MAX,
        SHARED_BYTES_MAX,
        SHARED_BYTES_LEAST,
    );
    assert!(found.is_empty(), "no such constants: {found:?}");
}

/// Numbers as they are, durations in milliseconds.
trait Milliseconds {
    fn milliseconds(self) -> u128;
}

impl Milliseconds for Duration {
    fn milliseconds(self) -> u128 {
        self.as_millis()
    }
}

macro_rules! plain {
    ($($t:ty),+) => { $(
        impl Milliseconds for $t {
            fn milliseconds(self) -> u128 {
                self as u128
            }
        }
    )+ };
}
plain!(u8, u16, u32, usize);
