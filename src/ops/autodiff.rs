//! The backward passes of the operations, on every backend: which inputs each keeps, and which of the
//! backend's bodies it then calls. Autodiff alone would keep the inputs of every step of a body.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend, Backend, TensorMetadata};
use burn::tensor::{DType, Shape};

use super::backend::{StepOps, Weight, lora_forward, maybe_dropped};
use super::portable::split;
use super::types::Activation;
use super::types::DropoutMask;
use super::types::KeyRanges;
use super::types::Scores;
use super::types::{Piece, Whole};
use crate::quantization::PackedLayout;

impl<B: StepOps, C: CheckpointStrategy> StepOps for Autodiff<B, C> {
    /// Keeps `x` for a trained weight only.
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let is_trained = weight.is_tracked();
        let prep = LinearBackward.prepare::<C>([x.node(), weight.node()]);
        let (x, weight) = (x.into_primitive(), weight.into_primitive());
        let out = <B as StepOps>::linear(x.clone(), weight.clone());
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((is_trained.then_some(x), weight), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn packed_linear(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        layout: PackedLayout,
    ) -> FloatTensor<Self> {
        let prep = PackedLinearBackward.prepare::<C>([x.node()]);
        let out = B::packed_linear(x.into_primitive(), words.clone(), layout);
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((words, layout), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn packed_rows(
        words: IntTensor<Self>,
        indices: IntTensor<Self>,
        layout: PackedLayout,
    ) -> FloatTensor<Self> {
        Self::from_inner(B::packed_rows(words, indices, layout))
    }

    fn packed_row_squares(words: IntTensor<Self>, layout: PackedLayout) -> FloatTensor<Self> {
        Self::from_inner(B::packed_row_squares(words, layout))
    }

    fn unpacked(words: IntTensor<Self>, layout: PackedLayout) -> FloatTensor<Self> {
        Self::from_inner(B::unpacked(words, layout))
    }

    fn dropout(x: FloatTensor<Self>, mask: DropoutMask) -> FloatTensor<Self> {
        let prep = DropoutBackward.prepare::<C>([x.node()]);
        let out = B::dropout(x.into_primitive(), mask);
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(mask, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn lora_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f64,
        mask: Option<DropoutMask>,
    ) -> FloatTensor<Self> {
        let (needs_x, needs_down) = (weight.is_tracked() || a.is_tracked(), b.is_tracked());
        let nodes = [x.node(), weight.node(), a.node(), b.node()];
        let prep = LoRALinearBackward.prepare::<C>(nodes);
        let [x, weight, a, b] = [x, weight, a, b].map(|tensor| tensor.into_primitive());
        let update = Update {
            factors: [a, b],
            scale,
            mask,
        };
        let (out, state) =
            LoRALinearState::<B>::forward(x, Weight::Dense(weight), update, [needs_x, needs_down]);
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(state, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn packed_lora_linear(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        layout: PackedLayout,
        scale: f64,
        mask: Option<DropoutMask>,
    ) -> FloatTensor<Self> {
        let needs = [a.is_tracked(), b.is_tracked()];
        let prep = PackedLoRALinearBackward.prepare::<C>([x.node(), a.node(), b.node()]);
        let [x, a, b] = [x, a, b].map(|tensor| tensor.into_primitive());
        let update = Update {
            factors: [a, b],
            scale,
            mask,
        };
        let weight = Weight::Packed(words, layout);
        let (out, state) = LoRALinearState::<B>::forward(x, weight, update, needs);
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(state, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn glu(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let prep = GluBackward.prepare::<C>([gate.node(), up.node()]);
        let (gate, up) = (gate.into_primitive(), up.into_primitive());
        let out = B::glu(gate.clone(), up.clone(), activation);
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let inputs = [gate, up].map(Narrowed::of);
                prep.finish((inputs, activation), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn piece(x: FloatTensor<Self>, piece: Piece, whole: Whole) -> FloatTensor<Self> {
        let prep = PieceBackward.prepare::<C>([x.node()]);
        let x = x.into_primitive();
        let shape = x.shape();
        let out = B::piece(x, piece.clone(), whole.clone());
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((shape, piece, whole), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        let prep = RMSNormBackward.prepare::<C>([x.node(), weight.node()]);
        let (x, weight) = (x.into_primitive(), weight.into_primitive());
        let out = B::rms_norm(x.clone(), weight.clone(), eps);
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((Narrowed::of(x), weight, eps), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let prep = RotaryBackward.prepare::<C>([x.node()]);
        let [x, cos, sin] = [x, cos, sin].map(|tensor| tensor.into_primitive());
        let out = B::rotary(x, cos.clone(), sin.clone());
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((cos, sin), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn normed_rotary(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let prep = NormedRotaryBackward.prepare::<C>([x.node(), weight.node()]);
        let [x, weight, cos, sin] = [x, weight, cos, sin].map(|tensor| tensor.into_primitive());
        let out = B::normed_rotary(x.clone(), weight.clone(), eps, cos.clone(), sin.clone());
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((Narrowed::of(x), weight, eps, [cos, sin]), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        visible: IntTensor<Self>,
        mask: KeyRanges,
        scores: Scores,
    ) -> FloatTensor<Self> {
        let prep = AttentionBackward.prepare::<C>([q.node(), k.node(), v.node()]);
        let inputs = [q, k, v].map(|input| input.into_primitive());
        let [q, k, v] = inputs.clone();
        let out = <B as StepOps>::attention(q, k, v, visible.clone(), mask.clone(), scores);
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let inputs = inputs.map(Narrowed::of);
                prep.finish((inputs, visible, mask, scores), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    /// Keeps the output too, which whoever reads it may keep as well.
    fn flash_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        visible: IntTensor<Self>,
        scale: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let prep = FlashAttentionBackward.prepare::<C>([q.node(), k.node(), v.node()]);
        let inputs @ [q, k, v] = &[q, k, v].map(|input| input.into_primitive());
        let (q, k, v) = (q.clone(), k.clone(), v.clone());
        let (out, totals) = B::flash_attention(q, k, v, visible.clone(), scale);
        let untracked = Self::from_inner(totals.clone());
        let out = match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                prep.finish((inputs.clone(), [out.clone(), totals], visible, scale), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(out),
        };
        (out, untracked)
    }

    fn backward_root(output: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        let prep = RootBackward.prepare::<C>([output.node()]);
        let grad = grad.into_primitive();
        let root = B::backward_root(output.into_primitive(), grad.clone());
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(grad, root),
            OpsKind::UnTracked(prep) => prep.finish(root),
        }
    }

    /// Keeps the gradient, which takes the place of the logits where the backend can write there.
    fn cross_entropy_sum(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        let prep = CrossEntropyBackward.prepare::<C>([logits.node()]);
        let logits = logits.into_primitive();
        match prep.compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (loss, grad) = B::cross_entropy_with_grad(logits, targets);
                prep.finish(grad, loss)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::cross_entropy_sum(logits, targets)),
        }
    }
}

/// A tensor that nothing but a backward pass reads.
#[derive(Debug, Clone)]
struct Narrowed<B: Backend> {
    values: FloatTensor<B>,
    /// The type that it came in.
    dtype: DType,
}

impl<B: StepOps> Narrowed<B> {
    fn of(x: FloatTensor<B>) -> Self {
        let dtype = x.dtype();
        let values = B::narrowed(x);
        Self { values, dtype }
    }

    fn widened(self) -> FloatTensor<B> {
        match self.values.dtype() == self.dtype {
            true => self.values,
            false => B::widened(self.values),
        }
    }
}

#[derive(Debug)]
struct LinearBackward;

impl<B: StepOps> Backward<B, 2> for LinearBackward {
    /// x, if the weight is trained, and the weight.
    type State = (Option<FloatTensor<B>>, FloatTensor<B>);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let [x_node, weight_node] = ops.parents;
        let (x, weight) = ops.state;
        if let Some((node, x)) = weight_node.zip(x) {
            let weight_grad = B::linear_weight_grad(grad.clone(), x, weight.clone());
            grads.register::<B>(node.id, weight_grad);
        }
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::linear_x_grad(grad, weight));
        }
    }
}

#[derive(Debug)]
struct PackedLinearBackward;

impl<B: StepOps> Backward<B, 1> for PackedLinearBackward {
    /// The weight.
    type State = (IntTensor<B>, PackedLayout);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let (words, layout) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| {
            B::packed_linear_x_grad(grad, words, layout)
        });
    }
}

#[derive(Debug)]
struct LoRALinearBackward;

#[derive(Debug)]
struct PackedLoRALinearBackward;

/// What an adapter adds to a linear layer's output.
#[derive(Debug, Clone)]
struct Update<B: Backend> {
    /// A and B.
    factors: [FloatTensor<B>; 2],
    scale: f64,
    mask: Option<DropoutMask>,
}

#[derive(Debug, Clone)]
struct LoRALinearState<B: Backend> {
    /// If W or A is trained.
    x: Option<FloatTensor<B>>,
    /// `s·A dropout(x)`, if B is trained.
    down: Option<FloatTensor<B>>,
    weight: Weight<B>,
    update: Update<B>,
}

impl<B: StepOps> LoRALinearState<B> {
    /// The layer's output and what the backward pass needs, x and `s·A dropout(x)` if they are asked for.
    fn forward(
        x: FloatTensor<B>,
        weight: Weight<B>,
        update: Update<B>,
        [needs_x, needs_down]: [bool; 2],
    ) -> (FloatTensor<B>, Self) {
        let factors = update.factors.clone();
        let (out, down) = lora_forward::<B>(
            x.clone(),
            weight.clone(),
            factors,
            update.scale,
            update.mask,
        );
        let state = Self {
            x: needs_x.then_some(x),
            down: needs_down.then_some(down),
            weight,
            update,
        };
        (out, state)
    }

    /// Registers the gradients of x, A and B.
    fn backward(
        self,
        grad: FloatTensor<B>,
        [x_node, a_node, b_node]: [Option<NodeId>; 3],
        grads: &mut Gradients,
    ) {
        let Update {
            factors: [a, b],
            scale,
            mask,
        } = self.update;
        if let Some((node, down)) = b_node.zip(self.down) {
            let b_grad = B::linear_weight_grad(grad.clone(), down, b.clone());
            grads.register::<B>(node, b_grad);
        }
        if a_node.is_none() && x_node.is_none() {
            return;
        }
        let down_grad = B::scaled_linear_x_grad(grad.clone(), b, scale);
        if let Some((node, x)) = a_node.zip(self.x) {
            let x = maybe_dropped::<B>(x, mask);
            let a_grad = B::linear_weight_grad(down_grad.clone(), x, a.clone());
            grads.register::<B>(node, a_grad);
        }
        if let Some(node) = x_node {
            let x_grad = self.weight.x_grad(grad);
            let x_grad = match mask {
                None => B::add_linear_x_grad(x_grad, down_grad, a),
                Some(mask) => {
                    let update_grad = B::dropout(B::linear_x_grad(down_grad, a), mask);
                    B::float_add(x_grad, update_grad)
                }
            };
            grads.register::<B>(node, x_grad);
        }
    }
}

impl<B: StepOps> Backward<B, 4> for LoRALinearBackward {
    type State = LoRALinearState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 4>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let parents = ops.parents.map(|parent| Some(parent?.id));
        let [x_node, weight_node, a_node, b_node] = parents;
        if let (Some(node), Some(x), Weight::Dense(weight)) =
            (weight_node, &ops.state.x, &ops.state.weight)
        {
            let weight_grad = B::linear_weight_grad(grad.clone(), x.clone(), weight.clone());
            grads.register::<B>(node, weight_grad);
        }
        ops.state.backward(grad, [x_node, a_node, b_node], grads);
    }
}

impl<B: StepOps> Backward<B, 3> for PackedLoRALinearBackward {
    type State = LoRALinearState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let parents = ops.parents.map(|parent| Some(parent?.id));
        ops.state.backward(grad, parents, grads);
    }
}

#[derive(Debug)]
struct DropoutBackward;

impl<B: StepOps> Backward<B, 1> for DropoutBackward {
    type State = DropoutMask;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        unary::<B, _>(ops.parents, ops.node, grads, |grad| {
            B::dropout(grad, ops.state)
        });
    }
}

#[derive(Debug)]
struct GluBackward;

impl<B: StepOps> Backward<B, 2> for GluBackward {
    /// gate and up, and the activation.
    type State = ([Narrowed<B>; 2], Activation);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (inputs, activation) = ops.state;
        let [gate, up] = inputs.map(Narrowed::widened);
        let (gate_grad, up_grad) = B::glu_backward(grad, gate, up, activation);
        for (node, grad) in ops.parents.into_iter().zip([gate_grad, up_grad]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

#[derive(Debug)]
struct PieceBackward;

impl<B: StepOps> Backward<B, 1> for PieceBackward {
    /// The shape of the whole, where the piece lies in it, and what its pieces share.
    type State = (Shape, Piece, Whole);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let ([Some(node)], (shape, piece, whole)) = (ops.parents, ops.state) else {
            return;
        };
        // That of a leaf stays where it is when it is asked for.
        let is_leaf = node.parents.is_empty();
        let whole_grad = match whole.begin_grad() && !is_leaf {
            true => split::add_grad::<B>(grads.consume::<B>(&node), grad, piece),
            false => split::begin_grad::<B>(grad, shape, piece),
        };
        grads.register::<B>(node.id, whole_grad);
    }
}

#[derive(Debug)]
struct RMSNormBackward;

impl<B: StepOps> Backward<B, 2> for RMSNormBackward {
    /// x, weight and eps.
    type State = (Narrowed<B>, FloatTensor<B>, f64);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let [x_node, weight_node] = ops.parents;
        let (x, weight, eps) = ops.state;
        let x = x.widened();
        if let Some(node) = weight_node {
            let weight_grad = B::rms_norm_weight_grad(grad.clone(), x.clone(), weight.clone(), eps);
            grads.register::<B>(node.id, weight_grad);
        }
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::rms_norm_x_grad(grad, x, weight, eps));
        }
    }
}

#[derive(Debug)]
struct RotaryBackward;

impl<B: StepOps> Backward<B, 1> for RotaryBackward {
    /// cos and sin.
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let (cos, sin) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |grad| {
            B::rotary(grad, cos, B::float_neg(sin))
        });
    }
}

#[derive(Debug)]
struct NormedRotaryBackward;

impl<B: StepOps> Backward<B, 2> for NormedRotaryBackward {
    /// x, weight and eps, cos and sin.
    type State = (Narrowed<B>, FloatTensor<B>, f64, [FloatTensor<B>; 2]);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let [x_node, weight_node] = ops.parents;
        let (x, weight, eps, [cos, sin]) = ops.state;
        let x = x.widened();
        if let Some(node) = weight_node {
            let (grad, x, weight) = (grad.clone(), x.clone(), weight.clone());
            let (cos, sin) = (cos.clone(), sin.clone());
            let weight_grad = B::normed_rotary_weight_grad(grad, x, weight, eps, cos, sin);
            grads.register::<B>(node.id, weight_grad);
        }
        if let Some(node) = x_node {
            let x_grad = B::normed_rotary_x_grad(grad, x, weight, eps, cos, sin);
            grads.register::<B>(node.id, x_grad);
        }
    }
}

