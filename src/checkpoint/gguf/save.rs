//! Writing a model as a file for llama.cpp, one tensor after the other.

use std::path::Path;
use std::rc::Rc;

use burn::tensor::{DType, TensorData};
use indexmap::IndexMap;

use super::architectures::Architecture;
use super::describe::{metadata, require_told};
use super::load::{block_format, kind_of};
use super::names::{is_norm, is_rotated, to_gguf, up_of_experts};
use super::scaling::scaling_tensors;
use crate::adapter::{StateReader, state_readers};
use crate::checkpoint::hf::require_places;
use crate::checkpoint::keys::{EMBEDDING, OUTPUT};
use crate::checkpoint::merged::{MergedCheckpoint, merged_readers};
use crate::checkpoint::rotary::interleaved;
use crate::checkpoint::tensors::{all_finite, encode};
use crate::gguf::{Tensor, TensorKind, write_gguf};
use crate::llama::names::expert_of;
use crate::llama::{LlamaConfig, TransformerDecoder};
use crate::quantization::{PackedLayout, quantize};
use crate::tokenizer::gguf_vocabulary;
use crate::weight::PackedWeight;
use crate::{Error, Result};

/// What gives a token its experts.
const ROUTER: &str = ".moe.gate.weight";

/// How the matrices of a model are stored in a GGUF file. Norms, biases and routers are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(
    non_camel_case_types,
    reason = "the names that all programs have for them"
)]
#[non_exhaustive]
pub enum GgufFormat {
    /// f32.
    F32,
    /// f16.
    F16,
    /// bf16.
    BF16,
    /// Eight bits in blocks of 32: 8.5 bits a number.
    Q8_0,
    /// Four bits in blocks of 32: 4.5 bits a number. The embedding and the output are Q8_0.
    Q4_0,
}

impl GgufFormat {
    /// All formats.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::BF16, Self::Q8_0, Self::Q4_0];

    /// The kind of a weight of this shape. Rows that the blocks do not divide are f16.
    fn kind(self, key: &str, shape: &[usize]) -> TensorKind {
        let [_, columns] = *shape else {
            return TensorKind::F32;
        };
        let is_vocabulary = [EMBEDDING, OUTPUT].contains(&key);
        let kind = match self {
            // As llama.cpp's converter has it: it is small, and what it rounds may send a token to other experts.
            _ if key.ends_with(ROUTER) => TensorKind::F32,
            Self::F32 => TensorKind::F32,
            Self::F16 => TensorKind::F16,
            Self::BF16 => TensorKind::BF16,
            Self::Q4_0 if !is_vocabulary => TensorKind::Q4_0,
            Self::Q8_0 | Self::Q4_0 => TensorKind::Q8_0,
        };
        match columns.is_multiple_of(kind.block_len()) {
            true => kind,
            false => TensorKind::F16,
        }
    }

    /// The number that stands for it in `general.file_type`.
    fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::BF16 => 32,
        }
    }
}

impl std::fmt::Display for GgufFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::str::FromStr for GgufFormat {
    type Err = Error;

    /// Reads the name of a format, in capitals or not.
    fn from_str(name: &str) -> Result<Self> {
        let is_named = |format: &Self| format.to_string().eq_ignore_ascii_case(name);
        Self::ALL.into_iter().find(is_named).ok_or_else(|| {
            let all = Self::ALL.map(|format| format.to_string()).join(", ");
            invalid("format", format!("`{name}` is not one of {all}"))
        })
    }
}

/// Writes a model without adapters as one GGUF file that llama.cpp runs, with its tokenizer. Weights that are packed in
/// GGUF's blocks already stay as they are, to the bit; all others get the format. Merge or remove adapters first.
///
/// The architecture is that of the model's family, see [`read_gguf_config`](super::read_gguf_config). What is
/// written is what that reads: a model of which the file would say something else, or that llama.cpp would not
/// compute, is refused.
///
/// `tokenizer` is a folder, a tokenizer's file or a GGUF file, as [`Tokenizer::from_file`](crate::tokenizer::Tokenizer)
/// takes it; the special tokens and the chat template beside it are written too.
///
/// ```no_run
/// use burn_peft::checkpoint::{GgufFormat, save_gguf};
/// # fn saved(model: burn_peft::llama::TransformerDecoder) -> burn_peft::Result<()> {
///
/// let merged = model.merge_lora();
/// save_gguf(&merged, "SmolLM2-135M-Instruct", GgufFormat::Q8_0, "merged.gguf")?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, [`Error::Format`] if the tokenizer is of a kind that llama.cpp
/// does not have or has another number of tokens than the model, [`Error::InvalidArgument`] naming the field if
/// such a file cannot say what the model is, or if a weight holds NaN or infinite numbers, or ones too large for
/// the format, or a merged adapter has brought a bias that such files have no place for.
/// What stood at `path` stays then.
///
/// # Panics
/// If the model holds an adapter.
pub fn save_gguf(
    model: &TransformerDecoder,
    tokenizer: impl AsRef<Path>,
    format: GgufFormat,
    path: impl AsRef<Path>,
) -> Result<()> {
    let readers = state_readers(model);
    assert!(
        readers.iter().all(|reader| !reader.is_adapter()),
        "the model holds an adapter: save it by `save_merged_gguf`, or the adapter by `save_gguf_adapter`"
    );
    let config = &model.config;
    save_readers(readers, config, tokenizer.as_ref(), format, path.as_ref())
}

