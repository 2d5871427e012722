//! What a module is called here and in Hugging Face's files, a row per module.

/// Prefix of PEFT's keys in front of Hugging Face's module names.
const PEFT_PREFIX: &str = "base_model.model.";

/// What stands before the modules of the model below its head.
const MODEL_PREFIX: &str = "model.";

/// Modules outside of the layers: ours, Hugging Face's.
const MODEL: [(&str, &str); 3] = [
    ("tok_embeddings", "model.embed_tokens"),
    ("norm", "model.norm"),
    ("output", "lm_head"),
];

pub(super) const EMBEDDING: &str = "tok_embeddings.weight";
pub(super) const OUTPUT: &str = "output.weight";

/// The base weights that PEFT may save beside an adapter, as `base_layer.weight` where the module has one.
const BESIDE_ADAPTER: [&str; 2] = [EMBEDDING, OUTPUT];

/// Modules of a layer, below `layers.N` and `model.layers.N`.
const LAYER: [(&str, &str); 9] = [
    ("sa_norm", "input_layernorm"),
    ("attn.q_proj", "self_attn.q_proj"),
    ("attn.k_proj", "self_attn.k_proj"),
    ("attn.v_proj", "self_attn.v_proj"),
    ("attn.output_proj", "self_attn.o_proj"),
    ("mlp_norm", "post_attention_layernorm"),
    ("mlp.w1", "mlp.gate_proj"),
    ("mlp.w2", "mlp.down_proj"),
    ("mlp.w3", "mlp.up_proj"),
];

/// Parameters of an adapter: ours, PEFT's.
const ADAPTER: [(&str, &str); 3] = [
    ("lora_a.weight", "lora_A.weight"),
    ("lora_b.weight", "lora_B.weight"),
    ("magnitude", "lora_magnitude_vector"),
];

/// `layers.0.attn.q_proj.weight` to `model.layers.0.self_attn.q_proj.weight`.
pub(super) fn to_hf(key: &str) -> Option<String> {
    let (module, parameter) = key.rsplit_once('.')?;
    Some(format!("{}.{parameter}", module_to_hf(module)?))
}

/// The reverse of [`to_hf`]; also for the model saved without its head, whose names have no `model.`.
pub(super) fn from_hf(key: &str) -> Option<String> {
    let (module, parameter) = key.rsplit_once('.')?;
    let ours =
        module_from_hf(module).or_else(|| module_from_hf(&format!("{MODEL_PREFIX}{module}")));
    Some(format!("{}.{parameter}", ours?))
}

/// `layers.0.attn.q_proj.lora_a.weight` to
/// `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
pub(super) fn to_peft(key: &str) -> Option<String> {
    ADAPTER.iter().find_map(|(ours, theirs)| {
        let module = key.strip_suffix(ours)?.strip_suffix('.')?;
        Some(format!("{PEFT_PREFIX}{}.{theirs}", module_to_hf(module)?))
    })
}

/// The reverse of [`to_peft`] and [`base_to_peft`].
pub(super) fn from_peft(key: &str) -> Option<String> {
    let key = key.strip_prefix(PEFT_PREFIX)?;
    let adapter = ADAPTER.iter().find_map(|(ours, theirs)| {
        let module = key.strip_suffix(theirs)?.strip_suffix('.')?;
        Some(format!("{}.{ours}", module_from_hf(module)?))
    });
    adapter.or_else(|| {
        let module = key.strip_suffix(".weight")?;
        let module = module_from_hf(module.strip_suffix(".base_layer").unwrap_or(module))?;
        Some(format!("{module}.weight")).filter(|key| BESIDE_ADAPTER.contains(&key.as_str()))
    })
}

/// One of the weights of [`BESIDE_ADAPTER`] to its name in PEFT, where the output may have an adapter.
pub(super) fn base_to_peft(key: &str, output_is_adapted: bool) -> Option<String> {
    let module = key
        .strip_suffix(".weight")
        .filter(|_| BESIDE_ADAPTER.contains(&key))?;
    let base_layer = match output_is_adapted && key == OUTPUT {
        true => ".base_layer",
        false => "",
    };
    let theirs = module_to_hf(module)?;
    Some(format!("{PEFT_PREFIX}{theirs}{base_layer}.weight"))
}

