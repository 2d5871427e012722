"""Compares the losses of two runs of one configuration, on two devices say:

    python compare_runs.py RUN_DIR OTHER_RUN_DIR [TOLERANCE]

Single steps drift apart, as rounding errors grow; means of a twentieth of the run must agree within
the tolerance, a fraction (0.02 unless given).
"""

import json
import math
import pathlib
import sys


def losses(run: str) -> list[float]:
    lines = map(json.loads, (pathlib.Path(run) / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def main(run: str, other: str, tolerance: float = 0.02) -> None:
    pairs = list(zip(losses(run), losses(other), strict=True))
    length = max(len(pairs) // 20, 1)
    worst_step = max(abs(a - b) for a, b in pairs)
    worst = 0.0
    for start in range(0, len(pairs), length):
        part = pairs[start : start + length]
        a, b = (math.fsum(column) / len(part) for column in zip(*part, strict=True))
        worst = max(worst, abs(a - b) / max(abs(a), abs(b)))
        print(f"steps {start + 1} to {start + len(part)}: {a:.4f} and {b:.4f}")
    print(f"largest difference: {worst:.2%} of a mean, {worst_step:.4f} of a step")
    assert worst <= float(tolerance), "the runs differ"


if __name__ == "__main__":
    main(*sys.argv[1:])
