//! Against bitsandbytes and gguf, by the fixtures that `tests/python/make_quantized.py` makes; and each set of
//! instructions against plain code.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;

use super::*;
use crate::instructions::Instructions;

/// A file of tensors.
pub struct Fixture(Vec<u8>);

impl Fixture {
    pub fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantization");
        Self(fs::read(folder.join(format!("{name}.safetensors"))).unwrap())
    }

    pub fn bytes(&self, key: &str) -> &[u8] {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        tensors
            .tensor(key)
            .unwrap_or_else(|e| panic!("{key}: {e}"))
            .data()
    }

    pub fn f32s(&self, key: &str) -> Vec<f32> {
        let (numbers, _) = self.bytes(key).as_chunks::<4>();
        numbers
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect()
    }

    fn shape(&self, key: &str) -> [usize; 2] {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(key).unwrap();
        tensor.shape().try_into().unwrap()
    }
}

/// Equal bits, so that zeros have the same sign.
#[track_caller]
fn assert_same_bits(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(
            found.to_bits(),
            expected.to_bits(),
            "{what}, number {i}: {found} {expected}"
        );
    }
}

/// Names of the values, the format, and the beginning of the keys in the fixture of a table.
fn four_bit_cases(table: FourBitTable) -> Vec<(&'static str, FourBit, String)> {
    let mut cases = vec![("small", 64, false), ("small", 64, true)];
    cases.extend([("small", 128, false), ("small", 128, true)]);
    if table == FourBitTable::Nf4 {
        cases.extend([("large", 64, true), ("huge", 64, false)]);
    }
    let case = |(values, block_len, is_nested)| {
        let four_bit = FourBit::new(table)
            .with_block_len(block_len)
            .with_nested(is_nested);
        let nested = if is_nested { "nested" } else { "plain" };
        (values, four_bit, format!("{values}.{block_len}.{nested}"))
    };
    cases.into_iter().map(case).collect()
}

#[test]
fn four_bits_are_those_of_bitsandbytes() {
    let values = Fixture::open("values");
    for table in [FourBitTable::Nf4, FourBitTable::Fp4] {
        let format = BlockFormat::FourBit(FourBit::new(table)).to_string();
        let fixture = Fixture::open(&format);
        for (name, four_bit, key) in four_bit_cases(table) {
            let layout =
                PackedLayout::new(BlockFormat::FourBit(four_bit), values.shape(name)).unwrap();
            let (codes, absmax) = (
                fixture.bytes(&format!("{key}.codes")),
                format!("{key}.absmax"),
            );
            let expected = match four_bit.is_nested {
                false => assemble_four_bit(layout, codes, Absmax::Plain(&fixture.f32s(&absmax))),
                true => {
                    let absmax = Absmax::Nested {
                        codes: fixture.bytes(&absmax),
                        nested: &fixture.f32s(&format!("{key}.nested_absmax")),
                        offset: fixture.f32s(&format!("{key}.offset"))[0],
                    };
                    assemble_four_bit(layout, codes, absmax)
                }
            }
            .unwrap();
            let numbers = fixture.f32s(&format!("{key}.expected"));
            assert_same_bits(
                &dequantize(layout, &expected),
                &numbers,
                &format!("{format} {key}"),
            );
            let found = quantize(&values.f32s(name), layout).unwrap();
            assert_eq!(first_difference(&found, &expected), None, "{format} {key}");
        }
    }
}

fn first_difference(found: &[u8], expected: &[u8]) -> Option<usize> {
    assert_eq!(found.len(), expected.len());
    (0..found.len()).find(|i| found[*i] != expected[*i])
}

#[test]
fn tables_are_those_of_bitsandbytes() {
    let tables = Fixture::open("tables");
    assert_same_bits(FourBitTable::Nf4.values(), &tables.f32s("nf4"), "nf4");
    assert_same_bits(FourBitTable::Fp4.values(), &tables.f32s("fp4"), "fp4");
    assert_same_bits(nested_table(), &tables.f32s("dynamic"), "dynamic");
}

#[test]
fn int8_is_that_of_bitsandbytes() {
    let (values, fixture) = (Fixture::open("values"), Fixture::open("int8"));
    for name in ["small", "huge"] {
        let layout = PackedLayout::new(BlockFormat::Int8, values.shape(name)).unwrap();
        let codes = fixture.bytes(&format!("{name}.codes"));
        let scales = fixture.f32s(&format!("{name}.scales"));
        let expected = assemble_int8(layout, codes, &scales).unwrap();
        let numbers = fixture.f32s(&format!("{name}.expected"));
        assert_same_bits(&dequantize(layout, &expected), &numbers, name);
        let found = quantize(&values.f32s(name), layout).unwrap();
        assert_eq!(first_difference(&found, &expected), None, "{name}");
    }
}

