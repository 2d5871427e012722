"""Runs both programs in turn on a GPU, on Llama 2 7B's sizes with random weights made on the
device, and prints a table with tokens/s, the share of the card's peak (MFU) and peak memory. Called
by run.sh --gpu. With --dry-run it shows on the CPU, with a tiny model, that everything runs."""

import argparse
import itertools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import threading
from importlib.metadata import version

HERE = pathlib.Path(__file__).parent
ADAPTERS = {
    "rank 8 on q, v": ["--rank", "8"],
    "rank 32 on all seven": ["--rank", "32", "--all-modules"],
}
SEQUENCES = [512, 2048, 4096]
# Llama 2 7B's parameters. A LoRA step computes each twice forward and twice backward (the gradient
# of activations; frozen weights have none): 4 N FLOP a token. Recomputing is not counted, nor is
# attention.
PARAMETERS = 6_738_415_616
# Dense bf16 with f32 sums, from the data sheets.
PEAK_TFLOPS = {
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H200": 989.4,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
}
POLL_SECONDS = 0.05
# PyTorch's and CubeCL's words.
OUT_OF_MEMORY = "out of (device )?memory|OutOfMemory"

HEADER = """
| work | tokens/s | PEFT | ratio | MFU | PEFT | peak GB | PEFT | ratio |
|---|---|---|---|---|---|---|---|---|"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train-step", required=True)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each program")
    parser.add_argument("--steps", type=int, default=7, help="the first two are not timed")
    parser.add_argument("--only", default="", help="the rows whose name contains this text")
    parser.add_argument("--peak-tflops", type=float, help="of a card that is not listed")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with a tiny model")
    return parser.parse_args()


def nvidia_smi(what: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", "--id=0"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class MemoryWatch:
    """The most memory of the card in use while a program runs, above what was in use before."""

    def __init__(self) -> None:
        self.start = self.peak = int(nvidia_smi("memory.used"))
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.poll)

    def poll(self) -> None:
        while not self.ended.wait(POLL_SECONDS):
            self.peak = max(self.peak, int(nvidia_smi("memory.used")))

    def __enter__(self) -> "MemoryWatch":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def bytes(self) -> int:
        return (self.peak - self.start) * 2**20


def run(command: list[str], on_gpu: bool) -> dict | None:
    """Speed and peak memory; none if the card's memory was not enough."""
    environment = os.environ | {"BURN_DEVICE": "cuda" if on_gpu else "flex"}
    if not on_gpu:
        output = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        return json.loads(output.stdout.splitlines()[-1])
    with MemoryWatch() as watch:
        output = subprocess.run(command, capture_output=True, text=True, env=environment)
    if output.returncode != 0:
        if re.search(OUT_OF_MEMORY, output.stderr, re.IGNORECASE):
            return None
        raise SystemExit(f"{' '.join(command)} failed:\n{output.stderr}")
    return json.loads(output.stdout.splitlines()[-1]) | {"peak_bytes": watch.bytes()}


def rows(args: argparse.Namespace) -> dict[str, list[str]]:
    """Names and options of both programs."""
    sequences = [16, 32] if args.dry_run else SEQUENCES
    sizes = "tiny" if args.dry_run else "llama2_7b"
    found = {}
    for (adapters, options), seq_len, recompute in itertools.product(
        ADAPTERS.items(), sequences, [False, True]
    ):
        name = f"{adapters}, 2 x {seq_len}{', recomputed' if recompute else ''}"
        common = ["--sizes", sizes, "--dtype", "bf16", "--steps", str(args.steps)]
        common += [*options, "--seq-len", str(seq_len)]
        found[name] = [*common, *(["--recompute"] if recompute else [])]
    return {name: options for name, options in found.items() if args.only in name}


def medians(results: list[dict | None]) -> tuple[float, float] | None:
    if None in results:
        return None
    return tuple(
        statistics.median(result[key] for result in results)
        for key in ["tokens_per_s", "peak_bytes"]
    )


def row(name: str, ours: tuple | None, peft: tuple | None, peak_flops: float | None) -> str:
    def pair(index: int, unit: float, digits: int) -> list[str]:
        return [f"{m[index] / unit:.{digits}f}" if m else "out of memory" for m in (ours, peft)]

    def ratio(index: int) -> str:
        return f"{ours[index] / peft[index]:.2f}" if ours and peft else ""

    def mfu(measured: tuple | None) -> str:
        if not measured or not peak_flops:
            return ""
        return f"{measured[0] * 4 * PARAMETERS / peak_flops:.1%}"

    cells = [*pair(0, 1, 0), ratio(0), mfu(ours), mfu(peft), *pair(1, 1e9, 2), ratio(1)]
    return f"| {name} | {' | '.join(cells)} |"


def main(args: argparse.Namespace) -> None:
    on_gpu = not args.dry_run
    card = nvidia_smi("name") if on_gpu else "dry run on the CPU with a tiny model"
    tflops = args.peak_tflops or PEAK_TFLOPS.get(card)
    packages = ", ".join(f"{name} {version(name)}" for name in ["torch", "peft", "transformers"])
    print(f"{card}, bf16 base, rounds: {args.rounds}; {packages}")
    print(HEADER, flush=True)
    device = "cuda" if on_gpu else "cpu"
    peft = [sys.executable, str(HERE / "peft_step.py"), "--device", device]
    for name, options in rows(args).items():
        results = {"ours": [], "peft": []}
        for _ in range(args.rounds):
            results["peft"].append(run([*peft, *options], on_gpu))
            results["ours"].append(run([args.train_step, *options], on_gpu))
        ours, theirs = medians(results["ours"]), medians(results["peft"])
        peak_flops = tflops * 1e12 if tflops and on_gpu else None
        print(row(name, ours, theirs, peak_flops), flush=True)


if __name__ == "__main__":
    main(arguments())
