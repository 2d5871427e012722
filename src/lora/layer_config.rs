//! What a configuration means for one layer.

use std::sync::Arc;

use super::config::{LoRAConfig, TrainedBias, invalid};
use super::init::Init;
use super::method::{BIAS, FULL, LORA, Method, MethodRef, TOKEN_ROWS, trained_bias};
use super::params::{AdapterSettings, ParamSpec};
use super::shape::{LayerKind, LayerShape};
use super::target::{ALPHA_PATTERN, ModuleNames, Place, RANK_PATTERN, ends_with_name, first_match};
use crate::Result;

/// The adapter that one layer gets by a configuration.
#[derive(Debug, Clone)]
pub(crate) struct LayerConfig {
    /// The whole configuration.
    pub config: Arc<LoRAConfig>,
    /// The method.
    pub method: MethodRef,
    /// Its settings.
    pub settings: AdapterSettings,
}

impl LayerConfig {
    /// That of a layer to which nothing in `config` is special.
    pub fn of(config: Arc<LoRAConfig>) -> Self {
        let settings = AdapterSettings {
            rank: config.rank,
            alpha: config.alpha,
            use_rslora: config.use_rslora,
            dropout: config.dropout,
            init: config.init,
            lora_bias: config.lora_bias,
            trains_bias: false,
            trains_layer: true,
            begins_with_base: false,
            freeze_a: config.freeze_a,
            token_indices: Vec::new(),
            vocab_size: None,
            ties_output: false,
        };
        Self {
            method: config.method,
            settings,
            config,
        }
    }

    /// That of a layer of these names; none if the layer has no adapter.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if a pattern is no regular expression, or a row of
    /// the vocabulary is asked for that the embedding does not have.
    pub fn of_layer(
        config: &Arc<LoRAConfig>,
        names: &ModuleNames,
        layer: &LayerShape,
    ) -> Result<Option<Self>> {
        let base = Self::of(config.clone());
        let is_trained = is_in(&config.modules_to_save, config, names);
        if is_trained || is_in(&config.modules_to_keep, config, names) {
            return Ok(Some(base.whole(names, is_trained)));
        }
        if let Some(ids) = token_rows(config, names, layer) {
            check_rows(&ids, layer)?;
            let with_rows = |settings: &mut AdapterSettings| settings.token_indices = ids;
            return Ok(Some(base.with_method(&TOKEN_ROWS, with_rows)));
        }
        if is_target(config, names, layer)? {
            return base.of_target(names, layer).map(Some);
        }
        let trains_bias = config.bias == TrainedBias::All && layer.has_bias;
        Ok(trains_bias.then(|| base.with_method(&BIAS, |_| {})))
    }

    /// That of an embedding whose adapter is the output's too, which has the same weight; none if the configuration
    /// asks for no such adapter.
    ///
    /// # Errors
    /// As [`Self::of_layer`], and if one adapter cannot be both.
    pub fn of_tied(
        config: &Arc<LoRAConfig>,
        [embedding, output]: [&ModuleNames; 2],
        layer: &LayerShape,
    ) -> Result<Option<Self>> {
        if !config.ensure_weight_tying {
            return Ok(None);
        }
        let is_any_in = |modules| {
            [embedding, output]
                .iter()
                .any(|n| is_in(modules, config, n))
        };
        let is_trained = is_any_in(&config.modules_to_save);
        if is_trained || is_any_in(&config.modules_to_keep) {
            let whole = Self::of(config.clone()).whole(embedding, is_trained);
            return Ok(Some(whole.tying_output()));
        }
        let [_, of_output] = [embedding, output].map(|names| config.names_vocabulary(names));
        if !of_output? && !config.names_vocabulary(embedding)? {
            return Ok(None);
        }
        let found = Self::of(config.clone()).of_target(embedding, layer)?;
        let of_output = Self::of(config.clone()).of_target(output, layer)?;
        check_tied(&found.settings, &of_output)?;
        Ok(Some(found.tying_output()))
    }

    fn tying_output(mut self) -> Self {
        self.settings.ties_output = true;
        self
    }

    fn whole(self, names: &ModuleNames, is_trained: bool) -> Self {
        let vocab_size = self.config.vocab_size.filter(|_| names.is_vocabulary);
        self.with_method(&FULL, |settings| {
            settings.trains_layer = is_trained;
            settings.vocab_size = vocab_size;
        })
    }

    /// Another method than the configuration's.
    pub fn with_method(
        mut self,
        method: &'static dyn Method,
        change: impl FnOnce(&mut AdapterSettings),
    ) -> Self {
        self.method = MethodRef(method);
        change(&mut self.settings);
        self
    }

    fn of_target(mut self, names: &ModuleNames, layer: &LayerShape) -> Result<Self> {
        let Self {
            config, settings, ..
        } = &mut self;
        let rank = first_match(&config.rank_pattern, names, config.naming, RANK_PATTERN)?;
        let alpha = first_match(&config.alpha_pattern, names, config.naming, ALPHA_PATTERN)?;
        settings.rank = rank.copied().unwrap_or(config.rank);
        settings.alpha = alpha.copied().unwrap_or(config.alpha);
        check_init(settings, layer)?;
        settings.begins_with_base = layer.kind == LayerKind::Linear && settings.init.shifts_base();
        settings.trains_bias = layer.has_bias && config.bias != TrainedBias::None;
        Ok(self)
    }

