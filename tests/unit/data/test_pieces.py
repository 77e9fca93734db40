"""Character pieces: each text by itself, and those of an instruction that many texts have."""

import random
import string

import numpy as np
import pytest

from lushan.data.pieces import (
    FEWEST_IN_A_ROW,
    FEWEST_WITH_COMMON,
    Common,
    common_pieces,
    hash_pieces,
    list_pieces,
)

ENGLISH = "say in one word what the weather is "
CHINESE = "请用一个词语回答下面句子当中说到的天气究竟是什么"
SIGNS = "山高水长地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜"


def words(letters: str, num_letters: int, num: int = FEWEST_WITH_COMMON + 1) -> list[str]:
    generator = random.Random(1)
    return ["".join(generator.choices(letters, k=num_letters)) for _ in range(num)]


def common_of(texts: list[str]) -> set[str]:
    """Pieces that are left out of texts, by their letters."""
    hashes = set(common_pieces(texts).tolist())
    found: set[str] = set()
    for text in texts:
        numbers, _ = hash_pieces([text])
        pairs = zip(list_pieces(text), numbers.tolist(), strict=True)
        found |= {piece for piece, number in pairs if number in hashes}
    return found


def left_of(text: str, texts: list[str]) -> set[str]:
    """Pieces of a text that are not left out."""
    return Common(common_pieces(texts)).sets(text)[-1]


WEATHER = [ENGLISH + word for word in words(string.ascii_lowercase, 4)]


def test_no_piece_reaches_into_the_next_text() -> None:
    texts = ["ab cd", "山高水长", "efg", "天地a"]
    together, owners = hash_pieces(texts)
    for number, text in enumerate(texts):
        alone, _ = hash_pieces([text])
        assert together[owners == number].tolist() == alone.tolist()
        assert len(alone) == len(text) + (4 if text.isascii() else 1)


def test_pieces_stand_in_the_order_of_their_hashes() -> None:
    text = "a river and a river"
    hashes, _ = hash_pieces([text])
    pieces = list_pieces(text)
    assert pieces[:2] == ["    a", "   a "]
    assert len({*zip(pieces, hashes.tolist(), strict=True)}) == len({*pieces}) < len(pieces)


@pytest.mark.parametrize(
    ("order", "own"), [(ENGLISH, words(string.ascii_lowercase, 4)), (CHINESE, words(SIGNS, 2))]
)
def test_pieces_of_an_instruction_are_left_out(order: str, own: list[str]) -> None:
    texts = [order + word for word in own]
    expected = set.intersection(*({*list_pieces(text)} for text in texts))
    assert common_of([*texts, *own, *own[:20]]) == expected
    assert left_of(texts[0], texts) == {*list_pieces(texts[0])} - expected
    assert len(left_of(texts[0], texts)) == len(own[0]) + (4 if order.isascii() else 1)


def test_two_instructions_may_have_half_of_the_texts_each() -> None:
    other = "tell me whether this is a kind of weather "
    texts = [*WEATHER, *(text.replace(ENGLISH, other) for text in WEATHER)]
    assert left_of(ENGLISH + "snow", texts) == {*list_pieces("is snow")[3:]}
    assert "snow " in left_of(other + "snow", texts)
    assert "kind " not in left_of(other + "snow", texts)


def test_pieces_of_few_texts_or_of_a_quarter_or_that_one_text_repeats_are_not_left_out() -> None:
    others = words(string.ascii_lowercase, 9, num=93)
    assert common_of([*WEATHER[1:], *others[:9]]) == set()
    assert common_of([*WEATHER, *others]) == set()
    assert common_of([*WEATHER, *others[1:]]) != set()
    assert common_of([ENGLISH * 50, *others]) == set()


def test_frequent_words_that_stand_alone_are_not_left_out() -> None:
    texts = [f"{word} of the {word[::-1]}" for word in words(string.ascii_lowercase, 6)]
    assert common_of(texts) == set()


def test_a_row_leaves_the_same_letters_elsewhere() -> None:
    left = left_of(f"{ENGLISH}fog, and how to say what the weather is", WEATHER)
    assert {"fog, ", "o say", " to s"} <= left
    part = ENGLISH[: FEWEST_IN_A_ROW + 2]
    assert left_of(f"xx {part} xx", WEATHER) == {*list_pieces(f"xx {part} xx")}
    more = f"xx {part}{ENGLISH[len(part)]} xx"
    assert len(left_of(more, WEATHER)) == len(list_pieces(more)) - FEWEST_IN_A_ROW


def test_rows_end_with_their_text() -> None:
    common = Common(common_pieces(WEATHER))
    start = ENGLISH[: FEWEST_IN_A_ROW // 2]
    assert not common.left_out(*hash_pieces([start] * 4)).any()
    is_left_out = common.left_out(*hash_pieces([start, ENGLISH + "zzz", "a river"]))
    assert np.count_nonzero(is_left_out) == len(ENGLISH)


def test_where_nothing_is_common_all_pieces_are_left() -> None:
    nothing = Common(common_pieces(["a river"]))
    assert not nothing.left_out(*hash_pieces(["a river"])).any()
    assert nothing.sets("a river") == ({*list_pieces("a river")},)
