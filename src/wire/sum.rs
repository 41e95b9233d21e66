//! The checksum of frames (CRC-32 of IEEE 802.3), and how that of a block is used again: whoever knows it need not read
//! the block to know the checksum of a frame that the block is in.

use std::sync::LazyLock;

/// Octets of a block whose checksum is kept: aligned to as many.
pub const BLOCK_BYTES: usize = 4096;

const POLYNOMIAL: u32 = 0xedb8_8320;

/// What a checksum becomes by the octets of a block behind it, were they zeroes: for each of its four octets.
static BEHIND_BLOCK: [[u32; 256]; 4] = behind_block();

/// The product of two polynomials modulo [`POLYNOMIAL`]; the highest bit is the coefficient of x^0.
const fn product(a: u32, mut b: u32) -> u32 {
    let (mut bit, mut product) = (1 << 31, 0);
    while bit > 0 {
        if a & bit > 0 {
            product ^= b;
        }
        b = (b >> 1) ^ if b & 1 > 0 { POLYNOMIAL } else { 0 };
        bit >>= 1;
    }
    product
}

const fn behind_block() -> [[u32; 256]; 4] {
    // x to the number of bits of a block.
    let mut power = 1 << 30;
    let mut bits = 1;
    while bits < BLOCK_BYTES * 8 {
        power = product(power, power);
        bits *= 2;
    }
    let mut table = [[0; 256]; 4];
    let mut octet = 0;
    while octet < 4 {
        let mut value = 0;
        while value < 256 {
            table[octet][value] = product((value as u32) << (8 * octet), power);
            value += 1;
        }
        octet += 1;
    }
    table
}

/// Of nothing: making one anew finds out anew what the processor can.
static NOTHING: LazyLock<crc32fast::Hasher> = LazyLock::new(crc32fast::Hasher::new);

/// The checksum of octets.
pub fn sum(octets: &[u8]) -> u32 {
    let mut sum = NOTHING.clone();
    sum.update(octets);
    sum.finalize()
}

/// The checksum of what `front` is that of, followed by `octets`.
pub fn sum_on(front: u32, octets: &[u8]) -> u32 {
    if octets.is_empty() {
        return front;
    }
    let mut sum = crc32fast::Hasher::new_with_initial(front);
    sum.update(octets);
    sum.finalize()
}

/// The checksum of what `front` is that of, followed by [`BLOCK_BYTES`] octets of which `block` is that.
pub fn sum_with_block(front: u32, block: u32) -> u32 {
    let octets = front.to_le_bytes();
    let shifted = octets.iter().zip(&BEHIND_BLOCK);
    shifted.fold(block, |sum, (octet, table)| {
        sum ^ table[usize::from(*octet)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_block_counts_as_if_it_were_read() {
        let octets: Vec<u8> = (0..3 * BLOCK_BYTES as u32)
            .map(|i| ((i * 31) >> 3) as u8)
            .collect();
        for front in [0, 1, 80, 4095, 8192] {
            let (front, rest) = octets.split_at(front);
            let block = &rest[..BLOCK_BYTES];
            let both = [front, block].concat();
            assert_eq!(sum_with_block(sum(front), sum(block)), sum(&both));
            assert_eq!(sum_on(sum(front), block), sum(&both));
        }
    }
}
