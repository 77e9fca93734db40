"""Numbers and results in words, the same in the report, the model card and on the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lushan.evaluation.measures import measure

SIGNIFICANT_BELOW = 0.05
"""A difference is called clear below this p-value."""

_SYSTEMS = {
    "before": "Untouched model, zero-shot",
    "after": "Tuned model",
    "zero_shot": "Untouched model, zero-shot",
    "few_shot": "Untouched model, few-shot",
}


_NO_TITLES: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Headline:
    """The result of a run in one sentence, in parts, so that a page can set the number apart."""

    lead: str
    """`Accuracy rose from 12.3 % to`."""
    number: str
    """`94.1 %`."""
    detail: str
    """`95 % interval 92.6 to 95.4 %, p < 0.001 (exact McNemar test), 900 test rows.`"""
    verdict: str
    """How the tuned model stands against the baselines; empty without baselines."""

    @property
    def sentence(self) -> str:
        """The sentence as plain text."""
        return f"{self.lead} {self.number} ({self.detail})."


def headline(results: Mapping[str, Any]) -> Headline:
    """Say what came out: whether the model got better, how surely, and against what.

    Args:
        results: The content of `results.json`.
    """
    metric = results["main_metric"]
    after = results["after"][metric]
    is_model = results.get("before_is_model", True)
    before = results.get("before", {}).get(metric) if is_model else None
    test = results.get("comparisons", {}).get("before") if is_model else None
    shown = measure(metric)
    details = [f"95\u00a0% interval {shown.bare(after['low'])} to {shown.text(after['high'])}"]
    if test:
        details.append(f"{p_text(test['p_value'])}, {test_name(test)}")
    details.append(f"{results['num_examples']['test']:,} test rows")
    return Headline(
        _lead(metric, before, after, test),
        shown.text(after["value"]),
        "; ".join(details),
        _verdict(results),
    )


def _lead(
    metric: str,
    before: Mapping[str, float] | None,
    after: Mapping[str, float],
    test: Mapping[str, Any] | None,
) -> str:
    name = metric_name(metric)
    if before is None:
        return f"{name} is"
    was = measure(metric).text(before["value"])
    if test is None:
        return f"{name} went from {was} to"
    if test["p_value"] >= SIGNIFICANT_BELOW:
        return f"{name} did not change clearly: {was} before, now"
    verb = "rose" if after["value"] > before["value"] else "fell"
    return f"{name} {verb} from {was} to"


def _verdict(results: Mapping[str, Any]) -> str:
    metric, comparisons = results["main_metric"], results.get("comparisons", {})
    baselines = {
        name: scores[metric]["value"]
        for name, scores in results.get("baselines", {}).items()
        if metric in scores
    }
    if not baselines:
        return ""
    best = max(baselines, key=baselines.__getitem__)
    titles = results.get("system_titles", {})
    shown = measure(metric)
    reached = f"{system_name(best, titles)} at {shown.text(baselines[best])}"
    unbeaten = [name for name in baselines if not _is_beaten(comparisons.get(name))]
    if not unbeaten:
        return f"Every baseline is clearly beaten; the best is {reached}."
    named = ", ".join(
        f"{system_name(name, titles)} ({shown.text(baselines[name])})" for name in unbeaten
    )
    return f"Not clearly better than: {named}."


def _is_beaten(comparison: Mapping[str, Any] | None) -> bool:
    return comparison is not None and standing(comparison) == "better"


def standing(comparison: Mapping[str, Any]) -> str:
    """Say how the tuned model stands in one comparison: `better`, `worse` or `no clear difference`."""
    if comparison.get("p_value_holm", comparison["p_value"]) >= SIGNIFICANT_BELOW:
        return "no clear difference"
    return "better" if comparison["wins"] > comparison["losses"] else "worse"


def metric_name(metric: str) -> str:
    """`macro_f1` -> `Macro F1`."""
    return measure(metric).name


def test_name(comparison: Mapping[str, Any]) -> str:
    """Name the test that a comparison was made with."""
    if comparison.get("test") == "permutation":
        return "paired permutation test"
    return "exact McNemar test"


def is_graded(results: Mapping[str, Any]) -> bool:
    """Whether rows have scores between right and wrong."""
    return any(each.get("test") == "permutation" for each in results["comparisons"].values())


def right_rows(results: Mapping[str, Any]) -> str:
    """Name what the paired test rests on: the share of right rows, or the mean score of a row."""
    if is_graded(results):
        return "Row score"
    names = [name for name in ("accuracy", "exact_match") if name in results["after"]]
    return metric_name(names[0]) if names else "Right rows"


def inline(name: str) -> str:
    """`Macro F1` -> `macro F1`: a name inside a sentence; `F1` and `ROUGE-L` stay."""
    return name if name[1:2].isdigit() or name[1:2].isupper() else name[:1].lower() + name[1:]


def system_name(name: str, titles: Mapping[str, str] = _NO_TITLES) -> str:
    """`tf_idf` -> `TF-IDF + logistic regression`.

    Args:
        name: As results have it.
        titles: Names for people that the results bring along (`system_titles`).
    """
    return titles.get(name) or _SYSTEMS.get(name, name.replace("_", " ").capitalize())


def answer_text(answer: str | Sequence[str | Mapping[str, Any]], nothing: str = "no label") -> str:
    """Show one label, several labels or spans, or none."""
    if isinstance(answer, str):
        return answer
    parts = [x if isinstance(x, str) else f"{x['text']} ({x['label']})" for x in answer]
    return ", ".join(parts) or nothing


def percent(fraction: float) -> str:
    """`0.941` -> `94.1 %`, with a space that does not break."""
    return f"{100 * fraction:.1f}\u00a0%"


def points(fraction: float) -> str:
    """`0.052` -> `+5.2`: a difference in percentage points, with a true minus sign."""
    return f"{100 * fraction:+.1f}".replace("-", "\u2212")


def p_text(p_value: float) -> str:
    """`p < 0.001`, or `p = 0.012`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def duration(seconds: float) -> str:
    """`3 min 44 s`, `1 h 2 min` or `0.8 s`."""
    if seconds < 10:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest}\u00a0s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\u00a0h {minutes}\u00a0min" if hours else f"{minutes}\u00a0min {rest}\u00a0s"


def size(num_bytes: float) -> str:
    """`2.3 GB`, in decimal units."""
    return (
        f"{num_bytes / 1e9:.1f}\u00a0GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f}\u00a0MB"
    )
