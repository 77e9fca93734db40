"""Equal and nearly equal texts, against sets compared one by one."""

import random
import re
import string
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from lushan.data import near
from lushan.data.near import NEAR, bare, match_near, plain
from lushan.data.pieces import FEWEST_WITH_COMMON, Numbers, Positions

WORDS = [
    "river",
    "runs",
    "over",
    "old",
    "stones",
    "while",
    "quiet",
    "birds",
    "watch",
    "from",
    "high",
]
SIGNS = "山高水长天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"


class Texts:
    def __init__(self, texts: list[str], numbers: dict[str, int]) -> None:
        self.all = texts
        self.hashes: Numbers = np.array([numbers[text] for text in texts], dtype=np.uint64)

    def texts(self, places: Positions) -> list[str]:
        return [self.all[place] for place in places]


def find_near(queries: list[str], base: list[str]) -> dict[str, list[str]]:
    """Query to the base texts that it is near to, the most similar first."""
    texts = list(dict.fromkeys([*queries, *base]))
    numbers = {text: 7 * number for number, text in enumerate(texts)}
    found = match_near(Texts(queries, numbers), Texts(base, numbers))
    return {texts[key // 7]: [base[place] for place in places] for key, places in found.items()}


def pieces(text: str, width: int) -> set[str]:
    pad = " " * (width - 1)
    padded = f"{pad}{text}{pad}"
    return {padded[start : start + width] for start in range(len(padded) - width + 1)}


def jaccard(one: str, other: str, width: int) -> float:
    first, second = pieces(one, width), pieces(other, width)
    return len(first & second) / len(first | second)


def variants(texts: list[str], units: str | list[str], generator: random.Random) -> list[str]:
    """Texts of which a few words or signs were replaced."""
    found: list[str] = []
    for text in texts:
        parts = text.split() if isinstance(units, list) else list(text)
        for _ in range(generator.randint(0, 3)):
            parts[generator.randrange(len(parts))] = generator.choice(units)
        found.append((" " if isinstance(units, list) else "").join(parts))
    return found


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("  \uff28\uff45llo\tWORLD \n", "hello world"),
        ("Straße", "strasse"),
        ("\ufb01ne", "fine"),
        ("多么\u3000好\uff01", "多么 好!"),
    ],
)
def test_plain_texts_ignore_case_width_and_space(text: str, form: str) -> None:
    assert plain(text) == form


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("No, no -- NO!", "no no no"),
        (":-)", ""),
        ("snake_case 7", "snake case 7"),
        ("caf\u00e9 + snake_case ~ 7 \u2026", "caf\u00e9 snake case 7"),
        ("\u00bfNo?\u3002", "no"),
        ("\u3002\uff01", ""),
    ],
)
def test_bare_texts_have_no_punctuation(text: str, form: str) -> None:
    assert bare(text) == form


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("जा रहा हूँ", "जा रही हूँ"),
        ("ข่าว", "ข้าว"),
        ("great \U0001f600", "great \U0001f621"),
        ("\u2605\u2605\u2605\u2606", "\u2605\u2605\u2605\u2605"),
    ],
)
def test_vowel_signs_tone_marks_and_smiles_are_no_punctuation(one: str, other: str) -> None:
    assert bare(one) != bare(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("don\u00b4t stop", "don't stop"),
        ("\u00b4no\u00b4", "no"),
        ("\u00bd cup", "1/2 cup"),
        ("I \u2764\ufe0f tea", "I \u2764 tea!"),
        ("so good!\U0001f600", "so good, \U0001f600"),
        ("great\U0001f600", "great \U0001f600"),
        ("20 \u00b0C", "20\u2103"),
        ("3\u00d74", "3 \u00d7 4"),
    ],
)
def test_ways_to_write_the_same_are_equal_without_punctuation(one: str, other: str) -> None:
    assert bare(one) == bare(other)


@pytest.mark.parametrize(("units", "width", "join"), [(WORDS, 5, " "), (SIGNS, 2, "")])
def test_near_texts_are_those_of_a_comparison_of_all_with_all(
    units: str | list[str], width: int, join: str
) -> None:
    generator = random.Random(1)
    base = [join.join(generator.choices(units, k=generator.randint(14, 40))) for _ in range(150)]
    queries = variants(base, units, generator)
    expected = {
        query: {text for text in base if jaccard(query, text, width) >= NEAR} for query in queries
    }
    found = {query: set(texts) for query, texts in find_near(queries, base).items()}
    assert found == {query: texts for query, texts in expected.items() if texts}
    assert 20 < sum(query not in base for query in found) < 150


