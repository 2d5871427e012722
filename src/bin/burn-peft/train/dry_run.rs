//! What a run would do, before it does anything.

use std::io::IsTerminal;

use burn_peft::Result;
use burn_peft::data::{RecordCounts, Sample, SftData};
use burn_peft::tokenizer::Tokenizer;
use burn_peft::training::recipe::RecipeConfig;

/// How many records are shown.
const SHOWN: usize = 3;

pub fn print_configuration(config: &RecipeConfig) {
    say!("Configuration:\n{}", config.to_yaml());
}

pub fn print_counts(data: &SftData, config: &RecipeConfig) {
    for (path, counts) in &data.counts {
        say!("Records of {}:\n{}", path.display(), table(counts));
    }
    let (steps, epochs) = (data.order.steps_per_epoch(), config.epochs);
    say!(
        "{} rows are trained on, {} are for validation; {steps} steps an epoch, {} steps in all\n",
        data.num_rows(),
        data.num_validation(),
        steps * epochs,
    );
}

fn table(counts: &RecordCounts) -> String {
    let rows = counts.named();
    rows.map(|(what, count)| format!("  {what:<24}{count:>10}\n"))
        .concat()
}

/// The first records of the training, tokens that the loss counts in green, or in brackets where there are no colours.
pub fn print_examples(data: &SftData, tokenizer: &Tokenizer) -> Result<()> {
    let paint = Paint::of_terminal();
    say!(
        "The first records of the training; {} is what the loss counts:",
        paint.counted("so")
    );
    for (number, sample) in (1..).zip(data.first_samples().take(SHOWN)) {
        let sample = sample?;
        let (tokens, labels) = (sample.len(), sample.num_label_tokens());
        say!("\n{number}: {tokens} tokens, the loss counts {labels}");
        say!("{}", text(&sample, tokenizer, &paint)?);
        say!("ids: {}", ids(&sample, &paint));
    }
    Ok(())
}

fn text(sample: &Sample, tokenizer: &Tokenizer, paint: &Paint) -> Result<String> {
    let spans = sample.spans().into_iter();
    let shown = spans.map(|(span, is_counted)| {
        let text = tokenizer.show(&sample.tokens[span])?;
        Ok(paint.span(&text, is_counted))
    });
    Ok(shown.collect::<Result<Vec<_>>>()?.concat())
}

fn ids(sample: &Sample, paint: &Paint) -> String {
    let spans = sample.spans().into_iter();
    let shown = spans.map(|(span, is_counted)| {
        let ids: Vec<String> = sample.tokens[span].iter().map(u32::to_string).collect();
        paint.span(&ids.join(" "), is_counted)
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// How parts of a text are told apart.
struct Paint {
    has_colours: bool,
}

impl Paint {
    /// With colours, unless the output is a file, the terminal has none or the user wants none.
    fn of_terminal() -> Self {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            has_colours: std::io::stdout().is_terminal() && !is_dumb && !is_set("NO_COLOR"),
        }
    }

    fn span(&self, text: &str, is_counted: bool) -> String {
        match is_counted {
            true => self.counted(text),
            false => text.to_owned(),
        }
    }

    fn counted(&self, text: &str) -> String {
        match self.has_colours {
            true => format!("\u{1b}[32m{text}\u{1b}[0m"),
            false => format!("[[{text}]]"),
        }
    }
}
