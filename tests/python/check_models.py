#!/usr/bin/env python3
"""Compares the logits of models of all kinds that are read, with and without adapters, with those of
transformers and PEFT.

    python check_models.py path/to/compare

`compare` is this repository's example, built. Models and adapters are small and random, made and saved
by transformers and PEFT. Exits with 1 and says which differs.
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is a local folder

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
    Qwen2Config, Qwen2ForCausalLM,
)

TOLERANCE = 1e-4  # between two programs' logits, of size 5
SIZES = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}
# Longer than the original context that the scaling names.
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
MODELS = {
    "Llama 3.1": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LLAMA3_ROPE, "head_dim": 32}),
    "Llama 3.2, tied": (
        LlamaForCausalLM, LlamaConfig,
        {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "Llama, linear scaling": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LINEAR_ROPE}),
    "Llama with biases": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True}),
    "Qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "Qwen2, tied": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "Mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 256, "head_dim": 16}),
}
EMBEDDED = "changed embeddings in its file"
ADAPTERS = {
    "all linear layers": {"target_modules": "all-linear"},
    "lm_head": {"target_modules": ["q_proj", "v_proj", "lm_head"]},
    "rsLoRA": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "DoRA": {"target_modules": ["k_proj", "o_proj", "up_proj"], "use_dora": True},
    EMBEDDED: {"target_modules": ["v_proj"]},
}


def randomize(model):
    """Norms near 1, and matrices and biases large enough that each counts."""
    for name, p in model.named_parameters():
        p.data = 0.2 * torch.randn_like(p) + float("norm" in name)
    return model.eval()


def save_model(folder, cls, config):
    model = randomize(cls(config))
    model.tie_weights()
    model.save_pretrained(folder)


def adapt(base, folder, name):
    """The model with a random adapter, which is saved to `folder`."""
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **ADAPTERS[name])
    model = get_peft_model(base, config).eval()
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data = 0.1 * torch.randn_like(p)
        elif "magnitude" in name:
            p.data *= 1 + 0.1 * torch.randn_like(p)
    if name == EMBEDDED:
        model.get_input_embeddings().weight.data *= 1.5
    model.save_pretrained(folder, save_embedding_layers=True if name == EMBEDDED else "auto")
    return model


def save_expected(folder, model, ids):
    with torch.no_grad():
        logits = model(input_ids=ids).logits.contiguous()
    path = folder / "expected.safetensors"
    save_file({"logits": logits}, path)
    return path


def compare(program, folder, adapter, expected):
    """The largest difference, or what `compare` complains of."""
    command = [program, "--model", folder, "--inputs", folder / "inputs.safetensors"]
    command += ["--expected", expected] + (["--adapter", adapter] if adapter else [])
    run = subprocess.run(command, capture_output=True, text=True)
    return json.loads(run.stdout)["max_abs_logits"] if run.returncode == 0 else run.stderr.strip()


def check_model(program, folder, name):
    """Yields the name of each case and what came of it."""
    cls, config, settings = MODELS[name]
    save_model(folder, cls, config(**SIZES, **settings))
    ids = torch.randint(3, SIZES["vocab_size"], (2, 100))
    save_file({"input_ids": ids.int()}, folder / "inputs.safetensors")

    def load():
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager").eval()

    yield "base", compare(program, folder, None, save_expected(folder, load(), ids))
    for adapter in ADAPTERS:
        path = folder / adapter.replace(" ", "_")
        expected = save_expected(path, adapt(load(), path, adapter), ids)
        yield adapter, compare(program, folder, path, expected)


def is_right(model, adapter, result):
    """An output that is the embedding can have no adapter, which must be said."""
    if adapter == "lm_head" and MODELS[model][2].get("tie_word_embeddings"):
        return "the output projection of this model is its embedding" in str(result)
    return isinstance(result, float) and result <= TOLERANCE


def main(program):
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' own
    warnings.filterwarnings("ignore", category=UserWarning, module=r"peft\b")
    wrong = 0
    for model in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            for adapter, result in check_model(program, Path(folder), model):
                right = is_right(model, adapter, result)
                print("ok  " if right else "FAIL", f"{model}, {adapter}: {result}")
                wrong += not right
    if wrong:
        sys.exit(f"{wrong} cases differ")


if __name__ == "__main__":
    main(sys.argv[1])
