//! What layers with adapters hold in a training: their forward passes on tensors without numbers.

use super::embedding::on_output;
use super::linear::LoRALinear;
use super::method::{FULL, MethodRef, TRAINED_BIAS};
use super::params::ParamSpec;
use super::shape::LayerKind;
use super::{LoRAAdapter, LoRAEmbedding, PlainLinear, TiedOutput};
use crate::ops::linear_meta;
use crate::ops::meta::{F32, Ledger, MetaOp, MetaParam, MetaTensor};

impl LoRALinear {
    /// What [`Self::forward`] holds.
    pub(crate) fn meta(&self, x: MetaTensor) -> MetaTensor {
        let active: Vec<_> = self.adapters.active().collect();
        adapted(&self.base, &active, x)
    }
}

impl LoRAEmbedding {
    /// What [`Self::forward`] holds. `ids` has no width.
    pub(crate) fn meta(&self, ids: MetaTensor) -> MetaTensor {
        let [_, dim] = self.weight.shape();
        let weight = self.weight.meta(ids.ledger());
        let new = |adapter| with_adapter(adapter, LayerKind::Embedding, weight, ids.clone(), dim);
        let mut active = self.adapters.active();
        let full = MethodRef(&FULL);
        if let Some(whole) = active.find(|adapter| adapter.method() == full) {
            return new(whole);
        }
        let rows = MetaOp::of([ids.clone()]).trains(weight, weight.numbers * weight.number_size);
        let rows = rows.output(dim);
        let active = self.adapters.active();
        active.fold(rows, |rows, adapter| rows.add(new(adapter)))
    }
}

impl TiedOutput {
    /// What [`Self::forward`] holds.
    pub(crate) fn meta(&self, hidden: MetaTensor, embedding: &LoRAEmbedding) -> MetaTensor {
        let own: Vec<_> = self.adapters.active().collect();
        let active = on_output(embedding.adapters.active(), &own);
        adapted(&embedding.as_output(), &active, hidden)
    }
}

/// What a layer with some adapters holds.
fn adapted(base: &PlainLinear, active: &[&LoRAAdapter], x: MetaTensor) -> MetaTensor {
    let ([out_dim, _], ledger) = (base.shape(), x.ledger().clone());
    let weight = base.weight.meta(&ledger);
    let y = match active {
        [] => linear_meta(x, weight, out_dim),
        [adapter] => with_adapter(adapter, LayerKind::Linear, weight, x, out_dim),
        several => {
            let y = linear_meta(x.clone(), weight, out_dim);
            let update =
                |adapter| with_adapter(adapter, LayerKind::Linear, weight, x.clone(), out_dim);
            several.iter().fold(y, |y, adapter| y.add(update(*adapter)))
        }
    };
    match bias(base, active, &ledger) {
        None => y,
        Some(bias) => MetaOp::of([y]).trains(bias, 0).shares_gradient().in_place(),
    }
}

/// What a layer of this weight with an adapter holds: what its method says. An embedding's adapter may act on an
/// output of the same weight.
fn with_adapter(
    adapter: &LoRAAdapter,
    kind: LayerKind,
    weight: MetaParam,
    x: MetaTensor,
    out_dim: usize,
) -> MetaTensor {
    let (settings, layer) = (adapter.settings(), adapter.layer());
    let kept = adapter.method().0.kept(layer, settings);
    let out_dim = match kind {
        LayerKind::Linear => settings.vocab_size.unwrap_or(out_dim),
        _ => out_dim,
    };
    let (ledger, own) = (x.ledger().clone(), x.beside(kept.per_token));
    let output = x.rows * out_dim * ledger.activation_size();
    let outputs = (kept.outputs_at_once.saturating_sub(1) * output).saturating_sub(own.bytes());
    ledger.touch(kept.weight_copies * weight.numbers * weight.copy_size);
    let mut op = MetaOp::of([x.clone()]);
    let params = trained(adapter);
    let keeps_input = kept.keeps_input && !params.is_empty();
    for param in params {
        let formed = match kind {
            LayerKind::Embedding => param.numbers * F32,
            _ => kept.inputs_at_once.min(1) * x.bytes(),
        };
        op = op.trains(param, formed);
    }
    let op = op
        .keeps_for_params(&own, true)
        .keeps_for_params(&x, keeps_input)
        .forms_first(outputs)
        .forms_in_backward(kept.inputs_at_once * x.bytes());
    let out = op.output(out_dim);
    ledger.touch(outputs);
    out
}

/// What an adapter trains, but for a copy of the layer's bias.
fn trained(adapter: &LoRAAdapter) -> Vec<MetaParam> {
    let params = adapter.params();
    let params = params.filter(|spec| spec.is_trained && spec.name != TRAINED_BIAS);
    let meta = |spec: &ParamSpec| match adapter.matrix_param(spec.name) {
        Some(matrix) => Some(MetaParam::of_adapter(matrix, true)),
        None => Some(MetaParam::of_adapter(
            adapter.vector_param(spec.name)?,
            true,
        )),
    };
    params.filter_map(meta).collect()
}

/// What is added to a layer's output: a trained copy of its bias, or its own.
fn bias(base: &PlainLinear, active: &[&LoRAAdapter], ledger: &Ledger) -> Option<MetaParam> {
    let trained = active.iter().find_map(|adapter| {
        let bias = adapter.vector_param(TRAINED_BIAS)?;
        let mut params = adapter.params();
        let is_trained = params.any(|spec| spec.name == TRAINED_BIAS && spec.is_trained);
        Some(MetaParam::of_adapter(bias, is_trained))
    });
    trained.or_else(|| Some(ledger.base_param(base.bias.as_ref()?)))
}
