#!/usr/bin/env python3
"""Compares the samples that this crate makes of records with those of TRL's `SFTTrainer`.

    pip install --no-deps trl==1.16.0
    python check_records.py path/to/inspect records.json [--records 100]

`inspect` is this repository's example, built; the file has Alpaca's records. They are written as `messages`, ShareGPT's
`conversations`, `prompt` and `completion` (texts, and messages) and `text`, and tokenized by both, the chats by each of
TRL's templates that marks answers: the ids, and which of them the loss counts (`assistant_only_loss`,
`completion_only_loss`), must be equal. Exits with 1 and says what differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is a local folder

import datasets
import transformers
from jinja2 import UndefinedError
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from check_chat import base_tokenizer, published, tokenizer_for

PROMPT = "Question: {}\nAnswer:"


def question(record):
    return record["instruction"] + ("\n" + record["input"] if record.get("input") else "")


def message(role, content):
    return {"role": role, "content": content}


# What a record of Alpaca's is in each format: (what our program reads, what TRL reads).
def messages(record):
    chat = [message("user", question(record)), message("assistant", record["output"])] * 2
    return {"messages": chat}, {"messages": chat}


def share_gpt(record):
    turns = [{"from": "human", "value": question(record)}, {"from": "gpt", "value": record["output"]}]
    return {"conversations": turns}, {"messages": messages(record)[0]["messages"][:2]}


def prompt_of_messages(record):
    both = {"prompt": [message("user", question(record))], "completion": [message("assistant", record["output"])]}
    return both, both


def prompt_completion(record):
    both = {"prompt": PROMPT.format(question(record)), "completion": " " + record["output"]}
    return both, both


def text(record):
    both = {"text": question(record) + "\n" + record["output"]}
    return both, both


CHATS = {"messages": messages, "conversations": share_gpt, "prompt and completion of messages": prompt_of_messages}
TEXTS = {"prompt and completion": prompt_completion, "text": text}


def ours(program, path, records, *options):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(records, file)
        file.flush()
        run = subprocess.run([program, "--tokenizer", path, "--records", file.name, *options], capture_output=True, text=True)
    if run.returncode:
        return [{"error": run.stderr.strip()}] * len(records)
    return json.loads(run.stdout)


def trl(tokenizer, records, root, chat):
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1))
    options = SFTConfig(
        output_dir=str(root), use_cpu=True, bf16=False, report_to=[], max_length=None, assistant_only_loss=chat,
        disable_tqdm=True)
    trainer = SFTTrainer(
        model, args=options, train_dataset=datasets.Dataset.from_list(records), processing_class=tokenizer)
    return [(sample["input_ids"], [int(label != -100) for label in sample["labels"]]) for sample in trainer.train_dataset]


def is_same(tokenizer, record, sample, theirs):
    """Where the prompt's last tokens are others with a completion behind them, TRL counts these too."""
    if "error" in sample or sample["ids"] != theirs[0]:
        return False
    mask, first = sample["mask"], sample["mask"].index(1)
    if mask == theirs[1] or not isinstance(record.get("prompt"), list):
        return mask == theirs[1]
    prompt = tokenizer.apply_chat_template(record["prompt"], add_generation_prompt=True, tokenize=False)
    alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    begins_with_prompt = tokenizer.decode(sample["ids"][:first]) == prompt and sample["ids"][:len(alone)] != alone
    return begins_with_prompt and mask[first:] == theirs[1][first:]


def compare(program, path, tokenizer, records, root, chat):
    """The first record of which both make other samples, if there is one, and how many there are."""
    try:
        expected = trl(tokenizer, [record for _, record in records], root, chat)
    except UndefinedError:  # a template for pictures
        return None
    found = ours(program, path, [record for record, _ in records])
    pairs = zip(records, found, expected, strict=True)
    wrong = [(record, sample, theirs) for (record, _), sample, theirs in pairs
             if not is_same(tokenizer, record, sample, theirs)]
    if not wrong:
        return None
    record, sample, (ids, mask) = wrong[0]
    if "error" in sample:
        return f"{len(wrong)} of {len(records)}: {sample['error']}"
    shown = [tokenizer.convert_ids_to_tokens([token for token, counts in zip(*of) if counts])
             for of in ((ids, mask), (sample["ids"], sample["mask"]))]
    texts = [tokenizer.decode(ids) for ids in (ids, sample["ids"])]
    same = "the same ids" if ids == sample["ids"] else f"{texts[0]!r}, not {texts[1]!r}"
    return f"{len(wrong)} of {len(records)}: {json.dumps(record)}: {same}; counted {shown[0]}, not {shown[1]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="the example `inspect`, built")
    parser.add_argument("alpaca", type=Path, help="a JSON file of Alpaca's records")
    parser.add_argument("--records", type=int, default=100, help="how many of them")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    rows = json.loads(args.alpaca.read_text())[:args.records]
    base, failed = base_tokenizer(), 0
    marked = {name: template for name, template in published([]).items() if name.endswith("_training")}
    work = [(name, template, CHATS) for name, template in marked.items()] + [("no template", "", TEXTS)]
    with tempfile.TemporaryDirectory() as root:
        for name, template, formats in work:
            path = Path(root) / name
            tokenizer = tokenizer_for(template, base)
            tokenizer.save_pretrained(path)
            for what, make in formats.items():
                records = [make(row) for row in rows]
                wrong = compare(args.program, path, tokenizer, records, Path(root) / "trainer", formats is CHATS)
                print(f"{'differs' if wrong else 'ok':8}{name}: {what}{', ' + wrong if wrong else ''}", flush=True)
                failed += bool(wrong)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
