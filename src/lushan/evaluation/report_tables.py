"""The tables and charts of a report as plain values, decided and in order; the template only draws."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lushan.evaluation import charts, phrases

MAX_MATRIX_LABELS = 30
"""Up to so many labels the confusion matrix is drawn; beyond, the most confused pairs tell more."""
MAX_PAIRS = 15
"""Most confused pairs shown."""
MAX_WEAKEST = 12
"""Weakest labels shown before the full table."""
MAX_TEXT_CHARACTERS = 600
"""A longer text among the worst errors is cut, and says so."""

_LEDGER_LINES = {
    "num_read": "Rows read",
    "num_examples": "Examples used",
    "num_added": "Of these, written or labelled by a model",
    "num_cut_examples": "Examples shortened",
    "num_cut_truths": "Of these, with their truth cut off, all or in part",
    "num_documents": "Documents they became",
    "num_tokens": "Tokens read by the model",
    "num_supervised": "Targets the loss is taken on",
    "num_masked_tokens": "Tokens read without loss",
    "num_cut_tokens": "Tokens left out, too long",
    "num_padding_tokens": "Padding tokens",
    "trains_stop_token": "Stop token is trained",
}
_PHASES = {
    "check": "Reading and checking data",
    "before_evaluation": "Asking the untouched model",
    "compile": "Compiling",
    "train": "Training",
    "validation": "Validation",
    "after_evaluation": "Testing the tuned model",
    "baselines": "Baselines",
    "label_curve": "Tuning on few rows",
    "report": "Report",
}
_OPTIONAL: dict[str, Any] = {
    "before": {},
    "baselines": {},
    "before_is_model": True,
    "baseline_notes": {},
    "system_titles": {},
    "comparisons": {},
    "seconds": {},
    "labels": [],
    "positive_label": None,
    "per_class": [],
    "confusion": [],
    "worst_errors": [],
    "choices": [],
    "validation": [],
    "label_curve": [],
    "thresholds": [],
    "num_not_drawn": 0,
    "kept_overlap": {},
    "best_epoch": None,
    "kept_epoch": None,
    "num_train_tokens": None,
    "train_tokens_per_second": None,
    "peak_rss_bytes": None,
    "versions": {},
    "notes": [],
}
"""What a run without training, baselines or labels leaves out of its results."""


def complete(results: Mapping[str, Any]) -> dict[str, Any]:
    """Give results in which every part is there, if only empty, and nothing is there twice.

    Before tuning, the untouched model is asked without examples: that is the zero-shot baseline.
    """
    found = {**_OPTIONAL, **results}
    if found["before"]:
        for part in ("baselines", "comparisons"):
            found[part] = {name: x for name, x in found[part].items() if name != "zero_shot"}
    return found


def facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Give the run in a few (name, value) pairs."""
    counts, seconds = results["num_examples"], results["seconds"]
    found = [
        ("Task", results["task"]),
        ("Model", results["model"]),
        ("Trained", f"{results['adapter']}, answers by {results['answer']}"),
        ("Train / validation / test rows", " / ".join(f"{number:,}" for number in counts.values())),
    ]
    if seconds:
        found.append(("Time", phrases.duration(sum(seconds.values()))))
    if results["peak_rss_bytes"]:
        found.append(("Peak memory", phrases.size(results["peak_rss_bytes"])))
    return found


