"""Runs both programs in turn on each kind of work, checks that they compute the same losses, and
prints a table. Called by run.sh."""

import argparse
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from typing import NamedTuple

HERE = pathlib.Path(__file__).parent
ALPACA = ["--alpaca"]
LONG = ["--seq-len", "1024", "--steps", "4"]
BF16 = ["--dtype", "bf16"]
NF4 = ["--dtype", "bf16", "--quantize", "nf4"]
ROUNDED = ["--bf16-products"]
ALL_MODULES = ["--adapter", "adapter_all_r32"]
DORA = ["--adapter", "adapter_dora"]
ALL_DORA = ["--adapter", "adapter_all_dora"]
ROWS_OF_256 = ["--alpaca", "--padded", "--batch-size", "4"]


class Work(NamedTuple):
    """A row of the table beside PEFT."""

    name: str
    # Of both programs.
    options: list[str] = []
    our_options: list[str] = []
    # How far the losses may differ. With a bf16 base PEFT rounds activations to bf16 everywhere; ours computes in
    # f32, or, with bf16 products, rounds them inside of products.
    tolerance: float = 1e-4
    case: str = "case"


class Own(NamedTuple):
    """A row of the table of our own bases: ours with these options against ours with others."""

    name: str
    options: list[str]
    others: list[str]
    tolerance: float
    shared: list[str] = []
    case: str = "case"


WORK = [
    Work("f32, 2 x 256"),
    Work("f32, 2 x 256, recomputed", ["--recompute"]),
    Work("f32, 2 x 256, all seven at rank 32", ALL_MODULES),
    Work("f32, 2 x 256, DoRA", DORA),
    Work("f32, 2 x 256, DoRA on all seven", ALL_DORA),
    Work("bf16 base, 2 x 256", BF16, [], 5e-2),
    Work("bf16 base, bf16 products, 2 x 256", BF16, ROUNDED, 5e-2),
    Work("bf16 base, 2 x 256, recomputed", [*BF16, "--recompute"], [], 5e-2),
    Work("bf16 base, bf16 products, 2 x 256, recomputed", [*BF16, "--recompute"], ROUNDED, 5e-2),
    Work("NF4 base, bf16 products, 2 x 256", NF4, ROUNDED, 5e-2),
    Work(
        "NF4 base, bf16 products, SmolLM2, Alpaca rows, 4 x 256",
        [*NF4, *ROWS_OF_256],
        ROUNDED,
        5e-2,
        "smollm2",
    ),
    Work("f32, Alpaca rows, packed against padded", ALPACA),
    Work("f32, SmolLM2, Alpaca rows, 4 x 256", ROWS_OF_256, case="smollm2"),
    Work(
        "bf16 base, bf16 products, SmolLM2, Alpaca rows, 4 x 256",
        [*BF16, *ROWS_OF_256],
        ROUNDED,
        5e-2,
        "smollm2",
    ),
    Work("f32, 2 x 1024", LONG),
    Work("f32, 2 x 1024, recomputed", [*LONG, "--recompute"]),
    Work("f32, 2 x 256, Qwen3", case="qwen3"),
    Work("f32, 2 x 1024, Mistral, window of 256", LONG, case="mistral"),
    Work("f32, 2 x 1024, Gemma 3, windows of 256", LONG, case="gemma3"),
]
# Bases of four bits have other numbers: their losses tell no more than that the work is the same.
OTHER_NUMBERS = 0.5
OWN = [
    Own("NF4 against bf16, 2 x 256", NF4, BF16, OTHER_NUMBERS, ROUNDED),
    Own("Q4_1 GGUF against NF4, 2 x 256", ["--base", "Q4_1.gguf"], NF4, OTHER_NUMBERS, ROUNDED),
    Own("Q4_K GGUF against NF4, 2 x 256", ["--base", "Q4_K.gguf"], NF4, OTHER_NUMBERS, ROUNDED),
    Own(
        "Q4_1 GGUF against NF4, SmolLM2, Alpaca rows, 4 x 256",
        ["--base", "Q4_1.gguf"],
        NF4,
        OTHER_NUMBERS,
        [*ROUNDED, *ROWS_OF_256],
        "smollm2",
    ),
]

PACKAGES = ["torch", "peft", "transformers", "bitsandbytes"]
HEADER = """
| work | tokens/s | {0} | ratio | peak MB | {0} | ratio | above start MB | {0} | ratio |
|---|---|---|---|---|---|---|---|---|---|"""
BUSY_SAMPLE_SECONDS = 0.5
BUSY_SHARE = 0.1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=pathlib.Path, required=True)
    parser.add_argument("--train-step", required=True)
    parser.add_argument("--quick", action="store_true", help="the first row alone, three rounds")
    parser.add_argument("--rounds", type=int, help="runs of each program (default: 5)")
    parser.add_argument("--only", default="", help="the rows whose name contains this text")
    parser.add_argument("--steps", type=int, help="of each run, in place of a row's own number")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all")
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.quick else 5)
    return args


