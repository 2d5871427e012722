//! What llama.cpp calls the families of models, and what its files say of each: a row per architecture. Most
//! of a model is known by its family, whose `config.json` the rows are told in: what is here is which
//! metadata say which field, and where llama.cpp has a rule of its own in place of one.

use serde_json::{Map, Value, json};

use crate::llama::LlamaConfig;
use crate::llama::families::{SLIDING, saved_family};

/// A kind of model in GGUF files.
#[derive(Debug)]
pub(super) struct Architecture {
    pub name: &'static str,
    /// Its families, by their names in `config.json`. A file is of the last whose key is there and not 0.
    pub families: &'static [(&'static str, Option<&'static str>)],
    /// Whether neighbouring rows of q and k are rotated, not those half a head apart.
    pub rotates_neighbours: bool,
    /// What is said beside what is of all models.
    pub rows: &'static [Row],
    pub windows: Windows,
    /// The scalings of the rotary embedding that llama.cpp computes, by its names; `llama3` is a tensor.
    pub scalings: &'static [&'static str],
    /// Whether llama.cpp reads yarn's bounds and its multiplier of the logarithm; else it has the usual
    /// bounds.
    pub reads_yarn_bounds: bool,
    /// Whether a part of each head may be rotated.
    pub rotates_parts: bool,
    /// Flags that are true where a file does not say, and what they mean if they are false, which is not computed here.
    pub flags: &'static [(&'static str, &'static str)],
    /// Adds to the fields of a `config.json` what follows from llama.cpp's rules.
    complete: fn(&mut Map<String, Value>),
    /// What llama.cpp would not compute of a model that its files can describe.
    refuses: fn(&LlamaConfig) -> Option<&'static str>,
}

/// A number of the metadata, below the architecture's name, and the field of a `config.json` that says the
/// same.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub key: &'static str,
    pub field: &'static str,
    pub kind: Kind,
}

/// How a number is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Size,
    /// 0 is none.
    Number,
}

/// Which layers have the window that a file names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Windows {
    None,
    All,
    /// All but the last of every so many, where a file does not say otherwise, and the window where it names
    /// none.
    AllBut {
        every: usize,
        window: usize,
    },
}

const fn size(key: &'static str, field: &'static str) -> Row {
    let kind = Kind::Size;
    Row { key, field, kind }
}

const fn number(key: &'static str, field: &'static str) -> Row {
    let kind = Kind::Number;
    Row { key, field, kind }
}