const GGUF_FORMATS: [BlockFormat; 8] = [
    BlockFormat::Q8_0,
    BlockFormat::Q4_0,
    BlockFormat::Q4_1,
    BlockFormat::Q5_0,
    BlockFormat::Q5_1,
    BlockFormat::Q4K,
    BlockFormat::Q5K,
    BlockFormat::Q6K,
];

#[test]
fn blocks_are_those_of_gguf() {
    let values = Fixture::open("values").f32s("small");
    for format in GGUF_FORMATS {
        let fixture = Fixture::open(&format.to_string().to_lowercase());
        let layout = PackedLayout::new(format, fixture.shape("expected")).unwrap();
        let packed = assemble_gguf(layout, fixture.bytes("blocks")).unwrap();
        let expected = fixture.f32s("expected");
        assert_same_bits(&dequantize(layout, &packed), &expected, &format.to_string());
        if format.is_written() {
            let found = quantize(&values, layout).unwrap();
            assert_eq!(first_difference(&found, &packed), None, "{format}");
        }
    }
}

/// All formats, each with a shape of some blocks.
fn layouts() -> impl Strategy<Value = PackedLayout> {
    let four_bit = |table| {
        let of_len = move |block_len| FourBit::new(table).with_block_len(block_len);
        [
            of_len(32),
            of_len(64),
            of_len(128).with_nested(true),
            of_len(64).with_nested(true),
        ]
    };
    let tables = [FourBitTable::Nf4, FourBitTable::Fp4].into_iter();
    let formats: Vec<BlockFormat> = tables
        .flat_map(four_bit)
        .map(BlockFormat::FourBit)
        .chain([BlockFormat::Int8])
        .chain(GGUF_FORMATS)
        .collect();
    let sizes = (1usize..6, 1usize..5, 1usize..80);
    (prop::sample::select(formats), sizes).prop_map(|(format, (rows, blocks, odd))| {
        let columns = match (format, format.gguf_block()) {
            (_, Some([numbers, _])) => numbers * blocks,
            (BlockFormat::FourBit(four_bit), _) => four_bit.block_len * blocks,
            _ => odd,
        };
        PackedLayout::new(format, [rows, columns]).unwrap()
    })
}

/// Bytes that may be any: scales that are no numbers are made zero.
fn random_bytes(layout: PackedLayout, seed: u64) -> Vec<u8> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut bytes: Vec<u8> = (0..layout.num_bytes()).map(|_| random.random()).collect();
    let values = dequantize(layout, &bytes);
    if values.iter().any(|value| value.is_nan()) {
        // The exponents of both widths of floats are not all ones.
        bytes.iter_mut().for_each(|byte| *byte &= 0xbb);
    }
    bytes
}

/// The numbers of a row, by plain code, 16 at a time.
fn decode_row(matrix: PackedMatrix, row: usize) -> Vec<f32> {
    let [_, columns] = matrix.layout().shape();
    let mut numbers = vec![0.0; columns];
    for (i, out) in numbers.chunks_mut(16).enumerate() {
        matrix.decode_by(Instructions::Portable, row, 16 * i, out);
    }
    numbers
}

