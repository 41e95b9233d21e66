//! Golden bytes: what each frame looks like on the wire, kept as files.
//!
//! `UPDATE_GOLDEN=1 cargo test --test wire_golden` writes the files anew. A file whose bytes
//! differ from the manifest's hash fails even then, unless `VERSION` is another than the
//! manifest's: released bytes do not change within a protocol version.

mod wire_model;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use rma::wire::kind::Kind;
use rma::wire::{Body, Header, VERSION};
use wire_model::{Sample, samples};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/wire")
}

fn updating() -> bool {
    std::env::var_os("UPDATE_GOLDEN").is_some()
}

/// The file's text: a line per field, bytes first.
fn render(sample: &Sample) -> String {
    let ethertype = if sample.service {
        "service"
    } else {
        "management"
    };
    let mut text = format!("# {} ({ethertype} EtherType)\n\n# header\n", sample.name);
    let mut at = 0;
    for field in sample.fields() {
        if at == 88 {
            text += "\n# body\n";
        }
        let name = field.name.trim_start_matches("rma.");
        let code = field.code.map(|c| format!(" ({c})")).unwrap_or_default();
        let hex = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(String::new(), |s, b| s + &format!("{b:02x}"))
        };
        // Long fields have a line for each 16 bytes; the first one is commented.
        let mut lines = field.bytes.chunks(16);
        let first = hex(lines.next().unwrap_or_default());
        writeln!(text, "{first:32}  # {at:4}  {name} = {}{code}", field.show).expect("a String");
        for line in lines {
            text += &hex(line);
            text.push('\n');
        }
        at += field.bytes.len();
    }
    text
}

/// The bytes of a file's text.
fn parse(text: &str) -> Vec<u8> {
    let digits: String = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .collect();
    assert!(digits.len().is_multiple_of(2), "an odd number of digits");
    (0..digits.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).expect("hexadecimal digits"))
        .collect()
}

/// Writes all files anew, once in this process.
static UPDATE: LazyLock<()> = LazyLock::new(|| {
    if updating() {
        for sample in samples() {
            let path = directory().join(format!("{}.hex", sample.name));
            std::fs::write(path, render(&sample)).expect("the file is written");
        }
    }
});

/// Reads a golden file.
fn golden(sample: &Sample) -> Vec<u8> {
    LazyLock::force(&UPDATE);
    let path = directory().join(format!("{}.hex", sample.name));
    let text = render(sample);
    let found = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; run with UPDATE_GOLDEN=1", path.display()));
    assert_eq!(found, text, "{}", path.display());
    parse(&found)
}

#[test]
fn frames_are_emitted_as_the_golden_bytes() {
    for sample in samples() {
        let golden = golden(&sample);
        // Whatever the buffer held before, every byte of the frame is written.
        let mut out = vec![0xa5; 3 + golden.len() + 64];
        out.truncate(3);
        sample.header.emit(&sample.body.encode(), &mut out);
        assert_eq!(out[..3], [0xa5; 3], "{}", sample.name);
        assert_eq!(out[3..], golden, "{}", sample.name);
    }
}

#[test]
fn golden_bytes_are_parsed_as_the_values_they_were_made_from() {
    for sample in samples() {
        let golden = golden(&sample);
        let (header, payload) = Header::parse(&golden, sample.service).expect(sample.name);
        assert_eq!(header, sample.header, "{}", sample.name);
        assert_eq!(
            Body::parse(&header, payload).expect(sample.name),
            sample.body,
            "{}",
            sample.name
        );
    }
}

#[test]
fn every_kind_has_a_golden_frame_in_each_direction() {
    let samples = samples();
    for kind in Kind::ALL {
        let has = |reply| {
            samples
                .iter()
                .any(|s| s.header.kind == *kind && s.header.is_reply() == reply)
        };
        assert!(has(false) || has(true), "{kind}");
        if kind.is_request() {
            assert!(has(false) && has(true), "{kind}");
        }
    }
}

#[test]
fn no_two_fields_of_a_header_have_the_same_value() {
    // Otherwise a swap of the two would go unseen. Zeroes and the one-byte version are let off.
    for sample in samples().iter().filter(|s| s.header.command.0 != 0) {
        let mut seen = BTreeMap::new();
        for field in sample.fields().iter().take(18) {
            if field.bytes.iter().any(|b| *b != 0) && field.bytes.len() > 1 {
                let before = seen.insert(field.bytes.clone(), field.name);
                let lengths = field.name == "rma.message_length";
                assert!(
                    before.is_none() || lengths,
                    "{}: {}",
                    sample.name,
                    field.name
                );
            }
        }
    }
}

#[test]
fn golden_bytes_change_only_with_the_version() {
    let path = directory().join("manifest");
    let mut now = BTreeMap::new();
    for sample in samples() {
        let hash = xxhash_rust::xxh3::xxh3_64(&golden(&sample));
        now.insert(sample.name.to_string(), format!("{hash:016x}"));
    }
    let mut text = format!(
        "# Protocol version and hash (XXH3-64) of each golden frame; see tests/wire_golden.rs.\nversion {VERSION}\n"
    );
    for (name, hash) in &now {
        writeln!(text, "{hash} {name}").expect("a String");
    }
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    let mut version = None;
    let mut before = BTreeMap::new();
    for line in old.lines().filter(|l| !l.starts_with('#')) {
        let (first, second) = line.split_once(' ').expect("two words");
        if first == "version" {
            version = second.parse().ok();
        } else {
            before.insert(second.to_string(), first.to_string());
        }
    }
    if version == Some(VERSION) {
        for (name, hash) in &before {
            assert_eq!(
                now.get(name),
                Some(hash),
                "the bytes of {name} changed: VERSION must change with them"
            );
        }
    }
    if updating() {
        std::fs::write(&path, &text).expect("the manifest is written");
    } else {
        assert_eq!(old, text, "run with UPDATE_GOLDEN=1");
    }
}

#[test]
fn no_golden_file_is_left_over() {
    let names: Vec<_> = samples()
        .iter()
        .map(|s| format!("{}.hex", s.name))
        .collect();
    for entry in std::fs::read_dir(directory()).expect("the directory") {
        let name = entry
            .expect("an entry")
            .file_name()
            .into_string()
            .expect("text");
        assert!(name == "manifest" || names.contains(&name), "{name}");
    }
}
