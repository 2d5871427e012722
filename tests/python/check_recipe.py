"""Checks what the recipe's keys do: python check_recipe.py LORA_ALPACA

LORA_ALPACA is the example. It finetunes the embedded model for a few steps a case.
"""

import gzip
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

STEPS = 12


class Run:
    """A run of the example in a folder of its own."""

    def __init__(self, program: str, folder: pathlib.Path, *overrides: str):
        self.folder = folder
        self.command = [
            program,
            f"output_dir={folder}",
            "epochs=1",
            f"max_steps_per_epoch={STEPS}",
            "save_adapter_weights_only=true",
            *overrides,
        ]

    def done(self) -> "Run":
        run = subprocess.run(self.command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        self.output = run.stdout
        return self

    def fails(self) -> str:
        run = subprocess.run(self.command, capture_output=True, text=True)
        assert run.returncode == 1, run
        return run.stderr

    def metrics(self, key: str) -> dict[int, float]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return {line["step"]: line[key] for line in map(json.loads, lines) if key in line}

    def json(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text())

    def tensors(self, name: str) -> dict[str, dict]:
        with open(self.folder / name, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return header


class Recipe:
    def __init__(self, program: str, folder: str):
        self.program, self.folder, self.count = program, pathlib.Path(folder), 0

    def run(self, *overrides: str) -> Run:
        self.count += 1
        return Run(self.program, self.folder / str(self.count), *overrides)


def validation(recipe: Recipe) -> None:
    """Every few steps, and as the last word."""
    records = [{"instruction": "Say yes.", "input": "", "output": "yes"}] * 3
    path = recipe.folder / "validation.json"
    path.write_text(json.dumps(records))
    for source in ["validation_split=0.1", f"validation_dataset={path}"]:
        run = recipe.run(source, "run_val_every_n_steps=5").done()
        losses = run.metrics("val_loss")
        assert list(losses) == [5, 10, STEPS], losses
        assert run.json("summary.json")["val_loss"] == losses[STEPS]
        run = recipe.run(source, f"run_val_every_n_steps={STEPS}").done()
        assert run.json("summary.json")["val_loss"] == run.metrics("val_loss")[STEPS]


def the_best_validation(recipe: Recipe) -> None:
    """It is kept, used if that is asked for, and the training ends where none is better."""
    validated = ["validation_split=0.1", "run_val_every_n_steps=1", "lr_scheduler.num_warmup_steps=0"]
    # It learns, and then too fast.
    kept = ["save_every_n_steps=2", "keep_last_n_checkpoints=1"]
    run = recipe.run(*validated, *kept, "optimizer.lr=0.3", "clip_grad_norm=null", "best_checkpoint=use").done()
    losses = run.metrics("val_loss")
    best = min(losses, key=losses.get)
    assert best < STEPS, losses
    assert sorted(os.listdir(run.folder / "checkpoints")) == sorted({f"step_{best}", f"step_{STEPS}"})
    adapter = (run.folder / "adapter/adapter_model.safetensors").read_bytes()
    assert adapter == (run.folder / f"checkpoints/step_{best}/adapter_model.safetensors").read_bytes()
    summary = run.json("summary.json")
    assert summary["best_validation"] == {"step": best, "loss": losses[best]}, summary
    assert summary["val_loss"] == losses[STEPS], summary

    # One that learns nothing.
    ends = [*validated, "run_val_every_n_steps=2", "optimizer.lr=0", "log_every_n_steps=100"]
    run = recipe.run(*ends, "early_stopping_patience=2").done()
    assert list(run.metrics("val_loss")) == [2, 4, 6] and list(run.metrics("loss")) == [6]
    assert "no better validation since step 2" in run.output, run.output
    assert os.listdir(run.folder / "checkpoints") == ["step_6"]
    assert run.json("summary.json")["steps"] == 6
    run.command.append("resume_from_checkpoint=true")
    assert f"the training is done, 6 steps of {STEPS}" in run.done().output
    run.command.append("early_stopping_patience=3")
    assert list(run.done().metrics("val_loss")) == [2, 4, 6, 8]
    refused = recipe.run("best_checkpoint=save").fails()
    assert "goes by validations, set `run_val_every_n_steps` too" in refused, refused


def an_interrupted_validation(recipe: Recipe) -> None:
    """The state that is saved when a validation is interrupted has none of that step: it is done again."""
    run = recipe.run("validation_split=0.1", "run_val_every_n_steps=5", "save_every_n_steps=5").done()
    losses = run.metrics("val_loss")
    for step in [10, STEPS]:
        shutil.rmtree(run.folder / f"checkpoints/step_{step}")
    state = run.json("checkpoints/step_5/trainer.json")
    assert state["validations"]["last"]["step"] == 5
    state["validations"] = {"last": None, "best": None, "since_best": 0}
    (run.folder / "checkpoints/step_5/trainer.json").write_text(json.dumps(state))
    lines = (run.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    lines = [line for line in lines if "val_loss" not in line]
    (run.folder / "metrics.jsonl").write_text("".join(lines))
    run.command.append("resume_from_checkpoint=true")
    assert run.done().metrics("val_loss") == losses
    # One that was done is not.
    run.command.append("validation_split=0.1")
    assert "step 10: validation" not in run.done().output


def how_long_and_how_much(recipe: Recipe) -> None:
    """Checkpoints of epochs, steps an epoch, and what no disk has room for."""
    run = recipe.run("epochs=3", "max_steps_per_epoch=4", "save_every_epoch=true").done()
    assert sorted(os.listdir(run.folder / "checkpoints")) == ["step_12", "step_4", "step_8"]
    assert "4 steps an epoch, 12 in all" in run.output, run.output
    full = recipe.run("epochs=100000000", "save_every_n_steps=1").fails()
    assert "GB will be written, and the disk has room for" in full and "keep_last_n_checkpoints" in full, full


def with_broken_token(folder: pathlib.Path, text: str) -> pathlib.Path:
    """The embedded model with an output of its own, in which the embedding of one token is no number."""
    embedded = pathlib.Path(__file__).parents[2] / "examples/assets/tiny"
    shutil.copytree(embedded, folder)
    token = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"][text]
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, data = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    tensor = header["model.embed_tokens.weight"]
    start, end = tensor["data_offsets"]
    header["lm_head.weight"] = {**tensor, "data_offsets": [len(data), len(data) + end - start]}
    data += data[start:end]
    row = start + token * tensor["shape"][1] * 4
    data[row : row + 4] = struct.pack("<f", float("nan"))
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    return folder


def a_step_that_is_no_number(recipe: Recipe) -> None:
    """It names its record, can be left out, and a run that it has ended goes on past it."""
    base = with_broken_token(recipe.folder / "broken", "~")
    records = [{"instruction": f"Say {word}.", "input": "", "output": word} for word in "abcdefgh"]
    records[5]["output"] = "six ~ of them"
    dataset = recipe.folder / "broken.json"
    dataset.write_text(json.dumps(records))
    settings = [f"checkpoint_dir={base}", f"dataset={dataset}", "shuffle=false", "batch_size=2", "max_seq_len=128"]
    run = recipe.run(*settings, "log_every_n_steps=2")
    errors = run.fails()
    assert "step 3: the loss is NaN" in errors and "six ~ of them" in errors, errors
    assert "Say f." in errors and "Say e." not in errors, errors
    assert "skip_nonfinite_steps=1 resume_from_checkpoint=auto" in errors, errors
    assert "step 2 is saved" in errors, errors
    run.command += ["skip_nonfinite_steps=1", "resume_from_checkpoint=auto"]
    run.done()
    assert "step 3 is left out" in run.output and "six ~ of them" in run.output, run.output
    summary = run.json("summary.json")
    assert (summary["steps"], summary["skipped_steps"]) == (4, 1), summary
    assert summary["final_loss"] == run.metrics("loss")[4]

    # As a run that leaves it out from the beginning, of which the log has every step.
    again = recipe.run(*settings, "skip_nonfinite_steps=1").done()
    assert again.metrics("loss")[3] is None and again.metrics("loss")[4] == run.metrics("loss")[4]
    # One more than may be left out.
    twice = recipe.run(*settings, "skip_nonfinite_steps=1", "epochs=2").fails()
    assert "step 7" in twice and "skip_nonfinite_steps=2" in twice, twice


def half_precision(recipe: Recipe) -> None:
    """The merged model has the base's type, the adapter is f32."""
    run = recipe.run("dtype=bf16", "save_adapter_weights_only=false").done()
    config = run.json("merged/config.json")
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16", config
    for name, dtype in [("merged/model", "BF16"), ("adapter/adapter_model", "F32")]:
        tensors = run.tensors(f"{name}.safetensors")
        assert {tensor["dtype"] for tensor in tensors.values()} == {dtype}, name


def variants(recipe: Recipe) -> None:
    plain = recipe.run().done()
    dora = recipe.run("use_dora=true", "use_rslora=true", "lora_dropout=0.1").done()
    config = dora.json("adapter/adapter_config.json")
    assert config["use_dora"] and config["use_rslora"] and config["lora_dropout"] == 0.1
    names = dora.tensors("adapter/adapter_model.safetensors")
    assert any("lora_magnitude_vector" in name for name in names)
    assert dora.metrics("loss") != plain.metrics("loss")

    recomputed = recipe.run("enable_activation_checkpointing=true").done()
    assert recomputed.metrics("loss") == plain.metrics("loss")

    packed = recipe.run("packed=true", "max_seq_len=256", "train_on_input=true").done()
    losses = packed.metrics("loss")
    assert len(losses) == STEPS and losses[STEPS] < losses[1], losses

    sparse = recipe.run("log_every_n_steps=5").done()
    assert sparse.metrics("loss") == {step: plain.metrics("loss")[step] for step in (5, 10, STEPS)}


def notes(recipe: Recipe) -> None:
    for override, note in [
        ("max_seq_len=60", "60 tokens: cut there (too_long)"),
        ("max_seq_len=60", "have no room for an answer within 60 tokens: left out (prompt_only)"),
        ("max_seq_len=100000", "cut to the model's context"),
        ("validation_split=0.0001", "nothing is validated"),
        (f"lr_scheduler.num_warmup_steps={STEPS}", "never reaches optimizer.lr"),
    ]:
        lines = recipe.run(override).done().output.splitlines()
        found = [line for line in lines if line.startswith("note: ") and note in line]
        assert found, f"{override}: no note says `{note}`"


def several_data_sets(recipe: Recipe) -> None:
    """By weight, compressed, in batches by length; stopped and resumed it is the same training, noise included."""
    records = [{"instruction": f"Say {word}.", "output": "yes " * count} for count in range(1, 9) for word in ("yes", "no")]
    plain, packed = recipe.folder / "plain.jsonl", recipe.folder / "packed.json.gz"
    plain.write_text("\n".join(map(json.dumps, records)))
    packed.write_bytes(gzip.compress(json.dumps(records).encode()))
    settings = [f"dataset={plain}@1.5, {packed}@2", "group_by_length=true", "neftune_noise_alpha=5", "save_every_n_steps=4"]
    whole = recipe.run(*settings).done()
    assert "finetuned on 56 records" in whole.output, whole.output
    assert whole.metrics("loss") == recipe.run(*settings).done().metrics("loss")
    assert whole.metrics("loss") != recipe.run(*settings, "neftune_noise_alpha=null").done().metrics("loss")
    assert whole.metrics("loss") != recipe.run(*settings, "group_by_length=false").done().metrics("loss")
    adapter = "adapter/adapter_model.safetensors"
    expected = (whole.folder / adapter).read_bytes()
    for checkpoint in (whole.folder / "checkpoints").iterdir():
        if checkpoint.name != "step_4":
            shutil.rmtree(checkpoint)
    whole.command.append("resume_from_checkpoint=true")
    assert (whole.done().folder / adapter).read_bytes() == expected
    assert "the weight of" in recipe.run(f"dataset={plain}@0").fails()


def dry_run(recipe: Recipe) -> None:
    """Prints what a run would do, and does nothing."""
    run = recipe.run("--dry-run", "max_seq_len=60")
    output = run.done().output
    assert not run.folder.exists() or not any(run.folder.iterdir()), list(run.folder.iterdir())
    for part in ["lora_rank: ", "longer than max_seq_len", "steps an epoch", "Estimated memory", "note: ", "1: ", "2: ", "3: "]:
        assert part in output, f"{part!r} is not in {output}"
    assert "\x1b[" not in output and "[[" in output.split("3: ")[1], output
    done = recipe.run("max_steps_per_epoch=1").done()
    again = Run(recipe.program, done.folder, "--dry-run", "max_steps_per_epoch=1").fails()
    assert "this folder holds a run that is finished" in again, again


def records_of_other_formats(recipe: Recipe) -> None:
    """Conversations by ChatML, which is saved; what the loss counts; what is too long."""
    short = {"messages": [{"role": "user", "content": "What is a tyre made of?"}, {"role": "assistant", "content": "rubber"}]}
    long = {"messages": [short["messages"][0], {"role": "assistant", "content": "rubber " * 100}]}
    path = recipe.folder / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, [short] * 4 + [long])))
    dataset = f"dataset={path}"
    run = recipe.run(dataset, "save_adapter_weights_only=false").done()
    assert "note: the tokenizer has no chat template" in run.output, run.output
    assert "<|im_start|>" in (run.folder / "adapter/chat_template.jinja").read_text()
    assert (run.folder / "merged/chat_template.jinja").exists()
    report = (run.folder / "report.html").read_text()
    assert report.count("What is a tyre made of?") == 3, report
    silent = recipe.run(dataset, "report_samples=0").done()
    assert "Nothing was asked." in (silent.folder / "report.html").read_text()
    assert run.metrics("loss") == recipe.run(dataset, "train_on=assistant", "dataset_format=messages").done().metrics("loss")
    assert run.metrics("loss") != recipe.run(dataset, "train_on=all").done().metrics("loss")

    dropped = recipe.run(dataset, "max_seq_len=128", "too_long=drop").done().output
    assert f"note: 1 of 5 records of {path} are longer than 128 tokens: left out (too_long)" in dropped, dropped
    assert "finetuned on 4 records" in dropped, dropped
    assert "record 5 (line 5): it is longer than 128 tokens" in recipe.run(dataset, "max_seq_len=128", "too_long=error").fails()

    long_prompts = recipe.folder / "prompts.jsonl"
    question = {"instruction": "What is a tyre made of?", "output": "rubber"}
    empty, boilerplate = {**question, "output": ""}, {**question, "input": "tyre " * 100}
    long_prompts.write_text("\n".join(map(json.dumps, [question] * 3 + [empty] * 2 + [boilerplate])))
    told = recipe.run(f"dataset={long_prompts}", "max_seq_len=100", "train_on_input=true").done().output
    assert f"note: 2 of 6 records of {long_prompts} have an answer that says nothing: used (empty_answers)" in told, told
    assert f"note: 1 of 6 records of {long_prompts} have no room for an answer within 100 tokens: left out" in told, told

    template = recipe.folder / "mine.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}")
    mine = recipe.run(f"chat_template={template}").done()
    assert (mine.folder / "adapter/chat_template.jinja").read_text() == template.read_text()
    answers, plain = recipe.run("train_on=assistant").done(), recipe.run().done()
    assert not (plain.folder / "adapter/chat_template.jinja").exists()
    assert answers.metrics("loss") == plain.metrics("loss") != mine.metrics("loss")
    whole = recipe.run("train_on_input=true").done()
    assert whole.metrics("loss") == recipe.run("train_on=all").done().metrics("loss") != plain.metrics("loss")


