"""The answers of benches/generation.rs by llama.cpp; prints the same JSON line, without the tokens.

It reads a GGUF file and keeps keys and values in f16, as is its default. The prompts of a group
come at the same time, each into a slot of its own.
"""

import argparse
import json
import os
import pathlib
import time
from concurrent.futures import ThreadPoolExecutor

import xllamacpp

from peak import peak_bytes

WARMUP_TOKENS = 4

Prompts = list[list[int]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--prompts", type=pathlib.Path, required=True)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def start(args: argparse.Namespace, slot: int) -> xllamacpp.Server:
    """llama.cpp with the model, and room for so many tokens in each slot."""
    params = xllamacpp.CommonParams()
    params.model.path = str(args.model)
    params.verbosity = 0
    params.n_parallel, params.n_ctx = args.batch_size, args.batch_size * slot
    for threads in (params.cpuparams, params.cpuparams_batch):
        threads.n_threads = args.threads
    return xllamacpp.Server(params)


def complete(server: xllamacpp.Server, prompt: list[int], new_tokens: int) -> dict:
    request = {"prompt": prompt, "n_predict": new_tokens, "temperature": 0}
    return server.handle_completions(request | {"ignore_eos": True, "cache_prompt": False})


def answer(server: xllamacpp.Server, prompts: Prompts, new_tokens: int) -> tuple[float, float]:
    """The seconds until each prompt has its first new token, and those of the other tokens."""
    started = time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(lambda prompt: complete(server, prompt, new_tokens), prompts))
    seconds = time.perf_counter() - started
    for prompt, one in zip(prompts, found, strict=True):
        usage = one["usage"]
        expected = {"prompt_tokens": len(prompt), "completion_tokens": new_tokens}
        if any(usage[name] != count for name, count in expected.items()):
            raise SystemExit(f"llama.cpp took {usage}, not {expected}")
    decoding = min(one["timings"]["predicted_ms"] for one in found) / 1e3
    return seconds - decoding, decoding


def main(args: argparse.Namespace) -> None:
    prompts = json.loads(args.prompts.read_text())
    start_bytes = peak_bytes()
    server = start(args, max(map(len, prompts)) + args.new_tokens + 1)
    starts = range(0, len(prompts), args.batch_size)
    groups = [prompts[start : start + args.batch_size] for start in starts]
    answer(server, groups[0], WARMUP_TOKENS)
    times = [answer(server, group, args.new_tokens) for group in groups]
    first, others = (sum(seconds) for seconds in zip(*times, strict=True))
    new_tokens = len(prompts) * args.new_tokens
    line = {
        "tokens_per_s": new_tokens / (first + others),
        "prompt_tokens_per_s": sum(map(len, prompts)) / first,
        "decoding_tokens_per_s": (new_tokens - len(prompts)) / others,
        "start_bytes": start_bytes,
        "peak_bytes": peak_bytes(),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main(arguments())