def selected(args: argparse.Namespace) -> tuple[list[Work], list[Own]]:
    rows = [row for row in WORK if args.only in row.name][: 1 if args.quick else None]
    own = [] if args.quick else [row for row in OWN if args.only in row.name]
    without_data = [row for row in [*rows, *own] if lacks_records(args, row)]
    for row in without_data:
        what = "a JSON file of Alpaca records and LLAMA2_TOKENIZER the tokenizer.json of Llama 2"
        print(f'skipped "{row.name}": let ALPACA_JSON name {what}')
    rows, own = ([row for row in of if row not in without_data] for of in (rows, own))
    if not (rows or own):
        raise SystemExit("there is no row to run")
    return rows, own


def lacks_records(args: argparse.Namespace, row: Work | Own) -> bool:
    options = [*row.options, *(row.shared if isinstance(row, Own) else [])]
    return "--alpaca" in options and not (args.cases / row.case / "alpaca.safetensors").exists()


def cpu_name() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.machine())


def cpu_ticks() -> tuple[int, int] | None:
    """CPU time since boot, idle and in all."""
    stat = pathlib.Path("/proc/stat")
    if not stat.exists():
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal
    ticks = [int(field) for field in stat.read_text().split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def busy_share() -> float:
    """The part of the CPU time that is in use; 0 where the system does not tell."""
    before = cpu_ticks()
    if before is None:
        return 0.0
    time.sleep(BUSY_SAMPLE_SECONDS)
    idle, total = (now - then for now, then in zip(cpu_ticks(), before, strict=True))
    return 1 - idle / max(total, 1)


def run(command: list[str], threads: int) -> dict:
    settings = {"RAYON_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore::FutureWarning"}
    result = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | settings
    )
    return json.loads(result.stdout.splitlines()[-1])


def check(name: str, ours: dict, other: dict, tolerance: float) -> None:
    if ours["tokens"] != other["tokens"]:
        raise SystemExit(f"{name}: {ours['tokens']} tokens, but {other['tokens']} in the other")
    for step, (a, b) in enumerate(zip(ours["losses"], other["losses"], strict=True), 1):
        if not math.isclose(a, b, rel_tol=0, abs_tol=tolerance):
            message = f"{name}: the loss of step {step} is {a}, in the other {b}"
            raise SystemExit(f"{message}; allowed is a difference of {tolerance:.0e}")


def medians(results: list[dict]) -> list[float]:
    """Of tokens/s, peak memory and peak memory above that of the start."""
    speeds = [result["tokens_per_s"] for result in results]
    peaks = [result["peak_bytes"] for result in results]
    above = [result["peak_bytes"] - result["start_bytes"] for result in results]
    return [statistics.median(figures) for figures in (speeds, peaks, above)]


def with_steps(command: list[str], steps: int | None) -> list[str]:
    if steps is None:
        return command
    if "--steps" in command:
        at = command.index("--steps")
        command = command[:at] + command[at + 2 :]
    return [*command, "--steps", str(steps)]


def commands(args: argparse.Namespace, work: Work | Own) -> list[list[str]]:
    """Ours and the other."""
    case = ["--case", str(args.cases / work.case)]
    ours = [args.train_step, *case]
    if isinstance(work, Own):
        return [[*ours, *work.shared, *options] for options in (work.options, work.others)]
    peft = [sys.executable, str(HERE / "peft_step.py"), "--threads", str(args.threads), *case]
    return [[*ours, *work.options, *work.our_options], [*peft, *work.options]]


def compare(args: argparse.Namespace, work: Work | Own) -> list[list[float]]:
    """The medians of ours and those of the other."""
    pair = [with_steps(command, args.steps) for command in commands(args, work)]
    results, busy = ([], []), 0.0
    for index in range(args.rounds):
        for which in [1, 0] if index % 2 == 0 else [0, 1]:
            busy = max(busy, busy_share())
            results[which].append(run(pair[which], args.threads))
        check(work.name, *(of[-1] for of in results), work.tolerance)
    if busy > BUSY_SHARE:
        what = f"other programs used up to {busy:.0%} of the CPU time"
        print(f'warning: before the runs of "{work.name}" {what}', file=sys.stderr)
    return [medians(of) for of in results]


def cells(ours: float, other: float, unit: float = 1) -> str:
    return f"{ours / unit:.0f} | {other / unit:.0f} | {ours / other:.2f}"


def table(args: argparse.Namespace, other: str, rows: list[Work] | list[Own]) -> list[list[float]]:
    """Prints the rows, and gives the ratios of each: speed, peak memory, that above the start."""
    if rows:
        print(HEADER.format(other), flush=True)
    ratios = []
    for work in rows:
        pairs = list(zip(*compare(args, work), strict=True))
        columns = [cells(*pair, unit) for pair, unit in zip(pairs, (1, 1e6, 1e6), strict=True)]
        print(f"| {' | '.join([work.name, *columns])} |", flush=True)
        ratios.append([ours / other for ours, other in pairs])
    return ratios


def main(args: argparse.Namespace) -> None:
    rows, own = selected(args)
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"{cpu_name()}, threads: {args.threads}, rounds: {args.rounds}; {packages}")
    ratios = table(args, "PEFT", rows) + table(args, "the other", own)
    speed, peak, _ = ratios[0]
    line = {"tokens_per_s_ratio": round(speed, 3), "peak_memory_ratio": round(peak, 3)}
    print(json.dumps(line))


if __name__ == "__main__":
    main(arguments())
