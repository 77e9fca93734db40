"""Numbers and results in words, the same in the report, the model card and on the terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lushan.records import triple_from_plain

SIGNIFICANT_BELOW = 0.05
"""A difference is called clear below this p-value."""

_METRICS = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "micro_f1": "Micro F1",
    "f1": "F1",
    "precision": "Precision",
    "recall": "Recall",
    "exact_match": "Exact match",
    "has_answer_f1": "F1, has answer",
    "has_answer_exact_match": "Exact match, has answer",
    "no_answer_accuracy": "Accuracy, no answer",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "perplexity": "Perplexity",
    "answer_log_likelihood": "Answer log-likelihood",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "reply_length": "Mean reply length",
    "call_accuracy": "Right calls of tools",
    "call_name_accuracy": "Right tools called",
    "needless_calls": "Needless calls of tools",
    "pass_at_1": "pass@1",
}
_SYSTEMS = {
    "before": "Untouched model, zero-shot",
    "after": "Tuned model",
    "zero_shot": "Untouched model, zero-shot",
    "few_shot": "Untouched model, few-shot",
}


_NO_TITLES: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class MetricScale:
    """How the values of a metric are written, and which there can be."""

    factor: float = 1
    """What a value is multiplied with before it is written."""
    decimals: int = 1
    unit: str = ""
    """What follows the number, with its space."""
    lowest: float = 0.0
    highest: float = math.inf
    lower_is_better: bool = False

    def number(self, value: float) -> str:
        """`0.941` -> `94.1`: without the unit, with a true minus sign."""
        return _with_minus(f"{self.factor * value:.{self.decimals}f}")

    def short(self, value: float) -> str:
        """`0.9` -> `90`: a round number, as on an axis."""
        return _with_minus(f"{self.factor * value:g}")

    def text(self, value: float) -> str:
        """`0.941` -> `94.1 %`."""
        return f"{self.number(value)}{self.unit}"


FRACTION = MetricScale(factor=100, unit="\u00a0%", highest=1.0)
_SCALES = {
    "bleu": MetricScale(highest=100.0),
    "chrf": MetricScale(highest=100.0),
    "perplexity": MetricScale(lower_is_better=True),
    "bits_per_byte": MetricScale(decimals=3, lower_is_better=True),
    "answer_log_likelihood": MetricScale(decimals=2, lowest=-math.inf, highest=0.0),
    "reply_length": MetricScale(),
    "needless_calls": replace(FRACTION, lower_is_better=True),
}


def metric_scale(metric: str) -> MetricScale:
    """Give the scale of a metric: a fraction, written in percent, unless it is known to be something else."""
    return _SCALES.get(metric, FRACTION)


def metric_text(value: float, metric: str) -> str:
    """Write a metric's value in its own scale: `94.1 %`, of `bleu` `36.2`."""
    return metric_scale(metric).text(value)


def metric_number(value: float, metric: str) -> str:
    """Write a metric's value in its own scale, without a unit: `94.1`."""
    return metric_scale(metric).number(value)


