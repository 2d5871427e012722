//! Numbers of eight bits with a scale a row, as `int8_vectorwise_quant` of bitsandbytes makes them.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use rayon::prelude::*;

use super::arithmetic::{Signed, TwoFactors};
#[cfg(target_arch = "x86_64")]
use super::bytes::load_bytes;
use super::bytes::{Half, read_f32, write_f32s};
use super::decoder::{Blocks, LANES};
use super::layout::{BlockFormat, PackedLayout};
use super::{CHUNK, finite_or_zero, invalid, largest_magnitude};
use crate::Result;

/// The largest code; a row's scale is its largest magnitude.
const MAX_CODE: f32 = 127.0;

/// Where the scales of the rows begin.
pub fn scales_at([rows, columns]: [usize; 2]) -> usize {
    (rows * columns).next_multiple_of(4)
}

#[derive(Clone, Copy)]
pub struct Int8Blocks<'a> {
    bytes: &'a [u8],
    columns: usize,
    scales_at: usize,
}

impl<'a> Int8Blocks<'a> {
    pub fn new(bytes: &'a [u8], shape: [usize; 2]) -> Self {
        Self {
            bytes,
            columns: shape[1],
            scales_at: scales_at(shape),
        }
    }
}

impl Blocks for Int8Blocks<'_> {
    type Values = Signed;
    type Scale = TwoFactors;

    #[inline(always)]
    fn values(&self) -> Signed {
        Signed
    }

    /// The last ones of a row may be followed by those of the next, or by anything.
    #[inline(always)]
    unsafe fn codes(&self, row: usize, column: usize) -> [u8; LANES] {
        let mut codes = [0; LANES];
        let rest = &self.bytes[row * self.columns + column..];
        let len = rest.len().min(LANES);
        codes[..len].copy_from_slice(&rest[..len]);
        codes
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn codes_x86(&self, row: usize, column: usize) -> __m128i {
        // SAFETY: inside of the matrix.
        unsafe { load_bytes(self.bytes.as_ptr().add(row * self.columns + column)) }
    }

    #[inline(always)]
    unsafe fn scale<H: Half>(&self, row: usize, _column: usize) -> TwoFactors {
        let at = self.scales_at + row * size_of::<f32>();
        // SAFETY: a row of the matrix has a scale.
        TwoFactors(unsafe { read_f32(self.bytes, at) }, 1.0 / MAX_CODE)
    }
}

/// A packed matrix from the codes of a file, in two's complement, row after row, and the scales of the rows (`SCB`).
///
/// # Errors
/// If their numbers do not fit the layout's shape.
///
/// # Panics
/// If the layout is of another format.
pub fn assemble_int8(layout: PackedLayout, codes: &[u8], scales: &[f32]) -> Result<Vec<u8>> {
    assert_eq!(layout.format(), BlockFormat::Int8, "another format");
    let [rows, columns] = layout.shape();
    if codes.len() != rows * columns {
        let found = codes.len();
        let message = format!("there are {found} codes for a weight of {rows} x {columns}");
        return Err(invalid("codes", message));
    }
    if scales.len() != rows {
        let message = format!("there are {} scales for {rows} rows", scales.len());
        return Err(invalid("scales", message));
    }
    Ok(assemble(layout, codes, scales))
}

fn assemble(layout: PackedLayout, codes: &[u8], scales: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; layout.num_bytes()];
    bytes[..codes.len()].copy_from_slice(codes);
    write_f32s(&mut bytes, scales_at(layout.shape()), scales);
    bytes
}

pub fn quantize(values: &[f32], layout: PackedLayout) -> Vec<u8> {
    let [rows, columns] = layout.shape();
    let mut bytes = vec![0; layout.num_bytes()];
    let (codes, scales) = bytes.split_at_mut(scales_at([rows, columns]));
    let places = codes[..rows * columns].par_chunks_exact_mut(columns);
    let rows = values.par_chunks_exact(columns).zip(places);
    let scales = scales.as_chunks_mut::<4>().0.par_iter_mut();
    rows.zip(scales)
        .with_min_len(CHUNK.div_ceil(columns))
        .for_each(|((values, codes), scale)| *scale = quantize_row(values, codes).to_le_bytes());
    bytes
}

/// Of numbers about this large each is an integer.
const ROUND: f32 = 12_582_912.0;

/// Writes the codes of a row and gives its scale. Rows of zeros, or so small that the factor is infinite, have zeros.
fn quantize_row(values: &[f32], codes: &mut [u8]) -> f32 {
    let largest = largest_magnitude(values);
    let factor = 1.0 / largest * MAX_CODE;
    for (code, value) in codes.iter_mut().zip(values) {
        // A number that takes all bits of the fraction rounds what is added to it, ties to even.
        let rounded = finite_or_zero(value * factor) + ROUND - ROUND;
        *code = (rounded as i8).cast_unsigned();
    }
    largest
}
