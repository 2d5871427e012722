"""A long run of a tiny model, and whether anything of it grows: python soak.py LORA_ALPACA [--steps N]

LORA_ALPACA is the example. While it runs, its memory, open files and threads are read from /proc, and the files of its folder are
counted; at the end a table has these and the median time of a step, from the log, for each tenth of the run. The first tenth
is left out of the comparison: buffers find their sizes there. Grown is what is more than the given share above the second.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

EMBEDDED = pathlib.Path(__file__).parents[2] / "examples/assets/tiny"
PARTS = 10
EPOCH = 100  # steps
# By how much the last part may exceed the second. Times are of a machine that does other things, too.
ALLOWED = {"memory MiB": 1.05, "open files": 1.0, "threads": 1.0, "files": 1.0, "files MiB": 1.02, "step ms": 1.25}


def command(program: str, folder: pathlib.Path, steps: int) -> list[str]:
    # Checkpoints, validation and exact answers are a part of what could leak.
    return [program, f"checkpoint_dir={EMBEDDED}", f"dataset={EMBEDDED}/alpaca_train.json", f"output_dir={folder}",
            "max_seq_len=64", "batch_size=1", "gradient_accumulation_steps=1", f"epochs={steps // EPOCH}", f"max_steps_per_epoch={EPOCH}",
            f"save_every_n_steps={steps // 100}", "keep_last_n_checkpoints=2", "validation_split=0.1",
            f"run_val_every_n_steps={steps // 50}", "report_samples=0"]


def of_process(pid: int, folder: pathlib.Path) -> dict[str, float] | None:
    """What the process holds now, its memory without the program's own pages, and what its folder holds of weights: logs grow by a
    line a step."""
    proc = pathlib.Path(f"/proc/{pid}")
    try:
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        found = {"memory MiB": int(status["RssAnon"].split()[0]) / 1024, "threads": int(status["Threads"]),
                 "open files": len(list((proc / "fd").iterdir()))}
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix == ".safetensors"]
    except (FileNotFoundError, KeyError, ProcessLookupError):
        return None  # It ends, or a file has just been renamed.
    return {**found, "files": len(sizes), "files MiB": sum(sizes) / 2**20}


def watch(process: subprocess.Popen, folder: pathlib.Path, seconds: float) -> list[tuple[float, dict]]:
    samples = []
    while process.poll() is None:
        if sample := of_process(process.pid, folder):
            samples.append((time.time(), sample))
        time.sleep(seconds)
    return samples


def step_times(folder: pathlib.Path) -> list[tuple[float, float]]:
    """When each step ended, and the milliseconds since the one before."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    ends = [line["time"] for line in lines if "loss" in line]
    return [(end, 1000 * (end - before)) for before, end in zip(ends, ends[1:])]


def table(samples: list[tuple[float, dict]], steps: list[tuple[float, float]]) -> list[dict[str, float]]:
    """The most of memory and threads, the least of files (one that is being written, or a checkpoint that an older one has yet to
    make room for, is one more for a moment), and the median of a step's time, in each part of the steps."""
    rows = []
    for part in range(PARTS):
        times = steps[part * len(steps) // PARTS : (part + 1) * len(steps) // PARTS]
        held = [sample for at, sample in samples if times[0][0] <= at <= times[-1][0]]
        of_all = {key: min if "files" in key else max for key in held[0]}
        row = {key: of(sample[key] for sample in held) for key, of in of_all.items()}
        rows.append({**row, "step ms": statistics.median(milliseconds for _, milliseconds in times)})
    return rows


def main(program: str, steps: int, root: pathlib.Path, seconds: float) -> None:
    folder = root / "run"
    started = time.time()
    with open(root / "output", "w+") as output:
        process = subprocess.Popen(command(program, folder, steps), stdout=output, stderr=output)
        samples = watch(process, folder, seconds)
        output.seek(0)
        assert process.returncode == 0, output.read()
    done = step_times(folder)
    assert len(done) == steps - 1, f"{len(done) + 1} steps of {steps} are logged"
    rows = table(samples, done)
    print("| Part | " + " | ".join(ALLOWED) + " |")
    print("|---" * (len(ALLOWED) + 1) + "|")
    for part, row in enumerate(rows):
        print(f"| {part + 1} | " + " | ".join(f"{row[key]:.4g}" for key in ALLOWED) + " |")
    print(f"{steps} steps in {time.time() - started:.0f} s")
    grown = [key for key, share in ALLOWED.items() if rows[-1][key] > share * rows[1][key]]
    sys.exit(f"grown: {', '.join(grown)}" if grown else 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=0.5, help="between two looks at the process")
    args = parser.parse_args()
    assert args.steps % EPOCH == 0, f"epochs have {EPOCH} steps"
    with tempfile.TemporaryDirectory() as temporary:
        main(args.program, args.steps, pathlib.Path(temporary), args.seconds)
