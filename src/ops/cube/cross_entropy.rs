use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{elem, empty, into_owned, row};

/// The loss of each row; if asked for, the row is overwritten by `softmax(row) - onehot(target)`.
#[cube(launch, address_type = "dynamic")]
fn cross_entropy_kernel<F: Float, I: Int>(
    logits: &mut Tensor<F>,
    targets: &Tensor<I>,
    losses: &mut Tensor<f32>,
    classes: usize,
    // WGSL has no literal for it.
    nan: f32,
    #[comptime] with_grad: bool,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let row = CUBE_POS;
    if row >= losses.len() {
        terminate!();
    }
    let mut shared = Shared::new_slice(row::UNITS);
    let start = row * classes;
    let mut largest = f32::cast_from(logits[start]);
    let mut i = UNIT_POS_X as usize;
    while i < classes {
        let logit = f32::cast_from(logits[start + i]);
        if logit > largest {
            largest = logit;
        }
        i += row::UNITS;
    }
    let largest = row::max(largest, &mut shared);
    let mut total = 0.0f32;
    let mut i = UNIT_POS_X as usize;
    while i < classes {
        total += (f32::cast_from(logits[start + i]) - largest).exp();
        i += row::UNITS;
    }
    let total = row::sum(total, &mut shared);
    let target = usize::cast_from(targets[row]);
    if UNIT_POS_X == 0 {
        losses[row] = if target < classes {
            largest + total.ln() - f32::cast_from(logits[start + target])
        } else {
            nan
        };
    }
    if with_grad {
        // The target's logit must have been read.
        sync_cube();
        let mut i = UNIT_POS_X as usize;
        while i < classes {
            let mut grad = (f32::cast_from(logits[start + i]) - largest).exp() / total;
            if i == target {
                grad -= 1.0f32;
            }
            logits[start + i] = F::cast_from(grad);
            i += row::UNITS;
        }
    }
}

pub fn forward(logits: CubeTensor, targets: CubeTensor) -> CubeTensor {
    launch(&into_contiguous(logits), targets, false)
}

/// The sum and its gradient, in the place of the logits if nobody else reads these.
pub fn forward_with_grad(logits: CubeTensor, targets: CubeTensor) -> (CubeTensor, CubeTensor) {
    let logits = into_owned(logits);
    let loss = launch(&logits, targets, true);
    (loss, logits)
}

/// The sum of the rows' losses.
fn launch(logits: &CubeTensor, targets: CubeTensor, with_grad: bool) -> CubeTensor {
    let targets = into_contiguous(targets);
    let [rows, classes] = logits.shape().dims();
    let losses = empty(logits, Shape::new([rows]), DType::F32);
    let client = logits.client.clone();
    let dtypes = [elem(logits.dtype), elem(targets.dtype)];
    let (count, dim) = row::cubes(&client, rows);
    cross_entropy_kernel::launch(
        &client,
        count,
        dim,
        logits.required_address_type(),
        logits.clone().into_tensor_arg(),
        targets.into_tensor_arg(),
        losses.clone().into_tensor_arg(),
        classes,
        f32::NAN,
        with_grad,
        dtypes,
    );
    CubeBackend::float_sum(losses)
}
