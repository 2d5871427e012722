//! Hugging Face folders: `config.json` and one or more safetensors files.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use burn::tensor::{DType, Device, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::base::{BaseWeights, load_base};
use super::composed::rows;
use super::experts::{self, HfTensor, hf_tensors};
use super::hf_config;
use super::keys;
use super::tensors::{WritableTensor, write_weights};
use super::weights::Weights;
use crate::adapter::{LoadReport, StateReader, get_params, state_readers};
use crate::files::{WrittenFile, create_dir, read_text, remove_if_there, write_text};
use crate::llama::{LlamaConfig, TransformerDecoder};
use crate::quantization::PackedLayout;
use crate::weight::BaseFormat;
use crate::{Error, Result};

const SINGLE_FILE: &str = "model.safetensors";
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";
pub(super) const CONFIG_FILE: &str = "config.json";

/// Whether a base is a Hugging Face folder, whose weights can be merged one by one: neither GGUF files nor Meta's folders have
/// a `config.json`.
pub(crate) fn is_hf_folder(base: &Path) -> bool {
    base.join(CONFIG_FILE).exists()
}

const GENERATION_FILE: &str = "generation_config.json";
/// The size from which on a file is split, in bytes.
pub(super) const MAX_SHARD_BYTES: u64 = 5_000_000_000;

#[derive(Deserialize, Serialize)]
struct Index {
    #[serde(default)]
    metadata: Value,
    weight_map: BTreeMap<String, String>,
}

/// What programs tell of a model before they open a shard.
#[derive(Default, Serialize)]
pub(super) struct IndexMetadata {
    pub total_parameters: usize,
    /// The bytes of all tensors.
    pub total_size: usize,
}

/// Reads the sizes of a model from `config.json` in `dir`. The tokens that end a text are those of the
/// `generation_config.json` beside it, if there is one: none if it names none, as in transformers.
///
/// # Errors
/// [`Error::Io`] if a file cannot be read; [`Error::Format`] if one is malformed or describes a
/// model of no family that is known.
pub fn read_hf_config(dir: impl AsRef<Path>) -> Result<LlamaConfig> {
    let config = read_model_config(dir.as_ref())?;
    let path = dir.as_ref().join(GENERATION_FILE);
    if !path.exists() {
        return Ok(config);
    }
    Ok(LlamaConfig {
        eos_token_ids: hf_config::parse_ends(&read_text(&path)?, &path)?,
        ..config
    })
}

/// What `config.json` alone says; where it does not say whether embedding and output are one, what the files have, as
/// transformers takes them.
pub(super) fn read_model_config(dir: &Path) -> Result<LlamaConfig> {
    let path = dir.join(CONFIG_FILE);
    let text = read_text(&path)?;
    let config = hf_config::parse(&text, &path)?;
    let is_open = config.tie_embeddings && hf_config::leaves_output_open(&text);
    let is_tied = config.tie_embeddings && !(is_open && has_other_output(dir, &config));
    Ok(config.with_tie_embeddings(is_tied))
}

/// Whether the files have an output that is not the embedding. What is wrong with them is told when they are loaded.
fn has_other_output(dir: &Path, config: &LlamaConfig) -> bool {
    let weights = weight_files(dir).and_then(|files| open(files, config, false));
    let found = weights.and_then(|weights| weights.has_other_output());
    found.unwrap_or_default()
}

/// Loads the base weights of a Hugging Face folder into a model, with or without adapters, in the
/// type that they are stored in (f32 where the device cannot compute in it). Weights that bitsandbytes packed stay
/// packed as they are.
///
/// Adapter keys are reported as missing; DoRA's magnitudes become the row norms of the weights.
///
/// # Errors
/// [`Error::Keys`] if a base weight is missing or a key of the folder is not one of the model,
/// [`Error::Shape`], [`Error::DType`], [`Error::MissingShard`], [`Error::Format`] or [`Error::Io`].
/// The model is unchanged then.
pub fn load_hf(model: &mut TransformerDecoder, dir: impl AsRef<Path>) -> Result<LoadReport> {
    load(model, dir.as_ref(), None)
}

