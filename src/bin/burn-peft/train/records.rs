//! The records of a run, and what is to be said of them.

use std::path::PathBuf;

use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_peft::Result;
use burn_peft::data::{Batch, SftData};
use burn_peft::llama::{LlamaConfig, TransformerDecoder};
use burn_peft::tokenizer::{ChatTemplate, Tokenizer};
use burn_peft::training::recipe::RecipeConfig;

use super::unset;

const WITHOUT_TEMPLATE: &str = "\
the tokenizer has no chat template, so conversations are written in ChatML; the template is saved beside the \
adapter and in the merged model";

/// What a run trains on and validates with.
pub fn load(
    config: &RecipeConfig,
    llama: &LlamaConfig,
    tokenizer: &Tokenizer,
) -> Result<(PathBuf, SftData)> {
    let path = dataset(config)?;
    let asked = config.chat_template.as_deref();
    let template = asked.map(|asked| ChatTemplate::choose(Some(asked), tokenizer));
    let longest = config.max_seq_len.unwrap_or(llama.context_len());
    let encoder = config
        .record_encoder(tokenizer, longest)
        .with_template(template.transpose()?);
    let mut data = SftData::load(&path, encoder, &config.sft_options(llama))?;
    data.notes.extend(other_ends(&data.ends, llama));
    if data.template.is_some() && asked.is_none() {
        data.notes.push(WITHOUT_TEMPLATE.into());
    }
    Ok((path, data))
}

/// Another model has nothing to learn from the embedded model's records.
fn dataset(config: &RecipeConfig) -> Result<PathBuf> {
    let embedded = crate::EMBEDDED.filter(|_| config.checkpoint_dir.is_none());
    let of_program = embedded.map(|embedded| embedded.records.into());
    let path = config.dataset.clone().or(of_program);
    path.ok_or_else(|| unset("dataset", "name a file of records to train on"))
}

/// Servers that have the adapter alone stop where the base model's configuration says.
fn other_ends(learned: &[u32], llama: &LlamaConfig) -> Option<String> {
    let known = &llama.eos_token_ids;
    let is_other = learned.iter().any(|end| !known.contains(end));
    (!known.is_empty() && is_other).then(|| {
        format!(
            "answers end with the tokens {learned:?}, but the model's configuration names {known:?}; the merged model \
             stops at all of them, a server of the adapter alone must be told"
        )
    })
}

/// The end of a record's text, by which it is found in a file: what comes first is often the same in all.
pub fn name_of(record: &Batch, tokenizer: &Tokenizer) -> Result<String> {
    const SHOWN: usize = 160;
    let ids: Vec<u32> = record.input_ids.iter().map(|id| *id as u32).collect();
    let text = tokenizer.decode(&ids)?;
    let start = text.char_indices().rev().nth(SHOWN - 1);
    Ok(match start {
        Some((start, _)) if start > 0 => format!("the record that ends in {:?}", &text[start..]),
        _ => format!("the record {text:?}"),
    })
}

/// Lets a model see records of the training, in its order and each alone, until it has seen enough tokens
/// to tell the directions of its layers' inputs.
pub fn pass_first(data: &SftData, model: &TransformerDecoder, device: &Device) -> Result<()> {
    const ENOUGH: usize = 4096;
    let mut seen = 0;
    for sample in data.first_samples() {
        let sample = sample?;
        let ids = TensorData::new(sample.tokens.clone(), [1, sample.len()]);
        model.forward(Tensor::<2, Int>::from_data(ids, device), None);
        seen += sample.len();
        if seen >= ENOUGH {
            break;
        }
    }
    Ok(())
}
