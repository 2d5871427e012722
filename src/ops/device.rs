//! What a device can do, and how a process computes on it.
#![cfg_attr(
    not(all(feature = "cuda", feature = "flex")),
    allow(unused_variables, reason = "questions that only one backend answers")
)]

use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{DType, Device};
use serde::{Deserialize, Serialize};

#[cfg(feature = "cube")]
use super::cube;
#[cfg(feature = "flex")]
use super::flex;
use crate::quantization::PackedLayout;

/// The type that a model with weights of type `dtype` computes in: f32 in the fused bodies of Flex,
/// where products in half precision are slower than widening their weights; elsewhere that of the
/// weights.
///
/// This is the one rule of mixed types. The embedding brings its rows to this type, every operation
/// gives what it is given, and [`linear`](super::linear()) brings a weight of another type, such as an
/// adapter's f32, to that of its input. The norms, the softmax, the loss and sums over gradients are
/// computed in f32; adapters, their gradients and the optimizer's moments are f32.
pub fn compute_dtype(device: &Device, dtype: DType) -> DType {
    match is_fused_cpu(device) {
        true => DType::F32,
        false => dtype,
    }
}

/// The type in which activations of type `dtype` are kept that only the backward pass reads: the inputs of norms, of
/// gated linear units and of the attention. With [`MatmulPrecision::Medium`] on the CPU that is bf16.
pub fn kept_dtype(device: &Device, dtype: DType) -> DType {
    #[cfg(feature = "flex")]
    if dtype == DType::F32 && flex::fuses(device) && is_medium() {
        return DType::BF16;
    }
    dtype
}

/// Whether f32 operations of a device have the fused bodies of Flex.
pub(crate) fn is_fused_cpu(device: &Device) -> bool {
    #[cfg(feature = "flex")]
    return flex::fuses(device);
    #[cfg(not(feature = "flex"))]
    return false;
}

/// Runs `f` on one of the threads that operations of a CPU are divided among, so that each of many small ones begins there
/// and wakes no thread that waits.
pub(crate) fn in_pool<R: Send>(device: &Device, f: impl FnOnce() -> R + Send) -> R {
    #[cfg(feature = "flex")]
    if flex::fuses(device) {
        return rayon::scope(|_| f());
    }
    f()
}

/// Whether products on `device`, of CUDA, are CubeCL's, which take several times longer, because
/// cuBLAS cannot be used: the loader finds no `libcublas.so`, or one that does not go with the driver
/// (that of CUDA 13 with a driver of CUDA 12), or the driver is older than CUDA 12.5.
pub fn lacks_cublas(device: &Device) -> bool {
    #[cfg(feature = "cuda")]
    return cube::lacks_cublas(device);
    #[cfg(not(feature = "cuda"))]
    return false;
}

/// The memory of a CUDA device that nobody has taken, in bytes.
pub(crate) fn free_memory(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    return cube::free_memory(device);
    #[cfg(not(feature = "cuda"))]
    return None;
}

/// Lets the memory pool of a GPU hold buffers of so many bytes from now on; those of a step that begins,
/// before it fills the pool.
pub(crate) fn prepare_memory(device: &Device, bytes: u64) {
    #[cfg(feature = "cube")]
    cube::prepare_memory(device, bytes);
}

/// The numbers of a packed weight that exist at a time in the memory of a GPU.
pub(crate) fn decoded_at_once(layout: &PackedLayout) -> usize {
    #[cfg(feature = "cube")]
    return cube::largest_tile(layout);
    #[cfg(not(feature = "cube"))]
    return 0;
}

static FUSED: AtomicBool = AtomicBool::new(true);

/// Whether the operations of [`ops`](super) use their fused bodies where there are any, in this process. They do unless this
/// says otherwise; without them each is composed of Burn's operations, slower and with more memory, for comparing the two.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_peft::ops::{rms_norm, set_fused};
///
/// let device = Device::default();
/// let norm = || rms_norm(Tensor::<2>::ones([2, 4], &device), Tensor::ones([4], &device), 1e-5);
/// let fused = norm();
/// set_fused(false);
/// let difference = (fused - norm()).abs().max();
/// assert!(difference.into_scalar::<f32>() < 1e-6);
/// ```
pub fn set_fused(fused: bool) {
    FUSED.store(fused, Ordering::Relaxed);
}

#[cfg(any(feature = "flex", feature = "cube"))]
pub(super) fn is_fused() -> bool {
    FUSED.load(Ordering::Relaxed)
}

/// How products are computed where activations are f32: on the CPU those with frozen bf16 weights, on
/// GPUs all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MatmulPrecision {
    /// In f32, as if the weights were f32.
    #[default]
    Highest,
    /// With inputs rounded and sums in f32. On the CPU activations that only the backward pass reads are kept in
    /// bf16 ([`kept_dtype`]); where the processor multiplies bf16 (AVX512-BF16, AMX) they are rounded to it inside of
    /// products of more than a few rows too, as PyTorch computes a bf16 model, which is faster on AMD's processors and with AMX, slower on
    /// Intel's without it, so measure. On a GPU both inputs are rounded to TF32, if it has it.
    Medium,
}

impl MatmulPrecision {
    /// What is fastest on `device` and rounds nothing that the base's weights have not lost already: `Medium` on a CPU if
    /// they are `narrow`, bf16 or packed, and its products of bf16 are the faster ones (those of AMD's processors, and
    /// with AMX those of Intel's); otherwise `Highest`.
    pub fn for_base(device: &Device, narrow: bool) -> Self {
        #[cfg(feature = "flex")]
        if narrow && flex::fuses(device) && flex::bf16_is_faster() {
            return Self::Medium;
        }
        Self::Highest
    }
}

static MEDIUM: AtomicBool = AtomicBool::new(false);

/// Sets the precision of all products of this process from now on, [`MatmulPrecision::Highest`] until then. The name is
/// PyTorch's (`torch.set_float32_matmul_precision`).
///
/// ```
/// use burn::tensor::Device;
/// use burn_peft::ops::{MatmulPrecision, set_matmul_precision};
///
/// let has_bf16_base = true;
/// set_matmul_precision(MatmulPrecision::for_base(&Device::default(), has_bf16_base));
/// ```
pub fn set_matmul_precision(precision: MatmulPrecision) {
    MEDIUM.store(precision == MatmulPrecision::Medium, Ordering::Relaxed);
}

/// The precision of this process.
pub fn matmul_precision() -> MatmulPrecision {
    match is_medium() {
        true => MatmulPrecision::Medium,
        false => MatmulPrecision::Highest,
    }
}

pub(super) fn is_medium() -> bool {
    MEDIUM.load(Ordering::Relaxed)
}
