#!/usr/bin/env python3
"""Makes the fixtures of packed weights with bitsandbytes and gguf on the CPU.

    python make_quantized.py DIR

needs `pip install bitsandbytes==0.50.2 gguf==0.19.0` beside torch. It writes into DIR

    values.safetensors     numbers: `small` has blocks of all kinds, `large` more than 256 blocks, `huge` large numbers
    nf4.safetensors        `<values>.<block length>.<plain or nested>.` and `codes`, `absmax`, where nested
    fp4.safetensors        `nested_absmax` and `offset`, and `expected`, the numbers that come back
    int8.safetensors       `<values>.codes`, `scales`, `expected`
    q8_0.safetensors ...   `blocks`, of `small` where gguf writes the format, else random, and `expected`
    tables.safetensors     what the codes of bitsandbytes stand for
    mean.safetensors       `lengths`, and the `means` of as many numbers `i * 7919 % 100003 / 65536`
"""

import sys
from pathlib import Path

import numpy as np
import torch
from bitsandbytes import functional as bnb
from gguf import GGMLQuantizationType, quants
from safetensors.torch import save_file

COLUMNS = 256
READ_ONLY = {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210}
WRITTEN = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
LENGTHS = [1, 5, 7, 8, 17, 31, 64, 100, 513, 1000, 4096, 20001, 100000, 262144]


def midpoints(kind):
    """The numbers that are as far from one code as from the next, in the order of bitsandbytes."""
    table = bnb.get_4bit_type(kind, device="cpu").sort().values
    return (table[:-1] + table[1:]) / 2


def ties():
    """Blocks whose largest number is 1, with numbers halfway between two codes, and the next ones above and below."""
    blocks = []
    for kind in ("nf4", "fp4"):
        middles = midpoints(kind)
        above = torch.nextafter(middles, torch.tensor(2.0))
        below = torch.nextafter(middles, torch.tensor(-2.0))
        block = torch.cat([torch.ones(1), middles, above, below])
        blocks += [torch.nn.functional.pad(block, (0, 64 - len(block)))] * 2
    return torch.cat(blocks)


def small():
    random = torch.randn(8, COLUMNS)
    outlier = random[1] * 0.02
    outlier[::37] = 5.0
    mixed = random[2] * 1000
    mixed[:64] = 0.0
    mixed[64:128] = 1e-42
    alternating = torch.tensor([1.0, -1.0, -0.0, 0.5]).repeat(COLUMNS // 4) * random[3].abs().round(decimals=1)
    rows = [
        random[0] * 0.02, outlier, torch.full((COLUMNS,), 0.5), torch.zeros(COLUMNS), torch.full((COLUMNS,), -0.0),
        random[4] * 1e-39, ties(), torch.full((COLUMNS,), -0.3), mixed, random[5] * 1e-30,
        2.0 ** torch.arange(-128, 128).remainder(17) - 2.0, alternating,
    ]
    return torch.stack(rows).float()


def made_values():
    torch.manual_seed(0)
    return {
        "small": small(),
        "large": torch.randn(65, COLUMNS) * torch.rand(65, 1) * 0.05,
        "huge": torch.randn(1, COLUMNS) * 6e37,
    }


def four_bit(kind, cases):
    tensors = {}
    for name, values, block_len, is_nested in cases:
        codes, state = bnb.quantize_4bit(
            values.clone(), blocksize=block_len, compress_statistics=is_nested, quant_type=kind
        )
        key = f"{name}.{block_len}.{'nested' if is_nested else 'plain'}"
        tensors[f"{key}.codes"] = codes.flatten()
        tensors[f"{key}.absmax"] = state.absmax
        tensors[f"{key}.expected"] = bnb.dequantize_4bit(codes, state)
        if is_nested:
            tensors[f"{key}.nested_absmax"] = state.state2.absmax
            tensors[f"{key}.offset"] = state.offset.reshape(1)
    return tensors


def int8(values):
    tensors = {}
    for name, numbers in values.items():
        codes, scales, _ = bnb.int8_vectorwise_quant(numbers.clone())
        tensors[f"{name}.codes"], tensors[f"{name}.scales"] = codes, scales
        tensors[f"{name}.expected"] = bnb.int8_vectorwise_dequant(codes, scales)
    return tensors


def gguf_blocks(name, values):
    if name in WRITTEN:
        with np.errstate(all="ignore"):
            return quants.quantize(values.numpy(), GGMLQuantizationType[name])
    # All bytes are valid but those of the scales in half precision, which must be finite.
    random = np.random.default_rng(len(name) + READ_ONLY[name])
    blocks = random.integers(0, 256, (3, 2, READ_ONLY[name]), dtype=np.uint8)
    scales = random.normal(0, 1e-3, (3, 2, 2)).astype(np.float16).view(np.uint8)
    at = slice(-2, None) if name == "Q6_K" else slice(0, 4)
    blocks[..., at] = scales[..., : 2 if name == "Q6_K" else 4]
    return blocks.reshape(3, -1)


def gguf(name, values):
    blocks = gguf_blocks(name, values)
    expected = quants.dequantize(blocks, GGMLQuantizationType[name])
    return {"blocks": torch.from_numpy(blocks), "expected": torch.from_numpy(expected)}


def means():
    numbers = (torch.arange(max(LENGTHS)) * 7919 % 100003).float() / 65536
    found = torch.stack([numbers[:length].mean() for length in LENGTHS])
    return {"lengths": torch.tensor(LENGTHS, dtype=torch.int32), "means": found}


def main():
    torch.set_num_threads(1)  # the order of a sum depends on their number
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    values = made_values()
    save_file(values, folder / "values.safetensors")
    cases = [("small", values["small"], block, nested) for block in (64, 128) for nested in (False, True)]
    more = [("large", values["large"], 64, True), ("huge", values["huge"], 64, False)]
    save_file(four_bit("nf4", cases + more), folder / "nf4.safetensors")
    save_file(four_bit("fp4", cases), folder / "fp4.safetensors")
    save_file(int8({name: values[name] for name in ("small", "huge")}), folder / "int8.safetensors")
    for name in WRITTEN + list(READ_ONLY):
        save_file(gguf(name, values["small"]), folder / f"{name.lower()}.safetensors")
    tables = {kind: bnb.get_4bit_type(kind, device="cpu") for kind in ("nf4", "fp4")}
    save_file(tables | {"dynamic": bnb.create_dynamic_map()}, folder / "tables.safetensors")
    save_file(means(), folder / "mean.safetensors")


if __name__ == "__main__":
    main()