proptest! {
    #[test]
    fn all_instructions_decode_the_same(
        layout in layouts(),
        seed: u64,
        (row, first, last) in (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<prop::sample::Index>()),
    ) {
        let bytes = random_bytes(layout, seed);
        let matrix = PackedMatrix::new(layout, &bytes);
        let [rows, columns] = layout.shape();
        let row = row.index(rows);
        let first = first.index(columns.div_ceil(16)) * 16;
        let last = (first + 16 * (1 + last.index(columns.div_ceil(16)))).min(columns);
        let expected = &decode_row(matrix, row)[first..last];
        for by in Instructions::usable() {
            let mut found = vec![f32::NAN; last - first];
            matrix.decode_by(by, row, first, &mut found);
            assert_same_bits(&found, expected, &format!("{by:?} {layout:?}"));
        }
    }

    #[test]
    fn all_numbers_are_decoded_on_all_threads(layout in layouts(), seed: u64) {
        let bytes = random_bytes(layout, seed);
        let matrix = PackedMatrix::new(layout, &bytes);
        let rows = (0..layout.shape()[0]).flat_map(|row| decode_row(matrix, row));
        assert_same_bits(&dequantize(layout, &bytes), &rows.collect::<Vec<_>>(), "");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn registers_hold_what_is_decoded(layout in layouts(), seed: u64) {
        if Instructions::best() < Instructions::Avx512 {
            return Ok(());
        }
        let bytes = random_bytes(layout, seed);
        let matrix = PackedMatrix::new(layout, &bytes);
        let [rows, columns] = layout.shape();
        for row in 0..rows {
            let expected = decode_row(matrix, row);
            for column in (0..columns / 16 * 16).step_by(16) {
                let mut found = [0.0; 16];
                // SAFETY: inside of the matrix, on a processor with AVX-512.
                unsafe { load16(matrix, row, column, &mut found) };
                assert_same_bits(&found, &expected[column..][..16], &format!("{layout:?}"));
            }
        }
    }

    #[test]
    fn a_number_is_at_most_half_a_step_away(
        values in prop::collection::vec(-2.0f32..2.0, 128),
        scale in 1e-3f32..1e3,
    ) {
        let values: Vec<f32> = values.into_iter().map(|value| value * scale).collect();
        let largest = values.iter().fold(0.0, |max: f32, value| max.max(value.abs()));
        let nf4 = FourBit::new(FourBitTable::Nf4);
        for (format, step) in [
            // The widest gap of NF4, the even gaps of the others; the scales of GGUF's lose bits.
            (BlockFormat::FourBit(nf4), 0.304),
            (BlockFormat::Int8, 1.0 / 127.0),
            (BlockFormat::Q8_0, 1.0 / 110.0),
            (BlockFormat::Q4_1, 2.0 / 14.0),
            (BlockFormat::Q5_1, 2.0 / 29.0),
        ] {
            let layout = PackedLayout::new(format, [2, 64]).unwrap();
            let found = dequantize(layout, &quantize(&values, layout).unwrap());
            for (found, value) in found.iter().zip(&values) {
                prop_assert!((found - value).abs() <= 0.51 * step * largest, "{format}: {found} {value}");
            }
        }
    }
}

/// # Safety
/// As [`PackedMatrix::load16`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load16(matrix: PackedMatrix, row: usize, column: usize, out: &mut [f32; 16]) {
    // SAFETY: the caller's; `out` has 16 numbers.
    unsafe { std::arch::x86_64::_mm512_storeu_ps(out.as_mut_ptr(), matrix.load16(row, column)) };
}

#[test]
fn sizes_are_those_of_the_planes() {
    let four_bit = FourBit::new(FourBitTable::Nf4);
    for (format, shape, expected) in [
        (BlockFormat::FourBit(four_bit), [3, 128], 192 + 6 * 4),
        (
            BlockFormat::FourBit(four_bit.with_nested(true)),
            [3, 128],
            192 + 8 + 4 + 4,
        ),
        (
            BlockFormat::FourBit(four_bit.with_nested(true)),
            [257, 64],
            8224 + 260 + 4 + 8,
        ),
        (BlockFormat::Int8, [3, 5], 16 + 12),
        (BlockFormat::Q8_0, [1, 96], 104),
        (BlockFormat::Q6K, [1, 256], 212),
    ] {
        let layout = PackedLayout::new(format, shape).unwrap();
        assert_eq!(layout.num_bytes(), expected, "{format} {shape:?}");
        assert_eq!((layout.format(), layout.shape()), (format, shape));
    }
}

#[track_caller]
fn assert_error<T>(result: Result<T>, expected: &str) {
    let message = result.err().expect("an error").to_string();
    assert!(message.contains(expected), "{message}");
}

#[test]
fn shapes_that_cannot_be_packed_are_errors() {
    let four_bit = FourBit::new(FourBitTable::Fp4);
    let of_len = |block_len| BlockFormat::FourBit(four_bit.with_block_len(block_len));
    for (format, shape, expected) in [
        (
            of_len(64),
            [4, 96],
            "fp4 packs 64 numbers of a row together, which do not divide rows of 96",
        ),
        (BlockFormat::Q4K, [4, 128], "Q4_K packs 256"),
        (
            of_len(48),
            [4, 96],
            "block_len: 48 is no power of two from 32 to 4096",
        ),
        (of_len(8192), [4, 8192], "from 32 to 4096"),
        (of_len(0), [4, 64], "block_len: 0"),
        (BlockFormat::Int8, [0, 4], "shape: [0, 4] has no numbers"),
        (BlockFormat::Q8_0, [4, 0], "has no numbers"),
        (
            BlockFormat::Int8,
            [usize::MAX / 2, 3],
            "more than fits into memory",
        ),
        (
            BlockFormat::Q8_0,
            [usize::MAX / 64, 32],
            "more than fits into memory",
        ),
    ] {
        assert_error(PackedLayout::new(format, shape), expected);
    }
}

