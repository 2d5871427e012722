//! The rotary embedding in a `config.json`: `rope_theta` and `rope_scaling` of transformers 4, `rope_parameters` of
//! transformers 5.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use crate::llama::{Rope, RopeScaling};

/// What the fields of one rotary embedding stand beside.
pub struct Outside {
    pub base: f64,
    pub max_seq_len: usize,
    /// The length beside the scaling, which has precedence over the one in it.
    pub original_max_seq_len: Option<usize>,
}

/// The rotary embedding of a family that has one for all layers.
pub fn read_rope(fields: Fields, base: f64, max_seq_len: usize) -> Result<Rope, String> {
    let outside = Outside {
        base: fields.get_or("rope_theta", base)?,
        max_seq_len,
        original_max_seq_len: fields.get("original_max_position_embeddings")?,
    };
    match parameters(fields)? {
        Some(rope) => read_parameters(rope, &outside),
        None => Ok(Rope::new(outside.base)),
    }
}

/// The fields of the rotary embedding. Where a file has both styles, transformers 5 takes the older one.
pub fn parameters<'a>(fields: Fields<'a>) -> Result<Option<Fields<'a>>, String> {
    let older = fields.object("rope_scaling")?;
    older.map_or_else(|| fields.object("rope_parameters"), |older| Ok(Some(older)))
}

/// One rotary embedding.
pub fn read_parameters(rope: Fields, outside: &Outside) -> Result<Rope, String> {
    let base = rope.get_or("rope_theta", outside.base)?;
    Ok(Rope::new(base).with_scaling(scaling(rope, outside)?))
}

/// The kind of a rotary embedding, which older files have as `type`.
pub fn kind(rope: Fields) -> Result<Option<String>, String> {
    let older: Option<String> = rope.get("type")?;
    Ok(rope.get("rope_type")?.or(older))
}

fn scaling(rope: Fields, outside: &Outside) -> Result<Option<RopeScaling>, String> {
    match kind(rope)?.as_deref() {
        None | Some("default") => Ok(None),
        Some("linear") => Ok(Some(RopeScaling::Linear {
            factor: need(rope, "factor")?,
        })),
        Some("dynamic") => Ok(Some(RopeScaling::Dynamic {
            factor: need(rope, "factor")?,
            original_max_seq_len: outside.max_seq_len,
        })),
        Some("yarn") => yarn(rope, outside).map(Some),
        // The name that Phi-3's first files have for it.
        Some("longrope" | "su") => longrope(rope, outside).map(Some),
        Some("llama3") => Ok(Some(RopeScaling::Llama3 {
            factor: need(rope, "factor")?,
            low_freq_factor: need(rope, "low_freq_factor")?,
            high_freq_factor: need(rope, "high_freq_factor")?,
            original_max_seq_len: original_max_seq_len(rope, outside)?,
        })),
        Some(other) => Err(format!(
            "rope type `{other}` is not one of default, linear, dynamic, yarn, longrope, llama3"
        )),
    }
}

fn need(rope: Fields, key: &str) -> Result<f64, String> {
    let value: Option<f64> = rope.get(key)?;
    value.ok_or_else(|| format!("the rope scaling has no {key}"))
}

fn original_max_seq_len(rope: Fields, outside: &Outside) -> Result<usize, String> {
    let inside = rope.get("original_max_position_embeddings")?;
    let length = outside.original_max_seq_len.or(inside);
    match length.unwrap_or(outside.max_seq_len) {
        0 => Err("original_max_position_embeddings is 0".to_owned()),
        length => Ok(length),
    }
}

