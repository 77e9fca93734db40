"""Score texts with a tuned run, through the Python interface."""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import lushan

BYTES_PER_KIBIBYTE = 1024


def main() -> None:
    """Score every text, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl")
    parser.add_argument("--run", type=Path, required=True, help="folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    options = parser.parse_args()
    lines = (options.data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    model = lushan.load(options.run)
    model.predict(texts[:8])
    started = time.perf_counter()
    model.predict(texts)
    seconds = time.perf_counter() - started
    result = {
        "texts_per_second": len(texts) / seconds,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_KIBIBYTE,
    }
    options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
