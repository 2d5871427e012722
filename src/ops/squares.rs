use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Tensor};

use super::backend::StepOps;
use super::dispatch::dispatched;

/// How many parts a sum has: on a GPU each is another cube's, so that none waits for another.
const PARTS: usize = 128;

/// The sum of the squares of many tensors' numbers, in f32.
pub(crate) struct SumOfSquares(Tensor<1>);

impl SumOfSquares {
    pub(crate) fn zero(device: &Device) -> Self {
        Self(Tensor::zeros([PARTS], (device, DType::F32)))
    }

    pub(crate) fn add<const D: usize>(self, values: Tensor<D>) -> Self {
        let parts = Dispatch::add_squares(dispatched(self.0), values.into_dispatch());
        Self(Tensor::from_dispatch(parts))
    }

    /// Numbers whose sum is that of the squares. Added up in their order, it is the same on every machine.
    pub(crate) fn parts(self) -> Tensor<1> {
        self.0
    }
}
