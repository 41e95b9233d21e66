//! `rma capture FILE`: decodes a packet capture, a line per frame, and counts what is wrong with it.

mod exchange;
mod file;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::wire::{
    self, Body, DropReason, ETHERTYPE_MANAGEMENT, ETHERTYPE_SERVICE, Flags, Header, Kind, Mac,
    Status,
};
use exchange::{Exchanges, Place};
use file::Packet;

/// Schema version of the JSON lines.
pub const SCHEMA: u32 = 1;

/// A capture cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file cannot be opened or read.
    #[error("{path}: cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("{path}: neither a pcap nor a pcapng file; capture with tcpdump or dumpcap")]
    NotACapture {
        /// The file.
        path: PathBuf,
    },
    /// It contradicts its own format.
    #[error("{path}: the file is damaged: {source}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// Where.
        source: pcap_file::PcapError,
    },
    /// Its packets have no Ethernet header.
    #[error(
        "{path}: captured with link type {link}, not Ethernet (1); capture on an Ethernet interface"
    )]
    LinkType {
        /// The file.
        path: PathBuf,
        /// The number of the link type.
        link: u32,
    },
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Write(#[from] io::Error),
}

/// What a capture holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Frames of any protocol.
    pub frames: u64,
    /// Frames of the two EtherTypes.
    pub ours: u64,
    /// Packets in them that a receiver can read; a frame may have several.
    pub packets: u64,
    /// Our packets that a receiver would drop, by the reason's name.
    pub malformed: BTreeMap<&'static str, u64>,
    /// Our frames of which the capture has only a part; they are not judged.
    pub cut: u64,
    /// Reply frames whose request is in the capture.
    pub replies_matched: u64,
    /// Reply frames whose request is not.
    pub replies_unmatched: u64,
    /// Requests without any reply.
    pub requests_unanswered: u64,
    /// Frames of which everything had been captured before.
    pub repeated: u64,
    /// Whether the file ends inside a packet.
    pub ends_early: bool,
}

impl Summary {
    /// Frames that a receiver would drop.
    pub fn malformed_count(&self) -> u64 {
        self.malformed.values().sum()
    }

    /// Nothing is malformed and every reply has its request.
    pub fn is_clean(&self) -> bool {
        self.malformed.is_empty() && self.replies_unmatched == 0
    }
}

/// One of our frames, as JSON has it. Numbers of 64 bits are text, so that no reader rounds them.
#[derive(Debug, Serialize)]
struct FrameLine<'a> {
    schema: u32,
    r#type: &'static str,
    number: u64,
    /// Which of our packets in the frame, from 1.
    packet: u32,
    time: String,
    src: String,
    dst: String,
    ethertype: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    malformed: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(flatten)]
    header: Option<HeaderFields>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answers: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after_ns: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unmatched: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    repeated: bool,
}

#[derive(Debug, Serialize)]
struct HeaderFields {
    kind: &'static str,
    flags: Vec<&'static str>,
    ioc: u16,
    iod: u16,
    status: &'static str,
    outstanding: u16,
    credits: u16,
    connection: String,
    command: String,
    epoch: String,
    cluster: String,
    segment_offset: u32,
    segment_bytes: usize,
    message_bytes: u32,
}

impl HeaderFields {
    fn of(header: &Header, payload: &[u8]) -> Self {
        let flags = Flags::NAMES
            .iter()
            .filter(|(flag, _)| header.flags.contains(*flag))
            .map(|(_, name)| *name);
        Self {
            kind: header.kind.name(),
            flags: flags.collect(),
            ioc: header.ioc.0,
            iod: header.iod.0,
            status: header.status.name(),
            outstanding: header.outstanding,
            credits: header.credits,
            connection: format!("{:016x}", header.connection.0),
            command: header.command.to_string(),
            epoch: header.epoch.to_string(),
            cluster: header.cluster.as_str().to_owned(),
            segment_offset: header.segment_offset,
            segment_bytes: payload.len(),
            message_bytes: header.message_len,
        }
    }
}

#[derive(Serialize)]
struct SummaryLine<'a> {
    schema: u32,
    r#type: &'static str,
    #[serde(flatten)]
    summary: &'a Summary,
}

/// Decodes the capture at `path` (pcap or pcapng, Ethernet) to `out`: a line for each of our
/// frames, as text or as JSON, and the counts at the end.
pub fn run(path: &Path, json: bool, out: &mut dyn Write) -> Result<Summary, CaptureError> {
    let ethertypes = (ETHERTYPE_MANAGEMENT, ETHERTYPE_SERVICE);
    run_on(path, ethertypes, json, out)
}

