//! Merging an adapter into the checkpoint that it is for, one tensor after the other: neither the checkpoint nor the
//! merged model is ever held.
//!
//! ```text
//! base/model-00001-of-00002.safetensors ─ W ─┐
//!                                            ├─ W + s·B·A ─> merged/model-00001-of-00002.safetensors
//! adapter/adapter_model.safetensors ─ A, B ──┘
//! ```

mod folder;
mod layers;
mod loaded;

use std::path::Path;

use burn::tensor::{DType, Device, TensorData};

use self::layers::Layer;
pub(super) use self::loaded::merged_readers;
pub use self::loaded::save_merged_hf;
use super::base::compare_base;
use super::hf::{HfFolder, read_hf_config};
use super::keys::{EMBEDDING, OUTPUT};
use super::peft::{attach_peft, read_peft_config};
use crate::Result;
use crate::adapter::{load_tensors, state_readers};
use crate::llama::{LlamaConfig, Output, TransformerDecoder};

/// A Hugging Face folder with an adapter that is to be merged into it: what the adapter was trained on in fewer bits, or
/// what it was trained on itself.
///
/// Weights are read, merged and written one after the other: at any time there is one of them, its update and a few
/// copies in f32. The result is that of [`TransformerDecoder::merge_lora`] on the loaded folder, in the type that each
/// weight has there; a folder that bitsandbytes packed becomes a dense one.
///
/// ```no_run
/// use burn_peft::checkpoint::MergedCheckpoint;
/// # fn main() -> burn_peft::Result<()> {
///
/// MergedCheckpoint::open("Llama-2-7b-hf", "adapter")?.save_hf("merged")?;
/// # Ok(())
/// # }
/// ```
pub struct MergedCheckpoint {
    folder: HfFolder,
    /// The adapters. Its base is not used, but for what came with an adapter.
    model: TransformerDecoder,
    layers: Vec<Layer>,
}

impl MergedCheckpoint {
    /// A folder and an adapter of PEFT's. Only the adapter is loaded, and the embedding and output where the adapter
    /// changes the size of the vocabulary or has their weights beside it.
    ///
    /// # Errors
    /// Those of [`read_hf_config`], [`attach_peft`] and [`Self::new`].
    pub fn open(base: impl AsRef<Path>, adapter: impl AsRef<Path>) -> Result<Self> {
        let (base, adapter) = (base.as_ref(), adapter.as_ref());
        let mut model = read_hf_config(base)?.init(&Device::default());
        if read_peft_config(adapter)?.vocab_size.is_some() {
            load_vocabulary(&mut model, base)?;
        }
        attach_peft(&mut model, adapter)?;
        Self::new(&model, base)
    }

    /// A folder and the adapters that act on a model, whose own base, packed in fewer bits say, is not looked at.
    ///
    /// An adapter that was begun by LoftQ ([`initialize_loftq`](crate::adapter::initialize_loftq)) belongs to the
    /// quantized numbers: what it makes up for is no error of this folder.
    ///
    /// # Errors
    /// [`Error::Keys`](crate::Error::Keys) or [`Error::Shape`](crate::Error::Shape) if the folder's weights are not the
    /// model's, [`Error::InvalidArgument`](crate::Error::InvalidArgument) if an adapter has brought a bias that the files
    /// of such a model have no place for, and those of [`load_hf`](super::load_hf).
    pub fn new(model: &TransformerDecoder, base: impl AsRef<Path>) -> Result<Self> {
        let folder = HfFolder::open(base.as_ref(), &model.config)?;
        compare_base(model, &folder)?;
        let layers = layers::of(model);
        layers::require_places(&layers)?;
        Ok(Self {
            folder,
            model: model.clone(),
            layers,
        })
    }

    /// The sizes of the merged model.
    pub fn config(&self) -> LlamaConfig {
        self.model.merged_config()
    }

    /// The base's folder.
    pub(super) fn dir(&self) -> &Path {
        self.folder.dir()
    }

    /// The weights of the merged model, none of them read.
    pub(super) fn tensors(&self) -> Vec<MergedTensor<'_>> {
        let layers = self.layers.iter();
        layers.flat_map(|layer| layer.tensors(self)).collect()
    }

    /// The merged model's key of a name in the files. An output that is the embedding is called so.
    fn key_of(&self, key: &str) -> String {
        match key == OUTPUT && self.config().tie_embeddings {
            true => EMBEDDING.to_owned(),
            false => key.to_owned(),
        }
    }

    /// A weight of the base in the type that it is stored in, or f32 where the device does not compute in that.
    fn base_value(&self, key: &str) -> Result<TensorData> {
        if self.is_own(key) {
            let readers = state_readers(&self.model);
            let reader = readers.into_iter().find(|reader| reader.key == key);
            return Ok(reader.expect("a weight of the model").read());
        }
        let device = self.device();
        let computed = |stored| match device.supports_dtype(stored) {
            true => stored,
            false => DType::F32,
        };
        self.folder.weights().read(key, computed)
    }

    /// Whether a base weight came with an adapter.
    fn is_own(&self, key: &str) -> bool {
        self.model.changed_base.contains(key)
    }

    fn device(&self) -> Device {
        self.model.norm.weight.lazy_device()
    }
}

/// A weight of a merged model, which is formed when it is read.
#[derive(Clone)]
pub(super) struct MergedTensor<'a> {
    pub key: String,
    pub shape: Vec<usize>,
    /// The type of the weight in the folder.
    pub dtype: DType,
    /// The key of the base's weight; that of the embedding for an output that has become one of its own.
    base_key: String,
    layer: &'a Layer,
    checkpoint: &'a MergedCheckpoint,
}

impl MergedTensor<'_> {
    /// Whether it differs from what the folder has under this name.
    pub fn is_changed(&self) -> bool {
        self.layer.changes(&self.key)
            || self.base_key != self.key
            || self.checkpoint.is_own(&self.base_key)
            || self.checkpoint.folder.weights().is_packed(&self.base_key)
    }

    /// The file that the base's weight lies in.
    fn file(&self) -> &Path {
        self.checkpoint.folder.weights().file(&self.base_key)
    }

    /// Reads the base's weight and merges into it.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read(&self) -> Result<TensorData> {
        let base = self.checkpoint.base_value(&self.base_key)?;
        let device = self.checkpoint.device();
        let merged = self.layer.merged(&self.key, base, &device);
        Ok(merged.convert_dtype(self.dtype))
    }
}

/// Checks that the files of a merged model have a place for all that the adapters of a model bring.
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if an adapter brings a bias of B (`lora_bias`) to a layer that
/// has none in such files.
pub fn check_merge(model: &TransformerDecoder) -> Result<()> {
    layers::require_places(&layers::of(model))
}

/// Loads the embedding and the output, as they are stored.
fn load_vocabulary(model: &mut TransformerDecoder, base: &Path) -> Result<()> {
    let is_tied = matches!(model.output, Output::Tied(_));
    let folder = HfFolder::open(base, &model.config)?;
    compare_base(model, &folder)?;
    let keys = [EMBEDDING, OUTPUT]
        .into_iter()
        .take(2 - usize::from(is_tied));
    let keys: Vec<String> = keys.map(str::to_owned).collect();
    let device = model.norm.weight.lazy_device();
    load_tensors(model, &keys, |key| {
        folder
            .weights()
            .read(key, |stored| match device.supports_dtype(stored) {
                true => stored,
                false => DType::F32,
            })
    })
}
