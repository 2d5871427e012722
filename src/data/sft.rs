//! From files of records to the batches of a training's steps.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::records::files;
use super::{
    Batch, DataOrder, Dataset, Format, Padding, RecordCounts, RecordEncoder, Sample, SampleStore,
    Split, Subset, TooLong, Treatment, check_vocab, pack, split_validation, weighted_indices,
    weighted_paths,
};
use crate::settings::setters;
use crate::tokenizer::ChatTemplate;
use crate::{Error, Result};

/// Which records a training takes for what, and how many at a time.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SftOptions {
    /// The most tokens that the model takes; longer records are cut there, whatever the encoder's `max_seq_len` says.
    pub context_len: usize,
    /// The number of tokens that the model knows.
    pub vocab_size: usize,
    /// The form of the records.
    pub format: Format,
    /// The records to validate with.
    pub validation: Option<PathBuf>,
    /// The fraction of the records that is held out for validation, if there is no such file.
    pub validation_split: f64,
    /// The rows of a micro-batch.
    pub batch_size: usize,
    /// The micro-batches of a step that each process makes.
    pub accumulation_steps: usize,
    /// Where to cut an epoch short.
    pub max_steps_per_epoch: Option<usize>,
    /// Whether each epoch has an order of its own.
    pub shuffle: bool,
    /// The seed of the orders and of what is held out.
    pub seed: u64,
    /// Whether several records share a row, without seeing each other.
    pub packed: bool,
    /// Whether a micro-batch holds records of about the same length.
    pub group_by_length: bool,
    /// Where samples go that are too many for memory: a temporary file of a [`SampleStore`].
    pub folder: PathBuf,
}

impl SftOptions {
    /// Records of any format, one in a row and two rows a step, in an order of their own in each epoch; nothing is validated.
    /// The sizes are those of the model, such as
    /// [`LlamaConfig::context_len`](crate::llama::LlamaConfig::context_len) and `vocab_size`.
    pub fn new(context_len: usize, vocab_size: usize) -> Self {
        Self {
            context_len,
            vocab_size,
            format: Format::Auto,
            validation: None,
            validation_split: 0.0,
            batch_size: 2,
            accumulation_steps: 1,
            max_steps_per_epoch: None,
            shuffle: true,
            seed: 0,
            packed: false,
            group_by_length: false,
            folder: std::env::temp_dir(),
        }
    }

    setters! {
        with_format => format: Format,
        with_validation => validation: Option<PathBuf>,
        with_validation_split => validation_split: f64,
        with_batch_size => batch_size: usize,
        with_accumulation_steps => accumulation_steps: usize,
        with_max_steps_per_epoch => max_steps_per_epoch: Option<usize>,
        with_shuffle => shuffle: bool,
        with_seed => seed: u64,
        with_packed => packed: bool,
        with_group_by_length => group_by_length: bool,
        with_folder => folder: PathBuf,
    }

    fn order(&self, num_rows: usize, lengths: Option<Vec<u32>>) -> DataOrder {
        DataOrder::new(num_rows, self.batch_size)
            .with_accumulation_steps(self.accumulation_steps)
            .with_max_steps_per_epoch(self.max_steps_per_epoch)
            .with_shuffle(self.shuffle)
            .with_seed(self.seed)
            .with_lengths(lengths.map(Into::into))
    }
}

/// What a supervised finetuning trains on and validates with: files of records as samples, in rows, in the order of the
/// steps.
///
/// ```
/// use burn_peft::checkpoint::{load_tokenizer, read_base_config};
/// use burn_peft::data::{RecordEncoder, SftData, SftOptions};
///
/// # fn main() -> burn_peft::Result<()> {
/// let dir = "examples/assets/tiny";
/// let config = read_base_config(dir)?;
/// let tokenizer = load_tokenizer(dir, &config)?;
/// let options = SftOptions::new(config.context_len(), config.vocab_size)
///     .with_batch_size(8)
///     .with_validation_split(0.1);
/// let encoder = RecordEncoder::new(&tokenizer).with_max_seq_len(Some(256));
/// let data = SftData::load("examples/assets/tiny/alpaca_train.json", encoder, &options)?;
///
/// let (_, counts) = &data.counts[0];
/// assert_eq!(counts.used, data.num_rows() + data.num_validation());
/// for step in 0..2 * data.order.steps_per_epoch() { // two epochs
///     let micro_batches = data.step(step)?;
///     assert_eq!(micro_batches.len(), 1);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct SftData {
    /// What is trained on. Its [`fingerprint`](super::fingerprint) tells whether a run that goes on has the same.
    pub samples: Subset<SampleStore>,
    /// Which rows each step takes. Set [`num_processes`](DataOrder::num_processes) for a run of several.
    pub order: DataOrder,
    /// What is validated with, in batches.
    pub validation: Vec<Batch>,
    /// By which template conversations were written, if there are any and it is not the tokenizer's own, which everybody
    /// finds beside the base: save it beside the adapter ([`ChatTemplate::save`]).
    pub template: Option<ChatTemplate>,
    /// The tokens that end what is learned: the tokenizer's end of a text, that of the assistant's turns, or both. A model
    /// that does not stop at them by its configuration goes on.
    pub ends: Vec<u32>,
    /// Where the records do not give what was asked for, in words.
    pub notes: Vec<String>,
    /// What became of the records of each file.
    pub counts: Vec<(PathBuf, RecordCounts)>,
    /// The samples that share a row; none where each has its own.
    packed: Option<Vec<Vec<usize>>>,
    pad_id: u32,
}

