//! Q6_K: 256 numbers of six bits, each 16 with a scale of eight bits, which one of the block multiplies.
//!
//! The numbers are two times four parts of 32. The lower four bits of two parts share 32 bytes, the first and second
//! part in the lower halves of 64; the upper two bits of all four share 32.

use super::*;
use crate::quantization::arithmetic::{Factor, Signed};
#[cfg(target_arch = "x86_64")]
use crate::quantization::bytes::{load_bytes, shift_right};

const PART: usize = 32;
const HALF: usize = 4 * PART;
/// Where the upper bits begin, after the lower ones.
const HIGH_AT: usize = 2 * 2 * PART;
const SCALES_AT: usize = HIGH_AT + 2 * PART;
const SCALE_AT: usize = SCALES_AT + 16;
/// What the codes are too large by.
const ZERO: u8 = 32;

/// Where 16 numbers have their bits, and how far up.
struct Bits {
    low_at: usize,
    low_shift: usize,
    high_at: usize,
    high_shift: usize,
}

#[inline(always)]
fn find(place: usize) -> Bits {
    let (half, part, first) = (place / HALF, place / PART % 4, place % PART);
    Bits {
        low_at: half * 2 * PART + part % 2 * PART + first,
        low_shift: part / 2 * 4,
        high_at: HIGH_AT + half * PART + first,
        high_shift: part * 2,
    }
}

#[derive(Clone, Copy)]
pub struct Q6K;

impl Kind for Q6K {
    const NUMBERS: usize = 256;
    const BYTES: usize = 210;
    type Values = Signed;
    type Scale = Factor;

    #[inline(always)]
    fn values() -> Signed {
        Signed
    }

    #[inline(always)]
    fn codes(block: &[u8], place: usize) -> [u8; LANES] {
        let bits = find(place);
        let (low, high) = (&block[bits.low_at..], &block[bits.high_at..]);
        std::array::from_fn(|i| {
            let code = low[i] >> bits.low_shift & 15 | (high[i] >> bits.high_shift & 3) << 4;
            code.wrapping_sub(ZERO)
        })
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn codes_x86(block: *const u8, place: usize) -> __m128i {
        let bits = find(place);
        // SAFETY: `find` gives places of which 16 bytes lie in the block.
        unsafe {
            let low = shift_right(load_bytes(block.add(bits.low_at)), bits.low_shift);
            let high = shift_right(load_bytes(block.add(bits.high_at)), bits.high_shift);
            let low = _mm_and_si128(low, _mm_set1_epi8(15));
            let high = _mm_and_si128(high, _mm_set1_epi8(3));
            let codes = _mm_or_si128(low, _mm_slli_epi16::<4>(high));
            _mm_sub_epi8(codes, _mm_set1_epi8(ZERO as i8))
        }
    }

    #[inline(always)]
    unsafe fn scale<H: Half>(block: *const u8, place: usize) -> Factor {
        // SAFETY: a block has 16 scales, then its own.
        unsafe {
            let scale = *block.add(SCALES_AT + place / LANES);
            Factor(H::read(block.add(SCALE_AT)) * f32::from(scale.cast_signed()))
        }
    }
}
