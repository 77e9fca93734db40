"""Text to token ids and back, by the raw `tokenizer.json` of a model folder.

The raw file is the truth. In transformers 5 the class named in `tokenizer_config.json` may rebuild the tokenizer by its
own rules (huggingface/transformers#45812, #45920, #48219), so the two are compared and differences are told.
"""

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Self

import tokenizers

from lushan.backbones.chat import CHAT_TEMPLATE_FILE, ChatTemplate
from lushan.backbones.inspect import ENCODERS, read_json
from lushan.backbones.remembered import remembered
from lushan.errors import DataError, ModelError

PROBES = (
    "The sun was setting behind the hills, and the children ran home.",
    "It cost 1,234.50 on 2024-11-03; that's 3x more!",
    "a  b   c    d\n\n\ne\t\tf        g\n ",
    "def f(x):\n    return x ** 2\n\n\n        # done",
    "\u5e90\u5c71\u771f\u9762\u76ee\uff0c\u53ea\u7f18\u8eab\u5728\u6b64\u5c71\u4e2d\u3002",
    "caf\u00e9 cafe\u0301 \ufb01ne \u2126 \U0001f600",
    " leading and trailing ",
    "",
)
"""Texts on which tokenizers are known to differ: digits, runs of spaces, composed and decomposed letters, no text."""

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_TEMPLATE_FILE,
)
_ALWAYS_BOS = ("gemma", "gemma2", "gemma3_text")


class Encoded(NamedTuple):
    """One text as tokens."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    """Characters [start, end) of the text per token; (0, 0) for tokens that were put around it.

    Byte-level tokenizers count the space before a word to the word's token.
    """


@dataclass(frozen=True)
class SpecialTokens:
    """Which tokens stand around every document; part of the fingerprint."""

    prefix: tuple[int, ...]
    """Ids before the text, such as `<bos>` or `[CLS]`."""
    suffix: tuple[int, ...]
    """Ids after the text, such as `[SEP]`; a decoder has none, its stop token belongs to the answer."""
    bos_id: int | None
    stop_id: int | None

    def put_around(self, ids: list[int], offsets: list[tuple[int, int]]) -> Encoded:
        """Give a text's tokens with those around it."""
        prefix = self.prefix
        # A chat template writes <bos> itself.
        if prefix and tuple(ids[: len(prefix)]) == prefix:
            prefix = ()
        none = (0, 0)
        return Encoded(
            [*prefix, *ids, *self.suffix],
            [none] * len(prefix) + offsets + [none] * len(self.suffix),
        )


