use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::adapter::{
    ParamInfo, ParamSet, Path, StateDict, follow_path, get_params, lasting_tensor, to_host,
    transposed,
};
use crate::error::nearest;
use crate::lora::ends_with_name;
use crate::ops::{AdamWStep, GraphState, adamw};
use crate::settings::setters;
use crate::{Error, Result};

/// The constants of [`AdamW`], with PyTorch's defaults.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AdamWConfig {
    /// The decay rates of the first and second moments.
    pub betas: (f64, f64),
    /// What is added to the root of the second moment.
    pub eps: f64,
    /// The weight decay, decoupled from the gradient and scaled by the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.01,
        }
    }
}

impl AdamWConfig {
    setters! {
        with_betas => betas: (f64, f64),
        with_eps => eps: f64,
        with_weight_decay => weight_decay: f64,
    }
}

/// AdamW with the semantics of `torch.optim.AdamW`. Loshchilov and Hutter,
/// <https://arxiv.org/abs/1711.05101>, algorithm 2:
///
/// ```text
/// p ← (1 - lr·λ) p
/// m ← β₁ m + (1 - β₁) g          v ← β₂ v + (1 - β₂) g²
/// p ← p - lr / (1 - β₁ᵗ) · m / (sqrt(v / (1 - β₂ᵗ)) + ε)
/// ```
///
/// Moments and updates are f32 whatever a parameter's own type. A parameter without a gradient is
/// left alone and has no state.
#[derive(Debug, Clone)]
pub struct AdamW {
    config: AdamWConfig,
    /// By the end of a parameter's name.
    lr_factors: Vec<(String, f64)>,
    states: HashMap<ParamId, State>,
}

#[derive(Debug, Clone)]
struct State {
    /// How often the parameter was updated.
    step: i32,
    /// First and second moment, flattened.
    exp_avg: Tensor<1>,
    exp_avg_sq: Tensor<1>,
}

impl State {
    /// The state of a parameter that was not updated yet.
    fn new(grad: &Tensor<1>) -> Self {
        let zeros = |_| [grad.zeros_like(), grad.zeros_like()];
        let [exp_avg, exp_avg_sq] = grad.device().memory_persistent_allocations((), zeros);
        Self {
            step: 0,
            exp_avg,
            exp_avg_sq,
        }
    }
}

/// Whether a parameter's full name is, or ends with, a name.
fn is_named(param: &str, name: &str) -> bool {
    param == name || ends_with_name(param, name)
}

/// A parameter's full name and its ends.
fn ends_of(param: &str) -> impl Iterator<Item = &str> {
    let ends = param.match_indices('.').map(|(dot, _)| &param[dot + 1..]);
    std::iter::once(param).chain(ends)
}

impl AdamW {
    /// An optimizer without state.
    pub fn new(config: AdamWConfig) -> Self {
        Self {
            config,
            lr_factors: Vec::new(),
            states: HashMap::new(),
        }
    }

    /// Multiplies the learning rate of the parameters whose full name is or ends with `name` (after a dot) by a
    /// factor; of several such names that were given the last counts. A name that no parameter has is told at the first
    /// step.
    ///
    /// With `"lora_b.weight"` and a factor of about 16 this is LoRA+. Hayou et al.,
    /// <https://arxiv.org/abs/2402.12354>.
    pub fn with_lr_factor(mut self, name: impl Into<String>, factor: f64) -> Self {
        self.lr_factors.push((name.into(), factor));
        self
    }

    fn lr_factor(&self, param: &str) -> f64 {
        let mut factors = self.lr_factors.iter().rev();
        factors
            .find_map(|(name, factor)| is_named(param, name).then_some(*factor))
            .unwrap_or(1.0)
    }

    /// Checks at the first step that each name of a factor is that of a parameter.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for one that is not, with the nearest that is.
    pub(super) fn check_lr_factors<M: Module>(&self, model: &M) -> Result<()> {
        if self.lr_factors.is_empty() || !self.states.is_empty() {
            return Ok(());
        }
        let params = get_params(model);
        for (name, _) in &self.lr_factors {
            if params.names().any(|param| is_named(param, name)) {
                continue;
            }
            let near = nearest(name, params.names().flat_map(ends_of), 1).pop();
            let hint = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            return Err(Error::InvalidArgument {
                name: "lr_factor",
                message: format!("no parameter is called `{name}`{hint}"),
            });
        }
        Ok(())
    }

    /// How many parameters have state.
    pub fn num_states(&self) -> usize {
        self.states.len()
    }

