#!/usr/bin/env python3
"""Makes the golden cases with transformers and PEFT on the CPU, or checks a set of them.

    python make_golden.py --out DIR      # write a fresh set into a new folder
    python make_golden.py --check DIR    # recompute the expected values of a set and compare

A set has two parts. The given part is random: the weights of two tiny Llamas (`gqa`, `mha`), the
inputs, the adapters. The expected part follows from it: `golden_cases.compute` yields it file by
file. `--out` computes it in f32 and writes it. `--check` computes it again, in f32 and in f64, and
wants every tensor within 1e-5 of one of the two: the last bits of f32 depend on the order in which
a CPU sums, and ten AdamW steps magnify them where a gradient is close to zero (there f64 decides),
while large hidden states are more than 1e-5 from their f64 values anyway (there f32 decides).

    manifest.json  schedules.json     settings of the set, learning rates by step
    gqa_sharded/                      the weights of gqa in five files and an index
    <case>/config.json model.safetensors inputs.safetensors           given
    <case>/expected.safetensors case.json                             expected
    <case>/<adapter>/adapter_config.json adapter_model.safetensors    given
    <case>/<adapter>/expected.safetensors case.json                   expected
    <case>/<adapter>/merged/ or merged_changed.safetensors            expected

The tokenizer files (`tokenizer_*.json`) are not made here: they need the tokenizers' vocabularies.
"""

import argparse
import itertools
import json
import math
import os
import shutil
import sys
import warnings
from functools import partial
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is a local folder

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from golden_cases import (
    ADAPTERS, CASES, DIMS, KV_HEADS, PROMPT, RECIPE_ADAPTER, SHARDED, STEPS,
    compute, greedy, load_adapter, load_base,
)

TOLERANCE = 1e-5  # largest difference that --check accepts
# Below this gap between the two best logits, rounding could flip a greedy token.
SAFE_MARGIN = 0.01
SHARD_SIZE = "200KB"
BOS, EOS, PAD, IGNORED = 1, 2, 0, -100
SEQ, PADDED_FROM = 16, 11


def llama_config(case):
    return LlamaConfig(
        vocab_size=DIMS["vocab"], hidden_size=DIMS["hidden"], intermediate_size=DIMS["inter"],
        num_hidden_layers=DIMS["layers"], num_attention_heads=DIMS["heads"],
        num_key_value_heads=KV_HEADS[case], max_position_embeddings=256, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, tie_word_embeddings=False,
    )


def randomize_base(model, gen):
    """Weights large enough that attention is far from uniform, and norms that are not all 1."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=gen)
        if p.dim() == 1:
            p.data = 1 + 0.2 * noise
        else:
            p.data = noise * (0.6 if "embed_tokens" in name else 1.3 / p.shape[1] ** 0.5)


def write_base(folder, case, gen):
    model = LlamaForCausalLM(llama_config(case))
    randomize_base(model, gen)
    save_model(model, folder)
    if case in SHARDED:
        save_model(model, folder.parent / SHARDED[case], max_shard_size=SHARD_SIZE)
    if case == "mha":
        write_json(folder / "config.json", classic_config(folder / "config.json"))


def save_model(model, folder, **options):
    model.save_pretrained(folder, **options)
    (folder / "generation_config.json").unlink(missing_ok=True)


def classic_config(path):
    """The same configuration as transformers 4 wrote it."""
    config = read_json(path)
    theta = config.pop("rope_parameters")["rope_theta"]
    del config["head_dim"], config["mlp_bias"]  # these came later
    config |= {"rope_theta": theta, "rope_scaling": None, "torch_dtype": config.pop("dtype")}
    return config | {"transformers_version": "4.31.0"}


def random_batch(gen):
    """Two rows of ids; the labels hide a prompt of 2 to 6 tokens, and a hole in the second row."""
    ids = torch.randint(3, DIMS["vocab"], (2, SEQ), generator=gen)
    ids[:, 0] = BOS
    labels = ids.clone()
    for row in labels:
        row[: torch.randint(2, PROMPT + 1, (), generator=gen)] = IGNORED
    labels[1, 13] = IGNORED
    return ids, labels


def write_inputs(folder, gen):
    ids, labels = random_batch(gen)
    mask, padded_ids, padded_labels = torch.ones_like(ids), ids.clone(), labels.clone()
    mask[1, PADDED_FROM:] = 0
    padded_ids[1, PADDED_FROM:] = PAD
    padded_labels[1, PADDED_FROM:] = IGNORED
    train_ids, train_labels = zip(*(random_batch(gen) for _ in range(STEPS)))
    save_file({
        "input_ids": ids, "labels": labels, "prompt_ids": ids[:1, :PROMPT].clone(),
        "padded_input_ids": padded_ids, "padded_labels": padded_labels,
        "padded_attention_mask": mask,
        "train_input_ids": torch.stack(train_ids), "train_labels": torch.stack(train_labels),
    }, folder / "inputs.safetensors")


def write_adapter(root, name, gen):
    """A fresh adapter whose B is not zero and whose DoRA magnitude is not the plain norm."""
    case = Path(name).parent.name
    config = LoraConfig(task_type="CAUSAL_LM", **ADAPTERS[name])
    model = get_peft_model(load_base(root / case), config)
    model.peft_config["default"].base_model_name_or_path = case  # not a path of this machine
    for key, p in model.named_parameters():
        if "lora_A" in key:  # PEFT's own initial distribution, from our generator
            p.data = (2 * torch.rand(p.shape, generator=gen) - 1) / p.shape[1] ** 0.5
        elif "lora_B" in key:
            p.data = torch.randn(p.shape, generator=gen) / 12
        elif "lora_magnitude_vector" in key:
            p.data *= 1 + 0.1 * torch.randn(p.shape, generator=gen)
    model.save_pretrained(root / name)  # with the weight of lm_head where that is adapted
    (root / name / "README.md").unlink(missing_ok=True)


def first_safe(seed, write, load, folder):
    """Calls `write` with one seed after the other until no greedy token is a close call."""
    for seed in itertools.count(seed):
        write(torch.Generator().manual_seed(seed))
        prompt = load_file(folder / "inputs.safetensors")["prompt_ids"]
        if greedy(load(), prompt)[1] > SAFE_MARGIN:
            return seed


def write_case(folder, case, gen):
    write_base(folder, case, gen)
    write_inputs(folder, gen)


def write_given(root):
    """Writes the random part below `root` and returns the seed of each folder."""
    seeds = {}
    for i, case in enumerate(CASES):
        folder = root / case
        folder.mkdir(parents=True)
        seeds[case] = first_safe(
            1000 + 100 * i, partial(write_case, folder, case), partial(load_base, folder), folder)
    for i, name in enumerate(ADAPTERS):
        folder = root / name
        seeds[name] = first_safe(
            6000 + 10 * i, partial(write_adapter, root, name), partial(load_adapter, folder),
            folder.parent)
    return seeds


def read_json(path):
    return json.loads(path.read_text())


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def write_tensors(path, tensors):
    # transformers and PEFT ask for this mark in files of weights.
    metadata = None if path.name == "expected.safetensors" else {"format": "pt"}
    save_file({key: t.contiguous() for key, t in tensors.items()}, path, metadata=metadata)


def rounding(single, double):
    """Largest difference of the f32 tensors from the f64 ones, by group."""
    worst = {}
    for key, t in single.items():
        group = key.split(".")[0]
        worst[group] = max(worst.get(group, 0.0), difference(t, double[key]))
    return worst


def write_set(root):
    if root.exists() and any(root.iterdir()):
        sys.exit(f"{root} is not empty: name a new folder")
    seeds = write_given(root)
    files = zip(compute(root, seeds, torch.float32), compute(root, seeds, torch.float64))
    for (path, value), (_, double) in files:
        target = root / path
        target.parent.mkdir(exist_ok=True)
        if target.name == "expected.safetensors":
            errors = rounding(value, double)
        if target.name == "case.json":
            value["f32_minus_f64_max_abs"] = errors
        write = write_json if target.suffix == ".json" else write_tensors
        write(target, value)
        print(path)
    shutil.copy(root / "gqa/config.json", root / RECIPE_ADAPTER / "merged/config.json")


def flatten(value, path=""):
    """The numbers of a JSON value or a state dict, by path, but for what only --out can know."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    if isinstance(value, (int, float)):
        return {path: torch.tensor(value, dtype=torch.float64)}
    if not isinstance(value, (dict, list)):
        return {}  # a sentence
    flat = {}
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if key not in ("seed", "f32_minus_f64_max_abs"):
            flat |= flatten(item, f"{path}.{key}" if path else str(key))
    return flat


