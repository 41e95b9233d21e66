//! Digests of parts of the table: what differs between two tables is found without reading either.
//!
//! Rows are dealt into parts by the XXH3-64 of their GUIDs, so that parts are even whatever the
//! GUIDs are. The table keeps the sums of the finest parts that pay for its size; those of coarser
//! parts are sums of these.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use super::Table;
use super::table::row_digest;
use crate::wire::Guid;
use crate::wire::message::{MAX_PART_LEVEL, Parts, TableDigestsRequest};

/// Bits of a part's number for each level.
const LEVEL_BITS: u8 = 4;
/// Rows of a part of the level that pays, on average, at most.
const PART_ROWS: usize = 4;

/// The level at which the parts of a table of so many rows have about four rows each or fewer.
pub fn part_level(row_count: usize) -> u8 {
    (0..MAX_PART_LEVEL)
        .find(|level| PART_ROWS << (LEVEL_BITS * level) >= row_count)
        .unwrap_or(MAX_PART_LEVEL)
}

/// The part of a level that a row lies in.
fn part_of(guid: Guid, level: u8) -> u16 {
    match level {
        0 => 0,
        level => (xxh3_64(&guid.0.to_be_bytes()) >> (64 - LEVEL_BITS * level)) as u16,
    }
}

impl Parts {
    /// The number of the part of a level that a row lies in.
    pub fn number_of(level: u8, guid: Guid) -> u16 {
        part_of(guid, level)
    }

    /// Whether a row lies in one of the parts.
    pub fn contain(&self, guid: Guid) -> bool {
        let part = || part_of(guid, self.level);
        self.level == 0 || self.numbers.binary_search(&part()).is_ok()
    }
}

/// Wrapping sums of row digests: of the whole table, and of its parts at one level.
#[derive(Debug, Clone)]
pub(super) struct Sums {
    total: u128,
    level: u8,
    parts: Vec<u64>,
}

impl Sums {
    /// Of no rows.
    pub(super) fn new() -> Self {
        Self::at(0)
    }

    /// Of no rows, at the finest level: for rows whose number is not known yet.
    pub(super) fn finest() -> Self {
        Self::at(MAX_PART_LEVEL)
    }

    fn at(level: u8) -> Self {
        Self {
            total: 0,
            level,
            parts: vec![0; 1 << (LEVEL_BITS * level)],
        }
    }

    /// The sum of all.
    pub(super) const fn total(&self) -> u128 {
        self.total
    }

    fn part(&mut self, guid: Guid) -> &mut u64 {
        let part = part_of(guid, self.level);
        &mut self.parts[usize::from(part)]
    }

    /// Adds a row by its digest.
    pub(super) fn add(&mut self, guid: Guid, digest: u128) {
        self.total = self.total.wrapping_add(digest);
        let part = self.part(guid);
        *part = part.wrapping_add(digest as u64);
    }

    /// Takes a row away by its digest.
    pub(super) fn subtract(&mut self, guid: Guid, digest: u128) {
        self.total = self.total.wrapping_sub(digest);
        let part = self.part(guid);
        *part = part.wrapping_sub(digest as u64);
    }

    /// Whether the parts are too large for so many rows.
    pub(super) fn is_coarse(&self, row_count: usize) -> bool {
        self.level < part_level(row_count)
    }

    /// Gives up parts that are finer than what pays for so many rows.
    pub(super) fn fit(&mut self, row_count: usize) {
        let level = part_level(row_count);
        if level < self.level {
            self.parts = (0..1_usize << (LEVEL_BITS * level))
                .map(|part| self.sum(level, part as u16))
                .collect();
            self.level = level;
        }
    }

    /// The sum of a part of this level or a coarser one.
    fn sum(&self, level: u8, part: u16) -> u64 {
        let finer = LEVEL_BITS * (self.level - level);
        let first = usize::from(part) << finer;
        let parts = &self.parts[first..first + (1 << finer)];
        parts.iter().fold(0, |sum, part| sum.wrapping_add(*part))
    }
}

impl Table {
    /// Sums at the level that pays now: the table has grown.
    pub(super) fn refine_sums(&mut self) {
        let mut sums = Sums::at(part_level(self.len()));
        for row in self.rows() {
            sums.add(row.guid, row_digest(row));
        }
        self.sums = sums;
    }

    /// The digests of the parts that parts of this table consist of.
    pub fn part_digests(&self, request: &TableDigestsRequest) -> Vec<u64> {
        let level = request.parts.level + request.depth;
        let finer = LEVEL_BITS * request.depth;
        let parts = request
            .parts
            .numbers
            .iter()
            .flat_map(|part| (0..1_u16 << finer).map(move |child| (part << finer) | child));
        if level <= self.sums.level {
            return parts.map(|part| self.sums.sum(level, part)).collect();
        }
        // The other table is larger, and cares for smaller parts than this one keeps.
        let mut sums: BTreeMap<u16, u64> = BTreeMap::new();
        for row in self.rows().filter(|row| request.parts.contain(row.guid)) {
            let sum = sums.entry(part_of(row.guid, level)).or_default();
            *sum = sum.wrapping_add(row_digest(row) as u64);
        }
        parts
            .map(|part| sums.get(&part).copied().unwrap_or(0))
            .collect()
    }

    /// The parts in which this table differs from another, by the digests that the other answered
    /// to `request`; `None` where they are not as many as were asked for.
    pub fn differing_parts(&self, request: &TableDigestsRequest, theirs: &[u64]) -> Option<Parts> {
        let ours = self.part_digests(request);
        if ours.len() != theirs.len() {
            return None;
        }
        let finer = LEVEL_BITS * request.depth;
        let numbers = ours
            .iter()
            .zip(theirs)
            .enumerate()
            .filter(|(_, (ours, theirs))| ours != theirs)
            .map(|(at, _)| {
                let parent = request.parts.numbers[at >> finer];
                (parent << finer) | (at & ((1 << finer) - 1)) as u16
            })
            .collect();
        Some(Parts {
            level: request.parts.level + request.depth,
            numbers,
        })
    }
}