/// [`load_hf`], with every weight brought to a type ([`DType`]) or packed in fewer bits
/// ([`Quantization`](crate::weight::Quantization)) as it is read.
///
/// Of a folder that bitsandbytes quantized, the packed weights become numbers of a type, but stay packed as they are where
/// a [`Quantization`](crate::weight::Quantization) is asked for, whichever: that packs linear layers which are dense in
/// the folder. [`BaseFormat::with_kept_packing`] brings to a type what is not packed, and no more.
///
/// ```no_run
/// use burn_peft::checkpoint::load_hf_as;
/// use burn_peft::weight::Quantization;
/// # fn loaded(mut model: burn_peft::llama::TransformerDecoder) -> burn_peft::Result<()> {
///
/// load_hf_as(&mut model, "Llama-2-7b-hf", Quantization::Nf4)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::InvalidArgument`] if a type is not f32, f16 or bf16, the device cannot compute in it, or blocks do not
/// divide the input of a layer, and those of [`load_hf`].
pub fn load_hf_as(
    model: &mut TransformerDecoder,
    dir: impl AsRef<Path>,
    format: impl Into<BaseFormat>,
) -> Result<LoadReport> {
    load(model, dir.as_ref(), Some(format.into()))
}

fn load(
    model: &mut TransformerDecoder,
    dir: &Path,
    format: Option<BaseFormat>,
) -> Result<LoadReport> {
    let folder = HfFolder::open(dir, &model.config)?;
    load_base(model, &folder, format)
}

/// How the weights of a folder are packed, by this crate's keys. No weight is read.
///
/// # Errors
/// Those of [`load_hf`] that are the folder's.
pub(super) fn hf_packing(dir: &Path) -> Result<HashMap<String, PackedLayout>> {
    let is_tied = false; // which only the numbers would tell
    let config = read_model_config(dir)?;
    Ok(open(weight_files(dir)?, &config, is_tied)?.layouts())
}

/// Opens the files of a model.
fn open(files: Vec<PathBuf>, config: &LlamaConfig, is_tied: bool) -> Result<Weights> {
    let key_of = |name: &str| keys::from_hf(name, config.block.norms);
    let mut weights = Weights::open(files, key_of, is_tied)?;
    experts::compose(&mut weights, config)?;
    Ok(weights)
}

/// The weights of a folder.
pub(super) struct HfFolder {
    dir: PathBuf,
    files: Vec<PathBuf>,
    weights: Weights,
}

impl HfFolder {
    /// Opens every file and checks every header.
    pub(super) fn open(dir: &Path, config: &LlamaConfig) -> Result<Self> {
        let files = weight_files(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            weights: open(files.clone(), config, config.tie_embeddings)?,
            files,
        })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The safetensors files.
    pub(super) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }
}

impl BaseWeights for HfFolder {
    fn origin(&self) -> String {
        self.dir.display().to_string()
    }

    fn shapes(&self) -> Vec<(&str, &[usize])> {
        self.weights.shapes().collect()
    }

    fn packed(&self) -> HashMap<String, PackedLayout> {
        self.weights.layouts()
    }

    fn own_name(&self, key: &str) -> Option<String> {
        let names = hf_tensors(key).into_iter().map(|tensor| tensor.name);
        let names: Vec<String> = names.collect();
        (!names.is_empty()).then(|| names.join(" and "))
    }

    fn locate(&self, error: Error) -> Error {
        self.weights.locate(error)
    }

    fn read(&self, key: &str, target: &dyn Fn(DType) -> DType) -> Result<TensorData> {
        self.weights.read(key, target)
    }

    fn read_words(&self, key: &str) -> Result<TensorData> {
        self.weights.read_words(key)
    }
}

/// The safetensors files of a folder: the single one, or those that the index names.
pub(super) fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let single = dir.join(SINGLE_FILE);
    let index_path = dir.join(INDEX_FILE);
    if single.exists() {
        return Ok(vec![single]);
    }
    if !index_path.exists() {
        let message = format!(
            "neither {SINGLE_FILE} nor {INDEX_FILE}, which names the shards, is in this folder; weights in \
             other formats must be converted first, such as by save_pretrained(DIR) of transformers"
        );
        return Err(Error::format(dir, message));
    }
    let index: Index = serde_json::from_str(&read_text(&index_path)?)
        .map_err(|error| Error::format(&index_path, error))?;
    let mut shards: Vec<&String> = index.weight_map.values().collect();
    shards.sort();
    shards.dedup();
    shards
        .into_iter()
        .map(|s| shard_path(dir, &index_path, s))
        .collect()
}

