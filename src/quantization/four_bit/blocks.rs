//! Reading codes of four bits.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::array::from_fn;

use super::NESTED_BLOCK_LEN;
use super::tables::nested_table;
use crate::quantization::arithmetic::{Factor, Table};
use crate::quantization::bytes::{Half, read_f32};
use crate::quantization::decoder::{Blocks, LANES};
use crate::quantization::layout::FourBit;

/// Where the parts of a packed matrix begin, after the codes at 0.
#[derive(Clone, Copy)]
pub struct Planes {
    pub num_blocks: usize,
    /// The `absmax`, or their codes.
    pub absmax_at: usize,
    /// Where they are nested: their mean.
    pub offset_at: usize,
    /// Where they are nested: the largest of 256.
    pub nested_at: usize,
    pub num_nested: usize,
    pub end: usize,
}

impl Planes {
    /// Of a number of numbers, which the blocks divide.
    pub fn new(numbers: usize, four_bit: FourBit) -> Self {
        let num_blocks = numbers / four_bit.block_len;
        let absmax_at = numbers / 2;
        let num_nested = num_blocks.div_ceil(NESTED_BLOCK_LEN);
        let offset_at = (absmax_at + num_blocks).next_multiple_of(4);
        let nested_at = offset_at + size_of::<f32>();
        let end = match four_bit.is_nested {
            true => nested_at + num_nested * size_of::<f32>(),
            false => absmax_at + num_blocks * size_of::<f32>(),
        };
        Self {
            num_blocks,
            absmax_at,
            offset_at,
            nested_at,
            num_nested,
            end,
        }
    }
}

/// The largest magnitudes of the blocks.
pub trait ReadAbsmax: Copy + Send + Sync {
    /// # Safety
    /// The matrix has the block.
    unsafe fn read(&self, block: usize) -> f32;
}

#[derive(Clone, Copy)]
pub struct PlainAbsmax<'a>(&'a [u8]);

impl<'a> PlainAbsmax<'a> {
    #[inline(always)]
    pub fn new(bytes: &'a [u8], planes: Planes) -> Self {
        Self(&bytes[planes.absmax_at..])
    }
}

impl ReadAbsmax for PlainAbsmax<'_> {
    #[inline(always)]
    unsafe fn read(&self, block: usize) -> f32 {
        // SAFETY: the caller's.
        unsafe { read_f32(self.0, block * size_of::<f32>()) }
    }
}

#[derive(Clone, Copy)]
pub struct NestedAbsmax<'a> {
    codes: &'a [u8],
    nested: &'a [u8],
    table: &'static [f32; 256],
    offset: f32,
}

impl<'a> NestedAbsmax<'a> {
    #[inline(always)]
    pub fn new(bytes: &'a [u8], planes: Planes) -> Self {
        let [offset] = bytes[planes.offset_at..planes.nested_at].as_chunks().0 else {
            unreachable!("an f32 has four bytes");
        };
        Self {
            codes: &bytes[planes.absmax_at..planes.offset_at],
            nested: &bytes[planes.nested_at..],
            table: nested_table(),
            offset: f32::from_le_bytes(*offset),
        }
    }
}

impl ReadAbsmax for NestedAbsmax<'_> {
    /// The product is rounded before the sum, as bitsandbytes does.
    #[inline(always)]
    unsafe fn read(&self, block: usize) -> f32 {
        let nested = block / NESTED_BLOCK_LEN * size_of::<f32>();
        // SAFETY: the caller's.
        let (code, largest) = unsafe {
            (
                *self.codes.get_unchecked(block),
                read_f32(self.nested, nested),
            )
        };
        self.table[usize::from(code)] * largest + self.offset
    }
}

/// The codes of a matrix, two a byte, the first one in the upper half.
#[derive(Clone, Copy)]
pub struct FourBitBlocks<'a, A> {
    codes: &'a [u8],
    columns: usize,
    table: &'static [f32; 16],
    /// The length of a block is two to this power.
    log_block_len: u32,
    absmax: A,
}

impl<'a, A: ReadAbsmax> FourBitBlocks<'a, A> {
    #[inline(always)]
    pub fn new(bytes: &'a [u8], columns: usize, four_bit: FourBit, absmax: A) -> Self {
        Self {
            codes: bytes,
            columns,
            table: four_bit.table.values(),
            log_block_len: four_bit.block_len.trailing_zeros(),
            absmax,
        }
    }

    /// The eight bytes that hold 16 codes.
    ///
    /// # Safety
    /// The 16 numbers lie inside of the matrix.
    #[inline(always)]
    unsafe fn bytes(&self, row: usize, column: usize) -> [u8; LANES / 2] {
        let at = (row * self.columns + column) / 2;
        // SAFETY: two numbers share a byte, and the caller says that all 16 lie inside.
        unsafe { self.codes.as_ptr().add(at).cast::<[u8; LANES / 2]>().read() }
    }
}

impl<A: ReadAbsmax> Blocks for FourBitBlocks<'_, A> {
    type Values = Table;
    type Scale = Factor;

    #[inline(always)]
    fn values(&self) -> Table {
        Table(self.table)
    }

    #[inline(always)]
    unsafe fn codes(&self, row: usize, column: usize) -> [u8; LANES] {
        // SAFETY: the caller's.
        let bytes = unsafe { self.bytes(row, column) };
        from_fn(|i| {
            if i % 2 == 0 {
                bytes[i / 2] >> 4
            } else {
                bytes[i / 2] & 15
            }
        })
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn codes_x86(&self, row: usize, column: usize) -> __m128i {
        // SAFETY: the caller's; all processors of this architecture have these.
        unsafe {
            let bytes = _mm_cvtsi64_si128(i64::from_le_bytes(self.bytes(row, column)));
            _mm_unpacklo_epi8(_mm_srli_epi16::<4>(bytes), bytes)
        }
    }

    #[inline(always)]
    unsafe fn scale<H: Half>(&self, row: usize, column: usize) -> Factor {
        let number = row * self.columns + column;
        // SAFETY: the caller's.
        Factor(unsafe { self.absmax.read(number >> self.log_block_len) })
    }
}
