use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData};

use super::eva::no_linear_adapter;
use super::quantize::weight_key;
use crate::lora::init::{FirstValues, loftq_from};
use crate::lora::{
    AdaptedLayer, Decomposition, Init, LORA_A, LORA_B, LayerKind, LayerParams, Place,
    collect_layers, edit_layers,
};
use crate::weight::{FrozenWeight, PackedWeight};
use crate::{Error, Result};

/// Begins the adapters of packed linear layers with what makes up for a part of the quantization's error: LoftQ, see
/// [`loftq`](crate::lora::init::loftq). Each layer then computes with `Q + s·B·A`, close to the dense `W`. Layers that
/// are not packed, and their adapters, stay what they are.
///
/// `dense` gives the weight of a key (`layers.0.attn.q_proj.weight`) as it was before it was packed, `[out, in]` of a
/// float type. It is asked for one at a time; [`initialize_loftq_from`](crate::checkpoint::initialize_loftq_from) reads
/// them from the files of a base.
///
/// With one iteration the packed base stays what it is, whatever its format: the adapter is for every copy of it, as that
/// of PEFT's `replace_lora_weights_loftq` is. With more, weights are packed anew in the format that they have, and the
/// adapter is for this base alone: keep the [base without it](super::without_adapters) too.
///
/// ```no_run
/// use burn_peft::adapter::{initialize_loftq, quantize_base, state_dict};
/// use burn_peft::lora::Decomposition;
/// use burn_peft::weight::Quantization;
/// # fn begun(model: burn_peft::llama::TransformerDecoder) -> burn_peft::Result<()> {
///
/// let dense = state_dict(&model);
/// let model = quantize_base(model, Quantization::Nf4, |_| false)?;
/// let model = initialize_loftq(model, 5, Decomposition::Exact, |key| Ok(dense[key].clone()))?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::InvalidArgument`] as [`loftq`](crate::lora::init::loftq), if no adapter acts on a packed linear layer, if one
/// begins with a part of its base already (PiSSA, OLoRA), or if more than one iteration is asked for of a format that is
/// only read; [`Error::Shape`] if a dense weight has another shape than the packed one; and the errors of `dense`. They
/// name the layer.
pub fn initialize_loftq<M: Module>(
    model: M,
    iterations: usize,
    decomposition: Decomposition,
    mut dense: impl FnMut(&str) -> Result<TensorData>,
) -> Result<M> {
    let layers = collect_layers(&model, linear_layer);
    if layers.is_empty() {
        return Err(no_linear_adapter());
    }
    let targets: Vec<Target> = layers.into_iter().flatten().collect();
    if targets.is_empty() {
        return Err(nothing_packed());
    }
    targets.into_iter().try_fold(model, |model, target| {
        let weight = target.dense(dense(&weight_key(&target.path))?)?;
        let begun = target.begin(weight, iterations, decomposition)?;
        Ok(with_begun(model, begun))
    })
}

fn nothing_packed() -> Error {
    let message = format!(
        "no adapter acts on a packed linear layer, so there is no error for {} to make up for; quantize the base first, \
         by `load_hf_as(.., Quantization::Nf4)` or `quantize_base`",
        Init::Loftq
    );
    Error::InvalidArgument {
        name: "model",
        message,
    }
}

/// A packed linear layer with an adapter that acts.
struct Target {
    path: String,
    weight: PackedWeight,
    /// The adapter's name.
    adapter: String,
    rank: usize,
    scale: f64,
    /// How the adapter begins, if with a part of the base.
    shift: Option<Init>,
}

/// None for a layer that is not linear or has no adapter of low rank, nothing in it for one that is not packed.
fn linear_layer(place: &Place<'_>, layer: &dyn AdaptedLayer) -> Option<Option<Target>> {
    let name = layer.slot().active_name()?;
    let adapter = layer.slot().get(name)?;
    let is_linear = layer.shape().kind == LayerKind::Linear && !layer.is_tied();
    adapter.matrix_param(LORA_A).filter(|_| is_linear)?;
    let FrozenWeight::Packed(weight) = place.params.weight.clone()? else {
        return Some(None);
    };
    let settings = adapter.settings();
    Some(Some(Target {
        path: place.path.to_owned(),
        weight,
        adapter: name.to_owned(),
        rank: settings.rank,
        scale: adapter.scale(),
        shift: settings.begins_with_base.then_some(settings.init),
    }))
}

/// What a layer begins with.
struct Begun {
    path: String,
    adapter: String,
    weight: PackedWeight,
    first: FirstValues,
    /// What the layer computes with, of which DoRA's magnitude is the length: `Q + s·B·A`.
    sum: LayerParams,
}

impl Target {
    /// The weight as it was before it was packed, in f32 beside the packed one.
    fn dense(&self, data: TensorData) -> Result<Tensor<2>> {
        let expected = self.weight.layout().shape();
        if data.shape()[..] != expected {
            return Err(Error::Shape {
                origin: "the dense weights".into(),
                key: weight_key(&self.path),
                expected: expected.to_vec(),
                found: data.shape().to_vec(),
            });
        }
        let device = FrozenWeight::Packed(self.weight.clone()).device();
        Ok(Tensor::from_data(data, (&device, DType::F32)))
    }

    fn begin(
        self,
        weight: Tensor<2>,
        iterations: usize,
        decomposition: Decomposition,
    ) -> Result<Begun> {
        if let Some(init) = self.shift {
            let message = format!("the adapter begins by {init} with a part of the base");
            return Err(self.error(message));
        }
        let mut packed = self.weight.clone();
        let both = [weight, packed.val()];
        let requantize = |base| {
            packed.set_values(base)?;
            Ok(packed.val())
        };
        let (rank, scale) = (self.rank, self.scale);
        let first = loftq_from(both, rank, scale, iterations, decomposition, requantize);
        let first = first.map_err(|error| self.error(error.to_string()))?;
        Ok(Begun {
            sum: sum(&packed, &first, scale),
            path: self.path,
            adapter: self.adapter,
            weight: packed,
            first,
        })
    }

    fn error(&self, message: String) -> Error {
        Error::InvalidArgument {
            name: "model",
            message: format!("`{}`: {message}", self.path),
        }
    }
}

/// What a layer computes with, as its parameters: `Q + s·B·A`.
fn sum(weight: &PackedWeight, first: &FirstValues, scale: f64) -> LayerParams {
    let sum = weight.val() + first.b.clone().matmul(first.a.clone()) * scale;
    LayerParams {
        weight: Some(Param::from_tensor(sum).into()),
        ..LayerParams::default()
    }
}

fn with_begun<M: Module>(model: M, begun: Begun) -> M {
    edit_layers(model, move |place, layer| {
        if place.path != begun.path {
            return;
        }
        if let Some(weight) = layer.weight_mut() {
            *weight = FrozenWeight::Packed(begun.weight.clone());
        }
        let adapter = layer.slot_mut().get_mut(&begun.adapter);
        let adapter = adapter.expect("the layer has this adapter");
        adapter.set_matrix(LORA_A, begun.first.a.clone());
        adapter.set_matrix(LORA_B, begun.first.b.clone());
        adapter.follow_layer(&begun.sum, |_| true);
    })
}
