"""Does a contrastive start help where there are few labels? Plain tuning, tuning with such a start, and TF-IDF.

Rows are drawn from train and asked about on validation; test is not read. Each result is a line of a file, and what is
there is not run again, so that the command can be stopped and started:

    LUSHAN_DATA=path/to/data python benchmarks/quality/few_labels.py
    python benchmarks/quality/few_labels.py --table-only

A contrastive start as in SetFit (Tunstall et al. 2022): pairs of the few rows, the squared distance of the cosine of
their hidden states from 1 (same label) or 0, then a logistic regression on the states.

Shapes: N documents, D width, P pairs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import table
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional

from lushan.backbones.heads import class_logits
from lushan.backbones.inspect import describe
from lushan.backbones.load import Backbone
from lushan.backbones.sources import locate
from lushan.backbones.tokenizer import Tokenizer
from lushan.catalog import load_task
from lushan.data.batching import MAX_BATCH_TOKENS, pack, split_lengths
from lushan.inference.predict import Predictor
from lushan.records import Batch, Features, LossSum, TaskState
from lushan.training.checkpoint import Checkpoints
from lushan.workflows.prepare import prepare
from lushan.workflows.progress import say_nothing
from lushan.workflows.recipe import make_recipe
from lushan.workflows.setup import Setup, plan
from lushan.workflows.tune import train, untrained

CELLS = Path(__file__).with_name("few_labels.jsonl")
MODEL = "SmolLM2-135M-Instruct"
SETS = ("sst2", "trec6")
SIZES = (8, 16, 64)
"""Training rows for each label."""
SEEDS = (0, 1, 2)
ROWS_PER_STEP = 16
NUM_STEPS = {"head": 60, "lora": 40, "contrastive_lora": 40}
NUM_LAYER_STEPS = 160
TITLES = {
    "tf_idf": "TF-IDF + logistic regression",
    "head": "head, 60 steps",
    "regression": "logistic regression on frozen states",
    "contrastive_layer": "contrastive layer on frozen states, then regression",
    "lora": "LoRA, 40 steps",
    "contrastive_lora": "contrastive LoRA, 40 steps, then regression",
}


def cosine_loss(states_ND: Tensor, targets_N: Tensor) -> Tensor:
    """Squared distance of the cosine of every pair from 1 or 0; both kinds of pairs weigh the same."""
    unit_ND = functional.normalize(states_ND.float(), dim=1)
    first_P, second_P = torch.triu_indices(len(unit_ND), len(unit_ND), offset=1)
    cosine_P = (unit_ND @ unit_ND.T)[first_P, second_P]
    is_same_P = targets_N[first_P] == targets_N[second_P]
    half_P = torch.where(is_same_P, is_same_P.sum(), (~is_same_P).sum()).clamp(min=1) * 2
    return ((cosine_P - is_same_P.float()) ** 2 / half_P).sum()


class ContrastiveTask:
    """Classification whose loss is that of pairs."""

    def __init__(self, task: Any) -> None:  # noqa: ANN401
        self._task = task

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._task, name)

    def loss(
        self, backbone: Backbone, batch: Batch, state: TaskState, *, dropout: float
    ) -> LossSum:
        """Mean over the pairs of a batch, for each of its documents."""
        states_ND = backbone.hidden_states(batch)[batch.last_N]
        targets_N = torch.tensor([each.target for each in batch.features])
        count = len(batch.features)
        return LossSum(cosine_loss(states_ND, targets_N) * count, float(count))


@dataclass(frozen=True)
class Rows:
    """The few rows and those that are asked about, as documents with their class."""

    texts: list[str]
    asked_texts: list[str]
    few: list[Features]
    asked: list[Features]

    @property
    def targets(self) -> NDArray[np.int64]:
        """Classes of the few rows."""
        return np.array([each.target for each in self.few])

    def accuracy(self, answers: NDArray[Any]) -> float:
        """Share of the asked rows that are answered right."""
        return float(np.mean(answers == np.array([each.target for each in self.asked])))


def write_rows(folder: Path, source: Path, size: int, seed: int) -> None:
    """Write so many rows of each label, drawn by the seed, and the validation rows."""
    with gzip.open(source / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    known = [json.loads(line) for line in (source / "validation.jsonl").open(encoding="utf-8")]
    asked = {row["text"].casefold() for row in known}
    rows = [row for row in rows if row["text"].casefold() not in asked]
    random.Random(seed).shuffle(rows)
    labels = sorted({row["label"] for row in rows})
    few = [row for label in labels for row in [x for x in rows if x["label"] == label][:size]]
    # A run must have test rows; nothing reads these two.
    for name, part in (("train", few), ("validation", known), ("test", known[:2])):
        lines = (json.dumps({"text": row["text"], "label": row["label"]}) for row in part)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make(folder: Path, *, adapter: str, seed: int) -> tuple[Setup, Rows]:
    """Set a run up as `lushan tune` does, and give its rows as documents."""
    flags = {
        "model": {"name": MODEL},
        "adapter": {"method": adapter},
        "training": {"epochs": 1, "rows_per_step": ROWS_PER_STEP, "keep": "last"},
        "engine": {"compile": False},
        "data": {"overlap": "keep"},
        "seed": seed,
    }
    recipe = make_recipe(None, flags, [])
    task, base = load_task("classification"), locate(MODEL)
    tokenizer = Tokenizer.load(base)
    prepared = prepare(folder, task=task, recipe=recipe)
    setup, _, _ = plan(
        prepared, recipe, task=task, base=base, facts=describe(base), tokenizer=tokenizer
    )
    parts = prepared.parts
    rows = Rows(
        [each.text for each in parts.train],
        [each.text for each in parts.validation],
        list(setup.features["train"]),
        list(setup.features["validation"]),
    )
    return setup, rows


def trained(setup: Setup, *, num_steps: int, is_contrastive: bool = False) -> Predictor:
    """Train for so many steps on the rows, repeated as often as that takes."""
    rows, generator = list(setup.features["train"]), random.Random(setup.recipe.seed)
    repeated: list[Features] = []
    while len(repeated) < num_steps * ROWS_PER_STEP:
        repeated += generator.sample(rows, len(rows))
    documents = [replace(each, example_index=place) for place, each in enumerate(repeated)]
    features = {**setup.features, "train": documents[: num_steps * ROWS_PER_STEP]}
    features["validation"] = list(setup.features["validation"])[:1]
    parts = replace(setup.parts, validation=setup.parts.validation[:1])
    setup = replace(setup, features=features, parts=parts)
    predictor = untrained(setup, tell=say_nothing)
    if is_contrastive:
        setup = replace(setup, task=ContrastiveTask(setup.task))
        for each in predictor.backbone.plain_model.score.parameters():
            each.requires_grad_(requires_grad=False)
    with tempfile.TemporaryDirectory() as folder:
        train(predictor, setup, checkpoints=Checkpoints(Path(folder)), tell=say_nothing)
    return predictor


def of_documents(
    predictor: Predictor, documents: Sequence[Features], give: Callable[[Tensor, Batch], Tensor]
) -> NDArray[Any]:
    """Run documents through a model and take something of the hidden states of each; in order."""
    order = sorted(range(len(documents)), key=lambda n: len(documents[n].token_ids))
    lengths = [len(documents[n].token_ids) for n in order]
    found: dict[int, NDArray[Any]] = {}
    predictor.backbone.model.eval()
    with torch.inference_mode():
        for start, end in split_lengths(lengths, MAX_BATCH_TOKENS):
            batch = pack([documents[n] for n in order[start:end]], device="cpu")
            values = give(predictor.backbone.hidden_states(batch), batch).float().numpy()
            found |= dict(zip(order[start:end], values, strict=True))
    return np.stack([found[n] for n in range(len(documents))])


def states(predictor: Predictor, documents: Sequence[Features]) -> NDArray[Any]:
    """Hidden states at the last token, (N, D)."""
    return of_documents(predictor, documents, lambda hidden_TD, batch: hidden_TD[batch.last_N])


def answers_of_head(predictor: Predictor, documents: Sequence[Features]) -> NDArray[Any]:
    """Classes that the head answers, (N,)."""
    give = partial(class_logits, predictor.backbone.plain_model)
    return of_documents(predictor, documents, give).argmax(axis=1)


def regression(few: NDArray[Any], targets: NDArray[Any], asked: NDArray[Any]) -> NDArray[Any]:
    """What a logistic regression on states of length 1 answers."""
    few, asked = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (few, asked))
    model = LogisticRegression(max_iter=1000, C=10.0).fit(few, targets)
    return np.asarray(model.predict(asked))


def with_layer(
    few: NDArray[Any], targets: NDArray[Any], asked: NDArray[Any], *, seed: int
) -> NDArray[Any]:
    """Train a linear layer on pairs of frozen states, then the regression on what it gives."""
    torch.manual_seed(seed)
    mean, scale = few.mean(axis=0), few.std(axis=0) + 1e-6
    few_ND, asked_ND = (torch.tensor((each - mean) / scale) for each in (few, asked))
    targets_N = torch.tensor(targets)
    layer = torch.nn.Linear(few.shape[1], 128)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=0.01)
    for _ in range(NUM_LAYER_STEPS):
        places_N = torch.randperm(len(targets_N))[:64]
        loss = cosine_loss(layer(few_ND[places_N]), targets_N[places_N])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        return regression(layer(few_ND).numpy(), targets, layer(asked_ND).numpy())


def tf_idf(rows: Rows) -> NDArray[Any]:
    """What the classical baseline answers; its strength of regularisation is fixed: few rows cannot choose it."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(max_iter=1000, C=10.0)
    model.fit(words.fit_transform(rows.texts), rows.targets)
    return np.asarray(model.predict(words.transform(rows.asked_texts)))


