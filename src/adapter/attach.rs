//! Adapters on a model that is there already: put on, taken off, switched, merged.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use burn::module::Module;

use super::found::Layers;
use super::params::{get_adapter_params, get_params, set_trainable_params, trained_names};
use super::path::Role;
use super::state_dict::{StateDict, StateReader, compare_keys, load_tensors, state_readers};
use crate::error::nearest;
use crate::lora::{
    AdaptedLayer, DEFAULT_ADAPTER, LayerConfig, LayerKind, LoRAAdapter, LoRAConfig, ModuleNames,
    Place, collect_layers, edit_layers, key_prefix,
};
use crate::{Error, Result};

/// Puts new adapters on every layer that `config` selects, of any module that holds this crate's layers, in the place
/// of those that were put on before. Everything else is frozen. Nothing is allocated.
///
/// ```
/// use burn::module::Module;
/// use burn::tensor::Device;
/// use burn_peft::adapter::{ParamCount, with_adapters};
/// use burn_peft::lora::{LoRAConfig, LoRALinear};
///
/// #[derive(Module, Debug)]
/// struct Classifier {
///     hidden: LoRALinear,
///     output: LoRALinear,
/// }
///
/// # fn main() -> burn_peft::Result<()> {
/// let device = Device::default().autodiff();
/// let model = Classifier {
///     hidden: LoRALinear::plain(2, 64, true, &device),
///     output: LoRALinear::plain(64, 2, true, &device),
/// };
/// let model = with_adapters(model, &LoRAConfig::new(["hidden"]).with_rank(2))?;
/// assert_eq!(ParamCount::of(&model).trainable, 2 * (2 + 64));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::InvalidArgument`] if the configuration cannot be used, or an entry of it (a target or exclusion, a layer, a
/// key of `rank_pattern` or `alpha_pattern`, a module to save, an embedding) means nothing that the model has: with the
/// nearest that it has. Entries in the words of a file of PEFT's ([`Naming::HuggingFace`](crate::lora::Naming)) may mean
/// nothing, as in PEFT, as long as some layer is adapted.
pub fn with_adapters<M: Module>(model: M, config: &LoRAConfig) -> Result<M> {
    with_named_adapters(model, config, DEFAULT_ADAPTER)
}

/// [`with_adapters`] under a name of the adapters' own: a model can hold several. Those of this name give way on every
/// layer, those of other names stay and no longer act.
///
/// # Errors
/// As [`with_adapters`]; [`Error::InvalidArgument`] if the name is empty.
pub fn with_named_adapters<M: Module>(model: M, config: &LoRAConfig, name: &str) -> Result<M> {
    with_new_adapters(model, config, name, ModuleNames::new)
}

/// The same, with all the names of the model's modules.
pub(crate) fn with_new_adapters<M: Module>(
    model: M,
    config: &LoRAConfig,
    name: &str,
    names: impl Fn(&str) -> ModuleNames + 'static,
) -> Result<M> {
    check_name(name)?;
    config.validate()?;
    let config = Arc::new(config.clone());
    let plan = Plan::of(&model, &config, names)?;
    plan.require_all_found(&model, &config)?;
    Ok(attach_all(model, plan, name))
}

/// The same for whatever a configuration finds, maybe nothing.
pub(crate) fn with_found_adapters<M: Module>(
    model: M,
    config: &LoRAConfig,
    names: impl Fn(&str) -> ModuleNames + 'static,
) -> Result<M> {
    let plan = Plan::of(&model, &Arc::new(config.clone()), names)?;
    Ok(attach_all(model, plan, DEFAULT_ADAPTER))
}

fn attach_all<M: Module>(model: M, plan: Plan, name: &str) -> M {
    let attached = name.to_owned();
    let targets: HashMap<String, LoRAAdapter> = plan.adapters.into_iter().collect();
    let model = edit_layers(model, move |place, layer| {
        let Some(adapter) = targets.get(place.path) else {
            layer.slot_mut().remove(&attached);
            return layer.slot_mut().set_active(&[]);
        };
        layer.freeze_base();
        layer.slot_mut().insert(&attached, adapter.clone());
    });
    train_only(model, name)
}

/// An empty name would leave no trace in state-dict keys, as the default one.
pub(super) fn check_name(name: &str) -> Result<()> {
    match name.is_empty() {
        false => Ok(()),
        true => Err(Error::InvalidArgument {
            name: "adapter",
            message: "an adapter's name must not be empty; that of one without a name is `default`"
                .into(),
        }),
    }
}

