//! Llama 3.1's scaling of the rotary embedding, which a file tells only by what it does to each frequency.

use std::f32::consts::PI;

use crate::gguf::shortest;
use crate::llama::RopeScaling;

/// By how much a factor may differ from the formula's, relatively: both are rounded to f32 several times.
const TOLERANCE: f32 = 1e-5;
/// The bounds that all published models have, in waves within the original length.
const LOW: f32 = 1.0;
const HIGH: f32 = 4.0;
const ORIGINAL_MAX_SEQ_LEN: usize = 8192;

/// The scaling with these factors, by which each frequency is divided; `Some(None)` if they are all 1. None if it is not
/// Llama 3.1's with its own bounds.
pub(super) fn llama3_scaling(
    factors: &[f32],
    head_dim: usize,
    base: f64,
) -> Option<Option<RopeScaling>> {
    if factors.len() != head_dim / 2 {
        return None;
    }
    if factors.iter().all(|factor| *factor == 1.0) {
        return Some(None);
    }
    let factor = factors.iter().copied().fold(1.0, f32::max);
    let frequency = |pair: usize| (base as f32).powf(-((2 * pair) as f32) / head_dim as f32);
    let explains = |scaling: &RopeScaling| {
        (0..).zip(factors).all(|(pair, factor)| {
            let frequency = frequency(pair);
            let expected = frequency / scaling.llama3_scaled(frequency);
            (factor - expected).abs() <= TOLERANCE * expected
        })
    };
    // Where hardly any pair is between the bounds several lengths explain the same factors.
    let usual = [ORIGINAL_MAX_SEQ_LEN]
        .into_iter()
        .chain((5..20).map(|bits| 1 << bits));
    let between = (0..)
        .zip(factors)
        .filter(|(_, f)| **f > 1.0 && **f < factor);
    let found = between.map(|(pair, f)| original_length(*f, factor, frequency(pair)));
    let scaling = |length: usize| RopeScaling::Llama3 {
        factor: shortest(factor),
        low_freq_factor: LOW.into(),
        high_freq_factor: HIGH.into(),
        original_max_seq_len: length,
    };
    usual.chain(found).map(scaling).find(explains).map(Some)
}

/// By what a scaling divides the frequency of each pair.
pub(super) fn factors_of(scaling: &RopeScaling, head_dim: usize, base: f64) -> Vec<f32> {
    let factor = |pair: usize| {
        let frequency = (base as f32).powf(-((2 * pair) as f32) / head_dim as f32);
        frequency / scaling.llama3_scaled(frequency)
    };
    (0..head_dim / 2).map(factor).collect()
}

/// The length for which a pair between the bounds has this factor: the inverse of the formula in [`RopeScaling`].
fn original_length(of_pair: f32, factor: f32, frequency: f32) -> usize {
    let kept = (1.0 / of_pair - 1.0 / factor) / (1.0 - 1.0 / factor);
    let waves = LOW + kept * (HIGH - LOW);
    (waves * 2.0 * PI / frequency).round() as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::LlamaConfig;

    /// The factors as llama.cpp's converter computes them, from wavelengths.
    fn factors(head_dim: usize, base: f64, factor: f64, length: f64) -> Vec<f32> {
        let of_pair = |pair: usize| {
            let frequency = base.powf(-((2 * pair) as f64) / head_dim as f64);
            let wavelength = 2.0 * std::f64::consts::PI / frequency;
            let smooth = (length / wavelength - 1.0) / 3.0;
            match wavelength {
                short if short < length / 4.0 => 1.0,
                long if long > length => factor as f32,
                _ => (1.0 / ((1.0 - smooth) / factor + smooth)) as f32,
            }
        };
        (0..head_dim / 2).map(of_pair).collect()
    }

    #[test]
    fn the_scaling_of_known_models_is_found() {
        for config in [
            LlamaConfig::llama3_1_8b(),
            LlamaConfig::llama3_2_1b(),
            LlamaConfig::llama3_2_3b(),
        ] {
            let Some(RopeScaling::Llama3 { factor, .. }) = config.rope_scaling.clone() else {
                panic!("{config:?}");
            };
            let (head_dim, base) = (config.head_dim, config.rope_base);
            let factors = factors(head_dim, base, factor, 8192.0);
            let found = llama3_scaling(&factors, head_dim, base);
            assert_eq!(found, Some(config.rope_scaling.clone()));
            let written = factors_of(&config.rope_scaling.unwrap(), head_dim, base);
            for (own, converters) in written.iter().zip(&factors) {
                assert!((own - converters).abs() <= 1e-5 * converters);
            }
        }
    }

    #[test]
    fn lengths_and_factors_of_other_models() {
        for (length, factor) in [
            (64, 8.0),
            (4096, 2.5),
            (1000, 16.0),
            (5000, 8.3),
            (131_072, 4.0),
        ] {
            let expected = RopeScaling::Llama3 {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_seq_len: length,
            };
            let factors = factors(128, 5e5, factor, length as f64);
            assert_eq!(llama3_scaling(&factors, 128, 5e5), Some(Some(expected)));
        }
    }

    #[test]
    fn other_factors_are_no_such_scaling() {
        let known = factors(64, 5e5, 8.0, 8192.0);
        assert_eq!(llama3_scaling(&[1.0; 32], 64, 5e5), Some(None));
        for (place, value) in [
            (0, 0.5),
            (3, f32::NAN),
            (31, f32::INFINITY),
            (20, 0.0),
            (31, 16.0),
        ] {
            let mut other = known.clone();
            other[place] = value;
            assert_eq!(llama3_scaling(&other, 64, 5e5), None, "{place}: {value}");
        }
        assert_eq!(llama3_scaling(&known[1..], 64, 5e5), None);
        assert_eq!(llama3_scaling(&known, 64, 1e4), None, "of another base");
    }
}
