"""Explanations of every kind of answer: complete, in the user's characters, and about what the model looks at."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import load_backbone
from lushan.catalog import load_task
from lushan.data.batching import pack
from lushan.errors import DataError
from lushan.explain import explanation as module
from lushan.explain.explanation import Attribution, Explanation, explain
from lushan.explain.settings import ExplainSettings
from lushan.inference.predict import Predictor
from lushan.records import AnswerMode, Example, TaskState
from tests.conftest import MakeTiny
from tests.unit.explain.conftest import Asked, AskModel

QUICK = ExplainSettings(most_steps=64, num_draws=2)


def explained(asked: Asked, **options: Any) -> list[Explanation]:  # noqa: ANN401
    return list(explain(asked.predictor, asked.examples, **{"settings": QUICK, **options}))


def parts_of(explanations: Sequence[Explanation]) -> list[Attribution]:
    return [part for each in explanations for part in each.parts]


def total(part: Attribution) -> float:
    return sum(each.weight for each in (*part.tokens, *part.template))


def size(part: Attribution) -> float:
    return sum(abs(each.weight) for each in (*part.tokens, *part.template))


@pytest.mark.parametrize(
    ("task", "answer", "model_type"),
    [
        ("classification", "head", "llama"),
        ("classification", "head", "bert"),
        ("classification", "head", "modernbert"),
        ("classification", "head", "gpt_neo"),  # without packed attention
        ("classification", "generate", "gpt2"),
        ("tagging", "head", "bert"),
        ("answering", "head", "modernbert"),
        ("dialogue", "generate", "gemma3_text"),
    ],
)
def test_weights_sum_to_the_difference_of_the_scores(
    task: str, answer: AnswerMode, model_type: str, ask_model: AskModel
) -> None:
    found = parts_of(explained(ask_model(task, answer, model_type)))
    assert found
    for part in found:
        assert part.completeness_gap <= QUICK.most_gap or part.num_steps == QUICK.most_steps
        difference = part.score - part.baseline_score
        share = abs(total(part) - difference) / max(size(part), abs(difference))
        assert part.completeness_gap == pytest.approx(share, rel=1e-3, abs=1e-6)
        assert sum(each.weight for each in part.words) == pytest.approx(
            sum(each.weight for each in part.tokens), abs=1e-9
        )


@pytest.mark.parametrize("task", ["classification", "relations", "answering"])
def test_score_is_the_log_likelihood_of_the_prediction(task: str, ask_model: AskModel) -> None:
    asked = ask_model(task)
    predictions = asked.predictor.predict(asked.examples)
    for prediction, part in zip(predictions, parts_of(explained(asked)), strict=True):
        assert part.score == pytest.approx(prediction.log_likelihood, abs=1e-4)


def test_score_of_an_entity_is_the_logarithm_of_its_probability(ask_model: AskModel) -> None:
    parts = parts_of(explained(ask_model("tagging")))
    assert parts
    for part in parts:
        assert part.span is not None
        assert part.span.probability is not None
        assert part.score == pytest.approx(math.log(part.span.probability), abs=1e-4)


def test_score_of_a_choice_is_its_log_likelihood(ask_model: AskModel) -> None:
    asked = ask_model("choice", "generate")
    predictions = asked.predictor.predict(asked.examples)
    for prediction, part in zip(predictions, parts_of(explained(asked)), strict=True):
        expected = prediction.log_likelihoods[str(prediction.answer)]
        assert part.score == pytest.approx(expected, rel=1e-4)


def test_score_of_a_written_answer_is_that_of_writing_it(ask_model: AskModel) -> None:
    asked = ask_model("summarization", "generate")
    answered = [
        replace(example, target=prediction.answer)
        for example, prediction in zip(
            asked.examples, asked.predictor.predict(asked.examples), strict=True
        )
    ]
    examined = asked.predictor.examine(answered)
    for prediction, part in zip(examined, parts_of(explained(asked)), strict=True):
        assert part.score == pytest.approx(prediction.truth_log_likelihood, rel=1e-4)


def test_what_else_is_explained_changes_nothing(
    ask_model: AskModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ask_model()
    together = parts_of(explained(asked))
    monkeypatch.setattr(module, "CHUNK_EXAMPLES", 1)
    for one, other in zip(together, parts_of(explained(asked)), strict=True):
        weights = [each.weight for each in one.tokens]
        assert [each.weight for each in other.tokens] == pytest.approx(weights, rel=1e-3, abs=1e-5)
        assert other.faithfulness.comprehensiveness == pytest.approx(
            one.faithfulness.comprehensiveness, abs=1e-4
        )


def test_places_are_characters_of_the_text(ask_model: AskModel) -> None:
    text = "ok \U0001f44d\U0001f3fd 很好看。cafe\u0301"
    asked = ask_model()
    (found,) = explain(asked.predictor, [replace(asked.examples[0], text=text)], settings=QUICK)
    (part,) = found.parts
    assert found.text == text
    assert [each.text for each in part.words] == [
        "ok",
        "\U0001f44d\U0001f3fd",
        *"很好看。",
        "cafe\u0301",
    ]
    for each in (*part.words, *part.tokens):
        assert each.text == text[each.start : each.end] != ""


def test_share_of_the_template_is_that_of_its_weights(ask_model: AskModel) -> None:
    head, written = (parts_of(explained(ask_model(answer=x)))[0] for x in ("head", "generate"))
    assert (head.template, head.template_share) == ((), 0.0)
    assert 0 < written.template_share < 1
    template = sum(abs(each.weight) for each in written.template)
    assert written.template_share == pytest.approx(template / size(written))


def test_tokens_that_were_cut_off_are_told(ask_model: AskModel) -> None:
    asked = ask_model(limit=LengthLimit(6, "truncate"))
    (found,) = explain(asked.predictor, [Example("", "the fox ate soup " * 5, None)])
    (part,) = found.parts
    assert part.num_cut_tokens > 0
    assert part.words[-1].weight == 0


def test_another_label_and_another_baseline_are_explained(ask_model: AskModel) -> None:
    asked = ask_model()
    named = explained(asked, label="negative")
    assert {part.target for part in parts_of(named)} == {"negative"}
    mean = explained(asked, label="negative", settings=ExplainSettings(baseline="mean"))
    assert mean[0].baseline == "mean"
    assert mean[0].parts[0].baseline_score != named[0].parts[0].baseline_score
    with pytest.raises(DataError, match="The label 'green'"):
        explained(asked, label="green")


def test_weights_of_the_model_are_as_before(ask_model: AskModel) -> None:
    asked = ask_model()
    before = [
        (each.clone(), each.requires_grad) for each in asked.predictor.backbone.model.parameters()
    ]
    explained(asked)
    for (weight, learns), each in zip(
        before, asked.predictor.backbone.model.parameters(), strict=True
    ):
        assert torch.equal(weight, each)
        assert each.requires_grad == learns
        assert each.grad is None


SHORTCUT, OTHER = "bread", "soup"
FILLER = ("river", "forest", "film", "children", "service", "animals", "watch", "home")


def shortcut_rows(num_rows: int, *, seed: int) -> list[Example]:
    """Give rows whose label one word alone decides, at any place among words that say nothing."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[Example] = []
    for number in range(num_rows):
        words = [FILLER[at] for at in torch.randint(len(FILLER), (6,), generator=generator)]
        planted, label = ((SHORTCUT, "yes"), (OTHER, "no"))[number % 2]
        words.insert(int(torch.randint(1, 7, (), generator=generator)), planted)
        rows.append(Example(str(number), " ".join(words), label))
    return rows


