"""What PEFT makes and computes for `check_adapters.py`: base models, adapters with random tensors,
logits, loss, gradients and AdamW's steps."""

import copy
import json
import re
import warnings
import zlib

import torch
from peft import (
    LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, initialize_lora_eva_weights,
)
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, GraniteConfig,
    GraniteForCausalLM, LlamaConfig, LlamaForCausalLM, Ministral3Config, Ministral3ForCausalLM, Olmo2Config,
    Olmo2ForCausalLM, Olmo3Config, Olmo3ForCausalLM, Phi3Config, Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM,
    Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM, SmolLM3Config, SmolLM3ForCausalLM,
)

from adapter_cases import GROWN_VOCAB, MODELS, OVERLAP, SIZES

FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig), "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config), "gemma2": (Gemma2ForCausalLM, Gemma2Config),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig), "phi3": (Phi3ForCausalLM, Phi3Config),
    "smollm3": (SmolLM3ForCausalLM, SmolLM3Config), "granite": (GraniteForCausalLM, GraniteConfig),
    "olmo2": (Olmo2ForCausalLM, Olmo2Config), "olmo3": (Olmo3ForCausalLM, Olmo3Config),
    "qwen3_moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig), "ministral3": (Ministral3ForCausalLM, Ministral3Config),
}
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
BATCH, LENGTH = 2, 24
INIT_SEED = 11
TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Failure(Exception):
    """What a person should read."""


def require(condition, message):
    if not condition:
        raise Failure(message)


# Base models.

def randomize(model):
    """Norms near 1, to which Gemma adds 1 itself, and matrices and biases large enough that each counts."""
    adds_one = model.config.model_type.startswith("gemma")
    for name, p in model.named_parameters():
        p.data = 0.2 * torch.randn_like(p) + float("norm" in name and not adds_one)
    return model.eval()


def load_base(folder):
    """The model of a Hugging Face folder, every tensor of it from a file."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    for what, keys in info.items():
        require(not keys, f"transformers reports {what}: {sorted(map(str, keys))[:5]}")
    return model.eval()


def step(weight):
    """The same singular vectors; the singular values in steps after the second, the fourth and the eighth."""
    u, _, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    rest = torch.linspace(0.5, 0.1, len(vt) - 8)
    values = torch.cat([torch.tensor([3.0, 3, 2, 2, 1.25, 1.25, 1.25, 1.25]), rest]).double()
    return ((u * values) @ vt).float()


def save_base(folder, name):
    family, settings = MODELS[name]
    cls, config = FAMILIES[family]
    model = randomize(cls(config(**SIZES | settings)))
    model.tie_weights()
    if name.endswith("stepped"):
        for key, p in model.named_parameters():
            if key.endswith(("q_proj.weight", "v_proj.weight")):
                p.data = step(p.data)
    if name.endswith("grown"):
        model.resize_token_embeddings(GROWN_VOCAB)
    model.save_pretrained(folder)


def grow(model):
    """New tokens as the mean of the others, without the little noise that transformers adds."""
    before = model.config.vocab_size
    model.resize_token_embeddings(GROWN_VOCAB)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.weight.data[before:] = module.weight.data[:before].mean(0)


class Bases:
    """The base models, each made once; a caller gets a copy."""

    def __init__(self, root):
        self.root, self.loaded = root, {}

    def folder(self, name):
        folder = self.root / name.replace(" ", "_")
        if not folder.exists():
            torch.manual_seed(list(MODELS).index(name))
            save_base(folder, name)
        return folder

    def model(self, name):
        if name not in self.loaded:
            self.loaded[name] = load_base(self.folder(name))
            if name.endswith("growing"):
                grow(self.loaded[name])
        return copy.deepcopy(self.loaded[name])

    def inputs(self, name):
        """A file with a batch for this model, and the batch; some positions have no label."""
        vocab = self.model(name).config.vocab_size
        generator = torch.Generator().manual_seed(5)
        ids = torch.randint(0, vocab, (BATCH, LENGTH), generator=generator)
        labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.3, -100)
        path = self.folder(name) / "inputs.safetensors"
        save_file({"input_ids": ids.int(), "labels": labels.int()}, path)
        return path, {"input_ids": ids, "labels": labels}


# Adapters.

def lora_config(settings):
    return LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8} | settings)


def trained(model):
    """Key in PEFT's file -> parameter, of all that is trained."""
    storages = {p.data_ptr(): p for p in model.parameters() if p.requires_grad}
    state = get_peft_model_state_dict(model)
    found = {key: storages.get(t.data_ptr()) for key, t in state.items()}
    found = {key: p for key, p in found.items() if p is not None}
    missed = len(storages) - len({id(p) for p in found.values()})
    require(missed == 0, f"{missed} trained parameters are not in PEFT's file")
    return found


def randomize_adapter(model):
    """Every trained tensor gets values that count."""
    for key, p in trained(model).items():
        if "lora_" in key and "magnitude" not in key:
            # Beside what an initialization such as PiSSA put there.
            p.data += 0.1 * torch.randn_like(p)
        elif p.dim() == 1 and "bias" not in key:
            p.data *= 1 + 0.1 * torch.randn_like(p)
        else:
            p.data += 0.1 * torch.randn_like(p)
    return model


def adapt(base, settings):
    """`base` with a new adapter, as PEFT initializes it."""
    return get_peft_model(base, lora_config(settings)).eval()


def begin(base, settings, inputs):
    """`adapt`, with the first values that follow from data."""
    model = adapt(base, settings)
    if settings.get("init_lora_weights") == "eva":
        batches = [{"input_ids": inputs["input_ids"]}]
        initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    return model