#[test]
fn values_that_cannot_be_packed_are_errors() {
    let mut values = vec![0.5; 2 * 64];
    values[64 + 3] = f32::NAN;
    let layout = |format| PackedLayout::new(format, [2, 64]).unwrap();
    assert_error(
        quantize(&values, layout(BlockFormat::Int8)),
        "row 1, column 3 is NaN",
    );
    values[64 + 3] = f32::NEG_INFINITY;
    assert_error(
        quantize(&values, layout(BlockFormat::Q4_0)),
        "row 1, column 3 is -inf",
    );
    values[64 + 3] = 1e9;
    for format in GGUF_FORMATS
        .into_iter()
        .filter(|format| format.is_written())
    {
        assert_error(
            quantize(&values, layout(format)),
            "too large for scales in half",
        );
    }
    assert_error(
        quantize(
            &[0.5; 256],
            PackedLayout::new(BlockFormat::Q5K, [1, 256]).unwrap(),
        ),
        "Q5_K is read, not written",
    );
    values.fill(f32::MAX);
    let nested = FourBit::new(FourBitTable::Nf4).with_nested(true);
    assert_error(
        quantize(&values, layout(BlockFormat::FourBit(nested))),
        "mean",
    );
}

#[test]
fn parts_of_other_lengths_are_errors() {
    let four_bit = FourBit::new(FourBitTable::Nf4);
    let plain = PackedLayout::new(BlockFormat::FourBit(four_bit), [2, 64]).unwrap();
    let nested = BlockFormat::FourBit(four_bit.with_nested(true));
    let nested = PackedLayout::new(nested, [2, 64]).unwrap();
    let (codes, absmax) = ([0; 64], [0.0; 2]);
    let nested_absmax = |codes, nested| Absmax::Nested {
        codes,
        nested,
        offset: 0.0,
    };
    for (layout, codes, absmax, expected) in [
        (
            plain,
            &codes[1..],
            Absmax::Plain(&absmax),
            "codes: has 63 elements where",
        ),
        (
            plain,
            &codes,
            Absmax::Plain(&absmax[1..]),
            "absmax: has 1 elements",
        ),
        (
            plain,
            &codes,
            nested_absmax(&[0, 0], &[0.0]),
            "whether they are nested",
        ),
        (
            nested,
            &codes,
            Absmax::Plain(&absmax),
            "whether they are nested",
        ),
        (
            nested,
            &codes,
            nested_absmax(&[0], &[0.0]),
            "absmax: has 1 elements",
        ),
        (
            nested,
            &codes,
            nested_absmax(&[0, 0], &absmax),
            "nested_absmax: has 2 elements",
        ),
    ] {
        assert_error(assemble_four_bit(layout, codes, absmax), expected);
    }
    let int8 = PackedLayout::new(BlockFormat::Int8, [2, 3]).unwrap();
    assert_error(
        assemble_int8(int8, &[0; 7], &absmax),
        "7 codes for a weight of 2 x 3",
    );
    assert_error(assemble_int8(int8, &[0; 6], &[0.0]), "1 scales for 2 rows");
    let q4_1 = PackedLayout::new(BlockFormat::Q4_1, [2, 32]).unwrap();
    assert_error(
        assemble_gguf(q4_1, &[0; 39]),
        "2 x 32 numbers in Q4_1 are 40 bytes, not 39",
    );
}

#[test]
#[should_panic = "out.len() <= columns - column"]
fn numbers_behind_the_row_are_not_read() {
    let layout = PackedLayout::new(BlockFormat::Q8_0, [2, 32]).unwrap();
    PackedMatrix::new(layout, &vec![0; layout.num_bytes()]).decode(0, 16, &mut [0.0; 32]);
}

#[test]
#[should_panic = "not the bytes of the layout"]
fn a_matrix_has_the_bytes_of_its_layout() {
    let layout = PackedLayout::new(BlockFormat::Q8_0, [2, 32]).unwrap();
    PackedMatrix::new(layout, &[0; 64]);
}

/// With double quantization: 4 bits, 8 for each block of 64, and 32 for each 256 of these.
#[test]
fn nf4_takes_about_a_quarter_of_bf16() {
    let shape = [4096, 11008];
    let nf4 = FourBit::new(FourBitTable::Nf4).with_nested(true);
    let layout = PackedLayout::new(BlockFormat::FourBit(nf4), shape).unwrap();
    let of_bf16 = 2 * shape[0] * shape[1];
    assert!(layout.num_bytes() as f64 <= 0.27 * of_bf16 as f64);
}
