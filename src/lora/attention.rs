//! Burn's attention, on layers that can hold adapters.

use burn::module::Module;
use burn::nn;
use burn::nn::attention::MhaOutput;
use burn::tensor::activation::{quiet_softmax, softmax};
use burn::tensor::{Bool, Tensor};

use super::{LoRALinear, Routes};

/// The attention of [`burn::nn::attention::MultiHeadAttention`], whose four layers are [`LoRALinear`]s: a trained one of
/// Burn's becomes one of these by `from`, weights, biases and Burn's adapters included, and gives the same outputs.
///
/// State-dict keys are `query.weight`, `query.bias`, and likewise `key`, `value` and `output`. Each head computes
/// `softmax(q kᵀ / sqrt(d)) v`. Vaswani et al., *Attention Is All You Need*, <https://arxiv.org/abs/1706.03762>.
///
/// ```
/// use burn::nn::attention::MultiHeadAttentionConfig;
/// use burn::tensor::{Device, Tensor};
/// use burn_peft::adapter::with_adapters;
/// use burn_peft::lora::{AttentionInput, LoRAConfig, MultiHeadAttention};
///
/// # fn main() -> burn_peft::Result<()> {
/// let device = Device::default().autodiff();
/// let theirs = MultiHeadAttentionConfig::new(16, 4).init(&device);
/// let attention = with_adapters(MultiHeadAttention::from(theirs), &LoRAConfig::new(["query", "value"]))?;
///
/// let x = Tensor::zeros([2, 5, 16], &device);
/// assert_eq!(attention.forward(AttentionInput::self_attn(x)).context.dims(), [2, 5, 16]);
/// # Ok(())
/// # }
/// ```
#[derive(Module, Debug)]
pub struct MultiHeadAttention {
    /// `[d_model, d_model]`, what the heads ask with.
    pub query: LoRALinear,
    /// `[d_model, d_model]`, what the heads are asked by.
    pub key: LoRALinear,
    /// `[d_model, d_model]`, what the heads answer.
    pub value: LoRALinear,
    /// `[d_model, d_model]`, which joins the heads.
    pub output: LoRALinear,
    /// Dropout of the attention weights, in training.
    pub dropout: nn::Dropout,
    /// The number of heads.
    pub n_heads: usize,
    /// The score that a masked key gets.
    pub min_float: f64,
    /// Whether the softmax has one added to its denominator, so that a head may attend to nothing:
    /// <https://www.evanmiller.org/attention-is-off-by-one.html>.
    pub quiet_softmax: bool,
}

/// What [`MultiHeadAttention`] is given. Burn's [`MhaInput`](burn::nn::attention::MhaInput) shows its tensors to no
/// other crate.
#[derive(Debug, Clone)]
pub struct AttentionInput {
    /// `[batch, seq, d_model]`.
    pub query: Tensor<3>,
    /// `[batch, keys, d_model]`.
    pub key: Tensor<3>,
    /// `[batch, keys, d_model]`.
    pub value: Tensor<3>,
    /// `[batch, keys]`, true where a key is padding.
    pub mask_pad: Option<Tensor<2, Bool>>,
    /// `[batch or 1, seq, keys]`, true where a query must not see a key.
    pub mask_attn: Option<Tensor<3, Bool>>,
}

impl AttentionInput {
    /// For attention to another sequence, without masks.
    pub fn new(query: Tensor<3>, key: Tensor<3>, value: Tensor<3>) -> Self {
        Self {
            query,
            key,
            value,
            mask_pad: None,
            mask_attn: None,
        }
    }

    /// For attention of a sequence to itself, without masks.
    pub fn self_attn(x: Tensor<3>) -> Self {
        Self::new(x.clone(), x.clone(), x)
    }

    /// With a mask of the keys, `[batch, keys]`, true where a key is padding.
    pub fn mask_pad(mut self, mask: Tensor<2, Bool>) -> Self {
        self.mask_pad = Some(mask);
        self
    }

    /// With a mask of each query's keys, `[batch or 1, seq, keys]`, true where a query must not see a key.
    pub fn mask_attn(mut self, mask: Tensor<3, Bool>) -> Self {
        self.mask_attn = Some(mask);
        self
    }
}

impl From<nn::attention::MultiHeadAttention> for MultiHeadAttention {
    /// Takes over the four layers and the settings; weights are viewed transposed, nothing is copied.
    fn from(theirs: nn::attention::MultiHeadAttention) -> Self {
        Self {
            query: theirs.query.into(),
            key: theirs.key.into(),
            value: theirs.value.into(),
            output: theirs.output.into(),
            dropout: theirs.dropout,
            n_heads: theirs.n_heads,
            min_float: theirs.min_float,
            quiet_softmax: theirs.quiet_softmax,
        }
    }
}

impl MultiHeadAttention {
    /// Applies the attention.
    ///
    /// # Shapes
    /// - `context`: `[batch, seq, d_model]`
    /// - `weights`: `[batch, n_heads, seq, keys]`, after dropout
    ///
    /// # Panics
    /// If the shapes do not fit each other, or `d_model` is no multiple of the number of heads.
    pub fn forward(&self, input: AttentionInput) -> MhaOutput {
        self.forward_routed(input, None)
    }

    /// Applies the attention with the adapter that each row of the batch asks for; without routes, as
    /// [`Self::forward`].
    ///
    /// # Panics
    /// As [`Self::forward`], and if the batch has another number of rows than `routes`.
    pub fn forward_routed(&self, input: AttentionInput, routes: Option<&Routes>) -> MhaOutput {
        let query = self.heads(self.query.forward_routed(input.query, routes));
        let key = self.heads(self.key.forward_routed(input.key, routes));
        let value = self.heads(self.value.forward_routed(input.value, routes));
        let [batch, n_heads, seq, head_dim] = query.dims();
        let keys = [batch, n_heads, key.dims()[2], head_dim];
        assert_eq!(key.dims(), keys, "the keys do not fit the queries");
        assert_eq!(value.dims(), keys, "the values do not fit the keys");

        let scores = query.matmul(key.transpose()) / (head_dim as f64).sqrt();
        let weights = self.weights(scores, input.mask_pad, input.mask_attn);
        let context = weights.clone().matmul(value).swap_dims(1, 2);
        let context = context.reshape([batch, seq, n_heads * head_dim]);
        let context = self.output.forward_routed(context, routes);
        MhaOutput { weights, context }
    }

    /// `[batch, seq, d_model]` as `[batch, n_heads, seq, head_dim]`.
    fn heads(&self, x: Tensor<3>) -> Tensor<4> {
        let [batch, seq, d_model] = x.dims();
        let head_dim = d_model / self.n_heads;
        x.reshape([batch, seq, self.n_heads, head_dim])
            .swap_dims(1, 2)
    }

    fn weights(
        &self,
        scores: Tensor<4>,
        mask_pad: Option<Tensor<2, Bool>>,
        mask_attn: Option<Tensor<3, Bool>>,
    ) -> Tensor<4> {
        let masks = [
            mask_pad.map(|mask| mask.unsqueeze_dims(&[1, 2])),
            mask_attn.map(|mask| mask.unsqueeze_dim(1)),
        ];
        let scores = masks.into_iter().flatten().fold(scores, |scores, mask| {
            scores.mask_fill(mask, self.min_float)
        });
        let weights = match self.quiet_softmax {
            true => quiet_softmax(scores, 3),
            false => softmax(scores, 3),
        };
        self.dropout.forward(weights)
    }
}