class Tokenizer:
    """A model's tokenizer. Make it with `Tokenizer.load`."""

    def __init__(
        self,
        raw: tokenizers.Tokenizer,
        special: SpecialTokens,
        *,
        folder: Path,
        notes: Sequence[str],
    ) -> None:
        self._raw = raw
        self._special = special
        self._folder = folder.absolute()  # copied later, when the working directory may be another
        self.notes = tuple(notes)
        """What a user should know: differences to `AutoTokenizer`, rules that were left out."""
        added = raw.get_added_tokens_decoder()
        begins_with_bos = special.prefix == (special.bos_id,) and special.bos_id in added
        self.chat = ChatTemplate(folder, begins_with_bos=begins_with_bos)
        """How conversations are written."""
        roles = {"bos_token": special.bos_id, "eos_token": special.stop_id}
        self._marks = {name: self._token(token_id) for name, token_id in roles.items()}
        self._num_rows = read_json(folder / "config.json").get("vocab_size")
        names = [x.content for x in added.values() if x.special]
        self.special_names = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        """Finds special tokens, such as `<|im_end|>`, that a text would be read to hold."""
        self.fingerprint = _fingerprint(folder, special)
        """SHA-256 of the raw file and the special-token rule: equal fingerprints, equal ids."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load the tokenizer of a model folder; compares it once with `AutoTokenizer` and remembers the outcome.

        Raises:
            ModelError: If there is no `tokenizer.json`, it is broken, or it knows more tokens than the model.
        """
        raw = _read_raw(folder)
        special, notes = _find_special_tokens(folder, raw)
        tokenizer = cls(raw, special, folder=folder, notes=notes)
        tokenizer.notes += (*_check_fits(folder, raw), *_compared(tokenizer, folder))
        return tokenizer

    @property
    def bos_id(self) -> int | None:
        """Id of the token that starts a document, if the model has one."""
        return self._special.bos_id

    @property
    def stop_id(self) -> int | None:
        """Id of the token that ends an answer, if the model has one."""
        return self._special.stop_id

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids of all tokens that end an answer: `stop_id`, and the special token with which the chat template ends a turn."""
        behind = "" if self.chat.is_plain else self.chat.behind_answer(self._marks)
        mark = self.special_names.search(behind)
        ids = [self.stop_id, self._raw.token_to_id(mark[0]) if mark else None]
        return frozenset(each for each in ids if each is not None)

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, special ones included; the model's matrix may have more rows."""
        return self._raw.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Turn texts into ids, exactly one leading `<bos>` where the model wants one; nothing is ever cut.

        Raises:
            DataError: If a text holds half a character (a lone surrogate), or a token for which the model has no row.
        """
        try:
            encodings = self._raw.encode_batch(list(texts), add_special_tokens=False)
        except TypeError:
            raise DataError(_explain_unreadable(texts)) from None
        if (num_rows := self._num_rows) is not None and num_rows < self.vocabulary_size:
            _refuse_rowless(self._raw, [each.ids for each in encodings], num_rows)
        return [self._special.put_around(each.ids, each.offsets) for each in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Turn ids into text, without special tokens."""
        return self._raw.decode(list(ids), skip_special_tokens=True)

    def to_json(self) -> str:
        """Give the tokenizer as `tokenizer.json` holds it, without cutting and padding."""
        return self._raw.to_str()

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Write messages (`role`, `content`) as the model's chat template does.

        A model without one gets a plain template, which `save` then writes beside the tokenizer.

        Args:
            messages: What was said, in order.
            tools: What the assistant may call, as JSON schemas.
            add_generation_prompt: Whether the assistant's next turn is begun.

        Raises:
            ModelError: If the template refuses the messages.
        """
        return self.chat.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, marks=self._marks
        )

    def _token(self, token_id: int | None) -> str:
        return "" if token_id is None else self._raw.id_to_token(token_id) or ""

    def with_chat_of(self, folder: Path) -> Self:
        """Give the tokenizer with the chat template that a tuned model was saved with; itself where that is its own.

        An adapter's base has no template where the plain one was used, and that of today may be another.
        """
        saved = ChatTemplate(folder)
        if not (folder / CHAT_TEMPLATE_FILE).is_file() or saved.source == self.chat.source:
            return self
        found = copy.copy(self)
        found.chat = saved
        vars(found).pop("stop_ids", None)  # of the other template
        return found

    def save(self, folder: Path) -> None:
        """Copy the tokenizer's files, byte for byte, into an existing folder."""
        for name in _FILES:
            source, target = self._folder / name, folder / name
            if source.is_file() and source.resolve() != target.resolve():
                shutil.copyfile(source, target)
        self.chat.save_if_provided(folder)


def _read_raw(folder: Path) -> tokenizers.Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelError(
            f"`{folder}` has no `tokenizer.json`. Make it once with transformers: "
            f"`AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})`."
        )
    try:
        raw = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise ModelError(f"`{file}` is broken: {error}.") from None
    # Some files (sentence-transformers) cut at 128 tokens and pad, silently.
    raw.no_truncation()
    raw.no_padding()
    return raw


def _find_special_tokens(
    folder: Path, raw: tokenizers.Tokenizer
) -> tuple[SpecialTokens, list[str]]:
    settings = read_json(folder / "special_tokens_map.json")
    settings |= read_json(folder / "tokenizer_config.json")
    config = read_json(folder / "generation_config.json")
    config = read_json(folder / "config.json") | {
        name: value for name, value in config.items() if value is not None
    }
    bos_id = _special_id("bos", settings, config, raw)
    stop_id = _special_id("eos", settings, config, raw)
    prefix, suffix = _template_of(raw)
    notes: list[str] = []
    is_encoder = config.get("model_type") in ENCODERS
    if suffix and not is_encoder:
        notes.append("The stop token that this tokenizer adds to every text is left to the answer.")
        suffix = ()
    wants_bos = settings.get("add_bos_token") or config.get("model_type") in _ALWAYS_BOS
    if wants_bos and bos_id is not None and not prefix:
        notes.append("`<bos>` is put before every text; `tokenizer.json` forgets it.")
        prefix = (bos_id,)
    return SpecialTokens(prefix, suffix, bos_id, stop_id), notes


