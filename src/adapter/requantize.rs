use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use burn::module::Module;
use burn::tensor::Tensor;

use super::quantize::{at, pack};
use crate::Result;
use crate::lora::{AdaptedLayer, BIAS, LoRAAdapter, MethodRef, Place, edit_layers};
use crate::quantization::{BlockFormat, PackedLayout};
use crate::weight::FrozenWeight;

/// What packing merged weights again has lost: of each the relative error `‖Q(W) - W‖ / ‖W‖` in the Frobenius norm, with
/// `W` the merged weight and `Q(W)` the numbers that the packed one stands for.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct RequantizationLoss {
    /// The number of weights that were packed again.
    pub num_weights: usize,
    /// The largest relative error.
    pub max: f64,
    /// The path of the layer that has it.
    pub max_path: String,
    /// The root of the mean of the squared relative errors.
    pub root_mean_square: f64,
}

impl RequantizationLoss {
    fn of(errors: &[(String, f64)]) -> Self {
        let largest = errors.iter().max_by(|(_, a), (_, b)| a.total_cmp(b));
        let Some((max_path, max)) = largest.cloned() else {
            return Self::default();
        };
        let squares: f64 = errors.iter().map(|(_, error)| error * error).sum();
        Self {
            num_weights: errors.len(),
            max,
            max_path,
            root_mean_square: (squares / errors.len() as f64).sqrt(),
        }
    }
}

impl fmt::Display for RequantizationLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            num_weights,
            max,
            max_path,
            root_mean_square,
        } = self;
        match num_weights {
            0 => f.write_str("no weight was packed again"),
            _ => write!(
                f,
                "{num_weights} merged weights packed again: relative error {root_mean_square:.4} (root mean square), \
                 at most {max:.4} (`{max_path}`)"
            ),
        }
    }
}

/// The model with the adapters that act added to its weights, which stay packed: each is decoded, added to and packed
/// again in its own format, one after the other. The K-quants, which are only read, become Q8_0. Weights without an
/// adapter, and dense ones, are what [`merge_adapters`](super::merge_adapters) makes of them.
///
/// Packing rounds: an update that is smaller than the steps of the format is lost in part, of which the report tells how
/// much. Where the dense checkpoint is at hand, merge into that
/// ([`MergedCheckpoint`](crate::checkpoint::MergedCheckpoint)).
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if a merged weight holds NaN or infinite numbers, or ones too
/// large for the format. The message names the layer.
///
/// # Panics
/// As [`merge_adapters`](super::merge_adapters).
pub fn merge_requantized<M: Module>(model: M) -> Result<(M, RequantizationLoss)> {
    let outcome = Rc::new(RefCell::new(Ok(Vec::new())));
    let so_far = outcome.clone();
    let model = edit_layers(model, move |place, layer| {
        let mut so_far = so_far.borrow_mut();
        let Ok(errors) = &mut *so_far else { return };
        match merge(place, layer) {
            Ok(error) => errors.extend(error.map(|error| (place.path.to_owned(), error))),
            Err(error) => *so_far = Err(error),
        }
    });
    let errors = outcome.replace(Ok(Vec::new()))?;
    Ok((model, RequantizationLoss::of(&errors)))
}

/// Merges one layer; the relative error of its weight, if that is packed again.
fn merge(place: &Place<'_>, layer: &mut dyn AdaptedLayer) -> Result<Option<f64>> {
    let changes_weight = |adapter: &LoRAAdapter| adapter.method() != MethodRef(&BIAS);
    let is_changed = layer.slot().active().any(changes_weight);
    let before = layer.params().weight;
    layer.merge();
    let Some(FrozenWeight::Packed(packed)) = before else {
        return Ok(None);
    };
    let layout = packed.layout();
    let weight = layer.weight_mut().expect("it was packed");
    if !is_changed {
        *weight = FrozenWeight::Packed(packed);
        return Ok(None);
    }
    drop(packed);
    let merged = weight.to_f32();
    let format = match layout.format() {
        format if format.is_written() => format,
        _ => BlockFormat::Q8_0,
    };
    let layout = PackedLayout::new(format, weight.shape());
    pack(place, layer, layout.map_err(|error| at(place.path, error))?)?;
    let packed = layer.params().weight.expect("it is packed again");
    Ok(Some(relative_error(packed.to_f32(), merged)))
}

/// `‖a - b‖ / ‖b‖`; 0 where both are zero.
fn relative_error(a: Tensor<2>, b: Tensor<2>) -> f64 {
    let norm = |matrix: Tensor<2>| {
        let squares: f32 = matrix.square().sum().into_scalar();
        f64::from(squares).sqrt()
    };
    let (lost, all) = (norm(a - b.clone()), norm(b));
    if lost == 0.0 { 0.0 } else { lost / all }
}
