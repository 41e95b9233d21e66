//! What a wire can carry: requests and replies of the same number and sizes as ours, and nothing else.
//! Plain `sendmmsg`, a ring to receive into that is polled, no protocol, no checksum, no copy of our own.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rma::net::{BATCH_FRAMES, ETHERNET_HEADER_LEN, Inbox, Interface, PacketSocket, raw};
use rma::wire::{HEADER_LEN, MAX_SHARED_PACKETS, Mac};
use rma_rig::Node;

use super::Result;

/// Another EtherType than any daemon's.
const ETHERTYPE: u16 = 0x88b7;
/// Silence after which everything under way counts as lost.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);
/// Memory that frames are received into.
const RING_BYTES: usize = 8 << 20;
/// Another thread may be waiting for the processor.
const POLLS_BEFORE_YIELD: u32 = 64;
/// Bytes of the request's own fields behind the header.
const REQUEST_BYTES: usize = 32;

/// The frames of one I/O.
pub(super) struct Shape {
    request: Message,
    reply: Message,
}

/// A request or a reply: octets of each of its frames, without the Ethernet header.
struct Message {
    frames: Vec<usize>,
    /// How many of them one frame takes, where each is one packet.
    shared: usize,
}

impl Shape {
    /// Of a read or a write of `bytes` at an MTU.
    pub(super) fn of(is_read: bool, bytes: usize, mtu: u16) -> Self {
        let (request, reply) = if is_read {
            (REQUEST_BYTES, bytes)
        } else {
            (REQUEST_BYTES + bytes, 0)
        };
        Self {
            request: Message::of(request, mtu),
            reply: Message::of(reply, mtu),
        }
    }
}

impl Message {
    fn of(bytes: usize, mtu: u16) -> Self {
        let frames = frames(bytes, mtu);
        let shared = match frames[..] {
            [packet] => (usize::from(mtu) / packet).clamp(1, MAX_SHARED_PACKETS),
            _ => 1,
        };
        Self { frames, shared }
    }
}

fn frames(message: usize, mtu: u16) -> Vec<usize> {
    let max = usize::from(mtu) - HEADER_LEN;
    let mut all = Vec::new();
    let mut left = message;
    loop {
        let payload = left.min(max);
        all.push(HEADER_LEN + payload);
        left -= payload;
        if left == 0 {
            return all;
        }
    }
}

/// What the ceiling program moved.
pub(super) struct Moved {
    pub(super) ios_per_second: f64,
}

/// Runs requests of a shape from one node to another for `time`, `depth` of them under way.
pub(super) fn measure(
    (host, unit): (&Node, &Node),
    (host_wire, unit_wire): (&str, &str),
    shape: &Shape,
    depth: usize,
    time: Duration,
) -> Result<Moved> {
    let stop = AtomicBool::new(false);
    let mut ends = (None, None);
    host.enter(|| ends.0 = Some(End::open(host_wire, ETHERTYPE)))?;
    unit.enter(|| ends.1 = Some(End::open(unit_wire, ETHERTYPE)))?;
    let (Some(host), Some(unit)) = ends else {
        return Err("no ends".into());
    };
    let (mut host, mut unit) = (host?, unit?);
    let macs = (host.mac(), unit.mac());
    std::thread::scope(|scope| {
        let server = scope.spawn(|| unit.serve(macs.0, shape, &stop));
        let moved = host.ask(macs.1, shape, depth, time);
        stop.store(true, Ordering::Relaxed);
        let served = server
            .join()
            .map_err(|_| "the ceiling's server has panicked")?;
        served?;
        Ok(Moved {
            ios_per_second: moved?,
        })
    })
}

/// One end of the wire: frames of one EtherType.
pub(super) struct End {
    socket: PacketSocket,
    inbox: Inbox,
    /// Polls in vain, in a row.
    idle: u32,
}

impl End {
    pub(super) fn open(interface: &str, ethertype: u16) -> io::Result<Self> {
        let interface = Interface::by_name(interface).map_err(io::Error::other)?;
        let socket = PacketSocket::open_with(&interface, ethertype, RING_BYTES);
        Ok(Self {
            socket: socket.map_err(io::Error::other)?,
            inbox: Inbox::new(interface.mtu),
            idle: 0,
        })
    }

    fn mac(&self) -> Mac {
        self.socket.interface().mac
    }

    /// How many frames have come.
    pub(super) fn receive(&mut self) -> io::Result<usize> {
        let count = self
            .socket
            .recv(&mut self.inbox)
            .map_err(io::Error::other)?;
        self.idle = if count == 0 { self.idle + 1 } else { 0 };
        if self.idle > 0 && self.idle.is_multiple_of(POLLS_BEFORE_YIELD) {
            std::thread::yield_now();
        }
        Ok(count)
    }

