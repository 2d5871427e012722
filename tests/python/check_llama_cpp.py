#!/usr/bin/env python3
"""Loads adapters and merged models into llama.cpp and compares the probabilities of the next token with PEFT's.

    python check_llama_cpp.py PROGRAM [--smollm2 MODEL_DIR]

PROGRAM is the example `adapters`, built. The cases are those of `check_adapters.py` that it writes as GGUF files, on base
models that become GGUF files of f32 here; and the same adapters, and those that llama.cpp takes merged only, in merged
models that PROGRAM writes as f32, f16, Q8_0 and Q4_0. Of these the greedy tokens must be PROGRAM's own. MODEL_DIR is the
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

from adapter_cases import ALL, GGUF, QV, on
from adapter_reference import Bases, adapt, logits_of, make_adapter, randomize_adapter, reload
from check_adapters import Program, quieten
from gguf_files import write_base

TOLERANCE = 1e-4  # of the logarithms
PREFIXES = [1, 2, 7, 24]
# Merged models: the adapters above, and what llama.cpp takes from no adapter's file.
MERGED = {
    **{name: GGUF[name] for name in ("gguf", "gguf, biases of the base", "gguf, rslora and patterns")},
    "dora": ("qwen2", on(QV, use_dora=True)),
    "saved norms": ("llama", on(QV, modules_to_save=["norm"])),
    "tied embedding": ("llama tied", on(["embed_tokens", *ALL])),
}
# llama.cpp rounds activations to f16 for f16 weights, and to eight bits for Q8_0 and Q4_0: tokens whose probabilities
# are nearer to each other than this may change places.
MARGINS = {"f16": 0.02, "q8_0": 0.3, "q4_0": 0.3}
PROMPTS = ["The capital of France is", "One, two, three, 4, 5,\n", "def main():\n    "]
NEW_TOKENS = 24


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
    exact = difference(start(merged("f32")), expected, inputs)
    wrong, said = int(not exact <= TOLERANCE), [f"f32 {exact:.2g}"]
    for kind, margin in MARGINS.items():
        found = merged(kind)
        ours = load_file(program("logits", folder / "logits.safetensors", model=found, inputs=path))["logits"]
        other, clear = differs(start(found), ours, inputs, margin)
        wrong += other + int(clear < 20)
        said.append(f"{kind} {clear - other} of {clear} tokens")
    return wrong, ", ".join(said)


# A real one.

def greedy(server, prompt):
    """The number of the prompt's tokens and the ids that follow."""
    answer = server.handle_completions({
        "prompt": prompt, "n_predict": NEW_TOKENS, "n_probs": 1, "temperature": 0, "cache_prompt": False,
        "ignore_eos": True})
    found = [row["id"] for row in answer["choices"][0]["logprobs"]["content"]]
    return answer["usage"]["prompt_tokens"], found


def check_smollm2(program, base, folder):
    """For each kind what is wrong, and a line about it: after each prompt and what llama.cpp has added to it so far, its
    next token is PROGRAM's best or within the margin of it."""
    torch.manual_seed(3)
    settings = on(ALL, r=4, lora_alpha=1)
    model = randomize_adapter(adapt(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), settings))
    model.save_pretrained(folder / "adapter")
    del model
    tokenizer = AutoTokenizer.from_pretrained(base)
    for kind, margin in {"f32": TOLERANCE, **MARGINS}.items():
        path = program("merge", folder / "merged.gguf", model=base, adapter=folder / "adapter", gguf=kind)
        server = start(path)
        wrong, same, largest, texts = 0, 0, 0.0, set()
        for prompt in PROMPTS:
            ids = tokenizer(prompt)["input_ids"]
            count, found = greedy(server, prompt)
            wrong += int(count != len(ids)) + int(greedy(server, ids)[1] != found)
            save_file({"input_ids": torch.tensor([ids + found], dtype=torch.int32)}, folder / "ids.safetensors")
            logits = load_file(program(
                "logits", folder / "logits.safetensors", model=path, inputs=folder / "ids.safetensors"))["logits"]
            scores = torch.log_softmax(logits[0, len(ids) - 1:-1], -1)
            lost = scores.max(-1).values - scores.gather(1, torch.tensor(found)[:, None])[:, 0]
            same += int((lost == 0).sum())
            largest = max(largest, lost.max().item())
            texts.add(tuple(found))
        wrong += int(not largest <= margin) + int(len(texts) < len(PROMPTS))
        total = NEW_TOKENS * len(PROMPTS)
        yield kind, wrong, f"{same} of {total} greedy tokens are the same, the others at most {largest:.2g} less likely"


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
                base, adapted, change = check(bases, program, Path(folder), name)
            tell(base <= TOLERANCE and adapted <= TOLERANCE and change > 1, name,
                 f"{adapted:.2g}, the base {base:.2g}, without the adapter {change:.2g}")
        for name in MERGED:
            with tempfile.TemporaryDirectory() as folder:
                wrong, said = check_merged(bases, program, Path(folder), name)
            tell(wrong == 0, f"merged: {name}", said)
        if args.smollm2:
            for kind, wrong, said in check_smollm2(program, args.smollm2, Path(root)):
                tell(wrong == 0, f"SmolLM2, {kind}", said)
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
