"""The vocabulary that is written cuts texts as the tokenizer does, or there is none."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from lushan.backbones.gguf_tokenizer import (
    PRE_TOKENIZERS,
    GgufVocabulary,
    build_tokenizer,
)
from lushan.backbones.tokenizer import PROBES, Tokenizer
from lushan.errors import ModelError
from lushan.model_store.gguf_vocabulary import vocabulary_of
from tests.conftest import MakeTiny
from tests.unit.backbones.gguf_files import sentencepiece_vocabulary


def tokenizer_in(folder: Path, raw: tokenizers.Tokenizer) -> Tokenizer:
    raw.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": raw.id_to_token(2)}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    return Tokenizer.load(folder)


def byte_level(tiny_folder: MakeTiny) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(tiny_folder("llama") / "tokenizer.json"))


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_rule_is_found_that_the_tokenizer_names_itself(
    pre: str, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"num_rows": 320, "padding_id": None, "chat_template": None}
    tokenizer = tokenizer_in(tmp_path, byte_level(tiny_folder))
    plain = vocabulary_of(tokenizer, **options)
    assert plain.pre == "gpt-2"
    original = build_tokenizer(replace(plain, pre=pre))
    assert vocabulary_of(tokenizer_in(tmp_path, original), **options).pre == pre


def test_rows_without_a_token_get_names_that_are_not_used(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    tokenizer = tokenizer_in(tmp_path, byte_level(tiny_folder))
    written = vocabulary_of(tokenizer, num_rows=330, padding_id=0, chat_template="x")
    assert len(written.tokens) == len(set(written.tokens)) == 330
    assert set(written.token_types[tokenizer.vocabulary_size :]) == {5}
    assert (written.special_ids["pad"], written.chat_template) == (0, "x")


def test_sentencepiece_scores_join_in_the_order_of_the_merges(tmp_path: Path) -> None:
    vocabulary = sentencepiece_vocabulary()
    original = build_tokenizer(
        GgufVocabulary(
            kind="llama",
            pre="default",
            tokens=vocabulary.tokens,
            token_types=vocabulary.types,
            scores=vocabulary.scores,
            merges=[],
            special_ids={"bos": 1, "eos": 2, "unk": 0},
            add_bos=False,
            add_space_prefix=True,
            chat_template=None,
        )
    )
    tokenizer = tokenizer_in(tmp_path, original)
    written = vocabulary_of(
        tokenizer, num_rows=len(vocabulary.tokens), padding_id=None, chat_template=None
    )
    assert (written.kind, written.add_space_prefix) == ("llama", True)
    again = build_tokenizer(written)
    # Of `tho` either the first two letters are joined first, or the last two.
    for text in (*PROBES, "the foxes ran home in 2024,  to the fox", "tho"):
        assert again.encode(text).ids == original.encode(text).ids
    assert list(written.token_types) == vocabulary.types


def test_rule_that_is_not_known_is_refused(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    raw = byte_level(tiny_folder)
    raw.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split("r", "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    tokenizer = tokenizer_in(tmp_path, raw)
    with pytest.raises(ModelError, match=r"none of the rules.*gpt-2, smollm.*`--to hf`"):
        vocabulary_of(tokenizer, num_rows=320, padding_id=None, chat_template=None)


def test_tokenizer_that_is_no_bpe_is_refused(tmp_path: Path) -> None:
    vocabulary = {"a": 0, "b": 1, "</s>": 2}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="a")  # noqa: S106
    tokenizer = tokenizer_in(tmp_path, tokenizers.Tokenizer(model))
    with pytest.raises(ModelError, match="of type `WordLevel`; only BPE"):
        vocabulary_of(tokenizer, num_rows=3, padding_id=None, chat_template=None)