    /// Updates every parameter that has a gradient.
    ///
    /// # Panics
    /// At the first step, if a factor's name (see [`Self::with_lr_factor`]) is that of no parameter.
    pub fn step<M: Module>(&mut self, lr: f64, model: M, grads: GradientsParams) -> M {
        if let Err(error) = self.check_lr_factors(&model) {
            panic!("{error}");
        }
        self.step_scaled(lr, 1.0, model, grads)
    }

    /// The same with gradients that are multiplied by `grad_scale` first.
    pub(super) fn step_scaled<M: Module>(
        &mut self,
        lr: f64,
        grad_scale: f64,
        model: M,
        grads: GradientsParams,
    ) -> M {
        model.map(&mut Updater {
            path: Path::default(),
            optimizer: self,
            lr,
            grad_scale,
            grads,
        })
    }

    /// The moments and step counts under PyTorch's names: `<parameter>.exp_avg`,
    /// `<parameter>.exp_avg_sq`, `<parameter>.step`.
    pub fn state_dict<M: Module>(&self, model: &M) -> StateDict {
        let params = get_params(model);
        let with_state = params
            .iter()
            .filter_map(|(name, info)| Some((name, self.states.get(&info.id)?)));
        with_state
            .flat_map(|(name, state)| {
                let step = TensorData::new(vec![state.step], [1]);
                [
                    (format!("{name}.exp_avg"), to_host(state.exp_avg.clone())),
                    (
                        format!("{name}.exp_avg_sq"),
                        to_host(state.exp_avg_sq.clone()),
                    ),
                    (format!("{name}.step"), step),
                ]
            })
            .collect()
    }

    /// Takes over a state that [`state_dict`](Self::state_dict) gave for the same model. Moments may also have
    /// the shape of their parameter, and steps be floats, as PyTorch has them.
    ///
    /// # Errors
    /// [`Error::Keys`] if an entry belongs to no parameter of the model or lacks its siblings,
    /// [`Error::Shape`] if it has another shape, [`Error::Format`] if a step is no count.
    pub fn load_state_dict<M: Module>(&mut self, model: &M, values: &StateDict) -> Result<()> {
        let params = get_params(model);
        let device = model
            .devices()
            .into_iter()
            .next()
            .unwrap_or_default()
            .inner();
        let mut states = HashMap::new();
        for key in values.keys() {
            let Some(name) = key.strip_suffix(".exp_avg") else {
                check_sibling(key, values, &params)?;
                continue;
            };
            let info = params.get(name).ok_or_else(|| unexpected(key, &params))?;
            let moment = |suffix| read_moment(values, name, suffix, info);
            states.insert(
                info.id,
                State {
                    step: read_step(values, name)?,
                    exp_avg: lasting_tensor(moment("exp_avg")?, &device),
                    exp_avg_sq: lasting_tensor(moment("exp_avg_sq")?, &device),
                },
            );
        }
        self.states = states;
        Ok(())
    }
}

const ORIGIN: &str = "optimizer state";

fn unexpected(key: &str, params: &ParamSet) -> Error {
    let candidate = nearest(key, params.names(), 1).pop();
    Error::Keys {
        origin: ORIGIN.into(),
        missing: Vec::new(),
        unexpected: vec![(key.to_owned(), candidate)],
    }
}

fn missing(key: String) -> Error {
    Error::Keys {
        origin: ORIGIN.into(),
        missing: vec![key],
        unexpected: Vec::new(),
    }
}

/// An entry that is not a first moment must stand beside one.
fn check_sibling(key: &str, values: &StateDict, params: &ParamSet) -> Result<()> {
    let suffixes = [".exp_avg_sq", ".step"];
    let name = suffixes.into_iter().find_map(|s| key.strip_suffix(s));
    let name = name.ok_or_else(|| unexpected(key, params))?;
    match values.contains_key(&format!("{name}.exp_avg")) {
        true => Ok(()),
        false => Err(missing(format!("{name}.exp_avg"))),
    }
}

/// A moment of a parameter, flattened.
fn read_moment(values: &StateDict, name: &str, suffix: &str, of: &ParamInfo) -> Result<TensorData> {
    let key = format!("{name}.{suffix}");
    let value = values.get(&key).ok_or_else(|| missing(key.clone()))?;
    let flat = [of.num_elements()];
    let found = value.shape().to_vec();
    if found == flat || found == of.shape {
        let value = match of.is_transposed && found == of.shape {
            true => transposed(value.clone()),
            false => value.clone(),
        };
        let (bytes, _, dtype) = value.into_parts();
        let flattened = TensorData::from_bytes(bytes, flat, dtype);
        return Ok(flattened.convert_dtype(DType::F32));
    }
    Err(other_shape(key, flat, found))
}

