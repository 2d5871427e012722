#!/usr/bin/env python3
"""Compares adapters of every kind with PEFT: logits, loss, gradients, AdamW's steps, merged models, new
adapters, combinations and GGUF files.

    python check_adapters.py PROGRAM [--only SUBSTRING] [--list] [--reference-only]

PROGRAM is an example of this repository, built. It is called in these ways, and writes what `--out` names:

    PROGRAM logits    --model DIR [--adapter DIR] --inputs FILE --out FILE
    PROGRAM gradients --model DIR --adapter DIR --inputs FILE --out FILE
    PROGRAM train     --model DIR --adapter DIR --inputs FILE --steps N --out DIR
    PROGRAM init      --model DIR --config adapter_config.json --seed N --inputs FILE --steps N
                      --convert true|false --out DIR
    PROGRAM merge     --model DIR --adapter DIR --out DIR
    PROGRAM combine   --model DIR --adapters DIR,DIR --weights 0.7,0.3 --combination cat
                      [--density 0.5] --out DIR
    PROGRAM gguf      --model DIR --adapter DIR --out FILE

Models and adapters are tiny and random, made by transformers and PEFT. `inputs` holds `input_ids` and
`labels`, -100 where there is no label. `logits` writes `logits`; `gradients` writes `loss` and a tensor
for each that is trained, named as in PEFT's file. Training is AdamW (rate 1e-3, betas 0.9 and 0.999,
epsilon 1e-8, weight decay 0.01 on all) on one batch without dropout. Each case is a line; exits with 1
if one differs. `--reference-only` leaves PROGRAM out and tells whether PEFT agrees with itself.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is a local folder

import torch
import transformers
from safetensors.torch import load_file, save_file

import adapter_cases as cases
from adapter_reference import (
    CONFIG, Bases, Failure, adapt, add_exactly, begin, combine, difference, gradients_of, load_base,
    logits_of, lora_config, make_adapter, randomize_adapter, reload, require, take_steps, trained,
)
from gguf_files import expected_adapter, read_adapter

LOGITS, LOSS, GRADIENTS = 1e-4, 1e-5, 1e-5
# The mean over all trained tensors: one gradient near 0 whose sign differs moves one value by 1e-3.
TRAINED = 1e-6
GGUF = 1e-6  # scales are folded into the tensors
STEPS, SEED = 2, 7
TIMEOUT = 1200  # seconds
SPREAD = 1.5  # between two random initializations of the same kind


class Refused(Exception):
    """PROGRAM said no, and why; a crash is something else."""


def first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


class Program:
    def __init__(self, path):
        self.path = Path(path).resolve()

    def __call__(self, verb, out, **options):
        """Runs a verb and returns `out`."""
        command = [self.path, verb]
        for key, value in (options | {"out": out}).items():
            command += [f"--{key}", str(value)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        if run.returncode != 0:
            said = (run.stderr.strip() or "nothing on stderr").splitlines()
            reason = next((line for line in said if line.startswith("error:")), None)
            if reason is None:
                raise Failure(f"exit {run.returncode}: {said[-1]}")
            raise Refused(reason)
        return out


class Case:
    """One line of output: the largest difference, or all that is wrong."""

    def __init__(self, bases, program, name, model, folder):
        self.bases, self.program, self.name, self.model, self.folder = bases, program, name, model, folder
        self.path, self.inputs = bases.inputs(model)
        self.largest, self.wrong = 0.0, []

    def check(self, label, tolerance, compute):
        """`compute` gives a difference; written so that NaN fails."""
        try:
            found = compute()
        except (Failure, Refused, OSError, RuntimeError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
            self.wrong.append(f"{label}: {first_line(error)}")
            return
        self.largest = max(self.largest, found)
        if not found <= tolerance:
            self.wrong.append(f"{label}: {found:.2g}, allowed {tolerance:.0e}")

    def base(self):
        return self.bases.model(self.model)

    def begin(self, settings):
        """The base with a new adapter, as PEFT begins it."""
        return begin(self.base(), settings, self.inputs)

    def call(self, verb, out, **options):
        return self.program(verb, self.folder / out, model=self.bases.folder(self.model), **options)

    def logits(self, adapter):
        """PROGRAM's for an adapter's folder."""
        out = self.call("logits", "logits.safetensors", adapter=adapter, inputs=self.path)
        return load_file(out)["logits"]

    def peft_logits(self, adapter):
        return logits_of(reload(self.base(), adapter), self.inputs)

    def check_folder(self, label, adapter, expected):
        """PEFT's and PROGRAM's logits for a folder that PROGRAM wrote."""
        self.check(f"{label}, in PEFT", LOGITS, lambda: difference(self.peft_logits(adapter), expected))
        self.check(f"{label}, read again", LOGITS, lambda: difference(self.logits(adapter), expected))


# Adapters that PEFT made.

def reference_model(case, live, adapter):
    """The model whose values are expected; PEFT must agree with itself, or a reason is written down."""
    if case.name in cases.LIVE:
        return live
    model = reload(case.base(), adapter)
    if case.name not in cases.READ_BACK:
        case.check("PEFT reads back", 1e-5, lambda: difference(
            logits_of(model, case.inputs), logits_of(live, case.inputs)))
    return model


def gradients_difference(case, adapter, expected):
    found = load_file(case.call("gradients", "gradients.safetensors", adapter=adapter, inputs=case.path))
    found.pop("loss")
    same = {id(expected[key]) for key in found if key in expected}  # two names of a tied tensor are one
    missing = [key for key, t in expected.items() if key not in found and id(t) not in same]
    require(not missing, f"no gradient of {missing[:3]} ({len(missing)})")
    unexpected = [key for key in found if key not in expected]
    require(not unexpected, f"PEFT trains no {unexpected[:3]} ({len(unexpected)})")
    # `max` of torch, not of Python, which may pass over NaN.
    return torch.tensor([difference(t, expected[key]) for key, t in found.items()]).max().item()


def loss_difference(case, expected):
    return abs(load_file(case.folder / "gradients.safetensors")["loss"].item() - expected)


def trained_difference(model, expected):
    """The mean over all values that were trained."""
    found = trained(model)
    require(found.keys() == expected.keys(), f"other tensors: {sorted(found.keys() ^ expected.keys())[:3]}")
    total = sum((found[key] - p).abs().sum().item() for key, p in expected.items())
    return total / sum(p.numel() for p in expected.values())


def check_training(case, adapter, model):
    """Two steps by PEFT and by PROGRAM, whose folder PEFT reads."""
    take_steps(model, case.inputs, STEPS)
    expected = logits_of(model, case.inputs)
    if not case.program:
        return
    out = case.folder / "trained"
    case.check("train", 0, lambda: case.call(
        "train", "trained", adapter=adapter, inputs=case.path, steps=STEPS) and 0)
    if out.exists():
        case.check_folder("trained", out, expected)
        case.check("trained tensors", TRAINED, lambda: trained_difference(reload(case.base(), out), trained(model)))


def merged_logits(case, adapter):
    return logits_of(load_base(case.call("merge", "merged", adapter=adapter)), case.inputs)


def unless_refused(allowed, compute):
    """Where it is allowed, a refusal is as good as the right values."""
    try:
        return compute()
    except Refused:
        if allowed:
            return 0.0
        raise


def check_merged(case, adapter, expected):
    case.check("merged", LOGITS, lambda: unless_refused(
        case.name in cases.MAY_NOT_MERGE, lambda: difference(merged_logits(case, adapter), expected)))


def check_adapter(case, settings):
    adapter = case.folder / "adapter"
    live = make_adapter(case.bases, case.name, case.model, settings, adapter)
    model = reference_model(case, live, adapter)
    logits = logits_of(model, case.inputs)
    loss, gradients = gradients_of(model, case.inputs)
    if case.program:
        case.check("logits", LOGITS, lambda: difference(case.logits(adapter), logits))
        case.check("gradients", GRADIENTS, lambda: gradients_difference(case, adapter, gradients))
        case.check("loss", LOSS, lambda: loss_difference(case, loss))
        check_merged(case, adapter, logits)
    check_training(case, adapter, model)


def check_one(case, settings):
    """What PEFT and PROGRAM compute from each other's folders; they train in different ways."""
    adapter = case.folder / "adapter"
    make_adapter(case.bases, case.name, case.model, settings, adapter)
    logits = case.peft_logits(adapter)
    if not case.program:
        return
    case.check("logits", LOGITS, lambda: difference(case.logits(adapter), logits))
    check_merged(case, adapter, logits)

    def written():
        out = case.call("train", "trained", adapter=adapter, inputs=case.path, steps=STEPS)
        moved = difference(case.logits(out), logits)
        require(moved > LOGITS, "the training changed nothing")
        return difference(case.peft_logits(out), case.logits(out))

    def begun():
        lora_config(settings).save_pretrained(case.folder)
        out = case.call("init", "begun", config=case.folder / CONFIG, seed=SEED, inputs=case.path,
                        steps=0, convert="false")
        check_spread(trained(reload(case.base(), out)), trained(case.begin(settings)))
        return difference(case.peft_logits(out), logits_of(case.base(), case.inputs))
    case.check("trained, in PEFT", LOGITS, written)
    if not case.model.endswith("growing"):  # a configuration alone says nothing of the vocabulary
        case.check("new, in PEFT", LOGITS, begun)


