//! What a step trains on: random tokens, a case's or Alpaca records.

use std::path::Path;

use burn_peft::Result;
use burn_peft::checkpoint::SafetensorsFile;
use burn_peft::data::Sample;

/// Samples cut from the one long sequence of tokens of a case.
pub fn case_samples(case: &Path, seq_len: usize) -> Result<Vec<Sample>> {
    let tokens = SafetensorsFile::open(case.join("tokens.safetensors"))?.read_ints("tokens")?;
    let samples = tokens.chunks_exact(seq_len);
    Ok(samples.map(|tokens| sample(tokens, tokens)).collect())
}

/// A case's Alpaca records, cut to `longest` tokens.
pub fn alpaca_samples(case: &Path, longest: Option<usize>) -> Result<Vec<Sample>> {
    let file = SafetensorsFile::open(case.join("alpaca.safetensors"))?;
    let (tokens, labels) = (file.read_ints("tokens")?, file.read_ints("labels")?);
    let lengths = file.read_ints("lengths")?;
    let ranges = lengths.iter().scan(0, |start, length| {
        let (first, len) = (*start, *length as usize);
        *start += len;
        Some(first..first + longest.map_or(len, |longest| len.min(longest)))
    });
    let samples = ranges.map(|range| sample(&tokens[range.clone()], &labels[range]));
    Ok(samples.collect())
}

/// Samples of random tokens.
pub fn random_samples(count: usize, seq_len: usize, vocab_size: usize) -> Vec<Sample> {
    // Knuth's linear congruential generator, whose high bits are random enough for tokens.
    let next = |state: &u64| Some(state.wrapping_mul(6364136223846793005).wrapping_add(1));
    let tokens = std::iter::successors(Some(1), next);
    let tokens = tokens.map(|state: u64| ((state >> 33) % vocab_size as u64) as i64);
    let tokens: Vec<i64> = tokens.take(count * seq_len).collect();
    let samples = tokens.chunks(seq_len);
    samples.map(|tokens| sample(tokens, tokens)).collect()
}

fn sample(tokens: &[i64], labels: &[i64]) -> Sample {
    Sample {
        is_cut: false,
        tokens: tokens.iter().map(|id| *id as u32).collect(),
        labels: labels.iter().map(|label| *label as i32).collect(),
    }
}
