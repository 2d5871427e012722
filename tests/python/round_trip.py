#!/usr/bin/env python3
"""Loads what burn-peft wrote into PEFT and transformers, and compares the logits.

    python round_trip.py --stories DIR --adapter DIR --merged DIR --expected FILE.safetensors

`--stories` is the HF folder of the base model, `--adapter` a PEFT folder trained by burn-peft,
`--merged` the HF folder it merged and saved, and `--expected` holds what it computed itself:
`input_ids` [batch, seq], `adapter_logits` and `merged_logits` [batch, seq, vocab] in f32.

Prints one line of JSON with the largest absolute differences. Exits with 1 and says why on the
first thing that is not as it should be; PEFT itself would only warn, or say nothing, and go on
with an adapter at its initial values.
"""

import argparse
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is a local folder

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4  # between two programs' logits
EFFECT = 1e-3  # an adapter that moves no logit by this much was not applied
# PEFT has a default for most of these; other readers (vLLM, llama.cpp) do not.
NEEDED = {
    "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout",
    "target_modules", "bias", "use_dora", "use_rslora", "init_lora_weights", "fan_in_fan_out",
    "inference_mode", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform",
}


class Failure(Exception):
    """What is wrong, for the person who reads the log."""


def require(condition, message):
    if not condition:
        raise Failure(message)


def some(keys):
    keys = sorted(keys)
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")


def read_expected(path):
    tensors = load_file(path)
    for key in ("input_ids", "adapter_logits", "merged_logits"):
        require(key in tensors, f"{path}: no tensor `{key}`, only {some(tensors)}")
    ids = tensors["input_ids"]
    require(ids.dtype in (torch.int32, torch.int64) and ids.dim() == 2,
            f"{path}: input_ids is {ids.dtype} {list(ids.shape)}, not integers [batch, seq]")
    for key in ("adapter_logits", "merged_logits"):
        t = tensors[key]
        require(t.dtype == torch.float32 and t.dim() == 3 and t.shape[:2] == ids.shape,
                f"{path}: {key} is {t.dtype} {list(t.shape)}, not f32 [batch, seq, vocab]")
    return tensors


def check_adapter_file(folder):
    """The file as vLLM and PEFT want it. Returns its keys."""
    path = folder / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        metadata, keys = file.metadata(), set(file.keys())
        dtypes = {file.get_slice(key).get_dtype() for key in keys}
    require(keys, f"{path}: no tensors")
    named = [key for key in keys if ".default." in key or key.endswith(".default")]
    require(not named, f"{path}: keys with the adapter's name `default`: {some(named)}")
    require(dtypes == {"F32"}, f"{path}: dtypes {some(dtypes)}, not F32 alone")
    require(metadata == {"format": "pt"}, f"{path}: metadata {metadata}, not format pt")
    return keys


def plain(value):
    """Sets and enums as JSON has them; lists of names without an order."""
    if isinstance(value, (set, list, tuple)):
        return sorted(value)
    return getattr(value, "value", value)


def check_adapter_config(folder):
    """Every field of the file arrives in PEFT's LoraConfig and comes out again."""
    path = folder / "adapter_config.json"
    written = json.loads(path.read_text())
    missing = NEEDED - written.keys()
    require(not missing, f"{path}: no {some(missing)}")
    require(written["task_type"] == "CAUSAL_LM", f"{path}: task_type is not CAUSAL_LM")
    config = LoraConfig.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as again:
        config.save_pretrained(again)
        saved = json.loads((Path(again) / "adapter_config.json").read_text())
    loaded = config.to_dict()
    for key, value in written.items():
        if key != "peft_version":  # PEFT writes its own
            require(key in loaded, f"{path}: PEFT does not know `{key}`")
            for other in (plain(loaded[key]), plain(saved.get(key))):
                require(plain(value) == other, f"{path}: `{key}` is {value}, PEFT makes it {other}")


def load(folder):
    """The model of an HF folder in f32, every tensor of it from a file."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True,
        ignore_mismatched_sizes=True)  # they are in the info, with their names
    for what, keys in info.items():
        require(not keys, f"{folder}: transformers reports {what}: {some(map(str, keys))}")
    return model.eval()


def load_adapter(base, folder, keys):
    """Base and adapter; `keys` are those of the adapter's file."""
    model = PeftModel.from_pretrained(base, folder).eval()
    known = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    require(not keys - known, f"{folder}: keys that PEFT does not use: {some(keys - known)}")
    require(not known - keys, f"{folder}: keys that PEFT misses: {some(known - keys)}")
    return model


def logits_of(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


def difference(name, found, expected):
    require(found.shape == expected.shape,
            f"{name}: shape {list(found.shape)} here, {list(expected.shape)} in --expected")
    return (found - expected).abs().max().item()


def compare(name, found, expected):
    diff = difference(name, found, expected)
    # Written so that NaN fails.
    require(diff <= TOLERANCE, f"{name}: logits differ by {diff:.3g}, allowed {TOLERANCE:.0e}")
    return diff


def round_trip(stories, adapter, merged, expected_path):
    for folder in (stories, adapter, merged):
        require(folder.is_dir(), f"{folder} is not a folder")
    expected = read_expected(expected_path)
    ids = expected["input_ids"].long()
    keys = check_adapter_file(adapter)
    check_adapter_config(adapter)

    base = load(stories)
    plain_logits = logits_of(base, ids)
    adapted_logits = logits_of(load_adapter(base, adapter, keys), ids)
    report = {"max_abs_adapter": compare("adapter", adapted_logits, expected["adapter_logits"])}

    effect = difference("base", plain_logits, adapted_logits)
    require(effect > EFFECT, f"{adapter}: the adapter moves the base's logits by {effect:.3g} only")
    merged_logits = logits_of(load(merged), ids)
    report["max_abs_merged"] = compare("merged", merged_logits, expected["merged_logits"])
    return report | {"adapter_effect": effect, "adapter_tensors": len(keys)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", type=Path, required=True, help="HF folder of the base model")
    parser.add_argument("--adapter", type=Path, required=True, help="PEFT folder to load")
    parser.add_argument("--merged", type=Path, required=True, help="HF folder of the merged model")
    parser.add_argument("--expected", type=Path, required=True, help="burn-peft's own logits")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the models are tiny
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' own
    warnings.filterwarnings("error", category=UserWarning, module=r"peft\b")
    try:
        report = round_trip(args.stories, args.adapter, args.merged, args.expected)
    except (Failure, UserWarning, OSError, ValueError, RuntimeError, SafetensorError) as error:
        sys.exit(f"round trip failed: {error}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