/// Lets the adapter of this name be trained, and nothing else.
pub(super) fn train_only<M: Module>(model: M, name: &str) -> M {
    let own = adapter_keys(&model, name);
    let trained = get_adapter_params(&model).filter(|key, _| own.contains_key(key));
    set_trainable_params(model, &trained)
}

/// What a configuration means for each layer that it selects, by path.
///
/// # Errors
/// [`Error::InvalidArgument`] if a pattern is no regular expression.
pub(crate) fn plan<M: Module>(
    model: &M,
    config: &LoRAConfig,
    names: impl Fn(&str) -> ModuleNames + 'static,
) -> Result<Vec<(String, LayerConfig)>> {
    let plan = Plan::of(model, &Arc::new(config.clone()), names)?;
    let adapters = plan.adapters.into_iter();
    Ok(adapters
        .map(|(path, adapter)| (path, adapter.layer_config()))
        .collect())
}

/// What a configuration puts where.
struct Plan {
    /// Every layer's names and kind.
    modules: Vec<(ModuleNames, LayerKind)>,
    /// The adapted layers' paths and adapters.
    adapters: Vec<(String, LoRAAdapter)>,
}

impl Plan {
    fn of<M: Module>(
        model: &M,
        config: &Arc<LoRAConfig>,
        names: impl Fn(&str) -> ModuleNames + 'static,
    ) -> Result<Self> {
        let config = config.clone();
        let tied = tied_paths(model);
        let layers = collect_layers(model, move |place, layer| {
            let tied = tied
                .iter()
                .find(|paths| paths.contains(&place.path.to_owned()));
            let tied = tied.map(|paths| paths.each_ref().map(|path| names(path)));
            let names = names(place.path);
            let adapter = new_adapter(&config, place, layer, &names, tied.as_ref());
            Some((names, layer.shape().kind, adapter))
        });
        let mut plan = Self {
            modules: Vec::new(),
            adapters: Vec::new(),
        };
        for (names, kind, adapter) in layers {
            if let Some(adapter) = adapter? {
                plan.adapters.push((names.path.clone(), adapter));
            }
            plan.modules.push((names, kind));
        }
        Ok(plan)
    }

    /// Every entry of the configuration must mean something, and a layer be adapted.
    fn require_all_found<M: Module>(&self, model: &M, config: &LoRAConfig) -> Result<()> {
        let layers = Layers {
            model,
            known: &self.modules,
        };
        layers.require_all_named(config)?;
        match self.adapters.is_empty() {
            true => Err(layers.nothing_adapted(config)),
            false => Ok(()),
        }
    }
}

/// The paths of every embedding whose weight is an output's too, and of that output.
fn tied_paths<M: Module>(model: &M) -> Vec<[String; 2]> {
    collect_layers(model, |place, layer| {
        let paths = [place.base_path, place.path].map(str::to_owned);
        layer.is_tied().then_some(paths)
    })
}

/// `tied` has the names of embedding and output, where the layer is one of two with one weight.
fn new_adapter(
    config: &Arc<LoRAConfig>,
    place: &Place<'_>,
    layer: &dyn AdaptedLayer,
    names: &ModuleNames,
    tied: Option<&[ModuleNames; 2]>,
) -> Result<Option<LoRAAdapter>> {
    let shape = layer.shape();
    let of_both = match tied {
        Some(tied) => LayerConfig::of_tied(config, tied.each_ref(), &shape)?,
        None => None,
    };
    let found = match (of_both, layer.is_tied()) {
        (Some(_), true) => None,
        (Some(of_both), false) => Some(of_both),
        (None, _) => LayerConfig::of_layer(config, names, &shape)?,
    };
    let is_own = |found: &LayerConfig| {
        !layer.is_tied() || !config.shares_rows(&found.settings.token_indices)
    };
    let device = place.device();
    Ok(found
        .filter(is_own)
        .map(|found| LoRAAdapter::new(shape, found, &place.params, &device)))
}

/// The model without its adapters: the base model, bit for bit.
pub fn without_adapters<M: Module>(model: M) -> M {
    edit_layers(model, |_, layer| *layer.slot_mut() = Default::default())
}