def difference(stored, fresh):
    """Largest absolute difference; infinite where the shapes or the kinds of number differ, or one
    is not finite."""
    if stored.shape != fresh.shape or stored.is_floating_point() != fresh.is_floating_point():
        return math.inf
    worst = (stored.double() - fresh.double()).abs().max().item()
    return worst if math.isfinite(worst) else math.inf


def allowed(path, key):
    """Settings and learning rates are small numbers that take no part in f32 arithmetic."""
    exact = path in ("manifest.json", "schedules.json") or ".lrs." in key
    return 1e-15 if exact else TOLERANCE


def compare(path, stored, *fresh):
    """Prints a line per group of tensors or numbers of one file; returns how many groups failed.

    Of the recomputed values the nearest counts.
    """
    stored, fresh, groups = flatten(stored), [flatten(value) for value in fresh], {}
    for key in stored.keys() | fresh[0].keys():
        both = key in stored and key in fresh[0]
        diff = min(difference(stored[key], f[key]) for f in fresh) if both else math.inf
        groups.setdefault(key.split(".")[0], []).append((diff / allowed(path, key), diff, key))
    for group, diffs in sorted(groups.items()):
        share, diff, key = max(diffs)
        where = f"{len(diffs)} values, worst {key}" if diff and len(diffs) > 1 else ""
        print("ok  " if share < 1 else "FAIL", f"{diff:.1e}", path, group, where)
    return sum(max(diffs)[0] >= 1 for diffs in groups.values())


def check_set(root):
    failed = 0
    files = zip(compute(root, {}, torch.float32), compute(root, {}, torch.float64))
    for (path, single), (_, double) in files:
        if not (root / path).is_file():
            sys.exit(f"{root / path} is missing: is {root} a set of golden cases?")
        load = load_file if path.endswith(".safetensors") else read_json
        failed += compare(path, load(root / path), single, double)
    for case, twin in SHARDED.items():
        failed += compare(twin, *(load_base(root / name).state_dict() for name in (twin, case)))
    print(f"{failed} groups differ" if failed else "every expected value is reproduced")
    return not failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--out", type=Path, metavar="DIR", help="make a fresh set in this folder")
    mode.add_argument("--check", type=Path, metavar="DIR", help="recompute and compare this set")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the sums' order, and so the last bits, must not vary by machine
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' own
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if args.out:
        write_set(args.out)
    elif not check_set(args.check):
        sys.exit(1)


if __name__ == "__main__":
    main()
