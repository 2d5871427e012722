"""Makes the model, adapter and tokens that both programs train on. Called by run.sh."""

import argparse
import json
import pathlib

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS = 2 * 1024 * 16
LONGEST_SAMPLE = 512
IGNORE_INDEX = -100

INTRODUCTION = "Below is an instruction that describes a task"
INPUT_INTRODUCTION = ", paired with an input that provides further context"
REQUEST = ". Write a response that appropriately completes the request.\n\n"


ALL_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


SOME_MODULES = ["q_proj", "v_proj"]


def make_adapter(
    model: LlamaForCausalLM,
    folder: pathlib.Path,
    rank: int,
    modules: list[str],
    **settings: object,
) -> None:
    lora = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=modules, task_type="CAUSAL_LM", **settings
    )
    get_peft_model(model, lora).save_pretrained(folder)


def make_other_adapters(case: pathlib.Path) -> None:
    others = {
        "adapter_all_r32": {"rank": 32, "modules": ALL_MODULES},
        "adapter_dora": {"rank": 8, "modules": SOME_MODULES, "use_dora": True},
        "adapter_all_dora": {"rank": 8, "modules": ALL_MODULES, "use_dora": True},
    }
    for name, settings in others.items():
        if not (case / name).exists():
            torch.manual_seed(1)
            model = LlamaForCausalLM.from_pretrained(case / "model")
            make_adapter(model, case / name, **settings)


def make_model(case: pathlib.Path) -> None:
    if (case / "tokens.safetensors").exists():
        return
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(case / "model")
    make_adapter(model, case / "adapter", 8, SOME_MODULES)
    save_file({"tokens": torch.randint(0, 32000, (TOKENS,))}, case / "tokens.safetensors")


def prompt(record: dict[str, str]) -> str:
    instruction = f"### Instruction:\n{record['instruction']}\n\n"
    response = "### Response:\n"
    if not record.get("input"):
        return INTRODUCTION + REQUEST + instruction + response
    context = f"### Input:\n{record['input']}\n\n"
    return INTRODUCTION + INPUT_INTRODUCTION + REQUEST + instruction + context + response


def sample(record: dict[str, str], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """`[BOS] prompt answer [EOS]`, and labels for the answer and EOS."""
    bos, eos = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    question = [bos, *tokenizer.encode(prompt(record), add_special_tokens=False).ids]
    answer = [*tokenizer.encode(record["output"], add_special_tokens=False).ids, eos]
    return question + answer, [IGNORE_INDEX] * len(question) + answer


def make_alpaca(case: pathlib.Path, records: pathlib.Path, tokenizer_file: pathlib.Path) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    # The text of a special token inside a record is plain text.
    tokenizer.encode_special_tokens = True
    samples = [sample(record, tokenizer) for record in json.loads(records.read_text("utf-8"))]
    samples = [pair for pair in samples if len(pair[0]) <= LONGEST_SAMPLE]
    tensors = {
        "tokens": torch.tensor([token for tokens, _ in samples for token in tokens]),
        "labels": torch.tensor([label for _, labels in samples for label in labels]),
        "lengths": torch.tensor([len(tokens) for tokens, _ in samples]),
    }
    save_file(tensors, case / "alpaca.safetensors")


def main(args: argparse.Namespace) -> None:
    args.case.mkdir(parents=True, exist_ok=True)
    make_model(args.case)
    make_other_adapters(args.case)
    if args.alpaca.is_file() and args.tokenizer.is_file():
        make_alpaca(args.case, args.alpaca, args.tokenizer)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("case", type=pathlib.Path)
    parser.add_argument("--alpaca", type=pathlib.Path, default=pathlib.Path())
    parser.add_argument("--tokenizer", type=pathlib.Path, default=pathlib.Path())
    main(parser.parse_args())
