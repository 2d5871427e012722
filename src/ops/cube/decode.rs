//! The formulas of [`quantization`](crate::quantization) in a kernel: from the words of a packed weight to some
//! neighbouring numbers of a row, in f32.

use cubecl::prelude::*;

use crate::quantization::{BlockFormat, FourBit, FourBitTable, NESTED_BLOCK_LEN};

/// Where the numbers of [`FourBitTable::Fp4`] and of nested magnitudes begin, behind those of [`FourBitTable::Nf4`].
const FP4_AT: usize = 16;
const NESTED_AT: usize = 32;
/// What the scale of a row of int8 is multiplied by.
const PER_CODE: f32 = 1.0 / 127.0;

/// What the codes of the formats with tables stand for.
pub fn tables() -> Vec<f32> {
    let (nf4, fp4) = (FourBitTable::Nf4.values(), FourBitTable::Fp4.values());
    [&nf4[..], fp4, crate::quantization::nested_table()].concat()
}

fn table_at(table: FourBitTable) -> usize {
    match table {
        FourBitTable::Nf4 => 0,
        FourBitTable::Fp4 => FP4_AT,
    }
}

/// A packed weight, but for its format.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub struct Places {
    pub columns: usize,
    /// Where the scales of the rows or the magnitudes of the blocks begin, in words, if they are not in the blocks.
    scales_at: usize,
    /// Where the magnitudes are nested: their mean, before the largest of each 256.
    offset_at: usize,
    /// Zero, which no compiler knows.
    zero: u32,
}

/// Numbers of a row from one on. Their count divides 16, that of those before them in the row is a multiple of it.
#[cube]
pub fn decoded<N: Size>(
    words: &Tensor<u32>,
    tables: &Tensor<f32>,
    places: &Places,
    row: usize,
    column: usize,
    #[comptime] format: BlockFormat,
) -> Vector<f32, N> {
    let number = row * places.columns + column;
    let [block_len, block_bytes] = comptime!(format.gguf_block().unwrap_or([1, 0]));
    let start = number / block_len * block_bytes;
    let place = number % block_len;
    let mut values = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for i in 0..values.vector_size() {
        let value = match comptime!(format) {
            BlockFormat::FourBit(four_bit) => four_bit_value(words, tables, number + i, four_bit),
            BlockFormat::Int8 => {
                let scale = float(words[places.scales_at + row]);
                rounded(signed_byte(words, number + i) * scale, places)
            }
            _ => gguf_value(words, start, place + i, format),
        };
        values.insert(i, value);
    }
    match comptime!(format) {
        BlockFormat::FourBit(four_bit) => {
            values * Vector::new(absmax(words, tables, places, number, four_bit))
        }
        BlockFormat::Int8 => values * Vector::new(PER_CODE),
        _ => {
            let factor = Vector::new(gguf_factor(words, start, place, format));
            match comptime!(has_shift(format)) {
                // The product is exact (`quantization::arithmetic::Affine`): it may be fused with the sum.
                true => values * factor + Vector::new(gguf_shift(words, start, place, format)),
                // Without a sum, zeros keep their sign.
                false => values * factor,
            }
        }
    }
}

/// Some bits of a byte, from the lowest on after a shift.
#[cube]
fn bits(words: &Tensor<u32>, byte: usize, shift: usize, #[comptime] mask: u32) -> u32 {
    (words[byte / 4] >> ((byte % 4 * 8 + shift) as u32)) & mask
}

/// A byte in two's complement.
#[cube]
fn signed_byte(words: &Tensor<u32>, byte: usize) -> f32 {
    f32::cast_from(bits(words, byte, 0usize, 255u32) ^ 128) - 128.0f32
}

#[cube]
fn float(word: u32) -> f32 {
    f32::reinterpret(word)
}

/// A product that is rounded before anything is done with it: compilers fuse it with a sum, or multiply its factors in
/// another order, but not across an operation on bits that they do not know.
#[cube]
fn rounded(product: f32, places: &Places) -> f32 {
    float(u32::reinterpret(product) ^ places.zero)
}

/// A number in half precision, at an even byte; on devices without it too.
#[cube]
fn half(words: &Tensor<u32>, byte: usize) -> f32 {
    let half = bits(words, byte, 0usize, 0xffffu32);
    let exponent = (half >> 10) & 31;
    let fraction = half & 1023;
    // Infinity and NaN have the largest exponent there too.
    let widened = select(exponent == 31, 255u32, exponent + 112);
    let normal = float((widened << 23) | (fraction << 13));
    let subnormal = f32::cast_from(fraction) * comptime!(f32::from_bits(0x3380_0000)); // 2⁻²⁴
    let magnitude = u32::reinterpret(select(exponent == 0, subnormal, normal));
    float(magnitude | ((half & 0x8000) << 16))
}

#[cube]
fn four_bit_value(
    words: &Tensor<u32>,
    tables: &Tensor<f32>,
    number: usize,
    #[comptime] four_bit: FourBit,
) -> f32 {
    let code = bits(words, number / 2, 4 - number % 2 * 4, 15u32);
    tables[code as usize + comptime!(table_at(four_bit.table))]
}

