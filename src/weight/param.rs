use burn::module::{Param, ParamId};
use burn::tensor::{Device, Distribution, Tensor};

/// The value without a graph. Burn's `detach` alone would leave a trained leaf trained.
pub(crate) fn untracked<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor.set_require_grad(false)
}

/// Whether a parameter is trained, in a model whose trained parameters have values. One without is not asked for it: a
/// packed weight would be decoded.
pub(crate) fn is_trained<const D: usize>(param: &Param<Tensor<D>>) -> bool {
    param.is_initialized() && param.is_require_grad()
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

#[cfg(test)]
mod tests {
    use burn::module::{Module, ModuleVisitor};

    use super::*;
    use crate::quantization::{BlockFormat, PackedLayout};
    use crate::weight::{FrozenWeight, PackedWeight};

    #[derive(Default)]
    struct Asked {
        trained: Vec<bool>,
        have_values: Vec<bool>,
    }

    impl ModuleVisitor for Asked {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.trained.push(is_trained(param));
            self.have_values.push(param.is_initialized());
        }
    }

    #[test]
    fn asking_whether_it_is_trained_decodes_no_packed_weight() {
        let device = Device::default().autodiff();
        let layout = PackedLayout::new(BlockFormat::Q8_0, [2, 32]).unwrap();
        let packed = FrozenWeight::Packed(PackedWeight::lazy(layout, ParamId::new(), &device));
        let dense = FrozenWeight::Dense(random_param([2, 32], Distribution::Default, &device));
        dense.val();
        let mut asked = Asked::default();
        packed.visit(&mut asked);
        dense.visit(&mut asked);
        assert_eq!(asked.trained, [false, true]);
        assert_eq!(asked.have_values, [false, true]);
    }
}
