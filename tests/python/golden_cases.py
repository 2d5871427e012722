"""The golden cases: their settings, and their expected values as transformers and PEFT compute
them on the CPU. `make_golden.py` is the program around this module."""

import numpy
import peft
import safetensors
import torch
import transformers
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, get_scheduler

DIMS = {"vocab": 128, "hidden": 64, "layers": 4, "heads": 4, "inter": 172}
KV_HEADS = {"gqa": 2, "mha": 4}
CASES = ["gqa", "mha"]
SHARDED = {"gqa": "gqa_sharded"}  # case -> the folder with the same weights in shards
PROMPT, NEW_TOKENS = 6, 20

STEPS = 10
ADAMW = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}
RECIPE = {"steps": 8, "accum": 2, "warmup": 2, "max_grad_norm": 1.0}

SCHEDULE_LR = 2e-4
SCHEDULES = ["linear", "cosine", "constant_with_warmup", "constant"]
SCHEDULE_LENGTHS = [(0, 10), (3, 20), (5, 50)]  # warmup steps, total steps

QV = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
ALL = {"r": 4, "lora_alpha": 8, "target_modules": [
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
OUTPUT = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "lm_head"]}
# Folder -> the arguments of LoraConfig.
ADAPTERS = {
    "gqa/lora_qv_r8": QV,
    "gqa/lora_all_r4": ALL,
    "gqa/dora_qv_r8": QV | {"use_dora": True},
    "gqa/rslora_qv_r8": QV | {"use_rslora": True},
    "mha/lora_qv_r8": QV,
    "mha/dora_all_r4": ALL | {"use_dora": True},
    "gqa/lora_output_r4": OUTPUT,
}
# The adapter that is also trained by the recipe and whose merged model is kept whole.
RECIPE_ADAPTER = "gqa/lora_qv_r8"


def load_base(folder, dtype=torch.float32):
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


def load_adapter(folder, dtype=torch.float32):
    """Base and adapter, the adapter's tensors trainable. No dropout, so eval changes nothing."""
    base = load_base(folder.parent, dtype)
    return PeftModel.from_pretrained(base, folder, is_trainable=True).to(dtype).eval()


def logits_of(model, ids, mask=None):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


def loss_of(model, ids, labels, mask=None):
    return model(input_ids=ids, labels=labels, attention_mask=mask).loss


def greedy(model, ids):
    """Appends NEW_TOKENS best tokens, EOS or not; also the closest call, top 1 against top 2."""
    margin = float("inf")
    for _ in range(NEW_TOKENS):
        top = logits_of(model, ids)[:, -1].topk(2)
        margin = min(margin, (top.values[:, 0] - top.values[:, 1]).min().item())
        ids = torch.cat([ids, top.indices[:, :1]], dim=1)
    return ids, margin


def trainable(model):
    """PEFT key -> parameter, as the keys are in an adapter file."""
    def key(name):
        magnitude = name.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector")
        return magnitude.replace(".default", "")
    return {key(name): p for name, p in model.named_parameters() if p.requires_grad}


def prefixed(prefix, tensors):
    return {f"{prefix}.{key}": t.detach().clone() for key, t in tensors.items()}


def base_expected(folder, inputs, dtype):
    """The expected tensors of a base model, and the norm of every weight's gradient."""
    model = load_base(folder, dtype)
    ids, labels = inputs["input_ids"], inputs["labels"]
    padded = [inputs[f"padded_{key}"] for key in ("input_ids", "labels", "attention_mask")]
    out = model(input_ids=ids, labels=labels, output_hidden_states=True)
    out.loss.backward()
    tensors = {f"hidden_states.{i}": h.detach() for i, h in enumerate(out.hidden_states)}
    tensors |= {
        "logits": out.logits.detach(), "loss": out.loss.detach(),
        "padded_logits": logits_of(model, padded[0], padded[2]),
        "padded_loss": loss_of(model, *padded).detach(),
    }
    return tensors, {name: p.grad.norm().item() for name, p in model.named_parameters()}


def train(model, inputs, steps, accum=1, warmup=None, max_grad_norm=float("inf")):
    """AdamW on every trainable tensor; micro-batch k is train row k mod 10, and the loss of a
    step is the mean of its micro-batches' losses. Without `warmup` the rate is constant."""
    params = list(trainable(model).values())
    optimizer = torch.optim.AdamW(params, **ADAMW)
    kind = "constant" if warmup is None else "cosine"
    scheduler = get_scheduler(kind, optimizer, warmup, steps)
    losses, norms, rates = [], [], []
    for step in range(steps):
        losses.append(0.0)
        for micro in range(step * accum, (step + 1) * accum):
            row = micro % STEPS
            loss = loss_of(model, inputs["train_input_ids"][row], inputs["train_labels"][row])
            (loss / accum).backward()
            losses[-1] += loss.item() / accum
        norms.append(torch.nn.utils.clip_grad_norm_(params, max_grad_norm).item())
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return losses, norms, rates


def first_step(folder, inputs, dtype):
    model = load_adapter(folder, dtype)
    out = model(input_ids=inputs["input_ids"], labels=inputs["labels"])
    out.loss.backward()
    grads = {key: p.grad for key, p in trainable(model).items()}
    return {"logits": out.logits.detach(), "loss": out.loss.detach()} | prefixed("grad", grads)


