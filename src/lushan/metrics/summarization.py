"""ROUGE as the rouge-score library counts it, and what it does not see: length, copying, numbers that came from nowhere."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from lushan.metrics.statistics import mean_interval
from lushan.metrics.words import UNSPACED
from lushan.records import Interval

ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
_TOKEN = re.compile(f"[{UNSPACED}]|[a-z0-9]+")
"""A Chinese or Japanese character, or a word; as rouge-score has it, what is no letter or digit separates."""
_UNSPACED = re.compile(f"[{UNSPACED}]")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_COPIED_TOKENS = 3


class Summarized(NamedTuple):
    """How good summaries are."""

    metrics: dict[str, Interval]
    row_scores: list[float]
    """ROUGE-L of each."""


class _Characters:
    """Tokens of texts without spaces, in the form that rouge-score asks for: characters, and words where there are any."""

    def tokenize(self, text: str) -> list[str]:
        """Cut a text."""
        return _TOKEN.findall(text.lower())


def score(
    truth: Sequence[Sequence[str]], answers: Sequence[str], *, documents: Sequence[str], seed: int
) -> Summarized:
    """Score summaries against one reference or more each; of several, the one that is most like it counts.

    `rouge_1`, `rouge_2`, `rouge_l` are F1, with Porter's stemmer, or over characters where the reference is Chinese or
    Japanese. `compression` is the length of a summary as a share of its document's, `copied_share` the share of its
    different runs of three tokens that stand in the document, `number_support` the share of summaries all of whose
    numbers do.

    Args:
        truth: The references of each document.
        answers: What was written.
        documents: What was summed up.
        seed: Of the bootstrap over rows.
    """
    rows: dict[str, list[float]] = {name: [] for name in ROUGE}
    for references, answer in zip(truth, answers, strict=True):
        found = _scorer(any(map(_UNSPACED.search, references))).score_multi(references, answer)
        for name, theirs in ROUGE.items():
            rows[name].append(found[theirs].fmeasure)
    pairs = list(zip(answers, documents, strict=True))
    rows["compression"] = [len(answer) / max(len(document), 1) for answer, document in pairs]
    rows["copied_share"] = [copied_share(*pair) for pair in pairs]
    rows["number_support"] = [float(numbers_are_supported(*pair)) for pair in pairs]
    metrics = {name: mean_interval(values, seed=seed) for name, values in rows.items()}
    return Summarized(metrics, rows["rouge_l"])


@cache
def _scorer(by_characters: bool) -> Any:  # noqa: ANN401 - the library has no types
    from rouge_score.rouge_scorer import RougeScorer  # two seconds, of which nltk takes most

    names = list(ROUGE.values())
    if by_characters:
        return RougeScorer(names, tokenizer=_Characters())
    return RougeScorer(names, use_stemmer=True)


def copied_share(answer: str, document: str) -> float:
    """Share of the different runs of three tokens of an answer that its document has too; 0 where there is no run."""
    runs, known = (_runs(_TOKEN.findall(text.lower())) for text in (answer, document))
    return len(runs & known) / len(runs) if runs else 0.0


def _runs(tokens: Sequence[str]) -> set[tuple[str, ...]]:
    return {
        tuple(tokens[start : start + _COPIED_TOKENS])
        for start in range(len(tokens) - _COPIED_TOKENS + 1)
    }


def numbers_are_supported(answer: str, document: str) -> bool:
    """Whether every number of an answer, written as it is, stands in its document; also where there is none."""
    return set(_NUMBER.findall(answer)) <= set(_NUMBER.findall(document))
