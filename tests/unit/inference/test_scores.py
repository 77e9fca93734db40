"""What may follow texts: compared with torch."""

import pytest
import torch

from lushan.inference.scores import Scores


@pytest.mark.usefixtures("maker")
@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 320, 49_152])
def test_rows_are_summarised_as_by_torch(num_tokens: int) -> None:
    logits_RV = torch.randn(3, num_tokens, generator=torch.Generator().manual_seed(0)) * 8 - 20
    scores = Scores.of(logits_RV)
    assert scores.likeliest == logits_RV.argmax(dim=-1).tolist()
    assert scores.largest == logits_RV.amax(dim=-1).tolist()
    expected_R = logits_RV.double().logsumexp(dim=-1).tolist()
    assert scores.totals == pytest.approx(expected_R, rel=1e-6, abs=1e-6)


@pytest.mark.usefixtures("maker")
@pytest.mark.parametrize("first", [0, 3, 16, 17, 40])
def test_of_equal_scores_the_first_is_likeliest(first: int) -> None:
    logits_RV = torch.zeros(1, 50)
    logits_RV[0, [first, 41, 49]] = 2.0
    assert Scores.of(logits_RV).likeliest == [first]


@pytest.mark.usefixtures("maker")
def test_forbidden_tokens_count_nothing() -> None:
    logits_RV = torch.full((1, 40), -torch.inf)
    logits_RV[0, 33] = -5.0
    scores = Scores.of(logits_RV)
    assert (scores.likeliest, scores.totals) == ([33], [-5.0])
    assert scores.log_probability(0, 33) == 0.0
    assert scores.log_probability(0, 2) == -torch.inf


@pytest.mark.parametrize("rows", [[1], [1, 2], [3, 0]])
def test_some_rows_are_those_of_all(rows: list[int]) -> None:
    logits_RV = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    found, expected = Scores.of(logits_RV).of_rows(rows), Scores.of(logits_RV[rows])
    assert torch.equal(found.logits_RV, expected.logits_RV)
    assert found[1:] == expected[1:]


def test_the_most_likely_tokens_come_with_their_probabilities() -> None:
    logits_RV = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    logs_RV = logits_RV.log_softmax(dim=-1)
    scores = Scores.of(logits_RV)
    found = scores.most_likely(1, 3)
    assert [token for token, _ in found] == logs_RV[1].topk(3).indices.tolist()
    assert [log for _, log in found] == pytest.approx(logs_RV[1].topk(3).values.tolist(), rel=1e-5)
    assert scores.most_likely(1, 0) == ()
    assert scores.log_probability(1, 7) == pytest.approx(float(logs_RV[1, 7]), rel=1e-5)
    assert scores.log_probability(1, found[0][0]) == pytest.approx(found[0][1], rel=1e-5)
