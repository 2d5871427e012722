//! What the embedded model is asked before and after its training.

use burn_peft::Result;
use burn_peft::data::AlpacaRecord;
use burn_peft::generate::GenerateOptions;
use burn_peft::llama::TransformerDecoder;
use burn_peft::tokenizer::Tokenizer;
use burn_peft::training::ExactMatch;
use burn_peft::training::recipe::RecipeConfig;

use crate::answer::answer;
use crate::embedded;

/// The held-out questions of the embedded default, asked before and after training.
pub struct Quiz {
    records: Vec<AlpacaRecord>,
    base: Vec<String>,
}

impl Quiz {
    pub fn before(
        config: &RecipeConfig,
        model: &TransformerDecoder,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        let is_embedded = config.checkpoint_dir.is_none() && config.dataset.is_none();
        let records = if is_embedded {
            embedded::held_out()?
        } else {
            Vec::new()
        };
        let base_model = model.clone().without_adapters();
        let base = answers(&base_model, tokenizer, &records)?;
        Ok(Self { records, base })
    }

    /// Prints some answers and returns the fractions of exact ones, before and after.
    pub fn after(
        &self,
        model: &TransformerDecoder,
        tokenizer: &Tokenizer,
    ) -> Result<Option<ExactMatch>> {
        if self.records.is_empty() {
            return Ok(None);
        }
        let finetuned = answers(model, tokenizer, &self.records)?;
        println!("\nQuestions that were not trained on:");
        let answers = self.base.iter().zip(&finetuned);
        let shown = self.records.iter().zip(answers);
        for (record, (base, finetuned)) in shown.step_by(self.records.len().div_ceil(6)) {
            println!(
                "  {} {}",
                record.instruction,
                record.input.replace('\n', " ")
            );
            println!("    base:      {:?}", base);
            println!(
                "    finetuned: {:?} (right: {:?})",
                finetuned, record.output
            );
        }
        let base = embedded::exact_match(&self.base, &self.records);
        let finetuned = embedded::exact_match(&finetuned, &self.records);
        let (before, after, count) = (base * 100.0, finetuned * 100.0, self.records.len());
        println!("exactly right of {count}: base {before:.0} %, finetuned {after:.0} %\n");
        Ok(Some(ExactMatch {
            exact_match_base: base,
            exact_match_finetuned: finetuned,
        }))
    }
}

/// A model's own answer to each record, chosen greedily.
fn answers(
    model: &TransformerDecoder,
    tokenizer: &Tokenizer,
    records: &[AlpacaRecord],
) -> Result<Vec<String>> {
    let options = GenerateOptions::greedy(embedded::MAX_ANSWER_TOKENS);
    let records = records.iter();
    records
        .map(|record| answer(model, tokenizer, record, &options))
        .collect()
}
