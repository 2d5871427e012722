//! Q4_K and Q5_K: 256 numbers in eight parts of 32, each with a scale and a minimum of six bits, which a scale and a
//! minimum of the block multiply. Two parts share 32 bytes, the lower halves of which are the first part's.

use super::*;
use crate::quantization::arithmetic::{Affine, Signed};
#[cfg(target_arch = "x86_64")]
use crate::quantization::bytes::{load_bytes, shift_right};

/// Numbers of a part.
const PART: usize = 32;
/// Behind the scale and the minimum of the block: those of the parts, in twelve bytes.
const PARTS_AT: usize = 4;
const REST_AT: usize = PARTS_AT + 12;

/// Where the bytes of 16 numbers begin, behind those of the numbers before, and which of the two parts that share
/// them has the numbers.
#[inline(always)]
fn find(place: usize) -> (usize, usize) {
    (place / (2 * PART) * PART + place % PART, place / PART % 2)
}

/// The scale and the minimum of a part.
///
/// The first four parts have theirs in the lower six bits of a byte each. The others have the lower four bits in the
/// last four bytes, both in one, and the upper two above those of the part four before.
///
/// # Safety
/// The block has its first 16 bytes, and the processor what `H` wants.
#[inline(always)]
unsafe fn scale_of_part<H: Half>(block: *const u8, place: usize) -> Affine {
    let part = place / PART;
    // SAFETY: of the twelve bytes there are 4 + 8, for each `part` below 8.
    let byte = |i: usize| unsafe { *block.add(PARTS_AT + i) };
    let (scale, minimum) = if part < 4 {
        (byte(part) & 63, byte(part + 4) & 63)
    } else {
        let (low, above) = (byte(part + 4), (byte(part - 4) >> 6, byte(part) >> 6));
        (low & 15 | above.0 << 4, low >> 4 | above.1 << 4)
    };
    // SAFETY: the caller's; the block begins with both.
    let [of_scale, of_minimum] = unsafe { H::read_pair(block) };
    Affine {
        factor: of_scale * f32::from(scale),
        shift: -(of_minimum * f32::from(minimum)),
    }
}

/// 16 halves of the bytes of two parts.
#[inline(always)]
fn halves(bytes: &[u8], place: usize) -> [u8; LANES] {
    let (at, half) = find(place);
    std::array::from_fn(|i| bytes[at + i] >> (4 * half) & 15)
}

/// The same.
///
/// # Safety
/// There are 128 bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn halves_x86(bytes: *const u8, place: usize) -> __m128i {
    let (at, half) = find(place);
    // SAFETY: `find` gives a place of which 16 bytes lie in the 128.
    unsafe {
        let bytes = shift_right(load_bytes(bytes.add(at)), 4 * half);
        _mm_and_si128(bytes, _mm_set1_epi8(15))
    }
}

#[derive(Clone, Copy)]
pub struct Q4K;

impl Kind for Q4K {
    const NUMBERS: usize = 256;
    const BYTES: usize = 144;
    type Values = Signed;
    type Scale = Affine;

    #[inline(always)]
    fn values() -> Signed {
        Signed
    }

    #[inline(always)]
    fn codes(block: &[u8], place: usize) -> [u8; LANES] {
        halves(&block[REST_AT..], place)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn codes_x86(block: *const u8, place: usize) -> __m128i {
        // SAFETY: a block has 128 bytes from there on.
        unsafe { halves_x86(block.add(REST_AT), place) }
    }

    #[inline(always)]
    unsafe fn scale<H: Half>(block: *const u8, place: usize) -> Affine {
        // SAFETY: a block has its bytes.
        unsafe { scale_of_part::<H>(block, place) }
    }
}

/// The fifth bits come first: a byte has those of the numbers at the same place of all eight parts.
#[derive(Clone, Copy)]
pub struct Q5K;

/// Where the lower four bits begin.
const LOW_AT: usize = REST_AT + PART;

impl Kind for Q5K {
    const NUMBERS: usize = 256;
    const BYTES: usize = 176;
    type Values = Signed;
    type Scale = Affine;

    #[inline(always)]
    fn values() -> Signed {
        Signed
    }

    #[inline(always)]
    fn codes(block: &[u8], place: usize) -> [u8; LANES] {
        let low = halves(&block[LOW_AT..], place);
        let high = &block[REST_AT + place % PART..];
        std::array::from_fn(|i| low[i] | (high[i] >> (place / PART) & 1) << 4)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn codes_x86(block: *const u8, place: usize) -> __m128i {
        // SAFETY: a block has 32 bytes of fifth bits, and 128 behind them.
        unsafe {
            let low = halves_x86(block.add(LOW_AT), place);
            let high = load_bytes(block.add(REST_AT + place % PART));
            // The bit of the part comes down to be the lowest, then up to be the fifth.
            let bit = _mm_and_si128(shift_right(high, place / PART), _mm_set1_epi8(1));
            _mm_or_si128(low, _mm_slli_epi16::<4>(bit))
        }
    }

    #[inline(always)]
    unsafe fn scale<H: Half>(block: *const u8, place: usize) -> Affine {
        // SAFETY: a block has its bytes.
        unsafe { scale_of_part::<H>(block, place) }
    }
}
