//! Writes frames to a pcap file.

use crate::RigError;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, PcapError, TsResolution};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Octets of a frame that are kept: all of them.
const SNAP_LEN: u32 = 65_535;

/// A pcap file that is being written.
pub(super) struct Recorder {
    path: PathBuf,
    writer: PcapWriter<BufWriter<File>>,
    frames: u64,
    /// The first error; nothing is written after it.
    failed: Option<PcapError>,
}

impl Recorder {
    pub(super) fn create(path: &Path) -> Result<Self, RigError> {
        let failed = |source| RigError::Capture {
            path: path.to_owned(),
            source,
        };
        let file = File::create(path).map_err(|error| failed(PcapError::IoError(error)))?;
        let header = PcapHeader {
            ts_resolution: TsResolution::NanoSecond,
            datalink: DataLink::ETHERNET,
            snaplen: SNAP_LEN,
            ..PcapHeader::default()
        };
        let writer = PcapWriter::with_header(BufWriter::new(file), header).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            writer,
            frames: 0,
            failed: None,
        })
    }

    /// Writes a frame, Ethernet header included, that was seen at `time` since the epoch.
    pub(super) fn record(&mut self, time: Duration, frame: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        let packet = PcapPacket::new(time, frame.len() as u32, frame);
        match self.writer.write_packet(&packet) {
            Ok(_) => self.frames += 1,
            Err(error) => self.failed = Some(error),
        }
    }

    /// Completes the file; how many frames it has.
    pub(super) fn finish(mut self) -> Result<u64, RigError> {
        let flushed = match self.failed.take() {
            Some(error) => Err(error),
            None => self
                .writer
                .into_writer()
                .flush()
                .map_err(PcapError::IoError),
        };
        flushed.map_err(|source| RigError::Capture {
            path: self.path,
            source,
        })?;
        Ok(self.frames)
    }
}
