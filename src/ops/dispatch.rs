//! Tensors on their way to this crate's operations, which exist for the backends that it was built with.

use burn::backend::{DispatchDevice, DispatchTensor, DispatchTensorKind, TensorMetadata};
use burn::tensor::{Int, Tensor};

/// The tensor as [`Dispatch`](burn::backend::Dispatch) takes it.
///
/// # Panics
/// If this crate was built without the backend that the tensor is on: its feature may be on for Burn alone.
pub(super) fn dispatched<const D: usize>(tensor: Tensor<D>) -> DispatchTensor {
    with_backend(tensor.into_dispatch())
}

/// The same for the words of a packed weight.
pub(super) fn dispatched_words(words: Tensor<1, Int>) -> DispatchTensor {
    with_backend(words.into_dispatch())
}

fn with_backend(tensor: DispatchTensor) -> DispatchTensor {
    if !has_backend(&tensor.kind) {
        panic!("{}", without_backend(tensor.device()));
    }
    tensor
}

fn has_backend(kind: &DispatchTensorKind) -> bool {
    match kind {
        DispatchTensorKind::Autodiff(inner) => has_backend(inner),
        #[cfg(feature = "cube")]
        DispatchTensorKind::Cube(_) => true,
        #[cfg(feature = "flex")]
        DispatchTensorKind::Flex(_) => true,
        #[cfg(feature = "ndarray")]
        DispatchTensorKind::NdArray(_) => true,
        #[cfg(feature = "tch")]
        DispatchTensorKind::LibTorch(_) => true,
        #[allow(unreachable_patterns, reason = "backends that Burn alone has")]
        _ => false,
    }
}

/// What the names of Burn's devices contain, and the features of their backends.
const FEATURES: [(&str, &str); 6] = [
    ("Flex", "flex"),
    ("NdArray", "ndarray"),
    ("LibTorch", "tch"),
    ("Cuda", "cuda"),
    ("Hip", "rocm"),
    ("Wgpu", "wgpu"),
];

fn without_backend(device: DispatchDevice) -> String {
    let device = match device {
        DispatchDevice::Autodiff(device) => device.inner(),
        device => device,
    };
    let device = format!("{device:?}");
    let feature = FEATURES.iter().find(|(name, _)| device.contains(name));
    match feature {
        Some((_, feature)) => format!(
            "burn-peft was built without the backend of {device}: in Cargo.toml, enable the feature `{feature}` of \
             burn-peft, not of burn alone"
        ),
        None => format!(
            "burn-peft has no operations for {device}: choose a device of a backend that is one of its features"
        ),
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn a_missing_backend_is_named_by_its_feature() {
        let device = Device::flex().autodiff();
        let message = without_backend(device.as_dispatch().clone());
        assert!(
            message.contains("Flex(Cpu): ") && message.contains("the feature `flex`"),
            "{message}"
        );
    }
}
