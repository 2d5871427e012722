//! From numbers to codes, with the roundings of bitsandbytes on a CPU.

use rayon::prelude::*;

use super::mean::mean;
use super::tables::nested_table;
use super::{Absmax, NESTED_BLOCK_LEN, assemble_four_bit};
use crate::Result;
use crate::quantization::layout::{FourBit, FourBitTable, PackedLayout};
use crate::quantization::{CHUNK, invalid, largest_magnitude};

/// Numbers that are compared together.
const GROUP: usize = 16;

pub fn quantize(values: &[f32], layout: PackedLayout, four_bit: FourBit) -> Result<Vec<u8>> {
    let mut codes = vec![0; values.len() / 2];
    let mut absmax = vec![0.0; values.len() / four_bit.block_len];
    let table = SortedTable::new(four_bit.table);
    let places = codes.par_chunks_exact_mut(four_bit.block_len / 2);
    let blocks = values.par_chunks_exact(four_bit.block_len).zip(places);
    blocks
        .zip(&mut absmax)
        .with_min_len(CHUNK.div_ceil(four_bit.block_len))
        .for_each(|((values, codes), absmax)| *absmax = quantize_block(values, &table, codes));
    if !four_bit.is_nested {
        return assemble_four_bit(layout, &codes, Absmax::Plain(&absmax));
    }
    let offset = mean(&absmax);
    if !offset.is_finite() {
        let message = "are so large that the mean of the blocks' largest is infinite";
        return Err(invalid("values", message));
    }
    absmax.iter_mut().for_each(|absmax| *absmax -= offset);
    let (absmax, nested) = quantize_nested(&absmax);
    let absmax = Absmax::Nested {
        codes: &absmax,
        nested: &nested,
        offset,
    };
    assemble_four_bit(layout, &codes, absmax)
}

/// The codes in the order of their numbers, and the middles between these.
struct SortedTable {
    codes: [u8; 16],
    middles: [f32; 15],
}

impl SortedTable {
    fn new(table: FourBitTable) -> Self {
        let values = table.values();
        // Of the two zeros of FP4 the code 0 is the lower, by the order that they are sorted in.
        let mut codes: [u8; 16] = std::array::from_fn(|code| code as u8);
        codes.sort_by(|a, b| values[usize::from(*a)].total_cmp(&values[usize::from(*b)]));
        let value = |i: usize| values[usize::from(codes[i])];
        Self {
            codes,
            middles: std::array::from_fn(|i| (value(i) + value(i + 1)) / 2.0),
        }
    }
}

/// Writes the codes of a block, those whose numbers are nearest, the lower one of two. Gives the largest magnitude.
fn quantize_block(values: &[f32], table: &SortedTable, codes: &mut [u8]) -> f32 {
    /// By less than this no block is divided.
    const SMALLEST: f32 = 1e-38;
    let absmax = largest_magnitude(values);
    let factor = 1.0 / absmax.max(SMALLEST);
    let groups = values.as_chunks::<GROUP>().0.iter();
    for (values, codes) in groups.zip(codes.as_chunks_mut::<{ GROUP / 2 }>().0) {
        let scaled = values.map(|value| (value * factor).clamp(-1.0, 1.0));
        let mut ranks = [0u32; GROUP];
        for middle in table.middles {
            for (rank, value) in ranks.iter_mut().zip(scaled) {
                *rank += u32::from(value > middle);
            }
        }
        let code = |i: usize| table.codes[ranks[i] as usize];
        for (i, byte) in codes.iter_mut().enumerate() {
            *byte = code(2 * i) << 4 | code(2 * i + 1);
        }
    }
    absmax
}

/// The codes of the magnitudes without their mean, and the largest of each 256.
fn quantize_nested(centered: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let table = nested_table();
    let middles: [f32; 255] = std::array::from_fn(|i| (table[i] + table[i + 1]) / 2.0);
    let mut codes = vec![0; centered.len()];
    let blocks = codes.par_chunks_mut(NESTED_BLOCK_LEN);
    let blocks = blocks.zip(centered.par_chunks(NESTED_BLOCK_LEN));
    let largest = blocks.map(|(codes, values)| {
        let largest = largest_magnitude(values);
        // A block of nothing but the mean keeps its zeros.
        if largest > 0.0 {
            let factor = 1.0 / largest;
            for (code, value) in codes.iter_mut().zip(values) {
                *code = nested_code((value * factor).clamp(-1.0, 1.0), &middles);
            }
        }
        largest
    });
    let largest = largest.collect();
    (codes, largest)
}

/// The code nearest to a number between -1 and 1 that is first rounded to one of 65536.
fn nested_code(value: f32, middles: &[f32; 255]) -> u8 {
    const LAST: f32 = 65535.0;
    let step = ((value + 1.0) * 0.5).mul_add(LAST, 0.5).trunc();
    let rounded = 2.0 * step / LAST - 1.0;
    middles.partition_point(|middle| *middle < rounded) as u8
}
