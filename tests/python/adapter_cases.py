"""The cases of `check_adapters.py`: tiny models, and the adapters that PEFT makes on them.

A case is a name, a model's name and the arguments of `LoraConfig`; `EXTRA` says what else is special.
"""

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "bos_token_id": 1, "eos_token_id": 2,
}
TIED = {"tie_word_embeddings": True}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "pad_token_id": 0}
ORIGINAL = {"original_max_position_embeddings": 64}
YARN = {"factor": 4.0, **ORIGINAL}
# llama.cpp makes room for so many tokens at least, and rotates by it.
LONG_ORIGINAL = {"original_max_position_embeddings": 256}
LONG = {"short_factor": [1.0, 1.3], "long_factor": [2.0, 5.0], **LONG_ORIGINAL}


def rope(kind, **settings):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **settings}}


def by_layer(full, sliding):
    """Rotary embeddings of both kinds of layers."""
    full, sliding = full["rope_parameters"], sliding["rope_parameters"]
    return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


# Name -> the family, and what is set in its configuration.
MODELS = {
    "llama": ("llama", {}),
    "llama tied": ("llama", TIED),
    "llama biased": ("llama", {"attention_bias": True}),
    "llama 12": ("llama", {"num_hidden_layers": 12}),
    # With gaps between the singular values of q and v: without, a decomposition in float32, as PEFT's, finds
    # the leading part to five digits only.
    "llama stepped": ("llama", {}),
    "qwen2 stepped": ("qwen2", {}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", TIED),
    # The folders above with their vocabulary resized by transformers, then saved again.
    "llama grown": ("llama", {}),
    "llama tied grown": ("llama", TIED),
    # Not saved again: the folder has the vocabulary as it was.
    "llama growing": ("llama", {}),
    "llama tied growing": ("llama", TIED),
    # Families beside these, of some with the widths that transformers takes for those of any GGUF file. A window is
    # shorter than the rows here, an original context longer.
    "qwen3": ("qwen3", {"head_dim": 128}),
    "qwen3 yarn": ("qwen3", {"head_dim": 16} | TIED | rope("yarn", **YARN)),
    "gemma2": ("gemma2", GEMMA | {"head_dim": 256, "query_pre_attn_scalar": 256}),
    "gemma3": ("gemma3", GEMMA | {"num_hidden_layers": 7} | by_layer(rope("linear", factor=8.0), rope("default"))),
    "phi3": ("phi3", {"pad_token_id": 0}),
    "phi3 longrope": ("phi3", {"pad_token_id": 0, "max_position_embeddings": 1024, **LONG_ORIGINAL} | TIED | rope(
        "longrope", **LONG, partial_rotary_factor=0.5)),
    "smollm3": ("smollm3", {"num_hidden_layers": 5, "pad_token_id": 0}),
    "granite": ("granite", {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.6,
                            "logits_scaling": 0.6}),
    "olmo2": ("olmo2", {"pad_token_id": 0}),
    "olmo3": ("olmo3", {"pad_token_id": 0, "num_hidden_layers": 5, "sliding_window": 8} | by_layer(
        rope("yarn", **YARN), rope("default"))),
    "qwen3 moe": ("qwen3_moe", {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                                "norm_topk_prob": True}),
    "ministral3": ("ministral3", {"head_dim": 16, "pad_token_id": 0} | rope(
        "yarn", factor=4.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=1.0,
        llama_4_scaling_beta=0.3)),
}
GROWN_VOCAB = 70

QV = ["q_proj", "v_proj"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
TOKENS = [3, 7, 11, 62]
FULL_PATHS = ["model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"]
MANY = [f"model.layers.{i}.self_attn.{name}" for i in range(11) for name in QV]


def on(modules, **settings):
    return {"target_modules": modules, **settings}


METHODS = {
    "lora, q and v": ("llama", on(QV)),
    "lora, every projection": ("qwen2", on(ALL)),
    "lora, dropout is off": ("llama", on(QV, lora_dropout=0.3)),
    "lora, rank above the width": ("llama", on(["k_proj", "v_proj"], r=40)),
    "dora, q and v": ("llama", on(QV, use_dora=True)),
    "dora, every projection": ("qwen2", on(ALL, use_dora=True)),
    "dora, tied": ("qwen2 tied", on(["o_proj", "up_proj"], use_dora=True)),
    "rslora": ("llama", on(ALL, use_rslora=True)),
    "rslora and dora": ("qwen2", on(QV, use_rslora=True, use_dora=True)),
    "lora_bias": ("llama", on(["q_proj", "down_proj"], lora_bias=True)),
    "lora_bias on biases": ("qwen2", on(["q_proj", "k_proj", "v_proj"], lora_bias=True)),
    "lora_bias and rslora": ("llama biased", on(ATTENTION, lora_bias=True, use_rslora=True)),
    "lora_only biases, llama": ("llama biased", on(["q_proj", "o_proj"], bias="lora_only")),
    "lora_only biases, qwen2": ("qwen2", on(["v_proj", "up_proj"], bias="lora_only")),
    "lora_only biases, none there": ("llama", on(QV, bias="lora_only")),
    "lora_only biases and dora": ("qwen2 tied", on(QV, bias="lora_only", use_dora=True)),
    "all biases, llama": ("llama biased", on(["v_proj"], bias="all")),
    "all biases, qwen2": ("qwen2", on(["q_proj", "o_proj"], bias="all")),
    "all biases and lora_bias": ("qwen2", on(["k_proj"], bias="all", lora_bias=True)),
}
EMBEDDINGS = {
    "embedding": ("llama", on(["embed_tokens", "q_proj"])),
    "embedding, tied": ("llama tied", on(["embed_tokens", "v_proj"])),
    "embedding, rslora, tied": ("qwen2 tied", on(["embed_tokens"], use_rslora=True)),
    "embedding, dora": ("llama", on(["embed_tokens", "k_proj"], use_dora=True)),
    "embedding, dora, tied": ("qwen2 tied", on(["embed_tokens", "q_proj"], use_dora=True)),
    "head": ("llama", on(["lm_head", "q_proj"])),
    "head, tied": ("llama tied", on(["lm_head", "q_proj"])),
    "head, dora": ("qwen2", on(["lm_head"], use_dora=True)),
    "head, dora, tied": ("qwen2 tied", on(["lm_head", "up_proj"], use_dora=True)),
    "embedding and head": ("qwen2", on(["embed_tokens", "lm_head"])),
    "embedding and head, tied": ("llama tied", on(["embed_tokens", "lm_head", "q_proj"])),
    "embedding by regex": ("llama", on(r".*(embed_tokens|lm_head|layers\.1\..*q_proj)")),
}
SAVED = {
    "saved embedding": ("llama", on(QV, modules_to_save=["embed_tokens"])),
    "saved head": ("qwen2", on(QV, modules_to_save=["lm_head"])),
    "saved embedding and head": ("llama", on(QV, modules_to_save=["embed_tokens", "lm_head"])),
    "saved norms": ("llama", on(QV, modules_to_save=["norm"])),
    "saved last norm": ("qwen2", on(QV, modules_to_save=["model.norm"])),
    "saved layer norms": ("llama", on(QV, modules_to_save=["input_layernorm"])),
    "saved projection": ("qwen2", on(QV, modules_to_save=["o_proj", "k_proj"])),
    "saved embedding, tied": ("llama tied", on(QV, modules_to_save=["embed_tokens"])),
    "saved head, tied": ("qwen2 tied", on(QV, modules_to_save=["lm_head"])),
    "saved embedding and head, tied": ("llama tied", on(QV, modules_to_save=["embed_tokens", "lm_head"])),
    "saved embedding, kept tied": (
        "llama tied", on(QV, modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    "saved embedding, dora": ("llama", on(QV, modules_to_save=["embed_tokens"], use_dora=True)),
    "saved embedding and head, grown": (
        "llama grown", on(QV, modules_to_save=["embed_tokens", "lm_head"])),
    "saved embedding and head, tied, grown": (
        "llama tied grown", on(QV, modules_to_save=["embed_tokens", "lm_head"])),
}
TOKEN_ROWS = {
    "token rows": ("llama", on(QV, trainable_token_indices=TOKENS)),
    "token rows, tied": ("llama tied", on(QV, trainable_token_indices=TOKENS)),
    "token rows, dora": ("qwen2", on(QV, trainable_token_indices=TOKENS, use_dora=True)),
    "token rows by name": ("qwen2", on(QV, trainable_token_indices={"embed_tokens": TOKENS})),
    "token rows of both": (
        "llama", on(QV, trainable_token_indices={"embed_tokens": TOKENS, "lm_head": [5, 6]})),
    "token rows of both, tied": (
        "qwen2 tied", on(QV, trainable_token_indices={"embed_tokens": TOKENS, "lm_head": TOKENS})),
    "token rows, other ones of a tied head": (
        "llama tied", on(QV, trainable_token_indices={"embed_tokens": TOKENS, "lm_head": [5, 6]})),
    "token rows, grown": ("llama grown", on(QV, trainable_token_indices=[64, 65, 69])),
    "token rows, tied, grown": ("llama tied grown", on(QV, trainable_token_indices=[64, 65, 69])),
}
# The base has fewer tokens, as who loads such an adapter finds it.
GROWING = {
    "lora, growing": ("llama growing", on(QV)),
    "lora, tied, growing": ("llama tied growing", on(QV)),
    "embedding, growing": ("llama growing", on(["embed_tokens", "q_proj"])),
    "embedding, dora, tied, growing": ("llama tied growing", on(["embed_tokens"], use_dora=True)),
    "head, tied, growing": ("llama tied growing", on(["lm_head", "q_proj"])),
    "saved embedding, growing": ("llama growing", on(QV, modules_to_save=["embed_tokens"])),
    "saved embedding, tied, growing": ("llama tied growing", on(QV, modules_to_save=["embed_tokens"])),
    "saved head, growing": ("llama growing", on(QV, modules_to_save=["lm_head"])),
    "saved embedding and head, growing": (
        "llama growing", on(QV, modules_to_save=["embed_tokens", "lm_head"])),
    "saved embedding, kept tied, growing": (
        "llama tied growing", on(QV, modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    "token rows, growing": ("llama growing", on(QV, trainable_token_indices=[64, 65, 69])),
    "token rows, tied, growing": ("llama tied growing", on(QV, trainable_token_indices=[64, 65, 69])),
}
# One adapter for an embedding and an output of one weight. PEFT trains its tensors as two parameters that share
# their memory, each by a part of the gradient; so what both compute is compared, not how they train.
ONE = {
    "one adapter, of the embedding": (
        "llama tied", on(["embed_tokens", "q_proj"], ensure_weight_tying=True)),
    "one adapter, of the head": ("qwen2 tied", on(["lm_head", "q_proj"], ensure_weight_tying=True)),
    "one adapter, of both": (
        "llama tied", on(["embed_tokens", "lm_head"], ensure_weight_tying=True, use_rslora=True)),
    "one adapter, by regex": ("llama tied", on(r".*(lm_head|q_proj)", ensure_weight_tying=True)),
    "one adapter, gaussian": (
        "qwen2 tied", on(["embed_tokens"], ensure_weight_tying=True, init_lora_weights="gaussian")),
    "one adapter, growing": (
        "llama tied growing", on(["embed_tokens", "q_proj"], ensure_weight_tying=True)),
}
TARGETS = {
    "suffixes": ("llama", on(["self_attn.q_proj", "mlp.up_proj"])),
    "full paths": ("llama", on(FULL_PATHS)),
    "regex": ("llama", on(r".*self_attn\.(q|o)_proj")),
    "regex of one layer": ("qwen2", on(r"model\.layers\.[12]\.mlp\..*_proj")),
    "regex with look-ahead": ("llama", on(r"(?!.*layers\.1\.).*\.(q|v)_proj")),
    "regex with look-behind": ("llama", on(r".*(?<!self_attn\.)(v_proj|down_proj)")),
    "all-linear": ("llama", on("all-linear")),
    "all-linear, tied": ("qwen2 tied", on("all-linear")),
    "all-linear, dora": ("llama", on("all-linear", use_dora=True)),
    "excluded names": ("llama", on("all-linear", exclude_modules=["down_proj", "self_attn.k_proj"])),
    "excluded by regex": ("qwen2", on(ALL, exclude_modules=r".*layers\.[02]\.mlp\..*")),
    "excluded full path": ("llama", on(QV, exclude_modules=["model.layers.1.self_attn.q_proj"])),
    "one layer": ("llama", on(QV, layers_to_transform=1)),
    "layers": ("qwen2", on(QV, layers_to_transform=[0, 2])),
    "layers, pattern": ("llama", on(QV, layers_to_transform=[1], layers_pattern="layers")),
    "layers, patterns": ("llama", on(QV, layers_to_transform=[0, 1], layers_pattern=["h", "layers"])),
    "layers, no pattern": ("llama 12", on(QV, layers_to_transform=[1, 10], layers_pattern=[])),
    "layers and a full path": ("llama", on(["q_proj", FULL_PATHS[1]], layers_to_transform=[0])),
    "layers and the head": ("llama", on(["q_proj", "lm_head"], layers_to_transform=[1])),
    "no layer named": ("llama", on(QV, layers_to_transform=[])),
    "layer 1 is not 11": ("llama 12", on(["1.self_attn.q_proj", "layers.11.self_attn.v_proj"])),
    "22 full paths": ("llama 12", on(MANY)),
    "targets of other families": ("llama", on(["q_proj", "v_proj", "query_key_value", "c_attn"])),
}
RANKS = {"q_proj": 8, "layers.1.self_attn.v_proj": 2}
ALPHAS = {"q_proj": 32, "layers.1.self_attn.v_proj": 3}
BOTH = {"rank_pattern": RANKS, "alpha_pattern": ALPHAS}
OF_EMBEDDINGS = {"rank_pattern": {"lm_head": 2}, "alpha_pattern": {"embed_tokens": 3}}
BY_REGEX = {"rank_pattern": {r"layers\.[01]\..*": 3}, "alpha_pattern": {r"layers\.\d+\.self_attn\.v_proj": 5}}
# Each key matches the query of layer 1; not in the order of the alphabet.
OVERLAP = ["self_attn.q_proj", "layers.1.self_attn.q_proj", "q_proj"]
OVERLAPPING = {"rank_pattern": dict(zip(OVERLAP, [2, 3, 5])), "alpha_pattern": dict(zip(OVERLAP, [4, 16, 32]))}
PATTERNS = {
    "rank pattern": ("llama", on(QV, rank_pattern=RANKS)),
    "alpha pattern": ("llama", on(QV, alpha_pattern=ALPHAS)),
    "rank and alpha patterns": ("qwen2", on(ALL, **BOTH)),
    "patterns, rslora": ("llama", on(QV, **BOTH, use_rslora=True)),
    "patterns, dora": ("llama", on(QV, **BOTH, use_dora=True)),
    "patterns by regex": ("llama", on(QV, **BY_REGEX)),
    "pattern of a layer": ("llama 12", on(["q_proj"], rank_pattern={"1.self_attn.q_proj": 2})),
    "anchored pattern": ("llama", on(QV, alpha_pattern={r"^model\.layers\.0\.self_attn\.q_proj": 5})),
    "pattern of the head": ("llama", on(["lm_head", "embed_tokens"], **OF_EMBEDDINGS)),
    # Saved with their keys sorted, which for alphas changes what is read back.
    "overlapping patterns": ("llama", on(QV, alpha_pattern=OVERLAPPING["alpha_pattern"])),
    "overlapping patterns, as written": ("llama", on(QV, **OVERLAPPING)),
    # What other engines take for an intersection, an open class, the start of a word.
    "pattern with && in a class": ("llama", on(QV, alpha_pattern={r"layers\.[0-9&&1]\.self_attn\.q_proj": 5})),
    "pattern with [ in a class": ("llama", on(QV, alpha_pattern={r"[[]?q_proj": 5})),
    "pattern with a group by name": (
        "llama", on(QV, rank_pattern={r"(?P<of>self)_attn\.(?:q|k)_proj\Z": 2})),
    "pattern that begins a word": ("llama", on(QV, alpha_pattern={r"\<?v_proj": 5, r"q{,1}_pro{1,2}+j": 3})),
}
INIT_KINDS = {
    "default": True, "gaussian": "gaussian", "orthogonal": "orthogonal",
    "pissa": "pissa", "pissa_niter_4": "pissa_niter_4", "olora": "olora",
}
INITS = {
    # The file has the weight without its leading part.
    "init pissa, head, saved": ("llama", on(["lm_head"], init_lora_weights="pissa")),
    "init olora, head, rslora, saved": (
        "qwen2", on(["lm_head"], init_lora_weights="olora", use_rslora=True)),
    "init olora, head, tied, saved": ("llama tied", on(["lm_head"], init_lora_weights="olora")),
    "init pissa, head, tied, dora, saved": (
        "qwen2 tied", on(["lm_head"], init_lora_weights="pissa", use_dora=True)),
    "init olora, head, tied, growing, saved": ("llama tied growing", on(["lm_head"], init_lora_weights="olora")),
} | {
    f"init {name}, saved": ("llama stepped", on(QV, init_lora_weights=kind))
    for name, kind in INIT_KINDS.items() if "niter" not in name
} | {
    "init pissa, rslora, saved": ("qwen2 stepped", on(QV, init_lora_weights="pissa", use_rslora=True)),
    "init olora, rslora, saved": ("qwen2 stepped", on(QV, init_lora_weights="olora", use_rslora=True)),
    "init pissa, patterns, saved": ("llama stepped", on(QV, init_lora_weights="pissa", **BOTH)),
    "init pissa, converted": ("llama", on(QV, init_lora_weights="pissa")),
    "init pissa_niter_4, converted": ("llama", on(QV, init_lora_weights="pissa_niter_4")),
    "init olora, converted": ("qwen2", on(QV, init_lora_weights="olora")),
    "init pissa, patterns, converted": ("llama", on(QV, init_lora_weights="pissa", **BOTH)),
    "init pissa, rslora, converted": ("llama", on(QV, init_lora_weights="pissa", use_rslora=True)),
    "init olora, rslora, converted": ("llama", on(QV, init_lora_weights="olora", use_rslora=True)),
}
LENIENT = {
    "file without the prefix": ("llama", on(QV)),
    "file with the adapter's name": ("llama", on(QV)),
    "file with the adapter's name, embedding": ("llama", on(["embed_tokens", "q_proj"])),
    "file of the bare model": ("llama", on(QV)),
    "magnitudes named weight": ("qwen2", on(QV, use_dora=True)),
    "fan_in_fan_out": ("llama", on(QV, fan_in_fan_out=True)),
    "a short configuration": ("llama", on(QV)),
    "embeddings beside the adapter": ("llama", on(QV)),
    "embeddings beside the adapter, tied": ("llama tied", on(QV)),
    "embeddings beside the adapter, tying asked for": ("llama", on(QV, ensure_weight_tying=True)),
    "embeddings beside the adapter, tying asked for, tied": ("qwen2 tied", on(QV, ensure_weight_tying=True)),
    "embeddings beside a saved head": ("llama", on(QV, modules_to_save=["lm_head"])),
    "embeddings beside a saved embedding, tied": ("llama tied", on(QV, modules_to_save=["embed_tokens"])),
    "embeddings beside token rows": ("llama", on(QV, trainable_token_indices=TOKENS)),
    "embeddings beside token rows, tied": ("llama tied", on(QV, trainable_token_indices=TOKENS)),
    "biases beside saved projections": ("qwen2", on(QV, modules_to_save=["k_proj"], bias="all")),
    "float16 file": ("llama", on(QV)),
    "bfloat16 file": ("qwen2", on(ALL, use_dora=True)),
}
# Nobody can tell what these mean: refused, or read as PEFT reads them.
DOUBTFUL = {
    "init pissa_niter_4, saved": ("llama", on(QV, init_lora_weights="pissa_niter_4")),
    "magnitudes without use_dora": ("llama", on(QV, use_dora=True)),
    "a base weight of a head without an adapter": ("llama", on(QV)),
}
# Ids that are none of a model's tokens, [batch, seq].
BAD_INPUTS = {
    "ids beyond the vocabulary": ("llama", [[1, 64]]),
    "ids below zero": ("llama", [[1, -1]]),
    "no ids": ("llama", [[]]),
}
ADAPTERS = METHODS | EMBEDDINGS | SAVED | TOKEN_ROWS | GROWING | TARGETS | PATTERNS | INITS | LENIENT

# Why the values of a case are not those of the model that PEFT saved, or not those that PEFT reads back.
READ_BACK = {
    "overlapping patterns": "PEFT sorts the patterns as it saves, after which another alpha comes first",
    "float16 file": "rounded",
    "bfloat16 file": "rounded",
}
LIVE = {
    "file without the prefix": "PEFT finds no key and warns; load_adapter of transformers reads it",
    "file of the bare model": "PEFT finds no key and warns; load_adapter of transformers reads it",
}
# What cannot be merged into a model that has no place for biases.
MAY_NOT_MERGE = ["lora_bias"]
# What PEFT refuses to convert into a plain LoRA.
MAY_NOT_CONVERT = ["new pissa, rslora, patterns"]
# What PEFT would take off an embedding too, when it loads the folder again.
MAY_NOT_REPEAT = ["new olora, tied head"]

# What PROGRAM initializes itself, by PEFT's configuration.
NEW = {
    f"new {name}": ("llama", on(QV, init_lora_weights=kind)) for name, kind in INIT_KINDS.items()
} | {
    "new default, every kind": ("qwen2", on(["embed_tokens", "lm_head", *ALL])),
    "new dora": ("qwen2", on(ALL, use_dora=True)),
    "new dora, embedding and head": ("llama", on(["embed_tokens", "lm_head"], use_dora=True)),
    "new lora_bias, all biases": ("qwen2", on(QV, lora_bias=True, bias="all")),
    "new saved modules": ("llama", on(QV, modules_to_save=["embed_tokens", "lm_head", "norm"])),
    "new token rows": ("llama tied", on(QV, trainable_token_indices=TOKENS)),
    "new pissa, rslora, patterns": (
        "qwen2", on(ALL, init_lora_weights="pissa", use_rslora=True, **BOTH)),
    # By the inputs of each layer, from the batch: PEFT chooses the ranks too.
    "new eva": ("llama", on(QV, init_lora_weights="eva")),
    "new eva, every projection": ("qwen2", on(ALL, init_lora_weights="eva")),
    "new eva, dora, patterns": (
        "llama", on(["q_proj", "o_proj", "down_proj"], init_lora_weights="eva", use_dora=True,
                    rank_pattern={"o_proj": 2}, alpha_pattern={"down_proj": 3})),
    "new olora, tied head": ("llama tied", on(["q_proj", "lm_head"], init_lora_weights="olora")),
    "new olora, rslora, head": ("llama", on(["q_proj", "lm_head"], init_lora_weights="olora", use_rslora=True)),
}

# Name -> model, settings of both adapters, weights, and how they are combined.
DENSE = {"density": 1.0}
HALF = {"density": 0.5}
WEIGHTS = [0.7, 0.3]
COMBINATIONS = {
    "combine cat": ("llama", [on(QV), on(QV)], WEIGHTS, "cat", {}),
    "combine cat, ranks": ("llama", [on(QV), on(QV, r=6, lora_alpha=3)], WEIGHTS, "cat", {}),
    "combine cat, other targets": ("llama", [on(QV), on(["v_proj", "up_proj"])], WEIGHTS, "cat", {}),
    "combine cat, embedding": ("qwen2", [on(["embed_tokens", "lm_head"])] * 2, WEIGHTS, "cat", {}),
    "combine linear": ("llama", [on(QV), on(QV)], WEIGHTS, "linear", {}),
    "combine linear, a negative weight": ("qwen2", [on(ALL), on(ALL)], [1.2, -0.5], "linear", {}),
    "combine svd": ("llama", [on(QV), on(QV)], WEIGHTS, "svd", {}),
    "combine svd, ranks": ("qwen2", [on(ALL), on(ALL, r=6)], [1.0, 0.5], "svd", {}),
    "combine ties": ("llama", [on(QV), on(QV)], WEIGHTS, "ties", HALF),
    "combine ties_svd": ("llama", [on(QV), on(QV)], WEIGHTS, "ties_svd", HALF),
    "combine dare_linear": ("llama", [on(QV), on(QV)], WEIGHTS, "dare_linear", DENSE),
    "combine dare_ties": ("llama", [on(QV), on(QV)], WEIGHTS, "dare_ties", DENSE),
    "combine dare_linear_svd": ("llama", [on(QV), on(QV)], WEIGHTS, "dare_linear_svd", DENSE),
    "combine dare_ties_svd": ("llama", [on(QV), on(QV)], WEIGHTS, "dare_ties_svd", DENSE),
    "combine magnitude_prune": ("llama", [on(QV), on(QV)], WEIGHTS, "magnitude_prune", HALF),
    "combine magnitude_prune_svd": ("qwen2", [on(ALL), on(ALL)], WEIGHTS, "magnitude_prune_svd", HALF),
}
# PEFT's result has another scale, or ranks that do not fit: the expected model is the exact sum.
EXACT_SUMS = {
    "combine cat, rslora": ("llama", [on(QV, use_rslora=True)] * 2, WEIGHTS, "cat", {}),
    "combine cat, rank patterns": ("llama", [on(QV, rank_pattern=RANKS), on(QV)], WEIGHTS, "cat", {}),
    "combine cat, alpha patterns": ("qwen2", [on(QV, alpha_pattern=ALPHAS)] * 2, WEIGHTS, "cat", {}),
    "combine cat, rslora and patterns": (
        "llama", [on(QV, use_rslora=True, rank_pattern=RANKS), on(QV, alpha_pattern=ALPHAS)],
        [0.5, -1.5], "cat", {}),
    "combine cat, lora_bias": ("qwen2", [on(QV, lora_bias=True)] * 2, WEIGHTS, "cat", {}),
    "combine cat, dora": ("llama", [on(QV, use_dora=True)] * 2, WEIGHTS, "cat", {}),
}
# What PEFT leaves out of a combination; a sum of DoRA adapters is not one of low rank.
MAY_NOT_COMBINE = ["combine cat, lora_bias", "combine cat, dora"]

# What is written as a GGUF file; and what llama.cpp takes from no file, with a word of why.
GGUF = {
    "gguf": ("llama", on(ALL)),
    "gguf, qwen2": ("qwen2", on(ALL)),
    "gguf, tied": ("qwen2 tied", on(ALL, r=3)),
    "gguf, biases of the base": ("llama biased", on(ALL)),
    "gguf, embedding and head": ("qwen2", on(["embed_tokens", "lm_head"])),
    "gguf, patterns": ("llama", on(["embed_tokens", *ALL], **BOTH)),
    "gguf, rslora and patterns": ("llama", on([*ALL, "lm_head"], use_rslora=True, **BOTH)),
}
# Families, in whose files more than names is their own.
GGUF_FAMILIES = [
    "qwen3", "qwen3 yarn", "gemma2", "gemma3", "phi3", "phi3 longrope", "smollm3", "granite", "olmo2", "olmo3",
    "ministral3", "qwen3 moe"]
GGUF |= {f"gguf, {name}": (name, on(ATTENTION if "moe" in name else "all-linear")) for name in GGUF_FAMILIES}
NO_GGUF = {
    "gguf, dora": ("llama", on(QV, use_dora=True), "magnitude"),
    "gguf, lora_bias": ("llama", on(QV, lora_bias=True), "bias"),
    "gguf, saved norms": ("llama", on(QV, modules_to_save=["norm"]), "norm"),
    "gguf, tied embedding": ("llama tied", on(["embed_tokens"]), "tok_embeddings"),
    "gguf, tied head": ("qwen2 tied", on(["lm_head"]), "output"),
}