def test_the_most_similar_text_comes_first() -> None:
    text = "a long and winding road that leads to your door"
    base = [text + " again and again", text + "s", "something else altogether, far away"]
    assert find_near([text], base)[text][0] == text + "s"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("say hi in french", "say hi in spanish"),
        ("what is the fear of cold", "what is the fear of colour"),
        ("第一季度的收入", "第二季度的支出"),
        ("yes", "yet"),
    ],
)
def test_texts_that_differ_in_a_word_that_matters_are_not_near(one: str, other: str) -> None:
    assert find_near([one], [other]) == {}


def test_equal_short_texts_are_near_and_empty_ones_are_not() -> None:
    assert find_near(["ok", ""], ["ok", ""]) == {"ok": ["ok"]}


def test_nothing_is_near_to_nothing() -> None:
    assert find_near([], ["a text that is long enough"]) == {}
    assert find_near(["a text that is long enough"], []) == {}


def test_more_texts_than_fit_a_chunk_are_all_compared() -> None:
    generator = random.Random(2)
    base = [" ".join(generator.choices(string.ascii_lowercase, k=40)) for _ in range(5000)]
    queries = [f"{text} z" for text in base]
    assert find_near(queries, base) == {f"{text} z": [text] for text in base}


def test_all_that_is_near_is_found() -> None:
    text = "a long and winding road that leads to your door"
    base = [f"{text} {letter}" for letter in string.ascii_lowercase]
    assert set(find_near([text], base)[text]) == set(base)


