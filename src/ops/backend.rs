//! What a backend does for the operations of a training step.

#![cfg_attr(
    feature = "ndarray",
    allow(deprecated, reason = "NdArray serves until Burn drops it")
)]
#![cfg_attr(
    not(any(
        feature = "flex",
        feature = "ndarray",
        feature = "tch",
        feature = "cube"
    )),
    allow(unused_variables, reason = "no backend, no call")
)]

/// Burn with its fusion, whose feature any program that depends on Burn may turn on: the attribute of
/// [`StepOps`] names it so.
#[cfg(feature = "cube")]
mod burn {
    pub use ::burn::*;

    pub mod backend {
        pub use ::burn::backend::*;
        pub use burn_fusion as fusion;
    }
}

#[cfg(feature = "tch")]
use burn::backend::LibTorch;
#[cfg(feature = "ndarray")]
use burn::backend::NdArray;
use burn::backend::backend_extension;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, FloatDType, TensorMetadata};

#[cfg(feature = "cube")]
use burn::backend::fusion::custom::TensorSpec;
#[cfg(feature = "cube")]
use burn::tensor::{DType, Shape};

use super::portable::{
    adamw, attention, cross_entropy, dropout, glu, linear, normed_rotary, packed, rms_norm, rotary,
    split, squares,
};
use super::types::Activation;
use super::types::AdamWStep;
use super::types::DropoutMask;
use super::types::KeyRanges;
use super::types::Scores;
use super::types::{Piece, Whole};
use crate::quantization::PackedLayout;

/// The operations, whose equations are in `super`, and their backward passes. The bodies here are the
/// portable ones; a backend overrides those for which it has a better one. None of them knows of a
/// graph: `autodiff` gives every backend its backward passes. Burn's fusion takes a portable body
/// apart (`default`) and runs a kernel of `cube` in one piece, whose outputs the attribute describes.
#[backend_extension(
    Cube: cfg(feature = "cube"),
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Autodiff,
    Fusion: cfg(feature = "cube")
)]
pub trait StepOps: Backend {
    /// `a b` of the last two dimensions. Burn's fusion would take a product of f32 that is rounded.
    #[fusion(dtype = a, shape = product_shape(a, b))]
    fn product(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(a, b)
    }

