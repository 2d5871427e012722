use burn::tensor::{DType, Device, Tensor, TensorData};

use super::Rope;
use crate::ops::{normed_rotary, rotary};

/// Rotary position embedding in the half-split layout: element i of a head is rotated together with
/// element i + rotary_dim / 2, by the angle `position · base^(-2i / rotary_dim)`; numbers of a head after `rotary_dim`
/// stay. Su et al., <https://arxiv.org/abs/2104.09864>; the layout is that of Hugging Face's checkpoints.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    /// cos and sin of the angles, `[batch or 1, seq, 1, rotary_dim / 2]`.
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl RotaryEmbedding {
    /// The rotations of rows of `seq_len` positions each, row by row, for heads of which `rotary_dim` numbers are
    /// rotated.
    ///
    /// # Panics
    /// If `seq_len` is 0, or the positions are no whole number of rows.
    pub fn new(
        rope: &Rope,
        rotary_dim: usize,
        positions: &[usize],
        seq_len: usize,
        device: &Device,
    ) -> Self {
        assert!(
            positions.len().is_multiple_of(seq_len) && !positions.is_empty(),
            "the positions are no whole number of rows"
        );
        let longest = positions.iter().max().map_or(0, |last| last + 1);
        let lengths = vec![longest; positions.len() / seq_len];
        Self::of_lengths(rope, rotary_dim, positions, &lengths, device)
    }

    /// The same for rows each of which turns by the angles of a text of its own length.
    pub(super) fn of_lengths(
        rope: &Rope,
        rotary_dim: usize,
        positions: &[usize],
        lengths: &[usize],
        device: &Device,
    ) -> Self {
        let factor = rope.attention_factor();
        let seq_len = positions.len() / lengths.len();
        let mut last = lengths[0];
        let mut frequencies = rope.frequencies(rotary_dim, last);
        let mut angles = Vec::with_capacity(positions.len() * frequencies.len());
        for (row, length) in positions.chunks(seq_len).zip(lengths) {
            if *length != last {
                frequencies = rope.frequencies(rotary_dim, *length);
                last = *length;
            }
            let of_position = |position: &usize| {
                let position = *position as f32;
                frequencies.iter().map(move |f| position * f)
            };
            angles.extend(row.iter().flat_map(of_position));
        }
        let angles = angles.into_iter();
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            angles.map(|a| (a.cos() * factor, a.sin() * factor)).unzip();
        let shape = [lengths.len(), seq_len, 1, frequencies.len()];
        let tensor =
            |values| Tensor::from_data(TensorData::new(values, shape), (device, DType::F32));
        Self {
            cos: tensor(cos),
            sin: tensor(sin),
        }
    }

    /// Rotates queries or keys.
    ///
    /// # Shapes
    /// - `x`: `[batch, seq, heads, head_dim]`, output the same
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        rotary(x, self.cos.clone(), self.sin.clone())
    }

    /// Rotates what a norm with this weight makes of queries or keys, see [`normed_rotary`].
    pub(super) fn apply_normed(&self, x: Tensor<4>, weight: Tensor<1>, eps: f64) -> Tensor<4> {
        normed_rotary(x, weight, eps, self.cos.clone(), self.sin.clone())
    }
}
