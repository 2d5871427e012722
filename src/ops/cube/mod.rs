//! The bodies on every CubeCL runtime (CUDA, ROCm, Metal, Vulkan, WebGPU): one kernel an operation, or
//! one between two products, where Burn's tensor operations launch a kernel a step and leave what is
//! between in memory. Numbers are read and written in the tensors' type and computed in f32.
//!
//! Products are cuBLAS's on CUDA, where it is installed, and CubeCL's elsewhere; of packed weights a tile
//! is decoded before it is multiplied. The gradient of a
//! norm's weight, which LoRA does not ask for, is the portable one.

mod adamw;
mod attention;
mod cross_entropy;
#[cfg(feature = "cuda")]
mod cublas;
#[cfg(feature = "cuda")]
mod cuda;
mod decode;
mod dropout;
mod flash;
mod glu;
mod packed;
mod product;
mod rms_norm;
mod rotary;
mod row;
mod squares;

use burn::backend::DispatchDevice;
#[cfg(feature = "cuda")]
use burn::backend::FloatDType;
#[cfg(feature = "cuda")]
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::IntTensor;
use burn::tensor::{DType, Device, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::{MemoryPoolKind, MemoryScope, calculate_cube_count_elemwise, ir::ElemType};
use cubecl_environment::stream::StreamId;

pub(super) use self::packed::largest_tile;
use self::product::{add_rows_by, rows_by, transposed};
use super::backend::StepOps;
use super::portable;
use super::types::Activation;
use super::types::AdamWStep;
use super::types::DropoutMask;
use super::types::KeyRanges;
use super::types::Scores;
use super::types::{Piece, Whole};
use crate::quantization::PackedLayout;

/// Whether operations on `tensor` have a kernel here.
fn takes(tensor: &CubeTensor) -> bool {
    let is_float = matches!(tensor.dtype, DType::F32 | DType::BF16 | DType::F16);
    is_float && super::is_fused()
}

/// Whether `device` has [`StepOps::flash_attention`] for heads of `head_dim` numbers of type `dtype`.
pub(super) fn has_flash_attention(device: &Device, dtype: DType, head_dim: usize) -> bool {
    let device = device.clone().without_autodiff();
    let DispatchDevice::Cube(device) = device.as_dispatch() else {
        return false;
    };
    super::is_fused() && flash::takes(&device.client(), dtype, head_dim)
}

/// Makes the pages of a device's memory pool large enough for buffers of `bytes`. Left to itself the pool begins
/// with small pages, which grow with its largest buffer. It puts nothing more on those that it has outgrown, and
/// holds them until the device is full.
pub(super) fn prepare_memory(device: &Device, bytes: u64) {
    let device = device.clone().without_autodiff();
    let DispatchDevice::Cube(device) = device.as_dispatch() else {
        return;
    };
    let client = device.client();
    if page_size(&client).is_some_and(|page_size| page_size < bytes) {
        client.memory_cleanup().expect("no graph is recorded");
        drop(client.empty(bytes.next_power_of_two() as usize));
    }
}

/// The size of the pages that this thread's buffers come from, where a runtime has such.
fn page_size(client: &Client) -> Option<u64> {
    let report = client.memory_report(MemoryScope::CurrentStream);
    let mut pools = report
        .streams
        .iter()
        .flat_map(|stream| &stream.pools.dynamic);
    pools.find_map(|pool| match pool.kind {
        MemoryPoolKind::Adaptive { page_size, .. } => Some(page_size),
        _ => None,
    })
}

/// Whether products on `device` are CubeCL's for want of cuBLAS.
#[cfg(feature = "cuda")]
pub(super) fn lacks_cublas(device: &Device) -> bool {
    cuda_tensor(device).is_some_and(|tensor| !cublas::is_used(&tensor))
}

/// The memory of `device`, if it is of CUDA, that nobody has taken, in bytes.
#[cfg(feature = "cuda")]
pub(super) fn free_memory(device: &Device) -> Option<u64> {
    cuda::free_memory(&cuda_tensor(device)?)
}

/// A number on `device`, if that is of CUDA.
#[cfg(feature = "cuda")]
fn cuda_tensor(device: &Device) -> Option<CubeTensor> {
    let device = device.clone().without_autodiff();
    let DispatchDevice::Cube(device) = device.as_dispatch() else {
        return None;
    };
    let tensor = CubeBackend::float_zeros(Shape::new([1]), device, FloatDType::F32);
    cuda::is_cuda(&tensor).then_some(tensor)
}

impl StepOps for CubeBackend {
    fn linear(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
        rows_by(x, transposed(weight), 1.0)
    }

    fn linear_x_grad(grad: CubeTensor, weight: CubeTensor) -> CubeTensor {
        rows_by(grad, weight, 1.0)
    }

    fn scaled_linear(x: CubeTensor, weight: CubeTensor, scale: f64) -> CubeTensor {
        rows_by(x, transposed(weight), scale)
    }

    fn scaled_linear_x_grad(grad: CubeTensor, weight: CubeTensor, scale: f64) -> CubeTensor {
        rows_by(grad, weight, scale)
    }

    fn add_linear(sum: CubeTensor, x: CubeTensor, weight: CubeTensor) -> CubeTensor {
        add_rows_by(sum, x, transposed(weight))
    }

    fn add_linear_x_grad(sum: CubeTensor, grad: CubeTensor, weight: CubeTensor) -> CubeTensor {
        add_rows_by(sum, grad, weight)
    }

    fn linear_weight_grad(grad: CubeTensor, x: CubeTensor, weight: CubeTensor) -> CubeTensor {
        product::linear_weight_grad(grad, x, weight)
    }

    fn packed_linear(x: CubeTensor, words: IntTensor<Self>, layout: PackedLayout) -> CubeTensor {
        match takes(&x) {
            true => packed::forward(x, words, layout),
            false => portable::packed::forward::<Self>(x, words, layout),
        }
    }

    fn packed_linear_x_grad(
        grad: CubeTensor,
        words: IntTensor<Self>,
        layout: PackedLayout,
    ) -> CubeTensor {
        match takes(&grad) {
            true => packed::x_grad(grad, words, layout),
            false => portable::packed::x_grad::<Self>(grad, words, layout),
        }
    }

    fn packed_rows(
        words: IntTensor<Self>,
        indices: IntTensor<Self>,
        layout: PackedLayout,
    ) -> CubeTensor {
        match super::is_fused() {
            true => packed::rows(words, indices, layout),
            false => portable::packed::rows::<Self>(words, indices, layout),
        }
    }

    fn packed_row_squares(words: IntTensor<Self>, layout: PackedLayout) -> CubeTensor {
        match super::is_fused() {
            true => packed::row_squares(words, layout),
            false => portable::packed::row_squares::<Self>(words, layout),
        }
    }

    fn unpacked(words: IntTensor<Self>, layout: PackedLayout) -> CubeTensor {
        match super::is_fused() {
            true => packed::unpacked(words, layout),
            false => portable::packed::unpacked::<Self>(words, layout),
        }
    }

    fn product(a: CubeTensor, b: CubeTensor) -> CubeTensor {
        let dtype = a.dtype;
        product::product(a, b, 1.0, dtype)
    }

    fn dropout(x: CubeTensor, mask: DropoutMask) -> CubeTensor {
        match takes(&x) {
            true => dropout::forward(x, mask),
            false => portable::dropout::forward::<Self>(x, mask),
        }
    }

    fn glu(gate: CubeTensor, up: CubeTensor, activation: Activation) -> CubeTensor {
        match takes(&gate) {
            true => glu::forward(gate, up, activation),
            false => portable::glu::forward::<Self>(gate, up, activation),
        }
    }

    fn glu_backward(
        grad: CubeTensor,
        gate: CubeTensor,
        up: CubeTensor,
        activation: Activation,
    ) -> (CubeTensor, CubeTensor) {
        match takes(&grad) {
            true => glu::backward(grad, gate, up, activation),
            false => portable::glu::backward::<Self>(grad, gate, up, activation),
        }
    }

    fn piece(x: CubeTensor, piece: Piece, _whole: Whole) -> CubeTensor {
        into_contiguous(portable::split::forward::<Self>(x, piece))
    }

    fn rms_norm(x: CubeTensor, weight: CubeTensor, eps: f64) -> CubeTensor {
        match takes(&x) {
            true => rms_norm::forward(x, weight, eps),
            false => portable::rms_norm::forward::<Self>(x, weight, eps),
        }
    }

    fn rms_norm_x_grad(
        grad: CubeTensor,
        x: CubeTensor,
        weight: CubeTensor,
        eps: f64,
    ) -> CubeTensor {
        match takes(&grad) {
            true => rms_norm::x_grad(grad, x, weight, eps),
            false => portable::rms_norm::x_grad::<Self>(grad, x, weight, eps),
        }
    }

    fn rotary(x: CubeTensor, cos: CubeTensor, sin: CubeTensor) -> CubeTensor {
        match takes(&x) {
            true => rotary::forward(x, cos, sin),
            false => portable::rotary::forward::<Self>(x, cos, sin),
        }
    }

    fn attention(
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        visible: IntTensor<Self>,
        mask: KeyRanges,
        scores: Scores,
    ) -> CubeTensor {
        match takes(&q) {
            true => attention::forward(q, k, v, visible, &mask, scores),
            false => portable::attention::forward::<Self>(q, k, v, visible, &mask, scores),
        }
    }

    fn attention_backward(
        grad: CubeTensor,
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        visible: IntTensor<Self>,
        mask: KeyRanges,
        scores: Scores,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        match takes(&grad) {
            true => attention::backward(grad, [q, k, v], visible, &mask, scores),
            false => portable::attention::backward::<Self>(grad, [q, k, v], visible, &mask, scores),
        }
    }

    fn flash_attention(
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        visible: IntTensor<Self>,
        scale: f64,
    ) -> (CubeTensor, CubeTensor) {
        flash::forward(q, k, v, visible, scale)
    }

    fn flash_attention_backward(
        grad: CubeTensor,
        out: CubeTensor,
        totals: CubeTensor,
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        visible: IntTensor<Self>,
        scale: f64,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        flash::backward(grad, [out, totals], [q, k, v], visible, scale)
    }

    fn cross_entropy_sum(logits: CubeTensor, targets: IntTensor<Self>) -> CubeTensor {
        match takes(&logits) {
            true => cross_entropy::forward(logits, targets),
            false => portable::cross_entropy::forward::<Self>(logits, targets),
        }
    }

    fn cross_entropy_with_grad(
        logits: CubeTensor,
        targets: IntTensor<Self>,
    ) -> (CubeTensor, CubeTensor) {
        match takes(&logits) {
            true => cross_entropy::forward_with_grad(logits, targets),
            false => portable::cross_entropy::forward_with_grad::<Self>(logits, targets),
        }
    }

    fn add_squares(parts: CubeTensor, values: CubeTensor) -> CubeTensor {
        match takes(&values) {
            true => squares::add(parts, values),
            false => portable::squares::add::<Self>(parts, values),
        }
    }

    fn adamw(
        value: CubeTensor,
        grad: CubeTensor,
        exp_avg: CubeTensor,
        exp_avg_sq: CubeTensor,
        step: AdamWStep,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        match takes(&value) {
            true => adamw::update(value, grad, exp_avg, exp_avg_sq, step),
            false => portable::adamw::update::<Self>(value, grad, exp_avg, exp_avg_sq, step),
        }
    }
}

/// A new tensor on the device of `like`, whose numbers the caller writes.
fn empty(like: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, dtype)
}

