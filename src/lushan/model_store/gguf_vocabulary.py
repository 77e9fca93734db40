"""Writes the tokenizer of a model as GGUF holds it; the way back from `backbones/gguf_tokenizer.py`, which checks it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import tokenizers
from gguf import TokenType

from lushan.backbones.gguf_tokenizer import PRE_TOKENIZERS, GgufVocabulary, build_tokenizer
from lushan.backbones.tokenizer import PROBES, Tokenizer
from lushan.errors import ModelError

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_NEVER_MERGED = -1e6
"""Score of a token that no merge makes."""


def vocabulary_of(
    tokenizer: Tokenizer, *, num_rows: int, padding_id: int | None, chat_template: str | None
) -> GgufVocabulary:
    """Find the GGUF vocabulary that cuts texts as a tokenizer does.

    Args:
        tokenizer: Of byte-level BPE, or of SentencePiece BPE.
        num_rows: Rows of the model's embedding; those without a token get a name that no text holds.
        padding_id: The token that fills up; None where there is none.
        chat_template: Jinja text.

    Raises:
        ModelError: If there is none: GGUF names the rule that cuts text, and only some are known here.
    """
    stored = json.loads(tokenizer.to_json())
    if stored["model"]["type"] != "BPE":
        raise ModelError(
            f"GGUF: this tokenizer is of type `{stored['model']['type']}`; only BPE can be written. Use `--to hf`."
        )
    raw = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    expected = [raw.encode(text, add_special_tokens=False).ids for text in PROBES]
    special = {"bos": tokenizer.bos_id, "eos": tokenizer.stop_id, "pad": padding_id}
    if unknown := stored["model"].get("unk_token"):
        special["unk"] = raw.token_to_id(unknown)
    around = tokenizer.encode(["a"])[0].ids
    common = GgufVocabulary(
        kind="llama" if stored["model"].get("byte_fallback") else "gpt2",
        pre="default",
        tokens=[],
        token_types=[],
        scores=[],
        merges=[],
        special_ids={role: number for role, number in special.items() if number is not None},
        add_bos=around[0] == tokenizer.bos_id,
        add_space_prefix=False,
        chat_template=chat_template,
        stop_ids=sorted(tokenizer.stop_ids, key=lambda number: number != tokenizer.stop_id),
    )
    fitting: dict[str, GgufVocabulary] = {}
    for candidate in _candidates(_with_tokens(common, stored, num_rows)):
        rebuilt = build_tokenizer(candidate)
        found = [rebuilt.encode(text, add_special_tokens=False).ids for text in PROBES]
        if found == expected:
            fitting.setdefault(_rules(json.loads(rebuilt.to_str())), candidate)
    if fitting:
        # Several rules may agree on the probes: what says the same as the tokenizer itself goes first.
        return fitting.get(_rules(stored)) or next(iter(fitting.values()))
    raise ModelError(
        f"GGUF: this tokenizer cuts text by none of the rules that are known here ({', '.join(PRE_TOKENIZERS)}, "
        "SentencePiece). Use `--to hf`."
    )


def _rules(stored: Mapping[str, Any]) -> str:
    """What a tokenizer's file says about cutting a text before its merges, in one form."""
    cutting = stored["pre_tokenizer"]
    steps = (
        [cutting] if cutting is None or cutting["type"] != "Sequence" else cutting["pretokenizers"]
    )
    told = [
        {name: x for name, x in (each or {}).items() if name != "trim_offsets"} for each in steps
    ]
    return json.dumps([stored["normalizer"], told], sort_keys=True)


def _candidates(vocabulary: GgufVocabulary) -> Iterator[GgufVocabulary]:
    if vocabulary.kind == "gpt2":
        yield from (replace(vocabulary, pre=pre) for pre in PRE_TOKENIZERS)
    else:
        yield from (replace(vocabulary, add_space_prefix=each) for each in (False, True))


def _with_tokens(
    vocabulary: GgufVocabulary, stored: Mapping[str, Any], num_rows: int
) -> GgufVocabulary:
    tokens = [f"[PAD{number}]" for number in range(num_rows)]
    types = [TokenType.UNUSED] * num_rows
    for token, number in stored["model"]["vocab"].items():
        tokens[number] = token
        is_byte = vocabulary.kind == "llama" and _BYTE_TOKEN.fullmatch(token)
        types[number] = TokenType.BYTE if is_byte else TokenType.NORMAL
    for added in stored["added_tokens"]:
        if added["id"] < num_rows:  # the model has no row for some special tokens
            tokens[added["id"]] = added["content"]
            types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    merges = [
        each.split(" ") if isinstance(each, str) else each for each in stored["model"]["merges"]
    ]
    if vocabulary.kind == "gpt2":
        joined = [f"{left} {right}" for left, right in merges]
        return replace(vocabulary, tokens=tokens, token_types=types, merges=joined)
    unknown = vocabulary.special_ids.get("unk")
    if unknown is not None:
        types[unknown] = TokenType.UNKNOWN
    scores = _scores(tokens, merges)
    return replace(vocabulary, tokens=tokens, token_types=types, scores=scores)


def _scores(tokens: Sequence[str], merges: Sequence[Sequence[str]]) -> list[float]:
    """Give every token the rank of the first merge that makes it: SentencePiece joins what scores best first."""
    rank_of: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        rank_of.setdefault(left + right, rank)
    return [-float(rank_of[token]) if token in rank_of else _NEVER_MERGED for token in tokens]