fn shard_path(dir: &Path, index: &Path, shard: &str) -> Result<PathBuf> {
    let is_plain = matches!(
        Path::new(shard).components().collect::<Vec<_>>()[..],
        [Component::Normal(_)]
    );
    if !is_plain {
        let message = format!(
            "the shard name `{shard}` is not a plain file name; shards must stand beside the index"
        );
        return Err(Error::format(index, message));
    }
    let path = dir.join(shard);
    if path.exists() {
        Ok(path)
    } else {
        Err(Error::MissingShard {
            index: index.to_owned(),
            shard: shard.to_owned(),
        })
    }
}

/// Writes a model without adapters as a Hugging Face folder that transformers, vLLM and llama.cpp
/// load; files above 5 GB are split. Merge or remove adapters first. Weights that an earlier save left in
/// the folder are replaced, or removed if they have other names. A `generation_config.json` that is there gets
/// the tokens that end a text for this model.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written, [`Error::Format`] if its `generation_config.json` is malformed,
/// [`Error::InvalidArgument`] if no family of Hugging Face's models has such layers, if a merged adapter has brought a
/// bias that the files of such a model have no place for, if an adapter lies in the folder, or if a weight holds NaN or
/// infinite numbers. A model that stood in the folder stays if weights cannot be written; until all are, the disk has
/// both.
///
/// # Panics
/// If the model holds an adapter.
pub fn save_hf(model: &TransformerDecoder, dir: impl AsRef<Path>) -> Result<()> {
    save_hf_in_shards(model, dir.as_ref(), MAX_SHARD_BYTES)
}

fn save_hf_in_shards(model: &TransformerDecoder, dir: &Path, max_bytes: u64) -> Result<()> {
    let readers = state_readers(model);
    assert!(
        readers.iter().all(|reader| !reader.is_adapter()),
        "the model holds an adapter: save it by `save_merged_hf`, or the adapter by `save_peft`"
    );
    save_weights(readers, &model.config, dir, max_bytes)
}

/// Writes weights as a folder's, in files of at most so many bytes.
pub(super) fn save_weights(
    readers: Vec<StateReader>,
    config: &LlamaConfig,
    dir: &Path,
    max_bytes: u64,
) -> Result<()> {
    require_places(config, &readers)?;
    require_no_adapter(dir)?;
    let dtype = readers.first().map_or(DType::F32, StateReader::dtype);
    let fields = hf_config::to_json(config, dtype)?;
    create_dir(dir)?;
    let metadata = IndexMetadata {
        total_parameters: readers.iter().map(num_elements).sum(),
        total_size: readers.iter().map(num_bytes).sum(),
    };
    let (written, index) = write_shards(split(readers, max_bytes), dir)?;
    publish_weights(dir, written, &metadata, index)?;
    write_text(&dir.join(CONFIG_FILE), &fields)?;
    let generation = dir.join(GENERATION_FILE);
    match generation.exists() {
        true => write_generation(&generation, &generation, &config.eos_token_ids),
        false => Ok(()),
    }
}

/// A file for each shard, and the file of each weight.
fn write_shards(
    shards: Vec<Vec<StateReader>>,
    dir: &Path,
) -> Result<(Vec<WrittenFile>, BTreeMap<String, String>)> {
    let count = shards.len();
    let mut index = BTreeMap::new();
    let mut written = Vec::with_capacity(count);
    for (number, shard) in shards.into_iter().enumerate() {
        let file = match count {
            1 => SINGLE_FILE.to_owned(),
            _ => shard_name(number + 1, count),
        };
        let named: Vec<_> = shard.into_iter().flat_map(hf_weights).collect();
        index.extend(named.iter().map(|(name, _)| (name.clone(), file.clone())));
        written.push(write_weights(named, &dir.join(file))?);
    }
    Ok((written, index))
}

/// Moves the weights to their final names, with the index if there is more than the single file, and removes those of
/// earlier saves.
pub(super) fn publish_weights(
    dir: &Path,
    written: Vec<WrittenFile>,
    metadata: &IndexMetadata,
    index: BTreeMap<String, String>,
) -> Result<()> {
    // Not before each weight is known to be finite and each file to have room.
    written.into_iter().try_for_each(WrittenFile::publish)?;
    // What an earlier save in the other form left would be read instead of this one, and some programs
    // read every shard that there is.
    let files: BTreeSet<String> = index.values().cloned().collect();
    if files.contains(SINGLE_FILE) {
        remove_if_there(&dir.join(INDEX_FILE))?;
    } else {
        write_index(dir, metadata, index)?;
        remove_if_there(&dir.join(SINGLE_FILE))?;
    }
    remove_other_shards(dir, &files)
}