fn other_shape(key: String, expected: [usize; 1], found: Vec<usize>) -> Error {
    Error::Shape {
        origin: ORIGIN.into(),
        key,
        expected: expected.to_vec(),
        found,
    }
}

fn read_step(values: &StateDict, name: &str) -> Result<i32> {
    let key = format!("{name}.step");
    let value = values.get(&key).ok_or_else(|| missing(key.clone()))?;
    let mut steps = value.iter::<f64>();
    let (Some(step), None) = (steps.next(), steps.next()) else {
        return Err(other_shape(key, [1], value.shape().to_vec()));
    };
    let is_count = (1.0..=f64::from(i32::MAX)).contains(&step) && step.fract() == 0.0;
    if is_count {
        return Ok(step as i32);
    }
    let message = format!("`{key}` is {step}, not the number of a parameter's updates");
    Err(Error::format(ORIGIN, message))
}

struct Updater<'a> {
    path: Path,
    optimizer: &'a mut AdamW,
    lr: f64,
    grad_scale: f64,
    grads: GradientsParams,
}

impl ModuleMapper for Updater<'_> {
    follow_path!();

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(grad) = self.grads.remove::<D>(param.id) else {
            return param;
        };
        let (id, value, mapper) = param.consume();
        let state = GraphState::of(&value);
        let (shape, dtype) = (value.shape(), value.dtype());
        let flat = |tensor: Tensor<D>| tensor.cast(DType::F32).flatten::<1>(0, D - 1);
        let (value, grad) = (flat(value.inner()), flat(grad));
        let lr = self.lr * self.optimizer.lr_factor(&self.path.key());
        let updated = self.optimizer.update(id, lr, self.grad_scale, value, grad);
        let updated = updated.reshape(shape).cast(dtype);
        Param::from_mapped_value(id, state.give_to(updated, id), mapper)
    }
}