/// The module, in Hugging Face's words, that a tensor of PEFT's adapts.
pub(super) fn adapted_by(key: &str) -> Option<&str> {
    let (_, lora_a) = ADAPTER[0];
    key.strip_suffix(lora_a)?.strip_suffix('.')
}

/// The last part of a module's name in Hugging Face's files: `output_proj` to `o_proj`.
pub(super) fn module_name_to_hf(name: &str) -> Option<&'static str> {
    rows().find_map(|(ours, theirs)| (last_part(ours) == name).then_some(last_part(theirs)))
}

/// The reverse of [`module_name_to_hf`].
pub(super) fn module_name_from_hf(name: &str) -> Option<&'static str> {
    rows().find_map(|(ours, theirs)| (last_part(theirs) == name).then_some(last_part(ours)))
}

fn rows() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    MODEL.iter().chain(&LAYER)
}

fn last_part(module: &'static str) -> &'static str {
    module.rsplit('.').next().unwrap_or(module)
}

fn module_to_hf(module: &str) -> Option<String> {
    match module
        .strip_prefix("layers.")
        .and_then(|rest| rest.split_once('.'))
    {
        Some((layer, rest)) => {
            let (_, theirs) = LAYER.iter().find(|(ours, _)| *ours == rest)?;
            Some(format!("model.layers.{layer}.{theirs}"))
        }
        None => {
            let (_, theirs) = MODEL.iter().find(|(ours, _)| *ours == module)?;
            Some(theirs.to_string())
        }
    }
}

fn module_from_hf(module: &str) -> Option<String> {
    match module
        .strip_prefix("model.layers.")
        .and_then(|rest| rest.split_once('.'))
    {
        Some((layer, rest)) => {
            let (ours, _) = LAYER.iter().find(|(_, theirs)| *theirs == rest)?;
            Some(format!("layers.{layer}.{ours}"))
        }
        None => {
            let (ours, _) = MODEL.iter().find(|(_, theirs)| *theirs == module)?;
            Some(ours.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::get_params;
    use crate::llama::LlamaConfig;
    use crate::lora::{AttnModule, LoRAConfig};
    use burn::tensor::Device;

    #[test]
    fn every_key_of_a_model_maps_there_and_back() {
        let lora = LoRAConfig::new(AttnModule::ALL)
            .with_mlp(true)
            .with_output(true)
            .with_dora(true);
        let config = LlamaConfig {
            qkv_bias: true,
            ..LlamaConfig::llama2_7b()
        };
        let model = config.init_lora(&lora, &Device::default()).unwrap();
        for (key, info) in get_params(&model).iter() {
            let back = if info.is_adapter {
                from_peft(&to_peft(key).unwrap())
            } else {
                from_hf(&to_hf(key).unwrap())
            };
            assert_eq!(back.as_deref(), Some(key));
        }
    }

    #[test]
    fn weights_that_peft_saves_beside_an_adapter() {
        for (ours, adapted, theirs) in [
            ("output.weight", true, "lm_head.base_layer.weight"),
            ("output.weight", false, "lm_head.weight"),
            ("tok_embeddings.weight", true, "model.embed_tokens.weight"),
        ] {
            let key = format!("base_model.model.{theirs}");
            assert_eq!(from_peft(&key).as_deref(), Some(ours));
            assert_eq!(base_to_peft(ours, adapted), Some(key));
        }
        assert_eq!(base_to_peft("norm.weight", false), None);
    }

    #[test]
    fn the_model_may_be_saved_without_its_head() {
        for (theirs, ours) in [
            ("embed_tokens.weight", "tok_embeddings.weight"),
            ("layers.3.mlp.up_proj.weight", "layers.3.mlp.w3.weight"),
            ("norm.weight", "norm.weight"),
            ("lm_head.weight", "output.weight"),
        ] {
            assert_eq!(from_hf(theirs).as_deref(), Some(ours));
        }
        assert_eq!(from_hf("model.lm_head.weight"), None);
    }

    #[test]
    fn foreign_names_have_no_counterpart() {
        assert_eq!(from_hf("model.layers.0.self_attn.qkv_proj.weight"), None);
        assert_eq!(
            from_peft("model.layers.0.self_attn.q_proj.lora_A.weight"),
            None
        );
        assert_eq!(from_peft("base_model.model.model.norm.weight"), None);
        assert_eq!(module_name_from_hf("o_proj"), Some("output_proj"));
        assert_eq!(module_name_to_hf("w2"), Some("down_proj"));
    }
}
