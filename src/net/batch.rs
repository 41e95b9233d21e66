//! Buffers of many frames: what one system call received, and what the next will send.

use super::ring::Held;
use super::{BATCH_FRAMES, ETHERNET_HEADER_LEN};
use crate::wire::{Mac, Outgoing, Shared, Tail};
use std::io::IoSlice;

/// The most frames an [`Outbox`] holds.
pub const OUTBOX_FRAMES: usize = 4 * BATCH_FRAMES;
/// Octets from which on an [`Outbox`] is full: more would be out of the processor's nearest caches by the
/// time they are sent.
const OUTBOX_BYTES: usize = 256 << 10;

/// The most pieces of a frame: of more the kernel would have to keep a list.
pub(super) const MAX_PIECES: usize = 4;
/// How many of the last frames are looked at for one that a packet may share.
const LOOK_BACK: usize = 16;

/// A received frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Whom it was sent to: this station or a group.
    pub destination: Mac,
    /// Who says to have sent it.
    pub source: Mac,
    /// What is behind the Ethernet header, with the padding of a short frame.
    pub payload: &'a [u8],
    /// All octets, Ethernet header included.
    pub bytes: &'a [u8],
}

/// Room for [`BATCH_FRAMES`] received frames.
#[derive(Debug)]
pub struct Inbox {
    bytes: Vec<u8>,
    slot: usize,
    lengths: Vec<usize>,
    /// How many frames to ask for next: about as many as came last.
    want: usize,
    /// Frames that are where the kernel has put them.
    held: Held,
}

/// The least that is asked for at a time.
const LEAST_WANTED: usize = 4;

impl Inbox {
    /// An inbox for frames of up to `mtu` octets behind the Ethernet header; longer ones are
    /// dropped and counted when they arrive.
    pub fn new(mtu: u16) -> Self {
        let slot = usize::from(mtu) + ETHERNET_HEADER_LEN;
        Self {
            bytes: vec![0; slot * BATCH_FRAMES],
            slot,
            lengths: Vec::with_capacity(BATCH_FRAMES),
            want: LEAST_WANTED,
            held: Held::default(),
        }
    }

    /// How many frames it holds, malformed ones included.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// The frames in the order of their arrival. What is shorter than an Ethernet header is left out.
    pub fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        (0..self.lengths.len()).filter_map(|at| self.frame(at))
    }

    fn frame(&self, at: usize) -> Option<Frame<'_>> {
        let bytes = match self.held.frame(at) {
            Some(bytes) => bytes,
            None => self
                .bytes
                .get(at * self.slot..(at + 1) * self.slot)?
                .get(..self.lengths[at])?,
        };
        let (destination, rest) = bytes.split_first_chunk()?;
        let (source, _) = rest.split_first_chunk()?;
        let payload = bytes.get(ETHERNET_HEADER_LEN..)?;
        Some(Frame {
            destination: Mac(*destination),
            source: Mac(*source),
            payload,
            bytes,
        })
    }

    /// Whether as many came as were asked for: then more may wait.
    pub fn is_full(&self) -> bool {
        self.lengths.len() >= self.want
    }

    /// Empties it: the receive buffer, cut into slots of the returned size, how many frames to ask for, and
    /// the list of lengths to fill.
    pub(super) fn parts(&mut self) -> (&mut [u8], usize, usize, &mut Vec<usize>) {
        self.want = (self.lengths.len() * 2).clamp(LEAST_WANTED, BATCH_FRAMES);
        self.lengths.clear();
        self.held.release();
        (&mut self.bytes, self.slot, self.want, &mut self.lengths)
    }

    /// Empties it, to be filled from a ring.
    pub(super) fn ring_parts(&mut self) -> (&mut Held, &mut Vec<usize>) {
        self.lengths.clear();
        self.want = BATCH_FRAMES;
        (&mut self.held, &mut self.lengths)
    }

    /// Whether a length stands for a frame that did not fit.
    pub(super) fn is_oversized(&self, len: usize) -> bool {
        len > self.slot
    }

    pub(super) fn lengths(&self) -> &[usize] {
        &self.lengths
    }
}

/// Frames that wait to be sent, in order, each with room for its Ethernet header in front.
///
/// Source address and EtherType are the sending socket's and are written when it sends.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    frames: Vec<Waiting>,
    /// Octets of all of them.
    octets: usize,
    /// How many frames, from the front, are sent already.
    sent: usize,
}

