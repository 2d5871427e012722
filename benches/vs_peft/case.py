"""Makes the models, adapters and tokens that the programs train on. Called by run.sh.

    case/       a Llama of 168 M parameters with random weights, random tokens, Alpaca records in Llama 2's tokens
    qwen3/, mistral/, gemma3/
                models of these families of the same sizes, the latter two with windows
    smollm2/    SmolLM2-135M-Instruct and Alpaca records in its tokens
"""

import argparse
import json
import pathlib
import subprocess
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from alpaca import LLAMA2_ENDS, SMOLLM2_ENDS, Ends, sample
from gguf_base import KINDS, find_smollm2, write_gguf

HERE = pathlib.Path(__file__).parent
TOKENS = 2 * 1024 * 16
LONGEST_SAMPLE = 512
SIZES = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}
# A quarter of the longest rows.
WINDOW = 256
MODELS: dict[str, PreTrainedConfig] = {
    "case": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=WINDOW),
    "gemma3": Gemma3TextConfig(**SIZES, sliding_window=WINDOW, query_pre_attn_scalar=64),
}

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
    case.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[case.name])
    model.save_pretrained(case / "model")
    make_adapter(model, case / "adapter", 8, SOME_MODULES)
    save_file({"tokens": torch.randint(0, 32000, (TOKENS,))}, case / "tokens.safetensors")


def make_alpaca(
    case: pathlib.Path,
    records: pathlib.Path,
    tokenizer_file: pathlib.Path,
    ends: Ends,
) -> None:
    if not (records.is_file() and tokenizer_file.is_file()):
        return
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    # The text of a special token inside a record is plain text.
    tokenizer.encode_special_tokens = True
    samples = [sample(record, tokenizer, ends) for record in json.loads(records.read_text("utf-8"))]
    samples = [pair for pair in samples if len(pair[0]) <= LONGEST_SAMPLE]
    tensors = {
        "tokens": torch.tensor([token for tokens, _ in samples for token in tokens]),
        "labels": torch.tensor([label for _, labels in samples for label in labels]),
        "lengths": torch.tensor([len(tokens) for tokens, _ in samples]),
    }
    save_file(tensors, case / "alpaca.safetensors")


def make_gguf(case: pathlib.Path, kind: str) -> None:
    path = case / f"{kind}.gguf"
    if not path.exists():
        write_gguf(LlamaForCausalLM.from_pretrained(case / "model"), path, kind)


def make_smollm2(case: pathlib.Path) -> None:
    case.mkdir(exist_ok=True)
    if not (case / "model").exists():
        program = HERE.parents[1] / "tests" / "python" / "smollm2.py"
        subprocess.run([sys.executable, program, case / "model"], check=True)
    if not (case / "adapter").exists():
        torch.manual_seed(1)
        model = LlamaForCausalLM.from_pretrained(case / "model")
        make_adapter(model, case / "adapter", 8, SOME_MODULES)
    original = case / "Q4_1.gguf"
    if not original.exists():
        original.symlink_to(find_smollm2())
    make_gguf(case, "Q4_K")


def main(args: argparse.Namespace) -> None:
    case, smollm2 = args.cases / "case", args.cases / "smollm2"
    for name in MODELS:
        make_model(args.cases / name)
    make_other_adapters(case)
    for kind in KINDS:
        make_gguf(case, kind)
    make_alpaca(case, args.alpaca, args.tokenizer, LLAMA2_ENDS)
    make_smollm2(smollm2)
    make_alpaca(smollm2, args.alpaca, smollm2 / "model" / "tokenizer.json", SMOLLM2_ENDS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", type=pathlib.Path)
    parser.add_argument("--alpaca", type=pathlib.Path, default=pathlib.Path())
    parser.add_argument("--tokenizer", type=pathlib.Path, default=pathlib.Path())
    main(parser.parse_args())
