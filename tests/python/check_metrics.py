"""Reads what a run tells of itself with other programs: python check_metrics.py LORA_ALPACA

LORA_ALPACA is the example. It finetunes the embedded model for a few steps.
"""

import csv
import json
import math
import pathlib
import shutil
import subprocess
import sys
import tempfile

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEPS = 12
NAMES = {"epoch", "loss", "lr", "grad_norm", "tokens_per_second", "peak_memory_bytes", "val_loss"}


def run(program: str, folder: pathlib.Path, *overrides: str) -> None:
    settings = [f"output_dir={folder}", "epochs=1", f"max_steps_per_epoch={STEPS}", "save_adapter_weights_only=true",
                "validation_split=0.1", "run_val_every_n_steps=4", "save_every_n_steps=5",
                "metric_logger=[csv, tensorboard]", *overrides]
    done = subprocess.run([program, *settings], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def lines(folder: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def series(lines: list[dict], name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in lines if line.get(name) is not None]


def check_tensorboard(folder: pathlib.Path) -> None:
    """Every scalar, in f32, at its step and time; checksums are the reader's to check."""
    files = list((folder / "tensorboard").iterdir())
    assert len(files) == 1, files
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == NAMES, events.Tags()
    logged = lines(folder)
    times = {line["time"] for line in logged}
    for name in NAMES:
        expected = series(logged, name)
        found = events.Scalars(name)
        assert [scalar.step for scalar in found] == [step for step, _ in expected], name
        for scalar, (_, value) in zip(found, expected):
            assert math.isclose(scalar.value, value, rel_tol=1e-7), (name, scalar, value)
            assert any(abs(scalar.wall_time - time) < 1e-6 for time in times), scalar


def check_csv(folder: pathlib.Path) -> None:
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    logged = lines(folder)
    assert len(rows) == len(logged), rows
    for row, line in zip(rows, logged):
        assert int(row["step"]) == line["step"]
        for name in NAMES | {"device_memory_bytes"}:
            value = line.get(name)
            cell = row[name]
            assert (cell == "") == (value is None), (row, line)
            assert value is None or math.isclose(float(cell), value, rel_tol=1e-15), (row, line)


def main(program: str) -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = pathlib.Path(parent) / "run"
        run(program, folder)
        before = lines(folder)
        check_tensorboard(folder)
        check_csv(folder)
        # A run that goes on from an earlier step has every step once.
        for step in [10, STEPS]:
            shutil.rmtree(folder / f"checkpoints/step_{step}")
        with open(folder / "metrics.jsonl", "a") as file:
            file.write('{"step":13,"lo')
        run(program, folder, "resume_from_checkpoint=true")
        check_tensorboard(folder)
        check_csv(folder)
        for name in ["loss", "val_loss"]:
            assert series(lines(folder), name) == series(before, name), name
        print("JSON lines, CSV and TensorBoard's events say the same")


if __name__ == "__main__":
    main(sys.argv[1])
