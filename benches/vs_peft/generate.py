"""Lets this crate, transformers and llama.cpp answer the same prompts with SmolLM2-135M, in turn,
one by one and all together, checks that the tokens are the same in f32, and prints tables of
medians. Called by run.sh --generation."""

import argparse
import json
import os
import pathlib
import statistics
import sys
from importlib.metadata import version
from typing import NamedTuple

from tokenizers import Tokenizer
from transformers import LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from alpaca import prompt
from compare import BUSY_SHARE, busy_share, cpu_name, run
from gguf_base import write_base, write_gguf

HERE = pathlib.Path(__file__).parent
INSTRUCTIONS = [
    "Name three primary colours.",
    "What is the capital of France?",
    "Explain why the sky is blue.",
    "Write a short poem about the sea.",
    "List five things to take on a hike.",
    "How do I boil an egg?",
    "Give me a recipe for a simple soup.",
    "What is the difference between a crocodile and an alligator, and how can one tell them apart?",
    "Describe a city that you would like to live in.",
    "Who wrote Romeo and Juliet?",
    "Tell me a story about a dog that finds its way home after being lost for a whole winter.",
    "What should I think of when I buy a used car? Name the most important points first.",
    "Translate: good morning.",
    "Why do leaves fall in autumn?",
    "Write an email to a colleague that politely declines an invitation to a meeting on Friday.",
    "How many days are there in a leap year?",
]


class Work(NamedTuple):
    """A row of the tables."""

    name: str
    ours: list[str]
    # None where transformers has no such weights.
    transformers: list[str] | None
    # The same weights for llama.cpp.
    gguf: str
    together: bool = False
    # Whether ours and transformers' tokens must be the same.
    is_exact: bool = False


FOLDER = ["--model", "model"]
F32 = [*FOLDER, "--dtype", "f32"]
BF16 = [*FOLDER, "--dtype", "bf16"]
ROUNDED = ["--bf16-products"]
Q4_1 = "Q4_1.gguf"


def both(name: str, *fields: object, **settings: object) -> list[Work]:
    """One by one, and all together."""
    return [
        Work(f"{name}, one by one", *fields, together=False, **settings),
        Work(f"{name}, {len(INSTRUCTIONS)} together", *fields, together=True, **settings),
    ]


WORK = [
    *both("f32", F32, F32, "F32.gguf", is_exact=True),
    *both("bf16", BF16, BF16, "BF16.gguf"),
    *both("bf16, bf16 products", [*BF16, *ROUNDED], BF16, "BF16.gguf"),
    *both("Q4_1", ["--model", Q4_1], None, Q4_1),
]

PROGRAMS = ["ours", "transformers", "llama.cpp"]
PACKAGES = ["torch", "transformers", "xllamacpp"]
SPEEDS = {"tokens_per_s": "tokens/s", "decoding_tokens_per_s": "decoding"}
SPEEDS |= {"prompt_tokens_per_s": "prompts"}
MEMORY = {"peak_bytes": "peak MB", "above_start_bytes": "above start MB"}

