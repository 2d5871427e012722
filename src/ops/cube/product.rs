use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::{ElemType, FloatKind};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::launch_ref;
use cubek::matmul::multi_level::Strategy as MultiLevel;
use cubek::matmul::strategy::Strategy;
use cubek::std::InputBinding;

use super::{elem, empty, into_owned};
use crate::ops::{MatmulPrecision, matmul_precision};

/// `scale · a b` of the last two dimensions, with sums in f32, written as `dtype`: by cuBLAS where it is, or
/// else by CubeCL.
///
/// The fastest products of f32 on some devices round their inputs to the eleven bits of TF32; they are
/// taken for [`MatmulPrecision::Medium`] only. It is PyTorch's default too not to.
pub fn product(a: CubeTensor, b: CubeTensor, scale: f64, dtype: DType) -> CubeTensor {
    #[cfg(feature = "cuda")]
    if super::takes(&a)
        && let Some(out) = super::cublas::product(&a, &b, scale as f32, dtype)
    {
        return out;
    }
    let tf32 = ElemType::Float(FloatKind::TF32);
    let has_tf32 = a.client.properties().supports_type(tf32);
    let out =
        match a.dtype == DType::F32 && has_tf32 && matmul_precision() == MatmulPrecision::Highest {
            true => cast(product_without_rounding(a, b), dtype),
            false => matmul(a, b, None, MatmulStrategy::default(), dtype)
                .expect("some kernel multiplies these"),
        };
    match scale == 1.0 {
        true => out,
        false => CubeBackend::float_mul_scalar(out, scale.into()),
    }
}

/// A product of f32 without the matrix units.
fn product_without_rounding(a: CubeTensor, b: CubeTensor) -> CubeTensor {
    let (mut shape, last) = (a.shape(), a.shape().num_dims() - 1);
    shape[last] = b.shape()[last];
    let out = empty(&a, shape, DType::F32);
    let f32 = elem(DType::F32);
    let mut types = MatmulElems::from_globals(&MatmulGlobalElems {
        lhs: f32,
        rhs: f32,
        out: f32,
    });
    let client = a.client.clone();
    let launched = launch_ref(
        &Strategy::MultiLevel(MultiLevel::SimpleUnit(Default::default())),
        &client,
        InputBinding::new(a.binding(), f32),
        InputBinding::new(b.binding(), f32),
        out.clone().binding(),
        &mut types,
    );
    launched.expect("this kernel multiplies all f32");
    out
}

/// `scale` times the product of all rows of `x`, taken as one matrix, and `matrix`.
pub fn rows_by(x: CubeTensor, matrix: CubeTensor, scale: f64) -> CubeTensor {
    let (dtype, mut shape, last) = (x.dtype, x.shape(), x.shape().num_dims() - 1);
    let out = product(rows(x), cast(matrix, dtype), scale, dtype);
    shape[last] = out.shape()[1];
    CubeBackend::float_reshape(out, shape)
}

/// `sum` and the product of all rows of `x` and `matrix`, in the place of `sum`.
pub fn add_rows_by(sum: CubeTensor, x: CubeTensor, matrix: CubeTensor) -> CubeTensor {
    let matrix = cast(matrix, x.dtype);
    let (shape, sum, x) = (sum.shape(), into_owned(rows(sum)), rows(x));
    #[cfg(feature = "cuda")]
    if super::takes(&sum) && super::cublas::add_product(&sum, &x, &matrix) {
        return CubeBackend::float_reshape(sum, shape);
    }
    let dtype = sum.dtype;
    let sum = CubeBackend::float_add(sum, product(x, matrix, 1.0, dtype));
    CubeBackend::float_reshape(sum, shape)
}

/// `gradᵀ x`, in the weight's type.
pub fn linear_weight_grad(grad: CubeTensor, x: CubeTensor, weight: CubeTensor) -> CubeTensor {
    product(transposed(rows(grad)), rows(x), 1.0, weight.dtype)
}

/// `[..., dim]` as a matrix.
fn rows(x: CubeTensor) -> CubeTensor {
    let x = into_contiguous(x);
    let shape = x.shape();
    let dim = shape[shape.num_dims() - 1];
    CubeBackend::float_reshape(x, Shape::new([shape.num_elements() / dim, dim]))
}

pub fn transposed(matrix: CubeTensor) -> CubeTensor {
    CubeBackend::float_swap_dims(matrix, 0, 1)
}

fn cast(tensor: CubeTensor, dtype: DType) -> CubeTensor {
    match tensor.dtype == dtype {
        true => tensor,
        false => CubeBackend::float_cast(tensor, dtype.into()),
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::DispatchDevice;
    use burn::tensor::{Device, TensorData};
    use burn_cubecl::CubeDevice;
    use burn_cubecl::ops::into_data_sync;

    use super::*;

    fn tensor(shape: [usize; 3], seed: usize, device: &CubeDevice) -> (Vec<f32>, CubeTensor) {
        let number = |i: usize| ((i * 7919 + seed) % 4093) as f32 / 1023.0 - 2.0;
        let numbers: Vec<f32> = (0..shape.iter().product()).map(number).collect();
        let data = TensorData::new(numbers.clone(), shape);
        (numbers, CubeBackend::float_from_data(data, device))
    }

    /// TF32 would be off by 1e-3 of these.
    #[test]
    fn products_without_rounding_equal_sums_of_products() {
        let device = Device::default();
        let DispatchDevice::Cube(device) = device.as_dispatch() else {
            println!("skipped: BURN_DEVICE names no device of CubeCL");
            return;
        };
        for [batch, m, n, k] in [
            [1, 1, 1, 1],
            [2, 3, 5, 7],
            [3, 70, 33, 129],
            [1, 257, 64, 300],
        ] {
            let (a_numbers, a) = tensor([batch, m, k], 0, device);
            let (b_numbers, b) = tensor([batch, n, k], 1, device);
            let b = CubeBackend::float_swap_dims(b, 1, 2);
            let found = into_data_sync(product_without_rounding(a, b));
            let expected = (0..batch * m * n).map(|i| {
                let (batch, row, column) = (i / (m * n), i / n % m, i % n);
                let a = &a_numbers[(batch * m + row) * k..][..k];
                let b = &b_numbers[(batch * n + column) * k..][..k];
                a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>()
            });
            for (found, expected) in found.iter::<f64>().zip(expected) {
                let allowed = 1e-6 * k as f64 * 4.0;
                assert!(
                    (found - expected).abs() < allowed,
                    "{found}, not {expected}"
                );
            }
        }
    }
}
