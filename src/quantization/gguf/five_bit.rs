//! Q5_0 and Q5_1: 32 numbers of five bits with a scale, and with a minimum. The fifth bits of all numbers come before
//! the lower four, which lie as in Q4_0.

#[cfg(target_arch = "x86_64")]
use super::four_bit::halves_x86;
use super::four_bit::{halves, write_halves};
use super::*;
use crate::quantization::arithmetic::{Affine, Factor, Signed};

/// What the codes of Q5_0 are too large by.
const ZERO: u8 = 16;
/// The bytes of the fifth bits.
const HIGH_BYTES: usize = 4;

/// 16 codes: bits and halves of bytes.
#[inline(always)]
fn codes_of_five_bits(bytes: &[u8], place: usize) -> [u8; LANES] {
    let low = halves(&bytes[HIGH_BYTES..], place);
    let high = &bytes[place / 8..];
    std::array::from_fn(|i| low[i] | (high[i / 8] >> (i % 8) & 1) << 4)
}

/// The same.
///
/// # Safety
/// There are 20 bytes, and the processor has `ssse3`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn codes_of_five_bits_x86(bytes: *const u8, place: usize) -> __m128i {
    // SAFETY: there are four bytes of fifth bits, of which two are read from 0 or 2 on, and 16
    // after them; the caller says so, and that the processor has the instructions.
    unsafe {
        let low = halves_x86(bytes.add(HIGH_BYTES), place);
        let bits = bytes.add(place / 8).cast::<u16>().read_unaligned();
        // Each bit in a byte of its own.
        let bytes = _mm_set_epi8(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
        let masks = _mm_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
        let high = _mm_shuffle_epi8(_mm_cvtsi32_si128(bits.into()), bytes);
        let is_set = _mm_cmpeq_epi8(_mm_and_si128(high, masks), masks);
        _mm_or_si128(low, _mm_and_si128(is_set, _mm_set1_epi8(16)))
    }
}

/// Writes 32 codes: the fifth bits, then the others.
fn write_five_bits(bytes: &mut [u8], codes: [u8; 32]) {
    let (high, low) = bytes.split_at_mut(HIGH_BYTES);
    high.fill(0);
    for (i, code) in codes.iter().enumerate() {
        high[i / 8] |= (code >> 4) << (i % 8);
    }
    write_halves(low, |i| codes[i]);
}

#[derive(Clone, Copy)]
pub struct Q5_0;

impl Kind for Q5_0 {
    const NUMBERS: usize = 32;
    const BYTES: usize = 22;
    type Values = Signed;
    type Scale = Factor;

    #[inline(always)]
    fn values() -> Signed {
        Signed
    }

    #[inline(always)]
    fn codes(block: &[u8], place: usize) -> [u8; LANES] {
        codes_of_five_bits(&block[2..], place).map(|code| code.wrapping_sub(ZERO))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn codes_x86(block: *const u8, place: usize) -> __m128i {
        // SAFETY: a block has 20 bytes behind its scale.
        unsafe {
            let codes = codes_of_five_bits_x86(block.add(2), place);
            _mm_sub_epi8(codes, _mm_set1_epi8(ZERO as i8))
        }
    }

    #[inline(always)]
    unsafe fn scale<H: Half>(block: *const u8, _place: usize) -> Factor {
        // SAFETY: a block begins with its scale.
        Factor(unsafe { H::read(block) })
    }
}

impl Quantize for Q5_0 {
    /// As of Q4_0, with -16.
    fn quantize(values: &[f32], block: &mut [u8]) -> bool {
        let scale = of_largest_magnitude(values) / -16.0;
        let factor = reciprocal(scale);
        let code = |value: f32| (finite_or_zero(value * factor + 16.5) as u8).min(31);
        write_five_bits(&mut block[2..], std::array::from_fn(|i| code(values[i])));
        write_half(block, scale)
    }
}

#[derive(Clone, Copy)]
pub struct Q5_1;

impl Kind for Q5_1 {
    const NUMBERS: usize = 32;
    const BYTES: usize = 24;
    type Values = Signed;
    type Scale = Affine;

    #[inline(always)]
    fn values() -> Signed {
        Signed
    }

    #[inline(always)]
    fn codes(block: &[u8], place: usize) -> [u8; LANES] {
        codes_of_five_bits(&block[4..], place)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn codes_x86(block: *const u8, place: usize) -> __m128i {
        // SAFETY: a block has 20 bytes behind scale and minimum.
        unsafe { codes_of_five_bits_x86(block.add(4), place) }
    }

    #[inline(always)]
    unsafe fn scale<H: Half>(block: *const u8, _place: usize) -> Affine {
        // SAFETY: a block begins with scale and minimum.
        let [factor, shift] = unsafe { H::read_pair(block) };
        Affine { factor, shift }
    }
}

impl Quantize for Q5_1 {
    fn quantize(values: &[f32], block: &mut [u8]) -> bool {
        let steps = Steps::of(values, 31);
        let codes = std::array::from_fn(|i| steps.code(values[i]));
        write_five_bits(&mut block[4..], codes);
        steps.write(block)
    }
}
