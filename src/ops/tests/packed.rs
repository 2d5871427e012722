//! Packed weights of all formats: decoded to the bits of the plain formula, and multiplied as the numbers are that
//! they stand for.

use half::f16;

use super::*;
use crate::quantization::{
    Absmax, BlockFormat, FourBit, FourBitTable, NESTED_BLOCK_LEN, PackedLayout, assemble_four_bit,
    assemble_gguf, assemble_int8, dequantize,
};
use crate::weight::packed_words;

const SHAPE: [usize; 2] = [70, 512];

/// Rows of int8 may have any length.
const ODD_SHAPE: [usize; 2] = [70, 33];

fn weights() -> impl Iterator<Item = (PackedLayout, Vec<u8>)> {
    let table = FourBit::new(FourBitTable::Nf4);
    let nf4 = [
        table,
        table.with_nested(true),
        table.with_block_len(32).with_nested(true),
    ];
    let fp4 = FourBit::new(FourBitTable::Fp4).with_block_len(128);
    let four_bit = nf4.into_iter().chain([fp4]).map(BlockFormat::FourBit);
    let gguf = gguf_formats().map(|(format, ..)| format);
    let formats = four_bit.chain([BlockFormat::Int8]).chain(gguf);
    let shapes = formats.map(|format| (format, SHAPE));
    let all = shapes.chain([(BlockFormat::Int8, ODD_SHAPE)]);
    all.map(|(format, shape)| {
        let layout = PackedLayout::new(format, shape).unwrap();
        (layout, packed_bytes(layout))
    })
}

/// With numbers and bytes of a block, and where its scales are.
fn gguf_formats() -> impl Iterator<Item = (BlockFormat, [usize; 2], &'static [usize])> {
    let formats: [(_, _, &[usize]); 8] = [
        (BlockFormat::Q8_0, [32, 34], &[0]),
        (BlockFormat::Q4_0, [32, 18], &[0]),
        (BlockFormat::Q4_1, [32, 20], &[0, 2]),
        (BlockFormat::Q5_0, [32, 22], &[0]),
        (BlockFormat::Q5_1, [32, 24], &[0, 2]),
        (BlockFormat::Q4K, [256, 144], &[0, 2]),
        (BlockFormat::Q5K, [256, 176], &[0, 2]),
        (BlockFormat::Q6K, [256, 210], &[208]),
    ];
    formats.into_iter()
}

/// Any codes, and scales that are numbers.
fn packed_bytes(layout: PackedLayout) -> Vec<u8> {
    let [rows, columns] = layout.shape();
    let numbers = rows * columns;
    match layout.format() {
        BlockFormat::FourBit(four_bit) => {
            let blocks = numbers / four_bit.block_len;
            let absmax = match four_bit.is_nested {
                false => Absmax::Plain(&scales(blocks)),
                true => Absmax::Nested {
                    codes: &bytes(blocks),
                    nested: &scales(blocks.div_ceil(NESTED_BLOCK_LEN)),
                    offset: 0.017,
                },
            };
            assemble_four_bit(layout, &bytes(numbers / 2), absmax).unwrap()
        }
        BlockFormat::Int8 => assemble_int8(layout, &bytes(numbers), &scales(rows)).unwrap(),
        format => {
            let found = gguf_formats().find(|(known, ..)| *known == format);
            let (_, [block_len, block_bytes], scales_at) = found.expect("a format of GGUF's");
            let mut blocks = bytes(numbers / block_len * block_bytes);
            for (i, block) in blocks.chunks_exact_mut(block_bytes).enumerate() {
                for at in scales_at {
                    block[*at..][..2].copy_from_slice(&half_scale(i + at).to_le_bytes());
                }
            }
            assemble_gguf(layout, &blocks).unwrap()
        }
    }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7919 % 4093 / 7) as u8).collect()
}

fn scales(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 31 % 97 + 1) as f32 / 911.0).collect()
}

/// Of both signs; zero, subnormal and the largest ones among them.
fn half_scale(i: usize) -> f16 {
    match i % 11 {
        0 => f16::NEG_ZERO,
        1 => f16::from_bits(0x8003),
        2 => f16::from_bits(0x03ff),
        3 => f16::MAX,
        n => f16::from_f32((n as f32 - 7.0) / 37.0),
    }
}

fn on_device(layout: PackedLayout, bytes: &[u8]) -> PackedTensor {
    let words = Tensor::from_data(packed_words(bytes), (&device().inner(), DType::U32));
    PackedTensor { words, layout }
}

