//! The sizes of a model: those of `params.json`, and those that only the tensors tell.

use super::weights::MetaWeights;
use crate::checkpoint::base::BaseWeights;
use crate::checkpoint::keys::{EMBEDDING, OUTPUT, in_words_of};
use crate::llama::LlamaConfig;
use crate::tokenizer::MetaTokens;
use crate::{Error, Result};

/// What the fields are called here and there.
const NAMES: [(&str, &str); 6] = [
    ("vocab_size", "vocab_size"),
    ("num_layers", "n_layers"),
    ("num_heads", "n_heads"),
    ("num_kv_heads", "n_kv_heads"),
    ("embed_dim", "dim"),
    ("head_dim", "dim"),
];

/// The sizes of the model in a folder.
pub(super) fn config_of(weights: &MetaWeights) -> Result<LlamaConfig> {
    let params = weights.params();
    let matrix = |key: &str| match weights.shape(key) {
        Some([rows, columns]) => Ok([*rows, *columns]),
        _ => Err(missing(weights, key)),
    };
    let embedding @ [vocab_size, _] = matrix(EMBEDDING)?;
    let [intermediate_dim, _] = matrix("layers.0.mlp.w1.weight")?;
    require_tensors(weights, embedding, intermediate_dim)?;
    let tokens = MetaTokens::beside(weights.dir())?;
    let known = |id: &u32| (*id as usize) < vocab_size;
    let config = LlamaConfig {
        vocab_size,
        num_layers: params.fields.n_layers as usize,
        num_heads: params.fields.n_heads as usize,
        num_kv_heads: params.fields.n_kv_heads.unwrap_or(params.fields.n_heads) as usize,
        head_dim: params.head_dim(),
        embed_dim: params.dim(),
        intermediate_dim,
        max_seq_len: params.max_seq_len(),
        norm_eps: params.fields.norm_eps,
        rope_base: params.fields.rope_theta,
        rope_scaling: params.rope_scaling(),
        tie_embeddings: weights.shape(OUTPUT).is_none(),
        bos_token_id: tokens.bos.filter(known),
        eos_token_ids: tokens.ends.into_iter().filter(known).collect(),
        ..LlamaConfig::llama2_7b()
    };
    config
        .validate()
        .map_err(|error| params.wrong(in_words_of(error, &NAMES)))?;
    Ok(config)
}

/// What the file says of sizes must be so.
fn require_tensors(
    weights: &MetaWeights,
    [vocab_size, dim]: [usize; 2],
    intermediate: usize,
) -> Result<()> {
    let params = weights.params();
    let fields = &params.fields;
    let vocabulary = fields.vocab_size.filter(|size| *size >= 0);
    let vocabulary = vocabulary.map(|size| usize::try_from(size).unwrap_or(usize::MAX));
    let told = [
        ("`dim`", Some(params.dim()), dim),
        ("`vocab_size`", vocabulary, vocab_size),
        (
            "`n_layers`",
            Some(fields.n_layers as usize),
            weights.num_layers(),
        ),
        (
            "the width that `dim`, `multiple_of` and `ffn_dim_multiplier` make",
            params.intermediate_dim(),
            intermediate,
        ),
    ];
    let wrong = told.into_iter().find_map(|(what, told, found)| {
        told.filter(|told| *told != found)
            .map(|told| (what, told, found))
    });
    match wrong {
        None => Ok(()),
        Some((what, told, found)) => Err(params.wrong(format!(
            "{what} is {told}, but {found} by the tensors; are all files there, and of this model?"
        ))),
    }
}

fn missing(weights: &MetaWeights, key: &str) -> Error {
    Error::Keys {
        origin: weights.origin(),
        missing: weights.own_name(key).into_iter().collect(),
        unexpected: Vec::new(),
    }
}