def going_on(recipe: Recipe) -> None:
    """From no checkpoint, one that was cut off, the last one, another run's; to the merged model; for longer."""
    unbroken = recipe.run("save_every_n_steps=5", "resume_from_checkpoint=auto").done()
    losses = unbroken.metrics("loss")
    assert "going on" not in unbroken.output, unbroken.output

    cut_off = recipe.run("resume_from_checkpoint=auto")
    (cut_off.folder / "checkpoints/step_5").mkdir(parents=True)
    shutil.copy(unbroken.folder / "config.yaml", cut_off.folder)
    shutil.copy(unbroken.folder / "checkpoints/step_5/adapter_config.json", cut_off.folder / "checkpoints/step_5")
    refused = Run(recipe.program, cut_off.folder, "resume_from_checkpoint=true").fails()
    assert "begin anew by resume_from_checkpoint=false" in refused, refused
    begun = Run(recipe.program, cut_off.folder, "resume_from_checkpoint=false").done()
    assert begun.metrics("loss") == losses

    branch = recipe.run(f"resume_from_checkpoint={unbroken.folder / 'checkpoints/step_5'}").done()
    assert branch.metrics("loss") == losses
    assert f"going on after step 5 of {STEPS}" in branch.output, branch.output
    assert (unbroken.folder / "checkpoints/step_10").exists()

    # As if it had been killed while it merged.
    unbroken.command.append("save_adapter_weights_only=false")
    (unbroken.folder / "summary.json").unlink()
    (unbroken.folder / "merged").mkdir()
    (unbroken.folder / "merged/.model.safetensors.0123456789abcdef.tmp").write_text("half")
    unbroken.done()
    assert f"the training is done, {STEPS} steps of {STEPS}" in unbroken.output, unbroken.output
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(os.listdir(unbroken.folder / "merged"))
    assert unbroken.metrics("loss") == losses and unbroken.json("summary.json")["steps"] == STEPS

    unbroken.command.append("epochs=2")
    unbroken.done()
    assert f"the schedule of all {2 * STEPS} steps" in unbroken.output, unbroken.output
    longer = unbroken.metrics("loss")
    assert len(longer) == 2 * STEPS and {step: longer[step] for step in losses} == losses
    assert unbroken.metrics("lr")[STEPS + 1] > unbroken.metrics("lr")[STEPS]
    unbroken.command.append("epochs=1")
    assert "`epochs` was 2, now 1" in unbroken.fails()


