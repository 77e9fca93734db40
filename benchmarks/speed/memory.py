"""How much memory `lushan tune` takes with a model of half a billion weights: the most that was resident, beside what it predicts.

The model has the shape of Qwen2.5-0.5B with random weights, and the tokenizer of another folder; rows are drawn as in
`growth.py`, 16 a step. Each run is a process of its own; loading, evaluations and the report are in its figure.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from growth import TOKENIZER_FILES, write_rows

NUM_ROWS = 160
RUNS = (
    ("full", "head", 12),
    ("full", "generate", 12),
    ("lora", "head", 6),
    ("lora", "generate", 6),
)
"""What is trained, what answers, and the most GB that are wanted."""
NEEDED = re.compile(r"needs about ([\d.]+) GiB")
HEADER = """\
| what is trained | answers by | GB predicted for training | most GB resident | aim |
|---|---|---|---|---|"""


def write_model(like: Path, folder: Path) -> int:
    """Write the model; its number of weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM  # slow to import

    folder.mkdir()
    for name in TOKENIZER_FILES:
        if (like / name).is_file():
            shutil.copy(like / name, folder / name)
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4_864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return model.num_parameters()


def measure(
    model: Path, data: Path, run: Path, *, adapter: str, answer: str
) -> tuple[float, float]:
    """Tune once; GB that were predicted, and the most that were resident."""
    command = [sys.executable, "-m", "lushan", "tune", data, "--model", model, "--out", run]
    command += ["--adapter", adapter, "--answer", answer, "--epochs", "1", "--no-baselines"]
    command += ["--overwrite", "--overlap", "keep", "--set", "training.rows_per_step=16"]
    command += ["--set", "model.precision=bf16"]
    environment = {**os.environ, "LUSHAN_CACHE": str(run.parent / "cache")}
    subprocess.run(list(map(str, command)), env=environment, stdout=subprocess.DEVNULL, check=True)
    found = json.loads((run / "results.json").read_text(encoding="utf-8"))
    told = next(each["why"] for each in found["choices"] if each["name"] == "engine.batch_tokens")
    needed = NEEDED.search(told)
    if needed is None:
        raise SystemExit(f"`{told}` does not say what training needs.")
    return float(needed[1]) * (1 << 30) / 1e9, found["peak_rss_bytes"] / 1e9


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--like", type=Path, required=True, help="model folder with the tokenizer")
    parser.add_argument("--work", type=Path, help="folder for the model and the runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memory-", dir=options.work) as name:
        work = Path(name)
        count = write_model(options.like, work / "model")
        print(f"{count:,} weights.\n\n{HEADER}", flush=True)
        rows = argparse.Namespace(model=options.like, format="jsonl", distinct=NUM_ROWS)
        write_rows(work / "rows", NUM_ROWS, options=rows)
        for adapter, answer, aim in RUNS:
            predicted, most = measure(
                work / "model", work / "rows", work / "run", adapter=adapter, answer=answer
            )
            print(
                f"| `{adapter}` | `{answer}` | {predicted:.1f} | {most:.1f} | {aim} |", flush=True
            )


if __name__ == "__main__":
    main()