/// A frame in an outbox.
#[derive(Debug)]
struct Waiting {
    destination: Mac,
    shared: Shared,
    octets: usize,
    /// Its first and last piece, and how many there are.
    first: usize,
    last: usize,
    pieces: usize,
}

/// Some octets of a frame.
#[derive(Debug)]
struct Piece {
    /// Where they begin and end in the outbox's bytes.
    start: usize,
    end: usize,
    /// What follows there, which is somewhere else.
    tail: Option<Tail>,
    /// The frame's next piece.
    next: Option<usize>,
}

impl Piece {
    fn len(&self) -> usize {
        self.end - self.start + self.tail.as_ref().map_or(0, |tail| tail.bytes().len())
    }
}

impl Outbox {
    /// An empty outbox.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many frames wait.
    pub fn len(&self) -> usize {
        self.frames.len() - self.sent
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it takes no more before some are sent.
    pub fn is_full(&self) -> bool {
        self.frames.len() >= OUTBOX_FRAMES || self.octets >= OUTBOX_BYTES
    }

    /// Appends a frame of these octets (without an Ethernet header); `false` if it is full.
    pub fn push(&mut self, destination: Mac, frame: &[u8]) -> bool {
        self.push_with(|bytes| {
            bytes.extend_from_slice(frame);
            Some(destination)
        })
    }

    /// Lets `emit` append one frame (without an Ethernet header) and say to whom it goes; `false`
    /// if it had none or the outbox is full.
    ///
    /// `emit` may only append: it is handed the buffer that earlier frames are in.
    pub fn push_with(&mut self, emit: impl FnOnce(&mut Vec<u8>) -> Option<Mac>) -> bool {
        self.push_parts(|bytes, _| Some(Outgoing::alone(emit(bytes)?.into())))
    }

    /// As [`Self::push_with`], where `emit` may leave the end where it is, and what it gives may join one of the
    /// last frames with the same destination.
    pub fn push_parts(
        &mut self,
        emit: impl FnOnce(&mut Vec<u8>, &mut Option<Tail>) -> Option<Outgoing>,
    ) -> bool {
        if self.is_full() {
            return false;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; ETHERNET_HEADER_LEN]);
        let mut tail = None;
        let Some(outgoing) = emit(&mut self.bytes, &mut tail) else {
            self.bytes.truncate(start);
            return false;
        };
        let destination = outgoing.hop.mac;
        let mut piece = Piece {
            start,
            end: self.bytes.len(),
            tail,
            next: None,
        };
        let shared = Shared::new(piece.len() - ETHERNET_HEADER_LEN, outgoing);
        self.octets += shared.octets();
        let before = self.frames[self.sent..].iter_mut().rev().take(LOOK_BACK);
        let found = before
            .filter(|frame| outgoing.shared_bytes > 0 && frame.destination == destination)
            .take(1)
            .find_map(|frame| Some((frame.shared.with(shared)?, frame)))
            .filter(|(_, frame)| frame.pieces < MAX_PIECES);
        if let Some((both, frame)) = found {
            frame.shared = both;
            frame.octets += shared.octets();
            let next = self.pieces.len();
            let last = &mut self.pieces[frame.last];
            if last.end == start && last.tail.is_none() {
                self.bytes.copy_within(start + ETHERNET_HEADER_LEN.., start);
                self.bytes.truncate(piece.end - ETHERNET_HEADER_LEN);
                last.end = self.bytes.len();
                last.tail = piece.tail;
                return true;
            }
            piece.start += ETHERNET_HEADER_LEN;
            last.next = Some(next);
            frame.last = next;
            frame.pieces += 1;
            self.pieces.push(piece);
            return true;
        }
        self.bytes[start..start + 6].copy_from_slice(&destination.0);
        self.octets += ETHERNET_HEADER_LEN;
        self.frames.push(Waiting {
            destination,
            shared,
            octets: piece.len(),
            first: self.pieces.len(),
            last: self.pieces.len(),
            pieces: 1,
        });
        self.pieces.push(piece);
        true
    }