def a_finished_folder(recipe: Recipe) -> None:
    """A new run there deletes what the last one left, if told to."""
    first = recipe.run("save_every_n_steps=5").done()
    overwrite = "overwrite_output_dir=true"
    again = Run(recipe.program, first.folder, "max_steps_per_epoch=3", overwrite).done()
    checkpoints = [folder.name for folder in (again.folder / "checkpoints").iterdir()]
    assert checkpoints == ["step_3"], checkpoints
    assert len(again.metrics("loss")) == 3
    refused = Run(recipe.program, first.folder).fails()
    assert "holds a run that is finished" in refused, refused
    foreign = recipe.folder / "foreign"
    (foreign / "adapter").mkdir(parents=True)
    (foreign / "adapter/mine").write_text("")
    refused = Run(recipe.program, foreign, overwrite).fails()
    assert "which no run has left" in refused and (foreign / "adapter").exists(), refused


def an_adapter_to_begin_with(recipe: Recipe) -> None:
    """The second run's first loss is below the first's: it goes on where that ended."""
    first = recipe.run().done()
    second = recipe.run(f"adapter_checkpoint={first.folder / 'adapter'}").done()
    assert second.metrics("loss")[1] < first.metrics("loss")[1] - 0.1
    refused = recipe.run(f"adapter_checkpoint={first.folder / 'adapter'}", "lora_rank=4").fails()
    assert "`lora_rank` is 4, the adapter's 8" in refused, refused


