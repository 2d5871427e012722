"""The answers of benches/generation.rs by transformers; prints the same JSON line."""

import argparse
import json
import os
import pathlib
import time

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria
from transformers.utils.logging import disable_progress_bar

from peak import peak_bytes

WARMUP_TOKENS = 4
PAD_ID = 0

Prompts = list[list[int]]


class Clock(StoppingCriteria):
    """Ends nothing, and knows when the tokens came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--prompts", type=pathlib.Path, required=True)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def load(args: argparse.Namespace) -> torch.nn.Module:
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).eval()
    # No token ends an answer.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD_ID
    return model


def answer(
    model: torch.nn.Module, prompts: Prompts, new_tokens: int
) -> tuple[Prompts, float, float]:
    """The new tokens, the seconds up to the first of each prompt, and those of the others."""
    longest = max(map(len, prompts))
    rows = [[PAD_ID] * (longest - len(prompt)) + prompt for prompt in prompts]
    real = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    clock = Clock()
    started = time.perf_counter()
    ids = model.generate(
        input_ids=torch.tensor(rows),
        attention_mask=torch.tensor(real),
        do_sample=False,
        max_new_tokens=new_tokens,
        stopping_criteria=[clock],
    )
    ended = time.perf_counter()
    return ids[:, longest:].tolist(), clock.times[0] - started, ended - clock.times[0]


def main(args: argparse.Namespace) -> None:
    disable_progress_bar()
    torch.set_num_threads(args.threads)
    prompts = json.loads(args.prompts.read_text())
    start_bytes = peak_bytes()
    model = load(args)
    starts = range(0, len(prompts), args.batch_size)
    groups = [prompts[start : start + args.batch_size] for start in starts]
    answer(model, groups[0], WARMUP_TOKENS)
    answers = [answer(model, group, args.new_tokens) for group in groups]
    tokens = [row for group, _, _ in answers for row in group]
    first, others = (sum(seconds) for seconds in list(zip(*answers, strict=True))[1:])
    new_tokens = sum(map(len, tokens))
    line = {
        "tokens": tokens,
        "tokens_per_s": new_tokens / (first + others),
        "prompt_tokens_per_s": sum(map(len, prompts)) / first,
        "decoding_tokens_per_s": (new_tokens - len(tokens)) / others,
        "start_bytes": start_bytes,
        "peak_bytes": peak_bytes(),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    with torch.inference_mode():
        main(arguments())
