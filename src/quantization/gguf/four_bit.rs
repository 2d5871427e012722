//! Q4_0 and Q4_1: 32 numbers of four bits with a scale, and with a minimum. The lower half of a byte is one of the
//! first 16 numbers, the upper half one of the others.

use super::*;
use crate::quantization::arithmetic::{Affine, Factor, Signed};
#[cfg(target_arch = "x86_64")]
use crate::quantization::bytes::{load_bytes, shift_right};

/// What the codes of Q4_0 are too large by.
const ZERO: u8 = 8;

/// 16 halves of bytes.
#[inline(always)]
pub(super) fn halves(bytes: &[u8], place: usize) -> [u8; LANES] {
    std::array::from_fn(|i| (bytes[i] >> (place / 4)) & 15)
}

/// The same.
///
/// # Safety
/// There are 16 bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn halves_x86(bytes: *const u8, place: usize) -> __m128i {
    // SAFETY: the caller's.
    unsafe { _mm_and_si128(shift_right(load_bytes(bytes), place / 4), _mm_set1_epi8(15)) }
}

/// Writes the lower four bits of 32 codes.
pub(super) fn write_halves(bytes: &mut [u8], code: impl Fn(usize) -> u8) {
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = code(i) & 15 | code(i + LANES) << 4;
    }
}

#[derive(Clone, Copy)]
pub struct Q4_0;

impl Kind for Q4_0 {
    const NUMBERS: usize = 32;
    const BYTES: usize = 18;
    type Values = Signed;
    type Scale = Factor;

    #[inline(always)]
    fn values() -> Signed {
        Signed
    }

    #[inline(always)]
    fn codes(block: &[u8], place: usize) -> [u8; LANES] {
        halves(&block[2..], place).map(|code| code.wrapping_sub(ZERO))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn codes_x86(block: *const u8, place: usize) -> __m128i {
        // SAFETY: a block has 16 bytes behind its scale.
        unsafe { _mm_sub_epi8(halves_x86(block.add(2), place), _mm_set1_epi8(ZERO as i8)) }
    }

    #[inline(always)]
    unsafe fn scale<H: Half>(block: *const u8, _place: usize) -> Factor {
        // SAFETY: a block begins with its scale.
        Factor(unsafe { H::read(block) })
    }
}

impl Quantize for Q4_0 {
    /// The number of the largest magnitude, the first of several, is -8 times the scale.
    fn quantize(values: &[f32], block: &mut [u8]) -> bool {
        let scale = of_largest_magnitude(values) / -8.0;
        let factor = reciprocal(scale);
        let code = |value: f32| (finite_or_zero(value * factor + 8.5) as u8).min(15);
        write_halves(&mut block[2..], |i| code(values[i]));
        write_half(block, scale)
    }
}

#[derive(Clone, Copy)]
pub struct Q4_1;

impl Kind for Q4_1 {
    const NUMBERS: usize = 32;
    const BYTES: usize = 20;
    type Values = Signed;
    type Scale = Affine;

    #[inline(always)]
    fn values() -> Signed {
        Signed
    }

    #[inline(always)]
    fn codes(block: &[u8], place: usize) -> [u8; LANES] {
        halves(&block[4..], place)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn codes_x86(block: *const u8, place: usize) -> __m128i {
        // SAFETY: a block has 16 bytes behind scale and minimum.
        unsafe { halves_x86(block.add(4), place) }
    }

    #[inline(always)]
    unsafe fn scale<H: Half>(block: *const u8, _place: usize) -> Affine {
        // SAFETY: a block begins with scale and minimum.
        let [factor, shift] = unsafe { H::read_pair(block) };
        Affine { factor, shift }
    }
}

impl Quantize for Q4_1 {
    fn quantize(values: &[f32], block: &mut [u8]) -> bool {
        let steps = Steps::of(values, 15);
        write_halves(&mut block[4..], |i| steps.code(values[i]));
        steps.write(block)
    }
}