def answers(
    system: str, folder: Path, seed: int, *, frozen: dict[str, NDArray[Any]], name: str
) -> tuple[Rows, NDArray[Any]]:
    """Give the rows, and what a system answers to those that are asked.

    Args:
        system: Which.
        folder: The rows.
        seed: Of the tuning.
        frozen: Set to the states of its validation rows in the pretrained model, which are the same for every draw.
        name: The set.
    """
    setup, rows = make(folder, adapter="lora" if "lora" in system else "head", seed=seed)
    if system == "tf_idf":
        return rows, tf_idf(rows)
    if system == "lora":
        predictor = trained(setup, num_steps=NUM_STEPS[system])
        return rows, answers_of_head(predictor, rows.asked)
    if system == "contrastive_lora":
        predictor = trained(setup, num_steps=NUM_STEPS[system], is_contrastive=True)
        few, asked = states(predictor, rows.few), states(predictor, rows.asked)
        return rows, regression(few, rows.targets, asked)
    predictor = untrained(setup, tell=say_nothing)
    if name not in frozen:
        frozen[name] = states(predictor, rows.asked)
    few, asked = states(predictor, rows.few), frozen[name]
    if system == "regression":
        return rows, regression(few, rows.targets, asked)
    if system == "contrastive_layer":
        return rows, with_layer(few, rows.targets, asked, seed=seed)
    head = trained(setup, num_steps=NUM_STEPS[system]).backbone.plain_model.score.weight
    return rows, (asked @ head.detach().float().numpy().T).argmax(axis=1)


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Read what is there."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def print_table(cells: Iterable[Mapping[str, Any]]) -> None:
    """Print the mean accuracy on the validation rows, and over how many draws of the rows it varies how much."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for cell in cells:
        key = (cell["system"], cell["set"], cell["size"])
        found.setdefault(key, []).append(cell["accuracy"])
    columns = [(name, size) for name in SETS for size in SIZES]
    print("| " + " | ".join(["", *(f"{name}, {size}" for name, size in columns)]) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for system, title in TITLES.items():
        values = [_shown(found.get((system, *column), [])) for column in columns]
        print("| " + " | ".join([title, *values]) + " |")


def _shown(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread} ({len(values)})"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("LUSHAN_DATA"))
    parser.add_argument("--out", type=Path, default=CELLS)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--systems", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    options = parser.parse_args()
    if not options.data and not options.table_only:
        parser.error("set LUSHAN_DATA or give --data")
    return options


def main() -> None:
    """Run what has no result yet, and print the table."""
    options = parse()
    cells = read_cells(options.out)
    wanted = [
        {"set": name, "size": size, "seed": seed, "system": system}
        for size in options.sizes
        for seed in options.seeds
        for name in options.sets
        for system in options.systems
    ]
    known = [{name: cell[name] for name in wanted[0]} for cell in cells]
    frozen: dict[str, NDArray[Any]] = {}
    missing = [] if options.table_only else [cell for cell in wanted if cell not in known]
    if not options.table_only:
        table.tell_kept(len(wanted) - len(missing), options.out)
    for cell in missing:
        source = Path(options.data) / "classification" / cell["set"]
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder), source, cell["size"], cell["seed"])
            rows, found = answers(
                cell["system"], Path(folder), cell["seed"], frozen=frozen, name=cell["set"]
            )
        cells.append({**cell, "accuracy": rows.accuracy(found)})
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(cells[-1]) + "\n")
    print_table(cells)


if __name__ == "__main__":
    main()
