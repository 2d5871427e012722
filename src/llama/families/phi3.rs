//! Phi-3, Phi-3.5-mini, Phi-4 and Phi-4-mini: joint projections, and in some a part of each head rotated by longrope.

use serde_json::{Map, Value, json};

use super::layers::{window, windowed};
use super::rope::{Outside, kind, longrope_attention_factor, parameters, read_parameters};
use super::{DEFAULTS, Defaults, Family, Fields, map};
use crate::llama::{Block, LayerAttention, LlamaConfig, Rope, RopeScaling, Rotary, Span};

pub static PHI3: Family = Family {
    model_type: "phi3",
    architecture: "Phi3ForCausalLM",
    defaults: Defaults {
        max_seq_len: ORIGINAL_LEN,
        norm_eps: 1e-5,
        eos: Some(32_000),
        pad: Some(32_000),
        read_rope,
        ..DEFAULTS
    },
    read,
    write,
};

/// `original_max_position_embeddings` where a file does not have it.
const ORIGINAL_LEN: usize = 4096;

fn read(fields: Fields, config: &mut LlamaConfig) -> Result<(), String> {
    config.block.joint_projections = true;
    let sliding = vec![true; config.num_layers];
    let window = fields.get("sliding_window")?;
    config.layer_attention = windowed(sliding, window, Rotary::Global);
    let inside = parameters(fields)?.map_or(Ok(None), |rope| rope.get("partial_rotary_factor"));
    let factor: f64 = match inside? {
        Some(factor) => factor,
        None => fields.get_or("partial_rotary_factor", 1.0)?,
    };
    let rotated = (config.head_dim as f64 * factor) as usize;
    config.rotary_dim = Some(rotated).filter(|dim| *dim != config.head_dim);
    Ok(())
}

/// Longrope alone, which older files call `yarn` or `su`. The length beside the scaling holds, whatever the scaling says,
/// and has a default.
fn read_rope(fields: Fields, base: f64, max_seq_len: usize) -> Result<Rope, String> {
    let original = fields.get_or("original_max_position_embeddings", ORIGINAL_LEN)?;
    let outside = Outside {
        base: fields.get_or("rope_theta", base)?,
        max_seq_len,
        original_max_seq_len: Some(original),
    };
    let Some(rope) = parameters(fields)? else {
        return Ok(Rope::new(outside.base));
    };
    let mut rope = rope.0.clone();
    match kind(Fields(&rope))?.as_deref() {
        None | Some("default") => {}
        Some("longrope" | "su" | "yarn") => {
            rope.insert("rope_type".to_owned(), "longrope".into());
        }
        Some(other) => {
            return Err(format!(
                "rope type `{other}` is not one that a Phi-3 has: default, longrope"
            ));
        }
    }
    read_parameters(Fields(&rope), &outside)
}

fn write(config: &LlamaConfig) -> Map<String, Value> {
    let mut fields = map(json!({
        "sliding_window": window(config),
        "partial_rotary_factor": rotary_factor(config),
        "original_max_position_embeddings": config.max_seq_len,
    }));
    if let Some(RopeScaling::LongRope {
        short_factor,
        long_factor,
        attention_factor,
        original_max_seq_len,
    }) = &config.rope_scaling
    {
        let original = *original_max_seq_len;
        fields.insert(
            "original_max_position_embeddings".to_owned(),
            original.into(),
        );
        let grown = config.max_seq_len as f64 / original as f64;
        // transformers 4 takes no more than these three, and what it takes for the rest is the same then.
        if *attention_factor == longrope_attention_factor(grown, original) {
            let scaling = json!({
                "type": "longrope", "short_factor": short_factor, "long_factor": long_factor,
            });
            fields.insert("rope_scaling".to_owned(), scaling);
        }
    }
    fields
}

/// The factor of a head's width whose product, rounded down, is what is rotated.
fn rotary_factor(config: &LlamaConfig) -> f64 {
    let (rotated, width) = (config.rotated_dim(), config.head_dim as f64);
    let factor = rotated as f64 / width;
    match (width * factor) as usize == rotated {
        true => factor,
        false => factor.next_up(),
    }
}

impl LlamaConfig {
    fn phi3(config: Self, window: Option<usize>) -> Self {
        let layer_attention = window.map(|tokens| LayerAttention {
            span: Span::Window(tokens),
            rotary: Rotary::Global,
        });
        Self {
            model_type: PHI3.model_type.to_owned(),
            max_seq_len: 4096,
            block: Block::default().with_joint_projections(true),
            layer_attention: Vec::from_iter(layer_attention),
            ..config
        }
    }

    /// Phi-3-mini for 4096 tokens.
    pub fn phi3_mini_4k() -> Self {
        let sizes = Self {
            vocab_size: 32_064,
            head_dim: 96,
            embed_dim: 3072,
            intermediate_dim: 8192,
            eos_token_ids: vec![32_000],
            pad_token_id: Some(32_000),
            ..Self::llama2_7b()
        };
        Self::phi3(sizes, Some(2047))
    }

    /// Phi-3-medium for 4096 tokens.
    pub fn phi3_medium_4k() -> Self {
        Self {
            num_layers: 40,
            num_heads: 40,
            num_kv_heads: 10,
            head_dim: 128,
            embed_dim: 5120,
            intermediate_dim: 17_920,
            ..Self::phi3_mini_4k()
        }
    }

