//! `rma capture`: what it prints of a known capture, of damaged ones, and of either file format.

mod wire_model;

use std::path::Path;
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::{DataLink, TsResolution};
use rma::admin::capture::{CaptureError, Summary, run};
use rma::wire::message::IoRange;
use rma::wire::{CommandId, ConnectionId, Flags, Header, Kind, Status, Wire};
use wire_model::{HOST, UNIT, directed, ethernet, samples};

/// The samples as frames of a capture, and one of another protocol.
fn frames() -> Vec<Vec<u8>> {
    let mut frames: Vec<_> = samples()
        .iter()
        .map(|s| directed(&s.header, s.service, &s.frame()))
        .collect();
    frames.push([&UNIT.0[..], &HOST.0, &[0x08, 0x06], &[0; 28]].concat());
    frames
}

fn pcap(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut writer = PcapWriter::new(Vec::new()).expect("a header");
    for (i, frame) in frames.iter().enumerate() {
        let time = Duration::from_millis(1_700_000_000_000 + i as u64);
        let packet = PcapPacket::new(time, frame.len() as u32, frame);
        writer.write_packet(&packet).expect("written");
    }
    writer.into_writer()
}

/// As dumpcap writes it: microseconds unless the interface says otherwise.
fn pcapng(frames: &[Vec<u8>], exponent: Option<u8>) -> Vec<u8> {
    let mut writer = PcapNgWriter::new(Vec::new()).expect("a header");
    let interface = InterfaceDescriptionBlock {
        linktype: DataLink::ETHERNET,
        snaplen: 0,
        options: exponent
            .map(InterfaceDescriptionOption::IfTsResol)
            .into_iter()
            .collect(),
    };
    writer.write_pcapng_block(interface).expect("written");
    let per_second = match exponent {
        None => 1_000_000,
        Some(e) if e & 0x80 != 0 => 1 << (e & 0x7f),
        Some(e) => 10_u64.pow(e.into()),
    };
    for (i, frame) in frames.iter().enumerate() {
        let ms = 1_700_000_000_000 + i as u64;
        let packet = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::from_nanos(
                (u128::from(ms) * per_second as u128).div_ceil(1000) as u64
            ),
            original_len: frame.len() as u32,
            data: frame.into(),
            options: vec![],
        };
        writer.write_pcapng_block(packet).expect("written");
    }
    writer.into_inner()
}

fn decode(file: &[u8], json: bool) -> Result<(Summary, String), CaptureError> {
    let path = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(path.path(), file).expect("written");
    let mut out = Vec::new();
    let summary = run(path.path(), json, &mut out)?;
    Ok((summary, String::from_utf8(out).expect("UTF-8")))
}

#[test]
fn a_known_capture_is_printed_as_the_golden_text() {
    let (summary, text) = decode(&pcap(&frames()), false).expect("decoded");
    assert_eq!(summary.frames, summary.ours + 1);
    assert_eq!(summary.malformed_count(), 0);
    // The refused compare-and-set and the refused move are samples without their requests.
    assert_eq!(summary.replies_unmatched, 2);
    assert_eq!(summary.requests_unanswered, 0);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/capture.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).expect("written");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "run with UPDATE_GOLDEN=1");
}

#[test]
fn every_file_format_gives_the_same_text() {
    let (_, expected) = decode(&pcap(&frames()), false).expect("decoded");
    for exponent in [None, Some(3), Some(9)] {
        let (_, text) = decode(&pcapng(&frames(), exponent), false).expect("decoded");
        assert_eq!(text, expected, "{exponent:?}");
    }
    let (summary, _) = decode(&pcapng(&frames(), Some(0x80 | 0x14)), false).expect("decoded");
    assert_eq!(summary.ours + 1, frames().len() as u64);
}

#[test]
fn json_has_a_line_per_frame_and_a_summary() {
    let (summary, text) = decode(&pcap(&frames()), true).expect("decoded");
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len() as u64, summary.ours + 1);
    for (line, sample) in lines.iter().zip(samples()) {
        assert_eq!(line["schema"], 1);
        assert_eq!(line["type"], "frame");
        assert_eq!(line["kind"], sample.header.kind.name());
        assert_eq!(line["command"], sample.header.command.to_string());
        let body = line["body"].as_str().unwrap_or_default();
        assert_eq!(body, sample.body.to_string());
    }
    let last = lines.last().expect("a summary");
    assert_eq!(last["type"], "summary");
    assert_eq!(last["replies_unmatched"], 2);
}