def check_doubtful(case, settings):
    """Refused with an error, or read as PEFT reads it."""
    adapter = case.folder / "adapter"
    make_adapter(case.bases, case.name, case.model, settings, adapter)
    expected = case.peft_logits(adapter)
    if case.program:
        case.check("read without a word", LOGITS, lambda: unless_refused(
            True, lambda: difference(case.logits(adapter), expected)))


def check_bad_inputs(case, ids):
    """An error, no crash."""
    path = case.folder / "ids.safetensors"
    save_file({"input_ids": torch.tensor(ids, dtype=torch.int32)}, path)
    if case.program:
        def compute():
            try:
                case.call("logits", "logits.safetensors", inputs=path)
            except Refused as error:
                require("input_ids" in str(error), f"it says {error}")
                return 0.0
            raise Failure("logits of no tokens")
        case.check("ids", 0, compute)


# Adapters that PROGRAM makes.

def check_spread(found, expected):
    """The tensors' sizes are about those that PEFT draws."""
    require(found.keys() == expected.keys(), f"other tensors: {sorted(found.keys() ^ expected.keys())[:3]}")
    for key, p in expected.items():
        require(found[key].shape == p.shape, f"{key} is {list(found[key].shape)}, PEFT's {list(p.shape)}")
        ours, theirs = (t.detach().pow(2).mean().sqrt().item() for t in (found[key], p))
        right = theirs / SPREAD <= ours <= theirs * SPREAD
        require(right, f"{key} has values of size {ours:.2g}, PEFT's {theirs:.2g}")
    return 0.0


