//! The Wireshark dissector, run by tshark, sees what the Rust side sees: every field of every
//! kind, every reason to drop a frame, segments put together, replies matched.
//!
//! `UPDATE_GOLDEN=1 cargo test --test dissector` writes tools/wireshark/rma_tables.lua anew.

mod wire_model;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pcap_file::pcap::{PcapPacket, PcapWriter};
use rma::wire::kind::{Event, Kind, Progress, Role};
use rma::wire::message::*;
use rma::wire::row::{self, BLOCK_SIZES};
use rma::wire::*;
use wire_model::{HOST, Sample, UNIT, directed, ethernet, samples};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

// ---------------------------------------------------------------------------------------------
// The generated tables

/// The text of tools/wireshark/rma_tables.lua.
fn tables() -> String {
    fn quoted(name: &str) -> String {
        format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
    }
    let mut text = String::from(
        "-- Generated from the Rust tables by tests/dissector.rs (UPDATE_GOLDEN=1); do not edit.\nreturn {\n",
    );
    for (name, value) in [
        ("version", u64::from(VERSION)),
        ("header_len", HEADER_LEN as u64),
        ("max_message_bytes", MAX_MESSAGE_BYTES as u64),
        ("max_page_bytes", MAX_PAGE_BYTES as u64),
        ("min_mtu", MIN_MTU.into()),
        ("ethertype_management", ETHERTYPE_MANAGEMENT.into()),
        ("ethertype_service", ETHERTYPE_SERVICE.into()),
        ("max_ranges", MAX_RANGES as u64),
        ("max_members", MAX_MEMBERS as u64),
        ("max_controllers", MAX_CONTROLLERS as u64),
        ("max_devices", MAX_DEVICES as u64),
        ("max_registers", MAX_REGISTERS as u64),
        ("max_page_rows", MAX_PAGE_ROWS as u64),
        ("max_parts", MAX_PARTS as u64),
        ("max_part_level", MAX_PART_LEVEL.into()),
        ("max_changes", MAX_CHANGES as u64),
        ("max_device_extents", MAX_DEVICE_EXTENTS as u64),
        ("max_guests", MAX_GUESTS as u64),
        ("max_macs", row::MAX_MACS as u64),
        ("max_owners", row::MAX_OWNERS as u64),
        ("max_name_bytes", row::MAX_NAME_BYTES as u64),
        ("max_label_bytes", row::MAX_LABEL_BYTES as u64),
        ("min_block_size", (*BLOCK_SIZES.start()).into()),
        ("max_block_size", (*BLOCK_SIZES.end()).into()),
    ] {
        writeln!(text, "  {name} = {value},").expect("a String");
    }
    macro_rules! table {
        ($name:literal, $type:ty) => {
            writeln!(text, "  {} = {{", $name).expect("a String");
            for value in <$type>::ALL {
                writeln!(text, "    [{}] = {},", value.code(), quoted(value.name()))
                    .expect("a String");
            }
            text += "  },\n";
        };
    }
    table!("kind", Kind);
    table!("status", Status);
    table!("drop", DropReason);
    table!("entity", EntityType);
    table!("role", Role);
    table!("progress", Progress);
    table!("event", Event);
    table!("lease_verb", LeaseVerb);
    table!("purpose", Purpose);
    table!("row_state", RowState);
    table!("granularity", Granularity);
    text +=
        "  -- On which EtherType a kind belongs; without a line: on both.\n  kind_service = {\n";
    for kind in Kind::ALL {
        if let Some(service) = kind.is_service() {
            writeln!(text, "    [{}] = {service},", kind.code()).expect("a String");
        }
    }
    text += "  },\n  ownership = {\n";
    let words = [
        Ownership::Unallocated,
        Ownership::Dedicated(Guid(1)),
        Ownership::Shared(vec![Guid(1)]),
    ];
    for ownership in words {
        let code = ownership.to_body()[0];
        writeln!(text, "    [{code}] = {},", quoted(ownership.word())).expect("a String");
    }
    text += "  },\n  flags = {\n";
    for (flag, name) in Flags::NAMES {
        writeln!(text, "    {{ {}, {} }},", flag.bits(), quoted(name)).expect("a String");
    }
    text += "  },\n  features = {\n";
    for (feature, name) in row::features::NAMES {
        writeln!(text, "    {{ {feature}, {} }},", quoted(name)).expect("a String");
    }
    text += "  },\n}\n";
    text
}

