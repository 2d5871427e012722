"""Trains one adapter on each kind of base for 200 steps, prints a table of memory, speed and losses, and draws the
losses. Called by run.sh --which-base; docs/which-base.md shows what comes out."""

import argparse
import json
import os
import pathlib
import statistics
import subprocess

from compare import cpu_name, run

ROWS = ["--alpaca", "--padded", "--batch-size", "2", "--seq-len", "128"]
TRAINING = ["--steps", "200", "--lr", "3e-4", "--held-out", "128"]
ROUNDED = ["--bf16-products"]
BASES = {
    "f32": [],
    "bf16": ["--dtype", "bf16", *ROUNDED],
    "int8": ["--dtype", "bf16", "--quantize", "int8", *ROUNDED],
    "NF4": ["--dtype", "bf16", "--quantize", "nf4", *ROUNDED],
    "Q4_K": ["--base", "Q4_K.gguf", *ROUNDED],
    "Q4_1": ["--base", "Q4_1.gguf", *ROUNDED],
}
LAST_STEPS = 20
HEADER = f"""
| base | tokens/s | peak MB | loss, last {LAST_STEPS} of 200 steps | held-out loss |
|---|---|---|---|---|"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", type=pathlib.Path, required=True)
    parser.add_argument("--train-step", required=True)
    parser.add_argument("--plot-loss", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder of the runs")
    parser.add_argument("--only", choices=BASES, help="train on this base, and take the others' last runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all")
    return parser.parse_args()


def train(args: argparse.Namespace, base: str) -> None:
    """Leaves a folder of the run, as plot_loss reads it."""
    folder = args.out / base
    folder.mkdir(parents=True, exist_ok=True)
    case = ["--case", str(args.case)]
    result = run([args.train_step, *case, *ROWS, *TRAINING, *BASES[base]], args.threads)
    lines = [{"step": step, "loss": loss} for step, loss in enumerate(result["losses"], 1)]
    lines.append({"step": len(lines), "val_loss": result["held_out_loss"]})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    (folder / "result.json").write_text(json.dumps(result))


def row(args: argparse.Namespace, base: str) -> str:
    result = json.loads((args.out / base / "result.json").read_text())
    cells = [
        base,
        f"{result['tokens_per_s']:.0f}",
        f"{result['peak_bytes'] / 1e6:.0f}",
        f"{statistics.mean(result['losses'][-LAST_STEPS:]):.4f}",
        f"{result['held_out_loss']:.4f}",
    ]
    return f"| {' | '.join(cells)} |"


def main(args: argparse.Namespace) -> None:
    for base in [args.only] if args.only else BASES:
        train(args, base)
    done = [base for base in BASES if (args.out / base / "result.json").exists()]
    print(f"{cpu_name()}, threads: {args.threads}")
    print("\n".join([HEADER, *(row(args, base) for base in done)]))
    folders = [str(args.out / base) for base in done]
    picture = args.out / "which-base.svg"
    subprocess.run([args.plot_loss, *folders, "-o", picture, "--smooth", "0.95"], check=True)


if __name__ == "__main__":
    main(arguments())
