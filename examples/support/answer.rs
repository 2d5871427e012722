//! A model's answer to an instruction, asked as it was in training.

use burn_peft::Result;
use burn_peft::data::AlpacaRecord;
use burn_peft::generate::{GenerateOptions, generate};
use burn_peft::llama::TransformerDecoder;
use burn_peft::tokenizer::Tokenizer;

/// The text that follows the record's prompt, up to the end of a sequence.
pub fn answer(
    model: &TransformerDecoder,
    tokenizer: &Tokenizer,
    record: &AlpacaRecord,
    options: &GenerateOptions,
) -> Result<String> {
    let prompt = tokenizer.encode_with_bos(&record.prompt())?;
    go_on(model, tokenizer, &prompt, options)
}

/// The text that follows a prompt.
pub fn go_on(
    model: &TransformerDecoder,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Result<String> {
    let ends = tokenizer.eos_id().into_iter();
    let ends = ends.chain(model.config.eos_token_ids.iter().copied());
    let options = options.clone().with_stop_tokens(ends);
    tokenizer.decode_continuation(&generate(model, prompt, &options)?)
}