    /// `x Wᵀ`.
    #[fusion(dtype = x, shape = linear_shape(x, weight[0]))]
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        linear::forward::<Self>(x, weight)
    }

    /// `grad W`.
    #[fusion(dtype = grad, shape = linear_shape(grad, weight[1]))]
    fn linear_x_grad(grad: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        linear::x_grad::<Self>(grad, weight)
    }

    /// `s·x Wᵀ`.
    #[fusion(dtype = x, shape = linear_shape(x, weight[0]))]
    fn scaled_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        Self::float_mul_scalar(<Self as StepOps>::linear(x, weight), scale.into())
    }

    /// `s·grad W`.
    #[fusion(dtype = grad, shape = linear_shape(grad, weight[1]))]
    fn scaled_linear_x_grad(
        grad: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        scale: f64,
    ) -> FloatTensor<Self> {
        Self::float_mul_scalar(Self::linear_x_grad(grad, weight), scale.into())
    }

    /// `sum + x Wᵀ`.
    #[fusion(dtype = sum, shape = sum)]
    fn add_linear(
        sum: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::float_add(sum, <Self as StepOps>::linear(x, weight))
    }

    /// `sum + grad W`.
    #[fusion(dtype = sum, shape = sum)]
    fn add_linear_x_grad(
        sum: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        weight: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::float_add(sum, Self::linear_x_grad(grad, weight))
    }

    /// `gradᵀ x`, in the weight's type.
    #[fusion(dtype = weight, shape = weight)]
    fn linear_weight_grad(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        linear::weight_grad::<Self>(grad, x, weight)
    }

    /// `x Wᵀ` of a packed weight, whose bytes are in `words`.
    #[fusion(dtype = x, shape = linear_shape(x, layout.shape()[0]))]
    fn packed_linear(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        layout: PackedLayout,
    ) -> FloatTensor<Self> {
        packed::forward::<Self>(x, words, layout)
    }

    /// `grad W`.
    #[fusion(dtype = grad, shape = linear_shape(grad, layout.shape()[1]))]
    fn packed_linear_x_grad(
        grad: FloatTensor<Self>,
        words: IntTensor<Self>,
        layout: PackedLayout,
    ) -> FloatTensor<Self> {
        packed::x_grad::<Self>(grad, words, layout)
    }

    /// The rows of some indices, `[indices, columns]`, f32.
    #[fusion(meta = |_, indices, layout| packed_rows_spec(indices, layout))]
    fn packed_rows(
        words: IntTensor<Self>,
        indices: IntTensor<Self>,
        layout: PackedLayout,
    ) -> FloatTensor<Self> {
        packed::rows::<Self>(words, indices, layout)
    }

    /// The sum of the squares of each row, `[rows]`, f32.
    #[fusion(meta = |_, layout| TensorSpec::new(Shape::new([layout.shape()[0]]), DType::F32))]
    fn packed_row_squares(words: IntTensor<Self>, layout: PackedLayout) -> FloatTensor<Self> {
        packed::row_squares::<Self>(words, layout)
    }

    /// All of a packed weight, f32.
    #[fusion(meta = |_, layout| TensorSpec::new(Shape::new(layout.shape()), DType::F32))]
    fn unpacked(words: IntTensor<Self>, layout: PackedLayout) -> FloatTensor<Self> {
        packed::unpacked::<Self>(words, layout)
    }

    /// Dropout, which is its own backward pass.
    #[fusion(dtype = x, shape = x)]
    fn dropout(x: FloatTensor<Self>, mask: DropoutMask) -> FloatTensor<Self> {
        dropout::forward::<Self>(x, mask)
    }

    /// `x Wᵀ + s·(dropout(x) Aᵀ) Bᵀ`.
    #[fusion(default)]
    fn lora_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f64,
        mask: Option<DropoutMask>,
    ) -> FloatTensor<Self> {
        let (out, _) = lora_forward::<Self>(x, Weight::Dense(weight), [a, b], scale, mask);
        out
    }

    /// The same with a packed weight.
    #[fusion(default)]
    fn packed_lora_linear(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        layout: PackedLayout,
        scale: f64,
        mask: Option<DropoutMask>,
    ) -> FloatTensor<Self> {
        let weight = Weight::Packed(words, layout);
        let (out, _) = lora_forward::<Self>(x, weight, [a, b], scale, mask);
        out
    }

    /// What of `x` a backward pass gets: where products round activations to bf16, those that only it reads are kept
    /// so.
    #[fusion(default)]
    fn narrowed(x: FloatTensor<Self>) -> FloatTensor<Self> {
        x
    }

    /// What [`StepOps::narrowed`] made of an f32 tensor, in f32.
    #[fusion(default)]
    fn widened(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_cast(x, FloatDType::F32)
    }

    /// `activation(gate) · up`.
    #[fusion(dtype = gate, shape = gate)]
    fn glu(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        glu::forward::<Self>(gate, up, activation)
    }

    /// The gradients of gate and up.
    #[fusion(meta = |_, gate, up, _| (gate.clone(), up.clone()))]
    fn glu_backward(
        grad: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        glu::backward::<Self>(grad, gate, up, activation)
    }

    /// A piece, copied; its backward pass asks what all pieces share.
    #[fusion(dtype = x, shape = piece_shape(x, piece))]
    fn piece(x: FloatTensor<Self>, piece: Piece, _whole: Whole) -> FloatTensor<Self> {
        split::forward::<Self>(x, piece)
    }

    /// The norm; `weight` is f32.
    #[fusion(dtype = x, shape = x)]
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        rms_norm::forward::<Self>(x, weight, eps)
    }

    /// The gradient of x.
    #[fusion(dtype = x, shape = x)]
    fn rms_norm_x_grad(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        rms_norm::x_grad::<Self>(grad, x, weight, eps)
    }

    /// The gradient of the weight.
    #[fusion(default)]
    fn rms_norm_weight_grad(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        rms_norm::weight_grad::<Self>(grad, x, weight, eps)
    }

    /// The rotation of the first numbers of each head; that by the opposite angles is its backward pass.
    #[fusion(dtype = x, shape = x)]
    fn rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        rotary::forward::<Self>(x, cos, sin)
    }

    /// The rotation of what [`StepOps::rms_norm`] makes of each head, or of all heads together: as wide as `weight`.
    #[fusion(default)]
    fn normed_rotary(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        normed_rotary::forward::<Self>(x, weight, eps, [cos, sin])
    }

    /// The gradient of x.
    #[fusion(default)]
    fn normed_rotary_x_grad(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        normed_rotary::x_grad::<Self>(grad, x, weight, eps, [cos, sin])
    }

    /// The gradient of the weight.
    #[fusion(default)]
    fn normed_rotary_weight_grad(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        normed_rotary::weight_grad::<Self>(grad, x, weight, eps, [cos, sin])
    }

    /// The attention. `visible` is what the mask says as a tensor, see [`AttentionMask::visible_tensor`].
    #[fusion(dtype = q, shape = q)]
    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        visible: IntTensor<Self>,
        mask: KeyRanges,
        scores: Scores,
    ) -> FloatTensor<Self> {
        attention::forward::<Self>(q, k, v, visible, &mask, scores)
    }

    /// The gradients of q, k and v.
    #[fusion(meta = |_, q, k, v, _, _, _| (q.clone(), k.clone(), v.clone()))]
    fn attention_backward(
        grad: FloatTensor<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        visible: IntTensor<Self>,
        mask: KeyRanges,
        scores: Scores,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        attention::backward::<Self>(grad, [q, k, v], visible, &mask, scores)
    }

    /// The attention where it forms no scores in memory and caps none, and the logarithm of each query's softmax
    /// total, `[batch, heads, seq]`, f32. Of backends that have it on some devices, see
    /// [`super::attention_body`].
    #[fusion(meta = |q, _, _, _, _| (q.clone(), totals_spec(q)))]
    #[allow(unused_variables, reason = "a backend without it")]
    fn flash_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        visible: IntTensor<Self>,
        scale: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("this backend forms scores")
    }

    /// The gradients of q, k and v, from what [`StepOps::flash_attention`] gave.
    #[fusion(meta = |_, _, _, q, k, v, _, _| (q.clone(), k.clone(), v.clone()))]
    #[allow(unused_variables, reason = "a backend without it")]
    #[allow(clippy::too_many_arguments, reason = "Burn takes each tensor alone")]
    fn flash_attention_backward(
        grad: FloatTensor<Self>,
        out: FloatTensor<Self>,
        totals: FloatTensor<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        visible: IntTensor<Self>,
        scale: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("this backend forms scores")
    }

    /// The sum of the rows' cross entropies, `[1]`, f32.
    #[fusion(meta = |_, _| loss_spec())]
    fn cross_entropy_sum(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        cross_entropy::forward::<Self>(logits, targets)
    }

    /// The sum, and its gradient `softmax(logits) - onehot(targets)` in the type of the logits.
    #[fusion(meta = |logits, _| (loss_spec(), logits.clone()))]
    fn cross_entropy_with_grad(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        cross_entropy::forward_with_grad::<Self>(logits, targets)
    }

    /// The root of a backward pass that begins at `output` with the gradient `grad`; its own number says
    /// nothing.
    #[fusion(default)]
    fn backward_root(output: FloatTensor<Self>, _grad: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_zeros([1].into(), &output.device(), FloatDType::F32)
    }

    /// `parts`, f32, with numbers added whose sum is that of the squares of `values`.
    #[fusion(dtype = parts, shape = parts)]
    fn add_squares(parts: FloatTensor<Self>, values: FloatTensor<Self>) -> FloatTensor<Self> {
        squares::add::<Self>(parts, values)
    }

    /// AdamW's update: the new value and the new moments.
    #[fusion(meta = |value, _, exp_avg, exp_avg_sq, _| {
        (value.clone(), exp_avg.clone(), exp_avg_sq.clone())
    })]
    fn adamw(
        value: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        exp_avg: FloatTensor<Self>,
        exp_avg_sq: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        adamw::update::<Self>(value, grad, exp_avg, exp_avg_sq, step)
    }
}