#[test]
fn the_generated_tables_are_current() {
    let path = root().join("tools/wireshark/rma_tables.lua");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, tables()).expect("the file is written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, tables(), "run with UPDATE_GOLDEN=1");
}

// ---------------------------------------------------------------------------------------------
// Captures in, PDML out

/// Whether the test goes on: without tshark it says so and passes, unless `RMA_REQUIRE_TOOLS=1`.
fn has_tshark() -> bool {
    let found = Command::new("tshark").arg("--version").output().is_ok();
    if !found {
        let required = std::env::var("RMA_REQUIRE_TOOLS").as_deref() == Ok("1");
        assert!(!required, "tshark is not installed; run tools/setup");
        eprintln!("skipped: tshark is not installed");
    }
    found
}

/// A capture file with a frame every millisecond; it goes with the value.
struct Capture {
    file: tempfile::NamedTempFile,
}

impl Capture {
    fn new(frames: &[Vec<u8>]) -> Self {
        let file = tempfile::Builder::new()
            .suffix(".pcap")
            .tempfile()
            .expect("a temporary file");
        let mut writer = PcapWriter::new(file.reopen().expect("opened again")).expect("a header");
        for (i, frame) in frames.iter().enumerate() {
            let time = Duration::from_millis(1_700_000_000_000 + i as u64);
            let packet = PcapPacket::new(time, frame.len() as u32, frame);
            writer.write_packet(&packet).expect("a packet is written");
        }
        Self { file }
    }

    /// What tshark says, two passes.
    fn tshark(&self, args: &[&str]) -> String {
        let script = root().join("tools/wireshark/rma.lua");
        let home = tempfile::tempdir().expect("a temporary directory");
        let output = Command::new("tshark")
            .args(["-n", "-2", "-X"])
            .arg(format!("lua_script:{}", script.display()))
            .arg("-r")
            .arg(self.file.path())
            .args(args)
            // Nobody's own settings and plugins.
            .env("HOME", home.path())
            .env("XDG_CONFIG_HOME", home.path())
            .output()
            .expect("tshark is installed (tools/setup)");
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaints}");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(!text.contains("Lua Error"), "{text}");
        assert!(!complaints.contains(".lua"), "{complaints}");
        text
    }

    fn packets(&self) -> Vec<Vec<Shown>> {
        let pdml = self.tshark(&["-T", "pdml"]);
        pdml.split("<packet>").skip(1).map(shown).collect()
    }
}

/// A field as PDML has it.
#[derive(Debug, Clone, Default)]
struct Shown {
    name: String,
    show: String,
    showname: String,
    value: String,
    size: usize,
    hidden: bool,
}

/// The value of an attribute of an XML tag.
fn attribute(tag: &str, name: &str) -> String {
    let Some((_, rest)) = tag.split_once(&format!(" {name}=\"")) else {
        return String::new();
    };
    rest.split('"')
        .next()
        .unwrap_or_default()
        .replace("&quot;", "\"")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
}

/// The rma fields of a packet, in order.
fn shown(packet: &str) -> Vec<Shown> {
    packet
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("<field name=\"rma."))
        .map(|tag| Shown {
            name: attribute(tag, "name"),
            show: attribute(tag, "show"),
            showname: attribute(tag, "showname"),
            value: attribute(tag, "value"),
            size: attribute(tag, "size").parse().unwrap_or(0),
            hidden: tag.contains(" hide=\"yes\""),
        })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String");
        text
    })
}

