"""ROUGE: the figures of rouge-score; and what it does not see."""

import random
import re

import pytest
from rouge_score.rouge_scorer import RougeScorer

from lushan.metrics.summarization import copied_share, numbers_are_supported, score
from tests.unit.metrics.texts import pairs

NAMES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


class SpacedOut:
    """Chinese as the common recipe feeds it to the reference: every character a word of its own."""

    def tokenize(self, text: str) -> list[str]:
        spaced = re.sub(r"([\u3400-\u9fff])", r" \1 ", text.lower())
        return re.sub(r"[^a-z0-9\u3400-\u9fff]+", " ", spaced).split()


@pytest.mark.parametrize("chinese", [False, True])
def test_scores_are_those_of_the_reference_on_many_sets(
    chinese: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lushan.metrics.statistics.NUM_RESAMPLES", 2)
    reference = RougeScorer(
        list(NAMES.values()), use_stemmer=not chinese, tokenizer=SpacedOut() if chinese else None
    )
    draw = random.Random(5)
    for _ in range(500):
        truth, answers = pairs(draw, chinese=chinese)
        others, _ = pairs(draw, chinese=chinese)
        references = [[each, others[0]] if draw.random() < 0.5 else [each] for each in truth]
        if chinese and not all(re.search(r"[\u3400-\u9fff]", "".join(each)) for each in references):
            continue
        found = score(references, answers, documents=truth, seed=0)
        theirs = [reference.score_multi(r, a) for r, a in zip(references, answers, strict=True)]
        for ours, name in NAMES.items():
            mean = sum(each[name].fmeasure for each in theirs) / len(theirs)
            assert found.metrics[ours].value == pytest.approx(mean)
        assert found.row_scores == pytest.approx([each["rougeL"].fmeasure for each in theirs])


def test_copied_share_counts_different_runs_of_three_tokens() -> None:
    document = "The new bridge joins both parts of the city."
    assert copied_share("the new bridge joins it", document) == pytest.approx(2 / 3)
    assert copied_share("a bridge", document) == 0.0
    assert copied_share("\u65b0\u6865\u5f00\u901a", "\u65b0\u6865\u5f00\u4e86") == 0.5


def test_number_that_the_document_does_not_have_is_not_supported() -> None:
    assert numbers_are_supported("40 of 1,200", "Of 1,200 people 40 came.")
    assert not numbers_are_supported("4 came", "40 came")
    assert numbers_are_supported("many came", "40 came")


def test_compression_is_the_share_of_characters() -> None:
    found = score([["a b"]], ["ab c"], documents=["x" * 16], seed=0)
    assert found.metrics["compression"].value == 0.25
    assert found.metrics["number_support"].value == 1.0
