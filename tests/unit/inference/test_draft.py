"""One answer: how it grows, ends and is copied."""

import pytest
import torch

from lushan.backbones.tokenizer import Tokenizer
from lushan.inference.draft import Draft, Ends
from lushan.inference.grammar import Constraint, GrammarState
from lushan.inference.text_stream import TextStream
from tests.conftest import MakeTiny
from tests.tiny import TINY_VOCABULARY


@pytest.fixture
def tokenizer(tiny_folder: MakeTiny) -> Tokenizer:
    return Tokenizer.load(tiny_folder("llama"))


def draft(tokenizer: Tokenizer, *, max_new_tokens: int = 4, stops: tuple[str, ...] = ()) -> Draft:
    ends = Ends(frozenset({2}), max_new_tokens)
    return Draft(3, (7, 8), ends, TextStream(tokenizer, (7, 8), stops))


def letters(tokenizer: Tokenizer, text: str) -> list[int]:
    return [tokenizer.encode([letter])[0].ids[0] for letter in text]


def test_stop_token_ends_and_adds_no_text(tokenizer: Tokenizer) -> None:
    answer = draft(tokenizer)
    for token_id in [*letters(tokenizer, "ab"), 2]:
        answer.add(token_id, -0.5)
    assert (answer.pieces, answer.ended) == (["a", "b", ""], "stop")
    assert answer.all_ids == [7, 8, *letters(tokenizer, "ab"), 2]


def test_stop_token_at_the_last_place_is_a_stop(tokenizer: Tokenizer) -> None:
    answer = draft(tokenizer, max_new_tokens=1)
    answer.add(2, -0.5)
    assert answer.ended == "stop"


def test_length_ends_with_all_text_that_was_held(tokenizer: Tokenizer) -> None:
    answer = draft(tokenizer, max_new_tokens=3, stops=("bcd",))
    for token_id in letters(tokenizer, "abc"):
        answer.add(token_id, -0.5)
    assert (answer.pieces, answer.ended) == (["a", "", "bc"], "length")


def test_stop_string_at_the_last_place_is_a_stop_string(tokenizer: Tokenizer) -> None:
    answer = draft(tokenizer, max_new_tokens=3, stops=("bc",))
    for token_id in letters(tokenizer, "abc"):
        answer.add(token_id, -0.5)
    assert (answer.pieces, answer.ended) == (["a", "", ""], "stop_string")


def test_copy_goes_its_own_way(tokenizer: Tokenizer) -> None:
    first = draft(tokenizer)
    first.grammar = GrammarState.start(
        Constraint.choice(["ab", "ac"]),
        tokenizer,
        vocabulary_size=TINY_VOCABULARY,
        stop_ids=frozenset({2}),
    )
    letter_a, letter_b, letter_c = letters(tokenizer, "abc")
    first.add(letter_a, -0.1)
    second = first.copy()
    first.add(letter_b, -0.2)
    second.add(letter_c, -0.3)
    assert (first.token_ids, second.token_ids) == ([letter_a, letter_b], [letter_a, letter_c])
    assert (first.log_probabilities, second.pieces) == ([-0.1, -0.2], ["a", "c"])


def test_forbidden_tokens_have_no_score_and_others_keep_theirs(tokenizer: Tokenizer) -> None:
    answer = draft(tokenizer)
    scores_V = torch.randn(TINY_VOCABULARY)
    assert answer.allowed_only(scores_V) is scores_V
    answer.grammar = GrammarState.start(
        Constraint.choice(["ab"]),
        tokenizer,
        vocabulary_size=TINY_VOCABULARY,
        stop_ids=frozenset({2}),
    )
    (letter_a,) = letters(tokenizer, "a")
    kept_V = answer.allowed_only(scores_V)
    assert kept_V[letter_a] == scores_V[letter_a]
    assert set(kept_V.isfinite().nonzero()[:, 0].tolist()) <= {letter_a, *_tokens_of(tokenizer)}


def _tokens_of(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(["ab"])[0].ids


def test_only_the_last_token_tells_the_end(tokenizer: Tokenizer) -> None:
    answer = draft(tokenizer)
    for token_id in [*letters(tokenizer, "a"), 2]:
        answer.add(token_id, -0.5)
    first, last = answer.event(1, 0), answer.event(1)
    assert (first.prompt_index, first.answer_index, first.text, first.ended) == (3, 1, "a", None)
    assert (last.token_id, last.log_probability, last.ended) == (2, -0.5, "stop")
