#!/usr/bin/env python3
"""Compares models of all kinds that are read, with and without adapters, of folders in several styles, and of
folders that bitsandbytes quantized, with transformers and PEFT: logits, and for each configuration of each
family also greedy tokens, an adapter's gradients, the merged model and a trained adapter.

    python check_models.py path/to/compare path/to/adapters [--only SUBSTRING]

`compare` and `adapters` are this repository's examples, built. Models and adapters are small and random, made
and saved by transformers and PEFT. Exits with 1 and says which differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is a local folder

import bitsandbytes
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
    Qwen2Config, Qwen2ForCausalLM,
)

import family_cases
from adapter_reference import gradients_of, load_base, logits_of, reload

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
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 5e5}
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
# A model from above, what is set in its config.json, and what is left out of it.
LINEAR = "Llama, linear scaling"
OLD_ROPE = {"type": "linear", "factor": 2.0}
BARE_LLAMA3 = {k: v for k, v in LLAMA3_ROPE.items() if "original" not in k}
DEFAULTS = [
    "max_position_embeddings", "rms_norm_eps", "rope_parameters", "attention_bias", "tie_word_embeddings"]
CONFIGS = {
    "Llama, old rope": (LINEAR, {"rope_scaling": OLD_ROPE, "rope_theta": 2e4}, ["rope_parameters"]),
    "Llama, old rope beside new": (LINEAR, {"rope_parameters": DEFAULT_ROPE, "rope_scaling": OLD_ROPE}, []),
    "Llama, old rope and base beside new": (
        LINEAR, {"rope_parameters": DEFAULT_ROPE, "rope_scaling": OLD_ROPE, "rope_theta": 2e4}, []),
    "Llama, empty old rope beside new": (
        LINEAR, {"rope_parameters": DEFAULT_ROPE, "rope_scaling": {}, "rope_theta": 2e4}, []),
    "Llama, swish": (LINEAR, {"hidden_act": "swish"}, []),
    "Llama 3.1, no original length": ("Llama 3.1", {"rope_parameters": BARE_LLAMA3}, []),
    "Llama 3.1, original length outside": (
        "Llama 3.1", {"rope_parameters": BARE_LLAMA3, "original_max_position_embeddings": 32}, []),
    "Llama 3.1, two original lengths": ("Llama 3.1", {"original_max_position_embeddings": 32}, []),
    "Llama, sliding_window": (LINEAR, {"sliding_window": 8}, []),
    "Llama, defaults": (LINEAR, {}, DEFAULTS),
    "Mistral, no window": ("Mistral", {"sliding_window": None}, []),
    "Mistral, attention_bias": ("Mistral", {"attention_bias": True}, []),
    "Mistral, defaults": ("Mistral", {}, [*DEFAULTS, "sliding_window"]),
    "Qwen2, no use_sliding_window": ("Qwen2", {"sliding_window": 8}, ["use_sliding_window", "layer_types"]),
    "Qwen2, window on no layer": (
        "Qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}, ["layer_types"]),
    "Qwen2, full layer types": (
        "Qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0}, []),
    "Qwen2, attention_bias": ("Qwen2", {"attention_bias": True}, []),
    "Qwen2, defaults": ("Qwen2", {}, [*DEFAULTS, "use_sliding_window", "layer_types"]),
}
# What the file of a tied model holds as output, times the embedding, and whether it holds the embedding.
TWO_OUTPUTS = "another output"
OUTPUTS = {"the embedding twice": (1, True), "the embedding as output": (1, False), TWO_OUTPUTS: (2, True)}
# How the keys of a file are written, and what is left out of it.
KEYS = {"without model.": (LINEAR, []), "a tied model without its head": ("Llama 3.2, tied", ["lm_head.weight"])}
# A model from above, how bitsandbytes quantizes it, and how it is loaded and saved for that.
NESTED = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
QUANTIZED = {
    "NF4": (LINEAR, NESTED | {"bnb_4bit_use_double_quant": False}, {}),
    "NF4, nested": (LINEAR, NESTED, {}),
    "NF4, nested, of bf16": (LINEAR, NESTED, {"dtype": torch.bfloat16}),
    "NF4, nested, in blocks of 32": (LINEAR, NESTED, {"block_len": 32}),
    "NF4, nested, in many shards": (LINEAR, NESTED, {"max_shard_size": "40KB"}),
    "NF4, stored as bf16": (LINEAR, NESTED | {"bnb_4bit_quant_storage": "bfloat16"}, {}),
    "NF4, lm_head too, not v and down": (LINEAR, NESTED | {"llm_int8_skip_modules": ["v_proj", "down_proj"]}, {}),
    "FP4": (LINEAR, {"load_in_4bit": True}, {}),
    "FP4, nested": (LINEAR, NESTED | {"bnb_4bit_quant_type": "fp4"}, {}),
    "NF4, Qwen2, tied": ("Qwen2, tied", NESTED, {}),
    "int8": (LINEAR, {"load_in_8bit": True}, {}),
    "int8, of bf16, not v": (
        LINEAR, {"load_in_8bit": True, "llm_int8_skip_modules": ["v_proj", "lm_head"]}, {"dtype": torch.bfloat16}),
    "int8, Qwen2, tied": ("Qwen2, tied", {"load_in_8bit": True}, {}),
}
# Blocks must divide the rows.
QUANTIZED_SIZES = {"intermediate_size": 128}
EMBEDDED = "changed embeddings in its file"
ADAPTERS = {
    "all linear layers": {"target_modules": "all-linear"},
    "lm_head": {"target_modules": ["q_proj", "v_proj", "lm_head"]},
    "rsLoRA": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "DoRA": {"target_modules": ["k_proj", "o_proj", "up_proj"], "use_dora": True},
    "several kinds of models": {"target_modules": ["q_proj", "v_proj", "query_key_value"]},
    "a pattern": {"target_modules": r".*self_attn\.(q|o)_proj"},
    "a rank above the width": {"target_modules": ["k_proj", "v_proj"], "r": 48},
    EMBEDDED: {"target_modules": ["v_proj"]},
}
# Of a model with experts, whose weights are parameters of PEFT's.
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
EXPERT_ADAPTERS = {
    "experts, gate and up": {"target_modules": [], "target_parameters": EXPERTS[:1]},
    "experts, down": {"target_modules": ["q_proj"], "target_parameters": EXPERTS[1:]},
    "experts, both": {"target_modules": [], "target_parameters": EXPERTS[::-1]},
    "experts, router, rsLoRA": {
        "target_modules": ["v_proj"], "target_parameters": [*EXPERTS, "gate.weight"], "use_rslora": True},
    "experts, ranks by pattern": {
        "target_modules": ["o_proj"], "target_parameters": EXPERTS, "rank_pattern": {"experts.down_proj": 3},
        "alpha_pattern": {r"model\.layers\.1\.mlp\.experts\.gate_up_proj": 5}},
    "experts, a dense layer": {
        "target_modules": [], "target_parameters": [*EXPERTS, "layers.0.mlp.up_proj.weight"]},
    "experts, names of transformers 4": {"target_modules": ["k_proj", "gate_proj", "up_proj", "down_proj", "gate"]},
}
ONE_BY_ONE = "experts, one by one"
QUANTIZED_ADAPTERS = ["all linear layers", "lm_head", "DoRA"]


def randomize(model):
    """Norms near 1, and matrices and biases large enough that each counts."""
    adds_one = model.config.model_type.startswith("gemma")
    for name, p in model.named_parameters():
        p.data = 0.2 * torch.randn_like(p) + float("norm" in name and not adds_one)
    return model.eval()


def save_model(folder, cls, config):
    model = randomize(cls(config))
    model.tie_weights()
    model.save_pretrained(folder)


def adapt(base, folder, name):
    """The model with a random adapter, which is saved to `folder`."""
    settings = (ADAPTERS | EXPERT_ADAPTERS)[name]
    config = LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, **settings})
    model = get_peft_model(base, config).eval()
    for key, p in model.named_parameters():
        if "lora_B" in key:
            p.data = 0.1 * torch.randn_like(p)
        elif "magnitude" in key:
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


def compare(program, folder, adapter, expected, *flags):
    """The largest difference, or what `compare` complains of."""
    command = [program, "--model", folder, "--inputs", folder / "inputs.safetensors", *flags]
    command += ["--expected", expected] + (["--adapter", adapter] if adapter else [])
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        return run.stderr.strip()
    found = json.loads(run.stdout)
    return found["max_abs_logits"] if found.get("same_generated_ids", True) else "other greedy tokens"


def load(folder):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager").eval()


def prepare(folder, name, sizes=SIZES):
    """Saves a model and what it is asked, which is returned."""
    cls, config, settings = MODELS[name]
    save_model(folder, cls, config(**sizes, **settings))
    ids = torch.randint(3, SIZES["vocab_size"], (2, 100))
    save_file({"input_ids": ids.int()}, folder / "inputs.safetensors")
    return ids


def check_base(program, folder, ids):
    return compare(program, folder, None, save_expected(folder, load(folder), ids))


def check_model(program, folder, name):
    """Yields the name of each case and what came of it."""
    ids = prepare(folder, name)
    yield "base", check_base(program, folder, ids)
    for adapter in ADAPTERS:
        path = folder / adapter.replace(" ", "_")
        expected = save_expected(path, adapt(load(folder), path, adapter), ids)
        yield adapter, compare(program, folder, path, expected)


def check_family(program, adapters, folder, name):
    """A configuration of a family: short and long rows, tokens from the cache, and an adapter of all linear layers."""
    cls, config, changed, is_left_out = family_cases.case(name)
    torch.manual_seed(1)
    save_model(folder, cls, config)
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in fields.items() if not is_left_out(k)} | changed))
    model = load(folder)
    ids = torch.randint(3, config.vocab_size, (2, 100))
    for rows in (ids[:, :40], ids):
        save_file({"input_ids": rows.int().contiguous()}, folder / "inputs.safetensors")
        expected = save_expected(folder, model, rows)
        yield f"{rows.shape[1]} tokens", compare(program, folder, None, expected)
    yield "greedy tokens", check_greedy(program, folder, model, ids[:, :30])
    yield from check_adapter_of(adapters, folder, ids[:, :40], "all linear layers")


def check_experts(adapters, folder, name):
    """An adapter of a model in which some layers have experts. In a row of 12 tokens some experts have none."""
    cls, config, *_ = family_cases.case("Qwen3 MoE, dense layers")
    torch.manual_seed(2)
    save_model(folder, cls, config)
    ids = torch.randint(3, config.vocab_size, (1, 12))
    if name != ONE_BY_ONE:
        yield from check_adapter_of(adapters, folder, ids, name)
        return
    save_one_by_one(folder / "adapter", config)
    path = folder / "inputs.safetensors"
    save_file({"input_ids": ids.int()}, path)
    run = [adapters, "logits", "--model", folder, "--adapter", folder / "adapter", "--inputs", path, "--out", folder / "out"]
    subprocess.run(run, check=True)
    expected = logits_of(reload(load(folder), folder / "adapter"), {"input_ids": ids})
    yield "adapter", (load_file(folder / "out")["logits"] - expected).abs().max().item()


def save_one_by_one(folder, config):
    """An adapter as PEFT wrote it when experts were modules."""
    folder.mkdir()
    modules = ["gate_proj", "up_proj", "down_proj"]
    fields = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 6, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    dim, inside = config.hidden_size, config.moe_intermediate_size
    sizes = {"gate_proj": (dim, inside), "up_proj": (dim, inside), "down_proj": (inside, dim)}
    tensors = {}
    for layer in (1, 3):
        for expert in range(config.num_experts):
            for module, (columns, rows) in sizes.items():
                name = f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{module}"
                tensors[f"{name}.lora_A.weight"] = 0.2 * torch.randn(2, columns)
                tensors[f"{name}.lora_B.weight"] = 0.2 * torch.randn(rows, 2)
    save_file(tensors, folder / "adapter_model.safetensors")


def check_with_images(program, folder, name):
    """The text model of one that reads images too."""
    cls, config, left_out = family_cases.case_with_images(name)
    torch.manual_seed(1)
    save_model(folder, cls, config)
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in fields.items() if key not in left_out}))
    ids = torch.randint(3, 120, (2, 40))
    save_file({"input_ids": ids.int().contiguous()}, folder / "inputs.safetensors")
    model = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    yield "base", compare(program, folder, None, save_expected(folder, model, ids))


def check_greedy(program, folder, model, ids):
    """20 tokens, one after the other: as transformers has them without a cache. With one it forgets nothing of a
    window of one token, and keeps keys that were rotated by other frequencies."""
    save_file({"input_ids": ids.int().contiguous()}, folder / "inputs.safetensors")
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "use_cache": False}
    with torch.no_grad():
        rows = [model.generate(row[None], **settings) for row in ids]
    expected = save_expected(folder, model, ids)
    tensors = load_file(expected) | {"generated_ids": torch.cat(rows)[:, ids.shape[1]:].int().contiguous()}
    save_file(tensors, expected)
    return compare(program, folder, None, expected)


def check_adapter_of(program, folder, ids, name):
    """An adapter of PEFT's, computed, differentiated, merged, and trained for PEFT."""
    inputs = {"input_ids": ids, "labels": ids}
    path = folder / "inputs.safetensors"
    save_file({key: value.int().contiguous() for key, value in inputs.items()}, path)
    adapter = folder / "adapter"
    model = adapt(load(folder), adapter, name)

    def call(verb, out, **options):
        command = [program, verb, "--model", folder, "--adapter", adapter, "--out", folder / out]
        command += [part for key, value in options.items() for part in (f"--{key}", str(value))]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(run.stderr.strip())
        return folder / out

    def largest(found, expected):
        return (found - expected).abs().max().item()

    def gradients():
        loss, expected = gradients_of(model, inputs)
        found = load_file(call("gradients", "gradients.safetensors", inputs=path))
        assert abs(found.pop("loss").item() - loss) <= 1e-5, "the losses differ"
        assert found.keys() == expected.keys(), "gradients of other tensors"
        # Within 1e-5 where logits may differ by 1e-4.
        return 10 * max(largest(found[key], expected[key]) for key in found)

    def adapted():
        return largest(load_file(call("logits", "logits.safetensors", inputs=path))["logits"], logits_of(model, inputs))

    def merged():
        return largest(logits_of(load_base(call("merge", "merged")), inputs), logits_of(model, inputs))

    def trained():
        out = call("train", "trained", inputs=path, steps=2)
        found = load_file(call_of(out))["logits"]
        moved = largest(found, logits_of(model, inputs))
        assert moved > TOLERANCE, "the training changed nothing"
        return largest(found, logits_of(reload(load(folder), out), inputs))

    def call_of(other):
        run = [program, "logits", "--model", folder, "--adapter", other, "--inputs", path, "--out", folder / "of_other"]
        subprocess.run(run, check=True, capture_output=True)
        return folder / "of_other"

    for name, compute in [("adapter", adapted), ("gradients", gradients), ("merged", merged), ("trained", trained)]:
        try:
            yield name, compute()
        except (AssertionError, RuntimeError, subprocess.CalledProcessError) as error:
            yield name, str(error)