/// The model with the adapters that act added to its weights: a plain model with the same outputs. The sum is
/// formed in f32 and rounded once.
///
/// # Panics
/// If an adapter is on an output that shares the embedding's weight:
/// [`TransformerDecoder::merge_lora`](crate::llama::TransformerDecoder::merge_lora) gives it a weight of its own.
pub fn merge_adapters<M: Module>(model: M) -> M {
    edit_layers(model, |_, layer| layer.merge())
}

/// A copy of the model in which no adapter acts, sharing all values with it: the base, for one forward pass. What
/// [DPO](https://arxiv.org/abs/2305.18290) compares with.
pub fn disabled<M: Module>(model: &M) -> M {
    edit_layers(model.clone(), |_, layer| layer.slot_mut().set_active(&[]))
}

/// Lets the adapters of these names act, in the order in which they were attached, and no others. Those that act are
/// trained, the other adapters are not, as with `set_adapter` of PEFT; whatever is no adapter stays as it is.
/// [`set_trainable_params`] after it trains less: an adapter that acts and rests, say.
///
/// # Errors
/// [`Error::InvalidArgument`] if the model has no adapter of such a name.
pub fn set_active_adapters<M: Module>(model: M, names: &[&str]) -> Result<M> {
    let known = adapter_names(&model);
    for name in names {
        require_name(&known, name)?;
    }
    let acting: Vec<String> = names.iter().map(|name| name.to_string()).collect();
    let model = edit_layers(model, move |_, layer| {
        let acting: Vec<&str> = acting.iter().map(String::as_str).collect();
        layer.slot_mut().set_active(&acting);
    });
    Ok(train_acting(model, &known, names))
}

/// Lets those of the adapters be trained that act.
fn train_acting<M: Module>(model: M, adapters: &[String], acting: &[&str]) -> M {
    let keys = |name: &str| adapter_keys(&model, name).into_keys();
    let own: HashSet<String> = adapters.iter().flat_map(|name| keys(name)).collect();
    let acting: HashSet<String> = acting.iter().flat_map(|name| keys(name)).collect();
    let already = trained_names(&model);
    let trained = get_params(&model).filter(|key, info| match own.contains(key) {
        true => info.role == Role::Adapter && acting.contains(key),
        false => already.contains(key),
    });
    set_trainable_params(model, &trained)
}

pub(super) fn require_attached<M: Module>(model: &M, name: &str) -> Result<()> {
    require_name(&adapter_names(model), name)
}

fn require_name(known: &[String], name: &str) -> Result<()> {
    if known.iter().any(|other| other == name) {
        return Ok(());
    }
    let message = match known {
        [] => "the model has no adapter".to_owned(),
        _ => format!(
            "the model has no adapter `{name}`; there are {}",
            known.join(", ")
        ),
    };
    Err(Error::InvalidArgument {
        name: "adapter",
        message,
    })
}

/// The names of a model's adapters, in the order in which they were attached.
pub fn adapter_names<M: Module>(model: &M) -> Vec<String> {
    let names = collect_layers(model, |_, layer| {
        let names = layer.slot().iter().map(|(name, _)| name.to_owned());
        Some(names.collect::<Vec<_>>())
    });
    let mut seen = HashSet::new();
    let names = names.into_iter().flatten();
    names.filter(|name| seen.insert(name.clone())).collect()
}

/// The configuration that the adapter of this name was made by; none if the model has no such adapter.
pub fn adapter_config<M: Module>(model: &M, name: &str) -> Option<Arc<LoRAConfig>> {
    let name = name.to_owned();
    let configs = collect_layers(model, move |_, layer| {
        Some(layer.slot().get(&name)?.config().clone())
    });
    configs.into_iter().next()
}

/// Every layer's adapter of a name with the layer's path, in the model's order. Copies share their values.
pub fn adapter_layers<M: Module>(model: &M, name: &str) -> Vec<(String, LoRAAdapter)> {
    let name = name.to_owned();
    collect_layers(model, move |place, layer| {
        let adapter = layer.slot().get(&name)?;
        Some((place.path.to_owned(), adapter.clone()))
    })
}

/// An adapter as a value: its configuration and its tensors on the host, apart from any model.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Adapter {
    /// The configuration.
    pub config: LoRAConfig,
    /// The tensors by the keys that they have in a model in which the adapter is called [`DEFAULT_ADAPTER`].
    pub tensors: StateDict,
}

impl Adapter {
    /// An adapter of a configuration and tensors.
    pub fn new(config: LoRAConfig, tensors: StateDict) -> Self {
        Self { config, tensors }
    }

