use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::init::Init;
use super::layer_config::is_in;
use super::method::{DORA, LORA, MethodRef};
use super::target::{
    ALPHA_PATTERN, EXCLUDE, MlpModule, ModuleNames, Naming, Place, RANK_PATTERN, Selection,
    TARGETS, Targets, end_of_path, validate_layers_pattern,
};
use crate::{Error, Result};

/// Which layers get an adapter, and what the adapter is like.
///
/// ```
/// use burn_peft::lora::{AttnModule::*, LoRAConfig};
///
/// // The tutorial's first experiment: rank 8, alpha 16, no dropout.
/// let lora = LoRAConfig::new([QProj, VProj]);
/// assert_eq!((lora.rank, lora.alpha, lora.dropout), (8, 16.0, 0.0));
/// assert_eq!(lora.scale(), 2.0);
///
/// // Its second one.
/// let lora = LoRAConfig::new([QProj, KProj, VProj, OutputProj]).with_rank(32).with_alpha(64.0);
/// assert_eq!(lora.scale(), 2.0);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct LoRAConfig {
    /// The modules with an adapter.
    pub targets: Targets,
    /// Weights with an adapter beside the modules', by the end of their names in Hugging Face's modules: such as
    /// `experts.gate_up_proj`, where the weights of all experts are one. They are in every layer, whatever
    /// [`exclude`](Self::exclude) and [`layers`](Self::layers) say, as in PEFT.
    pub target_parameters: Vec<String>,
    /// Modules among them without one.
    pub exclude: Option<Targets>,
    /// The indices of the layers whose modules have one, where [`Targets::Names`] names them by the end of their
    /// path; none or empty is all.
    pub layers: Option<Vec<usize>>,
    /// What precedes the index of a layer in a path, as regular expressions; empty is any name.
    pub layers_pattern: Vec<String>,
    /// Which of a module's names all this speaks of.
    pub naming: Naming,
    /// How a layer is adapted.
    pub method: MethodRef,
    /// The rank r of the update `B·A`.
    pub rank: usize,
    /// The numerator of the scale.
    pub alpha: f64,
    /// Other ranks for modules whose path matches `^(.*\.)?(KEY)$`, the first that does.
    pub rank_pattern: IndexMap<String, usize>,
    /// Other alphas, likewise.
    pub alpha_pattern: IndexMap<String, f64>,
    /// The probability with which an element of the adapter's input is dropped in training.
    pub dropout: f64,
    /// Whether to scale by `alpha / sqrt(r)` (rsLoRA, <https://arxiv.org/abs/2312.03732>).
    pub use_rslora: bool,
    /// How `A` and `B` of linear layers begin.
    pub init: Init,
    /// Whether `B` has a bias.
    pub lora_bias: bool,
    /// Which biases of linear layers are trained too.
    pub bias: TrainedBias,
    /// Whether `A` keeps its first value (LoRA-FA, <https://arxiv.org/abs/2308.03303>).
    pub freeze_a: bool,
    /// Modules that are trained as a whole, by the end of their path: `norm` is every norm whose name ends so.
    pub modules_to_save: Vec<String>,
    /// Modules whose values came with the adapter, as those that PEFT saves beside it, and which it keeps: named as
    /// [`modules_to_save`](Self::modules_to_save), but not trained.
    pub modules_to_keep: Vec<String>,
    /// Whether an output that is the embedding's weight stays so where the embedding is trained as a whole.
    pub ensure_weight_tying: bool,
    /// Rows of embeddings that are trained, by the end of the embedding's path.
    pub trainable_token_indices: IndexMap<String, Vec<usize>>,
    /// The rows of embedding and output, if the vocabulary is to have another size than the base's. New rows begin as
    /// the mean of the old ones. Where [`modules_to_save`](Self::modules_to_save) has both, the base stays as it is;
    /// else it is resized, and its embedding and output are saved with the adapter.
    pub vocab_size: Option<usize>,
}

/// Which biases of the base are trained, as copies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TrainedBias {
    /// None.
    #[default]
    None,
    /// Those of layers with an adapter.
    LoraOnly,
    /// Those of all linear layers.
    All,
}

