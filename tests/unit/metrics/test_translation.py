"""BLEU and chrF: the figures of sacrebleu, by the tokenizer of the language."""

import random

import pytest
import sacrebleu

from lushan.metrics.translation import score, tokenizer_for
from tests.unit.metrics.texts import pairs


@pytest.mark.parametrize("chinese", [False, True])
def test_scores_are_those_of_sacrebleu_on_many_sets(
    chinese: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lushan.metrics.translation.NUM_RESAMPLES", 2)
    draw = random.Random(7)
    for _ in range(500):
        truth, answers = pairs(draw, chinese=chinese)
        found = score(truth, answers, languages=["zh" if chinese else "en"] * len(truth), seed=0)
        tokenize = "zh" if chinese else "13a"
        bleu = sacrebleu.corpus_bleu(answers, [truth], tokenize=tokenize, force=True).score
        assert found.metrics["bleu"].value == pytest.approx(bleu, abs=1e-9)
        chrf = sacrebleu.corpus_chrf(answers, [truth]).score
        assert found.metrics["chrf"].value == pytest.approx(chrf, abs=1e-9)
        rows = [
            sacrebleu.sentence_chrf(a, [t]).score / 100 for a, t in zip(answers, truth, strict=True)
        ]
        assert found.row_scores == pytest.approx(rows)
        assert f"tok:{tokenize}" in found.signatures["bleu"]


def test_interval_is_that_of_resampled_corpora() -> None:
    draw = random.Random(3)
    truth, answers = [], []
    for _ in range(40):
        more_truth, more_answers = pairs(draw, chinese=False)
        truth, answers = truth + more_truth, answers + more_answers
    found = score(truth, answers, languages=["en"] * len(truth), seed=0).metrics["chrf"]
    values = []
    for _ in range(300):
        rows = draw.choices(range(len(truth)), k=len(truth))
        chosen = sacrebleu.corpus_chrf([answers[n] for n in rows], [[truth[n] for n in rows]])
        values.append(chosen.score)
    values.sort()
    assert found.low == pytest.approx(values[7], abs=1.0)
    assert found.high == pytest.approx(values[-8], abs=1.0)


@pytest.mark.parametrize(
    ("text", "language", "tokenizer"),
    [
        ("x", "zh_CN", "zh"),
        ("x", "zh-Hant", "zh"),
        ("\u5e90\u5c71", "en", "13a"),
        ("\u5e90\u5c71 hill", None, "zh"),
        ("\u5e90\u5c71\u306f\u5c71", None, "char"),
        ("a hill", None, "13a"),
        ("x", "ja", "char"),
    ],
)
def test_tokenizer_is_that_of_the_language(text: str, language: str | None, tokenizer: str) -> None:
    assert tokenizer_for(["a", text], ["de", language]) == tokenizer
