//! What a model is asked before and after its training.

use burn_peft::Result;
use burn_peft::data::{AlpacaRecord, Batch, IGNORE_INDEX, SftData, load_alpaca};
use burn_peft::generate::{GenerateOptions, answer};
use burn_peft::llama::TransformerDecoder;
use burn_peft::report::Answer;
use burn_peft::tokenizer::Tokenizer;
use burn_peft::training::ExactMatch;
use burn_peft::training::recipe::RecipeConfig;

use crate::say::tell;

/// The most tokens of an answer to a record of the user's.
const MAX_TOKENS: usize = 64;
/// No answer of the embedded model's held-out records is longer.
const MAX_HELD_OUT_TOKENS: usize = 24;

/// Of the embedded default, its held-out questions, which have right answers; else beginnings of records to go on with.
pub struct Quiz {
    records: Vec<AlpacaRecord>,
    beginnings: Vec<Beginning>,
    base: Vec<String>,
}

/// The beginning of a record: its prompt, or half of one that is to be learned as a whole.
struct Beginning {
    ids: Vec<u32>,
    rest: Vec<u32>,
}

impl Quiz {
    pub fn before(
        config: &RecipeConfig,
        model: &TransformerDecoder,
        tokenizer: &Tokenizer,
        data: &SftData,
    ) -> Result<Self> {
        let is_embedded = config.checkpoint_dir.is_none() && config.dataset.is_none();
        let (records, beginnings) = match crate::EMBEDDED.filter(|_| is_embedded) {
            Some(embedded) => (load_alpaca(embedded.held_out)?, Vec::new()),
            None => (Vec::new(), beginnings(data, config.report_samples, model)?),
        };
        let mut quiz = Self {
            records,
            beginnings,
            base: Vec::new(),
        };
        let count = quiz.records.len() + quiz.beginnings.len();
        if count > 0 {
            tell(&format!(
                "{count} questions are asked before the training, and again after it"
            ));
        }
        quiz.base = quiz.ask(&model.clone().without_adapters(), tokenizer)?;
        Ok(quiz)
    }

    /// A model's own answers, chosen greedily.
    fn ask(&self, model: &TransformerDecoder, tokenizer: &Tokenizer) -> Result<Vec<String>> {
        let options = GenerateOptions::greedy(MAX_HELD_OUT_TOKENS);
        let records = self.records.iter();
        let records = records.map(|record| answer(model, tokenizer, record, &options));
        let options = GenerateOptions::greedy(MAX_TOKENS);
        let beginnings = self.beginnings.iter();
        let beginnings =
            beginnings.map(|begun| answer(model, tokenizer, begun.ids.clone(), &options));
        records.chain(beginnings).collect()
    }

    /// Prints some answers to questions and returns the fractions of exact ones, before and after, with what the report
    /// shows.
    pub fn after(
        &self,
        model: &TransformerDecoder,
        tokenizer: &Tokenizer,
    ) -> Result<(Option<ExactMatch>, Vec<Answer>)> {
        let finetuned = self.ask(model, tokenizer)?;
        if self.records.is_empty() {
            return Ok((None, self.continuations(&finetuned, tokenizer)?));
        }
        let shown = self.shown(&finetuned);
        say!("\nQuestions that were not trained on:");
        for answer in &shown {
            say!("  {}", answer.prompt);
            say!("    base:      {:?}", answer.base);
            let right = answer.expected.as_deref().unwrap_or_default();
            say!("    finetuned: {:?} (right: {right:?})", answer.finetuned);
        }
        let base = exact_match(&self.base, &self.records);
        let finetuned = exact_match(&finetuned, &self.records);
        let (before, after, count) = (base * 100.0, finetuned * 100.0, self.records.len());
        say!("exactly right of {count}: base {before:.0} %, finetuned {after:.0} %\n");
        let exact = ExactMatch {
            exact_match_base: base,
            exact_match_finetuned: finetuned,
        };
        Ok((Some(exact), shown))
    }

    /// Some of the questions.
    fn shown(&self, finetuned: &[String]) -> Vec<Answer> {
        let answers = self.base.iter().zip(finetuned);
        let shown = self.records.iter().zip(answers);
        let shown = shown.step_by(self.records.len().div_ceil(6));
        shown
            .map(|(record, (base, finetuned))| Answer {
                prompt: format!("{} {}", record.instruction, record.input.replace('\n', " ")),
                base: base.clone(),
                finetuned: finetuned.clone(),
                expected: Some(record.output.clone()),
            })
            .collect()
    }

    fn continuations(&self, finetuned: &[String], tokenizer: &Tokenizer) -> Result<Vec<Answer>> {
        let answers = self.base.iter().zip(finetuned);
        let begun = self.beginnings.iter().zip(answers);
        begun
            .map(|(begun, (base, finetuned))| {
                Ok(Answer {
                    prompt: tokenizer.decode(&begun.ids)?,
                    base: base.clone(),
                    finetuned: finetuned.clone(),
                    expected: Some(tokenizer.decode_continuation(&begun.rest)?),
                })
            })
            .collect()
    }
}

/// The fraction of answers that are exactly the records' outputs.
fn exact_match(answers: &[String], records: &[AlpacaRecord]) -> f64 {
    let pairs = answers.iter().zip(records);
    let exact = pairs.filter(|(answer, record)| **answer == record.output);
    exact.count() as f64 / records.len() as f64
}

/// Of the first validation records, or else of the first ones that are trained on.
fn beginnings(data: &SftData, count: usize, model: &TransformerDecoder) -> Result<Vec<Beginning>> {
    let context = model.config.context_len();
    let of = |record: &Batch| Beginning::of(record, context.saturating_sub(MAX_TOKENS));
    let validation = data.validation.iter().flat_map(Batch::records);
    let records: Vec<Batch> = validation.take(count).collect();
    if !records.is_empty() {
        return Ok(records.iter().map(of).collect());
    }
    let rows: Vec<usize> = (0..count.min(data.num_rows())).collect();
    let batch = match rows.is_empty() {
        true => None,
        false => Some(data.batch(&rows)?),
    };
    let records = batch.iter().flat_map(Batch::records).take(count);
    Ok(records.map(|record| of(&record)).collect())
}

impl Beginning {
    /// At most so many tokens of a record.
    fn of(record: &Batch, longest: usize) -> Self {
        let ids: Vec<u32> = record.input_ids.iter().map(|id| *id as u32).collect();
        let first = record
            .labels
            .iter()
            .position(|label| *label != IGNORE_INDEX);
        let end = match first {
            // The first token may be predicted by nothing.
            None | Some(0..=1) => ids.len().div_ceil(2),
            Some(first) => first,
        };
        let end = end.min(longest.max(1));
        Self {
            rest: ids[end..].to_vec(),
            ids: ids[..end].to_vec(),
        }
    }
}
