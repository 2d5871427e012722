//! Writing a model as a file for llama.cpp, one tensor after the other.

use std::path::Path;

use burn::tensor::{DType, TensorData};

use super::architectures::Architecture;
use super::container::{Tensor, write_gguf};
use super::describe::{metadata, require_told};
use super::kind::TensorKind;
use super::load::{block_format, kind_of};
use super::names::{is_norm, is_rotated, to_gguf};
use super::scaling::scaling_tensors;
use crate::adapter::{StateReader, state_readers};
use crate::checkpoint::keys::{EMBEDDING, OUTPUT};
use crate::checkpoint::merged::MergedCheckpoint;
use crate::checkpoint::rotary::interleaved;
use crate::checkpoint::tensors::{all_finite, encode};
use crate::llama::{LlamaConfig, TransformerDecoder};
use crate::quantization::{PackedLayout, quantize};
use crate::tokenizer::gguf_vocabulary;
use crate::weight::PackedWeight;
use crate::{Error, Result};

/// How the matrices of a model are stored in a GGUF file. Norms and biases are f32.
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
/// [`Error::Io`] if the file cannot be written, [`Error::Format`] if the tokenizer is of a kind that llama.cpp does not
/// have or has another number of tokens than the model, [`Error::InvalidArgument`] if a weight holds NaN or infinite
/// numbers, or ones too large for the format, or a merged adapter has brought a bias that such files have no place for.
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
        "the model holds an adapter: save `model.merge_lora()`, or the adapter by `save_gguf_adapter`"
    );
    crate::checkpoint::hf::require_places(model, &readers)?;
    let weights: Vec<_> = readers.iter().map(Weight::of_reader).collect();
    save(
        &model.config,
        &weights,
        tokenizer.as_ref(),
        format,
        path.as_ref(),
    )
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
            let mut bytes = match self.packed {
                Some(packed) if own.is_some() => packed.bytes(),
                _ if has_unit_offset => encoded(self.key, plus_one((self.read)()?), kind)?,
                _ => encoded(self.key, (self.read)()?, kind)?,
            };
            let numbers: usize = self.shape.iter().product();
            // Packed weights end with bytes that fill up a word.
            bytes.truncate(numbers / kind.block_len() * kind.block_bytes());
            Ok(match is_turned {
                true => interleaved(&bytes, bytes.len() / rows, head_dim),
                false => bytes,
            })
        };
        let (module, parameter) = self.key.rsplit_once('.').expect("a parameter has a module");
        let name = to_gguf(module).expect("a module of the model has a name");
        Tensor {
            name: format!("{name}.{parameter}"),
            shape: self.shape.to_vec(),
            kind,
            bytes: Box::new(bytes),
        }
    }
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
    let weights = weights
        .iter()
        .map(|weight| weight.to_tensor(format, config, architecture));
    let tensors: Vec<_> = factors.chain(weights).collect();
    require_told(config, architecture, &metadata, &tensors).map_err(refused)?;
    write_gguf(path, &metadata, &tensors)
}

fn invalid(name: &'static str, message: String) -> Error {
    Error::InvalidArgument { name, message }
}