    /// How many of the frames that came are `wanted`.
    pub(super) fn count(&self, wanted: impl Fn(&[u8]) -> bool) -> usize {
        let frames = self.inbox.frames();
        frames.filter(|frame| wanted(frame.payload)).count()
    }

    /// Sends `count` messages of these frames, batched.
    pub(super) fn send(&self, message: &[Vec<u8>], count: usize) -> io::Result<()> {
        let mut left = message.len() * count;
        let mut next = message.iter().cycle();
        while left > 0 {
            let batch = left.min(BATCH_FRAMES);
            let mut slices = [[IoSlice::new(&[]); 2]; BATCH_FRAMES];
            for ([slice, _], frame) in slices.iter_mut().zip(next.by_ref().take(batch)) {
                *slice = IoSlice::new(frame);
            }
            let mut from = 0;
            while from < batch {
                match raw::send(self.socket.as_fd(), &slices[from..batch]) {
                    Ok(sent) => from += sent,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            }
            left -= batch;
        }
        Ok(())
    }

    /// How many packets of such messages have come.
    fn packets(&self, message: &Message) -> usize {
        let packet = message.frames[0];
        let frames = self.inbox.frames();
        if message.shared == 1 {
            frames.count()
        } else {
            frames.map(|frame| frame.payload.len() / packet).sum()
        }
    }

    /// The frames of one message, and one that as many messages share as do.
    fn make(&self, to: Mac, message: &Message) -> [Vec<Vec<u8>>; 2] {
        let shared = message.frames[0] * message.shared;
        [self.frames(to, &message.frames), self.frames(to, &[shared])]
    }

    /// Sends `count` messages, of which as many share a frame as can.
    fn send_all(
        &self,
        [one, shared]: &[Vec<Vec<u8>>; 2],
        message: &Message,
        count: usize,
    ) -> io::Result<()> {
        if message.shared == 1 {
            return self.send(one, count);
        }
        self.send(shared, count / message.shared)?;
        let rest = count % message.shared;
        if rest > 0 {
            let octets = ETHERNET_HEADER_LEN + rest * message.frames[0];
            self.send(&[shared[0][..octets].to_vec()], 1)?;
        }
        Ok(())
    }

    /// Frames of these sizes to a station.
    pub(super) fn frames(&self, to: Mac, sizes: &[usize]) -> Vec<Vec<u8>> {
        sizes
            .iter()
            .map(|size| {
                let mut frame = vec![0xa5; ETHERNET_HEADER_LEN + size];
                frame[..6].copy_from_slice(&to.0);
                frame[6..12].copy_from_slice(&self.mac().0);
                frame[12..14].copy_from_slice(&self.socket.ethertype().to_be_bytes());
                frame
            })
            .collect()
    }

    fn serve(&mut self, to: Mac, shape: &Shape, stop: &AtomicBool) -> io::Result<()> {
        let reply = self.make(to, &shape.reply);
        let mut pending = 0;
        let mut silent = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let count = self.receive()?;
            if count == 0 {
                if pending > 0 && silent.elapsed() > PATIENCE / 2 {
                    pending = 0;
                }
                std::hint::spin_loop();
                continue;
            }
            silent = Instant::now();
            pending += self.packets(&shape.request);
            let asked = shape.request.frames.len();
            self.send_all(&reply, &shape.reply, pending / asked)?;
            pending %= asked;
        }
        Ok(())
    }

    fn ask(&mut self, to: Mac, shape: &Shape, depth: usize, time: Duration) -> io::Result<f64> {
        let request = self.make(to, &shape.request);
        let begun = Instant::now();
        let (mut ios, mut pending) = (0_u64, 0);
        let mut silent = begun;
        self.send_all(&request, &shape.request, depth)?;
        while begun.elapsed() < time {
            let count = self.receive()?;
            if count == 0 {
                if silent.elapsed() > PATIENCE {
                    pending = 0;
                    silent = Instant::now();
                    self.send_all(&request, &shape.request, depth)?;
                }
                std::hint::spin_loop();
                continue;
            }
            silent = Instant::now();
            pending += self.packets(&shape.reply);
            let done = pending / shape.reply.frames.len();
            pending %= shape.reply.frames.len();
            ios += done as u64;
            self.send_all(&request, &shape.request, done)?;
        }
        Ok(ios as f64 / begun.elapsed().as_secs_f64())
    }
}