def check_config(program, folder, name):
    """A config.json in another style, or with less in it."""
    model, settings, left_out = CONFIGS[name]
    ids = prepare(folder, model)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in left_out}))
    yield "base", check_base(program, folder, ids)


def check_output(program, folder, name):
    """A file of a tied model with an output of its own."""
    factor, keeps_embedding = OUTPUTS[name]
    ids = prepare(folder, "Llama 3.2, tied")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    embedding = tensors["model.embed_tokens.weight"]
    if not keeps_embedding:
        del tensors["model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": factor * embedding}, path, {"format": "pt"})
    yield "base", check_base(program, folder, ids)


def check_keys(program, folder, name):
    """A file whose keys are those of the model without its head, beside which the head may stand."""
    model, left_out = KEYS[name]
    ids = prepare(folder, model)
    path = folder / "model.safetensors"
    tensors = {k.removeprefix("model."): v for k, v in load_file(path).items() if k not in left_out}
    save_file(tensors, path, {"format": "pt"})
    yield "base", check_base(program, folder, ids)


def four_bit_layer(block_len):
    """The class of bitsandbytes' layers of four bits whose blocks have a length, for which transformers has no setting."""
    class Layer(bitsandbytes.nn.Linear4bit):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.weight.blocksize = block_len
    return Layer


