//! Writing the merged model as a folder: shard by shard, with the files that the base has beside its weights.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::rc::Rc;

use burn::tensor::DType;
use serde_json::{Map, Value};

use super::{MergedCheckpoint, MergedTensor};
use crate::checkpoint::bitsandbytes::part_of;
use crate::checkpoint::composed::rows;
use crate::checkpoint::experts::{HfTensor, hf_tensors, is_stacked, whole_of};
use crate::checkpoint::hf::{
    CONFIG_FILE, INDEX_FILE, IndexMetadata, copy_generation_config, publish_weights,
    read_hf_config, read_model_config, require_no_adapter,
};
use crate::checkpoint::keys::from_hf;
use crate::checkpoint::tensors::{SafetensorsFile, WritableTensor, write_weights};
use crate::checkpoint::weights::is_beside;
use crate::files::{create_dir, read_text, write_atomic, write_text};
use crate::llama::families::ends_to_json;
use crate::{Error, Result};

/// How the names of files end that go with a model, beside its weights.
const COPIED: [&str; 4] = ["json", "jinja", "model", "txt"];

impl MergedCheckpoint {
    /// Writes the merged model as a folder that transformers, vLLM and llama.cpp load: the base's shards under their
    /// names, each weight in its type. Weights that no adapter changes, `config.json`, `generation_config.json` and the
    /// tokenizer's files are copied bit for bit; only what differs is written into `config.json`: a vocabulary of another
    /// size, more tokens that end a text, an output that is no longer the embedding, a base that is no longer packed.
    ///
    /// Weights that an earlier save left in the folder are replaced, or removed if they have other names.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read or written, [`Error::InvalidArgument`] if `dir` is the base's own folder or
    /// one with an adapter, or if a weight holds NaN or infinite numbers. A model that stood in the folder stays if
    /// weights cannot be written; until all are, the disk has both.
    pub fn save_hf(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        create_dir(dir)?;
        self.require_another(dir)?;
        require_no_adapter(dir)?;
        let failed = RefCell::new(None);
        let (mut metadata, mut index) = (IndexMetadata::default(), BTreeMap::new());
        let mut written = Vec::new();
        for (file, tensors) in self.shards(&failed)? {
            for (name, tensor) in &tensors {
                let count: usize = tensor.shape().iter().product();
                metadata.total_parameters += count;
                metadata.total_size += count * tensor.dtype().size();
                index.insert(name.clone(), file.clone());
            }
            let shard = write_weights(tensors, &dir.join(file));
            // What could not be read explains what could not be written.
            if let Some(error) = failed.take() {
                return Err(error);
            }
            written.push(shard?);
        }
        publish_weights(dir, written, &metadata, index)?;
        self.copy_files(dir)
    }

    fn require_another(&self, dir: &Path) -> Result<()> {
        let [own, other] = [self.folder.dir(), dir].map(fs::canonicalize);
        match own.is_ok_and(|own| other.is_ok_and(|other| own == other)) {
            false => Ok(()),
            true => Err(Error::InvalidArgument {
                name: "dir",
                message: format!(
                    "{} is the folder of the base; save the merged model in another",
                    dir.display()
                ),
            }),
        }
    }

    /// The files to write, each with its tensors.
    fn shards<'a>(
        &'a self,
        failed: &'a RefCell<Option<Error>>,
    ) -> Result<Vec<(String, Tensors<'a>)>> {
        let merged = self.tensors();
        let by_key = merged.iter().map(|tensor| (tensor.key.as_str(), tensor));
        let by_key: HashMap<&str, &MergedTensor<'a>> = by_key.collect();
        let mut shards = Vec::new();
        let mut done = BTreeSet::new();
        for path in self.folder.files() {
            let shard = Shard::open(self, path, &by_key, failed)?;
            done.extend(shard.keys);
            shards.push((file_name(path), shard.tensors));
        }
        // An output that was the embedding stands beside it, and experts that were one tensor are several.
        let rest = merged.iter().filter(|tensor| !done.contains(&tensor.key));
        for tensor in rest {
            let file = file_name(tensor.file());
            let shard = shards.iter_mut().find(|(name, _)| *name == file);
            let (_, tensors) = shard.expect("the base's weight is in one of the files");
            let parts = hf_tensors(&tensor.key).into_iter();
            tensors.extend(parts.map(|part| {
                let name = part.name.clone();
                (name, Tensor::Merged(tensor.clone(), part, failed))
            }));
        }
        Ok(shards)
    }

    fn copy_files(&self, dir: &Path) -> Result<()> {
        let base = self.folder.dir();
        for entry in fs::read_dir(base).map_err(Error::io(base))? {
            let path = entry.map_err(Error::io(base))?.path();
            let name = file_name(&path);
            if !path.is_file() || !is_copied(&name) {
                continue;
            }
            let target = dir.join(&name);
            if name == CONFIG_FILE
                && let Some(text) = self.changed_config(&path)?
            {
                write_text(&target, &text)?;
                continue;
            }
            write_atomic(&target, |temporary| {
                fs::copy(&path, temporary)
                    .map(drop)
                    .map_err(Error::io(&path))
            })?;
        }
        // For transformers `generation_config.json` has precedence.
        match self.more_ends()?.is_empty() {
            true => Ok(()),
            false => copy_generation_config(base, dir),
        }
    }

    /// What ends a text for the model, and not by the folder.
    fn more_ends(&self) -> Result<Vec<u32>> {
        let known = read_hf_config(self.folder.dir())?.eos_token_ids;
        let ends = self.model.config.eos_token_ids.iter();
        Ok(ends.filter(|id| !known.contains(id)).copied().collect())
    }

    /// The text of `config.json`, if merging changes what it says.
    fn changed_config(&self, path: &Path) -> Result<Option<String>> {
        let (before, after) = (&self.model.config, self.config());
        let fields = serde_json::from_str(&read_text(path)?);
        let mut fields: Map<String, Value> = fields.map_err(|error| Error::format(path, error))?;
        let was_packed = fields.shift_remove("quantization_config").is_some();
        let vocab_size = Value::from(after.vocab_size);
        let size_before = text_fields(&mut fields).get("vocab_size");
        let is_resized = size_before.is_some_and(|size| *size != vocab_size);
        let is_parted = before.tie_embeddings != after.tie_embeddings;
        let more_ends = self.more_ends()?;
        if !(was_packed || is_resized || is_parted || !more_ends.is_empty()) {
            return Ok(None);
        }
        if is_resized {
            text_fields(&mut fields).insert("vocab_size".to_owned(), vocab_size);
        }
        if !more_ends.is_empty() {
            let own = read_model_config(self.folder.dir())?.eos_token_ids;
            let ends = ends_to_json(&[own, more_ends].concat());
            let ends = ends.expect("there are some");
            text_fields(&mut fields).insert("eos_token_id".to_owned(), ends);
        }
        fields.insert(
            "tie_word_embeddings".to_owned(),
            after.tie_embeddings.into(),
        );
        let text = serde_json::to_string_pretty(&fields).expect("JSON serialises");
        Ok(Some(text + "\n"))
    }
}

