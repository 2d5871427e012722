//! Loading the weights of a base into a model, whatever files they lie in.

use std::collections::HashMap;

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::keys::{EMBEDDING, OUTPUT};
use crate::adapter::{
    LoadReport, ParamInfo, compare_keys, get_params, load_tensors, packed_layouts, require_dtype,
    to_host,
};
use crate::llama::TransformerDecoder;
use crate::quantization::PackedLayout;
use crate::weight::{BaseFormat, with_rows};
use crate::{Error, Result};

/// The weights of a base in files, by this crate's keys.
pub(super) trait BaseWeights {
    /// Where they come from, for messages.
    fn origin(&self) -> String;

    fn shapes(&self) -> Vec<(&str, &[usize])>;

    /// Those that are packed.
    fn packed(&self) -> HashMap<String, PackedLayout>;

    /// The name that a weight has in the files.
    fn own_name(&self, key: &str) -> Option<String>;

    /// An error about a tensor's shape, with what the files call it.
    fn locate(&self, error: Error) -> Error;

    /// Reads a tensor in the type that `target` gives for the stored one, which is f32 for a packed weight.
    fn read(&self, key: &str, target: &dyn Fn(DType) -> DType) -> Result<TensorData>;

    /// The words of a packed weight, as its layout has them.
    fn read_words(&self, key: &str) -> Result<TensorData>;
}

/// Loads a base, in a format or as it is stored.
pub(super) fn load_base(
    model: &mut TransformerDecoder,
    weights: &impl BaseWeights,
    format: Option<BaseFormat>,
) -> Result<LoadReport> {
    let resized = Resized::of(model);
    let report = compare_base(model, weights)?;
    let device = model.norm.weight.lazy_device();
    if let Some(format) = format {
        require_dtype(&device, format.dtype)?;
    }
    // An embedding or output of another size than in the files has rows of its own, and is dense.
    let mut stored = weights.packed();
    stored.retain(|key, layout| !resized.is_resized(key, &layout.shape()));
    let packs_vocabulary = |format: BaseFormat| format.packs_vocabulary && resized.from.is_none();
    let format = format.map(|format| format.with_packed_vocabulary(packs_vocabulary(format)));
    *model = with_room(model.clone(), format, &stored)?;
    let packed = packed_layouts(model);
    let target = |key: &str, stored| match format {
        _ if packed.contains_key(key) => DType::F32,
        Some(format) => format.dtype,
        None if device.supports_dtype(stored) => stored,
        None => DType::F32,
    };
    load_tensors(model, &report.loaded, |key| match packed.get(key) {
        Some(layout) if stored.get(key) == Some(layout) => weights.read_words(key),
        _ => {
            let value = weights.read(key, &|stored| target(key, stored))?;
            Ok(resized.value(key, value))
        }
    })?;
    model.changed_base.clear();
    if model.resized_from.is_some() {
        model.mark_resized();
    }
    Ok(report)
}

/// Compares the keys and shapes of a base in files with those of a model, whose adapters may have asked for another size
/// of the vocabulary. No weight is read.
///
/// # Errors
/// [`Error::Keys`] if a base weight is missing or one of the files is not the model's, [`Error::Shape`].
pub(super) fn compare_base(
    model: &TransformerDecoder,
    weights: &impl BaseWeights,
) -> Result<LoadReport> {
    let resized = Resized::of(model);
    let shapes = weights.shapes().into_iter();
    let shapes: Vec<_> = shapes
        .map(|(key, shape)| (key, resized.shape(key, shape)))
        .collect();
    let shapes = shapes.iter().map(|(key, shape)| (*key, &shape[..]));
    let report =
        compare_keys(model, &weights.origin(), shapes).map_err(|error| weights.locate(error))?;
    require_base(model, weights, &report)?;
    Ok(report)
}

/// The model with room for packed weights: files that have such keep them, unless a type of float is asked for.
fn with_room(
    model: TransformerDecoder,
    format: Option<BaseFormat>,
    stored: &HashMap<String, PackedLayout>,
) -> Result<TransformerDecoder> {
    let as_stored = BaseFormat::new(DType::F32).with_kept_packing(true);
    let format = format.unwrap_or(as_stored);
    let stored = stored.iter();
    let stored = stored.map(|(key, layout)| (key.clone(), layout.format()));
    let kept = stored.filter(|_| format.keeps_packed || format.quantization.is_some());
    model.with_lazy_base(format, kept.collect())
}

/// Brings the embedding and output of the files to the size that an adapter of the model asked for.
struct Resized {
    from: Option<usize>,
    rows: usize,
    device: Device,
}

impl Resized {
    fn of(model: &TransformerDecoder) -> Self {
        Self {
            from: model.resized_from,
            rows: model.config.vocab_size,
            device: model.tok_embeddings.weight.device(),
        }
    }

    fn is_resized(&self, key: &str, shape: &[usize]) -> bool {
        let is_vocabulary = [EMBEDDING, OUTPUT].contains(&key);
        is_vocabulary && shape.len() == 2 && self.from == shape.first().copied()
    }

    fn shape(&self, key: &str, shape: &[usize]) -> Vec<usize> {
        match self.is_resized(key, shape) {
            true => vec![self.rows, shape[1]],
            false => shape.to_vec(),
        }
    }

    fn value(&self, key: &str, value: TensorData) -> TensorData {
        if !self.is_resized(key, value.shape().as_slice()) {
            return value;
        }
        let dtype = value.dtype();
        let value = value.convert_dtype(DType::F32);
        let weight = Tensor::<2>::from_data(value, (&self.device, DType::F32));
        to_host(with_rows(weight, self.rows)).convert_dtype(dtype)
    }
}

/// A base checkpoint need not have adapter keys; anything else that differs is an error.
fn require_base(
    model: &TransformerDecoder,
    weights: &impl BaseWeights,
    report: &LoadReport,
) -> Result<()> {
    let params = get_params(model);
    let is_adapter = |key: &String| params.get(key).is_some_and(ParamInfo::is_adapter);
    let mut base = report.clone();
    base.missing.retain(|key| !is_adapter(key));
    base.renamed(|key| weights.own_name(key)).require_complete()
}
