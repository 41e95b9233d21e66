//! Frames that the kernel puts into memory shared with us (a TPACKET_V2 ring): seen without a system call,
//! and read where they are.
//!
//! A slot belongs to the kernel or to us, as its status word says. A [`Held`] keeps the slots of one batch
//! until it is emptied, and the memory as long as it has any.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::libc;
use socket2::Socket;

use super::{BATCH_FRAMES, ETHERNET_HEADER_LEN, raw};
use crate::caches::{LINE_BYTES, fetch};

/// Octets in front of the Ethernet header in a slot: so placed that what follows that header is aligned.
const HEADROOM: usize =
    (libc::TPACKET2_HDRLEN + 16).next_multiple_of(libc::TPACKET_ALIGNMENT) - ETHERNET_HEADER_LEN;
/// The least octets of the pieces that the memory consists of.
const BLOCK_BYTES: usize = 64 << 10;

/// A ring of slots, each for one frame.
#[derive(Debug)]
pub(super) struct Ring {
    map: Arc<MmapRaw>,
    slot_bytes: usize,
    slots_per_block: usize,
    block_bytes: usize,
    slots: usize,
    /// The slot that the kernel fills next, and where that is.
    next: usize,
    at: usize,
}

impl Ring {
    /// Gives a socket that is not bound yet a ring of about `bytes` octets for frames of up to `mtu` octets
    /// behind their Ethernet header.
    ///
    /// # Errors
    /// The kernel's, `ENOMEM` among them.
    pub(super) fn new(socket: &Socket, mtu: u16, bytes: usize) -> io::Result<Self> {
        let frame = HEADROOM + ETHERNET_HEADER_LEN + usize::from(mtu);
        let slot_bytes = frame.next_multiple_of(LINE_BYTES);
        let block_bytes = BLOCK_BYTES.max(slot_bytes.next_power_of_two());
        let slots_per_block = block_bytes / slot_bytes;
        let blocks = (bytes / block_bytes).max(1);
        let slots = slots_per_block * blocks;
        raw::use_ring(socket, block_bytes, blocks, slot_bytes, slots)?;
        let map = MmapOptions::new()
            .len(block_bytes * blocks)
            .map_raw(socket.as_raw_fd())?;
        Ok(Self {
            map: Arc::new(map),
            slot_bytes,
            slots_per_block,
            block_bytes,
            slots,
            next: 0,
            at: 0,
        })
    }

    /// Empties `held` and takes what has come, at most [`BATCH_FRAMES`] frames; appends the length of each
    /// to `lengths`, [`usize::MAX`] for one that was too long for its slot.
    pub(super) fn receive(&mut self, held: &mut Held, lengths: &mut Vec<usize>) -> usize {
        held.release();
        let mut count = 0;
        while count < BATCH_FRAMES {
            let at = self.at;
            if status(&self.map, at).load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
                break;
            }
            // SAFETY: `at` is the beginning of a slot inside the mapping; the kernel has handed it to us
            // with its header written, as the status, read with acquire, says.
            let header: libc::tpacket2_hdr =
                unsafe { ptr::read_unaligned(self.map.as_ptr().add(at).cast()) };
            let (start, len) = (usize::from(header.tp_mac), header.tp_snaplen as usize);
            let whole = header.tp_snaplen == header.tp_len
                && start >= size_of::<libc::tpacket2_hdr>()
                && start + len <= self.slot_bytes;
            let slot = Slot {
                at,
                start: at + start,
                len: if whole { len } else { 0 },
            };
            if count == 0 {
                slot.fetch(&self.map);
            }
            held.slots.push(slot);
            lengths.push(if whole { len } else { usize::MAX });
            self.next = (self.next + 1) % self.slots;
            self.at = self.next / self.slots_per_block * self.block_bytes
                + self.next % self.slots_per_block * self.slot_bytes;
            count += 1;
        }
        if count > 0 {
            held.map = Some(Arc::clone(&self.map));
        }
        count
    }
}

/// The status word of the slot that begins at `at`.
fn status(map: &MmapRaw, at: usize) -> &AtomicU32 {
    assert!(at + size_of::<libc::tpacket2_hdr>() <= map.len());
    // SAFETY: the word is inside the mapping, which outlives the reference, and aligned; the kernel and we
    // both access it as one word only.
    unsafe { AtomicU32::from_ptr(map.as_mut_ptr().add(at).cast()) }
}

/// A slot that is ours.
#[derive(Debug)]
struct Slot {
    at: usize,
    /// Where its frame begins; 0 octets of it where it did not fit.
    start: usize,
    len: usize,
}

impl Slot {
    /// Has the processor fetch the frame, which another one has written: all of it at a time, instead of piece
    /// by piece when it is read.
    fn fetch(&self, map: &MmapRaw) {
        fetch(map.as_ptr().wrapping_add(self.start), self.len);
    }
}

/// The slots of one batch.
#[derive(Debug, Default)]
pub(super) struct Held {
    map: Option<Arc<MmapRaw>>,
    slots: Vec<Slot>,
}

impl Held {
    /// A frame of the batch, Ethernet header included; nothing where none is held. The processor is told to
    /// fetch the next one.
    pub(super) fn frame(&self, at: usize) -> Option<&[u8]> {
        let map = self.map.as_ref()?;
        if let Some(next) = self.slots.get(at + 1) {
            next.fetch(map);
        }
        let slot = self.slots.get(at)?;
        // SAFETY: the octets are inside the mapping (the slot is, and the frame was checked to be inside its
        // slot), which `self` keeps; nobody writes them while the slot is ours, which it is until `release`,
        // for which `self` must not be borrowed.
        Some(unsafe { std::slice::from_raw_parts(map.as_ptr().add(slot.start), slot.len) })
    }

    /// Gives all slots back to the kernel.
    pub(super) fn release(&mut self) {
        if let Some(map) = self.map.take() {
            for slot in self.slots.drain(..) {
                status(&map, slot.at).store(libc::TP_STATUS_KERNEL, Ordering::Release);
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}
