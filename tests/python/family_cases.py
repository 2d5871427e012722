"""Tiny random models of every family: how transformers makes one, and what its config.json leaves out."""

from transformers import (
    Gemma3Config, Gemma3ForConditionalGeneration, Mistral3Config, Mistral3ForConditionalGeneration, Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, GraniteConfig, GraniteForCausalLM,
    LlamaConfig, LlamaForCausalLM, Ministral3Config, Ministral3ForCausalLM, MistralConfig, MistralForCausalLM,
    Olmo2Config, Olmo2ForCausalLM, Olmo3Config, Olmo3ForCausalLM, Phi3Config, Phi3ForCausalLM, Qwen2Config,
    Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM, SmolLM3Config, SmolLM3ForCausalLM,
)

# Rows of 100 tokens are longer than every window and original context here.
WINDOW, CONTEXT = 16, 48
SIZES = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}
FULL, SLIDING = "full_attention", "sliding_attention"
LAYERS = [FULL, SLIDING, SLIDING, FULL]


def rope(kind, **settings):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **settings}}


ORIGINAL = {"original_max_position_embeddings": CONTEXT}
YARN = {"factor": 4.0, **ORIGINAL}
LONG = {
    "short_factor": [1.0 + 0.05 * i for i in range(8)], "long_factor": [1.0 + 0.4 * i for i in range(8)], **ORIGINAL}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL}
# Each kind of rotary embedding, in a Llama.
ROPES = {
    "linear": rope("linear", factor=2.0),
    "dynamic": rope("dynamic", factor=2.0) | {"max_position_embeddings": CONTEXT},
    "dynamic, not exceeded": rope("dynamic", factor=2.0),
    "yarn": rope("yarn", **YARN),
    "yarn, no original length": rope("yarn", factor=4.0),
    "yarn, factor by lengths": rope("yarn", **YARN | {"factor": None}),
    "yarn, not truncated": rope("yarn", **YARN, truncate=False),
    "yarn, bounds": rope("yarn", **YARN, beta_fast=8.0, beta_slow=2.0),
    "yarn, an attention factor": rope("yarn", **YARN, attention_factor=1.3),
    "yarn, two scales": rope("yarn", **YARN, mscale=0.5, mscale_all_dim=1.0),
    "yarn, one scale": rope("yarn", **YARN, mscale=0.5),
    "longrope": rope("longrope", **LONG),
    "longrope, a factor": rope("longrope", **LONG, factor=2.0),
    "longrope, an attention factor": rope("longrope", **LONG, attention_factor=1.1),
    "longrope, no original length": rope("longrope", **{k: v for k, v in LONG.items() if k not in ORIGINAL}),
    "llama3": rope("llama3", **LLAMA3),
}


def by_layer(full, sliding):
    """Rotary embeddings of both kinds of layers."""
    return {"rope_parameters": {FULL: full["rope_parameters"], SLIDING: sliding["rope_parameters"]}}


QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": WINDOW}
# Few tokens of many experts: some get none.
MOE = {"head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GRANITE = {
    "embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.6, "logits_scaling": 1.5}
# Where the scores are not divided by anything: large ones would leave nothing of f32's precision.
SMALL_SCORES = {"hidden_size": 32, "num_attention_heads": 8}
# Of heads of which half is rotated.
SHORTER = {name: LONG[name][:4] for name in ("short_factor", "long_factor")}
GEMMA2 = {"head_dim": 16, "query_pre_attn_scalar": 12, "sliding_window": WINDOW}
GEMMA3 = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": WINDOW, "num_hidden_layers": 7}

LLAMA = (LlamaForCausalLM, LlamaConfig)
MISTRAL = (MistralForCausalLM, MistralConfig)
MINISTRAL3 = (Ministral3ForCausalLM, Ministral3Config)
QWEN2 = (Qwen2ForCausalLM, Qwen2Config)
QWEN3 = (Qwen3ForCausalLM, Qwen3Config)
QWEN3_MOE = (Qwen3MoeForCausalLM, Qwen3MoeConfig)
SMOLLM3 = (SmolLM3ForCausalLM, SmolLM3Config)
OLMO2 = (Olmo2ForCausalLM, Olmo2Config)
OLMO3 = (Olmo3ForCausalLM, Olmo3Config)
GRANITE3 = (GraniteForCausalLM, GraniteConfig)
PHI3 = (Phi3ForCausalLM, Phi3Config)
GEMMA2_MODEL = (Gemma2ForCausalLM, Gemma2Config)
GEMMA3_MODEL = (Gemma3ForCausalLM, Gemma3TextConfig)

# Settings of a configuration, then what config.json gets beside them and what is left out of it.
CASES = {
    "Llama, biases": (LLAMA, {"attention_bias": True, "mlp_bias": True}),
    "Llama, wide heads": (LLAMA, {"head_dim": 32, "tie_word_embeddings": True}),
    "Mistral, window": (MISTRAL, {"sliding_window": WINDOW}),
    "Mistral, window of one": (MISTRAL, {"sliding_window": 1}),
    "Mistral, no window": (MISTRAL, {"sliding_window": None}),
    "Mistral, wide heads": (MISTRAL, {"sliding_window": WINDOW, "head_dim": 24}),
    "Ministral 3": (MINISTRAL3, {"head_dim": 16} | rope(
        "yarn", **YARN, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.3)),
    "Ministral 3, window": (MINISTRAL3, {"head_dim": 16, "sliding_window": WINDOW} | rope(
        "yarn", **YARN, llama_4_scaling_beta=0.1)),
    "Ministral 3, default scaling": (MINISTRAL3, {"head_dim": 16}, {}, ["rope_parameters"]),
    "Qwen2, window from a layer on": (QWEN2, QWEN_WINDOW | {"max_window_layers": 2}),
    "Qwen2, named layers": (QWEN2, QWEN_WINDOW | {"layer_types": LAYERS}),
    "Qwen2, window not used": (QWEN2, {"sliding_window": WINDOW, "use_sliding_window": False, "max_window_layers": 0}),
    "Qwen2, tied": (QWEN2, {"tie_word_embeddings": True}),
    "Qwen3": (QWEN3, {"head_dim": 16}),
    "Qwen3, wide heads, tied": (QWEN3, {"head_dim": 32, "tie_word_embeddings": True}),
    "Qwen3, biases": (QWEN3, {"head_dim": 16, "attention_bias": True}),
    "Qwen3, window": (QWEN3, {"head_dim": 16} | QWEN_WINDOW | {"max_window_layers": 1}),
    "Qwen3, named layers": (QWEN3, {"head_dim": 16} | QWEN_WINDOW | {"layer_types": LAYERS}),
    "Qwen3, yarn": (QWEN3, {"head_dim": 16} | rope("yarn", **YARN)),
    "Qwen3, default head_dim": (QWEN3, {"head_dim": 128}, {}, ["head_dim"]),
    "Qwen3, default heads": (QWEN3, {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 4}, {}, [
        "num_key_value_heads"]),
    "Qwen3 MoE": (QWEN3_MOE, MOE | {"norm_topk_prob": True}),
    "Qwen3 MoE, weights as they are": (QWEN3_MOE, MOE | {"norm_topk_prob": False}),
    "Qwen3 MoE, one expert a token": (QWEN3_MOE, MOE | {"num_experts_per_tok": 1}),
    "Qwen3 MoE, dense layers": (QWEN3_MOE, MOE | {"norm_topk_prob": True, "mlp_only_layers": [0, 2]}),
    "Qwen3 MoE, every second layer": (QWEN3_MOE, MOE | {"decoder_sparse_step": 2, "tie_word_embeddings": True}),
    "Qwen3 MoE, biases, window": (QWEN3_MOE, MOE | QWEN_WINDOW | {"attention_bias": True}),
    "Qwen3 MoE, no experts": (QWEN3_MOE, MOE | {"num_experts": 0}),
    "Qwen3 MoE, default experts": (
        QWEN3_MOE, MOE | {"num_experts": 128, "num_experts_per_tok": 8}, {}, [
            "num_experts", "num_local_experts", "num_experts_per_tok"]),
    "Qwen3 MoE, default width": (QWEN3_MOE, MOE | {"num_experts": 4, "moe_intermediate_size": 768}, {}, [
        "moe_intermediate_size"]),
    "SmolLM3": (SMOLLM3, {}),
    "SmolLM3, every second layer": (SMOLLM3, {"no_rope_layer_interval": 2}, {}, ["no_rope_layers"]),
    "SmolLM3, named layers": (SMOLLM3, {"no_rope_layers": [0, 1, 1, 0], "tie_word_embeddings": False}),
    "SmolLM3, window": (SMOLLM3, {"use_sliding_window": True, "sliding_window": WINDOW, "no_rope_layer_interval": 2}),
    "SmolLM3, biases": (SMOLLM3, {"attention_bias": True, "mlp_bias": True}),
    "SmolLM3, yarn": (SMOLLM3, rope("yarn", **YARN)),
    "OLMo 2": (OLMO2, {}),
    "OLMo 2, all heads, biases": (OLMO2, {"num_key_value_heads": 4, "attention_bias": True}),
    "OLMo 2, tied": (OLMO2, {"tie_word_embeddings": True, "rms_norm_eps": 1e-6}),
    "OLMo 3": (OLMO3, {"sliding_window": WINDOW}),
    "OLMo 3, all full": (OLMO3, {"sliding_window": WINDOW, "layer_types": [FULL] * 4}),
    "OLMo 3, named layers": (OLMO3, {"sliding_window": WINDOW, "layer_types": LAYERS}),
    "OLMo 3, yarn on full layers": (OLMO3, {"sliding_window": WINDOW} | by_layer(rope("yarn", **YARN), rope("default"))),
    "OLMo 3, yarn in the older style": (
        OLMO3, {"sliding_window": WINDOW}, {"rope_scaling": {"rope_type": "yarn", **YARN}, "rope_theta": 5e5},
        ["rope_parameters"]),
    "OLMo 3, another base in the older style": (
        OLMO3, {"sliding_window": WINDOW}, {"rope_theta": 1e4}, ["rope_parameters"]),
    "Granite": (GRANITE3, GRANITE),
    "Granite, biases, tied": (GRANITE3, GRANITE | {
        "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "Granite, default multipliers": (GRANITE3, SMALL_SCORES, {}, list(GRANITE)),
    "Phi-3": (PHI3, {}),
    "Phi-3, window": (PHI3, {"sliding_window": WINDOW}),
    "Phi-3, default key heads": (PHI3, {"num_key_value_heads": 4}, {}, ["num_key_value_heads"]),
    "Phi-3, another base in the older style": (PHI3, {}, {"rope_theta": 2e4}, ["rope_parameters"]),
    "Phi-3, a part of each head rotated": (PHI3, rope("default", partial_rotary_factor=0.75)),
    "Phi-3, longrope": (PHI3, ORIGINAL | rope("longrope", **LONG)),
    "Phi-3, longrope, a factor": (PHI3, ORIGINAL | rope("longrope", **LONG, factor=2.0)),
    "Phi-3, longrope, an attention factor": (PHI3, ORIGINAL | rope("longrope", **LONG, attention_factor=1.1)),
    "Phi-3, longrope, default original length": (PHI3, {}, rope("longrope", **LONG), [*ORIGINAL]),
    "Phi-3, longrope that is called yarn": (
        PHI3, ORIGINAL, {"rope_scaling": {"type": "yarn", **LONG}}, ["rope_parameters"]),
    "Phi-3, longrope that is called su": (
        PHI3, ORIGINAL, {"rope_scaling": {"type": "su", **LONG}}, ["rope_parameters"]),
    "Phi-3, longrope of a part, window, tied": (
        PHI3, ORIGINAL | {"sliding_window": WINDOW, "tie_word_embeddings": True} | rope(
            "longrope", **SHORTER, partial_rotary_factor=0.5)),
    "Phi-3, longrope of a part in the older style": (
        PHI3, ORIGINAL, {"rope_scaling": {"type": "longrope", **SHORTER}, "partial_rotary_factor": 0.5},
        ["rope_parameters"]),
    "Gemma 2": (GEMMA2_MODEL, GEMMA2),
    "Gemma 2, no caps": (GEMMA2_MODEL, GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "Gemma 2, low caps": (GEMMA2_MODEL, GEMMA2 | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "Gemma 2, untied, biases": (GEMMA2_MODEL, GEMMA2 | {"tie_word_embeddings": False, "attention_bias": True}),
    "Gemma 2, named layers": (GEMMA2_MODEL, GEMMA2 | {"layer_types": LAYERS}),
    "Gemma 3": (GEMMA3_MODEL, GEMMA3),
    "Gemma 3, named layers": (GEMMA3_MODEL, GEMMA3 | {"num_hidden_layers": 4, "layer_types": LAYERS}),
    "Gemma 3, a pattern": (GEMMA3_MODEL, GEMMA3, {"sliding_window_pattern": 3}, ["layer_types"]),
    "Gemma 3, a score cap without effect": (GEMMA3_MODEL, GEMMA3 | {"attn_logit_softcapping": 1.0}),
    "Gemma 3, a logit cap": (GEMMA3_MODEL, GEMMA3 | {"final_logit_softcapping": 3.0}),
    "Gemma 3, linear on full layers": (GEMMA3_MODEL, GEMMA3 | by_layer(rope("linear", factor=8.0), rope("default"))),
    "Gemma 3, the older style": (
        GEMMA3_MODEL, GEMMA3, {
            "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 5e5, "rope_local_base_freq": 2e4},
        ["rope_parameters"]),
    "Gemma 3, one base": (GEMMA3_MODEL, GEMMA3 | by_layer(rope("default"), rope("default"))),
    "Gemma 3, untied": (GEMMA3_MODEL, GEMMA3 | {"tie_word_embeddings": False, "attention_bias": True}),
}
CASES |= {f"Llama, {name}": (LLAMA, settings) for name, settings in ROPES.items()}
# Everything that has a default, left out.
KEPT = [
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "sliding_window", "pad_token_id", "architectures", "dtype", "num_local_experts",
    "num_experts_per_tok", "moe_intermediate_size"]
CASES |= {
    f"{name}, defaults": (model, settings, {}, lambda key: key not in KEPT)
    for name, model, settings in [
        ("Llama", LLAMA, {}), ("Mistral", MISTRAL, {"sliding_window": WINDOW}),
        ("Ministral 3", MINISTRAL3, {"head_dim": 16}), ("Qwen2", QWEN2, {}), ("Qwen3", QWEN3, {"head_dim": 16}),
        ("Qwen3 MoE", QWEN3_MOE, MOE),
        ("SmolLM3", SMOLLM3, {"num_key_value_heads": 4}), ("OLMo 2", OLMO2, {}),
        ("OLMo 3", OLMO3, {"sliding_window": WINDOW}), ("Granite", GRANITE3, SMALL_SCORES),
        ("Phi-3", PHI3, {"sliding_window": WINDOW}), ("Gemma 2", GEMMA2_MODEL, GEMMA2), ("Gemma 3", GEMMA3_MODEL, GEMMA3)]
}


def case(name):
    """The class of a model, its configuration, what config.json gets beside it and whether a key is left out."""
    (cls, config), settings, changed, left_out = (*CASES[name], {}, [])[:4]
    is_left_out = left_out if callable(left_out) else lambda key: key in left_out
    return cls, config(**SIZES | settings), changed, is_left_out


# Models that read images too: their class and configuration, how they see, the settings of their text model and of the
# whole, and what is left out of config.json.
VISION = {
    "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14}
WITH_IMAGES = {
    "Gemma 3 that reads images": (
        Gemma3ForConditionalGeneration, Gemma3Config, {"model_type": "siglip_vision_model"},
        GEMMA3 | {"model_type": "gemma3_text"}, {"mm_tokens_per_image": 4, "image_token_index": 127}),
    "Ministral 3 that reads images": (
        Mistral3ForConditionalGeneration, Mistral3Config, {"model_type": "pixtral", "head_dim": 16},
        {"head_dim": 16, "model_type": "ministral3"} | rope("yarn", **YARN, llama_4_scaling_beta=0.1),
        {"tie_word_embeddings": False, "image_token_index": 127}),
    "Mistral Small that reads images, tied": (
        Mistral3ForConditionalGeneration, Mistral3Config, {"model_type": "pixtral", "head_dim": 16},
        {"model_type": "mistral", "sliding_window": WINDOW}, {"image_token_index": 127}),
    "Mistral Small that reads images, nothing said of its output": (
        Mistral3ForConditionalGeneration, Mistral3Config, {"model_type": "pixtral", "head_dim": 16},
        {"model_type": "mistral", "sliding_window": WINDOW}, {"image_token_index": 127, "tie_word_embeddings": False},
        ["tie_word_embeddings"]),
}


def case_with_images(name):
    """The class of a model, its configuration, and what is left out of config.json."""
    cls, config, vision, text, settings, left_out = (*WITH_IMAGES[name], [])[:6]
    return cls, config(vision_config=VISION | vision, text_config=SIZES | text, **settings), left_out