/// Rows of all architectures.
pub(super) const COMMON: [Row; 8] = [
    size("context_length", "max_position_embeddings"),
    size("embedding_length", "hidden_size"),
    size("block_count", "num_hidden_layers"),
    size("feed_forward_length", "intermediate_size"),
    size("attention.head_count", "num_attention_heads"),
    size("attention.head_count_kv", "num_key_value_heads"),
    number("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    number("rope.freq_base", "rope_theta"),
];

const CAUSAL: (&str, &str) = ("attention.causal", "attention that looks ahead");

const LLAMA: Architecture = Architecture {
    name: "llama",
    families: &[("llama", None), ("mistral", None)],
    rotates_neighbours: true,
    rows: &[],
    windows: Windows::All,
    scalings: &["linear", "yarn", "llama3"],
    reads_yarn_bounds: false,
    rotates_parts: false,
    flags: &[CAUSAL],
    complete: |_| {},
    refuses: |_| None,
};

const QWEN3: Architecture = Architecture {
    name: "qwen3",
    families: &[("qwen3", None)],
    rotates_neighbours: false,
    scalings: &["linear", "yarn"],
    refuses: |config| first([biases(config)]),
    ..LLAMA
};

/// The architectures that are read and written. A Mistral is a Llama there.
pub(super) static ARCHITECTURES: [Architecture; 11] = [
    LLAMA,
    Architecture {
        name: "qwen2",
        families: &[("qwen2", None)],
        refuses: |_| None,
        ..QWEN3
    },
    QWEN3,
    Architecture {
        name: "gemma2",
        families: &[("gemma2", None)],
        rotates_neighbours: false,
        rows: &[
            number("attn_logit_softcapping", "attn_logit_softcapping"),
            number("final_logit_softcapping", "final_logit_softcapping"),
        ],
        windows: Windows::AllBut {
            every: 2,
            window: 4096,
        },
        scalings: &["linear"],
        complete: |fields| complete_gemma(fields, 46),
        refuses: |config| first([biases(config), untied(config)]),
        ..LLAMA
    },
    Architecture {
        name: "gemma3",
        families: &[("gemma3_text", None)],
        rotates_neighbours: false,
        rows: &[
            number("final_logit_softcapping", "final_logit_softcapping"),
            number("rope.freq_base_swa", "rope_local_base_freq"),
        ],
        windows: Windows::AllBut {
            every: 6,
            window: 0,
        },
        scalings: &["linear"],
        complete: |fields| complete_gemma(fields, 62),
        refuses: |config| first([biases(config)]),
        ..LLAMA
    },
    Architecture {
        name: "phi3",
        families: &[("phi3", None)],
        rotates_neighbours: false,
        scalings: &["longrope"],
        rotates_parts: true,
        refuses: |config| first([biases(config), odd_heads(config)]),
        ..LLAMA
    },
    Architecture {
        name: "smollm3",
        families: &[("smollm3", None)],
        windows: Windows::None,
        scalings: &["linear", "yarn"],
        refuses: |config| first([biases(config)]),
        ..LLAMA
    },
    Architecture {
        name: "granite",
        families: &[("granite", None)],
        rows: &[
            number("attention.scale", "attention_multiplier"),
            number("embedding_scale", "embedding_multiplier"),
            number("residual_scale", "residual_multiplier"),
            number("logit_scale", "logits_scaling"),
        ],
        windows: Windows::None,
        flags: &[
            CAUSAL,
            ("rope.scaling.finetuned", "a Granite without rotation"),
        ],
        complete: complete_granite,
        ..LLAMA
    },
    Architecture {
        name: "olmo2",
        families: &[("olmo2", None), ("olmo3", Some("attention.sliding_window"))],
        rotates_neighbours: false,
        windows: Windows::AllBut {
            every: 4,
            window: 0,
        },
        scalings: &["linear", "yarn"],
        complete: complete_olmo,
        refuses: |config| first([biases(config), tied(config), odd_heads(config)]),
        ..LLAMA
    },
    Architecture {
        name: "mistral3",
        families: &[
            ("mistral", None),
            ("ministral3", Some("attention.temperature_scale")),
        ],
        rows: &[number(
            "attention.temperature_scale",
            "llama_4_scaling_beta",
        )],
        reads_yarn_bounds: true,
        ..LLAMA
    },
    Architecture {
        name: "qwen3moe",
        families: &[("qwen3_moe", None)],
        rows: &[
            size("expert_count", "num_experts"),
            size("expert_used_count", "num_experts_per_tok"),
            size("expert_feed_forward_length", "moe_intermediate_size"),
        ],
        complete: complete_experts,
        refuses: |config| first([biases(config), dense_layers(config)]),
        ..QWEN3
    },
];

impl Architecture {
    /// The architecture with a name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|known| known.name == name)
    }

    /// The names of all of them.
    pub(super) fn names() -> String {
        ARCHITECTURES.each_ref().map(|known| known.name).join(", ")
    }

    /// That of a model; what llama.cpp lacks for it, if there is none.
    pub(super) fn of(config: &LlamaConfig) -> Result<&'static Self, String> {
        let family = saved_family(config).map_or(&*config.model_type, |family| family.model_type);
        let is_own = |architecture: &&Self| architecture.has_family(family);
        let found = ARCHITECTURES.iter().find(is_own).ok_or_else(|| {
            let families = ARCHITECTURES.iter().flat_map(|known| known.families);
            let names: Vec<_> = families.map(|(name, _)| *name).collect();
            let names = names.join(", ");
            format!("a `{family}` is not one of the models that are written as GGUF: {names}")
        })?;
        match (found.refuses)(config) {
            None => Ok(found),
            Some(what) => Err(format!(
                "llama.cpp computes no `{}` that has {what}",
                found.name
            )),
        }
    }

    fn has_family(&self, model_type: &str) -> bool {
        self.families.iter().any(|(name, _)| *name == model_type)
    }

    /// Adds what a file of this architecture leaves to llama.cpp.
    pub(super) fn complete(&self, fields: &mut Map<String, Value>) {
        (self.complete)(fields);
    }

    /// Whether a key, below the name, is read.
    pub(super) fn reads(&self, key: &str) -> bool {
        self.rows.iter().any(|row| row.key == key)
    }
}

