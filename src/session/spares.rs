//! Large buffers that were used and will be used again: a message on the hot path does not ask the
//! allocator, and does not fault fresh pages in.

use std::collections::VecDeque;

/// Shorter buffers are not kept: the allocator is as quick for them.
const LEAST_BYTES: usize = 1024;
/// The most bytes that are kept.
const MOST_BYTES: usize = 8 << 20;
/// The most buffers that are kept.
const MOST_BUFFERS: usize = 512;
/// How many of the last buffers are looked at for one that fits.
const LOOKED_AT: usize = 8;

/// Buffers that wait to be used again, a bounded number of bytes: those that were used last.
#[derive(Debug, Default)]
pub(super) struct Spares {
    buffers: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Spares {
    /// One with room for `len` bytes, whatever it holds, and not much larger.
    fn find(&mut self, len: usize) -> Option<Vec<u8>> {
        if len < LEAST_BYTES {
            return None;
        }
        let most = len.saturating_mul(4).saturating_add(4096);
        let from = self.buffers.len().saturating_sub(LOOKED_AT);
        let fits = |buffer: &Vec<u8>| (len..=most).contains(&buffer.capacity());
        let at = from + self.buffers.range(from..).rposition(fits)?;
        let buffer = self.buffers.swap_remove_back(at)?;
        self.bytes -= buffer.capacity();
        Some(buffer)
    }

    /// An empty buffer with room for `len` bytes.
    pub(super) fn empty(&mut self, len: usize) -> Vec<u8> {
        match self.find(len) {
            Some(mut buffer) => {
                buffer.clear();
                buffer
            }
            None => Vec::with_capacity(len),
        }
    }

    /// A buffer of `len` bytes to be written over: what it holds means nothing.
    pub(super) fn filled(&mut self, len: usize) -> Vec<u8> {
        let mut buffer = self.find(len).unwrap_or_default();
        buffer.resize(len, 0);
        buffer
    }

    /// A copy of `bytes`.
    pub(super) fn copy(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut buffer = self.empty(bytes.len());
        buffer.extend_from_slice(bytes);
        buffer
    }

    /// Keeps a buffer that is not needed any more, instead of others that have not been needed for longer, or drops it.
    pub(super) fn give(&mut self, buffer: Vec<u8>) {
        let bytes = buffer.capacity();
        if !(LEAST_BYTES..=MOST_BYTES).contains(&bytes) {
            return;
        }
        while self.bytes + bytes > MOST_BYTES || self.buffers.len() >= MOST_BUFFERS {
            let oldest = self.buffers.pop_front();
            self.bytes -= oldest.map_or(0, |oldest| oldest.capacity());
        }
        self.bytes += bytes;
        self.buffers.push_back(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_where_it_fits() {
        let mut spares = Spares::default();
        let first = spares.copy(&[7; 4096]);
        let place = first.as_ptr();
        spares.give(first);
        assert!(spares.empty(32).capacity() < 4096, "it would be wasted");
        assert!(spares.empty(1 << 20).capacity() >= 1 << 20);
        let again = spares.filled(4000);
        assert_eq!((again.len(), again.as_ptr()), (4000, place));
        spares.give(again);
        assert!(spares.empty(4096).is_empty());
        assert_eq!(spares.bytes, 0);
    }

    #[test]
    fn what_was_large_makes_way_for_what_is_used_now() {
        let mut spares = Spares::default();
        for _ in 0..MOST_BYTES >> 20 {
            spares.give(vec![0; 1 << 20]);
        }
        let small = vec![0; 4096];
        let place = small.as_ptr();
        spares.give(small);
        let again = spares.empty(4096);
        assert_eq!(again.as_ptr(), place);
        assert!(spares.bytes <= MOST_BYTES);
        spares.give(vec![0; MOST_BYTES + 1]);
        assert!(!spares.buffers.is_empty(), "too large to make way for");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut spares = Spares::default();
        for _ in 0..2 * MOST_BUFFERS {
            spares.give(vec![0; 4096]);
        }
        assert_eq!(spares.buffers.len(), MOST_BUFFERS);
        let mut spares = Spares::default();
        for _ in 0..100 {
            spares.give(vec![0; 1 << 20]);
        }
        assert_eq!(spares.bytes, MOST_BYTES);
        assert!(spares.filled(1 << 20).capacity() >= 1 << 20);
        let kept = spares.buffers.len();
        spares.give(Vec::new());
        assert_eq!(spares.buffers.len(), kept, "not worth it");
    }
}