def check_patterns(folder, expected):
    """Ranks and alphas of layers that differ, where EVA chose them."""
    if expected.init_lora_weights == "eva":
        found = json.loads((folder / CONFIG).read_text())
        for key in ("rank_pattern", "alpha_pattern"):
            theirs = getattr(expected, key)
            require(found[key] == theirs, f"{key} is {found[key]}, PEFT's {theirs}")
    return 0.0


def is_random(settings):
    kind = settings.get("init_lora_weights", True)
    return kind not in ("pissa", "olora")


def check_start(case, settings, out):
    """A new adapter changes nothing, and is as PEFT's."""
    base = logits_of(case.base(), case.inputs)
    case.check_folder("new", out, base)
    case.check("new tensors", 0, lambda: check_spread(
        trained(reload(case.base(), out)), trained(case.begin(settings))))
    case.check("patterns", 0, lambda: check_patterns(out, case.begin(settings).peft_config["default"]))


def check_steps(case, settings, start, out):
    """From what PROGRAM drew, or for both from the weights, the same steps lead to the same model."""
    first = reload(case.base(), start) if is_random(settings) else case.begin(settings)
    case.check_folder("trained", out, logits_of(take_steps(first, case.inputs, STEPS), case.inputs))


def check_converted(case, config, steps):
    """A folder for the original weights: a plain LoRA of twice the rank."""
    out = case.call("init", "converted", config=config, seed=SEED, inputs=case.path, steps=STEPS, convert="true")
    expected = case.logits(out)
    case.check("converted, in PEFT", LOGITS, lambda: difference(case.peft_logits(out), expected))
    if steps:
        case.check("converted", LOGITS, lambda: difference(expected, case.logits(steps)))
    return 0.0


def check_new(case, settings):
    lora_config(settings).save_pretrained(case.folder)
    config = case.folder / CONFIG
    kind = settings.get("init_lora_weights", True)

    def init(steps):
        return case.call("init", f"steps{steps}", config=config, seed=SEED, inputs=case.path,
                         steps=steps, convert="false")

    def compute():
        steps = None
        # Random ones cannot be read again unless converted, others not as they are meant.
        if "niter" not in str(kind) and case.name not in cases.MAY_NOT_REPEAT:
            start, steps = init(0), init(STEPS)
            check_start(case, settings, start)
            check_steps(case, settings, start, steps)
        if str(kind).startswith(("pissa", "olora")):
            unless_refused(case.name in cases.MAY_NOT_CONVERT, lambda: check_converted(case, config, steps))
        return 0.0
    take_steps(case.begin(settings), case.inputs, STEPS)  # PEFT takes the settings
    if case.program:
        case.check("init", 0, compute)


# Combinations.

