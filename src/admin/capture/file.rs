//! Reading of capture files: packets with their time, from pcap and pcapng alike.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek};
use std::path::Path;
use std::time::Duration;

use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError, TsResolution};

use super::CaptureError;

/// The first bytes of a pcapng file.
const PCAPNG_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// A captured packet.
pub(super) struct Packet<'a> {
    /// Since 1970.
    pub time: Duration,
    /// Whether the capture has all of it.
    pub is_whole: bool,
    /// From its Ethernet header on.
    pub bytes: &'a [u8],
}

/// Gives every packet of a file to `each`; says whether the file ends inside a packet.
pub(super) fn for_each_packet(
    path: &Path,
    mut each: impl FnMut(Packet<'_>) -> Result<(), CaptureError>,
) -> Result<bool, CaptureError> {
    let unreadable = |source| CaptureError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let mut magic = [0; 4];
    match file.read_exact(&mut magic) {
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
            return Err(CaptureError::NotACapture {
                path: path.to_owned(),
            });
        }
        other => other.map_err(unreadable)?,
    }
    file.rewind().map_err(unreadable)?;
    if magic == PCAPNG_MAGIC {
        pcapng(path, file, &mut each)
    } else {
        pcap(path, file, &mut each)
    }
}

fn pcap(
    path: &Path,
    file: File,
    each: &mut impl FnMut(Packet<'_>) -> Result<(), CaptureError>,
) -> Result<bool, CaptureError> {
    let mut reader = PcapReader::new(file).map_err(|_| CaptureError::NotACapture {
        path: path.to_owned(),
    })?;
    let header = reader.header();
    ethernet(path, header.datalink)?;
    let unit = match header.ts_resolution {
        TsResolution::MicroSecond => 1000,
        TsResolution::NanoSecond => 1,
    };
    while let Some(packet) = reader.next_raw_packet() {
        let packet = match packet {
            Ok(packet) => packet,
            Err(e) if is_end(&e) => return Ok(true),
            Err(e) => return Err(broken(path, e)),
        };
        let nanos = u64::from(packet.ts_frac).saturating_mul(unit);
        each(Packet {
            time: Duration::from_secs(packet.ts_sec.into()) + Duration::from_nanos(nanos),
            is_whole: packet.incl_len >= packet.orig_len,
            bytes: &packet.data,
        })?;
    }
    Ok(false)
}

fn pcapng(
    path: &Path,
    file: File,
    each: &mut impl FnMut(Packet<'_>) -> Result<(), CaptureError>,
) -> Result<bool, CaptureError> {
    let mut reader = PcapNgReader::new(file).map_err(|_| CaptureError::NotACapture {
        path: path.to_owned(),
    })?;
    loop {
        // What is needed of the packet's interface, before the block borrows the reader.
        let ticks: Vec<TickRate> = reader.interfaces().iter().map(TickRate::of).collect();
        let Some(block) = reader.next_block() else {
            return Ok(false);
        };
        match block {
            Ok(Block::InterfaceDescription(interface)) => ethernet(path, interface.linktype)?,
            Ok(Block::EnhancedPacket(packet)) => each(Packet {
                // The crate takes every tick for a nanosecond.
                time: ticks
                    .get(packet.interface_id as usize)
                    .map_or(packet.timestamp, |rate| rate.time(packet.timestamp)),
                is_whole: packet.data.len() >= packet.original_len as usize,
                bytes: &packet.data,
            })?,
            Ok(Block::SimplePacket(packet)) => each(Packet {
                time: Duration::ZERO,
                is_whole: packet.data.len() >= packet.original_len as usize,
                bytes: &packet.data,
            })?,
            Ok(_) => {}
            Err(e) if is_end(&e) => return Ok(true),
            Err(e) => return Err(broken(path, e)),
        }
    }
}

/// Ticks per second of an interface's timestamps.
#[derive(Clone, Copy)]
struct TickRate(u64);

impl TickRate {
    fn of(interface: &InterfaceDescriptionBlock<'_>) -> Self {
        let exponent = interface.options.iter().find_map(|option| match option {
            InterfaceDescriptionOption::IfTsResol(exponent) => Some(*exponent),
            _ => None,
        });
        // A power of ten, or of two where the highest bit is set; microseconds by default.
        let rate = match exponent {
            None => Some(1_000_000),
            Some(e) if e & 0x80 == 0 => 10_u64.checked_pow(e.into()),
            Some(e) => 2_u64.checked_pow((e & 0x7f).into()),
        };
        Self(rate.unwrap_or(1_000_000_000))
    }

    /// The time of so many ticks, which come as if they were nanoseconds.
    fn time(self, ticks: Duration) -> Duration {
        let nanos = ticks.as_nanos().saturating_mul(1_000_000_000) / u128::from(self.0);
        let (secs, nanos) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
        Duration::new(u64::try_from(secs).unwrap_or(u64::MAX), nanos as u32)
    }
}

fn ethernet(path: &Path, link: DataLink) -> Result<(), CaptureError> {
    if link == DataLink::ETHERNET {
        return Ok(());
    }
    Err(CaptureError::LinkType {
        path: path.to_owned(),
        link: u32::from(link),
    })
}

fn is_end(error: &PcapError) -> bool {
    matches!(error, PcapError::IoError(e) if e.kind() == ErrorKind::UnexpectedEof)
}

fn broken(path: &Path, source: PcapError) -> CaptureError {
    match source {
        PcapError::IoError(source) => CaptureError::Read {
            path: path.to_owned(),
            source,
        },
        source => CaptureError::Broken {
            path: path.to_owned(),
            source,
        },
    }
}
