#!/usr/bin/env python3
"""Makes what DPO's loss and gradients are on PEFT's adapters of the golden cases, or checks a file of them.

    python make_dpo.py --out FILE | --check FILE

The rows of `train_input_ids` are pairs, the first one preferred; their first tokens are the prompt. The reference is the model
with its adapter disabled.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from golden_cases import load_adapter, trainable

GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden"
ADAPTERS = ["gqa/lora_qv_r8", "gqa/lora_output_r4"]
PAIRS, PROMPT, BETA, SMOOTHING = 3, 5, 0.3, 0.1
TOLERANCE = 1e-5


def log_probs(model, ids):
    logits = model(input_ids=ids).logits[:, PROMPT - 1:-1]
    tokens = logits.log_softmax(-1).gather(2, ids[:, PROMPT:, None])[..., 0]
    return tokens.sum(1)


def dpo(folder):
    ids = load_file(folder.parent / "inputs.safetensors")["train_input_ids"][:PAIRS].flatten(0, 1)
    model = load_adapter(folder)
    own = log_probs(model, ids)
    with torch.no_grad(), model.disable_adapter():
        base = log_probs(model, ids)
    gains = (own - base).view(-1, 2)
    margins = BETA * (gains[:, 0] - gains[:, 1])
    loss = -(1 - SMOOTHING) * F.logsigmoid(margins) - SMOOTHING * F.logsigmoid(-margins)
    loss.mean().backward()
    tensors = {"loss": loss.mean(), "margins": margins, "log_probs": own, "base_log_probs": base}
    tensors |= {f"grad.{key}": p.grad for key, p in trainable(model).items()}
    return {f"{folder.name}.{key}": t.detach().contiguous() for key, t in tensors.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--out", type=Path)
    group.add_argument("--check", type=Path)
    args = parser.parse_args()
    made = {}
    for adapter in ADAPTERS:
        made |= dpo(GOLDEN / adapter)
    if args.out:
        return save_file(made, args.out)
    kept = load_file(args.check)
    assert kept.keys() == made.keys()
    for key, value in made.items():
        scale = max(1.0, value.abs().max().item())
        assert (kept[key] - value).abs().max() < TOLERANCE * scale, key
    print(f"{len(made)} tensors as in {args.check}")


if __name__ == "__main__":
    main()
