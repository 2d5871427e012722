//! How the rotary embedding is scaled, in metadata and tensors.

use burn::tensor::TensorData;
use serde_json::{Map, Value as Json, json};

use super::architectures::Architecture;
use super::config::{Model, fields};
use super::rope::{factors_of, llama3_scaling};
use crate::gguf::Value;
use crate::llama::families::{longrope_attention_factor, scaling_to_json};
use crate::llama::{LlamaConfig, RopeScaling};
use crate::{Error, Result};

/// By what Llama 3's scaling divides each frequency.
const LLAMA3_FACTORS: &str = "rope_freqs.weight";
/// And longrope beyond and up to the original context.
const LONG_FACTORS: &str = "rope_factors_long.weight";
const SHORT_FACTORS: &str = "rope_factors_short.weight";
/// Tensors that are no weights of the model.
pub(super) const ROPE_TENSORS: [&str; 3] = [LLAMA3_FACTORS, LONG_FACTORS, SHORT_FACTORS];

const TYPE: &str = "rope.scaling.type";
const FACTOR: &str = "rope.scaling.factor";
const ATTN_FACTOR: &str = "rope.scaling.attn_factor";
const ORIGINAL: &str = "rope.scaling.original_context_length";
const LOG_MULTIPLIER: &str = "rope.scaling.yarn_log_multiplier";
const EXT_FACTOR: &str = "rope.scaling.yarn_ext_factor";
const YARN_ATTN_FACTOR: &str = "rope.scaling.yarn_attn_factor";
const BETAS: [&str; 2] = ["rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"];
/// Those that llama.cpp has where a file does not say.
const USUAL_BETAS: [f64; 2] = [32.0, 1.0];
/// The factor of queries that grows with the position, in the place that it has in a `config.json`.
const QUERY_FACTOR: &str = "llama_4_scaling_beta";
/// By how much numbers of f32 may differ that stand for the same, relatively.
const TOLERANCE: f64 = 1e-6;

/// The scaling in the fields of a `config.json`, in which it has its own object.
///
/// # Errors
/// [`Error::Format`] if it is one that such a model does not have or that is not computed here.
pub(super) fn scaling_fields(model: &Model, head_dim: usize) -> Result<Map<String, Json>> {
    let scaling = scaling(model, head_dim)?;
    let mut found = scaling.as_ref().map(scaling_to_json);
    if model.architecture.reads("attention.temperature_scale") {
        let beta = model.number("attention.temperature_scale")?;
        if let Some(beta) = beta.filter(|beta| *beta != 0.0) {
            let rope = found.get_or_insert_with(|| fields(json!({ "rope_type": "default" })));
            rope.insert(QUERY_FACTOR.to_owned(), beta.into());
            let original = "original_max_position_embeddings".to_owned();
            rope.insert(original, original_len(model)?.into());
        }
    }
    let mut all = fields(json!({ "rope_scaling": found }));
    if model.architecture.scalings.contains(&"longrope") {
        // Beside the scaling, where it has precedence.
        let original = "original_max_position_embeddings".to_owned();
        all.insert(original, original_len(model)?.into());
    }
    Ok(all)
}

fn original_len(model: &Model) -> Result<usize> {
    model.size_or(ORIGINAL, model.size("context_length")?)
}

fn scaling(model: &Model, head_dim: usize) -> Result<Option<RopeScaling>> {
    let rotated = model.size_or("rope.dimension_count", head_dim)?;
    let base = model.number("rope.freq_base")?.unwrap_or(1e4);
    let named = named(model)?;
    if let Some(long) = long_factors(model)? {
        return match named.as_deref() {
            None | Some("longrope") => longrope(model, long).map(Some),
            Some(other) => Err(model.error(TYPE, format!("`{other}` beside `{LONG_FACTORS}`"))),
        };
    }
    let found = match named.as_deref() {
        None => None,
        Some("linear") => Some(RopeScaling::Linear {
            factor: factor(model)?.unwrap_or(1.0),
        }),
        Some("yarn") => Some(yarn(model)?),
        Some(other) => {
            return Err(model.error(TYPE, format!("`{other}`, but no `{LONG_FACTORS}`")));
        }
    };
    let is_yarn = matches!(found, Some(RopeScaling::Yarn { .. }));
    if !is_yarn && let Some(other) = model.number(ATTN_FACTOR)?.filter(|by| *by != 1.0) {
        return Err(model.error(ATTN_FACTOR, format!("{other} is not supported here")));
    }
    let Some(factors) = model.numbers(LLAMA3_FACTORS)? else {
        return Ok(found);
    };
    let is_llama3 = model.architecture.scalings.contains(&"llama3") && found.is_none();
    let by_tensor = llama3_scaling(&factors, rotated, base).filter(|_| is_llama3);
    by_tensor.ok_or_else(|| {
        let message = format!(
            "`{LLAMA3_FACTORS}` does not have the factors of Llama 3.1's rope scaling with its own bounds; load the \
             model's original folder"
        );
        Error::format(model.metadata.path, message)
    })
}