impl SftData {
    /// Reads records as [`RecordEncoder::encode_files`] does, of several files by weight if `path` says so
    /// ([`weighted_paths`]). An encoder without a template gets the tokenizer's, or ChatML if that has none.
    ///
    /// # Errors
    /// Those of [`RecordEncoder::encode_files`], [`weighted_paths`], [`split_validation`] and [`check_vocab`], of
    /// [`ChatTemplate::choose`] where a record is a conversation, and [`Error::InvalidArgument`] if no record is left.
    ///
    /// # Panics
    /// If a batch or a step has no rows.
    pub fn load(
        path: impl AsRef<Path>,
        encoder: RecordEncoder,
        options: &SftOptions,
    ) -> Result<Self> {
        let pad_id = encoder.tokenizer().pad_id(options.vocab_size);
        let mut reader = Reader::new(encoder, options);
        let (all, parts) = reader.read_parts(path.as_ref())?;
        let held_out = (all.len() as f64 * options.validation_split) as usize;
        let (train, held_out) = split_validation(all.len(), held_out, options.seed)?;
        let validation = match &options.validation {
            Some(path) => {
                let samples = reader.read(path, Split::Validation)?;
                let every = Vec::from_iter(0..samples.len());
                batches(&samples, &every, options.batch_size, pad_id)?
            }
            None => batches(&all, &held_out, options.batch_size, pad_id)?,
        };
        let train = reader.weighted(&parts, &train)?;
        let samples = Subset::new(all, train);
        let unvalidated = unvalidated(options, samples.len(), validation.len());
        reader.notes.extend(unvalidated);
        let packed = packed(&samples, options, reader.longest())?;
        let num_rows = packed.as_ref().map_or(samples.len(), Vec::len);
        let lengths = match options.group_by_length {
            true => Some(lengths(&samples)?),
            false => None,
        };
        Ok(Self {
            order: options.order(num_rows, lengths),
            template: reader.other_template(),
            ends: reader.ends(),
            samples,
            validation,
            notes: reader.notes,
            counts: reader.counts,
            packed,
            pad_id,
        })
    }

    /// The rows that are trained on, each once in an epoch.
    pub fn num_rows(&self) -> usize {
        self.order.num_samples
    }

    /// The samples that are held out.
    pub fn num_validation(&self) -> usize {
        let samples = |batch: &Batch| batch.segments.iter().flatten().count();
        self.validation.iter().map(samples).sum()
    }

    /// The samples of a row.
    fn row(&self, row: usize) -> Vec<usize> {
        match &self.packed {
            Some(rows) => rows[row].clone(),
            None => vec![row],
        }
    }

    /// The tokens of the longest row.
    ///
    /// # Errors
    /// Those of [`Dataset::sample_len`].
    pub fn longest_row(&self) -> Result<usize> {
        let tokens = |row| {
            let lengths = self.row(row).into_iter();
            lengths.map(|index| self.samples.sample_len(index)).sum()
        };
        let rows = 0..self.num_rows();
        rows.map(tokens)
            .try_fold(0, |longest, row: Result<usize>| Ok(longest.max(row?)))
    }

    /// The samples of the first epoch, in its order.
    pub fn first_samples(&self) -> impl Iterator<Item = Result<Sample>> {
        let steps = 0..self.order.steps_per_epoch();
        let rows = steps.flat_map(|step| self.order.step(step).concat());
        rows.flat_map(|row| self.row(row))
            .map(|index| self.samples.sample(index))
    }

    /// Some rows as a batch.
    ///
    /// # Errors
    /// Those of [`Dataset::sample`].
    ///
    /// # Panics
    /// If there is no row, or none of a number.
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

    /// The micro-batches of a step, counted from 0 over all epochs, for a process that trains alone.
    ///
    /// # Errors
    /// Those of [`Dataset::sample`].
    pub fn step(&self, step: usize) -> Result<Vec<Batch>> {
        self.shard(step, 0, 1)
    }