fn get<'a>(fields: &'a [Shown], name: &str) -> Option<&'a str> {
    fields
        .iter()
        .find(|f| f.name == name)
        .map(|f| f.show.as_str())
}

// ---------------------------------------------------------------------------------------------
// Tests

/// Names of the fields that the model has: the others are containers or found out.
fn model_names() -> BTreeSet<&'static str> {
    samples()
        .iter()
        .flat_map(Sample::fields)
        .map(|f| f.name)
        .collect()
}

#[test]
fn every_field_of_every_kind_has_its_value_and_name() {
    if !has_tshark() {
        return;
    }
    let samples = samples();
    let frames: Vec<_> = samples
        .iter()
        .map(|s| directed(&s.header, s.service, &s.frame()))
        .collect();
    let packets = Capture::new(&frames).packets();
    assert_eq!(packets.len(), samples.len());
    let names = model_names();
    for (sample, packet) in samples.iter().zip(&packets) {
        let what = sample.name;
        assert_eq!(get(packet, "rma.malformed"), None, "{what}");
        // The samples whose requests are not among the samples.
        let unmatched = what.ends_with("-refused");
        assert_eq!(get(packet, "rma.unmatched").is_some(), unmatched, "{what}");
        let found: Vec<_> = packet
            .iter()
            .filter(|f| !f.hidden && names.contains(f.name.as_str()))
            .collect();
        let fields = sample.fields();
        for (field, found) in fields.iter().zip(&found) {
            assert_eq!(field.name, found.name, "{what}");
            assert_eq!(hex(&field.bytes), found.value, "{what} {}", field.name);
            let show = match found.show.as_str() {
                "True" => "1",
                "False" => "0",
                other => other,
            };
            assert_eq!(field.show, show, "{what} {}", field.name);
            if let Some(code) = field.code {
                assert!(found.showname.contains(code), "{what} {}", found.showname);
            }
            assert_eq!(field.bytes.len(), found.size, "{what} {}", field.name);
        }
        assert_eq!(fields.len(), found.len(), "{what}");
        for (flag, name) in Flags::NAMES {
            let shown = get(packet, &format!("rma.flags.{name}")).expect("shown");
            let set = ["1", "True"].contains(&shown);
            assert_eq!(set, sample.header.flags.contains(*flag), "{what} {name}");
        }
    }
}

#[test]
fn feature_bits_are_named() {
    if !has_tshark() {
        return;
    }
    let sample = samples()
        .into_iter()
        .find(|s| s.name == "identify-reply")
        .expect("a sample");
    let Body::IdentifyReply(reply) = &sample.body else {
        panic!("an identify reply")
    };
    let capture = Capture::new(&[directed(&sample.header, true, &sample.frame())]);
    let packet = &capture.packets()[0];
    for (feature, name) in row::features::NAMES {
        let field = format!("rma.features.{}", name.replace('-', "_"));
        let set = ["1", "True"].contains(&get(packet, &field).expect("shown"));
        assert_eq!(set, reply.device.features & feature != 0, "{name}");
    }
}

fn find(samples: &[Sample], name: &str) -> usize {
    samples
        .iter()
        .position(|s| s.name == name)
        .expect("a sample")
}

/// A segment of a message as a frame between host and unit.
fn segment(header: &Header, service: bool, body: &[u8], from: usize, to: usize) -> Vec<u8> {
    let header = Header {
        segment_offset: from as u32,
        message_len: body.len() as u32,
        ..*header
    };
    let mut frame = Vec::new();
    header.emit(&body[from..to.min(body.len())], &mut frame);
    directed(&header, service, &frame)
}

/// Request and reply headers of a command.
fn exchange(kind: Kind, connection: u64, command: u64) -> (Header, Header) {
    let request = Header {
        connection: ConnectionId(connection),
        command: CommandId(command),
        ..Header::new(kind)
    };
    let reply = Header {
        flags: Flags::REPLY,
        ..request
    };
    (request, reply)
}