/// A tensor whose numbers lie one after another and that nobody else reads: it can be overwritten.
///
/// CubeCL lets a thread wait for the one that a tensor's memory was made by, whoever wrote it last: only
/// that one may overwrite it.
fn into_owned(tensor: CubeTensor) -> CubeTensor {
    let tensor = into_contiguous(tensor);
    match tensor.can_mut() && tensor.handle.stream == StreamId::current() {
        true => tensor,
        // Rows of a copy lie where memory is aligned, with gaps between.
        false => into_contiguous(tensor.copy()),
    }
}

/// How many neighbouring numbers a unit takes at a time from rows of `len` numbers, so that f32 and
/// half precision can be read in one piece.
fn vector_size(tensor: &CubeTensor, len: usize) -> usize {
    let sizes = tensor.client.io_optimized_vector_sizes(size_of::<f32>());
    let fitting = sizes.filter(|size| len.is_multiple_of(*size));
    fitting.max().unwrap_or(1)
}

/// Cubes for so many units that each take one element.
fn elementwise(client: &Client, units: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new(client, units);
    (calculate_cube_count_elemwise(client, units, dim), dim)
}

fn elem(dtype: DType) -> ElemType {
    burn::backend::cubecl::dtype_to_storage_type(dtype)
}

#[cfg(test)]
mod tests {
    use burn::backend::DispatchDevice;
    use burn::backend::ops::{FloatTensorOps, IntTensorOps};
    use burn::tensor::{Device, TensorData};
    use burn_cubecl::ops::into_data_sync;
    use burn_cubecl::{CubeBackend, CubeDevice};

