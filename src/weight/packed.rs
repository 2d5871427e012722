use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::param::untracked;
use crate::Result;
use crate::ops::{PackedTensor, linear, packed_linear, packed_row_squares, packed_rows, unpacked};
use crate::quantization::{PackedLayout, quantize};

/// Numbers that are formed at a time.
const PART: usize = 1 << 20;

/// A weight whose numbers are packed in blocks of few bits. It is never trained, and multiplies without its numbers
/// being formed as a whole.
#[derive(Debug, Clone)]
pub struct PackedWeight {
    /// Its bytes, four in each, the first in the lowest bits; U32.
    pub(super) words: Param<Tensor<1, Int>>,
    layout: PackedLayout,
}

impl PackedWeight {
    /// One of zero bytes until it gets others, lazy.
    pub(crate) fn lazy(layout: PackedLayout, id: ParamId, device: &Device) -> Self {
        let count = layout.num_bytes() / size_of::<u32>();
        let init = move |device: &Device, _| {
            lasting_words(TensorData::new(vec![0u32; count], [count]), device)
        };
        Self {
            words: Param::uninitialized(id, init, device.clone(), false, [count].into()),
            layout,
        }
    }

    /// The format and the sizes.
    pub fn layout(&self) -> PackedLayout {
        self.layout
    }

    /// The values, f32.
    pub(crate) fn val(&self) -> Tensor<2> {
        unpacked(self.tensor())
    }

    /// As operations take it.
    pub(super) fn tensor(&self) -> PackedTensor {
        PackedTensor {
            words: self.words.val(),
            layout: self.layout,
        }
    }

    /// `‖W + B·A‖` of each row by `‖w‖² + b·(2·W Aᵀ + b·A Aᵀ)`, for which the weight is read but not formed.
    pub(super) fn row_norms(&self, factors: Option<[Tensor<2>; 2]>) -> Tensor<1> {
        let squares = packed_row_squares(self.tensor());
        let Some([a, b]) = factors else {
            return squares.sqrt();
        };
        let crossed = packed_linear(a.clone(), self.tensor()).transpose() * 2.0;
        let own = linear(b.clone(), linear(a.clone(), a));
        let added = (b * (crossed + own)).sum_dim(1).squeeze_dim(1);
        (squares + added).clamp_min(0.0).sqrt()
    }

    /// `‖W + B·A‖` of each column, for which some rows are formed at a time.
    pub(super) fn column_norms(&self, factors: Option<[Tensor<2>; 2]>) -> Tensor<1> {
        let [rows, columns] = self.layout.shape();
        let len = PART.div_ceil(columns);
        let squares = (0..rows).step_by(len).map(|first| {
            let count = len.min(rows - first);
            let indices = first as i64..(first + count) as i64;
            let indices = Tensor::arange(indices, &self.words.lazy_device());
            let part = packed_rows(self.tensor(), indices);
            let sum = match &factors {
                None => part,
                Some([a, b]) => {
                    let b = b.clone().narrow(0, first, count);
                    part + linear(b, a.clone().transpose())
                }
            };
            sum.square().sum_dim(0)
        });
        let squares = squares.reduce(Tensor::add).expect("a weight has rows");
        squares.sqrt().squeeze_dim(0)
    }

    /// A frozen parameter of f32 that decodes the values when it is asked for them.
    pub(super) fn as_dense(&self) -> Param<Tensor<2>> {
        let (own, shape) = (self.clone(), self.layout.shape());
        let init = move |_: &Device, _| untracked(own.val());
        let device = self.words.lazy_device();
        Param::uninitialized(self.words.id, init, device, false, shape.into())
    }

    /// What `f` makes of the values, f32 and frozen.
    pub(super) fn into_dense(self, f: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Param<Tensor<2>> {
        let values = f(self.val()).cast(DType::F32);
        Param::initialized(self.words.id, untracked(values))
    }

    /// Gives it other values, which it packs as it is, on all threads of the host.
    ///
    /// # Errors
    /// As [`quantize`].
    ///
    /// # Panics
    /// If the values have another shape.
    pub(crate) fn set_values(&mut self, values: Tensor<2>) -> Result<()> {
        assert_eq!(values.dims(), self.layout.shape());
        let values = untracked(values).cast(DType::F32).into_data();
        let values = values.as_slice::<f32>().expect("values of f32");
        self.set_bytes(&quantize(values, self.layout)?);
        Ok(())
    }

    /// Gives it other bytes, those of its layout.
    ///
    /// # Panics
    /// If there are more or fewer.
    fn set_bytes(&mut self, bytes: &[u8]) {
        assert_eq!(
            bytes.len(),
            self.layout.num_bytes(),
            "not the bytes of the layout"
        );
        let value = lasting_words(packed_words(bytes), &self.words.lazy_device());
        let id = self.words.id;
        self.words = self.words.clone().transform_for_load(value, id);
    }

    /// Its bytes, those of its layout.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let words = self.words.val().into_data();
        words.as_bytes().to_vec()
    }

    pub(super) fn map_words(
        self,
        f: impl FnOnce(Param<Tensor<1, Int>>) -> Param<Tensor<1, Int>>,
    ) -> Self {
        Self {
            words: f(self.words),
            layout: self.layout,
        }
    }

    pub(super) fn with_new_id(self) -> Self {
        self.map_words(|words| {
            let (_, value, mapper) = words.consume();
            Param::from_mapped_value(ParamId::new(), value, mapper)
        })
    }
}

/// Bytes as the words that a packed weight's tensor has, four in each, the first in the lowest bits.
pub(crate) fn packed_words(bytes: &[u8]) -> TensorData {
    let (words, _) = bytes.as_chunks::<4>();
    let words: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let count = words.len();
    TensorData::new(words, [count])
}

/// Words in memory of their own.
pub(crate) fn lasting_words<const D: usize>(data: TensorData, device: &Device) -> Tensor<D, Int> {
    let new = |data| Tensor::from_data(data, (device, DType::U32));
    device.memory_persistent_allocations(data, new)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::weight::{FrozenWeight, Quantization};

    fn wave(shape: [usize; 2], step: f32) -> Tensor<2> {
        let values = (0..shape[0] * shape[1]).map(|n| (n as f32 * step).sin());
        let values = TensorData::new(values.collect::<Vec<_>>(), shape);
        Tensor::from_data(values, &Device::flex())
    }

    /// A weight of more rows than are formed at a time.
    #[test]
    fn norms_are_those_of_the_numbers() {
        let shape = [PART / 64 + 700, 64];
        for kind in [Quantization::Nf4, Quantization::Int8] {
            let layout = PackedLayout::new(kind.block_format(), shape).unwrap();
            let mut packed = PackedWeight::lazy(layout, ParamId::new(), &Device::flex());
            packed.set_values(wave(shape, 0.37)).unwrap();
            let packed = FrozenWeight::Packed(packed);
            let dense = FrozenWeight::from(Param::from_tensor(packed.to_f32()));
            let factors = [wave([3, 64], 0.71), wave([shape[0], 3], 0.53)];
            for factors in [None, Some(factors)] {
                let of = |weight: &FrozenWeight| {
                    let rows = weight.row_norms(factors.clone());
                    Tensor::cat(vec![rows, weight.column_norms(factors.clone())], 0)
                };
                let (found, expected) = (of(&packed), of(&dense));
                let error: f32 = (found / expected - 1.0).abs().max().into_scalar();
                assert!(error < 1e-5, "{error}");
            }
        }
    }
}
