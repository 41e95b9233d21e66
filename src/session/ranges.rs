//! Sets of byte ranges of one message, and the message that grows out of its segments.

use smallvec::SmallVec;

use super::limits::MAX_SPANS;
use super::spares::Spares;
use crate::wire::DropReason;
use crate::wire::message::ByteRange;

/// Sorted, disjoint spans that do not touch: `start..end`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ranges {
    /// Mostly one, and then without an allocation.
    spans: SmallVec<[(u32, u32); 2]>,
}

impl Ranges {
    /// Becomes everything from 0 to `len`.
    pub(super) fn set_whole(&mut self, len: u32) {
        self.spans.clear();
        if len > 0 {
            self.spans.push((0, len));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.spans.clear();
    }

    pub(super) fn span_count(&self) -> usize {
        self.spans.len()
    }

    /// Where the last span ends.
    pub(super) fn end(&self) -> u32 {
        self.spans.last().map_or(0, |s| s.1)
    }

    /// Whether the set is exactly one span from 0, or empty.
    pub(super) fn is_prefix(&self) -> bool {
        match self.spans[..] {
            [] => true,
            [(start, _)] => start == 0,
            _ => false,
        }
    }

    /// Whether everything from 0 to `len` is in the set.
    pub(super) fn covers(&self, len: u32) -> bool {
        len == 0 || self.spans.first().is_some_and(|s| s.0 == 0 && s.1 >= len)
    }

    /// Adds `start..end`.
    pub(super) fn insert(&mut self, start: u32, end: u32) {
        if start >= end {
            return;
        }
        if let Some(last) = self.spans.last_mut()
            && last.0 <= start
            && start <= last.1
        {
            last.1 = last.1.max(end);
            return;
        }
        let first = self.spans.partition_point(|s| s.1 < start);
        let after = self.spans.partition_point(|s| s.0 <= end);
        if first == after {
            self.spans.insert(first, (start, end));
        } else {
            let merged = (
                start.min(self.spans[first].0),
                end.max(self.spans[after - 1].1),
            );
            self.spans[first] = merged;
            self.spans.drain(first + 1..after);
        }
    }

    /// The parts of `start..end` that are in the set.
    pub(super) fn overlaps(&self, start: u32, end: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
        let first = self.spans.partition_point(|s| s.1 <= start);
        self.spans[first..]
            .iter()
            .take_while(move |s| s.0 < end)
            .map(move |s| (s.0.max(start), s.1.min(end)))
    }

    /// The parts of `0..len` that are not in the set.
    pub(super) fn missing(&self, len: u32) -> impl Iterator<Item = ByteRange> + '_ {
        let starts = std::iter::once(0).chain(self.spans.iter().map(|s| s.1));
        let ends = self.spans.iter().map(|s| s.0).chain(std::iter::once(len));
        starts
            .zip(ends)
            .map(move |(from, to)| (from, to.min(len)))
            .filter(|(from, to)| from < to)
            .map(|(from, to)| ByteRange {
                offset: from,
                len: to - from,
            })
    }

    /// Takes at most `max` bytes from the front: one span's first part.
    pub(super) fn take_front(&mut self, max: u32) -> Option<(u32, u32)> {
        let first = self.spans.first_mut()?;
        let (start, end) = *first;
        if end - start > max {
            first.0 = start + max;
            return Some((start, start + max));
        }
        self.spans.remove(0);
        Some((start, end))
    }
}

/// A message that grows out of its segments, whatever their sizes and order.
#[derive(Debug)]
pub(super) struct Assembly {
    len: u32,
    have: Ranges,
    bytes: Vec<u8>,
}

impl Assembly {
    /// An empty message of `len` bytes. The memory is reserved: the caller has charged it.
    pub(super) fn new(len: u32, spares: &mut Spares) -> Self {
        Self {
            len,
            have: Ranges::default(),
            bytes: spares.empty(len as usize),
        }
    }

    pub(super) const fn len(&self) -> u32 {
        self.len
    }

    /// Adds a segment; returns whether it brought anything new. Bytes that are here already must
    /// be the same.
    pub(super) fn insert(&mut self, offset: u32, payload: &[u8]) -> Result<bool, DropReason> {
        let (start, end) = (offset as usize, offset as usize + payload.len());
        if end > self.len as usize {
            return Err(DropReason::Inconsistent);
        }
        if start == self.bytes.len() {
            self.bytes.extend_from_slice(payload);
        } else {
            let mut known = 0;
            for (from, to) in self.have.overlaps(offset, end as u32) {
                let (from, to) = (from as usize, to as usize);
                if self.bytes[from..to] != payload[from - start..to - start] {
                    return Err(DropReason::Inconsistent);
                }
                known += to - from;
            }
            if known == payload.len() {
                return Ok(false);
            }
            if self.have.span_count() >= MAX_SPANS && !self.touches(offset, end as u32) {
                return Err(DropReason::Full);
            }
            if end > self.bytes.len() {
                self.bytes.resize(end, 0);
            }
            self.bytes[start..end].copy_from_slice(payload);
        }
        self.have.insert(offset, end as u32);
        Ok(true)
    }