def an_adapter_of_another_kind(recipe: Recipe) -> None:
    """It is gone on with as it is; a run that was stopped too, whose adapter is gone by then."""
    embedded = pathlib.Path(__file__).parents[2] / "examples/assets/tiny"
    plain = recipe.folder / "plain.yaml"
    plain.write_text(f"""
checkpoint_dir: {embedded}
dataset: {embedded}/alpaca_train.json
max_seq_len: 128
optimizer.lr: 1e-3
lr_scheduler.num_warmup_steps: 0
""")
    for number, settings in enumerate([
        ["use_dora=true", "target_modules=[q_proj, down_proj]", "rank_pattern={q_proj: 2}"],
        ["modules_to_save=[norm, embed_tokens]", "lora_rank=4", "bias=all"],
        ["init_lora_weights=eva", "lora_rank=6", "target_modules=all-linear"],
    ]):
        first = recipe.run("--config", str(plain), *settings, "save_every_n_steps=5").done()
        adapter = recipe.folder / f"adapter{number}"
        shutil.copytree(first.folder / "adapter", adapter)
        second = recipe.run("--config", str(plain), f"adapter_checkpoint={adapter}", "save_every_n_steps=5").done()
        assert second.metrics("loss")[1] < first.metrics("loss")[1] - 0.1
        kinds = [run.json("adapter/adapter_config.json") for run in (first, second)]
        for kind in kinds:
            kind["target_modules"] = sorted(kind["target_modules"])
        assert kinds[0] == kinds[1], kinds
        for run in (first, second):
            shutil.rmtree(adapter, ignore_errors=True)
            losses = run.metrics("loss")
            shutil.rmtree(run.folder / "checkpoints" / f"step_{STEPS}")
            (run.folder / "summary.json").unlink()
            run.command.append("resume_from_checkpoint=true")
            if run is second:
                refused = run.fails()
                assert "had another configuration" in refused, refused
                shutil.copytree(first.folder / "adapter", adapter)
            assert run.done().metrics("loss") == losses, settings