fn size_of(fields: &Map<String, Value>, field: &str) -> u64 {
    let size = fields.get(field).and_then(Value::as_u64);
    size.unwrap_or(1).max(1)
}

/// Scores are divided by the root of a head's width; in the largest model, which llama.cpp knows by its
/// number of layers, by that of what a head has of the hidden state.
fn complete_gemma(fields: &mut Map<String, Value>, largest: u64) {
    let size = |field| size_of(fields, field);
    let scalar = match size("num_hidden_layers") == largest {
        true => size("hidden_size") / size("num_attention_heads"),
        false => size("head_dim"),
    };
    fields.insert("query_pre_attn_scalar".to_owned(), scalar.into());
}

/// A file without a scale of the scores has that of other models.
fn complete_granite(fields: &mut Map<String, Value>) {
    let scale = (size_of(fields, "head_dim") as f64).powf(-0.5);
    let given = fields.entry("attention_multiplier").or_insert(Value::Null);
    if given.is_null() {
        *given = scale.into();
    }
}

/// Layers with a window rotate by the same base, without the scaling.
fn complete_olmo(fields: &mut Map<String, Value>) {
    let base = fields.get("rope_theta").cloned();
    let local = json!({ SLIDING: { "rope_type": "default", "rope_theta": base } });
    fields.insert("rope_parameters".to_owned(), local);
}

/// The weights of a token's experts are divided by their sum. A file without the width of an expert has that
/// of all of a token's together.
fn complete_experts(fields: &mut Map<String, Value>) {
    let inside = size_of(fields, "intermediate_size") / size_of(fields, "num_experts_per_tok");
    fields
        .entry("moe_intermediate_size")
        .or_insert(inside.into());
    fields.insert("norm_topk_prob".to_owned(), true.into());
}

fn first<const N: usize>(found: [Option<&'static str>; N]) -> Option<&'static str> {
    found.into_iter().flatten().next()
}

fn biases(config: &LlamaConfig) -> Option<&'static str> {
    let has_some = config.qkv_bias || config.output_proj_bias || config.mlp_bias;
    has_some.then_some("biases")
}

fn tied(config: &LlamaConfig) -> Option<&'static str> {
    let shares = config.tie_embeddings;
    shares.then_some("one weight for embedding and output")
}

fn untied(config: &LlamaConfig) -> Option<&'static str> {
    let is_untied = !config.tie_embeddings;
    is_untied.then_some("an output of its own")
}

fn odd_heads(config: &LlamaConfig) -> Option<&'static str> {
    let is_odd = config.q_dim() != config.embed_dim;
    is_odd.then_some("heads that are not as wide together as the hidden state")
}

fn dense_layers(config: &LlamaConfig) -> Option<&'static str> {
    let mut layers = 0..config.num_layers;
    let has_some = layers.any(|layer| config.experts_of(layer).is_none());
    has_some.then_some("layers without experts")
}