    use super::*;

    fn device() -> Option<CubeDevice> {
        let device = Device::default();
        let DispatchDevice::Cube(device) = device.as_dispatch() else {
            println!("skipped: BURN_DEVICE names no device of CubeCL");
            return None;
        };
        Some(device.clone())
    }

    fn tensor(numbers: &[f32], device: &CubeDevice) -> CubeTensor {
        // Rows of three numbers are no multiple of any alignment.
        let data = TensorData::new(numbers.to_vec(), [numbers.len() / 3, 3]);
        CubeBackend::float_from_data(data, device)
    }

    fn numbers(tensor: CubeTensor) -> Vec<f32> {
        into_data_sync(tensor).iter().collect()
    }

    #[test]
    fn what_others_read_is_copied_without_gaps_between_rows() {
        let Some(device) = device() else { return };
        let values: Vec<f32> = (1..=15).map(|n| n as f32).collect();
        let read = tensor(&values, &device);
        let owned = into_owned(read.clone());
        assert!(owned.is_contiguous());
        let doubled = CubeBackend::float_mul_scalar(owned, 2.0.into());
        let expected: Vec<f32> = values.iter().map(|n| 2.0 * n).collect();
        assert_eq!(numbers(doubled), expected);
        assert_eq!(numbers(read), values);
    }

