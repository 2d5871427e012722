use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::tensor::{Device, Distribution, Int, Tensor};

use super::layers::AdaptedLayer;
use super::linear::adapted;
use super::merged::{merged, merged_weight};
use super::method::MethodRef;
use super::module::adapted_module;
use super::plain::one_line;
use super::routes::Routes;
use super::shape::{LayerParams, LayerShape};
use super::slot::AdapterSlot;
use super::{LoRAAdapter, PlainLinear};
use crate::weight::{FrozenWeight, random_param};

/// A table of token vectors with an optional adapter: `W[ids]`, and with LoRA `W[ids] + s·(B A)ᵀ[ids]`, `A` of
/// `[rank, vocab_size]` and `B` of `[dim, rank]`.
#[derive(Debug, Clone)]
pub struct LoRAEmbedding {
    /// The vectors, `[vocab_size, dim]`.
    pub weight: FrozenWeight,
    /// The adapters.
    pub adapters: AdapterSlot,
}

impl LoRAEmbedding {
    /// Random vectors from `N(0, 0.02²)`, the initialisation of Llama-like models; lazy.
    pub fn new(vocab_size: usize, dim: usize, device: &Device) -> Self {
        let normal = Distribution::Normal(0.0, 0.02);
        Self {
            weight: random_param([vocab_size, dim], normal, device).into(),
            adapters: AdapterSlot::new(),
        }
    }

    /// Looks up token vectors, in the type that the model computes in, see [`FrozenWeight::compute_dtype`].
    ///
    /// # Shapes
    /// - `ids`: `[batch, seq]`
    /// - output: `[batch, seq, dim]`
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let active: Vec<_> = self.adapters.active().collect();
        self.look_up(ids, &active)
    }

    /// Looks up token vectors with the adapter that each row of the batch asks for.
    ///
    /// # Shapes
    /// - `ids`: `[batch, seq]`, `batch` as `routes` has it
    /// - output: `[batch, seq, dim]`
    ///
    /// # Panics
    /// If the batch has another number of rows than `routes`.
    pub fn forward_routed(&self, ids: Tensor<2, Int>, routes: Option<&Routes>) -> Tensor<3> {
        let Some(routes) = routes.filter(|_| !self.adapters.is_empty()) else {
            return self.forward(ids);
        };
        routes.apply(ids, |name, ids| {
            self.look_up(ids, &self.adapters.named(name).collect::<Vec<_>>())
        })
    }

    fn look_up(&self, ids: Tensor<2, Int>, active: &[&LoRAAdapter]) -> Tensor<3> {
        if active.iter().any(|adapter| adapter.replaces_rows()) {
            return self.replaced(ids, active);
        }
        let rows = self.weight.rows(ids.clone());
        self.with_updates(ids, rows, active)
    }

    /// Of a table of another size than the base's only the adapter's is looked up.
    fn replaced(&self, ids: Tensor<2, Int>, active: &[&LoRAAdapter]) -> Tensor<3> {
        let [batch, seq] = ids.dims();
        let [_, dim] = self.weight.shape();
        let dtype = self.weight.compute_dtype();
        let rows = Tensor::zeros([batch, seq, dim], (&ids.device(), dtype));
        self.with_updates(ids, rows, active)
    }

    fn with_updates(
        &self,
        ids: Tensor<2, Int>,
        rows: Tensor<3>,
        active: &[&LoRAAdapter],
    ) -> Tensor<3> {
        active.iter().fold(rows, |rows, adapter| {
            let method = adapter.method().0;
            let shape = rows.dims();
            let (ids, rows) = (ids.clone().flatten(0, 1), rows.flatten(0, 1));
            let rows = method.embed(adapter, &self.weight, ids, rows);
            rows.reshape(shape)
        })
    }

    /// The dot product of hidden states with every token vector: the output projection of a model with tied
    /// embeddings. Single rows that are trained are the output's too; other adapters of the embedding are not.
    ///
    /// # Shapes
    /// - `hidden`: `[batch, seq, dim]`
    /// - output: `[batch, seq, vocab_size]`
    ///
    /// # Panics
    /// If the last dimension of `hidden` is not `dim`.
    pub fn project(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.project_with(hidden, self.adapters.active(), &[])
    }

    /// The same, with these of the embedding's adapters and of the output's own.
    fn project_with<'a>(
        &self,
        hidden: Tensor<3>,
        of_embedding: impl Iterator<Item = &'a LoRAAdapter>,
        of_output: &[&'a LoRAAdapter],
    ) -> Tensor<3> {
        adapted(
            &self.as_output(),
            &on_output(of_embedding, of_output),
            hidden,
        )
    }

    /// The output projection of a model with tied embeddings as a layer, which shares the weight.
    pub(super) fn as_output(&self) -> PlainLinear {
        PlainLinear {
            weight: self.weight.clone(),
            bias: None,
        }
    }
}

/// What acts on a tied output: of the embedding's adapters what is the weight's in both places, unless the output has
/// its own.
pub(super) fn on_output<'a>(
    of_embedding: impl Iterator<Item = &'a LoRAAdapter>,
    of_output: &[&'a LoRAAdapter],
) -> Vec<&'a LoRAAdapter> {
    let method = |adapter: &LoRAAdapter| adapter.method();
    let has = |other: MethodRef| of_output.iter().any(|adapter| method(adapter) == other);
    let shared = of_embedding.filter(|adapter| adapter.is_of_tied_output());
    let shared = shared.filter(|adapter| !has(method(adapter)));
    shared.chain(of_output.iter().copied()).collect()
}

