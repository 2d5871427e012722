//! Decoding 16 numbers of a row: by plain code, with AVX2, with AVX-512.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::arithmetic::{Scale, Values};
#[cfg(target_arch = "x86_64")]
use super::bytes::F16c;
use super::bytes::{Half, PortableHalf};

/// Numbers that are decoded together.
pub const LANES: usize = 16;

/// Reads the numbers of a packed matrix of one format: what a product is generic over, so that the format is asked
/// for once and not for each number. [`PackedMatrix::with_decoder`](super::PackedMatrix::with_decoder) gives one.
///
/// All functions give the same bits, and take a column that is a multiple of 16.
pub trait Decoder: Copy + Send + Sync {
    /// At most 16 numbers, as many as `out` has.
    ///
    /// # Safety
    /// They lie inside of the row, and `out` has no more than 16.
    unsafe fn decode16(&self, row: usize, column: usize, out: &mut [f32]);

    /// 16 numbers.
    ///
    /// # Safety
    /// They lie inside of the row, and the processor has `avx2`, `fma` and `f16c`.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load16_avx2(&self, row: usize, column: usize) -> [__m256; 2];

    /// 16 numbers.
    ///
    /// # Safety
    /// They lie inside of the row, and the processor has `avx512f` and `avx512bw`.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load16(&self, row: usize, column: usize) -> __m512;
}

/// What is done with the decoder of a matrix, whichever format that is of.
pub trait DecoderVisitor {
    /// What it results in.
    type Output;

    /// Does it.
    fn visit<D: Decoder>(self, decoder: D) -> Self::Output;
}

/// A format in which 16 numbers, from a column that is a multiple of 16, share a scale: a number is the scale of the
/// value of a code of at most eight bits.
///
/// # Safety
/// Of all functions: the 16 numbers lie inside of the row; only the last ones of an [`Int8`](super::BlockFormat::Int8)
/// may lie behind it, in `codes`.
pub trait Blocks: Copy + Send + Sync {
    /// What the codes stand for.
    type Values: Values;
    /// What becomes of that.
    type Scale: Scale;

    fn values(&self) -> Self::Values;

    unsafe fn codes(&self, row: usize, column: usize) -> [u8; LANES];

    /// The same; the processor has `ssse3` too. Bits that `Values` does not look at may be anything.
    #[cfg(target_arch = "x86_64")]
    unsafe fn codes_x86(&self, row: usize, column: usize) -> __m128i;

    /// The processor has what `H` wants too.
    unsafe fn scale<H: Half>(&self, row: usize, column: usize) -> Self::Scale;
}

impl<B: Blocks> Decoder for B {
    #[inline(always)]
    unsafe fn decode16(&self, row: usize, column: usize, out: &mut [f32]) {
        let values = self.values();
        // SAFETY: the caller's.
        let (codes, scale) = unsafe {
            let scale = self.scale::<PortableHalf>(row, column);
            (self.codes(row, column), scale)
        };
        for (out, code) in out.iter_mut().zip(codes) {
            *out = scale.apply(values.value(code));
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16_avx2(&self, row: usize, column: usize) -> [__m256; 2] {
        // SAFETY: the caller's.
        unsafe {
            let scale = self.scale::<F16c>(row, column);
            let codes = self.codes_x86(row, column);
            let upper = _mm_unpackhi_epi64(codes, codes);
            // Without a closure, which the compiler may leave a function without these instructions.
            let values = [
                self.values().values_avx2(codes),
                self.values().values_avx2(upper),
            ];
            [scale.apply_avx2(values[0]), scale.apply_avx2(values[1])]
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16(&self, row: usize, column: usize) -> __m512 {
        // SAFETY: the caller's.
        unsafe {
            let codes = self.codes_x86(row, column);
            let scale = self.scale::<F16c>(row, column);
            scale.apply_avx512(self.values().values_avx512(codes))
        }
    }
}
