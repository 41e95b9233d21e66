//! Tables under numbers, looked up on the way of every command: hashed by a multiplication.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A table under numbers of which no stranger chooses more than a few: the hash is not for keys that
/// somebody makes collide. Its order means nothing.
pub(crate) type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;

/// Odd, and its bits as if drawn by lot: the golden ratio's.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Hashes numbers of 64 bits.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut number = [0; 8];
            number[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(number));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(29) ^ number).wrapping_mul(MULTIPLIER);
    }

    fn finish(&self) -> u64 {
        // Tables use the highest bits and the lowest, which a multiplication mixes least.
        self.0 ^ self.0 >> 32
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn numbers_that_follow_each_other_are_spread() {
        let hasher = BuildHasherDefault::<NumberHasher>::default();
        let hashes: Vec<u64> = (0..1024_u64)
            .map(|n| hasher.hash_one((0x1234_5678_9abc_u64, n)))
            .collect();
        let low: BTreeSet<u64> = hashes.iter().map(|hash| hash % 1024).collect();
        let high: BTreeSet<u64> = hashes.iter().map(|hash| hash >> 57).collect();
        assert!(low.len() > 512, "{}", low.len());
        assert_eq!(high.len(), 128);
    }

    #[test]
    fn it_is_a_map() {
        let mut map = NumberMap::default();
        for n in 0..1000_u64 {
            map.insert((n % 7, n), n);
        }
        assert!((0..1000).all(|n| map.remove(&(n % 7, n)) == Some(n)));
        assert!(map.is_empty());
    }
}