fn yarn(rope: Fields, outside: &Outside) -> Result<RopeScaling, String> {
    let original_max_seq_len = original_max_seq_len(rope, outside)?;
    let factor = match rope.given::<f64>("factor")? {
        // As transformers has it: by the lengths if it is null.
        Some(None) => outside.max_seq_len as f64 / original_max_seq_len as f64,
        _ => need(rope, "factor")?,
    };
    let given = |key| Ok::<_, String>(rope.get::<f64>(key)?.filter(|value| *value != 0.0));
    let scale = |by: f64| match factor <= 1.0 {
        true => 1.0,
        false => 0.1 * by * factor.ln() + 1.0,
    };
    let by_scales = match (given("mscale")?, given("mscale_all_dim")?) {
        (Some(numerator), Some(denominator)) => scale(numerator) / scale(denominator),
        _ => scale(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: given("beta_fast")?.unwrap_or(32.0),
        beta_slow: given("beta_slow")?.unwrap_or(1.0),
        // Null is false.
        truncate: rope
            .given("truncate")?
            .is_none_or(Option::unwrap_or_default),
        attention_factor: rope.get_or("attention_factor", by_scales)?,
        original_max_seq_len,
    })
}

fn longrope(rope: Fields, outside: &Outside) -> Result<RopeScaling, String> {
    let original_max_seq_len = original_max_seq_len(rope, outside)?;
    let by_lengths = outside.max_seq_len as f64 / original_max_seq_len as f64;
    let factor: f64 = rope.get_or("factor", by_lengths)?;
    let grown = longrope_attention_factor(factor, original_max_seq_len);
    Ok(RopeScaling::LongRope {
        short_factor: rope.need("short_factor")?,
        long_factor: rope.need("long_factor")?,
        attention_factor: rope.get_or("attention_factor", grown)?,
        original_max_seq_len,
    })
}

/// What longrope multiplies cos and sin by in a context that has grown by a factor.
pub fn longrope_attention_factor(factor: f64, original_max_seq_len: usize) -> f64 {
    match factor <= 1.0 {
        true => 1.0,
        false => (1.0 + factor.ln() / (original_max_seq_len as f64).ln()).sqrt(),
    }
}

/// A scaling as the fields of `rope_scaling`.
pub fn scaling_to_json(scaling: &RopeScaling) -> Map<String, Value> {
    let fields = match scaling {
        // Servers that are older than `rope_type` know these by `type`.
        RopeScaling::Linear { factor } => {
            json!({ "rope_type": "linear", "type": "linear", "factor": factor })
        }
        RopeScaling::Dynamic { factor, .. } => {
            json!({ "rope_type": "dynamic", "type": "dynamic", "factor": factor })
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            truncate,
            attention_factor,
            original_max_seq_len,
        } => json!({
            "rope_type": "yarn", "type": "yarn", "factor": factor, "beta_fast": beta_fast, "beta_slow": beta_slow,
            "truncate": truncate, "attention_factor": attention_factor,
            "original_max_position_embeddings": original_max_seq_len,
        }),
        RopeScaling::LongRope {
            short_factor,
            long_factor,
            attention_factor,
            original_max_seq_len,
        } => json!({
            "rope_type": "longrope", "type": "longrope", "short_factor": short_factor, "long_factor": long_factor,
            "attention_factor": attention_factor, "original_max_position_embeddings": original_max_seq_len,
        }),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_seq_len,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_seq_len,
        }),
    };
    match fields {
        Value::Object(fields) => fields,
        _ => unreachable!("an object was written"),
    }
}

/// A rotary embedding as the fields of `rope_parameters`.
pub fn parameters_to_json(rope: &Rope) -> Value {
    let mut fields = match &rope.scaling {
        Some(scaling) => scaling_to_json(scaling),
        None => Map::from_iter([("rope_type".to_owned(), json!("default"))]),
    };
    fields.shift_remove("type");
    fields.insert("rope_theta".to_owned(), rope.base.into());
    fields.into()
}

/// `rope_theta` and `rope_scaling` of the rotary embedding of all layers.
pub fn rope_to_json(rope: &Rope) -> Map<String, Value> {
    let scaling = rope.scaling.as_ref().map(scaling_to_json);
    Map::from_iter([
        ("rope_theta".to_owned(), rope.base.into()),
        (
            "rope_scaling".to_owned(),
            scaling.map_or(Value::Null, Value::Object),
        ),
    ])
}