/// The kind of scaling that a file names, if it names one that scales.
fn named(model: &Model) -> Result<Option<String>> {
    let name = model.metadata.text(&model.key(TYPE))?;
    let factor = factor(model)?;
    let found = match name {
        Some("none") => None,
        // As in llama.cpp.
        None | Some("linear") => factor.map(|_| "linear"),
        Some(other) => Some(other),
    };
    let known = model.architecture.scalings;
    match found {
        Some(other) if other == "llama3" || !known.contains(&other) => {
            let known = known.iter().filter(|name| **name != "llama3");
            let known: Vec<_> = ["none"].iter().chain(known).copied().collect();
            let message = format!("`{other}` is not one of {}", known.join(", "));
            Err(model.error(TYPE, message))
        }
        found => Ok(found.map(str::to_owned)),
    }
}

/// The factor under its name or an older one, if it scales.
fn factor(model: &Model) -> Result<Option<f64>> {
    let older = model.number("rope.scale_linear")?;
    let factor = model.number(FACTOR)?.or(older);
    match factor.filter(|factor| ![0.0, 1.0].contains(factor)) {
        Some(factor) if !(factor.is_finite() && factor > 0.0) => {
            Err(model.error(FACTOR, format!("{factor} is not above 0")))
        }
        factor => Ok(factor),
    }
}

fn yarn(model: &Model) -> Result<RopeScaling> {
    let factor = model
        .metadata
        .need(&model.key(FACTOR), model.number(FACTOR)?)?;
    let [fast, slow, multiplier] =
        [BETAS[0], BETAS[1], LOG_MULTIPLIER].map(|key| model.number(key));
    let beta_fast = fast?.unwrap_or(USUAL_BETAS[0]);
    let beta_slow = slow?.unwrap_or(USUAL_BETAS[1]);
    let multiplier = multiplier?.unwrap_or_default();
    let attention_factor =
        yarn_scale(factor, multiplier) * model.number(ATTN_FACTOR)?.unwrap_or(1.0);
    // What llama.cpp passes over.
    let mut others = vec![
        (EXT_FACTOR, model.number(EXT_FACTOR)?, [-1.0, 1.0]),
        (
            YARN_ATTN_FACTOR,
            model.number(YARN_ATTN_FACTOR)?,
            [1.0, attention_factor],
        ),
    ];
    if !model.architecture.reads_yarn_bounds {
        others.extend([
            (BETAS[0], Some(beta_fast), [USUAL_BETAS[0]; 2]),
            (BETAS[1], Some(beta_slow), [USUAL_BETAS[1]; 2]),
            (LOG_MULTIPLIER, Some(multiplier), [0.0; 2]),
        ]);
    }
    others
        .into_iter()
        .try_for_each(|(key, value, known)| require_one_of(model, key, value, known))?;
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast,
        beta_slow,
        truncate: true,
        attention_factor,
        original_max_seq_len: original_len(model)?,
    })
}

/// Checks that a value, if there is one, is one of two.
fn require_one_of(model: &Model, key: &str, value: Option<f64>, known: [f64; 2]) -> Result<()> {
    let is_near = |a: f64, b: f64| (a - b).abs() <= TOLERANCE * b.abs();
    let is_known = |value: &f64| known.into_iter().any(|known| is_near(*value, known));
    match value.filter(|value| !is_known(value)) {
        Some(other) => Err(model.error(key, format!("{other} is not supported"))),
        None => Ok(()),
    }
}

/// What llama.cpp multiplies cos and sin by, by the factor and a file's multiplier of its logarithm.
fn yarn_scale(factor: f64, multiplier: f64) -> f64 {
    let scale = |by: f64| match factor <= 1.0 {
        true => 1.0,
        false => 0.1 * by * factor.ln() + 1.0,
    };
    scale(1.0) / scale(multiplier)
}