/// [`run`] for other EtherTypes than the default ones: (management, service).
pub fn run_on(
    path: &Path,
    ethertypes: (u16, u16),
    json: bool,
    out: &mut dyn Write,
) -> Result<Summary, CaptureError> {
    let mut decoder = Decoder {
        ethertypes,
        exchanges: Exchanges::new(),
        start: None,
        summary: Summary::default(),
        json,
        out,
    };
    let ends_early = file::for_each_packet(path, |packet| decoder.packet(&packet))?;
    let Decoder {
        mut summary,
        exchanges,
        out,
        ..
    } = decoder;
    summary.ends_early = ends_early;
    summary.requests_unanswered = exchanges.unanswered();
    if json {
        let line = SummaryLine {
            schema: SCHEMA,
            r#type: "summary",
            summary: &summary,
        };
        json_line(&line, out)?;
    } else {
        write_counts(&summary, out)?;
    }
    Ok(summary)
}

fn json_line(line: &impl Serialize, out: &mut dyn Write) -> Result<(), CaptureError> {
    serde_json::to_writer(&mut *out, line).map_err(io::Error::from)?;
    out.write_all(b"\n")?;
    Ok(())
}

fn write_counts(summary: &Summary, out: &mut dyn Write) -> io::Result<()> {
    let s = summary;
    writeln!(
        out,
        "{} frames, {} of them ours with {} packets: {} malformed, {} replies matched, {} unmatched; {} requests unanswered, {} frames repeated",
        s.frames,
        s.ours,
        s.packets,
        s.malformed_count(),
        s.replies_matched,
        s.replies_unmatched,
        s.requests_unanswered,
        s.repeated
    )?;
    for (reason, count) in &s.malformed {
        writeln!(out, "malformed, {reason}: {count}")?;
    }
    if s.cut > 0 {
        writeln!(
            out,
            "{} frames were not captured whole and not judged",
            s.cut
        )?;
    }
    if s.ends_early {
        writeln!(out, "the file ends inside a packet")?;
    }
    Ok(())
}

struct Decoder<'o> {
    ethertypes: (u16, u16),
    exchanges: Exchanges,
    /// Time of the first packet.
    start: Option<Duration>,
    summary: Summary,
    json: bool,
    out: &'o mut dyn Write,
}

/// An Ethernet frame's addresses, EtherType and what is behind it, VLAN tags skipped.
fn ethernet(bytes: &[u8]) -> Option<(Mac, Mac, u16, &[u8])> {
    let (dst, rest) = bytes.split_first_chunk::<6>()?;
    let (src, mut rest) = rest.split_first_chunk::<6>()?;
    loop {
        let (ethertype, behind) = rest.split_first_chunk::<2>()?;
        match u16::from_be_bytes(*ethertype) {
            0x8100 | 0x88a8 => rest = behind.get(2..)?,
            ethertype => return Some((Mac(*dst), Mac(*src), ethertype, behind)),
        }
    }
}

/// The text of a whole message's body, or what is wrong with it.
fn body_text(header: &Header, bytes: &[u8]) -> Result<String, String> {
    match Body::parse(header, bytes) {
        Ok(body) => Ok(body.to_string()),
        Err(e) => Err(e.to_string()),
    }
}

