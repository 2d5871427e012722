"""Kills a run at random moments, and goes on with it: python check_kills.py LORA_ALPACA [--kills N] [--seed S]

LORA_ALPACA is the example. A tiny run is killed by SIGKILL wherever it is: at its start, in a step, in a checkpoint, while the
adapter or the merged model is written. The same command goes on with it, is killed again, and so on until it ends by
itself. After each kill every file under its own name must be whole; at the end the adapter and the merged model must be those
of a run that nothing happened to, bit for bit, the log must have each step once, and no other file may be there. Then a
folder that cannot be written, and two runs on one folder.

Most of the time of such a run goes into bringing files to the disk: TMPDIR=/dev/shm makes it ten times as fast.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time

from check_faults import EMBEDDED, Case

NOBODY = 65534


def whole(path: pathlib.Path) -> bool:
    """Whether a file ends where what it holds ends."""
    content = path.read_bytes()
    match path.suffix:
        case ".json":
            return isinstance(json.loads(content), dict)
        case ".safetensors":
            (length,) = struct.unpack("<Q", content[:8])
            header = json.loads(content[8 : 8 + length])
            ends = (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
            return len(content) == 8 + length + max(ends)
        case ".svg" | ".html":
            return content.rstrip().endswith(b"</svg>" if path.suffix == ".svg" else b"</html>")
        case ".yaml":
            return content.endswith(b"\n")
    return True


def files(folder: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def half_written(folder: pathlib.Path) -> list[str]:
    """Files under their own names that are not whole."""
    found = []
    for name in files(folder):
        try:
            good = ".tmp" in name or whole(folder / name)
        except (ValueError, struct.error):
            good = False
        if not good:
            found.append(name)
    return found


def losses(folder: pathlib.Path) -> list[tuple]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"], line["lr"], line["grad_norm"]) for line in lines]


def stage(folder: pathlib.Path) -> str:
    """How far a run came, by what it left."""
    names = files(folder) if folder.exists() else []
    if "config.yaml" not in names:
        return "before it began"
    if any(".tmp" in name for name in names):
        return "while a file was written"
    if "summary.json" in names:
        return "when all was written"
    if "adapter/adapter_config.json" in names:
        return "with the adapter, without the merged model"
    return "after a checkpoint" if "checkpoints/step_2/trainer.json" in names else "before a checkpoint"


class Unbroken:
    """What a run comes to that nothing happened to, and how long it takes."""

    def __init__(self, case: Case):
        self.seconds = min(self.timed(case) for _ in range(5))
        self.results, self.files, self.losses = case.results(), files(case.folder), losses(case.folder)

    @staticmethod
    def timed(case: Case) -> float:
        shutil.rmtree(case.folder, ignore_errors=True)
        started = time.monotonic()
        case.run_as_is()
        return time.monotonic() - started

    def differs(self, case: Case) -> str | None:
        if case.results() != self.results:
            return "comes to another adapter or model"
        if losses(case.folder) != self.losses:
            return f"logs {losses(case.folder)}"
        if files(case.folder) != self.files:
            return f"has other files: {set(files(case.folder)) ^ set(self.files)}"
        return None


class Tiny(Case):
    """A run of some steps that anybody may start."""

    def run_as_is(self, **options) -> None:
        done = subprocess.run(self.command, capture_output=True, text=True, **options)
        assert done.returncode == 0, done.stderr

    def start(self, **options) -> subprocess.Popen:
        return subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options)

    def killed_after(self, seconds: float, **options) -> bool:
        """Whether the run was killed, and had not ended by itself."""
        process = self.start(**options)
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return True
        assert process.returncode == 0, f"does not go on: {errors}"
        return False


def killed_until_done(case: Tiny, unbroken: Unbroken, chance: random.Random, stages: collections.Counter) -> None:
    longest = 1.2 * unbroken.seconds
    while case.killed_after(chance.uniform(0, longest)):
        longest *= 1.05  # The machine may have become slower; a run must come to its end.
        stages[stage(case.folder)] += 1
        assert not half_written(case.folder), f"half written: {half_written(case.folder)}"
    difference = unbroken.differs(case)
    assert difference is None, difference


def one_sentence(errors: str, *words: str) -> None:
    lines = [line for line in errors.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and "panicked" not in errors, errors
    assert all(word in errors for word in words), errors


def read_only(make, unbroken: Unbroken) -> None:
    """A folder that cannot be written is an error which names it, and changes nothing; writable again, the run goes on."""
    # Nothing is read-only for root.
    other = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    case = make("read_only/run")
    parent = case.folder.parent
    parent.mkdir()
    parent.chmod(0o555)
    refused = subprocess.run(case.command, capture_output=True, text=True, **other)
    assert refused.returncode == 1 and not case.folder.exists(), refused
    one_sentence(refused.stderr, str(case.folder), "Permission denied")

    parent.chmod(0o777)
    seconds = unbroken.seconds / 2
    while stage(case.folder) not in ("after a checkpoint", "with the adapter, without the merged model"):
        shutil.rmtree(case.folder, ignore_errors=True)
        assert seconds < 20 * unbroken.seconds, "is never between a checkpoint and the end"
        case.killed_after(seconds, **other)
        seconds *= 1.02
    folders = [case.folder, *(path for path in case.folder.rglob("*") if path.is_dir())]
    before = {name: (case.folder / name).read_bytes() for name in files(case.folder)}
    for folder in folders:
        folder.chmod(0o555)
    refused = subprocess.run(case.command, capture_output=True, text=True, **other)
    assert refused.returncode == 1, refused
    one_sentence(refused.stderr, str(case.folder), "Permission denied")
    log = "metrics.jsonl"  # A file that is there may be written to.
    after = {name: (case.folder / name).read_bytes() for name in files(case.folder)}
    assert {**before, log: b""} == {**after, log: b""}, before.keys() ^ after.keys()
    for folder in folders:
        folder.chmod(0o755)
    case.run_as_is(**other)
    assert unbroken.differs(case) is None, unbroken.differs(case)


def two_at_once(case: Tiny, unbroken: Unbroken, later: float) -> bool:
    """Whether the second of two runs on one folder was refused; else it found the folder free or the run done."""
    first = case.start()
    time.sleep(later)
    processes = [first, case.start()]
    ends = [(process.communicate()[1], process.returncode) for process in processes]
    refused = [errors for errors, code in ends if code != 0]
    assert len(refused) < 2, refused
    for errors in refused:
        one_sentence(errors, str(case.folder), "is going on")
    assert unbroken.differs(case) is None, unbroken.differs(case)
    return bool(refused)


def main(program: str, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        root.chmod(0o755)
        rows = [{"instruction": f"Say {number}.", "input": "", "output": str(number)} for number in range(16)]
        (root / "records.json").write_text(json.dumps(rows))
        shutil.copytree(EMBEDDED, root / "tiny")
        program = shutil.copy(program, root)

        def make(name: str) -> Tiny:
            return Tiny(program, root / name, root / "records.json", root / "tiny")

        unbroken = Unbroken(make("unbroken"))
        stages, chains = collections.Counter(), 0
        while stages.total() < kills:
            chains += 1
            killed_until_done(make("killed"), unbroken, chance, stages)
            shutil.rmtree(root / "killed")
        print(f"{stages.total()} kills of {chains} runs of {unbroken.seconds:.2f} s, each of which came to the same files:")
        for name, count in stages.most_common():
            print(f"{count:7}  {name}")
        read_only(make, unbroken)
        print("a folder that cannot be written: refused, and gone on with when it can be")
        refused, pairs = 0, max(5, kills // 50)
        for _ in range(pairs):
            refused += two_at_once(make("two"), unbroken, chance.uniform(0, unbroken.seconds / 2))
            shutil.rmtree(root / "two")
        print(f"two runs on one folder, {pairs} times: one was refused {refused} times, and the other one undisturbed")
        assert refused > 0, "no pair of runs met"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    # Threads that wait for each other take much longer beside another program.
    os.environ.setdefault("RAYON_NUM_THREADS", "1")
    try:
        main(args.program, args.kills, args.seed)
    except AssertionError as error:
        sys.exit(f"a run does not get over it: {error}")
