use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::DType;
use half::{bf16, f16};

use super::gemm::{Mat, MatMut, Number, Output, matmul, matmul_bf16, multiplies_bf16};
use super::vector::new_buffer;
use super::{Primitive, Tracked, contiguous, primitive};
use crate::ops::{MatmulPrecision, matmul_precision};

/// Which way the weight, `[out_dim, in_dim]`, is applied.
#[derive(Clone, Copy)]
enum Pass {
    /// `x Wᵀ`.
    Forward,
    /// `grad W`.
    Backward,
}

pub fn forward(x: &Primitive, weight: &Primitive) -> Primitive {
    apply(x, weight, Pass::Forward)
}

fn apply(x: &Primitive, weight: &Primitive, pass: Pass) -> Primitive {
    let (x, weight) = (contiguous(x), contiguous(weight));
    match weight.dtype() {
        DType::F32 => multiply::<f32>(&x, weight.storage(), &weight, pass, write),
        DType::BF16 if matmul_precision() == MatmulPrecision::Medium && multiplies_bf16() => {
            multiply(&x, weight.storage(), &weight, pass, matmul_bf16)
        }
        DType::BF16 => multiply::<bf16>(&x, weight.storage(), &weight, pass, write),
        DType::F16 => multiply::<f16>(&x, weight.storage(), &weight, pass, write),
        dtype => panic!("a weight of type {dtype:?} cannot be multiplied by an f32 tensor"),
    }
}

fn write<T: Number>(out: MatMut, x: Mat, weight: Mat<T>) {
    matmul(out, Output::Write, x, weight);
}

fn multiply<T: Number>(
    x: &Primitive,
    values: &[T],
    weight: &Primitive,
    pass: Pass,
    matmul: impl Fn(MatMut, Mat, Mat<T>),
) -> Primitive {
    let weight = Mat::row_major(values, weight.shape().dims());
    let weight = match pass {
        Pass::Forward => weight.transpose(),
        Pass::Backward => weight,
    };
    let [in_dim, out_dim] = weight.shape();
    let x_values: &[f32] = x.storage();
    let rows = x_values.len() / in_dim;
    let x_matrix = Mat::row_major(x_values, [rows, in_dim]);
    let fill = |out: &mut [_]| matmul(MatMut::row_major(out, [rows, out_dim]), x_matrix, weight);
    // SAFETY: the product writes all of its numbers.
    let values = unsafe { new_buffer(rows * out_dim, fill) };
    let mut shape = x.shape();
    let last = shape.num_dims() - 1;
    shape[last] = out_dim;
    primitive(values, &shape)
}

/// `gradᵀ x`, in the weight's type.
fn weight_grad(grad: &Primitive, x: &Primitive, weight: &Primitive) -> Primitive {
    let (grad, x) = (contiguous(grad), contiguous(x));
    let [out_dim, in_dim] = weight.shape().dims();
    let (grad, x): (&[f32], &[f32]) = (grad.storage(), x.storage());
    let rows = x.len() / in_dim;
    let fill = |out: &mut [_]| {
        let out = MatMut::row_major(out, [out_dim, in_dim]);
        let grad = Mat::row_major(grad, [rows, out_dim]);
        let x = Mat::row_major(x, [rows, in_dim]);
        matmul(out, Output::Write, grad.transpose(), x);
    };
    // SAFETY: the product writes all of its numbers.
    let values = unsafe { new_buffer(out_dim * in_dim, fill) };
    let values = primitive(values, &[out_dim, in_dim]);
    Flex::float_cast(values, weight.dtype().into())
}

/// Keeps `x` for a trained weight only.
pub fn tracked<C: CheckpointStrategy>(x: Tracked, weight: Tracked) -> Tracked {
    let is_trained = weight.is_tracked();
    let backward = LinearBackward.prepare::<C>([x.node(), weight.node()]);
    let (x, weight) = (x.into_primitive(), weight.into_primitive());
    let out = forward(&x, &weight);
    match backward.compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((is_trained.then_some(x), weight), out),
        OpsKind::UnTracked(prep) => prep.finish(out),
    }
}

#[derive(Debug)]
struct LinearBackward;

impl Backward<Flex, 2> for LinearBackward {
    /// x, if the weight is trained, and the weight.
    type State = (Option<Primitive>, Primitive);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<Flex>(&ops.node);
        let [x_node, weight_node] = ops.parents;
        let (x, weight) = ops.state;
        if let Some((node, x)) = weight_node.zip(x) {
            grads.register::<Flex>(node.id, weight_grad(&grad, &x, &weight));
        }
        if let Some(node) = x_node {
            grads.register::<Flex>(node.id, apply(&grad, &weight, Pass::Backward));
        }
    }
}