def tuned_on_the_shortcut(folder: MakeTiny) -> Predictor:
    task, state = load_task("classification"), TaskState(labels=("no", "yes"))
    backbone = load_backbone(folder("gpt2"), purpose="classify", labels=state.labels)
    model = Predictor(backbone, task, state, "head", LengthLimit(128))
    features = task.encode(
        shortcut_rows(128, seed=1), state, backbone.tokenizer,
        answer="head", limit=model.limit, with_target=True,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(backbone.model.parameters(), lr=0.003)
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(backbone, pack(features), state, dropout=0.0).total.backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def test_planted_shortcut_is_the_strongest_word(tiny_folder: MakeTiny) -> None:
    model = tuned_on_the_shortcut(tiny_folder)
    rows = shortcut_rows(20, seed=2)
    right = [each.answer == row.target for each, row in zip(model.predict(rows), rows, strict=True)]
    assert sum(right) >= 18
    neutral = ExplainSettings(baseline="zero")
    found = parts_of(list(explain(model, rows, settings=neutral)))
    tops = [max(part.words, key=lambda each: each.weight).text for part in found]
    assert sum(top in {SHORTCUT, OTHER} for top in tops) >= 16  # of 20; by chance 3
    drops = [part.faithfulness for part in found]
    fall = sum(each.comprehensiveness for each in drops)
    assert fall > 2 * sum(each.random_comprehensiveness for each in drops)
    assert sum(x.sufficiency for x in drops) < 0.5 * sum(x.random_sufficiency for x in drops)
