//! The records of a run as samples in batches, and the tokenizer that makes them.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_peft::data::{
    AlpacaRecord, Batch, Padding, Sample, check_vocab, load_alpaca, pack, split_validation,
    tokenize_records,
};
use burn_peft::distributed::ProcessGroup;
use burn_peft::llama::{LlamaConfig, TransformerDecoder};
use burn_peft::tokenizer::Tokenizer;
use burn_peft::training::recipe::RecipeConfig;
use burn_peft::training::validation_loss_in;
use burn_peft::{Error, Result};

use crate::embedded;

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
    pad_id: u32,
    /// Where the records do not give what the configuration asks for.
    pub notes: Vec<String>,
}

impl Data {
    pub fn load(config: &RecipeConfig, llama: &LlamaConfig, tokenizer: &Tokenizer) -> Result<Self> {
        let path = dataset(config)?;
        let context = llama.context_len();
        let asked = config.max_seq_len.unwrap_or(context);
        let longest = asked.min(context);
        let mut notes = Vec::from_iter(beyond_context(asked, context));
        notes.extend(other_end(tokenizer, llama));
        let mut read = |path: &Path| {
            let records = load_alpaca(path)?;
            let samples = samples(&records, path, config, llama, tokenizer, longest)?;
            notes.extend(left_out(path, records.len() - samples.len(), longest));
            notes.extend(cut(path, &samples, longest));
            Ok::<_, Error>(samples)
        };
        let all = read(&path)?;
        let (samples, validation) = match &config.validation_dataset {
            Some(path) => (all, read(path)?),
            None => split(all, config)?,
        };
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
            pad_id,
            notes,
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

    /// Lets a model see records of the training, in its order and each alone, until it has seen enough tokens to tell
    /// the directions of its layers' inputs.
    pub fn pass_first(&self, model: &TransformerDecoder, config: &RecipeConfig, device: &Device) {
        const ENOUGH: usize = 4096;
        let order = config.data_order(self.rows.len(), 1);
        let steps = 0..order.steps_per_epoch();
        let rows = steps.flat_map(|step| order.step(step).concat());
        let samples = rows.flat_map(|row| self.rows[row].iter().map(|index| &self.samples[*index]));
        let mut seen = 0;
        for sample in samples {
            let ids = TensorData::new(sample.tokens.clone(), [1, sample.len()]);
            model.forward(Tensor::<2, Int>::from_data(ids, device), None);
            seen += sample.len();
            if seen >= ENOUGH {
                return;
            }
        }
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
            message: "`dataset` is not set; name a file of Alpaca records to train on".into(),
            nearest: Vec::new(),
        }),
    }
}

fn samples(
    records: &[AlpacaRecord],
    path: &Path,
    config: &RecipeConfig,
    llama: &LlamaConfig,
    tokenizer: &Tokenizer,
    longest: usize,
) -> Result<Vec<Sample>> {
    let mut samples = tokenize_records(records, tokenizer, config.train_on_input, Some(longest))?;
    check_vocab(&samples, llama.vocab_size)?;
    // A record whose prompt fills the whole sequence teaches nothing.
    samples.retain(|sample| sample.num_label_tokens() > 0);
    match samples.is_empty() {
        false => Ok(samples),
        true => Err(Error::Config {
            origin: path.display().to_string(),
            key: "max_seq_len".into(),
            line: None,
            message: format!("no record has an answer within max_seq_len = {longest} tokens"),
            nearest: Vec::new(),
        }),
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

fn left_out(path: &Path, count: usize, longest: usize) -> Option<String> {
    (count > 0).then(|| {
        format!(
            "{count} records of {} are left out, which have no answer within {longest} tokens",
            path.display()
        )
    })
}

/// An answer that is cut ends, for the model, where it is cut.
fn cut(path: &Path, samples: &[Sample], longest: usize) -> Option<String> {
    let count = samples.iter().filter(|sample| sample.is_cut).count();
    (count > 0).then(|| {
        format!(
            "{count} records of {} are longer than {longest} tokens and cut there",
            path.display()
        )
    })
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
