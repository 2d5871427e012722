//! Meta's own checkpoints of Llama:
//!
//! ```text
//! Llama-2-70b/
//!   params.json            sizes
//!   consolidated.00.pth    weights, or what the first of several model-parallel processes has of them
//!   consolidated.01.pth    ...
//!   tokenizer.model        SentencePiece of Llama 1 and 2, tiktoken's words of Llama 3
//! ```

mod config;
mod file;
mod files;
mod names;
mod params;
mod weights;

use std::path::Path;

pub(super) use self::files::{PARAMS, is_meta, weight_files};
pub(super) use self::weights::MetaWeights;
use super::base::load_base;
use crate::Result;
use crate::adapter::LoadReport;
use crate::llama::{LlamaConfig, TransformerDecoder};
use crate::weight::BaseFormat;

/// Reads the sizes of a model from a folder as Meta releases it: from its `params.json`, and from the shapes of its
/// tensors what that does not say.
///
/// The file does not say the longest sequence and the factor of a scaled rotary embedding. Fields `max_seq_len` and
/// `rope_scaling_factor` do, where they are added; else they are those of the release that the rest tells:
///
/// | `params.json` | `max_seq_len` |
/// |---|---|
/// | `use_scaled_rope` (Llama 3.1, 3.2, 3.3) | 131072; the factor is 32 below a `dim` of 4096 (3.2 1B, 3B), else 8 |
/// | `rope_theta` 500000 (Llama 3) | 8192 |
/// | `rope_theta` 1000000 (Code Llama) | 16384 |
/// | `norm_eps` below 1e-5 (Llama 1, but the 65B) | 2048 |
/// | else (Llama 2) | 4096 |
///
/// Tokens that begin and end a text are those of the `tokenizer.model` beside it, none if there is none. A Llama 3 ends
/// by `<|end_of_text|>`, `<|eom_id|>` or `<|eot_id|>`: base and chat models are not told apart.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) if a file cannot be read; [`Error::Format`](crate::Error::Format) if one is missing
/// or damaged, if `params.json` and the tensors disagree, or describe a model that is not computed here.
pub fn read_meta_config(dir: impl AsRef<Path>) -> Result<LlamaConfig> {
    config::config_of(&MetaWeights::open(dir.as_ref())?)
}

/// Loads the weights of a folder as Meta releases it into a model of its sizes ([`read_meta_config`]), with or without
/// adapters, in the type that they are stored in. The parts that several `consolidated.NN.pth` have of a weight are put
/// together, and rows of q and k in this crate's order, without a change of a number. Weights are read one after the
/// other; nothing of a file is run as Python would run it.
///
/// ```no_run
/// use burn::tensor::Device;
/// use burn_peft::checkpoint::{load_meta, read_meta_config};
/// # fn main() -> burn_peft::Result<()> {
///
/// let mut model = read_meta_config("Llama-2-7b")?.init(&Device::default());
/// load_meta(&mut model, "Llama-2-7b")?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) if a file cannot be read; [`Error::Format`](crate::Error::Format) if one is missing,
/// damaged, no file of `torch.save`, or does not go with the others; [`Error::Keys`](crate::Error::Keys),
/// [`Error::Shape`](crate::Error::Shape) or [`Error::DType`](crate::Error::DType) if its weights are not the model's.
/// The model is unchanged then; only of damaged numbers, which are noticed when they are read, weights may have been
/// loaded before.
pub fn load_meta(model: &mut TransformerDecoder, dir: impl AsRef<Path>) -> Result<LoadReport> {
    load_base(model, &MetaWeights::open(dir.as_ref())?, None)
}

/// [`load_meta`], with every weight brought to a type or packed in fewer bits
/// ([`Quantization`](crate::weight::Quantization)) as it is read.
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if a type is not f32, f16 or bf16, the device cannot compute
/// in it, or blocks do not divide the input of a layer, and those of [`load_meta`].
pub fn load_meta_as(
    model: &mut TransformerDecoder,
    dir: impl AsRef<Path>,
    format: impl Into<BaseFormat>,
) -> Result<LoadReport> {
    let weights = MetaWeights::open(dir.as_ref())?;
    load_base(model, &weights, Some(format.into()))
}
