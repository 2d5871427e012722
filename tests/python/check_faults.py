"""Lets single system calls of a run fail, or kill it there, and goes on with it: python check_faults.py LORA_ALPACA

LORA_ALPACA is the example. Each case is one call of `strace -e inject` (Debian's strace): the K-th write, rename, fsync ...
of a tiny run returns "no space left" or "input/output error", or the process is killed at it. Whatever comes of it, the
same command must then come to the adapter and the merged model of a run that nothing happened to, bit for bit, and leave
no temporary file. `--cases N` takes so many of all cases at random; without it all of them run, which takes hours.
"""

import argparse
import collections
import json
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile

CALLS = ["openat", "write", "fsync", "fdatasync", "rename", "renameat", "renameat2", "ftruncate", "mkdir", "unlink", "unlinkat",
         "flock", "chmod", "fchmod"]
FAULTS = ["error=ENOSPC", "error=EIO", "signal=KILL"]
RESULTS = ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "merged/model.safetensors"]
EMBEDDED = pathlib.Path(__file__).parents[2] / "examples/assets/tiny"


class Case:
    """A run in a folder of its own."""

    def __init__(self, program: str, folder: pathlib.Path, records: pathlib.Path, base: pathlib.Path = EMBEDDED):
        self.folder = folder
        self.command = [program, f"output_dir={folder}", f"checkpoint_dir={base}", f"dataset={records}", "max_seq_len=48",
                        "report_samples=0", "epochs=1", "max_steps_per_epoch=4", "save_every_n_steps=2",
                        "keep_last_n_checkpoints=1", "resume_from_checkpoint=auto"]

    def run(self, *before: str) -> subprocess.CompletedProcess:
        return subprocess.run([*before, *self.command], capture_output=True, text=True)

    def results(self) -> list[bytes]:
        return [(self.folder / name).read_bytes() for name in RESULTS]

    def left_over(self) -> list[str]:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return [str(path.relative_to(self.folder)) for path in files if re.search(r"\.tmp", path.name)]


def traced(*options: str) -> list[str]:
    return ["strace", "-f", "-qq", "--seccomp-bpf", *options]


def count_calls(case: Case) -> collections.Counter:
    """How often each thread of a whole run makes each call, of the busiest thread: `when` counts by thread."""
    with tempfile.NamedTemporaryFile("r") as log:
        done = case.run(*traced("-o", log.name, "-e", f"trace={','.join(CALLS)}"))
        assert done.returncode == 0, done.stderr
        lines = [re.match(r"(\d+) +(\w+)\(", line) for line in log]
    by_thread = collections.Counter(line.groups() for line in lines if line)
    counts = collections.Counter()
    for (_, call), count in by_thread.items():
        counts[call] = max(counts[call], count)
    return counts


def broken(case: Case, expected: list[bytes], call: str, fault: str, which: int) -> str | None:
    """What is wrong after a fault, if anything is."""
    first = case.run(*traced("-o", "/dev/null", "-e", f"inject={call}:{fault}:when={which}"))
    if first.returncode not in (0, 1) and fault != "signal=KILL":
        return f"ends with {first.returncode}: {first.stderr[-400:]}"
    again = case.run()
    if again.returncode != 0:
        return f"does not go on: {again.stderr[-400:]}"
    if case.results() != expected:
        return "comes to another adapter or model"
    if left := case.left_over():
        return f"leaves {', '.join(left)}"
    return None


def main(program: str, count: int | None, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        records = root / "records.json"
        rows = [{"instruction": f"Say {number}.", "input": "", "output": str(number)} for number in range(16)]
        records.write_text(json.dumps(rows))
        unbroken = Case(program, root / "unbroken", records)
        calls = count_calls(unbroken)
        cases = [(call, fault, which) for call in calls for fault in FAULTS for which in range(1, calls[call] + 1)]
        chosen = cases if count is None else random.Random(seed).sample(cases, min(count, len(cases)))
        faults = []
        for call, fault, which in chosen:
            case = Case(program, root / "case", records)
            if message := broken(case, unbroken.results(), call, fault, which):
                faults.append(f"{call} {which}, {fault}: {message}")
                print(faults[-1], flush=True)
            shutil.rmtree(case.folder, ignore_errors=True)
    print(f"{len(chosen)} of {len(cases)} faults, {len(faults)} that a run does not get over")
    sys.exit(bool(faults))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--cases", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    main(args.program, args.cases, args.seed)