Results = dict[str, list[dict]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", type=pathlib.Path, required=True)
    parser.add_argument("--generation", required=True)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each program")
    parser.add_argument("--new-tokens", type=int, default=64, help="after each prompt")
    parser.add_argument("--only", default="", help="the rows whose name contains this text")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all")
    return parser.parse_args()


def write_prompts(case: pathlib.Path) -> pathlib.Path:
    tokenizer = Tokenizer.from_file(str(case / "model" / "tokenizer.json"))
    texts = [prompt({"instruction": instruction}) for instruction in INSTRUCTIONS]
    path = case / "prompts.json"
    path.write_text(json.dumps([tokenizer.encode(text).ids for text in texts]))
    return path


def make_ggufs(case: pathlib.Path) -> None:
    """The folder's model for llama.cpp. Q4_1 is the file that the folder was made of."""
    for name, write in {"F32": write_base, "BF16": lambda *of: write_gguf(*of, "BF16")}.items():
        path = case / f"{name}.gguf"
        if not path.exists():
            write(LlamaForCausalLM.from_pretrained(case / "model"), path)


def commands(args: argparse.Namespace, work: Work) -> dict[str, list[str]]:
    """That of each program which has such weights."""
    batch_size = len(INSTRUCTIONS) if work.together else 1
    shared = ["--prompts", str(args.prompts), "--batch-size", str(batch_size)]
    shared += ["--new-tokens", str(args.new_tokens)]
    threads = ["--threads", str(args.threads)]
    models = {"model": str(args.case / "model"), Q4_1: str(args.case / Q4_1)}

    def options(words: list[str]) -> list[str]:
        return [*(models.get(word, word) for word in words), *shared]

    llama_cpp = ["--model", str(args.case / work.gguf), *shared, *threads]
    found = {"ours": [args.generation, *options(work.ours)]}
    if work.transformers:
        program = str(HERE / "transformers_generate.py")
        found["transformers"] = [sys.executable, program, *options(work.transformers), *threads]
    found["llama.cpp"] = [sys.executable, str(HERE / "llama_cpp_generate.py"), *llama_cpp]
    return found


def check(work: Work, ours: dict, other: dict | None, new_tokens: int) -> None:
    if any(len(tokens) != new_tokens for tokens in ours["tokens"]):
        raise SystemExit(f"{work.name}: an answer has not {new_tokens} tokens")
    if not (work.is_exact and other):
        return
    pairs = zip(ours["tokens"], other["tokens"], strict=True)
    for index, (tokens, expected) in enumerate(pairs):
        if tokens != expected:
            message = (
                f"{work.name}: prompt {index} is answered {tokens}, by transformers {expected}"
            )
            raise SystemExit(message)


def compare(args: argparse.Namespace, work: Work) -> Results:
    """All programs in turn, each round in the other order."""
    results, busy = {}, 0.0
    for index in range(args.rounds):
        programs = list(commands(args, work).items())
        for program, command in programs if index % 2 else reversed(programs):
            busy = max(busy, busy_share())
            result = run(command, args.threads)
            result["above_start_bytes"] = result["peak_bytes"] - result["start_bytes"]
            results.setdefault(program, []).append(result)
        others = results.get("transformers", [None])
        check(work, results["ours"][-1], others[-1], args.new_tokens)
    if busy > BUSY_SHARE:
        what = f"other programs used up to {busy:.0%} of the CPU time"
        print(f'warning: before the runs of "{work.name}" {what}', file=sys.stderr)
    return results


def median(results: Results, program: str, figure: str) -> float | None:
    runs = results.get(program)
    return runs and statistics.median(run[figure] for run in runs)


def row(name: str, results: Results, figures: dict[str, str], unit: float, digits: int) -> str:
    """Each figure of ours, and of the others with the ratio of ours to it."""
    cells = [name]
    for figure in figures:
        ours = median(results, "ours", figure)
        cells.append(f"{ours / unit:.{digits}f}")
        for program in PROGRAMS[1:]:
            other = median(results, program, figure)
            cells.append(f"{other / unit:.{digits}f} ({ours / other:.2f})" if other else "")
    return f"| {' | '.join(cells)} |"


def header(figures: dict[str, str]) -> str:
    cells = ["work"]
    for title in figures.values():
        cells += [title, *PROGRAMS[1:]]
    return f"\n| {' | '.join(cells)} |\n|{'---|' * len(cells)}"


def together(found: dict[str, Results]) -> list[str]:
    """For each kind of weights, how many times as fast all together are as one by one."""
    lines = []
    for alone, grouped in zip(WORK[::2], WORK[1::2], strict=True):
        if alone.name in found and grouped.name in found:
            runs = [found[work.name] for work in (grouped, alone)]
            pairs = {
                program: [median(of, program, "tokens_per_s") for of in runs]
                for program in PROGRAMS
                if program in runs[0]
            }
            ratios = [f"{name} {fast / slow:.2f}" for name, (fast, slow) in pairs.items()]
            lines.append(f"{grouped.name}, against one by one: {', '.join(ratios)}")
    return lines


def main(args: argparse.Namespace) -> None:
    disable_progress_bar()
    rows = [work for work in WORK if args.only in work.name]
    if not rows:
        raise SystemExit("there is no row to run")
    args.prompts = write_prompts(args.case)
    make_ggufs(args.case)
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"{cpu_name()}, threads: {args.threads}, rounds: {args.rounds}; {packages}")
    print(
        f"{len(INSTRUCTIONS)} prompts, {args.new_tokens} new tokens each; in brackets: ours to it"
    )
    print(header(SPEEDS), flush=True)
    found = {}
    for work in rows:
        found[work.name] = compare(args, work)
        print(row(work.name, found[work.name], SPEEDS, 1, 1), flush=True)
    print(header(MEMORY))
    for name, results in found.items():
        print(row(name, results, MEMORY, 1e6, 0))
    print("", *together(found), sep="\n")


if __name__ == "__main__":
    main(arguments())