/// Writes a model with its adapters merged, as [`save_gguf`] writes [`TransformerDecoder::merge_lora`]. Each weight is
/// merged when it is written, so the merged model is never held.
///
/// # Errors
/// Those of [`save_gguf`].
pub fn save_merged_gguf(
    model: &TransformerDecoder,
    tokenizer: impl AsRef<Path>,
    format: GgufFormat,
    path: impl AsRef<Path>,
) -> Result<()> {
    let (readers, config) = (merged_readers(model)?, model.merged_config());
    save_readers(readers, &config, tokenizer.as_ref(), format, path.as_ref())
}

fn save_readers(
    readers: Vec<StateReader>,
    config: &LlamaConfig,
    tokenizer: &Path,
    format: GgufFormat,
    path: &Path,
) -> Result<()> {
    require_places(config, &readers)?;
    let weights: Vec<_> = readers.iter().map(Weight::of_reader).collect();
    save(config, &weights, tokenizer, format, path)
}

impl MergedCheckpoint {
    /// Writes the merged model as one GGUF file, tensor by tensor, see [`save_gguf`]. The tokenizer is that of the
    /// base's folder.
    ///
    /// # Errors
    /// Those of [`save_gguf`] and of reading the base.
    pub fn save_gguf(&self, format: GgufFormat, path: impl AsRef<Path>) -> Result<()> {
        let tensors = self.tensors();
        let weights = tensors.iter().map(|tensor| Weight {
            key: &tensor.key,
            shape: &tensor.shape,
            packed: None,
            read: Box::new(|| tensor.read()),
        });
        let weights: Vec<_> = weights.collect();
        save(&self.config(), &weights, self.dir(), format, path.as_ref())
    }
}

/// A weight of a model, read when its turn comes.
struct Weight<'a> {
    key: &'a str,
    shape: &'a [usize],
    packed: Option<&'a PackedWeight>,
    read: Box<dyn Fn() -> Result<TensorData> + 'a>,
}

impl<'a> Weight<'a> {
    fn of_reader(reader: &'a StateReader) -> Self {
        Self {
            key: &reader.key,
            shape: &reader.shape,
            packed: reader.packed(),
            read: Box::new(|| Ok(reader.read())),
        }
    }

    /// The kind whose blocks it has already.
    fn own_kind(&self) -> Option<TensorKind> {
        kind_of(self.packed?.layout().format())
    }

    /// As it stands in a file.
    fn to_tensor(
        &'a self,
        format: GgufFormat,
        config: &LlamaConfig,
        architecture: &Architecture,
    ) -> Tensor<'a> {
        let own = self.own_kind();
        let kind = own.unwrap_or_else(|| format.kind(self.key, self.shape));
        let is_turned = architecture.rotates_neighbours && is_rotated(self.key);
        let (rows, head_dim) = (self.shape[0], config.head_dim);
        let has_unit_offset = config.block.unit_offset && is_norm(self.key);
        let bytes = move || {
            let bytes = match has_unit_offset {
                true => encoded(self.key, plus_one((self.read)()?), kind)?,
                false => self.bytes_of(kind)?,
            };
            Ok(match is_turned {
                true => interleaved(&bytes, bytes.len() / rows, head_dim),
                false => bytes,
            })
        };
        Tensor {
            name: self.name(),
            shape: self.shape.to_vec(),
            kind,
            bytes: Box::new(bytes),
        }
    }

    /// The name in a file; of an expert's weight that of what all have of it.
    fn name(&self) -> String {
        let (module, parameter) = self.key.rsplit_once('.').expect("a parameter has a module");
        let name = to_gguf(module).expect("a module of the model has a name");
        format!("{name}.{parameter}")
    }

    /// The numbers in a kind, in this crate's order.
    fn bytes_of(&self, kind: TensorKind) -> Result<Vec<u8>> {
        let mut bytes = match self.packed {
            Some(packed) if self.own_kind() == Some(kind) => packed.bytes(),
            _ => encoded(self.key, (self.read)()?, kind)?,
        };
        let numbers: usize = self.shape.iter().product();
        // Packed weights end with bytes that fill up a word.
        bytes.truncate(numbers / kind.block_len() * kind.block_bytes());
        Ok(bytes)
    }
}

