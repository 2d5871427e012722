//! Packed numbers, read in place.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::decoder::{Decoder, DecoderVisitor, LANES};
use super::four_bit::{FourBitBlocks, NestedAbsmax, PlainAbsmax, Planes};
use super::gguf::{self, GgufBlocks};
use super::int8::Int8Blocks;
use super::layout::{BlockFormat, PackedLayout};
use crate::instructions::Instructions;

/// A packed matrix to read.
#[derive(Clone, Copy)]
pub struct PackedMatrix<'a> {
    layout: PackedLayout,
    bytes: &'a [u8],
}

impl<'a> PackedMatrix<'a> {
    /// The matrix of a layout that some bytes hold.
    ///
    /// # Panics
    /// If their number is not the layout's.
    pub fn new(layout: PackedLayout, bytes: &'a [u8]) -> Self {
        assert_eq!(
            bytes.len(),
            layout.num_bytes(),
            "not the bytes of the layout"
        );
        Self { layout, bytes }
    }

    /// The format and the sizes.
    pub fn layout(&self) -> PackedLayout {
        self.layout
    }

    /// The packed bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Numbers of a row from `column` on, as many as `out` has: both multiples of 16, or up to the row's end.
    ///
    /// # Panics
    /// If they are not, or lie outside of the matrix.
    pub fn decode(&self, row: usize, column: usize, out: &mut [f32]) {
        self.decode_by(Instructions::best(), row, column, out);
    }

    /// The same by some instructions, which the processor must have.
    pub(super) fn decode_by(&self, by: Instructions, row: usize, column: usize, out: &mut [f32]) {
        let [rows, columns] = self.layout.shape();
        assert!(row < rows && column <= columns && out.len() <= columns - column);
        let is_end = column + out.len() == columns;
        assert!(column.is_multiple_of(LANES) && (is_end || out.len().is_multiple_of(LANES)));
        self.with_decoder(Decode {
            by,
            row,
            column,
            out,
        });
    }

    /// 16 numbers of a row from `column` on, a multiple of 16. To read more than a few, take a decoder.
    ///
    /// # Safety
    /// They lie inside of the row, and the processor has `avx512f` and `avx512bw`.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub unsafe fn load16(&self, row: usize, column: usize) -> __m512 {
        self.with_decoder(Load16 { row, column })
    }

    /// Calls the visitor with the decoder of the format.
    #[inline(always)]
    pub fn with_decoder<V: DecoderVisitor>(&self, visitor: V) -> V::Output {
        let ([rows, columns], bytes) = (self.layout.shape(), self.bytes);
        match self.layout.format() {
            BlockFormat::FourBit(four_bit) => {
                let planes = Planes::new(rows * columns, four_bit);
                if four_bit.is_nested {
                    let absmax = NestedAbsmax::new(bytes, planes);
                    visitor.visit(FourBitBlocks::new(bytes, columns, four_bit, absmax))
                } else {
                    let absmax = PlainAbsmax::new(bytes, planes);
                    visitor.visit(FourBitBlocks::new(bytes, columns, four_bit, absmax))
                }
            }
            BlockFormat::Int8 => visitor.visit(Int8Blocks::new(bytes, [rows, columns])),
            BlockFormat::Q8_0 => visitor.visit(GgufBlocks::<gguf::Q8_0>::new(bytes, columns)),
            BlockFormat::Q4_0 => visitor.visit(GgufBlocks::<gguf::Q4_0>::new(bytes, columns)),
            BlockFormat::Q4_1 => visitor.visit(GgufBlocks::<gguf::Q4_1>::new(bytes, columns)),
            BlockFormat::Q5_0 => visitor.visit(GgufBlocks::<gguf::Q5_0>::new(bytes, columns)),
            BlockFormat::Q5_1 => visitor.visit(GgufBlocks::<gguf::Q5_1>::new(bytes, columns)),
            BlockFormat::Q4K => visitor.visit(GgufBlocks::<gguf::Q4K>::new(bytes, columns)),
            BlockFormat::Q5K => visitor.visit(GgufBlocks::<gguf::Q5K>::new(bytes, columns)),
            BlockFormat::Q6K => visitor.visit(GgufBlocks::<gguf::Q6K>::new(bytes, columns)),
        }
    }
}

/// Decodes a part of a row.
struct Decode<'o> {
    by: Instructions,
    row: usize,
    column: usize,
    out: &'o mut [f32],
}

impl DecoderVisitor for Decode<'_> {
    type Output = ();

    fn visit<D: Decoder>(self, decoder: D) {
        let Self {
            by,
            row,
            column,
            out,
        } = self;
        // SAFETY: `decode_by` checked the place, and got instructions that the processor has.
        unsafe {
            match by {
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512 | Instructions::All => {
                    decode_avx512(decoder, row, column, out)
                }
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 => decode_avx2(decoder, row, column, out),
                Instructions::Portable => decode_portable(decoder, row, column, out),
            }
        }
    }
}

/// # Safety
/// The place lies inside of the matrix.
unsafe fn decode_portable(decoder: impl Decoder, row: usize, column: usize, out: &mut [f32]) {
    for (i, out) in out.chunks_mut(LANES).enumerate() {
        // SAFETY: the caller's; a chunk has at most 16.
        unsafe { decoder.decode16(row, column + i * LANES, out) };
    }
}

/// # Safety
/// As [`decode_portable`], and the processor has the instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn decode_avx512(decoder: impl Decoder, row: usize, column: usize, out: &mut [f32]) {
    let (whole, rest) = out.as_chunks_mut::<LANES>();
    let rest_column = column + whole.len() * LANES;
    for (i, out) in whole.iter_mut().enumerate() {
        // SAFETY: the caller's; `out` has 16 numbers.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), decoder.load16(row, column + i * LANES)) };
    }
    // SAFETY: the caller's.
    unsafe { decode_portable(decoder, row, rest_column, rest) };
}

/// # Safety
/// As [`decode_portable`], and the processor has the instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn decode_avx2(decoder: impl Decoder, row: usize, column: usize, out: &mut [f32]) {
    let (whole, rest) = out.as_chunks_mut::<LANES>();
    let rest_column = column + whole.len() * LANES;
    for (i, out) in whole.iter_mut().enumerate() {
        // SAFETY: the caller's; `out` has 16 numbers.
        unsafe {
            let [lower, upper] = decoder.load16_avx2(row, column + i * LANES);
            _mm256_storeu_ps(out.as_mut_ptr(), lower);
            _mm256_storeu_ps(out.as_mut_ptr().add(LANES / 2), upper);
        }
    }
    // SAFETY: the caller's.
    unsafe { decode_portable(decoder, row, rest_column, rest) };
}

/// Reads 16 numbers.
#[cfg(target_arch = "x86_64")]
struct Load16 {
    row: usize,
    column: usize,
}

#[cfg(target_arch = "x86_64")]
impl DecoderVisitor for Load16 {
    type Output = __m512;

    #[inline(always)]
    fn visit<D: Decoder>(self, decoder: D) -> __m512 {
        // SAFETY: of the caller of `PackedMatrix::load16`, its only user.
        unsafe { decoder.load16(self.row, self.column) }
    }
}