    /// The table of parameters of an adapter beside `layer`.
    ///
    /// # Panics
    /// If the method does not adapt layers of this kind.
    pub fn params(&self, layer: &LayerShape) -> Vec<ParamSpec> {
        let method = self.method.0;
        assert!(
            method.adapts(layer.kind),
            "`{}` does not adapt a layer of this kind",
            method.name()
        );
        let mut params = method.params(layer, &self.settings);
        if self.settings.trains_bias && layer.has_bias {
            params.push(trained_bias(layer, "base_layer.bias"));
        }
        params
    }
}

fn is_target(config: &LoRAConfig, names: &ModuleNames, layer: &LayerShape) -> Result<bool> {
    let place = match (names.is_vocabulary, layer.kind) {
        (false, LayerKind::Linear) => Place::Inside,
        _ => Place::Elsewhere,
    };
    let adapts = config.method.0.adapts(layer.kind);
    let is_named =
        layer.kind == LayerKind::Linear && names.is_parameter_in(&config.target_parameters);
    Ok(adapts && (is_named || config.selection().selects(names, place)?))
}

/// By the end of the name, whole part or not: `norm` is `sa_norm` too.
pub(super) fn is_in(modules: &[String], config: &LoRAConfig, names: &ModuleNames) -> bool {
    let mut all = names.by_naming(config.naming);
    all.any(|name| modules.iter().any(|end| name.ends_with(end)))
}

fn token_rows(config: &LoRAConfig, names: &ModuleNames, layer: &LayerShape) -> Option<Vec<usize>> {
    if !TOKEN_ROWS.adapts(layer.kind) {
        return None;
    }
    let mut all = names.by_naming(config.naming);
    let found = all.find_map(|name| {
        let mut rows = config.trainable_token_indices.iter();
        rows.find(|(end, _)| name == *end || ends_with_name(name, end))
    });
    found.map(|(_, ids)| ids.clone())
}

fn check_rows(ids: &[usize], layer: &LayerShape) -> Result<()> {
    let [vocab_size, _] = layer.dims;
    match ids.iter().find(|id| **id >= vocab_size) {
        None => Ok(()),
        Some(id) => Err(invalid(
            "trainable_token_indices",
            format!("row {id} is asked for of an embedding of {vocab_size}"),
        )),
    }
}

/// An embedding's adapter is the output's too where both have one scale, by factors that each can have.
fn check_tied(embedding: &AdapterSettings, output: &LayerConfig) -> Result<()> {
    let refused = |what: &str| {
        let message = format!(
            "one adapter for embedding and output cannot be had with {what}; leave it out, or set \
             ensure_weight_tying to false for an adapter of each"
        );
        Err(invalid("ensure_weight_tying", message))
    };
    let (init, method) = (embedding.init, output.method);
    match () {
        () if method != MethodRef(&LORA) => refused(&format!("the method `{method:?}`")),
        () if ![Init::Kaiming, Init::Gaussian, Init::Eva].contains(&init) => {
            refused(&format!("the first values `{init}`"))
        }
        () if embedding.lora_bias => refused("a bias of B"),
        () if (embedding.rank, embedding.alpha)
            != (output.settings.rank, output.settings.alpha) =>
        {
            refused("patterns that give them other ranks or alphas")
        }
        () => Ok(()),
    }
}

/// A weight has no more principal parts than its shorter side.
fn check_init(settings: &AdapterSettings, layer: &LayerShape) -> Result<()> {
    let ([rows, columns], AdapterSettings { rank, init, .. }) = (layer.dims, settings);
    let is_begun = layer.kind == LayerKind::Linear && init.shifts_base();
    match is_begun && *rank > rows.min(columns) {
        false => Ok(()),
        true => Err(invalid(
            "rank",
            format!("{init} of a {rows} x {columns} weight has no rank {rank}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_layer(config: LoRAConfig, path: &str, layer: LayerShape) -> Option<LayerConfig> {
        let names = ModuleNames::new(path);
        let config = Arc::new(config);
        LayerConfig::of_layer(&config, &names, &layer).unwrap()
    }

    #[test]
    fn patterns_give_layers_their_own_rank_and_alpha() {
        let config = LoRAConfig::new(["q_proj", "v_proj"])
            .with_rank_pattern([("layers.1.attn.q_proj", 2)])
            .with_alpha_pattern([("v_proj", 4.0)]);
        let linear = LayerShape::linear(4, 4, false);
        let found = |path: &str| {
            let settings = of_layer(config.clone(), path, linear)?.settings;
            Some((settings.rank, settings.alpha, settings.scale()))
        };
        assert_eq!(found("layers.0.attn.q_proj"), Some((8, 16.0, 2.0)));
        assert_eq!(found("layers.1.attn.q_proj"), Some((2, 16.0, 8.0)));
        assert_eq!(found("layers.1.attn.v_proj"), Some((8, 4.0, 0.5)));
        assert_eq!(found("layers.1.attn.k_proj"), None);
    }

    #[test]
    fn biases_are_trained_with_or_without_an_adapter() {
        let config = LoRAConfig::new(["q_proj"]).with_bias(TrainedBias::All);
        let [with, without] = [true, false].map(|bias| LayerShape::linear(4, 4, bias));
        let q = of_layer(config.clone(), "attn.q_proj", with).unwrap();
        assert!(q.settings.trains_bias);
        let k = of_layer(config.clone(), "attn.k_proj", with).unwrap();
        assert_eq!(k.method, MethodRef(&BIAS));
        assert!(of_layer(config, "attn.k_proj", without).is_none());
    }
}