fn long_factors(model: &Model) -> Result<Option<[Vec<f32>; 2]>> {
    let [long, short] = [LONG_FACTORS, SHORT_FACTORS].map(|name| model.numbers(name));
    match (long?, short?) {
        (None, None) => Ok(None),
        (Some(long), Some(short)) if model.architecture.scalings.contains(&"longrope") => {
            Ok(Some([long, short]))
        }
        _ => {
            let message = format!(
                "`{LONG_FACTORS}` and `{SHORT_FACTORS}` stand together, and in models with `longrope` only"
            );
            Err(Error::format(model.metadata.path, message))
        }
    }
}

fn longrope(model: &Model, [long, short]: [Vec<f32>; 2]) -> Result<RopeScaling> {
    let decimals = |numbers: Vec<f32>| numbers.into_iter().map(crate::gguf::shortest);
    let original = original_len(model)?;
    let grown = model.size("context_length")? as f64 / original.max(1) as f64;
    let usual = longrope_attention_factor(grown, original);
    let given = model.number(ATTN_FACTOR)?.unwrap_or(1.0);
    Ok(RopeScaling::LongRope {
        short_factor: decimals(short).collect(),
        long_factor: decimals(long).collect(),
        // The number that was rounded, if it is the usual one.
        attention_factor: match given as f32 == usual as f32 {
            true => usual,
            false => given,
        },
        original_max_seq_len: original,
    })
}

/// Checks that llama.cpp computes a model's scaling in an architecture.
///
/// # Errors
/// What it does not compute, and what it does.
pub(super) fn require_scaling(
    architecture: &Architecture,
    config: &LlamaConfig,
) -> Result<(), String> {
    let Some(scaling) = &config.rope_scaling else {
        return Ok(());
    };
    let fields = scaling_to_json(scaling);
    let (kind, known) = (&fields["rope_type"], architecture.scalings);
    match known.iter().any(|known| kind == known) {
        true => Ok(()),
        false => Err(format!(
            "llama.cpp computes no `{}` whose rotary embedding is scaled by {kind}; known are {}",
            architecture.name,
            known.join(", ")
        )),
    }
}

/// What a file says of a model's scaling, below the architecture's name.
pub(super) fn scaling_values(
    architecture: &Architecture,
    config: &LlamaConfig,
) -> Vec<(&'static str, Value)> {
    let number = |number: f64| Value::F32(number as f32);
    match config.rope_scaling {
        Some(RopeScaling::Linear { factor }) => {
            vec![(TYPE, "linear".into()), (FACTOR, number(factor))]
        }
        Some(RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            attention_factor,
            original_max_seq_len,
            ..
        }) => {
            let multiplier = log_multiplier(architecture, attention_factor);
            let scale = yarn_scale(factor, multiplier);
            vec![
                (TYPE, "yarn".into()),
                (FACTOR, number(factor)),
                (ORIGINAL, Value::size(original_max_seq_len)),
                (BETAS[0], number(beta_fast)),
                (BETAS[1], number(beta_slow)),
                (LOG_MULTIPLIER, number(multiplier)),
                (ATTN_FACTOR, number(attention_factor / scale)),
            ]
        }
        Some(RopeScaling::LongRope {
            attention_factor,
            original_max_seq_len,
            ..
        }) => vec![
            (ORIGINAL, Value::size(original_max_seq_len)),
            (ATTN_FACTOR, number(attention_factor)),
        ],
        _ => Vec::new(),
    }
}

/// Where nothing is multiplied, 1 as Ministral's files have it.
fn log_multiplier(architecture: &Architecture, attention_factor: f64) -> f64 {
    let is_one = architecture.reads_yarn_bounds && attention_factor == 1.0;
    f64::from(is_one)
}

/// The tensors of a model's scaling.
pub(super) fn scaling_tensors(config: &LlamaConfig) -> Vec<(&'static str, TensorData)> {
    let rotated = config.rotated_dim();
    let tensor = |factors: Vec<f32>| TensorData::new(factors, [rotated / 2]);
    match &config.rope_scaling {
        Some(scaling @ RopeScaling::Llama3 { .. }) => {
            let factors = factors_of(scaling, rotated, config.rope_base);
            vec![(LLAMA3_FACTORS, tensor(factors))]
        }
        Some(RopeScaling::LongRope {
            short_factor,
            long_factor,
            ..
        }) => {
            let rounded = |numbers: &[f64]| numbers.iter().map(|n| *n as f32).collect();
            vec![
                (LONG_FACTORS, tensor(rounded(long_factor))),
                (SHORT_FACTORS, tensor(rounded(short_factor))),
            ]
        }
        _ => Vec::new(),
    }
}
