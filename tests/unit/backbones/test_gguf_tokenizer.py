"""A rebuilt tokenizer cuts text as an independent implementation of the same rules does."""

import itertools
import os
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from lushan.backbones.convert_gguf import read_vocabulary
from lushan.backbones.gguf_tokenizer import GgufVocabulary, build_tokenizer, find_stop_ids
from lushan.backbones.tokenizer import PROBES
from lushan.errors import ModelError
from tests.unit.backbones.gguf_files import (
    CONTROL,
    NORMAL,
    SPACE,
    USER,
    sentencepiece_vocabulary,
)

RIVALS = ["tho", "ine", "ran home", "hethe", "ineho", "thoran"]
"""Neighbours that compete for a letter: only the scores tell which pair merges."""
RUNS = [" " * length for length in range(1, 24)] + ["\n" * length for length in range(1, 24)]
AROUND = [f"a{run}b" for run in RUNS] + [f"the{run}fox 2024{run}" for run in RUNS]
ALPHABET = [
    " ",
    "  ",
    "\n",
    "\t",
    "the",
    " fox",
    "he",
    "20",
    "24",
    ".",
    "\u5c71",
    "e\u0301",
    "</s>",
]


def random_texts(count: int) -> list[str]:
    dice = random.Random(7)
    return ["".join(dice.choices(ALPHABET, k=dice.randint(1, 25))) for _ in range(count)]


TEXTS = [*PROBES, *RIVALS, *RUNS, *AROUND, *random_texts(200)]


def sentencepiece(*, add_space_prefix: bool = False, add_bos: bool = False) -> GgufVocabulary:
    made = sentencepiece_vocabulary()
    return GgufVocabulary(
        kind="llama",
        pre="default",
        tokens=made.tokens,
        token_types=made.types,
        scores=made.scores,
        merges=[],
        special_ids={"bos": 1, "eos": 2, "unk": 0},
        add_bos=add_bos,
        add_space_prefix=add_space_prefix,
        chat_template=None,
    )


def byte_level(pre: str, kind: str = "gpt2") -> GgufVocabulary:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    space, newline = "\u0120", "\u010a"
    pairs = ["2 0", "2 4", "20 24", "t h", "th e", "f o", "fo x", f"{space} fox", f"{space} the"]
    pairs += [f"{space} {space}", f"{space}{space} {space}{space}", f"{newline} {newline}"]
    tokens = ["<|end|>", *letters, *(pair.replace(" ", "") for pair in pairs)]
    return GgufVocabulary(
        kind=kind,
        pre=pre,
        tokens=tokens,
        token_types=[CONTROL] + [1] * (len(tokens) - 1),
        scores=[],
        merges=pairs,
        special_ids={"eos": 0},
        add_bos=False,
        add_space_prefix=False,
        chat_template=None,
    )


def whole_tokens(text: str, vocabulary: GgufVocabulary) -> list[str]:
    """Cut a text at control and user-defined tokens, longest first."""
    kinds = zip(vocabulary.tokens, vocabulary.token_types, strict=True)
    whole = sorted((t for t, kind in kinds if kind in (2, CONTROL, USER)), key=len, reverse=True)
    return [piece for piece in re.split(f"({'|'.join(map(re.escape, whole))})", text) if piece]


def reference_sentencepiece(text: str, vocabulary: GgufVocabulary) -> list[int]:
    """Merge the neighbours whose union scores best, until none is a token (llama.cpp, llm_tokenizer_spm)."""
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    found: list[int] = []
    for piece in whole_tokens(text, vocabulary):
        if piece in ids and vocabulary.token_types[ids[piece]] in (2, CONTROL, USER):
            found.append(ids[piece])
            continue
        for symbol in merge_by_score(list(piece.replace(" ", SPACE)), ids, vocabulary):
            in_bytes = [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
            found += [ids[symbol]] if symbol in ids else in_bytes
    return found


def merge_by_score(
    symbols: list[str], ids: dict[str, int], vocabulary: GgufVocabulary
) -> list[str]:
    while True:
        unions = [left + right for left, right in itertools.pairwise(symbols)]
        places = [
            place
            for place, union in enumerate(unions)
            if union in ids and vocabulary.token_types[ids[union]] == 1
        ]
        if not places:
            return symbols
        best = max(places, key=lambda place: (vocabulary.scores[ids[unions[place]]], -place))
        symbols[best : best + 2] = [unions[best]]


def reference_byte_level(text: str, vocabulary: GgufVocabulary, *, digits_alone: bool) -> list[int]:
    """GPT-2's byte-pair encoding, step by step; digits cut off first where the model does."""
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    ranks = {tuple(pair.split(" ")): rank for rank, pair in enumerate(vocabulary.merges)}
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found: list[int] = []
    for part in re.split(r"(\d)", text) if digits_alone else [text]:
        for word, _ in plain.pre_tokenize_str(part):
            found += [ids[symbol] for symbol in merge_by_rank(list(word), ranks)]
    return found


def merge_by_rank(symbols: list[str], ranks: dict[tuple[str, ...], int]) -> Sequence[str]:
    while True:
        known = [
            (ranks[pair], place)
            for place, pair in enumerate(itertools.pairwise(symbols))
            if pair in ranks
        ]
        if not known:
            return symbols
        place = min(known)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]