def ten_steps(folder, inputs, dtype):
    model = load_adapter(folder, dtype)
    losses, _, _ = train(model, inputs, STEPS)
    tensors = {"step_losses": torch.tensor(losses),
               "final_logits": logits_of(model, inputs["input_ids"])}
    return tensors | prefixed("final", trainable(model))


def recipe_steps(folder, inputs, dtype):
    model = load_adapter(folder, dtype)
    losses, norms, rates = train(model, inputs, **RECIPE)
    tensors = {"recipe_step_losses": torch.tensor(losses),
               "recipe_grad_norms": torch.tensor(norms)}
    tensors |= prefixed("recipe_final", trainable(model))
    return tensors, RECIPE | {"schedule": "cosine", "step_losses": losses, "grad_norms": norms,
                              "lrs": rates}


def adapter_expected(folder, inputs, with_recipe, dtype):
    """The expected tensors of an adapter, the merged state dict, and the recipe's report."""
    tensors = first_step(folder, inputs, dtype) | ten_steps(folder, inputs, dtype)
    recipe = None
    if with_recipe:
        recipe_tensors, recipe = recipe_steps(folder, inputs, dtype)
        tensors |= recipe_tensors
    merged = load_adapter(folder, dtype).merge_and_unload()
    tensors["merged_logits"] = logits_of(merged, inputs["input_ids"])
    return tensors, merged.state_dict(), recipe


def compute_base(root, case, seed, dtype):
    folder = root / case
    inputs = load_file(folder / "inputs.safetensors")
    tensors, grad_norms = base_expected(folder, inputs, dtype)
    tensors["generated_ids"], margin = greedy(load_base(folder, dtype), inputs["prompt_ids"])
    yield f"{case}/expected.safetensors", tensors
    yield f"{case}/case.json", {
        "case": case, "seed": seed, "loss": tensors["loss"].item(),
        "padded_loss": tensors["padded_loss"].item(),
        "generated_ids": tensors["generated_ids"][0].tolist(), "prompt_len": PROMPT,
        "min_top1_top2_margin_in_greedy": margin, "logit_std": tensors["logits"].std().item(),
        "full_finetune_grad_l2": grad_norms,
        "config_style": "classic" if case == "mha" else "v5", "weights_dtype": "float32",
        "hidden_states_note": ".0 is the embedding, .i the output of block i, the last one normed",
        "sharded_twin": SHARDED.get(case),
    }


def compute_adapter(root, name, seed, dtype):
    folder, whole = root / name, name == RECIPE_ADAPTER
    inputs = load_file(folder.parent / "inputs.safetensors")
    tensors, merged, recipe = adapter_expected(folder, inputs, whole, dtype)
    model, base = load_adapter(folder, dtype), load_base(folder.parent, dtype).state_dict()
    tensors["generated_ids"], margin = greedy(model, inputs["prompt_ids"])
    changed = {key: t for key, t in merged.items() if not torch.equal(t, base[key])}
    merged_file = "merged/model.safetensors" if whole else "merged_changed.safetensors"
    yield f"{name}/expected.safetensors", tensors
    yield f"{name}/{merged_file}", merged if whole else changed
    params = trainable(model)
    grads = [t for key, t in tensors.items() if key.startswith("grad.")]
    yield f"{name}/case.json", {
        "adapter": folder.name, "base": folder.parent.name, "seed": seed, "peft": ADAPTERS[name],
        "scaling": next(m.scaling["default"] for m in model.modules() if isinstance(m, LoraLayer)),
        "trainable_parameters": sum(p.numel() for p in params.values()), "tensors": len(params),
        "loss": tensors["loss"].item(), "step_losses": tensors["step_losses"].tolist(),
        "generated_ids": tensors["generated_ids"][0].tolist(),
        "min_top1_top2_margin_in_greedy": margin,
        "max_abs_grad": max(t.abs().max().item() for t in grads),
        **({"recipe": recipe} if recipe else {}),
        "merged": merged_file, "merged_changed_tensors": len(changed),
    }


def schedules():
    def rates(kind, warmup, total):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=SCHEDULE_LR)
        scheduler = get_scheduler(kind, optimizer, warmup, total)
        result = []
        for _ in range(total):
            result.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        return result
    return {"base_lr": SCHEDULE_LR, "lrs": {
        f"{kind}_warmup{warmup}_total{total}": rates(kind, warmup, total)
        for kind in SCHEDULES for warmup, total in SCHEDULE_LENGTHS}}


def manifest():
    modules = (torch, transformers, peft, safetensors, numpy)
    return {
        "versions": {module.__name__: module.__version__ for module in modules},
        "dims": DIMS, "kv_heads": KV_HEADS, "adamw": ADAMW, "steps": STEPS,
        "loss": "mean over the positions t whose labels[t + 1] is not -100",
        "attention": "eager, causal, f32", "cases": CASES, "adapters": list(ADAPTERS),
    }


def compute(root, seeds, dtype):
    """Yields every expected file: its path below `root`, and its tensors or JSON value."""
    for case in CASES:
        yield from compute_base(root, case, seeds.get(case), dtype)
    for name in ADAPTERS:
        yield from compute_adapter(root, name, seeds.get(name), dtype)
    yield "schedules.json", schedules()
    yield "manifest.json", manifest()
