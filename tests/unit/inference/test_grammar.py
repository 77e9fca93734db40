"""Forms of answers: what may come next, with random tokens chosen among what is allowed."""

import json
import re
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from lushan.backbones.tokenizer import Tokenizer
from lushan.errors import SettingError
from lushan.inference.grammar import Constraint, GrammarState
from tests.conftest import MakeTiny
from tests.tiny import TINY_VOCABULARY

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}


@pytest.fixture
def tokenizer(tiny_folder: MakeTiny) -> Tokenizer:
    return Tokenizer.load(tiny_folder("llama"))


def start(
    constraint: Constraint, tokenizer: Tokenizer, stops: frozenset[int] = frozenset({2})
) -> GrammarState:
    return GrammarState.start(
        constraint, tokenizer, vocabulary_size=TINY_VOCABULARY, stop_ids=stops
    )


def ids_of(allowed_V: Tensor) -> list[int]:
    return allowed_V.nonzero()[:, 0].tolist()


def write(constraint: Constraint, tokenizer: Tokenizer, seed: int) -> str:
    """Write an answer by picking any allowed token, until a stop token comes."""
    random = np.random.default_rng(seed)
    state = start(constraint, tokenizer)
    token_ids: list[int] = []
    while True:
        token_id = int(random.choice(ids_of(state.allowed(TINY_VOCABULARY))))
        if token_id == 2:
            return tokenizer.decode(token_ids)
        token_ids.append(token_id)
        state.push(token_id)


@pytest.mark.parametrize("seed", range(20))
def test_any_path_through_a_schema_is_a_valid_value(seed: int, tokenizer: Tokenizer) -> None:
    value = json.loads(write(Constraint.json_schema(PERSON), tokenizer, seed))
    assert value.keys() == {"name", "age", "tags"}
    assert len(value["name"]) <= 6
    assert 0 <= value["age"] <= 120
    assert set(value["tags"]) <= {"x", "y"}
    assert len(value["tags"]) <= 2


@pytest.mark.parametrize("seed", range(20))
def test_any_path_through_an_expression_matches_it(seed: int, tokenizer: Tokenizer) -> None:
    pattern = r"(very )?(good|bad), [0-9]{1,3} out of 10"
    assert re.fullmatch(pattern, write(Constraint.regex(pattern), tokenizer, seed))


def test_every_choice_is_reached_and_nothing_else(tokenizer: Tokenizer) -> None:
    texts = [" good", " good film", ' "quoted"\n', " \u5e90\u5c71 \U0001f600"]
    found = {write(Constraint.choice(texts), tokenizer, seed) for seed in range(60)}
    assert found == set(texts)


def test_copy_goes_its_own_way(tokenizer: Tokenizer) -> None:
    state = start(Constraint.choice(["ab", "cd"]), tokenizer)
    other = state.copy()
    (letter_a,) = tokenizer.encode(["a"])[0].ids
    state.push(letter_a)
    assert letter_a in ids_of(other.allowed(TINY_VOCABULARY))
    assert letter_a not in ids_of(state.allowed(TINY_VOCABULARY))


def test_every_stop_token_is_allowed_at_the_end_and_none_before(tokenizer: Tokenizer) -> None:
    (letter_a,) = tokenizer.encode(["a"])[0].ids
    (letter_b,) = tokenizer.encode(["b"])[0].ids
    state = start(Constraint.regex("ab?"), tokenizer, frozenset({2, 1, letter_a + 200}))
    assert not {1, 2, letter_a + 200} & set(ids_of(state.allowed(TINY_VOCABULARY)))
    state.push(letter_a)
    assert set(ids_of(state.allowed(TINY_VOCABULARY))) == {1, 2, letter_a + 200, letter_b}


def test_form_that_the_tokens_cannot_write_is_told(tokenizer: Tokenizer) -> None:
    (letter_a,) = tokenizer.encode(["a"])[0].ids
    state = start(Constraint.regex("a"), tokenizer, frozenset({2, letter_a}))
    with pytest.raises(SettingError, match="`a` cannot be completed with this model's tokens"):
        state.allowed(TINY_VOCABULARY)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint.regex("(a"), r"regular expression `\(a` cannot be used: .*invalid regex"),
        (Constraint.json_schema({"type": "thing"}), "JSON Schema .*thing.* cannot be used"),
    ],
)
def test_broken_form_is_refused_with_its_reason(
    constraint: Constraint, message: str, tokenizer: Tokenizer
) -> None:
    with pytest.raises(SettingError, match=message):
        start(constraint, tokenizer)


@pytest.mark.parametrize("texts", [[], ["a", ""]])
def test_choice_of_nothing_is_refused(texts: list[str]) -> None:
    with pytest.raises(SettingError, match="A choice needs texts"):
        Constraint.choice(texts)


def test_model_without_a_stop_token_cannot_be_held_to_a_form(tokenizer: Tokenizer) -> None:
    with pytest.raises(SettingError, match="needs a model with a stop token"):
        start(Constraint.regex("a"), tokenizer, frozenset())
