"""GGUF files for `check_adapters.py`, `check_gguf.py` and `check_llama_cpp.py`: base models written, adapters read,
and what should stand in them by PEFT's model."""

import math

import gguf
import numpy as np
import torch

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "mistral": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}
ALPHA = "adapter.lora.alpha"


def neighbours(rows, heads):
    """Rows that are half a head apart, side by side."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def in_their_order(key, value, config):
    """Rows of q and k in the order of a model's architecture."""
    turned = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    heads = next((n for name, n in turned.items() if f".{name}." in key), None)
    return neighbours(value, heads) if heads and config.model_type != "qwen2" else value


def names_of(config):
    return gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)


# Base models.

def add_rope(out, config):
    """The rotary embedding: its width, base and scaling."""
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    out.add_key_length(dim)
    out.add_value_length(dim)
    out.add_rope_dimension_count(dim)
    rope = config.rope_parameters
    out.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        out.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        out.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        out.add_tensor("rope_freqs.weight", llama3_factors(rope, dim))


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
    out.add_vocab_size(config.vocab_size)
    for add, token in ((out.add_bos_token_id, config.bos_token_id), (out.add_eos_token_id, config.eos_token_id),
                       (out.add_pad_token_id, config.pad_token_id)):
        if token is not None:
            add(token)
    out.add_tokenizer_model("llama")
    out.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    out.add_token_scores([0.0] * config.vocab_size)
    out.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    names = names_of(config)
    for key, value in model.state_dict().items():
        if key != "lm_head.weight" or not config.tie_word_embeddings:
            value = np.ascontiguousarray(in_their_order(key, value.float().numpy(), config))
            name = names.get_name(key, (".weight", ".bias"))
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
    metadata = {"general.type": "adapter", "general.architecture": config.model_type, "adapter.type": "lora",
                ALPHA: alpha}
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
