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

HERE = pathlib.Path(__file__).parent
ALPACA = ["--alpaca"]
LONG = ["--seq-len", "1024", "--steps", "4"]
BF16 = ["--dtype", "bf16"]
NF4 = ["--dtype", "bf16", "--quantize", "nf4"]
ALL_MODULES = ["--adapter", "adapter_all_r32"]
DORA = ["--adapter", "adapter_dora"]
ALL_DORA = ["--adapter", "adapter_all_dora"]
# Name, options of both programs, options of ours alone, how far the losses may differ. With a bf16
# base PEFT rounds activations to bf16 everywhere; ours computes in f32, or, with bf16 products,
# rounds them inside of products.
WORK = [
    ("f32, 2 x 256", [], [], 1e-4),
    ("f32, 2 x 256, recomputed", ["--recompute"], [], 1e-4),
    ("f32, 2 x 256, all seven at rank 32", ALL_MODULES, [], 1e-4),
    ("f32, 2 x 256, DoRA", DORA, [], 1e-4),
    ("f32, 2 x 256, DoRA on all seven", ALL_DORA, [], 1e-4),
    ("bf16 base, 2 x 256", BF16, [], 5e-2),
    ("bf16 base, bf16 products, 2 x 256", BF16, ["--bf16-products"], 5e-2),
    ("bf16 base, 2 x 256, recomputed", [*BF16, "--recompute"], [], 5e-2),
    ("NF4 base, bf16 products, 2 x 256", NF4, ["--bf16-products"], 5e-2),
    ("f32, Alpaca rows, packed against padded", ALPACA, [], 1e-4),
    ("f32, 2 x 1024", LONG, [], 1e-4),
    ("f32, 2 x 1024, recomputed", [*LONG, "--recompute"], [], 1e-4),
]
Work = tuple[str, list[str], list[str], float]

PACKAGES = ["torch", "peft", "transformers", "bitsandbytes"]
HEADER = """
| work | tokens/s | PEFT | ratio | peak MB | PEFT | ratio | above start MB | PEFT | ratio |
|---|---|---|---|---|---|---|---|---|---|"""
BUSY_SAMPLE_SECONDS = 0.5
BUSY_SHARE = 0.1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", type=pathlib.Path, required=True)
    parser.add_argument("--train-step", required=True)
    parser.add_argument("--quick", action="store_true", help="the first row alone, three rounds")
    parser.add_argument("--rounds", type=int, help="runs of each program (default: 5)")
    parser.add_argument("--only", default="", help="the rows whose name contains this text")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all")
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.quick else 5)
    return args


def selected(args: argparse.Namespace) -> list[Work]:
    rows = [row for row in WORK if args.only in row[0]][: 1 if args.quick else None]
    without_data = [] if (args.case / "alpaca.safetensors").exists() else [ALPACA]
    for name in (name for name, options, _, _ in rows if options in without_data):
        what = "a JSON file of Alpaca records and LLAMA2_TOKENIZER the tokenizer.json of Llama 2"
        print(f'skipped "{name}": let ALPACA_JSON name {what}')
    rows = [row for row in rows if row[1] not in without_data]
    if not rows:
        raise SystemExit("there is no row to run")
    return rows


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


def check(name: str, ours: dict, peft: dict, tolerance: float) -> None:
    if ours["tokens"] != peft["tokens"]:
        raise SystemExit(f"{name}: {ours['tokens']} tokens, but {peft['tokens']} in PEFT")
    for step, (a, b) in enumerate(zip(ours["losses"], peft["losses"], strict=True), 1):
        if not math.isclose(a, b, rel_tol=0, abs_tol=tolerance):
            message = f"{name}: the loss of step {step} is {a}, in PEFT {b}"
            raise SystemExit(f"{message}; allowed is a difference of {tolerance:.0e}")


def medians(results: list[dict]) -> list[float]:
    """Of tokens/s, peak memory and peak memory above that of the start."""
    speeds = [result["tokens_per_s"] for result in results]
    peaks = [result["peak_bytes"] for result in results]
    above = [result["peak_bytes"] - result["start_bytes"] for result in results]
    return [statistics.median(figures) for figures in (speeds, peaks, above)]


def compare(args: argparse.Namespace, work: Work) -> tuple[list[float], list[float]]:
    """The medians of this program and those of PEFT."""
    name, options, our_options, tolerance = work
    case = ["--case", str(args.case), *options]
    peft_step = [sys.executable, str(HERE / "peft_step.py"), "--threads", str(args.threads)]
    commands = {"ours": [args.train_step, *case, *our_options], "peft": [*peft_step, *case]}
    results, busy = {"ours": [], "peft": []}, 0.0
    for index in range(args.rounds):
        for program in ["peft", "ours"] if index % 2 == 0 else ["ours", "peft"]:
            busy = max(busy, busy_share())
            results[program].append(run(commands[program], args.threads))
        check(name, results["ours"][-1], results["peft"][-1], tolerance)
    if busy > BUSY_SHARE:
        what = f"other programs used up to {busy:.0%} of the CPU time"
        print(f'warning: before the runs of "{name}" {what}', file=sys.stderr)
    return medians(results["ours"]), medians(results["peft"])


def cells(ours: float, peft: float, unit: float = 1) -> str:
    return f"{ours / unit:.0f} | {peft / unit:.0f} | {ours / peft:.2f}"


def main(args: argparse.Namespace) -> None:
    rows = selected(args)
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"{cpu_name()}, threads: {args.threads}, rounds: {args.rounds}; {packages}")
    print(HEADER, flush=True)
    first = None
    for work in rows:
        (speed, peak, above), (peft_speed, peft_peak, peft_above) = compare(args, work)
        first = first or (speed / peft_speed, peak / peft_peak)
        columns = [
            work[0],
            cells(speed, peft_speed),
            cells(peak, peft_peak, 1e6),
            cells(above, peft_above, 1e6),
        ]
        print(f"| {' | '.join(columns)} |", flush=True)
    line = {"tokens_per_s_ratio": round(first[0], 3), "peak_memory_ratio": round(first[1], 3)}
    print(json.dumps(line))


if __name__ == "__main__":
    main(arguments())