    /// A copy of a model's adapter.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the model has none of this name.
    pub fn of<M: Module>(model: &M, name: &str) -> Result<Self> {
        require_attached(model, name)?;
        let config = adapter_config(model, name).expect("the model has this adapter");
        let tensors = named_readers(model, name)
            .into_iter()
            .map(|(key, reader)| (key, reader.read()));
        Ok(Self {
            config: (*config).clone(),
            tensors: tensors.collect(),
        })
    }

    /// Puts the adapter on a model under a name and lets it act alone; another of this name gives way, whatever its
    /// rank. A Llama knows its modules by more names: see
    /// [`TransformerDecoder::attach`](crate::llama::TransformerDecoder::attach).
    ///
    /// # Errors
    /// As [`with_adapters`]; [`Error::Keys`] if a tensor is missing or belongs to no layer, [`Error::Shape`] if one
    /// is for another model.
    pub fn attach<M: Module>(&self, model: M, name: &str) -> Result<M> {
        self.attach_by(model, name, ModuleNames::new)
    }

    pub(crate) fn attach_by<M: Module>(
        &self,
        model: M,
        name: &str,
        names: impl Fn(&str) -> ModuleNames + 'static,
    ) -> Result<M> {
        let mut model = with_new_adapters(model, &self.config, name, names)?;
        let (own, tensors): (Vec<String>, StateDict) = named_readers(&model, name)
            .into_iter()
            .filter_map(|(key, reader)| Some((reader.key, self.tensors.get(&key)?.clone())))
            .map(|(key, value)| (key.clone(), (key, value)))
            .unzip();
        self.require_same_keys(&model, name)?;
        let shapes = tensors
            .iter()
            .map(|(key, v)| (key.as_str(), &v.shape()[..]));
        compare_keys(&model, "the adapter", shapes)?;
        load_tensors(&mut model, &own, |key| Ok(tensors[key].clone()))?;
        Ok(model)
    }

    fn require_same_keys<M: Module>(&self, model: &M, name: &str) -> Result<()> {
        let expected: HashSet<String> = named_readers(model, name)
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        let mut missing: Vec<String> = expected
            .iter()
            .filter(|key| !self.tensors.contains_key(*key))
            .cloned()
            .collect();
        missing.sort();
        let unexpected = self.tensors.keys().filter(|key| !expected.contains(*key));
        let unexpected: Vec<_> = unexpected
            .map(|key| {
                let near = nearest(key, expected.iter().map(String::as_str), 1).pop();
                (key.clone(), near)
            })
            .collect();
        match missing.is_empty() && unexpected.is_empty() {
            true => Ok(()),
            false => Err(Error::Keys {
                origin: "the adapter".into(),
                missing,
                unexpected,
            }),
        }
    }
}

/// The keys of an adapter's parameters in the model, each with that which it has where the adapter is called
/// [`DEFAULT_ADAPTER`].
fn adapter_keys<M: Module>(model: &M, name: &str) -> HashMap<String, String> {
    let keys = |(path, adapter): (String, LoRAAdapter)| {
        let [own, default] = [name, DEFAULT_ADAPTER].map(|name| key_prefix(&path, name));
        let names: Vec<&'static str> = adapter.params().map(|spec| spec.name).collect();
        let pairs = names.into_iter();
        pairs.map(move |name| (format!("{own}{name}"), format!("{default}{name}")))
    };
    let layers = adapter_layers(model, name).into_iter();
    layers.flat_map(keys).collect()
}

/// Readers of an adapter's tensors, with the keys that they have where it is called [`DEFAULT_ADAPTER`].
fn named_readers<M: Module>(model: &M, name: &str) -> Vec<(String, StateReader)> {
    let keys = adapter_keys(model, name);
    let readers = state_readers(model).into_iter();
    readers
        .filter_map(|reader| Some((keys.get(&reader.key)?.clone(), reader)))
        .collect()
}

/// Takes the adapter of this name off.
pub(super) fn detached<M: Module>(model: M, name: &str) -> M {
    let name = name.to_owned();
    edit_layers(model, move |_, layer| {
        layer.slot_mut().remove(&name);
    })
}

/// Takes an adapter off a model, which then is what it was before; other adapters stay, and none acts.
///
/// # Errors
/// [`Error::InvalidArgument`] if the model has none of this name.
pub fn detach<M: Module>(model: M, name: &str) -> Result<(M, Adapter)> {
    let adapter = Adapter::of(&model, name)?;
    Ok((detached(model, name), adapter))
}
