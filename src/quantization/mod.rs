//! Weights in few bits: numbers packed in blocks, and what their bytes mean.
//!
//! A packed matrix is one run of bytes, whose length is a multiple of four, described by a [`PackedLayout`].
//! [`quantize`] makes one from numbers; [`assemble_four_bit`], [`assemble_int8`] and [`assemble_gguf`] make one from
//! what a file holds. [`dequantize`] decodes all of it, [`PackedMatrix`] a part of a row, and a [`Decoder`] 16 numbers
//! into a register, for products that decode a weight on its way into the processor.
//!
//! # Layouts
//! For a matrix of `n = rows * columns` numbers, all in little-endian order:
//!
//! | format | bytes |
//! |---|---|
//! | [`BlockFormat::FourBit`] | `n / 2` of codes, the first number of a pair in the upper half; the largest magnitude of each block, in f32 |
//! | the same, nested | `n / 2` of codes; a code a block, padded with zeros to a multiple of 4; the mean in f32; the largest magnitude of each 256 blocks, in f32 |
//! | [`BlockFormat::Int8`] | `n` of codes, padded with zeros to a multiple of 4; a scale a row, in f32 |
//! | GGUF's | the blocks as they are in the file, padded with zeros to a multiple of 4 |

mod arithmetic;
mod bytes;
mod decoder;
mod four_bit;
mod gguf;
mod int8;
mod join;
mod layout;
mod matrix;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::{Error, Result};
pub use decoder::{Decoder, DecoderVisitor};
pub use four_bit::{Absmax, NESTED_BLOCK_LEN, assemble_four_bit, nested_table};
pub use gguf::assemble_gguf;
pub use int8::assemble_int8;
pub(crate) use join::join_rows;
pub use layout::{BlockFormat, FourBit, FourBitTable, PackedLayout};
pub use matrix::PackedMatrix;

/// Numbers that a thread takes at a time, about.
const CHUNK: usize = 1 << 14;

/// Packs the numbers of a matrix, row after row, on all threads.
///
/// The results are equal to those of bitsandbytes 0.50.2 on a CPU and one thread, and of the `gguf` package 0.19.
///
/// # Errors
/// If a number is NaN or infinite or too large for the format's scales, or if the format is one of the K-quants, which
/// are only read.
///
/// # Panics
/// If there are more or fewer values than the layout's shape has.
pub fn quantize(values: &[f32], layout: PackedLayout) -> Result<Vec<u8>> {
    let [rows, columns] = layout.shape();
    assert_eq!(values.len(), rows * columns, "not the values of the shape");
    check_finite(values, columns)?;
    match layout.format() {
        BlockFormat::FourBit(four_bit) => four_bit::quantize(values, layout, four_bit),
        BlockFormat::Int8 => Ok(int8::quantize(values, layout)),
        BlockFormat::Q8_0 => gguf::quantize::<gguf::Q8_0>(values, layout),
        BlockFormat::Q4_0 => gguf::quantize::<gguf::Q4_0>(values, layout),
        BlockFormat::Q4_1 => gguf::quantize::<gguf::Q4_1>(values, layout),
        BlockFormat::Q5_0 => gguf::quantize::<gguf::Q5_0>(values, layout),
        BlockFormat::Q5_1 => gguf::quantize::<gguf::Q5_1>(values, layout),
        format => Err(invalid(
            "format",
            format!(
                "{format} is read, not written; take Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, NF4, FP4 or int8"
            ),
        )),
    }
}

/// All numbers of a packed matrix, row after row, decoded on all threads.
///
/// # Panics
/// If the number of bytes is not the layout's.
pub fn dequantize(layout: PackedLayout, bytes: &[u8]) -> Vec<f32> {
    let matrix = PackedMatrix::new(layout, bytes);
    let [rows, columns] = layout.shape();
    let mut values = vec![0.0; rows * columns];
    let rows = values.par_chunks_exact_mut(columns).enumerate();
    rows.with_min_len(CHUNK.div_ceil(columns))
        .for_each(|(row, out)| matrix.decode(row, 0, out));
    values
}

fn check_finite(values: &[f32], columns: usize) -> Result<()> {
    let is_infinite = |values: &[f32]| !largest_magnitude(values).is_finite();
    let Some(chunk) = values.par_chunks(CHUNK).position_first(is_infinite) else {
        return Ok(());
    };
    let mut numbers = values.iter().enumerate().skip(chunk * CHUNK);
    let found = numbers.find(|(_, value)| !value.is_finite());
    let (i, value) = found.expect("a number of the chunk is not finite");
    let (row, column) = (i / columns, i % columns);
    let message = format!(
        "the number in row {row}, column {column} is {value}; only finite numbers can be quantized"
    );
    Err(invalid("values", message))
}

/// The largest of some numbers without their signs; NaN if one of them is.
fn largest_magnitude(values: &[f32]) -> f32 {
    // Without a sign, numbers are ordered as their bits are, NaN behind all; those are compared faster.
    let bits = values.iter().map(|value| value.abs().to_bits());
    f32::from_bits(bits.max().unwrap_or(0))
}

/// A number to be rounded to a code; one that became infinite, as the factor of its block is, has the code zero.
fn finite_or_zero(scaled: f32) -> f32 {
    if scaled.is_finite() { scaled } else { 0.0 }
}

fn invalid(name: &'static str, message: impl Into<String>) -> Error {
    let message = message.into();
    Error::InvalidArgument { name, message }
}
