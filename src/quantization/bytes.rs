//! Reading and writing numbers in a run of bytes, little-endian.

/// The f32 at a byte, which need not be aligned.
///
/// # Safety
/// The four bytes lie inside of the slice.
#[inline(always)]
pub unsafe fn read_f32(bytes: &[u8], at: usize) -> f32 {
    debug_assert!(at + 4 <= bytes.len());
    // SAFETY: the caller's.
    let number = unsafe { bytes.as_ptr().add(at).cast::<[u8; 4]>().read() };
    f32::from_le_bytes(number)
}

/// Writes numbers from a byte on.
pub fn write_f32s(bytes: &mut [u8], at: usize, numbers: &[f32]) {
    let (places, _) = bytes[at..].as_chunks_mut::<4>();
    assert!(places.len() >= numbers.len());
    for (place, number) in places.iter_mut().zip(numbers) {
        *place = number.to_le_bytes();
    }
}

/// The 16 bytes from one on.
///
/// # Safety
/// They lie inside of one allocation.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub unsafe fn load_bytes(from: *const u8) -> std::arch::x86_64::__m128i {
    // SAFETY: the caller's; the load asks for no alignment.
    unsafe { std::arch::x86_64::_mm_loadu_si128(from.cast()) }
}

/// The bytes with each two moved by as many bits; what moves from one into the other is to be masked out.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn shift_right(bytes: std::arch::x86_64::__m128i, bits: usize) -> std::arch::x86_64::__m128i {
    use std::arch::x86_64::*;
    // SAFETY: all processors of this architecture have these.
    unsafe { _mm_srl_epi16(bytes, _mm_cvtsi32_si128(bits as i32)) }
}

/// How the scales of GGUF's blocks, in half precision, become f32.
pub trait Half {
    /// The number at a place, which need not be aligned.
    ///
    /// # Safety
    /// The two bytes lie inside of one allocation; the processor has what the implementation says.
    unsafe fn read(from: *const u8) -> f32;

    /// The same of two numbers.
    ///
    /// # Safety
    /// As of [`read`](Self::read), with four bytes.
    unsafe fn read_pair(from: *const u8) -> [f32; 2];
}

/// By the `half` crate.
pub struct PortableHalf;

impl Half for PortableHalf {
    #[inline(always)]
    unsafe fn read(from: *const u8) -> f32 {
        // SAFETY: the caller's; bytes need no alignment.
        half::f16::from_le_bytes(unsafe { from.cast::<[u8; 2]>().read() }).to_f32()
    }

    #[inline(always)]
    unsafe fn read_pair(from: *const u8) -> [f32; 2] {
        // SAFETY: the caller's, of four bytes.
        unsafe { [Self::read(from), Self::read(from.add(2))] }
    }
}

/// By an instruction of processors with `f16c`.
#[cfg(target_arch = "x86_64")]
pub struct F16c;

#[cfg(target_arch = "x86_64")]
impl Half for F16c {
    #[inline(always)]
    unsafe fn read(from: *const u8) -> f32 {
        use std::arch::x86_64::*;
        // SAFETY: the caller's; the read asks for no alignment.
        unsafe {
            let bits = from.cast::<u16>().read_unaligned();
            _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits.into())))
        }
    }
    #[inline(always)]
    unsafe fn read_pair(from: *const u8) -> [f32; 2] {
        use std::arch::x86_64::*;
        // SAFETY: the caller's; the read asks for no alignment.
        unsafe {
            let bits = from.cast::<i32>().read_unaligned();
            let pair = _mm_cvtph_ps(_mm_cvtsi32_si128(bits));
            [_mm_cvtss_f32(pair), _mm_cvtss_f32(_mm_movehdup_ps(pair))]
        }
    }
}
