//! The records of a run as samples in batches, and the tokenizer that makes them.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_peft::data::{
    Batch, Padding, RecordCounts, Records, Sample, Split, TooLong, Treatment, check_vocab,
    load_split, pack, split_validation,
};
use burn_peft::distributed::ProcessGroup;
use burn_peft::llama::{LlamaConfig, TransformerDecoder};
use burn_peft::tokenizer::{ChatTemplate, Tokenizer};
use burn_peft::training::recipe::RecipeConfig;
use burn_peft::training::validation_loss_in;
use burn_peft::{Error, Result};

use crate::embedded;

const WITHOUT_TEMPLATE: &str = "\
the tokenizer has no chat template, so conversations are written in ChatML; the template is saved beside the \
adapter and in the merged model, whose end of a text may have to be set to `<|im_end|>`";

/// The model's own end of a text serves where the tokenizer knows none.
pub fn tokenizer(config: &RecipeConfig, base: &Path, llama: &LlamaConfig) -> Result<Tokenizer> {
    let path = config.tokenizer.as_deref().unwrap_or(base);
    let tokenizer = match path.is_dir() {
        true => Tokenizer::from_dir(path),
        false => Tokenizer::from_file(path),
    }?;
    let known = tokenizer.eos_id();
    let eos = known.or_else(|| llama.eos_token_ids.first().copied());
    Ok(tokenizer.with_special_ids(None, eos))
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

/// The model with the end of a text that it learns among those where it stops.
pub fn ending_as(tokenizer: &Tokenizer, mut llama: LlamaConfig) -> LlamaConfig {
    let known = &llama.eos_token_ids;
    let new = tokenizer.eos_id().filter(|eos| !known.contains(eos));
    llama.eos_token_ids.extend(new);
    llama
}

/// What a run trains on and validates with.
pub struct Data {
    /// The file that is trained on.
    pub source: PathBuf,
    pub samples: Vec<Sample>,
    /// The samples that share a row: one each, unless they are packed.
    pub rows: Vec<Vec<usize>>,
    pub validation: Vec<Batch>,
    /// By which conversations were written, if it is not the tokenizer's own.
    pub template: Option<ChatTemplate>,
    pad_id: u32,
    /// Where the records do not give what the configuration asks for.
    pub notes: Vec<String>,
    /// What became of the records of each data set.
    pub counts: Vec<(PathBuf, RecordCounts)>,
}

impl Data {
    pub fn load(config: &RecipeConfig, llama: &LlamaConfig, tokenizer: &Tokenizer) -> Result<Self> {
        let path = dataset(config)?;
        let context = llama.context_len();
        let asked = config.max_seq_len.unwrap_or(context);
        let longest = asked.min(context);
        let mut notes = Vec::from_iter(beyond_context(asked, context));
        notes.extend(other_end(tokenizer, llama));
        let mut counts = Vec::new();
        let mut reader = Reader {
            config,
            llama,
            tokenizer,
            longest,
            template: None,
            notes: &mut notes,
            counts: &mut counts,
        };
        let all = reader.read(&path, Split::Train)?;
        let (samples, validation) = match &config.validation_dataset {
            Some(path) => (all, reader.read(path, Split::Validation)?),
            None => split(all, config)?,
        };
        let template = reader.other_template();
        notes.extend(unvalidated(config, samples.len(), validation.len()));
        let lengths: Vec<usize> = samples.iter().map(Sample::len).collect();
        let rows = match config.packed {
            true => pack(&lengths, longest),
            false => (0..samples.len()).map(|index| vec![index]).collect(),
        };
        let pad_id = tokenizer.pad_id(llama.vocab_size);
        let validation = validation.chunks(config.batch_size);
        let batch = |samples: &[Sample]| Batch::collate(&Vec::from_iter(samples), pad_id);
        Ok(Self {
            validation: validation.map(batch).collect(),
            source: path,
            samples,
            rows,
            template,
            pad_id,
            notes,
            counts,
        })
    }

    /// None without validation records.
    pub fn validation_loss(
        &self,
        group: &dyn ProcessGroup,
        model: &TransformerDecoder,
    ) -> Result<Option<f64>> {
        match &self.validation[..] {
            [] => Ok(None),
            batches => validation_loss_in(group, model, batches).map(Some),
        }
    }

    /// The tokens of the longest row.
    pub fn longest_row(&self) -> usize {
        let tokens = |row: &Vec<usize>| row.iter().map(|i| self.samples[*i].len()).sum();
        self.rows.iter().map(tokens).max().unwrap_or(0)
    }

    pub fn num_rows(&self) -> usize {
        self.rows.len()
    }

    /// The samples that are held out.
    pub fn num_validation(&self) -> usize {
        let samples = |batch: &Batch| batch.segments.iter().flatten().count();
        self.validation.iter().map(samples).sum()
    }

    /// The samples of the first epoch in its order.
    pub fn first_samples(&self, config: &RecipeConfig) -> impl Iterator<Item = Result<Sample>> {
        let order = config.data_order(self.rows.len(), 1);
        let steps = 0..order.steps_per_epoch();
        let rows = steps.flat_map(move |step| order.step(step).concat());
        rows.flat_map(|row| {
            self.rows[row]
                .iter()
                .map(|index| Ok(self.samples[*index].clone()))
        })
    }

    /// Lets a model see records of the training, in its order and each alone, until it has seen enough tokens
    /// to tell the directions of its layers' inputs.
    pub fn pass_first(
        &self,
        model: &TransformerDecoder,
        config: &RecipeConfig,
        device: &Device,
    ) -> Result<()> {
        const ENOUGH: usize = 4096;
        let mut seen = 0;
        for sample in self.first_samples(config) {
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

    pub fn batch(&self, rows: &[usize]) -> Batch {
        let samples = |row: &usize| self.rows[*row].iter().map(|i| &self.samples[*i]).collect();
        let rows: Vec<Vec<&Sample>> = rows.iter().map(samples).collect();
        let rows: Vec<&[&Sample]> = rows.iter().map(Vec::as_slice).collect();
        Batch::collate_packed(&rows, self.pad_id, Padding::Longest)
    }
}

/// Another model has nothing to learn from the embedded model's records.
fn dataset(config: &RecipeConfig) -> Result<PathBuf> {
    match (&config.dataset, &config.checkpoint_dir) {
        (Some(path), _) => Ok(path.clone()),
        (None, None) => Ok(embedded::train_file()),
        (None, Some(_)) => Err(Error::Config {
            origin: "configuration".into(),
            key: "dataset".into(),
            line: None,
            message: "`dataset` is not set; name a file of records to train on".into(),
            nearest: Vec::new(),
        }),
    }
}

/// Reads the records of a run.
struct Reader<'a> {
    config: &'a RecipeConfig,
    llama: &'a LlamaConfig,
    tokenizer: &'a Tokenizer,
    longest: usize,
    template: Option<ChatTemplate>,
    notes: &'a mut Vec<String>,
    counts: &'a mut Vec<(PathBuf, RecordCounts)>,
}

impl Reader<'_> {
    fn read(&mut self, path: &Path, split: Split) -> Result<Vec<Sample>> {
        let records = load_split(path, split, self.config.dataset_format)?;
        let records = match &self.config.chat_template {
            Some(_) => records.into_conversations(),
            None => records,
        };
        let (samples, counts) = self.samples(&records)?;
        check_vocab(&samples, self.llama.vocab_size)?;
        self.notes
            .extend(told(path, &counts, self.config, self.longest));
        self.counts.push((path.to_owned(), counts));
        match samples.is_empty() {
            false => Ok(samples),
            true => Err(Error::Config {
                origin: "configuration".into(),
                key: "max_seq_len".into(),
                line: None,
                message: self.nothing_left(path),
                nearest: Vec::new(),
            }),
        }
    }

    fn nothing_left(&self, path: &Path) -> String {
        let told = self.counts.last().map(|(_, counts)| {
            let told = told(path, counts, self.config, self.longest);
            told.join("; ")
        });
        format!(
            "no record is left to train on: {}",
            told.unwrap_or_default()
        )
    }

    /// The template by which conversations were written, if it is not the tokenizer's own.
    fn other_template(self) -> Option<ChatTemplate> {
        let is_asked = self.config.chat_template.is_some();
        let template = self
            .template
            .filter(|template| is_asked || template.is_chatml());
        if template.is_some() && !is_asked {
            self.notes.push(WITHOUT_TEMPLATE.into());
        }
        template
    }

    /// A template that cannot be read is no matter where nothing is written by it.
    fn samples(&mut self, records: &Records) -> Result<(Vec<Sample>, RecordCounts)> {
        let encoder = self.config.record_encoder(self.tokenizer, self.longest);
        if records.has_conversations() && self.template.is_none() {
            let template =
                ChatTemplate::choose(self.config.chat_template.as_deref(), self.tokenizer)?;
            self.template = Some(template);
        }
        encoder
            .with_template(self.template.clone())
            .encode_all(records)
    }
}

fn beyond_context(asked: usize, context: usize) -> Option<String> {
    (asked > context).then(|| {
        format!(
            "records are cut to the model's context of {context} tokens; max_seq_len is {asked}"
        )
    })
}

fn unvalidated(config: &RecipeConfig, all: usize, held_out: usize) -> Option<String> {
    let fraction = config.validation_split;
    (held_out == 0 && fraction > 0.0)
        .then(|| format!("nothing is validated: {fraction} of {all} records is less than one"))
}

/// What records may be that is no good, and what became of them.
fn told(path: &Path, counts: &RecordCounts, config: &RecipeConfig, longest: usize) -> Vec<String> {
    let longer = match config.too_long {
        TooLong::Cut => "cut there",
        _ => "left out",
    };
    let became = |treatment| match treatment {
        Treatment::Drop => "left out",
        _ => "used",
    };
    let told = [
        (
            counts.too_long,
            format!("are longer than {longest} tokens: {longer} (too_long)"),
        ),
        (
            counts.prompt_only,
            format!(
                "have no room for an answer within {longest} tokens: {} (prompt_only)",
                became(config.prompt_only)
            ),
        ),
        (
            counts.without_labels,
            format!(
                "have nothing that the loss counts: {} (without_labels)",
                became(config.without_labels)
            ),
        ),
        (
            counts.empty_answers,
            format!(
                "have an answer that says nothing: {} (empty_answers)",
                became(config.empty_answers)
            ),
        ),
        (
            counts.empty_instructions,
            format!(
                "have an instruction that says nothing: {} (empty_instructions)",
                became(config.empty_instructions)
            ),
        ),
    ];
    let told = told.into_iter().filter(|(count, _)| *count > 0);
    told.map(|(count, what)| {
        let read = counts.read;
        format!("{count} of {read} records of {} {what}", path.display())
    })
    .collect()
}

/// Servers that have the adapter alone stop where the base model's configuration says.
fn other_end(tokenizer: &Tokenizer, llama: &LlamaConfig) -> Option<String> {
    let eos = tokenizer.eos_id()?;
    let known = &llama.eos_token_ids;
    (!known.is_empty() && !known.contains(&eos)).then(|| {
        format!(
            "answers end with token {eos}, the tokenizer's end of a text, but the model's configuration \
             names {known:?}; the merged model stops at both, a server of the adapter alone must be told"
        )
    })
}

fn split(samples: Vec<Sample>, config: &RecipeConfig) -> Result<(Vec<Sample>, Vec<Sample>)> {
    let held_out = (samples.len() as f64 * config.validation_split) as usize;
    let (train, validation) = split_validation(samples.len(), held_out, config.seed)?;
    let pick = |indices: Vec<usize>| indices.into_iter().map(|i| samples[i].clone()).collect();
    Ok((pick(train), pick(validation)))
}
