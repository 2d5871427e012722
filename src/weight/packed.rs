use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::param::untracked;
use crate::ops::{PackedTensor, linear, packed_linear, packed_row_squares, unpacked};
use crate::quantization::PackedLayout;

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
    pub(super) fn val(&self) -> Tensor<2> {
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
    pub(super) fn row_norms_with(&self, [a, b]: [Tensor<2>; 2]) -> Tensor<1> {
        let squares = packed_row_squares(self.tensor());
        let crossed = packed_linear(a.clone(), self.tensor()).transpose() * 2.0;
        let own = linear(b.clone(), linear(a.clone(), a));
        let added = (b * (crossed + own)).sum_dim(1).squeeze_dim(1);
        (squares + added).clamp_min(0.0).sqrt()
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

    /// Gives it other bytes, those of its layout.
    ///
    /// # Panics
    /// If there are more or fewer.
    pub(crate) fn set_bytes(&mut self, bytes: &[u8]) {
        assert_eq!(
            bytes.len(),
            self.layout.num_bytes(),
            "not the bytes of the layout"
        );
        let value = lasting_words(packed_words(bytes), &self.words.lazy_device());
        let id = self.words.id;
        self.words = self.words.clone().transform_for_load(value, id);
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
