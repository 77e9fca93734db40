"""From results by row to one honest table: means over seeds, paired differences, what they allow to say."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cases
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score

MARGIN = 0.02
"""Fixed before the runs: a system that is at most two points of accuracy worse is called not inferior."""
NUM_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Difference:
    """Lushan minus Trainer in accuracy, on the same rows and seeds."""

    mean: float
    low: float
    high: float
    """Ends of the 95 % interval (bootstrap over rows and over seeds)."""
    by_seed: tuple[float, ...]
    wins: int
    """Answers that only Lushan had right, over all seeds."""
    losses: int
    """Answers that only the Trainer had right, over all seeds."""


def read_results(folder: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Read all result files: (case, system, seed) to result."""
    results = [
        json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))
    ]
    return {(each["set"], each["system"], each["seed"]): each for each in results}


def check_settings(results: Iterable[Mapping[str, Any]]) -> None:
    """Stop if a result was made with other hyper-parameters than its case now has.

    Raises:
        SystemExit: Names the result.
    """
    for result in results:
        case, used = cases.case_named(result["set"]), result["hyper_parameters"]
        if (used["epochs"], used["learning_rate"]) != (case.epochs, case.learning_rate):
            raise SystemExit(
                f"{case.name}, {result['system']}, seed {result['seed']} was run with {used['epochs']} epochs at "
                f"{used['learning_rate']:g}; the case now says {case.epochs} at {case.learning_rate:g}. "
                "Remove that result and run it again."
            )


def read_truth(rows: Path, split: str) -> list[str]:
    """Read the labels of a case's split."""
    lines = (rows / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line)["label"] for line in lines if line]


def score(answers: Mapping[str, str], truth: Sequence[str]) -> dict[str, float]:
    """Accuracy, and macro F1 over the labels that the truth has.

    Args:
        answers: Answer by row number, from 0, as text.
        truth: The label of each row.
    """
    given = [answers[str(row)] for row in range(len(truth))]
    names = sorted(set(truth))
    macro = f1_score(truth, given, labels=names, average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(truth, given)), "macro_f1": float(macro)}


def correct(result: Mapping[str, Any], truth: Sequence[str]) -> NDArray[np.bool_]:
    """Tell for each row whether the answer is right.

    Raises:
        ValueError: If the answers do not cover the rows.
    """
    (answers,) = result["answers"].values()
    if sorted(map(int, answers)) != list(range(len(truth))):
        raise ValueError(f"{result['set']}: answers do not match the {len(truth)} rows.")
    return np.array([answers[str(row)] == label for row, label in enumerate(truth)])


def difference(
    ours: Sequence[NDArray[np.bool_]], theirs: Sequence[NDArray[np.bool_]]
) -> Difference:
    """Compare two systems over seeds (S) and rows (N), both drawn anew in each resample.

    A row and a seed are drawn for both systems at once, so the comparison stays paired.
    """
    change_SN = np.stack(ours).astype(np.int64) - np.stack(theirs).astype(np.int64)
    num_seeds, num_rows = change_SN.shape
    generator = np.random.default_rng(0)
    means = np.empty(NUM_RESAMPLES)
    for index in range(NUM_RESAMPLES):
        seeds = generator.integers(num_seeds, size=num_seeds)
        weight_N = np.bincount(generator.integers(num_rows, size=num_rows), minlength=num_rows)
        means[index] = (change_SN[seeds] @ weight_N).mean() / num_rows
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(
        mean=float(change_SN.mean()),
        low=float(low),
        high=float(high),
        by_seed=tuple(float(each) for each in change_SN.mean(axis=1)),
        wins=int((change_SN > 0).sum()),
        losses=int((change_SN < 0).sum()),
    )


def verdict(found: Difference) -> str:
    """Say in words what the interval allows to say."""
    if found.low > 0:
        return "better"
    if found.high < 0:
        return "worse"
    return "not inferior" if found.low > -MARGIN else "not decided"


