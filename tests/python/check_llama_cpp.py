#!/usr/bin/env python3
"""Loads adapters and merged models into llama.cpp and compares the probabilities of the next token with PEFT's.

    python check_llama_cpp.py PROGRAM [--smollm2 MODEL_DIR]

PROGRAM is the example `adapters`, built. The cases are those of `check_adapters.py` that it writes as GGUF files, on base
models that become GGUF files of f32 here; and the same adapters, and those that llama.cpp takes merged only, in merged
models that PROGRAM writes as f32, f16, Q8_0 and Q4_0. Of these the greedy tokens must be PROGRAM's own. Both kinds of files
PROGRAM reads as it does the folders that they were made of, and transformers some. MODEL_DIR is the
folder that `smollm2.py` makes: with it also a merged SmolLM2 answers. Each case is a line; exits with 1 if one differs.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
import xllamacpp
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer
from xllamacpp import ggml_type, llama_flash_attn_type

from adapter_cases import ALL, GGUF, GGUF_FAMILIES, QV, on
from adapter_reference import Bases, adapt, logits_of, make_adapter, randomize_adapter, reload, require
from check_adapters import Program, quieten
from gguf_files import widen, write_base

TOLERANCE = 1e-4  # of the logarithms
# llama.cpp looks GELU up in a table of f16: a number that is rounded to another row moves all that follows.
GELU = 0.01
READ = 1e-5  # of this crate's logits for a file and for the folder that it was made of
PREFIXES = [1, 2, 7, 24]
# Merged models: the adapters above, and what llama.cpp takes from no adapter's file.
MERGED = {
    **{name: GGUF[name] for name in ("gguf", "gguf, biases of the base", "gguf, rslora and patterns")},
    "dora": ("qwen2", on(QV, use_dora=True)),
    "saved norms": ("llama", on(QV, modules_to_save=["norm"])),
    "tied embedding": ("llama tied", on(["embed_tokens", *ALL])),
    **{name: (name, on("all-linear")) for name in GGUF_FAMILIES},
}
# Families of which transformers reads the files rightly too.
IN_TRANSFORMERS = ["qwen3", "gemma2", "phi3"]
# llama.cpp rounds activations to f16 for f16 weights, and to eight bits for Q8_0 and Q4_0: tokens whose probabilities
# are nearer to each other than this may change places.
MARGINS = {"f16": 0.02, "q8_0": 0.3, "q4_0": 0.3}
# SmolLM2: how much the difference of two likely tokens' logarithms may be another one in llama.cpp. Measured are 0.022,
# 0.85 and 1.1 by that rounding (transformers moves as much if it rounds what goes into its linear layers so), and 1e-4
# where the file's numbers stand as f32.
ROUNDING = {"f16": 0.03, "q8_0": 1.2, "q4_0": 1.5}
EXACT = 3e-4
PROMPTS = ["The capital of France is", "One, two, three, 4, 5,\n", "def main():\n    "]
NEW_TOKENS, LIKELIEST = 24, 10
MIN_CLEAR = 24  # of the 72 tokens


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


def tolerance(model):
    return GELU if model.startswith("gemma") else TOLERANCE


def read_error(program, path, inputs, folder):
    """How far this crate's logits for a file are from those for a folder."""
    def logits(model):
        return load_file(program("logits", path.with_name("logits.safetensors"), model=model, inputs=inputs))["logits"]
    return (logits(path) - logits(folder)).abs().max().item()


def check(bases, program, folder, name):
    """The differences of the base model, as llama.cpp and PROGRAM read it, and of the adapted one, and how much the
    adapter changes."""
    model, settings = GGUF[name]
    make_adapter(bases, name, model, settings, folder / "adapter")
    adapter = program("gguf", folder / "adapter.gguf", model=bases.folder(model), adapter=folder / "adapter")
    base = folder / "base.gguf"
    write_base(bases.model(model), base)
    path, inputs = bases.inputs(model)
    plain = logits_of(bases.model(model), inputs)
    read = read_error(program, base, path, bases.folder(model))
    adapted = logits_of(reload(bases.model(model), folder / "adapter"), inputs)
    server = start(base, adapter)
    return difference(start(base), plain, inputs), read, difference(server, adapted, inputs), \
        difference(server, plain, inputs)


# Merged models.

