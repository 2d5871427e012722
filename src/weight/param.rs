use burn::module::{Param, ParamId};
use burn::tensor::{Device, Distribution, Tensor};

/// The value without a graph. Burn's `detach` alone would leave a trained leaf trained.
pub(crate) fn untracked<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor.set_require_grad(false)
}

/// A parameter to train whose first value `init` makes when it is first used, in memory of its own.
pub(crate) fn lazy_param<const D: usize>(
    shape: [usize; D],
    device: &Device,
    init: impl Fn([usize; D], &Device) -> Tensor<D> + Send + Sync + 'static,
) -> Param<Tensor<D>> {
    let init = move |device: &Device, require_grad| {
        let new = |shape| init(shape, device);
        let value = device.memory_persistent_allocations(shape, new);
        value.set_require_grad(require_grad)
    };
    Param::uninitialized(ParamId::new(), init, device.clone(), true, shape.into())
}

/// A parameter to train that is drawn when it is first used.
pub(crate) fn random_param<const D: usize>(
    shape: [usize; D],
    distribution: Distribution,
    device: &Device,
) -> Param<Tensor<D>> {
    lazy_param(shape, device, move |shape, device| {
        Tensor::random(shape, distribution, device)
    })
}

/// Replaces a parameter's value by an untracked one, brought back to its type, and keeps its id and whether it
/// is trained.
pub(crate) fn replace<const D: usize>(
    param: Param<Tensor<D>>,
    f: impl FnOnce(Tensor<D>) -> Tensor<D>,
) -> Param<Tensor<D>> {
    let (id, value, mapper) = param.consume();
    let (require_grad, dtype) = (value.is_require_grad(), value.dtype());
    let value = f(untracked(value)).cast(dtype);
    Param::from_mapped_value(id, value.set_require_grad(require_grad), mapper)
}