#[track_caller]
fn assert_same_bits(found: Tensor<2>, expected: &[f32], what: &str) {
    let found = found.into_data();
    let found = found.as_slice::<f32>().unwrap();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let is_same = found.to_bits() == expected.to_bits();
        assert!(is_same, "{what}, number {i}: {found:?}, not {expected:?}");
    }
}

#[test]
fn numbers_are_the_formulas_to_the_bit() {
    for (layout, bytes) in weights() {
        let (expected, weight) = (dequantize(layout, &bytes), on_device(layout, &bytes));
        let ([_, columns], what) = (layout.shape(), format!("{layout:?}"));
        assert_same_bits(unpacked(weight.clone()), &expected, &what);
        let indices = [69, 0, 3, 3];
        let rows = indices.map(|row| &expected[row * columns..][..columns]);
        let indices = Tensor::from_ints(indices.map(|row| row as i32), &device().inner());
        assert_same_bits(packed_rows(weight, indices), &rows.concat(), &what);
    }
}

/// The numbers, which of GGUF's formats are made small enough to be added up.
fn small(layout: PackedLayout, bytes: &mut [u8]) -> Tensor<2> {
    let found = gguf_formats().find(|(format, ..)| *format == layout.format());
    if let Some((_, [_, block_bytes], scales_at)) = found {
        for block in bytes.chunks_exact_mut(block_bytes) {
            for at in scales_at {
                block[*at..][..2].copy_from_slice(&f16::from_f32(0.01).to_le_bytes());
            }
        }
    }
    let numbers = TensorData::new(dequantize(layout, bytes), layout.shape());
    Tensor::from_data(numbers, &device().inner())
}

/// Few rows are multiplied where the weight lies, more of them by panels of it.
pub(super) fn products_and_gradients_are_those_of_the_numbers() {
    for (layout, mut bytes) in weights() {
        let dense = small(layout, &mut bytes);
        let weight = on_device(layout, &bytes);
        let ([_, columns], size) = (
            layout.shape(),
            dense.clone().abs().max().into_scalar::<f32>(),
        );
        let factor = 1.0 / (size * columns as f32);
        for rows in [5, 20] {
            let x = [random([2, rows, columns])];
            let product = || run(&x, |[x]| packed_linear(x, weight.clone()) * factor);
            let expected = run(&x, |[x]| {
                linear(x, Tensor::from_inner(dense.clone())) * factor
            });
            assert_same(product(), expected.clone());
            set_matmul_precision(MatmulPrecision::Medium);
            let rounded = product();
            set_matmul_precision(MatmulPrecision::Highest);
            let sizes = dense.clone().abs() * factor;
            assert_rounded(
                rounded,
                expected,
                [x[0].clone().inner().abs(), sizes.unsqueeze()],
            );
        }
        let squares = packed_row_squares(weight) * (factor / size);
        let expected = dense.square().sum_dim(1).squeeze_dim(1) * (factor / size);
        assert_close(squares, expected, &format!("{layout:?}"));
    }
}

/// At most both factors of a product are rounded to bf16, those of the gradient's too, whose other one is at most 1.
fn assert_rounded(
    (out, [grad]): (Tensor<3>, [Tensor<3>; 1]),
    (expected, [expected_grad]): (Tensor<3>, [Tensor<3>; 1]),
    [x, weight]: [Tensor<3>; 2],
) {
    let sizes = x.matmul(weight.clone().transpose());
    let grad_sizes = weight.sum_dim(1).expand(grad.dims());
    for (found, expected, sizes) in [
        (out, expected, sizes),
        (grad.inner(), expected_grad.inner(), grad_sizes),
    ] {
        let above = (found - expected).abs() - sizes * (2f32.powi(-8) + 2f32.powi(-16));
        assert!(above.max().into_scalar::<f32>() < 1e-5);
    }
}

/// In half precision a weight is rounded once.
#[test]
fn activations_in_half_precision_keep_their_type() {
    let types = [DType::BF16, DType::F16].into_iter();
    for dtype in types.filter(|dtype| device().supports_dtype(*dtype)) {
        let (layout, bytes) = weights().next().expect("there are some");
        let weight = on_device(layout, &bytes);
        let x = random([5, SHAPE[1]]).inner().cast(dtype) / 16.0;
        let found = packed_linear(x.clone(), weight.clone());
        assert_eq!(found.dtype(), dtype);
        let rounded = unpacked(weight).cast(dtype).cast(DType::F32);
        let expected = linear(x.cast(DType::F32), rounded);
        let size = expected.clone().abs().max().into_scalar::<f32>();
        let moved = (found.cast(DType::F32) - expected)
            .abs()
            .max()
            .into_scalar::<f32>();
        assert!(
            moved <= size * 2f32.powi(-8),
            "{dtype:?}: {moved} of {size}"
        );
    }
}
