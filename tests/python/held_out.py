#!/usr/bin/env python3
"""Parts records in Alpaca's format into those to train on and those to evaluate on.

    python held_out.py ALPACA.json OUT_DIR

Every tenth record is held out. Writes `train.json`, `held_out.json` and `choices.jsonl`: a question for each held-out record
with an answer, in Alpaca's prompt, the right answer among three of other held-out records of about its length.
"""

import json
import sys
from pathlib import Path

CHOICES = 4
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)


def choice_records(records):
    by_length = sorted(records, key=lambda record: len(record["output"]))
    for index, record in enumerate(by_length):
        start = min(max(index - CHOICES // 2, 0), len(by_length) - CHOICES)
        near = by_length[start:start + CHOICES + 1]
        others = [other["output"] for other in near if other["output"] != record["output"]][:CHOICES - 1]
        answer = index % CHOICES
        others.insert(answer, record["output"])
        prompt = WITH_INPUT if record["input"] else WITHOUT_INPUT
        yield {"context": prompt.format(**record), "choices": others, "answer": answer}


def main(alpaca, out_dir):
    records = [r for r in json.loads(Path(alpaca).read_text()) if r["output"].strip()]
    held_out = records[::10]
    train = [record for index, record in enumerate(records) if index % 10]
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    for name, part in [("train.json", train), ("held_out.json", held_out)]:
        (out / name).write_text(json.dumps(part, indent=1))
    lines = [json.dumps(record) for record in choice_records(held_out)]
    (out / "choices.jsonl").write_text("\n".join(lines))
    print(f"{len(train)} records to train on, {len(held_out)} held out, {len(lines)} questions")


if __name__ == "__main__":
    main(*sys.argv[1:])
