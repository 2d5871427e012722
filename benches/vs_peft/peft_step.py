"""The steps of benches/train_step.rs in PEFT; prints the same JSON line."""

import argparse
import json
import os
import pathlib
import resource
import statistics
import time

WARMUP_STEPS = 2
BATCH_SIZE = 2


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", type=pathlib.Path, required=True)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--recompute", action="store_true")
    return parser.parse_args()


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(args: argparse.Namespace) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count())
    start_bytes = peak_bytes()
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    base = AutoModelForCausalLM.from_pretrained(args.case / "model", dtype=dtype)
    if args.recompute:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    model = PeftModel.from_pretrained(base, args.case / "adapter", is_trainable=True)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    tokens = load_file(args.case / "tokens.safetensors")["tokens"]
    losses, seconds = [], []
    for step in tokens.split(BATCH_SIZE * args.seq_len)[: args.steps]:
        ids = step.view(BATCH_SIZE, args.seq_len)
        started = time.perf_counter()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        losses.append(loss.item())
    line = {
        "losses": losses,
        "tokens_per_s": BATCH_SIZE * args.seq_len / statistics.median(seconds[WARMUP_STEPS:]),
        "peak_bytes": peak_bytes(),
        "start_bytes": start_bytes,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main(arguments())