def add_tokenizer(folder, vocab):
    """A byte-level tokenizer of as many tokens, which is of no meaning."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(symbols[:vocab])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def differs(server, logits, inputs, margin):
    """How many prefixes have another greedy token, of those whose two best are not nearer than the margin; and of how
    many that is."""
    wrong, clear = 0, 0
    for i, row in enumerate(inputs["input_ids"]):
        for n in range(1, len(row) + 1):
            best = torch.log_softmax(logits[i, n - 1], -1).topk(2)
            if best.values[0] - best.values[1] > margin:
                clear += 1
                found = next_token(server, row[:n].tolist(), logits.shape[-1]).argmax()
                wrong += int(found != best.indices[0])
    return wrong, clear


def check_merged(bases, program, folder, name):
    """What is wrong, and a line about it."""
    model, settings = MERGED[name]
    make_adapter(bases, name, model, settings, folder / "adapter")
    path, inputs = bases.inputs(model)
    add_tokenizer(bases.folder(model), bases.model(model).config.vocab_size)

    def merged(kind):
        return program("merge", folder / f"{kind}.gguf", model=bases.folder(model), adapter=folder / "adapter", gguf=kind)
    expected = logits_of(reload(bases.model(model), folder / "adapter"), inputs)
    file = merged("f32")
    exact = difference(start(file), expected, inputs)
    whole = program("merge", folder / "whole", model=bases.folder(model), adapter=folder / "adapter")
    read = read_error(program, file, path, whole)
    wrong, said = int(not (exact <= tolerance(model) and read <= READ)), [f"f32 {exact:.2g}, read here {read:.2g}"]
    if name in IN_TRANSFORMERS:
        theirs = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager").eval()
        other = (logits_of(theirs, inputs) - expected).abs().max().item()
        wrong += int(not other <= TOLERANCE)
        said.append(f"in transformers {other:.2g}")
    margins = MARGINS if name not in GGUF_FAMILIES else {"q8_0": MARGINS["q8_0"]}
    for kind, margin in margins.items():
        found = merged(kind)
        ours = load_file(program("logits", folder / "logits.safetensors", model=found, inputs=path))["logits"]
        other, clear = differs(start(found), ours, inputs, margin)
        wrong += other + int(clear < 20)
        said.append(f"{kind} {clear - other} of {clear} tokens")
    return wrong, ", ".join(said)


# A real one.

def answers(server, tokenizer):
    """For each prompt its ids, those that llama.cpp adds, and the likeliest tokens at each with their logarithms."""
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        answer = server.handle_completions({
            "prompt": prompt, "n_predict": NEW_TOKENS, "n_probs": LIKELIEST, "temperature": 0, "cache_prompt": False,
            "ignore_eos": True})
        require(answer["usage"]["prompt_tokens"] == len(ids), f"{prompt!r} has another number of tokens")
        rows = answer["choices"][0]["logprobs"]["content"]
        yield ids, [row["id"] for row in rows], [{t["id"]: t["logprob"] for t in row["top_logprobs"]} for row in rows]


def moved(scores, likely):
    """How much the difference of two tokens is another one in llama.cpp, at most."""
    ids, theirs = torch.tensor(list(likely)), torch.tensor(list(likely.values()))
    shifts = theirs - scores[ids]
    return (shifts.max() - shifts.min()).item()


def compare(program, tokenizer, path, server, bound):
    """Whether llama.cpp answers right, and a line about it: the likeliest tokens at each place are as likely
    as for PROGRAM, within the bound, and where PROGRAM's two best are farther from each other it gives the best."""
    largest, same, clear, texts = 0.0, 0, 0, set()
    for ids, found, likely in answers(server, tokenizer):
        logits = program_logits(program, path, ids + found)[len(ids) - 1:-1]
        scores = torch.log_softmax(logits, -1)
        largest = torch.tensor([largest, *map(moved, scores, likely)]).max().item()  # which does not pass over NaN
        # What ends a text is not given, however likely.
        scores[:, list(tokenizer.added_tokens_decoder)] = -torch.inf
        best = scores.topk(2)
        is_clear = best.values[:, 0] - best.values[:, 1] > bound
        clear += int(is_clear.sum())
        same += int((is_clear & (best.indices[:, 0] == torch.tensor(found))).sum())
        texts.add(tuple(found))
    is_right = largest <= bound and same == clear >= MIN_CLEAR and len(texts) == len(PROMPTS)
    return is_right, f"{same} of {clear} clear tokens, likely ones within {largest:.2g}"


def program_logits(program, path, ids):
    inputs = path.with_name("ids.safetensors")
    save_file({"input_ids": torch.tensor([ids], dtype=torch.int32)}, inputs)
    return load_file(program("logits", path.with_name("logits.safetensors"), model=path, inputs=inputs))["logits"][0]


def check_smollm2(program, base, folder):
    """For each kind whether all is right, and a line about it: the file itself, and its numbers as f32."""
    torch.manual_seed(3)
    model = adapt(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), on(ALL, r=4, lora_alpha=2))
    randomize_adapter(model).save_pretrained(folder / "adapter")
    del model
    tokenizer = AutoTokenizer.from_pretrained(base)
    for kind, bound in {"f32": EXACT, **ROUNDING}.items():
        path = program("merge", folder / "merged.gguf", model=base, adapter=folder / "adapter", gguf=kind)
        yield kind, *compare(program, tokenizer, path, start(path), bound)
        if kind != "f32":
            wide = widen(path, folder / "wide.gguf")
            yield f"{kind}, its numbers as f32", *compare(program, tokenizer, path, start(wide), EXACT)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="the example `adapters`, built")
    parser.add_argument("--smollm2", type=Path, help="a folder of `smollm2.py`")
    args = parser.parse_args()
    program = Program(args.program)
    quieten()
    results = []

    def tell(is_right, name, said):
        results.append(is_right)
        print("ok  " if is_right else "FAIL", f"{name}: {said}", flush=True)
    with tempfile.TemporaryDirectory() as root:
        bases = Bases(Path(root))
        for name in GGUF:
            with tempfile.TemporaryDirectory() as folder:
                base, read, adapted, change = check(bases, program, Path(folder), name)
            bound = tolerance(GGUF[name][0])
            tell(base <= bound and read <= READ and adapted <= bound and change > 1, name,
                 f"{adapted:.2g}, the base {base:.2g}, read here {read:.2g}, without the adapter {change:.2g}")
        for name in MERGED:
            with tempfile.TemporaryDirectory() as folder:
                wrong, said = check_merged(bases, program, Path(folder), name)
            tell(wrong == 0, f"merged: {name}", said)
        if args.smollm2:
            for kind, is_right, said in check_smollm2(program, args.smollm2, Path(root)):
                tell(is_right, f"SmolLM2, {kind}", said)
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
