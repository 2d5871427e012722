use super::gradients::lm_loss_sum;
use crate::data::Batch;
use crate::llama::TransformerDecoder;

/// The records of some batches whose loss alone is no finite number, each as a batch of its own. All of them if it is
/// one for each: then only their gradients, or what they make together, are too large.
///
/// # Panics
/// If a token's id is not below the model's `vocab_size`.
pub fn nonfinite_records(model: &TransformerDecoder, batches: &[Batch]) -> Vec<Batch> {
    let all: Vec<Batch> = batches.iter().flat_map(Batch::records).collect();
    let is_finite = |record: &&Batch| {
        let loss = lm_loss_sum(model, record);
        loss.is_none_or(f64::is_finite)
    };
    let (finite, broken): (Vec<&Batch>, Vec<&Batch>) = all.iter().partition(is_finite);
    match broken.is_empty() {
        true => finite.into_iter().cloned().collect(),
        false => broken.into_iter().cloned().collect(),
    }
}
