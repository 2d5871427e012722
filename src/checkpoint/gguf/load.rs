//! The weights of a GGUF file in a model.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::tensor::{DType, TensorData};

use super::names::to_gguf;
use super::weights::GgufTensor;
use crate::adapter::LoadReport;
use crate::checkpoint::base::{BaseWeights, load_base};
use crate::checkpoint::tensors::encode;
use crate::gguf::{GgufFile, TensorKind};
use crate::llama::{LlamaConfig, TransformerDecoder};
use crate::quantization::{BlockFormat, PackedLayout, assemble_gguf, dequantize};
use crate::weight::{BaseFormat, packed_words};
use crate::{Error, Result};

/// Loads the weights of a GGUF file into a model of its sizes ([`read_gguf_config`](super::read_gguf_config)), with or
/// without adapters. Packed weights stay as they are in the file, to the bit: adapters are trained on the very file that
/// llama.cpp runs. The others have the type that they are stored in.
///
/// ```no_run
/// use burn::tensor::Device;
/// use burn_peft::checkpoint::{load_gguf, read_gguf_config};
/// # fn main() -> burn_peft::Result<()> {
///
/// let path = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// let mut model = read_gguf_config(path)?.init(&Device::default());
/// load_gguf(&mut model, path)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Format`] if it is truncated or damaged, or holds kinds of blocks
/// that are not known here; [`Error::Keys`] or [`Error::Shape`] if its weights are not the model's. The model is unchanged
/// then.
pub fn load_gguf(model: &mut TransformerDecoder, path: impl AsRef<Path>) -> Result<LoadReport> {
    load(model, path.as_ref(), None)
}

/// [`load_gguf`], with packed weights decoded to a type of float, or kept as they are and linear layers that are dense in
/// the file packed as well ([`Quantization`](crate::weight::Quantization)). [`BaseFormat::with_kept_packing`] brings to a
/// type what is not packed, and no more.
///
/// # Errors
/// [`Error::InvalidArgument`] if a type is not f32, f16 or bf16, the device cannot compute in it, or blocks do not
/// divide the input of a layer, and those of [`load_gguf`].
pub fn load_gguf_as(
    model: &mut TransformerDecoder,
    path: impl AsRef<Path>,
    format: impl Into<BaseFormat>,
) -> Result<LoadReport> {
    load(model, path.as_ref(), Some(format.into()))
}

fn load(
    model: &mut TransformerDecoder,
    path: &Path,
    format: Option<BaseFormat>,
) -> Result<LoadReport> {
    let file = GgufFile::open(path)?;
    let weights = GgufWeights::of(&file, &model.config)?;
    load_base(model, &weights, format)
}

/// How the weights of a GGUF file are packed, by this crate's keys. No weight is read.
///
/// # Errors
/// Those of [`load_gguf`] that are the file's.
pub(in crate::checkpoint) fn gguf_packing(path: &Path) -> Result<HashMap<String, PackedLayout>> {
    let file = GgufFile::open(path)?;
    let config = file.config()?;
    Ok(GgufWeights::of(&file, &config)?.packed)
}

/// The weights of a file.
pub(in crate::checkpoint) struct GgufWeights<'a> {
    file: &'a GgufFile,
    tensors: BTreeMap<String, GgufTensor<'a>>,
    packed: HashMap<String, PackedLayout>,
}

impl<'a> GgufWeights<'a> {
    pub(in crate::checkpoint) fn of(file: &'a GgufFile, config: &LlamaConfig) -> Result<Self> {
        let tensors = file.tensors(config)?.into_iter();
        let tensors: BTreeMap<_, _> = tensors.map(|t| (t.key().to_owned(), t)).collect();
        let mut packed = HashMap::new();
        for (key, tensor) in &tensors {
            let Some(format) = block_format(tensor.kind()) else {
                continue;
            };
            let [rows, columns] = *tensor.shape() else {
                let message = format!(
                    "the tensor `{}` is no matrix, but packed in blocks",
                    tensor.name()
                );
                return Err(Error::format(file.path(), message));
            };
            let layout = PackedLayout::new(format, [rows, columns])
                .map_err(|error| Self::at(file, tensor, error))?;
            packed.insert(key.clone(), layout);
        }
        Ok(Self {
            file,
            tensors,
            packed,
        })
    }

    fn at(file: &GgufFile, tensor: &GgufTensor, error: Error) -> Error {
        Error::format(
            file.path(),
            format!("the tensor `{}`: {error}", tensor.name()),
        )
    }

    fn packed_bytes(&self, key: &str) -> Result<Vec<u8>> {
        let tensor = &self.tensors[key];
        let bytes = assemble_gguf(self.packed[key], &tensor.bytes())
            .map_err(|error| Self::at(self.file, tensor, error))?;
        tensor.release();
        Ok(bytes)
    }
}

impl BaseWeights for GgufWeights<'_> {
    fn origin(&self) -> String {
        self.file.path().display().to_string()
    }

    fn shapes(&self) -> Vec<(&str, &[usize])> {
        let tensors = self.tensors.iter();
        tensors
            .map(|(key, tensor)| (key.as_str(), tensor.shape()))
            .collect()
    }

    fn packed(&self) -> HashMap<String, PackedLayout> {
        self.packed.clone()
    }

    fn own_name(&self, key: &str) -> Option<String> {
        let (module, parameter) = key.rsplit_once('.')?;
        Some(format!("{}.{parameter}", to_gguf(module)?))
    }

    fn locate(&self, error: Error) -> Error {
        let Error::Shape { key, .. } = &error else {
            return error;
        };
        let name = self.tensors[key].name().to_owned();
        error.with_key(&name).in_file(self.file.path())
    }

    fn read(&self, key: &str, target: &dyn Fn(DType) -> DType) -> Result<TensorData> {
        let tensor = &self.tensors[key];
        if let Some(stored) = tensor.kind().float() {
            let value = tensor.read(target(stored)).expect("a type of float");
            tensor.release();
            return Ok(value);
        }
        let values = dequantize(self.packed[key], &self.packed_bytes(key)?);
        let shape = tensor.shape().to_vec();
        Ok(encode(values.into_iter(), shape, target(DType::F32)))
    }

    fn read_words(&self, key: &str) -> Result<TensorData> {
        Ok(packed_words(&self.packed_bytes(key)?))
    }
}

/// The kinds that are packed, and how their blocks are decoded.
const PACKED: [(TensorKind, BlockFormat); 8] = [
    (TensorKind::Q8_0, BlockFormat::Q8_0),
    (TensorKind::Q4_0, BlockFormat::Q4_0),
    (TensorKind::Q4_1, BlockFormat::Q4_1),
    (TensorKind::Q5_0, BlockFormat::Q5_0),
    (TensorKind::Q5_1, BlockFormat::Q5_1),
    (TensorKind::Q4_K, BlockFormat::Q4K),
    (TensorKind::Q5_K, BlockFormat::Q5K),
    (TensorKind::Q6_K, BlockFormat::Q6K),
];

/// How the blocks of a kind are decoded; none if its numbers are not packed.
pub(super) fn block_format(kind: TensorKind) -> Option<BlockFormat> {
    let row = PACKED.iter().find(|(other, _)| *other == kind);
    row.map(|(_, format)| *format)
}

/// The kind that has such blocks.
pub(super) fn kind_of(format: BlockFormat) -> Option<TensorKind> {
    let row = PACKED.iter().find(|(_, other)| *other == format);
    row.map(|(kind, _)| *kind)
}
