//! Packed weights: rows are decoded on the host, some at a time.

use std::ops::Range;

use burn::backend::tensor::{Device, FloatTensor, IntTensor};
use burn::backend::{Backend, FloatDType, IntDType, TensorMetadata};
use burn::tensor::{DType, Shape, Slice, TensorData, read_sync};

use super::{cast, linear};
use crate::quantization::{PackedLayout, PackedMatrix};

/// Numbers that are decoded at a time.
const PART: usize = 1 << 20;

/// `x Wᵀ`.
pub fn forward<B: Backend>(
    x: FloatTensor<B>,
    words: IntTensor<B>,
    layout: PackedLayout,
) -> FloatTensor<B> {
    let weight = HostWeight::new::<B>(words, layout);
    let last = x.shape().num_dims() - 1;
    let outputs = weight.parts().map(|rows| {
        let part = weight.rows::<B>(rows, &x.device(), x.dtype().into());
        linear::forward::<B>(x.clone(), part)
    });
    B::float_cat(outputs.collect(), last)
}

/// `grad W`.
pub fn x_grad<B: Backend>(
    grad: FloatTensor<B>,
    words: IntTensor<B>,
    layout: PackedLayout,
) -> FloatTensor<B> {
    let weight = HostWeight::new::<B>(words, layout);
    let last = grad.shape().num_dims() - 1;
    let terms = weight.parts().map(|rows| {
        let part = weight.rows::<B>(rows.clone(), &grad.device(), grad.dtype().into());
        let mut slices = vec![Slice::full(); last];
        slices.push(Slice::from(rows));
        linear::x_grad::<B>(B::float_slice(grad.clone(), &slices), part)
    });
    terms.reduce(B::float_add).expect("a weight has rows")
}

/// The rows of some indices, f32.
pub fn rows<B: Backend>(
    words: IntTensor<B>,
    indices: IntTensor<B>,
    layout: PackedLayout,
) -> FloatTensor<B> {
    let (device, [_, columns]) = (words.device(), layout.shape());
    let weight = HostWeight::new::<B>(words, layout);
    let indices = host::<B>(B::int_cast(indices, IntDType::I64));
    let indices = indices.as_slice::<i64>().expect("indices of i64");
    let mut values = vec![0.0; indices.len() * columns];
    for (index, row) in indices.iter().zip(values.chunks_exact_mut(columns)) {
        weight.matrix().decode(*index as usize, 0, row);
    }
    let values = TensorData::new(values, [indices.len(), columns]);
    B::float_from_data(values, &device)
}

/// The sum of the squares of each row, f32.
pub fn row_squares<B: Backend>(words: IntTensor<B>, layout: PackedLayout) -> FloatTensor<B> {
    let device = words.device();
    let weight = HostWeight::new::<B>(words, layout);
    let [rows, columns] = layout.shape();
    let mut numbers = vec![0.0; columns];
    let sums = (0..rows).map(|row| {
        weight.matrix().decode(row, 0, &mut numbers);
        numbers.iter().map(|x| x * x).sum::<f32>()
    });
    let sums: Vec<f32> = sums.collect();
    B::float_from_data(TensorData::new(sums, [rows]), &device)
}

/// All of the weight, in f32.
pub fn unpacked<B: Backend>(words: IntTensor<B>, layout: PackedLayout) -> FloatTensor<B> {
    let device = words.device();
    let [rows, _] = layout.shape();
    HostWeight::new::<B>(words, layout).rows::<B>(0..rows, &device, FloatDType::F32)
}

/// A packed weight on the host.
struct HostWeight {
    words: TensorData,
    layout: PackedLayout,
}

impl HostWeight {
    fn new<B: Backend>(words: IntTensor<B>, layout: PackedLayout) -> Self {
        let words = host::<B>(words);
        assert_eq!(words.dtype(), DType::U32, "a packed weight is of words");
        Self { words, layout }
    }

    fn matrix(&self) -> PackedMatrix<'_> {
        PackedMatrix::new(self.layout, self.words.as_bytes())
    }

    /// Ranges of rows, all of them together.
    fn parts(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let [rows, columns] = self.layout.shape();
        let len = PART.div_ceil(columns);
        (0..rows)
            .step_by(len)
            .map(move |first| first..rows.min(first + len))
    }

    fn rows<B: Backend>(
        &self,
        rows: Range<usize>,
        device: &Device<B>,
        dtype: FloatDType,
    ) -> FloatTensor<B> {
        let [_, columns] = self.layout.shape();
        let shape = Shape::new([rows.len(), columns]);
        let mut values = vec![0.0; rows.len() * columns];
        for (row, out) in rows.zip(values.chunks_exact_mut(columns)) {
            self.matrix().decode(row, 0, out);
        }
        cast::<B>(
            B::float_from_data(TensorData::new(values, shape), device),
            dtype,
        )
    }
}

fn host<B: Backend>(tensor: IntTensor<B>) -> TensorData {
    match read_sync(B::int_into_data(tensor)) {
        Ok(data) => data,
        Err(error) => panic!("a packed weight cannot be read: {error}"),
    }
}
