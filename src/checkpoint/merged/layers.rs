//! The layers of a model that is merged: each with what acts on it, and nothing of its base.

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};

use super::{MergedCheckpoint, MergedTensor};
use crate::Result;
use crate::adapter::to_host;
use crate::checkpoint::hf::no_place;
use crate::checkpoint::keys::{EMBEDDING, OUTPUT};
use crate::llama::{Output, TransformerDecoder};
use crate::lora::{
    BIAS, FULL_WEIGHT, LORA_B_BIAS, LayerKind, LayerParams, LayerShape, LoRAAdapter, MethodRef,
    TRAINED_BIAS, collect_layers, merged_bias, merged_norm, merged_weight,
};
use crate::weight::untracked;

/// A layer of the merged model.
pub(super) struct Layer {
    /// The path in the model.
    pub path: String,
    /// The path of the layer whose weight it has before merging.
    pub base_path: String,
    shape: LayerShape,
    active: Vec<LoRAAdapter>,
}

/// The layers of a model as merging leaves them: an output that has adapters of its own has a weight of its own.
pub(super) fn of(model: &TransformerDecoder) -> Vec<Layer> {
    let mut layers = collect_layers(model, |place, layer| {
        (!layer.is_tied()).then(|| Layer {
            path: place.path.to_owned(),
            base_path: place.path.to_owned(),
            shape: layer.shape(),
            active: layer.slot().active().cloned().collect(),
        })
    });
    if let Output::Tied(output) = &model.output
        && !model.merged_config().tie_embeddings
    {
        let [vocab_size, dim] = model.tok_embeddings.weight.shape();
        let acting = output.acting(&model.tok_embeddings).into_iter();
        layers.push(Layer {
            path: module_of(OUTPUT).to_owned(),
            base_path: module_of(EMBEDDING).to_owned(),
            shape: LayerShape::linear(dim, vocab_size, false),
            active: acting.cloned().collect(),
        });
    }
    layers
}

/// Checks that no adapter has brought a bias that the files of such a model have no place for.
pub(super) fn require_places(layers: &[Layer]) -> Result<()> {
    match layers.iter().find(|layer| layer.brings_bias()) {
        Some(layer) => Err(no_place(&format!("{}.bias", layer.path))),
        None => Ok(()),
    }
}

/// The layer of a parameter.
pub(super) fn module_of(key: &str) -> &str {
    let (module, _) = key.rsplit_once('.').expect("a key has a parameter's name");
    module
}

fn frozen<const D: usize>(value: Tensor<D>) -> Param<Tensor<D>> {
    Param::initialized(ParamId::new(), untracked(value))
}

fn is_bias(key: &str) -> bool {
    key.ends_with(".bias")
}

impl Layer {
    /// Whether merging gives it a bias that it did not have.
    fn brings_bias(&self) -> bool {
        let has = |adapter: &LoRAAdapter| adapter.vector_param(LORA_B_BIAS).is_some();
        !self.shape.has_bias && self.active.iter().any(has)
    }

    /// Whether an adapter changes one of its parameters.
    pub fn changes(&self, key: &str) -> bool {
        let has = |adapter: &LoRAAdapter, name| adapter.vector_param(name).is_some();
        match is_bias(key) {
            true => {
                let changes = |a: &LoRAAdapter| has(a, LORA_B_BIAS) || has(a, TRAINED_BIAS);
                self.active.iter().any(changes)
            }
            false => self.active.iter().any(|a| a.method() != MethodRef(&BIAS)),
        }
    }

    /// Its parameters.
    pub fn tensors<'a>(&'a self, checkpoint: &'a MergedCheckpoint) -> Vec<MergedTensor<'a>> {
        let names = ["weight", "bias"].into_iter();
        let names = names.take(1 + usize::from(self.shape.has_bias));
        let tensor = |name: &str| {
            let base_key = format!("{}.{name}", self.base_path);
            let dtype = checkpoint.folder.weights().dtype(&base_key);
            MergedTensor {
                key: format!("{}.{name}", self.path),
                shape: self.shape_of(name),
                dtype: dtype.expect("types of weights were checked"),
                base_key,
                layer: self,
                checkpoint,
            }
        };
        names.map(tensor).collect()
    }

    /// That of a matrix may be another one's, which was trained in its place.
    pub fn shape_of(&self, name: &str) -> Vec<usize> {
        let [rows, columns] = self.shape.dims;
        if name == "bias" || self.shape.kind == LayerKind::Norm {
            return vec![rows];
        }
        let mut from_last = self.active.iter().rev();
        match from_last.find_map(|adapter| adapter.matrix_param(FULL_WEIGHT)) {
            Some(trained) => trained.lazy_shape().to_vec(),
            None => vec![rows, columns],
        }
    }

    /// What acts, where values that follow from the layer's own parameters, and were not loaded, follow from these.
    fn acting(&self, key: &str, own: &LayerParams) -> Vec<LoRAAdapter> {
        let mut active = self.active.clone();
        for adapter in &mut active {
            let lazy = adapter.lazy_names();
            adapter.follow_layer(own, |name| {
                lazy.contains(&name) && (name == TRAINED_BIAS) == is_bias(key)
            });
        }
        active
    }

    /// One of its parameters with what acts added to it.
    pub fn merged(&self, key: &str, base: TensorData, device: &Device) -> TensorData {
        let dtype = base.dtype();
        if is_bias(key) || self.shape.kind == LayerKind::Norm {
            let param = frozen(Tensor::<1>::from_data(base, (device, dtype)));
            return self.merged_vector(key, param, device);
        }
        let weight = Tensor::<2>::from_data(base, (device, dtype));
        let own = LayerParams {
            weight: Some(frozen(weight).into()),
            ..LayerParams::default()
        };
        let active = self.acting(key, &own);
        let active: Vec<_> = active.iter().collect();
        let weight = own.weight.expect("it was put there");
        to_host(merged_weight(weight, &active).val())
    }

    fn merged_vector(&self, key: &str, param: Param<Tensor<1>>, device: &Device) -> TensorData {
        let own = match is_bias(key) {
            true => LayerParams {
                bias: Some(param.clone()),
                ..LayerParams::default()
            },
            false => LayerParams::of_norm(param.clone()),
        };
        let active = self.acting(key, &own);
        let active: Vec<_> = active.iter().collect();
        let merged = match is_bias(key) {
            true => merged_bias(Some(param), &active, device).expect("there was one"),
            false => merged_norm(param, &active),
        };
        to_host(merged.val())
    }
}
