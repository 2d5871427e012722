"""The records of benches/tokenize.rs as samples by datasets.map and transformers' tokenizer, as
people write it; prints a JSON line. The time is that of the map alone, the file is read before."""

import argparse
import json
import pathlib
import tempfile
import time
from collections.abc import Callable

import pyarrow.compute
from datasets import Dataset, disable_progress_bars, load_dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from alpaca import IGNORE_INDEX, prompt

Columns = dict[str, list]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--max-seq-len", type=int, default=512)
    parser.add_argument("--batched", action="store_true", help="records in groups of 1000")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--shown", type=int, default=0, help="print so many of the samples")
    return parser.parse_args()


def encoder(
    tokenizer: PreTrainedTokenizerBase, longest: int, batched: bool
) -> Callable[[Columns], Columns]:
    """What makes a record, or a group of them, ids and labels: labels on the answer and its end."""

    def ids_of(texts: str | list[str]) -> list:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    def sample(question: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
        answer = [*answer, tokenizer.eos_token_id]
        labels = [IGNORE_INDEX] * len(question) + answer
        return (question + answer)[:longest], labels[:longest]

    def one(record: dict[str, str]) -> Columns:
        ids, labels = sample(ids_of(prompt(record)), ids_of(record["output"]))
        return {"input_ids": ids, "labels": labels}

    def many(columns: Columns) -> Columns:
        records = [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
        questions = ids_of([prompt(record) for record in records])
        samples = [sample(*pair) for pair in zip(questions, ids_of(columns["output"]), strict=True)]
        return {
            "input_ids": [ids for ids, _ in samples],
            "labels": [labels for _, labels in samples],
        }

    return many if batched else one


def encode(args: argparse.Namespace, records: Dataset) -> Dataset:
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    return records.map(
        encoder(tokenizer, args.max_seq_len, args.batched),
        batched=args.batched,
        num_proc=args.processes,
        remove_columns=records.column_names,
    )


def main(args: argparse.Namespace, cache: str) -> None:
    disable_progress_bars()
    started = time.perf_counter()
    records = load_dataset("json", data_files=str(args.records), split="train", cache_dir=cache)
    loaded = time.perf_counter()
    samples = encode(args, records)
    seconds = time.perf_counter() - loaded
    shown = samples.select(range(min(args.shown, len(samples))))
    lengths = pyarrow.compute.list_value_length(samples.data.column("input_ids"))
    line = {
        "records": len(samples),
        "tokens": pyarrow.compute.sum(lengths).as_py(),
        "seconds": seconds,
        "loading_seconds": loaded - started,
        "samples": [[row["input_ids"], row["labels"]] for row in shown],
    }
    print(json.dumps(line))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(arguments(), folder)
