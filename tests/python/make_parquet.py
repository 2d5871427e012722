#!/usr/bin/env python3
"""Makes the Parquet files of `tests/fixtures/parquet`, with pyarrow, and the same records as JSON lines.

    python make_parquet.py tests/fixtures/parquet

A file for each codec that the Hub's files have: conversations with a list of messages, tools as a text, and a system message,
of which some are null; several row groups.
"""

import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet

CODECS = ["none", "snappy", "gzip", "zstd"]


def records() -> list[dict]:
    def record(number: int) -> dict:
        messages = [{"role": "user", "content": f"he {number} \"é\""}, {"role": "assistant", "content": "hello " * (number % 3)}]
        return {"messages": messages, "system": None if number % 2 else "he", "number": number, "score": number / 4}
    return [record(number) for number in range(20)]


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(records())
    for codec in CODECS:
        pyarrow.parquet.write_table(table, folder / f"{codec}.parquet", compression=codec, row_group_size=8)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records()]
    (folder / "records.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