def an_adapter_without_a_file(recipe: Recipe) -> None:
    """What the embedded default says of its own adapters contradicts no other, and is nothing for another model."""
    first = recipe.run("lora_attn_modules=[q_proj]", "apply_lora_to_mlp=false", "lora_rank=4").done()
    adapter = f"adapter_checkpoint={first.folder / 'adapter'}"
    embedded = pathlib.Path(__file__).parents[2] / "examples/assets/tiny"
    base = [f"checkpoint_dir={embedded}", f"dataset={embedded}/alpaca_train.json", "max_seq_len=128"]
    for settings in [[adapter], [adapter, *base]]:
        second = recipe.run(*settings).done()
        kinds = [run.json("adapter/adapter_config.json") for run in (first, second)]
        for key in ["r", "target_modules"]:
            assert kinds[0][key] == kinds[1][key], kinds
    refused = recipe.run(adapter, *base, "lora_rank=8").fails()
    assert "`lora_rank` is 8, the adapter's 4" in refused, refused


def merged_goes_on(recipe: Recipe, run: Run, settings: list[str]) -> None:
    """The merged model has the same records by the same tokens, and goes on where the run ended: by products of f32, as bf16
    ones, where the processor has them, round a sum of weights otherwise than its parts."""
    settings = [*settings, "matmul_precision=highest"]
    merged = recipe.run(f"checkpoint_dir={run.folder / 'merged'}", *settings[1:]).done()
    adapted = recipe.run(*settings, f"adapter_checkpoint={run.folder / 'adapter'}").done()
    assert abs(merged.metrics("loss")[1] - adapted.metrics("loss")[1]) < 1e-3