/// The fields of the text model, where a model reads images too.
fn text_fields(fields: &mut Map<String, Value>) -> &mut Map<String, Value> {
    const OF_TEXT: &str = "text_config";
    match fields.get(OF_TEXT).is_some_and(Value::is_object) {
        true => fields[OF_TEXT].as_object_mut().expect("it is one"),
        false => fields,
    }
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Whether a file of the base goes with a merged model too: none that names shards or an adapter.
fn is_copied(name: &str) -> bool {
    let end = name.rsplit_once('.').map(|(_, end)| end);
    let is_of_weights = name == INDEX_FILE || name.ends_with(".index.json");
    !is_of_weights && end.is_some_and(|end| COPIED.contains(&end))
}

/// Tensors to write by their names.
type Tensors<'a> = Vec<(String, Tensor<'a>)>;

/// A file to write.
struct Shard<'a> {
    tensors: Tensors<'a>,
    /// The keys of the merged model that are among them.
    keys: Vec<String>,
}

impl<'a> Shard<'a> {
    fn open(
        checkpoint: &'a MergedCheckpoint,
        path: &Path,
        merged: &HashMap<&str, &MergedTensor<'a>>,
        failed: &'a RefCell<Option<Error>>,
    ) -> Result<Self> {
        let file = Rc::new(SafetensorsFile::open(path)?);
        let (mut tensors, mut keys) = (Vec::new(), Vec::new());
        let norms = checkpoint.model.config.block.norms;
        for (name, shape) in file.shapes() {
            let key = from_hf(&name, norms);
            if key.as_deref().is_some_and(is_stacked) {
                continue;
            }
            let whole = key.map(whole_of);
            let half = whole.as_ref().and_then(|(_, half)| *half);
            let of_merged = whole.map(|(key, _)| checkpoint.key_of(&key));
            let of_merged = of_merged.and_then(|key| merged.get(key.as_str()).copied());
            let tensor = match of_merged {
                Some(merged) if merged.is_changed() => {
                    let part = HfTensor {
                        name: name.clone(),
                        half,
                    };
                    Tensor::Merged(merged.clone(), part, failed)
                }
                None if part_of(&name).is_some() && !is_beside(&name) => continue,
                _ => Tensor::Copied {
                    dtype: file.dtype(&name)?,
                    shape,
                    file: file.clone(),
                    name: name.clone(),
                },
            };
            keys.extend(of_merged.map(|merged| merged.key.clone()));
            tensors.push((name, tensor));
        }
        Ok(Self { tensors, keys })
    }
}

/// A tensor to write.
enum Tensor<'a> {
    /// As it is in the base.
    Copied {
        file: Rc<SafetensorsFile>,
        name: String,
        dtype: DType,
        shape: Vec<usize>,
    },
    /// With an adapter's update, all of it or a half; what went wrong when it was read is put beside it.
    Merged(MergedTensor<'a>, HfTensor, &'a RefCell<Option<Error>>),
}

impl WritableTensor for Tensor<'_> {
    fn dtype(&self) -> DType {
        match self {
            Self::Copied { dtype, .. } => *dtype,
            Self::Merged(tensor, ..) => tensor.dtype,
        }
    }

    fn shape(&self) -> Vec<usize> {
        match self {
            Self::Copied { shape, .. } => shape.clone(),
            Self::Merged(tensor, part, _) => {
                let mut shape = tensor.shape.clone();
                shape[0] = part.rows(shape[0]).len();
                shape
            }
        }
    }

    fn bytes(&self) -> Cow<'_, [u8]> {
        let (value, part, failed) = match self {
            Self::Copied { file, name, .. } => {
                return Cow::Owned(file.copy_bytes(name).unwrap_or_default());
            }
            Self::Merged(tensor, part, failed) => (tensor.read(), part, failed),
        };
        match value {
            Ok(value) if part.half.is_some() => {
                let half = rows(&value, part.rows(value.shape()[0]));
                Cow::Owned(half.as_bytes().to_vec())
            }
            Ok(value) => Cow::Owned(value.as_bytes().to_vec()),
            Err(error) => {
                failed.borrow_mut().get_or_insert(error);
                Cow::Owned(Vec::new())
            }
        }
    }
}
