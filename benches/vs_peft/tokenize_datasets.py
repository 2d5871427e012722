"""Makes records like Alpaca's and lets this crate and datasets.map in Python make samples of them,
in turn; checks that these are the same, and prints a table of medians. Then this crate streams more
of them, reads them again and takes batches, for the memory. Called by run.sh --data."""

import argparse
import json
import os
import pathlib
import random
import re
import statistics
import sys
from importlib.metadata import version

from compare import BUSY_SHARE, busy_share, cpu_name, run

HERE = pathlib.Path(__file__).parent
# Of the samples of both programs so many are compared, and the number of all tokens.
SHOWN = 100
# Of an epoch of the streamed records.
STEPS = 100
# One word in so many becomes a made-up one, more than real texts have of words that are new: a
# cache of words must not profit from records that come again.
NEW_WORD_EVERY = 10
SYLLABLES = [consonant + vowel for consonant in "bdfghklmnprstvwz" for vowel in "aeiou"]
NUMBER = re.compile("[0-9]+")
WAYS = {"datasets.map, record by record": [], "datasets.map, batched": ["--batched"]}
PACKAGES = ["datasets", "transformers", "tokenizers"]
HEADER = """
| way | seconds | records/s | tokens/s | ours to it |
|---|---|---|---|---|"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--alpaca", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--tokenize", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder of the records")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each program")
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--streamed", type=int, default=1_000_000, help="for the memory; or 0")
    parser.add_argument("--max-seq-len", type=int, default=512)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: all")
    return parser.parse_args()


def changed(text: str, draw: random.Random) -> str:
    """The text with other numbers, and some words that are new."""
    words = text.split(" ")
    for place in draw.sample(range(len(words)), len(words) // NEW_WORD_EVERY):
        words[place] = "".join(draw.choices(SYLLABLES, k=draw.randint(2, 4)))
    return NUMBER.sub(lambda found: str(draw.randrange(10 ** len(found[0]))), " ".join(words))


def make_records(alpaca: pathlib.Path, path: pathlib.Path, count: int) -> None:
    """JSON lines: the file's records again and again, each time changed."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    known, draw = json.loads(alpaca.read_text("utf-8")), random.Random(0)
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("w") as file:
        for index in range(count):
            record = known[index % len(known)]
            fields = {key: changed(text, draw) for key, text in record.items()}
            file.write(json.dumps(fields) + "\n")
    unfinished.rename(path)


def records_file(args: argparse.Namespace, count: int) -> pathlib.Path:
    path = args.out / f"{count}.jsonl"
    make_records(args.alpaca, path, count)
    return path


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    records = ["--records", str(records_file(args, args.records))]
    shared = [*records, "--tokenizer", str(args.tokenizer), "--max-seq-len", str(args.max_seq_len)]
    shared += ["--shown", str(SHOWN)]
    program = [sys.executable, str(HERE / "datasets_map.py"), *shared]
    program += ["--processes", str(args.processes)]
    others = {name: [*program, *options] for name, options in WAYS.items()}
    return {"this crate, with the reading": [args.tokenize, *shared], **others}


def check(name: str, ours: dict, other: dict) -> None:
    for figure in ("records", "tokens"):
        if ours[figure] != other[figure]:
            raise SystemExit(f"{name}: {other[figure]} {figure}, ours {ours[figure]}")
    for index, pair in enumerate(zip(ours["samples"], other["samples"], strict=True)):
        if pair[0] != pair[1]:
            raise SystemExit(f"{name}: record {index} is {pair[1]}, ours {pair[0]}")


def compare(args: argparse.Namespace) -> dict[str, list[dict]]:
    """All ways in turn, each round in the other order."""
    ways, busy = list(commands(args).items()), 0.0
    results = {name: [] for name, _ in ways}
    for index in range(args.rounds):
        for name, command in ways if index % 2 else reversed(ways):
            busy = max(busy, busy_share())
            results[name].append(run(command, args.processes))
        (ours, *_), *others = ((results[name][-1], name) for name, _ in ways)
        for other, name in others:
            check(name, ours, other)
    if busy > BUSY_SHARE:
        what = f"other programs used up to {busy:.0%} of the CPU time"
        print(f"warning: before the runs {what}", file=sys.stderr)
    return results


def print_table(results: dict[str, list[dict]]) -> None:
    def median(name: str, figure: str) -> float:
        return statistics.median(result[figure] for result in results[name])

    ours, *others = results
    print(HEADER)
    for name, runs in results.items():
        seconds = median(name, "seconds")
        speeds = [f"{runs[0][figure] / seconds:.0f}" for figure in ("records", "tokens")]
        ratio = f"{seconds / median(ours, 'seconds'):.2f}"
        print(f"| {name} | {seconds:.2f} | {' | '.join(speeds)} | {ratio} |")
    loading = statistics.median(median(name, "loading_seconds") for name in others)
    print(f"\ndatasets read the file in {loading:.2f} s before that")


def stream(args: argparse.Namespace) -> None:
    """How much memory encoding many records and batches of them take."""
    path = records_file(args, args.streamed)
    options = ["--tokenizer", str(args.tokenizer), "--max-seq-len", str(args.max_seq_len)]
    command = [args.tokenize, "--records", str(path), *options, "--steps", str(STEPS)]
    result = run(command, args.processes)
    above = {
        name: (result[f"{name}_bytes"] - result["start_bytes"]) / 1e6
        for name in ("encoding", "peak")
    }
    size = path.stat().st_size / 1e6
    print(f"\n{result['records']} records, {size:.0f} MB, {result['tokens']} tokens")
    print(f"encoded with {above['encoding']:.0f} MB above the start")
    print(f"and read again, in batches, with {above['peak']:.0f} MB above it at most")


def main(args: argparse.Namespace) -> None:
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"{cpu_name()}, processes: {args.processes}, rounds: {args.rounds}; {packages}")
    print_table(compare(args))
    if args.streamed:
        stream(args)


if __name__ == "__main__":
    main(arguments())
