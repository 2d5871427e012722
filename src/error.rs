//! The error type of the crate.

use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

/// `std::result::Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a file, a flag, a data set or a configuration.
///
/// A message about a file names it and the key; most say what was expected or what to try. A bug of
/// the calling program (a tensor of the wrong rank, say) panics instead, and the function's `# Panics`
/// section says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{}: {source}{}{}", path.display(), what_to_try(source.kind()), or_download(path, source.kind()))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A file is not what its name says: malformed JSON or YAML, a bad header, a bad tokenizer.
    #[error("{}: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where in the file if that is known.
        message: String,
    },

    /// A key of a configuration is unknown or has a value that cannot be used.
    #[error("{origin}{}: {message}{}", at_line(*line), did_you_mean(nearest))]
    Config {
        /// The file or command line the key was read from.
        origin: String,
        /// The key at fault, dotted for nested keys (`optimizer.lr`).
        key: String,
        /// The line in the file, counted from 1, where there is a file.
        line: Option<usize>,
        /// What is wrong with the key or its value.
        message: String,
        /// The valid keys or values that look most like what was written.
        nearest: Vec<String>,
    },

    /// An argument given by the caller's user cannot be used (rank 0, an empty module list, ...).
    #[error("{name}: {message}")]
    InvalidArgument {
        /// The name of the argument.
        name: &'static str,
        /// What is wrong and what is accepted.
        message: String,
    },

    /// The keys of a checkpoint and of the model do not match.
    #[error("{origin}: {}", keys_message(missing, unexpected))]
    Keys {
        /// The file, folder or state dict that was loaded.
        origin: String,
        /// Keys of the model that the source does not have.
        missing: Vec<String>,
        /// Keys of the source that the model does not have, each with the nearest model key.
        unexpected: Vec<(String, Option<String>)>,
    },

    /// The keys of a base or adapter state dict break the rules of a LoRA model.
    #[error("the state dict does not fit the LoRA model:\n  {}", problems.join("\n  "))]
    StateDict {
        /// Every key at fault, with the rule that it breaks.
        problems: Vec<String>,
    },

    /// A tensor in a file has another shape than the model's parameter.
    #[error(
        "{origin}: `{key}` has shape {found:?}, the model expects {expected:?}; {}",
        why_of_shape(key, found, expected)
    )]
    Shape {
        /// The file or state dict.
        origin: String,
        /// The tensor's name in the file.
        key: String,
        /// The shape that the model's parameter has.
        expected: Vec<usize>,
        /// The shape found.
        found: Vec<usize>,
    },

    /// A tensor in a file has a type of number that cannot be used for a weight.
    #[error(
        "{origin}: `{key}` holds {found}; weights must be F32, F16 or BF16 (of quantized models \
         only those of bitsandbytes are read: else take the release that they were made from)"
    )]
    DType {
        /// The file.
        origin: String,
        /// The tensor's name in the file.
        key: String,
        /// The type found.
        found: String,
    },

    /// The index of a sharded checkpoint names a file that is not there.
    #[error(
        "{}: the index names the shard `{shard}`, which is not in the folder; \
         download it, or copy it beside the index", index.display()
    )]
    MissingShard {
        /// The index file.
        index: PathBuf,
        /// The missing file's name.
        shard: String,
    },

    /// An adapter folder belongs to another model or uses what this crate does not do.
    #[error("{}: {message}", path.display())]
    Adapter {
        /// The adapter folder or its configuration file.
        path: PathBuf,
        /// What does not fit.
        message: String,
    },

    /// A record of a data set cannot be used.
    #[error("{}: record {record}{}: {message}", path.display(), at_line(*line))]
    Record {
        /// The data file.
        path: PathBuf,
        /// The record, counted from 1.
        record: usize,
        /// Its line, counted from 1, for formats with one record a line.
        line: Option<usize>,
        /// What is wrong with it.
        message: String,
    },

    /// A token id lies outside of the model's vocabulary.
    #[error(
        "token id {id} is beyond the model's vocabulary of {vocab_size}; \
         is this the tokenizer of another model?"
    )]
    TokenOutOfRange {
        /// The token id.
        id: u32,
        /// The size of the vocabulary.
        vocab_size: usize,
    },

    /// A model computes what is infinite or no number.
    #[error(
        "{what} is {value}: look for weights of the base or the adapter that are no numbers, and try another \
         dtype if it is f16"
    )]
    NotFinite {
        /// What was computed.
        what: String,
        /// Its value.
        value: f64,
    },

    /// A training's loss or its gradients are no numbers any more.
    #[error(
        "step {step}: the loss is {loss} and the gradients' norm {grad_norm}{}; mend the records if they are broken, \
         leave the step out by skip_nonfinite_steps={} resume_from_checkpoint=auto, or begin anew with a lower \
         optimizer.lr, with clip_grad_norm, or with dtype bf16 in place of f16",
        of_records(records), skipped + 1
    )]
    Diverged {
        /// The step, counted from 1.
        step: usize,
        /// The loss of the step.
        loss: f64,
        /// The norm of its gradients before clipping.
        grad_norm: f64,
        /// The steps of the run that were left out before it.
        skipped: usize,
        /// The records at fault, where they are known: those whose loss alone is no number, or else all of the step.
        records: Vec<String>,
    },

    /// A disk has no room for what will be written.
    #[error(
        "{}: at least {:.1} GB will be written, and the disk has room for {:.1} GB; free some space, choose \
         another output_dir, or write less by keep_last_n_checkpoints, a larger save_every_n_steps or \
         save_adapter_weights_only=true",
        path.display(), *needed as f64 / 1e9, *available as f64 / 1e9
    )]
    DiskSpace {
        /// The folder.
        path: PathBuf,
        /// The least number of bytes that will be written.
        needed: u64,
        /// Those that there is room for.
        available: u64,
    },

    /// A training takes more memory than its machine has.
    #[error(
        "the training takes {:.1} GB of memory, and this machine has {:.1} GB, with what it can swap: it would be killed. \
         burn-peft plan and the recipe say what takes less",
        *needed as f64 / 1e9, *installed as f64 / 1e9
    )]
    Memory {
        /// The bytes that the training takes.
        needed: u64,
        /// Those that the machine has.
        installed: u64,
    },

    /// Another member of a group that trains together has ended.
    #[error("another process or thread of this training has ended; what it printed tells why")]
    PeerLost,

    /// The members of a group that trains together do not have the same data or configuration.
    #[error("{what}: {} from rank 0; give all processes the same", list(ranks))]
    PeersDiffer {
        /// What differs.
        what: String,
        /// The members that differ from the first.
        ranks: Vec<usize>,
    },

    /// A run folder cannot be resumed with this configuration.
    #[error("{}: {message}", path.display())]
    Resume {
        /// The run folder or the file in it.
        path: PathBuf,
        /// What differs or is missing.
        message: String,
    },
}

