#!/usr/bin/env python3
"""Loads adapters into llama.cpp and compares the probabilities of the next token with PEFT's.

    python check_llama_cpp.py PROGRAM

PROGRAM is the example `adapters`, built; the cases are those of `check_adapters.py` that it writes as GGUF files.
The base models become GGUF files of f32. Each case is a line; exits with 1 if a probability differs.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
import xllamacpp
from xllamacpp import ggml_type, llama_flash_attn_type

from adapter_cases import GGUF
from adapter_reference import Bases, logits_of, make_adapter, reload
from check_adapters import Program, quieten
from gguf_files import write_base

TOLERANCE = 1e-4  # of the logarithms
PREFIXES = [1, 2, 7, 24]


def start(base, adapter=None):
    """llama.cpp with a model; without what rounds to f16."""
    params = xllamacpp.CommonParams()
    params.model.path = str(base)
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)] if adapter else []
    params.n_ctx, params.warmup, params.cpuparams.n_threads = 64, False, 1
    params.cache_type_k = params.cache_type_v = ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def next_token(server, ids, vocab):
    """The logarithms of the probabilities of all tokens."""
    answer = server.handle_completions({
        "prompt": ids, "n_predict": 1, "n_probs": vocab, "temperature": 0, "cache_prompt": False})
    found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert len(found) == vocab, f"{len(found)} of {vocab} tokens"
    return torch.tensor([row["logprob"] for row in sorted(found, key=lambda row: row["id"])])


def difference(server, logits, inputs):
    """The largest one of a logarithm, after some prefixes of all rows."""
    expected = torch.log_softmax(logits, -1)
    differences = [
        (next_token(server, row[:n].tolist(), logits.shape[-1]) - expected[i, n - 1]).abs().max()
        for i, row in enumerate(inputs["input_ids"]) for n in PREFIXES]
    return torch.stack(differences).max().item()  # which does not pass over NaN


def check(bases, program, folder, name):
    """The differences of the base model and of the adapted one, and how much the adapter changes."""
    model, settings = GGUF[name]
    make_adapter(bases, name, model, settings, folder / "adapter")
    adapter = program("gguf", folder / "adapter.gguf", model=bases.folder(model), adapter=folder / "adapter")
    base = folder / "base.gguf"
    write_base(bases.model(model), base)
    _, inputs = bases.inputs(model)
    plain = logits_of(bases.model(model), inputs)
    adapted = logits_of(reload(bases.model(model), folder / "adapter"), inputs)
    server = start(base, adapter)
    return difference(start(base), plain, inputs), difference(server, adapted, inputs), \
        difference(server, plain, inputs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="the example `adapters`, built")
    program = Program(parser.parse_args().program)
    quieten()
    failed = 0
    with tempfile.TemporaryDirectory() as root:
        bases = Bases(Path(root))
        for name in GGUF:
            with tempfile.TemporaryDirectory() as folder:
                base, adapted, change = check(bases, program, Path(folder), name)
            is_right = base <= TOLERANCE and adapted <= TOLERANCE and change > 1
            failed += not is_right
            print("ok  " if is_right else "FAIL",
                  f"{name}: {adapted:.2g}, the base {base:.2g}, without the adapter {change:.2g}", flush=True)
    print(f"{len(GGUF) - failed} passed, {failed} failed")
    sys.exit(failed != 0)


if __name__ == "__main__":
    main()