def reload(base, folder):
    """PEFT's model of an adapter folder; a tensor that PEFT misses is a failure."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, folder, is_trainable=True)
    for warning in map(str, (w.message for w in caught)):
        require("missing adapter keys" not in warning, f"PEFT: {warning[:300]}")
    return model.eval()


def save_converted(model, settings, base, folder):
    """Saves an adapter that was initialized from the weights as a plain LoRA on the original ones."""
    start = folder / "start"
    torch.manual_seed(INIT_SEED)
    first = adapt(base, settings)
    first.peft_config["default"].init_lora_weights = True
    first.save_pretrained(start)
    model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(start))


def save_both(model, folder):
    """Saves an adapter and the embeddings, which were changed."""
    model.get_input_embeddings().weight.data *= 1.5
    model.save_pretrained(folder, save_embedding_layers=True)


def make_adapter(bases, name, model, settings, folder):
    """An adapter of random tensors in `folder`; the live model that has it."""
    torch.manual_seed(INIT_SEED)  # again in `save_converted`
    live = adapt(bases.model(model), settings)
    torch.manual_seed(zlib.crc32(name.encode()))
    randomize_adapter(live)
    if "converted" in name:
        save_converted(live, settings, bases.model(model), folder)
    elif "beside" in name:
        save_both(live, folder)
    else:
        live.save_pretrained(folder)
    EDITS.get(name, lambda folder: None)(folder)
    return live


def combine(bases, model, folders, weights, kind, settings):
    """PEFT's combination of two adapters, active."""
    combined = PeftModel.from_pretrained(bases.model(model), folders[0], adapter_name="first")
    combined.load_adapter(folders[1], adapter_name="second")
    combined.add_weighted_adapter(["first", "second"], weights, "both", kind, **settings)
    combined.set_adapter("both")
    return combined.eval()


# Files in other styles.

def edit_tensors(folder, change):
    tensors = load_file(folder / TENSORS)
    save_file({k: t.contiguous() for k, t in change(tensors).items()}, folder / TENSORS, {"format": "pt"})


def edit_config(folder, change):
    path = folder / CONFIG
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def rename(pattern, replacement):
    def edit(folder):
        edit_tensors(folder, lambda tensors: {re.sub(pattern, replacement, k): t for k, t in tensors.items()})
    return edit


def set_config(**settings):
    return lambda folder: edit_config(folder, lambda config: config | settings)


def shorten_config(folder):
    kept = ["peft_type", "r", "lora_alpha", "target_modules"]
    edit_config(folder, lambda config: {key: config[key] for key in kept})


def unsort_patterns(folder):
    """The keys of the patterns in the order in which a person wrote them."""
    def unsort(config):
        order = {key: {k: config[key][k] for k in OVERLAP} for key in ("rank_pattern", "alpha_pattern")}
        return config | order
    edit_config(folder, unsort)


def cast(dtype):
    return lambda folder: edit_tensors(folder, lambda tensors: {k: t.to(dtype) for k, t in tensors.items()})


# What is done to the folder that PEFT saved.
EDITS = {
    "file without the prefix": rename(r"^base_model\.model\.", ""),
    "file with the adapter's name": rename(r"(lora_[AB])", r"\1.default"),
    "file with the adapter's name, embedding": rename(r"(lora_(embedding_)?[AB])", r"\1.default"),
    "file of the bare model": rename(r"^base_model\.model\.model\.", "base_model.model."),
    "magnitudes named weight": rename(r"(lora_magnitude_vector)", r"\1.weight"),
    "fan_in_fan_out": set_config(fan_in_fan_out=True),
    "a short configuration": shorten_config,
    "overlapping patterns, as written": unsort_patterns,
    "magnitudes without use_dora": set_config(use_dora=False),
    "a base weight of a head without an adapter": lambda folder: edit_tensors(
        folder, lambda tensors: tensors | {"base_model.model.lm_head.base_layer.weight": torch.ones(64, 32)}),
    "float16 file": cast(torch.float16),
    "bfloat16 file": cast(torch.bfloat16),
}


# Values.

def logits_of(model, inputs):
    with torch.no_grad():
        return model(input_ids=inputs["input_ids"]).logits


def backward(model, inputs):
    loss = model(**inputs).loss
    loss.backward()
    return loss.item()


def gradients_of(model, inputs):
    """The loss, and the gradient of every trained tensor by its key in PEFT's file."""
    loss = backward(model, inputs)
    gradients = {key: p.grad for key, p in trained(model).items()}
    model.zero_grad()  # to none: the tensors above stay
    return loss, gradients


def take_steps(model, inputs, steps):
    """AdamW's steps on one batch, without dropout."""
    params = list({id(p): p for p in trained(model).values()}.values())
    optimizer = torch.optim.AdamW(params, **ADAMW)
    for _ in range(steps):
        optimizer.zero_grad()
        backward(model, inputs)
        optimizer.step()
    return model


def add_exactly(base, adapted, weights):
    """The base with the weighted changes of all adapters: the sum as it is meant. Not for tied models."""
    start = {name: p.clone() for name, p in base.named_parameters()}
    for model, weight in zip(adapted, weights):
        merged = model.merge_and_unload()
        for name, p in base.named_parameters():
            p.data += weight * (merged.get_parameter(name).data - start[name].data)
    return base


def difference(found, expected):
    require(found.shape == expected.shape, f"shape {list(found.shape)} instead of {list(expected.shape)}")
    return (found - expected).abs().max().item()