/// What all experts of a layer have of a weight, in their order, as it stands in a file: one tensor, or two of
/// gate and up. They keep their blocks if all have the same.
fn expert_tensors<'a>(experts: Vec<&'a Weight<'a>>, format: GgufFormat) -> Vec<Tensor<'a>> {
    let first = experts[0];
    let [rows, columns] = first.shape[..] else {
        unreachable!("an expert's weight is a matrix");
    };
    let own = first.own_kind();
    let own = own.filter(|kind| {
        experts
            .iter()
            .all(|weight| weight.own_kind() == Some(*kind))
    });
    let kind = own.unwrap_or_else(|| format.kind(first.key, first.shape));
    let gate = first.name();
    let names: Vec<_> = match up_of_experts(&gate) {
        Some(up) => vec![gate, up],
        None => vec![gate],
    };
    let (parts, experts) = (names.len(), Rc::new(experts));
    let tensor = |(part, name): (usize, String)| {
        let experts = experts.clone();
        let shape = vec![experts.len(), rows / parts, columns];
        let bytes = move || {
            let mut all = Vec::new();
            for weight in &*experts {
                let bytes = weight.bytes_of(kind)?;
                let len = bytes.len() / parts;
                all.extend(&bytes[part * len..(part + 1) * len]);
            }
            Ok(all)
        };
        let bytes = Box::new(bytes);
        Tensor {
            name,
            shape,
            kind,
            bytes,
        }
    };
    names.into_iter().enumerate().map(tensor).collect()
}

/// All weights as they stand in a file.
fn weight_tensors<'a>(
    weights: &'a [Weight<'a>],
    format: GgufFormat,
    config: &LlamaConfig,
    architecture: &Architecture,
) -> Vec<Tensor<'a>> {
    let mut tensors = Vec::new();
    let mut experts: IndexMap<String, Vec<(usize, &Weight)>> = IndexMap::new();
    for weight in weights {
        let module = weight.key.rsplit_once('.').map(|(module, _)| module);
        match module.and_then(expert_of) {
            Some((all, index)) => experts.entry(all).or_default().push((index, weight)),
            None => tensors.push(weight.to_tensor(format, config, architecture)),
        }
    }
    for mut of_all in experts.into_values() {
        of_all.sort_by_key(|(index, _)| *index);
        let of_all = of_all.into_iter().map(|(_, weight)| weight).collect();
        tensors.extend(expert_tensors(of_all, format));
    }
    tensors
}

/// What a norm multiplies by whose weight this is beside 1, in f32.
fn plus_one(weight: TensorData) -> TensorData {
    let weight = weight.convert_dtype(DType::F32);
    let sums: Vec<f32> = weight.iter().map(|w: f32| w + 1.0).collect();
    TensorData::new(sums, weight.shape().to_vec())
}

/// Numbers of any type of float in a kind.
fn encoded(key: &str, data: TensorData, kind: TensorKind) -> Result<Vec<u8>> {
    let refused = |message: String| invalid("model", format!("`{key}` {message}"));
    let shape = data.shape().to_vec();
    let Some(format) = block_format(kind) else {
        let dtype = kind.float().expect("a kind that is not packed");
        let data = encode(data.convert_dtype(DType::F32).iter(), shape, dtype);
        return match all_finite(dtype, data.as_bytes()) {
            true => Ok(data.as_bytes().to_vec()),
            false => Err(refused(format!(
                "holds numbers that are NaN or infinite in {kind:?}"
            ))),
        };
    };
    let data = data.convert_dtype(DType::F32);
    let layout = PackedLayout::new(format, [shape[0], shape[1]])?;
    let values = data.as_slice::<f32>().expect("values of f32");
    quantize(values, layout).map_err(|error| refused(format!("as {kind:?}: {error}")))
}

fn save(
    config: &LlamaConfig,
    weights: &[Weight],
    tokenizer: &Path,
    format: GgufFormat,
    path: &Path,
) -> Result<()> {
    let refused = |message: String| invalid("model", message);
    let architecture = Architecture::of(config).map_err(refused)?;
    let mut metadata = metadata(architecture, config, format.file_type());
    metadata.extend(gguf_vocabulary(tokenizer, config)?);
    let factors = scaling_tensors(config);
    let factors = factors.iter();
    let factors = factors.map(|(name, factors)| Tensor::of_f32((*name).to_owned(), factors));
    let weights = weight_tensors(weights, format, config, architecture);
    let tensors: Vec<_> = factors.chain(weights).collect();
    require_told(config, architecture, &metadata, &tensors).map_err(refused)?;
    write_gguf(path, &metadata, &tensors)
}

fn invalid(name: &'static str, message: String) -> Error {
    Error::InvalidArgument { name, message }
}
