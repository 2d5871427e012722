//! LoftQ's first values from the files that a packed base was quantized from.

use std::path::Path;

use burn::tensor::{DType, TensorData};

use super::any_base::BaseKind;
use super::base::BaseWeights;
use super::gguf::GgufWeights;
use super::hf::HfFolder;
use super::meta::MetaWeights;
use crate::adapter::initialize_loftq;
use crate::gguf::GgufFile;
use crate::llama::TransformerDecoder;
use crate::lora::Decomposition;
use crate::{Error, Result};

/// [`initialize_loftq`] with the dense weights of a Hugging Face folder, one of Meta's or a `.gguf` file, each read when its turn comes:
/// beside the packed base there is one weight in f32. The packed base may come from the same folder or from another
/// quantization of the same model: a folder of bitsandbytes', a GGUF file.
///
/// ```no_run
/// use burn_peft::checkpoint::{initialize_loftq_from, load_hf_as};
/// use burn_peft::lora::Decomposition;
/// use burn_peft::weight::Quantization;
/// # fn begun(mut model: burn_peft::llama::TransformerDecoder) -> burn_peft::Result<()> {
///
/// load_hf_as(&mut model, "Llama-2-7b-hf", Quantization::Nf4)?;
/// let random = Decomposition::Randomized { iterations: 8, seed: 0 };
/// let model = initialize_loftq_from(model, "Llama-2-7b-hf", 1, random)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Format`] if a weight is packed in these files too, [`Error::Keys`] if they do not have it, [`Error::Shape`] if
/// it has another shape there; those of reading the files, and of [`initialize_loftq`].
pub fn initialize_loftq_from(
    model: TransformerDecoder,
    path: impl AsRef<Path>,
    iterations: usize,
    decomposition: Decomposition,
) -> Result<TransformerDecoder> {
    let path = path.as_ref();
    match BaseKind::of(path) {
        BaseKind::Gguf => {
            let file = GgufFile::open(path)?;
            let weights = GgufWeights::of(&file, &model.config)?;
            begin(model, &weights, path, iterations, decomposition)
        }
        BaseKind::Meta => {
            let weights = MetaWeights::open(path)?;
            begin(model, &weights, path, iterations, decomposition)
        }
        BaseKind::HuggingFace => {
            let weights = HfFolder::open(path, &model.config)?;
            begin(model, &weights, path, iterations, decomposition)
        }
    }
}

fn begin(
    model: TransformerDecoder,
    weights: &impl BaseWeights,
    path: &Path,
    iterations: usize,
    decomposition: Decomposition,
) -> Result<TransformerDecoder> {
    let packed = weights.packed();
    let shapes = weights.shapes().into_iter();
    let keys: Vec<&str> = shapes.map(|(key, _)| key).collect();
    let dense = |key: &str| -> Result<TensorData> {
        let name = weights.own_name(key).unwrap_or_else(|| key.to_owned());
        if packed.contains_key(key) {
            let message = format!(
                "`{name}` is packed here; LoftQ begins with the error of a quantization, for which it needs the dense \
                 weights: name the original folder of the model"
            );
            return Err(Error::format(path, message));
        }
        if !keys.contains(&key) {
            return Err(Error::Keys {
                origin: weights.origin(),
                missing: vec![name],
                unexpected: Vec::new(),
            });
        }
        weights.read(key, &|_| DType::F32)
    };
    let begun = initialize_loftq(model, iterations, decomposition, dense);
    begun.map_err(|error| match error {
        Error::Shape { .. } => weights.locate(error),
        other => other,
    })
}
