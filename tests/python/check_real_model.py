#!/usr/bin/env python3
"""Compares 40 training steps of a real model on Alpaca rows with PEFT's, loss by loss, for four adapters, and for one on a
base of four bits, where PEFT has bitsandbytes and computes in bf16.

    python smollm2.py MODEL_DIR
    python check_real_model.py PROGRAM MODEL_DIR ALPACA_JSON [--only SUBSTRING] [--reference-only]

PROGRAM is an example of this repository, built, and called so:

    PROGRAM train --model DIR --adapter DIR --inputs FILE --steps 40 --losses FILE --out DIR [--quantize nf4]

`inputs` holds `train_input_ids` and `train_labels`, [40, 2, 128]; step i takes row i. `--losses` is
written as a JSON list, each the loss before its step; `--out` as a PEFT folder. AdamW is that of
`check_adapters.py`. PEFT takes about a minute and a half an adapter on one core. With `--keep DIR` PEFT's side of a case is
taken from DIR if it is there, and left there if not: with `--reference-only` first, each program has the machine alone.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is a local folder

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from adapter_cases import ALL, QV
from adapter_reference import ADAMW, Failure, adapt, reload, trained
from check_adapters import Program, Refused, quieten

STEPS, BATCH, LENGTH = 40, 2, 128
LOSS = 1e-5
RANKS = {"v_proj": 16, "layers.7.mlp.down_proj": 4, "layers.29.self_attn.q_proj": 2}
ADAPTERS = {
    "lora, q and v": {"r": 8, "lora_alpha": 16, "target_modules": QV},
    "dora, every projection": {"r": 8, "lora_alpha": 16, "target_modules": ALL, "use_dora": True},
    "rslora, rank pattern": {
        "r": 8, "lora_alpha": 8, "target_modules": ALL, "use_rslora": True, "rank_pattern": RANKS},
    "saved embedding": {"r": 8, "lora_alpha": 16, "target_modules": QV, "modules_to_save": ["embed_tokens"]},
}
# Of these the base is packed, and a loss may differ by what rounding to bf16 does.
QUANTIZED = {
    "lora, every projection, nf4": {"r": 8, "lora_alpha": 16, "target_modules": ALL},
}
LOSS_OF_BF16 = 2e-2
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
       "bnb_4bit_compute_dtype": torch.bfloat16}
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n")
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n")
LEAST_LABELS = 8


# Rows.

def encode(tokenizer, row):
    """Ids and labels of `LENGTH`, the prompt and the padding without labels."""
    template = WITH_INPUT if row.get("input") else WITHOUT_INPUT
    prompt = tokenizer(template.format(**row), add_special_tokens=False)["input_ids"]
    response = tokenizer(row["output"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    ids = (prompt + response)[:LENGTH]
    labels = ([-100] * len(prompt) + response)[:LENGTH]
    padding = LENGTH - len(ids)
    return ids + [tokenizer.pad_token_id] * padding, labels + [-100] * padding


def batches(model_dir, path):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    rows = (encode(tokenizer, row) for row in json.loads(Path(path).read_text()))
    rows = [row for row in rows if sum(label != -100 for label in row[1]) >= LEAST_LABELS]
    if len(rows) < STEPS * BATCH:
        sys.exit(f"{path} has too few rows with an answer within {LENGTH} tokens")
    ids, labels = zip(*rows[:STEPS * BATCH])
    return {
        "train_input_ids": torch.tensor(ids).view(STEPS, BATCH, LENGTH),
        "train_labels": torch.tensor(labels).view(STEPS, BATCH, LENGTH),
    }


# PEFT.

def load(folder, is_quantized=False):
    settings = {"quantization_config": BitsAndBytesConfig(**NF4)} if is_quantized else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings).eval()


def make_adapter(model_dir, settings, folder):
    """As PEFT initializes it, but B is not zero, so that every tensor has a gradient from the start."""
    torch.manual_seed(0)
    model = adapt(load(model_dir), settings)
    for key, p in trained(model).items():
        if "lora_B" in key:
            p.data = 0.01 * torch.randn_like(p)
    model.save_pretrained(folder)


def loss_of(model, inputs, row):
    return model(input_ids=inputs["train_input_ids"][row], labels=inputs["train_labels"][row]).loss


def losses_of(model, inputs):
    params = list(trained(model).values())
    optimizer = torch.optim.AdamW(params, **ADAMW)
    losses = []
    for row in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, inputs, row)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def last_loss(model, inputs):
    """After the last step, on the first row."""
    with torch.no_grad():
        return loss_of(model, inputs, 0).item()


# Comparison.

def largest(found, expected):
    if len(found) != len(expected):
        raise Failure(f"{len(found)} losses instead of {len(expected)}")
    differences = [abs(a - b) for a, b in zip(found, expected)]
    if any(d != d for d in differences):
        raise Failure("a loss is not a number")
    return max(differences)


def train(program, args, name, adapter, inputs_path, folder):
    """PROGRAM's losses, and the folder that it wrote."""
    out, losses = folder / "out", folder / "losses.json"
    packing = {"quantize": "nf4"} if name in QUANTIZED else {}
    program("train", out, model=args.model, adapter=adapter, inputs=inputs_path, steps=STEPS, losses=losses, **packing)
    return json.loads(losses.read_text()), out


