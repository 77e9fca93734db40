"""Answering: where the answer is learned, how windows are put together, and that no answer is made up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForTokenClassification

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import Backbone, load_backbone
from lushan.data.batching import pack
from lushan.errors import DataError
from lushan.model_store.tuned_model import save_model
from lushan.records import Example, Features, Prediction, Row, Span, TaskState, Written
from lushan.tasks import Preparation
from lushan.tasks.answering import Task
from tests.conftest import MakeTiny
from tests.generation import plain_model
from tests.saved import meaning_of
from tests.unit.metrics.test_answering import squad

TASK = Task()
STATE = TaskState(labels=("answer",))
ABSTAINS = TaskState(labels=("answer", "no answer"))
LIMIT = LengthLimit(512)
CONTEXT = "Ada  Lovelace left \u5317\u4eac\U0001f680 in the cold May, with bread and soup for her friends."


def example(answer: str | None = "in the cold", context: str = CONTEXT) -> Example:
    spans = (
        ()
        if answer is None
        else (Span(context.index(answer), context.index(answer) + len(answer), "answer", answer),)
    )
    labels = None if spans else ("no answer",)
    return Example("id", context, spans, "a.csv, row 7", {"question": "How was it?"}, labels)


@pytest.fixture(params=["llama", "bert"])
def backbone(request: pytest.FixtureRequest, tiny_folder: MakeTiny) -> Backbone:
    folder = tiny_folder(request.param)
    return load_backbone(folder, **TASK.layer(STATE, answer="head")._asdict())


def encode(
    backbone: Backbone, *examples: Example, limit: LengthLimit = LIMIT, with_target: bool = True
) -> list[Features]:
    return TASK.encode(
        examples, STATE, backbone.tokenizer, answer="head", limit=limit, with_target=with_target
    )


def learned(features: Features, context: str = CONTEXT) -> str | None:
    """Give the part of the context that a document learns; None for "not in here"."""
    places = [each for each in features.units if each != (0, 0)]
    assert isinstance(features.target, tuple)
    first, last = features.target
    return None if first == len(places) else context[places[first][0] : places[last][1]]


def windows(backbone: Backbone, each: Example, num_fewer: int) -> list[Features]:
    (whole,) = encode(backbone, each)
    return encode(backbone, each, limit=LengthLimit(len(whole.token_ids) - num_fewer, "window"))


def test_answer_is_learned_at_borders_of_tokens_without_spaces(backbone: Backbone) -> None:
    for answer in ("in the cold", "Ada", "May", "\u5317\u4eac", "\U0001f680", "friends."):
        (features,) = encode(backbone, example(answer))
        assert answer in (found := learned(features) or "")
        assert found == found.strip()
        places = [each for each in features.units if each != (0, 0)]
        start, end = CONTEXT.index(answer), CONTEXT.index(answer) + len(answer)
        touched = [n for n, (a, b) in enumerate(places) if a < end and b > start]
        assert features.target == (touched[0], touched[-1])


def test_question_without_an_answer_learns_the_last_token(backbone: Backbone) -> None:
    (features,) = encode(backbone, example(None))
    assert learned(features) is None
    assert features.num_supervised == 1


def test_every_short_answer_is_whole_in_a_window_and_elsewhere_not_in_here(
    backbone: Backbone,
) -> None:
    for answer in ("in the cold", "Ada  Lovelace", "friends.", "May, with"):
        parts = windows(backbone, example(answer), num_fewer=25)
        found = [learned(each) for each in parts]
        assert len(parts) > 2
        assert sum(each is not None and answer in each for each in found) >= 1
        assert any(each is None for each in found)
        assert sum(each.weight for each in parts) == pytest.approx(1)


def test_windows_leave_out_no_character_of_the_context(backbone: Backbone) -> None:
    parts = windows(backbone, example(), num_fewer=40)
    covered = {place for each in parts for start, end in each.units for place in range(start, end)}
    assert covered == {place for place, mark in enumerate(CONTEXT) if not mark.isspace()}


def cut_before(backbone: Backbone, word: str) -> LengthLimit:
    """Give the longest limit that leaves of the context only what stands before a word."""
    (whole,) = encode(backbone, example())
    for num_tokens in range(len(whole.token_ids), 0, -1):
        limit = LengthLimit(num_tokens, "truncate")
        (features,) = encode(backbone, example(None), limit=limit)
        if max(end for _, end in features.units) <= CONTEXT.index(word):
            return limit
    raise AssertionError(word)


def test_answer_that_was_cut_off_is_not_learned_as_none(backbone: Backbone) -> None:
    rows = [example("soup"), example("bread and"), example("cold"), example(None)]
    features = encode(backbone, *rows, limit=cut_before(backbone, "and soup"))
    assert [each.weight for each in features] == [0, 0, 1, 1]
    assert [each.num_cut_items for each in features] == [1, 1, 0, 0]
    assert "cold" in (learned(features[2]) or "")
    assert learned(features[3]) is None
    with torch.inference_mode():
        found, kept = (
            TASK.loss(backbone, pack(each), STATE, dropout=0.0) for each in (features, features[2:])
        )
    assert found.total.item() == pytest.approx(kept.total.item(), rel=1e-4)
    assert found.count == kept.count == 2
    asked = encode(backbone, *rows, limit=cut_before(backbone, "and soup"), with_target=False)
    assert all(each.weight == 1 and each.num_cut_items == 0 for each in asked)


def both(first: str, second: str) -> Example:
    """A question with two right answers, the first of which is learned where it can be."""
    spans = [span for answer in (first, second) for span in example(answer).target or ()]
    return replace(example(first), target=tuple(spans))


def test_another_right_answer_is_learned_where_the_first_was_cut_off(backbone: Backbone) -> None:
    (features,) = encode(backbone, both("soup", "cold"), limit=cut_before(backbone, "bread"))
    assert features.weight == 1
    assert "cold" in (learned(features) or "")


def test_question_about_the_rest_of_a_context_has_the_answers_that_stand_there() -> None:
    end = CONTEXT.index("bread")
    rows = [example("cold"), both("soup", "cold"), example("bread"), example(None)]
    rows.append(replace(example(), target=("her own words",)))
    parts = [TASK.as_read(each, end) for each in rows]
    assert {each.text for each in parts} == {CONTEXT[:end]}
    assert [each.target for each in parts] == [
        example("cold").target,
        both("cold", "soup").target,
        None,
        (),
        ("her own words",),
    ]


def test_loss_is_the_cross_entropy_of_start_and_end_over_the_candidates(backbone: Backbone) -> None:
    batch = pack(encode(backbone, example(), example(None)))
    with torch.inference_mode():
        found = TASK.loss(backbone, batch, STATE, dropout=0.0)
        outputs = TASK.outputs(backbone, batch)
    expected = 0.0
    for scores_K2, each in zip(outputs, batch.features, strict=True):
        assert isinstance(each.target, tuple)
        starts, ends = torch.tensor(scores_K2).split(1, dim=1)
        for logits, target in ((starts, each.target[0]), (ends, each.target[1])):
            expected += functional.cross_entropy(logits.T, torch.tensor([target])).item() / 2
    assert found.total.item() == pytest.approx(expected, rel=1e-5)
    assert found.count == 2


def scores_for(features: Features, answer: str | None, sureness: float) -> np.ndarray:
    """Give scores by which a window answers so, or not at all; the rest is even."""
    places = [each for each in features.units if each != (0, 0)]
    table_K2 = np.zeros((len(places) + 1, 2), dtype=np.float32)
    if answer is None:
        table_K2[-1] = sureness
        return table_K2
    start = CONTEXT.index(answer)
    table_K2[next(n for n, each in enumerate(places) if each[0] == start), 0] = sureness
    table_K2[next(n for n, each in enumerate(places) if each[1] == start + len(answer)), 1] = (
        sureness
    )
    return table_K2


def decode(outputs: list[np.ndarray], features: list[Features], state: TaskState) -> Prediction:
    (found,) = TASK.decode(
        outputs, features, [replace(example(), target=None)], state, answer="head"
    )
    return found


def test_surest_window_answers_and_no_answer_needs_all_windows(backbone: Backbone) -> None:
    parts = [windows(backbone, example("bread"), num_fewer=25)[-1]] * 2
    sure, unsure = scores_for(parts[0], "bread", 9.0), scores_for(parts[0], "soup", 3.0)
    absent = scores_for(parts[0], None, 8.0)
    texts = []
    for outputs in ([unsure, sure], [absent, unsure], [absent, absent]):
        found = decode(outputs, parts, ABSTAINS)
        texts.append("".join(each.text for each in found.answer if isinstance(each, Span)))
        assert found.log_likelihood <= 0
    assert texts == ["bread", "soup", ""]
    assert len(decode([absent, absent], parts, STATE).answer) == 1


def test_windows_are_compared_by_how_much_likelier_the_answer_is_than_none(
    backbone: Backbone,
) -> None:
    parts = [windows(backbone, example("bread"), num_fewer=25)[-1]] * 2
    doubtful = scores_for(parts[0], "soup", 9.0) + scores_for(parts[0], None, 9.2)
    faint = scores_for(parts[0], "bread", 1.0)
    (span,) = decode([doubtful, faint], parts, ABSTAINS).answer
    assert isinstance(span, Span)
    assert span.text == "bread"


def test_answer_is_the_likeliest_pair_and_never_ends_before_it_starts(backbone: Backbone) -> None:
    (features,) = encode(backbone, example())
    places = [each for each in features.units if each != (0, 0)]
    draw = np.random.default_rng(0)
    for _ in range(20):
        scores_K2 = draw.normal(size=(len(places) + 1, 2)).astype(np.float32)
        pairs = [(i, j) for i in range(len(places)) for j in range(i, len(places))]
        first, last = max(pairs, key=lambda each: scores_K2[each[0], 0] + scores_K2[each[1], 1])
        (span,) = decode([scores_K2], [features], STATE).answer
        assert isinstance(span, Span)
        assert (span.start, span.end) == (places[first][0], places[last][1])
        assert span.text == CONTEXT[span.start : span.end]


def test_most_frequent_answer_comes_first() -> None:
    answers = {"text": ["Ada", "left", "left"], "answer_start": [0, 4, 4]}
    row = Row({"context": "Ada left", "question": "What?", "answers": answers}, "a", 1)
    target = TASK.read(row).target
    assert target == (Span(4, 8, "answer"), Span(0, 3, "answer"))
    assert TASK.notes([TASK.read(row)]) != []


def test_abstaining_is_learned_from_rows_without_an_answer_only() -> None:
    options = {"preparation": Preparation(), "multi_label": False}
    assert TASK.prepare([example()], **options).labels == STATE.labels
    assert TASK.prepare([example(), example(None)], **options).labels == ABSTAINS.labels
    with pytest.raises(DataError, match="None of the 1 training rows has an answer"):
        TASK.prepare([example(None)], **options)


def test_chinese_is_scored_by_characters_and_english_by_words() -> None:
    chinese = "\u4ed6\u5728\u5317\u4eac\u5de5\u4f5c\u3002"
    truth = [example("in the cold May,"), example("\u5317\u4eac\u5de5", context=chinese)]
    answers = [
        Prediction("id", (Span(26, 39, "answer"),)),
        Prediction("id", (Span(2, 4, "answer"),)),
    ]
    assert truth[0].text[26:39] == "the cold May,"
    scores = TASK.score(answers, truth, STATE)
    assert scores.metrics["f1"].value == pytest.approx((0.8 + 0.8) / 2)
    assert scores.details == {"num_scored_by_words": 1, "num_scored_by_characters": 1}
    assert list(scores.correct) == [False, False]


def test_written_answer_is_asked_with_its_examples_and_stands_for_its_place_in_the_text() -> None:
    (asked,) = TASK.render(
        example(), ABSTAINS, answer="generate", with_target=True, shots=[example(None)]
    )
    question = f"Question: How was it?\nContext: {CONTEXT}\nAnswer:"
    assert asked.text == (
        f"Answer from the context, or write: no answer.\n\n{question} no answer\n\n{question} in the cold"
    )
    assert asked.text[slice(*asked.cuttable)] == CONTEXT
    assert [asked.text[start:end] for start, end in asked.supervised] == [" in the cold"]
    texts = (" in the cold", " No answer", "", " in the snow")
    examples = [example()] * len(texts)
    written = [Written(text, -1.0) for text in texts]
    found = TASK.decode(written, [], examples, ABSTAINS, answer="generate")
    start = CONTEXT.index("in the cold")
    span = Span(start, start + len("in the cold"), "answer")
    assert [each.answer for each in found] == [(span,), (), (), "in the snow"]
    scores = TASK.score(found, examples, ABSTAINS)
    assert list(scores.correct) == [True, False, False, False]
    assert scores.metrics["f1"].value == pytest.approx((1 + 0.5) / 4)


def test_written_answer_is_withheld_where_no_answer_is_likelier_than_the_threshold() -> None:
    state = replace(ABSTAINS, no_answer_threshold=0.25)
    logs = np.log([0.25, 0.2500001, 0.1, 1.0])
    texts = ("in the cold", "in the cold", "no answer", "May")
    written = [Written(text, -1.0, (), float(log)) for text, log in zip(texts, logs, strict=True)]
    found = TASK.decode(written, [], [example()] * 4, state, answer="generate")
    assert [bool(each.answer) for each in found] == [True, False, False, False]
    assert [each.no_answer_probability for each in found] == pytest.approx(np.exp(logs))
    assert [each.log_likelihood for each in found] == pytest.approx([-1, logs[1], -1, 0])
    scores = TASK.score(found, [example(), example(None), example(None), example()], state)
    assert scores.metrics["has_answer_f1"].value == 0.5
    assert scores.metrics["no_answer_accuracy"].value == 1
    assert scores.metrics["f1"].value == 0.75


def free(*answers: str, place: str = "a.csv, row 9") -> Example:
    return Example("id", CONTEXT, answers, place, {"question": "How was it?"}, ("answer",))


def test_free_answers_are_read_and_only_written() -> None:
    values = {"context": CONTEXT, "question": "How?", "answers": ["cold", "rather cold", "cold"]}
    found = TASK.read(Row(values, "a", 1))
    assert (found.target, found.classes) == (("cold", "rather cold"), ("answer",))
    other = TASK.read(Row({**values, "answers": ["rather cold"]}, "a", 1))
    assert other.id != found.id
    assert (
        "2 training rows have answers without a place" in TASK.notes([found, other, example()])[-1]
    )
    (told,) = TASK.render(found, STATE, answer="generate", with_target=True)
    assert [told.text[start:end] for start, end in told.supervised] == [" cold"]


def test_head_refuses_to_learn_a_free_answer_and_says_what_to_do(backbone: Backbone) -> None:
    with pytest.raises(DataError, match=r"row 9: the answer 'freezing'.*`--answer generate`"):
        encode(backbone, example(), free("freezing"))
    assert encode(backbone, free("freezing"), with_target=False)


def test_free_answers_are_scored_as_squads_script_scores_them() -> None:
    right = ["the freezing cold", "Bitter frost!"]
    texts = (" bitter frost", " a very freezing morning", "no answer", " in the cold")
    examples = [free(*right)] * len(texts)
    written = [Written(text, -1.0) for text in texts]
    found = TASK.decode(written, [], examples, ABSTAINS, answer="generate")
    expected = [squad(right, text if text != "no answer" else "") for text in texts]
    scores = TASK.score(found, examples, ABSTAINS)
    assert scores.metrics["exact_match"].value == pytest.approx(sum(x for x, _ in expected) / 4)
    assert scores.metrics["f1"].value == pytest.approx(sum(y for _, y in expected) / 4)
    assert list(scores.correct) == [bool(x) for x, _ in expected] == [True, False, False, False]


def test_loss_of_a_written_answer_is_that_of_transformers(tiny_folder: MakeTiny) -> None:
    backbone = load_backbone(tiny_folder("llama"), purpose="language")
    options = {"answer": "generate", "limit": LengthLimit(128), "with_target": True}
    (features,) = TASK.encode([example()], STATE, backbone.tokenizer, **options)
    found = TASK.loss(backbone, pack([features]), STATE, dropout=0.0)
    ids = torch.tensor([features.token_ids])
    labels = ids.clone()
    labels[:, : features.targets_from] = -100
    expected = plain_model(tiny_folder("llama"))(ids, labels=labels).loss.detach()
    assert float(found.total.detach()) / found.count == pytest.approx(float(expected), rel=1e-5)


def test_saved_model_gives_the_same_scores_in_transformers(
    backbone: Backbone, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    base = tiny_folder(backbone.facts.model_type)
    save_model(tmp_path / "model", backbone, meaning_of(backbone, base))
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path / "model").eval()
    (features,) = encode(backbone, example(), with_target=False)
    candidates = [index for index, each in enumerate(features.units) if each != (0, 0)]
    with torch.inference_mode():
        (found_K2,) = TASK.outputs(backbone, pack([features]))
        logits_T2 = loaded(torch.tensor([features.token_ids])).logits[0]
    assert loaded.config.id2label == {0: "start", 1: "end"}
    assert found_K2 == pytest.approx(logits_T2[[*candidates, -1]].numpy(), abs=1e-5)


def test_written_no_answer_is_not_counted_as_answered() -> None:
    asked = [example(), example(None)]
    written = [
        Prediction("id", example().target or (), no_answer_probability=0.1),
        Prediction("id", (), no_answer_probability=0.2),
    ]
    points = TASK.abstention.thresholds(written, asked)
    assert [each.answered_fraction for each in points] == [0.5, 0.5]