/// The weight of a linear layer, as an operation gets it.
#[derive(Debug, Clone)]
pub enum Weight<B: Backend> {
    Dense(FloatTensor<B>),
    Packed(IntTensor<B>, PackedLayout),
}

impl<B: StepOps> Weight<B> {
    /// `x Wᵀ`.
    pub fn product(self, x: FloatTensor<B>) -> FloatTensor<B> {
        match self {
            Self::Dense(weight) => <B as StepOps>::linear(x, weight),
            Self::Packed(words, layout) => B::packed_linear(x, words, layout),
        }
    }

    /// `grad W`.
    pub fn x_grad(self, grad: FloatTensor<B>) -> FloatTensor<B> {
        match self {
            Self::Dense(weight) => B::linear_x_grad(grad, weight),
            Self::Packed(words, layout) => B::packed_linear_x_grad(grad, words, layout),
        }
    }
}

/// The output of an adapted layer with A and B, and `s·dropout(x) Aᵀ`.
pub fn lora_forward<B: StepOps>(
    x: FloatTensor<B>,
    weight: Weight<B>,
    [a, b]: [FloatTensor<B>; 2],
    scale: f64,
    mask: Option<DropoutMask>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let down = B::scaled_linear(maybe_dropped::<B>(x.clone(), mask), a, scale);
    let base = weight.product(x);
    (B::add_linear(base, down.clone(), b), down)
}

