"""Realistic results of runs that never were, to test the report and to look at it.

`python tests/unit/evaluation/conftest.py FOLDER` writes one run folder with its report for each kind.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lushan.data.ledger import Counts, Ledger, SplitLedger
from lushan.evaluation.compare import comparisons
from lushan.metrics.classification import correct_rows, intervals, score

INJECTION = '<script>alert("owned")</script><img src=x onerror=alert(1)>'
INTENTS = [
    "accept_reservations",
    "account_blocked",
    "alarm",
    "application_status",
    "apr",
    "are_you_a_bot",
    "balance",
    "bill_balance",
    "bill_due",
    "book_flight",
    "book_hotel",
    "calculator",
    "calendar",
    "calendar_update",
    "calories",
    "cancel",
    "cancel_reservation",
    "car_rental",
    "card_declined",
    "carry_on",
    "change_accent",
    "change_ai_name",
    "change_language",
    "change_speed",
    "change_user_name",
    "change_volume",
    "confirm_reservation",
    "cook_time",
    "credit_limit",
    "credit_limit_change",
]
CHINESE = ["财经", "房产", "股票", "国际", "教育", "军事", "科技", "旅游", "农业", "汽车", "体育", "文化", "游戏", "娱乐", "故事"]  # fmt: skip
FEELINGS = ["anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"]
ENGLISH_TEXTS = [
    "it's a charming and often affecting journey, though it never quite knows where it is going",
    "could you tell them i will be about ten minutes late for my reservation under the name brook",
    "the acting is fine , the plot is not , and the two together make for a long two hours",
    "what 's the limit on my card and can i have it raised before friday",
]
CHINESE_TEXTS = [
    "房间很大。服务员的态度也不错。就是早餐种类太少。而且去晚了什么都没有了",
    "今年的春耕比往年来得早一些。山里的茶农已经开始采摘明前茶",
    "这款车的油耗在同级别里算低的。不过后排空间确实有点小。长途坐着会累",
]
LONG_TEXT = "The committee met again on Tuesday and nothing was decided. " * 60


@dataclass(frozen=True)
class Kind:
    """What one sample run is about."""

    labels: tuple[str, ...]
    num_test: int
    accuracy: dict[str, float]
    texts: tuple[str, ...]
    multi_label: bool = False
    main_metric: str = "accuracy"


def _accuracy(before: float, tf_idf: float, after: float) -> dict[str, float]:
    return {"before": before, "few_shot": before + 0.07, "tf_idf": tf_idf, "after": after}


KINDS = {
    "binary": Kind(("negative", "positive"), 872, _accuracy(0.56, 0.79, 0.905), tuple(ENGLISH_TEXTS)),
    "intents_30": Kind(tuple(INTENTS), 900, _accuracy(0.123, 0.84, 0.941), tuple(ENGLISH_TEXTS)),
    "intents_151": Kind(
        (*(f"{name}_{number}" for number in range(5) for name in INTENTS), "oos"),
        5_500, _accuracy(0.04, 0.78, 0.892), tuple(ENGLISH_TEXTS), main_metric="macro_f1",
    ),
    "chinese": Kind(tuple(CHINESE), 1_000, _accuracy(0.11, 0.438, 0.531), tuple(CHINESE_TEXTS)),
    "multi_label": Kind(
        tuple(FEELINGS), 600, _accuracy(0.2, 0.47, 0.58), tuple(ENGLISH_TEXTS),
        multi_label=True, main_metric="macro_f1",
    ),
    "no_gain": Kind(("ham", "spam"), 120, _accuracy(0.85, 0.93, 0.87), (LONG_TEXT, *ENGLISH_TEXTS)),
    "injection": Kind(
        ("plain", INJECTION, "a | b\n# c", "x" * 90), 200, _accuracy(0.3, 0.6, 0.85), (INJECTION, LONG_TEXT)
    ),
}  # fmt: skip


@cache
def sample_results(kind_name: str, seed: int = 0) -> str:
    """Make `results.json` of a run, with scores that come from simulated answers."""
    kind = KINDS[kind_name]
    generator = np.random.default_rng(seed)
    truth = _truth(kind, generator)
    answers = {
        name: _answers(kind, truth, share, generator) for name, share in kind.accuracy.items()
    }
    answers["majority"] = [max(set(truth), key=truth.count)] * len(truth)
    scores = {
        name: {metric: asdict(value) for metric, value in
               intervals(truth, each, kind.labels, multi_label=kind.multi_label).items()}
        for name, each in answers.items()
    }  # fmt: skip
    right = {name: correct_rows(truth, each) for name, each in answers.items()}
    others = {name: right[name] for name in ("before", "majority", "tf_idf", "few_shot")}
    detail = score(truth, answers["after"], kind.labels, multi_label=kind.multi_label)
    results = {
        "task": "classification",
        "model": "SmolLM2-135M-Instruct",
        "adapter": "full",
        "answer": "head",
        "main_metric": kind.main_metric,
        "before": scores["before"],
        "after": scores["after"],
        "baselines": {name: scores[name] for name in ("majority", "tf_idf", "few_shot")},
        "baseline_notes": {
            "majority": "Always `positive`, as 1,012 of 2,000 training rows.",
            "tf_idf": "TF-IDF of words and word pairs, logistic regression with C = 10.",
        },
        "system_titles": {
            "majority": "Most frequent label",
            "tf_idf": "TF-IDF + logistic regression",
        },
        "comparisons": comparisons(right["after"], others, seed=seed),
        "labels": list(kind.labels),
        "per_class": [asdict(each) for each in detail.per_class],
        "confusion": [list(row) for row in detail.confusion],
        "worst_errors": _errors(kind, truth, answers["after"]),
        **_history(kind),
        **_circumstances(kind),
    }
    return json.dumps(results)


def _truth(kind: Kind, generator: np.random.Generator) -> list[Any]:
    if kind.multi_label:
        has = generator.random((kind.num_test, len(kind.labels))) < 0.25
        return [tuple(kind.labels[i] for i in np.flatnonzero(row)) for row in has]
    share = generator.dirichlet(np.full(len(kind.labels), 20.0))
    return [kind.labels[i] for i in generator.choice(len(kind.labels), kind.num_test, p=share)]


def _answers(
    kind: Kind, truth: list[Any], accuracy: float, generator: np.random.Generator
) -> list[Any]:
    answers: list[Any] = []
    place = {label: number for number, label in enumerate(kind.labels)}
    for expected in truth:
        if generator.random() < accuracy:
            answers.append(expected)
        elif kind.multi_label:
            flipped = kind.labels[generator.integers(len(kind.labels))]
            answers.append(tuple(x for x in kind.labels if (x in expected) ^ (x == flipped)))
        else:  # a neighbour more often than a stranger, as real confusions are
            step = 1 + int(generator.exponential(0.8)) if generator.random() < 0.7 else 5
            answers.append(kind.labels[(place[expected] + step) % len(kind.labels)])
    return answers


def _errors(kind: Kind, truth: list[Any], answers: list[Any]) -> list[dict[str, Any]]:
    wrong = [n for n, (t, a) in enumerate(zip(truth, answers, strict=True)) if t != a][:12]
    return [
        {
            "id": f"{n:016x}",
            "text": kind.texts[place % len(kind.texts)],
            "truth": truth[n],
            "answer": answers[n],
            "probability": round(0.999 - 0.021 * place, 3),
        }
        for place, n in enumerate(wrong)
    ]


def _history(kind: Kind) -> dict[str, Any]:
    final = kind.accuracy["after"]
    values = [final - 0.22, final - 0.06, final - 0.01, final + 0.004, final - 0.007]
    losses = [1.2, 0.62, 0.41, 0.40, 0.47]
    return {
        "validation": [
            {"epoch": n + 1, "step": 60 * (n + 1), "score": value, "loss": losses[n]}
            for n, value in enumerate(values)
        ],
        "best_epoch": 4,
    }


def _circumstances(kind: Kind) -> dict[str, Any]:
    return {
        "num_train_tokens": 341_882,
        "seconds": {
            "check": 1.4, "before_evaluation": 24.1, "compile": 21.8, "train": 148.2,
            "validation": 9.7, "after_evaluation": 6.3, "baselines": 11.9, "report": 0.8,
        },
        "train_tokens_per_second": 2_011.4,
        "peak_rss_bytes": 2_316_000_000,
        "choices": [
            {"name": "training.learning_rate", "value": 5e-5, "why": "full tuning of 135M weights"},
            {"name": "model.precision", "value": "bf16", "why": "3.1 times as fast as fp32 here"},
            {"name": "training.epochs", "value": 5, "why": "effort normal, 2,000 training rows"},
        ],
        "num_examples": {"train": 2_000, "validation": 400, "test": kind.num_test},
        "versions": {"lushan": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.2"},
        "notes": ["Column `sentence` was read as `text`.", "14 training rows overlap the test rows and were removed."],
    }  # fmt: skip


def sample_ledger(kind: Kind) -> dict[str, Any]:
    """Make `ledger.json`."""
    per_class = {
        label: Counts(num_examples=12 + 3 * (n % 7)) for n, label in enumerate(kind.labels)
    }
    counts = Counts(
        num_examples=2_000, num_cut_examples=3, num_documents=2_000, num_tokens=68_376,
        num_supervised=2_000, num_cut_tokens=118,
    )  # fmt: skip
    train = SplitLedger(2_014, {"overlaps the test split": 14}, counts, per_class)
    test = SplitLedger(kind.num_test, {}, Counts(num_examples=kind.num_test), per_class)
    return Ledger({"train": train, "validation": test, "test": test}).as_dict()


def write_run(kind_name: str, folder: Path) -> dict[str, Any]:
    """Fill a run folder with everything that the report reads; returns its results."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1)
    steps = [
        {
            "step": step,
            "loss": 0.15 + 2.6 * float(np.exp(-step / 55)) + 0.12 * float(generator.normal()) ** 2,
            "learning_rate": 5e-5,
            "tokens": 1_140,
            "seconds": 0.49,
        }
        for step in range(1, 301)
    ]
    lines = "".join(json.dumps(step) + "\n" for step in steps)
    (folder / "steps.jsonl").write_text(lines, encoding="utf-8")
    (folder / "ledger.json").write_text(
        json.dumps(sample_ledger(KINDS[kind_name])), encoding="utf-8"
    )
    (folder / "recipe.yaml").write_text(
        "task:\n  name: classification\nseed: 0\n", encoding="utf-8"
    )
    return json.loads(sample_results(kind_name))


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], tuple[dict[str, Any], Path]]:
    """Make a run of one kind; gives its results and its folder."""
    return lambda kind_name: (write_run(kind_name, tmp_path / kind_name), tmp_path / kind_name)


