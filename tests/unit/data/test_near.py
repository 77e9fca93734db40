"""Equal and nearly equal texts, against sets compared one by one."""

import random
import string

import numpy as np
import pytest

from lushan.data.near import NEAR, Numbers, Positions, bare, hash_pieces, match_near, plain

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


def test_no_piece_reaches_into_the_next_text() -> None:
    texts = ["ab cd", "山高水长", "efg", "天地a"]
    together, owners = hash_pieces(texts)
    for number, text in enumerate(texts):
        alone, _ = hash_pieces([text])
        assert together[owners == number].tolist() == alone.tolist()
        assert len(alone) == len(text) + (4 if text.isascii() else 1)