#[test]
fn messages_of_several_segments_are_put_together() {
    if !has_tshark() {
        return;
    }
    let samples = samples();
    let Body::TableRowsReply(page) = &samples[find(&samples, "table-rows-reply")].body else {
        panic!("rows")
    };
    let mut page = page.clone();
    page.rows = (1..=20)
        .map(|i| Row {
            guid: Guid(i),
            name: format!("row {i}"),
            ..page.rows[0].clone()
        })
        .collect();
    let body = page.to_body();
    let (request, reply) = exchange(Kind::TableRows, 5, 6);
    let rows = |from, to| segment(&reply, false, &body, from, to);
    let asked = TableRowsRequest {
        after: Guid::NIL,
        parts: Parts::whole(),
    }
    .to_body();
    let frames = [
        segment(&request, false, &asked, 0, asked.len()),
        // Out of order, one of them twice, and with other borders when it is sent again.
        rows(1412, 2824),
        rows(0, 1412),
        rows(0, 1412),
        rows(2700, 3700),
        rows(3700, body.len()),
        rows(1412, 2824),
    ];
    let packets = Capture::new(&frames).packets();
    assert_eq!(get(&packets[0], "rma.response_in"), Some("6"));
    for (i, packet) in packets.iter().enumerate() {
        assert_eq!(get(packet, "rma.malformed"), None, "{i}");
        let names = packet.iter().filter(|f| f.name == "rma.row.name");
        let names: Vec<_> = names.map(|f| f.show.clone()).collect();
        if i == 5 {
            let expected: Vec<_> = (1..=20).map(|i| format!("row {i}")).collect();
            assert_eq!(names, expected);
            let length = get(packet, "rma.reassembled.length");
            assert_eq!(length, Some(body.len().to_string().as_str()));
        } else {
            assert!(names.is_empty(), "{i}");
        }
        if i > 0 {
            assert_eq!(get(packet, "rma.response_to"), Some("1"), "{i}");
            let in_5 = get(packet, "rma.reassembled_in");
            assert_eq!(in_5, (i != 5).then_some("6"), "{i}");
            let offset = ["0", "1412", "0", "0", "2700", "3700", "1412"][i];
            assert_eq!(get(packet, "rma.segment.offset"), Some(offset));
        }
    }
}

#[test]
fn data_is_shown_segment_by_segment() {
    if !has_tshark() {
        return;
    }
    let (request, reply) = exchange(Kind::Write, 5, 6);
    let mut body = IoRange::of_device(4096, 3000).to_body();
    body.extend((0..3000).map(|i| i as u8));
    let again = Header {
        flags: Flags::RETRY,
        ..request
    };
    let frames = [
        segment(&request, true, &body, 0, 1412),
        segment(&request, true, &body, 1412, 2824),
        segment(&again, true, &body, 1412, 2824),
        segment(&request, true, &body, 2824, body.len()),
        segment(&reply, true, &[], 0, 0),
        segment(&reply, true, &[], 0, 0),
    ];
    let packets = Capture::new(&frames).packets();
    let data: String = [0, 1, 3]
        .iter()
        .map(|i| {
            packets[*i]
                .iter()
                .find(|f| f.name == "rma.data")
                .expect("data")
        })
        .map(|f| f.value.clone())
        .collect();
    assert_eq!(data, hex(&body[IO_RANGE_BYTES..]));
    assert_eq!(get(&packets[0], "rma.io.length"), Some("3000"));
    assert_eq!(get(&packets[1], "rma.io.length"), None);
    for packet in &packets[..4] {
        assert_eq!(get(packet, "rma.response_in"), Some("5"));
        assert_eq!(get(packet, "rma.malformed"), None);
    }
    assert_eq!(get(&packets[2], "rma.retransmission_of"), Some("1"));
    for (packet, ms) in packets[4..].iter().zip([4, 5]) {
        assert_eq!(get(packet, "rma.response_to"), Some("1"));
        let time = get(packet, "rma.time").expect("a time");
        assert!(time.starts_with(&format!("0.00{ms}000")), "{time}");
    }
}