def make_table(folder: Path, data: Path, *, names: Sequence[str], split: str) -> str:
    """Write the section of `docs/results.md` in Markdown.

    Args:
        folder: Where the result files are.
        data: Where the folders of `cases.write_rows` are.
        names: The cases that it shows.
        split: The split that was answered.
    """
    results = read_results(folder)
    check_settings(results.values())
    shown = [case for case in cases.CASES if case.name in names]
    compared = [case for case in shown if case.target_accuracy is None]
    alone = [case for case in shown if case.target_accuracy is not None]
    lines = [
        "| set | model | epochs, learning rate | seeds | Lushan accuracy / macro F1 "
        "| Trainer accuracy / macro F1 | difference in accuracy [95 %] | wins : losses | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        _compared_line(case, results, read_truth(data / case.name, split)) for case in compared
    ]
    if not alone:
        return "\n".join(lines) + "\n"
    lines += [
        "",
        "| set, whole train split | model | epochs, learning rate | seeds | accuracy by seed | mean | target |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_alone_line(case, results, read_truth(data / case.name, split)) for case in alone]
    return "\n".join(lines) + "\n"


def put_between_markers(document: Path, section: str, *, name: str) -> None:
    """Replace what stands between the markers `name:begin` and `name:end` of a document.

    Raises:
        SystemExit: If the document has no markers.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = document.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise SystemExit(f"`{document}` needs the lines {begin} and {end}.")
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    document.write_text(f"{before}{begin}\n\n{section.strip()}\n\n{end}{after}", encoding="utf-8")


def tell_kept(num_kept: int, place: Path) -> None:
    """Say how many results were there before, so that nobody takes them for new ones.

    Args:
        num_kept: How many of those that are wanted.
        place: The folder or file that holds them.
    """
    if num_kept:
        print(
            f"{num_kept} result(s) are there and are not made again ({place}); `--out` names another place.",
            file=sys.stderr,
            flush=True,
        )


def _compared_line(
    case: cases.Case, results: Mapping[tuple[str, str, int], dict[str, Any]], truth: Sequence[str]
) -> str:
    seeds = sorted({seed for name, _, seed in results if name == case.name})
    both = [
        seed
        for seed in seeds
        if (case.name, "lushan", seed) in results and (case.name, "trainer", seed) in results
    ]
    start = f"| {case.name} | {case.model} | {case.epochs}, {case.learning_rate:g} "
    if not both:
        return start + "| 0 | - | - | - | - | not run |"
    ours = [results[case.name, "lushan", seed] for seed in both]
    theirs = [results[case.name, "trainer", seed] for seed in both]
    found = difference(
        [correct(each, truth) for each in ours], [correct(each, truth) for each in theirs]
    )
    return (
        f"{start}| {len(both)} | {_scores(ours)} | {_scores(theirs)} "
        f"| {100 * found.mean:+.2f} points [{100 * found.low:+.2f}, {100 * found.high:+.2f}] "
        f"| {found.wins} : {found.losses} | {verdict(found)} |"
    )


def _alone_line(
    case: cases.Case, results: Mapping[tuple[str, str, int], dict[str, Any]], truth: Sequence[str]
) -> str:
    found = [results[key] for key in results if key[:2] == (case.name, "lushan")]
    start = f"| {case.name} | {case.model} | {case.epochs}, {case.learning_rate:g} | {len(found)} "
    values = [float(correct(each, truth).mean()) for each in found]
    if not values:
        return start + f"| - | not run | {case.target_accuracy} |"
    told = ", ".join(f"{value:.4f}" for value in values)
    return f"{start}| {told} | {np.mean(values):.4f} | {case.target_accuracy} |"


def _scores(results: Sequence[Mapping[str, Any]]) -> str:
    means = [
        np.mean([next(iter(each["scores"].values()))[name] for each in results])
        for name in ("accuracy", "macro_f1")
    ]
    return f"{means[0]:.4f} / {means[1]:.4f}"
