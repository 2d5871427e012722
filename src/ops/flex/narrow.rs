//! Activations in bf16, whose bits are the upper half of an f32.

use burn::backend::TensorMetadata;
use burn::tensor::TensorData;
use half::bf16;

use super::gemm::bf16_bits;
use super::vector::map;
use super::{Primitive, contiguous, primitive};

pub fn to_bf16(x: &Primitive) -> Primitive {
    let x = contiguous(x);
    let values = map(
        [x.storage()],
        #[inline(always)]
        |[x]: [f32; 1]| bf16::from_bits(bf16_bits(x) as u16),
    );
    Primitive::from_data(TensorData::new(values, x.shape()))
}

pub fn to_f32(x: &Primitive) -> Primitive {
    let x = contiguous(x);
    let values = map(
        [x.storage()],
        #[inline(always)]
        |[x]: [bf16; 1]| f32::from_bits(u32::from(x.to_bits()) << 16),
    );
    primitive(values, &x.shape())
}