#[test]
fn requests_and_replies_are_matched_across_a_reconnect() {
    if !has_tshark() {
        return;
    }
    let connect = |nonce: u64, connection: u64, attempt: u32| {
        let (request, reply) = exchange(Kind::Connect, 0, nonce);
        let reply = Header {
            connection: ConnectionId(connection),
            ..reply
        };
        let asked = ConnectRequest {
            initiator: Guid(1),
            incarnation: Incarnation(2),
            session: 3,
            attempt,
            role: Role::Host,
            responder: Guid::NIL,
            features: 0,
            mtu: 1500,
            credits: 1,
        };
        let answer = ConnectReply {
            responder: Guid(4),
            incarnation: Incarnation(5),
            features: 0,
            mtu: 1500,
            credits: 1,
            resumed: attempt > 1,
        };
        let (asked, answer) = (asked.to_body(), answer.to_body());
        [
            segment(&request, true, &asked, 0, asked.len()),
            segment(&reply, true, &answer, 0, answer.len()),
        ]
    };
    let (flush, _) = exchange(Kind::Flush, 100, 1);
    let (lost, _) = exchange(Kind::Flush, 200, 2);
    let (_, flushed) = exchange(Kind::Flush, 200, 1);
    let (_, never_asked) = exchange(Kind::Flush, 200, 3);
    let (stranger, _) = exchange(Kind::Flush, 999, 1);
    let refused = Header {
        status: Status::UnknownConnection,
        flags: Flags::REPLY,
        kind: Kind::Refused,
        ..stranger
    };
    let empty = |header: &Header| segment(header, true, &[], 0, 0);
    let asked = |header: &Header| segment(header, true, &[0; 32], 0, 32);
    let frames = [
        &connect(77, 100, 1)[..],
        &[asked(&flush)],
        &connect(78, 200, 2),
        &[empty(&flushed), asked(&lost), empty(&never_asked)],
        &[asked(&stranger), empty(&refused)],
    ]
    .concat();
    let capture = Capture::new(&frames);
    let packets = capture.packets();
    let to: Vec<_> = packets.iter().map(|p| get(p, "rma.response_to")).collect();
    let none = None;
    assert_eq!(
        to,
        [
            none,
            Some("1"),
            none,
            none,
            Some("4"),
            Some("3"),
            none,
            none,
            none,
            Some("9")
        ]
    );
    for (i, packet) in packets.iter().enumerate() {
        assert_eq!(get(packet, "rma.unanswered").is_some(), i == 6, "{i}");
        assert_eq!(get(packet, "rma.unmatched").is_some(), i == 7, "{i}");
    }
    assert_eq!(get(&packets[8], "rma.response_in"), Some("10"));
    let found = capture.tshark(&["-Y", "rma.unanswered", "-T", "fields", "-e", "frame.number"]);
    assert_eq!(found, "7\n");
    let any_guid = "rma.guid == 00000000-0000-0000-0000-000000000001";
    let found = capture.tshark(&["-Y", any_guid, "-T", "fields", "-e", "frame.number"]);
    assert_eq!(found, "1\n4\n");
}

