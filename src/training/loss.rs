use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor};

use crate::data::Batch;
use crate::llama::TransformerDecoder;

/// The sum of the cross entropies `-log softmax(logits)[target]` over all rows, in f32.
///
/// # Shapes
/// - `logits`: `[rows, classes]`
/// - `targets`: `[rows]`
/// - output: `[1]`
pub fn cross_entropy_sum(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let [rows, _] = logits.dims();
    let log_probs = log_softmax(logits.cast(DType::F32), 1);
    log_probs.gather(1, targets.reshape([rows, 1])).sum().neg()
}

/// The sum of a batch's next-token losses; none if no token of the batch has a label.
///
/// Only positions whose next token has a label are projected to the vocabulary.
///
/// # Shapes
/// - output: `[1]`
pub fn lm_loss_sum(model: &TransformerDecoder, batch: &Batch) -> Option<Tensor<1>> {
    let (rows, targets) = batch.predictions();
    if rows.is_empty() {
        return None;
    }
    let device = model.norm.weight.lazy_device();
    let hidden = model.forward_hidden(batch.input_tensor(&device), batch.attention_mask(&device));
    let [batch_size, seq, dim] = hidden.dims();
    let rows = Tensor::<1, Int>::from_ints(&rows[..], &device);
    let targets = Tensor::<1, Int>::from_ints(&targets[..], &device);
    let predicting = hidden.reshape([batch_size * seq, dim]).select(0, rows);
    let normed = model.norm.forward(predicting.unsqueeze());
    let logits = model.project(normed).squeeze_dim(0);
    Some(cross_entropy_sum(logits, targets))
}
