//! The angles of the rotary embedding, and how they are stretched for a longer context.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use super::config::is_above_zero;
use crate::{Error, Result};

/// A rotary embedding: pair i of a head turns by `position · base^(-2i / dim)`, scaled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Rope {
    /// The base of the frequencies.
    pub base: f64,
    /// How they are stretched.
    pub scaling: Option<RopeScaling>,
}

/// A change of the rotary embedding's frequencies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RopeScaling {
    /// All frequencies divided by a factor (position interpolation).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// A base that grows with the sequence, once it is longer than the context (NTK-aware scaling). Keys in a cache keep
    /// the rotation that they got: [`generate`](crate::generate::generate) computes them again.
    Dynamic {
        /// The factor.
        factor: f64,
        /// The context, in tokens.
        original_max_seq_len: usize,
    },
    /// Low frequencies divided by a factor, high ones kept, linearly in between; cos and sin multiplied. Peng et al.,
    /// <https://arxiv.org/abs/2309.00071>.
    Yarn {
        /// The factor of the low frequencies.
        factor: f64,
        /// Pairs that turn more often than this in the original context are kept.
        beta_fast: f64,
        /// Pairs that turn less often are scaled in full.
        beta_slow: f64,
        /// Whether the pairs between which the frequencies change over are rounded outward to whole ones.
        truncate: bool,
        /// What cos and sin are multiplied by.
        attention_factor: f64,
        /// The context that the model was first trained for, in tokens.
        original_max_seq_len: usize,
    },
    /// A factor for each pair: short ones up to the original context, long ones beyond; cos and sin multiplied. Ding et
    /// al., <https://arxiv.org/abs/2402.13753>.
    LongRope {
        /// By what each frequency is divided up to the original context.
        short_factor: Vec<f64>,
        /// And beyond.
        long_factor: Vec<f64>,
        /// What cos and sin are multiplied by.
        attention_factor: f64,
        /// The context that the model was first trained for, in tokens.
        original_max_seq_len: usize,
    },
    /// Low frequencies divided by a factor, high ones kept, smoothly in between (Llama 3.1).
    Llama3 {
        /// The factor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_seq_len / low_freq_factor` are scaled in full.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_seq_len / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context that the model was first trained for, in tokens.
        original_max_seq_len: usize,
    },
}

/// A factor of the rotated queries that grows with the position p, `1 + β ln(1 + floor(p / context))`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct QueryScaling {
    /// β.
    pub beta: f64,
    /// The context that the model was first trained for, in tokens.
    pub original_max_seq_len: usize,
}

impl QueryScaling {
    /// A query scaling.
    pub fn new(beta: f64, original_max_seq_len: usize) -> Self {
        Self {
            beta,
            original_max_seq_len,
        }
    }

    pub(super) fn factor(&self, position: usize) -> f32 {
        let contexts = (position / self.original_max_seq_len) as f64;
        (1.0 + self.beta * contexts.ln_1p()) as f32
    }
}

impl Rope {
    /// A rotary embedding without scaling.
    pub fn new(base: f64) -> Self {
        let scaling = None;
        Self { base, scaling }
    }

    /// The same, scaled.
    pub fn with_scaling(mut self, scaling: Option<RopeScaling>) -> Self {
        self.scaling = scaling;
        self
    }

    /// Checks that it rotates heads of which `rotary_dim` numbers are rotated.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming what cannot be used.
    pub(super) fn validate(&self, rotary_dim: usize) -> Result<()> {
        let invalid = |name, message| Err(Error::InvalidArgument { name, message });
        if !is_above_zero(self.base) {
            let message = format!("must be a number above 0, not {}", self.base);
            return invalid("rope_base", message);
        }
        if let Some(scaling) = &self.scaling
            && let Err(message) = scaling.validate(rotary_dim / 2)
        {
            return invalid("rope_scaling", message);
        }
        // Whatever the numbers are one by one.
        match self
            .frequencies(rotary_dim, 1)
            .iter()
            .all(|f| f.is_finite())
        {
            true => Ok(()),
            false => invalid("rope_scaling", format!("{self:?} gives no angles")),
        }
    }

