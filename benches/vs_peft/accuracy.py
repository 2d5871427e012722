"""Trains SmolLM2 for 200 steps on Alpaca rows: in f32, on a bf16 base with exact products and with bf16 ones, and on the bf16
base in PEFT. Prints how far the losses are from those in f32, and fails where bf16 costs more than it may. Called by
run.sh --accuracy."""

import argparse
import json
import os
import pathlib
import statistics
import sys

from compare import HERE, cpu_name, run
from which_base import ROUNDED, ROWS

BF16 = ["--dtype", "bf16"]
# At every step, of bf16 products with f32 sums.
ALLOWED = 1e-2
HEADER = """
| | tokens/s | loss, last step | largest difference | mean difference |
|---|---|---|---|---|"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", type=pathlib.Path, required=True)
    parser.add_argument("--train-step", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a file for all losses")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all")
    return parser.parse_args()


def differences(result: dict, exact: dict) -> list[float]:
    return [abs(a - b) for a, b in zip(result["losses"], exact["losses"], strict=True)]


def main(args: argparse.Namespace) -> None:
    work = ["--case", str(args.case), *ROWS, "--steps", str(args.steps)]
    ours = [args.train_step, *work]
    peft = [sys.executable, str(HERE / "peft_step.py"), "--threads", str(args.threads), *work]
    commands = {
        "f32": ours,
        "bf16 base": [*ours, *BF16],
        "bf16 base, bf16 products": [*ours, *BF16, *ROUNDED],
        "PEFT, bf16 base": [*peft, *BF16],
    }
    print(f"{cpu_name()}, threads: {args.threads}")
    print(HEADER, flush=True)
    results = {}
    for name, command in commands.items():
        results[name] = run(command, args.threads)
        far = differences(results[name], results["f32"])
        figures = [f"{max(far):.1e}", f"{statistics.mean(far):.1e}"] if any(far) else ["", ""]
        speed, last = results[name]["tokens_per_s"], results[name]["losses"][-1]
        print(f"| {' | '.join([name, f'{speed:.0f}', f'{last:.4f}', *figures])} |", flush=True)
    args.out.write_text(json.dumps({name: result["losses"] for name, result in results.items()}))
    rounded, other = (
        differences(results[name], results["f32"])
        for name in ("bf16 base, bf16 products", "PEFT, bf16 base")
    )
    assert max(rounded) <= ALLOWED, f"bf16 products change a loss by {max(rounded):.1e}"
    assert max(rounded) < max(other), "PEFT's losses are closer to those in f32 at their worst"
    assert statistics.mean(rounded) < statistics.mean(other), "PEFT's losses are closer to those in f32"


if __name__ == "__main__":
    main(arguments())