/// transformers takes a folder with both for an adapter.
pub(super) fn require_no_adapter(dir: &Path) -> Result<()> {
    let config = dir.join("adapter_config.json");
    match config.exists() {
        false => Ok(()),
        true => Err(Error::InvalidArgument {
            name: "dir",
            message: format!(
                "an adapter lies in {}; save the merged model in another folder",
                dir.display()
            ),
        }),
    }
}

/// A merged adapter may have brought a bias to a layer that has none in the files of such a model.
pub(super) fn require_places(config: &LlamaConfig, readers: &[StateReader]) -> Result<()> {
    let expected = get_params(&config.init(&Device::default()));
    match readers
        .iter()
        .find(|reader| !expected.contains(&reader.key))
    {
        None => Ok(()),
        Some(reader) => Err(no_place(&reader.key)),
    }
}

/// The error about a bias that a merged adapter has brought.
pub(super) fn no_place(key: &str) -> Error {
    Error::InvalidArgument {
        name: "model",
        message: format!(
            "`{key}` has no place in the files of such a model: its adapter has a bias of B (lora_bias); keep the \
             adapter beside its base (save_adapter_weights_only)"
        ),
    }
}

/// Copies how a model generates (`generation_config.json`: temperature, tokens that end a text) into the folder
/// of one that was made from it. What ends a text for the new model, by its `config.json`, is added: for
/// transformers and vLLM this file has precedence.
///
/// # Errors
/// [`Error::Io`] if a file cannot be read or written, [`Error::Format`] if one is malformed.
pub fn copy_generation_config(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    let path = from.join(GENERATION_FILE);
    if !path.exists() {
        return Ok(());
    }
    let mut ends = hf_config::parse_ends(&read_text(&path)?, &path)?;
    for id in read_model_config(to)?.eos_token_ids {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    write_generation(&path, &to.join(GENERATION_FILE), &ends)
}

/// Writes the generation settings of one file to another, with these tokens for the end of a text.
fn write_generation(from: &Path, to: &Path, ends: &[u32]) -> Result<()> {
    let fields = serde_json::from_str(&read_text(from)?);
    let mut fields: serde_json::Map<String, Value> =
        fields.map_err(|error| Error::format(from, error))?;
    fields.shift_remove("eos_token_id");
    let ends = hf_config::ends_to_json(ends);
    fields.extend(ends.map(|ends| ("eos_token_id".to_owned(), ends)));
    let text = serde_json::to_string_pretty(&fields).expect("JSON serialises");
    write_text(to, &(text + "\n"))
}

fn shard_name(number: usize, count: usize) -> String {
    format!("model-{number:05}-of-{count:05}.safetensors")
}

fn remove_other_shards(dir: &Path, files: &BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
        let name = entry.map_err(Error::io(dir))?.file_name();
        let name = name.to_string_lossy();
        if is_shard(&name) && !files.contains(&*name) {
            remove_if_there(&dir.join(&*name))?;
        }
    }
    Ok(())
}

/// Whether this is a name that [`shard_name`] gives.
fn is_shard(name: &str) -> bool {
    let numbers = name
        .strip_prefix("model-")
        .and_then(|rest| rest.strip_suffix(".safetensors")?.split_once("-of-"));
    let parse = |number: &str| number.parse().ok();
    numbers
        .and_then(|(number, count)| Some(shard_name(parse(number)?, parse(count)?)))
        .is_some_and(|again| again == name)
}

fn write_index(
    dir: &Path,
    metadata: &IndexMetadata,
    weight_map: BTreeMap<String, String>,
) -> Result<()> {
    let index = Index {
        metadata: serde_json::json!(metadata),
        weight_map,
    };
    let text = serde_json::to_string_pretty(&index).expect("a map of strings serialises");
    write_text(&dir.join(INDEX_FILE), &text)
}

/// Groups tensors, in order, into shards of at most `max_bytes`.
fn split(readers: Vec<StateReader>, max_bytes: u64) -> Vec<Vec<StateReader>> {
    let mut shards: Vec<Vec<StateReader>> = Vec::new();
    let mut room = 0;
    for reader in readers {
        let bytes = num_bytes(&reader) as u64;
        match shards.last_mut() {
            Some(shard) if bytes <= room => {
                room -= bytes;
                shard.push(reader);
            }
            _ => {
                room = max_bytes.saturating_sub(bytes);
                shards.push(vec![reader]);
            }
        }
    }
    shards
}