    /// The angle per position of each pair of `dim` rotated numbers in a sequence of `seq_len` positions, computed in
    /// f32 as the checkpoints' own code does.
    pub(crate) fn frequencies(&self, dim: usize, seq_len: usize) -> Vec<f32> {
        let plain = plain_frequencies(self.base, dim);
        match &self.scaling {
            None => plain,
            Some(scaling) => scaling.scale(self.base, plain, seq_len),
        }
    }

    /// Whether a sequence of `seq_len` positions turns by other angles than one that is shorter by one.
    pub(crate) fn changes_at(&self, seq_len: usize) -> bool {
        match self.scaling {
            Some(RopeScaling::Dynamic {
                original_max_seq_len,
                ..
            }) => seq_len > original_max_seq_len,
            Some(RopeScaling::LongRope {
                original_max_seq_len,
                ..
            }) => seq_len == original_max_seq_len + 1,
            _ => false,
        }
    }

    /// What cos and sin are multiplied by.
    pub(super) fn attention_factor(&self) -> f32 {
        use RopeScaling::{LongRope, Yarn};
        let factor = match self.scaling {
            Some(
                Yarn {
                    attention_factor, ..
                }
                | LongRope {
                    attention_factor, ..
                },
            ) => attention_factor,
            _ => 1.0,
        };
        factor as f32
    }
}

fn plain_frequencies(base: f64, dim: usize) -> Vec<f32> {
    let base = base as f32;
    let powers = (0..dim / 2).map(|i| (2 * i) as f32 / dim as f32);
    powers.map(|power| 1.0 / base.powf(power)).collect()
}