def a_base_in_a_gguf_file(recipe: Recipe) -> None:
    """It is trained on as it is packed, by the tokenizer in the file; the merged model is a folder with one."""
    root = pathlib.Path(__file__).parents[2]
    base = recipe.folder / "packed.gguf"
    shutil.copy(root / "tests/fixtures/gguf/mistral.gguf", base)
    settings = [f"checkpoint_dir={base}", f"dataset={root}/examples/assets/tiny/alpaca_train.json", "max_seq_len=64", "prompt_only=keep",
                "optimizer.lr=1e-2", "lr_scheduler.num_warmup_steps=0"]
    run = recipe.run(*settings, "save_every_n_steps=5", "save_adapter_weights_only=false").done()
    losses = run.metrics("loss")
    assert losses[STEPS] < losses[1], losses
    for folder in ["adapter", "checkpoints/step_5"]:
        assert run.json(f"{folder}/adapter_config.json")["base_model_name_or_path"] == str(base)
    tensors = run.tensors("merged/model.safetensors")
    assert {tensor["dtype"] for tensor in tensors.values()} == {"F32"}
    for name in ["config.json", "tokenizer.model", "tokenizer_config.json"]:
        assert (run.folder / "merged" / name).exists(), name
    merged_goes_on(recipe, run, settings)

    shutil.rmtree(run.folder / "checkpoints" / f"step_{STEPS}")
    run.command.append("resume_from_checkpoint=true")
    assert run.done().metrics("loss") == losses
    base.rename(recipe.folder / "moved.gguf")
    missing = run.fails()
    assert str(base) in missing and "No such file" in missing, missing
    run.command.append(f"checkpoint_dir={recipe.folder / 'moved.gguf'}")
    assert run.done().metrics("loss") == losses
    folder = recipe.run(f"checkpoint_dir={recipe.folder}", *settings[1:]).fails()
    assert "name the one to load, such as" in folder, folder