/// What `mask` leaves of `x`.
pub fn maybe_dropped<B: StepOps>(x: FloatTensor<B>, mask: Option<DropoutMask>) -> FloatTensor<B> {
    match mask {
        Some(mask) => B::dropout(x, mask),
        None => x,
    }
}

impl<B: StepOps> attention::MatrixProduct for B {
    fn matrix_product(a: FloatTensor<B>, b: FloatTensor<B>) -> FloatTensor<B> {
        B::product(a, b)
    }
}

#[cfg(feature = "ndarray")]
impl StepOps for NdArray {}
#[cfg(feature = "tch")]
impl StepOps for LibTorch {}

// What Burn's fusion must know of outputs before they are computed.

#[cfg(feature = "cube")]
fn linear_shape(x: &Shape, out_dim: usize) -> Shape {
    let (mut shape, last) = (x.clone(), x.num_dims() - 1);
    shape[last] = out_dim;
    shape
}

#[cfg(feature = "cube")]
fn piece_shape(x: &Shape, piece: &Piece) -> Shape {
    let mut shape = x.clone();
    shape[piece.dim] = piece.range.len();
    shape
}

#[cfg(feature = "cube")]
fn product_shape(a: &Shape, b: &Shape) -> Shape {
    linear_shape(a, b[b.num_dims() - 1])
}

#[cfg(feature = "cube")]
fn packed_rows_spec(indices: &TensorSpec, layout: &PackedLayout) -> TensorSpec {
    let [_, columns] = layout.shape();
    let shape = Shape::new([indices.shape.num_elements(), columns]);
    TensorSpec::new(shape, DType::F32)
}

#[cfg(feature = "cube")]
fn totals_spec(q: &TensorSpec) -> TensorSpec {
    let [batch, seq, heads, _] = q.shape.dims();
    TensorSpec::new(Shape::new([batch, heads, seq]), DType::F32)
}

#[cfg(feature = "cube")]
fn loss_spec() -> TensorSpec {
    TensorSpec::new([1].into(), DType::F32)
}
