//! Buffers of many frames: what one system call received, and what the next will send.

use super::ring::Held;
use super::{BATCH_FRAMES, ETHERNET_HEADER_LEN};
use crate::wire::{Mac, Tail};
use std::io::IoSlice;

/// The most frames an [`Outbox`] holds.
pub const OUTBOX_FRAMES: usize = 4 * BATCH_FRAMES;
/// Octets from which on an [`Outbox`] is full: more would be out of the processor's nearest caches by the
/// time they are sent.
const OUTBOX_BYTES: usize = 256 << 10;

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
        let mut held = self.held.frames().peekable();
        // Where frames are held, the lengths are theirs.
        let own = if held.peek().is_some() {
            0
        } else {
            self.lengths.len()
        };
        self.bytes
            .chunks_exact(self.slot)
            .zip(&self.lengths[..own])
            .filter_map(|(slot, &len)| slot.get(..len))
            .chain(held)
            .filter_map(|bytes| {
                let (destination, rest) = bytes.split_first_chunk()?;
                let (source, _) = rest.split_first_chunk()?;
                let payload = bytes.get(ETHERNET_HEADER_LEN..)?;
                Some(Frame {
                    destination: Mac(*destination),
                    source: Mac(*source),
                    payload,
                    bytes,
                })
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
    frames: Vec<Waiting>,
    /// Octets of all of them.
    octets: usize,
    /// How many frames, from the front, are sent already.
    sent: usize,
}

/// A frame in an outbox.
#[derive(Debug)]
struct Waiting {
    /// Where it begins and ends in the outbox's bytes.
    start: usize,
    end: usize,
    /// What follows there, which is somewhere else.
    tail: Option<Tail>,
}

impl Waiting {
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
        self.push_parts(|bytes, _| emit(bytes))
    }

    /// As [`Self::push_with`], where `emit` may leave the end of the frame where it is.
    pub fn push_parts(
        &mut self,
        emit: impl FnOnce(&mut Vec<u8>, &mut Option<Tail>) -> Option<Mac>,
    ) -> bool {
        if self.is_full() {
            return false;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; ETHERNET_HEADER_LEN]);
        let mut tail = None;
        let Some(destination) = emit(&mut self.bytes, &mut tail) else {
            self.bytes.truncate(start);
            return false;
        };
        self.bytes[start..start + 6].copy_from_slice(&destination.0);
        let frame = Waiting {
            start,
            end: self.bytes.len(),
            tail,
        };
        self.octets += frame.len();
        self.frames.push(frame);
        true
    }

    /// Drops what waits.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.frames.clear();
        self.octets = 0;
        self.sent = 0;
    }

    /// Writes source address and EtherType into every waiting frame.
    pub(super) fn address(&mut self, source: Mac, ethertype: u16) {
        for frame in &self.frames[self.sent..] {
            let start = frame.start;
            self.bytes[start + 6..start + 12].copy_from_slice(&source.0);
            self.bytes[start + 12..start + 14].copy_from_slice(&ethertype.to_be_bytes());
        }
    }

    /// The next waiting frames, at most `frames.len()`, each in two parts of which the second may be empty:
    /// fills `frames` from the front and returns how many.
    pub(super) fn front<'a>(&'a self, frames: &mut [[IoSlice<'a>; 2]]) -> usize {
        let waiting = &self.frames[self.sent..];
        for (parts, frame) in frames.iter_mut().zip(waiting) {
            let tail = frame.tail.as_ref().map_or(&[][..], Tail::bytes);
            *parts = [
                IoSlice::new(&self.bytes[frame.start..frame.end]),
                IoSlice::new(tail),
            ];
        }
        waiting.len().min(frames.len())
    }

    /// Octets of the first waiting frame, Ethernet header included.
    pub(super) fn front_len(&self) -> usize {
        self.frames.get(self.sent).map_or(0, Waiting::len)
    }

    /// Takes `count` frames off the front; returns their octets.
    pub(super) fn advance(&mut self, count: usize) -> usize {
        let gone = &self.frames[self.sent..self.sent + count];
        let octets = gone.iter().map(Waiting::len).sum();
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

    const THERE: Mac = Mac([2, 0, 0, 0, 0, 9]);
    const HERE: Mac = Mac([2, 0, 0, 0, 0, 1]);

    #[test]
    fn a_frame_gets_its_ethernet_header_in_front() {
        let mut outbox = Outbox::new();
        assert!(outbox.push(THERE, b"hello"));
        assert!(outbox.push(Mac::BROADCAST, b"all"));
        outbox.address(HERE, 0x88b5);
        let mut slices = [[IoSlice::new(&[]); 2]; 4];
        assert_eq!(outbox.front(&mut slices), 2);
        assert_eq!(
            &*slices[0][0],
            b"\x02\0\0\0\0\x09\x02\0\0\0\0\x01\x88\xb5hello"
        );
        assert_eq!(
            &*slices[1][0],
            b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x01\x88\xb5all"
        );
    }

    #[test]
    fn the_end_of_a_frame_may_be_elsewhere() {
        let message = std::sync::Arc::new(vec![7; 3000]);
        let mut outbox = Outbox::new();
        assert!(outbox.push_parts(|bytes, tail| {
            bytes.extend_from_slice(b"head");
            *tail = Some(Tail::new(&message, 100, 2100));
            Some(THERE)
        }));
        assert_eq!(outbox.front_len(), 14 + 4 + 2000);
        let mut slices = [[IoSlice::new(&[]); 2]; 1];
        assert_eq!(outbox.front(&mut slices), 1);
        assert!(slices[0][0].ends_with(b"head"));
        assert_eq!(&*slices[0][1], &message[100..2100]);
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
        let mut slices = [[IoSlice::new(&[]); 2]; 1];
        assert_eq!(outbox.front(&mut slices), 1);
        assert!(slices[0][0].ends_with(b"bb"));
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