impl Default for LoRAConfig {
    /// That of no module: rank 8, alpha 16 and no dropout, for a single layer or with
    /// [`with_targets`](Self::with_targets).
    fn default() -> Self {
        Self {
            targets: Targets::Names(Vec::new()),
            target_parameters: Vec::new(),
            exclude: None,
            layers: None,
            layers_pattern: Vec::new(),
            naming: Naming::default(),
            method: MethodRef::default(),
            rank: 8,
            alpha: 16.0,
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            dropout: 0.0,
            use_rslora: false,
            init: Init::default(),
            lora_bias: false,
            bias: TrainedBias::default(),
            freeze_a: false,
            modules_to_save: Vec::new(),
            modules_to_keep: Vec::new(),
            ensure_weight_tying: false,
            trainable_token_indices: IndexMap::new(),
            vocab_size: None,
        }
    }
}

impl LoRAConfig {
    /// Rank 8, alpha 16 and no dropout on the modules of these names or paths.
    pub fn new(modules: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            targets: Targets::names(modules),
            ..Self::default()
        }
    }

    /// Adapters on other modules.
    pub fn with_targets(mut self, targets: Targets) -> Self {
        self.targets = targets;
        self
    }

    /// Adapters on weights of these names too, see [`target_parameters`](Self::target_parameters).
    pub fn with_target_parameters(
        mut self,
        names: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.target_parameters = names.into_iter().map(Into::into).collect();
        self
    }

    /// No adapter on some of the modules.
    pub fn with_exclude(mut self, exclude: Targets) -> Self {
        self.exclude = Some(exclude);
        self
    }

    /// Adapters in the layers of these indices only.
    pub fn with_layers(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.layers = Some(layers.into_iter().collect());
        self
    }

    /// Adapters on all three layers of a Llama's feed-forward too, or on none of them.
    ///
    /// # Panics
    /// If the targets are not names.
    pub fn with_mlp(mut self, apply: bool) -> Self {
        for module in MlpModule::ALL {
            self.set_name(module.name(), apply);
        }
        self
    }

    /// An adapter on a Llama's output projection too.
    ///
    /// # Panics
    /// If the targets are not names.
    pub fn with_output(mut self, apply: bool) -> Self {
        self.set_name("output", apply);
        self
    }

    fn set_name(&mut self, name: &str, is_in: bool) {
        let Targets::Names(names) = &mut self.targets else {
            panic!("a module is added to targets that are not names");
        };
        names.retain(|other| other != name);
        names.extend(is_in.then(|| name.to_owned()));
    }

    /// The same configuration with this [rank](Self::rank): the inner size of `B A`, at least 1.
    pub fn with_rank(mut self, rank: usize) -> Self {
        self.rank = rank;
        self
    }

    /// The same configuration with this [alpha](Self::alpha), above 0: the update is scaled by alpha / rank.
    pub fn with_alpha(mut self, alpha: f64) -> Self {
        self.alpha = alpha;
        self
    }

    /// Other ranks for some modules, see [`rank_pattern`](Self::rank_pattern).
    pub fn with_rank_pattern<K: Into<String>>(
        mut self,
        ranks: impl IntoIterator<Item = (K, usize)>,
    ) -> Self {
        self.rank_pattern = ranks.into_iter().map(|(k, v)| (k.into(), v)).collect();
        self
    }

    /// Other alphas for some modules, see [`alpha_pattern`](Self::alpha_pattern).
    pub fn with_alpha_pattern<K: Into<String>>(
        mut self,
        alphas: impl IntoIterator<Item = (K, f64)>,
    ) -> Self {
        self.alpha_pattern = alphas.into_iter().map(|(k, v)| (k.into(), v)).collect();
        self
    }

    /// Dropout on the adapter's input.
    pub fn with_dropout(mut self, dropout: f64) -> Self {
        self.dropout = dropout;
        self
    }

    /// The same configuration with another [method](Self::method): [`LORA`](super::LORA), [`DORA`](super::DORA), or one of
    /// your own.
    pub fn with_method(mut self, method: MethodRef) -> Self {
        self.method = method;
        self
    }

    /// DoRA (<https://arxiv.org/abs/2402.09353>) or LoRA.
    pub fn with_dora(self, use_dora: bool) -> Self {
        self.with_method(match use_dora {
            true => MethodRef(&DORA),
            false => MethodRef(&LORA),
        })
    }

    /// Whether the method is DoRA.
    pub fn uses_dora(&self) -> bool {
        self.method == MethodRef(&DORA)
    }

    /// With rsLoRA's scale or with the original one.
    pub fn with_rslora(mut self, use_rslora: bool) -> Self {
        self.use_rslora = use_rslora;
        self
    }

    /// The same configuration with other [first values](Self::init) of `A` and `B`.
    pub fn with_init(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    /// With a bias of `B`, scaled as the update is.
    pub fn with_lora_bias(mut self, lora_bias: bool) -> Self {
        self.lora_bias = lora_bias;
        self
    }

    /// With trained biases.
    pub fn with_bias(mut self, bias: TrainedBias) -> Self {
        self.bias = bias;
        self
    }

    /// With `A` kept as it is (LoRA-FA).
    pub fn with_frozen_a(mut self, freeze_a: bool) -> Self {
        self.freeze_a = freeze_a;
        self
    }

    /// With modules that are trained as a whole.
    pub fn with_modules_to_save(
        mut self,
        modules: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.modules_to_save = modules.into_iter().map(Into::into).collect();
        self
    }

    /// With trained rows of the embedding of this name.
    pub fn with_trainable_tokens(
        mut self,
        embedding: impl Into<String>,
        ids: impl IntoIterator<Item = usize>,
    ) -> Self {
        let ids = ids.into_iter().collect();
        self.trainable_token_indices.insert(embedding.into(), ids);
        self
    }

    /// With a vocabulary of another size, see [`vocab_size`](Self::vocab_size).
    pub fn with_vocab_size(mut self, rows: usize) -> Self {
        self.vocab_size = Some(rows);
        self
    }

    /// The factor s of the update where no pattern says otherwise: `alpha / r`, or `alpha / sqrt(r)` with rsLoRA.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// Whether this says that no module is trained.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
            && self.target_parameters.is_empty()
            && self.modules_to_save.is_empty()
            && self.modules_to_keep.is_empty()
            && self.trainable_token_indices.is_empty()
            && self.bias != TrainedBias::All
    }

    /// Whether the targets select a module of these names, whatever it is.
    pub(crate) fn names_module(&self, names: &ModuleNames) -> bool {
        let selected = self.selection().selects(names, Place::Elsewhere);
        selected.unwrap_or(false)
    }

    /// Whether the targets name an embedding or output of these names, see [`Targets::names_vocabulary`].
    pub(super) fn names_vocabulary(&self, names: &ModuleNames) -> Result<bool> {
        for name in names.by_naming(self.naming) {
            if self.targets.names_vocabulary(name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a module of these names gets values of its own, trained or kept.
    pub(crate) fn replaces(&self, names: &ModuleNames) -> bool {
        let modules = [&self.modules_to_save, &self.modules_to_keep];
        modules.iter().any(|modules| is_in(modules, self, names))
    }

    /// Whether this name of [`modules_to_save`](Self::modules_to_save) is no layer's of a model, but that of a block of
    /// layers.
    pub(crate) fn is_block<'a>(
        &self,
        name: &str,
        layers: impl Iterator<Item = &'a ModuleNames> + Clone,
    ) -> bool {
        let is_inside = |path: &str| format!(".{path}").contains(&format!(".{name}."));
        let mut paths = layers
            .clone()
            .flat_map(|names| names.by_naming(self.naming));
        let is_layer = layers
            .clone()
            .any(|names| is_in(&[name.to_owned()], self, names));
        !is_layer && paths.any(is_inside)
    }

    pub(super) fn selection(&self) -> Selection<'_> {
        Selection {
            targets: &self.targets,
            exclude: self.exclude.as_ref(),
            layers: self.layers.as_deref(),
            layers_pattern: &self.layers_pattern,
            naming: self.naming,
        }
    }

    /// Whether these rows are asked for in two places: a weight that is both has them once.
    pub(crate) fn shares_rows(&self, ids: &[usize]) -> bool {
        let rows = self.trainable_token_indices.values();
        rows.filter(|other| *other == ids).count() > 1
    }

    /// Checks that a model can get adapters by this: that it names a module, and [`Self::validate_adapter`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if no module is named, and as [`Self::validate_adapter`].
    pub fn validate(&self) -> Result<()> {
        if self.is_empty() {
            let message = "no module has an adapter; name some, such as q_proj and v_proj".into();
            return Err(invalid("targets", message));
        }
        self.validate_adapter()
    }

    fn validate_patterns(&self) -> Result<()> {
        self.targets.validate(TARGETS)?;
        if let Some(exclude) = &self.exclude {
            exclude.validate(EXCLUDE)?;
        }
        for pattern in &self.layers_pattern {
            validate_layers_pattern(pattern)?;
        }
        for (key, rank) in &self.rank_pattern {
            end_of_path(key, RANK_PATTERN)?;
            if *rank == 0 {
                let message = format!("the rank of `{key}` must be at least 1");
                return Err(invalid(RANK_PATTERN, message));
            }
        }
        for (key, alpha) in &self.alpha_pattern {
            end_of_path(key, ALPHA_PATTERN)?;
            if !is_alpha(alpha) {
                let message =
                    format!("the alpha of `{key}` must be a positive number, not {alpha}");
                return Err(invalid(ALPHA_PATTERN, message));
            }
        }
        Ok(())
    }

    /// Checks what makes an adapter, whatever layer it is put beside: one of a model of your own, say. A rank
    /// may be above the layer's width: it is then of no more use than the width itself, but PEFT has such
    /// adapters, with one rank for wide and narrow layers.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a rank is 0, an alpha is not a positive number, a pattern is no regular expression
    /// of Python's `re`, the dropout is outside of `[0, 1)`, or the method has no bias of `B`.
    pub fn validate_adapter(&self) -> Result<()> {
        self.validate_patterns()?;
        if self.rank == 0 {
            return Err(invalid("rank", "the rank must be at least 1".into()));
        }
        if !is_alpha(&self.alpha) {
            let message = format!("alpha must be a positive number, not {}", self.alpha);
            return Err(invalid("alpha", message));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let message = format!("the dropout must lie in [0, 1), not {}", self.dropout);
            return Err(invalid("dropout", message));
        }
        let mut ranks = self.rank_pattern.values().chain([&self.rank]);
        if self.init == Init::Orthogonal && ranks.any(|rank| rank % 2 == 1) {
            let message = "orthogonal first values need an even rank".into();
            return Err(invalid("rank", message));
        }
        if self.lora_bias && self.method != MethodRef(&LORA) {
            let message = format!("`{:?}` has no bias of B; only lora has", self.method);
            return Err(invalid("lora_bias", message));
        }
        Ok(())
    }
}