impl AdamW {
    fn update(
        &mut self,
        id: ParamId,
        lr: f64,
        grad_scale: f64,
        value: Tensor<1>,
        grad: Tensor<1>,
    ) -> Tensor<1> {
        let AdamWConfig {
            betas: (beta1, beta2),
            eps,
            weight_decay,
        } = self.config;
        let state = self.states.remove(&id).unwrap_or_else(|| State::new(&grad));
        let step = state.step + 1;
        let numbers = AdamWStep {
            grad_scale,
            beta1,
            beta2,
            eps,
            decay: 1.0 - lr * weight_decay,
            step_size: lr / (1.0 - beta1.powi(step)),
            correction2: (1.0 - beta2.powi(step)).sqrt(),
        };
        let (updated, [exp_avg, exp_avg_sq]) =
            adamw(value, grad, [state.exp_avg, state.exp_avg_sq], numbers);
        let state = State {
            step,
            exp_avg,
            exp_avg_sq,
        };
        self.states.insert(id, state);
        updated
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::lora::{LoRAConfig, LoRALinear};
    use approx::assert_relative_eq;
    use burn::tensor::Device;

    /// With a gradient of 1, both corrected moments are 1 in every step: `p ← (1 - lr·λ) p - lr / (1 + ε)`.
    #[test]
    fn constant_gradients_give_the_closed_form() {
        let device = Device::flex().autodiff();
        let mut param = Param::from_tensor(Tensor::<1>::ones([1], &device));
        let mut optimizer = AdamW::new(AdamWConfig {
            eps: 1.0,
            weight_decay: 0.5,
            ..AdamWConfig::default()
        });
        // 0.95 - 0.05, then 0.95·0.9 - 0.05.
        for expected in [0.9, 0.805] {
            let mut grads = param.val().sum().backward();
            let grads = GradientsParams::from_module(&mut grads, &param);
            param = optimizer.step(0.1, param, grads);
            let value: f32 = param.val().into_scalar();
            assert_relative_eq!(value, expected, max_relative = 1e-6);
        }
    }

    #[test]
    fn a_learning_rate_may_have_a_factor_by_name() {
        let device = Device::flex().autodiff();
        let lora = LoRAConfig::default().with_rank(2);
        let layer = LoRALinear::new(3, 4, &lora, false, &device);
        let optimizer = AdamW::new(AdamWConfig {
            weight_decay: 0.0,
            ..AdamWConfig::default()
        });
        let mut optimizer = optimizer.with_lr_factor("lora_b.weight", 16.0);
        let x = Tensor::<2>::ones([1, 3], &device);
        let value = |layer: &LoRALinear, name| layer.adapter().unwrap().matrix(name);
        let [a, b] = ["lora_a.weight", "lora_b.weight"].map(|name| value(&layer, name));
        // So that A has a gradient too.
        let sum = layer.forward(x).sum() + a.clone().sum();
        let grads = GradientsParams::from_grads(sum.backward(), &layer);
        let layer = optimizer.step(1e-3, layer, grads);
        let moved = |before: Tensor<2>, name| -> f32 {
            (value(&layer, name) - before).abs().max().into_scalar()
        };
        // The first step is as long as the learning rate.
        assert_relative_eq!(moved(a, "lora_a.weight"), 1e-3, max_relative = 1e-3);
        assert_relative_eq!(moved(b, "lora_b.weight"), 16e-3, max_relative = 1e-3);
        assert_eq!(optimizer.lr_factor("layers.0.xlora_b.weight"), 1.0);
    }

    /// A gradient of 1e-3 moves a bf16 of 1 by less than it can hold, but is in the moments.
    #[test]
    fn moments_are_f32_whatever_a_parameter_is() {
        let device = Device::flex().autodiff();
        let value = Tensor::<1>::ones([1], &device).cast(DType::BF16);
        let mut param = Param::from_tensor(value);
        let mut optimizer = AdamW::new(AdamWConfig::default());
        for _ in 0..2 {
            let mut grads = (param.val() * 1e-3).sum().backward();
            let grads = GradientsParams::from_module(&mut grads, &param);
            param = optimizer.step(1e-4, param, grads);
        }
        assert_eq!(param.val().dtype(), DType::BF16);
        let state = &optimizer.states[&param.id];
        assert_eq!(state.exp_avg.dtype(), DType::F32);
        let exp_avg: f32 = state.exp_avg.clone().into_scalar();
        // (1 - 0.9²) of a gradient that was rounded to bf16.
        assert_relative_eq!(exp_avg, 0.19e-3, max_relative = 0.005);
    }

    /// A parameter of shape [2, 3] and its state after a step.
    fn stepped() -> (Param<Tensor<2>>, AdamW) {
        let device = Device::flex().autodiff();
        let param = Param::from_tensor(Tensor::<2>::ones([2, 3], &device));
        let mut optimizer = AdamW::new(AdamWConfig::default());
        let mut grads = param.val().sum().backward();
        let grads = GradientsParams::from_module(&mut grads, &param);
        let param = optimizer.step(0.1, param, grads);
        (param, optimizer)
    }

    /// A state dict of one parameter, with the moments in this shape.
    fn reshaped(values: &StateDict, shape: &[usize]) -> StateDict {
        let mut values = values.clone();
        for (key, value) in &mut values {
            if !key.ends_with(".step") {
                let (bytes, _, dtype) = value.clone().into_parts();
                *value = TensorData::from_bytes(bytes, shape.to_vec(), dtype);
            }
        }
        values
    }

    #[test]
    fn moments_may_have_the_parameters_shape() {
        let (param, mut optimizer) = stepped();
        let values = optimizer.state_dict(&param);
        let shaped = reshaped(&values, &[2, 3]);
        optimizer.load_state_dict(&param, &shaped).unwrap();
        assert_eq!(optimizer.state_dict(&param), values);
        for other in [&[3, 2][..], &[1, 6], &[2, 3, 1]] {
            let error = optimizer.load_state_dict(&param, &reshaped(&values, other));
            assert!(matches!(error, Err(Error::Shape { found, .. }) if found == other));
        }
    }

    #[test]
    fn a_step_is_one_count_of_any_type() {
        let (param, mut optimizer) = stepped();
        let mut values = optimizer.state_dict(&param);
        let key = values.keys().find(|key| key.ends_with("step")).unwrap();
        let key = key.clone();
        let mut load = |step: TensorData| {
            values.insert(key.clone(), step);
            optimizer.load_state_dict(&param, &values)?;
            Ok::<_, Error>(optimizer.states[&param.id].step)
        };
        assert_eq!(load(TensorData::new(vec![7f32], [0; 0])).unwrap(), 7);
        assert_eq!(load(TensorData::new(vec![7i32], [1, 1])).unwrap(), 7);
        for step in [0.0, -1.0, 1.5, 3e9, f32::NAN] {
            let error = load(TensorData::new(vec![step], [1]));
            assert!(matches!(error, Err(Error::Format { .. })), "{step}");
        }
        for steps in [vec![], vec![1, 2]] {
            let count = steps.len();
            let error = load(TensorData::new(steps, [count]));
            assert!(matches!(error, Err(Error::Shape { .. })), "{count}");
        }
    }
}