    /// Or its own thread would read it before it is written.
    #[test]
    fn another_threads_tensor_is_not_overwritten() {
        let Some(device) = device() else { return };
        let values = [1.0, 2.0, 3.0];
        let owned_by_maker = into_owned(tensor(&values, &device));
        assert_eq!(owned_by_maker.handle.stream, StreamId::current());
        let other = std::thread::spawn(move || {
            let owned = into_owned(owned_by_maker);
            assert_eq!(owned.handle.stream, StreamId::current());
            numbers(owned)
        });
        assert_eq!(other.join().unwrap(), values);
    }

    #[test]
    fn pages_hold_the_largest_buffer_of_a_step() {
        let Some(device) = device() else { return };
        let _made_by_this_thread = tensor(&[1.0; 3], &device);
        let client = device.client();
        let Some(size) = page_size(&client) else {
            println!("skipped: this runtime has no pages that grow");
            return;
        };
        prepare_memory(&Device::default(), 3 * size);
        let prepared = page_size(&client).unwrap();
        assert!(prepared >= 3 * size, "{prepared} after {size}");
        prepare_memory(&Device::default(), 2 * size);
        assert_eq!(page_size(&client), Some(prepared));
    }

    #[test]
    fn the_loss_of_a_target_that_is_no_class_is_nan() {
        let Some(device) = device() else { return };
        for target in [-100, 3] {
            let targets = TensorData::new(vec![0i32, target], [2]);
            let targets = CubeBackend::int_from_data(targets, &device);
            let logits = tensor(&[0.0; 6], &device);
            assert!(numbers(cross_entropy::forward(logits, targets))[0].is_nan());
        }
    }
}