#[test]
fn frames_without_an_identity_of_their_own_are_told_apart() {
    if !has_tshark() {
        return;
    }
    let (ask, answer) = exchange(Kind::KeepAlive, 9, 0);
    let (probe, _) = exchange(Kind::Probe, 9, 4);
    let progress = Header {
        kind: Kind::Progress,
        ..probe
    };
    let report = ProgressReport {
        progress: Progress::Executing,
        missing: Missing::default(),
    };
    let discover = Discover {
        asker: Guid(1),
        role: Role::Host,
    };
    let here = Here {
        fabric: Guid(2),
        incarnation: Incarnation(3),
    };
    let whole = |header: &Header, body: &[u8]| segment(header, false, body, 0, body.len());
    let none = Missing::default().to_body();
    let frames = [
        whole(&ask, &[]),
        whole(&answer, &[]),
        whole(&ask, &[]),
        whole(&ask, &[]),
        whole(&answer, &[]),
        whole(&probe, &none),
        whole(&probe, &none),
        whole(&progress, &report.to_body()),
        whole(&Header::new(Kind::Discover), &discover.to_body()),
        whole(&Header::new(Kind::Discover), &discover.to_body()),
        whole(&Header::new(Kind::Here), &here.to_body()),
        whole(&exchange(Kind::Disconnect, 9, 0).0, &[]),
    ];
    let packets = Capture::new(&frames).packets();
    let all = |name: &str| -> Vec<Option<String>> {
        let values = packets.iter().map(|p| get(p, name).map(ToOwned::to_owned));
        values.collect()
    };
    let expected = |places: &[(usize, &str)]| {
        let mut values = vec![None; packets.len()];
        for (at, value) in places {
            values[at - 1] = Some((*value).to_owned());
        }
        values
    };
    let to = [(2, "1"), (5, "3"), (8, "7"), (11, "10")];
    assert_eq!(all("rma.response_to"), expected(&to));
    assert_eq!(all("rma.retransmission_of"), expected(&[(4, "3")]));
    assert_eq!(all("rma.unanswered"), expected(&[]));
    assert_eq!(all("rma.unmatched"), expected(&[]));
}

#[test]
fn vlan_tags_and_padding_do_not_matter() {
    if !has_tshark() {
        return;
    }
    let samples = samples();
    let sample = &samples[find(&samples, "flush-request")];
    let plain = directed(&sample.header, true, &sample.frame());
    let tagged = [&plain[..12], &[0x81, 0, 0, 7], &plain[12..]].concat();
    let padded = [&plain[..], &[0xa5; 9]].concat();
    for (packet, padding) in Capture::new(&[tagged, padded]).packets().iter().zip([0, 9]) {
        assert_eq!(get(packet, "rma.malformed"), None);
        assert_eq!(get(packet, "rma.kind"), Some("0x44"));
        let found = packet.iter().find(|f| f.name == "rma.padding");
        assert_eq!(found.map_or(0, |f| f.size), padding);
    }
}

/// Why the Rust side drops packets of a frame, by the names of the table.
fn verdicts(frame: &[u8], service: bool) -> Vec<&'static str> {
    let packets = Header::packets(frame, service);
    let reasons = packets.filter_map(|packet| match packet {
        Err(reason) => Some(reason.name()),
        Ok(packet) => has_bad_body(&packet.header, packet.payload).then_some("bad body"),
    });
    reasons.collect()
}

fn has_bad_body(header: &Header, payload: &[u8]) -> bool {
    let is_whole = payload.len() == header.message_len as usize;
    // The first segment of a write tells already that the rest will not be what it says.
    let is_write = header.kind == Kind::Write && !header.is_reply();
    match payload.get(..IO_RANGE_BYTES) {
        _ if is_whole => Body::parse(header, payload).is_err(),
        Some(range) if is_write && header.segment_offset == 0 => {
            let range = IoRange::from_body(range).expect("any range");
            range.len != u64::from(header.message_len) - IO_RANGE_BYTES as u64
        }
        _ => false,
    }
}