GRADED = {
    "bleu": {"before": 12.34, "after": 36.18, "tf_idf": 20.0},
    "perplexity": {"before": 41.3, "after": 12.31, "tf_idf": 20.0},
    "answer_log_likelihood": {"before": -3.72, "after": -1.53, "tf_idf": -3.0},
}
"""Metric of a free text to the value of each system."""


def _graded(results: dict[str, Any], metric: str) -> dict[str, Any]:
    """Turn results into those of a task of free text, scored by one metric and by graded rows."""
    scores = {
        name: {metric: {"value": value, "low": value - 1.04, "high": value + 1.26}}
        for name, value in GRADED[metric].items()
    }
    rows = {
        name: np.random.default_rng(n).uniform(0, share, 200).tolist()
        for n, (name, share) in enumerate((("after", 1.0), ("before", 0.4), ("tf_idf", 0.5)))
    }
    others = {"before": rows["before"], "tf_idf": rows["tf_idf"]}
    points = [scores["after"][metric]["value"] + change for change in (-3.0, -1.0, 0.2, -0.5)]
    return {
        **results, "main_metric": metric, "before": scores["before"], "after": scores["after"],
        "baselines": {"tf_idf": scores["tf_idf"]}, "answer": "generate",
        "comparisons": comparisons(rows["after"], others, seed=0),
        "labels": [], "per_class": [], "confusion": [],
        "worst_errors": [{"id": "1", "text": "t", "truth": "a", "answer": "b", "probability": None, "score": 0.125}],
        "validation": [
            {"epoch": n + 1, "step": 60 * (n + 1), "score": point, "loss": 1.0} for n, point in enumerate(points)
        ],
        "best_epoch": 3,
    }  # fmt: skip


@pytest.fixture
def graded_run(tmp_path: Path) -> Callable[[str], tuple[dict[str, Any], Path]]:
    """Make a run of free texts scored by one metric; gives its results and its folder."""
    return lambda metric: (
        _graded(write_run("binary", tmp_path / metric), metric),
        tmp_path / metric,
    )


if __name__ == "__main__":
    from lushan.evaluation.model_card import write_model_card
    from lushan.evaluation.report import write_report

    for name in KINDS:
        results = write_run(name, Path(sys.argv[1]) / name)
        write_report(results, Path(sys.argv[1]) / name)
        write_model_card(results, Path(sys.argv[1]) / name)
    for name in GRADED:
        results = _graded(write_run("binary", Path(sys.argv[1]) / name), name)
        write_report(results, Path(sys.argv[1]) / name)
        write_model_card(results, Path(sys.argv[1]) / name)
