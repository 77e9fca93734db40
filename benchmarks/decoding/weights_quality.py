"""What rounding weights costs: agreement of the most likely token with float32, and the score of a tuned model.

Texts are read as they are (teacher forcing), so that one other token does not change all that follow. The tuned model
is scored on validation rows in each form; forms are compared row by row with the form it was trained in.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from lushan.backbones.heads import vocabulary_logits
from lushan.backbones.load import Backbone
from lushan.backbones.packed import load_untuned, weight_bytes
from lushan.backbones.sources import locate
from lushan.data.batching import pack
from lushan.evaluation.compare import compare_runs
from lushan.records import Features
from lushan.workflows.evaluate import evaluate

FORMS = ("fp32", "bf16", "int8", "int4")
NUM_TOKENS = 2_000
DOCUMENT_TOKENS = 250


def main() -> None:
    """Measure, write the result file, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a name of the cache, or a folder")
    parser.add_argument("--texts", type=Path, required=True, help="JSON Lines with `text`")
    parser.add_argument("--run", type=Path, help="a run that was tuned")
    parser.add_argument("--rows", type=Path, help="its validation rows")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {
        "model": Path(options.model).name,
        "texts": options.texts.name,
        "agreement": agreement(options.model, options.texts),
    }
    if options.run is not None:
        found |= {"run": options.run.name, "rows": options.rows.name}
        found["score"] = scores(options.run, options.rows)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(found)))


def agreement(model: str, texts: Path) -> dict[str, Any]:
    """Ask every form for the most likely token at each place of the same texts."""
    expected: list[int] = []
    by_form: dict[str, Any] = {}
    documents: list[Features] = []
    for form in FORMS:
        before = psutil.Process().memory_info().rss
        backbone = load_untuned(locate(model), purpose="language", weights=form)
        documents = documents or read_documents(backbone, texts)
        resident = psutil.Process().memory_info().rss - before
        found = most_likely(backbone, documents)
        expected = expected or found
        equal = sum(ours == theirs for ours, theirs in zip(found, expected, strict=True))
        by_form[form] = {
            "num_tokens": len(found),
            "agreement": equal / len(found),
            "weight_megabytes": weight_bytes(backbone.model) / 1e6,
            "grown_megabytes": resident / 1e6,
        }
        del backbone
    return by_form


def read_documents(backbone: Backbone, texts: Path) -> list[Features]:
    """Cut texts into documents that together have `NUM_TOKENS`, the shortest first."""
    documents: list[Features] = []
    left = NUM_TOKENS
    for text in read_texts(texts):
        (encoded,) = backbone.tokenizer.encode([text])
        ids = tuple(encoded.ids[: min(left, DOCUMENT_TOKENS)])
        left -= len(ids)
        documents.append(Features(ids, "", len(documents)))
        if left == 0:
            return sorted(documents, key=lambda each: len(each.token_ids))
    raise SystemExit(f"`{texts}` has {NUM_TOKENS - left} tokens, fewer than {NUM_TOKENS}.")


def read_texts(file: Path) -> Iterator[str]:
    """Stream the texts of a file."""
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
        for line in stream:
            yield json.loads(line)["text"]


def most_likely(backbone: Backbone, documents: Sequence[Features]) -> list[int]:
    """Give the most likely next token after each token of each document."""
    tokens: list[int] = []
    with torch.inference_mode():
        for document in documents:
            hidden_TD: Tensor = backbone.hidden_states(pack([document]))
            tokens += vocabulary_logits(backbone.plain_model, hidden_TD).argmax(dim=-1).tolist()
    return tokens


def scores(run: Path, rows: Path) -> dict[str, Any]:
    """Score a run in each form, and hold each to the form that it was trained in."""
    trained: str = evaluate(run, rows).result["weights"]
    results = {form: evaluate(run, rows, weights=form) for form in FORMS}
    by_form: dict[str, Any] = {}
    for form, (result, correct) in results.items():
        by_form[form] = {"main_metric": result["main_metric"], "metrics": result["metrics"]}
        if form != trained:
            pair = {trained: results[trained].correct, form: correct}
            (compared,) = compare_runs(pair, seed=0)
            by_form[form]["against_trained"] = compared.as_dict()
    return by_form


def table(found: dict[str, Any]) -> Iterator[str]:
    """Give the lines of the table for docs/benchmarks.md."""
    yield "| weights | MB | most likely token as in fp32 | score | rows won, lost against the trained form | p |"
    yield "|---|---|---|---|---|---|"
    for form, each in found["agreement"].items():
        scored = found.get("score", {}).get(form)
        score, pair, p_value = "-", "-", "-"
        if scored:
            score = f"{scored['metrics'][scored['main_metric']]['value']:.4f}"
            if compared := scored.get("against_trained"):
                pair = f"{compared['wins']}, {compared['losses']}"
                p_value = f"{compared['p_value']:.2f}"
        yield (
            f"| {form} | {each['weight_megabytes']:.0f} | {each['agreement']:.2%} of {each['num_tokens']:,} | "
            f"{score} | {pair} | {p_value} |"
        )


if __name__ == "__main__":
    main()