def quantize(folder, settings, dtype=torch.float32, block_len=64, **saving):
    """Saves the model in a folder as bitsandbytes quantizes it, in its place."""
    settings = BitsAndBytesConfig(**settings)
    with mock.patch.object(bitsandbytes.nn, "Linear4bit", four_bit_layer(block_len)):
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=dtype)
    for path in folder.glob("model*.safetensors"):
        path.unlink()
    model.save_pretrained(folder, **saving)


def load_quantized(folder):
    """The model computed in f32. LLM.int8() rounds activations; bitsandbytes' layers of four bits compute in bf16 where
    the processor can, whatever their compute_dtype is, and give PEFT's DoRA weights of the type from before; and what is
    not packed keeps its type, whatever dtype is asked for."""
    model = load(folder)
    if model.config.quantization_config.load_in_8bit:
        return model.dequantize(torch.float32).float().eval()
    for p in model.parameters():
        if not isinstance(p, bitsandbytes.nn.Params4bit):
            p.data = p.data.float()
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype, module.compute_type_is_set = torch.float32, True
            module.support_avx512bf16_for_cpu = False
            module.weight.quant_state.dtype = torch.float32
    return model


def check_quantized(program, folder, name):
    """A folder that bitsandbytes quantized: the base as it is and in f32, and adapters that PEFT makes on it."""
    model, settings, options = QUANTIZED[name]
    ids = prepare(folder, model, SIZES | QUANTIZED_SIZES)
    quantize(folder, settings, **options)
    expected = save_expected(folder, load_quantized(folder), ids)
    yield "packed", compare(program, folder, None, expected, "--as-stored")
    yield "in f32", compare(program, folder, None, expected)
    for adapter in QUANTIZED_ADAPTERS if "nested" in name or name == "int8" else []:
        path = folder / adapter.replace(" ", "_")
        expected = save_expected(path, adapt(load_quantized(folder), path, adapter), ids)
        yield adapter, compare(program, folder, path, expected, "--as-stored")


