"""Makes the model, adapter and tokens that both programs train on: python case.py DIR"""

import pathlib
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS = 2 * 1024 * 16


def main(folder: str) -> None:
    case = pathlib.Path(folder)
    if (case / "tokens.safetensors").exists():
        return
    case.mkdir(parents=True, exist_ok=True)
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
    lora = LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    get_peft_model(model, lora).save_pretrained(case / "adapter")
    save_file({"tokens": torch.randint(0, 32000, (TOKENS,))}, case / "tokens.safetensors")


if __name__ == "__main__":
    main(sys.argv[1])