def a_base_as_meta_releases_it(recipe: Recipe) -> None:
    """The files of two processes and tiktoken's words, packed as they are loaded; the merged model is a folder of Hugging
    Face's with a tokenizer of its own."""
    root = pathlib.Path(__file__).parents[2]
    base = root / "tests/fixtures/meta/llama3_sharded"
    settings = [f"checkpoint_dir={base}", f"dataset={root}/examples/assets/tiny/alpaca_train.json", "max_seq_len=64", "prompt_only=keep",
                "optimizer.lr=1e-2", "lr_scheduler.num_warmup_steps=0"]
    run = recipe.run(*settings, "save_adapter_weights_only=false").done()
    losses = run.metrics("loss")
    assert losses[STEPS] < losses[1], losses
    assert run.json("adapter/adapter_config.json")["base_model_name_or_path"] == str(base)
    assert run.json("merged/config.json")["rope_scaling"]["factor"] == 32
    for name in ["model.safetensors", "tokenizer.json", "tokenizer_config.json"]:
        assert (run.folder / "merged" / name).exists(), name
    merged_goes_on(recipe, run, settings)

    packed = recipe.run(*settings, "quantize_base=int8", "save_adapter_weights_only=false").done()
    assert abs(packed.metrics("loss")[1] - losses[1]) < 0.1, (packed.metrics("loss"), losses)
    assert (packed.folder / "merged/model.safetensors").exists()
    cut = recipe.folder / "cut"
    shutil.copytree(base, cut)
    (cut / "consolidated.00.pth").unlink()
    missing = recipe.run(f"checkpoint_dir={cut}", *settings[1:]).fails()
    assert "consolidated.00.pth is not in this folder" in missing, missing


def first_values(recipe: Recipe) -> None:
    """Those that need data or random vectors; a run that goes on has the same."""
    for word, *more in [["eva"], ["pissa_niter_2"], ["loftq", "quantize_base=int8"]]:
        run = recipe.run(f"init_lora_weights={word}", *more, "save_every_n_steps=5").done()
        losses = run.metrics("loss")
        shutil.rmtree(run.folder / "checkpoints" / f"step_{STEPS}")
        run.command.append("resume_from_checkpoint=true")
        assert run.done().metrics("loss") == losses, word
    eva = recipe.run("init_lora_weights=eva", "eva_rho=1").done()
    assert eva.json("adapter/adapter_config.json")["rank_pattern"] == {}
    refused = recipe.run("init_lora_weights=false").fails()
    assert "pissa_niter_N, olora, eva or loftq" in refused, refused
    refused = recipe.run("init_lora_weights=loftq").fails()
    assert "set `quantize_base` to nf4 or int8 too" in refused, refused