    /// Phi-4-mini.
    pub fn phi4_mini() -> Self {
        let sizes = Self {
            vocab_size: 200_064,
            num_heads: 24,
            num_kv_heads: 8,
            head_dim: 128,
            rope_scaling: Some(RopeScaling::LongRope {
                short_factor: vec![1.0; PHI4_MINI_FACTORS.len()],
                long_factor: PHI4_MINI_FACTORS.to_vec(),
                attention_factor: longrope_attention_factor(32.0, ORIGINAL_LEN),
                original_max_seq_len: ORIGINAL_LEN,
            }),
            rotary_dim: Some(96),
            tie_embeddings: true,
            bos_token_id: Some(199_999),
            eos_token_ids: vec![199_999],
            pad_token_id: Some(199_999),
            ..Self::phi3_mini_4k()
        };
        Self::phi3(sizes, Some(262_144)).with_max_seq_len(131_072)
    }

    /// Phi-4.
    pub fn phi4() -> Self {
        let sizes = Self {
            vocab_size: 100_352,
            rope_base: 2.5e5,
            bos_token_id: Some(100_257),
            eos_token_ids: vec![100_265],
            pad_token_id: Some(100_349),
            ..Self::phi3_medium_4k()
        };
        Self::phi3(sizes, None).with_max_seq_len(16_384)
    }
}

/// Phi-4-mini's factors beyond the original context.
const PHI4_MINI_FACTORS: [f64; 48] = [
    1.0,
    1.118320672,
    1.250641126,
    1.398617824,
    1.564103225,
    1.74916897,
    1.956131817,
    2.187582649,
    2.446418898,
    2.735880826,
    3.059592084,
    3.421605075,
    3.826451687,
    4.279200023,
    4.785517845,
    5.351743533,
    5.984965424,
    6.693110555,
    7.485043894,
    8.370679318,
    9.36110372,
    10.4687158,
    11.70738129,
    13.09260651,
    14.64173252,
    16.37415215,
    18.31155283,
    20.47818807,
    22.90118105,
    25.61086418,
    28.64115884,
    32.03,
    32.1,
    32.13,
    32.23,
    32.6,
    32.61,
    32.64,
    32.66,
    32.7,
    32.71,
    32.93,
    32.97,
    33.28,
    33.49,
    33.5,
    44.16,
    47.77,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// What a file says, of four heads of 16 numbers.
    fn parse(with: Value) -> Result<LlamaConfig, String> {
        let mut fields = map(json!({
            "model_type": "phi3", "vocab_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64,
            "intermediate_size": 96, "max_position_embeddings": 8192,
        }));
        fields.extend(map(with));
        PHI3.read(Fields(&fields))
    }

    fn scaling(kind: &str) -> Value {
        let (short, long) = ([1.0; 8], [2.0; 8]);
        json!({
            "type": kind, "short_factor": short, "long_factor": long, "original_max_position_embeddings": 64,
        })
    }

    #[test]
    fn longrope_has_three_names_and_the_length_beside_it() {
        for kind in ["longrope", "su", "yarn"] {
            for (beside, expected) in [(None, 4096), (Some(2048), 2048)] {
                let mut fields = json!({ "rope_scaling": scaling(kind) });
                if let Some(length) = beside {
                    fields["original_max_position_embeddings"] = json!(length);
                }
                let found = parse(fields).unwrap().rope_scaling;
                let Some(RopeScaling::LongRope {
                    attention_factor,
                    original_max_seq_len,
                    ..
                }) = found
                else {
                    panic!("{kind}: {found:?}")
                };
                assert_eq!(original_max_seq_len, expected);
                let grown = 8192.0 / expected as f64;
                assert_eq!(attention_factor, longrope_attention_factor(grown, expected));
            }
        }
    }

    #[test]
    fn other_kinds_are_named_with_what_is_possible() {
        for kind in ["linear", "dynamic", "llama3"] {
            let fields = json!({ "rope_scaling": { "rope_type": kind, "factor": 2.0 } });
            let error = parse(fields).unwrap_err();
            assert!(
                error.contains(kind) && error.ends_with("default, longrope"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_part_of_each_head_is_rotated() {
        for (fields, expected) in [
            (json!({ "partial_rotary_factor": 0.5 }), Some(8)),
            (json!({ "partial_rotary_factor": 1.0 }), None),
            (
                json!({
                    "partial_rotary_factor": 0.5,
                    "rope_parameters": { "rope_type": "default", "partial_rotary_factor": 0.75 },
                }),
                Some(12),
            ),
        ] {
            assert_eq!(parse(fields).unwrap().rotary_dim, expected);
        }
        let odd = parse(json!({ "partial_rotary_factor": 0.7 })).unwrap();
        let error = odd.validate().unwrap_err().to_string();
        assert!(error.contains("rotary_dim"), "{error}");
        for (rotated, width) in [(96, 128), (14, 44), (30, 44), (26, 45)] {
            let config = LlamaConfig::phi3_mini_4k()
                .with_head_dim(width)
                .with_rotary_dim(Some(rotated));
            assert_eq!((width as f64 * rotary_factor(&config)) as usize, rotated);
        }
    }

    /// As transformers 4 takes it, where that can say it.
    #[test]
    fn the_scaling_is_written_in_three_fields_where_they_say_all() {
        let mut fields =
            json!({ "rope_scaling": scaling("longrope"), "original_max_position_embeddings": 64 });
        let written = PHI3.write(&parse(fields.clone()).unwrap());
        let keys = |fields: &Map<String, Value>| fields["rope_scaling"].as_object().map(Map::len);
        assert_eq!(keys(&written), Some(3));
        assert_eq!(written["original_max_position_embeddings"], 64);
        fields["rope_scaling"]["factor"] = json!(2.0);
        let config = parse(fields).unwrap();
        let written = PHI3.write(&config);
        assert_eq!(
            written["rope_scaling"]["attention_factor"],
            longrope_attention_factor(2.0, 64)
        );
        assert_eq!(PHI3.read(Fields(&written)).unwrap(), config);
    }
}