def systems(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Every system that has the main metric with its scores: the tuned model, then the best first."""
    before = {"before": results["before"]} if results["before"] else {}
    metric = results["main_metric"]
    others = {**before, **results["baselines"]}
    known = [name for name, scores in others.items() if metric in scores]
    lower_is_better = phrases.metric_scale(metric).lower_is_better
    known.sort(key=lambda name: others[name][metric]["value"], reverse=not lower_is_better)
    return {"after": results["after"], **{name: others[name] for name in known}}


def all_systems(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Every system that has any of the tuned model's metrics: those of `systems`, then the others."""
    before = {"before": results["before"]} if results["before"] else {}
    others = {**before, **results["baselines"]}
    having = {name: scores for name, scores in others.items() if scores.keys() & results["after"]}
    return {**systems(results), **having}


def standing(results: Mapping[str, Any]) -> dict[str, Any]:
    """The first chart: the tuned model's way up, and the others beside it, best first."""
    metric = results["main_metric"]
    values = {name: scores[metric] for name, scores in systems(results).items()}
    metric_scale = phrases.metric_scale(metric)
    scale, ticks = charts.score_scale(list(values.values()), metric_scale)
    rows = [
        {"name": name, "mark": scale.mark(score), "score": score} for name, score in values.items()
    ]
    start = scale.place(values["before"]["value"]) if "before" in values else None
    return {
        "rows": rows,
        "ticks": ticks,
        "start": start,
        "metric": metric,
        "unit": metric_scale.unit,
    }


def scores(results: Mapping[str, Any]) -> dict[str, Any]:
    """Every metric of every system."""
    metrics = [name for name in results["after"] if name != "micro_f1" or _is_multi(results)]
    return {"metrics": metrics, "systems": all_systems(results)}


def _is_multi(results: Mapping[str, Any]) -> bool:
    """Whether texts have several labels; with one each, micro F1 repeats accuracy."""
    return not results["confusion"]


def learning(
    results: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The curves of loss and validation score; None where nothing was trained."""
    validation = results["validation"]
    last_step = max((each["step"] for each in steps), default=0)
    best = results["best_epoch"]
    panels = {
        "loss": charts.loss_panel(steps, validation),
        "score": charts.score_panel(
            validation,
            best_epoch=best,
            last_step=last_step,
            metric=phrases.metric_scale(results["main_metric"]),
        ),
    }
    if not any(panels.values()):
        return None
    best_score = max((each["score"] for each in validation if each["epoch"] == best), default=None)
    told = {"best_epoch": best, "kept_epoch": results["kept_epoch"], "best_score": best_score}
    return {**panels, **told, "num_steps": last_step}


def label_curve(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The validation score by number of training rows, the whole run last; None where it was not asked for."""
    points: list[dict[str, Any]] = results["label_curve"]
    if not points:
        return None
    metric = results["main_metric"]
    return {
        "points": points,
        "panel": charts.label_panel(points, metric=phrases.metric_scale(metric)),
        "outlook": phrases.label_outlook(points, phrases.right_rows(results)),
        "num_draws": points[0]["num_draws"],
        "has_baseline": any(each["baseline_score"] is not None for each in points),
    }


@dataclass(frozen=True, slots=True)
class Cell:
    """One count of the confusion matrix."""

    count: int
    depth_percent: int
    """Of its colour: the share of the texts with this truth, its root for mistakes, to show rare ones."""
    is_right: bool


def classes(results: Mapping[str, Any], ledger: Mapping[str, Any]) -> dict[str, Any] | None:
    """The confusion matrix or its largest mistakes, and the scores of every label."""
    trained = ledger.get("splits", {}).get("train", {}).get("per_class", {})
    table = [
        {**each, "num_trained": trained.get(each["label"], {"num_examples": 0})["num_examples"]}
        if trained
        else {**each, "num_trained": None}
        for each in results["per_class"]
    ]
    if not table:
        return None
    labels, confusion = results["labels"], results["confusion"]
    weakest = sorted((each for each in table if each["support"]), key=lambda each: each["f1"])
    is_small = len(table) <= MAX_WEAKEST
    return {
        "labels": labels,
        "matrix": _matrix(confusion) if len(labels) <= MAX_MATRIX_LABELS else [],
        "pairs": _pairs(confusion, labels),
        "shown": table if is_small else weakest[:MAX_WEAKEST],
        "all": [] if is_small else table,
    }


def _matrix(confusion: Sequence[Sequence[int]]) -> list[list[Cell]]:
    matrix: list[list[Cell]] = []
    for truth, row in enumerate(confusion):
        shares = [count / max(sum(row), 1) for count in row]
        depths = [x if answer == truth else math.sqrt(x) for answer, x in enumerate(shares)]
        matrix.append([
            Cell(count, round(100 * depth), is_right=answer == truth)
            for answer, (count, depth) in enumerate(zip(row, depths, strict=True))
        ])
    return matrix


def _pairs(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> list[dict[str, Any]]:
    pairs = [
        {"truth": labels[i], "answer": labels[j], "count": count, "share": count / sum(row)}
        for i, row in enumerate(confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(pairs, key=lambda pair: (-pair["count"], -pair["share"]))[:MAX_PAIRS]


def error(error: Mapping[str, Any]) -> dict[str, Any]:
    """One mistake, with its text cut to a readable length."""
    text = error["text"]
    shown = text[:MAX_TEXT_CHARACTERS]
    return {**error, "text": shown, "num_hidden_characters": len(text) - len(shown)}


def costs(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """The time of every phase and its share of the whole."""
    total = sum(seconds.values()) or 1.0
    return [
        {
            "name": _PHASES.get(phase, phase.replace("_", " ").capitalize()),
            "seconds": value,
            "share_percent": round(100 * value / total, 2),
        }
        for phase, value in seconds.items()
    ]


def ledger(ledger: Mapping[str, Any]) -> dict[str, Any] | None:
    """The token ledger as a table: one line per count, one column per split."""
    splits = ledger.get("splits", {})
    columns = [{**split, **split.get("total", {})} for split in splits.values()]
    reasons = dict.fromkeys(reason for column in columns for reason in column["num_dropped"])
    lines: list[tuple[str, list[Any]]] = []
    for name, title in _LEDGER_LINES.items():
        is_rare = name in ("num_added", "num_cut_truths")
        if is_rare and not any(column.get(name) for column in columns):
            continue
        if any(column.get(name) is not None for column in columns):
            lines.append((title, [column.get(name) for column in columns]))
        if name == "num_read":
            lines += [
                (f"Dropped: {reason}", [column["num_dropped"].get(reason, 0) for column in columns])
                for reason in reasons
            ]
    return {"splits": list(splits), "lines": lines} if lines else None