def reference(args, name, inputs, folder):
    """PEFT's losses, that after the last step too; the adapter that it began with is left in the folder."""
    kept = folder / "losses_of_peft.json"
    if kept.exists():
        return json.loads(kept.read_text())
    make_adapter(args.model, (ADAPTERS | QUANTIZED)[name], folder / "adapter")
    model = reload(load(args.model, name in QUANTIZED), folder / "adapter")
    losses = losses_of(model, inputs)
    losses.append(last_loss(model, inputs))
    kept.write_text(json.dumps(losses))
    return losses


def check(args, program, name, inputs, folder):
    """What is printed of an adapter, and whether it is right."""
    expected = reference(args, name, inputs, folder)
    story = f"{expected[0]:.4f} to {expected[-1]:.4f} on the first batch"
    if program is None:
        return f"{story}; all: {[round(x, 6) for x in expected]}", True
    inputs_path = folder / "inputs.safetensors"
    save_file({key: t.int() for key, t in inputs.items()}, inputs_path)
    found, out = train(program, args, name, folder / "adapter", inputs_path, folder)
    found.append(last_loss(reload(load(args.model, name in QUANTIZED), out), inputs))
    difference = largest(found, expected)
    allowed = LOSS_OF_BF16 if name in QUANTIZED else LOSS
    return f"{difference:.2g}, allowed {allowed:.0e} ({story})", difference <= allowed


def report(args, program, name, inputs):
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        if args.keep:
            folder = args.keep / name.replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
        try:
            said, right = check(args, program, name, inputs, Path(folder))
        except (Failure, Refused, OSError, RuntimeError, ValueError) as error:
            said, right = str(error), False
    print("ok  " if right else "FAIL", f"{name}: {said} [{time.time() - start:.0f} s]", flush=True)
    return right


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="the example, built")
    parser.add_argument("model", type=Path, help="a Hugging Face folder with a tokenizer")
    parser.add_argument("alpaca", type=Path, help="Alpaca rows, JSON")
    parser.add_argument("--only", default="", help="adapters whose name has this in it")
    parser.add_argument("--reference-only", action="store_true", help="PEFT alone; PROGRAM is not run")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where PEFT's side is kept")
    args = parser.parse_args()
    quieten()
    program = None if args.reference_only else Program(args.program)
    inputs = batches(args.model, args.alpaca)
    names = [name for name in ADAPTERS | QUANTIZED if args.only in name]
    passed = sum(report(args, program, name, inputs) for name in names)
    print(f"{passed} passed, {len(names) - passed} failed")
    sys.exit(passed != len(names))


if __name__ == "__main__":
    main()
