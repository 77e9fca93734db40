"""BLEU and chrF as sacrebleu counts them, with the tokenizer that fits the language, and intervals."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from lushan.metrics.statistics import NUM_RESAMPLES, difference_interval
from lushan.records import Interval

_HAN = re.compile("[\u4e00-\u9fff]")
_KANA = re.compile("[\u3040-\u30ff]")
_TOKENIZERS = {"zh": "zh", "ja": "char", "th": "char", "km": "char", "lo": "char", "my": "char"}
"""Of languages without spaces; all others take sacrebleu's usual one, `13a`."""
_HAN_FRACTION = 0.2
"""Above this share of Han characters a text is taken for Chinese, or with kana for Japanese."""


class Translated(NamedTuple):
    """How good translations are."""

    metrics: dict[str, Interval]
    """`chrf` and `bleu`, from 0 to 100."""
    row_scores: list[float]
    """chrF of each sentence, from 0 to 1."""
    signatures: dict[str, str]
    """How sacrebleu says that each was counted."""


def score(
    truth: Sequence[str],
    answers: Sequence[str],
    *,
    languages: Sequence[str | None],
    seed: int,
) -> Translated:
    """Score translations against one reference each.

    Args:
        truth: The references.
        answers: What was written.
        languages: Of each reference, such as `zh`; None is found out from the characters.
        seed: Of the bootstrap over rows.
    """
    bleu = BLEU(
        tokenize=tokenizer_for(truth, languages),
        force=True,  # only silences a warning
    )
    chrf = CHRF()
    found = {
        name: _with_interval(metric, answers, truth, seed=seed)
        for name, metric in (("chrf", chrf), ("bleu", bleu))
    }
    rows = [
        chrf.sentence_score(answer, [one]).score / 100
        for answer, one in zip(answers, truth, strict=True)
    ]
    signatures = {"chrf": str(chrf.get_signature()), "bleu": str(bleu.get_signature())}
    return Translated(found, rows, signatures)


def tokenizer_for(truth: Sequence[str], languages: Sequence[str | None]) -> str:
    """Name sacrebleu's tokenizer for these references; if any of them has no spaces, the one for its language."""
    for text, language in zip(truth, languages, strict=True):
        code = _found_out(text) if language is None else re.split("[-_]", language.lower())[0]
        if code in _TOKENIZERS:
            return _TOKENIZERS[code]
    return "13a"


def _found_out(text: str) -> str:
    kana, han = len(_KANA.findall(text)), len(_HAN.findall(text))
    if kana + han <= _HAN_FRACTION * len(text):
        return ""
    return "ja" if kana else "zh"


def _with_interval(
    metric: BLEU | CHRF, answers: Sequence[str], truth: Sequence[str], *, seed: int
) -> Interval:
    """Give the score of a corpus and its 95 % bootstrap interval over rows."""
    value = metric.corpus_score(answers, [truth]).score
    counts_NS = np.array(metric._extract_corpus_statistics(answers, [truth]))
    generator = np.random.default_rng(seed)
    times_RN = generator.multinomial(
        len(counts_NS), np.full(len(counts_NS), 1 / len(counts_NS)), size=NUM_RESAMPLES
    )
    resampled_R = [
        metric._compute_score_from_stats(sums_S.tolist()).score for sums_S in times_RN @ counts_NS
    ]
    return difference_interval(value, np.array(resampled_R))
