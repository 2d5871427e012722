#!/usr/bin/env python3
"""Times how records become samples, here and with `datasets.map` in Python, on the same file with the same tokenizer.

    python tokenize.py path/to/lora_alpaca MODEL_FOLDER alpaca.json [--records 50000]

MODEL_FOLDER has a config.json and a tokenizer.json. The records are those of the file, mixed anew so that no two are alike. Both sides
read the file, write Alpaca's prompt, encode prompt and answer, and make labels; the crate does it in `--dry-run`, all of whose
time counts, with counts, fingerprint and the memory plan. Python's is `datasets.map` with two processes, a record at a time and in
batches, on a data set that is already loaded (loading is told apart). Takes `pip install datasets tokenizers`.
"""

import argparse
import json
import os
import random
import subprocess
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets
from tokenizers import Tokenizer

BEGINNING = "Below is an instruction that describes a task"
WITH_INPUT = (BEGINNING + ", paired with an input that provides further context. Write a response that appropriately completes the "
              "request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n")
WITHOUT = (BEGINNING + ". Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
           "### Response:\n")
PROCESSES = 2
MAX = 512


def prompt(instruction: str, given: str) -> str:
    return (WITH_INPUT if given else WITHOUT).format(instruction=instruction, input=given)


def samples(tokenizer: Tokenizer, end: int, prompts: list[str], answers: list[str]) -> dict[str, list[list[int]]]:
    questions = [encoding.ids for encoding in tokenizer.encode_batch(prompts, add_special_tokens=False)]
    replies = [encoding.ids for encoding in tokenizer.encode_batch(answers, add_special_tokens=False)]
    ids = [(question + reply + [end])[:MAX] for question, reply in zip(questions, replies)]
    labels = [([-100] * len(question) + reply + [end])[:MAX] for question, reply in zip(questions, replies)]
    return {"input_ids": ids, "labels": labels}


def mixed(path: str, count: int) -> list[dict]:
    """New records of the same words: sentences of answers in another order."""
    known = json.loads(Path(path).read_text())
    draw = random.Random(0)
    sentences = [sentence for record in known for sentence in record["output"].split(". ")]
    def record(number: int) -> dict:
        old = known[number % len(known)]
        length = len(old["output"].split(". "))
        return {**old, "instruction": f"{old['instruction']} ({number})", "output": ". ".join(draw.choices(sentences, k=length))}
    return [record(number) for number in range(count)]


def timed(what: str, count: int, run) -> float:
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    print(f"{what:<44}{seconds:8.2f} s{count / seconds:12.0f} records/s", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("model", type=Path)
    parser.add_argument("records")
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    end = tokenizer.token_to_id("<|endoftext|>") or 2

    def one(record: dict) -> dict:
        made = samples(tokenizer, end, [prompt(record["instruction"], record["input"])], [record["output"]])
        return {name: column[0] for name, column in made.items()}

    def many(batch: dict) -> dict:
        prompts = [prompt(*pair) for pair in zip(batch["instruction"], batch["input"])]
        return samples(tokenizer, end, prompts, batch["output"])

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        with path.open("w") as file:
            file.writelines(json.dumps(record) + "\n" for record in mixed(args.records, args.count))
        print(f"{args.count} records, {path.stat().st_size / 1e6:.0f} MB")
        datasets.disable_progress_bars()
        command = [args.program, "--dry-run", f"checkpoint_dir={args.model}", f"dataset={path}", f"max_seq_len={MAX}",
                   "train_on_input=false", f"output_dir={folder}/run"]
        def load() -> datasets.Dataset:
            cache = tempfile.mkdtemp(dir=folder)
            return datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
        def mapped(function, **settings) -> None:
            loaded.map(function, num_proc=PROCESSES, remove_columns=loaded.column_names, load_from_cache_file=False, **settings)
        for _ in range(args.repeats):
            timed("this crate, everything", args.count, lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
            timed("datasets.load_dataset", args.count, load)
            loaded = load()
            timed("datasets.map, two processes, one at a time", args.count, lambda: mapped(one))
            timed("datasets.map, two processes, in batches", args.count, lambda: mapped(many, batched=True))


if __name__ == "__main__":
    main()
