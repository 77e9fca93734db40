"""A question with its choices as one document: read once, and cut alike before every choice."""

from typing import Any

import pytest

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import Backbone, load_backbone
from lushan.errors import DataError
from lushan.records import Example, Features, Row, TaskState
from lushan.tasks.choice import Task
from tests.conftest import MakeTiny

TASK = Task()
STATE = TaskState()
LIMIT = LengthLimit(128)
QUESTION = "The children ran home, so they"
CHOICES = ["ate soup", "were a brave little fox", "watched 10 films", "add"]
EXAMPLES = [TASK.read(Row({"question": QUESTION, "choices": CHOICES, "answer": 0}, "a.csv", 7))]


def encode(backbone: Backbone, *examples: Example, limit: LengthLimit = LIMIT) -> list[Features]:
    tokenizer = backbone.tokenizer
    options: Any = {"answer": "generate", "limit": limit, "with_target": True}
    return TASK.encode(examples, STATE, tokenizer, **options)


@pytest.fixture
def backbone(tiny_folder: MakeTiny) -> Backbone:
    return load_backbone(tiny_folder("llama"), purpose="language")


def test_question_is_read_once_for_all_its_choices(backbone: Backbone) -> None:
    (features,) = encode(backbone, EXAMPLES[0])
    question, *paths = backbone.tokenizer.encode([
        QUESTION,
        *(f"{QUESTION} {each}" for each in CHOICES),
    ])
    extra = sum(len(each.ids) - len(question.ids) for each in paths)
    assert len(features.token_ids) == len(question.ids) + extra
    assert features.num_supervised == extra
    assert features.branches[0] == (len(question.ids), len("ate soup"))
    assert features.target == 0


def test_long_question_is_cut_alike_before_every_choice(backbone: Backbone) -> None:
    (whole,) = encode(backbone, EXAMPLES[0])
    size = len(whole.token_ids)
    with pytest.raises(DataError, match=rf"row 7: the question .* {size} tokens, but at most"):
        encode(backbone, EXAMPLES[0], limit=LengthLimit(size - 2))
    (cut,) = encode(backbone, EXAMPLES[0], limit=LengthLimit(size - 2, "truncate"))
    first = whole.branch_starts[0]
    assert cut.token_ids == whole.token_ids[: first - 2] + whole.token_ids[first:]
    assert cut.num_cut_tokens == 2
    windows = encode(backbone, EXAMPLES[0], limit=LengthLimit(size - 2, "window"))
    assert [each.token_ids[: each.branch_starts[0]][-2:] for each in windows][1] == whole.token_ids[
        first - 2 : first
    ]
    assert sum(each.weight * each.num_supervised for each in windows) == pytest.approx(1)
