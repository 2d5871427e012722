use serde::{Deserialize, Serialize};

use crate::ops::{Activation, Scores};
use crate::settings::setters;

/// Where the norms of a layer stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NormPlacement {
    /// Before attention and feed-forward block: `x + f(norm(x))`.
    #[default]
    Before,
    /// After them: `x + norm(f(x))`.
    After,
    /// Before and after: `x + norm(f(norm(x)))`.
    Both,
}

impl NormPlacement {
    pub(crate) fn is_before(self) -> bool {
        self != Self::After
    }

    pub(crate) fn is_after(self) -> bool {
        self != Self::Before
    }
}

/// Over what queries and keys are normalised, before they are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum QkNorm {
    /// Each head by itself, all with one weight `[head_dim]`.
    Head,
    /// All heads of a token together, with a weight `[heads · head_dim]`.
    Width,
}

/// The switches of a decoder layer beside its biases. The default is Llama's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Block {
    /// Where the norms stand.
    #[serde(default)]
    pub norms: NormPlacement,
    /// Whether norms multiply by `1 + w` in place of w.
    #[serde(default)]
    pub unit_offset: bool,
    /// The norm of queries and keys.
    #[serde(default)]
    pub qk_norm: Option<QkNorm>,
    /// Whether queries, keys and values are the rows of one projection, and gate and up those of another.
    #[serde(default)]
    pub joint_projections: bool,
    /// What the gate of the feed-forward block goes through.
    #[serde(default)]
    pub activation: Activation,
    /// What the products of queries and keys are multiplied by; `1 / sqrt(head_dim)` if it is not given.
    #[serde(default)]
    pub score_scale: Option<f64>,
    /// The soft cap c of the scores s, `c · tanh(s / c)`.
    #[serde(default)]
    pub score_cap: Option<f64>,
    /// What the outputs of attention and feed-forward block are multiplied by before they are added.
    #[serde(default)]
    pub residual_scale: Option<f64>,
}

impl Block {
    setters! {
        with_norms => norms: NormPlacement,
        with_unit_offset => unit_offset: bool,
        with_qk_norm => qk_norm: Option<QkNorm>,
        with_joint_projections => joint_projections: bool,
        with_activation => activation: Activation,
        with_score_scale => score_scale: Option<f64>,
        with_score_cap => score_cap: Option<f64>,
        with_residual_scale => residual_scale: Option<f64>,
    }

    /// How scores follow from the products of queries and keys.
    pub(super) fn scores(&self, head_dim: usize) -> Scores {
        let mut scores = Scores::of_head(head_dim);
        scores.scale = self.score_scale.unwrap_or(scores.scale);
        scores.cap = self.score_cap;
        scores
    }
}
