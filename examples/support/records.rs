//! The records of a run as samples in batches, and the tokenizer that makes them.

use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_peft::data::{
    Batch, DataOrder, Dataset, Padding, RecordCounts, RecordEncoder, Sample, SampleStore, Split,
    Subset, TooLong, Treatment, check_vocab, pack, split_validation, weighted_indices,
    weighted_paths,
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
    pub samples: Subset<SampleStore>,
    /// The samples that share a row; none where each has its own.
    packed: Option<Vec<Vec<usize>>>,
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
        let pad_id = tokenizer.pad_id(llama.vocab_size);
        let mut notes = Vec::from_iter(beyond_context(asked, context));
        notes.extend(other_end(tokenizer, llama));
        let mut reader = Reader::new(config, llama, tokenizer, longest);
        let (all, parts) = reader.read_parts(&path)?;
        let held_out = (all.len() as f64 * config.validation_split) as usize;
        let (train, held_out) = split_validation(all.len(), held_out, config.seed)?;
        let validation = match &config.validation_dataset {
            Some(path) => {
                let samples = reader.read(path, Split::Validation)?;
                batches(&samples, &Vec::from_iter(0..samples.len()), config, pad_id)?
            }
            None => batches(&all, &held_out, config, pad_id)?,
        };
        let weighted = parts.into_iter().map(|(range, weight)| {
            let (start, end) = (range.start, range.end);
            let from = train.partition_point(|index| *index < start);
            let to = train.partition_point(|index| *index < end);
            weighted_indices(&train[from..to], weight, config.seed)
        });
        let samples = Subset::new(all, weighted.flatten().collect());
        notes.extend(unvalidated(config, samples.len(), validation.len()));
        notes.append(&mut reader.notes);
        Ok(Self {
            validation,
            source: path,
            packed: packed(&samples, config, longest)?,
            samples,
            pad_id,
            template: reader.other_template(&mut notes),
            notes,
            counts: reader.counts,
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

    pub fn num_rows(&self) -> usize {
        let packed = self.packed.as_ref().map(Vec::len);
        packed.unwrap_or(self.samples.len())
    }

    /// The samples of a row.
    fn row(&self, row: usize) -> Vec<usize> {
        match &self.packed {
            Some(rows) => rows[row].clone(),
            None => vec![row],
        }
    }

    /// The tokens of the longest row.
    pub fn longest_row(&self) -> Result<usize> {
        let tokens = |row| {
            let lengths = self.row(row).into_iter();
            lengths.map(|index| self.samples.sample_len(index)).sum()
        };
        let rows = 0..self.num_rows();
        rows.map(tokens)
            .try_fold(0, |longest, row: Result<usize>| Ok(longest.max(row?)))
    }

    /// The samples that are held out.
    pub fn num_validation(&self) -> usize {
        let samples = |batch: &Batch| batch.segments.iter().flatten().count();
        self.validation.iter().map(samples).sum()
    }

    /// Which rows each step takes.
    pub fn order(&self, config: &RecipeConfig, num_processes: usize) -> Result<DataOrder> {
        let order = config.data_order(self.num_rows(), num_processes);
        let lengths = (0..self.samples.len()).map(|index| {
            let length = self.samples.sample_len(index)?;
            Ok(u32::try_from(length).unwrap_or(u32::MAX))
        });
        Ok(match config.group_by_length {
            true => order.with_lengths(Some(lengths.collect::<Result<_>>()?)),
            false => order,
        })
    }

    /// The samples of the first epoch of an order.
    pub fn first_samples(&self, order: DataOrder) -> impl Iterator<Item = Result<Sample>> {
        let steps = 0..order.steps_per_epoch();
        let rows = steps.flat_map(move |step| order.step(step).concat());
        rows.flat_map(|row| self.row(row))
            .map(|index| self.samples.sample(index))
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
        for sample in self.first_samples(self.order(config, 1)?) {
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

    pub fn batch(&self, rows: &[usize]) -> Result<Batch> {
        let samples = |row: &usize| {
            let samples = self.row(*row).into_iter();
            samples.map(|index| self.samples.sample(index)).collect()
        };
        let rows: Vec<Vec<Sample>> = rows.iter().map(samples).collect::<Result<_>>()?;
        let rows: Vec<Vec<&Sample>> = rows.iter().map(Vec::from_iter).collect();
        let rows: Vec<&[&Sample]> = rows.iter().map(Vec::as_slice).collect();
        Ok(Batch::collate_packed(&rows, self.pad_id, Padding::Longest))
    }
}

/// Samples in batches, in their order.
fn batches(
    samples: &dyn Dataset,
    indices: &[usize],
    config: &RecipeConfig,
    pad_id: u32,
) -> Result<Vec<Batch>> {
    let batches = indices.chunks(config.batch_size);
    batches
        .map(|indices| Batch::of_dataset(samples, indices, pad_id))
        .collect()
}

/// The samples that share a row, if they do.
fn packed(
    samples: &dyn Dataset,
    config: &RecipeConfig,
    longest: usize,
) -> Result<Option<Vec<Vec<usize>>>> {
    if !config.packed {
        return Ok(None);
    }
    let lengths = (0..samples.len()).map(|index| samples.sample_len(index));
    Ok(Some(pack(&lengths.collect::<Result<Vec<_>>>()?, longest)))
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

/// Which samples are those of each file, and its weight.
type WeightedParts = Vec<(Range<usize>, f64)>;

/// Reads the records of a run.
struct Reader<'a> {
    config: &'a RecipeConfig,
    llama: &'a LlamaConfig,
    encoder: RecordEncoder<'a>,
    longest: usize,
    tokenizer: &'a Tokenizer,
    /// None where it cannot be read, which is no matter if nothing is written by it.
    template: Option<ChatTemplate>,
    notes: Vec<String>,
    counts: Vec<(PathBuf, RecordCounts)>,
}

impl<'a> Reader<'a> {
    fn new(
        config: &'a RecipeConfig,
        llama: &'a LlamaConfig,
        tokenizer: &'a Tokenizer,
        longest: usize,
    ) -> Self {
        let asked = config.chat_template.as_deref();
        let template = ChatTemplate::choose(asked, tokenizer).ok();
        let encoder = config
            .record_encoder(tokenizer, longest)
            .with_template(template.clone());
        Self {
            config,
            llama,
            tokenizer,
            encoder,
            longest,
            template,
            notes: Vec::new(),
            counts: Vec::new(),
        }
    }

    /// The records of a data set of several files.
    fn read_parts(&mut self, path: &Path) -> Result<(SampleStore, WeightedParts)> {
        let mut samples = SampleStore::new(&self.config.output_dir);
        let mut parts = Vec::new();
        for (path, weight) in weighted_paths(path)? {
            let start = samples.len();
            self.append(&path, Split::Train, &mut samples)?;
            parts.push((start..samples.len(), weight));
        }
        self.require_some(&samples)?;
        Ok((samples, parts))
    }

    fn read(&mut self, path: &Path, split: Split) -> Result<SampleStore> {
        let mut samples = SampleStore::new(&self.config.output_dir);
        self.append(path, split, &mut samples)?;
        self.require_some(&samples)?;
        Ok(samples)
    }

    fn append(&mut self, path: &Path, split: Split, samples: &mut SampleStore) -> Result<()> {
        let format = self.config.dataset_format;
        let counts = match self.encoder.encode_files(path, split, format, samples) {
            Err(
                error @ Error::InvalidArgument {
                    name: "template", ..
                },
            ) => {
                // Why there is none.
                let asked = self.config.chat_template.as_deref();
                let why = ChatTemplate::choose(asked, self.tokenizer).err();
                return Err(why.unwrap_or(error));
            }
            counts => counts?,
        };
        let told = told(path, &counts, self.config, self.longest);
        self.notes.extend(told);
        self.counts.push((path.to_owned(), counts));
        Ok(())
    }

    fn require_some(&self, samples: &SampleStore) -> Result<()> {
        match samples.is_empty() {
            true => Err(Error::Config {
                origin: "configuration".into(),
                key: "max_seq_len".into(),
                line: None,
                message: format!("no record is left to train on: {}", self.notes.join("; ")),
                nearest: Vec::new(),
            }),
            false => check_vocab(samples, self.llama.vocab_size),
        }
    }

    /// The template by which conversations were written, if it is not the tokenizer's own.
    fn other_template(&self, notes: &mut Vec<String>) -> Option<ChatTemplate> {
        let is_asked = self.config.chat_template.is_some();
        let mut counts = self.counts.iter();
        let is_used = counts.any(|(_, counts)| counts.conversations > 0);
        let template = self.template.as_ref().filter(|_| is_used);
        let template = template.filter(|template| is_asked || template.is_chatml());
        if template.is_some() && !is_asked {
            notes.push(WITHOUT_TEMPLATE.into());
        }
        template.cloned()
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