#[derive(Debug)]
struct AttentionBackward;

impl<B: StepOps> Backward<B, 3> for AttentionBackward {
    /// q, k, v; the mask as a tensor and as ranges; what becomes of scores.
    type State = ([Narrowed<B>; 3], IntTensor<B>, KeyRanges, Scores);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (inputs, visible, mask, scores) = ops.state;
        let [q, k, v] = inputs.map(Narrowed::widened);
        let (q_grad, k_grad, v_grad) = B::attention_backward(grad, q, k, v, visible, mask, scores);
        for (node, grad) in ops.parents.into_iter().zip([q_grad, k_grad, v_grad]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

#[derive(Debug)]
struct FlashAttentionBackward;

impl<B: StepOps> Backward<B, 3> for FlashAttentionBackward {
    /// q, k, v; the output and the softmaxes' totals; the mask; the scale of scores.
    type State = ([FloatTensor<B>; 3], [FloatTensor<B>; 2], IntTensor<B>, f64);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let ([q, k, v], [out, totals], visible, scale) = ops.state;
        let (q_grad, k_grad, v_grad) =
            B::flash_attention_backward(grad, out, totals, q, k, v, visible, scale);
        for (node, grad) in ops.parents.into_iter().zip([q_grad, k_grad, v_grad]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

#[derive(Debug)]
struct CrossEntropyBackward;

impl<B: StepOps> Backward<B, 1> for CrossEntropyBackward {
    /// The gradient of the sum.
    type State = FloatTensor<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        unary::<B, _>(ops.parents, ops.node, grads, |grad| {
            // Rounding the factor, one over the number of labels say, would scale all gradients.
            let (wide, narrow) = (grad.dtype(), ops.state.dtype());
            let logits_grad = B::float_cast(ops.state, wide.into());
            let factor = B::float_reshape(grad, Shape::new([1, 1]));
            B::float_cast(B::float_mul(logits_grad, factor), narrow.into())
        });
    }
}

#[derive(Debug)]
struct RootBackward;

impl<B: StepOps> Backward<B, 1> for RootBackward {
    /// The gradient to begin with.
    type State = FloatTensor<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        unary::<B, _>(ops.parents, ops.node, grads, |_one| ops.state);
    }
}