def refusal(model):
    """What must be said of a case that this crate does not do."""
    return "set tie_word_embeddings to false" if model == TWO_OUTPUTS else None


def is_right(model, adapter, result):
    refused = refusal(model)
    if refused:
        return refused in str(result)
    return isinstance(result, float) and result <= TOLERANCE


def main(compare_program, adapters_program, only):
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' own
    warnings.filterwarnings("ignore", category=UserWarning, module=r"peft\b")
    # Of patterns that do match.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"peft\b")
    wrong = 0

    def check_families(program, folder, name):
        return check_family(program, adapters_program, folder, name)

    def check_expert_adapters(_, folder, name):
        return check_experts(adapters_program, folder, name)
    checks = [
        (check_model, MODELS), (check_config, CONFIGS), (check_output, OUTPUTS), (check_keys, KEYS),
        (check_families, family_cases.CASES), (check_expert_adapters, [*EXPERT_ADAPTERS, ONE_BY_ONE]), (check_with_images, family_cases.WITH_IMAGES), (check_quantized, QUANTIZED)]
    for check, names in checks:
        for name in filter(lambda name: only in name, names):
            with tempfile.TemporaryDirectory() as folder:
                for case, result in check(compare_program, Path(folder), name):
                    right = is_right(name, case, result)
                    print("ok  " if right else "FAIL", f"{name}, {case}: {result}", flush=True)
                    wrong += not right
    if wrong:
        sys.exit(f"{wrong} cases differ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compare")
    parser.add_argument("adapters")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    main(args.compare, args.adapters, args.only)