impl RopeScaling {
    /// Llama 3.1's scaling with its own bounds.
    pub fn llama3(factor: f64) -> Self {
        Self::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_seq_len: 8192,
        }
    }

    /// What is wrong with it, in words.
    fn validate(&self, pairs: usize) -> Result<(), String> {
        let mut numbers = self.numbers().into_iter();
        if let Some((name, number)) = numbers.find(|(_, number)| !is_above_zero(*number)) {
            return Err(format!("{name} must be a number above 0, not {number}"));
        }
        if self.context() == Some(0) {
            return Err("the original context must be at least 1".to_owned());
        }
        match self {
            Self::Llama3 {
                low_freq_factor: low,
                high_freq_factor: high,
                ..
            } if low >= high => Err(format!(
                "low_freq_factor {low} must be below high_freq_factor {high}"
            )),
            Self::LongRope {
                short_factor,
                long_factor,
                ..
            } => match [short_factor.len(), long_factor.len()] {
                [short, long] if [short, long] != [pairs; 2] => Err(format!(
                    "longrope needs {pairs} factors of each kind, not {short} and {long}"
                )),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Its numbers by their names in files; all of them are above 0.
    fn numbers(&self) -> Vec<(&'static str, f64)> {
        match self {
            Self::Linear { factor } | Self::Dynamic { factor, .. } => vec![("factor", *factor)],
            Self::Yarn {
                factor,
                beta_fast,
                beta_slow,
                attention_factor,
                ..
            } => vec![
                ("factor", *factor),
                ("beta_fast", *beta_fast),
                ("beta_slow", *beta_slow),
                ("attention_factor", *attention_factor),
            ],
            Self::LongRope {
                short_factor,
                long_factor,
                attention_factor,
                ..
            } => {
                let short = short_factor.iter().map(|number| ("short_factor", *number));
                let long = long_factor.iter().map(|number| ("long_factor", *number));
                let attention = [("attention_factor", *attention_factor)];
                short.chain(long).chain(attention).collect()
            }
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                ..
            } => vec![
                ("factor", *factor),
                ("low_freq_factor", *low_freq_factor),
                ("high_freq_factor", *high_freq_factor),
            ],
        }
    }

    /// The context that it scales from, in tokens.
    fn context(&self) -> Option<usize> {
        match *self {
            Self::Linear { .. } => None,
            Self::Dynamic {
                original_max_seq_len,
                ..
            }
            | Self::Yarn {
                original_max_seq_len,
                ..
            }
            | Self::LongRope {
                original_max_seq_len,
                ..
            }
            | Self::Llama3 {
                original_max_seq_len,
                ..
            } => Some(original_max_seq_len),
        }
    }

    /// The angles per position of all pairs, scaled, in a sequence of `seq_len` positions.
    pub(crate) fn scale(&self, base: f64, plain: Vec<f32>, seq_len: usize) -> Vec<f32> {
        let frequencies = plain.iter().copied();
        match self {
            Self::Linear { factor } => frequencies.map(|f| f / *factor as f32).collect(),
            Self::Dynamic {
                factor,
                original_max_seq_len,
            } => dynamic(
                *factor,
                *original_max_seq_len,
                base,
                2 * plain.len(),
                seq_len,
            ),
            Self::Yarn { factor, .. } => {
                let kept = self.yarn_kept(base, plain.len());
                let mixed = frequencies.zip(kept);
                let mixed = mixed.map(|(f, kept)| f / *factor as f32 * (1.0 - kept) + f * kept);
                mixed.collect()
            }
            Self::LongRope {
                short_factor,
                long_factor,
                original_max_seq_len,
                ..
            } => {
                let is_long = seq_len > *original_max_seq_len;
                let factors = if is_long { long_factor } else { short_factor };
                // The factor first, as the checkpoints' own code has it.
                let powers = (0..plain.len()).map(|i| i as f32 / plain.len() as f32);
                let powers = powers.map(|power| (base as f32).powf(power));
                let scaled = powers.zip(factors);
                scaled
                    .map(|(power, factor)| 1.0 / (*factor as f32 * power))
                    .collect()
            }
            Self::Llama3 { .. } => frequencies.map(|f| self.llama3_scaled(f)).collect(),
        }
    }

    /// A pair's angle per position by Llama 3.1's scaling; unchanged by another.
    pub(crate) fn llama3_scaled(&self, frequency: f32) -> f32 {
        let Self::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_seq_len,
        } = *self
        else {
            return frequency;
        };
        // The weight of the unscaled frequency: 0 for long waves, 1 for short ones.
        let waves = original_max_seq_len as f32 * frequency / (2.0 * PI as f32);
        let (low, high) = (low_freq_factor as f32, high_freq_factor as f32);
        let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 - kept) * frequency / factor as f32 + kept * frequency
    }

    /// How much of each pair's own frequency yarn keeps.
    fn yarn_kept(&self, base: f64, pairs: usize) -> Vec<f32> {
        let Self::Yarn {
            beta_fast,
            beta_slow,
            truncate,
            original_max_seq_len,
            ..
        } = *self
        else {
            return vec![1.0; pairs];
        };
        // The pair that turns so many times in the original context.
        let dim = 2 * pairs;
        let context = original_max_seq_len as f64;
        let pair =
            |turns: f64| dim as f64 * (context / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
        let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min((dim - 1) as f64));
        let high = if low == high { high + 0.001 } else { high };
        let ramp = |i: usize| (i as f32 - low as f32) / (high - low) as f32;
        (0..pairs).map(|i| 1.0 - ramp(i).clamp(0.0, 1.0)).collect()
    }
}

fn dynamic(factor: f64, context: usize, base: f64, dim: usize, seq_len: usize) -> Vec<f32> {
    let contexts = seq_len.max(context) as f64 / context as f64;
    let power = dim as f64 / (dim as f64 - 2.0);
    plain_frequencies(base * (factor * contexts - (factor - 1.0)).powf(power), dim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::LlamaConfig;
    use approx::assert_relative_eq;

    fn frequencies(config: &LlamaConfig) -> Vec<f32> {
        config.rope().frequencies(config.head_dim, 1)
    }

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
        let scaled = plain
            .clone()
            .with_rope_scaling(Some(RopeScaling::Linear { factor: 2.0 }));
        let halves: Vec<f32> = frequencies(&plain).iter().map(|f| f / 2.0).collect();
        assert_eq!(frequencies(&scaled), halves);
    }

    #[test]
    fn queries_grow_by_the_context() {
        let scaling = QueryScaling::new(0.1, 4);
        assert_eq!([0, 3].map(|position| scaling.factor(position)), [1.0; 2]);
        assert_relative_eq!(scaling.factor(4), 1.0 + 0.1 * 2f32.ln());
        assert_relative_eq!(scaling.factor(15), 1.0 + 0.1 * 4f32.ln());
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
