//! A model of many layers by a few of them: what equal layers hold is a product.

use std::collections::BTreeMap;
use std::iter;
use std::ops::Range;

use burn::tensor::Device;

use super::step::Step;
use super::{EstimateConfig, MemoryEstimate, Moment};
use crate::adapter::{ParamInfo, get_params};
use crate::llama::{TransformerDecoder, TransformerDecoderLayer};
use crate::quantization::BlockFormat;
use crate::training::Activations;
use crate::weight::BaseFormat;

/// How many layers are gone through one by one, however alike they are: those of all published models.
const MOST: usize = 128;
/// After how many layers the same kinds of layers may come again.
const LONGEST_PERIOD: usize = 16;

/// The model of a training, of which nothing is allocated, in the types of no base yet.
pub(super) struct Sketch {
    /// All but the layers.
    rest: TransformerDecoder,
    layers: Vec<TransformerDecoderLayer>,
    packed: BTreeMap<String, BlockFormat>,
    alike: Alike,
}

/// Layers of which each is like the one a period later.
struct Alike {
    layers: Range<usize>,
    period: usize,
}

impl Sketch {
    /// # Panics
    /// If the sizes make up no model, or the configuration of the adapters cannot be used.
    pub fn new(config: &EstimateConfig) -> Self {
        // Nothing is ever put there.
        #[cfg(feature = "flex")]
        let device = Device::flex();
        #[cfg(not(feature = "flex"))]
        let device = Device::default();
        let model = config.model.init(&device.autodiff());
        let model = match &config.lora {
            None => Ok(model),
            Some(lora) => model.with_found_adapters(lora),
        };
        let mut rest = model.unwrap_or_else(|error| panic!("{error}"));
        let layers = std::mem::take(&mut rest.layers);
        Self {
            alike: Alike::among(&kinds(&layers, &config.packed)),
            rest,
            layers,
            packed: config.packed.clone(),
        }
    }

    /// The largest moment of a training of this model, of which `config` may say other types and sizes of batches.
    pub fn largest(&self, config: &EstimateConfig) -> MemoryEstimate {
        let unit = match config.activations {
            Activations::Keep => self.alike.period,
            // A group that is recomputed begins where it began.
            Activations::Recompute { layers } => lcm(self.alike.period, layers),
        };
        let units = match self.layers.len() > MOST && unit > 0 {
            true => self.alike.layers.len() / unit,
            false => 0,
        };
        // Which moment is the largest may change with the number of layers, but not once it grows as fast as any can.
        let mut few = 2;
        while 2 * few < units {
            let moments = [few, few + 1].map(|few| {
                let removed = self.alike.layers.start + few * unit;
                Step::new(
                    config,
                    self.model(config, removed..removed + (units - few) * unit),
                )
                .moments()
            });
            if let Some(largest) = grown(moments, (units - few) as u64, config.activations) {
                return largest;
            }
            few *= 2;
        }
        largest(&self.step(config).moments())
    }

    /// A step of the whole model.
    pub fn step<'a>(&self, config: &'a EstimateConfig) -> Step<'a> {
        Step::new(config, self.model(config, 0..0))
    }

    /// The model without some layers, its base in the types of a training.
    fn model(&self, config: &EstimateConfig, removed: Range<usize>) -> TransformerDecoder {
        let kept = (0..removed.start).chain(removed.end..self.layers.len());
        let moved = |key: &String| match layer_of(key) {
            Some((layer, _)) if removed.contains(&layer) => None,
            Some((layer, rest)) if layer >= removed.end => {
                Some(key_of(layer - removed.len(), rest))
            }
            _ => Some(key.clone()),
        };
        let packed = self.packed.iter();
        let packed = packed.filter_map(|(key, format)| Some((moved(key)?, *format)));
        let model = TransformerDecoder {
            layers: kept.map(|layer| self.layers[layer].clone()).collect(),
            ..self.rest.clone()
        };
        let format = BaseFormat::new(config.dtype).with_quantization(config.quantization);
        let model = model.with_lazy_base(format, packed.collect());
        model.unwrap_or_else(|error| panic!("{error}"))
    }
}

