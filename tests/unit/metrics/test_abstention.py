"""The threshold for giving no answer equals that of SQuAD v2.0's script, on questions made up at random."""

import random
from collections.abc import Sequence

import pytest

from lushan.metrics.abstention import Asked, best_threshold, threshold_table


def squad_best(
    given: dict[int, str],
    scores: dict[int, float],
    absence: dict[int, float],
    has_answer: dict[int, bool],
) -> tuple[float, float]:
    """Find the best threshold and its score as SQuAD v2.0's script does, question by question."""
    score = best = float(sum(not each for each in has_answer.values()))
    threshold = 0.0
    for number in sorted(absence, key=lambda each: absence[each]):
        if has_answer[number]:
            score += scores[number]
        elif given[number]:
            score -= 1
        if score > best:
            best, threshold = score, absence[number]
    return best / len(scores), threshold


def asked(draw: random.Random, *, ties: bool = False) -> list[Asked]:
    """Make up questions; one without an answer scores 1 if none was given all the same."""
    questions = []
    for _ in range(draw.randint(2, 30)):
        has_answer = draw.random() < 0.6
        f1 = draw.choice((0.0, 0.25, 1 / 3, 0.8, 1.0)) if has_answer else draw.choice((0.0, 1.0))
        absence = draw.choice((0.1, 0.4, 0.9)) if ties else draw.random()
        questions.append(Asked(absence, has_answer, f1, float(f1 == 1)))
    return questions


def applied(questions: Sequence[Asked], threshold: float) -> list[float]:
    """Give the F1 of each question once the threshold is used."""
    return [
        float(not each.has_answer) if each.no_answer_probability > threshold else each.f1
        for each in questions
    ]


@pytest.mark.parametrize("exact", [False, True])
def test_threshold_is_that_of_squads_script(*, exact: bool) -> None:
    draw = random.Random(0)
    for _ in range(1000):
        questions = asked(draw)
        numbered = dict(enumerate(questions))
        _, expected = squad_best(
            {n: "" if x.f1 == 1 and not x.has_answer else "a" for n, x in numbered.items()},
            {n: x.exact_match if exact else x.f1 for n, x in numbered.items()},
            {n: x.no_answer_probability for n, x in numbered.items()},
            {n: x.has_answer for n, x in numbered.items()},
        )
        assert best_threshold(questions, exact=exact) == expected


def test_equal_probabilities_are_used_together_and_no_threshold_is_better() -> None:
    draw = random.Random(1)
    for _ in range(300):
        questions = asked(draw, ties=True)
        best = sum(applied(questions, best_threshold(questions)))
        assert best == pytest.approx(
            max(sum(applied(questions, each)) for each in (0.0, 0.1, 0.4, 0.9))
        )


def test_table_tells_what_each_threshold_does_and_marks_the_best() -> None:
    draw = random.Random(2)
    for _ in range(100):
        questions = [*asked(draw), Asked(0.3, True, 0.5, 0.0), Asked(0.7, False, 0.0, 0.0)]
        points = threshold_table(questions)
        assert [each.threshold for each in points] == sorted({x.threshold for x in points})
        (best,) = (each for each in points if each.is_best)
        assert best.threshold == best_threshold(questions)
        assert best.f1 == pytest.approx(max(each.f1 for each in points))
        assert points[-1].answered_fraction == 1
        for each in points:
            scores = applied(questions, each.threshold)
            known = [
                x for x, question in zip(scores, questions, strict=True) if question.has_answer
            ]
            assert each.f1 == pytest.approx(sum(scores) / len(scores))
            assert each.has_answer_f1 == pytest.approx(sum(known) / len(known))
            share = len(known) / len(scores)
            whole = share * each.has_answer_f1 + (1 - share) * each.no_answer_accuracy
            assert whole == pytest.approx(each.f1)


def test_answering_nothing_is_kept_where_every_answer_is_wrong() -> None:
    questions = [Asked(0.2, False, 0.0, 0.0), Asked(0.1, True, 0.0, 0.0)]
    assert best_threshold(questions) == 0
    assert threshold_table(questions)[0].answered_fraction == 0


def test_written_no_answer_counts_as_none_whatever_the_threshold() -> None:
    questions = [
        Asked(0.1, True, 1.0, 1.0),
        Asked(0.2, False, 1.0, 1.0, is_given=False),
        Asked(0.3, True, 0.0, 0.0, is_given=False),
        Asked(0.4, True, 0.5, 0.0),
    ]
    points = {each.threshold: each.answered_fraction for each in threshold_table(questions)}
    assert points == {0.1: 0.25, 0.2: 0.25, 0.3: 0.25, 0.4: 0.5}
