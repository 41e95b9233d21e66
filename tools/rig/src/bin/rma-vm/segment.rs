//! The segment that guests share: a switch of UNIX datagram sockets, which learns, cuts and records.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufWriter;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use pcap_file::DataLink;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};

use crate::Result;

/// How long a guest that does not take frames may hold up a port.
const PATIENCE: Duration = Duration::from_millis(20);
/// What is recorded at most, bytes.
const MAX_RECORDED: usize = 512 << 20;
/// The longest frame.
const MAX_FRAME: usize = 65_536;

struct Record {
    writer: Option<PcapWriter<BufWriter<File>>>,
    bytes: usize,
}

struct Shared {
    directory: PathBuf,
    ports: usize,
    /// At which port a station was heard last.
    stations: Mutex<HashMap<[u8; 6], usize>>,
    cut: Vec<AtomicBool>,
    record: Mutex<Record>,
}

/// The switch. Its threads end with the process.
pub(crate) struct Segment {
    shared: Arc<Shared>,
}

impl Segment {
    /// A switch with sockets in `directory`, and a record of its frames.
    pub(crate) fn start(directory: &Path, ports: usize) -> Result<Self> {
        let header = PcapHeader {
            datalink: DataLink::ETHERNET,
            ..PcapHeader::default()
        };
        let file = BufWriter::new(File::create(directory.join("segment.pcap"))?);
        let record = Record {
            writer: Some(PcapWriter::with_header(file, header)?),
            bytes: 0,
        };
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            ports,
            stations: Mutex::default(),
            cut: (0..ports).map(|_| AtomicBool::new(false)).collect(),
            record: Mutex::new(record),
        });
        for port in 0..ports {
            let socket = UnixDatagram::bind(shared.here(port))?;
            socket.set_write_timeout(Some(PATIENCE))?;
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name(format!("port {port}"))
                .spawn(move || shared.forward(port, &socket))?;
        }
        Ok(Self { shared })
    }

    /// QEMU's words for a NIC at `port`.
    pub(crate) fn netdev(&self, port: usize) -> String {
        format!(
            "dgram,id=net{port},local.type=unix,local.path={},remote.type=unix,remote.path={}",
            self.shared.there(port).display(),
            self.shared.here(port).display()
        )
    }

    /// The guest's end of a port; it must not be there when the guest starts.
    pub(crate) fn guest_path(&self, port: usize) -> PathBuf {
        self.shared.there(port)
    }

    /// Cuts a port off, or lets it take part again.
    pub(crate) fn cut(&self, port: usize, cut: bool) {
        self.shared.cut[port].store(cut, Ordering::Relaxed);
    }

    /// Completes the record.
    pub(crate) fn finish(&self) {
        self.shared.lock().writer = None;
    }
}

impl Shared {
    fn here(&self, port: usize) -> PathBuf {
        self.directory.join(format!("port{port}"))
    }

    fn there(&self, port: usize) -> PathBuf {
        self.directory.join(format!("nic{port}"))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forward(&self, port: usize, socket: &UnixDatagram) {
        let mut buffer = vec![0; MAX_FRAME];
        while let Ok(len) = socket.recv(&mut buffer) {
            let frame = &buffer[..len];
            let (Some(to), Some(from)) = (frame.get(..6), frame.get(6..12)) else {
                continue;
            };
            if self.is_cut(port) {
                continue;
            }
            self.keep(frame);
            let only = {
                let mut stations = self.stations.lock().unwrap_or_else(PoisonError::into_inner);
                if let Ok(from) = from.try_into() {
                    stations.insert(from, port);
                }
                stations.get(to).copied()
            };
            for other in 0..self.ports {
                if other != port && only.is_none_or(|only| only == other) && !self.is_cut(other) {
                    // A guest that is not there, or does not keep up, loses frames as on any wire.
                    let _ = socket.send_to(frame, self.there(other));
                }
            }
        }
    }

    fn is_cut(&self, port: usize) -> bool {
        self.cut[port].load(Ordering::Relaxed)
    }

    fn keep(&self, frame: &[u8]) {
        let mut record = self.lock();
        if record.bytes > MAX_RECORDED {
            return;
        }
        record.bytes += frame.len();
        if let Some(writer) = &mut record.writer {
            let time = SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default();
            let _ = writer.write_packet(&PcapPacket::new(time, frame.len() as u32, frame));
        }
    }
}
