"""Checks the summary that a run of the embedded default leaves: python check_summary.py RUN_DIR"""

import json
import pathlib
import sys

KEYS = {
    "steps",
    "final_loss",
    "total_params",
    "trainable_params",
    "tokens_per_second",
    "peak_memory_bytes",
    "exact_match_base",
    "exact_match_finetuned",
}


def main(run_dir: str) -> None:
    run = pathlib.Path(run_dir)
    summary = json.loads((run / "summary.json").read_text())
    missing = KEYS - summary.keys()
    assert not missing, f"summary.json lacks {sorted(missing)}"
    base, finetuned = summary["exact_match_base"], summary["exact_match_finetuned"]
    assert base <= 0.10, f"the base model is right in {base:.0%}, at most 10 % is expected"
    assert finetuned >= 0.80, f"the finetuned model is right in {finetuned:.0%}, not 80 %"
    for name in [
        "config.yaml",
        "metrics.jsonl",
        "loss_curve.svg",
        "curves.svg",
        "report.html",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "merged/tokenizer.json",
    ]:
        assert (run / name).is_file(), f"the run left no {name}"
    print(json.dumps(summary))


if __name__ == "__main__":
    main(sys.argv[1])
