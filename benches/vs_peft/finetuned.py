"""Finetunes SmolLM2 by the recipe on all but the last 100 rows of an Alpaca file, and tells how good
it is on these, before and after: the perplexity of their answers, and how often it finds the right
answer among those of three others; by this crate, and by transformers with the saved adapter in
PEFT. Exits with 1 if these differ. Called by run.sh --finetuned."""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import time

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from alpaca import IGNORE_INDEX, SMOLLM2_ENDS, sample
from compare import cpu_name

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tests" / "python"))
from held_out import choice_records  # noqa: E402

HELD_OUT = 100
LONGEST = 512  # tokens of a held-out record
RECIPE = [
    "lora_attn_modules=[q_proj,k_proj,v_proj,output_proj]",
    "apply_lora_to_mlp=true",
    "lora_rank=8",
    "lora_alpha=16",
    "train_on_input=false",
    "max_seq_len=256",
    "batch_size=8",
    "optimizer.lr=5e-4",
    "lr_scheduler.num_warmup_steps=5",
    "clip_grad_norm=1.0",
    "save_adapter_weights_only=true",
    "overwrite_output_dir=true",
    "report_samples=0",
]
PERPLEXITY = "answer perplexity"
# Of the perplexity, as a part of it; the shares of right answers must be the same.
TOLERANCE = 1e-4
NAMES = {
    PERPLEXITY: "perplexity of the answers",
    "acc": "right of four answers",
    "acc_norm": "the same by character",
}

Row = tuple[list[int], list[int]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--alpaca", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--recipe", required=True, help="the example lora_alpaca, built")
    parser.add_argument("--evaluate", required=True, help="the example evaluate, built")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder of the run")
    parser.add_argument("--steps", type=int, default=50, help="of 8 rows")
    parser.add_argument("--questions", type=int, default=HELD_OUT, help="of the held-out rows")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all")
    return parser.parse_args()


def split(args: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """The held-out rows and the questions made of them; writes these and the others to files."""
    rows = json.loads(args.alpaca.read_text("utf-8"))
    train, held_out = rows[:-HELD_OUT], rows[-HELD_OUT:]
    questions = list(choice_records(held_out))[: args.questions]
    args.out.mkdir(parents=True, exist_ok=True)
    for name, part in {"train": train, "held_out": held_out}.items():
        (args.out / f"{name}.json").write_text(json.dumps(part))
    lines = [json.dumps(question) + "\n" for question in questions]
    (args.out / "choices.jsonl").write_text("".join(lines))
    return held_out, questions


def environment(args: argparse.Namespace) -> dict[str, str]:
    return os.environ | {"RAYON_NUM_THREADS": str(args.threads)}


def train(args: argparse.Namespace) -> pathlib.Path:
    """The folder of the adapter."""
    keys = [f"checkpoint_dir={args.model}", f"dataset={args.out / 'train.json'}"]
    keys += [f"max_steps_per_epoch={args.steps}", f"output_dir={args.out / 'run'}", *RECIPE]
    subprocess.run([args.recipe, *keys], check=True, env=environment(args))
    return args.out / "run" / "adapter"


def ours(args: argparse.Namespace, adapter: pathlib.Path) -> list[dict]:
    """The scores before and after."""
    command = [args.evaluate, "--json", "--model", args.model, "--adapter", adapter]
    command += ["--records", args.out / "held_out.json", "--max-seq-len", str(LONGEST)]
    command += ["--choices", args.out / "choices.jsonl"]
    found = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment(args)
    )
    scores = json.loads(found.stdout)
    return [scores["base"], scores["finetuned"]]


# The same in Python.


def log_prob(model: torch.nn.Module, row: Row) -> tuple[float, int]:
    """The logarithm of the probability of the tokens with labels, and their number."""
    tokens, labels = (torch.tensor(part) for part in row)
    kept = labels[1:] != IGNORE_INDEX
    logits = model(input_ids=tokens[None]).logits[0, :-1][kept].double()
    found = torch.log_softmax(logits, -1).gather(1, labels[1:][kept][:, None])
    return found.sum().item(), int(kept.sum())


