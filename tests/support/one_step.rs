//! The folder of a run that was cut off after its first step.

use burn_peft::data::Batch;
use burn_peft::llama::TransformerDecoder;
use burn_peft::training::RunDir;
use burn_peft::training::recipe::RecipeConfig;

/// Begins a run, takes one step on four tokens, and saves it as a checkpoint.
pub fn save_one_step(recipe: &RecipeConfig, model: TransformerDecoder) -> RunDir {
    let run = RunDir::create(recipe, 1).unwrap();
    let ids = vec![1, 5, 9, 13];
    let batch = Batch {
        labels: ids.clone(),
        input_ids: ids,
        segments: vec![vec![4]],
        batch_size: 1,
        seq_len: 4,
        adapters: None,
    };
    let mut trainer = recipe.trainer(10);
    let (model, _) = trainer.step(model, &[batch]);
    run.save_checkpoint(&model, &recipe.lora(), &trainer)
        .unwrap();
    run
}
