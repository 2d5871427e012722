"""GGUF files for `check_adapters.py`, `check_gguf.py` and `check_llama_cpp.py`: base models written, adapters read,
and what should stand in them by PEFT's model."""

import math

import gguf
import numpy as np
import torch

A = gguf.MODEL_ARCH
ARCHITECTURES = {
    "llama": A.LLAMA, "mistral": A.LLAMA, "ministral3": A.MISTRAL3, "qwen2": A.QWEN2, "qwen3": A.QWEN3,
    "smollm3": A.SMOLLM3, "olmo2": A.OLMO2, "olmo3": A.OLMO2, "granite": A.GRANITE, "phi3": A.PHI3,
    "gemma2": A.GEMMA2, "gemma3_text": A.GEMMA3, "qwen3_moe": A.QWEN3MOE,
}
# Of which q and k rotate neighbouring rows.
NEIGHBOURS = {A.LLAMA, A.MISTRAL3, A.SMOLLM3, A.GRANITE}
ALPHA = "adapter.lora.alpha"


def neighbours(rows, heads):
    """Rows that are half a head apart, side by side."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def in_their_order(key, value, config):
    """Rows of q and k in the order of a model's architecture."""
    turned = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    heads = next((n for name, n in turned.items() if f".{name}." in key), None)
    return neighbours(value, heads) if heads and ARCHITECTURES[config.model_type] in NEIGHBOURS else value


def as_stored(key, value, config):
    """A weight as llama.cpp's converter has it: norms of Gemma with the 1 that their model adds."""
    is_offset = config.model_type.startswith("gemma") and key.endswith("norm.weight")
    return value + 1 if is_offset else in_their_order(key, value, config)


def tensors_of(model):
    """The weights by llama.cpp's names."""
    config = model.config
    names = names_of(config)
    for key, value in model.state_dict().items():
        value = value.float().numpy()
        layer = key.split(".")[2] if key.startswith("model.layers.") else None
        if key.endswith("experts.gate_up_proj"):
            for name, part in zip(("gate", "up"), np.split(value, 2, axis=1)):
                yield f"blk.{layer}.ffn_{name}_exps.weight", np.ascontiguousarray(part)
        elif key.endswith("experts.down_proj"):
            yield f"blk.{layer}.ffn_down_exps.weight", value
        elif key != "lm_head.weight" or not config.tie_word_embeddings:
            yield names.get_name(key, (".weight", ".bias")), np.ascontiguousarray(as_stored(key, value, config))


def names_of(config):
    return gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)


# Base models.

def add_rope(out, config):
    """The rotary embedding: its width, base and scaling, as llama.cpp's converter has them."""
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    local, rope = rope.get("sliding_attention"), rope.get("full_attention", rope)
    out.add_key_length(dim)
    out.add_value_length(dim)
    rotated = int(dim * rope.get("partial_rotary_factor", 1.0))
    out.add_rope_dimension_count(rotated)
    out.add_rope_freq_base(rope["rope_theta"])
    if local:
        out.add_rope_freq_base_swa(local["rope_theta"])
    kind = rope["rope_type"]
    if kind in ("linear", "yarn"):
        out.add_rope_scaling_type(gguf.RopeScalingType(kind))
        out.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        out.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if multiplier := rope.get("mscale_all_dim"):
            out.add_rope_scaling_yarn_log_mul(multiplier)
        if beta := rope.get("llama_4_scaling_beta"):
            out.add_attn_temperature_scale(beta)
    if kind == "llama3":
        out.add_tensor("rope_freqs.weight", llama3_factors(rope, dim))
    if kind == "longrope":
        original = rope["original_max_position_embeddings"]
        grown = config.max_position_embeddings / original
        out.add_rope_scaling_orig_ctx_len(original)
        out.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(grown) / math.log(original)))
        for name in ("long", "short"):
            factors = np.array(rope[f"{name}_factor"], dtype=np.float32)
            out.add_tensor(f"rope_factors_{name}.weight", factors)


def add_family(out, config):
    """What one family alone has."""
    if config.model_type == "granite":
        out.add_attention_scale(config.attention_multiplier)
        out.add_embedding_scale(config.embedding_multiplier)
        out.add_residual_scale(config.residual_multiplier)
        out.add_logit_scale(config.logits_scaling)
    if config.model_type == "gemma2":
        out.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        out.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type in ("gemma2", "gemma3_text", "olmo3", "phi3"):
        out.add_sliding_window(config.sliding_window or 0)
    if config.model_type == "qwen3_moe":
        out.add_expert_count(config.num_experts)
        out.add_expert_used_count(config.num_experts_per_tok)
        out.add_expert_feed_forward_length(config.moe_intermediate_size)
    if config.model_type == "olmo3":
        out.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])


def llama3_factors(rope, dim):
    """By what the scaling divides each frequency, by its formula in transformers."""
    frequencies = rope["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
    waves = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = (waves - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
    kept = np.clip(kept, 0, 1)
    return (1 / ((1 - kept) / rope["factor"] + kept)).astype(np.float32)


def write_base(model, path, packed=None):
    """A model of f32, its tokens of no meaning. `packed` gives the bytes and the kind of a tensor by its name and
    values, or None for one that stays f32."""
    config = model.config
    out = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]])
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    add_rope(out, config)
    add_family(out, config)
    out.add_vocab_size(config.vocab_size)
    for add, token in ((out.add_bos_token_id, config.bos_token_id), (out.add_eos_token_id, config.eos_token_id),
                       (out.add_pad_token_id, config.pad_token_id)):
        if token is not None:
            add(token)
    out.add_tokenizer_model("llama")
    out.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    out.add_token_scores([0.0] * config.vocab_size)
    out.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    for name, value in tensors_of(model):
        data, kind = (packed and packed(name, value)) or (value, None)
        out.add_tensor(name, data, raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def widen(path, out):
    """The same file with its tensors as f32: the numbers that stand for themselves."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    wide = gguf.GGUFWriter(out, architecture)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            kind, *of = field.types
            wide.add_key_value(name, field.contents(), kind, sub_type=of[-1] if of else None)
    for tensor in reader.tensors:
        wide.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    wide.write_header_to_file()
    wide.write_kv_data_to_file()
    wide.write_tensors_to_file()
    wide.close()
    return out


# Adapters.

def read_adapter(path):
    """The metadata and the tensors."""
    reader = gguf.GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return metadata, {t.name: torch.tensor(t.data) for t in reader.tensors}


def expected_adapter(model, found):
    """What llama.cpp should find for a model of PEFT's; its alpha is free, as it is for all layers together."""
    config = model.config
    alpha = found[0].get(ALPHA)
    architecture = gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]]
    metadata = {"general.type": "adapter", "general.architecture": architecture, "adapter.type": "lora", ALPHA: alpha}
    names, tensors = names_of(config), {}
    for path, layer in model.base_model.model.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        if is_embedding := "default" in layer.lora_embedding_A:
            a, b = layer.lora_embedding_A["default"].T, layer.lora_embedding_B["default"]
        else:
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        rank = a.shape[1] if is_embedding else a.shape[0]
        name = names.get_name(f"{path}.weight", (".weight",))
        tensors[f"{name}.lora_a"] = a.detach()
        b = b.detach() * (layer.scaling["default"] * rank / alpha)
        tensors[f"{name}.lora_b"] = in_their_order(f"{path}.", b, config)
    return metadata, tensors