#[test]
fn packets_that_share_a_frame_are_shown_one_by_one() {
    if !has_tshark() {
        return;
    }
    let headers = [1, 2].map(|command| exchange(Kind::KeepAlive, 7, command));
    let whole = |header: &Header| {
        let mut bytes = Vec::new();
        header.emit_whole(&[], &mut bytes);
        bytes
    };
    let asked = headers.map(|(request, _)| whole(&request)).concat();
    let answered = headers.map(|(_, reply)| whole(&reply)).concat();
    let mut damaged = [&answered[..], &whole(&headers[0].0)].concat();
    damaged[HEADER_LEN + 47] ^= 1;
    let frames = [
        directed(&headers[0].0, true, &asked),
        directed(&headers[0].1, true, &[&answered[..], &[0; 100]].concat()),
        directed(&headers[0].1, true, &damaged),
    ];
    let packets = Capture::new(&frames).packets();
    let values = |at: usize, name: &str| -> Vec<&str> {
        let found = packets[at].iter().filter(|f| f.name == name);
        found.map(|f| f.show.as_str()).collect()
    };
    assert_eq!(values(0, "rma.command"), ["1", "2"]);
    assert_eq!(values(0, "rma.response_in"), ["2", "2"]);
    assert_eq!(values(1, "rma.response_to"), ["1", "1"]);
    assert_eq!(values(1, "rma.padding").len(), 1);
    assert!(values(1, "rma.malformed").is_empty());
    assert_eq!(
        values(2, "rma.command"),
        ["1", "3"],
        "what is behind it is not read"
    );
    assert_eq!(values(2, "rma.malformed"), ["checksum"]);
    assert_eq!(verdicts(&damaged, true), ["checksum"]);
    let info = Capture::new(&frames).tshark(&["-T", "fields", "-e", "_ws.col.Info"]);
    assert_eq!(info.lines().next(), Some("keep-alive #1 | keep-alive #2"));
}

#[test]
fn frames_are_malformed_for_the_same_reason_as_in_rust() {
    if !has_tshark() {
        return;
    }
    let samples = samples();
    let mut rng = fastrand::Rng::with_seed(7);
    let mut frames = Vec::new();
    for round in 0..40 {
        for sample in &samples {
            let mut frame = sample.frame();
            for _ in 0..rng.usize(1..3) {
                let at = match rng.u8(..3) {
                    0 => rng.usize(..HEADER_LEN.min(frame.len())),
                    _ => rng.usize(..frame.len()),
                };
                match rng.u8(..6) {
                    0 => frame.truncate(at),
                    1 => frame[at] = [0, 1, 2, 0x7f, 0xff][rng.usize(..5)],
                    2 => frame[at] ^= 1 << rng.u8(..8),
                    3 => drop(frame.remove(at)),
                    4 => frame.insert(at, rng.u8(..)),
                    // Copies something from elsewhere: repeated identities and numbers.
                    _ => {
                        let n = rng.usize(1..=16).min(frame.len() - at);
                        let from = rng.usize(..=frame.len() - n);
                        frame.copy_within(from..from + n, at);
                    }
                }
                if frame.is_empty() {
                    frame.push(0);
                }
            }
            if round % 8 != 0 && frame.len() > HEADER_LEN {
                // A hostile sender gets length and checksum right.
                let len = (frame.len() - HEADER_LEN) as u32;
                frame[4..6].copy_from_slice(&(len as u16).to_be_bytes());
                if round % 8 != 1 {
                    frame[24..28].copy_from_slice(&len.to_be_bytes());
                }
                frame[16..20].fill(0);
                let sum = crc32fast::hash(&frame);
                frame[16..20].copy_from_slice(&sum.to_be_bytes());
            }
            frames.push((frame, sample.service));
        }
    }
    let capture: Vec<_> = frames
        .iter()
        .map(|(frame, service)| ethernet(UNIT, HOST, *service, frame))
        .collect();
    // The experts' messages would tell of a mistake of the script.
    let args = [
        "-T",
        "fields",
        "-e",
        "rma.malformed",
        "-e",
        "_ws.expert.message",
    ];
    let reasons = Capture::new(&capture).tshark(&args);
    assert_eq!(reasons.lines().count(), frames.len());
    let mut seen = BTreeSet::new();
    for (i, ((frame, service), found)) in frames.iter().zip(reasons.lines()).enumerate() {
        let (found, _) = found.split_once('\t').expect("two fields");
        let expected = verdicts(frame, *service);
        assert_eq!(found, expected.join(","), "frame {}: {}", i + 1, hex(frame));
        seen.extend(expected);
    }
    for reason in [
        DropReason::Truncated,
        DropReason::Version,
        DropReason::UnknownKind,
        DropReason::Reserved,
        DropReason::Checksum,
        DropReason::Lengths,
        DropReason::Body,
    ] {
        assert!(seen.contains(reason.name()), "{reason} never happened");
    }
}

