//! How good a model is, and with an adapter how good its base is beside it.

use std::path::{Path, PathBuf};

use burn_peft::data::{AlpacaRecord, Sample, load_alpaca, tokenize_records};
use burn_peft::evaluate::{ChoiceRecord, Evaluator, Question, load_choices};
use burn_peft::generate::{GenerateOptions, Prompt};
use burn_peft::llama::TransformerDecoder;
use burn_peft::tokenizer::Tokenizer;
use burn_peft::{Error, Result};
use serde_json::{Value, json};

use crate::model::ModelArgs;

/// Evaluate a model, and with an adapter its base beside it, by the definitions of the lm-evaluation-harness.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A text file, for its perplexity.
    #[arg(long)]
    text: Option<PathBuf>,
    /// JSON lines with a `context`, its `choices` and the `answer`, by index or text.
    #[arg(long)]
    choices: Option<PathBuf>,
    /// Records in Alpaca's format, JSON or JSON lines, for the perplexity of their answers after Alpaca's prompt.
    #[arg(long)]
    records: Option<PathBuf>,
    /// Let the model answer the records too.
    #[arg(long)]
    exact_match: bool,
    /// Only so many tokens of a record count.
    #[arg(long, default_value_t = 512)]
    max_seq_len: usize,
    /// The most tokens of an answer.
    #[arg(long, default_value_t = 64)]
    max_new_tokens: usize,
    /// Rows at a time.
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    /// Print JSON, with the logarithm of each choice's probability.
    #[arg(long)]
    json: bool,
}

/// What is asked of each model.
struct Tasks {
    text: Option<String>,
    choices: Vec<ChoiceRecord>,
    records: Vec<AlpacaRecord>,
    samples: Vec<Sample>,
    questions: Vec<Question>,
}

pub fn run(args: &Args) -> Result<()> {
    let tokenizer = args.model.tokenizer()?;
    let tasks = tasks(args, &tokenizer)?;
    let model = args.model.load()?;
    let mut models = Vec::new();
    if args.model.adapter.is_some() {
        models.push(("base", model.clone().without_adapters()));
        models.push(("finetuned", model));
    } else {
        models.push(("model", model));
    }
    let mut results = Vec::new();
    for (name, model) in &models {
        results.push((*name, scores(args, &tasks, model, &tokenizer)?));
    }
    match args.json {
        true => println!("{}", Value::from_iter(results)),
        false => print_table(&results),
    }
    Ok(())
}

fn tasks(args: &Args, tokenizer: &Tokenizer) -> Result<Tasks> {
    let is_embedded = args.text.is_none() && args.choices.is_none() && args.records.is_none();
    let held_out = args.model.base()?.join("alpaca_heldout.json");
    let records = match (&args.records, is_embedded && held_out.exists()) {
        (Some(path), _) => load_alpaca(path)?,
        (None, true) => load_alpaca(held_out)?,
        (None, false) if is_embedded => {
            let message = "give something to evaluate on: --text, --choices or --records".into();
            return Err(Error::InvalidArgument {
                name: "arguments",
                message,
            });
        }
        (None, false) => Vec::new(),
    };
    if args.exact_match && records.is_empty() {
        return Err(Error::InvalidArgument {
            name: "exact-match",
            message: "it takes questions: give --records too".into(),
        });
    }
    let samples = tokenize_records(&records, tokenizer, false, Some(args.max_seq_len))?;
    let without_answer = samples
        .iter()
        .filter(|sample| sample.num_label_tokens() == 0);
    match without_answer.count() {
        0 => {}
        count => eprintln!(
            "note: {count} of {} records have no answer within {} tokens and do not count in the perplexity; \
             --max-seq-len takes more",
            samples.len(),
            args.max_seq_len
        ),
    }
    let question = |record: &AlpacaRecord| {
        let prompt = Prompt::from(record).encode(tokenizer)?;
        Ok(Question::new(prompt, &record.output))
    };
    let questions = match args.exact_match || is_embedded {
        true => records.iter().map(question).collect::<Result<_>>()?,
        false => Vec::new(),
    };
    Ok(Tasks {
        text: args.text.as_deref().map(read).transpose()?,
        choices: args
            .choices
            .as_ref()
            .map(load_choices)
            .transpose()?
            .unwrap_or_default(),
        records,
        samples,
        questions,
    })
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })
}

/// The scores of a model, by name.
fn scores(
    args: &Args,
    tasks: &Tasks,
    model: &TransformerDecoder,
    tokenizer: &Tokenizer,
) -> Result<Value> {
    let evaluator = Evaluator::new(model, tokenizer).with_batch_size(args.batch_size);
    let mut scores = json!({});
    if let Some(text) = &tasks.text {
        let perplexity = evaluator.perplexity(text)?;
        scores["text log-likelihood"] = perplexity.log_prob.into();
        scores["token perplexity"] = perplexity.by_token().into();
        scores["word perplexity"] = perplexity.by_word().into();
        scores["byte perplexity"] = perplexity.by_byte().into();
        scores["bits per byte"] = perplexity.bits_per_byte().into();
    }
    if !tasks.choices.is_empty() {
        let found = evaluator.multiple_choice(&tasks.choices)?;
        for (name, share) in [("acc", found.acc()), ("acc_norm", found.acc_norm())] {
            scores[name] = share.into();
            scores[format!("{name} stderr")] = found.stderr(share).into();
        }
        if args.json {
            let log_probs = found.choices.iter().map(|choice| choice.log_probs.clone());
            scores["choices"] = log_probs.collect::<Vec<_>>().into();
        }
    }
    if !tasks.records.is_empty() {
        scores["answer perplexity"] = evaluator.sample_perplexity(&tasks.samples)?.into();
    }
    if !tasks.questions.is_empty() {
        let options = GenerateOptions::greedy(args.max_new_tokens);
        let matches = evaluator.exact_match(&tasks.questions, &options)?;
        scores["exact match"] = matches.share().into();
    }
    Ok(scores)
}

/// A line for each score, a column for each model.
fn print_table(results: &[(&str, Value)]) {
    let header = results.iter().map(|(name, _)| format!("{name:>12}"));
    println!("{:20}{}", "", header.collect::<String>());
    let names = results[0]
        .1
        .as_object()
        .into_iter()
        .flat_map(|scores| scores.keys());
    for name in names {
        let cells = results
            .iter()
            .map(|(_, scores)| match scores[name].as_f64() {
                Some(score) => format!("{score:>12.4}"),
                None => String::new(),
            });
        println!("{name:20}{}", cells.collect::<String>());
    }
}
