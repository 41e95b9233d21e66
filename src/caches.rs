//! What the processor is told about its caches. Where it cannot be told it finds out by itself.
#![allow(unsafe_code)]

/// Octets of a line.
pub const LINE_BYTES: usize = 64;

/// Has the processor fetch the lines of `len` octets at a place, wherever that is.
#[cfg(target_arch = "x86_64")]
pub fn fetch(place: *const u8, len: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for at in (0..len).step_by(LINE_BYTES) {
        // SAFETY: a hint, which accesses nothing: any address is as good.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.wrapping_add(at).cast()) };
    }
}

/// Has the processor fetch the lines of `len` octets at a place, wherever that is.
#[cfg(not(target_arch = "x86_64"))]
pub fn fetch(_: *const u8, _: usize) {}

/// Copies to memory that is not used again soon: past the caches, so that what is written over is not fetched
/// before.
///
/// # Panics
/// Where they are not equally long: a programmer's mistake.
pub fn copy_past(into: &mut [u8], from: &[u8]) {
    assert_eq!(into.len(), from.len());
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
        const STEP: usize = size_of::<__m128i>();
        if into.as_ptr().addr().is_multiple_of(STEP) {
            let whole = from.len() - from.len() % STEP;
            for (into, from) in into[..whole]
                .chunks_exact_mut(STEP)
                .zip(from[..whole].chunks_exact(STEP))
            {
                // SAFETY: both are `STEP` octets; `into` is aligned to them, as it begins so and all before it are as
                // long. x86-64 has these instructions.
                unsafe {
                    _mm_stream_si128(
                        into.as_mut_ptr().cast(),
                        _mm_loadu_si128(from.as_ptr().cast()),
                    );
                };
            }
            // SAFETY: x86-64 has this instruction. After it other accesses see what was written.
            unsafe { _mm_sfence() };
            into[whole..].copy_from_slice(&from[whole..]);
            return;
        }
    }
    into.copy_from_slice(from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_one_however_it_lies() {
        let from: Vec<u8> = (0..=255).cycle().take(5000).collect();
        for start in [0, 1, 7, 16, 33] {
            for len in [0, 1, 15, 16, 17, 512, 4096, 4099] {
                let mut into = vec![0; 5000];
                copy_past(&mut into[start..start + len], &from[3..3 + len]);
                assert_eq!(into[start..start + len], from[3..3 + len]);
                assert!(
                    into[..start]
                        .iter()
                        .chain(&into[start + len..])
                        .all(|b| *b == 0)
                );
            }
        }
        fetch(std::ptr::null(), 4096);
    }
}
