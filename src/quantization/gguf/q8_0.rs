//! Q8_0: a scale, then 32 numbers of eight bits.

use super::*;
use crate::quantization::arithmetic::{Factor, Signed};
#[cfg(target_arch = "x86_64")]
use crate::quantization::bytes::load_bytes;

/// The scale comes first, in half precision.
const CODES_AT: usize = 2;

#[derive(Clone, Copy)]
pub struct Q8_0;

impl Kind for Q8_0 {
    const NUMBERS: usize = 32;
    const BYTES: usize = 34;
    type Values = Signed;
    type Scale = Factor;

    #[inline(always)]
    fn values() -> Signed {
        Signed
    }

    #[inline(always)]
    fn codes(block: &[u8], place: usize) -> [u8; LANES] {
        std::array::from_fn(|i| block[CODES_AT + place + i])
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn codes_x86(block: *const u8, place: usize) -> __m128i {
        // SAFETY: a block has 32 bytes behind its scale; `place` is 0 or 16.
        unsafe { load_bytes(block.add(CODES_AT + place)) }
    }

    #[inline(always)]
    unsafe fn scale<H: Half>(block: *const u8, _place: usize) -> Factor {
        // SAFETY: a block begins with its scale.
        Factor(unsafe { H::read(block) })
    }
}

impl Quantize for Q8_0 {
    fn quantize(values: &[f32], block: &mut [u8]) -> bool {
        let scale = largest_magnitude(values) / 127.0;
        let factor = reciprocal(scale);
        for (code, value) in block[CODES_AT..].iter_mut().zip(values) {
            *code = (finite_or_zero(value * factor).round() as i8).cast_unsigned();
        }
        write_half(block, scale)
    }
}