const LAYERS: &str = "layers.";

/// The layer of a key, and the key within it.
fn layer_of(key: &str) -> Option<(usize, &str)> {
    let (layer, rest) = key.strip_prefix(LAYERS)?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

fn key_of(layer: usize, rest: &str) -> String {
    format!("{LAYERS}{layer}.{rest}")
}

/// A number for each layer, the same for those that hold the same.
fn kinds(layers: &[TransformerDecoderLayer], packed: &BTreeMap<String, BlockFormat>) -> Vec<usize> {
    let mut formats = vec![Vec::new(); layers.len()];
    for (key, format) in packed {
        if let Some((layer, rest)) = layer_of(key).filter(|(layer, _)| *layer < layers.len()) {
            formats[layer].push((rest, *format));
        }
    }
    let mut known = Vec::new();
    let all = layers.iter().zip(formats).map(|(layer, formats)| {
        let params = get_params(layer);
        let describe =
            |(name, param): (&str, &ParamInfo)| (name.to_owned(), param.shape.clone(), param.role);
        (params.iter().map(describe).collect::<Vec<_>>(), formats)
    });
    let number = |kind| match known.iter().position(|other| *other == kind) {
        Some(number) => number,
        None => {
            known.push(kind);
            known.len() - 1
        }
    };
    all.map(number).collect()
}

impl Alike {
    /// The most layers that are alike.
    fn among(kinds: &[usize]) -> Self {
        let periods = 1..=LONGEST_PERIOD.min(kinds.len());
        let stretches = periods.flat_map(|period| {
            let repeats = move |layer: &usize| kinds.get(*layer) == kinds.get(layer + period);
            let mut start = 0;
            iter::from_fn(move || {
                if start + period >= kinds.len() {
                    return None;
                }
                let end = (start..kinds.len() - period).find(|layer| !repeats(layer));
                let end = end.unwrap_or(kinds.len() - period);
                let layers = start..end + period;
                start = end + 1;
                Some(Self { layers, period })
            })
        });
        let repeated = stretches.filter(|alike| alike.layers.len() > alike.period);
        let longest =
            repeated.max_by_key(|alike| (alike.layers.len(), std::cmp::Reverse(alike.period)));
        longest.unwrap_or(Self {
            layers: 0..0,
            period: 1,
        })
    }
}

/// The largest moment of a model with so many more layers, from those of two models of which one has a layer more than the
/// other: if that grows by as much as any moment can.
///
/// At the top of the backward pass the activations of all layers are there, at its end the gradients of all. What is in
/// between follows a line from the one to the other and is never above both.
fn grown(
    [less, more]: [Vec<MemoryEstimate>; 2],
    times: u64,
    activations: Activations,
) -> Option<MemoryEstimate> {
    let growth = |moment: Moment, bytes: fn(&MemoryEstimate) -> u64| {
        let [less, more] = [&less, &more].map(|moments| {
            let all = moments.iter().filter(|estimate| estimate.moment == moment);
            all.map(bytes).max()
        });
        more?.checked_sub(less?)
    };
    let always = growth(Moment::Loss, |it| it.weights + it.adapters + it.optimizer)?;
    let kept = growth(Moment::Loss, |it| it.activations)?;
    let held = growth(Moment::Loss, |it| it.gradients)?;
    let formed = growth(Moment::Update, |it| it.gradients)?;
    let at_end = match activations {
        // Beside those of the micro-batches before.
        Activations::Keep => held + formed,
        Activations::Recompute { .. } => formed,
    };
    let fastest = always + (kept + held).max(at_end);
    let (less, more) = (largest(&less), largest(&more));
    let is_it = less.moment == more.moment && less.total() + fastest == more.total();
    let part = |bytes: fn(&MemoryEstimate) -> u64| {
        let (less, more) = (bytes(&less), bytes(&more));
        Some(less + times * more.checked_sub(less)?)
    };
    let grown = MemoryEstimate {
        weights: part(|it| it.weights)?,
        adapters: part(|it| it.adapters)?,
        gradients: part(|it| it.gradients)?,
        optimizer: part(|it| it.optimizer)?,
        activations: part(|it| it.activations)?,
        loss: part(|it| it.loss)?,
        moment: more.moment,
    };
    is_it.then_some(grown)
}

fn largest(moments: &[MemoryEstimate]) -> MemoryEstimate {
    let largest = moments.iter().max_by_key(|moment| moment.total());
    *largest.expect("an update is always there")
}

fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::LlamaConfig;
    use crate::lora::{AttnModule, LoRAConfig};
    use crate::weight::Quantization;

    fn assert_same(config: &EstimateConfig) {
        let sketch = Sketch::new(config);
        let by_all = largest(&sketch.step(config).moments());
        assert_eq!(sketch.largest(config), by_all, "{config:?}");
    }

    /// Models of so many layers that they are not gone through one by one.
    #[test]
    fn equal_layers_are_a_product() {
        let model = LlamaConfig::llama2_7b().with_num_layers(203);
        let qv = || LoRAConfig::new([AttnModule::QProj, AttnModule::VProj]);
        let adapters = [
            None,
            Some(qv()),
            Some(qv().with_dora(true).with_rank(64)),
            Some(qv().with_layers(100..203)),
            Some(qv().with_layers((0..203).step_by(3))),
            Some(qv().with_layers([7])),
        ];
        let recompute = |layers| Activations::Recompute { layers };
        for lora in adapters {
            for activations in [Activations::Keep, recompute(1), recompute(4)] {
                for (rows, tokens, micro_batches) in [(2, 300, 1), (1, 16, 3)] {
                    let config = EstimateConfig::new(model.clone(), lora.clone(), rows, tokens);
                    let config = config.with_activations(activations);
                    assert_same(&config.with_micro_batches(micro_batches));
                }
            }
        }
    }

    #[test]
    fn packed_layers_are_a_product_too() {
        let lora = Some(LoRAConfig::new([AttnModule::QProj]));
        let config = |model| EstimateConfig::new(model, lora.clone(), 1, 64);
        let model = LlamaConfig::llama2_7b().with_num_layers(150);
        assert_same(&config(model.clone()).with_quantization(Some(Quantization::Nf4)));
        // As llama.cpp packs them: others at both ends, and every third in between.
        let of_layer = |layer: usize| match !(10..140).contains(&layer) || layer % 3 == 2 {
            true => BlockFormat::Q6K,
            false => BlockFormat::Q4K,
        };
        let packed = (0..150).map(|layer| (key_of(layer, "attn.v_proj.weight"), of_layer(layer)));
        assert_same(&config(model).with_packed(packed.collect()));
    }

    #[test]
    fn thousands_of_layers_take_as_much_each() {
        let lora = LoRAConfig::new([AttnModule::QProj]);
        let totals = [1000, 2000, 3000].map(|layers| {
            let model = LlamaConfig::llama2_7b().with_num_layers(layers);
            let config = EstimateConfig::new(model, Some(lora.clone()), 1, 512);
            Sketch::new(&config).largest(&config).total()
        });
        assert_eq!(totals[2] - totals[1], totals[1] - totals[0]);
    }

    #[test]
    fn which_layers_are_alike() {
        let alike = |kinds: &[usize]| {
            let alike = Alike::among(kinds);
            (alike.layers, alike.period)
        };
        assert_eq!(alike(&[0; 5]), (0..5, 1));
        assert_eq!(alike(&[1, 0, 0, 0, 2]), (1..4, 1));
        assert_eq!(alike(&[0, 0, 1, 0, 0, 1, 0, 0]), (0..8, 3));
        assert_eq!(alike(&[7, 1, 2, 1, 2, 1, 2, 3, 3]), (1..7, 2));
        assert_eq!(alike(&[0]), (0..0, 1));
        assert_eq!(alike(&[]), (0..0, 1));
    }
}