    /// Drops what waits.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.pieces.clear();
        self.frames.clear();
        self.octets = 0;
        self.sent = 0;
    }

    /// Writes source address and EtherType into every waiting frame.
    pub(super) fn address(&mut self, source: Mac, ethertype: u16) {
        for frame in &self.frames[self.sent..] {
            let start = self.pieces[frame.first].start;
            self.bytes[start + 6..start + 12].copy_from_slice(&source.0);
            self.bytes[start + 12..start + 14].copy_from_slice(&ethertype.to_be_bytes());
        }
    }

    /// The next waiting frames, as many as there is room for: fills `parts` with what they consist of and
    /// `ends` with where in `parts` each of them ends, and returns how many.
    pub(super) fn front<'a>(&'a self, parts: &mut [IoSlice<'a>], ends: &mut [usize]) -> usize {
        let mut used = 0;
        let waiting = &self.frames[self.sent..];
        for (count, (frame, end)) in waiting.iter().zip(&mut *ends).enumerate() {
            if used + 2 * frame.pieces > parts.len() {
                return count;
            }
            let mut next = Some(frame.first);
            while let Some(piece) = next.map(|at| &self.pieces[at]) {
                parts[used] = IoSlice::new(&self.bytes[piece.start..piece.end]);
                used += 1;
                if let Some(tail) = &piece.tail {
                    parts[used] = IoSlice::new(tail.bytes());
                    used += 1;
                }
                next = piece.next;
            }
            *end = used;
        }
        waiting.len().min(ends.len())
    }

    /// Octets of the first waiting frame, Ethernet header included.
    pub(super) fn front_len(&self) -> usize {
        self.frames.get(self.sent).map_or(0, |frame| frame.octets)
    }

    /// Takes `count` frames off the front; returns their octets.
    pub(super) fn advance(&mut self, count: usize) -> usize {
        let gone = &self.frames[self.sent..self.sent + count];
        let octets = gone.iter().map(|frame| frame.octets).sum();
        self.sent += count;
        if self.is_empty() {
            self.clear();
        }
        octets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::MAX_SHARED_PACKETS;

    const THERE: Mac = Mac([2, 0, 0, 0, 0, 9]);
    const HERE: Mac = Mac([2, 0, 0, 0, 0, 1]);

    /// What is to be sent, frame by frame.
    fn front(outbox: &Outbox) -> Vec<Vec<u8>> {
        let mut parts = [IoSlice::new(&[]); 64];
        let mut ends = [0; 8];
        let count = outbox.front(&mut parts, &mut ends);
        let starts = [0].into_iter().chain(ends);
        let borders = starts.zip(ends).take(count);
        borders
            .map(|(start, end)| parts[start..end].iter().flat_map(|p| p.to_vec()).collect())
            .collect()
    }

    /// A packet of `len` octets that may share a frame of `most`.
    fn push(outbox: &mut Outbox, to: Mac, len: u8, most: u16) {
        assert!(outbox.push_parts(|bytes, _| {
            bytes.resize(bytes.len() + usize::from(len), len);
            Some(Outgoing {
                hop: to.into(),
                shared_bytes: most,
            })
        }));
    }

    #[test]
    fn packets_share_a_frame_as_far_as_all_of_them_may() {
        let mut outbox = Outbox::new();
        for (len, most) in [
            (10, 30),
            (11, 30),
            (12, 30),
            (13, 25),
            (14, 0),
            (15, 90),
            (16, 90),
        ] {
            push(&mut outbox, THERE, len, most);
        }
        let bodies: Vec<_> = front(&outbox)
            .into_iter()
            .map(|f| f[ETHERNET_HEADER_LEN..].to_vec())
            .collect();
        let of = |lens: &[u8]| -> Vec<u8> {
            lens.iter()
                .flat_map(|n| vec![*n; usize::from(*n)])
                .collect()
        };
        assert_eq!(
            bodies,
            [of(&[10, 11]), of(&[12, 13]), of(&[14]), of(&[15, 16])]
        );
        assert_eq!(outbox.advance(2), 2 * 14 + 21 + 25);
        for _ in 0..MAX_SHARED_PACKETS {
            push(&mut outbox, THERE, 1, 90);
        }
        assert_eq!(outbox.len(), 3, "not more than {MAX_SHARED_PACKETS} in one");
    }

    #[test]
    fn packets_for_several_are_together_by_destination_and_in_order() {
        let message = std::sync::Arc::new((0..100).collect::<Vec<u8>>());
        let other = Mac([2, 0, 0, 0, 0, 8]);
        let mut outbox = Outbox::new();
        for n in 0..6 {
            assert!(outbox.push_parts(|bytes, tail| {
                bytes.push(n);
                *tail = Some(Tail::new(
                    &message,
                    usize::from(10 * n),
                    usize::from(10 * n) + 5,
                ));
                Some(Outgoing {
                    hop: if n % 2 == 0 { THERE } else { other }.into(),
                    shared_bytes: 1500,
                })
            }));
        }
        outbox.address(HERE, 0x88b6);
        let frames = front(&outbox);
        assert_eq!(frames.len(), 2);
        for (start, frame) in frames.iter().enumerate() {
            let numbers = [start, start + 2, start + 4];
            let expected: Vec<u8> = numbers
                .iter()
                .flat_map(|n| [&[*n as u8][..], &message[10 * n..10 * n + 5]].concat())
                .collect();
            assert_eq!(frame[ETHERNET_HEADER_LEN..], expected);
        }
        let octets = outbox.octets;
        assert_eq!(outbox.advance(2), octets);
        assert_eq!(std::sync::Arc::strong_count(&message), 1, "all are let go");
    }

    #[test]
    fn a_frame_gets_its_ethernet_header_in_front() {
        let mut outbox = Outbox::new();
        assert!(outbox.push(THERE, b"hello"));
        assert!(outbox.push(Mac::BROADCAST, b"all"));
        outbox.address(HERE, 0x88b5);
        assert_eq!(
            front(&outbox),
            [
                b"\x02\0\0\0\0\x09\x02\0\0\0\0\x01\x88\xb5hello".to_vec(),
                b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x01\x88\xb5all".to_vec()
            ]
        );
    }

    #[test]
    fn the_end_of_a_frame_may_be_elsewhere() {
        let message = std::sync::Arc::new(vec![7; 3000]);
        let mut outbox = Outbox::new();
        assert!(outbox.push_parts(|bytes, tail| {
            bytes.extend_from_slice(b"head");
            *tail = Some(Tail::new(&message, 100, 2100));
            Some(Outgoing::alone(THERE.into()))
        }));
        assert_eq!(outbox.front_len(), 14 + 4 + 2000);
        assert!(front(&outbox)[0].ends_with(&[b"head", &message[100..2100]].concat()));
        assert_eq!(outbox.advance(1), 2018);
        assert_eq!(std::sync::Arc::strong_count(&message), 1, "it is let go");
    }

    #[test]
    fn what_emits_nothing_leaves_nothing() {
        let mut outbox = Outbox::new();
        assert!(!outbox.push_with(|_| None));
        assert!(outbox.is_empty());
        assert!(outbox.bytes.is_empty());
    }

    #[test]
    fn sending_takes_frames_off_the_front_in_order() {
        let mut outbox = Outbox::new();
        for frame in [&b"a"[..], b"bb", b"ccc"] {
            assert!(outbox.push(THERE, frame));
        }
        assert_eq!(outbox.advance(1), 15);
        assert_eq!((outbox.len(), outbox.front_len()), (2, 16));
        assert!(front(&outbox)[0].ends_with(b"bb"));
        assert_eq!(outbox.advance(2), 33);
        assert!(outbox.is_empty());
        assert!(outbox.bytes.is_empty(), "an empty outbox starts afresh");
    }

    #[test]
    fn a_full_outbox_takes_no_more_until_it_is_sent() {
        let mut outbox = Outbox::new();
        while outbox.push(THERE, b"x") {}
        assert_eq!(outbox.len(), OUTBOX_FRAMES);
        assert!(outbox.is_full());
        outbox.advance(OUTBOX_FRAMES);
        assert!(outbox.push(THERE, b"x"));
    }

    #[test]
    fn frames_too_short_for_a_header_or_too_long_for_a_slot_are_left_out() {
        let mut inbox = Inbox::new(4);
        let (bytes, slot, _, lengths) = inbox.parts();
        assert_eq!(slot, 18);
        bytes[2 * slot..2 * slot + 18].copy_from_slice(b"DDDDDDSSSSSS\x88\xb6abcd");
        lengths.extend([13, 19, 18]);
        assert!(inbox.is_oversized(19) && !inbox.is_oversized(18));
        let frames: Vec<_> = inbox.frames().collect();
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].destination, Mac(*b"DDDDDD"));
        assert_eq!(frames[0].source, Mac(*b"SSSSSS"));
        assert_eq!(frames[0].payload, b"abcd");
    }
}
