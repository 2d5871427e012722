//! How good a model is, and with an adapter how good its base is beside it.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use burn_peft::data::{
    Format, RecordCounts, RecordEncoder, Records, Sample, Split, Treatment, load_split,
};
use burn_peft::evaluate::{ChoiceRecord, Evaluator, Question, load_choices};
use burn_peft::generate::GenerateOptions;
use burn_peft::llama::TransformerDecoder;
use burn_peft::tokenizer::{ChatTemplate, Tokenizer};
use burn_peft::{Error, Result};
use serde_json::{Value, json};

use crate::exit::complain;
use crate::model::{ModelArgs, word};
use crate::template::chat_template;

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
    /// Records of any kind that can be trained on, for the perplexity of their answers.
    #[arg(long)]
    records: Option<PathBuf>,
    /// The form of the records, as the recipe's dataset_format; auto is what their keys say.
    #[arg(long, value_parser = word::<Format>, default_value = "auto")]
    dataset_format: Format,
    /// Let the model answer the records too: of conversations, what the assistant says last.
    #[arg(long)]
    exact_match: bool,
    /// The training's chat_template: a file, or chatml, by which Alpaca's records are conversations too. Without it those
    /// that are conversations take one that lies beside the adapter, else the tokenizer's own, else ChatML.
    #[arg(long)]
    chat_template: Option<String>,
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

impl Args {
    fn names_nothing(&self) -> bool {
        self.text.is_none() && self.choices.is_none() && self.records.is_none()
    }
}

/// What is asked of each model.
struct Tasks {
    text: Option<String>,
    choices: Vec<ChoiceRecord>,
    samples: Vec<Sample>,
    questions: Vec<Question>,
    /// By which the questions are asked that are conversations.
    template: Option<ChatTemplate>,
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
    let text = match args.json {
        true => Value::from_iter(results).to_string(),
        false => table(&results),
    };
    writeln!(stdout(), "{text}").map_err(|source| Error::Io {
        path: "standard output".into(),
        source,
    })
}

fn tasks(args: &Args, tokenizer: &Tokenizer) -> Result<Tasks> {
    let records = records(args)?;
    if args.exact_match && records.is_empty() {
        return Err(Error::InvalidArgument {
            name: "exact-match",
            message: "it takes questions: give --records too".into(),
        });
    }
    let encoder = record_encoder(args, &records, tokenizer)?;
    let (samples, counts) = encoder.encode_all(&records)?;
    note_incomplete(&samples, &counts, args.max_seq_len);
    let questions = match args.exact_match || args.names_nothing() {
        true => questions(&encoder, &records)?,
        false => Vec::new(),
    };
    let choices = args.choices.as_ref().map(load_choices).transpose()?;
    Ok(Tasks {
        text: args.text.as_deref().map(read).transpose()?,
        choices: choices.unwrap_or_default(),
        samples,
        questions,
        template: encoder.template,
    })
}

/// Those that are asked for; where nothing is, those that lie beside the embedded model.
fn records(args: &Args) -> Result<Records> {
    let held_out = args.model.base()?.join("alpaca_heldout.json");
    let path = match &args.records {
        Some(path) => path,
        None if !args.names_nothing() => return Ok(Records::default()),
        None if held_out.exists() => &held_out,
        None => {
            let message = "give something to evaluate on: --text, --choices or --records".into();
            let name = "arguments";
            return Err(Error::InvalidArgument { name, message });
        }
    };
    load_split(path, Split::Validation, args.dataset_format)
}

fn note_incomplete(samples: &[Sample], counts: &RecordCounts, max_seq_len: usize) {
    let (cut, all) = (counts.cut, samples.len());
    if cut > 0 {
        complain(format_args!(
            "note: {cut} of {all} records are cut to {max_seq_len} tokens; --max-seq-len takes more"
        ));
    }
    let is_unanswered = |sample: &&Sample| sample.num_label_tokens() == 0;
    let unanswered = samples.iter().filter(is_unanswered).count();
    if unanswered > 0 {
        complain(format_args!(
            "note: {unanswered} of {all} records have no answer and do not count in the perplexity"
        ));
    }
}

/// Makes samples of all records, whatever they say.
fn record_encoder<'a>(
    args: &Args,
    records: &Records,
    tokenizer: &'a Tokenizer,
) -> Result<RecordEncoder<'a>> {
    let (asked, adapter) = (args.chat_template.as_deref(), args.model.adapter.as_deref());
    let needs_template = asked.is_some() || records.has_conversations();
    let template = needs_template.then(|| chat_template(asked, adapter, tokenizer));
    let encoder = RecordEncoder::new(tokenizer)
        .with_template(template.transpose()?)
        .with_as_conversations(asked.is_some())
        .with_max_seq_len(Some(args.max_seq_len))
        .with_prompt_only(Treatment::Keep)
        .with_without_labels(Treatment::Keep)
        .with_empty_instructions(Treatment::Keep);
    Ok(encoder)
}

fn questions(encoder: &RecordEncoder, records: &Records) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for record in records.as_slice() {
        let asked = encoder.question(record)?;
        questions.extend(asked.map(|(prompt, answer)| Question::new(prompt, answer)));
    }
    match (questions.len(), records.len()) {
        (0, _) => {
            let message = "none of the records asks for an answer".into();
            let name = "exact-match";
            return Err(Error::InvalidArgument { name, message });
        }
        (asked, all) if asked < all => {
            complain(format_args!(
                "note: {asked} of {all} records ask for an answer"
            ));
        }
        _ => {}
    }
    Ok(questions)
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
    if !tasks.samples.is_empty() {
        scores["answer perplexity"] = evaluator.sample_perplexity(&tasks.samples)?.into();
    }
    if !tasks.questions.is_empty() {
        let mut options = GenerateOptions::greedy(args.max_new_tokens);
        if let Some(template) = &tasks.template {
            options = options.with_end_of_turn(template, tokenizer, &model.config);
        }
        let matches = evaluator.exact_match(&tasks.questions, &options)?;
        scores["exact match"] = matches.share().into();
    }
    Ok(scores)
}

/// A line for each score, a column for each model.
fn table(results: &[(&str, Value)]) -> String {
    let header = results.iter().map(|(name, _)| format!("{name:>12}"));
    let header = format!("{:20}{}", "", header.collect::<String>());
    let scores = results[0].1.as_object().into_iter();
    let names = scores.flat_map(|scores| scores.keys());
    let lines = names.map(|name| {
        let cells = results
            .iter()
            .map(|(_, scores)| match scores[name].as_f64() {
                Some(score) => format!("{score:>12.4}"),
                None => String::new(),
            });
        format!("\n{name:20}{}", cells.collect::<String>())
    });
    header + &lines.collect::<String>()
}
