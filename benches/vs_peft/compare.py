"""Runs both programs in turn on each kind of work, checks that they compute the same losses, and
prints a table. Called by run.sh."""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
# Name, options of both programs, how far the losses may differ.
WORK = [
    ("f32, 2 x 256", [], 1e-4),
    ("f32, 2 x 256, recomputed", ["--recompute"], 1e-4),
    ("f32, 2 x 1024", ["--seq-len", "1024", "--steps", "4"], 1e-4),
    ("bf16 base, 2 x 256", ["--dtype", "bf16"], 5e-2),
]


def run(command: list[str]) -> dict:
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def warn_if_busy() -> None:
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"warning: the machine is busy (load {load:.1f}); the figures will be off")


def compare(args: argparse.Namespace, options: list[str], tolerance: float) -> dict:
    ours, theirs = [], []
    for _ in range(args.rounds):
        case = ["--case", str(args.case), *options]
        theirs.append(run([sys.executable, str(HERE / "peft_step.py"), *case]))
        ours.append(run([args.train_step, *case]))
    pairs = zip(ours[0]["losses"], theirs[0]["losses"], strict=True)
    worst = max(abs(a - b) for a, b in pairs)
    if worst > tolerance:
        raise SystemExit(f"the losses differ by {worst:.2e}, allowed are {tolerance:.0e}")

    def median(results: list[dict], key: str) -> float:
        return statistics.median(result[key] for result in results)

    row = {}
    for name, results in [("ours", ours), ("peft", theirs)]:
        peak, start = median(results, "peak_bytes"), median(results, "start_bytes")
        row[name] = (median(results, "tokens_per_s"), peak, peak - start)
    return row


def main(args: argparse.Namespace) -> None:
    warn_if_busy()
    print("| work | tokens/s | PEFT | ratio | peak MB | PEFT | ratio | above start | PEFT |")
    print("|---|---|---|---|---|---|---|---|---|")
    first = None
    for name, options, tolerance in WORK[: 1 if args.quick else None]:
        row = compare(args, options, tolerance)
        (speed, peak, above), (peft_speed, peft_peak, peft_above) = row["ours"], row["peft"]
        ratios = speed / peft_speed, peak / peft_peak
        first = first or ratios
        print(
            f"| {name} | {speed:.0f} | {peft_speed:.0f} | {ratios[0]:.2f} "
            f"| {peak / 1e6:.0f} | {peft_peak / 1e6:.0f} | {ratios[1]:.2f} "
            f"| {above / 1e6:.0f} | {peft_above / 1e6:.0f} |",
            flush=True,
        )
    line = {"tokens_per_s_ratio": round(first[0], 3), "peak_memory_ratio": round(first[1], 3)}
    print(json.dumps(line))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", type=pathlib.Path, required=True)
    parser.add_argument("--train-step", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    main(parser.parse_args())
