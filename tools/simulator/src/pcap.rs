//! A story's frames as a file that Wireshark reads.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::Seen;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, Endianness, TsResolution};
use rma::wire::{ETHERTYPE_MANAGEMENT, ETHERTYPE_SERVICE, Time};

/// Writes the frames as they were sent, with nanoseconds since the world began.
pub fn write(path: &Path, frames: &[Seen]) -> io::Result<()> {
    let header = PcapHeader {
        version_major: 2,
        version_minor: 4,
        ts_correction: 0,
        ts_accuracy: 0,
        snaplen: 65_535,
        datalink: DataLink::ETHERNET,
        ts_resolution: TsResolution::NanoSecond,
        endianness: Endianness::Little,
    };
    let file = io::BufWriter::new(File::create(path)?);
    let mut writer = PcapWriter::with_header(file, header).map_err(io::Error::other)?;
    for frame in frames {
        let ethertype = if frame.service {
            ETHERTYPE_SERVICE
        } else {
            ETHERTYPE_MANAGEMENT
        };
        let mut bytes = frame.dst.0.to_vec();
        bytes.extend_from_slice(&frame.src.0);
        bytes.extend_from_slice(&ethertype.to_be_bytes());
        bytes.extend_from_slice(&frame.bytes);
        let packet = PcapPacket::new(frame.at.since(Time::ZERO), bytes.len() as u32, &bytes);
        writer.write_packet(&packet).map_err(io::Error::other)?;
    }
    Ok(())
}