/// The largest magnitude of the block of a number.
#[cube]
fn absmax(
    words: &Tensor<u32>,
    tables: &Tensor<f32>,
    places: &Places,
    number: usize,
    #[comptime] four_bit: FourBit,
) -> f32 {
    let block = number / comptime!(four_bit.block_len);
    if comptime!(four_bit.is_nested) {
        let code = bits(words, places.scales_at * 4 + block, 0usize, 255u32);
        let largest = words[places.offset_at + 1 + block / NESTED_BLOCK_LEN];
        let product = tables[code as usize + NESTED_AT] * float(largest);
        rounded(product, places) + float(words[places.offset_at])
    } else {
        float(words[places.scales_at + block])
    }
}

/// What the code of a number stands for before it is scaled; `start` is the first byte of its block, `place` its own
/// place there. The blocks are described in `quantization::gguf`.
#[cube]
fn gguf_value(
    words: &Tensor<u32>,
    start: usize,
    place: usize,
    #[comptime] format: BlockFormat,
) -> f32 {
    match comptime!(format) {
        BlockFormat::Q8_0 => signed_byte(words, start + 2 + place),
        BlockFormat::Q4_0 => f32::cast_from(half_byte(words, start + 2, place)) - 8.0f32,
        BlockFormat::Q4_1 => f32::cast_from(half_byte(words, start + 4, place)),
        BlockFormat::Q5_0 => f32::cast_from(five_bits(words, start + 2, place)) - 16.0f32,
        BlockFormat::Q5_1 => f32::cast_from(five_bits(words, start + 4, place)),
        BlockFormat::Q4K => f32::cast_from(half_byte_of_parts(words, start + 16, place)),
        BlockFormat::Q5K => {
            let low = half_byte_of_parts(words, start + 48, place);
            let high = bits(words, start + 16 + place % 32, place / 32, 1u32);
            f32::cast_from(low | (high << 4))
        }
        BlockFormat::Q6K => f32::cast_from(six_bits(words, start, place)) - 32.0f32,
        _ => panic!("no format of GGUF's"),
    }
}

/// Of 16 bytes, the lower half of one for the first 16 numbers, the upper for the others.
#[cube]
fn half_byte(words: &Tensor<u32>, bytes: usize, place: usize) -> u32 {
    bits(words, bytes + place % 16, place / 16 * 4, 15u32)
}

/// The fifth bits of 32 numbers, and behind them their half bytes.
#[cube]
fn five_bits(words: &Tensor<u32>, bytes: usize, place: usize) -> u32 {
    let high = bits(words, bytes + place / 8, place % 8, 1u32);
    half_byte(words, bytes + 4, place) | (high << 4)
}

/// Of 32 bytes, the lower halves for one part of 32 numbers, the upper for the next.
#[cube]
fn half_byte_of_parts(words: &Tensor<u32>, bytes: usize, place: usize) -> u32 {
    let byte = bytes + place / 64 * 32 + place % 32;
    bits(words, byte, place / 32 % 2 * 4, 15u32)
}

/// The code of Q6_K.
#[cube]
fn six_bits(words: &Tensor<u32>, start: usize, place: usize) -> u32 {
    let half = place / 128;
    let part = place / 32 % 4;
    let within = place % 32;
    let low = bits(
        words,
        start + half * 64 + part % 2 * 32 + within,
        part / 2 * 4,
        15u32,
    );
    let high = bits(words, start + 128 + half * 32 + within, part * 2, 3u32);
    low | (high << 4)
}

/// What a value is multiplied by.
#[cube]
fn gguf_factor(
    words: &Tensor<u32>,
    start: usize,
    place: usize,
    #[comptime] format: BlockFormat,
) -> f32 {
    match comptime!(format) {
        BlockFormat::Q4K | BlockFormat::Q5K => {
            let part = place / 32;
            let scale = if part < 4 {
                bits(words, start + 4 + part, 0usize, 63u32)
            } else {
                let high = bits(words, start + part, 6usize, 3u32);
                bits(words, start + 8 + part, 0usize, 15u32) | (high << 4)
            };
            half(words, start) * f32::cast_from(scale)
        }
        BlockFormat::Q6K => half(words, start + 208) * signed_byte(words, start + 192 + place / 16),
        _ => half(words, start),
    }
}

fn has_shift(format: BlockFormat) -> bool {
    use BlockFormat::{Q4_1, Q4K, Q5_1, Q5K};
    matches!(format, Q4_1 | Q5_1 | Q4K | Q5K)
}

/// What is added then.
#[cube]
fn gguf_shift(
    words: &Tensor<u32>,
    start: usize,
    place: usize,
    #[comptime] format: BlockFormat,
) -> f32 {
    let minimum = half(words, start + 2);
    match comptime!(format) {
        BlockFormat::Q4K | BlockFormat::Q5K => {
            let part = place / 32;
            let steps = if part < 4 {
                bits(words, start + 8 + part, 0usize, 63u32)
            } else {
                let high = bits(words, start + 4 + part, 6usize, 3u32);
                bits(words, start + 8 + part, 4usize, 15u32) | (high << 4)
            };
            -(minimum * f32::cast_from(steps))
        }
        _ => minimum,
    }
}