def test_sentencepiece_equals_an_independent_implementation() -> None:
    vocabulary = sentencepiece()
    tokenizer = build_tokenizer(vocabulary)
    for text in TEXTS:
        assert tokenizer.encode(text).ids == reference_sentencepiece(text, vocabulary), repr(text)


def test_runs_of_spaces_and_newlines_are_one_token_up_to_their_longest() -> None:
    vocabulary = sentencepiece()
    tokenizer = build_tokenizer(vocabulary)
    for mark in " \n":
        assert tokenizer.encode(mark * 5).ids == [vocabulary.tokens.index(mark * 5)]
        assert tokenizer.encode(mark * 7).ids[0] == vocabulary.tokens.index(mark * 5)


@pytest.mark.parametrize("text", [text for text in TEXTS if "</s>" not in text][::3])
def test_sentencepiece_decodes_to_the_same_text(text: str) -> None:
    tokenizer = build_tokenizer(sentencepiece())
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_space_prefix_is_added_and_taken_away() -> None:
    tokenizer = build_tokenizer(sentencepiece(add_space_prefix=True))
    assert tokenizer.encode("the").tokens == [f"{SPACE}the"]
    assert tokenizer.decode(tokenizer.encode("the fox").ids) == "the fox"


def test_bos_is_put_first_once() -> None:
    assert build_tokenizer(sentencepiece(add_bos=True)).encode("the").tokens == ["<s>", "the"]


@pytest.mark.parametrize(("pre", "digits_alone"), [("smollm", True), ("gpt-2", False)])
def test_byte_level_equals_an_independent_implementation(pre: str, *, digits_alone: bool) -> None:
    vocabulary = byte_level(pre)
    tokenizer = build_tokenizer(vocabulary)
    for text in TEXTS:
        expected = reference_byte_level(text, vocabulary, digits_alone=digits_alone)
        assert tokenizer.encode(text).ids == expected, repr(text)


def test_digit_rule_keeps_merges_of_digits_from_happening() -> None:
    assert build_tokenizer(byte_level("gpt-2")).encode("2024").tokens == ["2024"]
    assert build_tokenizer(byte_level("smollm")).encode("2024").tokens == ["2", "0", "2", "4"]


def test_qwen2_composes_letters() -> None:
    tokenizer = build_tokenizer(byte_level("qwen2"))
    assert tokenizer.encode("cafe\u0301").ids == tokenizer.encode("caf\u00e9").ids


@pytest.mark.parametrize(("pre", "found"), [("llama-bpe", ["fhe"]), ("qwen2", ["f", "h", "e"])])
def test_word_that_no_merge_makes_is_one_token_where_llama_cpp_ignores_merges(
    pre: str, found: list[str]
) -> None:
    plain = byte_level(pre)
    with_word = replace(
        plain, tokens=[*plain.tokens, "fhe"], token_types=[*plain.token_types, NORMAL]
    )
    assert build_tokenizer(with_word).encode("fhe").tokens == found


def test_stop_tokens_are_the_named_and_those_known_by_their_text() -> None:
    tokens = ["<eos>", "a", "<end_of_turn>", "<EOT>", "<|im_end|>"]
    types = [CONTROL, NORMAL, CONTROL, USER, NORMAL]
    assert find_stop_ids([2], tokens, types) == [2, 0, 3]


def test_unknown_pre_tokenizer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"pre-tokenizer is `novel`; known are: .*smollm"):
        build_tokenizer(byte_level("novel"))


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ModelError, match="of kind `wordpiece`; only `gpt2` and `llama`"):
        build_tokenizer(byte_level("gpt-2", kind="wordpiece"))


def test_token_listed_twice_is_refused() -> None:
    vocabulary = byte_level("gpt-2")
    assert isinstance(vocabulary.tokens, list)
    vocabulary.tokens[5] = vocabulary.tokens[6]
    with pytest.raises(ModelError, match="lists a token twice"):
        build_tokenizer(vocabulary)


def test_real_vocabulary_equals_an_independent_implementation() -> None:
    file = Path(os.environ.get("LUSHAN_DATA", "nowhere")).parent / "models" / "stories260K.gguf"
    if not file.is_file():
        pytest.skip("stories260K.gguf is not here")
    vocabulary = read_vocabulary(file)
    assert "pad" not in vocabulary.special_ids
    tokenizer = build_tokenizer(vocabulary)
    for text in ("Once upon a time, there was a little girl named Lily.", "She ran  home!\n\n"):
        expected = [1, *reference_sentencepiece(f" {text}", vocabulary)]
        assert tokenizer.encode(text).ids == expected