impl Decoder<'_> {
    fn packet(&mut self, packet: &Packet<'_>) -> Result<(), CaptureError> {
        self.summary.frames += 1;
        let number = self.summary.frames;
        let start = *self.start.get_or_insert(packet.time);
        let Some((dst, src, ethertype, frame)) = ethernet(packet.bytes) else {
            return Ok(());
        };
        let service = ethertype == self.ethertypes.1;
        if !service && ethertype != self.ethertypes.0 {
            return Ok(());
        }
        self.summary.ours += 1;
        for (read, index) in Header::packets(frame, service).zip(1..) {
            let mut line = FrameLine {
                schema: SCHEMA,
                r#type: "frame",
                number,
                packet: index,
                time: format!(
                    "{}.{:09}",
                    packet.time.as_secs(),
                    packet.time.subsec_nanos()
                ),
                src: src.to_string(),
                dst: dst.to_string(),
                ethertype: if service { "service" } else { "management" },
                malformed: None,
                detail: None,
                header: None,
                body: None,
                answers: None,
                after_ns: None,
                unmatched: false,
                repeated: false,
            };
            self.read(&mut line, packet, (src, dst), read);
            if self.json {
                json_line(&line, self.out)?;
            } else {
                write_text(&line, packet.time.saturating_sub(start), self.out)?;
            }
        }
        Ok(())
    }

    /// What is known of a packet of ours, into its line.
    fn read(
        &mut self,
        line: &mut FrameLine<'_>,
        frame: &Packet<'_>,
        between: (Mac, Mac),
        packet: Result<wire::Packet<'_>, DropReason>,
    ) {
        let packet = match packet {
            Err(DropReason::Truncated) if !frame.is_whole => {
                self.summary.cut += 1;
                line.detail = Some("not captured whole".to_owned());
                return;
            }
            Err(reason) => return self.malformed(line, reason),
            Ok(packet) => packet,
        };
        let (header, payload) = (packet.header, packet.payload);
        self.summary.packets += 1;
        let place = self
            .exchanges
            .place(line.number, frame.time, between, &header, payload);
        self.count(&place);
        self.body(line, &header, payload, &place);
        line.header = Some(HeaderFields::of(&header, payload));
        line.answers = place.answers.map(|(frame, _)| frame);
        line.after_ns = place
            .answers
            .map(|(_, after)| u64::try_from(after.as_nanos()).unwrap_or(u64::MAX));
        line.unmatched = place.is_unmatched;
        line.repeated = place.is_repeated;
    }

    fn malformed(&mut self, line: &mut FrameLine<'_>, reason: DropReason) {
        *self.summary.malformed.entry(reason.name()).or_default() += 1;
        line.malformed = Some(reason.name());
    }

    fn count(&mut self, place: &Place) {
        self.summary.replies_matched += u64::from(place.answers.is_some());
        self.summary.replies_unmatched += u64::from(place.is_unmatched);
        self.summary.repeated += u64::from(place.is_repeated);
    }

    /// Reads the body of a whole message: in this frame, or completed by it. Of data that came in
    /// segments only the range is read, from the first one.
    fn body(&mut self, line: &mut FrameLine<'_>, header: &Header, payload: &[u8], place: &Place) {
        let is_whole = payload.len() == header.message_len as usize;
        let text = match &place.message {
            Some(message) => body_text(header, message),
            None if is_whole => body_text(header, payload),
            None if header.kind == Kind::Write
                && !header.is_reply()
                && header.segment_offset == 0 =>
            {
                write_range(header, payload)
            }
            None => return,
        };
        match text {
            Ok(text) => line.body = Some(text).filter(|t| !t.is_empty()),
            Err(what) => {
                self.malformed(line, DropReason::Body);
                line.detail = Some(what);
            }
        }
    }
}

/// The range of a write, from its first segment.
fn write_range(header: &Header, segment: &[u8]) -> Result<String, String> {
    use crate::wire::Wire;
    use crate::wire::message::{IO_RANGE_BYTES, IoRange};

    let Some(range) = segment.get(..IO_RANGE_BYTES) else {
        return Ok(String::new());
    };
    let range = IoRange::from_body(range).map_err(|e| e.to_string())?;
    if range.len != u64::from(header.message_len) - IO_RANGE_BYTES as u64 {
        return Err("bad value in length".to_owned());
    }
    Ok(range.to_string())
}

/// `   0.001000 02:… -> 02:… service read reply 1/2 #7 ok 4096+512 (answers 3 after 1.2 ms)`
fn write_text(line: &FrameLine<'_>, since: Duration, out: &mut dyn Write) -> io::Result<()> {
    // Further packets of a frame are under its first.
    let number = match line.packet {
        1 => line.number.to_string(),
        packet => format!(".{packet}"),
    };
    write!(
        out,
        "{number:>5} {:>4}.{:06} {} -> {} {:<10}",
        since.as_secs(),
        since.subsec_micros(),
        line.src,
        line.dst,
        line.ethertype
    )?;
    if let Some(h) = &line.header {
        write!(out, " {}", h.kind)?;
        if !h.flags.is_empty() {
            write!(out, " ({})", h.flags.join("+"))?;
        }
        match (h.ioc, h.iod) {
            (0, 0) => {}
            (ioc, 0) => write!(out, " ioc {ioc}")?,
            (ioc, iod) => write!(out, " {ioc}/{iod}")?,
        }
        write!(out, " #{} on {}", h.command, h.connection)?;
        if !h.cluster.is_empty() {
            write!(out, " of {}", h.cluster)?;
        }
        if h.epoch != "0" {
            write!(out, " epoch {}", h.epoch)?;
        }
        if h.status != Status::Ok.name() {
            write!(out, " {}", h.status.to_uppercase())?;
        }
        if h.segment_bytes < h.message_bytes as usize {
            let end = h.segment_offset as usize + h.segment_bytes;
            let (from, of) = (h.segment_offset, h.message_bytes);
            write!(out, " [{from}..{end} of {of}]")?;
        }
    }
    if let Some(body) = &line.body {
        write!(out, ": {body}")?;
    }
    if let Some(reason) = line.malformed {
        write!(out, " MALFORMED {reason}")?;
    }
    if let Some(detail) = &line.detail {
        write!(out, " ({detail})")?;
    }
    if let (Some(frame), Some(after)) = (line.answers, line.after_ns) {
        write!(
            out,
            " (answers {frame} after {}.{:03} ms)",
            after / 1_000_000,
            after / 1000 % 1000
        )?;
    }
    if line.unmatched {
        write!(out, " UNMATCHED")?;
    }
    if line.repeated {
        write!(out, " (repeated)")?;
    }
    writeln!(out)
}
