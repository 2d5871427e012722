"""Checks that processes under MPI train as one process does: python check_mpi.py LORA_ALPACA

LORA_ALPACA is the example, built with `--features mpi`. It finetunes the embedded model.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

STEPS = 50
TOLERANCE = 1e-5
# Survivors have time to save before they are killed too.
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--mca", "odls_base_sigkill_timeout", "5"]
QUIET = {**os.environ, "RAYON_NUM_THREADS": "1"}


class Recipe:
    """The example, run into folders below one."""

    def __init__(self, program: str, folder: str):
        self.program, self.folder = program, pathlib.Path(folder)

    def command(self, processes: int, name: str, *overrides: str) -> list[str]:
        launcher = [*MPIRUN, "-n", str(processes)] if processes > 1 else []
        return [*launcher, self.program, *self.overrides(name, *overrides)]

    def overrides(self, name: str, *overrides: str) -> list[str]:
        return [
            f"output_dir={self.folder / name}",
            "epochs=1",
            f"max_steps_per_epoch={STEPS}",
            "save_adapter_weights_only=true",
            *overrides,
        ]

    def run(self, processes: int, name: str, *overrides: str) -> dict[int, float]:
        command = self.command(processes, name, *overrides)
        subprocess.run(command, check=True, env=QUIET, stdout=subprocess.DEVNULL)
        return self.losses(name)

    def losses(self, name: str) -> dict[int, float]:
        path = self.folder / name / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return {line["step"]: line["loss"] for line in map(json.loads, lines)}


def require_close(what: str, losses: dict[int, float], expected: dict[int, float]) -> None:
    assert losses.keys() == expected.keys(), f"{what}: {len(losses)} of {len(expected)} steps"
    worst = max(abs(losses[step] - expected[step]) for step in expected)
    fell = expected[1] - expected[max(expected)]
    print(f"{what}: {len(losses)} steps, losses differ by at most {worst:.1e}, fell by {fell:.2f}")
    assert worst <= TOLERANCE, f"{what}: losses differ by {worst:.1e}"


def equal_losses(recipe: Recipe) -> None:
    """Token counts are uneven in every step: prompts are masked and answers vary in length."""
    alone = recipe.run(1, "batch_4", "batch_size=4")
    two = recipe.run(2, "batch_2x2", "batch_size=2")
    require_close("2 processes, half the batch", two, alone)
    four = recipe.run(4, "batch_1x4", "batch_size=1")
    require_close("4 processes, a quarter of the batch", four, alone)

    devices = recipe.run(1, "devices", "batch_size=2", "device=flex,flex")
    require_close("2 devices of one process, half the batch", devices, alone)

    accumulate = "gradient_accumulation_steps=3"
    alone = recipe.run(1, "accumulate_4", "batch_size=4", accumulate)
    two = recipe.run(2, "accumulate_2x2", "batch_size=2", accumulate)
    require_close("2 processes, 3 batches a step", two, alone)

    # 538 records in steps of 20: 26 whole ones and one of 18, of which each process has 9.
    # In steps of 22 the last one has 10.
    for size in [20, 22]:
        uneven = ["epochs=2", f"max_steps_per_epoch={STEPS}"]
        alone = recipe.run(1, f"uneven_{size}", f"batch_size={size}", *uneven)
        two = recipe.run(2, f"uneven_{size}_2", f"batch_size={size // 2}", *uneven)
        require_close(f"2 processes, an uneven last batch of steps of {size}", two, alone)
    # 537 of 538 records fill whole steps of 3: the last record is one process's alone.
    three = recipe.run(3, "last_of_one_3", "batch_size=1", "max_steps_per_epoch=null", "seed=5")
    alone = recipe.run(1, "last_of_one", "batch_size=3", "max_steps_per_epoch=null", "seed=5")
    require_close("3 processes, a last batch that two have no part of", three, alone)

    dropout = "lora_dropout=0.2"
    alone = recipe.run(1, "dropout", "batch_size=4", dropout, "gradient_accumulation_steps=2")
    two = recipe.run(2, "dropout_2", "batch_size=4", dropout)
    require_close("2 processes with dropout, against 2 batches of one", two, alone)


def processes_of(launcher: int) -> dict[int, int]:
    """The ids of the processes that a launcher started, by rank."""
    ids = {}
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            status = (entry / "status").read_text()
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        parent = next(line.split()[1] for line in status.splitlines() if line.startswith("PPid"))
        rank = [v.split(b"=")[1] for v in variables if v.startswith(b"OMPI_COMM_WORLD_RANK=")]
        if int(parent) == launcher and rank:
            ids[int(rank[0])] = int(entry.name)
    return ids


def a_death(recipe: Recipe, rank: int, unbroken: dict[int, float]) -> None:
    """Kills a process in the middle of a run, and goes on with one process and with two."""
    name = f"death_of_{rank}"
    command = recipe.command(2, name, "batch_size=2")
    run = subprocess.Popen(
        command, env=QUIET, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while len(recipe.losses(name)) < STEPS // 3:
        assert run.poll() is None, f"the run ended by itself: {run.stderr.read()}"
        time.sleep(0.02)
    os.kill(processes_of(run.pid)[rank], signal.SIGKILL)
    _, errors = run.communicate(timeout=60)
    assert run.returncode != 0
    message = [line for line in errors.splitlines() if "is saved in" in line]
    assert len(message) == 1, f"not one message of the other process in:\n{errors}"
    print(f"rank {rank} killed: {message[0]}")
    # The first process writes the metrics, and may have died between a step and its line.
    saved = int(re.search(r"step (\d+) is saved", message[0])[1])
    lost = {saved} - recipe.losses(name).keys() if rank == 0 else set()
    expected = {step: loss for step, loss in unbroken.items() if step not in lost}

    for processes in [1, 2]:
        resumed = f"{name}_resumed_by_{processes}"
        shutil.copytree(recipe.folder / name, recipe.folder / resumed)
        losses = recipe.run(processes, resumed, "batch_size=2", "resume_from_checkpoint=true")
        require_close(f"rank {rank} killed, resumed by {processes}", losses, expected)
        assert processes == 1 or losses == expected, "two that resume are not the two that began"


def ends_together(recipe: Recipe, name: str, *programs: list[str]) -> str:
    """What processes print that were started with options of their own, and fail."""
    command = MPIRUN.copy()
    for index, options in enumerate(programs):
        settings = [option for option in options if option.startswith("BURN_")]
        overrides = [option for option in options if option not in settings]
        command += [":"] * (index > 0) + ["-n", "1"]
        command += [word for setting in settings for word in ("-x", setting)]
        command += [recipe.program, *recipe.overrides(name, *overrides)]
    run = subprocess.run(command, env=QUIET, capture_output=True, text=True, timeout=60)
    assert run.returncode != 0, f"{name} did not fail"
    return run.stderr


def a_failure(recipe: Recipe) -> None:
    """An error in the middle of a run costs no complete step; an adapter that is no number is none."""
    for processes, device in [(1, "flex"), (1, "flex,flex"), (2, "flex")]:
        name = f"failure_of_{processes}_on_{device}"
        for rate, saved in [("1e20", "step 1 is saved in"), ("1e38", "the last step is not saved")]:
            diverges = [f"optimizer.lr={rate}", "lr_scheduler.num_warmup_steps=0"]
            command = recipe.command(processes, f"{name}_{rate}", f"device={device}", *diverges)
            run = subprocess.run(command, env=QUIET, capture_output=True, text=True, timeout=60)
            assert run.returncode != 0, f"{name} did not fail"
            for expected in [saved, "step 2: the loss is NaN"]:
                assert expected in run.stderr, run.stderr
            checkpoint = recipe.folder / f"{name}_{rate}" / "checkpoints/step_1"
            assert checkpoint.exists() == (rate == "1e20")
    print("a failure leaves the last complete step")


def old_checkpoints(recipe: Recipe) -> None:
    recipe.run(1, "old", "save_every_n_steps=15", "keep_last_n_checkpoints=2")
    left = sorted(folder.name for folder in (recipe.folder / "old/checkpoints").iterdir())
    assert left == [f"step_{STEPS - 5}", f"step_{STEPS}"], left
    print("two checkpoints are kept")


def an_early_end(recipe: Recipe) -> None:
    """An error or a panic of one process ends the other."""
    errors = ends_together(recipe, "error", ["BURN_DEVICE=flex"], ["BURN_DEVICE=nonsense"])
    assert "not built for `nonsense`" in errors, errors
    errors = ends_together(recipe, "panic", ["BURN_PEFT_CPU=portable"], ["BURN_PEFT_CPU=nonsense"])
    assert "panicked" in errors, errors
    print("an error or a panic of one process ends the other")


def different_data(recipe: Recipe) -> None:
    """Each process reads its own file, as on machines that do not share a disk."""
    records = [{"instruction": "Say yes.", "input": "", "output": "yes"}] * 20
    files = [recipe.folder / f"records_{rank}.json" for rank in range(2)]
    for path, count in zip(files, [20, 19], strict=True):
        path.write_text(json.dumps(records[:count]))
    one_has_none = [[f"validation_dataset={files[0]}"], ["max_seq_len=128"]]
    for what, options in [
        ("training data", [[f"dataset={path}"] for path in files]),
        ("validation data", [[f"validation_dataset={path}"] for path in files]),
        ("validation data", one_has_none),
    ]:
        errors = ends_together(recipe, "different_data", *options)
        message = f"{what}: rank 1 differs from rank 0; give all processes the same"
        assert message in errors, errors
        # The folder is claimed before records are read, and no run has begun in it.
        left = [entry.name for entry in (recipe.folder / "different_data").iterdir()]
        assert left == [".lock"], left
    print("processes with different data are refused")


def different_configurations(recipe: Recipe) -> None:
    errors = ends_together(recipe, "different_rates", ["optimizer.lr=1e-3"], ["optimizer.lr=1e-4"])
    message = "configuration: rank 1 differs from rank 0; give all processes the same"
    assert message in errors, errors
    print("processes with different configurations are refused")


def main(program: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(program, folder)
        equal_losses(recipe)
        unbroken = recipe.losses("batch_2x2")
        a_death(recipe, 1, unbroken)
        a_death(recipe, 0, unbroken)
        different_data(recipe)
        different_configurations(recipe)
        a_failure(recipe)
        old_checkpoints(recipe)
        an_early_end(recipe)


if __name__ == "__main__":
    main(sys.argv[1])
