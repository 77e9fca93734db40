"""Builds a `tokenizer.json` from the vocabulary inside a GGUF file, without guessing.

The two families that GGUF knows are covered: `gpt2` (byte-level BPE with stored merges and a named pre-tokenizer)
and `llama` (SentencePiece BPE, whose merges follow from the scores). Rules are those of llama.cpp,
`src/llama-vocab.cpp`; anything else is refused, because a nearly right tokenizer is a wrong one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from lushan.errors import ModelError

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # gguf.TokenType
_SPACE = "\u2581"  # how SentencePiece writes a space

_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_PATTERN = _LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
_DIGITS_ALONE = ("smollm", "starcoder", "refact", "command-r", "codeshell")
_BY_PATTERN = {"llama-bpe": _LLAMA3_PATTERN, "qwen2": _QWEN2_PATTERN}
PRE_TOKENIZERS = ("gpt-2", _DIGITS_ALONE[0], *_BY_PATTERN)
"""One name for each rule that cuts text before byte-level merges."""
_END_TOKENS = frozenset({
    *("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|end|>", "<|endoftext|>"),
    *("<end_of_turn>", "<eos>", "<EOT>", "_<EOT>"),
})


@dataclass(frozen=True)
class GgufVocabulary:
    """The tokenizer part of a GGUF file."""

    kind: str
    """`gpt2` or `llama`: the algorithm."""
    pre: str
    """Name of the rule that cuts text before merging, for `gpt2`."""
    tokens: Sequence[str]
    """Position is the id."""
    token_types: Sequence[int]
    """One `gguf.TokenType` per token."""
    scores: Sequence[float]
    """One per token, higher merges first; empty for `gpt2`."""
    merges: Sequence[str]
    """`left right`, in order; empty for `llama`."""
    special_ids: Mapping[str, int]
    """`bos`, `eos`, `unk`, `pad` to an id that exists."""
    add_bos: bool
    """Whether every document starts with `<bos>`."""
    add_space_prefix: bool
    """Whether text gets a space in front (`llama` only)."""
    chat_template: str | None
    """Jinja text."""
    stop_ids: Sequence[int] = ()
    """Tokens that end an answer; `eos` is the first."""


def find_stop_ids(
    named: Iterable[int], tokens: Sequence[str], token_types: Sequence[int]
) -> list[int]:
    """List the tokens that end an answer: those that the file names, then those that are known by their text."""
    known = [
        number
        for number, (token, kind) in enumerate(zip(tokens, token_types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED) and token in _END_TOKENS
    ]
    return list(dict.fromkeys([*named, *known]))


def build_tokenizer(vocabulary: GgufVocabulary) -> Tokenizer:
    """Make the fast tokenizer that cuts text as llama.cpp and the original model do.

    Raises:
        ModelError: If the algorithm or its pre-tokenizer is not known here.
    """
    if vocabulary.kind == "gpt2":
        tokenizer = _byte_level(vocabulary)
    elif vocabulary.kind == "llama":
        tokenizer = _sentencepiece(vocabulary)
    else:
        raise ModelError(
            f"The GGUF file's tokenizer is of kind `{vocabulary.kind}`; only `gpt2` and `llama` can be converted."
        )
    _add_special_tokens(tokenizer, vocabulary)
    if vocabulary.add_bos and "bos" in vocabulary.special_ids:
        bos_id = vocabulary.special_ids["bos"]
        bos = vocabulary.tokens[bos_id]
        template = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, bos_id)]
        )
        tokenizer.post_processor = template
    return tokenizer


def _byte_level(vocabulary: GgufVocabulary) -> Tokenizer:
    merges = [_split_merge(merge) for merge in vocabulary.merges]
    whole_words_first = vocabulary.pre == "llama-bpe"
    model = models.BPE(vocab=_ids(vocabulary), merges=merges, ignore_merges=whole_words_first)
    tokenizer = Tokenizer(model)
    steps: list[Any]
    if vocabulary.pre in _BY_PATTERN:
        split = pre_tokenizers.Split(Regex(_BY_PATTERN[vocabulary.pre]), "isolated")
        steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    elif vocabulary.pre in _DIGITS_ALONE:
        steps = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    elif vocabulary.pre == "gpt-2":
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        known = ", ".join(sorted((*_BY_PATTERN, *_DIGITS_ALONE, "gpt-2")))
        raise ModelError(
            f"The GGUF file's pre-tokenizer is `{vocabulary.pre}`; known are: {known}. "
            "Use the model's original folder instead."
        )
    if vocabulary.pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _split_merge(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _sentencepiece(vocabulary: GgufVocabulary) -> Tokenizer:
    ids = _ids(vocabulary)
    unknown_id = vocabulary.special_ids.get("unk")
    model = models.BPE(
        vocab=ids,
        merges=derive_merges(vocabulary, ids),
        unk_token=None if unknown_id is None else vocabulary.tokens[unknown_id],
        fuse_unk=True,
        byte_fallback=_BYTE in vocabulary.token_types,
    )
    tokenizer = Tokenizer(model)
    spaces: list[Any] = [normalizers.Replace(" ", _SPACE)]
    undo: list[Any] = [
        decoders.Replace(_SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if vocabulary.add_space_prefix:
        spaces.insert(0, normalizers.Prepend(_SPACE))
        undo.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(undo)
    return tokenizer


def derive_merges(vocabulary: GgufVocabulary, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """List the merges that the scores imply: best score first; for one piece, the leftmost cut first.

    Only ordinary tokens are made by merging: control, byte and user-defined tokens (such as runs of spaces) are
    found whole in the text, before any merge.
    """
    ranked: list[tuple[float, int, int, str, str]] = []
    for number, (token, kind) in enumerate(
        zip(vocabulary.tokens, vocabulary.token_types, strict=True)
    ):
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE):
            continue
        score = vocabulary.scores[number]
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                ranked.append((-score, number, cut, left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _ids(vocabulary: GgufVocabulary) -> dict[str, int]:
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    if len(ids) != len(vocabulary.tokens):
        raise ModelError("The GGUF file lists a token twice; its ids cannot be kept.")
    return ids


def _add_special_tokens(tokenizer: Tokenizer, vocabulary: GgufVocabulary) -> None:
    special: list[AddedToken] = []
    ordinary: list[AddedToken] = []
    for token, kind in zip(vocabulary.tokens, vocabulary.token_types, strict=True):
        if kind == _CONTROL or (kind == _UNKNOWN and vocabulary.kind == "llama"):
            special.append(AddedToken(token, special=True, normalized=False))
        elif kind == _USER_DEFINED:
            # A run of spaces is stored as the normalizer writes it, so it is looked for after normalizing.
            ordinary.append(AddedToken(token, special=False, normalized=vocabulary.kind == "llama"))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(ordinary)
