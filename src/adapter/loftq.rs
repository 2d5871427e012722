use std::cell::RefCell;
use std::rc::Rc;

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};
use replace_with::replace_with_or_abort;

use super::eva::no_linear_adapter;
use crate::lora::init::loftq;
use crate::lora::{
    AdaptedLayer, Decomposition, LORA_A, LORA_B, LayerKind, LayerParams, Place, edit_layers,
};
use crate::{Error, Result};

/// Quantizes the base weights of linear layers with an adapter, and begins the adapters with what makes up for a part of
/// the error: LoftQ, see [`loftq`]. Each layer then computes with `Q + s·B·A` in place of `W`.
///
/// `quantize_dequantize` gives the numbers that a quantized weight stands for, `[out, in]` as the weight. The base keeps
/// these numbers in the type that it has; nothing is packed. So the adapter is for this base, not for the one that was
/// loaded: save the [base without it](super::without_adapters) too.
///
/// ```no_run
/// use burn_peft::adapter::initialize_loftq;
/// use burn_peft::lora::Decomposition;
/// # use burn::tensor::Tensor;
/// # use burn_peft::llama::TransformerDecoder;
/// # fn begun(
/// #     model: TransformerDecoder,
/// #     nf4: fn(Tensor<2>) -> Tensor<2>,
/// # ) -> burn_peft::Result<()> {
///
/// let model = initialize_loftq(model, 5, Decomposition::Exact, nf4)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::InvalidArgument`] as [`loftq`], if an adapter begins with a part of its base already (PiSSA, OLoRA), or if none
/// acts on a linear layer.
pub fn initialize_loftq<M: Module>(
    model: M,
    iterations: usize,
    decomposition: Decomposition,
    quantize_dequantize: impl Fn(Tensor<2>) -> Tensor<2> + 'static,
) -> Result<M> {
    let outcome = Rc::new(RefCell::new(Ok(0)));
    let so_far = outcome.clone();
    let model = edit_layers(model, move |place, layer| {
        let Ok(count) = *so_far.borrow() else { return };
        let begun = begin(
            place,
            layer,
            iterations,
            decomposition,
            &quantize_dequantize,
        );
        *so_far.borrow_mut() = begun.map(|is_begun| count + usize::from(is_begun));
    });
    match outcome.replace(Ok(0))? {
        0 => Err(no_linear_adapter()),
        _ => Ok(model),
    }
}

/// Whether the layer has an adapter to begin.
fn begin(
    place: &Place<'_>,
    layer: &mut dyn AdaptedLayer,
    iterations: usize,
    decomposition: Decomposition,
    quantize_dequantize: &dyn Fn(Tensor<2>) -> Tensor<2>,
) -> Result<bool> {
    let is_linear = layer.shape().kind == LayerKind::Linear && !layer.is_tied();
    let name = layer.slot().active_name().map(str::to_owned);
    let (Some(name), Some(weight), true) = (name, &place.params.weight, is_linear) else {
        return Ok(false);
    };
    let adapter = layer.slot().get(&name);
    let Some(adapter) = adapter.filter(|adapter| adapter.matrix_param(LORA_A).is_some()) else {
        return Ok(false);
    };
    let of_layer = |message: String| Error::InvalidArgument {
        name: "model",
        message: format!("`{}`: {message}", place.path),
    };
    let settings = adapter.settings();
    if settings.begins_with_base {
        let message = format!(
            "the adapter begins by {} with a part of the base",
            settings.init
        );
        return Err(of_layer(message));
    }
    let (rank, scale) = (settings.rank, adapter.scale());
    let weight = weight.to_f32();
    let first = loftq(
        weight.clone(),
        rank,
        scale,
        iterations,
        decomposition,
        quantize_dequantize,
    )
    .map_err(|error| of_layer(error.to_string()))?;
    let base = quantize_dequantize(first.base(weight, scale)).cast(DType::F32);
    let weight = layer.weight_mut().expect("a linear layer has a weight");
    replace_with_or_abort(weight, |old| old.map(|_| base));
    let rounded = layer.params().weight.expect("a linear layer has a weight");
    let begun = rounded.to_f32() + first.b.clone().matmul(first.a.clone()) * scale;
    // DoRA's magnitude is that of what the layer begins with.
    let begun = LayerParams {
        weight: Some(Param::from_tensor(begun).into()),
        ..LayerParams::default()
    };
    let adapter = layer.slot_mut().get_mut(&name).expect("it was there");
    adapter.set_matrix(LORA_A, first.a);
    adapter.set_matrix(LORA_B, first.b);
    adapter.follow_layer(&begun, |_| true);
    Ok(true)
}