@pytest.mark.parametrize("num_words", [70, 100, 300, 1000])
def test_long_texts_are_compared_by_samples_across_levels(num_words: int) -> None:
    generator = random.Random(3)
    vocabulary = ["".join(generator.choices(string.ascii_lowercase, k=5)) for _ in range(900)]
    base = [" ".join(generator.choices(vocabulary, k=num_words)) for _ in range(60)]
    queries = {" ".join([*text.split()[: -num_words // 10], "end"]): text for text in base[:30]}
    found = find_near([*queries, *base[30:40]], base[:30])
    assert found == {query: [text] for query, text in queries.items()}


INSTRUCTION = (
    "You are given a sentence about the weather, the sea or the mountains. Read it with care, and say in one word, without any "
    "remark, which of these the person who wrote it was thinking of. Where you are not sure, say so. The sentence stands here: "
)
ORDER = (
    "请仔细阅读下面给出的句子并判断作者当时想到的是天气还是大海或者群山只用一个词语回答不要附加任何说明如果无法确定就直接写出"
    "无法判断四个字也不能重复原文内容更不许翻译成别种语言答案必须放在最后一行前面留空并且保持简体书写格式整齐标点统一"
)


def sentences(units: str | list[str], num: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    join = " " if isinstance(units, list) else ""
    return [join.join(generator.choices(units, k=4 if join else 14)) for _ in range(num)]


def vocabulary() -> list[str]:
    generator = random.Random(4)
    return ["".join(generator.choices(string.ascii_lowercase, k=6)) for _ in range(400)]


@pytest.mark.parametrize(
    ("order", "units"), [(INSTRUCTION, vocabulary()), (ORDER, SIGNS), ("", vocabulary())]
)
def test_an_instruction_in_all_texts_does_not_make_them_near(
    order: str, units: str | list[str]
) -> None:
    base, others = sentences(units, 200, 5), sentences(units, 300, 6)
    close = {f"{order}{text}{text[-1]}": f"{order}{text}" for text in base[:50]}
    found = find_near([*close, *(order + text for text in others)], [order + text for text in base])
    assert found == {query: [text] for query, text in close.items()}


def own_pieces(text: str, common: set[str]) -> set[str]:
    """Pieces of five letters, without 16 common ones or more that follow each other."""
    padded = f"    {text}    "
    every = [padded[start : start + 5] for start in range(len(padded) - 4)]
    marks = "".join("x" if piece in common else "." for piece in every)
    gone = {place for row in re.finditer("x{16,}", marks) for place in range(*row.span())}
    return {piece for place, piece in enumerate(every) if place not in gone}


def test_what_is_near_but_for_instructions_is_found_as_by_a_comparison_of_all_with_all() -> None:
    base = [INSTRUCTION + text for text in sentences(vocabulary(), 250, 8)]
    queries = [INSTRUCTION + text for text in sentences(vocabulary(), 20, 9)]
    queries += variants(base, vocabulary(), random.Random(7))
    times = Counter(piece for text in base for piece in pieces(text, 5))
    common = {piece for piece, number in times.items() if number > len(base) / 4}
    sets = {text: own_pieces(text, common) for text in base + queries}

    def similarity(one: str, other: str) -> float:
        own = len(sets[one] & sets[other]) / len(sets[one] | sets[other])
        return min(own, jaccard(one, other, 5)) if own >= NEAR else own

    assert all(jaccard(query, base[0], 5) > NEAR for query in queries[:20])
    expected = {
        query: {text for text in base if similarity(query, text) >= NEAR} for query in queries
    }
    found = {query: set(texts) for query, texts in find_near(queries, base).items()}
    assert found == {query: texts for query, texts in expected.items() if texts}
    assert 20 < sum(query not in base for query in found) < 200


def test_two_instructions_of_which_each_stands_in_half_of_the_texts_make_none_near() -> None:
    other = INSTRUCTION.replace("the", "some").replace("an", "").upper()
    base, more = sentences(vocabulary(), 240, 5), sentences(vocabulary(), 60, 6)
    texts = [order + text for order in (INSTRUCTION, other) for text in base]
    asked = [order + text for order in (INSTRUCTION, other) for text in more]
    assert find_near(asked, texts) == {}
    close = f"{texts[0]}{texts[0][-1]}"
    assert find_near([close], texts) == {close: [texts[0]]}


def test_texts_of_few_words_are_compared_by_all_of_them_however_many_there_are() -> None:
    generator = random.Random(1)
    base = [" ".join(generator.choices(WORDS, k=generator.randint(14, 40))) for _ in range(220)]
    queries = variants(base, WORDS, generator)
    expected = {
        query: {text for text in base if jaccard(query, text, 5) >= NEAR} for query in queries
    }
    found = {query: set(texts) for query, texts in find_near(queries, base).items()}
    assert found == {query: texts for query, texts in expected.items() if texts}


def test_in_few_texts_what_all_of_them_have_counts() -> None:
    base = [INSTRUCTION + text for text in sentences(vocabulary(), FEWEST_WITH_COMMON, 5)]
    asked = INSTRUCTION + "another"
    assert len(find_near([asked], base)[asked]) > 20
    assert find_near([asked], [*base, INSTRUCTION + "one more of them"]) == {}


def test_what_many_texts_of_either_side_have_is_common() -> None:
    one = [INSTRUCTION + text for text in sentences(vocabulary(), 300, 5)]
    few = [INSTRUCTION + text for text in sentences(vocabulary(), 20, 6)]
    assert find_near(one, few) == find_near(few, one) == {}
    assert find_near(one, [*few, one[0]]) == {one[0]: [one[0]]}


def test_behind_a_long_instruction_near_texts_are_found_by_what_is_their_own() -> None:
    base = [INSTRUCTION * 8 + text for text in sentences(vocabulary(), 300, 5)]
    close = {text + text[-1]: [text] for text in base[:40]}
    assert find_near([*close], base) == close


def test_an_index_takes_about_as_much_as_itself_beside_it_while_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(near, "TEXTS_PER_CHUNK", 64)
    monkeypatch.setattr(near, "MOST_BUCKETS", 2**8)
    generator = random.Random(0)
    words = ["".join(generator.choices(string.ascii_lowercase, k=5)) for _ in range(500)]
    texts = [f"{number} {' '.join(generator.choices(words, k=30))}" for number in range(6000)]
    base = Texts(texts, {text: number for number, text in enumerate(texts)})
    common = near.find_common(base)
    tracemalloc.start()
    indices = near._indices(base, np.arange(len(texts)), common)
    num_bytes, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(indices) == 1
    assert most_bytes < 2.2 * num_bytes
