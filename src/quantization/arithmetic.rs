//! From a code to a number: what a code stands for, and the scale of its block.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// What codes of at most eight bits stand for.
///
/// # Safety
/// The functions with instructions in their name need a processor that has them.
pub trait Values: Copy {
    fn value(self, code: u8) -> f32;

    /// Of the lower eight codes.
    #[cfg(target_arch = "x86_64")]
    unsafe fn values_avx2(self, codes: __m128i) -> __m256;

    #[cfg(target_arch = "x86_64")]
    unsafe fn values_avx512(self, codes: __m128i) -> __m512;
}

/// The numbers of a table; of a code only the lower four bits are looked at.
#[derive(Clone, Copy)]
pub struct Table(pub &'static [f32; 16]);

impl Values for Table {
    #[inline(always)]
    fn value(self, code: u8) -> f32 {
        self.0[usize::from(code & 15)]
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn values_avx2(self, codes: __m128i) -> __m256 {
        // SAFETY: the caller has the instructions; the table has 16 numbers.
        unsafe {
            let codes = _mm256_cvtepu8_epi32(codes);
            let table = self.0.as_ptr();
            let lower = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), codes);
            let upper = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.add(8)), codes);
            // The fourth bit, as the sign, chooses the half of the table.
            let half = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
            _mm256_blendv_ps(lower, upper, half)
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn values_avx512(self, codes: __m128i) -> __m512 {
        // SAFETY: the caller has the instructions; the table has 16 numbers.
        unsafe {
            let table = _mm512_loadu_ps(self.0.as_ptr());
            _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes), table)
        }
    }
}

/// The code itself, in two's complement.
#[derive(Clone, Copy)]
pub struct Signed;

impl Values for Signed {
    #[inline(always)]
    fn value(self, code: u8) -> f32 {
        f32::from(code.cast_signed())
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn values_avx2(self, codes: __m128i) -> __m256 {
        // SAFETY: the caller has the instructions.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn values_avx512(self, codes: __m128i) -> __m512 {
        // SAFETY: the caller has the instructions.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)) }
    }
}

/// What becomes of a value.
///
/// # Safety
/// As of [`Values`].
pub trait Scale: Copy {
    fn apply(self, value: f32) -> f32;

    #[cfg(target_arch = "x86_64")]
    unsafe fn apply_avx2(self, values: __m256) -> __m256;

    #[cfg(target_arch = "x86_64")]
    unsafe fn apply_avx512(self, values: __m512) -> __m512;
}

/// It is multiplied.
#[derive(Clone, Copy)]
pub struct Factor(pub f32);

impl Scale for Factor {
    #[inline(always)]
    fn apply(self, value: f32) -> f32 {
        value * self.0
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn apply_avx2(self, values: __m256) -> __m256 {
        // SAFETY: the caller has the instructions.
        unsafe { _mm256_mul_ps(values, _mm256_set1_ps(self.0)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn apply_avx512(self, values: __m512) -> __m512 {
        // SAFETY: the caller has the instructions.
        unsafe { _mm512_mul_ps(values, _mm512_set1_ps(self.0)) }
    }
}

/// It is multiplied by two numbers, one after the other.
#[derive(Clone, Copy)]
pub struct TwoFactors(pub f32, pub f32);

impl Scale for TwoFactors {
    #[inline(always)]
    fn apply(self, value: f32) -> f32 {
        value * self.0 * self.1
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn apply_avx2(self, values: __m256) -> __m256 {
        // SAFETY: the caller has the instructions.
        unsafe { Factor(self.1).apply_avx2(Factor(self.0).apply_avx2(values)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn apply_avx512(self, values: __m512) -> __m512 {
        // SAFETY: the caller has the instructions.
        unsafe { Factor(self.1).apply_avx512(Factor(self.0).apply_avx512(values)) }
    }
}

/// It is multiplied and added to. The product must be exact, so that rounding it or not is all the same: it is where
/// the factor is one in half precision times at most six bits, and the value has at most five.
#[derive(Clone, Copy)]
pub struct Affine {
    pub factor: f32,
    pub shift: f32,
}

impl Scale for Affine {
    #[inline(always)]
    fn apply(self, value: f32) -> f32 {
        value * self.factor + self.shift
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn apply_avx2(self, values: __m256) -> __m256 {
        // SAFETY: the caller has the instructions.
        unsafe {
            _mm256_fmadd_ps(
                values,
                _mm256_set1_ps(self.factor),
                _mm256_set1_ps(self.shift),
            )
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn apply_avx512(self, values: __m512) -> __m512 {
        // SAFETY: the caller has the instructions.
        unsafe {
            _mm512_fmadd_ps(
                values,
                _mm512_set1_ps(self.factor),
                _mm512_set1_ps(self.shift),
            )
        }
    }
}
