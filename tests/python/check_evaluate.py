#!/usr/bin/env python3
"""Compares what `examples/evaluate` says of a model with lm-evaluation-harness's own numbers.

    python check_evaluate.py EVALUATE MODEL_DIR RECORDS

MODEL_DIR is a folder that this crate exported, RECORDS are in Alpaca's format. A task of multiple choice is made of them,
the right answer of each among those of others; and a text, longer than the model's context, for the perplexity. lm-eval runs
both through its Python API on transformers' model, from the same files.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"  # everything is a local file

import lm_eval
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

TOLERANCE = 1e-4  # of the logarithm of a choice's probability
RECORDS, CHOICES = 40, 4
PROMPT = "Below is an instruction that describes a task.\n\n### Instruction:\n{}\n\n### Response:"


def choice_records(records):
    """Each right answer at another place among others."""
    outputs = sorted({record["output"] for record in records})
    for index, record in enumerate(records[:RECORDS]):
        others = [o for o in outputs if o != record["output"]]
        choices = [others[(7 * index + 3 * k) % len(others)] for k in range(CHOICES - 1)]
        choices.insert(index % CHOICES, record["output"])
        instruction = f"{record['instruction']} {record['input']}".strip()
        # Every fifth question ends in white space, which goes to the choice.
        context = PROMPT.format(instruction) + (" " if index % 5 == 0 else "")
        yield {"context": context, "choices": choices, "answer": index % CHOICES}


def tasks(folder):
    common = {"dataset_path": "json", "test_split": "test", "num_fewshot": 0}
    files = lambda name: {"dataset_kwargs": {"data_files": {"test": str(folder / name)}}}
    return [
        ConfigurableTask(config={
            **common, **files("choices.jsonl"), "task": "choices", "output_type": "multiple_choice",
            "doc_to_text": "context", "doc_to_choice": "choices", "doc_to_target": "answer",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }),
        ConfigurableTask(config={
            **common, **files("text.jsonl"), "task": "text", "output_type": "loglikelihood_rolling",
            "doc_to_text": "", "doc_to_target": "text",
            "metric_list": [{"metric": m} for m in ["word_perplexity", "byte_perplexity", "bits_per_byte"]],
        }),
    ]


def theirs(model_dir, folder):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(Path(model_dir) / "tokenizer.json"), bos_token="<s>", eos_token="</s>", pad_token="</s>",
    )
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="float32")
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    return lm_eval.simple_evaluate(model=lm, tasks=tasks(folder), bootstrap_iters=0, log_samples=True)


def ours(program, model_dir, folder):
    command = [
        program, "--json", "--model", model_dir, "--choices", folder / "choices.jsonl", "--text", folder / "text.txt",
    ]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(lines)["model"]


def close(name, got, expected, tolerance):
    assert abs(got - expected) <= tolerance, f"{name}: {got} here, {expected} in lm-eval"


def main(program, model_dir, records_file):
    records = json.loads(Path(records_file).read_text())
    text = " ".join(f"{r['instruction']} {r['input']}\n{r['output']}" for r in records)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        lines = [json.dumps(record) for record in choice_records(records)]
        (folder / "choices.jsonl").write_text("\n".join(lines))
        (folder / "text.jsonl").write_text(json.dumps({"text": text}))
        (folder / "text.txt").write_text(text)
        got, report = ours(program, model_dir, folder), theirs(model_dir, folder)
    expected = report["results"]
    for name in ["acc", "acc_norm"]:
        close(name, got[name], expected["choices"][f"{name},none"], 1e-9)
    for name in ["word_perplexity", "byte_perplexity", "bits_per_byte"]:
        value = expected["text"][f"{name},none"]
        close(name, got[name.replace("_", " ")], value, 1e-5 * value)
    worst = 0.0
    samples = sorted(report["samples"]["choices"], key=lambda sample: sample["doc_id"])
    for ours_of, sample in zip(got["choices"], samples, strict=True):
        for log_prob, response in zip(ours_of, sample["filtered_resps"], strict=True):
            worst = max(worst, abs(log_prob - response[0]))
    assert worst < TOLERANCE, f"a choice's log-likelihood differs by {worst:.2e}"
    print(
        f"{len(samples)} questions: acc {got['acc']:.3f}, acc_norm {got['acc_norm']:.3f}, log-likelihoods within {worst:.1e}; "
        f"bits a byte {got['bits per byte']:.4f}: as lm-eval's"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