def metric_decimal(value: float, metric: str) -> str:
    """Write a metric's value for a table on a terminal: a fraction as `0.941`, any other in its own scale."""
    scale = metric_scale(metric)
    return f"{value:.{3 if scale.factor == FRACTION.factor else scale.decimals}f}"


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
    scale = metric_scale(metric)
    details = [f"95\u00a0% interval {scale.number(after['low'])} to {scale.text(after['high'])}"]
    if test:
        corrected = "corrected " if "p_value_holm" in test else ""
        details.append(f"{corrected}{p_text(_p_value(test))}, {test_words(is_graded(test)).name}")
    details.append(f"{results['num_examples']['test']:,} test rows")
    return Headline(
        _lead(metric, before, after, test),
        scale.text(after["value"]),
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
    start = metric_text(before["value"], metric)
    if test is None:
        return f"{name} went from {start} to"
    is_clear = _p_value(test) < SIGNIFICANT_BELOW
    if not is_clear or not _agrees(test, metric, after["value"], before["value"]):
        return f"{name} did not change clearly: {start} before, now"
    verb = "rose" if after["value"] > before["value"] else "fell"
    return f"{name} {verb} from {start} to"


def _verdict(results: Mapping[str, Any]) -> str:
    metric, comparisons = results["main_metric"], results.get("comparisons", {})
    baselines = {
        name: scores[metric]["value"]
        for name, scores in results.get("baselines", {}).items()
        if metric in scores
    }
    if not baselines:
        return ""
    scale = metric_scale(metric)
    best = (min if scale.lower_is_better else max)(baselines, key=baselines.__getitem__)
    titles = results.get("system_titles", {})
    reached = f"{system_name(best, titles)} at {scale.text(baselines[best])}"
    after = results["after"][metric]["value"]
    unbeaten = [
        name
        for name, value in baselines.items()
        if not _is_beaten(comparisons.get(name))
        or not _agrees(comparisons[name], metric, after, value)
    ]
    drawn = _drawn(results)
    if not unbeaten:
        return f"Every baseline is clearly beaten; the best is {reached}.{drawn}"
    named = ", ".join(
        f"{system_name(name, titles)} ({scale.text(baselines[name])})" for name in unbeaten
    )
    return f"Not clearly better than: {named}.{drawn}"


def _drawn(results: Mapping[str, Any]) -> str:
    """Say from which rows was learned, where not all were drawn: more of them might help a baseline too."""
    if not (num_not_drawn := results.get("num_not_drawn")):
        return ""
    return f" Model and baselines learned from {drawn_of(results['num_examples']['train'], num_not_drawn)}."


def drawn_of(num_rows: int, num_not_drawn: int) -> str:
    """`the 300 drawn of 2,000 training rows`."""
    return f"the {num_rows:,} drawn of {num_rows + num_not_drawn:,} training rows"


def _agrees(comparison: Mapping[str, Any], metric: str, ours: float, theirs: float) -> bool:
    """Whether the test, which compares rows, leans to the side that the metric says."""
    if ours == theirs:
        return False
    return _leans_to_us(comparison) == ((ours > theirs) != metric_scale(metric).lower_is_better)


def _leans_to_us(comparison: Mapping[str, Any]) -> bool:
    if is_graded(comparison):
        return comparison["difference"]["value"] > 0
    return comparison["wins"] > comparison["losses"]


def _is_beaten(comparison: Mapping[str, Any] | None) -> bool:
    return comparison is not None and standing(comparison) == "better"


def _p_value(comparison: Mapping[str, Any]) -> float:
    """The p-value, corrected for the number of comparisons where that is known."""
    return comparison.get("p_value_holm", comparison["p_value"])


def standing(comparison: Mapping[str, Any]) -> str:
    """Say how the tuned model stands in one comparison: `better`, `worse` or `no clear difference`."""
    if _p_value(comparison) >= SIGNIFICANT_BELOW:
        return "no clear difference"
    return "better" if _leans_to_us(comparison) else "worse"


@dataclass(frozen=True, slots=True)
class TestWords:
    """What the test of a comparison and its columns are called."""

    name: str
    wins: str
    losses: str
    p_value: str


_TEST_WORDS = {
    False: TestWords("exact McNemar test", "Only it is right", "Only the other is", "McNemar p"),
    True: TestWords(
        "paired permutation test", "It is better", "The other is better", "Permutation p"
    ),
}


def test_words(graded: bool) -> TestWords:
    """Give the words for comparisons of rows that are graded, or else right or wrong."""
    return _TEST_WORDS[graded]


def is_graded(comparison: Mapping[str, Any]) -> bool:
    """Say whether a comparison of `results.json` is one of graded rows."""
    return comparison.get("test") == "permutation"


def any_graded(results: Mapping[str, Any]) -> bool:
    """Say whether the comparisons of a run are those of graded rows."""
    return any(is_graded(each) for each in results.get("comparisons", {}).values())


def label_outlook(points: Sequence[Mapping[str, Any]], name: str) -> str:
    """Say what more labels brought, and what twice as many may bring at that pace; empty where it cannot be told.

    What is compared with the whole run is the last point that has at most half of its rows. A run that trained on rows of a
    model too cannot be compared with in this way.

    Args:
        points: Of the label curve, ascending, the whole run last.
        name: What the score of a row is called, such as `Accuracy`.
    """
    num_rows = points[-1]["num_rows"]
    if num_added := points[-1].get("num_added"):  # older runs do not tell
        return (
            f"{name} on the validation rows after training on so many rows of the data. The run itself trained on {num_added:,} "
            "rows that a model wrote or labelled as well, so its line does not tell what more labels bring."
        )
    known = [each for each in points[:-1] if 2 * each["num_rows"] <= num_rows and each["rise"]]
    if not known:
        return ""
    start, rise = known[-1], known[-1]["rise"]
    doublings = math.log2(num_rows / start["num_rows"])
    value, low, high = (rise[each] / doublings for each in ("value", "low", "high"))
    told = (
        f"{name} on the validation rows changed by {points_between(rise)} points from "
        f"{start['num_rows']:,} to {num_rows:,} rows"
    )
    if rise["low"] <= 0:
        return (
            f"{told}: more labels did not clearly help, and nothing here says that still more would. Twice as many "
            f"would hardly bring more than {_at_least_zero(high)}."
        )
    each = points_between({"value": value, "low": low, "high": high})
    return (
        f"{told}, {each} each time the rows were doubled. Another {num_rows:,} labels would bring about that much "
        "if the curve went on as it is; curves of this kind flatten, so take it for the most to hope for."
    )


def points_between(change: Mapping[str, float]) -> str:
    """`+5.2 (+3.1 to +7.0)`: a difference in percentage points with its interval."""
    return f"{points(change['value'])} ({points(change['low'])} to {points(change['high'])})"


def _at_least_zero(change: float) -> str:
    return f"{points(max(change, 0.0))} points"


def metric_name(metric: str) -> str:
    """`macro_f1` -> `Macro F1`."""
    return _METRICS.get(metric, metric.replace("_", " ").capitalize())


def right_rows(results: Mapping[str, Any]) -> str:
    """Name the share of right rows, or the mean score of graded ones, on which the paired test rests."""
    if any_graded(results):
        return "Row score"
    names = [name for name in ("accuracy", "exact_match") if name in results["after"]]
    return metric_name(names[0]) if names else "Right rows"


def inline(name: str) -> str:
    """`Macro F1` -> `macro F1`: a name inside a sentence; `F1` and `BLEU` stay."""
    return name if name[1:2].isdigit() or name[1:2].isupper() else name[:1].lower() + name[1:]


def system_name(name: str, titles: Mapping[str, str] = _NO_TITLES) -> str:
    """`tf_idf` -> `TF-IDF + logistic regression`.

    Args:
        name: As results have it.
        titles: Names for people that the results bring along (`system_titles`).
    """
    return titles.get(name) or _SYSTEMS.get(name, name.replace("_", " ").capitalize())


def answer_text(answer: str | Sequence[str | Mapping[str, Any]], nothing: str = "no label") -> str:
    """Show one label, several labels, spans or triples, or none."""
    if isinstance(answer, str):
        return answer
    return ", ".join(map(_part_text, answer)) or nothing


def _part_text(part: str | Mapping[str, Any]) -> str:
    if isinstance(part, str):
        return part
    if "head" in part:
        return triple_from_plain(part).shown
    return f"{part['text']} ({part['label']})"


def percent(fraction: float) -> str:
    """`0.941` -> `94.1 %`, with a space that does not break."""
    return FRACTION.text(fraction)


def points(fraction: float) -> str:
    """`0.052` -> `+5.2`: a difference in percentage points, with a true minus sign."""
    return _with_minus(f"{100 * fraction:+.1f}")


def _with_minus(number: str) -> str:
    return number.replace("-", "\u2212")


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