fn is_alpha(alpha: &f64) -> bool {
    // In f32, in which it serves, too.
    (*alpha as f32).is_finite() && *alpha > 0.0
}

pub(super) fn invalid(name: &'static str, message: String) -> Error {
    Error::InvalidArgument { name, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::AttnModule;

    #[test]
    fn bad_configurations_are_errors() {
        let good = LoRAConfig::new([AttnModule::QProj]);
        assert!(good.validate().is_ok());
        assert!(LoRAConfig::default().validate_adapter().is_ok());
        for (bad, word) in [
            (LoRAConfig::default(), "targets"),
            (good.clone().with_rank(0), "rank"),
            (good.clone().with_rank_pattern([("q_proj", 0)]), "rank"),
            (good.clone().with_alpha(f64::NAN), "alpha"),
            (good.clone().with_alpha(1e308), "alpha"),
            (good.clone().with_alpha_pattern([("q_proj", -1.0)]), "alpha"),
            (good.clone().with_dropout(1.0), "dropout"),
            (good.clone().with_dora(true).with_lora_bias(true), "dora"),
        ] {
            let message = bad.validate().unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn what_a_file_leaves_out_has_its_default() {
        let read: LoRAConfig =
            serde_json::from_str(r#"{"targets":{"names":["w2"]},"rank":4}"#).unwrap();
        assert_eq!(read, LoRAConfig::new(["w2"]).with_rank(4));
    }

    #[test]
    fn a_configuration_reads_back() {
        let config = LoRAConfig::default()
            .with_targets(Targets::pattern(".*_proj"))
            .with_dora(true)
            .with_rank_pattern([("b", 2), ("a", 4)])
            .with_bias(TrainedBias::All);
        let text = serde_json::to_string(&config).unwrap();
        let read: LoRAConfig = serde_json::from_str(&text).unwrap();
        assert_eq!(read, config);
        assert!(read.rank_pattern.keys().eq(["b", "a"]));
        let error = serde_json::from_str::<LoRAConfig>(r#"{"method":"lorra"}"#).unwrap_err();
        assert!(error.to_string().contains("lora, dora"), "{error}");
    }

    #[test]
    fn rslora_scales_by_the_root_of_the_rank() {
        let lora = LoRAConfig::new([AttnModule::QProj]).with_rslora(true);
        assert!((lora.scale() - 5.65685424949238).abs() < 1e-12);
    }
}