fn num_elements(reader: &StateReader) -> usize {
    reader.shape.iter().product()
}

fn num_bytes(reader: &StateReader) -> usize {
    num_elements(reader) * reader.dtype().size()
}

/// A weight, or a part of one, as a tensor of the files.
struct HfWeight {
    reader: Rc<StateReader>,
    tensor: HfTensor,
}

/// What a weight is in the files, by name.
fn hf_weights(reader: StateReader) -> Vec<(String, HfWeight)> {
    let tensors = hf_tensors(&reader.key);
    let key = &reader.key;
    assert!(
        !tensors.is_empty(),
        "`{key}` has no name in a Hugging Face folder"
    );
    let reader = Rc::new(reader);
    let weight = |tensor: HfTensor| {
        let reader = reader.clone();
        (tensor.name.clone(), HfWeight { reader, tensor })
    };
    tensors.into_iter().map(weight).collect()
}

impl WritableTensor for HfWeight {
    fn dtype(&self) -> DType {
        self.reader.dtype()
    }

    fn shape(&self) -> Vec<usize> {
        let mut shape = self.reader.shape.clone();
        shape[0] = self.tensor.rows(shape[0]).len();
        shape
    }

    fn bytes(&self) -> Cow<'_, [u8]> {
        let value = self.reader.read();
        let value = match self.tensor.half {
            None => value,
            Some(_) => rows(&value, self.tensor.rows(value.shape()[0])),
        };
        Cow::Owned(value.as_bytes().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::load_tensors;
    use crate::adapter::state_dict;
    use burn::tensor::{Device, TensorData};

    fn config() -> LlamaConfig {
        LlamaConfig {
            vocab_size: 50,
            num_layers: 2,
            num_heads: 2,
            num_kv_heads: 1,
            head_dim: 8,
            embed_dim: 16,
            intermediate_dim: 24,
            ..LlamaConfig::llama2_7b()
        }
    }

    #[test]
    fn shards_read_back_as_the_same_model() {
        let device = Device::default();
        let model = config().init(&device);
        let dir = tempfile::tempdir().unwrap();
        // What an older save left there is replaced.
        save_hf(&config().init(&device), dir.path()).unwrap();
        save_hf_in_shards(&model, dir.path(), 4000).unwrap();
        save_hf(&model, dir.path()).unwrap();
        assert!(!dir.path().join(INDEX_FILE).exists());
        save_hf_in_shards(&model, dir.path(), 4000).unwrap();
        assert!(!dir.path().join(SINGLE_FILE).exists());
        let mut again = read_hf_config(dir.path()).unwrap().init(&device);
        load_hf(&mut again, dir.path()).unwrap();
        assert_eq!(state_dict(&again), state_dict(&model));
    }

    #[test]
    fn a_model_that_cannot_be_saved_leaves_the_one_before() {
        let device = Device::default();
        let dir = tempfile::tempdir().unwrap();
        save_hf_in_shards(&config().init(&device), dir.path(), 4000).unwrap();
        let contents = || {
            let files = std::fs::read_dir(dir.path()).unwrap();
            let files = files.map(|file| file.unwrap().path());
            files
                .map(|path| (std::fs::read(&path).unwrap(), path))
                .collect::<BTreeSet<_>>()
        };
        let before = contents();
        let mut other = config().init(&device);
        // In the last of the shards.
        let last = "output.weight".to_owned();
        let broken = vec![f32::NAN; 50 * 16];
        load_tensors(&mut other, &[last], |_| {
            Ok(TensorData::new(broken.clone(), [50, 16]))
        })
        .unwrap();
        let error = save_hf_in_shards(&other, dir.path(), 4000).unwrap_err();
        assert!(error.to_string().contains("`lm_head.weight`"), "{error}");
        assert!(contents() == before, "the folder has changed");
    }

    #[test]
    fn an_index_tells_the_size_of_the_model() {
        let model = config().init(&Device::default());
        let dir = tempfile::tempdir().unwrap();
        save_hf_in_shards(&model, dir.path(), 4000).unwrap();
        let index = read_text(&dir.path().join(INDEX_FILE)).unwrap();
        let index: Value = serde_json::from_str(&index).unwrap();
        let values = state_dict(&model);
        let total: usize = values.values().map(|value| value.num_elements()).sum();
        let metadata = serde_json::json!({"total_parameters": total, "total_size": 4 * total});
        assert_eq!(index["metadata"], metadata);
    }

    /// As in transformers 5.
    #[test]
    fn a_generation_config_decides_what_ends_a_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(GENERATION_FILE);
        let mut model = config().init(&Device::default());
        model.config.eos_token_ids = vec![2];
        save_hf(&model, dir.path()).unwrap();
        let ends = || read_hf_config(dir.path()).map(|config| config.eos_token_ids);
        assert_eq!(ends().unwrap(), [2]);
        for (text, expected) in [
            (r#"{"eos_token_id": 7}"#, &[7][..]),
            (r#"{"eos_token_id": [7, 2], "temperature": 0.6}"#, &[7, 2]),
            (r#"{"temperature": 0.6}"#, &[]),
            (r#"{"eos_token_id": null}"#, &[]),
            (r#"{"eos_token_id": -1}"#, &[]),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(ends().unwrap(), expected, "{text}");
        }
        for text in ["{", "[]", r#"{"eos_token_id": "</s>"}"#] {
            std::fs::write(&path, text).unwrap();
            let error = ends().unwrap_err().to_string();
            assert!(error.contains(GENERATION_FILE), "{error}");
        }
    }

    #[test]
    fn a_model_saved_over_another_ends_a_text_as_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(GENERATION_FILE);
        let mut model = config().init(&Device::default());
        for ends in [vec![7], vec![], vec![2, 7]] {
            std::fs::write(&path, r#"{"eos_token_id": 5, "temperature": 0.6}"#).unwrap();
            model.config.eos_token_ids = ends;
            save_hf(&model, dir.path()).unwrap();
            assert_eq!(read_hf_config(dir.path()).unwrap(), model.config);
            let kept: Value = serde_json::from_str(&read_text(&path).unwrap()).unwrap();
            assert_eq!(kept["temperature"], 0.6);
        }
    }

    #[test]
    fn what_ends_a_text_is_added_to_a_generation_config() {
        let [from, to] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let file = |dir: &tempfile::TempDir| dir.path().join(GENERATION_FILE);
        let copied = |eos: Value, of_model: &[u32]| {
            let theirs = serde_json::json!({ "temperature": 0.6, "eos_token_id": eos });
            std::fs::write(file(&from), theirs.to_string()).unwrap();
            let mut model = config().init(&Device::default());
            model.config.eos_token_ids = of_model.to_vec();
            save_hf(&model, to.path()).unwrap();
            copy_generation_config(&from, &to).unwrap();
            let copy: Value = serde_json::from_str(&read_text(&file(&to)).unwrap()).unwrap();
            assert_eq!(copy["temperature"], 0.6);
            copy["eos_token_id"].clone()
        };
        assert_eq!(copied(2.into(), &[2]), 2);
        assert_eq!(copied(2.into(), &[2, 7]), serde_json::json!([2, 7]));
        assert_eq!(
            copied([4, 5].to_vec().into(), &[7]),
            serde_json::json!([4, 5, 7])
        );
        assert_eq!(copied(Value::Null, &[7]), 7);
        assert_eq!(copied(Value::Null, &[]), Value::Null);

        std::fs::write(file(&from), "{").unwrap();
        let error = copy_generation_config(&from, &to).unwrap_err().to_string();
        assert!(error.contains(GENERATION_FILE), "{error}");
        std::fs::remove_file(file(&from)).unwrap();
        copy_generation_config(&from, &to).unwrap();
    }

    #[test]
    fn the_shards_of_an_earlier_save_go() {
        let model = config().init(&Device::default());
        let dir = tempfile::tempdir().unwrap();
        let others = [
            "model-1-of-2.safetensors",
            "model-00001-of-00002.safetensors.bak",
        ];
        for other in others {
            std::fs::write(dir.path().join(other), "").unwrap();
        }
        let shards = || {
            let names = std::fs::read_dir(dir.path()).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.contains("-of-")).count() - others.len()
        };
        save_hf_in_shards(&model, dir.path(), 4000).unwrap();
        let many = shards();
        save_hf_in_shards(&model, dir.path(), 8000).unwrap();
        assert!(1 < shards() && shards() < many);
        save_hf(&model, dir.path()).unwrap();
        assert_eq!(shards(), 0);
        assert!(others.iter().all(|other| dir.path().join(other).exists()));
    }
}
