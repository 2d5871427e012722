#!/usr/bin/env bash
# transformers 5.23.0: the GGUF file of a Gemma 2 27B runs with the score scale of the smaller ones.
#
# Gemma 2 multiplies scores by `query_pre_attn_scalar ** -0.5`: 256 in the 2B and 9B, 144 in the 27B, that is its hidden
# size over its heads. GGUF has no key for it; llama.cpp knows the 27B by its 46 layers. transformers takes the default of
# its configuration, 256, for every file, and no warning names it.
#
# Seen (46 layers of width 64 with 4 heads; the largest difference of the logits from those of the file):
#   in the model that the file was made of: 16, above 1e-3
#   in what is read of the file: 256
#   the same weights with 256: 0.0
#
# Exits with 1 if this changes. PYTHON=/path/to/python uses an environment that has the packages.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$work/venv"
    PYTHON="$work/venv/bin/python"
    "$PYTHON" -m pip install --quiet torch==2.15.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0
fi
cd "$work"
export HF_HUB_OFFLINE=1 # every model is made here
"$PYTHON" -W ignore - 2> log <<'EOP' || { cat log; exit 1; }
import gguf
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

DIM, HEADS, HEAD, WORDS, LAYERS = 64, 4, 32, 32, 46
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}


def model(scalar):
    torch.manual_seed(0)
    config = Gemma2Config(
        hidden_size=DIM, num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=HEAD, intermediate_size=DIM,
        num_hidden_layers=LAYERS, vocab_size=WORDS, query_pre_attn_scalar=scalar, initializer_range=0.3,
        max_position_embeddings=64, attn_implementation="eager")
    return Gemma2ForCausalLM(config)


def gguf_name(name):
    name = name.removeprefix("model.")
    if not name.startswith("layers."):
        return {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


source = model(DIM // HEADS)
out = gguf.GGUFWriter("gemma2.gguf", "gemma2")
out.add_context_length(64)
out.add_embedding_length(DIM)
out.add_block_count(LAYERS)
out.add_feed_forward_length(DIM)
out.add_head_count(HEADS)
out.add_head_count_kv(HEADS)
out.add_key_length(HEAD)
out.add_value_length(HEAD)
out.add_layer_norm_rms_eps(1e-6)
out.add_attn_logit_softcapping(50.0)
out.add_final_logit_softcapping(30.0)
out.add_sliding_window(4096)
out.add_vocab_size(WORDS)
for name, value in source.state_dict().items():
    if name != "lm_head.weight":
        # A norm is stored with the 1 that the model adds.
        value = value + 1 if "norm" in name else value
        out.add_tensor(gguf_name(name), value.numpy())
out.write_header_to_file()
out.write_kv_data_to_file()
out.write_tensors_to_file()
out.close()

ids = torch.arange(24)[None] % WORDS


@torch.no_grad()
def run(of):
    return of.eval()(ids, use_cache=False).logits


read = Gemma2ForCausalLM.from_pretrained(".", gguf_file="gemma2.gguf", dtype=torch.float32, attn_implementation="eager")
logits = run(read)
error = (run(source) - logits).abs().max().item()
scalar = source.config.query_pre_attn_scalar
print(f"in the model that the file was made of: {scalar}, {'above 1e-3' if error > 1e-3 else error}")
print(f"in what is read of the file: {read.config.query_pre_attn_scalar}")
assert error > 1e-3 and read.config.query_pre_attn_scalar == 256
same = (run(model(256)) - logits).abs().max().item()
print(f"the same weights with 256: {same:.1f}")
assert same < 1e-3
EOP