impl Error {
    /// An [`Error::Io`] for `path`, for use with `map_err`.
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io {
            path: path.as_ref().to_owned(),
            source,
        }
    }

    /// The same error about a step that is no number, with its records in words.
    pub fn with_records(mut self, names: Vec<String>) -> Self {
        if let Self::Diverged { records, .. } = &mut self {
            *records = names;
        }
        self
    }

    /// The same error about keys, a shape or a value, which a file rather than a value in memory had.
    pub(crate) fn in_file(mut self, file: &Path) -> Self {
        match &mut self {
            Self::Keys { origin, .. } | Self::Shape { origin, .. } => {
                *origin = file.display().to_string();
            }
            Self::Format { path, .. } => *path = file.to_owned(),
            _ => {}
        }
        self
    }

    /// The same error about a shape, with another name of the tensor: the one in the file, say.
    pub(crate) fn with_key(mut self, name: &str) -> Self {
        if let Self::Shape { key, .. } = &mut self {
            *key = name.to_owned();
        }
        self
    }

    /// An [`Error::Format`] for `path`.
    pub(crate) fn format(path: impl AsRef<Path>, message: impl ToString) -> Self {
        Self::Format {
            path: path.as_ref().to_owned(),
            message: message.to_string(),
        }
    }
}

/// The `count` entries of `candidates` that look most like `word`, best first; none if nothing is
/// similar.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
    count: usize,
) -> Vec<String> {
    let mut scored: Vec<(f64, &str)> = candidates
        .into_iter()
        .map(|c| (likeness(word, c), c))
        .filter(|(score, _)| *score > 0.7)
        .collect();
    scored.sort_by(|a, b| {
        let by_name = || (a.1.len(), a.1).cmp(&(b.1.len(), b.1));
        b.0.total_cmp(&a.0).then_with(by_name)
    });
    scored.truncate(count);
    scored.into_iter().map(|(_, c)| c.to_owned()).collect()
}

