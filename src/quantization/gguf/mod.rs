//! Blocks as GGUF files have them: some numbers along a row with their scale beside them.

mod five_bit;
mod four_bit;
mod k;
mod q6_k;
mod q8_0;

pub use five_bit::{Q5_0, Q5_1};
pub use four_bit::{Q4_0, Q4_1};
pub use k::{Q4K, Q5K};
pub use q6_k::Q6K;
pub use q8_0::Q8_0;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::marker::PhantomData;

use half::f16;
use rayon::prelude::*;

use super::arithmetic::{Scale, Values};
use super::bytes::Half;
use super::decoder::{Blocks, LANES};
use super::layout::PackedLayout;
use super::{CHUNK, finite_or_zero, invalid, largest_magnitude};
use crate::Result;

/// A format of blocks.
///
/// # Safety
/// Of all functions: the block has its bytes, and `place`, where the 16 numbers begin in the block, is a multiple of
/// 16 below the block's length.
pub trait Kind: Copy + Send + Sync {
    /// Numbers of a block.
    const NUMBERS: usize;
    const BYTES: usize;
    type Values: Values;
    type Scale: Scale;

    fn values() -> Self::Values;

    fn codes(block: &[u8], place: usize) -> [u8; LANES];

    /// The same; the processor has `ssse3` too.
    #[cfg(target_arch = "x86_64")]
    unsafe fn codes_x86(block: *const u8, place: usize) -> __m128i;

    /// The processor has what `H` wants too.
    unsafe fn scale<H: Half>(block: *const u8, place: usize) -> Self::Scale;
}

/// A format that this crate also writes.
pub trait Quantize: Kind {
    /// Writes a block, and whether its scale is finite.
    fn quantize(values: &[f32], block: &mut [u8]) -> bool;
}

/// The blocks of a matrix.
#[derive(Clone, Copy)]
pub struct GgufBlocks<'a, K> {
    bytes: &'a [u8],
    row_bytes: usize,
    kind: PhantomData<K>,
}

impl<'a, K: Kind> GgufBlocks<'a, K> {
    #[inline(always)]
    pub fn new(bytes: &'a [u8], columns: usize) -> Self {
        Self {
            bytes,
            row_bytes: columns / K::NUMBERS * K::BYTES,
            kind: PhantomData,
        }
    }

    /// Where the block begins that has a number, and the number's place in the block.
    #[inline(always)]
    fn find(&self, row: usize, column: usize) -> (usize, usize) {
        let at = row * self.row_bytes + column / K::NUMBERS * K::BYTES;
        (at, column % K::NUMBERS)
    }
}

impl<K: Kind> Blocks for GgufBlocks<'_, K> {
    type Values = K::Values;
    type Scale = K::Scale;

    #[inline(always)]
    fn values(&self) -> K::Values {
        K::values()
    }

    #[inline(always)]
    unsafe fn codes(&self, row: usize, column: usize) -> [u8; LANES] {
        let (at, place) = self.find(row, column);
        K::codes(&self.bytes[at..][..K::BYTES], place)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn codes_x86(&self, row: usize, column: usize) -> __m128i {
        let (at, place) = self.find(row, column);
        // SAFETY: the caller's.
        unsafe { K::codes_x86(self.bytes.as_ptr().add(at), place) }
    }

    #[inline(always)]
    unsafe fn scale<H: Half>(&self, row: usize, column: usize) -> K::Scale {
        let (at, place) = self.find(row, column);
        // SAFETY: the caller's.
        unsafe { K::scale::<H>(self.bytes.as_ptr().add(at), place) }
    }
}

/// A packed matrix from the blocks of a file, row after row.
///
/// # Errors
/// If their bytes do not fit the layout's shape.
///
/// # Panics
/// If the layout is not of a format of GGUF's.
pub fn assemble_gguf(layout: PackedLayout, blocks: &[u8]) -> Result<Vec<u8>> {
    let (format, [rows, columns]) = (layout.format(), layout.shape());
    let Some([numbers, bytes]) = format.gguf_block() else {
        panic!("{format} is no format of GGUF's");
    };
    let (found, expected) = (blocks.len(), rows * columns / numbers * bytes);
    if found != expected {
        let message =
            format!("{rows} x {columns} numbers in {format} are {expected} bytes, not {found}");
        return Err(invalid("blocks", message));
    }
    let mut packed = vec![0; layout.num_bytes()];
    packed[..found].copy_from_slice(blocks);
    Ok(packed)
}

/// The numbers in blocks of a kind.
pub fn quantize<K: Quantize>(values: &[f32], layout: PackedLayout) -> Result<Vec<u8>> {
    let mut bytes = vec![0; layout.num_bytes()];
    let blocks = bytes.par_chunks_exact_mut(K::BYTES);
    let blocks = values.par_chunks_exact(K::NUMBERS).zip(blocks);
    let is_finite = blocks
        .with_min_len(CHUNK / K::NUMBERS)
        .map(|(values, block)| K::quantize(values, block))
        .reduce(|| true, |a, b| a && b);
    match is_finite {
        true => Ok(bytes),
        false => Err(invalid(
            "values",
            "are too large for scales in half precision; a weight like this is hardly one that was trained",
        )),
    }
}

/// Writes a scale in half precision, and whether it is finite.
fn write_half(block: &mut [u8], scale: f32) -> bool {
    let half = f16::from_f32(scale);
    block[..2].copy_from_slice(&half.to_le_bytes());
    half.is_finite()
}

/// The number by which others are divided, where a division by zero gives zero.
fn reciprocal(divisor: f32) -> f32 {
    if divisor == 0.0 { 0.0 } else { 1.0 / divisor }
}

/// The number of the largest magnitude, the first of several.
fn of_largest_magnitude(values: &[f32]) -> f32 {
    let larger = |max: f32, value: &f32| if value.abs() > max.abs() { *value } else { max };
    values.iter().fold(values[0], larger)
}

/// Even steps from the smallest number of a block to the largest: `w = scale * code + min`.
struct Steps {
    scale: f32,
    factor: f32,
    min: f32,
    largest_code: u8,
}

impl Steps {
    fn of(values: &[f32], largest_code: u8) -> Self {
        let fold = |f: fn(f32, f32) -> f32| values.iter().copied().reduce(f).unwrap_or_default();
        let (min, max) = (fold(f32::min), fold(f32::max));
        let scale = (max - min) / f32::from(largest_code);
        Self {
            scale,
            factor: reciprocal(scale),
            min,
            largest_code,
        }
    }

    fn code(&self, value: f32) -> u8 {
        let step = (value - self.min) * self.factor + 0.5;
        (finite_or_zero(step) as u8).min(self.largest_code)
    }

    /// Writes scale and minimum, and whether both are finite.
    fn write(&self, block: &mut [u8]) -> bool {
        let has_scale = write_half(block, self.scale);
        write_half(&mut block[2..], self.min) && has_scale
    }
}