def perplexity(model: torch.nn.Module, tokenizer: Tokenizer, records: list[dict]) -> float:
    samples = [sample(record, tokenizer, SMOLLM2_ENDS) for record in records]
    found = [log_prob(model, (ids[:LONGEST], labels[:LONGEST])) for ids, labels in samples]
    total, count = (sum(column) for column in zip(*found, strict=True))
    return math.exp(-total / count)


def choice_row(tokenizer: Tokenizer, context: str, choice: str) -> Row:
    """What the text of both has after as many tokens as the context's, as lm-eval has it."""
    ids = tokenizer.encode(f"{context} {choice}", add_special_tokens=False).ids
    given = len(tokenizer.encode(context, add_special_tokens=False).ids)
    return ids, [IGNORE_INDEX] * given + ids[given:]


def likeliest(log_probs: list[float]) -> int:
    return max(range(len(log_probs)), key=log_probs.__getitem__)


def scores(model: torch.nn.Module, tokenizer: Tokenizer, data: tuple[list[dict], ...]) -> dict:
    held_out, questions = data
    choices, right, right_by_length = [], 0, 0
    for question in questions:
        rows = [choice_row(tokenizer, question["context"], text) for text in question["choices"]]
        found = [log_prob(model, row)[0] for row in rows]
        by_length = [
            log_prob / len(text) for log_prob, text in zip(found, question["choices"], strict=True)
        ]
        choices.append(found)
        right += likeliest(found) == question["answer"]
        right_by_length += likeliest(by_length) == question["answer"]
    return {
        PERPLEXITY: perplexity(model, tokenizer, held_out),
        "acc": right / len(questions),
        "acc_norm": right_by_length / len(questions),
        "choices": choices,
    }


def theirs(
    args: argparse.Namespace, adapter: pathlib.Path, data: tuple[list[dict], ...]
) -> list[dict]:
    """The scores before and after."""
    torch.set_num_threads(args.threads)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    with torch.inference_mode():
        with model.disable_adapter():
            before = scores(model, tokenizer, data)
        return [before, scores(model, tokenizer, data)]


def differ(mine: dict, other: dict) -> bool:
    is_near = math.isclose(mine[PERPLEXITY], other[PERPLEXITY], rel_tol=TOLERANCE)
    shares = ("acc", "acc_norm")
    return not is_near or any(not math.isclose(mine[name], other[name]) for name in shares)


def largest_difference(mine: list[dict], other: list[dict]) -> float:
    """Of the logarithms of the choices' probabilities, before and after."""
    flat = [
        [log_prob for score in side for choice in score["choices"] for log_prob in choice]
        for side in (mine, other)
    ]
    return max(abs(a - b) for a, b in zip(*flat, strict=True))


def print_table(mine: list[dict], other: list[dict]) -> None:
    print("\n| | before | after | PEFT, before | after |\n|---|---|---|---|---|")
    for figure, name in NAMES.items():
        digits = 4 if figure == PERPLEXITY else 2
        cells = [f"{score[figure]:.{digits}f}" for score in (*mine, *other)]
        print(f"| {name} | {' | '.join(cells)} |")
    errors = [abs(a[PERPLEXITY] / b[PERPLEXITY] - 1) for a, b in zip(mine, other, strict=True)]
    print(
        f"\nperplexities differ by {max(errors):.1e} of themselves, logarithms of a choice's ",
        end="",
    )
    print(f"probability by {largest_difference(mine, other):.1e} at most")


def main(args: argparse.Namespace) -> None:
    disable_progress_bar()
    data = split(args)
    started = time.perf_counter()
    adapter = train(args)
    seconds = time.perf_counter() - started
    mine, other = ours(args, adapter), theirs(args, adapter, data)
    print(f"\n{cpu_name()}, threads: {args.threads}")
    print(f"{args.steps} steps of 8 rows, {seconds:.0f} s with the loading")
    print(f"{len(data[0])} held-out rows, {len(data[1])} questions")
    print_table(mine, other)
    if any(differ(*pair) for pair in zip(mine, other, strict=True)):
        sys.exit("they differ by more than rounding does")


if __name__ == "__main__":
    main(arguments())