/// How much two names look like each other, whatever their case: by their letters, or because one is a part of the
/// other (`up` of `ffn_up`).
fn likeness(word: &str, other: &str) -> f64 {
    let [word, other] = [word, other].map(str::to_lowercase);
    let is_part = |part: &str, of: &str| {
        let mut parts = of.split(|c: char| !c.is_alphanumeric());
        parts.any(|other| other == part)
    };
    let letters = strsim::jaro_winkler(&word, &other);
    match is_part(&word, &other) || is_part(&other, &word) {
        true => letters.max(0.9),
        false => letters,
    }
}

fn of_records(records: &[String]) -> String {
    match records.is_empty() {
        true => String::new(),
        false => format!(", which come(s) of {}", shorten(records)),
    }
}

/// "rank 3 differs" or "ranks 1, 3 differ".
fn list(ranks: &[usize]) -> String {
    let names: Vec<String> = ranks.iter().map(usize::to_string).collect();
    match names.as_slice() {
        [one] => format!("rank {one} differs"),
        several => format!("ranks {} differ", shorten(several)),
    }
}

fn what_to_try(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "; check the path",
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
            "; a file stands where a folder is needed, choose another path"
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "; choose a place that this user may read and write"
        }
        ErrorKind::StorageFull => "; free some space, or choose another disk",
        ErrorKind::InvalidData => "; is this a text in another encoding, or another kind of file?",
        _ => "",
    }
}

/// For a file that was looked for in a folder `owner/name`: so the Hub names its models.
fn or_download(path: &Path, kind: ErrorKind) -> String {
    let parts: Vec<Component> = path.components().collect();
    match (kind, &parts[..]) {
        (ErrorKind::NotFound, [Component::Normal(owner), Component::Normal(name), _]) => format!(
            ", or bring a model from the Hub by `hf download {}/{} --local-dir DIR`",
            owner.display(),
            name.display()
        ),
        _ => String::new(),
    }
}

fn why_of_shape(key: &str, found: &[usize], expected: &[usize]) -> &'static str {
    if differs_in_rank(key, found, expected) {
        return "is this an adapter of another rank?";
    }
    match (found, expected) {
        ([rows, columns], [r, c]) if (rows, columns) == (c, r) => {
            "is it transposed, as the weight of a `burn::nn::Linear` in Burn's own files, or is this checkpoint for \
             another model size?"
        }
        _ => "is this checkpoint for another model size?",
    }
}

/// Whether a factor of an adapter, `A` of `[rank, columns]` or `B` of `[rows, rank]`, differs in its rank alone.
fn differs_in_rank(key: &str, found: &[usize], expected: &[usize]) -> bool {
    let key = key.to_lowercase();
    let is_factor = |factor: &str| {
        let names = ["lora_", "lora_embedding_", "shift_"];
        names
            .iter()
            .any(|name| key.contains(&format!("{name}{factor}")))
    };
    match (found, expected) {
        ([rank, columns], [r, c]) if is_factor("a") => rank != r && columns == c,
        ([rows, rank], [r, s]) if is_factor("b") => rows == r && rank != s,
        _ => false,
    }
}

fn at_line(line: Option<usize>) -> String {
    line.map(|l| format!(" (line {l})")).unwrap_or_default()
}

fn did_you_mean(nearest: &[String]) -> String {
    match nearest {
        [] => String::new(),
        names => format!("; did you mean `{}`?", names.join("` or `")),
    }
}

fn keys_message(missing: &[String], unexpected: &[(String, Option<String>)]) -> String {
    let mut parts = Vec::new();
    if !missing.is_empty() {
        parts.push(format!(
            "{} missing key(s): {}",
            missing.len(),
            shorten(missing)
        ));
    }
    if !unexpected.is_empty() {
        let described: Vec<String> = unexpected
            .iter()
            .map(|(key, near)| match near {
                Some(near) => format!("{key} (nearest key of the model: {near})"),
                None => key.clone(),
            })
            .collect();
        parts.push(format!(
            "{} unexpected key(s): {}",
            unexpected.len(),
            shorten(&described)
        ));
    }
    parts.join("; ")
}

/// The first ten items, and how many more there are.
fn shorten(items: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut text = items[..items.len().min(SHOWN)].join(", ");
    if items.len() > SHOWN {
        text += &format!(" and {} more", items.len() - SHOWN);
    }
    text
}