    /// The micro-batches of a step that one of several processes makes, maybe none.
    ///
    /// # Errors
    /// Those of [`Dataset::sample`].
    ///
    /// # Panics
    /// If `rank` is not below `size`.
    pub fn shard(&self, step: usize, rank: usize, size: usize) -> Result<Vec<Batch>> {
        let micro_batches = self.order.shard(step, rank, size);
        micro_batches.iter().map(|rows| self.batch(rows)).collect()
    }
}

/// Samples in batches, in their order.
fn batches(
    samples: &dyn Dataset,
    indices: &[usize],
    batch_size: usize,
    pad_id: u32,
) -> Result<Vec<Batch>> {
    let batches = indices.chunks(batch_size);
    batches
        .map(|indices| Batch::of_dataset(samples, indices, pad_id))
        .collect()
}

/// Which samples are those of a file, and its weight.
type Part = (Range<usize>, f64);

/// The samples that share a row, if they do.
fn packed(
    samples: &dyn Dataset,
    options: &SftOptions,
    longest: usize,
) -> Result<Option<Vec<Vec<usize>>>> {
    if !options.packed {
        return Ok(None);
    }
    let lengths = (0..samples.len()).map(|index| samples.sample_len(index));
    Ok(Some(pack(&lengths.collect::<Result<Vec<_>>>()?, longest)))
}

fn lengths(samples: &dyn Dataset) -> Result<Vec<u32>> {
    let length = |index| {
        let length = samples.sample_len(index)?;
        Ok(u32::try_from(length).unwrap_or(u32::MAX))
    };
    (0..samples.len()).map(length).collect()
}

/// Reads records, and takes notes.
struct Reader<'a> {
    options: &'a SftOptions,
    encoder: RecordEncoder<'a>,
    /// Whether the caller has given the template.
    has_own_template: bool,
    notes: Vec<String>,
    counts: Vec<(PathBuf, RecordCounts)>,
}

impl<'a> Reader<'a> {
    fn new(mut encoder: RecordEncoder<'a>, options: &'a SftOptions) -> Self {
        let context = options.context_len;
        let asked = encoder.max_seq_len.unwrap_or(context);
        encoder.max_seq_len = Some(asked.min(context));
        let has_own_template = encoder.template.is_some();
        if !has_own_template {
            // One that cannot be read is no matter if nothing is written by it.
            encoder.template = ChatTemplate::choose(None, encoder.tokenizer()).ok();
        }
        Self {
            options,
            encoder,
            has_own_template,
            notes: Vec::from_iter(beyond_context(asked, context)),
            counts: Vec::new(),
        }
    }

    /// The most tokens of a sample.
    fn longest(&self) -> usize {
        self.encoder.max_seq_len.unwrap_or(self.options.context_len)
    }

    /// The records of a data set of several files, and which samples are those of each, with its weight.
    fn read_parts(&mut self, path: &Path) -> Result<(SampleStore, Vec<Part>)> {
        let mut samples = SampleStore::new(&self.options.folder);
        let mut parts = Vec::new();
        for (path, weight) in weighted_paths(path)? {
            let start = samples.len();
            self.append(&path, Split::Train, &mut samples)?;
            parts.push((start..samples.len(), weight));
        }
        self.require_some(&samples)?;
        Ok((samples, parts))
    }

    /// The samples that are trained on, those of each file as often as its weight says.
    fn weighted(&mut self, parts: &[Part], train: &[usize]) -> Result<Vec<usize>> {
        let mut all = Vec::new();
        for ((path, _), (range, weight)) in self.counts.iter().zip(parts) {
            let from = train.partition_point(|index| *index < range.start);
            let to = train.partition_point(|index| *index < range.end);
            let indices = weighted_indices(&train[from..to], *weight, self.options.seed);
            if indices.is_empty() && from < to {
                let (count, path) = (to - from, path.display());
                self.notes.push(format!(
                    "of {count} records of {path} none is trained on: its weight is {weight}"
                ));
            }
            all.extend(indices);
        }
        match all.is_empty() {
            true => Err(self.nothing_left()),
            false => Ok(all),
        }
    }

    fn read(&mut self, path: &Path, split: Split) -> Result<SampleStore> {
        let mut samples = SampleStore::new(&self.options.folder);
        self.append(path, split, &mut samples)?;
        self.require_some(&samples)?;
        Ok(samples)
    }

    fn append(&mut self, path: &Path, split: Split, samples: &mut SampleStore) -> Result<()> {
        let encoded = self
            .encoder
            .encode_files(path, split, self.options.format, samples);
        let counts = encoded.map_err(|error| self.why(error))?;
        let told = told(path, &counts, &self.encoder);
        self.notes.extend(of_folder(path, split)?);
        self.notes.extend(told);
        self.counts.push((path.to_owned(), counts));
        Ok(())
    }

