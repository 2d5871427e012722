//! Base weights of embedding and output that PEFT saves beside an adapter.

use burn::tensor::{Tensor, TensorData};

use super::super::keys::{EMBEDDING, OUTPUT, module_to_hf};
use super::keys::{self, BaseWeight, Wrapper};
use crate::adapter::to_host;
use crate::llama::{Output, TransformerDecoder};
use crate::lora::{
    DORA, FULL, LORA, LoRAAdapter, LoRAConfig, MethodRef, SHIFT_A, SHIFT_B, TOKEN_ROWS, key_prefix,
};

/// What a configuration follows from the tensors of a file for: modules that came whole, and a vocabulary of another
/// size.
pub(super) fn add_saved_weights<'a>(
    config: &mut LoRAConfig,
    shapes: impl Iterator<Item = (&'a str, &'a [usize])>,
) {
    let mut of_output = None;
    for (name, shape) in shapes {
        let Some(weight) = keys::base_weight(name) else {
            continue;
        };
        let module = if weight.is_output {
            "lm_head"
        } else {
            "model.embed_tokens"
        };
        let is_named = config
            .modules_to_save
            .iter()
            .any(|end| module.ends_with(end));
        if weight.wrapper == Wrapper::None && !is_named {
            let last = module.rsplit('.').next().unwrap_or(module);
            config.modules_to_keep.push(last.to_owned());
        }
        match (weight.is_output, weight.wrapper) {
            (false, _) => config.vocab_size = shape.first().copied(),
            // A head alone says nothing of the embedding.
            (true, Wrapper::None) => {}
            (true, _) => of_output = shape.first().copied(),
        }
    }
    config.vocab_size = config.vocab_size.or(of_output);
}

/// The base weights of a model beside one of its adapters.
pub(super) struct BaseWeights<'a> {
    pub(super) model: &'a TransformerDecoder,
    pub(super) adapter: &'a str,
}

impl BaseWeights<'_> {
    fn is_tied(&self) -> bool {
        matches!(self.model.output, Output::Tied(_))
    }

    fn of_embedding(&self) -> Option<&LoRAAdapter> {
        self.model.tok_embeddings.adapters.get(self.adapter)
    }

    /// The output's adapter, which may be the embedding's too.
    fn of_output(&self) -> Option<&LoRAAdapter> {
        let own = self.model.output.adapters().get(self.adapter);
        let shared = self
            .of_embedding()
            .filter(|adapter| self.is_tied() && adapter.is_of_tied_output());
        own.or(shared)
    }

    fn wrapper(adapter: Option<&LoRAAdapter>) -> Wrapper {
        let is = |method| adapter.is_some_and(|adapter| adapter.method() == MethodRef(method));
        match () {
            () if is(&FULL) => Wrapper::Whole,
            () if is(&TOKEN_ROWS) => Wrapper::Rows,
            () if is(&LORA) || is(&DORA) => Wrapper::Adapter,
            () => Wrapper::None,
        }
    }

    /// Whether the base's embedding, or the output's weight, acts beside the adapter.
    fn is_used(&self, is_output: bool) -> bool {
        let [embedding, output] = [self.of_embedding(), self.of_output()]
            .map(|adapter| Self::wrapper(adapter) != Wrapper::Whole);
        match self.is_tied() {
            true => embedding || output,
            false => {
                if is_output {
                    output
                } else {
                    embedding
                }
            }
        }
    }

    /// The model's key of a base weight in a file; none if PEFT, too, would make nothing of it.
    pub(super) fn ours(&self, name: &str) -> Option<String> {
        let BaseWeight { is_output, wrapper } = keys::base_weight(name)?;
        let adapter = if is_output {
            self.of_output()
        } else {
            self.of_embedding()
        };
        let is_there = wrapper != Wrapper::None && Self::wrapper(adapter) == wrapper;
        let key = if is_output { OUTPUT } else { EMBEDDING };
        (is_there && self.is_used(is_output)).then(|| key.to_owned())
    }

    /// The name in a file of a base weight that came with the adapter.
    pub(super) fn theirs(&self, key: &str) -> Option<String> {
        let is_output = key == OUTPUT;
        if !self.model.changed_base.contains(key) || !self.is_used(is_output) {
            return None;
        }
        let own = if is_output {
            self.of_output()
        } else {
            self.of_embedding()
        };
        let (path, adapter) = match (own, self.of_output()) {
            (None, Some(of_output)) if self.is_tied() => (OUTPUT, Some(of_output)),
            (own, _) => (key, own),
        };
        let module = module_to_hf(path.strip_suffix(".weight")?)?;
        Some(keys::base_name(&module, Self::wrapper(adapter)))
    }

    /// The keys of what an adapter that begins with a part of the output's weight began with. In a file that has
    /// this weight it has lost that part already.
    pub(super) fn shifts_lost(&self, loaded: &[String]) -> Vec<(String, TensorData)> {
        let key = if self.is_tied() { EMBEDDING } else { OUTPUT };
        let Some(adapter) = self
            .of_output()
            .filter(|_| loaded.iter().any(|other| other == key))
        else {
            return Vec::new();
        };
        let prefix = key_prefix("output", self.adapter);
        let zeros = |name: &'static str| {
            let shape: [usize; 2] = adapter.matrix_param(name)?.lazy_shape().dims();
            let zeros = vec![0f32; shape[0] * shape[1]];
            Some((format!("{prefix}{name}"), TensorData::new(zeros, shape)))
        };
        [SHIFT_A, SHIFT_B].into_iter().filter_map(zeros).collect()
    }

    /// The part of the output's weight that the adapter begins with, if it is not zero.
    fn shift(&self) -> Option<Tensor<2>> {
        let adapter = self.model.output.adapters().get(self.adapter)?;
        let value = |name| Some(adapter.matrix_param(name)?.val().set_require_grad(false));
        let shift = value(SHIFT_B)?.matmul(value(SHIFT_A)?) * adapter.scale();
        let largest: f32 = shift.clone().abs().max().into_scalar();
        (largest > 0.0).then_some(shift)
    }

    /// Whether the adapter begins with a part of a weight that is the embedding's too. PEFT would take that part
    /// off the embedding with the output.
    pub(super) fn shifts_embedding(&self) -> bool {
        self.is_tied() && self.shift().is_some()
    }

    /// The output's weight without the part that the adapter begins with, if it begins with one.
    pub(super) fn shifted_output(&self) -> Option<TensorData> {
        let Output::Own(output) = &self.model.output else {
            return None;
        };
        let shift = self.shift()?;
        let weight = output.base.weight.to_f32() - shift;
        Some(to_host(weight))
    }
}
