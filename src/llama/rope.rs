use std::f32::consts::PI;

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::mask::segment_starts;
use super::{LlamaConfig, RopeScaling};
use crate::ops::rotary;

/// Rotary position embedding in the half-split layout: element i of a head is rotated together with
/// element i + head_dim / 2, by the angle `position · base^(-2i / head_dim)`. Su et al.,
/// <https://arxiv.org/abs/2104.09864>; the layout is that of Hugging Face's checkpoints.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    /// cos and sin of the angles, `[batch or 1, seq, 1, head_dim / 2]`.
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl RotaryEmbedding {
    /// The rotations for the positions `start .. start + seq_len`.
    ///
    /// # Panics
    /// If `seq_len` is 0.
    pub fn new(config: &LlamaConfig, start: usize, seq_len: usize, device: &Device) -> Self {
        Self::at_positions(config, start..start + seq_len, seq_len, device)
    }

    /// The rotations for rows of `seq_len` tokens in which several samples follow each other: the
    /// positions begin anew with each. `segments` are the samples' lengths, row by row.
    ///
    /// # Panics
    /// If `seq_len` is 0, or the samples of a row are longer than it together.
    pub fn within_segments(
        config: &LlamaConfig,
        segments: &[Vec<usize>],
        seq_len: usize,
        device: &Device,
    ) -> Self {
        let starts = segment_starts(segments, seq_len).into_iter().enumerate();
        let positions = starts.map(|(index, start)| index % seq_len - start);
        Self::at_positions(config, positions, seq_len, device)
    }

    /// The rotations for rows of `seq_len` positions each.
    fn at_positions(
        config: &LlamaConfig,
        positions: impl Iterator<Item = usize>,
        seq_len: usize,
        device: &Device,
    ) -> Self {
        let frequencies = frequencies(config);
        let angles =
            positions.flat_map(|position| frequencies.iter().map(move |f| position as f32 * f));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.cos(), a.sin())).unzip();
        let row = seq_len * frequencies.len();
        let shape = [cos.len() / row, seq_len, 1, frequencies.len()];
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
}

/// The angle per position of each pair, computed in f32 as the checkpoints' own code does.
fn frequencies(config: &LlamaConfig) -> Vec<f32> {
    let head_dim = config.head_dim;
    let base = config.rope_base as f32;
    let plain = (0..head_dim / 2).map(|i| 1.0 / base.powf((2 * i) as f32 / head_dim as f32));
    match &config.rope_scaling {
        None => plain.collect(),
        Some(scaling) => plain.map(|f| scaling.scale(f)).collect(),
    }
}

impl RopeScaling {
    /// A pair's angle per position, scaled.
    pub(crate) fn scale(&self, frequency: f32) -> f32 {
        match *self {
            Self::Linear { factor } => frequency / factor as f32,
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_seq_len,
            } => {
                // The weight of the unscaled frequency: 0 for long waves, 1 for short ones.
                let waves = original_max_seq_len as f32 * frequency / (2.0 * PI);
                let (low, high) = (low_freq_factor as f32, high_freq_factor as f32);
                let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - kept) * frequency / factor as f32 + kept * frequency
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    /// `transformers` 5.23, `ROPE_INIT_FUNCTIONS["llama3"]` for Llama 3.2 1B.
    #[test]
    fn llama3_frequencies_equal_transformers() {
        let frequencies = frequencies(&LlamaConfig::llama3_2_1b());
        for (index, expected) in LLAMA3_2_1B {
            assert_relative_eq!(frequencies[index], expected, max_relative = 1e-5);
        }
    }

    #[test]
    fn linear_scaling_divides_the_angles() {
        let plain = LlamaConfig::llama2_7b();
        let scaled = LlamaConfig {
            rope_scaling: Some(RopeScaling::Linear { factor: 2.0 }),
            ..plain.clone()
        };
        let halves: Vec<f32> = frequencies(&plain).iter().map(|f| f / 2.0).collect();
        assert_eq!(frequencies(&scaled), halves);
    }

    const LLAMA3_2_1B: [(usize, f32); 6] = [
        (0, 1.0),
        (8, 0.03760603),
        (15, 0.001290548),
        (17, 9.708286e-5),
        (24, 1.6619674e-6),
        (31, 9.418306e-8),
    ];
}