def _check_fits(folder: Path, raw: tokenizers.Tokenizer) -> list[str]:
    size = raw.get_vocab_size(with_added_tokens=True)
    rows = read_json(folder / "config.json").get("vocab_size", size)
    if size <= rows:
        return []
    beyond = range(rows, size)
    if set(beyond) - raw.get_added_tokens_decoder().keys():
        raise ModelError(
            f"`{folder}`: the tokenizer knows {size:,} tokens, the model only {rows:,}; they do not belong together."
        )
    names = ", ".join(f"`{raw.id_to_token(number)}`" for number in beyond[:5])
    return [
        f"The model has no row for {len(beyond)} special token(s): {names}. Texts must not hold them."
    ]


def _refuse_rowless(raw: tokenizers.Tokenizer, ids: Sequence[Sequence[int]], num_rows: int) -> None:
    highest = max((max(each) for each in ids if each), default=0)
    if highest >= num_rows:
        raise DataError(
            f"A text holds `{raw.id_to_token(highest)}`, a mark of which this model knows nothing. Take it out."
        )


def _special_id(
    role: str, settings: Mapping[str, Any], config: Mapping[str, Any], raw: tokenizers.Tokenizer
) -> int | None:
    token = settings.get(f"{role}_token")
    if isinstance(token, dict):
        token = token.get("content")
    if token is not None and (token_id := raw.token_to_id(token)) is not None:
        return token_id
    ids = config.get(f"{role}_token_id")
    token_id = ids[0] if isinstance(ids, list) and ids else ids
    # 4294967295 and -1 are how some files write "there is none".
    if isinstance(token_id, int) and 0 <= token_id < raw.get_vocab_size(with_added_tokens=True):
        return token_id
    return None


def _template_of(raw: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Find what the raw tokenizer puts around a text, by asking it."""
    plain = raw.encode("a", add_special_tokens=False).ids
    whole = raw.encode("a").ids
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start]), tuple(whole[start + len(plain) :])
    return (), ()


def _fingerprint(folder: Path, special: SpecialTokens) -> str:
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes())
    digest.update(json.dumps([special.prefix, special.suffix, special.stop_id]).encode())
    return digest.hexdigest()


def _explain_unreadable(texts: Sequence[str]) -> str:
    for number, text in enumerate(texts):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return f"Text {number + 1} holds half a character at position {error.start}: {text[:60]!r}."
    return "A text is no text."


def _compared(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Compare with `AutoTokenizer`, or recall what an earlier comparison found."""
    settings = folder / "tokenizer_config.json"
    sides = (
        tokenizer.fingerprint,
        settings.read_text("utf-8", errors="surrogateescape") if settings.is_file() else "",
        json.dumps(read_json(folder / "config.json").get("model_type")),
        metadata.version("transformers"),
    )
    return remembered("tokenizers", sides, lambda: compare_with_transformers(tokenizer, folder))


def compare_with_transformers(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Tell where `AutoTokenizer` gives other ids than the raw file; an empty list where they agree."""
    from transformers import AutoTokenizer  # slow to import, and needed once per tokenizer

    from lushan.backbones.quiet import quiet_transformers

    with quiet_transformers():
        try:
            automatic = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            found = [automatic(text)["input_ids"] for text in PROBES]
        except (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            return [
                f"`AutoTokenizer` cannot load this folder ({reason}); `tokenizer.json` is used."
            ]
    ours = [encoded.ids for encoded in tokenizer.encode(PROBES)]
    different = [
        text for text, mine, theirs in zip(PROBES, ours, found, strict=True) if mine != theirs
    ]
    if not different:
        return []
    return [
        f"`AutoTokenizer` reads {len(different)} of {len(PROBES)} test texts differently (first: {different[0]!r}); "
        "`tokenizer.json` is used everywhere."
    ]
