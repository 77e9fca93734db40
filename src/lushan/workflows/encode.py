"""From examples to tokens, once: what an earlier run encoded in the same way is read from the cache."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import lushan
from lushan import cut_answers, label_answers, records, span_answers, text_answers, triple_answers
from lushan.backbones import branches, chat, chat_encoding, encoding, inspect, tokenizer, tool_calls
from lushan.backbones.encoding import LengthLimit
from lushan.backbones.sources import cache_folder
from lushan.backbones.tokenizer import Tokenizer
from lushan.data import pairs, spans, triples, verbatim, words
from lushan.data.chunks import encode_all
from lushan.data.example_store import hash_of
from lushan.data.feature_store import FEWEST_STORED, LAYOUT, EncodedCache
from lushan.metrics import pieces
from lushan.records import AnswerMode, Example, Features, TaskState
from lushan.tasks import Quotes, Task
from lushan.workflows import learned_parts
from lushan.workflows.learned_parts import count_cut_off, leave_out_cut_off
from lushan.workflows.progress import Progress, Tell, say_nothing
from lushan.workflows.recipe import TuneRecipe

CODE = (
    *(label_answers, text_answers, span_answers, cut_answers, triple_answers),
    *(pairs, spans, triples, verbatim, words, pieces, records),
    *(branches, chat, chat_encoding, encoding, inspect, tokenizer, tool_calls, learned_parts),
)
"""Modules that run while a task encodes, beside its own: another text of one makes other entries of the cache."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """Everything but the examples that decides a token."""

    task: Task
    state: TaskState
    tokenizer: Tokenizer
    answer: AnswerMode
    limit: LengthLimit
    learns: bool = False
    """Whether it is for training: then what was cut off with the end of a text is not told as its truth."""

    def encode(self, examples: Sequence[Example], *, with_target: bool) -> list[Features]:
        """Give the tokens of some examples; where parts of the truth were cut off, their number too."""
        task = self.task
        may_cut = self.limit.policy == "truncate" and self.answer == "generate"
        if with_target and may_cut and isinstance(task, Quotes):
            way = leave_out_cut_off if self.learns else count_cut_off
            return way(
                examples, encode=partial(self._encode, with_target=True), as_read=task.as_read
            )
        return self._encode(examples, with_target=with_target)

    def _encode(self, examples: Sequence[Example], *, with_target: bool) -> list[Features]:
        return self.task.encode(
            examples,
            self.state,
            self.tokenizer,
            answer=self.answer,
            limit=self.limit,
            with_target=with_target,
        )


def open_cache(recipe: TuneRecipe) -> EncodedCache:
    """Give the cache of tokens that the recipe allows."""
    return EncodedCache(cache_folder() / "tokens", recipe.data.cache_gigabytes * 1e9)


def encode(
    examples: Sequence[Example],
    encoder: Encoder,
    *,
    with_target: bool,
    cache: EncodedCache,
    tell: Tell = say_nothing,
) -> Sequence[Features]:
    """Give the tokens of many examples, made of some at a time; few are encoded anew, which is as fast.

    Args:
        examples: What to encode.
        encoder: How.
        with_target: Whether the truth is told.
        cache: What earlier runs encoded, and where this one keeps its tokens.
        tell: Hears how far it has come, where it takes long.

    Raises:
        TooLongError: If texts are too long and the policy is `error`; says how many.
    """
    if len(examples) < FEWEST_STORED:
        return encode_all(examples, partial(encoder.encode, with_target=with_target))
    progress = Progress(tell, "Encoded {} of " + f"{len(examples):,} rows so far.")

    def encode_some(some: Sequence[Example]) -> Sequence[Features]:
        progress.advance(len(some))
        return encoder.encode(some, with_target=with_target)

    return cache.features(
        _name(examples, encoder, with_target=with_target),
        examples,
        encode_some,
        vocabulary_size=encoder.tokenizer.vocabulary_size,
    )


def _name(examples: Sequence[Example], encoder: Encoder, *, with_target: bool) -> str:
    """Name an entry after everything that decides a token, the code included."""
    about = {
        "layout": LAYOUT,
        "version": lushan.__version__,
        "state": asdict(replace(encoder.state, shots=())),
        "tokenizer": encoder.tokenizer.fingerprint,
        "chat": encoder.tokenizer.chat.source,
        "bos": encoder.tokenizer.bos_id,
        "answer": encoder.answer,
        "limit": asdict(encoder.limit),
        "learns": encoder.learns,
        "with_target": with_target,
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for module in (sys.modules[type(encoder.task).__module__], *CODE):
        digest.update(Path(str(module.__file__)).read_bytes())
    digest.update(hash_of(examples, "whole").tobytes())
    return digest.hexdigest()[:32]