    /// Why a conversation has no template, if that is what is wrong.
    fn why(&self, error: Error) -> Error {
        let lacks_template = matches!(
            error,
            Error::InvalidArgument {
                name: "template",
                ..
            }
        );
        match lacks_template {
            true => {
                let why = ChatTemplate::choose(None, self.encoder.tokenizer()).err();
                why.unwrap_or(error)
            }
            false => error,
        }
    }

    fn require_some(&self, samples: &SampleStore) -> Result<()> {
        match samples.is_empty() {
            true => Err(self.nothing_left()),
            false => check_vocab(samples, self.options.vocab_size),
        }
    }

    fn nothing_left(&self) -> Error {
        Error::InvalidArgument {
            name: "records",
            message: format!("no record is left to train on: {}", self.notes.join("; ")),
        }
    }

    /// The template by which conversations were written, if there are any.
    fn template(&self) -> Option<&ChatTemplate> {
        let mut counts = self.counts.iter();
        let is_used = counts.any(|(_, counts)| counts.conversations > 0);
        self.encoder.template.as_ref().filter(|_| is_used)
    }

    /// The tokens that end what is learned.
    fn ends(&self) -> Vec<u32> {
        let tokenizer = self.encoder.tokenizer();
        let of_turns = self.template();
        let of_turns = of_turns.and_then(|template| template.end_of_turn(tokenizer));
        let mut counts = self.counts.iter();
        let has_others = counts.any(|(_, counts)| counts.read > counts.conversations);
        let of_texts = tokenizer.eos_id().filter(|_| has_others);
        let of_texts = of_texts.filter(|eos| Some(*eos) != of_turns);
        of_turns.into_iter().chain(of_texts).collect()
    }

    /// The template by which conversations were written, if it is not the tokenizer's own.
    fn other_template(&self) -> Option<ChatTemplate> {
        let template = self.template();
        let is_other = |template: &&ChatTemplate| self.has_own_template || template.is_chatml();
        template.filter(is_other).cloned()
    }
}

/// Which files of a folder are read, if these are several: one of them may be the other in another form.
fn of_folder(path: &Path, split: Split) -> Result<Option<String>> {
    const SHOWN: usize = 5;
    if !path.is_dir() {
        return Ok(None);
    }
    let files = files(path, split)?;
    let names = files.iter().filter_map(|file| file.strip_prefix(path).ok());
    let mut names: Vec<String> = names.map(|name| name.display().to_string()).collect();
    if names.len() > SHOWN {
        names.splice(SHOWN.., [format!("and {} more", files.len() - SHOWN)]);
    }
    Ok((files.len() > 1).then(|| {
        format!(
            "the records of {} are those of {}",
            path.display(),
            names.join(", ")
        )
    }))
}

fn beyond_context(asked: usize, context: usize) -> Option<String> {
    (asked > context).then(|| {
        format!(
            "records are cut to the model's context of {context} tokens; max_seq_len is {asked}"
        )
    })
}

fn unvalidated(options: &SftOptions, all: usize, held_out: usize) -> Option<String> {
    let fraction = options.validation_split;
    (held_out == 0 && fraction > 0.0)
        .then(|| format!("nothing is validated: {fraction} of {all} records is less than one"))
}

/// What records may be that is no good, and what became of them.
fn told(path: &Path, counts: &RecordCounts, encoder: &RecordEncoder) -> Vec<String> {
    let longest = encoder.max_seq_len.unwrap_or_default();
    let longer = match encoder.too_long {
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
                became(encoder.prompt_only)
            ),
        ),
        (
            counts.without_labels,
            format!(
                "have nothing that the loss counts: {} (without_labels)",
                became(encoder.without_labels)
            ),
        ),
        (
            counts.empty_answers,
            format!(
                "have an answer that says nothing: {} (empty_answers)",
                became(encoder.empty_answers)
            ),
        ),
        (
            counts.empty_instructions,
            format!(
                "have an instruction that says nothing: {} (empty_instructions)",
                became(encoder.empty_instructions)
            ),
        ),
    ];
    let special = counts.first_special.map(|id| {
        let name = encoder.tokenizer().show(&[id]).unwrap_or_default();
        let what = format!(
            "name a special token, such as {name}, which is text there, letter by letter: records with `messages` get \
             theirs from the chat template, and the end of a text is added to every other"
        );
        (counts.special_as_text, what)
    });
    let told = told.into_iter().chain(special);
    let told = told.filter(|(count, _)| *count > 0);
    told.map(|(count, what)| {
        let read = counts.read;
        format!("{count} of {read} records of {} {what}", path.display())
    })
    .collect()
}