def make_two(case, settings):
    folders = [case.folder / "first", case.folder / "second"]
    models = []
    for i, (folder, own) in enumerate(zip(folders, settings)):
        torch.manual_seed(i)
        models.append(randomize_adapter(adapt(case.base(), own)))
        models[-1].save_pretrained(folder)
    return folders, models


def check_combination(case, settings, weights, kind, options):
    folders, models = make_two(case, settings)
    exact = case.name in cases.EXACT_SUMS
    expected = logits_of(
        add_exactly(case.base(), models, weights) if exact
        else combine(case.bases, case.model, folders, weights, kind, options), case.inputs)
    if case.program:
        def compute():
            out = case.call("combine", "combined", adapters=",".join(map(str, folders)),
                            weights=",".join(map(str, weights)), combination=kind, **options)
            case.check_folder("combined", out, expected)
            return 0.0
        case.check("combine", 0, lambda: unless_refused(case.name in cases.MAY_NOT_COMBINE, compute))


# GGUF files.

def gguf_difference(found, expected):
    (metadata, tensors), (expected_metadata, expected_tensors) = found, expected
    require(metadata == expected_metadata, f"other metadata: {metadata}")
    require(tensors.keys() == expected_tensors.keys(),
            f"other tensors: {sorted(tensors.keys() ^ expected_tensors.keys())[:3]}")
    return torch.tensor([difference(t, expected_tensors[name]) for name, t in tensors.items()]).max().item()


def check_gguf(case, settings):
    adapter = case.folder / "adapter"
    make_adapter(case.bases, case.name, case.model, settings, adapter)
    if case.program:
        def compute():
            found = read_adapter(case.call("gguf", "adapter.gguf", adapter=adapter))
            return gguf_difference(found, expected_adapter(reload(case.base(), adapter), found))
        case.check("tensors", GGUF, compute)


def check_no_gguf(case, settings, word):
    adapter = case.folder / "adapter"
    make_adapter(case.bases, case.name, case.model, settings, adapter)
    if case.program:
        def compute():
            try:
                case.call("gguf", "adapter.gguf", adapter=adapter)
            except Refused as error:
                require("llama.cpp" in str(error) and word in str(error), f"it says {error}")
                return 0.0
            raise Failure("a file that llama.cpp does not take")
        case.check("refused", 0, compute)


# All.

def table():
    """Name -> model, check, and what the check is told."""
    found = {}
    for rows, check in [(cases.ADAPTERS, check_adapter), (cases.ONE, check_one), (cases.DOUBTFUL, check_doubtful),
                        (cases.NEW, check_new), (cases.COMBINATIONS, check_combination),
                        (cases.EXACT_SUMS, check_combination), (cases.GGUF, check_gguf),
                        (cases.NO_GGUF, check_no_gguf), (cases.BAD_INPUTS, check_bad_inputs)]:
        found |= {name: (model, check, rest) for name, (model, *rest) in rows.items()}
    return found


def run_case(bases, program, name):
    model, check, rest = table()[name]
    with tempfile.TemporaryDirectory() as folder:
        case = Case(bases, program, name, model, Path(folder))
        try:
            check(case, *rest)
        except (Failure, RuntimeError, ValueError, KeyError, AttributeError) as error:
            case.wrong.append(f"PEFT: {type(error).__name__}: {str(error)[:300]}")
    return case


def report(case):
    if case.wrong:
        print("FAIL", f"{case.name}:", "; ".join(case.wrong), flush=True)
    else:
        reason = cases.LIVE.get(case.name) or cases.READ_BACK.get(case.name)
        print("ok  ", f"{case.name}: {case.largest:.2g}", f"({reason})" if reason else "", flush=True)
    return not case.wrong


def quieten():
    torch.set_num_threads(1)  # the models are tiny
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")  # those of PEFT that count are looked for in `reload`


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", nargs="?", help="the example, built")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--list", action="store_true", help="name the cases")
    parser.add_argument("--reference-only", action="store_true", help="PEFT alone")
    args = parser.parse_args()
    names = [name for name in table() if args.only in name]
    if args.list:
        print("\n".join(names))
        return
    if not args.program and not args.reference_only:
        parser.error("PROGRAM is missing")
    quieten()
    program = None if args.reference_only else Program(args.program)
    with tempfile.TemporaryDirectory() as root:
        bases, start = Bases(Path(root)), time.time()
        passed = sum(report(run_case(bases, program, name)) for name in names)
    print(f"{passed} passed, {len(names) - passed} failed ({time.time() - start:.0f} s)")
    sys.exit(passed != len(names))


if __name__ == "__main__":
    main()
