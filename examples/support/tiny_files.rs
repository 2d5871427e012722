//! The files made from [`tiny_world`](super::tiny_world): corpus, records and tokenizer.

use std::error::Error;
use std::path::Path;

use serde_json::json;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, TokenizerBuilder};

use super::tiny_world::{
    DOCUMENTS, Record, SEED, documents, held_out_records, train_records, unstated,
};

/// The size of the tokenizer's vocabulary.
const VOCAB_SIZE: usize = 1024;

/// How many documents the tokenizer is trained on; each fact is told several times in them.
const TOKENIZER_DOCUMENTS: usize = 4000;

/// The words around an instruction. They stand in no document, and so that they do not fall to
/// single bytes the tokenizer sees them as often as there are training records.
const PROMPT_WORDS: &str = "Below is an instruction that describes a task, paired with an input \
     that provides further context. Write a response that appropriately completes the request.\n\n\
     ### Instruction:\n\n### Input:\n\n### Response:\n";

/// Writes `corpus.txt` (documents with a line `</s>` after each), `alpaca_train.json`,
/// `alpaca_heldout.json` and `tokenizer.json` into `folder`.
///
/// # Errors
/// If a file cannot be written, or if the documents do not state the fact of a held-out record.
pub fn write(folder: &Path) -> Result<(), Box<dyn Error>> {
    let documents: Vec<String> = documents(SEED).take(DOCUMENTS).collect();
    let (train, held_out) = (train_records(SEED), held_out_records(SEED));
    let sample = &documents[..TOKENIZER_DOCUMENTS];
    if let [record, ..] = unstated(&held_out, sample)[..] {
        return Err(format!("no document states the fact of {record:?}").into());
    }

    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("corpus.txt"), corpus_text(&documents))?;
    std::fs::write(folder.join("alpaca_train.json"), alpaca_json(&train))?;
    std::fs::write(folder.join("alpaca_heldout.json"), alpaca_json(&held_out))?;
    let tokenizer = tokenizer_json(sample, &train).map_err(|error| error.to_string())?;
    std::fs::write(folder.join("tokenizer.json"), tokenizer)?;
    Ok(())
}

fn corpus_text(documents: &[String]) -> String {
    documents
        .iter()
        .map(|text| format!("{text}\n</s>\n"))
        .collect()
}

/// A JSON array with a record a line.
fn alpaca_json(records: &[Record]) -> String {
    let lines: Vec<String> = records
        .iter()
        .map(|record| {
            let Record {
                instruction,
                input,
                output,
                ..
            } = record;
            json!({"instruction": instruction, "input": input, "output": output}).to_string()
        })
        .collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}

/// Byte-level BPE, so that decoding gives back any text exactly.
fn tokenizer_json(documents: &[String], records: &[Record]) -> tokenizers::Result<String> {
    let special = ["<unk>", "<s>", "</s>"].map(|token| AddedToken::from(token.to_owned(), true));
    let bytes = ByteLevel::default().add_prefix_space(false);
    let mut trainer = BpeTrainer::builder()
        .vocab_size(VOCAB_SIZE)
        .special_tokens(special.to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::builder().unk_token("<unk>".to_owned()).build()?)
        .with_normalizer(None::<NormalizerWrapper>)
        .with_pre_tokenizer(Some(bytes))
        .with_post_processor(Some(begin_of_text()?))
        .with_decoder(Some(ByteLevelDecoder::default()))
        .build()?;

    let prompts = records.iter().flat_map(|record| {
        [
            PROMPT_WORDS,
            &record.instruction,
            &record.input,
            &record.output,
        ]
    });
    let texts: Vec<&str> = documents
        .iter()
        .map(String::as_str)
        .chain(prompts)
        .collect();
    tokenizer.train(&mut trainer, texts.into_iter())?;
    let mut json = tokenizer.to_string(true)?;
    json.push('\n');
    Ok(json)
}

/// `<s>` before the text where special tokens are asked for, as Llama's own tokenizer does.
fn begin_of_text() -> tokenizers::Result<TemplateProcessing> {
    Ok(TemplateProcessing::builder()
        .try_single("<s> $A")?
        .try_pair("<s> $A <s>:1 $B:1")?
        .special_tokens(vec![("<s>", 1)])
        .build()?)
}
