"""GGUF files for `check_adapters.py` and `check_llama_cpp.py`: base models written, adapters read, and what
should stand in them by PEFT's model."""

import gguf
import numpy as np
import torch

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}
ALPHA = "adapter.lora.alpha"


def neighbours(rows, heads):
    """Rows that are half a head apart, side by side."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def in_their_order(key, value, config):
    """Rows of q and k in the order of a model's architecture."""
    turned = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    heads = next((n for name, n in turned.items() if f".{name}." in key), None)
    return neighbours(value, heads) if heads and config.model_type == "llama" else value


def names_of(config):
    return gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)


# Base models.

def write_base(model, path):
    """A model of f32; its tokens are of no meaning."""
    config = model.config
    out = gguf.GGUFWriter(path, config.model_type)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_vocab_size(config.vocab_size)
    out.add_tokenizer_model("llama")
    out.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    out.add_token_scores([0.0] * config.vocab_size)
    out.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    names = names_of(config)
    for key, value in model.state_dict().items():
        if key != "lm_head.weight" or not config.tie_word_embeddings:
            value = np.ascontiguousarray(in_their_order(key, value.float().numpy(), config))
            out.add_tensor(names.get_name(key, (".weight", ".bias")), value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


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