impl AdaptedLayer for LoRAEmbedding {
    fn shape(&self) -> LayerShape {
        let [vocab_size, dim] = self.weight.shape();
        LayerShape::embedding(vocab_size, dim)
    }

    fn params(&self) -> LayerParams {
        LayerParams {
            weight: Some(self.weight.clone()),
            ..LayerParams::default()
        }
    }

    fn slot(&self) -> &AdapterSlot {
        &self.adapters
    }

    fn slot_mut(&mut self) -> &mut AdapterSlot {
        &mut self.adapters
    }

    fn merge(&mut self) {
        let adapters = std::mem::take(&mut self.adapters);
        let active: Vec<_> = adapters.active().collect();
        replace_with::replace_with_or_abort(&mut self.weight, |weight| {
            merged_weight(weight, &active)
        });
    }

    fn freeze_base(&mut self) {
        replace_with::replace_with_or_abort(&mut self.weight, Module::no_grad);
    }

    fn weight_mut(&mut self) -> Option<&mut FrozenWeight> {
        Some(&mut self.weight)
    }
}

adapted_module!(LoRAEmbedding, params(weight), inline(adapters), skip());

impl ModuleDisplay for LoRAEmbedding {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        one_line().optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let [vocab_size, dim] = self.weight.shape();
        let adapter = self.adapters.active().next();
        let content = content
            .set_top_level_type(match adapter {
                None => "Embedding",
                Some(_) => "LoRAEmbedding",
            })
            .add("vocab_size", &vocab_size)
            .add("dim", &dim);
        match adapter {
            None => content.optional(),
            Some(adapter) => adapter.add_content(content).optional(),
        }
    }
}

/// The adapters of an output projection whose weight is the embedding's.
#[derive(Debug, Clone)]
pub struct TiedOutput {
    /// `[vocab_size, dim]`.
    shape: [usize; 2],
    /// The adapters.
    pub adapters: AdapterSlot,
}

impl TiedOutput {
    /// Without adapters, beside an embedding of these sizes, which must come before it in the module.
    pub fn new(vocab_size: usize, dim: usize) -> Self {
        Self {
            shape: [vocab_size, dim],
            adapters: AdapterSlot::new(),
        }
    }

    /// The same beside an embedding of so many rows.
    pub(crate) fn with_rows(mut self, rows: usize) -> Self {
        self.shape[0] = rows;
        self
    }

    /// Projects hidden states to the vocabulary.
    ///
    /// # Shapes
    /// - `hidden`: `[batch, seq, dim]`
    /// - output: `[batch, seq, vocab_size]`
    pub fn forward(&self, hidden: Tensor<3>, embedding: &LoRAEmbedding) -> Tensor<3> {
        let active: Vec<_> = self.adapters.active().collect();
        embedding.project_with(hidden, embedding.adapters.active(), &active)
    }

    /// The same, with the adapter that each row of the batch asks for.
    ///
    /// # Shapes
    /// - `hidden`: `[batch, seq, dim]`, `batch` as `routes` has it
    /// - output: `[batch, seq, vocab_size]`
    ///
    /// # Panics
    /// If the batch has another number of rows than `routes`.
    pub fn forward_routed(
        &self,
        hidden: Tensor<3>,
        embedding: &LoRAEmbedding,
        routes: Option<&Routes>,
    ) -> Tensor<3> {
        let Some(routes) = routes else {
            return self.forward(hidden, embedding);
        };
        routes.apply(hidden, |name, hidden| {
            let own: Vec<_> = self.adapters.named(name).collect();
            embedding.project_with(hidden, embedding.adapters.named(name), &own)
        })
    }

    /// The projection as a layer of its own, with what acts added to the embedding's weight.
    pub fn untied(self, embedding: &LoRAEmbedding) -> PlainLinear {
        let active = self.acting(embedding);
        let base = PlainLinear {
            weight: embedding.weight.clone().with_new_id(),
            bias: None,
        };
        merged(base, &active)
    }

    /// What acts on the projection: its own adapters, and those of the embedding that are its too.
    pub(crate) fn acting<'a>(&'a self, embedding: &'a LoRAEmbedding) -> Vec<&'a LoRAAdapter> {
        let own: Vec<_> = self.adapters.active().collect();
        on_output(embedding.adapters.active(), &own)
    }
}

impl AdaptedLayer for TiedOutput {
    fn shape(&self) -> LayerShape {
        let [vocab_size, dim] = self.shape;
        LayerShape::linear(dim, vocab_size, false)
    }

    fn params(&self) -> LayerParams {
        LayerParams::default()
    }

    fn slot(&self) -> &AdapterSlot {
        &self.adapters
    }

    fn slot_mut(&mut self) -> &mut AdapterSlot {
        &mut self.adapters
    }

    fn is_tied(&self) -> bool {
        true
    }

    /// Its weight is the embedding's, so nothing can be added to it here: see [`TiedOutput::untied`].
    fn merge(&mut self) {
        assert!(
            self.adapters.active().next().is_none(),
            "an output that shares the embedding's weight is untied before its adapter is merged"
        );
        self.adapters = AdapterSlot::new();
    }

    fn freeze_base(&mut self) {}
}

adapted_module!(TiedOutput, params(), inline(adapters), skip(shape));

impl ModuleDisplay for TiedOutput {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        one_line().optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let content = content.set_top_level_type("TiedOutput");
        match self.adapters.active().next() {
            None => content.optional(),
            Some(adapter) => adapter.add_content(content).optional(),
        }
    }
}
