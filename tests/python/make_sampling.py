#!/usr/bin/env python3
"""Makes the probabilities of tokens that transformers' logits processors leave, or checks a file of them.

    python make_sampling.py --out FILE | --check FILE

Each case has options as `GenerateOptions` has them, logits, the tokens before, and the probability of each token: 0 for
those that cannot be drawn.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

TOLERANCE = 1e-6
OPTIONS = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0, "top_k": 3},
    {"top_p": 0.6},
    {"top_p": 0.9, "temperature": 1.5},
    {"min_p": 0.2},
    {"min_p": 0.05, "temperature": 0.7},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "top_k": 4},
    {"repetition_penalty": 1.2, "temperature": 1.7, "top_k": 7, "top_p": 0.8, "min_p": 0.1},
]
# One with logits that are the same, so that the last of the likeliest has equals.
LOGITS = [
    [0.5, 2.0, -1.0, 1.5, 0.25, -3.0, 1.75, 0.0, -0.5, 1.0],
    [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, -2.0, 3.0, 1.0, -1.0],
]
SEQUENCE = [1, 2, 2, 7]


def processors(options):
    """Those that `generate` would apply."""
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(LOGITS[0]), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
    ))
    # What transformers would fill in by itself is told to change nothing.
    config = GenerationConfig(**{"top_k": 0, "do_sample": True, **options}, eos_token_id=0)
    return model._get_logits_processor(
        generation_config=config, input_ids_seq_length=len(SEQUENCE), encoder_input_ids=None,
        prefix_allowed_tokens_fn=None, logits_processor=[],
    )


def cases():
    for options in OPTIONS:
        for logits in LOGITS:
            scores = processors(options)(torch.tensor([SEQUENCE]), torch.tensor([logits]))
            yield {
                "options": options, "logits": logits, "sequence": SEQUENCE,
                "probabilities": scores.double().softmax(-1)[0].tolist(),
            }


def check(path):
    kept, made = json.loads(path.read_text()), list(cases())
    for a, b in zip(kept, made, strict=True):
        assert {**a, "probabilities": 0} == {**b, "probabilities": 0}, (a, b)
        for x, y in zip(a["probabilities"], b["probabilities"], strict=True):
            assert abs(x - y) < TOLERANCE, (a, b)
    print(f"{len(made)} cases as in {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--out", type=Path)
    group.add_argument("--check", type=Path)
    args = parser.parse_args()
    if args.check:
        return check(args.check)
    rows = ",\n".join(f"  {json.dumps(case)}" for case in cases())
    args.out.write_text(f"[\n{rows}\n]\n")


if __name__ == "__main__":
    main()