    fn touches(&self, start: u32, end: u32) -> bool {
        self.have
            .overlaps(start.saturating_sub(1), end.saturating_add(1))
            .next()
            .is_some()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.have.covers(self.len)
    }

    /// Whether bytes are missing in front of bytes that are here.
    pub(super) fn has_gap(&self) -> bool {
        !self.have.is_prefix()
    }

    /// How many bytes are missing in front of bytes that are here.
    pub(super) fn gap_bytes(&self) -> u64 {
        let gaps = self.have.missing(self.have.end());
        gaps.map(|gap| u64::from(gap.len)).sum()
    }

    /// What is missing in front of bytes that are here.
    pub(super) fn gaps(&self, max: usize) -> Vec<ByteRange> {
        self.have.missing(self.have.end()).take(max).collect()
    }

    /// What is missing.
    pub(super) fn missing(&self, max: usize) -> Vec<ByteRange> {
        self.have.missing(self.len).take(max).collect()
    }

    /// The message, once complete; before, what of it is here.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_agree_with_a_set_of_bytes(
            spans in proptest::collection::vec((0_u32..64, 0_u32..16), 0..20),
            take in 1_u32..9,
        ) {
            let mut ranges = Ranges::default();
            let mut model = [false; 80];
            for (start, len) in spans {
                ranges.insert(start, start + len);
                model[start as usize..(start + len) as usize].fill(true);
                let missing: Vec<_> = ranges
                    .missing(80)
                    .flat_map(|r| r.offset..r.offset + r.len)
                    .collect();
                let expected: Vec<_> =
                    (0..80).filter(|i| !model[*i as usize]).collect();
                prop_assert_eq!(missing, expected);
                let overlap: u32 = ranges.overlaps(10, 40).map(|(a, b)| b - a).sum();
                let expected = model[10..40].iter().filter(|b| **b).count();
                prop_assert_eq!(overlap as usize, expected);
            }
            let mut taken = Vec::new();
            while let Some((start, end)) = ranges.take_front(take) {
                prop_assert!(end - start <= take && start < end);
                taken.extend(start..end);
            }
            let expected: Vec<_> = (0..80).filter(|i| model[*i as usize]).collect();
            prop_assert_eq!(taken, expected);
        }

        #[test]
        fn a_message_grows_out_of_any_segments(
            cuts in proptest::collection::vec((0_usize..300, 1_usize..90), 0..60),
        ) {
            let body: Vec<u8> = (0..300).map(|i| (i * 7) as u8).collect();
            let mut assembly = Assembly::new(300, &mut Spares::default());
            for (at, len) in cuts {
                let end = (at + len).min(300);
                assembly.insert(at as u32, &body[at..end]).unwrap();
            }
            for range in assembly.missing(usize::MAX) {
                let (from, to) = (range.offset as usize, (range.offset + range.len) as usize);
                prop_assert!(assembly.insert(range.offset, &body[from..to]).unwrap());
            }
            prop_assert!(assembly.is_complete() && !assembly.has_gap());
            prop_assert_eq!(assembly.into_bytes(), body);
        }
    }

    #[test]
    fn contradicting_bytes_are_refused() {
        let mut assembly = Assembly::new(100, &mut Spares::default());
        assert_eq!(assembly.insert(10, &[1; 20]), Ok(true));
        assert_eq!(assembly.insert(12, &[1; 5]), Ok(false));
        assert_eq!(assembly.insert(25, &[2; 10]), Err(DropReason::Inconsistent));
        assert_eq!(assembly.insert(95, &[2; 10]), Err(DropReason::Inconsistent));
        assert!(assembly.has_gap());
        assert_eq!(assembly.insert(0, &[1; 15]), Ok(true));
        assert!(!assembly.has_gap());
    }

    #[test]
    fn a_message_in_crumbs_is_bounded() {
        let mut assembly = Assembly::new(1 << 20, &mut Spares::default());
        let mut refused = 0;
        for at in (0..1 << 20).step_by(64) {
            refused += u32::from(assembly.insert(at, &[1]) == Err(DropReason::Full));
        }
        assert!(refused > 0 && assembly.have.span_count() == MAX_SPANS);
    }
}
