"""Text that comes in pieces: the same as the whole, no broken character, no start of a stop string."""

from pathlib import Path
from typing import SupportsIndex

import pytest

from lushan.backbones.tokenizer import Tokenizer
from lushan.inference.text_stream import TextStream
from tests.conftest import MakeTiny
from tests.tiny import write_byte_fallback_tokenizer

TEXTS = (
    "a fox\u5e90\u5c71 \U0001f600 soup cafe\u0301 \U0001f468\u200d\U0001f469\u200d\U0001f467 !",
    "\u5e90\u5c71\u771f\u9762\u76ee",
    "  two  spaces\n\n\tand tabs ",
    "\ufffd a real replacement character \ufffd.",
    "x",
)


@pytest.fixture
def byte_level(tiny_folder: MakeTiny) -> Tokenizer:
    return Tokenizer.load(tiny_folder("llama"))


@pytest.fixture
def byte_fallback(tmp_path: Path) -> Tokenizer:
    write_byte_fallback_tokenizer(tmp_path)
    return Tokenizer.load(tmp_path)


def pieces_of(stream: TextStream, token_ids: list[int]) -> list[str]:
    pieces = [stream.push(token_id) for token_id in token_ids]
    return [*pieces, stream.finish()]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_pieces_are_whole_characters_and_make_up_the_text(
    kind: str, text: str, request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    prompt_ids = tokenizer.encode(["a fox \u5c71\u5e90 says:"])[0].ids
    pieces = pieces_of(TextStream(tokenizer, prompt_ids), tokenizer.encode([text])[0].ids)
    whole = tokenizer.decode([*prompt_ids, *tokenizer.encode([text])[0].ids])
    assert "".join(pieces) == whole.removeprefix(tokenizer.decode(prompt_ids))
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_space_between_prompt_and_answer_is_kept(byte_fallback: Tokenizer) -> None:
    prompt_ids = byte_fallback.encode(["a fox"])[0].ids
    answer_ids = byte_fallback.encode(["runs"])[0].ids
    assert byte_fallback.decode(answer_ids) == "runs"
    assert "".join(pieces_of(TextStream(byte_fallback, prompt_ids), answer_ids)) == " runs"


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_half_a_character_at_the_end_is_told_as_broken(
    kind: str, request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    token_ids = tokenizer.encode(["\u5e90\u5e90"])[0].ids
    pieces = pieces_of(TextStream(tokenizer, []), token_ids[:-1])
    text = "".join(pieces)
    assert text.strip(" ").startswith("\u5e90\ufffd")
    assert not any("\ufffd" in piece for piece in pieces[:-1])


def test_text_comes_as_soon_as_it_is_certain(byte_level: Tokenizer) -> None:
    stream = TextStream(byte_level, [])
    token_ids = byte_level.encode(["ab\u5e90c"])[0].ids
    assert [stream.push(each) for each in token_ids] == ["a", "b", "", "", "\u5e90", "c"]


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (["ef"], "abcd"),
        (["cde", "ab"], ""),
        (["fgh", "efg"], "abcd"),
        (["zzz", "hx"], "abcdefgh"),
        (["h"], "abcdefg"),
    ],
)
def test_text_is_cut_before_the_first_stop_string(
    stops: list[str], expected: str, byte_level: Tokenizer
) -> None:
    stream = TextStream(byte_level, [], stops)
    pieces: list[str] = []
    for token_id in [n for letter in "abcdefgh" for n in byte_level.encode([letter])[0].ids]:
        if not stream.stopped:
            pieces.append(stream.push(token_id))
    pieces.append(stream.finish())
    assert "".join(pieces) == expected
    assert stream.stopped is (expected != "abcdefgh")


def test_start_of_a_stop_string_is_held_until_it_is_none(byte_level: Tokenizer) -> None:
    stream = TextStream(byte_level, [], ["bcx"])
    letters = [byte_level.encode([letter])[0].ids[0] for letter in "abcd"]
    assert [stream.push(each) for each in letters] == ["a", "", "", "bcd"]


class CountedText(str):
    """Counts how often it is cut."""

    num_cuts = 0

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        self.num_cuts += 1
        return super().__getitem__(key)


def test_long_stop_string_is_compared_with_no_more_than_is_held(byte_level: Tokenizer) -> None:
    stop = CountedText("z" * 10_000)
    stream = TextStream(byte_level, [], [stop])
    letters = [byte_level.encode([letter])[0].ids[0] for letter in "azb"]
    assert [stream.push(each) for each in letters] == ["a", "", "zb"]
    assert stop.num_cuts == 4


def test_copy_goes_its_own_way(byte_level: Tokenizer) -> None:
    letters = {letter: byte_level.encode([letter])[0].ids[0] for letter in "abc"}
    stream = TextStream(byte_level, [], ["ab"])
    stream.push(letters["a"])
    other = stream.copy()
    assert stream.push(letters["b"]) == ""
    assert (stream.stopped, other.stopped) == (True, False)
    assert other.push(letters["c"]) == "ac"


def test_what_is_pending_is_what_no_push_has_given(byte_fallback: Tokenizer) -> None:
    stream = TextStream(byte_fallback, byte_fallback.encode(["fox"])[0].ids, ["st"])
    ids = byte_fallback.encode(["s\u00e9"])[0].ids[1:]
    given = [(stream.push(each), stream.pending) for each in ids]
    assert given == [("", "s"), ("", "s\ufffd"), ("s\u00e9", "")]