#[test]
fn the_check_says_what_is_wrong_with_a_capture() {
    if !has_tshark() {
        return;
    }
    let check = |frames: &[Vec<u8>]| {
        let capture = Capture::new(frames);
        let output = Command::new(root().join("tools/wireshark/check"))
            .arg(capture.file.path())
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code().expect("it ends"), text)
    };
    let (request, reply) = exchange(Kind::KeepAlive, 1, 2);
    let request = segment(&request, false, &[], 0, 0);
    let reply = segment(&reply, false, &[], 0, 0);
    let (code, text) = check(&[request.clone(), reply.clone()]);
    assert_eq!(code, 0, "{text}");
    let good =
        "2 frames, 2 of them ours: 0 malformed, 0 unnamed kinds, 1 replies matched, 0 unmatched";
    assert!(text.contains(good), "{text}");
    let (code, text) = check(&[reply]);
    assert_eq!(code, 1);
    assert!(text.contains("1 unmatched"), "{text}");
    let mut corrupted = request.clone();
    corrupted[60] ^= 1;
    let (code, text) = check(&[corrupted]);
    assert_eq!(code, 1);
    assert!(text.contains("malformed: checksum"), "{text}");
    let mut unnamed = request[14..].to_vec();
    unnamed[1] = 0x7f;
    unnamed[16..20].fill(0);
    let sum = crc32fast::hash(&unnamed);
    unnamed[16..20].copy_from_slice(&sum.to_be_bytes());
    let (code, text) = check(&[ethernet(UNIT, HOST, false, &unnamed)]);
    assert_eq!(code, 1);
    assert!(text.contains("1 unnamed kinds"), "{text}");
}

/// The counts of a line that ends `…: 0 malformed, …`, in order, without the file's name.
fn counts(line: &str) -> Vec<u64> {
    line.split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse().ok())
        .collect()
}

#[test]
fn the_check_and_rma_capture_count_the_same() {
    if !has_tshark() {
        return;
    }
    let mut rng = fastrand::Rng::with_seed(5);
    let mut frames = Vec::new();
    let mut samples = samples();
    // Its other answer to the same command would contradict it.
    samples.retain(|s| !s.name.ends_with("-refused"));
    for _ in 0..400 {
        let sample = &samples[rng.usize(..samples.len())];
        // Some again, some in halves, some damaged, of few commands.
        let header = Header {
            command: CommandId(rng.u64(..4)),
            ..sample.header
        };
        let body = sample.body.encode();
        let middle = body.len() / 2;
        let parts = match rng.u8(..3) {
            0 if middle > 0 => vec![(0, middle), (middle, body.len())],
            1 if middle > 0 => vec![(middle, body.len())],
            _ => vec![(0, body.len())],
        };
        for (from, to) in parts {
            let mut frame = segment(&header, sample.service, &body, from, to);
            if rng.u8(..20) == 0 {
                let at = rng.usize(14..frame.len());
                frame[at] ^= 1;
            }
            frames.push(frame);
        }
    }
    let capture = Capture::new(&frames);
    let summary = rma::admin::capture::run(capture.file.path(), false, &mut Vec::new());
    let s = summary.expect("decoded");
    let output = Command::new(root().join("tools/wireshark/check"))
        .arg(capture.file.path())
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().expect("a line");
    let (_, line) = line.rsplit_once(".pcap: ").expect("the file first");
    let unnamed = s.malformed.get("unknown kind").copied().unwrap_or(0);
    let expected = [
        s.frames,
        s.ours,
        s.malformed_count() - unnamed,
        unnamed,
        s.replies_matched,
        s.replies_unmatched,
        s.requests_unanswered,
        s.repeated,
    ];
    assert_eq!(counts(line), expected, "{text}");
}