#[test]
fn segments_are_put_together_and_damage_is_counted() {
    let request = Header {
        connection: ConnectionId(1),
        command: CommandId(2),
        ..Header::new(Kind::Offer)
    };
    let sample = samples()
        .into_iter()
        .find(|s| s.name == "offer-request")
        .expect("a sample");
    let body = sample.body.encode();
    let part = |header: &Header, body: &[u8], from: usize, to: usize| {
        let mut out = Vec::new();
        let header = Header {
            segment_offset: from as u32,
            message_len: body.len() as u32,
            ..*header
        };
        header.emit(&body[from..to], &mut out);
        directed(&header, header.kind == Kind::Write, &out)
    };
    let write = Header {
        kind: Kind::Write,
        ..request
    };
    let mut data = IoRange::of_device(512, 64).to_body();
    data.extend([7; 64]);
    let mut bad = data.clone();
    bad[31] = 65;
    let reply = Header {
        flags: Flags::REPLY,
        status: Status::Busy,
        ..request
    };
    let mut corrupted = part(&request, &body, 0, 100);
    corrupted[100] ^= 0x10;
    let frames = [
        part(&request, &body, 200, body.len()),
        part(&request, &body, 0, 250),
        part(&request, &body, 0, 100),
        part(&write, &data, 0, 40),
        part(&write, &bad, 0, 40),
        corrupted,
        part(&reply, &[], 0, 0),
        part(&request, b"cut short", 0, 9),
    ];
    let (summary, text) = decode(&pcap(&frames), false).expect("decoded");
    let lines: Vec<_> = text.lines().collect();
    assert!(!lines[0].contains(": "), "{text}");
    assert!(lines[1].ends_with(&format!(": {}", sample.body)), "{text}");
    assert!(lines[2].ends_with("(repeated)"), "{text}");
    assert!(lines[3].contains(": 512+64"), "{text}");
    assert!(
        lines[4].contains("MALFORMED bad body (bad value in length)"),
        "{text}"
    );
    assert!(lines[5].ends_with("MALFORMED checksum"), "{text}");
    assert!(lines[6].contains("(answers 1 after 6.000 ms)"), "{text}");
    assert_eq!(summary.malformed_count(), 3);
    assert_eq!(summary.malformed["bad body"], 2);
    assert!(!summary.is_clean());
}

#[test]
fn packets_that_share_a_frame_have_a_line_each() {
    let samples = samples();
    let of = |name| samples.iter().find(|s| s.name == name).expect("a sample");
    let (first, second) = (of("read-request"), of("flush-request"));
    let shared = [first.frame(), second.frame(), vec![0; 7]].concat();
    let mut damaged = [first.frame(), second.frame(), first.frame()].concat();
    damaged[first.frame().len() + 41] ^= 1;
    let frames = [&shared, &damaged].map(|frame| directed(&first.header, true, frame));
    let (summary, text) = decode(&pcap(&frames), false).expect("decoded");
    assert_eq!((summary.ours, summary.packets), (2, 3));
    assert_eq!(summary.malformed_count(), 1, "behind it nothing is read");
    let lines: Vec<_> = text.lines().collect();
    let numbers: Vec<_> = lines[..4]
        .iter()
        .map(|line| line.split_whitespace().next().expect("a number"))
        .collect();
    assert_eq!(numbers, ["1", ".2", "2", ".2"], "{text}");
    assert!(
        lines[0].contains(" read ") && lines[1].contains(" flush "),
        "{text}"
    );
    assert!(lines[3].ends_with("MALFORMED checksum"), "{text}");
    let (_, text) = decode(&pcap(&frames), true).expect("decoded");
    let second: serde_json::Value =
        serde_json::from_str(text.lines().nth(1).expect("a line")).expect("JSON");
    assert_eq!(
        (&second["number"], &second["packet"]),
        (&1.into(), &2.into())
    );
}

#[test]
fn what_is_no_capture_is_refused() {
    let error = |file: &[u8]| decode(file, false).expect_err("refused").to_string();
    assert!(error(b"").contains("neither a pcap nor a pcapng"));
    assert!(
        error(b"#!/bin/bash\necho this is a script, of more than 24 bytes").contains("neither")
    );
    let header = PcapHeader {
        datalink: DataLink::RAW,
        ts_resolution: TsResolution::NanoSecond,
        ..PcapHeader::default()
    };
    let other = PcapWriter::with_header(Vec::new(), header).expect("a header");
    assert!(error(&other.into_writer()).contains("link type 101"));
    let missing = run(Path::new("/nowhere"), false, &mut Vec::new());
    assert!(matches!(missing, Err(CaptureError::Read { .. })));
}

#[test]
fn a_file_that_ends_early_gives_what_it_has() {
    let whole = pcap(&frames());
    let (summary, text) = decode(&whole[..whole.len() - 5], false).expect("decoded");
    assert!(summary.ends_early);
    assert_eq!(summary.frames + 1, frames().len() as u64);
    assert!(text.ends_with("the file ends inside a packet\n"));
}

#[test]
fn frames_that_are_not_captured_whole_are_not_judged() {
    let mut writer = PcapWriter::new(Vec::new()).expect("a header");
    let frame = ethernet(UNIT, HOST, true, &samples()[0].frame());
    let packet = PcapPacket::new(Duration::ZERO, frame.len() as u32, &frame[..60]);
    writer.write_packet(&packet).expect("written");
    let (summary, _) = decode(&writer.into_writer(), false).expect("decoded");
    assert_eq!((summary.cut, summary.malformed_count()), (1, 0));
}

#[test]
fn damaged_files_never_end_the_program() {
    let mut rng = fastrand::Rng::with_seed(11);
    for file in [pcap(&frames()), pcapng(&frames(), Some(9))] {
        for _ in 0..100 {
            let mut bytes = file.clone();
            for _ in 0..rng.usize(1..8) {
                let near = if rng.bool() { 200 } else { usize::MAX };
                let at = rng.usize(..bytes.len().min(near));
                match rng.u8(..4) {
                    0 => bytes[at] = rng.u8(..),
                    1 => bytes[at] = 0xff,
                    2 => bytes.truncate(at + 1),
                    _ => drop(bytes.remove(at)),
                }
            }
            let _ = decode(&bytes, false);
        }
    }
}