def mistakes(recipe: Recipe) -> None:
    embedded = pathlib.Path(__file__).parents[2] / "examples/assets/tiny"
    for override, message in [
        (f"checkpoint_dir={embedded}", "`dataset` is not set"),
        ("--lora_rnk=4", "unknown key `lora_rnk`; did you mean `lora_rank`?"),
        ("--lora_rank=1000000000", "GB of memory, and this machine has"),
        ("target_modules=[down_prj]", "target_modules: no module is called `down_prj`; did you mean `down_proj`?"),
        ("modules_to_save=[lm_hed]", "modules_to_save: no module is called `lm_hed`; did you mean `lm_head`?"),
        ("layers_to_transform=[0, 99]", "layers_to_transform: the model has no layer 99"),
        ("quantize_base=nf4", "quantize_base: `layers.0.mlp.w2`: shape: nf4 packs 64 numbers of a row together"),
    ]:
        errors = recipe.run(override).fails()
        assert message in errors, errors
    config = recipe.folder / "run.yaml"
    config.write_text("epochs: 3\n")
    last = recipe.run("--lora_rank=0", "--config", str(config)).fails()
    assert "command line: `lora_rank` is 0" in last, last
    wrong = subprocess.run(
        recipe.run().command,
        capture_output=True,
        text=True,
        env={**os.environ, "BURN_DEVICE": "foo"},
    )
    assert wrong.returncode == 1 and "not built for `foo`" in wrong.stderr, wrong.stderr
    assert "panicked" not in wrong.stderr, wrong.stderr


def an_interrupt(recipe: Recipe) -> None:
    """Ctrl-C or a closed terminal loses no complete step; what goes on equals a run that was not interrupted, to the bit."""
    unbroken = recipe.run("max_steps_per_epoch=60").done()
    def heeds_terminal() -> None:
        """As where no `nohup` began these tests."""
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    for number in [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]:
        run = recipe.run("max_steps_per_epoch=60")
        pipe = subprocess.PIPE
        process = subprocess.Popen(run.command, stdout=pipe, stderr=pipe, text=True, preexec_fn=heeds_terminal)
        metrics = run.folder / "metrics.jsonl"
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 10:
            assert process.poll() is None, "the run ended by itself"
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 128 + number, process.returncode
        assert "is saved in" in errors, errors
        assert not (run.folder / "summary.json").exists()
        run.command.append("resume_from_checkpoint=true")
        assert run.done().metrics("loss") == unbroken.metrics("loss")


def killed_again_and_again(recipe: Recipe) -> None:
    """One command, wherever its processes are killed, comes to what a run comes to that is left alone."""
    embedded = pathlib.Path(__file__).parents[2] / "examples/assets/tiny"
    settings = [f"checkpoint_dir={embedded}", f"dataset={embedded}/alpaca_train.json", "max_seq_len=64", "report_samples=0",
                "max_steps_per_epoch=60", "save_every_n_steps=1", "keep_last_n_checkpoints=2", "validation_split=0.1",
                "run_val_every_n_steps=7", "save_adapter_weights_only=false"]
    unbroken = recipe.run(*settings).done()
    run = recipe.run(*settings, "resume_from_checkpoint=auto")
    kills = 0
    for lines in [0, 1, 5, 12, 20, 21, 40, 64]:
        process = subprocess.Popen(run.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        metrics = run.folder / "metrics.jsonl"
        while process.poll() is None:
            if metrics.exists() and len(metrics.read_text().splitlines()) >= lines:
                process.kill()
                kills += 1
                break
            time.sleep(0.002)
        process.wait()
    assert kills >= 4, kills
    run.done()
    for key in ["loss", "val_loss"]:
        assert run.metrics(key) == unbroken.metrics(key), key
    for name in ["adapter/adapter_model.safetensors", "merged/model.safetensors"]:
        assert (run.folder / name).read_bytes() == (unbroken.folder / name).read_bytes(), name
    assert run.json("summary.json")["val_loss"] == unbroken.json("summary.json")["val_loss"]


def main(program: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(program, folder)
        for check in [
            validation,
            the_best_validation,
            an_interrupted_validation,
            how_long_and_how_much,
            a_step_that_is_no_number,
            half_precision,
            variants,
            notes,
            several_data_sets,
            dry_run,
            records_of_other_formats,
            going_on,
            a_finished_folder,
            an_adapter_to_begin_with,
            an_adapter_of_another_kind,
            an_adapter_without_a_file,
            a_base_in_a_gguf_file,
            a_base_as_meta_releases_it,
            first_values,
            an_interrupt,
            killed_again_and_again,
            mistakes,
        ]:
            started = time.time()
            check(recipe)
            print(f"{check.__name__}: as documented ({time.time() - started:.0f} s)")


if __name__ == "__main__":
    main(sys.argv[1])
