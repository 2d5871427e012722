#!/usr/bin/env python3
"""Compares LoftQ on a base of four bits with PEFT's: the factors that `replace_lora_weights_loftq` finds, what is left of
the quantization's error, and the adapter's folder in PEFT.

    python check_loftq.py path/to/adapters

`adapters` is this repository's example, built. PEFT asks for a GPU, and its `loftq_init` quantizes without double
quantization: here it runs on the CPU, and packs as the base is packed. Exits with 1 and says what differs.
"""

import inspect
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is a local folder

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import loftq_utils
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from check_adapters import Program, quieten
from check_models import NESTED, load, load_quantized, quantize, randomize

SIZES = {
    "vocab_size": 128, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}
RANK = 8
TARGETS = ["q_proj", "v_proj", "down_proj"]
LAYERS = [f"model.layers.{layer}.{name}" for layer in range(SIZES["num_hidden_layers"])
          for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")]
FACTORS = 1e-5  # of a product of factors, whose numbers are up to 0.02
LOGITS = 1e-4
RESIDUAL = 1.0001  # rounding differs, and a number between two codes may get the other one


def on_cpu(function):
    """PEFT's function with the device and the packing changed."""
    source = inspect.getsource(function).replace('"cuda"', '"cpu"')
    source = source.replace("compress_statistics=False", "compress_statistics=True")
    namespace = vars(loftq_utils)
    exec(source, namespace)
    return namespace[function.__name__]


def lora_config(alpha):
    return LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=alpha, target_modules=TARGETS)


def updates(folder, alpha):
    """`s·B·A` of each layer, of an adapter's folder."""
    tensors = load_file(folder / "adapter_model.safetensors")
    def factor(layer, name):
        return tensors[f"base_model.model.{layer}.lora_{name}.weight"]
    return {layer: alpha / RANK * factor(layer, "B") @ factor(layer, "A") for layer in LAYERS}


def weights(folder):
    return {layer: t for layer, t in ((k.removesuffix(".weight"), t) for k, t in load_file(
        folder / "model.safetensors").items()) if layer in LAYERS}


def largest(found, expected):
    return max((found[layer] - expected[layer]).abs().max().item() for layer in LAYERS)


def distance(found, expected):
    return sum((found[layer] - expected[layer]).square().sum().item() for layer in LAYERS) ** 0.5


class Case:
    """A dense model, the same quantized by bitsandbytes, and LoftQ on it."""

    def __init__(self, program, root):
        self.program, self.root = program, root
        self.dense, self.packed = root / "dense", root / "packed"
        for folder in (self.dense, self.packed):
            torch.manual_seed(0)
            randomize(LlamaForCausalLM(LlamaConfig(**SIZES))).save_pretrained(folder)
        quantize(self.packed, NESTED)

    def ours(self, alpha, iterations, **options):
        """The folder with `adapter` and `merged`."""
        folder = self.root / f"ours_{alpha}_{iterations}_{len(options)}"
        lora_config(alpha).save_pretrained(folder)
        return self.program("loftq", folder, model=self.dense, config=folder / "adapter_config.json", quantize="nf4",
                            iterations=iterations, **options)

    def theirs(self):
        """The folder of an adapter that `replace_lora_weights_loftq` begins; it knows no scale but 1."""
        model = get_peft_model(load_quantized(self.packed), lora_config(RANK))
        loftq_utils.replace_lora_weights_loftq(model, str(self.dense))
        folder = self.root / "theirs"
        model.save_pretrained(folder)
        return folder


def check_factors(case):
    """The same update as PEFT's where the scale is 1, and with any other scale."""
    expected = updates(case.theirs(), RANK)
    for alpha in (RANK, 4 * RANK, 1):
        yield f"alpha {alpha}", largest(updates(case.ours(alpha, 1) / "adapter", alpha), expected), FACTORS


def check_residuals(case):
    """No more is left than by PEFT's `loftq_init`, strictly less than without an adapter, and less with each iteration."""
    dense = weights(case.dense)
    def merged(iterations):
        return distance(weights(case.ours(2 * RANK, iterations) / "merged"), dense)
    packed = load_quantized(case.packed).dequantize().state_dict()
    before = distance({layer: packed[f"{layer}.weight"].float() for layer in LAYERS}, dense)
    for iterations in (1, 2, 5):
        found = merged(iterations)
        begun = {layer: loftq_utils.loftq_init(dense[layer], 4, RANK, iterations) for layer in LAYERS}
        theirs = distance({layer: q + b @ a for layer, (q, a, b) in begun.items()}, dense)
        print(f"     {iterations} iterations leave {found:.5f}, PEFT's {theirs:.5f}, plain NF4 {before:.5f}")
        yield f"residual of PEFT's, {iterations}", found / theirs, RESIDUAL
        yield f"residual of the one before, {iterations}", found / before, 0.9999
        before = found


def check_folder(case):
    """The adapter's folder in PEFT, on the base that bitsandbytes quantized."""
    folder = case.ours(2 * RANK, 1)
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        model = PeftModel.from_pretrained(load_quantized(case.packed), folder / "adapter").eval()
        found, expected = (m(input_ids=ids).logits for m in (model, load(folder / "merged")))
    yield "logits", (found - expected).abs().max().item(), LOGITS


def main(program):
    quieten()
    loftq_utils.loftq_init, loftq_utils._loftq_init_new = map(
        on_cpu, (loftq_utils.loftq_init, loftq_utils._loftq_init_new))
    wrong = 0
    with tempfile.TemporaryDirectory() as root:
        case = Case(Program(program), Path(root))
        for check in (check_factors, check_residuals, check_folder):
            for name, found, allowed in check(case):
                right = found <= allowed
                print("ok  " if right else "FAIL", f"{name}: {found:.3g}, allowed {allowed:g}")
                wrong += not right
    sys.exit(f"{wrong} cases differ" if wrong else 0)


if __name__ == "__main__":
    main(sys.argv[1])
