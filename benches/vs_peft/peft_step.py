"""The steps of benches/train_step.rs in PEFT; prints the same JSON line."""

import argparse
import json
import os
import pathlib
import statistics
import time
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.utils.logging import disable_progress_bar

from peak import peak_bytes

WARMUP_STEPS = 2
BATCH_SIZE = 2
ALPACA_BATCH_SIZE = 8
IGNORE_INDEX = -100
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
# Of https://arxiv.org/abs/2305.14314.
QLORA = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)
# The sizes of benches/train_step.rs.
SIZES = {
    "llama2_7b": LlamaConfig(max_position_embeddings=4096, rms_norm_eps=1e-5),
    "tiny": LlamaConfig(
        hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4
    ),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", type=pathlib.Path)
    parser.add_argument("--adapter", default="adapter", help="the folder of the adapter in a case")
    parser.add_argument("--sizes", choices=SIZES, help="random weights in place of a case")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--all-modules", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--quantize", choices=["nf4"], help="by bitsandbytes, bf16 computes")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--alpaca", action="store_true")
    parser.add_argument("--padded", action="store_true", help="records cut and padded to --seq-len")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def load(args: argparse.Namespace) -> PeftModel:
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    if args.sizes:
        return random_model(args, dtype).train()
    quantization = {"quantization_config": QLORA} if args.quantize else {}
    base = AutoModelForCausalLM.from_pretrained(args.case / "model", dtype=dtype, **quantization)
    prepare(base, args)
    model = PeftModel.from_pretrained(base, args.case / args.adapter, is_trainable=True)
    return model.train()


def prepare(base: torch.nn.Module, args: argparse.Namespace) -> None:
    if args.recompute:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()


def random_model(args: argparse.Namespace, dtype: torch.dtype) -> PeftModel:
    """Made on the device; attention is PyTorch's scaled_dot_product_attention."""
    torch.set_default_dtype(dtype)
    with torch.device(args.device):
        base = LlamaForCausalLM._from_config(SIZES[args.sizes], attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    prepare(base, args)
    modules = ATTENTION + MLP if args.all_modules else ["q_proj", "v_proj"]
    lora = LoraConfig(
        r=args.rank, lora_alpha=2 * args.rank, target_modules=modules, task_type="CAUSAL_LM"
    )
    return get_peft_model(base, lora).to(args.device)


def random_batches(args: argparse.Namespace) -> list[dict[str, torch.Tensor]]:
    if args.sizes:
        count = args.steps * args.batch_size * args.seq_len
        tokens = torch.randint(0, SIZES[args.sizes].vocab_size, (count,))
    else:
        tokens = load_file(args.case / "tokens.safetensors")["tokens"]
    steps = tokens.split(args.batch_size * args.seq_len)[: args.steps]
    rows = [step.view(args.batch_size, args.seq_len) for step in steps]
    return [{"input_ids": ids, "labels": ids} for ids in rows]


def alpaca_batches(args: argparse.Namespace) -> list[dict[str, torch.Tensor]]:
    data = load_file(args.case / "alpaca.safetensors")
    lengths = data["lengths"].tolist()
    tokens, labels = data["tokens"].split(lengths), data["labels"].split(lengths)
    if args.padded:
        tokens, labels = ([t[: args.seq_len] for t in samples] for samples in (tokens, labels))
    batch_size = args.batch_size if args.padded else ALPACA_BATCH_SIZE
    starts = range(0, args.steps * batch_size, batch_size)
    steps = [slice(start, start + batch_size) for start in starts]
    length = args.seq_len if args.padded else 0
    return [padded(tokens[step], labels[step], length) for step in steps]


def padded(
    tokens: Sequence[torch.Tensor], labels: Sequence[torch.Tensor], length: int
) -> dict[str, torch.Tensor]:
    """A row for each sample, as long as the longest, or of a length."""
    real = [torch.ones_like(sample) for sample in tokens]
    rows = {
        "input_ids": pad_sequence(tokens, batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        "attention_mask": pad_sequence(real, batch_first=True),
    }
    padding = (0, max(0, length - rows["labels"].shape[1]))
    fill = {"labels": IGNORE_INDEX}
    return {name: pad(row, padding, value=fill.get(name, 0)) for name, row in rows.items()}


def num_tokens(batch: dict[str, torch.Tensor]) -> int:
    """Padding not counted."""
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    return batch["input_ids"].numel()


def main(args: argparse.Namespace) -> None:
    disable_progress_bar()
    torch.set_num_threads(args.threads)
    start_bytes = peak_bytes()
    model = load(args)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    losses, tokens_per_s, tokens = [], [], 0
    for batch in alpaca_batches(args) if args.alpaca else random_batches(args):
        batch = {name: tensor.to(args.device) for name, tensor in batch.items()}
        started = time.perf_counter()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        # Reading the loss waits for the device.
        losses.append(loss.item())
        seconds = time.perf_counter() - started
        tokens_per_s.append(num_tokens(batch) / seconds)
        tokens += num_tokens(batch)
    line = {
        "losses": losses,
        "tokens": tokens,
        "tokens_per_s": statistics.median(tokens_per_s[min(WARMUP_STEPS, args.steps - 1):]),
        "peak_bytes": peak_bytes(),
        "start_bytes": start_bytes,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main(arguments())
